/*
 * test_stripe_cache.c: the index of cached blocks against a model that is a plain list.
 *
 * Everything the cache says (what is there, its content or checksum, the order, what is set aside,
 * what is counted) is compared with the model after each of many random steps, on caches so small
 * that stripes share chains, pages are given up and the index gets full.
 */
#include "stripe/cache.h"

#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define STRIPES 24u /* from here on, and as many far away */
#define FAR     (CACHE_STRIPE_MAX - STRIPES)
#define MEMBERS 5u
#define RING    512u
#define STEPS   40000u

struct model_block {
    bool there, lost, stuck, chosen;
    uint64_t entry_block;
    uint32_t number, checksum;
    uint64_t age; /* of its newest copy */
};

struct fixture {
    struct cache *cache;
    struct cache_config config;
    struct model_block blocks[2 * STRIPES][MEMBERS];
    uint64_t next_age, next_entry;
    uint32_t random;
    uint64_t put, overwritten;
};

static uint32_t
draw(struct fixture *f, uint32_t below)
{
    f->random = f->random * 1664525u + 1013904223u;
    return (f->random >> 8) % below;
}

static uint64_t
stripe_number(unsigned s)
{
    return s < STRIPES ? s : FAR + (s - STRIPES);
}

static struct fixture *
fixture_create(unsigned parities, unsigned group_stripes, uint64_t pages, uint64_t blocks,
               uint64_t class_stripes_max, uint32_t seed)
{
    struct fixture *f = calloc(1, sizeof *f);
    const uint64_t index_bytes = blocks * CACHE_NODE_BYTES;

    assert_non_null(f);
    f->random = seed;
    f->config = (struct cache_config){
        .data_members = MEMBERS - parities,
        .parities = parities,
        .group_stripes = group_stripes,
        .ring_blocks = RING,
        .bytes = index_bytes + pages * (BLOCK_BYTES + 64),
        .index_bytes = index_bytes,
        .class_stripes_max = class_stripes_max,
    };
    assert_int_equal(cache_create(&f->config, &f->cache), 0);
    return f;
}

static void
fixture_destroy(struct fixture *f)
{
    cache_destroy(f->cache);
    free(f);
}

static cache_node
find(struct fixture *f, unsigned s, unsigned m)
{
    cache_node found = 0;

    for (cache_node n = cache_first(f->cache, stripe_number(s)); n != 0;
         n = cache_next(f->cache, n))
        if (cache_member(f->cache, n) == m) {
            assert_int_equal(found, 0); /* once at most */
            found = n;
        }
    return found;
}

static unsigned
model_blocks(const struct fixture *f, unsigned s, bool stuck)
{
    unsigned count = 0;

    for (unsigned m = 0; m < MEMBERS; ++m)
        count += f->blocks[s][m].there && !f->blocks[s][m].lost && f->blocks[s][m].stuck == stuck;
    return count;
}

static uint64_t
model_reserve(const struct fixture *f, unsigned count)
{
    return count == 0 ? 0 : 1 + (count > f->config.parities ? count : f->config.parities);
}

/* These keep it when they are stuck. */
static bool
keeps_reserve(unsigned s)
{
    return s % 2 == 0;
}

static void
fill(uint8_t page[BLOCK_BYTES], uint32_t checksum)
{
    for (unsigned i = 0; i < BLOCK_BYTES; i += 4)
        store_le32(page + i, checksum);
}

/* The oldest that bounds the tail; among those not chosen if so asked. */
static const struct model_block *
model_oldest(const struct fixture *f, bool unchosen)
{
    const struct model_block *oldest = NULL;

    for (unsigned s = 0; s < 2 * STRIPES; ++s)
        for (unsigned m = 0; m < MEMBERS; ++m) {
            const struct model_block *block = &f->blocks[s][m];

            if (block->there && !block->lost && !(unchosen && block->chosen) &&
                (oldest == NULL || block->age < oldest->age))
                oldest = block;
        }
    return oldest;
}

static void
compare_block(struct fixture *f, unsigned s, unsigned m)
{
    const struct model_block *block = &f->blocks[s][m];
    const cache_node node = find(f, s, m);
    uint64_t ring_block;
    uint32_t checksum;
    uint8_t *page;

    assert_int_equal(node != 0, block->there);
    if (node == 0)
        return;
    assert_true(cache_group_maybe(f->cache, stripe_number(s) / f->config.group_stripes));
    assert_int_equal(cache_lost(f->cache, node), block->lost);
    if (block->lost) {
        assert_null(cache_page(f->cache, node));
        return;
    }
    assert_int_equal(cache_stuck(f->cache, node), block->stuck);
    cache_copy(f->cache, node, &ring_block, &checksum);
    assert_int_equal(ring_block, (block->entry_block + 1 + block->number) % RING);
    assert_int_equal(checksum, block->checksum);
    page = cache_page(f->cache, node);
    if (page != NULL) {
        assert_int_equal(load_le32(page), block->checksum);
        assert_int_equal(load_le32(page + BLOCK_BYTES - 4), block->checksum);
    }
}

static void
compare(struct fixture *f)
{
    const struct cache_counts *counts = cache_counts(f->cache);
    uint64_t blocks = 0, lost = 0, stripes = 0, full = 0, reserve = 0, stuck_reserve = 0, pages = 0,
             entry_block;
    uint64_t classes[CACHE_CLASSES] = {0}, class_stripes = 0;
    const struct model_block *oldest = model_oldest(f, false), *unchosen = model_oldest(f, true);

    for (unsigned s = 0; s < 2 * STRIPES; ++s) {
        const unsigned count = model_blocks(f, s, false);

        for (unsigned m = 0; m < MEMBERS; ++m) {
            compare_block(f, s, m);
            blocks += f->blocks[s][m].there;
            lost += f->blocks[s][m].there && f->blocks[s][m].lost;
            if (f->blocks[s][m].there && cache_page(f->cache, find(f, s, m)) != NULL)
                ++pages;
        }
        stripes += count > 0;
        if (count > 0 && ++classes[stripe_number(s) % CACHE_CLASSES] > class_stripes)
            class_stripes = classes[stripe_number(s) % CACHE_CLASSES];
        full += count == f->config.data_members;
        reserve += model_reserve(f, count);
        if (keeps_reserve(s))
            stuck_reserve += model_reserve(f, model_blocks(f, s, true));
    }
    assert_int_equal(counts->blocks, blocks);
    assert_int_equal(counts->lost_blocks, lost);
    assert_int_equal(counts->stripes, stripes);
    assert_int_equal(counts->class_stripes, class_stripes);
    assert_true(counts->class_stripes <= counts->class_stripes_max);
    assert_int_equal(counts->full_stripes, full);
    assert_int_equal(counts->reserve_blocks, reserve + stuck_reserve);
    assert_int_equal(counts->stuck_reserve_blocks, stuck_reserve);
    assert_int_equal(counts->pages, pages);
    assert_true(counts->pages <= counts->pages_max);
    assert_int_equal(counts->cached_total, f->put);
    assert_int_equal(counts->overwritten, f->overwritten);
    assert_int_equal(cache_oldest(f->cache, &entry_block), oldest != NULL);
    if (oldest != NULL)
        assert_int_equal(entry_block, oldest->entry_block);
    assert_int_equal(cache_oldest_stuck(f->cache), oldest != NULL && oldest->stuck);
    assert_int_equal(cache_oldest_unchosen(f->cache, &entry_block), unchosen != NULL);
    if (unchosen != NULL)
        assert_int_equal(entry_block, unchosen->entry_block);
}

/* --- Steps ----------------------------------------------------------------------------------- */

static void
put(struct fixture *f, unsigned s, unsigned m, bool in_memory)
{
    struct model_block *block = &f->blocks[s][m];
    const bool new_block = !block->there;
    const bool new_stripe = model_blocks(f, s, false) == 0;
    uint8_t page[BLOCK_BYTES];

    if (model_blocks(f, s, true) > 0 || block->lost ||
        !cache_promise(f->cache, (struct cache_room){new_block, new_stripe}))
        return;
    f->overwritten += block->there;
    ++f->put;
    f->next_entry += draw(f, 3);
    *block = (struct model_block){
        .there = true,
        .entry_block = f->next_entry % RING,
        .number = draw(f, 254),
        .checksum = draw(f, UINT32_MAX),
        .age = ++f->next_age,
    };
    fill(page, block->checksum);
    cache_put(f->cache,
              &(struct cache_place){.stripe = stripe_number(s),
                                    .member = m,
                                    .entry_block = block->entry_block,
                                    .block = block->number,
                                    .checksum = block->checksum},
              in_memory ? page : NULL);
    cache_promise_end(f->cache, (struct cache_room){new_block, new_stripe});
}

static void
lose(struct fixture *f, unsigned s, unsigned m)
{
    const cache_node node = find(f, s, m);

    if (node == 0 || f->blocks[s][m].lost || cache_page(f->cache, node) != NULL)
        return;
    cache_lose(f->cache, node);
    f->blocks[s][m].lost = true;
    f->blocks[s][m].stuck = false;
}

static void
stick(struct fixture *f, unsigned s)
{
    if (model_blocks(f, s, false) == 0)
        return;
    cache_stick(f->cache, stripe_number(s), keeps_reserve(s));
    for (unsigned m = 0; m < MEMBERS; ++m)
        f->blocks[s][m].stuck = f->blocks[s][m].there && !f->blocks[s][m].lost;
}

static void
check_chosen(struct fixture *f, uint64_t group)
{
    for (unsigned s = 0; s < 2 * STRIPES; ++s)
        for (unsigned m = 0; m < MEMBERS; ++m)
            if (stripe_number(s) / f->config.group_stripes == group)
                f->blocks[s][m].chosen = true;
}

static void
choose(struct fixture *f)
{
    const struct model_block *oldest = model_oldest(f, true);
    uint64_t group;

    assert_int_equal(cache_choose_oldest(f->cache, &group), oldest != NULL);
    if (oldest == NULL)
        return;
    for (unsigned s = 0; s < 2 * STRIPES; ++s)
        for (unsigned m = 0; m < MEMBERS; ++m)
            if (&f->blocks[s][m] == oldest)
                assert_int_equal(group, stripe_number(s) / f->config.group_stripes);
    check_chosen(f, group);
}

/* One that has become full since it was chosen last; it may be written out, or not full, by now. */
static void
choose_full(struct fixture *f)
{
    uint64_t group;

    if (cache_choose_full(f->cache, &group))
        check_chosen(f, group);
}

static void
unchoose(struct fixture *f)
{
    cache_unchoose(f->cache);
    for (unsigned s = 0; s < 2 * STRIPES; ++s)
        for (unsigned m = 0; m < MEMBERS; ++m)
            if (!f->blocks[s][m].lost)
                f->blocks[s][m].chosen = false;
}

static void
remove_block(struct fixture *f, unsigned s, unsigned m)
{
    const cache_node node = find(f, s, m);

    if (node == 0 || f->blocks[s][m].lost)
        return;
    cache_remove(f->cache, node);
    f->blocks[s][m] = (struct model_block){0};
}

static void
step(struct fixture *f)
{
    const unsigned s = draw(f, 2 * STRIPES), m = draw(f, f->config.data_members);

    switch (draw(f, 32)) {
    case 0:
        stick(f, s);
        break;
    case 1:
        lose(f, s, m);
        break;
    case 2:
    case 3:
        choose(f);
        break;
    case 4:
        choose_full(f);
        break;
    case 5:
        if (draw(f, 10) == 0)
            unchoose(f);
        break;
    case 6: /* a stripe is written out */
    case 7:
        for (unsigned i = 0; i < MEMBERS; ++i)
            remove_block(f, s, i);
        break;
    case 8:
    case 9:
    case 10:
        remove_block(f, s, m);
        break;
    case 11: /* a stripe becomes full */
        for (unsigned i = 0; i < f->config.data_members; ++i)
            put(f, s, i, true);
        break;
    default:
        put(f, s, m, draw(f, 8) > 0);
    }
}

static void
agrees_with_a_plain_list(void **state)
{
    static const struct {
        unsigned parities, group_stripes;
        uint64_t pages, blocks, class_stripes_max;
    } shapes[] = {
        {1, 64, 100, 300, UINT64_MAX}, {1, 8, 3, 64, UINT64_MAX}, {2, 4, 0, 16, UINT64_MAX},
        {2, 1, 10, 1, UINT64_MAX},     {1, 16, 20, 300, 1},       {2, 64, 40, 50, 2},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(shapes); ++i) {
        struct fixture *f =
            fixture_create(shapes[i].parities, shapes[i].group_stripes, shapes[i].pages,
                           shapes[i].blocks, shapes[i].class_stripes_max, i + 1);

        for (unsigned n = 0; n < STEPS; ++n) {
            step(f);
            if (n % 8 == 0 || n < 500)
                compare(f);
        }
        fixture_destroy(f);
    }
}

/* What is being written out must not change its place in memory, however much is put meanwhile. */
static void
pinned_pages_stay(void **state)
{
    struct fixture *f = fixture_create(1, 8, 4, 200, UINT64_MAX, 1);
    uint8_t *pages[3];
    cache_node nodes[3];

    (void)state;
    for (unsigned m = 0; m < 3; ++m) {
        put(f, 0, m, true);
        nodes[m] = find(f, 0, m);
        pages[m] = cache_page(f->cache, nodes[m]);
        assert_non_null(pages[m]);
        cache_pin(f->cache, nodes[m]);
    }
    for (unsigned s = 1; s < 40; ++s)
        put(f, s, 0, true);
    for (unsigned m = 0; m < 3; ++m) {
        assert_ptr_equal(cache_page(f->cache, nodes[m]), pages[m]);
        assert_int_equal(load_le32(pages[m]), f->blocks[0][m].checksum);
        cache_unpin(f->cache, nodes[m]);
    }
    compare(f);
    for (unsigned s = 40; s < 2 * STRIPES; ++s)
        put(f, s, 0, true);
    compare(f);
    for (unsigned m = 0; m < 3; ++m)
        assert_null(cache_page(f->cache, nodes[m])); /* the others, used since, had to make room */
    fixture_destroy(f);
}

/* While some are free, none is taken from a block. */
static void
free_pages_are_taken_first(void **state)
{
    struct fixture *f = fixture_create(1, 8, 4, 200, UINT64_MAX, 1);
    const unsigned pages = (unsigned)cache_counts(f->cache)->pages_max;

    (void)state;
    for (unsigned s = 0; s < pages; ++s)
        put(f, s, 0, true);
    remove_block(f, pages - 1, 0);
    put(f, pages, 0, true);
    for (unsigned s = 0; s < pages - 1; ++s)
        assert_non_null(cache_page(f->cache, find(f, s, 0)));
    assert_non_null(cache_page(f->cache, find(f, pages, 0)));
    compare(f);
    fixture_destroy(f);
}

/* Room that was promised is nobody else's. */
static void
promises_are_kept(void **state)
{
    struct fixture *f = fixture_create(1, 8, 4, 10, 6, 1);

    (void)state;
    assert_true(cache_promise(f->cache, (struct cache_room){7, 2}));
    assert_false(cache_promise(f->cache, (struct cache_room){4, 1}));
    assert_true(cache_promise(f->cache, (struct cache_room){3, 4}));
    assert_false(cache_promise(f->cache, (struct cache_room){0, 1}));
    assert_false(cache_promise(f->cache, (struct cache_room){1, 0}));
    cache_promise_end(f->cache, (struct cache_room){7, 2});
    assert_true(cache_promise(f->cache, (struct cache_room){7, 2}));
    fixture_destroy(f);
}

/* 256 MiB of memory: half of it index, for some 16 GiB. */
static void
index_takes_32_bytes_a_block(void **state)
{
    const struct cache_config config = {
        .data_members = 5,
        .parities = 1,
        .group_stripes = 64,
        .ring_blocks = UINT64_C(1) << 32,
        .bytes = 160 * MIB,
        .index_bytes = 128 * MIB,
        .class_stripes_max = UINT64_MAX,
    };
    struct cache *cache;

    (void)state;
    assert_int_equal(cache_create(&config, &cache), 0);
    assert_int_equal(cache_counts(cache)->blocks_max * BLOCK_BYTES, 16 * GIB);
    assert_true(cache_counts(cache)->pages_max * BLOCK_BYTES > 31 * MIB);
    cache_destroy(cache);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_plain_list),     cmocka_unit_test(pinned_pages_stay),
        cmocka_unit_test(free_pages_are_taken_first),   cmocka_unit_test(promises_are_kept),
        cmocka_unit_test(index_takes_32_bytes_a_block),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
