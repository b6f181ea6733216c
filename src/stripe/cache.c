/*
 * cache.c: the index of cached blocks and their pages. See cache.h for what holds (C1-C4).
 */
#include "stripe/cache.h"

#include <stdlib.h>
#include <sys/mman.h>

#define FILTER_SLOTS 65536u /* a counter of blocks each; groups share them */
#define FULL_GROUPS  1024u  /* groups with full stripes that are remembered */

/* Flags of a node. */
#define NODE_DROPPED 1u /* `page` is its checksum */
#define NODE_CHOSEN  2u /* for write-out */
#define NODE_LOST    4u
#define NODE_STUCK   8u
#define NODE_ASIDE   16u /* stuck, and the stripe's reserve is kept */

/* 28 bytes; the head of a hash chain makes 32. */
struct node {
    uint32_t stripe_low;
    uint8_t stripe_high;
    uint8_t member;
    uint16_t block : 10; /* number in its entry */
    uint16_t flags : 6;
    uint32_t entry_block; /* of the ring */
    uint32_t page;        /* or its checksum */
    uint32_t next;        /* in the chain, or of free nodes */
    uint32_t older, newer;
};

static_assert(sizeof(struct node) + sizeof(uint32_t) == CACHE_NODE_BYTES, "as promised");

/* What is known of a page. */
struct frame {
    uint32_t node;     /* 0: free */
    uint32_t checksum; /* or the next free one, as frames_free */
    uint16_t pins;
    bool used; /* since the hand went by */
};

struct cache {
    struct cache_config config;
    unsigned group_shift;
    struct cache_counts counts;
    struct cache_room promised;
    uint64_t class_stripes[CACHE_CLASSES];

    /* All owned. */
    struct node *nodes; /* [1 .. blocks_max] */
    uint64_t nodes_bytes;
    uint32_t nodes_used; /* ever */
    uint32_t nodes_free;
    uint32_t *heads; /* hash_mask + 1 */
    uint64_t heads_bytes, hash_mask;
    uint32_t *filter;

    uint8_t *pages;
    uint64_t pages_bytes;
    struct frame *frames;
    uint32_t frames_used; /* ever */
    uint32_t frames_free; /* number + 1 of one that is free again; 0: none */
    uint32_t hand;        /* the next page that may be dropped */

    uint32_t oldest, newest, cursor;
    uint64_t full[FULL_GROUPS]; /* a ring */
    unsigned full_first, full_count;
};

const struct cache_counts *
cache_counts(const struct cache *cache)
{
    return &cache->counts;
}

/* --- Life ------------------------------------------------------------------------------------ */

/* Pages come at the start, not at the first touch of each (15 us). Large ones where there are such:
 * a wish. */
static void *
memory_map(uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return NULL;
    ignored(madvise(at, bytes, MADV_HUGEPAGE));
    if (madvise(at, bytes, MADV_POPULATE_WRITE) < 0 && errno == ENOMEM) {
        ignored(munmap(at, bytes)); /* it was mapped */
        return NULL;
    }
    return at;
}

static void
memory_unmap(void *at, uint64_t bytes)
{
    if (at != NULL)
        ignored(munmap(at, bytes)); /* it was mapped */
}

int
cache_create(const struct cache_config *config, struct cache **out)
{
    struct cache *cache = calloc(1, sizeof *cache);
    uint64_t blocks, index_bytes;

    if (cache == NULL)
        return -ENOMEM;
    assert(config->ring_blocks <= UINT64_C(1) << 32);
    assert(is_power_of_two(config->group_stripes));
    cache->config = *config;
    cache->group_shift = (unsigned)__builtin_ctz(config->group_stripes);
    /* A block of the ring each at most, and one in two is not data where stripes are partly cached:
     * but that is not for sure. */
    blocks = min_u64(min_u64(config->ring_blocks, config->index_bytes / CACHE_NODE_BYTES),
                     UINT32_MAX - 1);
    cache->hash_mask = 1;
    while (cache->hash_mask * 2 <= blocks)
        cache->hash_mask *= 2;
    --cache->hash_mask;
    index_bytes = blocks * CACHE_NODE_BYTES;
    cache->counts.blocks_max = blocks;
    cache->counts.class_stripes_max = config->class_stripes_max;
    cache->counts.pages_max =
        min_u64(config->bytes > index_bytes
                    ? (config->bytes - index_bytes) / (BLOCK_BYTES + sizeof(struct frame))
                    : 0,
                blocks);
    cache->nodes_bytes = (blocks + 1) * sizeof(struct node);
    cache->heads_bytes = (cache->hash_mask + 1) * sizeof *cache->heads;
    cache->pages_bytes = (cache->counts.pages_max + 1) * BLOCK_BYTES;
    cache->nodes = memory_map(cache->nodes_bytes);
    cache->heads = memory_map(cache->heads_bytes);
    cache->pages = memory_map(cache->pages_bytes);
    cache->frames = calloc(cache->counts.pages_max + 1, sizeof *cache->frames);
    cache->filter = calloc(FILTER_SLOTS, sizeof *cache->filter);
    if (cache->nodes == NULL || cache->heads == NULL || cache->pages == NULL ||
        cache->frames == NULL || cache->filter == NULL) {
        cache_destroy(cache);
        return -ENOMEM;
    }
    *out = cache;
    return 0;
}

void
cache_destroy(struct cache *cache)
{
    memory_unmap(cache->nodes, cache->nodes_bytes);
    memory_unmap(cache->heads, cache->heads_bytes);
    memory_unmap(cache->pages, cache->pages_bytes);
    free(cache->frames);
    free(cache->filter);
    free(cache);
}

/* --- Looking --------------------------------------------------------------------------------- */

static uint64_t
node_stripe(const struct node *node)
{
    return (uint64_t)node->stripe_high << 32 | node->stripe_low;
}

static uint64_t
mix(uint64_t value)
{
    value *= UINT64_C(0x9e3779b97f4a7c15);
    return value ^ value >> 32;
}

/* Stripes of a group stand next to each other: they are looked for together. */
static uint32_t *
chain_of(const struct cache *cache, uint64_t stripe)
{
    const uint64_t group = stripe >> cache->group_shift;

    return &cache->heads[((mix(group) << cache->group_shift) +
                          (stripe & (cache->config.group_stripes - 1))) &
                         cache->hash_mask];
}

static uint32_t *
filter_slot(const struct cache *cache, uint64_t group)
{
    return &cache->filter[mix(group) % FILTER_SLOTS];
}

bool
cache_group_maybe(const struct cache *cache, uint64_t group)
{
    return cache->counts.blocks > 0 && *filter_slot(cache, group) > 0;
}

static cache_node
chain_find(const struct cache *cache, cache_node node, uint64_t stripe)
{
    while (node != 0 && node_stripe(&cache->nodes[node]) != stripe)
        node = cache->nodes[node].next;
    return node;
}

cache_node
cache_first(const struct cache *cache, uint64_t stripe)
{
    return chain_find(cache, *chain_of(cache, stripe), stripe);
}

cache_node
cache_next(const struct cache *cache, cache_node node)
{
    return chain_find(cache, cache->nodes[node].next, node_stripe(&cache->nodes[node]));
}

cache_node
cache_find(const struct cache *cache, uint64_t stripe, unsigned member)
{
    cache_node n = cache_first(cache, stripe);

    while (n != 0 && cache->nodes[n].member != member)
        n = cache_next(cache, n);
    return n;
}

unsigned
cache_member(const struct cache *cache, cache_node node)
{
    return cache->nodes[node].member;
}

uint64_t
cache_stripe(const struct cache *cache, cache_node node)
{
    return node_stripe(&cache->nodes[node]);
}

uint8_t *
cache_page(struct cache *cache, cache_node number)
{
    const struct node *node = &cache->nodes[number];

    if (node->flags & (NODE_DROPPED | NODE_LOST))
        return NULL;
    cache->frames[node->page].used = true;
    return cache->pages + (uint64_t)node->page * BLOCK_BYTES;
}

bool
cache_lost(const struct cache *cache, cache_node node)
{
    return cache->nodes[node].flags & NODE_LOST;
}

bool
cache_stuck(const struct cache *cache, cache_node node)
{
    return cache->nodes[node].flags & NODE_STUCK;
}

void
cache_copy(const struct cache *cache, cache_node number, uint64_t *ring_block, uint32_t *checksum)
{
    const struct node *node = &cache->nodes[number];

    *ring_block = ((uint64_t)node->entry_block + 1 + node->block) % cache->config.ring_blocks;
    *checksum = node->flags & NODE_DROPPED ? node->page : cache->frames[node->page].checksum;
}

uint64_t
cache_reserve(const struct cache *cache, unsigned blocks)
{
    return blocks == 0
               ? 0
               : 1 + (uint64_t)(blocks > cache->config.parities ? blocks : cache->config.parities);
}

bool
cache_promise(struct cache *cache, struct cache_room room)
{
    const struct cache_counts *counts = &cache->counts;

    if (counts->blocks + cache->promised.blocks + room.blocks > counts->blocks_max ||
        counts->class_stripes + cache->promised.class_stripes + room.class_stripes >
            counts->class_stripes_max)
        return false;
    cache->promised.blocks += room.blocks;
    cache->promised.class_stripes += room.class_stripes;
    return true;
}

void
cache_promise_end(struct cache *cache, struct cache_room room)
{
    cache->promised.blocks -= room.blocks;
    cache->promised.class_stripes -= room.class_stripes;
}

/* --- Order ----------------------------------------------------------------------------------- */

static void
order_add(struct cache *cache, cache_node number)
{
    struct node *node = &cache->nodes[number];

    node->older = cache->newest;
    node->newer = 0;
    if (cache->newest != 0)
        cache->nodes[cache->newest].newer = number;
    else
        cache->oldest = number;
    cache->newest = number;
    if (cache->cursor == 0)
        cache->cursor = number;
}

static void
order_remove(struct cache *cache, cache_node number)
{
    const struct node *node = &cache->nodes[number];

    if (cache->cursor == number)
        cache->cursor = node->newer;
    if (node->older != 0)
        cache->nodes[node->older].newer = node->newer;
    else
        cache->oldest = node->newer;
    if (node->newer != 0)
        cache->nodes[node->newer].older = node->older;
    else
        cache->newest = node->older;
}

cache_node
cache_order_first(const struct cache *cache)
{
    return cache->oldest;
}

cache_node
cache_order_next(const struct cache *cache, cache_node node)
{
    return cache->nodes[node].newer;
}

bool
cache_oldest(const struct cache *cache, uint64_t *entry_block)
{
    if (cache->oldest == 0)
        return false;
    *entry_block = cache->nodes[cache->oldest].entry_block;
    return true;
}

bool
cache_oldest_stuck(const struct cache *cache)
{
    return cache->oldest != 0 && (cache->nodes[cache->oldest].flags & NODE_STUCK);
}

/* What was chosen before the cursor stays so: a block that is put anew goes to the end. */
static void
cursor_settle(struct cache *cache)
{
    while (cache->cursor != 0 && (cache->nodes[cache->cursor].flags & NODE_CHOSEN))
        cache->cursor = cache->nodes[cache->cursor].newer;
}

bool
cache_oldest_unchosen(struct cache *cache, uint64_t *entry_block)
{
    cursor_settle(cache);
    if (cache->cursor == 0)
        return false;
    *entry_block = cache->nodes[cache->cursor].entry_block;
    return true;
}

/* Marks a group's blocks as chosen; false if all were. */
static bool
group_choose(struct cache *cache, uint64_t group)
{
    const uint64_t first = group << cache->group_shift;
    bool some = false;

    for (uint64_t stripe = first; stripe < first + cache->config.group_stripes; ++stripe)
        for (cache_node n = cache_first(cache, stripe); n != 0; n = cache_next(cache, n)) {
            some = some || !(cache->nodes[n].flags & (NODE_CHOSEN | NODE_LOST));
            cache->nodes[n].flags |= NODE_CHOSEN;
        }
    return some;
}

bool
cache_choose_oldest(struct cache *cache, uint64_t *group)
{
    cursor_settle(cache);
    if (cache->cursor == 0)
        return false;
    *group = node_stripe(&cache->nodes[cache->cursor]) >> cache->group_shift;
    return group_choose(cache, *group);
}

bool
cache_choose_full(struct cache *cache, uint64_t *group)
{
    while (cache->full_count > 0) {
        *group = cache->full[cache->full_first];
        cache->full_first = (cache->full_first + 1) % FULL_GROUPS;
        --cache->full_count;
        if (cache_group_maybe(cache, *group) && group_choose(cache, *group))
            return true;
    }
    return false;
}

void
cache_unchoose(struct cache *cache)
{
    for (cache_node n = cache->oldest; n != 0; n = cache->nodes[n].newer)
        cache->nodes[n].flags &= (uint16_t)~NODE_CHOSEN & 63u;
    cache->cursor = cache->oldest;
}

static void
full_add(struct cache *cache, uint64_t group)
{
    const unsigned last = (cache->full_first + cache->full_count + FULL_GROUPS - 1) % FULL_GROUPS;

    if (cache->full_count == FULL_GROUPS || (cache->full_count > 0 && cache->full[last] == group))
        return; /* what is forgotten here is found by its age */
    cache->full[(cache->full_first + cache->full_count++) % FULL_GROUPS] = group;
}

/* --- Pages ----------------------------------------------------------------------------------- */

static void
frame_give(struct cache *cache, struct node *node)
{
    const uint32_t number = node->page;
    struct frame *frame = &cache->frames[number];

    assert(frame->pins == 0);
    node->flags |= NODE_DROPPED;
    node->page = frame->checksum;
    frame->node = 0;
    frame->checksum = cache->frames_free;
    cache->frames_free = number + 1;
    --cache->counts.pages;
}

/* Gives up one page that was not used lately, if not all are pinned. All are in use. */
static void
frame_drop(struct cache *cache)
{
    for (uint64_t tries = 0; tries < 2 * cache->counts.pages_max; ++tries) {
        struct frame *frame = &cache->frames[cache->hand];

        cache->hand = (cache->hand + 1) % (uint32_t)cache->counts.pages_max;
        if (frame->pins > 0)
            continue;
        if (!frame->used) {
            frame_give(cache, &cache->nodes[frame->node]);
            return;
        }
        frame->used = false;
    }
}

/* UINT32_MAX: all are pinned. */
static uint32_t
frame_take(struct cache *cache)
{
    uint32_t number;

    if (cache->frames_free == 0 && cache->frames_used < cache->counts.pages_max)
        return cache->frames_used++;
    if (cache->frames_free == 0)
        frame_drop(cache);
    number = cache->frames_free - 1;
    if (number != UINT32_MAX)
        cache->frames_free = cache->frames[number].checksum;
    return number;
}

/* Gives a node that has none a page with this content, if one is to be had. */
static void
page_fill(struct cache *cache, cache_node number, uint32_t checksum, const uint8_t *memory)
{
    struct node *node = &cache->nodes[number];
    const uint32_t at = memory == NULL ? UINT32_MAX : frame_take(cache);

    if (at == UINT32_MAX) {
        node->flags |= NODE_DROPPED;
        node->page = checksum;
        return;
    }
    memcpy(cache->pages + (uint64_t)at * BLOCK_BYTES, memory, BLOCK_BYTES);
    cache->frames[at] = (struct frame){.node = number, .checksum = checksum};
    node->flags &= (uint16_t)~NODE_DROPPED & 63u;
    node->page = at;
    ++cache->counts.pages;
}

void
cache_pin(struct cache *cache, cache_node node)
{
    assert(!(cache->nodes[node].flags & NODE_DROPPED));
    ++cache->frames[cache->nodes[node].page].pins;
}

void
cache_unpin(struct cache *cache, cache_node node)
{
    struct frame *frame = &cache->frames[cache->nodes[node].page];

    assert(!(cache->nodes[node].flags & NODE_DROPPED));
    assert(frame->pins > 0);
    --frame->pins;
}

/* --- Changing -------------------------------------------------------------------------------- */

static cache_node
node_take(struct cache *cache)
{
    cache_node number = cache->nodes_free;

    if (number != 0) {
        cache->nodes_free = cache->nodes[number].next;
        return number;
    }
    assert(cache->nodes_used < cache->counts.blocks_max);
    return ++cache->nodes_used;
}

static void
stripe_count(struct cache *cache, uint64_t stripe, bool added)
{
    struct cache_counts *counts = &cache->counts;
    uint64_t *class_stripes = &cache->class_stripes[stripe % CACHE_CLASSES];

    counts->stripes += added ? 1 : UINT64_MAX;
    *class_stripes += added ? 1 : UINT64_MAX;
    counts->class_stripes = 0;
    for (unsigned i = 0; i < CACHE_CLASSES; ++i)
        if (cache->class_stripes[i] > counts->class_stripes)
            counts->class_stripes = cache->class_stripes[i];
}

/* The stripe has, instead of `before`, `after` blocks that count for its reserve. */
static void
stripe_counts(struct cache *cache, uint64_t stripe, unsigned before, unsigned after)
{
    const unsigned full = cache->config.data_members;

    cache->counts.reserve_blocks += cache_reserve(cache, after);
    cache->counts.reserve_blocks -= cache_reserve(cache, before);
    if ((before == 0) != (after == 0))
        stripe_count(cache, stripe, after > 0);
    cache->counts.full_stripes -= before == full && after < full;
    if (after == full && before < full) {
        ++cache->counts.full_stripes;
        full_add(cache, stripe >> cache->group_shift);
    }
}

/* Blocks of a stripe that are not lost; what is not stuck counts for its reserve, and what is stuck
 * if that is kept. They are all alike. */
static unsigned
stripe_blocks(const struct cache *cache, uint64_t stripe, unsigned *flags)
{
    unsigned blocks = 0;

    *flags = 0;
    for (cache_node n = cache_first(cache, stripe); n != 0; n = cache_next(cache, n))
        if (!(cache->nodes[n].flags & NODE_LOST)) {
            ++blocks;
            *flags = cache->nodes[n].flags & (NODE_STUCK | NODE_ASIDE);
        }
    return blocks;
}

/* The stripe has a block less that is not lost. */
static void
stripe_block_goes(struct cache *cache, uint64_t stripe)
{
    unsigned flags;
    const unsigned before = stripe_blocks(cache, stripe, &flags);
    const uint64_t freed = cache_reserve(cache, before) - cache_reserve(cache, before - 1);

    if (flags == 0) {
        stripe_counts(cache, stripe, before, before - 1);
    } else if (flags & NODE_ASIDE) {
        cache->counts.reserve_blocks -= freed;
        cache->counts.stuck_reserve_blocks -= freed;
    }
}

static cache_node
node_add(struct cache *cache, uint64_t stripe, unsigned member)
{
    const cache_node number = node_take(cache);
    uint32_t *head = chain_of(cache, stripe);

    assert(stripe < CACHE_STRIPE_MAX);
    cache->nodes[number] = (struct node){
        .stripe_low = (uint32_t)stripe,
        .stripe_high = (uint8_t)(stripe >> 32),
        .member = (uint8_t)member,
        .flags = NODE_DROPPED,
        .next = *head,
    };
    *head = number;
    ++cache->counts.blocks;
    ++*filter_slot(cache, stripe >> cache->group_shift);
    return number;
}

void
cache_put(struct cache *cache, const struct cache_place *place, const uint8_t *memory)
{
    unsigned flags;
    const unsigned before = stripe_blocks(cache, place->stripe, &flags);
    cache_node number = cache_find(cache, place->stripe, place->member);
    struct node *node;

    assert(flags == 0);
    ++cache->counts.cached_total;
    if (number == 0) {
        number = node_add(cache, place->stripe, place->member);
        stripe_counts(cache, place->stripe, before, before + 1);
        node = &cache->nodes[number];
    } else {
        node = &cache->nodes[number];
        ++cache->counts.overwritten;
        assert(!(node->flags & NODE_LOST));
        order_remove(cache, number);
        if (!(node->flags & NODE_DROPPED))
            frame_give(cache, node);
        node->flags = NODE_DROPPED;
    }
    node->entry_block = (uint32_t)place->entry_block;
    node->block = place->block & 1023;
    assert(node->block == place->block);
    order_add(cache, number);
    page_fill(cache, number, place->checksum, memory);
}

void
cache_remove(struct cache *cache, cache_node number)
{
    struct node *node = &cache->nodes[number];
    const uint64_t stripe = node_stripe(node);
    uint32_t *link = chain_of(cache, stripe);

    assert(!(node->flags & NODE_LOST));
    stripe_block_goes(cache, stripe);
    order_remove(cache, number);
    if (!(node->flags & NODE_DROPPED))
        frame_give(cache, node);
    while (*link != number)
        link = &cache->nodes[*link].next;
    *link = node->next;
    node->next = cache->nodes_free;
    cache->nodes_free = number;
    --cache->counts.blocks;
    --*filter_slot(cache, stripe >> cache->group_shift);
}

void
cache_lose(struct cache *cache, cache_node number)
{
    struct node *node = &cache->nodes[number];
    const uint64_t stripe = node_stripe(node);

    assert(node->flags & NODE_DROPPED);
    assert(!(node->flags & NODE_LOST));
    stripe_block_goes(cache, stripe);
    order_remove(cache, number);
    ++cache->counts.lost_blocks;
    node->flags |= NODE_LOST;
    node->flags &= (uint16_t) ~(NODE_STUCK | NODE_ASIDE) & 63u;
}

void
cache_stick(struct cache *cache, uint64_t stripe, bool keep_reserve)
{
    unsigned flags;
    const unsigned blocks = stripe_blocks(cache, stripe, &flags);

    assert(flags == 0);
    stripe_counts(cache, stripe, blocks, 0);
    if (keep_reserve) {
        cache->counts.reserve_blocks += cache_reserve(cache, blocks);
        cache->counts.stuck_reserve_blocks += cache_reserve(cache, blocks);
    }
    for (cache_node n = cache_first(cache, stripe); n != 0; n = cache_next(cache, n))
        if (!(cache->nodes[n].flags & NODE_LOST))
            cache->nodes[n].flags |= NODE_STUCK | (keep_reserve ? NODE_ASIDE : 0);
}
