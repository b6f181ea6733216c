/*
 * handshake.c: what is answered to each option.
 *
 * An option that is not known, or too long, is answered with an error and leaves the negotiation
 * as it was; only ABORT, a name that EXPORT_NAME cannot refuse politely (that option has no error
 * reply) and absurd lengths end the connection.
 */
#include "nbd/handshake.h"

/* Which of its names an export was asked by. */
enum export_name { EXPORT_DEFAULT, EXPORT_NAMED, EXPORT_UNKNOWN };

void
nbd_handshake_init(struct nbd_handshake *handshake, const char *name,
                   const struct nbd_target *target)
{
    assert(strlen(name) <= NBD_NAME_BYTES_MAX);
    *handshake = (struct nbd_handshake){.name = name, .target = target};
}

int
nbd_handshake_client_flags(struct nbd_handshake *handshake,
                           const uint8_t at[NBD_CLIENT_FLAGS_BYTES])
{
    const uint32_t flags = load_be32(at);

    if ((flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) != 0)
        return -EPROTO;
    handshake->session.no_zeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
    return 0;
}

static enum export_name
export_find(const struct nbd_handshake *handshake, const struct nbd_string *name)
{
    if (name->length == 0)
        return EXPORT_DEFAULT;
    return nbd_string_equals(name, handshake->name) ? EXPORT_NAMED : EXPORT_UNKNOWN;
}

/* Room for length more bytes of the reply. */
static uint8_t *
reply_add(struct nbd_reply_buffer *reply, size_t length)
{
    uint8_t *at = reply->bytes + reply->used;

    assert(length <= sizeof reply->bytes - reply->used);
    reply->used += length;
    return at;
}

/* A reply's header; returns room for its data. */
static uint8_t *
reply_begin(struct nbd_reply_buffer *reply, uint32_t option, uint32_t type, uint32_t length)
{
    uint8_t *at = reply_add(reply, NBD_OPTION_REPLY_HEADER_BYTES + length);

    store_be64(at, NBD_OPTION_REPLY_MAGIC);
    store_be32(at + 8, option);
    store_be32(at + 12, type);
    store_be32(at + 16, length);
    return at + NBD_OPTION_REPLY_HEADER_BYTES;
}

/* An error with words for a person; the negotiation goes on. */
static enum nbd_next
reply_error(struct nbd_reply_buffer *reply, uint32_t option, uint32_t type, const char *text)
{
    const uint32_t length = (uint32_t)strlen(text);

    assert(NBD_REP_IS_ERROR(type));
    memcpy(reply_begin(reply, option, type, length), text, length);
    return NBD_NEXT_OPTION;
}

static enum nbd_next
reply_ack(struct nbd_reply_buffer *reply, uint32_t option, enum nbd_next next)
{
    (void)reply_begin(reply, option, NBD_REP_ACK, 0); /* it has no data */
    return next;
}

/* A context holds for the name it was set with. */
static void
session_enter(struct nbd_handshake *handshake, enum export_name name)
{
    if (handshake->allocation_of_name != (name == EXPORT_NAMED))
        handshake->session.allocation = false;
}

static enum nbd_next
option_export_name(struct nbd_handshake *handshake, const uint8_t *data, uint32_t length,
                   struct nbd_reply_buffer *reply)
{
    const struct nbd_string asked = {(const char *)data, length};
    const enum export_name name = export_find(handshake, &asked);
    uint8_t *at;

    if (name == EXPORT_UNKNOWN)
        return NBD_NEXT_CLOSE;
    session_enter(handshake, name);
    at = reply_add(reply, 10);
    store_be64(at, handshake->target->size_bytes);
    store_be16(at + 8, nbd_transmission_flags(&handshake->session, handshake->target));
    if (!handshake->session.no_zeroes)
        memset(reply_add(reply, NBD_EXPORT_NAME_ZEROES), 0, NBD_EXPORT_NAME_ZEROES);
    return NBD_NEXT_TRANSMISSION;
}

static enum nbd_next
option_list(uint32_t length, struct nbd_reply_buffer *reply)
{
    if (length != 0)
        return reply_error(reply, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "LIST has no data");
    store_be32(reply_begin(reply, NBD_OPT_LIST, NBD_REP_SERVER, 4), 0);
    return reply_ack(reply, NBD_OPT_LIST, NBD_NEXT_OPTION);
}

/* INFO and GO: the same answer, but GO goes. */
static enum nbd_next
option_info(struct nbd_handshake *handshake, uint32_t option, const uint8_t *data, uint32_t length,
            struct nbd_reply_buffer *reply)
{
    const struct nbd_target *target = handshake->target;
    struct nbd_info_option info;
    enum export_name name;
    uint8_t *at;

    if (nbd_info_option_decode(data, length, &info) < 0)
        return reply_error(reply, option, NBD_REP_ERR_INVALID, "lengths do not agree");
    name = export_find(handshake, &info.name);
    if (name == EXPORT_UNKNOWN)
        return reply_error(reply, option, NBD_REP_ERR_UNKNOWN, "no export of that name");

    at = reply_begin(reply, option, NBD_REP_INFO, 12);
    store_be16(at, NBD_INFO_EXPORT);
    store_be64(at + 2, target->size_bytes);
    store_be16(at + 10, nbd_transmission_flags(&handshake->session, target));
    if (info.wants_name) {
        at = reply_begin(reply, option, NBD_REP_INFO, 2 + info.name.length);
        store_be16(at, NBD_INFO_NAME);
        memcpy(at + 2, info.name.at, info.name.length);
    }
    if (info.wants_block_size) {
        at = reply_begin(reply, option, NBD_REP_INFO, 14);
        store_be16(at, NBD_INFO_BLOCK_SIZE);
        store_be32(at + 2, NBD_BLOCK_MINIMUM);
        store_be32(at + 6, NBD_BLOCK_PREFERRED);
        store_be32(at + 10, target->request_bytes_max);
    }
    if (option == NBD_OPT_INFO)
        return reply_ack(reply, option, NBD_NEXT_OPTION);
    session_enter(handshake, name);
    return reply_ack(reply, option, NBD_NEXT_TRANSMISSION);
}

static enum nbd_next
option_structured_reply(struct nbd_handshake *handshake, uint32_t length,
                        struct nbd_reply_buffer *reply)
{
    if (length != 0)
        return reply_error(reply, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                           "STRUCTURED_REPLY has no data");
    handshake->session.structured = true;
    return reply_ack(reply, NBD_OPT_STRUCTURED_REPLY, NBD_NEXT_OPTION);
}

static enum nbd_next
option_meta_context(struct nbd_handshake *handshake, uint32_t option, const uint8_t *data,
                    uint32_t length, struct nbd_reply_buffer *reply)
{
    const uint32_t context_length = sizeof NBD_CONTEXT_ALLOCATION - 1;
    const bool set = option == NBD_OPT_SET_META_CONTEXT;
    struct nbd_meta_option meta;
    struct nbd_string query;
    enum export_name name;
    bool chosen;
    uint8_t *at;

    if (set) /* a new choice replaces the old one, also when it fails */
        handshake->session.allocation = false;
    if (set && !handshake->session.structured)
        return reply_error(reply, option, NBD_REP_ERR_INVALID, "structured replies come first");
    if (nbd_meta_option_decode(data, length, &meta) < 0)
        return reply_error(reply, option, NBD_REP_ERR_INVALID, "lengths do not agree");
    name = export_find(handshake, &meta.name);
    if (name == EXPORT_UNKNOWN)
        return reply_error(reply, option, NBD_REP_ERR_UNKNOWN, "no export of that name");

    /* A list may ask for all, or for all in a namespace; a choice names what it wants. */
    chosen = !set && meta.query_count == 0;
    while (nbd_meta_next_query(&meta, &query))
        chosen |= nbd_string_equals(&query, NBD_CONTEXT_ALLOCATION) ||
                  (!set && nbd_string_equals(&query, "base:"));
    if (chosen) {
        at = reply_begin(reply, option, NBD_REP_META_CONTEXT, 4 + context_length);
        store_be32(at, set ? NBD_CONTEXT_ALLOCATION_ID : 0);
        memcpy(at + 4, NBD_CONTEXT_ALLOCATION, context_length);
    }
    if (set) {
        handshake->session.allocation = chosen;
        handshake->allocation_of_name = name == EXPORT_NAMED;
    }
    return reply_ack(reply, option, NBD_NEXT_OPTION);
}

enum nbd_next
nbd_handshake_option(struct nbd_handshake *handshake, const struct nbd_option_header *header,
                     const uint8_t *data, struct nbd_reply_buffer *reply)
{
    reply->used = 0;
    if (header->length > NBD_OPTION_SKIP_BYTES_MAX)
        return NBD_NEXT_CLOSE;
    if (header->length > NBD_OPTION_BYTES_MAX)
        return header->option == NBD_OPT_EXPORT_NAME
                   ? NBD_NEXT_CLOSE
                   : reply_error(reply, header->option, NBD_REP_ERR_TOO_BIG, "option too long");

    switch (header->option) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(handshake, data, header->length, reply);
    case NBD_OPT_ABORT:
        return reply_ack(reply, NBD_OPT_ABORT, NBD_NEXT_CLOSE);
    case NBD_OPT_LIST:
        return option_list(header->length, reply);
    case NBD_OPT_STARTTLS:
        return reply_error(reply, NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP, "no TLS here");
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(handshake, header->option, data, header->length, reply);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured_reply(handshake, header->length, reply);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta_context(handshake, header->option, data, header->length, reply);
    default:
        return reply_error(reply, header->option, NBD_REP_ERR_UNSUP, "option not known");
    }
}
