/*
 * array.h: a running array.
 *
 *               array_start           first write, superblocks "active"
 *   members ----------------> CLEAN -----------------------------------> ACTIVE
 *                             ^   |                                        |
 *                             |   +-- array_stop                           |
 *                             +--------------------------------------------+
 *                               200 ms without a write, or array_stop: flush, superblocks "clean"
 *
 * An array that was found dirty starts in CLEAN as well (its superblocks go on saying what they
 * said) with a resync in the background; what is recorded as good is then how far that has come.
 *
 * An array belongs to one loop. It owns its devices from a successful array_start on. Requests are
 * tasks; any number may be in flight.
 *
 * R1. No data block goes out before the superblocks that say "active" are durable on all working
 *     members.
 *
 * R2. A write that a failing member missed is acknowledged only when the superblocks that say so
 *     are durable.
 *
 * R3. "Clean" is written only after all members were flushed after the last write.
 *
 * R4. A readonly array never writes anything anywhere. With a journal it shows what a recovery
 * would leave (overlay.h); without the journal it expects, what the members hold, with a warning.
 *
 * R5. With a journal the superblocks say of parity what is known without the log: "clean" also
 *     while writes are under way. There are no active/clean updates; events never count down, and
 *     each start adds 2.
 *
 * R6. When the journal fails, nothing more is written for clients: first superblocks that doubt all
 *     parity (resync_offset 0, the journal still listed) if the log holds anything unfinished; then
 *     what was acknowledged is finished (what is cached is written out without the log) and
 *     flushed; then superblocks without the journal. What can be written nowhere, because too much
 *     of its stripe is gone or unreadable, is named as lost, and can be read until the stop.
 *
 * R7. Write-back is used only while no member is missing: at the first failure everything that is
 *     cached is written out, and writes go through.
 */
#ifndef STRIPELOG_ARRAY_H
#define STRIPELOG_ARRAY_H

#include "array/assemble.h"
#include "recovery/recovery.h"
#include "runtime/pages.h"

struct array;

/* When a write is acknowledged: when it is on the members as well, or when it is on the journal. */
enum journal_mode { JOURNAL_WRITE_THROUGH, JOURNAL_WRITE_BACK };

enum array_event_kind {
    ARRAY_MEMBER_FAILED,  /* text says which and why */
    ARRAY_READ_CORRECTED, /* a block was unreadable and has been reconstructed and written back */
    ARRAY_RESYNC_STARTED,
    ARRAY_RESYNC_PROGRESS, /* at most one a second */
    ARRAY_RESYNC_DONE,
    ARRAY_RESYNC_STOPPED, /* a member failed or the array is stopping; goes on at the next start */
    ARRAY_RECOVERY_PROGRESS, /* of the journal's log; at most one a second */
    ARRAY_RECOVERY_DONE,     /* text says what was found: clean, or N data-only, M data-parity */
    ARRAY_JOURNAL_FAILED,    /* no more writes; what was acknowledged is on the members */
    ARRAY_JOURNAL_MODE,      /* the mode in use has changed; text says to which, and why */
    ARRAY_DATA_LOST,         /* acknowledged data that only the journal held */
    ARRAY_FAILED,            /* more members lost than parity covers: read-only, EIO where needed */
    ARRAY_WARNING,
};

struct array_event {
    enum array_event_kind kind;
    unsigned member;                  /* where it concerns one */
    enum recovery_phase phase;        /* RECOVERY_PROGRESS */
    uint64_t done_bytes, total_bytes; /* resync: member bytes; recovery: see recovery.h */
    uint64_t rate_bytes_per_s;
    uint64_t remaining_ms;               /* UINT64_MAX while unknown */
    uint64_t array_offset, length_bytes; /* DATA_LOST */
    char text[480];
};

struct array_config {
    struct device **devices; /* in the order they were named */
    unsigned device_count;
    bool readonly;
    unsigned force;        /* set of assemble_force */
    uint64_t memory_bytes; /* the engine's share: scratch pages. A recovery takes up to as much
                              again (16 MiB at least) while array_start runs */
    uint64_t memory_beside_cache_bytes; /* its share instead where there is a cache; 0: the same */
    bool memory_touched;                /* scratch pages are there from the start on, for speed */
    /* The write-back cache, for an array with a journal (else nothing is taken). */
    enum journal_mode journal_mode;        /* asked for; a degraded array starts in write-through */
    uint64_t cache_bytes;                  /* its memory: index and pages; 0: no write-back */
    bool not_kernel_recoverable;           /* may hold more than a kernel can recover in 512 MiB */
    struct write_back_tunables write_back; /* 0 in a field: the default */
    unsigned workers;                      /* 0: 64 */
    uint64_t idle_ns;     /* without a write before the superblocks say clean; 0: 200 ms */
    bool resync_disabled; /* tests: leave a dirty array dirty */
    /* When the journal makes checkpoints; 0: as journal.h says. */
    uint64_t journal_checkpoint_bytes, journal_checkpoint_ns;
    unsigned journal_entries; /* tests: what it has memory for at a time; 0: the same */
    void (*event)(void *owner, const struct array_event *event); /* may be NULL; must not suspend */
    void *owner;
};

/*
 * Splits one budget (bytes) between the array and what its requests hold, with a cache or without:
 * fills the config's memory_bytes, memory_beside_cache_bytes and cache_bytes; memory_touched.
 */
void array_config_split(struct array_config *config, uint64_t bytes);
/* Of that budget, what is left for requests now that it is known whether there is a journal. */
uint64_t array_request_bytes(const struct array *array, uint64_t bytes) must_check;

/*
 * Probes, decides, and starts; a dirty complete array starts its resync in the background. On
 * success the devices in use are the array's (to be closed by array_destroy); on failure all stay
 * the caller's. Devices that are left out (stale, spare) are the array's too and are closed by it.
 * Errors as assemble_decide, and those of I/O.
 */
task_fn int array_start(struct loop *loop, const struct array_config *config, struct array **out,
                        struct error *error) must_check;

/* Waits for what is in flight, stops the resync (recording its checkpoint), flushes, writes clean
 * superblocks. No request may come after it. 0, or the error that left the array dirty. */
task_fn int array_stop(struct array *array) must_check;
/* After array_stop, or instead of it (then the array stays as it is on disk, as after a crash). All
 * tasks must have ended. */
task_fn void array_destroy(struct array *array);

/* offset, length: multiples of 4096 in range; memory 4 KiB-aligned. 0, -EIO. */
task_fn int array_read(struct array *array, void *memory, uint64_t offset,
                       uint64_t length) must_check;
/* Any range. Whole blocks are written from the caller's memory where it is congruent to offset
 * modulo 4096, else copied. memory must not change until this returns. 0, -EIO, -EROFS. fua:
 * durable on return. */
task_fn int array_write(struct array *array, const void *memory, uint64_t offset, uint64_t length,
                        bool fua) must_check;
/* As a write of zeros; punches whole stripes where all devices promise zeros and may_punch. */
task_fn int array_zero(struct array *array, uint64_t offset, uint64_t length, bool may_punch,
                       bool fast_only, bool fua) must_check;
/* Punches whole stripes where the devices promise zeros; leaves the rest alone. */
task_fn int array_trim(struct array *array, uint64_t offset, uint64_t length, bool fua) must_check;
/* Durable: every write that had returned when this was called. */
task_fn int array_flush(struct array *array) must_check;
/* Waits until no resync runs; true if parity is good everywhere. */
task_fn bool array_resync_wait(struct array *array);

/*
 * Changes how the journal is used, and what is asked for. To write-back: at once; to write-through:
 * returns when everything cached is on the members. -ENOTSUP: no journal, one that is too small, or
 * no memory for a cache; -EROFS: readonly; -EUCLEAN: write-back on a degraded array; -EIO: the
 * journal or the array has failed (before or on the way). Nothing has changed then, but what is
 * asked for after -EIO.
 */
task_fn int array_set_journal_mode(struct array *array, enum journal_mode mode,
                                   struct error *error) must_check;

/* --- What it is and how it is ---- */

struct array_status {
    uint64_t size_bytes;
    const struct geometry *geometry;
    const struct superblock *superblock; /* of the freshest member; borrowed */
    const struct assembly *assembly;     /* as decided at start; borrowed */
    bool readonly, active, failed, resyncing;
    unsigned degraded;
    uint64_t resync_done_bytes, resync_total_bytes;
    uint64_t reads_corrected, members_failed;
    uint64_t superblock_updates;
    bool journaled;      /* a journal is in use */
    bool journal_failed; /* and failed: R6 */
    struct journal_status journal;
    /* The write-back cache. */
    enum journal_mode journal_mode_wanted, journal_mode; /* asked for; in use */
    bool draining; /* on the way to write-through: something is still cached */
    struct write_back_status write_back; /* zeros where there is no cache */
    const char *no_write_back;           /* why there can be none; borrowed; NULL: there can */
    bool recovered;                      /* a log was scanned at start: */
    struct journal_scan log;
    struct recovery_counts recovery;
};
void array_status(const struct array *array, struct array_status *status);

/* A device that was named at start. */
struct array_device {
    const char *name;       /* borrowed */
    enum member_fate fate;  /* as decided at start */
    bool failed;            /* since then; it is not used any more */
    int member;             /* whose place it has, or had until it failed; -1: none's */
    bool journal;           /* it is the journal in use */
    uint64_t rebuilt_bytes; /* with FATE_REBUILDING: good below */
};
/* false: there are no more. */
bool array_device(const struct array *array, unsigned index, struct array_device *out) must_check;
/* Readonly, with a journal: what its log holds, sorted by place; borrowed. Else NULL. */
const struct journal_records *array_log_records(const struct array *array);

#endif
