/*
 * parity_run.c: parity of the stripes that a worker writes, runs of like stripes in one call.
 */
#include "stripe/run.h"
#include "parity/parity.h"

/* --- Parity of the stripes that are written --- */

static uint8_t *
content_after(const struct run *run, unsigned m, unsigned s)
{
    const bool changed = (run->full[m] | run->part[m]) >> s & 1;

    return (changed ? run->new_block : run->old_block)[block_at(run, m, s)];
}

/* Can stripe s + count join the run that begins at s: same kind, same row, same members changed,
 * memory adjoining. */
static bool
stripe_joins(const struct run *run, uint64_t mask, unsigned s, unsigned count, bool by_delta)
{
    const unsigned next = s + count;
    const struct row_shape *shape = plan_shape(&run->plan, s);
    const uint64_t distance = count * (uint64_t)BLOCK_BYTES;

    if (next >= run->engine->group_stripes || !(mask >> next & 1) ||
        plan_shape(&run->plan, next) != shape)
        return false;
    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];
        const uint64_t changed = run->full[m] | run->part[m];

        if ((changed >> s & 1) != (changed >> next & 1))
            return false;
        if (by_delta && !(changed >> s & 1))
            continue;
        if (content_after(run, m, next) != content_after(run, m, s) + distance)
            return false;
        if (by_delta && run->old_block[block_at(run, m, next)] !=
                            run->old_block[block_at(run, m, s)] + distance)
            return false;
    }
    return true;
}

static bool
parity_joins(const struct run *run, unsigned m, unsigned s, unsigned count, uint8_t *const *blocks)
{
    if (m == NO_MEMBER || !(run->made[m] & 1))
        return true;
    return blocks[block_at(run, m, s + count)] ==
           blocks[block_at(run, m, s)] + count * (uint64_t)BLOCK_BYTES;
}

static uint8_t *
parity_block(const struct run *run, unsigned m, unsigned s, uint8_t *const *blocks)
{
    return m != NO_MEMBER && (run->made[m] & 1) ? blocks[block_at(run, m, s)] : NULL;
}

static void
parity_by_data(struct run *run, unsigned s, unsigned count)
{
    const struct row_shape *shape = plan_shape(&run->plan, s);
    void *data[PARITY_DATA_MAX];
    const struct parity_stripe stripe = {
        .data_count = shape->data_count,
        .data = data,
        .exponents = shape->exponents,
        .p = parity_block(run, shape->p, s, run->new_block),
        .q = parity_block(run, shape->q, s, run->new_block),
        .bytes = count * (size_t)BLOCK_BYTES,
    };

    for (unsigned i = 0; i < shape->data_count; ++i)
        data[i] = content_after(run, shape->data[i], s);
    parity_compute(&stripe);
}

static void
parity_by_delta(struct run *run, unsigned s, unsigned count)
{
    const struct row_shape *shape = plan_shape(&run->plan, s);
    struct parity_change changes[PARITY_DATA_MAX];
    struct parity_update update = {
        .changes = changes,
        .p_old = parity_block(run, shape->p, s, run->old_block),
        .p_new = parity_block(run, shape->p, s, run->new_block),
        .q_old = parity_block(run, shape->q, s, run->old_block),
        .q_new = parity_block(run, shape->q, s, run->new_block),
        .bytes = count * (size_t)BLOCK_BYTES,
    };

    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];

        if (((run->full[m] | run->part[m]) >> s & 1) == 0)
            continue;
        changes[update.changes_count++] = (struct parity_change){
            .old = run->old_block[block_at(run, m, s)],
            .new = run->new_block[block_at(run, m, s)],
            .exponent = shape->exponents != NULL ? shape->exponents[i] : i,
        };
    }
    parity_apply(&update);
}

void
run_parity(struct run *run, uint64_t mask, bool by_delta)
{
    while (mask != 0) {
        const unsigned s = (unsigned)__builtin_ctzll(mask);
        const struct row_shape *shape = plan_shape(&run->plan, s);
        unsigned count = 1;

        while (stripe_joins(run, mask, s, count, by_delta) &&
               parity_joins(run, shape->p, s, count, run->new_block) &&
               parity_joins(run, shape->q, s, count, run->new_block) &&
               (!by_delta || (parity_joins(run, shape->p, s, count, run->old_block) &&
                              parity_joins(run, shape->q, s, count, run->old_block))))
            ++count;
        if (by_delta)
            parity_by_delta(run, s, count);
        else
            parity_by_data(run, s, count);
        mask &= ~mask_of(s, count);
    }
}

void
run_mark_parity(struct run *run, uint64_t stripes, uint64_t *masks)
{
    for (; stripes != 0; stripes &= stripes - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(stripes);
        const struct row_shape *shape = plan_shape(&run->plan, s);
        const uint64_t bit = UINT64_C(1) << s;

        masks[shape->p] |= bit & run->made[shape->p];
        if (shape->q != NO_MEMBER)
            masks[shape->q] |= bit & run->made[shape->q];
    }
}
