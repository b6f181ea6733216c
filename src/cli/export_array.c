/*
 * export_array.c: an array as what the NBD server serves. Both speak of bytes and return a negative
 * errno, so there is nothing to translate.
 */
#include "cli/export_array.h"

static struct array *
array_of(struct export *export)
{
    return container_of(export, struct export_array, export)->array;
}

static task_fn int
export_array_read(struct export *export, void *memory, uint64_t offset, uint64_t length)
{
    return array_read(array_of(export), memory, offset, length);
}

static task_fn int
export_array_write(struct export *export, const void *memory, uint64_t offset, uint64_t length,
                   bool fua)
{
    return array_write(array_of(export), memory, offset, length, fua);
}

static task_fn int
export_array_flush(struct export *export)
{
    return array_flush(array_of(export));
}

static task_fn int
export_array_trim(struct export *export, uint64_t offset, uint64_t length, bool fua)
{
    return array_trim(array_of(export), offset, length, fua);
}

static task_fn int
export_array_zero(struct export *export, uint64_t offset, uint64_t length, bool may_punch,
                  bool fast_only, bool fua)
{
    return array_zero(array_of(export), offset, length, may_punch, fast_only, fua);
}

static const struct export_ops export_array_ops = {
    .read = export_array_read,
    .write = export_array_write,
    .flush = export_array_flush,
    .trim = export_array_trim,
    .zero = export_array_zero,
};

void
export_array_init(struct export_array *export_array, struct array *array)
{
    struct array_status status;

    array_status(array, &status);
    *export_array = (struct export_array){
        .export = {.ops = &export_array_ops,
                   .name = status.superblock->set_name,
                   .size_bytes = status.size_bytes,
                   .readonly = status.readonly},
        .array = array,
    };
}
