/*
 * plan.h: what must be read so that parity stays true. Pure.
 *
 * A plan is made for one group at once, with a bit mask over the group's stripes for every member
 * (bit s is stripe s). For each stripe that is written there are two ways:
 *
 *   reconstruct-write   read the data that is not written, make parity from all data;
 *   read-modify-write   read what is overwritten and the parity, add the difference.
 *
 * and the one that reads fewer blocks is taken (reconstruct-write when equal, since it also mends
 * parity). A block that is needed and cannot be read is reconstructed from the rest of its stripe.
 *
 * P1. Read-modify-write only where parity is known good, and only if nothing it needs is
 *     unreadable.
 *
 * P2. Nothing is reconstructed from parity that is not known good. Where it has to be believed (a
 *     start by force, or a member lost before the resync is done), only what is gone: other members
 *     still have what they had where they cannot be read, and garbage must not be put in its place.
 *
 * P3. A stripe that cannot be done is in `failed` and in no other mask of the result.
 */
#ifndef STRIPELOG_PLAN_H
#define STRIPELOG_PLAN_H

#include "geometry/geometry.h"

#define GROUP_STRIPES_MAX 64u

/* Who holds what in a row. Data members stand in the order of their Q exponents. */
struct row_shape {
    unsigned p, q; /* q is NO_MEMBER with one parity */
    unsigned data_count;
    uint8_t *data;      /* members */
    uint8_t *exponents; /* of data[i]; NULL where exponent i (also with one parity) */
};

/* The shapes of a layout's rows, one a phase of its period. */
struct row_shapes {
    unsigned period;
    struct row_shape *shapes;
};

int row_shapes_init(struct row_shapes *shapes, const struct geometry *geometry) must_check;
void row_shapes_fini(struct row_shapes *shapes);

/* One group's masks. The arrays have `members` entries and belong to the caller. */
struct plan {
    /* Given. */
    const struct row_shapes *shapes;
    uint64_t first_row;   /* of stripe 0 */
    unsigned row_stripes; /* stripes of a chunk: stripe s is in row first_row + s / row_stripes */
    unsigned members;
    uint64_t parity_known;      /* stripes whose parity is good */
    uint64_t parity_believed;   /* stripes whose parity must do for missing members (P2) */
    const uint64_t *unreadable; /* gone, in the bad block log, or read error */
    const uint64_t *gone;       /* missing or not rebuilt yet: the member has no content there */
    const uint64_t *writable;   /* the member takes writes: all ones or zero */

    /* Asked for reading: blocks whose content is needed. For writing: see plan_write. */
    uint64_t *need;

    /* The result. */
    uint64_t *want;    /* blocks to read */
    uint64_t *recover; /* blocks to reconstruct */
    uint64_t by_data;  /* stripes that get parity from all data */
    uint64_t by_delta; /* stripes that get parity from the difference */
    uint64_t failed;   /* stripes that cannot be done: too much is unreadable */
};

static inline const struct row_shape *
plan_shape(const struct plan *plan, unsigned stripe)
{
    return &plan->shapes
                ->shapes[(plan->first_row + stripe / plan->row_stripes) % plan->shapes->period];
}

/* From plan->need to want, recover and failed. */
void plan_read(struct plan *plan, uint64_t stripes);

/* From what is written to need, want, recover, by_data, by_delta and failed. full: blocks that get
 * new content; part: blocks of which a part gets new content. */
void plan_write(struct plan *plan, uint64_t stripes, const uint64_t *full, const uint64_t *part);

/* Bits in a mask. Most have none or one. */
static inline unsigned
mask_count(uint64_t mask)
{
    if ((mask & (mask - 1)) == 0)
        return mask != 0;
    return (unsigned)__builtin_popcountll(mask);
}

/* Blocks in a mask array. */
unsigned plan_count(const uint64_t *masks, unsigned members);

#endif
