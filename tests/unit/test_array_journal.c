/*
 * test_array_journal.c: a whole array with its journal on devices of memory that fail as told.
 *
 * What goes to the devices is counted. `writes_left` is where a crash comes: from that write on
 * everything that is not a read fails and nothing changes any more (so the array fails as well, and
 * what it does then changes nothing either). The next start sees what was there.
 */
#include "array/array.h"
#include "array/create.h"
#include "recovery/recovery.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define MEMBERS_MOST  4u
#define DEVICES       (MEMBERS_MOST + 1)
#define JOURNAL       (w->members)
#define MEMBER_BYTES  (3 * MIB)
#define JOURNAL_BYTES (6 * MIB)
#define NEVER         UINT64_MAX

struct world;

struct memory {
    struct device device;
    struct world *world;
    uint8_t *bytes, *kept; /* owned; what it holds, and what it held when that was kept */
    uint64_t size;
    uint64_t bad_from, bad_to, bad_kept; /* reads in there fail, until it is written */
    bool refuses_superblocks;            /* writes before the data fail */
    bool refuses_writes;                 /* all fail */
    uint64_t dies_in;                    /* with the n-th operation from now on; 0: never */
    bool dead;
    struct io *queue;
    struct turn_hook hook;
};

struct world {
    struct loop *loop;
    unsigned members;
    struct memory memories[DEVICES];
    uint64_t data_offset; /* bytes, of all */
    uint64_t writes_left, writes;
    uint64_t write_fails_in, flush_fails_in, read_fails_in; /* the n-th from now on; 0: none */
    uint8_t *block;                                         /* owned; a few blocks */

    unsigned writers_started, writers_ended;
    int write_results[20];

    /* A start. */
    unsigned left_out; /* members, as bits */
    unsigned force;
    bool readonly, told_resync;
    struct array *array;
    int started;
    struct error error;
    void (*story)(struct world *w);
};

/* --- Devices --------------------------------------------------------------------------------- */

/* Is it the one that fails? */
static bool
is_due(uint64_t *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

static int
memory_do(struct memory *memory, const struct io *io)
{
    struct world *const w = memory->world;
    uint64_t at = io->offset;

    memory->dead = memory->dead || is_due(&memory->dies_in);
    if (memory->dead)
        return -EIO;
    if (is_due(io->op == IO_READ    ? &w->read_fails_in
               : io->op == IO_WRITE ? &w->write_fails_in
                                    : &w->flush_fails_in))
        return -EIO;
    if (io->op == IO_READ && io->offset < memory->bad_to &&
        io->offset + io->length > memory->bad_from)
        return -EIO;
    if (io->op == IO_WRITE) {
        w->writes++;
        if (w->writes_left == 0 || memory->refuses_writes ||
            (memory->refuses_superblocks && at < w->data_offset))
            return -EIO;
        w->writes_left -= w->writes_left != NEVER;
        if (at < memory->bad_to && at + io->length > memory->bad_from)
            memory->bad_to = 0;
    } else if (io->op == IO_FLUSH) {
        return w->writes_left == 0 ? -EIO : 0;
    }
    assert_true(at + io->length <= memory->size);
    for (unsigned v = 0; v < io->iov_count; v++) {
        if (io->op == IO_READ)
            memcpy(io->iov[v].iov_base, memory->bytes + at, io->iov[v].iov_len);
        else
            memcpy(memory->bytes + at, io->iov[v].iov_base, io->iov[v].iov_len);
        at += io->iov[v].iov_len;
    }
    return 0;
}

static void
memory_complete(struct turn_hook *hook)
{
    struct memory *memory = container_of(hook, struct memory, hook);
    struct io *done = NULL;

    while (memory->queue) { /* in the order of submission */
        struct io *io = memory->queue;

        memory->queue = io->next;
        io->next = done;
        done = io;
    }
    while (done) {
        struct io *io = done;

        done = io->next;
        io->result = memory_do(memory, io);
        io_complete(io);
    }
}

static void
memory_submit(struct device *device, struct io *io)
{
    struct memory *memory = container_of(device, struct memory, device);

    io->next = memory->queue;
    memory->queue = io;
    loop_at_turn_end(device->loop, &memory->hook);
}

static void
memory_close(struct device *device)
{
}

/* --- The world ------------------------------------------------------------------------------- */

static void
new_log(void *arg)
{
    struct world *const w = arg;
    struct superblock sb;
    struct format_error why;

    assert_int_equal(
        superblock_decode(w->memories[JOURNAL].bytes + 4096, 2, JOURNAL_BYTES, &sb, &why), 0);
    w->started = recovery_new_log(&w->memories[JOURNAL].device, &sb, &w->error);
}

/* A new array, parity good, with a journal. */
static struct world *
world_make(int level, unsigned members)
{
    static const struct device_ops ops = {
        .kind = "memory", .submit = memory_submit, .close = memory_close};
    static char names[DEVICES][8] = {"m0", "m1", "m2", "m3", "m4"};
    struct create_device devices[DEVICES] = {{0}};
    const struct create_options options = {.level = level,
                                           .layout = 2,
                                           .minor = 2,
                                           .chunk_bytes = 64 * KIB,
                                           .assume_clean = true,
                                           .write_journal = true,
                                           .set_uuid = {7},
                                           .now = superblock_time(1700000000, 0)};
    struct superblock *superblocks = calloc(DEVICES, sizeof *superblocks);
    struct world *const w = calloc(1, sizeof *w);
    struct error error;

    assert_non_null(superblocks);
    assert_non_null(w);
    w->members = members;
    w->writes_left = NEVER;
    w->block = aligned_alloc(BLOCK_BYTES, MIB);
    assert_non_null(w->block);
    if (loop_create(&(struct loop_config){.tasks = 256}, &w->loop, &error) < 0)
        fail_msg("%s", error.text);
    for (unsigned d = 0; d <= members; d++) {
        struct memory *const memory = &w->memories[d];

        memory->world = w;
        memory->size = d == JOURNAL ? JOURNAL_BYTES : MEMBER_BYTES;
        memory->bytes = calloc(1, memory->size);
        memory->kept = calloc(1, memory->size);
        assert_non_null(memory->bytes);
        assert_non_null(memory->kept);
        memory->hook.run = memory_complete;
        memory->device = (struct device){.ops = &ops,
                                         .loop = w->loop,
                                         .name = names[d],
                                         .size_bytes = memory->size,
                                         .logical_block_bytes = 512,
                                         .volatile_cache = true};
        devices[d] = (struct create_device){
            .name = names[d], .size_bytes = memory->size, .uuid = {(uint8_t)(d + 1)}};
    }
    if (create_plan(&options, devices, members, superblocks, &error) < 0)
        fail_msg("%s", error.text);
    for (unsigned d = 0; d <= members; d++)
        ignored(superblock_encode(&superblocks[d],
                                  w->memories[d].bytes + superblock_offset_bytes(&superblocks[d])));
    w->data_offset = superblock_data_offset_bytes(&superblocks[0]);
    free(superblocks);
    loop_run_task(w->loop, new_log, w);
    assert_int_equal(w->started, 0);
    return w;
}

static void
world_free(struct world *w)
{
    for (unsigned d = 0; d <= w->members; d++) {
        free(w->memories[d].bytes);
        free(w->memories[d].kept);
    }
    loop_destroy(w->loop);
    free(w->block);
    free(w);
}

static void
keep(struct world *w)
{
    for (unsigned d = 0; d <= w->members; d++) {
        memcpy(w->memories[d].kept, w->memories[d].bytes, w->memories[d].size);
        w->memories[d].bad_kept = w->memories[d].bad_to;
    }
}

static void
restore(struct world *w)
{
    for (unsigned d = 0; d <= w->members; d++) {
        memcpy(w->memories[d].bytes, w->memories[d].kept, w->memories[d].size);
        w->memories[d].bad_to = w->memories[d].bad_kept;
    }
}

static void
event(void *owner, const struct array_event *event)
{
    struct world *const w = owner;

    w->told_resync = w->told_resync || event->kind == ARRAY_RESYNC_STARTED;
}

static void
start_main(void *arg)
{
    struct world *const w = arg;
    struct device *devices[DEVICES];
    struct array_config config = {.devices = devices,
                                  .force = w->force,
                                  .readonly = w->readonly,
                                  .memory_bytes = 4 * MIB,
                                  .workers = 4,
                                  .event = event,
                                  .owner = w};

    for (unsigned d = 0; d <= w->members; d++)
        if ((w->left_out >> d & 1) == 0)
            devices[config.device_count++] = &w->memories[d].device;
    w->told_resync = false;
    w->error = (struct error){0};
    w->started = array_start(w->loop, &config, &w->array, &w->error);
    if (w->started < 0)
        return;
    if (w->story)
        w->story(w);
    array_destroy(w->array);
}

/* Starts, plays, and lets go as a crash does (nothing is written any more). */
static int
play(struct world *w, void (*story)(struct world *w))
{
    w->story = story;
    loop_run_task(w->loop, start_main, w);
    return w->started;
}

static void
write_blocks(struct world *w)
{
    for (unsigned i = 0; i < 20; i++) {
        memset(w->block, (int)(i + 1), 8 * KIB);
        assert_int_equal(array_write(w->array, w->block, i * 3 * BLOCK_BYTES, 8 * KIB, false), 0);
    }
}

static void
stop(struct world *w)
{
    assert_int_equal(array_resync_wait(w->array), true);
    assert_int_equal(array_stop(w->array), 0);
}

static struct superblock *
superblock_at(struct world *w, unsigned d)
{
    static struct superblock sb;
    struct format_error why;

    assert_int_equal(
        superblock_decode(w->memories[d].bytes + 4096, 2, w->memories[d].size, &sb, &why), 0);
    return &sb;
}

/* --- What only a log knew, given up by force ------------------------------------------------- */

/* No entry stands at the tail any more. */
static void
spoil_tail(struct world *w)
{
    memset(w->memories[JOURNAL].bytes + w->data_offset +
               superblock_at(w, JOURNAL)->journal_tail_sectors * SECTOR_BYTES,
           0x5a, BLOCK_BYTES);
}

/* After a start by force that was cut off at any write: the next start, without force, either is
 * refused, or makes parity again. It never takes parity for good. */
static void
parity_is_doubted_from_the_first_write_on(struct world *w, unsigned force)
{
    uint64_t writes;

    keep(w);
    w->force = force;
    w->writes = 0;
    assert_int_equal(play(w, NULL), 0);
    assert_true(w->told_resync);
    writes = w->writes;
    assert_true(writes > 5);
    for (uint64_t left = 0; left < writes; left++) {
        restore(w);
        w->force = force;
        w->writes_left = left;
        ignored(play(w, NULL)); /* it crashes somewhere */
        w->writes_left = NEVER;
        w->force = 0;
        if (play(w, NULL) == 0 && !w->told_resync)
            fail_msg("a crash after %u writes of a start by force: parity is believed",
                     (unsigned)left);
    }
}

/*
 * The log is cut off where it cannot be read. What it held behind that place may be half on the
 * members, so no parity is known to be good: before the log ends where it was cut off, the
 * superblocks say so.
 */
static void
truncating_the_log_doubts_parity(void **state)
{
    struct world *const w = world_make(5, 3);

    assert_int_equal(play(w, write_blocks), 0);
    w->memories[JOURNAL].bad_from = w->data_offset + 20 * BLOCK_BYTES;
    w->memories[JOURNAL].bad_to = w->memories[JOURNAL].bad_from + BLOCK_BYTES;
    keep(w);
    assert_int_equal(play(w, NULL), -EIO);
    parity_is_doubted_from_the_first_write_on(w, FORCE_TRUNCATE_JOURNAL);
    restore(w);
    w->force = FORCE_TRUNCATE_JOURNAL;
    assert_int_equal(play(w, stop), 0);
    world_free(w);
}

/* The same when a log is begun anew. */
static void
beginning_a_new_log_doubts_parity(void **state)
{
    struct world *const w = world_make(5, 3);

    assert_int_equal(play(w, write_blocks), 0);
    spoil_tail(w);
    assert_int_equal(play(w, NULL), -EBADMSG);
    parity_is_doubted_from_the_first_write_on(w, FORCE_NEW_JOURNAL);
    restore(w);
    w->force = FORCE_NEW_JOURNAL;
    assert_int_equal(play(w, stop), 0);
    world_free(w);
}

/* At the tail there is nothing that a log could be cut off behind. */
static void
an_unreadable_tail_takes_a_new_log(void **state)
{
    struct world *const w = world_make(5, 3);

    assert_int_equal(play(w, write_blocks), 0);
    w->memories[JOURNAL].bad_from =
        w->data_offset + superblock_at(w, JOURNAL)->journal_tail_sectors * SECTOR_BYTES;
    w->memories[JOURNAL].bad_to = w->data_offset + JOURNAL_BYTES;
    w->writes = 0;
    assert_int_equal(play(w, NULL), -EIO);
    assert_non_null(strstr(w->error.text, "--force=new-journal"));
    w->force = FORCE_TRUNCATE_JOURNAL;
    assert_int_equal(play(w, NULL), -EIO);
    assert_int_equal(w->writes, 0);
    w->force = FORCE_NEW_JOURNAL;
    assert_int_equal(play(w, NULL), 0);
    assert_true(w->told_resync);
    world_free(w);
}

/* A degraded array may be wrong then in blocks that nobody wrote, and takes a second consent. With
 * all parity needed for what is missing there is nothing to resync. */
static void
a_degraded_array_gives_up_its_log_by_more_force_only(void **state)
{
    static const unsigned forces[] = {FORCE_TRUNCATE_JOURNAL, FORCE_NEW_JOURNAL};

    for (unsigned i = 0; i < ARRAY_LEN(forces); i++) {
        struct world *const w = world_make(5, 3);

        assert_int_equal(play(w, write_blocks), 0);
        if (forces[i] == FORCE_NEW_JOURNAL) {
            spoil_tail(w);
        } else {
            w->memories[JOURNAL].bad_from = w->data_offset + 20 * BLOCK_BYTES;
            w->memories[JOURNAL].bad_to = w->memories[JOURNAL].bad_from + BLOCK_BYTES;
        }
        w->left_out = 1;
        w->force = forces[i];
        w->writes = 0;
        assert_int_equal(play(w, NULL), -EUCLEAN);
        assert_int_equal(w->writes, 0);
        w->force |= FORCE_DIRTY_DEGRADED;
        assert_int_equal(play(w, NULL), 0);
        assert_false(w->told_resync);
        assert_int_equal(superblock_at(w, 1)->resync_offset_sectors, 0);
        world_free(w);
    }
}

/* --- The journal's superblock cannot be written ---------------------------------------------- */

/* Data without parity behind the first entry of a new array's log, as write-back leaves it. */
static void
log_data_only(struct world *w)
{
    uint8_t *const meta = w->memories[JOURNAL].bytes + w->data_offset + BLOCK_BYTES;
    uint8_t *const data = meta + BLOCK_BYTES;
    struct journal_geometry geometry;
    struct journal_writer writer;

    journal_geometry_init(&geometry, superblock_at(w, JOURNAL));
    memset(data, 0x77, BLOCK_BYTES);
    journal_writer_init(&writer, meta, load_le64(meta - BLOCK_BYTES + 16) + 1, BLOCK_BYTES);
    journal_writer_add_data(&writer, 0,
                            journal_checksum(geometry.checksum_seed, data, BLOCK_BYTES));
    journal_writer_finish(&writer, geometry.checksum_seed);
}

/* An entry at the end of the log: the second block that write_blocks wrote at each place, in the
 * first stripes, once more, without parity. */
static void
log_more_data_only(struct world *w)
{
    uint8_t *const ring = w->memories[JOURNAL].bytes + w->data_offset;
    uint64_t at = superblock_at(w, JOURNAL)->journal_tail_sectors * SECTOR_BYTES, seq = 0;
    struct journal_geometry geometry;
    struct journal_writer writer;
    struct journal_entry entry;

    journal_geometry_init(&geometry, superblock_at(w, JOURNAL));
    while (journal_entry_decode(ring + at, at, &geometry, &entry, NULL) == 0 &&
           (seq == 0 || entry.seq == seq)) {
        seq = entry.seq + 1;
        at = journal_entry_next(&entry, &geometry);
    }
    journal_writer_init(&writer, ring + at, seq, at);
    for (unsigned i = 0; i < 4; i++) {
        uint8_t *const data = ring + at + (i + 1) * BLOCK_BYTES;

        memset(data, (int)(i + 1), BLOCK_BYTES);
        journal_writer_add_data(&writer, (i * 3 + 1) * BLOCK_BYTES,
                                journal_checksum(geometry.checksum_seed, data, BLOCK_BYTES));
    }
    journal_writer_finish(&writer, geometry.checksum_seed);
}

static void
read_data_only(struct world *w)
{
    assert_int_equal(array_read(w->array, w->block, 0, BLOCK_BYTES), 0);
    for (unsigned i = 0; i < BLOCK_BYTES; i++)
        assert_int_equal(w->block[i], 0x77);
}

/*
 * The journal's superblock cannot be written when its log has been replayed. The members must not
 * go on counting without it: two events behind it would be stale, and what only the log holds lost.
 */
static void
a_journal_that_fails_in_recovery_is_not_left_behind(void **state)
{
    struct world *const w = world_make(5, 3);

    log_data_only(w);
    w->memories[JOURNAL].refuses_superblocks = true;
    assert_int_equal(play(w, NULL), -EIO);
    assert_int_equal(play(w, NULL), -EIO);
    w->memories[JOURNAL].refuses_superblocks = false;
    assert_int_equal(play(w, read_data_only), 0);
    world_free(w);
}

/* The same with a member that fails meanwhile, which would be put on record. */
static void
a_journal_and_a_member_fail_in_recovery(void **state)
{
    struct world *const w = world_make(5, 3);

    assert_int_equal(play(w, write_blocks), 0);
    keep(w);
    w->memories[JOURNAL].refuses_superblocks = true;
    w->memories[1].refuses_writes = true;
    assert_int_equal(play(w, NULL), -EIO);
    w->memories[JOURNAL].refuses_superblocks = false;
    w->memories[1].refuses_writes = false;
    assert_int_equal(play(w, stop), 0);
    world_free(w);
}

/* --- Anything fails once --------------------------------------------------------------------- */

static void
read_blocks(struct world *w)
{
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(array_read(w->array, w->block, i * 3 * BLOCK_BYTES, 8 * KIB), 0);
        for (unsigned b = 0; b < 8 * KIB; b++)
            assert_int_equal(w->block[b], i + 1);
    }
}

static void
read_and_stop(struct world *w)
{
    read_blocks(w);
    ignored(array_stop(w->array)); /* it may fail */
}

/* One operation fails, each in turn: of a start with data-parity and data-only stripes in the log,
 * a read of everything, and a stop. Whatever comes of it, a later start has everything. */
static void
fail_each(struct world *w, uint64_t *countdown)
{
    for (uint64_t n = 1;; n++) {
        restore(w);
        *countdown = n;
        ignored(play(w, read_and_stop)); /* as said */
        if (*countdown > 0)
            break;
        if (play(w, read_blocks) < 0) {
            /* A journal that failed is struck off. */
            assert_int_equal(w->started, -ENODEV);
            w->force = FORCE_DROP_JOURNAL;
            if (play(w, read_blocks) < 0) {
                assert_int_equal(w->started, -EUCLEAN); /* degraded as well */
                w->force |= FORCE_DIRTY_DEGRADED;
                assert_int_equal(play(w, read_blocks), 0);
            }
            w->force = 0;
        }
    }
    *countdown = 0;
}

static void
any_operation_may_fail_once(void **state)
{
    for (unsigned level = 5; level <= 6; level++) {
        struct world *const w = world_make((int)level, level - 2);

        assert_int_equal(play(w, write_blocks), 0);
        log_more_data_only(w);
        keep(w);
        fail_each(w, &w->write_fails_in);
        fail_each(w, &w->flush_fails_in);
        fail_each(w, &w->read_fails_in);
        world_free(w);
    }
}

/* As write_blocks, several at once, whatever comes of it; then all is read and stopped. */
static void
write_again_main(void *arg)
{
    struct world *const w = arg;
    const unsigned i = w->writers_started++;
    uint8_t *const memory = w->block + (i + 1) * 8 * KIB;

    memset(memory, (int)(i + 1), 8 * KIB);
    w->write_results[i] = array_write(w->array, memory, i * 3 * BLOCK_BYTES, 8 * KIB, false);
    w->writers_ended++;
}

static void
write_again(struct world *w)
{
    w->writers_started = w->writers_ended = 0;
    for (unsigned i = 0; i < 20; i++)
        assert_non_null(task_start(w->loop, write_again_main, w));
    while (w->writers_ended < 20)
        task_yield(w->loop);
    read_blocks(w);
    ignored(array_stop(w->array)); /* it may fail */
}

/* One device after the other dies at each of its operations, of start, writes and stop, and lives
 * again at the next start. */
static void
any_device_may_die_at_any_time(void **state)
{
    struct world *const w = world_make(5, 3);

    assert_int_equal(play(w, write_blocks), 0);
    log_more_data_only(w);
    keep(w);
    for (unsigned d = 0; d <= w->members; d++)
        for (uint64_t n = 1;; n++) {
            bool died;

            restore(w);
            w->memories[d].dies_in = n;
            ignored(play(w, write_again)); /* as said */
            died = w->memories[d].dead;
            w->memories[d].dies_in = 0;
            w->memories[d].dead = false;
            if (!died)
                break;
            if (play(w, read_blocks) < 0) {
                assert_int_equal(d, JOURNAL);
                assert_int_equal(w->started, -ENODEV);
                w->force = FORCE_DROP_JOURNAL;
                assert_int_equal(play(w, read_blocks), 0);
                w->force = 0;
            }
        }
    world_free(w);
}

/* --- Journals made by somebody --------------------------------------------------------------- */

/* An empty entry with this number. */
static void
entry_put(struct world *w, uint64_t position, uint64_t seq)
{
    struct journal_geometry geometry;

    journal_geometry_init(&geometry, superblock_at(w, JOURNAL));
    journal_entry_encode_empty(w->memories[JOURNAL].bytes + w->data_offset + position, seq,
                               position, geometry.checksum_seed);
}

/* Numbers are compared, and must not come round zero. */
static void
a_log_never_counts_round_zero(void **state)
{
    struct world *const w = world_make(5, 3);

    w->writes = 0;
    entry_put(w, 0, UINT64_MAX - 5);
    assert_int_equal(play(w, NULL), -EBADMSG);
    assert_int_equal(w->writes, 0);
    /* At the end of the log: not of it, and nothing to count on from. */
    entry_put(w, 0, 7);
    entry_put(w, BLOCK_BYTES, UINT64_MAX - 5);
    assert_int_equal(play(w, write_blocks), 0);
    assert_int_equal(play(w, stop), 0);
    world_free(w);
}

/* Refused before anything is written. */
static void
a_ring_that_is_too_small_is_left_alone(void **state)
{
    struct world *const w = world_make(5, 3);
    struct superblock *const sb = superblock_at(w, JOURNAL);

    sb->data_size_sectors = 6 * BLOCK_SECTORS;
    ignored(superblock_encode(sb, w->memories[JOURNAL].bytes + superblock_offset_bytes(sb)));
    w->writes = 0;
    assert_int_equal(play(w, NULL), -ENOTSUP);
    assert_int_equal(w->writes, 0);
    w->readonly = true;
    assert_int_equal(play(w, NULL), 0);
    w->readonly = false;
    sb->data_size_sectors = 7 * BLOCK_SECTORS;
    ignored(superblock_encode(sb, w->memories[JOURNAL].bytes + superblock_offset_bytes(sb)));
    assert_int_equal(play(w, write_blocks), 0);
    assert_int_equal(play(w, read_and_stop), 0);
    world_free(w);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(truncating_the_log_doubts_parity),
        cmocka_unit_test(beginning_a_new_log_doubts_parity),
        cmocka_unit_test(an_unreadable_tail_takes_a_new_log),
        cmocka_unit_test(a_journal_that_fails_in_recovery_is_not_left_behind),
        cmocka_unit_test(a_journal_and_a_member_fail_in_recovery),
        cmocka_unit_test(any_device_may_die_at_any_time),
        cmocka_unit_test(a_log_never_counts_round_zero),
        cmocka_unit_test(a_ring_that_is_too_small_is_left_alone),
        cmocka_unit_test(any_operation_may_fail_once),
        cmocka_unit_test(a_degraded_array_gives_up_its_log_by_more_force_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
