/*
 * test_journal_records.c: the recovery decision, against the model of records_model.h.
 *
 * Every short log over a small alphabet is tried: each step in an entry of its own, all of them in
 * one; decided once at the end, again and again on the way, and with what is complete forgotten
 * after each of the steps.
 */
#include "journal/records.h"
#include "records_model.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define RING       (256 * KIB)
#define BLOCKS_MAX 60u
#define SEED       0x1234u

enum step_kind { DATA_A, DATA_B, PARITY, FLUSH, STEP_KINDS };

struct step {
    enum step_kind kind;
    uint64_t stripe; /* member offset / 4096 */
};

struct world {
    struct geometry geometry;
    struct journal_geometry journal;
    struct journal_records records;
    struct model_block blocks[BLOCKS_MAX];
    struct model model;
    uint64_t tail, head, seq;
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    uint64_t entry_at;
};

static void
world_init(struct world *w, int level, size_t capacity)
{
    const struct geometry_config config = {
        .level = level, .layout = 2, .members = 5, .chunk_bytes = 64 * KIB, .size_bytes = 16 * MIB};

    memset(w, 0, sizeof *w);
    assert_int_equal(geometry_init(&w->geometry, &config), 0);
    w->journal = (struct journal_geometry){.ring_bytes = RING,
                                           .array_bytes = w->geometry.array_bytes,
                                           .component_bytes = w->geometry.member_bytes,
                                           .parity_count = w->geometry.parities,
                                           .checksum_seed = SEED};
    w->tail = RING - 3 * BLOCK_BYTES; /* the ring's end lies inside every log */
    assert_int_equal(records_init(&w->records, &w->geometry, &w->journal, w->tail, capacity), 0);
}

static void
log_begin(struct world *w)
{
    w->records.count = 0;
    w->model = (struct model){.blocks = w->blocks};
    w->head = w->tail;
    w->seq = 77;
}

/* ---- Writing a log ---- */

static void
entry_begin(struct world *w)
{
    w->entry_at = w->head;
    journal_writer_init(&w->writer, w->meta, w->seq++, w->entry_at);
}

static void
entry_end(struct world *w)
{
    struct journal_entry entry;
    struct format_error why = {""};

    journal_writer_finish(&w->writer, SEED);
    if (journal_entry_decode(w->meta, w->entry_at, &w->journal, &entry, &why) < 0)
        fail_msg("%s", why.text);
    assert_true(records_room(&w->records, entry.block_count));
    records_add_entry(&w->records, w->meta, &entry);
    w->head = journal_entry_next(&entry, &w->journal);
}

static uint32_t
block_note(struct world *w, const struct step *step, unsigned number, unsigned member, bool is_data,
           bool is_p)
{
    struct model_block *block = &w->blocks[w->model.count];

    assert_true(w->model.count < BLOCKS_MAX);
    *block = (struct model_block){.stripe = step->stripe,
                                  .member = member,
                                  .is_data = is_data,
                                  .is_p = is_p,
                                  .checksum = 0xc0de0000u + w->model.count,
                                  .step = number};
    block->position = journal_ring_add(&w->journal, w->entry_at,
                                       (1 + (uint64_t)w->writer.block_count) * BLOCK_BYTES);
    w->model.count++;
    return block->checksum;
}

static void
step_add(struct world *w, const struct step *step, unsigned number)
{
    const uint64_t offset = step->stripe * BLOCK_BYTES;
    struct row row;

    geometry_row(&w->geometry, geometry_row_at(&w->geometry, offset), &row);
    if (step->kind == DATA_A || step->kind == DATA_B) {
        const unsigned member =
            geometry_data_member(&w->geometry, &row, step->kind == DATA_A ? 0 : 2);
        uint64_t array_offset;

        assert_true(geometry_unmap(&w->geometry, member, offset, &array_offset));
        journal_writer_add_data(&w->writer, array_offset,
                                block_note(w, step, number, member, true, false));
    } else if (step->kind == PARITY) {
        uint32_t checksums[2];

        checksums[0] = block_note(w, step, number, row.p, false, true);
        if (w->geometry.parities == 2) {
            checksums[1] = block_note(w, step, number, row.q, false, false);
            w->blocks[w->model.count - 1].position =
                journal_ring_add(&w->journal, w->blocks[w->model.count - 2].position, BLOCK_BYTES);
        }
        journal_writer_add_parity(&w->writer, offset, w->geometry.parities, checksums);
    } else {
        /* FLUSH, as Linux writes it: nobody here does. */
        uint8_t *at = w->meta + w->writer.at_bytes;

        store_le16(at, JOURNAL_FLUSH);
        store_le16(at + 2, 0);
        store_le32(at + 4, 8);
        store_le64(at + 8, offset / SECTOR_BYTES);
        w->writer.at_bytes += 16;
    }
}

enum how { ONE_ENTRY, ONE_DECISION, MANY_DECISIONS, FORGETTING, HOWS };

/* The log, and its decision. FORGETTING: what is complete before step `forgotten`. */
static void
log_decide(struct world *w, const struct step *steps, unsigned count, enum how how,
           unsigned forgotten)
{
    log_begin(w);
    if (how == ONE_ENTRY)
        entry_begin(w);
    for (unsigned i = 0; i < count; i++) {
        if (how == FORGETTING && i == forgotten) {
            records_decide(&w->records);
            records_forget_complete(&w->records);
            w->model.forgotten = i;
        }
        if (how != ONE_ENTRY)
            entry_begin(w);
        step_add(w, &steps[i], i);
        if (how != ONE_ENTRY)
            entry_end(w);
        if (how == MANY_DECISIONS)
            records_decide(&w->records);
    }
    if (how == ONE_ENTRY)
        entry_end(w);
    records_decide(&w->records);
}

/* Each record of the decision is one of the model, and the other way round. */
static void
expect_model(const struct world *w, const uint64_t *stripes, unsigned stripes_count)
{
    const struct journal_records *records = &w->records;
    uint64_t wanted = 0, replay = 0, open = 0, data_only = 0, data_parity = 0;

    for (unsigned s = 0; s < stripes_count; s++) {
        unsigned of_stripe[2] = {0, 0};

        for (unsigned m = 0; m < w->geometry.members; m++)
            for (unsigned o = 0; o < 2; o++) {
                const struct model_block *block = model_find(&w->model, stripes[s], m, o);
                const uint64_t place = record_place(stripes[s], m, o);
                const size_t at = records_find(records, place);
                const bool there = at < records->count && records->all[at].place == place;

                if (there != (block != NULL))
                    fail_msg("stripe %d member %u open %u: %s", (int)stripes[s], m, o,
                             there ? "too much" : "missing");
                if (!there)
                    continue;
                assert_int_equal(records->all[at].checksum, block->checksum);
                assert_int_equal(records_position(records, &records->all[at]), block->position);
                assert_int_equal(record_stripe(&records->all[at]), stripes[s]);
                assert_int_equal(record_member(&records->all[at]), m);
                assert_int_equal(record_open(&records->all[at]), o);
                of_stripe[o]++;
                wanted++;
            }
        replay += of_stripe[0];
        open += of_stripe[1];
        data_parity += of_stripe[0] > 0;
        data_only += of_stripe[1] > 0;
        /* Parity goes with data: never one without the other. */
        assert_true(of_stripe[0] == 0 || of_stripe[0] > w->geometry.parities);
    }
    assert_int_equal(records->count, wanted);
    assert_int_equal(records->replay_blocks, replay);
    assert_int_equal(records->open_blocks, open);
    assert_int_equal(records->data_parity_stripes, data_parity);
    assert_int_equal(records->data_only_stripes, data_only);
    for (size_t i = 1; i < records->count; i++)
        assert_true(records->all[i - 1].place < records->all[i].place);
}

/* ---- Every short log ---- */

static void
try_all(int level, unsigned stripes_count, unsigned length)
{
    static const uint64_t stripes[] = {5, 16 * 3 + 1}; /* of rows with other parity */
    const unsigned symbols = STEP_KINDS * stripes_count;
    struct world *w = malloc(sizeof *w);
    struct step steps[8];
    uint64_t logs = 1;

    assert_non_null(w);
    assert_true(length <= ARRAY_LEN(steps));
    world_init(w, level, 64);
    for (unsigned n = 0; n <= length; n++, logs *= symbols)
        for (uint64_t number = 0; number < logs; number++) {
            uint64_t left = number;

            for (unsigned i = 0; i < n; i++, left /= symbols)
                steps[i] = (struct step){.kind = (enum step_kind)(left % symbols % STEP_KINDS),
                                         .stripe = stripes[left % symbols / STEP_KINDS]};
            for (unsigned how = 0; how < HOWS; how++) {
                log_decide(w, steps, n, (enum how)how, n > 0 ? (unsigned)(number % n) : 0);
                expect_model(w, stripes, stripes_count);
            }
        }
    records_fini(&w->records);
    free(w);
}

static void
every_log_of_eight_steps_over_one_stripe_is_decided_as_the_model_says(void **state)
{
    try_all(5, 1, 8);
    try_all(6, 1, 8);
}

static void
every_log_of_five_steps_over_two_stripes_is_decided_as_the_model_says(void **state)
{
    try_all(4, 2, 5);
    try_all(6, 2, 5);
}

/* ---- Longer ones ---- */

static uint64_t
random_next(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return *random >> 33;
}

static void
long_logs_over_many_stripes_are_decided_as_the_model_says(void **state)
{
    static const uint64_t stripes[] = {0, 63, 64, 127, 128, 200, 1000, 4000};
    struct world *w = malloc(sizeof *w);
    uint64_t random = 1;

    assert_non_null(w);
    for (unsigned round = 0; round < 2000; round++) {
        struct step steps[24];

        for (unsigned i = 0; i < ARRAY_LEN(steps); i++)
            steps[i] = (struct step){.kind = (enum step_kind)(random_next(&random) % STEP_KINDS),
                                     .stripe = stripes[random_next(&random) % ARRAY_LEN(stripes)]};
        world_init(w, round % 2 ? 6 : 5, 64);
        for (unsigned how = 0; how < HOWS; how++) {
            log_decide(w, steps, ARRAY_LEN(steps), (enum how)how, round % ARRAY_LEN(steps));
            expect_model(w, stripes, ARRAY_LEN(stripes));
        }
        records_fini(&w->records);
    }
    free(w);
}

/* R4: a stripe that is written again and again never takes more than its places. */
static void
decisions_on_the_way_bound_the_memory(void **state)
{
    static const uint64_t stripes[] = {5};
    const struct step steps[] = {{DATA_A, 5}, {DATA_B, 5}, {PARITY, 5}, {DATA_A, 5},
                                 {DATA_B, 5}, {PARITY, 5}, {DATA_B, 5}, {PARITY, 5},
                                 {DATA_A, 5}, {PARITY, 5}, {DATA_A, 5}, {DATA_B, 5}};
    struct world *w = malloc(sizeof *w);

    assert_non_null(w);
    world_init(w, 6, 8); /* two data blocks, P and Q; both data blocks again; a new P and Q */
    log_decide(w, steps, ARRAY_LEN(steps), MANY_DECISIONS, 0);
    expect_model(w, stripes, 1);
    assert_int_equal(w->records.count, 6);
    assert_false(records_room(&w->records, 3));
    assert_true(records_room(&w->records, 2));
    records_forget_complete(&w->records);
    assert_int_equal(w->records.count, 2);
    assert_true(records_room(&w->records, 6));
    assert_false(records_room(&w->records, 7));
    records_fini(&w->records);
    free(w);
}

/* An empty log, and one of empty entries. */
static void
nothing_comes_to_nothing(void **state)
{
    struct world *w = malloc(sizeof *w);

    assert_non_null(w);
    world_init(w, 5, 4);
    records_decide(&w->records);
    assert_int_equal(w->records.count, 0);
    assert_int_equal(records_find(&w->records, 0), 0);
    log_begin(w);
    for (unsigned i = 0; i < 5; i++) {
        entry_begin(w);
        entry_end(w);
    }
    records_decide(&w->records);
    expect_model(w, NULL, 0);
    records_fini(&w->records);
    free(w);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_log_of_eight_steps_over_one_stripe_is_decided_as_the_model_says),
        cmocka_unit_test(every_log_of_five_steps_over_two_stripes_is_decided_as_the_model_says),
        cmocka_unit_test(long_logs_over_many_stripes_are_decided_as_the_model_says),
        cmocka_unit_test(decisions_on_the_way_bound_the_memory),
        cmocka_unit_test(nothing_comes_to_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
