/*
 * Listening sockets: modes, stale and live socket files, TCP addresses, URIs, socket activation.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "nbd/listen.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char directory[32];
    char path[64];
    struct nbd_listener listener;
    struct error error;
};

static int
setup(void **state)
{
    struct fixture *const f = calloc(1, sizeof *f);

    strcpy(f->directory, "/tmp/nbd-listen-XXXXXX");
    if (!mkdtemp(f->directory))
        return -1;
    (void)snprintf(f->path, sizeof f->path, "%s/socket", f->directory);
    *state = f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *const f = *state;
    char command[64];

    (void)snprintf(command, sizeof command, "rm -rf %s", f->directory);
    free(f);
    return system(command);
}

/* A connected socket, or a negative errno. */
static int
connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -errno;
}

static void
socket_file_is_private_whatever_the_umask(void **state)
{
    struct fixture *const f = *state;
    const mode_t old = umask(0);
    struct stat status;

    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), 0);
    umask(old);
    assert_int_equal(stat(f->path, &status), 0);
    assert_int_equal(status.st_mode, S_IFSOCK | 0600);
    nbd_listener_close(&f->listener);
    assert_int_equal(access(f->path, F_OK), -1);
}

static void
stale_socket_file_is_replaced(void **state)
{
    struct fixture *const f = *state;
    int fd;

    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), 0);
    close(f->listener.socket.fd); /* as a crash would */
    free(f->listener.socket.path);
    assert_int_equal(access(f->path, F_OK), 0);
    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), 0);
    fd = connect_unix(f->path);
    assert_true(fd >= 0);
    close(fd);
    nbd_listener_close(&f->listener);
}

static void
live_socket_is_refused_and_goes_on(void **state)
{
    struct fixture *const f = *state;
    struct nbd_listener other;
    int fd;

    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), 0);
    assert_int_equal(nbd_listen_unix(f->path, &other, &f->error), -EADDRINUSE);
    assert_non_null(strstr(f->error.text, f->path));
    fd = connect_unix(f->path);
    assert_true(fd >= 0);
    close(fd);
    nbd_listener_close(&f->listener);
}

/* A server whose backlog is full lives, too. */
static void
busy_socket_is_refused(void **state)
{
    struct fixture *const f = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int client;

    strcpy(address.sun_path, f->path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 0), 0);
    client = connect_unix(f->path);
    assert_true(client >= 0);
    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), -EADDRINUSE);
    close(client);
    close(fd);
}

static void
other_files_are_left_alone(void **state)
{
    struct fixture *const f = *state;
    const int fd = open(f->path, O_CREAT | O_WRONLY, 0600);
    struct stat status;

    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), -EEXIST);
    assert_int_equal(nbd_listen_unix(f->directory, &f->listener, &f->error), -EEXIST);
    assert_int_equal(stat(f->path, &status), 0);
    assert_int_equal(status.st_size, 8);
}

/* The file at the path may be the next server's by the time we close. */
static void
closing_leaves_a_successors_socket_alone(void **state)
{
    struct fixture *const f = *state;
    struct nbd_listener next;

    assert_int_equal(nbd_listen_unix(f->path, &f->listener, &f->error), 0);
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(nbd_listen_unix(f->path, &next, &f->error), 0);
    nbd_listener_close(&f->listener);
    assert_int_equal(access(f->path, F_OK), 0);
    nbd_listener_close(&next);
}

static void
impossible_paths_are_refused(void **state)
{
    struct fixture *const f = *state;
    char path[256];

    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    assert_int_equal(nbd_listen_unix(path, &f->listener, &f->error), -ENAMETOOLONG);
    assert_int_equal(nbd_listen_unix("", &f->listener, &f->error), -EINVAL);
    (void)snprintf(path, sizeof path, "%s/no/socket", f->directory);
    assert_int_equal(nbd_listen_unix(path, &f->listener, &f->error), -ENOENT);
    assert_string_not_equal(f->error.text, "");
}

static void
uri_escapes_the_path(void **state)
{
    struct fixture *const f = *state;
    char uri[NBD_URI_BYTES], path[64];

    (void)snprintf(path, sizeof path, "%s/a b%%&?=#\303\244", f->directory);
    assert_int_equal(nbd_listen_unix(path, &f->listener, &f->error), 0);
    (void)snprintf(uri, sizeof uri, "nbd+unix:///?socket=%s/a%%20b%%25%%26%%3F%%3D%%23%%C3%%A4",
                   f->directory);
    assert_string_equal(f->listener.uri, uri);
    nbd_listener_close(&f->listener);
}

static void
tcp_listens_on_loopback_unless_told(void **state)
{
    static const char *const addresses[] = {"0", ":0", "127.0.0.1:0"};
    struct fixture *const f = *state;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    char uri[NBD_URI_BYTES];

    for (unsigned i = 0; i < ARRAY_LEN(addresses); i++) {
        assert_int_equal(nbd_listen_tcp(addresses[i], &f->listener, &f->error), 0);
        assert_int_equal(getsockname(f->listener.socket.fd, (struct sockaddr *)&address, &length),
                         0);
        assert_int_equal(address.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
        assert_int_not_equal(address.sin_port, 0);
        (void)snprintf(uri, sizeof uri, "nbd://127.0.0.1:%u", ntohs(address.sin_port));
        assert_string_equal(f->listener.uri, uri);
        nbd_listener_close(&f->listener);
    }
}

static void
tcp_takes_ipv6_in_brackets(void **state)
{
    struct fixture *const f = *state;
    const int result = nbd_listen_tcp("[::1]:0", &f->listener, &f->error);

    if (result == -EADDRNOTAVAIL || result == -EAFNOSUPPORT)
        skip(); /* no IPv6 here */
    assert_int_equal(result, 0);
    assert_int_equal(strncmp(f->listener.uri, "nbd://[::1]:", 12), 0);
    nbd_listener_close(&f->listener);
}

static void
tcp_refuses_what_is_no_address(void **state)
{
    static const char *const addresses[] = {
        "",       ":",           "x",     "127.0.0.1",    "127.0.0.1:", "65536",          "-1",
        "+1",     " 1",          "1 ",    "127.0.0.1:1x", "::1:0",      "[::1:0",         "[]:0",
        "::1]:0", "99999999999", "[::1]", "a:b:c",        "0x10",       "localhost:http",
    };
    struct fixture *const f = *state;

    for (unsigned i = 0; i < ARRAY_LEN(addresses); i++) {
        if (nbd_listen_tcp(addresses[i], &f->listener, &f->error) != -EINVAL)
            fail_msg("\"%s\" was taken", addresses[i]);
        assert_int_equal(f->listener.socket.fd, -1);
    }
}

static void
tcp_port_in_use_is_said_so(void **state)
{
    struct fixture *const f = *state;
    struct nbd_listener other;

    assert_int_equal(nbd_listen_tcp("0", &f->listener, &f->error), 0);
    assert_int_equal(nbd_listen_tcp(f->listener.uri + strlen("nbd://"), &other, &f->error),
                     -EADDRINUSE);
    assert_non_null(strstr(f->error.text, "in use"));
    nbd_listener_close(&f->listener);
}

/* In a child, since descriptors and environment are the process's. Returns its exit status. */
static int
activated(struct fixture *f, const char *pid, const char *count, int (*body)(struct fixture *))
{
    int status;
    const pid_t child = fork();

    if (child == 0) {
        char self[16];

        (void)snprintf(self, sizeof self, "%d", (int)getpid());
        setenv("LISTEN_PID", pid ? pid : self, 1);
        setenv("LISTEN_FDS", count, 1);
        _exit(body(f));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int
take_two(struct fixture *f)
{
    struct nbd_listener tcp, un, taken[2];

    if (nbd_listen_unix(f->path, &un, &f->error) < 0 || nbd_listen_tcp("0", &tcp, &f->error) < 0)
        return 1;
    /* Out of the way first: one of them may be 3 or 4. */
    const int a = fcntl(un.socket.fd, F_DUPFD, 10), b = fcntl(tcp.socket.fd, F_DUPFD, 10);

    if (dup2(a, 3) < 0 || dup2(b, 4) < 0)
        return 2;
    if (nbd_listen_activation(taken, 2, &f->error) != 2)
        return 3;
    if (taken[0].socket.fd != 3 || taken[1].socket.fd != 4 || strcmp(taken[0].uri, un.uri) != 0 ||
        strcmp(taken[1].uri, tcp.uri) != 0)
        return 4;
    if (fcntl(3, F_GETFD) != FD_CLOEXEC || getenv("LISTEN_FDS") || getenv("LISTEN_PID"))
        return 5;
    /* A socket that was passed stays the manager's: its file is not removed. */
    nbd_listener_close(&taken[0]);
    return access(f->path, F_OK) == 0 ? 0 : 6;
}

static int
take_none(struct fixture *f)
{
    struct nbd_listener taken[2];

    return nbd_listen_activation(taken, 2, &f->error) == 0 ? 0 : 1;
}

static int
take_refused(struct fixture *f)
{
    struct nbd_listener taken[2];
    const int fd = open("/dev/null", O_RDONLY);

    if (dup2(fd, 3) < 0)
        return 1;
    return nbd_listen_activation(taken, 2, &f->error) == -EINVAL && f->error.text[0] ? 0 : 2;
}

static void
passed_sockets_are_taken(void **state)
{
    assert_int_equal(activated(*state, NULL, "2", take_two), 0);
}

static void
sockets_passed_to_another_process_are_not_taken(void **state)
{
    assert_int_equal(activated(*state, "1", "2", take_none), 0);
    assert_int_equal(activated(*state, NULL, "0", take_none), 0);
    assert_int_equal(activated(*state, NULL, "-1", take_none), 0);
    assert_int_equal(activated(*state, NULL, "x", take_none), 0);
}

static void
passed_descriptors_that_do_not_listen_are_refused(void **state)
{
    assert_int_equal(activated(*state, NULL, "1", take_refused), 0);
    assert_int_equal(activated(*state, NULL, "3", take_refused), 0);
    assert_int_equal(activated(*state, NULL, "4000000000", take_refused), 0);
}

int
main(void)
{
#define test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        test(socket_file_is_private_whatever_the_umask),
        test(stale_socket_file_is_replaced),
        test(live_socket_is_refused_and_goes_on),
        test(busy_socket_is_refused),
        test(other_files_are_left_alone),
        test(closing_leaves_a_successors_socket_alone),
        test(impossible_paths_are_refused),
        test(uri_escapes_the_path),
        test(tcp_listens_on_loopback_unless_told),
        test(tcp_takes_ipv6_in_brackets),
        test(tcp_refuses_what_is_no_address),
        test(tcp_port_in_use_is_said_so),
        test(passed_sockets_are_taken),
        test(sockets_passed_to_another_process_are_not_taken),
        test(passed_descriptors_that_do_not_listen_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
