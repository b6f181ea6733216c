/*
 * start_options.c: options of every subcommand that starts an array.
 */
#include "cli/start_options.h"

#include "cli/cli.h"
#include "cli/size.h"
#include "control/protocol.h"

#include <stdio.h>

int
force_parse(const char *command, const char *text, unsigned *force)
{
    static const struct {
        const char *name;
        unsigned bit;
    } dangers[] = {
        {"dirty-degraded", FORCE_DIRTY_DEGRADED},     {"stale-member", FORCE_STALE_MEMBER},
        {"drop-journal", FORCE_DROP_JOURNAL},         {"new-journal", FORCE_NEW_JOURNAL},
        {"truncate-journal", FORCE_TRUNCATE_JOURNAL},
    };

    if (!text) {
        *force |= FORCE_DIRTY_DEGRADED;
        return -1;
    }
    for (;;) {
        const size_t length = strcspn(text, ",");
        size_t i;

        for (i = 0; i < ARRAY_LEN(dangers); i++)
            if (strlen(dangers[i].name) == length && strncmp(text, dangers[i].name, length) == 0)
                break;
        if (i == ARRAY_LEN(dangers))
            return usage_failed(command,
                                "--force=%.*s: the dangers are dirty-degraded, stale-member, "
                                "drop-journal, new-journal and truncate-journal",
                                (int)length, text);
        *force |= dangers[i].bit;
        if (text[length] == '\0')
            return -1;
        text += length + 1;
    }
}

int
memory_parse(const char *command, const char *text, uint64_t *memory_bytes)
{
    struct error error = {0};

    if (size_parse(text, SIZE_BARE_REFUSED, memory_bytes, &error) < 0)
        return usage_failed(command, "--memory: %s", error.text);
    if (*memory_bytes < MEMORY_BYTES_MIN)
        return usage_failed(command, "--memory=%s: at least %u MiB are needed", text,
                            (unsigned)(MEMORY_BYTES_MIN / MIB));
    return -1;
}

int
journal_mode_parse(const char *command, const char *text, enum journal_mode *mode)
{
    if (control_mode_parse(text, mode) < 0)
        return usage_failed(command, "--journal-mode=%s: write-through or write-back", text);
    return -1;
}

int
write_out_parse(const char *command, const char *text, struct write_back_tunables *tunables)
{
    uint64_t idle_s = 0;
    const struct {
        const char *name;
        uint64_t max;
        unsigned *value; /* NULL: idle_s */
    } limits[] = {
        {"high", 95, &tunables->high_percent},        {"moderate", 95, &tunables->moderate_percent},
        {"tight", 90, &tunables->tight_percent},      {"batch", 1024, &tunables->batch_groups},
        {"at-once", 1024, &tunables->write_outs_max}, {"idle", 24 * 60 * 60, NULL},
    };

    for (;;) {
        const size_t length = strcspn(text, ","), name_length = strcspn(text, "=,");
        struct error error = {0};
        uint64_t value = 0;
        char number[24];
        size_t i;

        for (i = 0; i < ARRAY_LEN(limits); i++)
            if (strlen(limits[i].name) == name_length &&
                strncmp(text, limits[i].name, name_length) == 0)
                break;
        if (i == ARRAY_LEN(limits) || name_length == length)
            return usage_failed(command,
                                "--write-out=%.*s: NAME=NUMBER with high, moderate, tight, batch, "
                                "at-once or idle",
                                (int)length, text);
        if ((size_t)snprintf(number, sizeof number, "%.*s", (int)(length - name_length - 1),
                             text + name_length + 1) >= sizeof number ||
            count_parse(number, limits[i].max, &value, &error) < 0 || value == 0)
            return usage_failed(command, "--write-out=%.*s: from 1 to %llu", (int)length, text,
                                (unsigned long long)limits[i].max);
        if (limits[i].value != NULL)
            *limits[i].value = (unsigned)value;
        else
            idle_s = value;
        if (text[length] == '\0')
            break;
        text += length + 1;
    }
    if (idle_s > 0)
        tunables->idle_ns = idle_s * 1000 * 1000 * 1000;
    return -1;
}
