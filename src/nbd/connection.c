/*
 * connection.c: one connection, from the greeting to the last answer.
 *
 * The reader takes as much as fits into its buffer and starts a task for each request that is
 * complete. A small payload is copied once, out of the buffer; the rest of a long one is received
 * in place. A finished request goes to the replies; at the end of the turn the hook sends them,
 * all in one message, read data straight from the request's memory.
 */
#include "nbd/connection.h"
#include "nbd/handshake.h"
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What is left of a payload is received in place from this length on; below, another copy is
 * cheaper than another turn. */
#define IN_PLACE_BYTES_MIN (16 * KIB)
/* After a write as long as this the next one's payload had better not land in the buffer. */
#define LONG_PAYLOAD_BYTES (64 * KIB)
/* So much is asked for then: some headers. */
#define HEADERS_BYTES 512

static_assert(NBD_INPUT_SMALL_BYTES >= NBD_OPTION_BYTES_MAX + NBD_OPTION_HEADER_BYTES,
              "an option fits into the smallest buffer");

/* --- Ending --------------------------------------------------------------------------------- */

void
nbd_connection_cut(struct nbd_connection *connection)
{
    connection->cut = true;
    (void)shutdown(connection->fd, SHUT_RDWR); /* the peer may have been faster */
    loop_at_turn_end(connection->server->loop, &connection->hook);
}

void
nbd_connection_drain(struct nbd_connection *connection)
{
    int queued = 0;

    if (connection->state == CONNECTION_HANDSHAKE) {
        nbd_connection_cut(connection);
        return;
    }
    /* A receive may be under way and take some of what is queued, so this is an upper bound; what
     * it is there for is that a client which never pauses cannot keep us here. */
    (void)ioctl(connection->fd, SIOCINQ, &queued); /* 0 where it cannot say */
    connection->draining = true;
    connection->drain_bytes = (uint64_t)queued + connection->input_bytes;
    (void)shutdown(connection->fd, SHUT_RD); /* wakes the reader when nothing is queued */
}

bool
nbd_connection_stands_still(const struct nbd_connection *connection, uint64_t limit_ns)
{
    const uint64_t now_ns = loop_now_ns(connection->server->loop);

    if (connection->state == CONNECTION_FREE || connection->cut || connection->in_flight == 0)
        return false;
    return (connection->send_pending && now_ns - connection->send_moved_ns >= limit_ns) ||
           (connection->receiving_payload && now_ns - connection->receive_moved_ns >= limit_ns);
}

/* --- Requests ------------------------------------------------------------------------------- */

static void
request_free_memory(struct nbd_request *request)
{
    struct nbd_connection *const connection = request->connection;

    if (!request->memory)
        return;
    pages_give(connection->server->pages, request->memory, request->memory_bytes);
    connection->held_bytes -= pages_cost(request->memory_bytes);
    request->memory = NULL;
}

static void
request_release(struct nbd_request *request)
{
    struct nbd_connection *const connection = request->connection;
    struct nbd_server *const server = connection->server;

    request_free_memory(request);
    request->next = server->requests_free;
    server->requests_free = request;
    tokens_give(server->loop, &server->request_tokens, 1);
    server->stats.requests++;
    server->stats.requests_current--;
    connection->in_flight--;
    if (connection->waiter) {
        struct task *const waiter = connection->waiter;

        connection->waiter = NULL;
        task_wake(server->loop, waiter);
    }
}

/* Until one more of this connection's requests was released. */
static task_fn void
connection_wait_release(struct nbd_connection *connection)
{
    assert(!connection->waiter);
    connection->waiter = task_self(connection->server->loop);
    task_suspend(connection->server->loop);
}

/*
 * A request with memory for `bytes`, when it is this connection's turn (N2): first its own limits,
 * then what all share. Always succeeds in the end, since what it waits for comes back by itself or
 * by the watch.
 */
static task_fn struct nbd_request *
request_take(struct nbd_connection *connection, const struct nbd_request_header *header,
             uint64_t bytes)
{
    struct nbd_server *const server = connection->server;
    const uint64_t cost = bytes ? pages_cost(bytes) : 0;
    struct nbd_request *request;

    while (connection->in_flight >= server->limits.requests_per_connection ||
           (connection->held_bytes && connection->held_bytes + cost > server->share_bytes))
        connection_wait_release(connection);

    if (!tokens_try(&server->request_tokens, 1)) {
        nbd_server_wait_begin(server);
        tokens_take(server->loop, &server->request_tokens, 1);
        nbd_server_wait_end(server);
    }
    request = server->requests_free;
    server->requests_free = request->next;
    request->connection = connection;
    request->header = *header;
    request->memory = NULL;
    request->payload_out = 0;
    connection->in_flight++;
    server->stats.requests_current++;
    if (!bytes)
        return request;

    request->memory = pages_try(server->pages, bytes);
    if (!request->memory) {
        nbd_server_wait_begin(server);
        request->memory = pages_take(server->pages, bytes);
        nbd_server_wait_end(server);
    }
    request->memory_bytes = bytes;
    request->payload = request->memory + header->offset % BLOCK_BYTES;
    connection->held_bytes += cost;
    return request;
}

/* reply is set: it leaves at the end of this turn. */
static void
request_queue_reply(struct nbd_request *request)
{
    struct nbd_connection *const connection = request->connection;

    request->next = NULL;
    *connection->replies_end = request;
    connection->replies_end = &request->next;
    loop_at_turn_end(connection->server->loop, &connection->hook);
}

static void
request_answer(struct nbd_request *request, enum nbd_error error)
{
    struct nbd_connection *const connection = request->connection;

    if (error != NBD_SUCCESS)
        connection->server->stats.requests_failed++;
    request_free_memory(request);
    request->reply_bytes =
        (uint32_t)nbd_answer_encode(request->reply, &connection->session, &request->header, error);
    request_queue_reply(request);
}

static void
request_answer_read(struct nbd_request *request)
{
    const struct nbd_request_header *const header = &request->header;

    request->reply_bytes =
        (uint32_t)nbd_read_reply_encode(request->reply, &request->connection->session,
                                        header->cookie, header->offset, header->length);
    request->payload_out = header->length;
    request_queue_reply(request);
}

static void
request_answer_block_status(struct nbd_request *request)
{
    request->reply_bytes = (uint32_t)nbd_block_status_encode(request->reply, request->header.cookie,
                                                             request->header.length);
    request_queue_reply(request);
}

/* The task of a request: what the export is asked, and its answer. */
static task_fn void
request_run(void *arg)
{
    struct nbd_request *const request = arg;
    struct nbd_server *const server = request->connection->server;
    const struct nbd_request_header *const header = &request->header;
    struct export *const export = server->export;
    const bool fua = (header->flags & NBD_CMD_FLAG_FUA) != 0;
    int result = -EINVAL;

    switch (header->command) {
    case NBD_CMD_READ:
        server->stats.reads++;
        result = export->ops->read(export, request->memory, round_down(header->offset, BLOCK_BYTES),
                                   request->memory_bytes);
        if (result >= 0) {
            server->stats.read_bytes += header->length;
            request_answer_read(request);
            return;
        }
        break;
    case NBD_CMD_WRITE:
        server->stats.writes++;
        result = export->ops->write(export, request->payload, header->offset, header->length, fua);
        if (result >= 0)
            server->stats.written_bytes += header->length;
        break;
    case NBD_CMD_FLUSH:
        server->stats.flushes++;
        result = export->ops->flush(export);
        break;
    case NBD_CMD_TRIM:
        server->stats.trims++;
        result = export->ops->trim(export, header->offset, header->length, fua);
        break;
    case NBD_CMD_WRITE_ZEROES:
        server->stats.zeroes++;
        result = export->ops->zero(export, header->offset, header->length,
                                   (header->flags & NBD_CMD_FLAG_NO_HOLE) == 0,
                                   (header->flags & NBD_CMD_FLAG_FAST_ZERO) != 0, fua);
        break;
    default:
        assert(!"a command that nbd_request_decide does not let run");
    }
    request_answer(request, result < 0 ? nbd_error_of(result) : NBD_SUCCESS);
}

/* --- Sending -------------------------------------------------------------------------------- */

static void
send_completed(struct loop_io *io)
{
    struct nbd_connection *const connection = container_of(io, struct nbd_connection, send);

    connection->send_done = true;
    loop_at_turn_end(connection->server->loop, &connection->hook);
}

static void
replies_drop_first(struct nbd_connection *connection)
{
    struct nbd_request *const request = connection->replies;

    connection->replies = request->next;
    if (!connection->replies)
        connection->replies_end = &connection->replies;
    connection->sent_of_first = 0;
    request_release(request);
}

/* `bytes` more are on their way: releases the requests whose answers are. */
static void
replies_account(struct nbd_connection *connection, size_t bytes)
{
    while (bytes) {
        const struct nbd_request *const first = connection->replies;
        const uint64_t left =
            (uint64_t)first->reply_bytes + first->payload_out - connection->sent_of_first;

        if (bytes < left) {
            connection->sent_of_first += (uint32_t)bytes;
            return;
        }
        bytes -= left;
        replies_drop_first(connection);
    }
}

static void
vectors_add(struct nbd_connection *connection, uint8_t *at, size_t length, size_t *skip)
{
    const size_t skipped = min_u64(*skip, length);

    *skip -= skipped;
    if (skipped < length)
        connection->vectors[connection->message.msg_iovlen++] =
            (struct iovec){.iov_base = at + skipped, .iov_len = length - skipped};
}

static void
send_start(struct nbd_connection *connection)
{
    size_t skip = connection->sent_of_first;

    connection->message = (struct msghdr){.msg_iov = connection->vectors};
    for (struct nbd_request *request = connection->replies;
         request && connection->message.msg_iovlen + 2 <= NBD_SEND_VECTORS;
         request = request->next) {
        vectors_add(connection, request->reply, request->reply_bytes, &skip);
        if (request->payload_out)
            vectors_add(connection, request->payload, request->payload_out, &skip);
    }
    connection->send = (struct loop_io){
        .kind = LOOP_SENDMSG,
        .fd = connection->fd,
        .message = &connection->message,
        .done = send_completed,
    };
    connection->send_pending = true;
    connection->send_moved_ns = loop_now_ns(connection->server->loop);
    loop_io_submit(connection->server->loop, &connection->send);
}

/* The end of a turn in which answers were made or a send completed. */
static void
connection_turn_end(struct turn_hook *hook)
{
    struct nbd_connection *const connection = container_of(hook, struct nbd_connection, hook);

    if (connection->send_done) {
        const int result = connection->send.result;

        connection->send_done = false;
        connection->send_pending = false;
        if (result >= 0)
            replies_account(connection, (size_t)result);
        else if (result != -EINTR && result != -EAGAIN && !connection->cut)
            nbd_connection_cut(connection);
    }
    if (connection->send_pending)
        return;
    if (connection->cut)
        while (connection->replies)
            replies_drop_first(connection);
    else if (connection->replies)
        send_start(connection);
}

/* --- Receiving ------------------------------------------------------------------------------ */

/* At least one byte and at most size: their number, or a negative errno at the end of the input. */
static task_fn int
connection_receive(struct nbd_connection *connection, uint8_t *at, size_t size)
{
    struct loop *const loop = connection->server->loop;
    struct iovec vector = {.iov_base = at, .iov_len = size};
    struct loop_io io = {.kind = LOOP_RECV, .fd = connection->fd, .iov = &vector, .iov_count = 1};
    struct loop_io poll = {.kind = LOOP_POLL_IN, .fd = connection->fd};
    int result;

    do {
        if (connection->cut || (connection->draining && connection->drain_bytes == 0))
            return -ECONNABORTED;
        result = loop_io_wait(loop, &io);
        if (result == -EAGAIN)
            (void)loop_io_wait(loop, &poll); /* the next receive tells */
    } while (result == -EAGAIN || result == -EINTR);
    if (result == 0)
        return -ECONNRESET;
    if (result < 0)
        return result;
    connection->receive_moved_ns = loop_now_ns(loop);
    if (connection->draining)
        connection->drain_bytes -= min_u64(connection->drain_bytes, (uint64_t)result);
    return result;
}

/* Until `need` bytes are in the buffer, in one piece; asks for at most `want` at a time. */
static task_fn int
input_require(struct nbd_connection *connection, size_t need, size_t want)
{
    assert(need <= connection->input_bytes);
    if (connection->input_bytes - connection->input_at < need ||
        connection->input_at == connection->input_end) {
        const size_t left = connection->input_end - connection->input_at;

        memmove(connection->input, connection->input + connection->input_at, left);
        connection->input_at = 0;
        connection->input_end = left;
    }
    while (connection->input_end - connection->input_at < need) {
        const size_t room = connection->input_bytes - connection->input_end;
        const int result = connection_receive(connection, connection->input + connection->input_end,
                                              min_u64(room, max_u64(want, need)));

        if (result < 0)
            return result;
        connection->input_end += (size_t)result;
    }
    return 0;
}

/* The next bytes of the buffer, which input_require has made sure of. */
static const uint8_t *
input_use(struct nbd_connection *connection, size_t length)
{
    const uint8_t *const at = connection->input + connection->input_at;

    assert(length <= connection->input_end - connection->input_at);
    connection->input_at += length;
    return at;
}

static size_t
input_left(const struct nbd_connection *connection)
{
    return connection->input_end - connection->input_at;
}

static task_fn int
input_skip(struct nbd_connection *connection, uint64_t length)
{
    while (length) {
        const int result = input_require(connection, 1, connection->input_bytes);
        const size_t now = min_u64(length, input_left(connection));

        if (result < 0)
            return result;
        (void)input_use(connection, now); /* that is the point */
        length -= now;
    }
    return 0;
}

static task_fn int
input_read(struct nbd_connection *connection, uint8_t *to, size_t length)
{
    while (length) {
        size_t now = min_u64(length, input_left(connection));
        int result;

        if (now) {
            memcpy(to, input_use(connection, now), now);
        } else if (length >= IN_PLACE_BYTES_MIN) {
            result = connection_receive(connection, to, length);
            if (result < 0)
                return result;
            now = (size_t)result;
        } else {
            result = input_require(connection, 1, connection->input_bytes);
            if (result < 0)
                return result;
        }
        to += now;
        length -= now;
    }
    return 0;
}

/* --- Handshake ------------------------------------------------------------------------------ */

/* Sends all of it. */
static task_fn int
connection_send(struct nbd_connection *connection, uint8_t *at, size_t length)
{
    while (length) {
        struct iovec vector = {.iov_base = at, .iov_len = length};
        const struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        struct loop_io io = {.kind = LOOP_SENDMSG, .fd = connection->fd, .message = &message};
        const int result = loop_io_wait(connection->server->loop, &io);

        if (connection->cut)
            return -ECONNABORTED;
        if (result == -EINTR || result == -EAGAIN)
            continue;
        if (result < 0)
            return result;
        at += result;
        length -= (size_t)result;
    }
    return 0;
}

/* The greeting, and options until one of them starts the transmission (0) or ends it all, properly
 * (-ESHUTDOWN) or not. */
static task_fn int
connection_handshake(struct nbd_connection *connection)
{
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    int result;

    nbd_handshake_init(&handshake, connection->server->export->name, &connection->server->target);
    nbd_greeting_encode(reply.bytes);
    result = connection_send(connection, reply.bytes, NBD_GREETING_BYTES);
    if (result == 0)
        result = input_require(connection, NBD_CLIENT_FLAGS_BYTES, NBD_INPUT_SMALL_BYTES);
    if (result == 0)
        result =
            nbd_handshake_client_flags(&handshake, input_use(connection, NBD_CLIENT_FLAGS_BYTES));
    while (result == 0) {
        const uint8_t *data = NULL;
        struct nbd_option_header header;
        enum nbd_next next;

        result = input_require(connection, NBD_OPTION_HEADER_BYTES, NBD_INPUT_SMALL_BYTES);
        if (result == 0)
            result =
                nbd_option_header_decode(input_use(connection, NBD_OPTION_HEADER_BYTES), &header);
        if (result < 0)
            break;
        if (header.length > NBD_OPTION_SKIP_BYTES_MAX)
            return -EPROTO;
        if (header.length > NBD_OPTION_BYTES_MAX) {
            result = input_skip(connection, header.length);
        } else {
            result = input_require(connection, header.length, NBD_INPUT_SMALL_BYTES);
            if (result == 0)
                data = input_use(connection, header.length);
        }
        if (result < 0)
            break;
        next = nbd_handshake_option(&handshake, &header, data, &reply);
        result = connection_send(connection, reply.bytes, reply.used);
        if (next == NBD_NEXT_TRANSMISSION) {
            connection->session = handshake.session;
            return result;
        }
        if (next == NBD_NEXT_CLOSE)
            return header.option == NBD_OPT_ABORT ? -ESHUTDOWN : -EPROTO;
    }
    return result;
}

static void
handshake_expired(struct timer *timer)
{
    nbd_connection_cut(container_of(timer, struct nbd_connection, deadline));
}

/* --- Transmission --------------------------------------------------------------------------- */

/* The pool's bytes a request needs: whole blocks for a read, the payload at its place in the block
 * for a write. */
static uint64_t
request_memory_bytes(const struct nbd_request_header *header)
{
    if (header->command == NBD_CMD_READ)
        return round_up(header->offset + header->length, BLOCK_BYTES) -
               round_down(header->offset, BLOCK_BYTES);
    if (header->command == NBD_CMD_WRITE)
        return header->offset % BLOCK_BYTES + header->length;
    return 0;
}

/* The payload of a write, all of it before anything else happens (N1). */
static task_fn int
request_receive_payload(struct nbd_request *request)
{
    struct nbd_connection *const connection = request->connection;
    int result;

    connection->receive_moved_ns = loop_now_ns(connection->server->loop);
    connection->receiving_payload = true;
    result = input_read(connection, request->payload, request->header.length);
    connection->receiving_payload = false;
    connection->long_payloads = request->header.length >= LONG_PAYLOAD_BYTES;
    return result;
}

/* One request, from its header to where its task or its answer has it. -ESHUTDOWN: the client has
 * ended it properly. */
static task_fn int
connection_next_request(struct nbd_connection *connection)
{
    struct nbd_server *const server = connection->server;
    struct nbd_request_header header;
    struct nbd_decision decision;
    struct nbd_request *request;
    int result = input_require(connection, NBD_REQUEST_BYTES,
                               connection->long_payloads ? HEADERS_BYTES : connection->input_bytes);

    if (result == -ECONNRESET && input_left(connection) == 0)
        return -ESHUTDOWN; /* many clients just go */
    if (result == 0)
        result = nbd_request_decode(input_use(connection, NBD_REQUEST_BYTES), &header);
    if (result < 0)
        return result;
    decision = nbd_request_decide(&header, &connection->session, &server->target);
    if (decision.verdict == NBD_CLOSE)
        return header.command == NBD_CMD_DISC ? -ESHUTDOWN : -EPROTO;

    if (decision.verdict == NBD_ANSWER) {
        result = input_skip(connection, decision.payload_bytes);
        if (result < 0)
            return result;
        request = request_take(connection, &header, 0);
        request_answer(request, decision.error);
        return 0;
    }

    request = request_take(connection, &header, request_memory_bytes(&header));
    if (header.command == NBD_CMD_WRITE)
        result = request_receive_payload(request);
    if (result < 0 || connection->cut) {
        request_release(request);
        return result < 0 ? result : -ECONNABORTED;
    }
    if (header.command == NBD_CMD_BLOCK_STATUS)
        request_answer_block_status(request);
    else
        task_start_wait(server->loop, request_run, request);
    return 0;
}

/* --- Life ----------------------------------------------------------------------------------- */

void
nbd_connection_init(struct nbd_connection *connection, struct nbd_server *server,
                    uint8_t *input_small)
{
    *connection = (struct nbd_connection){
        .server = server,
        .fd = -1,
        .input_small = input_small,
        .replies_end = &connection->replies,
        .hook.run = connection_turn_end,
        .deadline.fire = handshake_expired,
    };
}

static void
connection_begin(struct nbd_connection *connection)
{
    struct nbd_server *const server = connection->server;

    assert(connection->in_flight == 0);
    assert(connection->held_bytes == 0);
    assert(!connection->replies);
    connection->session = (struct nbd_session){0};
    connection->input = connection->input_small;
    connection->input_bytes = NBD_INPUT_SMALL_BYTES;
    connection->input_at = connection->input_end = 0;
    connection->long_payloads = false;
    timer_arm(server->loop, &connection->deadline, server->limits.handshake_ns);
}

/* A large buffer, if there is one left, takes over what the small one holds. */
static void
connection_enlarge_input(struct nbd_connection *connection)
{
    struct nbd_server *const server = connection->server;
    const size_t left = input_left(connection);

    if (server->inputs_large_free_count == 0)
        return;
    connection->input_large = server->inputs_large_free[--server->inputs_large_free_count];
    memcpy(connection->input_large, connection->input + connection->input_at, left);
    connection->input = connection->input_large;
    connection->input_bytes = NBD_INPUT_LARGE_BYTES;
    connection->input_at = 0;
    connection->input_end = left;
}

/* Everything that was begun is answered, or dropped if the peer is gone; then the end. */
static task_fn void
connection_end(struct nbd_connection *connection)
{
    struct nbd_server *const server = connection->server;

    connection->state = CONNECTION_ENDING;
    while (connection->in_flight)
        connection_wait_release(connection);
    assert(!connection->send_pending);
    assert(!connection->replies);
    if (connection->input_large) {
        server->inputs_large_free[server->inputs_large_free_count++] = connection->input_large;
        connection->input_large = NULL;
    }
    (void)shutdown(connection->fd, SHUT_RDWR); /* the peer may have been faster */
    (void)close(connection->fd);               /* a socket has nothing left to fail */
    connection->fd = -1;
}

void
nbd_connection_run(void *arg)
{
    struct nbd_connection *const connection = arg;
    struct nbd_server *const server = connection->server;
    int result;

    connection_begin(connection);
    result = connection_handshake(connection);
    timer_cancel(server->loop, &connection->deadline);
    if (result == 0) {
        connection->state = CONNECTION_TRANSMISSION;
        connection_enlarge_input(connection);
        do
            result = connection_next_request(connection);
        while (result == 0);
    }
    if (result != -ESHUTDOWN && !server->stopping)
        server->stats.connections_failed++;
    connection_end(connection);
    nbd_server_release(server, connection);
}
