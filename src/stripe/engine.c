/*
 * engine.c: groups and the workers that take them, flush, creation. See engine.h and internal.h.
 */
#include "stripe/internal.h"
#include <stdlib.h>

/* For each worker: groups that wait or are worked on, and I/Os in flight. More only wait. */
#define GROUPS_A_WORKER 32u
#define IOS_A_WORKER    64u

bool
member_gone(const struct member *member, uint64_t offset, uint64_t length)
{
    return member->state == MEMBER_MISSING ||
           (member->state == MEMBER_REBUILDING && offset + length > member->recovered_bytes);
}

bool
member_readable(const struct member *member, uint64_t offset, uint64_t length)
{
    if (member_gone(member, offset, length))
        return false;
    return member->bad == NULL ||
           bad_blocks_find(member->bad, member->data_offset + offset, length) == NULL;
}

unsigned
engine_degraded(const struct engine *engine)
{
    return members_degraded(engine->members, engine->members_count);
}

unsigned
engine_missing(const struct engine *engine)
{
    unsigned missing = 0;

    for (unsigned m = 0; m < engine->members_count; ++m)
        missing += engine->members[m].state == MEMBER_MISSING;
    return missing;
}

uint64_t
engine_group_bytes(const struct engine *engine)
{
    return engine->group_bytes;
}

/* --- Groups -------------------------------------------------------------------------------- */

static struct group **
group_slot(struct engine *engine, uint64_t index)
{
    /* Neighbouring groups are asked for together, so the low bits spread well. */
    struct group **slot = &engine->hash[index & engine->hash_mask];

    while (*slot != NULL && (*slot)->index != index)
        slot = &(*slot)->hash_next;
    return slot;
}

static task_fn struct group *
group_get(struct engine *engine, uint64_t index)
{
    for (;;) {
        struct group **slot = group_slot(engine, index);
        struct group *group = *slot;

        if (group != NULL)
            return group;
        group = engine->groups_free;
        if (group != NULL) {
            engine->groups_free = group->hash_next;
            *group = (struct group){.index = index};
            piece_list_init(&group->pieces);
            *slot = group;
            return group;
        }
        wait_queue_wait(engine->loop, &engine->groups_wanted);
    }
}

static void
group_put(struct engine *engine, struct group *group)
{
    struct group **slot = group_slot(engine, group->index);

    assert(*slot == group);
    *slot = group->hash_next;
    group->hash_next = engine->groups_free;
    engine->groups_free = group;
    (void)wait_queue_wake_one(engine->loop, &engine->groups_wanted); /* nobody may wait */
}

static void
group_make_ready(struct engine *engine, struct group *group)
{
    group->queued = true;
    group->ready_next = NULL;
    *engine->ready_last = group;
    engine->ready_last = &group->ready_next;
    loop_at_turn_end(engine->loop, &engine->turn_end);
}

static struct group *
group_next_ready(struct engine *engine)
{
    struct group *group = engine->ready_first;

    if (group == NULL)
        return NULL;
    engine->ready_first = group->ready_next;
    if (engine->ready_first == NULL)
        engine->ready_last = &engine->ready_first;
    return group;
}

task_fn void
engine_queue(struct engine *engine, struct piece *piece, uint64_t member_offset)
{
    struct group *group = group_get(engine, member_offset / engine->group_bytes);

    piece->result = 0;
    ++piece->request->pending;
    piece_list_add(&group->pieces, piece);
    if (!group->queued)
        group_make_ready(engine, group);
}

/* --- Workers ------------------------------------------------------------------------------- */

static void
pieces_answer(struct engine *engine, struct piece *piece)
{
    while (piece != NULL) {
        struct piece *next = piece->next; /* the requester's stack may be gone once it is woken */
        struct request *request = piece->request;

        if (piece->result < 0 && request->error == 0)
            request->error = piece->result;
        if (--request->pending == 0 && request->ended != NULL) {
            request->ended(request);
        } else if (request->pending == 0 && request->waiter != NULL) {
            task_wake(engine->loop, request->waiter);
            request->waiter = NULL;
        }
        piece = next;
    }
}

/* A worker's life: take a ready group, process all its pieces, let it go. */
static void
worker_main(void *arg)
{
    struct run *run = arg;
    struct engine *engine = run->engine;

    for (;;) {
        struct group *group = group_next_ready(engine);

        if (group == NULL) {
            if (engine->quitting)
                break;
            run->task = task_self(engine->loop);
            run->idle_next = engine->idle;
            engine->idle = run;
            task_suspend(engine->loop);
            continue;
        }
        run->group = group;
        assert(group->pieces.first != NULL);
        run->pieces = group->pieces;
        piece_list_init(&group->pieces);
        run_group(run);
        pieces_answer(engine, run->pieces.first);
        if (group->pieces.first != NULL)
            group_make_ready(engine, group);
        else
            group_put(engine, group);
    }
    if (--engine->workers_alive == 0)
        wait_queue_wake_all(engine->loop, &engine->quit_waiters);
}

/* The batch of this turn is complete: let idle workers loose on it. */
static void
workers_wake(struct turn_hook *hook)
{
    struct engine *engine = container_of(hook, struct engine, turn_end);

    for (struct group *group = engine->ready_first; group != NULL && engine->idle != NULL;
         group = group->ready_next) {
        struct run *run = engine->idle;

        engine->idle = run->idle_next;
        task_wake(engine->loop, run->task);
    }
}

/* --- Flush --------------------------------------------------------------------------------- */

/* At once, not when the slowest flush is done: what is read of the member from now on may be older
 * than what it had acknowledged (D3). */
static void
flush_failed(struct io_group *group, const struct io *io)
{
    struct engine *engine = group->owner;

    if (engine->members[io->member].state != MEMBER_MISSING)
        engine->config.member_failed(engine->config.owner, io->member, io->result, "flush");
}

task_fn void
engine_flush_members(struct engine *engine)
{
    struct io_group ios;

    io_group_init(&ios, engine->loop);
    ios.failed = flush_failed;
    ios.owner = engine;
    for (unsigned m = 0; m < engine->members_count; ++m) {
        struct io *io;

        if (engine->members[m].state == MEMBER_MISSING ||
            !engine->members[m].device->volatile_cache)
            continue;
        io = io_take(&engine->ios);
        /* It may have failed while we waited. */
        io->op = IO_FLUSH;
        io->member = m;
        io_submit(io, engine->members[m].device, &ios);
    }
    (void)io_wait(&ios); /* told by member */
}

task_fn int
engine_flush(struct engine *engine)
{
    /* A flush that began before this call may have missed what this caller wants durable. */
    const uint64_t wanted = engine->flushes_begun + 1;

    while (engine->flushes_done < wanted) {
        if (engine->flush_running) {
            wait_queue_wait(engine->loop, &engine->flush_waiters);
            continue;
        }
        engine->flush_running = true;
        ++engine->flushes_begun;
        engine_flush_members(engine);
        engine->config.failures_recorded(engine->config.owner);
        engine->flushes_done = engine->flushes_begun;
        engine->flush_running = false;
        wait_queue_wake_all(engine->loop, &engine->flush_waiters);
    }
    return engine_degraded(engine) > engine->geometry->parities ? -EIO : 0;
}

/* --- Life ---------------------------------------------------------------------------------- */

/* Stripes in a group: as many as leave room for a few worst cases (all blocks old and new) in the
 * scratch memory. */
static unsigned
group_stripes_for(const struct geometry *geometry, uint64_t scratch_bytes)
{
    unsigned stripes = GROUP_STRIPES_MAX;

    while (stripes > 1 && pages_cost(stripes * (3 * (uint64_t)geometry->members + 2) *
                                     BLOCK_BYTES) > scratch_bytes / 4)
        stripes /= 2;
    return stripes;
}

static int
engine_allocate(struct engine *engine)
{
    const unsigned groups = engine->config.workers * GROUPS_A_WORKER;

    engine->hash_mask = 63;
    while (engine->hash_mask < groups)
        engine->hash_mask = 2 * engine->hash_mask + 1;
    engine->groups = calloc(groups, sizeof *engine->groups);
    engine->hash = calloc(engine->hash_mask + 1, sizeof(struct group *));
    engine->runs = calloc(engine->config.workers, sizeof *engine->runs);
    engine->zeros = aligned_alloc(BLOCK_BYTES, engine->group_bytes);
    if (engine->groups == NULL || engine->hash == NULL || engine->runs == NULL ||
        engine->zeros == NULL)
        return -ENOMEM;
    memset(engine->zeros, 0, engine->group_bytes);
    for (unsigned i = 0; i < groups; ++i) {
        engine->groups[i].hash_next = engine->groups_free;
        engine->groups_free = &engine->groups[i];
    }
    for (unsigned i = 0; i < engine->config.workers; ++i) {
        int result = run_init(&engine->runs[i], engine);

        if (result < 0)
            return result;
    }
    return 0;
}

static void
engine_free(struct engine *engine)
{
    for (unsigned i = 0; engine->runs != NULL && i < engine->config.workers; ++i)
        run_fini(&engine->runs[i]);
    free(engine->runs);
    free(engine->zeros);
    free(engine->hash);
    free(engine->groups);
    io_pool_fini(&engine->ios);
    if (engine->scratch != NULL)
        pages_destroy(engine->scratch);
    row_shapes_fini(&engine->shapes);
    free(engine);
}

int
engine_create(const struct engine_config *config, struct engine **out, struct error *error)
{
    struct engine *engine = calloc(1, sizeof *engine);
    int result = -ENOMEM;

    if (engine == NULL)
        return error_set(error, -ENOMEM, "no memory for the engine");
    engine->config = *config;
    engine->loop = config->loop;
    engine->geometry = config->geometry;
    engine->members = config->members;
    engine->members_count = config->geometry->members;
    engine->group_stripes = group_stripes_for(config->geometry, config->scratch_bytes);
    engine->group_bytes = engine->group_stripes * (uint64_t)BLOCK_BYTES;
    engine->rows_per_group = (unsigned)(engine->group_bytes >> config->geometry->chunk_shift);
    engine->ready_last = &engine->ready_first;
    engine->turn_end.run = workers_wake;
    if (row_shapes_init(&engine->shapes, config->geometry) < 0 ||
        pages_create(config->loop, config->scratch_bytes, config->scratch_touched,
                     &engine->scratch) < 0 ||
        io_pool_init(&engine->ios, config->loop, config->workers * IOS_A_WORKER) < 0 ||
        engine_allocate(engine) < 0) {
        result = error_set(error, -ENOMEM, "no memory for the engine (%llu bytes of scratch)",
                           (unsigned long long)config->scratch_bytes);
        goto fail;
    }
    for (unsigned i = 0; i < config->workers; ++i) {
        if (task_start(config->loop, worker_main, &engine->runs[i]) == NULL) {
            /* Those that started end as soon as the loop runs them; the caller cannot go on anyway.
             */
            assert(!"the task pool is smaller than the engine's workers");
        }
        ++engine->workers_alive;
    }
    *out = engine;
    return 0;
fail:
    engine_free(engine);
    return result;
}

task_fn void
engine_destroy(struct engine *engine)
{
    if (engine->write_back != NULL)
        write_back_destroy(engine->write_back);
    engine->quitting = true;
    while (engine->idle != NULL) {
        struct run *run = engine->idle;

        engine->idle = run->idle_next;
        task_wake(engine->loop, run->task);
    }
    while (engine->workers_alive > 0)
        wait_queue_wait(engine->loop, &engine->quit_waiters);
    /* A busy worker may have taken the last group of this turn before the turn's end came to it. */
    while (engine->turn_end.queued)
        loop_sleep(engine->loop, 0);
    engine_free(engine);
}
