/*
 * test_assemble.c: who belongs to an array, and may it start.
 *
 * Each test begins with a healthy array (every member 20 events, clean, every table full) and says
 * what happened to it: members fall behind, are struck off tables, are not there. Where the number
 * of cases is small all of them are tried, and compared with the rule in its shortest form.
 */
#include "array/assemble.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define DEVICES_MAX 10u
#define EVENTS      20u
#define SIZE        4096u /* sectors */
#define CHUNK       128u

struct world {
    unsigned count;
    struct device devices[DEVICES_MAX];
    char names[DEVICES_MAX][8];
    struct candidate candidates[DEVICES_MAX];
    struct assemble_options options;
    struct assembly assembly;
    enum member_fate fates[DEVICES_MAX];
    struct error reasons[DEVICES_MAX];
    struct error error;
};

static struct superblock *
sb_of(struct world *w, unsigned i)
{
    return &w->candidates[i].superblock;
}

/* A device named "a", "b" ... with that role and number i. */
static void
add_device(struct world *w, int level, unsigned members, uint16_t role)
{
    const unsigned i = w->count++;
    struct superblock *sb = sb_of(w, i);

    assert_true(i < DEVICES_MAX);
    w->names[i][0] = (char)('a' + i);
    w->devices[i].name = w->names[i];
    w->devices[i].identity[0] = 1;
    w->devices[i].identity[1] = 100 + i;
    w->candidates[i].device = &w->devices[i];

    superblock_init(sb, 2, members);
    memset(sb->set_uuid, 0xab, sizeof sb->set_uuid);
    sb->ctime = 1000;
    sb->level = level;
    sb->layout = level == 4 ? 0 : 2;
    sb->size_sectors = SIZE;
    sb->chunk_sectors = CHUNK;
    sb->raid_disks = members;
    sb->data_offset_sectors = 2048;
    sb->data_size_sectors = SIZE;
    sb->super_offset_sectors = 8;
    sb->dev_number = i;
    sb->events = EVENTS;
    sb->resync_offset_sectors = SUPERBLOCK_RESYNC_DONE;
    for (unsigned j = 0; j <= i; j++)
        sb_of(w, j)->dev_roles[i] = role;
    for (unsigned j = 0; j < i; j++)
        sb->dev_roles[j] = superblock_role(sb_of(w, j));
}

static struct world *
make(int level, unsigned members)
{
    struct world *w = calloc(1, sizeof *w);

    assert_non_null(w);
    for (unsigned i = 0; i < members; i++)
        add_device(w, level, members, (uint16_t)i);
    return w;
}

/* The journal is the last device. */
static struct world *
make_journaled(int level, unsigned members)
{
    struct world *w = make(level, members);

    add_device(w, level, members, SUPERBLOCK_ROLE_JOURNAL);
    for (unsigned i = 0; i < w->count; i++)
        sb_of(w, i)->feature_map |= SUPERBLOCK_FEATURE_JOURNAL;
    return w;
}

/* All but these two say that device `number` has this role. */
static void
all_others_say(struct world *w, unsigned number, uint16_t role)
{
    for (unsigned i = 0; i < w->count; i++)
        if (i != number)
            sb_of(w, i)->dev_roles[number] = role;
}

static void
absent(struct world *w, unsigned i)
{
    w->candidates[i].status =
        error_set(&w->candidates[i].error, -ENOENT, "%s: no md superblock", w->names[i]);
    memset(sb_of(w, i), 0, sizeof(struct superblock));
}

static void
dirty_from(struct world *w, uint64_t sectors)
{
    for (unsigned i = 0; i < w->count; i++)
        if (w->candidates[i].status == 0)
            sb_of(w, i)->resync_offset_sectors = sectors;
}

static int
decide(struct world *w)
{
    w->error = (struct error){0};
    return assemble_decide(w->candidates, w->count, &w->options, &w->assembly, w->fates, w->reasons,
                           &w->error);
}

static void
expect(struct world *w, int result)
{
    const int r = decide(w);

    if (r != result)
        fail_msg("result %d, not %d: %s", r, result, w->error.text);
    if (r < 0) {
        assert_int_equal(w->error.code, r);
        assert_true(w->error.text[0] != '\0');
    }
}

static void
expect_fate(struct world *w, unsigned i, enum member_fate fate)
{
    if (w->fates[i] != fate)
        fail_msg("%s is %s, not %s: %s", w->names[i], member_fate_name(w->fates[i]),
                 member_fate_name(fate), w->reasons[i].text);
}

static void
expect_text(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

static bool
warned(const struct world *w, const char *part)
{
    for (unsigned i = 0; i < w->assembly.warning_count; i++)
        if (strstr(w->assembly.warnings[i].text, part))
            return true;
    return false;
}

/* ---- Whole arrays ---- */

static void
a_healthy_array_starts_without_a_warning(void **state)
{
    static const int levels[] = {4, 5, 6};

    for (size_t l = 0; l < ARRAY_LEN(levels); l++) {
        struct world *w = make(levels[l], 5);

        expect(w, 0);
        for (unsigned i = 0; i < 5; i++) {
            expect_fate(w, i, FATE_IN_SYNC);
            assert_int_equal(w->assembly.member_candidate[i], i);
        }
        assert_int_equal(w->assembly.degraded, 0);
        assert_int_equal(w->assembly.warning_count, 0);
        assert_int_equal(w->assembly.events, EVENTS);
        assert_int_equal(w->assembly.members, 5);
        assert_int_equal(w->assembly.journal_candidate, -1);
        assert_false(w->assembly.dirty);
        assert_false(w->assembly.events_uneven);
        assert_int_equal(w->assembly.geometry.member_bytes, SIZE * SECTOR_BYTES);
        free(w);
    }
}

/* Every level, every set of absent members, dirty or not, forced or not, read-only or not. */
static void
start_is_allowed_by_level_missing_members_dirt_and_force(void **state)
{
    static const int levels[] = {4, 5, 6};
    const unsigned members = 5;

    for (size_t l = 0; l < ARRAY_LEN(levels); l++)
        for (unsigned gone = 0; gone < (1u << members) - 1; gone++)
            for (unsigned bits = 0; bits < 8; bits++) {
                const bool dirty = bits & 1, forced = bits & 2, readonly = bits & 4;
                const unsigned missing = (unsigned)__builtin_popcount(gone);
                struct world *w = make(levels[l], members);
                int result = 0;

                for (unsigned i = 0; i < members; i++)
                    if (gone & (1u << i))
                        absent(w, i);
                if (dirty)
                    dirty_from(w, 256);
                w->options.force = forced ? FORCE_DIRTY_DEGRADED : 0;
                w->options.readonly = readonly;
                if (missing > (levels[l] == 6 ? 2 : 1))
                    result = -ENOTCONN;
                else if (dirty && missing && !forced)
                    result = -EUCLEAN;
                expect(w, result);
                assert_int_equal(w->assembly.degraded, missing);
                assert_int_equal(w->assembly.dirty, dirty);
                if (dirty)
                    assert_int_equal(w->assembly.resync_from_bytes, 256 * SECTOR_BYTES);
                assert_int_equal(w->assembly.forced_dirty_degraded,
                                 result == 0 && dirty && missing && forced);
                if (result == 0)
                    assert_int_equal(warned(w, "the array is degraded"), missing > 0);
                free(w);
            }
}

static void
no_superblock_anywhere_is_refused(void **state)
{
    struct world *w = make(5, 3);

    for (unsigned i = 0; i < 3; i++)
        absent(w, i);
    expect(w, -ENOENT);
    expect_fate(w, 1, FATE_UNUSABLE);
    expect_text(w->error.text, "no md superblock");
    free(w);
}

static void
only_unsupported_superblocks_are_refused_with_their_reason(void **state)
{
    struct world *w = make(5, 3);

    absent(w, 0);
    for (unsigned i = 1; i < 3; i++)
        w->candidates[i].status =
            error_set(&w->candidates[i].error, -ENOTSUP, "%s: a reshape", w->names[i]);
    expect(w, -ENOTSUP);
    expect_text(w->error.text, "b: a reshape");
    free(w);
}

static void
only_spares_are_no_array(void **state)
{
    struct world *w = make(5, 3);

    for (unsigned i = 0; i < 3; i++)
        for (unsigned j = 0; j < 3; j++)
            sb_of(w, i)->dev_roles[j] = SUPERBLOCK_ROLE_SPARE;
    expect(w, -ENOENT);
    free(w);
}

static void
the_same_device_twice_is_refused(void **state)
{
    struct world *w = make(5, 3);

    memcpy(w->devices[2].identity, w->devices[0].identity, sizeof w->devices[0].identity);
    expect(w, -EINVAL);
    expect_fate(w, 2, FATE_DUPLICATE);
    expect_text(w->error.text, "a and c are the same device");
    free(w);
}

static void
a_copy_of_a_member_is_refused(void **state)
{
    struct world *w = make(5, 3);

    add_device(w, 5, 3, SUPERBLOCK_ROLE_SPARE);
    *sb_of(w, 3) = *sb_of(w, 1);
    expect(w, -EINVAL);
    expect_fate(w, 3, FATE_DUPLICATE);
    expect_text(w->error.text, "b and d");
    free(w);
}

static void
members_of_two_arrays_are_refused_by_name(void **state)
{
    for (unsigned odd = 0; odd < 4; odd++) {
        struct world *w = make(5, 4);

        memset(sb_of(w, odd)->set_uuid, 0xcd, SUPERBLOCK_UUID_BYTES);
        expect(w, -EINVAL);
        expect_text(w->error.text, "abababab:abababab:abababab:abababab");
        expect_text(w->error.text, "cdcdcdcd:cdcdcdcd:cdcdcdcd:cdcdcdcd");
        expect_text(w->error.text, w->names[odd]);
        free(w);
    }
}

static void
a_spare_of_another_array_is_refused_as_well(void **state)
{
    struct world *w = make(5, 3);

    add_device(w, 5, 3, SUPERBLOCK_ROLE_SPARE);
    memset(sb_of(w, 3)->set_uuid, 0xcd, SUPERBLOCK_UUID_BYTES);
    expect(w, -EINVAL);
    expect_fate(w, 3, FATE_FOREIGN);
    free(w);
}

static void
members_that_contradict_each_other_are_refused(void **state)
{
    static const char *const fields[] = {
        "level", "layout", "chunk size", "component size", "number of members", "creation time"};

    for (size_t field = 0; field < ARRAY_LEN(fields); field++) {
        struct world *w = make(5, 4);
        struct superblock *sb = sb_of(w, 2);

        switch (field) {
        case 0:
            sb->level = 6;
            break;
        case 1:
            sb->layout = 3;
            break;
        case 2:
            sb->chunk_sectors *= 2;
            break;
        case 3:
            sb->size_sectors -= CHUNK;
            break;
        case 4:
            sb->raid_disks = 5;
            break;
        default:
            sb->ctime++;
            break;
        }
        expect(w, -EINVAL);
        expect_fate(w, 2, FATE_FOREIGN);
        expect_text(w->error.text, fields[field]);
        expect_text(w->error.text, "c");
        free(w);
    }
}

/* It was away while the array was grown. */
static void
a_stale_member_may_differ(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 2)->size_sectors -= CHUNK;
    sb_of(w, 2)->events -= 5;
    expect(w, 0);
    expect_fate(w, 2, FATE_STALE);
    free(w);
}

/* ---- Events ---- */

static void
one_event_behind_is_current(void **state)
{
    for (unsigned behind = 0; behind < 4; behind++) {
        struct world *w = make(5, 4);

        sb_of(w, behind)->events--;
        expect(w, 0);
        expect_fate(w, behind, FATE_IN_SYNC);
        assert_true(w->assembly.events_uneven);
        assert_int_not_equal(w->assembly.freshest_index, behind);
        free(w);
    }
}

static void
two_events_behind_is_stale(void **state)
{
    for (unsigned behind = 0; behind < 4; behind++)
        for (uint64_t events = 2; events <= EVENTS; events += 3) {
            struct world *w = make(5, 4);

            sb_of(w, behind)->events -= events;
            expect(w, 0);
            expect_fate(w, behind, FATE_STALE);
            assert_int_equal(w->assembly.member_candidate[behind], -1);
            assert_int_equal(w->assembly.degraded, 1);
            assert_false(w->assembly.events_uneven);
            assert_true(warned(w, "stale"));
            free(w);
        }
}

/* The crash came after one superblock of many: all others are behind by one. */
static void
one_member_ahead_takes_all_others_along(void **state)
{
    for (unsigned ahead = 0; ahead < 4; ahead++) {
        struct world *w = make(6, 4);

        sb_of(w, ahead)->events++;
        expect(w, 0);
        assert_int_equal(w->assembly.degraded, 0);
        assert_int_equal(w->assembly.freshest_index, ahead);
        free(w);
    }
}

/* What the freshest says about a member, who is one behind or even with it, and itself claims a
 * slot. */
static void
the_freshest_says_what_a_member_is(void **state)
{
    static const struct {
        uint16_t role;
        enum member_fate fate;
    } cases[] = {
        {2, FATE_IN_SYNC},
        {SUPERBLOCK_ROLE_FAULTY, FATE_FAULTY},
        {SUPERBLOCK_ROLE_SPARE, FATE_STALE},
        {SUPERBLOCK_ROLE_JOURNAL, FATE_STALE},
        {1, FATE_STALE},
        {77, FATE_STALE},
    };

    for (uint64_t behind = 0; behind <= 1; behind++)
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
            struct world *w = make(5, 4);

            sb_of(w, 2)->events -= behind;
            all_others_say(w, 2, cases[i].role);
            expect(w, 0);
            expect_fate(w, 2, cases[i].fate);
            assert_int_equal(w->assembly.degraded, cases[i].fate != FATE_IN_SYNC);
            free(w);
        }
}

static void
a_number_behind_the_freshest_table_is_rejected(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 2)->events--;
    sb_of(w, 2)->dev_number = 3;
    sb_of(w, 2)->dev_roles[3] = 2;
    for (unsigned i = 0; i < 4; i++)
        if (i != 2)
            sb_of(w, i)->max_dev = 3;
    for (unsigned i = 0; i < 2; i++)
        sb_of(w, i)->dev_roles[2] = 3;
    sb_of(w, 3)->dev_roles[2] = 3;
    sb_of(w, 3)->dev_number = 2;
    expect(w, 0);
    expect_fate(w, 2, FATE_STALE);
    expect_text(w->reasons[2].text, "not in the table");
    free(w);
}

/* It got its slot in the update that it missed itself: there is nothing on it yet. */
static void
a_spare_that_was_about_to_be_rebuilt_stays_a_spare(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 2)->events--;
    sb_of(w, 2)->dev_roles[2] = SUPERBLOCK_ROLE_SPARE;
    expect(w, 0);
    expect_fate(w, 2, FATE_SPARE);
    assert_int_equal(w->assembly.degraded, 1);
    free(w);
}

static void
a_spare_with_more_events_is_never_freshest(void **state)
{
    struct world *w = make(5, 3);

    add_device(w, 5, 3, SUPERBLOCK_ROLE_SPARE);
    sb_of(w, 3)->events = EVENTS + 100;
    expect(w, 0);
    expect_fate(w, 3, FATE_STALE); /* and so is never written to: others may know more */
    assert_int_equal(w->assembly.events, EVENTS);
    assert_int_equal(w->assembly.degraded, 0);
    free(w);
}

static void
a_sleeping_spare_is_a_spare(void **state)
{
    struct world *w = make(5, 3);

    add_device(w, 5, 3, SUPERBLOCK_ROLE_SPARE);
    sb_of(w, 3)->events = 3;
    expect(w, 0);
    expect_fate(w, 3, FATE_SPARE);
    free(w);
}

/* The array was run without c and written; then the power failed. c is one behind and thinks well
 * of itself. */
static void
a_member_left_behind_by_one_update_is_not_read_as_good(void **state)
{
    struct world *w = make(5, 3);

    all_others_say(w, 2, SUPERBLOCK_ROLE_SPARE);
    sb_of(w, 2)->events--;
    expect(w, 0);
    expect_fate(w, 2, FATE_STALE);
    assert_int_equal(w->assembly.member_candidate[2], -1);
    free(w);
}

/* It was being written when it was left behind: its parity is in doubt as well, and that is a
 * danger of its own. */
static void
a_stale_member_that_is_dirty_needs_both_words(void **state)
{
    struct world *w = make(5, 3);

    sb_of(w, 1)->events = EVENTS - 10;
    sb_of(w, 1)->resync_offset_sectors = 0;
    w->candidates[2].status = -ENOENT;
    w->options.force = FORCE_STALE_MEMBER;
    expect(w, -EUCLEAN);
    w->options.force = FORCE_STALE_MEMBER | FORCE_DIRTY_DEGRADED;
    expect(w, 0);
    assert_true(w->assembly.forced_dirty_degraded);
    free(w);
}

/* mdadm --force sets only the event count of a stale member. */
static void
a_stale_member_with_a_forged_count_stays_out_wherever_it_stands(void **state)
{
    for (unsigned stale = 0; stale < 4; stale++) {
        struct world *w = make(5, 4);

        all_others_say(w, stale, SUPERBLOCK_ROLE_FAULTY);
        expect(w, 0);
        expect_fate(w, stale, FATE_FAULTY);
        assert_int_not_equal(w->assembly.freshest_index, stale);
        assert_int_equal(w->assembly.degraded, 1);
        free(w);
    }
}

/* ---- Two histories ---- */

/* a and b went on without c and d, and c and d without a and b. */
static struct world *
make_schism(uint64_t behind)
{
    struct world *w = make(6, 4);

    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 4; j++)
            if ((i < 2) != (j < 2))
                sb_of(w, i)->dev_roles[j] = SUPERBLOCK_ROLE_SPARE;
    sb_of(w, 2)->events -= behind;
    sb_of(w, 3)->events -= behind;
    return w;
}

static void
of_two_histories_the_longer_one_counts(void **state)
{
    for (uint64_t behind = 1; behind < 4; behind++) {
        struct world *w = make_schism(behind);

        expect(w, 0);
        expect_fate(w, 0, FATE_IN_SYNC);
        expect_fate(w, 1, FATE_IN_SYNC);
        assert_int_equal(w->assembly.degraded, 2);
        free(w);
    }
}

static void
of_two_histories_as_long_as_each_other_none_is_chosen(void **state)
{
    struct world *w = make_schism(0);

    expect(w, -EINVAL);
    expect_text(w->error.text, "without each other");
    free(w);
}

/* c is one behind, a's table still has it, but c's own table has nobody in a's slot. */
static void
a_member_that_went_on_without_the_freshest_is_rejected(void **state)
{
    struct world *w = make(5, 3);

    sb_of(w, 2)->events--;
    sb_of(w, 1)->events--;
    sb_of(w, 2)->dev_roles[0] = SUPERBLOCK_ROLE_FAULTY;
    expect(w, 0);
    expect_fate(w, 2, FATE_STALE);
    assert_int_equal(w->assembly.degraded, 1);
    free(w);
}

/* ---- Slots ---- */

static void
of_two_in_one_slot_the_newer_is_taken(void **state)
{
    for (unsigned order = 0; order < 2; order++) {
        struct world *w = make(5, 3);
        const unsigned old = order ? 2 : 3, new = order ? 3 : 2;

        add_device(w, 5, 3, 2);
        for (unsigned i = 0; i < 4; i++)
            sb_of(w, i)->dev_roles[2] = sb_of(w, i)->dev_roles[3] = 2;
        sb_of(w, old)->events--;
        expect(w, 0);
        expect_fate(w, old, FATE_DUPLICATE);
        expect_fate(w, new, FATE_IN_SYNC);
        assert_int_equal(w->assembly.member_candidate[2], new);
        free(w);
    }
}

static void
a_replacement_does_not_take_the_slot(void **state)
{
    struct world *w = make(5, 3);

    add_device(w, 5, 3, 1);
    sb_of(w, 3)->feature_map |= SUPERBLOCK_FEATURE_REPLACEMENT | SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    expect(w, 0);
    expect_fate(w, 3, FATE_REPLACEMENT);
    assert_int_equal(w->assembly.member_candidate[1], 1);
    free(w);
}

static void
a_rebuilding_member_has_its_slot_and_counts_as_missing(void **state)
{
    struct world *w = make(5, 3);

    sb_of(w, 1)->feature_map |= SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    sb_of(w, 1)->recovery_offset_sectors = 1024;
    expect(w, 0);
    expect_fate(w, 1, FATE_REBUILDING);
    assert_int_equal(w->assembly.member_candidate[1], 1);
    assert_int_equal(w->assembly.degraded, 1);
    dirty_from(w, 0);
    expect(w, -EUCLEAN);
    absent(w, 2);
    expect(w, -ENOTCONN);
    free(w);
}

/* The update that gave the slot away reached the new member alone. */
static void
a_rebuilding_member_that_is_freshest_does_not_reject_the_others(void **state)
{
    struct world *w = make(5, 3);

    sb_of(w, 1)->feature_map |= SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    all_others_say(w, 1, SUPERBLOCK_ROLE_SPARE);
    sb_of(w, 1)->events++;
    expect(w, 0);
    expect_fate(w, 0, FATE_IN_SYNC);
    expect_fate(w, 2, FATE_IN_SYNC);
    expect_fate(w, 1, FATE_REBUILDING);
    free(w);
}

/* As mdadm numbers them: a=0, b=1, journal=3, c=4. */
static void
numbers_may_have_holes(void **state)
{
    struct world *w = make_journaled(5, 3);

    for (unsigned i = 0; i < 4; i++) {
        struct superblock *sb = sb_of(w, i);

        sb->dev_roles[2] = SUPERBLOCK_ROLE_SPARE;
        sb->dev_roles[3] = SUPERBLOCK_ROLE_JOURNAL;
        sb->dev_roles[4] = 2;
    }
    sb_of(w, 2)->dev_number = 4;
    w->options.readonly = true;
    expect(w, 0);
    assert_int_equal(w->assembly.degraded, 0);
    assert_int_equal(w->assembly.member_candidate[2], 2);
    assert_int_equal(w->assembly.journal_candidate, 3);
    free(w);
}

static void
the_order_of_devices_does_not_matter(void **state)
{
    struct world *w = make(5, 4);

    for (unsigned i = 0; i < 4; i++) {
        struct superblock *sb = sb_of(w, i);

        for (unsigned number = 0; number < 4; number++)
            sb->dev_roles[number] = (uint16_t)(3 - number);
    }
    expect(w, 0);
    for (unsigned slot = 0; slot < 4; slot++)
        assert_int_equal(w->assembly.member_candidate[slot], 3 - slot);
    free(w);
}

/* ---- Dirt ---- */

static void
clean_only_if_every_current_member_says_so(void **state)
{
    for (unsigned odd = 0; odd < 4; odd++)
        for (uint64_t behind = 0; behind <= 1; behind++) {
            struct world *w = make(5, 4);

            sb_of(w, odd)->resync_offset_sectors = 512;
            sb_of(w, odd)->events -= behind;
            expect(w, 0);
            assert_true(w->assembly.dirty);
            assert_int_equal(w->assembly.resync_from_bytes, 512 * SECTOR_BYTES);
            free(w);
        }
}

static void
the_most_cautious_resync_offset_counts(void **state)
{
    struct world *w = make(5, 4);

    dirty_from(w, 2048);
    sb_of(w, 1)->resync_offset_sectors = 1024;
    expect(w, 0);
    assert_int_equal(w->assembly.resync_from_bytes, 1024 * SECTOR_BYTES);
    free(w);
}

static void
what_a_stale_member_says_of_dirt_does_not_count(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 3)->resync_offset_sectors = 0;
    sb_of(w, 3)->events -= 2;
    expect(w, 0);
    assert_false(w->assembly.dirty);
    free(w);
}

static void
dirty_degraded_names_the_force_that_starts_it(void **state)
{
    struct world *w = make(5, 4);

    absent(w, 1);
    dirty_from(w, 0);
    w->options.force = FORCE_STALE_MEMBER | FORCE_DROP_JOURNAL | FORCE_NEW_JOURNAL;
    expect(w, -EUCLEAN);
    expect_text(w->error.text, "--force=dirty-degraded");
    free(w);
}

/* ---- Force ---- */

static void
force_takes_the_newest_stale_member_and_no_more(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 1)->events -= 5;
    sb_of(w, 2)->events -= 3;
    expect(w, -ENOTCONN);
    expect_text(w->error.text, "--force=stale-member");
    w->options.force = FORCE_DIRTY_DEGRADED;
    expect(w, -ENOTCONN);
    w->options.force = FORCE_STALE_MEMBER;
    expect(w, 0);
    expect_fate(w, 2, FATE_IN_SYNC);
    expect_fate(w, 1, FATE_STALE);
    assert_int_equal(w->assembly.degraded, 1);
    assert_true(warned(w, "c is used although it is stale"));
    free(w);
}

static void
force_leaves_a_stale_member_out_where_the_array_can_do_without(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 1)->events -= 5;
    w->options.force = FORCE_STALE_MEMBER;
    expect(w, 0);
    expect_fate(w, 1, FATE_STALE);
    free(w);
}

static void
force_never_takes_a_half_rebuilt_member(void **state)
{
    struct world *w = make(5, 4);

    sb_of(w, 1)->events -= 3;
    sb_of(w, 1)->feature_map |= SUPERBLOCK_FEATURE_RECOVERY_OFFSET;
    absent(w, 2);
    w->options.force = FORCE_STALE_MEMBER;
    expect(w, -ENOTCONN);
    free(w);
}

/* ---- Journal ---- */

/* Current, one behind, two behind, absent; which force; read-only or not. */
static void
a_journal_must_be_current_unless_readonly_or_dropped(void **state)
{
    for (unsigned behind = 0; behind < 4; behind++)
        for (unsigned force = 0; force < 32; force++)
            for (unsigned readonly = 0; readonly < 2; readonly++) {
                struct world *w = make_journaled(5, 4);
                const bool there = behind < 2;
                const bool dropped = force & FORCE_DROP_JOURNAL;

                if (behind == 3)
                    absent(w, 4);
                else
                    sb_of(w, 4)->events -= behind;
                w->options.force = force;
                w->options.readonly = readonly;
                expect(w, readonly || there || dropped ? 0 : -ENODEV);
                assert_true(w->assembly.journal_expected);
                assert_int_equal(w->assembly.journal_candidate, there && !dropped ? 4 : -1);
                /* A3: without it, nothing is known to be clean. */
                assert_int_equal(w->assembly.dirty, !there || dropped);
                if (w->assembly.dirty)
                    assert_int_equal(w->assembly.resync_from_bytes, 0);
                if (behind == 2)
                    expect_fate(w, 4, FATE_STALE);
                assert_int_equal(warned(w, "what the members hold"),
                                 readonly && (!there || dropped));
                assert_int_equal(warned(w, "the journal is dropped"), !readonly && dropped);
                free(w);
            }
}

/* The last line says why there is none, the one before what can be done. */
static void
why_there_is_no_journal_is_said(void **state)
{
    static const struct {
        enum { MISSING, DAMAGED, STALE, STRUCK_OFF, NOT_KNOWN } what;
        const char *text;
    } cases[] = {{MISSING, "the journal is missing"},
                 {DAMAGED, "unusable: e: no md superblock"},
                 {STALE, "the journal e is stale: 18 events, a has 20"},
                 {STRUCK_OFF, "the journal e is faulty: a says that it failed"},
                 {NOT_KNOWN, "the journal e is stale: a went on without it"}};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct world *w = make_journaled(5, 4);
        const char *last;

        if (cases[i].what == MISSING)
            w->count--;
        else if (cases[i].what == DAMAGED)
            absent(w, 4);
        else if (cases[i].what == STALE)
            sb_of(w, 4)->events -= 2;
        else if (cases[i].what == STRUCK_OFF)
            all_others_say(w, 4, SUPERBLOCK_ROLE_FAULTY);
        else
            all_others_say(w, 4, SUPERBLOCK_ROLE_SPARE);
        expect(w, -ENODEV);
        last = strrchr(w->error.text, '\n');
        assert_non_null(last);
        expect_text(last, cases[i].text);
        expect_text(w->error.text, "--force=drop-journal");
        expect_text(w->error.text, "--readonly");
        assert_int_equal(w->assembly.journal_candidate, -1);
        free(w);
    }
}

/* Struck off by an update that it missed: one event behind would be current otherwise. And by its
 * own word, where it did not miss it. */
static void
a_journal_that_was_struck_off_is_never_used(void **state)
{
    for (unsigned behind = 0; behind < 2; behind++)
        for (unsigned knows = 0; knows < 2; knows++) {
            struct world *w = make_journaled(6, 4);

            all_others_say(w, 4, SUPERBLOCK_ROLE_FAULTY);
            if (knows)
                sb_of(w, 4)->dev_roles[4] = SUPERBLOCK_ROLE_FAULTY;
            sb_of(w, 4)->events -= behind;
            expect(w, -ENODEV);
            assert_int_equal(w->assembly.journal_candidate, -1);
            assert_true(w->fates[4] != FATE_JOURNAL);
            w->options.readonly = true;
            expect(w, 0);
            assert_int_equal(w->assembly.journal_candidate, -1);
            w->options.readonly = false;
            w->options.force = FORCE_DROP_JOURNAL;
            expect(w, 0);
            free(w);
        }
}

static void
a_dropped_journal_and_a_missing_member_need_both_words(void **state)
{
    struct world *w = make_journaled(5, 4);

    absent(w, 1);
    w->options.force = FORCE_DROP_JOURNAL;
    expect(w, -EUCLEAN);
    w->options.force = FORCE_DROP_JOURNAL | FORCE_DIRTY_DEGRADED;
    expect(w, 0);
    assert_true(w->assembly.forced_dirty_degraded);
    assert_int_equal(w->assembly.journal_candidate, -1);
    free(w);
}

/* What concerns the log's content is not decided here. */
static void
forces_for_the_log_do_not_replace_the_journal(void **state)
{
    struct world *w = make_journaled(5, 4);

    w->count--;
    w->options.force = FORCE_NEW_JOURNAL | FORCE_TRUNCATE_JOURNAL | FORCE_STALE_MEMBER;
    expect(w, -ENODEV);
    free(w);
}

static void
a_journal_of_another_array_is_refused_by_name(void **state)
{
    struct world *w = make_journaled(5, 4);

    memset(sb_of(w, 4)->set_uuid, 0x77, SUPERBLOCK_UUID_BYTES);
    expect(w, -EINVAL);
    expect_fate(w, 4, FATE_FOREIGN);
    expect_text(w->error.text, "e is of array");
    w->options.force = FORCE_DROP_JOURNAL;
    expect(w, -EINVAL);
    free(w);
}

static void
an_array_without_its_journal_is_never_trusted_as_clean(void **state)
{
    struct world *w = make_journaled(5, 4);

    absent(w, 4);
    absent(w, 1);
    w->options.readonly = true;
    expect(w, -EUCLEAN);
    expect_text(w->error.text, "without its journal");
    w->options.force = FORCE_DIRTY_DEGRADED;
    expect(w, 0);
    assert_int_equal(w->assembly.resync_from_bytes, 0);
    free(w);
}

static void
a_degraded_array_with_its_journal_starts(void **state)
{
    for (unsigned readonly = 0; readonly < 2; readonly++) {
        struct world *w = make_journaled(5, 4);

        absent(w, 1);
        w->options.readonly = readonly;
        expect(w, 0);
        assert_int_equal(w->assembly.degraded, 1);
        assert_int_equal(w->assembly.journal_candidate, 4);
        assert_false(w->assembly.dirty);
        free(w);
    }
}

static void
a_dirty_degraded_array_with_its_journal_is_refused(void **state)
{
    struct world *w = make_journaled(5, 4);

    absent(w, 1);
    dirty_from(w, 0);
    for (unsigned readonly = 0; readonly < 2; readonly++) {
        w->options.readonly = readonly;
        expect(w, -EUCLEAN);
    }
    w->options.force = FORCE_DIRTY_DEGRADED;
    expect(w, 0);
    assert_int_equal(w->assembly.journal_candidate, 4);
    free(w);
}

static void
a_journal_alone_may_be_the_freshest(void **state)
{
    struct world *w = make_journaled(5, 3);

    sb_of(w, 3)->events++;
    w->options.readonly = true;
    expect(w, 0);
    assert_int_equal(w->assembly.freshest_index, 3);
    assert_int_equal(w->assembly.degraded, 0);
    assert_true(w->assembly.events_uneven);
    free(w);
}

static void
a_journal_of_an_array_that_has_none_is_ignored(void **state)
{
    struct world *w = make_journaled(5, 3);

    for (unsigned i = 0; i < 4; i++)
        sb_of(w, i)->feature_map = 0;
    expect(w, 0);
    expect_fate(w, 3, FATE_UNUSABLE);
    assert_false(w->assembly.journal_expected);
    assert_int_equal(w->assembly.journal_candidate, -1);
    free(w);
}

static void
two_journals_equally_new_are_refused(void **state)
{
    struct world *w = make_journaled(5, 3);

    add_device(w, 5, 3, SUPERBLOCK_ROLE_JOURNAL);
    sb_of(w, 4)->feature_map = SUPERBLOCK_FEATURE_JOURNAL;
    w->options.readonly = true;
    expect(w, -EINVAL);
    w->options.readonly = false;
    expect(w, -EINVAL);
    expect_text(w->error.text, "leave out the copy");
    free(w);
}

static void
of_two_journals_the_newer_is_taken(void **state)
{
    for (unsigned newer = 3; newer <= 4; newer++) {
        struct world *w = make_journaled(5, 3);

        add_device(w, 5, 3, SUPERBLOCK_ROLE_JOURNAL);
        sb_of(w, 4)->feature_map = SUPERBLOCK_FEATURE_JOURNAL;
        sb_of(w, 4)->dev_number = 3;
        memcpy(sb_of(w, 4)->dev_roles, sb_of(w, 3)->dev_roles, sizeof sb_of(w, 3)->dev_roles);
        sb_of(w, 7 - newer)->events--;
        expect(w, 0);
        assert_int_equal(w->assembly.journal_candidate, newer);
        expect_fate(w, 7 - newer, FATE_DUPLICATE);
        free(w);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_healthy_array_starts_without_a_warning),
        cmocka_unit_test(start_is_allowed_by_level_missing_members_dirt_and_force),
        cmocka_unit_test(no_superblock_anywhere_is_refused),
        cmocka_unit_test(only_unsupported_superblocks_are_refused_with_their_reason),
        cmocka_unit_test(only_spares_are_no_array),
        cmocka_unit_test(the_same_device_twice_is_refused),
        cmocka_unit_test(a_copy_of_a_member_is_refused),
        cmocka_unit_test(members_of_two_arrays_are_refused_by_name),
        cmocka_unit_test(a_spare_of_another_array_is_refused_as_well),
        cmocka_unit_test(members_that_contradict_each_other_are_refused),
        cmocka_unit_test(a_stale_member_may_differ),
        cmocka_unit_test(one_event_behind_is_current),
        cmocka_unit_test(two_events_behind_is_stale),
        cmocka_unit_test(one_member_ahead_takes_all_others_along),
        cmocka_unit_test(the_freshest_says_what_a_member_is),
        cmocka_unit_test(a_number_behind_the_freshest_table_is_rejected),
        cmocka_unit_test(a_spare_that_was_about_to_be_rebuilt_stays_a_spare),
        cmocka_unit_test(a_spare_with_more_events_is_never_freshest),
        cmocka_unit_test(a_sleeping_spare_is_a_spare),
        cmocka_unit_test(a_member_left_behind_by_one_update_is_not_read_as_good),
        cmocka_unit_test(a_stale_member_that_is_dirty_needs_both_words),
        cmocka_unit_test(a_stale_member_with_a_forged_count_stays_out_wherever_it_stands),
        cmocka_unit_test(of_two_histories_the_longer_one_counts),
        cmocka_unit_test(of_two_histories_as_long_as_each_other_none_is_chosen),
        cmocka_unit_test(a_member_that_went_on_without_the_freshest_is_rejected),
        cmocka_unit_test(of_two_in_one_slot_the_newer_is_taken),
        cmocka_unit_test(a_replacement_does_not_take_the_slot),
        cmocka_unit_test(a_rebuilding_member_has_its_slot_and_counts_as_missing),
        cmocka_unit_test(a_rebuilding_member_that_is_freshest_does_not_reject_the_others),
        cmocka_unit_test(numbers_may_have_holes),
        cmocka_unit_test(the_order_of_devices_does_not_matter),
        cmocka_unit_test(clean_only_if_every_current_member_says_so),
        cmocka_unit_test(the_most_cautious_resync_offset_counts),
        cmocka_unit_test(what_a_stale_member_says_of_dirt_does_not_count),
        cmocka_unit_test(dirty_degraded_names_the_force_that_starts_it),
        cmocka_unit_test(force_takes_the_newest_stale_member_and_no_more),
        cmocka_unit_test(force_leaves_a_stale_member_out_where_the_array_can_do_without),
        cmocka_unit_test(force_never_takes_a_half_rebuilt_member),
        cmocka_unit_test(a_journal_must_be_current_unless_readonly_or_dropped),
        cmocka_unit_test(why_there_is_no_journal_is_said),
        cmocka_unit_test(a_journal_that_was_struck_off_is_never_used),
        cmocka_unit_test(a_dropped_journal_and_a_missing_member_need_both_words),
        cmocka_unit_test(forces_for_the_log_do_not_replace_the_journal),
        cmocka_unit_test(a_journal_of_another_array_is_refused_by_name),
        cmocka_unit_test(of_two_journals_the_newer_is_taken),
        cmocka_unit_test(an_array_without_its_journal_is_never_trusted_as_clean),
        cmocka_unit_test(a_degraded_array_with_its_journal_starts),
        cmocka_unit_test(a_dirty_degraded_array_with_its_journal_is_refused),
        cmocka_unit_test(a_journal_alone_may_be_the_freshest),
        cmocka_unit_test(a_journal_of_an_array_that_has_none_is_ignored),
        cmocka_unit_test(two_journals_equally_new_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
