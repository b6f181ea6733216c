/*
 * assemble.c: who belongs to the array, who is left out, and may it start.
 *
 * In the order of the decision:
 *
 *   identity    the same device twice: refused, whatever is on it
 *   groups      superblocks of several arrays: refused, for a guess could be the wrong one
 *   freshest    the largest event count among those with a slot or the journal (a spare knows
 *               nothing), and, of equals, one whom no equal has struck off its table
 *   current     at most one event behind: superblocks are updated one by one, and a crash may come
 *               in between. Such a member's role is what the freshest says it is (A2)
 *   schism      a current member that has nobody in the freshest's slot went on without it: two
 *               histories. With fewer events it is the older one and left out; with as many, nobody
 *               can tell, and the array is refused
 *   slots       one member each
 *   start       enough members; parity good, or nobody missing; the journal there
 *
 * Two rules are stricter than Linux's. The freshest's word counts also for members that are not
 * behind, because `mdadm --force` only sets a stale member's event count. And the array is clean
 * only if everybody says so (A3).
 */
#include "array/assemble.h"

#include "format/journal_entry.h"

#include <inttypes.h>

#define NO_CANDIDATE (-1)

struct decision {
    const struct candidate *candidates;
    unsigned count;
    const struct assemble_options *options;
    struct assembly *assembly;
    enum member_fate *fates;
    struct error *reasons;
    struct error *error;
};

const char *
member_fate_name(enum member_fate fate)
{
    switch (fate) {
    case FATE_IN_SYNC:
        return "in sync";
    case FATE_REBUILDING:
        return "rebuilding";
    case FATE_JOURNAL:
        return "journal";
    case FATE_SPARE:
        return "spare";
    case FATE_REPLACEMENT:
        return "replacement";
    case FATE_STALE:
        return "stale";
    case FATE_FAULTY:
        return "faulty";
    case FATE_FOREIGN:
        return "foreign";
    case FATE_UNUSABLE:
        return "unusable";
    case FATE_DUPLICATE:
        return "duplicate";
    }
    return "unknown";
}

static const char *
device_name(const struct decision *d, unsigned i)
{
    return d->candidates[i].device->name;
}

static const struct superblock *
superblock_of(const struct decision *d, unsigned i)
{
    return &d->candidates[i].superblock;
}

/* The fates below this line say that a device is not used at all. */
static void printf_like(4, 5)
    leave_out(struct decision *d, unsigned i, enum member_fate fate, const char *format, ...)
{
    va_list args;

    d->fates[i] = fate;
    d->reasons[i].code = -ESTALE;
    va_start(args, format);
    (void)vsnprintf(d->reasons[i].text, sizeof d->reasons[i].text, format, args);
    va_end(args);
}

static void printf_like(2, 3) warn(struct decision *d, const char *format, ...)
{
    struct assembly *assembly = d->assembly;
    struct error *warning;
    va_list args;

    if (assembly->warning_count == ARRAY_LEN(assembly->warnings))
        return;
    warning = &assembly->warnings[assembly->warning_count++];
    warning->code = -ESTALE;
    va_start(args, format);
    (void)vsnprintf(warning->text, sizeof warning->text, format, args);
    va_end(args);
}

/* ---- Which devices can speak at all ---- */

static bool
same_device(const struct device *a, const struct device *b)
{
    if (a == b)
        return true;
    /* Zero: the backend cannot tell. */
    return (a->identity[0] || a->identity[1]) && a->identity[0] == b->identity[0] &&
           a->identity[1] == b->identity[1];
}

static int
check_identities(struct decision *d)
{
    for (unsigned i = 0; i < d->count; i++)
        for (unsigned j = i + 1; j < d->count; j++)
            if (same_device(d->candidates[i].device, d->candidates[j].device)) {
                leave_out(d, j, FATE_DUPLICATE, "the same device as %s", device_name(d, i));
                return error_set(d->error, -EINVAL, "%s and %s are the same device",
                                 device_name(d, i), device_name(d, j));
            }
    return 0;
}

/* A journal that its own array does not know (any more) is nobody's. */
static bool
is_disowned_journal(const struct superblock *sb)
{
    return superblock_role(sb) == SUPERBLOCK_ROLE_JOURNAL &&
           !(sb->feature_map & SUPERBLOCK_FEATURE_JOURNAL);
}

static int
check_superblocks(struct decision *d)
{
    int code = -ENOENT;
    unsigned usable = 0;
    unsigned worst = 0;

    for (unsigned i = 0; i < d->count; i++) {
        const struct candidate *candidate = &d->candidates[i];

        if (candidate->status == 0) {
            d->fates[i] = FATE_SPARE;
            usable++;
            continue;
        }
        leave_out(d, i, FATE_UNUSABLE, "%s", candidate->error.text);
        /* One that is sound but beyond us tells more than one that is not there. */
        if (candidate->status == -ENOTSUP || (code == -ENOENT && candidate->status != -ENOENT)) {
            if (code != -ENOTSUP)
                worst = i;
            code = candidate->status == -ENOTSUP ? -ENOTSUP : -EBADMSG;
        }
    }
    if (usable)
        return 0;
    return error_set(d->error, code == -ENOTSUP ? -ENOTSUP : -ENOENT,
                     "no usable superblock on any of %u device%s\n%s", d->count,
                     d->count == 1 ? "" : "s",
                     d->count ? d->candidates[worst].error.text : "no device was named");
}

static int
check_one_array(struct decision *d)
{
    int first = NO_CANDIDATE;
    int other = NO_CANDIDATE;
    char first_uuid[SUPERBLOCK_UUID_TEXT_BYTES], other_uuid[SUPERBLOCK_UUID_TEXT_BYTES];

    for (unsigned i = 0; i < d->count; i++) {
        if (d->fates[i] == FATE_UNUSABLE)
            continue;
        if (first == NO_CANDIDATE) {
            first = (int)i;
            continue;
        }
        if (memcmp(superblock_of(d, i)->set_uuid, superblock_of(d, (unsigned)first)->set_uuid,
                   SUPERBLOCK_UUID_BYTES) == 0)
            continue;
        superblock_uuid_text(superblock_of(d, i)->set_uuid, other_uuid);
        leave_out(d, i, FATE_FOREIGN, "of another array, %s", other_uuid);
        if (other == NO_CANDIDATE)
            other = (int)i;
    }
    if (other == NO_CANDIDATE)
        return 0;
    superblock_uuid_text(superblock_of(d, (unsigned)first)->set_uuid, first_uuid);
    superblock_uuid_text(superblock_of(d, (unsigned)other)->set_uuid, other_uuid);
    return error_set(d->error, -EINVAL,
                     "name the devices of one array only\n"
                     "devices of several arrays: %s is of array %s, %s is of array %s",
                     device_name(d, (unsigned)first), first_uuid, device_name(d, (unsigned)other),
                     other_uuid);
}

/* ---- The freshest ---- */

/* Has a say in what the array is. */
static bool
may_be_freshest(const struct decision *d, unsigned i)
{
    const struct superblock *sb = superblock_of(d, i);
    const uint16_t role = superblock_role(sb);

    if (d->fates[i] == FATE_UNUSABLE || d->fates[i] == FATE_FOREIGN)
        return false;
    return superblock_role_is_slot(role) ||
           (role == SUPERBLOCK_ROLE_JOURNAL && !is_disowned_journal(sb));
}

static bool
table_has_slot(const struct superblock *sb, uint16_t slot)
{
    for (uint32_t number = 0; number < sb->max_dev; number++)
        if (superblock_role_of(sb, number) == slot)
            return true;
    return false;
}

/* By its own table the first has no place for the second. */
static bool
strikes_off(const struct superblock *sb, const struct superblock *other)
{
    return superblock_role_of(sb, other->dev_number) != superblock_role(other);
}

static int
find_freshest(struct decision *d)
{
    struct assembly *assembly = d->assembly;
    uint64_t events = 0;
    int first = NO_CANDIDATE, best = NO_CANDIDATE, rival = NO_CANDIDATE;
    bool best_in_sync = false;

    for (unsigned i = 0; i < d->count; i++)
        if (may_be_freshest(d, i) &&
            (first == NO_CANDIDATE || superblock_of(d, i)->events > events)) {
            first = (int)i;
            events = superblock_of(d, i)->events;
        }
    if (first == NO_CANDIDATE)
        return error_set(d->error, -ENOENT,
                         "there are only spares: no device has a place in the array");

    for (unsigned i = 0; i < d->count; i++) {
        const struct superblock *sb = superblock_of(d, i);
        bool struck = false;
        bool in_sync;

        if (!may_be_freshest(d, i) || sb->events != events)
            continue;
        for (unsigned j = 0; j < d->count && !struck; j++) {
            if (j == i || !may_be_freshest(d, j) || superblock_of(d, j)->events != events)
                continue;
            struck = strikes_off(superblock_of(d, j), sb);
            if (struck && rival == NO_CANDIDATE)
                rival = (int)j;
        }
        if (struck)
            continue;
        in_sync = superblock_role_is_slot(superblock_role(sb)) &&
                  !(sb->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET);
        if (best == NO_CANDIDATE || (in_sync && !best_in_sync)) {
            best = (int)i;
            best_in_sync = in_sync;
        }
    }

    assembly->freshest_index = (unsigned)(best == NO_CANDIDATE ? first : best);
    assembly->freshest = superblock_of(d, assembly->freshest_index);
    assembly->events = events;
    if (best == NO_CANDIDATE)
        return error_set(d->error, -EINVAL,
                         "leave out the devices whose later writes are not wanted\n"
                         "%s and %s went on without each other, both to %" PRIu64 " events",
                         device_name(d, (unsigned)first), device_name(d, (unsigned)rival), events);
    return 0;
}

/* ---- Each member's place ---- */

static const char *
odd_field(const struct superblock *a, const struct superblock *b)
{
    if (a->level != b->level)
        return "level";
    if (a->level != 4 && a->layout != b->layout)
        return "layout";
    if (a->chunk_sectors != b->chunk_sectors)
        return "chunk size";
    if (a->size_sectors != b->size_sectors)
        return "component size";
    if (a->raid_disks != b->raid_disks)
        return "number of members";
    if (a->ctime != b->ctime)
        return "creation time";
    return NULL;
}

/* What stands for a member of whom the freshest thinks otherwise than it does itself. */
static void
judge_by_freshest(struct decision *d, unsigned i, uint16_t own, uint16_t given)
{
    const struct superblock *sb = superblock_of(d, i);
    const char *freshest = device_name(d, d->assembly->freshest_index);

    if (given == SUPERBLOCK_ROLE_FAULTY)
        leave_out(d, i, FATE_FAULTY, "%s says that it failed", freshest);
    else if (sb->dev_number >= d->assembly->freshest->max_dev)
        leave_out(d, i, FATE_STALE, "its number %" PRIu32 " is not in the table of %s",
                  sb->dev_number, freshest);
    else if (given == SUPERBLOCK_ROLE_SPARE)
        leave_out(d, i, FATE_STALE, "%s went on without it", freshest);
    else if (!superblock_role_is_slot(own) && own != SUPERBLOCK_ROLE_JOURNAL)
        leave_out(d, i, FATE_SPARE, "it was about to be rebuilt, and nothing was written yet");
    else
        leave_out(d, i, FATE_STALE, "%s gives it another place in the array", freshest);
}

static int
judge(struct decision *d, unsigned i)
{
    struct assembly *assembly = d->assembly;
    const struct superblock *freshest = assembly->freshest;
    const struct superblock *sb = superblock_of(d, i);
    const uint16_t own = superblock_role(sb);
    const uint16_t given = superblock_role_of(freshest, sb->dev_number);
    const bool is_freshest = i == assembly->freshest_index;
    const char *odd;

    if (own == SUPERBLOCK_ROLE_JOURNAL &&
        (is_disowned_journal(sb) || !(freshest->feature_map & SUPERBLOCK_FEATURE_JOURNAL))) {
        leave_out(d, i, FATE_UNUSABLE, "a journal, and the array has none");
        return 0;
    }
    if (!superblock_role_is_slot(own) && own != SUPERBLOCK_ROLE_JOURNAL) {
        d->fates[i] = FATE_SPARE;
        if (sb->events > assembly->events)
            leave_out(d, i, FATE_STALE,
                      "a spare with more events (%" PRIu64
                      ") than any member that was named (%" PRIu64
                      "): newer members of this array exist",
                      sb->events, assembly->events);
        else if (superblock_role_is_slot(given) && sb->events <= assembly->events)
            judge_by_freshest(d, i, own, given);
        return 0;
    }
    if (assembly->events - sb->events >= 2) {
        leave_out(d, i, FATE_STALE, "%" PRIu64 " events, %s has %" PRIu64, sb->events,
                  device_name(d, assembly->freshest_index), assembly->events);
        return 0;
    }
    odd = odd_field(sb, freshest);
    if (odd) {
        leave_out(d, i, FATE_FOREIGN, "another %s than %s", odd,
                  device_name(d, assembly->freshest_index));
        return error_set(d->error, -EINVAL,
                         "leave out the one that does not belong\n"
                         "%s and %s are of one array, but the %s differs",
                         device_name(d, assembly->freshest_index), device_name(d, i), odd);
    }
    if (own != given && !is_freshest) {
        judge_by_freshest(d, i, own, given);
        return 0;
    }
    /* Both tables agree about this member; does it know the freshest? A freshest that is just being
     * rebuilt came with the very update that this one missed. */
    if (superblock_role_is_slot(superblock_role(freshest)) &&
        !(freshest->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET) &&
        !table_has_slot(sb, superblock_role(freshest))) {
        leave_out(d, i, FATE_STALE, "it went on without %s",
                  device_name(d, assembly->freshest_index));
        return 0;
    }
    if (own == SUPERBLOCK_ROLE_JOURNAL)
        d->fates[i] = FATE_JOURNAL;
    else if (sb->feature_map & SUPERBLOCK_FEATURE_REPLACEMENT)
        d->fates[i] = FATE_REPLACEMENT;
    else if (sb->feature_map & SUPERBLOCK_FEATURE_RECOVERY_OFFSET)
        d->fates[i] = FATE_REBUILDING;
    else
        d->fates[i] = FATE_IN_SYNC;
    return 0;
}

/* Two for one place: more events, then in sync before rebuilding. True if a is to be preferred. */
static bool
is_preferred(const struct decision *d, unsigned a, unsigned b)
{
    const uint64_t events_a = superblock_of(d, a)->events, events_b = superblock_of(d, b)->events;

    if (events_a != events_b)
        return events_a > events_b;
    return d->fates[a] == FATE_IN_SYNC && d->fates[b] == FATE_REBUILDING;
}

static int
take_place(struct decision *d, unsigned i, int *place, const char *what)
{
    unsigned holder, loser;

    if (*place == NO_CANDIDATE) {
        *place = (int)i;
        return 0;
    }
    holder = (unsigned)*place;
    if (!is_preferred(d, i, holder) && !is_preferred(d, holder, i)) {
        leave_out(d, i, FATE_DUPLICATE, "%s is the same member", device_name(d, holder));
        return error_set(d->error, -EINVAL,
                         "leave out the copy\n"
                         "%s and %s both are the %s of this array, equally new",
                         device_name(d, holder), device_name(d, i), what);
    }
    loser = is_preferred(d, i, holder) ? holder : i;
    *place = (int)(loser == holder ? i : holder);
    leave_out(d, loser, FATE_DUPLICATE, "%s is the same member, and newer",
              device_name(d, (unsigned)*place));
    return 0;
}

static int
place_members(struct decision *d)
{
    struct assembly *assembly = d->assembly;
    int r;

    for (unsigned i = 0; i < d->count; i++) {
        char what[32];
        int *place;

        if (d->fates[i] == FATE_JOURNAL) {
            place = &assembly->journal_candidate;
            (void)snprintf(what, sizeof what, "journal");
        } else if (d->fates[i] == FATE_IN_SYNC || d->fates[i] == FATE_REBUILDING) {
            const uint16_t slot = superblock_role(superblock_of(d, i));

            place = &assembly->member_candidate[slot];
            (void)snprintf(what, sizeof what, "member %u", slot);
        } else {
            continue;
        }
        r = take_place(d, i, place, what);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- The state of the whole ---- */

static bool
slot_in_sync(const struct decision *d, unsigned slot)
{
    const int i = d->assembly->member_candidate[slot];

    return i != NO_CANDIDATE && d->fates[i] == FATE_IN_SYNC;
}

static void
count_degraded(struct decision *d)
{
    d->assembly->degraded = 0;
    for (unsigned slot = 0; slot < d->assembly->members; slot++)
        d->assembly->degraded += !slot_in_sync(d, slot);
}

static bool
is_used(const struct decision *d, unsigned i)
{
    return d->fates[i] == FATE_IN_SYNC || d->fates[i] == FATE_REBUILDING ||
           d->fates[i] == FATE_JOURNAL;
}

/* A3, and how far parity is good by the most cautious word. */
static void
find_dirty(struct decision *d)
{
    struct assembly *assembly = d->assembly;

    assembly->resync_from_bytes = superblock_component_bytes(assembly->freshest);
    for (unsigned i = 0; i < d->count; i++) {
        const struct superblock *sb = superblock_of(d, i);

        if (!is_used(d, i))
            continue;
        if (sb->events != assembly->events)
            assembly->events_uneven = true;
        if (superblock_is_clean(sb))
            continue;
        assembly->dirty = true;
        assembly->resync_from_bytes =
            min_u64(assembly->resync_from_bytes, superblock_resync_offset_bytes(sb));
    }
}

/* "0, 2 and 5" of the slots without a member in sync. */
static void
list_missing(const struct decision *d, char *text, size_t bytes)
{
    const unsigned members = d->assembly->members;
    size_t at = 0;
    unsigned shown = 0;

    text[0] = '\0';
    for (unsigned slot = 0; slot < members && at + 16 < bytes; slot++) {
        const char *separator = "";

        if (slot_in_sync(d, slot))
            continue;
        if (shown > 0)
            separator = shown + 1 == d->assembly->degraded ? " and " : ", ";
        if (shown == 8) {
            (void)snprintf(text + at, bytes - at, ", ...");
            return;
        }
        at += (size_t)snprintf(text + at, bytes - at, "%s%u", separator, slot);
        shown++;
    }
}

/* The newest of those that were left out for their age, whose slot is empty. */
static int
newest_stale(const struct decision *d)
{
    int best = NO_CANDIDATE;

    for (unsigned i = 0; i < d->count; i++) {
        const struct superblock *sb = superblock_of(d, i);
        const uint16_t slot = superblock_role(sb);

        if (d->candidates[i].status != 0 ||
            (d->fates[i] != FATE_STALE && d->fates[i] != FATE_FAULTY && d->fates[i] != FATE_SPARE))
            continue;
        if (!superblock_role_is_slot(slot) || odd_field(sb, d->assembly->freshest) ||
            (sb->feature_map &
             (SUPERBLOCK_FEATURE_RECOVERY_OFFSET | SUPERBLOCK_FEATURE_REPLACEMENT)) ||
            d->assembly->member_candidate[slot] != NO_CANDIDATE)
            continue;
        if (best == NO_CANDIDATE || sb->events > superblock_of(d, (unsigned)best)->events)
            best = (int)i;
    }
    return best;
}

/* No more of them than the array needs: each one brings old data as if it were new. */
static void
force_stale(struct decision *d)
{
    struct assembly *assembly = d->assembly;

    while (assembly->degraded > assembly->geometry.parities) {
        const int i = newest_stale(d);
        const struct superblock *sb;

        if (i == NO_CANDIDATE)
            return;
        sb = superblock_of(d, (unsigned)i);
        assembly->member_candidate[superblock_role(sb)] = i;
        d->fates[i] = FATE_IN_SYNC;
        d->reasons[i] = (struct error){0};
        count_degraded(d);
        warn(d,
             "%s is used although it is stale (%" PRIu64 " events of %" PRIu64
             "): what was written since may read as it was before",
             device_name(d, (unsigned)i), sb->events, assembly->events);
    }
}

static int
too_few(struct decision *d)
{
    const struct assembly *assembly = d->assembly;
    char missing[64];
    const char *hint = "name all devices of the array";

    list_missing(d, missing, sizeof missing);
    if (newest_stale(d) != NO_CANDIDATE)
        hint = "name all devices of the array; or --force=stale-member takes a stale one for "
               "current, and what was written since then is lost";
    return error_set(d->error, -ENOTCONN,
                     "%s\n%u of %u members are missing or not in sync (%s), and RAID-%d can do "
                     "without %u",
                     hint, assembly->degraded, assembly->members, missing, assembly->geometry.level,
                     assembly->geometry.parities);
}

/* A device that says it is the journal, or could be it for all that is known. */
static int
left_out_journal(const struct decision *d)
{
    int damaged = NO_CANDIDATE;

    for (unsigned i = 0; i < d->count; i++) {
        if (d->fates[i] == FATE_UNUSABLE && d->candidates[i].status != 0)
            damaged = (int)i;
        else if (superblock_role(superblock_of(d, i)) == SUPERBLOCK_ROLE_JOURNAL)
            return (int)i;
    }
    return damaged;
}

/* "the journal is missing", or why the one that is there is none. */
static void
journal_absence(const struct decision *d, struct error *text)
{
    const int i = left_out_journal(d);

    if (i == NO_CANDIDATE)
        (void)error_set(text, -ENODEV, "the journal is missing"); /* a text only */
    else if (d->fates[i] == FATE_JOURNAL)
        (void)error_set(text, -ENODEV, "the journal %s is not to be used",
                        device_name(d, (unsigned)i)); /* as above */
    else if (d->fates[i] == FATE_UNUSABLE)
        (void)error_set(text, -ENODEV, "the journal is missing, or it is one that is unusable: %s",
                        d->reasons[i].text); /* as above */
    else
        (void)error_set(text, -ENODEV, "the journal %s is %s: %s", device_name(d, (unsigned)i),
                        member_fate_name(d->fates[i]), d->reasons[i].text); /* as above */
}

static int
check_journal(struct decision *d)
{
    struct assembly *assembly = d->assembly;
    struct error absence = {0};

    if (!assembly->journal_expected)
        return 0;
    if (assembly->members > JOURNAL_MEMBERS_MAX)
        return error_set(d->error, -ENOTSUP,
                         "an array of %u members cannot have a journal: at most %u can",
                         assembly->members, (unsigned)JOURNAL_MEMBERS_MAX);
    if (assembly->journal_candidate != NO_CANDIDATE && !(d->options->force & FORCE_DROP_JOURNAL))
        return 0;
    assembly->journal_candidate = NO_CANDIDATE;
    journal_absence(d, &absence);
    /* Clean means nothing here: only the journal knows what was unfinished. */
    assembly->dirty = true;
    assembly->resync_from_bytes = 0;
    if (d->options->readonly) {
        warn(d, "%s: this is what the members hold, without what only the journal has",
             absence.text);
        return 0;
    }
    if (d->options->force & FORCE_DROP_JOURNAL) {
        warn(d, "the journal is dropped: what only it had is lost, and all parity is made again");
        return 0;
    }
    return error_set(d->error, -ENODEV,
                     "name the journal device too; or --readonly shows what the members hold, and "
                     "--force=drop-journal goes on without it and loses what only it has\n"
                     "%s",
                     absence.text);
}

static int
check_dirty_degraded(struct decision *d)
{
    struct assembly *assembly = d->assembly;
    const bool unjournaled =
        assembly->journal_expected && assembly->journal_candidate == NO_CANDIDATE;
    char missing[64];

    if (!assembly->dirty || assembly->degraded == 0)
        return 0;
    list_missing(d, missing, sizeof missing);
    if (d->options->force & FORCE_DIRTY_DEGRADED) {
        assembly->forced_dirty_degraded = true;
        warn(d,
             "started although it %s and is degraded (%s): blocks of a missing member may read "
             "wrong where a write was under way, also blocks that nobody wrote",
             unjournaled ? "is without its journal" : "was not shut down", missing);
        return 0;
    }
    return error_set(
        d->error, -EUCLEAN,
        "--force=dirty-degraded starts it nevertheless\n"
        "the array %s and is degraded (without %s): where a write was under way parity may be "
        "wrong, and what is reconstructed from it garbage",
        unjournaled ? "is without its journal, which alone knows what was unfinished,"
                    : "was not shut down (dirty)",
        missing);
}

static void
warn_left_out(struct decision *d)
{
    for (unsigned i = 0; i < d->count; i++)
        switch (d->fates[i]) {
        case FATE_IN_SYNC:
        case FATE_JOURNAL:
            break;
        case FATE_REBUILDING:
            warn(d, "%s is not yet rebuilt (%" PRIu64 " of %" PRIu64 " bytes)", device_name(d, i),
                 superblock_recovery_offset_bytes(superblock_of(d, i)),
                 superblock_component_bytes(superblock_of(d, i)));
            break;
        default:
            if (d->reasons[i].text[0])
                warn(d, "%s is left out (%s): %s", device_name(d, i), member_fate_name(d->fates[i]),
                     d->reasons[i].text);
            else
                warn(d, "%s is left out: it is a %s", device_name(d, i),
                     member_fate_name(d->fates[i]));
        }
}

static int
check_start(struct decision *d)
{
    struct assembly *assembly = d->assembly;
    char missing[64];
    int r;

    if (assembly->degraded > assembly->geometry.parities &&
        (d->options->force & FORCE_STALE_MEMBER)) {
        force_stale(d);
        find_dirty(d); /* A3: those that came in have a word too */
    }
    warn_left_out(d);
    if (assembly->degraded > assembly->geometry.parities)
        return too_few(d);
    r = check_journal(d);
    if (r == 0)
        r = check_dirty_degraded(d);
    if (r < 0)
        return r;
    if (assembly->degraded > 0) {
        list_missing(d, missing, sizeof missing);
        warn(d, "the array is degraded: member%s %s of %u %s missing or not in sync",
             assembly->degraded == 1 ? "" : "s", missing, assembly->members,
             assembly->degraded == 1 ? "is" : "are");
    }
    return 0;
}

int
assemble_decide(const struct candidate *candidates, unsigned count,
                const struct assemble_options *options, struct assembly *assembly,
                enum member_fate *fates, struct error *reasons, struct error *error)
{
    struct decision d = {.candidates = candidates,
                         .count = count,
                         .options = options,
                         .assembly = assembly,
                         .fates = fates,
                         .reasons = reasons,
                         .error = error};
    struct geometry_config config;
    int twice, r;

    memset(assembly, 0, sizeof *assembly);
    memset(reasons, 0, count * sizeof *reasons);
    assembly->journal_candidate = NO_CANDIDATE;
    for (unsigned slot = 0; slot < MEMBERS_MAX; slot++)
        assembly->member_candidate[slot] = NO_CANDIDATE;

    r = check_superblocks(&d);
    twice = check_identities(&d);
    if (twice < 0)
        return twice;
    if (r == 0)
        r = check_one_array(&d);
    if (r == 0)
        r = find_freshest(&d);
    if (r < 0)
        return r;

    config = (struct geometry_config){.level = assembly->freshest->level,
                                      .layout = assembly->freshest->layout,
                                      .members = assembly->freshest->raid_disks,
                                      .chunk_bytes = superblock_chunk_bytes(assembly->freshest),
                                      .size_bytes = superblock_component_bytes(assembly->freshest)};
    r = geometry_init(&assembly->geometry, &config);
    if (r < 0)
        return error_set(error, -ENOTSUP, "%s: its geometry cannot be computed with: %s",
                         device_name(&d, assembly->freshest_index), strerror(-r));
    assembly->members = assembly->freshest->raid_disks;
    assembly->journal_expected = assembly->freshest->feature_map & SUPERBLOCK_FEATURE_JOURNAL;

    for (unsigned i = 0; i < count; i++) {
        if (fates[i] == FATE_UNUSABLE)
            continue;
        /* One that contradicts is enough; the others are still judged, for who wants to look. */
        twice = judge(&d, i);
        if (r == 0)
            r = twice;
    }
    if (r == 0)
        r = place_members(&d);
    count_degraded(&d);
    find_dirty(&d);
    if (r < 0)
        return r;
    return check_start(&d);
}
