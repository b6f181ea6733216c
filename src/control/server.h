/*
 * server.h: the control socket of a running array.
 *
 * A connection is one task: it receives a line, does what that says, sends the reply, and looks
 * for the next. So replies come in order, nothing piles up for a client that does not read, and
 * what takes long (a mode that drains, a stop) holds up its own connection only.
 *
 * C1. Whatever a client sends, or does not, its own connection alone suffers.
 * C2. Memory is bounded: so many connections, a line each, a reply each. When all are used, the one
 *     that has waited for its client longest makes room; one that works on a request never does.
 * C3. One change of the mode is under way at a time; others wait for it, in order.
 * C4. A stop is answered when the array has stopped, and the connection is closed when the array's
 *     devices have been let go (control_destroy): who reads to the end can start it again.
 *
 *   control_create   serves
 *   control_refuse   the array is going to stop: no more changes; status is still told
 *   control_end      it has: answers who waits for that, lets the others go
 *   control_destroy  closes
 */
#ifndef STRIPELOG_CONTROL_SERVER_H
#define STRIPELOG_CONTROL_SERVER_H

#include "array/array.h"
#include "base/error.h"
#include "runtime/loop.h"
#include <jansson.h>

struct control;

/* Zero means the house's value, which stands beside it. */
struct control_limits {
    unsigned connections; /* 32 */
    uint64_t end_ns;      /* 1 s: how long control_end waits for clients that take no reply */
};

struct control_config {
    struct loop *loop;
    struct array *array; /* borrowed until control_end has returned */
    int listen_fd;       /* a listening unix socket, non-blocking; stays the caller's */
    struct control_limits limits;
    void *owner;
    /* A client wants the end: sees to it that control_refuse and control_end are called, soon. Must
     * not suspend; may be called more than once. */
    void (*stop)(void *owner);
    /* Adds what the owner knows to a status; may be NULL. Must not suspend. */
    void (*describe)(void *owner, json_t *status);
};

/* -ENOMEM. */
int control_create(const struct control_config *config, struct control **out) must_check;
void control_refuse(struct control *control);
/* The array has stopped: clean where error is NULL. Shuts the listening socket down. Every call
 * into the array has returned then. After control_refuse, once. */
task_fn void control_end(struct control *control, const struct error *error);
/* After control_end. */
void control_destroy(struct control *control);

#endif
