/* sim_judge.c: see sim_judge.h. */
#include "sim_judge.h"
#include "parity/parity.h"
#include "sim_report.h"
#include <stdlib.h>

#define CHUNK_MAX (64 * KIB)

static void *
grow(void *memory, uint64_t bytes)
{
    memory = realloc(memory, bytes);
    if (memory == NULL)
        sim_fail("no memory for the judge");
    return memory;
}

void
judge_create(struct judge *judge, struct sim_cluster *cluster, struct model *model)
{
    memset(judge, 0, sizeof *judge);
    judge->cluster = cluster;
    judge->model = model;
    for (unsigned i = 0; i < 2; ++i) {
        judge->recovered[i] = aligned_alloc(BLOCK_BYTES, CHUNK_MAX);
        if (judge->recovered[i] == NULL)
            sim_fail("no memory for the judge");
    }
}

void
judge_destroy(struct judge *judge)
{
    free(judge->bad);
    free(judge->open);
    free(judge->healed);
    free(judge->values);
    free(judge->recovered[0]);
    free(judge->recovered[1]);
    image_fini(&judge->undo);
}

void
judge_begin(struct judge *judge, const struct geometry *geometry, uint64_t data_offset,
            uint32_t minor)
{
    const uint64_t sectors = geometry->array_bytes / SECTOR_BYTES;

    assert(geometry->chunk_bytes <= CHUNK_MAX);
    judge->geometry = *geometry;
    judge->data_offset = data_offset;
    judge->minor = minor;
    judge->stripes = geometry->member_bytes / BLOCK_BYTES;
    if (judge->stripes > judge->stripes_capacity) {
        judge->bad = grow(judge->bad, judge->stripes);
        judge->open = grow(judge->open, judge->stripes);
        judge->healed = grow(judge->healed, judge->stripes);
        judge->stripes_capacity = judge->stripes;
    }
    if (sectors > judge->sectors_capacity) {
        judge->values = grow(judge->values, sectors * sizeof *judge->values);
        judge->sectors_capacity = sectors;
    }
    memset(judge->bad, 0, judge->stripes);
    model_begin(judge->model, sectors);
}

/* --- Rows ----------------------------------------------------------------------------------- */

/* One row's chunks, wherever they are: in the order of the row's data. */
struct view {
    struct row row;
    unsigned members[SIM_DISKS_MAX]; /* by data index */
    void *data[SIM_DISKS_MAX];
    uint8_t exponents[SIM_DISKS_MAX];
    struct parity_stripe stripe;
};

/* chunks[] by slot. */
static void
view_row(const struct geometry *geometry, uint64_t number, uint8_t *const *chunks,
         struct view *view)
{
    geometry_row(geometry, number, &view->row);
    for (unsigned d = 0; d < geometry->data_members; ++d) {
        view->members[d] = geometry_data_member(geometry, &view->row, d);
        view->data[d] = chunks[view->members[d]];
        view->exponents[d] = (uint8_t)geometry_q_exponent(geometry, &view->row, view->members[d]);
    }
    view->stripe = (struct parity_stripe){
        .data_count = geometry->data_members,
        .data = view->data,
        .exponents = view->exponents,
        .p = chunks[view->row.p],
        .q = view->row.q == NO_MEMBER ? NULL : chunks[view->row.q],
        .bytes = geometry->chunk_bytes,
    };
}

void
judge_fill(struct judge *judge, uint64_t parity_good_bytes, const uint8_t *doubtful,
           struct sim_random *random)
{
    const struct geometry *const geometry = &judge->geometry;

    for (uint64_t r = 0; r < geometry->rows; ++r) {
        uint8_t *chunks[SIM_DISKS_MAX];
        struct view view;

        for (unsigned m = 0; m < geometry->members; ++m)
            chunks[m] =
                judge->cluster->disks[m].stable + judge->data_offset + (r << geometry->chunk_shift);
        view_row(geometry, r, chunks, &view);
        for (unsigned d = 0; d < geometry->data_members; ++d) {
            uint64_t sector = geometry_chunk_offset(geometry, r, d) / SECTOR_BYTES;

            for (uint64_t at = 0; at < geometry->chunk_bytes; at += SECTOR_BYTES)
                content_fill((uint8_t *)view.data[d] + at, sector++, VALUE_FIRST);
        }
        parity_compute(&view.stripe);
        for (uint64_t at = 0; at < geometry->chunk_bytes; at += BLOCK_BYTES) {
            const uint64_t offset = (r << geometry->chunk_shift) + at;

            if (offset < parity_good_bytes || random_percent(random, 50) ||
                (doubtful != NULL && !doubtful[offset / BLOCK_BYTES]))
                continue;
            judge->bad[offset / BLOCK_BYTES] = 1;
            *((uint8_t *)view.stripe.p + at + random_below(random, BLOCK_BYTES)) ^= 0x5a;
            if (view.stripe.q != NULL)
                *((uint8_t *)view.stripe.q + at + random_below(random, BLOCK_BYTES)) ^= 0xa5;
        }
    }
}

/* --- Superblocks ---------------------------------------------------------------------------- */

bool
judge_superblock(const struct judge *judge, unsigned disk, struct superblock *sb)
{
    const struct sim_disk *const device = &judge->cluster->disks[disk];
    uint64_t offset;

    return superblock_offset(judge->minor, device->device.size_bytes, &offset) == 0 &&
           superblock_decode(device->stable + offset, judge->minor, device->device.size_bytes, sb,
                             NULL) == 0;
}

static bool
is_journal(const struct superblock *sb)
{
    return superblock_role(sb) == SUPERBLOCK_ROLE_JOURNAL &&
           (sb->feature_map & SUPERBLOCK_FEATURE_JOURNAL);
}

/* The most cautious word counts. */
static void
doubt(struct verdict *verdict, const struct superblock *sb)
{
    const uint64_t from = superblock_resync_offset_bytes(sb);

    if (superblock_is_clean(sb))
        return;
    verdict->resync_from = verdict->dirty ? min_u64(verdict->resync_from, from) : from;
    verdict->dirty = true;
}

/* Specification 5.1 to 5.3 and 5.5, for arrays without spares or rebuilding members. */
void
judge_decide(const struct judge *judge, unsigned offered, struct verdict *verdict)
{
    struct superblock *const sb = calloc(SIM_DISKS_MAX, sizeof *sb);
    bool valid[SIM_DISKS_MAX] = {false};
    int freshest = -1;

    *verdict = (struct verdict){.result = -ENOENT, .journal_disk = -1};
    for (unsigned s = 0; s < SIM_DISKS_MAX; ++s)
        verdict->disk_of[s] = -1;
    for (unsigned d = 0; d < judge->cluster->disks_count; ++d) {
        if (!(offered >> d & 1))
            continue;
        valid[d] = judge_superblock(judge, d, &sb[d]);
        if (valid[d] && (superblock_role_is_slot(superblock_role(&sb[d])) || is_journal(&sb[d])) &&
            (freshest < 0 || sb[d].events > sb[freshest].events))
            freshest = (int)d;
    }
    for (unsigned d = 0; freshest >= 0 && d < judge->cluster->disks_count; ++d) {
        uint16_t role;

        if (!valid[d])
            continue;
        role = sb[d].events + 1 == sb[freshest].events
                   ? superblock_role_of(&sb[freshest], sb[d].dev_number)
                   : superblock_role(&sb[d]);
        if (is_journal(&sb[d])) {
            if (sb[d].events + 1 >= sb[freshest].events && role == SUPERBLOCK_ROLE_JOURNAL &&
                (sb[freshest].feature_map & SUPERBLOCK_FEATURE_JOURNAL)) {
                verdict->journal_disk = (int)d;
                doubt(verdict, &sb[d]);
            }
            continue;
        }
        if (sb[d].events + 1 < sb[freshest].events || !superblock_role_is_slot(role)) {
            verdict->stale++;
            continue;
        }
        verdict->disk_of[role] = (int)d;
        doubt(verdict, &sb[d]);
    }
    for (unsigned s = 0; s < judge->geometry.members; ++s)
        verdict->missing += verdict->disk_of[s] < 0;
    if (freshest >= 0 && (sb[freshest].feature_map & SUPERBLOCK_FEATURE_JOURNAL) &&
        verdict->journal_disk < 0) {
        /* Only the journal knew what was unfinished. */
        verdict->dirty = true;
        verdict->resync_from = 0;
        verdict->result = -ENODEV;
    }
    if (verdict->missing > judge->geometry.parities)
        verdict->result = -ENOTCONN;
    else if (freshest >= 0 && verdict->result != -ENODEV)
        verdict->result = verdict->dirty && verdict->missing > 0 ? -EUCLEAN : 0;
    free(sb);
}

/* --- Images --------------------------------------------------------------------------------- */

static void
mark(uint8_t *stripes, uint64_t member_offset, uint64_t length)
{
    for (uint64_t s = member_offset / BLOCK_BYTES; s < (member_offset + length) / BLOCK_BYTES; ++s)
        stripes[s] = 1;
}

static void
mark_op(const struct judge *judge, const struct model_op *op, uint8_t *stripes)
{
    uint64_t at = round_down(op->first * SECTOR_BYTES, BLOCK_BYTES);
    const uint64_t end = round_up((op->first + op->count) * SECTOR_BYTES, BLOCK_BYTES);

    while (at < end) {
        struct place place;
        uint64_t length;

        geometry_map(&judge->geometry, at, &place);
        length = min_u64(place.length, end - at);
        mark(stripes, place.member_offset, length);
        at += length;
    }
}

/* K3: stripes that may be half done at the moment, and those that a write has made good by then. */
static void
find_open(struct judge *judge, const struct verdict *verdict, uint64_t moment)
{
    const struct sim_cluster *const cluster = judge->cluster;
    const uint64_t begin = judge->data_offset, end = begin + judge->geometry.member_bytes;

    memset(judge->open, 0, judge->stripes);
    memset(judge->healed, 0, judge->stripes);
    for (unsigned i = cluster->folded; i < cluster->writes_count; ++i) {
        const struct sim_write *const write = &cluster->writes[i];
        bool used = false;

        for (unsigned s = 0; s < judge->geometry.members; ++s)
            used = used || verdict->disk_of[s] == (int)write->disk;
        if (used && write_open_at(write, moment) && write->offset >= begin && write->offset < end)
            mark(judge->open, write->offset - begin, write->length);
    }
    for (uint32_t i = 0; i < judge->model->ops_count; ++i) {
        const struct model_op *const op = &judge->model->ops[i];

        if (op->begun > moment)
            continue;
        if (op->acknowledged > moment)
            mark_op(judge, op, judge->open);
        else if (op->definite && op->durable <= moment)
            mark_op(judge, op, judge->healed);
    }
}

/* V6 and V7 for each block of a data chunk. */
static void
judge_blocks(const struct judge *judge, const struct view *view, unsigned d, uint64_t moment)
{
    const struct geometry *const geometry = &judge->geometry;
    const uint64_t offset = geometry_chunk_offset(geometry, view->row.number, d);
    const uint8_t *const memory = view->data[d];

    for (uint64_t at = 0; at < geometry->chunk_bytes; at += BLOCK_BYTES) {
        const uint64_t sector = (offset + at) / SECTOR_BYTES;
        bool known = true;

        for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
            known = known && judge->values[sector + s] != VALUE_UNKNOWN;
        if (!known ||
            (judge->forgotten &&
             judge->open[((view->row.number << geometry->chunk_shift) + at) / BLOCK_BYTES]))
            continue;
        if (!model_block_whole(judge->model, memory + at, sector, moment))
            sim_fail("after a crash at moment %llu the block at sector %llu (slot %u, row %llu) is "
                     "a mixture",
                     (unsigned long long)moment, (unsigned long long)sector, view->members[d],
                     (unsigned long long)view->row.number);
        if (!model_block_ordered(judge->model, memory + at, sector, moment))
            sim_fail("after a crash at moment %llu the block at sector %llu (slot %u, row %llu) is "
                     "a mixture of old and new",
                     (unsigned long long)moment, (unsigned long long)sector, view->members[d],
                     (unsigned long long)view->row.number);
    }
}

/* Finds for each sector of a data chunk the value it has. */
static void
judge_chunk(struct judge *judge, const struct view *view, unsigned d, uint64_t moment,
            const char *how)
{
    const struct geometry *const geometry = &judge->geometry;
    const uint64_t offset = geometry_chunk_offset(geometry, view->row.number, d);

    for (uint64_t at = 0; at < geometry->chunk_bytes; at += SECTOR_BYTES) {
        const uint8_t *const memory = (const uint8_t *)view->data[d] + at;
        const uint64_t sector = (offset + at) / SECTOR_BYTES;
        uint32_t *const value = &judge->values[sector];

        if (*value == VALUE_UNKNOWN)
            continue;
        *value = model_after_crash(judge->model, memory, sector, moment);
        if (*value == VALUE_NONE) {
            char found[160], allowed[400];

            content_describe(judge->model, memory, sector, found);
            model_describe(judge->model, sector, moment, allowed);
            sim_fail("after a crash at moment %llu sector %llu (slot %u, row %llu, %s) has %s; "
                     "the model has %s",
                     (unsigned long long)moment, (unsigned long long)sector, view->members[d],
                     (unsigned long long)view->row.number, how, found, allowed);
        }
    }
    if (judge->model->journaled)
        judge_blocks(judge, view, d, moment);
}

/* The stripes of a row (as a view with everything in it) whose parity does not agree. */
static void
find_bad(struct judge *judge, const struct view *view, uint8_t *bad)
{
    const uint64_t chunk_bytes = judge->geometry.chunk_bytes;

    memset(bad, 0, chunk_bytes / BLOCK_BYTES);
    if (parity_check(&view->stripe) == 0)
        return;
    for (uint64_t at = 0; at < chunk_bytes; at += BLOCK_BYTES) {
        void *data[SIM_DISKS_MAX];
        struct parity_stripe stripe = view->stripe;

        for (unsigned d = 0; d < stripe.data_count; ++d)
            data[d] = (uint8_t *)view->data[d] + at;
        stripe.data = data;
        stripe.p = (uint8_t *)stripe.p + at;
        if (stripe.q != NULL)
            stripe.q = (uint8_t *)stripe.q + at;
        stripe.bytes = BLOCK_BYTES;
        bad[at / BLOCK_BYTES] = parity_check(&stripe) != 0;
    }
}

/* Sectors of the block at `at` in data chunk d are void. */
static void
make_void(struct judge *judge, uint64_t row, unsigned d, uint64_t at)
{
    const uint64_t first = (geometry_chunk_offset(&judge->geometry, row, d) + at) / SECTOR_BYTES;

    for (uint64_t s = first; s < first + BLOCK_SECTORS; ++s)
        judge->values[s] = VALUE_UNKNOWN;
}

static void
judge_row(struct judge *judge, const struct verdict *verdict, uint64_t number, uint64_t moment,
          bool adopt)
{
    const struct geometry *const geometry = &judge->geometry;
    const uint64_t first_stripe = (number << geometry->chunk_shift) / BLOCK_BYTES;
    uint8_t *chunks[SIM_DISKS_MAX];
    uint8_t bad[CHUNK_MAX / BLOCK_BYTES];
    unsigned lost[2], lost_count = 0;
    struct view view;

    for (unsigned m = 0; m < geometry->members; ++m)
        chunks[m] = verdict->disk_of[m] < 0
                        ? judge->recovered[lost_count++]
                        : judge->cluster->disks[verdict->disk_of[m]].stable + judge->data_offset +
                              (number << geometry->chunk_shift);
    view_row(geometry, number, chunks, &view);
    lost_count = 0;
    for (unsigned m = 0; m < geometry->members; ++m)
        if (verdict->disk_of[m] < 0) {
            const unsigned d = geometry_data_index(geometry, &view.row, m);

            lost[lost_count++] = d != NO_MEMBER    ? d
                                 : m == view.row.p ? PARITY_LOST_P
                                                   : PARITY_LOST_Q;
        }
    if (lost_count > 0)
        parity_recover(&view.stripe, lost_count, lost);
    find_bad(judge, &view, bad);
    for (uint64_t i = 0; i < geometry->chunk_bytes / BLOCK_BYTES; ++i) {
        const uint64_t stripe = first_stripe + i;
        const bool was_bad = judge->bad[stripe] && !judge->healed[stripe];
        const bool open =
            judge->open[stripe] && (!judge->model->journaled || judge->unlogged); /* K4, K5 */
        const bool hole = lost_count > 0 && verdict->dirty && (open || was_bad);
        const bool promised = lost_count > 0
                                  ? !hole && !judge->bad[stripe]
                                  : !verdict->dirty || stripe * BLOCK_BYTES < verdict->resync_from;

        if (bad[i] && promised)
            sim_fail("after a crash at moment %llu the superblocks promise good parity (%s), but "
                     "stripe %llu (row %llu) does not agree",
                     (unsigned long long)moment, verdict->dirty ? "checkpoint" : "clean",
                     (unsigned long long)stripe, (unsigned long long)number);
        if (hole || (lost_count > 0 && was_bad))
            for (unsigned l = 0; l < lost_count; ++l)
                if (lost[l] < geometry->data_members)
                    make_void(judge, number, lost[l], i * BLOCK_BYTES);
        /* K5: the array may leave to the resync what the judge's own recovery has made good. */
        const bool doubtful = judge->model->journaled && verdict->dirty &&
                              stripe * BLOCK_BYTES >= verdict->resync_from &&
                              (was_bad || (judge->unlogged && judge->open[stripe]));

        if (adopt)
            judge->bad[stripe] = lost_count > 0 ? was_bad || hole : bad[i] || doubtful;
    }
    for (unsigned d = 0; d < geometry->data_members; ++d)
        judge_chunk(judge, &view, d, moment,
                    verdict->disk_of[view.members[d]] < 0 ? "reconstructed" : "on the member");
}

void
judge_image(struct judge *judge, const struct verdict *verdict, uint64_t moment, bool adopt)
{
    const uint64_t sectors = judge->model->sectors;

    judge->cluster->counts[COUNT_CRASH_IMAGES]++;
    memset(judge->values, 0, sectors * sizeof *judge->values);
    find_open(judge, verdict, moment);
    for (uint64_t r = 0; r < judge->geometry.rows; ++r)
        judge_row(judge, verdict, r, moment, adopt);
    if (adopt)
        model_restart(judge->model, judge->values);
}

void
judge_parity(struct judge *judge, unsigned present, const char *when)
{
    const struct geometry *const geometry = &judge->geometry;

    for (uint64_t r = 0; r < geometry->rows; ++r) {
        uint8_t *chunks[SIM_DISKS_MAX];
        struct view view;

        for (unsigned m = 0; m < geometry->members; ++m) {
            assert(present >> m & 1);
            chunks[m] =
                judge->cluster->disks[m].live + judge->data_offset + (r << geometry->chunk_shift);
        }
        view_row(geometry, r, chunks, &view);
        if (parity_check(&view.stripe) != 0)
            sim_fail("%s: parity does not agree in row %llu", when, (unsigned long long)r);
    }
    memset(judge->bad, 0, judge->stripes);
}

void
judge_lost(struct judge *judge, unsigned slot)
{
    const struct geometry *const geometry = &judge->geometry;

    for (uint64_t stripe = 0; stripe < judge->stripes; ++stripe) {
        uint64_t offset;

        if (judge->bad[stripe] && geometry_unmap(geometry, slot, stripe * BLOCK_BYTES, &offset))
            model_make_void(judge->model, offset / SECTOR_BYTES, BLOCK_SECTORS);
    }
}
