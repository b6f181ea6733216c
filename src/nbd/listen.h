/*
 * listen.h: listening sockets, and how clients are told of them.
 *
 * For start-up: everything here may block for a moment and none of it needs a loop.
 */
#ifndef STRIPELOG_NBD_LISTEN_H
#define STRIPELOG_NBD_LISTEN_H

#include "runtime/listener.h"

/* Longest address: an escaped path, three characters each. */
#define NBD_URI_BYTES 512

struct nbd_listener {
    struct listener socket;
    char uri[NBD_URI_BYTES];
};

/* As listener_open_unix. */
int nbd_listen_unix(const char *path, struct nbd_listener *out, struct error *error) must_check;

/*
 * [HOST:]PORT: host is 127.0.0.1 unless given, an IPv6 address stands in brackets, port 0 is any.
 * -EINVAL: not of this form; -ENOENT: no such host.
 */
int nbd_listen_tcp(const char *address, struct nbd_listener *out, struct error *error) must_check;

/*
 * The sockets a service manager passed (LISTEN_PID, LISTEN_FDS), at most max of them; the
 * variables are removed, so that children do not take them for theirs. Returns their number; 0:
 * none were passed. -EINVAL: what was passed is no listening stream socket.
 */
int nbd_listen_activation(struct nbd_listener *out, unsigned max, struct error *error) must_check;

/* Closes, and removes the socket file if it still is this socket's. */
void nbd_listener_close(struct nbd_listener *listener);

#endif
