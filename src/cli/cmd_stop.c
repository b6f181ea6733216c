/*
 * cmd_stop.c: stop a running array in order, as SIGTERM to its server does, and wait for it.
 */
#include "cli/cli.h"
#include "cli/control_client.h"

#include <getopt.h>
#include <unistd.h>

#define COMMAND "stop"

/* From "stopped clean" to the end of the server's use of the devices. */
#define LET_GO_MS 10000

static const char help[] =
    "Usage: stripelog stop [OPTION ...] ARRAY\n"
    "\n"
    "Stops an array: its server answers the requests it has received, brings everything to the\n"
    "members, marks the array clean, and ends. Waits for that. ARRAY is the array's uuid or\n"
    "name, or how one of them begins, or the path of the server's control socket.\n"
    "\n"
    "Options:\n"
    "  --help     print this and exit\n"
    "  --version  print the version and exit\n";

/* An exit status, or -1 to go on. */
static int
parse_options(const char **array, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    int option;

    opterr = 0;
    option = getopt_long(argc, argv, ":", long_options, NULL);
    if (option != -1)
        return option_common(COMMAND, help, option, argv);
    if (optind + 1 != argc)
        return usage_failed(COMMAND,
                            optind == argc ? "no array is named" : "more than one array is named");
    *array = argv[optind];
    return -1;
}

int
cmd_stop(int argc, char **argv)
{
    struct progress progress;
    struct error error = {0};
    json_t *reply = NULL;
    const char *array = NULL;
    const int status = parse_options(&array, argc, argv);
    int fd, r;

    if (status >= 0)
        return status;
    fd = control_connect(array, &error);
    if (fd < 0)
        return command_failed(COMMAND, &error);
    progress_init(&progress, false);
    r = control_ask_patiently(fd, json_pack("{s:s}", "command", "stop"), &progress, &reply, &error);
    if (r == 0)
        control_wait_closed(fd, LET_GO_MS);
    json_decref(reply);
    (void)close(fd); /* nothing to lose */
    return r < 0 ? command_failed(COMMAND, &error) : CLI_OK;
}
