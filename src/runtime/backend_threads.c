/*
 * backend_threads.c: the loop where io_uring is refused: epoll for sockets, a few threads for
 * files.
 *
 * Sockets are tried at once in the next wait; what says EAGAIN is kept by descriptor and tried
 * again when epoll says so. Interest is one-shot: it is asked for again as long as something waits,
 * so a descriptor with nothing pending never wakes the loop.
 *
 * File operations go to the threads in one batch a wait, and come back over a list and an eventfd.
 * Only the fields under `lock` are shared with them. The threads block all signals, so that those
 * reach the thread that expects them.
 */
#include "runtime/backends.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WORKERS    4u
#define EVENTS_MAX 64

/* First-in first-out over loop_io.next. Zero-initialised is empty. */
struct io_list {
    struct loop_io *first, *last;
};

/* What waits for one descriptor. */
struct watch {
    struct io_list in, out;
    bool added; /* to epoll, as far as we know: closing the descriptor undoes it silently */
};

struct threads {
    int epoll_fd, wake_fd;
    struct io_list fresh;    /* socket operations not yet tried */
    struct io_list outgoing; /* file operations for the threads */
    struct io_list ready;    /* to be delivered */
    struct watch *watches;   /* owned array by descriptor */
    unsigned watch_count;
    unsigned workers;
    pthread_t worker[WORKERS];
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t work;  /* todo or quit */
    struct io_list todo, finished;
    bool quit;
};

static void
list_push(struct io_list *list, struct loop_io *io)
{
    io->next = NULL;
    if (list->last)
        list->last->next = io;
    else
        list->first = io;
    list->last = io;
}

static struct loop_io *
list_pop(struct io_list *list)
{
    struct loop_io *const io = list->first;

    if (!io)
        return NULL;
    list->first = io->next;
    if (!list->first)
        list->last = NULL;
    io->next = NULL;
    return io;
}

static void
list_append(struct io_list *list, struct io_list *from)
{
    if (!from->first)
        return;
    if (list->last)
        list->last->next = from->first;
    else
        list->first = from->first;
    list->last = from->last;
    *from = (struct io_list){0};
}

static void
threads_interrupt(void *self)
{
    const struct threads *const threads = self;
    const uint64_t one = 1;
    ssize_t rc;

    do
        rc = write(threads->wake_fd, &one, sizeof one);
    while (rc < 0 && errno == EINTR);
    assert(rc == (ssize_t)sizeof one); /* 2^64 - 2 of them would be needed to fill it */
}

/* --- Files, on the threads ------------------------------------------------------------------ */

static int
file_run(const struct loop_io *io)
{
    ssize_t rc = -1;

    do {
        switch (io->kind) {
        case LOOP_READV:
            rc = preadv2(io->fd, io->iov, (int)io->iov_count, (off_t)io->offset, io->rw_flags);
            break;
        case LOOP_WRITEV:
            rc = pwritev2(io->fd, io->iov, (int)io->iov_count, (off_t)io->offset, io->rw_flags);
            break;
        case LOOP_FDATASYNC:
            rc = fdatasync(io->fd);
            break;
        case LOOP_FALLOCATE:
            rc = fallocate(io->fd, io->fallocate_mode, (off_t)io->offset, (off_t)io->length);
            break;
        case LOOP_RECV:
        case LOOP_SENDMSG:
        case LOOP_ACCEPT:
        case LOOP_POLL_IN:
            assert(!"sockets do not come here");
        }
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : (int)rc;
}

static void *
worker_main(void *arg)
{
    struct threads *const threads = arg;

    (void)pthread_mutex_lock(&threads->lock); /* fails only on misuse, here and below */
    for (;;) {
        struct loop_io *const io = list_pop(&threads->todo);

        if (io) {
            bool first;

            (void)pthread_mutex_unlock(&threads->lock);
            io->result = file_run(io);
            (void)pthread_mutex_lock(&threads->lock);
            first = !threads->finished.first;
            list_push(&threads->finished, io);
            if (first)
                threads_interrupt(threads);
        } else if (threads->quit) {
            break;
        } else {
            (void)pthread_cond_wait(&threads->work, &threads->lock);
        }
    }
    (void)pthread_mutex_unlock(&threads->lock);
    return NULL;
}

/* Gives the threads what is to be done and takes what is done. */
static void
exchange(struct threads *threads)
{
    const bool more = threads->outgoing.first != NULL;
    const bool many = more && threads->outgoing.first != threads->outgoing.last;

    (void)pthread_mutex_lock(&threads->lock);
    list_append(&threads->todo, &threads->outgoing);
    list_append(&threads->ready, &threads->finished);
    (void)pthread_mutex_unlock(&threads->lock);
    if (many)
        (void)pthread_cond_broadcast(&threads->work);
    else if (more)
        (void)pthread_cond_signal(&threads->work);
}

/* --- Sockets, on epoll ---------------------------------------------------------------------- */

static int
readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    const int rc = poll(&poll_fd, 1, 0);

    if (rc < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    return rc == 0 ? -EAGAIN : poll_fd.revents;
}

/* -EAGAIN: not yet. */
static int
socket_try(const struct loop_io *io)
{
    ssize_t rc = -1;

    do {
        switch (io->kind) {
        case LOOP_RECV:
            rc = recv(io->fd, io->iov[0].iov_base, io->iov[0].iov_len, MSG_DONTWAIT);
            break;
        case LOOP_SENDMSG:
            rc = sendmsg(io->fd, io->message, MSG_DONTWAIT | MSG_NOSIGNAL);
            break;
        case LOOP_ACCEPT: {
            const int state = readable(io->fd); /* the listener itself may block */

            if (state < 0)
                return state;
            rc = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            /* A non-blocking unix listener that was shut down says EAGAIN for ever. */
            if (rc < 0 && errno == EAGAIN && (state & POLLHUP) != 0)
                return -EINVAL;
            break;
        }
        case LOOP_POLL_IN:
            return readable(io->fd);
        case LOOP_READV:
        case LOOP_WRITEV:
        case LOOP_FDATASYNC:
        case LOOP_FALLOCATE:
            assert(!"files do not come here");
        }
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : (int)rc;
}

static void
fail_all(struct threads *threads, struct io_list *list, int result)
{
    struct loop_io *io;

    while ((io = list_pop(list))) {
        io->result = result;
        list_push(&threads->ready, io);
    }
}

/* Asks epoll for what waits for the descriptor. */
static void
watch_arm(struct threads *threads, int fd)
{
    struct watch *const watch = &threads->watches[fd];
    struct epoll_event event = {.events = EPOLLONESHOT, .data.fd = fd};
    int rc;

    if (watch->in.first)
        event.events |= EPOLLIN | EPOLLRDHUP;
    if (watch->out.first)
        event.events |= EPOLLOUT;
    if (!watch->in.first && !watch->out.first)
        return;
    rc = epoll_ctl(threads->epoll_fd, watch->added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
    if (rc < 0 && (errno == ENOENT || errno == EEXIST)) /* the number was closed and used again */
        rc = epoll_ctl(threads->epoll_fd, errno == ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd,
                       &event);
    watch->added = rc == 0;
    if (rc < 0) {
        const int result = -errno;

        fail_all(threads, &watch->in, result);
        fail_all(threads, &watch->out, result);
    }
}

/* Tries all that waits, in order, until one must wait on. */
static void
retry(struct threads *threads, struct io_list *list)
{
    while (list->first) {
        const int result = socket_try(list->first);
        struct loop_io *io;

        if (result == -EAGAIN)
            return;
        io = list_pop(list);
        io->result = result;
        list_push(&threads->ready, io);
    }
}

static int
watches_reach(struct threads *threads, int fd)
{
    const unsigned count = (unsigned)max_u64(64, 2 * (uint64_t)fd + 1);
    struct watch *grown;

    if ((unsigned)fd < threads->watch_count)
        return 0;
    grown = realloc(threads->watches, count * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memset(grown + threads->watch_count, 0, (count - threads->watch_count) * sizeof *grown);
    threads->watches = grown;
    threads->watch_count = count;
    return 0;
}

static void
try_fresh(struct threads *threads)
{
    struct loop_io *io;

    while ((io = list_pop(&threads->fresh))) {
        struct watch *watch;
        struct io_list *list;
        int result = io->fd < 0 ? -EBADF : watches_reach(threads, io->fd);

        if (result == 0) {
            watch = &threads->watches[io->fd];
            list = io->kind == LOOP_SENDMSG ? &watch->out : &watch->in;
            /* Behind others of its kind it must not overtake. */
            result = list->first ? -EAGAIN : socket_try(io);
            if (result == -EAGAIN) {
                list_push(list, io);
                watch_arm(threads, io->fd);
                continue;
            }
        }
        io->result = result;
        list_push(&threads->ready, io);
    }
}

/* --- The loop's side ------------------------------------------------------------------------ */

static void
threads_submit(void *self, struct loop_io *io)
{
    struct threads *const threads = self;

    switch (io->kind) {
    case LOOP_READV:
    case LOOP_WRITEV:
    case LOOP_FDATASYNC:
    case LOOP_FALLOCATE:
        list_push(&threads->outgoing, io);
        break;
    case LOOP_RECV:
    case LOOP_SENDMSG:
    case LOOP_ACCEPT:
    case LOOP_POLL_IN:
        list_push(&threads->fresh, io);
        break;
    }
}

static int
timeout_ms(uint64_t deadline_ns)
{
    const uint64_t now_ns = backend_now_ns(NULL);
    uint64_t ms;

    if (deadline_ns == UINT64_MAX)
        return -1;
    if (deadline_ns <= now_ns)
        return 0;
    ms = (deadline_ns - now_ns + 999999) / 1000000; /* a timer is never early */
    return (int)min_u64(ms, 1000000);
}

static void
take_events(struct threads *threads, int timeout)
{
    struct epoll_event events[EVENTS_MAX];
    const int count = epoll_wait(threads->epoll_fd, events, EVENTS_MAX, timeout);

    assert(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; i++) {
        const int fd = events[i].data.fd;
        struct watch *watch;

        if (fd == threads->wake_fd) {
            uint64_t value;

            /* Level-triggered: what is not read now is seen again. */
            if (read(fd, &value, sizeof value) < 0)
                assert(errno == EAGAIN || errno == EINTR);
            continue;
        }
        watch = &threads->watches[fd];
        retry(threads, &watch->in);
        retry(threads, &watch->out);
        watch_arm(threads, fd);
    }
}

static void
threads_wait(void *self, uint64_t deadline_ns)
{
    struct threads *const threads = self;
    struct io_list ready;
    struct loop_io *io;

    try_fresh(threads);
    exchange(threads);
    take_events(threads, threads->ready.first ? 0 : timeout_ms(deadline_ns));
    exchange(threads);
    ready = threads->ready;
    threads->ready = (struct io_list){0};
    while ((io = list_pop(&ready)))
        io->done(io);
}

static void
threads_destroy(void *self)
{
    struct threads *const threads = self;

    (void)pthread_mutex_lock(&threads->lock);
    threads->quit = true;
    (void)pthread_cond_broadcast(&threads->work);
    (void)pthread_mutex_unlock(&threads->lock);
    for (unsigned i = 0; i < threads->workers; i++)
        (void)pthread_join(threads->worker[i], NULL);
    (void)pthread_cond_destroy(&threads->work);
    (void)pthread_mutex_destroy(&threads->lock);
    if (threads->epoll_fd >= 0)
        (void)close(threads->epoll_fd); /* nothing was written to either */
    if (threads->wake_fd >= 0)
        (void)close(threads->wake_fd);
    free(threads->watches);
    free(threads);
}

static int
start_workers(struct threads *threads)
{
    sigset_t all, before;
    int rc = 0;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (threads->workers < WORKERS && rc == 0) {
        rc = -pthread_create(&threads->worker[threads->workers], NULL, worker_main, threads);
        if (rc == 0)
            threads->workers++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads->workers > 0 ? 0 : rc; /* fewer are slower, no more */
}

static const struct loop_backend threads_backend = {
    .name = "threads",
    .submit = threads_submit,
    .wait = threads_wait,
    .now_ns = backend_now_ns,
    .wall_us = backend_wall_us,
    .interrupt = threads_interrupt,
    .destroy = threads_destroy,
};

int
backend_threads_create(const struct loop_backend **backend, void **self, struct error *error)
{
    struct threads *const threads = calloc(1, sizeof *threads);
    struct epoll_event event = {.events = EPOLLIN};
    int rc = 0;

    if (!threads)
        return error_set(error, -ENOMEM, "cannot set up the event loop: out of memory");
    (void)pthread_mutex_init(&threads->lock, NULL); /* cannot fail without attributes */
    (void)pthread_cond_init(&threads->work, NULL);
    threads->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    threads->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    event.data.fd = threads->wake_fd;
    if (threads->wake_fd < 0 || threads->epoll_fd < 0 ||
        epoll_ctl(threads->epoll_fd, EPOLL_CTL_ADD, threads->wake_fd, &event) < 0)
        rc = -errno;
    if (rc == 0)
        rc = start_workers(threads);
    if (rc < 0) {
        threads_destroy(threads);
        return error_set(error, rc, "cannot set up the event loop: %s", strerror(-rc));
    }
    *backend = &threads_backend;
    *self = threads;
    return 0;
}
