/*
 * records.h: which block of the log is the last word for which place on the members. Pure.
 *
 * A place is one block of one member. The log holds blocks for places: DATA names a block of the
 * array, which is a place; PARITY names the parity places of a stripe. While the log is scanned,
 * each block is noted as a record, 16 bytes; records_decide() then sorts them and goes through each
 * stripe's history in the order of the log (journal specification, sections 3 and 9):
 *
 *              DATA              PARITY                   DATA
 *   (nothing) ------> data-only ---------> data-parity ---------> data-parity, and data-only above
 *             PARITY: nothing to do                      PARITY: both become one, the newest counts
 *
 * and leaves at most two records for a place: what the stripe's complete cycles come to (to be
 * replayed as it is: data and parity belong together), and the newest data of the cycle that is
 * open (to be written with parity that is made from what replay leaves).
 *
 * R1. Data and parity of complete cycles are never mixed with an open cycle's data.
 *
 * R2. A cycle is all DATA of a stripe up to and including the PARITY that completes it; a later
 *     cycle's copies count more than an older one's.
 *
 * R3. PARITY without DATA since the last PARITY means nothing. FLUSH payloads mean nothing: Linux
 *     logs them before the members' caches are flushed.
 *
 * R4. Memory is what records_init() was given. When it is full, the decision is made for what has
 *     been noted so far: what counts is never more, and can be decided again with what follows in
 *     the log (a later record has a larger distance). Where that is still too much, complete cycles
 *     have to be replayed, and are forgotten, before the log goes on: later ones count more (R2).
 */
#ifndef STRIPELOG_JOURNAL_RECORDS_H
#define STRIPELOG_JOURNAL_RECORDS_H

#include "format/journal_entry.h"
#include "geometry/geometry.h"

/* A block in the log and the place it is for. Sorted by `place`, stripes lie together. */
struct journal_record {
    uint64_t place;    /* stripe << 9 | member << 1 | open; a stripe is member offset / 4096 */
    uint32_t distance; /* blocks from where the scan began to this block */
    uint32_t checksum;
};

static inline uint64_t
record_stripe(const struct journal_record *record)
{
    return record->place >> 9;
}

static inline unsigned
record_member(const struct journal_record *record)
{
    return (unsigned)(record->place >> 1) & 255;
}

/* Of a cycle without parity. */
static inline bool
record_open(const struct journal_record *record)
{
    return record->place & 1;
}

static inline uint64_t
record_place(uint64_t stripe, unsigned member, bool open)
{
    return stripe << 9 | (uint64_t)member << 1 | open;
}

struct journal_records {
    const struct geometry *geometry;        /* borrowed */
    const struct journal_geometry *journal; /* borrowed */
    uint64_t tail_bytes;                    /* position of distance 0 */
    struct journal_record *all;             /* owned */
    size_t count, capacity;

    /* After records_decide. */
    uint64_t data_parity_stripes; /* with complete cycles */
    uint64_t data_only_stripes;   /* with an open cycle (some also have complete ones) */
    uint64_t replay_blocks;       /* records of complete cycles */
    uint64_t open_blocks;         /* records of open cycles */
};

/* -ENOMEM. Nothing is touched before it is used. */
must_check int records_init(struct journal_records *records, const struct geometry *geometry,
                            const struct journal_geometry *journal, uint64_t tail_bytes,
                            size_t capacity);
void records_fini(struct journal_records *records);

/* Room for so many more? If not, there may be after records_decide, or records_forget_complete. */
must_check bool records_room(const struct journal_records *records, uint32_t blocks);

/* Notes the blocks of a whole entry that journal_entry_decode() accepted, for which there is room.
 * Entries come in the order of the log. */
void records_add_entry(struct journal_records *records, const uint8_t meta[BLOCK_BYTES],
                       const struct journal_entry *entry);

/* The decision. Afterwards `all` is sorted and has what counts only. More entries may follow, and
 * another decision. */
void records_decide(struct journal_records *records);

/* After the decision: leaves only what stands in open cycles. */
void records_forget_complete(struct journal_records *records);

/* After the decision: index of the first record with at least this place; count if none. */
must_check size_t records_find(const struct journal_records *records, uint64_t place);

/* Where the record's block stands in the ring. */
must_check uint64_t records_position(const struct journal_records *records,
                                     const struct journal_record *record);

#endif
