/*
 * sim_disk.h: simulated members, and the log that crash images are built from.
 *
 * THE FAULT MODEL
 *
 *   order       Operations complete in any order, each after a seeded latency. A flush orders
 *               nothing.
 *   cache       A write is in the volatile cache from its submission on. It is durable when it
 *               carried FUA and has completed, or when a flush that was submitted after its
 *               completion has completed without error, or (disks without a volatile cache) when
 *               it has completed. A disk may persist anything earlier, in any order.
 *   power cut   Of everything that is not durable at the cut, each 512-byte sector is there or is
 *               not, by itself: all of it, nothing, a random subset, or the front of each write. A
 *               sector is never mixed. Of two writes to the same sector the later one submitted
 *               wins where it persisted. Zeroing and punching are writes of zeros.
 *   reading     A read that overlaps a write in flight sees old or new, sector by sector.
 *   errors      A read, write or flush can fail once. A failed write leaves each of its sectors
 *               old or new. A failed flush loses the promise for all that was in the cache: no
 *               later flush makes it durable (it may still be there after a cut). With
 *               `flush_drops` that content is gone there and then (D3 in device.h): reads see what
 *               was there before.
 *   bad blocks  A 4 KiB block can be unreadable until it is written (latent), or be unreadable
 *               and refuse writes (lasting).
 *   punching    A disk that promised to punch can say EOPNOTSUPP, or fail and leave each sector
 *               old or zero.
 *   death       From some operation on a disk answers everything with EIO, also what is in flight.
 *               What it held by then is still there after a restart, should it come back.
 *
 * Not in the model: silent corruption, sectors torn within 512 bytes, acknowledged flushes that
 * are lies, disks that come back while the array runs.
 *
 * WHAT IS DEMANDED OF THE ENGINE (a breach fails the history)
 *
 *   C1. 4 KiB alignment of offsets, lengths, memory; in range; no empty operation.
 *   C2. The memory of a write does not change until it completes.
 *   C3. No two writes in flight overlap.
 *   C4. Punch and zero only where the disk promises them; nothing but reads on a readonly disk.
 *
 * THE LOG
 *
 * Every write is recorded once, with its content and three moments: submitted, completed, durable.
 * Moments count from a clock that the judge's events share (cluster->moment), so that any moment
 * can be the crash. The crash image is what the disks held at the last start plus, in the order of
 * submission, every write submitted by then: whole if it was durable by then, else a subset. Writes
 * that are durable at one crash are folded into the base for the later ones, so looking at many
 * moments of one history in ascending order costs no more than reading its log once.
 */
#ifndef STRIPELOG_SIM_DISK_H
#define STRIPELOG_SIM_DISK_H

#include "device/device.h"
#include "sim_loop.h"
#include "sim_random.h"

#define SIM_MEMBERS_MAX 8u
#define SIM_DISKS_MAX   (SIM_MEMBERS_MAX + 1) /* and a journal */
#define SIM_DISK_BYTES  (4 * MIB)             /* of content kept for a disk */
#define SIM_NEVER       UINT64_MAX

enum sim_count {
    COUNT_HISTORIES,
    COUNT_STARTS,
    COUNT_DEGRADED_STARTS,
    COUNT_FORCED_STARTS,
    COUNT_REFUSALS,
    COUNT_RESTARTS,
    COUNT_CRASHES,
    COUNT_CRASH_IMAGES,
    COUNT_CRASHES_DIRTY,
    COUNT_CRASHES_CLEAN,
    COUNT_CRASHES_IN_RESYNC,
    COUNT_RESYNCS,
    COUNT_RESYNCS_RESUMED,
    COUNT_BITMAPS,
    COUNT_LOST_MEMBERS,
    COUNT_STALE_LEFT_OUT,
    COUNT_READS,
    COUNT_WRITES,
    COUNT_ZEROS,
    COUNT_TRIMS,
    COUNT_FLUSHES,
    COUNT_FUAS,
    COUNT_REQUESTS_FAILED,
    COUNT_LOSS_CHECKS,
    COUNT_DISK_READS,
    COUNT_DISK_WRITES,
    COUNT_DISK_FLUSHES,
    COUNT_DISK_PUNCHES,
    COUNT_READ_ERRORS,
    COUNT_LATENT_ERRORS,
    COUNT_LASTING_ERRORS,
    COUNT_WRITE_ERRORS,
    COUNT_FLUSH_ERRORS,
    COUNT_PUNCH_REFUSALS,
    COUNT_DEATHS,
    COUNT_CORRECTED,
    COUNT_TORN_SECTORS,
    COUNT_JOURNALS,
    COUNT_CHECKPOINTS,
    COUNT_WRAPS,
    COUNT_SPACE_WAITS,
    COUNT_RECOVERIES_PARITY,
    COUNT_RECOVERIES_DATA_ONLY,
    COUNT_CRASHES_IN_RECOVERY,
    COUNT_JOURNAL_LOSSES,
    COUNT_JOURNALS_DROPPED,
    COUNT_JOURNAL_READ_ERRORS,
    COUNT_FOREIGN_LOGS,
    COUNT_FOREIGN_LOGS_FULL,
    COUNT_EVERY_MOMENT,
    COUNT_READONLY_VIEWS,
    COUNT_WRITE_BACK_RUNS,
    COUNT_FAST_STARTS,
    COUNT_CRASHES_CACHED,
    COUNT_MODE_SWITCHES,
    COUNT_BLOCKS_CACHED,
    COUNT_BLOCKS_OVERWRITTEN,
    COUNT_BLOCKS_READ_BACK,
    COUNT_BLOCKS_WRITTEN_OUT,
    COUNT_BLOCKS_LOST,
    COUNT_JOURNAL_ROTS,
    COUNT_LAST
};

/* What a disk will do wrong. Countdowns: the n-th such operation from now on; 0 = none. */
struct sim_faults {
    unsigned read_error_in, write_error_in, flush_error_in, death_in;
    uint64_t error_from, error_end; /* only reads and writes in there count; 0, 0: all */
    bool flush_drops;               /* a flush that fails drops what it was for */
    bool punch_refused;
    int punch_error; /* a positive errno: every punch fails with it, done in part; 0: none */
};

/* What happens to sectors that are not durable at a power cut. */
enum sim_tear {
    TEAR_ALL,    /* everything made it */
    TEAR_NONE,   /* nothing did */
    TEAR_RANDOM, /* half of the sectors */
    TEAR_WRITES, /* whole writes, half of them */
    TEAR_FRONT,  /* the front of each write */
    TEAR_DISKS,  /* everything on some disks, nothing on the others */
    TEAR_LAST
};

/* A write, zeroing or punch, from its submission on. */
struct sim_write {
    unsigned disk;
    bool fua, failed, lost;
    uint64_t offset, length;
    const uint8_t *content;                 /* in the log's arena; NULL: zeros */
    uint64_t submitted, completed, durable; /* moments; SIM_NEVER */
    uint64_t dropped;                       /* by a flush that failed; SIM_NEVER */
};

struct sim_cluster;
struct sim_io;

struct sim_disk {
    struct device device;
    struct sim_cluster *cluster;
    unsigned index;
    uint8_t *live;   /* what reads see; the caches with it */
    uint8_t *stable; /* what was there at the last start, and what was folded in since */
    uint8_t bad[SIM_DISK_BYTES / BLOCK_BYTES]; /* 0, BAD_LATENT, BAD_LASTING */
    unsigned bad_count;
    bool dead;
    struct sim_faults faults;
    struct sim_io *inflight;
    uint64_t written; /* operations that were not reads */
};

enum { BAD_LATENT = 1, BAD_LASTING = 2 };

struct sim_latency {
    uint64_t base_ns, span_ns, grain_ns;
    unsigned slow_percent, slow_factor;
};

struct sim_cluster {
    struct sim_loop sim;
    struct loop *loop; /* stands on sim */
    struct sim_random random;
    struct sim_disk disks[SIM_DISKS_MAX];
    unsigned disks_count;
    struct sim_latency latency;
    uint64_t moment;
    uint64_t hash; /* of everything that happened */
    bool trace;
    uint64_t counts[COUNT_LAST];

    struct sim_write *writes; /* the log, from the last start on; owned */
    unsigned writes_count, writes_capacity, folded;
    uint8_t *arena; /* owned */
    uint64_t arena_used;
    struct sim_io *io_free, *io_all;
};

/* Everything that lives as long as the process: memory and the loop. */
void cluster_create(struct sim_cluster *cluster);
void cluster_destroy(struct sim_cluster *cluster);

/* For one history: `count` disks of this size, without content or faults. */
void cluster_begin(struct sim_cluster *cluster, uint64_t seed, unsigned count, uint64_t size_bytes);
/* What was put into `stable` by hand becomes what the disks hold. */
void cluster_load(struct sim_cluster *cluster);

static inline uint64_t
cluster_moment(struct sim_cluster *cluster)
{
    return ++cluster->moment;
}

/* Mixes an event into the history's hash. */
void cluster_note(struct sim_cluster *cluster, uint64_t what);
void cluster_trace(const struct sim_cluster *cluster, const char *format, ...) printf_like(2, 3);

void disk_die(struct sim_disk *disk);
void disk_make_bad(struct sim_disk *disk, uint64_t block, uint8_t how);

/* The content of one disk at a power cut, into `stable` of all disks, with what is needed to take
 * it back. Ascending moments only (folding). */
struct sim_undo {
    unsigned disk;
    uint64_t offset, length;
    uint8_t *old;
};

struct sim_image {
    struct sim_undo *undo;
    unsigned count, capacity;
    uint8_t *memory;
    uint64_t used;
};

/* Builds the image of a cut at `moment` in disk->stable. */
void image_build(struct sim_cluster *cluster, struct sim_image *image, uint64_t moment,
                 enum sim_tear tear, struct sim_random *random);
/* Changes the image, so that image_undo takes that back too. */
void image_write(struct sim_cluster *cluster, struct sim_image *image, unsigned disk,
                 uint64_t offset, const uint8_t *content, uint64_t length);
/* Takes back what was not durable at that moment. */
void image_undo(struct sim_cluster *cluster, struct sim_image *image);
/* The image becomes what the disks hold: the power is back. The log is empty again, nothing is in
 * flight, the dead live again (with what they held). */
void image_adopt(struct sim_cluster *cluster, struct sim_image *image);
void image_fini(struct sim_image *image);

/* True when the log has a write that is submitted by then and not durable by then. */
static inline bool
write_open_at(const struct sim_write *write, uint64_t moment)
{
    return write->submitted <= moment && write->durable > moment;
}

#endif
