/*
 * journal.h: the log of a running array: appending, group commit, checkpoints.
 *
 *        tail            first unfinished           durable      head
 *          |                    |                      |           |
 *   ring --+--[ finished ]------+--[ being written to ]+--[ I/O ]--+------ free ------
 *                                    the members
 *
 * Who writes stripes first reserves blocks of the log (in order, waiting for space), appends the
 * new content of its stripes, waits until that is durable, writes to the members, and says that it
 * has finished. Many appends share an entry: it stays open until the end of the loop's turn, and
 * while an earlier one is on its way (unless it is long).
 *
 *   entry:  OPEN -> SUBMITTED -> COMPLETE -> (all its appends finished) -> FINISHED
 *
 * Who only keeps what it has logged in a cache need not wait until that is durable, but until it is
 * complete; what only the log has then is named by a holder, who bounds the tail.
 *
 * J1. Appends become complete, and durable, strictly in the order of entries: one that is written
 *     early waits for all before it, since a torn predecessor would end the log in front of it.
 *
 * J2. With a volatile cache on the journal, an entry is durable only after a flush that began after
 *     it (and all before it) was complete. One flush serves all entries complete by then, and
 *     begins only when somebody waits for it.
 *
 * J3. All that a stripe adds in one step stands in one entry: its DATA, then its PARITY.
 *
 * J4. The tail names a complete, durable entry. It moves from A to B only when (in this order) all
 *     appends in [A, B) are finished, the holder has nothing there, all that was complete by then
 *     is durable (what the holder had in [A, B) may have been logged anew), all members have been
 *     flushed by a flush that began after that, and the superblock with the tail B is durable. Only
 *     then is [A, B) free (and discarded, where the device likes that).
 *
 * J5. One block always stays free, for an empty entry at the head.
 *
 * J6. A failed write or flush is the end of the journal: nothing that was not durable by then ever
 *     becomes so, every waiter gets -EIO, and nothing is tried again. So is a block that does not
 *     read back as it was logged (journal_rotten): a recovery might end there, and what was logged
 *     behind it be gone.
 *
 * J7. Pages that were appended must not change until the append is durable.
 *
 * See the journal specification, sections 2, 3, 4, 7.
 */
#ifndef STRIPELOG_JOURNAL_H
#define STRIPELOG_JOURNAL_H

#include "base/error.h"
#include "device/device.h"
#include "format/journal_entry.h"

struct journal;

struct journal_config {
    struct loop *loop;
    struct device *device; /* borrowed */
    uint64_t data_offset;  /* bytes; where the ring begins on the device */
    struct journal_geometry geometry;
    unsigned members; /* raid_disks: at most 203 */

    /* Where it begins: a valid durable entry at the tail; everything in [tail, head) counts as
     * finished unless held (journal_hold). */
    uint64_t tail, head; /* positions, bytes */
    uint64_t seq;        /* of the next entry */

    uint64_t checkpoint_bytes; /* checkpoint when this much can be reclaimed; 0: min(ring / 4, 10
                                  GiB) */
    uint64_t checkpoint_ns;    /* and at the latest this long after something could; 0: 30 s */
    bool discard;              /* punch what was freed (block devices only) */
    unsigned entries;          /* that there is memory for at a time; 0: 512 */

    void *owner;
    /* All of the next three are called by the journal's own task. */
    /* A flush of all working members that begins now; failures of members are recorded. -EIO when
     * more members are gone than parity covers: then the tail stays. */
    task_fn int (*flush_members)(void *owner);
    /* Makes the journal member's superblock with this tail durable (events unchanged). An error is
     * the journal's failure. */
    task_fn int (*record_tail)(void *owner, uint64_t tail_bytes);
    /* The journal has failed: told once; must not suspend. */
    void (*failed)(void *owner, int error, const char *operation);
};

/* Starts the journal's tasks (four). -ENOMEM, -EINVAL (a ring of less than members + 4 blocks). */
int journal_create(const struct journal_config *config, struct journal **out,
                   struct error *error) must_check;
/* No append may be under way. Writes nothing: see journal_drain. */
task_fn void journal_destroy(struct journal *journal);

/* Who has what only the log holds (a write-back cache). Both must not suspend. */
struct journal_holder {
    /* False: there is nothing. Else the position (bytes) of the oldest entry that is needed. */
    bool (*oldest)(const struct journal_holder *holder, uint64_t *position);
    /* Somebody waits for space, or still does although some came free. */
    void (*space_wanted)(struct journal_holder *holder);
    bool stuck;            /* the oldest entry will be needed for ever */
    uint64_t stuck_blocks; /* reserved for ever */
};

/* Borrowed until journal_destroy. */
void journal_set_holder(struct journal *journal, struct journal_holder *holder);
/* The holder's oldest entry is another one. */
void journal_holder_moved(struct journal *journal);
/* Something that the holder needs cannot be read back, or not as it was logged: J6. */
void journal_rotten(struct journal *journal, int error);

/* --- Appending ---- */

/* What one append may ask for at most: enough for one stripe, and at most a small part of the ring,
 * so that several can be under way. */
uint64_t journal_reserve_max(const struct journal *journal);

/* Blocks that an append of so many stripes with together so many DATA and parity blocks takes at
 * most, meta blocks included. Exact for one stripe (with data or parity): 1 + blocks. */
uint64_t journal_need(const struct journal *journal, uint64_t stripes, uint64_t data_blocks,
                      uint64_t parity_blocks);

/* Takes blocks (at most journal_reserve_max) of the log's free space, waiting in order; somebody
 * who waits starts a checkpoint. -EIO: the journal failed, or journal_end_waiting was called. */
task_fn int journal_reserve(struct journal *journal, uint64_t blocks) must_check;
/* Gives back blocks of reservations that no append took over. */
void journal_unreserve(struct journal *journal, uint64_t blocks);
/* Takes blocks at once; false if they are not free (who waits is overtaken). */
bool journal_reserve_now(struct journal *journal, uint64_t blocks) must_check;
/* Blocks that would be neither used nor reserved, were the tail here. position is that of an entry,
 * or UINT64_MAX for the head. */
uint64_t journal_free_behind(const struct journal *journal, uint64_t position);
/* Blocks that the first who waits for space wants; 0: nobody waits. */
uint64_t journal_space_wanted(const struct journal *journal);

struct journal_entry_state; /* of journal.c */

/* One append; caller's memory from begin to finish. */
struct journal_append {
    uint64_t reserved;                        /* blocks left of the reservation */
    uint64_t slots;                           /* entries that it may still open */
    struct journal_entry_state *first, *last; /* the entries it stands in */
    struct task *waiter;
    int result;
    struct journal_append *next;
};

/* A block of data in a step. */
struct journal_data {
    uint64_t array_offset; /* bytes */
    const void *memory;    /* 4096 bytes, 4 KiB-aligned; J7 */
    uint32_t checksum;     /* set when it is appended */
};

/* What one stripe adds in one step. */
struct journal_step {
    uint64_t member_offset; /* of the stripe */
    unsigned data_count;    /* may be 0 where parity is added */
    struct journal_data *data;
    const void *p, *q; /* 4096 bytes each, or NULL: both for RAID-6, p alone else, or none */
    /* Set when it is appended: the entry's position (bytes), and the number in it of the first of
     * the data blocks, which follow each other. */
    uint64_t entry_position;
    uint32_t first_block;
};

/* Takes over a reservation. Waits, in order, for memory to keep entries in: it comes back from
 * appends that began before, and are finished. -EIO: the journal has failed, or waiting has ended;
 * nothing is taken over then, and nothing may be appended. */
task_fn int journal_append_begin(struct journal *journal, struct journal_append *append,
                                 uint64_t reserved) must_check;
/* Adds a step to the open entry (checksums are made here). Does not suspend; nothing else may be
 * done with the append, and no suspend happen, between begin and the last step. -EIO: the journal
 * has failed (finish is to be called nevertheless). */
int journal_append_step(struct journal *journal, struct journal_append *append,
                        struct journal_step *step) must_check;
/* Gives back what is left of the reservation and suspends until all of it is complete (J1), or
 * durable (J1, J2). 0, or -EIO: then nothing of it may go to a member, ever. */
enum journal_wait { JOURNAL_COMPLETE, JOURNAL_DURABLE };
task_fn int journal_append_wait(struct journal *journal, struct journal_append *append,
                                enum journal_wait until) must_check;
/* Its stripes are on all working members, failures recorded; or it failed. The tail may pass it. An
 * append whose stripes could not be brought to the members is not finished but kept:
 * journal_append_abandon. */
void journal_append_finish(struct journal *journal, struct journal_append *append);
/* Forgets the append, but the tail never passes its entries in this run: its stripes are replayed
 * by the next recovery. */
void journal_append_abandon(struct journal *journal, struct journal_append *append);

/* Appends of which somebody was told that they are complete become durable; at once if they are.
 * -EIO: the journal has failed before that. */
task_fn int journal_flush(struct journal *journal) must_check;

/* Until all entries that are on their way to the device now have come to where their appends wait
 * for them; at once if there are none, or the journal fails. For who had better log more together,
 * but would wait behind them anyway. */
task_fn void journal_settle(struct journal *journal);

/* --- Checkpoints ---- */

/* While held, the tail does not pass this position: that of the tail or of an entry. Moves forward
 * only. Suspends until the tail is there: everything before it must be finished. -EIO: it never
 * will be. */
task_fn int journal_hold(struct journal *journal, uint64_t position) must_check;
void journal_release(struct journal *journal);

/* Suspends until the tail has passed everything that was appended before this call (which must be
 * going to be finished). -EIO: it never will. */
task_fn int journal_checkpoint(struct journal *journal) must_check;

/* For a stop: with everything finished, leaves an empty entry at the head that is the tail. */
task_fn int journal_drain(struct journal *journal) must_check;

/* Everybody who waits for space or for memory, now or later, gets -EIO (the array goes read-only).
 */
void journal_end_waiting(struct journal *journal);

bool journal_failed(const struct journal *journal);
/* A flush of the device has failed: none is to be tried again (D3). */
bool journal_flush_failed(const struct journal *journal);
/* Is anything durable in the log that has not been finished? */
bool journal_unfinished(const struct journal *journal);

struct journal_status {
    uint64_t ring_bytes, used_bytes;
    uint64_t tail, head, seq;
    uint64_t entries, stripes;            /* appended so far */
    uint64_t logged_bytes, written_bytes; /* payload blocks; with meta blocks */
    uint64_t flushes, checkpoints, waits; /* waits: reservations that had to wait */
};
void journal_status(const struct journal *journal, struct journal_status *status);

#endif
