/*
 * fuzz_journal_entry.c: any 4096 bytes as a journal meta block.
 *
 *   input    control (1 byte) | the meta block, padded with 0
 *   control  bit 0: RAID-6; bit 1: first put magic, version, position and checksum right, so that
 *            the parser is reached; bits 2-3: the ring's size; bits 4-7: the position in it
 *
 * What is accepted is walked, written again by our own writer and decoded again.
 */
#include "fuzz.h"

#include "format/journal_entry.h"

static struct journal_geometry
geometry_of(uint8_t control)
{
    static const uint64_t rings[] = {2 * BLOCK_BYTES, 16 * BLOCK_BYTES, 1 * MIB, 1ull << 62};
    static const uint8_t uuid[SUPERBLOCK_UUID_BYTES] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};

    return (struct journal_geometry){
        .ring_bytes = rings[control >> 2 & 3],
        .array_bytes = 32 * MIB,
        .component_bytes = 16 * MIB,
        .parity_count = 1 + (control & 1),
        .checksum_seed = journal_checksum_seed(uuid),
    };
}

static void
put_right(uint8_t meta[BLOCK_BYTES], uint64_t position_bytes, uint32_t seed)
{
    store_le32(meta, 0x6433c509);
    store_le32(meta + 4, 0);
    meta[8] = 1;
    store_le64(meta + 24, position_bytes / SECTOR_BYTES);
    store_le32(meta + 4, journal_checksum(seed, meta, BLOCK_BYTES));
}

/* J1 for one payload. */
static void
check_payload(const struct journal_payload *payload, const struct journal_geometry *geometry,
              const struct journal_entry *entry)
{
    const uint64_t limit =
        payload->type == JOURNAL_DATA ? geometry->array_bytes : geometry->component_bytes;

    promise(payload->location_bytes % BLOCK_BYTES == 0);
    promise(payload->location_bytes < limit);
    for (uint32_t i = 0; i < payload->block_count; i++) {
        const uint64_t position = journal_payload_position(entry, payload, geometry, i);

        promise(position < geometry->ring_bytes);
        promise(position % BLOCK_BYTES == 0);
        promise(position != entry->position_bytes);
    }
    for (uint32_t i = 0; i < payload->stripe_count; i++) {
        promise(journal_flush_stripe(payload, i) % BLOCK_BYTES == 0);
        promise(journal_flush_stripe(payload, i) < geometry->component_bytes);
    }
}

/* Walk an accepted entry and write its data and parity payloads into a second one. */
static uint32_t
copy_payloads(const uint8_t *meta, const struct journal_geometry *geometry,
              const struct journal_entry *entry, struct journal_writer *writer)
{
    struct journal_cursor cursor;
    struct journal_payload payload;
    uint32_t payloads = 0, blocks = 0, flushes = 0;

    journal_cursor_init(&cursor, meta, geometry, entry);
    while (journal_cursor_next(&cursor, &payload)) {
        check_payload(&payload, geometry, entry);
        promise(payload.block_first == blocks);
        payloads++;
        blocks += payload.block_count;
        if (payload.type == JOURNAL_DATA)
            journal_writer_add_data(writer, payload.location_bytes, payload.checksums[0]);
        else if (payload.type == JOURNAL_PARITY)
            journal_writer_add_parity(writer, payload.location_bytes, payload.block_count,
                                      payload.checksums);
        else
            flushes++;
    }
    promise(payloads == entry->payload_count);
    promise(blocks == entry->block_count);
    return flushes;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t control = size > 0 ? data[0] : 0;
    const struct journal_geometry geometry = geometry_of(control);
    const uint64_t position = (control >> 4) * (uint64_t)BLOCK_BYTES % geometry.ring_bytes;
    uint8_t meta[BLOCK_BYTES] = {0}, again[BLOCK_BYTES];
    struct journal_entry entry, entry_again;
    struct journal_writer writer;
    struct format_error error = {""};
    uint32_t flushes;
    int r;

    if (size > 1)
        memcpy(meta, data + 1, min_u64(size - 1, sizeof meta));
    if (control & 2)
        put_right(meta, position, geometry.checksum_seed);
    r = journal_entry_decode(meta, position, &geometry, &entry, &error);
    promise(r == 0 || r == -EBADMSG || r == -ENOENT);
    promise((r == 0) == (error.text[0] == '\0'));
    promise(journal_entry_decode(meta, position, &geometry, &entry_again, NULL) == r);
    promise(!(control & 2) || r != -ENOENT);
    if (r < 0)
        return 0;

    promise(entry.block_count <= JOURNAL_ENTRY_BLOCKS_MAX);
    promise((entry.block_count + 1ull) * BLOCK_BYTES <= geometry.ring_bytes);
    promise(entry.meta_bytes >= JOURNAL_HEADER_BYTES);
    promise(entry.meta_bytes <= BLOCK_BYTES);
    promise(journal_entry_next(&entry, &geometry) < geometry.ring_bytes);

    journal_writer_init(&writer, again, entry.seq, position);
    flushes = copy_payloads(meta, &geometry, &entry, &writer);
    promise(writer.block_count == entry.block_count);
    journal_writer_finish(&writer, geometry.checksum_seed);
    promise(journal_entry_decode(again, position, &geometry, &entry_again, NULL) == 0);
    promise(entry_again.seq == entry.seq);
    promise(entry_again.block_count == entry.block_count);
    promise(entry_again.payload_count == entry.payload_count - flushes);
    if (flushes == 0)
        promise(memcmp(meta + JOURNAL_HEADER_BYTES, again + JOURNAL_HEADER_BYTES,
                       entry.meta_bytes - JOURNAL_HEADER_BYTES) == 0);
    return 0;
}
