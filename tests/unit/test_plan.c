/*
 * The plan of a stripe's write and of a read, over every case of small arrays: each block
 * untouched, partly or wholly written, each member readable or not, taking writes or not, parity
 * good or not.
 *
 * The judge is the definition: a plan is right when what it reads can be read, when what it needs
 * is read or can be reconstructed from what it reads, and when no way that the rules allow would
 * read less.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "stripe/plan.h"

#define N_MAX 6u

struct fixture {
    struct geometry geometry;
    struct row_shapes shapes;
    struct plan plan;
    uint64_t full[N_MAX], part[N_MAX], unreadable[N_MAX], writable[N_MAX], need[N_MAX], want[N_MAX],
        recover[N_MAX];
};

static void
fixture_init(struct fixture *f, int level, unsigned layout, unsigned members)
{
    const struct geometry_config config = {.level = level,
                                           .layout = layout,
                                           .members = members,
                                           .chunk_bytes = 4096,
                                           .size_bytes = 64 * 4096};

    memset(f, 0, sizeof *f);
    assert_int_equal(geometry_init(&f->geometry, &config), 0);
    assert_int_equal(row_shapes_init(&f->shapes, &f->geometry), 0);
    f->plan = (struct plan){.shapes = &f->shapes,
                            .first_row = 1,
                            .row_stripes = 1,
                            .members = members,
                            .unreadable = f->unreadable,
                            .writable = f->writable,
                            .need = f->need,
                            .want = f->want,
                            .recover = f->recover};
}

static bool
is_data(const struct row_shape *shape, unsigned m)
{
    return m != shape->p && m != shape->q;
}

/* Can every unreadable block of the stripe be had? */
static bool
recoverable(const struct fixture *f, const struct row_shape *shape)
{
    unsigned data = 0, parities = 0;

    for (unsigned m = 0; m < f->plan.members; ++m) {
        if (is_data(shape, m))
            data += (unsigned)f->unreadable[m] & 1;
        else
            parities += !(f->unreadable[m] & 1);
    }
    return data == 0 || ((f->plan.parity_known & 1) && data <= parities);
}

/* What the result must satisfy whatever was asked: returns blocks read. */
static unsigned
check_result(const struct fixture *f, const struct row_shape *shape)
{
    unsigned reads = 0, lost = 0, parity_read = 0, data_lost = 0;

    for (unsigned m = 0; m < f->plan.members; ++m) {
        assert_int_equal(f->want[m] & f->unreadable[m], 0);
        assert_int_equal(f->recover[m] & ~f->unreadable[m] & 1, 0);
        assert_int_equal(f->need[m] & ~(f->want[m] | f->recover[m]), 0);
        reads += (unsigned)f->want[m] & 1;
        lost += (unsigned)f->recover[m] & 1;
        if (is_data(shape, m))
            data_lost += (unsigned)f->recover[m] & 1;
        else
            parity_read += (unsigned)f->want[m] & 1;
    }
    if (lost > 0) {
        /* Everything readable of the data, and a parity for each lost data block. */
        for (unsigned m = 0; m < f->plan.members; ++m)
            if (is_data(shape, m))
                assert_true((f->want[m] | f->recover[m]) & 1);
        assert_true(parity_read >= data_lost);
        if (data_lost > 0)
            assert_true(f->plan.parity_known & 1); /* P2 */
    }
    return reads;
}

static unsigned
cheapest(const struct fixture *f, const struct row_shape *shape, bool *possible)
{
    unsigned by_data = 0, by_delta = 0, parities = 0, readable = 0, partial = 0;
    bool lost = false, partial_lost = false, delta_open = f->plan.parity_known & 1;

    for (unsigned m = 0; m < f->plan.members; ++m) {
        const bool unreadable = f->unreadable[m] & 1, full = f->full[m] & 1, part = f->part[m] & 1;

        readable += !unreadable;
        if (is_data(shape, m)) {
            by_data += !full;
            lost = lost || (!full && unreadable);
            partial += part;
            partial_lost = partial_lost || (part && unreadable);
            by_delta += full || part;
            delta_open = delta_open && !((full || part) && unreadable);
        } else if (f->writable[m] & 1) {
            ++parities;
            ++by_delta;
            delta_open = delta_open && !unreadable;
        }
    }
    if (parities == 0) {
        *possible = !partial_lost || recoverable(f, shape);
        return partial;
    }
    *possible = !lost || delta_open || recoverable(f, shape);
    if (!lost)
        return delta_open && by_delta < by_data ? by_delta : by_data;
    return delta_open ? by_delta : readable;
}

static void
check_write(struct fixture *f)
{
    const struct row_shape *shape = plan_shape(&f->plan, 0);
    bool possible;
    const unsigned least = cheapest(f, shape, &possible);
    unsigned reads, parities = 0;

    plan_write(&f->plan, 1, f->full, f->part);
    assert_int_equal(f->plan.failed & 1, possible ? 0 : 1);
    if (f->plan.failed) {
        assert_int_equal(f->plan.by_data | f->plan.by_delta, 0); /* P3 */
        return;
    }
    reads = check_result(f, shape);
    for (unsigned m = 0; m < f->plan.members; ++m)
        parities += !is_data(shape, m) && (f->writable[m] & 1);
    assert_int_equal((f->plan.by_data | f->plan.by_delta) & 1, parities > 0);
    assert_int_equal(f->plan.by_data & f->plan.by_delta, 0);
    assert_true(reads <= least);
    for (unsigned m = 0; m < f->plan.members; ++m) {
        if (f->part[m] & 1)
            assert_true(f->need[m] & 1);
        if (f->plan.by_data && is_data(shape, m) && !(f->full[m] & 1))
            assert_true(f->need[m] & 1);
        if (f->plan.by_delta) {
            assert_true(f->plan.parity_known & 1); /* P1 */
            if (is_data(shape, m) ? (f->full[m] | f->part[m]) & 1 : f->writable[m] & 1)
                assert_true(f->need[m] & f->want[m] & 1);
        }
    }
}

/* Every block in one of its states: untouched, part, full (data only) x readable, unreadable but
 * writable, gone. */
static void
every_case(int level, unsigned layout, unsigned members, void (*check)(struct fixture *))
{
    struct fixture f;
    unsigned cases = 1, checked = 0;

    fixture_init(&f, level, layout, members);
    for (unsigned m = 0; m < members; ++m)
        cases *= 9;
    for (unsigned c = 0; c < cases; ++c) {
        const struct row_shape *shape = plan_shape(&f.plan, 0);
        unsigned rest = c;
        bool touched = false, legal = true;

        for (unsigned m = 0; m < members; ++m, rest /= 9) {
            const unsigned write = rest % 3, state = rest / 3 % 3;

            legal = legal && (write == 0 || is_data(shape, m));
            touched = touched || write != 0;
            f.part[m] = write == 1;
            f.full[m] = write == 2;
            f.unreadable[m] = state != 0;
            f.writable[m] = state == 2 ? 0 : ~UINT64_C(0);
        }
        if (!legal || !touched)
            continue;
        for (unsigned known = 0; known < 2; ++known, ++checked) {
            f.plan.parity_known = known;
            check(&f);
        }
    }
    assert_true(checked > 0);
    row_shapes_fini(&f.shapes);
}

static void
write_reads_least_and_only_what_is_readable_raid5(void **state)
{
    (void)state;
    for (unsigned members = 2; members <= 5; ++members)
        every_case(5, 2, members, check_write);
}

static void
write_reads_least_and_only_what_is_readable_raid6(void **state)
{
    (void)state;
    every_case(6, 2, 4, check_write);
    every_case(6, 0, 5, check_write);
    every_case(6, 8, 5, check_write);
}

static void
check_read(struct fixture *f)
{
    const struct row_shape *shape = plan_shape(&f->plan, 0);
    uint64_t asked[N_MAX];
    bool missing = false;

    for (unsigned m = 0; m < f->plan.members; ++m) {
        asked[m] = f->need[m] = (f->full[m] | f->part[m]) & 1;
        missing = missing || (asked[m] & f->unreadable[m]);
    }
    plan_read(&f->plan, 1);
    assert_int_equal(f->plan.failed & 1, missing && !recoverable(f, shape));
    if (f->plan.failed)
        return;
    (void)check_result(f, shape);
    for (unsigned m = 0; m < f->plan.members; ++m) {
        assert_true(!asked[m] || ((f->want[m] | f->recover[m]) & 1));
        if (!missing)
            assert_int_equal(f->want[m], asked[m]);
    }
}

static void
read_reconstructs_only_what_is_missing(void **state)
{
    (void)state;
    every_case(5, 2, 4, check_read);
    every_case(6, 2, 5, check_read);
}

/* Data stands in the order of the exponents, whatever the layout, and gaps are kept. */
static void
shape_orders_data_by_exponent(void **state)
{
    static const unsigned layouts[] = {0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20};

    (void)state;
    for (unsigned l = 0; l < ARRAY_LEN(layouts); ++l) {
        struct fixture f;

        fixture_init(&f, 6, layouts[l], 6);
        for (unsigned phase = 0; phase < f.shapes.period; ++phase) {
            const struct row_shape *shape = &f.shapes.shapes[phase];
            struct row row;
            unsigned last = 0;

            geometry_row(&f.geometry, phase, &row);
            for (unsigned i = 0; i < shape->data_count; ++i) {
                const unsigned exponent = geometry_q_exponent(&f.geometry, &row, shape->data[i]);

                assert_true(i == 0 || exponent > last);
                last = exponent;
                assert_int_equal(exponent, shape->exponents != NULL ? shape->exponents[i] : i);
            }
        }
        row_shapes_fini(&f.shapes);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_reads_least_and_only_what_is_readable_raid5),
        cmocka_unit_test(write_reads_least_and_only_what_is_readable_raid6),
        cmocka_unit_test(read_reconstructs_only_what_is_missing),
        cmocka_unit_test(shape_orders_data_by_exponent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
