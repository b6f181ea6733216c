/*
 * test_format_bitmap.c: the write-intent bitmap's header, its bits, and when they say nothing.
 */
#include "format/bitmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* A member with a bitmap of 64 KiB bits over 100 chunks and a bit, right behind its superblock. */
static struct superblock
member(void)
{
    struct superblock sb;

    superblock_init(&sb, 2, 4);
    sb.feature_map = SUPERBLOCK_FEATURE_BITMAP;
    sb.level = 5;
    sb.raid_disks = 4;
    sb.chunk_sectors = 64;
    sb.size_sectors = 100 * 128 + 64;
    sb.super_offset_sectors = 8;
    sb.data_offset_sectors = 2048;
    sb.data_size_sectors = 20000;
    sb.bitmap_offset_sectors = 8;
    sb.events = 17;
    memset(sb.set_uuid, 0xab, sizeof sb.set_uuid);
    return sb;
}

static struct bitmap_header
header_of(const struct superblock *sb)
{
    struct bitmap_header header = {
        .events = 17,
        .events_cleared = 9,
        .sync_size_sectors = sb->size_sectors,
        .state = 1,
        .chunk_bytes = 65536,
        .daemon_sleep_s = 5,
        .write_behind = 6,
        .sectors_reserved = 7,
    };

    memcpy(header.uuid, sb->set_uuid, sizeof header.uuid);
    return header;
}

static void
header_round_trips_and_keeps_the_rest(void **state)
{
    const struct superblock sb = member();
    const struct bitmap_header header = header_of(&sb);
    struct bitmap_header decoded;
    uint8_t block[BITMAP_HEADER_BYTES], again[BITMAP_HEADER_BYTES];

    bitmap_encode(&header, block);
    assert_memory_equal(block, "bitm\4\0\0", 8);
    assert_memory_equal(block + 8, sb.set_uuid, 16);
    assert_int_equal(load_le64(block + 24), 17);
    assert_int_equal(load_le64(block + 32), 9);
    assert_int_equal(load_le64(block + 40), 12864);
    assert_int_equal(load_le32(block + 48), 1);
    assert_int_equal(load_le32(block + 52), 65536);
    assert_int_equal(load_le32(block + 56), 5);
    assert_int_equal(load_le32(block + 60), 6);
    assert_int_equal(load_le32(block + 64), 7);
    block[72] = 'c'; /* cluster_name */
    block[255] = 1;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), 0);
    assert_memory_equal(&decoded, &header, offsetof(struct bitmap_header, raw));
    bitmap_encode(&decoded, again);
    assert_memory_equal(again, block, sizeof block);
}

static void
bits_cover_whole_stripes_from_the_lowest_bit_up(void **state)
{
    const struct superblock sb = member();
    const struct bitmap_header header = header_of(&sb);
    uint8_t bits[16] = {0};

    assert_int_equal(bitmap_bits(&header), 101);
    assert_int_equal(bitmap_bytes_for(bitmap_bits(&header)), 4096);
    /* As seen: row 60 of 64 KiB chunks is 0x10 in byte 263. */
    assert_int_equal(bitmap_bit_of(&header, 60 * 64 * KIB), 60);
    bits[263 - 256] = 0x10;
    for (uint64_t i = 0; i < 101; i++)
        assert_int_equal(bitmap_test(bits, i), i == 60);
    assert_int_equal(bitmap_bit_of(&header, 64 * KIB - 1), 0);
    assert_int_equal(bitmap_bit_of(&header, 64 * KIB), 1);
}

static void
size_counts_the_header_and_rounds_up(void **state)
{
    assert_int_equal(bitmap_bytes_for(0), 4096);
    assert_int_equal(bitmap_bytes_for(3840 * 8), 4096);
    assert_int_equal(bitmap_bytes_for(3840 * 8 + 1), 8192);
    assert_int_equal(bitmap_bits_for(0, 512), 0);
    assert_int_equal(bitmap_bits_for(1, 1024), 1);
    assert_int_equal(bitmap_bits_for(2, 1024), 1);
    assert_int_equal(bitmap_bits_for(3, 1024), 2);
}

static void
bitmap_that_says_nothing_is_stale(void **state)
{
    struct superblock sb = member();
    struct bitmap_header header = header_of(&sb);

    assert_false(bitmap_is_stale(&header, &sb));
    header.events = 18; /* written first, the superblocks were not */
    assert_false(bitmap_is_stale(&header, &sb));
    header.events = 16;
    assert_true(bitmap_is_stale(&header, &sb));
    header.events = 17;
    header.state = 1;
    assert_false(bitmap_is_stale(&header, &sb));
    header.state = BITMAP_STATE_STALE;
    assert_true(bitmap_is_stale(&header, &sb));
    header.state = 0;
    sb.set_uuid[15] ^= 1;
    assert_true(bitmap_is_stale(&header, &sb));
}

static void
member_away_since_a_bit_was_cleared_is_not_covered(void **state)
{
    const struct superblock sb = member();
    const struct bitmap_header header = header_of(&sb);

    assert_false(bitmap_covers_events(&header, 8));
    assert_true(bitmap_covers_events(&header, 9));
    assert_true(bitmap_covers_events(&header, 10));
}

static void
odd_headers_are_refused_by_name(void **state)
{
    static const struct {
        uint16_t at;
        uint8_t bytes;
        uint64_t value;
        int code;
        const char *text;
    } cases[] = {
        {0, 4, 0, -ENOENT, "no bitmap at byte 8192"},
        {4, 4, 3, -ENOTSUP, "version 3"},
        {4, 4, 5, -ENOTSUP, "version 5"},
        {4, 4, 6, -ENOTSUP, "version 6"},
        {52, 4, 0, -EBADMSG, "chunksize 0"},
        {52, 4, 256, -EBADMSG, "chunksize 256"},
        {52, 4, 65535, -EBADMSG, "chunksize 65535"},
        {40, 8, 12863, -EBADMSG, "sync_size 12863"},
        {40, 8, 12865, -EBADMSG, "sync_size 12865"},
        {40, 8, UINT64_MAX, -EBADMSG, "sync_size 18446744073709551615"},
    };
    const struct superblock sb = member();
    const struct bitmap_header header = header_of(&sb);

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t block[BITMAP_HEADER_BYTES];
        struct bitmap_header decoded;
        struct format_error error = {""};

        bitmap_encode(&header, block);
        for (uint8_t b = 0; b < cases[i].bytes; b++)
            block[cases[i].at + b] = (uint8_t)(cases[i].value >> (8 * b));
        assert_int_equal(bitmap_decode(block, &sb, &decoded, &error), cases[i].code);
        if (!strstr(error.text, cases[i].text))
            fail_msg("\"%s\" is not in \"%s\"", cases[i].text, error.text);
    }
}

static void
smallest_bits_are_a_sector_each(void **state)
{
    const struct superblock sb = member();
    struct bitmap_header header = header_of(&sb);
    struct bitmap_header decoded;
    uint8_t block[BITMAP_HEADER_BYTES];

    header.chunk_bytes = 512;
    bitmap_encode(&header, block);
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), 0);
    assert_int_equal(bitmap_bits(&decoded), 12864);
}

/* Its length comes from the disk; it must not reach into the data, or from 1.0's end into the
 * superblock. */
static void
bitmap_over_data_or_superblock_is_refused(void **state)
{
    struct superblock sb = member();
    struct bitmap_header header = header_of(&sb);
    struct bitmap_header decoded;
    uint8_t block[BITMAP_HEADER_BYTES];

    bitmap_encode(&header, block);
    sb.data_offset_sectors = 24;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), 0);
    sb.data_offset_sectors = 23;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), -EBADMSG);

    sb.minor = 0;
    sb.super_offset_sectors = 30000;
    sb.data_offset_sectors = 0;
    sb.bitmap_offset_sectors = -8;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), 0);
    sb.bitmap_offset_sectors = -7;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), -EBADMSG);
    sb.bitmap_offset_sectors = 8;
    assert_int_equal(bitmap_decode(block, &sb, &decoded, NULL), -EBADMSG);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header_round_trips_and_keeps_the_rest),
        cmocka_unit_test(bits_cover_whole_stripes_from_the_lowest_bit_up),
        cmocka_unit_test(size_counts_the_header_and_rounds_up),
        cmocka_unit_test(bitmap_that_says_nothing_is_stale),
        cmocka_unit_test(member_away_since_a_bit_was_cleared_is_not_covered),
        cmocka_unit_test(odd_headers_are_refused_by_name),
        cmocka_unit_test(smallest_bits_are_a_sector_each),
        cmocka_unit_test(bitmap_over_data_or_superblock_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
