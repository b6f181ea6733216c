/*
 * fuzz.h: what every fuzz target shares.
 */
#ifndef STRIPELOG_TESTS_FUZZ_H
#define STRIPELOG_TESTS_FUZZ_H

#include "base/base.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the module under test promises for every input. The abort is the finding. */
#define promise(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

#endif
