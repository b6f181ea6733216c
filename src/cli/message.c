/*
 * message.c: lines for people, and JSON for programs.
 */
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PROGRAM "stripelog"

/* One write a line, so that lines of several processes do not mix. */
static void
print_lines(const char *text)
{
    while (*text) {
        const size_t length = strcspn(text, "\n");
        char line[1024];
        const int bytes =
            snprintf(line, sizeof line, PROGRAM ": %.*s\n", (int)min_u64(length, 900), text);

        /* Nobody is left to tell that stderr is closed. */
        if (bytes > 0 && write(STDERR_FILENO, line, (size_t)bytes) < 0)
            return;
        text += length + (text[length] == '\n');
    }
}

void
message(const char *format, ...)
{
    char text[2048];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args); /* cut off is fine */
    va_end(args);
    print_lines(text);
}

int
command_failed(const char *command, const struct error *error)
{
    const char *text = error->text;

    if (!*text)
        text = strerror(error->code < 0 ? -error->code : EIO);
    /* A hint, if there is one, stands before the cause; the command's name before both. */
    message("%s: %s", command, text);
    return CLI_FAILED;
}

int
usage_failed(const char *command, const char *format, ...)
{
    char text[600];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (command) {
        message("\"" PROGRAM " %s --help\" shows how it is used", command);
        message("%s: %s", command, text);
    } else {
        message("\"" PROGRAM " --help\" shows how it is used");
        message("%s", text);
    }
    return CLI_USAGE;
}

int
print_help(const char *text)
{
    (void)fputs(text, stdout); /* finish_output looks for errors */
    return finish_output("help", CLI_OK);
}

int
print_version(void)
{
    (void)puts(PROGRAM " " STRIPELOG_VERSION); /* as above */
    return finish_output("version", CLI_OK);
}

int
option_common(const char *command, const char *help, int option, char **argv)
{
    if (option == 'h')
        return print_help(help);
    if (option == 'v')
        return print_version();
    /* getopt_long leaves the culprit just behind. */
    return usage_failed(command, "%s: no such option, or its value is missing or not expected",
                        argv[optind - 1]);
}

int
finish_output(const char *command, int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    message("%s: cannot write to standard output: %s", command, strerror(errno));
    return CLI_FAILED;
}

json_t *
json_uuid(const uint8_t uuid[SUPERBLOCK_UUID_BYTES])
{
    char text[SUPERBLOCK_UUID_TEXT_BYTES];

    superblock_uuid_text(uuid, text);
    return json_string(text);
}

json_t *
json_name(const struct superblock *sb)
{
    json_t *name = json_string(sb->set_name);
    char text[SUPERBLOCK_NAME_TEXT_BYTES];

    if (name)
        return name;
    superblock_name_text(sb, text);
    return json_string(text);
}

int
json_print(json_t *json)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;

    json_decref(json);
    if (!text)
        return -ENOMEM;
    (void)puts(text); /* finish_output looks for errors */
    free(text);
    return 0;
}
