/*
 * loop_create.c: the loop that stands on the real system. Apart from loop.c, so that what runs on
 * a simulator links no system backend.
 */
#include "runtime/backends.h"

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
