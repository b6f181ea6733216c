/* resync.c: see resync.h. */
#include "sync/resync.h"

#define CHECKPOINT_NS (300 * UINT64_C(1000000000))
/* A resync beside clients never gets slower than one step in this time. */
#define PAUSE_MAX_NS UINT64_C(200000000)

/* Is any region of the group in doubt? */
static bool
group_in_doubt(const struct resync *resync, uint64_t offset, uint64_t length)
{
    const struct unsynced *unsynced = resync->unsynced;

    if (unsynced->bits == NULL)
        return true;
    for (uint64_t region = offset / unsynced->region_bytes;
         region <= (offset + length - 1) / unsynced->region_bytes; ++region)
        if (unsynced->bits[region / 8] >> (region % 8) & 1)
            return true;
    return false;
}

/* One step: the next run of groups in doubt from `at` on, at most as many as the engine takes. */
static task_fn int
resync_step(struct resync *resync, uint64_t *at)
{
    const uint64_t group_bytes = engine_group_bytes(resync->engine),
                   end = resync->geometry->member_bytes;
    const uint64_t first = *at;
    unsigned groups = 0;

    while (groups < ENGINE_RESYNC_GROUPS_MAX && *at < end &&
           group_in_doubt(resync, *at, min_u64(group_bytes, end - *at))) {
        *at += group_bytes;
        ++groups;
    }
    if (groups == 0) {
        *at += group_bytes;
        return 0;
    }
    return engine_resync(resync->engine, first, groups);
}

/* A step failed: one group after the other, and those that cannot be done are passed over. */
static task_fn int
resync_around_holes(struct resync *resync, uint64_t first, uint64_t end)
{
    struct unsynced *unsynced = resync->unsynced;

    for (uint64_t at = first; at < end; at += engine_group_bytes(resync->engine)) {
        int result;

        if (resync->stop)
            return -ECANCELED;
        result = engine_resync(resync->engine, at, 1);
        if (result == 0)
            continue;
        if (resync->stop || unsynced->holes_count == UNSYNCED_HOLES_MAX)
            return result;
        unsynced->holes[unsynced->holes_count++] = at;
    }
    return 0;
}

struct pace {
    uint64_t begin_ns, begin_offset;
    uint64_t reported_ns, checkpoint_ns, checkpoint_offset;
};

static void
report(const struct resync *resync, const struct pace *pace, uint64_t now_ns, uint64_t at)
{
    const uint64_t end = resync->geometry->member_bytes, done = at - pace->begin_offset;
    const uint64_t elapsed_us = (now_ns - pace->begin_ns) / 1000;
    struct resync_progress progress = {
        .done_bytes = at, .total_bytes = end, .remaining_ms = UINT64_MAX};

    if (elapsed_us > 0 && done > 0) {
        progress.rate_bytes_per_s = (uint64_t)((double)done * 1e6 / (double)elapsed_us);
        progress.remaining_ms =
            (uint64_t)((double)(end - at) * (double)elapsed_us / 1e3 / (double)done);
    }
    resync->progress(resync->owner, &progress);
}

task_fn int
resync_run(struct resync *resync)
{
    const uint64_t group_bytes = engine_group_bytes(resync->engine),
                   end = resync->geometry->member_bytes;
    uint64_t at = round_down(min_u64(resync->unsynced->from, end), group_bytes);
    uint64_t requests = resync->requests(resync->owner);
    struct pace pace = {.begin_offset = at, .checkpoint_offset = at};

    pace.begin_ns = pace.reported_ns = pace.checkpoint_ns = loop_clock_ns(resync->loop);
    while (at < end) {
        const uint64_t step_begin_ns = loop_clock_ns(resync->loop), step_begin = at;
        uint64_t now_ns;
        int result;

        if (resync->stop)
            return -ECANCELED;
        result = resync_step(resync, &at);
        if (result == -EIO)
            result = resync_around_holes(resync, step_begin, min_u64(at, end));
        if (result < 0)
            return result;
        at = min_u64(at, end);
        resync->unsynced->from = max_u64(resync->unsynced->from, at);
        now_ns = loop_clock_ns(resync->loop);
        if (now_ns - pace.reported_ns >= resync->progress_ns) {
            pace.reported_ns = now_ns;
            report(resync, &pace, now_ns, at);
        }
        if (at - pace.checkpoint_offset >= resync->checkpoint_bytes ||
            now_ns - pace.checkpoint_ns >= CHECKPOINT_NS) {
            resync->checkpoint(resync->owner);
            pace.checkpoint_ns = now_ns;
            pace.checkpoint_offset = at;
        }
        if (requests != resync->requests(resync->owner)) {
            requests = resync->requests(resync->owner);
            loop_sleep(resync->loop, min_u64(now_ns - step_begin_ns, PAUSE_MAX_NS));
        } else {
            task_yield(resync->loop);
        }
    }
    resync->unsynced->from = UINT64_MAX;
    return 0;
}
