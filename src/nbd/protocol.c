/*
 * protocol.c: NBD's bytes to structs and back, and the rules about a single request.
 *
 * Every length that comes from the wire is compared with what is there before it is used:
 * `length - at < need`, never `at + need > length`, so that nothing can wrap.
 */
#include "nbd/protocol.h"

/* --- The handshake's bytes ----------------------------------------------------------------- */

void
nbd_greeting_encode(uint8_t at[NBD_GREETING_BYTES])
{
    store_be64(at, NBD_MAGIC);
    store_be64(at + 8, NBD_OPTION_MAGIC);
    store_be16(at + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

int
nbd_option_header_decode(const uint8_t at[NBD_OPTION_HEADER_BYTES], struct nbd_option_header *out)
{
    if (load_be64(at) != NBD_OPTION_MAGIC)
        return -EPROTO;
    out->option = load_be32(at + 8);
    out->length = load_be32(at + 12);
    return 0;
}

/* A length and as many bytes, off the front of what is left. */
static int
string_take(const uint8_t **data, uint32_t *left, struct nbd_string *out)
{
    uint32_t length;

    if (*left < 4)
        return -EINVAL;
    length = load_be32(*data);
    if (length > *left - 4 || length > NBD_NAME_BYTES_MAX)
        return -EINVAL;
    out->at = (const char *)*data + 4;
    out->length = length;
    *data += 4 + length;
    *left -= 4 + length;
    return 0;
}

int
nbd_info_option_decode(const uint8_t *data, uint32_t length, struct nbd_info_option *out)
{
    uint32_t left = length;
    unsigned count;

    *out = (struct nbd_info_option){0};
    if (string_take(&data, &left, &out->name) < 0 || left < 2)
        return -EINVAL;
    count = load_be16(data);
    if (left - 2 != 2 * count)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        const unsigned info = load_be16(data + 2 + 2 * i);

        out->wants_name |= info == NBD_INFO_NAME;
        out->wants_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    return 0;
}

int
nbd_meta_option_decode(const uint8_t *data, uint32_t length, struct nbd_meta_option *out)
{
    uint32_t left = length;
    struct nbd_string query;

    *out = (struct nbd_meta_option){0};
    if (string_take(&data, &left, &out->name) < 0 || left < 4)
        return -EINVAL;
    out->query_count = load_be32(data);
    out->queries = data += 4;
    out->queries_bytes = left -= 4;
    for (uint32_t i = 0; i < out->query_count; i++)
        if (string_take(&data, &left, &query) < 0)
            return -EINVAL;
    return left == 0 ? 0 : -EINVAL;
}

bool
nbd_meta_next_query(struct nbd_meta_option *meta, struct nbd_string *query)
{
    int status;

    if (meta->query_count == 0)
        return false;
    meta->query_count--;
    status = string_take(&meta->queries, &meta->queries_bytes, query);
    assert(status == 0);
    return true;
}

bool
nbd_string_equals(const struct nbd_string *string, const char *text)
{
    return string->length == strlen(text) && memcmp(string->at, text, string->length) == 0;
}

/* --- The transmission's bytes -------------------------------------------------------------- */

int
nbd_request_decode(const uint8_t at[NBD_REQUEST_BYTES], struct nbd_request_header *out)
{
    if (load_be32(at) != NBD_REQUEST_MAGIC)
        return -EPROTO;
    out->flags = load_be16(at + 4);
    out->command = load_be16(at + 6);
    memcpy(&out->cookie, at + 8, sizeof out->cookie);
    out->offset = load_be64(at + 16);
    out->length = load_be32(at + 24);
    return 0;
}

/* The flags a command may carry. FUA is allowed everywhere, as the protocol says, and means
 * something for changes only. */
static unsigned
flags_allowed(enum nbd_command command, const struct nbd_session *session)
{
    switch (command) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA | (session->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

/* The error of a request, or NBD_SUCCESS when there is nothing against it. */
static enum nbd_error
request_check(const struct nbd_request_header *request, const struct nbd_session *session,
              const struct nbd_target *target)
{
    const bool changes = request->command == NBD_CMD_WRITE || request->command == NBD_CMD_TRIM ||
                         request->command == NBD_CMD_WRITE_ZEROES;
    const bool transfers = request->command == NBD_CMD_READ || request->command == NBD_CMD_WRITE;

    if ((request->flags & ~flags_allowed(request->command, session)) != 0)
        return NBD_EINVAL;
    if (transfers && request->length > target->request_bytes_max)
        return NBD_EINVAL;
    if (request->command == NBD_CMD_FLUSH)
        return NBD_SUCCESS;
    if (request->command == NBD_CMD_BLOCK_STATUS && (!session->allocation || request->length == 0))
        return NBD_EINVAL;
    if (changes && target->readonly)
        return NBD_EPERM;
    if (request->offset > target->size_bytes ||
        request->length > target->size_bytes - request->offset)
        /* The protocol wants ENOSPC for what would grow the export and EINVAL for the rest. */
        return changes && request->command != NBD_CMD_TRIM ? NBD_ENOSPC : NBD_EINVAL;
    return NBD_SUCCESS;
}

struct nbd_decision
nbd_request_decide(const struct nbd_request_header *request, const struct nbd_session *session,
                   const struct nbd_target *target)
{
    struct nbd_decision decision = {.verdict = NBD_RUN};

    switch (request->command) {
    case NBD_CMD_DISC:
        decision.verdict = NBD_CLOSE;
        return decision;
    case NBD_CMD_WRITE:
        decision.payload_bytes = request->length;
        break;
    case NBD_CMD_READ:
    case NBD_CMD_FLUSH:
    case NBD_CMD_TRIM:
    case NBD_CMD_WRITE_ZEROES:
    case NBD_CMD_BLOCK_STATUS:
        break;
    default:
        decision.verdict = NBD_ANSWER;
        decision.error = NBD_EINVAL;
        return decision;
    }

    decision.error = request_check(request, session, target);
    if (decision.error != NBD_SUCCESS) {
        decision.verdict = decision.payload_bytes > NBD_SKIP_BYTES_MAX ? NBD_CLOSE : NBD_ANSWER;
        return decision;
    }
    /* A read-only export has nothing to flush. No command but flush means something for no bytes;
     * the protocol leaves it open and asks not to disconnect. */
    if (request->command == NBD_CMD_FLUSH ? target->readonly : request->length == 0)
        decision.verdict = NBD_ANSWER;
    return decision;
}

enum nbd_error
nbd_error_of(int error)
{
    switch (error < 0 ? -error : error) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static size_t
simple_reply_encode(uint8_t *at, uint64_t cookie, enum nbd_error error)
{
    store_be32(at, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(at + 4, error);
    memcpy(at + 8, &cookie, sizeof cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

/* The only and therefore last chunk of its reply. */
static size_t
chunk_header_encode(uint8_t *at, uint64_t cookie, uint16_t type, uint32_t length)
{
    store_be32(at, NBD_CHUNK_MAGIC);
    store_be16(at + 4, NBD_CHUNK_DONE);
    store_be16(at + 6, type);
    memcpy(at + 8, &cookie, sizeof cookie);
    store_be32(at + 16, length);
    return NBD_CHUNK_HEADER_BYTES;
}

size_t
nbd_read_reply_encode(uint8_t *at, const struct nbd_session *session, uint64_t cookie,
                      uint64_t offset, uint32_t length)
{
    size_t used;

    if (!session->structured)
        return simple_reply_encode(at, cookie, NBD_SUCCESS);
    used = chunk_header_encode(at, cookie, NBD_CHUNK_OFFSET_DATA, 8 + length);
    store_be64(at + used, offset);
    return used + 8;
}

size_t
nbd_answer_encode(uint8_t *at, const struct nbd_session *session,
                  const struct nbd_request_header *request, enum nbd_error error)
{
    /* Chunks are a must for reads and block status only, and simple replies are shorter. */
    const bool chunked = session->structured && (request->command == NBD_CMD_READ ||
                                                 request->command == NBD_CMD_BLOCK_STATUS);
    size_t used;

    if (!chunked)
        return simple_reply_encode(at, request->cookie, error);
    if (error == NBD_SUCCESS)
        return chunk_header_encode(at, request->cookie, NBD_CHUNK_NONE, 0);
    used = chunk_header_encode(at, request->cookie, NBD_CHUNK_ERROR, 6);
    store_be32(at + used, error);
    store_be16(at + used + 4, 0); /* no text */
    return used + 6;
}

size_t
nbd_block_status_encode(uint8_t *at, uint64_t cookie, uint32_t length)
{
    const size_t used = chunk_header_encode(at, cookie, NBD_CHUNK_BLOCK_STATUS, 12);

    store_be32(at + used, NBD_CONTEXT_ALLOCATION_ID);
    store_be32(at + used + 4, length);
    store_be32(at + used + 8, 0); /* neither a hole nor known to be zero */
    return used + 12;
}

uint16_t
nbd_transmission_flags(const struct nbd_session *session, const struct nbd_target *target)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN;

    if (target->readonly)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    if (session->structured)
        flags |= NBD_FLAG_SEND_DF;
    return (uint16_t)flags;
}
