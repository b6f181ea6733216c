/*
 * overlay.c: members as a finished replay would leave them. See overlay.h.
 *
 * I/O that the log has no block for goes down as it is. The rest is done by a few tasks, block by
 * block: this is for looking at what a crash left, not for speed.
 */
#include "journal/overlay.h"

#include <stdlib.h>

#define WORKERS 4u

struct overlay {
    struct device device; /* first */
    const struct overlay_source *source;
    struct device *below; /* owned */
    unsigned member;
    uint64_t data_offset;
    struct io *queue_first, **queue_last;
    struct wait_queue idle;
    unsigned workers_alive;
    bool quitting;
};

/* Reads the record's block; what is not what was logged is read once more. */
static task_fn int
record_read(const struct overlay_source *source, const struct journal_record *record, void *memory)
{
    const uint64_t position = records_position(source->records, record);

    for (unsigned tries = 0; tries < 2; ++tries) {
        const int result = device_read(source->journal, memory,
                                       source->journal_data_offset + position, BLOCK_BYTES);

        if (result == 0 && journal_checksum(source->records->journal->checksum_seed, memory,
                                            BLOCK_BYTES) == record->checksum)
            return 0;
    }
    return -EIO;
}

/* The record for exactly this place, or NULL. */
static const struct journal_record *
record_at(const struct overlay_source *source, uint64_t stripe, unsigned member, bool open)
{
    const uint64_t place = record_place(stripe, member, open);
    const size_t i = records_find(source->records, place);

    if (i == source->records->count || source->records->all[i].place != place)
        return NULL;
    return &source->records->all[i];
}

/* --- The device ------------------------------------------------------------------------------ */

static struct overlay *
overlay_of(struct device *device)
{
    return container_of(device, struct overlay, device);
}

static const struct journal_record *
record_for(const struct overlay *overlay, uint64_t offset)
{
    if (offset < overlay->data_offset)
        return NULL;
    return record_at(overlay->source, (offset - overlay->data_offset) / BLOCK_BYTES,
                     overlay->member, false);
}

/* Does the log have any block of this range of the device? */
static bool
overlay_concerns(const struct overlay *overlay, uint64_t offset, uint64_t length)
{
    const struct journal_records *records = overlay->source->records;
    const uint64_t end = offset + length;
    const uint64_t from = max_u64(offset, overlay->data_offset);
    const uint64_t first = (from - overlay->data_offset) / BLOCK_BYTES;
    uint64_t last;

    if (end <= overlay->data_offset)
        return false;
    last = (end - 1 - overlay->data_offset) / BLOCK_BYTES;
    for (size_t i = records_find(records, record_place(first, 0, false));
         i < records->count && record_stripe(&records->all[i]) <= last; ++i)
        if (record_member(&records->all[i]) == overlay->member && !record_open(&records->all[i]))
            return true;
    return false;
}

static task_fn int
overlay_read(const struct overlay *overlay, struct io *io)
{
    uint64_t offset = io->offset;

    for (unsigned v = 0; v < io->iov_count; ++v)
        for (size_t at = 0; at < io->iov[v].iov_len; at += BLOCK_BYTES, offset += BLOCK_BYTES) {
            uint8_t *memory = (uint8_t *)io->iov[v].iov_base + at;
            const struct journal_record *record = record_for(overlay, offset);
            const int result = record != NULL
                                   ? record_read(overlay->source, record, memory)
                                   : device_read(overlay->below, memory, offset, BLOCK_BYTES);

            if (result < 0)
                return result;
        }
    return 0;
}

static void
overlay_worker(void *arg)
{
    struct overlay *overlay = arg;

    for (;;) {
        struct io *io = overlay->queue_first;

        if (io == NULL) {
            if (overlay->quitting)
                break;
            wait_queue_wait(overlay->device.loop, &overlay->idle);
            continue;
        }
        overlay->queue_first = io->next;
        if (io->next == NULL)
            overlay->queue_last = &overlay->queue_first;
        io->result = overlay_read(overlay, io);
        io_complete(io);
    }
    if (--overlay->workers_alive == 0) {
        free(overlay->device.name);
        free(overlay);
    }
}

static void
overlay_submit(struct device *device, struct io *io)
{
    struct overlay *overlay = overlay_of(device);

    assert(io->op == IO_READ);
    if (!overlay_concerns(overlay, io->offset, io->length)) {
        io->device = overlay->below;
        overlay->below->ops->submit(overlay->below, io);
        return;
    }
    io->next = NULL;
    *overlay->queue_last = io;
    overlay->queue_last = &io->next;
    (void)wait_queue_wake_one(device->loop, &overlay->idle); /* all may be busy */
}

/* The workers have nothing to do; the last one frees the overlay. */
struct device *
overlay_release(struct device *device)
{
    struct overlay *overlay = overlay_of(device);
    struct device *below = overlay->below;

    overlay->quitting = true;
    wait_queue_wake_all(device->loop, &overlay->idle);
    return below;
}

static void
overlay_close(struct device *device)
{
    device_close(overlay_release(device));
}

static const struct device_ops overlay_ops = {
    .kind = "overlay",
    .submit = overlay_submit,
    .close = overlay_close,
};

int
overlay_create(const struct overlay_source *source, struct device *below, unsigned member,
               uint64_t data_offset, struct device **out)
{
    struct overlay *overlay = calloc(1, sizeof *overlay);

    if (overlay == NULL)
        return -ENOMEM;
    overlay->device = *below;
    overlay->device.ops = &overlay_ops;
    overlay->device.name = strdup(below->name);
    overlay->device.readonly = true;
    overlay->device.punch_zeroes = overlay->device.write_zeroes = false;
    overlay->source = source;
    overlay->below = below;
    overlay->member = member;
    overlay->data_offset = data_offset;
    overlay->queue_last = &overlay->queue_first;
    if (overlay->device.name == NULL) {
        free(overlay);
        return -ENOMEM;
    }
    for (; overlay->workers_alive < WORKERS; ++overlay->workers_alive)
        if (task_start(source->loop, overlay_worker, overlay) == NULL) {
            if (overlay->workers_alive > 0) {
                ignored(overlay_release(&overlay->device)); /* below stays the caller's */
            } else {
                free(overlay->device.name);
                free(overlay);
            }
            return -ENOMEM;
        }
    *out = &overlay->device;
    return 0;
}

/* --- Open cycles ----------------------------------------------------------------------------- */

static const struct journal_record *
open_record(const struct overlay_source *source, uint64_t array_offset)
{
    struct place place;

    geometry_map(source->records->geometry, array_offset, &place);
    return record_at(source, place.member_offset / BLOCK_BYTES, place.member, true);
}

task_fn int
overlay_read_open(const struct overlay_source *source, void *memory, uint64_t offset,
                  uint64_t length)
{
    uint8_t *block = memory;

    if (source->records->open_blocks == 0)
        return 0;
    for (; length > 0; block += BLOCK_BYTES, offset += BLOCK_BYTES, length -= BLOCK_BYTES) {
        const struct journal_record *record = open_record(source, offset);
        int result;

        if (record == NULL)
            continue;
        result = record_read(source, record, block);
        if (result < 0)
            return result;
    }
    return 0;
}

bool
overlay_covers(const struct overlay_source *source, uint64_t offset, uint64_t length)
{
    for (; length > 0; offset += BLOCK_BYTES, length -= BLOCK_BYTES)
        if (open_record(source, offset) == NULL)
            return false;
    return true;
}
