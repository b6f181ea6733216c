/*
 * bad_blocks.h: a member's bad block log.
 *
 * At most 4096 bytes of u64 entries, `start << 10 | length`, both in units of 512 << shift bytes,
 * ended by all-ones. Positions are absolute on the device: they include the data offset. What is
 * listed must be treated as a failed read.
 */
#ifndef STRIPELOG_FORMAT_BAD_BLOCKS_H
#define STRIPELOG_FORMAT_BAD_BLOCKS_H

#include "base/base.h"
#include "format/format_error.h"

#define BAD_BLOCKS_LOG_BYTES_MAX 4096u
#define BAD_BLOCKS_MAX           512u

struct bad_blocks_range {
    uint64_t start_bytes; /* on the device */
    uint64_t end_bytes;   /* first byte behind it */
};

/* Sorted, not empty, with gaps between them. About 8 KiB: zero is "none". */
struct bad_blocks {
    uint32_t count;
    struct bad_blocks_range ranges[BAD_BLOCKS_MAX];
};

/*
 * Decode a log of log_bytes (the superblock's bad_block_log_sectors) with the superblock's shift.
 * Only to be called with FEATURE_BAD_BLOCKS. -EBADMSG: an entry that cannot be: the member should
 * be taken as failed.
 */
must_check int bad_blocks_decode(const uint8_t *log, size_t log_bytes, uint32_t shift,
                                 uint64_t device_bytes, struct bad_blocks *bad,
                                 struct format_error *error);

/* The first bad range that touches [offset, offset + length) of the device; NULL: none. */
must_check const struct bad_blocks_range *
bad_blocks_find(const struct bad_blocks *bad, uint64_t offset_bytes, uint64_t length_bytes);

#endif
