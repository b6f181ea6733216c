/*
 * fuzz_nbd_handshake.c: any bytes from a client, from its flags on.
 *
 *   input    control (1 byte) | what the client sends
 *   control  bits 0-3: size of a receive, 0 all, else a power of two; bits 4-7: of a send
 */
#include "nbd_wire.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    nbd_wire_run(&(const struct nbd_wire_input){
        .data = data + 1,
        .bytes = size - 1,
        .receive_piece = data[0] & 15 ? (size_t)1 << ((data[0] & 15) - 1) : 0,
        .send_piece = data[0] >> 4 ? (size_t)13 << (data[0] >> 4) : 0,
    });
    return 0;
}
