/* sim_log.c: see sim_log.h. */
#include "sim_log.h"
#include "format/journal_entry.h"
#include "parity/parity.h"
#include "sim_report.h"
#include <stdlib.h>

#define NO_BLOCK     0u /* a superblock or a meta block stands in front of every block of the log */
#define STRIPES_MAX  (SIM_DISK_BYTES / BLOCK_BYTES)
#define FLUSH_TYPE   2u
#define SECTOR_COUNT (BLOCK_BYTES / SECTOR_BYTES)

/* Where on the journal's disk the copies that count stand, by member. */
struct log_stripe {
    uint64_t complete[SIM_MEMBERS_MAX], open[SIM_MEMBERS_MAX];
};

/* --- One stripe ----------------------------------------------------------------------------- */

/* The blocks of one stripe in the order of its data. */
struct stripe_view {
    struct row row;
    void *data[SIM_MEMBERS_MAX];
    uint8_t exponents[SIM_MEMBERS_MAX];
    struct parity_stripe parity;
};

static void
stripe_view(const struct geometry *geometry, uint64_t stripe,
            uint8_t blocks[SIM_MEMBERS_MAX][BLOCK_BYTES], struct stripe_view *view)
{
    geometry_row(geometry, stripe * BLOCK_BYTES >> geometry->chunk_shift, &view->row);
    for (unsigned d = 0; d < geometry->data_members; ++d) {
        const unsigned m = geometry_data_member(geometry, &view->row, d);

        view->data[d] = blocks[m];
        view->exponents[d] = (uint8_t)geometry_q_exponent(geometry, &view->row, m);
    }
    view->parity = (struct parity_stripe){
        .data_count = geometry->data_members,
        .data = view->data,
        .exponents = view->exponents,
        .p = blocks[view->row.p],
        .q = view->row.q == NO_MEMBER ? NULL : blocks[view->row.q],
        .bytes = BLOCK_BYTES,
    };
}

/* --- The judge's recovery ------------------------------------------------------------------- */

struct log_walk {
    struct judge *judge;
    const struct verdict *verdict;
    struct superblock sb;
    struct journal_geometry geometry;
    uint64_t data_offset;
    const uint8_t *disk;
    struct log_stripe stripes[STRIPES_MAX];
};

static const uint8_t *
block_of_log(const struct log_walk *walk, uint64_t at)
{
    return walk->disk + at;
}

static bool
entry_whole(const struct log_walk *walk, const uint8_t *meta, const struct journal_entry *entry)
{
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_cursor_init(&cursor, meta, &walk->geometry, entry);
    while (journal_cursor_next(&cursor, &payload))
        for (uint32_t i = 0; i < payload.block_count; ++i) {
            const uint64_t at =
                walk->data_offset + journal_payload_position(entry, &payload, &walk->geometry, i);

            if (journal_checksum(walk->geometry.checksum_seed, block_of_log(walk, at),
                                 BLOCK_BYTES) != payload.checksums[i])
                return false;
        }
    return true;
}

static void
entry_note(struct log_walk *walk, const uint8_t *meta, const struct journal_entry *entry,
           struct log_found *found)
{
    const struct geometry *const geometry = &walk->judge->geometry;
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_cursor_init(&cursor, meta, &walk->geometry, entry);
    while (journal_cursor_next(&cursor, &payload)) {
        uint64_t at[JOURNAL_PARITY_COUNT_MAX];

        for (uint32_t i = 0; i < payload.block_count; ++i)
            at[i] =
                walk->data_offset + journal_payload_position(entry, &payload, &walk->geometry, i);
        if (payload.type == JOURNAL_DATA) {
            struct place place;

            geometry_map(geometry, payload.location_bytes, &place);
            walk->stripes[place.member_offset / BLOCK_BYTES].open[place.member] = at[0];
        } else if (payload.type == JOURNAL_PARITY) {
            struct log_stripe *const stripe = &walk->stripes[payload.location_bytes / BLOCK_BYTES];
            struct row row;
            bool any = false;

            for (unsigned m = 0; m < geometry->members; ++m)
                any = any || stripe->open[m] != NO_BLOCK;
            if (!any)
                continue;
            for (unsigned m = 0; m < geometry->members; ++m)
                if (stripe->open[m] != NO_BLOCK) {
                    stripe->complete[m] = stripe->open[m];
                    stripe->open[m] = NO_BLOCK;
                }
            geometry_row(geometry, payload.location_bytes >> geometry->chunk_shift, &row);
            stripe->complete[row.p] = at[0];
            if (row.q != NO_MEMBER)
                stripe->complete[row.q] = at[1];
        } else {
            ++found->flush_payloads;
        }
    }
}

/* Returns the blocks from the tail to the end. */
static uint64_t
walk_log(struct log_walk *walk, struct log_found *found)
{
    uint64_t at = walk->sb.journal_tail_sectors * SECTOR_BYTES, seq = 0, used = 0;

    if (at >= walk->geometry.ring_bytes || at % BLOCK_BYTES != 0)
        sim_fail("L1: the journal's tail %llu is not in its ring", (unsigned long long)at);
    for (;;) {
        const uint8_t *const meta = block_of_log(walk, walk->data_offset + at);
        struct journal_entry entry;

        if (used >= walk->geometry.ring_bytes ||
            journal_entry_decode(meta, at, &walk->geometry, &entry, NULL) < 0 ||
            (found->entries > 0 && entry.seq != seq) ||
            used + (1 + (uint64_t)entry.block_count) * BLOCK_BYTES > walk->geometry.ring_bytes ||
            !entry_whole(walk, meta, &entry))
            break;
        entry_note(walk, meta, &entry, found);
        used += (1 + (uint64_t)entry.block_count) * BLOCK_BYTES;
        seq = entry.seq + 1;
        at = journal_entry_next(&entry, &walk->geometry);
        ++found->entries;
    }
    if (found->entries == 0)
        sim_fail("L1: no valid entry stands at the journal's tail, position %llu",
                 (unsigned long long)at);
    return used / BLOCK_BYTES;
}

/* Blocks that the open cycles take if they are logged again, each in an entry of its own. */
static uint64_t
blocks_again(const struct log_walk *walk)
{
    const struct geometry *const geometry = &walk->judge->geometry;
    uint64_t blocks = 0;

    for (uint64_t s = 0; s < walk->judge->stripes; ++s) {
        unsigned open = 0;

        for (unsigned m = 0; m < geometry->members; ++m)
            open += walk->stripes[s].open[m] != NO_BLOCK;
        blocks += open > 0 ? 1 + open : 0;
    }
    return blocks;
}

static void
put(struct log_walk *walk, uint64_t stripe, unsigned member, const uint8_t *content)
{
    const int disk = walk->verdict->disk_of[member];

    if (disk >= 0)
        image_write(walk->judge->cluster, &walk->judge->undo, (unsigned)disk,
                    walk->judge->data_offset + stripe * BLOCK_BYTES, content, BLOCK_BYTES);
}

/* What the members hold of a stripe, with what is missing reconstructed. */
static void
stripe_read(const struct log_walk *walk, uint64_t stripe,
            uint8_t blocks[SIM_MEMBERS_MAX][BLOCK_BYTES], struct stripe_view *view)
{
    const struct geometry *const geometry = &walk->judge->geometry;
    unsigned lost[2], lost_count = 0;

    stripe_view(geometry, stripe, blocks, view);
    for (unsigned m = 0; m < geometry->members; ++m) {
        const int disk = walk->verdict->disk_of[m];
        const unsigned d = geometry_data_index(geometry, &view->row, m);

        if (disk >= 0)
            memcpy(blocks[m],
                   walk->judge->cluster->disks[disk].stable + walk->judge->data_offset +
                       stripe * BLOCK_BYTES,
                   BLOCK_BYTES);
        else
            lost[lost_count++] = d != NO_MEMBER     ? d
                                 : m == view->row.p ? PARITY_LOST_P
                                                    : PARITY_LOST_Q;
    }
    if (lost_count > 0)
        parity_recover(&view->parity, lost_count, lost);
}

static void
stripe_recover(struct log_walk *walk, uint64_t stripe, struct log_found *found)
{
    static _Alignas(BLOCK_BYTES) uint8_t blocks[SIM_MEMBERS_MAX][BLOCK_BYTES];
    const struct geometry *const geometry = &walk->judge->geometry;
    const struct log_stripe *const log = &walk->stripes[stripe];
    bool complete = false, open = false;
    struct stripe_view view;

    for (unsigned m = 0; m < geometry->members; ++m) {
        complete = complete || log->complete[m] != NO_BLOCK;
        open = open || log->open[m] != NO_BLOCK;
        if (log->complete[m] != NO_BLOCK)
            put(walk, stripe, m, block_of_log(walk, log->complete[m]));
    }
    found->data_parity += complete;
    found->data_only += open;
    if (!open)
        return;
    stripe_read(walk, stripe, blocks, &view);
    for (unsigned m = 0; m < geometry->members; ++m)
        if (log->open[m] != NO_BLOCK) {
            memcpy(blocks[m], block_of_log(walk, log->open[m]), BLOCK_BYTES);
            put(walk, stripe, m, blocks[m]);
        }
    parity_compute(&view.parity);
    put(walk, stripe, view.row.p, blocks[view.row.p]);
    if (view.row.q != NO_MEMBER)
        put(walk, stripe, view.row.q, blocks[view.row.q]);
}

void
log_recover(struct judge *judge, const struct verdict *verdict, struct log_found *found)
{
    static struct log_walk walk; /* large */
    uint64_t used, again;

    assert(judge->stripes <= STRIPES_MAX);
    memset(found, 0, sizeof *found);
    walk.judge = judge;
    walk.verdict = verdict;
    walk.disk = judge->cluster->disks[verdict->journal_disk].stable;
    memset(walk.stripes, 0, judge->stripes * sizeof *walk.stripes);
    if (!judge_superblock(judge, (unsigned)verdict->journal_disk, &walk.sb))
        sim_fail("the journal's superblock cannot be read");
    journal_geometry_init(&walk.geometry, &walk.sb);
    walk.data_offset = superblock_data_offset_bytes(&walk.sb);
    judge->undo.count = 0;
    judge->undo.used = 0;
    used = walk_log(&walk, found);
    again = blocks_again(&walk);
    found->fits_again = used + 1 + again + 1 <= walk.geometry.ring_bytes / BLOCK_BYTES;
    for (uint64_t s = 0; s < judge->stripes; ++s)
        stripe_recover(&walk, s, found);
}

/* --- Making a log --------------------------------------------------------------------------- */

#define HOT_STRIPES  10u
#define NOTHING_OPEN 2u

struct maker {
    struct judge *judge;
    const struct log_make *make;
    struct sim_random *random;
    struct journal_geometry geometry;
    uint8_t *ring;                  /* in `stable` */
    uint64_t tail, head, seq, used; /* positions in bytes; used in blocks */

    /* The entry that is being made. */
    _Alignas(BLOCK_BYTES) uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;

    uint64_t hot[HOT_STRIPES]; /* stripes, all different */
    unsigned hot_count;
    unsigned open[HOT_STRIPES]; /* members with open data, by bits */
    bool cycled[HOT_STRIPES];
    bool tight;
    /* What the stripe is after all that was logged; and what its complete cycles come to. */
    _Alignas(BLOCK_BYTES) uint8_t now[HOT_STRIPES][SIM_MEMBERS_MAX][BLOCK_BYTES];
    _Alignas(BLOCK_BYTES) uint8_t cycle[HOT_STRIPES][SIM_MEMBERS_MAX][BLOCK_BYTES];
};

static uint64_t
ring_at(const struct maker *maker, uint64_t position, uint64_t blocks)
{
    return (position + blocks * BLOCK_BYTES) % maker->geometry.ring_bytes;
}

static void
entry_begin(struct maker *maker)
{
    journal_writer_init(&maker->writer, maker->meta, maker->seq, maker->head);
}

static void
entry_end(struct maker *maker)
{
    journal_writer_finish(&maker->writer, maker->geometry.checksum_seed);
    memcpy(maker->ring + maker->head, maker->meta, BLOCK_BYTES);
    maker->head = ring_at(maker, maker->head, 1 + (uint64_t)maker->writer.block_count);
    maker->used += 1 + maker->writer.block_count;
    ++maker->seq;
}

static void
block_put(const struct maker *maker, const uint8_t *content)
{
    memcpy(maker->ring + ring_at(maker, maker->head, 1 + (uint64_t)maker->writer.block_count),
           content, BLOCK_BYTES);
}

static void
data_add(struct maker *maker, unsigned h, unsigned member)
{
    struct judge *const judge = maker->judge;
    const uint32_t version = model_version(judge->model);
    uint8_t *const block = maker->now[h][member];
    uint64_t offset;

    if (!geometry_unmap(&judge->geometry, member, maker->hot[h] * BLOCK_BYTES, &offset))
        sim_fail("the simulator logs data for a member that holds parity");
    for (unsigned s = 0; s < SECTOR_COUNT; ++s) {
        content_fill(block + s * SECTOR_BYTES, offset / SECTOR_BYTES + s, version);
        judge->model->base[offset / SECTOR_BYTES + s] = version;
    }
    block_put(maker, block);
    journal_writer_add_data(&maker->writer, offset,
                            journal_checksum(maker->geometry.checksum_seed, block, BLOCK_BYTES));
    maker->open[h] |= 1u << member;
}

static void
parity_add(struct maker *maker, unsigned h)
{
    uint32_t checksums[JOURNAL_PARITY_COUNT_MAX];
    const uint32_t parities = maker->geometry.parity_count;
    struct stripe_view view;

    stripe_view(&maker->judge->geometry, maker->hot[h], maker->now[h], &view);
    parity_compute(&view.parity);
    for (uint32_t i = 0; i < parities; ++i) {
        const uint8_t *const block = maker->now[h][i == 0 ? view.row.p : view.row.q];

        memcpy(maker->ring +
                   ring_at(maker, maker->head, 1 + (uint64_t)maker->writer.block_count + i),
               block, BLOCK_BYTES);
        checksums[i] = journal_checksum(maker->geometry.checksum_seed, block, BLOCK_BYTES);
    }
    journal_writer_add_parity(&maker->writer, maker->hot[h] * BLOCK_BYTES, parities, checksums);
    if (maker->open[h] != 0) {
        maker->open[h] = 0;
        maker->cycled[h] = true;
        memcpy(maker->cycle[h], maker->now[h], sizeof maker->cycle[h]);
    }
}

/* Of stripes that may be on the members or not: it is for nobody to believe. */
static void
flush_add(struct maker *maker)
{
    const uint32_t stripes = (uint32_t)random_between(maker->random, 1, 4);
    uint8_t *const at = maker->writer.meta + maker->writer.at_bytes;

    at[0] = FLUSH_TYPE;
    at[4] = (uint8_t)(8 * stripes);
    for (uint32_t i = 0; i < stripes; ++i) {
        const uint64_t sector =
            maker->hot[random_below(maker->random, maker->hot_count)] * BLOCK_SECTORS;

        for (unsigned b = 0; b < 8; ++b)
            at[8 + 8 * i + b] = (uint8_t)(sector >> (8 * b));
    }
    maker->writer.at_bytes += 8 + 8 * stripes;
}

/* What has to stay free, so that any recovery finds room for data and parity of open cycles
 * (journal specification, section 8); or, as the kernel may leave it, only for the parity: then the
 * old log has to go on. */
static uint64_t
reserve(const struct maker *maker)
{
    uint64_t blocks = NOTHING_OPEN;

    for (unsigned h = 0; h < maker->hot_count; ++h) {
        const unsigned distinct = (unsigned)__builtin_popcount(maker->open[h]);

        if (distinct > 0)
            blocks += 1 + (distinct > maker->geometry.parity_count && !maker->tight
                               ? distinct
                               : maker->geometry.parity_count);
    }
    return blocks;
}

/* One step of a stripe into the entry, with at most so many blocks of data. */
static void
step_add(struct maker *maker, uint64_t most)
{
    const struct geometry *const geometry = &maker->judge->geometry;
    const unsigned h = (unsigned)random_below(maker->random, maker->hot_count);
    const uint64_t dice = random_below(maker->random, 100);
    struct row row;

    if (dice < 8) {
        flush_add(maker);
        return;
    }
    geometry_row(geometry, maker->hot[h] * BLOCK_BYTES >> geometry->chunk_shift, &row);
    if (dice < 85) {
        const uint64_t count = random_between(maker->random, 1, most);

        for (uint64_t i = 0; i < count; ++i)
            data_add(
                maker, h,
                geometry_data_member(
                    geometry, &row, (unsigned)random_below(maker->random, geometry->data_members)));
    }
    if (dice >= 55)
        parity_add(maker, h);
}

/* How many blocks of data a step may have that has so many blocks for what it adds to the log, and
 * to what must stay free. */
static uint64_t
step_data_max(const struct maker *maker, uint64_t blocks)
{
    const uint64_t parity = 2 * (uint64_t)maker->geometry.parity_count + 1;
    const uint64_t data = blocks > parity ? blocks - parity : 0;

    return min_u64(maker->tight ? data : data / 2, maker->judge->geometry.data_members);
}

static void
entries_add(struct maker *maker)
{
    const uint64_t ring = maker->make->ring_blocks;
    const uint64_t limit = maker->make->full ? ring : random_between(maker->random, 1, ring);

    while (maker->used < limit) {
        const uint64_t taken = maker->used + reserve(maker) + 1;
        uint64_t steps = random_below(maker->random, 4), most = 0; /* none: an empty entry */

        if (taken > ring)
            return;
        while (steps > 0 && (most = step_data_max(maker, (ring - taken) / steps)) == 0)
            --steps;
        if (steps == 0 && maker->make->full && random_percent(maker->random, 60))
            return;
        entry_begin(maker);
        for (uint64_t i = 0; i < steps; ++i)
            step_add(maker, most);
        entry_end(maker);
    }
}

/* An entry that was being written, perhaps with whole ones behind it, which do not count. */
static void
torn_add(struct maker *maker)
{
    const uint64_t room = maker->make->ring_blocks - maker->used;
    uint8_t page[BLOCK_BYTES];
    uint64_t offset;
    struct row row;

    if (room < 5)
        return;
    geometry_row(&maker->judge->geometry,
                 maker->hot[0] * BLOCK_BYTES >> maker->judge->geometry.chunk_shift, &row);
    if (!geometry_unmap(&maker->judge->geometry,
                        geometry_data_member(&maker->judge->geometry, &row, 0),
                        maker->hot[0] * BLOCK_BYTES, &offset))
        sim_fail("a data member holds no data");
    memset(page, 0xbd, sizeof page);
    for (unsigned i = 0; i < 2; ++i) {
        entry_begin(maker);
        block_put(maker, page);
        journal_writer_add_data(&maker->writer, offset,
                                journal_checksum(maker->geometry.checksum_seed, page, BLOCK_BYTES) ^
                                    (i == 0));
        entry_end(maker);
    }
}

/* Recovery may have begun, or the kernel its write-out: of complete cycles. */
static void
members_advance(struct maker *maker)
{
    struct judge *const judge = maker->judge;

    for (unsigned h = 0; h < maker->hot_count; ++h)
        for (unsigned m = 0; maker->cycled[h] && m < judge->geometry.members; ++m)
            for (uint64_t at = 0; at < BLOCK_BYTES; at += SECTOR_BYTES)
                if (random_percent(maker->random, 30))
                    memcpy(judge->cluster->disks[m].stable + judge->data_offset +
                               maker->hot[h] * BLOCK_BYTES + at,
                           maker->cycle[h][m] + at, SECTOR_BYTES);
}

static void
hot_choose(struct maker *maker)
{
    struct judge *const judge = maker->judge;

    maker->hot_count =
        (unsigned)min_u64(random_between(maker->random, 1, HOT_STRIPES), judge->stripes);
    for (unsigned h = 0; h < maker->hot_count; ++h) {
        bool fresh;

        do {
            maker->hot[h] = random_below(maker->random, judge->stripes);
            fresh = true;
            for (unsigned i = 0; i < h; ++i)
                fresh = fresh && maker->hot[i] != maker->hot[h];
        } while (!fresh);
        for (unsigned m = 0; m < judge->geometry.members; ++m)
            memcpy(maker->now[h][m],
                   judge->cluster->disks[m].stable + judge->data_offset +
                       maker->hot[h] * BLOCK_BYTES,
                   BLOCK_BYTES);
    }
}

/* Something that once stood there: entries of other laps, or nothing. */
static void
remains_make(struct maker *maker)
{
    const uint64_t seq = maker->seq;

    for (uint64_t b = 0; b < maker->make->ring_blocks; ++b)
        if (random_percent(maker->random, 30))
            journal_entry_encode_empty(maker->ring + b * BLOCK_BYTES,
                                       seq - random_between(maker->random, 1, 300), b * BLOCK_BYTES,
                                       maker->geometry.checksum_seed);
}

uint64_t
log_make(struct judge *judge, const struct log_make *make, const struct superblock *sb,
         struct sim_random *random)
{
    static struct maker maker; /* large */

    memset(&maker, 0, sizeof maker);
    maker.judge = judge;
    maker.make = make;
    maker.random = random;
    maker.tight = make->full && random_percent(random, 60);
    maker.ring = judge->cluster->disks[make->disk].stable + make->data_offset;
    journal_geometry_init(&maker.geometry, sb);
    if (maker.geometry.ring_bytes != make->ring_blocks * BLOCK_BYTES)
        sim_fail("the simulator made a journal of %llu bytes, not %llu blocks",
                 (unsigned long long)maker.geometry.ring_bytes,
                 (unsigned long long)make->ring_blocks);
    maker.tail = maker.head = random_below(random, make->ring_blocks) * BLOCK_BYTES;
    maker.seq = 1000 + (random_next(random) >> random_between(random, 2, 60));
    memset(maker.ring, 0, maker.geometry.ring_bytes);
    remains_make(&maker);
    if (make->foreign) {
        hot_choose(&maker);
        entries_add(&maker);
    }
    if (maker.used == 0) {
        entry_begin(&maker);
        entry_end(&maker);
    }
    /* To the last block: one entry that means nothing may have taken the one that stays free. */
    while (make->foreign && make->full && reserve(&maker) == NOTHING_OPEN &&
           maker.used < make->ring_blocks) {
        entry_begin(&maker);
        entry_end(&maker);
    }
    if (make->foreign) {
        members_advance(&maker);
        if (random_percent(random, 40))
            torn_add(&maker);
    }
    return maker.tail;
}
