/*
 * create.h: the superblocks of a new array.
 *
 * Pure: options and device sizes in, one superblock a device out, as mdadm would place things, so
 * that either program can take over from the other. Nothing is read or written here; who writes
 * them has made sure that every device is claimed and that nothing on it is wanted any more.
 *
 * The i-th device gets role i and number i. All slots are active from the start: the first start
 * makes parity agree (resync from 0), unless the array is assumed clean, or is a RAID-4/5 without
 * one member, whose parity is what defines the missing one. A journal gets the number behind the
 * members; its log has to begin (recovery_new_log) before any superblock is written.
 */
#ifndef STRIPELOG_CREATE_H
#define STRIPELOG_CREATE_H

#include "base/base.h"
#include "base/error.h"
#include "format/superblock.h"

#define CREATE_CHUNK_BYTES_DEFAULT (512 * KIB)
#define CREATE_CHUNK_BYTES_MAX     (1 * GIB)
#define CREATE_NAME_BYTES_MAX      31u
#define CREATE_JOURNAL_BYTES_MIN   (4 * MIB) /* of the ring */

struct create_device {
    const char *name;    /* for messages; NULL: missing */
    uint64_t size_bytes; /* where not missing */
    uint8_t uuid[SUPERBLOCK_UUID_BYTES];
};

struct create_options {
    int level;
    unsigned layout;
    uint32_t minor; /* metadata 1.minor */
    uint64_t chunk_bytes;
    uint64_t size_bytes; /* of each member; 0: the largest that fits on all */
    const char *name;    /* NULL: the first 8 hex digits of the uuid */
    bool assume_clean;
    bool write_journal; /* one device more, behind the members, is the journal */
    uint8_t set_uuid[SUPERBLOCK_UUID_BYTES];
    uint64_t now; /* superblock_time() */
};

/*
 * What can be said before any device is opened: level, layout, number of members, chunk, missing
 * members. -EINVAL with a text.
 */
int create_check(const struct create_options *options, const struct create_device *devices,
                 unsigned count, struct error *error) must_check;

/*
 * Fills one superblock a device (count members and, with write_journal, the journal's); those of
 * missing ones stay zero. -EINVAL as create_check; -ENOSPC: a device is too small (named); -EFBIG:
 * the array would be too large.
 */
int create_plan(const struct create_options *options, const struct create_device *devices,
                unsigned count, struct superblock *superblocks, struct error *error) must_check;

#endif
