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

#include "sim_story.h"
#include <stdio.h>
#include <stdlib.h>

#define MEMBERS     3u /* as story_setup has it; and the next */
#define RING_BLOCKS 32u
#define JOURNAL     MEMBERS /* the disk */
#define AT_CHECKSUM 4       /* in a meta block */

static void
refused(struct story *s, int result)
{
    story_play(s, NULL);
    assert_int_equal(s->started, result);
    assert_int_equal(s->cluster.writes_count, 0);
    assert_true(s->error.text[0] != '\0');
    story_restart(s);
}

static void
expect(struct story *s, uint8_t fill)
{
    story_expect(s, 0, 1, fill);
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
    return story_put(s, 0, 1, fill, false);
}

/* --- Stories -------------------------------------------------------------------------------- */

/* An entry got lost, an empty one; what stands behind it was whole, and was dropped with it. A log
 * that went on with the lost one's number would take it for its own at the next start. */
static void
dropped_entries_never_come_back(void **state)
{
    struct story *const s = *state;

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_entry_data(s, 2, SEQ + 2, 0x5d);
    story_store(s);
    for (unsigned i = 0; i < 3; ++i) {
        story_play(s, sees_zeros);
        assert_int_equal(s->started, 0);
        story_restart(s);
    }
}

/* The same where the number at the end is higher than the one expected. */
static void
new_log_begins_beyond_what_stands_at_its_end(void **state)
{
    struct story *const s = *state;

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_entry_empty(s, 1, SEQ + 50000);
    story_entry_data(s, 2, SEQ + 50001, 0x5d);
    story_store(s);
    for (unsigned i = 0; i < 3; ++i) {
        story_play(s, sees_zeros);
        assert_int_equal(s->started, 0);
        assert_true(s->status.journal.seq > SEQ + 50001);
        story_restart(s);
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

        story_make(s);
        story_entry_empty(s, 0, SEQ);
        story_entry_data(s, 1, SEQ + 1, 0x5d);
        meta = story_ring_block(s, 1);
        meta[lies[i].at] = lies[i].value;
        memset(meta + AT_CHECKSUM, 0, sizeof sum);
        sum = journal_checksum(s->geometry.checksum_seed, meta, BLOCK_BYTES);
        memcpy(meta + AT_CHECKSUM, &sum, sizeof sum);
        story_store(s);
        refused(s, -EBADMSG);
        assert_non_null(strstr(s->error.text, "makes no sense"));
    }
}

/* Two blocks of the log are gone for good: what they held may have been acknowledged. */
static void
unreadable_log_refuses_the_start(void **state)
{
    struct story *const s = *state;

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_entry_data(s, 1, SEQ + 1, 0x5d);
    story_store(s);
    for (unsigned block = 0; block < 3; ++block) {
        disk_make_bad(&s->cluster.disks[JOURNAL], DATA_OFFSET / BLOCK_BYTES + block, BAD_LASTING);
        refused(s, -EIO);
        memset(s->cluster.disks[JOURNAL].bad, 0, sizeof s->cluster.disks[JOURNAL].bad);
        s->cluster.disks[JOURNAL].bad_count = 0;
    }
    /* Behind the end it is nobody's business. */
    disk_make_bad(&s->cluster.disks[JOURNAL], DATA_OFFSET / BLOCK_BYTES + 20, BAD_LASTING);
    story_play(s, sees_data);
    assert_int_equal(s->started, 0);
    story_restart(s);
}

/* Where the tail names nothing, whatever else is there: refused, and it is said what was found. */
static void
tail_without_an_entry_refuses_the_start(void **state)
{
    struct story *const s = *state;

    story_make(s);
    story_store(s);
    refused(s, -EBADMSG);
    story_make(s);
    story_entry_data(s, 1, SEQ + 1, 0x5d);
    story_store(s);
    refused(s, -EBADMSG);
    assert_non_null(strstr(s->error.text, "stand elsewhere"));
    story_make(s);
    s->superblocks[JOURNAL].journal_tail_sectors = RING_BLOCKS * BLOCK_SECTORS;
    story_entry_empty(s, 0, SEQ);
    story_store(s);
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

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_store(s);
    for (unsigned i = 1; i <= 3; ++i) {
        story_play(s, stops);
        assert_int_equal(s->started, 0);
        for (unsigned d = 0; d <= MEMBERS; ++d)
            assert_int_equal(story_events(s, d), 10 + 2 * i);
        story_restart(s);
    }
}

static void
writes_until_the_journal_fails(struct story *s)
{
    unsigned written = 0;

    s->cluster.disks[JOURNAL].faults.write_error_in = 4;
    while (put(s, (uint8_t)(1 + written)) == 0 && written < 100) {
        assert_false(s->told[ARRAY_JOURNAL_FAILED]); /* it would not be in the log */
        ++written;
    }
    assert_true(written > 0);
    assert_true(written < 100);
    assert_true(s->told[ARRAY_JOURNAL_FAILED]);
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

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_store(s);
    story_play(s, writes_until_the_journal_fails);
    assert_int_equal(s->started, 0);
    story_restart(s);
    for (unsigned d = 0; d < MEMBERS; ++d) {
        assert_int_equal(superblock_decode(s->cluster.disks[d].live + SUPER_OFFSET, MINOR,
                                           s->cluster.disks[d].device.size_bytes, &sb, NULL),
                         0);
        assert_int_equal(superblock_role_of(&sb, JOURNAL), SUPERBLOCK_ROLE_FAULTY);
        assert_true(superblock_is_clean(&sb));
        assert_true(sb.events >= story_events(s, JOURNAL) + 2);
    }
    refused(s, -ENODEV);
    s->force = FORCE_DROP_JOURNAL;
    story_play(s, sees_last_written);
    assert_int_equal(s->started, 0);
    story_restart(s);
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

    journal_writer_init(&writer, story_ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES);
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
            story_make(s);
            s->random.state = moment;
            for (unsigned b = entry_of_zeros(s, 0, SEQ), seq = 1; b < RING_BLOCKS; ++b, ++seq)
                story_entry_empty(s, b, SEQ + seq);
            story_store(s);
            story_play(s, sees_zeros);
            assert_int_equal(s->started, 0);
            end = s->cluster.moment;
            story_cut(s, moment, (enum sim_tear)tear);
            story_play(s, sees_zeros);
            assert_int_equal(s->started, 0);
            story_restart(s);
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

            story_make(s);
            s->random.state = moment;
            journal_writer_init(&writer, story_ring_block(s, 0), SEQ, 0);
            for (unsigned b = 0; b < blocks; ++b) {
                memset(story_ring_block(s, 1 + b), 0x5d, BLOCK_BYTES);
                journal_writer_add_data(&writer, (uint64_t)b * BLOCK_BYTES,
                                        journal_checksum(s->geometry.checksum_seed,
                                                         story_ring_block(s, 1 + b), BLOCK_BYTES));
            }
            journal_writer_finish(&writer, s->geometry.checksum_seed);
            for (unsigned b = 1 + blocks; b < end_block; ++b)
                story_entry_empty(s, b, SEQ + b - blocks);
            /* Of an older lap, where the second entry of the log that goes on will stand, and with
             * its number: nobody may take it for that. */
            story_entry_data(s, end_block + 4, SEQ + end_block - blocks + 1, 0x99);
            story_store(s);
            story_play(s, sees_data);
            assert_int_equal(s->started, 0);
            end = s->cluster.moment;
            story_cut(s, moment, (enum sim_tear)tear);
            for (unsigned i = 0; i < 2; ++i) {
                story_play(s, sees_data);
                assert_int_equal(s->started, 0);
                story_restart(s);
            }
        }
}

static void
writes_while_the_flush_fails(struct story *s)
{
    s->cluster.disks[JOURNAL].faults.flush_error_in = 1;
    assert_int_equal(put(s, 0x77), -EIO);
    assert_true(s->told[ARRAY_JOURNAL_FAILED]);
    expect(s, 0);
    assert_int_equal(array_stop(s->array), -EIO);
}

/* What the cache held may be gone, whatever a second flush says. */
static void
flush_of_the_journal_that_fails_is_the_end_of_it(void **state)
{
    struct story *const s = *state;

    story_make(s);
    story_entry_empty(s, 0, SEQ);
    story_store(s);
    story_play(s, writes_while_the_flush_fails);
    assert_int_equal(s->started, 0);
    story_restart(s);
}

#define STORY(name) cmocka_unit_test_setup_teardown(name, story_setup, story_teardown)

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
