/*
 * server.h: an NBD server on a loop, for one export.
 *
 * One thread, and a task a request. What arrived in one turn is taken with one receive, and the
 * answers of one turn leave with one send.
 *
 * N1. A write reaches the export only when its payload is complete.
 * N2. Memory is taken when a request's header was read, in the order of the headers; a connection
 *     holds at most its share, but may always have one request.
 * N3. A handshake holds no memory of the pool.
 * N4. Whatever a client does, its own connection alone suffers; a client that holds memory, stands
 *     still and lets others wait is closed.
 * N5. Nothing is allocated for a request: requests, connections and buffers exist from the start.
 */
#ifndef STRIPELOG_NBD_SERVER_H
#define STRIPELOG_NBD_SERVER_H

#include "nbd/export.h"
#include "runtime/loop.h"
#include "runtime/pages.h"

struct nbd_server;

/* Zero means the house's value, which stands beside it. */
struct nbd_limits {
    unsigned connections;             /* 256; further ones are closed at once */
    unsigned requests;                /* 512 of all connections; fewer than the loop's tasks */
    unsigned requests_per_connection; /* 128 */
    uint64_t handshake_ns;            /* 30 s; a longer handshake is closed */
    uint64_t stall_ns;                /* 30 s without progress while others wait */
    uint64_t stop_ns;                 /* 5 s without progress while the server stops */
};

struct nbd_server_config {
    struct loop *loop;
    struct pages *pages;   /* at least 128 KiB in one piece */
    struct export *export; /* size a multiple of 4 KiB; all of its functions present */
    /* Listening sockets; they stay the caller's and are made non-blocking. May be none. */
    const int *listen_fds;
    unsigned listen_count;
    struct nbd_limits limits;
};

/* Counters since the start, but for what is said to be current. */
struct nbd_server_stats {
    uint64_t connections;         /* accepted */
    uint64_t connections_refused; /* over the limit */
    uint64_t connections_failed;  /* ended by a broken protocol, a broken socket or a limit */
    uint64_t connections_stalled; /* of these: closed because others waited */
    uint64_t connections_current;
    uint64_t requests;         /* answered or given up */
    uint64_t requests_current; /* read and not yet answered */
    uint64_t requests_failed;  /* answered with an error */
    uint64_t reads, writes, flushes, trims, zeroes;
    uint64_t read_bytes, written_bytes; /* of successful requests */
};

/* Starts to serve. -EINVAL: limits, pool or export are out of bounds. -ENOMEM. -errno of the
 * listening sockets. */
int nbd_server_create(const struct nbd_server_config *config, struct nbd_server **out) must_check;

/* Serves a connected stream socket, which the server owns from here on, also when it refuses it.
 * -EMFILE: over the limit; -ESHUTDOWN: stopping. */
int nbd_server_adopt(struct nbd_server *server, int fd);

/* Stops accepting, ends handshakes, answers what was received, closes. Peers that take no answers
 * are waited for as long as limits.stop_ns. Once. */
task_fn void nbd_server_stop(struct nbd_server *server);

/* Stopped before. */
void nbd_server_destroy(struct nbd_server *server);

const struct nbd_server_stats *nbd_server_stats(const struct nbd_server *server);

#endif
