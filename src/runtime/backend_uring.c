/*
 * backend_uring.c: the loop on one io_uring.
 *
 * Operations become submission entries as they come; the loop's wait hands them over and sleeps in
 * the same system call, then delivers every completion that is there. Timers are the timeout of
 * that call. Interrupts are a read of an eventfd that is always under way. When the submission
 * queue is full, operations queue here, in order, until the wait.
 *
 * Flags of the ring that newer kernels know (one issuer, completions only when asked for) spare
 * the interrupting of the loop; where they are unknown the plain ring does the same work. Needed is
 * what Linux 5.11 has: timeouts in the wait, and no completion ever dropped.
 *
 * Memory that the loop is told of is registered with the ring, as a hint: a transfer of one vector
 * in it then goes without looking up and pinning its pages. Files are not: the ring would hold them
 * (and the locks on them) for some time after the end of a process that was killed.
 *
 * user_data is the operation's address; two low bits are ours: USER_POLL says that the completion
 * is of a poll after which the operation itself is tried again (a socket or listener that said
 * EAGAIN because it is non-blocking), USER_WAKE alone is the eventfd.
 */
#include "runtime/annotate.h"
#include "runtime/backends.h"
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SUBMISSIONS       1024u
#define COMPLETIONS       4096u
#define TRANSFER_MAX      0x7ffff000u /* what one Linux read or write moves at most */
#define USER_POLL         1u
#define USER_WAKE         2u
#define FEATURES_NEEDED   (IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL)
#define OUT_OF_MEMORY_NAP 1000000L /* ns before the kernel is asked again */
#define REGIONS           8u
#define REGION_BYTES_MAX  GIB /* what the kernel takes as one buffer */

/* Memory that is registered as the buffer of its index; none if bytes is 0. */
struct region {
    const char *at;
    uint64_t bytes;
    const void *arena; /* as it was told */
};

struct uring {
    struct io_uring ring;
    struct region regions[REGIONS];
    unsigned regions_end; /* those in use are below; 0 also where none can be registered */
    bool regions_possible;
    struct loop_io *queue_first, **queue_end; /* not yet in the ring */
    int wake_fd;
    uint64_t wake_count; /* the eventfd's read */
    bool wake_armed;
    bool valgrind;
};

/* --- Handing over --------------------------------------------------------------------------- */

static bool
is_socket_kind(enum loop_io_kind kind)
{
    return kind == LOOP_RECV || kind == LOOP_SENDMSG || kind == LOOP_ACCEPT;
}

static unsigned
single_length(const struct loop_io *io)
{
    return (unsigned)min_u64(io->iov[0].iov_len, TRANSFER_MAX);
}

/* The registered buffer that holds all of it, or -1. */
static int
region_of(const struct uring *uring, const struct iovec *vector)
{
    const char *const at = vector->iov_base;

    for (unsigned i = 0; i < uring->regions_end; i++) {
        const struct region *const region = &uring->regions[i];

        if (at >= region->at && (uint64_t)(at - region->at) < region->bytes)
            return vector->iov_len <= region->bytes - (uint64_t)(at - region->at) ? (int)i : -1;
    }
    return -1;
}

static void
prepare_transfer(const struct uring *uring, struct io_uring_sqe *sqe, const struct loop_io *io)
{
    const int region = io->iov_count == 1 ? region_of(uring, io->iov) : -1;
    const bool read = io->kind == LOOP_READV;

    if (io->iov_count != 1)
        (read ? io_uring_prep_readv : io_uring_prep_writev)(sqe, io->fd, io->iov, io->iov_count,
                                                            io->offset);
    else if (region < 0 && read)
        io_uring_prep_read(sqe, io->fd, io->iov[0].iov_base, single_length(io), io->offset);
    else if (region < 0)
        io_uring_prep_write(sqe, io->fd, io->iov[0].iov_base, single_length(io), io->offset);
    else if (read)
        io_uring_prep_read_fixed(sqe, io->fd, io->iov[0].iov_base, single_length(io), io->offset,
                                 region);
    else
        io_uring_prep_write_fixed(sqe, io->fd, io->iov[0].iov_base, single_length(io), io->offset,
                                  region);
    sqe->rw_flags = io->rw_flags;
}

static void
prepare(const struct uring *uring, struct io_uring_sqe *sqe, const struct loop_io *io)
{
    switch (io->kind) {
    case LOOP_READV:
    case LOOP_WRITEV:
        prepare_transfer(uring, sqe, io);
        break;
    case LOOP_FDATASYNC:
        io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC);
        break;
    case LOOP_FALLOCATE:
        io_uring_prep_fallocate(sqe, io->fd, io->fallocate_mode, (off_t)io->offset,
                                (off_t)io->length);
        break;
    case LOOP_RECV:
        io_uring_prep_recv(sqe, io->fd, io->iov[0].iov_base, single_length(io), 0);
        break;
    case LOOP_SENDMSG:
        io_uring_prep_sendmsg(sqe, io->fd, io->message, MSG_NOSIGNAL);
        break;
    case LOOP_ACCEPT:
        io_uring_prep_accept(sqe, io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        break;
    case LOOP_POLL_IN:
        io_uring_prep_poll_add(sqe, io->fd, POLLIN);
        break;
    }
    sqe->user_data = (uintptr_t)io;
}

static void
uring_submit(void *self, struct loop_io *io)
{
    struct uring *const uring = self;
    struct io_uring_sqe *const sqe = uring->queue_first ? NULL : io_uring_get_sqe(&uring->ring);

    if (sqe) {
        prepare(uring, sqe, io);
        return;
    }
    io->next = NULL;
    *uring->queue_end = io;
    uring->queue_end = &io->next;
}

/* The operation said EAGAIN: wait for the descriptor, then try again. */
static bool
submit_poll(struct uring *uring, struct loop_io *io)
{
    struct io_uring_sqe *const sqe = io_uring_get_sqe(&uring->ring);

    if (!sqe)
        return false;
    io_uring_prep_poll_add(sqe, io->fd, io->kind == LOOP_SENDMSG ? POLLOUT : POLLIN);
    sqe->user_data = (uintptr_t)io | USER_POLL;
    return true;
}

static void
arm_wake(struct uring *uring)
{
    struct io_uring_sqe *const sqe = io_uring_get_sqe(&uring->ring);

    if (!sqe)
        return;
    io_uring_prep_read(sqe, uring->wake_fd, &uring->wake_count, sizeof uring->wake_count, 0);
    sqe->user_data = USER_WAKE;
    uring->wake_armed = true;
}

/* Moves what is queued into the ring; false if some of it had to stay. */
static bool
drain_queue(struct uring *uring)
{
    for (;;) {
        struct loop_io *const io = uring->queue_first;
        struct io_uring_sqe *sqe;

        if (!uring->wake_armed)
            arm_wake(uring);
        if (!io && uring->wake_armed)
            return true;
        sqe = io ? io_uring_get_sqe(&uring->ring) : NULL;
        if (!sqe) {
            if (io_uring_submit(&uring->ring) <= 0)
                return false; /* completions must be taken first */
            continue;
        }
        uring->queue_first = io->next;
        if (!uring->queue_first)
            uring->queue_end = &uring->queue_first;
        prepare(uring, sqe, io);
    }
}

/* --- Taking back ---------------------------------------------------------------------------- */

/* valgrind does not see what the kernel writes behind a completion. */
static void
mark_defined(const struct loop_io *io)
{
    size_t left = io->result > 0 ? (size_t)io->result : 0;

    if (io->kind != LOOP_READV && io->kind != LOOP_RECV)
        return;
    for (unsigned i = 0; left > 0; i++) {
        const size_t count = min_u64(left, io->iov[i].iov_len);

        annotate_defined(io->iov[i].iov_base, count);
        left -= count;
    }
}

/* A non-blocking unix listener that was shut down says EAGAIN for ever; only poll tells. */
static bool
is_shut_down(const struct loop_io *io, int events)
{
    return io->kind == LOOP_ACCEPT && (events & POLLHUP) != 0;
}

static void
deliver(struct uring *uring, const struct io_uring_cqe *cqe)
{
    struct loop_io *const io = (struct loop_io *)(uintptr_t)(cqe->user_data & ~(uint64_t)3);
    int result = cqe->res;

    if (cqe->user_data == USER_WAKE) {
        uring->wake_armed = false;
        return;
    }
    if ((cqe->user_data & USER_POLL) != 0 && result >= 0)
        result = is_shut_down(io, result) ? -EINVAL : -EINTR;
    if (result == -EINTR) {
        uring_submit(uring, io);
    } else if (result == -EAGAIN && is_socket_kind(io->kind)) {
        if (!submit_poll(uring, io))
            uring_submit(uring, io); /* no room in the ring: the operation asks again later */
    } else {
        io->result = result;
        if (uring->valgrind)
            mark_defined(io);
        io->done(io);
    }
}

static unsigned
deliver_all(struct uring *uring)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;

    io_uring_for_each_cqe(&uring->ring, head, cqe)
    {
        deliver(uring, cqe);
        count++;
    }
    io_uring_cq_advance(&uring->ring, count);
    return count;
}

/* valgrind lets no other thread run while one is in io_uring_enter, but does while one polls. That
 * wants a plain ring, whose completions come without being asked for. */
static int
enter_with_poll(struct uring *uring, const struct __kernel_timespec *timeout)
{
    struct pollfd ring = {.fd = uring->ring.ring_fd, .events = POLLIN};
    struct timespec limit = {0};
    const int rc = io_uring_submit_and_get_events(&uring->ring);

    if (rc < 0 || io_uring_cq_ready(&uring->ring) > 0)
        return rc;
    if (timeout)
        limit = (struct timespec){.tv_sec = timeout->tv_sec, .tv_nsec = timeout->tv_nsec};
    if (ppoll(&ring, 1, timeout ? &limit : NULL, NULL) < 0)
        return -errno;
    return io_uring_submit_and_get_events(&uring->ring);
}

static int
enter_and_wait(struct uring *uring, struct __kernel_timespec *timeout)
{
    struct io_uring_cqe *cqe;

    if (uring->valgrind)
        return enter_with_poll(uring, timeout);
    return io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, timeout, NULL);
}

static int
enter(struct uring *uring, uint64_t deadline_ns)
{
    struct __kernel_timespec timeout;
    uint64_t now_ns;

    if (deadline_ns == UINT64_MAX)
        return enter_and_wait(uring, NULL);
    now_ns = deadline_ns > 0 ? backend_now_ns(uring) : 0;
    if (deadline_ns <= now_ns)
        return io_uring_submit_and_get_events(&uring->ring);
    timeout.tv_sec = (long long)((deadline_ns - now_ns) / 1000000000u);
    timeout.tv_nsec = (long long)((deadline_ns - now_ns) % 1000000000u);
    return enter_and_wait(uring, &timeout);
}

static void
uring_wait(void *self, uint64_t deadline_ns)
{
    struct uring *const uring = self;
    int rc;

    if (!drain_queue(uring))
        deadline_ns = 0;
    rc = enter(uring, deadline_ns);
    if (deliver_all(uring) > 0 || rc >= 0)
        return;
    /* EBUSY, EAGAIN, ENOMEM: the kernel is short of memory. What was not taken is in the ring
     * still and goes with the next wait. Anything else is our own mistake. */
    assert(rc == -ETIME || rc == -EINTR || rc == -EBUSY || rc == -EAGAIN || rc == -ENOMEM);
    if (rc != -ETIME && rc != -EINTR) {
        const struct timespec nap = {.tv_nsec = OUT_OF_MEMORY_NAP};

        (void)nanosleep(&nap, NULL); /* cut short is fine */
    }
}

static void
uring_interrupt(void *self)
{
    const struct uring *const uring = self;
    const uint64_t one = 1;
    ssize_t rc;

    do
        rc = write(uring->wake_fd, &one, sizeof one);
    while (rc < 0 && errno == EINTR);
    assert(rc == (ssize_t)sizeof one); /* 2^64 - 2 of them would be needed to fill it */
}

/* --- Memory ------------------------------------------------------------------------------------
 */

static void
uring_memory_known(void *self, void *arena, uint64_t bytes)
{
    struct uring *const uring = self;
    char *at = arena;

    for (unsigned i = 0; i < REGIONS && bytes > 0 && uring->regions_possible; i++) {
        struct region *const region = &uring->regions[i];
        const struct iovec vector = {.iov_base = at, .iov_len = min_u64(bytes, REGION_BYTES_MAX)};
        __u64 tag = 0;

        if (region->bytes > 0)
            continue;
        if (io_uring_register_buffers_update_tag(&uring->ring, i, &vector, &tag, 1) != 1)
            return; /* more than the user may lock in memory, most likely */
        *region = (struct region){.at = at, .bytes = vector.iov_len, .arena = arena};
        uring->regions_end = (unsigned)max_u64(uring->regions_end, i + 1);
        at += vector.iov_len;
        bytes -= vector.iov_len;
    }
}

static void
uring_memory_forget(void *self, const void *arena)
{
    struct uring *const uring = self;

    for (unsigned i = 0; i < uring->regions_end; i++) {
        const struct iovec none = {0};
        __u64 tag = 0;

        if (uring->regions[i].bytes == 0 || uring->regions[i].arena != arena)
            continue;
        ignored(io_uring_register_buffers_update_tag(&uring->ring, i, &none, &tag,
                                                     1)); /* goes with the ring at the latest */
        uring->regions[i] = (struct region){0};
    }
}

/* --- Life ----------------------------------------------------------------------------------- */

static int
ring_init(struct io_uring *ring, bool plain)
{
    static const unsigned flags[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN, /* 5.19 */
        0,
    };
    int rc = -EINVAL;

    for (unsigned i = plain ? ARRAY_LEN(flags) - 1 : 0; i < ARRAY_LEN(flags) && rc == -EINVAL;
         i++) {
        struct io_uring_params params = {
            .flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | flags[i],
            .cq_entries = COMPLETIONS,
        };

        rc = io_uring_queue_init_params(SUBMISSIONS, ring, &params);
    }
    if (rc < 0)
        return rc;
    if ((ring->features & FEATURES_NEEDED) != FEATURES_NEEDED) {
        io_uring_queue_exit(ring);
        return -ENOSYS;
    }
    (void)io_uring_register_ring_fd(ring); /* spares a look-up a call where it is known (5.18) */
    return 0;
}

static void
uring_destroy(void *self)
{
    struct uring *const uring = self;

    io_uring_queue_exit(&uring->ring);
    (void)close(uring->wake_fd); /* nothing was written */
    free(uring);
}

static const struct loop_backend uring_backend = {
    .name = "io_uring",
    .submit = uring_submit,
    .wait = uring_wait,
    .now_ns = backend_now_ns,
    .wall_us = backend_wall_us,
    .interrupt = uring_interrupt,
    .memory_known = uring_memory_known,
    .memory_forget = uring_memory_forget,
    .destroy = uring_destroy,
};

int
backend_uring_create(const struct loop_backend **backend, void **self, struct error *error)
{
    struct uring *const uring = calloc(1, sizeof *uring);
    int rc;

    if (!uring)
        return error_set(error, -ENOMEM, "cannot set up io_uring: out of memory");
    uring->queue_end = &uring->queue_first;
    uring->valgrind = annotate_valgrind_runs();
    uring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (uring->wake_fd < 0) {
        rc = -errno;
        free(uring);
        return error_set(error, rc, "cannot create an eventfd: %s", strerror(-rc));
    }
    rc = ring_init(&uring->ring, uring->valgrind);
    if (rc < 0) {
        (void)close(uring->wake_fd);
        free(uring);
        return error_set(error, rc, "cannot set up io_uring: %s", strerror(-rc));
    }
    uring->regions_possible =
        io_uring_register_buffers_sparse(&uring->ring, REGIONS) == 0; /* 5.19 */
    *backend = &uring_backend;
    *self = uring;
    return 0;
}
