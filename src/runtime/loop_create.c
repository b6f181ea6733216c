/*
 * loop_create.c: the loop that stands on the real system, and its clocks. Apart from loop.c, so
 * that what runs on a simulator links no system backend.
 */
#include "runtime/backends.h"
#include <time.h>

static uint64_t
clock_read(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now); /* cannot fail for these clocks */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t
backend_now_ns(void *self)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t
backend_wall_us(void *self)
{
    return clock_read(CLOCK_REALTIME) / 1000;
}

int
loop_create(const struct loop_config *config, struct loop **out, struct error *error)
{
    const struct loop_backend *backend;
    void *self;
    int rc = backend_uring_create(&backend, &self, error);

    if (rc < 0)
        rc = backend_threads_create(&backend, &self, error);
    if (rc < 0)
        return rc;
    return loop_create_on(config, backend, self, out, error);
}
