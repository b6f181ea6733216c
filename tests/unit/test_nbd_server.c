/*
 * The NBD server with a scripted client on the same loop, over socket pairs and real sockets: what
 * every command does, and that whatever a client sends, leaves out or takes its time for hurts
 * nobody else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "nbd/listen.h"
#include "nbd/protocol.h"
#include "nbd/server.h"
#include "runtime/backends.h"
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MS_NS      1000000ull
#define SIZE       (64 * MIB)
#define POOL_BYTES (128 * MIB)

/* --- An export in memory, with a gate ------------------------------------------------------- */

struct ram {
    struct export export;
    struct loop *loop;
    uint8_t *bytes;
    bool closed; /* requests wait at the gate */
    struct wait_queue gate;
    int error; /* what everything returns, unless 0 */
    unsigned inside, inside_max;
    unsigned reads, writes, flushes, trims, zeroes, fua, fast_only, may_punch;
};

static void
ram_enter(struct ram *ram)
{
    ram->inside++;
    if (ram->inside > ram->inside_max)
        ram->inside_max = ram->inside;
    if (ram->closed)
        wait_queue_wait(ram->loop, &ram->gate);
}

static int
ram_leave(struct ram *ram)
{
    ram->inside--;
    return ram->error;
}

static void
ram_check(const struct ram *ram, uint64_t offset, uint64_t length)
{
    assert_true(length > 0);
    assert_true(offset <= ram->export.size_bytes);
    assert_true(length <= ram->export.size_bytes - offset);
}

static int
ram_read(struct export *export, void *memory, uint64_t offset, uint64_t length)
{
    struct ram *const ram = container_of(export, struct ram, export);

    ram_check(ram, offset, length);
    assert_int_equal(offset % BLOCK_BYTES, 0);
    assert_int_equal(length % BLOCK_BYTES, 0);
    assert_int_equal((uintptr_t)memory % BLOCK_BYTES, 0);
    ram->reads++;
    ram_enter(ram);
    memcpy(memory, ram->bytes + offset, length);
    return ram_leave(ram);
}

static int
ram_write(struct export *export, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    struct ram *const ram = container_of(export, struct ram, export);

    ram_check(ram, offset, length);
    assert_int_equal((uintptr_t)memory % BLOCK_BYTES, offset % BLOCK_BYTES);
    ram->writes++;
    ram->fua += fua;
    ram_enter(ram);
    if (!ram->error)
        memcpy(ram->bytes + offset, memory, length);
    return ram_leave(ram);
}

static int
ram_flush(struct export *export)
{
    struct ram *const ram = container_of(export, struct ram, export);

    ram->flushes++;
    ram_enter(ram);
    return ram_leave(ram);
}

static int
ram_trim(struct export *export, uint64_t offset, uint64_t length, bool fua)
{
    struct ram *const ram = container_of(export, struct ram, export);

    ram_check(ram, offset, length);
    ram->trims++;
    ram->fua += fua;
    ram_enter(ram);
    return ram_leave(ram);
}

static int
ram_zero(struct export *export, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
         bool fua)
{
    struct ram *const ram = container_of(export, struct ram, export);

    ram_check(ram, offset, length);
    ram->zeroes++;
    ram->fua += fua;
    ram->fast_only += fast_only;
    ram->may_punch += may_punch;
    ram_enter(ram);
    if (fast_only) {
        (void)ram_leave(ram);
        return -ENOTSUP;
    }
    memset(ram->bytes + offset, 0, length);
    return ram_leave(ram);
}

static const struct export_ops ram_ops = {
    .read = ram_read, .write = ram_write, .flush = ram_flush, .trim = ram_trim, .zero = ram_zero};

/* --- A world: loop, pool, export, server; the test's body is a task in it ------------------- */

struct world {
    struct loop *loop;
    struct pages *pages;
    struct ram ram;
    struct nbd_server *server;
    const struct nbd_server_stats *stats;
    struct nbd_listener listener;
    bool stopped;
    void (*body)(struct world *w);
};

struct world_options {
    uint64_t pool_bytes; /* 0: POOL_BYTES */
    bool readonly;
    bool listen_tcp;
    const char *listen_path;
    struct nbd_limits limits;
};

static void
world_main(void *arg)
{
    struct world *const w = arg;

    w->body(w);
    if (!w->stopped)
        nbd_server_stop(w->server);
}

/* LOOP_BACKEND=threads in the environment: on the backend for systems without io_uring. */
static void
world_create_loop(struct world *w)
{
    const struct loop_config config = {.tasks = 1536, .task_stack_bytes = 512 * KIB};
    const char *const name = getenv("LOOP_BACKEND");
    const struct loop_backend *backend;
    struct error error;
    void *self;

    if (name && strcmp(name, "threads") == 0) {
        assert_int_equal(backend_threads_create(&backend, &self, &error), 0);
        assert_int_equal(loop_create_on(&config, backend, self, &w->loop, &error), 0);
    } else {
        assert_int_equal(loop_create(&config, &w->loop, &error), 0);
    }
}

static void
world_run(const struct world_options *options, void (*body)(struct world *w))
{
    struct nbd_server_config config = {.limits = options->limits};
    struct world *const w = calloc(1, sizeof *w);
    struct error error;

    world_create_loop(w);
    assert_int_equal(pages_create(w->loop, options->pool_bytes ? options->pool_bytes : POOL_BYTES,
                                  false, &w->pages),
                     0);
    w->listener.socket.fd = -1;
    if (options->listen_tcp)
        assert_int_equal(nbd_listen_tcp("0", &w->listener, &error), 0);
    if (options->listen_path)
        assert_int_equal(nbd_listen_unix(options->listen_path, &w->listener, &error), 0);
    w->body = body;
    w->ram = (struct ram){
        .export = {&ram_ops, "array", SIZE, options->readonly},
        .loop = w->loop,
        .bytes = calloc(1, SIZE),
    };
    config.loop = w->loop;
    config.pages = w->pages;
    config.export = &w->ram.export;
    config.listen_fds = &w->listener.socket.fd;
    config.listen_count = w->listener.socket.fd >= 0;
    assert_int_equal(nbd_server_create(&config, &w->server), 0);
    w->stats = nbd_server_stats(w->server);

    loop_run_task(w->loop, world_main, w);

    assert_int_equal(w->ram.inside, 0);
    assert_int_equal(w->stats->connections_current, 0);
    assert_int_equal(w->stats->requests_current, 0);
    assert_true(pages_free(w->pages) == pages_total(w->pages));
    nbd_server_destroy(w->server);
    nbd_listener_close(&w->listener);
    pages_destroy(w->pages);
    loop_destroy(w->loop);
    free(w->ram.bytes);
    free(w);
}

static void
gate_open(struct world *w)
{
    w->ram.closed = false;
    wait_queue_wake_all(w->loop, &w->ram.gate);
}

/* Until the condition holds; ten seconds are for ever. */
#define await(w, condition)                                                                        \
    do {                                                                                           \
        const uint64_t until_ns = loop_clock_ns((w)->loop) + 10000 * MS_NS;                        \
                                                                                                   \
        while (!(condition)) {                                                                     \
            assert_true(loop_clock_ns((w)->loop) < until_ns);                                      \
            loop_sleep((w)->loop, MS_NS / 10);                                                     \
        }                                                                                          \
    } while (0)

/* Long enough for anything that is going to happen to happen. */
static void
settle(struct world *w)
{
    loop_sleep(w->loop, 20 * MS_NS);
}

/* --- A client ------------------------------------------------------------------------------- */

struct client {
    struct world *w;
    int fd;
    bool structured;
};

static struct client
client_open(struct world *w)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(nbd_server_adopt(w->server, fds[1]), 0);
    return (struct client){.w = w, .fd = fds[0]};
}

static void
client_close(struct client *c)
{
    close(c->fd);
    c->fd = -1;
}

struct patience {
    struct timer timer;
    int fd;
};

static void
patience_ends(struct timer *timer)
{
    (void)shutdown(container_of(timer, struct patience, timer)->fd, SHUT_RDWR);
}

/* Until length bytes are there, or the end: how many there were. */
static size_t
client_receive(struct client *c, void *to, size_t length)
{
    struct patience patience = {.timer.fire = patience_ends, .fd = c->fd};
    size_t got = 0;

    timer_arm(c->w->loop, &patience.timer, 10000 * MS_NS);
    while (got < length) {
        struct iovec vector = {(char *)to + got, length - got};
        struct loop_io io = {.kind = LOOP_RECV, .fd = c->fd, .iov = &vector, .iov_count = 1};
        const int result = loop_io_wait(c->w->loop, &io);

        if (result <= 0)
            break;
        got += (size_t)result;
    }
    assert_true(patience.timer.armed); /* otherwise it took too long */
    timer_cancel(c->w->loop, &patience.timer);
    return got;
}

/* False when the server has closed in the meantime. */
static bool
client_send(struct client *c, const void *data, size_t length)
{
    while (length) {
        struct iovec vector = {(void *)(uintptr_t)data, length};
        const struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        struct loop_io io = {.kind = LOOP_SENDMSG, .fd = c->fd, .message = &message};
        const int result = loop_io_wait(c->w->loop, &io);

        if (result < 0)
            return false;
        data = (const char *)data + result;
        length -= (size_t)result;
    }
    return true;
}

static bool
client_at_end(struct client *c)
{
    char byte;

    return client_receive(c, &byte, 1) == 0;
}

static size_t
put_option(uint8_t *at, uint32_t option, const void *data, uint32_t length)
{
    store_be64(at, NBD_OPTION_MAGIC);
    store_be32(at + 8, option);
    store_be32(at + 12, length);
    if (length)
        memcpy(at + 16, data, length);
    return 16 + length;
}

/* Client's flags and all options up to GO. */
static size_t
put_handshake(uint8_t *at, bool structured)
{
    static const uint8_t go[6] = {0};
    static const uint8_t meta[] = "\0\0\0\0\0\0\0\1\0\0\0\x0f"
                                  "base:allocation";
    size_t used = 4;

    store_be32(at, 3);
    if (structured) {
        used += put_option(at + used, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        used += put_option(at + used, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta - 1);
    }
    return used + put_option(at + used, NBD_OPT_GO, go, sizeof go);
}

static size_t
handshake_reply_bytes(bool structured)
{
    return 18 + (structured ? 20 + 20 + 19 + 20 : 0) + 20 + 12 + 20;
}

static struct client
client_connect(struct world *w, bool structured)
{
    struct client c = client_open(w);
    uint8_t buffer[512];

    c.structured = structured;
    assert_true(client_send(&c, buffer, put_handshake(buffer, structured)));
    assert_int_equal(client_receive(&c, buffer, handshake_reply_bytes(structured)),
                     handshake_reply_bytes(structured));
    return c;
}

static size_t
put_request(uint8_t *at, unsigned command, unsigned flags, uint64_t cookie, uint64_t offset,
            uint32_t length)
{
    store_be32(at, NBD_REQUEST_MAGIC);
    store_be16(at + 4, (uint16_t)flags);
    store_be16(at + 6, (uint16_t)command);
    store_be64(at + 8, cookie);
    store_be64(at + 16, offset);
    store_be32(at + 24, length);
    return NBD_REQUEST_BYTES;
}

static void
client_request(struct client *c, unsigned command, unsigned flags, uint64_t cookie, uint64_t offset,
               uint32_t length)
{
    uint8_t header[NBD_REQUEST_BYTES];

    assert_true(
        client_send(c, header, put_request(header, command, flags, cookie, offset, length)));
}

/* A simple reply: its error; *cookie says to what. */
static unsigned
client_simple_reply(struct client *c, uint64_t *cookie)
{
    uint8_t reply[NBD_SIMPLE_REPLY_BYTES];

    assert_int_equal(client_receive(c, reply, sizeof reply), sizeof reply);
    assert_int_equal(load_be32(reply), NBD_SIMPLE_REPLY_MAGIC);
    *cookie = load_be64(reply + 8);
    return load_be32(reply + 4);
}

/* A chunk's type and as much of its data as room; it must be the only one of its reply. */
static unsigned
client_chunk(struct client *c, uint64_t *cookie, uint8_t *data, size_t room, uint32_t *length)
{
    uint8_t header[NBD_CHUNK_HEADER_BYTES];

    assert_int_equal(client_receive(c, header, sizeof header), sizeof header);
    assert_int_equal(load_be32(header), NBD_CHUNK_MAGIC);
    assert_int_equal(load_be16(header + 4), NBD_CHUNK_DONE);
    *cookie = load_be64(header + 8);
    *length = load_be32(header + 16);
    assert_true(*length <= room);
    assert_int_equal(client_receive(c, data, *length), *length);
    return load_be16(header + 6);
}

/* One request without payload either way, waited for: its error. */
static unsigned
client_do(struct client *c, unsigned command, unsigned flags, uint64_t offset, uint32_t length)
{
    uint64_t cookie;
    unsigned error;

    client_request(c, command, flags, 0x1234567890abcdefull, offset, length);
    error = client_simple_reply(c, &cookie);
    assert_true(cookie == 0x1234567890abcdefull);
    return error;
}

static unsigned
client_write(struct client *c, unsigned flags, const void *data, uint64_t offset, uint32_t length)
{
    uint64_t cookie;

    client_request(c, NBD_CMD_WRITE, flags, 77, offset, length);
    assert_true(client_send(c, data, length));
    return client_simple_reply(c, &cookie);
}

static unsigned
client_read(struct client *c, void *data, uint64_t offset, uint32_t length)
{
    uint64_t cookie;
    unsigned error = 0;
    uint32_t got;

    client_request(c, NBD_CMD_READ, 0, 99, offset, length);
    if (c->structured) {
        uint8_t *const chunk = malloc(8 + length);
        const unsigned type = client_chunk(c, &cookie, chunk, 8 + length, &got);

        if (type == NBD_CHUNK_ERROR) {
            assert_int_equal(got, 6);
            error = load_be32(chunk);
        } else if (type == NBD_CHUNK_OFFSET_DATA) {
            assert_int_equal(got, 8 + length);
            assert_true(load_be64(chunk) == offset);
            memcpy(data, chunk + 8, length);
        } else {
            assert_int_equal(type, NBD_CHUNK_NONE);
            assert_int_equal(length, 0);
        }
        free(chunk);
    } else {
        error = client_simple_reply(c, &cookie);
        if (error == 0)
            assert_int_equal(client_receive(c, data, length), length);
    }
    assert_int_equal(cookie, 99);
    return error;
}

static void
pattern(uint8_t *at, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        at[i] = (uint8_t)((seed + i) * 2654435761u >> 13);
}

/* The server is well: somebody new can read. */
static void
assert_serving(struct world *w)
{
    struct client c = client_connect(w, true);
    uint8_t data[512];

    assert_int_equal(client_read(&c, data, 4096, sizeof data), 0);
    client_close(&c);
}

/* --- What every command does ---------------------------------------------------------------- */

static void
reads_give_what_was_written_body(struct world *w)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
    } table[] = {
        {0, 4096},     {4096, 8192},     {1, 1},          {4095, 2},
        {100, 5000},   {SIZE - 1, 1},    {12345, 300000}, {MIB + 7, MIB},
        {0, 32 * MIB}, {4097, 32 * MIB}, {512, 1536},     {65536, 65536},
        {8191, 1},     {3 * MIB, 16383}, {77, 16 * KIB},  {SIZE - 32 * MIB, 32 * MIB},
    };
    uint8_t *const out = malloc(32 * MIB), *const in = malloc(32 * MIB);

    for (unsigned structured = 0; structured < 2; structured++) {
        struct client c = client_connect(w, structured);

        for (unsigned i = 0; i < ARRAY_LEN(table); i++) {
            pattern(out, table[i].length, i + structured);
            assert_int_equal(client_write(&c, 0, out, table[i].offset, table[i].length), 0);
            assert_memory_equal(w->ram.bytes + table[i].offset, out, table[i].length);
            memset(in, 0, table[i].length);
            assert_int_equal(client_read(&c, in, table[i].offset, table[i].length), 0);
            assert_memory_equal(in, out, table[i].length);
        }
        client_close(&c);
    }
    free(out);
    free(in);
}

static void
reads_give_what_was_written(void **state)
{
    world_run(&(struct world_options){0}, reads_give_what_was_written_body);
}

static void
commands_reach_the_export_body(struct world *w)
{
    struct client c = client_connect(w, true);
    uint8_t data[8192], status[64];
    uint64_t cookie;
    uint32_t length;

    pattern(data, sizeof data, 1);
    assert_int_equal(client_write(&c, NBD_CMD_FLAG_FUA, data, 0, 4096), 0);
    assert_int_equal(w->ram.fua, 1);
    assert_int_equal(client_do(&c, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(w->ram.flushes, 1);
    assert_int_equal(client_do(&c, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 4096, 0x2000000), 0);
    assert_int_equal(w->ram.trims, 1);
    assert_int_equal(w->ram.fua, 2);
    /* Zeroing has no payload, so it may be longer than any read or write. */
    assert_int_equal(client_do(&c, NBD_CMD_WRITE_ZEROES, 0, 0, SIZE), 0);
    assert_int_equal(w->ram.zeroes, 1);
    assert_int_equal(w->ram.may_punch, 1);
    assert_int_equal(w->ram.bytes[100], 0);
    assert_int_equal(
        client_do(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, 1, 1), 0);
    assert_int_equal(w->ram.may_punch, 1);
    assert_int_equal(w->ram.fua, 3);
    assert_int_equal(client_do(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 1, 1),
                     NBD_ENOTSUP);
    assert_int_equal(w->ram.fast_only, 1);

    client_request(&c, NBD_CMD_BLOCK_STATUS, 0, 5, 10, 1000000);
    assert_int_equal(client_chunk(&c, &cookie, status, sizeof status, &length),
                     NBD_CHUNK_BLOCK_STATUS);
    assert_int_equal(length, 12);
    assert_int_equal(load_be32(status), NBD_CONTEXT_ALLOCATION_ID);
    assert_int_equal(load_be32(status + 4), 1000000);
    assert_int_equal(load_be32(status + 8), 0);

    assert_int_equal(client_read(&c, data, 0, 0), 0);
    assert_int_equal(client_write(&c, 0, data, 0, 0), 0);
    assert_int_equal(w->ram.writes, 1); /* nothing is asked of the export for no bytes */

    client_request(&c, NBD_CMD_DISC, 0, 0, 0, 0);
    assert_true(client_at_end(&c));
    client_close(&c);
    assert_int_equal(w->stats->connections_failed, 0);
    assert_int_equal(w->stats->writes, 1);
    assert_int_equal(w->stats->written_bytes, 4096);
}

static void
commands_reach_the_export(void **state)
{
    world_run(&(struct world_options){0}, commands_reach_the_export_body);
}

static void
errors_of_the_export_reach_the_client_body(struct world *w)
{
    static const struct {
        int error;
        unsigned wire;
    } table[] = {{-EIO, 5},     {-ENOSPC, 28}, {-ENOMEM, 12},    {-EROFS, 1},
                 {-EINVAL, 22}, {-ENODEV, 5},  {-ESHUTDOWN, 108}};
    uint8_t data[4096] = {0};

    for (unsigned structured = 0; structured < 2; structured++) {
        struct client c = client_connect(w, structured);

        for (unsigned i = 0; i < ARRAY_LEN(table); i++) {
            w->ram.error = table[i].error;
            assert_int_equal(client_read(&c, data, 0, 4096), table[i].wire);
            assert_int_equal(client_write(&c, 0, data, 0, 4096), table[i].wire);
            assert_int_equal(client_do(&c, NBD_CMD_FLUSH, 0, 0, 0), table[i].wire);
            assert_int_equal(client_do(&c, NBD_CMD_TRIM, 0, 0, 4096), table[i].wire);
            assert_int_equal(client_do(&c, NBD_CMD_WRITE_ZEROES, 0, 0, 4096), table[i].wire);
        }
        w->ram.error = 0;
        assert_int_equal(client_read(&c, data, 0, 4096), 0);
        client_close(&c);
    }
    assert_int_equal(w->stats->requests_failed, 2 * 5 * ARRAY_LEN(table));
}

static void
errors_of_the_export_reach_the_client(void **state)
{
    world_run(&(struct world_options){0}, errors_of_the_export_reach_the_client_body);
}

static void
refused_requests_leave_the_connection_usable_body(struct world *w)
{
    uint8_t *const data = calloc(1, 64 * MIB + 1);
    struct client c = client_connect(w, true);
    uint8_t chunk[64];
    uint64_t cookie;
    uint32_t length;

    /* The payload of a refused write is read over, however long. */
    assert_int_equal(client_write(&c, 0, data, SIZE, 1), NBD_ENOSPC);
    assert_int_equal(client_write(&c, 0, data, SIZE - 4095, 4096), NBD_ENOSPC);
    assert_int_equal(client_write(&c, 0, data, UINT64_MAX, 4096), NBD_ENOSPC);
    assert_int_equal(client_write(&c, 0, data, UINT64_MAX - 4095, 4096), NBD_ENOSPC);
    assert_int_equal(client_write(&c, 0, data, 0, 32 * MIB + 1), NBD_EINVAL);
    assert_int_equal(client_write(&c, 0, data, 0, 64 * MIB), NBD_EINVAL);
    assert_int_equal(client_write(&c, 0x80, data, 0, 4096), NBD_EINVAL);
    assert_int_equal(client_read(&c, data, SIZE - 1, 2), NBD_EINVAL);
    assert_int_equal(client_read(&c, data, UINT64_MAX, 1), NBD_EINVAL);
    assert_int_equal(client_read(&c, data, 0, 32 * MIB + 1), NBD_EINVAL);
    assert_int_equal(client_do(&c, NBD_CMD_TRIM, 0, SIZE - 1, 2), NBD_EINVAL);
    assert_int_equal(client_do(&c, NBD_CMD_WRITE_ZEROES, 0, SIZE - 1, UINT32_MAX), NBD_ENOSPC);
    assert_int_equal(client_do(&c, 5, 0, 0, 4096), NBD_EINVAL);
    assert_int_equal(client_do(&c, 1234, 0, 0, 4096), NBD_EINVAL);
    assert_int_equal(client_do(&c, NBD_CMD_FLUSH, NBD_CMD_FLAG_DF, 0, 0), NBD_EINVAL);
    client_request(&c, NBD_CMD_BLOCK_STATUS, 0, 5, SIZE, 1);
    assert_int_equal(client_chunk(&c, &cookie, chunk, sizeof chunk, &length), NBD_CHUNK_ERROR);
    assert_int_equal(load_be32(chunk), NBD_EINVAL);
    assert_int_equal(w->ram.reads + w->ram.writes + w->ram.trims + w->ram.zeroes + w->ram.flushes,
                     0);
    assert_int_equal(client_read(&c, data, 0, 4096), 0);
    client_close(&c);
    free(data);
}

static void
refused_requests_leave_the_connection_usable(void **state)
{
    world_run(&(struct world_options){0}, refused_requests_leave_the_connection_usable_body);
}

static void
readonly_export_refuses_changes_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[4096] = {1};

    assert_int_equal(client_write(&c, 0, data, 0, 4096), NBD_EPERM);
    assert_int_equal(client_do(&c, NBD_CMD_TRIM, 0, 0, 4096), NBD_EPERM);
    assert_int_equal(client_do(&c, NBD_CMD_WRITE_ZEROES, 0, 0, 4096), NBD_EPERM);
    assert_int_equal(client_do(&c, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(w->ram.writes + w->ram.trims + w->ram.zeroes + w->ram.flushes, 0);
    assert_int_equal(client_read(&c, data, 0, 4096), 0);
    assert_int_equal(data[0], 0);
    client_close(&c);
}

static void
readonly_export_refuses_changes(void **state)
{
    world_run(&(struct world_options){.readonly = true}, readonly_export_refuses_changes_body);
}

/* What was answered on one connection is covered by a flush on another: all go to one export. */
static void
flush_covers_writes_of_other_connections_body(struct world *w)
{
    struct client a = client_connect(w, false), b = client_connect(w, true);
    uint8_t data[4096] = {1};

    assert_int_equal(client_write(&a, 0, data, 0, 4096), 0);
    assert_int_equal(w->ram.writes, 1);
    assert_int_equal(client_do(&b, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(w->ram.flushes, 1);
    assert_int_equal(client_read(&b, data, 0, 4096), 0);
    assert_int_equal(data[0], 1);
    client_close(&a);
    client_close(&b);
}

static void
flush_covers_writes_of_other_connections(void **state)
{
    world_run(&(struct world_options){0}, flush_covers_writes_of_other_connections_body);
}

/* --- Delivery in pieces --------------------------------------------------------------------- */

/* A conversation with every command in it: what a client sends from its flags to DISC. */
static size_t
put_conversation(uint8_t *at, bool structured)
{
    size_t used = 0;

    used += put_option(at + 4, NBD_OPT_LIST, NULL, 0);
    used += put_option(at + 4 + used, 77, "unknown", 7);
    /* The flags come first; put_handshake writes them, and the options follow it. */
    {
        uint8_t rest[256];
        const size_t length = put_handshake(rest, structured);

        memcpy(at, rest, 4);
        memcpy(at + 4 + used, rest + 4, length - 4);
        used += length;
    }
    used += put_request(at + used, NBD_CMD_WRITE, 0, 1, 4000, 200);
    pattern(at + used, 200, 7);
    used += 200;
    used += put_request(at + used, NBD_CMD_READ, 0, 2, 3990, 220);
    used += put_request(at + used, NBD_CMD_WRITE, 0, 3, SIZE, 9);
    pattern(at + used, 9, 8);
    used += 9;
    used += put_request(at + used, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, 4, 4010, 10);
    used += put_request(at + used, NBD_CMD_TRIM, 0, 5, 0, 4096);
    used += put_request(at + used, NBD_CMD_FLUSH, 0, 6, 0, 0);
    used += put_request(at + used, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
    used += put_request(at + used, NBD_CMD_READ, 0, 8, 4000, 200);
    used += put_request(at + used, NBD_CMD_DISC, 0, 9, 0, 0);
    return used;
}

/* The server has taken all that was sent, and is about to wait for more. */
static void
client_settle(struct client *c)
{
    int queued = 1;

    while (queued) {
        loop_sleep(c->w->loop, 1);
        assert_int_equal(ioctl(c->fd, SIOCOUTQ, &queued), 0);
    }
}

/* Answers come in any order: puts those after the handshake's in the order of their cookies. */
static void
answers_sort(uint8_t *answers, size_t length, size_t begin)
{
    uint8_t *const sorted = malloc(length);
    size_t used = begin;

    memcpy(sorted, answers, begin);
    for (uint64_t cookie = 1; cookie < 9; cookie++) {
        size_t at = begin, each;

        for (; at < length; at += each) {
            const bool chunk = load_be32(answers + at) == NBD_CHUNK_MAGIC;
            const uint64_t whose = load_be64(answers + at + 8);

            each = NBD_SIMPLE_REPLY_BYTES + (whose == 2 ? 220 : whose == 8 ? 200 : 0);
            if (chunk)
                each = NBD_CHUNK_HEADER_BYTES + load_be32(answers + at + 16);
            assert_true(each <= length - at);
            if (whose != cookie)
                continue;
            memcpy(sorted + used, answers + at, each);
            used += each;
            break;
        }
        assert_true(at < length);
    }
    assert_int_equal(used, length);
    memcpy(answers, sorted, length);
    free(sorted);
}

/* Sends in pieces of `piece` bytes, the first of them `first`; what came back, until the end. */
static size_t
converse(struct world *w, const uint8_t *data, size_t length, size_t first, size_t piece,
         uint8_t *answer, size_t room)
{
    /* LIST, the option that is not known, and the rest of the handshake, whose first option tells
     * which it is. */
    const size_t begin = (20 + 4 + 20) + (20 + sizeof "option not known" - 1) +
                         handshake_reply_bytes(data[4 + 16 + 16 + 7 + 8 + 3] != NBD_OPT_GO);
    struct client c = client_open(w);
    size_t got;

    for (size_t at = 0, now = first; at < length; at += now, now = piece) {
        now = min_u64(now, length - at);
        assert_true(client_send(&c, data + at, now));
        client_settle(&c);
    }
    got = client_receive(&c, answer, room);
    client_close(&c);
    memset(w->ram.bytes, 0, 8192);
    answers_sort(answer, got, begin);
    return got;
}

static void
conversation_does_not_depend_on_its_pieces_body(struct world *w)
{
    uint8_t data[1024], reference[4096], answer[4096];

    for (unsigned structured = 0; structured < 2; structured++) {
        const size_t length = put_conversation(data, structured);
        const size_t want = converse(w, data, length, length, length, reference, sizeof reference);

        assert_true(length < sizeof data);
        assert_true(want > 600 && want < sizeof reference);
        for (size_t first = 1; first < length; first++) {
            assert_int_equal(converse(w, data, length, first, length, answer, sizeof answer), want);
            assert_memory_equal(answer, reference, want);
        }
        assert_int_equal(converse(w, data, length, 1, 1, answer, sizeof answer), want);
        assert_memory_equal(answer, reference, want);
    }
    assert_int_equal(w->stats->connections_failed, 0);
}

static void
conversation_does_not_depend_on_its_pieces(void **state)
{
    world_run(&(struct world_options){0}, conversation_does_not_depend_on_its_pieces_body);
}

/* A thousand requests in one piece, more than the server takes at a time. */
static void
pipelined_requests_are_all_answered_body(struct world *w)
{
    enum { COUNT = 1000, EACH = 1000 };
    uint8_t *const data = malloc(COUNT * (NBD_REQUEST_BYTES + EACH)), back[EACH], want[EACH];
    struct client c = client_connect(w, false);
    bool seen[COUNT] = {false};
    size_t used = 0;

    for (unsigned i = 0; i < COUNT; i++) {
        used += put_request(data + used, NBD_CMD_WRITE, 0, i, (uint64_t)i * EACH, EACH);
        pattern(data + used, EACH, i);
        used += EACH;
    }
    assert_true(client_send(&c, data, used));
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t cookie;

        assert_int_equal(client_simple_reply(&c, &cookie), 0);
        assert_true(cookie < COUNT && !seen[cookie]);
        seen[cookie] = true;
    }
    used = 0;
    for (unsigned i = 0; i < COUNT; i++)
        used += put_request(data + used, NBD_CMD_READ, 0, i, (uint64_t)i * EACH, EACH);
    assert_true(client_send(&c, data, used));
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t cookie;

        assert_int_equal(client_simple_reply(&c, &cookie), 0);
        assert_int_equal(client_receive(&c, back, EACH), EACH);
        pattern(want, EACH, (unsigned)cookie);
        assert_memory_equal(back, want, EACH);
    }
    assert_true(w->ram.inside_max <= 128);
    client_close(&c);
    free(data);
}

static void
pipelined_requests_are_all_answered(void **state)
{
    world_run(&(struct world_options){0}, pipelined_requests_are_all_answered_body);
}

/* Answers come in the order in which requests are done, not in which they were sent. */
static void
slow_requests_do_not_hold_up_later_ones_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[512];
    uint64_t cookie;

    w->ram.closed = true;
    client_request(&c, NBD_CMD_FLUSH, 0, 1, 0, 0);
    await(w, w->ram.inside == 1);
    w->ram.closed = false;
    client_request(&c, NBD_CMD_READ, 0, 2, 0, sizeof data);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_int_equal(cookie, 2);
    assert_int_equal(client_receive(&c, data, sizeof data), sizeof data);
    gate_open(w);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_int_equal(cookie, 1);
    client_close(&c);
}

static void
slow_requests_do_not_hold_up_later_ones(void **state)
{
    world_run(&(struct world_options){0}, slow_requests_do_not_hold_up_later_ones_body);
}

/* --- Clients that go in the middle ---------------------------------------------------------- */

/* The story: a client dies while it sends a write. What the server then applies must be all of it
 * or nothing, and it cannot be all of it. */
static void
cut_write_is_never_applied_in_half_body(struct world *w)
{
    static const uint32_t lengths[] = {1, 300, 70000};
    uint8_t *const data = malloc(NBD_REQUEST_BYTES + 70000);

    for (unsigned i = 0; i < ARRAY_LEN(lengths); i++) {
        const size_t length = put_request(data, NBD_CMD_WRITE, 0, 1, 5000, lengths[i]) + lengths[i];
        const size_t step = lengths[i] > 1000 ? 997 : 1;

        memset(data + NBD_REQUEST_BYTES, 0xff, lengths[i]);
        for (size_t at = 0; at < length; at += step) {
            struct client c = client_connect(w, false);

            assert_true(client_send(&c, data, at));
            if (at % 2)
                client_settle(&c);
            client_close(&c);
            await(w, w->stats->connections_current == 0);
            assert_int_equal(w->ram.writes, 0);
        }
    }
    for (unsigned i = 0; i < 80000; i++)
        assert_int_equal(w->ram.bytes[i], 0);
    free(data);
}

static void
cut_write_is_never_applied_in_half(void **state)
{
    world_run(&(struct world_options){0}, cut_write_is_never_applied_in_half_body);
}

/* A complete write counts, whether or not the client stays for the answer. */
static void
complete_write_of_a_client_that_left_is_applied_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[NBD_REQUEST_BYTES + 4096];

    (void)put_request(data, NBD_CMD_WRITE, 0, 1, 0, 4096);
    pattern(data + NBD_REQUEST_BYTES, 4096, 3);
    w->ram.closed = true;
    assert_true(client_send(&c, data, sizeof data));
    await(w, w->ram.inside == 1);
    client_close(&c);
    settle(w);
    assert_int_equal(w->stats->connections_current, 1); /* its request goes on */
    gate_open(w);
    await(w, w->stats->connections_current == 0);
    assert_memory_equal(w->ram.bytes, data + NBD_REQUEST_BYTES, 4096);
}

static void
complete_write_of_a_client_that_left_is_applied(void **state)
{
    world_run(&(struct world_options){0}, complete_write_of_a_client_that_left_is_applied_body);
}

static void
half_closed_client_gets_its_answers_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[4096];
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 10; i++)
        client_request(&c, NBD_CMD_READ, 0, i, 0, 4096);
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    await(w, w->ram.inside == 10);
    gate_open(w);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(client_simple_reply(&c, &cookie), 0);
        assert_int_equal(client_receive(&c, data, sizeof data), sizeof data);
    }
    assert_true(client_at_end(&c));
    client_close(&c);
}

static void
half_closed_client_gets_its_answers(void **state)
{
    world_run(&(struct world_options){0}, half_closed_client_gets_its_answers_body);
}

static void
bad_magic_ends_one_connection_alone_body(struct world *w)
{
    struct client good = client_connect(w, false), bad;
    uint8_t data[4096] = {0};

    bad = client_connect(w, false);
    assert_true(client_send(&bad, data, NBD_REQUEST_BYTES));
    assert_true(client_at_end(&bad));
    client_close(&bad);
    bad = client_open(w);
    assert_true(client_send(&bad, data, 20));
    (void)client_receive(&bad, data, 18);
    assert_true(client_at_end(&bad));
    client_close(&bad);
    assert_int_equal(w->stats->connections_failed, 2);
    assert_int_equal(client_read(&good, data, 0, 4096), 0);
    client_close(&good);
}

static void
bad_magic_ends_one_connection_alone(void **state)
{
    world_run(&(struct world_options){0}, bad_magic_ends_one_connection_alone_body);
}

/* What was asked before the nonsense is answered. */
static void
requests_before_a_bad_magic_are_answered_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[3 * NBD_REQUEST_BYTES] = {0};
    uint64_t cookie;

    (void)put_request(data, NBD_CMD_FLUSH, 0, 1, 0, 0);
    (void)put_request(data + NBD_REQUEST_BYTES, NBD_CMD_TRIM, 0, 2, 0, 1);
    w->ram.closed = true;
    assert_true(client_send(&c, data, sizeof data));
    await(w, w->ram.inside == 2);
    gate_open(w);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_true(client_at_end(&c));
    client_close(&c);
}

static void
requests_before_a_bad_magic_are_answered(void **state)
{
    world_run(&(struct world_options){0}, requests_before_a_bad_magic_are_answered_body);
}

static void
hostile_lengths_end_one_connection_alone_body(struct world *w)
{
    static const uint32_t lengths[] = {64 * 1024 + 1, 0x7fffffff, 0x80000000, 0xffffffff};
    uint8_t data[512];

    for (unsigned i = 0; i < ARRAY_LEN(lengths); i++) {
        struct client c = client_open(w);

        store_be32(data, 3);
        (void)put_option(data + 4, i % 2 ? NBD_OPT_GO : 12345, NULL, 0);
        store_be32(data + 4 + 12, lengths[i]);
        assert_true(client_send(&c, data, 20));
        assert_int_equal(client_receive(&c, data, 18), 18);
        assert_true(client_at_end(&c));
        client_close(&c);
    }
    for (unsigned i = 1; i < ARRAY_LEN(lengths); i++) {
        struct client c = client_connect(w, true);

        client_request(&c, NBD_CMD_WRITE, 0, 1, 0, lengths[i]);
        assert_true(client_at_end(&c));
        client_close(&c);
    }
    assert_serving(w);
}

static void
hostile_lengths_end_one_connection_alone(void **state)
{
    world_run(&(struct world_options){0}, hostile_lengths_end_one_connection_alone_body);
}

/* --- Limits --------------------------------------------------------------------------------- */

static void
further_connections_than_allowed_are_closed_body(struct world *w)
{
    enum { COUNT = 300, LIMIT = 256 };
    struct client clients[COUNT];
    unsigned served = 0;
    uint8_t data[512];

    for (unsigned i = 0; i < COUNT; i++) {
        struct sockaddr_un address;
        socklen_t length = sizeof address;

        clients[i] = (struct client){.w = w, .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        assert_true(clients[i].fd >= 0);
        assert_int_equal(getsockname(w->listener.socket.fd, (struct sockaddr *)&address, &length),
                         0);
        assert_int_equal(connect(clients[i].fd, (struct sockaddr *)&address, length), 0);
        assert_int_equal(fcntl(clients[i].fd, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        if (client_receive(&clients[i], data, 18) == 18) {
            assert_true(client_send(&clients[i], data, put_handshake(data, false)));
            assert_int_equal(client_receive(&clients[i], data, 52), 52);
            served++;
        }
    }
    assert_int_equal(served, LIMIT);
    assert_int_equal(w->stats->connections_refused, COUNT - LIMIT);
    for (unsigned i = 0; i < LIMIT; i++)
        assert_int_equal(client_read(&clients[i], data, 0, 512), 0);
    for (unsigned i = 0; i < COUNT; i++)
        client_close(&clients[i]);
    await(w, w->stats->connections_current == 0);
    assert_serving(w);
}

static void
further_connections_than_allowed_are_closed(void **state)
{
    struct rlimit limit;
    char path[64];

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur < 700)
        skip(); /* too few descriptors here */
    (void)snprintf(path, sizeof path, "/tmp/nbd-server-%d", (int)getpid());
    world_run(&(struct world_options){.listen_path = path},
              further_connections_than_allowed_are_closed_body);
}

static void
handshakes_hold_no_memory_of_the_pool_body(struct world *w)
{
    struct client clients[100];
    uint8_t data[512];
    void *all;

    for (unsigned i = 0; i < ARRAY_LEN(clients); i++) {
        clients[i] = client_open(w);
        assert_true(client_send(&clients[i], data, put_handshake(data, true) - 1));
    }
    await(w, w->stats->connections == ARRAY_LEN(clients));
    settle(w);
    all = pages_try(w->pages, pages_largest(w->pages));
    assert_non_null(all);
    pages_give(w->pages, all, pages_largest(w->pages));
    for (unsigned i = 0; i < ARRAY_LEN(clients); i++)
        client_close(&clients[i]);
}

static void
handshakes_hold_no_memory_of_the_pool(void **state)
{
    world_run(&(struct world_options){.pool_bytes = MIB},
              handshakes_hold_no_memory_of_the_pool_body);
}

static void
slow_handshake_is_closed_body(struct world *w)
{
    struct client slow = client_open(w), quick = client_connect(w, false);
    uint8_t data[512];

    assert_int_equal(client_receive(&slow, data, 18), 18);
    for (unsigned i = 0; i < 4; i++) {
        store_be32(data, 3);
        (void)client_send(&slow, data + i, 1);
        settle(w);
    }
    assert_true(client_at_end(&slow));
    /* The limit is on the handshake alone. */
    assert_int_equal(client_read(&quick, data, 0, 512), 0);
    assert_int_equal(w->stats->connections_failed, 1);
    client_close(&slow);
    client_close(&quick);
}

static void
slow_handshake_is_closed(void **state)
{
    world_run(&(struct world_options){.limits.handshake_ns = 1000 * MS_NS},
              slow_handshake_is_closed_body);
}

static void
connection_has_at_most_its_share_of_requests_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 300; i++)
        client_request(&c, NBD_CMD_FLUSH, 0, i, 0, 0);
    await(w, w->ram.inside == 128);
    settle(w);
    assert_int_equal(w->ram.inside, 128);
    gate_open(w);
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(client_simple_reply(&c, &cookie), 0);
    client_close(&c);
}

static void
connection_has_at_most_its_share_of_requests(void **state)
{
    world_run(&(struct world_options){0}, connection_has_at_most_its_share_of_requests_body);
}

static void
connection_has_at_most_a_quarter_of_the_memory_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[65536];
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 20; i++)
        client_request(&c, NBD_CMD_READ, 0, i, 0, sizeof data);
    await(w, w->ram.inside == 8);
    settle(w);
    assert_int_equal(w->ram.inside, 8); /* 512 KiB of 2 MiB */
    gate_open(w);
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(client_simple_reply(&c, &cookie), 0);
        assert_int_equal(client_receive(&c, data, sizeof data), sizeof data);
    }
    assert_int_equal(w->ram.inside_max, 8);
    client_close(&c);
}

static void
connection_has_at_most_a_quarter_of_the_memory(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB},
              connection_has_at_most_a_quarter_of_the_memory_body);
}

/* Larger than a quarter of the pool, but alone it may go. */
static void
one_large_request_is_always_possible_body(struct world *w)
{
    struct client c = client_connect(w, true);
    uint8_t *const data = malloc(MIB), *const back = malloc(MIB);
    uint64_t cookie;

    pattern(data, MIB, 1);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(client_write(&c, 0, data, 4095 + i, MIB), 0);
        assert_int_equal(client_read(&c, back, 4095 + i, MIB), 0);
        assert_memory_equal(data, back, MIB);
    }
    assert_int_equal(client_read(&c, data, 0, MIB + 1), NBD_EINVAL); /* as block sizes said */
    /* Requests without memory do not stand in its way. */
    w->ram.closed = true;
    client_request(&c, NBD_CMD_FLUSH, 0, 1, 0, 0);
    await(w, w->ram.inside == 1);
    w->ram.closed = false;
    assert_int_equal(client_read(&c, back, 0, MIB), 0);
    gate_open(w);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    free(data);
    free(back);
    client_close(&c);
}

static void
one_large_request_is_always_possible(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB},
              one_large_request_is_always_possible_body);
}

/* Five clients of which four may have the whole pool: the fifth waits, is not refused, and nobody
 * who comes later overtakes it. */
static void
memory_is_given_in_order_body(struct world *w)
{
    struct client c[6];
    uint8_t *const data = malloc(512 * KIB);
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 6; i++)
        c[i] = client_connect(w, false);
    for (unsigned i = 0; i < 4; i++)
        client_request(&c[i], NBD_CMD_READ, 0, i, 0, 512 * KIB);
    await(w, w->ram.inside == 4);
    assert_true(pages_free(w->pages) == 0);
    client_request(&c[4], NBD_CMD_READ, 0, 4, 0, 512 * KIB);
    settle(w);
    client_request(&c[5], NBD_CMD_READ, 0, 5, 0, 4096);
    settle(w);
    assert_int_equal(w->ram.inside, 4);
    w->ram.inside_max = 0;
    wait_queue_wake_one(w->loop, &w->ram.gate); /* one of the four ends */
    assert_int_equal(client_simple_reply(&c[0], &cookie), 0);
    assert_int_equal(client_receive(&c[0], data, 512 * KIB), 512 * KIB);
    await(w, w->ram.inside == 4);
    assert_int_equal(w->ram.reads, 5); /* the fifth came before the sixth */
    gate_open(w);
    for (unsigned i = 1; i < 6; i++) {
        assert_int_equal(client_simple_reply(&c[i], &cookie), 0);
        assert_int_equal(client_receive(&c[i], data, i < 5 ? 512 * KIB : 4096),
                         i < 5 ? 512 * KIB : 4096);
    }
    for (unsigned i = 0; i < 6; i++)
        client_close(&c[i]);
    free(data);
}

static void
memory_is_given_in_order(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB}, memory_is_given_in_order_body);
}

/* Fewer request objects than clients want: they wait for each other. */
static void
requests_of_all_connections_are_bounded_body(struct world *w)
{
    struct client c[5];
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 5; i++) {
        c[i] = client_connect(w, false);
        for (unsigned k = 0; k < 10; k++)
            client_request(&c[i], NBD_CMD_FLUSH, 0, k, 0, 0);
    }
    await(w, w->ram.inside == 16);
    settle(w);
    assert_int_equal(w->ram.inside, 16);
    gate_open(w);
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned k = 0; k < 10; k++)
            assert_int_equal(client_simple_reply(&c[i], &cookie), 0);
        client_close(&c[i]);
    }
    assert_int_equal(w->ram.inside_max, 16);
}

static void
requests_of_all_connections_are_bounded(void **state)
{
    world_run(&(struct world_options){.limits.requests = 16},
              requests_of_all_connections_are_bounded_body);
}

/* --- Peers that stand still ----------------------------------------------------------------- */

/* Four clients announce writes that take all memory, and send nothing. Nobody minds, until a fifth
 * wants memory. */
static void
silent_writers_are_closed_when_others_wait_body(struct world *w)
{
    struct client silent[4], c = client_connect(w, false);
    uint8_t data[4096];

    for (unsigned i = 0; i < 4; i++) {
        silent[i] = client_connect(w, false);
        client_request(&silent[i], NBD_CMD_WRITE, 0, 1, 0, 512 * KIB);
    }
    await(w, pages_free(w->pages) == 0);
    loop_sleep(w->loop, 150 * MS_NS);
    assert_int_equal(w->stats->connections_stalled, 0);
    assert_int_equal(client_read(&c, data, 0, sizeof data), 0);
    await(w, w->stats->connections_stalled == 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(client_at_end(&silent[i]));
        client_close(&silent[i]);
    }
    assert_int_equal(w->ram.writes, 0);
    client_close(&c);
}

static void
silent_writers_are_closed_when_others_wait(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB, .limits.stall_ns = 100 * MS_NS},
              silent_writers_are_closed_when_others_wait_body);
}

/* Somebody waits, but not for long: that is no reason to close anybody later. */
static void
silent_writers_are_left_alone_when_nobody_waits_body(struct world *w)
{
    struct client silent[3], busy = client_connect(w, false), c = client_connect(w, false);
    uint8_t *const data = malloc(512 * KIB);
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < 3; i++) {
        silent[i] = client_connect(w, false);
        client_request(&silent[i], NBD_CMD_WRITE, 0, 1, 0, 512 * KIB);
    }
    client_request(&busy, NBD_CMD_READ, 0, 1, 0, 512 * KIB);
    await(w, pages_free(w->pages) == 0 && w->ram.inside == 1);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 4096);
    settle(w);
    gate_open(w);
    assert_int_equal(client_simple_reply(&busy, &cookie), 0);
    assert_int_equal(client_receive(&busy, data, 512 * KIB), 512 * KIB);
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_int_equal(client_receive(&c, data, 4096), 4096);
    loop_sleep(w->loop, 1400 * MS_NS);
    assert_int_equal(w->stats->connections_stalled, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(client_send(&silent[i], data, 512 * KIB));
        assert_int_equal(client_simple_reply(&silent[i], &cookie), 0);
        client_close(&silent[i]);
    }
    client_close(&busy);
    client_close(&c);
    free(data);
}

static void
silent_writers_are_left_alone_when_nobody_waits(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB, .limits.stall_ns = 1000 * MS_NS},
              silent_writers_are_left_alone_when_nobody_waits_body);
}

/* A slow writer is not a silent one. */
static void
slow_writers_are_left_alone_body(struct world *w)
{
    struct client slow[4], c = client_connect(w, false);
    uint8_t *const data = calloc(1, 512 * KIB);
    uint64_t cookie;

    for (unsigned i = 0; i < 4; i++) {
        slow[i] = client_connect(w, false);
        client_request(&slow[i], NBD_CMD_WRITE, 0, 1, 0, 512 * KIB);
    }
    await(w, pages_free(w->pages) == 0);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 4096);
    for (unsigned k = 0; k < 8; k++) {
        for (unsigned i = 0; i < 4; i++)
            assert_true(client_send(&slow[i], data + k * 64 * KIB, 64 * KIB));
        loop_sleep(w->loop, 200 * MS_NS);
    }
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(client_simple_reply(&slow[i], &cookie), 0);
        client_close(&slow[i]);
    }
    assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_int_equal(client_receive(&c, data, 4096), 4096);
    assert_int_equal(w->stats->connections_stalled, 0);
    client_close(&c);
    free(data);
}

static void
slow_writers_are_left_alone(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 2 * MIB, .limits.stall_ns = 1000 * MS_NS},
              slow_writers_are_left_alone_body);
}

/* The same for answers that nobody takes. */
static void
deaf_readers_are_closed_when_others_wait_body(struct world *w)
{
    struct client deaf[4], c = client_connect(w, false);
    uint8_t data[4096];

    for (unsigned i = 0; i < 4; i++) {
        deaf[i] = client_connect(w, false);
        for (unsigned k = 0; k < 8; k++)
            client_request(&deaf[i], NBD_CMD_READ, 0, 1, 0, 2 * MIB);
    }
    loop_sleep(w->loop, 150 * MS_NS);
    assert_int_equal(w->stats->connections_stalled, 0);
    assert_true(pages_free(w->pages) == 0);
    assert_int_equal(client_read(&c, data, 0, sizeof data), 0);
    await(w, w->stats->connections_stalled == 4);
    for (unsigned i = 0; i < 4; i++)
        client_close(&deaf[i]);
    client_close(&c);
}

static void
deaf_readers_are_closed_when_others_wait(void **state)
{
    world_run(&(struct world_options){.pool_bytes = 8 * MIB, .limits.stall_ns = 100 * MS_NS},
              deaf_readers_are_closed_when_others_wait_body);
}

/* --- Stopping ------------------------------------------------------------------------------- */

struct stopping {
    struct world *w;
    bool done;
};

static void
stop_run(void *arg)
{
    struct stopping *const stopping = arg;

    nbd_server_stop(stopping->w->server);
    stopping->w->stopped = true;
    stopping->done = true;
}

static void
stop_answers_what_was_received_body(struct world *w)
{
    /* More than a connection may have in flight, and more than its buffer holds. */
    enum { COUNT = 300, EACH = 1200 };
    struct client c = client_connect(w, false), idle = client_connect(w, true),
                  early = client_open(w);
    struct stopping stopping = {.w = w};
    uint8_t *const data = malloc(COUNT * (NBD_REQUEST_BYTES + EACH));
    size_t used = 0;
    uint64_t cookie;

    w->ram.closed = true;
    for (unsigned i = 0; i < COUNT; i++) {
        used += put_request(data + used, NBD_CMD_WRITE, 0, i, i * (uint64_t)EACH, EACH);
        pattern(data + used, EACH, i);
        used += EACH;
    }
    assert_true(client_send(&c, data, used));
    await(w, w->ram.inside == 128);
    assert_int_equal(client_receive(&early, data, 18), 18);
    assert_non_null(task_start(w->loop, stop_run, &stopping));
    settle(w);
    assert_false(stopping.done);
    assert_true(client_at_end(&idle));
    assert_true(client_at_end(&early));
    gate_open(w);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(client_simple_reply(&c, &cookie), 0);
    assert_true(client_at_end(&c));
    await(w, stopping.done);
    assert_int_equal(w->ram.writes, COUNT);
    free(data);
    client_close(&c);
    client_close(&idle);
    client_close(&early);
}

static void
stop_answers_what_was_received(void **state)
{
    world_run(&(struct world_options){0}, stop_answers_what_was_received_body);
}

static void
stop_does_not_apply_half_a_write_body(struct world *w)
{
    struct client c = client_connect(w, false);
    uint8_t data[10000] = {1};

    client_request(&c, NBD_CMD_WRITE, 0, 1, 0, 20000);
    assert_true(client_send(&c, data, sizeof data));
    client_settle(&c);
    nbd_server_stop(w->server);
    w->stopped = true;
    assert_true(client_at_end(&c));
    assert_int_equal(w->ram.writes, 0);
    client_close(&c);
}

static void
stop_does_not_apply_half_a_write(void **state)
{
    world_run(&(struct world_options){0}, stop_does_not_apply_half_a_write_body);
}

static void
stop_does_not_wait_for_a_deaf_client_body(struct world *w)
{
    struct client c = client_connect(w, false);
    const uint64_t begun_ns = loop_clock_ns(w->loop);

    client_request(&c, NBD_CMD_READ, 0, 1, 0, 16 * MIB);
    await(w, w->ram.reads == 1);
    settle(w);
    nbd_server_stop(w->server);
    w->stopped = true;
    assert_true(loop_clock_ns(w->loop) - begun_ns < 5000 * MS_NS);
    assert_int_equal(w->stats->connections_stalled, 1);
    client_close(&c);
}

static void
stop_does_not_wait_for_a_deaf_client(void **state)
{
    world_run(&(struct world_options){.limits.stop_ns = 100 * MS_NS},
              stop_does_not_wait_for_a_deaf_client_body);
}

/* A TCP peer can go on sending after our end of reading; the server must not go on answering. The
 * client sends as fast as it can, so that there is always something to read, and takes all answers,
 * so that it does not stand still. */
struct chatter {
    struct client c;
    unsigned running;
    uint64_t until_ns;
};

static void
chatter_send(void *arg)
{
    struct chatter *const chatter = arg;
    uint8_t *const requests = malloc(1000 * NBD_REQUEST_BYTES);

    for (unsigned i = 0; i < 1000; i++)
        (void)put_request(requests + i * NBD_REQUEST_BYTES, NBD_CMD_FLUSH, 0, i, 0, 0);
    while (client_send(&chatter->c, requests, 1000 * NBD_REQUEST_BYTES) &&
           loop_clock_ns(chatter->c.w->loop) < chatter->until_ns)
        ;
    free(requests);
    chatter->running--;
}

static void
chatter_receive(void *arg)
{
    struct chatter *const chatter = arg;
    uint8_t *const replies = malloc(MIB);
    struct iovec vector = {replies, MIB};
    struct loop_io io = {.kind = LOOP_RECV, .fd = chatter->c.fd, .iov = &vector, .iov_count = 1};

    while (loop_io_wait(chatter->c.w->loop, &io) > 0)
        ;
    free(replies);
    chatter->running--;
}

static void
stop_ends_although_a_client_never_pauses_body(struct world *w)
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    struct chatter chatter = {.c = {.w = w, .fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)}};
    uint8_t data[256];

    assert_int_equal(getsockname(w->listener.socket.fd, (struct sockaddr *)&address, &length), 0);
    assert_int_equal(connect(chatter.c.fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(fcntl(chatter.c.fd, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    assert_true(client_send(&chatter.c, data, put_handshake(data, false)));
    assert_int_equal(client_receive(&chatter.c, data, handshake_reply_bytes(false)),
                     handshake_reply_bytes(false));
    chatter.until_ns = loop_clock_ns(w->loop) + 5000 * MS_NS;
    chatter.running = 2;
    assert_non_null(task_start(w->loop, chatter_send, &chatter));
    assert_non_null(task_start(w->loop, chatter_receive, &chatter));
    await(w, w->ram.flushes > 100000);
    nbd_server_stop(w->server);
    w->stopped = true;
    assert_true(loop_clock_ns(w->loop) < chatter.until_ns);
    await(w, chatter.running == 0);
    client_close(&chatter.c);
}

static void
stop_ends_although_a_client_never_pauses(void **state)
{
    world_run(&(struct world_options){.listen_tcp = true},
              stop_ends_although_a_client_never_pauses_body);
}

static void
stopped_server_takes_no_connection_body(struct world *w)
{
    int fds[2];

    nbd_server_stop(w->server);
    w->stopped = true;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(nbd_server_adopt(w->server, fds[1]), -ESHUTDOWN);
    close(fds[0]);
}

static void
stopped_server_takes_no_connection(void **state)
{
    world_run(&(struct world_options){.listen_tcp = true}, stopped_server_takes_no_connection_body);
}

static void
connection_just_accepted_is_ended_by_stop_body(struct world *w)
{
    struct client c = client_open(w); /* its task has not run yet */

    nbd_server_stop(w->server);
    w->stopped = true;
    client_close(&c);
}

static void
connection_just_accepted_is_ended_by_stop(void **state)
{
    world_run(&(struct world_options){0}, connection_just_accepted_is_ended_by_stop_body);
}

static void
export_of_odd_size_is_refused(void **state)
{
    const struct loop_config loop_config = {0};
    struct ram ram = {.export = {&ram_ops, "", 4097, false}};
    struct nbd_server_config config = {.export = &ram.export};
    struct nbd_server *server;
    struct error error;

    assert_int_equal(loop_create(&loop_config, &config.loop, &error), 0);
    assert_int_equal(pages_create(config.loop, MIB, false, &config.pages), 0);
    assert_int_equal(nbd_server_create(&config, &server), -EINVAL);
    pages_destroy(config.pages);
    loop_destroy(config.loop);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_give_what_was_written),
        cmocka_unit_test(commands_reach_the_export),
        cmocka_unit_test(errors_of_the_export_reach_the_client),
        cmocka_unit_test(refused_requests_leave_the_connection_usable),
        cmocka_unit_test(readonly_export_refuses_changes),
        cmocka_unit_test(flush_covers_writes_of_other_connections),
        cmocka_unit_test(conversation_does_not_depend_on_its_pieces),
        cmocka_unit_test(pipelined_requests_are_all_answered),
        cmocka_unit_test(slow_requests_do_not_hold_up_later_ones),
        cmocka_unit_test(cut_write_is_never_applied_in_half),
        cmocka_unit_test(complete_write_of_a_client_that_left_is_applied),
        cmocka_unit_test(half_closed_client_gets_its_answers),
        cmocka_unit_test(bad_magic_ends_one_connection_alone),
        cmocka_unit_test(requests_before_a_bad_magic_are_answered),
        cmocka_unit_test(hostile_lengths_end_one_connection_alone),
        cmocka_unit_test(further_connections_than_allowed_are_closed),
        cmocka_unit_test(handshakes_hold_no_memory_of_the_pool),
        cmocka_unit_test(slow_handshake_is_closed),
        cmocka_unit_test(connection_has_at_most_its_share_of_requests),
        cmocka_unit_test(connection_has_at_most_a_quarter_of_the_memory),
        cmocka_unit_test(one_large_request_is_always_possible),
        cmocka_unit_test(memory_is_given_in_order),
        cmocka_unit_test(requests_of_all_connections_are_bounded),
        cmocka_unit_test(silent_writers_are_closed_when_others_wait),
        cmocka_unit_test(silent_writers_are_left_alone_when_nobody_waits),
        cmocka_unit_test(slow_writers_are_left_alone),
        cmocka_unit_test(deaf_readers_are_closed_when_others_wait),
        cmocka_unit_test(stop_answers_what_was_received),
        cmocka_unit_test(stop_does_not_apply_half_a_write),
        cmocka_unit_test(stop_does_not_wait_for_a_deaf_client),
        cmocka_unit_test(stop_ends_although_a_client_never_pauses),
        cmocka_unit_test(stopped_server_takes_no_connection),
        cmocka_unit_test(connection_just_accepted_is_ended_by_stop),
        cmocka_unit_test(export_of_odd_size_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
