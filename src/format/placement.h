/*
 * placement.h: where things go on a new member, as mdadm 4.2 --create chooses it.
 *
 * Being the same to the sector is what lets either program re-create over the other's array, and
 * leaves the room for a later bitmap or reshape that Linux expects. In the order of use:
 *
 *   1. data offset   from the first device, then the same for all members, the journal's too
 *   2. component     the smallest of what the data members, without the journal, have room for
 *   3. placement_member() fills the superblock of each device, the journal included
 */
#ifndef STRIPELOG_FORMAT_PLACEMENT_H
#define STRIPELOG_FORMAT_PLACEMENT_H

#include "base/base.h"
#include "format/format_error.h"
#include "format/superblock.h"

#define PLACEMENT_BAD_BLOCK_LOG_SECTORS 8u

struct placement {
    uint32_t minor;
    uint64_t chunk_bytes;       /* power of two, at least 4096 */
    uint64_t data_offset_bytes; /* 1.1 and 1.2: a multiple of 4096; 1.0: 0 */
};

/* Data offset for metadata 1.`minor` when the first device has this size; 0 for 1.0. */
must_check uint64_t placement_data_offset(uint32_t minor, uint64_t chunk_bytes,
                                          uint64_t first_device_bytes);

/* Whole chunks that a data member of this size has room for; 0 when it is too small. */
must_check uint64_t placement_component_bytes(const struct placement *placement,
                                              uint64_t device_bytes);

/*
 * Fill in this member's areas: super_offset, data_offset, data_size, bad block log, and the
 * bitmap's offset if FEATURE_BITMAP is set. From the array, minor, chunk_sectors, size_sectors and
 * feature_map must be set. -ENOSPC: the device is too small, or the data offset leaves no room in
 * front of it.
 */
must_check int placement_member(const struct placement *placement, uint64_t device_bytes,
                                struct superblock *sb, struct format_error *error);

#endif
