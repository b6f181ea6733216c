/*
 * handshake.h: the negotiation of one connection, without its socket.
 *
 * Pure: an option and its data go in, the bytes to answer and what comes next come out. There is
 * one export, called "" and by its name; LIST shows "".
 */
#ifndef STRIPELOG_NBD_HANDSHAKE_H
#define STRIPELOG_NBD_HANDSHAKE_H

#include "nbd/protocol.h"

/* Longest option data that is looked at; up to the second limit a longer one gets ERR_TOO_BIG,
 * beyond that the connection ends. */
#define NBD_OPTION_BYTES_MAX      (12u << 10)
#define NBD_OPTION_SKIP_BYTES_MAX (64u << 10)

/* Enough for the answer to any one option: all the infos, one of them with the longest name. */
#define NBD_HANDSHAKE_REPLY_BYTES_MAX (NBD_NAME_BYTES_MAX + 256)

enum nbd_next {
    NBD_NEXT_OPTION,
    NBD_NEXT_TRANSMISSION,
    NBD_NEXT_CLOSE, /* after the answer, if there is one */
};

struct nbd_handshake {
    const char *name;                /* borrowed: the export's second name */
    const struct nbd_target *target; /* borrowed */
    struct nbd_session session;      /* what is agreed on so far */
    bool allocation_of_name;         /* base:allocation was set for the second name */
};

/* The reply's bytes, at most NBD_HANDSHAKE_REPLY_BYTES_MAX. */
struct nbd_reply_buffer {
    uint8_t bytes[NBD_HANDSHAKE_REPLY_BYTES_MAX];
    size_t used;
};

void nbd_handshake_init(struct nbd_handshake *handshake, const char *name,
                        const struct nbd_target *target);
/* The client's first four bytes. -EPROTO: flags that were not offered. */
int nbd_handshake_client_flags(struct nbd_handshake *handshake,
                               const uint8_t at[NBD_CLIENT_FLAGS_BYTES]) must_check;
/* data holds header->length bytes when that is at most NBD_OPTION_BYTES_MAX and is not looked at
 * otherwise. reply is emptied first. */
enum nbd_next nbd_handshake_option(struct nbd_handshake *handshake,
                                   const struct nbd_option_header *header, const uint8_t *data,
                                   struct nbd_reply_buffer *reply) must_check;

#endif
