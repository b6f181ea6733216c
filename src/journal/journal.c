/*
 * journal.c: the log of a running array. See journal.h for what it promises (J1-J7).
 *
 * Four tasks share the work, so that no request waits for anything but its own entries:
 *
 *   writer      sends entries that are closed to the device
 *   committer   waits for them in order, tells who waits that they are complete
 *   flusher     flushes when somebody waits for that, tells who waits that they are durable
 *   keeper      checkpoints: flush the members, record the tail, free the space
 *
 * Entries in memory are those from the first unfinished one on; what lies between the tail and
 * that one is only a distance. An entry's slot holds its meta block and where its pages are.
 *
 *    tail          entries_first        complete                   open
 *     |  finished       |  being written    |  submitted, closed    |
 *   --+-----------------+-------------------+-----------------------+------ head
 */
#include "journal/journal.h"

#include <stdlib.h>

#define ENTRIES            512u
#define IOS                128u
#define RESERVE_BLOCKS_MAX 2048u
/* What one block takes that is cached: itself, a meta block, and what is set aside. */
#define STEP_RESERVE_BLOCKS 8u
#define GROUP_BLOCKS        64u /* an entry of so many does not wait for its predecessor */
#define CHECKPOINT_BYTES    (10 * GIB)
#define CHECKPOINT_NS       UINT64_C(30000000000)

enum entry_state {
    ENTRY_OPEN,
    ENTRY_CLOSED,
    ENTRY_SUBMITTED,
    ENTRY_COMPLETE, /* so are all before it */
    ENTRY_DEAD,     /* the journal has failed, and no I/O of the entry is in flight any more */
};

struct journal_entry_state {
    enum entry_state state;
    bool kept;           /* abandoned: the tail does not pass it */
    bool keepers;        /* the empty entry of a checkpoint, in the slot that is kept for it */
    unsigned unfinished; /* appends that stand in it and have not finished */
    uint64_t position, seq;
    struct journal_writer writer;
    uint8_t *meta; /* the journal's */
    const uint8_t *pages[JOURNAL_ENTRY_BLOCKS_MAX];
    struct io_group ios;
    struct journal_entry_state *next; /* the following entry; or the free list's */
};

/* Who waits for space; on its stack. */
struct space_waiter {
    struct task *task;
    uint64_t blocks;
    bool granted;
    struct space_waiter *next;
};

struct journal {
    struct journal_config config;
    struct loop *loop;
    uint64_t ring_blocks;
    uint64_t entry_blocks_max; /* without the meta block */
    uint64_t step_bytes_max, step_blocks_max;
    uint64_t reserve_blocks_max;
    bool failed, flush_failed, ended, quitting;

    /* The ring. used: from the tail to the head, with what stands in the open entry. */
    uint64_t tail, head, seq;
    uint64_t used_blocks, reserved_blocks;
    struct tokens slots_free; /* not promised to anybody; one is the keeper's */
    struct space_waiter *waiters_first, **waiters_last;

    /* Entries, oldest first; all in [entries_first, open]. */
    struct journal_entry_state *entries_first, *entries_last;
    struct journal_entry_state *uncommitted; /* the first that is not complete; NULL: none */
    struct journal_entry_state *unsubmitted; /* the first that was not sent; NULL: none */
    uint64_t complete_seq, durable_seq;      /* of the last entry that is */
    uint64_t flush_wanted_seq;               /* of the last one that a flush was asked for */
    uint64_t told_seq; /* of the last one of which an append was told that it is complete */
    struct journal_entry_state *open;
    struct journal_entry_state *slots, *slots_first_free; /* owned array */
    uint8_t *metas;                                       /* owned */
    struct append_list {
        struct journal_append *first, **last;
    } waiting[2]; /* by what for (journal_wait), in order */
    struct wait_queue flushed;
    struct turn_hook turn_end;
    struct io_pool ios;

    /* Checkpoints. The last entry that was finished, whose position the tail may take. */
    uint64_t finished_position, finished_seq;
    uint64_t appended_blocks;      /* ever; the tail stands used_blocks before */
    struct journal_holder *holder; /* borrowed; NULL: none */
    uint64_t checkpoint_bytes;
    bool held;
    uint64_t hold;
    bool checkpoint_due;
    unsigned requests; /* tasks in journal_checkpoint */
    struct timer checkpoint_timer;
    struct wait_queue checkpoint_done;

    struct task *writer, *committer, *flusher, *keeper; /* while they wait for work */
    bool writer_ended, committer_ended, keeper_ended;
    unsigned tasks_alive;
    struct wait_queue quit_waiters;

    struct journal_status counts;
};

static uint64_t
ring_after(const struct journal *journal, uint64_t position, uint64_t blocks)
{
    return journal_ring_add(&journal->config.geometry, position, blocks * BLOCK_BYTES);
}

static uint64_t
ring_blocks_between(const struct journal *journal, uint64_t from, uint64_t to)
{
    return journal_ring_distance(&journal->config.geometry, from, to) / BLOCK_BYTES;
}

static void
wake(struct journal *journal, struct task **task)
{
    struct task *waiting = *task;

    *task = NULL;
    if (waiting != NULL)
        task_wake(journal->loop, waiting);
}

/* Suspends one of our tasks until it is woken through *place. */
static task_fn void
sleep_at(struct journal *journal, struct task **place)
{
    *place = task_self(journal->loop);
    task_suspend(journal->loop);
}

/* --- Space ----------------------------------------------------------------------------------- */

uint64_t
journal_reserve_max(const struct journal *journal)
{
    return journal->reserve_blocks_max;
}

uint64_t
journal_need(const struct journal *journal, uint64_t stripes, uint64_t data_blocks,
             uint64_t parity_blocks)
{
    const uint64_t blocks = data_blocks + parity_blocks;
    const uint64_t bytes =
        data_blocks * JOURNAL_DATA_PAYLOAD_BYTES +
        (parity_blocks > 0
             ? stripes * journal_parity_payload_bytes(journal->config.geometry.parity_count)
             : 0);
    /* A meta block of ours that is followed by another one had no room for a step: it holds at
     * least so much. What others have put into the entry that is open now only spares us one. */
    const uint64_t filled_bytes = BLOCK_BYTES - JOURNAL_HEADER_BYTES - journal->step_bytes_max + 1;
    const uint64_t filled_blocks = journal->entry_blocks_max - journal->step_blocks_max + 1;
    const uint64_t metas = 1 + bytes / filled_bytes + blocks / filled_blocks;

    return blocks + min_u64(metas, stripes);
}

/* Entries that an append of so many blocks opens at most: each has a block beside its meta block.
 * More than these never fit into what may be reserved, see journal_need. */
static uint64_t
slots_for(const struct journal *journal, uint64_t blocks)
{
    const uint64_t filled_blocks = journal->entry_blocks_max - journal->step_blocks_max + 1;
    const uint64_t filled_bytes = BLOCK_BYTES - JOURNAL_HEADER_BYTES - journal->step_bytes_max + 1;

    return min_u64(blocks / 2,
                   1 + blocks * JOURNAL_DATA_PAYLOAD_BYTES / filled_bytes + blocks / filled_blocks);
}

static bool
space_there(const struct journal *journal, uint64_t blocks)
{
    /* J5: one block is nobody's. */
    return journal->used_blocks + journal->reserved_blocks + blocks + 1 <= journal->ring_blocks;
}

/* Blocks from the position (of an entry) to the head, the open entry's included. */
static uint64_t
used_behind(const struct journal *journal, uint64_t position)
{
    const uint64_t open =
        journal->open == NULL ? 0 : 1 + (uint64_t)journal->open->writer.block_count;

    return ring_blocks_between(journal, position, journal->head) + open;
}

/* What the tail will never pass, and what is set aside for it, leave less than that. */
static bool
space_hopeless(const struct journal *journal, uint64_t blocks)
{
    uint64_t oldest;

    if (journal->holder == NULL || !journal->holder->stuck ||
        !journal->holder->oldest(journal->holder, &oldest))
        return false;
    return used_behind(journal, oldest) + journal->holder->stuck_blocks + blocks + 1 >
           journal->ring_blocks;
}

/* With each who was served, and each who waits, the holder has more reason to let the tail go. */
static void
space_want(struct journal *journal)
{
    if (journal->holder != NULL)
        journal->holder->space_wanted(journal->holder);
}

/* Serves who waits, in order. */
static void
space_grant(struct journal *journal)
{
    while (journal->waiters_first != NULL) {
        struct space_waiter *waiter = journal->waiters_first;
        const bool over =
            journal->failed || journal->ended || space_hopeless(journal, waiter->blocks);

        if (!over && !space_there(journal, waiter->blocks)) {
            space_want(journal);
            return;
        }
        if (!over) {
            journal->reserved_blocks += waiter->blocks;
            waiter->granted = true;
        }
        journal->waiters_first = waiter->next;
        if (journal->waiters_first == NULL)
            journal->waiters_last = &journal->waiters_first;
        task_wake(journal->loop, waiter->task);
    }
}

task_fn int
journal_reserve(struct journal *journal, uint64_t blocks)
{
    struct space_waiter waiter = {.blocks = blocks};

    assert(blocks > 0);
    assert(blocks <= journal_reserve_max(journal));
    if (journal->failed || journal->ended)
        return -EIO;
    if (journal->waiters_first == NULL && space_there(journal, blocks)) {
        journal->reserved_blocks += blocks;
        return 0;
    }
    ++journal->counts.waits;
    waiter.task = task_self(journal->loop);
    *journal->waiters_last = &waiter;
    journal->waiters_last = &waiter.next;
    wake(journal, &journal->keeper);
    space_want(journal);
    if (space_hopeless(journal, journal->waiters_first->blocks))
        loop_at_turn_end(journal->loop, &journal->turn_end); /* it tells us */
    task_suspend(journal->loop);
    return waiter.granted ? 0 : -EIO;
}

bool
journal_reserve_now(struct journal *journal, uint64_t blocks)
{
    if (journal->failed || journal->ended || !space_there(journal, blocks))
        return false;
    journal->reserved_blocks += blocks;
    return true;
}

uint64_t
journal_free_behind(const struct journal *journal, uint64_t position)
{
    const uint64_t used = position == UINT64_MAX ? 1 : used_behind(journal, position);
    const uint64_t taken = used + journal->reserved_blocks + 1;

    return journal->ring_blocks > taken ? journal->ring_blocks - taken : 0;
}

uint64_t
journal_space_wanted(const struct journal *journal)
{
    return journal->waiters_first == NULL ? 0 : journal->waiters_first->blocks;
}

void
journal_unreserve(struct journal *journal, uint64_t blocks)
{
    assert(blocks <= journal->reserved_blocks);
    journal->reserved_blocks -= blocks;
    space_grant(journal);
}

void
journal_set_holder(struct journal *journal, struct journal_holder *holder)
{
    journal->holder = holder;
}

/* --- Entries --------------------------------------------------------------------------------- */

/* Opens an entry at the head; the slot and the block were reserved. */
static struct journal_entry_state *
entry_open(struct journal *journal)
{
    struct journal_entry_state *entry = journal->slots_first_free;

    assert(journal->open == NULL);
    assert(entry != NULL);
    journal->slots_first_free = entry->next;
    entry->state = ENTRY_OPEN;
    entry->kept = entry->keepers = false;
    entry->unfinished = 0;
    entry->position = journal->head;
    entry->seq = journal->seq;
    entry->next = NULL;
    journal_writer_init(&entry->writer, entry->meta, entry->seq, entry->position);
    if (journal->entries_first == NULL)
        journal->entries_first = entry;
    else
        journal->entries_last->next = entry;
    journal->entries_last = entry;
    if (journal->uncommitted == NULL)
        journal->uncommitted = entry;
    if (journal->unsubmitted == NULL)
        journal->unsubmitted = entry;
    ++journal->used_blocks;
    ++journal->appended_blocks;
    ++journal->seq;
    journal->open = entry;
    return entry;
}

static void
entry_close(struct journal *journal)
{
    struct journal_entry_state *entry = journal->open;
    const uint64_t blocks = 1 + (uint64_t)entry->writer.block_count;

    journal_writer_finish(&entry->writer, journal->config.geometry.checksum_seed);
    entry->state = ENTRY_CLOSED;
    journal->head = ring_after(journal, journal->head, blocks);
    journal->open = NULL;
    ++journal->counts.entries;
    journal->counts.logged_bytes += (blocks - 1) * BLOCK_BYTES;
    journal->counts.written_bytes += blocks * BLOCK_BYTES;
    wake(journal, &journal->writer);
}

/* Is there an append that a flush would end the wait of? */
static bool
append_wants_flush(const struct journal *journal)
{
    const struct journal_append *append = journal->waiting[JOURNAL_DURABLE].first;

    return append != NULL && append->last->seq <= journal->complete_seq;
}

/* Have this entry and all before it come to where their appends wait for them? */
static bool
arrived(const struct journal *journal, uint64_t seq)
{
    return journal->complete_seq >= seq &&
           (journal->durable_seq >= seq || !append_wants_flush(journal));
}

/* Does the open entry wait? Its stripes cannot go on before all earlier entries have arrived anyway
 * (J1). So while one of those is on its way, a small entry stays open for what comes: the device
 * gets few long entries, and flushes, instead of many short ones. It waits for nothing else: with
 * nothing on its way it goes at the end of the turn. */
static bool
entry_waits(const struct journal *journal)
{
    return !journal->failed && !arrived(journal, journal->open->seq - 1) &&
           journal->open->writer.block_count < GROUP_BLOCKS;
}

/* The batch of this turn is complete. */
static void
turn_ended(struct turn_hook *hook)
{
    struct journal *journal = container_of(hook, struct journal, turn_end);

    if (journal->open != NULL && !entry_waits(journal))
        entry_close(journal);
    space_grant(journal);
}

static bool checkpoint_wanted(const struct journal *journal);

/* Entries at the front that are complete and finished are behind us. */
static void
entries_retire(struct journal *journal)
{
    for (;;) {
        struct journal_entry_state *entry = journal->entries_first;

        if (entry == NULL || entry->state != ENTRY_COMPLETE || entry->unfinished > 0 || entry->kept)
            break;
        journal->finished_position = entry->position;
        journal->finished_seq = entry->seq;
        journal->entries_first = entry->next;
        if (entry->next == NULL)
            journal->entries_last = NULL;
        entry->next = journal->slots_first_free;
        journal->slots_first_free = entry;
        if (!entry->keepers)
            tokens_give(journal->loop, &journal->slots_free, 1);
    }
    if (journal->finished_position != journal->tail && !journal->checkpoint_timer.armed &&
        !journal->quitting)
        timer_arm(journal->loop, &journal->checkpoint_timer, journal->config.checkpoint_ns);
    if (checkpoint_wanted(journal))
        wake(journal, &journal->keeper);
}

void
journal_holder_moved(struct journal *journal)
{
    entries_retire(journal); /* it looks whether there is something for a checkpoint */
    space_grant(journal);    /* and it may have become hopeless to wait */
}

/* --- Appending ------------------------------------------------------------------------------- */

task_fn int
journal_append_begin(struct journal *journal, struct journal_append *append, uint64_t reserved)
{
    const uint64_t slots = slots_for(journal, reserved);

    *append = (struct journal_append){.reserved = 0};
    if (journal->failed)
        return -EIO;
    assert(reserved <= journal_reserve_max(journal));
    assert(reserved <= journal->reserved_blocks);
    if (!tokens_take_or_end(journal->loop, &journal->slots_free, slots))
        return -EIO;
    append->reserved = reserved;
    append->slots = slots;
    return 0;
}

/* The entry for a step: the open one if it has room (J3), else a new one. */
static struct journal_entry_state *
entry_for_step(struct journal *journal, struct journal_append *append, uint32_t bytes,
               uint32_t blocks)
{
    struct journal_entry_state *entry = journal->open;

    if (entry != NULL && (journal_writer_room(&entry->writer) < bytes ||
                          entry->writer.block_count + blocks > journal->entry_blocks_max)) {
        entry_close(journal);
        entry = NULL;
    }
    if (entry == NULL) {
        assert(append->slots > 0);
        assert(append->reserved > blocks);
        --append->slots;
        --append->reserved;
        --journal->reserved_blocks;
        entry = entry_open(journal);
    }
    loop_at_turn_end(journal->loop, &journal->turn_end);
    if (append->last != entry) {
        if (append->first == NULL)
            append->first = entry;
        append->last = entry;
        ++entry->unfinished;
    }
    return entry;
}

int
journal_append_step(struct journal *journal, struct journal_append *append,
                    struct journal_step *step)
{
    const uint32_t seed = journal->config.geometry.checksum_seed;
    const unsigned parities = (step->p != NULL) + (step->q != NULL);
    const uint32_t blocks = step->data_count + parities;
    const uint32_t bytes = step->data_count * JOURNAL_DATA_PAYLOAD_BYTES +
                           (parities > 0 ? journal_parity_payload_bytes(parities) : 0);
    struct journal_entry_state *entry;

    if (journal->failed)
        return -EIO;
    assert(blocks > 0);
    assert(parities == 0 || parities == journal->config.geometry.parity_count);
    entry = entry_for_step(journal, append, bytes, blocks);
    assert(append->reserved >= blocks);
    append->reserved -= blocks;
    journal->reserved_blocks -= blocks;
    journal->used_blocks += blocks;
    journal->appended_blocks += blocks;
    ++journal->counts.stripes;
    step->entry_position = entry->position;
    step->first_block = entry->writer.block_count;
    for (unsigned i = 0; i < step->data_count; ++i) {
        const void *memory = step->data[i].memory;

        if (i + 1 < step->data_count)
            journal_block_expect(step->data[i + 1].memory);
        entry->pages[entry->writer.block_count] = memory;
        step->data[i].checksum = journal_checksum(seed, memory, BLOCK_BYTES);
        journal_writer_add_data(&entry->writer, step->data[i].array_offset, step->data[i].checksum);
    }
    if (parities > 0) {
        const void *const pages[JOURNAL_PARITY_COUNT_MAX] = {step->p, step->q};
        uint32_t checksums[JOURNAL_PARITY_COUNT_MAX];

        for (unsigned i = 0; i < parities; ++i) {
            entry->pages[entry->writer.block_count + i] = pages[i];
            checksums[i] = journal_checksum(seed, pages[i], BLOCK_BYTES);
        }
        journal_writer_add_parity(&entry->writer, step->member_offset, parities, checksums);
    }
    return 0;
}

static bool
append_arrived(const struct journal *journal, const struct journal_append *append,
               enum journal_wait until)
{
    return append->last->state == ENTRY_COMPLETE &&
           (until == JOURNAL_COMPLETE || journal->durable_seq >= append->last->seq);
}

/* Tells those whose entries have all arrived, in order (J1); after a failure those whose entries
 * are not with the device any more: before that their pages still belong to I/O (J7). */
static void
appends_tell(struct journal *journal, enum journal_wait until)
{
    struct append_list *list = &journal->waiting[until];

    while (list->first != NULL) {
        struct journal_append *append = list->first;
        const enum entry_state state = append->last->state;
        const bool there = append_arrived(journal, append, until);

        if (!there && !(journal->failed && (state == ENTRY_COMPLETE || state == ENTRY_DEAD)))
            return;
        append->result = there ? 0 : -EIO; /* J6 */
        if (there && until == JOURNAL_COMPLETE)
            journal->told_seq = append->last->seq;
        list->first = append->next;
        if (list->first == NULL)
            list->last = &list->first;
        task_wake(journal->loop, append->waiter);
    }
}

task_fn int
journal_append_wait(struct journal *journal, struct journal_append *append, enum journal_wait until)
{
    struct append_list *list = &journal->waiting[until];

    journal->reserved_blocks -= append->reserved;
    if (append->slots > 0)
        tokens_give(journal->loop, &journal->slots_free, append->slots);
    append->reserved = append->slots = 0;
    space_grant(journal);
    if (journal->failed)
        return -EIO; /* nothing was sent since its first step, and nothing will be */
    if (append->last == NULL)
        return 0;
    append->waiter = task_self(journal->loop);
    append->next = NULL;
    *list->last = append;
    list->last = &append->next;
    task_suspend(journal->loop);
    return append->result;
}

static task_fn int
flush_until(struct journal *journal, uint64_t wanted)
{
    while (journal->durable_seq < wanted && !journal->failed) {
        journal->flush_wanted_seq = max_u64(journal->flush_wanted_seq, wanted);
        wake(journal, &journal->flusher);
        wait_queue_wait(journal->loop, &journal->flushed);
    }
    return journal->durable_seq >= wanted ? 0 : -EIO;
}

task_fn int
journal_flush(struct journal *journal)
{
    return flush_until(journal, journal->told_seq);
}

task_fn void
journal_settle(struct journal *journal)
{
    const uint64_t last = journal->seq - 1 - (journal->open != NULL);

    while (!arrived(journal, last) && !journal->failed)
        wait_queue_wait(journal->loop, &journal->checkpoint_done);
}

void
journal_append_finish(struct journal *journal, struct journal_append *append)
{
    for (struct journal_entry_state *entry = append->first; entry != NULL; entry = entry->next) {
        assert(entry->unfinished > 0);
        --entry->unfinished;
        if (entry == append->last)
            break;
    }
    append->first = append->last = NULL;
    entries_retire(journal);
}

void
journal_append_abandon(struct journal *journal, struct journal_append *append)
{
    for (struct journal_entry_state *entry = append->first; entry != NULL; entry = entry->next) {
        entry->kept = true;
        if (entry == append->last)
            break;
    }
    append->first = append->last = NULL;
    wait_queue_wake_all(journal->loop, &journal->checkpoint_done);
}

/* --- Failure --------------------------------------------------------------------------------- */

static void
journal_fail(struct journal *journal, int error, const char *operation)
{
    if (journal->failed)
        return;
    journal->failed = true; /* J6 */
    timer_cancel(journal->loop, &journal->checkpoint_timer);
    wake(journal, &journal->writer); /* they bury the entries */
    wake(journal, &journal->committer);
    wake(journal, &journal->flusher);
    appends_tell(journal, JOURNAL_DURABLE);
    wait_queue_wake_all(journal->loop, &journal->flushed);
    if (journal->open != NULL)
        loop_at_turn_end(journal->loop, &journal->turn_end); /* it waits for nobody any more */
    space_grant(journal);
    tokens_end(journal->loop, &journal->slots_free); /* what is not complete keeps its slots */
    wait_queue_wake_all(journal->loop, &journal->checkpoint_done);
    journal->config.failed(journal->config.owner, error, operation);
}

void
journal_rotten(struct journal *journal, int error)
{
    journal_fail(journal, error, "reading back what was logged");
}

void
journal_end_waiting(struct journal *journal)
{
    journal->ended = true;
    space_grant(journal);
    tokens_end(journal->loop, &journal->slots_free); /* what is kept keeps its slots */
    wait_queue_wake_all(journal->loop, &journal->checkpoint_done);
}

bool
journal_failed(const struct journal *journal)
{
    return journal->failed;
}

bool
journal_flush_failed(const struct journal *journal)
{
    return journal->flush_failed;
}

bool
journal_unfinished(const struct journal *journal)
{
    for (const struct journal_entry_state *entry = journal->entries_first;
         entry != NULL && entry->seq <= journal->durable_seq; entry = entry->next)
        if (entry->unfinished > 0 || entry->kept)
            return true;
    return journal->held;
}

/* --- Writer ---------------------------------------------------------------------------------- */

/* The meta block and its pages, in as few I/Os as the vectors and the end of the ring allow. */
static task_fn void
entry_submit(struct journal *journal, struct journal_entry_state *entry)
{
    uint64_t position = entry->position;
    struct io *io = NULL;

    io_group_init(&entry->ios, journal->loop);
    for (uint32_t b = 0; b <= entry->writer.block_count; ++b) {
        /* Devices do not write to a page that they write from. */
        void *page = b == 0 ? entry->meta : (void *)(uintptr_t)entry->pages[b - 1];

        if (io != NULL && (position == 0 || !io_add(io, page, BLOCK_BYTES))) {
            io_submit(io, journal->config.device, &entry->ios);
            io = NULL;
        }
        if (io == NULL) {
            io = io_take(&journal->ios);
            io->op = IO_WRITE;
            io->fua = false;
            io->offset = journal->config.data_offset + position;
            if (!io_add(io, page, BLOCK_BYTES))
                assert(!"a fresh io has room");
        }
        position = ring_after(journal, position, 1);
    }
    io_submit(io, journal->config.device, &entry->ios);
}

static void
task_ended(struct journal *journal)
{
    if (--journal->tasks_alive == 0)
        wait_queue_wake_all(journal->loop, &journal->quit_waiters);
}

static void
writer_main(void *arg)
{
    struct journal *journal = arg;

    for (;;) {
        struct journal_entry_state *entry = journal->unsubmitted;

        if (entry == NULL || entry->state != ENTRY_CLOSED) {
            if (journal->keeper_ended)
                break;
            sleep_at(journal, &journal->writer);
            continue;
        }
        if (journal->failed)
            io_group_init(&entry->ios, journal->loop); /* J6: it dies without any */
        else
            entry_submit(journal, entry);
        entry->state = ENTRY_SUBMITTED;
        journal->unsubmitted = entry->next;
        wake(journal, &journal->committer);
    }
    journal->writer_ended = true;
    wake(journal, &journal->committer);
    task_ended(journal);
}

/* --- Committer ------------------------------------------------------------------------------- */

/* The last of the entries from `entry` on that are complete without a gap (J1). */
static struct journal_entry_state *
complete_until(struct journal_entry_state *entry)
{
    while (entry->next != NULL && entry->next->state == ENTRY_SUBMITTED &&
           entry->next->ios.pending == 0 && entry->next->ios.first_error == 0)
        entry = entry->next;
    return entry;
}

/* Somebody has come nearer to what it waits for. */
static void
tell_arrivals(struct journal *journal)
{
    if (journal->open != NULL)
        loop_at_turn_end(journal->loop, &journal->turn_end);
    wait_queue_wake_all(journal->loop, &journal->checkpoint_done);
}

static void
durable_until(struct journal *journal, uint64_t seq)
{
    journal->durable_seq = seq;
    appends_tell(journal, JOURNAL_DURABLE);
    wait_queue_wake_all(journal->loop, &journal->flushed);
    tell_arrivals(journal);
}

/* Entries from journal->uncommitted to last have been written: they are complete. */
static void
complete(struct journal *journal, struct journal_entry_state *last)
{
    for (struct journal_entry_state *entry = journal->uncommitted;; entry = entry->next) {
        entry->state = ENTRY_COMPLETE;
        if (entry == last)
            break;
    }
    journal->uncommitted = last->next;
    journal->complete_seq = last->seq;
    appends_tell(journal, JOURNAL_COMPLETE);
    if (journal->config.device->volatile_cache) {
        wake(journal, &journal->flusher);
        tell_arrivals(journal);
    } else {
        durable_until(journal, last->seq);
    }
    entries_retire(journal);
}

static void
committer_main(void *arg)
{
    struct journal *journal = arg;

    for (;;) {
        struct journal_entry_state *entry = journal->uncommitted;
        int result;

        if (entry == NULL || entry->state != ENTRY_SUBMITTED) {
            if (journal->writer_ended)
                break;
            sleep_at(journal, &journal->committer);
            continue;
        }
        result = io_wait(&entry->ios);
        if (result < 0)
            journal_fail(journal, result, "write");
        if (!journal->failed) {
            complete(journal, complete_until(entry));
            continue;
        }
        entry->state = ENTRY_DEAD;
        journal->uncommitted = entry->next;
        appends_tell(journal, JOURNAL_COMPLETE);
        appends_tell(journal, JOURNAL_DURABLE);
    }
    journal->committer_ended = true;
    wake(journal, &journal->flusher);
    task_ended(journal);
}

/* --- Flusher --------------------------------------------------------------------------------- */

/* Does somebody wait for what a flush that begins now would make durable? */
static bool
flush_wanted(const struct journal *journal)
{
    return !journal->failed &&
           (journal->flush_wanted_seq > journal->durable_seq || append_wants_flush(journal));
}

static void
flusher_main(void *arg)
{
    struct journal *journal = arg;

    for (;;) {
        const uint64_t seq = journal->complete_seq;
        int result;

        if (!flush_wanted(journal)) {
            if (journal->committer_ended)
                break;
            sleep_at(journal, &journal->flusher);
            continue;
        }
        /* J2. Between the entries and the first write to a member: without it a power cut could
         * take the entry and leave half of a stripe on the members. */
        result = device_flush(journal->config.device);
        ++journal->counts.flushes;
        journal->flush_failed = result < 0;
        if (result < 0)
            journal_fail(journal, result, "flush"); /* never tried again */
        else if (!journal->failed)
            durable_until(journal, seq);
    }
    task_ended(journal);
}

/* --- Keeper: checkpoints --------------------------------------------------------------------- */

static void
checkpoint_timer_fired(struct timer *timer)
{
    struct journal *journal = container_of(timer, struct journal, checkpoint_timer);

    journal->checkpoint_due = true;
    wake(journal, &journal->keeper);
}

/* An entry that means nothing at the head, durable: then everything before it is behind us. */
static task_fn void
write_empty_entry(struct journal *journal)
{
    struct journal_entry_state *entry;
    const uint64_t seq = journal->seq;

    assert(journal->open == NULL);
    assert(journal->used_blocks < journal->ring_blocks); /* J5 */
    entry = entry_open(journal);
    entry->keepers = true;
    entry_close(journal);
    while (journal->finished_seq < seq && !journal->failed)
        wait_queue_wait(journal->loop, &journal->checkpoint_done);
}

/* The entry that the tail may name when it is durable: the first unfinished one, if it is complete,
 * else the last one that is finished; but not behind the holder's oldest (J4). */
static uint64_t
checkpoint_target(const struct journal *journal)
{
    const struct journal_entry_state *first = journal->entries_first;
    uint64_t target = journal->finished_position, oldest;

    if (journal->held)
        return journal->hold;
    if (first != NULL && first->state == ENTRY_COMPLETE)
        target = first->position;
    if (journal->holder != NULL && journal->holder->oldest(journal->holder, &oldest) &&
        ring_blocks_between(journal, journal->tail, oldest) <
            ring_blocks_between(journal, journal->tail, target))
        target = oldest;
    return target;
}

/* With everything finished the tail moves to an entry of its own. */
static bool
all_finished(const struct journal *journal)
{
    uint64_t oldest;

    return journal->entries_first == NULL && !journal->held && journal->used_blocks > 1 &&
           (journal->holder == NULL || !journal->holder->oldest(journal->holder, &oldest));
}

static bool
checkpoint_wanted(const struct journal *journal)
{
    const uint64_t target = checkpoint_target(journal);

    if (journal->failed || journal->ended || (target == journal->tail && !all_finished(journal)))
        return false;
    return journal->checkpoint_due || journal->requests > 0 || journal->waiters_first != NULL ||
           ring_blocks_between(journal, journal->tail, target) * BLOCK_BYTES >=
               journal->checkpoint_bytes;
}

/* Between the superblock and the next use of the space: a discard that came later would take what
 * is logged there anew. */
static task_fn void
discard(struct journal *journal, uint64_t from, uint64_t to)
{
    const uint64_t ring_bytes = journal->ring_blocks * BLOCK_BYTES;
    const struct {
        uint64_t from, to;
    } parts[2] = {{from, to < from ? ring_bytes : to}, {0, to < from ? to : 0}};
    struct io_group ios;

    io_group_init(&ios, journal->loop);
    for (unsigned i = 0; i < ARRAY_LEN(parts); ++i) {
        struct io *io;

        if (parts[i].from >= parts[i].to)
            continue;
        io = io_take(&journal->ios);
        io->op = IO_PUNCH;
        io->offset = journal->config.data_offset + parts[i].from;
        io->length = parts[i].to - parts[i].from;
        io_submit(io, journal->config.device, &ios);
    }
    if (io_wait(&ios) < 0)
        journal->config.discard = false; /* nothing is lost but the device's comfort */
}

/* J4, in its order. */
static task_fn void
checkpoint(struct journal *journal)
{
    uint64_t target;
    int result;

    if (all_finished(journal))
        write_empty_entry(journal);
    if (journal->failed)
        return;
    target = checkpoint_target(journal);
    if (target == journal->tail)
        return;
    /* The entry that the tail is to name, and what the holder logged anew behind it: a power cut
     * could take those when the tail has passed what they replace. */
    if (flush_until(journal, journal->complete_seq) < 0)
        return;
    /* Between the writes to the members and the tail: without it a power cut could take them when
     * the log has forgotten them. */
    result = journal->config.flush_members(journal->config.owner);
    if (result < 0) {
        journal_end_waiting(journal); /* there will be no space any more */
        return;
    }
    if (journal->failed)
        return;
    /* Between the tail and the next use of the space: else recovery would begin in what has been
     * overwritten. */
    result = journal->config.record_tail(journal->config.owner, target);
    if (result < 0) {
        journal_fail(journal, result, "superblock");
        return;
    }
    if (journal->config.discard)
        discard(journal, journal->tail, target);
    journal->used_blocks -= ring_blocks_between(journal, journal->tail, target);
    journal->tail = target;
    ++journal->counts.checkpoints;
    space_grant(journal);
    wait_queue_wake_all(journal->loop, &journal->checkpoint_done);
}

static void
keeper_main(void *arg)
{
    struct journal *journal = arg;

    while (!journal->quitting) {
        if (!checkpoint_wanted(journal)) {
            journal->checkpoint_due = false;
            sleep_at(journal, &journal->keeper);
            continue;
        }
        journal->checkpoint_due = false;
        checkpoint(journal);
    }
    journal->keeper_ended = true; /* it was the last that could open an entry */
    wake(journal, &journal->writer);
    task_ended(journal);
}

task_fn int
journal_hold(struct journal *journal, uint64_t position)
{
    journal->held = true;
    journal->hold = position;
    while (journal->tail != position) {
        if (journal->failed || journal->ended)
            return -EIO;
        ++journal->requests;
        wake(journal, &journal->keeper);
        wait_queue_wait(journal->loop, &journal->checkpoint_done);
        --journal->requests;
    }
    return 0;
}

void
journal_release(struct journal *journal)
{
    journal->held = false;
    entries_retire(journal);
}

task_fn int
journal_checkpoint(struct journal *journal)
{
    const uint64_t wanted = journal->appended_blocks;

    assert(!journal->held);
    while (journal->used_blocks > 1 && journal->appended_blocks - journal->used_blocks < wanted) {
        if (journal->failed || journal->ended ||
            (journal->entries_first != NULL && journal->entries_first->kept) ||
            (journal->holder != NULL && journal->holder->stuck))
            return -EIO;
        ++journal->requests;
        wake(journal, &journal->keeper);
        wait_queue_wait(journal->loop, &journal->checkpoint_done);
        --journal->requests;
    }
    return journal->failed ? -EIO : 0;
}

task_fn int
journal_drain(struct journal *journal)
{
    int result = 0;

    while (result == 0 && journal->used_blocks > 1)
        result = journal_checkpoint(journal);
    return result;
}

/* --- Life ------------------------------------------------------------------------------------ */

static void
journal_free(struct journal *journal)
{
    io_pool_fini(&journal->ios);
    free(journal->metas);
    free(journal->slots);
    free(journal);
}

/* What a stripe adds at most in one step, and what follows for entries. */
static void
limits_init(struct journal *journal)
{
    const struct journal_config *config = &journal->config;
    const uint32_t parities = config->geometry.parity_count;

    journal->ring_blocks = config->geometry.ring_bytes / BLOCK_BYTES;
    journal->step_blocks_max = config->members;
    journal->step_bytes_max = (config->members - parities) * JOURNAL_DATA_PAYLOAD_BYTES +
                              journal_parity_payload_bytes(parities);
    journal->entry_blocks_max = journal->step_blocks_max;
    if (journal->ring_blocks / 8 > journal->step_blocks_max)
        journal->entry_blocks_max = min_u64(journal->ring_blocks / 8 - 1, JOURNAL_ENTRY_BLOCKS_MAX);
    journal->reserve_blocks_max = max_u64(journal->step_blocks_max + 1,
                                          min_u64(journal->ring_blocks / 8, RESERVE_BLOCKS_MAX));
    journal->reserve_blocks_max = min_u64(max_u64(journal->reserve_blocks_max, STEP_RESERVE_BLOCKS),
                                          journal->ring_blocks - 2);
    if (journal->config.entries == 0)
        journal->config.entries = ENTRIES;
    /* With very many members an entry may have room for one small step only. (A single step takes
     * one slot.) */
    while (slots_for(journal, journal->reserve_blocks_max) > journal->config.entries - 1)
        --journal->reserve_blocks_max;
    journal->checkpoint_bytes = config->checkpoint_bytes != 0
                                    ? config->checkpoint_bytes
                                    : min_u64(config->geometry.ring_bytes / 4, CHECKPOINT_BYTES);
    if (journal->config.checkpoint_ns == 0)
        journal->config.checkpoint_ns = CHECKPOINT_NS;
}

static int
slots_init(struct journal *journal)
{
    journal->slots = calloc(journal->config.entries, sizeof *journal->slots);
    journal->metas = aligned_alloc(BLOCK_BYTES, (size_t)journal->config.entries * BLOCK_BYTES);
    if (journal->slots == NULL || journal->metas == NULL)
        return -ENOMEM;
    for (unsigned i = journal->config.entries; i-- > 0;) {
        journal->slots[i].meta = journal->metas + (size_t)i * BLOCK_BYTES;
        journal->slots[i].next = journal->slots_first_free;
        journal->slots_first_free = &journal->slots[i];
    }
    tokens_init(&journal->slots_free, journal->config.entries - 1); /* one is the keeper's */
    return 0;
}

int
journal_create(const struct journal_config *config, struct journal **out, struct error *error)
{
    void (*const mains[])(void *) = {writer_main, committer_main, flusher_main, keeper_main};
    struct journal *journal;

    assert(config->members <= JOURNAL_MEMBERS_MAX);
    if (config->geometry.ring_bytes / BLOCK_BYTES < config->members + 4)
        return error_set(
            error, -EINVAL, "%s: a journal of %llu blocks is too small for %u members: it takes %u",
            config->device->name, (unsigned long long)(config->geometry.ring_bytes / BLOCK_BYTES),
            config->members, config->members + 4);
    journal = calloc(1, sizeof *journal);
    if (journal == NULL)
        return error_set(error, -ENOMEM, "no memory for the journal");
    journal->config = *config;
    journal->loop = config->loop;
    limits_init(journal);
    journal->tail = journal->finished_position = config->tail;
    journal->head = config->head;
    journal->seq = config->seq;
    journal->complete_seq = journal->durable_seq = config->seq - 1;
    journal->used_blocks = journal->appended_blocks =
        ring_blocks_between(journal, config->tail, config->head);
    journal->waiters_last = &journal->waiters_first;
    for (unsigned i = 0; i < ARRAY_LEN(journal->waiting); ++i)
        journal->waiting[i].last = &journal->waiting[i].first;
    journal->turn_end.run = turn_ended;
    journal->checkpoint_timer.fire = checkpoint_timer_fired;
    if (slots_init(journal) < 0 || io_pool_init(&journal->ios, config->loop, IOS) < 0) {
        journal_free(journal);
        return error_set(error, -ENOMEM, "no memory for the journal");
    }
    for (unsigned i = 0; i < ARRAY_LEN(mains); ++i, ++journal->tasks_alive)
        if (task_start(config->loop, mains[i], journal) == NULL)
            assert(!"the task pool is smaller than the journal's tasks");
    *out = journal;
    return 0;
}

task_fn void
journal_destroy(struct journal *journal)
{
    assert(journal->waiters_first == NULL);
    assert(journal->waiting[JOURNAL_COMPLETE].first == NULL);
    assert(journal->waiting[JOURNAL_DURABLE].first == NULL);
    journal->quitting = true;
    timer_cancel(journal->loop, &journal->checkpoint_timer);
    wake(journal, &journal->keeper);
    while (journal->tasks_alive > 0)
        wait_queue_wait(journal->loop, &journal->quit_waiters);
    while (journal->turn_end.queued)
        loop_sleep(journal->loop, 0);
    journal_free(journal);
}

void
journal_status(const struct journal *journal, struct journal_status *status)
{
    *status = journal->counts;
    status->ring_bytes = journal->ring_blocks * BLOCK_BYTES;
    status->used_bytes = journal->used_blocks * BLOCK_BYTES;
    status->tail = journal->tail;
    status->head = journal->head;
    status->seq = journal->seq;
}
