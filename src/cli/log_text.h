/*
 * log_text.h: what a journal's log is, in words and as JSON; the same for every subcommand.
 */
#ifndef STRIPELOG_LOG_TEXT_H
#define STRIPELOG_LOG_TEXT_H

#include "journal/records.h"
#include "journal/scan.h"

#include <jansson.h>

/* For programs: "no-entry", "torn-meta-block", "old-entry", "torn-entry", "ring-full",
 * "unreadable". */
const char *log_end_name(enum journal_end end);

/* For people: why the log ends where it does. */
#define LOG_END_TEXT_BYTES 400u
void log_end_text(const struct journal_scan *scan, char text[LOG_END_TEXT_BYTES]);

/* {"reason", "text", "position_bytes", ...} */
json_t *log_end_json(const struct journal_scan *scan);

/* Sequence numbers are strings: readers of JSON may take numbers for floating point, and these have
 * 63 random bits. */
json_t *log_seq_json(uint64_t seq);

/* What recovery does with the stripe whose first record is records->all[*at]; *at goes on behind
 * its last. */
json_t *log_stripe_json(const struct geometry *geometry, const struct journal_records *records,
                        size_t *at);

#endif
