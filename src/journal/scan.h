/*
 * scan.h: how far a journal's log is valid, and what is in it.
 *
 * Reads from the tail, entry after entry, with long reads ahead, and stops where the log ends: at
 * the first block that is no entry with the expected sequence number, or at an entry of which a
 * block is not what its checksum says (it was being written when the power went). Nothing is
 * written, nothing replayed.
 *
 * K1. A read error is not the end of the log: after a second try the scan fails (unless asked to
 *     take an unreadable block for the end).
 *
 * K2. An entry with a good checksum that does not parse is not the end either: nobody tears a write
 *     into a good checksum. The scan fails and names position and field.
 *
 * K3. Every length on disk is hostile: the scan looks at each block of the ring at most once (and
 *     once more for what lies behind the end).
 */
#ifndef STRIPELOG_JOURNAL_SCAN_H
#define STRIPELOG_JOURNAL_SCAN_H

#include "base/base.h"
#include "base/error.h"
#include "device/device.h"
#include "format/journal_entry.h"
#include "format/superblock.h"

enum journal_end {
    JOURNAL_END_NO_ENTRY,   /* what follows is no meta block at all, or one of another place */
    JOURNAL_END_TORN_META,  /* a meta block follows that is not what its checksum says: torn, or of
                               another array */
    JOURNAL_END_OLD_ENTRY,  /* a meta block follows with another sequence number than expected */
    JOURNAL_END_TORN,       /* an entry follows of which some block is not what its checksum says */
    JOURNAL_END_RING,       /* the log fills the ring */
    JOURNAL_END_UNREADABLE, /* a block cannot be read, and unreadable_is_end was given */
};

/* Positions are bytes from the journal's data offset. */
struct journal_scan {
    uint64_t ring_bytes;
    uint64_t tail_bytes;
    uint64_t last_bytes;          /* of the last valid entry */
    uint64_t end_bytes;           /* where the next entry would stand */
    uint64_t seq_first, seq_next; /* of the tail; of what would come next */
    uint64_t entries;             /* valid ones; at least the tail's */
    uint64_t entries_empty;       /* of them, without payloads */
    uint64_t data_blocks;         /* named by DATA payloads */
    uint64_t parity_stripes;      /* PARITY payloads */
    uint64_t parity_blocks;
    uint64_t flush_stripes;    /* named by FLUSH payloads */
    uint64_t data_first_bytes; /* position of the entry with the first DATA payload, if any */
    uint64_t data_first_seq;   /* its number */

    enum journal_end end;
    uint64_t end_seq;          /* OLD_ENTRY, TORN: of the meta block that stands at the end */
    bool end_has_seq;          /* a meta block with a good checksum stands at end_bytes: its seq is
                                  end_seq. Restarting the log must go beyond it */
    uint32_t torn_block;       /* TORN: number of the first bad block in that entry, from 0 */
    uint64_t torn_follows;     /* TORN: valid entries that follow the torn one in sequence */
    uint64_t unreadable_bytes; /* UNREADABLE, -EIO: position of the block */
    struct format_error end_cause; /* NO_ENTRY, TORN_META: what was found there; else "" */
};

/* One entry as the scan sees it. Lives during the call only. */
struct journal_seen {
    const struct journal_entry *entry;
    const uint8_t *meta; /* for journal_cursor_init */
    bool valid;          /* whole, and part of the log; else the torn one, or behind it */
    /* By block of the entry: is it what its checksum says? Filled as far as blocks were looked at:
     * all of them. */
    const bool *block_good;
};

struct journal_scan_config {
    struct device *device;            /* borrowed */
    const struct superblock *journal; /* its superblock, decoded */
    bool unreadable_is_end;
    /* Each entry of the log in order, and (valid false) the torn one that ends it and those that
     * would follow it. May be NULL. */
    task_fn void (*entry)(void *owner, const struct journal_seen *seen);
    /* Bytes of the ring done so far (of at most ring_bytes), a call a window. May be NULL. */
    void (*progress)(void *owner, uint64_t done_bytes, uint64_t ring_bytes);
    void *owner;
};

/*
 * Reads the log. *scan is filled as far as the scan came. -EBADMSG: the tail is out of the ring,
 * there is no valid entry at the tail, or K2; -EIO: K1; -ENOTSUP: the journal's data does not begin
 * at a block; -ENOMEM.
 */
task_fn int journal_scan(const struct journal_scan_config *config, struct journal_scan *scan,
                         struct error *error) must_check;

/*
 * For a journal without a valid entry at its tail: looks at every block of the ring for meta blocks
 * of this array. Calls found for each, in the order of positions. -EIO where blocks could not be
 * read (they are passed over), after the rest has been looked at.
 */
task_fn int journal_survey(struct device *device, const struct superblock *journal,
                           void (*found)(void *owner, const struct journal_entry *entry),
                           void *owner) must_check;

#endif
