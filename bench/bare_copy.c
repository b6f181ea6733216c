/*
 * bare_copy: how fast the bytes of a journal can be read and written when nothing is in between.
 *
 * The yardstick of recovery: one ring, O_DIRECT, pieces of 1 MiB, several in flight: all of the
 * source is read in sequence, and then as many bytes are written in sequence, to the members in
 * turn. No checksums, no order of any stripe, no superblocks; the members' caches are flushed at
 * the end, as a recovery has to. Like a recovery it writes nothing before it has read everything;
 * with --overlap each piece is written as soon as it has been read.
 *
 * It overwrites the members from --member-offset on. Prints one line of JSON.
 */
#define BARE_PROGRAM "bare_copy"
#include "bare.h"
#include "base/base.h"
#include <fcntl.h>
#include <getopt.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PIECE_BYTES (1 * MIB)
#define DEPTH_MAX   256u

struct options {
    uint64_t offset, length; /* of the bytes to read, on the source */
    uint64_t member_offset;
    unsigned depth;
    bool overlap;
};

struct slot {
    bool writing;
    uint64_t piece, length;
    uint8_t *memory;
};

struct bench {
    struct options options;
    int fds[1 + MEMBERS_MAX]; /* the source, then the members; registered in this order */
    unsigned members;
    struct io_uring ring;
    struct slot slots[DEPTH_MAX];
    bool writing;  /* what pieces begin with */
    uint64_t next; /* piece to begin with */
};

static unsigned long long
peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (unsigned long long)usage.ru_maxrss * KIB;
}

static void
slot_submit(struct bench *bench, struct slot *slot)
{
    const struct options *options = &bench->options;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&bench->ring);

    if (sqe == NULL)
        die("ring", EBUSY);
    if (slot->writing)
        io_uring_prep_write(sqe, 1 + (int)(slot->piece % bench->members), slot->memory,
                            (unsigned)slot->length,
                            options->member_offset + slot->piece / bench->members * PIECE_BYTES);
    else
        io_uring_prep_read(sqe, 0, slot->memory, (unsigned)slot->length,
                           options->offset + slot->piece * PIECE_BYTES);
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, slot);
}

/* False when there is none left. */
static bool
slot_take_next(struct bench *bench, struct slot *slot)
{
    const uint64_t at = bench->next * PIECE_BYTES;

    if (at >= bench->options.length)
        return false;
    slot->writing = bench->writing;
    slot->piece = bench->next++;
    slot->length = min_u64(PIECE_BYTES, bench->options.length - at);
    slot_submit(bench, slot);
    return true;
}

/* One transfer of a piece is over; false when nothing follows in this slot. */
static bool
slot_go_on(struct bench *bench, struct slot *slot)
{
    if (!bench->options.overlap || slot->writing)
        return slot_take_next(bench, slot);
    slot->writing = true;
    slot_submit(bench, slot);
    return true;
}

/* All pieces once. */
static void
bench_pass(struct bench *bench, bool writing)
{
    unsigned busy = 0;

    bench->writing = writing;
    bench->next = 0;
    for (unsigned i = 0; i < bench->options.depth; i++)
        busy += slot_take_next(bench, &bench->slots[i]);
    while (busy > 0) {
        const int submitted = io_uring_submit_and_wait(&bench->ring, 1);
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;

        if (submitted < 0)
            die("io_uring_enter", -submitted);
        io_uring_for_each_cqe(&bench->ring, head, cqe)
        {
            struct slot *slot = io_uring_cqe_get_data(cqe);

            seen++;
            if (cqe->res != (int)slot->length)
                die("transfer", cqe->res < 0 ? -cqe->res : EIO);
            busy -= !slot_go_on(bench, slot);
        }
        io_uring_cq_advance(&bench->ring, seen);
    }
}

static void
bench_run(struct bench *bench)
{
    bench_pass(bench, false);
    if (!bench->options.overlap)
        bench_pass(bench, true);
    for (unsigned i = 1; i <= bench->members; i++)
        if (fdatasync(bench->fds[i]) < 0)
            die("flush", errno);
}

static void
bench_open(struct bench *bench, char **paths, unsigned count)
{
    int error;

    if (count < 2 || count > 1 + MEMBERS_MAX)
        die("devices", EINVAL);
    bench->members = count - 1;
    for (unsigned i = 0; i < count; i++) {
        bench->fds[i] = open(paths[i], (i == 0 ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
        if (bench->fds[i] < 0)
            die(paths[i], errno);
    }
    error = io_uring_queue_init(2 * DEPTH_MAX, &bench->ring, 0);
    if (error == 0)
        error = io_uring_register_files(&bench->ring, bench->fds, count);
    if (error < 0)
        die("io_uring", -error);
    for (unsigned i = 0; i < bench->options.depth; i++) {
        bench->slots[i].memory = aligned_alloc(BLOCK_BYTES, PIECE_BYTES);
        if (bench->slots[i].memory == NULL)
            die("memory", ENOMEM);
        memset(bench->slots[i].memory, 0x5a, PIECE_BYTES);
    }
}

static void
bench_close(struct bench *bench)
{
    io_uring_queue_exit(&bench->ring);
    for (unsigned i = 0; i < bench->options.depth; i++)
        free(bench->slots[i].memory);
    for (unsigned i = 0; i <= bench->members; i++)
        close(bench->fds[i]);
}

static void
usage_print(FILE *to)
{
    fputs("usage: bare_copy --offset=BYTES --length=BYTES --member-offset=BYTES [--depth=N]\n"
          "                 [--overlap] JOURNAL MEMBER...\n",
          to);
}

static int
options_parse(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {{"offset", required_argument, NULL, 'o'},
                                          {"length", required_argument, NULL, 'l'},
                                          {"member-offset", required_argument, NULL, 'm'},
                                          {"depth", required_argument, NULL, 'd'},
                                          {"overlap", no_argument, NULL, 'w'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};

    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'o':
            options->offset = strtoull(optarg, NULL, 10);
            break;
        case 'l':
            options->length = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            options->member_offset = strtoull(optarg, NULL, 10);
            break;
        case 'd':
            options->depth = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'w':
            options->overlap = true;
            break;
        case 'h':
            usage_print(stdout);
            exit(0);
        default:
            return -EINVAL;
        }
    }
    return options->length == 0 || options->depth == 0 || options->depth > DEPTH_MAX ||
                   (options->offset | options->length | options->member_offset) % BLOCK_BYTES != 0
               ? -EINVAL
               : 0;
}

int
main(int argc, char **argv)
{
    struct bench *bench = calloc(1, sizeof *bench);
    double begin, seconds;

    if (bench == NULL)
        die("memory", ENOMEM);
    bench->options = (struct options){.depth = 16};
    if (options_parse(&bench->options, argc, argv) < 0) {
        usage_print(stderr);
        return 2;
    }
    bench_open(bench, argv + optind, (unsigned)(argc - optind));
    begin = now_seconds();
    bench_run(bench);
    seconds = now_seconds() - begin;
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"bytes_per_s\": %.1f, \"cpu_s\": %.3f, "
           "\"peak_bytes\": %llu}\n",
           (unsigned long long)bench->options.length, seconds,
           (double)bench->options.length / seconds, cpu_seconds(), peak_bytes());
    bench_close(bench);
    free(bench);
    return 0;
}
