/*
 * test_create.c: the superblocks of a new array.
 *
 * What mdadm 4.2 --create chose on devices of these sizes is the judge for the placement; the rest
 * are the rules of the command line.
 */
#include "array/create.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define TIB (1024 * GIB)

static struct create_device devices[300];
static struct superblock *superblocks;
static struct error error;

static struct create_options
options(int level)
{
    return (struct create_options){.level = level,
                                   .layout = level == 4 ? 0 : 2,
                                   .minor = 2,
                                   .chunk_bytes = CREATE_CHUNK_BYTES_DEFAULT,
                                   .set_uuid = {0x12, 0x34, 0x56, 0x78, 0x9a},
                                   .now = 1700000000};
}

static void
have(unsigned count, uint64_t size_bytes)
{
    static char names[ARRAY_LEN(devices)][16];

    for (unsigned i = 0; i < count; i++) {
        (void)snprintf(names[i], sizeof names[i], "d%u", i);
        devices[i] = (struct create_device){.name = names[i], .size_bytes = size_bytes};
        memset(devices[i].uuid, 0x40 + (int)i, sizeof devices[i].uuid);
    }
}

static void
expect(const struct create_options *o, unsigned count, int result)
{
    int r;

    error = (struct error){0};
    r = create_plan(o, devices, count, superblocks, &error);
    if (r != result)
        fail_msg("%d, not %d: %s", r, result, error.text);
    if (r < 0)
        assert_true(error.text[0] != '\0');
}

static void
expect_text(const char *part)
{
    if (!strstr(error.text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, error.text);
}

/* ---- What is written ---- */

/* Each is encoded, and read back by the decoder that a start uses. */
static void
every_superblock_is_one_that_a_start_accepts(void **state)
{
    static const struct {
        int level;
        unsigned layout;
    } kinds[] = {{4, 0}, {5, 0},  {5, 1},  {5, 2},  {5, 3},  {5, 4},  {5, 5},
                 {6, 0}, {6, 1},  {6, 2},  {6, 3},  {6, 4},  {6, 5},  {6, 8},
                 {6, 9}, {6, 10}, {6, 16}, {6, 17}, {6, 18}, {6, 19}, {6, 20}};
    const uint64_t size_bytes = 24 * MIB;
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock *read = malloc(sizeof *read);

    assert_non_null(read);
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++)
        for (uint32_t minor = 0; minor < 3; minor++)
            for (unsigned count = kinds[k].level == 6 ? 4 : 2; count <= 8; count++)
                for (uint64_t chunk = 4 * KIB; chunk <= 1 * MIB; chunk *= 4) {
                    struct create_options o = options(kinds[k].level);

                    o.layout = kinds[k].layout;
                    o.minor = minor;
                    o.chunk_bytes = chunk;
                    have(count, size_bytes);
                    expect(&o, count, 0);
                    for (unsigned i = 0; i < count; i++) {
                        struct format_error why = {""};

                        assert_true(superblock_encode(&superblocks[i], block) >= 512);
                        if (superblock_decode(block, minor, size_bytes, read, &why) != 0)
                            fail_msg("%s", why.text);
                        assert_int_equal(superblock_role(read), i);
                        assert_int_equal(read->dev_number, i);
                        assert_int_equal(read->raid_disks, count);
                        assert_int_equal(read->layout, kinds[k].layout);
                        assert_int_equal(superblock_chunk_bytes(read), chunk);
                        assert_int_equal(read->resync_offset_sectors, 0);
                        assert_int_equal(read->events, 0);
                        assert_int_equal(read->feature_map, 0);
                        assert_memory_equal(read->device_uuid, devices[i].uuid, 16);
                        assert_memory_equal(read->set_uuid, o.set_uuid, 16);
                    }
                }
    free(read);
}

static void
placement_is_the_one_of_mdadm(void **state)
{
    static const struct {
        uint64_t sectors, chunk_bytes;
        uint32_t minor;
        uint64_t data_offset, data_size, size, super_offset;
        int32_t bad_blocks;
    } cases[] = {
        {49152, 512 * KIB, 0, 0, 49120, 48128, 49136, -8},
        {49152, 512 * KIB, 1, 4096, 45056, 45056, 0, 16},
        {49152, 512 * KIB, 2, 4096, 45056, 45056, 8, 16},
        {49152, 4 * MIB, 2, 18432, 30720, 24576, 8, 16},
        {49152, 64 * KIB, 2, 2048, 47104, 47104, 8, 16},
        {18874368, 512 * KIB, 2, 18432, 18855936, 18855936, 8, 136},
        {524288000, 512 * KIB, 2, 264192, 524023808, 524023808, 8, 264},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct create_options o = options(5);

        o.minor = cases[i].minor;
        o.chunk_bytes = cases[i].chunk_bytes;
        have(3, cases[i].sectors * SECTOR_BYTES);
        expect(&o, 3, 0);
        for (unsigned j = 0; j < 3; j++) {
            assert_int_equal(superblocks[j].data_offset_sectors, cases[i].data_offset);
            assert_int_equal(superblocks[j].data_size_sectors, cases[i].data_size);
            assert_int_equal(superblocks[j].size_sectors, cases[i].size);
            assert_int_equal(superblocks[j].super_offset_sectors, cases[i].super_offset);
            assert_int_equal(superblocks[j].bad_block_log_offset_sectors, cases[i].bad_blocks);
            assert_int_equal(superblocks[j].bad_block_log_sectors, 8);
            assert_int_equal(superblocks[j].max_dev, 128);
        }
    }
}

static void
the_smallest_device_decides_the_size(void **state)
{
    struct create_options o = options(5);

    have(3, 100 * MIB);
    devices[2].size_bytes = 50 * MIB + 12345;
    expect(&o, 3, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(superblock_component_bytes(&superblocks[i]), 48 * MIB);
    assert_int_equal(superblocks[0].data_size_sectors, 98 * MIB / SECTOR_BYTES);
}

static void
a_given_size_is_rounded_down_to_chunks(void **state)
{
    struct create_options o = options(5);

    have(3, 100 * MIB);
    o.size_bytes = 10 * MIB + 700 * KIB;
    expect(&o, 3, 0);
    assert_int_equal(superblock_component_bytes(&superblocks[1]), 10 * MIB + 512 * KIB);
}

static void
the_name_is_the_given_one_or_the_uuid_in_short(void **state)
{
    struct create_options o = options(5);

    have(3, 24 * MIB);
    expect(&o, 3, 0);
    assert_string_equal(superblocks[2].set_name, "12345678");
    o.name = "backup";
    expect(&o, 3, 0);
    assert_string_equal(superblocks[0].set_name, "backup");
    o.name = "";
    expect(&o, 3, -EINVAL);
    o.name = "1234567890123456789012345678901";
    expect(&o, 3, 0);
    assert_string_equal(superblocks[0].set_name, o.name);
    o.name = "12345678901234567890123456789012";
    expect(&o, 3, -EINVAL);
    o.name = "a\nb";
    expect(&o, 3, -EINVAL);
}

static void
more_than_128_members_get_a_larger_table(void **state)
{
    struct create_options o = options(6);

    have(256, 24 * MIB);
    expect(&o, 256, 0);
    assert_int_equal(superblocks[0].max_dev, 384);
    assert_int_equal(superblocks[255].dev_roles[255], 255);
    assert_int_equal(superblocks[0].dev_roles[256], SUPERBLOCK_ROLE_SPARE);
}

/* ---- In sync or not ---- */

static void
a_first_start_resyncs_unless_parity_is_good(void **state)
{
    static const struct {
        int level;
        unsigned missing;
        bool assume_clean, in_sync;
        int result;
    } cases[] = {
        {4, 0, false, false, 0},      {5, 0, false, false, 0},       {6, 0, false, false, 0},
        {4, 0, true, true, 0},        {5, 0, true, true, 0},         {6, 0, true, true, 0},
        {4, 1, false, true, 0},       {5, 1, false, true, 0},        {6, 1, false, false, -EINVAL},
        {5, 1, true, true, 0},        {6, 1, true, true, 0},         {6, 2, true, true, 0},
        {5, 2, true, false, -EINVAL}, {5, 2, false, false, -EINVAL}, {6, 3, true, false, -EINVAL},
        {4, 2, true, false, -EINVAL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct create_options o = options(cases[i].level);

        o.assume_clean = cases[i].assume_clean;
        have(5, 24 * MIB);
        for (unsigned m = 0; m < cases[i].missing; m++)
            devices[m].name = NULL;
        expect(&o, 5, cases[i].result);
        if (cases[i].result == 0)
            assert_int_equal(superblock_is_clean(&superblocks[4]), cases[i].in_sync);
    }
}

static void
a_missing_member_is_nobody_in_every_table(void **state)
{
    struct create_options o = options(5);

    have(4, 24 * MIB);
    devices[0].name = NULL;
    expect(&o, 4, 0);
    for (unsigned i = 1; i < 4; i++) {
        assert_int_equal(superblocks[i].dev_roles[0], SUPERBLOCK_ROLE_SPARE);
        for (unsigned j = 1; j < 4; j++)
            assert_int_equal(superblocks[i].dev_roles[j], j);
    }
    assert_int_equal(superblocks[0].max_dev, 0);
}

/* ---- A journal ---- */

/* It is the device behind the members. */
static void
a_journal_is_a_device_more_that_every_table_knows(void **state)
{
    uint8_t block[SUPERBLOCK_BYTES];
    struct superblock *read = malloc(sizeof *read);

    assert_non_null(read);
    for (int level = 4; level <= 6; level++)
        for (uint32_t minor = 0; minor < 3; minor++)
            for (unsigned count = level == 6 ? 4 : 2; count <= 8; count++) {
                struct create_options o = options(level);

                o.minor = minor;
                o.chunk_bytes = 64 * KIB;
                o.write_journal = true;
                have(count + 1, 24 * MIB);
                devices[count].size_bytes = 40 * MIB + 3 * SECTOR_BYTES;
                expect(&o, count, 0);
                for (unsigned i = 0; i <= count; i++) {
                    struct format_error why = {""};

                    assert_true(superblock_encode(&superblocks[i], block) >= 512);
                    if (superblock_decode(block, minor, devices[i].size_bytes, read, &why) != 0)
                        fail_msg("%s", why.text);
                    assert_int_equal(superblock_role(read),
                                     i < count ? i : SUPERBLOCK_ROLE_JOURNAL);
                    assert_int_equal(read->dev_number, i);
                    assert_int_equal(read->raid_disks, count);
                    assert_int_equal(read->feature_map, SUPERBLOCK_FEATURE_JOURNAL);
                    assert_int_equal(superblock_role_of(read, count), SUPERBLOCK_ROLE_JOURNAL);
                    assert_int_equal(superblock_role_of(read, count + 1), SUPERBLOCK_ROLE_SPARE);
                    assert_int_equal(read->data_offset_sectors, superblocks[0].data_offset_sectors);
                    assert_int_equal(read->size_sectors, superblocks[0].size_sectors);
                    assert_int_equal(read->journal_tail_sectors, 0);
                    assert_int_equal(read->events, 0);
                }
                /* All of the device, unrounded; the ring is what of it is whole blocks. */
                if (minor > 0)
                    assert_int_equal(read->data_size_sectors,
                                     devices[count].size_bytes / SECTOR_BYTES -
                                         read->data_offset_sectors);
                assert_in_range(read->data_size_sectors * SECTOR_BYTES -
                                    superblock_journal_ring_bytes(read),
                                0, BLOCK_BYTES - 1);
            }
    free(read);
}

/* The size of the array is the members' business. */
static void
a_journal_does_not_count_for_the_size(void **state)
{
    struct create_options o = options(5);
    uint64_t alone;

    have(5, GIB);
    expect(&o, 4, 0);
    alone = superblocks[0].size_sectors;
    o.write_journal = true;
    devices[4].size_bytes = 16 * MIB;
    expect(&o, 4, 0);
    assert_int_equal(superblocks[0].size_sectors, alone);
    assert_int_equal(superblocks[4].size_sectors, alone);
}

/* 4 MiB of ring, whatever stands in front of it; less is refused, and told. */
static void
a_ring_of_less_than_4_mib_is_refused(void **state)
{
    static const uint64_t members[] = {24 * MIB, GIB, 100 * GIB, 4 * TIB};

    for (size_t m = 0; m < ARRAY_LEN(members); m++)
        for (uint32_t minor = 0; minor < 3; minor++) {
            struct create_options o = options(5);
            uint64_t least;

            o.minor = minor;
            o.chunk_bytes = 64 * KIB;
            o.write_journal = true;
            have(4, members[m]);
            devices[3].size_bytes = GIB;
            expect(&o, 3, 0);
            least =
                GIB - superblocks[3].data_size_sectors * SECTOR_BYTES + CREATE_JOURNAL_BYTES_MIN;
            devices[3].size_bytes = least;
            expect(&o, 3, 0);
            assert_int_equal(superblock_journal_ring_bytes(&superblocks[3]),
                             CREATE_JOURNAL_BYTES_MIN);
            for (uint64_t less = BLOCK_BYTES; less < least; less *= 3) {
                devices[3].size_bytes = least - less;
                expect(&o, 3, -ENOSPC);
                expect_text("d3");
            }
            devices[3].size_bytes = 0;
            expect(&o, 3, -ENOSPC);
        }
}

static void
with_a_journal_there_are_at_most_203_members(void **state)
{
    struct create_options o = options(5);

    have(205, 24 * MIB);
    o.chunk_bytes = 64 * KIB;
    o.write_journal = true;
    expect(&o, 203, 0);
    assert_int_equal(superblock_role(&superblocks[203]), SUPERBLOCK_ROLE_JOURNAL);
    expect(&o, 204, -EINVAL);
    expect_text("203");
    o.write_journal = false;
    expect(&o, 204, 0);
}

/* 128 numbers are in a table that fits one sector: the journal's is one of them. */
static void
a_journal_counts_for_the_table(void **state)
{
    struct create_options o = options(5);

    have(130, 24 * MIB);
    o.chunk_bytes = 64 * KIB;
    o.write_journal = true;
    for (unsigned count = 126; count <= 129; count++) {
        expect(&o, count, 0);
        assert_true(superblocks[0].max_dev > count);
        assert_int_equal(superblocks[0].max_dev <= 128, count <= 127);
        assert_int_equal(superblock_role_of(&superblocks[0], count), SUPERBLOCK_ROLE_JOURNAL);
    }
}

static void
a_degraded_array_may_have_a_journal(void **state)
{
    struct create_options o = options(5);

    have(5, 24 * MIB);
    devices[1].name = NULL;
    o.chunk_bytes = 64 * KIB;
    o.write_journal = true;
    expect(&o, 4, 0);
    assert_int_equal(superblock_role_of(&superblocks[4], 1), SUPERBLOCK_ROLE_SPARE);
    assert_int_equal(superblock_role(&superblocks[4]), SUPERBLOCK_ROLE_JOURNAL);
}

/* ---- Refusals ---- */

static void
levels_layouts_and_counts_out_of_range_are_refused(void **state)
{
    static const struct {
        int level;
        unsigned layout, count;
        int result;
    } cases[] = {
        {0, 0, 4, -EINVAL},  {1, 0, 4, -EINVAL},   {10, 2, 4, -EINVAL}, {-1, 0, 4, -EINVAL},
        {5, 6, 4, -EINVAL},  {5, 16, 4, -EINVAL},  {6, 6, 4, -EINVAL},  {6, 11, 4, -EINVAL},
        {6, 21, 4, -EINVAL}, {5, 2, 1, -EINVAL},   {4, 0, 1, -EINVAL},  {5, 2, 0, -EINVAL},
        {6, 2, 3, -EINVAL},  {5, 2, 2, 0},         {4, 0, 2, 0},        {6, 2, 4, 0},
        {5, 2, 256, 0},      {5, 2, 257, -EINVAL}, {6, 8, 255, 0},      {6, 8, 256, -EINVAL},
        {6, 2, 256, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct create_options o = options(cases[i].level);

        o.layout = cases[i].layout;
        have(cases[i].count, 24 * MIB);
        expect(&o, cases[i].count, cases[i].result);
    }
}

static void
a_chunk_is_a_power_of_two_from_4k_to_1g(void **state)
{
    static const uint64_t good[] = {4 * KIB, 8 * KIB, 1 * MIB, 1 * GIB};
    static const uint64_t bad[] = {0, 1, 512, 2 * KIB, 5 * KIB, 12 * KIB, 2 * GIB, UINT64_MAX};
    struct create_options o = options(5);

    have(3, 16 * GIB);
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        o.chunk_bytes = good[i];
        expect(&o, 3, 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        o.chunk_bytes = bad[i];
        expect(&o, 3, -EINVAL);
        expect_text("power of two");
    }
}

static void
a_device_that_is_too_small_is_named(void **state)
{
    static const uint64_t sizes[] = {0, 512, 24 * 512, 1 * MIB, 2 * MIB, 2 * MIB + 511 * KIB};
    struct create_options o = options(5);

    for (uint32_t minor = 0; minor < 3; minor++)
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            if (minor == 0 && sizes[i] >= 1 * MIB)
                continue;
            o.minor = minor;
            have(3, 24 * MIB);
            devices[1].size_bytes = sizes[i];
            expect(&o, 3, -ENOSPC);
            expect_text("d1 is too small");
        }
}

static void
a_size_that_does_not_fit_is_refused(void **state)
{
    struct create_options o = options(5);

    have(3, 24 * MIB);
    o.size_bytes = 23 * MIB;
    expect(&o, 3, -ENOSPC);
    expect_text("d0 is too small");
    o.size_bytes = 511 * KIB;
    expect(&o, 3, -EINVAL);
}

static void
an_array_of_more_than_2_63_bytes_is_refused(void **state)
{
    struct create_options o = options(5);

    have(200, 1024 * 1024 * TIB / 8);
    expect(&o, 200, -EFBIG);
}

static int
set_up(void **state)
{
    superblocks = calloc(ARRAY_LEN(devices), sizeof *superblocks);
    return superblocks ? 0 : -1;
}

static int
tear_down(void **state)
{
    free(superblocks);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_superblock_is_one_that_a_start_accepts),
        cmocka_unit_test(placement_is_the_one_of_mdadm),
        cmocka_unit_test(the_smallest_device_decides_the_size),
        cmocka_unit_test(a_given_size_is_rounded_down_to_chunks),
        cmocka_unit_test(the_name_is_the_given_one_or_the_uuid_in_short),
        cmocka_unit_test(more_than_128_members_get_a_larger_table),
        cmocka_unit_test(a_first_start_resyncs_unless_parity_is_good),
        cmocka_unit_test(a_missing_member_is_nobody_in_every_table),
        cmocka_unit_test(a_journal_is_a_device_more_that_every_table_knows),
        cmocka_unit_test(a_journal_does_not_count_for_the_size),
        cmocka_unit_test(a_ring_of_less_than_4_mib_is_refused),
        cmocka_unit_test(with_a_journal_there_are_at_most_203_members),
        cmocka_unit_test(a_journal_counts_for_the_table),
        cmocka_unit_test(a_degraded_array_may_have_a_journal),
        cmocka_unit_test(levels_layouts_and_counts_out_of_range_are_refused),
        cmocka_unit_test(a_chunk_is_a_power_of_two_from_4k_to_1g),
        cmocka_unit_test(a_device_that_is_too_small_is_named),
        cmocka_unit_test(a_size_that_does_not_fit_is_refused),
        cmocka_unit_test(an_array_of_more_than_2_63_bytes_is_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
