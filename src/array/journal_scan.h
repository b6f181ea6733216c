/*
 * journal_scan.h: how far a journal's log is valid, and what is in it.
 *
 * Reads from the tail, entry after entry, and stops where the log ends: at the first block that is
 * no entry with the expected sequence number, or at an entry of which a block is not what its
 * checksum says (it was being written when the power went). Nothing is written, nothing replayed.
 *
 * K1. A read error is not the end of the log: the scan fails.
 * K2. An entry with a good checksum that does not parse is not the end either: nobody tears a write
 *     into a good checksum. The scan fails and names position and field.
 * K3. Every length on disk is hostile: the scan looks at each block of the ring at most once.
 */
#ifndef STRIPELOG_JOURNAL_SCAN_H
#define STRIPELOG_JOURNAL_SCAN_H

#include "base/base.h"
#include "base/error.h"
#include "device/device.h"
#include "format/superblock.h"

enum journal_end {
    JOURNAL_END_NO_ENTRY, /* what follows is no entry, or one of an older log */
    JOURNAL_END_TORN,     /* an entry follows of which some block is missing */
    JOURNAL_END_RING,     /* the log fills the ring */
};

/* Positions are bytes from the journal's data offset. */
struct journal_scan {
    uint64_t ring_bytes;
    uint64_t tail_bytes;
    uint64_t end_bytes;           /* where the next entry would stand */
    uint64_t seq_first, seq_next; /* of the tail; of what would come next */
    uint64_t entries;             /* valid ones; at least the tail's */
    uint64_t data_blocks;         /* named by DATA payloads */
    uint64_t parity_stripes;      /* PARITY payloads */
    uint64_t flush_stripes;       /* named by FLUSH payloads */
    uint64_t data_first_bytes;    /* position of the entry with the first DATA payload, if any */
    uint64_t data_first_seq;      /* its number */
    enum journal_end end;
};

/*
 * Reads the log of the journal member with this (decoded) superblock. *scan is filled as far as the
 * scan came. -EBADMSG: the tail is out of the ring, there is no entry at the tail, or K2; -EIO: K1;
 * -ENOTSUP: the journal's data does not begin at a block; -ENOMEM.
 */
task_fn int journal_scan(struct device *device, const struct superblock *journal,
                         struct journal_scan *scan, struct error *error) must_check;

#endif
