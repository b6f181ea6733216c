/*
 * loop_private.h: what task.c and loop.c share: the inside of a task, the task pool and the loop.
 *
 * R1. A task is in exactly one place: the free list, the run queue, one wait queue, or none (it
 *     runs, or it is suspended and only its waker knows it).
 * R2. `slots` counts the tasks that may still be started; a task that ended gives its slot to the
 *     first who waits for one before anybody else can take it.
 * R3. Control passes only between the loop and a task, never from task to task.
 */
#ifndef STRIPELOG_LOOP_PRIVATE_H
#define STRIPELOG_LOOP_PRIVATE_H

#include "runtime/loop.h"
#include <pthread.h>
#include <stdatomic.h>

enum task_state { TASK_FREE, TASK_RUNNABLE, TASK_RUNNING, TASK_SUSPENDED };

struct task {
    struct task *next; /* in the list it is in (R1) */
    void *context;     /* where it stands while it does not run */
    void (*run)(void *arg);
    void *arg;
    uint64_t wanted; /* tokens it waits for */
    enum task_state state;
    bool queued;            /* in a wait queue: only its owner may wake it */
    unsigned valgrind_id;   /* of the stack */
    struct task_pool *pool; /* borrowed */
    char *stack;            /* lowest usable byte, in the pool's mapping */
    void *fake_stack;       /* AddressSanitizer's, while the task does not run */
};

struct task_pool {
    struct task *tasks; /* owned array */
    struct task *free;  /* last-in first-out */
    struct wait_queue runnable;
    struct task *current; /* NULL while the loop itself runs */
    struct tokens slots;
    unsigned count;
    unsigned live;      /* started and not ended */
    unsigned forbid;    /* depth of task_forbid_begin */
    void *loop_context; /* where the loop stands while a task runs */
    void *loop_fake_stack;
    const void *loop_stack;
    size_t loop_stack_bytes;
    char *stacks; /* owned mapping */
    size_t stacks_bytes, stack_bytes;
};

struct loop {
    struct task_pool pool;
    const struct loop_backend *backend;
    void *self; /* the backend's; owned */
    uint64_t now_ns;
    uint64_t random_state;
    bool stopped;
    struct timer *timer_first, *timer_last; /* by at_ns, first armed first */
    struct turn_hook *hook_first, **hook_end;
    pthread_mutex_t call_lock; /* protects call_first, call_end */
    struct loop_call *call_first, **call_end;
    atomic_bool called; /* call_first may be non-NULL */
};

int task_pool_init(struct task_pool *pool, unsigned count, size_t stack_bytes) must_check;
void task_pool_fini(struct task_pool *pool);
/* Runs the first runnable task until it suspends or ends; false if there is none. */
bool task_pool_run_one(struct loop *loop);

#endif
