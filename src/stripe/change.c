/*
 * change.c: what a worker does with the pieces that change something: write-through, write-out,
 * and what is left in the log (cached.c).
 *
 *      gather   what the pieces, and the cache, have for which blocks
 *      plan     which blocks must be read                        (plan.c)
 *      fetch    take scratch memory; read; reconstruct           (run.c)
 *      compose  the new content of every block
 *      parity                                                    (parity_run.c)
 *      log      wait until it is durable
 *      write    to the members; record what failed
 */
#include "stripe/run.h"

/* Of a group's data, the part from which on a write is a long one: a quarter. */
#define AWAIT_SHARE 4u
/* Blocks between two, up to which one I/O is cheaper than two: where it costs their transfer alone
 * (reads), and where it spares a seek (reads and writes). */
#define GAP       8u
#define GAP_SEEKS 16u

/* --- Phase 2: changes ------------------------------------------------------------------------ */

bool
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
    run->gathered = true;
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

void
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
    return mask_count(mask & ~(mask << 1));
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

        if (((want | write) & ((want | write) - 1)) == 0)
            continue; /* a single block, or none */

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

task_fn int
log_stripes(struct run *run, struct journal_append *append, uint64_t stripes, uint64_t reserved,
            bool through)
{
    int result = journal_append_begin(run->engine->journal, append, reserved), waited;

    if (result < 0)
        return result;
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

/* --- The whole phase --- */

/* With the log gone what is cached is nowhere else. Of the stripes that cannot be done, those where
 * parity is in doubt anyway, and nobody has to believe it for want of a member: there it can go to
 * the members by itself. (While there is a log it stays there: parity may be better than is known.)
 */
static uint64_t
stripes_alone(const struct run *run)
{
    uint64_t alone = run->engine->log_gone && !run->logs
                         ? run->touched & run->plan.failed & ~run->plan.parity_known
                         : 0;

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
        run_mark_parity(run, parity_stripes, run->write);
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
    run_parity(run, run->plan.by_data, false);
    run_parity(run, run->plan.by_delta, true);
    /* What the others have set aside stays so. */
    if (journal != NULL && parity_stripes != run->touched) {
        reserved = 0;
        if (parity_stripes != 0)
            ignored(stripes_for_log(run, parity_stripes, true, &reserved)); /* all: part of it */
    }
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
        cached_end(run, journal != NULL ? parity_stripes : 0); /* E12 */
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
    const unsigned all = mask_count(run->stripes) * engine->geometry->data_members;

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

/* Gathers these stripes' changes, and what is cached and has to be at hand for them: all of it
 * where they go through, else what partial blocks are completed with. */
static void
changes_take(struct run *run, uint64_t stripes, bool through)
{
    if (!run->gathered)
        gather(run);
    run->gathered = false;
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
 * given back before it is waited for anything. What a stripe has set aside comes free when it has
 * gone through, for itself: one that gets stuck instead takes nothing, and keeps it. */
static void
reserve_trim(struct run *run, uint64_t need, bool through)
{
    struct cache *cache = run->engine->write_back == NULL ? NULL : run->engine->write_back->cache;
    int64_t keep = (int64_t)need;

    for (uint64_t rest = cache == NULL ? 0 : run->touched; rest != 0; rest &= rest - 1) {
        const uint64_t bit = rest & -rest;
        unsigned before = 0, after = 0;
        uint64_t logged = run->engine->geometry->parities;

        for (unsigned m = 0; m < run->engine->members_count; ++m) {
            before += (run->cached[m] & bit) != 0;
            after += ((run->cached[m] | run->full[m] | run->part[m]) & bit) != 0;
            logged += ((run->full[m] | run->part[m]) & ~run->logged[m] & bit) != 0;
        }
        if (!through)
            keep += (int64_t)cache_reserve(cache, after) - (int64_t)cache_reserve(cache, before);
        else if (!(run->stuck & bit))
            keep -= (int64_t)min_u64(cache_reserve(cache, before), logged);
    }
    keep = keep > 0 ? keep : 0;
    if (run->reserved > keep && run_journal(run) != NULL && !journal_failed(run_journal(run))) {
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

static bool
writes_out(const struct run *run)
{
    for (const struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next)
        if (piece->kind == PIECE_CACHED)
            return true;
    return false;
}

task_fn void
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
    /* No piece joins any more: those that came since are written out by another run. */
    run->logs = !run->engine->log_gone;
    run->cacheable = true;
    for (struct piece *piece = run->pieces.first; piece != NULL; piece = piece->next) {
        run->reserved += (int64_t)piece->reserved;
        run->cacheable = run->cacheable &&
                         (piece->cacheable || !piece_changes(piece) || piece->kind == PIECE_CACHED);
        room.blocks += piece->room.blocks;
        room.class_stripes += piece->room.class_stripes;
    }
    caching = stripes_to_cache(run, &room);
    through = run->touched & ~caching;
    if (wb != NULL && writes_out(run)) {
        /* What is written to these stripes now goes along. */
        through |= masks_union(run, run->cached) & (run->logs ? ~run->stuck : run->stripes);
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
