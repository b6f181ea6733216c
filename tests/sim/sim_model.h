/*
 * sim_model.h: the judge of contents: which values a sector of the array may have.
 *
 * Slow and obvious: it keeps every write of the run, with the moments at which it began, was
 * acknowledged and became durable, and derives what is allowed from these alone. A value is not
 * bytes but a name: the sector's own number and the version that wrote it are in its bytes, so
 * that old data, another sector's data and mixed data are told from each other.
 *
 * The promise without a journal, for each 512-byte sector:
 *
 *   V1. While running, a read returns the value of a write that was under way during the read, or
 *       of one acknowledged before and not superseded: w supersedes v when w began after v was
 *       acknowledged, and w was acknowledged before the read began.
 *   V2. What a read saw while nobody wrote stays what reads see, until the next write.
 *   V3. After a crash, any value written since (and with) the last durable one: v is gone when a
 *       w that began after v was acknowledged was durable at the crash. Durable: acknowledged with
 *       FUA, or acknowledged before a flush began that was itself acknowledged.
 *   V4. A write that failed, and a trim, may or may not have happened; they supersede nothing.
 *
 * With a journal (`journaled`) the promise is stronger:
 *
 *   V5. What is acknowledged while the journal is written through is durable (the requester knows
 *       in which mode it is, and says so to model_op_end).
 *   V6. An aligned 4 KiB block is never a mixture: each write is there as a whole, as far as no
 *       other covers it, or not at all.
 *   V7. A block is as it once was: where a write is there, each one that had been acknowledged
 *       before it began is there too, as far as nothing later covers it. What is lost of a block is
 *       lost from the end.
 *
 * After a restart what the disks hold is judged once by V3, and what was found is then the only
 * value the sector may have (`base`).
 */
#ifndef STRIPELOG_SIM_MODEL_H
#define STRIPELOG_SIM_MODEL_H

#include "sim_disk.h"

#define VALUE_ZERO    0u
#define VALUE_FIRST   1u               /* the versions of data begin here */
#define VALUE_BLOB    0x80000000u      /* with the number of a kept sector: partly written ones */
#define VALUE_UNKNOWN UINT32_MAX       /* no promise: anything */
#define VALUE_NONE    (UINT32_MAX - 1) /* no value that the model knows */

enum model_kind { MODEL_WRITE, MODEL_ZERO, MODEL_TRIM };

struct model_op {
    enum model_kind kind;
    bool fua, definite;
    bool endless; /* stands in the place of a forgotten one */
    uint32_t version;
    uint64_t first, count;                 /* sectors */
    uint64_t begun, acknowledged, durable; /* moments; SIM_NEVER */
    uint32_t head_blob,
        tail_blob; /* VALUE_BLOB | n for a partly written first, last sector; or 0 */
};

struct model {
    uint64_t sectors;
    bool journaled;     /* V6, V7 */
    uint32_t *base;     /* owned: this and the next five, by sector */
    uint32_t *seen;     /* V2: the value, where seen_at != 0 */
    uint64_t *seen_at;  /* moment at which that read began */
    uint64_t *seen_by;  /* and at which it was answered */
    uint32_t *list;     /* first node + 1, newest first */
    uint8_t *exclusive; /* a write covers part of the sector: nobody else may begin one */
    struct model_node {
        uint32_t op, next;
    } * nodes; /* owned */
    uint32_t nodes_count, nodes_capacity;
    struct model_op *ops; /* owned; since the last start */
    uint32_t ops_count, ops_capacity;
    uint8_t *blobs; /* owned; whole history */
    uint32_t blobs_count, blobs_capacity;
    uint32_t version; /* the last one given out */
    uint64_t sectors_capacity;
};

void model_create(struct model *model);
void model_destroy(struct model *model);
/* For one history: every sector has VALUE_FIRST. */
void model_begin(struct model *model, uint64_t sectors);

/* --- Content --- */

/* The bytes of a data version of a sector. */
void content_fill(uint8_t *memory, uint64_t sector, uint32_t version);
/* Whether these are the bytes of the value. */
bool content_is(const struct model *model, const uint8_t *memory, uint64_t sector, uint32_t value);
/* In words, for messages. */
void content_describe(const struct model *model, const uint8_t *memory, uint64_t sector,
                      char text[160]);

/* --- Requests --- */

/* May a write of these sectors begin now? `edge`: it covers some of them in part. */
bool model_may_begin(const struct model *model, uint64_t first, uint64_t count);
/* The only value the sector has, and nobody is writing it; else VALUE_NONE. */
uint32_t model_settled(const struct model *model, uint64_t sector);
uint32_t model_version(struct model *model);
/* Keeps a sector of bytes; the value names it. */
uint32_t model_blob(struct model *model, const uint8_t *memory);
/* The op by its number. */
uint32_t model_op_begin(struct model *model, const struct model_op *op, uint64_t now);
/* durable: if it was done, it is durable as well. */
void model_op_end(struct model *model, uint32_t op, int result, bool durable, uint64_t now);
/* A flush that began then was acknowledged now. */
void model_flushed(struct model *model, uint64_t begun, uint64_t now);

/* V1, V2. Fails the history if the sectors that were read are not allowed. */
void model_check_read(struct model *model, const uint8_t *memory, uint64_t first, uint64_t count,
                      uint64_t begun, uint64_t now, const char *who);

/* What was written there is lost, and named: whatever is there is fine. Who is writing may have
 * done so there before, or may yet: that is fine too. */
void model_forget(struct model *model, uint64_t first, uint64_t count);

/* What was there before this run is no longer promised, nor what is being put together with it. */
void model_make_void(struct model *model, uint64_t first, uint64_t count);

/* --- After a crash --- */

/* V3: the value that the memory holds, if a crash at the moment allows it; else VALUE_NONE. */
uint32_t model_after_crash(const struct model *model, const uint8_t *memory, uint64_t sector,
                           uint64_t moment);
/* V6 for the block that begins at the sector, each sector of which V3 allows. */
bool model_block_whole(const struct model *model, const uint8_t *memory, uint64_t sector,
                       uint64_t moment);
/* V7 for the block that begins at the sector, for each of which V3 allows what it holds. */
bool model_block_ordered(const struct model *model, const uint8_t *memory, uint64_t sector,
                         uint64_t moment);
/* The allowed values in words. */
void model_describe(const struct model *model, uint64_t sector, uint64_t moment, char text[400]);
/* A new run begins from these values (sectors of them). */
void model_restart(struct model *model, const uint32_t *values);

#endif
