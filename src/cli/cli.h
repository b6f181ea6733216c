/*
 * cli.h: what the subcommands share.
 *
 * A subcommand is one function in one file: it reads its options, calls the library, prints. Only
 * here are errors turned into lines for a person: to stderr, each "stripelog: ...", what can be
 * done before the cause, the cause on the last one.
 */
#ifndef STRIPELOG_CLI_H
#define STRIPELOG_CLI_H

#include "base/base.h"
#include "base/error.h"
#include "device/file.h"
#include "format/superblock.h"

#include <jansson.h>

enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
};

/* Of a whole claim: another process may be on its way out. */
#define CLI_CLAIM_WAIT_NS (5ull * 1000 * 1000 * 1000)

/* argv[0] is the subcommand's name. Return an exit status. */
int cmd_create(int argc, char **argv);
int cmd_examine(int argc, char **argv);
int cmd_journal(int argc, char **argv);
int cmd_journal_mode(int argc, char **argv);
int cmd_recover(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_stop(int argc, char **argv);

/* ---- Messages ---- */

/* Each line of the text to stderr, with the program's name before it. */
void message(const char *format, ...) printf_like(1, 2);

/* "COMMAND: what cannot be done", and the error, cause last. Returns CLI_FAILED. */
int command_failed(const char *command, const struct error *error);

/* The command line is wrong; names --help. Returns CLI_USAGE. */
int usage_failed(const char *command, const char *format, ...) printf_like(2, 3);

/* An option that all commands have, or that getopt_long could not make sense of (it returned '?' or
 * ':'). Returns an exit status. */
int option_common(const char *command, const char *help, int option, char **argv);

/* Help or version to stdout; CLI_OK, or CLI_FAILED if stdout takes no more. */
int print_help(const char *text);
int print_version(void);

/* Flushes stdout: what was printed counts only when it arrived. */
int finish_output(const char *command, int status);

/* ---- Devices ---- */

/*
 * Opens the devices of all paths but NULL ones, in order; devices[i] is NULL where the path is.
 * The same one twice is refused before any is claimed: the second claim would only find the first.
 * On failure none is open. Runs the loop: not to be called in a task.
 */
int devices_open(struct loop *loop, const char *const *paths, unsigned count,
                 const struct file_options *options, struct device **devices,
                 struct error *error) must_check;
/* NULL ones are skipped. */
void devices_close(struct loop *loop, struct device **devices, unsigned count);

/* ---- JSON ---- */

json_t *json_uuid(const uint8_t uuid[SUPERBLOCK_UUID_BYTES]);
/* The name as UTF-8 if it is, else with \xNN. */
json_t *json_name(const struct superblock *sb);
/* To stdout with a newline, and gives up the reference. */
int json_print(json_t *json) must_check;

#endif
