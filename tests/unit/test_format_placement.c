/*
 * test_format_placement.c: new members are laid out to the sector as mdadm 4.2 does it.
 *
 * The numbers are what mdadm was seen to choose, not what the code computes.
 */
#include "format/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void
data_offset_is_mdadms(void **state)
{
    /* Sizes of the first device; data offset in sectors for chunks of 512K, 64K or less, and 4M. */
    static const struct {
        uint64_t device_bytes;
        uint32_t chunk_512k, chunk_64k, chunk_4m;
    } rows[] = {
        {24 * MIB, 4096, 2048, 18432},
        {1 * GIB, 4096, 4096, 18432},
        {4 * GIB, 10240, 10240, 18432},
        {9 * GIB, 18432, 18432, 18432},
        {64 * GIB, 133120, 133120, 133120},
        {110 * GIB, 133120, 133120, 133120},
        {128 * GIB, 264192, 264192, 264192},
        {250 * GIB, 264192, 264192, 264192},
        {9 * 1024 * GIB, 264192, 264192, 264192},
    };

    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        for (uint32_t minor = 1; minor <= 2; minor++) {
            const uint64_t bytes = rows[i].device_bytes;

            assert_int_equal(placement_data_offset(minor, 512 * KIB, bytes),
                             rows[i].chunk_512k * 512ull);
            assert_int_equal(placement_data_offset(minor, 64 * KIB, bytes),
                             rows[i].chunk_64k * 512ull);
            assert_int_equal(placement_data_offset(minor, 4 * KIB, bytes),
                             rows[i].chunk_64k * 512ull);
            assert_int_equal(placement_data_offset(minor, 4 * MIB, bytes),
                             rows[i].chunk_4m * 512ull);
            assert_int_equal(placement_data_offset(0, 512 * KIB, bytes), 0);
        }
}

/* Place one member as create would; the offsets are in sectors. */
static struct superblock
place(uint32_t minor, uint64_t device_sectors, uint64_t chunk_bytes, bool bitmap)
{
    const uint64_t device_bytes = device_sectors * SECTOR_BYTES;
    const struct placement placement = {
        .minor = minor,
        .chunk_bytes = chunk_bytes,
        .data_offset_bytes = placement_data_offset(minor, chunk_bytes, device_bytes),
    };
    struct superblock sb;
    struct format_error error = {""};

    superblock_init(&sb, minor, 4);
    sb.chunk_sectors = (uint32_t)(chunk_bytes / SECTOR_BYTES);
    sb.feature_map = bitmap ? SUPERBLOCK_FEATURE_BITMAP : 0;
    sb.size_sectors = placement_component_bytes(&placement, device_bytes) / SECTOR_BYTES;
    if (placement_member(&placement, device_bytes, &sb, &error) != 0)
        fail_msg("%s", error.text);
    return sb;
}

static void
small_member_of_1_0_is_placed_as_mdadm_does(void **state)
{
    const struct superblock sb = place(0, 49152, 512 * KIB, false);

    assert_int_equal(sb.super_offset_sectors, 49136);
    assert_int_equal(sb.data_offset_sectors, 0);
    assert_int_equal(sb.data_size_sectors, 49120);
    assert_int_equal(sb.size_sectors, 48128);
    assert_int_equal(sb.bad_block_log_offset_sectors, -8);
    assert_int_equal(sb.bad_block_log_sectors, 8);
    assert_int_equal(sb.bitmap_offset_sectors, 0);
}

static void
small_member_of_1_2_is_placed_as_mdadm_does(void **state)
{
    const struct superblock sb = place(2, 49152, 512 * KIB, false);

    assert_int_equal(sb.super_offset_sectors, 8);
    assert_int_equal(sb.data_offset_sectors, 4096);
    assert_int_equal(sb.data_size_sectors, 45056);
    assert_int_equal(sb.size_sectors, 45056);
    assert_int_equal(sb.bad_block_log_offset_sectors, 16);
    assert_int_equal(sb.bad_block_log_sectors, 8);
}

static void
large_chunk_gets_more_headroom(void **state)
{
    const struct superblock sb = place(2, 49152, 4 * MIB, false);

    assert_int_equal(sb.data_offset_sectors, 18432);
    assert_int_equal(sb.data_size_sectors, 30720);
    assert_int_equal(sb.size_sectors, 24576);
}

static void
member_over_8_gib_has_room_for_a_larger_bitmap(void **state)
{
    const struct superblock sb = place(2, 18874368, 512 * KIB, false);

    assert_int_equal(sb.data_offset_sectors, 18432);
    assert_int_equal(sb.data_size_sectors, 18855936);
    assert_int_equal(sb.bad_block_log_offset_sectors, 136);
}

static void
bitmap_stands_right_behind_the_superblock(void **state)
{
    const struct superblock sb = place(2, 230686720, 512 * KIB, true);

    assert_int_equal(sb.data_offset_sectors, 133120);
    assert_int_equal(sb.bitmap_offset_sectors, 8);
    assert_int_equal(sb.bad_block_log_offset_sectors, 16);
}

static void
member_of_250_gib_is_placed_as_mdadm_does(void **state)
{
    const struct superblock sb = place(2, 524288000, 512 * KIB, false);

    assert_int_equal(sb.data_offset_sectors, 264192);
    assert_int_equal(sb.data_size_sectors, 524023808);
}

static void
member_of_9_tib_is_placed_as_mdadm_does(void **state)
{
    const struct superblock front = place(2, 19327352832, 512 * KIB, true);
    const struct superblock back = place(0, 19327352832, 512 * KIB, true);

    assert_int_equal(front.data_offset_sectors, 264192);
    assert_int_equal(front.bitmap_offset_sectors, 8);
    assert_int_equal(front.bad_block_log_offset_sectors, 48);
    assert_int_equal(back.bitmap_offset_sectors, -48);
    assert_true(back.data_size_sectors == 19327352768);
    assert_int_equal(back.bad_block_log_offset_sectors, -8);
}

/* The golden arrays: 24 MiB members, chunk 64K, a 16 MiB journal with the members' data offset. */
static void
journal_member_takes_the_data_offset_of_the_others(void **state)
{
    const struct placement placement = {
        .minor = 2,
        .chunk_bytes = 64 * KIB,
        .data_offset_bytes = placement_data_offset(2, 64 * KIB, 24 * MIB),
    };
    struct superblock sb;

    superblock_init(&sb, 2, 5);
    sb.feature_map = SUPERBLOCK_FEATURE_JOURNAL;
    sb.chunk_sectors = 128;
    sb.size_sectors = placement_component_bytes(&placement, 24 * MIB) / SECTOR_BYTES;
    assert_int_equal(sb.size_sectors, 47104);
    assert_int_equal(placement_member(&placement, 16 * MIB, &sb, NULL), 0);
    assert_int_equal(sb.data_offset_sectors, 2048);
    assert_int_equal(sb.data_size_sectors, 30720);
    assert_int_equal(sb.bad_block_log_offset_sectors, 16);

    /* Its size is not rounded; only the ring is. */
    assert_int_equal(placement_member(&placement, 16 * MIB + 3 * 512, &sb, NULL), 0);
    assert_int_equal(sb.data_size_sectors, 30723);
    assert_int_equal(superblock_journal_ring_bytes(&sb), 30720 * 512);
}

static void
too_small_a_device_is_refused(void **state)
{
    const struct placement front = {
        .minor = 2, .chunk_bytes = 64 * KIB, .data_offset_bytes = 1 * MIB};
    const struct placement back = {.minor = 0, .chunk_bytes = 64 * KIB};
    struct superblock sb;
    struct format_error error;

    assert_int_equal(placement_component_bytes(&front, 1 * MIB), 0);
    assert_int_equal(placement_component_bytes(&front, 1 * MIB + 64 * KIB - 1), 0);
    assert_int_equal(placement_component_bytes(&front, 1 * MIB + 64 * KIB), 64 * KIB);
    assert_int_equal(placement_component_bytes(&back, 24 * 512), 0);

    superblock_init(&sb, 2, 4);
    assert_int_equal(placement_member(&front, 23 * 512, &sb, &error), -ENOSPC);
    assert_int_equal(placement_member(&front, 1 * MIB, &sb, &error), -ENOSPC);
    assert_non_null(strstr(error.text, "too small"));
    superblock_init(&sb, 0, 4);
    assert_int_equal(placement_member(&back, 24 * 512, &sb, &error), -ENOSPC);
}

static void
data_offset_inside_the_logs_is_refused(void **state)
{
    struct placement placement = {
        .minor = 2, .chunk_bytes = 64 * KIB, .data_offset_bytes = 28 * 512 / 4096 * 4096};
    struct superblock sb;
    struct format_error error;

    superblock_init(&sb, 2, 4);
    sb.size_sectors = 2048;
    assert_int_equal(placement_member(&placement, 8 * MIB, &sb, &error), -ENOSPC);
    assert_non_null(strstr(error.text, "a data offset of 12288 bytes"));
    assert_non_null(strstr(error.text, "(16384 bytes)"));
    placement.data_offset_bytes = 32 * 512; /* superblock 8, room for a bitmap 16, log 24 to 32 */
    assert_int_equal(placement_member(&placement, 8 * MIB, &sb, &error), 0);
    assert_int_equal(sb.bad_block_log_offset_sectors, 16);
}

/* The bad block log stands behind the room for a bitmap, and so tells how large that is. */
static void
room_for_a_bitmap_grows_with_the_component(void **state)
{
    static const struct {
        uint64_t component_sectors;
        int32_t room_sectors;
    } rows[] = {
        {127, 0},         {128, 8},         {16777224, 8},     {16777225, 128},
        {419430527, 128}, {419430528, 256}, {1ull << 40, 256},
    };
    const struct placement placement = {
        .minor = 2, .chunk_bytes = 4096, .data_offset_bytes = 1 * MIB};

    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct superblock sb;

        superblock_init(&sb, 2, 4);
        sb.size_sectors = rows[i].component_sectors;
        assert_int_equal(placement_member(&placement, 1ull << 50, &sb, NULL), 0);
        assert_int_equal(sb.bad_block_log_offset_sectors, 8 + rows[i].room_sectors);
    }
}

/* Whatever it chooses passes our own checks: every minor, many sizes and chunks. */
static void
every_placement_is_a_valid_superblock(void **state)
{
    static const uint64_t device_sectors[] = {
        8192,      16384,     49152,     49153,     204800,    2097152,
        8388608,   16777208,  16777216,  16777352,  18874368,  33554431,
        230686720, 419430400, 419430528, 419430700, 524288000, 19327352832};
    static const uint64_t chunks[] = {4 * KIB, 64 * KIB, 512 * KIB, 1 * MIB};
    uint32_t valid = 0;

    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS; minor++)
        for (size_t i = 0; i < ARRAY_LEN(device_sectors); i++)
            for (size_t c = 0; c < ARRAY_LEN(chunks); c++)
                for (int bitmap = 0; bitmap <= 1; bitmap++) {
                    struct superblock sb, again;
                    struct format_error error = {""};
                    uint8_t block[SUPERBLOCK_BYTES];

                    if (minor != 0 &&
                        device_sectors[i] * 512 < placement_data_offset(minor, chunks[c], 0) + MIB)
                        continue;
                    sb = place(minor, device_sectors[i], chunks[c], bitmap);
                    sb.level = 5;
                    sb.layout = 2;
                    sb.raid_disks = 3;
                    sb.dev_roles[0] = 0;
                    assert_int_equal(superblock_encode(&sb, block), 512);
                    if (superblock_decode(block, minor, device_sectors[i] * 512, &again, &error) !=
                        0)
                        fail_msg("1.%u, %llu sectors, chunk %llu: %s", minor,
                                 (unsigned long long)device_sectors[i],
                                 (unsigned long long)chunks[c], error.text);
                    valid++;
                }
    assert_true(valid > 300);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_offset_is_mdadms),
        cmocka_unit_test(small_member_of_1_0_is_placed_as_mdadm_does),
        cmocka_unit_test(small_member_of_1_2_is_placed_as_mdadm_does),
        cmocka_unit_test(large_chunk_gets_more_headroom),
        cmocka_unit_test(member_over_8_gib_has_room_for_a_larger_bitmap),
        cmocka_unit_test(bitmap_stands_right_behind_the_superblock),
        cmocka_unit_test(member_of_250_gib_is_placed_as_mdadm_does),
        cmocka_unit_test(member_of_9_tib_is_placed_as_mdadm_does),
        cmocka_unit_test(journal_member_takes_the_data_offset_of_the_others),
        cmocka_unit_test(too_small_a_device_is_refused),
        cmocka_unit_test(data_offset_inside_the_logs_is_refused),
        cmocka_unit_test(room_for_a_bitmap_grows_with_the_component),
        cmocka_unit_test(every_placement_is_a_valid_superblock),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
