/*
 * States in which an array may be found, or come to be, that random histories seldom or never make:
 * blocks in a bad block log, a write-intent bitmap, a member half rebuilt, superblocks one event
 * apart or larger than a sector, caches that a failed flush drops, punches that fail, members that
 * are lost while a resync runs. Each test says what must hold there; where the order of things
 * matters the power is cut after every single step, or many seeds are tried.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "array/array.h"
#include "array/create.h"
#include "format/bitmap.h"
#include "sim_disk.h"
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#define DISK_BYTES   (512 * KIB)
#define ROWS         24u
#define ROWS_MAX     120u
#define BLOCKS_MAX   (ROWS_MAX * SIM_DISKS_MAX)
#define MEMORY_BYTES (2 * MIB)
#define SMALL_MEMORY (256 * KIB) /* a stripe is a group then */
#define JOBS_MAX     6u
#define BEFORE_SB    16 /* sectors in front of the superblock: the bad block log */
#define BITMAP_SB    8  /* and the bitmap */

/* What a story of several tasks at once is made of. */
struct job {
    struct scenario *s;
    void (*run)(struct job *job);
    uint64_t block;
    uint8_t *memory; /* a block */
};

struct scenario {
    struct sim_cluster cluster;
    struct sim_image image;
    struct sim_random random;
    struct superblock superblocks[SIM_DISKS_MAX];
    struct geometry geometry;
    unsigned disks, offered, force;
    uint64_t memory_bytes, blocks, seed;
    bool resync_disabled, punches;
    uint8_t *saved; /* all disks */
    uint8_t saved_want[BLOCKS_MAX];

    /* What each block of the array holds; not known after a write that failed. */
    uint8_t want[BLOCKS_MAX], unsure[BLOCKS_MAX];
    uint8_t *memory;

    /* A run. */
    struct array *array;
    int started;
    void (*story)(struct scenario *s);
    unsigned failed; /* members, by their bits */
    bool resynced;
    unsigned jobs_working;
    struct task *main;
    struct job jobs[JOBS_MAX];
    unsigned variant; /* the test's own */
};

static int
setup(void **state)
{
    struct scenario *const s = calloc(1, sizeof *s);

    cluster_create(&s->cluster);
    s->cluster.trace = getenv("SIM_TRACE") != NULL;
    s->memory = aligned_alloc(BLOCK_BYTES, MIB);
    s->saved = malloc((size_t)SIM_DISKS_MAX * DISK_BYTES);
    for (unsigned i = 0; i < JOBS_MAX; ++i)
        s->jobs[i].memory = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    *state = s;
    return 0;
}

static int
teardown(void **state)
{
    struct scenario *const s = *state;

    for (unsigned i = 0; i < JOBS_MAX; ++i)
        free(s->jobs[i].memory);
    free(s->saved);
    free(s->memory);
    image_fini(&s->image);
    cluster_destroy(&s->cluster);
    free(s);
    return 0;
}

/* --- Runs ----------------------------------------------------------------------------------- */

static void
on_event(void *owner, const struct array_event *event)
{
    struct scenario *const s = owner;

    cluster_trace(&s->cluster, "event %d: %s", event->kind, event->text);
    if (event->kind == ARRAY_MEMBER_FAILED)
        s->failed |= 1u << event->member;
}

static void
scenario_main(void *arg)
{
    struct scenario *const s = arg;
    struct device *devices[SIM_DISKS_MAX];
    struct array_config config = {
        .devices = devices,
        .force = s->force,
        .memory_bytes = s->memory_bytes,
        .workers = 4,
        .resync_disabled = s->resync_disabled,
        .event = on_event,
        .owner = s,
    };
    struct error error;

    for (unsigned d = 0; d < s->disks; ++d)
        if (s->offered >> d & 1)
            devices[config.device_count++] = &s->cluster.disks[d].device;
    s->started = array_start(s->cluster.loop, &config, &s->array, &error);
    if (s->started < 0) {
        cluster_trace(&s->cluster, "refused: %s", error.text);
        return;
    }
    s->cluster.counts[COUNT_LATENT_ERRORS] = 0; /* probing may look anywhere */
    s->story(s);
    array_destroy(s->array);
}

static void
play(struct scenario *s, void (*story)(struct scenario *s))
{
    s->story = story;
    s->failed = 0;
    loop_run_task(s->cluster.loop, scenario_main, s);
}

static void
play_well(struct scenario *s, void (*story)(struct scenario *s))
{
    play(s, story);
    assert_int_equal(s->started, 0);
}

static void
stop(struct scenario *s)
{
    assert_int_equal(array_stop(s->array), 0);
}

static void
power_cut(struct scenario *s, uint64_t moment, enum sim_tear tear)
{
    image_build(&s->cluster, &s->image, moment, tear, &s->random);
    image_adopt(&s->cluster, &s->image);
}

static void
restart(struct scenario *s)
{
    power_cut(s, s->cluster.moment, TEAR_ALL);
}

static void
job_main(void *arg)
{
    struct job *const job = arg;

    job->run(job);
    if (--job->s->jobs_working == 0)
        task_wake(job->s->cluster.loop, job->s->main);
}

static void
job_start(struct scenario *s, void (*run)(struct job *job), uint64_t block)
{
    struct job *const job = &s->jobs[s->jobs_working++];

    assert_true(s->jobs_working <= JOBS_MAX);
    job->s = s;
    job->run = run;
    job->block = block;
    assert_non_null(task_start(s->cluster.loop, job_main, job));
}

static void
jobs_wait(struct scenario *s)
{
    s->main = task_self(s->cluster.loop);
    task_suspend(s->cluster.loop);
    assert_int_equal(s->jobs_working, 0);
}

/* --- Content -------------------------------------------------------------------------------- */

static bool
holds(const uint8_t *memory, uint8_t fill)
{
    return memory[0] == fill && memcmp(memory, memory + 1, BLOCK_BYTES - 1) == 0;
}

static int
look_into(struct scenario *s, uint64_t block, uint8_t *memory)
{
    const int result = array_read(s->array, memory, block * BLOCK_BYTES, BLOCK_BYTES);

    if (result == 0 && !s->unsure[block] && !holds(memory, s->want[block])) {
        print_error("block %u holds 0x%02x (at its end 0x%02x), not 0x%02x\n", (unsigned)block,
                    memory[0], memory[BLOCK_BYTES - 1], s->want[block]);
        fail();
    }
    return result;
}

static int
look(struct scenario *s, uint64_t block)
{
    return look_into(s, block, s->memory);
}

static void
look_all(struct scenario *s)
{
    for (uint64_t b = 0; b < s->blocks; ++b)
        assert_int_equal(look(s, b), 0);
}

static int
put_from(struct scenario *s, uint64_t block, uint8_t *memory, uint8_t fill)
{
    int result;

    memset(memory, fill, BLOCK_BYTES);
    s->unsure[block] = 1;
    result = array_write(s->array, memory, block * BLOCK_BYTES, BLOCK_BYTES, false);
    if (result == 0) {
        s->want[block] = fill;
        s->unsure[block] = 0;
    }
    return result;
}

static int
put(struct scenario *s, uint64_t block, uint8_t fill)
{
    return put_from(s, block, s->memory, fill);
}

/* The same content, but by halves: what is not written has to be read. */
static int
put_again(struct scenario *s, uint64_t block)
{
    memset(s->memory, s->want[block], BLOCK_BYTES);
    return array_write(s->array, s->memory, block * BLOCK_BYTES + SECTOR_BYTES, 5 * SECTOR_BYTES,
                       false);
}

static uint8_t
pattern(uint64_t block)
{
    return (uint8_t)(1 + block * 7 % 251);
}

static void
fill_all(struct scenario *s)
{
    for (uint64_t b = 0; b < s->blocks; ++b)
        assert_int_equal(put(s, b, pattern(b)), 0);
    stop(s);
}

/* The array's block on a member; false where that holds parity. */
static bool
block_on(const struct scenario *s, unsigned member, uint64_t row, uint64_t *block)
{
    uint64_t offset;

    *block = 0;
    if (!geometry_unmap(&s->geometry, member, row * BLOCK_BYTES, &offset))
        return false;
    *block = offset / BLOCK_BYTES;
    return true;
}

/* --- Disks by hand -------------------------------------------------------------------------- */

static uint8_t *
superblock_place(const struct scenario *s, unsigned d)
{
    return s->cluster.disks[d].stable + superblock_offset_bytes(&s->superblocks[d]);
}

static int
superblock_get(const struct scenario *s, unsigned d, struct superblock *sb)
{
    return superblock_decode(superblock_place(s, d), 0, DISK_BYTES, sb, NULL);
}

static void
superblocks_put(struct scenario *s)
{
    for (unsigned d = 0; d < s->disks; ++d) {
        struct superblock check;

        assert_true(superblock_encode(&s->superblocks[d], superblock_place(s, d)) <=
                    SUPERBLOCK_BYTES);
        assert_int_equal(superblock_get(s, d, &check), 0);
    }
    cluster_load(&s->cluster);
}

/* As the kernel leaves an array that was cut off: parity at and above this is in doubt. */
static void
make_dirty(struct scenario *s, uint64_t from_row)
{
    for (unsigned d = 0; d < s->disks; ++d)
        s->superblocks[d].resync_offset_sectors = from_row * BLOCK_SECTORS;
    superblocks_put(s);
}

static uint8_t *
block_place(const struct scenario *s, unsigned d, uint64_t row)
{
    return s->cluster.disks[d].stable + superblock_data_offset_bytes(&s->superblocks[d]) +
           row * BLOCK_BYTES;
}

/* All parity of a row becomes wrong, or: is it? */
static void
parity_spoil(struct scenario *s, uint64_t row)
{
    for (unsigned m = 0; m < s->disks; ++m) {
        uint64_t block;

        if (!block_on(s, m, row, &block))
            block_place(s, m, row)[100] ^= 0x55;
    }
}

static bool
parity_is_good(const struct scenario *s, uint64_t row)
{
    for (unsigned at = 0; at < BLOCK_BYTES; at += 100) {
        struct row r;
        uint8_t sum = 0;

        geometry_row(&s->geometry, row, &r);
        for (unsigned m = 0; m < s->disks; ++m)
            if (m != r.q)
                sum ^= block_place(s, m, row)[at];
        if (sum != 0)
            return false;
    }
    return true;
}

/* What is on the disks is where each of several runs begins. */
static void
scenario_save(struct scenario *s)
{
    for (unsigned d = 0; d < s->disks; ++d)
        memcpy(s->saved + (size_t)d * DISK_BYTES, s->cluster.disks[d].stable, DISK_BYTES);
    memcpy(s->saved_want, s->want, sizeof s->want);
}

static void
scenario_again(struct scenario *s)
{
    cluster_begin(&s->cluster, s->seed, s->disks, DISK_BYTES);
    for (unsigned d = 0; d < s->disks; ++d) {
        s->cluster.disks[d].device.punch_zeroes = s->punches;
        memcpy(s->cluster.disks[d].stable, s->saved + (size_t)d * DISK_BYTES, DISK_BYTES);
    }
    cluster_load(&s->cluster);
    memcpy(s->want, s->saved_want, sizeof s->want);
    memset(s->unsure, 0, sizeof s->unsure);
    s->offered = (1u << s->disks) - 1;
}

/* A complete, clean array, every block of it written. */
static void
make(struct scenario *s, int level, unsigned members, unsigned rows)
{
    struct create_device devices[SIM_DISKS_MAX] = {{0}};
    const struct create_options options = {.level = level,
                                           .layout = 2,
                                           .minor = 0,
                                           .chunk_bytes = BLOCK_BYTES,
                                           .size_bytes = rows * (uint64_t)BLOCK_BYTES,
                                           .name = "states",
                                           .assume_clean = true,
                                           .set_uuid = {1},
                                           .now = superblock_time(1700000000, 0)};
    const struct geometry_config config = {.level = level,
                                           .layout = 2,
                                           .members = members,
                                           .chunk_bytes = BLOCK_BYTES,
                                           .size_bytes = options.size_bytes};
    struct error error;

    s->seed = 1;
    s->disks = members;
    s->offered = (1u << members) - 1;
    s->force = 0;
    s->memory_bytes = MEMORY_BYTES;
    s->resync_disabled = false;
    memset(s->unsure, 0, sizeof s->unsure);
    cluster_begin(&s->cluster, s->seed, members, DISK_BYTES);
    for (unsigned d = 0; d < members; ++d) {
        s->cluster.disks[d].device.punch_zeroes = s->punches;
        memset(s->cluster.disks[d].stable, 0, DISK_BYTES);
        devices[d] = (struct create_device){
            .name = "disk", .size_bytes = DISK_BYTES, .uuid = {(uint8_t)(d + 1)}};
    }
    assert_int_equal(create_plan(&options, devices, members, s->superblocks, &error), 0);
    assert_int_equal(geometry_init(&s->geometry, &config), 0);
    s->blocks = s->geometry.array_bytes / BLOCK_BYTES;
    for (unsigned d = 0; d < members; ++d) /* room for a log and a bitmap */
        s->superblocks[d].data_size_sectors = s->superblocks[d].size_sectors;
    superblocks_put(s);
    play_well(s, fill_all);
    restart(s);
    for (unsigned d = 0; d < members; ++d)
        assert_int_equal(superblock_get(s, d, &s->superblocks[d]), 0);
}

/* The power is cut at every moment of a story, in every way, and what comes then is played. */
static void
cut_everywhere(struct scenario *s, void (*story)(struct scenario *s),
               void (*after)(struct scenario *s), unsigned step)
{
    uint64_t end;

    scenario_again(s);
    play_well(s, story);
    end = s->cluster.moment;
    for (uint64_t moment = 1; moment <= end; moment += step)
        for (unsigned tear = 0; tear < TEAR_LAST; ++tear) {
            scenario_again(s);
            s->random.state = moment * 16 + tear;
            play_well(s, story);
            assert_int_equal(s->cluster.moment, end);
            power_cut(s, moment, (enum sim_tear)tear);
            after(s);
        }
}

/* --- Blocks in the bad block log ------------------------------------------------------------- */

static void
log_make(struct scenario *s, unsigned d)
{
    struct superblock *const sb = &s->superblocks[d];

    sb->feature_map |= SUPERBLOCK_FEATURE_BAD_BLOCKS;
    sb->bad_block_log_offset_sectors = -BEFORE_SB;
    sb->bad_block_log_sectors = BLOCK_SECTORS;
    sb->bad_block_log_shift = 0;
    memset(s->cluster.disks[d].stable + superblock_bad_blocks_offset_bytes(sb), 0xff, BLOCK_BYTES);
    superblocks_put(s);
}

/* What stands in the log is garbage, and the disk says EIO as well. */
static void
log_add(struct scenario *s, unsigned d, unsigned entry, uint64_t row, uint64_t rows)
{
    const struct superblock *const sb = &s->superblocks[d];
    const uint64_t start = sb->data_offset_sectors + row * BLOCK_SECTORS;

    store_le64(s->cluster.disks[d].stable + superblock_bad_blocks_offset_bytes(sb) +
                   entry * sizeof(uint64_t),
               start << 10 | rows * BLOCK_SECTORS);
    memset(block_place(s, d, row), 0xbb, rows * BLOCK_BYTES);
    for (uint64_t r = 0; r < rows; ++r)
        disk_make_bad(&s->cluster.disks[d], start / BLOCK_SECTORS + r, BAD_LATENT);
    cluster_load(&s->cluster);
}

/* Rows 1 and 2 of member 1 and row 5 of member 0: data and parity, of either level. */
static void
make_with_log(struct scenario *s, int level, unsigned members)
{
    make(s, level, members, ROWS);
    log_make(s, 0);
    log_make(s, 1);
    log_add(s, 0, 0, 5, 1);
    log_add(s, 1, 0, 1, 1);
    log_add(s, 1, 1, 2, 1);
    log_add(s, 1, 2, 3, 1);
}

static void
bad_again(struct scenario *s)
{
    disk_make_bad(&s->cluster.disks[0], 5, BAD_LATENT);
    disk_make_bad(&s->cluster.disks[1], 1, BAD_LATENT);
    disk_make_bad(&s->cluster.disks[1], 2, BAD_LATENT);
    disk_make_bad(&s->cluster.disks[1], 3, BAD_LATENT);
}

static void
use_beside_log(struct scenario *s)
{
    look_all(s);
    for (unsigned round = 0; round < 2; ++round)
        for (uint64_t b = 0; b < s->blocks; ++b) {
            assert_int_equal(put(s, b, (uint8_t)(pattern(b) + 1 + round)), 0);
            bad_again(s); /* whoever looks is told on */
            assert_int_equal(put_again(s, b), 0);
            bad_again(s);
        }
    look_all(s);
    stop(s);
    assert_int_equal(s->failed, 0);
    assert_int_equal(s->cluster.counts[COUNT_LATENT_ERRORS], 0);
}

static void
logged_bad_blocks_are_never_read(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level) {
        make_with_log(s, level, (unsigned)level);
        play_well(s, use_beside_log);
        restart(s);
        bad_again(s);
        play_well(s, look_all);
        assert_int_equal(s->cluster.counts[COUNT_LATENT_ERRORS], 0);
    }
}

/* Every block is written in turn; after each all that could be read before still can, and what was
 * just written too, if it was acknowledged. */
static void
write_all_by_turns(struct scenario *s)
{
    uint8_t readable[BLOCKS_MAX];
    unsigned refused = 0;

    for (uint64_t b = 0; b < s->blocks; ++b)
        readable[b] = look(s, b) == 0;
    for (uint64_t b = 0; b < s->blocks; ++b) {
        const int result = b % 3 == 0 && readable[b] ? put_again(s, b) : put(s, b, 0xa5);

        bad_again(s);
        refused += result != 0;
        if (result == 0)
            readable[b] = 1;
        for (uint64_t other = 0; other < s->blocks; ++other)
            if (readable[other] && !(other == b && s->unsure[b]))
                assert_int_equal(look(s, other), 0);
    }
    assert_true(refused > 0);
    assert_true(refused < s->blocks / 2);
    assert_int_equal(s->failed, 0);
    stop(s);
}

static void
unsynced_array_acknowledges_nothing_that_nobody_could_read(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level) {
        make_with_log(s, level, (unsigned)level);
        make_dirty(s, 0);
        s->resync_disabled = true;
        play_well(s, write_all_by_turns);
    }
}

static void
degraded_array_acknowledges_nothing_that_nobody_could_read(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level)
        for (unsigned lost = 2; lost < (unsigned)level; ++lost) {
            make_with_log(s, level, (unsigned)level);
            s->offered &= ~(1u << lost);
            if (level == 6)
                s->offered &= ~(1u << (lost == 5 ? 2 : lost + 1));
            play_well(s, write_all_by_turns);
        }
}

/* --- Resync around what cannot be read -------------------------------------------------------- */

static void
resync_with_holes(struct scenario *s)
{
    assert_false(array_resync_wait(s->array)); /* not everywhere */
    assert_int_equal(s->failed, 0);
    disk_die(&s->cluster.disks[s->variant]);
    for (uint64_t b = 0; b < s->blocks; ++b) {
        struct place place;

        geometry_map(&s->geometry, b * BLOCK_BYTES, &place);
        if (place.row != 1 && place.row != 9)
            assert_int_equal(look(s, b), 0);
    }
    assert_int_equal(put(s, s->blocks - 1, 77), 0);
    assert_int_equal(look(s, s->blocks - 1), 0);
}

/* Data of member 1 in rows 1 and 9 is in the log, and parity there cannot be believed. */
static void
resync_passes_over_what_cannot_be_read(void **state)
{
    struct scenario *const s = *state;

    for (unsigned lost = 0; lost < 5; ++lost) {
        make(s, 5, 5, ROWS);
        log_make(s, 1);
        log_add(s, 1, 0, 1, 1);
        log_add(s, 1, 1, 9, 1);
        for (uint64_t row = 0; row < ROWS; ++row)
            parity_spoil(s, row);
        make_dirty(s, 0);
        s->memory_bytes = SMALL_MEMORY;
        s->variant = lost;
        disk_make_bad(&s->cluster.disks[1], 1, BAD_LATENT);
        disk_make_bad(&s->cluster.disks[1], 9, BAD_LATENT);
        play_well(s, resync_with_holes);
        assert_int_equal(s->cluster.counts[COUNT_LATENT_ERRORS], 0);
    }
}

static void
resync_with_too_many_holes(struct scenario *s)
{
    unsigned unreadable = 0;

    assert_false(array_resync_wait(s->array));
    assert_int_equal(s->failed, 0);
    for (uint64_t b = 0; b < s->blocks; ++b)
        unreadable += look(s, b) != 0;
    assert_int_equal(unreadable, s->blocks / 4);  /* member 1's */
    for (uint64_t row = 0; row < 112; row += 4) { /* there member 1 has data of rows 0, 1, 3 */
        uint64_t block;

        assert_true(block_on(s, 3, row + 2, &block));
        assert_int_equal(put(s, block, 99), 0);
        assert_int_equal(look(s, block), 0);
    }
    stop(s);
}

static void
resync_ends_where_there_are_too_many_holes(void **state)
{
    struct scenario *const s = *state;
    struct superblock sb;

    make(s, 5, 4, 112);
    log_make(s, 1);
    log_add(s, 1, 0, 0, 112);
    make_dirty(s, 0);
    s->memory_bytes = SMALL_MEMORY;
    play_well(s, resync_with_too_many_holes);
    restart(s);
    assert_int_equal(superblock_get(s, 0, &sb), 0);
    assert_int_equal(superblock_resync_offset_bytes(&sb), 0);
}

/* --- A write-intent bitmap -------------------------------------------------------------------- */

#define REGION_ROWS 2u

static void
bitmap_make(struct scenario *s, uint64_t events_behind, const uint8_t *rows)
{
    for (unsigned d = 0; d < s->disks; ++d) {
        struct superblock *const sb = &s->superblocks[d];
        struct bitmap_header header = {
            .events = sb->events - events_behind,
            .events_cleared = sb->events - events_behind,
            .sync_size_sectors = sb->size_sectors,
            .chunk_bytes = REGION_ROWS * BLOCK_BYTES,
            .daemon_sleep_s = 5,
        };
        uint8_t *at;

        memcpy(header.uuid, sb->set_uuid, sizeof header.uuid);
        sb->feature_map |= SUPERBLOCK_FEATURE_BITMAP;
        sb->bitmap_offset_sectors = -BITMAP_SB;
        at = s->cluster.disks[d].stable + superblock_bitmap_offset_bytes(sb);
        memset(at, 0, BLOCK_BYTES);
        bitmap_encode(&header, at);
        for (uint64_t row = 0; row < ROWS; ++row)
            if (rows[row])
                at[BITMAP_HEADER_BYTES + row / REGION_ROWS / 8] |=
                    (uint8_t)(1u << (row / REGION_ROWS % 8));
    }
}

/* Rows 4, 5, 14 and 15 are marked. Parity is wrong in all, so that it shows who was there. */
static void
make_with_bitmap(struct scenario *s, uint64_t events_behind)
{
    uint8_t marked[ROWS] = {[4] = 1, [15] = 1};

    make(s, 5, 4, ROWS);
    bitmap_make(s, events_behind, marked);
    for (uint64_t row = 0; row < ROWS; ++row)
        parity_spoil(s, row);
    make_dirty(s, 0);
    s->memory_bytes = SMALL_MEMORY;
}

static bool
row_is_marked(uint64_t row)
{
    return row == 4 || row == 5 || row == 14 || row == 15;
}

static void
resync_and_stop(struct scenario *s)
{
    assert_true(array_resync_wait(s->array));
    stop(s);
}

static void
bitmap_limits_the_resync(void **state)
{
    struct scenario *const s = *state;

    for (uint64_t behind = 0; behind < 2; ++behind) {
        make_with_bitmap(s, behind);
        play_well(s, resync_and_stop);
        restart(s);
        for (uint64_t row = 0; row < ROWS; ++row)
            assert_int_equal(parity_is_good(s, row), behind > 0 || row_is_marked(row));
        for (unsigned d = 0; d < s->disks; ++d) {
            assert_int_equal(superblock_get(s, d, &s->superblocks[d]), 0);
            assert_true(superblock_is_clean(&s->superblocks[d]));
            assert_false(s->superblocks[d].feature_map & SUPERBLOCK_FEATURE_BITMAP);
        }
    }
}

static void
write_beside_resync(struct scenario *s)
{
    if (s->variant)
        assert_int_equal(put(s, 8 * 3, 200), 0);
    assert_true(array_resync_wait(s->array));
    stop(s);
}

/* The marked rows, and those of blocks that were being written, agree whatever happened. */
static void
marked_rows_get_good(struct scenario *s)
{
    const uint8_t want = s->want[8 * 3];

    s->unsure[8 * 3] = 1;
    play_well(s, resync_and_stop);
    restart(s);
    for (uint64_t row = 0; row < ROWS; ++row)
        if (row_is_marked(row) || (s->variant && row == 8))
            assert_true(parity_is_good(s, row));
    s->want[8 * 3] = want;
    play_well(s, look_all);
}

static void
crash_while_bitmap_is_dropped_leaves_nothing_unsynced(void **state)
{
    struct scenario *const s = *state;

    for (s->variant = 0; s->variant < 2; ++s->variant) {
        make_with_bitmap(s, 0);
        /* Row 8 may be written, and so was not marked for nothing: its parity was good. */
        parity_spoil(s, 8);
        assert_true(parity_is_good(s, 8));
        cluster_load(&s->cluster);
        scenario_save(s);
        cut_everywhere(s, write_beside_resync, marked_rows_get_good, 2);
    }
}

/* --- A member that is being rebuilt ----------------------------------------------------------- */

#define REBUILT_ROWS 11u

static void
make_rebuilding(struct scenario *s, int level, unsigned members, unsigned member)
{
    make(s, level, members, ROWS);
    s->superblocks[member].feature_map |= SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    s->superblocks[member].recovery_offset_sectors = REBUILT_ROWS * BLOCK_SECTORS;
    memset(block_place(s, member, REBUILT_ROWS), 0xdd, (ROWS - REBUILT_ROWS) * BLOCK_BYTES);
    superblocks_put(s);
    s->variant = member;
}

static void
use_rebuilding(struct scenario *s)
{
    look_all(s);
    for (uint64_t b = 0; b < s->blocks; ++b) {
        assert_int_equal(put(s, b, (uint8_t)(pattern(b) + 3)), 0);
        assert_int_equal(put_again(s, b), 0);
        assert_int_equal(look(s, b), 0);
    }
    look_all(s);
    assert_int_equal(array_flush(s->array), 0);
    assert_int_equal(s->failed, 0);
    if (s->jobs[0].block == 0)
        stop(s);
}

static void
check_rebuilding(struct scenario *s)
{
    for (unsigned d = 0; d < s->disks; ++d) {
        struct superblock sb;

        assert_int_equal(superblock_get(s, d, &sb), 0);
        assert_int_equal(superblock_role(&sb), d);
        assert_int_equal(!!(sb.feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET), d == s->variant);
        if (d == s->variant)
            assert_int_equal(sb.recovery_offset_sectors, REBUILT_ROWS * BLOCK_SECTORS);
    }
    for (uint64_t row = 0; row < ROWS; ++row) {
        uint64_t block;

        if (block_on(s, s->variant, row, &block))
            assert_true(holds(block_place(s, s->variant, row), s->want[block]));
        assert_true(parity_is_good(s, row));
    }
}

static void
rebuilding_member_is_written_and_read_below_its_mark(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level)
        for (unsigned member = 0; member < (unsigned)level; member += 2) {
            make_rebuilding(s, level, (unsigned)level, member);
            s->jobs[0].block = 0;
            play_well(s, use_rebuilding);
            restart(s);
            check_rebuilding(s);
            play_well(s, look_all);
        }
}

static void
rebuilding_member_survives_a_crash(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level) {
        make_rebuilding(s, level, (unsigned)level, 1);
        s->jobs[0].block = 1; /* the power is cut while it is active */
        play_well(s, use_rebuilding);
        power_cut(s, s->cluster.moment, TEAR_NONE);
        check_rebuilding(s);
        play(s, look_all);
        assert_int_equal(s->started, -EUCLEAN);
        s->force = FORCE_DIRTY_DEGRADED;
        s->jobs[0].block = 0;
        play_well(s, use_rebuilding);
        restart(s);
        check_rebuilding(s);
        s->force = 0;
        play_well(s, look_all);
    }
}

/* --- Superblocks apart ------------------------------------------------------------------------ */

static void
write_idle_write(struct scenario *s)
{
    assert_int_equal(put(s, 7, 201), 0);
    loop_sleep(s->cluster.loop, UINT64_C(500000000)); /* clean */
    assert_int_equal(put(s, 7, 202), 0);
    assert_int_equal(array_flush(s->array), 0);
    if (array_resync_wait(s->array))
        stop(s);
}

static void
look_but_7(struct scenario *s)
{
    s->unsure[7] = 1;
    look_all(s);
}

static void
superblocks_are_close(struct scenario *s)
{
    uint64_t least = UINT64_MAX, most = 0;

    for (unsigned d = 0; d < s->disks; ++d) {
        struct superblock sb;

        if (!(s->offered >> d & 1))
            continue;
        assert_int_equal(superblock_get(s, d, &sb), 0);
        least = min_u64(least, sb.events);
        most = max_u64(most, sb.events);
    }
    assert_true(most - least <= 1);
    play_well(s, look_but_7);
    assert_int_equal(s->failed, 0);
}

/* Who is ahead by one, and who of the two kinds says clean: 0 all, 1 those ahead, 2 those behind,
 * 3 nobody. */
static void
superblocks_one_apart_never_get_two_apart(void **state)
{
    struct scenario *const s = *state;

    for (unsigned ahead = 1; ahead < (1u << 4) - 1; ahead += 2)
        for (unsigned words = 0; words < 4; ++words) {
            make(s, 5, 4, 8);
            for (unsigned d = 0; d < 4; ++d) {
                struct superblock *const sb = &s->superblocks[d];
                const bool first = ahead >> d & 1;

                sb->events += first;
                if (words == 3 || words == (first ? 2u : 1u))
                    sb->resync_offset_sectors = 0;
            }
            superblocks_put(s);
            scenario_save(s);
            cut_everywhere(s, write_idle_write, superblocks_are_close, 7);
        }
}

/* --- Superblocks larger than a sector --------------------------------------------------------- */

/* A table of two sectors, and members with numbers in the second. */
static void
make_with_large_superblocks(struct scenario *s, int level, unsigned members)
{
    make(s, level, members, 8);
    for (unsigned d = 0; d < members; ++d) {
        struct superblock *const sb = &s->superblocks[d];

        sb->max_dev = superblock_max_dev_for(300);
        for (unsigned i = 0; i < sb->max_dev; ++i)
            sb->dev_roles[i] = SUPERBLOCK_ROLE_SPARE;
        for (unsigned i = 0; i < members; ++i)
            sb->dev_roles[i + 200] = (uint16_t)i;
        sb->dev_number = d + 200;
    }
    superblocks_put(s);
    scenario_save(s);
}

static void
starts_at_all(struct scenario *s)
{
    memset(s->unsure + 4, 1, 4); /* the row that is written: the write hole of a degraded array */
    play(s, look_but_7);
    if (s->started == -EUCLEAN) {
        s->force = FORCE_DIRTY_DEGRADED;
        play(s, look_but_7);
        s->force = 0;
    }
    assert_int_equal(s->started, 0);
}

static void
torn_superblock_of_several_sectors_stops_nobody(void **state)
{
    struct scenario *const s = *state;

    make_with_large_superblocks(s, 5, 4);
    cut_everywhere(s, write_idle_write, superblocks_are_close, 1);
}

static void
lose_one_and_write(struct scenario *s)
{
    disk_die(&s->cluster.disks[1]);
    assert_int_equal(put(s, 7, 201), 0);
    assert_int_equal(array_flush(s->array), 0);
    assert_int_equal(put(s, 7, 202), 0);
    stop(s);
}

/* The table changes: now a torn superblock is none. */
static void
torn_superblock_that_records_a_failure_stops_nobody(void **state)
{
    struct scenario *const s = *state;

    make_with_large_superblocks(s, 6, 6);
    cut_everywhere(s, lose_one_and_write, starts_at_all, 1);
}

/* --- A flush that fails and drops what was cached --------------------------------------------- */

static void
job_flush(struct job *job)
{
    for (unsigned i = 0; i < 3; ++i)
        assert_int_equal(array_flush(job->s->array), 0);
}

static void
job_read(struct job *job)
{
    for (unsigned i = 0; i < 12; ++i)
        assert_int_equal(look_into(job->s, job->block, job->memory), 0);
}

static void
job_write(struct job *job)
{
    for (unsigned i = 0; i < 6; ++i)
        assert_int_equal(put_from(job->s, job->block, job->memory, (uint8_t)(150 + i)), 0);
}

/* Blocks 0 to 2 are the data of row 0 (of more members: among them). */
static void
flush_drops(struct scenario *s)
{
    struct sim_disk *const disk = &s->cluster.disks[s->variant];

    for (uint64_t b = 0; b < s->blocks; ++b)
        if (b % 3 != 1)
            assert_int_equal(put(s, b, (uint8_t)(pattern(b) + 90)), 0);
    disk->faults.flush_error_in = 1 + (unsigned)(s->seed % 2);
    disk->faults.flush_drops = true;
    job_start(s, job_flush, 0);
    job_start(s, job_read, 0);
    job_start(s, job_read, 2);
    job_start(s, job_write, 1);
    job_start(s, job_write, s->geometry.data_members + 1);
    job_start(s, job_read, s->geometry.data_members + 2);
    jobs_wait(s);
    assert_int_equal(s->failed, 1u << s->variant);
    look_all(s);
    stop(s);
}

static void
flush_that_drops_the_cache_costs_one_member_and_no_data(void **state)
{
    struct scenario *const s = *state;

    for (unsigned members = 4; members <= 6; ++members) {
        make(s, members == 6 ? 6 : 5, members, ROWS);
        scenario_save(s);
        for (s->seed = 1; s->seed <= 120; ++s->seed) {
            scenario_again(s);
            s->variant = (unsigned)(s->seed % members);
            play_well(s, flush_drops);
            power_cut(s, s->cluster.moment, TEAR_NONE);
            s->offered &= ~(1u << s->variant);
            play_well(s, look_all);
        }
    }
}

static void
flush_of_a_rebuilding_member_that_drops_costs_no_data(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level) {
        make_rebuilding(s, level, (unsigned)level, 1);
        scenario_save(s);
        for (s->seed = 1; s->seed <= 120; ++s->seed) {
            scenario_again(s);
            play_well(s, flush_drops);
            power_cut(s, s->cluster.moment, TEAR_NONE);
            s->offered &= ~(1u << s->variant);
            play_well(s, look_all);
        }
    }
}

/* --- Punches that fail ------------------------------------------------------------------------ */

static void
punch_fails(struct scenario *s)
{
    const uint64_t row_blocks = s->geometry.data_members;

    s->cluster.disks[1].faults.punch_error = (int)s->variant;
    assert_int_equal(array_zero(s->array, row_blocks * BLOCK_BYTES, 3 * row_blocks * BLOCK_BYTES,
                                true, false, true),
                     0);
    memset(s->want + row_blocks, 0, 3 * row_blocks);
    assert_int_equal(
        array_trim(s->array, 6 * row_blocks * BLOCK_BYTES, 2 * row_blocks * BLOCK_BYTES, true), 0);
    memset(s->want + 6 * row_blocks, 0, 2 * row_blocks);
    look_all(s);
    assert_int_equal(s->failed, 0);
    assert_true(s->cluster.counts[COUNT_PUNCH_REFUSALS] > 0);
}

static void
failed_punch_writes_zeros_and_fails_nobody(void **state)
{
    struct scenario *const s = *state;
    const int errors[] = {EOPNOTSUPP, ENOSPC, EIO};

    s->punches = true;
    for (unsigned i = 0; i < ARRAY_LEN(errors); ++i)
        for (unsigned lost = 0; lost < 4; ++lost) {
            make(s, 5, 4, ROWS);
            s->variant = (unsigned)errors[i];
            play_well(s, punch_fails);
            power_cut(s, s->cluster.moment, TEAR_NONE); /* the trim was flushed as well */
            for (uint64_t row = 0; row < ROWS; ++row)
                assert_true(parity_is_good(s, row));
            play_well(s, resync_and_stop);
            restart(s);
            s->offered &= ~(1u << lost);
            play_well(s, look_all);
        }
}

/* --- A member lost while a resync runs ---------------------------------------------------------
 */

static void
lose_in_resync(struct scenario *s)
{
    /* What was there before the crash may be garbage on a lost member; what is written is not. */
    memset(s->unsure, 1, s->blocks);
    for (uint64_t b = 0; b < s->blocks; b += 3)
        assert_int_equal(put(s, b, 88), 0);
    assert_int_equal(array_flush(s->array), 0);
    s->cluster.disks[s->variant].faults.death_in = (unsigned)(s->seed % 50) + 1;
    if (array_resync_wait(s->array))
        assert_true(s->failed == 0 || s->geometry.parities == 2);
    disk_die(&s->cluster.disks[s->variant]);
    for (uint64_t b = 0; b < s->blocks; ++b)
        assert_int_equal(look(s, b), 0);
    assert_int_equal(put(s, 0, 89), 0);
    look_all(s);
    if (s->geometry.parities == 2)
        assert_true(array_resync_wait(s->array));
    stop(s);
}

static void
member_lost_in_resync_keeps_what_was_written_since(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level) {
        make(s, level, (unsigned)level, ROWS_MAX / 2);
        for (uint64_t row = 0; row < ROWS_MAX / 2; ++row)
            parity_spoil(s, row);
        make_dirty(s, 0);
        scenario_save(s);
        for (s->seed = 1; s->seed <= 60; ++s->seed) {
            scenario_again(s);
            s->force = 0;
            s->memory_bytes = SMALL_MEMORY;
            s->variant = (unsigned)(s->seed % s->disks);
            play_well(s, lose_in_resync);
            restart(s);
            s->offered &= ~(1u << s->variant);
            play(s, look_all);
            if (s->started == -EUCLEAN) {
                s->force = FORCE_DIRTY_DEGRADED;
                play(s, look_all);
            }
            assert_int_equal(s->started, 0);
        }
    }
}

/* --- A device that was struck off --------------------------------------------------------------
 */

static void
write_and_stop(struct scenario *s)
{
    for (uint64_t b = 0; b < s->blocks; b += 2)
        assert_int_equal(put(s, b, (uint8_t)(pattern(b) + 9)), 0);
    stop(s);
}

/* It may be all that is left of something: whoever wants it as a spare says so. */
static void
struck_off_device_is_not_written(void **state)
{
    struct scenario *const s = *state;

    for (int level = 5; level <= 6; ++level)
        for (unsigned device = 0; device < (unsigned)level; ++device) {
            make(s, level, (unsigned)level, ROWS);
            s->offered &= ~(1u << device);
            play_well(s, write_and_stop);
            restart(s);
            scenario_save(s);
            s->offered |= 1u << device;
            play_well(s, write_and_stop);
            restart(s);
            assert_memory_equal(s->cluster.disks[device].stable,
                                s->saved + (size_t)device * DISK_BYTES, DISK_BYTES);
            play_well(s, look_all);
        }
}

#define STATE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* With an argument only the tests whose names match it. */
int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        STATE(logged_bad_blocks_are_never_read),
        STATE(degraded_array_acknowledges_nothing_that_nobody_could_read),
        STATE(unsynced_array_acknowledges_nothing_that_nobody_could_read),
        STATE(resync_passes_over_what_cannot_be_read),
        STATE(resync_ends_where_there_are_too_many_holes),
        STATE(bitmap_limits_the_resync),
        STATE(crash_while_bitmap_is_dropped_leaves_nothing_unsynced),
        STATE(rebuilding_member_is_written_and_read_below_its_mark),
        STATE(rebuilding_member_survives_a_crash),
        STATE(superblocks_one_apart_never_get_two_apart),
        STATE(torn_superblock_of_several_sectors_stops_nobody),
        STATE(torn_superblock_that_records_a_failure_stops_nobody),
        STATE(flush_that_drops_the_cache_costs_one_member_and_no_data),
        STATE(flush_of_a_rebuilding_member_that_drops_costs_no_data),
        STATE(failed_punch_writes_zeros_and_fails_nobody),
        STATE(member_lost_in_resync_keeps_what_was_written_since),
        STATE(struck_off_device_is_not_written),
    };

    /* Arrays come and go by the thousand: freed memory stays mapped. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30); /* slower without, no more */
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
