/*
 * parity.h: P and Q of a stripe, and what they bring back.
 *
 * Over the same bytes of all members, with data blocks D and their exponents
 * e (geometry_q_exponent):
 *
 *      P = sum of D            Q = sum of g^e * D
 *
 * in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 and g = 2: the sum
 * is xor, the arithmetic that of Linux md. The work is done by ISA-L.
 *
 * What all calls have in common:
 *   - up to PARITY_DATA_MAX data blocks, one is allowed (P is a copy then);
 *   - all blocks have the same length, a multiple of PARITY_ALIGN, and are
 *     aligned to PARITY_ALIGN; ISA-L's widest paths crash otherwise;
 *   - exponents are distinct and below 255, in any order, with any gaps;
 *     NULL stands for 0, 1, 2 ...;
 *   - results do not overlap inputs unless the call says so;
 *   - no allocation, no state, about 6 KiB of stack.
 */
#ifndef STRIPELOG_PARITY_H
#define STRIPELOG_PARITY_H

#include "base/base.h"

#define PARITY_DATA_MAX 255u
#define PARITY_ALIGN    64u

/*
 * One block of each member. All pointers are borrowed. The data blocks may be
 * in any order that the exponents follow.
 */
struct parity_stripe {
    unsigned data_count;
    void *const *data;
    const uint8_t *exponents; /* of data[i]; NULL: exponent i. Not looked at without q */
    void *p;
    void *q; /* NULL: one parity only */
    size_t bytes;
};

/* P, and Q if there is one, from the data. P may be NULL if it is not wanted. */
void parity_compute(const struct parity_stripe *stripe);

/* What parity_check found. */
#define PARITY_MISMATCH_P 1u
#define PARITY_MISMATCH_Q 2u

/* Compare P and Q with the data: 0 if they agree, else a set of PARITY_MISMATCH_*. Writes nothing.
 */
must_check unsigned parity_check(const struct parity_stripe *stripe);

/*
 * One data block before and after. A NULL stands for a block of zeros, so a
 * difference that is known already is old = NULL, new = difference.
 */
struct parity_change {
    const void *old;
    const void *new;
    unsigned exponent; /* not looked at without Q */
};

/*
 * Read-modify-write: the new parity from the old one and the data blocks that
 * change. Each new parity may be the very buffer of the old one, or another. A pair that is
 * NULL is left out.
 */
struct parity_update {
    unsigned changes_count;
    const struct parity_change *changes;
    const void *p_old;
    void *p_new;
    const void *q_old;
    void *q_new;
    size_t bytes;
};

void parity_apply(const struct parity_update *update);

/* What a stripe lost: a data block by its place in data[], or a parity. */
#define PARITY_LOST_P (UINT32_MAX - 1)
#define PARITY_LOST_Q (UINT32_MAX - 2)

/*
 * Reconstruct one block (of one parity) or up to two different ones (of two parities)
 * into the buffers where they belong, from all the others. The content of the lost blocks' buffers
 * is not looked at. A lost block's pointer may be NULL if it is not wanted back; the result for the
 * other one is the same. lost_count is 0, 1 or 2.
 */
void parity_recover(const struct parity_stripe *stripe, unsigned lost_count, const unsigned lost[]);

#endif
