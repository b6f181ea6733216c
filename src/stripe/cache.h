/*
 * cache.h: which blocks only the log holds, where in the log, and which of them are in memory too.
 * Pure: no I/O, no waiting; all memory is taken at creation.
 *
 * A cached block is a node: its place (stripe and member), where its newest copy stands in the
 * ring, and its page, or (dropped) the checksum with which it is read back. With its share of the
 * hash a node takes 32 bytes, so that what can be cached is a question of the journal's size, not
 * of memory's.
 *
 *   hash of the stripe --> node --> node        (all blocks of a stripe stand in one chain)
 *
 *   oldest <--> node <--> node <--> node <--> newest     in the order of their newest copies
 *     |                    |
 *     the tail             cursor: the first that was not yet chosen for write-out
 *
 * C1. Nodes stand in the order in which their newest copies stand in the log, so the first one's
 *     entry bounds the tail. Older copies of a block count for nothing (the journal is flushed
 *     before the tail passes them, J4).
 *
 * C2. What stands in the log but may have no room for its parity there could never be written out.
 *     Hence the reserve: of each stripe max(1 + parities, 1 + cached blocks) blocks of the log are
 *     set aside: a write-out takes a meta block and parity; a recovery logs the blocks again, with
 *     a meta block. A stripe that is stuck keeps it for the next recovery, unless its parity is
 *     logged.
 *
 * C3. A page is given up only for a block whose checksum is known, and not while it is pinned (it
 *     is being written out, or copied from).
 *
 * C4. A block that cannot be read back is lost, and the journal has failed (J6): it is an error to
 *     read it, never the member's older content. It bounds nothing.
 */
#ifndef STRIPELOG_CACHE_H
#define STRIPELOG_CACHE_H

#include "base/base.h"

#define CACHE_NODE_BYTES 32u /* with the hash */
#define CACHE_STRIPE_MAX (UINT64_C(1) << 40)
/* Stripes are limited by class, their number modulo 8: a kernel that recovers them needs memory for
 * eight times the fullest class (docs/testing.md). */
#define CACHE_CLASSES 8u

struct cache_config {
    unsigned data_members; /* blocks of data in a stripe */
    unsigned parities;
    unsigned group_stripes;     /* a power of two, at most 64 */
    uint64_t ring_blocks;       /* at most 2^32 */
    uint64_t bytes;             /* for everything */
    uint64_t index_bytes;       /* of these, for nodes at most */
    uint64_t class_stripes_max; /* that may be cached at a time; UINT64_MAX: any number */
};

struct cache;

/* -ENOMEM. */
int cache_create(const struct cache_config *config, struct cache **out) must_check;
void cache_destroy(struct cache *cache);

/* A node's number; 0 is none. */
typedef uint32_t cache_node;

struct cache_counts {
    uint64_t blocks; /* cached, the lost ones with them */
    uint64_t lost_blocks;
    uint64_t stripes, full_stripes; /* with blocks that are not lost; with all their data */
    uint64_t class_stripes;         /* of the fullest class */
    uint64_t blocks_max, class_stripes_max;
    uint64_t pages, pages_max;
    uint64_t cached_total, overwritten;
    uint64_t reserve_blocks;       /* C2, of all stripes */
    uint64_t stuck_reserve_blocks; /* of those that are stuck */
};
const struct cache_counts *cache_counts(const struct cache *cache);

/* --- Looking ---- */

/* May the group hold something? (Sometimes true for one that does not.) */
bool cache_group_maybe(const struct cache *cache, uint64_t group) must_check;
/* The first and the next block of a stripe. */
cache_node cache_first(const struct cache *cache, uint64_t stripe) must_check;
cache_node cache_next(const struct cache *cache, cache_node node) must_check;
/* The member's block of the stripe. */
cache_node cache_find(const struct cache *cache, uint64_t stripe, unsigned member) must_check;
unsigned cache_member(const struct cache *cache, cache_node node);
uint64_t cache_stripe(const struct cache *cache, cache_node node);
/* 4096 bytes; NULL if it is dropped. Valid until something is put, or as long as it is pinned. */
uint8_t *cache_page(struct cache *cache, cache_node node);
bool cache_lost(const struct cache *cache, cache_node node);
/* The stripe could not be written out, and has nothing set aside any more. */
bool cache_stuck(const struct cache *cache, cache_node node);
/* Its newest copy: block of the ring, and checksum. */
void cache_copy(const struct cache *cache, cache_node node, uint64_t *ring_block,
                uint32_t *checksum);

/* Blocks of the log to be set aside for a stripe with so many cached blocks: C2. */
uint64_t cache_reserve(const struct cache *cache, unsigned blocks) must_check;

/* Room for so many more blocks, and stripes of each class, beside what was promised to others? Then
 * they are promised, until cache_promise_end. */
struct cache_room {
    uint64_t blocks, class_stripes;
};
bool cache_promise(struct cache *cache, struct cache_room room) must_check;
void cache_promise_end(struct cache *cache, struct cache_room room);

/* --- Changing ---- */

struct cache_place {
    uint64_t stripe;
    unsigned member;
    uint64_t entry_block; /* of the ring: the meta block of the entry it stands in */
    uint32_t block;       /* its number there; 0 is right behind the meta block */
    uint32_t checksum;
};

/* A block's newest copy, the newest of all in the log (C1). memory: its content, copied into a page
 * where one is to be had; NULL: it stays on the journal. The block must be promised, or cached. */
void cache_put(struct cache *cache, const struct cache_place *place, const uint8_t *memory);
void cache_remove(struct cache *cache, cache_node node);
void cache_pin(struct cache *cache, cache_node node);
void cache_unpin(struct cache *cache, cache_node node);
/* C4. */
void cache_lose(struct cache *cache, cache_node node);
/* All blocks of the stripe: see cache_stuck. It may keep what it has set aside (C2). */
void cache_stick(struct cache *cache, uint64_t stripe, bool keep_reserve);

/* --- Order ---- */

/* From the oldest to the newest, those that are not lost; 0 at the end. */
cache_node cache_order_first(const struct cache *cache) must_check;
cache_node cache_order_next(const struct cache *cache, cache_node node) must_check;
/* The entry (block of the ring) of the oldest block that bounds the tail; false if none does. */
bool cache_oldest(const struct cache *cache, uint64_t *entry_block) must_check;
/* Is the oldest one stuck? */
bool cache_oldest_stuck(const struct cache *cache) must_check;
/* The same for the oldest that was not chosen yet: what the tail may come to when all that was
 * chosen is written out. */
bool cache_oldest_unchosen(struct cache *cache, uint64_t *entry_block) must_check;

/* Chooses the group with the oldest block that is not chosen yet, or one with stripes that have
 * become full; all its blocks are chosen then. False if there is none. */
bool cache_choose_oldest(struct cache *cache, uint64_t *group) must_check;
bool cache_choose_full(struct cache *cache, uint64_t *group) must_check;
/* All can be chosen again. */
void cache_unchoose(struct cache *cache);

#endif
