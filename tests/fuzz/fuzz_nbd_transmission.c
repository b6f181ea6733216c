/*
 * fuzz_nbd_transmission.c: any bytes from a client that has been through the handshake.
 *
 *   input    control (2 bytes) | what the client sends
 *   control  bits 0-3: size of a receive, 0 all, else a power of two; bits 4-7: of a send
 *            bits 8-9: nothing agreed on; structured replies; and base:allocation, too
 *            bit 10: 28 bytes each are a request's header, whose magic is put right, and after
 *            those of a WRITE its payload follows, so that commands are reached at all
 */
#include "nbd_wire.h"

#include "nbd/protocol.h"

#define PREFIX_BYTES_MAX 128

static size_t
put_option(uint8_t *at, uint32_t option, const void *data, uint32_t length)
{
    store_be64(at, NBD_OPTION_MAGIC);
    store_be32(at + 8, option);
    store_be32(at + 12, length);
    memcpy(at + 16, data, length);
    return 16 + length;
}

static size_t
put_handshake(uint8_t *at, unsigned agreed)
{
    static const uint8_t meta[] = "\0\0\0\0\0\0\0\1\0\0\0\x0f"
                                  "base:allocation";
    size_t used = 4;

    store_be32(at, 3);
    if (agreed >= 1)
        used += put_option(at + used, NBD_OPT_STRUCTURED_REPLY, "", 0);
    if (agreed >= 2)
        used += put_option(at + used, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta - 1);
    return used + put_option(at + used, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
}

static void
put_right(uint8_t *data, size_t size)
{
    size_t at = 0;

    while (size - at >= NBD_REQUEST_BYTES) {
        store_be32(data + at, NBD_REQUEST_MAGIC);
        if (load_be16(data + at + 6) == NBD_CMD_WRITE)
            at += min_u64(load_be32(data + at + 24), size - at - NBD_REQUEST_BYTES);
        at += NBD_REQUEST_BYTES;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t prefix_bytes;
    uint8_t *copy;

    if (size < 2)
        return 0;
    copy = malloc(PREFIX_BYTES_MAX + size);
    promise(copy != NULL);
    prefix_bytes = put_handshake(copy, data[1] & 3);
    promise(prefix_bytes <= PREFIX_BYTES_MAX);
    memcpy(copy + prefix_bytes, data + 2, size - 2);
    if (data[1] & 4)
        put_right(copy + prefix_bytes, size - 2);
    nbd_wire_run(&(const struct nbd_wire_input){
        .data = copy,
        .bytes = prefix_bytes + size - 2,
        .receive_piece = data[0] & 15 ? (size_t)1 << ((data[0] & 15) - 1) : 0,
        .send_piece = data[0] >> 4 ? (size_t)13 << (data[0] >> 4) : 0,
    });
    free(copy);
    return 0;
}
