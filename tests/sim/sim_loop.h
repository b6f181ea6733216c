/*
 * sim_loop.h: a loop backend whose clock is virtual.
 *
 * Events stand in one queue, ordered by virtual time and, at the same time, by the order in which
 * they were posted. A wait lets the time jump to the first event or to the loop's deadline,
 * whichever is sooner, and fires all events that are due. Nothing else moves the clock, so
 * everything that happens follows from what was posted.
 *
 * Every history ends: nothing to wait for while tasks are suspended, too many turns, and too much
 * virtual time are all told to the owner (`stuck`).
 */
#ifndef STRIPELOG_SIM_LOOP_H
#define STRIPELOG_SIM_LOOP_H

#include "runtime/loop.h"

/* Caller's memory, in the queue from sim_loop_post until fire. */
struct sim_event {
    uint64_t at_ns, order;
    void (*fire)(struct sim_event *event);
};

struct sim_loop {
    uint64_t now_ns, order;
    struct sim_event **heap; /* owned */
    unsigned count, capacity;
    uint64_t turns, turns_max, now_ns_max;
    void (*stuck)(const char *why); /* does not return */
};

extern const struct loop_backend sim_loop_backend;

/* Free of events; the clock at its start; allowances full. The loop that stands on it must have no
 * task and no timer. */
void sim_loop_reset(struct sim_loop *sim);
void sim_loop_post(struct sim_loop *sim, struct sim_event *event, uint64_t after_ns);
void sim_loop_fini(struct sim_loop *sim);

#endif
