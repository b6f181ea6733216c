/*
 * cmd_examine.c: what superblocks say, and whether the array would start.
 *
 * Two parts: each device for itself, field by field; then, for each array that they belong to, the
 * verdict of the same decision that a start makes. Devices are opened read-only and without a
 * claim, so this works beside a running server: what it shows is then a moment's picture.
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
#include <time.h>

#define COMMAND "examine"

static const char help[] =
    "Usage: stripelog examine [OPTION ...] DEVICE ...\n"
    "\n"
    "Shows the superblock of each device, and for each array that they belong to whether\n"
    "it would start, what is missing, and what recovery would do. Writes nothing.\n"
    "\n"
    "Options:\n"
    "  --json     print JSON\n"
    "  --help     print this and exit\n"
    "  --version  print the version and exit\n";

/* One argument, and what was found there. */
struct finding {
    struct candidate candidate;
    struct device *device; /* owned; NULL: could not be opened */
    struct error open_error;
    bool viewed; /* a journal, and its log was read: */
    struct log_view log;
};

struct examine {
    struct loop *loop;
    unsigned count;
    char **paths;
    struct finding *findings;
    int result;
};

/* The verdict on one array. Both ways are asked for: what would not start may still be shown. */
struct verdict {
    unsigned count;
    struct candidate *candidates; /* copies; what they point to is the findings' */
    unsigned *index;              /* which finding each one is */
    struct assembly assembly;
    enum member_fate *fates;
    struct error *reasons;
    int result, readonly_result;
    struct error error, readonly_error;
};

/* ---- Looking ---- */

static task_fn void
examine_one(struct examine *examine, unsigned i)
{
    const struct file_options options = {.readonly = true};
    struct finding *finding = &examine->findings[i];
    struct superblock *sb = &finding->candidate.superblock;
    int r;

    r = device_file_open(examine->loop, examine->paths[i], &options, &finding->device,
                         &finding->open_error);
    if (r < 0) {
        finding->device = NULL;
        finding->candidate.status = r;
        finding->candidate.error = finding->open_error;
        return;
    }
    examine->result = candidate_probe(finding->device, &finding->candidate);
    if (examine->result < 0 || finding->candidate.status != 0 ||
        superblock_role(sb) != SUPERBLOCK_ROLE_JOURNAL)
        return;
    finding->viewed = true;
    log_view_read(&finding->log, finding->device, sb, NULL, NULL);
}

static task_fn void
examine_all(void *arg)
{
    struct examine *examine = arg;

    for (unsigned i = 0; i < examine->count && examine->result == 0; i++)
        examine_one(examine, i);
}

static task_fn void
close_all(void *arg)
{
    struct examine *examine = arg;

    for (unsigned i = 0; i < examine->count; i++) {
        candidate_fini(&examine->findings[i].candidate);
        log_view_fini(&examine->findings[i].log);
        if (examine->findings[i].device)
            device_close(examine->findings[i].device);
    }
}

/* ---- Words ---- */

static const char *
role_text(const struct superblock *sb, char text[32])
{
    const uint16_t role = superblock_role(sb);

    switch (role) {
    case SUPERBLOCK_ROLE_SPARE:
        return "spare";
    case SUPERBLOCK_ROLE_FAULTY:
        return "faulty";
    case SUPERBLOCK_ROLE_JOURNAL:
        return "journal";
    default:
        (void)snprintf(text, 32, "member %u", role);
        return text;
    }
}

static const char *
time_text(uint64_t time, char text[64])
{
    const time_t seconds = (time_t)superblock_time_seconds(time);
    struct tm tm;

    if (!gmtime_r(&seconds, &tm) || strftime(text, 64, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
        (void)snprintf(text, 64, "%" PRIu64 " s since 1970", superblock_time_seconds(time));
    return text;
}

static const struct {
    uint32_t bit;
    const char *name;
} features[] = {
    {SUPERBLOCK_FEATURE_BITMAP, "bitmap"},
    {SUPERBLOCK_FEATURE_RECOVERY_OFFSET, "recovery-offset"},
    {SUPERBLOCK_FEATURE_RESHAPE, "reshape"},
    {SUPERBLOCK_FEATURE_BAD_BLOCKS, "bad-blocks"},
    {SUPERBLOCK_FEATURE_REPLACEMENT, "replacement"},
    {SUPERBLOCK_FEATURE_RESHAPE_BACKWARDS, "reshape-backwards"},
    {SUPERBLOCK_FEATURE_NEW_OFFSET, "new-offset"},
    {SUPERBLOCK_FEATURE_RECOVERY_BITMAP, "recovery-bitmap"},
    {SUPERBLOCK_FEATURE_CLUSTERED, "clustered"},
    {SUPERBLOCK_FEATURE_JOURNAL, "journal"},
    {SUPERBLOCK_FEATURE_PPL, "ppl"},
    {SUPERBLOCK_FEATURE_MULTIPLE_PPLS, "multiple-ppls"},
    {SUPERBLOCK_FEATURE_RAID0_LAYOUT, "raid0-layout"},
};

/* One character a number of the table, as mdadm does it. */
static void
table_text(const struct superblock *sb, char *text, size_t bytes)
{
    size_t at = 0;
    uint32_t last = 0;

    for (uint32_t number = 0; number < sb->max_dev; number++)
        if (superblock_role_of(sb, number) != SUPERBLOCK_ROLE_SPARE)
            last = number + 1;
    text[0] = '\0';
    for (uint32_t number = 0; number < last && at + 8 < bytes; number++) {
        const uint16_t role = superblock_role_of(sb, number);

        at += (size_t)(role == SUPERBLOCK_ROLE_SPARE    ? snprintf(text + at, bytes - at, " -")
                       : role == SUPERBLOCK_ROLE_FAULTY ? snprintf(text + at, bytes - at, " F")
                       : role == SUPERBLOCK_ROLE_JOURNAL
                           ? snprintf(text + at, bytes - at, " J")
                           : snprintf(text + at, bytes - at, " %u", role));
    }
}

static uint64_t
bits_set(const struct candidate *candidate)
{
    uint64_t set = 0;

    for (uint64_t i = 0; i < candidate->bitmap_bits_count; i++)
        set += candidate->bitmap_bits[i / 8] >> (i % 8) & 1;
    return set;
}

/* ---- One device, for people ---- */

static void line(const char *name, const char *format, ...) printf_like(2, 3);

static void
line(const char *name, const char *format, ...)
{
    va_list args;

    (void)printf("  %-18s ", name);
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    (void)putchar('\n');
}

static void
line_bytes(const char *name, uint64_t bytes)
{
    char text[SIZE_TEXT_BYTES];

    size_text(bytes, text);
    line(name, "%s (%" PRIu64 " bytes)", text, bytes);
}

/* Of a text that may have a hint before it, the cause. */
static const char *
last_line(const char *text)
{
    const char *newline = strrchr(text, '\n');

    return newline ? newline + 1 : text;
}

static void
print_journal(const struct finding *finding)
{
    const struct log_view *log = &finding->log;
    const struct journal_scan *scan = &log->scan;
    char end[LOG_END_TEXT_BYTES];

    line("journal tail", "sector %" PRIu64 " of %" PRIu64,
         finding->candidate.superblock.journal_tail_sectors, scan->ring_bytes / SECTOR_BYTES);
    if (log->result < 0) {
        line("journal log", "not usable: %s", last_line(log->error.text));
        return;
    }
    log_end_text(scan, end);
    line("journal log", "%" PRIu64 " entries from number %" PRIu64 ", up to sector %" PRIu64,
         scan->entries, scan->seq_first, scan->end_bytes / SECTOR_BYTES);
    line("journal end", "%s", end);
    line("journal content",
         "%" PRIu64 " data blocks, parity of %" PRIu64 " stripes, %" PRIu64 " flushed stripes%s",
         scan->data_blocks, scan->parity_stripes, scan->flush_stripes,
         log_view_is_clean(log) ? ": nothing to recover" : "");
}

static void
print_features(const struct superblock *sb)
{
    char text[256] = "";
    size_t at = 0;

    for (size_t i = 0; i < ARRAY_LEN(features); i++)
        if (sb->feature_map & features[i].bit)
            at += (size_t)snprintf(text + at, sizeof text - at, " %s", features[i].name);
    line("features", "0x%" PRIx32 "%s", sb->feature_map, text);
}

static void
print_superblock(const struct finding *finding)
{
    const struct candidate *candidate = &finding->candidate;
    const struct superblock *sb = &candidate->superblock;
    const char *layout = geometry_layout_name(sb->level, sb->layout);
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES], name[SUPERBLOCK_NAME_TEXT_BYTES];
    char role[32], time[64], table[512];

    superblock_uuid_text(sb->set_uuid, uuid);
    superblock_name_text(sb, name);
    line("metadata", "1.%" PRIu32 ", at sector %" PRIu64, sb->minor, sb->super_offset_sectors);
    line("array UUID", "%s", uuid);
    line("array name", "%s", name);
    line("created", "%s", time_text(sb->ctime, time));
    line("level", "RAID-%" PRId32, sb->level);
    if (layout)
        line("layout", "%s", layout);
    line("members", "%" PRIu32, sb->raid_disks);
    line_bytes("chunk", superblock_chunk_bytes(sb));
    line_bytes("used of each", superblock_component_bytes(sb));
    line_bytes("array size", superblock_array_bytes(sb));
    print_features(sb);
    superblock_uuid_text(sb->device_uuid, uuid);
    line("device UUID", "%s", uuid);
    line("device role", "%s, number %" PRIu32, role_text(sb, role), sb->dev_number);
    table_text(sb, table, sizeof table);
    line("roles by number", "%s", table[0] ? table + 1 : "none");
    line("data", "sectors %" PRIu64 " to %" PRIu64, sb->data_offset_sectors,
         sb->data_offset_sectors + sb->data_size_sectors);
    line("events", "%" PRIu64, sb->events);
    line("updated", "%s", time_text(sb->utime, time));
    if (superblock_is_clean(sb))
        line("parity", "in sync");
    else
        line("parity", "not known good from sector %" PRIu64, sb->resync_offset_sectors);
    if ((sb->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET) &&
        superblock_role(sb) != SUPERBLOCK_ROLE_JOURNAL)
        line("rebuilt", "up to sector %" PRIu64, sb->recovery_offset_sectors);
    if (sb->bad_block_log_sectors)
        line("bad blocks", "%" PRIu32 " ranges, log of %u sectors at %+" PRId32,
             candidate->bad_blocks.count, sb->bad_block_log_sectors,
             sb->bad_block_log_offset_sectors);
    if (candidate->bitmap_usable)
        line("bitmap", "%" PRIu64 " of %" PRIu64 " regions of %" PRIu64 " bytes marked",
             bits_set(candidate), candidate->bitmap_bits_count, candidate->bitmap_region_bytes);
    else if (sb->feature_map & SUPERBLOCK_FEATURE_BITMAP)
        line("bitmap", "stale or damaged: all regions count as marked");
    if (finding->viewed)
        print_journal(finding);
}

static void
print_device(const char *path, const struct finding *finding)
{
    const struct candidate *candidate = &finding->candidate;

    (void)printf("%s:\n", path);
    if (finding->device)
        line_bytes("device size", finding->device->size_bytes);
    if (candidate->status == 0 ||
        (candidate->status == -ENOTSUP && superblock_is_readable(&candidate->superblock)))
        print_superblock(finding);
    if (candidate->status != 0)
        line("not usable", "%s", candidate->error.text);
}

/* ---- One device, for programs ---- */

static void
put_integer(json_t *json, const char *key, uint64_t value)
{
    /* JSON's integers here are signed: MAX is "none", which null says better. */
    json_object_set_new(json, key,
                        value > INT64_MAX ? json_null() : json_integer((json_int_t)value));
}

static json_t *
journal_json(const struct finding *finding)
{
    const struct log_view *log = &finding->log;
    const struct journal_scan *scan = &log->scan;
    json_t *json = json_object();

    put_integer(json, "tail_sectors", finding->candidate.superblock.journal_tail_sectors);
    put_integer(json, "ring_sectors", scan->ring_bytes / SECTOR_BYTES);
    json_object_set_new(json, "valid", json_boolean(log->result == 0));
    if (log->result < 0) {
        json_object_set_new(json, "error", control_text(log->error.text));
        return json;
    }
    put_integer(json, "end_sectors", scan->end_bytes / SECTOR_BYTES);
    json_object_set_new(json, "end", log_end_json(scan));
    json_object_set_new(json, "seq_first", log_seq_json(scan->seq_first));
    put_integer(json, "entries", scan->entries);
    put_integer(json, "data_blocks", scan->data_blocks);
    put_integer(json, "parity_stripes", scan->parity_stripes);
    put_integer(json, "flush_stripes", scan->flush_stripes);
    put_integer(json, "data_parity_stripes", log->records.data_parity_stripes);
    put_integer(json, "data_only_stripes", log->records.data_only_stripes);
    return json;
}

static void
superblock_json(json_t *json, const struct finding *finding)
{
    const struct candidate *candidate = &finding->candidate;
    const struct superblock *sb = &candidate->superblock;
    const char *layout = geometry_layout_name(sb->level, sb->layout);
    char role[32];
    json_t *list = json_array();

    json_object_set_new(json, "metadata", json_sprintf("1.%" PRIu32, sb->minor));
    json_object_set_new(json, "uuid", json_uuid(sb->set_uuid));
    json_object_set_new(json, "name", json_name(sb));
    put_integer(json, "created_s", superblock_time_seconds(sb->ctime));
    put_integer(json, "updated_s", superblock_time_seconds(sb->utime));
    json_object_set_new(json, "level", json_integer(sb->level));
    json_object_set_new(json, "layout", layout ? json_string(layout) : json_null());
    put_integer(json, "layout_number", sb->layout);
    put_integer(json, "raid_disks", sb->raid_disks);
    put_integer(json, "chunk_bytes", superblock_chunk_bytes(sb));
    put_integer(json, "component_bytes", superblock_component_bytes(sb));
    put_integer(json, "array_size_bytes", superblock_array_bytes(sb));
    put_integer(json, "feature_map", sb->feature_map);
    for (size_t i = 0; i < ARRAY_LEN(features); i++)
        if (sb->feature_map & features[i].bit)
            json_array_append_new(list, json_string(features[i].name));
    json_object_set_new(json, "features", list);
    json_object_set_new(json, "device_uuid", json_uuid(sb->device_uuid));
    put_integer(json, "dev_number", sb->dev_number);
    json_object_set_new(json, "role", json_string(role_text(sb, role)));
    put_integer(json, "role_number", superblock_role(sb));
    list = json_array();
    for (uint32_t number = 0; number < sb->max_dev; number++)
        json_array_append_new(list, json_integer(sb->dev_roles[number]));
    json_object_set_new(json, "dev_roles", list);
    put_integer(json, "super_offset_sectors", sb->super_offset_sectors);
    put_integer(json, "data_offset_sectors", sb->data_offset_sectors);
    put_integer(json, "data_size_sectors", sb->data_size_sectors);
    put_integer(json, "events", sb->events);
    json_object_set_new(json, "clean", json_boolean(superblock_is_clean(sb)));
    put_integer(json, "resync_offset_sectors", sb->resync_offset_sectors);
    if ((sb->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET) &&
        superblock_role(sb) != SUPERBLOCK_ROLE_JOURNAL)
        put_integer(json, "recovery_offset_sectors", sb->recovery_offset_sectors);
    put_integer(json, "bad_block_ranges", candidate->bad_blocks.count);
    if (sb->feature_map & SUPERBLOCK_FEATURE_BITMAP) {
        json_t *bitmap = json_object();

        json_object_set_new(bitmap, "usable", json_boolean(candidate->bitmap_usable));
        if (candidate->bitmap_usable) {
            put_integer(bitmap, "region_bytes", candidate->bitmap_region_bytes);
            put_integer(bitmap, "regions", candidate->bitmap_bits_count);
            put_integer(bitmap, "regions_marked", bits_set(candidate));
        }
        json_object_set_new(json, "bitmap", bitmap);
    }
    if (finding->viewed)
        json_object_set_new(json, "journal", journal_json(finding));
}

static json_t *
device_json(const char *path, const struct finding *finding)
{
    const struct candidate *candidate = &finding->candidate;
    json_t *json = json_object();

    json_object_set_new(json, "device", control_text(path));
    json_object_set_new(json, "usable", json_boolean(candidate->status == 0));
    if (candidate->status != 0)
        json_object_set_new(json, "error", control_text(candidate->error.text));
    if (finding->device)
        put_integer(json, "device_size_bytes", finding->device->size_bytes);
    if (candidate->status == 0 ||
        (candidate->status == -ENOTSUP && superblock_is_readable(&candidate->superblock)))
        superblock_json(json, finding);
    return json;
}

/* ---- Verdicts ---- */

static int
verdict_init(struct verdict *verdict, const struct examine *examine,
             const uint8_t uuid[SUPERBLOCK_UUID_BYTES])
{
    struct assemble_options options = {.readonly = true};

    memset(verdict, 0, sizeof *verdict);
    verdict->candidates = calloc(examine->count, sizeof *verdict->candidates);
    verdict->index = calloc(examine->count, sizeof *verdict->index);
    verdict->fates = calloc(examine->count, sizeof *verdict->fates);
    verdict->reasons = calloc(examine->count, sizeof *verdict->reasons);
    if (!verdict->candidates || !verdict->index || !verdict->fates || !verdict->reasons)
        return -ENOMEM;
    for (unsigned i = 0; i < examine->count; i++) {
        const struct candidate *candidate = &examine->findings[i].candidate;

        if (candidate->status != 0 ||
            memcmp(candidate->superblock.set_uuid, uuid, SUPERBLOCK_UUID_BYTES) != 0)
            continue;
        verdict->index[verdict->count] = i;
        verdict->candidates[verdict->count++] = *candidate;
    }
    verdict->readonly_result =
        assemble_decide(verdict->candidates, verdict->count, &options, &verdict->assembly,
                        verdict->fates, verdict->reasons, &verdict->readonly_error);
    options.readonly = false;
    verdict->result =
        assemble_decide(verdict->candidates, verdict->count, &options, &verdict->assembly,
                        verdict->fates, verdict->reasons, &verdict->error);
    return 0;
}

static void
verdict_fini(struct verdict *verdict)
{
    free(verdict->candidates);
    free(verdict->index);
    free(verdict->fates);
    free(verdict->reasons);
}

/* The journal's log decides whether it can be shown at all. */
static const struct finding *
verdict_journal(const struct verdict *verdict, const struct examine *examine)
{
    if (verdict->assembly.journal_candidate < 0)
        return NULL;
    return &examine->findings[verdict->index[verdict->assembly.journal_candidate]];
}

/* Why the log would be refused; NULL if it would not. */
static const struct error *
verdict_log_error(const struct verdict *verdict, const struct examine *examine)
{
    const struct finding *journal = verdict_journal(verdict, examine);

    if (journal && (journal->log.result < 0 || journal->log.scan.end == JOURNAL_END_UNREADABLE))
        return &journal->log.error;
    return NULL;
}

static void
recovery_text(const struct verdict *verdict, const struct examine *examine,
              char text[LOG_VIEW_TEXT_BYTES])
{
    const struct assembly *assembly = &verdict->assembly;
    const struct finding *journal = verdict_journal(verdict, examine);
    const uint64_t member_bytes = assembly->geometry.member_bytes;
    char left[SIZE_TEXT_BYTES];
    bool bitmap = false;

    for (unsigned i = 0; i < verdict->count; i++)
        bitmap |= verdict->candidates[i].bitmap_usable && verdict->fates[i] == FATE_IN_SYNC;
    if (journal && (!log_view_is_clean(&journal->log) || !assembly->dirty))
        log_view_text(&journal->log, text);
    else if (!assembly->dirty)
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES, "nothing to do");
    else if (assembly->journal_expected && !journal)
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES, "not possible without the journal");
    else {
        size_text(member_bytes - min_u64(assembly->resync_from_bytes, member_bytes), left);
        (void)snprintf(text, LOG_VIEW_TEXT_BYTES, "resync parity of %s of each member%s", left,
                       bitmap ? ", where the bitmap marks it" : "");
    }
}

enum start { START_YES, START_READONLY, START_NO };

static enum start
verdict_start(const struct verdict *verdict, const struct examine *examine)
{
    if (verdict_log_error(verdict, examine))
        return START_NO;
    if (verdict->result == 0)
        return START_YES;
    return verdict->readonly_result == 0 ? START_READONLY : START_NO;
}

/* Why it would not start. */
static const char *
verdict_error(const struct verdict *verdict, const struct examine *examine)
{
    const struct error *log = verdict_log_error(verdict, examine);

    return verdict->result == 0 && log ? log->text : verdict->error.text;
}

static void
print_verdict(const struct verdict *verdict, const struct examine *examine)
{
    static const char *const starts[] = {
        [START_YES] = "yes", [START_READONLY] = "with --readonly only", [START_NO] = "no"};
    const struct assembly *assembly = &verdict->assembly;
    const enum start start = verdict_start(verdict, examine);
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES], name[SUPERBLOCK_NAME_TEXT_BYTES],
        recovery[LOG_VIEW_TEXT_BYTES];

    superblock_uuid_text(verdict->candidates[0].superblock.set_uuid, uuid);
    superblock_name_text(&verdict->candidates[0].superblock, name);
    (void)printf("array %s (%s):\n", name, uuid);
    line("would start", "%s%s%s", starts[start], start == START_YES ? "" : ": ",
         start == START_YES ? "" : last_line(verdict_error(verdict, examine)));
    for (unsigned i = 0; i < verdict->count; i++)
        line("device", "%s: %s%s%s", examine->paths[verdict->index[i]],
             member_fate_name(verdict->fates[i]), verdict->reasons[i].text[0] ? ": " : "",
             verdict->reasons[i].text);
    if (assembly->members == 0)
        return;
    line("members in sync", "%u of %u%s", assembly->members - assembly->degraded, assembly->members,
         assembly->degraded ? ", degraded" : "");
    if (assembly->journal_expected)
        line("journal", "%s", assembly->journal_candidate < 0 ? "missing or stale" : "present");
    line("state", "%s", assembly->dirty ? "dirty: parity is not known good" : "clean");
    recovery_text(verdict, examine, recovery);
    line("recovery", "%s", recovery);
}

static json_t *
verdict_json(const struct verdict *verdict, const struct examine *examine)
{
    static const char *const starts[] = {
        [START_YES] = "yes", [START_READONLY] = "readonly", [START_NO] = "no"};
    const struct assembly *assembly = &verdict->assembly;
    const enum start start = verdict_start(verdict, examine);
    json_t *json = json_object();
    json_t *devices = json_array();
    char recovery[LOG_VIEW_TEXT_BYTES];

    json_object_set_new(json, "uuid", json_uuid(verdict->candidates[0].superblock.set_uuid));
    json_object_set_new(json, "name", json_name(&verdict->candidates[0].superblock));
    json_object_set_new(json, "would_start", json_string(starts[start]));
    if (start != START_YES)
        json_object_set_new(json, "error", control_text(verdict_error(verdict, examine)));
    for (unsigned i = 0; i < verdict->count; i++)
        json_array_append_new(devices, json_pack("{s:o, s:s, s:o}", "device",
                                                 control_text(examine->paths[verdict->index[i]]),
                                                 "fate", member_fate_name(verdict->fates[i]),
                                                 "reason", control_text(verdict->reasons[i].text)));
    json_object_set_new(json, "devices", devices);
    if (assembly->members == 0)
        return json;
    put_integer(json, "members", assembly->members);
    put_integer(json, "degraded", assembly->degraded);
    put_integer(json, "events", assembly->events);
    json_object_set_new(json, "dirty", json_boolean(assembly->dirty));
    if (assembly->dirty)
        put_integer(json, "resync_from_bytes", assembly->resync_from_bytes);
    json_object_set_new(json, "journal",
                        json_string(!assembly->journal_expected       ? "none"
                                    : assembly->journal_candidate < 0 ? "missing"
                                                                      : "present"));
    recovery_text(verdict, examine, recovery);
    json_object_set_new(json, "recovery", json_string(recovery));
    return json;
}

/* The first device of its array. */
static bool
is_first_of_array(const struct examine *examine, unsigned i)
{
    const struct candidate *candidate = &examine->findings[i].candidate;

    if (candidate->status != 0)
        return false;
    for (unsigned j = 0; j < i; j++) {
        const struct candidate *other = &examine->findings[j].candidate;

        if (other->status == 0 && memcmp(other->superblock.set_uuid, candidate->superblock.set_uuid,
                                         SUPERBLOCK_UUID_BYTES) == 0)
            return false;
    }
    return true;
}

/* ---- The command ---- */

static int
print_all(const struct examine *examine, bool as_json)
{
    json_t *devices = json_array();
    json_t *arrays = json_array();
    int r = 0;

    for (unsigned i = 0; i < examine->count; i++) {
        if (as_json) {
            json_array_append_new(devices, device_json(examine->paths[i], &examine->findings[i]));
            continue;
        }
        print_device(examine->paths[i], &examine->findings[i]);
        (void)putchar('\n');
    }
    for (unsigned i = 0; i < examine->count && r == 0; i++) {
        struct verdict *verdict;

        if (!is_first_of_array(examine, i))
            continue;
        verdict = malloc(sizeof *verdict);
        r = verdict
                ? verdict_init(verdict, examine, examine->findings[i].candidate.superblock.set_uuid)
                : -ENOMEM;
        if (r == 0 && as_json)
            json_array_append_new(arrays, verdict_json(verdict, examine));
        else if (r == 0)
            print_verdict(verdict, examine);
        if (verdict)
            verdict_fini(verdict);
        free(verdict);
    }
    if (as_json && r == 0) {
        r = json_print(json_pack("{s:o, s:o}", "devices", devices, "arrays", arrays));
    } else {
        json_decref(devices);
        json_decref(arrays);
    }
    return r;
}

/* Messages for what could not be used, on stderr as all messages, and the exit status. */
static int
tell_unusable(const struct examine *examine)
{
    int status = CLI_OK;

    for (unsigned i = 0; i < examine->count; i++)
        if (examine->findings[i].candidate.status != 0) {
            message("%s: %s", COMMAND, examine->findings[i].candidate.error.text);
            status = CLI_FAILED;
        }
    return status;
}

static int
examine_run(struct examine *examine, bool as_json)
{
    struct error error = {0};
    int status;
    int r;

    examine->findings = calloc(examine->count, sizeof *examine->findings);
    if (!examine->findings) {
        (void)error_set(&error, -ENOMEM, "out of memory"); /* told below */
        return command_failed(COMMAND, &error);
    }
    r = loop_create(&(struct loop_config){.tasks = 16}, &examine->loop, &error);
    if (r < 0) {
        free(examine->findings);
        return command_failed(COMMAND, &error);
    }
    loop_run_task(examine->loop, examine_all, examine);
    r = examine->result;
    if (r == 0)
        r = print_all(examine, as_json);
    if (r == 0) {
        status = finish_output(COMMAND, tell_unusable(examine));
    } else {
        (void)error_set(&error, r, "%s", strerror(-r)); /* told next */
        status = command_failed(COMMAND, &error);
    }
    loop_run_task(examine->loop, close_all, examine);
    loop_destroy(examine->loop);
    free(examine->findings);
    return status;
}

int
cmd_examine(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    struct examine examine = {0};
    bool as_json = false;
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        switch (option) {
        case 'j':
            as_json = true;
            break;
        default:
            return option_common(COMMAND, help, option, argv);
        }
    if (optind == argc)
        return usage_failed(COMMAND, "no device is given");
    examine.count = (unsigned)(argc - optind);
    examine.paths = argv + optind;
    return examine_run(&examine, as_json);
}
