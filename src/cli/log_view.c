/*
 * log_view.c: a journal's log and what recovery would make of it.
 */
#include "cli/log_view.h"

#include <inttypes.h>

struct reading {
    struct log_view *view;
    void (*seen)(void *owner, const struct journal_seen *seen);
    void *owner;
};

static void
entry_seen(void *owner, const struct journal_seen *seen)
{
    const struct reading *reading = owner;

    if (seen->valid)
        records_add_entry(&reading->view->records, seen->meta, seen->entry);
    if (reading->seen)
        reading->seen(reading->owner, seen);
}

static int
geometries_init(struct log_view *view, const struct device *device,
                const struct superblock *journal)
{
    const struct geometry_config config = {.level = journal->level,
                                           .layout = journal->layout,
                                           .members = journal->raid_disks,
                                           .chunk_bytes = superblock_chunk_bytes(journal),
                                           .size_bytes = superblock_component_bytes(journal)};
    const int r = geometry_init(&view->geometry, &config);

    if (r < 0)
        return error_set(&view->error, -ENOTSUP, "%s: its geometry cannot be computed with: %s",
                         device->name, strerror(-r));
    journal_geometry_init(&view->journal, journal);
    if (journal->raid_disks > JOURNAL_MEMBERS_MAX)
        return error_set(&view->error, -ENOTSUP,
                         "%s: an array of %" PRIu32
                         " members cannot have a journal: at most %u can",
                         device->name, journal->raid_disks, (unsigned)JOURNAL_MEMBERS_MAX);
    if (view->journal.ring_bytes < BLOCK_BYTES ||
        view->journal.ring_bytes / BLOCK_BYTES > UINT32_MAX)
        return error_set(&view->error, -ENOTSUP,
                         "%s: a journal of %" PRIu64 " bytes is not supported", device->name,
                         view->journal.ring_bytes);
    return 0;
}

/* One for each block of the ring; memory is used only for those that are there. */
static int
records_make(struct log_view *view, const struct superblock *journal)
{
    if (records_init(&view->records, &view->geometry, &view->journal,
                     journal->journal_tail_sectors * SECTOR_BYTES,
                     view->journal.ring_bytes / BLOCK_BYTES) < 0)
        return error_set(&view->error, -ENOMEM, "no memory for the index of the journal");
    view->records_inited = true;
    return 0;
}

/* What can be done, in front of the cause. */
static void
add_hint(struct log_view *view)
{
    const struct error cause = view->error;
    const char *hint = NULL;

    if (view->result == -EBADMSG)
        hint = "--force=new-journal starts a new log; what only this one holds is lost";
    else if (view->result == 0 && view->scan.end == JOURNAL_END_UNREADABLE)
        hint = "--force=truncate-journal takes it for the log's end; what follows is lost";
    if (hint)
        (void)error_set(&view->error, cause.code, "%s\n%s", hint, cause.text); /* as it was */
}

task_fn void
log_view_read(struct log_view *view, struct device *device, const struct superblock *journal,
              void (*seen)(void *owner, const struct journal_seen *seen), void *owner)
{
    struct reading reading = {.view = view, .seen = seen, .owner = owner};
    const struct journal_scan_config config = {.device = device,
                                               .journal = journal,
                                               .unreadable_is_end = true,
                                               .entry = entry_seen,
                                               .owner = &reading};

    memset(view, 0, sizeof *view);
    view->result = geometries_init(view, device, journal);
    if (view->result == 0)
        view->result = records_make(view, journal);
    if (view->result == 0)
        view->result = journal_scan(&config, &view->scan, &view->error);
    add_hint(view);
    if (view->result < 0 && view->records_inited)
        view->records.count = 0; /* of no use */
    if (view->records_inited)
        records_decide(&view->records);
}

void
log_view_fini(struct log_view *view)
{
    if (view->records_inited)
        records_fini(&view->records);
    view->records_inited = false;
}

bool
log_view_is_clean(const struct log_view *view)
{
    return view->result == 0 && view->records.count == 0;
}

void
log_view_text(const struct log_view *view, char text[LOG_VIEW_TEXT_BYTES])
{
    const struct journal_records *records = &view->records;
    const char *refusal = "";
    const char *newline;

    if (view->result < 0) {
        newline = strrchr(view->error.text, '\n');
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES, "not possible: %s",
                       newline ? newline + 1 : view->error.text);
        return;
    }
    if (view->scan.end == JOURNAL_END_UNREADABLE)
        refusal = "refused, for a block is unreadable; by --force=truncate-journal: ";
    if (records->count == 0)
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES, "%snothing to do", refusal);
    else
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES,
                       "%sreplay %" PRIu64 " data-parity stripes (%" PRIu64
                       " blocks) and write out %" PRIu64 " data-only stripes (%" PRIu64
                       " blocks) from the journal",
                       refusal, records->data_parity_stripes, records->replay_blocks,
                       records->data_only_stripes, records->open_blocks);
}
