/*
 * start_options.h: options of every subcommand that starts an array.
 */
#ifndef STRIPELOG_CLI_START_OPTIONS_H
#define STRIPELOG_CLI_START_OPTIONS_H

#include "array/array.h"
#include "base/base.h"

#define MEMORY_BYTES_DEFAULT (256 * MIB)
#define MEMORY_BYTES_MIN     (64 * MIB)

/* --force[=DANGER,...]: adds to the set (assemble.h); text NULL is dirty-degraded. -1, or the exit
 * status after a message. */
int force_parse(const char *command, const char *text, unsigned *force) must_check;

/* --memory=SIZE. -1, or the exit status after a message. */
int memory_parse(const char *command, const char *text, uint64_t *memory_bytes) must_check;

/* --journal-mode=MODE, as above. */
int journal_mode_parse(const char *command, const char *text, enum journal_mode *mode) must_check;

/* --write-out=NAME=NUMBER,...: what is named is set. The same. */
int write_out_parse(const char *command, const char *text,
                    struct write_back_tunables *tunables) must_check;

#endif
