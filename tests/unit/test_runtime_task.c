/* Tasks, wait queues and tokens, on a backend that knows nothing but a counting clock. */
#include "runtime/loop.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* --- A backend without a system ------------------------------------------------------------- */

struct still {
    uint64_t now_ns;
    unsigned waits;
};

static void
still_submit(void *self, struct loop_io *io)
{
    (void)self;
    (void)io;
    abort(); /* no test here does I/O */
}

static void
still_wait(void *self, uint64_t deadline_ns)
{
    struct still *const still = self;

    still->waits++;
    if (deadline_ns == UINT64_MAX)
        abort(); /* the test would hang */
    if (deadline_ns > still->now_ns)
        still->now_ns = deadline_ns;
}

static uint64_t
still_now_ns(void *self)
{
    return ((struct still *)self)->now_ns;
}

static uint64_t
still_wall_us(void *self)
{
    return 7;
}

static void
still_destroy(void *self)
{
    (void)self;
}

static const struct loop_backend still_backend = {
    .name = "still",
    .submit = still_submit,
    .wait = still_wait,
    .now_ns = still_now_ns,
    .wall_us = still_wall_us,
    .destroy = still_destroy,
};

/* What a test sees: a loop and the order in which things happened. */
struct scene {
    struct still still;
    struct loop *loop;
    struct wait_queue queue;
    struct tokens tokens;
    char log[256];
    size_t logged;
    struct task *task;
};

static void
note(struct scene *scene, char what)
{
    assert_true(scene->logged + 1 < sizeof scene->log);
    scene->log[scene->logged++] = what;
    scene->log[scene->logged] = '\0';
}

static int
scene_begin_tasks(void **state, unsigned tasks)
{
    struct scene *const scene = calloc(1, sizeof *scene);
    const struct loop_config config = {.tasks = tasks, .seed = 1};
    struct error error;

    if (!scene || loop_create_on(&config, &still_backend, &scene->still, &scene->loop, &error) < 0)
        return -1;
    *state = scene;
    return 0;
}

static int
scene_begin(void **state)
{
    return scene_begin_tasks(state, 8);
}

static int
scene_end(void **state)
{
    struct scene *const scene = *state;

    loop_destroy(scene->loop);
    free(scene);
    return 0;
}

struct actor {
    struct scene *scene;
    char name;
    uint64_t count;
};

static void
must_start(struct scene *scene, void (*run)(void *), void *arg)
{
    assert_non_null(task_start(scene->loop, run, arg));
}

/* --- Starting and switching ----------------------------------------------------------------- */

static void
say_twice(void *arg)
{
    struct actor *const actor = arg;

    note(actor->scene, actor->name);
    task_yield(actor->scene->loop);
    note(actor->scene, actor->name);
}

static void
tasks_run_in_the_order_of_their_start_and_yield_in_turn(void **state)
{
    struct scene *const scene = *state;
    struct actor a = {scene, 'a', 0}, b = {scene, 'b', 0}, c = {scene, 'c', 0};

    must_start(scene, say_twice, &a);
    must_start(scene, say_twice, &b);
    must_start(scene, say_twice, &c);
    assert_string_equal(scene->log, "");
    loop_run(scene->loop);
    assert_string_equal(scene->log, "abcabc");
}

static void
suspend_once(void *arg)
{
    struct actor *const actor = arg;

    actor->scene->task = task_self(actor->scene->loop);
    assert_true(task_running(actor->scene->loop));
    note(actor->scene, 's');
    task_suspend(actor->scene->loop);
    note(actor->scene, 'w');
}

static void
wake_it(void *arg)
{
    struct actor *const actor = arg;

    note(actor->scene, 'k');
    task_wake(actor->scene->loop, actor->scene->task);
    note(actor->scene, 'K');
}

static void
suspended_task_goes_on_when_woken(void **state)
{
    struct scene *const scene = *state;
    struct actor a = {scene, 'a', 0};

    must_start(scene, suspend_once, &a);
    must_start(scene, wake_it, &a);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "skKw");
    assert_false(task_running(scene->loop));
}

static void
learn_self(void *arg)
{
    struct actor *const actor = arg;

    actor->scene->task = task_self(actor->scene->loop);
}

static void
task_that_ended_last_is_used_first(void **state)
{
    struct scene *const scene = *state;
    struct actor a = {scene, 'a', 0};
    struct task *first;

    loop_run_task(scene->loop, learn_self, &a);
    first = scene->task;
    loop_run_task(scene->loop, learn_self, &a);
    assert_ptr_equal(scene->task, first);
}

static void
empty_pool_refuses_a_start(void **state)
{
    struct scene *const scene = *state;
    struct actor a = {scene, 'a', 0};

    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(task_free_count(scene->loop), 8 - i);
        must_start(scene, say_twice, &a);
    }
    assert_int_equal(task_free_count(scene->loop), 0);
    assert_null(task_start(scene->loop, say_twice, &a));
    loop_run(scene->loop);
    assert_int_equal(task_free_count(scene->loop), 8);
    assert_string_equal(scene->log, "aaaaaaaaaaaaaaaa");
}

static void
say(void *arg)
{
    struct actor *const actor = arg;

    note(actor->scene, actor->name);
}

static void
start_and_wait(void *arg)
{
    struct actor *const actor = arg;

    task_start_wait(actor->scene->loop, say, actor);
}

/* Seven tasks fill the pool but for one slot, and each wants to start another. */
static void
waiting_starts_are_served_in_order(void **state)
{
    struct scene *const scene = *state;
    struct actor actors[7];

    for (unsigned i = 0; i < ARRAY_LEN(actors); i++) {
        actors[i] = (struct actor){scene, (char)('0' + i), 0};
        must_start(scene, start_and_wait, &actors[i]);
    }
    loop_run(scene->loop);
    assert_string_equal(scene->log, "0123456");
    assert_int_equal(task_free_count(scene->loop), 8);
}

/* --- Wait queues and tokens ----------------------------------------------------------------- */

static void
wait_in_queue(void *arg)
{
    struct actor *const actor = arg;

    wait_queue_wait(actor->scene->loop, &actor->scene->queue);
    note(actor->scene, actor->name);
}

static void
wake_one_then_all(void *arg)
{
    struct actor *const actor = arg;
    struct loop *const loop = actor->scene->loop;
    struct wait_queue *const queue = &actor->scene->queue;

    assert_true(wait_queue_wake_one(loop, queue));
    task_yield(loop);
    note(actor->scene, '.');
    assert_false(wait_queue_empty(queue));
    wait_queue_wake_all(loop, queue);
    assert_true(wait_queue_empty(queue));
    assert_false(wait_queue_wake_one(loop, queue));
}

static void
queue_wakes_in_order(void **state)
{
    struct scene *const scene = *state;
    struct actor a = {scene, 'a', 0}, b = {scene, 'b', 0}, c = {scene, 'c', 0};

    must_start(scene, wait_in_queue, &a);
    must_start(scene, wait_in_queue, &b);
    must_start(scene, wait_in_queue, &c);
    must_start(scene, wake_one_then_all, &a);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "a.bc");
}

static void
take_and_note(void *arg)
{
    struct actor *const actor = arg;

    tokens_take(actor->scene->loop, &actor->scene->tokens, actor->count);
    note(actor->scene, actor->name);
}

static void
give_one_by_one(void *arg)
{
    struct actor *const actor = arg;
    struct scene *const scene = actor->scene;

    for (unsigned i = 0; i < 10; i++) {
        tokens_give(scene->loop, &scene->tokens, 1);
        note(scene, '+');
        task_yield(scene->loop);
    }
}

/* A large request first: the small ones behind it must wait, although there would be enough for
 * them. */
static void
tokens_are_given_strictly_in_order(void **state)
{
    struct scene *const scene = *state;
    struct actor all = {scene, 'x', 10}, large = {scene, 'L', 5}, small = {scene, 's', 1},
                 second = {scene, 't', 2};

    tokens_init(&scene->tokens, 10);
    loop_run_task(scene->loop, take_and_note, &all);
    assert_false(tokens_try(&scene->tokens, 1));
    must_start(scene, take_and_note, &large);
    must_start(scene, take_and_note, &small);
    must_start(scene, take_and_note, &second);
    must_start(scene, give_one_by_one, &all);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "x+++++L+s++t++");
    assert_int_equal(scene->tokens.free, 2);
    assert_true(tokens_try(&scene->tokens, 2));
    assert_false(tokens_try(&scene->tokens, 1));
}

static void
take_or_end_and_note(void *arg)
{
    struct actor *const actor = arg;

    if (tokens_take_or_end(actor->scene->loop, &actor->scene->tokens, actor->count))
        note(actor->scene, actor->name);
    else
        note(actor->scene, '-');
}

static void
end_tokens(void *arg)
{
    struct scene *const scene = arg;

    tokens_end(scene->loop, &scene->tokens);
    note(scene, '.');
}

/* Who waits takes nothing, whoever comes later only what is there. */
static void
nobody_waits_for_tokens_that_have_ended(void **state)
{
    struct scene *const scene = *state;
    struct actor most = {scene, 'x', 8}, large = {scene, 'L', 5}, small = {scene, 's', 1};

    tokens_init(&scene->tokens, 10);
    must_start(scene, take_or_end_and_note, &most);
    must_start(scene, take_or_end_and_note, &large);
    must_start(scene, take_or_end_and_note, &small);
    must_start(scene, end_tokens, scene);
    must_start(scene, take_or_end_and_note, &large);
    must_start(scene, take_or_end_and_note, &small);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "x.-s--");
    assert_int_equal(scene->tokens.free, 1);
}

static void
try_while_one_waits(void *arg)
{
    struct actor *const actor = arg;
    struct scene *const scene = actor->scene;

    tokens_give(scene->loop, &scene->tokens, 2);
    assert_int_equal(scene->tokens.free, 2);
    assert_false(tokens_try(&scene->tokens, 1)); /* 5 are wanted before us */
    tokens_give(scene->loop, &scene->tokens, 8);
    assert_true(tokens_try(&scene->tokens, 5));
}

static void
try_does_not_overtake_who_waits(void **state)
{
    struct scene *const scene = *state;
    struct actor all = {scene, 'x', 10}, large = {scene, 'L', 5};

    tokens_init(&scene->tokens, 10);
    loop_run_task(scene->loop, take_and_note, &all);
    must_start(scene, take_and_note, &large);
    must_start(scene, try_while_one_waits, &all);
    loop_run(scene->loop);
    assert_string_equal(scene->log, "xL");
    assert_int_equal(scene->tokens.free, 0);
}

/* --- What must kill the process ------------------------------------------------------------- */

/* Runs it in a child and returns the signal that ended that. */
static int
death_of(void (*run)(void *), struct scene *scene)
{
    struct actor actor = {scene, 'd', 0};
    int status;
    const pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0, 0};

        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGABRT, SIG_DFL);
        (void)signal(SIGSEGV, SIG_DFL);
        (void)close(STDERR_FILENO); /* the assertion's text is expected, not news */
        loop_run_task(scene->loop, run, &actor);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void
suspend_forbidden(void *arg)
{
    struct actor *const actor = arg;

    task_forbid_begin(actor->scene->loop);
    task_forbid_begin(actor->scene->loop);
    task_forbid_end(actor->scene->loop);
    task_yield(actor->scene->loop);
}

static void
suspend_allowed_again(void *arg)
{
    struct actor *const actor = arg;

    task_forbid_begin(actor->scene->loop);
    task_forbid_end(actor->scene->loop);
    task_yield(actor->scene->loop);
}

static void
suspend_while_forbidden_is_an_assertion(void **state)
{
    struct scene *const scene = *state;

    assert_int_equal(death_of(suspend_forbidden, scene), SIGABRT);
    assert_int_equal(death_of(suspend_allowed_again, scene), 0);
}

static void
wake_myself(void *arg)
{
    struct actor *const actor = arg;

    task_wake(actor->scene->loop, task_self(actor->scene->loop));
}

static void
waking_a_task_that_is_not_suspended_is_an_assertion(void **state)
{
    assert_int_equal(death_of(wake_myself, *state), SIGABRT);
}

__attribute__((noinline, no_sanitize("address", "undefined"))) static unsigned
dig(volatile char *above, unsigned depth)
{
    volatile char frame[512];

    frame[0] = above[0];
    frame[511] = (char)depth;
    if (depth == 0)
        return (unsigned)frame[0];
    return dig(frame, depth - 1) + (unsigned)frame[511];
}

static void
dig_too_deep(void *arg)
{
    volatile char top = 1;

    (void)arg;
    (void)dig(&top, 2000); /* a megabyte, more than any stack here */
}

static void
dig_a_little(void *arg)
{
    volatile char top = 1;

    (void)arg;
    (void)dig(&top, 50);
}

static void
stack_overflow_hits_the_guard_page(void **state)
{
    assert_int_equal(death_of(dig_too_deep, *state), SIGSEGV);
    assert_int_equal(death_of(dig_a_little, *state), 0);
}

int
main(void)
{
#define scene_test(name) cmocka_unit_test_setup_teardown(name, scene_begin, scene_end)
    const struct CMUnitTest tests[] = {
        scene_test(tasks_run_in_the_order_of_their_start_and_yield_in_turn),
        scene_test(suspended_task_goes_on_when_woken),
        scene_test(task_that_ended_last_is_used_first),
        scene_test(empty_pool_refuses_a_start),
        scene_test(waiting_starts_are_served_in_order),
        scene_test(queue_wakes_in_order),
        scene_test(tokens_are_given_strictly_in_order),
        scene_test(nobody_waits_for_tokens_that_have_ended),
        scene_test(try_does_not_overtake_who_waits),
        scene_test(suspend_while_forbidden_is_an_assertion),
        scene_test(waking_a_task_that_is_not_suspended_is_an_assertion),
        scene_test(stack_overflow_hits_the_guard_page),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
