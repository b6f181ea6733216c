/*
 * test_format_superblock.c: what is a superblock, what it says, and what is refused.
 *
 * The base of most tests is the real superblock of docs' vectors: a 3-member RAID-5, chunk 64 KiB,
 * on a device of 16384 sectors. A test damages one field, mends the checksum, and looks at the
 * verdict and its words.
 */
#include "format/superblock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define REAL_MINOR        2u
#define REAL_DEVICE_BYTES (16384ull * SECTOR_BYTES)
#define REAL_CHECKSUM     0xcc9b4dc7u
#define COVERED_BYTES     512u

static const struct {
    uint16_t at;
    uint8_t length;
    uint8_t bytes[16];
} real_parts[] = {
    {0x00, 8, {0xfc, 0x4e, 0x2b, 0xa9, 1}},
    {0x10,
     16,
     {0x94, 0xd0, 0x82, 0xc2, 0x26, 0xd8, 0xa8, 0x96, 0xa0, 0xb8, 0x2a, 0x6a, 0x88, 0x8c, 0x9a,
      0xa8}},
    {0x20, 10, {'h', 'o', 's', 't', 'y', ':', 'b', 'a', 's', 'e'}},
    {0x40, 16, {0xe5, 0x41, 0x03, 0x6b, 0, 0, 0, 0, 5, 0, 0, 0, 2}},
    {0x50, 16, {0x00, 0x08, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 3}},
    {0x80, 16, {0x00, 0x08, 0, 0, 0, 0, 0, 0, 0x00, 0x38}},
    {0x90, 8, {8}},
    {0xa8,
     16,
     {0x33, 0x12, 0xb2, 0x2d, 0x0e, 0x65, 0x6b, 0xcf, 0x5d, 0x2f, 0x0e, 0x57, 0xfd, 0x8d, 0x6e,
      0xb7}},
    {0xb8, 8, {0, 0, 8, 0, 0x10}},
    {0xc0, 16, {0xe7, 0x41, 0x03, 0x6b, 0, 0, 0, 0, 2}},
    {0xd0, 16, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc7, 0x4d, 0x9b, 0xcc, 0x80}},
    {0x100, 6, {0, 0, 1, 0, 2, 0}},
};

static void
real_block(uint8_t block[SUPERBLOCK_BYTES])
{
    memset(block, 0, SUPERBLOCK_BYTES);
    memset(block + 0x106, 0xff, 0x200 - 0x106);
    for (size_t i = 0; i < ARRAY_LEN(real_parts); i++)
        memcpy(block + real_parts[i].at, real_parts[i].bytes, real_parts[i].length);
}

static void
mend_checksum(uint8_t block[SUPERBLOCK_BYTES])
{
    store_le32(block + 0xd8, superblock_checksum(block, load_le32(block + 0xdc)));
}

/* Decode what a change of the real block left; the text must name the field. */
static void
assert_refused(const uint8_t block[SUPERBLOCK_BYTES], int code, const char *text)
{
    struct superblock sb;
    struct format_error error = {""};

    assert_int_equal(superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, &error), -code);
    if (!strstr(error.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
    /* The same without anybody to listen. */
    assert_int_equal(superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, NULL), -code);
}

static void
assert_accepted(const uint8_t block[SUPERBLOCK_BYTES], struct superblock *sb)
{
    struct format_error error = {""};

    if (superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, sb, &error) != 0)
        fail_msg("refused: %s", error.text);
}

static void
real_superblock_decodes_to_its_fields(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;
    char text[SUPERBLOCK_UUID_TEXT_BYTES];

    real_block(block);
    assert_accepted(block, &sb);
    assert_true(superblock_is_readable(&sb));
    assert_int_equal(sb.minor, 2);
    assert_int_equal(sb.feature_map, 0);
    superblock_uuid_text(sb.set_uuid, text);
    assert_string_equal(text, "94d082c2:26d8a896:a0b82a6a:888c9aa8");
    superblock_uuid_text(sb.device_uuid, text);
    assert_string_equal(text, "3312b22d:0e656bcf:5d2f0e57:fd8d6eb7");
    assert_string_equal(sb.set_name, "hosty:base");
    assert_int_equal(superblock_time_seconds(sb.ctime), 0x6b0341e5);
    assert_int_equal(superblock_time_microseconds(sb.ctime), 0);
    assert_int_equal(superblock_time_seconds(sb.utime), 0x6b0341e7);
    assert_int_equal(sb.level, 5);
    assert_int_equal(sb.layout, 2);
    assert_int_equal(sb.size_sectors, 2048);
    assert_int_equal(sb.chunk_sectors, 128);
    assert_int_equal(sb.raid_disks, 3);
    assert_int_equal(sb.data_offset_sectors, 2048);
    assert_int_equal(sb.data_size_sectors, 14336);
    assert_int_equal(sb.super_offset_sectors, 8);
    assert_int_equal(sb.recovery_offset_sectors, 0);
    assert_int_equal(sb.dev_number, 0);
    assert_int_equal(sb.bad_block_log_sectors, 8);
    assert_int_equal(sb.bad_block_log_offset_sectors, 16);
    assert_int_equal(superblock_bad_blocks_offset_bytes(&sb), 24 * SECTOR_BYTES);
    assert_int_equal(sb.events, 2);
    assert_true(superblock_is_clean(&sb));
    assert_int_equal(sb.max_dev, 128);
    assert_int_equal(superblock_role(&sb), 0);
    assert_int_equal(superblock_role_of(&sb, 1), 1);
    assert_int_equal(superblock_role_of(&sb, 2), 2);
    assert_int_equal(superblock_role_of(&sb, 3), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_chunk_bytes(&sb), 64 * KIB);
    assert_int_equal(superblock_component_bytes(&sb), 1 * MIB);
    assert_int_equal(superblock_array_bytes(&sb), 2 * MIB);
    assert_int_equal(superblock_data_offset_bytes(&sb), 1 * MIB);
    assert_int_equal(superblock_data_size_bytes(&sb), 7 * MIB);
    assert_int_equal(superblock_offset_bytes(&sb), 4096);
    assert_int_equal(superblock_resync_offset_bytes(&sb), 1 * MIB);
    assert_int_equal(superblock_recovery_offset_bytes(&sb), 1 * MIB);
}

static void
journal_member_keeps_its_tail(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0x08, 0x200);
    store_le64(block + 0x98, 48);
    store_le32(block + 0xa0, 3);
    store_le16(block + 0x104, 0xffff);
    store_le16(block + 0x106, 0xfffd);
    store_le16(block + 0x108, 2);
    mend_checksum(block);
    assert_accepted(block, &sb);
    assert_int_equal(sb.feature_map, SUPERBLOCK_FEATURE_JOURNAL);
    assert_int_equal(sb.journal_tail_sectors, 48);
    assert_int_equal(superblock_role(&sb), SUPERBLOCK_ROLE_JOURNAL);
    assert_false(superblock_role_is_slot(superblock_role(&sb)));
    assert_int_equal(superblock_role_of(&sb, 4), 2);
    assert_true(superblock_role_is_slot(superblock_role_of(&sb, 4)));
    assert_int_equal(superblock_journal_ring_bytes(&sb), 14336 * SECTOR_BYTES);
}

static void
journal_smaller_than_the_component_is_fine(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0x08, 0x200);
    store_le64(block + 0x50, 1 << 20);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "size 1048576 sectors: more than this member's data_size 14336");
    store_le16(block + 0x100, 0xfffd);
    mend_checksum(block);
    assert_accepted(block, &sb);
    store_le16(block + 0x100, 0xffff);
    mend_checksum(block);
    assert_accepted(block, &sb);
}

static void
checksum_is_the_one_linux_computes(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];

    real_block(block);
    assert_int_equal(superblock_checksum(block, 128), REAL_CHECKSUM);
    /* The stored one does not count. */
    store_le32(block + 0xd8, 0x12345678);
    assert_int_equal(superblock_checksum(block, 128), REAL_CHECKSUM);
}

static void
checksum_of_an_odd_table_ends_with_half_a_word(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES] = {0};

    store_le32(block + 0x104, 0xffff0002);
    assert_int_equal(superblock_checksum(block, 4), 0xffff0002);
    assert_int_equal(superblock_checksum(block, 3), 2);
    assert_int_equal(superblock_checksum(block, 2), 0);
}

/* One fold only: a sum of 2^32 - 1 with a carry of 1 becomes 0, and the carry of that is dropped.
 */
static void
checksum_folds_once(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES] = {0};

    store_le32(block + 0, 0xffffffff);
    store_le32(block + 4, 0xffffffff);
    store_le32(block + 8, 1);
    assert_int_equal(superblock_checksum(block, 0), 0);
}

static void
encode_returns_what_was_decoded(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES], again[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    assert_accepted(block, &sb);
    assert_int_equal(superblock_encode(&sb, again), COVERED_BYTES);
    assert_memory_equal(block, again, SUPERBLOCK_BYTES);
}

/* Every field away from zero and from its neighbours, so that two swapped fields could not pass. */
static void
encode_and_decode_agree_on_every_field(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb, again;

    superblock_init(&sb, 2, 5);
    sb.feature_map = SUPERBLOCK_FEATURE_RECOVERY_OFFSET | SUPERBLOCK_FEATURE_BAD_BLOCKS;
    for (size_t i = 0; i < SUPERBLOCK_UUID_BYTES; i++) {
        sb.set_uuid[i] = (uint8_t)(0x10 + i);
        sb.device_uuid[i] = (uint8_t)(0xa0 + i);
    }
    superblock_set_name(&sb, "host", "name");
    sb.ctime = superblock_time(1700000000, 999999);
    sb.level = 6;
    sb.layout = 18;
    sb.size_sectors = 0x123;
    sb.chunk_sectors = 0x80;
    sb.raid_disks = 5;
    sb.bitmap_offset_sectors = -24;
    sb.new_level = 1;
    sb.reshape_position_sectors = 0x0102030405060708;
    sb.delta_disks = -2;
    sb.new_layout = 3;
    sb.new_chunk_sectors = 4;
    sb.new_offset_sectors = -5;
    sb.data_offset_sectors = 2048;
    sb.data_size_sectors = 10240;
    sb.super_offset_sectors = 8;
    sb.recovery_offset_sectors = 0x40;
    sb.dev_number = 2;
    sb.corrected_reads = 77;
    sb.devflags = 3;
    sb.bad_block_log_shift = 1;
    sb.bad_block_log_sectors = 7;
    sb.bad_block_log_offset_sectors = 17;
    sb.utime = superblock_time(1800000000, 1);
    sb.events = 0x1122334455667788;
    sb.resync_offset_sectors = 0x20;
    sb.dev_roles[0] = 4;
    sb.dev_roles[2] = 0;
    sb.dev_roles[4] = SUPERBLOCK_ROLE_FAULTY;

    assert_int_equal(superblock_encode(&sb, block), 512);
    assert_accepted(block, &again);
    memcpy(sb.raw, block, sizeof sb.raw);
    assert_memory_equal(&sb, &again, sizeof sb);
    assert_int_equal(superblock_component_bytes(&again), 0x100 * SECTOR_BYTES);
    assert_int_equal(superblock_array_bytes(&again), 3 * 0x100 * SECTOR_BYTES);
    assert_int_equal(superblock_resync_offset_bytes(&again), 0x20 * SECTOR_BYTES);
    assert_int_equal(superblock_recovery_offset_bytes(&again), 0x40 * SECTOR_BYTES);
    assert_false(superblock_is_clean(&again));
}

static void
rewrite_keeps_what_it_does_not_know(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES], again[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    for (size_t at = COVERED_BYTES; at < SUPERBLOCK_BYTES; at++)
        block[at] = (uint8_t)at;
    block[0xb8] = 3;               /* devflags */
    store_le32(block + 0xe0, 512); /* logical_block_size of newer kernels */
    mend_checksum(block);
    assert_accepted(block, &sb);
    assert_int_equal(sb.logical_block_bytes, 512);
    sb.events++;
    assert_int_equal(superblock_encode(&sb, again), COVERED_BYTES);
    assert_memory_not_equal(block, again, COVERED_BYTES);
    store_le64(again + 0xc8, 2);
    mend_checksum(again);
    assert_memory_equal(block, again, SUPERBLOCK_BYTES);
}

static void
every_changed_byte_under_the_checksum_is_refused(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    for (size_t at = 0; at < COVERED_BYTES; at++) {
        const uint8_t right = block[at];

        for (unsigned wrong = 0; wrong < 256; wrong++) {
            if (wrong == right)
                continue;
            block[at] = (uint8_t)wrong;
            if (superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, NULL) == 0)
                fail_msg("byte %zu: %02x instead of %02x was accepted", at, wrong, right);
        }
        block[at] = right;
    }
}

static void
bytes_behind_the_table_change_nothing(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb, again;

    real_block(block);
    assert_accepted(block, &sb);
    for (size_t at = COVERED_BYTES; at < SUPERBLOCK_BYTES; at++) {
        block[at] = 0x5a;
        assert_accepted(block, &again);
        assert_memory_equal(&sb, &again, offsetof(struct superblock, raw));
        block[at] = 0;
    }
}

static void
superblock_stands_where_its_minor_says(void **state)
{
    uint64_t offset;

    assert_int_equal(superblock_offset(0, 49152 * 512, &offset), 0);
    assert_int_equal(offset, 49136 * 512);
    assert_int_equal(superblock_offset(1, 49152 * 512, &offset), 0);
    assert_int_equal(offset, 0);
    assert_int_equal(superblock_offset(2, 49152 * 512, &offset), 0);
    assert_int_equal(offset, 4096);
    assert_int_equal(superblock_offset(3, 49152 * 512, &offset), -EINVAL);

    /* 8 to 12 KiB before the end, 4 KiB aligned, whatever the end is. */
    for (uint64_t bytes = 24 * 512; bytes < 100 * 512; bytes += 100) {
        assert_int_equal(superblock_offset(0, bytes, &offset), 0);
        assert_int_equal(offset % 4096, 0);
        assert_true(round_down(bytes, 512) - offset >= 8 * KIB);
        assert_true(round_down(bytes, 512) - offset < 12 * KIB);
    }
}

static void
too_small_a_device_has_no_superblock(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;
    uint64_t offset;

    real_block(block);
    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS; minor++) {
        assert_int_equal(superblock_offset(minor, 24 * 512 - 1, &offset), -ENOSPC);
        assert_int_equal(superblock_offset(minor, 24 * 512, &offset), 0);
        assert_int_equal(superblock_decode(block, minor, 24 * 512 - 1, &sb, NULL), -ENOENT);
    }
}

static void
nothing_there_is_told_from_damage(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    memset(block, 0, sizeof block);
    assert_refused(block, ENOENT, "no superblock");
    real_block(block);
    block[0x48] = 6;
    assert_refused(block, EBADMSG, "sb_csum 0xcc9b4dc7");
    assert_int_equal(superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, NULL), -EBADMSG);
    assert_false(superblock_is_readable(&sb));
}

/* A whole disk and its last partition end at the same sector: 1.0 is found through both. */
static void
superblock_of_another_device_is_not_ours(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le64(block + 0x90, 16368);
    store_le64(block + 0x80, 0);
    mend_checksum(block);
    assert_int_equal(superblock_decode(block, 0, REAL_DEVICE_BYTES, &sb, NULL), 0);
    assert_int_equal(superblock_decode(block, 0, REAL_DEVICE_BYTES + 4096, &sb, NULL), -ENOENT);
    assert_false(superblock_is_readable(&sb));
    assert_refused(block, ENOENT, "super_offset 16368");
}

static void
other_major_versions_are_named(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];

    real_block(block);
    store_le32(block + 0x04, 2);
    mend_checksum(block);
    assert_refused(block, ENOTSUP, "major_version 2");
}

static void
format_0_90_is_recognised(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES] = {0};
    struct format_error error;
    uint64_t offset;

    assert_int_equal(superblock_offset_090(1 * MIB + 1000, &offset), 0);
    assert_int_equal(offset, 1 * MIB - 64 * KIB);
    assert_int_equal(superblock_offset_090(64 * KIB - 1, &offset), -ENOSPC);

    assert_int_equal(superblock_probe_090(block, &error), 0);
    store_le32(block, 0xa92b4efc);
    store_le32(block + 8, 90);
    assert_int_equal(superblock_probe_090(block, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "0.90"));
    /* Made on a machine of the other byte order. */
    store_le32(block, 0xfc4e2ba9);
    assert_int_equal(superblock_probe_090(block, &error), -ENOTSUP);
    /* A version 1 superblock is not 0.90. */
    real_block(block);
    assert_int_equal(superblock_probe_090(block, &error), 0);
}

/* ---- Every field out of range ---- */

struct refusal {
    uint16_t at;
    uint8_t bytes;
    uint64_t value;
    int code;
    const char *text;
};

static const struct refusal refusals[] = {
    {0x0c, 4, 1, ENOTSUP, "pad0 0x1"},
    {0xe0, 4, 1, ENOTSUP, "logical_block_size 1"},
    {0xe0, 4, 8192, ENOTSUP, "logical_block_size 8192"},
    {0xe4, 4, 1, ENOTSUP, "pad3: byte 228"},
    {0xff, 1, 9, ENOTSUP, "pad3: byte 255 is 0x09"},

    {0x48, 4, 0, ENOTSUP, "level 0 (RAID-0)"},
    {0x48, 4, 1, ENOTSUP, "level 1 (RAID-1)"},
    {0x48, 4, 10, ENOTSUP, "level 10 (RAID-10)"},
    {0x48, 4, 0xffffffff, ENOTSUP, "level -1 (linear)"},
    {0x48, 4, 0xfffffffc, ENOTSUP, "level -4 (multipath)"},
    {0x48, 4, 7, ENOTSUP, "level 7"},
    {0x48, 4, 6, EBADMSG, "raid_disks 3: RAID-6 has at least 4"},

    {0x08, 4, 0x2000, ENOTSUP, "unknown feature bits 0x2000"},
    {0x08, 4, 0x80000000, ENOTSUP, "unknown feature bits 0x80000000"},
    {0x08, 4, 0x4, ENOTSUP, "reshape"},
    {0x08, 4, 0x20, ENOTSUP, "reshaped (backwards)"},
    {0x08, 4, 0x40, ENOTSUP, "new data offset"},
    {0x08, 4, 0x100, ENOTSUP, "clustered"},
    {0x08, 4, 0x400, ENOTSUP, "PPL"},
    {0x08, 4, 0x800, ENOTSUP, "multiple PPLs"},
    {0x08, 4, 0x1000, ENOTSUP, "RAID-0 layout"},
    {0x08, 4, 0x201, EBADMSG, "exclude each other"},

    {0x4c, 4, 6, ENOTSUP, "layout 6 of RAID-5"},
    {0x5c, 4, 0, EBADMSG, "raid_disks 0"},
    {0x5c, 4, 1, EBADMSG, "raid_disks 1: RAID-5 has at least 2"},
    {0x5c, 4, 257, ENOTSUP, "raid_disks 257"},
    {0x5c, 4, 0xffffffff, ENOTSUP, "raid_disks 4294967295"},

    {0x58, 4, 0, EBADMSG, "chunksize 0"},
    {0x58, 4, 4, EBADMSG, "chunksize 4 "},
    {0x58, 4, 129, EBADMSG, "chunksize 129"},
    {0x58, 4, 4096, EBADMSG, "less than one chunk"},
    {0x50, 8, 0, EBADMSG, "size 0 sectors"},
    {0x50, 8, 127, EBADMSG, "size 127 sectors"},
    {0x50, 8, 14336 + 128, EBADMSG, "more than this member's data_size"},
    {0x50, 8, UINT64_MAX, EBADMSG, "larger than 2^63 bytes"},

    {0x88, 8, 9, EBADMSG, "data_size 9"},
    {0x88, 8, 14337, EBADMSG, "data_offset 2048 + data_size 14337"},
    {0x88, 8, UINT64_MAX, EBADMSG, "data_size 18446744073709551615"},
    {0x80, 8, 8, EBADMSG, "data_offset 8: inside the superblock"},
    {0x80, 8, 2049, EBADMSG, "data_offset 2049"},
    {0x80, 8, UINT64_MAX, EBADMSG, "data_offset 18446744073709551615"},
    {0x80, 8, UINT64_MAX - 14335, EBADMSG, "past sector 16384"},

    {0xdc, 4, 1921, EBADMSG, "max_dev 1921"},
    {0xdc, 4, 0xffffffff, EBADMSG, "max_dev 4294967295"},
};

static void
store(uint8_t *at, uint8_t bytes, uint64_t value)
{
    for (uint8_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void
every_field_out_of_range_is_refused_by_name(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(refusals); i++) {
        const struct refusal *r = &refusals[i];
        uint8_t block[SUPERBLOCK_BYTES];

        real_block(block);
        store(block + r->at, r->bytes, r->value);
        if (load_le32(block + 0xdc) <= SUPERBLOCK_MAX_DEV)
            mend_checksum(block);
        assert_refused(block, r->code, r->text);
    }
}

static void
fields_at_their_limits_are_accepted(void **state)
{
    static const struct refusal limits[] = {
        {0x48, 4, 4, 0, "level 4 has any layout"},
        {0x4c, 4, 5, 0, "layout"},
        {0x5c, 4, 2, 0, "raid_disks"},
        {0x5c, 4, 256, 0, "raid_disks"},
        {0x58, 4, 8, 0, "chunksize"},
        {0x58, 4, 2048, 0, "chunksize"},
        {0x50, 8, 14336, 0, "size"},
        {0x50, 8, 14336 + 127, 0, "size, rounded down to the chunk"},
        {0x50, 8, 128, 0, "size"},
        {0x88, 8, 14336, 0, "data_size"},
        {0xdc, 4, 3, 0, "max_dev"},
        {0xdc, 4, 1920, 0, "max_dev: up to the end of the block"},
        {0xdc, 4, 0, 0, "max_dev: then everything is a spare"},
        {0xe0, 4, 4096, 0, "logical_block_size"},
        {0xa0, 4, 0xffffffff, 0, "dev_number behind the table: a spare"},
        {0xd0, 8, 1ull << 63, 0, "resync_offset"},
        {0x98, 8, UINT64_MAX, 0, "a tail out of range is for the journal to refuse"},
    };

    for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
        uint8_t block[SUPERBLOCK_BYTES];
        struct superblock sb;
        struct format_error error = {""};

        real_block(block);
        store(block + limits[i].at, limits[i].bytes, limits[i].value);
        mend_checksum(block);
        if (superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, &error) != 0)
            fail_msg("%s %llu: %s", limits[i].text, (unsigned long long)limits[i].value,
                     error.text);
    }
}

static void
level_4_ignores_its_layout(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0x48, 4);
    store_le32(block + 0x4c, 1234);
    mend_checksum(block);
    assert_accepted(block, &sb);
}

static void
known_layouts_are_those_of_md(void **state)
{
    for (uint32_t layout = 0; layout < 300; layout++) {
        const bool raid6 =
            layout <= 5 || (layout >= 8 && layout <= 10) || (layout >= 16 && layout <= 20);

        assert_true(superblock_layout_is_known(4, layout));
        assert_int_equal(superblock_layout_is_known(5, layout), layout <= 5);
        assert_int_equal(superblock_layout_is_known(6, layout), raid6);
        assert_false(superblock_layout_is_known(1, layout));
    }
}

/* Q's exponent is the member's number there; with 256 members two of them would have the same. */
static void
ddf_layouts_stop_at_255_members(void **state)
{
    for (uint32_t layout = 8; layout <= 10; layout++) {
        uint8_t block[SUPERBLOCK_BYTES];
        struct superblock sb;

        real_block(block);
        store_le32(block + 0x48, 6);
        store_le32(block + 0x4c, layout);
        store_le32(block + 0x5c, 255);
        mend_checksum(block);
        assert_accepted(block, &sb);
        store_le32(block + 0x5c, 256);
        mend_checksum(block);
        assert_refused(block, ENOTSUP, "raid_disks 256: at most 255");
    }
}

static void
refused_but_intact_superblock_can_be_shown(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0x48, 1);
    mend_checksum(block);
    assert_int_equal(superblock_decode(block, REAL_MINOR, REAL_DEVICE_BYTES, &sb, NULL), -ENOTSUP);
    assert_true(superblock_is_readable(&sb));
    assert_int_equal(sb.level, 1);
    assert_string_equal(sb.set_name, "hosty:base");
}

static void
metadata_1_0_ends_its_data_before_the_superblock(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le64(block + 0x80, 0);
    store_le64(block + 0x88, 16368);
    store_le64(block + 0x90, 16368);
    mend_checksum(block);
    assert_int_equal(superblock_decode(block, 0, REAL_DEVICE_BYTES, &sb, NULL), 0);
    store_le64(block + 0x80, 1);
    mend_checksum(block);
    assert_int_equal(superblock_decode(block, 0, REAL_DEVICE_BYTES, &sb, NULL), -EBADMSG);
}

static void
bad_block_log_must_be_on_the_device_if_it_has_entries(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0xbc, 0x7fffffff);
    mend_checksum(block);
    assert_accepted(block, &sb); /* no entries: nobody looks */

    store_le32(block + 0x08, 0x8);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bblog_offset 2147483647");
    store_le32(block + 0xbc, 0xfffffff7);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bblog_offset -9");
    store_le32(block + 0xbc, 16376 - 8);
    mend_checksum(block);
    assert_accepted(block, &sb);
    store_le32(block + 0xbc, 16377 - 8);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bblog_offset");
    store_le32(block + 0xbc, 16);
    store_le16(block + 0xba, 0);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bblog_size 0");
    store_le16(block + 0xba, 9);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bblog_size 9");
}

static void
bitmap_must_be_on_the_device(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    store_le32(block + 0x08, 0x1);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bitmap_offset 0");
    store_le32(block + 0x60, 0xffffff00);
    mend_checksum(block);
    assert_refused(block, EBADMSG, "bitmap_offset -256");
    store_le32(block + 0x60, 8);
    mend_checksum(block);
    assert_accepted(block, &sb);
    assert_int_equal(superblock_bitmap_offset_bytes(&sb), 8192);
}

/* ---- Roles, names, times ---- */

static void
roles_that_mean_nothing_are_spares(void **state)
{
    struct superblock sb;

    superblock_init(&sb, 2, 4);
    sb.raid_disks = 3;
    sb.dev_roles[0] = 2;
    sb.dev_roles[1] = 3;
    sb.dev_roles[2] = 0xff00;
    sb.dev_roles[3] = 0xfffc;
    sb.dev_roles[4] = SUPERBLOCK_ROLE_FAULTY;
    sb.dev_roles[5] = SUPERBLOCK_ROLE_JOURNAL;
    assert_int_equal(superblock_role_of(&sb, 0), 2);
    assert_int_equal(superblock_role_of(&sb, 1), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role_of(&sb, 2), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role_of(&sb, 3), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role_of(&sb, 4), SUPERBLOCK_ROLE_FAULTY);
    assert_int_equal(superblock_role_of(&sb, 5), SUPERBLOCK_ROLE_JOURNAL);
    assert_int_equal(superblock_role_of(&sb, 6), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role_of(&sb, sb.max_dev), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role_of(&sb, UINT32_MAX), SUPERBLOCK_ROLE_SPARE);
}

static void
table_of_roles_fills_whole_sectors(void **state)
{
    assert_int_equal(superblock_max_dev_for(0), 128);
    assert_int_equal(superblock_max_dev_for(128), 128);
    assert_int_equal(superblock_max_dev_for(129), 384);
    assert_int_equal(superblock_max_dev_for(384), 384);
    assert_int_equal(superblock_max_dev_for(1920), 1920);
    assert_int_equal(superblock_written_bytes(128, 512), 512);
    assert_int_equal(superblock_written_bytes(129, 512), 1024);
    assert_int_equal(superblock_written_bytes(128, 4096), 4096);
    assert_int_equal(superblock_written_bytes(1920, 512), 4096);
}

static void
name_gets_the_host_in_front_if_it_fits(void **state)
{
    struct superblock sb;

    superblock_set_name(&sb, "host", "vol");
    assert_string_equal(sb.set_name, "host:vol");
    superblock_set_name(&sb, "host", "other:vol");
    assert_string_equal(sb.set_name, "other:vol");
    superblock_set_name(&sb, NULL, "vol");
    assert_string_equal(sb.set_name, "vol");
    /* 31 bytes fit, 32 do not. */
    superblock_set_name(&sb, "0123456789abcdef", "0123456789abcd");
    assert_string_equal(sb.set_name, "0123456789abcdef:0123456789abcd");
    superblock_set_name(&sb, "0123456789abcdef", "0123456789abcde");
    assert_string_equal(sb.set_name, "0123456789abcde");
    superblock_set_name(&sb, "h", "0123456789abcdef0123456789abcdefXYZ");
    assert_string_equal(sb.set_name, "0123456789abcdef0123456789abcde");
}

static void
name_is_printed_without_control_characters(void **state)
{
    struct superblock sb;
    char text[SUPERBLOCK_NAME_TEXT_BYTES];

    memset(sb.set_name, 0xff, SUPERBLOCK_NAME_BYTES);
    sb.set_name[SUPERBLOCK_NAME_BYTES] = '\0';
    superblock_name_text(&sb, text);
    assert_int_equal(strlen(text), 4 * SUPERBLOCK_NAME_BYTES);
    strcpy(sb.set_name, "a\n\\\x1b[b");
    superblock_name_text(&sb, text);
    assert_string_equal(text, "a\\x0a\\x5c\\x1b[b");
}

static void
full_length_name_survives(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES], again[SUPERBLOCK_BYTES];
    struct superblock sb;

    real_block(block);
    memset(block + 0x20, 'n', 32);
    mend_checksum(block);
    assert_accepted(block, &sb);
    assert_int_equal(strlen(sb.set_name), 32);
    assert_int_equal(superblock_encode(&sb, again), COVERED_BYTES);
    assert_memory_equal(block, again, SUPERBLOCK_BYTES);
}

static void
times_carry_microseconds_above_40_bits(void **state)
{
    const uint64_t time = superblock_time(0x123456789a, 999999);

    assert_true(time == (0x123456789aull | 999999ull << 40));
    assert_true(superblock_time_seconds(time) == 0x123456789a);
    assert_int_equal(superblock_time_microseconds(time), 999999);
}

static void
later_created_superblock_of_a_device_wins(void **state)
{
    struct superblock old, new;

    superblock_init(&old, 0, 2);
    superblock_init(&new, 1, 2);
    old.ctime = superblock_time(1000, 5);
    new.ctime = superblock_time(1001, 4);
    assert_ptr_equal(superblock_choose(&old, &new), &new);
    assert_ptr_equal(superblock_choose(&new, &old), &new);
    old.ctime = superblock_time(1001, 5);
    assert_ptr_equal(superblock_choose(&old, &new), &old);
    new.ctime = old.ctime;
    assert_ptr_equal(superblock_choose(&old, &new), &old); /* no difference: the first */
    assert_ptr_equal(superblock_choose(&new, &old), &new);
    assert_ptr_equal(superblock_choose(NULL, &new), &new);
    assert_ptr_equal(superblock_choose(&new, NULL), &new);
    assert_null(superblock_choose(NULL, NULL));
}

static void
offsets_past_the_component_mean_all_of_it(void **state)
{
    struct superblock sb;

    superblock_init(&sb, 2, 3);
    sb.raid_disks = 3;
    sb.level = 5;
    sb.chunk_sectors = 128;
    sb.size_sectors = 1000;
    sb.feature_map = SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    sb.resync_offset_sectors = UINT64_MAX - 1;
    sb.recovery_offset_sectors = UINT64_MAX - 1;
    assert_int_equal(superblock_resync_offset_bytes(&sb), 896 * SECTOR_BYTES);
    assert_int_equal(superblock_recovery_offset_bytes(&sb), 896 * SECTOR_BYTES);
    assert_false(superblock_is_clean(&sb));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_superblock_decodes_to_its_fields),
        cmocka_unit_test(journal_member_keeps_its_tail),
        cmocka_unit_test(journal_smaller_than_the_component_is_fine),
        cmocka_unit_test(checksum_is_the_one_linux_computes),
        cmocka_unit_test(checksum_of_an_odd_table_ends_with_half_a_word),
        cmocka_unit_test(checksum_folds_once),
        cmocka_unit_test(encode_returns_what_was_decoded),
        cmocka_unit_test(encode_and_decode_agree_on_every_field),
        cmocka_unit_test(rewrite_keeps_what_it_does_not_know),
        cmocka_unit_test(every_changed_byte_under_the_checksum_is_refused),
        cmocka_unit_test(bytes_behind_the_table_change_nothing),
        cmocka_unit_test(superblock_stands_where_its_minor_says),
        cmocka_unit_test(too_small_a_device_has_no_superblock),
        cmocka_unit_test(nothing_there_is_told_from_damage),
        cmocka_unit_test(superblock_of_another_device_is_not_ours),
        cmocka_unit_test(other_major_versions_are_named),
        cmocka_unit_test(format_0_90_is_recognised),
        cmocka_unit_test(every_field_out_of_range_is_refused_by_name),
        cmocka_unit_test(fields_at_their_limits_are_accepted),
        cmocka_unit_test(level_4_ignores_its_layout),
        cmocka_unit_test(known_layouts_are_those_of_md),
        cmocka_unit_test(ddf_layouts_stop_at_255_members),
        cmocka_unit_test(refused_but_intact_superblock_can_be_shown),
        cmocka_unit_test(metadata_1_0_ends_its_data_before_the_superblock),
        cmocka_unit_test(bad_block_log_must_be_on_the_device_if_it_has_entries),
        cmocka_unit_test(bitmap_must_be_on_the_device),
        cmocka_unit_test(roles_that_mean_nothing_are_spares),
        cmocka_unit_test(table_of_roles_fills_whole_sectors),
        cmocka_unit_test(name_gets_the_host_in_front_if_it_fits),
        cmocka_unit_test(name_is_printed_without_control_characters),
        cmocka_unit_test(full_length_name_survives),
        cmocka_unit_test(times_carry_microseconds_above_40_bits),
        cmocka_unit_test(later_created_superblock_of_a_device_wins),
        cmocka_unit_test(offsets_past_the_component_mean_all_of_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
