/*
 * listen.c: making, adopting and naming listening sockets.
 */
#include "nbd/listen.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ACTIVATION_FD   3 /* the first that is passed */
#define UNIX_PATH_BYTES (sizeof((struct sockaddr_un *)NULL)->sun_path)

/* sun_path may use all of its bytes, each three characters when escaped. */
static_assert(NBD_URI_BYTES > 64 + 3 * UNIX_PATH_BYTES, "a URI holds any socket path");

/* --- Addresses as text ---------------------------------------------------------------------- */

/* What may stand in a URI's query as it is. */
static bool
uri_plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("-._~/", c) != NULL);
}

static void
uri_unix(char *uri, const char *path, size_t length)
{
    static const char digits[] = "0123456789ABCDEF";
    char *at = stpcpy(uri, "nbd+unix:///?socket=");

    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)path[i];

        if (uri_plain(path[i])) {
            *at++ = path[i];
        } else {
            *at++ = '%';
            *at++ = digits[c >> 4];
            *at++ = digits[c & 15];
        }
    }
    *at = '\0';
}

/* How a client reaches a listening socket. */
static int
uri_of(int fd, char uri[NBD_URI_BYTES])
{
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_storage storage;
    } address = {0};
    socklen_t length = sizeof address;
    char host[INET6_ADDRSTRLEN];

    if (getsockname(fd, &address.any, &length) < 0)
        return -errno;
    switch (address.any.sa_family) {
    case AF_UNIX:
        uri_unix(uri, address.un.sun_path, strnlen(address.un.sun_path, UNIX_PATH_BYTES));
        return 0;
    case AF_INET:
        if (!inet_ntop(AF_INET, &address.in.sin_addr, host, sizeof host))
            return -errno;
        (void)snprintf(uri, NBD_URI_BYTES, "nbd://%s:%u", host, ntohs(address.in.sin_port));
        return 0;
    case AF_INET6:
        if (!inet_ntop(AF_INET6, &address.in6.sin6_addr, host, sizeof host))
            return -errno;
        (void)snprintf(uri, NBD_URI_BYTES, "nbd://[%s]:%u", host, ntohs(address.in6.sin6_port));
        return 0;
    default:
        return -EAFNOSUPPORT;
    }
}

/* --- Unix sockets --------------------------------------------------------------------------- */

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
nbd_listen_unix_check(const char *path, struct error *error)
{
    struct sockaddr_un address;
    struct stat status;
    int result = unix_address(path, &address, error);

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
nbd_listen_unix(const char *path, struct nbd_listener *out, struct error *error)
{
    struct sockaddr_un address;
    struct stat status;
    int result;

    *out = (struct nbd_listener){.fd = -1};
    result = unix_address(path, &address, error);
    if (result == 0)
        result = nbd_listen_unix_check(path, error);
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
        nbd_listener_close(out);
        return result;
    }
    out->path = strdup(path);
    out->path_device = status.st_dev;
    out->path_inode = status.st_ino;
    if (!out->path || listen(out->fd, SOMAXCONN) < 0) {
        result = error_set(error, -errno, "%s: cannot listen: %s", path, strerror(errno));
        nbd_listener_close(out);
        return result;
    }
    uri_unix(out->uri, path, strlen(path));
    return 0;
}

/* --- TCP ------------------------------------------------------------------------------------ */

/* Splits [HOST:]PORT; host has room for all of address. */
static int
tcp_split(const char *address, char *host, const char **port)
{
    const char *const colon = strrchr(address, ':');
    const char *digits = colon ? colon + 1 : address;
    size_t host_length = colon ? (size_t)(colon - address) : 0;
    unsigned value = 0;

    *port = digits;
    for (; *digits >= '0' && *digits <= '9' && value <= UINT16_MAX; digits++)
        value = 10 * value + (unsigned)(*digits - '0');
    if (*digits != '\0' || digits == *port || value > UINT16_MAX)
        return -EINVAL;

    if (host_length == 0) {
        (void)strcpy(host, "127.0.0.1");
        return 0;
    }
    if (address[0] == '[') {
        if (host_length < 3 || address[host_length - 1] != ']')
            return -EINVAL;
        address++;
        host_length -= 2;
    } else if (memchr(address, ':', host_length)) {
        return -EINVAL; /* an IPv6 address without brackets could end in anything */
    }
    memcpy(host, address, host_length);
    host[host_length] = '\0';
    return 0;
}

/* A socket that listens at one resolved address. */
static int
tcp_open(const struct addrinfo *info)
{
    const int one = 1;
    const int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int result;

    if (fd < 0)
        return -errno;
    /* Without it a restart would have to wait for the last connections to be forgotten. */
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    result = -errno;
    (void)close(fd); /* nothing to lose */
    return result;
}

int
nbd_listen_tcp(const char *address, struct nbd_listener *out, struct error *error)
{
    const struct addrinfo hints = {
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
    };
    struct addrinfo *infos = NULL;
    char host[256];
    const char *port;
    int result;

    *out = (struct nbd_listener){.fd = -1};
    if (strlen(address) >= sizeof host || tcp_split(address, host, &port) < 0)
        return error_set(error, -EINVAL, "%s: not of the form [HOST:]PORT", address);
    result = getaddrinfo(host, port, &hints, &infos);
    if (result != 0)
        return error_set(error, -ENOENT, "%s: %s", address, gai_strerror(result));
    result = -ENOENT;
    for (const struct addrinfo *info = infos; info && result < 0; info = info->ai_next)
        result = tcp_open(info);
    freeaddrinfo(infos);
    if (result < 0)
        return error_set(error, result, "%s: cannot listen: %s", address, strerror(-result));
    out->fd = result;
    result = uri_of(out->fd, out->uri);
    if (result < 0) {
        nbd_listener_close(out);
        return error_set(error, result, "%s: %s", address, strerror(-result));
    }
    return 0;
}

/* --- Socket activation ---------------------------------------------------------------------- */

/* A decimal environment variable, 0 when it is not there or no number. */
static unsigned long
environment_number(const char *name)
{
    const char *const text = getenv(name);
    char *end;
    unsigned long value;

    if (!text || text[0] < '0' || text[0] > '9')
        return 0;
    errno = 0;
    value = strtoul(text, &end, 10);
    return *end == '\0' && errno == 0 ? value : 0;
}

static int
activation_take(int fd, struct nbd_listener *out)
{
    int type = 0, listening = 0;
    socklen_t length = sizeof type;

    *out = (struct nbd_listener){.fd = fd};
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM)
        return -EINVAL;
    length = sizeof listening;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 || !listening)
        return -EINVAL;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    return uri_of(fd, out->uri);
}

int
nbd_listen_activation(struct nbd_listener *out, unsigned max, struct error *error)
{
    const unsigned long count = environment_number("LISTEN_PID") == (unsigned long)getpid()
                                    ? environment_number("LISTEN_FDS")
                                    : 0;

    (void)unsetenv("LISTEN_PID"); /* fails only for names that are none */
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    if (count > max)
        return error_set(error, -EINVAL, "LISTEN_FDS=%lu: at most %u sockets", count, max);
    for (unsigned i = 0; i < count; i++) {
        const int fd = ACTIVATION_FD + (int)i;
        const int result = activation_take(fd, &out[i]);

        if (result < 0)
            return error_set(error, result,
                             "LISTEN_FDS: descriptor %d: not a listening stream socket", fd);
    }
    return (int)count;
}

void
nbd_listener_close(struct nbd_listener *listener)
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
