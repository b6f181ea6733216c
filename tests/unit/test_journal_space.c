/*
 * test_journal_space.c: what may be asked of a log is there when the log is empty.
 *
 * A request that can never be granted waits for ever, and with it everybody behind it.
 */
#include "device/device.h"
#include "journal/journal.h"

#include <stdlib.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

struct shape {
    struct loop *loop;
    struct device device;
    unsigned members, parities;
    uint64_t ring_blocks;
};

static void
failed(void *owner, int error, const char *operation)
{
}

static task_fn int
nothing(void *owner)
{
    return 0;
}

static task_fn int
no_tail(void *owner, uint64_t tail_bytes)
{
    return 0;
}

static void
reserve_most(void *arg)
{
    struct shape *const shape = arg;
    const struct journal_config config = {
        .loop = shape->loop,
        .device = &shape->device,
        .geometry = {.ring_bytes = shape->ring_blocks * BLOCK_BYTES,
                     .parity_count = shape->parities},
        .members = shape->members,
        .head = BLOCK_BYTES,
        .seq = 2,
        .flush_members = nothing,
        .record_tail = no_tail,
        .failed = failed,
    };
    const uint64_t data = shape->members - shape->parities;
    struct journal_status status;
    struct journal *journal;
    struct error error;
    uint64_t most, stripes;

    if (journal_create(&config, &journal, &error) < 0)
        fail_msg("%s", error.text);
    most = journal_reserve_max(journal);
    assert_true(journal_need(journal, 1, data, shape->parities) <= most);
    assert_int_equal(journal_reserve(journal, most), 0);
    journal_unreserve(journal, most);
    /* And what whole stripes take, as many as may be. */
    for (stripes = 1;
         journal_need(journal, stripes, stripes * data, stripes * shape->parities) <= most;)
        stripes++;
    stripes--;
    most = journal_need(journal, stripes, stripes * data, stripes * shape->parities);
    assert_int_equal(journal_reserve(journal, most), 0);
    journal_unreserve(journal, most);
    journal_status(journal, &status);
    assert_int_equal(status.waits, 0);
    journal_destroy(journal);
}

static void
an_empty_log_has_room_for_what_may_be_asked(void **state)
{
    static const uint64_t rings[] = {0, 1, 100, 1024, 20000, 1u << 20};
    struct shape shape = {.device = {.name = "journal"}};
    struct error error;

    alarm(120); /* instead of waiting for ever */
    if (loop_create(&(struct loop_config){.tasks = 8}, &shape.loop, &error) < 0)
        fail_msg("%s", error.text);
    shape.device.loop = shape.loop;
    for (shape.parities = 1; shape.parities <= 2; shape.parities++)
        for (shape.members = 2 * shape.parities; shape.members <= JOURNAL_MEMBERS_MAX;
             shape.members++)
            for (unsigned r = 0; r < ARRAY_LEN(rings); r++) {
                shape.ring_blocks = max_u64(shape.members + 4 + (rings[r] & 1), rings[r]);
                loop_run_task(shape.loop, reserve_most, &shape);
            }
    loop_destroy(shape.loop);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_log_has_room_for_what_may_be_asked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
