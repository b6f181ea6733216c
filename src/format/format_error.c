/*
 * format_error.c: put a refusal into words.
 */
#include "format/format_error.h"

#include <stdarg.h>
#include <stdio.h>

int
format_refuse(struct format_error *error, int code, const char *format, ...)
{
    va_list args;

    assert(code > 0);
    if (error) {
        va_start(args, format);
        /* A text cut at the end still says which field it is about. */
        (void)vsnprintf(error->text, sizeof error->text, format, args);
        va_end(args);
    }
    return -code;
}
