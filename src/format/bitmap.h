/*
 * bitmap.h: the write-intent bitmap's header and bits.
 *
 * The same bitmap stands on every data member, `bitmap_offset` sectors from the superblock: a
 * header of 256 bytes, then one bit for each `chunk_bytes` of a member (so: whole stripes). Bit i
 * is bit i mod 8, counted from the least significant, of byte 256 + i / 8. A 1 means: if the array
 * was not shut down clean, parity there may be wrong.
 *
 *  off size field (little-endian)          |  off size field
 *    0  4   magic 0x6d746962 "bitm"        |   52  4   chunksize: bytes a bit, power of two >= 512
 *    4  4   version: 4                     |   56  4   daemon_sleep, seconds
 *    8 16   uuid = set_uuid                |   60  4   write_behind
 *   24  8   events                         |   64  4   sectors_reserved, 0 = unknown
 *   32  8   events_cleared                 |   68  4   nodes
 *   40  8   sync_size: sectors covered     |   72 64   cluster_name
 *   48  4   state: 0x2 = stale             |  136 120  pad
 */
#ifndef STRIPELOG_FORMAT_BITMAP_H
#define STRIPELOG_FORMAT_BITMAP_H

#include "base/base.h"
#include "format/format_error.h"
#include "format/superblock.h"

#define BITMAP_HEADER_BYTES 256u
#define BITMAP_VERSION      4u
#define BITMAP_STATE_STALE  0x2u

struct bitmap_header {
    uint8_t uuid[SUPERBLOCK_UUID_BYTES];
    uint64_t events;
    uint64_t events_cleared; /* events when a bit was last cleared with no member missing */
    uint64_t sync_size_sectors;
    uint32_t state;
    uint32_t chunk_bytes;
    uint32_t daemon_sleep_s;
    uint32_t write_behind;
    uint32_t sectors_reserved;

    /* As read, zeros for a new one: what is not named above survives a rewrite. */
    uint8_t raw[BITMAP_HEADER_BYTES];
};

/*
 * Decode the header that was read at superblock_bitmap_offset_bytes(sb) and check that it covers
 * the component of this array and lies clear of superblock and data. -ENOENT: no bitmap; -EBADMSG:
 * damaged; -ENOTSUP: clustered, lockless, or of the old version whose bits are in somebody's host
 * order. With any of these all parity is suspect, as with bitmap_is_stale().
 */
must_check int bitmap_decode(const uint8_t block[BITMAP_HEADER_BYTES], const struct superblock *sb,
                             struct bitmap_header *header, struct format_error *error);

void bitmap_encode(const struct bitmap_header *header, uint8_t block[BITMAP_HEADER_BYTES]);

/* Its bits say nothing: another array's, marked stale, or superblocks were updated without it. */
must_check bool bitmap_is_stale(const struct bitmap_header *header, const struct superblock *sb);

/* A member with this many events that comes back may be caught up from the set bits alone. */
must_check bool bitmap_covers_events(const struct bitmap_header *header, uint64_t member_events);

/* Bits over a component, and bytes on disk (header included, whole blocks) for that many bits. */
must_check uint64_t bitmap_bits_for(uint64_t component_sectors, uint64_t chunk_bytes);
must_check uint64_t bitmap_bytes_for(uint64_t bits);

static inline uint64_t
bitmap_bits(const struct bitmap_header *header)
{
    return bitmap_bits_for(header->sync_size_sectors, header->chunk_bytes);
}

/* The bit for a byte offset on the member, from its data offset. */
static inline uint64_t
bitmap_bit_of(const struct bitmap_header *header, uint64_t member_offset_bytes)
{
    return member_offset_bytes / header->chunk_bytes;
}

/* `bits` is what follows the header on disk. */
static inline bool
bitmap_test(const uint8_t *bits, uint64_t bit)
{
    return bits[bit / 8] >> (bit % 8) & 1;
}

#endif
