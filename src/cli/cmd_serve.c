/*
 * cmd_serve.c: serve an array over NBD, in the foreground, until told to stop.
 *
 * In this order, so that whoever waits for one of them can rely on all before it:
 *
 *   claim the devices | start the array | pidfile | listen | READY=1 | the line on stdout
 *
 * and at the end: answer what was received, close; stop the array, which writes clean superblocks;
 * tell who asked for that on the control socket; let everything go.
 *
 * One task, the supervisor, lives as long as the service; two others only wait, for a signal and
 * for the command of --run, and wake it.
 */
#include "array/array.h"
#include "cli/cli.h"
#include "cli/export_array.h"
#include "cli/progress.h"
#include "cli/service.h"
#include "cli/size.h"
#include "cli/start_options.h"
#include "control/protocol.h"
#include "control/server.h"
#include "nbd/listen.h"
#include "nbd/server.h"

#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define COMMAND "serve"

#define LISTENERS_MAX   16u
#define COMMAND_STOP_NS (5ull * 1000 * 1000 * 1000)

static const char help[] =
    "Usage: stripelog serve [OPTION ...] DEVICE ...\n"
    "\n"
    "Assembles the array whose members the devices are, in any order, and serves it over\n"
    "NBD until SIGTERM or SIGINT. Prints one line when it is ready.\n"
    "\n"
    "Options:\n"
    "  --socket=PATH         Unix socket (/run/stripelog/UUID.nbd, or without root\n"
    "                        $XDG_RUNTIME_DIR/stripelog/UUID.nbd)\n"
    "  --listen=[HOST:]PORT  TCP instead; host 127.0.0.1 unless given, port 0 is any\n"
    "  --readonly            write nothing, neither to the array nor to its members\n"
    "  --force[=DANGER]      start in spite of dirty-degraded (the default),\n"
    "                        stale-member, drop-journal, new-journal or\n"
    "                        truncate-journal; several with commas\n"
    "  --journal-mode=MODE   when a write is answered: write-through, when it is on the members\n"
    "                        (the default), or write-back, when it is on the journal\n"
    "  --kernel-recoverable=yes|no\n"
    "                        in write-back, cache no more than a kernel can recover (yes)\n"
    "  --write-out=LIMIT=N,...\n"
    "                        when what is cached goes to the members: high=75, moderate=50,\n"
    "                        tight=25 (percent), batch=16, at-once=32, idle=30 (seconds)\n"
    "  --memory=SIZE         for everything that depends on load, from 64M (256M)\n"
    "  --control=PATH        socket for stripelog status, journal-mode and stop\n"
    "                        (UUID.ctl where UUID.nbd would be)\n"
    "  --pidfile=PATH        write the process's number there, before listening\n"
    "  --run=COMMAND         run a shell command with $uri and $unixsocket, stop when it\n"
    "                        ends, exit with its status\n"
    "  --json                tell what happens to the array as JSON, an object a line\n"
    "  --help                print this and exit\n"
    "  --version             print the version and exit\n";

struct serve {
    /* Options; all strings are borrowed from argv. */
    const char *socket, *listen, *control_path, *pidfile, *command;
    bool readonly, json;
    unsigned force;
    uint64_t memory_bytes;
    enum journal_mode journal_mode;
    bool not_kernel_recoverable;
    struct write_back_tunables write_back;

    unsigned count;
    const char *const *paths;
    struct device **devices; /* the array's once it has started */

    struct loop *loop;
    struct array *array;
    struct export_array export_array;
    struct pages *pages;
    struct nbd_server *server;
    struct nbd_listener listeners[LISTENERS_MAX];
    unsigned listener_count;
    struct listener control_listener;
    struct control *control;
    bool pidfile_written;
    struct progress progress;

    int signal_fd;
    pid_t command_pid; /* 0: none runs */
    int command_fd;
    struct task *supervisor; /* while it waits */
    bool stopping;
    bool command_ended;
    struct timer command_timer;
    unsigned watchers;

    int status;
    int result;
    struct error error;
};

/* ---- Options ---- */

/* -1 to go on, or an exit status. */
static int
parse_yes_no(const char *option, const char *text, bool *value)
{
    *value = strcmp(text, "yes") == 0;
    if (*value || strcmp(text, "no") == 0)
        return -1;
    return usage_failed(COMMAND, "--%s=%s: yes or no", option, text);
}

/* Only the port, so that a slip is noticed before the array is started. */
static int
parse_listen(const char *text, const char **listen)
{
    const char *colon = strrchr(text, ':');
    struct error error = {0};
    uint64_t port;

    if (count_parse(colon ? colon + 1 : text, UINT16_MAX, &port, &error) < 0)
        return usage_failed(COMMAND, "--listen=%s: port %s", text, error.text);
    *listen = text;
    return -1;
}

/* An exit status, or -1 to go on. */
static int
parse_options(struct serve *serve, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"socket", required_argument, NULL, 's'},
        {"listen", required_argument, NULL, 'l'},
        {"readonly", no_argument, NULL, 'r'},
        {"force", optional_argument, NULL, 'f'},
        {"journal-mode", required_argument, NULL, 'o'},
        {"kernel-recoverable", required_argument, NULL, 'k'},
        {"write-out", required_argument, NULL, 'w'},
        {"control", required_argument, NULL, 'x'},
        {"memory", required_argument, NULL, 'm'},
        {"pidfile", required_argument, NULL, 'p'},
        {"run", required_argument, NULL, 'c'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    bool kernel_recoverable = true;
    int status = -1;
    int option;

    opterr = 0;
    while (status < 0 && (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 's':
            serve->socket = optarg;
            break;
        case 'l':
            status = parse_listen(optarg, &serve->listen);
            break;
        case 'r':
            serve->readonly = true;
            break;
        case 'f':
            status = force_parse(COMMAND, optarg, &serve->force);
            break;
        case 'o':
            status = journal_mode_parse(COMMAND, optarg, &serve->journal_mode);
            break;
        case 'k':
            status = parse_yes_no("kernel-recoverable", optarg, &kernel_recoverable);
            break;
        case 'w':
            status = write_out_parse(COMMAND, optarg, &serve->write_back);
            break;
        case 'x':
            serve->control_path = optarg;
            break;
        case 'm':
            status = memory_parse(COMMAND, optarg, &serve->memory_bytes);
            break;
        case 'p':
            serve->pidfile = optarg;
            break;
        case 'c':
            serve->command = optarg;
            break;
        case 'j':
            serve->json = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (status >= 0)
        return status;
    if (serve->socket && serve->listen)
        return usage_failed(COMMAND, "--socket and --listen exclude each other");
    if (serve->socket && serve->control_path && strcmp(serve->socket, serve->control_path) == 0)
        return usage_failed(COMMAND, "--socket and --control name the same socket");
    if (serve->readonly && serve->journal_mode == JOURNAL_WRITE_BACK)
        return usage_failed(COMMAND, "--readonly and --journal-mode=write-back exclude each other");
    serve->not_kernel_recoverable = !kernel_recoverable;
    if (optind == argc)
        return usage_failed(COMMAND, "no device is given");
    serve->count = (unsigned)(argc - optind);
    serve->paths = (const char *const *)(argv + optind);
    return -1;
}

/* ---- Start ---- */

static void
array_event(void *owner, const struct array_event *event)
{
    struct serve *serve = owner;

    progress_event(&serve->progress, event);
}

/* A start writes to members; a place that cannot be had must be noticed before. */
static int
check_places(struct serve *serve)
{
    int r = 0;

    if (serve->pidfile)
        r = pidfile_check(serve->pidfile, &serve->error);
    if (r == 0 && serve->socket)
        r = listener_check_unix(serve->socket, &serve->error);
    if (r == 0 && serve->control_path)
        r = listener_check_unix(serve->control_path, &serve->error);
    return r;
}

static task_fn void
start_array(void *arg)
{
    struct serve *serve = arg;
    struct array_config config = {
        .devices = serve->devices,
        .device_count = serve->count,
        .readonly = serve->readonly,
        .force = serve->force,
        .journal_mode = serve->journal_mode,
        .not_kernel_recoverable = serve->not_kernel_recoverable,
        .write_back = serve->write_back,
        .event = array_event,
        .owner = serve,
    };

    array_config_split(&config, serve->memory_bytes);
    serve->result = check_places(serve);
    if (serve->result == 0)
        serve->result = array_start(serve->loop, &config, &serve->array, &serve->error);
}

/* The socket of this kind in the default directory. */
static int
default_place(struct serve *serve, const char *kind, char path[PATH_MAX])
{
    struct array_status status;
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES];

    array_status(serve->array, &status);
    superblock_uuid_text(status.superblock->set_uuid, uuid);
    return default_socket(uuid, kind, path, PATH_MAX, &serve->error);
}

/* By default an array can be served where there is no place for this socket, or one more time (a
 * copy of it, say), as long as its clients know how to reach it. */
static int
listen_for_control(struct serve *serve)
{
    struct array_event event = {.kind = ARRAY_WARNING, .member = NO_MEMBER};
    char path[PATH_MAX];
    int r;

    if (serve->control_path)
        return listener_open_unix(serve->control_path, &serve->control_listener, &serve->error);
    r = default_place(serve, "ctl", path);
    if (r == 0)
        r = listener_open_unix(path, &serve->control_listener, &serve->error);
    if (r < 0) {
        (void)snprintf(event.text, sizeof event.text,
                       "no control socket, --control=PATH names a place for one: %.400s",
                       serve->error.text); /* cut off is fine */
        array_event(serve, &event);
        serve->error = (struct error){0};
    }
    return 0;
}

static int
listen_somewhere(struct serve *serve)
{
    char path[PATH_MAX];
    const char *place = serve->socket;
    struct error cause;
    int r;

    r = nbd_listen_activation(serve->listeners, LISTENERS_MAX, &serve->error);
    if (r < 0)
        return r;
    serve->listener_count = (unsigned)r;
    if (serve->listener_count > 0)
        return 0;
    if (serve->listen) {
        r = nbd_listen_tcp(serve->listen, &serve->listeners[0], &serve->error);
    } else {
        if (!place) {
            r = default_place(serve, "nbd", path);
            cause = serve->error;
            if (r == -ENOENT)
                return error_set(&serve->error, r,
                                 "--socket=PATH or --listen=PORT says where to listen\n%s",
                                 cause.text);
            if (r < 0)
                return r;
            place = path;
        }
        r = nbd_listen_unix(place, &serve->listeners[0], &serve->error);
    }
    serve->listener_count = r == 0;
    return r;
}

static task_fn int
start_server(struct serve *serve)
{
    struct nbd_server_config config = {.loop = serve->loop};
    int fds[LISTENERS_MAX];
    int r;

    for (unsigned i = 0; i < serve->listener_count; i++)
        fds[i] = serve->listeners[i].socket.fd;
    export_array_init(&serve->export_array, serve->array);
    config.pages = serve->pages;
    config.export = &serve->export_array.export;
    config.listen_fds = fds;
    config.listen_count = serve->listener_count;
    r = nbd_server_create(&config, &serve->server);
    if (r < 0)
        return error_set(&serve->error, r, "the server cannot start: %s", strerror(-r));
    return 0;
}

static void
wake_supervisor(struct serve *serve)
{
    struct task *supervisor = serve->supervisor;

    serve->supervisor = NULL;
    if (supervisor)
        task_wake(serve->loop, supervisor);
}

static void
control_asks_to_stop(void *owner)
{
    struct serve *serve = owner;

    serve->stopping = true;
    wake_supervisor(serve);
}

static void
describe(void *owner, json_t *status)
{
    const struct serve *serve = owner;
    json_t *uris = json_array();

    for (unsigned i = 0; i < serve->listener_count; i++)
        json_array_append_new(uris, json_string(serve->listeners[i].uri));
    json_object_set_new(status, "uris", uris);
    json_object_set_new(status, "pid", json_integer(getpid()));
}

static task_fn int
start_control(struct serve *serve)
{
    const struct control_config config = {
        .loop = serve->loop,
        .array = serve->array,
        .listen_fd = serve->control_listener.fd,
        .owner = serve,
        .stop = control_asks_to_stop,
        .describe = describe,
    };
    int r;

    if (serve->control_listener.fd < 0)
        return 0;
    r = control_create(&config, &serve->control);
    if (r < 0)
        return error_set(&serve->error, r, "the control socket cannot be served: %s", strerror(-r));
    return 0;
}

/* Everything that others look at, in the order of the contract. */
static task_fn int
go_public(struct serve *serve)
{
    int r;

    r = pages_create(serve->loop, array_request_bytes(serve->array, serve->memory_bytes), true,
                     &serve->pages);
    if (r < 0)
        return error_set(&serve->error, r, "no memory for requests (--memory): %s", strerror(-r));
    if (serve->pidfile) {
        r = pidfile_write(serve->pidfile, &serve->error);
        if (r < 0)
            return r;
        serve->pidfile_written = true;
    }
    r = listen_somewhere(serve);
    if (r == 0)
        r = listen_for_control(serve);
    if (r == 0)
        r = start_server(serve);
    if (r == 0)
        r = start_control(serve);
    if (r < 0)
        return r;
    notify_send("READY=1");
    (void)printf("stripelog: ready %s\n", serve->listeners[0].uri); /* the flush tells */
    if (fflush(stdout) != 0)
        return error_set(&serve->error, -errno, "standard output: %s", strerror(errno));
    return 0;
}

/* ---- Waiting for the end ---- */

static task_fn void
wait_readable(struct serve *serve, int fd)
{
    struct loop_io io = {.kind = LOOP_POLL_IN, .fd = fd};

    (void)loop_io_wait(serve->loop, &io); /* readable or broken: the reader sees */
}

static task_fn void
watch_signals(void *arg)
{
    struct serve *serve = arg;

    do
        wait_readable(serve, serve->signal_fd);
    while (signals_take(serve->signal_fd) == 0);
    serve->stopping = true;
    serve->watchers--;
    wake_supervisor(serve);
}

static task_fn void
watch_command(void *arg)
{
    struct serve *serve = arg;

    wait_readable(serve, serve->command_fd);
    timer_cancel(serve->loop, &serve->command_timer);
    serve->status = command_status(serve->command_pid);
    serve->command_ended = true;
    serve->stopping = true;
    serve->watchers--;
    wake_supervisor(serve);
}

static task_fn void
supervisor_wait(struct serve *serve)
{
    serve->supervisor = task_self(serve->loop);
    task_suspend(serve->loop);
}

static int
start_command(struct serve *serve)
{
    int r;

    r = command_start(serve->command, serve->listeners[0].uri, serve->listeners[0].socket.path,
                      &serve->command_pid, &serve->command_fd, &serve->error);
    if (r < 0)
        return r;
    if (!task_start(serve->loop, watch_command, serve)) {
        (void)kill(serve->command_pid, SIGKILL); /* ours, and not yet waited for */
        (void)command_status(serve->command_pid);
        return error_set(&serve->error, -EAGAIN, "no task is free");
    }
    serve->watchers++;
    return 0;
}

static void
command_overdue(struct timer *timer)
{
    struct serve *serve = container_of(timer, struct serve, command_timer);

    (void)kill(serve->command_pid, SIGKILL); /* ours, and not yet waited for */
}

/* Ends both watchers: the command gets the signal that we got, and we one of our own. */
static task_fn void
end_watchers(struct serve *serve)
{
    if (serve->command_pid && !serve->command_ended) {
        (void)kill(serve->command_pid, SIGTERM); /* ours, and not yet waited for */
        timer_arm(serve->loop, &serve->command_timer, COMMAND_STOP_NS);
    }
    (void)kill(getpid(), SIGTERM); /* blocked: it only makes the descriptor readable */
    while (serve->watchers > 0)
        supervisor_wait(serve);
}

static task_fn void
stop_all(struct serve *serve)
{
    struct array_status status;
    int r;

    if (serve->control)
        control_refuse(serve->control);
    if (serve->server) {
        notify_send("STOPPING=1");
        nbd_server_stop(serve->server);
    }
    r = array_stop(serve->array);
    if (r < 0 && serve->result == 0)
        serve->result =
            error_set(&serve->error, r, "the array is not stopped clean: %s", strerror(-r));
    array_status(serve->array, &status);
    if (status.failed && serve->result == 0)
        serve->result = error_set(&serve->error, -EIO,
                                  "the array failed: more members were lost than parity covers");
    if (serve->control)
        control_end(serve->control, serve->result < 0 ? &serve->error : NULL);
}

/* The whole life after the array has started. */
static task_fn void
supervise(void *arg)
{
    struct serve *serve = arg;

    serve->result = 0;
    if (!task_start(serve->loop, watch_signals, serve))
        serve->result = error_set(&serve->error, -EAGAIN, "no task is free");
    else
        serve->watchers++;
    if (serve->result == 0)
        serve->result = go_public(serve);
    if (serve->result == 0 && serve->command)
        serve->result = start_command(serve);
    while (serve->result == 0 && !serve->stopping)
        supervisor_wait(serve);
    stop_all(serve);
    if (serve->watchers > 0)
        end_watchers(serve);
}

static task_fn void
destroy_all(void *arg)
{
    struct serve *serve = arg;

    if (serve->server)
        nbd_server_destroy(serve->server);
    for (unsigned i = 0; i < serve->listener_count; i++)
        nbd_listener_close(&serve->listeners[i]);
    listener_close(&serve->control_listener);
    array_destroy(serve->array);
    if (serve->pages)
        pages_destroy(serve->pages);
    if (serve->pidfile_written)
        pidfile_remove(serve->pidfile);
    /* The last: who asked for the stop waits for the end of its connection. */
    if (serve->control)
        control_destroy(serve->control);
}

/* ---- The command ---- */

static int
serve_on_loop(struct serve *serve)
{
    const struct file_options options = {
        .readonly = serve->readonly, .claim = true, .claim_wait_ns = CLI_CLAIM_WAIT_NS};
    int r;

    r = devices_open(serve->loop, serve->paths, serve->count, &options, serve->devices,
                     &serve->error);
    if (r < 0)
        return command_failed(COMMAND, &serve->error);
    /* Recovery may take hours. Nothing is public yet, and a start that is cut off is as good as one
     * that a crash cut off, so nobody has to wait for its end. */
    signals_end_us();
    loop_run_task(serve->loop, start_array, serve);
    signals_hold();
    if (serve->result < 0) {
        devices_close(serve->loop, serve->devices, serve->count);
        return command_failed(COMMAND, &serve->error);
    }
    loop_run_task(serve->loop, supervise, serve);
    loop_run_task(serve->loop, destroy_all, serve);
    if (serve->result < 0)
        return command_failed(COMMAND, &serve->error);
    return serve->status;
}

int
cmd_serve(int argc, char **argv)
{
    struct serve *serve = calloc(1, sizeof *serve);
    int status;

    if (!serve)
        return command_failed(COMMAND, &(struct error){.code = -ENOMEM});
    serve->memory_bytes = MEMORY_BYTES_DEFAULT;
    serve->command_timer.fire = command_overdue;
    serve->control_listener.fd = -1;
    status = parse_options(serve, argc, argv);
    if (status >= 0) {
        free(serve);
        return status;
    }
    progress_init(&serve->progress, serve->json);
    serve->devices = calloc(serve->count, sizeof(struct device *));
    if (!serve->devices) {
        free(serve);
        return command_failed(COMMAND, &(struct error){.code = -ENOMEM});
    }
    serve->signal_fd = signals_open(&serve->error);
    if (serve->signal_fd >= 0 &&
        loop_create(&(struct loop_config){0}, &serve->loop, &serve->error) == 0) {
        status = serve_on_loop(serve);
        loop_destroy(serve->loop);
    } else {
        status = command_failed(COMMAND, &serve->error);
    }
    if (serve->signal_fd >= 0)
        (void)close(serve->signal_fd); /* nothing to fail */
    if (serve->command_pid)
        (void)close(serve->command_fd); /* nothing to fail */
    free(serve->devices);
    free(serve);
    return status;
}
