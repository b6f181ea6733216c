/*
 * sim_story.h: arrays with a journal that are put together by hand, for tests that tell one story
 * each. An array of zeros is made, its log is written block by block, it is started, and what it
 * does, writes and reads is looked at.
 *
 *   story_make -> story_entry_... -> story_store -> story_play -> story_restart -+
 *                                                       ^                        |
 *                                                       +------------------------+
 */
#ifndef STRIPELOG_SIM_STORY_H
#define STRIPELOG_SIM_STORY_H

#include "array/array.h"
#include "format/journal_entry.h"
#include "sim_disk.h"

#define CHUNK_BYTES  (16 * KIB)
#define DATA_OFFSET  (16 * KIB)
#define SEQ          UINT64_C(1000)
#define MINOR        2u
#define SUPER_OFFSET (4 * KIB)

struct story {
    struct sim_cluster cluster;
    struct sim_image image;
    struct sim_random random;
    /* Of the array; before story_make. */
    int level;
    unsigned members;  /* the journal is the disk behind them */
    unsigned left_out; /* disks that are not offered */
    uint64_t member_bytes, ring_blocks;
    struct superblock superblocks[SIM_DISKS_MAX];
    struct journal_geometry geometry;
    uint8_t *memory; /* STORY_BLOCKS_MAX blocks */

    /* A run. config: what else is to be asked for. */
    struct array_config config;
    unsigned force;
    void (*run)(struct story *s);
    struct array *array;
    int started;
    unsigned told[ARRAY_WARNING + 1]; /* events, by kind */
    char text[480];                   /* of the last ARRAY_DATA_LOST */
    uint8_t last;                     /* what was acknowledged last */
    struct error error;
    struct array_status status; /* after the start */
};

#define STORY_BLOCKS_MAX 64u

/* For cmocka: *state is a struct story, RAID-5 of three members of 64 KiB, a ring of 32 blocks. */
int story_setup(void **state);
int story_teardown(void **state);

/* Zeros everywhere, so parity is good; no entry in the ring yet. */
void story_make(struct story *s);
uint8_t *story_ring_block(struct story *s, unsigned block);
void story_entry_empty(struct story *s, unsigned block, uint64_t seq);
/* One DATA payload, for the first block of the array. */
void story_entry_data(struct story *s, unsigned block, uint64_t seq, uint8_t fill);
/* What was made is on the disks. */
void story_store(struct story *s);

/* Starts the array and, if that works (s->started), runs and destroys it. */
void story_play(struct story *s, void (*run)(struct story *s));
/* The power is cut at this moment of the last run; what was not durable is there as `tear` says. */
void story_cut(struct story *s, uint64_t moment, enum sim_tear tear);
/* At its end, and everything that was written is there. */
void story_restart(struct story *s);

/* Blocks of the array, of which every byte is `fill`. */
int story_put(struct story *s, uint64_t block, unsigned count, uint8_t fill, bool fua);
int story_get(struct story *s, uint64_t block);
void story_expect(struct story *s, uint64_t block, unsigned count, uint8_t fill);
uint64_t story_events(struct story *s, unsigned disk);

#endif
