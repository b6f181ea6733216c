/* sim_report.c: see sim_report.h. */
#include "sim_report.h"
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

/* A history takes milliseconds; this is for machines that are busy and for sanitizers. */
#define HISTORY_SECONDS_MAX 120

static char replay[512];

static void
on_signal(int number)
{
    const char *what = number == SIGALRM   ? "FAIL: hang: the history does not end (wall time)\n"
                       : number == SIGABRT ? "FAIL: assertion failed\n"
                                           : "FAIL: the program crashed\n";

    /* Nothing can be done about a failing write to stderr here. */
    if (write(STDERR_FILENO, what, strlen(what)) < 0 ||
        write(STDERR_FILENO, replay, strlen(replay)) < 0)
        _exit(1);
    _exit(1);
}

void
report_init(void)
{
    const int signals[] = {SIGABRT, SIGALRM, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    static char stack[64 * 1024];
    const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};

    (void)sigaltstack(&alternate, NULL); /* without it only a stack overflow stays unnamed */
    for (unsigned i = 0; i < ARRAY_LEN(signals); ++i) {
#if defined(__SANITIZE_ADDRESS__)
        if (signals[i] != SIGABRT && signals[i] != SIGALRM)
            continue; /* the sanitizer tells more */
#endif
        (void)sigaction(signals[i], &action, NULL);
    }
}

void
report_begin(const char *program, const char *mode, uint64_t seed)
{
    const struct itimerval limit = {.it_value.tv_sec = HISTORY_SECONDS_MAX};

    (void)snprintf(replay, sizeof replay,
                   "seed %llu\nreplay: %s --mode %s --seed %llu --histories 1 --trace\n",
                   (unsigned long long)seed, program, mode, (unsigned long long)seed);
    (void)setitimer(ITIMER_REAL, &limit, NULL); /* without it only a hang stays unnamed */
}

void
report_end(void)
{
    const struct itimerval off = {.it_value.tv_sec = 0};

    (void)setitimer(ITIMER_REAL, &off, NULL);
    replay[0] = '\0';
}

void
sim_fail(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fputs("FAIL: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n%s", replay);
    fflush(stderr);
    _exit(1);
}
