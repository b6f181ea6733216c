/*
 * superblocks.c: what the members' superblocks say, and when.
 *
 * One update is: flush all members; then the superblocks of all working members with events + 1,
 * durable.
 *
 * B1. The flush separates what the members hold from what the superblocks say of it: without it a
 *     superblock could call parity good that is still in a cache and then lost.
 *
 * B2. Updates go to all working members before the next begins, so that a crash leaves them at most
 *     one apart. If they are apart at the start (a crash cut an update short) they are levelled
 *     first, else a member could fall two behind in the next update and be left out as stale.
 *
 * B3. A failure costs two updates: the failed member, whose own superblock is not touched, is then
 *     out of the window in which a member one behind is accepted. So does a start without a member.
 *
 * B4. A superblock larger than a sector may tear, and is none then, if more than its first sector
 *     changes (the table of roles does when a member is lost whose number is 128 or more). Then one
 *     is written after the other, so that a crash costs one member at most.
 *
 * B5. A journal that has failed is kept current, as far as it can be written, until all that it
 *     holds is on the members: a crash before that needs it, and a member may fail meanwhile, which
 *     costs two updates (B3). When it is struck off it falls behind for good. An update that could
 *     be written to all but the journal is not repeated: one behind it is still current (in a
 *     recovery it fails: B6).
 *
 * B6. While the log is being recovered nothing is recorded without the journal: it would be two
 *     events behind, so stale, and what only its log holds would be lost for a write that failed.
 */
#include "array/internal.h"

unsigned
array_degraded(const struct array *array)
{
    return members_degraded(array->members, array->assembly.members);
}

bool
array_beyond_parity(const struct array *array)
{
    return array_degraded(array) > array->assembly.geometry.parities;
}

/* The slot of a candidate, or NO_MEMBER. */
static unsigned
candidate_slot(const struct array *array, unsigned candidate)
{
    for (unsigned m = 0; m < array->assembly.members; ++m)
        if (array->member_candidate[m] == (int)candidate)
            return m;
    return NO_MEMBER;
}

/* Is this device's superblock ours to keep up to date? */
static bool
candidate_written(const struct array *array, unsigned candidate)
{
    const unsigned slot = candidate_slot(array, candidate);

    if (slot != NO_MEMBER)
        return array->members[slot].state != MEMBER_MISSING;
    if ((int)candidate == array->journal_candidate)
        return !array->journal_struck_off && !array->journal_unwritable; /* B5 */
    return array->fates[candidate] == FATE_SPARE;
}

/* The table of roles, from what is known: everybody else's entry is "unused". */
static void
roles_fill(const struct array *array, struct superblock *target)
{
    for (unsigned i = 0; i < target->max_dev; ++i)
        target->dev_roles[i] = SUPERBLOCK_ROLE_SPARE;
    for (unsigned c = 0; c < array->candidates_count; ++c) {
        const unsigned slot = candidate_slot(array, c);
        const uint32_t number = array->candidates[c].superblock.dev_number;

        if ((int)c == array->journal_candidate && number < target->max_dev)
            target->dev_roles[number] =
                array->journal_struck_off ? SUPERBLOCK_ROLE_FAULTY : SUPERBLOCK_ROLE_JOURNAL;
        if (slot == NO_MEMBER || number >= target->max_dev)
            continue;
        target->dev_roles[number] =
            (uint16_t)(array->members[slot].state == MEMBER_MISSING ? SUPERBLOCK_ROLE_FAULTY
                                                                    : slot);
    }
}

static void
superblock_fill(const struct array *array, struct superblock *sb, uint64_t resync_from)
{
    const uint64_t now_us = loop_wall_us(array->loop);
    const struct superblock *freshest = array->assembly.freshest;

    sb->events = array->events;
    sb->utime = superblock_time(now_us / 1000000, 0);
    /* Nobody keeps the bitmap up to date, so it must be gone with the first update (it is read at
     * the start). */
    sb->feature_map &= ~(uint32_t)(SUPERBLOCK_FEATURE_BITMAP | SUPERBLOCK_FEATURE_RECOVERY_BITMAP);
    sb->bitmap_offset_sectors = 0;
    /* Also where somebody missed the update that dropped it. */
    if (array->journal_dropped || !(freshest->feature_map & SUPERBLOCK_FEATURE_JOURNAL))
        sb->feature_map &= ~(uint32_t)SUPERBLOCK_FEATURE_JOURNAL;
    sb->resync_offset_sectors =
        resync_from == UINT64_MAX ? SUPERBLOCK_RESYNC_DONE : resync_from / SECTOR_BYTES;
    sb->max_dev = freshest->max_dev;
    roles_fill(array, sb);
}

struct update {
    struct io_group ios; /* first: the callback finds us by it */
    int *errors;         /* by candidate */
};

static void
update_failed(struct io_group *group, const struct io *io)
{
    struct update *update = container_of(group, struct update, ios);

    update->errors[io->tag] = io->result;
}

/* Writes the superblocks of candidates first ... end - 1, of those that are written, and waits. */
static task_fn void
superblocks_write_range(struct array *array, int *errors, unsigned first, unsigned end)
{
    struct update update = {.errors = errors};

    io_group_init(&update.ios, array->loop);
    update.ios.failed = update_failed;
    for (unsigned c = first; c < end; ++c) {
        const struct candidate *candidate = &array->candidates[c];
        struct io *io;

        if (!candidate_written(array, c))
            continue;
        io = io_take(&array->superblock_ios);
        io->op = IO_WRITE;
        io->fua = true;
        io->tag = c;
        io->offset = superblock_offset_bytes(&candidate->superblock);
        if (!io_add(io, array->superblock_pages + (size_t)c * SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
            assert(!"a fresh io has room");
        io_submit(io, candidate->device, &update.ios);
    }
    (void)io_wait(&update.ios); /* judged by candidate */
}

/* Marks members (and spares) whose superblock could not be written; true if there were any (the
 * journal does not count: B5). */
static bool
superblocks_judge(struct array *array, const int *errors)
{
    bool any = false;

    for (unsigned c = 0; c < array->candidates_count; ++c) {
        const unsigned slot = candidate_slot(array, c);

        if (errors[c] == 0)
            continue;
        any = any || (int)c != array->journal_candidate || array->recovering; /* B6 */
        if ((int)c == array->journal_candidate) {
            array->journal_unwritable = true;
            array_journal_failed(array, errors[c], "superblock");
        } else if (slot == NO_MEMBER) {
            array->fates[c] = FATE_FAULTY;
            array_tell(array, ARRAY_WARNING, NO_MEMBER,
                       "%s: spare left out: its superblock cannot be written: %s",
                       array->candidates[c].device->name, strerror(-errors[c]));
        } else if (array->members[slot].state != MEMBER_MISSING) {
            array_member_failed(array, slot, errors[c], "superblock");
        }
    }
    return any;
}

/* Encodes a superblock into its page; true if it differs from what was there (so: from what the
 * device has) beyond the first block that a device writes as a whole. */
static bool
superblock_renew(struct array *array, unsigned c, uint64_t resync_from)
{
    const size_t whole = array->candidates[c].device->logical_block_bytes;
    struct superblock *sb = &array->candidates[c].superblock;
    uint8_t *page = array->superblock_pages + (size_t)c * SUPERBLOCK_BYTES;
    uint8_t *before = array->superblock_pages + (size_t)array->candidates_count * SUPERBLOCK_BYTES;
    size_t used;

    memcpy(before, page, SUPERBLOCK_BYTES);
    superblock_fill(array, sb, resync_from);
    if ((int)c == array->journal_candidate)
        sb->journal_tail_sectors = array->journal_tail / SECTOR_BYTES;
    used = superblock_encode(sb, page);
    return used > whole && memcmp(page + whole, before + whole, used - whole) != 0;
}

/* Encodes and writes all superblocks with array->events. */
static task_fn bool
superblocks_write(struct array *array, uint64_t resync_from)
{
    int *const errors = array->superblock_errors;
    bool may_tear = false;

    memset(errors, 0, array->candidates_count * sizeof *errors);
    for (unsigned c = 0; c < array->candidates_count; ++c)
        if (candidate_written(array, c) && superblock_renew(array, c, resync_from))
            may_tear = true;
    if (may_tear)
        for (unsigned c = 0; c < array->candidates_count; ++c)
            superblocks_write_range(array, errors, c, c + 1); /* B4 */
    else
        superblocks_write_range(array, errors, 0, array->candidates_count);
    return !superblocks_judge(array, errors);
}

/* One update of all, repeated without those that fail in it. */
static task_fn int
update_once(struct array *array, uint64_t resync_from)
{
    for (;;) {
        uint64_t failures;

        engine_flush_members(array->engine); /* B1 */
        if (array_beyond_parity(array) || (array->recovering && array->journal_failed))
            return -EIO; /* B6 */
        if (array->uneven) {
            /* B2: the same events for all, and of parity only what the least of them said. */
            if (!superblocks_write(array, array->recorded_resync_from))
                continue;
            array->uneven = false;
        }
        ++array->events;
        failures =
            array->failures; /* what the superblocks are about to say; no suspend in between */
        if (superblocks_write(array, resync_from)) {
            array->failures_recorded = failures;
            array->recorded_resync_from = resync_from;
            ++array->updates;
            return 0;
        }
    }
}

task_fn int
superblocks_update(struct array *array, uint64_t resync_from)
{
    uint64_t recorded;
    int result;

    tokens_take(array->loop, &array->superblock_lock, 1);
    recorded = array->failures_recorded;
    /* Only with the lock: another update may have been waiting before this one. */
    if (resync_from == RESYNC_AS_RECORDED)
        resync_from = array->recorded_resync_from;
    result = update_once(array, resync_from);
    if (result == 0 && (array->failures_recorded > recorded || !array->absent_outrun)) {
        array->absent_outrun = true;
        result = update_once(array, resync_from); /* B3 */
    }
    tokens_give(array->loop, &array->superblock_lock, 1);
    return result;
}

task_fn int
superblocks_record_tail(struct array *array, uint64_t tail_bytes)
{
    const unsigned c = (unsigned)array->journal_candidate;
    int result;

    tokens_take(array->loop, &array->superblock_lock, 1);
    if (!candidate_written(array, c)) {
        tokens_give(array->loop, &array->superblock_lock, 1);
        return -EIO;
    }
    array->journal_tail = tail_bytes;
    /* It may tear only as any update of it may: the other members say the same but for the tail,
     * and a journal without a valid superblock is one that is missing. */
    (void)superblock_renew(array, c, array->recorded_resync_from);
    memset(array->superblock_errors, 0, array->candidates_count * sizeof(int));
    superblocks_write_range(array, array->superblock_errors, c, c + 1);
    result = array->superblock_errors[c];
    tokens_give(array->loop, &array->superblock_lock, 1);
    return result;
}

task_fn void
superblocks_record_failures(struct array *array)
{
    const uint64_t told = array->failures;

    while (array->failures_recorded < told && !array_beyond_parity(array)) {
        /* Somebody else's update may be under way and may or may not have seen ours. */
        tokens_take(array->loop, &array->superblock_lock, 1);
        tokens_give(array->loop, &array->superblock_lock, 1);
        if (array->failures_recorded < told && superblocks_update(array, RESYNC_AS_RECORDED) < 0)
            return;
    }
}
