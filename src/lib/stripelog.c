/*
 * stripelog.c: the public API: an array, its loop and the thread they live on.
 *
 * A call from outside is a job: it travels to the loop by loop_call, runs there as a task, and the
 * caller sleeps on the job's condition until it is done. Reads go through pages of ours, since
 * devices want aligned memory; writes are taken from the caller's buffer, which it cannot change
 * before the call returns.
 */
#include "stripelog.h"
#include "array/array.h"
#include "device/file.h"
#include "runtime/pages.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#define MEMORY_DEFAULT  (64 * MIB)
#define MEMORY_MIN      (8 * MIB)
#define PIECE_BYTES_MAX (1 * MIB) /* of one request's pages at a time */
#define CLAIM_WAIT_NS   UINT64_C(5000000000)

struct stripelog {
    pthread_t thread;
    struct loop *loop;
    struct array *array;
    struct pages *pages;   /* for reads and writes; NULL until it is open */
    struct task *resident; /* keeps the loop from ending for want of tasks */
    struct stripelog_options options;
    uint64_t size_bytes;
};

struct job {
    struct loop_call call; /* first: the loop finds us by it */
    struct stripelog *handle;
    task_fn int (*run)(struct job *job);
    void *buffer;
    const void *source;
    uint64_t offset, length;
    unsigned flags;
    const char *const *devices; /* open */
    unsigned devices_count;
    struct error error;
    int result;
    bool done; /* with lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static void
job_finish(struct job *job, int result)
{
    (void)pthread_mutex_lock(&job->lock); /* cannot fail: not recursive, initialised */
    job->result = result;
    job->done = true;
    (void)pthread_cond_signal(&job->changed);
    (void)pthread_mutex_unlock(&job->lock);
}

static void
job_main(void *arg)
{
    struct job *job = arg;

    job_finish(job, job->run(job));
}

/* On the loop, outside of a task: start one, or come again when there is a free one. */
static void
job_arrived(struct loop_call *call)
{
    struct job *job = container_of(call, struct job, call);

    if (task_start(job->handle->loop, job_main, job) == NULL)
        loop_call(job->handle->loop, call);
}

/* From any thread but the loop's. */
static int
job_run(struct stripelog *handle, struct job *job)
{
    job->handle = handle;
    job->call.run = job_arrived;
    (void)pthread_mutex_init(&job->lock, NULL);   /* cannot fail without attributes */
    (void)pthread_cond_init(&job->changed, NULL); /* the same */
    loop_call(handle->loop, &job->call);
    (void)pthread_mutex_lock(&job->lock);
    while (!job->done)
        (void)pthread_cond_wait(&job->changed, &job->lock);
    (void)pthread_mutex_unlock(&job->lock);
    (void)pthread_cond_destroy(&job->changed);
    (void)pthread_mutex_destroy(&job->lock);
    return job->result;
}

static void
resident_main(void *arg)
{
    struct stripelog *handle = arg;

    handle->resident = task_self(handle->loop);
    task_suspend(handle->loop);
}

/* A loop may be bound to the thread that made it, so it is made, run and destroyed here. */
static int
handle_begin_loop(struct stripelog *handle, struct error *error)
{
    const struct loop_config config = {0};

    return loop_create(&config, &handle->loop, error);
}

struct start {
    struct stripelog *handle;
    struct error *error;
    sem_t done;
    int result;
};

static void *
thread_main(void *arg)
{
    struct start *start = arg;
    struct stripelog *handle = start->handle;

    start->result = handle_begin_loop(handle, start->error);
    if (start->result == 0)
        task_start_wait(handle->loop, resident_main, handle); /* the first: it does not wait */
    const bool started = start->result == 0;

    (void)sem_post(&start->done); /* start is the starter's again */
    if (!started)
        return NULL;
    loop_run(handle->loop);
    if (handle->pages != NULL)
        pages_destroy(handle->pages);
    loop_destroy(handle->loop);
    return NULL;
}

static_assert((int)STRIPELOG_FORCE_DIRTY_DEGRADED == FORCE_DIRTY_DEGRADED, "passed on as it is");
static_assert((int)STRIPELOG_FORCE_STALE_MEMBER == FORCE_STALE_MEMBER, "passed on as it is");
static_assert((int)STRIPELOG_FORCE_DROP_JOURNAL == FORCE_DROP_JOURNAL, "passed on as it is");
static_assert((int)STRIPELOG_FORCE_NEW_JOURNAL == FORCE_NEW_JOURNAL, "passed on as it is");
static_assert((int)STRIPELOG_FORCE_TRUNCATE_JOURNAL == FORCE_TRUNCATE_JOURNAL,
              "passed on as it is");

/* --- Open and close -------------------------------------------------------------------------- */

static void
event_arrived(void *owner, const struct array_event *event)
{
    struct stripelog *handle = owner;

    if (handle->options.event != NULL && event->text[0] != '\0')
        handle->options.event(handle->options.owner, event->text);
}

static task_fn int
open_array(struct job *job, struct device **devices)
{
    struct stripelog *handle = job->handle;
    struct array_config config = {
        .devices = devices,
        .device_count = job->devices_count,
        .readonly = handle->options.readonly != 0,
        .force = handle->options.force,
        .journal_mode = handle->options.write_back ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH,
        .event = event_arrived,
        .owner = handle,
    };

    array_config_split(&config, handle->options.memory_bytes);
    return array_start(handle->loop, &config, &handle->array, &job->error);
}

static task_fn int
open_buffers(struct job *job)
{
    struct stripelog *handle = job->handle;
    struct array_status status;
    int result;

    array_status(handle->array, &status);
    handle->size_bytes = status.size_bytes;
    result =
        pages_create(handle->loop, array_request_bytes(handle->array, handle->options.memory_bytes),
                     false, &handle->pages);
    if (result == 0)
        return 0;
    ignored(array_stop(handle->array)); /* that it cannot be opened is what is told */
    array_destroy(handle->array);
    return error_set(&job->error, result, "no memory for the buffers");
}

static task_fn int
job_open(struct job *job)
{
    struct stripelog *handle = job->handle;
    const struct file_options options = {
        .readonly = handle->options.readonly != 0, .claim = true, .claim_wait_ns = CLAIM_WAIT_NS};
    struct device **devices = calloc(job->devices_count, sizeof *devices);
    unsigned opened = 0;
    int result = 0;

    if (devices == NULL)
        return error_set(&job->error, -ENOMEM, "no memory for %u devices", job->devices_count);
    while (result == 0 && opened < job->devices_count) {
        result = device_file_open(handle->loop, job->devices[opened], &options, &devices[opened],
                                  &job->error);
        opened += result == 0;
    }
    if (result == 0)
        result = open_array(job, devices);
    if (result < 0)
        while (opened > 0)
            device_close(devices[--opened]);
    free(devices);
    return result < 0 ? result : open_buffers(job);
}

static task_fn int
job_close(struct job *job)
{
    const int result = array_stop(job->handle->array);

    array_destroy(job->handle->array);
    return result;
}

static task_fn int
job_leave(struct job *job)
{
    task_wake(job->handle->loop, job->handle->resident);
    return 0;
}

/* Ends the thread, with its loop, and frees the handle. */
static void
handle_end(struct stripelog *handle)
{
    struct job leave = {.run = job_leave};

    (void)job_run(handle, &leave); /* always 0 */
    (void)pthread_join(handle->thread, NULL);
    free(handle);
}

static int
handle_begin(const struct stripelog_options *options, struct stripelog **out, struct error *error)
{
    struct stripelog *handle = calloc(1, sizeof *handle);
    struct start start = {.handle = handle, .error = error};
    int result;

    if (handle == NULL)
        return error_set(error, -ENOMEM, "no memory");
    if (options != NULL)
        handle->options = *options;
    if (handle->options.memory_bytes == 0)
        handle->options.memory_bytes = MEMORY_DEFAULT;
    handle->options.memory_bytes = max_u64(handle->options.memory_bytes, MEMORY_MIN);
    (void)sem_init(&start.done, 0, 0); /* cannot fail with these */
    result = -pthread_create(&handle->thread, NULL, thread_main, &start);
    if (result < 0) {
        free(handle);
        return error_set(error, result, "cannot start a thread: %s", strerror(-result));
    }
    while (sem_wait(&start.done) < 0)
        ; /* a signal came */
    if (start.result < 0) {
        (void)pthread_join(handle->thread, NULL);
        free(handle);
        return start.result;
    }
    *out = handle;
    return 0;
}

int
stripelog_open(const char *const *devices, unsigned count, const struct stripelog_options *options,
               struct stripelog **array, char *error)
{
    struct job job = {.run = job_open, .devices = devices, .devices_count = count};
    struct stripelog *handle = NULL;
    int result = count > 0 ? handle_begin(options, &handle, &job.error)
                           : error_set(&job.error, -EINVAL, "no device was named");

    if (result == 0) {
        result = job_run(handle, &job);
        if (result < 0)
            handle_end(handle);
    }
    if (result < 0 && error != NULL)
        (void)snprintf(error, STRIPELOG_ERROR_BYTES, "%s", job.error.text);
    if (result == 0)
        *array = handle;
    return result;
}

int
stripelog_close(struct stripelog *array)
{
    struct job job = {.run = job_close};
    const int result = job_run(array, &job);

    handle_end(array);
    return result;
}

uint64_t
stripelog_size(const struct stripelog *array)
{
    return array->size_bytes;
}

/* --- Requests -------------------------------------------------------------------------------- */

static task_fn int
job_read(struct job *job)
{
    struct stripelog *handle = job->handle;
    uint8_t *target = job->buffer;
    uint64_t offset = job->offset, left = job->length;
    int result = 0;

    while (left > 0 && result == 0) {
        const uint64_t begin = round_down(offset, BLOCK_BYTES);
        const uint64_t end = min_u64(round_up(offset + left, BLOCK_BYTES), begin + PIECE_BYTES_MAX);
        const uint64_t part = min_u64(left, end - offset);
        uint8_t *pages = pages_take(handle->pages, end - begin);

        result = array_read(handle->array, pages, begin, end - begin);
        if (result == 0)
            memcpy(target, pages + (offset - begin), part);
        pages_give(handle->pages, pages, end - begin);
        target += part;
        offset += part;
        left -= part;
    }
    return result;
}

/* Out of pages of ours: parity and checksums must be of what is written, whatever another thread of
 * the caller does to its buffer meanwhile. */
static task_fn int
job_write(struct job *job)
{
    struct stripelog *handle = job->handle;
    const uint8_t *source = job->source;
    uint64_t offset = job->offset, left = job->length;
    int result = 0;

    while (left > 0 && result == 0) {
        const uint64_t within = offset % BLOCK_BYTES;
        const uint64_t part = min_u64(left, PIECE_BYTES_MAX - within);
        uint8_t *pages = pages_take(handle->pages, within + part);

        memcpy(pages + within, source, part);
        result = array_write(handle->array, pages + within, offset, part,
                             job->flags & STRIPELOG_DURABLE);
        pages_give(handle->pages, pages, within + part);
        source += part;
        offset += part;
        left -= part;
    }
    return result;
}

static task_fn int
job_zero(struct job *job)
{
    return array_zero(job->handle->array, job->offset, job->length,
                      job->flags & STRIPELOG_MAY_PUNCH, false, job->flags & STRIPELOG_DURABLE);
}

static task_fn int
job_trim(struct job *job)
{
    return array_trim(job->handle->array, job->offset, job->length, false);
}

static task_fn int
job_flush(struct job *job)
{
    return array_flush(job->handle->array);
}

static int
request(struct stripelog *array, struct job *job)
{
    if (job->offset > array->size_bytes || job->length > array->size_bytes - job->offset)
        return -EINVAL;
    if (job->length == 0 && job->run != job_flush)
        return 0;
    return job_run(array, job);
}

int
stripelog_read(struct stripelog *array, void *buffer, size_t length, uint64_t offset)
{
    return request(
        array,
        &(struct job){.run = job_read, .buffer = buffer, .length = length, .offset = offset});
}

int
stripelog_write(struct stripelog *array, const void *buffer, size_t length, uint64_t offset,
                unsigned flags)
{
    return request(array, &(struct job){.run = job_write,
                                        .source = buffer,
                                        .length = length,
                                        .offset = offset,
                                        .flags = flags});
}

int
stripelog_zero(struct stripelog *array, uint64_t length, uint64_t offset, unsigned flags)
{
    return request(
        array, &(struct job){.run = job_zero, .length = length, .offset = offset, .flags = flags});
}

int
stripelog_trim(struct stripelog *array, uint64_t length, uint64_t offset)
{
    return request(array, &(struct job){.run = job_trim, .length = length, .offset = offset});
}

int
stripelog_flush(struct stripelog *array)
{
    return request(array, &(struct job){.run = job_flush});
}

static task_fn int
job_set_write_back(struct job *job)
{
    return array_set_journal_mode(
        job->handle->array, job->flags ? JOURNAL_WRITE_BACK : JOURNAL_WRITE_THROUGH, &job->error);
}

int
stripelog_set_write_back(struct stripelog *array, int on)
{
    return job_run(array, &(struct job){.run = job_set_write_back, .flags = on != 0});
}
