/*
 * test_recovery_rounds.c: a log of which not all that counts fits into the index is replayed in
 * rounds, and comes to the same as in one.
 *
 * A ring nearly full of short random entries (data, parity, both; many stripes many times) is made
 * in a file. What each place of the members must hold after replay is kept beside it by the plain
 * rule: data waits for its stripe's next parity, and then both are written.
 */
#include "device/file.h"
#include "recovery/recovery.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define MEMBERS      3u
#define STRIPES      1200u
#define MEMBER_BYTES (STRIPES * BLOCK_BYTES)
#define DATA_OFFSET  (64 * KIB)
#define RING_BLOCKS  8192u
#define RING         (RING_BLOCKS * BLOCK_BYTES)
#define BEGIN        (RING - 100 * BLOCK_BYTES) /* so that it wraps */

struct world {
    struct loop *loop;
    struct geometry geometry;
    struct journal_geometry journal;
    struct superblock superblock;
    uint8_t *ring;
    uint64_t random;
    uint64_t open_kinds; /* of ten steps, those without parity, and one */
    uint32_t version;
    uint32_t complete[STRIPES][MEMBERS], open[STRIPES][MEMBERS]; /* versions; 0: none */
    uint64_t member_failures;

    /* What comes of it. */
    uint64_t memory_bytes;
    bool expect_rounds;
    struct device *device, *members_devices[MEMBERS];
    struct member members[MEMBERS];
    struct unsynced unsynced;
    struct engine *engine;
};

static uint64_t
pick(struct world *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static uint8_t *
ring_at(struct world *w, uint64_t position)
{
    return w->ring + position;
}

/* The next block of the entry gets this version: its checksum. */
static uint32_t
block_put(struct world *w, uint64_t *position, uint32_t version)
{
    uint8_t *const block = ring_at(w, *position);

    for (size_t i = 0; i < BLOCK_BYTES; i += 4)
        store_le32(block + i, version);
    *position = journal_ring_add(&w->journal, *position, BLOCK_BYTES);
    return journal_checksum(w->journal.checksum_seed, block, BLOCK_BYTES);
}

static void
data_put(struct world *w, struct journal_writer *writer, uint64_t *position, uint64_t stripe,
         const struct row *row)
{
    unsigned member = (unsigned)pick(w, MEMBERS - 1);
    uint64_t offset = 0;

    member += member >= row->p;
    assert_true(geometry_unmap(&w->geometry, member, stripe * BLOCK_BYTES, &offset));
    w->open[stripe][member] = ++w->version;
    journal_writer_add_data(writer, offset, block_put(w, position, w->version));
}

static void
parity_put(struct world *w, struct journal_writer *writer, uint64_t *position, uint64_t stripe,
           const struct row *row)
{
    const uint32_t checksum = block_put(w, position, ++w->version);
    bool any = false;

    journal_writer_add_parity(writer, stripe * BLOCK_BYTES, 1, &checksum);
    for (unsigned m = 0; m < MEMBERS; m++)
        if (w->open[stripe][m] != 0) {
            w->complete[stripe][m] = w->open[stripe][m];
            w->open[stripe][m] = 0;
            any = true;
        }
    if (any)
        w->complete[stripe][row->p] = w->version;
}

/* Random entries until the ring is nearly full. */
static void
log_make(struct world *w)
{
    uint64_t position = BEGIN, used = 0, seq = 77;

    while (used + 40 < RING_BLOCKS) {
        struct journal_writer writer;
        uint64_t block = journal_ring_add(&w->journal, position, BLOCK_BYTES);

        journal_writer_init(&writer, ring_at(w, position), seq++, position);
        for (uint64_t steps = pick(w, 6); steps > 0; steps--) {
            const uint64_t stripe = pick(w, STRIPES), kind = pick(w, 10);
            struct row row;

            geometry_row(&w->geometry, geometry_row_at(&w->geometry, stripe * BLOCK_BYTES), &row);
            if (kind > 0)
                data_put(w, &writer, &block, stripe, &row);
            if (kind > w->open_kinds)
                parity_put(w, &writer, &block, stripe, &row);
        }
        journal_writer_finish(&writer, w->journal.checksum_seed);
        used += 1 + writer.block_count;
        position = block;
    }
}

static struct device *
device_make(struct world *w, const uint8_t *content, uint64_t bytes)
{
    char path[] = "/tmp/stripelog-test-rounds-XXXXXX";
    const int fd = mkstemp(path);
    struct device *device;
    struct error error;

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)(DATA_OFFSET + bytes)), 0);
    if (content)
        assert_int_equal(pwrite(fd, content, bytes, DATA_OFFSET), bytes);
    assert_int_equal(close(fd), 0);
    if (device_file_open(w->loop, path, &(struct file_options){.claim = true}, &device, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(unlink(path), 0);
    return device;
}

static void
member_failed(void *owner, unsigned member, int error, const char *operation)
{
    ++((struct world *)owner)->member_failures;
}

static task_fn void
failures_recorded(void *owner)
{
}

static bool
beyond_parity(void *owner)
{
    return false;
}

static void
members_compare(struct world *w)
{
    uint8_t *const block = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);

    for (unsigned m = 0; m < MEMBERS; m++)
        for (uint64_t s = 0; s < STRIPES; s++) {
            assert_int_equal(device_read(w->members_devices[m], block,
                                         DATA_OFFSET + s * BLOCK_BYTES, BLOCK_BYTES),
                             0);
            for (size_t i = 0; i < BLOCK_BYTES; i += 4)
                assert_int_equal(load_le32(block + i), w->complete[s][m]);
        }
    free(block);
}

static void
replay_and_compare(void *arg)
{
    struct world *const w = arg;
    struct recovery_config config = {.loop = w->loop,
                                     .journal = &w->superblock,
                                     .geometry = &w->geometry,
                                     .memory_bytes = w->memory_bytes};
    struct recovery_target target = {.members = w->members,
                                     .members_count = MEMBERS,
                                     .owner = w,
                                     .member_failed = member_failed,
                                     .failures_recorded = failures_recorded,
                                     .beyond_parity = beyond_parity};
    const struct engine_config engine_config = {.loop = w->loop,
                                                .geometry = &w->geometry,
                                                .members = w->members,
                                                .unsynced = &w->unsynced,
                                                .scratch_bytes = MIB,
                                                .workers = 1,
                                                .owner = w,
                                                .member_failed = member_failed,
                                                .failures_recorded = failures_recorded};
    uint64_t open_blocks = 0, open_stripes = 0;
    struct recovery_counts counts;
    struct recovery *recovery;
    struct error error;

    config.device = w->device = device_make(w, w->ring, RING);
    for (unsigned m = 0; m < MEMBERS; m++) {
        w->members_devices[m] = device_make(w, NULL, MEMBER_BYTES);
        w->members[m] = (struct member){
            .state = MEMBER_IN_SYNC, .device = w->members_devices[m], .data_offset = DATA_OFFSET};
    }
    assert_int_equal(engine_create(&engine_config, &w->engine, &error), 0);
    target.engine = w->engine;

    if (recovery_scan(&config, &recovery, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(recovery_records(recovery) == NULL, w->expect_rounds);
    if (recovery_replay(recovery, &target, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(w->member_failures, 0);
    members_compare(w);

    for (unsigned s = 0; s < STRIPES; s++) {
        bool any = false;

        for (unsigned m = 0; m < MEMBERS; m++) {
            open_blocks += w->open[s][m] != 0;
            any = any || w->open[s][m] != 0;
        }
        open_stripes += any;
    }
    recovery_counts(recovery, &counts);
    assert_true(open_blocks > 0);
    assert_int_equal(counts.open_blocks, open_blocks);
    assert_int_equal(counts.data_only_stripes, open_stripes);

    recovery_destroy(recovery);
    engine_destroy(w->engine);
    for (unsigned m = 0; m < MEMBERS; m++)
        device_close(w->members_devices[m]);
    device_close(w->device);
}

static struct world *
world_make(uint64_t seed, uint64_t open_kinds)
{
    const struct geometry_config config = {.level = 5,
                                           .layout = 2,
                                           .members = MEMBERS,
                                           .chunk_bytes = 16 * KIB,
                                           .size_bytes = MEMBER_BYTES};
    struct world *const w = calloc(1, sizeof *w);
    struct superblock *sb;
    struct error error;

    assert_non_null(w);
    w->random = seed;
    w->open_kinds = open_kinds;
    w->unsynced.from = UINT64_MAX;
    assert_int_equal(geometry_init(&w->geometry, &config), 0);
    sb = &w->superblock;
    superblock_init(sb, 2, MEMBERS + 1);
    sb->level = 5;
    sb->layout = 2;
    sb->raid_disks = MEMBERS;
    sb->chunk_sectors = 32;
    sb->size_sectors = MEMBER_BYTES / SECTOR_BYTES;
    sb->data_offset_sectors = DATA_OFFSET / SECTOR_BYTES;
    sb->data_size_sectors = RING / SECTOR_BYTES;
    sb->journal_tail_sectors = BEGIN / SECTOR_BYTES;
    journal_geometry_init(&w->journal, sb);
    w->ring = calloc(RING_BLOCKS, BLOCK_BYTES);
    assert_non_null(w->ring);
    log_make(w);
    if (loop_create(&(struct loop_config){.tasks = 32}, &w->loop, &error) < 0)
        fail_msg("%s", error.text);
    return w;
}

static void
world_free(struct world *w)
{
    loop_destroy(w->loop);
    free(w->ring);
    free(w);
}

static void
log_that_fits_is_replayed_at_once(void **state)
{
    struct world *const w = world_make(1, 1);

    w->memory_bytes = 64 * MIB;
    loop_run_task(w->loop, replay_and_compare, w);
    world_free(w);
}

/* What counts is sorted out whenever the index is full, and then fits. */
static void
log_that_counts_little_fits_after_a_decision(void **state)
{
    struct world *const w = world_make(2, 1);

    /* A record takes 16 bytes; 3600 places are all that there are. */
    w->memory_bytes = 7300 * 16;
    loop_run_task(w->loop, replay_and_compare, w);
    world_free(w);
}

static void
log_that_does_not_fit_is_replayed_in_rounds(void **state)
{
    for (uint64_t seed = 3; seed < 6; seed++) {
        struct world *const w = world_make(seed, 1);

        w->memory_bytes = (700 + 400 * (seed - 3)) * 16;
        w->expect_rounds = true;
        loop_run_task(w->loop, replay_and_compare, w);
        world_free(w);
    }
}

/* A cache may leave that much: a start with the same memory must be able to take it over. */
static void
log_of_open_cycles_needs_no_more_than_was_said(void **state)
{
    for (uint64_t seed = 6; seed < 9; seed++) {
        struct world *const w = world_make(seed, 7);
        uint64_t open_blocks = 0;

        for (unsigned s = 0; s < STRIPES; s++)
            for (unsigned m = 0; m < MEMBERS; m++)
                open_blocks += w->open[s][m] != 0;
        while (recovery_open_blocks_max(w->memory_bytes) < open_blocks)
            w->memory_bytes += BLOCK_BYTES;
        w->expect_rounds = true;
        loop_run_task(w->loop, replay_and_compare, w);
        world_free(w);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_that_fits_is_replayed_at_once),
        cmocka_unit_test(log_that_counts_little_fits_after_a_decision),
        cmocka_unit_test(log_that_does_not_fit_is_replayed_in_rounds),
        cmocka_unit_test(log_of_open_cycles_needs_no_more_than_was_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
