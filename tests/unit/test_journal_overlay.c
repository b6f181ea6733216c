/*
 * test_journal_overlay.c: a member as a finished replay would leave it.
 *
 * Members and journal are stretches of one memory device, since a device of the test has a loop of
 * its own. The log has a complete cycle for some stripes, an open one for others, and both for one.
 */
#include "journal/overlay.h"
#include "memory_device.h"

#include <stdio.h>

#define MEMBERS        4u
#define STRIPES        32u
#define MEMBER_BYTES   (STRIPES * (uint64_t)BLOCK_BYTES)
#define DATA_OFFSET    (2 * (uint64_t)BLOCK_BYTES) /* of the member on its device */
#define JOURNAL_OFFSET (DATA_OFFSET + MEMBER_BYTES + BLOCK_BYTES)
#define RING           (32 * (uint64_t)BLOCK_BYTES)
#define SIZE           (JOURNAL_OFFSET + RING)
#define SEED           0x77u

/* The member that is looked at; in every row of left-symmetric it is data or parity by turns. */
#define MEMBER 1u

struct world {
    struct memory_device memory;
    struct geometry geometry;
    struct journal_geometry journal;
    struct journal_records records;
    struct overlay_source source;
    struct device *overlay;
    uint64_t head, seq;
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    uint64_t entry_at;
    /* What the task is to do. */
    uint64_t offset, length;
    uint8_t *target;
    int result;
};

static char device_name[] = "member and journal";

static uint8_t *
ring_at(struct world *w, uint64_t position)
{
    return w->memory.bytes + JOURNAL_OFFSET + position;
}

/* The next block of the open entry, filled with this; its checksum. */
static uint32_t
block_fill(struct world *w, int fill)
{
    const uint64_t position = journal_ring_add(&w->journal, w->entry_at,
                                               (1 + (uint64_t)w->writer.block_count) * BLOCK_BYTES);

    memset(ring_at(w, position), fill, BLOCK_BYTES);
    return journal_checksum(SEED, ring_at(w, position), BLOCK_BYTES);
}

static void
entry_begin(struct world *w)
{
    w->entry_at = w->head;
    journal_writer_init(&w->writer, w->meta, w->seq++, w->entry_at);
}

static void
entry_end(struct world *w)
{
    struct journal_entry entry;

    journal_writer_finish(&w->writer, SEED);
    assert_int_equal(journal_entry_decode(w->meta, w->entry_at, &w->journal, &entry, NULL), 0);
    records_add_entry(&w->records, w->meta, &entry);
    w->head = journal_entry_next(&entry, &w->journal);
}

static bool
is_parity(const struct world *w, unsigned member, uint64_t stripe)
{
    struct row row;

    geometry_row(&w->geometry, geometry_row_at(&w->geometry, stripe * BLOCK_BYTES), &row);
    return member == row.p;
}

/* The place of this member in this stripe must be data. */
static void
log_data(struct world *w, unsigned member, uint64_t stripe, int fill)
{
    uint64_t offset;

    assert_true(geometry_unmap(&w->geometry, member, stripe * BLOCK_BYTES, &offset));
    journal_writer_add_data(&w->writer, offset, block_fill(w, fill));
}

static void
log_parity(struct world *w, uint64_t stripe, int fill)
{
    const uint32_t checksum = block_fill(w, fill);

    journal_writer_add_parity(&w->writer, stripe * BLOCK_BYTES, 1, &checksum);
}

static task_fn void
create_task(void *arg)
{
    struct world *w = arg;

    w->result = overlay_create(&w->source, &w->memory.device, MEMBER, DATA_OFFSET, &w->overlay);
}

static task_fn void
release_task(void *arg)
{
    struct world *w = arg;

    assert_ptr_equal(overlay_release(w->overlay), &w->memory.device);
    task_yield(w->memory.device.loop); /* its workers end */
}

static uint64_t
first_data_stripe(const struct world *w, uint64_t from)
{
    while (is_parity(w, MEMBER, from))
        from++;
    return from;
}

static uint64_t
first_parity_stripe(const struct world *w, uint64_t from)
{
    while (!is_parity(w, MEMBER, from))
        from++;
    return from;
}

static struct world *
world_make(void)
{
    const struct geometry_config config = {.level = 5,
                                           .layout = 2,
                                           .members = MEMBERS,
                                           .chunk_bytes = 4 * BLOCK_BYTES,
                                           .size_bytes = MEMBER_BYTES};
    struct world *w = calloc(1, sizeof *w);
    uint8_t *bytes = malloc(SIZE);

    assert_non_null(w);
    assert_non_null(bytes);
    for (uint64_t i = 0; i < SIZE; i++)
        bytes[i] = (uint8_t)(0x80 | (i / BLOCK_BYTES));
    memory_device_open(&w->memory, device_name, bytes, SIZE);
    assert_int_equal(geometry_init(&w->geometry, &config), 0);
    w->journal = (struct journal_geometry){.ring_bytes = RING,
                                           .array_bytes = w->geometry.array_bytes,
                                           .component_bytes = w->geometry.member_bytes,
                                           .parity_count = 1,
                                           .checksum_seed = SEED};
    w->head = RING - 2 * BLOCK_BYTES; /* so that the log crosses the ring's end */
    w->seq = 5;
    assert_int_equal(records_init(&w->records, &w->geometry, &w->journal, w->head, 64), 0);
    w->source = (struct overlay_source){.loop = w->memory.device.loop,
                                        .journal = &w->memory.device,
                                        .journal_data_offset = JOURNAL_OFFSET,
                                        .records = &w->records};
    return w;
}

static void
overlay_begin(struct world *w)
{
    records_decide(&w->records);
    loop_run_task(w->memory.device.loop, create_task, w);
    assert_int_equal(w->result, 0);
    assert_true(w->overlay->readonly);
    assert_false(w->overlay->punch_zeroes);
    assert_int_equal(w->overlay->size_bytes, SIZE);
    assert_string_equal(w->overlay->name, device_name);
}

static void
world_free(struct world *w)
{
    if (w->overlay != NULL)
        loop_run_task(w->memory.device.loop, release_task, w);
    records_fini(&w->records);
    memory_device_close(&w->memory);
    free(w);
}

static task_fn void
read_task(void *arg)
{
    struct world *w = arg;

    w->result = device_read(w->overlay, w->target, w->offset, w->length);
}

static task_fn void
read_open_task(void *arg)
{
    struct world *w = arg;

    w->result = overlay_read_open(&w->source, w->target, w->offset, w->length);
}

static int
run(struct world *w, void (*task)(void *arg), uint64_t offset, uint64_t length, uint8_t *target)
{
    w->offset = offset;
    w->length = length;
    w->target = target;
    loop_run_task(w->memory.device.loop, task, w);
    return w->result;
}

/* Complete cycles in the first half; the member's data in one, its parity in another, and nothing
 * of it in a third. An open one, and one on top of a complete one. */
struct logged {
    uint64_t data, parity, other, open, both;
};

static struct logged
log_something(struct world *w)
{
    const uint64_t data = first_data_stripe(w, 0), parity = first_parity_stripe(w, 0);
    struct logged at = {.data = data,
                        .parity = parity,
                        .other = first_data_stripe(w, data + 1),
                        .open = first_data_stripe(w, 16)};
    unsigned other_member = 0;

    at.both = first_data_stripe(w, at.open + 1);
    entry_begin(w);
    log_data(w, MEMBER, at.data, 0x11); /* superseded */
    log_parity(w, at.data, 0x12);
    entry_end(w);
    entry_begin(w);
    log_data(w, MEMBER, at.data, 0x21);
    log_parity(w, at.data, 0x22);
    while (other_member == MEMBER || is_parity(w, other_member, at.parity))
        other_member++;
    log_data(w, other_member, at.parity, 0x31);
    log_parity(w, at.parity, 0x32);
    other_member = 0;
    while (other_member == MEMBER || is_parity(w, other_member, at.other))
        other_member++;
    log_data(w, other_member, at.other, 0x41);
    log_parity(w, at.other, 0x42);
    log_data(w, MEMBER, at.open, 0x51);
    log_data(w, MEMBER, at.both, 0x61);
    log_parity(w, at.both, 0x62);
    log_data(w, MEMBER, at.both, 0x71);
    entry_end(w);
    return at;
}

static int
expected_byte(const struct world *w, const struct logged *at, uint64_t offset)
{
    const uint64_t stripe = (offset - DATA_OFFSET) / BLOCK_BYTES;

    if (offset >= DATA_OFFSET) {
        if (stripe == at->data)
            return 0x21;
        if (stripe == at->parity)
            return 0x32;
        if (stripe == at->both)
            return 0x61; /* R1: the open cycle's data is not there */
    }
    return w->memory.bytes[offset];
}

static void
blocks_of_complete_cycles_come_from_the_journal_all_others_from_the_member(void **state)
{
    struct world *w = world_make();
    const struct logged at = log_something(w);
    uint8_t *memory = aligned_alloc(BLOCK_BYTES, SIZE);

    assert_non_null(memory);
    overlay_begin(w);
    /* Any stretch, from before the data to behind it. */
    for (uint64_t from = 0; from < JOURNAL_OFFSET; from += BLOCK_BYTES)
        for (uint64_t length = BLOCK_BYTES; from + length <= JOURNAL_OFFSET;
             length += BLOCK_BYTES) {
            memset(memory, 0, length);
            assert_int_equal(run(w, read_task, from, length, memory), 0);
            for (uint64_t i = 0; i < length; i += BLOCK_BYTES) {
                assert_int_equal(memory[i], expected_byte(w, &at, from + i));
                assert_int_equal(memory[i + BLOCK_BYTES - 1], expected_byte(w, &at, from + i));
            }
        }
    free(memory);
    world_free(w);
}

/* Somebody writes to the journal, or its device is bad: an error, never the member's old content.
 */
static void
a_block_that_is_not_what_was_logged_is_an_error(void **state)
{
    for (unsigned unreadable = 0; unreadable < 2; unreadable++) {
        struct world *w = world_make();
        const struct logged at = log_something(w);
        uint8_t *memory = aligned_alloc(BLOCK_BYTES, 2 * BLOCK_BYTES);
        size_t record;
        uint64_t position;

        assert_non_null(memory);
        overlay_begin(w);
        record = records_find(&w->records, record_place(at.data, MEMBER, false));
        position = records_position(&w->records, &w->records.all[record]);
        if (unreadable) {
            w->memory.bad_from = JOURNAL_OFFSET + position;
            w->memory.bad_to = w->memory.bad_from + BLOCK_BYTES;
        } else {
            ring_at(w, position)[4000] ^= 1;
        }
        assert_int_equal(
            run(w, read_task, DATA_OFFSET + at.data * BLOCK_BYTES, BLOCK_BYTES, memory), -EIO);
        assert_int_equal(
            run(w, read_task, DATA_OFFSET + at.data * BLOCK_BYTES, 2 * BLOCK_BYTES, memory), -EIO);
        assert_int_equal(
            run(w, read_task, DATA_OFFSET + at.both * BLOCK_BYTES, BLOCK_BYTES, memory), 0);
        free(memory);
        world_free(w);
    }
}

static void
open_data_is_laid_over_what_was_read(void **state)
{
    struct world *w = world_make();
    const struct logged at = log_something(w);
    uint8_t *memory = aligned_alloc(BLOCK_BYTES, 2 * BLOCK_BYTES);
    uint64_t open, both, none;

    assert_non_null(memory);
    overlay_begin(w);
    assert_true(geometry_unmap(&w->geometry, MEMBER, at.open * BLOCK_BYTES, &open));
    assert_true(geometry_unmap(&w->geometry, MEMBER, at.both * BLOCK_BYTES, &both));
    assert_true(geometry_unmap(&w->geometry, MEMBER, at.data * BLOCK_BYTES, &none));
    for (uint64_t offset = 0; offset + 2 * BLOCK_BYTES <= w->geometry.array_bytes;
         offset += BLOCK_BYTES) {
        unsigned covered = 0;

        memset(memory, 0xee, 2 * BLOCK_BYTES);
        assert_int_equal(run(w, read_open_task, offset, 2 * BLOCK_BYTES, memory), 0);
        for (uint64_t i = 0; i < 2; i++) {
            const uint64_t block = offset + i * BLOCK_BYTES;
            const int wanted = block == open ? 0x51 : block == both ? 0x71 : 0xee;

            assert_int_equal(memory[i * BLOCK_BYTES], wanted);
            assert_int_equal(memory[i * BLOCK_BYTES + BLOCK_BYTES - 1], wanted);
            assert_int_equal(overlay_covers(&w->source, block, BLOCK_BYTES), wanted != 0xee);
            covered += wanted != 0xee;
        }
        assert_int_equal(overlay_covers(&w->source, offset, 2 * BLOCK_BYTES), covered == 2);
    }
    /* And it is verified. */
    ring_at(
        w,
        records_position(
            &w->records,
            &w->records.all[records_find(&w->records, record_place(at.open, MEMBER, true))]))[0] ^=
        1;
    assert_int_equal(run(w, read_open_task, open, BLOCK_BYTES, memory), -EIO);
    assert_int_equal(run(w, read_open_task, both, BLOCK_BYTES, memory), 0);
    free(memory);
    world_free(w);
}

/* --- Many at once ---- */

struct reader {
    struct world *w;
    const struct logged *at;
};

static task_fn void
many_task(void *arg)
{
    struct reader *reader = arg;
    struct world *w = reader->w;
    struct io_pool pool;
    struct io_group group;
    const unsigned count = 40;
    uint8_t *memory = aligned_alloc(BLOCK_BYTES, count * 2 * BLOCK_BYTES);

    assert_non_null(memory);
    assert_int_equal(io_pool_init(&pool, w->memory.device.loop, count), 0);
    io_group_init(&group, w->memory.device.loop);
    for (unsigned i = 0; i < count; i++) {
        struct io *io = io_take(&pool);

        io->op = IO_READ;
        io->offset = DATA_OFFSET + (i % (STRIPES - 1)) * (uint64_t)BLOCK_BYTES;
        assert_true(io_add(io, memory + i * 2 * BLOCK_BYTES, BLOCK_BYTES));
        assert_true(io_add(io, memory + i * 2 * BLOCK_BYTES + BLOCK_BYTES, BLOCK_BYTES));
        io_submit(io, w->overlay, &group);
    }
    assert_int_equal(io_wait(&group), 0);
    for (unsigned i = 0; i < count * 2; i++) {
        const uint64_t offset =
            DATA_OFFSET + (i / 2 % (STRIPES - 1) + i % 2) * (uint64_t)BLOCK_BYTES;

        assert_int_equal(memory[i * (size_t)BLOCK_BYTES], expected_byte(w, reader->at, offset));
    }
    io_pool_fini(&pool);
    free(memory);
}

/* More than there are workers: all are done. */
static void
many_reads_at_once_are_all_answered(void **state)
{
    struct world *w = world_make();
    const struct logged at = log_something(w);
    struct reader reader = {.w = w, .at = &at};

    overlay_begin(w);
    loop_run_task(w->memory.device.loop, many_task, &reader);
    world_free(w);
}

/* The loop's tasks run out: what was begun ends by itself, and the member stays the caller's. */
static task_fn void
too_many_task(void *arg)
{
    struct world *w = arg;
    struct device *overlays[16];
    unsigned count = 0;

    while (count < ARRAY_LEN(overlays) && overlay_create(&w->source, &w->memory.device, MEMBER,
                                                         DATA_OFFSET, &overlays[count]) == 0)
        count++;
    assert_in_range(count, 1, ARRAY_LEN(overlays) - 1);
    task_yield(w->memory.device.loop);
    for (unsigned round = 0; round < 3; round++) {
        assert_ptr_equal(overlay_release(overlays[0]), &w->memory.device);
        task_yield(w->memory.device.loop);
        assert_int_equal(
            overlay_create(&w->source, &w->memory.device, MEMBER, DATA_OFFSET, &overlays[0]), 0);
    }
    while (count-- > 0)
        assert_ptr_equal(overlay_release(overlays[count]), &w->memory.device);
    task_yield(w->memory.device.loop);
}

static void
no_overlay_is_begun_by_halves(void **state)
{
    struct world *w = world_make();

    records_decide(&w->records);
    loop_run_task(w->memory.device.loop, too_many_task, w);
    world_free(w);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            blocks_of_complete_cycles_come_from_the_journal_all_others_from_the_member),
        cmocka_unit_test(a_block_that_is_not_what_was_logged_is_an_error),
        cmocka_unit_test(open_data_is_laid_over_what_was_read),
        cmocka_unit_test(many_reads_at_once_are_all_answered),
        cmocka_unit_test(no_overlay_is_begun_by_halves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
