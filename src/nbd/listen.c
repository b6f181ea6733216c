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

int
nbd_listen_unix(const char *path, struct nbd_listener *out, struct error *error)
{
    int result;

    *out = (struct nbd_listener){.socket.fd = -1};
    result = listener_open_unix(path, &out->socket, error);
    if (result == 0)
        uri_unix(out->uri, path, strlen(path));
    return result;
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

    *out = (struct nbd_listener){.socket.fd = -1};
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
    out->socket.fd = result;
    result = uri_of(out->socket.fd, out->uri);
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

    *out = (struct nbd_listener){.socket.fd = fd};
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
    listener_close(&listener->socket);
}
