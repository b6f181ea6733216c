/*
 * internal.h: what array.c (life and admission) and superblocks.c (what is recorded) share.
 */
#ifndef STRIPELOG_ARRAY_INTERNAL_H
#define STRIPELOG_ARRAY_INTERNAL_H

#include "array/array.h"
#include "journal/overlay.h"
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

    /* The journal. */
    enum journal_mode journal_mode; /* asked for */
    struct error no_write_back;     /* why there is no cache; code 0: there is one */
    int journal_candidate;          /* the device that is in use; -1: none */
    struct journal *journal; /* owned; NULL: nothing is logged (also with a readonly array) */
    uint64_t journal_tail;   /* as the superblocks are to have it */
    bool journal_dropped;    /* by force: the superblocks forget that there was one */
    bool journal_failed, journal_struck_off;
    bool journal_unwritable; /* its superblock */
    bool recovering;         /* the log has not begun anew yet */
    bool log_adopted;        /* its data-only stripes live in the cache */
    bool log_lost; /* by force: the log is not all that it was, so all parity is in doubt */
    bool new_log;  /* by force: and it begins anew */
    struct task *journal_guard; /* while it waits */
    bool journal_guard_alive;
    struct recovery *recovery;     /* owned; what the log held, for as long as it is needed */
    struct overlay_source overlay; /* readonly, with a journal */
    bool overlaid;
    bool log_seen;
    struct journal_scan log;
    struct recovery_counts log_counts;

    struct resync resync;
    bool resync_alive;
    struct wait_queue resync_ended;

    uint64_t reads_corrected;
};

/* --- journaled.c ---- */

/* A member has failed: R7. */
void array_write_back_off(struct array *array);
/* Is write-back in use? */
bool array_writes_back(const struct array *array);

/* Reads the log, and only reads. Before the engine is there. */
task_fn int array_journal_scan(struct array *array, struct error *error) must_check;
/* With the engine: recovers and starts the journal; readonly: lays the log over the members. */
task_fn int array_journal_start(struct array *array, struct error *error) must_check;
/* At a stop, with no request under way: everything written out, the log empty. */
task_fn int array_journal_stop(struct array *array) must_check;
/* With no request under way, and before the engine: a checkpoint may be flushing the members. */
task_fn void array_journal_destroy(struct array *array);
/* A read of an array that is laid over by its log. */
task_fn int array_read_overlaid(struct array *array, void *memory, uint64_t offset,
                                uint64_t length) must_check;
/* The journal's device has failed; does not suspend. */
void array_journal_failed(struct array *array, int error, const char *operation);

/* Tells the owner, if it wants to know. */
void array_tell(struct array *array, enum array_event_kind kind, unsigned member,
                const char *format, ...) printf_like(4, 5);

/*
 * Superblocks on all working members and spares: events + 1, what is known of the members, and
 * parity said to be good below resync_from (UINT64_MAX: everywhere; 0: active). All members are
 * flushed first. A member whose superblock cannot be written fails, and all is written again
 * without it. -EIO when more members are gone than parity covers, or the journal fails while its
 * log is being recovered: nothing more is recorded then.
 */
#define RESYNC_AS_RECORDED (UINT64_MAX - 1) /* for resync_from: what the superblocks say now */
task_fn int superblocks_update(struct array *array, uint64_t resync_from) must_check;

/* The superblock of the journal alone, with this tail, events unchanged; durable. */
task_fn int superblocks_record_tail(struct array *array, uint64_t tail_bytes) must_check;

/* Makes every failure told so far durable; with an update of its own if need be. */
task_fn void superblocks_record_failures(struct array *array);

/* Takes a member out at once; what was told is recorded by superblocks_record_failures. */
void array_member_failed(struct array *array, unsigned member, int error, const char *operation);

/* A request is under way: array_stop waits for it. */
void array_request_begin(struct array *array);
void array_request_end(struct array *array);

/* Members that are missing or not rebuilt yet. */
unsigned array_degraded(const struct array *array);

/* Too many members are gone. */
bool array_beyond_parity(const struct array *array);

#endif
