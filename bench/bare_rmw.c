/*
 * bare_rmw: what 4 KiB writes into a RAID-5 cost when nothing is in between.
 *
 * The yardstick of the array's small writes: one ring, and for each request two reads (data,
 * parity), two XORs, two writes, at random places of the array's data, O_DIRECT, in the places that
 * the left-symmetric layout gives them. No server, no client, no locks, no cache. It keeps parity
 * right: of the stripes only those without a request in flight are chosen, so an array may be
 * served again after it.
 *
 * Prints one line of JSON. It ignores the claim of a server that idles on the same members; do not
 * let both write at a time.
 */
#define BARE_PROGRAM "bare_rmw"
#include "bare.h"
#include "base/base.h"
#include <fcntl.h>
#include <getopt.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define DEPTH_MAX 1024

struct options {
    uint64_t data_offset; /* bytes, the same on all members */
    uint64_t member_size; /* bytes used by the array on each member, from data_offset */
    uint64_t chunk;       /* bytes */
    double seconds;
    unsigned depth;
    uint64_t seed;
};

enum slot_state { SLOT_READING, SLOT_WRITING };

struct slot {
    enum slot_state state;
    unsigned pending; /* of the two transfers */
    uint64_t offset;  /* of the stripe, in bytes from the start of each member's device */
    unsigned data_member, parity_member;
    uint8_t *fresh, *data, *parity; /* a block each */
};

struct bench {
    struct options options;
    int fds[MEMBERS_MAX]; /* registered with the ring in this order */
    unsigned members;
    struct io_uring ring;
    struct slot slots[DEPTH_MAX];
    uint64_t random;
    uint64_t requests;
};

/* splitmix64. */
static uint64_t
random_next(struct bench *bench)
{
    uint64_t z = bench->random += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static bool
stripe_in_flight(const struct bench *bench, const struct slot *except, uint64_t offset)
{
    for (unsigned i = 0; i < bench->options.depth; i++) {
        const struct slot *slot = &bench->slots[i];
        if (slot != except && slot->offset == offset)
            return true;
    }
    return false;
}

static void
transfer_queue(struct bench *bench, struct slot *slot, bool write, unsigned member, uint8_t *block)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&bench->ring);
    if (sqe == NULL)
        die("ring", EBUSY);
    if (write)
        io_uring_prep_write(sqe, (int)member, block, BLOCK_BYTES, slot->offset);
    else
        io_uring_prep_read(sqe, (int)member, block, BLOCK_BYTES, slot->offset);
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, slot);
    slot->pending++;
}

static void
slot_read(struct bench *bench, struct slot *slot)
{
    const struct options *options = &bench->options;
    const uint64_t stripes = options->member_size / BLOCK_BYTES;
    uint64_t stripe;
    do {
        stripe = random_next(bench) % stripes * BLOCK_BYTES;
    } while (stripe_in_flight(bench, slot, options->data_offset + stripe));
    const uint64_t row = stripe / options->chunk;
    const unsigned n = bench->members;
    const unsigned index = (unsigned)(random_next(bench) % (n - 1));
    slot->offset = options->data_offset + stripe;
    slot->parity_member = n - 1 - (unsigned)(row % n);
    slot->data_member = (slot->parity_member + 1 + index) % n;
    slot->state = SLOT_READING;
    transfer_queue(bench, slot, false, slot->data_member, slot->data);
    transfer_queue(bench, slot, false, slot->parity_member, slot->parity);
}

static void
slot_write(struct bench *bench, struct slot *slot)
{
    uint64_t *fresh = (void *)slot->fresh, *data = (void *)slot->data;
    uint64_t *parity = (void *)slot->parity;
    fresh[0] = random_next(bench);
    for (unsigned i = 0; i < BLOCK_BYTES / sizeof *parity; i++)
        parity[i] ^= data[i] ^ fresh[i];
    slot->state = SLOT_WRITING;
    transfer_queue(bench, slot, true, slot->data_member, slot->fresh);
    transfer_queue(bench, slot, true, slot->parity_member, slot->parity);
}

/* Until the time is up, and then until nothing is in flight. */
static void
bench_run(struct bench *bench, double until)
{
    unsigned busy = bench->options.depth;
    for (unsigned i = 0; i < busy; i++)
        slot_read(bench, &bench->slots[i]);
    while (busy > 0) {
        const int submitted = io_uring_submit_and_wait(&bench->ring, 1);
        if (submitted < 0)
            die("io_uring_enter", -submitted);
        const bool over = now_seconds() >= until;
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&bench->ring, head, cqe)
        {
            seen++;
            if (cqe->res != (int)BLOCK_BYTES)
                die("transfer", cqe->res < 0 ? -cqe->res : EIO);
            struct slot *slot = io_uring_cqe_get_data(cqe);
            if (--slot->pending > 0)
                continue;
            if (slot->state == SLOT_READING) {
                slot_write(bench, slot);
                continue;
            }
            bench->requests++;
            if (over)
                busy--;
            else
                slot_read(bench, slot);
        }
        io_uring_cq_advance(&bench->ring, seen);
    }
}

static void
bench_open(struct bench *bench, char **paths, unsigned count)
{
    if (count < 3 || count > MEMBERS_MAX)
        die("members", EINVAL);
    bench->members = count;
    for (unsigned i = 0; i < count; i++) {
        bench->fds[i] = open(paths[i], O_RDWR | O_DIRECT | O_CLOEXEC);
        if (bench->fds[i] < 0)
            die(paths[i], errno);
    }
    struct io_uring_params params = {.flags =
                                         IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    const unsigned entries = 2 * DEPTH_MAX;
    int error = io_uring_queue_init_params(entries, &bench->ring, &params);
    if (error == -EINVAL)
        error = io_uring_queue_init(entries, &bench->ring, 0);
    if (error == 0)
        error = io_uring_register_files(&bench->ring, bench->fds, count);
    if (error < 0)
        die("io_uring", -error);
    for (unsigned i = 0; i < bench->options.depth; i++) {
        struct slot *slot = &bench->slots[i];
        slot->fresh = aligned_alloc(BLOCK_BYTES, 3 * BLOCK_BYTES);
        if (slot->fresh == NULL)
            die("memory", ENOMEM);
        memset(slot->fresh, 0x5a, 3 * BLOCK_BYTES);
        slot->data = slot->fresh + BLOCK_BYTES;
        slot->parity = slot->data + BLOCK_BYTES;
        slot->offset = UINT64_MAX;
    }
}

static void
bench_close(struct bench *bench)
{
    io_uring_queue_exit(&bench->ring);
    for (unsigned i = 0; i < bench->options.depth; i++)
        free(bench->slots[i].fresh);
    for (unsigned i = 0; i < bench->members; i++)
        close(bench->fds[i]);
}

static void
usage(FILE *to)
{
    fputs("usage: bare_rmw --data-offset=BYTES --member-size=BYTES --chunk=BYTES\n"
          "                [--seconds=S] [--depth=N] [--seed=N] MEMBER...\n",
          to);
}

static int
options_parse(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {{"data-offset", required_argument, NULL, 'o'},
                                          {"member-size", required_argument, NULL, 'm'},
                                          {"chunk", required_argument, NULL, 'c'},
                                          {"seconds", required_argument, NULL, 's'},
                                          {"depth", required_argument, NULL, 'd'},
                                          {"seed", required_argument, NULL, 'r'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'o':
            options->data_offset = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            options->member_size = strtoull(optarg, NULL, 10);
            break;
        case 'c':
            options->chunk = strtoull(optarg, NULL, 10);
            break;
        case 's':
            options->seconds = strtod(optarg, NULL);
            break;
        case 'd':
            options->depth = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'r':
            options->seed = strtoull(optarg, NULL, 10);
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            return -EINVAL;
        }
    }
    if (options->chunk < BLOCK_BYTES || !is_power_of_two(options->chunk) ||
        options->data_offset % BLOCK_BYTES != 0 || options->depth == 0 ||
        options->depth > DEPTH_MAX || options->seconds <= 0)
        return -EINVAL;
    /* Twice as many stripes as requests, so that a free one is always found soon. */
    options->member_size = round_down(options->member_size, options->chunk);
    return options->member_size / BLOCK_BYTES < 2ull * options->depth ? -EINVAL : 0;
}

int
main(int argc, char **argv)
{
    struct bench *bench = calloc(1, sizeof *bench);
    if (bench == NULL)
        die("memory", ENOMEM);
    bench->options = (struct options){.seconds = 3, .depth = 32, .seed = 1};
    if (options_parse(&bench->options, argc, argv) < 0) {
        usage(stderr);
        return 2;
    }
    bench->random = bench->options.seed;
    bench_open(bench, argv + optind, (unsigned)(argc - optind));
    const double begin = now_seconds(), begin_cpu = cpu_seconds();
    bench_run(bench, begin + bench->options.seconds);
    const double seconds = now_seconds() - begin, cpu = cpu_seconds() - begin_cpu;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"requests_per_s\": %.1f, "
           "\"cpu_us_per_request\": %.3f}\n",
           (unsigned long long)bench->requests, seconds, (double)bench->requests / seconds,
           cpu * 1e6 / (double)bench->requests);
    bench_close(bench);
    free(bench);
    return 0;
}
