/*
 * geometry.c: the layouts as rules, and the mapping both ways.
 *
 * G1. Within a row the data members, P and Q are all different, and together
 *     all members.
 * G2. geometry_data_index undoes geometry_data_member.
 * G3. Rows r and r + row_period have the same p and q.
 * G4. The exponents of a row are different and below 255 (the order of g).
 *
 * Rows are computed, not looked up: a row costs one division, mapping an
 * offset two. What repeats per member (a wrap around) is a compare and a
 * subtraction, since no sum here reaches twice the ring.
 */
#include "geometry/geometry.h"

#define EXPONENT_MAX 254u

/* p_first counted from the end: the member is n - (value). */
#define FROM_END(value) ((unsigned)-(value))

struct layout {
    const char *name;
    const char *abbreviation; /* NULL: none */
    unsigned number;
    unsigned fewer; /* members that the rotation leaves out, at the end: 1 for the *-6 layouts */
    enum geometry_p_rule p_rule;
    unsigned p_first; /* a member, or FROM_END */
    enum geometry_q_rule q_rule;
    unsigned q_fixed; /* a member, or FROM_END; for Q_FIXED */
    enum geometry_data_rule data_rule;
    unsigned data_skip; /* for DATA_FOLLOWING */
    enum geometry_exponent_rule exponent_rule;
};

/* clang-format off */
#define FALLS     GEOMETRY_P_FALLS
#define RISES     GEOMETRY_P_RISES
#define FIXED     GEOMETRY_P_FIXED
#define NONE      GEOMETRY_Q_NONE
#define AFTER     GEOMETRY_Q_AFTER_P
#define BEFORE    GEOMETRY_Q_BEFORE_P
#define AT        GEOMETRY_Q_FIXED
#define ASCENDING GEOMETRY_DATA_ASCENDING
#define FOLLOWING GEOMETRY_DATA_FOLLOWING
#define INDEX     GEOMETRY_EXPONENT_INDEX
#define AFTER_Q   GEOMETRY_EXPONENT_AFTER_Q
#define BY_RANK   GEOMETRY_EXPONENT_ASCENDING
#define MEMBER    GEOMETRY_EXPONENT_MEMBER

static const struct layout raid5_layouts[] = {
    /* name             abbr  no less  P      from         Q              data       skip exponent */
    {"left-asymmetric",  "la", 0, 0, FALLS, FROM_END(1), NONE, 0, ASCENDING, 0, INDEX},
    {"right-asymmetric", "ra", 1, 0, RISES, 0,           NONE, 0, ASCENDING, 0, INDEX},
    {"left-symmetric",   "ls", 2, 0, FALLS, FROM_END(1), NONE, 0, FOLLOWING, 1, INDEX},
    {"right-symmetric",  "rs", 3, 0, RISES, 0,           NONE, 0, FOLLOWING, 1, INDEX},
    {"parity-first",     NULL, 4, 0, FIXED, 0,           NONE, 0, ASCENDING, 0, INDEX},
    {"parity-last",      NULL, 5, 0, FIXED, FROM_END(1), NONE, 0, ASCENDING, 0, INDEX},
};

static const struct layout raid6_layouts[] = {
    /* name               abbr  no less   P      from         Q                    data       skip exponent */
    {"left-asymmetric",    "la", 0,  0, FALLS, FROM_END(1), AFTER,  0,           ASCENDING, 0, AFTER_Q},
    {"right-asymmetric",   "ra", 1,  0, RISES, 0,           AFTER,  0,           ASCENDING, 0, AFTER_Q},
    {"left-symmetric",     "ls", 2,  0, FALLS, FROM_END(1), AFTER,  0,           FOLLOWING, 2, INDEX},
    {"right-symmetric",    "rs", 3,  0, RISES, 0,           AFTER,  0,           FOLLOWING, 2, INDEX},
    {"parity-first",       NULL, 4,  0, FIXED, 0,           AT,     1,           ASCENDING, 0, INDEX},
    {"parity-last",        NULL, 5,  0, FIXED, FROM_END(2), AT,     FROM_END(1), ASCENDING, 0, INDEX},
    {"ddf-zero-restart",   NULL, 8,  0, RISES, 0,           AFTER,  0,           ASCENDING, 0, MEMBER},
    {"ddf-N-restart",      NULL, 9,  0, FALLS, FROM_END(2), AFTER,  0,           ASCENDING, 0, MEMBER},
    {"ddf-N-continue",     NULL, 10, 0, FALLS, FROM_END(1), BEFORE, 0,           FOLLOWING, 1, MEMBER},
    {"left-asymmetric-6",  NULL, 16, 1, FALLS, FROM_END(2), AT,     FROM_END(1), ASCENDING, 0, INDEX},
    {"right-asymmetric-6", NULL, 17, 1, RISES, 0,           AT,     FROM_END(1), ASCENDING, 0, INDEX},
    {"left-symmetric-6",   NULL, 18, 1, FALLS, FROM_END(2), AT,     FROM_END(1), FOLLOWING, 1, BY_RANK},
    {"right-symmetric-6",  NULL, 19, 1, RISES, 0,           AT,     FROM_END(1), FOLLOWING, 1, BY_RANK},
    {"parity-first-6",     NULL, 20, 1, FIXED, 0,           AT,     FROM_END(1), ASCENDING, 0, INDEX},
};
/* clang-format on */

/* The layouts of a level by name; level 4 has none to choose from. */
static const struct layout *
layouts_of_level(int level, size_t *count)
{
    if (level == 5) {
        *count = ARRAY_LEN(raid5_layouts);
        return raid5_layouts;
    }
    *count = level == 6 ? ARRAY_LEN(raid6_layouts) : 0;
    return raid6_layouts;
}

static const struct layout *
layout_find(int level, unsigned number)
{
    size_t count;
    const struct layout *layouts = layouts_of_level(level, &count);
    for (size_t i = 0; i < count; i++) {
        if (layouts[i].number == number)
            return &layouts[i];
    }
    return NULL;
}

static unsigned
resolve_member(unsigned value, unsigned members)
{
    return value < MEMBERS_MAX ? value : members + value;
}

int
geometry_init(struct geometry *geometry, const struct geometry_config *config)
{
    /* RAID-4 is RAID-5's parity-last, whatever its superblock's layout says. */
    const struct layout *layout =
        config->level == 4 ? layout_find(5, 5) : layout_find(config->level, config->layout);
    if (layout == NULL)
        return -ENOTSUP;

    const unsigned n = config->members;
    const unsigned parities = config->level == 6 ? 2 : 1;
    const bool exponent_is_member = layout->exponent_rule == GEOMETRY_EXPONENT_MEMBER;
    if (n < (parities == 2 ? 4u : 2u) || n > (exponent_is_member ? EXPONENT_MAX + 1 : MEMBERS_MAX))
        return -EINVAL;

    if (!is_power_of_two(config->chunk_bytes) || config->chunk_bytes < BLOCK_BYTES)
        return -EINVAL;
    const uint64_t member_bytes = round_down(config->size_bytes, config->chunk_bytes);
    uint64_t array_bytes;
    if (member_bytes == 0 ||
        __builtin_mul_overflow(member_bytes, (uint64_t)(n - parities), &array_bytes) ||
        array_bytes > INT64_MAX)
        return -EINVAL;

    const unsigned chunk_shift = (unsigned)__builtin_ctzll(config->chunk_bytes);
    *geometry = (struct geometry){
        .level = config->level,
        .layout = config->layout,
        .members = n,
        .parities = parities,
        .data_members = n - parities,
        .chunk_shift = chunk_shift,
        .chunk_bytes = config->chunk_bytes,
        .member_bytes = member_bytes,
        .array_bytes = array_bytes,
        .rows = member_bytes >> chunk_shift,
        .row_period = layout->p_rule == GEOMETRY_P_FIXED ? 1 : n - layout->fewer,
        .p_rule = layout->p_rule,
        .q_rule = layout->q_rule,
        .data_rule = layout->data_rule,
        .exponent_rule = layout->exponent_rule,
        .p_first = resolve_member(layout->p_first, n),
        .q_fixed = resolve_member(layout->q_fixed, n),
        .data_skip = layout->data_skip,
        .data_ring = n - layout->fewer,
    };
    return 0;
}

static unsigned
row_p(const struct geometry *geometry, uint64_t number)
{
    if (geometry->p_rule == GEOMETRY_P_FIXED)
        return geometry->p_first;
    const unsigned turn = (unsigned)(number % geometry->row_period);
    if (geometry->p_rule == GEOMETRY_P_RISES)
        return turn;
    return turn <= geometry->p_first ? geometry->p_first - turn
                                     : geometry->p_first + geometry->row_period - turn;
}

static unsigned
row_q(const struct geometry *geometry, unsigned p)
{
    const unsigned last = geometry->members - 1;
    switch (geometry->q_rule) {
    case GEOMETRY_Q_NONE:
        return NO_MEMBER;
    case GEOMETRY_Q_AFTER_P:
        return p == last ? 0 : p + 1;
    case GEOMETRY_Q_BEFORE_P:
        return p == 0 ? last : p - 1;
    case GEOMETRY_Q_FIXED:
        break;
    }
    return geometry->q_fixed;
}

void
geometry_row(const struct geometry *geometry, uint64_t number, struct row *row)
{
    row->number = number;
    row->p = row_p(geometry, number);
    row->q = row_q(geometry, row->p);
}

unsigned
geometry_data_member(const struct geometry *geometry, const struct row *row, unsigned data_index)
{
    assert(data_index < geometry->data_members);
    if (geometry->data_rule == GEOMETRY_DATA_FOLLOWING) {
        const unsigned member = row->p + geometry->data_skip + data_index;
        return member < geometry->data_ring ? member : member - geometry->data_ring;
    }
    /* NO_MEMBER as q is above every member, so one rule serves one parity and two. */
    const unsigned lower = row->p < row->q ? row->p : row->q;
    const unsigned upper = row->p < row->q ? row->q : row->p;
    unsigned member = data_index;
    if (member >= lower)
        member++;
    if (member >= upper)
        member++;
    return member;
}

unsigned
geometry_data_index(const struct geometry *geometry, const struct row *row, unsigned member)
{
    assert(member < geometry->members);
    if (member == row->p || member == row->q)
        return NO_MEMBER;
    if (geometry->data_rule == GEOMETRY_DATA_FOLLOWING) {
        const unsigned distance = member + geometry->data_ring - row->p - geometry->data_skip;
        return distance < geometry->data_ring ? distance : distance - geometry->data_ring;
    }
    return member - (member > row->p) - (member > row->q);
}

unsigned
geometry_q_exponent(const struct geometry *geometry, const struct row *row, unsigned member)
{
    assert(member < geometry->members);
    assert(member != row->p);
    assert(member != row->q);
    switch (geometry->exponent_rule) {
    case GEOMETRY_EXPONENT_INDEX:
        break;
    case GEOMETRY_EXPONENT_AFTER_Q:
        return member > row->q ? member - row->q - 1 : member + geometry->members - row->q - 1;
    case GEOMETRY_EXPONENT_ASCENDING:
        return member - (member > row->p);
    case GEOMETRY_EXPONENT_MEMBER:
        return member;
    }
    return geometry_data_index(geometry, row, member);
}

void
geometry_map(const struct geometry *geometry, uint64_t array_offset, struct place *place)
{
    assert(array_offset < geometry->array_bytes);
    const uint64_t chunk = array_offset >> geometry->chunk_shift;
    const uint64_t within = array_offset & (geometry->chunk_bytes - 1);
    const uint64_t number = chunk / geometry->data_members;
    struct row row;
    geometry_row(geometry, number, &row);

    place->data_index = (unsigned)(chunk - number * geometry->data_members);
    place->member = geometry_data_member(geometry, &row, place->data_index);
    place->member_offset = (number << geometry->chunk_shift) + within;
    place->row = number;
    place->length = geometry->chunk_bytes - within;
}

bool
geometry_unmap(const struct geometry *geometry, unsigned member, uint64_t member_offset,
               uint64_t *array_offset)
{
    assert(member_offset < geometry->member_bytes);
    struct row row;
    geometry_row(geometry, geometry_row_at(geometry, member_offset), &row);
    const unsigned data_index = geometry_data_index(geometry, &row, member);
    if (data_index == NO_MEMBER)
        return false;
    *array_offset = geometry_chunk_offset(geometry, row.number, data_index) +
                    (member_offset & (geometry->chunk_bytes - 1));
    return true;
}

const char *
geometry_layout_name(int level, unsigned layout)
{
    const struct layout *found = layout_find(level, layout);
    return found == NULL ? NULL : found->name;
}

/* What RAID-5 calls by the names of DDF is the same as three of its own layouts. */
static const struct {
    const char *name;
    unsigned number;
} raid5_synonyms[] = {
    {"ddf-N-restart", 0},
    {"ddf-zero-restart", 1},
    {"ddf-N-continue", 2},
};

int
geometry_layout_parse(int level, const char *name, unsigned *layout)
{
    size_t count;
    const struct layout *layouts = layouts_of_level(level, &count);
    for (size_t i = 0; i < count; i++) {
        const char *abbreviation = layouts[i].abbreviation;
        if (strcmp(name, layouts[i].name) == 0 ||
            (abbreviation != NULL && strcmp(name, abbreviation) == 0)) {
            *layout = layouts[i].number;
            return 0;
        }
    }
    if (count != 0 && strcmp(name, "default") == 0) {
        *layout = GEOMETRY_LAYOUT_DEFAULT;
        return 0;
    }
    for (size_t i = 0; level == 5 && i < ARRAY_LEN(raid5_synonyms); i++) {
        if (strcmp(name, raid5_synonyms[i].name) == 0) {
            *layout = raid5_synonyms[i].number;
            return 0;
        }
    }
    return -EINVAL;
}
