/*
 * resync.h: making parity agree again after a crash, while the array serves.
 *
 * Runs from unsynced->from to the end of the members, a few groups at a time, each under its
 * group's lock. `from` moves up only when everything below it has good parity on the members. Where
 * a bitmap says which regions are in doubt, the others are passed over. Clients go first: when
 * there were requests since the last step, as much time is left to them as the step took.
 *
 * Y1. unsynced->from never passes a stripe whose parity was not compared or written.
 * Y2. A checkpoint is recorded only after the members were flushed (the owner's `checkpoint` does
 * both).
 */
#ifndef STRIPELOG_RESYNC_H
#define STRIPELOG_RESYNC_H

#include "stripe/engine.h"

struct resync_progress {
    uint64_t done_bytes, total_bytes; /* member bytes */
    uint64_t rate_bytes_per_s;
    uint64_t remaining_ms; /* UINT64_MAX while unknown */
};

struct resync {
    /* Given. */
    struct loop *loop;
    struct engine *engine;
    const struct geometry *geometry;
    struct unsynced *unsynced;
    void *owner;
    /* How many client requests there have been. */
    uint64_t (*requests)(void *owner);
    /* Records unsynced->from where that is possible. */
    task_fn void (*checkpoint)(void *owner);
    void (*progress)(void *owner, const struct resync_progress *progress);
    uint64_t checkpoint_bytes; /* between checkpoints, at most; also every 5 minutes */
    uint64_t progress_ns;      /* between reports */

    /* Its own. */
    bool stop; /* set by anyone: ends at the next step */
};

/* 0: parity is good everywhere but in unsynced->holes, and unsynced->from is UINT64_MAX.
 * -ECANCELED: stopped. -EIO: a member failed, or there are more holes than can be kept. */
task_fn int resync_run(struct resync *resync) must_check;

#endif
