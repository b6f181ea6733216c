/*
 * The NBD protocol's pure parts: decoding within bounds, the rules about requests over all their
 * combinations, the replies' bytes, and the negotiation option by option.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "nbd/handshake.h"

static uint8_t *
put_string(uint8_t *at, const char *text)
{
    store_be32(at, (uint32_t)strlen(text));
    memcpy(at + 4, text, strlen(text));
    return at + 4 + strlen(text);
}

/* A copy in a block of its own length, so that the sanitizers see every byte read past it. */
static uint8_t *
exact_copy(const uint8_t *data, size_t length)
{
    uint8_t *const copy = malloc(length ? length : 1);

    assert_non_null(copy);
    if (length)
        memcpy(copy, data, length);
    return copy;
}

/* --- Decoding ------------------------------------------------------------------------------- */

static void
info_option_of_any_wrong_length_is_refused(void **state)
{
    uint8_t data[64];
    uint8_t *end = put_string(data, "array");
    struct nbd_info_option info;

    store_be16(end, 2);
    store_be16(end + 2, NBD_INFO_NAME);
    store_be16(end + 4, NBD_INFO_BLOCK_SIZE);
    end += 6;
    for (size_t length = 0; length <= sizeof data; length++) {
        uint8_t *const copy = exact_copy(data, length);

        assert_int_equal(nbd_info_option_decode(copy, (uint32_t)length, &info),
                         length == (size_t)(end - data) ? 0 : -EINVAL);
        free(copy);
    }
    assert_int_equal(nbd_info_option_decode(data, (uint32_t)(end - data), &info), 0);
    assert_true(nbd_string_equals(&info.name, "array"));
    assert_true(info.wants_name);
    assert_true(info.wants_block_size);
}

static void
info_option_with_a_hostile_name_length_is_refused(void **state)
{
    static const uint32_t lengths[] = {7, 8, 4097, 0x7fffffff, 0x80000000, 0xfffffffb, 0xffffffff};
    uint8_t data[12] = {0};
    struct nbd_info_option info;

    for (unsigned i = 0; i < ARRAY_LEN(lengths); i++) {
        store_be32(data, lengths[i]);
        assert_int_equal(nbd_info_option_decode(data, sizeof data, &info), -EINVAL);
    }
}

static void
names_have_up_to_4096_bytes(void **state)
{
    uint8_t *const data = calloc(1, 4 + 4097 + 2);
    struct nbd_info_option info;

    store_be32(data, 4096);
    assert_int_equal(nbd_info_option_decode(data, 4 + 4096 + 2, &info), 0);
    assert_int_equal(info.name.length, 4096);
    store_be32(data, 4097);
    assert_int_equal(nbd_info_option_decode(data, 4 + 4097 + 2, &info), -EINVAL);
    free(data);
}

static void
meta_option_of_any_wrong_length_is_refused(void **state)
{
    uint8_t data[96];
    uint8_t *end = put_string(data, "array");
    struct nbd_meta_option meta;
    struct nbd_string query;

    store_be32(end, 3);
    end = put_string(end + 4, "base:allocation");
    end = put_string(end, "");
    end = put_string(end, "x");
    for (size_t length = 0; length <= sizeof data; length++) {
        uint8_t *const copy = exact_copy(data, length);

        assert_int_equal(nbd_meta_option_decode(copy, (uint32_t)length, &meta),
                         length == (size_t)(end - data) ? 0 : -EINVAL);
        free(copy);
    }
    assert_int_equal(nbd_meta_option_decode(data, (uint32_t)(end - data), &meta), 0);
    assert_true(nbd_meta_next_query(&meta, &query));
    assert_true(nbd_string_equals(&query, "base:allocation"));
    assert_true(nbd_meta_next_query(&meta, &query));
    assert_true(nbd_string_equals(&query, ""));
    assert_true(nbd_meta_next_query(&meta, &query));
    assert_true(nbd_string_equals(&query, "x"));
    assert_false(nbd_meta_next_query(&meta, &query));
}

static void
meta_option_with_a_hostile_query_count_is_refused(void **state)
{
    uint8_t data[64];
    uint8_t *const count = put_string(data, "");
    const uint8_t *const end = put_string(count + 4, "base:allocation");
    struct nbd_meta_option meta;

    for (uint32_t n = 0; n < 70000; n += n < 16 ? 1 : 997) {
        store_be32(count, n);
        assert_int_equal(nbd_meta_option_decode(data, (uint32_t)(end - data), &meta),
                         n == 1 ? 0 : -EINVAL);
    }
    store_be32(count, UINT32_MAX);
    assert_int_equal(nbd_meta_option_decode(data, (uint32_t)(end - data), &meta), -EINVAL);
}

static void
headers_with_a_wrong_magic_are_refused(void **state)
{
    uint8_t option[NBD_OPTION_HEADER_BYTES] = {0}, request[NBD_REQUEST_BYTES] = {0};
    struct nbd_option_header option_header;
    struct nbd_request_header request_header;

    store_be64(option, NBD_OPTION_MAGIC);
    store_be32(request, NBD_REQUEST_MAGIC);
    assert_int_equal(nbd_option_header_decode(option, &option_header), 0);
    assert_int_equal(nbd_request_decode(request, &request_header), 0);
    for (unsigned bit = 0; bit < 64; bit++) {
        option[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(nbd_option_header_decode(option, &option_header), -EPROTO);
        option[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (unsigned bit = 0; bit < 32; bit++) {
        request[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(nbd_request_decode(request, &request_header), -EPROTO);
        request[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void
request_header_is_read_as_big_endian(void **state)
{
    const uint8_t at[NBD_REQUEST_BYTES] = {0x25, 0x60, 0x95, 0x13, 0, 1,    0,    6,   'c', 'o',
                                           'o',  'k',  'i',  'e',  1, 2,    1,    2,   3,   4,
                                           5,    6,    7,    8,    9, 0x0a, 0x0b, 0x0c};
    struct nbd_request_header header;

    assert_int_equal(nbd_request_decode(at, &header), 0);
    assert_int_equal(header.flags, 1);
    assert_int_equal(header.command, 6);
    assert_memory_equal(&header.cookie, at + 8, 8);
    assert_true(header.offset == 0x0102030405060708ull);
    assert_int_equal(header.length, 0x090a0b0cu);
}

/* --- The rules about one request ------------------------------------------------------------ */

#define SIZE    (100 * MIB)
#define LONGEST (32 * MIB)

/* The rules once more, as prose. */
static struct nbd_decision
expect(const struct nbd_request_header *r, const struct nbd_session *s, const struct nbd_target *t)
{
    static const unsigned flags[8] = {
        [NBD_CMD_READ] = 1, [NBD_CMD_WRITE] = 1,         [NBD_CMD_FLUSH] = 1,
        [NBD_CMD_TRIM] = 1, [NBD_CMD_WRITE_ZEROES] = 19, [NBD_CMD_BLOCK_STATUS] = 9};
    const unsigned c = r->command;
    const bool write = c == NBD_CMD_WRITE, read = c == NBD_CMD_READ;
    const bool change = write || c == NBD_CMD_TRIM || c == NBD_CMD_WRITE_ZEROES;
    struct nbd_decision d = {NBD_ANSWER, NBD_SUCCESS, write ? r->length : 0};
    unsigned allowed;

    if (c == NBD_CMD_DISC)
        return (struct nbd_decision){.verdict = NBD_CLOSE};
    if (c > 7 || flags[c] == 0) {
        d.error = NBD_EINVAL;
        return d;
    }
    allowed = flags[c] | (read && s->structured ? 4 : 0);
    if (r->flags & ~allowed)
        d.error = NBD_EINVAL;
    else if ((read || write) && r->length > t->request_bytes_max)
        d.error = NBD_EINVAL;
    else if (c == NBD_CMD_BLOCK_STATUS && (!s->allocation || !r->length))
        d.error = NBD_EINVAL;
    else if (change && t->readonly)
        d.error = NBD_EPERM;
    else if (c != NBD_CMD_FLUSH && (unsigned __int128)r->offset + r->length > t->size_bytes)
        d.error = write || c == NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    else if (c == NBD_CMD_FLUSH ? !t->readonly : r->length != 0)
        d.verdict = NBD_RUN;
    if (d.error != NBD_SUCCESS && d.payload_bytes > 64 * MIB)
        d.verdict = NBD_CLOSE;
    return d;
}

static void
every_combination_of_a_request_is_decided_as_the_protocol_says(void **state)
{
    static const uint64_t offsets[] = {0,    1,        4096,       SIZE - 4096,       SIZE - 1,
                                       SIZE, SIZE + 1, 1ull << 63, UINT64_MAX - 4095, UINT64_MAX};
    static const uint32_t lengths[] = {0,          1,           4095,     4096,         4097,
                                       LONGEST,    LONGEST + 1, 64 * MIB, 64 * MIB + 1, 0x80000000,
                                       0xfffff001, 0xffffffff};
    unsigned counts[3] = {0};

    for (unsigned command = 0; command < 12; command++)
        for (unsigned flags = 0; flags < 128; flags++)
            for (unsigned mode = 0; mode < 8; mode++)
                for (unsigned i = 0; i < ARRAY_LEN(offsets) * ARRAY_LEN(lengths); i++) {
                    const struct nbd_session session = {.structured = mode & 1,
                                                        .allocation = mode & 2};
                    const struct nbd_target target = {SIZE, LONGEST, mode & 4};
                    const struct nbd_request_header request = {
                        .flags = (uint16_t)flags,
                        .command = (uint16_t)command,
                        .offset = offsets[i / ARRAY_LEN(lengths)],
                        .length = lengths[i % ARRAY_LEN(lengths)],
                    };
                    const struct nbd_decision want = expect(&request, &session, &target);
                    const struct nbd_decision is = nbd_request_decide(&request, &session, &target);

                    if (is.verdict != want.verdict || is.error != want.error ||
                        (is.verdict != NBD_CLOSE && is.payload_bytes != want.payload_bytes))
                        fail_msg("command %u flags %u mode %u offset %#jx length %#x: %d %d %u, "
                                 "not %d %d %u",
                                 command, flags, mode, (uintmax_t)request.offset, request.length,
                                 is.verdict, is.error, is.payload_bytes, want.verdict, want.error,
                                 want.payload_bytes);
                    counts[is.verdict]++;
                }
    for (unsigned i = 0; i < 3; i++)
        assert_int_not_equal(counts[i], 0);
}

static void
errors_outside_the_protocol_become_io_errors(void **state)
{
    static const struct {
        int error;
        enum nbd_error wire;
    } table[] = {
        {0, NBD_SUCCESS},
        {EPERM, NBD_EPERM},
        {EACCES, NBD_EPERM},
        {EROFS, NBD_EPERM},
        {EIO, NBD_EIO},
        {ENOMEM, NBD_ENOMEM},
        {EINVAL, NBD_EINVAL},
        {ENOSPC, NBD_ENOSPC},
        {EDQUOT, NBD_ENOSPC},
        {EFBIG, NBD_ENOSPC},
        {EOVERFLOW, NBD_EOVERFLOW},
        {ENOTSUP, NBD_ENOTSUP},
        {ESHUTDOWN, NBD_ESHUTDOWN},
        {ETIMEDOUT, NBD_EIO},
        {ENODEV, NBD_EIO},
        {EBADMSG, NBD_EIO},
        {12345, NBD_EIO},
    };

    for (unsigned i = 0; i < ARRAY_LEN(table); i++) {
        assert_int_equal(nbd_error_of(table[i].error), table[i].wire);
        assert_int_equal(nbd_error_of(-table[i].error), table[i].wire);
    }
}

static void
replies_have_the_protocols_bytes(void **state)
{
    static const uint8_t simple[] = {0x67, 0x44, 0x66, 0x98, 0,   0,   0, 28,
                                     'c',  'o',  'o',  'k',  'i', 'e', 1, 2};
    static const uint8_t chunk[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 'c',  'o',
                                    'o',  'k',  'i',  'e',  1, 2, 0, 0, 0x10, 8,
                                    0,    0,    0,    1,    2, 3, 4, 5};
    static const uint8_t error[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 'c', 'o', 'o', 'k', 'i',
                                    'e',  1,    2,    0,    0, 0, 6,    0, 0,   0,   5,   0,   0};
    static const uint8_t none[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 'c', 'o',
                                   'o',  'k',  'i',  'e',  1, 2, 0, 0, 0,   0};
    static const uint8_t status[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 'c', 'o', 'o',
                                     'k',  'i',  'e',  1,    2, 0, 0, 0, 12,  0,   0,
                                     0,    1,    0,    0,    2, 0, 0, 0, 0,   0};
    struct nbd_request_header write = {.command = NBD_CMD_WRITE};
    struct nbd_request_header read = {.command = NBD_CMD_READ};
    const struct nbd_session plain = {0}, structured = {.structured = true};
    uint8_t at[NBD_REPLY_BYTES_MAX];

    memcpy(&write.cookie, "cookie\1\2", 8);
    read.cookie = write.cookie;
    /* What needs no chunk gets none. */
    assert_int_equal(nbd_answer_encode(at, &structured, &write, NBD_ENOSPC), sizeof simple);
    assert_memory_equal(at, simple, sizeof simple);
    assert_int_equal(nbd_answer_encode(at, &plain, &read, NBD_ENOSPC), sizeof simple);
    assert_memory_equal(at, simple, sizeof simple);
    assert_int_equal(nbd_answer_encode(at, &structured, &read, NBD_EIO), sizeof error);
    assert_memory_equal(at, error, sizeof error);
    assert_int_equal(nbd_answer_encode(at, &structured, &read, NBD_SUCCESS), sizeof none);
    assert_memory_equal(at, none, sizeof none);
    assert_int_equal(nbd_read_reply_encode(at, &structured, read.cookie, 0x102030405ull, 4096),
                     sizeof chunk);
    assert_memory_equal(at, chunk, sizeof chunk);
    assert_int_equal(nbd_block_status_encode(at, read.cookie, 0x200), sizeof status);
    assert_memory_equal(at, status, sizeof status);
}

/* --- The negotiation ------------------------------------------------------------------------ */

static const struct nbd_target target = {SIZE, LONGEST, false};

/* The n-th reply's type, or 0 when there are fewer; *length and *data as in its header. */
static uint32_t
reply_at(const struct nbd_reply_buffer *reply, unsigned n, uint32_t option, const uint8_t **data,
         uint32_t *length)
{
    size_t at = 0;

    while (at < reply->used) {
        assert_true(reply->used - at >= NBD_OPTION_REPLY_HEADER_BYTES);
        assert_true(load_be64(reply->bytes + at) == NBD_OPTION_REPLY_MAGIC);
        assert_int_equal(load_be32(reply->bytes + at + 8), option);
        *length = load_be32(reply->bytes + at + 16);
        *data = reply->bytes + at + NBD_OPTION_REPLY_HEADER_BYTES;
        if (n-- == 0)
            return load_be32(reply->bytes + at + 12);
        at += NBD_OPTION_REPLY_HEADER_BYTES + *length;
    }
    assert_int_equal(at, reply->used);
    return 0;
}

static enum nbd_next
option_send(struct nbd_handshake *handshake, uint32_t option, const uint8_t *data, size_t length,
            struct nbd_reply_buffer *reply)
{
    const struct nbd_option_header header = {option, (uint32_t)length};
    uint8_t *const copy = exact_copy(data, length);
    const enum nbd_next next = nbd_handshake_option(handshake, &header, copy, reply);

    free(copy);
    return next;
}

/* The type of the only reply an option gets. */
static uint32_t
option_reply(struct nbd_handshake *handshake, uint32_t option, const uint8_t *data, size_t length)
{
    struct nbd_reply_buffer reply;
    const uint8_t *at;
    uint32_t got, type;

    assert_int_equal(option_send(handshake, option, data, length, &reply), NBD_NEXT_OPTION);
    type = reply_at(&reply, 0, option, &at, &got);
    assert_int_equal(reply_at(&reply, 1, option, &at, &got), 0);
    return type;
}

static size_t
info_data(uint8_t *data, const char *name, unsigned count, const uint16_t *infos)
{
    uint8_t *end = put_string(data, name);

    store_be16(end, (uint16_t)count);
    for (unsigned i = 0; i < count; i++)
        store_be16(end + 2 + 2 * i, infos[i]);
    return (size_t)(end - data) + 2 + 2 * count;
}

static size_t
meta_data(uint8_t *data, const char *name, const char *query)
{
    uint8_t *end = put_string(data, name);

    store_be32(end, query != NULL);
    end += 4;
    if (query)
        end = put_string(end, query);
    return (size_t)(end - data);
}

static void
handshake_lists_the_default_name_only(void **state)
{
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    const uint8_t *data;
    uint32_t length;

    nbd_handshake_init(&handshake, "array", &target);
    assert_int_equal(option_send(&handshake, NBD_OPT_LIST, NULL, 0, &reply), NBD_NEXT_OPTION);
    assert_int_equal(reply_at(&reply, 0, NBD_OPT_LIST, &data, &length), NBD_REP_SERVER);
    assert_int_equal(length, 4);
    assert_int_equal(load_be32(data), 0);
    assert_int_equal(reply_at(&reply, 1, NBD_OPT_LIST, &data, &length), NBD_REP_ACK);
    assert_int_equal(reply_at(&reply, 2, NBD_OPT_LIST, &data, &length), 0);
    assert_int_equal(option_reply(&handshake, NBD_OPT_LIST, (const uint8_t *)"x", 1),
                     NBD_REP_ERR_INVALID);
}

static void
handshake_knows_the_export_by_both_names_and_no_other(void **state)
{
    static const char *const known[] = {"", "array"};
    static const char *const unknown[] = {"arra", "array1", "Array", " "};
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    uint8_t data[64];

    nbd_handshake_init(&handshake, "array", &target);
    for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
        const size_t length = info_data(data, known[i], 0, NULL);

        assert_int_equal(option_send(&handshake, NBD_OPT_INFO, data, length, &reply),
                         NBD_NEXT_OPTION);
        assert_int_equal(option_send(&handshake, NBD_OPT_GO, data, length, &reply),
                         NBD_NEXT_TRANSMISSION);
        assert_int_equal(option_send(&handshake, NBD_OPT_EXPORT_NAME, (const uint8_t *)known[i],
                                     strlen(known[i]), &reply),
                         NBD_NEXT_TRANSMISSION);
    }
    for (unsigned i = 0; i < ARRAY_LEN(unknown); i++) {
        const size_t length = info_data(data, unknown[i], 0, NULL);

        assert_int_equal(option_reply(&handshake, NBD_OPT_INFO, data, length), NBD_REP_ERR_UNKNOWN);
        assert_int_equal(option_reply(&handshake, NBD_OPT_GO, data, length), NBD_REP_ERR_UNKNOWN);
        assert_int_equal(option_reply(&handshake, NBD_OPT_LIST_META_CONTEXT, data,
                                      meta_data(data, unknown[i], NULL)),
                         NBD_REP_ERR_UNKNOWN);
        assert_int_equal(option_send(&handshake, NBD_OPT_EXPORT_NAME, (const uint8_t *)unknown[i],
                                     strlen(unknown[i]), &reply),
                         NBD_NEXT_CLOSE);
        assert_int_equal(reply.used, 0);
    }
}

static void
handshake_go_tells_size_flags_name_and_block_sizes(void **state)
{
    static const uint16_t infos[] = {NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, 77, NBD_INFO_NAME};
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    uint8_t option[64];
    const uint8_t *data;
    uint32_t length;

    nbd_handshake_init(&handshake, "array", &target);
    assert_int_equal(option_reply(&handshake, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK);
    assert_int_equal(
        option_send(&handshake, NBD_OPT_GO, option, info_data(option, "array", 4, infos), &reply),
        NBD_NEXT_TRANSMISSION);
    assert_int_equal(reply_at(&reply, 0, NBD_OPT_GO, &data, &length), NBD_REP_INFO);
    assert_int_equal(length, 12);
    assert_int_equal(load_be16(data), NBD_INFO_EXPORT);
    assert_true(load_be64(data + 2) == SIZE);
    assert_int_equal(load_be16(data + 10), 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100 | 0x800);
    assert_int_equal(reply_at(&reply, 1, NBD_OPT_GO, &data, &length), NBD_REP_INFO);
    assert_int_equal(length, 7);
    assert_int_equal(load_be16(data), NBD_INFO_NAME);
    assert_memory_equal(data + 2, "array", 5);
    assert_int_equal(reply_at(&reply, 2, NBD_OPT_GO, &data, &length), NBD_REP_INFO);
    assert_int_equal(length, 14);
    assert_int_equal(load_be16(data), NBD_INFO_BLOCK_SIZE);
    assert_int_equal(load_be32(data + 2), 1);
    assert_int_equal(load_be32(data + 6), 4096);
    assert_int_equal(load_be32(data + 10), 32 * MIB);
    assert_int_equal(reply_at(&reply, 3, NBD_OPT_GO, &data, &length), NBD_REP_ACK);
    assert_int_equal(reply_at(&reply, 4, NBD_OPT_GO, &data, &length), 0);
}

static void
handshake_of_a_readonly_export_offers_no_changes(void **state)
{
    const struct nbd_target readonly = {SIZE, LONGEST, true};
    const struct nbd_session plain = {0};

    assert_int_equal(nbd_transmission_flags(&plain, &readonly), 0x1 | 0x2 | 0x4 | 0x100);
}

static void
handshake_export_name_pads_unless_asked_not_to(void **state)
{
    uint8_t flags[4];
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;

    for (uint32_t f = 0; f < 4; f++) {
        nbd_handshake_init(&handshake, "", &target);
        store_be32(flags, f);
        assert_int_equal(nbd_handshake_client_flags(&handshake, flags), 0);
        assert_int_equal(option_send(&handshake, NBD_OPT_EXPORT_NAME, NULL, 0, &reply),
                         NBD_NEXT_TRANSMISSION);
        assert_int_equal(reply.used, f & 2 ? 10 : 134);
        assert_true(load_be64(reply.bytes) == SIZE);
    }
    for (unsigned bit = 2; bit < 32; bit++) {
        store_be32(flags, 1u << bit);
        assert_int_equal(nbd_handshake_client_flags(&handshake, flags), -EPROTO);
    }
}

static void
handshake_answers_unknown_options_and_goes_on(void **state)
{
    uint8_t *const data = calloc(1, NBD_OPTION_SKIP_BYTES_MAX + 1);
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;

    nbd_handshake_init(&handshake, "", &target);
    for (uint32_t option = 11; option < 40; option++)
        assert_int_equal(option_reply(&handshake, option, data, option), NBD_REP_ERR_UNSUP);
    assert_int_equal(option_reply(&handshake, 0, data, 0), NBD_REP_ERR_UNSUP);
    assert_int_equal(option_reply(&handshake, 4, data, 0), NBD_REP_ERR_UNSUP);
    assert_int_equal(option_reply(&handshake, UINT32_MAX, data, 0), NBD_REP_ERR_UNSUP);
    assert_int_equal(option_reply(&handshake, NBD_OPT_STARTTLS, data, 0), NBD_REP_ERR_UNSUP);
    assert_int_equal(option_reply(&handshake, NBD_OPT_GO, data, NBD_OPTION_BYTES_MAX + 1),
                     NBD_REP_ERR_TOO_BIG);
    assert_int_equal(option_reply(&handshake, 99, data, NBD_OPTION_SKIP_BYTES_MAX),
                     NBD_REP_ERR_TOO_BIG);
    assert_int_equal(option_send(&handshake, 99, data, NBD_OPTION_SKIP_BYTES_MAX + 1, &reply),
                     NBD_NEXT_CLOSE);
    free(data);
}

static void
handshake_abort_is_acknowledged(void **state)
{
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    const uint8_t *data;
    uint32_t length;

    nbd_handshake_init(&handshake, "", &target);
    assert_int_equal(option_send(&handshake, NBD_OPT_ABORT, NULL, 0, &reply), NBD_NEXT_CLOSE);
    assert_int_equal(reply_at(&reply, 0, NBD_OPT_ABORT, &data, &length), NBD_REP_ACK);
}

static void
meta_context_needs_structured_replies_first(void **state)
{
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    const uint8_t *at;
    uint8_t data[64];
    uint32_t length;
    const size_t bytes = meta_data(data, "", "base:allocation");

    nbd_handshake_init(&handshake, "", &target);
    assert_int_equal(option_reply(&handshake, NBD_OPT_SET_META_CONTEXT, data, bytes),
                     NBD_REP_ERR_INVALID);
    assert_int_equal(option_reply(&handshake, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK);
    assert_int_equal(option_send(&handshake, NBD_OPT_SET_META_CONTEXT, data, bytes, &reply),
                     NBD_NEXT_OPTION);
    assert_int_equal(reply_at(&reply, 0, NBD_OPT_SET_META_CONTEXT, &at, &length),
                     NBD_REP_META_CONTEXT);
    assert_int_equal(length, 4 + 15);
    assert_int_equal(load_be32(at), NBD_CONTEXT_ALLOCATION_ID);
    assert_memory_equal(at + 4, "base:allocation", 15);
    assert_int_equal(reply_at(&reply, 1, NBD_OPT_SET_META_CONTEXT, &at, &length), NBD_REP_ACK);
    assert_true(handshake.session.allocation);
}

static void
meta_context_is_listed_by_all_namespace_or_name(void **state)
{
    static const struct {
        const char *query;
        bool listed, set;
    } table[] = {
        {NULL, true, false},    {"base:", true, false},  {"base:allocation", true, true},
        {"base", false, false}, {"qemu:", false, false}, {"base:allocation2", false, false},
        {"", false, false},
    };
    struct nbd_reply_buffer reply;
    struct nbd_handshake handshake;
    const uint8_t *at;
    uint8_t data[64];
    uint32_t length;

    nbd_handshake_init(&handshake, "", &target);
    handshake.session.structured = true;
    for (unsigned i = 0; i < ARRAY_LEN(table); i++) {
        const size_t bytes = meta_data(data, "", table[i].query);

        assert_int_equal(option_send(&handshake, NBD_OPT_LIST_META_CONTEXT, data, bytes, &reply),
                         NBD_NEXT_OPTION);
        assert_int_equal(reply_at(&reply, 0, NBD_OPT_LIST_META_CONTEXT, &at, &length),
                         table[i].listed ? NBD_REP_META_CONTEXT : NBD_REP_ACK);
        assert_int_equal(option_send(&handshake, NBD_OPT_SET_META_CONTEXT, data, bytes, &reply),
                         NBD_NEXT_OPTION);
        assert_int_equal(reply_at(&reply, 0, NBD_OPT_SET_META_CONTEXT, &at, &length),
                         table[i].set ? NBD_REP_META_CONTEXT : NBD_REP_ACK);
        assert_int_equal(handshake.session.allocation, table[i].set);
    }
}

/* The protocol: a context chosen for one export name does not hold under another. */
static void
meta_context_holds_for_the_name_it_was_set_with(void **state)
{
    static const char *const names[] = {"", "array"};
    struct nbd_handshake handshake;
    struct nbd_reply_buffer reply;
    uint8_t data[64];

    for (unsigned set = 0; set < 2; set++)
        for (unsigned go = 0; go < 2; go++) {
            nbd_handshake_init(&handshake, "array", &target);
            handshake.session.structured = true;
            (void)option_send(&handshake, NBD_OPT_SET_META_CONTEXT, data,
                              meta_data(data, names[set], "base:allocation"), &reply);
            assert_int_equal(option_send(&handshake, NBD_OPT_GO, data,
                                         info_data(data, names[go], 0, NULL), &reply),
                             NBD_NEXT_TRANSMISSION);
            assert_int_equal(handshake.session.allocation, set == go);
        }
}

/* The longest name, with all infos, fits into the reply. */
static void
handshake_reply_holds_the_longest_name(void **state)
{
    static const uint16_t infos[] = {NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE};
    char *const name = calloc(1, NBD_NAME_BYTES_MAX + 1);
    uint8_t *const data = malloc(NBD_OPTION_BYTES_MAX);
    struct nbd_reply_buffer reply;
    struct nbd_handshake handshake;

    memset(name, 'n', NBD_NAME_BYTES_MAX);
    nbd_handshake_init(&handshake, name, &target);
    assert_int_equal(
        option_send(&handshake, NBD_OPT_GO, data, info_data(data, name, 2, infos), &reply),
        NBD_NEXT_TRANSMISSION);
    assert_int_equal(reply.used, 4 * NBD_OPTION_REPLY_HEADER_BYTES + 12 + 2 + 4096 + 14);
    free(name);
    free(data);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(info_option_of_any_wrong_length_is_refused),
        cmocka_unit_test(info_option_with_a_hostile_name_length_is_refused),
        cmocka_unit_test(names_have_up_to_4096_bytes),
        cmocka_unit_test(meta_option_of_any_wrong_length_is_refused),
        cmocka_unit_test(meta_option_with_a_hostile_query_count_is_refused),
        cmocka_unit_test(headers_with_a_wrong_magic_are_refused),
        cmocka_unit_test(request_header_is_read_as_big_endian),
        cmocka_unit_test(every_combination_of_a_request_is_decided_as_the_protocol_says),
        cmocka_unit_test(errors_outside_the_protocol_become_io_errors),
        cmocka_unit_test(replies_have_the_protocols_bytes),
        cmocka_unit_test(handshake_lists_the_default_name_only),
        cmocka_unit_test(handshake_knows_the_export_by_both_names_and_no_other),
        cmocka_unit_test(handshake_go_tells_size_flags_name_and_block_sizes),
        cmocka_unit_test(handshake_of_a_readonly_export_offers_no_changes),
        cmocka_unit_test(handshake_export_name_pads_unless_asked_not_to),
        cmocka_unit_test(handshake_answers_unknown_options_and_goes_on),
        cmocka_unit_test(handshake_abort_is_acknowledged),
        cmocka_unit_test(meta_context_needs_structured_replies_first),
        cmocka_unit_test(meta_context_is_listed_by_all_namespace_or_name),
        cmocka_unit_test(meta_context_holds_for_the_name_it_was_set_with),
        cmocka_unit_test(handshake_reply_holds_the_longest_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
