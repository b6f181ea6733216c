/*
 * nbd_wire.c: see nbd_wire.h.
 */
#include "nbd_wire.h"

#include "nbd/protocol.h"
#include "nbd/server.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXPORT_BYTES (32 * KIB)
#define POOL_BYTES   (256 * KIB)
#define NAME         "array"
#define SENT_MAX     (256 * KIB)

/* --- The backend ---------------------------------------------------------------------------- */

struct wire {
    struct loop *loop;
    struct pages *pages;
    struct nbd_server *server;
    struct export export;
    uint8_t content[EXPORT_BYTES];
    uint64_t now_ns;
    struct loop_io *first, **end;
    const struct nbd_wire_input *input;
    size_t received;
    uint8_t *sent; /* the first SENT_MAX bytes */
    size_t sent_bytes;
    bool sent_all; /* nothing was cut off */
};

static size_t
wire_receive(struct wire *wire, struct loop_io *io)
{
    const struct nbd_wire_input *const input = wire->input;
    size_t room = io->iov->iov_len, now;

    if (input->receive_piece)
        room = min_u64(room, input->receive_piece);
    now = min_u64(room, input->bytes - wire->received);
    if (now)
        memcpy(io->iov->iov_base, input->data + wire->received, now);
    wire->received += now;
    return now;
}

static size_t
wire_send(struct wire *wire, const struct loop_io *io)
{
    size_t room = wire->input->send_piece ? wire->input->send_piece : SIZE_MAX, total = 0;

    for (size_t i = 0; i < io->message->msg_iovlen && room; i++) {
        const struct iovec *const vector = &io->message->msg_iov[i];
        const size_t now = min_u64(vector->iov_len, room);
        const size_t kept = min_u64(now, SENT_MAX - wire->sent_bytes);

        promise(vector->iov_len > 0);
        memcpy(wire->sent + wire->sent_bytes, vector->iov_base, kept);
        wire->sent_bytes += kept;
        wire->sent_all &= kept == now;
        total += now;
        room -= now;
    }
    return total;
}

static void
wire_submit(void *self, struct loop_io *io)
{
    struct wire *const wire = self;

    io->next = NULL;
    *wire->end = io;
    wire->end = &io->next;
}

static void
wire_wait(void *self, uint64_t deadline_ns)
{
    struct wire *const wire = self;
    struct loop_io *io = wire->first;

    if (!io) {
        promise(deadline_ns != UINT64_MAX); /* W3 */
        wire->now_ns = max_u64(wire->now_ns, deadline_ns);
        return;
    }
    wire->first = NULL;
    wire->end = &wire->first;
    while (io) {
        struct loop_io *const next = io->next;

        promise(io->kind == LOOP_RECV || io->kind == LOOP_SENDMSG);
        io->result = (int)(io->kind == LOOP_RECV ? wire_receive(wire, io) : wire_send(wire, io));
        io->done(io);
        io = next;
    }
    wire->now_ns++;
}

static uint64_t
wire_now_ns(void *self)
{
    return ((struct wire *)self)->now_ns;
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

/* --- The export, with a fixed content, so that answers can be checked ------------------------ */

/* Some take a while, and some fail: by what they are asked for. */
static int
export_delay(struct export *export, uint64_t offset, uint64_t length)
{
    struct wire *const wire = container_of(export, struct wire, export);

    promise(length > 0); /* W1 */
    promise(offset < EXPORT_BYTES && length <= EXPORT_BYTES - offset);
    if (length % 3 == 0)
        loop_sleep(wire->loop, length % 7);
    return length % 11 == 5 ? -EIO : 0;
}

static int
export_read(struct export *export, void *memory, uint64_t offset, uint64_t length)
{
    const int result = export_delay(export, offset, length);

    promise((uintptr_t)memory % BLOCK_BYTES == 0 && offset % BLOCK_BYTES == 0 &&
            length % BLOCK_BYTES == 0);
    memcpy(memory, container_of(export, struct wire, export)->content + offset, length);
    return result;
}

static int
export_write(struct export *export, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    const volatile uint8_t *const bytes = memory;

    promise((uintptr_t)memory % BLOCK_BYTES == offset % BLOCK_BYTES);
    (void)bytes[0]; /* the sanitizer checks that it is ours to read */
    (void)bytes[length - 1];
    return export_delay(export, offset, length);
}

static int
export_flush(struct export *export)
{
    return 0;
}

static int
export_trim(struct export *export, uint64_t offset, uint64_t length, bool fua)
{
    return export_delay(export, offset, length);
}

static int
export_zero(struct export *export, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
            bool fua)
{
    return fast_only ? -ENOTSUP : export_delay(export, offset, length);
}

static const struct export_ops export_ops = {export_read, export_write, export_flush, export_trim,
                                             export_zero};

/* --- What was sent -------------------------------------------------------------------------- */

struct cursor {
    const uint8_t *at;
    size_t left;
    bool more; /* the bytes go on beyond what was kept */
};

/* length bytes, or NULL when there are fewer, which a cut-off end alone excuses. */
static const uint8_t *
cursor_take(struct cursor *cursor, size_t length)
{
    const uint8_t *const at = cursor->at;

    if (length > cursor->left) {
        promise(cursor->more);
        cursor->left = 0;
        return NULL;
    }
    cursor->at += length;
    cursor->left -= length;
    return at;
}

/* Is there a request with this cookie in the client's bytes? Cookies may repeat, and payloads may
 * look like requests, so one that fits any is good enough. */
static bool
input_has_request(const struct nbd_wire_input *input, const uint8_t *cookie, unsigned command,
                  uint32_t length)
{
    const uint8_t *at = input->data, *const end = input->data + input->bytes;
    uint8_t magic[4];

    store_be32(magic, NBD_REQUEST_MAGIC);
    while ((at = memmem(at, (size_t)(end - at), magic, sizeof magic)) != NULL) {
        if (end - at >= NBD_REQUEST_BYTES && memcmp(at + 8, cookie, 8) == 0 &&
            (command == UINT32_MAX || load_be16(at + 6) == command) &&
            (length == UINT32_MAX || load_be32(at + 24) == length))
            return true;
        at++;
    }
    return false;
}

/* Option replies up to where the transmission begins; false when it never does. */
static bool
check_handshake(const struct nbd_wire_input *input, struct cursor *sent)
{
    const uint8_t *at = cursor_take(sent, NBD_GREETING_BYTES);

    promise(at && load_be64(at) == NBD_MAGIC && load_be64(at + 8) == NBD_OPTION_MAGIC);
    while (sent->left) {
        uint32_t option, type, length;

        if (sent->left < 8 || load_be64(sent->at) != NBD_OPTION_REPLY_MAGIC) {
            /* Only EXPORT_NAME is answered in another form. */
            at = cursor_take(sent, input->data[3] & NBD_FLAG_NO_ZEROES ? 10 : 134);
            promise(at && load_be64(at) == EXPORT_BYTES);
            return true;
        }
        at = cursor_take(sent, NBD_OPTION_REPLY_HEADER_BYTES);
        if (!at)
            return false;
        option = load_be32(at + 8);
        type = load_be32(at + 12);
        length = load_be32(at + 16);
        if (!cursor_take(sent, length))
            return false;
        if (option == NBD_OPT_GO && type == NBD_REP_ACK)
            return true;
        promise(option != NBD_OPT_ABORT || sent->left == 0);
    }
    return false;
}

static void
check_data(const struct wire *wire, const uint8_t *data, uint64_t offset, uint32_t length)
{
    promise(offset <= EXPORT_BYTES && length <= EXPORT_BYTES - offset);
    promise(memcmp(data, wire->content + offset, length) == 0);
}

/* W2. A simple reply to a read does not say how long its data is, so what follows it is looked at
 * only as far as it is unambiguous: until the next magic where one must be. */
static void
check_transmission(const struct wire *wire, struct cursor *sent)
{
    const struct nbd_wire_input *const input = wire->input;

    while (sent->left) {
        const uint8_t *header = cursor_take(sent, 4), *data;
        uint32_t length;

        if (!header)
            return;
        if (load_be32(header) == NBD_SIMPLE_REPLY_MAGIC) {
            if (!cursor_take(sent, NBD_SIMPLE_REPLY_BYTES - 4))
                return;
            promise(input_has_request(input, header + 8, UINT32_MAX, UINT32_MAX));
            if (load_be32(header + 4) == NBD_SUCCESS &&
                input_has_request(input, header + 8, NBD_CMD_READ, UINT32_MAX))
                return;
            continue;
        }
        promise(load_be32(header) == NBD_CHUNK_MAGIC);
        if (!cursor_take(sent, NBD_CHUNK_HEADER_BYTES - 4))
            return;
        length = load_be32(header + 16);
        data = cursor_take(sent, length);
        if (!data)
            return;
        promise(load_be16(header + 4) == NBD_CHUNK_DONE);
        switch (load_be16(header + 6)) {
        case NBD_CHUNK_NONE:
            promise(length == 0);
            promise(input_has_request(input, header + 8, NBD_CMD_READ, 0));
            break;
        case NBD_CHUNK_OFFSET_DATA:
            promise(length > 8);
            promise(input_has_request(input, header + 8, NBD_CMD_READ, length - 8));
            check_data(wire, data + 8, load_be64(data), length - 8);
            break;
        case NBD_CHUNK_BLOCK_STATUS:
            promise(length == 12 && load_be32(data + 4) > 0);
            promise(
                input_has_request(input, header + 8, NBD_CMD_BLOCK_STATUS, load_be32(data + 4)));
            break;
        case NBD_CHUNK_ERROR:
            promise(length == 6 && load_be32(data) != NBD_SUCCESS);
            promise(input_has_request(input, header + 8, UINT32_MAX, UINT32_MAX));
            break;
        default:
            promise(!"a chunk of another type");
        }
    }
}

/* --- A run ---------------------------------------------------------------------------------- */

static struct wire *
wire_create(void)
{
    const struct loop_config loop_config = {.tasks = 300, .task_stack_bytes = 256 * KIB, .seed = 1};
    struct nbd_server_config config = {
        .limits = {.connections = 2, .requests = 160}, /* small, so that they are reached */
    };
    struct wire *const wire = calloc(1, sizeof *wire);
    struct error error;

    promise(wire != NULL);
    wire->end = &wire->first;
    wire->sent = malloc(SENT_MAX);
    for (size_t i = 0; i < EXPORT_BYTES; i++)
        wire->content[i] = (uint8_t)(i * 2654435761u >> 11);
    wire->export = (struct export){&export_ops, NAME, EXPORT_BYTES, false};
    promise(wire->sent != NULL);
    promise(loop_create_on(&loop_config, &wire_backend, wire, &wire->loop, &error) == 0);
    promise(pages_create(wire->loop, POOL_BYTES, true, &wire->pages) == 0);
    config.loop = wire->loop;
    config.pages = wire->pages;
    config.export = &wire->export;
    promise(nbd_server_create(&config, &wire->server) == 0);
    return wire;
}

void
nbd_wire_run(const struct nbd_wire_input *input)
{
    /* One server for all runs: making one costs a hundred times as much as a run, and W4 wants
     * it. */
    static struct wire *wire;
    struct cursor sent;

    if (!wire)
        wire = wire_create();
    wire->input = input;
    wire->received = 0;
    wire->sent_bytes = 0;
    wire->sent_all = true;
    /* A descriptor for the server to close. */
    promise(nbd_server_adopt(wire->server, open("/dev/null", O_RDWR | O_CLOEXEC)) == 0);
    loop_run(wire->loop);

    promise(nbd_server_stats(wire->server)->connections_current == 0); /* W3 */
    promise(nbd_server_stats(wire->server)->requests_current == 0);
    promise(pages_free(wire->pages) == pages_total(wire->pages)); /* W4 */
    sent = (struct cursor){wire->sent, wire->sent_bytes, !wire->sent_all};
    if (check_handshake(input, &sent))
        check_transmission(wire, &sent);
}
