/*
 * error.h: an error on its way up.
 *
 * Lower layers put facts in (which device, which offset, which field, what can be done); only the
 * command line prints. The text is one or more lines; the cause stands on the last.
 */
#ifndef STRIPELOG_ERROR_H
#define STRIPELOG_ERROR_H

#include "base/base.h"
#include <stdarg.h>
#include <stdio.h>

struct error {
    int code; /* negative errno, 0 while nothing was set */
    char text[480];
};

/* Sets code and text, replacing what was there; returns code so that callers can `return
 * error_set(...)`. code < 0. */
static inline int printf_like(3, 4)
    error_set(struct error *error, int code, const char *format, ...)
{
    va_list args;

    assert(code < 0);
    error->code = code;
    va_start(args, format);
    (void)vsnprintf(error->text, sizeof error->text, format, args); /* cut off is fine */
    va_end(args);
    return code;
}

/* Puts "CONTEXT: " before the text that is there. */
static inline void printf_like(2, 3) error_prefix(struct error *error, const char *format, ...)
{
    char context[160];
    char text[sizeof error->text];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(context, sizeof context, format, args);
    va_end(args);
    memcpy(text, error->text, sizeof text);
    (void)snprintf(error->text, sizeof error->text, "%s: %.*s", context,
                   (int)(sizeof text - sizeof context - 4), text);
}

#endif
