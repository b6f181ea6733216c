/*
 * geometry.h: where an array's bytes are on its members.
 *
 * An array is cut into chunks; one chunk of every member at the same place is
 * a row. A row of n members holds data_members data chunks and one (P) or two
 * (P and Q) parity chunks; the layout says which member holds what in which
 * row. The formulas are those of docs/format, "Geometry" (the numbers of
 * Linux md's algorithms).
 *
 *      array:    | chunk 0 | chunk 1 | chunk 2 | chunk 3 | ...
 *                     |         |         |         |
 *      RAID-5,      member 0  member 1  member 2  member 3
 *      4 members,     0         1         2         P        row 0
 *      left-          4         5         P         3        row 1
 *      symmetric      8         P         6         7        row 2
 *
 * A data chunk has three numbers that are easy to confuse:
 *   data index d   its place among the row's data, in array order;
 *   member         the device it is on;
 *   Q exponent e   Q = sum of g^e * D. It is NOT always d: layouts 0, 1, 18
 *                  and 19 of RAID-6 count from the member after Q, and the
 *                  DDF ones (8, 9, 10) use the member's own number, with gaps.
 *
 * Offsets and lengths are bytes. Member offsets count from the member's
 * data_offset. Everything here is pure: no I/O, no allocation, no state.
 */
#ifndef STRIPELOG_GEOMETRY_H
#define STRIPELOG_GEOMETRY_H

#include "base/base.h"

/* In place of a member or a data index: there is none. */
#define NO_MEMBER UINT32_MAX

#define GEOMETRY_LAYOUT_DEFAULT 2u /* left-symmetric, for levels 5 and 6 */

/* A set of rows is described by four rules; a layout is a combination of them. */
enum geometry_p_rule {
    GEOMETRY_P_FALLS, /* p = p_first - (row mod period), wrapping below 0 to n - 1 */
    GEOMETRY_P_RISES, /* p = row mod period */
    GEOMETRY_P_FIXED, /* p = p_first */
};

enum geometry_q_rule {
    GEOMETRY_Q_NONE,
    GEOMETRY_Q_AFTER_P,  /* (p + 1) mod n */
    GEOMETRY_Q_BEFORE_P, /* (p - 1) mod n */
    GEOMETRY_Q_FIXED,    /* q_fixed */
};

enum geometry_data_rule {
    GEOMETRY_DATA_ASCENDING, /* by member number, skipping P and Q */
    GEOMETRY_DATA_FOLLOWING, /* from the member data_skip behind P, round over data_ring members */
};

enum geometry_exponent_rule {
    GEOMETRY_EXPONENT_INDEX,     /* e = d */
    GEOMETRY_EXPONENT_AFTER_Q,   /* e = (m - q - 1) mod n */
    GEOMETRY_EXPONENT_ASCENDING, /* e = m, one less behind P (Q is last) */
    GEOMETRY_EXPONENT_MEMBER,    /* e = m: DDF, with gaps at P and Q */
};

struct geometry {
    int level;             /* 4, 5 or 6 */
    unsigned layout;       /* the superblock's number; RAID-4 keeps what it was given */
    unsigned members;      /* n, the superblock's raid_disks */
    unsigned parities;     /* 1 or 2 */
    unsigned data_members; /* n - parities */
    unsigned chunk_shift;
    uint64_t chunk_bytes;
    uint64_t member_bytes; /* used of each member; a multiple of the chunk */
    uint64_t array_bytes;
    uint64_t rows;
    unsigned row_period; /* rows r and r + row_period look the same */

    /* The layout as rules; for geometry.c alone. */
    enum geometry_p_rule p_rule;
    enum geometry_q_rule q_rule;
    enum geometry_data_rule data_rule;
    enum geometry_exponent_rule exponent_rule;
    unsigned p_first;
    unsigned q_fixed;
    unsigned data_skip;
    unsigned data_ring;
};

struct geometry_config {
    int level;
    unsigned layout;
    unsigned members;
    uint64_t chunk_bytes;
    uint64_t
        size_bytes; /* the superblock's size: usable of each member, rounded down to chunks here */
};

/*
 * -ENOTSUP: a level or layout that is not known. -EINVAL: a chunk that is not
 * a power of two of at least 4096 bytes, too few or too many members, no whole
 * chunk in size_bytes, or an array of more than INT64_MAX bytes.
 */
must_check int geometry_init(struct geometry *geometry, const struct geometry_config *config);

/* Who holds parity in one row. q is NO_MEMBER with one parity. */
struct row {
    uint64_t number;
    unsigned p;
    unsigned q;
};

void geometry_row(const struct geometry *geometry, uint64_t number, struct row *row);

/* Data index -> member. */
must_check unsigned geometry_data_member(const struct geometry *geometry, const struct row *row,
                                         unsigned data_index);

/* Member -> data index, or NO_MEMBER if it holds parity in this row. */
must_check unsigned geometry_data_index(const struct geometry *geometry, const struct row *row,
                                        unsigned member);

/*
 * The exponent of a data member in Q; distinct within a row, at most 254. For
 * one parity it is the data index, so that callers need not distinguish.
 */
must_check unsigned geometry_q_exponent(const struct geometry *geometry, const struct row *row,
                                        unsigned member);

/* Array offset of a data chunk. */
must_check static inline uint64_t
geometry_chunk_offset(const struct geometry *geometry, uint64_t row, unsigned data_index)
{
    return (row * geometry->data_members + data_index) << geometry->chunk_shift;
}

/* The row that a member offset is in; a row begins at row << chunk_shift on every member. */
must_check static inline uint64_t
geometry_row_at(const struct geometry *geometry, uint64_t member_offset)
{
    return member_offset >> geometry->chunk_shift;
}

/* Where a byte of the array is, and how many bytes follow it in the same chunk (itself included).
 */
struct place {
    unsigned member;
    unsigned data_index;
    uint64_t member_offset;
    uint64_t row;
    uint64_t length;
};

/* array_offset must be below array_bytes. */
void geometry_map(const struct geometry *geometry, uint64_t array_offset, struct place *place);

/* The inverse. False where the member holds parity; member_offset must be below member_bytes. */
must_check bool geometry_unmap(const struct geometry *geometry, unsigned member,
                               uint64_t member_offset, uint64_t *array_offset);

/*
 * mdadm's name of a layout, NULL for one that is not known (and for level 4,
 * which has none).
 */
must_check const char *geometry_layout_name(int level, unsigned layout);

/*
 * The other way, with mdadm's abbreviations la, ra, ls, rs and "default"; for
 * RAID-5 also the ddf-* names, which mean 1, 0 and 2 there. -EINVAL: no such
 * layout at this level.
 */
must_check int geometry_layout_parse(int level, const char *name, unsigned *layout);

#endif
