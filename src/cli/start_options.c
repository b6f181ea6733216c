/*
 * start_options.c: options of every subcommand that starts an array.
 */
#include "cli/start_options.h"

#include "cli/cli.h"
#include "cli/size.h"
#include "control/protocol.h"

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
