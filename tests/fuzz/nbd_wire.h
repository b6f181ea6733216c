/*
 * nbd_wire.h: the whole NBD server between a byte string and an export in memory.
 *
 * The server, its loop and its tasks are the real ones; the loop stands on a backend that hands the
 * bytes to receives in pieces, takes what is sent, and lets time pass when nothing else happens.
 * Every run checks:
 *
 *   W1. The export is only asked for what its table promises.
 *   W2. What the server sends is a sequence of well-formed messages, each answer is to a request
 *       whose bytes came in whole, and says a read's data as the export had it.
 *   W3. A run comes to its end: nothing waits for what never comes.
 *   W4. Afterwards all memory is back, and the server serves the next run.
 */
#ifndef STRIPELOG_TESTS_NBD_WIRE_H
#define STRIPELOG_TESTS_NBD_WIRE_H

#include "fuzz.h"

struct nbd_wire_input {
    const uint8_t *data; /* all that the client sends */
    size_t bytes;
    /* How much a receive gets and a send takes at most; 0: all there is. */
    size_t receive_piece, send_piece;
};

void nbd_wire_run(const struct nbd_wire_input *input);

#endif
