/*
 * connection.h: the inside of the server: what server.c and connection.c share.
 *
 *   server.c       accepting, limits over all connections, the end
 *   connection.c   one connection: handshake, receiving, requests, sending
 *
 * A connection's life is one task, its reader:
 *
 *   FREE --accept--> HANDSHAKE --GO--> TRANSMISSION --end of input--> ENDING --all answered--> FREE
 *
 * C1. Only the reader receives and closes; everybody else may only cut (shutdown) the socket.
 * C2. A request is in exactly one place: the free list, its reader (payload arriving), its task,
 *     or its connection's replies. in_flight counts all but the first.
 * C3. At most one send is under way; the requests it covers are the head of `replies`.
 * C4. in_flight never exceeds limits.requests_per_connection. held_bytes exceeds share_bytes only
 *     while a single request holds all of it.
 */
#ifndef STRIPELOG_NBD_CONNECTION_H
#define STRIPELOG_NBD_CONNECTION_H

#include "nbd/protocol.h"
#include "nbd/server.h"
#include <sys/socket.h>

/* A connection in transmission gets a large receive buffer as long as there are some; the small
 * one, which every connection has, holds the longest option. */
#define NBD_INPUT_SMALL_BYTES (16 * KIB)
#define NBD_INPUT_LARGE_BYTES (256 * KIB)
#define NBD_INPUT_LARGE_COUNT 16

/* Vectors of one send: two a read reply, one for others. */
#define NBD_SEND_VECTORS 256

enum nbd_connection_state {
    CONNECTION_FREE,
    CONNECTION_HANDSHAKE,
    CONNECTION_TRANSMISSION,
    CONNECTION_ENDING,
};

struct nbd_request {
    struct nbd_request *next; /* in the list it is in (C2) */
    struct nbd_connection *connection;
    struct nbd_request_header header;
    uint8_t *memory;       /* of the pool, or NULL */
    uint64_t memory_bytes; /* as taken */
    uint8_t *payload;      /* in memory, at the offset's place within its 4 KiB */
    uint32_t payload_out;  /* bytes of payload that follow the reply */
    uint32_t reply_bytes;
    uint8_t reply[NBD_REPLY_BYTES_MAX];
};

struct nbd_connection {
    struct nbd_server *server;
    struct nbd_connection *next, *previous; /* in the free or the active list */
    enum nbd_connection_state state;
    int fd;
    bool cut;      /* the socket is shut down both ways: receive no more, drop the replies */
    bool draining; /* the server stops: only what had arrived */
    uint64_t drain_bytes;
    struct nbd_session session;
    struct timer deadline; /* of the handshake */

    /* The reader. */
    struct task *waiter; /* waits for in_flight or held_bytes to fall */
    uint8_t *input_small;
    uint8_t *input_large; /* NULL: none left */
    uint8_t *input;
    size_t input_bytes, input_at, input_end; /* [at, end) is received and not yet used */
    bool receiving_payload;
    bool long_payloads;        /* the last write was long: receive the next one's header alone */
    uint64_t receive_moved_ns; /* when bytes last came, or the payload began to be waited for */

    /* Requests (C4). */
    unsigned in_flight;
    uint64_t held_bytes;

    /* The sender: a hook at the end of a turn, no task. */
    struct nbd_request *replies, **replies_end;
    uint32_t sent_of_first; /* bytes of the first reply that are gone already */
    bool send_pending, send_done;
    uint64_t send_moved_ns; /* when the pending send began */
    struct turn_hook hook;
    struct loop_io send;
    struct msghdr message;
    struct iovec vectors[NBD_SEND_VECTORS];
};

struct nbd_server {
    struct loop *loop;
    struct pages *pages;
    struct export *export;
    struct nbd_limits limits;
    struct nbd_target target;
    uint64_t share_bytes; /* of the pool, that one connection may hold */
    struct nbd_server_stats stats;

    struct nbd_connection *connections; /* owned array */
    struct nbd_connection *free, *active;
    struct nbd_request *requests; /* owned array */
    struct nbd_request *requests_free;
    struct tokens request_tokens; /* as many as are free; gives them out in order */
    uint8_t *inputs_small;        /* owned; one a connection, touched when used */
    uint8_t *inputs_large;        /* owned */
    uint8_t *inputs_large_free[NBD_INPUT_LARGE_COUNT];
    unsigned inputs_large_free_count;

    unsigned waiting; /* readers that wait for a request or for memory */
    struct timer watch;
    bool stopping;
    struct task *stopper;

    int poll_fd; /* epoll: the listening sockets and wake_fd; -1 without listening sockets */
    int wake_fd; /* eventfd */
    bool accepting;
};

/* One of the server's connections, at start. */
void nbd_connection_init(struct nbd_connection *connection, struct nbd_server *server,
                         uint8_t *input_small);
/* The reader: arg is a connection in HANDSHAKE with its fd set. */
task_fn void nbd_connection_run(void *arg);
/* Shuts the socket down; the reader and the sender find out. */
void nbd_connection_cut(struct nbd_connection *connection);
/* No more requests than have arrived. */
void nbd_connection_drain(struct nbd_connection *connection);
/* The peer owes us something: it takes no answers or sends no payload, since limit_ns. */
bool nbd_connection_stands_still(const struct nbd_connection *connection, uint64_t limit_ns);

/* What connection.c asks of the server. */

/* A reader begins and ends to wait for what all connections share. */
void nbd_server_wait_begin(struct nbd_server *server);
void nbd_server_wait_end(struct nbd_server *server);
/* The connection has ended, its fd is closed. */
void nbd_server_release(struct nbd_server *server, struct nbd_connection *connection);

#endif
