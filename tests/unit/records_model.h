/*
 * records_model.h: which block of a log counts, slowly and plainly: the judge of records.c.
 *
 * records.c goes through each stripe's history step by step. The model does not: it asks of each
 * block, looking at the whole log, whether it counts:
 *
 *   data     is closed by the first parity of its stripe that stands behind it
 *   replay   of a place is the last closed data for it
 *   open     is the last data for it that is not closed
 *   parity   counts if data of its stripe stands between it and the parity before it (or the
 *            beginning); the last that counts is replayed
 *
 * Of complete cycles that have been forgotten on the way, nothing counts any more: a cycle is
 * complete at its parity.
 */
#ifndef STRIPELOG_TEST_RECORDS_MODEL_H
#define STRIPELOG_TEST_RECORDS_MODEL_H

#include "base/base.h"

/* A block of the log. Steps are payloads, in order; P and Q are of one step. */
struct model_block {
    uint64_t stripe, position;
    unsigned member;
    bool is_data, is_p;
    uint32_t checksum;
    unsigned step;
};

struct model {
    struct model_block *blocks; /* borrowed */
    unsigned count;
    unsigned forgotten; /* cycles that were complete before this step are forgotten */
};

#define MODEL_NEVER UINT32_MAX

/* The step that closes it. */
static inline unsigned
model_closed_at(const struct model *model, const struct model_block *data)
{
    for (unsigned i = 0; i < model->count; i++)
        if (model->blocks[i].is_p && model->blocks[i].stripe == data->stripe &&
            model->blocks[i].step > data->step)
            return model->blocks[i].step;
    return MODEL_NEVER;
}

static inline bool
model_parity_counts(const struct model *model, const struct model_block *parity)
{
    unsigned after = 0; /* steps before this one are of an earlier cycle */

    for (unsigned i = 0; i < model->count; i++)
        if (model->blocks[i].is_p && model->blocks[i].stripe == parity->stripe &&
            model->blocks[i].step < parity->step)
            after = model->blocks[i].step + 1;
    for (unsigned i = 0; i < model->count; i++)
        if (model->blocks[i].is_data && model->blocks[i].stripe == parity->stripe &&
            model->blocks[i].step >= after && model->blocks[i].step < parity->step)
            return true;
    return false;
}

static inline bool
model_counts(const struct model *model, const struct model_block *block, bool open)
{
    const unsigned closed_at = block->is_data ? model_closed_at(model, block) : block->step;

    if (open)
        return block->is_data && closed_at == MODEL_NEVER;
    return closed_at != MODEL_NEVER && closed_at >= model->forgotten &&
           (block->is_data || model_parity_counts(model, block));
}

/* Which block counts for a place; NULL if none. */
static inline const struct model_block *
model_find(const struct model *model, uint64_t stripe, unsigned member, bool open)
{
    for (unsigned i = model->count; i-- > 0;)
        if (model->blocks[i].stripe == stripe && model->blocks[i].member == member &&
            model_counts(model, &model->blocks[i], open))
            return &model->blocks[i];
    return NULL;
}

#endif
