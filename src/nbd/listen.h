/*
 * listen.h: listening sockets, and how clients are told of them.
 *
 * For start-up: everything here may block for a moment and none of it needs a loop.
 */
#ifndef STRIPELOG_NBD_LISTEN_H
#define STRIPELOG_NBD_LISTEN_H

#include "base/base.h"
#include "base/error.h"
#include <sys/types.h>

/* Longest address: an escaped path, three characters each. */
#define NBD_URI_BYTES 512

struct nbd_listener {
    int fd;
    char *path; /* owned; the socket file to remove, or NULL */
    dev_t path_device;
    ino_t path_inode;
    char uri[NBD_URI_BYTES];
};

/*
 * A unix socket of mode 0600. A socket file that nobody listens on is replaced. -EADDRINUSE:
 * somebody does; -EEXIST: the path is something else than a socket; -ENAMETOOLONG.
 */
int nbd_listen_unix(const char *path, struct nbd_listener *out, struct error *error) must_check;

/* Whether nbd_listen_unix could take this path now; changes nothing. Errors as there. */
int nbd_listen_unix_check(const char *path, struct error *error) must_check;

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
