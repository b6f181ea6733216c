/*
 * slow_array: serves an array whose members take their time (slow_device.h); its journal, if it has
 * one, does not.
 *
 *   slow_array --socket PATH [--journal DEVICE] [--mode write-back] [--memory 256M]
 *              [--delay-us N | --seek-us N [--rate 200M] [--near 0K]] MEMBER...
 *
 * Otherwise as `stripelog serve --kernel-recoverable=no`. Ends on SIGTERM and SIGINT, and then says
 * on stdout what there was to do for the members (before the stop writes the cache out), as JSON.
 */
#include "array/array.h"
#include "cli/export_array.h"
#include "cli/service.h"
#include "cli/size.h"
#include "device/file.h"
#include "nbd/listen.h"
#include "nbd/server.h"
#include "slow_device.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct program {
    const char *socket_path, *journal_path;
    char **member_paths;
    unsigned members;
    struct slow_model model;
    enum journal_mode mode;
    uint64_t memory_bytes;
    struct loop *loop;
    struct device *devices[MEMBERS_MAX + 1]; /* the journal is the last */
    struct array *array;
    struct export_array export_array;
    struct pages *pages;
    struct nbd_listener listener;
    int signal_fd;
    int result;
    struct error error;
};

static void
told(void *owner, const struct array_event *event)
{
    if (event->text[0] != '\0')
        (void)fprintf(stderr, "slow_array: %s\n", event->text);
}

/* The journal is opened as it is, members behind their delays. */
static task_fn int
devices_open(struct program *p)
{
    const struct file_options options = {.claim = true, .claim_wait_ns = 5000000000};

    for (unsigned i = 0; i < p->members + (p->journal_path != NULL); i++) {
        const char *const path = i < p->members ? p->member_paths[i] : p->journal_path;
        const int result = device_file_open(p->loop, path, &options, &p->devices[i], &p->error);

        if (result < 0)
            return result;
        if (i < p->members)
            p->devices[i] = slow_device_create(p->devices[i], &p->model);
        if (!p->devices[i])
            return error_set(&p->error, -ENOMEM, "no memory");
    }
    return 0;
}

static task_fn int
program_start(struct program *p)
{
    struct array_config config = {
        .devices = p->devices,
        .device_count = p->members + (p->journal_path != NULL),
        .journal_mode = p->mode,
        .not_kernel_recoverable = true,
        .event = told,
    };
    int result = devices_open(p);

    array_config_split(&config, p->memory_bytes);
    if (result == 0)
        result = array_start(p->loop, &config, &p->array, &p->error);
    if (result == 0)
        result =
            pages_create(p->loop, array_request_bytes(p->array, p->memory_bytes), true, &p->pages);
    if (result == 0)
        result = nbd_listen_unix(p->socket_path, &p->listener, &p->error);
    return result;
}

/* What the members had to do, and the cache. */
static void
counts_print(const struct program *p)
{
    uint64_t operations = 0, seeks = 0;
    struct array_status status;

    for (unsigned i = 0; i < p->members; i++) {
        uint64_t one, of_these;

        slow_device_counts(p->devices[i], &one, &of_these);
        operations += one;
        seeks += of_these;
    }
    array_status(p->array, &status);
    (void)printf("{\"operations\": %" PRIu64 ", \"seeks\": %" PRIu64 ", \"cached_blocks\": %" PRIu64
                 ", \"overwritten_blocks\": %" PRIu64 ", \"written_out_blocks\": %" PRIu64
                 ", \"groups_written_out\": %" PRIu64 ", \"checkpoints\": %" PRIu64 "}\n",
                 operations, seeks, status.write_back.cached_total, status.write_back.overwritten,
                 status.write_back.written_out, status.write_back.groups_written_out,
                 status.journal.checkpoints);
    (void)fflush(stdout);
}

static task_fn int
program_serve(struct program *p)
{
    const struct nbd_server_config config = {.loop = p->loop,
                                             .pages = p->pages,
                                             .export = &p->export_array.export,
                                             .listen_fds = &p->listener.socket.fd,
                                             .listen_count = 1};
    struct loop_io poll = {.kind = LOOP_POLL_IN, .fd = p->signal_fd};
    struct nbd_server *server;
    int result;

    export_array_init(&p->export_array, p->array);
    result = nbd_server_create(&config, &server);
    if (result < 0)
        return error_set(&p->error, result, "cannot start the server: %s", strerror(-result));
    (void)printf("slow_array: ready %s\n", p->listener.uri);
    (void)fflush(stdout);

    (void)loop_io_wait(p->loop, &poll); /* whatever it says, this is the end */
    nbd_server_stop(server);
    nbd_server_destroy(server);
    nbd_listener_close(&p->listener);
    counts_print(p);
    result = array_stop(p->array);
    return result < 0 ? error_set(&p->error, result, "stop: %s", strerror(-result)) : 0;
}

static task_fn void
program_run(void *arg)
{
    struct program *const p = arg;

    p->result = program_start(p);
    if (p->result == 0)
        p->result = program_serve(p);
    if (p->result < 0) {
        (void)fprintf(stderr, "slow_array: %s\n", p->error.text);
        exit(1);
    }
    array_destroy(p->array);
    pages_destroy(p->pages);
}

static uint64_t
size_of(const char *text)
{
    struct error error;
    uint64_t bytes;

    if (size_parse(text, SIZE_BARE_REFUSED, &bytes, &error) < 0) {
        (void)fprintf(stderr, "slow_array: %s\n", error.text);
        exit(2);
    }
    return bytes;
}

static void
options_parse(struct program *p, int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},
        {"journal", required_argument, NULL, 'j'},
        {"mode", required_argument, NULL, 'b'},
        {"memory", required_argument, NULL, 'm'},
        {"delay-us", required_argument, NULL, 'd'},
        {"seek-us", required_argument, NULL, 'k'},
        {"rate", required_argument, NULL, 'r'},
        {"near", required_argument, NULL, 'n'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            p->socket_path = optarg;
            break;
        case 'j':
            p->journal_path = optarg;
            break;
        case 'b':
            p->mode =
                strcmp(optarg, "write-back") == 0 ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH;
            break;
        case 'm':
            p->memory_bytes = size_of(optarg);
            break;
        case 'd':
            p->model.delay_ns = strtoull(optarg, NULL, 10) * 1000;
            break;
        case 'k':
            p->model.seek_ns = strtoull(optarg, NULL, 10) * 1000;
            break;
        case 'r':
            p->model.bytes_per_s = max_u64(size_of(optarg), 1);
            break;
        case 'n':
            p->model.near_bytes = size_of(optarg);
            break;
        default:
            exit(2);
        }
    }
    p->member_paths = argv + optind;
    p->members = (unsigned)(argc - optind);
    if (!p->socket_path || p->members == 0 || p->members > MEMBERS_MAX) {
        (void)fprintf(stderr, "usage: slow_array --socket PATH [--journal DEVICE] [--mode MODE] "
                              "[--memory SIZE] [--delay-us N | --seek-us N [--rate SIZE] "
                              "[--near SIZE]] MEMBER...\n");
        exit(2);
    }
}

int
main(int argc, char **argv)
{
    const struct loop_config loop_config = {.tasks = 1536};
    struct program p = {.memory_bytes = 256 * MIB, .model = {.bytes_per_s = 200 * MIB}};

    options_parse(&p, argc, argv);
    p.signal_fd = signals_open(&p.error);
    if (p.signal_fd < 0 || loop_create(&loop_config, &p.loop, &p.error) < 0) {
        (void)fprintf(stderr, "slow_array: %s\n", p.error.text);
        return 1;
    }
    loop_run_task(p.loop, program_run, &p);
    loop_destroy(p.loop);
    (void)close(p.signal_fd);
    return 0;
}
