/*
 * main.c: finds the subcommand and hands over.
 */
#include "cli/cli.h"

#include <signal.h>

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"create", cmd_create},   {"examine", cmd_examine},
    {"journal", cmd_journal}, {"journal-mode", cmd_journal_mode},
    {"recover", cmd_recover}, {"serve", cmd_serve},
    {"status", cmd_status},   {"stop", cmd_stop},
};

static const char help[] =
    "Usage: stripelog COMMAND [OPTION ...] DEVICE ...|ARRAY\n"
    "\n"
    "RAID-4/5/6 arrays in user space, on disk the same as Linux md.\n"
    "\n"
    "Commands:\n"
    "  create        make a new array\n"
    "  examine       show what superblocks say, and whether the array would start\n"
    "  journal       show what a journal holds, entry by entry\n"
    "  journal-mode  show, or change, how a running array uses its journal\n"
    "  recover       recover the journal, or resync, and stop clean\n"
    "  serve         serve an array over NBD\n"
    "  status        show how a running array is\n"
    "  stop          stop a running array\n"
    "\n"
    "Options:\n"
    "  --help     print this and exit; \"stripelog COMMAND --help\" for a command\n"
    "  --version  print the version and exit\n";

int
main(int argc, char **argv)
{
    /* A reader of our output that goes away is an error of a write, not a reason to die. */
    (void)signal(SIGPIPE, SIG_IGN);

    if (argc < 2)
        return usage_failed(NULL, "no command is given");
    if (strcmp(argv[1], "--help") == 0)
        return print_help(help);
    if (strcmp(argv[1], "--version") == 0)
        return print_version();
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (argv[1][0] == '-')
        return usage_failed(NULL, "%s: no such option", argv[1]);
    return usage_failed(NULL, "%s: no such command", argv[1]);
}
