/*
 * front_door: the NBD server with next to nothing behind it, to measure the server alone.
 *
 *   front_door --socket PATH [--size BYTES]     a null export: writes vanish, reads give what is
 *                                               in memory
 *   front_door --socket PATH --file PATH        one file or device, as an array would use it
 *
 * Options: --readonly, --memory BYTES (pool, 256M). Sizes take K, M, G. Ends on SIGTERM and SIGINT,
 * with the server's counters on stdout.
 */
#include "device/file.h"
#include "nbd/listen.h"
#include "nbd/server.h"
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define FILE_IOS 1024

/* --- Nothing -------------------------------------------------------------------------------- */

static int
null_read(struct export *export, void *memory, uint64_t offset, uint64_t length)
{
    return 0; /* the pool's memory was zeroed at start */
}

static int
null_write(struct export *export, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    return 0;
}

static int
null_flush(struct export *export)
{
    return 0;
}

static int
null_trim(struct export *export, uint64_t offset, uint64_t length, bool fua)
{
    return 0;
}

static int
null_zero(struct export *export, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
          bool fua)
{
    return 0;
}

static const struct export_ops null_ops = {.read = null_read,
                                           .write = null_write,
                                           .flush = null_flush,
                                           .trim = null_trim,
                                           .zero = null_zero};

/* --- One file ------------------------------------------------------------------------------- */

struct file_export {
    struct export export;
    struct loop *loop;
    struct pages *pages;
    struct device *device;
    struct io_pool ios;
    /* Writes that cover parts of blocks read, change and write them; one at a time. */
    struct tokens partial;
};

static task_fn int
file_transfer(struct file_export *file, enum io_op op, void *memory, uint64_t offset,
              uint64_t length, bool fua)
{
    struct io_group group;
    struct io *io;

    io_group_init(&group, file->loop);
    io = io_take(&file->ios);
    io->op = op;
    io->fua = fua;
    io->offset = offset;
    if (op != IO_PUNCH && op != IO_ZERO) {
        if (!io_add(io, memory, length))
            abort(); /* a fresh io takes one vector */
    } else {
        io->length = length;
    }
    io_submit(io, file->device, &group);
    return io_wait(&group);
}

static task_fn int
file_read(struct export *export, void *memory, uint64_t offset, uint64_t length)
{
    struct file_export *const file = container_of(export, struct file_export, export);

    return file_transfer(file, IO_READ, memory, offset, length, false);
}

/* A piece of one block: nobody else may change the block meanwhile. */
static task_fn int
file_write_piece(struct file_export *file, const uint8_t *memory, uint64_t offset, uint64_t length,
                 bool fua)
{
    const uint64_t block = round_down(offset, BLOCK_BYTES);
    uint8_t *const bytes = pages_take(file->pages, BLOCK_BYTES);
    int result;

    result = file_transfer(file, IO_READ, bytes, block, BLOCK_BYTES, false);
    if (result == 0) {
        memcpy(bytes + (offset - block), memory, length);
        result = file_transfer(file, IO_WRITE, bytes, block, BLOCK_BYTES, fua);
    }
    pages_give(file->pages, bytes, BLOCK_BYTES);
    return result;
}

static task_fn int
file_write(struct export *export, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    struct file_export *const file = container_of(export, struct file_export, export);
    const uint8_t *at = memory;
    int result = 0;

    if (offset % BLOCK_BYTES == 0 && length % BLOCK_BYTES == 0)
        return file_transfer(file, IO_WRITE, (void *)(uintptr_t)memory, offset, length, fua);

    tokens_take(file->loop, &file->partial, 1);
    while (length && result == 0) {
        const uint64_t within = offset % BLOCK_BYTES;
        const bool whole = within == 0 && length >= BLOCK_BYTES;
        const uint64_t now =
            whole ? round_down(length, BLOCK_BYTES) : min_u64(length, BLOCK_BYTES - within);

        result = whole ? file_transfer(file, IO_WRITE, (void *)(uintptr_t)at, offset, now, fua)
                       : file_write_piece(file, at, offset, now, fua);
        at += now;
        offset += now;
        length -= now;
    }
    tokens_give(file->loop, &file->partial, 1);
    return result;
}

static task_fn int
file_flush(struct export *export)
{
    return device_flush(container_of(export, struct file_export, export)->device);
}

static task_fn int
file_trim(struct export *export, uint64_t offset, uint64_t length, bool fua)
{
    return 0; /* a hint */
}

/* Written, in pieces of a page of zeros. */
static task_fn int
file_zero(struct export *export, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
          bool fua)
{
    static const uint8_t zeros[64 * KIB] __attribute__((aligned(BLOCK_BYTES)));
    int result = 0;

    if (fast_only)
        return -ENOTSUP;
    while (length && result == 0) {
        const uint64_t within = offset % BLOCK_BYTES;
        const uint64_t now = min_u64(length, sizeof zeros - within);

        result = file_write(export, zeros + within, offset, now, fua);
        offset += now;
        length -= now;
    }
    return result;
}

static const struct export_ops file_ops = {.read = file_read,
                                           .write = file_write,
                                           .flush = file_flush,
                                           .trim = file_trim,
                                           .zero = file_zero};

/* --- The program ---------------------------------------------------------------------------- */

struct program {
    const char *socket_path, *listen_address, *file_path;
    uint64_t size_bytes, memory_bytes;
    bool readonly;
    struct loop *loop;
    struct file_export file;
    struct nbd_listener listener;
    int signal_fd;
    int result;
};

static uint64_t
size_parse(const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    const char *const unit = *end ? strchr(units, *end) : NULL;

    if (unit) {
        value <<= 10 * (unit - units + 1);
        end++;
    }
    if (end == text || *end != '\0' || value == 0) {
        (void)fprintf(stderr, "front_door: %s: not a size\n", text);
        exit(2);
    }
    return value;
}

static int
program_fail(struct program *p, const struct error *error)
{
    (void)fprintf(stderr, "front_door: %s\n", error->text);
    return p->result = 1;
}

static task_fn int
program_open(struct program *p, struct error *error)
{
    const struct file_options options = {.readonly = p->readonly, .claim = true};
    int result;

    p->file.export = (struct export){&null_ops, "null", p->size_bytes, p->readonly};
    if (!p->file_path)
        return 0;
    result = device_file_open(p->loop, p->file_path, &options, &p->file.device, error);
    if (result < 0)
        return result;
    p->file.export = (struct export){
        &file_ops, "file", round_down(p->file.device->size_bytes, BLOCK_BYTES), p->readonly};
    tokens_init(&p->file.partial, 1);
    result = io_pool_init(&p->file.ios, p->loop, FILE_IOS);
    if (result < 0)
        return error_set(error, result, "cannot make the I/O pool");
    return 0;
}

static task_fn void
program_serve(struct program *p)
{
    const struct nbd_server_config config = {.loop = p->loop,
                                             .pages = p->file.pages,
                                             .export = &p->file.export,
                                             .listen_fds = &p->listener.socket.fd,
                                             .listen_count = 1};
    struct loop_io poll = {.kind = LOOP_POLL_IN, .fd = p->signal_fd};
    const struct nbd_server_stats *stats;
    struct nbd_server *server;
    struct rusage usage;
    struct error error;
    int result;

    result = p->socket_path ? nbd_listen_unix(p->socket_path, &p->listener, &error)
                            : nbd_listen_tcp(p->listen_address, &p->listener, &error);
    if (result < 0) {
        (void)program_fail(p, &error);
        return;
    }
    result = nbd_server_create(&config, &server);
    if (result < 0) {
        (void)error_set(&error, result, "cannot start the server: %s", strerror(-result));
        (void)program_fail(p, &error);
        nbd_listener_close(&p->listener);
        return;
    }
    (void)printf("front_door: ready %s (%s)\n", p->listener.uri, loop_backend_name(p->loop));
    (void)fflush(stdout);

    (void)loop_io_wait(p->loop, &poll); /* whatever it says, this is the end */

    nbd_server_stop(server);
    stats = nbd_server_stats(server);
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)printf("{\"connections\": %" PRIu64 ", \"requests\": %" PRIu64
                 ", \"requests_failed\": %" PRIu64 ", \"read_bytes\": %" PRIu64
                 ", \"written_bytes\": %" PRIu64 ", \"memory_peak_bytes\": %ld}\n",
                 stats->connections, stats->requests, stats->requests_failed, stats->read_bytes,
                 stats->written_bytes, usage.ru_maxrss * 1024);
    nbd_server_destroy(server);
    nbd_listener_close(&p->listener);
}

static task_fn void
program_run(void *arg)
{
    struct program *const p = arg;
    struct error error;

    if (program_open(p, &error) < 0) {
        (void)program_fail(p, &error);
        return;
    }
    program_serve(p);
    if (p->file.device) {
        io_pool_fini(&p->file.ios);
        device_close(p->file.device);
    }
}

static void
options_parse(struct program *p, int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},
        {"listen", required_argument, NULL, 'l'},
        {"size", required_argument, NULL, 'z'},
        {"file", required_argument, NULL, 'f'},
        {"memory", required_argument, NULL, 'm'},
        {"readonly", no_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            p->socket_path = optarg;
            break;
        case 'l':
            p->listen_address = optarg;
            break;
        case 'z':
            p->size_bytes = round_down(size_parse(optarg), BLOCK_BYTES);
            break;
        case 'f':
            p->file_path = optarg;
            break;
        case 'm':
            p->memory_bytes = size_parse(optarg);
            break;
        case 'r':
            p->readonly = true;
            break;
        default:
            exit(2);
        }
    }
    if (optind != argc || !p->socket_path == !p->listen_address) {
        (void)fprintf(stderr, "usage: front_door --socket PATH | --listen [HOST:]PORT "
                              "[--size BYTES | --file PATH] [--memory BYTES] [--readonly]\n");
        exit(2);
    }
}

int
main(int argc, char **argv)
{
    const struct loop_config loop_config = {.tasks = 1536};
    struct program p = {.size_bytes = GIB, .memory_bytes = 256 * MIB};
    struct error error;
    sigset_t signals;

    options_parse(&p, argc, argv);
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    p.signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);

    if (loop_create(&loop_config, &p.loop, &error) < 0)
        return program_fail(&p, &error);
    if (pages_create(p.loop, p.memory_bytes, true, &p.file.pages) < 0) {
        (void)error_set(&error, -ENOMEM, "no memory for the pool");
        return program_fail(&p, &error);
    }
    p.file.loop = p.loop;
    loop_run_task(p.loop, program_run, &p);
    pages_destroy(p.file.pages);
    loop_destroy(p.loop);
    (void)close(p.signal_fd);
    return p.result;
}
