/* sim_history.c: see sim_history.h. */
#include "sim_history.h"
#include "array/array.h"
#include "array/create.h"
#include "format/bitmap.h"
#include "sim_log.h"
#include "sim_report.h"
#include <stdio.h>
#include <stdlib.h>

#define CLIENTS_MAX     6u
#define REQUEST_BYTES   (256 * KIB) /* the longest request */
#define MEMORY_BYTES    (REQUEST_BYTES + 2 * BLOCK_BYTES)
#define IDLE_NS         UINT64_C(200000000)
#define CUTS_LOOKED_AT  3u /* crash images that are only judged, for each run */
#define DATA_OFFSET_MIN (16 * KIB)
#define FEW_ENTRIES     6u /* of the journal in memory, in one history in eight */
/* Virtual time that a request may take. The timers that would rescue one that nobody wakes (30 s
 * unless a history has them sooner) are longer. */
#define REQUEST_NS_MAX UINT64_C(20000000000)
#define DRAIN_NS       UINT64_C(100000000)
#define CACHE_SIZES    KIB, 2 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, MIB

#define PROMISE(count) (UINT64_C(1) << (count))
#define PROMISED_ALWAYS                                                                            \
    (PROMISE(COUNT_READS) | PROMISE(COUNT_WRITES) | PROMISE(COUNT_ZEROS) | PROMISE(COUNT_TRIMS) |  \
     PROMISE(COUNT_FLUSHES) | PROMISE(COUNT_FUAS) | PROMISE(COUNT_RESTARTS) |                      \
     PROMISE(COUNT_LOSS_CHECKS) | PROMISE(COUNT_DISK_PUNCHES) | PROMISE(COUNT_CRASH_IMAGES) |      \
     PROMISE(COUNT_BITMAPS))
#define PROMISED_CRASH                                                                             \
    (PROMISE(COUNT_CRASHES) | PROMISE(COUNT_TORN_SECTORS) | PROMISE(COUNT_RESYNCS) |               \
     PROMISE(COUNT_RESYNCS_RESUMED) | PROMISE(COUNT_CRASHES_IN_RESYNC) |                           \
     PROMISE(COUNT_CRASHES_DIRTY) | PROMISE(COUNT_CRASHES_CLEAN))
#define PROMISED_JOURNAL                                                                           \
    (PROMISE(COUNT_READS) | PROMISE(COUNT_WRITES) | PROMISE(COUNT_ZEROS) | PROMISE(COUNT_TRIMS) |  \
     PROMISE(COUNT_FLUSHES) | PROMISE(COUNT_FUAS) | PROMISE(COUNT_RESTARTS) |                      \
     PROMISE(COUNT_LOSS_CHECKS) | PROMISE(COUNT_CRASH_IMAGES) | PROMISE(COUNT_JOURNALS) |          \
     PROMISE(COUNT_CHECKPOINTS) | PROMISE(COUNT_WRAPS) | PROMISE(COUNT_SPACE_WAITS) |              \
     PROMISE(COUNT_RECOVERIES_PARITY) | PROMISE(COUNT_CRASHES) | PROMISE(COUNT_TORN_SECTORS) |     \
     PROMISE(COUNT_CRASHES_IN_RECOVERY) | PROMISE(COUNT_JOURNALS_DROPPED) |                        \
     PROMISE(COUNT_JOURNAL_READ_ERRORS) | PROMISE(COUNT_READONLY_VIEWS))

#define PROMISED_CACHE                                                                             \
    (PROMISE(COUNT_WRITE_BACK_RUNS) | PROMISE(COUNT_FAST_STARTS) | PROMISE(COUNT_CRASHES_CACHED) | \
     PROMISE(COUNT_BLOCKS_CACHED) | PROMISE(COUNT_BLOCKS_OVERWRITTEN) |                            \
     PROMISE(COUNT_BLOCKS_READ_BACK) | PROMISE(COUNT_BLOCKS_WRITTEN_OUT) |                         \
     PROMISE(COUNT_RECOVERIES_DATA_ONLY))

const struct sim_mode sim_modes[] = {
    {
        .name = "healthy",
        .story = "complete arrays without faults; clean restarts",
        .runs_max = 2,
        .promised = PROMISED_ALWAYS | PROMISE(COUNT_PUNCH_REFUSALS),
    },
    {
        .name = "degraded",
        .story = "arrays that begin without a member (RAID-6: or two); clean and dirty restarts",
        .degraded_percent = 100,
        .crash_percent = 40,
        .runs_max = 3,
        .promised = PROMISED_ALWAYS | PROMISE(COUNT_DEGRADED_STARTS) | PROMISE(COUNT_REFUSALS) |
                    PROMISE(COUNT_FORCED_STARTS) | PROMISE(COUNT_CRASHES) |
                    PROMISE(COUNT_CRASHES_DIRTY) | PROMISE(COUNT_CRASHES_CLEAN) |
                    PROMISE(COUNT_TORN_SECTORS),
    },
    {
        .name = "member_loss",
        .story = "members that die while the array works, and come back stale",
        .degraded_percent = 10,
        .crash_percent = 40,
        .death_percent = 90,
        .runs_max = 3,
        .promised = PROMISED_ALWAYS | PROMISE(COUNT_DEATHS) | PROMISE(COUNT_LOST_MEMBERS) |
                    PROMISE(COUNT_STALE_LEFT_OUT) | PROMISE(COUNT_DEGRADED_STARTS) |
                    PROMISE(COUNT_REFUSALS) | PROMISE(COUNT_FORCED_STARTS) |
                    PROMISE(COUNT_CRASHES) | PROMISE(COUNT_TORN_SECTORS),
    },
    {
        .name = "crash",
        .story = "power cuts of complete arrays, also in the resync that follows, and in the next",
        .unsynced_percent = 30,
        .crash_percent = 90,
        .runs_max = 4,
        .promised = PROMISED_ALWAYS | PROMISED_CRASH,
    },
    {
        .name = "errors",
        .story = "reads, writes and flushes that fail; blocks that cannot be read",
        .degraded_percent = 10,
        .crash_percent = 20,
        .latent_percent = 60,
        .lasting_percent = 10,
        .read_error_percent = 50,
        .write_error_percent = 20,
        .flush_error_percent = 15,
        .runs_max = 2,
        .promised = PROMISED_ALWAYS | PROMISE(COUNT_READ_ERRORS) | PROMISE(COUNT_LATENT_ERRORS) |
                    PROMISE(COUNT_LASTING_ERRORS) | PROMISE(COUNT_WRITE_ERRORS) |
                    PROMISE(COUNT_FLUSH_ERRORS) | PROMISE(COUNT_CORRECTED) |
                    PROMISE(COUNT_LOST_MEMBERS),
    },
    {
        .name = "storm",
        .story = "everything at once: crashes, deaths, errors, degraded and unsynced arrays",
        .degraded_percent = 15,
        .unsynced_percent = 20,
        .crash_percent = 70,
        .death_percent = 25,
        .latent_percent = 25,
        .lasting_percent = 5,
        .read_error_percent = 20,
        .write_error_percent = 10,
        .flush_error_percent = 10,
        .runs_max = 4,
        .promised = PROMISED_ALWAYS | PROMISED_CRASH | PROMISE(COUNT_DEATHS) |
                    PROMISE(COUNT_READ_ERRORS) | PROMISE(COUNT_LATENT_ERRORS) |
                    PROMISE(COUNT_WRITE_ERRORS) | PROMISE(COUNT_FLUSH_ERRORS) |
                    PROMISE(COUNT_CORRECTED) | PROMISE(COUNT_REFUSALS) |
                    PROMISE(COUNT_FORCED_STARTS) | PROMISE(COUNT_STALE_LEFT_OUT),
    },
    {
        .name = "beyond",
        .story = "more faults than parity covers: errors are fine, wrong data and hangs are not",
        .degraded_percent = 30,
        .unsynced_percent = 10,
        .death_percent = 70,
        .latent_percent = 60,
        .lasting_percent = 20,
        .read_error_percent = 50,
        .write_error_percent = 40,
        .flush_error_percent = 30,
        .beyond = true,
        .runs_max = 1,
        .promised = PROMISE(COUNT_DEATHS) | PROMISE(COUNT_REQUESTS_FAILED) | PROMISE(COUNT_READS) |
                    PROMISE(COUNT_WRITES) | PROMISE(COUNT_READ_ERRORS) |
                    PROMISE(COUNT_LATENT_ERRORS) | PROMISE(COUNT_LASTING_ERRORS) |
                    PROMISE(COUNT_WRITE_ERRORS) | PROMISE(COUNT_FLUSH_ERRORS),
    },
    {
        .name = "journal",
        .story =
            "arrays with a journal: power cuts, also in recovery; nothing acknowledged is lost",
        .degraded_percent = 15,
        .unsynced_percent = 15,
        .crash_percent = 85,
        .runs_max = 4,
        .journal_percent = 100,
        .promised = PROMISED_JOURNAL | PROMISE(COUNT_RESYNCS) | PROMISE(COUNT_RESYNCS_RESUMED) |
                    PROMISE(COUNT_CRASHES_IN_RESYNC) | PROMISE(COUNT_DEGRADED_STARTS),
    },
    {
        .name = "journal_storm",
        .story = "the same with deaths and errors of members, and of the journal",
        .degraded_percent = 15,
        .unsynced_percent = 10,
        .crash_percent = 70,
        .death_percent = 35,
        .latent_percent = 25,
        .lasting_percent = 5,
        .read_error_percent = 20,
        .write_error_percent = 20,
        .flush_error_percent = 20,
        .runs_max = 4,
        .journal_percent = 100,
        .journal_loss_percent = 35,
        .promised = PROMISED_JOURNAL | PROMISE(COUNT_DEATHS) | PROMISE(COUNT_READ_ERRORS) |
                    PROMISE(COUNT_LATENT_ERRORS) | PROMISE(COUNT_WRITE_ERRORS) |
                    PROMISE(COUNT_FLUSH_ERRORS) | PROMISE(COUNT_CORRECTED) |
                    PROMISE(COUNT_STALE_LEFT_OUT) | PROMISE(COUNT_JOURNAL_LOSSES) |
                    PROMISE(COUNT_REFUSALS) | PROMISE(COUNT_FORCED_STARTS) |
                    PROMISE(COUNT_REQUESTS_FAILED),
    },
    {
        .name = "journal_log",
        .story = "logs such as the kernel leaves: data without parity, full rings; every crash",
        .degraded_percent = 25,
        .crash_percent = 100,
        .runs_max = 3,
        .journal_percent = 100,
        .foreign_percent = 100,
        .every_percent = 5,
        .promised = PROMISED_JOURNAL | PROMISE(COUNT_RECOVERIES_DATA_ONLY) |
                    PROMISE(COUNT_FOREIGN_LOGS) | PROMISE(COUNT_FOREIGN_LOGS_FULL) |
                    PROMISE(COUNT_EVERY_MOMENT),
    },
    {
        .name = "journal_beyond",
        .story = "more faults than parity covers, with a journal",
        .degraded_percent = 30,
        .death_percent = 50,
        .latent_percent = 40,
        .lasting_percent = 20,
        .read_error_percent = 40,
        .write_error_percent = 40,
        .flush_error_percent = 30,
        .beyond = true,
        .runs_max = 1,
        .journal_percent = 100,
        .journal_loss_percent = 50,
        .foreign_percent = 30,
        .promised = PROMISE(COUNT_DEATHS) | PROMISE(COUNT_REQUESTS_FAILED) |
                    PROMISE(COUNT_JOURNAL_LOSSES) | PROMISE(COUNT_CHECKPOINTS) |
                    PROMISE(COUNT_WRITE_ERRORS) | PROMISE(COUNT_FLUSH_ERRORS),
    },
    {
        .name = "journal_every",
        .story = "small arrays with a journal: a power cut at every single moment",
        .degraded_percent = 20,
        .unsynced_percent = 10,
        .crash_percent = 100,
        .runs_max = 3,
        .journal_percent = 100,
        .every_percent = 100,
        .promised = PROMISED_JOURNAL | PROMISE(COUNT_EVERY_MOMENT),
    },
    {
        .name = "cache",
        .story = "arrays in write-back: power cuts, also in recovery and in a start from its log",
        .degraded_percent = 5,
        .unsynced_percent = 15,
        .crash_percent = 85,
        .runs_max = 4,
        .journal_percent = 100,
        .foreign_percent = 10,
        .cache_percent = 100,
        .promised = PROMISED_JOURNAL | PROMISED_CACHE | PROMISE(COUNT_RESYNCS) |
                    PROMISE(COUNT_RESYNCS_RESUMED) | PROMISE(COUNT_CRASHES_IN_RESYNC) |
                    PROMISE(COUNT_DEGRADED_STARTS),
    },
    {
        .name = "cache_storm",
        .story = "the same with the mode changed under load, deaths and errors",
        .degraded_percent = 10,
        .unsynced_percent = 15,
        .crash_percent = 70,
        .death_percent = 35,
        .latent_percent = 25,
        .lasting_percent = 5,
        .read_error_percent = 20,
        .write_error_percent = 20,
        .flush_error_percent = 20,
        .runs_max = 4,
        .journal_percent = 100,
        .journal_loss_percent = 35,
        .foreign_percent = 10,
        .cache_percent = 75,
        .switch_percent = 60,
        .promised = PROMISED_JOURNAL | PROMISED_CACHE | PROMISE(COUNT_MODE_SWITCHES) |
                    PROMISE(COUNT_DEATHS) | PROMISE(COUNT_READ_ERRORS) |
                    PROMISE(COUNT_LATENT_ERRORS) | PROMISE(COUNT_WRITE_ERRORS) |
                    PROMISE(COUNT_FLUSH_ERRORS) | PROMISE(COUNT_CORRECTED) |
                    PROMISE(COUNT_STALE_LEFT_OUT) | PROMISE(COUNT_JOURNAL_LOSSES) |
                    PROMISE(COUNT_REFUSALS) | PROMISE(COUNT_FORCED_STARTS) |
                    PROMISE(COUNT_REQUESTS_FAILED) | PROMISE(COUNT_BLOCKS_LOST),
    },
    {
        .name = "cache_beyond",
        .story = "more faults than parity covers, and rot in the journal, in write-back",
        .degraded_percent = 15,
        .death_percent = 40,
        .latent_percent = 40,
        .lasting_percent = 20,
        .read_error_percent = 40,
        .write_error_percent = 30,
        .flush_error_percent = 20,
        .beyond = true,
        .runs_max = 1,
        .journal_percent = 100,
        .journal_loss_percent = 40,
        .foreign_percent = 20,
        .cache_percent = 90,
        .switch_percent = 30,
        .rot_percent = 50,
        .promised = PROMISE(COUNT_DEATHS) | PROMISE(COUNT_REQUESTS_FAILED) |
                    PROMISE(COUNT_JOURNAL_LOSSES) | PROMISE(COUNT_CHECKPOINTS) |
                    PROMISE(COUNT_WRITE_ERRORS) | PROMISE(COUNT_FLUSH_ERRORS) |
                    PROMISE(COUNT_JOURNAL_ROTS) | PROMISE(COUNT_BLOCKS_READ_BACK),
    },
    {
        .name = "cache_every",
        .story = "small arrays in write-back: a power cut at every single moment",
        .degraded_percent = 5,
        .unsynced_percent = 10,
        .crash_percent = 100,
        .runs_max = 3,
        .journal_percent = 100,
        .foreign_percent = 10,
        .every_percent = 100,
        .cache_percent = 90,
        .switch_percent = 30,
        .promised = PROMISED_JOURNAL | PROMISED_CACHE | PROMISE(COUNT_EVERY_MOMENT),
    },
};

const unsigned sim_modes_count = ARRAY_LEN(sim_modes);

/* --- State of a history --------------------------------------------------------------------- */

/* A block that was named as lost reads as an error. */
enum lost { LOST_NOT, LOST_SURELY, LOST_PERHAPS };

struct client {
    struct history *history;
    struct sim_random random;
    unsigned number, requests;
    uint8_t *memory; /* MEMORY_BYTES, block-aligned */
};

struct history {
    struct sim_world *world;
    struct sim_cluster *cluster;
    struct model *model;
    struct judge *judge;
    const struct sim_mode *mode;
    struct sim_random random;
    struct geometry geometry;
    struct superblock superblocks[SIM_DISKS_MAX], check; /* the first ones */
    uint8_t doubtful[SIM_DISK_BYTES / BLOCK_BYTES]; /* with a bitmap: stripes whose bit is set */
    unsigned members, disks; /* the last disk is the journal, if there is one */
    unsigned journal;        /* its bit; 0: none */
    uint64_t ring_blocks;
    bool foreign;      /* its log was made */
    bool cached;       /* a run was in write-back: the log may have data without parity */
    bool stuck;        /* of which some could not be written out: it has nothing set aside */
    unsigned left_out; /* disks that are never offered */
    unsigned suspects; /* disks that may have failed in any run */
    uint64_t hot_first, hot_blocks;

    /* The run. */
    struct verdict verdict;
    unsigned offered;
    unsigned faulty; /* disks that may fail in this run */
    unsigned force;  /* set of assemble_force */
    bool faults_allowed;
    bool journaled;  /* the run uses the journal */
    bool write_back; /* and asks for write-back */
    bool switches;   /* and changes the mode under load */
    unsigned modes;  /* how often the mode has changed, or may have */
    unsigned warnings;
    bool few_entries;      /* the journal soon runs out of memory for them */
    uint64_t write_out_ns; /* quiet time after which all is written out; 0: 30 s */
    bool every;            /* every moment of it is looked at */
    bool errors_allowed;   /* a request may fail */
    struct array *array;
    struct client clients[CLIENTS_MAX];
    unsigned clients_working;
    struct task *main;
    bool resync_ran, stopped_clean;
    uint64_t begun_moment, started_moment; /* of the run; 0: it did not start */
    uint64_t idle_moment;                  /* after an idle time; 0 if none */
    uint64_t resync_begun, resync_ended;   /* moments; 0 if not */
    uint64_t journal_failed;               /* moment; 0 if it did not */
    bool journal_forgot;                   /* and it cannot have kept what was not flushed */
    uint8_t *memory;                       /* the main task's, MEMORY_BYTES */
    /* Blocks of the array that were named as lost with the journal. */
    unsigned lost_told;
    uint8_t lost[SIM_MEMBERS_MAX * SIM_DISK_BYTES / BLOCK_BYTES]; /* enum lost */
};

static uint64_t
pick(struct sim_random *random, const uint64_t *from, unsigned count)
{
    return from[random_below(random, count)];
}

#define PICK(random, ...)                                                                          \
    pick(random, (const uint64_t[]){__VA_ARGS__},                                                  \
         sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

/* --- Making the array ----------------------------------------------------------------------- */

static void
geometry_choose(struct history *history)
{
    struct sim_random *const random = &history->random;
    struct geometry_config config = {
        .level = (int)PICK(random, 4, 5, 5, 5, 6, 6, 6, 6),
        .chunk_bytes = 4 * KIB << random_below(random, 5),
    };
    uint64_t chunks;

    config.members = (unsigned)random_between(random, config.level == 6 ? 4 : 3, SIM_MEMBERS_MAX);
    if (config.level == 5)
        config.layout = (unsigned)PICK(random, 0, 1, 2, 2, 3, 4, 5);
    if (config.level == 6)
        config.layout = (unsigned)PICK(random, 0, 1, 2, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20);
    chunks = random_between(random, 1, 12) * (64 * KIB / config.chunk_bytes);
    if (random_percent(random, 60))
        chunks = (chunks + 2) / 3;
    if (history->mode->every_percent == 100)
        chunks = (chunks + 3) / 4;
    else if (history->mode->cache_percent > 0 && random_percent(random, 15))
        chunks *= 3; /* more groups, so that there is something to choose from */
    config.size_bytes = chunks * config.chunk_bytes;
    if (geometry_init(&history->geometry, &config) < 0)
        sim_fail("the simulator chose a geometry that is none: level %d layout %u", config.level,
                 config.layout);
}

/* As somebody else's array might be: everything as close together as it goes. */
static void
superblocks_make_tight(struct history *history, uint32_t minor, uint64_t data_offset)
{
    const struct geometry *const geometry = &history->geometry;
    /* A table of roles for 200 makes superblocks larger than a sector. */
    const unsigned table = random_percent(&history->random, 15) ? 200 : history->disks;

    for (unsigned d = 0; d < history->disks; ++d) {
        const uint64_t size_bytes = history->cluster->disks[d].device.size_bytes;
        struct superblock *const sb = &history->superblocks[d];
        uint64_t offset;

        if (superblock_offset(minor, size_bytes, &offset) < 0)
            sim_fail("the simulator chose disks that are too small");
        superblock_init(sb, minor, table);
        memset(sb->set_uuid, 0x51, sizeof sb->set_uuid);
        superblock_set_name(sb, NULL, "simulated");
        sb->ctime = sb->utime = superblock_time(1700000000, 0);
        sb->level = geometry->level;
        sb->layout = geometry->layout;
        sb->size_sectors = geometry->member_bytes / SECTOR_BYTES;
        sb->chunk_sectors = (uint32_t)(geometry->chunk_bytes / SECTOR_BYTES);
        sb->raid_disks = history->members;
        sb->data_offset_sectors = data_offset / SECTOR_BYTES;
        sb->super_offset_sectors = offset / SECTOR_BYTES;
        sb->data_size_sectors = ((minor == 0 ? offset : size_bytes) - data_offset) / SECTOR_BYTES;
        sb->dev_number = d;
        memset(sb->device_uuid, (int)d + 1, sizeof sb->device_uuid);
        for (unsigned i = 0; i < history->members; ++i)
            sb->dev_roles[i] = (uint16_t)i;
        if (history->journal != 0) {
            sb->feature_map |= SUPERBLOCK_FEATURE_JOURNAL;
            sb->dev_roles[history->members] = SUPERBLOCK_ROLE_JOURNAL;
        }
    }
}

/* As `create` makes them. */
static void
superblocks_make_created(struct history *history, uint32_t minor)
{
    const struct geometry *const geometry = &history->geometry;
    struct create_device devices[SIM_DISKS_MAX];
    struct create_options options = {
        .level = geometry->level,
        .layout = geometry->layout,
        .minor = minor,
        .chunk_bytes = geometry->chunk_bytes,
        .size_bytes = geometry->member_bytes,
        .name = "simulated",
        .now = superblock_time(1700000000, 0),
    };
    struct error error;

    memset(options.set_uuid, 0x52, sizeof options.set_uuid);
    for (unsigned d = 0; d < history->disks; ++d) {
        const struct device *const device = &history->cluster->disks[d].device;

        devices[d] = (struct create_device){.name = device->name, .size_bytes = device->size_bytes};
        memset(devices[d].uuid, (int)d + 1, sizeof devices[d].uuid);
    }
    if (create_plan(&options, devices, history->disks, history->superblocks, &error) < 0)
        sim_fail("create: %s", error.text);
}

/*
 * A write-intent bitmap, beside superblocks that are made tight. Its bits say where parity is
 * doubtful; a stale one says nothing, and parity may be bad everywhere.
 */
static void
bitmap_make(struct history *history, uint32_t minor)
{
    struct sim_random *const random = &history->random;
    const uint64_t region_bytes = BLOCK_BYTES << random_below(random, 5);
    const bool stale = random_percent(random, 20);

    memset(history->doubtful, 0, sizeof history->doubtful);
    for (uint64_t at = 0; at < history->geometry.member_bytes; at += region_bytes)
        if (random_percent(random, 40))
            for (uint64_t in = 0; in < region_bytes; in += BLOCK_BYTES)
                history->doubtful[(at + in) / BLOCK_BYTES] = 1;
    for (unsigned d = 0; d < history->disks; ++d) {
        struct superblock *const sb = &history->superblocks[d];
        struct bitmap_header header = {
            .events = sb->events,
            .sync_size_sectors = sb->size_sectors,
            .chunk_bytes = (uint32_t)region_bytes,
            .state = stale ? BITMAP_STATE_STALE : 0,
            .daemon_sleep_s = 5,
        };
        uint8_t *at;

        memcpy(header.uuid, sb->set_uuid, sizeof header.uuid);
        sb->feature_map |= SUPERBLOCK_FEATURE_BITMAP;
        sb->bitmap_offset_sectors = minor == 0 ? -(int32_t)BLOCK_SECTORS : (int32_t)BLOCK_SECTORS;
        if (minor == 0)
            sb->data_size_sectors -= BLOCK_SECTORS;
        at = history->cluster->disks[d].stable + superblock_bitmap_offset_bytes(sb);
        memset(at, 0, BLOCK_BYTES);
        bitmap_encode(&header, at);
        for (uint64_t s = 0; s < history->geometry.member_bytes / BLOCK_BYTES; ++s)
            if (history->doubtful[s]) {
                const uint64_t bit = bitmap_bit_of(&header, s * BLOCK_BYTES);

                at[BITMAP_HEADER_BYTES + bit / 8] |= (uint8_t)(1u << (bit % 8));
            }
    }
    if (stale)
        memset(history->doubtful, 1, sizeof history->doubtful);
    history->cluster->counts[COUNT_BITMAPS]++;
}

/* Behind superblocks that are made tight: the journal's own says where the ring is. */
static void
journal_make(struct history *history)
{
    struct sim_random *const random = &history->random;
    struct superblock *const sb = &history->superblocks[history->members];
    struct log_make make = {
        .disk = history->members,
        .data_offset = DATA_OFFSET_MIN,
        .ring_blocks = history->ring_blocks,
        .foreign = random_percent(random, history->mode->foreign_percent),
        .full = random_percent(random, 40),
    };

    memset(history->cluster->disks[make.disk].stable, 0,
           history->cluster->disks[make.disk].device.size_bytes);
    sb->data_offset_sectors = DATA_OFFSET_MIN / SECTOR_BYTES;
    sb->data_size_sectors = history->ring_blocks * BLOCK_SECTORS;
    sb->journal_tail_sectors = log_make(history->judge, &make, sb, random) / SECTOR_BYTES;
    history->foreign = make.foreign;
    history->cluster->counts[COUNT_JOURNALS]++;
    history->cluster->counts[COUNT_FOREIGN_LOGS] += make.foreign;
    history->cluster->counts[COUNT_FOREIGN_LOGS_FULL] += make.foreign && make.full;
}

static void
superblocks_clear_around(struct history *history, uint64_t data_offset)
{
    const uint64_t data_end = data_offset + history->geometry.member_bytes;

    for (unsigned d = 0; d < history->members; ++d) {
        struct sim_disk *const disk = &history->cluster->disks[d];

        memset(disk->stable, 0, data_offset);
        memset(disk->stable + data_end, 0, disk->device.size_bytes - data_end);
    }
}

static void
superblocks_write_first(struct history *history, uint64_t resync_sectors)
{
    for (unsigned d = 0; d < history->disks; ++d) {
        struct sim_disk *const disk = &history->cluster->disks[d];
        const uint64_t size_bytes = disk->device.size_bytes;
        struct superblock *const sb = &history->superblocks[d];
        uint8_t *const at = disk->stable + sb->super_offset_sectors * SECTOR_BYTES;

        sb->resync_offset_sectors = resync_sectors;
        if (superblock_encode(sb, at) > SUPERBLOCK_BYTES ||
            superblock_decode(at, sb->minor, size_bytes, &history->check, NULL) < 0)
            sim_fail("the simulator made a superblock that cannot be read");
    }
}

static void
history_make(struct history *history)
{
    struct sim_random *const random = &history->random;
    struct sim_cluster *const cluster = history->cluster;
    const uint32_t minor = (uint32_t)random_below(random, 3);
    const bool journaled = history->mode->journal_percent > 0 &&
                           random_percent(random, history->mode->journal_percent);
    const bool created = !journaled && random_percent(random, 8),
               bitmap = !created && !journaled && random_percent(random, 12);
    const bool punches = random_percent(random, 40);
    uint64_t data_offset = minor == 0 ? 0 : DATA_OFFSET_MIN;
    uint64_t resync_sectors = SUPERBLOCK_RESYNC_DONE, good_bytes;

    geometry_choose(history);
    history->members = history->geometry.members;
    history->disks = history->members + journaled;
    history->journal = journaled ? 1u << history->members : 0;
    good_bytes = history->geometry.member_bytes;
    cluster_begin(cluster, random_next(random), history->disks,
                  created ? SIM_DISK_BYTES : data_offset + good_bytes + 32 * KIB);
    if (journaled) {
        /* The smallest that there may be; or that write-back takes, and now and then less. */
        const uint64_t least = history->mode->cache_percent > 0 && random_percent(random, 95)
                                   ? 4 * ((uint64_t)history->members + 8)
                                   : history->members + 4;

        history->ring_blocks =
            PICK(random, least, least, random_between(random, least, 2 * least),
                 random_between(random, least, 64), random_between(random, least, 64),
                 random_between(random, 64, 400));
        cluster->disks[history->members].device.size_bytes =
            DATA_OFFSET_MIN + history->ring_blocks * BLOCK_BYTES + 16 * KIB;
    }
    if (created) {
        superblocks_make_created(history, minor);
        data_offset = history->superblocks[0].data_offset_sectors * SECTOR_BYTES;
    } else {
        superblocks_make_tight(history, minor, data_offset);
    }
    cluster->latency =
        (struct sim_latency){PICK(random, 4000, 20000, 100000), PICK(random, 0, 40000, 400000),
                             PICK(random, 1, 4000, 50000), (unsigned)PICK(random, 0, 2, 10), 30};
    for (unsigned d = 0; d < history->disks; ++d) {
        cluster->disks[d].device.punch_zeroes = punches || random_percent(random, 20);
        cluster->disks[d].device.write_zeroes = random_percent(random, 30);
        cluster->disks[d].device.volatile_cache = random_percent(random, 85);
        cluster->disks[d].device.logical_block_bytes = random_percent(random, 80) ? 512 : 4096;
    }
    superblocks_clear_around(history, data_offset);
    if (bitmap)
        bitmap_make(history, minor);
    judge_begin(history->judge, &history->geometry, data_offset, minor);
    history->left_out = history->suspects = 0;
    if (random_percent(random, history->mode->unsynced_percent)) {
        good_bytes = random_percent(random, 60)
                         ? 0
                         : round_down(random_below(random, good_bytes), BLOCK_BYTES);
        resync_sectors = good_bytes / SECTOR_BYTES;
    } else if (random_percent(random, history->mode->degraded_percent)) {
        const unsigned lost = (unsigned)random_between(random, 1, history->geometry.parities);

        for (unsigned i = 0; i < lost; ++i)
            history->left_out |= 1u << random_below(random, history->members);
    }
    judge_fill(history->judge, good_bytes, bitmap && resync_sectors == 0 ? history->doubtful : NULL,
               random);
    if (journaled)
        journal_make(history);
    superblocks_write_first(history, resync_sectors);
    cluster_load(cluster);
    history->hot_first = random_below(random, history->geometry.array_bytes / BLOCK_BYTES);
    history->hot_blocks = random_between(random, 1, 64);
    cluster_trace(cluster,
                  "level %d layout %u members %u chunk %llu member %llu array %llu bytes, "
                  "left out 0x%x, resync from %llu",
                  history->geometry.level, history->geometry.layout, history->members,
                  (unsigned long long)history->geometry.chunk_bytes,
                  (unsigned long long)history->geometry.member_bytes,
                  (unsigned long long)history->geometry.array_bytes, history->left_out,
                  (unsigned long long)resync_sectors);
}

/* --- Requests ------------------------------------------------------------------------------- */

/* Whole sectors, or bytes. */
struct range {
    uint64_t offset, length; /* bytes of the array */
};

static struct range
range_choose(const struct history *history, struct sim_random *random)
{
    const uint64_t size = history->geometry.array_bytes;
    struct range range;
    uint64_t row_bytes = history->geometry.chunk_bytes * history->geometry.data_members;

    switch (random_below(random, 10)) {
    case 0: /* whole rows */
        row_bytes = min_u64(row_bytes, REQUEST_BYTES);
        range.length = min_u64(row_bytes * random_between(random, 1, 3), REQUEST_BYTES);
        range.offset = random_below(random, size / row_bytes) * row_bytes;
        range.length = min_u64(range.length, size - range.offset);
        return range;
    case 1:
        range.length = random_between(random, 1, 256) * SECTOR_BYTES;
        break;
    case 2:
    case 3:
        range.length = random_between(random, 1, 16) * BLOCK_BYTES;
        break;
    case 4:
        range.length = BLOCK_BYTES;
        break;
    default:
        range.length = random_between(random, 1, 24) * SECTOR_BYTES;
        break;
    }
    range.length = min_u64(range.length, size);
    if (random_percent(random, 60)) {
        const uint64_t first = history->hot_first * BLOCK_BYTES;

        range.offset =
            first + random_below(random, history->hot_blocks * BLOCK_SECTORS) * SECTOR_BYTES;
        range.offset = min_u64(range.offset, size - range.length);
    } else {
        range.offset =
            random_below(random, (size - range.length) / SECTOR_BYTES + 1) * SECTOR_BYTES;
    }
    if (random_percent(random, 30))
        range.offset = round_down(range.offset, BLOCK_BYTES);
    return range;
}

static bool
range_lost(const struct history *history, struct range range, bool surely)
{
    for (uint64_t b = range.offset / BLOCK_BYTES; b * BLOCK_BYTES < range.offset + range.length;
         ++b)
        if (history->lost[b] == LOST_SURELY || (!surely && history->lost[b] == LOST_PERHAPS))
            return true;
    return false;
}

/* Lost blocks that lie in the range as a whole are perhaps not. */
static void
range_lost_perhaps(struct history *history, struct range range)
{
    for (uint64_t at = round_up(range.offset, BLOCK_BYTES);
         at + BLOCK_BYTES <= range.offset + range.length; at += BLOCK_BYTES)
        if (history->lost[at / BLOCK_BYTES] != LOST_NOT)
            history->lost[at / BLOCK_BYTES] = LOST_PERHAPS;
}

/* Nobody may wait until a timer happens to wake him. */
static void
check_time(const struct history *history, uint64_t begun_ns, const char *what, struct range range)
{
    const uint64_t took_ns = loop_now_ns(history->cluster->loop) - begun_ns;

    if (took_ns > REQUEST_NS_MAX)
        sim_fail("hang: %s of %llu + %llu took %llu ms", what, (unsigned long long)range.offset,
                 (unsigned long long)range.length, (unsigned long long)(took_ns / 1000000));
}

static void
check_result(struct history *history, int result, const char *what, struct range range)
{
    if (result == 0)
        return;
    history->cluster->counts[COUNT_REQUESTS_FAILED]++;
    if (result != -EIO)
        sim_fail("%s of %llu + %llu fails with %s", what, (unsigned long long)range.offset,
                 (unsigned long long)range.length, strerror(-result));
    /* A journal that fails costs writes, never a read. */
    if (history->journaled && (history->faulty & history->journal) && strcmp(what, "read") != 0)
        return;
    if (!history->errors_allowed)
        sim_fail("%s of %llu + %llu fails although parity covers all faults", what,
                 (unsigned long long)range.offset, (unsigned long long)range.length);
}

static task_fn void read_around_lost(struct history *history, uint8_t *memory, struct range range,
                                     const char *who);

static task_fn void
read_and_check(struct history *history, uint8_t *memory, struct range range, const char *who)
{
    const uint64_t begun = cluster_moment(history->cluster),
                   begun_ns = loop_now_ns(history->cluster->loop);
    bool lost;
    int result;

    range.length = round_up(range.offset % BLOCK_BYTES + range.length, BLOCK_BYTES);
    range.offset = round_down(range.offset, BLOCK_BYTES);
    range.length = min_u64(range.length, REQUEST_BYTES);
    lost = range_lost(history, range, true);
    memset(memory, 0xee, range.length);
    cluster_trace(history->cluster, "%s: read %llu + %llu", who, (unsigned long long)range.offset,
                  (unsigned long long)range.length);
    result = array_read(history->array, memory, range.offset, range.length);
    history->cluster->counts[COUNT_READS]++;
    cluster_trace(history->cluster, "%s: read %llu + %llu: %d", who,
                  (unsigned long long)range.offset, (unsigned long long)range.length, result);
    check_time(history, begun_ns, "read", range);
    if (result == 0 && lost && range_lost(history, range, true))
        sim_fail("wrong data: %s reads %llu + %llu, of which some is named as lost", who,
                 (unsigned long long)range.offset, (unsigned long long)range.length);
    if (result == -EIO && range_lost(history, range, false)) {
        read_around_lost(history, memory, range, who);
        return;
    }
    check_result(history, result, "read", range);
    if (result == 0)
        model_check_read(history->model, memory, range.offset / SECTOR_BYTES,
                         range.length / SECTOR_BYTES, begun, cluster_moment(history->cluster), who);
}

/* Every block that is not lost is to be had. */
static task_fn void
read_around_lost(struct history *history, uint8_t *memory, struct range range, const char *who)
{
    for (uint64_t at = range.offset; at < range.offset + range.length; at += BLOCK_BYTES)
        if (history->lost[at / BLOCK_BYTES] == LOST_NOT)
            read_and_check(history, memory, (struct range){at, BLOCK_BYTES}, who);
}

/* How writes were acknowledged when one began. */
struct mode_seen {
    bool through;
    unsigned modes;
};

static struct mode_seen
mode_look(const struct history *history)
{
    struct array_status status;

    if (!history->journaled)
        return (struct mode_seen){false, 0};
    array_status(history->array, &status);
    return (struct mode_seen){status.journal_mode == JOURNAL_WRITE_THROUGH, history->modes};
}

/* The bytes of a sector's only value; false if there is no such thing. */
static bool
settled_content(struct history *history, uint64_t sector, uint8_t *memory)
{
    const uint32_t value = model_settled(history->model, sector);

    if (value == VALUE_NONE || value == VALUE_UNKNOWN)
        return false;
    if (value == VALUE_ZERO)
        memset(memory, 0, SECTOR_BYTES);
    else if (value & VALUE_BLOB)
        memcpy(memory, history->model->blobs + (size_t)(value & ~VALUE_BLOB) * SECTOR_BYTES,
               SECTOR_BYTES);
    else
        content_fill(memory, sector, value);
    return true;
}

/* Makes a range of whole sectors one that covers some bytes of its first and last only, where the
 * rest of these sectors is known. */
static void
range_unalign(struct history *history, struct sim_random *random, struct range *range,
              struct model_op *op, uint8_t *memory)
{
    const uint64_t last = op->first + op->count - 1;
    const uint64_t skip = random_between(random, 1, SECTOR_BYTES - 1);
    const uint64_t keep = random_between(random, 1, SECTOR_BYTES - 1);
    uint8_t head[SECTOR_BYTES], tail[SECTOR_BYTES];

    if (op->count < 2 || !settled_content(history, op->first, head) ||
        !settled_content(history, last, tail))
        return;
    memcpy(head + skip, memory + skip, SECTOR_BYTES - skip);
    memcpy(tail, memory + range->length - SECTOR_BYTES, keep);
    op->head_blob = model_blob(history->model, head);
    op->tail_blob = model_blob(history->model, tail);
    range->offset += skip;
    range->length -= skip + SECTOR_BYTES - keep;
}

static const char *const kind_names[] = {"write", "zero", "trim"};

static task_fn void
change(struct client *client, enum model_kind kind)
{
    struct history *const history = client->history;
    struct sim_random *const random = &client->random;
    struct range range = range_choose(history, random);
    struct model_op op = {
        .kind = kind,
        .fua = random_percent(random, 15),
        .version = model_version(history->model),
        .first = range.offset / SECTOR_BYTES,
        .count = range.length / SECTOR_BYTES,
    };
    /* Sometimes the memory lies as the offset does, sometimes not. */
    uint8_t *memory =
        client->memory + (random_percent(random, 70) ? range.offset % BLOCK_BYTES
                                                     : random_below(random, BLOCK_BYTES));
    const bool may_punch = random_percent(random, 60), fast_only = random_percent(random, 15);
    const struct mode_seen mode = mode_look(history);
    const uint64_t begun_ns = loop_now_ns(history->cluster->loop);
    uint64_t moved = 0;
    uint32_t number;
    int result = 0;

    if (!model_may_begin(history->model, op.first, op.count))
        return;
    for (uint64_t s = 0; kind == MODEL_WRITE && s < op.count; ++s)
        content_fill(memory + s * SECTOR_BYTES, op.first + s, op.version);
    if (kind == MODEL_ZERO)
        memset(memory, 0, range.length);
    if (kind != MODEL_TRIM && random_percent(random, 15)) {
        const uint64_t before = range.offset;

        range_unalign(history, random, &range, &op, memory);
        moved = range.offset - before;
    }
    number = model_op_begin(history->model, &op, cluster_moment(history->cluster));
    cluster_trace(history->cluster, "client %u: %s v%u %llu + %llu%s", client->number,
                  kind_names[kind], op.version, (unsigned long long)range.offset,
                  (unsigned long long)range.length, op.fua ? " fua" : "");
    history->cluster->counts[kind == MODEL_WRITE  ? COUNT_WRITES
                             : kind == MODEL_ZERO ? COUNT_ZEROS
                                                  : COUNT_TRIMS]++;
    history->cluster->counts[COUNT_FUAS] += op.fua;
    if (kind == MODEL_WRITE)
        result = array_write(history->array, memory + moved, range.offset, range.length, op.fua);
    else if (kind == MODEL_ZERO)
        result =
            array_zero(history->array, range.offset, range.length, may_punch, fast_only, op.fua);
    else
        result = array_trim(history->array, range.offset, range.length, op.fua);
    model_op_end(history->model, number, result,
                 op.fua || (mode.through && mode.modes == history->modes),
                 cluster_moment(history->cluster));
    cluster_trace(history->cluster, "client %u: %s v%u: %d", client->number, kind_names[kind],
                  op.version, result);
    check_time(history, begun_ns, kind_names[kind], range);
    if (result != -ENOTSUP || !fast_only)
        check_result(history, result, kind_names[kind], range);
}

static task_fn void
flush(struct history *history, const char *who)
{
    const uint64_t begun = cluster_moment(history->cluster),
                   begun_ns = loop_now_ns(history->cluster->loop);
    int result;

    cluster_trace(history->cluster, "%s: flush", who);
    result = array_flush(history->array);
    history->cluster->counts[COUNT_FLUSHES]++;
    if (result == 0)
        model_flushed(history->model, begun, cluster_moment(history->cluster));
    cluster_trace(history->cluster, "%s: flush: %d", who, result);
    check_time(history, begun_ns, "flush", (struct range){0, 0});
    check_result(history, result, "flush", (struct range){0, 0});
}

static void
check_mode_result(const struct history *history, enum journal_mode mode, int result,
                  const struct error *error)
{
    struct array_status status;
    bool fine;

    array_status(history->array, &status);
    fine = result == 0 ||
           (result == -EIO && (status.journal_failed || status.failed || history->errors_allowed));
    if (mode == JOURNAL_WRITE_BACK)
        fine = fine || (result == -EUCLEAN && status.degraded > 0) ||
               (result == -ENOTSUP && status.write_back.blocks_max == 0);
    if (!fine)
        sim_fail("the change to %s comes to %d (%s)",
                 mode == JOURNAL_WRITE_BACK ? "write-back" : "write-through", result,
                 result < 0 ? error->text : "done");
    if (result < 0 && error->text[0] == '\0')
        sim_fail("a change of the mode was refused without a word");
}

/* 0: it is in use, unless somebody has changed it again. */
static task_fn int
mode_set(struct history *history, enum journal_mode mode, const char *who)
{
    const uint64_t begun = cluster_moment(history->cluster),
                   begun_ns = loop_now_ns(history->cluster->loop);
    const char *const name = mode == JOURNAL_WRITE_BACK ? "write-back" : "write-through";
    unsigned modes = ++history->modes;
    struct array_status status;
    struct error error = {0};
    int result;

    cluster_trace(history->cluster, "%s: change to %s", who, name);
    result = array_set_journal_mode(history->array, mode, &error);
    cluster_trace(history->cluster, "%s: change to %s: %d", who, name, result);
    check_time(history, begun_ns, "a change of the mode", (struct range){0, 0});
    check_mode_result(history, mode, result, &error);
    ++history->cluster->counts[COUNT_MODE_SWITCHES];
    array_status(history->array, &status);
    if (result == 0 && mode == JOURNAL_WRITE_THROUGH)
        model_flushed(history->model, begun, cluster_moment(history->cluster));
    /* At most the change itself was told. */
    if (result == 0 && history->modes <= modes + 1 && !status.journal_failed &&
        status.degraded == 0) {
        if (status.journal_mode != mode || status.journal_mode_wanted != mode)
            sim_fail("the mode was changed to %s, and is not that", name);
        if (mode == JOURNAL_WRITE_THROUGH && (status.draining || status.write_back.blocks > 0))
            sim_fail("the mode was changed to write-through, and %llu blocks are cached",
                     (unsigned long long)status.write_back.blocks);
    }
    return result;
}

static void
client_main(void *arg)
{
    struct client *const client = arg;
    struct history *const history = client->history;
    char who[16];

    (void)snprintf(who, sizeof who, "client %u", client->number);
    while (client->requests-- > 0) {
        const uint64_t dice = random_below(&client->random, 100);

        if (dice < 35)
            read_and_check(history, client->memory, range_choose(history, &client->random), who);
        else if (dice < 76)
            change(client, MODEL_WRITE);
        else if (dice < 82)
            change(client, MODEL_ZERO);
        else if (dice < 86)
            change(client, MODEL_TRIM);
        else if (dice < 96)
            flush(history, who);
        else if (dice < 98 && history->switches)
            ignored(mode_set(history,
                             random_percent(&client->random, 60) ? JOURNAL_WRITE_BACK
                                                                 : JOURNAL_WRITE_THROUGH,
                             who)); /* looked at in there */
        else
            loop_sleep(history->cluster->loop, random_below(&client->random, 2000000));
    }
    if (--history->clients_working == 0 && history->main != NULL) {
        task_wake(history->cluster->loop, history->main);
        history->main = NULL;
    }
}

/* --- Faults --------------------------------------------------------------------------------- */

/* Chooses the disks that may fail: no more of them than parity still covers. */
static void
faulty_choose(struct history *history)
{
    struct sim_random *const random = &history->random;
    unsigned budget = history->geometry.parities - history->verdict.missing;

    history->faulty = 0;
    if (!history->faults_allowed)
        return;
    if (history->mode->beyond)
        budget = (unsigned)random_between(random, 1, history->disks);
    for (unsigned i = 0; i < budget; ++i) {
        const int disk = history->verdict.disk_of[random_below(random, history->geometry.members)];

        if (disk >= 0)
            history->faulty |= 1u << disk;
    }
    if (history->journaled && random_percent(random, history->mode->journal_loss_percent))
        history->faulty |= history->journal;
    /* A journal may die, and take with it what only it has, only where no member fails too. */
    if ((history->faulty & history->journal) && history->mode->cache_percent > 0 &&
        random_percent(random, 60))
        history->faulty = history->journal;
}

static void
faults_clear(struct history *history)
{
    for (unsigned d = 0; d < history->disks; ++d) {
        struct sim_disk *const disk = &history->cluster->disks[d];

        disk->faults = (struct sim_faults){0};
        memset(disk->bad, 0, sizeof disk->bad);
        disk->bad_count = 0;
    }
}

static void
faults_arm(struct history *history)
{
    struct sim_random *const random = &history->random;
    const struct sim_mode *const mode = history->mode;
    const unsigned span = (unsigned)PICK(random, 5, 40, 200);

    for (unsigned d = 0; d < history->disks; ++d) {
        struct sim_disk *const disk = &history->cluster->disks[d];

        /* Everybody may refuse to punch: that costs nothing. */
        disk->faults.punch_refused = random_percent(random, 3);
        if (!(history->faulty >> d & 1))
            continue;
        if (history->journal == 1u << d) {
            /* A dead one, or one whose superblock cannot be written, takes with it what only it
             * has, should the power be cut while a member fails too: more than is promised. */
            const bool alone = history->faulty == history->journal;
            unsigned *const faults[] = {&disk->faults.write_error_in, &disk->faults.flush_error_in,
                                        &disk->faults.death_in};

            if (!alone) {
                disk->faults.error_from = DATA_OFFSET_MIN;
                disk->faults.error_end = DATA_OFFSET_MIN + history->ring_blocks * BLOCK_BYTES;
            }
            *faults[random_below(random, alone ? 3 : 2)] =
                (unsigned)random_between(random, 1, span);
            continue;
        }
        if (random_percent(random, mode->death_percent))
            disk->faults.death_in = (unsigned)random_between(random, 1, span);
        if (random_percent(random, mode->read_error_percent))
            disk->faults.read_error_in = (unsigned)random_between(random, 1, span);
        if (random_percent(random, mode->write_error_percent))
            disk->faults.write_error_in = (unsigned)random_between(random, 1, span);
        if (random_percent(random, mode->flush_error_percent))
            disk->faults.flush_error_in = (unsigned)random_between(random, 1, 1 + span / 8);
        for (unsigned kind = BAD_LATENT; kind <= BAD_LASTING; ++kind) {
            if (!random_percent(random,
                                kind == BAD_LATENT ? mode->latent_percent : mode->lasting_percent))
                continue;
            for (uint64_t i = random_between(random, 1, 6); i > 0; --i)
                disk_make_bad(disk,
                              (history->judge->data_offset / BLOCK_BYTES) +
                                  random_below(random, history->judge->stripes),
                              (uint8_t)kind);
        }
    }
}

/* A byte of some blocks of the journal changes, and nobody is told. Not of those that are on their
 * way: they are right when they arrive. */
static void
journal_rots(struct history *history)
{
    struct sim_disk *const disk = &history->cluster->disks[history->members];

    for (uint64_t i = random_between(&history->random, 1, 1 + history->ring_blocks / 4); i > 0; --i)
        disk->live[DATA_OFFSET_MIN +
                   random_below(&history->random, history->ring_blocks * BLOCK_BYTES)] ^= 1;
    /* Who notices takes the journal for failed. */
    history->faulty |= history->journal;
    history->suspects |= history->journal;
    ++history->cluster->counts[COUNT_JOURNAL_ROTS];
}

/* --- A run ---------------------------------------------------------------------------------- */

/* The journal took acknowledged data with it: only where nothing can be read of it any more. */
static void
data_lost(struct history *history, const struct array_event *event)
{
    struct sim_disk *const disk = &history->cluster->disks[history->members];
    const uint64_t offset = event->array_offset, length = event->length_bytes;
    struct array_status status;
    enum lost mark;

    if (length == 0 || offset % BLOCK_BYTES != 0 || length % BLOCK_BYTES != 0 ||
        offset + length > history->geometry.array_bytes)
        sim_fail("data is lost where there is none: %s", event->text);
    array_status(history->array, &status);
    /* Either it cannot be read, or written nowhere. */
    mark = status.write_back.lost > history->lost_told ? LOST_SURELY : LOST_PERHAPS;
    if (mark == LOST_SURELY ? !disk->dead && disk->bad_count == 0 && history->mode->rot_percent == 0
                            : !history->errors_allowed)
        sim_fail("data is lost that can be read and written: %s", event->text);
    memset(history->lost + offset / BLOCK_BYTES, mark, length / BLOCK_BYTES);
    /* Who is writing may have written there. */
    for (uint32_t i = 0; i < history->model->ops_count; ++i) {
        const struct model_op *const op = &history->model->ops[i];

        if (op->acknowledged == SIM_NEVER)
            range_lost_perhaps(history,
                               (struct range){op->first * SECTOR_BYTES, op->count * SECTOR_BYTES});
    }
    if (mark == LOST_SURELY)
        history->lost_told += (unsigned)(length / BLOCK_BYTES);
    model_forget(history->model, offset / SECTOR_BYTES, length / SECTOR_BYTES);
    history->cluster->counts[COUNT_BLOCKS_LOST] += length / BLOCK_BYTES;
}

static void
on_event(void *owner, const struct array_event *event)
{
    struct history *const history = owner;
    uint64_t *const counts = history->cluster->counts;

    cluster_trace(history->cluster, "array: %s", event->text);
    switch (event->kind) {
    case ARRAY_MEMBER_FAILED:
        counts[COUNT_LOST_MEMBERS]++;
        if (!(history->faulty >> history->verdict.disk_of[event->member] & 1))
            sim_fail("member %u was failed although nothing is wrong with it: %s", event->member,
                     event->text);
        judge_lost(history->judge, event->member);
        break;
    case ARRAY_JOURNAL_FAILED:
        counts[COUNT_JOURNAL_LOSSES]++;
        if (!(history->faulty & history->journal))
            sim_fail("the journal was failed although nothing is wrong with it: %s", event->text);
        history->journal_failed = cluster_moment(history->cluster);
        history->journal_forgot = strstr(event->text, "failed: write:") == NULL ||
                                  history->cluster->disks[history->members].dead;
        break;
    case ARRAY_JOURNAL_MODE:
        ++history->modes;
        break;
    case ARRAY_DATA_LOST:
        data_lost(history, event);
        break;
    case ARRAY_READ_CORRECTED:
        counts[COUNT_CORRECTED]++;
        break;
    case ARRAY_RESYNC_STARTED:
        history->resync_begun = cluster_moment(history->cluster);
        if (history->verdict.resync_from > 0)
            counts[COUNT_RESYNCS_RESUMED]++;
        break;
    case ARRAY_RESYNC_DONE:
        counts[COUNT_RESYNCS]++;
        history->resync_ended = cluster_moment(history->cluster);
        break;
    case ARRAY_RESYNC_PROGRESS:
    case ARRAY_RESYNC_STOPPED:
    case ARRAY_RECOVERY_PROGRESS:
    case ARRAY_RECOVERY_DONE:
    case ARRAY_FAILED:
        break;
    case ARRAY_WARNING:
        ++history->warnings;
        if (strstr(event->text, "cannot be written out") == NULL)
            break;
        history->stuck = true;
        if (!history->errors_allowed)
            sim_fail("cached data stays in the log although parity covers all faults: %s",
                     event->text);
        break;
    }
}

static task_fn void
read_everything(struct history *history)
{
    const uint64_t size = history->geometry.array_bytes;
    const uint64_t step = BLOCK_BYTES << random_below(&history->random, 7);

    for (uint64_t at = 0; at < size; at += step)
        read_and_check(history, history->memory, (struct range){at, min_u64(step, size - at)},
                       "reading all");
}

static task_fn void
clients_work(struct history *history)
{
    struct sim_random *const random = &history->random;
    const unsigned count = (unsigned)random_between(random, 1, CLIENTS_MAX);
    const uint64_t each =
        random_between(random, 1, (history->mode->cache_percent > 0 ? 72 : 36) / count);

    history->clients_working = count;
    for (unsigned i = 0; i < count; ++i) {
        struct client *const client = &history->clients[i];

        client->history = history;
        client->number = i;
        client->random.state = random_next(random);
        client->requests = (unsigned)each;
        if (task_start(history->cluster->loop, client_main, client) == NULL)
            sim_fail("no task for a client");
    }
    if (history->clients_working > 0) {
        history->main = task_self(history->cluster->loop);
        task_suspend(history->cluster->loop);
    }
}

/* What the array says of itself after it started must be what the judge expected. */
static void
check_started(const struct history *history)
{
    struct array_status status;

    array_status(history->array, &status);
    if (status.size_bytes != history->geometry.array_bytes)
        sim_fail("the array has %llu bytes, not %llu", (unsigned long long)status.size_bytes,
                 (unsigned long long)history->geometry.array_bytes);
    if (status.degraded != history->verdict.missing)
        sim_fail("the array says %u members are missing, the superblocks say %u", status.degraded,
                 history->verdict.missing);
    if (!history->journaled || status.readonly)
        return;
    if (status.journal_mode_wanted !=
        (history->write_back ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH))
        sim_fail("the array does not want the mode that it was asked for");
    if (status.journal_mode == JOURNAL_WRITE_BACK &&
        (!history->write_back || status.degraded > 0 || status.write_back.blocks_max == 0))
        sim_fail("the array has started in write-back, and should not have");
    if (history->write_back && status.journal_mode == JOURNAL_WRITE_THROUGH) {
        if (status.degraded == 0 && !status.journal_failed && status.write_back.blocks_max > 0)
            sim_fail("the array has not started in write-back");
        if (history->warnings == 0)
            sim_fail("the array has not started in write-back, and does not say why");
    }
}

/* The cache, small enough to be full now and then. */
static void
cache_choose(struct history *history, struct array_config *config)
{
    struct sim_random *const random = &history->random;
    const unsigned moderate = (unsigned)PICK(random, 0, 0, 10, 50);

    history->write_out_ns = PICK(random, 0, 0, 2000000, 200000000);
    config->journal_mode = history->write_back ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH;
    config->cache_bytes = PICK(random, CACHE_SIZES);
    config->write_back = (struct write_back_tunables){
        .moderate_percent = moderate,
        .high_percent = moderate == 0 ? 0 : moderate + (unsigned)PICK(random, 0, 25, 50),
        .tight_percent = (unsigned)PICK(random, 0, 10, 50, 90),
        .batch_groups = (unsigned)PICK(random, 0, 1, 3),
        .write_outs_max = (unsigned)PICK(random, 0, 1, 2),
        .idle_ns = history->write_out_ns,
    };
}

static task_fn int
start(struct history *history, bool readonly, struct error *error)
{
    struct device *devices[SIM_DISKS_MAX];
    struct array_config config = {
        .devices = devices,
        .readonly = readonly,
        .force = history->force,
        .memory_bytes = PICK(&history->random, 1, 2, 2, 4) * MIB,
        .workers = (unsigned)PICK(&history->random, 1, 2, 4, 16),
        .idle_ns = IDLE_NS,
        .event = on_event,
        .owner = history,
    };
    int result;

    if (history->journal != 0) {
        config.journal_checkpoint_bytes =
            PICK(&history->random, 0, 0, BLOCK_BYTES, 16 * BLOCK_BYTES);
        config.journal_checkpoint_ns = PICK(&history->random, 200000, 2000000, 20000000, 0);
        config.journal_entries = history->few_entries ? FEW_ENTRIES : 0;
    }
    history->warnings = 0;
    if (history->journal != 0 && history->mode->cache_percent > 0)
        cache_choose(history, &config);
    for (unsigned d = 0; d < history->disks; ++d)
        if (history->offered >> d & 1) {
            history->cluster->disks[d].device.readonly = readonly;
            devices[config.device_count++] = &history->cluster->disks[d].device;
        }
    /* In any order. */
    for (unsigned i = config.device_count; i > 1; --i) {
        const unsigned j = (unsigned)random_below(&history->random, i);
        struct device *const device = devices[i - 1];

        devices[i - 1] = devices[j];
        devices[j] = device;
    }
    result = array_start(history->cluster->loop, &config, &history->array, error);
    history->cluster->counts[COUNT_STARTS]++;
    if (!readonly && result == 0 && (history->force & FORCE_DROP_JOURNAL))
        history->cluster->counts[COUNT_JOURNALS_DROPPED]++;
    cluster_trace(history->cluster, "start of 0x%x%s%s: %d %s", history->offered,
                  readonly ? " readonly" : "", history->force ? " by force" : "", result,
                  result < 0 ? error->text : "");
    return result;
}

/* One read of the log fails, or of what is replayed from it; the second try works. */
static void
journal_read_error_arm(struct history *history)
{
    struct sim_faults *const faults = &history->cluster->disks[history->members].faults;

    if (!history->journaled || !random_percent(&history->random, 25))
        return;
    faults->error_from = DATA_OFFSET_MIN;
    faults->error_end = DATA_OFFSET_MIN + history->ring_blocks * BLOCK_BYTES;
    faults->read_error_in = (unsigned)random_between(&history->random, 1, 5);
}

static void
journal_started(struct history *history)
{
    struct sim_faults *const faults = &history->cluster->disks[history->members].faults;
    uint64_t *const counts = history->cluster->counts;
    struct array_status status;

    array_status(history->array, &status);
    if (!status.journaled)
        sim_fail("the array does not use its journal");
    counts[COUNT_RECOVERIES_PARITY] += status.recovery.data_parity_stripes > 0;
    counts[COUNT_RECOVERIES_DATA_ONLY] += status.recovery.data_only_stripes > 0;
    counts[COUNT_WRITE_BACK_RUNS] += status.journal_mode == JOURNAL_WRITE_BACK;
    counts[COUNT_FAST_STARTS] += status.write_back.blocks > 0;
    if (faults->error_end != 0 && faults->read_error_in == 0)
        counts[COUNT_JOURNAL_READ_ERRORS]++;
    *faults = (struct sim_faults){0};
}

/* Before the end of a run. */
static void
journal_counted(struct history *history)
{
    uint64_t *const counts = history->cluster->counts;
    struct array_status status;

    if (!history->journaled)
        return;
    array_status(history->array, &status);
    counts[COUNT_CHECKPOINTS] += status.journal.checkpoints;
    counts[COUNT_WRAPS] += status.journal.written_bytes / status.journal.ring_bytes;
    counts[COUNT_SPACE_WAITS] += status.journal.waits;
    counts[COUNT_BLOCKS_CACHED] += status.write_back.cached_total;
    counts[COUNT_BLOCKS_OVERWRITTEN] += status.write_back.overwritten;
    counts[COUNT_BLOCKS_READ_BACK] += status.write_back.read_back;
    counts[COUNT_BLOCKS_WRITTEN_OUT] += status.write_back.written_out;
    if (history->lost_told != status.write_back.lost)
        sim_fail("%u blocks are named as lost, and %llu are said to be", history->lost_told,
                 (unsigned long long)status.write_back.lost);
}

/* What is cached is not on the members: parity can be looked at when it is. */
static task_fn void
write_all_out(struct history *history)
{
    if (history->journaled && (history->write_back || history->switches) &&
        mode_set(history, JOURNAL_WRITE_THROUGH, "before parity is judged") < 0)
        sim_fail("what is cached cannot be written out, and nothing is wrong");
}

/* A quiet array writes out what it has cached, by itself. */
static task_fn void
grow_quiet(struct history *history)
{
    struct array_status status;
    uint64_t waited_ns = 0;

    if (history->write_out_ns == 0 || !history->journaled || history->faulty != 0)
        return;
    loop_sleep(history->cluster->loop, history->write_out_ns);
    for (;;) {
        array_status(history->array, &status);
        if (status.write_back.blocks == 0)
            return;
        if (waited_ns > REQUEST_NS_MAX)
            sim_fail("hang: the array is quiet, and %llu blocks stay in the cache",
                     (unsigned long long)status.write_back.blocks);
        loop_sleep(history->cluster->loop, DRAIN_NS);
        waited_ns += DRAIN_NS;
    }
}

static void
run_work(struct history *history)
{
    struct sim_random *const random = &history->random;
    bool synced;

    if (random_percent(random, 50))
        read_everything(history);
    faults_arm(history);
    for (uint64_t rounds = random_between(random, 1, 3); rounds > 0; --rounds) {
        clients_work(history);
        if (random_percent(random, 40)) {
            loop_sleep(history->cluster->loop, IDLE_NS + IDLE_NS / 2);
            grow_quiet(history);
            history->idle_moment = cluster_moment(history->cluster);
        }
        if (history->journaled && random_percent(random, history->mode->rot_percent))
            journal_rots(history);
    }
    if (random_percent(random, 60)) {
        synced = array_resync_wait(history->array);
        if (synced && history->verdict.missing == 0 && history->faulty == 0) {
            write_all_out(history);
            judge_parity(history->judge, (1u << history->members) - 1, "after the work");
        }
        if (!synced && history->verdict.missing == 0 && history->faulty == 0)
            sim_fail("the resync did not end well, and nothing was in its way");
    }
    if (random_percent(random, 50))
        read_everything(history);
}

static task_fn void
stop(struct history *history)
{
    const uint64_t begun = cluster_moment(history->cluster),
                   begun_ns = loop_now_ns(history->cluster->loop);
    const int result = array_stop(history->array);
    struct array_status status;

    cluster_trace(history->cluster, "stop: %d", result);
    check_time(history, begun_ns, "stop", (struct range){0, 0});
    check_result(history, result, "stop", (struct range){0, 0});
    array_status(history->array, &status);
    if (result == 0 && status.write_back.blocks > 0)
        sim_fail("the array was stopped in good order, and %llu blocks are cached",
                 (unsigned long long)status.write_back.blocks);
    /* With a journal that failed, what was acknowledged is on the members now, or named as lost. */
    if (result == 0 || (status.journal_failed && !status.failed)) {
        model_flushed(history->model, begun, cluster_moment(history->cluster));
        history->stopped_clean = result == 0;
    }
}

/* One life of the array, from start to stop or to the moment where nobody looks any more. */
static void
run_main(void *arg)
{
    struct history *const history = arg;
    struct error error;
    int result;

    journal_read_error_arm(history);
    result = start(history, false, &error);
    if (result != (history->force ? 0 : history->verdict.result))
        sim_fail("the start comes to %d (%s), expected was %d", result,
                 result < 0 ? error.text : "started", history->verdict.result);
    if (result < 0) {
        history->cluster->counts[COUNT_REFUSALS]++;
        if (error.text[0] == '\0')
            sim_fail("a start was refused without a word");
        if (history->cluster->writes_count > 0)
            sim_fail("a start was refused, and something was written");
        return;
    }
    check_started(history);
    history->started_moment = cluster_moment(history->cluster);
    if (history->journaled)
        journal_started(history);
    if (history->verdict.missing > 0)
        history->cluster->counts[COUNT_DEGRADED_STARTS]++;
    if (history->force)
        history->cluster->counts[COUNT_FORCED_STARTS]++;
    history->cluster->counts[COUNT_STALE_LEFT_OUT] += history->verdict.stale;
    run_work(history);
    if (random_percent(&history->random, 70))
        stop(history);
    journal_counted(history);
    array_destroy(history->array);
}

/* In which mode the array is to start. */
static void
mode_choose(struct history *history)
{
    struct sim_random *const random = &history->random;
    const struct sim_mode *const mode = history->mode;

    history->write_back = history->switches = false;
    history->write_out_ns = 0;
    memset(history->lost, 0, sizeof history->lost);
    history->lost_told = 0;
    if (!history->journaled || mode->cache_percent == 0)
        return;
    history->write_back = random_percent(random, mode->cache_percent);
    history->switches = random_percent(random, mode->switch_percent);
    history->cached = history->cached || history->write_back || history->switches;
}

static void
run_begin(struct history *history)
{
    history->idle_moment = history->resync_begun = history->resync_ended = 0;
    history->journal_failed = 0;
    history->stopped_clean = false;
    history->begun_moment = history->cluster->moment;
    history->started_moment = 0;
    history->journaled = history->verdict.journal_disk >= 0;
    history->every = history->mode->every_percent > 0 &&
                     random_percent(&history->random, history->mode->every_percent);
    history->cluster->counts[COUNT_EVERY_MOMENT] += history->every;
    history->model->journaled = history->journaled;
    mode_choose(history);
    faults_clear(history);
    faulty_choose(history);
    history->suspects |= history->faulty;
    /* Faults in stripes whose parity is not good cannot be mended. */
    history->errors_allowed =
        history->mode->beyond || (history->verdict.dirty && history->faulty != 0);
}

/* Crash points: uniformly in the log, or where it is quiet, or at its end. */
static uint64_t
moment_choose(struct history *history)
{
    struct sim_random *const random = &history->random;
    const uint64_t end = history->cluster->moment;

    if (!random_percent(random, history->mode->crash_percent))
        return end;
    if (history->journaled && history->started_moment != 0 && random_percent(random, 25))
        return random_between(random, history->begun_moment, history->started_moment);
    if (history->idle_moment != 0 && random_percent(random, 20))
        return history->idle_moment;
    if (history->resync_begun != 0 && random_percent(random, 30))
        return random_between(random, history->resync_begun,
                              history->resync_ended != 0 ? history->resync_ended : end);
    return random_between(random, 1, end);
}

static void
count_crash(struct history *history, uint64_t moment)
{
    uint64_t *const counts = history->cluster->counts;

    if (moment == history->cluster->moment && history->stopped_clean)
        return;
    counts[COUNT_CRASHES]++;
    counts[COUNT_CRASHES_IN_RECOVERY] +=
        history->journaled && moment > history->begun_moment && moment < history->started_moment;
    counts[history->verdict.dirty ? COUNT_CRASHES_DIRTY : COUNT_CRASHES_CLEAN]++;
    if (history->resync_begun != 0 && moment >= history->resync_begun &&
        (history->resync_ended == 0 || moment < history->resync_ended))
        counts[COUNT_CRASHES_IN_RESYNC]++;
}

/* What a start of these disks would come to, in an image of a cut. */
static void
decide(struct history *history, uint64_t moment)
{
    struct verdict *const verdict = &history->verdict;

    judge_decide(history->judge, history->offered, verdict);
    if (verdict->result != 0 && verdict->result != -EUCLEAN &&
        !(verdict->result == -ENODEV && (history->suspects & history->journal)))
        sim_fail("after a crash at moment %llu the array does not start: %d, %u missing",
                 (unsigned long long)moment, verdict->result, verdict->missing);
    if (moment == history->cluster->moment && history->stopped_clean && verdict->dirty &&
        verdict->missing == 0 && history->faulty == 0 && history->resync_ended != 0)
        sim_fail("the array was stopped in good order after its resync, and is dirty");
    if (history->left_out == 0 && history->suspects == 0 && verdict->missing > 0)
        sim_fail("after a crash at moment %llu of a complete array %u members are left out",
                 (unsigned long long)moment, verdict->missing);
}

static enum sim_tear
tear_choose(struct sim_random *random)
{
    return random_percent(random, 40) ? TEAR_RANDOM
                                      : (enum sim_tear)random_below(random, TEAR_LAST);
}

/* The image in `stable`, with what the log holds. */
static void
judge_cut(struct history *history, uint64_t moment, bool adopt)
{
    struct judge *const judge = history->judge;
    struct log_found found = {0};

    decide(history, moment);
    judge->unlogged =
        history->cached && history->journal_failed != 0 && history->journal_failed < moment;
    judge->forgotten = judge->unlogged && history->journal_forgot;
    if (history->verdict.journal_disk >= 0)
        log_recover(judge, &history->verdict, &found);
    if (moment == history->cluster->moment && history->stopped_clean && history->journaled &&
        found.data_only + found.data_parity > 0)
        sim_fail("the array was stopped in good order, and its log is not empty");
    if (!history->foreign && !history->cached && found.data_only > 0)
        sim_fail("after a crash at moment %llu the log has data without its parity",
                 (unsigned long long)moment);
    if (!history->foreign && !history->stuck && found.data_only > 0 && !found.fits_again)
        sim_fail("L2: after a crash at moment %llu the log has %llu data-only stripes, and no room "
                 "to log them again",
                 (unsigned long long)moment, (unsigned long long)found.data_only);
    if (!history->foreign && found.flush_payloads > 0)
        sim_fail("L3: the log has %llu FLUSH payloads", (unsigned long long)found.flush_payloads);
    history->cluster->counts[COUNT_CRASHES_CACHED] += !history->foreign && found.data_only > 0;
    judge_image(judge, &history->verdict, moment, adopt);
    if (history->verdict.journal_disk >= 0)
        image_undo(history->cluster, &judge->undo);
}

static int
compare_moments(const void *a, const void *b)
{
    const uint64_t *const x = a, *const y = b;

    return *x < *y ? -1 : *x > *y;
}

/* The power might have been cut at any of the run's moments before this one. */
static void
look_at_every_moment(struct history *history, uint64_t end)
{
    struct sim_cluster *const cluster = history->cluster;
    struct sim_image *const image = &history->world->image;
    const struct model *const model = history->model;
    uint64_t *const moments = calloc(
        4 + 3 * (size_t)cluster->writes_count + 2 * (size_t)model->ops_count, sizeof *moments);
    uint64_t last = history->begun_moment;
    size_t count = 0;

    if (moments == NULL)
        sim_fail("no memory for moments");
    for (unsigned i = 0; i < cluster->writes_count; ++i) {
        moments[count++] = cluster->writes[i].submitted;
        moments[count++] = cluster->writes[i].completed;
        moments[count++] = cluster->writes[i].durable;
    }
    for (uint32_t i = 0; i < model->ops_count; ++i) {
        moments[count++] = model->ops[i].begun;
        moments[count++] = model->ops[i].acknowledged;
    }
    qsort(moments, count, sizeof *moments, compare_moments);
    for (size_t i = 0; i < count && moments[i] < end; ++i) {
        if (moments[i] <= last)
            continue;
        last = moments[i];
        image_build(cluster, image, last, tear_choose(&history->random), &history->random);
        judge_cut(history, last, false);
        image_undo(cluster, image);
    }
    free(moments);
}

/*
 * The power is cut at a chosen moment and comes back. Some earlier moments are looked at on the
 * way: had the cut been there, the disks would have been fine too.
 */
static void
power_cut(struct history *history)
{
    struct sim_random *const random = &history->random;
    struct sim_cluster *const cluster = history->cluster;
    struct sim_image *const image = &history->world->image;
    const uint64_t moment = moment_choose(history);
    uint64_t before = 0;

    if (history->every)
        look_at_every_moment(history, moment);
    for (unsigned i = 0; !history->every && i < CUTS_LOOKED_AT && before + 1 < moment; ++i) {
        before = random_between(random, before + 1, moment - 1);
        image_build(cluster, image, before, tear_choose(random), random);
        judge_cut(history, before, false);
        image_undo(cluster, image);
    }
    image_build(cluster, image, moment, tear_choose(random), random);
    judge_cut(history, moment, true);
    cluster_trace(cluster, "power cut at moment %llu: %s, %u missing, resync from %llu",
                  (unsigned long long)moment, history->verdict.dirty ? "dirty" : "clean",
                  history->verdict.missing, (unsigned long long)history->verdict.resync_from);
    count_crash(history, moment);
    image_adopt(cluster, image);
    history->stopped_clean = false;
    memset(history->lost, 0, sizeof history->lost); /* what is there now is seen */
}

/* What was made is what the judge finds in it. */
static void
log_check(struct history *history)
{
    history->suspects = 0;
    history->faulty = 0;
    history->journaled = true;
    history->stopped_clean = false;
    judge_cut(history, history->cluster->moment, false);
}

/* What a person would have to say, where a start is refused. */
static unsigned
force_for(const struct verdict *verdict)
{
    return (verdict->result == -ENODEV ? FORCE_DROP_JOURNAL : 0u) |
           (verdict->dirty && verdict->missing > 0 ? FORCE_DIRTY_DEGRADED : 0u);
}

/* Before the start: what somebody sees who only looks. */
static void
look_main(void *arg)
{
    struct history *const history = arg;
    struct error error;

    if (start(history, true, &error) < 0)
        sim_fail("a readonly start after a crash fails: %s", error.text);
    check_started(history);
    read_everything(history);
    stop(history);
    array_destroy(history->array);
    for (unsigned d = 0; d < history->disks; ++d)
        history->cluster->disks[d].device.readonly = false;
    history->cluster->counts[COUNT_READONLY_VIEWS]++;
    history->stopped_clean = false;
}

/* Members beyond the first parity covers stay away: those of the start that comes next. Returns the
 * set. */
static unsigned
members_keep_away(struct history *history)
{
    const struct verdict *const verdict = &history->verdict;
    unsigned missing = verdict->missing, away = 0;

    if (verdict->result != 0 || verdict->dirty || verdict->journal_disk < 0 ||
        memchr(history->judge->bad, 1, history->judge->stripes) != NULL)
        return 0;
    for (unsigned i = 0; i < 2 && missing < history->geometry.parities; ++i) {
        const int disk =
            verdict->disk_of[random_below(&history->random, history->geometry.members)];

        if (disk < 0 || (away >> disk & 1))
            continue;
        away |= 1u << disk;
        ++missing;
    }
    return away;
}

/* Somebody looks only, and not all members may be there. */
static void
look(struct history *history)
{
    const unsigned offered = history->offered;
    const unsigned away = random_percent(&history->random, 50) ? members_keep_away(history) : 0;

    history->faulty = 0;
    faults_clear(history);
    history->journaled = true;
    history->offered &= ~away;
    judge_decide(history->judge, history->offered, &history->verdict);
    loop_run_task(history->cluster->loop, look_main, history);
    history->offered = offered;
    judge_decide(history->judge, history->offered, &history->verdict);
}

/* A member is gone with the power. What only parity has of it, with what the log says, is all that
 * is left of it. */
static void
leave_out(struct history *history)
{
    const unsigned away = members_keep_away(history);

    history->offered &= ~away;
    history->suspects |= away;
    judge_decide(history->judge, history->offered, &history->verdict);
    for (unsigned s = 0; s < history->geometry.members; ++s)
        if (history->verdict.disk_of[s] < 0)
            judge_lost(history->judge, s);
}

/* --- The end of a history ------------------------------------------------------------------- */

/* Everything is in order: resync to the end, stop, judge parity. */
static void
settle_main(void *arg)
{
    struct history *const history = arg;
    struct error error;

    if (start(history, false, &error) < 0)
        sim_fail("the last start fails: %s", error.text);
    if (!array_resync_wait(history->array) && history->verdict.missing == 0)
        sim_fail("the resync does not end well, and nothing is in its way");
    read_everything(history);
    stop(history);
    array_destroy(history->array);
    if (history->verdict.missing == 0)
        judge_parity(history->judge, (1u << history->members) - 1, "after the resync");
}

/* With as many members gone as can be, everything must still be there. */
static void
loss_main(void *arg)
{
    struct history *const history = arg;
    struct error error;

    if (start(history, random_percent(&history->random, 50), &error) < 0)
        sim_fail("a start without some members fails: %s", error.text);
    check_started(history);
    read_everything(history);
    stop(history);
    array_destroy(history->array);
    history->cluster->counts[COUNT_LOSS_CHECKS]++;
}

static void
history_end(struct history *history)
{
    struct sim_random *const random = &history->random;
    struct loop *const loop = history->cluster->loop;
    unsigned lost = 0;

    history->faulty = 0;
    history->errors_allowed = false;
    history->stopped_clean = false;
    faults_clear(history);
    history->force = force_for(&history->verdict);
    history->begun_moment = cluster_moment(history->cluster);
    history->journaled = history->verdict.journal_disk >= 0;
    history->model->journaled = history->journaled;
    mode_choose(history);
    loop_run_task(loop, settle_main, history);
    image_build(history->cluster, &history->world->image, history->cluster->moment, TEAR_RANDOM,
                random);
    judge_decide(history->judge, history->offered, &history->verdict);
    if (history->verdict.dirty || history->verdict.result != 0)
        sim_fail("after resync and stop the array is not clean");
    judge_cut(history, history->cluster->moment, true);
    image_adopt(history->cluster, &history->world->image);
    history->force = 0;
    if (history->verdict.journal_disk >= 0 && random_percent(random, 25)) {
        history->offered &= ~history->journal; /* it is empty: nobody needs it */
        history->suspects |= history->journal;
    }
    while (history->verdict.missing + lost < history->geometry.parities) {
        const unsigned disk = (unsigned)random_below(random, history->members);

        if (!(history->offered >> disk & 1))
            continue;
        history->offered &= ~(1u << disk);
        judge_decide(history->judge, history->offered, &history->verdict);
        if (random_percent(random, 30))
            break;
    }
    judge_decide(history->judge, history->offered, &history->verdict);
    for (unsigned s = 0; s < history->geometry.members; ++s)
        if (history->verdict.disk_of[s] < 0)
            judge_lost(history->judge, s);
    history->force = force_for(&history->verdict);
    history->journaled = history->verdict.journal_disk >= 0;
    mode_choose(history);
    loop_run_task(loop, loss_main, history);
    /* Nothing of this history may be left. */
    image_adopt(history->cluster, &history->world->image);
    for (unsigned d = 0; d < history->disks; ++d)
        history->cluster->disks[d].device.readonly = false;
}

uint64_t
history_run(struct sim_world *world, const struct sim_mode *mode, uint64_t seed)
{
    struct history *const history = world->history;
    struct sim_cluster *const cluster = &world->cluster;
    unsigned runs;

    history->mode = mode;
    history->cached = history->stuck = false;
    history->few_entries = seed % 8 == 3;
    history->random.state = seed + ((uint64_t)(mode - sim_modes) << 48);
    (void)random_next(&history->random); /* neighbouring seeds part */
    history_make(history);
    history->offered = ((1u << history->disks) - 1) & ~history->left_out;
    history->force = 0;
    if (history->journal != 0)
        log_check(history);
    judge_decide(history->judge, history->offered, &history->verdict);
    runs = (unsigned)random_between(&history->random, 1, mode->runs_max);
    for (unsigned run = 0; run < runs; ++run) {
        history->faults_allowed = true;
        run_begin(history);
        loop_run_task(cluster->loop, run_main, history);
        if (mode->beyond)
            break;
        if (history->verdict.result != 0 && !history->force) {
            history->force =
                force_for(&history->verdict); /* the next run is the same start again */
            runs++;
            continue;
        }
        history->force = 0;
        power_cut(history);
        cluster->counts[COUNT_RESTARTS]++;
        if (history->journal != 0 && history->verdict.result == 0 &&
            random_percent(&history->random, 20))
            look(history);
        if (history->journal != 0 && random_percent(&history->random, 10))
            leave_out(history);
    }
    if (mode->beyond)
        image_adopt(cluster, &world->image);
    else
        history_end(history);
    cluster->counts[COUNT_HISTORIES]++;
    return cluster->hash;
}

/* --- Life ----------------------------------------------------------------------------------- */

static uint8_t *
memory_or_die(void)
{
    uint8_t *const memory = aligned_alloc(BLOCK_BYTES, MEMORY_BYTES);

    if (memory == NULL)
        sim_fail("no memory for requests");
    return memory;
}

void
world_create(struct sim_world *world)
{
    memset(world, 0, sizeof *world);
    cluster_create(&world->cluster);
    model_create(&world->model);
    judge_create(&world->judge, &world->cluster, &world->model);
    world->history = calloc(1, sizeof *world->history);
    if (world->history == NULL)
        sim_fail("no memory for a history");
    world->history->world = world;
    world->history->cluster = &world->cluster;
    world->history->model = &world->model;
    world->history->judge = &world->judge;
    world->history->memory = memory_or_die();
    for (unsigned i = 0; i < CLIENTS_MAX; ++i)
        world->history->clients[i].memory = memory_or_die();
}

void
world_destroy(struct sim_world *world)
{
    for (unsigned i = 0; i < CLIENTS_MAX; ++i)
        free(world->history->clients[i].memory);
    free(world->history->memory);
    free(world->history);
    image_fini(&world->image);
    judge_destroy(&world->judge);
    model_destroy(&world->model);
    cluster_destroy(&world->cluster);
}
