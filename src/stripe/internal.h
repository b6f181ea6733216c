/*
 * internal.h: what the files of src/stripe share.
 *
 *   engine.c   creation, groups and their queues, workers, flush
 *   request.c  requests cut into pieces; direct reads
 *   run.c      what a worker does with a group; run.h says what is in change.c, cached.c and
 *              parity_run.c
 *   plan.c     which blocks must be read (pure)
 *   cache.c    which blocks only the log holds (pure)
 *   write_back.c  who decides that they are written out
 *
 *            piece queued            turn ends, a worker is free        no piece left
 *   (none) --------------> READY -------------------------------> BUSY -------------> (none)
 *                                                                 |  ^
 *                                                                 +--+ pieces came meanwhile
 */
#ifndef STRIPELOG_STRIPE_INTERNAL_H
#define STRIPELOG_STRIPE_INTERNAL_H

#include "journal/journal.h"
#include "stripe/cache.h"
#include "stripe/engine.h"
#include "stripe/plan.h"

/* Pieces that one request has queued at a time. */
#define REQUEST_PIECES_MAX 16u

enum piece_kind {
    PIECE_READ,
    PIECE_WRITE,
    PIECE_ZERO,      /* write zeros, never punch */
    PIECE_PUNCH,     /* zeros, punched where whole stripes allow it, written elsewhere */
    PIECE_TRIM,      /* punched where whole stripes allow it, ignored elsewhere */
    PIECE_RESYNC,    /* a whole group: parity from data */
    PIECE_WRITE_OUT, /* blocks that the log holds: written, with parity, and only that is logged */
    PIECE_CACHED,    /* all that is cached in the group, in the same way */
};

/* One request's part in one group: a contiguous range of the array (RESYNC, CACHED: none, the whole
 * group; WRITE_OUT: single blocks). */
struct piece {
    enum piece_kind kind;
    bool fua;
    uint64_t array_offset, length;     /* bytes */
    uint8_t *memory;                   /* READ: filled; WRITE: read from. The requester's */
    const struct engine_block *blocks; /* WRITE_OUT: `length` of them; the requester's */
    /* From when it is queued until a worker takes it: blocks of the log, room in the cache. */
    uint64_t reserved;
    struct cache_room room;
    bool cacheable; /* enough is reserved to cache it */
    int result;
    struct request *request;
    struct piece *next;
};

/* Who waits for pieces; on the requester's stack. */
struct request {
    unsigned pending;
    int error; /* the first */
    struct task *waiter;
    void (*ended)(struct request *request); /* may be NULL; instead of a waiter */
};

struct piece_list {
    struct piece *first, **last;
};

struct group {
    uint64_t index; /* member offset / group_bytes */
    bool queued;    /* READY or BUSY */
    struct piece_list pieces;
    struct group *hash_next; /* also the free list's */
    struct group *ready_next;
};

/* Where a block was logged. */
struct logged_block {
    uint32_t entry_block, number, checksum;
};

/* What a worker needs to process a group; one a worker, reused. Arrays have geometry->members
 * entries, or members * group_stripes for blocks. */
struct run {
    struct engine *engine;
    struct task *task; /* while it waits for work */
    struct run *idle_next;
    struct group *group;
    struct piece_list pieces; /* taken from the group */
    uint64_t base;            /* member offset of the group */
    uint64_t stripes;         /* mask of those that exist in this group */
    bool fua;
    bool logs; /* changes are logged: so from the plan to the end, whatever happens meanwhile */

    struct plan plan; /* its arrays are in masks */
    uint64_t *masks;  /* owned: all of the mask arrays */
    uint64_t *full;   /* blocks with wholly new content */
    uint64_t *part;   /* blocks with partly new content */
    uint64_t *own;    /* of both, blocks that are put together in a page of ours */
    uint64_t *zero;   /* blocks that a PUNCH piece made zero and nothing has written since */
    uint64_t *trim;   /* blocks that a TRIM piece covers and nothing has written */
    uint64_t *logged; /* of full, blocks whose content the log holds already */
    uint64_t *cached; /* blocks that only the log holds */
    uint64_t *lost;   /* such as cannot be read back */
    uint64_t stuck;   /* stripes of them that could not be written out */
    uint64_t looked;  /* stripes of which the last three are known */
    uint64_t *based;  /* of cached, blocks whose content is at hand, in cached_block */
    uint64_t *gone;
    uint64_t *unreadable;
    uint64_t *errors;   /* of unreadable, those of working members that said EIO: to be mended */
    uint64_t *suspect;  /* in a long read that failed: to be read one by one */
    uint64_t *writable; /* the member takes writes: all ones or zero */
    uint64_t *made;     /* parity is made for the member: as writable; with a journal all ones */
    uint64_t *write;    /* blocks to be written, from new_block */
    uint64_t *bridged;  /* blocks that are written as they were read, for one long I/O */
    uint64_t touched;   /* stripes that are written */
    bool gathered;      /* full to touched, and punched, are just what the pieces say */
    uint64_t punched;   /* stripes that are punched */
    bool punch_refused; /* a device turned out not to punch */

    uint8_t **old_block; /* owned: this and the next three; [member * group_stripes + stripe] */
    uint8_t **new_block;
    uint8_t **own_block;
    uint8_t **cached_block;
    cache_node *node;           /* owned; of cached and lost blocks */
    struct logged_block *place; /* owned; of blocks that were logged to be cached */
    bool cacheable;             /* all pieces are */
    int64_t reserved; /* blocks of the log: the pieces', and what cached stripes had set aside */
    unsigned losses;  /* blocks that turned out to be lost */

    uint8_t *area; /* scratch of this phase, from engine->scratch; NULL if none was needed */
    uint64_t area_bytes, area_used;

    struct io_group ios;
    bool read_errors;              /* since it was cleared: errors or suspect have grown */
    int *member_error;             /* owned; by member: a write failed with this, or 0 */
    struct journal_data *log_data; /* owned; one stripe's blocks */
};

struct engine {
    struct engine_config config;
    struct loop *loop;
    const struct geometry *geometry;
    struct member *members;
    unsigned members_count;
    struct row_shapes shapes;
    uint64_t group_bytes; /* of each member */
    unsigned group_stripes;
    unsigned rows_per_group; /* 0 where a chunk is larger than a group */
    uint8_t *zeros;          /* owned; group_bytes of them */

    struct journal *journal;       /* borrowed; NULL: nothing is logged */
    bool log_gone;                 /* it failed: what is cached is written out without it */
    uint64_t piece_bytes_max[2];   /* of a change; where changes are cached */
    struct write_back *write_back; /* owned; NULL: nothing is cached */

    struct pages *scratch; /* owned */
    struct io_pool ios;

    struct group *groups; /* owned array */
    struct group *groups_free;
    struct group **hash; /* owned; hash_mask + 1 heads */
    uint64_t hash_mask;
    struct wait_queue groups_wanted;
    struct group *ready_first, **ready_last;

    struct run *runs; /* owned array */
    struct run *idle;
    unsigned workers_alive;
    bool quitting;
    struct wait_queue quit_waiters;
    struct turn_hook turn_end;

    uint64_t flushes_begun, flushes_done;
    bool flush_running;
    struct wait_queue flush_waiters;
};

/* The write-back cache and who writes it out. */
struct write_back {
    struct engine *engine;
    struct engine_cache_config config;
    struct cache *cache; /* owned */
    struct journal_holder holder;
    bool filling;      /* writes are cached */
    unsigned draining; /* who waits until nothing is cached; nothing is added meanwhile */
    bool idle;         /* nobody has written for long */
    bool quitting, reclaimer_alive;
    unsigned caching;        /* workers that are logging what they will cache */
    struct tokens room_turn; /* one waits for room, the others for their turn */
    bool room_wanted;

    /* Groups that are being written out; the slots are reused. Owned. */
    struct write_out *write_outs, *write_outs_free;
    uint64_t *groups; /* owned; chosen, to be sorted */
    unsigned under_way;
    unsigned owed; /* groups that are to be chosen whether or not there is still need */

    struct task *reclaimer; /* while it waits */
    struct wait_queue progress;
    struct timer idle_timer;
    uint64_t last_put_ns;
    struct write_back_status counts;
};

/* Room for a change of so many blocks, in so many stripes at most, of the group; it may wait for
 * some. None if nothing is cached, or it does not come; then there may be some later. */
task_fn struct cache_room write_back_room(struct write_back *wb, uint64_t group,
                                          struct cache_room wanted) must_check;

/* May new writes be cached? */
static inline bool
write_back_fills(const struct write_back *wb)
{
    return wb != NULL && wb->filling && wb->draining == 0;
}

/* Something was put, or the log has become fuller. */
void write_back_put(struct write_back *wb);
/* Something was written out, or cannot be. */
void write_back_moved(struct write_back *wb);
task_fn void write_back_destroy(struct write_back *wb);

static inline void
piece_list_init(struct piece_list *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static inline void
piece_list_add(struct piece_list *list, struct piece *piece)
{
    piece->next = NULL;
    *list->last = piece;
    list->last = &piece->next;
}

/* True when the member's content at [offset, offset + length) (member bytes) may be read. */
bool member_readable(const struct member *member, uint64_t offset, uint64_t length);

/* True where the member has no content: missing, or not rebuilt yet. */
bool member_gone(const struct member *member, uint64_t offset, uint64_t length);

/* Members that cannot be read as a whole: missing or rebuilding. */
unsigned engine_degraded(const struct engine *engine);

/* Members that are missing. */
unsigned engine_missing(const struct engine *engine);

/* Queues a piece at its group; waits for a free group. */
task_fn void engine_queue(struct engine *engine, struct piece *piece, uint64_t member_offset);

/* All that a worker does with run->pieces; every piece's result is set on return, none is told yet.
 */
task_fn void run_group(struct run *run);

int run_init(struct run *run, struct engine *engine) must_check;
void run_fini(struct run *run);

/* Blocks of the log that a change of so many blocks, in so many stripes at most, takes at worst if
 * it goes through; cacheable: also if it is cached (then some are set aside). */
uint64_t change_reserve(const struct engine *engine, uint64_t blocks, uint64_t stripes,
                        bool cacheable);

#endif
