/*
 * cmd_recover.c: bring an array to rest: its journal recovered, and its resync done; no server.
 *
 * Or, without writing to the devices, say what that would do, or copy what it would leave into a
 * file: then the array is started readonly, and shows itself as a recovery would leave it.
 */
#include "array/array.h"
#include "cli/cli.h"
#include "cli/log_text.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "cli/start_options.h"

#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define COMMAND     "recover"
#define COPY_BYTES  (4 * MIB)
#define PROGRESS_NS UINT64_C(1000000000)

static const char help[] =
    "Usage: stripelog recover [OPTION ...] DEVICE ...\n"
    "\n"
    "Assembles the array whose members the devices are, in any order, recovers its journal,\n"
    "resyncs it if its parity is in doubt, and stops it clean.\n"
    "\n"
    "Options:\n"
    "  --dry-run         write nothing; say what would be done\n"
    "  --to=FILE         write nothing to the devices; copy what the array would hold to\n"
    "                    a new file\n"
    "  --force[=DANGER]  start in spite of dirty-degraded (the default), stale-member,\n"
    "                    drop-journal, new-journal or truncate-journal; several with commas\n"
    "  --memory=SIZE     for everything, from 64M (256M)\n"
    "  --json            print what was done, and with --dry-run each stripe, as JSON;\n"
    "                    tell what happens meanwhile as JSON, an object a line\n"
    "  --help            print this and exit\n"
    "  --version         print the version and exit\n";

struct recover {
    bool dry_run, json;
    const char *to;
    unsigned force;
    uint64_t memory_bytes;
    unsigned count;
    const char *const *paths;

    struct loop *loop;
    struct device **devices;
    bool devices_given; /* they are the array's */
    struct array *array;
    struct progress progress;
    int result;
    struct error error;
};

/* ---- Options ---- */

/* An exit status, or -1 to go on. */
static int
parse_options(struct recover *recover, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"dry-run", no_argument, NULL, 'd'},     {"to", required_argument, NULL, 't'},
        {"force", optional_argument, NULL, 'f'}, {"memory", required_argument, NULL, 'm'},
        {"json", no_argument, NULL, 'j'},        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},     {NULL, 0, NULL, 0},
    };
    int status = -1;
    int option;

    opterr = 0;
    while (status < 0 && (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 'd':
            recover->dry_run = true;
            break;
        case 't':
            recover->to = optarg;
            break;
        case 'f':
            status = force_parse(COMMAND, optarg, &recover->force);
            break;
        case 'm':
            status = memory_parse(COMMAND, optarg, &recover->memory_bytes);
            break;
        case 'j':
            recover->json = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (status >= 0)
        return status;
    if (recover->dry_run && recover->to)
        return usage_failed(COMMAND, "--dry-run and --to exclude each other");
    if (optind == argc)
        return usage_failed(COMMAND, "no device is given");
    recover->count = (unsigned)(argc - optind);
    recover->paths = (const char *const *)(argv + optind);
    return -1;
}

/* ---- Copying ---- */

static int
write_whole(int fd, const uint8_t *memory, size_t length, uint64_t offset)
{
    while (length > 0) {
        const ssize_t n = pwrite(fd, memory, length, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        memory += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static bool
all_zero(const uint8_t *memory, size_t length)
{
    return memory[0] == 0 && memcmp(memory, memory + 1, length - 1) == 0;
}

/* Blocks of zeros become holes. */
static int
write_sparse(int fd, const uint8_t *memory, size_t length, uint64_t offset)
{
    for (size_t at = 0; at < length;) {
        const bool zero = all_zero(memory + at, BLOCK_BYTES);
        size_t end = at + BLOCK_BYTES;
        int r = 0;

        while (end < length && all_zero(memory + end, BLOCK_BYTES) == zero)
            end += BLOCK_BYTES;
        if (!zero)
            r = write_whole(fd, memory + at, end - at, offset + at);
        if (r < 0)
            return r;
        at = end;
    }
    return 0;
}

static void
copy_progress(struct recover *recover, uint64_t done, uint64_t total, uint64_t began_ns,
              uint64_t *told_ns)
{
    const uint64_t now = loop_clock_ns(recover->loop);
    struct array_event event = {
        .kind = ARRAY_RECOVERY_PROGRESS,
        .phase = RECOVERY_WRITING_OUT,
        .done_bytes = done,
        .total_bytes = total,
        .remaining_ms = UINT64_MAX,
    };

    if (now - *told_ns < PROGRESS_NS)
        return;
    *told_ns = now;
    event.rate_bytes_per_s = (uint64_t)((double)done * 1e9 / (double)(now - began_ns));
    if (event.rate_bytes_per_s > 0)
        event.remaining_ms = (total - done) * 1000 / event.rate_bytes_per_s;
    progress_event(&recover->progress, &event);
}

static task_fn int
copy_content(struct recover *recover, int fd, uint64_t size)
{
    const uint64_t began_ns = loop_clock_ns(recover->loop);
    uint64_t told_ns = began_ns;
    uint8_t *memory = aligned_alloc(BLOCK_BYTES, COPY_BYTES);
    int r = memory ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < size && r == 0; at += COPY_BYTES) {
        const uint64_t length = min_u64(COPY_BYTES, size - at);

        r = array_read(recover->array, memory, at, length);
        if (r < 0) {
            (void)error_set(&recover->error, r,
                            "the array cannot be read at %" PRIu64
                            ": too much of a stripe is missing or unreadable",
                            at); /* r says so */
            break;
        }
        r = write_sparse(fd, memory, length, at);
        if (r < 0)
            (void)error_set(&recover->error, r, "%s: %s", recover->to,
                            strerror(-r)); /* r says so */
        copy_progress(recover, at, size, began_ns, &told_ns);
    }
    free(memory);
    if (r == -ENOMEM)
        return error_set(&recover->error, r, "out of memory");
    return r;
}

static task_fn int
copy_to_file(struct recover *recover)
{
    const int fd = open(recover->to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct array_status status;
    int r;

    if (fd < 0)
        return error_set(&recover->error, -errno, "%s: %s", recover->to, strerror(errno));
    array_status(recover->array, &status);
    r = copy_content(recover, fd, status.size_bytes);
    if (r == 0 && (ftruncate(fd, (off_t)status.size_bytes) < 0 || fsync(fd) < 0))
        r = error_set(&recover->error, -errno, "%s: %s", recover->to, strerror(errno));
    if (close(fd) < 0 && r == 0)
        r = error_set(&recover->error, -errno, "%s: %s", recover->to, strerror(errno));
    if (r < 0)
        (void)unlink(recover->to); /* half a copy is none */
    return r;
}

/* ---- Telling ---- */

static int
print_json(const struct recover *recover, const struct array_status *status)
{
    json_t *json =
        json_pack("{s:b, s:b, s:b, s:I, s:I, s:I}", "dry_run", (int)recover->dry_run, "journal",
                  (int)status->recovered, "degraded", (int)(status->degraded > 0), "entries",
                  (json_int_t)status->log.entries, "data_only_stripes",
                  (json_int_t)status->recovery.data_only_stripes, "data_parity_stripes",
                  (json_int_t)status->recovery.data_parity_stripes);
    const struct journal_records *records =
        recover->dry_run ? array_log_records(recover->array) : NULL;

    if (recover->dry_run) {
        json_t *stripes = json_array();

        for (size_t at = 0; records && at < records->count;)
            json_array_append_new(stripes, log_stripe_json(status->geometry, records, &at));
        json_object_set_new(json, "stripes", stripes);
        json_object_set_new(json, "resync_needed", json_boolean(status->assembly->dirty));
    }
    return json_print(json);
}

static int
print_result(const struct recover *recover, const struct array_status *status)
{
    const char *would = recover->dry_run ? "would be " : "";

    if (recover->json)
        return print_json(recover, status);
    if (status->recovered)
        (void)printf("%" PRIu64 " data-parity stripes %sreplayed and %" PRIu64
                     " data-only stripes %swritten out, of %" PRIu64 " entries of the journal\n",
                     status->recovery.data_parity_stripes, would,
                     status->recovery.data_only_stripes, would, status->log.entries);
    if (!status->recovered && status->assembly->dirty)
        (void)printf("the array was not shut down: parity %smade to agree\n", would);
    if (status->recovered && status->assembly->dirty)
        (void)printf("parity was in doubt: it %smade to agree\n",
                     recover->dry_run ? would : "was ");
    if (!status->recovered && !status->assembly->dirty)
        (void)printf("the array was clean: nothing %sdone\n", would);
    if (recover->to)
        (void)printf("what the array then holds is in %s\n", recover->to);
    return 0;
}

/* ---- The command ---- */

static void
array_event(void *owner, const struct array_event *event)
{
    struct recover *recover = owner;

    progress_event(&recover->progress, event);
}

static task_fn int
recover_array(struct recover *recover)
{
    struct array_status status;
    int r;

    if (recover->to) {
        r = copy_to_file(recover);
        if (r < 0)
            return r;
    }
    array_status(recover->array, &status);
    if (recover->dry_run && status.assembly->journal_expected && !status.recovered &&
        !(recover->force & FORCE_DROP_JOURNAL))
        return error_set(&recover->error, -ENODEV,
                         "name the journal device too; or --force=drop-journal goes on without it "
                         "and loses what only it has\n"
                         "recovery is not possible without the journal");
    if (!status.readonly && !array_resync_wait(recover->array))
        return error_set(&recover->error, -EIO, "the resync could not be finished");
    r = array_stop(recover->array);
    if (r < 0)
        return error_set(&recover->error, r, "the array cannot be stopped clean: %s", strerror(-r));
    return print_result(recover, &status);
}

static task_fn void
recover_main(void *arg)
{
    struct recover *recover = arg;
    const struct array_config config = {
        .devices = recover->devices,
        .device_count = recover->count,
        .readonly = recover->dry_run || recover->to,
        .force = recover->force,
        .memory_bytes = recover->memory_bytes / 2,
        .event = array_event,
        .owner = recover,
    };

    recover->result = array_start(recover->loop, &config, &recover->array, &recover->error);
    if (recover->result < 0)
        return;
    recover->devices_given = true;
    recover->result = recover_array(recover);
    array_destroy(recover->array);
}

static int
recover_run(struct recover *recover)
{
    const struct file_options file_options = {.readonly = recover->dry_run || recover->to,
                                              .claim = true,
                                              .claim_wait_ns = CLI_CLAIM_WAIT_NS};
    int r;

    r = loop_create(&(struct loop_config){0}, &recover->loop, &recover->error);
    if (r < 0)
        return command_failed(COMMAND, &recover->error);
    r = devices_open(recover->loop, recover->paths, recover->count, &file_options, recover->devices,
                     &recover->error);
    if (r == 0) {
        loop_run_task(recover->loop, recover_main, recover);
        r = recover->result;
        if (!recover->devices_given)
            devices_close(recover->loop, recover->devices, recover->count);
    }
    loop_destroy(recover->loop);
    return r < 0 ? command_failed(COMMAND, &recover->error) : finish_output(COMMAND, CLI_OK);
}

int
cmd_recover(int argc, char **argv)
{
    struct recover recover = {.memory_bytes = MEMORY_BYTES_DEFAULT};
    int status = parse_options(&recover, argc, argv);

    if (status >= 0)
        return status;
    recover.devices = calloc(recover.count, sizeof(struct device *));
    if (!recover.devices) {
        (void)error_set(&recover.error, -ENOMEM, "out of memory"); /* told below */
        return command_failed(COMMAND, &recover.error);
    }
    progress_init(&recover.progress, recover.json);
    status = recover_run(&recover);
    free(recover.devices);
    return status;
}
