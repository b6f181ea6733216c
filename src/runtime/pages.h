/*
 * pages.h: the memory budget, as one arena of 4 KiB-aligned blocks.
 *
 * A buddy allocator: sizes are rounded up to a power of two of 4 KiB blocks, so that a buffer is
 * always contiguous and gives merge again. Lowest address first, last-in first-out within a size,
 * so that what is warm stays warm. The arena is touched at start (huge pages where the system gives
 * them). Running out means waiting, in order; nobody overtakes the first who waits.
 */
#ifndef STRIPELOG_PAGES_H
#define STRIPELOG_PAGES_H

#include "runtime/loop.h"

struct pages;

/* bytes is rounded down to 4 KiB. -ENOMEM. touch: fault all of it in now. */
int pages_create(struct loop *loop, uint64_t bytes, bool touch, struct pages **out) must_check;
/* Everything must have been given back. */
void pages_destroy(struct pages *pages);

/* What a take of bytes costs: bytes rounded up to a power of two of blocks. */
uint64_t pages_cost(uint64_t bytes);
uint64_t pages_total(const struct pages *pages);
uint64_t pages_free(const struct pages *pages);
/* The largest take that can succeed when all is free. */
uint64_t pages_largest(const struct pages *pages);

/* At once or NULL (also while somebody waits). */
void *pages_try(struct pages *pages, uint64_t bytes) must_check;
/* In order. bytes <= pages_largest. */
task_fn void *pages_take(struct pages *pages, uint64_t bytes) must_check;
/* bytes as it was taken. */
void pages_give(struct pages *pages, void *at, uint64_t bytes);

#endif
