/*
 * cmd_status.c: how a running array is, as its server says.
 */
#include "cli/cli.h"
#include "cli/control_client.h"
#include "cli/size.h"

#include <getopt.h>
#include <inttypes.h>

#define COMMAND "status"

/* Of --test, as mdadm --detail --test has them. */
enum test_exit {
    TEST_FINE = 0,
    TEST_DEGRADED = 1,
    TEST_FAILED = 2,
    TEST_UNKNOWN = 4,
};

static const char help[] =
    "Usage: stripelog status [OPTION ...] ARRAY\n"
    "\n"
    "Asks the server of an array how it is. ARRAY is the array's uuid or name, or how one of\n"
    "them begins, or the path of the server's control socket.\n"
    "\n"
    "Options:\n"
    "  --json     print it as JSON\n"
    "  --test     exit with 0 if the array is fine, 1 if it is degraded, 2 if it has failed,\n"
    "             4 if it cannot be asked\n"
    "  --help     print this and exit\n"
    "  --version  print the version and exit\n";

struct options {
    bool json, test;
    const char *array;
};

/* An exit status, or -1 to go on. */
static int
parse_options(struct options *options, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"json", no_argument, NULL, 'j'},
        {"test", no_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 'j':
            options->json = true;
            break;
        case 't':
            options->test = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (optind + 1 != argc)
        return usage_failed(COMMAND,
                            optind == argc ? "no array is named" : "more than one array is named");
    options->array = argv[optind];
    return -1;
}

/* ---- For people ---- */

/* What a server of another version does not tell reads as nothing. */
static const char *
text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));

    return text ? text : "?";
}

static uint64_t
number_of(const json_t *json, const char *key)
{
    const json_int_t number = json_integer_value(json_object_get(json, key));

    return number > 0 ? (uint64_t)number : 0;
}

static bool
true_of(const json_t *json, const char *key)
{
    return json_is_true(json_object_get(json, key));
}

static void line(const char *name, const char *format, ...) printf_like(2, 3);

static void
line(const char *name, const char *format, ...)
{
    va_list args;

    (void)printf("%-14s ", name); /* finish_output looks for errors, here and below */
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    (void)putchar('\n');
}

static const char *
size_of(const json_t *json, const char *key, char text[SIZE_TEXT_BYTES])
{
    size_text(number_of(json, key), text);
    return text;
}

static void
print_state(const json_t *status)
{
    const json_t *resync = json_object_get(status, "resync");
    const uint64_t done = number_of(resync, "done_bytes");
    const uint64_t total = number_of(resync, "total_bytes");
    char parity[64] = "";

    if (done < total)
        (void)snprintf(parity, sizeof parity, ", %s %.1f %%",
                       true_of(resync, "running") ? "resync at" : "parity is good up to",
                       (double)done * 100 / (double)total);
    line("state", "%s%s%s", text_of(status, "state"),
         number_of(status, "degraded") > 0 ? ", degraded" : "", parity);
}

static void
print_members(const json_t *status)
{
    const json_t *entry;
    size_t i;

    line("members", "%" PRIu64 ", %" PRIu64 " of them missing", number_of(status, "raid_devices"),
         number_of(status, "degraded"));
    json_array_foreach(json_object_get(status, "members"), i, entry)(void)
        printf("  %-12" PRIu64 " %-11s %s\n", number_of(entry, "member"), text_of(entry, "state"),
               json_is_string(json_object_get(entry, "device")) ? text_of(entry, "device") : "");
    json_array_foreach(json_object_get(status, "left_out"), i, entry)(void)
        printf("  %-12s %-11s %s\n", "left out", text_of(entry, "state"), text_of(entry, "device"));
}

static void
print_cache(const json_t *cache)
{
    char a[SIZE_TEXT_BYTES], b[SIZE_TEXT_BYTES];

    if (!json_is_object(cache))
        return;
    line("  cached", "%s of %s, in %" PRIu64 " stripes", size_of(cache, "cached_bytes", a),
         size_of(cache, "cached_max_bytes", b), number_of(cache, "stripes"));
    line("  in memory", "%s of %s", size_of(cache, "in_memory_bytes", a),
         size_of(cache, "in_memory_max_bytes", b));
    line("  written out", "%" PRIu64 " blocks, of %" PRIu64 " cached and %" PRIu64 " overwritten",
         number_of(cache, "blocks_written_out"), number_of(cache, "blocks_cached"),
         number_of(cache, "blocks_overwritten"));
    line("  read", "%" PRIu64 " blocks from memory, %" PRIu64 " from the journal",
         number_of(cache, "blocks_read_from_memory"), number_of(cache, "blocks_read_from_journal"));
    if (number_of(cache, "blocks_lost") > 0)
        line("  lost", "%" PRIu64 " blocks", number_of(cache, "blocks_lost"));
}

static void
print_journal(const json_t *journal)
{
    const char *reason = json_string_value(json_object_get(journal, "mode_reason"));
    char a[SIZE_TEXT_BYTES], b[SIZE_TEXT_BYTES];

    if (!json_is_object(journal)) {
        line("journal", "none");
        return;
    }
    line("journal", "%-11s %s", text_of(journal, "state"),
         json_is_string(json_object_get(journal, "device")) ? text_of(journal, "device") : "");
    if (json_object_get(journal, "ring_bytes"))
        line("  ring", "%s, %s used", size_of(journal, "ring_bytes", a),
             size_of(journal, "used_bytes", b));
    line("  mode", "%s%s", text_of(journal, "mode"),
         true_of(journal, "draining") ? ", draining" : "");
    if (reason)
        line("  wanted", "%s, but %s", text_of(journal, "mode_wanted"), reason);
    print_cache(json_object_get(journal, "cache"));
}

static void
print_status(const json_t *status)
{
    const json_t *layout = json_object_get(status, "layout");
    const json_t *uri;
    char chunk[SIZE_TEXT_BYTES], size[SIZE_TEXT_BYTES];
    size_t i;

    line("name", "%s", text_of(status, "name"));
    line("uuid", "%s", text_of(status, "uuid"));
    print_state(status);
    line("level", "RAID-%" PRIu64 "%s%s, chunk %s", number_of(status, "level"),
         json_is_string(layout) ? ", " : "",
         json_is_string(layout) ? json_string_value(layout) : "",
         size_of(status, "chunk_bytes", chunk));
    line("size", "%s (%" PRIu64 " bytes)", size_of(status, "size_bytes", size),
         number_of(status, "size_bytes"));
    print_members(status);
    if (number_of(status, "blocks_corrected") > 0)
        line("corrected", "%" PRIu64 " unreadable blocks", number_of(status, "blocks_corrected"));
    print_journal(json_object_get(status, "journal"));
    json_array_foreach(json_object_get(status, "uris"), i, uri)
        line("served at", "%s", json_string_value(uri));
    line("process", "%" PRIu64, number_of(status, "pid"));
}

/* ---- The command ---- */

static int
test_status(const json_t *status)
{
    const json_t *journal = json_object_get(status, "journal");

    if (strcmp(text_of(status, "state"), "failed") == 0)
        return TEST_FAILED;
    if (number_of(status, "degraded") > 0 || strcmp(text_of(journal, "state"), "failed") == 0)
        return TEST_DEGRADED;
    return TEST_FINE;
}

/* Where 1 and 2 say something of the array, an error is another status. */
static bool
is_test(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--test") == 0)
            return true;
    return false;
}

/* An exit status; CLI_FAILED or CLI_USAGE only where nothing is said of the array. *told: it is. */
static int
run_status(const struct options *options, bool *told)
{
    struct error error = {0};
    json_t *reply = NULL, *status;
    int r = control_ask_array(options->array, json_pack("{s:s}", "command", "status"),
                              CONTROL_ANSWER_MS, &reply, &error);
    int tested;

    if (r < 0)
        return command_failed(COMMAND, &error);
    status = json_object_get(reply, "status");
    tested = options->test ? test_status(status) : CLI_OK;
    if (options->json)
        r = json_print(json_incref(status));
    else
        print_status(status);
    json_decref(reply);
    if (r < 0)
        return command_failed(COMMAND, &(struct error){.code = r});
    *told = finish_output(COMMAND, CLI_OK) == CLI_OK;
    return *told ? tested : CLI_FAILED;
}

int
cmd_status(int argc, char **argv)
{
    /* getopt_long moves what is no option to the end. */
    const bool test = is_test(argc, argv);
    struct options options = {0};
    bool told = false;
    int status = parse_options(&options, argc, argv);

    if (status < 0)
        status = run_status(&options, &told);
    return test && !told && status != CLI_OK ? TEST_UNKNOWN : status;
}
