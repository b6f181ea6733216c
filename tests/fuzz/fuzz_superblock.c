/*
 * fuzz_superblock.c: any 4096 bytes as a superblock, and what follows from one that is accepted.
 *
 *   input    control (1 byte) | device sectors (6 bytes, little-endian) | the block, padded with 0
 *   control  bits 0-1: the minor version; bit 2: first put magic, version, place and checksum
 *            right, so that the checks behind them are reached
 *
 * Bytes 2048 to 2304 of the block also serve as a bitmap header, all of it as a bad block log.
 */
#include "fuzz.h"

#include "format/bad_blocks.h"
#include "format/bitmap.h"
#include "format/superblock.h"

#define HEADER_BYTES 7u
#define BITMAP_AT    2048u

static void
put_right(uint8_t block[SUPERBLOCK_BYTES], uint32_t minor, uint64_t device_bytes)
{
    uint64_t offset_bytes = 0;

    if (superblock_offset(minor, device_bytes, &offset_bytes) < 0)
        return;
    store_le32(block + 0, 0xa92b4efc);
    store_le32(block + 4, 1);
    store_le64(block + 144, offset_bytes / SECTOR_BYTES);
    if (load_le32(block + 220) > SUPERBLOCK_MAX_DEV)
        store_le32(block + 220, load_le32(block + 220) % (SUPERBLOCK_MAX_DEV + 1));
    store_le32(block + 216, superblock_checksum(block, load_le32(block + 220)));
}

/* S1: what others compute with. */
static void
check_accepted(const struct superblock *sb, uint64_t device_bytes)
{
    const uint64_t component = superblock_component_bytes(sb);
    const uint64_t data_end = superblock_data_offset_bytes(sb) + superblock_data_size_bytes(sb);
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES], name[SUPERBLOCK_NAME_TEXT_BYTES];

    promise(component > 0);
    promise(component % superblock_chunk_bytes(sb) == 0);
    promise(sb->raid_disks > superblock_parity_count(sb));
    promise(superblock_array_bytes(sb) <= INT64_MAX);
    promise(superblock_array_bytes(sb) / (sb->raid_disks - superblock_parity_count(sb)) ==
            component);
    promise(data_end <= device_bytes);
    promise(data_end > superblock_data_offset_bytes(sb));
    promise(superblock_resync_offset_bytes(sb) <= component);
    promise(superblock_recovery_offset_bytes(sb) <= component);
    promise(superblock_journal_ring_bytes(sb) <= superblock_data_size_bytes(sb));
    promise(superblock_layout_is_known(sb->level, sb->layout));
    if (superblock_role_is_slot(superblock_role(sb))) {
        promise(superblock_role(sb) < sb->raid_disks);
        promise(component <= superblock_data_size_bytes(sb));
    }
    if (sb->feature_map & SUPERBLOCK_FEATURE_BITMAP)
        promise(superblock_bitmap_offset_bytes(sb) < device_bytes);
    if (sb->feature_map & SUPERBLOCK_FEATURE_BAD_BLOCKS)
        promise(superblock_bad_blocks_offset_bytes(sb) < device_bytes);
    superblock_uuid_text(sb->set_uuid, uuid);
    superblock_name_text(sb, name);
    promise(strlen(uuid) == 35);
    promise(strlen(name) < sizeof name);
}

static void
check_bitmap(const uint8_t block[SUPERBLOCK_BYTES], const struct superblock *sb,
             uint64_t device_bytes)
{
    uint8_t copy[BITMAP_HEADER_BYTES], again[BITMAP_HEADER_BYTES];
    struct bitmap_header header;

    memcpy(copy, block + BITMAP_AT, sizeof copy);
    if (bitmap_decode(copy, sb, &header, NULL) < 0)
        return;
    promise(bitmap_bit_of(&header, superblock_component_bytes(sb) - 1) < bitmap_bits(&header));
    promise(superblock_bitmap_offset_bytes(sb) + bitmap_bytes_for(bitmap_bits(&header)) <=
            device_bytes);
    bitmap_encode(&header, again);
    promise(memcmp(copy, again, sizeof copy) == 0);
}

static void
check_bad_blocks(const uint8_t block[SUPERBLOCK_BYTES], const struct superblock *sb,
                 uint64_t device_bytes)
{
    struct bad_blocks bad;
    uint64_t end_before = 0;

    if (bad_blocks_decode(block, SUPERBLOCK_BYTES, sb->bad_block_log_shift, device_bytes, &bad,
                          NULL) < 0)
        return;
    promise(bad.count <= BAD_BLOCKS_MAX);
    for (uint32_t i = 0; i < bad.count; i++) {
        const struct bad_blocks_range *range = &bad.ranges[i];

        promise(i == 0 || range->start_bytes > end_before);
        promise(range->end_bytes > range->start_bytes);
        promise(range->end_bytes <= device_bytes);
        promise(bad_blocks_find(&bad, range->start_bytes, 1) == range);
        promise(bad_blocks_find(&bad, range->end_bytes - 1, 1) == range);
        promise(bad_blocks_find(&bad, end_before, range->start_bytes - end_before) == NULL);
        end_before = range->end_bytes;
    }
    promise(bad_blocks_find(&bad, end_before, UINT64_MAX) == NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t header[HEADER_BYTES] = {0}, block[SUPERBLOCK_BYTES] = {0}, again[SUPERBLOCK_BYTES];
    struct superblock sb, sb_again;
    struct format_error error = {""};
    uint64_t device_bytes;
    uint32_t minor;
    int r;

    memcpy(header, data, min_u64(size, HEADER_BYTES));
    if (size > HEADER_BYTES)
        memcpy(block, data + HEADER_BYTES, min_u64(size - HEADER_BYTES, sizeof block));
    minor = header[0] & 3;
    device_bytes = (load_le32(header + 1) | (uint64_t)load_le16(header + 5) << 32) * SECTOR_BYTES;
    if (header[0] & 4)
        put_right(block, minor, device_bytes);

    r = superblock_decode(block, minor, device_bytes, &sb, &error);
    promise(r == 0 || r == -ENOENT || r == -EBADMSG || r == -ENOTSUP);
    promise((r == 0) == (error.text[0] == '\0'));
    promise(superblock_decode(block, minor, device_bytes, &sb_again, NULL) == r);
    promise(memcmp(&sb, &sb_again, sizeof sb) == 0);
    promise(superblock_probe_090(block, &error) == 0 || load_le32(block + 4) == 0);
    if (r == 0)
        promise(superblock_is_readable(&sb));
    if (!superblock_is_readable(&sb))
        return 0;

    /* Nothing is lost in a rewrite, whether we can use it or not (S2). */
    promise(superblock_encode(&sb, again) % SECTOR_BYTES == 0);
    promise(memcmp(block, again, sizeof block) == 0);
    if (r == 0) {
        check_accepted(&sb, device_bytes);
        check_bad_blocks(block, &sb, device_bytes);
        if (sb.feature_map & SUPERBLOCK_FEATURE_BITMAP)
            check_bitmap(block, &sb, device_bytes);
        sb.events++;
        sb.resync_offset_sectors = 0;
        promise(superblock_encode(&sb, again) >= SECTOR_BYTES);
        promise(superblock_decode(again, minor, device_bytes, &sb_again, NULL) == 0);
        promise(memcmp(&sb, &sb_again, offsetof(struct superblock, raw)) == 0);
    }
    return 0;
}
