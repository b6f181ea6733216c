/*
 * task.c: the task pool, switching, and what tasks wait in.
 *
 * Every task has a stack in one mapping, with a guard page below:
 *
 *     | guard | stack 0 ........ | guard | stack 1 ........ | ...
 *
 * The context is made anew at each start and written to the top of the stack; it costs a few
 * stores. A task never jumps to another task but always back to the loop (R3), which keeps the
 * sanitizers' picture simple and costs two switches of some nanoseconds instead of one.
 */
#include "runtime/loop_private.h"
#include "runtime/annotate.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The C interface of Boost.Context's assembly. */
struct transfer {
    void *context; /* where the other side stands */
    void *data;
};
extern struct transfer jump_fcontext(void *to, void *data);
extern void *make_fcontext(void *stack_top, size_t bytes, void (*run)(struct transfer));

/* --- The pool ------------------------------------------------------------------------------- */

int
task_pool_init(struct task_pool *pool, unsigned count, size_t stack_bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t each;

    assert(count > 0);
    *pool = (struct task_pool){.count = count};
    pool->stack_bytes = round_up(stack_bytes, page);
    each = pool->stack_bytes + page;
    pool->tasks = calloc(count, sizeof *pool->tasks);
    if (!pool->tasks)
        return -ENOMEM;
    pool->stacks_bytes = each * count;
    pool->stacks = mmap(NULL, pool->stacks_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (pool->stacks == MAP_FAILED) {
        free(pool->tasks);
        return -ENOMEM;
    }
    tokens_init(&pool->slots, count);
    for (unsigned i = count; i-- > 0;) {
        struct task *const task = &pool->tasks[i];
        char *const guard = pool->stacks + i * each;

        if (mprotect(guard, page, PROT_NONE) < 0) {
            (void)munmap(pool->stacks, pool->stacks_bytes); /* nothing could be done about it */
            free(pool->tasks);
            return -ENOMEM;
        }
        task->stack = guard + page;
        task->pool = pool;
        task->valgrind_id = annotate_stack_register(task->stack, task->stack + pool->stack_bytes);
        task->next = pool->free;
        pool->free = task;
    }
    return 0;
}

void
task_pool_fini(struct task_pool *pool)
{
    assert(pool->live == 0);
    for (unsigned i = 0; i < pool->count; i++)
        annotate_stack_deregister(pool->tasks[i].valgrind_id);
    annotate_memory_on(pool->stacks, pool->stacks_bytes);
    (void)munmap(pool->stacks, pool->stacks_bytes); /* fails only on a wrong range */
    free(pool->tasks);
}

/* --- Switching ------------------------------------------------------------------------------ */

static void
queue_push(struct wait_queue *queue, struct task *task)
{
    task->next = NULL;
    if (queue->last)
        queue->last->next = task;
    else
        queue->first = task;
    queue->last = task;
}

static struct task *
queue_pop(struct wait_queue *queue)
{
    struct task *const task = queue->first;

    if (!task)
        return NULL;
    queue->first = task->next;
    if (!queue->first)
        queue->last = NULL;
    task->next = NULL;
    return task;
}

/* The first frame of every task. It never returns: its last jump leaves the stack for good, so the
 * sanitizer must keep nothing of this frame. */
__attribute__((no_sanitize("address"))) static void
task_main(struct transfer from)
{
    struct task *const task = from.data;
    struct task_pool *const pool = task->pool;

    annotate_switch_end(NULL, &pool->loop_stack, &pool->loop_stack_bytes);
    pool->loop_context = from.context;
    task->run(task->arg);
    assert(pool->forbid == 0);
    task->state = TASK_FREE;
    annotate_switch_begin(NULL, pool->loop_stack, pool->loop_stack_bytes);
    (void)jump_fcontext(pool->loop_context, NULL);
    __builtin_unreachable();
}

bool
task_pool_run_one(struct loop *loop)
{
    struct task_pool *const pool = &loop->pool;
    struct task *const task = queue_pop(&pool->runnable);
    struct transfer from;

    if (!task)
        return false;
    assert(!pool->current);
    assert(task->state == TASK_RUNNABLE);
    task->state = TASK_RUNNING;
    pool->current = task;
    annotate_switch_begin(&pool->loop_fake_stack, task->stack, pool->stack_bytes);
    from = jump_fcontext(task->context, task);
    annotate_switch_end(pool->loop_fake_stack, NULL, NULL);
    pool->current = NULL;
    if (task->state != TASK_FREE) {
        task->context = from.context;
        return true;
    }
    task->next = pool->free;
    pool->free = task;
    pool->live--;
    tokens_give(loop, &pool->slots, 1);
    return true;
}

/* The caller has set the state and put itself where its waker finds it. */
static void
switch_to_loop(struct task_pool *pool, struct task *task)
{
    struct transfer from;

    annotate_switch_begin(&task->fake_stack, pool->loop_stack, pool->loop_stack_bytes);
    from = jump_fcontext(pool->loop_context, NULL);
    annotate_switch_end(task->fake_stack, &pool->loop_stack, &pool->loop_stack_bytes);
    pool->loop_context = from.context;
}

static struct task *
start(struct loop *loop, void (*run)(void *arg), void *arg)
{
    struct task_pool *const pool = &loop->pool;
    struct task *const task = pool->free;

    assert(task); /* slots counts them (R2) */
    assert(task->state == TASK_FREE);
    pool->free = task->next;
    pool->live++;
    task->run = run;
    task->arg = arg;
    task->state = TASK_RUNNABLE;
    task->context = make_fcontext(task->stack + pool->stack_bytes, pool->stack_bytes, task_main);
    queue_push(&pool->runnable, task);
    return task;
}

struct task *
task_start(struct loop *loop, void (*run)(void *arg), void *arg)
{
    return tokens_try(&loop->pool.slots, 1) ? start(loop, run, arg) : NULL;
}

void
task_start_wait(struct loop *loop, void (*run)(void *arg), void *arg)
{
    tokens_take(loop, &loop->pool.slots, 1);
    (void)start(loop, run, arg); /* cannot fail with a slot in hand */
}

unsigned
task_free_count(const struct loop *loop)
{
    const struct tokens *const slots = &loop->pool.slots;

    return wait_queue_empty(&slots->waiters) ? (unsigned)slots->free : 0;
}

struct task *
task_self(struct loop *loop)
{
    assert(loop->pool.current);
    return loop->pool.current;
}

bool
task_running(const struct loop *loop)
{
    return loop->pool.current != NULL;
}

void
task_suspend(struct loop *loop)
{
    struct task *const task = task_self(loop);

    assert(loop->pool.forbid == 0);
    task->state = TASK_SUSPENDED;
    switch_to_loop(&loop->pool, task);
}

static void
make_runnable(struct loop *loop, struct task *task)
{
    assert(task->state == TASK_SUSPENDED);
    assert(task->pool == &loop->pool);
    task->state = TASK_RUNNABLE;
    queue_push(&loop->pool.runnable, task);
}

void
task_wake(struct loop *loop, struct task *task)
{
    assert(!task->queued);
    make_runnable(loop, task);
}

void
task_yield(struct loop *loop)
{
    struct task *const task = task_self(loop);

    assert(loop->pool.forbid == 0);
    task->state = TASK_RUNNABLE;
    queue_push(&loop->pool.runnable, task);
    switch_to_loop(&loop->pool, task);
}

void
task_forbid_begin(struct loop *loop)
{
    loop->pool.forbid++;
}

void
task_forbid_end(struct loop *loop)
{
    assert(loop->pool.forbid > 0);
    loop->pool.forbid--;
}

/* --- Waiting -------------------------------------------------------------------------------- */

void
wait_queue_wait(struct loop *loop, struct wait_queue *queue)
{
    struct task *const task = task_self(loop);

    task->queued = true;
    queue_push(queue, task);
    task_suspend(loop);
}

bool
wait_queue_empty(const struct wait_queue *queue)
{
    return queue->first == NULL;
}

bool
wait_queue_wake_one(struct loop *loop, struct wait_queue *queue)
{
    struct task *const task = queue_pop(queue);

    if (!task)
        return false;
    task->queued = false;
    make_runnable(loop, task);
    return true;
}

void
wait_queue_wake_all(struct loop *loop, struct wait_queue *queue)
{
    while (wait_queue_wake_one(loop, queue))
        ;
}

void
tokens_init(struct tokens *tokens, uint64_t total)
{
    *tokens = (struct tokens){.free = total, .total = total};
}

bool
tokens_try(struct tokens *tokens, uint64_t count)
{
    if (tokens->free < count || !wait_queue_empty(&tokens->waiters))
        return false;
    tokens->free -= count;
    return true;
}

void
tokens_take(struct loop *loop, struct tokens *tokens, uint64_t count)
{
    assert(count <= tokens->total);
    if (tokens_try(tokens, count))
        return;
    task_self(loop)->wanted = count;
    wait_queue_wait(loop, &tokens->waiters); /* tokens_give has taken them for us */
}

bool
tokens_take_or_end(struct loop *loop, struct tokens *tokens, uint64_t count)
{
    struct task *self = task_self(loop);

    assert(count <= tokens->total);
    if (tokens_try(tokens, count))
        return true;
    if (tokens->ended)
        return false;
    self->wanted = count;
    wait_queue_wait(loop, &tokens->waiters);
    return self->wanted == count;
}

void
tokens_end(struct loop *loop, struct tokens *tokens)
{
    tokens->ended = true;
    while (!wait_queue_empty(&tokens->waiters)) {
        tokens->waiters.first->wanted = UINT64_MAX;        /* more than there can be */
        (void)wait_queue_wake_one(loop, &tokens->waiters); /* somebody waits: just seen */
    }
}

void
tokens_give(struct loop *loop, struct tokens *tokens, uint64_t count)
{
    assert(count <= tokens->total - tokens->free);
    tokens->free += count;
    while (!wait_queue_empty(&tokens->waiters) && tokens->waiters.first->wanted <= tokens->free) {
        tokens->free -= tokens->waiters.first->wanted;
        (void)wait_queue_wake_one(loop, &tokens->waiters); /* somebody waits: just seen */
    }
}
