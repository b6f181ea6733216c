/*
 * size.h: sizes as people write them.
 *
 *   DIGITS [ K | M | G | T [ iB ] ]      in any case, powers of 1024
 *
 * mdadm takes bare numbers for KiB where it asks for a chunk or a size, and so do we there;
 * elsewhere a bare number could be anything and is refused. So are signs, fractions, spaces, and
 * whatever follows the suffix.
 */
#ifndef STRIPELOG_SIZE_H
#define STRIPELOG_SIZE_H

#include "base/base.h"
#include "base/error.h"

enum size_bare {
    SIZE_BARE_REFUSED,
    SIZE_BARE_KIB,
};

/* -EINVAL: no size; -ERANGE: more than 2^64 - 1 bytes. *bytes is set on success only. */
int size_parse(const char *text, enum size_bare bare, uint64_t *bytes,
               struct error *error) must_check;

/* A whole number without a suffix, at most max. */
int count_parse(const char *text, uint64_t max, uint64_t *count, struct error *error) must_check;

/* "1.5 GiB" in at most SIZE_TEXT_BYTES, for people. */
#define SIZE_TEXT_BYTES 24u
void size_text(uint64_t bytes, char text[SIZE_TEXT_BYTES]);

#endif
