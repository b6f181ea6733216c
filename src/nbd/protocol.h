/*
 * protocol.h: the NBD protocol's numbers, and bytes <-> structs.
 *
 * Pure: no I/O, no allocation, no clock. Everything on the wire is big-endian. A cookie is the
 * client's own mark on a request; it is never interpreted, so it keeps the wire's byte order.
 *
 *   server's greeting   8 "NBDMAGIC"  8 "IHAVEOPT"  2 handshake flags
 *   client's answer     4 flags
 *   option              8 "IHAVEOPT"  4 option  4 length  data
 *   option reply        8 magic  4 option  4 reply type  4 length  data
 *   request             4 magic  2 flags  2 command  8 cookie  8 offset  4 length  [write: data]
 *   simple reply        4 magic  4 error  8 cookie  [read: data]
 *   reply chunk         4 magic  2 flags  2 type  8 cookie  4 length  data
 */
#ifndef STRIPELOG_NBD_PROTOCOL_H
#define STRIPELOG_NBD_PROTOCOL_H

#include "base/base.h"

#define NBD_MAGIC              0x4e42444d41474943ull /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ull
#define NBD_REQUEST_MAGIC      0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC        0x668e33efu

#define NBD_GREETING_BYTES            18
#define NBD_CLIENT_FLAGS_BYTES        4
#define NBD_OPTION_HEADER_BYTES       16
#define NBD_OPTION_REPLY_HEADER_BYTES 20
#define NBD_REQUEST_BYTES             28
#define NBD_SIMPLE_REPLY_BYTES        16
#define NBD_CHUNK_HEADER_BYTES        20
#define NBD_EXPORT_NAME_ZEROES        124

/* The protocol's longest string: export names, meta context queries. */
#define NBD_NAME_BYTES_MAX 4096u

#define NBD_BLOCK_MINIMUM   1u
#define NBD_BLOCK_PREFERRED 4096u
#define NBD_BLOCK_MAXIMUM   (32u << 20)
/* A write that is refused is read over up to this length; a longer one ends the connection. */
#define NBD_SKIP_BYTES_MAX (64u << 20)

/* The handshake's flags, the same bits in both directions. */
#define NBD_FLAG_FIXED_NEWSTYLE 0x1u
#define NBD_FLAG_NO_ZEROES      0x2u

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK             1u
#define NBD_REP_SERVER          2u
#define NBD_REP_INFO            3u
#define NBD_REP_META_CONTEXT    4u
#define NBD_REP_ERR_UNSUP       0x80000001u
#define NBD_REP_ERR_INVALID     0x80000003u
#define NBD_REP_ERR_UNKNOWN     0x80000006u
#define NBD_REP_ERR_TOO_BIG     0x80000009u
#define NBD_REP_IS_ERROR(reply) (((reply)&0x80000000u) != 0)

#define NBD_INFO_EXPORT     0u
#define NBD_INFO_NAME       1u
#define NBD_INFO_BLOCK_SIZE 3u

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS         0x0001u
#define NBD_FLAG_READ_ONLY         0x0002u
#define NBD_FLAG_SEND_FLUSH        0x0004u
#define NBD_FLAG_SEND_FUA          0x0008u
#define NBD_FLAG_SEND_TRIM         0x0020u
#define NBD_FLAG_SEND_WRITE_ZEROES 0x0040u
#define NBD_FLAG_SEND_DF           0x0080u
#define NBD_FLAG_CAN_MULTI_CONN    0x0100u
#define NBD_FLAG_SEND_FAST_ZERO    0x0800u

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA       0x01u
#define NBD_CMD_FLAG_NO_HOLE   0x02u
#define NBD_CMD_FLAG_DF        0x04u
#define NBD_CMD_FLAG_REQ_ONE   0x08u
#define NBD_CMD_FLAG_FAST_ZERO 0x10u

#define NBD_CHUNK_DONE         0x1u
#define NBD_CHUNK_NONE         0u
#define NBD_CHUNK_OFFSET_DATA  1u
#define NBD_CHUNK_BLOCK_STATUS 5u
#define NBD_CHUNK_ERROR        0x8001u

/* The errors the protocol knows; their numbers are Linux's. */
enum nbd_error {
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/* The only meta context, and the number replies call it by. */
#define NBD_CONTEXT_ALLOCATION    "base:allocation"
#define NBD_CONTEXT_ALLOCATION_ID 1u

/* Big-endian, unaligned. */
static inline uint16_t
load_be16(const void *at)
{
    uint16_t v;
    memcpy(&v, at, sizeof v);
    return be16toh(v);
}

static inline uint32_t
load_be32(const void *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return be32toh(v);
}

static inline uint64_t
load_be64(const void *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return be64toh(v);
}

static inline void
store_be16(void *at, uint16_t value)
{
    value = htobe16(value);
    memcpy(at, &value, sizeof value);
}

static inline void
store_be32(void *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static inline void
store_be64(void *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

/* --- The handshake's bytes ----------------------------------------------------------------- */

struct nbd_option_header {
    uint32_t option;
    uint32_t length;
};

/* A string on the wire: points into the option's data, no terminator. */
struct nbd_string {
    const char *at;
    uint32_t length;
};

/* INFO and GO. */
struct nbd_info_option {
    struct nbd_string name;
    bool wants_name;
    bool wants_block_size;
};

/* LIST_META_CONTEXT and SET_META_CONTEXT. */
struct nbd_meta_option {
    struct nbd_string name;
    uint32_t query_count;
    const uint8_t *queries; /* what is left of the data, for nbd_meta_next_query */
    uint32_t queries_bytes;
};

void nbd_greeting_encode(uint8_t at[NBD_GREETING_BYTES]);
/* -EPROTO: not an option. */
int nbd_option_header_decode(const uint8_t at[NBD_OPTION_HEADER_BYTES],
                             struct nbd_option_header *out) must_check;
/* -EINVAL: lengths do not agree, or the name is too long. */
int nbd_info_option_decode(const uint8_t *data, uint32_t length,
                           struct nbd_info_option *out) must_check;
/* Checks every query too, so that nbd_meta_next_query cannot fail. -EINVAL as above. */
int nbd_meta_option_decode(const uint8_t *data, uint32_t length,
                           struct nbd_meta_option *out) must_check;
/* The next query; false after the last. */
bool nbd_meta_next_query(struct nbd_meta_option *meta, struct nbd_string *query);
bool nbd_string_equals(const struct nbd_string *string, const char *text);

/* --- The transmission's bytes -------------------------------------------------------------- */

/* What the handshake agreed on. */
struct nbd_session {
    bool no_zeroes;
    bool structured; /* replies in chunks */
    bool allocation; /* BLOCK_STATUS with base:allocation */
};

/* What requests are held against. */
struct nbd_target {
    uint64_t size_bytes;
    uint32_t request_bytes_max; /* of reads and writes */
    bool readonly;
};

struct nbd_request_header {
    uint16_t flags;
    uint16_t command;
    uint64_t cookie; /* in the wire's byte order */
    uint64_t offset;
    uint32_t length;
};

enum nbd_verdict {
    NBD_RUN,    /* in range and allowed: the export decides */
    NBD_ANSWER, /* answer with `error`, without asking the export, after the payload is skipped */
    NBD_CLOSE,  /* the end of this connection, without an answer */
};

struct nbd_decision {
    enum nbd_verdict verdict;
    enum nbd_error error;
    uint32_t payload_bytes; /* that follow the header */
};

/* -EPROTO: not a request; what follows cannot be understood. */
int nbd_request_decode(const uint8_t at[NBD_REQUEST_BYTES],
                       struct nbd_request_header *out) must_check;
/* Every rule about one request that needs no export: commands, flags, ranges, read-only. */
struct nbd_decision nbd_request_decide(const struct nbd_request_header *request,
                                       const struct nbd_session *session,
                                       const struct nbd_target *target) must_check;

/* errno (negative or not) to what goes on the wire; what the protocol has no word for is EIO. */
enum nbd_error nbd_error_of(int error);

/* Longest of the encodings below. */
#define NBD_REPLY_BYTES_MAX 40

/* What goes before the data of a successful read; returns its length. */
size_t nbd_read_reply_encode(uint8_t *at, const struct nbd_session *session, uint64_t cookie,
                             uint64_t offset, uint32_t length);
/* A whole answer without data; returns its length. */
size_t nbd_answer_encode(uint8_t *at, const struct nbd_session *session,
                         const struct nbd_request_header *request, enum nbd_error error);
/* A whole answer that says: all of it is data. */
size_t nbd_block_status_encode(uint8_t *at, uint64_t cookie, uint32_t length);

/* The transmission flags of an export. */
uint16_t nbd_transmission_flags(const struct nbd_session *session, const struct nbd_target *target);

#endif
