/*
 * loop.h: one thread's event loop.
 *
 * A turn: run everything that is runnable; call the turn-end hooks (and run what they woke);
 * then hand all I/O gathered in the turn to the system and wait, in one system call, for the first
 * completion or timer. Completions only record and wake (style: never act inside an event handler).
 *
 * What lies below is a backend: io_uring with files, sockets and timers on one ring; epoll and
 * a few threads where io_uring is refused; in the tests a simulated clock and simulated devices.
 * The loop knows it only through `struct loop_backend`.
 *
 * Nothing here is thread-safe but loop_call, the way in from other threads. A loop belongs to the
 * thread that created it.
 */
#ifndef STRIPELOG_LOOP_H
#define STRIPELOG_LOOP_H

#include "base/base.h"
#include "base/error.h"
#include "runtime/task.h"
#include <sys/uio.h>

struct loop_io;

struct loop_config {
    unsigned tasks;          /* size of the task pool; 0 means 1024 */
    size_t task_stack_bytes; /* usable stack a task; 0 means 64 KiB (256 KiB under sanitizers) */
    uint64_t seed;           /* of loop_random; 0 means from the system */
};

/* What a loop stands on. All functions are called on the loop's thread. */
struct loop_backend {
    const char *name; /* "io_uring", "threads", "simulator" */
    /* Queues one operation; must not call io->done before returning. */
    void (*submit)(void *self, struct loop_io *io);
    /* Hands queued operations over and waits until at least one completion was delivered (by
     * io->done), or until deadline_ns (on the backend's own clock; UINT64_MAX = for ever; 0 = do
     * not wait), or until interrupt. */
    void (*wait)(void *self, uint64_t deadline_ns);
    /* Monotonic time. */
    uint64_t (*now_ns)(void *self);
    /* Microseconds since 1970. */
    uint64_t (*wall_us)(void *self);
    /* Makes a wait return, from any thread; may be NULL (simulator). */
    void (*interrupt)(void *self);
    /* As loop_memory_known and loop_memory_forget; may be NULL (both). */
    void (*memory_known)(void *self, void *at, uint64_t bytes);
    void (*memory_forget)(void *self, const void *at);
    void (*destroy)(void *self);
};

/* io_uring where it works, else epoll and threads. -errno and a text on failure. */
int loop_create(const struct loop_config *config, struct loop **out,
                struct error *error) must_check;
/* On a given backend (owned by the loop from here on, also when this fails): a simulator's, or one
 * of backends.h. */
int loop_create_on(const struct loop_config *config, const struct loop_backend *backend, void *self,
                   struct loop **out, struct error *error) must_check;
/* All tasks must have ended. */
void loop_destroy(struct loop *loop);

/* Runs until loop_stop was called, or until no task exists any more. Not from within a task. */
void loop_run(struct loop *loop);
/* Ends loop_run at the end of this turn (the next loop_run at its first, when none runs). */
void loop_stop(struct loop *loop);
/* For start-up and tests: starts run(arg) as a task and runs the loop until that task has ended. */
void loop_run_task(struct loop *loop, void (*run)(void *arg), void *arg);

const char *loop_backend_name(const struct loop *loop);
void *loop_backend_self(const struct loop *loop);

/* Monotonic, read once a turn (cheap); loop_clock_ns reads the clock itself. */
uint64_t loop_now_ns(const struct loop *loop);
uint64_t loop_clock_ns(const struct loop *loop);
uint64_t loop_wall_us(const struct loop *loop);
uint64_t loop_random(struct loop *loop);

/* --- Timers -------------------------------------------------------------------------------- */

/* Caller's memory; zero-initialised is disarmed. fire runs on the loop, not in a task: it may wake
 * and start tasks. */
struct timer {
    uint64_t at_ns;
    void (*fire)(struct timer *timer);
    struct timer *next, *previous;
    bool armed;
};

/* (Re-)arms for loop_now_ns + after_ns. */
void timer_arm(struct loop *loop, struct timer *timer, uint64_t after_ns);
void timer_cancel(struct loop *loop, struct timer *timer);
task_fn void loop_sleep(struct loop *loop, uint64_t ns);

/* --- End of turn --------------------------------------------------------------------------- */

/* Called once when nothing is runnable any more and before the loop waits; it may wake and start
 * tasks, which then still run in this turn. This is where batches are closed. Queueing it twice is
 * harmless. */
struct turn_hook {
    void (*run)(struct turn_hook *hook);
    struct turn_hook *next;
    bool queued;
};
void loop_at_turn_end(struct loop *loop, struct turn_hook *hook);

/* --- From other threads -------------------------------------------------------------------- */

/* Runs call->run(call) on the loop's thread, soon. Any thread. call stays the caller's and must
 * live until run. */
struct loop_call {
    void (*run)(struct loop_call *call);
    struct loop_call *next;
};
void loop_call(struct loop *loop, struct loop_call *call);

/* --- System operations --------------------------------------------------------------------- */

enum loop_io_kind {
    LOOP_READV,     /* file: fd, offset, iov, iov_count */
    LOOP_WRITEV,    /* file: same; rw_flags may have RWF_DSYNC */
    LOOP_FDATASYNC, /* file */
    LOOP_FALLOCATE, /* file: fallocate_mode, offset, length */
    LOOP_RECV,      /* socket: iov[0]; result 0 at end of stream */
    LOOP_SENDMSG,   /* socket: message; MSG_NOSIGNAL is added; may send less */
    LOOP_ACCEPT,  /* listening socket; result is the new descriptor (non-blocking, close-on-exec) */
    LOOP_POLL_IN, /* any pollable descriptor: readable */
};

/* Caller's memory, which belongs to the loop from loop_io_submit until done. */
struct loop_io {
    enum loop_io_kind kind;
    int fd;
    uint64_t offset, length;
    const struct iovec *iov;
    unsigned iov_count;
    int rw_flags, fallocate_mode;
    const struct msghdr *message;
    int result;                       /* count or descriptor, or negative errno */
    void (*done)(struct loop_io *io); /* records and wakes, no more */
    struct loop_io *next;             /* the backend's while submitted */
    struct loop *loop;                /* set by loop_io_submit */
    struct task *waiter;              /* loop_io_wait's */
};

void loop_io_submit(struct loop *loop, struct loop_io *io);
/* Submits and waits. io->done is the loop's. Returns io->result. */
task_fn int loop_io_wait(struct loop *loop, struct loop_io *io);

/* Says that much I/O will be done with this memory, which is there and stays until it is forgotten:
 * where the system can, it is pinned once instead of at each operation. Only a hint. No I/O with it
 * may be under way when it is forgotten. */
void loop_memory_known(struct loop *loop, void *at, uint64_t bytes);
void loop_memory_forget(struct loop *loop, const void *at);

/* To end a pending RECV, SENDMSG, ACCEPT: shutdown(2) the socket; it then completes. */

#endif
