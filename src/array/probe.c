/*
 * probe.c: what is on one device: its superblock, bad blocks, write-intent bitmap.
 *
 * The minor version is not stored, so all three places are read. A device may hold more than one
 * superblock (an array created over another with other metadata): the younger one counts, also if
 * it is one that this program cannot use, for then the older one is no longer anybody's.
 *
 * Nothing is written (A1), and a device that cannot be read is a candidate with a status, not an
 * error: the array may well do without it.
 */
#include "array/assemble.h"

#include "format/bitmap.h"

#include <inttypes.h>
#include <stdlib.h>

/* A bitmap's bits on disk; mdadm's largest are 128 KiB. A larger one is not used: all is resynced.
 */
#define BITMAP_BYTES_MAX (4 * MIB)

struct place_found {
    int status;
    struct format_error error;
    struct superblock superblock;
};

/* How much a status says about the device. */
static int
status_weight(int status)
{
    switch (status) {
    case 0:
        return 4;
    case -ENOTSUP:
        return 3;
    case -EBADMSG:
        return 2;
    case -EIO:
        return 1;
    default:
        return 0;
    }
}

static bool
is_younger(const struct place_found *a, const struct place_found *b)
{
    const bool fields_a = a->status == 0 || a->status == -ENOTSUP;
    const bool fields_b = b->status == 0 || b->status == -ENOTSUP;

    if (fields_a && fields_b && a->superblock.ctime != b->superblock.ctime)
        return superblock_choose(&a->superblock, &b->superblock) == &a->superblock;
    return status_weight(a->status) > status_weight(b->status);
}

static task_fn void
read_place(struct device *device, uint32_t minor, uint8_t *block, struct place_found *found)
{
    uint64_t offset_bytes;
    int r;

    r = superblock_offset(minor, device->size_bytes, &offset_bytes);
    if (r < 0) {
        found->status =
            format_refuse(&found->error, ENOENT, "too small to be a member: %" PRIu64 " bytes",
                          device->size_bytes);
        return;
    }
    r = device_read(device, block, offset_bytes, SUPERBLOCK_BYTES);
    if (r < 0) {
        found->status = format_refuse(
            &found->error, EIO, "the superblock's place at byte %" PRIu64 " cannot be read: %s",
            offset_bytes, strerror(-r));
        return;
    }
    found->status =
        superblock_decode(block, minor, device->size_bytes, &found->superblock, &found->error);
}

static task_fn void
read_place_090(struct device *device, uint8_t *block, struct place_found *found)
{
    uint64_t offset_bytes;

    if (superblock_offset_090(device->size_bytes, &offset_bytes) < 0 ||
        device_read(device, block, offset_bytes, SUPERBLOCK_BYTES) < 0)
        return;
    found->status = superblock_probe_090(block, &found->error);
    if (found->status == 0)
        found->status = -ENOENT;
}

/* An area that need not begin or end at a block; *at points to its first byte in the buffer, which
 * the caller frees. */
static task_fn int
read_area(struct device *device, uint64_t offset, uint64_t length, uint8_t **buffer, uint8_t **at)
{
    const uint64_t start = round_down(offset, BLOCK_BYTES);
    const uint64_t end = round_up(offset + length, BLOCK_BYTES);
    int r;

    *buffer = NULL;
    if (end > device->size_bytes)
        return -ENXIO;
    *buffer = aligned_alloc(BLOCK_BYTES, end - start);
    if (!*buffer)
        return -ENOMEM;
    *at = *buffer + (offset - start);
    r = device_read(device, *buffer, start, end - start);
    if (r < 0) {
        free(*buffer);
        *buffer = NULL;
    }
    return r;
}

/* The log says where the member lies; without it nothing on the member can be trusted. */
static task_fn int
probe_bad_blocks(struct device *device, struct candidate *candidate)
{
    const struct superblock *sb = &candidate->superblock;
    const size_t bytes = (size_t)sb->bad_block_log_sectors * SECTOR_BYTES;
    struct format_error why = {.text = ""};
    uint8_t *buffer, *log;
    int r;

    if (!(sb->feature_map & SUPERBLOCK_FEATURE_BAD_BLOCKS))
        return 0;
    r = read_area(device, superblock_bad_blocks_offset_bytes(sb), bytes, &buffer, &log);
    if (r == -ENOMEM)
        return r;
    if (r < 0) {
        candidate->status =
            error_set(&candidate->error, -EIO, "%s: the bad block log cannot be read: %s",
                      device->name, strerror(-r));
        return 0;
    }
    r = bad_blocks_decode(log, bytes, sb->bad_block_log_shift, device->size_bytes,
                          &candidate->bad_blocks, &why);
    free(buffer);
    if (r < 0)
        candidate->status = error_set(&candidate->error, r, "%s: %s", device->name, why.text);
    candidate->has_bad_blocks = r == 0 && candidate->bad_blocks.count > 0;
    return 0;
}

/* A bitmap is a licence to resync less. Whatever is odd about it leaves the licence ungiven. */
static task_fn int
probe_bitmap(struct device *device, struct candidate *candidate)
{
    const struct superblock *sb = &candidate->superblock;
    struct format_error why = {.text = ""};
    struct bitmap_header header;
    uint64_t bits, bytes;
    uint8_t *buffer, *at;
    int r;

    if (!(sb->feature_map & SUPERBLOCK_FEATURE_BITMAP) ||
        !superblock_role_is_slot(superblock_role(sb)))
        return 0;
    r = read_area(device, superblock_bitmap_offset_bytes(sb), BLOCK_BYTES, &buffer, &at);
    if (r < 0)
        return r == -ENOMEM ? r : 0;
    r = bitmap_decode(at, sb, &header, &why);
    free(buffer);
    /* A kind of bitmap that may also say where parity was never made. */
    if (r == -ENOTSUP)
        candidate->status = error_set(&candidate->error, r, "%s: %s", device->name, why.text);
    if (r < 0 || bitmap_is_stale(&header, sb))
        return 0;
    bits = bitmap_bits(&header);
    bytes = bits / 8 + (bits % 8 != 0);
    if (bytes > BITMAP_BYTES_MAX)
        return 0;
    r = read_area(device, superblock_bitmap_offset_bytes(sb) + BITMAP_HEADER_BYTES, bytes, &buffer,
                  &at);
    if (r < 0)
        return r == -ENOMEM ? r : 0;
    /* What is kept is owned, and freed, from its first byte. */
    memmove(buffer, at, bytes);
    candidate->bitmap_usable = true;
    candidate->bitmap_region_bytes = header.chunk_bytes;
    candidate->bitmap_bits_count = bits;
    candidate->bitmap_bits = buffer;
    return 0;
}

int
candidate_probe(struct device *device, struct candidate *candidate)
{
    struct place_found *places, *best;
    uint8_t *block;
    int r = -ENOMEM;

    memset(candidate, 0, sizeof *candidate);
    candidate->device = device;
    candidate->status = error_set(&candidate->error, -ENOMEM, "%s: out of memory", device->name);
    block = aligned_alloc(BLOCK_BYTES, SUPERBLOCK_BYTES);
    places = calloc(SUPERBLOCK_MINORS, sizeof *places);
    if (!block || !places)
        goto out;

    best = NULL;
    /* The default first: of equals it stays. */
    for (uint32_t minor = SUPERBLOCK_MINORS; minor-- > 0;) {
        read_place(device, minor, block, &places[minor]);
        if (!best || is_younger(&places[minor], best))
            best = &places[minor];
    }
    if (best->status == -ENOENT && device->size_bytes / SECTOR_BYTES >= 24) {
        best->status = format_refuse(&best->error, ENOENT, "no md superblock");
        read_place_090(device, block, best);
    }
    candidate->superblock = best->superblock;
    candidate->status = best->status;
    candidate->error = (struct error){0};
    if (best->status < 0)
        (void)error_set(&candidate->error, best->status, "%s: %s", device->name, best->error.text);
    r = 0;
    if (candidate->status == 0)
        r = probe_bad_blocks(device, candidate);
    if (r == 0 && candidate->status == 0)
        r = probe_bitmap(device, candidate);
out:
    if (r < 0)
        candidate->status = r;
    free(block);
    free(places);
    return r;
}

void
candidate_fini(struct candidate *candidate)
{
    free(candidate->bitmap_bits);
    candidate->bitmap_bits = NULL;
    candidate->bitmap_usable = false;
}
