/*
 * Devices that are files or block devices, on a memory file system and on a disk, on both real
 * backends; and what all devices share.
 */
#include "device/file.h"
#include "runtime/backends.h"
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define MS 1000000ull
/* Room to read again what an I/O wrote whose vectors do not adjoin. */
#define MEMORY_BYTES (4 * IO_VECTORS * BLOCK_BYTES)
#define FILE_BYTES                                                                                 \
    (4 * MIB + 1536) /* not a multiple of 4 KiB: sizes are rounded to sectors only                 \
                      */

/* --- A backend that transfers little by little ---------------------------------------------- */

struct stingy {
    struct loop_io *queue[64];
    unsigned count, calls;
    uint64_t now_ns;
};

static void
stingy_submit(void *self, struct loop_io *io)
{
    struct stingy *const stingy = self;

    assert_true(stingy->count < ARRAY_LEN(stingy->queue));
    stingy->queue[stingy->count++] = io;
}

static int
stingy_result(struct stingy *stingy, const struct loop_io *io)
{
    struct iovec iov = io->iov[0];
    ssize_t rc;

    if (io->kind == LOOP_FDATASYNC)
        return fdatasync(io->fd) < 0 ? -errno : 0;
    if (io->kind != LOOP_READV && io->kind != LOOP_WRITEV)
        return -EOPNOTSUPP;
    if (stingy->calls++ % 3 == 2)
        return -EAGAIN;
    iov.iov_len = min_u64(iov.iov_len, BLOCK_BYTES);
    rc = io->kind == LOOP_READV ? pread(io->fd, iov.iov_base, iov.iov_len, (off_t)io->offset)
                                : pwrite(io->fd, iov.iov_base, iov.iov_len, (off_t)io->offset);
    return rc < 0 ? -errno : (int)rc;
}

static void
stingy_wait(void *self, uint64_t deadline_ns)
{
    struct stingy *const stingy = self;
    struct loop_io *queue[ARRAY_LEN(stingy->queue)];
    const unsigned count = stingy->count;

    if (count == 0)
        stingy->now_ns = deadline_ns;
    memcpy(queue, stingy->queue, sizeof queue);
    stingy->count = 0;
    for (unsigned i = 0; i < count; i++) {
        queue[i]->result = stingy_result(stingy, queue[i]);
        queue[i]->done(queue[i]);
    }
}

static uint64_t
stingy_now_ns(void *self)
{
    return ((struct stingy *)self)->now_ns;
}

static void
stingy_destroy(void *self)
{
    free(self);
}

static const struct loop_backend stingy_backend = {
    .name = "stingy",
    .submit = stingy_submit,
    .wait = stingy_wait,
    .now_ns = stingy_now_ns,
    .wall_us = stingy_now_ns,
    .destroy = stingy_destroy,
};

/* --- Scenes --------------------------------------------------------------------------------- */

enum kind { ON_URING, ON_THREADS, ON_STINGY };

struct scene {
    struct loop *loop;
    char *path; /* of a file of FILE_BYTES */
    struct device *device;
    struct io_pool pool;
    char *memory; /* MEMORY_BYTES, aligned */
    char log[64];
    size_t logged;
};

static void
note(struct scene *scene, char what)
{
    assert_true(scene->logged + 1 < sizeof scene->log);
    scene->log[scene->logged++] = what;
    scene->log[scene->logged] = '\0';
}

static int
loop_of(enum kind kind, struct loop **out)
{
    const struct loop_config config = {.tasks = 32, .seed = 1};
    const struct loop_backend *backend = &stingy_backend;
    struct error error = {0};
    void *self = NULL;
    int rc = 0;

    switch (kind) {
    case ON_URING:
        rc = backend_uring_create(&backend, &self, &error);
        break;
    case ON_THREADS:
        rc = backend_threads_create(&backend, &self, &error);
        break;
    case ON_STINGY:
        self = calloc(1, sizeof(struct stingy));
        break;
    }
    if (rc == 0)
        rc = loop_create_on(&config, backend, self, out, &error);
    if (rc < 0)
        print_message("%s\n", error.text);
    return rc;
}

static int
scene_begin(void **state, const char *directory, enum kind kind)
{
    struct scene *const scene = calloc(1, sizeof *scene);
    int fd;

    if (!scene)
        return -1;
    *state = scene;
    if (loop_of(kind, &scene->loop) < 0)
        return kind == ON_URING ? 0 : -1; /* in_scene skips where io_uring is refused */
    if (asprintf(&scene->path, "%s/stripelog-test-XXXXXX", directory) < 0)
        return -1;
    fd = mkstemp(scene->path);
    if (fd < 0 || ftruncate(fd, FILE_BYTES) < 0 || close(fd) < 0)
        return -1;
    if (posix_memalign((void **)&scene->memory, BLOCK_BYTES, MEMORY_BYTES) != 0)
        return -1;
    memset(scene->memory, 0, MEMORY_BYTES);
    return io_pool_init(&scene->pool, scene->loop, 4);
}

static const char *
disk(void)
{
    const char *const directory = getenv("TMPDIR");

    return directory ? directory : "/var/tmp";
}

static int
disk_uring(void **state)
{
    return scene_begin(state, disk(), ON_URING);
}

static int
disk_threads(void **state)
{
    return scene_begin(state, disk(), ON_THREADS);
}

static int
memory_uring(void **state)
{
    return scene_begin(state, "/dev/shm", ON_URING);
}

static int
memory_threads(void **state)
{
    return scene_begin(state, "/dev/shm", ON_THREADS);
}

static int
disk_stingy(void **state)
{
    return scene_begin(state, disk(), ON_STINGY);
}

static int
scene_end(void **state)
{
    struct scene *const scene = *state;

    if (scene->device)
        device_close(scene->device);
    if (scene->loop) {
        io_pool_fini(&scene->pool);
        loop_destroy(scene->loop);
        (void)unlink(scene->path); /* some tests remove it themselves */
    }
    free(scene->path);
    free(scene->memory);
    free(scene);
    return 0;
}

static struct scene *
in_scene(void **state)
{
    struct scene *const scene = *state;

    if (!scene->loop)
        skip();
    return scene;
}

static void
run(struct scene *scene, void (*story)(void *))
{
    loop_run_task(scene->loop, story, scene);
}

static int
open_at(struct scene *scene, const char *path, struct file_options options, struct device **out,
        struct error *error)
{
    *error = (struct error){0};
    return device_file_open(scene->loop, path, &options, out, error);
}

static void
open_claimed(void *arg)
{
    struct scene *const scene = arg;
    struct error error;
    const int rc =
        open_at(scene, scene->path, (struct file_options){.claim = true}, &scene->device, &error);

    if (rc < 0)
        print_message("%s\n", error.text);
    assert_int_equal(rc, 0);
}

static void
fill(char *memory, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        memory[i] = (char)(i * 31 + (i >> 9) + seed);
}

static bool
is_zero(const char *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (memory[i])
            return false;
    return true;
}

/* --- Reading and writing -------------------------------------------------------------------- */

static void
describe(void *arg)
{
    struct scene *const scene = arg;
    struct stat status;

    open_claimed(scene);
    assert_int_equal(stat(scene->path, &status), 0);
    assert_int_equal(scene->device->size_bytes, FILE_BYTES);
    assert_int_equal(scene->device->logical_block_bytes, 512);
    assert_string_equal(scene->device->name, scene->path);
    assert_true(scene->device->volatile_cache);
    assert_false(scene->device->readonly);
    assert_true(scene->device->identity[0] == status.st_dev);
    assert_true(scene->device->identity[1] == status.st_ino);
}

static void
file_is_described_as_it_is(void **state)
{
    run(in_scene(state), describe);
}

static void
write_and_read_back(void *arg)
{
    struct scene *const scene = arg;
    const uint64_t last = round_down(FILE_BYTES, BLOCK_BYTES) - 16 * BLOCK_BYTES;

    open_claimed(scene);
    fill(scene->memory, 32 * BLOCK_BYTES, 1);
    assert_int_equal(device_write(scene->device, scene->memory, 8192, 16 * BLOCK_BYTES, false), 0);
    assert_int_equal(
        device_write(scene->device, scene->memory + 16 * BLOCK_BYTES, last, 16 * BLOCK_BYTES, true),
        0);
    assert_int_equal(device_flush(scene->device), 0);
    assert_int_equal(
        device_read(scene->device, scene->memory + 32 * BLOCK_BYTES, 8192, 16 * BLOCK_BYTES), 0);
    assert_int_equal(
        device_read(scene->device, scene->memory + 48 * BLOCK_BYTES, last, 16 * BLOCK_BYTES), 0);
    assert_memory_equal(scene->memory, scene->memory + 32 * BLOCK_BYTES, 32 * BLOCK_BYTES);
}

static void
what_is_written_is_read_again(void **state)
{
    struct scene *const scene = in_scene(state);
    char *const whole = malloc(16 * BLOCK_BYTES);
    int fd;

    run(scene, write_and_read_back);
    fd = open(scene->path, O_RDONLY);
    assert_true(fd >= 0);
    assert_non_null(whole);
    assert_int_equal(pread(fd, whole, 16 * BLOCK_BYTES, 8192), 16 * BLOCK_BYTES);
    assert_memory_equal(whole, scene->memory, 16 * BLOCK_BYTES);
    assert_int_equal(close(fd), 0);
    free(whole);
}

static void
scatter(void *arg)
{
    struct scene *const scene = arg;
    char *const last = scene->memory + 2 * (IO_VECTORS - 1) * BLOCK_BYTES;
    char *const again = scene->memory + 2 * IO_VECTORS * BLOCK_BYTES;
    struct io_group group;
    struct io *io;

    open_claimed(scene);
    fill(scene->memory, 2 * IO_VECTORS * BLOCK_BYTES, 2);
    io_group_init(&group, scene->loop);
    io = io_take(&scene->pool);
    io->op = IO_WRITE;
    io->fua = true;
    io->offset = 64 * KIB;
    for (unsigned i = 0; i < IO_VECTORS; i++) /* every second block: nothing to merge */
        assert_true(io_add(io, scene->memory + 2 * i * BLOCK_BYTES, BLOCK_BYTES));
    assert_int_equal(io->iov_count, IO_VECTORS);
    assert_false(io_add(io, again, BLOCK_BYTES));
    assert_true(io_add(io, last + BLOCK_BYTES, BLOCK_BYTES)); /* adjoins the last */
    assert_int_equal(io->iov_count, IO_VECTORS);
    assert_int_equal(io->length, (IO_VECTORS + 1) * BLOCK_BYTES);
    io_submit(io, scene->device, &group);
    assert_int_equal(io_wait(&group), 0);
    assert_int_equal(device_read(scene->device, again, 64 * KIB, (IO_VECTORS + 1) * BLOCK_BYTES),
                     0);
    for (unsigned i = 0; i < IO_VECTORS; i++)
        assert_memory_equal(scene->memory + 2 * i * BLOCK_BYTES, again + i * BLOCK_BYTES,
                            BLOCK_BYTES);
    assert_memory_equal(last + BLOCK_BYTES, again + IO_VECTORS * BLOCK_BYTES, BLOCK_BYTES);
}

static void
vectors_are_gathered_in_order(void **state)
{
    run(in_scene(state), scatter);
}

/* --- Holes and zeros ------------------------------------------------------------------------ */

static int
make_zero(struct scene *scene, enum io_op op, uint64_t offset, uint64_t length)
{
    struct io_group group;
    struct io *const io = io_take(&scene->pool);

    io_group_init(&group, scene->loop);
    io->op = op;
    io->offset = offset;
    io->length = length;
    io_submit(io, scene->device, &group);
    assert_int_equal(group.pending, 1);
    return io_wait(&group);
}

/* Ones everywhere, then a range made zero: exactly that range reads zeros. */
static void
zero_exactly(struct scene *scene, enum io_op op)
{
    memset(scene->memory, 0xff, 16 * BLOCK_BYTES);
    assert_int_equal(device_write(scene->device, scene->memory, 0, 16 * BLOCK_BYTES, false), 0);
    assert_int_equal(make_zero(scene, op, 4 * BLOCK_BYTES, 8 * BLOCK_BYTES), 0);
    assert_int_equal(device_flush(scene->device), 0);
    assert_int_equal(
        device_read(scene->device, scene->memory + 16 * BLOCK_BYTES, 0, 16 * BLOCK_BYTES), 0);
    assert_true(is_zero(scene->memory + 20 * BLOCK_BYTES, 8 * BLOCK_BYTES));
    assert_memory_equal(scene->memory, scene->memory + 16 * BLOCK_BYTES, 4 * BLOCK_BYTES);
    assert_memory_equal(scene->memory, scene->memory + 28 * BLOCK_BYTES, 4 * BLOCK_BYTES);
}

static void
punch_and_zero(void *arg)
{
    struct scene *const scene = arg;
    struct stat before, after;

    open_claimed(scene);
    assert_true(scene->device->punch_zeroes); /* ext4, xfs, btrfs, tmpfs: what a CI stands on */
    zero_exactly(scene, IO_PUNCH);
    assert_int_equal(stat(scene->path, &before), 0);
    assert_true(scene->device->write_zeroes);
    zero_exactly(scene, IO_ZERO);
    assert_true(scene->device->write_zeroes);
    assert_int_equal(stat(scene->path, &after), 0);
    assert_int_equal(after.st_size, FILE_BYTES);
}

static void
punched_and_zeroed_ranges_read_zeros_and_nothing_else_does(void **state)
{
    run(in_scene(state), punch_and_zero);
}

static void
punch_frees(void *arg)
{
    struct scene *const scene = arg;
    struct stat before, after;

    open_claimed(scene);
    memset(scene->memory, 0xff, 64 * BLOCK_BYTES);
    assert_int_equal(device_write(scene->device, scene->memory, 0, 64 * BLOCK_BYTES, true), 0);
    assert_int_equal(stat(scene->path, &before), 0);
    assert_int_equal(make_zero(scene, IO_PUNCH, 0, 64 * BLOCK_BYTES), 0);
    assert_int_equal(device_flush(scene->device), 0);
    assert_int_equal(stat(scene->path, &after), 0);
    assert_true(after.st_blocks <= before.st_blocks - 64 * (blkcnt_t)BLOCK_SECTORS);
}

static void
punched_range_gives_its_space_back(void **state)
{
    run(in_scene(state), punch_frees);
}

/* --- Errors --------------------------------------------------------------------------------- */

static void
beyond(void *arg)
{
    struct scene *const scene = arg;
    const uint64_t end = round_down(FILE_BYTES, BLOCK_BYTES);
    struct stat status;

    open_claimed(scene);
    assert_int_equal(device_read(scene->device, scene->memory, end, BLOCK_BYTES), -EINVAL);
    assert_int_equal(
        device_write(scene->device, scene->memory, end - BLOCK_BYTES, 2 * BLOCK_BYTES, false),
        -EINVAL);
    assert_int_equal(
        device_read(scene->device, scene->memory, 0 - (uint64_t)BLOCK_BYTES, 2 * BLOCK_BYTES),
        -EINVAL);
    assert_int_equal(stat(scene->path, &status), 0);
    assert_int_equal(status.st_size, FILE_BYTES);
}

static void
io_past_the_end_is_refused(void **state)
{
    run(in_scene(state), beyond);
}

static void
shrink(void *arg)
{
    struct scene *const scene = arg;

    open_claimed(scene);
    assert_int_equal(truncate(scene->path, 8 * BLOCK_BYTES), 0);
    assert_int_equal(device_read(scene->device, scene->memory, 4 * BLOCK_BYTES, 4 * BLOCK_BYTES),
                     0);
    assert_int_equal(device_read(scene->device, scene->memory, 4 * BLOCK_BYTES, 8 * BLOCK_BYTES),
                     -EIO);
    assert_int_equal(device_read(scene->device, scene->memory, MIB, BLOCK_BYTES), -EIO);
}

static void
file_that_shrank_gives_an_error_and_not_a_short_read(void **state)
{
    run(in_scene(state), shrink);
}

static void
expect_refusal(struct scene *scene, const char *path, int code, const char *words)
{
    struct device *device;
    struct error error;

    assert_int_equal(open_at(scene, path, (struct file_options){.claim = true}, &device, &error),
                     code);
    assert_int_equal(error.code, code);
    assert_ptr_equal(strstr(error.text, path), error.text);
    if (!strstr(error.text, words))
        fail_msg("\"%s\" does not say \"%s\"", error.text, words);
}

static void
be_refused(void *arg)
{
    struct scene *const scene = arg;

    expect_refusal(scene, "nbd://localhost:10809/x", -ENOTSUP, "NBD");
    expect_refusal(scene, "nbd+unix:///?socket=/run/x", -ENOTSUP, "NBD");
    expect_refusal(scene, "/", -ENOTBLK, "neither a file nor a block device");
    expect_refusal(scene, "/dev/null", -ENOTBLK, "neither a file nor a block device");
    assert_int_equal(unlink(scene->path), 0);
    expect_refusal(scene, scene->path, -ENOENT, "No such file");
    assert_int_equal(mkfifo(scene->path, 0600), 0);
    expect_refusal(scene, scene->path, -ENOTBLK, "neither a file nor a block device");
}

static void
what_cannot_be_a_member_is_refused_with_its_name_and_the_cause(void **state)
{
    run(in_scene(state), be_refused);
}

/* --- Claims --------------------------------------------------------------------------------- */

#define READ_ONLY                                                                                  \
    (struct file_options)                                                                          \
    {                                                                                              \
        .readonly = true, .claim = true                                                            \
    }

static void
claim_twice(void *arg)
{
    struct scene *const scene = arg;
    const uint64_t before_ns = loop_clock_ns(scene->loop);
    struct device *other;
    struct error error;

    open_claimed(scene);
    expect_refusal(scene, scene->path, -EBUSY, "in use");
    assert_int_equal(open_at(scene, scene->path, READ_ONLY, &other, &error), -EBUSY);
    assert_true(loop_clock_ns(scene->loop) - before_ns < 1000 * MS); /* said at once */
    /* Who does not claim looks in all the same: examine of an array that is served. */
    assert_int_equal(
        open_at(scene, scene->path, (struct file_options){.readonly = true}, &other, &error), 0);
    assert_int_equal(device_read(other, scene->memory, 0, BLOCK_BYTES), 0);
    device_close(other);
    expect_refusal(scene, scene->path, -EBUSY, "in use"); /* that close let go of nothing */
    device_close(scene->device);
    open_claimed(scene);
}

static void
claimed_file_is_in_use_for_everybody_else(void **state)
{
    run(in_scene(state), claim_twice);
}

static void
read_together(void *arg)
{
    struct scene *const scene = arg;
    struct device *other;
    struct error error;

    assert_int_equal(open_at(scene, scene->path, READ_ONLY, &scene->device, &error), 0);
    assert_true(scene->device->readonly);
    assert_false(scene->device->punch_zeroes || scene->device->write_zeroes);
    assert_int_equal(open_at(scene, scene->path, READ_ONLY, &other, &error), 0);
    expect_refusal(scene, scene->path, -EBUSY, "in use");
    device_close(scene->device);
    scene->device = NULL;
    expect_refusal(scene, scene->path, -EBUSY, "in use"); /* one reader is left */
    device_close(other);
    open_claimed(scene);
}

static void
readers_share_a_claim_and_keep_writers_out(void **state)
{
    run(in_scene(state), read_together);
}

static void
let_go_soon(void *arg)
{
    struct scene *const scene = arg;

    loop_sleep(scene->loop, 50 * MS);
    note(scene, 'c');
    device_close(scene->device);
}

static void
wait_for_claim(void *arg)
{
    struct scene *const scene = arg;
    struct device *other;
    struct error error;

    open_claimed(scene);
    assert_non_null(task_start(scene->loop, let_go_soon, scene));
    assert_int_equal(open_at(scene, scene->path,
                             (struct file_options){.claim = true, .claim_wait_ns = 5000 * MS},
                             &other, &error),
                     0);
    note(scene, 'o');
    scene->device = other;
}

static void
claim_waits_for_the_holder_to_end(void **state)
{
    struct scene *const scene = in_scene(state);

    run(scene, wait_for_claim);
    assert_string_equal(scene->log, "co");
}

static void
claim_in_vain(void *arg)
{
    struct scene *const scene = arg;
    struct device *other;
    struct error error;
    uint64_t before_ns;

    open_claimed(scene);
    before_ns = loop_clock_ns(scene->loop);
    assert_int_equal(open_at(scene, scene->path,
                             (struct file_options){.claim = true, .claim_wait_ns = 100 * MS},
                             &other, &error),
                     -EBUSY);
    assert_true(loop_clock_ns(scene->loop) - before_ns >= 100 * MS);
}

static void
claim_gives_up_in_time(void **state)
{
    run(in_scene(state), claim_in_vain);
}

/* --- A system that refuses ------------------------------------------------------------------ */

enum outcome { WENT_WELL, WENT_WRONG, CANNOT_FILTER };

/* From now on this process' system call fails so when its argument has one of the bits. */
static bool
refuse(unsigned call, unsigned argument, unsigned bits, int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t)),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = ARRAY_LEN(filter), .filter = filter};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* In a child with its own loop on threads (its workers inherit the filter, io_uring would not). */
static void
in_refusing_child(struct scene *scene, bool (*refuse_it)(void), bool (*story)(struct scene *),
                  void (*task)(void *))
{
    int status;
    const pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        bool went_well;
        struct scene own = {.path = scene->path, .memory = scene->memory};

        if (!refuse_it())
            _exit(CANNOT_FILTER);
        if (loop_of(ON_THREADS, &own.loop) < 0 || io_pool_init(&own.pool, own.loop, 4) < 0)
            _exit(WENT_WRONG);
        loop_run_task(own.loop, task, &own);
        went_well = story(&own);
        device_close(own.device);
        io_pool_fini(&own.pool);
        loop_destroy(own.loop);
        _exit(went_well ? WENT_WELL : WENT_WRONG);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT_FILTER) {
        print_message("seccomp filters are not to be had here\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), WENT_WELL);
}

static bool
refuse_direct(void)
{
    return refuse(__NR_openat, 2, O_DIRECT, EINVAL);
}

static bool
refuse_fallocate(void)
{
    return refuse(__NR_fallocate, 1, ~0u, EOPNOTSUPP);
}

static void
open_quietly(struct scene *scene)
{
    const struct file_options options = {.claim = true};
    struct error error;

    if (device_file_open(scene->loop, scene->path, &options, &scene->device, &error) < 0)
        _exit(WENT_WRONG);
}

static void
use_buffered(void *arg)
{
    struct scene *const scene = arg;

    open_quietly(scene);
    fill(scene->memory, BLOCK_BYTES, 3);
    if (device_write(scene->device, scene->memory, 0, BLOCK_BYTES, true) == 0 &&
        device_read(scene->device, scene->memory + BLOCK_BYTES, 0, BLOCK_BYTES) == 0 &&
        memcmp(scene->memory, scene->memory + BLOCK_BYTES, BLOCK_BYTES) == 0)
        note(scene, 'w');
}

static bool
was_buffered(struct scene *scene)
{
    return scene->device->buffered && scene->device->volatile_cache && scene->logged == 1;
}

static void
file_without_direct_io_is_used_buffered(void **state)
{
    struct scene *const scene = in_scene(state);

    in_refusing_child(scene, refuse_direct, was_buffered, use_buffered);
}

static int results[4];

static void
zero_in_vain(void *arg)
{
    struct scene *const scene = arg;

    open_quietly(scene);
    memset(scene->memory, 0xff, BLOCK_BYTES);
    if (device_write(scene->device, scene->memory, 0, BLOCK_BYTES, false) < 0)
        _exit(WENT_WRONG);
    results[0] = make_zero(scene, IO_PUNCH, 0, BLOCK_BYTES);
    results[1] = make_zero(scene, IO_ZERO, 0, BLOCK_BYTES);
    if (scene->device->punch_zeroes || scene->device->write_zeroes)
        _exit(WENT_WRONG); /* learned at the first use */
    results[2] = make_zero(scene, IO_ZERO, 0, BLOCK_BYTES);
    results[3] = device_read(scene->device, scene->memory + BLOCK_BYTES, 0, BLOCK_BYTES);
}

static bool
was_in_vain(struct scene *scene)
{
    return results[0] == -EOPNOTSUPP && results[1] == -EOPNOTSUPP && results[2] == -EOPNOTSUPP &&
           results[3] == 0 && memcmp(scene->memory, scene->memory + BLOCK_BYTES, BLOCK_BYTES) == 0;
}

static void
file_system_without_fallocate_refuses_and_loses_nothing(void **state)
{
    in_refusing_child(in_scene(state), refuse_fallocate, was_in_vain, zero_in_vain);
}

/* --- Short transfers ------------------------------------------------------------------------ */

static void
short_transfers_are_continued_to_the_end(void **state)
{
    struct scene *const scene = in_scene(state);

    run(scene, write_and_read_back);
    assert_true(((struct stingy *)loop_backend_self(scene->loop))->calls > 64);
}

/* --- Pool and groups ------------------------------------------------------------------------ */

struct failing {
    struct device device;
    struct io *pending[8];
    unsigned count;
};

static void
failing_submit(struct device *device, struct io *io)
{
    struct failing *const failing = container_of(device, struct failing, device);

    failing->pending[failing->count++] = io;
}

static const struct device_ops failing_ops = {.kind = "failing", .submit = failing_submit};

static void
record_failure(struct io_group *group, const struct io *io)
{
    note(group->owner, (char)('0' + io->member));
}

static void
fail_two_of_three(void *arg)
{
    struct scene *const scene = arg;
    struct failing failing = {.device.ops = &failing_ops, .device.loop = scene->loop};
    struct io_group group;

    io_group_init(&group, scene->loop);
    group.failed = record_failure;
    group.owner = scene;
    assert_int_equal(io_wait(&group), 0); /* nothing pending: at once */
    for (unsigned i = 0; i < 3; i++) {
        struct io *const io = io_take(&scene->pool);

        assert_int_equal(io->iov_count, 0);
        assert_true(io_add(io, scene->memory, BLOCK_BYTES));
        io->member = i;
        io_submit(io, &failing.device, &group);
    }
    failing.pending[2]->result = -EIO;
    failing.pending[0]->result = -ENOSPC;
    io_complete(failing.pending[2]);
    io_complete(failing.pending[1]);
    assert_int_equal(group.pending, 1);
    io_complete(failing.pending[0]);
    assert_int_equal(io_wait(&group), -EIO);
    assert_int_equal(scene->pool.free_count, 4);
}

static void
group_keeps_the_first_error_and_tells_of_each(void **state)
{
    struct scene *const scene = in_scene(state);

    run(scene, fail_two_of_three);
    assert_string_equal(scene->log, "20");
}

struct taker {
    struct scene *scene;
    struct failing *failing;
    struct io_group *group;
    char name;
};

static void
take_one(void *arg)
{
    struct taker *const taker = arg;
    struct io *const io = io_take(&taker->scene->pool);

    note(taker->scene, taker->name);
    io->op = IO_FLUSH;
    io_submit(io, &taker->failing->device, taker->group);
}

/* Six want one of four; 'g' comes when two are free again but promised to 'e' and 'f'. */
static void
take_in_order(void *arg)
{
    struct scene *const scene = arg;
    struct failing failing = {.device.ops = &failing_ops, .device.loop = scene->loop};
    struct io_group group;
    struct taker takers[7];
    unsigned completed = 0;

    io_group_init(&group, scene->loop);
    for (unsigned i = 0; i < 7; i++)
        takers[i] = (struct taker){scene, &failing, &group, (char)('a' + i)};
    for (unsigned i = 0; i < 6; i++)
        assert_non_null(task_start(scene->loop, take_one, &takers[i]));
    task_yield(scene->loop);
    assert_string_equal(scene->log, "abcd");
    io_complete(failing.pending[completed++]);
    io_complete(failing.pending[completed++]);
    assert_non_null(task_start(scene->loop, take_one, &takers[6]));
    task_yield(scene->loop);
    assert_string_equal(scene->log, "abcdef");
    while (completed < failing.count) {
        io_complete(failing.pending[completed++]);
        task_yield(scene->loop);
    }
    assert_string_equal(scene->log, "abcdefg");
    assert_int_equal(completed, 7);
}

static void
pool_serves_in_order(void **state)
{
    run(in_scene(state), take_in_order);
}

/* --- Block devices -------------------------------------------------------------------------- */

static bool
command(char *line, size_t line_bytes, const char *format, const char *argument)
{
    char text[256];
    FILE *pipe;
    bool ok;

    (void)snprintf(text, sizeof text, format, argument);
    pipe = popen(text, "r");
    assert_non_null(pipe);
    ok = fgets(line, (int)line_bytes, pipe) != NULL;
    line[ok ? strcspn(line, "\n") : 0] = '\0';
    return pclose(pipe) == 0;
}

static void
use_block_device(void *arg)
{
    struct scene *const scene = arg;
    struct device *other;
    struct error error;

    open_claimed(scene);
    assert_int_equal(scene->device->size_bytes, round_down(FILE_BYTES, 512));
    assert_int_equal(scene->device->logical_block_bytes, 512);
    assert_true(scene->device->identity[0] == UINT64_MAX);
    fill(scene->memory, 8 * BLOCK_BYTES, 5);
    assert_int_equal(device_write(scene->device, scene->memory, MIB, 8 * BLOCK_BYTES, true), 0);
    assert_int_equal(device_flush(scene->device), 0);
    assert_int_equal(
        device_read(scene->device, scene->memory + 8 * BLOCK_BYTES, MIB, 8 * BLOCK_BYTES), 0);
    assert_memory_equal(scene->memory, scene->memory + 8 * BLOCK_BYTES, 8 * BLOCK_BYTES);
    if (scene->device->punch_zeroes)
        zero_exactly(scene, IO_PUNCH);
    if (scene->device->write_zeroes)
        zero_exactly(scene, IO_ZERO);
    expect_refusal(scene, scene->path, -EBUSY, "in use");
    assert_int_equal(
        open_at(scene, scene->path, (struct file_options){.readonly = true}, &other, &error), 0);
    device_close(other);
}

static void
block_device_is_a_member_claimed_exclusively(void **state)
{
    struct scene *const scene = in_scene(state);
    char *const file = scene->path;
    char line[128], unused[128];

    if (geteuid() != 0 || !command(line, sizeof line, "losetup -f --show %s 2>&1", file)) {
        print_message("no loop device to be had: %s\n", geteuid() != 0 ? "not root" : line);
        skip();
    }
    scene->path = line;
    run(scene, use_block_device);
    device_close(scene->device);
    scene->device = NULL;
    scene->path = file;
    assert_true(command(unused, sizeof unused, "losetup -d %s", line));
}

static void
write_protected(void *arg)
{
    struct scene *const scene = arg;
    struct device *device = NULL;
    struct error error;

    assert_true(open_at(scene, scene->path, (struct file_options){.claim = true}, &device, &error) <
                0);
    assert_true(error.code == -EROFS || error.code == -EACCES);
    assert_int_equal(open_at(scene, scene->path, READ_ONLY, &scene->device, &error), 0);
}

static void
write_protected_block_device_is_refused_for_writing(void **state)
{
    struct scene *const scene = in_scene(state);
    char *const file = scene->path;
    char line[128], unused[128];

    if (geteuid() != 0 || !command(line, sizeof line, "losetup -r -f --show %s 2>&1", file)) {
        print_message("no loop device to be had: %s\n", geteuid() != 0 ? "not root" : line);
        skip();
    }
    scene->path = line;
    run(scene, write_protected);
    device_close(scene->device);
    scene->device = NULL;
    scene->path = file;
    assert_true(command(unused, sizeof unused, "losetup -d %s", line));
}

/* clang-format off */
#define with(name, scene) {#name " (" #scene ")", name, scene, scene_end, NULL}
#define everywhere(name)                                                                           \
    with(name, disk_uring), with(name, disk_threads), with(name, memory_uring),                    \
    with(name, memory_threads)
/* clang-format on */

int
main(void)
{
    const struct CMUnitTest tests[] = {
        everywhere(file_is_described_as_it_is),
        everywhere(what_is_written_is_read_again),
        everywhere(vectors_are_gathered_in_order),
        everywhere(punched_and_zeroed_ranges_read_zeros_and_nothing_else_does),
        everywhere(punched_range_gives_its_space_back),
        everywhere(io_past_the_end_is_refused),
        everywhere(file_that_shrank_gives_an_error_and_not_a_short_read),
        with(what_cannot_be_a_member_is_refused_with_its_name_and_the_cause, disk_threads),
        everywhere(claimed_file_is_in_use_for_everybody_else),
        everywhere(readers_share_a_claim_and_keep_writers_out),
        everywhere(claim_waits_for_the_holder_to_end),
        with(claim_gives_up_in_time, disk_threads),
        with(file_without_direct_io_is_used_buffered, disk_stingy),
        with(file_system_without_fallocate_refuses_and_loses_nothing, disk_stingy),
        with(short_transfers_are_continued_to_the_end, disk_stingy),
        with(vectors_are_gathered_in_order, disk_stingy),
        with(group_keeps_the_first_error_and_tells_of_each, disk_threads),
        with(pool_serves_in_order, disk_threads),
        with(block_device_is_a_member_claimed_exclusively, disk_uring),
        with(block_device_is_a_member_claimed_exclusively, disk_threads),
        with(write_protected_block_device_is_refused_for_writing, disk_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
