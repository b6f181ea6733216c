/*
 * export.h: what the NBD server serves, as a table of functions.
 *
 * The server knows nothing of arrays; the array, a raw device and (in the benchmarks) nothing at
 * all are exports. All functions run in a task and may suspend. Offsets and lengths are in range
 * and length > 0; readonly exports get no changing calls: the server checks.
 */
#ifndef STRIPELOG_EXPORT_H
#define STRIPELOG_EXPORT_H

#include "base/base.h"

struct export;

struct export_ops {
    /* [offset, offset + length) is rounded out to 4 KiB by the server; memory is 4 KiB-aligned. */
    task_fn int (*read)(struct export *export, void *memory, uint64_t offset, uint64_t length);
    /* Any offset and length. memory holds length bytes and memory's address has the same remainder
     * to 4 KiB as offset, so that whole blocks lie in whole aligned pages. Not changed by the
     * server until this returns. */
    task_fn int (*write)(struct export *export, const void *memory, uint64_t offset,
                         uint64_t length, bool fua);
    task_fn int (*flush)(struct export *export);
    /* A hint; may do nothing. */
    task_fn int (*trim)(struct export *export, uint64_t offset, uint64_t length, bool fua);
    /* may_punch: the client did not forbid holes. fast_only: -ENOTSUP at once where it would not be
     * faster than writing. */
    task_fn int (*zero)(struct export *export, uint64_t offset, uint64_t length, bool may_punch,
                        bool fast_only, bool fua);
};

struct export
{
    const struct export_ops *ops;
    const char *name;    /* second name of the only export; may be "" */
    uint64_t size_bytes; /* a multiple of 4 KiB */
    bool readonly;
};

#endif
