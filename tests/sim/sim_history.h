/*
 * sim_history.h: one history: an array is made, used, hurt, crashed, started again, and judged.
 *
 *   make disks -> start -> read all -> clients and faults -> idle? -> stop? -> power cut
 *                   ^                                                             |
 *                   +------ force, when refused and dirty <------ judge images <--+
 *
 * With a journal, recovery is part of the start, and every moment of it may be that of the next
 * power cut.
 *
 * and at the end, without faults: resync to the end, parity of every stripe, clean stop, and every
 * sector once more with as many members gone as the level allows.
 */
#ifndef STRIPELOG_SIM_HISTORY_H
#define STRIPELOG_SIM_HISTORY_H

#include "sim_disk.h"
#include "sim_judge.h"
#include "sim_model.h"

struct sim_mode {
    const char *name, *story;
    unsigned degraded_percent; /* histories that begin without a member or two */
    unsigned unsynced_percent; /* that begin with parity not known good */
    unsigned crash_percent;    /* runs that end with a power cut while they work */
    unsigned runs_max;
    /* Faults, in percent of runs; never more members than parity covers, except beyond. */
    unsigned death_percent, latent_percent, lasting_percent;
    unsigned read_error_percent, write_error_percent, flush_error_percent;
    bool beyond;
    /* Arrays with a journal. */
    unsigned journal_percent;
    unsigned journal_loss_percent; /* runs in which the journal may fail */
    unsigned foreign_percent;      /* histories that begin with a log such as the kernel leaves */
    unsigned every_percent;        /* runs of which every moment is looked at; small arrays */
    unsigned cache_percent;        /* runs in write-back; the rest in write-through */
    unsigned switch_percent;       /* runs in which the mode is changed under load */
    unsigned rot_percent;          /* runs in which blocks of the journal rot */
    uint64_t promised; /* set of enum sim_count that may not be 0 after many histories */
};

extern const struct sim_mode sim_modes[];
extern const unsigned sim_modes_count;

struct sim_world {
    struct sim_cluster cluster;
    struct model model;
    struct judge judge;
    struct sim_image image;
    struct history *history; /* owned; the one that runs */
};

void world_create(struct sim_world *world);
void world_destroy(struct sim_world *world);
/* Returns the hash of all that happened. Fails by sim_fail. */
uint64_t history_run(struct sim_world *world, const struct sim_mode *mode, uint64_t seed);

#endif
