/*
 * device.h: what a member is to the engine.
 *
 * A device is reached only through its table. Offsets and lengths of reads and writes are multiples
 * of 4 KiB within the size (the superblock code uses the same), memory is 4 KiB-aligned, each
 * vector is a multiple of 4 KiB.
 *
 * D1. A write is durable only when it carried `fua`, or when a flush submitted after its completion
 *     has completed without error, or when the device has no volatile cache.
 *
 * D2. Completions come in any order. io->result is 0 or a negative errno; there are no short
 *     transfers.
 *
 * D3. A failed flush says that anything not flushed before may be lost; it is never retried into
 *     success.
 */
#ifndef STRIPELOG_DEVICE_H
#define STRIPELOG_DEVICE_H

#include "base/base.h"
#include "base/error.h"
#include "runtime/loop.h"

struct device;

enum io_op {
    IO_READ,
    IO_WRITE,
    IO_FLUSH,
    IO_PUNCH, /* discard; reads zeros afterwards; only where device->punch_zeroes */
    IO_ZERO,  /* make zero without transferring data (may allocate); only where device->write_zeroes
               */
};

#define IO_VECTORS 64

/*
 * One operation on a device, from an io_pool. Fill it, io_submit it, and it goes back to its pool
 * by itself when it completes; errors are told to the group before that.
 */
struct io {
    enum io_op op;
    bool fua; /* IO_WRITE: durable on completion */
    unsigned iov_count;
    uint64_t offset, length; /* bytes; length is kept by io_add */
    struct iovec iov[IO_VECTORS];
    int result;
    unsigned member; /* the submitter's own mark */
    uint64_t tag;    /* the submitter's own mark */
    struct device *device;
    struct io_group *group;
    struct io_pool *pool;
    struct io *next;       /* the pool's while free, the device's while submitted */
    unsigned retries;      /* the file backend's */
    struct loop_io system; /* the file backend's */
};

/* Operations that somebody waits for together. */
struct io_group {
    struct loop *loop;
    unsigned pending;
    int first_error; /* 0 while none */
    struct task *waiter;
    /* May be NULL. Called at completion of each failed io, outside of any task: record, do not act.
     */
    void (*failed)(struct io_group *group, const struct io *io);
    void *owner;
};

struct io_pool {
    struct loop *loop;
    struct io *free;
    struct io *all; /* owned array */
    unsigned count, free_count;
    unsigned granted; /* free ones promised to tasks that are already woken */
    struct wait_queue waiters;
};

int io_pool_init(struct io_pool *pool, struct loop *loop, unsigned count) must_check;
void io_pool_fini(struct io_pool *pool);

void io_group_init(struct io_group *group, struct loop *loop);
/* Waits in order for a free io (those in flight come back by themselves, so this always ends). */
task_fn struct io *io_take(struct io_pool *pool) must_check;
/* Appends memory; merges with the last vector where they adjoin; false when the vectors are used
 * up. */
bool io_add(struct io *io, void *memory, uint64_t length) must_check;
/* Does not suspend; does not complete before it returns. */
void io_submit(struct io *io, struct device *device, struct io_group *group);
/* Until all of the group are done; returns first_error. */
task_fn int io_wait(struct io_group *group);

/* Single operations for paths that are not hot. 0 or negative errno. */
task_fn int device_read(struct device *device, void *memory, uint64_t offset,
                        uint64_t length) must_check;
task_fn int device_write(struct device *device, const void *memory, uint64_t offset,
                         uint64_t length, bool fua) must_check;
task_fn int device_flush(struct device *device) must_check;

struct device_ops {
    const char *kind; /* "file", "simulated", "fault" ... */
    /* Queues io; when done sets io->result and calls io_complete(io). */
    void (*submit)(struct device *device, struct io *io);
    void (*close)(struct device *device);
};

/* Every implementation has this first. */
struct device {
    const struct device_ops *ops;
    struct loop *loop;
    char *name;                   /* owned; for messages */
    uint64_t size_bytes;          /* rounded down to 512 */
    uint32_t logical_block_bytes; /* 512 or 4096 */
    bool readonly;
    bool volatile_cache;  /* needs flushes */
    bool punch_zeroes;    /* IO_PUNCH works and reads zeros */
    bool write_zeroes;    /* IO_ZERO works */
    bool buffered;        /* O_DIRECT was refused */
    bool seeks;           /* to go to another place takes as long as many blocks */
    bool block_device;    /* and no file behind it (a loop device's), where what was discarded has
                             to be allocated anew and makes flushes pay */
    uint64_t identity[2]; /* of what is behind the name (st_dev, st_ino / rdev): equal means the
                             same device twice */
};

/* For implementations: the io is done, result set. */
void io_complete(struct io *io);
/* Waits for nothing: all I/O must have ended. */
void device_close(struct device *device);

#endif
