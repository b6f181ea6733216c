/*
 * journal_entry.h: journal entries, bytes <-> struct.
 *
 * The journal is a ring of 4096-byte blocks. An entry is one meta block, which names what was
 * logged, and the data and parity blocks it names, in that order, wrapping at the end of the ring:
 *
 *   | meta: DATA a, DATA b, PARITY s | a's block | b's block | s's P | s's Q | next meta ...
 *
 * Positions are bytes from the journal member's data offset, multiples of 4096. On disk they are
 * sectors; the layout is described in journal_entry.c.
 *
 * Everything on disk is hostile until journal_entry_decode() has accepted it:
 *
 *  J1  Of an accepted entry every payload parses, lies inside meta_bytes, and has its location
 *      inside the array or component and aligned to a block; the entry is not longer than the ring.
 *
 *  J2  A block is ours only if magic, version, checksum and position are right. Anything else is
 *      the end of the log, which is normal. A block that is ours and does not parse is not: nobody
 *      tears a write into a good checksum.
 */
#ifndef STRIPELOG_FORMAT_JOURNAL_ENTRY_H
#define STRIPELOG_FORMAT_JOURNAL_ENTRY_H

#include "base/base.h"
#include "format/format_error.h"
#include "format/superblock.h"

#define JOURNAL_HEADER_BYTES       32u
#define JOURNAL_DATA_PAYLOAD_BYTES 20u
#define JOURNAL_PARITY_COUNT_MAX   2u
/* Logs begin with a random number of 63 bits; one beyond this would soon count round zero. */
#define JOURNAL_SEQ_MAX (UINT64_MAX / 4 * 3)
/* What one stripe adds in one step must fit into one meta block, so a journal serves at most 203
 * members. */
#define JOURNAL_MEMBERS_MAX ((BLOCK_BYTES - JOURNAL_HEADER_BYTES) / JOURNAL_DATA_PAYLOAD_BYTES)
/* Most blocks that one meta block can name: RAID-6 parity payloads, two blocks in 24 bytes each. */
#define JOURNAL_ENTRY_BLOCKS_MAX ((BLOCK_BYTES - JOURNAL_HEADER_BYTES) / 24u * 2u)

/* Bytes that a PARITY payload takes for P, or P and Q. */
static inline uint32_t
journal_parity_payload_bytes(uint32_t parity_count)
{
    return 16u + 4u * parity_count;
}

/* ---- Checksums ---- */

/* CRC-32C, raw: continues from seed, no final inversion. length <= INT_MAX. */
must_check uint32_t journal_checksum(uint32_t seed, const void *data, size_t length);

/* For a block whose checksum is wanted next: brings it near meanwhile. Blocks that others (devices,
 * cores) have filled take twice as long without. Need not be there: nothing is touched. */
static inline void
journal_block_expect(const void *block)
{
    for (size_t i = 0; i < BLOCK_BYTES; i += 64)
        __builtin_prefetch((const uint8_t *)block + i);
}

/* The seed of every checksum in the journal of the array with this set_uuid. */
must_check uint32_t journal_checksum_seed(const uint8_t set_uuid[SUPERBLOCK_UUID_BYTES]);

/* ---- What entries are checked against ---- */

struct journal_geometry {
    uint64_t ring_bytes; /* whole blocks */
    uint64_t array_bytes;
    uint64_t component_bytes;
    uint32_t parity_count; /* 1: P; 2: P and Q */
    uint32_t checksum_seed;
};

/* From the journal member's superblock, as superblock_decode() accepted it. */
void journal_geometry_init(struct journal_geometry *geometry, const struct superblock *journal);

/* length_bytes further on in the ring. Both at most ring_bytes. */
static inline uint64_t
journal_ring_add(const struct journal_geometry *geometry, uint64_t position_bytes,
                 uint64_t length_bytes)
{
    const uint64_t sum = position_bytes + length_bytes;

    return sum >= geometry->ring_bytes ? sum - geometry->ring_bytes : sum;
}

/* From one position forward to another. */
static inline uint64_t
journal_ring_distance(const struct journal_geometry *geometry, uint64_t from_bytes,
                      uint64_t to_bytes)
{
    return to_bytes >= from_bytes ? to_bytes - from_bytes
                                  : to_bytes + geometry->ring_bytes - from_bytes;
}

/* ---- Reading ---- */

struct journal_entry {
    uint64_t seq;
    uint64_t position_bytes; /* of the meta block; its blocks follow */
    uint32_t meta_bytes;     /* of the meta block in use */
    uint32_t payload_count;
    uint32_t block_count; /* data and parity blocks, the meta block not counted */
};

/*
 * Decode and check the meta block that was read at position_bytes (inside the ring, aligned).
 *
 *   0         an entry; whether its blocks are whole, the payloads' checksums tell the caller
 *   -ENOENT   no meta block, or a torn or foreign one: the end of the log
 *   -EBADMSG  a meta block with a good checksum that does not parse (J2): refuse to go on. The
 *             header in *entry is filled; error names position, payload and field
 *
 * Which seq is expected is for the caller to compare. error may be NULL.
 */
must_check int journal_entry_decode(const uint8_t meta[BLOCK_BYTES], uint64_t position_bytes,
                                    const struct journal_geometry *geometry,
                                    struct journal_entry *entry, struct format_error *error);

/* Of a block with -ENOENT: it begins like a meta block and is not what its checksum says. It was
 * torn, or is of another array. */
must_check bool journal_entry_is_torn(const uint8_t meta[BLOCK_BYTES],
                                      const struct journal_geometry *geometry);

/* Where the next entry stands. */
must_check uint64_t journal_entry_next(const struct journal_entry *entry,
                                       const struct journal_geometry *geometry);

enum journal_payload_type {
    JOURNAL_DATA = 0,
    JOURNAL_PARITY = 1,
    JOURNAL_FLUSH = 2,
};

struct journal_payload {
    enum journal_payload_type type;

    /* DATA: byte offset of the block in the array. PARITY: of the stripe on the members, from their
     * data offset. */
    uint64_t location_bytes;

    /* Its blocks on the journal: the first one's number in the entry (0: right behind the meta
       block), and the checksum of each. One for DATA; P, or P and Q, for PARITY; none for FLUSH. */
    uint32_t block_first;
    uint32_t block_count;
    uint32_t checksums[JOURNAL_PARITY_COUNT_MAX];

    /* FLUSH: stripes said to be safe on the members, see journal_flush_stripe(). */
    uint32_t stripe_count;
    const uint8_t *stripes; /* borrowed from the meta block */
};

/* Walks the payloads of a meta block that journal_entry_decode() accepted and that has not changed
 * since. */
struct journal_cursor {
    const uint8_t *meta; /* borrowed */
    const struct journal_geometry *geometry;
    uint32_t at_bytes;
    uint32_t end_bytes;
    uint32_t block_next;
};

void journal_cursor_init(struct journal_cursor *cursor, const uint8_t meta[BLOCK_BYTES],
                         const struct journal_geometry *geometry,
                         const struct journal_entry *entry);

/* The next payload; false at the end. */
must_check bool journal_cursor_next(struct journal_cursor *cursor, struct journal_payload *payload);

/* Where the payload's i-th block stands in the ring. */
must_check uint64_t journal_payload_position(const struct journal_entry *entry,
                                             const struct journal_payload *payload,
                                             const struct journal_geometry *geometry, uint32_t i);

/* Byte offset on the members of the i-th stripe of a FLUSH payload. */
must_check uint64_t journal_flush_stripe(const struct journal_payload *payload, uint32_t i);

/* ---- Writing ---- */

/* An entry that is open: payloads are added to its meta block until it is full or submitted. */
struct journal_writer {
    uint8_t *meta; /* borrowed, 4096 bytes */
    uint32_t at_bytes;
    uint32_t block_count; /* blocks named so far */
};

/* Begin an entry in meta, which is cleared. */
void journal_writer_init(struct journal_writer *writer, uint8_t meta[BLOCK_BYTES], uint64_t seq,
                         uint64_t position_bytes);

/* Bytes for payloads that are left. What one stripe adds in one step belongs into one meta block:
 * look before. */
static inline uint32_t
journal_writer_room(const struct journal_writer *writer)
{
    return BLOCK_BYTES - writer->at_bytes;
}

/* Name one more data block; the caller has seen that there is room. */
void journal_writer_add_data(struct journal_writer *writer, uint64_t array_offset_bytes,
                             uint32_t checksum);

/* Name the parity of a stripe: P, or P and Q. */
void journal_writer_add_parity(struct journal_writer *writer, uint64_t member_offset_bytes,
                               uint32_t parity_count, const uint32_t checksums[]);

/* Close it: length and checksum. The meta block is then ready to be written. */
void journal_writer_finish(struct journal_writer *writer, uint32_t checksum_seed);

/* An entry that means nothing: a new log begins with one, and a tail may rest on it. */
void journal_entry_encode_empty(uint8_t meta[BLOCK_BYTES], uint64_t seq, uint64_t position_bytes,
                                uint32_t checksum_seed);

#endif
