/*
 * file.h: members that are files or block devices.
 *
 * O_DIRECT wherever the device can (buffered where open or the first read says EINVAL:
 * device->buffered). Claims, as the design says: O_EXCL for block devices; for files a whole-file
 * OFD lock on the very descriptor that does the I/O (write lock, read lock when readonly), so that
 * it is held until the last I/O of a killed process has ended.
 */
#ifndef STRIPELOG_FILE_H
#define STRIPELOG_FILE_H

#include "device/device.h"

struct file_options {
    bool readonly;
    bool claim;             /* take the claim (examine does not) */
    uint64_t claim_wait_ns; /* how long to retry a claim before -EBUSY; the house value is 5 s */
};

/* -ENOENT, -EACCES, -EBUSY (in use), -ENOTBLK (neither file nor block device), -ENOTSUP (nbd://
 * member, not yet) ... with a text that names the path and the cause. */
task_fn int device_file_open(struct loop *loop, const char *path,
                             const struct file_options *options, struct device **out,
                             struct error *error) must_check;

#endif
