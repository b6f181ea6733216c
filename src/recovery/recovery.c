/*
 * recovery.c: from what a journal holds to an array whose journal can be used. See recovery.h for
 * the steps and V1-V5.
 */
#include "recovery/recovery.h"

#include "runtime/pages.h"
#include "stripe/cache.h"

#include <inttypes.h>
#include <stdlib.h>

#define BATCH_BLOCKS 1024u
#define BATCHES      4u
#define BATCHES_READ 2u   /* of them are read while one is looked at */
#define IOS          128u /* more than devices queue goes to threads of the kernel: slower */
#define PROGRESS_NS  UINT64_C(1000000000)
/* Any entry finds room in half of it. */
#define INDEX_MIN (2 * JOURNAL_ENTRY_BLOCKS_MAX)
/* The part of the index that open cycles leave to what follows in the log: an eighth. */
#define INDEX_ROOM_SHARE 8u
#define SEQ_JUMP_MIN     UINT64_C(10000)
#define NO_ROOM_HINT                                                                               \
    "recover --to=FILE copies what the array holds with it; --force=drop-journal goes on "         \
    "without\n"
#define ZERO_BYTES (1 * MIB)

/* Blocks of the log on their way to the members. */
struct batch {
    struct recovery *recovery;
    struct io_group reads, writes;
    uint8_t *memory;                     /* the recovery's */
    struct journal_record *records;      /* the recovery's; by member, then stripe */
    struct journal_record **by_distance; /* the recovery's */
    unsigned count;
    bool writing;
};

struct recovery {
    struct recovery_config config;
    struct loop *loop;
    struct journal_geometry geometry;
    uint64_t data_offset; /* of the ring on the device */
    uint64_t ring_blocks;
    struct journal_scan log;
    struct journal_records records;
    bool records_there; /* allocated */
    bool rounds;        /* some of what counts did not fit into the index: V5 */
    int index_result;   /* of what was done with the entries that the scan saw */
    struct error index_error;
    struct recovery_counts counts;
    bool adopted; /* what is data-only is in the engine's cache */

    struct io_pool ios;
    bool ios_there;
    struct pages *pages; /* owned; NULL: there is nothing to move */
    uint8_t *memory;     /* all of them: the batches' */
    struct batch batches[BATCHES];
    struct journal_record *batch_records;
    struct journal_record **batch_pointers;

    const struct recovery_target *target; /* while something is written */
    int member_error[MEMBERS_MAX];

    /* Progress of one phase. */
    enum recovery_phase phase;
    uint64_t phase_began_ns, told_ns, done_bytes, total_bytes;
};

/* --- Progress -------------------------------------------------------------------------------- */

static void
phase_begin(struct recovery *recovery, enum recovery_phase phase, uint64_t total_bytes)
{
    recovery->phase = phase;
    recovery->total_bytes = total_bytes;
    recovery->done_bytes = 0;
    recovery->phase_began_ns = recovery->told_ns = loop_clock_ns(recovery->loop);
}

static void
phase_progress(struct recovery *recovery, uint64_t done_bytes)
{
    const uint64_t now = loop_clock_ns(recovery->loop);
    const double seconds = (double)(now - recovery->phase_began_ns) / 1e9;
    struct recovery_progress progress = {.phase = recovery->phase, .remaining_ms = UINT64_MAX};

    recovery->done_bytes = done_bytes;
    if (recovery->config.progress == NULL || now - recovery->told_ns < PROGRESS_NS)
        return;
    recovery->told_ns = now;
    progress.done_bytes = done_bytes;
    progress.total_bytes = max_u64(recovery->total_bytes, done_bytes);
    progress.rate_bytes_per_s = (uint64_t)((double)done_bytes / seconds);
    if (progress.rate_bytes_per_s > 0)
        progress.remaining_ms =
            (progress.total_bytes - done_bytes) * 1000 / progress.rate_bytes_per_s;
    recovery->config.progress(recovery->config.owner, &progress);
}

/* --- Scan ------------------------------------------------------------------------------------ */

static task_fn int replay_index(struct recovery *recovery, struct error *error);

static void
counts_add(struct recovery *recovery)
{
    const struct journal_records *records = &recovery->records;

    recovery->counts.data_parity_stripes += records->data_parity_stripes;
    recovery->counts.replay_blocks += records->replay_blocks;
    /* Open cycles stay in the index to the end. */
    recovery->counts.data_only_stripes = records->data_only_stripes;
    recovery->counts.open_blocks = records->open_blocks;
}

/* Of an index, what open cycles may take. */
static uint64_t
index_open_max(uint64_t capacity)
{
    return capacity - max_u64(capacity / INDEX_ROOM_SHARE, JOURNAL_ENTRY_BLOCKS_MAX);
}

static uint64_t
index_capacity(uint64_t memory_bytes)
{
    return max_u64(memory_bytes / sizeof(struct journal_record), INDEX_MIN);
}

uint64_t
recovery_open_blocks_max(uint64_t memory_bytes)
{
    return index_open_max(index_capacity(memory_bytes));
}

/* V5. The index is full: what has been noted so far is decided, and if that is not enough the
 * complete cycles make room: they are replayed, or, in the first reading, will be in a second. */
static task_fn int
index_make_room(struct recovery *recovery, struct error *error)
{
    struct journal_records *records = &recovery->records;

    records_decide(records);
    if (records->count <= records->capacity / 2)
        return 0;
    if (recovery->config.whole_index || records->open_blocks > index_open_max(records->capacity))
        return error_set(error, -ENOMEM,
                         "give more memory (--memory)\n"
                         "%s: the index of the journal does not fit into the memory for it: it is "
                         "full with %zu blocks that count",
                         recovery->config.device->name, records->count);
    recovery->rounds = true;
    if (recovery->target != NULL) {
        const int result = replay_index(recovery, error);

        if (result < 0)
            return result;
    } else {
        counts_add(recovery);
    }
    records_forget_complete(records);
    return 0;
}

static task_fn void
scan_entry_seen(void *owner, const struct journal_seen *seen)
{
    struct recovery *recovery = owner;

    if (!seen->valid || recovery->index_result < 0)
        return;
    if (!records_room(&recovery->records, seen->entry->block_count))
        recovery->index_result = index_make_room(recovery, &recovery->index_error);
    if (recovery->index_result == 0)
        records_add_entry(&recovery->records, seen->meta, seen->entry);
}

static void
scan_progress(void *owner, uint64_t done_bytes, uint64_t ring_bytes)
{
    (void)ring_bytes;
    phase_progress(owner, done_bytes);
}

/* Reads the log into the index; complete cycles for which there was no room have been forgotten,
 * or (with a target) replayed. */
static task_fn int
scan_log(struct recovery *recovery, struct journal_scan *log, struct error *error)
{
    const struct journal_scan_config config = {
        .device = recovery->config.device,
        .journal = recovery->config.journal,
        .unreadable_is_end = recovery->config.unreadable_is_end,
        .entry = scan_entry_seen,
        .progress = recovery->target == NULL ? scan_progress : NULL,
        .owner = recovery,
    };
    int result;

    recovery->records.count = 0;
    result = journal_scan(&config, log, error);
    if (result == 0 && recovery->index_result < 0) {
        *error = recovery->index_error;
        result = recovery->index_result;
    }
    if (result == 0)
        records_decide(&recovery->records);
    return result;
}

struct survey {
    uint64_t found, newest_seq, newest_bytes;
};

static void
survey_found(void *owner, const struct journal_entry *entry)
{
    struct survey *survey = owner;

    if (survey->found++ == 0 || entry->seq > survey->newest_seq) {
        survey->newest_seq = entry->seq;
        survey->newest_bytes = entry->position_bytes;
    }
}

/* There is no valid entry at the tail: says what else is there. */
static task_fn int
tail_explain(struct recovery *recovery, struct error *error)
{
    struct survey survey = {0};
    char text[sizeof error->text];

    if (recovery->log.entries > 0 || recovery->log.ring_bytes == 0)
        return error->code;
    /* What cannot be read is not counted. */
    ignored(
        journal_survey(recovery->config.device, recovery->config.journal, survey_found, &survey));
    (void)snprintf(text, sizeof text, "%s", error->text); /* cut off is fine */
    if (survey.found == 0)
        return error_set(error, -EBADMSG,
                         "no entry of this array stands anywhere in the ring\n"
                         "--force=new-journal starts a new log; what only the log held is lost\n%s",
                         text);
    return error_set(error, -EBADMSG,
                     "%" PRIu64 " entries of this array stand elsewhere in the ring, the newest is "
                     "number %" PRIu64 " at position %" PRIu64 " (stripelog journal shows them)\n"
                     "--force=new-journal starts a new log; what only the log held is lost\n%s",
                     survey.found, survey.newest_seq, survey.newest_bytes, text);
}

static int
batches_init(struct recovery *recovery)
{
    const size_t blocks = (size_t)BATCHES * BATCH_BLOCKS;

    /* Not touched now: most logs need a part of it. */
    if (pages_create(recovery->loop, blocks * BLOCK_BYTES, false, &recovery->pages) < 0)
        return -ENOMEM;
    recovery->memory = pages_try(recovery->pages, blocks * BLOCK_BYTES);
    recovery->batch_records = calloc(blocks, sizeof *recovery->batch_records);
    recovery->batch_pointers = calloc(blocks, sizeof(struct journal_record *));
    if (recovery->batch_records == NULL || recovery->batch_pointers == NULL ||
        io_pool_init(&recovery->ios, recovery->loop, IOS) < 0)
        return -ENOMEM;
    recovery->ios_there = true;
    for (unsigned i = 0; i < BATCHES; ++i)
        recovery->batches[i] = (struct batch){
            .recovery = recovery,
            .memory = recovery->memory + (size_t)i * BATCH_BLOCKS * BLOCK_BYTES,
            .records = recovery->batch_records + (size_t)i * BATCH_BLOCKS,
            .by_distance = recovery->batch_pointers + (size_t)i * BATCH_BLOCKS,
        };
    return 0;
}

static task_fn int
scan_and_decide(struct recovery *recovery, struct error *error)
{
    const uint64_t tail_sectors = recovery->config.journal->journal_tail_sectors;
    const uint64_t capacity =
        min_u64(recovery->ring_blocks, index_capacity(recovery->config.memory_bytes));
    int result;

    if (recovery->ring_blocks == 0 || recovery->ring_blocks > UINT32_MAX)
        return error_set(error, -ENOTSUP, "%s: a journal of %" PRIu64 " blocks is not supported",
                         recovery->config.device->name, recovery->ring_blocks);
    if (records_init(&recovery->records, recovery->config.geometry, &recovery->geometry,
                     tail_sectors * SECTOR_BYTES, capacity) < 0)
        return error_set(error, -ENOMEM, "no memory to recover the journal");
    recovery->records_there = true;
    phase_begin(recovery, RECOVERY_SCANNING, recovery->geometry.ring_bytes);
    result = scan_log(recovery, &recovery->log, error);
    if (result == -EBADMSG)
        return tail_explain(recovery, error);
    if (result < 0)
        return result;
    counts_add(recovery);
    if (!recovery->config.whole_index &&
        recovery->counts.replay_blocks + recovery->counts.open_blocks > 0 &&
        batches_init(recovery) < 0)
        return error_set(error, -ENOMEM, "no memory to recover the journal");
    return 0;
}

task_fn int
recovery_scan(const struct recovery_config *config, struct recovery **out, struct error *error)
{
    struct recovery *recovery = calloc(1, sizeof *recovery);
    int result;

    if (recovery == NULL)
        return error_set(error, -ENOMEM, "no memory to recover the journal");
    recovery->config = *config;
    recovery->loop = config->loop;
    journal_geometry_init(&recovery->geometry, config->journal);
    recovery->data_offset = superblock_data_offset_bytes(config->journal);
    recovery->ring_blocks = recovery->geometry.ring_bytes / BLOCK_BYTES;
    result = scan_and_decide(recovery, error);
    if (result < 0) {
        recovery_destroy(recovery);
        return result;
    }
    *out = recovery;
    return 0;
}

void
recovery_destroy(struct recovery *recovery)
{
    if (recovery->records_there)
        records_fini(&recovery->records);
    if (recovery->ios_there)
        io_pool_fini(&recovery->ios);
    free(recovery->batch_pointers);
    free(recovery->batch_records);
    if (recovery->pages != NULL) {
        pages_give(recovery->pages, recovery->memory,
                   (uint64_t)BATCHES * BATCH_BLOCKS * BLOCK_BYTES);
        pages_destroy(recovery->pages);
    }
    free(recovery);
}

const struct journal_scan *
recovery_log(const struct recovery *recovery)
{
    return &recovery->log;
}

const struct journal_records *
recovery_records(const struct recovery *recovery)
{
    return recovery->rounds ? NULL : &recovery->records;
}

void
recovery_counts(const struct recovery *recovery, struct recovery_counts *counts)
{
    *counts = recovery->counts;
}

/* --- Batches --------------------------------------------------------------------------------- */

static int
compare_member(const void *a, const void *b)
{
    const struct journal_record *x = a, *y = b;

    if (record_member(x) != record_member(y))
        return record_member(x) < record_member(y) ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static int
compare_distance(const void *a, const void *b)
{
    const struct journal_record *const *x = a, *const *y = b;

    return (*x)->distance < (*y)->distance ? -1 : (*x)->distance > (*y)->distance;
}

static uint8_t *
batch_page(const struct batch *batch, const struct journal_record *record)
{
    return batch->memory + (size_t)(record - batch->records) * BLOCK_BYTES;
}

/* Starts reading the batch's records, neighbours in the ring in one I/O. */
static task_fn void
batch_read(struct batch *batch)
{
    struct recovery *recovery = batch->recovery;
    uint64_t next = 0;
    struct io *io = NULL;

    for (unsigned i = 0; i < batch->count; ++i)
        batch->by_distance[i] = &batch->records[i];
    qsort(batch->by_distance, batch->count, sizeof *batch->by_distance, compare_distance);
    io_group_init(&batch->reads, recovery->loop);
    for (unsigned i = 0; i < batch->count; ++i) {
        const struct journal_record *record = batch->by_distance[i];
        const uint64_t position = records_position(&recovery->records, record);
        uint8_t *page = batch_page(batch, record);

        if (io != NULL && (position != next || position == 0 || !io_add(io, page, BLOCK_BYTES))) {
            io_submit(io, recovery->config.device, &batch->reads);
            io = NULL;
        }
        if (io == NULL) {
            io = io_take(&recovery->ios);
            io->op = IO_READ;
            io->offset = recovery->data_offset + position;
            if (!io_add(io, page, BLOCK_BYTES))
                assert(!"a fresh io has room");
        }
        next = position + BLOCK_BYTES;
    }
    if (io != NULL)
        io_submit(io, recovery->config.device, &batch->reads);
}

/* The second try, block by block. */
static task_fn int
batch_read_again(struct batch *batch)
{
    struct recovery *recovery = batch->recovery;
    int result = 0;

    for (unsigned i = 0; i < batch->count && result == 0; ++i) {
        const struct journal_record *record = &batch->records[i];

        result = device_read(recovery->config.device, batch_page(batch, record),
                             recovery->data_offset + records_position(&recovery->records, record),
                             BLOCK_BYTES);
    }
    return result;
}

/* Until they are read; each must be what it was when the log was scanned. */
static task_fn int
batch_verify(struct batch *batch, struct error *error)
{
    const struct recovery *recovery = batch->recovery;
    int result = io_wait(&batch->reads);

    if (result < 0)
        result = batch_read_again(batch);
    if (result < 0)
        return error_set(error, -EIO, "%s: the journal cannot be read any more: %s",
                         recovery->config.device->name, strerror(-result));
    for (unsigned i = 0; i < batch->count; ++i) {
        const struct journal_record *record = &batch->records[i];

        if (i + 1 < batch->count)
            journal_block_expect(batch_page(batch, record + 1));
        if (journal_checksum(recovery->geometry.checksum_seed, batch_page(batch, record),
                             BLOCK_BYTES) != record->checksum)
            return error_set(error, -EIO,
                             "%s: the journal's block at position %" PRIu64
                             " does not read as it did when the log was scanned",
                             recovery->config.device->name,
                             records_position(&recovery->records, record));
    }
    return 0;
}

/* --- Replay ---------------------------------------------------------------------------------- */

static void
replay_write_failed(struct io_group *group, const struct io *io)
{
    struct batch *batch = container_of(group, struct batch, writes);

    batch->recovery->member_error[io->member] = io->result;
}

/* Starts writing the batch to the members, neighbours in one I/O. */
static task_fn void
batch_write(struct batch *batch)
{
    struct recovery *recovery = batch->recovery;
    const struct member *members = recovery->target->members;
    unsigned last_member = 0;
    uint64_t next = 0;
    struct io *io = NULL;

    io_group_init(&batch->writes, recovery->loop);
    batch->writes.failed = replay_write_failed;
    batch->writing = true;
    for (unsigned i = 0; i < batch->count; ++i) {
        const struct journal_record *record = &batch->records[i];
        const unsigned m = record_member(record);
        const uint64_t offset = members[m].data_offset + record_stripe(record) * BLOCK_BYTES;
        uint8_t *page = batch_page(batch, record);

        if (io != NULL && (m != last_member || offset != next || !io_add(io, page, BLOCK_BYTES))) {
            io_submit(io, members[last_member].device, &batch->writes);
            io = NULL;
        }
        last_member = m;
        next = offset + BLOCK_BYTES;
        if (members[m].state == MEMBER_MISSING)
            continue;
        if (io == NULL) {
            io = io_take(&recovery->ios);
            io->op = IO_WRITE;
            io->fua = false;
            io->member = m;
            io->offset = offset;
            if (!io_add(io, page, BLOCK_BYTES))
                assert(!"a fresh io has room");
        }
    }
    if (io != NULL)
        io_submit(io, members[last_member].device, &batch->writes);
}

/* Members whose writes failed are failed members. */
static task_fn int
members_judge(struct recovery *recovery, struct error *error)
{
    const struct recovery_target *target = recovery->target;

    for (unsigned m = 0; m < target->members_count; ++m) {
        if (recovery->member_error[m] != 0 && target->members[m].state != MEMBER_MISSING)
            target->member_failed(target->owner, m, recovery->member_error[m], "replay");
        recovery->member_error[m] = 0;
    }
    target->failures_recorded(target->owner);
    if (target->beyond_parity(target->owner))
        return error_set(error, -EIO,
                         "the log cannot be replayed: more members failed than parity covers; the "
                         "log is as it was");
    return 0;
}

static task_fn int
batch_written(struct batch *batch, struct error *error)
{
    if (!batch->writing)
        return 0;
    batch->writing = false;
    (void)io_wait(&batch->writes); /* judged by member */
    return members_judge(batch->recovery, error);
}

/* Takes the next records of complete cycles; false if there are none. */
static bool
batch_fill(struct batch *batch, size_t *at)
{
    const struct journal_records *records = &batch->recovery->records;

    for (batch->count = 0; *at < records->count && batch->count < BATCH_BLOCKS; ++*at)
        if (!record_open(&records->all[*at]))
            batch->records[batch->count++] = records->all[*at];
    qsort(batch->records, batch->count, sizeof *batch->records, compare_member);
    return batch->count > 0;
}

/* What is in the index: some batches are read while others are written. A stripe that is cut in two
 * by a batch's end is whole when this returns. */
static task_fn int
replay_index(struct recovery *recovery, struct error *error)
{
    size_t at = 0;
    unsigned begun = 0, sent = 0; /* batches: read; and written */
    bool more = recovery->pages != NULL;
    int result = 0;

    while (result == 0 && (more || sent < begun)) {
        struct batch *const next = &recovery->batches[begun % BATCHES];
        struct batch *const batch = &recovery->batches[sent % BATCHES];

        if (more) {
            result = batch_written(next, error);
            if (result < 0)
                break;
            more = batch_fill(next, &at);
            if (more) {
                batch_read(next);
                ++begun;
            }
        }
        if (sent == begun || (more && begun - sent <= BATCHES_READ))
            continue;
        loop_sleep(recovery->loop, 0); /* what was begun goes to the devices now */
        result = batch_verify(batch, error);
        ++sent;
        if (result == 0)
            batch_write(batch);
        phase_progress(recovery, recovery->done_bytes + (uint64_t)batch->count * BLOCK_BYTES);
    }
    for (; sent < begun; ++sent)
        ignored(io_wait(&recovery->batches[sent % BATCHES].reads)); /* it is over anyway */
    for (unsigned i = 0; i < BATCHES; ++i) {
        struct error later;
        const int last = batch_written(&recovery->batches[i], result < 0 ? &later : error);

        if (result == 0)
            result = last;
    }
    return result;
}

/* V5: the log is read a second time, and replayed whenever the index is full. Leaves the last round
 * in the index. */
static task_fn int
replay_rounds(struct recovery *recovery, struct error *error)
{
    struct journal_scan log;
    int result = scan_log(recovery, &log, error);

    if (result == 0 &&
        (log.end_bytes != recovery->log.end_bytes || log.seq_next != recovery->log.seq_next))
        result = error_set(error, -EIO, "%s: the journal does not read the same twice",
                           recovery->config.device->name);
    return result;
}

task_fn int
recovery_replay(struct recovery *recovery, const struct recovery_target *target,
                struct error *error)
{
    struct device *const device = recovery->config.device;
    int result = 0;

    recovery->target = target;
    /* V2: what a process that was killed has left may still be in the device's cache. */
    if (device->volatile_cache)
        result = device_flush(device);
    if (result < 0)
        return error_set(error, result, "%s: the journal cannot be flushed: %s", device->name,
                         strerror(-result));
    phase_begin(recovery, RECOVERY_REPLAYING, recovery->counts.replay_blocks * BLOCK_BYTES);
    if (recovery->rounds)
        result = replay_rounds(recovery, error);
    if (result == 0)
        result = replay_index(recovery, error);
    if (result < 0)
        return result;
    /* V2: between replay and the tail. Without it the log could be given up while what it said is
     * still in a member's cache. */
    engine_flush_members(target->engine);
    return members_judge(recovery, error);
}

/* --- Restart --------------------------------------------------------------------------------- */

static task_fn int
empty_entry_write(struct device *device, const struct superblock *journal,
                  const struct journal_geometry *geometry, uint64_t seq, uint64_t position,
                  struct error *error)
{
    uint8_t *meta = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    int result;

    if (meta == NULL)
        return error_set(error, -ENOMEM, "no memory for the journal");
    journal_entry_encode_empty(meta, seq, position, geometry->checksum_seed);
    result = device_write(device, meta, superblock_data_offset_bytes(journal) + position,
                          BLOCK_BYTES, true);
    free(meta);
    if (result < 0)
        return error_set(error, result, "%s: the journal cannot be written: %s", device->name,
                         strerror(-result));
    return 0;
}

task_fn int
recovery_new_log(struct device *device, const struct superblock *journal, struct error *error)
{
    struct journal_geometry geometry;

    journal_geometry_init(&geometry, journal);
    return empty_entry_write(device, journal, &geometry, loop_random(device->loop) >> 1, 0, error);
}

/* V3. (What stands at the end may be anything: a number that no log comes to is out of reach.) */
static uint64_t
seq_beyond(const struct recovery *recovery)
{
    const struct journal_scan *log = &recovery->log;
    uint64_t last = log->seq_next;

    if (log->end_has_seq && log->end_seq <= JOURNAL_SEQ_MAX)
        last = max_u64(last, log->end_seq);
    /* What an unreadable block hides may be the beginning of a recovery that was cut off. */
    if (log->end == JOURNAL_END_UNREADABLE)
        last += loop_random(recovery->loop) & UINT32_MAX;
    return last + max_u64(SEQ_JUMP_MIN, recovery->ring_blocks + 1);
}

/* The next records of open cycles from *at on, whole stripes, at most `most` blocks (one stripe is
 * always taken). Sets *stripes. */
static bool
batch_fill_open(struct batch *batch, size_t *at, unsigned most, uint64_t *stripes)
{
    const struct journal_records *records = &batch->recovery->records;

    *stripes = 0;
    batch->count = 0;
    while (*at < records->count) {
        const uint64_t stripe = record_stripe(&records->all[*at]);
        unsigned blocks = 0;
        size_t end = *at;

        for (; end < records->count && record_stripe(&records->all[end]) == stripe; ++end)
            blocks += record_open(&records->all[end]);
        if (batch->count > 0 && batch->count + blocks > most)
            break;
        for (; *at < end; ++*at)
            if (record_open(&records->all[*at]))
                batch->records[batch->count++] = records->all[*at];
        *stripes += blocks > 0;
    }
    return batch->count > 0;
}

static uint64_t
record_array_offset(const struct recovery *recovery, const struct journal_record *record)
{
    uint64_t offset = 0;

    if (!geometry_unmap(recovery->config.geometry, record_member(record),
                        record_stripe(record) * BLOCK_BYTES, &offset))
        assert(!"an open record is data");
    return offset;
}

/* One append with the DATA of the batch's stripes. */
static task_fn int
batch_log_again(struct batch *batch, struct journal *journal, uint64_t stripes)
{
    const uint64_t need = journal_need(journal, stripes, batch->count, 0);
    struct journal_append append;
    int result = journal_reserve(journal, need), waited;

    if (result < 0)
        return result;
    result = journal_append_begin(journal, &append, need);
    if (result < 0) {
        if (!journal_failed(journal))
            journal_unreserve(journal, need);
        return result;
    }
    for (unsigned i = 0, n; i < batch->count && result == 0; i += n) {
        struct journal_data data[MEMBERS_MAX];
        struct journal_step step = {.data = data};
        const uint64_t stripe = record_stripe(&batch->records[i]);

        for (n = 0; i + n < batch->count && record_stripe(&batch->records[i + n]) == stripe; ++n)
            data[n] = (struct journal_data){
                .array_offset = record_array_offset(batch->recovery, &batch->records[i + n]),
                .memory = batch_page(batch, &batch->records[i + n]),
            };
        step.member_offset = stripe * BLOCK_BYTES;
        step.data_count = n;
        result = journal_append_step(journal, &append, &step);
        /* Nobody else appends, and the tail is held: they may as well be told now. */
        for (unsigned b = 0; b < n && result == 0 && batch->recovery->adopted; ++b)
            engine_adopt(batch->recovery->target->engine,
                         &(struct engine_found){.array_offset = data[b].array_offset,
                                                .entry_position = step.entry_position,
                                                .number = step.first_block + b,
                                                .checksum = data[b].checksum,
                                                .memory = data[b].memory});
    }
    waited = journal_append_wait(journal, &append, JOURNAL_DURABLE);
    journal_append_finish(journal, &append); /* the hold keeps the tail before it */
    return result < 0 ? result : waited;
}

/* Blocks that are logged again at a time: what an append may take, less a meta block a stripe. */
static unsigned
batch_blocks(const struct journal *journal)
{
    return (unsigned)min_u64(BATCH_BLOCKS, max_u64(journal_reserve_max(journal) / 2, 1));
}

/* All data-only stripes behind the new beginning. */
static task_fn int
log_again(struct recovery *recovery, struct journal *journal, struct error *error)
{
    struct batch *batch = &recovery->batches[0];
    const unsigned most = batch_blocks(journal);
    uint64_t stripes;

    if (recovery->counts.open_blocks == 0)
        return 0;
    for (size_t at = 0; batch_fill_open(batch, &at, most, &stripes);) {
        int result;

        batch_read(batch);
        result = batch_verify(batch, error);
        if (result < 0)
            return result;
        result = batch_log_again(batch, journal, stripes);
        if (result < 0)
            return error_set(error, result, "%s: the journal cannot be written",
                             recovery->config.device->name);
    }
    return 0;
}

/* Is there room for a new beginning? While the old log counts, for the data of the data-only
 * stripes, at worst with a meta block for each (who writes back keeps that much free); afterwards
 * for their parity, too, and again a meta block for each. And some for a checkpoint. */
static bool
room_to_log_again(const struct recovery *recovery, uint64_t log_blocks)
{
    const struct recovery_counts *counts = &recovery->counts;
    const uint64_t some = recovery->config.geometry->members + 5;
    const uint64_t again = counts->open_blocks + counts->data_only_stripes + some;
    const uint64_t parity = counts->data_only_stripes * (1 + recovery->geometry.parity_count);

    return log_blocks + again < recovery->ring_blocks && again + parity < recovery->ring_blocks;
}

/* Blocks that the data-only stripes take in the new log at most: batch_log_again for each batch.
 * Two batches that follow each other have more than one may have. */
static uint64_t
blocks_logged_again(const struct recovery *recovery, const struct journal *journal)
{
    const struct recovery_counts *counts = &recovery->counts;
    const uint64_t batches = 1 + 2 * counts->open_blocks / batch_blocks(journal);

    return journal_need(journal, counts->data_only_stripes, counts->open_blocks, 0) +
           min_u64(counts->data_only_stripes, batches);
}

/* V4: what stands behind the end could be taken for part of the log that goes on. */
static task_fn int
zero_behind_end(struct recovery *recovery, struct error *error)
{
    struct device *device = recovery->config.device;
    uint8_t *zeros = aligned_alloc(BLOCK_BYTES, ZERO_BYTES);
    uint64_t at = recovery->log.end_bytes;
    int result = 0;

    if (zeros == NULL)
        return error_set(error, -ENOMEM, "no memory to recover the journal");
    memset(zeros, 0, ZERO_BYTES);
    while (at != recovery->log.tail_bytes && result == 0) {
        const uint64_t end = at < recovery->log.tail_bytes ? recovery->log.tail_bytes
                                                           : recovery->geometry.ring_bytes;
        const uint64_t length = min_u64(ZERO_BYTES, end - at);

        result = device_write(device, zeros, recovery->data_offset + at, length, false);
        at = journal_ring_add(&recovery->geometry, at, length);
    }
    /* Before the first entry that goes on: else old blocks could follow it after a power cut. */
    if (result == 0 && device->volatile_cache)
        result = device_flush(device);
    free(zeros);
    if (result < 0)
        return error_set(error, result, "%s: the journal cannot be written: %s", device->name,
                         strerror(-result));
    return 0;
}

/* Position of the entry that the block at this distance belongs to; reads meta blocks from the
 * running journal's tail on: what stood before it may be overwritten already. */
static task_fn int
entry_of_block(struct recovery *recovery, const struct journal *journal, uint32_t distance,
               uint64_t *position, struct error *error)
{
    uint8_t *meta = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    struct journal_status status;
    uint64_t from, at;
    int result = meta == NULL ? -ENOMEM : 0;

    journal_status(journal, &status);
    at = status.tail;
    from = journal_ring_distance(&recovery->geometry, recovery->log.tail_bytes, at) / BLOCK_BYTES;
    while (result == 0) {
        struct journal_entry entry;

        result =
            device_read(recovery->config.device, meta, recovery->data_offset + at, BLOCK_BYTES);
        if (result == 0)
            result = journal_entry_decode(meta, at, &recovery->geometry, &entry, NULL);
        if (result < 0 || from + entry.block_count >= distance)
            break;
        from += 1 + entry.block_count;
        at = journal_entry_next(&entry, &recovery->geometry);
    }
    free(meta);
    *position = at;
    if (result < 0)
        return error_set(error, -EIO, "%s: the journal cannot be read any more",
                         recovery->config.device->name);
    return 0;
}

static int
restart_failed(struct error *error, int result)
{
    return error_set(error, result, "the superblocks cannot be written: %s", strerror(-result));
}

/* The old log goes on: V4. */
static task_fn int
continue_log(struct recovery *recovery, const struct recovery_target *target,
             struct journal_config *config, struct journal **journal, struct error *error)
{
    int result;

    if (recovery->log.end_bytes == recovery->log.tail_bytes)
        return error_set(error, -ENOSPC,
                         NO_ROOM_HINT
                         "%s: the journal is full to the last block, and holds data without "
                         "parity: there is no room to recover it",
                         recovery->config.device->name);
    result = zero_behind_end(recovery, error);
    if (result < 0)
        return result;
    config->tail = recovery->log.tail_bytes;
    config->head = recovery->log.end_bytes;
    config->seq = recovery->log.seq_next;
    result = target->restart_recorded(target->owner, config->tail);
    if (result < 0)
        return restart_failed(error, result);
    result = journal_create(config, journal, error);
    if (result == 0)
        ignored(journal_hold(*journal, config->tail)); /* it is there already */
    return result;
}

bool
recovery_adopted(const struct recovery *recovery)
{
    return recovery->adopted;
}

/* Data-only stripes of the fullest class. */
static uint64_t
class_stripes(const struct journal_records *records)
{
    uint64_t counts[CACHE_CLASSES] = {0};
    uint64_t last = UINT64_MAX, most = 0;

    for (size_t i = 0; i < records->count; ++i) {
        const uint64_t stripe = record_stripe(&records->all[i]);

        if (!record_open(&records->all[i]) || stripe == last)
            continue;
        last = stripe;
        if (++counts[stripe % CACHE_CLASSES] > most)
            most = counts[stripe % CACHE_CLASSES];
    }
    return most;
}

task_fn int
recovery_restart(struct recovery *recovery, const struct recovery_target *target,
                 const struct journal_config *given, struct journal **journal, struct error *error)
{
    struct journal_config config = *given;
    const uint64_t pos = recovery->log.end_bytes;
    const uint64_t log_blocks =
        journal_ring_distance(&recovery->geometry, recovery->log.tail_bytes, pos) / BLOCK_BYTES;
    const uint64_t seq = seq_beyond(recovery);
    int result;

    if (recovery->counts.open_blocks > 0 &&
        (pos == recovery->log.tail_bytes || !room_to_log_again(recovery, log_blocks)))
        return continue_log(recovery, target, &config, journal, error);

    /* A log that fills the ring ends where it begins: the new beginning would overwrite the entry
     * that the tail names, and a torn write would leave none there. All is replayed and flushed,
     * so the tail may name the last entry meanwhile. */
    if (pos == recovery->log.tail_bytes && recovery->log.last_bytes != pos) {
        result = target->restart_recorded(target->owner, recovery->log.last_bytes);
        if (result < 0)
            return restart_failed(error, result);
    }
    /* Durable before anything behind it. The old log ends here as it did before: this number is
     * not the one it expects. */
    result = empty_entry_write(recovery->config.device, recovery->config.journal,
                               &recovery->geometry, seq, pos, error);
    if (result < 0)
        return result;
    config.tail = pos;
    config.head = journal_ring_add(&recovery->geometry, pos, BLOCK_BYTES);
    config.seq = seq + 1;
    result = journal_create(&config, journal, error);
    if (result < 0)
        return result;
    ignored(journal_hold(*journal, pos)); /* it is there already */
    recovery->adopted = target->adopt && recovery->counts.open_blocks > 0 &&
                        engine_adopts(target->engine, *journal,
                                      &(struct engine_adoption){
                                          .blocks = recovery->counts.open_blocks,
                                          .stripes = recovery->counts.data_only_stripes,
                                          .class_stripes = class_stripes(&recovery->records),
                                          .logged_blocks = blocks_logged_again(recovery, *journal),
                                      });
    result = log_again(recovery, *journal, error);
    /* V2: the tail moves when all is durable behind it. */
    if (result == 0) {
        result = target->restart_recorded(target->owner, pos);
        if (result < 0)
            (void)restart_failed(error, result); /* result says so */
    }
    if (result < 0) {
        journal_destroy(*journal);
        *journal = NULL;
    }
    return result;
}

/* --- Write-out ------------------------------------------------------------------------------- */

/* A data-only stripe: where its records begin, and its first block in the log. */
struct open_stripe {
    uint32_t distance;
    size_t at;
};

static int
compare_open(const void *a, const void *b)
{
    const struct open_stripe *x = a, *y = b;

    return x->distance < y->distance ? -1 : x->distance > y->distance;
}

/* The data-only stripes in the order of their first blocks in the log. Caller frees; NULL: no
 * memory. */
static struct open_stripe *
open_stripes(const struct recovery *recovery)
{
    const struct journal_records *records = &recovery->records;
    struct open_stripe *stripes = calloc(recovery->counts.data_only_stripes, sizeof *stripes);
    size_t count = 0;

    for (size_t i = 0; stripes != NULL && i < records->count; ++i) {
        const struct journal_record *record = &records->all[i];

        if (!record_open(record))
            continue;
        if (count > 0 &&
            record_stripe(&records->all[stripes[count - 1].at]) == record_stripe(record)) {
            if (record->distance < stripes[count - 1].distance)
                stripes[count - 1].distance = record->distance;
        } else {
            stripes[count++] = (struct open_stripe){record->distance, i};
        }
    }
    if (stripes != NULL)
        qsort(stripes, count, sizeof *stripes, compare_open);
    return stripes;
}

/* How many of the next stripes have room for their parity in the log now. */
static uint64_t
stripes_with_room(const struct recovery *recovery, const struct journal *journal, uint64_t left)
{
    struct journal_status status;
    uint64_t free_blocks;

    journal_status(journal, &status);
    free_blocks = (status.ring_bytes - status.used_bytes) / BLOCK_BYTES - 1;
    /* At worst each stripe is an entry of its own; who waited for more would wait for ever. */
    return min_u64(min_u64(left, BATCH_BLOCKS / recovery->config.geometry->members),
                   free_blocks / (1 + recovery->geometry.parity_count));
}

static int
compare_place(const void *a, const void *b)
{
    const struct journal_record *x = a, *y = b;

    return x->place < y->place ? -1 : x->place > y->place;
}

/* Reads and writes out these stripes together. */
static task_fn int
stripes_write_out(struct recovery *recovery, const struct open_stripe *stripes, uint64_t count,
                  struct error *error)
{
    const struct journal_records *records = &recovery->records;
    struct batch *batch = &recovery->batches[0];
    struct engine_block *blocks;
    int result;

    batch->count = 0;
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t stripe = record_stripe(&records->all[stripes[i].at]);

        for (size_t at = stripes[i].at;
             at < records->count && record_stripe(&records->all[at]) == stripe; ++at)
            if (record_open(&records->all[at]))
                batch->records[batch->count++] = records->all[at];
    }
    qsort(batch->records, batch->count, sizeof *batch->records, compare_place);
    batch_read(batch);
    result = batch_verify(batch, error);
    if (result < 0)
        return result;
    blocks = calloc(batch->count, sizeof *blocks);
    if (blocks == NULL)
        return error_set(error, -ENOMEM, "no memory to recover the journal");
    for (unsigned i = 0; i < batch->count; ++i)
        blocks[i] = (struct engine_block){
            .array_offset = record_array_offset(recovery, &batch->records[i]),
            .memory = batch_page(batch, &batch->records[i]),
        };
    result = engine_write_out(recovery->target->engine, blocks, batch->count);
    free(blocks);
    if (result < 0)
        return error_set(error, result,
                         "--readonly shows the array with it, --force=drop-journal loses it\n"
                         "data that only the journal holds cannot be written out: too much of its "
                         "stripes cannot be read or written; the log keeps it");
    return 0;
}

static task_fn int
write_out_all(struct recovery *recovery, struct journal *journal, const struct open_stripe *stripes,
              struct error *error)
{
    const uint64_t total = recovery->counts.data_only_stripes;
    uint64_t done = 0;

    while (done < total) {
        uint64_t n = stripes_with_room(recovery, journal, total - done);
        int result;

        if (n == 0) {
            uint64_t position;

            /* Everything before the next stripe's first entry has been written out. */
            result = entry_of_block(recovery, journal, stripes[done].distance, &position, error);
            if (result == 0 && journal_hold(journal, position) < 0)
                result = error_set(error, -EIO, "the journal failed");
            if (result < 0)
                return result;
            n = stripes_with_room(recovery, journal, total - done);
        }
        if (n == 0)
            return error_set(error, -ENOSPC,
                             NO_ROOM_HINT
                             "%s: the journal is too full to write out the data it holds: there is "
                             "no room for parity",
                             recovery->config.device->name);
        result = stripes_write_out(recovery, stripes + done, n, error);
        if (result < 0)
            return result;
        done += n;
        phase_progress(recovery, recovery->counts.open_blocks * BLOCK_BYTES / total * done);
    }
    return 0;
}

task_fn int
recovery_write_out(struct recovery *recovery, const struct recovery_target *target,
                   struct journal *journal, struct error *error)
{
    struct open_stripe *stripes;
    int result = 0;

    recovery->target = target;
    if (recovery->adopted) {
        journal_release(journal);
        return 0;
    }
    if (recovery->counts.open_blocks > 0) {
        stripes = open_stripes(recovery);
        if (stripes == NULL)
            return error_set(error, -ENOMEM, "no memory to recover the journal");
        phase_begin(recovery, RECOVERY_WRITING_OUT, recovery->counts.open_blocks * BLOCK_BYTES);
        result = write_out_all(recovery, journal, stripes, error);
        free(stripes);
    }
    if (result < 0)
        return result;
    journal_release(journal);
    if (recovery->counts.open_blocks > 0 && journal_checkpoint(journal) < 0)
        return error_set(error, -EIO, "the journal failed at the end of the recovery");
    return 0;
}
