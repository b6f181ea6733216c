/*
 * test_format_bad_blocks.c: the bad block log, and finding what a read would touch.
 */
#include "format/bad_blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define DEVICE_SECTORS       100000ull
#define DEVICE_BYTES         (DEVICE_SECTORS * SECTOR_BYTES)
#define ENTRY(start, length) ((uint64_t)(start) << 10 | (length))

static uint8_t *
log_of(uint8_t log[BAD_BLOCKS_LOG_BYTES_MAX], const uint64_t *entries, size_t count)
{
    memset(log, 0xff, BAD_BLOCKS_LOG_BYTES_MAX);
    for (size_t i = 0; i < count; i++)
        store_le64(log + 8 * i, entries[i]);
    return log;
}

static int
decode(const uint64_t *entries, size_t count, uint32_t shift, struct bad_blocks *bad,
       struct format_error *error)
{
    uint8_t log[BAD_BLOCKS_LOG_BYTES_MAX];

    return bad_blocks_decode(log_of(log, entries, count), sizeof log, shift, DEVICE_BYTES, bad,
                             error);
}

static void
entries_are_absolute_sectors(void **state)
{
    static const uint64_t entries[] = {ENTRY(2048, 8), ENTRY(5000, 1023)};
    struct bad_blocks bad;

    assert_int_equal(decode(entries, 2, 0, &bad, NULL), 0);
    assert_int_equal(bad.count, 2);
    assert_int_equal(bad.ranges[0].start_bytes, 2048 * 512);
    assert_int_equal(bad.ranges[0].end_bytes, 2056 * 512);
    assert_int_equal(bad.ranges[1].start_bytes, 5000 * 512);
    assert_int_equal(bad.ranges[1].end_bytes, 6023 * 512);
}

static void
shift_scales_start_and_length(void **state)
{
    static const uint64_t entries[] = {ENTRY(100, 2)};
    struct bad_blocks bad;

    assert_int_equal(decode(entries, 1, 3, &bad, NULL), 0);
    assert_int_equal(bad.ranges[0].start_bytes, 800 * 512);
    assert_int_equal(bad.ranges[0].end_bytes, 816 * 512);
}

static void
all_ones_end_the_log(void **state)
{
    static const uint64_t entries[] = {ENTRY(10, 1), UINT64_MAX, 0};
    struct bad_blocks bad;

    assert_int_equal(decode(entries, 3, 0, &bad, NULL), 0);
    assert_int_equal(bad.count, 1);
    assert_int_equal(decode(NULL, 0, 0, &bad, NULL), 0);
    assert_int_equal(bad.count, 0);
    assert_null(bad_blocks_find(&bad, 0, DEVICE_BYTES));
}

static void
full_log_of_512_entries_is_read(void **state)
{
    uint64_t entries[BAD_BLOCKS_MAX];
    struct bad_blocks bad;

    for (uint64_t i = 0; i < BAD_BLOCKS_MAX; i++)
        entries[i] = ENTRY(16 * (BAD_BLOCKS_MAX - i), 8);
    assert_int_equal(decode(entries, BAD_BLOCKS_MAX, 0, &bad, NULL), 0);
    assert_int_equal(bad.count, BAD_BLOCKS_MAX);
    for (uint32_t i = 0; i < bad.count; i++)
        assert_int_equal(bad.ranges[i].start_bytes, 16 * (i + 1) * 512);
}

static void
overlapping_entries_become_one(void **state)
{
    static const uint64_t entries[] = {ENTRY(300, 10), ENTRY(100, 50), ENTRY(120, 5),
                                       ENTRY(150, 20)};
    struct bad_blocks bad;

    assert_int_equal(decode(entries, 4, 0, &bad, NULL), 0);
    assert_int_equal(bad.count, 2);
    assert_int_equal(bad.ranges[0].start_bytes, 100 * 512);
    assert_int_equal(bad.ranges[0].end_bytes, 170 * 512);
    assert_int_equal(bad.ranges[1].start_bytes, 300 * 512);
}

static void
impossible_entries_are_refused(void **state)
{
    static const uint64_t no_length[] = {ENTRY(10, 0)};
    static const uint64_t zeros[] = {0};
    static const uint64_t behind[] = {ENTRY(DEVICE_SECTORS, 1)};
    static const uint64_t far_behind[] = {ENTRY((1ull << 54) - 1, 1022)};
    static const uint64_t last[] = {ENTRY(DEVICE_SECTORS - 1, 1023)};
    struct bad_blocks bad;
    struct format_error error;

    assert_int_equal(decode(no_length, 1, 0, &bad, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "no length at unit 10"));
    assert_int_equal(decode(zeros, 1, 0, &bad, &error), -EBADMSG);
    assert_int_equal(decode(behind, 1, 0, &bad, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "unit 100000"));
    assert_int_equal(decode(far_behind, 1, 0, &bad, &error), -EBADMSG);
    assert_int_equal(decode(far_behind, 1, 20, &bad, &error), -EBADMSG);
    assert_int_equal(decode(NULL, 0, 54, &bad, &error), 0);
    assert_int_equal(decode(NULL, 0, 55, &bad, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "bblog_shift 55"));
    /* One that only ends behind the device is cut. */
    assert_int_equal(decode(last, 1, 0, &bad, &error), 0);
    assert_int_equal(bad.ranges[0].end_bytes, DEVICE_BYTES);
}

/* Against a search that cannot be wrong, on many small random logs. */
static void
find_agrees_with_a_plain_search(void **state)
{
    uint32_t found = 0, missed = 0;

    srand(1);
    for (int round = 0; round < 300; round++) {
        uint64_t entries[12];
        const size_t count = (size_t)rand() % 13;
        struct bad_blocks bad;

        for (size_t i = 0; i < count; i++)
            entries[i] = ENTRY(rand() % 200, 1 + rand() % 12);
        assert_int_equal(decode(entries, count, 0, &bad, NULL), 0);
        for (int query = 0; query < 100; query++) {
            const uint64_t offset = (uint64_t)rand() % 220, length = (uint64_t)rand() % 20;
            const struct bad_blocks_range *range =
                bad_blocks_find(&bad, offset * 512, length * 512);
            uint64_t first = UINT64_MAX;

            for (uint64_t sector = offset; sector < offset + length && first == UINT64_MAX;
                 sector++)
                for (size_t i = 0; i < count; i++)
                    if (sector >= entries[i] >> 10 &&
                        sector < (entries[i] >> 10) + (entries[i] & 1023))
                        first = sector;
            assert_int_equal(range != NULL, first != UINT64_MAX);
            if (range) {
                assert_true(range->start_bytes <= first * 512 && first * 512 < range->end_bytes);
                found++;
            } else {
                missed++;
            }
        }
    }
    assert_true(found > 1000);
    assert_true(missed > 1000);
}

static void
find_survives_lengths_up_to_the_end_of_everything(void **state)
{
    static const uint64_t entries[] = {ENTRY(100, 8)};
    struct bad_blocks bad;

    assert_int_equal(decode(entries, 1, 0, &bad, NULL), 0);
    assert_non_null(bad_blocks_find(&bad, 0, UINT64_MAX));
    assert_non_null(bad_blocks_find(&bad, 101 * 512, UINT64_MAX));
    assert_null(bad_blocks_find(&bad, 108 * 512, UINT64_MAX));
    assert_null(bad_blocks_find(&bad, UINT64_MAX, 1));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_are_absolute_sectors),
        cmocka_unit_test(shift_scales_start_and_length),
        cmocka_unit_test(all_ones_end_the_log),
        cmocka_unit_test(full_log_of_512_entries_is_read),
        cmocka_unit_test(overlapping_entries_become_one),
        cmocka_unit_test(impossible_entries_are_refused),
        cmocka_unit_test(find_agrees_with_a_plain_search),
        cmocka_unit_test(find_survives_lengths_up_to_the_end_of_everything),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
