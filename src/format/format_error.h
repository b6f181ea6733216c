/*
 * format_error.h: what a decoder found wrong, in words.
 *
 * Decoders do not print. They return an errno that says what kind of refusal it is and leave a text
 * that names the field, its value and what was expected; whoever knows the device puts its name in
 * front.
 *
 *   -ENOENT   there is nothing of ours here
 *   -EBADMSG  something of ours is here, but it is damaged or contradicts itself
 *   -ENOTSUP  it is sound, and asks for something this program does not do
 */
#ifndef STRIPELOG_FORMAT_ERROR_H
#define STRIPELOG_FORMAT_ERROR_H

#include "base/base.h"

#define FORMAT_ERROR_TEXT_BYTES 200u

struct format_error {
    char text[FORMAT_ERROR_TEXT_BYTES];
};

/* Put the text into error (which may be NULL) and return -code, so that "return format_refuse(...)"
 * works. */
must_check int format_refuse(struct format_error *error, int code, const char *format, ...)
    printf_like(3, 4);

#endif
