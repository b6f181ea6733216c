/*
 * bare.h: what the bare programs share: how they end, and what they measure. BARE_PROGRAM is the
 * program's name.
 */
#ifndef STRIPELOG_BENCH_BARE_H
#define STRIPELOG_BENCH_BARE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static inline _Noreturn void
die(const char *what, int error)
{
    fprintf(stderr, BARE_PROGRAM ": %s: %s\n", what, strerror(error));
    exit(1);
}

static inline double
now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Of this process so far, in the kernel too. */
static inline double
cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

#endif
