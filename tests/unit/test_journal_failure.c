/*
 * test_journal_failure.c: what the log does with those who wait for it when its device fails.
 *
 * The simulator breaks journals at every I/O, but its logs are too small to run out of memory for
 * entries, and its stories cannot say which of two I/Os that are under way is answered first.
 */
#include "device/device.h"
#include "journal/journal.h"

#include <stdlib.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* That a journal has memory for at a time. */
#define ENTRIES 512u

/* A log on a device that does as it is told. */
struct scene {
    struct loop *loop;
    struct device device;
    struct journal *journal;
    struct io *queue; /* answered at the end of the turn */
    struct turn_hook answer;
    int write_result, flush_result;
    bool flushes_held; /* not answered */
    struct io *held;   /* the flush */
    unsigned failures; /* told to the owner */
    uint8_t *block;
    bool began, ended; /* the other task */
    int other_result;
};

static void
device_answer(struct turn_hook *hook)
{
    struct scene *scene = container_of(hook, struct scene, answer);

    while (scene->queue != NULL) {
        struct io *io = scene->queue;

        scene->queue = io->next;
        if (io->op == IO_FLUSH && scene->flushes_held) {
            assert_null(scene->held);
            scene->held = io;
            continue;
        }
        io->result = io->op == IO_FLUSH ? scene->flush_result : scene->write_result;
        io_complete(io);
    }
}

static void
device_submit(struct device *device, struct io *io)
{
    struct scene *scene = container_of(device, struct scene, device);

    io->next = scene->queue;
    scene->queue = io;
    loop_at_turn_end(scene->loop, &scene->answer);
}

static void
failed(void *owner, int error, const char *operation)
{
    struct scene *scene = owner;

    ++scene->failures;
}

static task_fn int
nothing(void *owner)
{
    return 0;
}

static task_fn int
no_tail(void *owner, uint64_t tail_bytes)
{
    return 0;
}

static void
scene_run(struct scene *scene, void (*run)(void *scene))
{
    static const struct device_ops ops = {.kind = "test", .submit = device_submit};
    struct error error;

    alarm(120); /* instead of waiting for ever */
    *scene = (struct scene){.device = {.ops = &ops, .name = "journal", .volatile_cache = true},
                            .answer.run = device_answer,
                            .block = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES)};
    assert_non_null(scene->block);
    memset(scene->block, 0, BLOCK_BYTES);
    if (loop_create(&(struct loop_config){.tasks = 8}, &scene->loop, &error) < 0)
        fail_msg("%s", error.text);
    scene->device.loop = scene->loop;
    loop_run_task(scene->loop, run, scene);
    loop_destroy(scene->loop);
    free(scene->block);
}

static void
scene_begin(struct scene *scene)
{
    const struct journal_config config = {
        .loop = scene->loop,
        .device = &scene->device,
        .geometry = {.ring_bytes = (1u << 20) * (uint64_t)BLOCK_BYTES, .parity_count = 1},
        .members = 4,
        .head = BLOCK_BYTES,
        .seq = 2,
        .owner = scene,
        .flush_members = nothing,
        .record_tail = no_tail,
        .failed = failed,
    };
    struct error error;

    if (journal_create(&config, &scene->journal, &error) < 0)
        fail_msg("%s", error.text);
}

static task_fn void
append_begin(struct scene *scene, struct journal_append *append, uint64_t blocks)
{
    assert_int_equal(journal_reserve(scene->journal, blocks), 0);
    assert_int_equal(journal_append_begin(scene->journal, append, blocks), 0);
}

static int
append_step(struct scene *scene, struct journal_append *append)
{
    struct journal_data data = {.memory = scene->block};
    struct journal_step step = {.data_count = 1, .data = &data};

    return journal_append_step(scene->journal, append, &step);
}

static task_fn int
append_wait(struct scene *scene, struct journal_append *append)
{
    return journal_append_wait(scene->journal, append, JOURNAL_COMPLETE);
}

/* --- Memory for entries ---------------------------------------------------------------------- */

static void
append_in_vain(void *arg)
{
    struct scene *scene = arg;
    const uint64_t blocks = journal_reserve_max(scene->journal);
    struct journal_append append;

    assert_int_equal(journal_reserve(scene->journal, blocks), 0);
    scene->began = true;
    assert_int_equal(journal_append_begin(scene->journal, &append, blocks), -EIO);
    journal_append_finish(scene->journal, &append); /* of nothing */
    if (!journal_failed(scene->journal))
        journal_unreserve(scene->journal, blocks); /* it is still ours */
    scene->ended = true;
}

/* Appends have begun that may open all entries; another waits. Then `end`. */
static task_fn void
memory_ends(struct scene *scene, void (*end)(struct scene *scene, struct journal_append *first))
{
    struct journal_append appends[ENTRIES];
    unsigned count = 0;
    uint64_t slots = 0;

    scene_begin(scene);
    append_begin(scene, &appends[count++], 8);
    do {
        append_begin(scene, &appends[count], journal_reserve_max(scene->journal));
        slots += appends[count++].slots;
    } while (appends[0].slots + slots + appends[1].slots < ENTRIES);
    assert_non_null(task_start(scene->loop, append_in_vain, scene));
    task_yield(scene->loop);
    assert_true(scene->began);
    assert_false(scene->ended);
    assert_int_equal(append_step(scene, &appends[0]), 0);
    end(scene, &appends[0]);
    while (!scene->ended)
        task_yield(scene->loop);
    while (count-- > 0) {
        if (count > 0)
            ignored(append_wait(scene, &appends[count])); /* nothing was appended */
        journal_append_finish(scene->journal, &appends[count]);
    }
    journal_destroy(scene->journal);
}

static task_fn void
journal_fails(struct scene *scene, struct journal_append *first)
{
    scene->write_result = -EIO;
    assert_int_equal(append_wait(scene, first), -EIO);
    assert_int_equal(scene->failures, 1);
}

static task_fn void
waiting_ends(struct scene *scene, struct journal_append *first)
{
    journal_end_waiting(scene->journal);
    assert_int_equal(append_wait(scene, first), 0);
}

static void
memory_ends_with_a_failure(void *arg)
{
    memory_ends(arg, journal_fails);
}

static void
memory_ends_when_told(void *arg)
{
    memory_ends(arg, waiting_ends);
}

static void
who_waits_for_memory_is_told_that_there_will_be_none(void **state)
{
    struct scene scene;

    scene_run(&scene, memory_ends_with_a_failure);
    scene_run(&scene, memory_ends_when_told);
}

/* --- Flushes --------------------------------------------------------------------------------- */

static void
flush(void *arg)
{
    struct scene *scene = arg;

    scene->other_result = journal_flush(scene->journal);
    scene->ended = true;
}

static void
flush_under_way(void *arg)
{
    struct scene *scene = arg;
    struct journal_append append;

    scene_begin(scene);
    scene->flushes_held = true;
    append_begin(scene, &append, 8);
    assert_int_equal(append_step(scene, &append), 0);
    assert_int_equal(append_wait(scene, &append), 0);
    journal_append_finish(scene->journal, &append);
    assert_non_null(task_start(scene->loop, flush, scene));
    while (scene->held == NULL)
        task_yield(scene->loop);

    scene->write_result = -EIO;
    append_begin(scene, &append, 8);
    assert_int_equal(append_step(scene, &append), 0);
    assert_int_equal(append_wait(scene, &append), -EIO);
    journal_append_finish(scene->journal, &append);
    assert_int_equal(scene->failures, 1);
    assert_false(journal_flush_failed(scene->journal)); /* as far as anybody knows */

    scene->held->result = scene->flush_result;
    io_complete(scene->held);
    while (journal_flush_failed(scene->journal) != (scene->flush_result < 0) || !scene->ended)
        task_yield(scene->loop);
    journal_destroy(scene->journal);
    assert_int_equal(scene->other_result, -EIO);
    assert_int_equal(scene->failures, 1);
}

static void
flush_fails_too(void *arg)
{
    struct scene *scene = arg;

    scene->flush_result = -EIO;
    flush_under_way(scene);
}

/* D3: such a device is not to be flushed again, whatever failed first. */
static void
a_flush_that_fails_after_a_write_is_known_to_have_failed(void **state)
{
    struct scene scene;

    scene_run(&scene, flush_under_way);
    scene_run(&scene, flush_fails_too);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_waits_for_memory_is_told_that_there_will_be_none),
        cmocka_unit_test(a_flush_that_fails_after_a_write_is_known_to_have_failed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
