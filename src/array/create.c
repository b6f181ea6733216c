/*
 * create.c: the superblocks of a new array.
 */
#include "array/create.h"

#include "format/journal_entry.h"
#include "format/placement.h"
#include "geometry/geometry.h"

#include <inttypes.h>

static unsigned
parity_count(int level)
{
    return level == 6 ? 2 : 1;
}

static unsigned
missing_count(const struct create_device *devices, unsigned count)
{
    unsigned missing = 0;

    for (unsigned i = 0; i < count; i++)
        missing += devices[i].name == NULL;
    return missing;
}

static int
check_name(const char *name, struct error *error)
{
    const size_t length = strlen(name);

    if (length == 0)
        return error_set(error, -EINVAL, "the name is empty");
    if (length > CREATE_NAME_BYTES_MAX)
        return error_set(error, -EINVAL, "the name has %zu bytes, and there is room for %u", length,
                         CREATE_NAME_BYTES_MAX);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return error_set(error, -EINVAL, "the name contains a control character");
    return 0;
}

int
create_check(const struct create_options *options, const struct create_device *devices,
             unsigned count, struct error *error)
{
    const unsigned missing = missing_count(devices, count);
    const bool ddf = options->level == 6 && options->layout >= 8 && options->layout <= 10;
    const unsigned count_max = ddf ? MEMBERS_MAX - 1 : MEMBERS_MAX;
    unsigned count_min;

    if (options->level != 4 && options->level != 5 && options->level != 6)
        return error_set(error, -EINVAL, "level %d: only 4, 5 and 6 are supported", options->level);
    if (!superblock_layout_is_known(options->level, options->layout))
        return error_set(error, -EINVAL, "layout %u is not known for RAID-%d", options->layout,
                         options->level);
    if (options->minor >= SUPERBLOCK_MINORS)
        return error_set(error, -EINVAL, "metadata 1.%" PRIu32 ": only 1.0, 1.1 and 1.2 are known",
                         options->minor);
    count_min = options->level == 6 ? 4 : 2;
    if (count < count_min)
        return error_set(error, -EINVAL, "%u member%s: RAID-%d needs at least %u", count,
                         count == 1 ? "" : "s", options->level, count_min);
    if (count > count_max)
        return error_set(error, -EINVAL, "%u members: there can be at most %u", count, count_max);
    if (!is_power_of_two(options->chunk_bytes) || options->chunk_bytes < BLOCK_BYTES ||
        options->chunk_bytes > CREATE_CHUNK_BYTES_MAX)
        return error_set(error, -EINVAL,
                         "chunk of %" PRIu64 " bytes: it must be a power of two from 4K to 1G",
                         options->chunk_bytes);
    if (missing > parity_count(options->level))
        return error_set(error, -EINVAL, "%u members are missing, and RAID-%d can do without %u",
                         missing, options->level, parity_count(options->level));
    if (options->write_journal && count > JOURNAL_MEMBERS_MAX)
        return error_set(error, -EINVAL, "%u members: with a journal there can be at most %u",
                         count, (unsigned)JOURNAL_MEMBERS_MAX);
    if (options->level == 6 && missing > 0 && !options->assume_clean)
        return error_set(error, -EINVAL,
                         "--assume-clean says that parity agrees already, or need not\n"
                         "a RAID-6 with a missing member cannot be resynced");
    if (options->name)
        return check_name(options->name, error);
    return 0;
}

/* Level, layout, name, time: what all members say. */
static void
fill_array(const struct create_options *options, const struct create_device *devices,
           unsigned count, uint64_t component_bytes, struct superblock *sb)
{
    char name[9];
    const bool in_sync =
        options->assume_clean || (options->level != 6 && missing_count(devices, count) > 0);

    superblock_init(sb, options->minor, count + options->write_journal);
    memcpy(sb->set_uuid, options->set_uuid, sizeof sb->set_uuid);
    (void)snprintf(name, sizeof name, "%02x%02x%02x%02x", sb->set_uuid[0], sb->set_uuid[1],
                   sb->set_uuid[2], sb->set_uuid[3]);
    superblock_set_name(sb, NULL, options->name ? options->name : name);
    sb->ctime = options->now;
    sb->utime = options->now;
    sb->level = options->level;
    sb->layout = options->level == 4 ? 0 : options->layout;
    sb->size_sectors = component_bytes / SECTOR_BYTES;
    sb->chunk_sectors = (uint32_t)(options->chunk_bytes / SECTOR_BYTES);
    sb->raid_disks = count;
    sb->resync_offset_sectors = in_sync ? SUPERBLOCK_RESYNC_DONE : 0;
    for (unsigned i = 0; i < count; i++)
        if (devices[i].name)
            sb->dev_roles[i] = (uint16_t)i;
    if (options->write_journal) {
        sb->feature_map |= SUPERBLOCK_FEATURE_JOURNAL;
        sb->dev_roles[count] = SUPERBLOCK_ROLE_JOURNAL;
    }
}

/* The largest component that fits on every device. */
static int
find_component(const struct create_options *options, const struct placement *placement,
               const struct create_device *devices, unsigned count, uint64_t *component_bytes,
               struct error *error)
{
    const uint64_t wanted = round_down(options->size_bytes, options->chunk_bytes);

    if (options->size_bytes != 0 && wanted == 0)
        return error_set(error, -EINVAL,
                         "a size of %" PRIu64 " bytes is less than one chunk of %" PRIu64,
                         options->size_bytes, options->chunk_bytes);
    *component_bytes = UINT64_MAX;
    for (unsigned i = 0; i < count; i++) {
        uint64_t room;

        if (!devices[i].name)
            continue;
        room = placement_component_bytes(placement, devices[i].size_bytes);
        if (room == 0)
            return error_set(error, -ENOSPC,
                             "%s is too small: of its %" PRIu64 " bytes %" PRIu64
                             " come before the data, and a chunk of %" PRIu64 " does not fit",
                             devices[i].name, devices[i].size_bytes, placement->data_offset_bytes,
                             options->chunk_bytes);
        if (room < wanted)
            return error_set(error, -ENOSPC,
                             "%s is too small: it has room for %" PRIu64
                             " bytes, and the size is to be %" PRIu64,
                             devices[i].name, room, wanted);
        *component_bytes = min_u64(*component_bytes, room);
    }
    if (wanted != 0)
        *component_bytes = wanted;
    return 0;
}

int
create_plan(const struct create_options *options, const struct create_device *devices,
            unsigned count, struct superblock *superblocks, struct error *error)
{
    struct placement placement = {.minor = options->minor, .chunk_bytes = options->chunk_bytes};
    struct geometry_config config;
    struct geometry geometry;
    uint64_t component_bytes = 0;
    unsigned first = 0;
    int r;

    r = create_check(options, devices, count, error);
    if (r < 0)
        return r;
    /* create_check saw that not all are missing. */
    while (!devices[first].name)
        first++;
    placement.data_offset_bytes =
        placement_data_offset(options->minor, options->chunk_bytes, devices[first].size_bytes);
    r = find_component(options, &placement, devices, count, &component_bytes, error);
    if (r < 0)
        return r;

    config = (struct geometry_config){.level = options->level,
                                      .layout = options->layout,
                                      .members = count,
                                      .chunk_bytes = options->chunk_bytes,
                                      .size_bytes = component_bytes};
    r = geometry_init(&geometry, &config);
    if (r < 0)
        return error_set(error, -EFBIG,
                         "%u members of %" PRIu64 " bytes: the array would be too large", count,
                         component_bytes);

    for (unsigned i = 0; i < count + options->write_journal; i++) {
        struct superblock *sb = &superblocks[i];
        struct format_error why = {.text = ""};

        memset(sb, 0, sizeof *sb);
        if (!devices[i].name)
            continue;
        fill_array(options, devices, count, component_bytes, sb);
        sb->dev_number = i;
        memcpy(sb->device_uuid, devices[i].uuid, sizeof sb->device_uuid);
        r = placement_member(&placement, devices[i].size_bytes, sb, &why);
        if (r < 0)
            return error_set(error, r, "%s: %s", devices[i].name, why.text);
    }
    if (options->write_journal &&
        superblock_journal_ring_bytes(&superblocks[count]) < CREATE_JOURNAL_BYTES_MIN)
        return error_set(error, -ENOSPC,
                         "%s is too small for a journal: it has room for a log of %" PRIu64
                         " bytes, and at least %" PRIu64 " are needed",
                         devices[count].name, superblock_journal_ring_bytes(&superblocks[count]),
                         (uint64_t)CREATE_JOURNAL_BYTES_MIN);
    return 0;
}
