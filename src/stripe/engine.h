/*
 * engine.h: reading and writing stripes, with parity kept true.
 *
 * The array's members are cut into groups: the same 256 KiB (fewer with many members) of
 * every member, a power of two of stripes. A group is what is locked, planned, read, computed and
 * written at once. Writes (and reads that must reconstruct, and resync) are pieces that queue at
 * their group; at the end of the loop's turn a worker takes the group with all its pieces, so that
 * requests for the same or neighbouring stripes become one run of long I/Os.
 *
 *   piece --> group queue --> worker: take the group with all its pieces
 *                               reads:   reconstruct
 *                               changes: plan -> read -> parity -> write -> record failures
 *                               resync:  read all, compare, write what differs
 *                             answer the pieces; again if others came meanwhile
 *
 * Healthy reads do not queue: they go straight from the member into the caller's memory.
 *
 * E1. At most one worker has a group; only it reads for parity, or writes, in the group.
 *
 * E2. A delta (read-modify-write) is used only where parity is known good; elsewhere parity is made
 *     from all data.
 *
 * E3. A worker takes all scratch memory of a phase at once, holding none, before the phase's first
 *     I/O. Who holds some waits only for devices and for superblocks, so waiting for it ends.
 *
 * E4. A block that could not be read is reconstructed, written back and read again before it is
 *     trusted.
 *
 * E5. A write is answered when data and parity are on every working member, and every failure on
 *     the way is recorded.
 *
 * With a journal (write-through) a change is logged between parity and the members:
 *
 *     changes: plan -> read -> parity -> log, wait until durable -> write -> record failures
 *
 * E6. P (and Q) are always computed and logged, and data is logged for members that are missing
 *     too. Nothing of a stripe goes to a member before its step is durable in the log, and nothing
 *     at all if the log fails.
 *
 * E7. All pieces that a worker takes for one stripe are one step of the log, and no piece of that
 *     stripe is taken until it is finished.
 *
 * E8. Nothing is punched: replay would bring back what a live entry holds. Zeros are logged; TRIM
 *     does nothing.
 *
 * E9. Space in the log is reserved before a piece is queued at its group: what waits for it holds
 * no group, no scratch memory and no log space. Those who hold log space wait only for groups,
 *     scratch memory, devices and superblocks, so space comes back.
 *
 * With a write-back cache a change may be left in the log, by stripe:
 *
 *     cached:  complete partial blocks -> log the data, wait until complete -> cache
 *     through: as above, and with it all that is cached in these stripes
 *
 * E10. Cached content never takes part in a reconstruction or a delta as if it were on its member:
 *      until a cycle's parity has been made, only what the members hold does.
 *
 * E11. What is cached is read from the cache or, verified, from the log; never from its member.
 *      Reads go past the groups' locks only where nothing is cached.
 *
 * E12. A cached block stays in the cache, and so bounds the log's tail, until its stripe is on all
 *      working members, with failures recorded.
 */
#ifndef STRIPELOG_ENGINE_H
#define STRIPELOG_ENGINE_H

#include "device/device.h"
#include "format/bad_blocks.h"
#include "geometry/geometry.h"
#include "runtime/pages.h"

enum member_state {
    MEMBER_MISSING, /* no device, or failed: neither read nor written */
    MEMBER_IN_SYNC,
    MEMBER_REBUILDING, /* written everywhere, read below recovered_bytes */
};

struct member {
    enum member_state state;
    struct device *device;        /* borrowed; stays while I/O is in flight after a failure */
    uint64_t data_offset;         /* bytes on the device */
    uint64_t recovered_bytes;     /* with MEMBER_REBUILDING: good below */
    const struct bad_blocks *bad; /* borrowed; NULL if none */
};

#define UNSYNCED_HOLES_MAX 64u

/* Members that cannot be read as a whole: missing, or not rebuilt yet. */
static inline unsigned
members_degraded(const struct member *members, unsigned count)
{
    unsigned degraded = 0;

    for (unsigned m = 0; m < count; ++m)
        degraded += members[m].state != MEMBER_IN_SYNC;
    return degraded;
}

/* Regions where parity is not known good: from `from` on, and (with bits) only where the region's
 * bit is set. */
struct unsynced {
    uint64_t from;         /* member bytes; UINT64_MAX: parity is good everywhere */
    const uint8_t *bits;   /* borrowed; NULL: all from `from` on */
    uint64_t region_bytes; /* of a bit */
    /* A member is missing, by a forced start or since: what it held is reconstructed from this
     * parity nevertheless. */
    bool believed;
    /* Groups, by member offset and in order, that the resync had to pass over since a block could
     * not be read. */
    unsigned holes_count;
    uint64_t holes[UNSYNCED_HOLES_MAX];
};

/* Parity is good below this on every member; UINT64_MAX: everywhere. */
static inline uint64_t
unsynced_first(const struct unsynced *unsynced)
{
    return unsynced->holes_count > 0 ? min_u64(unsynced->holes[0], unsynced->from) : unsynced->from;
}

struct engine;
struct journal;

struct engine_config {
    struct loop *loop;
    const struct geometry *geometry; /* borrowed */
    struct member *members;    /* borrowed, geometry->members of them; the owner changes states */
    struct unsynced *unsynced; /* borrowed; the owner moves it */
    uint64_t scratch_bytes;    /* memory for old content, parity and partial blocks */
    bool scratch_touched;      /* all of it, when the engine is made */
    unsigned workers;
    bool readonly; /* nothing is ever written, not even to mend a block */
    void *owner;
    /* A write or flush to the member failed, or what was read could not be mended: the owner sets
     * its state to MISSING at once and begins to record it. Called in a task or, for a flush, by
     * the loop; must not suspend. */
    void (*member_failed)(void *owner, unsigned member, int error, const char *operation);
    /* Suspends until every failure told so far is durable in the superblocks (at once if none is
     * under way). */
    task_fn void (*failures_recorded)(void *owner);
    /* A block was reconstructed and written back. Must not suspend. */
    void (*read_corrected)(void *owner, unsigned member, uint64_t member_offset);
};

int engine_create(const struct engine_config *config, struct engine **out,
                  struct error *error) must_check;
/* All requests must have returned. */
task_fn void engine_destroy(struct engine *engine);

/* Semantics and alignment as array_read ... array_flush (array.h), without admission. */
task_fn int engine_read(struct engine *engine, void *memory, uint64_t offset,
                        uint64_t length) must_check;
task_fn int engine_write(struct engine *engine, const void *memory, uint64_t offset,
                         uint64_t length, bool fua) must_check;
task_fn int engine_zero(struct engine *engine, uint64_t offset, uint64_t length, bool may_punch,
                        bool fast_only, bool fua) must_check;
task_fn int engine_trim(struct engine *engine, uint64_t offset, uint64_t length,
                        bool fua) must_check;
/* Flushes every working member; callers that come during a flush share the next. */
task_fn int engine_flush(struct engine *engine) must_check;

/* The flush alone: failures are told but not waited for. For the owner, while it records. */
task_fn void engine_flush_members(struct engine *engine);

/* From now on changes are logged there (borrowed until engine_destroy). No change may be under way.
 */
void engine_set_journal(struct engine *engine, struct journal *journal);

/* A block of an open cycle: its data is in the log, and not on its member. */
struct engine_block {
    uint64_t array_offset;
    const void *memory; /* 4096 bytes, 4 KiB-aligned */
};

/*
 * Write-out of blocks that the log already holds: parity is made, logged without the data, and both
 * go to the members (J3, E6). Sorted by member offset; all blocks that a stripe has in its open
 * cycle must come in one call. -EIO: some stripe could not be written out; it stays in the log.
 */
task_fn int engine_write_out(struct engine *engine, const struct engine_block *blocks,
                             unsigned count) must_check;

/*
 * The write-back cache. What is 0 is the default.
 */
struct write_back_tunables {
    unsigned high_percent;     /* of the index: above this the oldest groups are written out (75) */
    unsigned moderate_percent; /* above this, groups with whole stripes (50) */
    unsigned tight_percent;    /* of the ring: with less free and not set aside, the oldest groups
                                  are written out (25) */
    unsigned batch_groups;     /* groups written out at a time at least (16) */
    unsigned write_outs_max;   /* groups being written out at once (32) */
    uint64_t idle_ns;          /* without a write: everything is written out (30 s) */
};

struct engine_cache_config {
    uint64_t bytes;       /* for index and pages */
    uint64_t index_bytes; /* of these for the index, at most */
    uint64_t stripes_max; /* UINT64_MAX: any number */
    struct write_back_tunables tunables;
    struct device *journal; /* borrowed; where dropped blocks are read back from */
    uint64_t journal_data_offset, ring_blocks;
    uint32_t checksum_seed;
    /* A block that only the log held cannot be read back (array bytes); error 0: can be brought
     * nowhere. Must not suspend. */
    void (*data_lost)(void *owner, uint64_t array_offset, int error);
    /* Something in the group that begins at member_offset can be brought neither to its member nor
     * to parity: it stays cached, and in the log. Must not suspend. */
    void (*write_out_failed)(void *owner, uint64_t member_offset);
};

struct write_back_status {
    uint64_t blocks, stripes;           /* cached now */
    uint64_t blocks_max, stripes_max;   /* that may be */
    uint64_t pages, pages_max;          /* of the blocks, in memory */
    uint64_t cached_total, overwritten; /* blocks ever cached; of them, such as were already */
    uint64_t read_hits, read_back;      /* blocks read from memory; from the journal */
    uint64_t written_out, groups_written_out; /* blocks; groups */
    uint64_t lost;                            /* blocks that only the journal held, unreadable */
};

/*
 * Before engine_set_journal; nothing is cached before engine_write_back. -ENOTSUP: the ring, or a
 * member, is too small or too large for a cache (the text says which). -ENOMEM.
 */
int engine_cache_create(struct engine *engine, const struct engine_cache_config *config,
                        struct error *error) must_check;
/* From now on changes are cached; or not any more, and what is cached is written out. */
void engine_write_back(struct engine *engine, bool on);
/* Everything that was cached before this call is written out; changes go through meanwhile. -EIO:
 * something cannot be, or the journal has failed. */
task_fn int engine_drain(struct engine *engine) must_check;
/* The same, and changes go through from then on, until engine_cache_again. */
task_fn int engine_drain_and_pause(struct engine *engine) must_check;
void engine_cache_again(struct engine *engine);
/* The journal, or its superblock, has failed, and no change is under way: the same, without logging
 * anything. */
task_fn int engine_drain_unlogged(struct engine *engine) must_check;
/* What could not be written out then is given up with the log: names it (data_lost). It can be read
 * as long as the engine is there. */
void engine_give_up_cached(struct engine *engine);
/* Ends what is being written out, and begins no more: before the journal is destroyed. */
task_fn void engine_end_write_back(struct engine *engine);
/* Is there anything that only the log holds? */
bool engine_caches(const struct engine *engine) must_check;
/* All zeros where there is no cache. */
void engine_write_back_status(const struct engine *engine, struct write_back_status *status);

/* A block of an open cycle that is found in the log at a start: its newest copy. */
struct engine_found {
    uint64_t array_offset;
    uint64_t entry_position; /* bytes in the ring */
    uint32_t number;         /* of the block in its entry */
    uint32_t checksum;
    const void *memory; /* 4096 bytes */
};

/* What is found at a start. */
struct engine_adoption {
    uint64_t blocks, stripes;
    uint64_t class_stripes; /* most of those with the same number modulo CACHE_CLASSES */
    uint64_t logged_blocks; /* that they take in a log that holds nothing else */
};
/* Could it live in the cache? */
bool engine_adopts(const struct engine *engine, const struct journal *journal,
                   const struct engine_adoption *found) must_check;
/* Caches it. In the order of the log, before engine_set_journal, which sets aside what they need.
 */
void engine_adopt(struct engine *engine, const struct engine_found *found);

/* Groups that one engine_resync takes at most. */
#define ENGINE_RESYNC_GROUPS_MAX 16u

/*
 * Makes parity of `groups` groups from member_offset on (a multiple of engine_group_bytes) agree
 * with their data. 0; -EIO where a data block cannot be read or a member failed.
 */
task_fn int engine_resync(struct engine *engine, uint64_t member_offset,
                          unsigned groups) must_check;
uint64_t engine_group_bytes(const struct engine *engine);

#endif
