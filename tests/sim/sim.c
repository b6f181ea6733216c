/*
 * sim.c: runs seeded histories and says what was in them.
 *
 *     sim --mode crash --seed 1 --histories 1000
 *
 * History i of a call has the seed --seed + i. Exit status 0: all were fine and everything that the
 * mode promises did happen; 1: a history failed (its seed and the command that replays it are
 * printed), or a promised kind of event never came.
 */
#include "sim_history.h"
#include "sim_report.h"
#include <getopt.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char *const count_names[COUNT_LAST] = {
    [COUNT_HISTORIES] = "histories",
    [COUNT_STARTS] = "starts",
    [COUNT_DEGRADED_STARTS] = "degraded starts",
    [COUNT_FORCED_STARTS] = "forced starts",
    [COUNT_REFUSALS] = "refused starts",
    [COUNT_RESTARTS] = "restarts",
    [COUNT_CRASHES] = "crashes",
    [COUNT_CRASH_IMAGES] = "crash images judged",
    [COUNT_CRASHES_DIRTY] = "crashes that left it dirty",
    [COUNT_CRASHES_CLEAN] = "crashes that left it clean",
    [COUNT_CRASHES_IN_RESYNC] = "crashes in a resync",
    [COUNT_RESYNCS] = "resyncs completed",
    [COUNT_RESYNCS_RESUMED] = "resyncs resumed at a checkpoint",
    [COUNT_BITMAPS] = "arrays with a write-intent bitmap",
    [COUNT_LOST_MEMBERS] = "members lost",
    [COUNT_STALE_LEFT_OUT] = "stale members left out",
    [COUNT_READS] = "reads",
    [COUNT_WRITES] = "writes",
    [COUNT_ZEROS] = "zeroings",
    [COUNT_TRIMS] = "trims",
    [COUNT_FLUSHES] = "flushes",
    [COUNT_FUAS] = "requests with fua",
    [COUNT_REQUESTS_FAILED] = "requests failed",
    [COUNT_LOSS_CHECKS] = "final checks with members lost",
    [COUNT_DISK_READS] = "disk reads",
    [COUNT_DISK_WRITES] = "disk writes",
    [COUNT_DISK_FLUSHES] = "disk flushes",
    [COUNT_DISK_PUNCHES] = "disk punches",
    [COUNT_READ_ERRORS] = "read errors",
    [COUNT_LATENT_ERRORS] = "reads of latent bad blocks",
    [COUNT_LASTING_ERRORS] = "errors of lasting bad blocks",
    [COUNT_WRITE_ERRORS] = "write errors",
    [COUNT_FLUSH_ERRORS] = "flush errors",
    [COUNT_PUNCH_REFUSALS] = "punches refused",
    [COUNT_DEATHS] = "disk deaths",
    [COUNT_CORRECTED] = "reads corrected",
    [COUNT_TORN_SECTORS] = "sectors torn off",
    [COUNT_JOURNALS] = "arrays with a journal",
    [COUNT_CHECKPOINTS] = "checkpoints of a journal",
    [COUNT_WRAPS] = "times around the ring of a journal",
    [COUNT_SPACE_WAITS] = "waits for space in a journal",
    [COUNT_RECOVERIES_PARITY] = "recoveries with data-parity stripes",
    [COUNT_RECOVERIES_DATA_ONLY] = "recoveries with data-only stripes",
    [COUNT_CRASHES_IN_RECOVERY] = "crashes in a recovery",
    [COUNT_JOURNAL_LOSSES] = "journals lost",
    [COUNT_JOURNALS_DROPPED] = "starts that drop the journal",
    [COUNT_JOURNAL_READ_ERRORS] = "recoveries with a read error of the journal",
    [COUNT_FOREIGN_LOGS] = "logs as the kernel leaves them",
    [COUNT_FOREIGN_LOGS_FULL] = "of them, without room to begin anew",
    [COUNT_EVERY_MOMENT] = "runs with a crash at every moment",
    [COUNT_READONLY_VIEWS] = "readonly views after a crash",
    [COUNT_WRITE_BACK_RUNS] = "runs in write-back",
    [COUNT_FAST_STARTS] = "starts with data-only stripes in the cache",
    [COUNT_CRASHES_CACHED] = "crashes with cached blocks in the log",
    [COUNT_MODE_SWITCHES] = "changes of the journal's mode",
    [COUNT_BLOCKS_CACHED] = "blocks cached",
    [COUNT_BLOCKS_OVERWRITTEN] = "of them, again",
    [COUNT_BLOCKS_READ_BACK] = "blocks read back from the journal",
    [COUNT_BLOCKS_WRITTEN_OUT] = "cached blocks written out",
    [COUNT_BLOCKS_LOST] = "blocks lost with the journal, and named",
    [COUNT_JOURNAL_ROTS] = "times that the journal rots",
};

/* Below this many histories a promised kind may be missing by chance. */
#define HISTORIES_FOR_PROMISES 400u

struct request {
    const struct sim_mode *mode; /* NULL: all in turns */
    uint64_t seed, histories;
    uint64_t seconds; /* 0: histories counts */
    bool trace, hash, twice;
};

static int
usage(FILE *to, const char *program, int status)
{
    fprintf(to, "usage: %s [OPTION]...\n\n", program);
    fputs("  --mode=MODE      one of those below; default: all in turns\n"
          "  --seed=N         of the first history; default 1\n"
          "  --histories=N    default 100\n"
          "  --seconds=N      go on for that long, from a seed that the clock gives\n"
          "  --trace          every request, every operation on a disk\n"
          "  --hash           a number for each history: the same seed gives the same\n"
          "  --twice          each history twice, and the same must happen\n\n",
          to);
    for (unsigned i = 0; i < sim_modes_count; ++i)
        fprintf(to, "  %-12s %s\n", sim_modes[i].name, sim_modes[i].story);
    return status;
}

static const struct sim_mode *
mode_find(const char *name)
{
    for (unsigned i = 0; i < sim_modes_count; ++i)
        if (strcmp(sim_modes[i].name, name) == 0)
            return &sim_modes[i];
    return NULL;
}

/* 0, or the exit status plus one: nothing is to be run. */
static int
request_parse(int argc, char **argv, struct request *request)
{
    static const struct option options[] = {{"mode", required_argument, NULL, 'm'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"histories", required_argument, NULL, 'n'},
                                            {"seconds", required_argument, NULL, 'd'},
                                            {"trace", no_argument, NULL, 't'},
                                            {"hash", no_argument, NULL, 'x'},
                                            {"twice", no_argument, NULL, 'w'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'm':
            request->mode = mode_find(optarg);
            if (request->mode == NULL && strcmp(optarg, "all") != 0)
                return usage(stderr, argv[0], 2) + 1;
            break;
        case 's':
            request->seed = strtoull(optarg, NULL, 0);
            break;
        case 'n':
            request->histories = strtoull(optarg, NULL, 0);
            break;
        case 'd':
            request->seconds = strtoull(optarg, NULL, 0);
            request->seed = (uint64_t)time(NULL) * 1000000;
            break;
        case 't':
            request->trace = true;
            break;
        case 'x':
            request->hash = true;
            break;
        case 'w':
            request->twice = true;
            break;
        case 'h':
            return usage(stdout, argv[0], 0) + 1;
        default:
            return usage(stderr, argv[0], 2) + 1;
        }
    }
    return optind < argc ? usage(stderr, argv[0], 2) + 1 : 0;
}

static int
counts_print(const uint64_t *counts, uint64_t promised)
{
    int status = 0;

    for (unsigned i = 0; i < COUNT_LAST; ++i)
        if (counts[i] > 0)
            printf("%10llu %s\n", (unsigned long long)counts[i], count_names[i]);
    if (counts[COUNT_HISTORIES] < HISTORIES_FOR_PROMISES)
        return 0;
    for (unsigned i = 0; i < COUNT_LAST; ++i)
        if (counts[i] == 0 && promised >> i & 1) {
            printf("FAIL: promised, but none: %s\n", count_names[i]);
            status = 1;
        }
    return status;
}

static void
history_one(struct sim_world *world, const struct request *request, const char *program, uint64_t i)
{
    const struct sim_mode *const mode =
        request->mode != NULL ? request->mode : &sim_modes[i % sim_modes_count];
    const uint64_t seed = request->seed + i;
    uint64_t hash;

    report_begin(program, mode->name, seed);
    hash = history_run(world, mode, seed);
    if (request->twice && history_run(world, mode, seed) != hash)
        sim_fail("the same seed gives two histories");
    if (request->hash)
        printf("seed %llu hash %016llx\n", (unsigned long long)seed, (unsigned long long)hash);
}

_Static_assert(COUNT_LAST <= 64, "what a mode promises is a set of them");

int
main(int argc, char **argv)
{
    static struct sim_world world; /* large */
    struct request request = {.seed = 1, .histories = 100};
    const int stop = request_parse(argc, argv, &request);
    const time_t end = time(NULL) + (time_t)request.seconds;
    uint64_t promised = 0, done = 0;
    int status;

    if (stop != 0)
        return stop - 1;
    /* Arrays come and go by the thousand: freed memory stays mapped, or touching it again is what
     * most of the time goes to. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30); /* slower without, no more */
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    report_init();
    world_create(&world);
    world.cluster.trace = request.trace;
    while (request.seconds != 0 ? time(NULL) < end : done < request.histories)
        history_one(&world, &request, argv[0], done++);
    report_end();
    for (unsigned i = 0; i < sim_modes_count; ++i)
        if (request.mode == NULL || request.mode == &sim_modes[i])
            promised |= sim_modes[i].promised;
    printf("mode %s, seeds %llu to %llu\n", request.mode != NULL ? request.mode->name : "all",
           (unsigned long long)request.seed, (unsigned long long)(request.seed + done - 1));
    status = counts_print(world.cluster.counts, promised);
    world_destroy(&world);
    return status;
}
