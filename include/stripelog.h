/*
 * stripelog.h: an array as a library.
 *
 * A handle owns one array and one thread that runs it. All calls are blocking and may be made from
 * any number of threads at once; requests of different threads are served together. Functions that
 * return int give 0 or a negative errno.
 *
 *      const char *members[] = {"d0.img", "d1.img", "d2.img"};
 *      struct stripelog *array;
 *      char why[STRIPELOG_ERROR_BYTES];
 *
 *      if (stripelog_open(members, 3, NULL, &array, why) < 0)
 *          die(why);
 *      stripelog_write(array, "hello", 5, 0, STRIPELOG_DURABLE);
 *      stripelog_close(array);
 *
 * Durability is as with a disk: a write that has returned is durable when a later stripelog_flush
 * has returned, or at once with STRIPELOG_DURABLE. stripelog_close flushes and marks the array
 * clean. The devices of an array with a write journal include the journal's; what a crash left in
 * it is recovered by stripelog_open, and a write that has returned is durable there, unless
 * write-back was asked for.
 */
#ifndef STRIPELOG_H
#define STRIPELOG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct stripelog;

#define STRIPELOG_ERROR_BYTES 512

enum stripelog_force {
    STRIPELOG_FORCE_DIRTY_DEGRADED = 1,
    STRIPELOG_FORCE_STALE_MEMBER = 2,
    STRIPELOG_FORCE_DROP_JOURNAL = 4,
    STRIPELOG_FORCE_NEW_JOURNAL = 8,
    STRIPELOG_FORCE_TRUNCATE_JOURNAL = 16,
};

struct stripelog_options {
    int readonly;   /* open every device read-only, write nothing */
    unsigned force; /* set of enum stripelog_force; see stripelog-serve(1) before using any */
    uint64_t memory_bytes; /* budget for all buffers; 0: 64 MiB */
    /* Told of failed members, mended blocks and the resync, in words; on the array's thread, must
     * return soon. May be NULL. */
    void (*event)(void *owner, const char *text);
    void *owner;
    /* A write returns when it is on the journal, and is durable as without one. An array without a
     * journal is refused; one that is degraded goes on as if it had not been asked for. */
    int write_back;
};

/*
 * Opens the array that these devices (files or block devices) make up, as `stripelog serve` would,
 * and starts it. options may be NULL. On failure *error, of STRIPELOG_ERROR_BYTES, says why (error
 * may be NULL).
 */
int stripelog_open(const char *const *devices, unsigned count,
                   const struct stripelog_options *options, struct stripelog **array, char *error);

/* Finishes what is under way, flushes, marks the array clean, frees the handle whatever is
 * returned. An error means that the array was left dirty. No other call may be under way. */
int stripelog_close(struct stripelog *array);

/* Bytes. */
uint64_t stripelog_size(const struct stripelog *array);

enum stripelog_flags {
    STRIPELOG_DURABLE = 1,   /* durable on return (FUA) */
    STRIPELOG_MAY_PUNCH = 2, /* zero: space may be given back */
};

/* Any offset and length within the size (else -EINVAL). -EIO; -EROFS for changes of a read-only
 * array. */
int stripelog_read(struct stripelog *array, void *buffer, size_t length, uint64_t offset);
int stripelog_write(struct stripelog *array, const void *buffer, size_t length, uint64_t offset,
                    unsigned flags);
int stripelog_zero(struct stripelog *array, uint64_t length, uint64_t offset, unsigned flags);
/* A hint: the content may become zeros, or stay. */
int stripelog_trim(struct stripelog *array, uint64_t length, uint64_t offset);
int stripelog_flush(struct stripelog *array);

/* Changes that; off: returns when everything that was cached is on the members. -ENOTSUP: no
 * journal, or one that is too small; -EUCLEAN: on, while the array is degraded; -EROFS; -EIO. */
int stripelog_set_write_back(struct stripelog *array, int on);

#ifdef __cplusplus
}
#endif

#endif
