/*
 * journaled.c: an array's journal: recovered at the start, kept, drained at a stop; and what
 * happens when it fails (array.h, R5 and R6).
 */
#include "array/internal.h"
#include "stripe/cache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Eighths of the engine's memory that the index of the log may take beside it: most of what the
 * requests will take as soon as they come; and less when it has to stay, under a readonly array. */
#define INDEX_EIGHTHS          6u
#define INDEX_EIGHTHS_READONLY 3u
/* Of the cache's memory the part that its index may take: with what serve gives it, a half of all.
 */
#define CACHE_INDEX_FIFTHS 4u
/* What a kernel has for a recovery in a machine of 512 MiB, what it takes for each member of a
 * data-only stripe, and how many stripes it has anyway. */
#define KERNEL_RECOVERY_BYTES      (320 * MIB)
#define KERNEL_STRIPE_MEMBER_BYTES 4544u
#define KERNEL_STRIPES_MIN         256u

static struct candidate *
journal_of(struct array *array)
{
    return &array->candidates[array->journal_candidate];
}

/* --- Reading the log ------------------------------------------------------------------------- */

static void
recovery_progress(void *owner, const struct recovery_progress *progress)
{
    struct array *array = owner;
    struct array_event event = {
        .kind = ARRAY_RECOVERY_PROGRESS,
        .member = NO_MEMBER,
        .phase = progress->phase,
        .done_bytes = progress->done_bytes,
        .total_bytes = progress->total_bytes,
        .rate_bytes_per_s = progress->rate_bytes_per_s,
        .remaining_ms = progress->remaining_ms,
    };

    if (array->config.event != NULL)
        array->config.event(array->config.owner, &event);
}

static uint64_t
log_index_bytes(const struct array *array)
{
    return array->config.memory_bytes / 8 *
           (array->config.readonly ? INDEX_EIGHTHS_READONLY : INDEX_EIGHTHS);
}

static task_fn int
scan(struct array *array, struct error *error)
{
    const struct recovery_config config = {
        .loop = array->loop,
        .device = journal_of(array)->device,
        .journal = &journal_of(array)->superblock,
        .geometry = &array->assembly.geometry,
        .memory_bytes = log_index_bytes(array),
        .whole_index = array->config.readonly,
        /* Behind the first entry of a new log nothing counts. */
        .unreadable_is_end = (array->config.force & FORCE_TRUNCATE_JOURNAL) || array->new_log,
        .progress = recovery_progress,
        .owner = array,
    };

    const int result = recovery_scan(&config, &array->recovery, error);
    const struct error cause = *error;

    if (result == -EIO)
        return error_set(error, result,
                         "--force=truncate-journal takes it for the log's end, --force=new-journal "
                         "starts a new log; what only the rest of the log held is lost\n%s",
                         cause.text);
    return result;
}

/* By force: something that the log held is lost, so no parity is known good any more. Superblocks
 * say so before the log changes (recover). */
static int
lose_log(struct array *array, const char *what, struct error *error)
{
    const bool spare = array->assembly.degraded < array->assembly.geometry.parities;

    if (array->assembly.degraded > 0 && !(array->config.force & FORCE_DIRTY_DEGRADED))
        return error_set(error, -EUCLEAN,
                         "with dirty-degraded in --force too it starts nevertheless\n"
                         "without what the journal held parity may be wrong, and the array is "
                         "degraded: what is reconstructed may be garbage");
    array->log_lost = true;
    /* As for an array that was found dirty: unsynced_fill. */
    array->unsynced.believed = array->assembly.degraded > 0;
    if (spare)
        array->unsynced.from = 0;
    array_tell(array, ARRAY_WARNING, NO_MEMBER, "%s: %s is lost%s", journal_of(array)->device->name,
               what, spare ? ", and all parity is made again" : "");
    return 0;
}

static void
log_note(struct array *array)
{
    array->log_seen = true;
    array->log = *recovery_log(array->recovery);
    recovery_counts(array->recovery, &array->log_counts);
}

task_fn int
array_journal_scan(struct array *array, struct error *error)
{
    const struct superblock *journal = &journal_of(array)->superblock;
    const uint64_t tail_sectors = journal->journal_tail_sectors;
    const uint64_t ring_blocks = superblock_journal_ring_bytes(journal) / BLOCK_BYTES;
    int result;

    /* journal_create would say so, when the log has been replayed. */
    if (!array->config.readonly && ring_blocks < array->assembly.members + 4)
        return error_set(error, -ENOTSUP,
                         "--readonly shows the array; --force=drop-journal goes on without a "
                         "journal\n"
                         "%s: a journal of %" PRIu64
                         " blocks is too small for %u members: it takes "
                         "%u",
                         journal_of(array)->device->name, ring_blocks, array->assembly.members,
                         array->assembly.members + 4);
    result = scan(array, error);

    /* One that is nowhere stays nowhere. */
    array->journal_tail = min_u64(tail_sectors, UINT64_MAX / SECTOR_BYTES) * SECTOR_BYTES;
    if ((result == -EBADMSG || result == -EIO) && (array->config.force & FORCE_NEW_JOURNAL) &&
        !array->config.readonly) {
        array->new_log = true;
        return lose_log(array, "a new log is begun: what only the old one had", error);
    }
    if (result < 0)
        return result;
    log_note(array);
    if (array->log.end == JOURNAL_END_UNREADABLE && !array->config.readonly)
        return lose_log(array, "the log is cut off where it is unreadable: what only the rest had",
                        error);
    return 0;
}

/* --- The view of a log that is left alone ---------------------------------------------------- */

static int
overlay_start(struct array *array, struct error *error)
{
    const struct journal_records *records = recovery_records(array->recovery);

    if (records->count == 0)
        return 0;
    array->overlay = (struct overlay_source){
        .loop = array->loop,
        .journal = journal_of(array)->device,
        .journal_data_offset = superblock_data_offset_bytes(&journal_of(array)->superblock),
        .records = records,
    };
    for (unsigned m = 0; m < array->assembly.members; ++m) {
        struct member *member = &array->members[m];
        struct device *overlay;

        if (member->state == MEMBER_MISSING)
            continue;
        if (overlay_create(&array->overlay, member->device, m, member->data_offset, &overlay) < 0) {
            while (m-- > 0)
                if (array->members[m].state != MEMBER_MISSING)
                    array->candidates[array->member_candidate[m]].device =
                        overlay_release(array->members[m].device);
            return error_set(error, -ENOMEM, "no memory for the view of the journal");
        }
        member->device = array->candidates[array->member_candidate[m]].device = overlay;
    }
    array->overlaid = true;
    return 0;
}

/* Where the engine cannot read a stripe, blocks that the log holds may still be all that is asked
 * for. */
static task_fn int
read_block_by_block(struct array *array, uint8_t *memory, uint64_t offset, uint64_t length)
{
    for (; length > 0; memory += BLOCK_BYTES, offset += BLOCK_BYTES, length -= BLOCK_BYTES) {
        int result;

        if (overlay_covers(&array->overlay, offset, BLOCK_BYTES))
            continue;
        result = engine_read(array->engine, memory, offset, BLOCK_BYTES);
        if (result < 0)
            return result;
    }
    return 0;
}

task_fn int
array_read_overlaid(struct array *array, void *memory, uint64_t offset, uint64_t length)
{
    int result = engine_read(array->engine, memory, offset, length);

    if (result < 0)
        result = read_block_by_block(array, memory, offset, length);
    return result < 0 ? result : overlay_read_open(&array->overlay, memory, offset, length);
}

const struct journal_records *
array_log_records(const struct array *array)
{
    return array->recovery == NULL ? NULL : recovery_records(array->recovery);
}

/* --- What the journal asks and tells --------------------------------------------------------- */

static task_fn int
flush_members(void *owner)
{
    struct array *array = owner;

    engine_flush_members(array->engine);
    superblocks_record_failures(array);
    return array_beyond_parity(array) ? -EIO : 0;
}

static task_fn int
record_tail(void *owner, uint64_t tail_bytes)
{
    return superblocks_record_tail(owner, tail_bytes);
}

static void
journal_told_failure(void *owner, int error, const char *operation)
{
    array_journal_failed(owner, error, operation);
}

void
array_journal_failed(struct array *array, int error, const char *operation)
{
    if (array->journal_failed)
        return;
    array->journal_failed = true;
    array_tell(array, ARRAY_JOURNAL_FAILED, NO_MEMBER, "%s: the journal failed: %s: %s; %s",
               journal_of(array)->device->name, operation, strerror(-error),
               array->recovering ? "its log is as it was"
                                 : "the array takes no more writes, and what was acknowledged goes "
                                   "to the members");
    if (array->journal_guard != NULL) {
        task_wake(array->loop, array->journal_guard);
        array->journal_guard = NULL;
    }
}

/* R6, in its order. The engine has stopped by itself: what is not durable in the log gets -EIO. */
static task_fn void
journal_give_up(struct array *array)
{
    uint64_t resync_from;

    /* A journal whose superblock failed, and not its log, takes no appends any more either. */
    journal_end_waiting(array->journal);
    /* Nor does the cache: who waits for room in it would wait for write-outs that do not come. */
    engine_write_back(array->engine, false);
    /* What is cached goes to the members without being logged. Should the power be cut on the way,
     * blocks that it has torn there are whole in the log, if that is durable. */
    if (!journal_flush_failed(array->journal) && engine_caches(array->engine))
        ignored(device_flush(journal_of(array)->device)); /* then it is as good as it can be */
    /* Its superblock, if that is what failed, once more: it would be two updates behind else. */
    array->journal_unwritable = false;
    /* Before the members change any more: a crash now could not count on the log. */
    if ((journal_unfinished(array->journal) || engine_caches(array->engine)) &&
        superblocks_update(array, 0) < 0)
        return; /* more members gone than parity covers: no more is recorded, so the log counts */
    while (array->writes_in_flight > 0)
        wait_queue_wait(array->loop, &array->quiet);
    /* What cannot be written leaves its stripe as it was, parity with it. The log cannot keep it:
     * replayed, it would take what has been written out since for what was there before. */
    if (engine_drain_unlogged(array->engine) < 0 && !array->failed)
        engine_give_up_cached(array->engine);
    resync_from = journal_unfinished(array->journal) ? 0 : unsynced_first(&array->unsynced);
    array->journal_struck_off = true;
    /* Each flushes the members first. Two, so that the journal's device is out of the window in
     * which one update behind is current. */
    for (unsigned i = 0; i < 2; ++i)
        if (superblocks_update(array, resync_from) < 0)
            return;
}

static void
journal_guard_main(void *arg)
{
    struct array *array = arg;

    if (!array->journal_failed && !array->stopping) {
        array->journal_guard = task_self(array->loop);
        task_suspend(array->loop);
    }
    if (array->journal_failed && !array->failed)
        journal_give_up(array);
    array->journal_guard_alive = false;
    wait_queue_wake_all(array->loop, &array->quiet);
}

/* --- Start ----------------------------------------------------------------------------------- */

static void
recovery_member_failed(void *owner, unsigned member, int error, const char *operation)
{
    array_member_failed(owner, member, error, operation);
}

static task_fn void
recovery_failures_recorded(void *owner)
{
    superblocks_record_failures(owner);
}

static bool
recovery_beyond_parity(void *owner)
{
    return array_beyond_parity(owner);
}

/* Two updates: no copy of a device from an earlier session is within one of us then. */
static task_fn int
restart_recorded(void *owner, uint64_t tail_bytes)
{
    struct array *array = owner;
    int result;

    array->journal_tail = tail_bytes;
    result = superblocks_update(array, RESYNC_AS_RECORDED);
    if (result == 0)
        result = superblocks_update(array, RESYNC_AS_RECORDED);
    return result == 0 && array->journal_failed ? -EIO : result;
}

/* A log that begins anew; it is scanned like any other. */
static task_fn int
begin_new_log(struct array *array, struct error *error)
{
    struct candidate *journal = journal_of(array);
    int result = recovery_new_log(journal->device, &journal->superblock, error);

    if (result < 0)
        return result;
    journal->superblock.journal_tail_sectors = array->journal_tail = 0;
    result = scan(array, error);
    if (result == 0)
        log_note(array);
    return result;
}

/* The log to the members, and a new beginning. */
static task_fn int
recover(struct array *array, struct error *error)
{
    const struct candidate *journal = journal_of(array);
    const struct recovery_target target = {
        .engine = array->engine,
        .members = array->members,
        .members_count = array->assembly.members,
        .owner = array,
        .member_failed = recovery_member_failed,
        .failures_recorded = recovery_failures_recorded,
        .restart_recorded = restart_recorded,
        .beyond_parity = recovery_beyond_parity,
        .adopt = array->journal_mode == JOURNAL_WRITE_BACK && array_degraded(array) == 0,
    };
    struct journal_config config = {
        .loop = array->loop,
        .device = journal->device,
        .data_offset = superblock_data_offset_bytes(&journal->superblock),
        .members = array->assembly.members,
        .checkpoint_bytes = array->config.journal_checkpoint_bytes,
        .entries = array->config.journal_entries,
        .checkpoint_ns = array->config.journal_checkpoint_ns,
        .discard = journal->device->punch_zeroes && journal->device->block_device,
        .owner = array,
        .flush_members = flush_members,
        .record_tail = record_tail,
        .failed = journal_told_failure,
    };
    int result;

    journal_geometry_init(&config.geometry, &journal->superblock);
    array->recovering = true;
    /* Before the log changes: else it would look whole after a crash, and parity be believed. */
    if (array->log_lost && superblocks_update(array, 0) < 0)
        return error_set(error, -EIO, "the superblocks cannot be written");
    if (array->new_log) {
        result = begin_new_log(array, error);
        if (result < 0)
            return result;
    }
    result = recovery_replay(array->recovery, &target, error);
    if (result == 0)
        result = recovery_restart(array->recovery, &target, &config, &array->journal, error);
    if (result < 0)
        return result;
    array->recovering = false;
    array->log_adopted = recovery_adopted(array->recovery);
    engine_set_journal(array->engine, array->journal);
    result = recovery_write_out(array->recovery, &target, array->journal, error);
    recovery_destroy(array->recovery);
    array->recovery = NULL;
    return result;
}

static void
tell_recovered(struct array *array)
{
    const struct recovery_counts *counts = &array->log_counts;

    if (array->log.end == JOURNAL_END_TORN && array->log.torn_follows > 0)
        array_tell(array, ARRAY_WARNING, NO_MEMBER,
                   "%s: the log ends at entry %" PRIu64 ", which is torn; %" PRIu64
                   " valid ones follow it and do not count. A power cut leaves that in a device "
                   "with a volatile cache; else the journal is damaged, and what they held is lost",
                   journal_of(array)->device->name, array->log.end_seq, array->log.torn_follows);
    if (counts->data_only_stripes + counts->data_parity_stripes == 0)
        array_tell(array, ARRAY_RECOVERY_DONE, NO_MEMBER, "%s: the journal is clean",
                   journal_of(array)->device->name);
    else
        array_tell(array, ARRAY_RECOVERY_DONE, NO_MEMBER,
                   "%s: %s %" PRIu64 " data-only and %" PRIu64 " data-parity stripes from %" PRIu64
                   " entries of the journal%s",
                   journal_of(array)->device->name,
                   array->config.readonly ? "showing" : "recovered", counts->data_only_stripes,
                   counts->data_parity_stripes, array->log.entries,
                   array->log_adopted ? "; data-only stripes stay in the cache" : "");
}

/* --- The write-back cache -------------------------------------------------------------------- */

bool
array_writes_back(const struct array *array)
{
    return array->journal != NULL && array->no_write_back.code == 0 &&
           array->journal_mode == JOURNAL_WRITE_BACK && array_degraded(array) == 0 &&
           !array->failed && !array->journal_failed && !array->stopping;
}

void
array_write_back_off(struct array *array)
{
    if (array->journal == NULL || array->journal_mode != JOURNAL_WRITE_BACK ||
        array_degraded(array) != 1)
        return;
    engine_write_back(array->engine, false);
    array_tell(array, ARRAY_JOURNAL_MODE, NO_MEMBER,
               "write-through: a member is missing; what is cached is written out");
}

static void
data_lost(void *owner, uint64_t array_offset, int error)
{
    struct array *array = owner;
    struct array_event event = {
        .kind = ARRAY_DATA_LOST,
        .member = NO_MEMBER,
        .array_offset = array_offset,
        .length_bytes = BLOCK_BYTES,
    };

    if (array->config.event == NULL)
        return;
    (void)snprintf(event.text, sizeof event.text,
                   "%s: %u acknowledged bytes of the array at %" PRIu64
                   " are lost: only the journal held them, and %s",
                   journal_of(array)->device->name, BLOCK_BYTES, array_offset,
                   error == 0 ? "they can be written nowhere. Read them before the array is "
                                "stopped"
                   : error == -EBADMSG ? "holds something else there"
                                       : "cannot be read there"); /* cut off is fine */
    array->config.event(array->config.owner, &event);
}

static void
write_out_failed(void *owner, uint64_t member_offset)
{
    struct array *array = owner;

    array_tell(array, ARRAY_WARNING, NO_MEMBER,
               "stripes from %" PRIu64 " of each member on cannot be written out: too much of them "
               "cannot be read or written; the journal keeps what was written to them",
               member_offset);
}

/* Stripes that a kernel can recover in a machine of 512 MiB. It keeps all data-only stripes at once
 * in a stripe cache that it doubles until they fit, with a page of every member for each, however
 * few of its blocks are in the log (docs/testing.md). */
static uint64_t
stripes_max(const struct array *array)
{
    const uint64_t stripe_bytes = array->assembly.members * (uint64_t)KERNEL_STRIPE_MEMBER_BYTES;
    uint64_t stripes = KERNEL_STRIPES_MIN;

    if (array->config.not_kernel_recoverable)
        return UINT64_MAX;
    while (2 * stripes * stripe_bytes <= KERNEL_RECOVERY_BYTES)
        stripes *= 2;
    return stripes;
}

/* Without a cache the array is as good as before; why there is none is kept for whoever asks for
 * it. */
static void
create_cache(struct array *array)
{
    const struct candidate *journal = journal_of(array);
    struct journal_geometry geometry;

    journal_geometry_init(&geometry, &journal->superblock);
    if (array->config.cache_bytes == 0) {
        (void)error_set(&array->no_write_back, -ENOTSUP, "there is no memory for write-back");
        return;
    }
    if (engine_cache_create(
            array->engine,
            &(struct engine_cache_config){
                .bytes = array->config.cache_bytes,
                /* No more than the next start, with the same memory, can take over. */
                .index_bytes =
                    min_u64(array->config.cache_bytes / 5 * CACHE_INDEX_FIFTHS,
                            recovery_open_blocks_max(log_index_bytes(array)) * CACHE_NODE_BYTES),
                .stripes_max = stripes_max(array),
                .tunables = array->config.write_back,
                .journal = journal->device,
                .journal_data_offset = superblock_data_offset_bytes(&journal->superblock),
                .ring_blocks = geometry.ring_bytes / BLOCK_BYTES,
                .checksum_seed = geometry.checksum_seed,
                .data_lost = data_lost,
                .write_out_failed = write_out_failed,
            },
            &array->no_write_back) < 0)
        assert(array->no_write_back.code < 0);
}

static void
tell_mode(struct array *array)
{
    if (array->journal_mode != JOURNAL_WRITE_BACK)
        return;
    if (array->no_write_back.code < 0)
        array_tell(array, ARRAY_WARNING, NO_MEMBER, "write-through instead of write-back: %s",
                   array->no_write_back.text);
    else if (array_degraded(array) > 0)
        array_tell(array, ARRAY_WARNING, NO_MEMBER,
                   "write-through instead of write-back, while the array is degraded");
}

task_fn int
array_set_journal_mode(struct array *array, enum journal_mode mode, struct error *error)
{
    int result = 0;

    if (array->config.readonly)
        return error_set(error, -EROFS, "the array is readonly");
    if (array->journal == NULL)
        return error_set(error, -ENOTSUP, "the array has no journal");
    if (array->failed || array->journal_failed || array->stopping)
        return error_set(error, -EIO, "the array %s",
                         array->failed           ? "has failed"
                         : array->journal_failed ? "takes no writes: its journal has failed"
                                                 : "is stopping");
    if (mode == JOURNAL_WRITE_BACK && array->no_write_back.code < 0) {
        *error = array->no_write_back;
        return error->code;
    }
    if (mode == JOURNAL_WRITE_BACK && array_degraded(array) > 0)
        return error_set(error, -EUCLEAN,
                         "write-back is for a whole array: %u of its members are missing or not "
                         "rebuilt yet",
                         array_degraded(array));
    if (mode != array->journal_mode)
        array_tell(array, ARRAY_JOURNAL_MODE, NO_MEMBER, "%s: as asked for",
                   mode == JOURNAL_WRITE_BACK ? "write-back" : "write-through");
    array->journal_mode = mode;
    engine_write_back(array->engine, mode == JOURNAL_WRITE_BACK);
    if (mode == JOURNAL_WRITE_THROUGH) {
        array_request_begin(array); /* array_stop waits for it */
        result = engine_drain(array->engine);
        array_request_end(array);
    }
    if (result < 0)
        return error_set(error, result, "not everything that was cached can be written out");
    return 0;
}

task_fn int
array_journal_start(struct array *array, struct error *error)
{
    int result;

    if (!array->config.readonly)
        create_cache(array);
    result = array->config.readonly ? overlay_start(array, error) : recover(array, error);
    if (result < 0)
        return result;
    tell_recovered(array);
    if (array->config.readonly)
        return 0;
    engine_write_back(array->engine, array_writes_back(array));
    tell_mode(array);
    array->journal_guard_alive = true;
    task_start_wait(array->loop, journal_guard_main, array);
    return 0;
}

/* --- Stop ------------------------------------------------------------------------------------ */

task_fn int
array_journal_stop(struct array *array)
{
    int result = 0;

    if (!array->failed && !array->journal_failed) {
        engine_write_back(array->engine, false);
        result = engine_drain(array->engine);
    }
    if (result == 0 && !array->failed && !array->journal_failed)
        result = journal_drain(array->journal);
    if (array->journal_guard != NULL) {
        task_wake(array->loop, array->journal_guard);
        array->journal_guard = NULL;
    }
    while (array->journal_guard_alive)
        wait_queue_wait(array->loop, &array->quiet);
    return array->journal_failed ? -EIO : result;
}

task_fn void
array_journal_destroy(struct array *array)
{
    engine_end_write_back(array->engine);
    if (array->journal != NULL)
        journal_destroy(array->journal);
    array->journal = NULL;
}
