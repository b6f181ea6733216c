/*
 * assemble.h: from devices to an array: which superblocks are there, who belongs, may it start.
 *
 * Two steps. Probing reads (and only reads) each device's superblock, bad block log, bitmap header
 * and, on a journal, nothing. The decision is pure: candidates in, assembly out, by the rules of
 * the on-disk specification (5.1 which superblock wins, 5.2 member states, 5.3 may it start, 5.5
 * journal).
 *
 * A1. Nothing is ever written here.
 * A2. A member one event behind the freshest takes its role from the freshest's table.
 * A3. The array is clean only if every current member says so.
 */
#ifndef STRIPELOG_ASSEMBLE_H
#define STRIPELOG_ASSEMBLE_H

#include "base/base.h"
#include "base/error.h"
#include "device/device.h"
#include "format/bad_blocks.h"
#include "format/superblock.h"
#include "geometry/geometry.h"

/* One device that was named, and what was read from it. */
struct candidate {
    struct device *device; /* borrowed */
    int status;            /* of the superblock: 0, -ENOENT, -EBADMSG, -ENOTSUP, -EIO ... */
    struct error error;    /* why, if status != 0 */
    struct superblock superblock;
    bool has_bad_blocks;
    struct bad_blocks bad_blocks; /* absolute on the device */
    /* Write-intent bitmap, where the superblock has one: the raw bits, taken as all ones where it
     * is stale. */
    bool bitmap_usable;
    uint64_t bitmap_region_bytes; /* member bytes a bit */
    uint64_t bitmap_bits_count;
    uint8_t *bitmap_bits; /* owned; NULL if none */
};

/* Reads one device. Always fills *candidate; status tells. Only -ENOMEM is returned as an error. */
task_fn int candidate_probe(struct device *device, struct candidate *candidate) must_check;
void candidate_fini(struct candidate *candidate);

enum member_fate {
    FATE_IN_SYNC,
    FATE_REBUILDING, /* has its slot; good below recovery_offset_bytes only */
    FATE_JOURNAL,
    FATE_SPARE,
    FATE_REPLACEMENT, /* never read; treated as a spare for now */
    FATE_STALE,       /* too few events: left out */
    FATE_FAULTY,      /* the freshest says it failed */
    FATE_FOREIGN,     /* of another array */
    FATE_UNUSABLE,    /* no, damaged or unsupported superblock */
    FATE_DUPLICATE,   /* another candidate has the slot, or the same device named twice */
};

const char *member_fate_name(enum member_fate fate); /* "in sync", "rebuilding", ... */

enum assemble_force {
    FORCE_DIRTY_DEGRADED = 1,
    FORCE_STALE_MEMBER = 2,
    FORCE_DROP_JOURNAL = 4,
    FORCE_NEW_JOURNAL = 8,
    FORCE_TRUNCATE_JOURNAL = 16, /* an unreadable block is the log's end */
};

struct assemble_options {
    bool readonly;
    unsigned force; /* set of assemble_force */
};

/* The decision. Plain data, all indices into the candidates. */
struct assembly {
    struct geometry geometry;
    const struct superblock *freshest; /* borrowed from its candidate */
    unsigned freshest_index;
    unsigned members;                  /* raid_disks */
    int member_candidate[MEMBERS_MAX]; /* candidate that has the slot (in sync or rebuilding), or -1
                                        */
    int journal_candidate;             /* or -1 */
    bool journal_expected;             /* feature bit set */
    unsigned degraded;                 /* slots without an in-sync member */
    bool dirty;                        /* parity not known good from resync_from_bytes on */
    uint64_t resync_from_bytes;        /* member bytes; meaningful when dirty */
    bool forced_dirty_degraded;        /* started although dirty and degraded */
    bool events_uneven;                /* current members differ: an update was cut short */
    uint64_t events;                   /* the freshest's */
    unsigned warning_count;
    struct error warnings[8]; /* texts for a person; the first 8 */
};

/*
 * fates has count entries and is filled whatever happens, as are reasons (texts, "" where all is
 * well). 0, or: -ENOENT no usable superblock; -EINVAL devices of several arrays, the same device
 * twice, members that contradict each other; -ENOTCONN too few members; -EUCLEAN dirty and
 * degraded; -ENODEV journal missing or stale; -ENOTSUP. With a result < 0 the assembly is filled as
 * far as it was decided (for examine). superblock of each candidate is looked at only where status
 * == 0.
 */
int assemble_decide(const struct candidate *candidates, unsigned count,
                    const struct assemble_options *options, struct assembly *assembly,
                    enum member_fate *fates, struct error *reasons, struct error *error) must_check;

#endif
