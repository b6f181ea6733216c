/*
 * devices.c: opening and closing what the command line names.
 */
#include "cli/cli.h"

#include <sys/stat.h>

struct open_job {
    struct loop *loop;
    const char *const *paths;
    unsigned count;
    const struct file_options *options;
    struct device **devices;
    struct error *error;
    int result;
};

static void
close_all(struct device **devices, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (devices[i]) {
            device_close(devices[i]);
            devices[i] = NULL;
        }
}

static task_fn void
open_all(void *arg)
{
    struct open_job *job = arg;

    for (unsigned i = 0; i < job->count && job->result == 0; i++) {
        job->devices[i] = NULL;
        if (job->paths[i])
            job->result = device_file_open(job->loop, job->paths[i], job->options, &job->devices[i],
                                           job->error);
        if (job->result < 0) {
            job->devices[i] = NULL;
            close_all(job->devices, i);
        }
    }
}

static bool
same_file(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* What cannot be looked at is for the opening to complain about. */
static int
check_distinct(const char *const *paths, unsigned count, struct error *error)
{
    struct stat a, b;

    for (unsigned i = 0; i < count; i++) {
        if (!paths[i] || stat(paths[i], &a) < 0)
            continue;
        for (unsigned j = i + 1; j < count; j++)
            if (paths[j] && stat(paths[j], &b) == 0 && same_file(&a, &b))
                return error_set(error, -EINVAL, "%s and %s are the same device", paths[i],
                                 paths[j]);
    }
    return 0;
}

int
devices_open(struct loop *loop, const char *const *paths, unsigned count,
             const struct file_options *options, struct device **devices, struct error *error)
{
    struct open_job job = {.loop = loop,
                           .paths = paths,
                           .count = count,
                           .options = options,
                           .devices = devices,
                           .error = error};

    job.result = options->claim ? check_distinct(paths, count, error) : 0;
    if (job.result == 0)
        loop_run_task(loop, open_all, &job);
    for (unsigned i = 0; i < count && job.result == 0; i++)
        if (devices[i] && devices[i]->buffered)
            message("%s: direct I/O is refused here, so it goes through the page cache", paths[i]);
    return job.result;
}

struct close_job {
    struct device **devices;
    unsigned count;
};

static task_fn void
close_task(void *arg)
{
    struct close_job *job = arg;

    close_all(job->devices, job->count);
}

void
devices_close(struct loop *loop, struct device **devices, unsigned count)
{
    struct close_job job = {.devices = devices, .count = count};

    loop_run_task(loop, close_task, &job);
}
