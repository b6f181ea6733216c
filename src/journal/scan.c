/*
 * scan.c: how far a journal's log is valid, and what is in it. See scan.h.
 *
 * The log is read in windows, several at a time, so that the device works while checksums are made.
 * A block is looked at once, in the order of the log, and its window is used again for what comes
 * next.
 */
#include "journal/scan.h"

#include "runtime/pages.h"

#include <inttypes.h>
#include <stdlib.h>

#define WINDOW_BYTES (1 * MIB) /* less where the ring is smaller */
#define WINDOWS      8u

/* --- Reading ahead --------------------------------------------------------------------------- */

/* A stretch of the ring that is read in one go; it never wraps. */
struct window {
    struct io_group read;
    uint8_t *memory;       /* the reader's */
    uint64_t from, length; /* bytes from the tail; length 0: not in use */
    bool waited;           /* the read is over */
    bool failed;           /* it failed: blocks are read one by one */
};

struct reader {
    struct device *device;      /* borrowed */
    uint64_t data_offset_bytes; /* of the ring on the device */
    uint64_t ring_bytes, tail_bytes;
    uint64_t window_bytes;
    struct pages *pages; /* owned */
    uint8_t *memory;     /* all of them */
    struct io_pool ios;
    struct window windows[WINDOWS]; /* a ring; windows[first] is the one that is looked at */
    unsigned first;
    uint64_t asked; /* bytes from the tail that have been asked for */
};

static uint64_t
reader_position(const struct reader *reader, uint64_t from)
{
    const uint64_t position = reader->tail_bytes + from;

    return position >= reader->ring_bytes ? position - reader->ring_bytes : position;
}

static task_fn int
reader_init(struct reader *reader, struct device *device, uint64_t data_offset_bytes,
            uint64_t ring_bytes, uint64_t tail_bytes)
{
    *reader = (struct reader){.device = device,
                              .data_offset_bytes = data_offset_bytes,
                              .ring_bytes = ring_bytes,
                              .tail_bytes = tail_bytes,
                              .window_bytes = WINDOW_BYTES};
    while (reader->window_bytes > BLOCK_BYTES && reader->window_bytes / 2 >= ring_bytes)
        reader->window_bytes /= 2;
    if (pages_create(device->loop, WINDOWS * reader->window_bytes, false, &reader->pages) < 0)
        return -ENOMEM;
    if (io_pool_init(&reader->ios, device->loop, WINDOWS) < 0) {
        pages_destroy(reader->pages);
        return -ENOMEM;
    }
    reader->memory = pages_try(reader->pages, WINDOWS * reader->window_bytes);
    for (unsigned w = 0; w < WINDOWS; ++w)
        reader->windows[w].memory = reader->memory + w * reader->window_bytes;
    return 0;
}

static task_fn void
window_wait(struct window *window)
{
    if (window->length == 0 || window->waited)
        return;
    window->failed = io_wait(&window->read) < 0;
    window->waited = true;
}

static task_fn void
reader_fini(struct reader *reader)
{
    for (unsigned w = 0; w < WINDOWS; ++w)
        window_wait(&reader->windows[w]);
    io_pool_fini(&reader->ios);
    pages_give(reader->pages, reader->memory, WINDOWS * reader->window_bytes);
    pages_destroy(reader->pages);
}

/* Starts reads into every window that is free, up to the end of the ring's one lap. */
static task_fn void
reader_read_ahead(struct reader *reader)
{
    for (unsigned i = 0; i < WINDOWS; ++i) {
        struct window *window = &reader->windows[(reader->first + i) % WINDOWS];
        const uint64_t position = reader_position(reader, reader->asked);
        struct io *io;

        if (window->length > 0)
            continue;
        if (reader->asked >= reader->ring_bytes)
            return;
        window->from = reader->asked;
        window->length = min_u64(reader->window_bytes, min_u64(reader->ring_bytes - position,
                                                               reader->ring_bytes - reader->asked));
        window->waited = window->failed = false;
        reader->asked += window->length;
        io_group_init(&window->read, reader->device->loop);
        io = io_take(&reader->ios);
        io->op = IO_READ;
        io->offset = reader->data_offset_bytes + position;
        if (!io_add(io, window->memory, window->length))
            assert(!"a fresh io has room");
        io_submit(io, reader->device, &window->read);
    }
}

/* The block at `from` bytes behind the tail, valid until the next call. Blocks are asked for in
 * ascending order. */
static task_fn int
reader_block(struct reader *reader, uint64_t from, const uint8_t **block)
{
    struct window *window = &reader->windows[reader->first];

    assert(from < reader->ring_bytes);
    while (window->length == 0 || from >= window->from + window->length) {
        if (window->length > 0) {
            window_wait(window);
            window->length = 0;
            reader->first = (reader->first + 1) % WINDOWS;
        }
        reader_read_ahead(reader);
        /* Else the device would get nothing to do until a window has to be waited for. */
        loop_sleep(reader->device->loop, 0);
        window = &reader->windows[reader->first];
    }
    assert(from >= window->from);
    window_wait(window);
    *block = window->memory + (from - window->from);
    if (from + BLOCK_BYTES < window->from + window->length)
        journal_block_expect(*block + BLOCK_BYTES);
    /* The second try; and perhaps only something behind the end is unreadable, which is nobody's
     * business yet. */
    if (window->failed)
        return device_read(reader->device, window->memory + (from - window->from),
                           reader->data_offset_bytes + reader_position(reader, from), BLOCK_BYTES);
    return 0;
}

/* --- Entries --------------------------------------------------------------------------------- */

struct scanner {
    const struct journal_scan_config *config;
    struct journal_geometry geometry;
    struct reader reader;
    struct journal_scan *scan;
    struct error *error;
    uint8_t *meta;    /* owned; the entry that is looked at */
    bool *block_good; /* owned */
    uint64_t from;    /* of that entry, bytes from the tail */
    uint64_t told;    /* to progress */
};

static int
scanner_unreadable(const struct scanner *scanner, uint64_t from, int result)
{
    scanner->scan->unreadable_bytes = reader_position(&scanner->reader, from);
    return error_set(
        scanner->error, -EIO, "%s: the journal cannot be read at position %" PRIu64 ": %s",
        scanner->config->device->name, reader_position(&scanner->reader, from), strerror(-result));
}

static void
scanner_progress(struct scanner *scanner)
{
    if (scanner->config->progress == NULL || scanner->from < scanner->told + WINDOW_BYTES)
        return;
    scanner->told = scanner->from;
    scanner->config->progress(scanner->config->owner, scanner->from, scanner->geometry.ring_bytes);
}

/* Looks at all blocks of the entry: 0 and how many are bad, and the first of them; or an error. */
static task_fn int
entry_look(struct scanner *scanner, const struct journal_entry *entry, uint32_t *bad_count,
           uint32_t *bad_first)
{
    struct journal_cursor cursor;
    struct journal_payload payload;
    uint64_t from = scanner->from + BLOCK_BYTES;

    *bad_count = 0;
    journal_cursor_init(&cursor, scanner->meta, &scanner->geometry, entry);
    while (journal_cursor_next(&cursor, &payload))
        for (uint32_t i = 0; i < payload.block_count; ++i, from += BLOCK_BYTES) {
            const uint32_t b = payload.block_first + i;
            const uint8_t *block;
            const int result = reader_block(&scanner->reader, from, &block);

            if (result < 0)
                return scanner_unreadable(scanner, from, result);
            scanner->block_good[b] = journal_checksum(scanner->geometry.checksum_seed, block,
                                                      BLOCK_BYTES) == payload.checksums[i];
            if (!scanner->block_good[b] && (*bad_count)++ == 0)
                *bad_first = b;
        }
    return 0;
}

static void
entry_count(struct scanner *scanner, const struct journal_entry *entry)
{
    struct journal_scan *scan = scanner->scan;
    struct journal_cursor cursor;
    struct journal_payload payload;

    ++scan->entries;
    scan->entries_empty += entry->payload_count == 0;
    journal_cursor_init(&cursor, scanner->meta, &scanner->geometry, entry);
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
            ++scan->parity_stripes;
            scan->parity_blocks += payload.block_count;
            break;
        case JOURNAL_FLUSH:
            scan->flush_stripes += payload.stripe_count;
            break;
        }
}

static void
entry_tell(struct scanner *scanner, const struct journal_entry *entry, bool valid)
{
    const struct journal_seen seen = {
        .entry = entry, .meta = scanner->meta, .valid = valid, .block_good = scanner->block_good};

    if (scanner->config->entry != NULL)
        scanner->config->entry(scanner->config->owner, &seen);
}

static uint64_t
entry_bytes(const struct journal_entry *entry)
{
    return (1 + (uint64_t)entry->block_count) * BLOCK_BYTES;
}

/* Reads the meta block at scanner->from and decodes it. Results as journal_entry_decode, and -EIO.
 */
static task_fn int
entry_read(struct scanner *scanner, struct journal_entry *entry, struct format_error *why)
{
    const uint8_t *block;
    const int result = reader_block(&scanner->reader, scanner->from, &block);

    if (result < 0)
        return scanner_unreadable(scanner, scanner->from, result);
    memcpy(scanner->meta, block, BLOCK_BYTES);
    return journal_entry_decode(scanner->meta, reader_position(&scanner->reader, scanner->from),
                                &scanner->geometry, entry, why);
}

/* Behind a torn entry: how many would follow it. What cannot be read or makes no sense there ends
 * the count. */
static task_fn void
follow_torn(struct scanner *scanner, struct journal_entry *entry)
{
    struct error *const error = scanner->error;
    struct error unheard = {0}; /* the log has ended before */

    scanner->error = &unheard;
    for (;;) {
        const uint64_t seq = entry->seq + 1;
        uint32_t bad_count, bad_first;

        scanner->from += entry_bytes(entry);
        if (scanner->from >= scanner->geometry.ring_bytes || entry_read(scanner, entry, NULL) < 0 ||
            entry->seq != seq ||
            scanner->from + entry_bytes(entry) > scanner->geometry.ring_bytes ||
            entry_look(scanner, entry, &bad_count, &bad_first) < 0 || bad_count > 0)
            break;
        ++scanner->scan->torn_follows;
        entry_tell(scanner, entry, false);
    }
    scanner->error = error;
    scanner->scan->unreadable_bytes = 0;
}

/* The entry at the end so far: 1 and it is counted; 0 and scan->end says why not; or an error. */
static task_fn int
scan_entry(struct scanner *scanner)
{
    struct journal_scan *scan = scanner->scan;
    const bool first = scan->entries == 0;
    const char *name = scanner->config->device->name;
    struct format_error why = {.text = ""};
    struct journal_entry entry;
    uint32_t bad_count, bad_first = 0;
    int result;

    result = entry_read(scanner, &entry, &why);
    if (result == -ENOENT && first)
        return error_set(scanner->error, -EBADMSG,
                         "%s: there is no journal entry at the tail, position %" PRIu64 ": %s",
                         name, scan->end_bytes, why.text);
    if (result == -ENOENT) {
        scan->end = journal_entry_is_torn(scanner->meta, &scanner->geometry) ? JOURNAL_END_TORN_META
                                                                             : JOURNAL_END_NO_ENTRY;
        scan->end_cause = why;
        return 0;
    }
    if (result == -EIO)
        return result;
    scan->end_has_seq = true;
    scan->end_seq = entry.seq;
    scan->end = JOURNAL_END_OLD_ENTRY;
    if (!first && entry.seq != scan->seq_next)
        return 0;
    if (result < 0)
        return error_set(scanner->error, -EBADMSG,
                         "%s: the journal entry at position %" PRIu64 " makes no sense: %s", name,
                         scan->end_bytes, why.text);
    if (scanner->from + entry_bytes(&entry) > scanner->geometry.ring_bytes) {
        scan->end = JOURNAL_END_RING;
        return 0;
    }
    result = entry_look(scanner, &entry, &bad_count, &bad_first);
    if (result < 0)
        return result;
    if (first && entry.seq > JOURNAL_SEQ_MAX)
        return error_set(scanner->error, -EBADMSG,
                         "%s: the journal entry at the tail, position %" PRIu64
                         ", has number %" PRIu64 ": nobody counts that far",
                         name, scan->end_bytes, entry.seq);
    if (first)
        scan->seq_first = scan->seq_next = entry.seq;
    if (bad_count > 0) {
        entry_tell(scanner, &entry, false);
        if (first)
            return error_set(scanner->error, -EBADMSG,
                             "%s: the journal entry at the tail, position %" PRIu64
                             ", is not whole: block %" PRIu32 " is not what its checksum says",
                             name, scan->end_bytes, bad_first);
        scan->end = JOURNAL_END_TORN;
        scan->torn_block = bad_first;
        follow_torn(scanner, &entry);
        return 0;
    }
    entry_count(scanner, &entry);
    entry_tell(scanner, &entry, true);
    scan->seq_next = entry.seq + 1;
    scan->last_bytes = entry.position_bytes;
    scan->end_bytes = journal_entry_next(&entry, &scanner->geometry);
    scan->end = JOURNAL_END_RING;
    scan->end_has_seq = false;
    scanner->from += entry_bytes(&entry);
    scanner_progress(scanner);
    return scanner->from < scanner->geometry.ring_bytes;
}

/* --- The whole log --------------------------------------------------------------------------- */

/* What the superblock says of the ring. */
static int
ring_check(const struct device *device, const struct superblock *journal,
           struct journal_geometry *geometry, struct error *error)
{
    journal_geometry_init(geometry, journal);
    if (superblock_data_offset_bytes(journal) % BLOCK_BYTES != 0)
        return error_set(error, -ENOTSUP,
                         "%s: the journal begins at byte %" PRIu64 ", which is no multiple of %u",
                         device->name, superblock_data_offset_bytes(journal), BLOCK_BYTES);
    if (journal->journal_tail_sectors % BLOCK_SECTORS != 0 ||
        journal->journal_tail_sectors >= geometry->ring_bytes / SECTOR_BYTES)
        return error_set(
            error, -EBADMSG,
            "%s: the journal's tail %" PRIu64 " (sectors) is no block of its ring of %" PRIu64,
            device->name, journal->journal_tail_sectors, geometry->ring_bytes / SECTOR_BYTES);
    return 0;
}

static task_fn int
scanner_run(struct scanner *scanner)
{
    int result;

    do
        result = scan_entry(scanner);
    while (result > 0);
    if (result == -EIO && scanner->config->unreadable_is_end && scanner->scan->entries > 0) {
        scanner->scan->end = JOURNAL_END_UNREADABLE;
        return 0;
    }
    return result;
}

task_fn int
journal_scan(const struct journal_scan_config *config, struct journal_scan *scan,
             struct error *error)
{
    struct scanner scanner = {.config = config, .scan = scan, .error = error};
    int result;

    memset(scan, 0, sizeof *scan);
    result = ring_check(config->device, config->journal, &scanner.geometry, error);
    scan->ring_bytes = scanner.geometry.ring_bytes;
    if (result < 0)
        return result;
    scan->tail_bytes = scan->end_bytes = config->journal->journal_tail_sectors * SECTOR_BYTES;

    scanner.meta = malloc(BLOCK_BYTES);
    scanner.block_good = calloc(JOURNAL_ENTRY_BLOCKS_MAX, sizeof *scanner.block_good);
    result = scanner.meta == NULL || scanner.block_good == NULL
                 ? -ENOMEM
                 : reader_init(&scanner.reader, config->device,
                               superblock_data_offset_bytes(config->journal), scan->ring_bytes,
                               scan->tail_bytes);
    if (result < 0) {
        result = error_set(error, -ENOMEM, "no memory to read the journal");
    } else {
        result = scanner_run(&scanner);
        reader_fini(&scanner.reader);
    }
    free(scanner.block_good);
    free(scanner.meta);
    return result;
}

task_fn int
journal_survey(struct device *device, const struct superblock *journal,
               void (*found)(void *owner, const struct journal_entry *entry), void *owner)
{
    struct journal_geometry geometry;
    struct reader reader;
    bool unreadable = false;
    int result;

    journal_geometry_init(&geometry, journal);
    result =
        reader_init(&reader, device, superblock_data_offset_bytes(journal), geometry.ring_bytes, 0);
    if (result < 0)
        return result;
    for (uint64_t at = 0; at < geometry.ring_bytes; at += BLOCK_BYTES) {
        struct journal_entry entry;
        const uint8_t *block;

        if (reader_block(&reader, at, &block) < 0)
            unreadable = true;
        else if (journal_entry_decode(block, at, &geometry, &entry, NULL) != -ENOENT)
            found(owner, &entry);
    }
    reader_fini(&reader);
    return unreadable ? -EIO : 0;
}
