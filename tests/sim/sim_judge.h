/*
 * sim_judge.h: the judge of what is on the disks.
 *
 * It knows the format of superblocks, the geometry and parity, and nothing of the engine. Given the
 * content of the disks it says what a start must come to (by rules written down here a second time,
 * in a few lines), what the array then holds, and whether parity agrees.
 *
 *   K1. A stripe of a complete array whose superblocks promise good parity (clean, or below the
 *       checkpoint) has good parity.
 *   K2. What a crash leaves in each sector is allowed by the model: read from the member in sync,
 *       or, where that is missing, reconstructed from the others.
 *   K3. Exception, the write hole: in a dirty array a missing member's block is void (anything)
 *       if, at the crash, its stripe had a write that was not durable, or a request under way, or
 *       parity that was not good before and no write since, durable at the crash, has made good.
 *   K4. With a journal what counts is what its recovery leaves (sim_log.h has one of the judge's
 *       own): then K3 concerns only parity that was not good before, and V5 to V7 hold.
 *   K5. Except where the journal has failed, and what was cached is being written to the members
 *       without being logged: there K3 holds as without a journal; and where the journal cannot
 *       have kept what was cached, a block that was being written may be a mixture. Parity of
 *       these stripes is bad until the resync has come by: a start that caches again what the log
 *       holds makes none.
 */
#ifndef STRIPELOG_SIM_JUDGE_H
#define STRIPELOG_SIM_JUDGE_H

#include "format/superblock.h"
#include "geometry/geometry.h"
#include "sim_disk.h"
#include "sim_model.h"

/* What the superblocks of the offered disks come to. */
struct verdict {
    int result; /* of a start without force: 0, -ENOENT, -ENOTCONN, -EUCLEAN, -ENODEV */
    bool dirty;
    uint64_t resync_from; /* member bytes, when dirty */
    unsigned missing;
    int disk_of[SIM_DISKS_MAX]; /* by slot; -1: missing */
    unsigned stale;             /* offered disks of this array that must stay out */
    int journal_disk;           /* -1: none, or not to be used */
};

struct judge {
    struct sim_cluster *cluster;
    struct geometry geometry;
    struct model *model;
    uint64_t data_offset;
    uint32_t minor;
    uint64_t stripes;         /* of 4 KiB on each member */
    uint8_t *bad;             /* owned; by stripe: parity does not agree, as far as known */
    uint8_t *healed;          /* owned; by stripe: scratch of judge_image */
    uint8_t *open;            /* owned; by stripe: scratch of judge_image */
    uint32_t *values;         /* owned; by sector of the array: scratch of judge_image */
    uint8_t *recovered[2];    /* owned; a chunk each */
    bool unlogged, forgotten; /* K5, for the next image: the first; both */
    struct sim_image undo;    /* what the judge's own recovery changed */
    uint64_t stripes_capacity, sectors_capacity;
};

void judge_create(struct judge *judge, struct sim_cluster *cluster, struct model *model);
void judge_destroy(struct judge *judge);
/* For one history. */
void judge_begin(struct judge *judge, const struct geometry *geometry, uint64_t data_offset,
                 uint32_t minor);

/* Fills the members' data areas in `stable`: the first version everywhere, parity good below this
 * member offset and, half of it, garbage from there on; only where `doubtful` (a byte for each
 * stripe; NULL: everywhere) says so. */
void judge_fill(struct judge *judge, uint64_t parity_good_bytes, const uint8_t *doubtful,
                struct sim_random *random);

/* The superblock of a disk, in `stable`; false if there is none. */
bool judge_superblock(const struct judge *judge, unsigned disk, struct superblock *sb);

/* Looks at the superblocks in `stable` of the disks in the set. */
void judge_decide(const struct judge *judge, unsigned offered, struct verdict *verdict);

/*
 * K1, K2, K3 for `stable` after a crash at this moment, for an array that starts by this verdict
 * (with force where it says -EUCLEAN). With adopt, what is found becomes the model's and the
 * judge's truth.
 */
void judge_image(struct judge *judge, const struct verdict *verdict, uint64_t moment, bool adopt);

/* Every stripe that all members hold must agree, now, in `live`. */
void judge_parity(struct judge *judge, unsigned present, const char *when);

/* A member was lost while the array ran: what only bad parity could bring back is void. */
void judge_lost(struct judge *judge, unsigned slot);

#endif
