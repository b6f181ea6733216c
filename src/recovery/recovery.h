/*
 * recovery.h: from what a journal holds to an array whose journal can be used.
 *
 *   recovery_scan      reads the whole log, decides (records.h); nothing is written
 *   recovery_replay    complete cycles to the members
 *   recovery_restart   a new beginning of the log, so that nothing old can be taken for new
 *   recovery_write_out data-only stripes: parity logged, data and parity to the members; or they
 *                      stay in the new log, and live in the write-back cache
 *
 * V1. Nothing is written anywhere before the whole log has been read and found sound.
 *
 * V2. A crash at any moment leaves a state from which recovery comes to the same result: the tail
 *     moves only after replay has been flushed to the members and what is data-only is durable
 *     behind the new tail (or the tail does not move).
 *
 * V3. The new log's first sequence number is beyond every one that can stand in the ring:
 *     max(S, T) + max(10000, ring blocks + 1), S the next expected, T that of a meta block standing
 *     at the end.
 *
 * V4. Where the ring has no room for the data-only stripes beside the old log, the old log goes on
 *     (same tail, same sequence) after everything behind its end has been overwritten with zeros.
 *
 * V5. Memory is bounded by the budget, not by the journal. Where the index cannot hold all that
 *     counts, the log is read a second time, and what is complete is replayed whenever the index is
 *     full. Blocks of data-only stripes have to fit into half of it.
 *
 * See the journal specification, section 9.
 */
#ifndef STRIPELOG_RECOVERY_H
#define STRIPELOG_RECOVERY_H

#include "journal/journal.h"
#include "journal/records.h"
#include "journal/scan.h"
#include "stripe/engine.h"

struct recovery;

enum recovery_phase { RECOVERY_SCANNING, RECOVERY_REPLAYING, RECOVERY_WRITING_OUT };

struct recovery_progress {
    enum recovery_phase phase;
    uint64_t done_bytes, total_bytes; /* SCANNING: of the ring, at most; else: of what is written */
    uint64_t rate_bytes_per_s;
    uint64_t remaining_ms; /* UINT64_MAX while unknown */
};

struct recovery_config {
    struct loop *loop;
    struct device *device;            /* the journal; borrowed */
    const struct superblock *journal; /* its superblock; borrowed */
    const struct geometry *geometry;  /* borrowed */
    uint64_t memory_bytes;            /* for the index; buffers take 24 MiB beside it */
    bool whole_index; /* all records must be there at once (an overlay): -ENOMEM, with
                         the memory it would take, where they do not fit */
    bool unreadable_is_end;
    void (*progress)(void *owner,
                     const struct recovery_progress *progress); /* at most one a second;
                                                                    may be NULL */
    void *owner;
};

/* Data blocks without parity that a log may hold for its index to fit into so much memory, however
 * long the log is. */
uint64_t recovery_open_blocks_max(uint64_t memory_bytes);

/* Errors as journal_scan; in addition -ENOMEM. On -EBADMSG for a tail without a valid entry the
 * text says what else stands in the ring. */
task_fn int recovery_scan(const struct recovery_config *config, struct recovery **out,
                          struct error *error) must_check;
void recovery_destroy(struct recovery *recovery);

/* A log that begins anew, empty: a random sequence number in an empty entry at position 0, durable.
 * What the ring held before is lost once a superblock's tail says 0. */
task_fn int recovery_new_log(struct device *device, const struct superblock *journal,
                             struct error *error) must_check;

const struct journal_scan *recovery_log(const struct recovery *recovery);
/* NULL where they did not fit: V5. Valid until recovery_replay. */
const struct journal_records *recovery_records(const struct recovery *recovery);

struct recovery_counts {
    uint64_t data_only_stripes, data_parity_stripes;
    uint64_t replay_blocks, open_blocks;
};
void recovery_counts(const struct recovery *recovery, struct recovery_counts *counts);

/* What recovery needs of the array when it writes. */
struct recovery_target {
    struct engine *engine;
    struct member *members; /* borrowed; states are the owner's */
    unsigned members_count;
    void *owner;
    /* As the engine's. */
    void (*member_failed)(void *owner, unsigned member, int error, const char *operation);
    task_fn void (*failures_recorded)(void *owner);
    /* Superblocks on all members, events + 2, the journal's with this tail; durable. */
    task_fn int (*restart_recorded)(void *owner, uint64_t tail_bytes);
    bool (*beyond_parity)(void *owner);
    bool adopt; /* data-only stripes go live in the engine's cache, if there is room for them */
};

/* Complete cycles to every member that is not MISSING, then a flush of all. -EIO: the journal
 * cannot be read any more as it was scanned, or too many members failed: the tail is where it was.
 */
task_fn int recovery_replay(struct recovery *recovery, const struct recovery_target *target,
                            struct error *error) must_check;

/* After replay. *config has device, geometry, owner and callbacks; tail, head and seq are set here.
 * On success the journal runs, held where recovery_write_out needs it. */
task_fn int recovery_restart(struct recovery *recovery, const struct recovery_target *target,
                             const struct journal_config *config, struct journal **journal,
                             struct error *error) must_check;

/* After restart: do the data-only stripes live in the cache now? */
bool recovery_adopted(const struct recovery *recovery) must_check;

/* After restart, with the engine logging to that journal: data-only stripes, if they are not in the
 * cache. Releases the hold; makes a checkpoint. */
task_fn int recovery_write_out(struct recovery *recovery, const struct recovery_target *target,
                               struct journal *journal, struct error *error) must_check;

#endif
