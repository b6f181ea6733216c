/* sim_loop.c: see sim_loop.h. The queue is a binary heap. */
#include "sim_loop.h"
#include <stdlib.h>

#define START_NS    UINT64_C(1000000000)
#define START_US    UINT64_C(1700000000000000)
#define TURNS_MAX   UINT64_C(2000000)
#define VIRTUAL_MAX (UINT64_C(3600) * 1000000000)

static bool
earlier(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

void
sim_loop_reset(struct sim_loop *sim)
{
    assert(sim->count == 0);
    sim->now_ns = START_NS;
    sim->order = 0;
    sim->turns = 0;
    sim->turns_max = TURNS_MAX;
    sim->now_ns_max = VIRTUAL_MAX;
}

void
sim_loop_fini(struct sim_loop *sim)
{
    free(sim->heap);
    sim->heap = NULL;
}

void
sim_loop_post(struct sim_loop *sim, struct sim_event *event, uint64_t after_ns)
{
    unsigned at = sim->count;

    if (sim->count == sim->capacity) {
        sim->capacity = sim->capacity ? sim->capacity * 2 : 256;
        sim->heap = realloc(sim->heap, sim->capacity * sizeof(struct sim_event *));
        assert(sim->heap);
    }
    event->at_ns = sim->now_ns + after_ns;
    event->order = sim->order++;
    sim->count++;
    while (at > 0 && earlier(event, sim->heap[(at - 1) / 2])) {
        sim->heap[at] = sim->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    sim->heap[at] = event;
}

static struct sim_event *
pop(struct sim_loop *sim)
{
    struct sim_event *const first = sim->heap[0];
    struct sim_event *const last = sim->heap[--sim->count];
    unsigned at = 0;

    for (;;) {
        unsigned child = 2 * at + 1;

        if (child >= sim->count)
            break;
        if (child + 1 < sim->count && earlier(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (!earlier(sim->heap[child], last))
            break;
        sim->heap[at] = sim->heap[child];
        at = child;
    }
    sim->heap[at] = last;
    return first;
}

static void
sim_wait(void *self, uint64_t deadline_ns)
{
    struct sim_loop *const sim = self;
    uint64_t until = deadline_ns;

    if (++sim->turns > sim->turns_max)
        sim->stuck("too many turns of the loop");
    if (sim->count > 0)
        until = min_u64(until, sim->heap[0]->at_ns);
    if (until == UINT64_MAX)
        sim->stuck("tasks wait, and nothing is in flight and no timer is armed");
    sim->now_ns = max_u64(sim->now_ns, until);
    if (sim->now_ns > sim->now_ns_max)
        sim->stuck("too much virtual time");
    while (sim->count > 0 && sim->heap[0]->at_ns <= sim->now_ns) {
        struct sim_event *const event = pop(sim);

        event->fire(event);
    }
}

static void
sim_submit(void *self, struct loop_io *io)
{
    (void)self;
    (void)io;
    assert(!"the simulator has no system to submit to");
}

static uint64_t
sim_now(void *self)
{
    return ((const struct sim_loop *)self)->now_ns;
}

static uint64_t
sim_wall(void *self)
{
    return START_US + ((const struct sim_loop *)self)->now_ns / 1000;
}

static void
sim_destroy(void *self)
{
    (void)self;
}

const struct loop_backend sim_loop_backend = {
    .name = "simulator",
    .submit = sim_submit,
    .wait = sim_wait,
    .now_ns = sim_now,
    .wall_us = sim_wall,
    .destroy = sim_destroy,
};
