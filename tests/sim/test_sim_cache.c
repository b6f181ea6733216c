/*
 * The write-back cache, one rule a story: what its parity is made from, what FLUSH and FUA promise
 * where journals and members have volatile caches, what becomes of cached blocks when a member or
 * the journal fails, when blocks are written out, what bounds the log, and what the next start does
 * with what it finds. Blocks are named by their number in the array, contents by one byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sim_story.h"
#include <stdio.h>
#include <stdlib.h>

#define CHUNK_BLOCKS ((unsigned)(CHUNK_BYTES / BLOCK_BYTES))
#define SECOND       UINT64_C(1000000000)
#define SETTLE_NS    (20 * SECOND) /* of virtual time; no timer is that long and helps */

/* --- Helpers -------------------------------------------------------------------------------- */

static struct array_status
status_of(const struct story *s)
{
    struct array_status status;

    array_status(s->array, &status);
    return status;
}

static uint64_t
cached(const struct story *s)
{
    return status_of(s).write_back.blocks;
}

static void
setup_array(struct story *s, int level, unsigned members, uint64_t ring_blocks)
{
    s->level = level;
    s->members = members;
    s->ring_blocks = ring_blocks;
    s->config = (struct array_config){
        .journal_mode = JOURNAL_WRITE_BACK,
        .cache_bytes = MIB,
    };
    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_store(s);
}

/* Pages are dropped before the ring is full. */
static void
setup_less_memory_than_ring(struct story *s)
{
    s->member_bytes = 512 * KIB;
    setup_array(s, 5, 5, 400);
    s->config.cache_bytes = 64 * KIB;
}

/* The first start is to resync all of it. */
static void
setup_dirty_array(struct story *s, uint64_t ring_blocks)
{
    s->member_bytes = 2000 * KIB;
    setup_array(s, 5, 5, ring_blocks);
    for (unsigned d = 0; d <= s->members; ++d)
        s->superblocks[d].resync_offset_sectors = 0;
    story_store(s);
}

static void
play(struct story *s, void (*run)(struct story *s))
{
    story_play(s, run);
    if (s->started < 0)
        print_error("%s\n", s->error.text);
    assert_int_equal(s->started, 0);
}

/* The number of the data chunk in its row, and of the block in its chunk: a block of the array. */
static uint64_t
in_row(const struct story *s, unsigned row, unsigned data, unsigned stripe)
{
    const unsigned parities = s->level == 6 ? 2 : 1;

    return ((uint64_t)row * (s->members - parities) + data) * CHUNK_BLOCKS + stripe;
}

static struct place
place_of(const struct story *s, uint64_t block)
{
    struct place place;

    geometry_map(status_of(s).geometry, block * BLOCK_BYTES, &place);
    return place;
}

static struct sim_disk *
disk_of(struct story *s, uint64_t block)
{
    return &s->cluster.disks[place_of(s, block).member];
}

/* What the member itself has there. */
static uint8_t
on_member(struct story *s, uint64_t block)
{
    return disk_of(s, block)->live[DATA_OFFSET + place_of(s, block).member_offset];
}

static void
expect_parity(const struct story *s)
{
    for (uint64_t at = 0; at < s->member_bytes; ++at) {
        uint8_t sum = 0;

        for (unsigned m = 0; m < s->members; ++m)
            sum ^= s->cluster.disks[m].live[DATA_OFFSET + at];
        assert_int_equal(sum, 0);
    }
}

static void
write_through(struct story *s)
{
    struct error error;

    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_THROUGH, &error), 0);
    assert_int_equal(cached(s), 0);
}

/* Until no more than so many blocks are cached, which nobody has to ask for. */
static void
settle_until(struct story *s, uint64_t blocks)
{
    for (uint64_t waited = 0; cached(s) > blocks; waited += SECOND / 100) {
        assert_true(waited < SETTLE_NS);
        loop_sleep(s->cluster.loop, SECOND / 100);
    }
}

/* Looks only, with each set of members left out that parity covers. */
static void
with_any_left_out(struct story *s, void (*run)(struct story *s))
{
    const struct array_config config = s->config;
    const unsigned parities = s->level == 6 ? 2 : 1;

    s->config.readonly = true;
    for (unsigned set = 0; set < 1u << s->members; ++set) {
        if ((unsigned)__builtin_popcount(set) > parities)
            continue;
        s->left_out = set;
        play(s, run);
    }
    s->left_out = 0;
    s->config = config;
}

/* --- Parity --------------------------------------------------------------------------------- */

static void
sees_row(struct story *s)
{
    const unsigned data_members = s->members - (s->level == 6 ? 2 : 1);

    for (unsigned d = 0; d < data_members; ++d)
        story_expect(s, in_row(s, 0, d, 0), 1, d == 1 ? 0x22 : (uint8_t)(0xa0 + d));
}

static void
fills_row(struct story *s)
{
    const unsigned data_members = s->members - (s->level == 6 ? 2 : 1);

    for (unsigned d = 0; d < data_members; ++d)
        assert_int_equal(story_put(s, in_row(s, 0, d, 0), 1, (uint8_t)(0xa0 + d), false), 0);
    write_through(s);
}

static void
caches_twice(struct story *s)
{
    const uint64_t block = in_row(s, 0, 1, 0);

    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, block, 1, 0x11, false), 0);
    assert_int_equal(story_put(s, block, 1, 0x22, false), 0);
    assert_int_equal(cached(s), 1);
    assert_int_equal(on_member(s, block), 0xa1);
    story_expect(s, block, 1, 0x22);
    write_through(s);
    assert_int_equal(on_member(s, block), 0x22);
    sees_row(s);
}

/* Parity has never heard of what was cached first: the difference is to what the member holds. */
static void
delta_is_to_what_the_member_holds(void **state)
{
    struct story *const s = *state;
    const struct {
        int level;
        unsigned members;
    } arrays[] = {{5, 6}, {4, 6}, {6, 8}};

    for (unsigned i = 0; i < ARRAY_LEN(arrays); ++i) {
        setup_array(s, arrays[i].level, arrays[i].members, 200);
        play(s, caches_twice);
        if (s->level != 6)
            expect_parity(s);
        story_restart(s);
        with_any_left_out(s, sees_row);
    }
}

static void
reads_a_bad_block(struct story *s)
{
    const uint64_t bad = in_row(s, 0, 2, 0);

    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, in_row(s, 0, 1, 0), 1, 0x22, false), 0);
    disk_make_bad(disk_of(s, bad), (DATA_OFFSET + place_of(s, bad).member_offset) / BLOCK_BYTES,
                  BAD_LATENT);
    assert_int_equal(cached(s), 1);
    story_expect(s, bad, 1, 0xa2);
    assert_int_equal(s->told[ARRAY_READ_CORRECTED], 1);
    assert_int_equal(on_member(s, bad), 0xa2);
    write_through(s);
    expect_parity(s);
    sees_row(s);
}

static void
completes_in_a_bad_block(struct story *s)
{
    const uint64_t bad = in_row(s, 0, 2, 0);

    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, in_row(s, 0, 1, 0), 1, 0x22, false), 0);
    disk_make_bad(disk_of(s, bad), (DATA_OFFSET + place_of(s, bad).member_offset) / BLOCK_BYTES,
                  BAD_LATENT);
    /* A part of it, so that the rest is needed. */
    memset(s->memory, 0xa2, SECTOR_BYTES);
    assert_int_equal(
        array_write(s->array, s->memory, bad * BLOCK_BYTES + SECTOR_BYTES, SECTOR_BYTES, false), 0);
    sees_row(s);
    write_through(s);
    expect_parity(s);
    sees_row(s);
}

static void
loses_a_member(struct story *s)
{
    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, in_row(s, 0, 1, 0), 1, 0x22, false), 0);
    disk_die(disk_of(s, in_row(s, 0, 2, 0)));
    sees_row(s);
    settle_until(s, 0);
    sees_row(s);
}

/* And the cached block's own member may be the one. */
static void
loses_the_member(struct story *s)
{
    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, in_row(s, 0, 1, 0), 1, 0x22, false), 0);
    disk_die(disk_of(s, in_row(s, 0, 1, 0)));
    assert_int_equal(story_get(s, in_row(s, 0, 1, 1)), 0);
    sees_row(s);
    settle_until(s, 0);
    sees_row(s);
}

/* Parity knows what the members hold, and nothing of what is cached beside it. */
static void
reconstruction_takes_no_mixture(void **state)
{
    struct story *const s = *state;
    void (*const runs[])(struct story * s) = {reads_a_bad_block, completes_in_a_bad_block,
                                              loses_a_member, loses_the_member};

    for (unsigned i = 0; i < ARRAY_LEN(runs); ++i) {
        setup_array(s, 5, 5, 200);
        play(s, runs[i]);
        story_restart(s);
        play(s, sees_row);
        story_restart(s);
    }
}

/* --- FLUSH and FUA -------------------------------------------------------------------------- */

#define MARKS 4u

/* Moments of the run; and how many of them had come when the power was cut. */
static uint64_t marks[MARKS + 1];
static unsigned mark;

static void
promises_and_does_not(struct story *s)
{
    const uint64_t flushes = s->cluster.counts[COUNT_DISK_FLUSHES];

    assert_int_equal(story_put(s, 0, 1, 1, false), 0);
    assert_int_equal(s->cluster.counts[COUNT_DISK_FLUSHES], flushes);
    marks[0] = cluster_moment(&s->cluster);
    assert_int_equal(story_put(s, 1, 1, 2, true), 0);
    marks[1] = cluster_moment(&s->cluster);
    assert_int_equal(story_put(s, 2, 1, 3, false), 0);
    marks[2] = cluster_moment(&s->cluster);
    assert_int_equal(array_flush(s->array), 0);
    marks[3] = cluster_moment(&s->cluster);
    assert_int_equal(story_put(s, 3, 1, 4, false), 0);
    assert_int_equal(story_put(s, 1, 1, 5, false), 0);
    marks[4] = cluster_moment(&s->cluster);
    assert_int_equal(cached(s), 4);
}

static bool
holds(struct story *s, uint64_t block, uint8_t fill)
{
    assert_int_equal(story_get(s, block), 0);
    assert_memory_equal(s->memory, s->memory + 1, BLOCK_BYTES - 1);
    return s->memory[0] == fill;
}

static void
sees_what_was_promised(struct story *s)
{
    if (mark >= 3)
        assert_true(holds(s, 0, 1));
    assert_true(holds(s, 0, 1) || holds(s, 0, 0));
    if (mark >= 1)
        assert_false(holds(s, 1, 0));
    if (mark < 4)
        assert_false(holds(s, 1, 5));
    if (mark >= 3)
        assert_true(holds(s, 2, 3));
    assert_true(holds(s, 3, 4) || holds(s, 3, 0));
    /* The log is in order: of the later ones the first is the first to be there. */
    if (holds(s, 1, 5))
        assert_true(holds(s, 3, 4));
}

/* No more, and no less, is durable than was promised. */
static void
flush_and_fua_make_durable(void **state)
{
    struct story *const s = *state;
    for (mark = 0; mark <= MARKS; ++mark)
        for (unsigned tear = 0; tear < TEAR_LAST; ++tear)
            for (unsigned mode = JOURNAL_WRITE_THROUGH; mode <= JOURNAL_WRITE_BACK; ++mode) {
                setup_array(s, 5, 3, 64);
                s->random.state = 10 * mark + tear;
                play(s, promises_and_does_not);
                story_cut(s, marks[mark], (enum sim_tear)tear);
                s->config.journal_mode = (enum journal_mode)mode;
                play(s, sees_what_was_promised);
                story_restart(s);
            }
}

/* --- Failures ------------------------------------------------------------------------------- */

static void
sees_eight(struct story *s)
{
    story_expect(s, 0, 8, 0x33);
}

static void
becomes_degraded(struct story *s)
{
    struct array_status status;

    assert_int_equal(story_put(s, 0, 8, 0x33, false), 0);
    assert_int_equal(cached(s), 8);
    /* Nothing of what is cached needs it. */
    disk_die(disk_of(s, in_row(s, 1, 0, 0)));
    assert_int_equal(story_get(s, in_row(s, 1, 0, 0)), 0);
    settle_until(s, 0);
    status = status_of(s);
    assert_int_equal(status.journal_mode, JOURNAL_WRITE_THROUGH);
    assert_int_equal(status.journal_mode_wanted, JOURNAL_WRITE_BACK);
    assert_false(status.draining);
    assert_true(s->told[ARRAY_JOURNAL_MODE] >= 1);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), -EUCLEAN);
    sees_eight(s);
    assert_int_equal(story_put(s, 20, 1, 0x44, false), 0);
    assert_int_equal(cached(s), 0);
}

/* A cached stripe of a degraded array could lose a block with the journal alone. */
static void
first_degraded_moment_writes_all_out(void **state)
{
    struct story *const s = *state;

    setup_array(s, 5, 5, 200);
    play(s, becomes_degraded);
    story_restart(s);
    /* Without the one that died, and in write-through, and it is said. */
    play(s, sees_eight);
    assert_int_equal(s->status.journal_mode, JOURNAL_WRITE_THROUGH);
    assert_int_equal(s->status.journal_mode_wanted, JOURNAL_WRITE_BACK);
    assert_true(s->told[ARRAY_WARNING] >= 1);
    story_restart(s);
}

static void
journal_fails(struct story *s)
{
    assert_int_equal(story_put(s, 0, 4, 0x33, true), 0);
    assert_int_equal(story_put(s, 4, 4, 0x33, false), 0);
    assert_int_equal(cached(s), 8);
    s->cluster.disks[s->members].faults.write_error_in = 1;
    assert_int_equal(story_put(s, 3, 1, 0x99, false), -EIO);
    assert_int_equal(s->told[ARRAY_JOURNAL_FAILED], 1);
    sees_eight(s);
    settle_until(s, 0);
    sees_eight(s);
    assert_int_equal(story_put(s, 9, 1, 0x99, false), -EIO);
    assert_int_equal(array_flush(s->array), 0);
    assert_int_equal(array_stop(s->array), -EIO);
    assert_int_equal(s->told[ARRAY_DATA_LOST], 0);
}

/* What is in memory is on the members afterwards, be it durable in the log or not. */
static void
failed_journal_leaves_all_on_the_members(void **state)
{
    struct story *const s = *state;

    setup_array(s, 5, 5, 200);
    play(s, journal_fails);
    expect_parity(s);
    story_restart(s);
    s->force = FORCE_DROP_JOURNAL;
    s->config.journal_mode = JOURNAL_WRITE_THROUGH;
    play(s, sees_eight);
    story_restart(s);
}

/* Blocks beyond what memory holds; their contents are their numbers. Of each row one chunk is left
 * out: full stripes would be written out first. */
static uint64_t many;
static bool gone[STORY_BLOCKS_MAX * 4];

static uint64_t
nth(const struct story *s, uint64_t number)
{
    const uint64_t row = (uint64_t)(s->members - 1) * CHUNK_BLOCKS, some = row - CHUNK_BLOCKS;

    return number / some * row + number % some;
}

static void
caches_many(struct story *s)
{
    for (many = 0; many < ARRAY_LEN(gone); ++many) {
        const struct write_back_status status = status_of(s).write_back;

        if (status.blocks >= status.pages + 5)
            break;
        gone[many] = false;
        assert_int_equal(story_put(s, nth(s, many), 1, (uint8_t)(1 + many), false), 0);
    }
    assert_true(many < ARRAY_LEN(gone));
    assert_int_equal(cached(s), many);
}

static void
journal_dies(struct story *s)
{
    struct write_back_status before, after;
    uint64_t lost = 0;

    caches_many(s);
    before = status_of(s).write_back;
    disk_die(&s->cluster.disks[s->members]);
    assert_int_equal(story_put(s, nth(s, many), 1, 0x99, false), -EIO);
    for (uint64_t waited = 0; cached(s) > before.blocks - before.pages; waited += SECOND / 100) {
        assert_true(waited < SETTLE_NS);
        loop_sleep(s->cluster.loop, SECOND / 100);
    }
    for (uint64_t b = 0; b < many; ++b) {
        gone[b] = story_get(s, nth(s, b)) == -EIO;
        lost += gone[b];
        if (!gone[b])
            story_expect(s, nth(s, b), 1, (uint8_t)(1 + b));
    }
    after = status_of(s).write_back;
    assert_int_equal(lost, before.blocks - before.pages);
    assert_int_equal(after.lost, lost);
    assert_true(s->told[ARRAY_DATA_LOST] >= 1);
    assert_int_equal(array_stop(s->array), -EIO);
}

static void
sees_many(struct story *s)
{
    for (uint64_t b = 0; b < many; ++b)
        if (!gone[b])
            story_expect(s, nth(s, b), 1, (uint8_t)(1 + b));
}

/* What only the journal held is lost with it: named, and nothing else. */
static void
dead_journal_costs_what_only_it_held(void **state)
{
    struct story *const s = *state;

    setup_less_memory_than_ring(s);
    play(s, journal_dies);
    expect_parity(s);
    story_restart(s);
    s->force = FORCE_DROP_JOURNAL;
    s->config.journal_mode = JOURNAL_WRITE_THROUGH;
    play(s, sees_many);
    story_restart(s);
}

/* The block of the ring that holds this one's only copy. */
static uint8_t *
on_the_ring(struct story *s, uint8_t content)
{
    uint8_t *const ring = s->cluster.disks[s->members].live + DATA_OFFSET;
    uint8_t block[BLOCK_BYTES];

    memset(block, content, sizeof block);
    for (unsigned b = 0; b < s->ring_blocks; ++b)
        if (memcmp(ring + b * BLOCK_BYTES, block, BLOCK_BYTES) == 0)
            return ring + b * BLOCK_BYTES;
    fail_msg("the ring does not hold %02x", content);
    return NULL;
}

static uint64_t cut_moment;

/* Moments: what came before was durable; all is on the members, or would be without a power cut. */
static uint64_t trouble_begins, trouble_ends;
#define PARTS 16u

/* The oldest block, which was dropped, cannot be read back; it may be that only this once it
 * cannot. A recovery would end there, or find what parity has been made without: from then on
 * nothing may count on the log. */
static void
journal_rots(struct story *s, bool passes)
{
    uint8_t *rotten;

    caches_many(s);
    assert_int_equal(array_flush(s->array), 0);
    trouble_begins = cluster_moment(&s->cluster);
    rotten = on_the_ring(s, 1);
    rotten[77] ^= 0x40;
    assert_int_equal(story_get(s, nth(s, 0)), -EIO);
    gone[0] = true;
    if (passes)
        rotten[77] ^= 0x40;
    assert_int_equal(s->told[ARRAY_DATA_LOST], 1);
    assert_int_equal(s->told[ARRAY_JOURNAL_FAILED], 1);
    assert_int_equal(story_put(s, nth(s, many), 1, 0x99, true), -EIO);
    /* Waits until all is on the members; one is missing there. */
    assert_int_equal(array_flush(s->array), -EIO);
    assert_int_equal(cached(s), 0);
    assert_int_equal(status_of(s).write_back.lost, 1);
    sees_many(s);
    assert_int_equal(story_get(s, nth(s, 0)), -EIO);
}

static void
journal_rots_and_is_struck_off(struct story *s)
{
    journal_rots(s, false);
    assert_int_equal(array_stop(s->array), -EIO);
}

static void
journal_errs_once(struct story *s)
{
    journal_rots(s, true);
    trouble_ends = cluster_moment(&s->cluster);
}

static void
sees_many_and_resyncs(struct story *s)
{
    sees_many(s);
    assert_true(array_resync_wait(s->array));
    sees_many(s);
    assert_int_equal(array_stop(s->array), 0);
}

/* A journal that is struck off takes force: nobody is to find a loss later, without a word. */
static void
goes_on_without_what_rotted(struct story *s)
{
    story_play(s, sees_many_and_resyncs);
    if (s->started < 0) {
        s->force = FORCE_DROP_JOURNAL;
        s->config.journal_mode = JOURNAL_WRITE_THROUGH;
        play(s, sees_many_and_resyncs);
    }
    expect_parity(s);
    story_restart(s);
    with_any_left_out(s, sees_many);
}

/* A block that is read back is verified: an error is the truth, what the member holds is not. */
static void
rotten_block_is_an_error(void **state)
{
    struct story *const s = *state;

    setup_less_memory_than_ring(s);
    play(s, journal_rots_and_is_struck_off);
    expect_parity(s);
    story_restart(s);
    goes_on_without_what_rotted(s);
    assert_int_equal(s->force, FORCE_DROP_JOURNAL);
}

static void
journal_rots_with_something_stuck(struct story *s)
{
    unsigned stuck = 0;

    caches_many(s);
    on_the_ring(s, 1)[77] ^= 0x40;
    /* One stripe further nothing can be written: its parity, and one of its chunks that is not
     * cached, are gone. */
    disk_make_bad(&s->cluster.disks[s->members - 1], DATA_OFFSET / BLOCK_BYTES + 1, BAD_LATENT);
    disk_die(disk_of(s, in_row(s, 0, 3, 0)));
    assert_int_equal(story_get(s, in_row(s, 0, 3, 0)), 0);
    for (uint64_t b = 1; b < many && b < 3 * CHUNK_BLOCKS; b += CHUNK_BLOCKS)
        ++stuck;
    assert_true(stuck >= 2);
    settle_until(s, stuck);
    assert_int_equal(array_flush(s->array), -EIO);
    assert_int_equal(s->told[ARRAY_JOURNAL_FAILED], 1);
    assert_int_equal(s->told[ARRAY_DATA_LOST], 1 + stuck);
    gone[0] = true;
    sees_many(s);
    assert_int_equal(array_stop(s->array), -EIO);
    for (uint64_t b = 1; b < many && b < 3 * CHUNK_BLOCKS; b += CHUNK_BLOCKS)
        gone[b] = true;
}

/* The same where the journal rots. */
static void
rotten_journal_names_what_is_stuck(void **state)
{
    struct story *const s = *state;

    setup_less_memory_than_ring(s);
    play(s, journal_rots_with_something_stuck);
    story_restart(s);
    s->left_out = 1u << 3;
    story_play(s, sees_many);
    assert_int_equal(s->started, -ENODEV);
    s->force = FORCE_DROP_JOURNAL | FORCE_DIRTY_DEGRADED;
    s->config.journal_mode = JOURNAL_WRITE_THROUGH;
    play(s, sees_many);
    story_restart(s);
}

/* It may be readable again at the next start: parity that was made without it must not count. */
static void
error_that_passes_harms_nothing_else(void **state)
{
    struct story *const s = *state;

    for (unsigned part = 0; part <= PARTS; ++part) {
        setup_less_memory_than_ring(s);
        play(s, journal_errs_once);
        story_cut(s, trouble_begins + (trouble_ends - trouble_begins) * part / PARTS, TEAR_WRITES);
        goes_on_without_what_rotted(s);
        s->force = 0;
    }
}

static uint64_t stuck_block;

/* A block that was made durable, and then cannot be written out: parity of its stripe is
 * unreadable, and another member of it is gone. */
static void
gets_stuck(struct story *s)
{
    stuck_block = in_row(s, 0, 0, 0);
    assert_int_equal(story_put(s, stuck_block, 1, 0xdd, true), 0);
    assert_int_equal(story_put(s, in_row(s, 1, 0, 0), 1, 0xee, true), 0);
    disk_make_bad(&s->cluster.disks[s->members - 1], DATA_OFFSET / BLOCK_BYTES, BAD_LATENT);
    disk_die(disk_of(s, in_row(s, 0, 2, 0)));
    assert_int_equal(story_get(s, in_row(s, 0, 2, 1)), 0);
    settle_until(s, 1);
    loop_sleep(s->cluster.loop, SECOND);
    assert_int_equal(cached(s), 1);
    assert_true(s->told[ARRAY_WARNING] > 0);
}

static void
sees_what_was_stuck(struct story *s)
{
    story_expect(s, stuck_block, 1, 0xdd);
    story_expect(s, in_row(s, 1, 0, 0), 1, 0xee);
}

static void
journal_fails_with_something_stuck(struct story *s)
{
    gets_stuck(s);
    s->cluster.disks[s->members].faults.write_error_in = 1;
    assert_int_equal(story_put(s, in_row(s, 2, 0, 0), 1, 0x22, false), -EIO);
    assert_int_equal(array_flush(s->array), -EIO);
    assert_int_equal(s->told[ARRAY_DATA_LOST], 1);
    assert_int_equal(cached(s), 1);
    sees_what_was_stuck(s);
    assert_int_equal(array_stop(s->array), -EIO);
}

static void
sees_what_was_not_stuck(struct story *s)
{
    story_expect(s, in_row(s, 1, 0, 0), 1, 0xee);
}

/* Only the journal has it, which has failed: it is lost, and named. The rest is not in doubt. */
static void
failed_journal_names_what_is_stuck(void **state)
{
    struct story *const s = *state;

    s->member_bytes = 512 * KIB;
    setup_array(s, 5, 5, 400);
    play(s, journal_fails_with_something_stuck);
    story_restart(s);
    s->left_out = 1u << 2;
    s->force = FORCE_DROP_JOURNAL | FORCE_DIRTY_DEGRADED;
    s->config.readonly = true;
    play(s, sees_what_was_not_stuck);
    s->config.readonly = false;
    s->config.journal_mode = JOURNAL_WRITE_THROUGH;
    play(s, sees_what_was_not_stuck);
    story_restart(s);
}

static void
journal_and_members_fail(struct story *s)
{
    assert_int_equal(story_put(s, in_row(s, 0, 0, 0), 1, 0xa0, true), 0);
    write_through(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, in_row(s, 0, 1, 0), 1, 0xb1, true), 0);
    assert_int_equal(story_put(s, in_row(s, 1, 0, 0), 1, 0xc1, true), 0);
    s->cluster.disks[s->members].faults.write_error_in = 1;
    disk_die(disk_of(s, in_row(s, 0, 2, 0)));
    disk_die(disk_of(s, in_row(s, 0, 3, 0)));
    assert_int_equal(story_put(s, in_row(s, 2, 0, 0), 1, 0x22, true), -EIO);
    assert_int_equal(array_flush(s->array), -EIO);
    assert_int_equal(array_stop(s->array), -EIO);
}

static void
sees_what_they_had(struct story *s)
{
    story_expect(s, in_row(s, 0, 0, 0), 1, 0xa0);
    story_expect(s, in_row(s, 0, 1, 0), 1, 0xb1);
    story_expect(s, in_row(s, 0, 2, 0), 1, 0);
    story_expect(s, in_row(s, 0, 3, 0), 1, 0);
    story_expect(s, in_row(s, 1, 0, 0), 1, 0xc1);
}

static void
sees_it_and_stops(struct story *s)
{
    sees_what_they_had(s);
    assert_true(array_resync_wait(s->array));
    assert_int_equal(array_stop(s->array), 0);
}

/* A controller that fails takes them all, and gives them back: then the log counts, for nothing
 * else was said in any superblock. So nothing may be on the members that it does not know of. */
static void
log_counts_where_too_much_failed_to_say_otherwise(void **state)
{
    struct story *const s = *state;

    s->member_bytes = 512 * KIB;
    for (unsigned mode = JOURNAL_WRITE_THROUGH; mode <= JOURNAL_WRITE_BACK; ++mode) {
        setup_array(s, 5, 5, 400);
        play(s, journal_and_members_fail);
        story_restart(s);
        s->config.journal_mode = (enum journal_mode)mode;
        play(s, sees_it_and_stops);
        story_restart(s);
        with_any_left_out(s, sees_what_they_had);
    }
}

static void
keeps_many(struct story *s)
{
    caches_many(s);
    sees_many(s);
    assert_true(status_of(s).write_back.read_back >= 5);
    assert_int_equal(status_of(s).write_back.lost, 0);
    write_through(s);
    sees_many(s);
    assert_int_equal(array_stop(s->array), 0);
}

/* The ring's size is the cache's, not memory's. */
static void
dropped_blocks_are_read_back(void **state)
{
    struct story *const s = *state;

    setup_less_memory_than_ring(s);
    play(s, keeps_many);
    expect_parity(s);
    story_restart(s);
    with_any_left_out(s, sees_many);
}

static void
fills_a_log(struct story *s)
{
    for (unsigned b = 1; b <= 8; ++b)
        assert_int_equal(story_put(s, b, 1, (uint8_t)b, true), 0);
    cut_moment = cluster_moment(&s->cluster);
}

static void
sees_the_end_of_the_log(struct story *s)
{
    assert_int_equal(s->told[ARRAY_WARNING], 1);
    story_expect(s, 1, 1, 1);
    story_expect(s, 2, 1, 2);
    story_expect(s, 3, 1, 0);
}

/* Where an entry is torn the log ends, by its format. What may have been lost by that is told. */
static void
log_that_ends_early_is_told(void **state)
{
    struct story *const s = *state;

    setup_array(s, 5, 5, 64);
    play(s, fills_a_log);
    story_cut(s, cut_moment, TEAR_ALL);
    on_the_ring(s, 3)[77] ^= 0x40;
    play(s, sees_the_end_of_the_log);
    story_restart(s);
}

/* A ring as it is with a write that went through in its log, and moments of a start that finds it.
 */
static uint8_t *logged_ring;
static uint64_t start_begins, start_ends;

static void
logs_a_write(struct story *s)
{
    cut_moment = cluster_moment(&s->cluster);
    assert_int_equal(story_put(s, 1, 1, 0x11, true), 0);
    logged_ring = aligned_alloc(BLOCK_BYTES, s->ring_blocks * BLOCK_BYTES);
    memcpy(logged_ring, s->cluster.disks[s->members].live + DATA_OFFSET,
           s->ring_blocks * BLOCK_BYTES);
}

/* What a process that was killed has left is in the device's cache. */
static void
leaves_the_log_in_the_cache(struct story *s)
{
    assert_int_equal(device_write(&s->cluster.disks[s->members].device, logged_ring, DATA_OFFSET,
                                  s->ring_blocks * BLOCK_BYTES, false),
                     0);
    free(logged_ring);
    start_begins = cluster_moment(&s->cluster);
}

static void
has_started(struct story *s)
{
    start_ends = cluster_moment(&s->cluster);
    assert_int_equal(s->status.recovery.data_parity_stripes, 1);
}

static void
sees_a_whole_stripe(struct story *s)
{
    assert_int_equal(story_get(s, 1), 0);
    assert_true(s->memory[0] == 0x11 || s->memory[0] == 0);
    expect_parity(s);
}

/* Nothing of it may reach a member before it is durable: a power cut would take the log, and leave
 * a stripe that is half written. */
static void
start_takes_nothing_for_durable(void **state)
{
    struct story *const s = *state;
    const unsigned parts = 40;

    for (unsigned part = 0; part <= parts; ++part)
        for (unsigned tear = 0; tear < TEAR_LAST; ++tear) {
            setup_array(s, 5, 5, 64);
            s->config.journal_mode = JOURNAL_WRITE_THROUGH;
            s->random.state = 10 * part + tear;
            play(s, logs_a_write);
            story_cut(s, cut_moment, TEAR_ALL);
            s->config.readonly = true;
            play(s, leaves_the_log_in_the_cache);
            s->config.readonly = false;
            play(s, has_started);
            story_cut(s, start_begins + (start_ends - start_begins) * part / parts,
                      (enum sim_tear)tear);
            play(s, sees_a_whole_stripe);
            story_restart(s);
        }
}

/* --- What cannot be written ------------------------------------------------------------------ */

static uint64_t writer_block;
static int writer_result;

/* Not all of the block, so that the rest of it is needed. */
static void
writes_a_part(void *arg)
{
    struct story *const s = arg;
    uint8_t *const memory = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);

    memset(memory, 0x99, BLOCK_BYTES);
    writer_result = array_write(s->array, memory, writer_block * BLOCK_BYTES + SECTOR_BYTES,
                                SECTOR_BYTES, false);
    free(memory);
}

static void
writes_beside_a_hopeless_write(struct story *s)
{
    const uint64_t kept = in_row(s, 0, 1, 0), first = in_row(s, 0, 2, 0),
                   second = in_row(s, 0, 3, 0);

    fills_row(s);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), 0);
    assert_int_equal(story_put(s, kept, 1, 0x22, false), 0);
    /* Two of a stripe: nobody can say what they held. */
    disk_make_bad(disk_of(s, first), (DATA_OFFSET + place_of(s, first).member_offset) / BLOCK_BYTES,
                  BAD_LATENT);
    disk_make_bad(disk_of(s, second),
                  (DATA_OFFSET + place_of(s, second).member_offset) / BLOCK_BYTES, BAD_LATENT);
    writer_block = first;
    writer_result = 1;
    assert_non_null(task_start(s->cluster.loop, writes_a_part, s));
    /* What was cached meets that write, and needs neither of the two. */
    write_through(s);
    loop_sleep(s->cluster.loop, SECOND);
    assert_int_equal(writer_result, -EIO);
    assert_int_equal(on_member(s, kept), 0x22);
    assert_int_equal(s->told[ARRAY_WARNING], 0);
    assert_int_equal(array_stop(s->array), 0);
}

/* A write that is refused takes nothing with it that was acknowledged before. */
static void
hopeless_write_harms_nothing_cached(void **state)
{
    struct story *const s = *state;

    setup_array(s, 5, 5, 200);
    play(s, writes_beside_a_hopeless_write);
    story_restart(s);
}

/* --- When ----------------------------------------------------------------------------------- */

static void
is_left_alone(struct story *s)
{
    assert_int_equal(story_put(s, 0, 8, 0x33, false), 0);
    loop_sleep(s->cluster.loop, 20 * SECOND);
    assert_int_equal(cached(s), 8);
    /* Somebody writes, and the time begins anew. */
    assert_int_equal(story_put(s, 0, 1, 0x33, false), 0);
    loop_sleep(s->cluster.loop, 20 * SECOND);
    assert_int_equal(cached(s), 8);
    loop_sleep(s->cluster.loop, 12 * SECOND);
    assert_int_equal(cached(s), 0);
    assert_int_equal(on_member(s, 0), 0x33);
    assert_int_equal(status_of(s).journal_mode, JOURNAL_WRITE_BACK);
}

static void
quiet_array_writes_out(void **state)
{
    struct story *const s = *state;

    setup_array(s, 5, 5, 200);
    play(s, is_left_alone);
    expect_parity(s);
    story_restart(s);
}

/* Is a log that begins at the tail on record, now, the one that has this content of the block? */
static bool
log_has(struct story *s, uint64_t block, uint8_t fill)
{
    const uint8_t *const ring = s->cluster.disks[s->members].live + DATA_OFFSET;
    struct superblock sb;
    uint64_t at, seq = 0;
    bool first = true, has = false;

    assert_int_equal(superblock_decode(s->cluster.disks[s->members].live + SUPER_OFFSET, MINOR,
                                       s->cluster.disks[s->members].device.size_bytes, &sb, NULL),
                     0);
    at = sb.journal_tail_sectors * SECTOR_BYTES;
    for (uint64_t steps = 0; steps < s->ring_blocks; ++steps) {
        struct journal_entry entry;
        struct journal_cursor cursor;
        struct journal_payload payload;

        if (journal_entry_decode(ring + at, at, &s->geometry, &entry, NULL) < 0 ||
            (!first && entry.seq != seq))
            break;
        journal_cursor_init(&cursor, ring + at, &s->geometry, &entry);
        while (journal_cursor_next(&cursor, &payload))
            if (payload.type == JOURNAL_DATA && payload.location_bytes == block * BLOCK_BYTES)
                has = ring[journal_payload_position(&entry, &payload, &s->geometry, 0)] == fill;
        seq = entry.seq + 1;
        at = journal_entry_next(&entry, &s->geometry);
        first = false;
    }
    assert_false(first);
    return has;
}

static void
writes_around(struct story *s)
{
    assert_int_equal(story_put(s, 0, 1, 0x5d, true), 0);
    for (unsigned i = 0; i < 400; ++i) {
        assert_int_equal(story_put(s, 40 + i % 3, 1, (uint8_t)i, i % 5 == 0), 0);
        if (on_member(s, 0) != 0x5d)
            assert_true(log_has(s, 0, 0x5d));
    }
    assert_true(status_of(s).journal.written_bytes > 4 * s->ring_blocks * BLOCK_BYTES);
    story_expect(s, 0, 1, 0x5d);
}

/* The oldest block bounds the log until it is on its member. */
static void
tail_stays_at_a_cached_block(void **state)
{
    struct story *const s = *state;

    s->member_bytes = 256 * KIB;
    setup_array(s, 5, 3, 100);
    s->config.journal_checkpoint_bytes = BLOCK_BYTES;
    s->config.journal_checkpoint_ns = 100000;
    play(s, writes_around);
    story_restart(s);
}

static void
fills_the_index(struct story *s)
{
    const uint64_t blocks = s->status.size_bytes / BLOCK_BYTES;
    uint64_t most = 0;

    for (unsigned round = 0; round < 2; ++round)
        for (uint64_t b = 0; b < blocks; ++b) {
            const uint64_t begun_ns = loop_now_ns(s->cluster.loop);

            assert_int_equal(story_put(s, b * 37 % blocks, 1, (uint8_t)(b + round), false), 0);
            assert_true(loop_now_ns(s->cluster.loop) - begun_ns < SETTLE_NS);
            most = max_u64(most, cached(s));
        }
    assert_true(most > 0);
    assert_true(most <= status_of(s).write_back.blocks_max);
    assert_true(status_of(s).write_back.groups_written_out > 0);
    for (uint64_t b = 0; b < blocks; ++b)
        story_expect(s, b * 37 % blocks, 1, (uint8_t)(b + 1));
    assert_int_equal(array_stop(s->array), 0);
}

/* A full index is written out as a full ring is. */
static void
full_index_makes_room(void **state)
{
    struct story *const s = *state;

    s->member_bytes = MIB;
    setup_array(s, 5, 5, 400);
    s->config.cache_bytes = 16 * KIB;
    play(s, fills_the_index);
    expect_parity(s);
    story_restart(s);
}

/* As small as write-back takes, and one less. */
static uint64_t
ring_min(const struct story *s)
{
    return 4 * ((uint64_t)s->members + 8);
}

static void
fills_the_ring(struct story *s)
{
    assert_true(s->status.write_back.blocks_max > 0);
    assert_int_equal(s->status.journal_mode, JOURNAL_WRITE_BACK);
    fills_the_index(s);
}

static void
has_no_cache(struct story *s)
{
    assert_int_equal(s->status.write_back.blocks_max, 0);
    assert_int_equal(s->status.journal_mode, JOURNAL_WRITE_THROUGH);
    assert_true(s->told[ARRAY_WARNING] >= 1);
    assert_int_equal(array_set_journal_mode(s->array, JOURNAL_WRITE_BACK, &s->error), -ENOTSUP);
    assert_true(s->error.text[0] != '\0');
    assert_int_equal(story_put(s, 0, 1, 0x33, false), 0);
    assert_int_equal(on_member(s, 0), 0x33);
}

static void
smallest_ring_is_enough(void **state)
{
    struct story *const s = *state;
    const struct {
        int level;
        unsigned members;
    } arrays[] = {{5, 3}, {6, 4}, {5, 8}, {6, 8}};

    s->member_bytes = 128 * KIB;
    for (unsigned i = 0; i < ARRAY_LEN(arrays); ++i) {
        s->members = arrays[i].members;
        setup_array(s, arrays[i].level, arrays[i].members, ring_min(s));
        play(s, fills_the_ring);
        story_restart(s);
        s->members = arrays[i].members;
        setup_array(s, arrays[i].level, arrays[i].members, ring_min(s) - 1);
        play(s, has_no_cache);
        story_restart(s);
    }
}

/* --- Starts --------------------------------------------------------------------------------- */

static void
caches_eight(struct story *s)
{
    /* Half a row each: whole stripes would not be cached. */
    assert_int_equal(story_put(s, 0, 4, 0x11, false), 0);
    assert_int_equal(story_put(s, 0, 4, 0x33, false), 0);
    assert_int_equal(story_put(s, 4, 4, 0x33, false), 0);
    assert_int_equal(array_flush(s->array), 0);
    assert_int_equal(cached(s), 8);
}

static void
has_eight_cached(struct story *s)
{
    assert_int_equal(s->status.write_back.blocks, 8);
    assert_int_equal(s->status.recovery.data_only_stripes, 4);
    assert_int_equal(on_member(s, 0), 0);
    sees_eight(s);
}

static void
has_eight_written(struct story *s)
{
    assert_int_equal(s->status.write_back.blocks, 0);
    assert_int_equal(s->status.recovery.data_only_stripes, 4);
    assert_int_equal(on_member(s, 0), 0x33);
    sees_eight(s);
    expect_parity(s);
}

/* What the log holds is cached again where that is what is asked for, else written out before
 * anybody is served. The power goes at each moment of that, and again. */
static void
start_takes_over_what_was_cached(void **state)
{
    struct story *const s = *state;

    for (unsigned mode = JOURNAL_WRITE_THROUGH; mode <= JOURNAL_WRITE_BACK; ++mode) {
        uint64_t end = 1;

        for (uint64_t moment = 1; moment <= end; ++moment)
            for (unsigned tear = 0; tear < TEAR_LAST; ++tear) {
                setup_array(s, 5, 3, 64);
                s->random.state = moment;
                play(s, caches_eight);
                story_restart(s);
                s->config.journal_mode = (enum journal_mode)mode;
                play(s, mode == JOURNAL_WRITE_BACK ? has_eight_cached : has_eight_written);
                end = s->cluster.moment;
                story_cut(s, moment, (enum sim_tear)tear);
                with_any_left_out(s, sees_eight);
                s->config.journal_mode =
                    (moment & 1) != 0 ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH;
                play(s, sees_eight);
                story_restart(s);
                play(s, sees_eight);
                story_restart(s);
            }
    }
}

static unsigned rows_written, rows_wanted;

/* It goes through. */
static int
put_row(struct story *s, unsigned row)
{
    return array_write(s->array, s->memory, in_row(s, row, 0, 0) * BLOCK_BYTES,
                       (s->members - 1) * CHUNK_BYTES, false);
}

static void
writes_a_row(void *arg)
{
    struct story *const s = arg;

    assert_int_equal(put_row(s, 2 + rows_written++), 0);
    --rows_wanted;
}

static void
writes_rows_at_once(struct story *s)
{
    const uint64_t begun_ns = loop_now_ns(s->cluster.loop);

    /* The tail stays where it is as long as this is cached. */
    for (unsigned i = 0; i < 11; ++i)
        assert_int_equal(story_put(s, in_row(s, 1, 0, 0), 4 * CHUNK_BLOCKS, 0x11, false), 0);
    assert_int_equal(story_put(s, 0, 1, 0x22, false), 0);
    rows_written = 0;
    for (unsigned i = rows_wanted; i > 0; --i)
        task_start_wait(s->cluster.loop, writes_a_row, s);
    while (rows_wanted > 0) {
        loop_sleep(s->cluster.loop, SECOND / 100);
        assert_true(loop_now_ns(s->cluster.loop) - begun_ns < SECOND);
    }
    story_expect(s, 0, 1, 0x22);
    assert_int_equal(array_stop(s->array), 0);
}

/* Writes that go through, more than the log has room for, and one block that is cached: whoever has
 * to wait for it to be written out is not forgotten when others are served before. */
static void
who_waits_for_room_is_served(void **state)
{
    struct story *const s = *state;

    s->member_bytes = 2000 * KIB;
    for (unsigned rows = 60; rows <= 110; rows += 10) {
        setup_array(s, 5, 5, 1000);
        s->config.memory_bytes = 64 * MIB; /* nothing else is waited for */
        rows_wanted = rows;
        play(s, writes_rows_at_once);
        story_restart(s);
    }
}

static unsigned writers, blocks_written;

static void
writes_rows(void *arg)
{
    struct story *const s = arg;

    for (unsigned i = 0; i < 6; ++i)
        assert_int_equal(put_row(s, rows_written++ % 50), 0);
    --writers;
}

/* Those are cached. */
static void
writes_blocks(void *arg)
{
    struct story *const s = arg;

    for (unsigned i = 0; i < 16; ++i) {
        const unsigned number = blocks_written++;
        const uint64_t block = in_row(s, 60 + number / CHUNK_BLOCKS % 60, 0, number % CHUNK_BLOCKS);

        assert_int_equal(array_write(s->array, s->memory, block * BLOCK_BYTES, BLOCK_BYTES, false),
                         0);
        loop_sleep(s->cluster.loop, (20 + number * 7 % 50) * 1000);
    }
    --writers;
}

static void
resyncs_and_writes(struct story *s)
{
    const uint64_t begun_ns = loop_now_ns(s->cluster.loop);

    rows_written = blocks_written = 0;
    writers = 6;
    for (unsigned i = 0; i < 3; ++i) {
        task_start_wait(s->cluster.loop, writes_rows, s);
        task_start_wait(s->cluster.loop, writes_blocks, s);
    }
    assert_true(array_resync_wait(s->array));
    while (writers > 0)
        loop_sleep(s->cluster.loop, SECOND / 1000);
    assert_true(loop_now_ns(s->cluster.loop) - begun_ns < SECOND);
    assert_int_equal(array_stop(s->array), 0);
}

/* A resync records how far it is with nothing in the log. What is cached meanwhile would stay there
 * until it is written out, which may be never. */
static void
resync_does_not_wait_for_what_is_cached(void **state)
{
    struct story *const s = *state;

    for (unsigned seed = 1; seed <= 60; ++seed) {
        setup_dirty_array(s, 1000);
        s->cluster.latency.base_ns *= 1 + seed % 5;
        s->cluster.random.state = seed * 7919;
        s->config.memory_bytes = 2 * MIB;
        play(s, resyncs_and_writes);
        story_restart(s);
    }
}

static void
writes_rows_that_may_fail(void *arg)
{
    struct story *const s = arg;

    for (unsigned i = 0; i < 15; ++i)
        ignored(put_row(s, rows_written++ % 100));
    --writers;
}

/* The nth of the journal's. */
static void
superblock_write_fails(struct story *s, unsigned n)
{
    s->cluster.disks[s->members].faults = (struct sim_faults){
        .write_error_in = n, .error_from = SUPER_OFFSET, .error_end = SUPER_OFFSET + BLOCK_BYTES};
}

static void
recorded_tail_is_between_tail_and_head(struct story *s)
{
    const uint64_t ring = s->ring_blocks * BLOCK_BYTES;
    struct array_status status;
    struct superblock sb;
    uint64_t recorded;

    rows_written = 0;
    writers = 8;
    for (unsigned i = 0; i < 8; ++i)
        task_start_wait(s->cluster.loop, writes_rows_that_may_fail, s);
    while (writers > 0)
        loop_sleep(s->cluster.loop, SECOND / 1000);
    loop_sleep(s->cluster.loop, SECOND);
    status = status_of(s);
    assert_int_equal(superblock_decode(s->cluster.disks[s->members].live + SUPER_OFFSET, MINOR,
                                       s->cluster.disks[s->members].device.size_bytes, &sb, NULL),
                     0);
    recorded = sb.journal_tail_sectors * SECTOR_BYTES;
    assert_true((recorded + ring - status.journal.tail) % ring <=
                (status.journal.head + ring - status.journal.tail) % ring);
}

/* Whichever write of the journal's superblock fails: what it still names as the tail is not free.
 */
static void
tail_that_is_not_recorded_does_not_move(void **state)
{
    struct story *const s = *state;

    for (unsigned n = 1; n <= 40; ++n) {
        setup_dirty_array(s, 200);
        s->config.journal_mode = JOURNAL_WRITE_THROUGH;
        s->config.memory_bytes = 64 * MIB;
        s->config.journal_checkpoint_bytes = 8 * BLOCK_BYTES;
        s->cluster.random.state = n * 7919;
        superblock_write_fails(s, n);
        story_play(s, recorded_tail_is_between_tail_and_head);
        story_restart(s);
    }
}

/* Blocks that were acknowledged with FUA, and when. */
static struct {
    uint64_t block, moment;
} promised[450];
static unsigned promises, promises_wanted;

static void
promises_blocks(void *arg)
{
    struct story *const s = arg;

    while (promises_wanted < ARRAY_LEN(promised)) {
        const unsigned n = promises_wanted++;
        const uint64_t block = in_row(s, n / CHUNK_BLOCKS, n % (s->members - 1), n % CHUNK_BLOCKS);

        if (array_write(s->array, s->memory, block * BLOCK_BYTES, BLOCK_BYTES, true) < 0)
            break;
        promised[promises].block = block;
        promised[promises++].moment = cluster_moment(&s->cluster);
        loop_sleep(s->cluster.loop, n * 7 % 50 * 1000);
    }
    --writers;
}

/* The journal's superblock fails while a resync records how far it is. */
static void
journal_superblock_fails(struct story *s)
{
    memset(s->memory, 0x44, BLOCK_BYTES);
    promises = promises_wanted = 0;
    trouble_begins = 0;
    writers = 4;
    for (unsigned i = 0; i < 4; ++i)
        task_start_wait(s->cluster.loop, promises_blocks, s);
    while (writers > 0 || (s->told[ARRAY_JOURNAL_FAILED] > 0 && cached(s) > 0)) {
        if (s->told[ARRAY_JOURNAL_FAILED] > 0 && trouble_begins == 0)
            trouble_begins = cluster_moment(&s->cluster);
        loop_sleep(s->cluster.loop, 4000);
    }
    loop_sleep(s->cluster.loop, SECOND / 100);
    trouble_ends = cluster_moment(&s->cluster);
}

static void
sees_promised(struct story *s)
{
    for (unsigned i = 0; i < promises; ++i)
        if (promised[i].moment <= cut_moment)
            story_expect(s, promised[i].block, 1, 0x44);
}

/* A power cut while what is cached goes to the members, unlogged: the journal must still count. */
static void
journal_superblock_that_failed_once_is_not_left_behind(void **state)
{
    struct story *const s = *state;
    unsigned cuts = 0;

    for (unsigned n = 12; n < 16; ++n)
        for (unsigned part = 0; part < 24; ++part) {
            setup_dirty_array(s, 1000);
            s->cluster.random.state = n * 7919;
            s->config.memory_bytes = 2 * MIB;
            superblock_write_fails(s, n);
            play(s, journal_superblock_fails);
            if (trouble_begins == 0) {
                story_restart(s);
                break; /* there were fewer updates */
            }
            cut_moment = trouble_begins + (trouble_ends - trouble_begins) * part / 24;
            story_cut(s, cut_moment, TEAR_NONE);
            story_play(s, sees_promised);
            if (s->started < 0) { /* it was struck off by then */
                story_restart(s);
                s->force = FORCE_DROP_JOURNAL;
                s->config.journal_mode = JOURNAL_WRITE_THROUGH;
                play(s, sees_promised);
            }
            story_restart(s);
            ++cuts;
        }
    assert_true(cuts > 0);
}

/* Stripes with a block each: as many as the ring takes before any is written out, and when. */
static uint64_t full_of, full_moment;

static void
fills_with_single_blocks(struct story *s)
{
    for (full_of = 0; cached(s) == full_of; ++full_of) {
        const unsigned row = (unsigned)full_of / CHUNK_BLOCKS, stripe = full_of % CHUNK_BLOCKS;

        full_moment = cluster_moment(&s->cluster);
        assert_int_equal(story_put(s, in_row(s, row, 0, stripe), 1, (uint8_t)(1 + full_of), true),
                         0);
    }
    --full_of;
    assert_true(full_of > 60);
}

static void
has_single_blocks_cached(struct story *s)
{
    assert_int_equal(s->status.recovery.open_blocks, full_of);
    assert_int_equal(s->status.write_back.blocks, full_of);
    settle_until(s, 0);
    expect_parity(s);
}

/* However full the ring is: what it has set aside is room for what is logged again. */
static void
start_takes_over_a_full_ring(void **state)
{
    struct story *const s = *state;

    s->member_bytes = 512 * KIB;
    setup_array(s, 5, 5, 400);
    play(s, fills_with_single_blocks);
    story_cut(s, full_moment, TEAR_NONE);
    s->config.write_back.idle_ns = SECOND;
    play(s, has_single_blocks_cached);
    story_restart(s);
}

#define STORY(name) cmocka_unit_test_setup_teardown(name, story_setup, story_teardown)

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        STORY(delta_is_to_what_the_member_holds),
        STORY(reconstruction_takes_no_mixture),
        STORY(flush_and_fua_make_durable),
        STORY(first_degraded_moment_writes_all_out),
        STORY(failed_journal_leaves_all_on_the_members),
        STORY(dead_journal_costs_what_only_it_held),
        STORY(rotten_block_is_an_error),
        STORY(error_that_passes_harms_nothing_else),
        STORY(rotten_journal_names_what_is_stuck),
        STORY(failed_journal_names_what_is_stuck),
        STORY(log_counts_where_too_much_failed_to_say_otherwise),
        STORY(dropped_blocks_are_read_back),
        STORY(log_that_ends_early_is_told),
        STORY(start_takes_nothing_for_durable),
        STORY(hopeless_write_harms_nothing_cached),
        STORY(quiet_array_writes_out),
        STORY(tail_stays_at_a_cached_block),
        STORY(full_index_makes_room),
        STORY(smallest_ring_is_enough),
        STORY(who_waits_for_room_is_served),
        STORY(resync_does_not_wait_for_what_is_cached),
        STORY(tail_that_is_not_recorded_does_not_move),
        STORY(journal_superblock_that_failed_once_is_not_left_behind),
        STORY(start_takes_over_what_was_cached),
        STORY(start_takes_over_a_full_ring),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("sim_cache", tests, NULL, NULL);
}
