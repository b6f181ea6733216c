/*
 * size.c: sizes as people write them. ASCII only, whatever the locale says.
 */
#include "cli/size.h"

#include <inttypes.h>
#include <strings.h>

static const char *
digits_parse(const char *text, uint64_t *value, bool *overflow)
{
    uint64_t sum = 0;

    *overflow = false;
    for (; *text >= '0' && *text <= '9'; text++)
        if (__builtin_mul_overflow(sum, 10u, &sum) ||
            __builtin_add_overflow(sum, (uint64_t)(*text - '0'), &sum))
            *overflow = true;
    *value = sum;
    return text;
}

/* -1: no such suffix. 0: none at all. */
static int
suffix_shift(const char *suffix)
{
    static const char letters[] = "kmgt";

    if (*suffix == '\0')
        return 0;
    for (int i = 0; letters[i]; i++)
        if ((*suffix | 0x20) == letters[i] &&
            (suffix[1] == '\0' || strcasecmp(suffix + 1, "ib") == 0))
            return 10 * (i + 1);
    return -1;
}

int
size_parse(const char *text, enum size_bare bare, uint64_t *bytes, struct error *error)
{
    uint64_t value;
    bool overflow;
    const char *suffix = digits_parse(text, &value, &overflow);
    int shift = suffix_shift(suffix);

    if (suffix == text)
        return error_set(error, -EINVAL, "\"%s\" is not a size, such as 64K or 1G", text);
    if (shift < 0)
        return error_set(error, -EINVAL,
                         "\"%s\": \"%s\" is not a unit; there are K, M, G, T, KiB, MiB, GiB, TiB",
                         text, suffix);
    if (shift == 0 && bare == SIZE_BARE_REFUSED)
        return error_set(error, -EINVAL, "\"%s\" has no unit, such as K, M, G or T", text);
    if (shift == 0)
        shift = 10;
    if (overflow || value > UINT64_MAX >> shift)
        return error_set(error, -ERANGE, "\"%s\" is too large", text);
    *bytes = value << shift;
    return 0;
}

int
count_parse(const char *text, uint64_t max, uint64_t *count, struct error *error)
{
    uint64_t value;
    bool overflow;
    const char *end = digits_parse(text, &value, &overflow);

    if (end == text || *end != '\0')
        return error_set(error, -EINVAL, "\"%s\" is not a whole number", text);
    if (overflow || value > max)
        return error_set(error, -ERANGE, "\"%s\" is too large: at most %" PRIu64, text, max);
    *count = value;
    return 0;
}

void
size_text(uint64_t bytes, char text[SIZE_TEXT_BYTES])
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;

    if (bytes < KIB) {
        (void)snprintf(text, SIZE_TEXT_BYTES, "%" PRIu64 " bytes", bytes);
        return;
    }
    while (unit + 1 < ARRAY_LEN(units) && bytes >= KIB << (10 * (unit + 1)))
        unit++;
    if ((bytes & ((KIB << (10 * unit)) - 1)) == 0)
        (void)snprintf(text, SIZE_TEXT_BYTES, "%" PRIu64 " %s", bytes >> (10 * (unit + 1)),
                       units[unit]);
    else
        (void)snprintf(text, SIZE_TEXT_BYTES, "%.2f %s",
                       (double)bytes / (double)(KIB << (10 * unit)), units[unit]);
}
