/*
 * journal_fill: a journal that is full to the brim, as a server killed under load would leave it if
 * it never made a checkpoint.
 *
 * The measure of recovery needs a full log, and a running array reclaims its log at a quarter of
 * the ring. So this program writes one, entry after entry, round the end of the ring: stripes with
 * data and parity, 32 in an entry (but not more than an eighth of the ring), and sets the tail to
 * its beginning.
 *
 *   --load=sequential  whole stripes in ascending order, as long writes in sequence leave them
 *   --load=random      whole stripes in random order, none twice
 *   --load=small       stripes of one data block and parity in random order, none twice, as random
 *                      4 KiB writes leave them. Their parity is right where the other data blocks
 *                      of the stripe are zero
 *
 * When there are no stripes left it begins again with the first one. The content of a block depends
 * on its place alone, so the same call leaves the same array however often it is recovered.
 *
 * The array must have been made by `stripelog create` and must not be in use. RAID-4 and RAID-5
 * only. Prints one line of JSON.
 */
#include "format/journal_entry.h"
#include "format/superblock.h"
#include "geometry/geometry.h"
#include "parity/parity.h"
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#define ENTRY_STRIPES 32u
#define FIRST_SEQ     UINT64_C(1000)

enum load { LOAD_SEQUENTIAL, LOAD_RANDOM, LOAD_SMALL };

struct fill {
    enum load load;
    int fd;
    uint64_t device_bytes;
    struct superblock superblock;
    struct geometry geometry;
    struct journal_geometry journal;
    uint64_t stripes, next; /* of the array; that have been logged */
    uint64_t step;          /* of the walk through all stripes; prime to their number */
    uint8_t *entry;         /* its meta block, then its blocks */
    uint64_t position, seq, entries, blocks;
};

static _Noreturn void
die(const char *what, int error)
{
    fprintf(stderr, "journal_fill: %s: %s\n", what, strerror(error));
    exit(1);
}

/* --- Content --------------------------------------------------------------------------------- */

/* splitmix64. */
static uint64_t
mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static void
block_make(uint8_t *block, uint64_t array_offset)
{
    uint64_t x = mix(array_offset + 0x9e3779b97f4a7c15) | 1;

    for (size_t i = 0; i < BLOCK_BYTES; i += sizeof x) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(block + i, &x, sizeof x);
    }
}

/* A walk that meets every stripe once: steps of a fixed length round all of them. In steps of the
 * golden section, neighbours in the log are far apart, and every part of the array is met all the
 * time. */
static uint64_t
stripe_number(const struct fill *fill, uint64_t n)
{
    if (fill->load == LOAD_SEQUENTIAL)
        return n % fill->stripes;
    return (uint64_t)((unsigned __int128)n * fill->step % fill->stripes);
}

static uint64_t
greatest_common_divisor(uint64_t a, uint64_t b)
{
    return b == 0 ? a : greatest_common_divisor(b, a % b);
}

/* --- Entries --------------------------------------------------------------------------------- */

static uint32_t
blocks_of_stripe(const struct fill *fill)
{
    return (fill->load == LOAD_SMALL ? 1 : fill->geometry.data_members) + 1;
}

/* Adds one stripe to the entry: its data, then its parity. */
static void
stripe_add(struct fill *fill, struct journal_writer *writer, uint64_t stripe)
{
    const uint64_t member_offset = stripe * BLOCK_BYTES;
    const uint32_t seed = fill->journal.checksum_seed;
    const unsigned count = fill->geometry.data_members;
    void *data[MEMBERS_MAX];
    struct parity_stripe parity = {.data = data, .bytes = BLOCK_BYTES};
    struct row row;
    uint32_t checksum;

    geometry_row(&fill->geometry, geometry_row_at(&fill->geometry, member_offset), &row);
    for (unsigned d = 0; d < count; ++d) {
        const unsigned m = geometry_data_member(&fill->geometry, &row, d);
        uint8_t *block = fill->entry + (1 + (size_t)writer->block_count) * BLOCK_BYTES;
        uint64_t array_offset;

        if (fill->load == LOAD_SMALL && d != mix(stripe) % count)
            continue;
        if (!geometry_unmap(&fill->geometry, m, member_offset, &array_offset))
            assert(!"a data member holds data");
        block_make(block, array_offset);
        data[parity.data_count++] = block;
        journal_writer_add_data(writer, array_offset, journal_checksum(seed, block, BLOCK_BYTES));
    }
    parity.p = fill->entry + (1 + (size_t)writer->block_count) * BLOCK_BYTES;
    parity_compute(&parity);
    checksum = journal_checksum(seed, parity.p, BLOCK_BYTES);
    journal_writer_add_parity(writer, member_offset, 1, &checksum);
}

static void
write_whole(const struct fill *fill, const uint8_t *memory, uint64_t length, uint64_t offset)
{
    while (length > 0) {
        const ssize_t n = pwrite(fill->fd, memory, length, (off_t)offset);

        if (n <= 0)
            die("write", n < 0 ? errno : EIO);
        memory += n;
        length -= (uint64_t)n;
        offset += (uint64_t)n;
    }
}

static void
entry_write(struct fill *fill, uint32_t stripes)
{
    const uint64_t base = superblock_data_offset_bytes(&fill->superblock);
    struct journal_writer writer;
    uint64_t length, first;

    journal_writer_init(&writer, fill->entry, fill->seq++, fill->position);
    for (uint32_t i = 0; i < stripes; ++i)
        stripe_add(fill, &writer, stripe_number(fill, fill->next++));
    journal_writer_finish(&writer, fill->journal.checksum_seed);
    length = (1 + (uint64_t)writer.block_count) * BLOCK_BYTES;
    first = min_u64(length, fill->journal.ring_bytes - fill->position);
    write_whole(fill, fill->entry, first, base + fill->position);
    write_whole(fill, fill->entry + first, length - first, base);
    fill->position = journal_ring_add(&fill->journal, fill->position, length);
    ++fill->entries;
    fill->blocks += writer.block_count;
}

/* From a third of the ring on, until no entry fits any more. */
static void
ring_fill(struct fill *fill)
{
    const uint32_t stripe_blocks = blocks_of_stripe(fill);
    const uint64_t eighth = fill->journal.ring_bytes / BLOCK_BYTES / 8;
    uint64_t left = fill->journal.ring_bytes / BLOCK_BYTES - 1; /* one stays free */

    fill->position = round_down(fill->journal.ring_bytes / 3, BLOCK_BYTES);
    fill->superblock.journal_tail_sectors = fill->position / SECTOR_BYTES;
    while (left > stripe_blocks) {
        const uint64_t stripes =
            min_u64((min_u64(left, eighth) - 1) / stripe_blocks, ENTRY_STRIPES);

        if (stripes == 0)
            break;
        entry_write(fill, (uint32_t)stripes);
        left -= 1 + stripes * stripe_blocks;
    }
}

/* --- The device ------------------------------------------------------------------------------ */

static uint64_t
device_size(int fd)
{
    struct stat stat;
    uint64_t bytes;

    if (fstat(fd, &stat) < 0)
        die("stat", errno);
    if (!S_ISBLK(stat.st_mode))
        return (uint64_t)stat.st_size;
    if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
        die("size", errno);
    return bytes;
}

static void
superblock_read(struct fill *fill)
{
    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS; ++minor) {
        uint64_t offset;

        if (superblock_offset(minor, fill->device_bytes, &offset) < 0 ||
            pread(fill->fd, fill->entry, SUPERBLOCK_BYTES, (off_t)offset) != SUPERBLOCK_BYTES)
            continue;
        if (superblock_decode(fill->entry, minor, fill->device_bytes, &fill->superblock, NULL) == 0)
            return;
    }
    die("no superblock", EINVAL);
}

static void
superblock_write(struct fill *fill)
{
    memset(fill->entry, 0, SUPERBLOCK_BYTES);
    ignored(superblock_encode(&fill->superblock, fill->entry)); /* a whole block is written */
    write_whole(fill, fill->entry, SUPERBLOCK_BYTES, superblock_offset_bytes(&fill->superblock));
    if (fsync(fill->fd) < 0)
        die("fsync", errno);
}

static void
fill_open(struct fill *fill, const char *path)
{
    const struct superblock *superblock = &fill->superblock;

    fill->entry = aligned_alloc(BLOCK_BYTES, (1 + (size_t)JOURNAL_ENTRY_BLOCKS_MAX) * BLOCK_BYTES);
    if (fill->entry == NULL)
        die("memory", ENOMEM);
    fill->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fill->fd < 0)
        die(path, errno);
    fill->device_bytes = device_size(fill->fd);
    superblock_read(fill);
    if (superblock_role(superblock) != SUPERBLOCK_ROLE_JOURNAL)
        die("not a journal", EINVAL);
    if (superblock_parity_count(superblock) != 1)
        die("one parity only", ENOTSUP);
    if (geometry_init(
            &fill->geometry,
            &(struct geometry_config){.level = superblock->level,
                                      .layout = superblock->layout,
                                      .members = superblock->raid_disks,
                                      .chunk_bytes = superblock_chunk_bytes(superblock),
                                      .size_bytes = superblock->size_sectors * SECTOR_BYTES}) < 0)
        die("geometry", EINVAL);
    journal_geometry_init(&fill->journal, superblock);
    fill->stripes = fill->geometry.member_bytes / BLOCK_BYTES;
    fill->step = (uint64_t)((double)fill->stripes * 0.6180339887);
    while (greatest_common_divisor(fill->step, fill->stripes) != 1)
        ++fill->step;
    fill->seq = FIRST_SEQ;
}

static void
usage(FILE *to)
{
    fputs("usage: journal_fill [--load=sequential|random|small] JOURNAL\n", to);
}

static int
options_parse(struct fill *fill, int argc, char **argv)
{
    static const struct option names[] = {
        {"load", required_argument, NULL, 'l'}, {"help", no_argument, NULL, 'h'}, {0}};
    static const char *const loads[] = {"sequential", "random", "small"};

    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        unsigned load = 0;

        switch (option) {
        case 'l':
            while (load < ARRAY_LEN(loads) && strcmp(optarg, loads[load]) != 0)
                ++load;
            if (load == ARRAY_LEN(loads))
                return -EINVAL;
            fill->load = (enum load)load;
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            return -EINVAL;
        }
    }
    return argc - optind == 1 ? 0 : -EINVAL;
}

int
main(int argc, char **argv)
{
    struct fill *fill = calloc(1, sizeof *fill);

    if (fill == NULL)
        die("memory", ENOMEM);
    if (options_parse(fill, argc, argv) < 0) {
        usage(stderr);
        return 2;
    }
    fill_open(fill, argv[optind]);
    ring_fill(fill);
    superblock_write(fill);
    printf("{\"entries\": %llu, \"blocks\": %llu, \"bytes\": %llu}\n",
           (unsigned long long)fill->entries, (unsigned long long)fill->blocks,
           (unsigned long long)(fill->entries + fill->blocks) * BLOCK_BYTES);
    close(fill->fd);
    free(fill->entry);
    free(fill);
    return 0;
}
