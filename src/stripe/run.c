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
#include "stripe/internal.h"
#include "parity/parity.h"
#include <stdlib.h>

#define MASK_ARRAYS 20u
/* Of a group's data, the part from which on a write is a long one: a quarter. */
#define AWAIT_SHARE 4u
/* Blocks between two, up to which one I/O is cheaper than two: where it costs their transfer alone
 * (reads), and where it spares a seek (reads and writes). */
#define GAP       8u
#define GAP_SEEKS 16u

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

/* --- Small helpers --------------------------------------------------------------------------- */

static size_t
block_at(const struct run *run, unsigned member, unsigned stripe)
{
    return (size_t)member * run->engine->group_stripes + stripe;
}

/* Bits first .. first + count - 1. */
static uint64_t
mask_of(unsigned first, unsigned count)
{
    return (count == 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1) << first;
}

/* The first run of set bits in a mask that is not empty. */
static void
mask_first_run(uint64_t mask, unsigned *first, unsigned *count)
{
    *first = (unsigned)__builtin_ctzll(mask);
    mask >>= *first;
    *count = ~mask == 0 ? 64 : (unsigned)__builtin_ctzll(~mask);
}

static void
masks_clear(struct run *run, uint64_t *masks)
{
    memset(masks, 0, run->engine->members_count * sizeof *masks);
}

static uint64_t
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

/* Walks a piece's slices: at = 0 to begin with; false at the end. */
static bool
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

/* The stripes that a slice touches, wholly or in part. */
static uint64_t
slice_stripes(const struct slice *slice)
{
    const unsigned first = (unsigned)(slice->offset / BLOCK_BYTES);
    const unsigned last = (unsigned)((slice->offset + slice->length - 1) / BLOCK_BYTES);

    return mask_of(first, last - first + 1);
}

/* The stripes of which a slice covers the whole block. */
static uint64_t
slice_whole_stripes(const struct slice *slice)
{
    const unsigned first = (unsigned)(round_up(slice->offset, BLOCK_BYTES) / BLOCK_BYTES);
    const unsigned end = (unsigned)((slice->offset + slice->length) / BLOCK_BYTES);

    return first < end ? mask_of(first, end - first) : 0;
}

static bool
slice_congruent(const struct slice *slice)
{
    return ((uintptr_t)slice->memory - slice->offset) % BLOCK_BYTES == 0;
}

/* Where changes are logged; NULL: nowhere. */
static struct journal *
run_journal(const struct run *run)
{
    return run->engine->log_gone ? NULL : run->engine->journal;
}

/* Pieces that touch one of these stripes get the error. True if one had none before. */
static bool
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

/* To be called before each planning: members may have failed while we waited. */
static void
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

static void
area_give(struct run *run)
{
    if (run->area != NULL)
        pages_give(run->engine->scratch, run->area, run->area_bytes);
    run->area = NULL;
}

static uint8_t *
area_block(struct run *run)
{
    uint8_t *block = run->area + run->area_used;

    run->area_used += BLOCK_BYTES;
    assert(run->area_used <= run->area_bytes);
    return block;
}

/* A page for each block of a mask; consecutive stripes of a member lie together. */
static void
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

static task_fn struct io *
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

/* Tells the owner of members whose writes failed in this phase. */
static task_fn void
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

/* Reads plan.want and makes plan.recover, into old_block; extra_blocks are for the caller. False if
 * a read failed: nothing is held then, and the phase has to plan again. */
static task_fn bool
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

/* Mends what could not be read and has been reconstructed. */
static task_fn void
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

/* One page to mend with, if there is anything to mend. */
static unsigned
mend_pages(const struct run *run)
{
    return masks_union(run, run->errors) != 0;
}

/* --- What is cached -------------------------------------------------------------------------- */

/* The stripes that the pieces concern. */
static uint64_t
pieces_stripes(const struct run *run)
{
    uint64_t stripes = 0;

    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        if (piece->kind == PIECE_CACHED)
            return run->stripes;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);)
            stripes |= slice_stripes(&slice);
    }
    return stripes;
}

static void
cached_forget(struct run *run)
{
    masks_clear(run, run->cached);
    masks_clear(run, run->lost);
    run->stuck = run->looked = 0;
}

/* Looks up what is cached in the pieces' stripes, where that was not done yet. Only who has the
 * group changes it (pages may go). */
static void
cached_look(struct run *run)
{
    const struct write_back *wb = run->engine->write_back;
    const uint64_t first = run->base / BLOCK_BYTES;
    uint64_t stripes;

    if (wb == NULL || !cache_group_maybe(wb->cache, run->group->index))
        return;
    stripes = pieces_stripes(run) & ~run->looked;
    run->looked |= stripes;
    for (; stripes != 0; stripes &= stripes - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(stripes);
        const uint64_t bit = stripes & -stripes;

        for (cache_node n = cache_first(wb->cache, first + s); n != 0;
             n = cache_next(wb->cache, n)) {
            const unsigned m = cache_member(wb->cache, n);

            run->node[block_at(run, m, s)] = n;
            if (cache_lost(wb->cache, n))
                run->lost[m] |= bit;
            else
                run->cached[m] |= bit;
            if (cache_stuck(wb->cache, n))
                run->stuck |= bit;
        }
    }
}

/* Keeps the pages of these cached blocks where they are; returns how many have none. */
static unsigned
cached_pin(struct run *run, const uint64_t *masks)
{
    struct cache *cache = run->engine->write_back->cache;
    unsigned dropped = 0;

    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        run->based[m] = masks[m] & run->cached[m];
        for (uint64_t rest = run->based[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));

            run->cached_block[b] = cache_page(cache, run->node[b]);
            if (run->cached_block[b] != NULL)
                cache_pin(cache, run->node[b]);
            else
                ++dropped;
        }
    }
    return dropped;
}

static void
cached_unpin(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        for (uint64_t rest = run->based[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));

            if (cache_page(run->engine->write_back->cache, run->node[b]) != NULL)
                cache_unpin(run->engine->write_back->cache, run->node[b]);
        }
        run->based[m] = 0;
    }
}

/* The block that was to be read back is not what was logged: C4. */
static void
cached_lose(struct run *run, unsigned m, unsigned s, int error)
{
    struct write_back *wb = run->engine->write_back;
    const size_t b = block_at(run, m, s);
    const uint64_t bit = UINT64_C(1) << s;
    const uint64_t set_aside = cache_counts(wb->cache)->reserve_blocks;
    uint64_t array_offset;

    cache_lose(wb->cache, run->node[b]);
    run->reserved += (int64_t)(set_aside - cache_counts(wb->cache)->reserve_blocks);
    run->cached[m] &= ~bit;
    run->based[m] &= ~bit;
    run->lost[m] |= bit;
    ++run->losses;
    ++wb->counts.lost;
    /* A recovery would take it for the end of the log: the tail has to pass it. */
    wb->rotten = true;
    journal_holder_moved(run->engine->journal);
    write_back_moved(wb);
    if (!geometry_unmap(run->engine->geometry, m, run->base + s * (uint64_t)BLOCK_BYTES,
                        &array_offset))
        assert(!"a cached block is data");
    wb->config.data_lost(run->engine->config.owner, array_offset, error);
}

/* Reads back, into scratch memory, what cached_pin found without a page, and verifies it. Blocks
 * that are lost leave based[]; false if there were any. */
static task_fn bool
cached_fetch(struct run *run)
{
    struct write_back *wb = run->engine->write_back;
    const struct engine_cache_config *config = &wb->config;
    const unsigned n = run->engine->members_count;
    const unsigned losses = run->losses;
    struct io_group ios;
    uint64_t ring_block;
    uint32_t checksum;
    bool any = false;

    io_group_init(&ios, run->engine->loop);
    for (unsigned m = 0; m < n; ++m)
        for (uint64_t rest = run->based[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));
            struct io *io;

            if (run->cached_block[b] != NULL)
                continue;
            any = true;
            run->cached_block[b] = area_block(run);
            cache_copy(wb->cache, run->node[b], &ring_block, &checksum);
            io = io_take(&run->engine->ios);
            io->op = IO_READ;
            io->offset = config->journal_data_offset + ring_block * BLOCK_BYTES;
            if (!io_add(io, run->cached_block[b], BLOCK_BYTES))
                assert(!"a fresh io has room");
            io_submit(io, config->journal, &ios);
            ++wb->counts.read_back;
        }
    if (!any)
        return true;
    (void)io_wait(&ios); /* what could not be read is not what its checksum says */
    for (unsigned m = 0; m < n; ++m)
        for (uint64_t rest = run->based[m]; rest != 0; rest &= rest - 1) {
            const unsigned s = (unsigned)__builtin_ctzll(rest);
            const size_t b = block_at(run, m, s);
            int error = -EBADMSG;

            if (cache_page(wb->cache, run->node[b]) != NULL)
                continue;
            cache_copy(wb->cache, run->node[b], &ring_block, &checksum);
            if (journal_checksum(config->checksum_seed, run->cached_block[b], BLOCK_BYTES) ==
                checksum)
                continue;
            /* Once more, alone: an error may pass, and says what it is. */
            error =
                device_read(config->journal, run->cached_block[b],
                            config->journal_data_offset + ring_block * BLOCK_BYTES, BLOCK_BYTES);
            if (error < 0 || journal_checksum(config->checksum_seed, run->cached_block[b],
                                              BLOCK_BYTES) != checksum)
                cached_lose(run, m, s, error < 0 ? error : -EBADMSG);
        }
    return run->losses == losses;
}

/* These stripes are on the members: nothing of them is cached any more. What was lost goes where it
 * was written anew. */
static void
cached_remove(struct run *run, uint64_t stripes)
{
    struct cache *cache = run->engine->write_back->cache;
    const uint64_t set_aside = cache_counts(cache)->reserve_blocks;

    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        uint64_t gone = (run->cached[m] | (run->lost[m] & (run->full[m] | run->part[m]))) & stripes;

        run->cached[m] &= ~gone;
        run->lost[m] &= ~gone;
        for (; gone != 0; gone &= gone - 1) {
            cache_remove(cache, run->node[block_at(run, m, (unsigned)__builtin_ctzll(gone))]);
            ++run->engine->write_back->counts.written_out;
        }
    }
    run->reserved += (int64_t)(set_aside - cache_counts(cache)->reserve_blocks);
    run->stuck &= ~stripes;
    write_back_moved(run->engine->write_back);
}

/* These stripes could not be written out: they stay in the log, for the next recovery. */
static void
cached_stick(struct run *run, uint64_t stripes)
{
    struct cache *cache = run->engine->write_back->cache;
    const uint64_t set_aside = cache_counts(cache)->reserve_blocks;
    bool some;

    stripes &= masks_union(run, run->cached);
    some = stripes != 0;
    run->stuck |= stripes;
    for (; stripes != 0; stripes &= stripes - 1)
        cache_stick(cache, run->base / BLOCK_BYTES + (unsigned)__builtin_ctzll(stripes));
    run->reserved += (int64_t)(set_aside - cache_counts(cache)->reserve_blocks);
    if (some) {
        run->engine->write_back->config.write_out_failed(run->engine->config.owner, run->base);
        write_back_moved(run->engine->write_back);
        journal_holder_moved(run->engine->journal);
    }
}

static void
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

/* --- Phase 2: changes ------------------------------------------------------------------------ */

static bool
piece_changes(const struct piece *piece)
{
    return piece->kind == PIECE_WRITE || piece->kind == PIECE_ZERO || piece->kind == PIECE_PUNCH ||
           piece->kind == PIECE_TRIM || piece->kind == PIECE_WRITE_OUT ||
           piece->kind == PIECE_CACHED;
}

static void
gather_slice(struct run *run, const struct piece *piece, const struct slice *slice)
{
    const unsigned m = slice->member;
    const uint64_t whole = slice_whole_stripes(slice);
    const uint64_t partial = slice_stripes(slice) & ~whole;

    if (piece->kind == PIECE_TRIM) {
        run->trim[m] |= whole & ~(run->full[m] | run->part[m]);
        return;
    }
    run->full[m] |= whole;
    run->part[m] = (run->part[m] & ~whole) | (partial & ~run->full[m]);
    run->own[m] |= partial;
    if (piece->kind == PIECE_WRITE && !slice_congruent(slice))
        run->own[m] |= whole;
    run->trim[m] &= ~(whole | partial);
    run->zero[m] &= ~(whole | partial);
    run->logged[m] &= ~(whole | partial);
    if (piece->kind == PIECE_WRITE_OUT)
        run->logged[m] |= whole;
    if (piece->kind == PIECE_PUNCH)
        run->zero[m] |= whole;
}

/* Stripes whose data is zeroed or trimmed altogether are punched; in others a trim is forgotten. */
static void
gather_punches(struct run *run)
{
    uint64_t candidates = 0;

    run->punched = 0;
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        candidates |= run->zero[m] | run->trim[m];
    for (; candidates != 0; candidates &= candidates - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(candidates);
        const struct row_shape *shape = plan_shape(&run->plan, s);
        const uint64_t bit = UINT64_C(1) << s;
        bool all = true;

        for (unsigned i = 0; i < shape->data_count; ++i)
            all = all && ((run->zero[shape->data[i]] | run->trim[shape->data[i]]) & bit);
        if (all)
            run->punched |= bit;
    }
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        run->full[m] &= ~run->punched;
}

static void
gather(struct run *run)
{
    uint64_t *const masks[] = {run->full, run->part, run->own, run->zero, run->trim, run->logged};

    for (unsigned i = 0; i < ARRAY_LEN(masks); ++i)
        masks_clear(run, masks[i]);
    run->fua = false;
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        if (!piece_changes(piece) || piece->result < 0)
            continue;
        run->fua = run->fua || piece->fua;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);)
            gather_slice(run, piece, &slice);
    }
    gather_punches(run);
    run->touched = masks_union(run, run->full) | masks_union(run, run->part);
}

/* Puts length bytes of new content at a place within a block that is put together in a page of
 * ours. */
static void
overlay(struct run *run, unsigned m, unsigned s, unsigned at, const uint8_t *source,
        unsigned length)
{
    const size_t b = block_at(run, m, s);
    const uint8_t *base = run->new_block[b];

    /* A block that a later piece covers altogether was not read: what is around does not matter. */
    if (base == NULL && (run->part[m] >> s & 1))
        base = run->old_block[b];
    if (length < BLOCK_BYTES && base != NULL && base != run->own_block[b])
        memcpy(run->own_block[b], base, BLOCK_BYTES);
    if (source != NULL)
        memcpy(run->own_block[b] + at, source, length);
    else
        memset(run->own_block[b] + at, 0, length);
    run->new_block[b] = run->own_block[b];
}

static void
compose_slice(struct run *run, const struct piece *piece, const struct slice *slice)
{
    const bool in_place = piece->kind != PIECE_WRITE || slice_congruent(slice);

    for (uint64_t at = 0; at < slice->length;) {
        const uint64_t offset = slice->offset + at;
        const unsigned s = (unsigned)(offset / BLOCK_BYTES),
                       within = (unsigned)(offset % BLOCK_BYTES);
        const unsigned length = (unsigned)min_u64(BLOCK_BYTES - within, slice->length - at);
        uint8_t *memory = slice->memory == NULL ? NULL : slice->memory + at;

        at += length;
        if ((run->touched & ~run->plan.failed) >> s & 1) {
            if (length < BLOCK_BYTES || !in_place)
                overlay(run, slice->member, s, within, memory, length);
            else
                run->new_block[block_at(run, slice->member, s)] =
                    memory != NULL ? memory : run->engine->zeros + s * (uint64_t)BLOCK_BYTES;
        }
    }
}

/* New content of every block that is written: in the caller's memory where it can stay there. */
static void
compose(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        for (uint64_t rest = run->full[m] | run->part[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));

            run->new_block[b] = run->based[m] & rest & -rest ? run->cached_block[b] : NULL;
        }
    area_assign(run, run->own, run->own_block);
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        if (!piece_changes(piece) || piece->kind == PIECE_TRIM || piece->result < 0)
            continue;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);)
            compose_slice(run, piece, &slice);
    }
}

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

/* Parity of all stripes in the mask, runs of adjoining stripes in one call. */
static void
compute_parity(struct run *run, uint64_t mask, bool by_delta)
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

/* Marks the parity blocks of these stripes in a mask array, where they are made. */
static void
mark_parity(struct run *run, uint64_t stripes, uint64_t *masks)
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

/* --- Writing --- */

static task_fn void
write_blocks(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        if (run->write[m] != 0)
            run_transfer(run, IO_WRITE, m, run->write[m], run->new_block);
}

static task_fn void
punch_stripes(struct run *run)
{
    for (uint64_t rest = run->punched; rest != 0;) {
        unsigned first, count;

        mask_first_run(rest, &first, &count);
        rest &= ~mask_of(first, count);
        for (unsigned m = 0; m < run->engine->members_count; ++m) {
            struct io *io;

            if (!(run->writable[m] & 1))
                continue;
            io = run_io(run, IO_PUNCH, m, first);
            io->length = count * (uint64_t)BLOCK_BYTES;
            io_submit(io, run->engine->members[m].device, &run->ios);
        }
    }
}

/* A device promised to punch and did not: some members may be zero now, so all are made zero. */
static task_fn void
write_zeros_instead(struct run *run)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        run->write[m] = run->punched & run->writable[m];
        for (uint64_t rest = run->write[m]; rest != 0; rest &= rest - 1) {
            const unsigned s = (unsigned)__builtin_ctzll(rest);

            run->new_block[block_at(run, m, s)] = run->engine->zeros + s * (uint64_t)BLOCK_BYTES;
        }
    }
    write_blocks(run);
    (void)io_wait(&run->ios); /* errors are kept by member */
}

/* With this stripe's parity in doubt: is a data block of it in the bad block log, or gone with
 * nobody to say that parity has to be believed? The write makes parity good, but nobody remembers
 * that. */
static bool
data_lost_in_doubt(const struct run *run, uint64_t bit)
{
    const struct row_shape *shape = plan_shape(&run->plan, (unsigned)__builtin_ctzll(bit));

    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];
        const uint64_t believed = run->gone[m] & run->plan.parity_believed;

        if (run->unreadable[m] & ~run->errors[m] & ~believed & bit)
            return true;
    }
    return false;
}

/* Stripes of which a block would be written that nobody could read again: it is gone or stands in
 * the bad block log, and so do more of its stripe than parity covers, or parity is in doubt. */
static uint64_t
unreadable_afterwards(const struct run *run)
{
    const unsigned n = run->engine->members_count;
    uint64_t concerned = 0, hopeless = 0;

    for (unsigned m = 0; m < n; ++m)
        concerned |= run->unreadable[m] & ~run->errors[m] & (run->full[m] | run->part[m]);
    for (; concerned != 0; concerned &= concerned - 1) {
        const uint64_t bit = concerned & -concerned;
        unsigned lost = 0;

        for (unsigned m = 0; m < n; ++m)
            lost += (run->unreadable[m] & ~run->errors[m] & bit) != 0;
        if (lost > run->engine->geometry->parities ||
            ((run->plan.parity_known & bit) == 0 && data_lost_in_doubt(run, bit)))
            hopeless |= bit;
    }
    return hopeless;
}

/* --- Bridging --- */

/* The mask with gaps of up to so many between its bits filled. */
static uint64_t
mask_bridged(uint64_t mask, unsigned most)
{
    uint64_t rest = mask;

    while (rest != 0) {
        unsigned first, count, gap;

        mask_first_run(rest, &first, &count);
        rest &= ~mask_of(first, count);
        gap = rest == 0 ? 0 : (unsigned)__builtin_ctzll(rest) - first - count;
        if (gap > 0 && gap <= most)
            mask |= mask_of(first + count, gap);
    }
    return mask;
}

static unsigned
mask_runs(uint64_t mask)
{
    return (unsigned)__builtin_popcountll(mask & ~(mask << 1));
}

/* What lies between blocks that are read or written is read too where that is cheaper than another
 * I/O; and written as it is where that spares a seek (it would only wear out what does not seek).
 * Only where nothing has to be reconstructed: what is read then is what the member holds. */
static void
bridge(struct run *run)
{
    const unsigned n = run->engine->members_count;

    masks_clear(run, run->bridged);
    if (masks_union(run, run->unreadable) != 0 || run->punched != 0)
        return;
    for (unsigned m = 0; m < n; ++m) {
        const bool seeks = run->engine->members[m].device->seeks;
        const unsigned most = seeks ? GAP_SEEKS : GAP;
        const uint64_t write = run->write[m] | ((run->full[m] | run->part[m]) & ~run->plan.failed);
        const uint64_t want = run->plan.want[m];
        const uint64_t longer = seeks ? mask_bridged(write, most) : write;
        const uint64_t gaps = seeks ? mask_bridged(want | write, most) & ~(want | write) : 0;
        const uint64_t wanted = mask_bridged(want | gaps, most);

        /* Reads and writes together must become fewer. */
        if (mask_runs(wanted) + mask_runs(longer) >= mask_runs(want) + mask_runs(write))
            continue;
        run->plan.want[m] = wanted;
        run->bridged[m] = longer & ~write;
    }
}

/* --- Logging --- */

/* The lowest of these stripes, as many as fit into one append, and the blocks of the log that they
 * take at most; with their parity if they go through. */
static uint64_t
stripes_for_log(const struct run *run, uint64_t stripes, bool through, uint64_t *need)
{
    const struct engine *engine = run->engine;
    const uint64_t most = journal_reserve_max(engine->journal);
    uint64_t batch = 0, count = 0, data = 0, parity = 0;

    *need = 0;
    for (; stripes != 0; stripes &= stripes - 1) {
        const uint64_t bit = stripes & -stripes;
        uint64_t with;

        for (unsigned m = 0; m < engine->members_count; ++m)
            data += ((run->full[m] | run->part[m]) & ~run->logged[m] & bit) != 0;
        parity += through ? engine->geometry->parities : 0;
        with = journal_need(engine->journal, ++count, data, parity);
        if (with > most)
            break;
        batch |= bit;
        *need = with;
    }
    assert(batch != 0);
    return batch;
}

/* Leaves only these stripes to be changed. */
static void
changes_restrict(struct run *run, uint64_t stripes)
{
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        run->full[m] &= stripes;
        run->part[m] &= stripes;
        run->own[m] &= stripes;
        run->based[m] &= stripes;
    }
    run->touched &= stripes;
}

/* One stripe's new data, and its parity if it goes through: one step of the log (E7). */
static int
log_stripe(struct run *run, struct journal_append *append, unsigned s, bool through)
{
    const struct engine *engine = run->engine;
    const struct row_shape *shape = plan_shape(&run->plan, s);
    const uint64_t member_offset = run->base + s * (uint64_t)BLOCK_BYTES;
    struct journal_step step = {
        .member_offset = member_offset,
        .data = run->log_data,
    };
    unsigned number = 0;
    int result;

    if (through) {
        step.p = run->new_block[block_at(run, shape->p, s)];
        step.q = shape->q == NO_MEMBER ? NULL : run->new_block[block_at(run, shape->q, s)];
    }
    for (unsigned i = 0; i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];
        struct journal_data *data = &run->log_data[step.data_count];

        if (((run->full[m] | run->part[m]) & ~run->logged[m]) >> s & 1) {
            if (!geometry_unmap(engine->geometry, m, member_offset, &data->array_offset))
                assert(!"a data member holds data");
            data->memory = run->new_block[block_at(run, m, s)];
            ++step.data_count;
        }
    }
    result = journal_append_step(engine->journal, append, &step);
    for (unsigned i = 0; !through && i < shape->data_count; ++i) {
        const unsigned m = shape->data[i];

        if ((run->full[m] | run->part[m]) >> s & 1) {
            run->place[block_at(run, m, s)] = (struct logged_block){
                .entry_block = (uint32_t)(step.entry_position / BLOCK_BYTES),
                .number = step.first_block + number,
                .checksum = run->log_data[number].checksum,
            };
            ++number;
        }
    }
    return result;
}

/* Logs the stripes. If they go through, waits until they are durable: nothing of them may reach a
 * member before, since a crash would leave parity that lies. If they are cached, it is enough that
 * nothing can come between them and what follows in the log. */
static task_fn int
log_stripes(struct run *run, struct journal_append *append, uint64_t stripes, uint64_t reserved,
            bool through)
{
    int result = 0, waited;

    journal_append_begin(run->engine->journal, append, reserved);
    run->reserved -= (int64_t)reserved;
    for (; stripes != 0 && result == 0; stripes &= stripes - 1)
        result = log_stripe(run, append, (unsigned)__builtin_ctzll(stripes), through);
    waited = journal_append_wait(run->engine->journal, append,
                                 through ? JOURNAL_DURABLE : JOURNAL_COMPLETE);
    return result < 0 ? result : waited;
}

/* The log may forget the stripes where they are on all working members (and it is on record which
 * ones do not work); else they are for the next recovery. */
static void
log_end(struct run *run, struct journal_append *append)
{
    struct engine *engine = run->engine;

    if (engine_degraded(engine) > engine->geometry->parities)
        journal_append_abandon(engine->journal, append);
    else
        journal_append_finish(engine->journal, append);
}

/* What was cached of the stripes that went through need not be any more, where they could. */
static void
cached_end(struct run *run)
{
    const bool beyond = engine_degraded(run->engine) > run->engine->geometry->parities;
    const uint64_t failed = beyond ? run->touched : run->touched & run->plan.failed;

    cached_remove(run, run->touched & ~failed);
    cached_stick(run, failed & ~run->stuck);
}

/* --- The whole phase --- */

/* With the log gone what is cached is nowhere else. Of the stripes that cannot be done, those where
 * parity is in doubt anyway, and nobody has to believe it for want of a member: there it can go to
 * the members by itself. (While there is a log it stays there: parity may be better than is known.)
 */
static uint64_t
stripes_alone(const struct run *run)
{
    uint64_t alone =
        run->engine->log_gone ? run->touched & run->plan.failed & ~run->plan.parity_known : 0;

    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        const uint64_t changed = run->full[m] | run->part[m];

        alone &= ~run->gone[m];
        alone &= ~(changed &
                   (~run->logged[m] | ~run->writable[m] | (run->unreadable[m] & ~run->errors[m])));
    }
    return alone;
}

/* What has been gathered: read, made, logged, written. reserved: blocks of the log. False if
 * something that is cached was lost on the way, or may go without a write that cannot: to be
 * gathered again without that. */
static task_fn bool
change_stripes(struct run *run, uint64_t reserved)
{
    struct journal *const journal = run_journal(run);
    const bool caches = masks_union(run, run->based) != 0;
    const unsigned dropped = caches ? cached_pin(run, run->based) : 0;
    const unsigned n = run->engine->members_count;
    struct journal_append append;
    uint64_t parity_stripes, extra, parity_blocks, hopeless, alone;

    phase_begin(run);
    do {
        run_look(run);
        hopeless = unreadable_afterwards(run);
        plan_write(&run->plan, run->touched & ~hopeless, run->full, run->part);
        run->plan.failed |= hopeless;
        alone = stripes_alone(run);
        run->plan.failed &= ~alone;
        parity_stripes = run->plan.by_data | run->plan.by_delta;
        masks_clear(run, run->write);
        mark_parity(run, parity_stripes, run->write);
        parity_blocks = plan_count(run->write, n);
        extra = parity_blocks + plan_count(run->own, n) + mend_pages(run) + dropped;
        bridge(run);
    } while (!run_fetch(run, extra));
    if (pieces_fail(run, run->plan.failed & masks_union(run, run->cached), -EIO, piece_changes) ||
        (caches && !cached_fetch(run))) {
        if (caches)
            cached_unpin(run);
        area_give(run);
        return false;
    }

    area_assign(run, run->write, run->new_block); /* parity only, so far */
    compose(run);
    compute_parity(run, run->plan.by_data, false);
    compute_parity(run, run->plan.by_delta, true);
    if (journal != NULL && log_stripes(run, &append, parity_stripes, reserved, true) < 0) {
        journal_append_finish(journal, &append);
        if (caches)
            cached_unpin(run); /* what was cached is as it was */
        area_give(run);
        (void)pieces_fail(run, run->touched, -EIO, piece_changes);
        return true;
    }
    for (unsigned m = 0; m < n; ++m) {
        run->write[m] |= (run->full[m] | run->part[m]) & ~run->plan.failed;
        for (uint64_t rest = run->bridged[m]; rest != 0; rest &= rest - 1) {
            const size_t b = block_at(run, m, (unsigned)__builtin_ctzll(rest));

            run->new_block[b] = run->old_block[b];
        }
        run->write[m] |= run->bridged[m];
        run->write[m] &= run->writable[m];
        run->errors[m] &= ~run->write[m]; /* the write mends it: with what is new */
    }

    run->punch_refused = false;
    write_blocks(run);
    punch_stripes(run);
    (void)io_wait(&run->ios); /* errors are kept by member */
    if (run->punch_refused)
        write_zeros_instead(run);
    /* A punch carries no FUA. Here it may have taken the place of a write with FUA that came in
     * the same batch, and what that write replaced must not come back after a crash. */
    if (run->fua && run->punched != 0)
        engine_flush_members(run->engine);
    run_report_members(run, "write");
    if (caches)
        cached_unpin(run);
    if (run->engine->write_back != NULL)
        cached_end(run); /* E12 */
    if (journal != NULL)
        log_end(run, &append);
    if (mend_pages(run) > 0)
        run_mend(run, area_block(run));
    area_give(run);

    (void)pieces_fail(run, run->plan.failed, -EIO, piece_changes);
    if (engine_degraded(run->engine) > run->engine->geometry->parities)
        (void)pieces_fail(run, run->stripes, -EIO, piece_changes);
    return true;
}

/* A long write begins or ends within this group's rows, and whoever writes in sequence brings the
 * rest soon. Logged apart, each part would take its own parity, and reads. While the log is busy
 * with earlier entries, which would be waited for anyway, the rest may come. */
static task_fn void
await_rest(struct run *run)
{
    const struct engine *engine = run->engine;
    struct piece_list *const queued = &run->group->pieces;
    const unsigned covered = plan_count(run->full, engine->members_count);
    const unsigned all =
        (unsigned)__builtin_popcountll(run->stripes) * engine->geometry->data_members;

    if (covered < all / AWAIT_SHARE || covered == all)
        return;
    journal_settle(engine->journal);
    while (queued->first != NULL && piece_changes(queued->first)) {
        struct piece *piece = queued->first;

        queued->first = piece->next;
        piece_list_add(&run->pieces, piece);
    }
    if (queued->first == NULL)
        piece_list_init(queued);
    cached_look(run);
    gather(run);
}

/* The blocks that were logged are cached now. */
static void
cached_put(struct run *run)
{
    struct write_back *wb = run->engine->write_back;
    const uint64_t set_aside = cache_counts(wb->cache)->reserve_blocks;

    for (uint64_t rest = run->touched & ~run->plan.failed; rest != 0; rest &= rest - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(rest);

        for (unsigned m = 0; m < run->engine->members_count; ++m) {
            const size_t b = block_at(run, m, s);

            if ((run->full[m] | run->part[m]) >> s & 1)
                cache_put(wb->cache,
                          &(struct cache_place){.stripe = run->base / BLOCK_BYTES + s,
                                                .member = m,
                                                .entry_block = run->place[b].entry_block,
                                                .block = run->place[b].number,
                                                .checksum = run->place[b].checksum},
                          run->new_block[b]);
        }
    }
    run->reserved -= (int64_t)(cache_counts(wb->cache)->reserve_blocks - set_aside);
    write_back_put(wb);
}

/* What has been gathered, left in the log: partial blocks completed, logged, cached. False as
 * change_stripes. */
static task_fn bool
cache_stripes(struct run *run, uint64_t reserved)
{
    struct journal *const journal = run->engine->journal;
    const bool caches = masks_union(run, run->based) != 0;
    const unsigned dropped = caches ? cached_pin(run, run->based) : 0;
    struct journal_append append;
    int result;

    phase_begin(run);
    do {
        run_look(run);
        memcpy(run->plan.need, run->part, run->engine->members_count * sizeof *run->part);
        plan_read(&run->plan, masks_union(run, run->part));
    } while (!run_fetch(run, plan_count(run->own, run->engine->members_count) + mend_pages(run) +
                                 dropped));
    if (caches && !cached_fetch(run)) {
        cached_unpin(run);
        area_give(run);
        return false;
    }
    compose(run);
    if (mend_pages(run) > 0)
        run_mend(run, area_block(run));
    result = log_stripes(run, &append, run->touched & ~run->plan.failed, reserved, false);
    if (caches)
        cached_unpin(run);
    /* Nothing of an append that did not come to its end reaches the cache: what was there before
     * counts. */
    if (result == 0)
        cached_put(run);
    /* Not before: the entry bounds the tail until the cache does. */
    journal_append_finish(journal, &append);
    area_give(run);
    (void)pieces_fail(run, result < 0 ? run->touched : run->plan.failed, -EIO, piece_changes);
    return true;
}

/* Partial writes to what is lost cannot be completed. True if there are any: they are errors now.
 */
static bool
fail_incomplete(struct run *run)
{
    bool any = false;

    if (masks_union(run, run->lost) == 0)
        return false;
    for (struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        struct slice slice;

        if (!piece_changes(piece) || piece->result < 0)
            continue;
        for (uint64_t at = 0; piece_slice(run, piece, &at, &slice);)
            if (slice_stripes(&slice) & ~slice_whole_stripes(&slice) & run->part[slice.member] &
                run->lost[slice.member]) {
                piece->result = -EIO;
                any = true;
            }
    }
    return any;
}

/* Gathers these stripes' changes, and what is cached and has to be at hand for them: all of it
 * where they go through, else what partial blocks are completed with. */
static void
changes_take(struct run *run, uint64_t stripes, bool through)
{
    gather(run);
    if (fail_incomplete(run))
        gather(run);
    run->fua = false; /* what goes through the log is durable; who caches flushes the log */
    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        const uint64_t wanted = through ? run->cached[m] : run->cached[m] & run->part[m];
        const uint64_t based = wanted & ~run->full[m];

        run->based[m] = based;
        run->logged[m] |= based & ~run->part[m];
        run->full[m] |= based;
        run->part[m] &= ~based;
        run->touched |= based;
    }
    changes_restrict(run, stripes);
}

/* What is more than these changes take of the log, for the changes and for what they set aside, is
 * given back before it is waited for anything. */
static void
reserve_trim(struct run *run, uint64_t need, bool through)
{
    struct cache *cache = run->engine->write_back == NULL ? NULL : run->engine->write_back->cache;
    int64_t keep = (int64_t)need;

    for (uint64_t rest = cache == NULL ? 0 : run->touched; rest != 0; rest &= rest - 1) {
        const uint64_t bit = rest & -rest;
        unsigned before = 0, after = 0;

        for (unsigned m = 0; m < run->engine->members_count; ++m) {
            before += (run->cached[m] & bit) != 0;
            after += ((run->cached[m] | run->full[m] | run->part[m]) & bit) != 0;
        }
        keep -= run->stuck & bit ? 0 : (int64_t)cache_reserve(cache, before);
        keep += through ? 0 : (int64_t)cache_reserve(cache, after);
    }
    keep = keep > 0 ? keep : 0;
    if (run->reserved > keep && run_journal(run) != NULL) {
        journal_unreserve(run->engine->journal, (uint64_t)(run->reserved - keep));
        run->reserved = keep;
    }
}

static task_fn void
changes_run(struct run *run, uint64_t stripes, bool through, bool last)
{
    while (stripes != 0) {
        uint64_t batch, need;

        changes_take(run, stripes, through);
        stripes = run->touched;
        if (stripes == 0)
            break;
        batch = stripes_for_log(run, stripes, through, &need);
        changes_restrict(run, batch);
        if (last && batch == stripes)
            reserve_trim(run, need, through);
        if (through ? change_stripes(run, need) : cache_stripes(run, need))
            stripes &= ~batch;
    }
}

/* Which of the stripes that are changed have all their data changed? */
static uint64_t
stripes_full(const struct run *run)
{
    uint64_t full = 0;

    for (uint64_t rest = run->touched; rest != 0; rest &= rest - 1) {
        const struct row_shape *shape = plan_shape(&run->plan, (unsigned)__builtin_ctzll(rest));
        const uint64_t bit = rest & -rest;
        bool all = true;

        for (unsigned i = 0; all && i < shape->data_count; ++i)
            all = (run->full[shape->data[i]] & bit) != 0;
        full |= all ? bit : 0;
    }
    return full;
}

/* The part of what has been gathered that is cached; there is room for it, or *room grows. The rest
 * goes through:
 *
 *   all of it where nothing is cached (any more), or there is no room for it
 *   stripes that are written as a whole: nothing would be won by writing them later
 *   stripes with blocks that nobody can read: they may be refused, which has to be now
 *   stripes that could not be written out */
static uint64_t
stripes_to_cache(struct run *run, struct cache_room *room)
{
    struct write_back *wb = run->engine->write_back;
    struct cache_room need = {0}, more;
    uint64_t chosen;

    if (!write_back_fills(wb) || journal_failed(run->engine->journal))
        return 0;
    masks_clear(run, run->errors);
    run_look(run);
    chosen = run->touched & ~stripes_full(run) & ~masks_union(run, run->unreadable) & ~run->stuck &
             ~masks_union(run, run->lost) & ~masks_union(run, run->logged);
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        need.blocks += (unsigned)__builtin_popcountll((run->full[m] | run->part[m]) &
                                                      ~run->cached[m] & chosen);
    need.stripes = (unsigned)__builtin_popcountll(chosen & ~masks_union(run, run->cached));
    more.blocks = need.blocks > room->blocks ? need.blocks - room->blocks : 0;
    more.stripes = need.stripes > room->stripes ? need.stripes - room->stripes : 0;
    if (more.blocks + more.stripes > 0) {
        if (!cache_promise(wb->cache, more))
            return 0;
        room->blocks += more.blocks;
        room->stripes += more.stripes;
    }
    return chosen;
}

static bool
writes_out(const struct run *run)
{
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next)
        if (piece->kind == PIECE_CACHED)
            return true;
    return false;
}

/* E9. Who has space in the log waits for groups, scratch memory, devices and superblocks only, and
 * those who hold one of these have their space, so it comes back. */
static task_fn void
phase_changes(struct run *run)
{
    struct write_back *wb = run->engine->write_back;
    struct cache_room room = {0};
    uint64_t through, caching;

    gather(run);
    if (run->engine->journal == NULL) {
        masks_clear(run, run->based);
        ignored(change_stripes(run, 0)); /* nothing is cached */
        return;
    }
    await_rest(run);
    for (struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        run->reserved += (int64_t)piece->reserved;
        room.blocks += piece->room.blocks;
        room.stripes += piece->room.stripes;
    }
    caching = stripes_to_cache(run, &room);
    through = run->touched & ~caching;
    if (wb != NULL && writes_out(run)) {
        /* What is written to these stripes now goes along. */
        through |=
            masks_union(run, run->cached) & (run->engine->log_gone ? run->stripes : ~run->stuck);
        caching &= ~through;
    }
    if (caching != 0) {
        ++wb->caching;
        changes_run(run, caching, false, through == 0);
        if (--wb->caching == 0)
            write_back_moved(wb);
    }
    if (wb != NULL)
        cache_promise_end(wb->cache, room);
    changes_run(run, through, true, true);
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
        mark_parity(run, run->stripes & ~run->plan.failed, run->write);
    } while (!run_fetch(run, plan_count(run->write, n)));

    area_assign(run, run->write, run->new_block);
    compute_parity(run, run->stripes & ~run->plan.failed, false);
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

task_fn void
run_group(struct run *run)
{
    const struct engine *engine = run->engine;
    bool reads = false, changes = false, resyncs = false;

    run->base = run->group->index * engine->group_bytes;
    run->reserved = 0;
    run->losses = 0;
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
    if (run->reserved > 0 && !journal_failed(engine->journal))
        journal_unreserve(engine->journal, (uint64_t)run->reserved);
    assert(run->reserved >= 0 || journal_failed(engine->journal));
}
