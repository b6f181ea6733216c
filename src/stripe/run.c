/*
 * run.c: what a worker does with a group's pieces.
 *
 * Three phases, each complete before the next: reads that must reconstruct, changes, resync. A
 * phase is
 *
 *      gather   which blocks the pieces concern                       (pure)
 *      plan     which blocks must be read, which reconstructed        (plan.c, pure)
 *      fetch    take scratch memory; read; reconstruct
 *      ...      what the phase is for
 *
 * When a read fails, the blocks it was for become unreadable, the scratch memory is given back and
 * the phase plans again, until nothing fails or a stripe is beyond what parity covers. Nothing is
 * written before everything that is needed has been read.
 */
#include "stripe/run.h"
#include "parity/parity.h"
#include <stdlib.h>

#define MASK_ARRAYS 20u

int
run_init(struct run *run, struct engine *engine)
{
    const unsigned n = engine->members_count;
    const size_t blocks = (size_t)n * engine->group_stripes;
    uint64_t *mask;

    run->engine = engine;
    run->masks = calloc((size_t)MASK_ARRAYS * n, sizeof *run->masks);
    run->old_block = calloc(4 * blocks, sizeof *run->old_block);
    run->node = calloc(blocks, sizeof *run->node);
    run->place = calloc(blocks, sizeof *run->place);
    run->member_error = calloc(n, sizeof *run->member_error);
    run->log_data = calloc(n, sizeof *run->log_data);
    if (run->masks == NULL || run->old_block == NULL || run->member_error == NULL ||
        run->log_data == NULL || run->node == NULL || run->place == NULL)
        return -ENOMEM;
    run->new_block = run->old_block + blocks;
    run->own_block = run->new_block + blocks;
    run->cached_block = run->own_block + blocks;
    mask = run->masks;
    uint64_t **const arrays[MASK_ARRAYS] = {
        &run->full,  &run->part,       &run->own,       &run->zero,         &run->trim,
        &run->gone,  &run->unreadable, &run->errors,    &run->suspect,      &run->writable,
        &run->write, &run->plan.need,  &run->plan.want, &run->plan.recover, &run->logged,
        &run->made,  &run->cached,     &run->lost,      &run->based,        &run->bridged,
    };
    for (unsigned i = 0; i < MASK_ARRAYS; ++i, mask += n)
        *arrays[i] = mask;
    run->plan.shapes = &engine->shapes;
    run->plan.row_stripes =
        (unsigned)min_u64(engine->geometry->chunk_bytes / BLOCK_BYTES, 1u << 30);
    run->plan.members = n;
    run->plan.unreadable = run->unreadable;
    run->plan.gone = run->gone;
    run->plan.writable = run->made;
    return 0;
}

void
run_fini(struct run *run)
{
    free(run->masks);
    free(run->old_block);
    free(run->member_error);
    free(run->log_data);
    free(run->node);
    free(run->place);
}

bool
piece_slice(const struct run *run, const struct piece *piece, uint64_t *at, struct slice *slice)
{
    struct place place;

    if (*at == piece->length)
        return false;
    if (piece->kind == PIECE_WRITE_OUT) {
        const struct engine_block *block = &piece->blocks[(*at)++];

        geometry_map(run->engine->geometry, block->array_offset, &place);
        *slice = (struct slice){
            .member = place.member,
            .offset = place.member_offset - run->base,
            .length = BLOCK_BYTES,
            .memory = (uint8_t *)(uintptr_t)block->memory, /* only read from */
        };
        return true;
    }
    geometry_map(run->engine->geometry, piece->array_offset + *at, &place);
    slice->member = place.member;
    slice->offset = place.member_offset - run->base;
    slice->length = min_u64(place.length, piece->length - *at);
    slice->memory = piece->memory == NULL ? NULL : piece->memory + *at;
    *at += slice->length;
    return true;
}

struct journal *
run_journal(const struct run *run)
{
    return run->logs ? run->engine->journal : NULL;
}

bool
pieces_fail(struct run *run, uint64_t stripes, int error, bool (*concerned)(const struct piece *))
{
    bool any = false;

    for (struct piece *piece = run->pieces.first; stripes != 0 && piece != NULL;
         piece = piece->next) {
        struct slice slice;

        if (!concerned(piece))
            continue;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);)
            if (slice_stripes(&slice) & stripes) {
                any = any || piece->result == 0;
                piece->result = error;
            }
    }
    return any;
}

/* --- What can be read and written ------------------------------------------------------------ */

static uint64_t
stripes_with_good_parity(const struct run *run)
{
    const struct unsynced *unsynced = run->engine->config.unsynced;
    uint64_t known = 0;

    for (unsigned i = 0; i < unsynced->holes_count; ++i)
        if (unsynced->holes[i] == run->base)
            return 0;
    if (unsynced->from >= run->base + run->engine->group_bytes)
        return run->stripes;
    for (uint64_t rest = run->stripes; rest != 0; rest &= rest - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(rest);
        const uint64_t at = run->base + s * (uint64_t)BLOCK_BYTES;
        bool good = at < unsynced->from;

        if (!good && unsynced->bits != NULL) {
            const uint64_t region = at / unsynced->region_bytes;

            good = (unsynced->bits[region / 8] >> (region % 8) & 1) == 0;
        }
        if (good)
            known |= UINT64_C(1) << s;
    }
    return known;
}

/* The stripes where a block of the member is as asked. */
static uint64_t
member_stripes(const struct run *run, const struct member *member,
               bool (*is)(const struct member *member, uint64_t offset, uint64_t length))
{
    uint64_t stripes = 0;

    for (uint64_t rest = run->stripes; rest != 0; rest &= rest - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(rest);

        if (is(member, run->base + s * (uint64_t)BLOCK_BYTES, BLOCK_BYTES))
            stripes |= UINT64_C(1) << s;
    }
    return stripes;
}

void
run_look(struct run *run)
{
    run->plan.parity_known = stripes_with_good_parity(run);
    run->plan.parity_believed = run->engine->config.unsynced->believed ? run->stripes : 0;
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        const struct member *member = &run->engine->members[m];

        run->gone[m] = run->unreadable[m] = 0;
        if (!member_readable(member, run->base, run->engine->group_bytes)) {
            run->gone[m] = member_stripes(run, member, member_gone);
            run->unreadable[m] = run->stripes & ~member_stripes(run, member, member_readable);
        }
        run->unreadable[m] |= run->errors[m];
        run->writable[m] = member->state == MEMBER_MISSING ? 0 : ~UINT64_C(0);
        run->made[m] = run_journal(run) != NULL ? ~UINT64_C(0) : run->writable[m]; /* E6 */
    }
}

/* --- Scratch memory and I/O ------------------------------------------------------------------ */

static task_fn void
area_take(struct run *run, uint64_t blocks)
{
    assert(run->area == NULL);
    run->area_used = 0;
    run->area_bytes = blocks * BLOCK_BYTES;
    if (blocks > 0)
        run->area = pages_take(run->engine->scratch, run->area_bytes);
}

void
area_give(struct run *run)
{
    if (run->area != NULL)
        pages_give(run->engine->scratch, run->area, run->area_bytes);
    run->area = NULL;
}

uint8_t *
area_block(struct run *run)
{
    uint8_t *block = run->area + run->area_used;

    run->area_used += BLOCK_BYTES;
    assert(run->area_used <= run->area_bytes);
    return block;
}

void
area_assign(struct run *run, const uint64_t *masks, uint8_t **blocks)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        for (uint64_t rest = masks[m]; rest != 0; rest &= rest - 1)
            blocks[block_at(run, m, (unsigned)__builtin_ctzll(rest))] = area_block(run);
}

/* Called by the loop for each I/O that failed. */
static void
run_io_failed(struct io_group *group, const struct io *io)
{
    struct run *run = container_of(group, struct run, ios);
    const struct member *member = &run->engine->members[io->member];
    const uint64_t first = (io->offset - member->data_offset - run->base) / BLOCK_BYTES;
    const uint64_t stripes = mask_of((unsigned)first, (unsigned)(io->length / BLOCK_BYTES));

    if (io->op == IO_READ) {
        run->read_errors = true;
        if (io->length > BLOCK_BYTES)
            run->suspect[io->member] |= stripes;
        else
            run->errors[io->member] |= stripes;
    } else if (io->op == IO_PUNCH) {
        /* Zeros are written then, and only a failed write is a failure. */
        run->punch_refused = true;
    } else {
        run->member_error[io->member] = io->result;
    }
}

task_fn struct io *
run_io(struct run *run, enum io_op op, unsigned member, unsigned stripe)
{
    struct io *io = io_take(&run->engine->ios);

    io->op = op;
    io->member = member;
    io->offset =
        run->engine->members[member].data_offset + run->base + stripe * (uint64_t)BLOCK_BYTES;
    return io;
}

/* Reads or writes a member's blocks of a mask, neighbours in one I/O. */
static task_fn void
run_transfer(struct run *run, enum io_op op, unsigned member, uint64_t mask, uint8_t *const *blocks)
{
    struct device *device = run->engine->members[member].device;
    struct io *io = NULL;
    unsigned last = 0;

    for (; mask != 0; mask &= mask - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(mask);
        const bool alone = op == IO_READ && (run->suspect[member] >> s & 1);
        uint8_t *block = blocks[block_at(run, member, s)];

        if (io != NULL && (s != last + 1 || alone || !io_add(io, block, BLOCK_BYTES))) {
            io_submit(io, device, &run->ios);
            io = NULL;
        }
        if (io == NULL) {
            io = run_io(run, op, member, s);
            io->fua = op == IO_WRITE && run->fua;
            if (!io_add(io, block, BLOCK_BYTES))
                assert(!"a fresh io has room");
        }
        last = s;
        if (alone) {
            io_submit(io, device, &run->ios);
            io = NULL;
        }
    }
    if (io != NULL)
        io_submit(io, device, &run->ios);
}

task_fn void
run_report_members(struct run *run, const char *operation)
{
    struct engine *engine = run->engine;

    for (unsigned m = 0; m < engine->members_count; ++m) {
        if (run->member_error[m] != 0 && engine->members[m].state != MEMBER_MISSING)
            engine->config.member_failed(engine->config.owner, m, run->member_error[m], operation);
        run->member_error[m] = 0;
    }
    engine->config.failures_recorded(engine->config.owner);
}

/* --- Fetch: read and reconstruct ------------------------------------------------------------- */

static void
recover_stripe(struct run *run, unsigned s)
{
    const struct row_shape *shape = plan_shape(&run->plan, s);
    const uint64_t bit = UINT64_C(1) << s;
    void *data[PARITY_DATA_MAX];
    unsigned lost[2], lost_count = 0;
    struct parity_stripe stripe = {
        .data_count = shape->data_count,
        .data = data,
        .exponents = shape->exponents,
        .bytes = BLOCK_BYTES,
    };
    const bool q_there =
        shape->q != NO_MEMBER && ((run->plan.want[shape->q] | run->plan.recover[shape->q]) & bit);

    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];

        data[i] = run->old_block[block_at(run, m, s)];
        if (run->plan.recover[m] & bit)
            lost[lost_count++] = i;
    }
    /* P is lost, or not read because Q alone (or nothing) is needed: a lost P that nobody wants
     * back is NULL. */
    if (run->plan.want[shape->p] & bit) {
        stripe.p = run->old_block[block_at(run, shape->p, s)];
    } else {
        if (run->plan.recover[shape->p] & bit)
            stripe.p = run->old_block[block_at(run, shape->p, s)];
        lost[lost_count++] = PARITY_LOST_P;
    }
    if (q_there) {
        stripe.q = run->old_block[block_at(run, shape->q, s)];
        if (run->plan.recover[shape->q] & bit)
            lost[lost_count++] = PARITY_LOST_Q;
    }
    assert(lost_count <= run->engine->geometry->parities);
    parity_recover(&stripe, lost_count, lost);
}

task_fn bool
run_fetch(struct run *run, uint64_t extra_blocks)
{
    const unsigned n = run->engine->members_count;
    uint64_t recover;

    area_take(run, plan_count(run->plan.want, n) + plan_count(run->plan.recover, n) + extra_blocks);
    area_assign(run, run->plan.want, run->old_block);
    area_assign(run, run->plan.recover, run->old_block);
    run->read_errors = false;
    for (unsigned m = 0; m < n; ++m)
        if (run->plan.want[m] != 0)
            run_transfer(run, IO_READ, m, run->plan.want[m], run->old_block);
    (void)io_wait(&run->ios); /* read_errors says more */
    /* What was read from a member that has failed since may be older than what it had acknowledged
     * (D3): parity made from it would undo that. */
    for (unsigned m = 0; m < n; ++m)
        if (run->plan.want[m] != 0 && run->engine->members[m].state == MEMBER_MISSING)
            run->read_errors = true;
    if (run->read_errors) {
        area_give(run);
        return false;
    }
    for (recover = masks_union(run, run->plan.recover); recover != 0; recover &= recover - 1)
        recover_stripe(run, (unsigned)__builtin_ctzll(recover));
    return true;
}

/* Writes one block that was reconstructed to where it could not be read, and looks whether it can
 * be read now. */
static task_fn void
mend_block(struct run *run, unsigned m, unsigned s, uint8_t *spare)
{
    struct engine *engine = run->engine;
    const uint64_t offset = run->base + s * (uint64_t)BLOCK_BYTES;
    uint8_t *block = run->old_block[block_at(run, m, s)];
    struct device *device = engine->members[m].device;
    int result =
        device_write(device, block, engine->members[m].data_offset + offset, BLOCK_BYTES, true);

    if (result == 0)
        result = device_read(device, spare, engine->members[m].data_offset + offset, BLOCK_BYTES);
    if (result == 0 && memcmp(block, spare, BLOCK_BYTES) != 0)
        result = -EIO;
    if (result == 0)
        engine->config.read_corrected(engine->config.owner, m, offset);
    else
        run->member_error[m] = result;
}

task_fn void
run_mend(struct run *run, uint8_t *spare)
{
    if (run->engine->config.readonly)
        return;
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        uint64_t mend = run->errors[m] & run->plan.recover[m] & ~run->plan.failed;

        for (; mend != 0 && run->engine->members[m].state != MEMBER_MISSING &&
               run->member_error[m] == 0;
             mend &= mend - 1)
            mend_block(run, m, (unsigned)__builtin_ctzll(mend), spare);
    }
    run_report_members(run, "mend");
}

unsigned
mend_pages(const struct run *run)
{
    return masks_union(run, run->errors) != 0;
}

void
phase_begin(struct run *run)
{
    masks_clear(run, run->errors);
    masks_clear(run, run->suspect);
    masks_clear(run, run->write);
    io_group_init(&run->ios, run->engine->loop);
    run->ios.failed = run_io_failed;
    memset(run->member_error, 0, run->engine->members_count * sizeof *run->member_error);
}

/* --- Phase 1: reads -------------------------------------------------------------------------- */

static bool
piece_reads(const struct piece *piece)
{
    return piece->kind == PIECE_READ;
}

static void
reads_need(struct run *run)
{
    masks_clear(run, run->plan.need);
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        for (uint64_t at = 0; piece_reads(piece) && piece_slice(run, piece, &at, &slice);)
            run->plan.need[slice.member] |= slice_stripes(&slice);
    }
}

/* What is cached is not read from its member (E11). */
static void
reads_need_members(struct run *run)
{
    reads_need(run);
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        run->plan.need[m] &= ~(run->cached[m] | run->lost[m]);
}

static void
reads_fail_lost(struct run *run)
{
    for (struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        for (uint64_t at = 0; piece_reads(piece) && piece_slice(run, piece, &at, &slice);)
            if (slice_stripes(&slice) & run->lost[slice.member])
                piece->result = -EIO;
    }
}

static void
reads_copy_out(struct run *run)
{
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        if (!piece_reads(piece) || piece->result != 0)
            continue;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);) {
            uint8_t *target = slice.memory;

            for (uint64_t rest = slice_stripes(&slice); rest != 0;
                 rest &= rest - 1, target += BLOCK_BYTES) {
                const unsigned s = (unsigned)__builtin_ctzll(rest);
                const bool cached = run->cached[slice.member] >> s & 1;

                memcpy(
                    target,
                    (cached ? run->cached_block : run->old_block)[block_at(run, slice.member, s)],
                    BLOCK_BYTES);
            }
        }
    }
}

static task_fn void
phase_reads(struct run *run)
{
    const bool caches = masks_union(run, run->cached) != 0;
    unsigned spare, dropped = 0;

    phase_begin(run);
    if (caches) {
        reads_need(run);
        dropped = cached_pin(run, run->plan.need);
    }
    do {
        reads_need_members(run);
        run_look(run);
        plan_read(&run->plan, masks_union(run, run->plan.need));
        spare = mend_pages(run);
    } while (!run_fetch(run, spare + dropped));
    (void)pieces_fail(run, run->plan.failed, -EIO, piece_reads);
    if (caches)
        ignored(cached_fetch(run)); /* what is lost fails in the next line */
    reads_fail_lost(run);
    reads_copy_out(run);
    if (spare > 0)
        run_mend(run, area_block(run));
    if (caches)
        cached_unpin(run);
    area_give(run);
}

/* --- Writing --- */

task_fn void
write_blocks(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        if (run->write[m] != 0)
            run_transfer(run, IO_WRITE, m, run->write[m], run->new_block);
}

/* --- Phase 3: resync ------------------------------------------------------------------------- */

static bool
piece_resyncs(const struct piece *piece)
{
    return piece->kind == PIECE_RESYNC;
}

/* All data, and the parity that can be read; what cannot is written without being compared. */
static void
resync_need(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        run->plan.need[m] = run->stripes;
    for (uint64_t rest = run->stripes; rest != 0; rest &= rest - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(rest);
        const struct row_shape *shape = plan_shape(&run->plan, s);
        const uint64_t bit = UINT64_C(1) << s;

        run->plan.need[shape->p] &= ~(bit & run->unreadable[shape->p]);
        if (shape->q != NO_MEMBER)
            run->plan.need[shape->q] &= ~(bit & run->unreadable[shape->q]);
    }
}

/* Leaves in write[] only the parity blocks that differ from what was read. */
static void
resync_compare(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        for (uint64_t rest = run->write[m] & run->plan.want[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));

            if (memcmp(run->old_block[b], run->new_block[b], BLOCK_BYTES) == 0)
                run->write[m] &= ~(rest & -rest);
        }
}

static task_fn void
phase_resync(struct run *run)
{
    const struct engine *engine = run->engine;
    const unsigned n = engine->members_count;
    unsigned degraded_max;

    phase_begin(run);
    masks_clear(run, run->full);
    masks_clear(run, run->part);
    run->fua = false;
    do {
        run_look(run);
        resync_need(run);
        plan_read(&run->plan, run->stripes);
        masks_clear(run, run->write);
        run_mark_parity(run, run->stripes & ~run->plan.failed, run->write);
    } while (!run_fetch(run, plan_count(run->write, n)));

    area_assign(run, run->write, run->new_block);
    run_parity(run, run->stripes & ~run->plan.failed, false);
    resync_compare(run);
    for (unsigned m = 0; m < n; ++m)
        run->write[m] &= run->writable[m];
    write_blocks(run);
    (void)io_wait(&run->ios); /* errors are kept by member */
    run_report_members(run, "write");
    area_give(run);
    /* With a member missing there is parity to make agree only where some is to spare. */
    degraded_max = engine->config.unsynced->believed ? engine->geometry->parities - 1 : 0;
    for (struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next)
        if (piece_resyncs(piece) &&
            (run->plan.failed != 0 || engine_degraded(engine) > degraded_max))
            piece->result = -EIO;
}

/* What nothing has taken of the log. */
static void
reserved_give(struct run *run)
{
    if (run->reserved > 0 && !journal_failed(run->engine->journal))
        journal_unreserve(run->engine->journal, (uint64_t)run->reserved);
    assert(run->reserved >= 0 || journal_failed(run->engine->journal));
}

task_fn void
run_group(struct run *run)
{
    const struct engine *engine = run->engine;
    bool reads = false, changes = false, resyncs = false;

    run->base = run->group->index * engine->group_bytes;
    run->reserved = 0;
    if (cache_single(run)) {
        reserved_give(run);
        return;
    }
    run->losses = 0;
    run->logs = engine->journal != NULL && !engine->log_gone;
    run->stripes = mask_of(
        0, (unsigned)(min_u64(engine->group_bytes, engine->geometry->member_bytes - run->base) /
                      BLOCK_BYTES));
    run->plan.first_row = run->base >> engine->geometry->chunk_shift;
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        reads = reads || piece_reads(piece);
        changes = changes || piece_changes(piece);
        resyncs = resyncs || piece_resyncs(piece);
    }
    cached_forget(run);
    cached_look(run);
    if (reads)
        phase_reads(run);
    if (changes)
        phase_changes(run);
    if (resyncs)
        phase_resync(run);
    reserved_give(run);
}
