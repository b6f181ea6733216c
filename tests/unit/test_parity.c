/*
 * Parity against the vectors of the format document and against a model that
 * does everything byte by byte with shift-and-add arithmetic of its own.
 *
 * Blocks are taken from one arena; each is 64-aligned but, on purpose, mostly
 * not page-aligned, and is followed by a guard that no call may change.
 */
#include "geometry/geometry.h"
#include "parity/parity.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define MEMBERS_TOP 20u
#define GUARD_BYTES 64u
#define GUARD_VALUE 0xa5

/* ---- The model ---- */

static uint8_t
model_multiply(uint8_t a, uint8_t b)
{
    unsigned sum = 0;
    unsigned shifted = a;
    for (unsigned bit = 0; bit < 8; bit++) {
        if (b >> bit & 1)
            sum ^= shifted;
        shifted <<= 1;
        if (shifted & 0x100)
            shifted ^= 0x11d;
    }
    return (uint8_t)sum;
}

static uint8_t
model_power(unsigned exponent)
{
    uint8_t result = 1;
    while (exponent-- > 0)
        result = model_multiply(result, 2);
    return result;
}

static void
model_pq(const struct parity_stripe *stripe, uint8_t *p, uint8_t *q)
{
    memset(p, 0, stripe->bytes);
    memset(q, 0, stripe->bytes);
    for (unsigned i = 0; i < stripe->data_count; i++) {
        const uint8_t *data = stripe->data[i];
        const uint8_t weight = model_power(stripe->exponents == NULL ? i : stripe->exponents[i]);
        uint8_t products[256];
        for (unsigned value = 0; value < 256; value++)
            products[value] = model_multiply((uint8_t)value, weight);
        for (size_t at = 0; at < stripe->bytes; at++) {
            p[at] ^= data[at];
            q[at] ^= products[data[at]];
        }
    }
}

/* ---- Blocks ---- */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t
random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void
fill_random(void *block, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 8) {
        const uint64_t value = random_next();
        memcpy((uint8_t *)block + at, &value, 8);
    }
}

struct arena {
    uint8_t *start;
    size_t bytes; /* of a block */
    size_t pitch;
    unsigned count;
};

static void
arena_setup(struct arena *arena, unsigned count, size_t bytes)
{
    arena->bytes = bytes;
    arena->pitch = bytes + GUARD_BYTES;
    arena->count = count;
    arena->start = aligned_alloc(4096, round_up(arena->pitch * count, 4096));
    assert_non_null(arena->start);
    for (unsigned i = 0; i < count; i++)
        memset(arena->start + i * arena->pitch + bytes, GUARD_VALUE, GUARD_BYTES);
}

static void *
arena_block(const struct arena *arena, unsigned i)
{
    assert_true(i < arena->count);
    return arena->start + i * arena->pitch;
}

static void
arena_teardown(struct arena *arena)
{
    for (unsigned i = 0; i < arena->count; i++) {
        const uint8_t *guard = arena->start + i * arena->pitch + arena->bytes;
        for (unsigned at = 0; at < GUARD_BYTES; at++)
            assert_int_equal(guard[at], GUARD_VALUE);
    }
    free(arena->start);
}

/* A stripe of random data with the model's parity, and a copy of all of it. */
struct sample {
    struct arena arena;
    struct parity_stripe stripe;
    void *data[PARITY_DATA_MAX];
    uint8_t exponents[PARITY_DATA_MAX];
    uint8_t *good; /* data blocks, then P, then Q, densely */
};

static void
sample_setup(struct sample *sample, unsigned data_count, size_t bytes)
{
    arena_setup(&sample->arena, data_count + 2, bytes);
    for (unsigned i = 0; i < data_count; i++) {
        sample->data[i] = arena_block(&sample->arena, i);
        sample->exponents[i] = (uint8_t)i;
    }
    sample->stripe = (struct parity_stripe){
        .data_count = data_count,
        .data = sample->data,
        .exponents = sample->exponents,
        .p = arena_block(&sample->arena, data_count),
        .q = arena_block(&sample->arena, data_count + 1),
        .bytes = bytes,
    };
    sample->good = malloc((data_count + 2) * bytes);
    assert_non_null(sample->good);
}

static uint8_t *
sample_good(const struct sample *sample, unsigned i)
{
    return sample->good + i * sample->stripe.bytes;
}

/* New data; the parity buffers get the model's. */
static void
sample_fill(struct sample *sample)
{
    const struct parity_stripe *stripe = &sample->stripe;
    const unsigned n = stripe->data_count;
    for (unsigned i = 0; i < n; i++) {
        fill_random(stripe->data[i], stripe->bytes);
        memcpy(sample_good(sample, i), stripe->data[i], stripe->bytes);
    }
    model_pq(stripe, sample_good(sample, n), sample_good(sample, n + 1));
    memcpy(arena_block(&sample->arena, n), sample_good(sample, n), stripe->bytes);
    memcpy(arena_block(&sample->arena, n + 1), sample_good(sample, n + 1), stripe->bytes);
}

static void
sample_is_good(const struct sample *sample, bool with_q)
{
    const unsigned blocks = sample->stripe.data_count + (with_q ? 2 : 1);
    for (unsigned i = 0; i < blocks; i++)
        assert_memory_equal(arena_block(&sample->arena, i), sample_good(sample, i),
                            sample->stripe.bytes);
}

static void
sample_teardown(struct sample *sample)
{
    free(sample->good);
    arena_teardown(&sample->arena);
}

/* ---- The vectors of the format document ---- */

static void
the_models_arithmetic_has_the_documents_numbers(void **state)
{
    static const uint8_t powers[] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80,
                                     0x1d, 0x3a, 0x74, 0xe8, 0xcd, 0x87, 0x13, 0x26};
    for (unsigned e = 0; e < ARRAY_LEN(powers); e++)
        assert_int_equal(model_power(e), powers[e]);
    assert_int_equal(model_power(25), 0x03);
    assert_int_equal(model_power(254), 0x8e);
    assert_int_equal(model_power(255), 1);
    assert_int_equal(model_multiply(2, 0x8e), 1);
    assert_int_equal(model_multiply(3, 0xf4), 1);
    assert_int_equal(model_multiply(0x53, 0xca), 0x8f);
}

/* Blocks of 64 bytes that repeat four bytes, written as the document writes them. */
static void
fill_word(void *block, uint32_t word)
{
    for (unsigned at = 0; at < 64; at++)
        ((uint8_t *)block)[at] = (uint8_t)(word >> (8 * (3 - at % 4)));
}

static void
has_word(const void *block, uint32_t word)
{
    uint8_t expected[64];
    fill_word(expected, word);
    assert_memory_equal(block, expected, sizeof expected);
}

static void
parity_has_the_documents_vectors(void **state)
{
    static const struct {
        unsigned count;
        uint32_t data[4];
        unsigned first_exponent;
        uint32_t p, q;
    } vectors[] = {
        {3, {0x0100ff80, 0x02000f40, 0x04aaf020}, 0, 0x07aa00e0, 0x15920680},
        {4, {0x11223344, 0x55667788, 0x99aabbcc, 0xddeeff00}, 0, 0x00000000, 0x435fa05e},
        {4, {0x11223344, 0x55667788, 0x99aabbcc, 0xddeeff00}, 1, 0x00000000, 0x86be5dbc},
    };
    for (size_t v = 0; v < ARRAY_LEN(vectors); v++) {
        struct sample sample;
        sample_setup(&sample, vectors[v].count, 64);
        for (unsigned i = 0; i < vectors[v].count; i++) {
            fill_word(sample.data[i], vectors[v].data[i]);
            sample.exponents[i] = (uint8_t)(vectors[v].first_exponent + i);
        }
        parity_compute(&sample.stripe);
        has_word(sample.stripe.p, vectors[v].p);
        has_word(sample.stripe.q, vectors[v].q);

        fill_word(sample.data[0], 0xffffffff);
        fill_word(sample.data[2], 0xffffffff);
        parity_recover(&sample.stripe, 2, (const unsigned[]){0, 2});
        has_word(sample.data[0], vectors[v].data[0]);
        has_word(sample.data[2], vectors[v].data[2]);
        sample_teardown(&sample);
    }
}

/* RAID-6 of 5 members, data chunk c full of c + 1: Q tells the order of the exponents. */
static void
every_layout_has_the_documents_q(void **state)
{
    static const uint8_t p[5] = {0x00, 0x07, 0x06, 0x0d, 0x0c};
    static const struct {
        unsigned layout;
        uint8_t q[5];
    } cases[] = {
        {0, {0x09, 0x16, 0x27, 0x3b, 0x2d}},  {1, {0x09, 0x19, 0x27, 0x2c, 0x2d}},
        {2, {0x09, 0x16, 0x33, 0x2c, 0x2d}},  {3, {0x09, 0x16, 0x33, 0x2c, 0x2d}},
        {4, {0x09, 0x16, 0x33, 0x2c, 0x2d}},  {5, {0x09, 0x16, 0x33, 0x2c, 0x2d}},
        {16, {0x09, 0x16, 0x33, 0x2c, 0x2d}}, {17, {0x09, 0x16, 0x33, 0x2c, 0x2d}},
        {20, {0x09, 0x16, 0x33, 0x2c, 0x2d}}, {8, {0x24, 0x4c, 0x87, 0x2c, 0x5a}},
        {9, {0x09, 0x6e, 0xd7, 0xb0, 0x5a}},  {10, {0x09, 0x49, 0xb1, 0xb0, 0x5a}},
        {18, {0x09, 0x19, 0x27, 0x2c, 0x2d}}, {19, {0x09, 0x1a, 0x06, 0x2c, 0x2d}},
    };
    struct sample sample;
    sample_setup(&sample, 3, 64);
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct geometry geometry;
        const struct geometry_config config = {6, cases[c].layout, 5, 4096, 5 * 4096};
        assert_int_equal(geometry_init(&geometry, &config), 0);
        for (unsigned r = 0; r < 5; r++) {
            struct row row;
            geometry_row(&geometry, r, &row);
            for (unsigned d = 0; d < 3; d++) {
                memset(sample.data[d], (int)(r * 3 + d + 1), 64);
                sample.exponents[d] = (uint8_t)geometry_q_exponent(
                    &geometry, &row, geometry_data_member(&geometry, &row, d));
            }
            parity_compute(&sample.stripe);
            has_word(sample.stripe.p, p[r] * 0x01010101u);
            has_word(sample.stripe.q, cases[c].q[r] * 0x01010101u);
        }
    }
    sample_teardown(&sample);
}

/* ---- Against the model ---- */

static const size_t lengths[] = {64, 128, 192, 1024, 1088, 4032, 4096, 4160, 8256, 65536};

static void
computing_agrees_with_the_model_for_every_count_and_length(void **state)
{
    for (size_t l = 0; l < ARRAY_LEN(lengths); l++) {
        for (unsigned n = 1; n <= MEMBERS_TOP; n++) {
            struct sample sample;
            sample_setup(&sample, n, lengths[l]);
            sample_fill(&sample);

            memset(sample.stripe.p, 0x5a, lengths[l]);
            memset(sample.stripe.q, 0x5a, lengths[l]);
            parity_compute(&sample.stripe);
            sample_is_good(&sample, true);

            struct parity_stripe part = sample.stripe;
            part.exponents = NULL;
            memset(part.p, 0x5a, lengths[l]);
            memset(part.q, 0x5a, lengths[l]);
            parity_compute(&part);
            sample_is_good(&sample, true);

            part.q = NULL;
            memset(part.p, 0x5a, lengths[l]);
            parity_compute(&part);
            sample_is_good(&sample, true);

            part = sample.stripe;
            part.p = NULL;
            memset(part.q, 0x5a, lengths[l]);
            parity_compute(&part);
            sample_is_good(&sample, true);
            sample_teardown(&sample);
        }
    }
}

static void
computing_takes_exponents_in_any_order_with_gaps(void **state)
{
    for (unsigned round = 0; round < 300; round++) {
        const unsigned n = 1 + (unsigned)(random_next() % 24);
        uint8_t order[PARITY_DATA_MAX];
        for (unsigned i = 0; i < PARITY_DATA_MAX; i++)
            order[i] = (uint8_t)i;
        for (unsigned i = 0; i < n; i++) {
            const unsigned other = i + (unsigned)(random_next() % (PARITY_DATA_MAX - i));
            const uint8_t kept = order[i];
            order[i] = order[other];
            order[other] = kept;
        }
        struct sample sample;
        sample_setup(&sample, n, lengths[round % 9]);
        memcpy(sample.exponents, order, n);
        sample_fill(&sample);
        memset(sample.stripe.p, 0, sample.stripe.bytes);
        memset(sample.stripe.q, 0, sample.stripe.bytes);
        parity_compute(&sample.stripe);
        sample_is_good(&sample, true);
        sample_teardown(&sample);
    }
}

static void
computing_and_recovering_work_at_255_data_members(void **state)
{
    struct sample sample;
    sample_setup(&sample, PARITY_DATA_MAX, 4096);
    for (unsigned i = 0; i < PARITY_DATA_MAX; i++)
        sample.exponents[i] = (uint8_t)(PARITY_DATA_MAX - 1 - i);
    sample_fill(&sample);
    memset(sample.stripe.p, 0, 4096);
    memset(sample.stripe.q, 0, 4096);
    parity_compute(&sample.stripe);
    sample_is_good(&sample, true);
    memset(sample.data[0], 0, 4096);
    memset(sample.data[254], 0, 4096);
    parity_recover(&sample.stripe, 2, (const unsigned[]){254, 0});
    sample_is_good(&sample, true);
    memset(sample.data[100], 0, 4096);
    parity_recover(&sample.stripe, 1, (const unsigned[]){100});
    sample_is_good(&sample, true);
    sample_teardown(&sample);
}

static void
a_single_data_member_is_copied_to_p(void **state)
{
    struct sample sample;
    sample_setup(&sample, 1, 4096);
    sample_fill(&sample);
    sample.stripe.q = NULL;
    sample.stripe.exponents = NULL;
    memset(sample.stripe.p, 0, 4096);
    parity_compute(&sample.stripe);
    assert_memory_equal(sample.stripe.p, sample.data[0], 4096);
    memset(sample.data[0], 0, 4096);
    parity_recover(&sample.stripe, 1, (const unsigned[]){0});
    sample_is_good(&sample, false);
    assert_int_equal(parity_check(&sample.stripe), 0);
    sample_teardown(&sample);
}

/* ---- Checking ---- */

static void
checking_names_the_parity_that_disagrees_wherever_the_byte_is(void **state)
{
    for (size_t l = 0; l < ARRAY_LEN(lengths); l++) {
        for (unsigned n = 1; n <= 8; n++) {
            struct sample sample;
            sample_setup(&sample, n, lengths[l]);
            if (n > 2)
                sample.exponents[n - 1] = 40; /* A gap. */
            sample_fill(&sample);
            const struct parity_stripe *stripe = &sample.stripe;
            struct parity_stripe single = *stripe;
            single.q = NULL;
            assert_int_equal(parity_check(stripe), 0);
            assert_int_equal(parity_check(&single), 0);
            for (size_t at = 0; at < lengths[l]; at = at * 2 + 31) {
                ((uint8_t *)stripe->p)[at] ^= 0x80;
                assert_int_equal(parity_check(stripe), PARITY_MISMATCH_P);
                assert_int_equal(parity_check(&single), PARITY_MISMATCH_P);
                ((uint8_t *)stripe->p)[at] ^= 0x80;
                ((uint8_t *)stripe->q)[lengths[l] - 1 - at] ^= 1;
                assert_int_equal(parity_check(stripe), PARITY_MISMATCH_Q);
                assert_int_equal(parity_check(&single), 0);
                ((uint8_t *)stripe->q)[lengths[l] - 1 - at] ^= 1;
                ((uint8_t *)stripe->data[n / 2])[at] ^= 4;
                assert_int_equal(parity_check(stripe), PARITY_MISMATCH_P | PARITY_MISMATCH_Q);
                ((uint8_t *)stripe->data[n / 2])[at] ^= 4;
            }
            sample_is_good(&sample, true);
            sample_teardown(&sample);
        }
    }
}

/* ---- Recovering ---- */

/* Lose the blocks (numbers as in sample_good), recover them, and compare everything. */
static void
lose_and_recover(struct sample *sample, unsigned count, const unsigned lost[])
{
    const unsigned n = sample->stripe.data_count;
    unsigned named[2];
    for (unsigned i = 0; i < count; i++) {
        named[i] = lost[i] == n ? PARITY_LOST_P : lost[i] == n + 1 ? PARITY_LOST_Q : lost[i];
        fill_random(arena_block(&sample->arena, lost[i]), sample->stripe.bytes);
    }
    parity_recover(&sample->stripe, count, named);
    sample_is_good(sample, sample->stripe.q != NULL);
}

/* The same when only the first of two lost blocks is wanted back. */
static void
lose_two_and_recover_one(struct sample *sample, unsigned wanted, unsigned other)
{
    const unsigned n = sample->stripe.data_count;
    const struct parity_stripe whole = sample->stripe;
    void *const other_data = other < n ? sample->data[other] : NULL;
    if (other < n)
        sample->data[other] = NULL;
    else if (other == n)
        sample->stripe.p = NULL;
    else
        sample->stripe.q = NULL;
    const unsigned blocks[] = {wanted, other};
    unsigned named[2];
    for (unsigned i = 0; i < 2; i++)
        named[i] = blocks[i] == n ? PARITY_LOST_P : blocks[i] == n + 1 ? PARITY_LOST_Q : blocks[i];
    memset(arena_block(&sample->arena, wanted), 0x77, whole.bytes);
    parity_recover(&sample->stripe, 2, named);
    assert_memory_equal(arena_block(&sample->arena, wanted), sample_good(sample, wanted),
                        whole.bytes);
    if (other < n)
        sample->data[other] = other_data;
    sample->stripe = whole;
}

static void
recover_all_single_losses(struct sample *sample)
{
    const unsigned blocks = sample->stripe.data_count + (sample->stripe.q != NULL ? 2 : 1);
    for (unsigned x = 0; x < blocks; x++)
        lose_and_recover(sample, 1, &x);
}

static void
recover_all_double_losses(struct sample *sample)
{
    const unsigned blocks = sample->stripe.data_count + 2;
    for (unsigned x = 0; x < blocks; x++) {
        for (unsigned y = 0; y < blocks; y++) {
            if (x == y)
                continue;
            lose_and_recover(sample, 2, (const unsigned[]){x, y});
            lose_two_and_recover_one(sample, x, y);
        }
    }
}

static void
any_lost_member_comes_back_in_every_layout_of_one_parity(void **state)
{
    for (unsigned members = 2; members <= MEMBERS_TOP; members++) {
        struct sample sample;
        sample_setup(&sample, members - 1, 192);
        sample_fill(&sample);
        sample.stripe.q = NULL;
        sample.stripe.exponents = NULL;
        recover_all_single_losses(&sample);
        lose_and_recover(&sample, 0, NULL);
        sample_teardown(&sample);
    }
}

static void
any_two_lost_members_come_back_in_every_layout_of_two_parities(void **state)
{
    static const unsigned layouts[] = {0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20};
    for (unsigned members = 4; members <= MEMBERS_TOP; members++) {
        for (size_t l = 0; l < ARRAY_LEN(layouts); l++) {
            struct geometry geometry;
            const struct geometry_config config = {6, layouts[l], members, 4096, GIB};
            assert_int_equal(geometry_init(&geometry, &config), 0);
            struct sample sample;
            sample_setup(&sample, members - 2, 192);
            for (unsigned r = 0; r < geometry.row_period; r++) {
                struct row row;
                geometry_row(&geometry, r, &row);
                bool is_new = r == 0;
                for (unsigned d = 0; d < members - 2; d++) {
                    const unsigned exponent = geometry_q_exponent(
                        &geometry, &row, geometry_data_member(&geometry, &row, d));
                    is_new |= sample.exponents[d] != exponent;
                    sample.exponents[d] = (uint8_t)exponent;
                }
                /* Where the exponents are those of the row before, so are the equations. */
                if (!is_new)
                    continue;
                sample_fill(&sample);
                recover_all_single_losses(&sample);
                recover_all_double_losses(&sample);
            }
            sample_teardown(&sample);
        }
    }
}

static void
recovery_works_for_every_length(void **state)
{
    for (size_t l = 0; l < ARRAY_LEN(lengths); l++) {
        struct sample sample;
        sample_setup(&sample, 4, lengths[l]);
        sample.exponents[2] = 7;
        sample_fill(&sample);
        recover_all_single_losses(&sample);
        recover_all_double_losses(&sample);
        sample_teardown(&sample);
    }
}

static void
every_pair_of_exponents_can_be_lost(void **state)
{
    struct sample sample;
    sample_setup(&sample, 2, 64);
    for (unsigned x = 0; x < 255; x++) {
        for (unsigned y = 0; y < 255; y++) {
            if (x == y)
                continue;
            sample.exponents[0] = (uint8_t)x;
            sample.exponents[1] = (uint8_t)y;
            sample_fill(&sample);
            lose_and_recover(&sample, 2, (const unsigned[]){0, 1});
            lose_and_recover(&sample, 2, (const unsigned[]){1, 2});
            lose_and_recover(&sample, 2, (const unsigned[]){0, 3});
        }
    }
    sample_teardown(&sample);
}

/* ---- Updating ---- */

/* Change the data named by the bits of `subset`, and see that the updated parity is the model's. */
static void
update_subset(struct sample *sample, unsigned subset, bool in_place, bool known_difference)
{
    const struct parity_stripe *stripe = &sample->stripe;
    const unsigned n = stripe->data_count;
    struct arena olds, news;
    arena_setup(&olds, n + 2, stripe->bytes);
    arena_setup(&news, 2, stripe->bytes);

    struct parity_change changes[PARITY_DATA_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < n; i++) {
        if (!(subset >> i & 1))
            continue;
        uint8_t *old = arena_block(&olds, i);
        uint8_t *data = stripe->data[i];
        memcpy(old, data, stripe->bytes);
        fill_random(data, stripe->bytes);
        changes[count] = (struct parity_change){old, data, sample->exponents[i]};
        if (known_difference) {
            for (size_t at = 0; at < stripe->bytes; at++)
                old[at] ^= data[at];
            changes[count].old = NULL;
            changes[count].new = old;
        }
        count++;
    }
    model_pq(stripe, sample_good(sample, n), sample_good(sample, n + 1));

    const struct parity_update both = {
        .changes_count = count,
        .changes = changes,
        .p_old = stripe->p,
        .p_new = in_place ? stripe->p : arena_block(&news, 0),
        .q_old = stripe->q,
        .q_new = in_place ? stripe->q : arena_block(&news, 1),
        .bytes = stripe->bytes,
    };
    if (in_place) {
        parity_apply(&both);
    } else {
        /* One at a time, and then both: the old ones stay as they are. */
        struct parity_update one = both;
        one.q_old = one.q_new = NULL;
        parity_apply(&one);
        assert_memory_equal(both.p_new, sample_good(sample, n), stripe->bytes);
        one = both;
        one.p_old = one.p_new = NULL;
        parity_apply(&one);
        assert_memory_equal(both.q_new, sample_good(sample, n + 1), stripe->bytes);
        memset(both.p_new, 0, stripe->bytes);
        memset(both.q_new, 0, stripe->bytes);
        parity_apply(&both);
    }
    assert_memory_equal(both.p_new, sample_good(sample, n), stripe->bytes);
    assert_memory_equal(both.q_new, sample_good(sample, n + 1), stripe->bytes);
    memcpy(stripe->p, sample_good(sample, n), stripe->bytes);
    memcpy(stripe->q, sample_good(sample, n + 1), stripe->bytes);
    arena_teardown(&olds);
    arena_teardown(&news);
}

static void
an_update_of_any_subset_equals_recomputing(void **state)
{
    for (unsigned n = 1; n <= 6; n++) {
        struct sample sample;
        sample_setup(&sample, n, 192);
        for (unsigned i = 0; i < n; i++)
            sample.exponents[i] = (uint8_t)((i * 5 + 3) % 17);
        sample_fill(&sample);
        for (unsigned subset = 0; subset < 1u << n; subset++) {
            update_subset(&sample, subset, false, false);
            update_subset(&sample, subset, true, false);
            update_subset(&sample, subset, true, true);
        }
        sample_teardown(&sample);
    }
}

static void
an_update_of_any_size_and_length_equals_recomputing(void **state)
{
    struct sample sample;
    for (size_t l = 0; l < ARRAY_LEN(lengths); l++) {
        sample_setup(&sample, 18, lengths[l]);
        sample_fill(&sample);
        for (unsigned size = 0; size <= 18; size++) {
            update_subset(&sample, (1u << size) - 1, l % 2 == 0, size % 2 == 0);
        }
        sample_teardown(&sample);
    }
}

static void
an_update_of_p_alone_works_in_place_and_beyond_one_batch(void **state)
{
    struct sample sample;
    sample_setup(&sample, PARITY_DATA_MAX, 128);
    sample_fill(&sample);
    struct parity_change changes[PARITY_DATA_MAX];
    uint8_t *after = aligned_alloc(64, PARITY_DATA_MAX * 128);
    assert_non_null(after);
    fill_random(after, PARITY_DATA_MAX * 128);
    for (unsigned i = 0; i < PARITY_DATA_MAX; i++)
        changes[i] = (struct parity_change){sample.data[i], after + i * 128, 0};
    const struct parity_update update = {
        .changes_count = PARITY_DATA_MAX,
        .changes = changes,
        .p_old = sample.stripe.p,
        .p_new = sample.stripe.p,
        .bytes = 128,
    };
    parity_apply(&update);
    for (unsigned i = 0; i < PARITY_DATA_MAX; i++)
        memcpy(sample.data[i], after + i * 128, 128);
    model_pq(&sample.stripe, sample_good(&sample, PARITY_DATA_MAX),
             sample_good(&sample, PARITY_DATA_MAX + 1));
    assert_memory_equal(sample.stripe.p, sample_good(&sample, PARITY_DATA_MAX), 128);
    free(after);
    sample_teardown(&sample);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_models_arithmetic_has_the_documents_numbers),
        cmocka_unit_test(parity_has_the_documents_vectors),
        cmocka_unit_test(every_layout_has_the_documents_q),
        cmocka_unit_test(computing_agrees_with_the_model_for_every_count_and_length),
        cmocka_unit_test(computing_takes_exponents_in_any_order_with_gaps),
        cmocka_unit_test(computing_and_recovering_work_at_255_data_members),
        cmocka_unit_test(a_single_data_member_is_copied_to_p),
        cmocka_unit_test(checking_names_the_parity_that_disagrees_wherever_the_byte_is),
        cmocka_unit_test(any_lost_member_comes_back_in_every_layout_of_one_parity),
        cmocka_unit_test(any_two_lost_members_come_back_in_every_layout_of_two_parities),
        cmocka_unit_test(recovery_works_for_every_length),
        cmocka_unit_test(every_pair_of_exponents_can_be_lost),
        cmocka_unit_test(an_update_of_any_subset_equals_recomputing),
        cmocka_unit_test(an_update_of_any_size_and_length_equals_recomputing),
        cmocka_unit_test(an_update_of_p_alone_works_in_place_and_beyond_one_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
