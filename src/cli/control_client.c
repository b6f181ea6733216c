/*
 * control_client.c: see control_client.h.
 */
#include "cli/control_client.h"
#include "cli/service.h"

#include <dirent.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SUFFIX          ".ctl"
#define REPLY_BYTES_MAX (4u * 1024 * 1024)
#define NAME_ANSWER_MS  2000 /* of one server among others that are asked for their names */
#define UUID_DIGITS     32u
#define WATCH_MS        1000 /* between two looks at what takes long */

/* ---- A conversation ---- */

static int
connect_path(const char *path, struct error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof address.sun_path)
        return error_set(error, -ENAMETOOLONG, "%s: a socket's path has at most %zu characters",
                         path, sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_set(error, -errno, "no socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    if (errno == ECONNREFUSED)
        (void)error_set(error, -ECONNREFUSED, "%s: no server runs behind this socket",
                        path); /* the code is what counts */
    else
        (void)error_set(error, -errno, "%s: %s", path, strerror(errno)); /* the same */
    (void)close(fd);                                                     /* nothing to lose */
    return error->code;
}

static int64_t
clock_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail */
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until there is something to read; -ETIMEDOUT. deadline_ms < 0: for ever. */
static int
wait_readable(int fd, int64_t deadline_ms)
{
    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        const int64_t left = deadline_ms < 0 ? -1 : deadline_ms - clock_ms();
        int ready;

        if (deadline_ms >= 0 && left <= 0)
            return -ETIMEDOUT;
        ready = poll(&poll_fd, 1, (int)left);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
    }
}

static int
send_line(int fd, char *text, size_t length)
{
    while (length > 0) {
        const ssize_t sent = send(fd, text, length, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -errno;
        text += sent;
        length -= (size_t)sent;
    }
    return 0;
}

/* One line, without its newline; *text is to be freed. */
static int
receive_line(int fd, int timeout_ms, char **text, size_t *length)
{
    const int64_t deadline_ms = timeout_ms < 0 ? -1 : clock_ms() + timeout_ms;
    size_t room = 0;
    int result = 0;

    *text = NULL;
    *length = 0;
    while (result == 0) {
        ssize_t got;

        if (*length == room) {
            char *larger = room < REPLY_BYTES_MAX ? realloc(*text, 2 * room + 4096) : NULL;

            if (larger == NULL)
                return room < REPLY_BYTES_MAX ? -ENOMEM : -EMSGSIZE;
            *text = larger;
            room = 2 * room + 4096;
        }
        result = wait_readable(fd, deadline_ms);
        if (result < 0)
            return result;
        got = recv(fd, *text + *length, room - *length, 0);
        if (got < 0 && errno != EINTR)
            result = -errno;
        if (got == 0)
            result = -ECONNRESET;
        if (got <= 0)
            continue;
        *length += (size_t)got;
        /* Nothing follows a reply before the next request. */
        if ((*text)[*length - 1] == '\n') {
            --*length;
            return 0;
        }
    }
    return result;
}

/* Gives up the reference. */
static int
send_request(int fd, json_t *request)
{
    char *text = json_dumps(request, JSON_COMPACT);
    size_t length;
    int result;

    json_decref(request);
    if (text == NULL)
        return -ENOMEM;
    length = strlen(text);
    text[length] = '\n'; /* in place of the end */
    result = send_line(fd, text, length + 1);
    free(text);
    return result;
}

/* -EBADMSG: this is none. */
static int
receive_reply(int fd, int timeout_ms, json_t **reply)
{
    json_error_t where;
    size_t length;
    char *text;
    int result = receive_line(fd, timeout_ms, &text, &length);

    if (result == 0) {
        *reply = json_loadb(text, length, 0, &where);
        if (!json_is_boolean(json_object_get(*reply, "ok"))) {
            json_decref(*reply);
            *reply = NULL;
            result = -EBADMSG;
        }
    }
    free(text);
    return result;
}

/* What came of it, in words. */
static int
judge_reply(int result, json_t **reply, struct error *error)
{
    const char *text;

    if (result == -EBADMSG)
        return error_set(error, result, "what answers is no control socket of an array");
    if (result == -ETIMEDOUT)
        return error_set(error, result, "the server does not answer");
    if (result == -ECONNRESET || result == -EPIPE)
        return error_set(error, result, "the server has gone without an answer");
    if (result < 0)
        return error_set(error, result, "the server cannot be asked: %s", strerror(-result));
    if (json_is_true(json_object_get(*reply, "ok")))
        return 0;
    text = json_string_value(json_object_get(*reply, "error"));
    (void)error_set(error, -EPROTO, "%s",
                    text ? text : "the server refuses, and says not why"); /* told by the caller */
    json_decref(*reply);
    *reply = NULL;
    return error->code;
}

int
control_ask(int fd, json_t *request, int timeout_ms, json_t **reply, struct error *error)
{
    int result = send_request(fd, request);

    if (result == 0)
        result = receive_reply(fd, timeout_ms, reply);
    return judge_reply(result, reply, error);
}

/* ---- What takes long ---- */

struct drain {
    int64_t began_ms;
    uint64_t total_bytes; /* cached when it was first looked at */
};

/* What is cached, as the server of this connection says on another; 0 where it does not. */
static uint64_t
cached_bytes(int fd)
{
    struct sockaddr_un address = {0};
    socklen_t length = sizeof address - 1; /* so that it ends */
    struct error unused = {0};
    json_t *reply = NULL;
    json_int_t bytes = 0;
    int other;

    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0)
        return 0;
    other = connect_path(address.sun_path, &unused);
    if (other < 0)
        return 0;
    if (control_ask(other, json_pack("{s:s}", "command", "status"), WATCH_MS, &reply, &unused) == 0)
        bytes = json_integer_value(json_object_get(
            json_object_get(json_object_get(json_object_get(reply, "status"), "journal"), "cache"),
            "cached_bytes"));
    json_decref(reply);
    (void)close(other); /* nothing to lose */
    return bytes > 0 ? (uint64_t)bytes : 0;
}

static void
drain_look(struct drain *drain, int fd, struct progress *progress)
{
    const uint64_t left = cached_bytes(fd);
    const uint64_t ms = (uint64_t)(clock_ms() - drain->began_ms);
    struct array_event event = {
        .kind = ARRAY_RECOVERY_PROGRESS, .phase = RECOVERY_WRITING_OUT, .remaining_ms = UINT64_MAX};

    if (drain->total_bytes == 0) {
        drain->total_bytes = left;
        drain->began_ms = clock_ms();
        return;
    }
    event.total_bytes = max_u64(drain->total_bytes, left);
    event.done_bytes = event.total_bytes - left;
    event.rate_bytes_per_s = event.done_bytes * 1000 / max_u64(ms, 1);
    if (event.rate_bytes_per_s > 0)
        event.remaining_ms = left * 1000 / event.rate_bytes_per_s;
    progress_event(progress, &event);
}

int
control_ask_patiently(int fd, json_t *request, struct progress *progress, json_t **reply,
                      struct error *error)
{
    struct drain drain = {0};
    int result = send_request(fd, request);

    while (result == 0) {
        result = wait_readable(fd, clock_ms() + WATCH_MS);
        if (result == 0)
            break;
        if (result == -ETIMEDOUT) {
            drain_look(&drain, fd, progress);
            result = 0;
        }
    }
    progress_clear(progress);
    if (result == 0)
        result = receive_reply(fd, -1, reply);
    return judge_reply(result, reply, error);
}

void
control_wait_closed(int fd, int timeout_ms)
{
    const int64_t deadline_ms = clock_ms() + timeout_ms;
    char rest[256];

    while (wait_readable(fd, deadline_ms) == 0 && recv(fd, rest, sizeof rest, 0) > 0)
        ; /* nothing more is expected */
}

/* ---- Which array ---- */

enum match { MATCH_NONE, MATCH_BEGINNING, MATCH_EXACT };

struct search {
    const char *wanted;
    char digits[UUID_DIGITS + 1]; /* wanted as digits of a uuid; "": it is none */
    enum match best;
    unsigned count; /* of the best */
    char path[PATH_MAX];
    char found[256]; /* the best ones, for people */
};

/* The digits of a uuid or of its beginning, in lower case, without what stands between; "" where it
 * is something else. */
static void
uuid_digits(const char *text, char digits[UUID_DIGITS + 1])
{
    size_t count = 0;

    for (; *text; text++) {
        const char c = *text >= 'A' && *text <= 'F' ? (char)(*text - 'A' + 'a') : *text;

        if (c == ':' || c == '-')
            continue;
        if (count == UUID_DIGITS || !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) {
            count = 0;
            break;
        }
        digits[count++] = c;
    }
    digits[count] = '\0';
}

static enum match
match_text(const char *wanted, const char *text)
{
    if (wanted[0] == '\0' || strncmp(wanted, text, strlen(wanted)) != 0)
        return MATCH_NONE;
    return text[strlen(wanted)] == '\0' ? MATCH_EXACT : MATCH_BEGINNING;
}

/* What the array behind a socket is called; "" if that cannot be learned. False: nobody is there.
 */
static bool
ask_name(const char *path, char *name, size_t bytes)
{
    struct error unused = {0};
    json_t *reply = NULL;
    const char *text;
    const int fd = connect_path(path, &unused);

    name[0] = '\0';
    if (fd < 0)
        return fd != -ECONNREFUSED && fd != -ENOENT;
    if (control_ask(fd, json_pack("{s:s}", "command", "status"), NAME_ANSWER_MS, &reply, &unused) ==
        0) {
        text = json_string_value(json_object_get(json_object_get(reply, "status"), "name"));
        (void)snprintf(name, bytes, "%s", text ? text : ""); /* longer is no array's */
    }
    json_decref(reply);
    (void)close(fd); /* nothing to lose */
    return true;
}

static void
search_add(struct search *search, enum match match, const char *path, const char *uuid,
           const char *name)
{
    const size_t used = match > search->best ? 0 : strlen(search->found);

    if (match == MATCH_NONE || match < search->best)
        return;
    search->count = match > search->best ? 1 : search->count + 1;
    search->best = match;
    (void)snprintf(search->path, sizeof search->path, "%s", path); /* it fits: it was opened */
    (void)snprintf(search->found + used, sizeof search->found - used, "%s%s (%s)",
                   used > 0 ? ", " : "", name[0] ? name : "?", uuid); /* cut off is fine */
}

static void
search_look_at(struct search *search, const char *path, const char *uuid)
{
    char digits[UUID_DIGITS + 1], name[64];
    enum match by_uuid, by_name;

    if (!ask_name(path, name, sizeof name))
        return; /* left behind by a crash */
    uuid_digits(uuid, digits);
    by_uuid = match_text(search->digits, digits);
    by_name = match_text(search->wanted, name);
    search_add(search, by_uuid > by_name ? by_uuid : by_name, path, uuid, name);
}

static int
search_directory(struct search *search, const char *directory, struct error *error)
{
    DIR *dir = opendir(directory);
    const struct dirent *entry;

    if (dir == NULL && errno == ENOENT)
        return 0;
    if (dir == NULL)
        return error_set(error, -errno, "%s: %s", directory, strerror(errno));
    while ((entry = readdir(dir)) != NULL) {
        const size_t length = strlen(entry->d_name);
        char path[PATH_MAX], uuid[NAME_MAX + 1];

        if (length <= strlen(SUFFIX) ||
            strcmp(entry->d_name + length - strlen(SUFFIX), SUFFIX) != 0 ||
            (size_t)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name) >= sizeof path)
            continue;
        (void)snprintf(uuid, sizeof uuid, "%.*s", (int)(length - strlen(SUFFIX)),
                       entry->d_name); /* it fits */
        search_look_at(search, path, uuid);
    }
    (void)closedir(dir); /* nothing to lose */
    return 0;
}

static bool
is_path(const char *array)
{
    struct stat status;

    return strchr(array, '/') != NULL || (stat(array, &status) == 0 && S_ISSOCK(status.st_mode));
}

int
control_connect(const char *array, struct error *error)
{
    struct search search = {.wanted = array};
    char directory[PATH_MAX];
    int r;

    if (is_path(array))
        return connect_path(array, error);
    uuid_digits(array, search.digits);
    r = default_directory(directory, sizeof directory, error);
    if (r == 0)
        r = search_directory(&search, directory, error);
    if (r < 0)
        return r;
    if (search.count == 0)
        return error_set(error, -ENOENT,
                         "where the server got --control=PATH, name that path\n"
                         "%s: no server of an array with this name or uuid is in %s",
                         array, directory);
    if (search.count > 1)
        return error_set(error, -EEXIST, "%s: there are %u such arrays: %s", array, search.count,
                         search.found);
    return connect_path(search.path, error);
}

int
control_ask_array(const char *array, json_t *request, int timeout_ms, json_t **reply,
                  struct error *error)
{
    const int fd = control_connect(array, error);
    int r;

    if (fd < 0) {
        json_decref(request);
        return fd;
    }
    r = control_ask(fd, request, timeout_ms, reply, error);
    (void)close(fd); /* nothing to lose */
    return r;
}
