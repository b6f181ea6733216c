/* sim_disk.c: see sim_disk.h. */
#include "sim_disk.h"
#include "sim_report.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define ARENA_BYTES  (96 * MIB)
#define INFLIGHT_MAX 4096u
#define UNDO_BYTES   (64 * MIB)

struct sim_io {
    struct sim_event event;
    struct sim_disk *disk;
    struct io *io;
    uint64_t moment; /* of submission */
    unsigned write;  /* index in the log, for writes */
    bool early;      /* a read that saw the disk as it was at submission */
    struct sim_io *next, *previous;
};

static void disk_submit(struct device *device, struct io *io);
static void disk_close(struct device *device);

static const struct device_ops disk_ops = {
    .kind = "simulated",
    .submit = disk_submit,
    .close = disk_close,
};

/* --- The cluster ---------------------------------------------------------------------------- */

static _Noreturn void
stuck(const char *why)
{
    sim_fail("hang: %s", why);
}

static void *
memory_or_die(void *memory)
{
    if (memory == NULL)
        sim_fail("no memory for the simulator");
    return memory;
}

/* Large and mostly never touched: not from malloc, which may fill what it gives. */
static void *
map_or_die(size_t bytes)
{
    void *const memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return memory_or_die(memory == MAP_FAILED ? NULL : memory);
}

void
cluster_create(struct sim_cluster *cluster)
{
    const struct loop_config config = {.tasks = 512, .seed = 1};
    struct error error;

    memset(cluster, 0, sizeof *cluster);
    cluster->sim.stuck = stuck;
    sim_loop_reset(&cluster->sim);
    if (loop_create_on(&config, &sim_loop_backend, &cluster->sim, &cluster->loop, &error) < 0)
        sim_fail("no loop: %s", error.text);
    for (unsigned d = 0; d < SIM_DISKS_MAX; ++d) {
        cluster->disks[d].live = map_or_die(SIM_DISK_BYTES);
        cluster->disks[d].stable = map_or_die(SIM_DISK_BYTES);
    }
    cluster->arena = map_or_die(ARENA_BYTES);
    cluster->io_all = memory_or_die(calloc(INFLIGHT_MAX, sizeof *cluster->io_all));
    for (unsigned i = 0; i < INFLIGHT_MAX; ++i) {
        cluster->io_all[i].next = cluster->io_free;
        cluster->io_free = &cluster->io_all[i];
    }
}

void
cluster_destroy(struct sim_cluster *cluster)
{
    loop_destroy(cluster->loop);
    sim_loop_fini(&cluster->sim);
    for (unsigned d = 0; d < SIM_DISKS_MAX; ++d) {
        (void)munmap(cluster->disks[d].live, SIM_DISK_BYTES);   /* it was mapped */
        (void)munmap(cluster->disks[d].stable, SIM_DISK_BYTES); /* it was mapped */
    }
    (void)munmap(cluster->arena, ARENA_BYTES); /* it was mapped */
    free(cluster->io_all);
    free(cluster->writes);
}

static void
disk_init(struct sim_cluster *cluster, unsigned index, uint64_t size_bytes)
{
    static char names[SIM_DISKS_MAX][8] = {"disk0", "disk1", "disk2", "disk3", "disk4",
                                           "disk5", "disk6", "disk7", "disk8"};
    struct sim_disk *const disk = &cluster->disks[index];

    assert(size_bytes <= SIM_DISK_BYTES);
    assert(disk->inflight == NULL);
    disk->cluster = cluster;
    disk->index = index;
    disk->dead = false;
    disk->faults = (struct sim_faults){0};
    memset(disk->bad, 0, sizeof disk->bad);
    disk->bad_count = 0;
    disk->written = 0;
    disk->device = (struct device){
        .ops = &disk_ops,
        .loop = cluster->loop,
        .name = names[index],
        .size_bytes = size_bytes,
        .logical_block_bytes = 512,
        .volatile_cache = true,
        .identity = {1, index + 1},
    };
}

void
cluster_begin(struct sim_cluster *cluster, uint64_t seed, unsigned count, uint64_t size_bytes)
{
    assert(count <= SIM_DISKS_MAX);
    sim_loop_reset(&cluster->sim);
    cluster->random.state = seed;
    cluster->disks_count = count;
    cluster->moment = 0;
    cluster->hash = seed;
    cluster->writes_count = cluster->folded = 0;
    cluster->arena_used = 0;
    cluster->latency = (struct sim_latency){20000, 100000, 4000, 2, 20};
    for (unsigned d = 0; d < count; ++d)
        disk_init(cluster, d, size_bytes);
}

void
cluster_load(struct sim_cluster *cluster)
{
    for (unsigned d = 0; d < cluster->disks_count; ++d)
        memcpy(cluster->disks[d].live, cluster->disks[d].stable,
               cluster->disks[d].device.size_bytes);
}

void
cluster_note(struct sim_cluster *cluster, uint64_t what)
{
    cluster->hash = (cluster->hash ^ what) * 0x9e3779b97f4a7c15u;
    cluster->hash ^= cluster->hash >> 29;
}

void
cluster_trace(const struct sim_cluster *cluster, const char *format, ...)
{
    va_list args;

    if (!cluster->trace)
        return;
    printf("%8llu %10.3f ms  ", (unsigned long long)cluster->moment,
           (double)cluster->sim.now_ns / 1e6);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

/* --- Faults --------------------------------------------------------------------------------- */

void
disk_die(struct sim_disk *disk)
{
    if (disk->dead)
        return;
    disk->dead = true;
    disk->cluster->counts[COUNT_DEATHS]++;
    cluster_trace(disk->cluster, "%s dies", disk->device.name);
}

void
disk_make_bad(struct sim_disk *disk, uint64_t block, uint8_t how)
{
    if (disk->bad[block] == 0)
        disk->bad_count++;
    disk->bad[block] = how;
}

static bool
counts_down(unsigned *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

/* The worst kind of bad block in the range; 0 if none. With heal, latent ones become good. */
static uint8_t
disk_bad_in(struct sim_disk *disk, const struct io *io, bool heal)
{
    uint8_t worst = 0;

    if (disk->bad_count == 0)
        return 0;
    for (uint64_t b = io->offset / BLOCK_BYTES; b < (io->offset + io->length) / BLOCK_BYTES; ++b) {
        if (disk->bad[b] > worst)
            worst = disk->bad[b];
        if (heal && disk->bad[b] == BAD_LATENT) {
            disk->bad[b] = 0;
            disk->bad_count--;
        }
    }
    return worst;
}

static const char *
op_name(const struct io *io)
{
    switch (io->op) {
    case IO_READ:
        return "read";
    case IO_WRITE:
        return io->fua ? "write fua" : "write";
    case IO_FLUSH:
        return "flush";
    case IO_PUNCH:
        return "punch";
    case IO_ZERO:
        return "zero";
    }
    return "?";
}

/* --- Submission ----------------------------------------------------------------------------- */

static bool
io_changes(const struct io *io)
{
    return io->op == IO_WRITE || io->op == IO_PUNCH || io->op == IO_ZERO;
}

static bool
overlap(const struct io *a, const struct io *b)
{
    return a->offset < b->offset + b->length && b->offset < a->offset + a->length;
}

static void
check_contract(const struct sim_disk *disk, const struct io *io)
{
    const struct device *const device = &disk->device;
    uint64_t vectors = 0;

    if (device->readonly && io->op != IO_READ)
        sim_fail("contract C4: %s on readonly %s", op_name(io), device->name);
    if (io->op == IO_FLUSH)
        return;
    if (io->offset % BLOCK_BYTES != 0 || io->length % BLOCK_BYTES != 0 || io->length == 0 ||
        io->offset > device->size_bytes || io->length > device->size_bytes - io->offset)
        sim_fail("contract C1: %s of %s at %llu, %llu bytes", op_name(io), device->name,
                 (unsigned long long)io->offset, (unsigned long long)io->length);
    if ((io->op == IO_PUNCH && !device->punch_zeroes) ||
        (io->op == IO_ZERO && !device->write_zeroes))
        sim_fail("contract C4: %s on %s, which does not", op_name(io), device->name);
    if (io->op == IO_READ || io->op == IO_WRITE) {
        for (unsigned i = 0; i < io->iov_count; ++i) {
            if ((uintptr_t)io->iov[i].iov_base % BLOCK_BYTES != 0 ||
                io->iov[i].iov_len % BLOCK_BYTES != 0)
                sim_fail("contract C1: %s of %s: memory is not aligned", op_name(io), device->name);
            vectors += io->iov[i].iov_len;
        }
        if (vectors != io->length)
            sim_fail("contract C1: %s of %s: %llu bytes in %llu bytes of memory", op_name(io),
                     device->name, (unsigned long long)io->length, (unsigned long long)vectors);
    }
    if (!io_changes(io))
        return;
    for (const struct sim_io *other = disk->inflight; other != NULL; other = other->next)
        if (io_changes(other->io) && overlap(io, other->io))
            sim_fail("contract C3: two writes in flight overlap on %s at %llu", device->name,
                     (unsigned long long)io->offset);
}

static unsigned
log_write(struct sim_disk *disk, const struct io *io)
{
    struct sim_cluster *const cluster = disk->cluster;
    struct sim_write *write;

    if (cluster->writes_count == cluster->writes_capacity) {
        cluster->writes_capacity = cluster->writes_capacity ? cluster->writes_capacity * 2 : 1024;
        cluster->writes = memory_or_die(
            realloc(cluster->writes, cluster->writes_capacity * sizeof *cluster->writes));
    }
    write = &cluster->writes[cluster->writes_count];
    *write = (struct sim_write){
        .disk = disk->index,
        .fua = io->fua,
        .offset = io->offset,
        .length = io->length,
        .submitted = cluster_moment(cluster),
        .completed = SIM_NEVER,
        .durable = SIM_NEVER,
        .dropped = SIM_NEVER,
    };
    if (io->op == IO_WRITE) {
        uint8_t *const content = cluster->arena + cluster->arena_used;
        uint64_t done = 0;

        if (cluster->arena_used + io->length > ARENA_BYTES)
            sim_fail("the history writes more than the simulator's log holds");
        for (unsigned i = 0; i < io->iov_count; ++i) {
            memcpy(content + done, io->iov[i].iov_base, io->iov[i].iov_len);
            done += io->iov[i].iov_len;
        }
        cluster->arena_used += io->length;
        write->content = content;
    }
    return cluster->writes_count++;
}

static void
vectors_fill(const struct io *io, const uint8_t *from)
{
    for (unsigned i = 0; i < io->iov_count; ++i) {
        memcpy(io->iov[i].iov_base, from, io->iov[i].iov_len);
        from += io->iov[i].iov_len;
    }
}

static uint64_t
latency_of(struct sim_cluster *cluster, const struct io *io)
{
    const struct sim_latency *const latency = &cluster->latency;
    uint64_t ns = latency->base_ns + random_below(&cluster->random, latency->span_ns + 1);

    if (io->op == IO_FLUSH)
        ns *= 3;
    if (random_percent(&cluster->random, latency->slow_percent))
        ns *= latency->slow_factor;
    return ns - ns % latency->grain_ns; /* so that completions also come together */
}

static void disk_done(struct sim_event *event);

static void
disk_submit(struct device *device, struct io *io)
{
    struct sim_disk *const disk = container_of(device, struct sim_disk, device);
    struct sim_cluster *const cluster = disk->cluster;
    struct sim_io *const sim_io = cluster->io_free;

    check_contract(disk, io);
    if (sim_io == NULL)
        sim_fail("more than %u operations in flight", INFLIGHT_MAX);
    cluster->io_free = sim_io->next;
    *sim_io = (struct sim_io){.event.fire = disk_done, .disk = disk, .io = io};
    if (io_changes(io)) {
        sim_io->write = log_write(disk, io);
        disk->written++;
    }
    sim_io->moment = io_changes(io) ? cluster->moment : cluster_moment(cluster);
    cluster_trace(cluster, "  %s: %s %llu + %llu", device->name, op_name(io),
                  (unsigned long long)io->offset, (unsigned long long)io->length);
    cluster_note(cluster, io->offset ^ (io->length << 24) ^ ((uint64_t)io->op << 56) ^
                              ((uint64_t)disk->index << 60));
    if (counts_down(&disk->faults.death_in))
        disk_die(disk);
    if (io->op == IO_READ && random_percent(&cluster->random, 30)) {
        sim_io->early = true;
        vectors_fill(io, disk->live + io->offset);
    }
    sim_io->next = disk->inflight;
    if (disk->inflight != NULL)
        disk->inflight->previous = sim_io;
    disk->inflight = sim_io;
    sim_loop_post(&cluster->sim, &sim_io->event, latency_of(cluster, io));
}

static void
disk_close(struct device *device)
{
    const struct sim_disk *const disk = container_of(device, struct sim_disk, device);

    if (disk->inflight != NULL)
        sim_fail("%s is closed with operations in flight", device->name);
}

/* --- Completion ----------------------------------------------------------------------------- */

/* Copies the sectors of a write (those that chance picks, unless all) to where they belong. */
static uint64_t
write_apply(const struct sim_write *write, uint8_t *disk, struct sim_random *random, bool all)
{
    uint64_t torn = 0;

    if (all) {
        if (write->content != NULL)
            memcpy(disk + write->offset, write->content, write->length);
        else
            memset(disk + write->offset, 0, write->length);
        return 0;
    }
    for (uint64_t at = 0; at < write->length; at += SECTOR_BYTES) {
        if (random_percent(random, 50)) {
            torn++;
            continue;
        }
        if (write->content != NULL)
            memcpy(disk + write->offset + at, write->content + at, SECTOR_BYTES);
        else
            memset(disk + write->offset + at, 0, SECTOR_BYTES);
    }
    return torn;
}

static bool
io_counts(const struct sim_disk *disk, const struct io *io)
{
    return disk->faults.error_end == 0 ||
           (io->offset >= disk->faults.error_from && io->offset < disk->faults.error_end);
}

static int
finish_read(struct sim_io *sim_io)
{
    struct sim_disk *const disk = sim_io->disk;
    struct sim_cluster *const cluster = disk->cluster;
    struct io *const io = sim_io->io;
    const uint8_t bad = disk_bad_in(disk, io, false);

    cluster->counts[COUNT_DISK_READS]++;
    if (io_counts(disk, io) && counts_down(&disk->faults.read_error_in)) {
        cluster->counts[COUNT_READ_ERRORS]++;
        return -EIO;
    }
    if (bad != 0) {
        cluster->counts[bad == BAD_LATENT ? COUNT_LATENT_ERRORS : COUNT_LASTING_ERRORS]++;
        return -EIO;
    }
    if (!sim_io->early)
        vectors_fill(io, disk->live + io->offset);
    /* Where a write is under way some of it is seen already. */
    for (const struct sim_io *other = disk->inflight; other != NULL; other = other->next) {
        const struct sim_write *const write = &cluster->writes[other->write];
        uint64_t begin, end, at = io->offset;

        if (!io_changes(other->io) || !overlap(io, other->io))
            continue;
        begin = max_u64(io->offset, write->offset);
        end = min_u64(io->offset + io->length, write->offset + write->length);
        for (unsigned i = 0; i < io->iov_count; at += io->iov[i++].iov_len)
            for (uint64_t in = 0; in < io->iov[i].iov_len; in += SECTOR_BYTES) {
                uint8_t *const to = (uint8_t *)io->iov[i].iov_base + in;

                if (at + in < begin || at + in >= end || random_percent(&cluster->random, 50))
                    continue;
                if (write->content != NULL)
                    memcpy(to, write->content + (at + in - write->offset), SECTOR_BYTES);
                else
                    memset(to, 0, SECTOR_BYTES);
            }
    }
    return 0;
}

static void
check_unchanged(const struct sim_io *sim_io, const struct sim_write *write)
{
    const struct io *const io = sim_io->io;
    uint64_t done = 0;

    if (write->content == NULL)
        return;
    for (unsigned i = 0; i < io->iov_count; ++i) {
        if (memcmp(write->content + done, io->iov[i].iov_base, io->iov[i].iov_len) != 0)
            sim_fail("contract C2: memory of a write to %s at %llu changed in flight",
                     sim_io->disk->device.name, (unsigned long long)io->offset);
        done += io->iov[i].iov_len;
    }
}

static int
finish_write(struct sim_io *sim_io)
{
    struct sim_disk *const disk = sim_io->disk;
    struct sim_cluster *const cluster = disk->cluster;
    struct sim_write *const write = &cluster->writes[sim_io->write];
    int result = 0;

    check_unchanged(sim_io, write);
    cluster->counts[sim_io->io->op == IO_WRITE ? COUNT_DISK_WRITES : COUNT_DISK_PUNCHES]++;
    if (sim_io->io->op == IO_PUNCH && disk->faults.punch_refused) {
        cluster->counts[COUNT_PUNCH_REFUSALS]++;
        result = -EOPNOTSUPP;
    } else if (sim_io->io->op == IO_PUNCH && disk->faults.punch_error != 0) {
        cluster->counts[COUNT_PUNCH_REFUSALS]++;
        result = -disk->faults.punch_error;
    } else if (io_counts(disk, sim_io->io) && counts_down(&disk->faults.write_error_in)) {
        cluster->counts[COUNT_WRITE_ERRORS]++;
        result = -EIO;
    } else if (disk_bad_in(disk, sim_io->io, true) == BAD_LASTING) {
        cluster->counts[COUNT_LASTING_ERRORS]++;
        result = -EIO;
    }
    if (disk->dead)
        result = -EIO;
    write->failed = result < 0;
    if (result == -EOPNOTSUPP)
        write->length = 0; /* nothing was done */
    (void)write_apply(write, disk->live, &cluster->random, result == 0);
    write->completed = cluster->moment;
    if (result == 0 && (write->fua || !disk->device.volatile_cache))
        write->durable = cluster->moment;
    return result;
}

/* Takes what was lost out of what reads see, and puts back whatever was below. */
static void
cache_drop(struct sim_disk *disk)
{
    struct sim_cluster *const cluster = disk->cluster;

    for (unsigned i = cluster->folded; i < cluster->writes_count; ++i) {
        struct sim_write *const write = &cluster->writes[i];

        if (write->disk != disk->index || !write->lost || write->dropped != SIM_NEVER)
            continue;
        write->dropped = cluster->moment;
        memcpy(disk->live + write->offset, disk->stable + write->offset, write->length);
    }
    for (unsigned i = cluster->folded; i < cluster->writes_count; ++i) {
        const struct sim_write *const write = &cluster->writes[i];

        if (write->disk == disk->index && write->completed != SIM_NEVER && !write->failed &&
            write->dropped == SIM_NEVER)
            (void)write_apply(write, disk->live, NULL, true);
    }
}

static int
finish_flush(struct sim_io *sim_io)
{
    struct sim_disk *const disk = sim_io->disk;
    struct sim_cluster *const cluster = disk->cluster;
    const bool fails = counts_down(&disk->faults.flush_error_in);

    cluster->counts[COUNT_DISK_FLUSHES]++;
    for (unsigned i = cluster->folded; i < cluster->writes_count; ++i) {
        struct sim_write *const write = &cluster->writes[i];

        if (write->disk != disk->index || write->completed >= sim_io->moment ||
            write->durable != SIM_NEVER || write->failed || write->lost)
            continue;
        if (fails)
            write->lost = true;
        else
            write->durable = cluster->moment;
    }
    if (!fails)
        return 0;
    if (disk->faults.flush_drops)
        cache_drop(disk);
    cluster->counts[COUNT_FLUSH_ERRORS]++;
    return -EIO;
}

static void
disk_done(struct sim_event *event)
{
    struct sim_io *const sim_io = container_of(event, struct sim_io, event);
    struct sim_disk *const disk = sim_io->disk;
    struct sim_cluster *const cluster = disk->cluster;
    struct io *const io = sim_io->io;

    if (sim_io->next != NULL)
        sim_io->next->previous = sim_io->previous;
    if (sim_io->previous != NULL)
        sim_io->previous->next = sim_io->next;
    else
        disk->inflight = sim_io->next;
    cluster_moment(cluster);
    if (io_changes(io))
        io->result = finish_write(sim_io);
    else if (disk->dead)
        io->result = -EIO;
    else if (io->op == IO_FLUSH)
        io->result = finish_flush(sim_io);
    else
        io->result = finish_read(sim_io);
    cluster_trace(cluster, "  %s: %s %llu + %llu done: %d", disk->device.name, op_name(io),
                  (unsigned long long)io->offset, (unsigned long long)io->length, io->result);
    cluster_note(cluster, cluster->sim.now_ns ^ (uint64_t)(unsigned)io->result << 32);
    sim_io->next = cluster->io_free;
    cluster->io_free = sim_io;
    io_complete(io);
}

/* --- Crash images --------------------------------------------------------------------------- */

static void
undo_remember(struct sim_image *image, const struct sim_disk *disk, const struct sim_write *write)
{
    struct sim_undo *undo;

    if (image->count == image->capacity) {
        image->capacity = image->capacity ? image->capacity * 2 : 256;
        image->undo = memory_or_die(realloc(image->undo, image->capacity * sizeof *image->undo));
    }
    if (image->memory == NULL)
        image->memory = map_or_die(UNDO_BYTES);
    if (image->used + write->length > UNDO_BYTES)
        sim_fail("more writes are open than the simulator can take back");
    undo = &image->undo[image->count++];
    *undo =
        (struct sim_undo){disk->index, write->offset, write->length, image->memory + image->used};
    memcpy(undo->old, disk->stable + write->offset, write->length);
    image->used += write->length;
}

/* Writes at the front of the log that are durable by then are in every later image as they are. */
static void
log_fold(struct sim_cluster *cluster, uint64_t moment)
{
    while (cluster->folded < cluster->writes_count &&
           cluster->writes[cluster->folded].durable <= moment) {
        const struct sim_write *const write = &cluster->writes[cluster->folded++];

        (void)write_apply(write, cluster->disks[write->disk].stable, NULL, true);
    }
}

static void
apply_open(struct sim_cluster *cluster, const struct sim_write *write, enum sim_tear tear,
           struct sim_random *random, unsigned lucky_disks)
{
    uint8_t *const stable = cluster->disks[write->disk].stable;
    struct sim_write part = *write;

    switch (tear) {
    case TEAR_ALL:
        (void)write_apply(write, stable, random, true);
        break;
    case TEAR_RANDOM:
        cluster->counts[COUNT_TORN_SECTORS] += write_apply(write, stable, random, false);
        break;
    case TEAR_WRITES:
        if (random_percent(random, 50))
            (void)write_apply(write, stable, random, true);
        break;
    case TEAR_FRONT:
        part.length = random_between(random, 0, write->length / SECTOR_BYTES) * SECTOR_BYTES;
        cluster->counts[COUNT_TORN_SECTORS] += (write->length - part.length) / SECTOR_BYTES;
        (void)write_apply(&part, stable, random, true);
        break;
    case TEAR_DISKS:
        if (lucky_disks >> write->disk & 1)
            (void)write_apply(write, stable, random, true);
        break;
    case TEAR_NONE:
    case TEAR_LAST:
        break;
    }
}

void
image_build(struct sim_cluster *cluster, struct sim_image *image, uint64_t moment,
            enum sim_tear tear, struct sim_random *random)
{
    const unsigned lucky_disks = (unsigned)random_next(random);

    image->count = 0;
    image->used = 0;
    log_fold(cluster, moment);
    for (unsigned i = cluster->folded; i < cluster->writes_count; ++i) {
        const struct sim_write *const write = &cluster->writes[i];

        if (write->submitted > moment)
            break;
        if (write->dropped <= moment)
            continue;
        undo_remember(image, &cluster->disks[write->disk], write);
        if (write->durable <= moment)
            (void)write_apply(write, cluster->disks[write->disk].stable, NULL, true);
        else
            apply_open(cluster, write, tear, random, lucky_disks);
    }
}

void
image_write(struct sim_cluster *cluster, struct sim_image *image, unsigned disk, uint64_t offset,
            const uint8_t *content, uint64_t length)
{
    const struct sim_write write = {.offset = offset, .length = length};

    undo_remember(image, &cluster->disks[disk], &write);
    memcpy(cluster->disks[disk].stable + offset, content, length);
}

void
image_undo(struct sim_cluster *cluster, struct sim_image *image)
{
    while (image->count > 0) {
        const struct sim_undo *const undo = &image->undo[--image->count];

        memcpy(cluster->disks[undo->disk].stable + undo->offset, undo->old, undo->length);
    }
    image->used = 0;
}

void
image_adopt(struct sim_cluster *cluster, struct sim_image *image)
{
    for (unsigned i = 0; i < cluster->writes_count; ++i) {
        const struct sim_write *const write = &cluster->writes[i];
        const struct sim_disk *const disk = &cluster->disks[write->disk];

        memcpy(disk->live + write->offset, disk->stable + write->offset, write->length);
    }
    for (unsigned d = 0; d < cluster->disks_count; ++d) {
        assert(cluster->disks[d].inflight == NULL);
        cluster->disks[d].dead = false;
        cluster->disks[d].faults = (struct sim_faults){0};
    }
    image->count = 0;
    image->used = 0;
    cluster->writes_count = cluster->folded = 0;
    cluster->arena_used = 0;
}

void
image_fini(struct sim_image *image)
{
    free(image->undo);
    if (image->memory != NULL)
        (void)munmap(image->memory, UNDO_BYTES); /* it was mapped */
}
