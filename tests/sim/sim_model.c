/* sim_model.c: see sim_model.h. */
#include "sim_model.h"
#include "sim_report.h"
#include <stdio.h>
#include <stdlib.h>

/* --- Content --------------------------------------------------------------------------------
 *
 * Word i of a sector is mix(version, sector) + i * STEP. mix is a multiplication by an odd number,
 * so the first word alone says which sector and which version it claims to be.
 */

#define MIX     UINT64_C(0xd1342543de82ef95)
#define STEP    UINT64_C(0x9e3779b97f4a7c15)
#define SALT    UINT64_C(0x5eed5eed12345678)
#define WORDS   (SECTOR_BYTES / 8)
#define MESSAGE 160

static uint64_t
unmix(uint64_t word)
{
    uint64_t inverse = MIX; /* Newton: doubles the right bits each time, from 3 */

    for (int i = 0; i < 5; ++i)
        inverse *= 2 - MIX * inverse;
    return (word - SALT) * inverse;
}

static uint64_t
first_word(uint64_t sector, uint32_t version)
{
    return ((uint64_t)version << 32 | sector) * MIX + SALT;
}

void
content_fill(uint8_t *memory, uint64_t sector, uint32_t version)
{
    const uint64_t first = first_word(sector, version);
    uint64_t words[WORDS];

    for (unsigned i = 0; i < WORDS; ++i)
        words[i] = first + i * STEP;
    memcpy(memory, words, sizeof words);
}

static bool
all_zero(const uint8_t *memory)
{
    return memory[0] == 0 && memcmp(memory, memory + 1, SECTOR_BYTES - 1) == 0;
}

static bool
is_version(const uint8_t *memory, uint64_t sector, uint32_t version)
{
    const uint64_t first = first_word(sector, version);
    uint64_t words[WORDS], differ = 0;

    memcpy(words, memory, sizeof words);
    for (unsigned i = 0; i < WORDS; ++i)
        differ |= words[i] ^ (first + i * STEP);
    return differ == 0;
}

bool
content_is(const struct model *model, const uint8_t *memory, uint64_t sector, uint32_t value)
{
    if (value == VALUE_UNKNOWN)
        return true;
    if (value == VALUE_NONE)
        return false;
    if (value == VALUE_ZERO)
        return all_zero(memory);
    if (value & VALUE_BLOB)
        return memcmp(memory, model->blobs + (size_t)(value & ~VALUE_BLOB) * SECTOR_BYTES,
                      SECTOR_BYTES) == 0;
    return is_version(memory, sector, value);
}

static void
value_describe(uint32_t value, char *text, size_t bytes)
{
    if (value == VALUE_UNKNOWN)
        (void)snprintf(text, bytes, "anything"); /* cut off is fine, here and below */
    else if (value == VALUE_ZERO)
        (void)snprintf(text, bytes, "zeros");
    else if (value & VALUE_BLOB)
        (void)snprintf(text, bytes, "kept %u", value & ~VALUE_BLOB);
    else
        (void)snprintf(text, bytes, "v%u", value);
}

void
content_describe(const struct model *model, const uint8_t *memory, uint64_t sector,
                 char text[MESSAGE])
{
    uint64_t word, name;

    if (all_zero(memory)) {
        (void)snprintf(text, MESSAGE, "zeros");
        return;
    }
    for (uint32_t b = 0; b < model->blobs_count; ++b)
        if (memcmp(memory, model->blobs + (size_t)b * SECTOR_BYTES, SECTOR_BYTES) == 0) {
            (void)snprintf(text, MESSAGE, "kept %u", b);
            return;
        }
    memcpy(&word, memory, sizeof word);
    name = unmix(word);
    if ((uint32_t)(name >> 32) <= model->version && (uint32_t)name < model->sectors) {
        const bool whole = is_version(memory, (uint32_t)name, (uint32_t)(name >> 32));

        (void)snprintf(text, MESSAGE, "%sv%u of sector %u%s",
                       whole ? "" : "a mixture beginning as ", (uint32_t)(name >> 32),
                       (uint32_t)name, (uint32_t)name == sector ? "" : " (another sector's)");
    } else {
        (void)snprintf(text, MESSAGE, "garbage (%016llx)", (unsigned long long)word);
    }
}

/* --- Life ----------------------------------------------------------------------------------- */

static void *
grow(void *memory, uint64_t count, size_t each)
{
    memory = realloc(memory, count * each);
    if (memory == NULL)
        sim_fail("no memory for the model");
    return memory;
}

void
model_create(struct model *model)
{
    memset(model, 0, sizeof *model);
}

void
model_destroy(struct model *model)
{
    free(model->base);
    free(model->seen);
    free(model->seen_at);
    free(model->seen_by);
    free(model->list);
    free(model->exclusive);
    free(model->nodes);
    free(model->ops);
    free(model->blobs);
}

static void
model_clear(struct model *model)
{
    memset(model->seen_at, 0, model->sectors * sizeof *model->seen_at);
    memset(model->list, 0, model->sectors * sizeof *model->list);
    memset(model->exclusive, 0, model->sectors);
    model->nodes_count = 0;
    model->ops_count = 0;
}

void
model_begin(struct model *model, uint64_t sectors)
{
    if (sectors > model->sectors_capacity) {
        model->base = grow(model->base, sectors, sizeof *model->base);
        model->seen = grow(model->seen, sectors, sizeof *model->seen);
        model->seen_at = grow(model->seen_at, sectors, sizeof *model->seen_at);
        model->seen_by = grow(model->seen_by, sectors, sizeof *model->seen_by);
        model->list = grow(model->list, sectors, sizeof *model->list);
        model->exclusive = grow(model->exclusive, sectors, 1);
        model->sectors_capacity = sectors;
    }
    model->sectors = sectors;
    model->journaled = false;
    model->blobs_count = 0;
    model->version = VALUE_FIRST;
    for (uint64_t s = 0; s < sectors; ++s)
        model->base[s] = VALUE_FIRST;
    model_clear(model);
}

/* --- What is allowed ------------------------------------------------------------------------ */

/* A value and when it was written; of a sector's candidates. */
struct candidate_value {
    uint32_t value;
    uint64_t begun, acknowledged;
};

static uint32_t
op_value(const struct model_op *op, uint64_t sector)
{
    if (op->head_blob != 0 && sector == op->first)
        return op->head_blob;
    if (op->tail_blob != 0 && sector == op->first + op->count - 1)
        return op->tail_blob;
    return op->kind == MODEL_WRITE ? op->version : VALUE_ZERO;
}

/* Some definite write that began after `acknowledged` and was itself acknowledged (durable) before
 * the moment. */
static bool
superseded(const struct model *model, uint64_t sector, uint64_t acknowledged, uint64_t moment,
           bool durable)
{
    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
        const struct model_op *const op = &model->ops[model->nodes[n - 1].op];
        const uint64_t done = durable ? op->durable : op->acknowledged;

        if (op->definite && op->begun > acknowledged && done <= moment)
            return true;
    }
    return false;
}

/* V2: a settled read later than this value, and over before the one that began now, saw another. */
static bool
outseen(const struct model *model, uint64_t sector, uint64_t acknowledged, uint32_t value,
        uint64_t begun)
{
    return model->seen_at[sector] != 0 && acknowledged < model->seen_at[sector] &&
           begun > model->seen_by[sector] && value != model->seen[sector];
}

static uint32_t
match_read(const struct model *model, const uint8_t *memory, uint64_t sector, uint64_t begun)
{
    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
        const struct model_op *const op = &model->ops[model->nodes[n - 1].op];
        const uint32_t value = op_value(op, sector);

        if (!superseded(model, sector, op->acknowledged, begun, false) &&
            !outseen(model, sector, op->acknowledged, value, begun) &&
            content_is(model, memory, sector, value))
            return value;
    }
    if (!superseded(model, sector, 0, begun, false) &&
        !outseen(model, sector, 0, model->base[sector], begun) &&
        content_is(model, memory, sector, model->base[sector]))
        return model->base[sector];
    return VALUE_NONE;
}

uint32_t
model_after_crash(const struct model *model, const uint8_t *memory, uint64_t sector,
                  uint64_t moment)
{
    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
        const struct model_op *const op = &model->ops[model->nodes[n - 1].op];

        if (op->begun <= moment && !superseded(model, sector, op->acknowledged, moment, true) &&
            content_is(model, memory, sector, op_value(op, sector)))
            return op_value(op, sector);
    }
    if (!superseded(model, sector, 0, moment, true) &&
        content_is(model, memory, sector, model->base[sector]))
        return model->base[sector];
    return VALUE_NONE;
}

/* Is what the op wrote there in all sectors of the block that `left` still names? */
static bool
op_is_whole(const struct model *model, const struct model_op *op, const uint8_t *memory,
            uint64_t sector, unsigned left)
{
    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        if ((left >> s & 1) && sector + s >= op->first && sector + s < op->first + op->count &&
            !content_is(model, memory + s * SECTOR_BYTES, sector + s, op_value(op, sector + s)))
            return false;
    return true;
}

static unsigned
op_sectors(const struct model_op *op, uint64_t sector)
{
    unsigned sectors = 0;

    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        if (sector + s >= op->first && sector + s < op->first + op->count)
            sectors |= 1u << s;
    return sectors;
}

/* Takes away, again and again, a write that may have been the last of those that are left. */
bool
model_block_whole(const struct model *model, const uint8_t *memory, uint64_t sector,
                  uint64_t moment)
{
    unsigned left = (1u << BLOCK_SECTORS) - 1, before;

    do {
        before = left;
        for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
            for (uint32_t n = model->list[sector + s]; n != 0; n = model->nodes[n - 1].next) {
                const struct model_op *const op = &model->ops[model->nodes[n - 1].op];

                if (op->begun <= moment && op_is_whole(model, op, memory, sector, left))
                    left &= ~op_sectors(op, sector);
            }
    } while (left != before);
    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        if ((left >> s & 1) &&
            !content_is(model, memory + s * SECTOR_BYTES, sector + s, model->base[sector + s]))
            return false;
    return true;
}

/* Who wrote what a sector holds. */
struct writer {
    bool certain; /* only one can have been */
    uint32_t op;  /* its number + 1; 0: what was there at the start */
};

static struct writer
writer_of(const struct model *model, const uint8_t *memory, uint64_t sector, uint64_t moment)
{
    const bool base = content_is(model, memory, sector, model->base[sector]);
    struct writer writer = {.certain = base && model->base[sector] != VALUE_UNKNOWN};
    unsigned count = base;

    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
        const uint32_t number = model->nodes[n - 1].op;
        const struct model_op *const op = &model->ops[number];

        if (op->begun > moment || !content_is(model, memory, sector, op_value(op, sector)))
            continue;
        writer = (struct writer){++count == 1, number + 1};
    }
    return writer;
}

/* The op was done before one of the writers began, or is one of them: the block has it. */
static bool
op_is_there(const struct model *model, uint32_t number, const struct writer *writers)
{
    const struct model_op *const op = &model->ops[number];

    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        if (writers[s].certain && writers[s].op != 0 &&
            (writers[s].op == number + 1 ||
             (op->definite && op->acknowledged < model->ops[writers[s].op - 1].begun)))
            return true;
    return false;
}

/* Sure to be older than what the op wrote. */
static bool
writer_is_older(const struct model *model, struct writer writer, uint32_t number)
{
    const struct model_op *const op = &model->ops[number];

    if (!writer.certain || writer.op == number + 1)
        return false;
    return writer.op == 0 || (model->ops[writer.op - 1].definite &&
                              model->ops[writer.op - 1].acknowledged < op->begun);
}

bool
model_block_ordered(const struct model *model, const uint8_t *memory, uint64_t sector,
                    uint64_t moment)
{
    struct writer writers[BLOCK_SECTORS];

    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        writers[s] = writer_of(model, memory + s * SECTOR_BYTES, sector + s, moment);
    for (unsigned s = 0; s < BLOCK_SECTORS; ++s)
        for (uint32_t n = model->list[sector + s]; n != 0; n = model->nodes[n - 1].next) {
            const uint32_t number = model->nodes[n - 1].op;

            if (model->ops[number].begun <= moment && writer_is_older(model, writers[s], number) &&
                op_is_there(model, number, writers))
                return false;
        }
    return true;
}

void
model_describe(const struct model *model, uint64_t sector, uint64_t moment, char text[400])
{
    size_t used = 0;
    char name[32];

    value_describe(model->base[sector], name, sizeof name);
    used += (size_t)snprintf(text, 400, "%s at start", name);
    for (uint32_t n = model->list[sector]; n != 0 && used < 320; n = model->nodes[n - 1].next) {
        const struct model_op *const op = &model->ops[model->nodes[n - 1].op];

        if (op->begun > moment)
            continue;
        value_describe(op_value(op, sector), name, sizeof name);
        used += (size_t)snprintf(text + used, 400 - used, ", %s%s begun %llu", name,
                                 op->definite ? "" : " (perhaps)", (unsigned long long)op->begun);
        if (op->acknowledged <= moment)
            used += (size_t)snprintf(text + used, 400 - used, " acked %llu",
                                     (unsigned long long)op->acknowledged);
        if (op->durable <= moment)
            used += (size_t)snprintf(text + used, 400 - used, " durable %llu",
                                     (unsigned long long)op->durable);
    }
}

/* --- Requests ------------------------------------------------------------------------------- */

bool
model_may_begin(const struct model *model, uint64_t first, uint64_t count)
{
    for (uint64_t s = first; s < first + count; ++s)
        if (model->exclusive[s])
            return false;
    return true;
}

uint32_t
model_settled(const struct model *model, uint64_t sector)
{
    const struct model_op *last = NULL;

    if (model->seen_at[sector] == 0 && model->list[sector] == 0)
        return model->base[sector] == VALUE_UNKNOWN ? VALUE_NONE : model->base[sector];
    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
        const struct model_op *const op = &model->ops[model->nodes[n - 1].op];

        if (op->acknowledged == SIM_NEVER)
            return VALUE_NONE;
        if (last == NULL)
            last = op;
    }
    /* Only where the newest stands alone is its value certain without a read. */
    if (last != NULL && last->definite && last->acknowledged > model->seen_at[sector]) {
        for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next) {
            const struct model_op *const op = &model->ops[model->nodes[n - 1].op];

            if (op != last && op->acknowledged >= last->begun)
                return VALUE_NONE;
        }
        return op_value(last, sector);
    }
    return VALUE_NONE;
}

uint32_t
model_version(struct model *model)
{
    return ++model->version;
}

uint32_t
model_blob(struct model *model, const uint8_t *memory)
{
    if (model->blobs_count == model->blobs_capacity) {
        model->blobs_capacity = model->blobs_capacity ? 2 * model->blobs_capacity : 64;
        model->blobs = grow(model->blobs, model->blobs_capacity, SECTOR_BYTES);
    }
    memcpy(model->blobs + (size_t)model->blobs_count * SECTOR_BYTES, memory, SECTOR_BYTES);
    return VALUE_BLOB | model->blobs_count++;
}

static void
mark_edges(struct model *model, const struct model_op *op, uint8_t mark)
{
    if (op->head_blob != 0)
        model->exclusive[op->first] = mark;
    if (op->tail_blob != 0)
        model->exclusive[op->first + op->count - 1] = mark;
}

static void
list_add(struct model *model, uint64_t sector, uint32_t op)
{
    if (model->nodes_count == model->nodes_capacity) {
        model->nodes_capacity = model->nodes_capacity ? 2 * model->nodes_capacity : 65536;
        model->nodes = grow(model->nodes, model->nodes_capacity, sizeof *model->nodes);
    }
    model->nodes[model->nodes_count] = (struct model_node){.op = op, .next = model->list[sector]};
    model->list[sector] = ++model->nodes_count;
}

static struct model_op *
op_add(struct model *model)
{
    if (model->ops_count == model->ops_capacity) {
        model->ops_capacity = model->ops_capacity ? 2 * model->ops_capacity : 256;
        model->ops = grow(model->ops, model->ops_capacity, sizeof *model->ops);
    }
    return &model->ops[model->ops_count++];
}

uint32_t
model_op_begin(struct model *model, const struct model_op *op, uint64_t now)
{
    const uint32_t number = model->ops_count;
    struct model_op *kept;

    assert(op->first + op->count <= model->sectors);
    kept = op_add(model);
    *kept = *op;
    kept->definite = false; /* until it is acknowledged */
    kept->begun = now;
    kept->acknowledged = kept->durable = SIM_NEVER;
    for (uint64_t s = op->first; s < op->first + op->count; ++s)
        list_add(model, s, number);
    mark_edges(model, op, 1);
    return number;
}

void
model_op_end(struct model *model, uint32_t number, int result, bool durable, uint64_t now)
{
    struct model_op *const op = &model->ops[number];

    op->acknowledged = now;
    op->definite = result == 0 && op->kind != MODEL_TRIM;
    if (result == 0 && durable)
        op->durable = now;
    mark_edges(model, op, 0);
}

void
model_flushed(struct model *model, uint64_t begun, uint64_t now)
{
    for (uint32_t i = 0; i < model->ops_count; ++i)
        if (model->ops[i].acknowledged < begun && model->ops[i].durable == SIM_NEVER)
            model->ops[i].durable = now;
}

void
model_forget(struct model *model, uint64_t first, uint64_t count)
{
    const uint32_t ops_count = model->ops_count;

    for (uint64_t s = first; s < first + count; ++s) {
        model->base[s] = VALUE_UNKNOWN;
        model->seen_at[s] = 0;
        model->list[s] = 0;
    }
    /* In the place of each that is under way there stands one that never ends. */
    for (uint32_t i = 0; i < ops_count; ++i) {
        const struct model_op op = model->ops[i];
        const uint64_t begin = max_u64(first, op.first);
        const uint64_t end = min_u64(first + count, op.first + op.count);
        uint32_t number = i;

        if (op.acknowledged != SIM_NEVER || begin >= end)
            continue;
        if (!op.endless) {
            number = model->ops_count;
            *op_add(model) = op;
            model->ops[number].endless = true;
        }
        for (uint64_t s = begin; s < end; ++s)
            list_add(model, s, number);
    }
}

void
model_make_void(struct model *model, uint64_t first, uint64_t count)
{
    for (uint64_t s = first; s < first + count; ++s) {
        model->base[s] = VALUE_UNKNOWN;
        model->seen_at[s] = 0;
        for (uint32_t n = model->list[s]; n != 0; n = model->nodes[n - 1].next) {
            struct model_op *const op = &model->ops[model->nodes[n - 1].op];

            if (op->acknowledged != SIM_NEVER)
                continue;
            if (op->head_blob != 0 && s == op->first)
                op->head_blob = VALUE_UNKNOWN;
            if (op->tail_blob != 0 && s == op->first + op->count - 1)
                op->tail_blob = VALUE_UNKNOWN;
        }
    }
}

static bool
someone_writes(const struct model *model, uint64_t sector, uint64_t since)
{
    for (uint32_t n = model->list[sector]; n != 0; n = model->nodes[n - 1].next)
        if (model->ops[model->nodes[n - 1].op].acknowledged >= since)
            return true;
    return false;
}

void
model_check_read(struct model *model, const uint8_t *memory, uint64_t first, uint64_t count,
                 uint64_t begun, uint64_t now, const char *who)
{
    for (uint64_t s = first; s < first + count; ++s, memory += SECTOR_BYTES) {
        uint32_t value;

        if (model->list[s] == 0 && content_is(model, memory, s, model->base[s]))
            continue;
        value = match_read(model, memory, s, begun);
        if (value == VALUE_NONE) {
            char found[MESSAGE], allowed[400];

            content_describe(model, memory, s, found);
            model_describe(model, s, now, allowed);
            sim_fail("wrong data: %s, read from moment %llu on, finds %s in sector %llu; the model "
                     "has %s",
                     who, (unsigned long long)begun, found, (unsigned long long)s, allowed);
        }
        if (value != VALUE_UNKNOWN && !someone_writes(model, s, begun)) {
            model->seen[s] = value;
            model->seen_at[s] = begun;
            model->seen_by[s] = now;
        }
    }
}

void
model_restart(struct model *model, const uint32_t *values)
{
    memcpy(model->base, values, model->sectors * sizeof *values);
    model_clear(model);
}
