/*
 * log_text.c: what a journal's log is, in words and as JSON.
 */
#include "cli/log_text.h"

#include <inttypes.h>

const char *
log_end_name(enum journal_end end)
{
    switch (end) {
    case JOURNAL_END_NO_ENTRY:
        return "no-entry";
    case JOURNAL_END_TORN_META:
        return "torn-meta-block";
    case JOURNAL_END_OLD_ENTRY:
        return "old-entry";
    case JOURNAL_END_TORN:
        return "torn-entry";
    case JOURNAL_END_RING:
        return "ring-full";
    case JOURNAL_END_UNREADABLE:
        return "unreadable";
    }
    return "unknown";
}

void
log_end_text(const struct journal_scan *scan, char text[LOG_END_TEXT_BYTES])
{
    switch (scan->end) {
    case JOURNAL_END_NO_ENTRY:
        (void)snprintf(text, LOG_END_TEXT_BYTES, "no entry follows (%s)", scan->end_cause.text);
        break;
    case JOURNAL_END_TORN_META:
        (void)snprintf(text, LOG_END_TEXT_BYTES,
                       "a meta block follows that was torn or is of another array (%s)",
                       scan->end_cause.text);
        break;
    case JOURNAL_END_OLD_ENTRY:
        (void)snprintf(text, LOG_END_TEXT_BYTES,
                       "an entry of an older log follows, number %" PRIu64 " and not %" PRIu64,
                       scan->end_seq, scan->seq_next);
        break;
    case JOURNAL_END_TORN:
        (void)snprintf(text, LOG_END_TEXT_BYTES,
                       "entry %" PRIu64 " is torn: its block %" PRIu32
                       " is not what its checksum says; %" PRIu64
                       " valid entries follow it and do not count",
                       scan->end_seq, scan->torn_block, scan->torn_follows);
        break;
    case JOURNAL_END_RING:
        (void)snprintf(text, LOG_END_TEXT_BYTES, "the ring is full");
        break;
    case JOURNAL_END_UNREADABLE:
        (void)snprintf(text, LOG_END_TEXT_BYTES, "the block at position %" PRIu64 " is unreadable",
                       scan->unreadable_bytes);
        break;
    }
}

json_t *
log_end_json(const struct journal_scan *scan)
{
    char text[LOG_END_TEXT_BYTES];
    json_t *json;

    log_end_text(scan, text);
    json = json_pack("{s:s, s:s, s:I}", "reason", log_end_name(scan->end), "text", text,
                     "position_bytes", (json_int_t)scan->end_bytes);
    if (scan->end_has_seq)
        json_object_set_new(json, "seq_found", log_seq_json(scan->end_seq));
    if (scan->end == JOURNAL_END_TORN) {
        json_object_set_new(json, "bad_block", json_integer(scan->torn_block));
        json_object_set_new(json, "entries_behind", json_integer((json_int_t)scan->torn_follows));
    }
    if (scan->end == JOURNAL_END_UNREADABLE)
        json_object_set_new(json, "unreadable_bytes",
                            json_integer((json_int_t)scan->unreadable_bytes));
    return json;
}

json_t *
log_seq_json(uint64_t seq)
{
    return json_sprintf("%" PRIu64, seq);
}

json_t *
log_stripe_json(const struct geometry *geometry, const struct journal_records *records, size_t *at)
{
    const uint64_t stripe = record_stripe(&records->all[*at]);
    json_t *blocks = json_array();
    bool open = false, complete = false;

    for (; *at < records->count && record_stripe(&records->all[*at]) == stripe; ++*at) {
        const struct journal_record *record = &records->all[*at];
        uint64_t offset;
        const bool data =
            geometry_unmap(geometry, record_member(record), stripe * BLOCK_BYTES, &offset);
        json_t *block = json_pack("{s:i, s:b, s:b, s:I}", "member", (int)record_member(record),
                                  "parity", (int)!data, "data_only", (int)record_open(record),
                                  "position_bytes", (json_int_t)records_position(records, record));

        if (data)
            json_object_set_new(block, "array_offset_bytes", json_integer((json_int_t)offset));
        json_array_append_new(blocks, block);
        open = open || record_open(record);
        complete = complete || !record_open(record);
    }
    return json_pack("{s:I, s:b, s:b, s:o}", "member_offset_bytes",
                     (json_int_t)(stripe * BLOCK_BYTES), "data_parity", (int)complete, "data_only",
                     (int)open, "blocks", blocks);
}
