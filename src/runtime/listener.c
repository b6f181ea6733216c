/*
 * listener.c: see listener.h.
 */
#include "runtime/listener.h"
#include <libgen.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define UNIX_PATH_BYTES (sizeof((struct sockaddr_un *)NULL)->sun_path)

/* 0 when nobody listens on the socket file at this path, -EADDRINUSE when somebody does. */
static int
unix_probe(const struct sockaddr_un *address)
{
    /* Non-blocking: a full backlog says that somebody listens, too. */
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int result = -EADDRINUSE;

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 && errno != EAGAIN &&
        errno != EINPROGRESS)
        result = errno == ECONNREFUSED || errno == ENOENT ? 0 : -errno;
    (void)close(fd); /* nothing to lose */
    return result;
}

static int
unix_address(const char *path, struct sockaddr_un *address, struct error *error)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= UNIX_PATH_BYTES)
        return error_set(error, -ENAMETOOLONG, "%s: a socket's path has at most %zu characters",
                         path, UNIX_PATH_BYTES - 1);
    if (path[0] == '\0')
        return error_set(error, -EINVAL, "a socket needs a path");
    memcpy(address->sun_path, path, strlen(path));
    return 0;
}

int
place_check(const char *path, struct error *error)
{
    char *const copy = strdup(path);
    int result = 0;

    if (copy == NULL)
        return error_set(error, -ENOMEM, "no memory for the path %s", path);
    if (access(dirname(copy), W_OK | X_OK) < 0)
        result =
            error_set(error, -errno, "%s: nothing can be made there: %s", path, strerror(errno));
    free(copy);
    return result;
}

int
listener_check_unix(const char *path, struct error *error)
{
    struct sockaddr_un address;
    struct stat status;
    int result = unix_address(path, &address, error);

    if (result == 0)
        result = place_check(path, error);
    if (result < 0)
        return result;
    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : error_set(error, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(status.st_mode))
        return error_set(error, -EEXIST, "%s: there is something else than a socket here", path);
    result = unix_probe(&address);
    if (result == -EADDRINUSE)
        return error_set(error, result, "%s: another server listens on this socket", path);
    if (result < 0)
        return error_set(error, result, "%s: cannot tell whether a server listens here: %s", path,
                         strerror(-result));
    return 0;
}

int
listener_open_unix(const char *path, struct listener *out, struct error *error)
{
    struct sockaddr_un address;
    struct stat status;
    int result;

    *out = (struct listener){.fd = -1};
    result = unix_address(path, &address, error);
    if (result == 0)
        result = listener_check_unix(path, error);
    if (result < 0)
        return result;
    /* Makes way: what is there is a socket file that nobody listens on. */
    if (unlink(path) < 0 && errno != ENOENT)
        return error_set(error, -errno, "%s: cannot remove the old socket: %s", path,
                         strerror(errno));

    out->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The mode is set before the file exists: bind takes it over from the descriptor. */
    if (out->fd < 0 || fchmod(out->fd, 0600) < 0 ||
        bind(out->fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        lstat(path, &status) < 0) {
        result = error_set(error, -errno, "%s: cannot make the socket: %s", path, strerror(errno));
        listener_close(out);
        return result;
    }
    out->path = strdup(path);
    out->path_device = status.st_dev;
    out->path_inode = status.st_ino;
    if (!out->path || listen(out->fd, SOMAXCONN) < 0) {
        result = error_set(error, -errno, "%s: cannot listen: %s", path, strerror(errno));
        listener_close(out);
        return result;
    }
    return 0;
}

void
listener_close(struct listener *listener)
{
    struct stat status;

    if (listener->path && lstat(listener->path, &status) == 0 &&
        status.st_dev == listener->path_device && status.st_ino == listener->path_inode)
        (void)unlink(listener->path); /* the next start replaces what is left */
    free(listener->path);
    listener->path = NULL;
    if (listener->fd >= 0)
        (void)close(listener->fd); /* nothing to lose */
    listener->fd = -1;
}
