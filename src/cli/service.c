/*
 * service.c: what a service owes to whoever started it.
 */
#include "cli/service.h"

#include "runtime/listener.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Pidfile ---- */

/* The process a pidfile names; 0: it names none; -ENOENT; -EEXIST: this is something else, which
 * may be dear to somebody. */
static int
pidfile_read(const char *path)
{
    char text[33] = "";
    struct stat status;
    FILE *file;
    size_t length;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? -ENOENT : -EEXIST;
    if (!S_ISREG(status.st_mode))
        return -EEXIST;
    file = fopen(path, "re");
    if (!file)
        return errno == ENOENT ? -ENOENT : -EEXIST;
    length = fread(text, 1, sizeof text - 1, file);
    (void)fclose(file); /* nothing was written */
    if (length == sizeof text - 1 || strspn(text, "0123456789\n") != length)
        return -EEXIST;
    return (int)min_u64(strtoull(text, NULL, 10), INT_MAX);
}

static void
command_name(int pid, char *name, int bytes)
{
    char path[32];
    FILE *file;

    name[0] = '\0';
    (void)snprintf(path, sizeof path, "/proc/%d/comm", pid);
    file = fopen(path, "re");
    if (!file)
        return;
    if (!fgets(name, bytes, file))
        name[0] = '\0';
    (void)fclose(file); /* nothing was written */
}

/* Numbers are used again: only a process of our own name holds its pidfile. */
static bool
is_one_of_us(int pid)
{
    char ours[32], other[32];

    command_name((int)getpid(), ours, sizeof ours);
    command_name(pid, other, sizeof other);
    return ours[0] != '\0' && strcmp(ours, other) == 0;
}

int
pidfile_check(const char *path, struct error *error)
{
    const int pid = pidfile_read(path);

    if (pid == -EEXIST)
        return error_set(error, -EEXIST, "%s: exists, and is no pidfile", path);
    if (pid > 0 && pid != (int)getpid() && is_one_of_us(pid))
        return error_set(error, -EBUSY, "%s: the pidfile of process %d, which runs", path, pid);
    return place_check(path, error);
}

int
pidfile_write(const char *path, struct error *error)
{
    char temporary[PATH_MAX];
    FILE *file;
    bool failed;
    int r;

    if ((size_t)snprintf(temporary, sizeof temporary, "%s.%d", path, (int)getpid()) >=
        sizeof temporary)
        return error_set(error, -ENAMETOOLONG, "%s: %s", path, strerror(ENAMETOOLONG));
    r = pidfile_check(path, error);
    if (r < 0)
        return r;
    file = fopen(temporary, "we");
    if (!file)
        return error_set(error, -errno, "%s: cannot be made: %s", temporary, strerror(errno));
    errno = EIO; /* where stdio leaves none */
    failed = fprintf(file, "%d\n", (int)getpid()) < 0;
    failed |= fclose(file) != 0;
    if (!failed && rename(temporary, path) == 0)
        return 0;
    (void)error_set(error, -errno, "%s: cannot be written: %s", path,
                    strerror(errno)); /* error->code is what counts */
    (void)unlink(temporary);          /* it may not be there */
    return error->code;
}

void
pidfile_remove(const char *path)
{
    if (pidfile_read(path) == (int)getpid())
        (void)unlink(path); /* somebody may have done so before */
}

/* ---- The service manager ---- */

void
notify_send(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t length = path ? strlen(path) : 0;
    int fd;

    if (length == 0 || length >= sizeof address.sun_path || (path[0] != '/' && path[0] != '@'))
        return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    /* A manager that does not listen has its own timeout. */
    (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&address,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
    (void)close(fd); /* nothing to fail */
}

/* ---- Default sockets ---- */

int
default_directory(char *path, size_t bytes, struct error *error)
{
    const char *base = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");

    if (!base || base[0] != '/')
        return error_set(error, -ENOENT,
                         "XDG_RUNTIME_DIR is not set, so there is no default place for sockets");
    if ((size_t)snprintf(path, bytes, "%s/stripelog", base) >= bytes)
        return error_set(error, -ENAMETOOLONG, "%s: %s", base, strerror(ENAMETOOLONG));
    return 0;
}

int
default_socket(const char *uuid, const char *kind, char *path, size_t bytes, struct error *error)
{
    char directory[PATH_MAX];
    int r = default_directory(directory, sizeof directory, error);

    if (r < 0)
        return r;
    if (mkdir(directory, geteuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST)
        return error_set(error, -errno, "%s: cannot be made: %s", directory, strerror(errno));
    if ((size_t)snprintf(path, bytes, "%s/%s.%s", directory, uuid, kind) >= bytes)
        return error_set(error, -ENAMETOOLONG, "%s: %s", directory, strerror(ENAMETOOLONG));
    return 0;
}

/* ---- Signals ---- */

static void
stop_signals(sigset_t *set)
{
    /* Neither can fail with signals that exist. */
    (void)sigemptyset(set);
    (void)sigaddset(set, SIGTERM);
    (void)sigaddset(set, SIGINT);
}

int
signals_open(struct error *error)
{
    sigset_t set;
    int fd;

    stop_signals(&set);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return error_set(error, -errno, "cannot block signals: %s", strerror(errno));
    fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return error_set(error, -errno, "cannot receive signals: %s", strerror(errno));
    return fd;
}

static void
signals_mask(int how)
{
    sigset_t set;

    stop_signals(&set);
    if (pthread_sigmask(how, &set, NULL) != 0)
        assert(!"these signals exist");
}

void
signals_end_us(void)
{
    signals_mask(SIG_UNBLOCK);
}

void
signals_hold(void)
{
    signals_mask(SIG_BLOCK);
}

int
signals_take(int fd)
{
    struct signalfd_siginfo info;

    return read(fd, &info, sizeof info) == (ssize_t)sizeof info ? (int)info.ssi_signo : 0;
}

/* ---- The command ---- */

static void
command_exec(const char *command, const char *uri, const char *unixsocket)
{
    sigset_t set;

    stop_signals(&set);
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL); /* cannot fail */
    (void)signal(SIGPIPE, SIG_DFL);             /* cannot fail */
    if (setenv("uri", uri, 1) == 0 && setenv("unixsocket", unixsocket ? unixsocket : "", 1) == 0) {
        (void)unsetenv("NOTIFY_SOCKET"); /* cannot fail */
        (void)execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    }
    _exit(127);
}

int
command_start(const char *command, const char *uri, const char *unixsocket, pid_t *pid, int *pid_fd,
              struct error *error)
{
    *pid = fork();
    if (*pid < 0)
        return error_set(error, -errno, "cannot start \"%s\": %s", command, strerror(errno));
    if (*pid == 0)
        command_exec(command, uri, unixsocket);
    *pid_fd = pidfd_open(*pid, 0);
    if (*pid_fd >= 0)
        return 0;
    (void)error_set(error, -errno, "cannot watch \"%s\": %s", command,
                    strerror(errno)); /* error->code is what counts */
    (void)kill(*pid, SIGKILL);        /* ours, and not yet waited for */
    (void)waitpid(*pid, NULL, 0);     /* nobody asks any more */
    return error->code;
}

int
command_status(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
