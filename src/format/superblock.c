/*
 * superblock.c: the md v1.x superblock.
 *
 * All integers little-endian; "sec" = 512-byte sectors; s = signed.
 *
 *   off size field               |  off size field
 *     0  4   magic 0xa92b4efc    |  136  8   data_size, sec
 *     4  4   major_version 1     |  144  8   super_offset, sec
 *     8  4   feature_map         |  152  8   recovery_offset or journal_tail, sec
 *    12  4   pad0: 0             |  160  4   dev_number
 *    16 16   set_uuid            |  164  4   cnt_corrected_read
 *    32 32   set_name            |  168 16   device_uuid
 *    64  8   ctime               |  184  1   devflags
 *    72  4s  level               |  185  1   bblog_shift
 *    76  4   layout              |  186  2   bblog_size, sec
 *    80  8   size, sec           |  188  4s  bblog_offset, sec from superblock
 *    88  4   chunksize, sec      |  192  8   utime
 *    92  4   raid_disks          |  200  8   events
 *    96  4s  bitmap_offset, sec  |  208  8   resync_offset, sec
 *   100  4s  new_level           |  216  4   sb_csum
 *   104  8   reshape_position    |  220  4   max_dev
 *   112  4s  delta_disks         |  224 32   pad3: 0, or logical block size in the first 4
 *   116  4   new_layout          |  256 2*max_dev  dev_roles
 *   120  4   new_chunk, sec      |
 *   124  4s  new_offset, sec     |
 *   128  8   data_offset, sec    |
 *
 * Valid: see the checks, in order, in superblock_decode() and superblock_check(). Everything up to
 * the checksum says whether there is a superblock; everything after it, whether this program can
 * work with what it says.
 *
 * The offsets are those of <linux/raid/md_p.h>; access goes through bytes, because a block need not
 * be aligned and a flexible array cannot be bounded.
 */
#include "format/superblock.h"

#include <inttypes.h>
#include <linux/raid/md_p.h>
#include <linux/types.h>
#include <stdio.h>

#define MAGIC              0xa92b4efcu
#define MAJOR_VERSION      1u
#define ROLES_OFFSET       256u
#define DEVICE_MIN_SEC     24u
#define DATA_MIN_SEC       10u
#define RAID_DISKS_DDF_MAX 255u
#define SECTORS_MAX        ((uint64_t)INT64_MAX / SECTOR_BYTES)

/* Name each field once: its place on disk is the kernel header's. */
#define AT(field)  offsetof(struct mdp_superblock_1, field)
#define PAD3_BYTES 32u

static_assert(MAGIC == MD_SB_MAGIC, "magic");
static_assert(AT(set_uuid) == 16 && AT(set_name) == 32 && AT(ctime) == 64 && AT(level) == 72,
              "array part");
static_assert(AT(size) == 80 && AT(chunksize) == 88 && AT(raid_disks) == 92, "array part");
static_assert(AT(bitmap_offset) == 96 && AT(new_level) == 100 && AT(reshape_position) == 104,
              "reshape part");
static_assert(AT(new_chunk) == 120 && AT(new_offset) == 124, "reshape part");
static_assert(AT(data_offset) == 128 && AT(data_size) == 136 && AT(super_offset) == 144,
              "member part");
static_assert(AT(recovery_offset) == 152 && AT(journal_tail) == 152 && AT(dev_number) == 160,
              "member part");
static_assert(AT(device_uuid) == 168 && AT(bblog_size) == 186 && AT(bblog_offset) == 188,
              "member part");
static_assert(AT(utime) == 192 && AT(events) == 200 && AT(resync_offset) == 208, "state part");
static_assert(AT(sb_csum) == 216 && AT(max_dev) == 220 && AT(pad3) == 224, "state part");
static_assert(AT(dev_roles) == ROLES_OFFSET, "roles");
static_assert(AT(pad3) + PAD3_BYTES == ROLES_OFFSET, "roles follow pad3");
static_assert(ROLES_OFFSET + 2 * SUPERBLOCK_MAX_DEV == SUPERBLOCK_BYTES,
              "the table fills the block");

static_assert(SUPERBLOCK_FEATURE_BITMAP == MD_FEATURE_BITMAP_OFFSET, "feature");
static_assert(SUPERBLOCK_FEATURE_RECOVERY_OFFSET == MD_FEATURE_RECOVERY_OFFSET, "feature");
static_assert(SUPERBLOCK_FEATURE_RESHAPE == MD_FEATURE_RESHAPE_ACTIVE, "feature");
static_assert(SUPERBLOCK_FEATURE_BAD_BLOCKS == MD_FEATURE_BAD_BLOCKS, "feature");
static_assert(SUPERBLOCK_FEATURE_REPLACEMENT == MD_FEATURE_REPLACEMENT, "feature");
static_assert(SUPERBLOCK_FEATURE_RESHAPE_BACKWARDS == MD_FEATURE_RESHAPE_BACKWARDS, "feature");
static_assert(SUPERBLOCK_FEATURE_NEW_OFFSET == MD_FEATURE_NEW_OFFSET, "feature");
static_assert(SUPERBLOCK_FEATURE_RECOVERY_BITMAP == MD_FEATURE_RECOVERY_BITMAP, "feature");
static_assert(SUPERBLOCK_FEATURE_JOURNAL == MD_FEATURE_JOURNAL, "feature");
static_assert(SUPERBLOCK_FEATURE_PPL == MD_FEATURE_PPL, "feature");
static_assert(SUPERBLOCK_ROLE_SPARE == MD_DISK_ROLE_SPARE, "role");
static_assert(SUPERBLOCK_ROLE_FAULTY == MD_DISK_ROLE_FAULTY, "role");
static_assert(SUPERBLOCK_ROLE_JOURNAL == MD_DISK_ROLE_JOURNAL, "role");

/* ---- Where it is ---- */

int
superblock_offset(uint32_t minor, uint64_t device_bytes, uint64_t *offset_bytes)
{
    const uint64_t device_sectors = device_bytes / SECTOR_BYTES;

    if (minor >= SUPERBLOCK_MINORS)
        return -EINVAL;
    if (device_sectors < DEVICE_MIN_SEC)
        return -ENOSPC;
    switch (minor) {
    case 0:
        *offset_bytes = round_down(device_sectors - 16, 8) * SECTOR_BYTES;
        break;
    case 1:
        *offset_bytes = 0;
        break;
    default:
        *offset_bytes = 8 * SECTOR_BYTES;
        break;
    }
    return 0;
}

/* ---- Checksum and sizes ---- */

uint32_t
superblock_checksum(const uint8_t block[SUPERBLOCK_BYTES], uint32_t max_dev)
{
    const size_t bytes = ROLES_OFFSET + 2 * (size_t)max_dev;
    uint64_t sum = 0;
    size_t at;

    assert(max_dev <= SUPERBLOCK_MAX_DEV);
    for (at = 0; at + 4 <= bytes; at += 4)
        if (at != AT(sb_csum))
            sum += load_le32(block + at);
    if (at < bytes)
        sum += load_le16(block + at);
    return (uint32_t)(sum & UINT32_MAX) + (uint32_t)(sum >> 32);
}

uint32_t
superblock_max_dev_for(uint32_t device_count)
{
    const size_t bytes = round_up(ROLES_OFFSET + 2 * (uint64_t)device_count, SECTOR_BYTES);

    assert(device_count <= SUPERBLOCK_MAX_DEV);
    return (uint32_t)((bytes - ROLES_OFFSET) / 2);
}

size_t
superblock_written_bytes(uint32_t max_dev, uint32_t logical_block_bytes)
{
    assert(max_dev <= SUPERBLOCK_MAX_DEV);
    assert(is_power_of_two(logical_block_bytes) && logical_block_bytes <= SUPERBLOCK_BYTES);
    return round_up(ROLES_OFFSET + 2 * (uint64_t)max_dev, logical_block_bytes);
}

/* ---- Checks ---- */

bool
superblock_layout_is_known(int32_t level, uint32_t layout)
{
    switch (level) {
    case 4:
        return true;
    case 5:
        return layout <= 5;
    case 6:
        return layout <= 5 || (layout >= 8 && layout <= 10) || (layout >= 16 && layout <= 20);
    default:
        return false;
    }
}

static const char *
level_name(int32_t level)
{
    switch (level) {
    case 0:
        return "RAID-0";
    case 1:
        return "RAID-1";
    case 10:
        return "RAID-10";
    case -1:
        return "linear";
    case -4:
        return "multipath";
    default:
        return "unknown";
    }
}

/* What is asked for in the feature word and cannot be given. */
static int
check_features(const struct superblock *sb, struct format_error *error)
{
    static const struct {
        uint32_t bit;
        const char *text;
    } refused[] = {
        {SUPERBLOCK_FEATURE_RESHAPE,
         "the array is in the middle of a reshape; let Linux finish it first"},
        {SUPERBLOCK_FEATURE_RESHAPE_BACKWARDS,
         "the array is being reshaped (backwards); let Linux finish it first"},
        {SUPERBLOCK_FEATURE_NEW_OFFSET,
         "the array is being reshaped (new data offset); let Linux finish it first"},
        {SUPERBLOCK_FEATURE_CLUSTERED, "clustered arrays are not supported"},
        {SUPERBLOCK_FEATURE_PPL, "arrays with a partial parity log (PPL) are not supported"},
        {SUPERBLOCK_FEATURE_MULTIPLE_PPLS,
         "arrays with partial parity logs (multiple PPLs) are not supported"},
        {SUPERBLOCK_FEATURE_RAID0_LAYOUT, "a RAID-0 layout on another level"},
    };
    const uint32_t unknown = sb->feature_map & ~(uint32_t)SUPERBLOCK_FEATURES_KNOWN;
    const uint32_t journal_and_bitmap = SUPERBLOCK_FEATURE_JOURNAL | SUPERBLOCK_FEATURE_BITMAP;

    if (unknown)
        return format_refuse(error, ENOTSUP,
                             "feature_map 0x%" PRIx32 ": unknown feature bits 0x%" PRIx32,
                             sb->feature_map, unknown);
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        if (sb->feature_map & refused[i].bit)
            return format_refuse(error, ENOTSUP, "feature_map 0x%" PRIx32 ": %s", sb->feature_map,
                                 refused[i].text);
    if ((sb->feature_map & journal_and_bitmap) == journal_and_bitmap)
        return format_refuse(error, EBADMSG,
                             "feature_map 0x%" PRIx32 ": a journal and a bitmap exclude each other",
                             sb->feature_map);
    return 0;
}

/* Level, layout, chunk, number of members, component size: what geometry will compute with (S1). */
static int
check_array(const struct superblock *sb, struct format_error *error)
{
    const uint32_t disks_min = sb->level == 6 ? 4 : 2;
    const bool ddf = sb->level == 6 && sb->layout >= 8 && sb->layout <= 10;
    uint64_t component_sectors;

    if (!superblock_layout_is_known(sb->level, sb->layout))
        return format_refuse(error, ENOTSUP, "layout %" PRIu32 " of RAID-%" PRId32 " is not known",
                             sb->layout, sb->level);
    if (sb->raid_disks < disks_min)
        return format_refuse(error, EBADMSG,
                             "raid_disks %" PRIu32 ": RAID-%" PRId32 " has at least %" PRIu32,
                             sb->raid_disks, sb->level, disks_min);
    if (sb->raid_disks > MEMBERS_MAX)
        return format_refuse(error, ENOTSUP, "raid_disks %" PRIu32 ": at most %u are supported",
                             sb->raid_disks, MEMBERS_MAX);
    /* Q's exponent is the member's number there, and 255 is 0 again. */
    if (ddf && sb->raid_disks > RAID_DISKS_DDF_MAX)
        return format_refuse(error, ENOTSUP,
                             "raid_disks %" PRIu32 ": at most %u with layout %" PRIu32,
                             sb->raid_disks, RAID_DISKS_DDF_MAX, sb->layout);
    if (!is_power_of_two(sb->chunk_sectors) || sb->chunk_sectors < BLOCK_SECTORS)
        return format_refuse(error, EBADMSG,
                             "chunksize %" PRIu32 " sectors: not a power of two of at least %u",
                             sb->chunk_sectors, BLOCK_SECTORS);
    component_sectors = round_down(sb->size_sectors, sb->chunk_sectors);
    if (component_sectors == 0)
        return format_refuse(error, EBADMSG,
                             "size %" PRIu64 " sectors: less than one chunk of %" PRIu32,
                             sb->size_sectors, sb->chunk_sectors);
    if (component_sectors > SECTORS_MAX / sb->raid_disks)
        return format_refuse(error, EBADMSG,
                             "size %" PRIu64 " sectors: the array would be larger than 2^63 bytes",
                             sb->size_sectors);
    return 0;
}

/* An area at a signed distance from the superblock must be on the device; its content is checked by
 * who reads it. */
static bool
area_is_on_device(const struct superblock *sb, int32_t offset_sectors, uint32_t area_sectors,
                  uint64_t device_sectors)
{
    const int64_t start = (int64_t)sb->super_offset_sectors + offset_sectors;

    return start >= 0 && (uint64_t)start + area_sectors <= device_sectors;
}

/* This member's areas: all on the device, the data not over the superblock. */
static int
check_member(const struct superblock *sb, uint64_t device_sectors, struct format_error *error)
{
    const uint64_t offset = sb->data_offset_sectors;
    const uint64_t size = sb->data_size_sectors;
    const uint64_t end_max = sb->minor == 0 ? sb->super_offset_sectors : device_sectors;
    const size_t written = superblock_written_bytes(sb->max_dev, SECTOR_BYTES);
    const uint64_t offset_min =
        sb->minor == 0 ? 0 : sb->super_offset_sectors + written / SECTOR_BYTES;
    const uint64_t component_sectors = round_down(sb->size_sectors, sb->chunk_sectors);

    if (size < DATA_MIN_SEC)
        return format_refuse(error, EBADMSG, "data_size %" PRIu64 " sectors: less than %u", size,
                             DATA_MIN_SEC);
    if (offset < offset_min)
        return format_refuse(error, EBADMSG,
                             "data_offset %" PRIu64
                             ": inside the superblock, which ends at sector %" PRIu64,
                             offset, offset_min);
    if (size > end_max || offset > end_max - size)
        return format_refuse(
            error, EBADMSG,
            "data_offset %" PRIu64 " + data_size %" PRIu64 ": past sector %" PRIu64 " (%s)", offset,
            size, end_max, sb->minor == 0 ? "the superblock" : "the end of the device");
    if (offset % BLOCK_SECTORS != 0)
        return format_refuse(error, ENOTSUP,
                             "data_offset %" PRIu64 " sectors: not a multiple of %u", offset,
                             BLOCK_SECTORS);
    if (superblock_role_is_slot(superblock_role(sb)) && component_sectors > size)
        return format_refuse(error, EBADMSG,
                             "size %" PRIu64 " sectors: more than this member's data_size %" PRIu64,
                             sb->size_sectors, size);
    if ((sb->feature_map & SUPERBLOCK_FEATURE_BITMAP) &&
        (sb->bitmap_offset_sectors == 0 ||
         !area_is_on_device(sb, sb->bitmap_offset_sectors, 8, device_sectors)))
        return format_refuse(error, EBADMSG, "bitmap_offset %" PRId32 " sectors: not on the device",
                             sb->bitmap_offset_sectors);
    if (!(sb->feature_map & SUPERBLOCK_FEATURE_BAD_BLOCKS))
        return 0;
    if (sb->bad_block_log_sectors == 0 || sb->bad_block_log_sectors > BLOCK_SECTORS)
        return format_refuse(error, EBADMSG, "bblog_size %u sectors: not 1 to %u",
                             sb->bad_block_log_sectors, BLOCK_SECTORS);
    if (sb->bad_block_log_offset_sectors == 0 ||
        !area_is_on_device(sb, sb->bad_block_log_offset_sectors, sb->bad_block_log_sectors,
                           device_sectors))
        return format_refuse(error, EBADMSG, "bblog_offset %" PRId32 " sectors: not on the device",
                             sb->bad_block_log_offset_sectors);
    return 0;
}

/* All checks that need the fields decoded. */
static int
superblock_check(const struct superblock *sb, uint64_t device_sectors, struct format_error *error)
{
    const uint8_t *raw = sb->raw;
    int r;

    if (load_le32(raw + AT(pad0)) != 0)
        return format_refuse(error, ENOTSUP, "pad0 0x%" PRIx32 ": not zero",
                             load_le32(raw + AT(pad0)));
    if (sb->logical_block_bytes != 0 && sb->logical_block_bytes != 512 &&
        sb->logical_block_bytes != 4096)
        return format_refuse(error, ENOTSUP, "logical_block_size %" PRIu32 ": not 0, 512 or 4096",
                             sb->logical_block_bytes);
    for (size_t i = 4; i < PAD3_BYTES; i++)
        if (raw[AT(pad3) + i] != 0)
            return format_refuse(error, ENOTSUP, "pad3: byte %zu is 0x%02x, not zero", AT(pad3) + i,
                                 raw[AT(pad3) + i]);
    if (sb->level != 4 && sb->level != 5 && sb->level != 6)
        return format_refuse(error, ENOTSUP,
                             "level %" PRId32 " (%s): only RAID-4, 5 and 6 are supported",
                             sb->level, level_name(sb->level));
    r = check_features(sb, error);
    if (r < 0)
        return r;
    r = check_array(sb, error);
    if (r < 0)
        return r;
    return check_member(sb, device_sectors, error);
}

/* ---- Bytes to struct ---- */

static void
decode_fields(const uint8_t *block, uint32_t minor, struct superblock *sb)
{
    memset(sb, 0, sizeof *sb);
    sb->minor = minor;
    sb->feature_map = load_le32(block + AT(feature_map));
    memcpy(sb->set_uuid, block + AT(set_uuid), sizeof sb->set_uuid);
    memcpy(sb->set_name, block + AT(set_name), SUPERBLOCK_NAME_BYTES);
    sb->ctime = load_le64(block + AT(ctime));
    sb->level = (int32_t)load_le32(block + AT(level));
    sb->layout = load_le32(block + AT(layout));
    sb->size_sectors = load_le64(block + AT(size));
    sb->chunk_sectors = load_le32(block + AT(chunksize));
    sb->raid_disks = load_le32(block + AT(raid_disks));
    sb->bitmap_offset_sectors = (int32_t)load_le32(block + AT(bitmap_offset));
    sb->new_level = (int32_t)load_le32(block + AT(new_level));
    sb->reshape_position_sectors = load_le64(block + AT(reshape_position));
    sb->delta_disks = (int32_t)load_le32(block + AT(delta_disks));
    sb->new_layout = load_le32(block + AT(new_layout));
    sb->new_chunk_sectors = load_le32(block + AT(new_chunk));
    sb->new_offset_sectors = (int32_t)load_le32(block + AT(new_offset));
    sb->data_offset_sectors = load_le64(block + AT(data_offset));
    sb->data_size_sectors = load_le64(block + AT(data_size));
    sb->super_offset_sectors = load_le64(block + AT(super_offset));
    sb->recovery_offset_sectors = load_le64(block + AT(recovery_offset));
    sb->dev_number = load_le32(block + AT(dev_number));
    sb->corrected_reads = load_le32(block + AT(cnt_corrected_read));
    memcpy(sb->device_uuid, block + AT(device_uuid), sizeof sb->device_uuid);
    sb->devflags = block[AT(devflags)];
    sb->bad_block_log_shift = block[AT(bblog_shift)];
    sb->bad_block_log_sectors = load_le16(block + AT(bblog_size));
    sb->bad_block_log_offset_sectors = (int32_t)load_le32(block + AT(bblog_offset));
    sb->utime = load_le64(block + AT(utime));
    sb->events = load_le64(block + AT(events));
    sb->resync_offset_sectors = load_le64(block + AT(resync_offset));
    sb->max_dev = load_le32(block + AT(max_dev));
    sb->logical_block_bytes = load_le32(block + AT(pad3));
    for (uint32_t i = 0; i < sb->max_dev; i++)
        sb->dev_roles[i] = load_le16(block + ROLES_OFFSET + 2 * i);
    memcpy(sb->raw, block, sizeof sb->raw);
}

int
superblock_decode(const uint8_t block[SUPERBLOCK_BYTES], uint32_t minor, uint64_t device_bytes,
                  struct superblock *sb, struct format_error *error)
{
    const uint32_t major = load_le32(block + AT(major_version));
    const uint32_t max_dev = load_le32(block + AT(max_dev));
    const uint32_t stored = load_le32(block + AT(sb_csum));
    const uint64_t super_offset = load_le64(block + AT(super_offset));
    uint64_t offset_bytes;
    uint32_t computed;

    memset(sb, 0, sizeof *sb);
    if (superblock_offset(minor, device_bytes, &offset_bytes) < 0)
        return format_refuse(error, ENOENT, "the device is too small for a superblock");
    if (load_le32(block + AT(magic)) != MAGIC)
        return format_refuse(error, ENOENT, "no superblock at byte %" PRIu64, offset_bytes);
    if (major != MAJOR_VERSION)
        return format_refuse(error, ENOTSUP,
                             "major_version %" PRIu32 ": only version 1 superblocks are supported",
                             major);
    if (max_dev > SUPERBLOCK_MAX_DEV)
        return format_refuse(error, EBADMSG, "max_dev %" PRIu32 ": more than %u", max_dev,
                             SUPERBLOCK_MAX_DEV);
    computed = superblock_checksum(block, max_dev);
    if (stored != computed)
        return format_refuse(error, EBADMSG,
                             "sb_csum 0x%08" PRIx32 ": the content's checksum is 0x%08" PRIx32,
                             stored, computed);
    /* Sound, but written for a device that starts or ends elsewhere: a whole disk and its last
     * partition share it. */
    if (super_offset != offset_bytes / SECTOR_BYTES)
        return format_refuse(error, ENOENT,
                             "super_offset %" PRIu64 ": found at sector %" PRIu64
                             ", so it belongs to another device",
                             super_offset, offset_bytes / SECTOR_BYTES);

    decode_fields(block, minor, sb);
    return superblock_check(sb, device_bytes / SECTOR_BYTES, error);
}

bool
superblock_is_readable(const struct superblock *sb)
{
    return load_le32(sb->raw + AT(magic)) == MAGIC;
}

/* ---- Struct to bytes ---- */

size_t
superblock_encode(const struct superblock *sb, uint8_t block[SUPERBLOCK_BYTES])
{
    assert(sb->max_dev <= SUPERBLOCK_MAX_DEV);
    assert(sb->set_name[SUPERBLOCK_NAME_BYTES] == '\0');

    memcpy(block, sb->raw, SUPERBLOCK_BYTES);
    store_le32(block + AT(magic), MAGIC);
    store_le32(block + AT(major_version), MAJOR_VERSION);
    store_le32(block + AT(feature_map), sb->feature_map);
    memcpy(block + AT(set_uuid), sb->set_uuid, sizeof sb->set_uuid);
    memcpy(block + AT(set_name), sb->set_name, SUPERBLOCK_NAME_BYTES);
    store_le64(block + AT(ctime), sb->ctime);
    store_le32(block + AT(level), (uint32_t)sb->level);
    store_le32(block + AT(layout), sb->layout);
    store_le64(block + AT(size), sb->size_sectors);
    store_le32(block + AT(chunksize), sb->chunk_sectors);
    store_le32(block + AT(raid_disks), sb->raid_disks);
    store_le32(block + AT(bitmap_offset), (uint32_t)sb->bitmap_offset_sectors);
    store_le32(block + AT(new_level), (uint32_t)sb->new_level);
    store_le64(block + AT(reshape_position), sb->reshape_position_sectors);
    store_le32(block + AT(delta_disks), (uint32_t)sb->delta_disks);
    store_le32(block + AT(new_layout), sb->new_layout);
    store_le32(block + AT(new_chunk), sb->new_chunk_sectors);
    store_le32(block + AT(new_offset), (uint32_t)sb->new_offset_sectors);
    store_le64(block + AT(data_offset), sb->data_offset_sectors);
    store_le64(block + AT(data_size), sb->data_size_sectors);
    store_le64(block + AT(super_offset), sb->super_offset_sectors);
    store_le64(block + AT(recovery_offset), sb->recovery_offset_sectors);
    store_le32(block + AT(dev_number), sb->dev_number);
    store_le32(block + AT(cnt_corrected_read), sb->corrected_reads);
    memcpy(block + AT(device_uuid), sb->device_uuid, sizeof sb->device_uuid);
    block[AT(devflags)] = sb->devflags;
    block[AT(bblog_shift)] = sb->bad_block_log_shift;
    store_le16(block + AT(bblog_size), sb->bad_block_log_sectors);
    store_le32(block + AT(bblog_offset), (uint32_t)sb->bad_block_log_offset_sectors);
    store_le64(block + AT(utime), sb->utime);
    store_le64(block + AT(events), sb->events);
    store_le64(block + AT(resync_offset), sb->resync_offset_sectors);
    store_le32(block + AT(max_dev), sb->max_dev);
    for (uint32_t i = 0; i < sb->max_dev; i++)
        store_le16(block + ROLES_OFFSET + 2 * i, sb->dev_roles[i]);
    store_le32(block + AT(sb_csum), superblock_checksum(block, sb->max_dev));
    return superblock_written_bytes(sb->max_dev, SECTOR_BYTES);
}

void
superblock_init(struct superblock *sb, uint32_t minor, uint32_t device_count)
{
    memset(sb, 0, sizeof *sb);
    sb->minor = minor;
    sb->max_dev = superblock_max_dev_for(device_count);
    for (uint32_t i = 0; i < sb->max_dev; i++)
        sb->dev_roles[i] = SUPERBLOCK_ROLE_SPARE;
}

const struct superblock *
superblock_choose(const struct superblock *a, const struct superblock *b)
{
    uint64_t seconds_a, seconds_b;

    if (!a || !b)
        return a ? a : b;
    seconds_a = superblock_time_seconds(a->ctime);
    seconds_b = superblock_time_seconds(b->ctime);
    if (seconds_a != seconds_b)
        return seconds_a > seconds_b ? a : b;
    return superblock_time_microseconds(b->ctime) > superblock_time_microseconds(a->ctime) ? b : a;
}

/* ---- 0.90 ---- */

int
superblock_offset_090(uint64_t device_bytes, uint64_t *offset_bytes)
{
    const uint64_t reserved_bytes = 64 * KIB;

    if (device_bytes < reserved_bytes)
        return -ENOSPC;
    *offset_bytes = round_down(device_bytes, reserved_bytes) - reserved_bytes;
    return 0;
}

int
superblock_probe_090(const uint8_t block[SUPERBLOCK_BYTES], struct format_error *error)
{
    /* 0.90 is in the byte order of the machine that made it. */
    const uint32_t magic = load_le32(block);

    if ((magic != MAGIC && magic != __builtin_bswap32(MAGIC)) || load_le32(block + 4) != 0)
        return 0;
    return format_refuse(error, ENOTSUP,
                         "metadata format 0.90 is not supported, only 1.0, 1.1 and 1.2");
}

/* ---- Reading it ---- */

uint64_t
superblock_resync_offset_bytes(const struct superblock *sb)
{
    return min_u64(sb->resync_offset_sectors, superblock_component_bytes(sb) / SECTOR_BYTES) *
           SECTOR_BYTES;
}

uint64_t
superblock_recovery_offset_bytes(const struct superblock *sb)
{
    const uint64_t component_sectors = superblock_component_bytes(sb) / SECTOR_BYTES;

    if (!(sb->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET))
        return component_sectors * SECTOR_BYTES;
    return min_u64(sb->recovery_offset_sectors, component_sectors) * SECTOR_BYTES;
}

uint64_t
superblock_bitmap_offset_bytes(const struct superblock *sb)
{
    return (sb->super_offset_sectors + (uint64_t)(int64_t)sb->bitmap_offset_sectors) * SECTOR_BYTES;
}

uint64_t
superblock_bad_blocks_offset_bytes(const struct superblock *sb)
{
    return (sb->super_offset_sectors + (uint64_t)(int64_t)sb->bad_block_log_offset_sectors) *
           SECTOR_BYTES;
}

uint16_t
superblock_role_of(const struct superblock *sb, uint32_t dev_number)
{
    uint16_t role;

    if (dev_number >= sb->max_dev)
        return SUPERBLOCK_ROLE_SPARE;
    role = sb->dev_roles[dev_number];
    if (role == SUPERBLOCK_ROLE_JOURNAL || role == SUPERBLOCK_ROLE_FAULTY || role < sb->raid_disks)
        return role;
    return SUPERBLOCK_ROLE_SPARE;
}

/* ---- Building one ---- */

void
superblock_set_name(struct superblock *sb, const char *homehost, const char *name)
{
    const size_t length_max = SUPERBLOCK_NAME_BYTES - 1;
    const size_t name_length = strlen(name);

    memset(sb->set_name, 0, sizeof sb->set_name);
    if (homehost && homehost[0] && !strchr(name, ':') &&
        strlen(homehost) + 1 + name_length <= length_max)
        (void)snprintf(sb->set_name, sizeof sb->set_name, "%s:%s", homehost, name);
    else
        memcpy(sb->set_name, name, min_u64(name_length, length_max));
}

#define TIME_SECONDS_BITS 40

uint64_t
superblock_time(uint64_t seconds, uint32_t microseconds)
{
    return (seconds & ((1ull << TIME_SECONDS_BITS) - 1)) | (uint64_t)microseconds
                                                               << TIME_SECONDS_BITS;
}

uint64_t
superblock_time_seconds(uint64_t time)
{
    return time & ((1ull << TIME_SECONDS_BITS) - 1);
}

uint32_t
superblock_time_microseconds(uint64_t time)
{
    return (uint32_t)(time >> TIME_SECONDS_BITS);
}

/* ---- For people ---- */

void
superblock_uuid_text(const uint8_t uuid[SUPERBLOCK_UUID_BYTES],
                     char text[SUPERBLOCK_UUID_TEXT_BYTES])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < SUPERBLOCK_UUID_BYTES; i++) {
        if (i != 0 && i % 4 == 0)
            *text++ = ':';
        *text++ = digits[uuid[i] >> 4];
        *text++ = digits[uuid[i] & 15];
    }
    *text = '\0';
}

void
superblock_name_text(const struct superblock *sb, char text[SUPERBLOCK_NAME_TEXT_BYTES])
{
    for (const char *at = sb->set_name; *at; at++) {
        const unsigned char c = (unsigned char)*at;

        if (c >= 0x20 && c < 0x7f && c != '\\')
            *text++ = (char)c;
        else
            text += sprintf(text, "\\x%02x", c);
    }
    *text = '\0';
}
