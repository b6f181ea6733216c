/*
 * records.c: which block of the log is the last word for which place. See records.h.
 */
#include "journal/records.h"

#include <stdlib.h>

#define SORT_SMALL 16u /* so few are sorted by insertion */

int
records_init(struct journal_records *records, const struct geometry *geometry,
             const struct journal_geometry *journal, uint64_t tail_bytes, size_t capacity)
{
    assert(capacity > 0);
    assert(journal->ring_bytes / BLOCK_BYTES <= UINT32_MAX);
    *records = (struct journal_records){
        .geometry = geometry,
        .journal = journal,
        .tail_bytes = tail_bytes,
        .capacity = capacity,
    };
    records->all = malloc(capacity * sizeof *records->all);
    return records->all == NULL ? -ENOMEM : 0;
}

void
records_fini(struct journal_records *records)
{
    free(records->all);
    records->all = NULL;
}

bool
records_room(const struct journal_records *records, uint32_t blocks)
{
    return blocks <= records->capacity - records->count;
}

/* --- Noting ---------------------------------------------------------------------------------- */

static void
record_add(struct journal_records *records, uint64_t stripe, unsigned member, uint32_t distance,
           uint32_t checksum)
{
    assert(records->count < records->capacity);
    records->all[records->count++] = (struct journal_record){
        .place = record_place(stripe, member, false),
        .distance = distance,
        .checksum = checksum,
    };
}

static void
payload_add(struct journal_records *records, const struct journal_payload *payload,
            uint32_t distance)
{
    const struct geometry *geometry = records->geometry;

    if (payload->type == JOURNAL_DATA) {
        struct place place;

        geometry_map(geometry, payload->location_bytes, &place);
        record_add(records, place.member_offset / BLOCK_BYTES, place.member, distance,
                   payload->checksums[0]);
    } else if (payload->type == JOURNAL_PARITY) {
        const uint64_t stripe = payload->location_bytes / BLOCK_BYTES;
        struct row row;

        geometry_row(geometry, geometry_row_at(geometry, payload->location_bytes), &row);
        record_add(records, stripe, row.p, distance, payload->checksums[0]);
        if (payload->block_count == 2)
            record_add(records, stripe, row.q, distance + 1, payload->checksums[1]);
    }
    /* R3: FLUSH means nothing. */
}

void
records_add_entry(struct journal_records *records, const uint8_t meta[BLOCK_BYTES],
                  const struct journal_entry *entry)
{
    const uint64_t from =
        journal_ring_distance(records->journal, records->tail_bytes, entry->position_bytes);
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_cursor_init(&cursor, meta, records->journal, entry);
    while (journal_cursor_next(&cursor, &payload))
        payload_add(records, &payload, (uint32_t)(from / BLOCK_BYTES) + 1 + payload.block_first);
}

/* --- Deciding -------------------------------------------------------------------------------- */

/* A stripe's records in the order of the log. (The mark of an open cycle from an earlier decision
 * is below the stripe and does not matter.) No two are equal. */
static inline bool
history_before(const struct journal_record *x, const struct journal_record *y)
{
    if (record_stripe(x) != record_stripe(y))
        return record_stripe(x) < record_stripe(y);
    return x->distance < y->distance;
}

static void
record_swap(struct journal_record *x, struct journal_record *y)
{
    const struct journal_record moving = *x;

    *x = *y;
    *y = moving;
}

static void
heap_sift(struct journal_record *all, size_t at, size_t count)
{
    const struct journal_record moving = all[at];

    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && history_before(&all[child], &all[child + 1]))
            ++child;
        if (!history_before(&moving, &all[child]))
            break;
        all[at] = all[child];
    }
    all[at] = moving;
}

static void
heap_sort(struct journal_record *all, size_t count)
{
    for (size_t at = count / 2; at-- > 0;)
        heap_sift(all, at, count);
    for (size_t end = count; end-- > 1;) {
        record_swap(&all[0], &all[end]);
        heap_sift(all, 0, end);
    }
}

static void
insertion_sort(struct journal_record *all, size_t count)
{
    for (size_t i = 1; i < count; ++i) {
        const struct journal_record moving = all[i];
        size_t at = i;

        for (; at > 0 && history_before(&moving, &all[at - 1]); --at)
            all[at] = all[at - 1];
        all[at] = moving;
    }
}

/* Puts those before the pivot, the middle one of three, in front; returns where it stands then. */
static size_t
partition(struct journal_record *all, size_t count)
{
    struct journal_record *const middle = &all[count / 2], *const last = &all[count - 1];
    size_t kept = 0;

    if (history_before(middle, &all[0]))
        record_swap(middle, &all[0]);
    if (history_before(last, &all[0]))
        record_swap(last, &all[0]);
    if (history_before(middle, last))
        record_swap(middle, last);
    for (size_t i = 0; i + 1 < count; ++i)
        if (history_before(&all[i], last))
            record_swap(&all[i], &all[kept++]);
    record_swap(last, &all[kept]);
    return kept;
}

/* In place, since the records are all the memory there is, and in n log n steps whatever the log
 * holds: a quicksort that gives way to a heap sort when it has been deep for long. */
static void
history_sort(struct journal_record *all, size_t count, unsigned depth)
{
    while (count > SORT_SMALL) {
        size_t at;

        if (depth-- == 0) {
            heap_sort(all, count);
            return;
        }
        at = partition(all, count);
        history_sort(all, at, depth);
        all += at + 1;
        count -= at + 1;
    }
    insertion_sort(all, count);
}

static unsigned
sort_depth(size_t count)
{
    return count == 0 ? 0 : 2 * (unsigned)(64 - __builtin_clzll(count));
}

/* One stripe's copies that count so far, by member. distance 0 (a meta block's) says: none. */
struct cycles {
    struct journal_record complete[MEMBERS_MAX], open[MEMBERS_MAX];
    unsigned open_count;
    bool parity_counts; /* the last P completed a cycle, so the Q beside it counts too */
};

static void
cycles_complete(struct cycles *cycles, const struct journal_record *p, unsigned members)
{
    for (unsigned m = 0; m < members; ++m)
        if (cycles->open[m].distance != 0) {
            cycles->complete[m] = cycles->open[m];
            cycles->open[m].distance = 0;
        }
    cycles->open_count = 0;
    cycles->complete[record_member(p)] = *p;
}

static void
cycles_step(struct cycles *cycles, const struct journal_record *record, const struct row *row,
            unsigned members)
{
    const unsigned m = record_member(record);

    if (m == row->p) {
        cycles->parity_counts = cycles->open_count > 0; /* R3 */
        if (cycles->parity_counts)
            cycles_complete(cycles, record, members); /* R2 */
    } else if (m == row->q) {
        if (cycles->parity_counts)
            cycles->complete[m] = *record;
    } else {
        cycles->open_count += cycles->open[m].distance == 0;
        cycles->open[m] = *record;
        cycles->open[m].place &= ~UINT64_C(1); /* an earlier decision's mark */
    }
}

/* Puts what counts of the stripe at *target on, sorted by place, and empties the cycles. */
static size_t
cycles_emit(struct journal_records *records, struct cycles *cycles, struct journal_record *target)
{
    size_t complete = 0, open = 0;

    for (unsigned m = 0; m < records->geometry->members; ++m) {
        if (cycles->complete[m].distance != 0) {
            target[complete + open] = cycles->complete[m];
            ++complete;
        }
        if (cycles->open[m].distance != 0) {
            target[complete + open] = cycles->open[m];
            target[complete + open].place |= 1; /* R1 */
            ++open;
        }
        cycles->complete[m].distance = cycles->open[m].distance = 0;
    }
    cycles->open_count = 0;
    records->replay_blocks += complete;
    records->open_blocks += open;
    records->data_parity_stripes += complete > 0;
    records->data_only_stripes += open > 0;
    return complete + open;
}

void
records_decide(struct journal_records *records)
{
    const struct geometry *geometry = records->geometry;
    struct cycles cycles = {.open_count = 0};
    size_t kept = 0;

    records->data_parity_stripes = records->data_only_stripes = 0;
    records->replay_blocks = records->open_blocks = 0;
    history_sort(records->all, records->count, sort_depth(records->count));
    for (size_t i = 0; i < records->count;) {
        const uint64_t stripe = record_stripe(&records->all[i]);
        struct row row;

        geometry_row(geometry, geometry_row_at(geometry, stripe * BLOCK_BYTES), &row);
        for (; i < records->count && record_stripe(&records->all[i]) == stripe; ++i)
            cycles_step(&cycles, &records->all[i], &row, geometry->members);
        /* There are never more than there were: what is overwritten has been looked at. */
        kept += cycles_emit(records, &cycles, &records->all[kept]);
        assert(kept <= i);
    }
    records->count = kept;
}

void
records_forget_complete(struct journal_records *records)
{
    size_t kept = 0;

    for (size_t i = 0; i < records->count; ++i)
        if (record_open(&records->all[i]))
            records->all[kept++] = records->all[i];
    records->count = kept;
}

size_t
records_find(const struct journal_records *records, uint64_t place)
{
    size_t low = 0, high = records->count;

    while (low < high) {
        const size_t middle = low + (high - low) / 2;

        if (records->all[middle].place < place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint64_t
records_position(const struct journal_records *records, const struct journal_record *record)
{
    return journal_ring_add(records->journal, records->tail_bytes,
                            (uint64_t)record->distance * BLOCK_BYTES);
}
