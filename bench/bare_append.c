/*
 * bare_append: what it costs to append 4 KiB blocks to a device when nothing is in between.
 *
 * The yardstick of writes that are acknowledged from the journal: one ring, `depth` blocks in
 * flight, each a write of its own to the next place, O_DIRECT, round and round in the given part of
 * the device. No checksums, no meta blocks, no order among the completions, nothing flushed.
 *
 * With --gather, blocks whose turn comes at once go out in one write, as a log does it that closes
 * its entry at the end of a turn.
 *
 * Prints one line of JSON. It overwrites what is there.
 */
#define BARE_PROGRAM "bare_append"
#include "bare.h"
#include "base/base.h"
#include <fcntl.h>
#include <getopt.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define DEPTH_MAX 1024

struct options {
    uint64_t offset, length; /* of the ring on the device, bytes */
    uint64_t requests;
    unsigned depth;
    bool gather;
};

/* Blocks that are written at once; one of `depth`, most of them idle where it gathers. */
struct slot {
    unsigned count; /* 0: idle */
    struct iovec blocks[DEPTH_MAX];
};

struct bench {
    struct options options;
    struct io_uring ring;
    struct slot *slots;
    uint8_t *memory; /* a block for each in flight */
    unsigned free_blocks[DEPTH_MAX], free_count;
    uint64_t position;
    uint64_t queued, done;
};

static struct slot *
slot_idle(struct bench *bench)
{
    for (unsigned i = 0; i < bench->options.depth; i++)
        if (bench->slots[i].count == 0)
            return &bench->slots[i];
    die("slots", ENOSPC);
}

/* Writes as many of the idle blocks as may still be queued, each or all in one. */
static void
append(struct bench *bench)
{
    const struct options *options = &bench->options;
    while (bench->free_count > 0 && bench->queued < options->requests) {
        struct slot *slot = slot_idle(bench);
        struct io_uring_sqe *sqe = io_uring_get_sqe(&bench->ring);
        if (sqe == NULL)
            die("ring", EBUSY);
        const uint64_t at = bench->position;
        do {
            uint8_t *block =
                bench->memory + bench->free_blocks[--bench->free_count] * (size_t)BLOCK_BYTES;
            memcpy(block, &bench->queued, sizeof bench->queued);
            slot->blocks[slot->count++] = (struct iovec){block, BLOCK_BYTES};
            bench->position += BLOCK_BYTES;
            bench->queued++;
        } while (options->gather && bench->free_count > 0 && bench->queued < options->requests &&
                 bench->position < options->length);
        if (slot->count == 1)
            io_uring_prep_write(sqe, 0, slot->blocks[0].iov_base, BLOCK_BYTES,
                                options->offset + at);
        else
            io_uring_prep_writev(sqe, 0, slot->blocks, slot->count, options->offset + at);
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data(sqe, slot);
        bench->position %= options->length;
    }
}

static void
bench_run(struct bench *bench)
{
    while (bench->done < bench->options.requests) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        append(bench);
        const int submitted = io_uring_submit_and_wait(&bench->ring, 1);
        if (submitted < 0)
            die("io_uring_enter", -submitted);
        io_uring_for_each_cqe(&bench->ring, head, cqe)
        {
            struct slot *slot = io_uring_cqe_get_data(cqe);
            seen++;
            if (cqe->res != (int)(slot->count * BLOCK_BYTES))
                die("write", cqe->res < 0 ? -cqe->res : EIO);
            bench->done += slot->count;
            while (slot->count > 0) {
                const uint8_t *block = slot->blocks[--slot->count].iov_base;
                bench->free_blocks[bench->free_count++] =
                    (unsigned)((size_t)(block - bench->memory) / BLOCK_BYTES);
            }
        }
        io_uring_cq_advance(&bench->ring, seen);
    }
}

static void
bench_open(struct bench *bench, const char *path)
{
    const unsigned depth = bench->options.depth;
    const int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        die(path, errno);
    struct io_uring_params params = {.flags =
                                         IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int error = io_uring_queue_init_params(DEPTH_MAX, &bench->ring, &params);
    if (error == -EINVAL)
        error = io_uring_queue_init(DEPTH_MAX, &bench->ring, 0);
    if (error == 0)
        error = io_uring_register_files(&bench->ring, &fd, 1);
    if (error < 0)
        die("io_uring", -error);
    close(fd); /* the ring has it */
    bench->slots = calloc(depth, sizeof *bench->slots);
    bench->memory = aligned_alloc(BLOCK_BYTES, depth * (size_t)BLOCK_BYTES);
    if (bench->slots == NULL || bench->memory == NULL)
        die("memory", ENOMEM);
    memset(bench->memory, 0x5a, depth * (size_t)BLOCK_BYTES);
    while (bench->free_count < depth) {
        bench->free_blocks[bench->free_count] = bench->free_count;
        bench->free_count++;
    }
}

static int
options_parse(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {
        {"offset", required_argument, NULL, 'o'},   {"length", required_argument, NULL, 'l'},
        {"requests", required_argument, NULL, 'n'}, {"depth", required_argument, NULL, 'd'},
        {"gather", no_argument, NULL, 'g'},         {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'o':
            options->offset = strtoull(optarg, NULL, 10);
            break;
        case 'l':
            options->length = round_down(strtoull(optarg, NULL, 10), BLOCK_BYTES);
            break;
        case 'n':
            options->requests = strtoull(optarg, NULL, 10);
            break;
        case 'd':
            options->depth = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'g':
            options->gather = true;
            break;
        default:
            return -EINVAL;
        }
    }
    return optind + 1 != argc || options->offset % BLOCK_BYTES != 0 || options->length == 0 ||
                   options->requests == 0 || options->depth == 0 || options->depth > DEPTH_MAX
               ? -EINVAL
               : 0;
}

int
main(int argc, char **argv)
{
    struct bench *bench = calloc(1, sizeof *bench);
    if (bench == NULL)
        die("memory", ENOMEM);
    bench->options = (struct options){.depth = 32};
    if (options_parse(&bench->options, argc, argv) < 0) {
        fputs("usage: bare_append --offset=BYTES --length=BYTES --requests=N [--depth=N] "
              "[--gather] DEVICE\n",
              stderr);
        return 2;
    }
    bench_open(bench, argv[optind]);
    const double begin = now_seconds(), begin_cpu = cpu_seconds();
    bench_run(bench);
    const double seconds = now_seconds() - begin, cpu = cpu_seconds() - begin_cpu;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"requests_per_s\": %.1f, "
           "\"cpu_us_per_request\": %.3f}\n",
           (unsigned long long)bench->done, seconds, (double)bench->done / seconds,
           cpu * 1e6 / (double)bench->done);
    io_uring_queue_exit(&bench->ring);
    free(bench->slots);
    free(bench->memory);
    free(bench);
    return 0;
}
