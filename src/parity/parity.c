/*
 * parity.c: parity on ISA-L's kernels.
 *
 * Two of them do everything:
 *   - pq_gen and xor_gen, at memory speed, for computing parity. pq_gen gives
 *     its i-th source the exponent i, so a block goes to the slot of its
 *     exponent and the slots between are shown a block of zeros.
 *   - ec_encode_data, a matrix over GF(2^8) times a vector of blocks, for
 *     whatever needs other coefficients. Reading "lost = a * P + b * Q + sum of
 *     c * D" as one row of such a matrix makes every recovery one pass over the
 *     stripe, without scratch blocks.
 *
 * ISA-L asks for at least two sources; where there is one, zeros are the other.
 * Its outputs may be among its inputs: every kernel reads all its sources at
 * one position before it writes there, and lengths that are multiples of 64
 * leave no tail to be done again with overlap (tests/unit/test_parity.c holds
 * it to that).
 */
#include "parity/parity.h"

#include <isa-l/erasure_code.h>
#include <isa-l/raid.h>

/* Work is done in pieces of at most this where the zeros stand in for a block. */
#define ZEROS_BYTES 4096u

/* ISA-L takes an int; also a multiple of ZEROS_BYTES. */
#define PIECE_BYTES_MAX (1u << 30)

/* parity_check computes this much at a time, on the stack. */
#define CHECK_BYTES 1024u

#define NO_DATA UINT32_MAX

static const uint8_t zeros[ZEROS_BYTES] __attribute__((aligned(PARITY_ALIGN)));

/* ISA-L's prototypes lack the const of what they only read. */
static void *
unconst(const void *pointer)
{
    return (void *)(uintptr_t)pointer;
}

static bool
is_aligned(const void *pointer)
{
    return ((uintptr_t)pointer & (PARITY_ALIGN - 1)) == 0;
}

static unsigned
exponent_of(const struct parity_stripe *stripe, unsigned i)
{
    return stripe->exponents == NULL ? i : stripe->exponents[i];
}

/* g^exponent. */
static uint8_t
power(unsigned exponent)
{
    uint8_t result = 1;
    uint8_t factor = 2;
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1)
            result = gf_mul(result, factor);
        factor = gf_mul(factor, factor);
    }
    return result;
}

static uint8_t
divide(uint8_t a, uint8_t b)
{
    assert(b != 0);
    return gf_mul(a, gf_inv(b));
}

static void
stripe_validate(const struct parity_stripe *stripe)
{
    assert(stripe->data_count >= 1);
    assert(stripe->data_count <= PARITY_DATA_MAX);
    assert(stripe->bytes > 0);
    assert(stripe->bytes % PARITY_ALIGN == 0);
    assert(is_aligned(stripe->p));
    assert(is_aligned(stripe->q));
    for (unsigned i = 0; i < stripe->data_count; i++)
        assert(is_aligned(stripe->data[i]));
}

/*
 * ---- Computing ----
 *
 * vectors: sources first, then the results, as ISA-L takes them. A source that
 * points at the zeros stays there from piece to piece.
 */
struct vectors {
    unsigned count;
    unsigned results;
    bool has_zeros;
    void *at[PARITY_DATA_MAX + 2];
};

static void
vectors_clear(struct vectors *vectors)
{
    vectors->count = 0;
    vectors->results = 0;
    vectors->has_zeros = false;
}

/* Make source number `slot`, and zeros up to it. */
static void
vectors_set_source(struct vectors *vectors, unsigned slot, const void *source)
{
    assert(slot < PARITY_DATA_MAX);
    assert(source != NULL);
    for (; vectors->count <= slot; vectors->count++)
        vectors->at[vectors->count] = NULL;
    assert(vectors->at[slot] == NULL);
    vectors->at[slot] = unconst(source);
}

static void
vectors_add_result(struct vectors *vectors, void *result)
{
    vectors->at[vectors->count++] = result;
    vectors->results++;
}

/* Done with sources: at least two, and no holes. */
static void
vectors_fill(struct vectors *vectors)
{
    while (vectors->count < 2)
        vectors->at[vectors->count++] = NULL;
    for (unsigned i = 0; i < vectors->count; i++) {
        if (vectors->at[i] == NULL) {
            vectors->at[i] = unconst(zeros);
            vectors->has_zeros = true;
        }
    }
}

/* One piece; then all blocks move on by it, so that the next call does the next one. */
static void
vectors_step(struct vectors *vectors, size_t piece)
{
    assert(piece > 0);
    assert(piece <= (vectors->has_zeros ? ZEROS_BYTES : PIECE_BYTES_MAX));
    const int failed = vectors->results == 1 ? xor_gen((int)vectors->count, (int)piece, vectors->at)
                                             : pq_gen((int)vectors->count, (int)piece, vectors->at);
    assert(failed == 0);
    for (unsigned i = 0; i < vectors->count; i++) {
        if (vectors->at[i] != zeros)
            vectors->at[i] = (uint8_t *)vectors->at[i] + piece;
    }
}

static void
vectors_run(struct vectors *vectors, size_t bytes)
{
    const size_t piece_max = vectors->has_zeros ? ZEROS_BYTES : PIECE_BYTES_MAX;
    while (bytes > 0) {
        const size_t piece = min_u64(bytes, piece_max);
        vectors_step(vectors, piece);
        bytes -= piece;
    }
}

/* The sources of P or of P and Q, over all data. */
static void
vectors_init(struct vectors *vectors, const struct parity_stripe *stripe, bool by_exponent)
{
    vectors_clear(vectors);
    for (unsigned i = 0; i < stripe->data_count; i++)
        vectors_set_source(vectors, by_exponent ? exponent_of(stripe, i) : i, stripe->data[i]);
    vectors_fill(vectors);
}

/*
 * ---- Combining ----
 *
 * One or two results, each a sum of factor * source. Sources are taken in
 * batches, to bound the tables; from the second batch on, what is in the
 * results already is added to.
 */
#define BATCH_SOURCES 16u
#define RESULTS_MAX   2u

struct combination {
    unsigned results_count;
    void *results[RESULTS_MAX];
    size_t bytes;
    bool begun; /* the results hold the sum of earlier batches */
    unsigned count;
    void *sources[BATCH_SOURCES + RESULTS_MAX];
    uint8_t factors[RESULTS_MAX][BATCH_SOURCES + RESULTS_MAX]; /* of a result, of a source */
};

static void
combination_run(struct combination *c)
{
    if (c->begun) {
        for (unsigned r = 0; r < c->results_count; r++) {
            c->sources[c->count] = c->results[r];
            for (unsigned other = 0; other < c->results_count; other++)
                c->factors[other][c->count] = other == r;
            c->count++;
        }
    }

    uint8_t matrix[RESULTS_MAX * (BATCH_SOURCES + RESULTS_MAX)];
    uint8_t tables[32 * sizeof matrix] __attribute__((aligned(PARITY_ALIGN)));
    for (unsigned r = 0; r < c->results_count; r++)
        memcpy(matrix + r * c->count, c->factors[r], c->count);
    ec_init_tables((int)c->count, (int)c->results_count, matrix, tables);

    for (size_t done = 0; done < c->bytes;) {
        const size_t piece = min_u64(c->bytes - done, PIECE_BYTES_MAX);
        uint8_t *sources[BATCH_SOURCES + RESULTS_MAX];
        uint8_t *results[RESULTS_MAX];
        for (unsigned i = 0; i < c->count; i++)
            sources[i] = (uint8_t *)c->sources[i] + done;
        for (unsigned r = 0; r < c->results_count; r++)
            results[r] = (uint8_t *)c->results[r] + done;
        ec_encode_data((int)piece, (int)c->count, (int)c->results_count, tables, sources, results);
        done += piece;
    }
    c->begun = true;
    c->count = 0;
}

/* Add factors[r] * source to every result r. */
static void
combination_add(struct combination *c, const void *source, const uint8_t factors[])
{
    assert(source != NULL);
    if (c->count == BATCH_SOURCES)
        combination_run(c);
    c->sources[c->count] = unconst(source);
    for (unsigned r = 0; r < c->results_count; r++)
        c->factors[r][c->count] = factors[r];
    c->count++;
}

/* ---- The calls ---- */

/*
 * A block as a sum over the others:
 *      of_p * P  +  of_q * Q  +  sum of (of_data + of_power * g^e) * D
 */
struct formula {
    void *result;
    uint8_t of_p, of_q, of_data, of_power;
};

/* Evaluate up to two formulas in one pass, over all data but the lost. */
static void
formulas_evaluate(const struct parity_stripe *stripe, unsigned count,
                  const struct formula formulas[], const bool is_lost[])
{
    struct combination c = {.results_count = count, .bytes = stripe->bytes};
    uint8_t of_p[RESULTS_MAX] = {0}, of_q[RESULTS_MAX] = {0};
    bool any_p = false, any_q = false;
    for (unsigned r = 0; r < count; r++) {
        c.results[r] = formulas[r].result;
        of_p[r] = formulas[r].of_p;
        of_q[r] = formulas[r].of_q;
        any_p |= of_p[r] != 0;
        any_q |= of_q[r] != 0;
    }
    if (any_p)
        combination_add(&c, stripe->p, of_p);
    if (any_q)
        combination_add(&c, stripe->q, of_q);
    for (unsigned i = 0; i < stripe->data_count; i++) {
        if (is_lost[i])
            continue;
        const uint8_t weight = power(exponent_of(stripe, i));
        uint8_t factors[RESULTS_MAX] = {0};
        for (unsigned r = 0; r < count; r++)
            factors[r] = formulas[r].of_data ^ gf_mul(formulas[r].of_power, weight);
        combination_add(&c, stripe->data[i], factors);
    }
    combination_run(&c);
}

void
parity_compute(const struct parity_stripe *stripe)
{
    stripe_validate(stripe);
    if (stripe->p == NULL && stripe->q == NULL)
        return;
    if (stripe->p == NULL) {
        const bool is_lost[PARITY_DATA_MAX] = {false};
        const struct formula q = {.result = stripe->q, .of_power = 1};
        formulas_evaluate(stripe, 1, &q, is_lost);
        return;
    }
    if (stripe->q == NULL && stripe->data_count == 1) {
        memcpy(stripe->p, stripe->data[0], stripe->bytes);
        return;
    }
    struct vectors vectors;
    vectors_init(&vectors, stripe, stripe->q != NULL);
    vectors_add_result(&vectors, stripe->p);
    if (stripe->q != NULL)
        vectors_add_result(&vectors, stripe->q);
    vectors_run(&vectors, stripe->bytes);
}

unsigned
parity_check(const struct parity_stripe *stripe)
{
    stripe_validate(stripe);
    assert(stripe->p != NULL);
    uint8_t p[CHECK_BYTES] __attribute__((aligned(PARITY_ALIGN)));
    uint8_t q[CHECK_BYTES] __attribute__((aligned(PARITY_ALIGN)));
    struct vectors vectors;
    vectors_init(&vectors, stripe, stripe->q != NULL);
    const unsigned sources = vectors.count;

    unsigned mismatch = 0;
    for (size_t done = 0; done < stripe->bytes; done += CHECK_BYTES) {
        const size_t piece = min_u64(stripe->bytes - done, CHECK_BYTES);
        vectors.count = sources;
        vectors.results = 0;
        vectors_add_result(&vectors, p);
        if (stripe->q != NULL)
            vectors_add_result(&vectors, q);
        vectors_step(&vectors, piece);
        if (memcmp(p, (const uint8_t *)stripe->p + done, piece) != 0)
            mismatch |= PARITY_MISMATCH_P;
        if (stripe->q != NULL && memcmp(q, (const uint8_t *)stripe->q + done, piece) != 0)
            mismatch |= PARITY_MISMATCH_Q;
    }
    return mismatch;
}

/* P alone changes: xor is cheaper than a multiplication by 1. */
static void
update_p(const struct parity_update *update)
{
    struct vectors vectors;
    vectors_clear(&vectors);
    vectors_set_source(&vectors, 0, update->p_old);
    for (unsigned i = 0; i < update->changes_count; i++) {
        if (vectors.count + 2 > PARITY_DATA_MAX) {
            vectors_add_result(&vectors, update->p_new);
            vectors_run(&vectors, update->bytes);
            vectors_clear(&vectors);
            vectors_set_source(&vectors, 0, update->p_new);
        }
        const struct parity_change *change = &update->changes[i];
        if (change->old != NULL)
            vectors_set_source(&vectors, vectors.count, change->old);
        if (change->new != NULL)
            vectors_set_source(&vectors, vectors.count, change->new);
    }
    vectors_fill(&vectors);
    vectors_add_result(&vectors, update->p_new);
    vectors_run(&vectors, update->bytes);
}

/* The pointers of a parity pair: both or none, and aligned. */
static void
pair_validate(const void *old, const void *new)
{
    assert((old == NULL) == (new == NULL));
    assert(is_aligned(old));
    assert(is_aligned(new));
}

void
parity_apply(const struct parity_update *update)
{
    assert(update->changes_count <= PARITY_DATA_MAX);
    assert(update->bytes % PARITY_ALIGN == 0);
    pair_validate(update->p_old, update->p_new);
    pair_validate(update->q_old, update->q_new);
    if (update->q_old == NULL) {
        if (update->p_old != NULL)
            update_p(update);
        return;
    }

    /* Result 0 is Q, result 1, if wanted, P. */
    struct combination c = {
        .results_count = update->p_old == NULL ? 1 : 2,
        .results = {update->q_new, update->p_new},
        .bytes = update->bytes,
    };
    combination_add(&c, update->q_old, (const uint8_t[]){1, 0});
    if (update->p_old != NULL)
        combination_add(&c, update->p_old, (const uint8_t[]){0, 1});
    for (unsigned i = 0; i < update->changes_count; i++) {
        const struct parity_change *change = &update->changes[i];
        assert(is_aligned(change->old));
        assert(is_aligned(change->new));
        const uint8_t factors[] = {power(change->exponent), 1};
        if (change->old != NULL)
            combination_add(&c, change->old, factors);
        if (change->new != NULL)
            combination_add(&c, change->new, factors);
    }
    combination_run(&c);
}

/* One data block from P and the rest: xor. */
static void
recover_by_xor(const struct parity_stripe *stripe, unsigned lost)
{
    struct vectors vectors;
    vectors_clear(&vectors);
    vectors_set_source(&vectors, 0, stripe->p);
    for (unsigned i = 0; i < stripe->data_count; i++) {
        if (i != lost)
            vectors_set_source(&vectors, vectors.count, stripe->data[i]);
    }
    if (vectors.count == 1) {
        memcpy(stripe->data[lost], stripe->p, stripe->bytes);
        return;
    }
    vectors_add_result(&vectors, stripe->data[lost]);
    vectors_run(&vectors, stripe->bytes);
}

/*
 * The formulas behind the table of docs/format, "P and Q": the lost block's
 * equation solved and written out, so that no result depends on another one.
 * With w = g^e:
 *
 *   x        D_x = P + sum D
 *   x and Q  D_x as above, put into Q = sum w D + w_x D_x:
 *            Q   = w_x P + sum (w_x + w) D
 *   x and P  D_x = 1/w_x Q + sum w/w_x D
 *            P   = D_x + sum D
 *   x and y  k = w_y / w_x, a = k / (k + 1), b = 1 / (w_x (k + 1)):
 *            D_x = a P + b Q + sum (a + b w) D
 *            D_y = D_x + P + sum D
 */
void
parity_recover(const struct parity_stripe *stripe, unsigned lost_count, const unsigned lost[])
{
    stripe_validate(stripe);
    assert(lost_count <= RESULTS_MAX);

    bool is_lost[PARITY_DATA_MAX] = {false};
    bool p_lost = stripe->p == NULL, q_lost = stripe->q == NULL;
    unsigned x = NO_DATA, y = NO_DATA;
    for (unsigned i = 0; i < lost_count; i++) {
        if (lost[i] == PARITY_LOST_P) {
            p_lost = true;
        } else if (lost[i] == PARITY_LOST_Q) {
            q_lost = true;
        } else {
            assert(lost[i] < stripe->data_count);
            assert(!is_lost[lost[i]]);
            is_lost[lost[i]] = true;
            if (x == NO_DATA)
                x = lost[i];
            else
                y = lost[i];
        }
    }

    if (x == NO_DATA) {
        struct parity_stripe wanted = *stripe;
        wanted.p = p_lost ? stripe->p : NULL;
        wanted.q = q_lost ? stripe->q : NULL;
        parity_compute(&wanted);
        return;
    }
    void *const data_x = stripe->data[x];
    if (y == NO_DATA && !p_lost && (!q_lost || stripe->q == NULL)) {
        if (data_x != NULL)
            recover_by_xor(stripe, x);
        return;
    }

    assert(!(p_lost && q_lost));
    const uint8_t w_x = power(exponent_of(stripe, x));
    struct formula formulas[RESULTS_MAX];
    if (y != NO_DATA) {
        assert(!p_lost);
        assert(!q_lost);
        const uint8_t k = divide(power(exponent_of(stripe, y)), w_x);
        const uint8_t a = divide(k, k ^ 1);
        const uint8_t b = divide(1, gf_mul(w_x, k ^ 1));
        formulas[0] = (struct formula){data_x, a, b, a, b};
        formulas[1] = (struct formula){stripe->data[y], a ^ 1, b, a ^ 1, b};
    } else if (p_lost) {
        const uint8_t inverse = divide(1, w_x);
        formulas[0] = (struct formula){data_x, 0, inverse, 0, inverse};
        formulas[1] = (struct formula){stripe->p, 0, inverse, 1, inverse};
    } else {
        formulas[0] = (struct formula){data_x, 1, 0, 1, 0};
        formulas[1] = (struct formula){stripe->q, w_x, 0, w_x, 1};
    }

    /* Leave out what is not wanted back. */
    unsigned count = 0;
    for (unsigned i = 0; i < RESULTS_MAX; i++) {
        if (formulas[i].result != NULL)
            formulas[count++] = formulas[i];
    }
    if (count != 0)
        formulas_evaluate(stripe, count, formulas, is_lost);
}
