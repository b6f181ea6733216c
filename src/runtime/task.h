/*
 * task.h: stackful coroutines on one loop.
 *
 * A task is one operation written from top to bottom: it runs until it suspends, and goes on
 * when somebody wakes it. All tasks of a loop share one thread, so nothing changes under a task
 * between two suspend points, and anything may have changed after one.
 *
 * Tasks come from the loop's pool (fixed number, guard page below each stack, used last-in
 * first-out) and go back when their function returns. Switching is Boost.Context's
 * jump_fcontext with the sanitizers' and valgrind's annotations.
 *
 *          task_start            task_suspend
 *   FREE ------------> RUNNABLE <------------ (running) ---> FREE (function returned)
 *                          |   ------------->    |
 *                          |                     v
 *                          +---- task_wake -- SUSPENDED
 */
#ifndef STRIPELOG_TASK_H
#define STRIPELOG_TASK_H

#include "base/base.h"

struct loop;
struct task;

/* A first-in first-out queue of suspended tasks. Zero-initialised is empty. */
struct wait_queue {
    struct task *first, *last;
};

/* Starts run(arg) as a task: it is put at the end of the run queue. NULL when the pool is empty. */
struct task *task_start(struct loop *loop, void (*run)(void *arg), void *arg) must_check;

/* The same, waiting in order for a free task. */
task_fn void task_start_wait(struct loop *loop, void (*run)(void *arg), void *arg);

/* How many more task_start calls would succeed now. */
unsigned task_free_count(const struct loop *loop);

/* The task that is running; asserts that there is one. */
struct task *task_self(struct loop *loop);

/* True when called from a task of this loop (not from a callback of the loop itself). */
bool task_running(const struct loop *loop);

/* Suspends the caller until task_wake. Each task_wake ends one task_suspend: there are no stray
 * wake-ups. */
task_fn void task_suspend(struct loop *loop);

/* Puts a suspended task at the end of the run queue. Asserts that it is suspended (not runnable
 * already). */
void task_wake(struct loop *loop, struct task *task);

/* Lets all that is runnable now run before the caller goes on. */
task_fn void task_yield(struct loop *loop);

/* Until task_forbid_end, a suspend in this task is an assertion failure. They nest. */
void task_forbid_begin(struct loop *loop);
void task_forbid_end(struct loop *loop);

task_fn void wait_queue_wait(struct loop *loop, struct wait_queue *queue);
bool wait_queue_empty(const struct wait_queue *queue);
/* Wakes the first that waits; false if nobody did. */
bool wait_queue_wake_one(struct loop *loop, struct wait_queue *queue);
void wait_queue_wake_all(struct loop *loop, struct wait_queue *queue);

/*
 * A counted resource given out strictly in order: nobody overtakes the first who waits, so a
 * large request cannot starve behind small ones.
 */
struct tokens {
    uint64_t free, total;
    bool ended;
    struct wait_queue waiters;
};

void tokens_init(struct tokens *tokens, uint64_t total);
/* Waits until count are free and all who came before are served. count <= total. */
task_fn void tokens_take(struct loop *loop, struct tokens *tokens, uint64_t count);
/* The same; but false, and nothing is taken, if they are ended before it is our turn. */
task_fn bool tokens_take_or_end(struct loop *loop, struct tokens *tokens,
                                uint64_t count) must_check;
/* Nobody waits any more, for good. Only where all takes are of the second kind. */
void tokens_end(struct loop *loop, struct tokens *tokens);
/* Takes them at once or not at all; false if too few are free or somebody waits. */
bool tokens_try(struct tokens *tokens, uint64_t count) must_check;
void tokens_give(struct loop *loop, struct tokens *tokens, uint64_t count);

#endif
