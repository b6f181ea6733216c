/*
 * sim_report.h: how a history fails.
 *
 * A failure prints what was found, the seed and the one command that replays it, and ends the
 * process with status 1. Failed assertions and crashes of the engine itself do the same. What is to
 * be replayed is the only mutable static in the simulator: signal handlers have no argument to
 * carry it.
 */
#ifndef STRIPELOG_SIM_REPORT_H
#define STRIPELOG_SIM_REPORT_H

#include "base/base.h"

/* Installs the handlers. */
void report_init(void);
/* From here on this is the history that runs; also starts its allowance of wall time. */
void report_begin(const char *program, const char *mode, uint64_t seed);
void report_end(void);

/* "FAIL: text", seed, command; exit status 1. */
_Noreturn void sim_fail(const char *format, ...) printf_like(1, 2);

#endif
