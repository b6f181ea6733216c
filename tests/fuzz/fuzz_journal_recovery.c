/*
 * fuzz_journal_recovery.c: a small journal and a member, as any bytes make them, read and decided.
 *
 *   input   level, layout and more (1 byte) | ring blocks (1) | tail (1) | member to look at (1) |
 *           operations
 *
 * An operation is a byte and what belongs to it; together they are a history of the ring. Entries
 * are written with good checksums, so that what lies behind those is reached; then anything is
 * damaged, with its checksum mended or not.
 *
 * The log is scanned, decided, and looked at through an overlay. Everything is judged by what is in
 * the ring: the entries by walking it again, the decision by records_model.h.
 */
#include "fuzz.h"

#include "device/device.h"
#include "journal/overlay.h"
#include "journal/records.h"
#include "journal/scan.h"
#include "../unit/records_model.h"

#define RING_BLOCKS_MAX 32u
#define MEMBERS         5u
#define STRIPES         32u
#define CHUNK_BLOCKS    2u
#define MEMBER_OFFSET   BLOCK_BYTES /* of the member's data, on the one device */
#define JOURNAL_OFFSET  (MEMBER_OFFSET + STRIPES * (uint64_t)BLOCK_BYTES)
#define DEVICE_BYTES    (JOURNAL_OFFSET + RING_BLOCKS_MAX * (uint64_t)BLOCK_BYTES)

/* ---- Input ---- */

struct input {
    const uint8_t *data;
    size_t size;
};

static uint8_t
take(struct input *input)
{
    if (input->size == 0)
        return 0;
    input->size--;
    return *input->data++;
}

static uint64_t
take_64(struct input *input)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++)
        value = value << 8 | take(input);
    return value;
}

/* ---- A device that is memory ---- */

struct world {
    struct device device; /* first */
    struct loop *loop;
    struct turn_hook hook;
    struct io *queue;
    uint8_t *bytes;
    uint64_t bytes_read;
    bool unreadable[DEVICE_BYTES / BLOCK_BYTES];

    struct superblock superblock;
    struct geometry geometry;
    struct journal_geometry journal;
    unsigned member;
    uint64_t head, seq; /* where the next entry goes */

    struct journal_scan scan;
    struct error error;
    int result;
    bool unreadable_is_end;

    /* As told by the scan. */
    uint64_t told_valid, told_next, told_seq, told_blocks;
    bool told_end;
    struct model_block blocks[RING_BLOCKS_MAX];
    struct model model;
    unsigned steps;
    const struct model_block *counts[STRIPES][MEMBERS][2]; /* by the model; [1]: open */
    struct journal_records records;
    struct overlay_source source;

    uint64_t found;
};

static void
complete_all(struct turn_hook *hook)
{
    struct world *w = container_of(hook, struct world, hook);

    while (w->queue) {
        struct io *io = w->queue;
        uint64_t at = io->offset;

        w->queue = io->next;
        io->result = 0;
        for (uint64_t block = at / BLOCK_BYTES; block < (at + io->length) / BLOCK_BYTES; block++)
            if (w->unreadable[block])
                io->result = -EIO;
        for (unsigned i = 0; i < io->iov_count; i++) {
            memcpy(io->iov[i].iov_base, w->bytes + at, io->iov[i].iov_len);
            at += io->iov[i].iov_len;
        }
        w->bytes_read += io->length;
        io_complete(io);
    }
}

static void
memory_submit(struct device *device, struct io *io)
{
    struct world *w = container_of(device, struct world, device);

    promise(io->op == IO_READ); /* nothing is written */
    promise(io->offset % BLOCK_BYTES == 0 && io->length % BLOCK_BYTES == 0);
    promise(io->length > 0 && io->offset + io->length <= DEVICE_BYTES);
    io->next = w->queue;
    w->queue = io;
    loop_at_turn_end(w->loop, &w->hook);
}

static void
backend_submit(void *self, struct loop_io *io)
{
    (void)self;
    (void)io;
    abort();
}

static void
backend_wait(void *self, uint64_t deadline_ns)
{
    (void)self;
    (void)deadline_ns;
}

/* It passes with each look, so that sleeps end. */
static uint64_t
backend_time(void *self)
{
    static uint64_t now;

    (void)self;
    return ++now;
}

static void
backend_destroy(void *self)
{
    (void)self;
}

/* One for all inputs: stacks are not free. */
static struct world *
world_get(void)
{
    static const struct device_ops ops = {.kind = "memory", .submit = memory_submit};
    static const struct loop_backend backend = {.name = "none",
                                                .submit = backend_submit,
                                                .wait = backend_wait,
                                                .now_ns = backend_time,
                                                .wall_us = backend_time,
                                                .destroy = backend_destroy};
    static char name[] = "journal";
    static struct world *w;
    struct error error;

    if (w)
        return w;
    w = calloc(1, sizeof *w);
    promise(w != NULL);
    w->bytes = malloc(DEVICE_BYTES);
    promise(w->bytes != NULL);
    promise(loop_create_on(&(struct loop_config){.tasks = 8, .seed = 1}, &backend, NULL, &w->loop,
                           &error) == 0);
    w->hook.run = complete_all;
    w->device = (struct device){.ops = &ops,
                                .loop = w->loop,
                                .name = name,
                                .size_bytes = DEVICE_BYTES,
                                .logical_block_bytes = 512};
    return w;
}

/* ---- The ring ---- */

static uint8_t *
ring_at(struct world *w, uint64_t position)
{
    return w->bytes + JOURNAL_OFFSET + position % w->journal.ring_bytes;
}

static void
mend_checksum(struct world *w, uint8_t *meta)
{
    store_le32(meta + 4, 0);
    store_le32(meta + 4, journal_checksum(w->journal.checksum_seed, meta, BLOCK_BYTES));
}

/* Blocks of the open entry: filled at its head's place, in order. */
static uint32_t
block_write(struct world *w, const struct journal_writer *writer, unsigned number, uint8_t fill)
{
    uint8_t *block =
        ring_at(w, w->head + (1 + (uint64_t)writer->block_count + number) * BLOCK_BYTES);

    memset(block, fill, BLOCK_BYTES);
    return journal_checksum(w->journal.checksum_seed, block, BLOCK_BYTES);
}

static void
payload_write(struct world *w, struct journal_writer *writer, struct input *input)
{
    const uint8_t kind = take(input), place = take(input), fill = take(input);
    const unsigned parities = w->geometry.parities;
    const uint64_t limit = w->journal.ring_bytes / BLOCK_BYTES;

    if (kind % 4 == 3) {
        /* FLUSH. */
        uint8_t *at = writer->meta + writer->at_bytes;
        const unsigned stripes = fill % 4;

        if (journal_writer_room(writer) < 8 + 8 * stripes)
            return;
        store_le16(at, JOURNAL_FLUSH);
        store_le16(at + 2, 0);
        store_le32(at + 4, 8 * stripes);
        for (unsigned i = 0; i < stripes; i++)
            store_le64(at + 8 + (size_t)8 * i, (place + i) % STRIPES * BLOCK_SECTORS);
        writer->at_bytes += 8 + 8 * stripes;
    } else if (kind % 4 == 2) {
        uint32_t checksums[2];

        if (writer->block_count + parities + 1 > limit || journal_writer_room(writer) < 24)
            return;
        for (unsigned i = 0; i < parities; i++)
            checksums[i] = block_write(w, writer, i, (uint8_t)(fill + i));
        journal_writer_add_parity(writer, place % STRIPES * (uint64_t)BLOCK_BYTES, parities,
                                  checksums);
    } else {
        const uint64_t blocks = w->geometry.array_bytes / BLOCK_BYTES;

        if (writer->block_count + 2 > limit || journal_writer_room(writer) < 20)
            return;
        journal_writer_add_data(writer, place % blocks * BLOCK_BYTES,
                                block_write(w, writer, 0, fill));
    }
}

static void
entry_write(struct world *w, struct input *input)
{
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    const unsigned payloads = take(input) % 24;

    journal_writer_init(&writer, meta, w->seq, w->head);
    for (unsigned i = 0; i < payloads; i++)
        payload_write(w, &writer, input);
    journal_writer_finish(&writer, w->journal.checksum_seed);
    memcpy(ring_at(w, w->head), meta, BLOCK_BYTES);
    w->head = (w->head + (1 + (uint64_t)writer.block_count) * BLOCK_BYTES) % w->journal.ring_bytes;
    w->seq++;
}

static void
operation(struct world *w, struct input *input)
{
    const uint8_t what = take(input);

    switch (what % 10) {
    case 0:
    case 1:
    case 2:
    case 3: /* an entry, perhaps with another number than the next */
        if (what >= 240)
            w->seq += take(input) - 128u;
        entry_write(w, input);
        break;
    case 4: { /* a bit of a block; its checksum stays */
        uint8_t *block = ring_at(w, take(input) * (uint64_t)BLOCK_BYTES);
        const unsigned at = (take(input) << 8 | take(input)) % BLOCK_BYTES;

        block[at] ^= (uint8_t)(1 + take(input) % 255);
        break;
    }
    case 5:
    case 6: { /* fields of a meta block, its checksum mended */
        uint8_t *block = ring_at(w, take(input) * (uint64_t)BLOCK_BYTES);
        const unsigned at = what % 10 == 5 ? 8 + take(input) % 120 : 32 + take(input) * 20 % 4000;
        const unsigned length = 1 + take(input) % 8;

        for (unsigned i = 0; i < length; i++)
            block[at + i] = take(input);
        mend_checksum(w, block);
        break;
    }
    case 7:
        w->unreadable[JOURNAL_OFFSET / BLOCK_BYTES +
                      take(input) % (w->journal.ring_bytes / BLOCK_BYTES)] = true;
        break;
    case 8: /* a jump of the head */
        w->head = take(input) * (uint64_t)BLOCK_BYTES % w->journal.ring_bytes;
        break;
    default: /* any block, as a meta block of its place */
    {
        const uint64_t position = take(input) * (uint64_t)BLOCK_BYTES % w->journal.ring_bytes;
        uint8_t *block = ring_at(w, position);
        const unsigned length = take(input);

        memset(block, 0, BLOCK_BYTES);
        store_le32(block, 0x6433c509);
        block[8] = 1;
        store_le32(block + 12, 32 + length);
        store_le64(block + 16, w->seq);
        store_le64(block + 24, position / SECTOR_BYTES);
        for (unsigned i = 0; i < length; i++)
            block[32 + i] = take(input);
        mend_checksum(w, block);
        break;
    }
    }
}

static void
world_set(struct world *w, struct input *input)
{
    const uint8_t kind = take(input);
    struct superblock *sb = &w->superblock;
    struct geometry_config config;
    uint64_t tail;

    for (uint64_t i = 0; i < DEVICE_BYTES; i += BLOCK_BYTES)
        memset(w->bytes + i, (int)(0x80 | i / BLOCK_BYTES), BLOCK_BYTES);
    memset(w->unreadable, 0, sizeof w->unreadable);
    superblock_init(sb, 2, MEMBERS + 1);
    memset(sb->set_uuid, 0x5a, sizeof sb->set_uuid);
    sb->level = 4 + kind % 3;
    sb->layout = sb->level == 4 ? 0 : kind / 3 % 6;
    sb->raid_disks = MEMBERS;
    sb->chunk_sectors = CHUNK_BLOCKS * BLOCK_SECTORS;
    sb->size_sectors = STRIPES * BLOCK_SECTORS;
    sb->data_offset_sectors = JOURNAL_OFFSET / SECTOR_BYTES;
    sb->data_size_sectors = (4 + take(input) % (RING_BLOCKS_MAX - 3)) * (uint64_t)BLOCK_SECTORS;
    journal_geometry_init(&w->journal, sb);
    config = (struct geometry_config){.level = sb->level,
                                      .layout = sb->layout,
                                      .members = MEMBERS,
                                      .chunk_bytes = superblock_chunk_bytes(sb),
                                      .size_bytes = superblock_component_bytes(sb)};
    promise(geometry_init(&w->geometry, &config) == 0);
    tail = take(input) * (uint64_t)BLOCK_BYTES % w->journal.ring_bytes;
    sb->journal_tail_sectors = tail / SECTOR_BYTES;
    w->member = take(input) % MEMBERS;
    w->unreadable_is_end = kind & 0x80;
    w->head = tail;
    w->seq = kind & 0x40 ? JOURNAL_SEQ_MAX - 3 : 1000;
    if (kind == 0xff)
        sb->journal_tail_sectors = take_64(input);
    while (input->size > 0)
        operation(w, input);
}

/* ---- What the scan tells ---- */

static void
block_told(struct world *w, const struct journal_entry *entry,
           const struct journal_payload *payload, uint32_t i)
{
    struct model_block *block = &w->blocks[w->model.count];

    promise(w->model.count < RING_BLOCKS_MAX); /* K3 */
    w->model.count++;
    *block =
        (struct model_block){.position = journal_payload_position(entry, payload, &w->journal, i),
                             .checksum = payload->checksums[i],
                             .step = w->steps};
    if (payload->type == JOURNAL_DATA) {
        struct place place;

        geometry_map(&w->geometry, payload->location_bytes, &place);
        block->stripe = place.member_offset / BLOCK_BYTES;
        block->member = place.member;
        block->is_data = true;
    } else {
        struct row row;

        geometry_row(&w->geometry, geometry_row_at(&w->geometry, payload->location_bytes), &row);
        block->stripe = payload->location_bytes / BLOCK_BYTES;
        block->member = i == 0 ? row.p : row.q;
        block->is_p = i == 0;
    }
}

static bool
is_whole(struct world *w, uint64_t position, uint32_t checksum)
{
    return journal_checksum(w->journal.checksum_seed, ring_at(w, position), BLOCK_BYTES) ==
           checksum;
}

static void
entry_told(void *owner, const struct journal_seen *seen)
{
    struct world *w = owner;
    struct journal_cursor cursor;
    struct journal_payload payload;
    bool whole = true;
    uint32_t b = 0;

    promise(memcmp(seen->meta, ring_at(w, seen->entry->position_bytes), BLOCK_BYTES) == 0);
    if (w->told_valid == 0 && !w->told_end)
        promise(seen->entry->position_bytes == w->superblock.journal_tail_sectors * SECTOR_BYTES);
    else
        promise(seen->entry->position_bytes == w->told_next && seen->entry->seq == w->told_seq);
    promise(!seen->valid || !w->told_end);
    journal_cursor_init(&cursor, seen->meta, &w->journal, seen->entry);
    while (journal_cursor_next(&cursor, &payload)) {
        for (uint32_t i = 0; i < payload.block_count; i++, b++) {
            const uint64_t position =
                journal_payload_position(seen->entry, &payload, &w->journal, i);

            promise(seen->block_good[b] == is_whole(w, position, payload.checksums[i]));
            whole = whole && seen->block_good[b];
            if (seen->valid)
                block_told(w, seen->entry, &payload, i);
        }
        w->steps++;
    }
    promise(b == seen->entry->block_count);
    promise(seen->valid ? whole : w->told_end || !whole);
    w->told_next = journal_entry_next(seen->entry, &w->journal);
    w->told_seq = seen->entry->seq + 1;
    w->told_blocks += 1 + seen->entry->block_count;
    promise(w->told_blocks <= w->journal.ring_bytes / BLOCK_BYTES);
    if (!seen->valid) {
        w->told_end = true;
        return;
    }
    w->told_valid++;
    promise(records_room(&w->records, seen->entry->block_count));
    records_add_entry(&w->records, seen->meta, seen->entry);
    if (seen->entry->seq % 3 == 0)
        records_decide(&w->records); /* on the way: comes to the same */
}

static task_fn void
scan_task(void *arg)
{
    struct world *w = arg;
    const struct journal_scan_config config = {.device = &w->device,
                                               .journal = &w->superblock,
                                               .unreadable_is_end = w->unreadable_is_end,
                                               .entry = entry_told,
                                               .owner = w};

    w->error = (struct error){0};
    w->told_valid = w->told_blocks = w->told_next = w->told_seq = w->bytes_read = 0;
    w->told_end = false;
    w->steps = 0;
    w->model = (struct model){.blocks = w->blocks};
    w->records.count = 0;
    w->result = journal_scan(&config, &w->scan, &w->error);
}

/* ---- Judging ---- */

/* What stands at the end is no entry that belongs there. */
static void
check_end(struct world *w)
{
    const struct journal_scan *scan = &w->scan;
    const uint64_t block = (JOURNAL_OFFSET + scan->end_bytes) / BLOCK_BYTES;
    struct journal_entry entry;
    int r;

    promise(scan->end_bytes < w->journal.ring_bytes && scan->end_bytes % BLOCK_BYTES == 0);
    if (scan->end == JOURNAL_END_UNREADABLE) {
        promise(w->unreadable_is_end);
        promise(w->unreadable[(JOURNAL_OFFSET + scan->unreadable_bytes) / BLOCK_BYTES]);
        return;
    }
    r = journal_entry_decode(ring_at(w, scan->end_bytes), scan->end_bytes, &w->journal, &entry,
                             NULL);
    promise(scan->end == JOURNAL_END_RING || !w->unreadable[block]); /* K1 */
    switch (scan->end) {
    case JOURNAL_END_NO_ENTRY:
    case JOURNAL_END_TORN_META:
        promise(r == -ENOENT && !scan->end_has_seq && scan->end_cause.text[0]);
        break;
    case JOURNAL_END_OLD_ENTRY:
        promise(r != -ENOENT && entry.seq != scan->seq_next);
        promise(scan->end_has_seq && scan->end_seq == entry.seq);
        break;
    case JOURNAL_END_TORN:
        promise(r == 0 && entry.seq == scan->seq_next && scan->torn_block < entry.block_count);
        promise(scan->end_has_seq && scan->end_seq == entry.seq);
        promise(w->told_end);
        break;
    default:
        promise(scan->end == JOURNAL_END_RING);
        promise(scan->end_bytes == scan->tail_bytes || entry.seq == scan->seq_next);
        break;
    }
    promise(w->told_end == (scan->end == JOURNAL_END_TORN));
}

static void
ask_model(struct world *w)
{
    memset(w->counts, 0, sizeof w->counts);
    for (unsigned i = 0; i < w->model.count; i++)
        for (unsigned open = 0; open < 2; open++)
            if (model_counts(&w->model, &w->blocks[i], open))
                w->counts[w->blocks[i].stripe][w->blocks[i].member][open] = &w->blocks[i];
}

static void
check_records(struct world *w)
{
    uint64_t count = 0, open_blocks = 0;

    ask_model(w);
    records_decide(&w->records);
    for (uint64_t stripe = 0; stripe < STRIPES; stripe++)
        for (unsigned m = 0; m < MEMBERS; m++)
            for (unsigned open = 0; open < 2; open++) {
                const struct model_block *block = w->counts[stripe][m][open];
                const size_t at = records_find(&w->records, record_place(stripe, m, open));
                const bool there = at < w->records.count &&
                                   w->records.all[at].place == record_place(stripe, m, open);

                promise(there == (block != NULL));
                if (!there)
                    continue;
                promise(w->records.all[at].checksum == block->checksum);
                promise(records_position(&w->records, &w->records.all[at]) == block->position);
                count++;
                open_blocks += open;
            }
    promise(w->records.count == count);
    promise(w->records.open_blocks == open_blocks);
    promise(w->records.replay_blocks == count - open_blocks);
}

/* Every block of the member, through the overlay: the journal's where its checksum still holds. */
static task_fn void
overlay_task(void *arg)
{
    struct world *w = arg;
    uint8_t *memory = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    struct device *overlay;

    promise(memory != NULL);
    promise(overlay_create(&w->source, &w->device, w->member, MEMBER_OFFSET, &overlay) == 0);
    for (uint64_t stripe = 0; stripe < STRIPES; stripe++) {
        const uint64_t offset = MEMBER_OFFSET + stripe * BLOCK_BYTES;
        const struct model_block *block = w->counts[stripe][w->member][0];
        const struct model_block *open = w->counts[stripe][w->member][1];
        uint64_t array_offset;

        promise(device_read(overlay, memory, offset, BLOCK_BYTES) == 0);
        promise(memcmp(memory, block ? ring_at(w, block->position) : w->bytes + offset,
                       BLOCK_BYTES) == 0);
        if (!geometry_unmap(&w->geometry, w->member, stripe * BLOCK_BYTES, &array_offset)) {
            promise(open == NULL);
            continue;
        }
        promise(overlay_covers(&w->source, array_offset, BLOCK_BYTES) == (open != NULL));
        promise(overlay_read_open(&w->source, memory, array_offset, BLOCK_BYTES) == 0);
        if (open)
            promise(memcmp(memory, ring_at(w, open->position), BLOCK_BYTES) == 0);
    }
    promise(overlay_release(overlay) == &w->device);
    task_yield(w->loop);
    free(memory);
}

static void
survey_found(void *owner, const struct journal_entry *entry)
{
    struct world *w = owner;

    promise(!w->unreadable[(JOURNAL_OFFSET + entry->position_bytes) / BLOCK_BYTES]);
    w->found++;
}

static task_fn void
survey_task(void *arg)
{
    struct world *w = arg;

    w->found = 0;
    w->result = journal_survey(&w->device, &w->superblock, survey_found, w);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = world_get();
    struct input input = {data, size};
    struct journal_scan first;
    int result;

    world_set(w, &input);
    promise(records_init(&w->records, &w->geometry, &w->journal,
                         w->superblock.journal_tail_sectors * SECTOR_BYTES, RING_BLOCKS_MAX) == 0);
    loop_run_task(w->loop, scan_task, w);
    result = w->result;
    first = w->scan;
    promise(result == 0 || result == -EBADMSG || result == -EIO);
    promise((result < 0) == (w->error.text[0] != '\0' && first.end != JOURNAL_END_UNREADABLE));
    promise(w->bytes_read <= 3 * w->journal.ring_bytes); /* K3 */
    promise(w->scan.entries == w->told_valid);
    loop_run_task(w->loop, scan_task, w);
    promise(w->result == result && memcmp(&first, &w->scan, sizeof first) == 0);
    if (result == 0) {
        promise(w->scan.entries > 0);
        promise(w->scan.seq_next - w->scan.seq_first == w->scan.entries);
        promise(w->scan.data_blocks + w->scan.parity_blocks == w->model.count);
        check_end(w);
        check_records(w);
        w->source = (struct overlay_source){.loop = w->loop,
                                            .journal = &w->device,
                                            .journal_data_offset = JOURNAL_OFFSET,
                                            .records = &w->records};
        loop_run_task(w->loop, overlay_task, w);
    }
    loop_run_task(w->loop, survey_task, w);
    promise(w->result == 0 || w->result == -EIO);
    promise(w->found >= first.entries);
    records_fini(&w->records);
    return 0;
}
