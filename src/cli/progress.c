/*
 * progress.c: what happens to a running array, on stderr.
 */
#include "cli/progress.h"

#include "cli/cli.h"
#include "cli/size.h"
#include "control/protocol.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define BAR_CELLS 30u

void
progress_init(struct progress *progress, bool json)
{
    *progress = (struct progress){.json = json, .terminal = !json && isatty(STDERR_FILENO)};
}

static const char *
event_name(enum array_event_kind kind)
{
    switch (kind) {
    case ARRAY_MEMBER_FAILED:
        return "member-failed";
    case ARRAY_READ_CORRECTED:
        return "read-corrected";
    case ARRAY_RESYNC_STARTED:
        return "resync-started";
    case ARRAY_RESYNC_PROGRESS:
        return "resync-progress";
    case ARRAY_RESYNC_DONE:
        return "resync-done";
    case ARRAY_RESYNC_STOPPED:
        return "resync-stopped";
    case ARRAY_RECOVERY_PROGRESS:
        return "recovery-progress";
    case ARRAY_RECOVERY_DONE:
        return "recovery-done";
    case ARRAY_JOURNAL_FAILED:
        return "journal-failed";
    case ARRAY_JOURNAL_MODE:
        return "journal-mode";
    case ARRAY_DATA_LOST:
        return "data-lost";
    case ARRAY_FAILED:
        return "array-failed";
    case ARRAY_WARNING:
        return "warning";
    }
    return "unknown";
}

static const char *
phase_name(enum recovery_phase phase)
{
    switch (phase) {
    case RECOVERY_SCANNING:
        return "scan";
    case RECOVERY_REPLAYING:
        return "replay";
    case RECOVERY_WRITING_OUT:
        return "write-out";
    }
    return "";
}

static bool
event_is_progress(const struct array_event *event)
{
    return event->kind == ARRAY_RESYNC_PROGRESS || event->kind == ARRAY_RECOVERY_PROGRESS;
}

static void
print_json(const struct array_event *event)
{
    json_t *json = json_pack("{s:s, s:o}", "event", event_name(event->kind), "text",
                             control_text(event->text));
    char *text;

    if (json && (event->kind == ARRAY_MEMBER_FAILED || event->kind == ARRAY_READ_CORRECTED))
        json_object_set_new(json, "member", json_integer(event->member));
    if (json && event->kind == ARRAY_DATA_LOST) {
        json_object_set_new(json, "array_offset_bytes",
                            json_integer((json_int_t)event->array_offset));
        json_object_set_new(json, "length_bytes", json_integer((json_int_t)event->length_bytes));
    }
    if (json && event->kind == ARRAY_RECOVERY_PROGRESS)
        json_object_set_new(json, "phase", json_string(phase_name(event->phase)));
    if (json && event_is_progress(event)) {
        json_object_set_new(json, "done_bytes", json_integer((json_int_t)event->done_bytes));
        json_object_set_new(json, "total_bytes", json_integer((json_int_t)event->total_bytes));
        json_object_set_new(json, "rate_bytes_per_s",
                            json_integer((json_int_t)event->rate_bytes_per_s));
        json_object_set_new(json, "remaining_ms",
                            event->remaining_ms > INT64_MAX
                                ? json_null()
                                : json_integer((json_int_t)event->remaining_ms));
    }
    text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    if (text)
        (void)dprintf(STDERR_FILENO, "%s\n", text); /* nobody is left to tell */
    free(text);
    json_decref(json);
}

void
progress_clear(struct progress *progress)
{
    if (progress->drawn)
        (void)dprintf(STDERR_FILENO, "\r%*s\r", (int)progress->drawn, ""); /* as above */
    progress->drawn = 0;
}

static void
bar_draw(struct progress *progress, const struct array_event *event)
{
    const double part =
        event->total_bytes ? (double)event->done_bytes / (double)event->total_bytes : 1;
    const unsigned cells = (unsigned)(part * BAR_CELLS);
    char rate[SIZE_TEXT_BYTES], left[48] = "", text[160];
    int length;

    size_text(event->rate_bytes_per_s, rate);
    if (event->remaining_ms != UINT64_MAX) {
        const uint64_t s = event->remaining_ms / 1000;

        (void)snprintf(left, sizeof left, ", %" PRIu64 ":%02u:%02u left", s / 3600,
                       (unsigned)(s / 60 % 60), (unsigned)(s % 60));
    }
    length = snprintf(text, sizeof text, "%s [%.*s%*s] %.1f %% at %s/s%s",
                      event->kind == ARRAY_RESYNC_PROGRESS ? "resync" : phase_name(event->phase),
                      (int)cells, "##############################", (int)(BAR_CELLS - cells), "",
                      part * 100, rate, left);
    progress_clear(progress);
    (void)dprintf(STDERR_FILENO, "\r%s", text); /* as above */
    progress->drawn = (unsigned)length;
}

void
progress_event(struct progress *progress, const struct array_event *event)
{
    if (progress->json) {
        print_json(event);
        return;
    }
    if (event_is_progress(event)) {
        if (progress->terminal)
            bar_draw(progress, event);
        return;
    }
    progress_clear(progress);
    message("%s", event->text[0] ? event->text : event_name(event->kind));
}
