/*
 * placement.c: where things go on a new member.
 *
 *   1.1, 1.2   superblock | bitmap, or room for one | bad block log | headroom | data
 *   1.0        data | bitmap, or room for one | bad block log | superblock | 4 to 8 KiB unused
 *
 * The headroom in front of the data is for a later reshape, which moves data by up to two chunks at
 * a time.
 */
#include "format/placement.h"

#include "format/bitmap.h"

#include <inttypes.h>

#define HEADROOM_MAX_SEC 262144u
#define HEADROOM_PART    1024u /* of the device, at most */
#define DATA_ALIGN_SEC   2048u
#define SUPERBLOCK_SEC   (SUPERBLOCK_BYTES / SECTOR_BYTES)
#define BITMAP_CHUNK_MIN (64 * MIB)

/* Sectors kept for a bitmap on a device, or over a component, of this many sectors. */
static uint64_t
bitmap_room_sectors(uint64_t sectors)
{
    if (sectors < 128)
        return 0;
    if (sectors - 128 >= 200 * GIB / SECTOR_BYTES)
        return 256;
    if (sectors - 8 > 8 * GIB / SECTOR_BYTES)
        return 128;
    return 8;
}

/* Sectors that a bitmap takes: bits of 64 MiB, larger where they would not fit into its room. */
static uint64_t
bitmap_sectors(uint64_t component_sectors)
{
    const uint64_t room = max_u64(bitmap_room_sectors(component_sectors), BLOCK_SECTORS);
    uint64_t chunk_bytes = BITMAP_CHUNK_MIN;
    uint64_t sectors;

    do {
        const uint64_t bits = bitmap_bits_for(component_sectors, chunk_bytes);

        sectors = bitmap_bytes_for(bits) / SECTOR_BYTES;
        chunk_bytes *= 2;
    } while (sectors > room);
    return sectors;
}

uint64_t
placement_data_offset(uint32_t minor, uint64_t chunk_bytes, uint64_t first_device_bytes)
{
    const uint64_t device_sectors = first_device_bytes / SECTOR_BYTES;
    const uint64_t chunk_sectors = chunk_bytes / SECTOR_BYTES;
    uint64_t headroom = HEADROOM_MAX_SEC;

    assert(minor < SUPERBLOCK_MINORS);
    if (minor == 0)
        return 0;
    while (headroom * HEADROOM_PART > device_sectors && headroom / 2 >= 2 * chunk_sectors)
        headroom /= 2;
    return round_up(24 + bitmap_room_sectors(device_sectors) + headroom, DATA_ALIGN_SEC) *
           SECTOR_BYTES;
}

uint64_t
placement_component_bytes(const struct placement *placement, uint64_t device_bytes)
{
    const uint64_t device_sectors = device_bytes / SECTOR_BYTES;
    uint64_t used, available;

    assert(is_power_of_two(placement->chunk_bytes));
    if (placement->minor == 0) {
        used = 24 + bitmap_room_sectors(device_sectors);
        available = round_down(device_sectors, 8);
    } else {
        used = placement->data_offset_bytes / SECTOR_BYTES;
        available = device_sectors;
    }
    if (available <= used)
        return 0;
    return round_down((available - used) * SECTOR_BYTES, placement->chunk_bytes);
}

/* Distances from the superblock, in sectors. The bitmap, or the room for one, then the bad block
 * log. */
static void
place_logs(struct superblock *sb, uint64_t bitmap_space)
{
    const bool bitmap = sb->feature_map & SUPERBLOCK_FEATURE_BITMAP;

    sb->bad_block_log_sectors = PLACEMENT_BAD_BLOCK_LOG_SECTORS;
    if (sb->minor == 0) {
        sb->bad_block_log_offset_sectors = -(int32_t)PLACEMENT_BAD_BLOCK_LOG_SECTORS;
        sb->bitmap_offset_sectors = bitmap ? -(int32_t)bitmap_space - 8 : 0;
    } else {
        sb->bad_block_log_offset_sectors = (int32_t)(SUPERBLOCK_SEC + bitmap_space);
        sb->bitmap_offset_sectors = bitmap ? (int32_t)SUPERBLOCK_SEC : 0;
    }
}

int
placement_member(const struct placement *placement, uint64_t device_bytes, struct superblock *sb,
                 struct format_error *error)
{
    const uint64_t device_sectors = device_bytes / SECTOR_BYTES;
    const uint64_t component_sectors = sb->size_sectors;
    const bool bitmap = sb->feature_map & SUPERBLOCK_FEATURE_BITMAP;
    const uint64_t bitmap_space =
        bitmap ? bitmap_sectors(component_sectors) : bitmap_room_sectors(component_sectors);
    uint64_t offset_bytes, logs_end, data_end;

    assert(sb->minor == placement->minor);
    assert(placement->data_offset_bytes % BLOCK_BYTES == 0);
    if (superblock_offset(placement->minor, device_bytes, &offset_bytes) < 0)
        return format_refuse(error, ENOSPC, "the device is too small: %" PRIu64 " bytes",
                             device_bytes);

    sb->super_offset_sectors = offset_bytes / SECTOR_BYTES;
    sb->data_offset_sectors = placement->data_offset_bytes / SECTOR_BYTES;
    place_logs(sb, bitmap_space);
    if (placement->minor == 0) {
        logs_end = 0;
        data_end = sb->super_offset_sectors - min_u64(sb->super_offset_sectors, 8 + bitmap_space);
    } else {
        logs_end = sb->super_offset_sectors + SUPERBLOCK_SEC + bitmap_space +
                   PLACEMENT_BAD_BLOCK_LOG_SECTORS;
        data_end = device_sectors;
    }
    if (sb->data_offset_sectors < logs_end)
        return format_refuse(error, ENOSPC,
                             "a data offset of %" PRIu64
                             " bytes leaves no room for what is in front of the data (%" PRIu64
                             " bytes)",
                             placement->data_offset_bytes, logs_end * SECTOR_BYTES);
    if (data_end <= sb->data_offset_sectors)
        return format_refuse(error, ENOSPC,
                             "the device is too small: %" PRIu64
                             " bytes, and data would begin at %" PRIu64,
                             device_bytes, placement->data_offset_bytes);
    sb->data_size_sectors = data_end - sb->data_offset_sectors;
    return 0;
}
