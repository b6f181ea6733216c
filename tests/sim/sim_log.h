/*
 * sim_log.h: journals, as the simulator makes them and as the judge recovers them.
 *
 * The judge's recovery is slow and obvious, and shares nothing with the engine's but the decoding
 * of entries: it walks the ring from the tail that the superblock names, keeps for each stripe the
 * newest copy of each block of its complete cycles and of the open one, and puts them on the disks'
 * images: complete cycles as they were logged; the data of open cycles with parity made from all
 * data.
 *
 * L1. The tail names a valid entry, whatever the crash.
 *
 * And of logs that nobody but the engine has written (the finder is told, and judges):
 *
 * L2. What is data-only can be logged again behind the log's end without touching anything from the
 *     tail on: each stripe in an entry of its own, one empty entry before them all, and one block
 *     that stays free. (A kernel that takes over does that, and does not look whether it fits.)
 *
 * L3. No FLUSH payload: a kernel would believe it.
 *
 * Made logs are such as the kernel leaves in write-back: data-only stripes, cycles one upon the
 * other, parity without data, FLUSH payloads (true or premature), empty entries, a torn entry at
 * the end with whole ones behind it, remains of older laps; some nearly fill the ring.
 */
#ifndef STRIPELOG_SIM_LOG_H
#define STRIPELOG_SIM_LOG_H

#include "sim_judge.h"

struct log_found {
    uint64_t entries, data_only, data_parity; /* entries; stripes */
    bool fits_again;                          /* L2 */
    uint64_t flush_payloads;                  /* L3 */
};

/* Recovers what is in `stable`; image_undo(judge->undo) takes it back. */
void log_recover(struct judge *judge, const struct verdict *verdict, struct log_found *found);

struct log_make {
    unsigned disk;
    uint64_t data_offset, ring_blocks;
    bool foreign; /* as described; else one empty entry */
    bool full;    /* as many as fit */
};

/* Fills the ring of the disk in `stable`, after judge_fill; what the log holds becomes the model's
 * content, and part of what it says is on the members already. Returns the tail (bytes). */
uint64_t log_make(struct judge *judge, const struct log_make *make, const struct superblock *sb,
                  struct sim_random *random);

#endif
