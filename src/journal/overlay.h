/*
 * overlay.h: members as a finished replay would leave them, without writing anything.
 *
 * An overlay is a device in front of a member that is open for reading only: a block for which the
 * log holds a record of a complete cycle is read from the journal (and its checksum verified, at
 * each read), any other from the member. The engine on top reads, and reconstructs from, exactly
 * what replay would have put there, so generations are never mixed: logged parity goes with logged
 * data, and the data of open cycles is not there at all.
 *
 * That data is laid over what the engine reads, by overlay_read_open: the newest copy of each block
 * of the array that stands in an open cycle.
 */
#ifndef STRIPELOG_JOURNAL_OVERLAY_H
#define STRIPELOG_JOURNAL_OVERLAY_H

#include "device/device.h"
#include "journal/records.h"

/* Shared by the overlays of all members. */
struct overlay_source {
    struct loop *loop;
    struct device *journal;                /* borrowed */
    uint64_t journal_data_offset;          /* bytes */
    const struct journal_records *records; /* borrowed; decided */
};

/* A device that reads as member `m` (whose data begins at data_offset on `below`) after replay.
 * Takes over `below`: closing the overlay closes it. Readonly, everything else as below. -ENOMEM.
 */
int overlay_create(const struct overlay_source *source, struct device *below, unsigned member,
                   uint64_t data_offset, struct device **out) must_check;

/* Frees the overlay and gives back what was below it. */
struct device *overlay_release(struct device *overlay);

/* Puts the open cycles' blocks over [offset, offset + length) of the array, which has been read
 * into memory; all multiples of 4096. -EIO: a block could not be read, or is not what its checksum
 * says. */
task_fn int overlay_read_open(const struct overlay_source *source, void *memory, uint64_t offset,
                              uint64_t length) must_check;

/* Which blocks of the range come from open cycles, so that what the engine could not read may not
 * matter: true if all do. */
bool overlay_covers(const struct overlay_source *source, uint64_t offset, uint64_t length);

#endif
