/*
 * request.c: requests cut into pieces, and the reads that need none.
 *
 * A request waits on its own stack for its pieces; at most REQUEST_PIECES_MAX are queued at a time,
 * so that a large request takes no more of anything than a few small ones.
 */
#include "stripe/internal.h"

/* --- Pieces -------------------------------------------------------------------------------- */

static_assert(ENGINE_RESYNC_GROUPS_MAX <= REQUEST_PIECES_MAX, "one window holds a resync step");

/* The pieces of one request that are queued. That they are answered is known only for all together,
 * so a full window is waited out. */
struct window {
    struct engine *engine;
    struct request request;
    struct piece pieces[REQUEST_PIECES_MAX];
    unsigned count;
};

static task_fn void
window_drain(struct window *window)
{
    struct request *request = &window->request;

    if (request->pending > 0) {
        request->waiter = task_self(window->engine->loop);
        task_suspend(window->engine->loop);
    }
    assert(request->pending == 0);
    window->count = 0;
}

uint64_t
change_reserve(const struct engine *engine, uint64_t blocks, uint64_t stripes, bool cacheable)
{
    const uint64_t parities = engine->geometry->parities;
    /* At worst a meta block for each stripe: the run may have to log them apart. */
    const uint64_t logged = blocks + stripes * (1 + parities);

    /* Cached stripes have max(1 + parities, 1 + blocks) set aside (C2). */
    return cacheable ? logged + blocks + stripes * (1 + parities) : logged;
}

/* Stripes of blocks that are sorted by place. */
static uint64_t
blocks_stripes(const struct engine *engine, const struct engine_block *blocks, uint64_t count)
{
    uint64_t stripes = 0, last = UINT64_MAX;

    for (uint64_t i = 0; i < count; ++i) {
        struct place place;

        geometry_map(engine->geometry, blocks[i].array_offset, &place);
        stripes += place.member_offset != last;
        last = place.member_offset;
    }
    return stripes;
}

/* What a piece changes at most. */
struct extent {
    uint64_t blocks, stripes;
    uint64_t class_stripes; /* see cache.h */
};

static struct extent
piece_extent(const struct engine *engine, const struct piece *piece)
{
    uint64_t blocks, stripes;

    switch (piece->kind) {
    case PIECE_WRITE:
    case PIECE_ZERO:
        blocks = (round_up(piece->array_offset + piece->length, BLOCK_BYTES) -
                  round_down(piece->array_offset, BLOCK_BYTES)) /
                 BLOCK_BYTES;
        /* A contiguous range has at most one stripe for each block. In a group these are at most
         * two runs, each with one stripe more of some classes than of others. */
        stripes = min_u64(blocks, engine->group_stripes);
        return (struct extent){blocks, stripes, min_u64(stripes, stripes / CACHE_CLASSES + 2)};
    case PIECE_WRITE_OUT:
        return (struct extent){.stripes = blocks_stripes(engine, piece->blocks, piece->length)};
    default:
        return (struct extent){0};
    }
}

/* Space in the log, and in the cache. -EIO. */
static task_fn int
piece_reserve(struct engine *engine, struct piece *piece, uint64_t member_offset)
{
    const struct extent extent = piece_extent(engine, piece);
    struct cache_room room = {0};
    bool cacheable;
    uint64_t reserve;
    int result;

    if (engine->journal == NULL || extent.stripes == 0)
        return 0;
    if (engine->write_back != NULL && extent.blocks > 0)
        room = write_back_room(engine->write_back, member_offset / engine->group_bytes,
                               (struct cache_room){extent.blocks, extent.class_stripes});
    /* It may have been cut when nothing was cached. */
    cacheable = write_back_fills(engine->write_back) &&
                change_reserve(engine, extent.blocks, extent.stripes, true) <=
                    journal_reserve_max(engine->journal);
    reserve =
        piece->kind == PIECE_WRITE_OUT
            ? extent.stripes * (1 + (uint64_t)engine->geometry->parities) /* its data is there */
            : change_reserve(engine, extent.blocks, extent.stripes, cacheable);
    result = journal_reserve(engine->journal, reserve);
    if (result < 0) {
        if (room.blocks > 0)
            cache_promise_end(engine->write_back->cache, room);
        return result;
    }
    piece->reserved = reserve;
    piece->cacheable = cacheable;
    piece->room = room;
    return 0;
}

/* E9: space first, while the request holds nothing: its earlier pieces go on by themselves. */
static task_fn void
window_add(struct window *window, const struct piece *piece, uint64_t member_offset)
{
    struct engine *engine = window->engine;
    struct piece *slot;
    int result;

    if (window->count == REQUEST_PIECES_MAX)
        window_drain(window);
    slot = &window->pieces[window->count];
    *slot = *piece;
    slot->request = &window->request;
    result = piece_reserve(engine, slot, member_offset);
    if (result < 0) {
        window->request.error = window->request.error != 0 ? window->request.error : result;
        return;
    }
    ++window->count;
    engine_queue(engine, slot, member_offset);
}

/* Length of the piece that begins at an array offset: to the end of its group, and of its chunk
 * where a chunk is larger. */
static uint64_t
piece_length(const struct engine *engine, uint64_t array_offset, const struct place *place)
{
    if (engine->rows_per_group == 0)
        return min_u64(place->length,
                       engine->group_bytes - place->member_offset % engine->group_bytes);
    /* Whole rows in a group: what the group holds of the array is one range. */
    const uint64_t group_data_bytes = engine->group_bytes * engine->geometry->data_members;

    return group_data_bytes - array_offset % group_data_bytes;
}

/* More would reserve too much of the log at once. */
static uint64_t
piece_bytes_max(const struct engine *engine)
{
    return engine->piece_bytes_max[write_back_fills(engine->write_back)];
}

/* Queues [offset, offset + length) as pieces like the given one. */
static task_fn void
window_add_range(struct window *window, struct piece like, uint64_t offset, uint64_t length)
{
    uint8_t *memory = like.memory;

    while (length > 0) {
        struct place place;

        geometry_map(window->engine->geometry, offset, &place);
        like.array_offset = offset;
        like.length = min_u64(length, piece_length(window->engine, offset, &place));
        if (window->engine->journal != NULL && like.kind != PIECE_READ)
            like.length =
                min_u64(like.length, piece_bytes_max(window->engine) - offset % BLOCK_BYTES);
        like.memory = memory;
        window_add(window, &like, place.member_offset);
        offset += like.length;
        length -= like.length;
        if (memory != NULL)
            memory += like.length;
    }
}

static task_fn int
request_run(struct engine *engine, struct piece like, uint64_t offset, uint64_t length)
{
    struct window window = {.engine = engine};

    window_add_range(&window, like, offset, length);
    window_drain(&window);
    return window.request.error;
}

/* --- Reading ------------------------------------------------------------------------------- */

/*
 * Straight from the members into the caller's memory. Consecutive rows of one member go out as one
 * I/O; `open` holds the one being filled for each member.
 */
struct direct {
    struct engine *engine;
    struct io_group ios;
    struct io *open[MEMBERS_MAX];
};

static void
direct_submit(struct direct *direct, unsigned member)
{
    struct io *io = direct->open[member];

    direct->open[member] = NULL;
    io_submit(io, direct->engine->members[member].device, &direct->ios);
}

static void
direct_submit_all(struct direct *direct)
{
    for (unsigned m = 0; m < direct->engine->members_count; ++m)
        if (direct->open[m] != NULL)
            direct_submit(direct, m);
}

static task_fn void
direct_add(struct direct *direct, const struct place *place, uint8_t *memory, uint64_t length)
{
    struct engine *engine = direct->engine;
    const uint64_t offset = engine->members[place->member].data_offset + place->member_offset;
    struct io *io = direct->open[place->member];

    if (io != NULL) {
        if (io->offset + io->length == offset && io_add(io, memory, length))
            return;
        direct_submit(direct, place->member);
    }
    /* Waiting with unsent I/Os in hand could wait for ever. */
    if (engine->ios.free == NULL)
        direct_submit_all(direct);
    io = io_take(&engine->ios);
    io->op = IO_READ;
    io->member = place->member;
    io->offset = offset;
    if (!io_add(io, memory, length))
        assert(!"a fresh io has room");
    direct->open[place->member] = io;
}

static task_fn int
read_through_groups(struct engine *engine, void *memory, uint64_t offset, uint64_t length)
{
    return request_run(engine, (struct piece){.kind = PIECE_READ, .memory = memory}, offset,
                       length);
}

/* The common small case: one I/O on one member. */
static task_fn int
read_single(struct engine *engine, void *memory, const struct place *place, uint64_t length)
{
    struct io_group ios;
    struct io *io = io_take(&engine->ios);

    io_group_init(&ios, engine->loop);
    io->op = IO_READ;
    io->member = place->member;
    io->offset = engine->members[place->member].data_offset + place->member_offset;
    if (!io_add(io, memory, length))
        assert(!"a fresh io has room");
    io_submit(io, engine->members[place->member].device, &ios);
    return io_wait(&ios);
}

/* May something be cached in the groups of this range of the members? (E11) */
static bool
cached_maybe(const struct engine *engine, uint64_t member_offset, uint64_t length)
{
    if (engine->write_back == NULL)
        return false;
    for (uint64_t at = round_down(member_offset, engine->group_bytes); at < member_offset + length;
         at += engine->group_bytes)
        if (cache_group_maybe(engine->write_back->cache, at / engine->group_bytes))
            return true;
    return false;
}

static task_fn int
read_direct(struct engine *engine, uint8_t *memory, uint64_t offset, uint64_t length)
{
    struct window window = {.engine = engine};
    struct direct direct = {.engine = engine};
    int result;

    io_group_init(&direct.ios, engine->loop);
    while (length > 0) {
        struct place place;
        uint64_t part;

        geometry_map(engine->geometry, offset, &place);
        part = min_u64(length, place.length);
        if (member_readable(&engine->members[place.member], place.member_offset, part) &&
            !cached_maybe(engine, place.member_offset, part)) {
            direct_add(&direct, &place, memory, part);
        } else {
            direct_submit_all(&direct);
            window_add_range(&window, (struct piece){.kind = PIECE_READ, .memory = memory}, offset,
                             part);
        }
        memory += part;
        offset += part;
        length -= part;
    }
    direct_submit_all(&direct);
    result = io_wait(&direct.ios);
    window_drain(&window);
    return window.request.error != 0 ? window.request.error : result;
}

/* All of it from pages of the cache; false if some is not there. Nothing is in memory that was not
 * answered, or will be, so it does not matter who has the group. */
static bool
read_cached(struct engine *engine, uint8_t *memory, const struct place *place, uint64_t length)
{
    struct write_back *wb = engine->write_back;
    const uint64_t first = place->member_offset / BLOCK_BYTES;
    const uint64_t blocks = length / BLOCK_BYTES;
    uint8_t *page;

    for (uint64_t i = 0; i < blocks; ++i) {
        const cache_node node = cache_find(wb->cache, first + i, place->member);

        page = node == 0 ? NULL : cache_page(wb->cache, node);
        if (page == NULL)
            return false;
        memcpy(memory + i * BLOCK_BYTES, page, BLOCK_BYTES);
    }
    wb->counts.read_hits += blocks;
    return true;
}

task_fn int
engine_read(struct engine *engine, void *memory, uint64_t offset, uint64_t length)
{
    const unsigned missing = engine_missing(engine);
    struct place place;
    bool cached;
    int result;

    assert(offset % BLOCK_BYTES == 0);
    assert(length % BLOCK_BYTES == 0);
    geometry_map(engine->geometry, offset, &place);
    cached = cached_maybe(engine, place.member_offset, min_u64(length, place.length));
    if (cached && length <= min_u64(place.length, engine->group_bytes) &&
        read_cached(engine, memory, &place, length))
        return 0;
    if (length <= place.length && !cached &&
        member_readable(&engine->members[place.member], place.member_offset, length))
        result = read_single(engine, memory, &place, length);
    else
        result = read_direct(engine, memory, offset, length);
    /* Under the groups' locks what is unreadable is reconstructed and mended. The same where a
     * member failed meanwhile: what was read of it may be older than what it had acknowledged (D3).
     */
    if (result < 0 || engine_missing(engine) > missing)
        result = read_through_groups(engine, memory, offset, length);
    return result;
}

/* --- Changing ------------------------------------------------------------------------------ */

/* What went through the log is durable; what is cached may be only complete. */
static task_fn int
log_flush(struct engine *engine)
{
    return engine->journal == NULL ? 0 : journal_flush(engine->journal);
}

task_fn int
engine_write(struct engine *engine, const void *memory, uint64_t offset, uint64_t length, bool fua)
{
    /* Pieces have one memory pointer for both directions; WRITE pieces only read from it. */
    const int result = request_run(
        engine,
        (struct piece){.kind = PIECE_WRITE, .fua = fua, .memory = (uint8_t *)(uintptr_t)memory},
        offset, length);

    return result == 0 && fua ? log_flush(engine) : result;
}

static bool
punch_possible(const struct engine *engine)
{
    if (engine->journal != NULL)
        return false; /* E8 */
    for (unsigned m = 0; m < engine->members_count; ++m)
        if (engine->members[m].state != MEMBER_MISSING && !engine->members[m].device->punch_zeroes)
            return false;
    return true;
}

/* Whole rows: what punching can make zero without writing a block. */
static bool
rows_whole(const struct engine *engine, uint64_t offset, uint64_t length)
{
    const uint64_t row_bytes = engine->geometry->chunk_bytes * engine->geometry->data_members;

    return offset % row_bytes == 0 && length % row_bytes == 0;
}

task_fn int
engine_zero(struct engine *engine, uint64_t offset, uint64_t length, bool may_punch, bool fast_only,
            bool fua)
{
    const bool punch = may_punch && punch_possible(engine);
    int result;

    if (fast_only && !(punch && rows_whole(engine, offset, length)))
        return -ENOTSUP;
    /* A punch carries no FUA: it is flushed as a whole. */
    result = request_run(
        engine, (struct piece){.kind = punch ? PIECE_PUNCH : PIECE_ZERO, .fua = fua && !punch},
        offset, length);
    if (result == 0 && punch && fua)
        result = engine_flush(engine);
    return result == 0 && fua ? log_flush(engine) : result;
}

task_fn int
engine_trim(struct engine *engine, uint64_t offset, uint64_t length, bool fua)
{
    int result;

    if (!punch_possible(engine))
        return 0;
    result = request_run(engine, (struct piece){.kind = PIECE_TRIM}, offset, length);
    if (result == 0 && fua)
        result = engine_flush(engine);
    return result;
}

task_fn int
engine_write_out(struct engine *engine, const struct engine_block *blocks, unsigned count)
{
    /* As many as may be reserved at once; only parity is logged. */
    const uint64_t stripes_max =
        journal_reserve_max(engine->journal) / (1 + engine->geometry->parities);
    struct window window = {.engine = engine};

    for (unsigned i = 0, n; i < count; i += n) {
        struct place first, place;
        uint64_t stripes = 1, last;

        geometry_map(engine->geometry, blocks[i].array_offset, &first);
        last = first.member_offset;
        for (n = 1; i + n < count; ++n) {
            geometry_map(engine->geometry, blocks[i + n].array_offset, &place);
            if (place.member_offset / engine->group_bytes !=
                first.member_offset / engine->group_bytes)
                break;
            if (place.member_offset != last && ++stripes > stripes_max)
                break;
            last = place.member_offset;
        }
        window_add(&window,
                   &(struct piece){.kind = PIECE_WRITE_OUT, .blocks = &blocks[i], .length = n},
                   first.member_offset);
    }
    window_drain(&window);
    return window.request.error;
}

task_fn int
engine_resync(struct engine *engine, uint64_t member_offset, unsigned groups)
{
    struct window window = {.engine = engine};

    assert(member_offset % engine->group_bytes == 0);
    assert(groups <= ENGINE_RESYNC_GROUPS_MAX);
    for (unsigned i = 0; i < groups; ++i)
        window_add(&window, &(struct piece){.kind = PIECE_RESYNC},
                   member_offset + i * engine->group_bytes);
    window_drain(&window);
    return window.request.error;
}
