/*
 * progress.h: what happens to a running array, for people or for programs, on stderr.
 *
 * On a terminal a resync is one line that is drawn again and again; elsewhere only its beginning
 * and end are told. As JSON every event is an object on a line of its own: "event" names it, "text"
 * is for people; "resync-progress" has done_bytes, total_bytes, rate_bytes_per_s and remaining_ms
 * (null while it is not known), and what concerns one member has "member".
 */
#ifndef STRIPELOG_PROGRESS_H
#define STRIPELOG_PROGRESS_H

#include "array/array.h"

struct progress {
    bool json;
    bool terminal;
    unsigned drawn; /* characters of the bar that stands on the terminal */
};

void progress_init(struct progress *progress, bool json);
void progress_event(struct progress *progress, const struct array_event *event);
/* No more of it: leaves the line of the terminal to others. */
void progress_clear(struct progress *progress);

#endif
