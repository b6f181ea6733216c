/*
 * server.c: see server.h.
 *
 *   FREE --accepted--> RECEIVING --a line--> WORKING --> SENDING --all sent--> RECEIVING
 *                          \__________________________________\__ the end ____> FREE, or CLOSING
 *
 * RECEIVING and SENDING wait for the client, WORKING for the array. CLOSING: it ended with the
 * server, and its descriptor stays open until control_destroy (C4).
 */
#include "control/server.h"
#include "control/protocol.h"
#include "control/status.h"
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_DEFAULT 32u
#define END_NS_DEFAULT      UINT64_C(1000000000)
#define ACCEPT_PAUSE_NS     UINT64_C(100000000)

enum connection_state {
    CONNECTION_FREE,
    CONNECTION_RECEIVING,
    CONNECTION_WORKING,
    CONNECTION_SENDING,
    CONNECTION_CLOSING,
};

struct connection {
    struct control *control;
    enum connection_state state;
    int fd;
    uint64_t since_ns; /* in this state */
    size_t begin, end; /* [begin, end) of input is received and not yet used */
    char input[CONTROL_LINE_BYTES_MAX];
};

struct control {
    struct control_config config;
    struct loop *loop;
    struct connection *connections; /* owned array */
    unsigned active;                /* connections with a task */
    struct tokens mode_lock;        /* C3 */
    struct wait_queue freed;        /* the acceptor waits for a connection */
    struct wait_queue ended;        /* stops wait for the end */
    bool refusing, ending;
    bool accepting;     /* its task is alive */
    struct error error; /* of the stop; code 0: clean */
    struct task *ender; /* while control_end waits */
    struct timer end_timer;
};

/* --- States ---------------------------------------------------------------------------------- */

static void
connection_set(struct connection *connection, enum connection_state state)
{
    connection->state = state;
    connection->since_ns = loop_now_ns(connection->control->loop);
}

static bool
connection_waits_for_client(const struct connection *connection)
{
    return connection->state == CONNECTION_RECEIVING || connection->state == CONNECTION_SENDING;
}

/* Its task finds out by itself. */
static void
connection_cut(struct connection *connection)
{
    (void)shutdown(connection->fd, SHUT_RDWR); /* the peer may have been faster */
}

static void
ender_wake(struct control *control)
{
    struct task *ender = control->ender;

    if (ender == NULL || control->active > 0 || control->accepting)
        return;
    control->ender = NULL;
    task_wake(control->loop, ender);
}

/* --- Receiving ------------------------------------------------------------------------------- */

/* 0 at the end of the input. */
static task_fn int
receive_more(struct connection *connection)
{
    struct iovec vector = {.iov_base = connection->input + connection->end,
                           .iov_len = sizeof connection->input - connection->end};
    struct loop_io io = {.kind = LOOP_RECV, .fd = connection->fd, .iov = &vector, .iov_count = 1};
    const int result = loop_io_wait(connection->control->loop, &io);

    if (result > 0)
        connection->end += (size_t)result;
    return result;
}

static void
move_to_front(struct connection *connection)
{
    connection->end -= connection->begin;
    memmove(connection->input, connection->input + connection->begin, connection->end);
    connection->begin = 0;
}

/* Takes the next line from the input: its length without the newline. -EMSGSIZE: too long a line;
 * another negative errno: there is no further line. */
static task_fn int
receive_line(struct connection *connection, const char **line)
{
    connection_set(connection, CONNECTION_RECEIVING);
    for (;;) {
        const char *newline;
        int result;

        *line = connection->input + connection->begin;
        newline = memchr(*line, '\n', connection->end - connection->begin);
        if (newline != NULL) {
            connection->begin += (size_t)(newline - *line) + 1;
            return (int)(newline - *line);
        }
        move_to_front(connection);
        if (connection->end == sizeof connection->input)
            return -EMSGSIZE;
        if (connection->control->ending)
            return -ESHUTDOWN;
        result = receive_more(connection);
        if (result <= 0)
            return result < 0 ? result : -ECONNRESET;
        connection->since_ns = loop_now_ns(connection->control->loop);
    }
}

static bool
line_is_blank(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (memchr(" \t\r", line[i], 3) == NULL)
            return false;
    return true;
}

/* --- Sending --------------------------------------------------------------------------------- */

static task_fn int
send_all(struct connection *connection, char *at, size_t length)
{
    while (length > 0) {
        struct iovec vector = {.iov_base = at, .iov_len = length};
        const struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        struct loop_io io = {.kind = LOOP_SENDMSG, .fd = connection->fd, .message = &message};
        const int result = loop_io_wait(connection->control->loop, &io);

        if (result < 0)
            return result;
        connection->since_ns = loop_now_ns(connection->control->loop);
        at += result;
        length -= (size_t)result;
    }
    return 0;
}

/* Gives up the reference. */
static task_fn int
send_reply(struct connection *connection, json_t *reply)
{
    char *text = reply != NULL ? json_dumps(reply, JSON_COMPACT) : NULL;
    size_t length;
    int result;

    json_decref(reply);
    if (text == NULL)
        return -ENOMEM;
    connection_set(connection, CONNECTION_SENDING);
    length = strlen(text);
    text[length] = '\n'; /* in place of the end */
    result = send_all(connection, text, length + 1);
    free(text);
    return result;
}

/* --- Commands -------------------------------------------------------------------------------- */

static json_t *
run_status(struct control *control)
{
    json_t *reply = control_reply_ok();
    json_t *status = control_status(control->config.array);

    if (status != NULL && control->config.describe != NULL)
        control->config.describe(control->config.owner, status);
    if (json_object_set_new(reply, "status", status) < 0) {
        json_decref(reply);
        return NULL;
    }
    return reply;
}

static json_t *
reply_mode(struct control *control)
{
    struct array_status status;
    struct error error = {0};
    const char *reason;

    array_status(control->config.array, &status);
    if (!status.journaled) {
        (void)error_set(&error, -ENOTSUP, "the array has no journal in use"); /* told here */
        return control_reply_error(&error);
    }
    reason = control_mode_reason(&status);
    return json_pack("{s:b, s:s, s:s, s:o, s:b}", "ok", 1, "mode",
                     control_mode_name(status.journal_mode), "mode_wanted",
                     control_mode_name(status.journal_mode_wanted), "mode_reason",
                     reason ? control_text(reason) : json_null(), "draining", (int)status.draining);
}

static task_fn json_t *
run_journal_mode(struct control *control, const struct control_request *request)
{
    struct error error = {0};
    int result = 0;

    if (request->has_mode) {
        tokens_take(control->loop, &control->mode_lock, 1);
        result = control->refusing
                     ? error_set(&error, -ESHUTDOWN, "the array is being stopped")
                     : array_set_journal_mode(control->config.array, request->mode, &error);
        tokens_give(control->loop, &control->mode_lock, 1);
    }
    if (result == 0)
        return reply_mode(control);
    error.code = result;
    return control_reply_error(&error);
}

static task_fn json_t *
run_stop(struct control *control)
{
    control->config.stop(control->config.owner);
    while (!control->ending)
        wait_queue_wait(control->loop, &control->ended);
    return control->error.code < 0 ? control_reply_error(&control->error) : control_reply_ok();
}

static task_fn json_t *
run_request(struct control *control, const struct control_request *request)
{
    switch (request->command) {
    case CONTROL_STATUS:
        return run_status(control);
    case CONTROL_JOURNAL_MODE:
        return run_journal_mode(control, request);
    case CONTROL_STOP:
        return run_stop(control);
    }
    return NULL;
}

/* --- A connection ---------------------------------------------------------------------------- */

/* One line, from its first byte to the last of its reply; < 0: the connection ends. */
static task_fn int
serve_line(struct connection *connection)
{
    struct control_request request;
    struct error error = {0};
    const char *line;
    const int length = receive_line(connection, &line);
    int result;

    if (length == -EMSGSIZE) {
        (void)error_set(&error, -EMSGSIZE, "a line has at most %u bytes",
                        CONTROL_LINE_BYTES_MAX);                      /* told here */
        ignored(send_reply(connection, control_reply_error(&error))); /* it ends anyway */
        return -EMSGSIZE;
    }
    if (length < 0)
        return length;
    if (line_is_blank(line, (size_t)length))
        return 0;
    result = control_request_parse(line, (size_t)length, &request, &error);
    if (result < 0) {
        const int sent = send_reply(connection, control_reply_error(&error));

        return result == -EBADMSG ? result : sent; /* what speaks no JSON will not begin to */
    }
    connection_set(connection, CONNECTION_WORKING);
    return send_reply(connection, run_request(connection->control, &request));
}

static task_fn void
connection_run(void *arg)
{
    struct connection *connection = arg;
    struct control *control = connection->control;

    while (serve_line(connection) == 0)
        ;
    control->active--;
    if (control->ending) {
        connection_set(connection, CONNECTION_CLOSING);
    } else {
        (void)close(connection->fd); /* a socket has nothing left to fail */
        connection_set(connection, CONNECTION_FREE);
    }
    wait_queue_wake_all(control->loop, &control->freed);
    ender_wake(control);
}

/* --- Accepting ------------------------------------------------------------------------------- */

static struct connection *
connection_find_free(struct control *control)
{
    for (unsigned i = 0; i < control->config.limits.connections; i++)
        if (control->connections[i].state == CONNECTION_FREE)
            return &control->connections[i];
    return NULL;
}

/* C2; false: all are at work. */
static bool
connection_cut_oldest(struct control *control)
{
    struct connection *oldest = NULL;

    for (unsigned i = 0; i < control->config.limits.connections; i++) {
        struct connection *connection = &control->connections[i];

        if (connection_waits_for_client(connection) &&
            (oldest == NULL || connection->since_ns < oldest->since_ns))
            oldest = connection;
    }
    if (oldest != NULL)
        connection_cut(oldest);
    return oldest != NULL;
}

static void
refuse(const struct control *control, int fd)
{
    static const char busy[] =
        "{\"ok\":false,\"code\":\"EMFILE\",\"error\":\"too many requests are under way\"}\n";
    static const char ending[] =
        "{\"ok\":false,\"code\":\"ESHUTDOWN\",\"error\":\"the array has been stopped\"}\n";
    const char *text = control->ending ? ending : busy;

    (void)send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL); /* a courtesy */
    (void)close(fd); /* a socket has nothing left to fail */
}

static task_fn void
admit(struct control *control, int fd)
{
    struct connection *connection = connection_find_free(control);

    while (connection == NULL && !control->ending && connection_cut_oldest(control)) {
        wait_queue_wait(control->loop, &control->freed);
        connection = connection_find_free(control);
    }
    if (connection == NULL || control->ending ||
        task_start(control->loop, connection_run, connection) == NULL) {
        refuse(control, fd);
        return;
    }
    connection->fd = fd;
    connection->begin = connection->end = 0;
    connection_set(connection, CONNECTION_RECEIVING);
    control->active++;
}

static task_fn void
accept_run(void *arg)
{
    struct control *control = arg;

    while (!control->ending) {
        struct loop_io io = {.kind = LOOP_ACCEPT, .fd = control->config.listen_fd};
        const int fd = loop_io_wait(control->loop, &io);

        if (fd >= 0)
            admit(control, fd);
        else if (!control->ending)
            loop_sleep(control->loop, ACCEPT_PAUSE_NS); /* descriptors come back, clients go */
    }
    control->accepting = false;
    ender_wake(control);
}

/* --- Life ------------------------------------------------------------------------------------ */

static void
end_overdue(struct timer *timer)
{
    struct control *control = container_of(timer, struct control, end_timer);

    for (unsigned i = 0; i < control->config.limits.connections; i++)
        if (connection_waits_for_client(&control->connections[i]))
            connection_cut(&control->connections[i]);
    /* What works for the array comes to its end first, and may find a client that takes no reply.
     */
    timer_arm(control->loop, timer, control->config.limits.end_ns);
}

int
control_create(const struct control_config *config, struct control **out)
{
    struct control *control = calloc(1, sizeof *control);

    if (control == NULL)
        return -ENOMEM;
    control->config = *config;
    control->loop = config->loop;
    control->end_timer.fire = end_overdue;
    if (control->config.limits.connections == 0)
        control->config.limits.connections = CONNECTIONS_DEFAULT;
    if (control->config.limits.end_ns == 0)
        control->config.limits.end_ns = END_NS_DEFAULT;
    tokens_init(&control->mode_lock, 1);
    control->connections = calloc(control->config.limits.connections, sizeof *control->connections);
    if (control->connections == NULL || task_start(control->loop, accept_run, control) == NULL) {
        free(control->connections);
        free(control);
        return -ENOMEM;
    }
    control->accepting = true;
    for (unsigned i = 0; i < control->config.limits.connections; i++)
        control->connections[i].control = control;
    *out = control;
    return 0;
}

void
control_refuse(struct control *control)
{
    control->refusing = true;
}

task_fn void
control_end(struct control *control, const struct error *error)
{
    assert(control->refusing);
    assert(!control->ending);
    control->ending = true;
    if (error != NULL)
        control->error = *error;
    (void)shutdown(control->config.listen_fd, SHUT_RDWR); /* ends the accept that is under way */
    wait_queue_wake_all(control->loop, &control->ended);
    wait_queue_wake_all(control->loop, &control->freed);
    for (unsigned i = 0; i < control->config.limits.connections; i++)
        if (control->connections[i].state == CONNECTION_RECEIVING)
            connection_cut(&control->connections[i]);
    timer_arm(control->loop, &control->end_timer, control->config.limits.end_ns);
    if (control->active > 0 || control->accepting) {
        control->ender = task_self(control->loop);
        task_suspend(control->loop);
    }
    timer_cancel(control->loop, &control->end_timer);
}

void
control_destroy(struct control *control)
{
    assert(control->ending);
    assert(control->active == 0);
    for (unsigned i = 0; i < control->config.limits.connections; i++)
        if (control->connections[i].state == CONNECTION_CLOSING)
            (void)close(control->connections[i].fd); /* a socket has nothing left to fail */
    free(control->connections);
    free(control);
}
