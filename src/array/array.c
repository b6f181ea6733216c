/*
 * array.c: the life of a running array, and who may write when. See array.h for the states and
 * R1-R4.
 *
 * Requests pass through without waiting while the array is active. The first write of a busy period
 * waits for the superblocks to say "active"; a timer that every write pushes back says "clean"
 * again, in a task of its own (the keeper), so that no request pays for it.
 */
#include "array/internal.h"
#include <stdarg.h>
#include <stdlib.h>

#define WORKERS_DEFAULT    64u
#define IDLE_NS_DEFAULT    UINT64_C(200000000)
#define RESYNC_CHECKPOINTS 16u
#define RESYNC_PROGRESS_NS UINT64_C(1000000000)
#define SUPERBLOCK_IOS     32u
/* Of one budget for everything: what requests hold, and what is scratch memory; beside a cache they
 * have less. */
#define REQUESTS_SHARE        2u
#define REQUESTS_SHARE_CACHED 4u
#define SCRATCH_SHARE_CACHED  8u
#define SCRATCH_MIN           (4 * MIB)

void
array_tell(struct array *array, enum array_event_kind kind, unsigned member, const char *format,
           ...)
{
    struct array_event event = {.kind = kind, .member = member};
    va_list args;

    if (array->config.event == NULL)
        return;
    va_start(args, format);
    (void)vsnprintf(event.text, sizeof event.text, format, args); /* cut off is fine */
    va_end(args);
    array->config.event(array->config.owner, &event);
}

/* --- What the engine tells ------------------------------------------------------------------- */

void
array_member_failed(struct array *array, unsigned member, int error, const char *operation)
{
    assert(array->members[member].state != MEMBER_MISSING);
    array->members[member].state = MEMBER_MISSING;
    ++array->failures;
    array_tell(array, ARRAY_MEMBER_FAILED, member, "%s: member %u failed: %s: %s",
               array->members[member].device->name, member, operation, strerror(-error));
    if (unsynced_first(&array->unsynced) != UINT64_MAX && !array->unsynced.believed) {
        array->unsynced.believed = true;
        array_tell(
            array, ARRAY_WARNING, member,
            "the resync was not done: where a write was under way at the last crash, blocks of "
            "member %u may read wrong",
            member);
    }
    array_write_back_off(array);
    /* While there is parity to spare, P and Q can still be made to agree. */
    if (array_degraded(array) >= array->assembly.geometry.parities)
        array->resync.stop = true;
    if (array_beyond_parity(array) && !array->failed) {
        array->failed = true;
        if (array->journal != NULL)
            journal_end_waiting(array->journal);
        array_tell(array, ARRAY_FAILED, NO_MEMBER,
                   "more members are gone than parity covers: no more writes, and reads only where "
                   "a member is left");
    }
}

static void
member_failed(void *owner, unsigned member, int error, const char *operation)
{
    array_member_failed(owner, member, error, operation);
}

static task_fn void
failures_recorded(void *owner)
{
    superblocks_record_failures(owner);
}

static void
read_corrected(void *owner, unsigned member, uint64_t member_offset)
{
    struct array *array = owner;

    ++array->reads_corrected;
    if (array->member_candidate[member] >= 0)
        array->candidates[array->member_candidate[member]].superblock.corrected_reads +=
            BLOCK_SECTORS;
    array_tell(array, ARRAY_READ_CORRECTED, member,
               "%s: member %u: unreadable block at %llu reconstructed and written back",
               array->members[member].device->name, member, (unsigned long long)member_offset);
}

/* --- Active and clean ------------------------------------------------------------------------ */

static void
activity_set(struct array *array, enum activity activity)
{
    array->activity = activity;
    wait_queue_wake_all(array->loop, &array->activity_changed);
}

/* R1: suspends until the superblocks say active. */
static task_fn int
write_begin(struct array *array)
{
    if (array->config.readonly)
        return -EROFS;
    ++array->writes_in_flight;
    if (array->journal != NULL)
        return array->failed || array->journal_failed ? -EIO : 0; /* R5, R6 */
    while (array->activity != ACTIVITY_ACTIVE && !array->failed) {
        if (array->activity == ACTIVITY_CLEAN) {
            int result;

            array->activity = ACTIVITY_STARTING;
            result = superblocks_update(array, 0);
            activity_set(array, result < 0 ? ACTIVITY_CLEAN : ACTIVITY_ACTIVE);
            if (result < 0)
                array->failed = true;
        } else {
            wait_queue_wait(array->loop, &array->activity_changed);
        }
    }
    return array->failed ? -EIO : 0;
}

static void
write_end(struct array *array)
{
    if (--array->writes_in_flight == 0)
        wait_queue_wake_all(array->loop, &array->quiet);
    array->last_write_ns = loop_now_ns(array->loop);
    if (array->writes_in_flight == 0 && !array->idle_timer.armed &&
        array->activity == ACTIVITY_ACTIVE)
        timer_arm(array->loop, &array->idle_timer, array->config.idle_ns);
}

/* Active to clean, unless a write comes in between. */
static task_fn void
become_clean(struct array *array)
{
    int result;

    assert(array->activity == ACTIVITY_ACTIVE);
    assert(array->writes_in_flight == 0);
    array->activity = ACTIVITY_STOPPING;
    /* The update flushes all members first: R3. */
    result = superblocks_update(array, unsynced_first(&array->unsynced));
    activity_set(array, result < 0 ? ACTIVITY_ACTIVE : ACTIVITY_CLEAN);
}

static void
idle_timer_fired(struct timer *timer)
{
    struct array *array = container_of(timer, struct array, idle_timer);
    const uint64_t now = loop_now_ns(array->loop), quiet_ns = now - array->last_write_ns;

    if (array->activity != ACTIVITY_ACTIVE || array->writes_in_flight > 0)
        return; /* the last write's end arms it again */
    if (quiet_ns < array->config.idle_ns) {
        timer_arm(array->loop, timer, array->config.idle_ns - quiet_ns);
        return;
    }
    array->keeper_due = true;
    if (array->keeper != NULL) {
        task_wake(array->loop, array->keeper);
        array->keeper = NULL;
    }
}

static void
keeper_main(void *arg)
{
    struct array *array = arg;

    while (!array->stopping) {
        if (!array->keeper_due) {
            array->keeper = task_self(array->loop);
            task_suspend(array->loop);
            continue;
        }
        array->keeper_due = false;
        if (array->activity == ACTIVITY_ACTIVE && array->writes_in_flight == 0 && !array->failed)
            become_clean(array);
    }
    array->keeper_alive = false;
    wait_queue_wake_all(array->loop, &array->quiet);
}

/* --- Resync ---------------------------------------------------------------------------------- */

static uint64_t
resync_requests(void *owner)
{
    return ((struct array *)owner)->requests;
}

/* While the array is active the superblocks say that parity is doubtful everywhere, so there is
 * nothing to record. */
static task_fn void
resync_checkpoint(void *owner)
{
    struct array *array = owner;
    int result = 0;

    if (array->activity != ACTIVITY_CLEAN || array->failed || array->journal_failed)
        return;
    /* What stands in the log would be replayed over what has been mended. What is cached there
     * would keep the tail from passing. */
    if (array->journal != NULL) {
        result = engine_drain_and_pause(array->engine);
        if (result == 0)
            result = journal_checkpoint(array->journal);
        engine_cache_again(array->engine);
    }
    if (result < 0)
        return;
    /* Writes wait: what is recorded must stay true meanwhile. */
    array->activity = ACTIVITY_STOPPING;
    /* Nothing is lost without it. */
    ignored(superblocks_update(array, unsynced_first(&array->unsynced)));
    activity_set(array, ACTIVITY_CLEAN);
}

static void
resync_progress(void *owner, const struct resync_progress *progress)
{
    struct array *array = owner;
    struct array_event event = {
        .kind = ARRAY_RESYNC_PROGRESS,
        .member = NO_MEMBER,
        .done_bytes = progress->done_bytes,
        .total_bytes = progress->total_bytes,
        .rate_bytes_per_s = progress->rate_bytes_per_s,
        .remaining_ms = progress->remaining_ms,
    };

    if (array->config.event != NULL)
        array->config.event(array->config.owner, &event);
}

static void
resync_main(void *arg)
{
    struct array *array = arg;
    int result;

    array_tell(array, ARRAY_RESYNC_STARTED, NO_MEMBER,
               "resync from %llu of %llu bytes of each member",
               (unsigned long long)array->unsynced.from,
               (unsigned long long)array->assembly.geometry.member_bytes);
    result = resync_run(&array->resync);
    if (result == 0) {
        array->unsynced.bits = NULL;
        resync_checkpoint(array);
    }
    if (result == 0 && array->unsynced.holes_count > 0) {
        array_tell(
            array, ARRAY_RESYNC_STOPPED, NO_MEMBER,
            "resync done, but for %u groups with unreadable data, the first at %llu: writing "
            "their unreadable blocks anew mends them at the next start",
            array->unsynced.holes_count, (unsigned long long)array->unsynced.holes[0]);
    } else if (result == 0) {
        array_tell(array, ARRAY_RESYNC_DONE, NO_MEMBER, "resync done: parity is good everywhere");
    } else {
        array_tell(array, ARRAY_RESYNC_STOPPED, NO_MEMBER, "resync stopped at %llu: %s",
                   (unsigned long long)array->unsynced.from,
                   array_degraded(array) > 0 ? "a member failed"
                   : result == -ECANCELED    ? "it goes on at the next start"
                                             : "too much data cannot be read");
    }
    array->resync_alive = false;
    wait_queue_wake_all(array->loop, &array->resync_ended);
}

task_fn bool
array_resync_wait(struct array *array)
{
    while (array->resync_alive)
        wait_queue_wait(array->loop, &array->resync_ended);
    return unsynced_first(&array->unsynced) == UINT64_MAX;
}

/* --- Start ----------------------------------------------------------------------------------- */

static void
members_fill(struct array *array)
{
    const struct assembly *assembly = &array->assembly;

    for (unsigned m = 0; m < assembly->members; ++m) {
        const int c = assembly->member_candidate[m];
        struct member *member = &array->members[m];
        const struct candidate *candidate;

        array->member_candidate[m] = c;
        if (c < 0)
            continue;
        candidate = &array->candidates[c];
        member->state = array->fates[c] == FATE_REBUILDING ? MEMBER_REBUILDING : MEMBER_IN_SYNC;
        member->device = candidate->device;
        member->data_offset = superblock_data_offset_bytes(&candidate->superblock);
        member->recovered_bytes = superblock_recovery_offset_bytes(&candidate->superblock);
        member->bad = candidate->has_bad_blocks ? &candidate->bad_blocks : NULL;
    }
}

static void
unsynced_fill(struct array *array)
{
    const struct assembly *assembly = &array->assembly;
    const struct candidate *freshest = &array->candidates[assembly->freshest_index];

    array->unsynced.from = UINT64_MAX;
    array->recorded_resync_from = UINT64_MAX;
    array->journal_candidate = assembly->journal_candidate;
    array->journal_dropped = assembly->journal_expected && assembly->journal_candidate < 0;
    if (assembly->dirty) {
        array->recorded_resync_from = assembly->resync_from_bytes;
        /* Forced: what is missing can come only from parity that is in doubt, so that has to be
         * believed. Where all parity there is defines what is missing, it is good by that; where
         * there is some to spare, P and Q may disagree, and are made to agree. */
        array->unsynced.believed = assembly->forced_dirty_degraded;
        if (assembly->degraded < assembly->geometry.parities)
            array->unsynced.from = assembly->resync_from_bytes;
        /* A bit of less than a block would need several looks a stripe; nobody makes such. */
        if (freshest->bitmap_usable && freshest->bitmap_region_bytes >= BLOCK_BYTES &&
            assembly->resync_from_bytes == 0) {
            array->unsynced.bits = freshest->bitmap_bits;
            array->unsynced.region_bytes = freshest->bitmap_region_bytes;
        }
    }
}

/* Reads the superblocks and decides. */
static task_fn int
array_assemble(struct array *array, struct error *error)
{
    const struct array_config *config = &array->config;
    const struct assemble_options options = {.readonly = config->readonly, .force = config->force};
    struct error *reasons;
    int result;

    array->candidates = calloc(config->device_count, sizeof *array->candidates);
    array->fates = calloc(config->device_count, sizeof *array->fates);
    array->superblock_errors = calloc(config->device_count, sizeof *array->superblock_errors);
    array->superblock_pages =
        aligned_alloc(BLOCK_BYTES, (config->device_count + 1) * (size_t)SUPERBLOCK_BYTES);
    reasons = calloc(config->device_count, sizeof *reasons);
    if (array->candidates == NULL || array->fates == NULL || reasons == NULL ||
        array->superblock_errors == NULL || array->superblock_pages == NULL) {
        free(reasons);
        return error_set(error, -ENOMEM, "no memory for %u devices", config->device_count);
    }
    for (unsigned c = 0; c < config->device_count; ++c) {
        result = candidate_probe(config->devices[c], &array->candidates[c]);
        if (result < 0) {
            free(reasons);
            return error_set(error, result, "%s: cannot be probed: %s", config->devices[c]->name,
                             strerror(-result));
        }
        memcpy(array->superblock_pages + c * (size_t)SUPERBLOCK_BYTES,
               array->candidates[c].superblock.raw, SUPERBLOCK_BYTES);
        ++array->candidates_count;
    }
    result = assemble_decide(array->candidates, array->candidates_count, &options, &array->assembly,
                             array->fates, reasons, error);
    free(reasons);
    return result;
}

static void
tell_warnings(struct array *array)
{
    for (unsigned w = 0; w < array->assembly.warning_count; ++w)
        array_tell(array, ARRAY_WARNING, NO_MEMBER, "%s", array->assembly.warnings[w].text);
}

void
array_config_split(struct array_config *config, uint64_t bytes)
{
    config->memory_touched = true;
    config->memory_bytes = bytes / REQUESTS_SHARE;
    config->memory_beside_cache_bytes = max_u64(bytes / SCRATCH_SHARE_CACHED, SCRATCH_MIN);
    config->cache_bytes = bytes - bytes / REQUESTS_SHARE_CACHED - config->memory_beside_cache_bytes;
}

uint64_t
array_request_bytes(const struct array *array, uint64_t bytes)
{
    return bytes / (array->journal != NULL ? REQUESTS_SHARE_CACHED : REQUESTS_SHARE);
}

/* A cache gets its memory at the engine's expense. */
static uint64_t
scratch_bytes(const struct array *array)
{
    const struct array_config *config = &array->config;
    const bool cached =
        array->journal_candidate >= 0 && !config->readonly && config->cache_bytes > 0;

    return cached && config->memory_beside_cache_bytes > 0 ? config->memory_beside_cache_bytes
                                                           : config->memory_bytes;
}

static int
array_run(struct array *array, struct error *error)
{
    const struct engine_config config = {
        .loop = array->loop,
        .geometry = &array->assembly.geometry,
        .members = array->members,
        .unsynced = &array->unsynced,
        .scratch_bytes = scratch_bytes(array),
        .scratch_touched = array->config.memory_touched,
        .workers = array->config.workers,
        .readonly = array->config.readonly,
        .owner = array,
        .member_failed = member_failed,
        .failures_recorded = failures_recorded,
        .read_corrected = read_corrected,
    };
    int result;

    if (io_pool_init(&array->superblock_ios, array->loop, SUPERBLOCK_IOS) < 0)
        return error_set(error, -ENOMEM, "no memory for the array");
    result = engine_create(&config, &array->engine, error);
    if (result < 0) {
        io_pool_fini(&array->superblock_ios);
        return result;
    }
    array->resync = (struct resync){
        .loop = array->loop,
        .engine = array->engine,
        .geometry = &array->assembly.geometry,
        .unsynced = &array->unsynced,
        .owner = array,
        .requests = resync_requests,
        .checkpoint = resync_checkpoint,
        .progress = resync_progress,
        .checkpoint_bytes = max_u64(array->assembly.geometry.member_bytes / RESYNC_CHECKPOINTS, 1),
        .progress_ns = RESYNC_PROGRESS_NS,
    };
    if (array->journal_candidate >= 0) {
        result = array_journal_start(array, error);
        if (result < 0)
            goto fail;
    }
    if (array->config.readonly)
        return 0;
    if (array->journal_dropped) {
        /* Before anything is served: no start to come may believe the old journal, or the "clean"
         * that was true with it only. */
        result = superblocks_update(array, RESYNC_AS_RECORDED);
        if (result < 0) {
            result = error_set(error, result,
                               "the journal cannot be dropped: the superblocks cannot be written");
            goto fail;
        }
    }
    task_start_wait(array->loop, keeper_main, array);
    array->keeper_alive = true;
    if (array->unsynced.from != UINT64_MAX && !array->config.resync_disabled &&
        (array->assembly.degraded == 0 || array->unsynced.believed)) {
        task_start_wait(array->loop, resync_main, array);
        array->resync_alive = true;
    }
    return 0;
fail:
    array_journal_destroy(array);
    engine_destroy(array->engine);
    io_pool_fini(&array->superblock_ios);
    return result;
}

static void
array_free(struct array *array, bool close_devices)
{
    for (unsigned c = 0; c < array->candidates_count; ++c) {
        if (close_devices)
            device_close(array->candidates[c].device);
        candidate_fini(&array->candidates[c]);
    }
    if (array->recovery != NULL)
        recovery_destroy(array->recovery);
    free(array->superblock_pages);
    free(array->superblock_errors);
    free(array->fates);
    free(array->candidates);
    free(array);
}

task_fn int
array_start(struct loop *loop, const struct array_config *config, struct array **out,
            struct error *error)
{
    struct array *array = calloc(1, sizeof *array);
    int result;

    if (array == NULL)
        return error_set(error, -ENOMEM, "no memory for the array");
    array->loop = loop;
    array->config = *config;
    array->config.workers = config->workers != 0 ? config->workers : WORKERS_DEFAULT;
    array->journal_mode = config->journal_mode;
    array->config.idle_ns = config->idle_ns != 0 ? config->idle_ns : IDLE_NS_DEFAULT;
    array->idle_timer.fire = idle_timer_fired;
    tokens_init(&array->superblock_lock, 1);
    result = array_assemble(array, error);
    if (result == 0) {
        members_fill(array);
        unsynced_fill(array);
        array->events = array->assembly.events;
        array->uneven = array->assembly.events_uneven;
        array->absent_outrun = array->assembly.degraded == 0;
        if (array->journal_candidate < 0 && config->journal_mode == JOURNAL_WRITE_BACK &&
            !config->readonly)
            result = error_set(error, -ENOTSUP, "write-back wants a journal, and the array %s",
                               array->journal_dropped ? "is to go on without its own" : "has none");
        else
            tell_warnings(array);
        if (result == 0 && array->journal_candidate >= 0)
            result = array_journal_scan(array, error);
        if (result == 0)
            result = array_run(array, error);
    }
    if (result < 0) {
        array_free(array, false);
        return result;
    }
    *out = array;
    return 0;
}

/* --- Stop ------------------------------------------------------------------------------------ */

task_fn int
array_stop(struct array *array)
{
    int result = 0;

    assert(!array->stopped);
    array->resync.stop = true;
    (void)array_resync_wait(array); /* its position is looked at below */
    while (array->requests_in_flight > 0)
        wait_queue_wait(array->loop, &array->quiet);
    timer_cancel(array->loop, &array->idle_timer);
    array->stopping = true;
    if (array->keeper != NULL) {
        task_wake(array->loop, array->keeper);
        array->keeper = NULL;
    }
    while (array->keeper_alive)
        wait_queue_wait(array->loop, &array->quiet);
    if (array->journal != NULL)
        result = array_journal_stop(array);
    array->stopped = true;
    if (array->config.readonly)
        return 0;
    /* Nothing is written where nothing has changed. */
    if (array->failed || result < 0)
        result = -EIO;
    else if (array->activity == ACTIVITY_ACTIVE ||
             array->recorded_resync_from != unsynced_first(&array->unsynced))
        result = superblocks_update(array, unsynced_first(&array->unsynced));
    array->activity = ACTIVITY_CLEAN;
    return result;
}

task_fn void
array_destroy(struct array *array)
{
    struct loop *loop = array->loop;

    if (!array->stopped) {
        array->failed = true;       /* says nothing more on disk */
        ignored(array_stop(array)); /* it writes nothing any more */
    }
    array_journal_destroy(array);
    engine_destroy(array->engine);
    io_pool_fini(&array->superblock_ios);
    array_free(array, true);
    task_yield(loop); /* the tasks of overlays end */
}

/* --- Requests -------------------------------------------------------------------------------- */

void
array_request_begin(struct array *array)
{
    assert(!array->stopped);
    ++array->requests;
    ++array->requests_in_flight;
}

void
array_request_end(struct array *array)
{
    if (--array->requests_in_flight == 0)
        wait_queue_wake_all(array->loop, &array->quiet);
}

task_fn int
array_read(struct array *array, void *memory, uint64_t offset, uint64_t length)
{
    int result;

    array_request_begin(array);
    result = array->overlaid ? array_read_overlaid(array, memory, offset, length)
                             : engine_read(array->engine, memory, offset, length);
    array_request_end(array);
    return result;
}

task_fn int
array_write(struct array *array, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    int result;

    array_request_begin(array);
    result = write_begin(array);
    if (result == 0)
        result = engine_write(array->engine, memory, offset, length, fua);
    if (!array->config.readonly)
        write_end(array);
    array_request_end(array);
    return result;
}

task_fn int
array_zero(struct array *array, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
           bool fua)
{
    int result;

    array_request_begin(array);
    result = write_begin(array);
    if (result == 0)
        result = engine_zero(array->engine, offset, length, may_punch, fast_only, fua);
    if (!array->config.readonly)
        write_end(array);
    array_request_end(array);
    return result;
}

task_fn int
array_trim(struct array *array, uint64_t offset, uint64_t length, bool fua)
{
    int result;

    array_request_begin(array);
    result = write_begin(array);
    if (result == 0)
        result = engine_trim(array->engine, offset, length, fua);
    if (!array->config.readonly)
        write_end(array);
    array_request_end(array);
    return result;
}

/* After the journal has failed: is something that was acknowledged not on the members? */
static bool
array_data_missing(const struct array *array)
{
    struct write_back_status status;

    engine_write_back_status(array->engine, &status);
    return status.blocks > 0 || status.lost > 0;
}

task_fn int
array_flush(struct array *array)
{
    int result;

    if (array->config.readonly)
        return 0;
    array_request_begin(array);
    if (array->journal != NULL && !array->journal_failed) {
        /* What went through is durable in the log; what is cached is in the log. */
        result = array->failed ? -EIO : journal_flush(array->journal);
        array_request_end(array);
        return result;
    }
    /* What was acknowledged is being brought to the members: R6. */
    while (array->journal_failed && array->journal_guard_alive)
        wait_queue_wait(array->loop, &array->quiet);
    result = engine_flush(array->engine);
    if (result == 0 && array->journal_failed && array_data_missing(array))
        result = -EIO;
    array_request_end(array);
    return result;
}

void
array_status(const struct array *array, struct array_status *status)
{
    *status = (struct array_status){
        .size_bytes = array->assembly.geometry.array_bytes,
        .geometry = &array->assembly.geometry,
        .superblock = array->assembly.freshest,
        .assembly = &array->assembly,
        .readonly = array->config.readonly,
        .active = array->activity != ACTIVITY_CLEAN,
        .failed = array->failed,
        .resyncing = array->resync_alive,
        .degraded = array_degraded(array),
        .resync_done_bytes = min_u64(array->unsynced.from, array->assembly.geometry.member_bytes),
        .resync_total_bytes = array->assembly.geometry.member_bytes,
        .reads_corrected = array->reads_corrected,
        .members_failed = array->failures,
        .superblock_updates = array->updates,
        .journaled = array->journal != NULL,
        .journal_failed = array->journal_failed,
        .journal_mode_wanted = array->journal_mode,
        .journal_mode = array_writes_back(array) ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH,
        .recovered = array->log_seen,
        .log = array->log,
        .recovery = array->log_counts,
    };
    if (array->journal != NULL)
        journal_status(array->journal, &status->journal);
    engine_write_back_status(array->engine, &status->write_back);
    if (array->no_write_back.code < 0)
        status->no_write_back = array->no_write_back.text;
    status->draining =
        status->journal_mode == JOURNAL_WRITE_THROUGH && engine_caches(array->engine);
}

bool
array_device(const struct array *array, unsigned index, struct array_device *out)
{
    if (index >= array->candidates_count)
        return false;
    *out = (struct array_device){
        .name = array->candidates[index].device->name,
        .fate = array->fates[index],
        .member = -1,
        .journal = (int)index == array->journal_candidate,
    };
    out->failed = out->journal && array->journal_failed;
    for (unsigned m = 0; m < array->assembly.members; ++m) {
        if (array->member_candidate[m] != (int)index)
            continue;
        out->member = (int)m;
        out->failed = array->members[m].state == MEMBER_MISSING;
        out->rebuilt_bytes = array->members[m].recovered_bytes;
    }
    return true;
}
