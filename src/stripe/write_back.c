/*
 * write_back.c: when what is cached is written out, and what a cache needs to begin and to end.
 *
 * One task, the reclaimer, chooses groups and queues a piece at each; workers do the rest (run.c).
 * It chooses
 *
 *   groups with full stripes   while they still have their pages, so that no read is needed
 *   the oldest groups          when the log has little free space behind what is chosen already,
 *                              when the index is nearly full, when all is to be written out
 *
 * always a batch, sorted by place, so that neighbours become long writes and few seeks. What it
 * waits for (a free slot) comes back by itself: a write-out has its space in the log set aside
 * (C2), so it never waits for the space that it is to bring.
 */
#include "stripe/internal.h"

#include <inttypes.h>
#include <stdlib.h>

#define HIGH_PERCENT     75u
#define MODERATE_PERCENT 50u
#define TIGHT_PERCENT    25u
#define BATCH_GROUPS     16u
#define WRITE_OUTS_MAX   32u
#define IDLE_NS          UINT64_C(30000000000)
/* Of the pages, the part that full stripes may take before they are written out. */
#define FULL_SHARE 4u

struct write_out {
    struct piece piece;
    struct request request;
    struct write_back *wb;
    struct write_out *next; /* while free */
};

/* --- What is to be written out --------------------------------------------------------------- */

/* of: UINT64_MAX where there is no limit; else at most the blocks of a ring, 2^32. */
static bool
above(uint64_t value, uint64_t of, unsigned percent)
{
    return of != UINT64_MAX && value > of * percent / 100;
}

/* With everything chosen written out, is there still too little free? */
static bool
log_tight(struct write_back *wb, uint64_t oldest_position)
{
    const struct journal *journal = wb->engine->journal;
    const uint64_t free_blocks = journal_free_behind(journal, oldest_position);
    const uint64_t least = max_u64(wb->config.ring_blocks * wb->config.tunables.tight_percent / 100,
                                   journal_reserve_max(journal) + wb->engine->members_count);

    return free_blocks < least;
}

/* Could the reclaimer do anything? */
static bool
possible(const struct write_back *wb)
{
    return wb->engine->journal != NULL &&
           (wb->engine->log_gone || !journal_failed(wb->engine->journal));
}

static bool
oldest_wanted(struct write_back *wb)
{
    const struct cache_counts *counts = cache_counts(wb->cache);
    uint64_t entry_block;

    if (!possible(wb) || !cache_oldest_unchosen(wb->cache, &entry_block))
        return false;
    /* Where the tail stands for ever, what others have set aside is all that can come free. */
    return !wb->filling || wb->draining > 0 || wb->idle || wb->owed > 0 || wb->room_wanted ||
           (wb->holder.stuck && journal_space_wanted(wb->engine->journal) > 0) ||
           above(counts->blocks, counts->blocks_max, wb->config.tunables.high_percent) ||
           above(counts->class_stripes, counts->class_stripes_max,
                 wb->config.tunables.high_percent) ||
           log_tight(wb, entry_block * BLOCK_BYTES);
}

static bool
full_wanted(const struct write_back *wb)
{
    const struct cache_counts *counts = cache_counts(wb->cache);

    return possible(wb) && counts->full_stripes > 0 &&
           (counts->full_stripes * wb->engine->geometry->data_members >
                counts->pages_max / FULL_SHARE ||
            above(counts->blocks, counts->blocks_max, wb->config.tunables.moderate_percent) ||
            above(counts->class_stripes, counts->class_stripes_max,
                  wb->config.tunables.moderate_percent));
}

/* --- The reclaimer --------------------------------------------------------------------------- */

static void
reclaimer_wake(struct write_back *wb)
{
    struct task *reclaimer = wb->reclaimer;

    wb->reclaimer = NULL;
    if (reclaimer != NULL)
        task_wake(wb->engine->loop, reclaimer);
}

static void
write_out_ended(struct request *request)
{
    struct write_out *write_out = container_of(request, struct write_out, request);
    struct write_back *wb = write_out->wb;

    write_out->next = wb->write_outs_free;
    wb->write_outs_free = write_out;
    --wb->under_way;
    ++wb->counts.groups_written_out;
    reclaimer_wake(wb);
    wait_queue_wake_all(wb->engine->loop, &wb->progress);
}

static task_fn void
write_out_begin(struct write_back *wb, uint64_t group)
{
    struct write_out *write_out = wb->write_outs_free;

    wb->write_outs_free = write_out->next;
    write_out->request = (struct request){.ended = write_out_ended};
    write_out->piece = (struct piece){.kind = PIECE_CACHED, .request = &write_out->request};
    engine_queue(wb->engine, &write_out->piece, group * wb->engine->group_bytes);
}

static int
compare_groups(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Chooses as many groups as there is need and room for. */
static unsigned
groups_choose(struct write_back *wb)
{
    const unsigned most = wb->config.tunables.write_outs_max - wb->under_way;
    unsigned count = 0;

    /* Few at a time would be long seeks. */
    if (most < min_u64(wb->config.tunables.batch_groups, wb->config.tunables.write_outs_max))
        return 0;
    while (count < most && full_wanted(wb) && cache_choose_full(wb->cache, &wb->groups[count]))
        ++count;
    while (count < most && oldest_wanted(wb)) {
        if (wb->owed == 0)
            wb->owed = wb->config.tunables.batch_groups; /* at least, once it has begun */
        if (!cache_choose_oldest(wb->cache, &wb->groups[count]))
            break;
        ++count;
        wb->owed -= wb->owed > 0;
    }
    return count;
}

static void
reclaimer_main(void *arg)
{
    struct write_back *wb = arg;

    for (;;) {
        uint64_t entry_block;
        unsigned count = 0;

        if (!wb->quitting) {
            count = groups_choose(wb);
            if (!cache_oldest_unchosen(wb->cache, &entry_block)) {
                wb->idle = false;
                wb->owed = 0;
            }
        } else if (wb->under_way == 0) {
            break;
        }
        if (count == 0) {
            wb->reclaimer = task_self(wb->engine->loop);
            task_suspend(wb->engine->loop);
            continue;
        }
        qsort(wb->groups, count, sizeof *wb->groups, compare_groups);
        wb->under_way += count;
        for (unsigned i = 0; i < count; ++i)
            write_out_begin(wb, wb->groups[i]);
    }
    wb->reclaimer_alive = false;
    wait_queue_wake_all(wb->engine->loop, &wb->progress);
}

static void
idle_timer_fired(struct timer *timer)
{
    struct write_back *wb = container_of(timer, struct write_back, idle_timer);
    const uint64_t quiet_ns = loop_now_ns(wb->engine->loop) - wb->last_put_ns;

    if (cache_counts(wb->cache)->blocks == 0)
        return; /* the next put arms it again */
    if (quiet_ns < wb->config.tunables.idle_ns) {
        timer_arm(wb->engine->loop, timer, wb->config.tunables.idle_ns - quiet_ns);
        return;
    }
    wb->idle = true;
    reclaimer_wake(wb);
}

void
write_back_put(struct write_back *wb)
{
    wb->last_put_ns = loop_now_ns(wb->engine->loop);
    wb->idle = false;
    if (!wb->idle_timer.armed)
        timer_arm(wb->engine->loop, &wb->idle_timer, wb->config.tunables.idle_ns);
    if (wb->reclaimer != NULL && (oldest_wanted(wb) || full_wanted(wb)))
        reclaimer_wake(wb);
}

void
write_back_moved(struct write_back *wb)
{
    wb->holder.stuck = cache_oldest_stuck(wb->cache);
    wb->holder.stuck_blocks = cache_counts(wb->cache)->stuck_reserve_blocks;
    if (wb->holder.stuck) {
        reclaimer_wake(wb);
        journal_holder_moved(wb->engine->journal); /* for some it may be hopeless to wait now */
    }
    wait_queue_wake_all(wb->engine->loop, &wb->progress);
}

/* --- Room ------------------------------------------------------------------------------------ */

/* Will any come free? */
static bool
room_comes(struct write_back *wb)
{
    uint64_t entry_block;

    return wb->under_way > 0 || (possible(wb) && cache_oldest_unchosen(wb->cache, &entry_block));
}

/*
 * With the cache full, a change of a group of which something is cached waits: what it adds will
 * be written out with the rest, in long writes. Of another group there is nothing to wait for: it
 * goes through.
 */
task_fn struct cache_room
write_back_room(struct write_back *wb, uint64_t group, struct cache_room wanted)
{
    const struct cache_counts *counts = cache_counts(wb->cache);
    struct cache_room room = {0};

    if (!write_back_fills(wb) || wanted.blocks > counts->blocks_max ||
        wanted.class_stripes > counts->class_stripes_max)
        return room;
    if (!wb->room_wanted && cache_promise(wb->cache, wanted))
        return wanted;
    if (!cache_group_maybe(wb->cache, group))
        return room;
    tokens_take(wb->engine->loop, &wb->room_turn, 1);
    wb->room_wanted = true;
    while (write_back_fills(wb) && room.blocks == 0) {
        if (cache_promise(wb->cache, wanted)) {
            room = wanted;
        } else {
            if (!room_comes(wb))
                break;
            reclaimer_wake(wb);
            wait_queue_wait(wb->engine->loop, &wb->progress);
        }
    }
    wb->room_wanted = false;
    tokens_give(wb->engine->loop, &wb->room_turn, 1);
    return room;
}

/* --- What the journal asks ------------------------------------------------------------------- */

static bool
holder_oldest(const struct journal_holder *holder, uint64_t *position)
{
    const struct write_back *wb = container_of(holder, struct write_back, holder);

    if (!cache_oldest(wb->cache, position))
        return false;
    *position *= BLOCK_BYTES;
    return true;
}

static void
holder_space_wanted(struct journal_holder *holder)
{
    reclaimer_wake(container_of(holder, struct write_back, holder));
}

/* --- Draining -------------------------------------------------------------------------------- */

/* Is anything that was to be written out still to be chosen, or under way? */
static bool
drain_pending(struct write_back *wb)
{
    uint64_t entry_block;

    return wb->caching > 0 || wb->under_way > 0 ||
           (possible(wb) && cache_oldest_unchosen(wb->cache, &entry_block));
}

task_fn int
engine_drain_and_pause(struct engine *engine)
{
    struct write_back *wb = engine->write_back;
    uint64_t entry_block;

    if (wb == NULL)
        return 0;
    ++wb->draining;
    reclaimer_wake(wb);
    wait_queue_wake_all(engine->loop, &wb->progress);
    while (drain_pending(wb))
        wait_queue_wait(engine->loop, &wb->progress);
    return cache_oldest(wb->cache, &entry_block) ? -EIO : 0;
}

void
engine_cache_again(struct engine *engine)
{
    if (engine->write_back != NULL)
        --engine->write_back->draining;
}

task_fn int
engine_drain(struct engine *engine)
{
    const int result = engine_drain_and_pause(engine);

    engine_cache_again(engine);
    return result;
}

task_fn int
engine_drain_unlogged(struct engine *engine)
{
    if (engine->write_back == NULL)
        return 0;
    engine->log_gone = true;
    cache_unchoose(engine->write_back->cache);
    return engine_drain(engine);
}

void
engine_give_up_cached(struct engine *engine)
{
    const struct write_back *wb = engine->write_back;

    if (wb == NULL)
        return;
    for (cache_node n = cache_order_first(wb->cache); n != 0; n = cache_order_next(wb->cache, n)) {
        uint64_t array_offset;

        if (!geometry_unmap(engine->geometry, cache_member(wb->cache, n),
                            cache_stripe(wb->cache, n) * BLOCK_BYTES, &array_offset))
            assert(!"a cached block is data");
        wb->config.data_lost(engine->config.owner, array_offset, 0);
    }
}

bool
engine_caches(const struct engine *engine)
{
    uint64_t entry_block;

    return engine->write_back != NULL && cache_oldest(engine->write_back->cache, &entry_block);
}

void
engine_write_back(struct engine *engine, bool on)
{
    struct write_back *wb = engine->write_back;

    if (wb == NULL)
        return;
    wb->filling = on;
    reclaimer_wake(wb);
    wait_queue_wake_all(engine->loop, &wb->progress); /* who waits for room need not */
}

void
engine_write_back_status(const struct engine *engine, struct write_back_status *status)
{
    const struct write_back *wb = engine->write_back;
    const struct cache_counts *counts;

    *status = (struct write_back_status){0};
    if (wb == NULL)
        return;
    counts = cache_counts(wb->cache);
    *status = wb->counts;
    status->blocks = counts->blocks - counts->lost_blocks;
    status->stripes = counts->stripes;
    status->blocks_max = counts->blocks_max;
    status->stripes_max = counts->class_stripes_max == UINT64_MAX
                              ? UINT64_MAX
                              : counts->class_stripes_max * CACHE_CLASSES;
    status->pages = counts->pages;
    status->pages_max = counts->pages_max;
    status->cached_total = counts->cached_total;
    status->overwritten = counts->overwritten;
}

/* --- Starting -------------------------------------------------------------------------------- */

bool
engine_adopts(const struct engine *engine, const struct journal *journal,
              const struct engine_adoption *found)
{
    const struct write_back *wb = engine->write_back;
    const struct cache_counts *counts;

    if (wb == NULL)
        return false;
    counts = cache_counts(wb->cache);
    /* What is set aside for b blocks of a stripe is at most b and its parity (C2); and the largest
     * step must have room, and a checkpoint. */
    return found->blocks <= counts->blocks_max &&
           found->class_stripes <= counts->class_stripes_max &&
           found->logged_blocks + found->blocks + found->stripes * engine->geometry->parities +
                   journal_reserve_max(journal) + 2 * (engine->members_count + 8u) <
               wb->config.ring_blocks;
}

void
engine_adopt(struct engine *engine, const struct engine_found *found)
{
    struct place place;

    geometry_map(engine->geometry, found->array_offset, &place);
    cache_put(engine->write_back->cache,
              &(struct cache_place){.stripe = place.member_offset / BLOCK_BYTES,
                                    .member = place.member,
                                    .entry_block = found->entry_position / BLOCK_BYTES,
                                    .block = found->number,
                                    .checksum = found->checksum},
              found->memory);
}

/* The largest change that reserves no more than that, or one block. */
static uint64_t
change_blocks_max(const struct engine *engine, uint64_t reserve, bool cacheable)
{
    uint64_t blocks = 1;

    while (change_reserve(engine, blocks + 1, min_u64(blocks + 1, engine->group_stripes),
                          cacheable) <= reserve)
        ++blocks;
    return blocks;
}

void
engine_set_journal(struct engine *engine, struct journal *journal)
{
    struct write_back *wb = engine->write_back;

    engine->journal = journal;
    for (unsigned cacheable = 0; cacheable < 2; ++cacheable)
        engine->piece_bytes_max[cacheable] =
            change_blocks_max(engine, journal_reserve_max(journal), cacheable) * BLOCK_BYTES;
    if (wb == NULL)
        return;
    journal_set_holder(journal, &wb->holder);
    if (cache_counts(wb->cache)->blocks == 0)
        return;
    if (!journal_reserve_now(journal, cache_counts(wb->cache)->reserve_blocks))
        assert(!"engine_adopts said that there is room");
    write_back_put(wb);
}

static void
tunables_init(struct write_back_tunables *tunables)
{
    if (tunables->high_percent == 0)
        tunables->high_percent = HIGH_PERCENT;
    if (tunables->moderate_percent == 0)
        tunables->moderate_percent = MODERATE_PERCENT;
    if (tunables->tight_percent == 0)
        tunables->tight_percent = TIGHT_PERCENT;
    if (tunables->batch_groups == 0)
        tunables->batch_groups = BATCH_GROUPS;
    if (tunables->write_outs_max == 0)
        tunables->write_outs_max = WRITE_OUTS_MAX;
    if (tunables->idle_ns == 0)
        tunables->idle_ns = IDLE_NS;
}

static void
write_back_free(struct write_back *wb)
{
    if (wb->cache != NULL)
        cache_destroy(wb->cache);
    free(wb->write_outs);
    free(wb->groups);
    free(wb);
}

/* The smallest ring in which everything ends for sure: with all written out there is room for the
 * largest step and what it sets aside, and for the empty entry of a checkpoint. */
static uint64_t
ring_blocks_min(const struct engine *engine)
{
    return 4 * ((uint64_t)engine->members_count + 8);
}

int
engine_cache_create(struct engine *engine, const struct engine_cache_config *config,
                    struct error *error)
{
    const struct cache_config cache_config = {
        .data_members = engine->geometry->data_members,
        .parities = engine->geometry->parities,
        .group_stripes = engine->group_stripes,
        .ring_blocks = config->ring_blocks,
        .bytes = config->bytes,
        .index_bytes = config->index_bytes,
        .class_stripes_max =
            config->stripes_max == UINT64_MAX ? UINT64_MAX : config->stripes_max / CACHE_CLASSES,
    };
    struct write_back *wb;

    if (config->ring_blocks < ring_blocks_min(engine))
        return error_set(error, -ENOTSUP,
                         "%s: a journal of %" PRIu64
                         " blocks is too small for write-back: it takes %" PRIu64,
                         config->journal->name, config->ring_blocks, ring_blocks_min(engine));
    if (config->ring_blocks > UINT64_C(1) << 32 ||
        engine->geometry->member_bytes / BLOCK_BYTES > CACHE_STRIPE_MAX)
        return error_set(error, -ENOTSUP,
                         "%s: the journal, or a member, is too large for write-back",
                         config->journal->name);
    wb = calloc(1, sizeof *wb);
    if (wb == NULL)
        return error_set(error, -ENOMEM, "no memory for the write-back cache");
    wb->engine = engine;
    wb->config = *config;
    tunables_init(&wb->config.tunables);
    wb->holder = (struct journal_holder){
        .oldest = holder_oldest,
        .space_wanted = holder_space_wanted,
    };
    wb->idle_timer.fire = idle_timer_fired;
    tokens_init(&wb->room_turn, 1);
    wb->write_outs = calloc(wb->config.tunables.write_outs_max, sizeof *wb->write_outs);
    wb->groups = calloc(wb->config.tunables.write_outs_max, sizeof *wb->groups);
    if (wb->write_outs == NULL || wb->groups == NULL ||
        cache_create(&cache_config, &wb->cache) < 0) {
        write_back_free(wb);
        return error_set(error, -ENOMEM, "no memory for the write-back cache");
    }
    for (unsigned i = wb->config.tunables.write_outs_max; i-- > 0;) {
        wb->write_outs[i].wb = wb;
        wb->write_outs[i].next = wb->write_outs_free;
        wb->write_outs_free = &wb->write_outs[i];
    }
    if (task_start(engine->loop, reclaimer_main, wb) == NULL)
        assert(!"the task pool is smaller than the engine's tasks");
    wb->reclaimer_alive = true;
    engine->write_back = wb;
    return 0;
}

task_fn void
engine_end_write_back(struct engine *engine)
{
    struct write_back *wb = engine->write_back;

    if (wb == NULL)
        return;
    wb->filling = false;
    wb->quitting = true;
    timer_cancel(engine->loop, &wb->idle_timer);
    reclaimer_wake(wb);
    while (wb->reclaimer_alive)
        wait_queue_wait(engine->loop, &wb->progress);
}

task_fn void
write_back_destroy(struct write_back *wb)
{
    engine_end_write_back(wb->engine);
    write_back_free(wb);
}
