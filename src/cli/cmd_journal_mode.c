/*
 * cmd_journal_mode.c: how a running array uses its journal; and change that.
 */
#include "cli/cli.h"
#include "cli/control_client.h"
#include "control/protocol.h"

#include <getopt.h>
#include <unistd.h>

#define COMMAND "journal-mode"

static const char help[] =
    "Usage: stripelog journal-mode [OPTION ...] ARRAY [write-through|write-back]\n"
    "\n"
    "Prints how a running array uses its journal, or changes it. To write-through it returns\n"
    "when everything that was cached is on the members. ARRAY is the array's uuid or name, or\n"
    "how one of them begins, or the path of the server's control socket.\n"
    "\n"
    "Options:\n"
    "  --json     print the mode in use, the mode wanted, and why they differ, as JSON\n"
    "  --help     print this and exit\n"
    "  --version  print the version and exit\n";

struct options {
    bool json;
    const char *array, *mode; /* mode may be NULL */
};

/* An exit status, or -1 to go on. */
static int
parse_options(struct options *options, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    enum journal_mode mode;
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 'j':
            options->json = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (optind == argc)
        return usage_failed(COMMAND, "no array is named");
    if (optind + 2 < argc)
        return usage_failed(COMMAND, "an array and a mode are all that is expected");
    options->array = argv[optind];
    options->mode = argv[optind + 1]; /* argv ends with NULL */
    if (options->mode && control_mode_parse(options->mode, &mode) < 0)
        return usage_failed(COMMAND, "%s: write-through or write-back", options->mode);
    return -1;
}

static int
print_mode(const struct options *options, json_t *reply)
{
    const char *mode = json_string_value(json_object_get(reply, "mode"));
    const char *reason = json_string_value(json_object_get(reply, "mode_reason"));
    const char *wanted = json_string_value(json_object_get(reply, "mode_wanted"));

    if (options->json) {
        (void)json_object_del(reply, "ok"); /* it is there */
        return json_print(json_incref(reply));
    }
    if (!options->mode)
        (void)printf("%s\n", mode ? mode : "?"); /* finish_output looks for errors */
    if (reason && wanted)
        message(COMMAND ": %s is wanted, but %s", wanted, reason);
    return 0;
}

static int
ask(const struct options *options, json_t **reply, struct error *error)
{
    struct progress progress;
    int fd, r;

    if (!options->mode)
        return control_ask_array(options->array, json_pack("{s:s}", "command", "journal-mode"),
                                 CONTROL_ANSWER_MS, reply, error);
    fd = control_connect(options->array, error);
    if (fd < 0)
        return fd;
    progress_init(&progress, options->json);
    r = control_ask_patiently(
        fd, json_pack("{s:s, s:s}", "command", "journal-mode", "mode", options->mode), &progress,
        reply, error);
    (void)close(fd); /* nothing to lose */
    return r;
}

int
cmd_journal_mode(int argc, char **argv)
{
    struct options options = {0};
    struct error error = {0};
    json_t *reply = NULL;
    const int status = parse_options(&options, argc, argv);
    int r;

    if (status >= 0)
        return status;
    r = ask(&options, &reply, &error);
    if (r == 0) {
        r = print_mode(&options, reply);
        json_decref(reply);
    }
    return r < 0 ? command_failed(COMMAND, &error) : finish_output(COMMAND, CLI_OK);
}
