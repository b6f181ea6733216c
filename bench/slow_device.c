/*
 * slow_device.c: see slow_device.h.
 *
 * Either model finishes in the order of arrival, so what waits is one list, the first of which is
 * due first, and one timer.
 */
#include "slow_device.h"
#include <stdlib.h>

#define NS_PER_S UINT64_C(1000000000)

struct slow_device {
    struct device device;
    struct device *below; /* owned */
    struct slow_model model;
    struct io *first, **end; /* held back */
    struct timer timer;
    uint64_t free_ns; /* the spindle's: when it has done all that arrived */
    uint64_t head;    /* the spindle's: where its last transfer ended */
    uint64_t operations, seeks;
};

static uint64_t
transfer_ns(const struct slow_device *slow, uint64_t bytes)
{
    return bytes * NS_PER_S / slow->model.bytes_per_s;
}

/* How long the spindle works on it; moves the head. */
static uint64_t
spindle_ns(struct slow_device *slow, const struct io *io)
{
    const uint64_t gap = io->offset - slow->head; /* huge where it lies before the head */

    if (io->op == IO_FLUSH) {
        slow->seeks++;
        return slow->model.seek_ns;
    }
    slow->head = io->offset + io->length;
    if (gap <= slow->model.near_bytes)
        return transfer_ns(slow, gap + io->length);
    slow->seeks++;
    return slow->model.seek_ns + transfer_ns(slow, io->length);
}

/* When a held operation is passed on. What the device behind will use of it is free until then. */
static uint64_t *
due_ns(struct io *io)
{
    return &io->system.offset;
}

static void
timer_set(struct slow_device *slow)
{
    const uint64_t now = loop_now_ns(slow->device.loop), due = *due_ns(slow->first);

    timer_arm(slow->device.loop, &slow->timer, due > now ? due - now : 0);
}

static void
slow_submit(struct device *device, struct io *io)
{
    struct slow_device *const slow = container_of(device, struct slow_device, device);
    const uint64_t now = loop_now_ns(device->loop);
    uint64_t due = now + slow->model.delay_ns;

    slow->operations++;
    if (slow->model.seek_ns > 0) {
        slow->free_ns = max_u64(slow->free_ns, now) + spindle_ns(slow, io);
        due += slow->free_ns - now;
    }
    *due_ns(io) = due;
    io->next = NULL;
    *slow->end = io;
    slow->end = &io->next;
    if (slow->first == io)
        timer_set(slow);
}

static void
slow_fire(struct timer *timer)
{
    struct slow_device *const slow = container_of(timer, struct slow_device, timer);
    const uint64_t now = loop_now_ns(slow->device.loop);

    while (slow->first && *due_ns(slow->first) <= now) {
        struct io *const io = slow->first;

        slow->first = io->next;
        io->next = NULL;
        io->device = slow->below; /* whose io it is from here on */
        slow->below->ops->submit(slow->below, io);
    }
    if (!slow->first)
        slow->end = &slow->first;
    else
        timer_set(slow);
}

static void
slow_close(struct device *device)
{
    struct slow_device *const slow = container_of(device, struct slow_device, device);

    assert(!slow->first);
    device_close(slow->below);
    free(slow->device.name);
    free(slow);
}

static const struct device_ops slow_ops = {
    .kind = "slow",
    .submit = slow_submit,
    .close = slow_close,
};

struct device *
slow_device_create(struct device *below, const struct slow_model *model)
{
    struct slow_device *const slow = calloc(1, sizeof *slow);

    if (!slow)
        return NULL;
    *slow = (struct slow_device){.device = *below, .below = below, .model = *model};
    slow->device.ops = &slow_ops;
    slow->device.name = strdup(below->name);
    slow->device.punch_zeroes = slow->device.write_zeroes = false;
    slow->device.seeks = model->seek_ns > 0;
    slow->end = &slow->first;
    slow->timer.fire = slow_fire;
    if (!slow->device.name) {
        free(slow);
        return NULL;
    }
    return &slow->device;
}

void
slow_device_counts(const struct device *device, uint64_t *operations, uint64_t *seeks)
{
    const struct slow_device *const slow = container_of(device, struct slow_device, device);

    *operations = slow->operations;
    *seeks = slow->seeks;
}
