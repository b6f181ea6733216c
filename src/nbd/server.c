/*
 * server.c: accepting, what connections share, and the end.
 *
 * One task accepts on all listening sockets: it waits on an epoll descriptor that holds them and
 * an eventfd, so that stopping needs no shutdown of a listening socket, which may be somebody
 * else's too (socket activation).
 */
#include "nbd/server.h"
#include "nbd/connection.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SECOND_NS 1000000000ull

#define ACCEPT_BATCH 32

/* The watch looks so many times within the time a peer is given. */
#define WATCH_LOOKS 8

/* An answer to many reads at once should leave in one send. */
#define SEND_BUFFER_BYTES (1024 * 1024)

/* --- What connections share ----------------------------------------------------------------- */

static void
watch_arm(struct nbd_server *server)
{
    const uint64_t limit_ns = server->stopping ? server->limits.stop_ns : server->limits.stall_ns;

    timer_arm(server->loop, &server->watch, limit_ns / WATCH_LOOKS);
}

/* Closes who stands still (N4); armed while somebody waits, or while the server stops. */
static void
watch_fired(struct timer *timer)
{
    struct nbd_server *const server = container_of(timer, struct nbd_server, watch);
    const uint64_t limit_ns = server->stopping ? server->limits.stop_ns : server->limits.stall_ns;

    if (!server->waiting && !server->stopping)
        return;
    for (struct nbd_connection *c = server->active; c; c = c->next) {
        if (!nbd_connection_stands_still(c, limit_ns))
            continue;
        server->stats.connections_stalled++;
        nbd_connection_cut(c);
    }
    watch_arm(server);
}

void
nbd_server_wait_begin(struct nbd_server *server)
{
    if (server->waiting++ == 0 && !server->watch.armed)
        watch_arm(server);
}

void
nbd_server_wait_end(struct nbd_server *server)
{
    server->waiting--;
}

static void
stopper_wake(struct nbd_server *server)
{
    if (server->stopper && !server->active && !server->accepting) {
        struct task *const stopper = server->stopper;

        server->stopper = NULL;
        task_wake(server->loop, stopper);
    }
}

void
nbd_server_release(struct nbd_server *server, struct nbd_connection *connection)
{
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        server->active = connection->next;
    if (connection->next)
        connection->next->previous = connection->previous;
    connection->state = CONNECTION_FREE;
    connection->previous = NULL;
    connection->next = server->free;
    server->free = connection;
    server->stats.connections_current--;
    stopper_wake(server);
}

/* --- Accepting ------------------------------------------------------------------------------ */

static void
socket_tune(int fd)
{
    const int one = 1;
    const int bytes = SEND_BUFFER_BYTES;
    int domain = AF_UNSPEC;
    socklen_t length = sizeof domain;

    (void)fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK); /* some backends of the loop poll */
    /* None of these is needed to work. */
    (void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    if (domain == AF_UNIX) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    } else {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    }
}

int
nbd_server_adopt(struct nbd_server *server, int fd)
{
    struct nbd_connection *const connection = server->free;
    int error = 0;

    if (server->stopping)
        error = -ESHUTDOWN;
    else if (!connection || !task_start(server->loop, nbd_connection_run, connection))
        error = -EMFILE;
    if (error < 0) {
        server->stats.connections_refused++;
        (void)close(fd); /* nothing was sent that could fail */
        return error;
    }
    socket_tune(fd);
    server->free = connection->next;
    connection->next = server->active;
    if (connection->next)
        connection->next->previous = connection;
    server->active = connection;
    connection->state = CONNECTION_HANDSHAKE;
    connection->fd = fd;
    connection->cut = false;
    connection->draining = false;
    server->stats.connections++;
    server->stats.connections_current++;
    return 0;
}

/* Takes those that wait on one listening socket; what is left after a batch waits for the next
 * turn, so that a flood of connections does not stop the others. -errno but for the harmless. */
static int
accept_batch(struct nbd_server *server, int listen_fd)
{
    for (unsigned i = 0; i < ACCEPT_BATCH; i++) {
        const int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0)
            (void)nbd_server_adopt(server, fd); /* a refusal is counted */
        else if (errno == EAGAIN)
            return 0;
        else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            return -errno;
        /* Anything else is the end of a connection that never was. */
    }
    return 0;
}

static task_fn void
accept_run(void *arg)
{
    struct nbd_server *const server = arg;

    while (!server->stopping) {
        struct loop_io poll = {.kind = LOOP_POLL_IN, .fd = server->poll_fd};
        struct epoll_event events[8];
        bool exhausted;
        int count;

        exhausted = loop_io_wait(server->loop, &poll) < 0;
        count = epoll_wait(server->poll_fd, events, ARRAY_LEN(events), 0);
        for (int i = 0; i < count && !server->stopping; i++)
            if (events[i].data.fd != server->wake_fd)
                exhausted |= accept_batch(server, events[i].data.fd) < 0;
        if (exhausted && !server->stopping)
            loop_sleep(server->loop, SECOND_NS / 10); /* descriptors come back when clients go */
    }
    server->accepting = false;
    stopper_wake(server);
}

static int
poll_add(int poll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    return epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int
accept_start(struct nbd_server *server, const int *fds, unsigned count)
{
    int result;

    if (count == 0)
        return 0;
    server->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->poll_fd < 0 || server->wake_fd < 0)
        return -errno;
    result = poll_add(server->poll_fd, server->wake_fd);
    for (unsigned i = 0; i < count && result == 0; i++) {
        const int flags = fcntl(fds[i], F_GETFL);

        if (flags < 0 || fcntl(fds[i], F_SETFL, flags | O_NONBLOCK) < 0)
            return -errno;
        result = poll_add(server->poll_fd, fds[i]);
    }
    if (result < 0)
        return result;
    if (!task_start(server->loop, accept_run, server))
        return -ENOMEM;
    server->accepting = true;
    return 0;
}

/* --- Life ----------------------------------------------------------------------------------- */

static void
limits_complete(struct nbd_limits *limits)
{
    if (!limits->connections)
        limits->connections = 256;
    if (!limits->requests)
        limits->requests = 512;
    if (!limits->requests_per_connection)
        limits->requests_per_connection = 128;
    if (!limits->handshake_ns)
        limits->handshake_ns = 30 * SECOND_NS;
    if (!limits->stall_ns)
        limits->stall_ns = 30 * SECOND_NS;
    if (!limits->stop_ns)
        limits->stop_ns = 5 * SECOND_NS;
}

static int
server_allocate(struct nbd_server *server)
{
    const unsigned connections = server->limits.connections;
    const unsigned requests = server->limits.requests;

    server->connections = calloc(connections, sizeof *server->connections);
    server->requests = calloc(requests, sizeof *server->requests);
    server->inputs_small = malloc(connections * NBD_INPUT_SMALL_BYTES);
    server->inputs_large = malloc(NBD_INPUT_LARGE_COUNT * NBD_INPUT_LARGE_BYTES);
    if (!server->connections || !server->requests || !server->inputs_small || !server->inputs_large)
        return -ENOMEM;

    for (unsigned i = connections; i-- > 0;) {
        struct nbd_connection *const connection = &server->connections[i];

        nbd_connection_init(connection, server, server->inputs_small + i * NBD_INPUT_SMALL_BYTES);
        connection->next = server->free;
        server->free = connection;
    }
    for (unsigned i = requests; i-- > 0;) {
        server->requests[i].next = server->requests_free;
        server->requests_free = &server->requests[i];
    }
    tokens_init(&server->request_tokens, requests);
    for (unsigned i = NBD_INPUT_LARGE_COUNT; i-- > 0;)
        server->inputs_large_free[server->inputs_large_free_count++] =
            server->inputs_large + i * NBD_INPUT_LARGE_BYTES;
    return 0;
}

static void
server_free(struct nbd_server *server)
{
    if (server->poll_fd >= 0)
        (void)close(server->poll_fd); /* nothing to fail */
    if (server->wake_fd >= 0)
        (void)close(server->wake_fd); /* nothing to fail */
    free(server->connections);
    free(server->requests);
    free(server->inputs_small);
    free(server->inputs_large);
    free(server);
}

int
nbd_server_create(const struct nbd_server_config *config, struct nbd_server **out)
{
    const struct export_ops *const ops = config->export->ops;
    const uint64_t largest = pages_largest(config->pages);
    struct nbd_server *server;
    int result;

    assert(ops->read && ops->write && ops->flush && ops->trim && ops->zero);
    if (config->export->size_bytes % BLOCK_BYTES != 0 || largest < 128 * KIB ||
        strlen(config->export->name) > NBD_NAME_BYTES_MAX)
        return -EINVAL;
    server = calloc(1, sizeof *server);
    if (!server)
        return -ENOMEM;
    server->loop = config->loop;
    server->pages = config->pages;
    server->export = config->export;
    server->limits = config->limits;
    server->poll_fd = server->wake_fd = -1;
    server->watch.fire = watch_fired;
    limits_complete(&server->limits);
    server->target = (struct nbd_target){
        .size_bytes = config->export->size_bytes,
        /* Up to twice as much is taken: for what is off its block's start, and a power of two. */
        .request_bytes_max = (uint32_t)min_u64(NBD_BLOCK_MAXIMUM, largest / 2),
        .readonly = config->export->readonly,
    };
    server->share_bytes = pages_total(config->pages) / 4;

    result = server_allocate(server);
    if (result == 0)
        result = accept_start(server, config->listen_fds, config->listen_count);
    if (result < 0) {
        server_free(server);
        return result;
    }
    *out = server;
    return 0;
}

void
nbd_server_stop(struct nbd_server *server)
{
    const uint64_t one = 1;

    assert(!server->stopping);
    server->stopping = true;
    if (server->wake_fd >= 0)
        (void)!write(server->wake_fd, &one, sizeof one); /* an eventfd at 0 takes it */
    for (struct nbd_connection *c = server->active; c; c = c->next)
        nbd_connection_drain(c);
    watch_arm(server);
    if (server->active || server->accepting) {
        server->stopper = task_self(server->loop);
        task_suspend(server->loop);
    }
    timer_cancel(server->loop, &server->watch);
}

void
nbd_server_destroy(struct nbd_server *server)
{
    assert(server->stopping);
    assert(!server->active);
    assert(!server->accepting);
    server_free(server);
}

const struct nbd_server_stats *
nbd_server_stats(const struct nbd_server *server)
{
    return &server->stats;
}
