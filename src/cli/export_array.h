/* export_array.h: an array as what the NBD server serves. */
#ifndef STRIPELOG_EXPORT_ARRAY_H
#define STRIPELOG_EXPORT_ARRAY_H

#include "array/array.h"
#include "nbd/export.h"

struct export_array {
    struct export export;
    struct array *array; /* borrowed */
};

/* The name is borrowed from the array's superblock. */
void export_array_init(struct export_array *export_array, struct array *array);

#endif
