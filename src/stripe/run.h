/*
 * run.h: what the files that process a group share: masks, slices, scratch memory, I/O.
 *
 *   run.c         looking, reading, reconstructing; the phases of reads and resync
 *   change.c      the phase of changes
 *   cached.c      what only the log holds, and changes that are left there
 *   parity_run.c  parity of the stripes that are written
 */
#ifndef STRIPELOG_STRIPE_RUN_H
#define STRIPELOG_STRIPE_RUN_H

#include "stripe/internal.h"

static inline size_t
block_at(const struct run *run, unsigned member, unsigned stripe)
{
    return (size_t)member * run->engine->group_stripes + stripe;
}

/* Bits first .. first + count - 1. */
static inline uint64_t
mask_of(unsigned first, unsigned count)
{
    return (count == 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1) << first;
}

/* The first run of set bits in a mask that is not empty. */
static inline void
mask_first_run(uint64_t mask, unsigned *first, unsigned *count)
{
    *first = (unsigned)__builtin_ctzll(mask);
    mask >>= *first;
    *count = ~mask == 0 ? 64 : (unsigned)__builtin_ctzll(~mask);
}

static inline void
masks_clear(struct run *run, uint64_t *masks)
{
    memset(masks, 0, run->engine->members_count * sizeof *masks);
}

static inline uint64_t
masks_union(const struct run *run, const uint64_t *masks)
{
    uint64_t all = 0;

    for (unsigned m = 0; m < run->engine->members_count; ++m)
        all |= masks[m];
    return all;
}

/* A piece's range on one member: contiguous, within the group. */
struct slice {
    unsigned member;
    uint64_t offset; /* from the group's start on the member */
    uint64_t length;
    uint8_t *memory; /* NULL if the piece has none */
};

/* The stripes that a slice touches, wholly or in part. */
static inline uint64_t
slice_stripes(const struct slice *slice)
{
    const unsigned first = (unsigned)(slice->offset / BLOCK_BYTES);
    const unsigned last = (unsigned)((slice->offset + slice->length - 1) / BLOCK_BYTES);

    return mask_of(first, last - first + 1);
}

/* The stripes of which a slice covers the whole block. */
static inline uint64_t
slice_whole_stripes(const struct slice *slice)
{
    const unsigned first = (unsigned)(round_up(slice->offset, BLOCK_BYTES) / BLOCK_BYTES);
    const unsigned end = (unsigned)((slice->offset + slice->length) / BLOCK_BYTES);

    return first < end ? mask_of(first, end - first) : 0;
}

static inline bool
slice_congruent(const struct slice *slice)
{
    return ((uintptr_t)slice->memory - slice->offset) % BLOCK_BYTES == 0;
}

/* Walks a piece's slices: at = 0 to begin with; false at the end. */
bool piece_slice(const struct run *run, const struct piece *piece, uint64_t *at,
                 struct slice *slice);

/* Where changes are logged; NULL: nowhere. */
struct journal *run_journal(const struct run *run);

/* Pieces that touch one of these stripes get the error. True if one had none before. */
bool pieces_fail(struct run *run, uint64_t stripes, int error,
                 bool (*concerned)(const struct piece *));

/* To be called before each planning: members may have failed while we waited. */
void run_look(struct run *run);
void area_give(struct run *run);
uint8_t *area_block(struct run *run);

/* A page for each block of a mask; consecutive stripes of a member lie together. */
void area_assign(struct run *run, const uint64_t *masks, uint8_t **blocks);
task_fn struct io *run_io(struct run *run, enum io_op op, unsigned member, unsigned stripe);

/* Tells the owner of members whose writes failed in this phase. */
task_fn void run_report_members(struct run *run, const char *operation);

/* Reads plan.want and makes plan.recover, into old_block; extra_blocks are for the caller. False if
 * a read failed: nothing is held then, and the phase has to plan again. */
task_fn bool run_fetch(struct run *run, uint64_t extra_blocks) must_check;

/* Mends what could not be read and has been reconstructed. */
task_fn void run_mend(struct run *run, uint8_t *spare);

/* One page to mend with, if there is anything to mend. */
unsigned mend_pages(const struct run *run);
void cached_forget(struct run *run);

/* Looks up what is cached in the pieces' stripes, where that was not done yet. Only who has the
 * group changes it (pages may go). */
void cached_look(struct run *run);

/* Keeps the pages of these cached blocks where they are; returns how many have none. */
unsigned cached_pin(struct run *run, const uint64_t *masks);
void cached_unpin(struct run *run);

/* Reads back, into scratch memory, what cached_pin found without a page, and verifies it. Blocks
 * that are lost leave based[]; false if there were any. */
task_fn bool cached_fetch(struct run *run) must_check;
void phase_begin(struct run *run);
bool piece_changes(const struct piece *piece);

/* New content of every block that is written: in the caller's memory where it can stay there. */
void compose(struct run *run);

/* Parity of all stripes in the mask, runs of adjoining stripes in one call. */
void run_parity(struct run *run, uint64_t mask, bool by_delta);

/* Marks the parity blocks of these stripes in a mask array, where they are made. */
void run_mark_parity(struct run *run, uint64_t stripes, uint64_t *masks);
task_fn void write_blocks(struct run *run);

/* Logs the stripes. If they go through, waits until they are durable: nothing of them may reach a
 * member before, since a crash would leave parity that lies. If they are cached, it is enough that
 * nothing can come between them and what follows in the log. */
task_fn int log_stripes(struct run *run, struct journal_append *append, uint64_t stripes,
                        uint64_t reserved, bool through);

/* What was cached of the stripes that went through need not be any more, where they could. */
void cached_end(struct run *run, uint64_t parity_logged);

/* What has been gathered, left in the log: partial blocks completed, logged, cached. False as
 * change_stripes. */
task_fn bool cache_stripes(struct run *run, uint64_t reserved) must_check;

/* The commonest change, with no more ado: one whole block, alone, out of the caller's memory, into
 * a stripe that lacks nothing. False if it is something else, or cannot be cached; then nothing was
 * done. */
task_fn bool cache_single(struct run *run) must_check;

/* The part of what has been gathered that is cached; there is room for it, or *room grows. The rest
 * goes through:
 *
 *   all of it where nothing is cached (any more), or there is no room for it
 *   stripes that are written as a whole: nothing would be won by writing them later
 *   stripes with blocks that nobody can read: they may be refused, which has to be now
 *   stripes that could not be written out */
uint64_t stripes_to_cache(struct run *run, struct cache_room *room);

/* E9. Who has space in the log waits for groups, scratch memory, devices and superblocks only, and
 * those who hold one of these have their space, so it comes back. */
task_fn void phase_changes(struct run *run);

#endif
