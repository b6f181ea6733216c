/*
 * Journals that random histories seldom or never meet: entries that were dropped and stand there
 * still, entries that make no sense, blocks that cannot be read, a journal that fails with
 * something acknowledged in it. A log is written by hand, block by block; an array of three members
 * is started on it, and what it does, writes and reads is looked at.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "array/array.h"
#include "format/journal_entry.h"
#include "sim_disk.h"
#include <stdio.h>
#include <stdlib.h>

#define MEMBERS      3u
#define JOURNAL      MEMBERS /* the disk */
#define CHUNK_BYTES  (16 * KIB)
#define MEMBER_BYTES (64 * KIB)
#define DATA_OFFSET  (16 * KIB)
#define RING_BLOCKS  32u
#define SEQ          UINT64_C(1000)
#define MINOR        2u
#define SUPER_OFFSET (4 * KIB)
#define AT_CHECKSUM  4 /* in a meta block */

struct story {
    struct sim_cluster cluster;
    struct sim_image image;
    struct sim_random random;
    struct superblock superblocks[MEMBERS + 1];
    struct journal_geometry geometry;
    uint8_t *memory;

    /* A run. */
    unsigned force;
    void (*run)(struct story *s);
    struct array *array;
    int started;
    bool journal_failed;
    uint8_t last; /* what was acknowledged last */
    struct error error;
    struct array_status status;
};

static int
setup(void **state)
{
    struct story *const s = calloc(1, sizeof *s);

    cluster_create(&s->cluster);
    s->cluster.trace = getenv("SIM_TRACE") != NULL;
    s->memory = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    *state = s;
    return 0;
}

static int
teardown(void **state)
{
    struct story *const s = *state;

    free(s->memory);
    image_fini(&s->image);
    cluster_destroy(&s->cluster);
    free(s);
    return 0;
}

/* --- The array ------------------------------------------------------------------------------ */

/* Zeros everywhere, so parity is good; no entry in the ring yet. */
static void
array_make(struct story *s)
{
    cluster_begin(&s->cluster, 1, MEMBERS + 1, DATA_OFFSET + MEMBER_BYTES + RING_BLOCKS * 4096);
    s->random.state = 1;
    s->force = 0;
    for (unsigned d = 0; d <= MEMBERS; ++d) {
        struct superblock *const sb = &s->superblocks[d];

        memset(s->cluster.disks[d].stable, 0, s->cluster.disks[d].device.size_bytes);
        superblock_init(sb, MINOR, MEMBERS + 1);
        memset(sb->set_uuid, 0x53, sizeof sb->set_uuid);
        superblock_set_name(sb, NULL, "story");
        sb->ctime = sb->utime = superblock_time(1700000000, 0);
        sb->feature_map |= SUPERBLOCK_FEATURE_JOURNAL;
        sb->level = 5;
        sb->layout = 2;
        sb->size_sectors = MEMBER_BYTES / SECTOR_BYTES;
        sb->chunk_sectors = CHUNK_BYTES / SECTOR_BYTES;
        sb->raid_disks = MEMBERS;
        sb->data_offset_sectors = DATA_OFFSET / SECTOR_BYTES;
        sb->super_offset_sectors = SUPER_OFFSET / SECTOR_BYTES;
        sb->data_size_sectors = (d == JOURNAL ? RING_BLOCKS * 4096 : MEMBER_BYTES) / SECTOR_BYTES;
        sb->dev_number = d;
        sb->events = 10;
        sb->resync_offset_sectors = SUPERBLOCK_RESYNC_DONE;
        memset(sb->device_uuid, (int)d + 1, sizeof sb->device_uuid);
        for (unsigned i = 0; i < MEMBERS; ++i)
            sb->dev_roles[i] = (uint16_t)i;
        sb->dev_roles[JOURNAL] = SUPERBLOCK_ROLE_JOURNAL;
    }
    journal_geometry_init(&s->geometry, &s->superblocks[JOURNAL]);
}

static uint8_t *
ring_block(struct story *s, unsigned block)
{
    return s->cluster.disks[JOURNAL].stable + DATA_OFFSET + (uint64_t)block * BLOCK_BYTES;
}

static void
array_put(struct story *s)
{
    for (unsigned d = 0; d <= MEMBERS; ++d)
        assert_true(
            superblock_encode(&s->superblocks[d], s->cluster.disks[d].stable + SUPER_OFFSET) > 0);
    cluster_load(&s->cluster);
}

static void
entry_empty(struct story *s, unsigned block, uint64_t seq)
{
    journal_entry_encode_empty(ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES,
                               s->geometry.checksum_seed);
}

/* An entry with one DATA payload, for the first block of the array. */
static void
entry_data(struct story *s, unsigned block, uint64_t seq, uint8_t fill)
{
    struct journal_writer writer;

    memset(ring_block(s, block + 1), fill, BLOCK_BYTES);
    journal_writer_init(&writer, ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES);
    journal_writer_add_data(
        &writer, 0,
        journal_checksum(s->geometry.checksum_seed, ring_block(s, block + 1), BLOCK_BYTES));
    journal_writer_finish(&writer, s->geometry.checksum_seed);
}

static void
on_event(void *owner, const struct array_event *event)
{
    struct story *const s = owner;

    cluster_trace(&s->cluster, "event %d: %s", event->kind, event->text);
    s->journal_failed = s->journal_failed || event->kind == ARRAY_JOURNAL_FAILED;
}

static void
story_main(void *arg)
{
    struct story *const s = arg;
    struct device *devices[MEMBERS + 1];
    const struct array_config config = {
        .devices = devices,
        .device_count = MEMBERS + 1,
        .force = s->force,
        .memory_bytes = MIB,
        .workers = 4,
        .event = on_event,
        .owner = s,
    };

    for (unsigned d = 0; d <= MEMBERS; ++d)
        devices[d] = &s->cluster.disks[d].device;
    s->started = array_start(s->cluster.loop, &config, &s->array, &s->error);
    if (s->started < 0)
        return;
    array_status(s->array, &s->status);
    if (s->run != NULL)
        s->run(s);
    array_destroy(s->array);
}

static void
play(struct story *s, void (*run)(struct story *s))
{
    s->run = run;
    s->journal_failed = false;
    loop_run_task(s->cluster.loop, story_main, s);
}

/* The power is cut at the end of the run; everything that was written is there. */
static void
restart(struct story *s)
{
    image_build(&s->cluster, &s->image, s->cluster.moment, TEAR_ALL, &s->random);
    image_adopt(&s->cluster, &s->image);
}

static void
refused(struct story *s, int result)
{
    play(s, NULL);
    assert_int_equal(s->started, result);
    assert_int_equal(s->cluster.writes_count, 0);
    assert_true(s->error.text[0] != '\0');
    restart(s);
}

static void
expect(struct story *s, uint8_t fill)
{
    assert_int_equal(array_read(s->array, s->memory, 0, BLOCK_BYTES), 0);
    assert_int_equal(s->memory[0], fill);
    assert_memory_equal(s->memory, s->memory + 1, BLOCK_BYTES - 1);
}

static void
sees_zeros(struct story *s)
{
    expect(s, 0);
}

static void
sees_data(struct story *s)
{
    expect(s, 0x5d);
}

static int
put(struct story *s, uint8_t fill)
{
    memset(s->memory, fill, BLOCK_BYTES);
    return array_write(s->array, s->memory, 0, BLOCK_BYTES, false);
}

static uint64_t
events_of(struct story *s, unsigned disk)
{
    struct superblock sb;

    assert_int_equal(superblock_decode(s->cluster.disks[disk].live + SUPER_OFFSET, MINOR,
                                       s->cluster.disks[disk].device.size_bytes, &sb, NULL),
                     0);
    return sb.events;
}

/* --- Stories -------------------------------------------------------------------------------- */

/* An entry got lost, an empty one; what stands behind it was whole, and was dropped with it. A log
 * that went on with the lost one's number would take it for its own at the next start. */
static void
dropped_entries_never_come_back(void **state)
{
    struct story *const s = *state;

    array_make(s);
    entry_empty(s, 0, SEQ);
    entry_data(s, 2, SEQ + 2, 0x5d);
    array_put(s);
    for (unsigned i = 0; i < 3; ++i) {
        play(s, sees_zeros);
        assert_int_equal(s->started, 0);
        restart(s);
    }
}

/* The same where the number at the end is higher than the one expected. */
static void
new_log_begins_beyond_what_stands_at_its_end(void **state)
{
    struct story *const s = *state;

    array_make(s);
    entry_empty(s, 0, SEQ);
    entry_empty(s, 1, SEQ + 50000);
    entry_data(s, 2, SEQ + 50001, 0x5d);
    array_put(s);
    for (unsigned i = 0; i < 3; ++i) {
        play(s, sees_zeros);
        assert_int_equal(s->started, 0);
        assert_true(s->status.journal.seq > SEQ + 50001);
        restart(s);
    }
}

/* A checksum that is right is nobody's tear: the start is refused, and nothing is written. */
static void
entry_that_makes_no_sense_refuses_the_start(void **state)
{
    struct story *const s = *state;
    static const struct {
        unsigned at;
        uint8_t value;
    } lies[] = {
        {12, 31},   /* meta_size: less than its header */
        {13, 0x20}, /* more than a block */
        {32, 9},    /* type */
        {34, 1},    /* flags */
        {36, 16},   /* size: two blocks in one payload */
        {40, 1},    /* location: not aligned */
        {43, 0xff}, /* far outside of the array */
        {47, 0x80}, /* farther */
    };

    for (unsigned i = 0; i < ARRAY_LEN(lies); ++i) {
        uint8_t *meta;
        uint32_t sum;

        array_make(s);
        entry_empty(s, 0, SEQ);
        entry_data(s, 1, SEQ + 1, 0x5d);
        meta = ring_block(s, 1);
        meta[lies[i].at] = lies[i].value;
        memset(meta + AT_CHECKSUM, 0, sizeof sum);
        sum = journal_checksum(s->geometry.checksum_seed, meta, BLOCK_BYTES);
        memcpy(meta + AT_CHECKSUM, &sum, sizeof sum);
        array_put(s);
        refused(s, -EBADMSG);
        assert_non_null(strstr(s->error.text, "makes no sense"));
    }
}

/* Two blocks of the log are gone for good: what they held may have been acknowledged. */
static void
unreadable_log_refuses_the_start(void **state)
{
    struct story *const s = *state;

    array_make(s);
    entry_empty(s, 0, SEQ);
    entry_data(s, 1, SEQ + 1, 0x5d);
    array_put(s);
    for (unsigned block = 0; block < 3; ++block) {
        disk_make_bad(&s->cluster.disks[JOURNAL], DATA_OFFSET / BLOCK_BYTES + block, BAD_LASTING);
        refused(s, -EIO);
        memset(s->cluster.disks[JOURNAL].bad, 0, sizeof s->cluster.disks[JOURNAL].bad);
        s->cluster.disks[JOURNAL].bad_count = 0;
    }
    /* Behind the end it is nobody's business. */
    disk_make_bad(&s->cluster.disks[JOURNAL], DATA_OFFSET / BLOCK_BYTES + 20, BAD_LASTING);
    play(s, sees_data);
    assert_int_equal(s->started, 0);
    restart(s);
}

/* Where the tail names nothing, whatever else is there: refused, and it is said what was found. */
static void
tail_without_an_entry_refuses_the_start(void **state)
{
    struct story *const s = *state;

    array_make(s);
    array_put(s);
    refused(s, -EBADMSG);
    array_make(s);
    entry_data(s, 1, SEQ + 1, 0x5d);
    array_put(s);
    refused(s, -EBADMSG);
    assert_non_null(strstr(s->error.text, "stand elsewhere"));
    array_make(s);
    s->superblocks[JOURNAL].journal_tail_sectors = RING_BLOCKS * BLOCK_SECTORS;
    entry_empty(s, 0, SEQ);
    array_put(s);
    refused(s, -EBADMSG);
}

static void
stops(struct story *s)
{
    assert_int_equal(array_stop(s->array), 0);
}

/* No copy of a device from an earlier session is ever within one of the current ones. */
static void
each_start_adds_two_events(void **state)
{
    struct story *const s = *state;

    array_make(s);
    entry_empty(s, 0, SEQ);
    array_put(s);
    for (unsigned i = 1; i <= 3; ++i) {
        play(s, stops);
        assert_int_equal(s->started, 0);
        for (unsigned d = 0; d <= MEMBERS; ++d)
            assert_int_equal(events_of(s, d), 10 + 2 * i);
        restart(s);
    }
}

static void
writes_until_the_journal_fails(struct story *s)
{
    unsigned written = 0;

    s->cluster.disks[JOURNAL].faults.write_error_in = 4;
    while (put(s, (uint8_t)(1 + written)) == 0 && written < 100) {
        assert_false(s->journal_failed); /* it would not be in the log */
        ++written;
    }
    assert_true(written > 0);
    assert_true(written < 100);
    assert_true(s->journal_failed);
    expect(s, (uint8_t)written);
    assert_int_equal(put(s, 0x99), -EIO);
    expect(s, (uint8_t)written);
    assert_int_equal(array_flush(s->array), 0);
    assert_int_equal(array_stop(s->array), -EIO);
    s->last = (uint8_t)written;
}

static void
sees_last_written(struct story *s)
{
    expect(s, s->last);
    assert_true(array_resync_wait(s->array));
}

/* It costs writes; what was acknowledged is on the members, and they say that there is none. */
static void
failed_journal_is_struck_off_and_nothing_is_lost(void **state)
{
    struct story *const s = *state;
    struct superblock sb;

    array_make(s);
    entry_empty(s, 0, SEQ);
    array_put(s);
    play(s, writes_until_the_journal_fails);
    assert_int_equal(s->started, 0);
    restart(s);
    for (unsigned d = 0; d < MEMBERS; ++d) {
        assert_int_equal(superblock_decode(s->cluster.disks[d].live + SUPER_OFFSET, MINOR,
                                           s->cluster.disks[d].device.size_bytes, &sb, NULL),
                         0);
        assert_int_equal(superblock_role_of(&sb, JOURNAL), SUPERBLOCK_ROLE_FAULTY);
        assert_true(superblock_is_clean(&sb));
        assert_true(sb.events >= events_of(s, JOURNAL) + 2);
    }
    refused(s, -ENODEV);
    s->force = FORCE_DROP_JOURNAL;
    play(s, sees_last_written);
    assert_int_equal(s->started, 0);
    restart(s);
}

/* Whole cycles of zeros, so many that the meta block is longer than a sector. Returns its blocks.
 */
static unsigned
entry_of_zeros(struct story *s, unsigned block, uint64_t seq)
{
    static const uint8_t zeros[BLOCK_BYTES];
    const uint32_t sum = journal_checksum(s->geometry.checksum_seed, zeros, BLOCK_BYTES);
    const unsigned in_chunk = CHUNK_BYTES / BLOCK_BYTES, stripes = 9;
    struct journal_writer writer;

    journal_writer_init(&writer, ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES);
    for (unsigned i = 0; i < stripes; ++i) {
        for (unsigned d = 0; d < MEMBERS - 1; ++d)
            journal_writer_add_data(&writer,
                                    (i / in_chunk * (MEMBERS - 1) + d) * CHUNK_BYTES +
                                        (uint64_t)(i % in_chunk) * BLOCK_BYTES,
                                    sum);
        journal_writer_add_parity(&writer, (uint64_t)i * BLOCK_BYTES, 1, &sum);
    }
    assert_true(writer.at_bytes > SECTOR_BYTES);
    journal_writer_finish(&writer, s->geometry.checksum_seed);
    return 1 + writer.block_count;
}

/* An empty entry took the last block of the ring, and the power went: the log ends where it begins.
 * The power goes again at each moment of the recovery. */
static void
full_ring_is_begun_anew_whatever_the_moment(void **state)
{
    struct story *const s = *state;
    uint64_t end = 1;

    for (uint64_t moment = 1; moment <= end; ++moment)
        for (unsigned tear = 0; tear < TEAR_LAST; ++tear) {
            array_make(s);
            s->random.state = moment;
            for (unsigned b = entry_of_zeros(s, 0, SEQ), seq = 1; b < RING_BLOCKS; ++b, ++seq)
                entry_empty(s, b, SEQ + seq);
            array_put(s);
            play(s, sees_zeros);
            assert_int_equal(s->started, 0);
            end = s->cluster.moment;
            image_build(&s->cluster, &s->image, moment, (enum sim_tear)tear, &s->random);
            image_adopt(&s->cluster, &s->image);
            play(s, sees_zeros);
            assert_int_equal(s->started, 0);
            restart(s);
        }
}

/* Data without parity, eight blocks of it, and room for less: it cannot be logged again behind a
 * new beginning. The old log goes on, and the power goes at each moment of that. */
static void
log_without_room_goes_on_whatever_the_moment(void **state)
{
    struct story *const s = *state;
    const unsigned blocks = 8, end_block = 23;
    uint64_t end = 1;

    for (uint64_t moment = 1; moment <= end; ++moment)
        for (unsigned tear = 0; tear < TEAR_LAST; ++tear) {
            struct journal_writer writer;

            array_make(s);
            s->random.state = moment;
            journal_writer_init(&writer, ring_block(s, 0), SEQ, 0);
            for (unsigned b = 0; b < blocks; ++b) {
                memset(ring_block(s, 1 + b), 0x5d, BLOCK_BYTES);
                journal_writer_add_data(
                    &writer, (uint64_t)b * BLOCK_BYTES,
                    journal_checksum(s->geometry.checksum_seed, ring_block(s, 1 + b), BLOCK_BYTES));
            }
            journal_writer_finish(&writer, s->geometry.checksum_seed);
            for (unsigned b = 1 + blocks; b < end_block; ++b)
                entry_empty(s, b, SEQ + b - blocks);
            /* Of an older lap, where the second entry of the log that goes on will stand, and with
             * its number: nobody may take it for that. */
            entry_data(s, end_block + 3, SEQ + end_block - blocks + 1, 0x99);
            array_put(s);
            play(s, sees_data);
            assert_int_equal(s->started, 0);
            end = s->cluster.moment;
            image_build(&s->cluster, &s->image, moment, (enum sim_tear)tear, &s->random);
            image_adopt(&s->cluster, &s->image);
            for (unsigned i = 0; i < 2; ++i) {
                play(s, sees_data);
                assert_int_equal(s->started, 0);
                restart(s);
            }
        }
}

static void
writes_while_the_flush_fails(struct story *s)
{
    s->cluster.disks[JOURNAL].faults.flush_error_in = 1;
    assert_int_equal(put(s, 0x77), -EIO);
    assert_true(s->journal_failed);
    expect(s, 0);
    assert_int_equal(array_stop(s->array), -EIO);
}

/* What the cache held may be gone, whatever a second flush says. */
static void
flush_of_the_journal_that_fails_is_the_end_of_it(void **state)
{
    struct story *const s = *state;

    array_make(s);
    entry_empty(s, 0, SEQ);
    array_put(s);
    play(s, writes_while_the_flush_fails);
    assert_int_equal(s->started, 0);
    restart(s);
}

#define STORY(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        STORY(dropped_entries_never_come_back),
        STORY(new_log_begins_beyond_what_stands_at_its_end),
        STORY(entry_that_makes_no_sense_refuses_the_start),
        STORY(unreadable_log_refuses_the_start),
        STORY(tail_without_an_entry_refuses_the_start),
        STORY(each_start_adds_two_events),
        STORY(failed_journal_is_struck_off_and_nothing_is_lost),
        STORY(full_ring_is_begun_anew_whatever_the_moment),
        STORY(log_without_room_goes_on_whatever_the_moment),
        STORY(flush_of_the_journal_that_fails_is_the_end_of_it),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("sim_journal", tests, NULL, NULL);
}
