/*
 * bitmap.c: the write-intent bitmap's header.
 *
 * A bitmap is only a licence to resync less. Whatever is odd about it withdraws the licence;
 * nothing here ever makes an array unusable.
 */
#include "format/bitmap.h"

#include <inttypes.h>

#define MAGIC           0x6d746962u
#define CHUNK_BYTES_MIN 512u

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_UUID = 8,
    AT_EVENTS = 24,
    AT_EVENTS_CLEARED = 32,
    AT_SYNC_SIZE = 40,
    AT_STATE = 48,
    AT_CHUNKSIZE = 52,
    AT_DAEMON_SLEEP = 56,
    AT_WRITE_BEHIND = 60,
    AT_SECTORS_RESERVED = 64,
};

uint64_t
bitmap_bits_for(uint64_t component_sectors, uint64_t chunk_bytes)
{
    const uint64_t chunk_sectors = chunk_bytes / SECTOR_BYTES;

    assert(chunk_sectors > 0);
    return component_sectors / chunk_sectors + (component_sectors % chunk_sectors != 0);
}

uint64_t
bitmap_bytes_for(uint64_t bits)
{
    return round_up(BITMAP_HEADER_BYTES + bits / 8 + (bits % 8 != 0), BLOCK_BYTES);
}

/* It ends before what follows it: the data (1.1, 1.2) or the superblock (1.0, where it stands in
 * front of that). */
static bool
bitmap_fits(const struct bitmap_header *header, const struct superblock *sb)
{
    const uint64_t sectors = bitmap_bytes_for(bitmap_bits(header)) / SECTOR_BYTES;
    const uint64_t start = superblock_bitmap_offset_bytes(sb) / SECTOR_BYTES;
    const uint64_t end =
        start < sb->super_offset_sectors ? sb->super_offset_sectors : sb->data_offset_sectors;

    return start <= end && sectors <= end - start;
}

int
bitmap_decode(const uint8_t block[BITMAP_HEADER_BYTES], const struct superblock *sb,
              struct bitmap_header *header, struct format_error *error)
{
    const uint32_t version = load_le32(block + AT_VERSION);
    const uint64_t component_sectors = superblock_component_bytes(sb) / SECTOR_BYTES;

    memset(header, 0, sizeof *header);
    if (load_le32(block + AT_MAGIC) != MAGIC)
        return format_refuse(error, ENOENT, "no bitmap at byte %" PRIu64,
                             superblock_bitmap_offset_bytes(sb));
    if (version != BITMAP_VERSION)
        return format_refuse(error, ENOTSUP,
                             "bitmap version %" PRIu32 ": only version %u is supported", version,
                             BITMAP_VERSION);

    memcpy(header->uuid, block + AT_UUID, sizeof header->uuid);
    header->events = load_le64(block + AT_EVENTS);
    header->events_cleared = load_le64(block + AT_EVENTS_CLEARED);
    header->sync_size_sectors = load_le64(block + AT_SYNC_SIZE);
    header->state = load_le32(block + AT_STATE);
    header->chunk_bytes = load_le32(block + AT_CHUNKSIZE);
    header->daemon_sleep_s = load_le32(block + AT_DAEMON_SLEEP);
    header->write_behind = load_le32(block + AT_WRITE_BEHIND);
    header->sectors_reserved = load_le32(block + AT_SECTORS_RESERVED);
    memcpy(header->raw, block, sizeof header->raw);

    if (!is_power_of_two(header->chunk_bytes) || header->chunk_bytes < CHUNK_BYTES_MIN)
        return format_refuse(error, EBADMSG,
                             "bitmap chunksize %" PRIu32 ": not a power of two of at least %u",
                             header->chunk_bytes, CHUNK_BYTES_MIN);
    if (header->sync_size_sectors < component_sectors ||
        header->sync_size_sectors > sb->size_sectors)
        return format_refuse(error, EBADMSG,
                             "bitmap sync_size %" PRIu64 " sectors: the component has %" PRIu64,
                             header->sync_size_sectors, component_sectors);
    if (!bitmap_fits(header, sb))
        return format_refuse(error, EBADMSG,
                             "bitmap of %" PRIu64 " bits: no room for it at byte %" PRIu64,
                             bitmap_bits(header), superblock_bitmap_offset_bytes(sb));
    return 0;
}

void
bitmap_encode(const struct bitmap_header *header, uint8_t block[BITMAP_HEADER_BYTES])
{
    memcpy(block, header->raw, BITMAP_HEADER_BYTES);
    store_le32(block + AT_MAGIC, MAGIC);
    store_le32(block + AT_VERSION, BITMAP_VERSION);
    memcpy(block + AT_UUID, header->uuid, sizeof header->uuid);
    store_le64(block + AT_EVENTS, header->events);
    store_le64(block + AT_EVENTS_CLEARED, header->events_cleared);
    store_le64(block + AT_SYNC_SIZE, header->sync_size_sectors);
    store_le32(block + AT_STATE, header->state);
    store_le32(block + AT_CHUNKSIZE, header->chunk_bytes);
    store_le32(block + AT_DAEMON_SLEEP, header->daemon_sleep_s);
    store_le32(block + AT_WRITE_BEHIND, header->write_behind);
    store_le32(block + AT_SECTORS_RESERVED, header->sectors_reserved);
}

bool
bitmap_is_stale(const struct bitmap_header *header, const struct superblock *sb)
{
    return memcmp(header->uuid, sb->set_uuid, sizeof header->uuid) != 0 ||
           (header->state & BITMAP_STATE_STALE) || header->events < sb->events;
}

bool
bitmap_covers_events(const struct bitmap_header *header, uint64_t member_events)
{
    return member_events >= header->events_cleared;
}
