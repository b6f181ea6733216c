/*
 * base.h: the few words every module uses.
 *
 * Marks on declarations, checked integer arithmetic, little-endian access.
 * Everything here is header-only and pure.
 */
#ifndef STRIPELOG_BASE_H
#define STRIPELOG_BASE_H

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The result must be looked at; cast to void, with the reason beside it, where it may be ignored.
 */
#define must_check __attribute__((warn_unused_result))

/* For a must_check result that does not matter; the reason stands beside it. */
#define ignored(call) ((void)!(call))

/* The function may suspend its task: what was learned from shared tables before the call may be
 * stale after it. */
#define task_fn

#define printf_like(format_index, first_arg)                                                       \
    __attribute__((format(printf, format_index, first_arg)))

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(pointer, type, member)                                                        \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#define SECTOR_BYTES  512u
#define BLOCK_BYTES   4096u
#define BLOCK_SECTORS 8u
#define MEMBERS_MAX   256u

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define GIB (1024ull * MIB)

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* unit must be a power of two. */
static inline uint64_t
round_down(uint64_t value, uint64_t unit)
{
    return value & ~(unit - 1);
}

/* unit must be a power of two; value + unit must not overflow. */
static inline uint64_t
round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) & ~(unit - 1);
}

static inline bool
is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* Little-endian, unaligned: on-disk and mixed-field access. */
static inline uint16_t
load_le16(const void *at)
{
    uint16_t v;
    memcpy(&v, at, sizeof v);
    return le16toh(v);
}

static inline uint32_t
load_le32(const void *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return le32toh(v);
}

static inline uint64_t
load_le64(const void *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return le64toh(v);
}

static inline void
store_le16(void *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof value);
}

static inline void
store_le32(void *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static inline void
store_le64(void *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

#endif
