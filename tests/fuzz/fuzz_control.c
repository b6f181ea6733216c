/*
 * fuzz_control.c: any bytes from several clients of the control socket at once.
 *
 *   input    control (1 byte) | what the first client sends | 0xff | what the second sends ...
 *   control  bits 0-2: size of a receive, 0 all, else a power of two; bits 3-5: of a send; bit 6:
 *            clients do not go when they have sent all; bit 7: the array stops early
 *
 * The server, its loop and its tasks are the real ones; the loop stands on a backend that hands the
 * bytes over, and the array is a few variables. Every run checks:
 *
 *   C1. Each client gets one reply a line at most, in whole, each an object that says "ok".
 *   C2. The array is not asked for anything after the server's end, nor twice at a time.
 *   C3. A run comes to its end, and closes what it opened.
 */
#include "fuzz.h"

#include "control/server.h"
#include "control/status.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS_MAX     6u
#define CONNECTIONS     3u
#define SENT_BYTES      (320 * KIB)
#define INPUT_BYTES_MAX (8 * KIB) /* a reply is at most 39 times its line */
#define SWITCH_NS       50
#define PATIENCE_NS     1000

struct client {
    const uint8_t *data;
    size_t bytes, received;
    int fd, other; /* the server's end, and ours, which is only there to be closed */
    size_t sent_bytes;
    char sent[SENT_BYTES];
};

static struct wire {
    struct loop *loop;
    struct control *control;
    uint64_t now_ns;
    struct loop_io *first, **end;
    struct client clients[CLIENTS_MAX];
    unsigned clients_count, accepted;
    size_t receive_piece, send_piece;
    bool stays, listening, early;
    bool stop_asked, ended, switching;
    enum journal_mode mode;
} wire;

/* --- The array -------------------------------------------------------------------------------- */

json_t *
control_status(const struct array *array)
{
    promise(!wire.ended);
    return json_pack("{s:s}", "name", "fuzzed");
}

const char *
control_mode_reason(const struct array_status *status)
{
    return status->journal_mode == JOURNAL_WRITE_BACK ? NULL : "it is so";
}

void
array_status(const struct array *array, struct array_status *status)
{
    promise(!wire.ended);
    *status = (struct array_status){.journaled = true, .journal_mode = wire.mode};
}

int
array_set_journal_mode(struct array *array, enum journal_mode mode, struct error *error)
{
    promise(!wire.ended && !wire.switching); /* C2 */
    wire.switching = true;
    loop_sleep(wire.loop, SWITCH_NS);
    wire.switching = false;
    promise(!wire.ended);
    if (wire.mode == mode)
        return error_set(error, -EUCLEAN, "it is that already");
    wire.mode = mode;
    return 0;
}

/* --- The backend ------------------------------------------------------------------------------ */

static struct client *
client_of(int fd)
{
    for (unsigned i = 0; i < wire.accepted; i++)
        if (wire.clients[i].fd == fd)
            return &wire.clients[i];
    promise(!"a descriptor of the server's");
    return NULL;
}

/* The server has shut its end down. */
static bool
is_cut(const struct client *client)
{
    char byte;

    return recv(client->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static int
wire_accept(void)
{
    struct client *client = &wire.clients[wire.accepted];
    int fds[2];

    if (!wire.listening)
        return -EINVAL;
    if (wire.accepted == wire.clients_count)
        return -EAGAIN;
    promise(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    /* Numbers that nobody has had, so that a look tells afterwards who is closed. */
    client->fd = fcntl(fds[0], F_DUPFD_CLOEXEC, (int)(100 + 2 * wire.accepted));
    client->other = fcntl(fds[1], F_DUPFD_CLOEXEC, (int)(101 + 2 * wire.accepted));
    promise(client->fd >= 100 && client->other == client->fd + 1);
    promise(close(fds[0]) == 0 && close(fds[1]) == 0);
    wire.accepted++;
    return client->fd;
}

static int
wire_receive(const struct loop_io *io)
{
    struct client *client = client_of(io->fd);
    size_t now = min_u64(io->iov->iov_len, client->bytes - client->received);

    promise(io->iov->iov_len > 0);
    if (is_cut(client))
        return 0;
    if (wire.receive_piece)
        now = min_u64(now, wire.receive_piece);
    if (now == 0)
        return wire.stays ? -EAGAIN : 0;
    memcpy(io->iov->iov_base, client->data + client->received, now);
    client->received += now;
    return (int)now;
}

static int
wire_send(const struct loop_io *io)
{
    struct client *client = client_of(io->fd);
    const struct iovec *vector = io->message->msg_iov;
    size_t now = vector->iov_len;

    promise(io->message->msg_iovlen == 1 && now > 0);
    if (is_cut(client))
        return -EPIPE;
    if (wire.send_piece)
        now = min_u64(now, wire.send_piece);
    promise(now <= SENT_BYTES - client->sent_bytes);
    memcpy(client->sent + client->sent_bytes, vector->iov_base, now);
    client->sent_bytes += now;
    return (int)now;
}

static void
wire_submit(void *self, struct loop_io *io)
{
    io->next = NULL;
    *wire.end = io;
    wire.end = &io->next;
}

/* What would have to wait stays. */
static void
wire_wait(void *self, uint64_t deadline_ns)
{
    struct loop_io *io = wire.first;
    bool moved = false;

    wire.first = NULL;
    wire.end = &wire.first;
    while (io) {
        struct loop_io *const next = io->next;

        io->result = io->kind == LOOP_ACCEPT ? wire_accept()
                     : io->kind == LOOP_RECV ? wire_receive(io)
                                             : wire_send(io);
        if (io->result == -EAGAIN) {
            wire_submit(self, io);
        } else {
            moved = true;
            io->done(io);
        }
        io = next;
    }
    if (moved) {
        wire.now_ns++;
        return;
    }
    promise(deadline_ns != UINT64_MAX); /* C3 */
    wire.now_ns = max_u64(wire.now_ns, deadline_ns);
}

static uint64_t
wire_now_ns(void *self)
{
    return wire.now_ns;
}

static void
wire_destroy(void *self)
{
}

static const struct loop_backend wire_backend = {
    .name = "wire",
    .submit = wire_submit,
    .wait = wire_wait,
    .now_ns = wire_now_ns,
    .wall_us = wire_now_ns,
    .destroy = wire_destroy,
};

/* --- A run ------------------------------------------------------------------------------------ */

static void
stop_asked(void *owner)
{
    wire.stop_asked = true;
}

static void
describe(void *owner, json_t *status)
{
    json_object_set_new(status, "pid", json_integer(1));
}

static void
supervise(void *arg)
{
    const struct control_config config = {
        .loop = wire.loop,
        .listen_fd = -1,
        .limits = {.connections = CONNECTIONS, .end_ns = PATIENCE_NS},
        .stop = stop_asked,
        .describe = describe,
    };
    const struct error error = {.code = -EIO, .text = "not clean"};

    promise(control_create(&config, &wire.control) == 0);
    for (unsigned i = 0; i < 100 && !wire.stop_asked; i++)
        loop_sleep(wire.loop, wire.early ? 1 : PATIENCE_NS);
    control_refuse(wire.control);
    loop_sleep(wire.loop, SWITCH_NS / 2);
    wire.listening = false; /* as the shutdown does */
    control_end(wire.control, wire.stop_asked ? NULL : &error);
    wire.ended = true;
    control_destroy(wire.control);
}

/* C1 */
static void
check_replies(const struct client *client)
{
    const char *at = client->sent, *const end = client->sent + client->sent_bytes;
    size_t lines = 1; /* one that is too long has no end */

    for (size_t i = 0; i < client->received; i++)
        lines += client->data[i] == '\n';
    for (; at < end; lines--) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        json_error_t where;
        json_t *reply;

        if (newline == NULL)
            return; /* cut off */
        reply = json_loadb(at, (size_t)(newline - at), JSON_REJECT_DUPLICATES, &where);
        promise(json_is_boolean(json_object_get(reply, "ok")));
        promise(json_is_true(json_object_get(reply, "ok")) ==
                (json_object_get(reply, "error") == NULL));
        json_decref(reply);
        promise(lines > 0);
        at = newline + 1;
    }
}

static void
split(const uint8_t *data, size_t size)
{
    wire.clients_count = wire.accepted = 0;
    while (wire.clients_count < CLIENTS_MAX) {
        const uint8_t *end = size > 0 ? memchr(data, 0xff, size) : NULL;
        struct client *client = &wire.clients[wire.clients_count++];

        client->data = data;
        client->bytes = end != NULL ? (size_t)(end - data) : size;
        client->received = client->sent_bytes = 0;
        if (end == NULL)
            return;
        size -= client->bytes + 1;
        data = end + 1;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct loop_config loop_config = {.tasks = 20, .task_stack_bytes = 256 * KIB, .seed = 1};
    struct error error;

    if (size < 1 || size > INPUT_BYTES_MAX)
        return 0;
    if (!wire.loop)
        promise(loop_create_on(&loop_config, &wire_backend, &wire, &wire.loop, &error) == 0);
    wire.receive_piece = data[0] & 7 ? (size_t)1 << (2 * (data[0] & 7) - 2) : 0;
    wire.send_piece = data[0] >> 3 & 7 ? (size_t)1 << (data[0] >> 3 & 7) : 0;
    wire.stays = (data[0] & 0x40) != 0;
    wire.early = (data[0] & 0x80) != 0;
    wire.end = &wire.first;
    wire.listening = true;
    wire.stop_asked = wire.ended = false;
    split(data + 1, size - 1);
    loop_run_task(wire.loop, supervise, NULL);

    for (unsigned i = 0; i < wire.accepted; i++) {
        promise(close(wire.clients[i].fd) < 0 && errno == EBADF); /* C3 */
        promise(close(wire.clients[i].other) == 0);
        check_replies(&wire.clients[i]);
    }
    return 0;
}
