/*
 * log_view.h: a journal's log and what recovery would make of it, read without touching anything.
 *
 * The journal's own superblock says what level, layout and chunk its array has, so that no member
 * is needed.
 */
#ifndef STRIPELOG_LOG_VIEW_H
#define STRIPELOG_LOG_VIEW_H

#include "geometry/geometry.h"
#include "journal/records.h"
#include "journal/scan.h"

struct log_view {
    struct geometry geometry;
    struct journal_geometry journal;
    struct journal_scan scan;
    int result;          /* of the scan; -ENOMEM, -ENOTSUP before it */
    struct error error;  /* why, if result < 0, or what is unreadable at its end */
    bool records_inited; /* records has to be finished */
    /* Decided; nothing in it unless result is 0. An unreadable block counts as the log's end here
     * (scan.end says so), and recovery does that by force only. */
    struct journal_records records;
};

/* Reads the log. *journal is its superblock, decoded, of role journal. `seen` as journal_scan's
 * `entry`, or NULL. */
task_fn void log_view_read(struct log_view *view, struct device *device,
                           const struct superblock *journal,
                           void (*seen)(void *owner, const struct journal_seen *seen), void *owner);
void log_view_fini(struct log_view *view);

/* Nothing in the log is unfinished. */
bool log_view_is_clean(const struct log_view *view);

#define LOG_VIEW_TEXT_BYTES 700u
/* What recovery would do, as a phrase. */
void log_view_text(const struct log_view *view, char text[LOG_VIEW_TEXT_BYTES]);

#endif
