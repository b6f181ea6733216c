/*
 * bad_blocks.c: a member's bad block log.
 *
 * The kernel keeps it sorted, but nothing promises that, so it is sorted and merged here; a search
 * may then stop at the first range that ends behind what it looks for.
 */
#include "format/bad_blocks.h"

#include <inttypes.h>

#define LENGTH_BITS 10u
#define END_OF_LOG  UINT64_MAX
/* Units of 512 << 54 bytes: more than a device can have, and shifts stay defined. */
#define SHIFT_MAX 54u

static int
decode_entry(uint64_t entry, uint32_t shift, uint64_t device_bytes, struct bad_blocks_range *range,
             struct format_error *error)
{
    const uint64_t units_max = (device_bytes / SECTOR_BYTES) >> shift;
    const uint64_t start = entry >> LENGTH_BITS;
    const uint64_t length = entry & ((1u << LENGTH_BITS) - 1);
    const uint64_t unit_bytes = (uint64_t)SECTOR_BYTES << shift;

    if (length == 0)
        return format_refuse(error, EBADMSG,
                             "bad block log: an entry of no length at unit %" PRIu64, start);
    if (start > units_max || start * unit_bytes >= device_bytes)
        return format_refuse(error, EBADMSG,
                             "bad block log: unit %" PRIu64 " is behind the end of the device",
                             start);
    range->start_bytes = start * unit_bytes;
    range->end_bytes =
        length > units_max - start ? device_bytes : range->start_bytes + length * unit_bytes;
    return 0;
}

/* Keep the ranges sorted by start while adding one. At most 512 of them, and nearly always at the
 * end. */
static void
insert_sorted(struct bad_blocks *bad, struct bad_blocks_range range)
{
    uint32_t at = bad->count++;

    while (at > 0 && bad->ranges[at - 1].start_bytes > range.start_bytes) {
        bad->ranges[at] = bad->ranges[at - 1];
        at--;
    }
    bad->ranges[at] = range;
}

static void
merge(struct bad_blocks *bad)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < bad->count; i++) {
        const struct bad_blocks_range range = bad->ranges[i];

        if (kept > 0 && range.start_bytes <= bad->ranges[kept - 1].end_bytes)
            bad->ranges[kept - 1].end_bytes =
                max_u64(bad->ranges[kept - 1].end_bytes, range.end_bytes);
        else
            bad->ranges[kept++] = range;
    }
    bad->count = kept;
}

int
bad_blocks_decode(const uint8_t *log, size_t log_bytes, uint32_t shift, uint64_t device_bytes,
                  struct bad_blocks *bad, struct format_error *error)
{
    assert(log_bytes <= BAD_BLOCKS_LOG_BYTES_MAX);
    bad->count = 0;
    if (shift > SHIFT_MAX)
        return format_refuse(error, EBADMSG, "bblog_shift %" PRIu32 ": more than %u", shift,
                             SHIFT_MAX);
    for (size_t at = 0; at + 8 <= log_bytes; at += 8) {
        const uint64_t entry = load_le64(log + at);
        struct bad_blocks_range range = {0};
        int r;

        if (entry == END_OF_LOG)
            break;
        r = decode_entry(entry, shift, device_bytes, &range, error);
        if (r < 0) {
            bad->count = 0;
            return r;
        }
        insert_sorted(bad, range);
    }
    merge(bad);
    return 0;
}

const struct bad_blocks_range *
bad_blocks_find(const struct bad_blocks *bad, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint32_t low = 0, high = bad->count;

    /* The first range that ends behind offset_bytes. */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;

        if (bad->ranges[middle].end_bytes > offset_bytes)
            high = middle;
        else
            low = middle + 1;
    }
    if (low == bad->count || length_bytes == 0)
        return NULL;
    if (bad->ranges[low].start_bytes >= offset_bytes &&
        bad->ranges[low].start_bytes - offset_bytes >= length_bytes)
        return NULL;
    return &bad->ranges[low];
}
