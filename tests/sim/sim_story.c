/* sim_story.c: see sim_story.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sim_story.h"
#include <stdio.h>
#include <stdlib.h>

int
story_setup(void **state)
{
    struct story *const s = calloc(1, sizeof *s);

    cluster_create(&s->cluster);
    s->cluster.trace = getenv("SIM_TRACE") != NULL;
    s->memory = aligned_alloc(BLOCK_BYTES, STORY_BLOCKS_MAX * BLOCK_BYTES);
    s->level = 5;
    s->members = 3;
    s->member_bytes = 64 * KIB;
    s->ring_blocks = 32;
    *state = s;
    return 0;
}

int
story_teardown(void **state)
{
    struct story *const s = *state;

    free(s->memory);
    image_fini(&s->image);
    cluster_destroy(&s->cluster);
    free(s);
    return 0;
}

/* --- The array ------------------------------------------------------------------------------ */

void
story_make(struct story *s)
{
    const unsigned journal = s->members;

    cluster_begin(&s->cluster, 1, s->members + 1,
                  DATA_OFFSET + max_u64(s->member_bytes, s->ring_blocks * BLOCK_BYTES));
    s->random.state = 1;
    s->force = s->left_out = 0;
    for (unsigned d = 0; d <= journal; ++d) {
        struct superblock *const sb = &s->superblocks[d];

        memset(s->cluster.disks[d].stable, 0, s->cluster.disks[d].device.size_bytes);
        superblock_init(sb, MINOR, s->members + 1);
        memset(sb->set_uuid, 0x53, sizeof sb->set_uuid);
        superblock_set_name(sb, NULL, "story");
        sb->ctime = sb->utime = superblock_time(1700000000, 0);
        sb->feature_map |= SUPERBLOCK_FEATURE_JOURNAL;
        sb->level = s->level;
        sb->layout = s->level == 4 ? 0 : 2;
        sb->size_sectors = s->member_bytes / SECTOR_BYTES;
        sb->chunk_sectors = CHUNK_BYTES / SECTOR_BYTES;
        sb->raid_disks = s->members;
        sb->data_offset_sectors = DATA_OFFSET / SECTOR_BYTES;
        sb->super_offset_sectors = SUPER_OFFSET / SECTOR_BYTES;
        sb->data_size_sectors =
            (d == journal ? s->ring_blocks * BLOCK_BYTES : s->member_bytes) / SECTOR_BYTES;
        sb->dev_number = d;
        sb->events = 10;
        sb->resync_offset_sectors = SUPERBLOCK_RESYNC_DONE;
        memset(sb->device_uuid, (int)d + 1, sizeof sb->device_uuid);
        for (unsigned i = 0; i < s->members; ++i)
            sb->dev_roles[i] = (uint16_t)i;
        sb->dev_roles[journal] = SUPERBLOCK_ROLE_JOURNAL;
    }
    journal_geometry_init(&s->geometry, &s->superblocks[journal]);
}

uint8_t *
story_ring_block(struct story *s, unsigned block)
{
    return s->cluster.disks[s->members].stable + DATA_OFFSET + (uint64_t)block * BLOCK_BYTES;
}

void
story_store(struct story *s)
{
    for (unsigned d = 0; d <= s->members; ++d)
        assert_true(
            superblock_encode(&s->superblocks[d], s->cluster.disks[d].stable + SUPER_OFFSET) > 0);
    cluster_load(&s->cluster);
}

void
story_entry_empty(struct story *s, unsigned block, uint64_t seq)
{
    journal_entry_encode_empty(story_ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES,
                               s->geometry.checksum_seed);
}

void
story_entry_data(struct story *s, unsigned block, uint64_t seq, uint8_t fill)
{
    uint8_t *const data = story_ring_block(s, block + 1);
    struct journal_writer writer;

    memset(data, fill, BLOCK_BYTES);
    journal_writer_init(&writer, story_ring_block(s, block), seq, (uint64_t)block * BLOCK_BYTES);
    journal_writer_add_data(&writer, 0,
                            journal_checksum(s->geometry.checksum_seed, data, BLOCK_BYTES));
    journal_writer_finish(&writer, s->geometry.checksum_seed);
}

/* --- Runs ----------------------------------------------------------------------------------- */

static void
on_event(void *owner, const struct array_event *event)
{
    struct story *const s = owner;

    cluster_trace(&s->cluster, "event %d: %s", event->kind, event->text);
    ++s->told[event->kind];
    if (event->kind == ARRAY_DATA_LOST)
        memcpy(s->text, event->text, sizeof s->text);
}

static void
story_main(void *arg)
{
    struct story *const s = arg;
    struct device *devices[SIM_DISKS_MAX];
    struct array_config config = s->config;

    config.devices = devices;
    config.force = s->force;
    if (config.memory_bytes == 0)
        config.memory_bytes = MIB;
    config.workers = 4;
    config.event = on_event;
    config.owner = s;
    for (unsigned d = 0; d <= s->members; ++d)
        if (!(s->left_out >> d & 1))
            devices[config.device_count++] = &s->cluster.disks[d].device;
    s->started = array_start(s->cluster.loop, &config, &s->array, &s->error);
    if (s->started < 0)
        return;
    array_status(s->array, &s->status);
    if (s->run != NULL)
        s->run(s);
    array_destroy(s->array);
}

void
story_play(struct story *s, void (*run)(struct story *s))
{
    s->run = run;
    memset(s->told, 0, sizeof s->told);
    loop_run_task(s->cluster.loop, story_main, s);
}

void
story_cut(struct story *s, uint64_t moment, enum sim_tear tear)
{
    image_build(&s->cluster, &s->image, moment, tear, &s->random);
    image_adopt(&s->cluster, &s->image);
}

void
story_restart(struct story *s)
{
    story_cut(s, s->cluster.moment, TEAR_ALL);
}

int
story_put(struct story *s, uint64_t block, unsigned count, uint8_t fill, bool fua)
{
    assert_true(count <= STORY_BLOCKS_MAX);
    memset(s->memory, fill, count * BLOCK_BYTES);
    return array_write(s->array, s->memory, block * BLOCK_BYTES, count * BLOCK_BYTES, fua);
}

int
story_get(struct story *s, uint64_t block)
{
    return array_read(s->array, s->memory, block * BLOCK_BYTES, BLOCK_BYTES);
}

void
story_expect(struct story *s, uint64_t block, unsigned count, uint8_t fill)
{
    for (unsigned i = 0; i < count; ++i) {
        assert_int_equal(story_get(s, block + i), 0);
        assert_int_equal(s->memory[0], fill);
        assert_memory_equal(s->memory, s->memory + 1, BLOCK_BYTES - 1);
    }
}

uint64_t
story_events(struct story *s, unsigned disk)
{
    struct superblock sb;

    assert_int_equal(superblock_decode(s->cluster.disks[disk].live + SUPER_OFFSET, MINOR,
                                       s->cluster.disks[disk].device.size_bytes, &sb, NULL),
                     0);
    return sb.events;
}
