/* plan.c: see plan.h. */
#include "stripe/plan.h"
#include <stdlib.h>

static void
shape_init(struct row_shape *shape, const struct geometry *geometry, uint64_t number)
{
    bool plain = true;
    struct row row;

    geometry_row(geometry, number, &row);
    shape->p = row.p;
    shape->q = row.q;
    shape->data_count = geometry->data_members;
    /* Insertion sort by exponent: a handful of members, once. */
    for (unsigned d = 0; d < geometry->data_members; ++d) {
        unsigned member = geometry_data_member(geometry, &row, d);
        unsigned exponent = geometry_q_exponent(geometry, &row, member);
        unsigned at = d;

        while (at > 0 && shape->exponents[at - 1] > exponent) {
            shape->exponents[at] = shape->exponents[at - 1];
            shape->data[at] = shape->data[at - 1];
            --at;
        }
        shape->exponents[at] = (uint8_t)exponent;
        shape->data[at] = (uint8_t)member;
    }
    for (unsigned d = 0; d < geometry->data_members; ++d)
        plain = plain && shape->exponents[d] == d;
    if (plain)
        shape->exponents = NULL;
}

int
row_shapes_init(struct row_shapes *shapes, const struct geometry *geometry)
{
    const size_t bytes_each = sizeof(struct row_shape) + 2 * (size_t)geometry->data_members;
    uint8_t *tables;

    shapes->period = geometry->row_period;
    shapes->shapes = malloc(shapes->period * bytes_each);
    if (shapes->shapes == NULL)
        return -ENOMEM;
    tables = (uint8_t *)&shapes->shapes[shapes->period];
    for (unsigned phase = 0; phase < shapes->period; ++phase) {
        struct row_shape *shape = &shapes->shapes[phase];

        shape->data = tables;
        shape->exponents = tables + geometry->data_members;
        tables += 2 * (size_t)geometry->data_members;
        shape_init(shape, geometry, phase);
    }
    return 0;
}

void
row_shapes_fini(struct row_shapes *shapes)
{
    free(shapes->shapes);
    shapes->shapes = NULL;
}

unsigned
plan_count(const uint64_t *masks, unsigned members)
{
    unsigned count = 0;

    for (unsigned m = 0; m < members; ++m)
        count += mask_count(masks[m]);
    return count;
}

/* What is unreadable in one stripe. */
struct losses {
    unsigned data;
    bool p, q;
};

static struct losses
stripe_losses(const struct plan *plan, const struct row_shape *shape, uint64_t bit)
{
    struct losses lost = {0};

    for (unsigned i = 0; i < shape->data_count; ++i)
        lost.data += (plan->unreadable[shape->data[i]] & bit) != 0;
    lost.p = (plan->unreadable[shape->p] & bit) != 0;
    lost.q = shape->q != NO_MEMBER && (plan->unreadable[shape->q] & bit) != 0;
    return lost;
}

/* Reads what a reconstruction of this stripe takes: all data there is, and as much parity as data
 * is lost, P first. */
static void
want_for_recovery(struct plan *plan, const struct row_shape *shape, struct losses lost,
                  uint64_t bit)
{
    unsigned parities = lost.data;

    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];

        if (plan->unreadable[m] & bit)
            plan->recover[m] |= bit;
        else
            plan->want[m] |= bit;
    }
    if (parities > 0 && !lost.p) {
        plan->want[shape->p] |= bit;
        --parities;
    }
    if (parities > 0)
        plan->want[shape->q] |= bit;
}

static bool
stripe_recoverable(const struct plan *plan, const struct row_shape *shape, uint64_t bit)
{
    const struct losses lost = stripe_losses(plan, shape, bit);
    const unsigned parities = (unsigned)!lost.p + (unsigned)(shape->q != NO_MEMBER && !lost.q);

    if (lost.data == 0)
        return true;
    if (lost.data > parities)
        return false;
    if (plan->parity_known & bit)
        return true;
    if ((plan->parity_believed & bit) == 0)
        return false;
    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];

        if (plan->unreadable[m] & ~plan->gone[m] & bit)
            return false;
    }
    return true;
}

/* One stripe's need -> want, recover, failed. */
static void
plan_stripe_read(struct plan *plan, const struct row_shape *shape, unsigned stripe)
{
    const uint64_t bit = UINT64_C(1) << stripe;
    bool missing = false;

    for (unsigned m = 0; m < plan->members; ++m)
        missing = missing || (plan->need[m] & plan->unreadable[m] & bit) != 0;
    if (missing) {
        const struct losses lost = stripe_losses(plan, shape, bit);

        if (!stripe_recoverable(plan, shape, bit)) {
            plan->failed |= bit;
            for (unsigned m = 0; m < plan->members; ++m)
                plan->need[m] &= ~bit;
            return;
        }
        want_for_recovery(plan, shape, lost, bit);
        /* A parity block that is needed and lost is made from the data. */
        if (lost.p && (plan->need[shape->p] & bit))
            plan->recover[shape->p] |= bit;
        if (lost.q && (plan->need[shape->q] & bit))
            plan->recover[shape->q] |= bit;
    }
    for (unsigned m = 0; m < plan->members; ++m)
        plan->want[m] |= plan->need[m] & ~plan->unreadable[m] & bit;
}

static void
plan_clear(struct plan *plan)
{
    memset(plan->want, 0, plan->members * sizeof plan->want[0]);
    memset(plan->recover, 0, plan->members * sizeof plan->recover[0]);
    plan->by_data = 0;
    plan->by_delta = 0;
    plan->failed = 0;
}

void
plan_read(struct plan *plan, uint64_t stripes)
{
    plan_clear(plan);
    for (; stripes != 0; stripes &= stripes - 1) {
        const unsigned stripe = (unsigned)__builtin_ctzll(stripes);

        plan_stripe_read(plan, plan_shape(plan, stripe), stripe);
    }
}

/* What the two ways would read in one stripe; UINT_MAX for a way that is closed. */
struct costs {
    unsigned by_data, by_delta;
    unsigned parities_written;
};

static struct costs
stripe_costs(const struct plan *plan, const struct row_shape *shape, const uint64_t *full,
             const uint64_t *part, uint64_t bit)
{
    const unsigned parity[2] = {shape->p, shape->q};
    struct costs costs = {0};
    bool lost = false, delta_open = (plan->parity_known & bit) != 0;
    unsigned readable = 0;

    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];
        const bool unreadable = (plan->unreadable[m] & bit) != 0;

        readable += !unreadable;
        if ((full[m] & bit) == 0) {
            ++costs.by_data;
            lost = lost || unreadable;
        }
        if ((full[m] | part[m]) & bit) {
            ++costs.by_delta;
            delta_open = delta_open && !unreadable;
        }
    }
    for (unsigned i = 0; i < 2; ++i) {
        const unsigned m = parity[i];

        if (m == NO_MEMBER)
            continue;
        readable += (plan->unreadable[m] & bit) == 0;
        if (plan->writable[m] & bit) {
            ++costs.parities_written;
            ++costs.by_delta;
            delta_open = delta_open && (plan->unreadable[m] & bit) == 0;
        }
    }
    if (lost)
        costs.by_data = stripe_recoverable(plan, shape, bit) ? readable : UINT32_MAX;
    if (!delta_open)
        costs.by_delta = UINT32_MAX;
    return costs;
}

static void
plan_stripe_write(struct plan *plan, unsigned stripe, const uint64_t *full, const uint64_t *part)
{
    const struct row_shape *shape = plan_shape(plan, stripe);
    const uint64_t bit = UINT64_C(1) << stripe;
    const struct costs costs = stripe_costs(plan, shape, full, part, bit);

    if (costs.parities_written == 0) {
        /* No parity to keep: only what a partial block is completed with. */
        for (unsigned i = 0; i < shape->data_count; ++i)
            plan->need[shape->data[i]] |= part[shape->data[i]] & bit;
    } else if (costs.by_delta < costs.by_data) {
        plan->by_delta |= bit;
        for (unsigned i = 0; i < shape->data_count; ++i)
            plan->need[shape->data[i]] |= (full[shape->data[i]] | part[shape->data[i]]) & bit;
        plan->need[shape->p] |= plan->writable[shape->p] & bit;
        if (shape->q != NO_MEMBER)
            plan->need[shape->q] |= plan->writable[shape->q] & bit;
    } else {
        plan->by_data |= bit;
        for (unsigned i = 0; i < shape->data_count; ++i)
            plan->need[shape->data[i]] |= ~full[shape->data[i]] & bit;
    }
    plan_stripe_read(plan, shape, stripe);
    plan->by_data &= ~plan->failed;
    plan->by_delta &= ~plan->failed;
}

void
plan_write(struct plan *plan, uint64_t stripes, const uint64_t *full, const uint64_t *part)
{
    plan_clear(plan);
    memset(plan->need, 0, plan->members * sizeof plan->need[0]);
    for (; stripes != 0; stripes &= stripes - 1)
        plan_stripe_write(plan, (unsigned)__builtin_ctzll(stripes), full, part);
}
