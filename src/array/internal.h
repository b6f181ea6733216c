/*
 * internal.h: what array.c (life and admission) and superblocks.c (what is recorded) share.
 */
#ifndef STRIPELOG_ARRAY_INTERNAL_H
#define STRIPELOG_ARRAY_INTERNAL_H

#include "array/array.h"
#include "stripe/engine.h"
#include "sync/resync.h"

enum activity {
    ACTIVITY_CLEAN, /* superblocks say clean (or the resync's checkpoint); no write is in flight */
    ACTIVITY_STARTING, /* a write waits for the superblocks to say active */
    ACTIVITY_ACTIVE,   /* superblocks say active: parity may be wrong anywhere */
    ACTIVITY_STOPPING, /* flushing, then saying clean */
};

struct array {
    struct loop *loop;
    struct array_config config;
    struct engine *engine;
    bool stopping, stopped, failed;

    /* Devices: all that were named, and what was read from them. Owned. */
    struct candidate *candidates;
    enum member_fate *fates;
    unsigned candidates_count;
    struct assembly assembly;

    struct member members[MEMBERS_MAX];
    int member_candidate[MEMBERS_MAX];
    struct unsynced unsynced;

    /* What the superblocks say. superblock_lock: one update at a time. */
    struct tokens superblock_lock;
    uint8_t *superblock_pages; /* owned; one a candidate, as last read or written, and a spare */
    int *superblock_errors;    /* owned; one a candidate */
    struct io_pool superblock_ios;
    uint64_t events;
    bool uneven; /* current members differ in events: to be levelled before the next update */
    bool absent_outrun; /* of a degraded start: absent members cannot be "one behind" any more */
    uint64_t failures, failures_recorded;
    uint64_t updates;
    uint64_t recorded_resync_from; /* as the superblocks have it; UINT64_MAX: clean */

    /* Admission. */
    enum activity activity;
    struct wait_queue activity_changed;
    unsigned writes_in_flight, requests_in_flight;
    struct wait_queue quiet; /* array_stop waits for requests */
    uint64_t requests, last_write_ns;
    struct timer idle_timer;
    struct task *keeper; /* while it waits */
    bool keeper_due, keeper_alive;

    struct resync resync;
    bool resync_alive;
    struct wait_queue resync_ended;

    uint64_t reads_corrected;
};

/* Tells the owner, if it wants to know. */
void array_tell(struct array *array, enum array_event_kind kind, unsigned member,
                const char *format, ...) printf_like(4, 5);

/*
 * Superblocks on all working members and spares: events + 1, what is known of the members, and
 * parity said to be good below resync_from (UINT64_MAX: everywhere; 0: active). All members are
 * flushed first. A member whose superblock cannot be written fails, and all is written again
 * without it. -EIO when more members are gone than parity covers: nothing more is recorded then.
 */
#define RESYNC_AS_RECORDED (UINT64_MAX - 1) /* for resync_from: what the superblocks say now */
task_fn int superblocks_update(struct array *array, uint64_t resync_from) must_check;

/* Makes every failure told so far durable; with an update of its own if need be. */
task_fn void superblocks_record_failures(struct array *array);

/* Takes a member out at once; what was told is recorded by superblocks_record_failures. */
void array_member_failed(struct array *array, unsigned member, int error, const char *operation);

/* Members that are missing or not rebuilt yet. */
unsigned array_degraded(const struct array *array);

/* Too many members are gone. */
bool array_beyond_parity(const struct array *array);

#endif
