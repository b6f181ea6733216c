/*
 * superblock.h: the md v1.x superblock, bytes <-> struct.
 *
 * A superblock is 256 fixed bytes and a table of roles, little-endian, in the first 4096 bytes at
 * one of three places (minor version: 1.0 near the end of the device, 1.1 at its start, 1.2 at 4096
 * bytes). The table of fields is in superblock.c, beside the code that reads them.
 *
 * struct superblock is the decoded form. It stands at the border to the kernel's format, so its
 * fields keep the units of the disk (`_sectors` are 512 bytes) and decoding and encoding are exact
 * inverses; everybody else uses the `_bytes` functions below, which cannot overflow on a superblock
 * that superblock_decode() accepted.
 *
 * Invariants:
 *
 *  S1  An accepted superblock describes an array that can be computed with: known level and layout,
 *      chunk a power of two, 0 < component size, array size <= INT64_MAX bytes, and all of this
 *      member's areas inside the device.
 *
 *  S2  What this program does not understand survives a rewrite: the 4096 bytes as read are kept in
 *      `raw`, and superblock_encode() replaces only the fields below, the roles in use and the
 *      checksum.
 */
#ifndef STRIPELOG_FORMAT_SUPERBLOCK_H
#define STRIPELOG_FORMAT_SUPERBLOCK_H

#include "base/base.h"
#include "format/format_error.h"

#define SUPERBLOCK_BYTES         4096u
#define SUPERBLOCK_MAX_DEV       1920u
#define SUPERBLOCK_MINORS        3u /* 1.0, 1.1, 1.2 */
#define SUPERBLOCK_MINOR_DEFAULT 2u
#define SUPERBLOCK_NAME_BYTES    32u
#define SUPERBLOCK_UUID_BYTES    16u

/* resync_offset when all parity is known to be in sync. */
#define SUPERBLOCK_RESYNC_DONE UINT64_MAX

/* Entries of dev_roles that are not a slot. */
#define SUPERBLOCK_ROLE_SPARE   0xffffu
#define SUPERBLOCK_ROLE_FAULTY  0xfffeu
#define SUPERBLOCK_ROLE_JOURNAL 0xfffdu

enum superblock_feature {
    SUPERBLOCK_FEATURE_BITMAP = 0x1,
    SUPERBLOCK_FEATURE_RECOVERY_OFFSET = 0x2,
    SUPERBLOCK_FEATURE_RESHAPE = 0x4,
    SUPERBLOCK_FEATURE_BAD_BLOCKS = 0x8,
    SUPERBLOCK_FEATURE_REPLACEMENT = 0x10,
    SUPERBLOCK_FEATURE_RESHAPE_BACKWARDS = 0x20,
    SUPERBLOCK_FEATURE_NEW_OFFSET = 0x40,
    SUPERBLOCK_FEATURE_RECOVERY_BITMAP = 0x80,
    SUPERBLOCK_FEATURE_CLUSTERED = 0x100,
    SUPERBLOCK_FEATURE_JOURNAL = 0x200,
    SUPERBLOCK_FEATURE_PPL = 0x400,
    SUPERBLOCK_FEATURE_MULTIPLE_PPLS = 0x800,
    SUPERBLOCK_FEATURE_RAID0_LAYOUT = 0x1000,
    SUPERBLOCK_FEATURES_KNOWN = 0x1fff,
};

/* About 8 KiB: keep it off task stacks where several are needed. */
struct superblock {
    /* Where it was found, or is to be written: 0, 1 or 2. Not on disk. */
    uint32_t minor;

    /* The array; the same on all its members. */
    uint32_t feature_map; /* a few of its bits are the member's own */
    uint8_t set_uuid[SUPERBLOCK_UUID_BYTES];
    char set_name[SUPERBLOCK_NAME_BYTES + 1]; /* always NUL-terminated here */
    uint64_t ctime;                           /* superblock_time() */
    int32_t level;
    uint32_t layout;
    uint64_t size_sectors; /* component size as stored; superblock_component_bytes() is what is used
                              of it */
    uint32_t chunk_sectors;
    uint32_t raid_disks;
    int32_t bitmap_offset_sectors; /* from the superblock, signed */
    int32_t new_level;             /* the six reshape fields are only carried along */
    uint64_t reshape_position_sectors;
    int32_t delta_disks;
    uint32_t new_layout;
    uint32_t new_chunk_sectors;
    int32_t new_offset_sectors;

    /* This member. */
    uint64_t data_offset_sectors;
    uint64_t data_size_sectors;
    uint64_t super_offset_sectors;
    union {                               /* one field on disk */
        uint64_t recovery_offset_sectors; /* with FEATURE_RECOVERY_OFFSET: below this the member is
                                             rebuilt */
        uint64_t journal_tail_sectors;    /* on the journal: where recovery starts, unchecked */
    };
    uint32_t dev_number;
    uint32_t corrected_reads;
    uint8_t device_uuid[SUPERBLOCK_UUID_BYTES];
    uint8_t devflags;
    uint8_t bad_block_log_shift;
    uint16_t bad_block_log_sectors;
    int32_t bad_block_log_offset_sectors; /* from the superblock, signed */

    /* State. */
    uint64_t utime;
    uint64_t events;
    uint64_t resync_offset_sectors; /* SUPERBLOCK_RESYNC_DONE, or parity at and above this is not
                                       known good */
    uint32_t max_dev;
    uint32_t logical_block_bytes; /* 0, 512 or 4096; read only, survives in raw */
    uint16_t dev_roles[SUPERBLOCK_MAX_DEV];

    /* The block as it was read, zeros for a new one (S2). */
    uint8_t raw[SUPERBLOCK_BYTES];
};

/* ---- Where it is ---- */

/* Byte offset of the superblock of a minor version. -ENOSPC: the device is under 24 sectors;
 * -EINVAL: no such minor. */
must_check int superblock_offset(uint32_t minor, uint64_t device_bytes, uint64_t *offset_bytes);

/* ---- Bytes to struct and back ---- */

/*
 * Decode and check the 4096 bytes read at the place of `minor` on a device of that size.
 *
 *   0         accepted: S1 holds
 *   -ENOENT   no superblock, or one that belongs elsewhere (to the whole disk, when seen through
 *             its last partition)
 *   -EBADMSG  damaged, or a field out of range
 *   -ENOTSUP  intact, but a reshape, another level, PPL, ...
 *
 * With -EBADMSG and -ENOTSUP superblock_is_readable() says whether *sb holds what was found, for
 * display only; otherwise it is all zeros. error may be NULL.
 */
must_check int superblock_decode(const uint8_t block[SUPERBLOCK_BYTES], uint32_t minor,
                                 uint64_t device_bytes, struct superblock *sb,
                                 struct format_error *error);

/* Its checksum was right, so its fields are what somebody meant to write, however strange. */
must_check bool superblock_is_readable(const struct superblock *sb);

/* Fill block, checksum included. Returns the bytes of it that are in use, a multiple of 512. */
must_check size_t superblock_encode(const struct superblock *sb, uint8_t block[SUPERBLOCK_BYTES]);

/* The checksum that belongs into these bytes; the one that is there does not count. max_dev <=
 * SUPERBLOCK_MAX_DEV. */
must_check uint32_t superblock_checksum(const uint8_t block[SUPERBLOCK_BYTES], uint32_t max_dev);

/* A new superblock: all zero, room for this many devices (spares and journal too), all of them
 * spare. */
void superblock_init(struct superblock *sb, uint32_t minor, uint32_t device_count);

/* The one to believe of two that were found on one device: the larger ctime. Either may be NULL. */
must_check const struct superblock *superblock_choose(const struct superblock *a,
                                                      const struct superblock *b);

/* ---- Another format, only to be named ---- */

/* Where a 0.90 superblock would be; -ENOSPC on a device too small to hold one. Read 4096 bytes
 * there. */
must_check int superblock_offset_090(uint64_t device_bytes, uint64_t *offset_bytes);

/* -ENOTSUP with a text if these 4096 bytes are a 0.90 superblock, else 0. */
must_check int superblock_probe_090(const uint8_t block[SUPERBLOCK_BYTES],
                                    struct format_error *error);

/* ---- Reading it ---- */

static inline uint64_t
superblock_offset_bytes(const struct superblock *sb)
{
    return sb->super_offset_sectors * SECTOR_BYTES;
}

static inline uint64_t
superblock_data_offset_bytes(const struct superblock *sb)
{
    return sb->data_offset_sectors * SECTOR_BYTES;
}

static inline uint64_t
superblock_data_size_bytes(const struct superblock *sb)
{
    return sb->data_size_sectors * SECTOR_BYTES;
}

static inline uint64_t
superblock_chunk_bytes(const struct superblock *sb)
{
    return (uint64_t)sb->chunk_sectors * SECTOR_BYTES;
}

/* What the array uses of each member: whole chunks. */
static inline uint64_t
superblock_component_bytes(const struct superblock *sb)
{
    return round_down(sb->size_sectors, sb->chunk_sectors) * SECTOR_BYTES;
}

/* Members whose loss the level survives: P, or P and Q. */
static inline uint32_t
superblock_parity_count(const struct superblock *sb)
{
    return sb->level == 6 ? 2 : 1;
}

static inline uint64_t
superblock_array_bytes(const struct superblock *sb)
{
    return superblock_component_bytes(sb) * (sb->raid_disks - superblock_parity_count(sb));
}

/* Parity is in sync everywhere (on an array with a journal: as far as the superblock knows). */
static inline bool
superblock_is_clean(const struct superblock *sb)
{
    return sb->resync_offset_sectors == SUPERBLOCK_RESYNC_DONE;
}

/* On each member, parity below this is good: the component size when all is. */
must_check uint64_t superblock_resync_offset_bytes(const struct superblock *sb);

/* This member's content is good below this: the component size when it is in sync. */
must_check uint64_t superblock_recovery_offset_bytes(const struct superblock *sb);

/* The journal's ring: whole blocks of its data area. */
static inline uint64_t
superblock_journal_ring_bytes(const struct superblock *sb)
{
    return round_down(sb->data_size_sectors, BLOCK_SECTORS) * SECTOR_BYTES;
}

/* Byte offset on the device of the write-intent bitmap (with FEATURE_BITMAP). */
must_check uint64_t superblock_bitmap_offset_bytes(const struct superblock *sb);

/* Byte offset on the device of the bad block log (with bad_block_log_sectors != 0). */
must_check uint64_t superblock_bad_blocks_offset_bytes(const struct superblock *sb);

/*
 * The role that this superblock gives to dev_number: a slot below raid_disks, or ROLE_FAULTY,
 * ROLE_JOURNAL, or ROLE_SPARE for everything else (a number behind the table, a slot that the array
 * does not have).
 */
must_check uint16_t superblock_role_of(const struct superblock *sb, uint32_t dev_number);

/* The member's own role, by its own word. */
static inline uint16_t
superblock_role(const struct superblock *sb)
{
    return superblock_role_of(sb, sb->dev_number);
}

static inline bool
superblock_role_is_slot(uint16_t role)
{
    return role < SUPERBLOCK_ROLE_JOURNAL;
}

/* ---- Building one ---- */

/* max_dev as mdadm chooses it: the table fills whole sectors (128 for up to 128 devices). */
must_check uint32_t superblock_max_dev_for(uint32_t device_count);

/* Bytes to write on a device with this logical block size. */
must_check size_t superblock_written_bytes(uint32_t max_dev, uint32_t logical_block_bytes);

/* "HOST:NAME" if NAME has no colon and it all fits in 31 bytes, else NAME cut to 31. homehost may
 * be NULL. */
void superblock_set_name(struct superblock *sb, const char *homehost, const char *name);

/* ctime and utime: seconds since 1970 in the low 40 bits, microseconds above. */
must_check uint64_t superblock_time(uint64_t seconds, uint32_t microseconds);
must_check uint64_t superblock_time_seconds(uint64_t time);
must_check uint32_t superblock_time_microseconds(uint64_t time);

/* The layouts md knows for a level. RAID-4 has no layout; any number is fine there. */
must_check bool superblock_layout_is_known(int32_t level, uint32_t layout);

/* ---- For people ---- */

#define SUPERBLOCK_UUID_TEXT_BYTES 36u
#define SUPERBLOCK_NAME_TEXT_BYTES (4u * SUPERBLOCK_NAME_BYTES + 1u)

/* 01234567:89abcdef:01234567:89abcdef */
void superblock_uuid_text(const uint8_t uuid[SUPERBLOCK_UUID_BYTES],
                          char text[SUPERBLOCK_UUID_TEXT_BYTES]);

/* The name in printable ASCII; every other byte, and the backslash, as \xNN. */
void superblock_name_text(const struct superblock *sb, char text[SUPERBLOCK_NAME_TEXT_BYTES]);

#endif
