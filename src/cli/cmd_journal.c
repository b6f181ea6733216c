/*
 * cmd_journal.c: every entry of a journal, where its log ends and why, and what recovery would do.
 *
 * Reads only. The journal alone is enough, for its superblock says what the array is; other devices
 * of the array, where they are named too, get their names into what is shown, and say whether the
 * journal is theirs at all (assemble.h).
 *
 * Entries are printed as they are found, so that a journal of any size takes little memory: also as
 * JSON, which is therefore put together by hand around them.
 */
#include "array/assemble.h"
#include "cli/cli.h"
#include "cli/log_text.h"
#include "cli/log_view.h"
#include "cli/size.h"
#include "control/protocol.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>

#define COMMAND "journal"

static const char help[] =
    "Usage: stripelog journal [OPTION ...] DEVICE ...\n"
    "\n"
    "Shows every entry of a journal: its blocks, where they belong, whether they are what\n"
    "their checksums say; where the log ends and why; what recovery would do. The journal\n"
    "alone is enough; with other devices of its array their names are shown as well. Writes\n"
    "nothing.\n"
    "\n"
    "Options:\n"
    "  --summary  leave out entries and stripes\n"
    "  --survey   show also what stands elsewhere in the ring, as is done by itself where\n"
    "             there is no valid entry at the tail\n"
    "  --json     print JSON\n"
    "  --help     print this and exit\n"
    "  --version  print the version and exit\n";

/* Entries of one log that adjoin. */
struct run {
    uint64_t from_bytes, to_bytes; /* positions of the first and the last */
    uint64_t seq_first, seq_last;
    uint64_t next_bytes; /* where the next would stand */
};

struct show {
    bool json, summary, survey;
    unsigned count;
    const char *const *paths;
    struct loop *loop;
    struct device **devices;

    struct candidate *candidates;
    unsigned probed;
    unsigned index; /* of the journal */
    struct assembly assembly;
    enum member_fate *fates;
    struct error *reasons;
    struct log_view view;
    uint64_t entries_printed;

    bool surveyed;
    int survey_result;
    struct run *runs; /* owned */
    size_t runs_count, runs_capacity;

    int result;
    struct error error;
};

static const struct candidate *
journal_of(const struct show *show)
{
    return &show->candidates[show->index];
}

/* ---- Which is the journal, and whose are the others ---- */

static int
find_journal(struct show *show)
{
    unsigned found = 0;
    const struct candidate *first = &show->candidates[0];

    for (unsigned i = 0; i < show->count; i++)
        if (show->candidates[i].status == 0 &&
            superblock_role(&show->candidates[i].superblock) == SUPERBLOCK_ROLE_JOURNAL &&
            found++ == 0)
            show->index = i;
    if (found == 1)
        return 0;
    if (found > 1)
        return error_set(&show->error, -EINVAL,
                         "name one journal at a time\n%u of the devices are journals", found);
    if (show->count == 1 && first->status != 0)
        return error_set(&show->error, first->status, "%s", first->error.text);
    return error_set(&show->error, -ENOENT,
                     "\"stripelog examine\" shows what the devices are\n"
                     "%s: %s a journal",
                     show->count == 1 ? show->paths[0] : "the devices",
                     show->count == 1 ? "it is not" : "none of them is");
}

static int
check_arrays(struct show *show)
{
    for (unsigned i = 0; i < show->count; i++)
        if (show->candidates[i].status == 0 &&
            memcmp(show->candidates[i].superblock.set_uuid, journal_of(show)->superblock.set_uuid,
                   SUPERBLOCK_UUID_BYTES) != 0)
            return error_set(&show->error, -EINVAL,
                             "name devices of one array only\n"
                             "%s is of another array than the journal %s",
                             show->paths[i], show->paths[show->index]);
    return 0;
}

/* Whether an assembly would take it; its other decisions matter little here. */
static void
judge(struct show *show)
{
    const struct assemble_options options = {.readonly = true};
    struct error why = {0};

    if (assemble_decide(show->candidates, show->count, &options, &show->assembly, show->fates,
                        show->reasons, &why) == -EINVAL)
        for (unsigned m = 0; m < MEMBERS_MAX; m++)
            show->assembly.member_candidate[m] = -1; /* contradictions: nothing can be relied on */
}

/* What is known of the journal's standing in its array; "" if nothing is wrong. */
static const char *
standing_text(const struct show *show)
{
    return show->count > 1 && show->fates[show->index] != FATE_JOURNAL
               ? show->reasons[show->index].text
               : "";
}

/* NULL: it was not named, or is left out. */
static const char *
member_path(const struct show *show, unsigned member)
{
    const int i = show->assembly.member_candidate[member];

    return show->count > 1 && i >= 0 ? show->paths[i] : NULL;
}

/* " (m0)", or what is to be said of it. */
static const char *
member_note(const struct show *show, unsigned member, char text[300])
{
    const char *path = member_path(show, member);

    if (show->count == 1)
        return "";
    if (!path)
        return " (not there)";
    (void)snprintf(text, 300, " (%s)", path);
    return text;
}

/* ---- Entries ---- */

struct where {
    const char *what; /* "data", "P", "Q" */
    unsigned member;
    uint64_t member_offset;
};

static struct where
block_where(const struct show *show, const struct journal_payload *payload, uint32_t i)
{
    const struct geometry *geometry = &show->view.geometry;
    struct place place;
    struct row row;

    if (payload->type == JOURNAL_DATA) {
        geometry_map(geometry, payload->location_bytes, &place);
        return (struct where){"data", place.member, place.member_offset};
    }
    geometry_row(geometry, geometry_row_at(geometry, payload->location_bytes), &row);
    return (struct where){i == 0 ? "P" : "Q", i == 0 ? row.p : row.q, payload->location_bytes};
}

static void
print_block(const struct show *show, const struct journal_seen *seen,
            const struct journal_payload *payload, uint32_t i)
{
    const struct where where = block_where(show, payload, i);
    const bool good = seen->block_good[payload->block_first + i];
    char note[300];

    (void)printf("    %-5s block %" PRIu32 " at position %" PRIu64 ", %s: ", where.what,
                 payload->block_first + i,
                 journal_payload_position(seen->entry, payload, &show->view.journal, i),
                 good ? "good" : "BAD CHECKSUM");
    if (payload->type == JOURNAL_DATA)
        (void)printf("array offset %" PRIu64 ", ", payload->location_bytes);
    (void)printf("member %u%s offset %" PRIu64 "\n", where.member,
                 member_note(show, where.member, note), where.member_offset);
}

static void
print_entry(const struct show *show, const struct journal_seen *seen)
{
    struct journal_cursor cursor;
    struct journal_payload payload;

    (void)printf("  entry %" PRIu64 " at position %" PRIu64 ", %" PRIu32 " payloads, %" PRIu32
                 " blocks%s\n",
                 seen->entry->seq, seen->entry->position_bytes, seen->entry->payload_count,
                 seen->entry->block_count, seen->valid ? "" : " (not part of the log)");
    journal_cursor_init(&cursor, seen->meta, &show->view.journal, seen->entry);
    while (journal_cursor_next(&cursor, &payload)) {
        for (uint32_t i = 0; i < payload.block_count; i++)
            print_block(show, seen, &payload, i);
        for (uint32_t i = 0; i < payload.stripe_count; i++)
            (void)printf("    flush stripe at member offset %" PRIu64 "\n",
                         journal_flush_stripe(&payload, i));
    }
}

static json_t *
block_json(const struct show *show, const struct journal_seen *seen,
           const struct journal_payload *payload, uint32_t i)
{
    const struct where where = block_where(show, payload, i);
    const char *path = member_path(show, where.member);
    json_t *json = json_pack(
        "{s:I, s:b, s:I, s:I}", "position_bytes",
        (json_int_t)journal_payload_position(seen->entry, payload, &show->view.journal, i), "good",
        (int)seen->block_good[payload->block_first + i], "member", (json_int_t)where.member,
        "member_offset_bytes", (json_int_t)where.member_offset);

    if (payload->type == JOURNAL_DATA)
        json_object_set_new(json, "array_offset_bytes",
                            json_integer((json_int_t)payload->location_bytes));
    else
        json_object_set_new(json, "parity", json_string(where.what));
    json_object_set_new(json, "checksum", json_sprintf("%08" PRIx32, payload->checksums[i]));
    if (path)
        json_object_set_new(json, "device", control_text(path));
    return json;
}

static json_t *
payload_json(const struct show *show, const struct journal_seen *seen,
             const struct journal_payload *payload)
{
    static const char *const types[] = {
        [JOURNAL_DATA] = "data", [JOURNAL_PARITY] = "parity", [JOURNAL_FLUSH] = "flush"};
    json_t *json = json_pack("{s:s}", "type", types[payload->type]);
    json_t *list = json_array();

    for (uint32_t i = 0; i < payload->block_count; i++)
        json_array_append_new(list, block_json(show, seen, payload, i));
    for (uint32_t i = 0; i < payload->stripe_count; i++)
        json_array_append_new(list, json_integer((json_int_t)journal_flush_stripe(payload, i)));
    json_object_set_new(json, payload->type == JOURNAL_FLUSH ? "stripes_bytes" : "blocks", list);
    return json;
}

/* Compact, to stdout; gives up the reference. */
static void
print_compact(json_t *json)
{
    /* finish_output looks for errors of stdout. */
    if (!json || json_dumpf(json, stdout, JSON_COMPACT) < 0)
        (void)fputs("null", stdout);
    json_decref(json);
}

static void
print_entry_json(struct show *show, const struct journal_seen *seen)
{
    json_t *payloads = json_array();
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_cursor_init(&cursor, seen->meta, &show->view.journal, seen->entry);
    while (journal_cursor_next(&cursor, &payload))
        json_array_append_new(payloads, payload_json(show, seen, &payload));
    (void)fputs(show->entries_printed ? ",\n    " : "\n    ", stdout);
    print_compact(json_pack("{s:o, s:I, s:b, s:I, s:o}", "seq", log_seq_json(seen->entry->seq),
                            "position_bytes", (json_int_t)seen->entry->position_bytes, "valid",
                            (int)seen->valid, "blocks", (json_int_t)seen->entry->block_count,
                            "payloads", payloads));
}

static void
entry_seen(void *owner, const struct journal_seen *seen)
{
    struct show *show = owner;

    if (show->summary)
        return;
    if (show->json)
        print_entry_json(show, seen);
    else
        print_entry(show, seen);
    show->entries_printed++;
}

/* ---- The survey ---- */

static void
survey_found(void *owner, const struct journal_entry *entry)
{
    struct show *show = owner;
    struct run *last = show->runs_count ? &show->runs[show->runs_count - 1] : NULL;
    struct run *run;

    if (last && entry->seq == last->seq_last + 1 && entry->position_bytes == last->next_bytes) {
        run = last;
    } else {
        if (show->runs_count == show->runs_capacity) {
            const size_t capacity = show->runs_capacity ? 2 * show->runs_capacity : 64;
            struct run *more = reallocarray(show->runs, capacity, sizeof *more);

            if (!more) {
                show->survey_result = -ENOMEM;
                return;
            }
            show->runs = more;
            show->runs_capacity = capacity;
        }
        run = &show->runs[show->runs_count++];
        run->from_bytes = entry->position_bytes;
        run->seq_first = entry->seq;
    }
    run->to_bytes = entry->position_bytes;
    run->seq_last = entry->seq;
    run->next_bytes = journal_entry_next(entry, &show->view.journal);
}

static task_fn void
survey(struct show *show)
{
    int r;

    show->surveyed = true;
    r = journal_survey(show->devices[show->index], &journal_of(show)->superblock, survey_found,
                       show);
    if (show->survey_result == 0)
        show->survey_result = r;
    /* One that goes on across the end of the ring. */
    if (show->runs_count > 1 &&
        show->runs[show->runs_count - 1].next_bytes == show->runs[0].from_bytes &&
        show->runs[show->runs_count - 1].seq_last + 1 == show->runs[0].seq_first) {
        struct run *last = &show->runs[show->runs_count - 1];

        last->to_bytes = show->runs[0].to_bytes;
        last->seq_last = show->runs[0].seq_last;
        last->next_bytes = show->runs[0].next_bytes;
        show->runs[0] = *last;
        show->runs_count--;
    }
}

/* ---- For people ---- */

static void
print_header(const struct show *show)
{
    const struct superblock *sb = &journal_of(show)->superblock;
    const char *layout = geometry_layout_name(sb->level, sb->layout);
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES], name[SUPERBLOCK_NAME_TEXT_BYTES];
    char ring[SIZE_TEXT_BYTES], chunk[SIZE_TEXT_BYTES];

    superblock_uuid_text(sb->set_uuid, uuid);
    superblock_name_text(sb, name);
    size_text(superblock_journal_ring_bytes(sb), ring);
    size_text(superblock_chunk_bytes(sb), chunk);
    (void)printf("%s: journal of the array %s (%s)\n", show->paths[show->index], name, uuid);
    (void)printf("RAID-%" PRId32 "%s%s, %" PRIu32 " members, chunk %s\n", sb->level,
                 layout ? ", " : "", layout ? layout : "", sb->raid_disks, chunk);
    (void)printf("ring of %s (%" PRIu64 " bytes) from byte %" PRIu64 " on, tail at sector %" PRIu64
                 ", %" PRIu64 " events\n",
                 ring, superblock_journal_ring_bytes(sb), superblock_data_offset_bytes(sb),
                 sb->journal_tail_sectors, sb->events);
    if (standing_text(show)[0])
        (void)printf("the array would not use it: %s\n", standing_text(show));
    (void)putchar('\n');
}

static void
print_stripe(const struct show *show, size_t *at)
{
    const struct journal_records *records = &show->view.records;
    const uint64_t stripe = record_stripe(&records->all[*at]);
    bool open = false, complete = false;

    for (size_t i = *at; i < records->count && record_stripe(&records->all[i]) == stripe; i++) {
        open = open || record_open(&records->all[i]);
        complete = complete || !record_open(&records->all[i]);
    }
    (void)printf("  stripe at member offset %" PRIu64 ": %s\n", stripe * BLOCK_BYTES,
                 !open      ? "data-parity"
                 : complete ? "data-parity, and data-only on top"
                            : "data-only");
    for (; *at < records->count && record_stripe(&records->all[*at]) == stripe; ++*at) {
        const struct journal_record *record = &records->all[*at];
        const unsigned member = record_member(record);
        uint64_t offset;
        char note[300];

        (void)printf("    member %u%s from position %" PRIu64 ": ", member,
                     member_note(show, member, note), records_position(records, record));
        if (geometry_unmap(&show->view.geometry, member, stripe * BLOCK_BYTES, &offset))
            (void)printf("data, array offset %" PRIu64 "%s\n", offset,
                         record_open(record) ? ", without parity" : "");
        else
            (void)printf("parity\n");
    }
}

static void
print_survey(const struct show *show)
{
    (void)printf("\nmeta blocks of this array in the ring: %s\n", show->runs_count ? "" : "none");
    for (size_t i = 0; i < show->runs_count; i++) {
        const struct run *run = &show->runs[i];

        (void)printf("  position %" PRIu64 " to %" PRIu64 ": entries %" PRIu64 " to %" PRIu64 "\n",
                     run->from_bytes, run->to_bytes, run->seq_first, run->seq_last);
    }
    if (show->survey_result < 0)
        (void)printf("  (incomplete: %s)\n", strerror(-show->survey_result));
}

static void
print_rest(const struct show *show)
{
    const struct log_view *view = &show->view;
    const struct journal_scan *scan = &view->scan;
    char text[LOG_VIEW_TEXT_BYTES], end[LOG_END_TEXT_BYTES];

    if (view->result == 0) {
        log_end_text(scan, end);
        (void)printf("%sthe log ends at position %" PRIu64 ": %s\n",
                     show->entries_printed ? "\n" : "", scan->end_bytes, end);
        (void)printf("%" PRIu64 " entries, %" PRIu64 " to %" PRIu64 ", %" PRIu64 " of them empty: "
                     "%" PRIu64 " data blocks, parity of %" PRIu64 " stripes, %" PRIu64
                     " flushed stripes\n",
                     scan->entries, scan->seq_first, scan->seq_next - 1, scan->entries_empty,
                     scan->data_blocks, scan->parity_stripes, scan->flush_stripes);
    } else if (scan->entries > 0) {
        (void)printf("%s%" PRIu64 " entries are sound, up to position %" PRIu64 "\n",
                     show->entries_printed ? "\n" : "", scan->entries, scan->end_bytes);
    }
    if (show->surveyed)
        print_survey(show);
    if (!show->summary && view->result == 0 && view->records.count > 0) {
        (void)printf("\nwhat recovery would write:\n");
        for (size_t at = 0; at < view->records.count;)
            print_stripe(show, &at);
    }
    log_view_text(view, text);
    (void)printf("\nrecovery: %s\n", text);
}

/* ---- For programs ---- */

/* Of what is not checked yet: JSON's integers here are signed. */
static void
put_integer(json_t *json, const char *key, uint64_t value)
{
    json_object_set_new(json, key,
                        value > INT64_MAX ? json_null() : json_integer((json_int_t)value));
}

static void
print_header_json(const struct show *show)
{
    const struct superblock *sb = &journal_of(show)->superblock;
    const char *layout = geometry_layout_name(sb->level, sb->layout);
    json_t *json =
        json_pack("{s:o, s:o, s:o, s:i, s:s?, s:I, s:I, s:I, s:I}", "device",
                  control_text(show->paths[show->index]), "uuid", json_uuid(sb->set_uuid), "name",
                  json_name(sb), "level", (int)sb->level, "layout", layout, "raid_disks",
                  (json_int_t)sb->raid_disks, "chunk_bytes", (json_int_t)superblock_chunk_bytes(sb),
                  "ring_bytes", (json_int_t)superblock_journal_ring_bytes(sb), "data_offset_bytes",
                  (json_int_t)superblock_data_offset_bytes(sb));

    put_integer(json, "tail_sectors", sb->journal_tail_sectors);
    put_integer(json, "events", sb->events);
    if (show->count > 1) {
        json_t *devices = json_array();

        for (unsigned i = 0; i < show->count; i++)
            json_array_append_new(devices, json_pack("{s:o, s:s, s:o}", "device",
                                                     control_text(show->paths[i]), "fate",
                                                     member_fate_name(show->fates[i]), "reason",
                                                     control_text(show->reasons[i].text)));
        json_object_set_new(json, "devices", devices);
    }
    (void)printf("{\n  \"journal\": ");
    print_compact(json);
    (void)printf(",\n  \"entries\": [");
}

static json_t *
survey_json(const struct show *show)
{
    json_t *runs = json_array();

    for (size_t i = 0; i < show->runs_count; i++)
        json_array_append_new(runs, json_pack("{s:I, s:I, s:o, s:o}", "first_bytes",
                                              (json_int_t)show->runs[i].from_bytes, "last_bytes",
                                              (json_int_t)show->runs[i].to_bytes, "seq_first",
                                              log_seq_json(show->runs[i].seq_first), "seq_last",
                                              log_seq_json(show->runs[i].seq_last)));
    return json_pack("{s:b, s:o}", "complete", show->survey_result == 0, "runs", runs);
}

static json_t *
summary_json(const struct show *show)
{
    const struct journal_scan *scan = &show->view.scan;
    const struct journal_records *records = &show->view.records;
    json_t *json = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I}", "entries", (json_int_t)scan->entries, "entries_empty",
        (json_int_t)scan->entries_empty, "data_blocks", (json_int_t)scan->data_blocks,
        "parity_stripes", (json_int_t)scan->parity_stripes, "parity_blocks",
        (json_int_t)scan->parity_blocks, "flush_stripes", (json_int_t)scan->flush_stripes);

    if (scan->entries > 0) {
        json_object_set_new(json, "seq_first", log_seq_json(scan->seq_first));
        json_object_set_new(json, "seq_next", log_seq_json(scan->seq_next));
    }
    if (show->view.result < 0)
        return json;
    json_object_set_new(json, "data_parity_stripes",
                        json_integer((json_int_t)records->data_parity_stripes));
    json_object_set_new(json, "data_only_stripes",
                        json_integer((json_int_t)records->data_only_stripes));
    json_object_set_new(json, "replay_blocks", json_integer((json_int_t)records->replay_blocks));
    json_object_set_new(json, "data_only_blocks", json_integer((json_int_t)records->open_blocks));
    return json;
}

static void
print_rest_json(const struct show *show)
{
    const struct log_view *view = &show->view;
    char text[LOG_VIEW_TEXT_BYTES];

    (void)printf("%s],\n  \"end\": ", show->entries_printed ? "\n  " : "");
    print_compact(view->result == 0 ? log_end_json(&view->scan) : json_null());
    (void)printf(",\n  \"stripes\": [");
    if (!show->summary && view->result == 0)
        for (size_t at = 0; at < view->records.count;) {
            (void)fputs(at > 0 ? ",\n    " : "\n    ", stdout);
            print_compact(log_stripe_json(&view->geometry, &view->records, &at));
        }
    (void)printf("],\n");
    if (show->surveyed) {
        (void)printf("  \"survey\": ");
        print_compact(survey_json(show));
        (void)printf(",\n");
    }
    (void)printf("  \"summary\": ");
    print_compact(summary_json(show));
    log_view_text(view, text);
    (void)printf(",\n  \"recovery\": ");
    print_compact(json_pack("{s:b, s:o, s:o, s:b}", "possible",
                            view->result == 0 && view->scan.end != JOURNAL_END_UNREADABLE, "text",
                            control_text(text), "error",
                            view->result < 0 ? control_text(view->error.text) : json_null(),
                            "clean", (int)log_view_is_clean(view)));
    (void)printf("\n}\n");
}

/* ---- The command ---- */

static task_fn void
show_main(void *arg)
{
    struct show *show = arg;
    struct log_view *view = &show->view;

    for (; show->probed < show->count; show->probed++) {
        show->result =
            candidate_probe(show->devices[show->probed], &show->candidates[show->probed]);
        if (show->result < 0) {
            (void)error_set(&show->error, show->result, "out of memory"); /* result says so */
            return;
        }
    }
    show->result = find_journal(show);
    if (show->result == 0)
        show->result = check_arrays(show);
    if (show->result < 0)
        return;
    judge(show);
    if (show->json)
        print_header_json(show);
    else
        print_header(show);
    log_view_read(view, show->devices[show->index], &journal_of(show)->superblock, entry_seen,
                  show);
    if (view->scan.ring_bytes > 0 &&
        (show->survey || (view->result == -EBADMSG && view->scan.entries == 0)))
        survey(show);
    if (show->json)
        print_rest_json(show);
    else
        print_rest(show);
    log_view_fini(view);
}

/* What was shown, but is not as it should be. */
static int
tell_wrong(const struct show *show)
{
    const struct log_view *view = &show->view;
    int status = CLI_OK;

    for (unsigned i = 0; i < show->count; i++)
        if (show->candidates[i].status != 0) {
            message("%s: %s", COMMAND, show->candidates[i].error.text);
            status = CLI_FAILED;
        }
    if (view->result < 0 || view->scan.end == JOURNAL_END_UNREADABLE)
        return command_failed(COMMAND, &view->error);
    return status;
}

static int
show_run(struct show *show)
{
    const struct file_options file_options = {
        .readonly = true, .claim = true, .claim_wait_ns = CLI_CLAIM_WAIT_NS};
    int status = CLI_FAILED;
    int r;

    r = loop_create(&(struct loop_config){.tasks = 16}, &show->loop, &show->error);
    if (r < 0)
        return command_failed(COMMAND, &show->error);
    r = devices_open(show->loop, show->paths, show->count, &file_options, show->devices,
                     &show->error);
    if (r == 0) {
        loop_run_task(show->loop, show_main, show);
        r = show->result;
        status = r == 0 ? finish_output(COMMAND, tell_wrong(show)) : CLI_FAILED;
        for (unsigned i = 0; i < show->probed; i++)
            candidate_fini(&show->candidates[i]);
        devices_close(show->loop, show->devices, show->count);
    }
    loop_destroy(show->loop);
    return r < 0 ? command_failed(COMMAND, &show->error) : status;
}

/* An exit status, or -1 to go on. */
static int
parse_options(struct show *show, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"summary", no_argument, NULL, 's'}, {"survey", no_argument, NULL, 'a'},
        {"json", no_argument, NULL, 'j'},    {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'}, {NULL, 0, NULL, 0},
    };
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 's':
            show->summary = true;
            break;
        case 'a':
            show->survey = true;
            break;
        case 'j':
            show->json = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (optind == argc)
        return usage_failed(COMMAND, "no device is given");
    show->count = (unsigned)(argc - optind);
    show->paths = (const char *const *)(argv + optind);
    return -1;
}

int
cmd_journal(int argc, char **argv)
{
    struct show *show = calloc(1, sizeof *show);
    struct error error = {0};
    int status;

    if (!show)
        goto no_memory;
    status = parse_options(show, argc, argv);
    if (status >= 0)
        goto out;
    show->devices = calloc(show->count, sizeof(struct device *));
    show->candidates = calloc(show->count, sizeof *show->candidates);
    show->fates = calloc(show->count, sizeof *show->fates);
    show->reasons = calloc(show->count, sizeof *show->reasons);
    if (!show->devices || !show->candidates || !show->fates || !show->reasons)
        goto no_memory;
    status = show_run(show);
    goto out;
no_memory:
    (void)error_set(&error, -ENOMEM, "out of memory"); /* told next */
    status = command_failed(COMMAND, &error);
out:
    if (show) {
        free(show->runs);
        free(show->reasons);
        free(show->fates);
        free(show->candidates);
        free(show->devices);
    }
    free(show);
    return status;
}
