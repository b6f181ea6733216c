/*
 * Flaws that the simulator found, each told as the shortest story that shows it: a small array on
 * simulated disks, a few requests that arrive in one turn of the loop, and so in one batch.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "array/array.h"
#include "array/create.h"
#include "parity/parity.h"
#include "sim_disk.h"
#include <stdlib.h>

#define CHUNK       (4 * KIB)
#define ROWS        16u
#define CLIENTS_MAX 4u

enum verb { WRITE, WRITE_FUA, ZERO };

struct client {
    struct scenario *scenario;
    enum verb verb;
    uint64_t offset, length;
    uint8_t fill;
    uint8_t *memory;
    int result;
};

struct scenario {
    struct sim_cluster cluster;
    struct sim_image image;
    struct sim_random random;
    struct superblock superblocks[SIM_DISKS_MAX];
    struct array *array;
    struct client clients[CLIENTS_MAX];
    unsigned clients_count, working;
    struct task *main;
    unsigned offered, force;
    int started;
    void (*story)(struct scenario *s);
    uint8_t *memory;
};

static int
setup(void **state)
{
    struct scenario *const s = calloc(1, sizeof *s);

    cluster_create(&s->cluster);
    s->memory = aligned_alloc(BLOCK_BYTES, MIB);
    for (unsigned i = 0; i < CLIENTS_MAX; ++i)
        s->clients[i].memory = aligned_alloc(BLOCK_BYTES, 64 * KIB);
    *state = s;
    return 0;
}

static int
teardown(void **state)
{
    struct scenario *const s = *state;

    for (unsigned i = 0; i < CLIENTS_MAX; ++i)
        free(s->clients[i].memory);
    free(s->memory);
    image_fini(&s->image);
    cluster_destroy(&s->cluster);
    free(s);
    return 0;
}

/* Zeros everywhere: parity agrees with that. */
static void
make(struct scenario *s, int level, unsigned members)
{
    struct create_device devices[SIM_DISKS_MAX] = {{0}};
    const struct create_options options = {.level = level,
                                           .layout = 2,
                                           .minor = 0,
                                           .chunk_bytes = CHUNK,
                                           .size_bytes = ROWS * CHUNK,
                                           .name = "scenario",
                                           .assume_clean = true,
                                           .set_uuid = {1},
                                           .now = superblock_time(1700000000, 0)};
    struct error error;

    cluster_begin(&s->cluster, 1, members, MIB);
    for (unsigned d = 0; d < members; ++d) {
        s->cluster.disks[d].device.punch_zeroes = true;
        devices[d] =
            (struct create_device){.name = "disk", .size_bytes = MIB, .uuid = {(uint8_t)(d + 1)}};
    }
    assert_int_equal(create_plan(&options, devices, members, s->superblocks, &error), 0);
    for (unsigned d = 0; d < members; ++d) {
        uint8_t *const stable = s->cluster.disks[d].stable;

        memset(stable, 0, MIB);
        assert_true(superblock_encode(&s->superblocks[d],
                                      stable + superblock_offset_bytes(&s->superblocks[d])) <=
                    SUPERBLOCK_BYTES);
    }
    cluster_load(&s->cluster);
    s->offered = (1u << members) - 1;
    s->force = 0;
}

static void
scenario_main(void *arg)
{
    struct scenario *const s = arg;
    struct device *devices[SIM_DISKS_MAX];
    struct array_config config = {
        .devices = devices, .force = s->force, .memory_bytes = 2 * MIB, .workers = 4};
    struct error error;

    for (unsigned d = 0; d < s->cluster.disks_count; ++d)
        if (s->offered >> d & 1)
            devices[config.device_count++] = &s->cluster.disks[d].device;
    s->started = array_start(s->cluster.loop, &config, &s->array, &error);
    if (s->started < 0)
        return;
    s->story(s);
    array_destroy(s->array);
}

static void
play(struct scenario *s, void (*story)(struct scenario *s))
{
    s->story = story;
    loop_run_task(s->cluster.loop, scenario_main, s);
}

static void
client_main(void *arg)
{
    struct client *const client = arg;
    struct scenario *const s = client->scenario;

    memset(client->memory, client->fill, client->length);
    if (client->verb == ZERO)
        client->result = array_zero(s->array, client->offset, client->length, true, false, false);
    else
        client->result = array_write(s->array, client->memory, client->offset, client->length,
                                     client->verb == WRITE_FUA);
    if (--s->working == 0)
        task_wake(s->cluster.loop, s->main);
}

static void
client_add(struct scenario *s, enum verb verb, uint64_t offset, uint64_t length, uint8_t fill)
{
    struct client *const client = &s->clients[s->clients_count++];

    client->scenario = s;
    client->verb = verb;
    client->offset = offset;
    client->length = length;
    client->fill = fill;
}

/* All that were added, in one turn, in this order. */
static void
clients_run(struct scenario *s)
{
    s->working = s->clients_count;
    for (unsigned i = 0; i < s->clients_count; ++i)
        assert_non_null(task_start(s->cluster.loop, client_main, &s->clients[i]));
    s->main = task_self(s->cluster.loop);
    task_suspend(s->cluster.loop);
    for (unsigned i = 0; i < s->clients_count; ++i)
        assert_int_equal(s->clients[i].result, 0);
    s->clients_count = 0;
}

static void
write_one(struct scenario *s, uint64_t offset, uint64_t length, uint8_t fill)
{
    client_add(s, WRITE, offset, length, fill);
    clients_run(s);
}

static void
expect(struct scenario *s, uint64_t offset, uint64_t length, uint8_t fill)
{
    const uint64_t begin = round_down(offset, BLOCK_BYTES);
    const uint64_t end = round_up(offset + length, BLOCK_BYTES);

    assert_int_equal(array_read(s->array, s->memory, begin, end - begin), 0);
    for (uint64_t at = offset; at < offset + length; ++at)
        assert_int_equal(s->memory[at - begin], fill);
}

static void
power_cut(struct scenario *s, enum sim_tear tear)
{
    image_build(&s->cluster, &s->image, s->cluster.moment, tear, &s->random);
    image_adopt(&s->cluster, &s->image);
}

/* --- A partial write and a whole one in a batch ---------------------------------------------- */

/*
 * The whole write means that the block need not be read. The partial one before it was then put
 * together with an old block that was not there.
 */
static void
partial_then_whole(struct scenario *s)
{
    write_one(s, 0, 8 * KIB, 1); /* the next ones need not wait for the superblocks */
    client_add(s, WRITE, 512, 512, 2);
    client_add(s, WRITE, 0, 4 * KIB, 3);
    clients_run(s);
    expect(s, 0, 4 * KIB, 3);
    expect(s, 4 * KIB, 4 * KIB, 1);
}

static void
partial_write_before_a_whole_one_in_its_batch(void **state)
{
    struct scenario *const s = *state;

    make(s, 5, 4);
    play(s, partial_then_whole);
}

/* --- A write with FUA and a punch in a batch -------------------------------------------------- */

static void
fua_then_punch(struct scenario *s)
{
    client_add(s, WRITE_FUA, 0, 4 * KIB, 1);
    clients_run(s);
    client_add(s, WRITE_FUA, 0, 4 * KIB, 2);
    client_add(s, ZERO, 0, 12 * KIB, 0); /* the whole row */
    clients_run(s);
}

static void
read_after_fua_and_punch(struct scenario *s)
{
    assert_int_equal(array_read(s->array, s->memory, 0, BLOCK_BYTES), 0);
    /* 2 or 0, for these came together, but never what the write with FUA replaced. */
    assert_int_not_equal(s->memory[0], 1);
}

/*
 * The punch replaces the write, which therefore is not written; the punch has no FUA. The write was
 * acknowledged all the same, and after the cut there was what had been before it.
 */
static void
write_with_fua_is_durable_although_a_punch_replaced_it(void **state)
{
    struct scenario *const s = *state;

    make(s, 5, 4);
    play(s, fua_then_punch);
    power_cut(s, TEAR_NONE);
    play(s, read_after_fua_and_punch);
    assert_int_equal(s->started, 0);
}

/* --- A refused punch and a block to be mended ------------------------------------------------- */

/*
 * The partial write needs the old content of a block that cannot be read, so it is reconstructed.
 * In the same batch a disk refuses to punch. That the block has been written anew was then
 * forgotten, and it was mended with its old content.
 */
static void
mend_beside_refused_punch(struct scenario *s)
{
    struct sim_disk *const first = &s->cluster.disks[0];

    write_one(s, 0, 24 * KIB, 1);
    disk_make_bad(first, 0, BAD_LATENT); /* member 0, row 0: array offset 0 */
    for (unsigned d = 0; d < s->cluster.disks_count; ++d)
        s->cluster.disks[d].faults.punch_refused = true;
    client_add(s, WRITE, 512, 512, 2);
    client_add(s, ZERO, 12 * KIB, 12 * KIB, 0); /* row 1 */
    clients_run(s);
    expect(s, 512, 512, 2);
    expect(s, 1024, 3 * KIB, 1);
    expect(s, 12 * KIB, 12 * KIB, 0);
    assert_true(s->cluster.counts[COUNT_LATENT_ERRORS] > 0);
    assert_true(s->cluster.counts[COUNT_PUNCH_REFUSALS] > 0);
}

static void
refused_punch_does_not_bring_back_an_old_block(void **state)
{
    struct scenario *const s = *state;

    make(s, 5, 4);
    play(s, mend_beside_refused_punch);
}

/* --- A forced start of a RAID-6 with parity to spare ------------------------------------------ */

static void
write_everything(struct scenario *s)
{
    write_one(s, 0, 32 * KIB, 1);
    assert_int_equal(array_flush(s->array), 0);
}

static void
write_small_and_settle(struct scenario *s)
{
    write_one(s, 512, 512, 2); /* a delta would do */
    assert_true(array_resync_wait(s->array));
    assert_int_equal(array_stop(s->array), 0);
}

static void
read_small(struct scenario *s)
{
    expect(s, 512, 512, 2);
    expect(s, 1024, 31 * KIB, 1);
}

/*
 * The array was cut off while active: P and Q of a stripe disagree. It is started by force without
 * member 3. A delta keeps P and Q as far apart as they were. When member 0 is lost as well, it
 * takes both to bring back the two, and what was written and flushed since is garbage.
 */
static void
forced_raid6_survives_a_second_loss(void **state)
{
    struct scenario *const s = *state;

    make(s, 6, 6);
    play(s, write_everything);
    power_cut(s, TEAR_ALL);
    /* Row 0 of layout 2: P is on member 5, Q on member 0, data on 1 to 4. */
    s->cluster.disks[0].stable[100] ^= 0xff;
    cluster_load(&s->cluster);
    s->offered &= ~(1u << 3);
    play(s, write_small_and_settle);
    assert_int_equal(s->started, -EUCLEAN);
    s->force = FORCE_DIRTY_DEGRADED;
    play(s, write_small_and_settle);
    assert_int_equal(s->started, 0);
    power_cut(s, TEAR_NONE);
    s->force = 0;
    s->offered &= ~(1u << 1);
    play(s, read_small);
    assert_int_equal(s->started, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(partial_write_before_a_whole_one_in_its_batch, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(write_with_fua_is_durable_although_a_punch_replaced_it,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(refused_punch_does_not_bring_back_an_old_block, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(forced_raid6_survives_a_second_loss, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
