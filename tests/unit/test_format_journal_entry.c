/*
 * test_format_journal_entry.c: journal meta blocks: real ones, ours, torn ones and hostile ones.
 *
 * The hostile ones have a good checksum: they are what a bug or an attacker would leave, and
 * nothing of them may be believed before it is checked.
 */
#include "format/journal_entry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Two members of data: 16 MiB each, with a 1 MiB journal. */
#define RING_BYTES      (1 * MIB)
#define COMPONENT_BYTES (16 * MIB)
#define ARRAY_BYTES     (32 * MIB)
#define POSITION        (24ull * SECTOR_BYTES)
#define SEQ             0x1122334455667788ull

static const uint8_t counting_uuid[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint8_t real_uuid[16] = {0xaf, 0xa9, 0xc5, 0x57, 0x84, 0xfb, 0x3f, 0x57,
                                      0xa5, 0x1b, 0x75, 0x17, 0x9f, 0x4b, 0x39, 0x85};

static struct journal_geometry
geometry_for(uint32_t parity_count)
{
    return (struct journal_geometry){
        .ring_bytes = RING_BYTES,
        .array_bytes = ARRAY_BYTES,
        .component_bytes = COMPONENT_BYTES,
        .parity_count = parity_count,
        .checksum_seed = journal_checksum_seed(real_uuid),
    };
}

static uint32_t
checksum_of(uint32_t seed, const uint8_t *meta)
{
    uint8_t copy[BLOCK_BYTES];

    memcpy(copy, meta, sizeof copy);
    store_le32(copy + 4, 0);
    return journal_checksum(seed, copy, sizeof copy);
}

static void
mend_checksum(uint8_t *meta, const struct journal_geometry *geometry)
{
    store_le32(meta + 4, checksum_of(geometry->checksum_seed, meta));
}

/* ---- Checksums ---- */

static void
checksum_is_crc32c_without_inversion(void **state)
{
    uint8_t block[BLOCK_BYTES];
    const uint8_t one = 1;

    assert_int_equal(journal_checksum(0xffffffff, "123456789", 9), 0x1cf96d7c);
    assert_int_equal(journal_checksum(0, "123456789", 9), 0x58e3fa20);
    assert_int_equal(journal_checksum(0, &one, 1), 0xf26b8303);
    memset(block, 0, sizeof block);
    assert_int_equal(journal_checksum(0xffffffff, block, 32), 0x756ec955);
    assert_int_equal(journal_checksum(0x2636f714, block, 4096), 0xb3304a14);
    memset(block, 0xff, sizeof block);
    assert_int_equal(journal_checksum(0xffffffff, block, 32), 0x9d5754bc);
    assert_int_equal(journal_checksum(0x2636f714, block, 4096), 0x0e08f58e);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (uint8_t)i;
    assert_int_equal(journal_checksum(0x2636f714, block, 4096), 0xb7b8f5af);
    assert_int_equal(journal_checksum(0x12345678, block, 0), 0x12345678);
}

static void
checksum_may_be_taken_in_parts(void **state)
{
    uint8_t block[512];
    uint32_t whole;

    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (uint8_t)(i * 7);
    whole = journal_checksum(1, block, sizeof block);
    for (size_t cut = 0; cut <= sizeof block; cut++) {
        const uint32_t first = journal_checksum(1, block, cut);

        assert_int_equal(journal_checksum(first, block + cut, sizeof block - cut), whole);
    }
}

static void
seed_is_the_checksum_of_the_uuid(void **state)
{
    assert_int_equal(journal_checksum_seed(counting_uuid), 0x2636f714);
    assert_int_equal(journal_checksum_seed(real_uuid), 0x109127f7);
}

/* ---- Real entries ---- */

static void
empty_entry_is_the_one_mdadm_writes(void **state)
{
    static const uint8_t real[32] = {0x09, 0xc5, 0x33, 0x64, 0x0e, 0x0d, 0xa0, 0x6f, 1,    0,
                                     0,    0,    32,   0,    0,    0,    0x6d, 0xe8, 0xcc, 0xec};
    uint8_t meta[BLOCK_BYTES], expected[BLOCK_BYTES] = {0};
    const struct journal_geometry geometry = geometry_for(1);
    struct journal_entry entry;

    memcpy(expected, real, sizeof real);
    memset(meta, 0x5a, sizeof meta);
    journal_entry_encode_empty(meta, 0xeccce86d, 0, 0x109127f7);
    assert_memory_equal(meta, expected, sizeof meta);
    assert_int_equal(journal_entry_decode(meta, 0, &geometry, &entry, NULL), 0);
    assert_int_equal(entry.seq, 0xeccce86d);
    assert_int_equal(entry.payload_count, 0);
    assert_int_equal(entry.block_count, 0);
    assert_int_equal(entry.meta_bytes, 32);
    assert_int_equal(journal_entry_next(&entry, &geometry), 4096);

    journal_entry_encode_empty(meta, 0x12345678, 0, 0x2636f714);
    assert_int_equal(load_le32(meta + 4), 0x3a25ca64);
}

/* A 4 KiB write at array sector 0, in write-through, as the kernel logged it. */
static void
real_entry(uint8_t meta[BLOCK_BYTES])
{
    static const uint8_t real[72] = {0x09, 0xc5, 0x33, 0x64, 0xa4, 0xf8, 0xe5, 0x86, 1,
                                     0,    0,    0,    0x48, 0,    0,    0, /* header */
                                     0x90, 0x36, 0xcd, 0xec, 0,    0,    0,    0,    0x18,
                                     0,    0,    0,    0,    0,    0,    0, /* seq, position */
                                     0,    0,    0,    0,    8,    0,    0,    0,    0,
                                     0,    0,    0,    0,    0,    0,    0, /* DATA */
                                     0xa2, 0x84, 0x4b, 0x05,                /* its checksum */
                                     1,    0,    0,    0,    8,    0,    0,    0,    0,
                                     0,    0,    0,    0,    0,    0,    0, /* PARITY */
                                     0xa2, 0x84, 0x4b, 0x05};

    memset(meta, 0, BLOCK_BYTES);
    memcpy(meta, real, sizeof real);
}

static void
real_entry_decodes_to_its_payloads(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;
    struct journal_cursor cursor;
    struct journal_payload payload;
    struct format_error error = {""};

    real_entry(meta);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, &error), 0);
    assert_int_equal(entry.seq, 0xeccd3690);
    assert_int_equal(entry.position_bytes, POSITION);
    assert_int_equal(entry.payload_count, 2);
    assert_int_equal(entry.block_count, 2);
    assert_int_equal(journal_entry_next(&entry, &geometry), 48 * SECTOR_BYTES);

    journal_cursor_init(&cursor, meta, &geometry, &entry);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.type, JOURNAL_DATA);
    assert_int_equal(payload.location_bytes, 0);
    assert_int_equal(payload.block_count, 1);
    assert_int_equal(payload.checksums[0], 0x054b84a2);
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 0), 32 * SECTOR_BYTES);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.type, JOURNAL_PARITY);
    assert_int_equal(payload.location_bytes, 0);
    assert_int_equal(payload.block_count, 1);
    assert_int_equal(payload.checksums[0], 0x054b84a2);
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 0), 40 * SECTOR_BYTES);
    assert_false(journal_cursor_next(&cursor, &payload));
}

static void
writer_writes_what_the_kernel_wrote(void **state)
{
    static const uint32_t checksum = 0x054b84a2;
    uint8_t meta[BLOCK_BYTES], expected[BLOCK_BYTES];
    struct journal_writer writer;

    real_entry(expected);
    memset(meta, 0x5a, sizeof meta);
    journal_writer_init(&writer, meta, 0xeccd3690, POSITION);
    journal_writer_add_data(&writer, 0, checksum);
    journal_writer_add_parity(&writer, 0, 1, &checksum);
    assert_int_equal(writer.block_count, 2);
    assert_int_equal(journal_writer_room(&writer), 4096 - 72);
    journal_writer_finish(&writer, journal_checksum_seed(real_uuid));
    assert_memory_equal(meta, expected, sizeof meta);
}

/* ---- Our own entries ---- */

static void
raid6_parity_names_p_and_q(void **state)
{
    static const uint32_t checksums[2] = {0x11111111, 0x22222222};
    static const uint8_t expected[24] = {1,    0,    0,    0,    16,   0,    0,    0,
                                         8,    0,    0,    0,    0,    0,    0,    0,
                                         0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22};
    const struct journal_geometry geometry = geometry_for(2);
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    struct journal_entry entry;
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_writer_init(&writer, meta, SEQ, POSITION);
    journal_writer_add_parity(&writer, 4096, 2, checksums);
    journal_writer_finish(&writer, geometry.checksum_seed);
    assert_memory_equal(meta + 32, expected, sizeof expected);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
    assert_int_equal(entry.block_count, 2);
    journal_cursor_init(&cursor, meta, &geometry, &entry);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.location_bytes, 4096);
    assert_int_equal(payload.checksums[0], 0x11111111);
    assert_int_equal(payload.checksums[1], 0x22222222);
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 1),
                     POSITION + 2 * BLOCK_BYTES);
}

/* Fill meta blocks to the last byte; nothing is lost and nothing runs over. */
static void
full_meta_block_round_trips(void **state)
{
    for (uint32_t parity_count = 1; parity_count <= 2; parity_count++) {
        const struct journal_geometry geometry = geometry_for(parity_count);
        uint8_t meta[BLOCK_BYTES];
        struct journal_writer writer;
        struct journal_entry entry;
        struct journal_cursor cursor;
        struct journal_payload payload;
        uint32_t count = 0, first = 0;

        journal_writer_init(&writer, meta, SEQ, 0);
        /* Two data, one parity, as long as both kinds fit. */
        while (journal_writer_room(&writer) >= journal_parity_payload_bytes(parity_count)) {
            const uint32_t checksums[2] = {count, ~count};

            if (count % 3 == 2)
                journal_writer_add_parity(&writer, count * 4096, parity_count, checksums);
            else
                journal_writer_add_data(&writer, count * 8192, count);
            count++;
        }
        journal_writer_finish(&writer, geometry.checksum_seed);
        assert_int_equal(journal_entry_decode(meta, 0, &geometry, &entry, NULL), 0);
        assert_int_equal(entry.seq, SEQ);
        assert_int_equal(entry.payload_count, count);
        assert_int_equal(entry.block_count, writer.block_count);

        journal_cursor_init(&cursor, meta, &geometry, &entry);
        for (uint32_t i = 0; i < count; i++) {
            assert_true(journal_cursor_next(&cursor, &payload));
            assert_int_equal(payload.type, i % 3 == 2 ? JOURNAL_PARITY : JOURNAL_DATA);
            assert_int_equal(payload.location_bytes, i % 3 == 2 ? i * 4096 : i * 8192);
            assert_int_equal(payload.block_first, first);
            assert_int_equal(payload.checksums[0], i);
            first += payload.block_count;
        }
        assert_false(journal_cursor_next(&cursor, &payload));
    }
}

static void
one_meta_block_takes_a_step_of_203_members(void **state)
{
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    const uint32_t checksums[2] = {0, 0};

    assert_int_equal(JOURNAL_MEMBERS_MAX, 203);
    for (uint32_t parity_count = 1; parity_count <= 2; parity_count++) {
        journal_writer_init(&writer, meta, SEQ, 0);
        for (uint32_t i = 0; i < JOURNAL_MEMBERS_MAX - parity_count; i++)
            journal_writer_add_data(&writer, i * 4096ull, 0);
        assert_true(journal_writer_room(&writer) >= journal_parity_payload_bytes(parity_count));
        journal_writer_add_parity(&writer, 0, parity_count, checksums);
    }
}

static void
entry_wraps_at_the_end_of_the_ring(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    const uint64_t position = RING_BYTES - 2 * BLOCK_BYTES;
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    struct journal_entry entry;
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_writer_init(&writer, meta, SEQ, position);
    for (uint64_t i = 0; i < 3; i++)
        journal_writer_add_data(&writer, i * BLOCK_BYTES, 0);
    journal_writer_finish(&writer, geometry.checksum_seed);
    assert_int_equal(journal_entry_decode(meta, position, &geometry, &entry, NULL), 0);
    assert_int_equal(journal_entry_next(&entry, &geometry), 2 * BLOCK_BYTES);
    journal_cursor_init(&cursor, meta, &geometry, &entry);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 0),
                     RING_BYTES - BLOCK_BYTES);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 0), 0);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(journal_payload_position(&entry, &payload, &geometry, 0), BLOCK_BYTES);
}

static void
ring_arithmetic_wraps_once(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);

    assert_int_equal(journal_ring_add(&geometry, RING_BYTES - BLOCK_BYTES, BLOCK_BYTES), 0);
    assert_int_equal(journal_ring_add(&geometry, 0, BLOCK_BYTES), BLOCK_BYTES);
    assert_int_equal(journal_ring_distance(&geometry, 8192, 8192), 0);
    assert_int_equal(journal_ring_distance(&geometry, 8192, 4096), RING_BYTES - 4096);
    assert_int_equal(journal_ring_distance(&geometry, 4096, 8192), 4096);
}

static void
flush_payload_lists_stripes_and_names_no_block(void **state)
{
    static const uint8_t flushes[] = {
        2,    0,    0, 0, 8,  0, 0, 0, 8,    3, 0, 0, 0, 0, 0, 0, /* sector 776 */
        2,    0,    0, 0, 16, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0,
        0xf8, 0x7f, 0, 0, 0,  0, 0, 0, /* 16 and the last */
        2,    0,    0, 0, 0,  0, 0, 0};
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;
    struct journal_cursor cursor;
    struct journal_payload payload;

    journal_entry_encode_empty(meta, SEQ, POSITION, 0);
    memcpy(meta + 32, flushes, sizeof flushes);
    store_le32(meta + 12, 32 + sizeof flushes);
    mend_checksum(meta, &geometry);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
    assert_int_equal(entry.payload_count, 3);
    assert_int_equal(entry.block_count, 0);
    journal_cursor_init(&cursor, meta, &geometry, &entry);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.type, JOURNAL_FLUSH);
    assert_int_equal(payload.block_count, 0);
    assert_int_equal(payload.stripe_count, 1);
    assert_int_equal(journal_flush_stripe(&payload, 0), 776 * SECTOR_BYTES);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.stripe_count, 2);
    assert_int_equal(journal_flush_stripe(&payload, 1), COMPONENT_BYTES - BLOCK_BYTES);
    assert_true(journal_cursor_next(&cursor, &payload));
    assert_int_equal(payload.stripe_count, 0);
    assert_false(journal_cursor_next(&cursor, &payload));
}

static void
payloads_may_fill_the_meta_block_to_its_last_byte(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;

    journal_entry_encode_empty(meta, SEQ, POSITION, 0);
    for (uint32_t at = 32; at < BLOCK_BYTES; at += 8)
        store_le16(meta + at, JOURNAL_FLUSH); /* of no stripes */
    store_le32(meta + 12, BLOCK_BYTES);
    mend_checksum(meta, &geometry);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
    assert_int_equal(entry.payload_count, 508);
    assert_int_equal(entry.block_count, 0);
}

/* ---- The end of the log ---- */

static void
every_changed_byte_ends_the_log(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;

    real_entry(meta);
    for (size_t at = 0; at < sizeof meta; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            meta[at] ^= (uint8_t)(1u << bit);
            assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL),
                             -ENOENT);
            meta[at] ^= (uint8_t)(1u << bit);
        }
    }
}

static void
block_of_another_place_or_array_ends_the_log(void **state)
{
    struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;
    struct format_error error;

    real_entry(meta);
    assert_int_equal(journal_entry_decode(meta, POSITION + 4096, &geometry, &entry, &error),
                     -ENOENT);
    assert_non_null(strstr(error.text, "sector 32: position 24"));
    geometry.checksum_seed = journal_checksum_seed(counting_uuid);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, &error), -ENOENT);
    assert_non_null(strstr(error.text, "sector 24: checksum 0x86e5f8a4"));
}

static void
another_version_ends_the_log(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;
    struct format_error error;

    real_entry(meta);
    meta[8] = 2;
    mend_checksum(meta, &geometry);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, &error), -ENOENT);
    assert_non_null(strstr(error.text, "version 2"));
}

static void
zeros_end_the_log(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES] = {0};
    struct journal_entry entry;
    struct format_error error;

    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, &error), -ENOENT);
    assert_string_equal(error.text, "sector 24: no meta block");
}

/* ---- Good checksum, bad content ---- */

/* The meta block has a DATA payload at 32, a PARITY payload at 52 (24 bytes at RAID-6) and a FLUSH
 * payload behind. */
static uint32_t
hostile_base(uint8_t meta[BLOCK_BYTES], const struct journal_geometry *geometry)
{
    static const uint32_t checksums[2] = {1, 2};
    struct journal_writer writer;

    journal_writer_init(&writer, meta, SEQ, POSITION);
    journal_writer_add_data(&writer, 8192, 0);
    journal_writer_add_parity(&writer, 4096, geometry->parity_count, checksums);
    store_le16(meta + writer.at_bytes, JOURNAL_FLUSH);
    store_le32(meta + writer.at_bytes + 4, 8);
    store_le64(meta + writer.at_bytes + 8, 16);
    writer.at_bytes += 16;
    journal_writer_finish(&writer, geometry->checksum_seed);
    return writer.at_bytes - 16;
}

static void
assert_unparsable(uint8_t meta[BLOCK_BYTES], const struct journal_geometry *geometry,
                  const char *text)
{
    struct journal_entry entry;
    struct format_error error = {""};

    mend_checksum(meta, geometry);
    assert_int_equal(journal_entry_decode(meta, POSITION, geometry, &entry, &error), -EBADMSG);
    assert_int_equal(entry.seq, SEQ);
    if (!strstr(error.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
    if (!strstr(error.text, "sector 24, seq 1234605616436508552"))
        fail_msg("where is it? \"%s\"", error.text);
    assert_int_equal(journal_entry_decode(meta, POSITION, geometry, &entry, NULL), -EBADMSG);
}

static void
good_checksum_does_not_make_a_bad_field_good(void **state)
{
    static const struct {
        uint16_t at;
        uint8_t bytes;
        uint64_t value;
        const char *text;
    } cases[] = {
        {12, 4, 0, "meta_size 0"},
        {12, 4, 31, "meta_size 31"},
        {12, 4, 4097, "meta_size 4097"},
        {12, 4, 0xffffffff, "meta_size 4294967295"},
        {12, 4, 33, "byte 32: 1 bytes are left"},
        {12, 4, 35, "byte 32: 3 bytes are left"},
        {12, 4, 36, "byte 32: DATA payload runs past"},
        {12, 4, 47, "byte 32: DATA payload runs past"},
        {12, 4, 51, "byte 32: DATA payload runs past"},
        {12, 4, 53, "byte 52: 1 bytes are left"},
        {12, 4, 71, "byte 52: PARITY payload runs past"},
        {12, 4, 79, "byte 72: FLUSH payload runs past"},
        {12, 4, 87, "byte 72: FLUSH size 8 bytes: runs past"},
        {12, 4, 89, "byte 88: 1 bytes are left"},
        {32, 2, 3, "byte 32: type 3"},
        {32, 2, 0xffff, "byte 32: type 65535"},
        {34, 2, 1, "byte 32: flags 0x0001 of type 0"},
        {54, 2, 2, "byte 52: flags 0x0002 of type 1"},
        {74, 2, 1, "byte 72: flags 0x0001 of type 2"},
        {36, 4, 0, "DATA size 0 sectors"},
        {36, 4, 16, "DATA size 16 sectors"},
        {36, 4, 7, "DATA size 7 sectors"},
        {36, 4, 0xfffffff8, "DATA size 4294967288 sectors"},
        {56, 4, 16, "PARITY size 16 sectors: not 8"},
        {40, 8, 1, "DATA location 1:"},
        {40, 8, 4, "DATA location 4:"},
        {40, 8, ARRAY_BYTES / 512, "DATA location 65536:"},
        {40, 8, 0xfffffffffffffff8, "DATA location 18446744073709551608:"},
        {60, 8, 12, "PARITY location 12:"},
        {60, 8, COMPONENT_BYTES / 512, "PARITY location 32768:"},
        {76, 4, 1, "FLUSH size 1 bytes"},
        {76, 4, 4, "FLUSH size 4 bytes"},
        {76, 4, 16, "FLUSH size 16 bytes"},
        {76, 4, 0xfffffff8, "FLUSH size 4294967288 bytes"},
        {80, 8, 1, "FLUSH stripe 1:"},
        {80, 8, COMPONENT_BYTES / 512, "FLUSH stripe 32768:"},
    };
    const struct journal_geometry geometry = geometry_for(1);

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t meta[BLOCK_BYTES];

        assert_int_equal(hostile_base(meta, &geometry), 72);
        for (uint8_t b = 0; b < cases[i].bytes; b++)
            meta[cases[i].at + b] = (uint8_t)(cases[i].value >> (8 * b));
        assert_unparsable(meta, &geometry, cases[i].text);
    }
}

static void
hostile_base_is_good_before_it_is_changed(void **state)
{
    for (uint32_t parity_count = 1; parity_count <= 2; parity_count++) {
        const struct journal_geometry geometry = geometry_for(parity_count);
        uint8_t meta[BLOCK_BYTES];
        struct journal_entry entry;

        (void)hostile_base(meta, &geometry); /* only its bytes matter here */
        assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
        assert_int_equal(entry.payload_count, 3);
        assert_int_equal(entry.block_count, 1 + parity_count);
    }
}

static void
parity_has_the_size_of_its_level(void **state)
{
    const struct journal_geometry raid5 = geometry_for(1);
    const struct journal_geometry raid6 = geometry_for(2);
    uint8_t meta[BLOCK_BYTES];

    (void)hostile_base(meta, &raid5); /* only its bytes matter here */
    assert_unparsable(meta, &raid6, "PARITY size 8 sectors: not 16");
    (void)hostile_base(meta, &raid6); /* as above */
    assert_unparsable(meta, &raid5, "PARITY size 16 sectors: not 8");
}

static void
last_block_of_array_and_component_is_in_range(void **state)
{
    const struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_entry entry;

    (void)hostile_base(meta, &geometry); /* only its bytes matter here */
    store_le64(meta + 40, ARRAY_BYTES / 512 - 8);
    store_le64(meta + 60, COMPONENT_BYTES / 512 - 8);
    store_le64(meta + 80, COMPONENT_BYTES / 512 - 8);
    mend_checksum(meta, &geometry);
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
}

static void
entry_longer_than_the_ring_does_not_parse(void **state)
{
    struct journal_geometry geometry = geometry_for(1);
    uint8_t meta[BLOCK_BYTES];
    struct journal_writer writer;
    struct journal_entry entry;

    journal_writer_init(&writer, meta, SEQ, POSITION);
    for (uint64_t i = 0; i < 8; i++)
        journal_writer_add_data(&writer, i * BLOCK_BYTES, 0);
    journal_writer_finish(&writer, geometry.checksum_seed);
    geometry.ring_bytes = 9 * BLOCK_BYTES;
    assert_int_equal(journal_entry_decode(meta, POSITION, &geometry, &entry, NULL), 0);
    geometry.ring_bytes = 8 * BLOCK_BYTES;
    assert_unparsable(meta, &geometry, "8 blocks are more than the journal has");
}

static void
geometry_comes_from_the_journals_superblock(void **state)
{
    struct superblock sb;
    struct journal_geometry geometry;

    superblock_init(&sb, 2, 5);
    sb.level = 6;
    sb.layout = 2;
    sb.raid_disks = 5;
    sb.chunk_sectors = 128;
    sb.size_sectors = 1000;
    sb.data_size_sectors = 30727;
    memcpy(sb.set_uuid, real_uuid, sizeof sb.set_uuid);
    journal_geometry_init(&geometry, &sb);
    assert_int_equal(geometry.ring_bytes, 30720 * 512);
    assert_int_equal(geometry.component_bytes, 896 * 512);
    assert_int_equal(geometry.array_bytes, 3 * 896 * 512);
    assert_int_equal(geometry.parity_count, 2);
    assert_int_equal(geometry.checksum_seed, 0x109127f7);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksum_is_crc32c_without_inversion),
        cmocka_unit_test(checksum_may_be_taken_in_parts),
        cmocka_unit_test(seed_is_the_checksum_of_the_uuid),
        cmocka_unit_test(empty_entry_is_the_one_mdadm_writes),
        cmocka_unit_test(real_entry_decodes_to_its_payloads),
        cmocka_unit_test(writer_writes_what_the_kernel_wrote),
        cmocka_unit_test(raid6_parity_names_p_and_q),
        cmocka_unit_test(full_meta_block_round_trips),
        cmocka_unit_test(one_meta_block_takes_a_step_of_203_members),
        cmocka_unit_test(entry_wraps_at_the_end_of_the_ring),
        cmocka_unit_test(ring_arithmetic_wraps_once),
        cmocka_unit_test(flush_payload_lists_stripes_and_names_no_block),
        cmocka_unit_test(payloads_may_fill_the_meta_block_to_its_last_byte),
        cmocka_unit_test(every_changed_byte_ends_the_log),
        cmocka_unit_test(block_of_another_place_or_array_ends_the_log),
        cmocka_unit_test(another_version_ends_the_log),
        cmocka_unit_test(zeros_end_the_log),
        cmocka_unit_test(good_checksum_does_not_make_a_bad_field_good),
        cmocka_unit_test(hostile_base_is_good_before_it_is_changed),
        cmocka_unit_test(parity_has_the_size_of_its_level),
        cmocka_unit_test(last_block_of_array_and_component_is_in_range),
        cmocka_unit_test(entry_longer_than_the_ring_does_not_parse),
        cmocka_unit_test(geometry_comes_from_the_journals_superblock),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
