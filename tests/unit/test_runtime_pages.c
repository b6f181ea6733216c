/* The buddy allocator against a slow model, and its order of waiting. */
#include "runtime/pages.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* --- A backend without a system ------------------------------------------------------------- */

static void
still_submit(void *self, struct loop_io *io)
{
    abort(); /* no test here does I/O */
}

static void
still_wait(void *self, uint64_t deadline_ns)
{
    abort(); /* whatever waits is woken within a turn */
}

static uint64_t
still_now(void *self)
{
    return 1;
}

static void
still_destroy(void *self)
{
}

static const struct loop_backend still_backend = {
    .name = "still",
    .submit = still_submit,
    .wait = still_wait,
    .now_ns = still_now,
    .wall_us = still_now,
    .destroy = still_destroy,
};

struct scene {
    struct loop *loop;
    struct pages *pages;
    char log[64];
    size_t logged;
    void *held[64];
};

static int
scene_begin(void **state)
{
    const struct loop_config config = {.tasks = 32, .seed = 42};
    struct scene *const scene = calloc(1, sizeof *scene);
    struct error error;

    *state = scene;
    return scene ? loop_create_on(&config, &still_backend, NULL, &scene->loop, &error) : -1;
}

static int
scene_end(void **state)
{
    struct scene *const scene = *state;

    if (scene->pages)
        pages_destroy(scene->pages);
    loop_destroy(scene->loop);
    free(scene);
    return 0;
}

static void
note(struct scene *scene, char what)
{
    assert_true(scene->logged + 1 < sizeof scene->log);
    scene->log[scene->logged++] = what;
    scene->log[scene->logged] = '\0';
}

/* --- The model ------------------------------------------------------------------------------ */

#define MODEL_BLOCKS 203 /* no power of two: 128 + 64 + 8 + 2 + 1 */

struct model {
    bool taken[MODEL_BLOCKS];
    struct {
        char *at;
        uint64_t bytes;
    } held[MODEL_BLOCKS];
    unsigned held_count;
    uint64_t free_blocks;
    char *arena;
};

/* A run of that many blocks at a multiple of itself is free: what a buddy allocator can give. */
static bool
model_has(const struct model *model, uint64_t blocks)
{
    for (uint64_t at = 0; at + blocks <= MODEL_BLOCKS; at += blocks) {
        uint64_t i = 0;

        while (i < blocks && !model->taken[at + i])
            i++;
        if (i == blocks)
            return true;
    }
    return false;
}

static void
model_take(struct model *model, struct pages *pages, uint64_t bytes)
{
    const uint64_t blocks = pages_cost(bytes) / BLOCK_BYTES;
    const bool possible = model_has(model, blocks);
    char *const at = pages_try(pages, bytes);
    uint64_t first;

    assert_int_equal(at != NULL, possible);
    if (!at)
        return;
    first = (uint64_t)(at - model->arena) / BLOCK_BYTES;
    assert_true(at >= model->arena);
    assert_int_equal((uintptr_t)at % BLOCK_BYTES, 0);
    assert_int_equal(first % blocks, 0);
    assert_true(first + blocks <= MODEL_BLOCKS);
    for (uint64_t i = first; i < first + blocks; i++) {
        assert_false(model->taken[i]);
        model->taken[i] = true;
    }
    memset(at, (int)(first & 0xff), bytes);
    model->held[model->held_count].at = at;
    model->held[model->held_count++].bytes = bytes;
    model->free_blocks -= blocks;
}

static void
model_give(struct model *model, struct pages *pages, unsigned which)
{
    char *const at = model->held[which].at;
    const uint64_t bytes = model->held[which].bytes;
    const uint64_t first = (uint64_t)(at - model->arena) / BLOCK_BYTES;
    const uint64_t blocks = pages_cost(bytes) / BLOCK_BYTES;

    for (uint64_t i = 0; i < bytes; i += 997) /* nobody else wrote there */
        assert_int_equal((unsigned char)at[i], first & 0xff);
    pages_give(pages, at, bytes);
    for (uint64_t i = first; i < first + blocks; i++)
        model->taken[i] = false;
    model->free_blocks += blocks;
    model->held[which] = model->held[--model->held_count];
}

static void
takes_succeed_exactly_when_a_run_is_free(void **state)
{
    struct scene *const scene = *state;
    struct model *const model = calloc(1, sizeof *model);

    assert_non_null(model);
    assert_int_equal(
        pages_create(scene->loop, MODEL_BLOCKS * BLOCK_BYTES + 4095, false, &scene->pages), 0);
    assert_int_equal(pages_total(scene->pages), MODEL_BLOCKS * BLOCK_BYTES);
    assert_int_equal(pages_largest(scene->pages), 128 * BLOCK_BYTES);
    model->free_blocks = MODEL_BLOCKS;
    model->arena = pages_try(scene->pages, pages_largest(scene->pages)); /* lowest address first */
    assert_non_null(model->arena);
    pages_give(scene->pages, model->arena, pages_largest(scene->pages));
    for (unsigned i = 0; i < 30000; i++) {
        /* The pressure goes up and down, so that it is full and empty in turn. */
        const bool more = loop_random(scene->loop) % 100 < (i / 1000 % 2 ? 65 : 40);

        if (more)
            model_take(model, scene->pages,
                       1 + loop_random(scene->loop) %
                               (BLOCK_BYTES << loop_random(scene->loop) % 8));
        else if (model->held_count > 0)
            model_give(model, scene->pages,
                       (unsigned)(loop_random(scene->loop) % model->held_count));
        assert_int_equal(pages_free(scene->pages), model->free_blocks * BLOCK_BYTES);
    }
    while (model->held_count > 0)
        model_give(model, scene->pages, 0);
    /* All merged again. */
    model_take(model, scene->pages, 128 * BLOCK_BYTES);
    model_take(model, scene->pages, 64 * BLOCK_BYTES);
    model_give(model, scene->pages, 0);
    model_give(model, scene->pages, 0);
    free(model);
}

static void
cost_is_the_next_power_of_two_of_blocks(void **state)
{
    (void)state;
    assert_int_equal(pages_cost(1), 4096);
    assert_int_equal(pages_cost(4096), 4096);
    assert_int_equal(pages_cost(4097), 8192);
    assert_int_equal(pages_cost(12288), 16384);
    assert_int_equal(pages_cost(MIB), MIB);
    assert_int_equal(pages_cost(MIB + 1), 2 * MIB);
}

static void
tiny_and_touched_arenas_work(void **state)
{
    struct scene *const scene = *state;
    char *at;

    assert_int_equal(pages_create(scene->loop, 4095, true, &scene->pages), -ENOMEM);
    for (uint64_t blocks = 1; blocks < 40; blocks += 3) {
        assert_int_equal(pages_create(scene->loop, blocks * BLOCK_BYTES, true, &scene->pages), 0);
        for (uint64_t i = 0; i < blocks; i++) {
            at = pages_try(scene->pages, 1);
            assert_non_null(at);
            at[0] = 1;
            scene->held[i] = at;
            for (uint64_t j = 0; j < i; j++)
                assert_true(scene->held[j] != at);
        }
        assert_null(pages_try(scene->pages, 1));
        for (uint64_t i = 0; i < blocks; i++)
            pages_give(scene->pages, scene->held[i], 1);
        pages_destroy(scene->pages);
        scene->pages = NULL;
    }
}

static void
what_was_given_last_is_taken_first(void **state)
{
    struct scene *const scene = *state;
    void *first, *second, *third;

    assert_int_equal(pages_create(scene->loop, MIB, false, &scene->pages), 0);
    first = pages_try(scene->pages, 4096);
    second = pages_try(scene->pages, 4096);
    third = pages_try(scene->pages, 4096);
    pages_give(scene->pages, first, 4096);
    pages_give(scene->pages, third, 4096); /* merges with its neighbour: a larger run */
    assert_ptr_equal(pages_try(scene->pages, 4096), first);
    pages_give(scene->pages, second, 4096);
    assert_ptr_equal(pages_try(scene->pages, 4096), second);
    pages_give(scene->pages, first, 4096);
    pages_give(scene->pages, second, 4096);
}

/* --- Waiting -------------------------------------------------------------------------------- */

struct taker {
    struct scene *scene;
    char name;
    uint64_t bytes;
    void *at;
};

static void
take_and_note(void *arg)
{
    struct taker *const taker = arg;

    taker->at = pages_take(taker->scene->pages, taker->bytes);
    assert_non_null(taker->at);
    memset(taker->at, taker->name, taker->bytes);
    note(taker->scene, taker->name);
}

static void
give_in_steps(void *arg)
{
    struct scene *const scene = arg;

    for (unsigned i = 0; i < 8; i++) {
        note(scene, '+');
        pages_give(scene->pages, scene->held[i], BLOCK_BYTES);
        task_yield(scene->loop);
    }
}

/* The large one waits first: the small ones behind it get nothing before it, nor does a try. */
static void
nobody_overtakes_the_first_who_waits(void **state)
{
    struct scene *const scene = *state;
    struct taker large = {scene, 'L', 4 * BLOCK_BYTES, NULL},
                 small = {scene, 's', BLOCK_BYTES, NULL},
                 medium = {scene, 'm', 2 * BLOCK_BYTES, NULL};

    assert_int_equal(pages_create(scene->loop, 8 * BLOCK_BYTES, false, &scene->pages), 0);
    for (unsigned i = 0; i < 8; i++)
        scene->held[i] = pages_try(scene->pages, BLOCK_BYTES);
    assert_int_equal(pages_free(scene->pages), 0);
    assert_non_null(task_start(scene->loop, take_and_note, &large));
    assert_non_null(task_start(scene->loop, take_and_note, &small));
    assert_non_null(task_start(scene->loop, take_and_note, &medium));
    assert_non_null(task_start(scene->loop, give_in_steps, scene));
    loop_run(scene->loop);
    assert_string_equal(scene->log, "++++L+s+++m");
    pages_give(scene->pages, large.at, large.bytes);
    pages_give(scene->pages, small.at, small.bytes);
    pages_give(scene->pages, medium.at, medium.bytes);
    assert_int_equal(pages_free(scene->pages), pages_total(scene->pages));
}

static void
try_while_one_waits(void *arg)
{
    struct scene *const scene = arg;

    pages_give(scene->pages, scene->held[0], BLOCK_BYTES);
    assert_null(pages_try(scene->pages, BLOCK_BYTES));
    for (unsigned i = 1; i < 8; i++)
        pages_give(scene->pages, scene->held[i], BLOCK_BYTES);
    scene->held[0] = pages_try(scene->pages, BLOCK_BYTES);
    assert_non_null(scene->held[0]);
}

static void
try_does_not_overtake_who_waits(void **state)
{
    struct scene *const scene = *state;
    struct taker large = {scene, 'L', 4 * BLOCK_BYTES, NULL};

    assert_int_equal(pages_create(scene->loop, 8 * BLOCK_BYTES, false, &scene->pages), 0);
    for (unsigned i = 0; i < 8; i++)
        scene->held[i] = pages_try(scene->pages, BLOCK_BYTES);
    assert_non_null(task_start(scene->loop, take_and_note, &large));
    assert_non_null(task_start(scene->loop, try_while_one_waits, scene));
    loop_run(scene->loop);
    assert_string_equal(scene->log, "L");
    pages_give(scene->pages, large.at, large.bytes);
    pages_give(scene->pages, scene->held[0], BLOCK_BYTES);
}

static void
giving_twice_is_an_assertion(void **state)
{
    struct scene *const scene = *state;
    int status;
    pid_t child;
    void *at;

    assert_int_equal(pages_create(scene->loop, MIB, false, &scene->pages), 0);
    at = pages_try(scene->pages, BLOCK_BYTES);
    assert_non_null(at);
    pages_give(scene->pages, at, BLOCK_BYTES);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0, 0};

        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGABRT, SIG_DFL);
        (void)close(STDERR_FILENO);
        pages_give(scene->pages, at, BLOCK_BYTES);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

int
main(void)
{
#define scene_test(name) cmocka_unit_test_setup_teardown(name, scene_begin, scene_end)
    const struct CMUnitTest tests[] = {
        scene_test(takes_succeed_exactly_when_a_run_is_free),
        scene_test(cost_is_the_next_power_of_two_of_blocks),
        scene_test(tiny_and_touched_arenas_work),
        scene_test(what_was_given_last_is_taken_first),
        scene_test(nobody_overtakes_the_first_who_waits),
        scene_test(try_does_not_overtake_who_waits),
        scene_test(giving_twice_is_an_assertion),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
