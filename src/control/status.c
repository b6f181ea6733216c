/*
 * status.c: see status.h.
 */
#include "control/status.h"
#include "control/protocol.h"
#include "format/superblock.h"
#include "geometry/geometry.h"

/* A value that was not made leaves the object without it; json_object_set_new says so, and
 * control_status looks once, at the end. */
struct object {
    json_t *json;
    bool failed;
};

static struct object
object_new(void)
{
    struct object object = {.json = json_object()};

    object.failed = object.json == NULL;
    return object;
}

static void
put(struct object *object, const char *key, json_t *value)
{
    object->failed |= json_object_set_new(object->json, key, value) < 0;
}

static void
put_bool(struct object *object, const char *key, bool value)
{
    put(object, key, json_boolean(value));
}

/* Where a reader may have no more than a double, nothing here comes near 2^53. */
static void
put_number(struct object *object, const char *key, uint64_t value)
{
    put(object, key, json_integer((json_int_t)min_u64(value, INT64_MAX)));
}

/* null: there is no limit. */
static void
put_limit(struct object *object, const char *key, uint64_t value)
{
    if (value == UINT64_MAX)
        put(object, key, json_null());
    else
        put_number(object, key, value);
}

static void
put_text(struct object *object, const char *key, const char *value)
{
    put(object, key, value ? control_text(value) : json_null());
}

static void
put_object(struct object *object, const char *key, struct object *value)
{
    object->failed |= value->failed;
    put(object, key, value->json);
}

/* --- Members --------------------------------------------------------------------------------- */

static const char *
member_state_name(const struct array_device *device)
{
    if (device->failed)
        return "failed";
    return device->fate == FATE_REBUILDING ? "rebuilding" : "in-sync";
}

static bool
find_member(const struct array *array, unsigned member, struct array_device *device)
{
    for (unsigned i = 0; array_device(array, i, device); i++)
        if (device->member == (int)member)
            return true;
    return false;
}

static void
put_members(struct object *object, const struct array *array, unsigned count)
{
    json_t *members = json_array();

    for (unsigned m = 0; m < count; m++) {
        struct object member = object_new();
        struct array_device device;

        put_number(&member, "member", m);
        if (find_member(array, m, &device)) {
            put_text(&member, "device", device.name);
            put_text(&member, "state", member_state_name(&device));
            if (device.fate == FATE_REBUILDING)
                put_number(&member, "rebuilt_bytes", device.rebuilt_bytes);
        } else {
            put_text(&member, "device", NULL);
            put_text(&member, "state", "missing");
        }
        object->failed |= member.failed || json_array_append_new(members, member.json) < 0;
    }
    put(object, "members", members);
}

/* What was named and is neither a member nor the journal. */
static void
put_left_out(struct object *object, const struct array *array)
{
    json_t *devices = json_array();
    struct array_device device;

    for (unsigned i = 0; array_device(array, i, &device); i++) {
        struct object left_out;

        if (device.member >= 0 || device.journal)
            continue;
        left_out = object_new();
        put_text(&left_out, "device", device.name);
        put_text(&left_out, "state", member_fate_name(device.fate));
        object->failed |= left_out.failed || json_array_append_new(devices, left_out.json) < 0;
    }
    put(object, "left_out", devices);
}

/* --- The journal ----------------------------------------------------------------------------- */

const char *
control_mode_reason(const struct array_status *status)
{
    if (status->journal_mode == status->journal_mode_wanted)
        return NULL;
    if (status->journal_failed)
        return "the journal has failed";
    if (status->failed)
        return "the array has failed";
    if (status->readonly)
        return "the array is readonly";
    if (status->no_write_back != NULL)
        return status->no_write_back;
    if (status->degraded > 0)
        return "the array is degraded";
    return "the array is being stopped";
}

static const char *
journal_state_name(const struct array_status *status)
{
    if (status->journal_failed)
        return "failed";
    if (status->journaled)
        return "in-use";
    return status->recovered ? "readonly" : "missing";
}

static void
put_cache(struct object *object, const struct write_back_status *cache)
{
    struct object json = object_new();

    put_number(&json, "cached_bytes", cache->blocks * BLOCK_BYTES);
    put_number(&json, "cached_max_bytes", cache->blocks_max * BLOCK_BYTES);
    put_number(&json, "in_memory_bytes", cache->pages * BLOCK_BYTES);
    put_number(&json, "in_memory_max_bytes", cache->pages_max * BLOCK_BYTES);
    put_number(&json, "stripes", cache->stripes);
    put_limit(&json, "stripes_max", cache->stripes_max);
    put_number(&json, "blocks_cached", cache->cached_total);
    put_number(&json, "blocks_overwritten", cache->overwritten);
    put_number(&json, "blocks_read_from_memory", cache->read_hits);
    put_number(&json, "blocks_read_from_journal", cache->read_back);
    put_number(&json, "blocks_written_out", cache->written_out);
    put_number(&json, "groups_written_out", cache->groups_written_out);
    put_number(&json, "blocks_lost", cache->lost);
    put_object(object, "cache", &json);
}

static const char *
journal_device(const struct array *array)
{
    struct array_device device;

    for (unsigned i = 0; array_device(array, i, &device); i++)
        if (device.journal)
            return device.name;
    return NULL;
}

static void
put_journal(struct object *object, const struct array *array, const struct array_status *status)
{
    const struct journal_status *journal = &status->journal;
    struct object json;

    if (!status->assembly->journal_expected && !status->journaled) {
        put(object, "journal", json_null());
        return;
    }
    json = object_new();
    put_text(&json, "device", journal_device(array));
    put_text(&json, "state", journal_state_name(status));
    put_text(&json, "mode", control_mode_name(status->journal_mode));
    put_text(&json, "mode_wanted", control_mode_name(status->journal_mode_wanted));
    put_text(&json, "mode_reason", control_mode_reason(status));
    put_bool(&json, "draining", status->draining);
    if (status->journaled) {
        put_number(&json, "ring_bytes", journal->ring_bytes);
        put_number(&json, "used_bytes", journal->used_bytes);
        put_number(&json, "entries", journal->entries);
        put_number(&json, "stripes", journal->stripes);
        put_number(&json, "logged_bytes", journal->logged_bytes);
        put_number(&json, "written_bytes", journal->written_bytes);
        put_number(&json, "flushes", journal->flushes);
        put_number(&json, "checkpoints", journal->checkpoints);
        put_number(&json, "waits", journal->waits);
    }
    if (status->write_back.blocks_max > 0)
        put_cache(&json, &status->write_back);
    else
        put(&json, "cache", json_null());
    put_object(object, "journal", &json);
}

/* --- The array ------------------------------------------------------------------------------- */

static const char *
state_name(const struct array_status *status)
{
    if (status->failed)
        return "failed";
    if (status->readonly)
        return "readonly";
    return status->active ? "active" : "clean";
}

static void
put_resync(struct object *object, const struct array_status *status)
{
    struct object json = object_new();

    put_bool(&json, "running", status->resyncing);
    put_number(&json, "done_bytes", status->resync_done_bytes);
    put_number(&json, "total_bytes", status->resync_total_bytes);
    put_object(object, "resync", &json);
}

json_t *
control_status(const struct array *array)
{
    struct object object = object_new();
    struct array_status status;
    char uuid[SUPERBLOCK_UUID_TEXT_BYTES];

    array_status(array, &status);
    superblock_uuid_text(status.superblock->set_uuid, uuid);
    put_text(&object, "name", status.superblock->set_name);
    put_text(&object, "uuid", uuid);
    put_text(&object, "state", state_name(&status));
    put_bool(&object, "readonly", status.readonly);
    put_number(&object, "level", (uint64_t)status.geometry->level);
    put_text(&object, "layout",
             geometry_layout_name(status.geometry->level, status.geometry->layout));
    put_number(&object, "chunk_bytes", status.geometry->chunk_bytes);
    put_number(&object, "size_bytes", status.size_bytes);
    put_number(&object, "member_bytes", status.geometry->member_bytes);
    put_number(&object, "raid_devices", status.geometry->members);
    put_number(&object, "degraded", status.degraded);
    put_members(&object, array, status.geometry->members);
    put_left_out(&object, array);
    put_resync(&object, &status);
    put_number(&object, "members_failed", status.members_failed);
    put_number(&object, "blocks_corrected", status.reads_corrected);
    put_number(&object, "superblock_updates", status.superblock_updates);
    put_journal(&object, array, &status);
    if (object.failed) {
        json_decref(object.json);
        return NULL;
    }
    return object.json;
}
