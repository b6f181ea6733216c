/*
 * journal_entry.c: journal entries.
 *
 * Meta block, little-endian; "sec" = 512-byte sectors:
 *
 *   off size field
 *     0  4   magic 0x6433c509
 *     4  4   checksum: over all 4096 bytes, this field taken as 0
 *     8  1   version 1
 *     9  3   zero
 *    12  4   meta_size: bytes in use, 32 to 4096
 *    16  8   seq: one more than the entry before
 *    24  8   position, sec: where this block stands
 *    32 ..   payloads, packed, then zeros
 *
 * Payloads begin with type (u16) and flags (u16, 0).
 *
 *   DATA 0, PARITY 1:  4  4  size, sec: DATA 8; PARITY 8, or 16 on RAID-6
 *                      8  8  location, sec: DATA in the array, PARITY on the members
 *                     16 4k  checksum of each block, P before Q
 *   FLUSH 2:           4  4  size, bytes: 8 for each stripe
 *                      8 8k  stripes, sec on the members
 *
 * Checksums are CRC-32C without the final inversion, seeded with that of set_uuid, so an entry of
 * another array cannot be taken for one of ours.
 */
#include "format/journal_entry.h"

#include <inttypes.h>
#include <limits.h>
#include <linux/types.h>
#include <linux/raid/md_p.h>
#include <isa-l/crc.h>

#define MAGIC         R5LOG_MAGIC
#define VERSION       R5LOG_VERSION
#define AT_MAGIC      0u
#define AT_CHECKSUM   4u
#define AT_VERSION    8u
#define AT_META_SIZE  12u
#define AT_SEQ        16u
#define AT_POSITION   24u
#define PAYLOAD_FIXED 16u /* of DATA and PARITY, before the checksums */
#define FLUSH_FIXED   8u
#define STRIPE_BYTES  8u /* one entry of a FLUSH list */

static_assert(MAGIC == 0x6433c509, "magic");
static_assert(offsetof(struct r5l_meta_block, checksum) == AT_CHECKSUM, "meta block");
static_assert(offsetof(struct r5l_meta_block, version) == AT_VERSION, "meta block");
static_assert(offsetof(struct r5l_meta_block, meta_size) == AT_META_SIZE, "meta block");
static_assert(offsetof(struct r5l_meta_block, seq) == AT_SEQ, "meta block");
static_assert(offsetof(struct r5l_meta_block, position) == AT_POSITION, "meta block");
static_assert(sizeof(struct r5l_meta_block) == JOURNAL_HEADER_BYTES, "meta block");
static_assert(sizeof(struct r5l_payload_data_parity) == PAYLOAD_FIXED, "payload");
static_assert(sizeof(struct r5l_payload_flush) == FLUSH_FIXED, "payload");
static_assert(JOURNAL_DATA == (int)R5LOG_PAYLOAD_DATA, "payload type");
static_assert(JOURNAL_PARITY == (int)R5LOG_PAYLOAD_PARITY, "payload type");
static_assert(JOURNAL_FLUSH == (int)R5LOG_PAYLOAD_FLUSH, "payload type");

/* ---- Checksums ---- */

uint32_t
journal_checksum(uint32_t seed, const void *data, size_t length)
{
    assert(length <= INT_MAX);
    /* Its parameter lacks a const; it only reads. */
    return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)length, seed);
}

uint32_t
journal_checksum_seed(const uint8_t set_uuid[SUPERBLOCK_UUID_BYTES])
{
    return journal_checksum(UINT32_MAX, set_uuid, SUPERBLOCK_UUID_BYTES);
}

static uint32_t
meta_checksum(uint32_t seed, const uint8_t *meta)
{
    static const uint8_t zero[4];
    uint32_t crc;

    crc = journal_checksum(seed, meta, AT_CHECKSUM);
    crc = journal_checksum(crc, zero, sizeof zero);
    return journal_checksum(crc, meta + AT_VERSION, BLOCK_BYTES - AT_VERSION);
}

void
journal_geometry_init(struct journal_geometry *geometry, const struct superblock *journal)
{
    *geometry = (struct journal_geometry){
        .ring_bytes = superblock_journal_ring_bytes(journal),
        .array_bytes = superblock_array_bytes(journal),
        .component_bytes = superblock_component_bytes(journal),
        .parity_count = superblock_parity_count(journal),
        .checksum_seed = journal_checksum_seed(journal->set_uuid),
    };
}

/* ---- Reading ---- */

/* A block of a space of limit_bytes, given in sectors: whole, aligned, inside. No product here can
 * overflow. */
static bool
location_is_good(uint64_t sector, uint64_t limit_bytes)
{
    return sector % BLOCK_SECTORS == 0 && sector / BLOCK_SECTORS < limit_bytes / BLOCK_BYTES;
}

static int
decode_blocks(const uint8_t *at, uint32_t room, const struct journal_geometry *geometry,
              struct journal_payload *payload, struct format_error *error)
{
    const bool is_data = payload->type == JOURNAL_DATA;
    const char *const name = is_data ? "DATA" : "PARITY";
    const uint32_t block_count = is_data ? 1 : geometry->parity_count;
    const uint32_t length = PAYLOAD_FIXED + 4 * block_count;
    const uint64_t limit_bytes = is_data ? geometry->array_bytes : geometry->component_bytes;
    uint32_t size_sectors;
    uint64_t sector;

    if (room < PAYLOAD_FIXED)
        return format_refuse(error, EBADMSG, "%s payload runs past meta_size", name);
    size_sectors = load_le32(at + 4);
    sector = load_le64(at + 8);
    if (size_sectors != block_count * BLOCK_SECTORS)
        return format_refuse(error, EBADMSG, "%s size %" PRIu32 " sectors: not %u", name,
                             size_sectors, block_count * BLOCK_SECTORS);
    if (room < length)
        return format_refuse(error, EBADMSG, "%s payload runs past meta_size", name);
    if (!location_is_good(sector, limit_bytes))
        return format_refuse(
            error, EBADMSG,
            "%s location %" PRIu64 ": not a block of the %s, which has %" PRIu64 " sectors", name,
            sector, is_data ? "array" : "members", limit_bytes / SECTOR_BYTES);
    payload->location_bytes = sector * SECTOR_BYTES;
    payload->block_count = block_count;
    for (uint32_t i = 0; i < block_count; i++)
        payload->checksums[i] = load_le32(at + PAYLOAD_FIXED + 4 * i);
    return (int)length;
}

static int
decode_flush(const uint8_t *at, uint32_t room, const struct journal_geometry *geometry,
             struct journal_payload *payload, struct format_error *error)
{
    uint32_t size_bytes;

    if (room < FLUSH_FIXED)
        return format_refuse(error, EBADMSG, "FLUSH payload runs past meta_size");
    size_bytes = load_le32(at + 4);
    if (size_bytes > room - FLUSH_FIXED)
        return format_refuse(error, EBADMSG, "FLUSH size %" PRIu32 " bytes: runs past meta_size",
                             size_bytes);
    if (size_bytes % STRIPE_BYTES != 0)
        return format_refuse(error, EBADMSG, "FLUSH size %" PRIu32 " bytes: not a multiple of %u",
                             size_bytes, STRIPE_BYTES);
    payload->stripe_count = size_bytes / STRIPE_BYTES;
    payload->stripes = at + FLUSH_FIXED;
    for (uint32_t i = 0; i < payload->stripe_count; i++) {
        const uint64_t sector = load_le64(payload->stripes + i * STRIPE_BYTES);

        if (!location_is_good(sector, geometry->component_bytes))
            return format_refuse(error, EBADMSG,
                                 "FLUSH stripe %" PRIu64
                                 ": not a block of the members, which have %" PRIu64 " sectors",
                                 sector, geometry->component_bytes / SECTOR_BYTES);
    }
    return (int)(FLUSH_FIXED + size_bytes);
}

/* One payload in the `room` bytes from `at`. Returns its length, or -EBADMSG. */
static int
decode_payload(const uint8_t *at, uint32_t room, const struct journal_geometry *geometry,
               struct journal_payload *payload, struct format_error *error)
{
    uint16_t type, flags;

    memset(payload, 0, sizeof *payload);
    if (room < 4)
        return format_refuse(error, EBADMSG,
                             "%" PRIu32 " bytes are left before meta_size, too few for a payload",
                             room);
    type = load_le16(at);
    flags = load_le16(at + 2);
    if (type > JOURNAL_FLUSH)
        return format_refuse(error, EBADMSG, "type %u is not known", type);
    if (flags != 0)
        return format_refuse(error, EBADMSG, "flags 0x%04x of type %u are not known", flags, type);
    payload->type = (enum journal_payload_type)type;
    if (type == JOURNAL_FLUSH)
        return decode_flush(at, room, geometry, payload, error);
    return decode_blocks(at, room, geometry, payload, error);
}

/* Is it a meta block of this array that belongs here (J2)? */
static int
check_header(const uint8_t *meta, uint64_t position_bytes, const struct journal_geometry *geometry,
             struct format_error *error)
{
    const uint64_t position_sectors = position_bytes / SECTOR_BYTES;
    const uint32_t stored = load_le32(meta + AT_CHECKSUM);
    uint32_t computed;

    if (load_le32(meta + AT_MAGIC) != MAGIC)
        return format_refuse(error, ENOENT, "sector %" PRIu64 ": no meta block", position_sectors);
    computed = meta_checksum(geometry->checksum_seed, meta);
    if (stored != computed)
        return format_refuse(error, ENOENT,
                             "sector %" PRIu64 ": checksum 0x%08" PRIx32
                             ": the content's is 0x%08" PRIx32,
                             position_sectors, stored, computed);
    if (meta[AT_VERSION] != VERSION)
        return format_refuse(error, ENOENT, "sector %" PRIu64 ": version %u, not %u",
                             position_sectors, meta[AT_VERSION], VERSION);
    if (load_le64(meta + AT_POSITION) != position_sectors)
        return format_refuse(error, ENOENT,
                             "sector %" PRIu64 ": position %" PRIu64 " is that of another place",
                             position_sectors, load_le64(meta + AT_POSITION));
    return 0;
}

int
journal_entry_decode(const uint8_t meta[BLOCK_BYTES], uint64_t position_bytes,
                     const struct journal_geometry *geometry, struct journal_entry *entry,
                     struct format_error *error)
{
    const uint64_t position_sectors = position_bytes / SECTOR_BYTES;
    struct journal_payload payload;
    struct format_error cause;
    uint32_t at;
    int r;

    assert(position_bytes < geometry->ring_bytes);
    assert(position_bytes % BLOCK_BYTES == 0);
    assert(geometry->ring_bytes % BLOCK_BYTES == 0);
    assert(geometry->parity_count >= 1);
    assert(geometry->parity_count <= JOURNAL_PARITY_COUNT_MAX);

    *entry = (struct journal_entry){.position_bytes = position_bytes};
    r = check_header(meta, position_bytes, geometry, error);
    if (r < 0)
        return r;
    entry->seq = load_le64(meta + AT_SEQ);
    entry->meta_bytes = load_le32(meta + AT_META_SIZE);
    if (entry->meta_bytes < JOURNAL_HEADER_BYTES || entry->meta_bytes > BLOCK_BYTES)
        return format_refuse(
            error, EBADMSG,
            "sector %" PRIu64 ", seq %" PRIu64 ": meta_size %" PRIu32 " is not %u to %u",
            position_sectors, entry->seq, entry->meta_bytes, JOURNAL_HEADER_BYTES, BLOCK_BYTES);
    for (at = JOURNAL_HEADER_BYTES; at < entry->meta_bytes; at += (uint32_t)r) {
        r = decode_payload(meta + at, entry->meta_bytes - at, geometry, &payload, &cause);
        if (r < 0)
            return format_refuse(error, -r,
                                 "sector %" PRIu64 ", seq %" PRIu64 ", byte %" PRIu32 ": %s",
                                 position_sectors, entry->seq, at, cause.text);
        entry->payload_count++;
        entry->block_count += payload.block_count;
    }
    if ((1 + (uint64_t)entry->block_count) * BLOCK_BYTES > geometry->ring_bytes)
        return format_refuse(error, EBADMSG,
                             "sector %" PRIu64 ", seq %" PRIu64 ": %" PRIu32
                             " blocks are more than the journal has",
                             position_sectors, entry->seq, entry->block_count);
    return 0;
}

bool
journal_entry_is_torn(const uint8_t meta[BLOCK_BYTES], const struct journal_geometry *geometry)
{
    return load_le32(meta + AT_MAGIC) == MAGIC &&
           load_le32(meta + AT_CHECKSUM) != meta_checksum(geometry->checksum_seed, meta);
}

uint64_t
journal_entry_next(const struct journal_entry *entry, const struct journal_geometry *geometry)
{
    return journal_ring_add(geometry, entry->position_bytes,
                            (1 + (uint64_t)entry->block_count) * BLOCK_BYTES);
}

void
journal_cursor_init(struct journal_cursor *cursor, const uint8_t meta[BLOCK_BYTES],
                    const struct journal_geometry *geometry, const struct journal_entry *entry)
{
    *cursor = (struct journal_cursor){
        .meta = meta,
        .geometry = geometry,
        .at_bytes = JOURNAL_HEADER_BYTES,
        .end_bytes = entry->meta_bytes,
    };
}

bool
journal_cursor_next(struct journal_cursor *cursor, struct journal_payload *payload)
{
    int length;

    if (cursor->at_bytes == cursor->end_bytes)
        return false;
    length = decode_payload(cursor->meta + cursor->at_bytes, cursor->end_bytes - cursor->at_bytes,
                            cursor->geometry, payload, NULL);
    assert(length > 0); /* J1 */
    payload->block_first = cursor->block_next;
    cursor->at_bytes += (uint32_t)length;
    cursor->block_next += payload->block_count;
    return true;
}

uint64_t
journal_payload_position(const struct journal_entry *entry, const struct journal_payload *payload,
                         const struct journal_geometry *geometry, uint32_t i)
{
    assert(i < payload->block_count);
    return journal_ring_add(geometry, entry->position_bytes,
                            (1 + (uint64_t)payload->block_first + i) * BLOCK_BYTES);
}

uint64_t
journal_flush_stripe(const struct journal_payload *payload, uint32_t i)
{
    assert(i < payload->stripe_count);
    return load_le64(payload->stripes + i * STRIPE_BYTES) * SECTOR_BYTES;
}

/* ---- Writing ---- */

void
journal_writer_init(struct journal_writer *writer, uint8_t meta[BLOCK_BYTES], uint64_t seq,
                    uint64_t position_bytes)
{
    assert(position_bytes % BLOCK_BYTES == 0);
    memset(meta, 0, BLOCK_BYTES);
    store_le32(meta + AT_MAGIC, MAGIC);
    meta[AT_VERSION] = VERSION;
    store_le64(meta + AT_SEQ, seq);
    store_le64(meta + AT_POSITION, position_bytes / SECTOR_BYTES);
    *writer = (struct journal_writer){.meta = meta, .at_bytes = JOURNAL_HEADER_BYTES};
}

static void
add_payload(struct journal_writer *writer, enum journal_payload_type type, uint64_t location_bytes,
            uint32_t block_count, const uint32_t checksums[])
{
    uint8_t *const at = writer->meta + writer->at_bytes;

    assert(location_bytes % BLOCK_BYTES == 0);
    assert(journal_writer_room(writer) >= PAYLOAD_FIXED + 4 * block_count);
    store_le16(at, (uint16_t)type);
    store_le32(at + 4, block_count * BLOCK_SECTORS);
    store_le64(at + 8, location_bytes / SECTOR_BYTES);
    for (uint32_t i = 0; i < block_count; i++)
        store_le32(at + PAYLOAD_FIXED + 4 * i, checksums[i]);
    writer->at_bytes += PAYLOAD_FIXED + 4 * block_count;
    writer->block_count += block_count;
}

void
journal_writer_add_data(struct journal_writer *writer, uint64_t array_offset_bytes,
                        uint32_t checksum)
{
    add_payload(writer, JOURNAL_DATA, array_offset_bytes, 1, &checksum);
}

void
journal_writer_add_parity(struct journal_writer *writer, uint64_t member_offset_bytes,
                          uint32_t parity_count, const uint32_t checksums[])
{
    assert(parity_count >= 1);
    assert(parity_count <= JOURNAL_PARITY_COUNT_MAX);
    add_payload(writer, JOURNAL_PARITY, member_offset_bytes, parity_count, checksums);
}

void
journal_writer_finish(struct journal_writer *writer, uint32_t checksum_seed)
{
    store_le32(writer->meta + AT_META_SIZE, writer->at_bytes);
    store_le32(writer->meta + AT_CHECKSUM, meta_checksum(checksum_seed, writer->meta));
}

void
journal_entry_encode_empty(uint8_t meta[BLOCK_BYTES], uint64_t seq, uint64_t position_bytes,
                           uint32_t checksum_seed)
{
    struct journal_writer writer;

    journal_writer_init(&writer, meta, seq, position_bytes);
    journal_writer_finish(&writer, checksum_seed);
}
