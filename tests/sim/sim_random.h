/* sim_random.h: the one source of chance in the simulator (SplitMix64), from one seed. */
#ifndef STRIPELOG_SIM_RANDOM_H
#define STRIPELOG_SIM_RANDOM_H

#include "base/base.h"

struct sim_random {
    uint64_t state;
};

static inline uint64_t
random_next(struct sim_random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0 ... limit - 1. */
static inline uint64_t
random_below(struct sim_random *random, uint64_t limit)
{
    return (uint64_t)(((unsigned __int128)random_next(random) * limit) >> 64);
}

/* first ... last, both included. */
static inline uint64_t
random_between(struct sim_random *random, uint64_t first, uint64_t last)
{
    return first + random_below(random, last - first + 1);
}

static inline bool
random_percent(struct sim_random *random, unsigned percent)
{
    return random_below(random, 100) < percent;
}

#endif
