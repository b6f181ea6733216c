/*
 * memory_device.h: a device that is memory, on a loop that has no system under it.
 *
 * For tests of what only reads: operations complete at the end of the turn, so nothing is ever
 * waited for. Reads that touch [bad_from, bad_to) fail.
 */
#ifndef STRIPELOG_TEST_MEMORY_DEVICE_H
#define STRIPELOG_TEST_MEMORY_DEVICE_H

#include "device/device.h"

#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

struct memory_device {
    struct device device;
    uint8_t *bytes; /* owned */
    uint64_t bad_from, bad_to;
    uint64_t bytes_read;
    struct io *queue;
    struct turn_hook hook;
    uint64_t now_ns;
};

static void
memory_device_complete(struct turn_hook *hook)
{
    struct memory_device *memory = container_of(hook, struct memory_device, hook);

    while (memory->queue) {
        struct io *io = memory->queue;
        uint64_t at = io->offset;

        memory->queue = io->next;
        io->result = 0;
        for (unsigned i = 0; i < io->iov_count; i++) {
            memcpy(io->iov[i].iov_base, memory->bytes + at, io->iov[i].iov_len);
            at += io->iov[i].iov_len;
        }
        memory->bytes_read += io->length;
        if (io->offset < memory->bad_to && at > memory->bad_from)
            io->result = -EIO;
        io_complete(io);
    }
}

static void
memory_device_submit(struct device *device, struct io *io)
{
    struct memory_device *memory = container_of(device, struct memory_device, device);

    assert_int_equal(io->op, IO_READ);
    assert_int_equal(io->offset % BLOCK_BYTES, 0);
    assert_int_equal(io->length % BLOCK_BYTES, 0);
    assert_true(io->offset + io->length <= device->size_bytes);
    io->next = memory->queue;
    memory->queue = io;
    loop_at_turn_end(device->loop, &memory->hook);
}

static void
no_submit(void *self, struct loop_io *io)
{
    fail_msg("a system operation");
}

static void
no_wait(void *self, uint64_t deadline_ns)
{
}

/* A tick a look, so that who sleeps wakes up. */
static uint64_t
some_time(void *self)
{
    struct memory_device *memory = self;

    return ++memory->now_ns;
}

static void
no_destroy(void *self)
{
}

/* bytes is the device's from here on. */
static void
memory_device_open(struct memory_device *memory, char *name, uint8_t *bytes, uint64_t size_bytes)
{
    static const struct device_ops ops = {.kind = "memory", .submit = memory_device_submit};
    static const struct loop_backend no_backend = {.name = "none",
                                                   .submit = no_submit,
                                                   .wait = no_wait,
                                                   .now_ns = some_time,
                                                   .wall_us = some_time,
                                                   .destroy = no_destroy};
    const struct loop_config config = {.tasks = 16, .seed = 1};
    struct error error = {0};

    *memory = (struct memory_device){.bytes = bytes};
    memory->hook.run = memory_device_complete;
    memory->device = (struct device){
        .ops = &ops, .name = name, .size_bytes = size_bytes, .logical_block_bytes = 512};
    if (loop_create_on(&config, &no_backend, memory, &memory->device.loop, &error) < 0)
        fail_msg("%s", error.text);
}

static void
memory_device_close(struct memory_device *memory)
{
    loop_destroy(memory->device.loop);
    free(memory->bytes);
}

#endif
