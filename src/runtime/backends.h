/* backends.h: the two real backends of the loop, for loop_create and for tests that force one. */
#ifndef STRIPELOG_BACKENDS_H
#define STRIPELOG_BACKENDS_H

#include "runtime/loop.h"

/* -ENOSYS, -EPERM, -ENOMEM ... where io_uring is refused. */
int backend_uring_create(const struct loop_backend **backend, void **self,
                         struct error *error) must_check;
int backend_threads_create(const struct loop_backend **backend, void **self,
                           struct error *error) must_check;

/* now_ns and wall_us of both: the system's clocks. */
uint64_t backend_now_ns(void *self);
uint64_t backend_wall_us(void *self);

#endif
