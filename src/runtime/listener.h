/*
 * listener.h: listening unix sockets, beside no other server's.
 *
 * For start-up: everything here may block for a moment and none of it needs a loop.
 */
#ifndef STRIPELOG_LISTENER_H
#define STRIPELOG_LISTENER_H

#include "base/base.h"
#include "base/error.h"
#include <sys/types.h>

struct listener {
    int fd;     /* owned; -1: none */
    char *path; /* owned; the socket file to remove, or NULL */
    dev_t path_device;
    ino_t path_inode;
};

/*
 * A unix socket of mode 0600. A socket file that nobody listens on is replaced. -EADDRINUSE:
 * somebody does; -EEXIST: the path is something else than a socket; -ENAMETOOLONG.
 */
int listener_open_unix(const char *path, struct listener *out, struct error *error) must_check;

/* Whether a file of this name could be made, or replaced, in its directory. The directory's error.
 */
int place_check(const char *path, struct error *error) must_check;

/* Whether listener_open_unix could take this path now; changes nothing. Errors as there. */
int listener_check_unix(const char *path, struct error *error) must_check;

/* Closes, and removes the socket file if it still is this socket's. */
void listener_close(struct listener *listener);

#endif
