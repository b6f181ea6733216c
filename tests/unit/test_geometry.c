/*
 * The mapping against the worked tables of the format document, letter by
 * letter, and its properties (G1 to G4 of geometry.c) over every layout, all
 * sizes up to 20 members and all rows of a period.
 */
#include "geometry/geometry.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define CHUNK       (64 * KIB)
#define MEMBERS_TOP 20u

static const unsigned raid5_numbers[] = {0, 1, 2, 3, 4, 5};
static const unsigned raid6_numbers[] = {0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20};

static void
make(struct geometry *geometry, int level, unsigned layout, unsigned members)
{
    const struct geometry_config config = {
        .level = level,
        .layout = layout,
        .members = members,
        .chunk_bytes = CHUNK,
        .size_bytes = 1000 * CHUNK + 512,
    };
    assert_int_equal(geometry_init(geometry, &config), 0);
}

/* Call `check` for every level, layout and number of members. */
static void
for_each_geometry(void (*check)(const struct geometry *))
{
    struct geometry geometry;
    for (unsigned n = 2; n <= MEMBERS_TOP; n++) {
        make(&geometry, 4, 0, n);
        check(&geometry);
        for (size_t i = 0; i < ARRAY_LEN(raid5_numbers); i++) {
            make(&geometry, 5, raid5_numbers[i], n);
            check(&geometry);
        }
    }
    for (unsigned n = 4; n <= MEMBERS_TOP; n++) {
        for (size_t i = 0; i < ARRAY_LEN(raid6_numbers); i++) {
            make(&geometry, 6, raid6_numbers[i], n);
            check(&geometry);
        }
    }
}

/* ---- The worked tables ---- */

struct table {
    int level;
    unsigned layout;
    const char
        *rows[5]; /* "P", "Q", a data chunk, or a data chunk with its exponent after the point */
};

static const struct table raid5_tables[] = {
    {5, 0, {"0 1 2 P", "3 4 P 5", "6 P 7 8", "P 9 10 11"}},
    {5, 1, {"P 0 1 2", "3 P 4 5", "6 7 P 8", "9 10 11 P"}},
    {5, 2, {"0 1 2 P", "4 5 P 3", "8 P 6 7", "P 9 10 11"}},
    {5, 3, {"P 0 1 2", "5 P 3 4", "7 8 P 6", "9 10 11 P"}},
    {5, 4, {"P 0 1 2", "P 3 4 5", "P 6 7 8", "P 9 10 11"}},
    {5, 5, {"0 1 2 P", "3 4 5 P", "6 7 8 P", "9 10 11 P"}},
    {4, 0, {"0 1 2 P", "3 4 5 P", "6 7 8 P", "9 10 11 P"}},
};

static const struct table raid6_tables[] = {
    {6,
     0,
     {"Q 0.0 1.1 2.2 P", "3.0 4.1 5.2 P Q", "6.1 7.2 P Q 8.0", "9.2 P Q 10.0 11.1",
      "P Q 12.0 13.1 14.2"}},
    {6,
     1,
     {"P Q 0.0 1.1 2.2", "3.2 P Q 4.0 5.1", "6.1 7.2 P Q 8.0", "9.0 10.1 11.2 P Q",
      "Q 12.0 13.1 14.2 P"}},
    {6,
     2,
     {"Q 0.0 1.1 2.2 P", "3.0 4.1 5.2 P Q", "7.1 8.2 P Q 6.0", "11.2 P Q 9.0 10.1",
      "P Q 12.0 13.1 14.2"}},
    {6,
     3,
     {"P Q 0.0 1.1 2.2", "5.2 P Q 3.0 4.1", "7.1 8.2 P Q 6.0", "9.0 10.1 11.2 P Q",
      "Q 12.0 13.1 14.2 P"}},
    {6,
     4,
     {"P Q 0.0 1.1 2.2", "P Q 3.0 4.1 5.2", "P Q 6.0 7.1 8.2", "P Q 9.0 10.1 11.2",
      "P Q 12.0 13.1 14.2"}},
    {6,
     5,
     {"0.0 1.1 2.2 P Q", "3.0 4.1 5.2 P Q", "6.0 7.1 8.2 P Q", "9.0 10.1 11.2 P Q",
      "12.0 13.1 14.2 P Q"}},
    {6,
     8,
     {"P Q 0.2 1.3 2.4", "3.0 P Q 4.3 5.4", "6.0 7.1 P Q 8.4", "9.0 10.1 11.2 P Q",
      "Q 12.1 13.2 14.3 P"}},
    {6,
     9,
     {"0.0 1.1 2.2 P Q", "3.0 4.1 P Q 5.4", "6.0 P Q 7.3 8.4", "P Q 9.2 10.3 11.4",
      "Q 12.1 13.2 14.3 P"}},
    {6,
     10,
     {"0.0 1.1 2.2 Q P", "4.0 5.1 Q P 3.4", "8.0 Q P 6.3 7.4", "Q P 9.2 10.3 11.4",
      "P 12.1 13.2 14.3 Q"}},
    {6,
     16,
     {"0.0 1.1 2.2 P Q", "3.0 4.1 P 5.2 Q", "6.0 P 7.1 8.2 Q", "P 9.0 10.1 11.2 Q",
      "12.0 13.1 14.2 P Q"}},
    {6,
     17,
     {"P 0.0 1.1 2.2 Q", "3.0 P 4.1 5.2 Q", "6.0 7.1 P 8.2 Q", "9.0 10.1 11.2 P Q",
      "P 12.0 13.1 14.2 Q"}},
    {6,
     18,
     {"0.0 1.1 2.2 P Q", "4.0 5.1 P 3.2 Q", "8.0 P 6.1 7.2 Q", "P 9.0 10.1 11.2 Q",
      "12.0 13.1 14.2 P Q"}},
    {6,
     19,
     {"P 0.0 1.1 2.2 Q", "5.0 P 3.1 4.2 Q", "7.0 8.1 P 6.2 Q", "9.0 10.1 11.2 P Q",
      "P 12.0 13.1 14.2 Q"}},
    {6,
     20,
     {"P 0.0 1.1 2.2 Q", "P 3.0 4.1 5.2 Q", "P 6.0 7.1 8.2 Q", "P 9.0 10.1 11.2 Q",
      "P 12.0 13.1 14.2 Q"}},
};

/* One row in the words of the tables. */
static void
describe_row(const struct geometry *geometry, uint64_t number, char *text, size_t size)
{
    struct row row;
    geometry_row(geometry, number, &row);
    size_t used = 0;
    for (unsigned m = 0; m < geometry->members; m++) {
        const char *space = m == 0 ? "" : " ";
        const unsigned d = geometry_data_index(geometry, &row, m);
        const unsigned chunk = (unsigned)number * geometry->data_members + d;
        int length;
        if (d == NO_MEMBER)
            length = snprintf(text + used, size - used, "%s%s", space, m == row.p ? "P" : "Q");
        else if (geometry->parities == 1)
            length = snprintf(text + used, size - used, "%s%u", space, chunk);
        else
            length = snprintf(text + used, size - used, "%s%u.%u", space, chunk,
                              geometry_q_exponent(geometry, &row, m));
        used += (size_t)length;
        assert_true(used < size);
    }
}

static void
check_tables(const struct table *tables, size_t count, unsigned members, unsigned rows)
{
    for (size_t t = 0; t < count; t++) {
        struct geometry geometry;
        make(&geometry, tables[t].level, tables[t].layout, members);
        for (unsigned r = 0; r < rows; r++) {
            char text[128];
            describe_row(&geometry, r, text, sizeof text);
            if (strcmp(text, tables[t].rows[r]) != 0)
                fail_msg("level %d layout %u row %u: \"%s\", the table says \"%s\"",
                         tables[t].level, tables[t].layout, r, text, tables[t].rows[r]);
        }
    }
}

static void
rows_agree_with_the_worked_tables_of_one_parity(void **state)
{
    check_tables(raid5_tables, ARRAY_LEN(raid5_tables), 4, 4);
}

static void
rows_agree_with_the_worked_tables_of_two_parities(void **state)
{
    check_tables(raid6_tables, ARRAY_LEN(raid6_tables), 5, 5);
}

/* ---- Properties ---- */

static void
check_row_is_a_permutation(const struct geometry *geometry)
{
    for (uint64_t r = 0; r < 2 * geometry->row_period; r++) {
        struct row row;
        geometry_row(geometry, r, &row);
        bool seen[MEMBERS_TOP] = {false};
        assert_true(row.p < geometry->members);
        seen[row.p] = true;
        if (geometry->parities == 2) {
            assert_true(row.q < geometry->members);
            assert_false(seen[row.q]);
            seen[row.q] = true;
        } else {
            assert_int_equal(row.q, NO_MEMBER);
        }
        for (unsigned d = 0; d < geometry->data_members; d++) {
            const unsigned m = geometry_data_member(geometry, &row, d);
            assert_true(m < geometry->members);
            assert_false(seen[m]);
            seen[m] = true;
            assert_int_equal(geometry_data_index(geometry, &row, m), d);
        }
        assert_int_equal(geometry_data_index(geometry, &row, row.p), NO_MEMBER);
        if (geometry->parities == 2)
            assert_int_equal(geometry_data_index(geometry, &row, row.q), NO_MEMBER);
    }
}

static void
every_row_uses_every_member_once_and_the_index_inverts(void **state)
{
    for_each_geometry(check_row_is_a_permutation);
}

static void
check_period(const struct geometry *geometry)
{
    const uint64_t far = (UINT64_MAX >> 20) / geometry->row_period * geometry->row_period;
    for (uint64_t r = 0; r < geometry->row_period; r++) {
        struct row first, later, distant;
        geometry_row(geometry, r, &first);
        geometry_row(geometry, r + geometry->row_period, &later);
        geometry_row(geometry, r + far, &distant);
        assert_int_equal(first.p, later.p);
        assert_int_equal(first.q, later.q);
        assert_int_equal(first.p, distant.p);
        assert_int_equal(first.q, distant.q);
    }
}

static void
rows_repeat_with_the_period(void **state)
{
    for_each_geometry(check_period);
}

/* The words of the format document, "The order of data in Q, in words", taken as a walk. */
static void
walk_exponents(const struct geometry *geometry, const struct row *row, unsigned exponents[])
{
    const unsigned n = geometry->members;
    if (geometry->layout >= 8 && geometry->layout <= 10) {
        unsigned number = 0;
        for (unsigned m = 0; m < n; m++)
            exponents[m] = number++;
        return;
    }
    unsigned next = 0;
    for (unsigned m = (row->q + 1) % n; m != row->q; m = (m + 1) % n) {
        if (m != row->p)
            exponents[m] = next++;
    }
    assert_int_equal(next, geometry->data_members);
}

static void
check_exponents(const struct geometry *geometry)
{
    for (uint64_t r = 0; r < geometry->row_period; r++) {
        struct row row;
        geometry_row(geometry, r, &row);
        unsigned walked[MEMBERS_TOP];
        if (geometry->parities == 2)
            walk_exponents(geometry, &row, walked);
        for (unsigned d = 0; d < geometry->data_members; d++) {
            const unsigned m = geometry_data_member(geometry, &row, d);
            const unsigned expected = geometry->parities == 2 ? walked[m] : d;
            assert_int_equal(geometry_q_exponent(geometry, &row, m), expected);
        }
    }
}

static void
exponents_follow_the_walk_from_q(void **state)
{
    for_each_geometry(check_exponents);
}

static void
check_mapping(const struct geometry *geometry)
{
    /* Two periods of rows; every chunk at its first and last byte and one between. */
    const uint64_t within[] = {0, 4096 + 17, CHUNK - 1};
    for (uint64_t chunk = 0; chunk < 2 * geometry->row_period * geometry->data_members; chunk++) {
        for (size_t i = 0; i < ARRAY_LEN(within); i++) {
            const uint64_t offset = chunk * CHUNK + within[i];
            struct place place;
            geometry_map(geometry, offset, &place);
            assert_int_equal(place.row, chunk / geometry->data_members);
            assert_int_equal(place.data_index, chunk % geometry->data_members);
            assert_int_equal(place.member_offset, place.row * CHUNK + within[i]);
            assert_int_equal(place.length, CHUNK - within[i]);
            assert_int_equal(geometry_row_at(geometry, place.member_offset), place.row);
            assert_int_equal(geometry_chunk_offset(geometry, place.row, place.data_index),
                             chunk * CHUNK);
            uint64_t back;
            assert_true(geometry_unmap(geometry, place.member, place.member_offset, &back));
            assert_int_equal(back, offset);
        }
    }
}

static void
unmapping_undoes_mapping(void **state)
{
    for_each_geometry(check_mapping);
}

/* From the members' side: each chunk is either parity or comes from exactly one array chunk. */
static void
check_members_are_covered_once(const struct geometry *geometry)
{
    const uint64_t rows = geometry->row_period;
    const uint64_t chunks = rows * geometry->data_members;
    uint8_t *seen = calloc(chunks, 1);
    assert_non_null(seen);
    uint64_t parity = 0;
    for (uint64_t r = 0; r < rows; r++) {
        for (unsigned m = 0; m < geometry->members; m++) {
            uint64_t offset;
            if (!geometry_unmap(geometry, m, r * CHUNK, &offset)) {
                parity++;
                continue;
            }
            assert_int_equal(offset % CHUNK, 0);
            assert_true(offset / CHUNK < chunks);
            assert_int_equal(seen[offset / CHUNK]++, 0);
        }
    }
    assert_int_equal(parity, rows * geometry->parities);
    for (uint64_t i = 0; i < chunks; i++)
        assert_int_equal(seen[i], 1);
    free(seen);
}

static void
every_member_chunk_is_parity_or_one_array_chunk(void **state)
{
    for_each_geometry(check_members_are_covered_once);
}

static void
the_last_byte_of_the_array_is_on_the_last_row(void **state)
{
    struct geometry geometry;
    make(&geometry, 6, 2, 7);
    assert_int_equal(geometry.member_bytes, 1000 * CHUNK);
    assert_int_equal(geometry.array_bytes, 5000 * CHUNK);
    assert_int_equal(geometry.rows, 1000);
    struct place place;
    geometry_map(&geometry, geometry.array_bytes - 1, &place);
    assert_int_equal(place.row, 999);
    assert_int_equal(place.data_index, 4);
    assert_int_equal(place.length, 1);
    assert_int_equal(place.member_offset, geometry.member_bytes - 1);
}

static void
mapping_reaches_arrays_of_exabytes(void **state)
{
    struct geometry geometry;
    const struct geometry_config config = {
        .level = 6, .layout = 10, .members = 6, .chunk_bytes = 4096, .size_bytes = 1ull << 60};
    assert_int_equal(geometry_init(&geometry, &config), 0);
    assert_int_equal(geometry.array_bytes, 1ull << 62);
    struct place place;
    uint64_t back;
    for (uint64_t offset = 1; offset < geometry.array_bytes; offset = offset * 3 + 4097) {
        geometry_map(&geometry, offset, &place);
        assert_true(geometry_unmap(&geometry, place.member, place.member_offset, &back));
        assert_int_equal(back, offset);
    }
}

/* ---- What is refused ---- */

static int
try(int level, unsigned layout, unsigned members, uint64_t chunk_bytes, uint64_t size_bytes)
{
    struct geometry geometry;
    const struct geometry_config config = {level, layout, members, chunk_bytes, size_bytes};
    return geometry_init(&geometry, &config);
}

static void
unknown_levels_and_layouts_are_not_supported(void **state)
{
    for (int level = -10; level < 20; level++) {
        for (unsigned layout = 0; layout < 300; layout++) {
            bool known = level == 4 || (level == 5 && layout <= 5);
            for (size_t i = 0; i < ARRAY_LEN(raid6_numbers); i++)
                known |= level == 6 && layout == raid6_numbers[i];
            assert_int_equal(try(level, layout, 5, CHUNK, GIB), known ? 0 : -ENOTSUP);
        }
    }
    assert_int_equal(try(5, UINT32_MAX, 5, CHUNK, GIB), -ENOTSUP);
}

static void
member_counts_have_bounds(void **state)
{
    assert_int_equal(try(4, 0, 1, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(4, 0, 2, CHUNK, GIB), 0);
    assert_int_equal(try(5, 2, 0, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(5, 2, 1, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(5, 2, 2, CHUNK, GIB), 0);
    assert_int_equal(try(5, 2, MEMBERS_MAX, CHUNK, GIB), 0);
    assert_int_equal(try(5, 2, MEMBERS_MAX + 1, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(6, 2, 3, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(6, 2, 4, CHUNK, GIB), 0);
    assert_int_equal(try(6, 2, MEMBERS_MAX, CHUNK, GIB), 0);
    /* g has order 255: in DDF's count the 256th member would share the exponent of the first. */
    assert_int_equal(try(6, 10, 255, CHUNK, GIB), 0);
    assert_int_equal(try(6, 10, 256, CHUNK, GIB), -EINVAL);
    assert_int_equal(try(6, 2, UINT32_MAX, CHUNK, GIB), -EINVAL);
}

static void
chunks_are_powers_of_two_of_a_block_or_more(void **state)
{
    assert_int_equal(try(5, 2, 3, 4096, GIB), 0);
    assert_int_equal(try(5, 2, 3, 512 * MIB, GIB), 0);
    assert_int_equal(try(5, 2, 3, 0, GIB), -EINVAL);
    assert_int_equal(try(5, 2, 3, 2048, GIB), -EINVAL);
    assert_int_equal(try(5, 2, 3, 96 * KIB, GIB), -EINVAL);
}

static void
sizes_need_a_chunk_and_must_not_overflow(void **state)
{
    assert_int_equal(try(5, 2, 3, CHUNK, 0), -EINVAL);
    assert_int_equal(try(5, 2, 3, CHUNK, CHUNK - 1), -EINVAL);
    assert_int_equal(try(5, 2, 3, CHUNK, CHUNK), 0);
    assert_int_equal(try(5, 2, 3, CHUNK, UINT64_MAX), -EINVAL);
    assert_int_equal(try(5, 2, 10, CHUNK, 1ull << 60), -EINVAL);
    assert_int_equal(try(5, 2, 2, CHUNK, INT64_MAX), 0);
}

/* ---- Names ---- */

static void
names_and_numbers_agree_both_ways(void **state)
{
    static const char *const raid6_names[] = {
        "left-asymmetric",   "right-asymmetric",  "left-symmetric",     "right-symmetric",
        "parity-first",      "parity-last",       "ddf-zero-restart",   "ddf-N-restart",
        "ddf-N-continue",    "left-asymmetric-6", "right-asymmetric-6", "left-symmetric-6",
        "right-symmetric-6", "parity-first-6",
    };
    static_assert(ARRAY_LEN(raid6_names) == ARRAY_LEN(raid6_numbers), "one name a number");
    unsigned layout;
    for (size_t i = 0; i < ARRAY_LEN(raid6_numbers); i++) {
        assert_string_equal(geometry_layout_name(6, raid6_numbers[i]), raid6_names[i]);
        assert_int_equal(geometry_layout_parse(6, raid6_names[i], &layout), 0);
        assert_int_equal(layout, raid6_numbers[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(raid5_numbers); i++) {
        assert_string_equal(geometry_layout_name(5, raid5_numbers[i]), raid6_names[i]);
        assert_int_equal(geometry_layout_parse(5, raid6_names[i], &layout), 0);
        assert_int_equal(layout, raid5_numbers[i]);
    }
}

static void
abbreviations_and_synonyms_are_mdadms(void **state)
{
    static const struct {
        int level;
        const char *name;
        unsigned layout;
    } cases[] = {
        {5, "la", 0},
        {5, "ra", 1},
        {5, "ls", 2},
        {5, "rs", 3},
        {6, "la", 0},
        {6, "ra", 1},
        {6, "ls", 2},
        {6, "rs", 3},
        {5, "default", 2},
        {6, "default", 2},
        {5, "ddf-N-restart", 0},
        {5, "ddf-zero-restart", 1},
        {5, "ddf-N-continue", 2},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        unsigned layout;
        assert_int_equal(geometry_layout_parse(cases[i].level, cases[i].name, &layout), 0);
        assert_int_equal(layout, cases[i].layout);
    }
}

static void
names_of_other_levels_are_refused(void **state)
{
    unsigned layout;
    assert_int_equal(geometry_layout_parse(5, "left-symmetric-6", &layout), -EINVAL);
    assert_int_equal(geometry_layout_parse(4, "left-symmetric", &layout), -EINVAL);
    assert_int_equal(geometry_layout_parse(4, "default", &layout), -EINVAL);
    assert_int_equal(geometry_layout_parse(6, "", &layout), -EINVAL);
    assert_int_equal(geometry_layout_parse(6, "left", &layout), -EINVAL);
    assert_null(geometry_layout_name(4, 0));
    assert_null(geometry_layout_name(5, 6));
    assert_null(geometry_layout_name(6, 7));
    assert_null(geometry_layout_name(1, 0));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_agree_with_the_worked_tables_of_one_parity),
        cmocka_unit_test(rows_agree_with_the_worked_tables_of_two_parities),
        cmocka_unit_test(every_row_uses_every_member_once_and_the_index_inverts),
        cmocka_unit_test(rows_repeat_with_the_period),
        cmocka_unit_test(exponents_follow_the_walk_from_q),
        cmocka_unit_test(unmapping_undoes_mapping),
        cmocka_unit_test(every_member_chunk_is_parity_or_one_array_chunk),
        cmocka_unit_test(the_last_byte_of_the_array_is_on_the_last_row),
        cmocka_unit_test(mapping_reaches_arrays_of_exabytes),
        cmocka_unit_test(unknown_levels_and_layouts_are_not_supported),
        cmocka_unit_test(member_counts_have_bounds),
        cmocka_unit_test(chunks_are_powers_of_two_of_a_block_or_more),
        cmocka_unit_test(sizes_need_a_chunk_and_must_not_overflow),
        cmocka_unit_test(names_and_numbers_agree_both_ways),
        cmocka_unit_test(abbreviations_and_synonyms_are_mdadms),
        cmocka_unit_test(names_of_other_levels_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
