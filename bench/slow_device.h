/*
 * slow_device.h: a device that takes its time.
 *
 * It stands in front of another device, holds every operation back for as long as a slower one
 * would have worked on it, and then passes it on. Waiting is a timer of the loop and costs no CPU.
 *
 *   a fixed delay    every operation begins at once and takes delay_ns more; any number at a time,
 *                    as with a device that is far away
 *   a spindle        one operation at a time, in the order of arrival. A transfer takes seek_ns
 *                    unless it begins where the last one ended, and the time that its bytes take;
 *                    a flush takes seek_ns
 *
 * What the device behind it needs comes on top. It neither punches nor makes zero.
 */
#ifndef STRIPELOG_SLOW_DEVICE_H
#define STRIPELOG_SLOW_DEVICE_H

#include "device/device.h"

struct slow_model {
    uint64_t delay_ns;    /* 0: none */
    uint64_t seek_ns;     /* 0: no spindle */
    uint64_t bytes_per_s; /* of a spindle */
    uint64_t near_bytes;  /* of a spindle: a gap of up to as much, forward, takes no seek, but as
                             long as its bytes */
};

/* Owns `below` from here on. NULL: no memory, and it is still the caller's. */
struct device *slow_device_create(struct device *below, const struct slow_model *model);

/* Of a device made by slow_device_create: operations, and of these such as had to seek, so far. */
void slow_device_counts(const struct device *device, uint64_t *operations, uint64_t *seeks);

#endif
