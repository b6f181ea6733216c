/*
 * journal_scan.c: how far a journal's log is valid, and what is in it.
 */
#include "array/journal_scan.h"

#include "format/journal_entry.h"

#include <inttypes.h>
#include <stdlib.h>

#define WINDOW_BYTES (1 * MIB)

/* Blocks of the ring by position; read ahead, since a log is read in order. */
struct window {
    struct device *device; /* borrowed */
    uint64_t data_offset_bytes;
    uint64_t ring_bytes;
    uint8_t *memory; /* owned */
    uint64_t start_bytes, length_bytes;
};

static task_fn int
window_block(struct window *window, uint64_t position_bytes, const uint8_t **block,
             struct error *error)
{
    int r;

    assert(position_bytes < window->ring_bytes);
    if (position_bytes < window->start_bytes ||
        position_bytes >= window->start_bytes + window->length_bytes) {
        window->start_bytes = position_bytes;
        window->length_bytes = min_u64(WINDOW_BYTES, window->ring_bytes - position_bytes);
        r = device_read(window->device, window->memory, window->data_offset_bytes + position_bytes,
                        window->length_bytes);
        /* Perhaps something far behind the end is unreadable, which is nobody's business yet. */
        if (r < 0 && window->length_bytes > BLOCK_BYTES) {
            window->length_bytes = BLOCK_BYTES;
            r = device_read(window->device, window->memory,
                            window->data_offset_bytes + position_bytes, BLOCK_BYTES);
        }
        if (r < 0) {
            window->length_bytes = 0;
            return error_set(error, -EIO,
                             "%s: the journal cannot be read at position %" PRIu64 ": %s",
                             window->device->name, position_bytes, strerror(-r));
        }
    }
    *block = window->memory + (position_bytes - window->start_bytes);
    return 0;
}

/* 1: all blocks of the entry are there; 0: one is not; or an error. */
static task_fn int
entry_is_whole(struct window *window, const struct journal_geometry *geometry, const uint8_t *meta,
               const struct journal_entry *entry, struct error *error)
{
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_cursor_init(&cursor, meta, geometry, entry);
    while (journal_cursor_next(&cursor, &payload))
        for (uint32_t i = 0; i < payload.block_count; i++) {
            const uint8_t *block;
            const int r = window_block(
                window, journal_payload_position(entry, &payload, geometry, i), &block, error);

            if (r < 0)
                return r;
            if (journal_checksum(geometry->checksum_seed, block, BLOCK_BYTES) !=
                payload.checksums[i])
                return 0;
        }
    return 1;
}

static void
count_entry(const struct journal_geometry *geometry, const uint8_t *meta,
            const struct journal_entry *entry, struct journal_scan *scan)
{
    struct journal_cursor cursor;
    struct journal_payload payload;

    scan->entries++;
    journal_cursor_init(&cursor, meta, geometry, entry);
    while (journal_cursor_next(&cursor, &payload))
        switch (payload.type) {
        case JOURNAL_DATA:
            if (scan->data_blocks == 0) {
                scan->data_first_bytes = entry->position_bytes;
                scan->data_first_seq = entry->seq;
            }
            scan->data_blocks += payload.block_count;
            break;
        case JOURNAL_PARITY:
            scan->parity_stripes++;
            break;
        case JOURNAL_FLUSH:
            scan->flush_stripes += payload.stripe_count;
            break;
        }
}

/* The entry at scan->end_bytes: 1 and it is counted; 0 and scan->end says why not; or an error. */
static task_fn int
scan_entry(struct window *window, const struct journal_geometry *geometry, uint8_t *meta,
           struct journal_scan *scan, struct error *error)
{
    const uint64_t position = scan->end_bytes;
    const bool first = scan->entries == 0;
    const char *name = window->device->name;
    struct format_error why = {.text = ""};
    struct journal_entry entry;
    const uint8_t *block;
    uint64_t used;
    int r;

    r = window_block(window, position, &block, error);
    if (r < 0)
        return r;
    memcpy(meta, block, BLOCK_BYTES);
    r = journal_entry_decode(meta, position, geometry, &entry, &why);
    if (r == -ENOENT && first)
        return error_set(error, -EBADMSG,
                         "%s: there is no journal entry at the tail, position %" PRIu64 ": %s",
                         name, position, why.text);
    scan->end = JOURNAL_END_NO_ENTRY;
    if (r == -ENOENT || (!first && entry.seq != scan->seq_next))
        return 0;
    if (r < 0)
        return error_set(error, -EBADMSG,
                         "%s: the journal entry at position %" PRIu64 " makes no sense: %s", name,
                         position, why.text);

    used = journal_ring_distance(geometry, scan->tail_bytes, position);
    if (used + (1 + (uint64_t)entry.block_count) * BLOCK_BYTES > geometry->ring_bytes) {
        scan->end = JOURNAL_END_RING;
        return 0;
    }
    r = entry_is_whole(window, geometry, meta, &entry, error);
    if (r < 0)
        return r;
    if (first)
        scan->seq_first = scan->seq_next = entry.seq;
    if (r == 0 && first)
        return error_set(error, -EBADMSG,
                         "%s: the journal entry at the tail, position %" PRIu64
                         ", is not whole: a block is not what its checksum says",
                         name, position);
    if (r == 0) {
        scan->end = JOURNAL_END_TORN;
        return 0;
    }
    count_entry(geometry, meta, &entry, scan);
    scan->seq_next = entry.seq + 1;
    scan->end_bytes = journal_entry_next(&entry, geometry);
    scan->end = JOURNAL_END_RING;
    return scan->end_bytes != scan->tail_bytes;
}

int
journal_scan(struct device *device, const struct superblock *journal, struct journal_scan *scan,
             struct error *error)
{
    struct window window = {.device = device,
                            .data_offset_bytes = superblock_data_offset_bytes(journal)};
    struct journal_geometry geometry;
    uint8_t *meta;
    int r;

    memset(scan, 0, sizeof *scan);
    journal_geometry_init(&geometry, journal);
    scan->ring_bytes = geometry.ring_bytes;
    window.ring_bytes = geometry.ring_bytes;
    if (window.data_offset_bytes % BLOCK_BYTES != 0)
        return error_set(error, -ENOTSUP,
                         "%s: the journal begins at byte %" PRIu64 ", which is no multiple of %u",
                         device->name, window.data_offset_bytes, BLOCK_BYTES);
    if (journal->journal_tail_sectors % BLOCK_SECTORS != 0 ||
        journal->journal_tail_sectors >= geometry.ring_bytes / SECTOR_BYTES)
        return error_set(
            error, -EBADMSG,
            "%s: the journal's tail %" PRIu64 " (sectors) is no block of its ring of %" PRIu64,
            device->name, journal->journal_tail_sectors, geometry.ring_bytes / SECTOR_BYTES);
    scan->tail_bytes = scan->end_bytes = journal->journal_tail_sectors * SECTOR_BYTES;

    meta = malloc(BLOCK_BYTES);
    window.memory = aligned_alloc(BLOCK_BYTES, WINDOW_BYTES);
    if (!meta || !window.memory) {
        r = error_set(error, -ENOMEM, "out of memory");
    } else {
        do
            r = scan_entry(&window, &geometry, meta, scan, error);
        while (r > 0);
    }
    free(window.memory);
    free(meta);
    return r;
}
