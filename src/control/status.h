/*
 * status.h: how an array is, as JSON.
 *
 * stripelog-status(1) has the list of its members. Keys that end in _bytes say their unit; the
 * other numbers count. Never changes the array, never suspends.
 */
#ifndef STRIPELOG_CONTROL_STATUS_H
#define STRIPELOG_CONTROL_STATUS_H

#include "array/array.h"
#include <jansson.h>

/* NULL: no memory. */
json_t *control_status(const struct array *array);

/* Why the mode in use is not the one that was asked for; NULL: it is. */
const char *control_mode_reason(const struct array_status *status);

#endif
