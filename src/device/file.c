/*
 * file.c: members that are files or block devices.
 *
 * Transfers are O_DIRECT where the file system can. A short transfer is continued where it
 * stopped; nothing transferred at all means that the file has shrunk under us: -EIO. What a device
 * cannot do is learned without touching it: from sysfs for block devices, and for files at the
 * first use, whose EOPNOTSUPP clears the flag.
 *
 * A durable write is one with RWF_DSYNC where that is known to hold for asynchronous direct writes
 * too. A FUSE file system for one forgets it there, and says nothing: wherever it is not known, a
 * flush follows the write.
 *
 * F1. The descriptor that holds the claim is the one that does the I/O, and is never replaced: a
 *     refusal of O_DIRECT that shows only at the first read is answered by changing its flags.
 */
#include "device/file.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define CLAIM_RETRY_NS (10 * 1000 * 1000ull)
#define RETRIES_MAX    16u /* of an operation that the system refuses for the moment */
/* Reads that tell whether a device seeks, and how long most of them take then at least. */
#define SEEK_READS 8u
#define SEEK_NS    (1000 * 1000ull)

struct file {
    struct device device;
    int fd;
    bool dsync_holds; /* else a flush follows each durable write */
    bool zero_range;  /* IO_ZERO by FALLOC_FL_ZERO_RANGE; else by punching */
    struct io *refused_first, **refused_end;
    struct turn_hook refuse;
};

/* --- I/O ------------------------------------------------------------------------------------ */

static void file_done(struct loop_io *system);

static void
refuse_run(struct turn_hook *hook)
{
    struct file *const file = container_of(hook, struct file, refuse);
    struct io *io = file->refused_first;

    file->refused_first = NULL;
    file->refused_end = &file->refused_first;
    while (io) {
        struct io *const next = io->next;

        io_complete(io);
        io = next;
    }
}

/* Completes without asking the system, at the end of the turn (a submit never completes). */
static void
refuse(struct file *file, struct io *io, int result)
{
    io->result = result;
    io->next = NULL;
    *file->refused_end = io;
    file->refused_end = &io->next;
    loop_at_turn_end(file->device.loop, &file->refuse);
}

static void
file_submit(struct device *device, struct io *io)
{
    struct file *const file = container_of(device, struct file, device);
    struct loop_io *const system = &io->system;

    *system = (struct loop_io){
        .fd = file->fd,
        .offset = io->offset,
        .length = io->length,
        .iov = io->iov,
        .iov_count = io->iov_count,
        .done = file_done,
    };
    if (io->offset > device->size_bytes || io->length > device->size_bytes - io->offset) {
        refuse(file, io, -EINVAL);
        return;
    }
    switch (io->op) {
    case IO_READ:
        system->kind = LOOP_READV;
        break;
    case IO_WRITE:
        system->kind = LOOP_WRITEV;
        system->rw_flags = io->fua && file->dsync_holds ? RWF_DSYNC : 0;
        break;
    case IO_FLUSH:
        system->kind = LOOP_FDATASYNC;
        break;
    case IO_PUNCH:
        if (!device->punch_zeroes) {
            refuse(file, io, -EOPNOTSUPP);
            return;
        }
        system->kind = LOOP_FALLOCATE;
        system->fallocate_mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        break;
    case IO_ZERO:
        if (!device->write_zeroes) {
            refuse(file, io, -EOPNOTSUPP);
            return;
        }
        system->kind = LOOP_FALLOCATE;
        system->fallocate_mode =
            FALLOC_FL_KEEP_SIZE | (file->zero_range ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE);
        break;
    }
    loop_io_submit(device->loop, system);
}

/* Skips count bytes that were transferred. */
static void
io_advance(struct io *io, uint64_t count)
{
    struct loop_io *const system = &io->system;
    struct iovec *iov = io->iov + (system->iov - io->iov);

    system->offset += count;
    system->length -= count;
    while (count >= iov->iov_len) {
        count -= iov->iov_len;
        iov++;
        system->iov_count--;
    }
    iov->iov_base = (char *)iov->iov_base + count;
    iov->iov_len -= count;
    system->iov = iov;
}

/* A transfer of result bytes or -errno; true when it goes on. */
static bool
transfer_done(struct file *file, struct io *io)
{
    struct loop_io *const system = &io->system;
    const int result = system->result;

    if (system->kind == LOOP_FDATASYNC) {
        io->result = result;
        return false;
    }
    if (result == -EAGAIN && io->retries < RETRIES_MAX) {
        io->retries++;
        loop_io_submit(io->device->loop, system);
        return true;
    }
    if (result > 0 && (uint64_t)result < system->length) {
        io_advance(io, (uint64_t)result);
        io->retries = 0;
        loop_io_submit(io->device->loop, system);
        return true;
    }
    io->result = result > 0 ? 0 : result == 0 ? -EIO : result;
    if (io->result == 0 && io->op == IO_WRITE && io->fua && !file->dsync_holds) {
        system->kind = LOOP_FDATASYNC;
        loop_io_submit(io->device->loop, system);
        return true;
    }
    return false;
}

/* A range made zero, or not; true when it is tried another way. */
static bool
allocate_done(struct file *file, struct io *io)
{
    struct loop_io *const system = &io->system;

    io->result = system->result;
    if (io->result != -EOPNOTSUPP)
        return false;
    if ((system->fallocate_mode & FALLOC_FL_PUNCH_HOLE) != 0) {
        file->device.punch_zeroes = false;
        file->device.write_zeroes = file->device.write_zeroes && file->zero_range;
        return false;
    }
    file->zero_range = false;
    file->device.write_zeroes = file->device.punch_zeroes;
    if (!file->device.write_zeroes)
        return false;
    system->fallocate_mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
    loop_io_submit(io->device->loop, system);
    return true;
}

static void
file_done(struct loop_io *system)
{
    struct io *const io = container_of(system, struct io, system);
    struct file *const file = container_of(io->device, struct file, device);

    switch (io->op) {
    case IO_READ:
    case IO_WRITE:
        if (transfer_done(file, io))
            return;
        break;
    case IO_FLUSH:
        io->result = system->result;
        break;
    case IO_PUNCH:
    case IO_ZERO:
        if (allocate_done(file, io))
            return;
        break;
    }
    io_complete(io);
}

static void
file_close(struct device *device)
{
    struct file *const file = container_of(device, struct file, device);

    assert(!file->refused_first);
    if (file->fd >= 0)
        (void)close(file->fd); /* what had to be durable was flushed and looked at */
    free(device->name);
    free(file);
}

static const struct device_ops file_ops = {
    .kind = "file",
    .submit = file_submit,
    .close = file_close,
};

/* --- Opening -------------------------------------------------------------------------------- */

static int
cannot(struct error *error, const char *path, const char *what, int code)
{
    return error_set(error, code, "%s: %s: %s", path, what, strerror(-code));
}

/* -EBUSY when somebody else has it. */
static int
file_lock(int fd, bool readonly)
{
    struct flock whole = {.l_type = readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &whole) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static bool
is_usable(const struct stat *status)
{
    return S_ISREG(status->st_mode) || S_ISBLK(status->st_mode);
}

/* Opens the descriptor and takes the claim; -EBUSY when that may be tried again. */
static int
open_and_claim(struct file *file, const char *path, const struct file_options *options,
               struct stat *status, struct error *error)
{
    int flags = (options->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_DIRECT;
    int rc;

    /* Looked at first: opening a pipe or a tape would have effects. */
    if (stat(path, status) < 0)
        return cannot(error, path, "cannot open", -errno);
    if (!is_usable(status))
        return error_set(error, -ENOTBLK, "%s: neither a file nor a block device", path);
    if (S_ISBLK(status->st_mode) && options->claim)
        flags |= O_EXCL;
    file->fd = open(path, flags);
    if (file->fd < 0 && errno == EINVAL) {
        file->device.buffered = true;
        file->fd = open(path, flags & ~O_DIRECT);
    }
    if (file->fd < 0) {
        rc = -errno;
        if (rc == -EBUSY)
            return error_set(error, rc, "%s: in use (mounted, part of an array, or served)", path);
        return cannot(error, path, options->readonly ? "cannot open" : "cannot open for writing",
                      rc);
    }
    if (fstat(file->fd, status) < 0)
        return cannot(error, path, "cannot look at it", -errno);
    if (!is_usable(status))
        return error_set(error, -ENOTBLK, "%s: neither a file nor a block device", path);
    if (S_ISREG(status->st_mode) && options->claim) {
        rc = file_lock(file->fd, options->readonly);
        if (rc == -EBUSY)
            return error_set(error, rc, "%s: in use by another process", path);
        if (rc < 0)
            return cannot(error, path, "cannot lock", rc);
    }
    return 0;
}

static int
open_in_time(struct file *file, const char *path, const struct file_options *options,
             struct stat *status, struct error *error)
{
    struct loop *const loop = file->device.loop;
    const uint64_t until_ns = loop_clock_ns(loop) + options->claim_wait_ns;

    for (;;) {
        const int rc = open_and_claim(file, path, options, status, error);

        if (rc != -EBUSY || loop_clock_ns(loop) >= until_ns)
            return rc;
        if (file->fd >= 0)
            (void)close(file->fd); /* nothing was done with it */
        file->fd = -1;
        file->device.buffered = false;
        loop_sleep(loop, CLAIM_RETRY_NS);
    }
}

/* A queue attribute of the device, or of the disk that a partition lies on; "" if there is none. */
static void
queue_attribute(dev_t device, const char *name, char *text, size_t text_bytes)
{
    static const char *const places[] = {"queue", "../queue"};

    text[0] = '\0';
    for (unsigned i = 0; i < ARRAY_LEN(places) && text[0] == '\0'; i++) {
        char path[128];
        ssize_t count;
        int fd;

        (void)snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s/%s", major(device),
                       minor(device), places[i], name); /* fits: the names are ours */
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        count = read(fd, text, text_bytes - 1);
        text[count > 0 ? count : 0] = '\0';
        (void)close(fd); /* was only read */
    }
}

static bool
queue_number_is_positive(dev_t device, const char *name)
{
    char text[32];

    queue_attribute(device, name, text, sizeof text);
    return strtoull(text, NULL, 10) > 0;
}

static int
learn_block(struct file *file, const struct stat *status, struct error *error)
{
    struct device *const device = &file->device;
    int logical_block_bytes = 0, locked = 0;
    char cache[32];

    if (ioctl(file->fd, BLKGETSIZE64, &device->size_bytes) < 0)
        return cannot(error, device->name, "cannot read its size", -errno);
    if (ioctl(file->fd, BLKSSZGET, &logical_block_bytes) < 0)
        return cannot(error, device->name, "cannot read its block size", -errno);
    if (logical_block_bytes != 512 && logical_block_bytes != (int)BLOCK_BYTES)
        return error_set(error, -ENOTSUP, "%s: logical blocks of %d bytes are not supported",
                         device->name, logical_block_bytes);
    if (!device->readonly && ioctl(file->fd, BLKROGET, &locked) == 0 && locked)
        return error_set(error, -EROFS, "%s: the device is write-protected", device->name);
    device->logical_block_bytes = (uint32_t)logical_block_bytes;
    queue_attribute(status->st_rdev, "write_cache", cache, sizeof cache);
    device->volatile_cache = strncmp(cache, "write through", 13) != 0;
    device->seeks = queue_number_is_positive(status->st_rdev, "rotational");
    device->identity[0] = UINT64_MAX;
    device->identity[1] = status->st_rdev;
    if (!device->readonly) {
        device->write_zeroes = queue_number_is_positive(status->st_rdev, "write_zeroes_max_bytes");
        device->punch_zeroes =
            device->write_zeroes && queue_number_is_positive(status->st_rdev, "discard_max_bytes");
    }
    file->zero_range = device->write_zeroes;
    file->dsync_holds = true;
    return 0;
}

/* Of asynchronous direct writes with RWF_DSYNC to a file. */
static bool
dsync_holds(int fd)
{
    struct statfs system;

    if (fstatfs(fd, &system) < 0)
        return false;
    switch ((unsigned long)system.f_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC: /* where nothing lasts anyway */
        return true;
    default:
        return false;
    }
}

static void
learn_regular(struct file *file, const struct stat *status)
{
    struct device *const device = &file->device;

    file->dsync_holds = dsync_holds(file->fd);
    device->size_bytes = round_down((uint64_t)status->st_size, SECTOR_BYTES);
    device->logical_block_bytes = SECTOR_BYTES;
    device->volatile_cache = true;
    device->seeks = queue_number_is_positive(status->st_dev, "rotational");
    device->identity[0] = status->st_dev;
    device->identity[1] = status->st_ino;
    if (device->readonly)
        return;
    device->punch_zeroes = true;
    file->zero_range = true;
    device->write_zeroes = true;
}

/* Some file systems let O_DIRECT be opened and refuse the first read. */
static int
try_direct(struct file *file, struct error *error)
{
    struct device *const device = &file->device;
    void *memory;
    int rc;

    if (device->buffered || device->size_bytes < BLOCK_BYTES)
        return 0;
    if (posix_memalign(&memory, BLOCK_BYTES, BLOCK_BYTES) != 0)
        return error_set(error, -ENOMEM, "%s: out of memory", device->name);
    rc = device_read(device, memory, 0, BLOCK_BYTES);
    free(memory);
    if (rc != -EINVAL)
        return 0; /* a bad first block is for whoever reads it */
    rc = fcntl(file->fd, F_GETFL);
    if (rc < 0 || fcntl(file->fd, F_SETFL, rc & ~O_DIRECT) < 0)
        return cannot(error, device->name, "cannot do without direct I/O", -errno);
    device->buffered = true;
    return 0;
}

/* Virtual disks say that they rotate whatever they are, so reads all over it have to confirm it. An
 * error says nothing here. */
static bool
seeks_confirmed(struct file *file)
{
    struct device *const device = &file->device;
    const uint64_t blocks = device->size_bytes / BLOCK_BYTES;
    unsigned slow = 0;
    void *memory;

    if (device->buffered || posix_memalign(&memory, BLOCK_BYTES, BLOCK_BYTES) != 0)
        return false;
    for (unsigned i = 0; i < SEEK_READS; i++) {
        const uint64_t block = blocks / SEEK_READS * (i * 3 % SEEK_READS) + i;
        const uint64_t begin_ns = loop_clock_ns(device->loop);

        if (block >= blocks || device_read(device, memory, block * BLOCK_BYTES, BLOCK_BYTES) < 0)
            break;
        slow += loop_clock_ns(device->loop) - begin_ns >= SEEK_NS;
    }
    free(memory);
    return slow > SEEK_READS / 2;
}

static int
file_learn(struct file *file, const struct stat *status, bool claimed, struct error *error)
{
    struct device *const device = &file->device;
    int rc = 0;

    /* Behind a loop device is a file. */
    device->block_device = S_ISBLK(status->st_mode) && major(status->st_rdev) != LOOP_MAJOR;
    if (S_ISBLK(status->st_mode))
        rc = learn_block(file, status, error);
    else
        learn_regular(file, status);
    if (rc == 0)
        rc = try_direct(file, error);
    if (device->buffered)
        device->volatile_cache = true; /* the page cache is one */
    if (rc == 0 && device->seeks)
        device->seeks = !device->readonly && claimed && seeks_confirmed(file);
    return rc;
}

static bool
has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

int
device_file_open(struct loop *loop, const char *path, const struct file_options *options,
                 struct device **out, struct error *error)
{
    struct stat status;
    struct file *file;
    int rc;

    if (has_prefix(path, "nbd://") || has_prefix(path, "nbd+unix://") ||
        has_prefix(path, "nbds://"))
        return error_set(error, -ENOTSUP,
                         "%s: members over NBD are not supported yet; attach it with nbd-client or "
                         "nbdfuse and name that",
                         path);
    file = calloc(1, sizeof *file);
    if (!file)
        return error_set(error, -ENOMEM, "%s: out of memory", path);
    file->fd = -1;
    file->refused_end = &file->refused_first;
    file->refuse.run = refuse_run;
    file->device.ops = &file_ops;
    file->device.loop = loop;
    file->device.readonly = options->readonly;
    file->device.name = strdup(path);
    if (!file->device.name)
        rc = error_set(error, -ENOMEM, "%s: out of memory", path);
    else
        rc = open_in_time(file, path, options, &status, error);
    if (rc == 0)
        rc = file_learn(file, &status, options->claim, error);
    if (rc < 0) {
        device_close(&file->device);
        return rc;
    }
    *out = &file->device;
    return 0;
}
