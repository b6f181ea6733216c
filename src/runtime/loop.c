/*
 * loop.c: turns, timers, hooks and the way in from other threads.
 *
 *     +-> run what is runnable -> turn-end hooks -+-> backend wait -> due timers -> calls -+
 *     |            ^------- what they woke -------+                                        |
 *     +------------------------------------------------------------------------------------+
 *
 * A turn runs a bounded number of task switches, so that tasks which wake each other without end
 * cannot keep completions, timers and calls from being seen.
 */
#include "runtime/loop.h"
#include "runtime/annotate.h"
#include "runtime/loop_private.h"
#include <stdlib.h>
#include <sys/random.h>

#define TASKS_DEFAULT     1024u
#define TURN_SWITCHES_MAX 4096u
#ifdef ANNOTATE_ASAN
#define STACK_BYTES_DEFAULT (256 * KIB)
#else
#define STACK_BYTES_DEFAULT (64 * KIB)
#endif

/* --- Life ----------------------------------------------------------------------------------- */

static uint64_t
system_seed(void)
{
    uint64_t seed = 0;

    /* Eight bytes come whole once the system is up; before that any seed is as good. */
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint64_t)(uintptr_t)&seed;
    return seed;
}

int
loop_create_on(const struct loop_config *config, const struct loop_backend *backend, void *self,
               struct loop **out, struct error *error)
{
    struct loop *const loop = calloc(1, sizeof *loop);
    int rc = -ENOMEM;

    if (loop)
        rc = task_pool_init(&loop->pool, config->tasks ? config->tasks : TASKS_DEFAULT,
                            config->task_stack_bytes ? config->task_stack_bytes
                                                     : STACK_BYTES_DEFAULT);
    if (rc < 0) {
        free(loop);
        backend->destroy(self);
        return error_set(error, rc, "cannot map the stacks of the tasks: %s", strerror(-rc));
    }
    loop->backend = backend;
    loop->self = self;
    loop->random_state = config->seed ? config->seed : system_seed();
    loop->hook_end = &loop->hook_first;
    loop->call_end = &loop->call_first;
    (void)pthread_mutex_init(&loop->call_lock, NULL); /* cannot fail without attributes */
    atomic_init(&loop->called, false);
    loop->now_ns = backend->now_ns(self);
    *out = loop;
    return 0;
}

void
loop_destroy(struct loop *loop)
{
    loop->backend->destroy(loop->self);
    task_pool_fini(&loop->pool);
    (void)pthread_mutex_destroy(&loop->call_lock); /* nobody holds it */
    free(loop);
}

const char *
loop_backend_name(const struct loop *loop)
{
    return loop->backend->name;
}

void *
loop_backend_self(const struct loop *loop)
{
    return loop->self;
}

uint64_t
loop_now_ns(const struct loop *loop)
{
    return loop->now_ns;
}

uint64_t
loop_clock_ns(const struct loop *loop)
{
    return loop->backend->now_ns(loop->self);
}

uint64_t
loop_wall_us(const struct loop *loop)
{
    return loop->backend->wall_us(loop->self);
}

/* SplitMix64: one word of state, equidistributed, more than enough for jitter and names. */
uint64_t
loop_random(struct loop *loop)
{
    uint64_t z = loop->random_state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* --- Timers --------------------------------------------------------------------------------- */

void
timer_cancel(struct loop *loop, struct timer *timer)
{
    if (!timer->armed)
        return;
    timer->armed = false;
    if (timer->previous)
        timer->previous->next = timer->next;
    else
        loop->timer_first = timer->next;
    if (timer->next)
        timer->next->previous = timer->previous;
    else
        loop->timer_last = timer->previous;
}

/* Searched from the end: a timer is mostly the latest when it is armed. */
void
timer_arm(struct loop *loop, struct timer *timer, uint64_t after_ns)
{
    struct timer *before;

    timer_cancel(loop, timer);
    assert(timer->fire);
    /* At least one tick ahead, so that a timer that re-arms itself from fire waits for a turn. */
    after_ns = max_u64(after_ns, 1);
    timer->at_ns = after_ns > UINT64_MAX - loop->now_ns ? UINT64_MAX : loop->now_ns + after_ns;
    for (before = loop->timer_last; before && before->at_ns > timer->at_ns;
         before = before->previous)
        ;
    timer->previous = before;
    timer->next = before ? before->next : loop->timer_first;
    if (timer->previous)
        timer->previous->next = timer;
    else
        loop->timer_first = timer;
    if (timer->next)
        timer->next->previous = timer;
    else
        loop->timer_last = timer;
    timer->armed = true;
}

static void
fire_due(struct loop *loop)
{
    while (loop->timer_first && loop->timer_first->at_ns <= loop->now_ns) {
        struct timer *const timer = loop->timer_first;

        timer_cancel(loop, timer);
        timer->fire(timer);
    }
}

struct sleeper {
    struct timer timer;
    struct loop *loop;
    struct task *task;
};

static void
sleeper_wake(struct timer *timer)
{
    struct sleeper *const sleeper = container_of(timer, struct sleeper, timer);

    task_wake(sleeper->loop, sleeper->task);
}

void
loop_sleep(struct loop *loop, uint64_t ns)
{
    struct sleeper sleeper = {.timer.fire = sleeper_wake, .loop = loop, .task = task_self(loop)};

    timer_arm(loop, &sleeper.timer, ns);
    task_suspend(loop);
}

/* --- Hooks and calls ------------------------------------------------------------------------ */

void
loop_at_turn_end(struct loop *loop, struct turn_hook *hook)
{
    if (hook->queued)
        return;
    hook->queued = true;
    hook->next = NULL;
    *loop->hook_end = hook;
    loop->hook_end = &hook->next;
}

/* Those that were queued until now; what they queue comes after the tasks they woke. */
static void
run_hooks(struct loop *loop)
{
    struct turn_hook *hook = loop->hook_first;

    loop->hook_first = NULL;
    loop->hook_end = &loop->hook_first;
    while (hook) {
        struct turn_hook *const next = hook->next;

        hook->queued = false;
        hook->run(hook);
        hook = next;
    }
}

void
loop_call(struct loop *loop, struct loop_call *call)
{
    bool first;

    call->next = NULL;
    (void)pthread_mutex_lock(&loop->call_lock); /* fails only on misuse */
    *loop->call_end = call;
    loop->call_end = &call->next;
    first = !atomic_exchange(&loop->called, true);
    /* Under the lock: once the call can run, the loop may go away with the last caller's word. */
    if (first && loop->backend->interrupt)
        loop->backend->interrupt(loop->self);
    (void)pthread_mutex_unlock(&loop->call_lock);
}

static void
run_calls(struct loop *loop)
{
    struct loop_call *call;

    if (!atomic_load_explicit(&loop->called, memory_order_acquire))
        return;
    (void)pthread_mutex_lock(&loop->call_lock);
    call = loop->call_first;
    loop->call_first = NULL;
    loop->call_end = &loop->call_first;
    atomic_store(&loop->called, false);
    (void)pthread_mutex_unlock(&loop->call_lock);
    while (call) {
        struct loop_call *const next = call->next; /* run may end the call's life */

        call->run(call);
        call = next;
    }
}

/* --- Turns ---------------------------------------------------------------------------------- */

/* Returns whether something is left that could run at once. */
static bool
run_all(struct loop *loop)
{
    unsigned switches = 0;

    do {
        while (switches < TURN_SWITCHES_MAX && task_pool_run_one(loop))
            switches++;
        run_hooks(loop);
    } while (switches < TURN_SWITCHES_MAX &&
             (!wait_queue_empty(&loop->pool.runnable) || loop->hook_first));
    return !wait_queue_empty(&loop->pool.runnable) || loop->hook_first;
}

static void
wait_and_deliver(struct loop *loop, bool may_sleep)
{
    uint64_t deadline_ns = loop->timer_first ? loop->timer_first->at_ns : UINT64_MAX;

    if (!may_sleep || atomic_load_explicit(&loop->called, memory_order_relaxed))
        deadline_ns = 0;
    loop->backend->wait(loop->self, deadline_ns);
    loop->now_ns = loop->backend->now_ns(loop->self);
    fire_due(loop);
    run_calls(loop);
}

void
loop_run(struct loop *loop)
{
    assert(!loop->pool.current);
    loop->now_ns = loop->backend->now_ns(loop->self);
    for (;;) {
        const bool more = run_all(loop);

        if (loop->stopped || loop->pool.live == 0)
            break;
        wait_and_deliver(loop, !more);
    }
    loop->stopped = false;
}

void
loop_stop(struct loop *loop)
{
    loop->stopped = true;
}

struct awaited {
    void (*run)(void *arg);
    void *arg;
    bool ended;
};

static void
awaited_run(void *arg)
{
    struct awaited *const awaited = arg;

    awaited->run(awaited->arg);
    awaited->ended = true;
}

void
loop_run_task(struct loop *loop, void (*run)(void *arg), void *arg)
{
    struct awaited awaited = {.run = run, .arg = arg};
    struct task *task;

    assert(!loop->pool.current);
    loop->now_ns = loop->backend->now_ns(loop->self);
    task = task_start(loop, awaited_run, &awaited);
    assert(task);
    for (;;) {
        const bool more = run_all(loop);

        if (awaited.ended)
            break;
        wait_and_deliver(loop, !more);
    }
}

/* --- System operations ---------------------------------------------------------------------- */

void
loop_io_submit(struct loop *loop, struct loop_io *io)
{
    assert(io->done);
    io->loop = loop;
    io->next = NULL;
    loop->backend->submit(loop->self, io);
}

static void
wake_waiter(struct loop_io *io)
{
    task_wake(io->loop, io->waiter);
}

int
loop_io_wait(struct loop *loop, struct loop_io *io)
{
    io->waiter = task_self(loop);
    io->done = wake_waiter;
    loop_io_submit(loop, io);
    task_suspend(loop);
    return io->result;
}

void
loop_memory_known(struct loop *loop, void *at, uint64_t bytes)
{
    if (loop->backend->memory_known)
        loop->backend->memory_known(loop->self, at, bytes);
}

void
loop_memory_forget(struct loop *loop, const void *at)
{
    if (loop->backend->memory_forget)
        loop->backend->memory_forget(loop->self, at);
}
