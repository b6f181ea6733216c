/*
 * pages.c: the buddy allocator over one arena.
 *
 * All bookkeeping lies beside the arena, one small record a block, so that free memory is never
 * touched. A run of 2^order blocks starts at a multiple of 2^order; its buddy is the run whose
 * number differs in that one bit. An arena that is not a power of two starts as the few runs that
 * tile it, largest first; a buddy outside simply never becomes free.
 *
 * G1. Every block is in exactly one run; a run's first block says order and free or taken, the
 *     others say RUN_INSIDE. G2. Two free buddies never exist: they are one run. G3. While
 *     somebody waits, the first of them wants more than the largest free run.
 */
#include "runtime/pages.h"
#include "runtime/annotate.h"
#include <stdlib.h>
#include <sys/mman.h>

#define ORDERS     32u
#define HUGE_BYTES (2 * MIB)

enum run_state { RUN_INSIDE, RUN_FREE, RUN_TAKEN };

#define NO_BLOCK UINT32_MAX

struct block {
    uint32_t next, previous; /* in its order's free list */
    uint8_t state, order;
};

struct page_waiter {
    struct page_waiter *next;
    struct task *task;
    unsigned order;
    uint64_t bytes;
    void *memory; /* what it was given */
};

struct pages {
    struct loop *loop;
    char *arena; /* in the owned mapping, 2 MiB-aligned */
    char *mapping;
    size_t mapping_bytes;
    uint64_t total_bytes, free_bytes;
    uint32_t block_count;
    unsigned order_max;
    struct block *blocks; /* owned */
    uint32_t free[ORDERS];
    struct page_waiter *first, **end;
};

static unsigned
order_of(uint64_t bytes)
{
    const uint64_t blocks = (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;

    return blocks <= 1 ? 0 : 64u - (unsigned)__builtin_clzll(blocks - 1);
}

static void
free_push(struct pages *pages, uint32_t at, unsigned order)
{
    struct block *const block = &pages->blocks[at];

    *block = (struct block){.state = RUN_FREE,
                            .order = (uint8_t)order,
                            .next = pages->free[order],
                            .previous = NO_BLOCK};
    if (block->next != NO_BLOCK)
        pages->blocks[block->next].previous = at;
    pages->free[order] = at;
}

static void
free_remove(struct pages *pages, uint32_t at)
{
    struct block *const block = &pages->blocks[at];

    if (block->previous == NO_BLOCK)
        pages->free[block->order] = block->next;
    else
        pages->blocks[block->previous].next = block->next;
    if (block->next != NO_BLOCK)
        pages->blocks[block->next].previous = block->previous;
    block->state = RUN_INSIDE;
}

/* Maps an arena that starts at a huge page's border. */
static int
arena_map(struct pages *pages, bool touch)
{
    pages->mapping_bytes = pages->total_bytes + HUGE_BYTES;
    pages->mapping = mmap(NULL, pages->mapping_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages->mapping == MAP_FAILED)
        return -ENOMEM;
    pages->arena = pages->mapping +
                   (round_up((uintptr_t)pages->mapping, HUGE_BYTES) - (uintptr_t)pages->mapping);
    /* A wish: without huge pages all works, slower. */
    (void)madvise(pages->arena, pages->total_bytes, MADV_HUGEPAGE);
    /* A child (of serve --run) would get a copy at once of whatever is pinned for I/O. */
    (void)madvise(pages->arena, pages->total_bytes, MADV_DONTFORK);
    if (touch && madvise(pages->arena, pages->total_bytes, MADV_POPULATE_WRITE) < 0) {
        if (errno == ENOMEM) {
            (void)munmap(pages->mapping, pages->mapping_bytes);
            return -ENOMEM;
        }
        for (uint64_t at = 0; at < pages->total_bytes; at += BLOCK_BYTES)
            ((volatile char *)pages->arena)[at] = 0;
    }
    return 0;
}

int
pages_create(struct loop *loop, uint64_t bytes, bool touch, struct pages **out)
{
    const uint64_t blocks = bytes / BLOCK_BYTES;
    struct pages *pages;

    if (blocks == 0 || blocks > (1ull << (ORDERS - 1)))
        return -ENOMEM;
    pages = calloc(1, sizeof *pages);
    if (!pages)
        return -ENOMEM;
    pages->loop = loop;
    pages->end = &pages->first;
    pages->block_count = (uint32_t)blocks;
    pages->total_bytes = pages->free_bytes = blocks * BLOCK_BYTES;
    pages->order_max = 63u - (unsigned)__builtin_clzll(blocks);
    pages->blocks = calloc(blocks, sizeof *pages->blocks);
    if (!pages->blocks || arena_map(pages, touch) < 0) {
        free(pages->blocks);
        free(pages);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < ORDERS; i++)
        pages->free[i] = NO_BLOCK;
    /* The binary digits of the count, the largest first. */
    for (uint32_t at = 0; at < pages->block_count;) {
        const unsigned order = 31u - (unsigned)__builtin_clz(pages->block_count - at);

        free_push(pages, at, order);
        at += 1u << order;
    }
    if (touch)
        loop_memory_known(loop, pages->arena, pages->total_bytes);
    annotate_memory_off(pages->arena, pages->total_bytes);
    *out = pages;
    return 0;
}

void
pages_destroy(struct pages *pages)
{
    assert(pages->free_bytes == pages->total_bytes);
    loop_memory_forget(pages->loop, pages->arena);
    annotate_memory_on(pages->mapping, pages->mapping_bytes);
    (void)munmap(pages->mapping, pages->mapping_bytes); /* fails only on a wrong range */
    free(pages->blocks);
    free(pages);
}

uint64_t
pages_cost(uint64_t bytes)
{
    return (uint64_t)BLOCK_BYTES << order_of(bytes);
}

uint64_t
pages_total(const struct pages *pages)
{
    return pages->total_bytes;
}

uint64_t
pages_free(const struct pages *pages)
{
    return pages->free_bytes;
}

uint64_t
pages_largest(const struct pages *pages)
{
    return (uint64_t)BLOCK_BYTES << pages->order_max;
}

static void *
run_take(struct pages *pages, unsigned order, uint64_t bytes)
{
    unsigned from = order;
    uint32_t at;
    void *memory;

    while (from <= pages->order_max && pages->free[from] == NO_BLOCK)
        from++;
    if (from > pages->order_max)
        return NULL;
    at = pages->free[from];
    free_remove(pages, at);
    while (from > order) { /* keep the lower half */
        from--;
        free_push(pages, at + (1u << from), from);
    }
    pages->blocks[at].state = RUN_TAKEN;
    pages->blocks[at].order = (uint8_t)order;
    pages->free_bytes -= (uint64_t)BLOCK_BYTES << order;
    memory = pages->arena + (uint64_t)at * BLOCK_BYTES;
    /* Only what was asked for: the rest of a rounded-up run is nobody's. */
    annotate_memory_on(memory, bytes);
    return memory;
}

void *
pages_try(struct pages *pages, uint64_t bytes)
{
    assert(bytes > 0);
    assert(bytes <= pages_largest(pages));
    return pages->first ? NULL : run_take(pages, order_of(bytes), bytes);
}

void *
pages_take(struct pages *pages, uint64_t bytes)
{
    void *const memory = pages_try(pages, bytes);
    struct page_waiter waiter = {.order = order_of(bytes), .bytes = bytes};

    if (memory)
        return memory;
    waiter.task = task_self(pages->loop);
    *pages->end = &waiter;
    pages->end = &waiter.next;
    task_suspend(pages->loop);
    assert(waiter.memory);
    return waiter.memory;
}

static void
serve_waiters(struct pages *pages)
{
    struct page_waiter *waiter;

    while ((waiter = pages->first)) {
        waiter->memory = run_take(pages, waiter->order, waiter->bytes);
        if (!waiter->memory)
            return;
        pages->first = waiter->next;
        if (!pages->first)
            pages->end = &pages->first;
        task_wake(pages->loop, waiter->task);
    }
}

void
pages_give(struct pages *pages, void *at, uint64_t bytes)
{
    const uint64_t offset = (uint64_t)((char *)at - pages->arena);
    uint32_t run = (uint32_t)(offset / BLOCK_BYTES);
    unsigned order = order_of(bytes);

    assert((char *)at >= pages->arena);
    assert(offset < pages->total_bytes);
    assert(offset % BLOCK_BYTES == 0);
    assert(pages->blocks[run].state == RUN_TAKEN);
    assert(pages->blocks[run].order == order);
    annotate_memory_off(at, (uint64_t)BLOCK_BYTES << order);
    pages->free_bytes += (uint64_t)BLOCK_BYTES << order;
    pages->blocks[run].state = RUN_INSIDE;
    for (; order < pages->order_max; order++) {
        const uint32_t buddy = run ^ (1u << order);

        if (buddy >= pages->block_count || pages->blocks[buddy].state != RUN_FREE ||
            pages->blocks[buddy].order != order)
            break;
        free_remove(pages, buddy);
        run &= ~(1u << order);
    }
    free_push(pages, run, order);
    serve_waiters(pages);
}
