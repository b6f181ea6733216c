/*
 * test_journal_scan.c: how far a log is valid, and what is in it.
 *
 *      test_journal_scan DIRECTORY
 *
 * Journals that the kernel left are in the DIRECTORY, each with what is known of its log beside it.
 * The others are written here, entry by entry, and then damaged. The device is memory.
 */
#include "journal/scan.h"
#include "format/journal_entry.h"
#include "memory_device.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define DATA_OFFSET (64 * KIB)
#define RING        (256 * KIB)
#define SEQ         1000000u

static const char *directory;

/* ---- A journal ---- */

struct world {
    struct memory_device memory;
    struct superblock superblock;
    struct journal_geometry geometry;
    struct journal_scan scan;
    struct error error;
    int result;
    bool unreadable_is_end;
    /* What the scan, or the survey, told. */
    unsigned told;
    struct told {
        uint64_t seq, position;
        bool valid;
        unsigned bad_blocks, bad_first;
    } entries[64];
    unsigned progress_calls;
    uint64_t progress_last;
    /* Where the next entry goes. */
    uint64_t head, seq;
};

static char device_name[] = "journal";

/* An empty ring of a 4-member RAID-5 (level 6: RAID-6), the tail at `tail`. */
static struct world *
world_make(int level, uint64_t tail)
{
    struct world *w = calloc(1, sizeof *w);
    struct superblock *sb;
    uint8_t *bytes = calloc(1, DATA_OFFSET + RING);

    assert_non_null(w);
    assert_non_null(bytes);
    memory_device_open(&w->memory, device_name, bytes, DATA_OFFSET + RING);
    sb = &w->superblock;
    superblock_init(sb, 2, 5);
    memset(sb->set_uuid, 0x5a, sizeof sb->set_uuid);
    sb->level = level;
    sb->layout = 2;
    sb->raid_disks = 4;
    sb->chunk_sectors = 128;
    sb->size_sectors = 8192;
    sb->data_offset_sectors = DATA_OFFSET / SECTOR_BYTES;
    sb->data_size_sectors = RING / SECTOR_BYTES;
    sb->journal_tail_sectors = tail / SECTOR_BYTES;
    journal_geometry_init(&w->geometry, sb);
    w->head = tail;
    w->seq = SEQ;
    return w;
}

static void
world_free(struct world *w)
{
    memory_device_close(&w->memory);
    free(w);
}

static uint8_t *
at(struct world *w, uint64_t position)
{
    return w->memory.bytes + DATA_OFFSET + position % RING;
}

/* An entry with this many DATA payloads and PARITY payloads, at the head. Its position. */
static uint64_t
append(struct world *w, unsigned data, unsigned parity)
{
    const uint64_t position = w->head;
    const unsigned parities = w->geometry.parity_count;
    struct journal_writer writer;
    uint64_t block = journal_ring_add(&w->geometry, position, BLOCK_BYTES);
    uint32_t checksums[2];

    journal_writer_init(&writer, at(w, position), w->seq, position);
    for (unsigned i = 0; i < data + parity * parities; i++) {
        memset(at(w, block), (int)(w->seq + i), BLOCK_BYTES);
        checksums[i % 2] = journal_checksum(w->geometry.checksum_seed, at(w, block), BLOCK_BYTES);
        if (i < data)
            journal_writer_add_data(&writer, (uint64_t)i * BLOCK_BYTES, checksums[i % 2]);
        else if (parities == 1)
            journal_writer_add_parity(&writer, (uint64_t)i * BLOCK_BYTES, 1, &checksums[i % 2]);
        else if ((i - data) % 2 == 1) {
            const uint32_t pair[2] = {checksums[(i + 1) % 2], checksums[i % 2]};

            journal_writer_add_parity(&writer, (uint64_t)i * BLOCK_BYTES, 2, pair);
        }
        block = journal_ring_add(&w->geometry, block, BLOCK_BYTES);
    }
    journal_writer_finish(&writer, w->geometry.checksum_seed);
    w->head = block;
    w->seq++;
    return position;
}

/* After an edit of a meta block. */
static void
mend_checksum(struct world *w, uint64_t position)
{
    uint8_t *meta = at(w, position);

    store_le32(meta + 4, 0);
    store_le32(meta + 4, journal_checksum(w->geometry.checksum_seed, meta, BLOCK_BYTES));
}

static void
note_entry(void *owner, const struct journal_seen *seen)
{
    struct world *w = owner;
    struct told *told = &w->entries[w->told % ARRAY_LEN(w->entries)];

    *told = (struct told){
        .seq = seen->entry->seq, .position = seen->entry->position_bytes, .valid = seen->valid};
    for (unsigned b = 0; b < seen->entry->block_count; b++)
        if (!seen->block_good[b] && told->bad_blocks++ == 0)
            told->bad_first = b;
    w->told++;
}

static void
note_progress(void *owner, uint64_t done_bytes, uint64_t ring_bytes)
{
    struct world *w = owner;

    assert_true(done_bytes > w->progress_last);
    assert_true(done_bytes <= ring_bytes);
    w->progress_last = done_bytes;
    w->progress_calls++;
}

static task_fn void
scan_task(void *arg)
{
    struct world *w = arg;
    const struct journal_scan_config config = {.device = &w->memory.device,
                                               .journal = &w->superblock,
                                               .unreadable_is_end = w->unreadable_is_end,
                                               .entry = note_entry,
                                               .progress = note_progress,
                                               .owner = w};

    w->told = w->progress_calls = 0;
    w->progress_last = 0;
    w->result = journal_scan(&config, &w->scan, &w->error);
}

static void
expect(struct world *w, int result)
{
    w->error = (struct error){0};
    loop_run_task(w->memory.device.loop, scan_task, w);
    if (w->result != result)
        fail_msg("%d, not %d: %s", w->result, result, w->error.text);
    if (result < 0)
        assert_true(w->error.text[0] != '\0');
}

static void
expect_log(struct world *w, uint64_t entries, enum journal_end end)
{
    expect(w, 0);
    assert_int_equal(w->scan.entries, entries);
    assert_int_equal(w->scan.seq_first, SEQ);
    assert_int_equal(w->scan.seq_next, SEQ + entries);
    assert_int_equal(w->scan.end, end);
}

static void
expect_text(struct world *w, const char *part)
{
    if (!strstr(w->error.text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, w->error.text);
}

/* ---- What the kernel left ---- */

static uint64_t
integer(const json_t *json, const char *key)
{
    const json_t *value = json_object_get(json, key);

    /* As reals, since MAX is no JSON integer; these are far below where that matters. */
    if (!json_is_real(value))
        fail_msg("%s is no number", key);
    return (uint64_t)json_real_value(value);
}

static void
scan_kernel_journal(const char *name, int level)
{
    char path[4200], command[4400];
    struct world *w = calloc(1, sizeof *w);
    const size_t room = 80 * MIB;
    uint8_t *bytes = malloc(room);
    json_error_t json_error;
    json_t *json, *log;
    size_t got, total = 0;
    FILE *pipe;

    assert_non_null(w);
    assert_non_null(bytes);
    (void)snprintf(path, sizeof path, "%s/%s.json", directory, name);
    json = json_load_file(path, JSON_DECODE_INT_AS_REAL, &json_error);
    if (!json)
        fail_msg("%s: %s", path, json_error.text);
    log = json_object_get(json, "journal_log");
    (void)snprintf(command, sizeof command, "tar -xJOf '%s/%s.tar.xz' journal.img", directory,
                   name);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    while ((got = fread(bytes + total, 1, room - total, pipe)) > 0)
        total += got;
    assert_int_equal(pclose(pipe), 0);
    assert_true(total > 0 && total < room);

    memory_device_open(&w->memory, device_name, bytes, total);
    {
        struct format_error why = {""};

        if (superblock_decode(bytes + 4096, 2, total, &w->superblock, &why) != 0)
            fail_msg("%s: %s", name, why.text);
    }
    expect(w, 0);
    assert_int_equal(w->scan.tail_bytes, integer(log, "tail_sector") * SECTOR_BYTES);
    assert_int_equal(w->scan.end_bytes, integer(log, "end_sector") * SECTOR_BYTES);
    assert_int_equal(w->scan.ring_bytes, integer(log, "sectors") * SECTOR_BYTES);
    assert_int_equal(w->scan.seq_first, integer(log, "first_seq"));
    assert_int_equal(w->scan.seq_next, integer(log, "last_seq") + 1);
    assert_int_equal(w->scan.entries, integer(log, "meta_blocks"));
    assert_int_equal(w->scan.data_blocks, integer(log, "data_blocks"));
    assert_int_equal(w->scan.parity_stripes * (level == 6 ? 2 : 1), integer(log, "parity_blocks"));
    assert_int_equal(w->scan.flush_stripes, integer(log, "flush_payloads"));
    json_decref(json);
    world_free(w);
}

static void
logs_of_the_kernel_are_counted_as_they_are(void **state)
{
    static const char *const names[] = {"raid4-clean",
                                        "raid4-wb-dirty",
                                        "raid5-clean",
                                        "raid5-degraded-clean",
                                        "raid5-wb-dirty",
                                        "raid5-wb-dirty-degraded",
                                        "raid5-wb-load",
                                        "raid5-wb-lossy-journal",
                                        "raid5-wb-lossy",
                                        "raid5-wb-wrapped",
                                        "raid5-wt-dirty-degraded",
                                        "raid5-wt-dirty",
                                        "raid5-wt-lossy",
                                        "raid6-clean",
                                        "raid6-wb-dirty",
                                        "raid6-wt-dirty"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        scan_kernel_journal(names[i], names[i][4] - '0');
}

/* ---- Logs of our own ---- */

static void
an_empty_log_has_one_entry(void **state)
{
    struct world *w = world_make(5, 0);

    append(w, 0, 0);
    expect_log(w, 1, JOURNAL_END_NO_ENTRY);
    assert_int_equal(w->scan.data_blocks, 0);
    assert_int_equal(w->scan.end_bytes, BLOCK_BYTES);
    world_free(w);
}

static void
data_parity_and_their_first_place_are_counted(void **state)
{
    for (int level = 5; level <= 6; level++) {
        struct world *w = world_make(level, 0);
        uint64_t first;

        append(w, 0, 0);
        append(w, 0, 3);
        first = append(w, 2, 1);
        append(w, 3, 0);
        expect_log(w, 4, JOURNAL_END_NO_ENTRY);
        assert_int_equal(w->scan.data_blocks, 5);
        assert_int_equal(w->scan.parity_stripes, 4);
        assert_int_equal(w->scan.data_first_bytes, first);
        assert_int_equal(w->scan.data_first_seq, SEQ + 2);
        assert_int_equal(w->scan.end_bytes, w->head);
        world_free(w);
    }
}

/* From every block of the ring on, so that meta blocks, data and parity all stand across its end
 * once. */
static void
a_log_may_cross_the_end_of_the_ring(void **state)
{
    for (uint64_t tail = 0; tail < RING; tail += BLOCK_BYTES) {
        struct world *w = world_make(6, tail);

        append(w, 0, 0);
        for (unsigned i = 0; i < 6; i++)
            append(w, 3, 2);
        expect_log(w, 7, JOURNAL_END_NO_ENTRY);
        assert_int_equal(w->scan.data_blocks, 18);
        assert_int_equal(w->scan.end_bytes, w->head);
        world_free(w);
    }
}

static void
a_full_ring_ends_where_it_began(void **state)
{
    struct world *w = world_make(5, 5 * BLOCK_BYTES);

    for (unsigned i = 0; i < RING / BLOCK_BYTES / 4; i++)
        append(w, 2, 1);
    assert_int_equal(w->head, 5 * BLOCK_BYTES);
    expect_log(w, RING / BLOCK_BYTES / 4, JOURNAL_END_RING);
    /* K3. */
    assert_true(w->memory.bytes_read <= 3 * RING);
    world_free(w);
}

/* A hostile entry: all that it names is there, and some of it is the log's own beginning. */
static void
an_entry_does_not_reach_over_the_tail(void **state)
{
    struct world *w = world_make(5, 0);
    uint8_t *beginning = malloc(9 * BLOCK_BYTES);
    uint64_t entries = 0;

    assert_non_null(beginning);
    for (; w->head + 2 * BLOCK_BYTES < RING; entries++)
        append(w, 1, 0);
    memcpy(beginning, at(w, 0), 9 * BLOCK_BYTES);
    append(w, 9, 0);
    memcpy(at(w, 0), beginning, 9 * BLOCK_BYTES);
    expect_log(w, entries, JOURNAL_END_RING);
    free(beginning);
    world_free(w);
}

/* ---- Where the log ends ---- */

/* Any one block of the last entry is not what it should be: the entry does not count. */
static void
a_torn_entry_ends_the_log(void **state)
{
    for (unsigned block = 0; block < 6; block++)
        for (unsigned sector = 0; sector < 8; sector++) {
            struct world *w = world_make(5, 0);
            uint64_t last;

            append(w, 0, 0);
            append(w, 1, 1);
            last = append(w, 4, 1);
            append(w, 7, 0);
            at(w, last + (uint64_t)block * BLOCK_BYTES)[sector * SECTOR_BYTES + 3] ^= 0x10;
            /* The very first sector has the magic number: without it, it is no meta block. */
            expect_log(w, 2,
                       block > 0    ? JOURNAL_END_TORN
                       : sector > 0 ? JOURNAL_END_TORN_META
                                    : JOURNAL_END_NO_ENTRY);
            assert_int_equal(w->scan.data_blocks, 1);
            assert_int_equal(w->scan.end_bytes, last);
            assert_int_equal(w->scan.torn_block, block > 0 ? block - 1 : 0);
            assert_int_equal(w->scan.torn_follows, block > 0 ? 1 : 0);
            assert_int_equal(w->scan.end_has_seq, block > 0);
            if (block > 0)
                assert_int_equal(w->scan.end_seq, SEQ + 2);
            assert_int_equal(w->scan.end_cause.text[0] != '\0', block == 0);
            world_free(w);
        }
}

static void
an_entry_of_an_older_log_ends_the_log(void **state)
{
    static const int64_t jumps[] = {-1, 1, 10000, -100000};

    for (size_t i = 0; i < ARRAY_LEN(jumps); i++) {
        struct world *w = world_make(5, 0);

        append(w, 1, 1);
        w->seq += (uint64_t)jumps[i];
        append(w, 3, 0);
        expect_log(w, 1, JOURNAL_END_OLD_ENTRY);
        assert_int_equal(w->scan.data_blocks, 1);
        world_free(w);
    }
}

/* Intact and with the right number, but of another place. */
static void
an_entry_that_stood_elsewhere_ends_the_log(void **state)
{
    struct world *w = world_make(5, 0);
    uint64_t copy;

    append(w, 0, 0);
    copy = w->head;
    append(w, 1, 0);
    memmove(at(w, copy + 8 * BLOCK_BYTES), at(w, copy), 2 * BLOCK_BYTES);
    memset(at(w, copy), 0, 2 * BLOCK_BYTES);
    memmove(at(w, copy), at(w, copy + 8 * BLOCK_BYTES), 2 * BLOCK_BYTES);
    store_le64(at(w, copy) + 24, copy / SECTOR_BYTES + 8);
    mend_checksum(w, copy);
    expect_log(w, 1, JOURNAL_END_NO_ENTRY);
    world_free(w);
}

/* ---- What is refused ---- */

static void
a_tail_outside_of_the_ring_is_refused(void **state)
{
    static const uint64_t tails[] = {1, 7, RING / 512, RING / 512 + 8, UINT64_MAX - 7, UINT64_MAX};

    for (size_t i = 0; i < ARRAY_LEN(tails); i++) {
        struct world *w = world_make(5, 0);

        append(w, 0, 0);
        w->superblock.journal_tail_sectors = tails[i];
        expect(w, -EBADMSG);
        expect_text(w, "tail");
        world_free(w);
    }
}

static void
no_entry_at_the_tail_is_refused(void **state)
{
    struct world *w = world_make(5, 0);

    expect(w, -EBADMSG);
    expect_text(w, "no journal entry at the tail");
    append(w, 3, 0);
    at(w, BLOCK_BYTES)[100] ^= 1;
    expect(w, -EBADMSG);
    expect_text(w, "not whole");
    world_free(w);
}

/* Good checksum, right number, and nonsense: that is no torn write. */
static void
an_entry_that_makes_no_sense_is_refused(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
    } edits[] = {
        {12, 4, 31},         {12, 4, 4097}, {12, 4, UINT32_MAX}, {12, 4, 40},
        {32, 2, 9},          {34, 2, 1},    {36, 4, 0},          {36, 4, 16},
        {36, 4, UINT32_MAX}, {40, 8, 1},    {40, 8, UINT64_MAX}, {40, 8, 3 * 8192},
    };

    for (size_t i = 0; i < ARRAY_LEN(edits); i++)
        for (unsigned first = 0; first < 2; first++) {
            struct world *w = world_make(5, 0);
            uint64_t position;

            if (!first)
                append(w, 0, 0);
            position = append(w, 2, 1);
            for (unsigned b = 0; b < edits[i].bytes; b++)
                at(w, position)[edits[i].at + b] = (uint8_t)(edits[i].value >> (8 * b));
            mend_checksum(w, position);
            expect(w, -EBADMSG);
            expect_text(w, "makes no sense");
            world_free(w);
        }
}

/* The same nonsense under a number that is not expected is an old one's. */
static void
nonsense_of_an_older_log_ends_the_log(void **state)
{
    struct world *w = world_make(5, 0);
    uint64_t position;

    append(w, 1, 0);
    w->seq += 5;
    position = append(w, 2, 1);
    store_le32(at(w, position) + 36, 99);
    mend_checksum(w, position);
    expect_log(w, 1, JOURNAL_END_OLD_ENTRY);
    world_free(w);
}

static void
a_read_error_is_not_the_end(void **state)
{
    for (uint64_t block = 0; block < 8; block++) {
        struct world *w = world_make(5, 0);

        append(w, 0, 0);
        append(w, 3, 1);
        append(w, 1, 0);
        w->memory.bad_from = DATA_OFFSET + block * BLOCK_BYTES;
        w->memory.bad_to = w->memory.bad_from + 1;
        expect(w, -EIO);
        world_free(w);
    }
}

static void
a_read_error_behind_the_end_harms_nobody(void **state)
{
    struct world *w = world_make(5, 0);

    append(w, 0, 0);
    append(w, 3, 1);
    w->memory.bad_from = DATA_OFFSET + w->head + BLOCK_BYTES;
    w->memory.bad_to = w->memory.bad_from + 1;
    expect_log(w, 2, JOURNAL_END_NO_ENTRY);
    world_free(w);
}

/* Also behind an entry that is torn: the count of what would follow ends there, and no more. */
static void
a_read_error_behind_a_torn_entry_harms_nobody(void **state)
{
    struct world *w = world_make(5, 0);
    uint64_t torn, follows;

    append(w, 0, 0);
    torn = append(w, 2, 1);
    append(w, 1, 0);
    follows = append(w, 1, 0);
    at(w, torn + BLOCK_BYTES)[7] ^= 1;
    for (uint64_t block = 0; block < 2; block++) {
        w->memory.bad_from = DATA_OFFSET + follows + block * BLOCK_BYTES;
        w->memory.bad_to = w->memory.bad_from + 1;
        expect_log(w, 1, JOURNAL_END_TORN);
        assert_int_equal(w->scan.torn_follows, 1);
        assert_int_equal(w->scan.unreadable_bytes, 0);
        assert_string_equal(w->error.text, "");
    }
    world_free(w);
}

/* By option: what stands before the block that cannot be read is the log. */
static void
an_unreadable_block_is_the_end_if_asked(void **state)
{
    static const struct {
        uint64_t block;
        unsigned entries;
    } cases[] = {{1, 1}, {2, 1}, {5, 1}, {6, 2}, {7, 2}, {8, 3}};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct world *w = world_make(5, 0);

        append(w, 0, 0);
        append(w, 3, 1);
        append(w, 1, 0);
        w->memory.bad_from = DATA_OFFSET + cases[i].block * BLOCK_BYTES;
        w->memory.bad_to = w->memory.bad_from + 1;
        w->unreadable_is_end = true;
        expect_log(w, cases[i].entries, JOURNAL_END_UNREADABLE);
        assert_int_equal(w->scan.unreadable_bytes, cases[i].block * BLOCK_BYTES);
        assert_int_equal(w->told, cases[i].entries);
        world_free(w);
    }
}

/* There would be no log left: nothing that the option may decide. */
static void
an_unreadable_tail_is_refused_also_if_asked(void **state)
{
    struct world *w = world_make(5, 0);

    append(w, 2, 1);
    append(w, 0, 0);
    w->unreadable_is_end = true;
    for (uint64_t block = 0; block < 4; block++) {
        w->memory.bad_from = DATA_OFFSET + block * BLOCK_BYTES;
        w->memory.bad_to = w->memory.bad_from + 1;
        expect(w, -EIO);
        assert_int_equal(w->scan.unreadable_bytes, block * BLOCK_BYTES);
    }
    world_free(w);
}

/* ---- What is told ---- */

static void
every_entry_is_told_and_the_torn_one_with_its_bad_blocks(void **state)
{
    struct world *w = world_make(6, RING - 3 * BLOCK_BYTES);
    uint64_t positions[6];

    positions[0] = append(w, 0, 0);
    positions[1] = append(w, 2, 1);
    positions[2] = append(w, 4, 1);
    positions[3] = append(w, 1, 0);
    positions[4] = append(w, 1, 1);
    positions[5] = append(w, 3, 0);
    at(w, positions[2] + 3 * BLOCK_BYTES)[9] ^= 1; /* its block 2 */
    at(w, positions[2] + 5 * BLOCK_BYTES)[9] ^= 1; /* and 4 */
    at(w, positions[5] + 1 * BLOCK_BYTES)[9] ^= 1; /* ends the count of those that would follow */
    expect_log(w, 2, JOURNAL_END_TORN);
    assert_int_equal(w->scan.torn_block, 2);
    assert_int_equal(w->scan.torn_follows, 2);
    assert_int_equal(w->told, 5);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(w->entries[i].seq, SEQ + i);
        assert_int_equal(w->entries[i].position, positions[i]);
        assert_int_equal(w->entries[i].valid, i < 2);
        assert_int_equal(w->entries[i].bad_blocks, i == 2 ? 2 : 0);
    }
    assert_int_equal(w->entries[2].bad_first, 2);
    world_free(w);
}

/* ---- The survey ---- */

static void
note_found(void *owner, const struct journal_entry *entry)
{
    struct world *w = owner;

    w->entries[w->told++ % ARRAY_LEN(w->entries)] =
        (struct told){.seq = entry->seq, .position = entry->position_bytes};
}

static task_fn void
survey_task(void *arg)
{
    struct world *w = arg;

    w->told = 0;
    w->result = journal_survey(&w->memory.device, &w->superblock, note_found, w);
}

static void
expect_survey(struct world *w, int result, unsigned count)
{
    loop_run_task(w->memory.device.loop, survey_task, w);
    assert_int_equal(w->result, result);
    assert_int_equal(w->told, count);
}

static void
a_survey_finds_entries_wherever_they_stand(void **state)
{
    struct world *w = world_make(5, 0);
    uint64_t first, second;

    expect_survey(w, 0, 0);
    w->head = 5 * BLOCK_BYTES;
    first = append(w, 2, 1);
    w->head = RING - BLOCK_BYTES;
    w->seq = 7;
    second = append(w, 1, 0); /* its block is the ring's first */
    expect(w, -EBADMSG);      /* the tail stands on it */
    expect_survey(w, 0, 2);
    assert_int_equal(w->entries[0].position, first);
    assert_int_equal(w->entries[0].seq, SEQ);
    assert_int_equal(w->entries[1].position, second);
    assert_int_equal(w->entries[1].seq, 7);
    /* One that does not parse is found all the same; one of another array is not. */
    store_le32(at(w, first) + 36, 99);
    mend_checksum(w, first);
    expect_survey(w, 0, 2);
    at(w, second)[4] ^= 1;
    expect_survey(w, 0, 1);
    world_free(w);
}

static void
a_survey_passes_over_what_cannot_be_read(void **state)
{
    struct world *w = world_make(5, 0);

    append(w, 0, 0);
    append(w, 1, 0);
    append(w, 1, 0);
    w->memory.bad_from = DATA_OFFSET + BLOCK_BYTES;
    w->memory.bad_to = w->memory.bad_from + 1;
    expect_survey(w, -EIO, 2);
    assert_int_equal(w->entries[0].seq, SEQ);
    assert_int_equal(w->entries[1].seq, SEQ + 2);
    world_free(w);
}

static void
a_journal_that_begins_inside_a_block_is_not_supported(void **state)
{
    struct world *w = world_make(5, 0);

    append(w, 0, 0);
    w->superblock.data_offset_sectors++;
    expect(w, -ENOTSUP);
    world_free(w);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logs_of_the_kernel_are_counted_as_they_are),
        cmocka_unit_test(an_empty_log_has_one_entry),
        cmocka_unit_test(data_parity_and_their_first_place_are_counted),
        cmocka_unit_test(a_log_may_cross_the_end_of_the_ring),
        cmocka_unit_test(a_full_ring_ends_where_it_began),
        cmocka_unit_test(an_entry_does_not_reach_over_the_tail),
        cmocka_unit_test(a_torn_entry_ends_the_log),
        cmocka_unit_test(an_entry_of_an_older_log_ends_the_log),
        cmocka_unit_test(an_entry_that_stood_elsewhere_ends_the_log),
        cmocka_unit_test(a_tail_outside_of_the_ring_is_refused),
        cmocka_unit_test(no_entry_at_the_tail_is_refused),
        cmocka_unit_test(an_entry_that_makes_no_sense_is_refused),
        cmocka_unit_test(nonsense_of_an_older_log_ends_the_log),
        cmocka_unit_test(a_read_error_is_not_the_end),
        cmocka_unit_test(a_read_error_behind_the_end_harms_nobody),
        cmocka_unit_test(a_read_error_behind_a_torn_entry_harms_nobody),
        cmocka_unit_test(an_unreadable_block_is_the_end_if_asked),
        cmocka_unit_test(an_unreadable_tail_is_refused_also_if_asked),
        cmocka_unit_test(every_entry_is_told_and_the_torn_one_with_its_bad_blocks),
        cmocka_unit_test(a_survey_finds_entries_wherever_they_stand),
        cmocka_unit_test(a_survey_passes_over_what_cannot_be_read),
        cmocka_unit_test(a_journal_that_begins_inside_a_block_is_not_supported),
    };

    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 2;
    }
    directory = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
