/*
 * cached.c: what only the log holds of a group, and changes that are left there.
 *
 * Only who has the group changes what is cached of it (pages may go, unless they are pinned). See
 * cache.h for the index, engine.h for what holds (E10-E12).
 */
#include "stripe/run.h"

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

/* Blocks of the log that all cached stripes have set aside (C2). */
static uint64_t
set_aside(const struct run *run)
{
    return cache_counts(run->engine->write_back->cache)->reserve_blocks;
}

void
cached_forget(struct run *run)
{
    masks_clear(run, run->cached);
    masks_clear(run, run->lost);
    run->stuck = run->looked = 0;
}

void
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

unsigned
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

void
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

/* What cached stripes have set aside of the log has changed from `before`: the run has the rest. */
static void
reserve_follow(struct run *run, uint64_t before)
{
    run->reserved += (int64_t)(before - set_aside(run));
}

/* The block that was to be read back is not what was logged: C4. */
static void
cached_lose(struct run *run, unsigned m, unsigned s, int error)
{
    struct write_back *wb = run->engine->write_back;
    const size_t b = block_at(run, m, s);
    const uint64_t bit = UINT64_C(1) << s;
    const uint64_t before = set_aside(run);
    uint64_t array_offset;

    cache_lose(wb->cache, run->node[b]);
    reserve_follow(run, before);
    run->cached[m] &= ~bit;
    run->based[m] &= ~bit;
    run->lost[m] |= bit;
    ++run->losses;
    ++wb->counts.lost;
    write_back_moved(wb);
    if (!geometry_unmap(run->engine->geometry, m, run->base + s * (uint64_t)BLOCK_BYTES,
                        &array_offset))
        assert(!"a cached block is data");
    wb->config.data_lost(run->engine->config.owner, array_offset, error);
    journal_rotten(run->engine->journal, error);
}

task_fn bool
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
            int error;

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

/* These stripes are on the members: nothing of them is cached any more. */
static void
cached_remove(struct run *run, uint64_t stripes)
{
    struct cache *cache = run->engine->write_back->cache;
    const uint64_t before = set_aside(run);

    for (unsigned m = 0; m < run->engine->members_count; ++m) {
        uint64_t gone = run->cached[m] & stripes;

        run->cached[m] &= ~gone;
        for (; gone != 0; gone &= gone - 1) {
            cache_remove(cache, run->node[block_at(run, m, (unsigned)__builtin_ctzll(gone))]);
            ++run->engine->write_back->counts.written_out;
        }
    }
    reserve_follow(run, before);
    run->stuck &= ~stripes;
    write_back_moved(run->engine->write_back);
}

/* These stripes could not be written out: they stay in the log, for the next recovery. It has to
 * find room for their parity (C2), unless that is logged already. */
static void
cached_stick(struct run *run, uint64_t stripes, uint64_t parity_logged)
{
    struct cache *cache = run->engine->write_back->cache;
    const uint64_t before = set_aside(run);

    stripes &= masks_union(run, run->cached);
    if (stripes == 0)
        return;
    run->stuck |= stripes;
    for (; stripes != 0; stripes &= stripes - 1) {
        const unsigned s = (unsigned)__builtin_ctzll(stripes);

        cache_stick(cache, run->base / BLOCK_BYTES + s, !(parity_logged >> s & 1));
    }
    reserve_follow(run, before);
    run->engine->write_back->config.write_out_failed(run->engine->config.owner, run->base);
    write_back_moved(run->engine->write_back);
}

void
cached_end(struct run *run, uint64_t parity_logged)
{
    const bool beyond = engine_degraded(run->engine) > run->engine->geometry->parities;
    const uint64_t failed = beyond ? run->touched : run->touched & run->plan.failed;

    if (masks_union(run, run->cached) == 0)
        return;
    cached_remove(run, run->touched & ~failed);
    cached_stick(run, failed & ~run->stuck, parity_logged);
}

/* The blocks that were logged are cached now. */
static void
cached_put(struct run *run)
{
    struct write_back *wb = run->engine->write_back;
    const uint64_t before = set_aside(run);

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
    reserve_follow(run, before);
    write_back_put(wb);
}

task_fn bool
cache_stripes(struct run *run, uint64_t reserved)
{
    struct journal *const journal = run->engine->journal;
    const bool caches = masks_union(run, run->based) != 0;
    const unsigned dropped = caches ? cached_pin(run, run->based) : 0;
    struct journal_append append;
    int result;

    phase_begin(run);
    run->plan.failed = 0;
    while (caches || masks_union(run, run->own) != 0) { /* else the memory is the caller's */
        run_look(run);
        memcpy(run->plan.need, run->part, run->engine->members_count * sizeof *run->part);
        plan_read(&run->plan, masks_union(run, run->part));
        if (run_fetch(run,
                      plan_count(run->own, run->engine->members_count) + mend_pages(run) + dropped))
            break;
    }
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

/* How many blocks of the stripe are cached, and whether the member's is; false if some are not as
 * they should be. */
static bool
stripe_sound(const struct cache *cache, uint64_t stripe, unsigned member, unsigned *blocks,
             bool *there)
{
    *blocks = 0;
    *there = false;
    for (cache_node n = cache_first(cache, stripe); n != 0; n = cache_next(cache, n)) {
        if (cache_stuck(cache, n))
            return false;
        ++*blocks;
        *there = *there || cache_member(cache, n) == member;
    }
    return true;
}

static bool
members_whole(const struct run *run)
{
    const struct engine *engine = run->engine;

    for (unsigned m = 0; m < engine->members_count; ++m)
        if (!member_readable(&engine->members[m], run->base, engine->group_bytes))
            return false;
    return true;
}

task_fn bool
cache_single(struct run *run)
{
    const struct engine *engine = run->engine;
    struct write_back *wb = engine->write_back;
    struct piece *piece = run->pieces.first;
    struct journal_append append;
    struct journal_data data = {.array_offset = piece->array_offset, .memory = piece->memory};
    struct journal_step step = {.data_count = 1, .data = &data};
    struct place place;
    unsigned before, after;
    bool there;
    uint64_t stripe, need, keep, aside;
    int result, waited;

    if (piece->next != NULL || !piece->cacheable || piece->kind != PIECE_WRITE ||
        piece->length != BLOCK_BYTES ||
        (piece->array_offset | (uintptr_t)piece->memory) % BLOCK_BYTES != 0 ||
        engine->geometry->data_members == 1 || !write_back_fills(wb) ||
        journal_failed(engine->journal) || !members_whole(run))
        return false;
    geometry_map(engine->geometry, piece->array_offset, &place);
    stripe = place.member_offset / BLOCK_BYTES;
    if (!stripe_sound(wb->cache, stripe, place.member, &before, &there) ||
        piece->room.blocks < !there || piece->room.class_stripes < (before == 0))
        return false;
    after = before + !there;
    need = journal_need(engine->journal, 1, 1, 0);
    keep = need + cache_reserve(wb->cache, after) - cache_reserve(wb->cache, before);
    assert(piece->reserved >= keep);
    if (piece->reserved > keep)
        journal_unreserve(engine->journal, piece->reserved - keep);
    run->reserved = (int64_t)(keep - need);
    piece->reserved = 0;

    ++wb->caching;
    step.member_offset = place.member_offset;
    result = journal_append_begin(engine->journal, &append, need);
    if (result < 0) {
        run->reserved += (int64_t)need;
    } else {
        result = journal_append_step(engine->journal, &append, &step);
        waited = journal_append_wait(engine->journal, &append, JOURNAL_COMPLETE);
        result = result < 0 ? result : waited;
    }
    if (result == 0) {
        aside = set_aside(run);
        cache_put(wb->cache,
                  &(struct cache_place){.stripe = stripe,
                                        .member = place.member,
                                        .entry_block = step.entry_position / BLOCK_BYTES,
                                        .block = step.first_block,
                                        .checksum = data.checksum},
                  piece->memory);
        reserve_follow(run, aside);
        write_back_put(wb);
    } else {
        piece->result = -EIO;
    }
    journal_append_finish(engine->journal, &append);
    if (--wb->caching == 0)
        write_back_moved(wb);
    cache_promise_end(wb->cache, piece->room);
    return true;
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

/* Most of the stripes that are of one class: see cache.h. */
static uint64_t
class_stripes(uint64_t stripes)
{
    unsigned most = 0;

    for (unsigned i = 0; i < CACHE_CLASSES; ++i) {
        const unsigned count = mask_count(stripes >> i & UINT64_C(0x0101010101010101));

        most = count > most ? count : most;
    }
    return most;
}

uint64_t
stripes_to_cache(struct run *run, struct cache_room *room)
{
    struct write_back *wb = run->engine->write_back;
    struct cache_room need = {0}, more;
    uint64_t chosen;

    if (!run->cacheable || !write_back_fills(wb) || journal_failed(run->engine->journal))
        return 0;
    masks_clear(run, run->errors);
    run_look(run);
    chosen = run->touched & ~stripes_full(run) & ~masks_union(run, run->unreadable) & ~run->stuck &
             ~masks_union(run, run->logged);
    for (unsigned m = 0; m < run->engine->members_count; ++m)
        need.blocks += mask_count((run->full[m] | run->part[m]) & ~run->cached[m] & chosen);
    need.class_stripes = class_stripes(chosen & ~masks_union(run, run->cached));
    more.blocks = need.blocks > room->blocks ? need.blocks - room->blocks : 0;
    more.class_stripes =
        need.class_stripes > room->class_stripes ? need.class_stripes - room->class_stripes : 0;
    if (more.blocks + more.class_stripes > 0) {
        if (!cache_promise(wb->cache, more))
            return 0;
        room->blocks += more.blocks;
        room->class_stripes += more.class_stripes;
    }
    return chosen;
}
