/*
 * test_assemble_probe.c: what is found on one device.
 *
 * The device is memory, written with the encoders that are tested elsewhere.
 */
#include "array/assemble.h"
#include "array/create.h"
#include "format/bitmap.h"
#include "memory_device.h"

#include <stdio.h>

#define SIZE (24 * MIB)

struct world {
    struct memory_device memory;
    struct candidate candidate;
    struct superblock superblock;
    struct bitmap_header header;
    int result;
};

static char device_name[] = "device";

static struct world *
world_make(uint64_t size_bytes)
{
    struct world *w = calloc(1, sizeof *w);
    uint8_t *bytes = calloc(1, size_bytes + 1);

    assert_non_null(w);
    assert_non_null(bytes);
    memory_device_open(&w->memory, device_name, bytes, size_bytes);
    return w;
}

static void
world_free(struct world *w)
{
    candidate_fini(&w->candidate);
    memory_device_close(&w->memory);
    free(w);
}

/* w->superblock to its place. */
static void
put(struct world *w)
{
    assert_true(superblock_encode(&w->superblock,
                                  w->memory.bytes + superblock_offset_bytes(&w->superblock)) > 0);
}

/* The superblock of the first of three members, at 1.minor. */
static void
put_new(struct world *w, uint32_t minor, uint64_t ctime)
{
    const struct create_options options = {.level = 5,
                                           .layout = 2,
                                           .minor = minor,
                                           .chunk_bytes = 64 * KIB,
                                           .set_uuid = {1, 2, 3},
                                           .now = ctime};
    struct create_device devices[3];
    struct superblock *superblocks = calloc(3, sizeof *superblocks);
    struct error error = {0};

    assert_non_null(superblocks);
    for (unsigned i = 0; i < 3; i++)
        devices[i] = (struct create_device){.name = "x", .size_bytes = w->memory.device.size_bytes};
    if (create_plan(&options, devices, 3, superblocks, &error) < 0)
        fail_msg("%s", error.text);
    w->superblock = superblocks[0];
    free(superblocks);
    put(w);
}

static task_fn void
probe_task(void *arg)
{
    struct world *w = arg;

    w->result = candidate_probe(&w->memory.device, &w->candidate);
}

static void
probe(struct world *w, int status, const char *text)
{
    candidate_fini(&w->candidate);
    loop_run_task(w->memory.device.loop, probe_task, w);
    assert_int_equal(w->result, 0);
    if (w->candidate.status != status)
        fail_msg("status %d, not %d: %s", w->candidate.status, status, w->candidate.error.text);
    if (status == 0)
        return;
    assert_true(strncmp(w->candidate.error.text, "device: ", 8) == 0);
    if (!strstr(w->candidate.error.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, w->candidate.error.text);
}

/* ---- Superblocks ---- */

static void
a_superblock_is_found_at_each_place(void **state)
{
    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS; minor++)
        for (unsigned odd = 0; odd < 16; odd++) {
            struct world *w = world_make(SIZE + (uint64_t)odd * SECTOR_BYTES);

            put_new(w, minor, 1000);
            probe(w, 0, "");
            assert_int_equal(w->candidate.superblock.minor, minor);
            assert_int_equal(w->candidate.superblock.raid_disks, 3);
            assert_false(w->candidate.has_bad_blocks);
            assert_false(w->candidate.bitmap_usable);
            world_free(w);
        }
}

static void
of_several_superblocks_the_younger_counts(void **state)
{
    for (uint32_t a = 0; a < SUPERBLOCK_MINORS; a++)
        for (uint32_t b = 0; b < SUPERBLOCK_MINORS; b++) {
            struct world *w = world_make(SIZE);

            if (a == b) {
                world_free(w);
                continue;
            }
            put_new(w, a, 1000);
            put_new(w, b, 1001);
            probe(w, 0, "");
            assert_int_equal(w->candidate.superblock.minor, b);
            world_free(w);
        }
}

/* A RAID-1 was made of the device after it had left the RAID-5. */
static void
a_younger_superblock_that_cannot_be_used_counts_too(void **state)
{
    struct world *w = world_make(SIZE);

    put_new(w, 2, 1000);
    put_new(w, 0, 1001);
    w->superblock.level = 1;
    put(w);
    probe(w, -ENOTSUP, "level 1");
    w->superblock.ctime = 999;
    put(w);
    probe(w, 0, "");
    assert_int_equal(w->candidate.superblock.minor, 2);
    world_free(w);
}

static void
a_damaged_superblock_yields_to_one_that_is_not(void **state)
{
    struct world *w = world_make(SIZE);

    put_new(w, 0, 1000);
    put_new(w, 2, 1001);
    w->memory.bytes[4096 + 300] ^= 1;
    probe(w, 0, "");
    assert_int_equal(w->candidate.superblock.minor, 0);
    world_free(w);
}

static void
a_damaged_superblock_is_told(void **state)
{
    struct world *w = world_make(SIZE);

    put_new(w, 2, 1000);
    w->memory.bytes[4096 + 300] ^= 1;
    probe(w, -EBADMSG, "checksum");
    world_free(w);
}

static void
an_empty_device_has_none(void **state)
{
    struct world *w = world_make(SIZE);

    probe(w, -ENOENT, "no md superblock");
    world_free(w);
}

static void
a_device_that_is_too_small_is_told(void **state)
{
    for (uint64_t sectors = 0; sectors < 24; sectors++) {
        struct world *w = world_make(sectors * SECTOR_BYTES);

        probe(w, -ENOENT, "too small");
        world_free(w);
    }
}

static void
the_old_format_is_named(void **state)
{
    struct world *w = world_make(SIZE);
    uint64_t offset;

    assert_int_equal(superblock_offset_090(SIZE, &offset), 0);
    store_le32(w->memory.bytes + offset, 0xa92b4efc);
    store_le32(w->memory.bytes + offset + 8, 90);
    probe(w, -ENOTSUP, "0.90");
    world_free(w);
}

static void
an_unreadable_place_is_told_unless_another_has_a_superblock(void **state)
{
    struct world *w = world_make(SIZE);

    w->memory.bad_from = 4096;
    w->memory.bad_to = 4097;
    probe(w, -EIO, "cannot be read");
    put_new(w, 0, 1000);
    probe(w, 0, "");
    world_free(w);
}

/* ---- Bad blocks ---- */

static void
bad_blocks_are_read_where_the_log_is(void **state)
{
    for (uint32_t minor = 0; minor < SUPERBLOCK_MINORS; minor++) {
        struct world *w = world_make(SIZE);
        uint8_t *log;

        put_new(w, minor, 1000);
        w->superblock.feature_map |= SUPERBLOCK_FEATURE_BAD_BLOCKS;
        put(w);
        log = w->memory.bytes + superblock_bad_blocks_offset_bytes(&w->superblock);
        memset(log, 0xff, 4096);
        store_le64(log, (uint64_t)5000 << 10 | 16);
        probe(w, 0, "");
        assert_true(w->candidate.has_bad_blocks);
        assert_int_equal(w->candidate.bad_blocks.count, 1);
        assert_int_equal(w->candidate.bad_blocks.ranges[0].start_bytes, 5000 * SECTOR_BYTES);
        assert_int_equal(w->candidate.bad_blocks.ranges[0].end_bytes, 5016 * SECTOR_BYTES);
        world_free(w);
    }
}

static void
bad_blocks_are_not_read_without_their_feature(void **state)
{
    struct world *w = world_make(SIZE);

    put_new(w, 2, 1000);
    store_le64(w->memory.bytes + superblock_bad_blocks_offset_bytes(&w->superblock),
               (uint64_t)5000 << 10 | 16);
    probe(w, 0, "");
    assert_false(w->candidate.has_bad_blocks);
    world_free(w);
}

static void
without_its_bad_block_log_a_member_cannot_be_used(void **state)
{
    struct world *w = world_make(SIZE);
    uint64_t place;

    put_new(w, 2, 1000);
    w->superblock.feature_map |= SUPERBLOCK_FEATURE_BAD_BLOCKS;
    put(w);
    place = superblock_bad_blocks_offset_bytes(&w->superblock);
    w->memory.bad_from = place;
    w->memory.bad_to = place + 1;
    probe(w, -EIO, "bad block log");
    w->memory.bad_to = 0;
    store_le64(w->memory.bytes + place, UINT64_MAX << 20); /* far behind the device */
    probe(w, -EBADMSG, "");
    world_free(w);
}

/* A log that is not at a block's boundary, which nobody makes but the format allows. */
static void
a_bad_block_log_may_begin_inside_a_block(void **state)
{
    struct world *w = world_make(SIZE);
    uint8_t *log;

    put_new(w, 2, 1000);
    w->superblock.feature_map |= SUPERBLOCK_FEATURE_BAD_BLOCKS;
    w->superblock.bad_block_log_offset_sectors = 21;
    put(w);
    log = w->memory.bytes + superblock_bad_blocks_offset_bytes(&w->superblock);
    memset(log, 0xff, 4096);
    store_le64(log + 8, UINT64_MAX);
    store_le64(log, (uint64_t)6000 << 10 | 1);
    probe(w, 0, "");
    assert_int_equal(w->candidate.bad_blocks.ranges[0].start_bytes, 6000 * SECTOR_BYTES);
    world_free(w);
}

/* ---- The bitmap ---- */

static struct world *
world_with_bitmap(void)
{
    struct world *w = world_make(SIZE);

    put_new(w, 2, 1000);
    w->superblock.feature_map |= SUPERBLOCK_FEATURE_BITMAP;
    w->superblock.bitmap_offset_sectors = 64;
    w->superblock.events = 20;
    put(w);
    memcpy(w->header.uuid, w->superblock.set_uuid, sizeof w->header.uuid);
    w->header.events = 20;
    w->header.sync_size_sectors = w->superblock.size_sectors;
    w->header.chunk_bytes = 64 * KIB;
    return w;
}

static uint8_t *
put_header(struct world *w)
{
    uint8_t *at = w->memory.bytes + superblock_bitmap_offset_bytes(&w->superblock);

    bitmap_encode(&w->header, at);
    return at;
}

static void
a_bitmap_is_read_with_its_bits(void **state)
{
    struct world *w = world_with_bitmap();
    uint8_t *at = put_header(w);

    at[256 + 7] = 0x10; /* bit 60 */
    probe(w, 0, "");
    assert_true(w->candidate.bitmap_usable);
    assert_int_equal(w->candidate.bitmap_region_bytes, 64 * KIB);
    assert_int_equal(w->candidate.bitmap_bits_count,
                     w->superblock.size_sectors * SECTOR_BYTES / (64 * KIB));
    for (uint64_t bit = 0; bit < w->candidate.bitmap_bits_count; bit++)
        assert_int_equal(bitmap_test(w->candidate.bitmap_bits, bit), bit == 60);
    world_free(w);
}

/* More bits than fit into the first block. */
static void
a_large_bitmap_is_read_whole(void **state)
{
    struct world *w = world_with_bitmap();
    uint8_t *at;
    uint64_t bits;

    w->header.chunk_bytes = 512;
    at = put_header(w);
    bits = w->superblock.size_sectors;
    for (uint64_t i = 0; i < bits / 8; i++)
        at[256 + i] = (uint8_t)(i * 7);
    probe(w, 0, "");
    assert_true(w->candidate.bitmap_usable);
    assert_int_equal(w->candidate.bitmap_bits_count, bits);
    for (uint64_t i = 0; i < bits / 8; i++)
        assert_int_equal(w->candidate.bitmap_bits[i], (uint8_t)(i * 7));
    world_free(w);
}

/* Then all is resynced; the member is as good as before. */
static void
a_bitmap_that_says_nothing_is_not_used(void **state)
{
    for (unsigned what = 0; what < 5; what++) {
        struct world *w = world_with_bitmap();
        uint8_t *at;

        switch (what) {
        case 0:
            w->header.events = 19;
            break;
        case 1:
            w->header.uuid[3] ^= 1;
            break;
        case 2:
            w->header.state = BITMAP_STATE_STALE;
            break;
        default:
            break;
        }
        at = put_header(w);
        if (what == 3)
            at[0] ^= 1;
        if (what == 4) {
            w->memory.bad_from = (uint64_t)(at - w->memory.bytes);
            w->memory.bad_to = w->memory.bad_from + 1;
        }
        probe(w, 0, "");
        assert_false(w->candidate.bitmap_usable);
        assert_null(w->candidate.bitmap_bits);
        world_free(w);
    }
}

static void
a_bitmap_of_an_unknown_kind_is_refused(void **state)
{
    static const uint32_t versions[] = {3, 5, 6, 7};

    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        struct world *w = world_with_bitmap();

        store_le32(put_header(w) + 4, versions[i]);
        probe(w, -ENOTSUP, "bitmap version");
        world_free(w);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_superblock_is_found_at_each_place),
        cmocka_unit_test(of_several_superblocks_the_younger_counts),
        cmocka_unit_test(a_younger_superblock_that_cannot_be_used_counts_too),
        cmocka_unit_test(a_damaged_superblock_yields_to_one_that_is_not),
        cmocka_unit_test(a_damaged_superblock_is_told),
        cmocka_unit_test(an_empty_device_has_none),
        cmocka_unit_test(a_device_that_is_too_small_is_told),
        cmocka_unit_test(the_old_format_is_named),
        cmocka_unit_test(an_unreadable_place_is_told_unless_another_has_a_superblock),
        cmocka_unit_test(bad_blocks_are_read_where_the_log_is),
        cmocka_unit_test(bad_blocks_are_not_read_without_their_feature),
        cmocka_unit_test(without_its_bad_block_log_a_member_cannot_be_used),
        cmocka_unit_test(a_bad_block_log_may_begin_inside_a_block),
        cmocka_unit_test(a_bitmap_is_read_with_its_bits),
        cmocka_unit_test(a_large_bitmap_is_read_whole),
        cmocka_unit_test(a_bitmap_that_says_nothing_is_not_used),
        cmocka_unit_test(a_bitmap_of_an_unknown_kind_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
