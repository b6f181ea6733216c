/*
 * device.c: what all devices share: the pool of operations, groups, and single operations.
 *
 * D4. An io belongs to its taker until io_submit, to the device until io_complete, and is then
 *     free: whoever waits learns of it through the group only.
 *
 * D5. A freed io goes to the first who waits for one; `granted` counts those that are woken and
 * have not picked it up yet.
 */
#include "device/device.h"
#include <stdlib.h>

/* --- The pool ------------------------------------------------------------------------------- */

int
io_pool_init(struct io_pool *pool, struct loop *loop, unsigned count)
{
    assert(count > 0);
    *pool = (struct io_pool){.loop = loop, .count = count, .free_count = count};
    pool->all = calloc(count, sizeof *pool->all);
    if (!pool->all)
        return -ENOMEM;
    for (unsigned i = count; i-- > 0;) {
        pool->all[i].pool = pool;
        pool->all[i].next = pool->free;
        pool->free = &pool->all[i];
    }
    return 0;
}

void
io_pool_fini(struct io_pool *pool)
{
    assert(pool->free_count == pool->count);
    free(pool->all);
}

/* All but the vectors, which iov_count says are empty. */
static void
io_reset(struct io *io)
{
    io->op = IO_READ;
    io->fua = false;
    io->iov_count = 0;
    io->offset = io->length = 0;
    io->result = 0;
    io->member = 0;
    io->tag = 0;
    io->device = NULL;
    io->group = NULL;
    io->next = NULL;
    io->retries = 0;
}

struct io *
io_take(struct io_pool *pool)
{
    struct io *io;

    if (pool->free_count == pool->granted || !wait_queue_empty(&pool->waiters)) {
        wait_queue_wait(pool->loop, &pool->waiters);
        pool->granted--;
    }
    io = pool->free;
    assert(io);
    pool->free = io->next;
    pool->free_count--;
    io_reset(io);
    return io;
}

static void
io_return(struct io *io)
{
    struct io_pool *const pool = io->pool;

    io->next = pool->free;
    pool->free = io;
    pool->free_count++;
    if (wait_queue_wake_one(pool->loop, &pool->waiters))
        pool->granted++;
}

/* --- One operation -------------------------------------------------------------------------- */

bool
io_add(struct io *io, void *memory, uint64_t length)
{
    struct iovec *const last = io->iov_count > 0 ? &io->iov[io->iov_count - 1] : NULL;

    assert(length > 0);
    assert(length % BLOCK_BYTES == 0);
    assert((uintptr_t)memory % BLOCK_BYTES == 0);
    if (last && (char *)last->iov_base + last->iov_len == memory) {
        last->iov_len += length;
    } else {
        if (io->iov_count == IO_VECTORS)
            return false;
        io->iov[io->iov_count++] = (struct iovec){.iov_base = memory, .iov_len = length};
    }
    io->length += length;
    return true;
}

void
io_submit(struct io *io, struct device *device, struct io_group *group)
{
    assert(io->offset % BLOCK_BYTES == 0);
    assert(io->length % BLOCK_BYTES == 0);
    assert(io->op == IO_FLUSH || io->length > 0);
    assert(!device->readonly || io->op == IO_READ || io->op == IO_FLUSH);
    io->device = device;
    io->group = group;
    io->result = 0;
    group->pending++;
    device->ops->submit(device, io);
}

void
io_complete(struct io *io)
{
    struct io_group *const group = io->group;

    assert(io->result <= 0);
    assert(group->pending > 0);
    if (io->result < 0) {
        if (group->first_error == 0)
            group->first_error = io->result;
        if (group->failed)
            group->failed(group, io);
    }
    if (io->pool)
        io_return(io);
    group->pending--;
    if (group->pending == 0 && group->waiter) {
        struct task *const waiter = group->waiter;

        group->waiter = NULL;
        task_wake(group->loop, waiter);
    }
}

/* --- Groups --------------------------------------------------------------------------------- */

void
io_group_init(struct io_group *group, struct loop *loop)
{
    *group = (struct io_group){.loop = loop};
}

int
io_wait(struct io_group *group)
{
    assert(!group->waiter);
    if (group->pending > 0) {
        group->waiter = task_self(group->loop);
        task_suspend(group->loop);
        assert(group->pending == 0);
    }
    return group->first_error;
}

/* --- Single operations ---------------------------------------------------------------------- */

static int
io_alone(struct io *io, struct device *device)
{
    struct io_group group;

    io_group_init(&group, device->loop);
    io_submit(io, device, &group);
    return io_wait(&group);
}

static void
add_first(struct io *io, void *memory, uint64_t length)
{
    const bool fits = io_add(io, memory, length);

    assert(fits);
    (void)fits;
}

int
device_read(struct device *device, void *memory, uint64_t offset, uint64_t length)
{
    struct io io = {.op = IO_READ, .offset = offset};

    add_first(&io, memory, length);
    return io_alone(&io, device);
}

int
device_write(struct device *device, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    struct io io = {.op = IO_WRITE, .fua = fua, .offset = offset};

    add_first(&io, (void *)(uintptr_t)memory, length);
    return io_alone(&io, device);
}

int
device_flush(struct device *device)
{
    struct io io = {.op = IO_FLUSH};

    return io_alone(&io, device);
}

void
device_close(struct device *device)
{
    device->ops->close(device);
}
