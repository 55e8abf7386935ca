"""The pass over all tiles: reduce, merge, finish.

1. Reduce: each block of classes of a tile, by itself, to its fields (rows.pxd, tiles.pxd).
2. Merge: the blocks of a tile, in order, to the state of each position (merge.pxd).
3. Finish: losses and statistics of the positions (positions.pxd), then the gradient, block by block.

All three run fused for one tile after the other (`run_tile`). With `Call.phase` they run apart: REDUCE ends
with the states, FINISH begins with them, merged from those of all shards of the classes. Threads take tiles
or, of a few large tiles, blocks. Neither their number nor who takes what changes a bit.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.call cimport (
    FINISH, GRADIENT, LOG_SOFTMAX, LOGSUMEXP, REDUCE, Ahead, Call, PassResult, Tile,
)
from cyce.kernels.chosen cimport look_up_chosen, write_chosen, write_gradients_of_chosen
from cyce.kernels.curvature cimport begin_hessians, begin_products, has_pivots, is_product
from cyce.kernels.machine cimport (
    CACHE_LINE, check, cyce_enter, cyce_environment, cyce_leave, cyce_stream_end, whole_line,
)
from cyce.kernels.masses cimport count_left
from cyce.kernels.merge cimport (
    IGNORED, N_BLOCK_FIELDS, leave_out_states, load_hard_masses, load_state, merge_blocks, save_state,
    save_targets,
)
from cyce.kernels.plain cimport finish_plain_losses, finish_plain_tile, is_plain
from cyce.kernels.plan cimport ROW_BLOCK, check_block
from cyce.kernels.positions cimport (
    find_pivots, finish_entropies, finish_logsumexp, finish_losses, finish_pivots, finish_stats,
    normalize_positions,
)
from cyce.kernels.rows cimport (
    row_finish_block, row_leave_out, row_log_softmax_block, row_reduce_block, row_restart_block, rows_settle,
)
from cyce.kernels.scratch cimport Scratch, scratch_of, size_of_scratch
from cyce.kernels.storage cimport TILE, address_of, size_of
from cyce.kernels.streaming cimport choose_memory, restarts
from cyce.kernels.sums cimport add, settled, whole_lanes
from cyce.kernels.targets cimport look_up_targets, pick_from_logits
from cyce.kernels.tiles cimport tile_finish_block, tile_log_softmax_block, tile_reduce_block
from cyce.kernels.transforms cimport has_mask, has_slopes
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, next_turn

cdef extern from *:
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # A thread's share is at least this many logits: below it, starting threads costs more.
    MIN_SHARE = 12288
    # A thread is given at most so many logits at once, and at least so often some. Of tiles that follow one
    # another, each prefetches the beginning of the next.
    AT_ONCE = 524288
    MIN_TURNS = 16
    # Tiles of at least this many logits, when there are few, are split between threads.
    MIN_SPLIT = 65536


cdef struct TileResult:
    double loss
    Py_ssize_t n_counted            # positions
    bint has_bad_target


# ---------------------------------------------------------------------------------------------
# One tile


cdef inline void look_ahead(
    const Call* call, const Tile* tile, const Operand* operand, const Py_ssize_t* at, bint contiguous,
    Py_ssize_t n_tiles, Ahead* out,
) noexcept nogil:
    """What there is to prefetch of an operand of the logits' shape, so many tiles ahead.

    It has to be in one piece, class by class or position by position: the lines of the latter have no order.
    """
    cdef Py_ssize_t width = call.tile_width
    cdef Py_ssize_t size = width * call.n_classes
    cdef Py_ssize_t itemsize = size_of(operand.format)
    out.start = address_of(operand, at[0])
    out.class_step = out.step = 0
    if contiguous:
        out.start += n_tiles * width * itemsize
        out.class_step = operand.class_stride * itemsize
        out.step = itemsize
    elif tile.width == width and at[width - 1] - at[0] == size - call.n_classes:
        out.start += n_tiles * size * itemsize
        out.class_step = width * itemsize
        out.step = itemsize


cdef inline void look_at_shared_lines(Tile* tile) noexcept nogil:
    """Of a gradient that streams, prefetch only the cache lines that the next tile has a part of.

    They are stored like any others, and what streams behind them would wait for the memory. What begins at a
    line shares none.
    """
    cdef Ahead* grad = &tile.grad_ahead
    grad.step = 0
    if not tile.grad_contiguous:
        grad.class_step = 0
    if <size_t> grad.start % CACHE_LINE == 0 and grad.class_step % CACHE_LINE == 0:
        grad[0] = tile.logits_ahead


cdef inline void locate_tile(const Call* call, Py_ssize_t number, Tile* tile) noexcept nogil:
    """Where the positions of a tile are."""
    cdef Py_ssize_t width = call.tile_width
    tile.first = number * width
    tile.pitch = width
    tile.width = min(width, call.n_positions - tile.first)
    tile.lanes = tile.width if call.by_rows else whole_lanes(tile.width)
    tile.contiguous = offsets_of(&call.logits.positions, tile.first, tile.width, tile.logits_at)
    look_ahead(call, tile, &call.logits, tile.logits_at, tile.contiguous, 1, &tile.logits_ahead)
    tile.grad_contiguous = False
    tile.grad_ahead = tile.logits_ahead
    if call.grad.start != NULL:
        tile.grad_contiguous = offsets_of(&call.grad.positions, tile.first, tile.width, tile.grad_at)
        look_ahead(
            call, tile, &call.grad, tile.grad_at, tile.grad_contiguous, call.streams, &tile.grad_ahead
        )
        if call.streams:
            look_at_shared_lines(tile)
    if call.probabilities.start != NULL:
        tile.probabilities_contiguous = offsets_of(
            &call.probabilities.positions, tile.first, tile.width, tile.probabilities_at
        )
    if has_mask(call):
        offsets_of(&call.class_mask.positions, tile.first, tile.width, tile.mask_at)
    if call.hessian != NULL:
        tile.hessian_contiguous = offsets_of(
            &call.hessian.positions, tile.first, tile.width, tile.hessian_at
        )
    if call.vector != NULL:
        tile.vector_contiguous = offsets_of(&call.vector.positions, tile.first, tile.width, tile.vector_at)


cdef inline void begin_tile(const Call* call, Py_ssize_t number, Tile* tile, floating like) noexcept nogil:
    """Look up the positions of a tile, their targets and scales, before anything is written."""
    cdef double grad_scale = call.grad_scale
    cdef floating sample_weight
    cdef Py_ssize_t k
    locate_tile(call, number, tile)
    look_up_targets(call, tile, like)
    if call.n_chosen:
        look_up_chosen(call, tile, like)
    if has_mask(call) and call.has_dense:
        count_left(call, tile)
    # Where it is not picked: a target may be a class of another shard.
    if call.target == NULL or call.n_all_classes > call.n_classes:
        for k in range(tile.width):
            tile.pivot_logit[k] = 0
    # Those of a tile are cheaper once it is packed, but ranks need them in every block.
    if call.target != NULL and (call.by_rows or call.has_stats):
        pick_from_logits(call, tile, like)
    if call.target_logit != NULL:
        for k in range(tile.width):
            tile.pivot_logit[k] = (<const floating*> call.target_logit)[tile.first + k]
    if call.grad.start != NULL:
        for k in range(tile.width):
            tile.scale[k] = grad_scale
        if call.grad_output != NULL:
            for k in range(tile.width):
                tile.scale[k] *= (<const floating*> call.grad_output)[tile.first + k]
    if call.sample_weight != NULL:
        for k in range(tile.width):
            sample_weight = (<const floating*> call.sample_weight)[tile.first + k]
            if call.grad.start != NULL:
                tile.scale[k] *= sample_weight
            tile.n_ignored += tile.counts[k] and sample_weight == 0
            tile.counts[k] = tile.counts[k] and sample_weight != 0
    if call.all_ignored:
        tile.n_ignored = tile.width
        for k in range(tile.width):
            tile.counts[k] = False
    for k in range(tile.width, tile.lanes):
        tile.counts[k] = False
        tile.pivot[k] = 0
        tile.pivot_logit[k] = tile.hard[k] = tile.total[k] = 0
        tile.scale[k] = 0


cdef inline floating* exponentials_of_row(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* exps
) noexcept nogil:
    """Where the exponentials of a block of a row wait; NULL if they do not."""
    if exps == NULL:
        return NULL
    return exps + (row * call.n_classes if call.exps_wait_apart else tile.grad_at[row]) + block * ROW_BLOCK


cdef inline floating* slopes_of_row(
    const Call* call, Py_ssize_t row, Py_ssize_t block, floating* slopes
) noexcept nogil:
    """Where the slopes of a block of a row wait; NULL if there are none."""
    if not has_slopes(call) or call.grad.start == NULL or restarts(call, <floating> 0):
        return NULL
    return slopes + row * call.n_classes + block * ROW_BLOCK


cdef inline void reduce_block(
    const Call* call, Tile* tile, floating* exps_out, floating* slopes_out, Py_ssize_t block, double* stats,
    floating* packed,
) noexcept nogil:
    """Phase 1 for one block; exps_out: NULL if the exponentials are not kept."""
    cdef double* block_stats = stats + block * N_BLOCK_FIELDS * call.tile_width
    cdef Py_ssize_t row
    check_block(call, tile, block)
    if not call.by_rows:
        tile_reduce_block(call, tile, exps_out != NULL and call.n_blocks > 1, block, block_stats, packed)
        return
    for row in range(tile.width):
        if tile.counts[row]:
            row_reduce_block(
                call, tile, row, exponentials_of_row(call, tile, row, block, exps_out),
                slopes_of_row(call, row, block, slopes_out), block, block_stats + row, packed,
            )
        else:
            row_leave_out(call, block_stats + row)
    rows_settle[floating](call, tile, block_stats, 0)


cdef inline void finish_block(
    const Call* call, const Tile* tile, floating* exps, floating* slopes, Py_ssize_t block,
    const double* stats, floating* packed,
) noexcept nogil:
    """Phase 3 for one block."""
    cdef const double* block_stats = stats + block * N_BLOCK_FIELDS * call.tile_width
    cdef Py_ssize_t row
    check_block(call, tile, block)
    if call.by_rows:
        for row in range(tile.width):
            if call.output == LOG_SOFTMAX:
                row_log_softmax_block(call, tile, row, block, packed)
            elif restarts(call, <floating> 0):
                row_restart_block(call, tile, row, block, block_stats, packed)
            else:
                row_finish_block(
                    call, tile, row, exponentials_of_row(call, tile, row, block, exps),
                    slopes_of_row(call, row, block, slopes), block, block_stats, packed,
                )
    elif call.output == LOG_SOFTMAX:
        tile_log_softmax_block(call, tile, block, packed)
    else:
        tile_finish_block(call, tile, block, block_stats, packed)


# The same in another thread, which has its own floating point environment.


cdef inline void reduce_block_apart(
    const Call* call, Tile* tile, floating* exps_out, floating* slopes_out, Py_ssize_t block, double* stats,
    floating* packed,
) noexcept nogil:
    cdef cyce_environment found
    cyce_enter(&found)
    reduce_block(call, tile, exps_out, slopes_out, block, stats, packed)
    cyce_leave(&found)


cdef inline void finish_block_apart(
    const Call* call, const Tile* tile, floating* exps, floating* slopes, Py_ssize_t block,
    const double* stats, floating* packed,
) noexcept nogil:
    cdef cyce_environment found
    cyce_enter(&found)
    # Streams would have to end here.
    check(not call.streams)
    finish_block(call, tile, exps, slopes, block, stats, packed)
    cyce_leave(&found)


cdef inline void run_tile(
    const Call* call, Py_ssize_t number, const Scratch* sizes, char* scratch, int n_threads,
    TileResult* result, floating like,
) noexcept nogil:
    """Run the phases of one tile; with n_threads > 1, its blocks are shared among these.

    What it streams may be under way when this ends: `cyce_stream_end` would wait for it after each tile.
    scratch: that of one thread, followed by `packed` for each of the others.
    """
    cdef Tile* tile = <Tile*> scratch
    cdef double* stats = <double*> (scratch + sizes.tile)
    cdef floating* slopes = <floating*> (scratch + sizes.tile + sizes.stats + sizes.exps)
    # Last, as the other threads' follow.
    cdef char* packed = scratch + (size_of_scratch(sizes) - sizes.packed)
    cdef bint has_gradient = call.grad.start != NULL
    cdef floating* exps = NULL
    cdef floating* exps_out
    cdef Py_ssize_t block
    if has_gradient:
        exps = <floating*> call.grad.start
        if call.exps_wait_apart:
            exps = <floating*> (scratch + sizes.tile + sizes.stats)
    # Log-softmax comes from the logits again, not from their exponentials.
    exps_out = NULL if call.output == LOG_SOFTMAX or restarts(call, like) else exps
    tile.chosen_logits = <char*> slopes + sizes.slopes
    begin_tile(call, number, tile, like)
    result.has_bad_target = tile.has_bad_target
    result.n_counted = tile.width - tile.n_ignored
    result.loss = 0

    if n_threads > 1:
        for block in prange(call.n_blocks, num_threads=n_threads, schedule="static"):
            reduce_block_apart(
                call, tile, exps_out, slopes, block, stats,
                <floating*> (packed + threadid() * sizes.packed),
            )
    else:
        for block in range(call.n_blocks):
            reduce_block(call, tile, exps_out, slopes, block, stats, <floating*> packed)

    if is_plain(call, like):
        result.loss = finish_plain_losses(call, tile, stats)
        if has_gradient:
            finish_plain_tile(call, tile, <float*> packed)
        return

    merge_blocks(call, tile, stats, like)
    if call.phase == REDUCE:
        save_state(call, tile)
        save_targets(call, tile, like)
        return
    if call.phase == FINISH:
        load_state(call, tile, call.states)
        if call.target != NULL:
            load_hard_masses(call, tile, call.states)
        leave_out_states(tile)

    normalize_positions(call, tile, like)
    if call.output == GRADIENT:
        result.loss = finish_losses(call, tile, like)
        if is_product(call):
            begin_products(call, tile)
        elif has_gradient:
            find_pivots(call, tile, like)
            finish_pivots(call, tile, like)
            if call.hessian != NULL:
                begin_hessians(call, tile, like)
        if call.stats_out.lse != NULL:
            finish_stats(call, tile, like)
        if call.entropy_out != NULL:
            finish_entropies(call, tile, like)
        if call.chosen_out != NULL:
            write_chosen(call, tile, like)
    elif call.output == LOGSUMEXP:
        finish_logsumexp(call, tile, like)
    if not has_gradient:
        return
    if n_threads > 1:
        for block in prange(call.n_blocks, num_threads=n_threads, schedule="static"):
            finish_block_apart(
                call, tile, exps, slopes, block, stats,
                <floating*> (packed + threadid() * sizes.packed),
            )
    else:
        for block in range(call.n_blocks):
            finish_block(call, tile, exps, slopes, block, stats, <floating*> packed)
    if call.n_chosen and has_pivots(call):
        if call.streams:
            cyce_stream_end()
        write_gradients_of_chosen(call, tile, like)


# ---------------------------------------------------------------------------------------------
# Losses from states alone


cdef inline double finish_states(Call* call, bint has_target, Tile* tile, floating like) noexcept nogil:
    """Losses and statistics from merged states, without logits; returns the sum of the losses.

    Predictions and ranks are those of the states. tile: room to compute in.
    """
    cdef double value = 0, lost = 0
    cdef Py_ssize_t k
    call.output = GRADIENT
    tile.first = 0
    while tile.first < call.n_positions:
        tile.width = min(<Py_ssize_t> TILE, call.n_positions - tile.first)
        tile.lanes = whole_lanes(tile.width)
        tile.n_ignored = 0
        for k in range(tile.lanes):
            tile.row_max[k] = tile.rest[k] = tile.rest_lost[k] = tile.pivot_logit[k] = tile.hard[k] = 0
            tile.mass[k] = tile.mass_lost[k] = tile.gap[k] = tile.gap_lost[k] = 0
            tile.counts[k] = False
        load_state(call, tile, call.states)
        for k in range(tile.width):
            tile.counts[k] = tile.argmax[k] != IGNORED
            if call.sample_weight != NULL and (<const floating*> call.sample_weight)[tile.first + k] == 0:
                tile.counts[k] = False
            tile.n_ignored += not tile.counts[k]
            # What is predicted right is all that statistics ask of the targets' numbers.
            tile.pivot[k] = <Py_ssize_t> tile.argmax[k] if tile.rank[k] == 0 else -1
        if has_target:
            load_hard_masses(call, tile, call.states)
        normalize_positions(call, tile, like)
        add[double](&value, &lost, finish_losses(call, tile, like))
        if call.has_stats:
            finish_stats(call, tile, like)
        tile.first += TILE
    return settled(value, lost)


# ---------------------------------------------------------------------------------------------
# All tiles


cdef inline void run_tiles(
    const Call* call, Turns* turns, int worker, int n_threads, const Scratch* sizes, char* scratch,
    TileResult* results, floating like,
) noexcept nogil:
    """The tiles that one thread takes; n_threads: for the blocks of each."""
    cdef cyce_environment found
    cdef Py_ssize_t number, first, end
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        for number in range(first, end):
            run_tile(call, number, sizes, scratch, n_threads, results + number, like)
    if call.streams:
        cyce_stream_end()
    cyce_leave(&found)


cdef inline int run(Call* call, int n_threads, PassResult* result, floating like) except -1 nogil:
    """Run all tiles."""
    cdef Scratch sizes
    cdef size_t size
    cdef bint split = (
        n_threads > 1 and call.n_blocks > 1 and call.n_tiles < 4 * n_threads
        and call.n_classes >= MIN_SPLIT // call.tile_width
    )
    cdef int n_workers = 1 if split else <int> min(<Py_ssize_t> n_threads, call.n_tiles)
    cdef Py_ssize_t n_at_once = max(
        <Py_ssize_t> 1,
        min(AT_ONCE // call.tile_width // call.n_classes, call.n_tiles // (MIN_TURNS * n_workers)),
    )
    cdef int n_used = n_threads if split else n_workers
    cdef size_t more
    cdef char* memory = NULL
    cdef char* scratch
    cdef TileResult* results = <TileResult*> PyMem_RawMalloc(call.n_tiles * sizeof(TileResult))
    cdef Turns turns
    cdef int worker, n_inner
    cdef Py_ssize_t number
    cdef double lost = 0
    choose_memory(call, split, like)
    sizes = scratch_of(call, like)
    size = size_of_scratch(&sizes)
    more = sizes.packed if split else size
    while True:
        # The bytes for 2**60 broadcast classes are more than can be counted.
        if size < PY_SSIZE_T_MAX // 2 and more < <size_t> (PY_SSIZE_T_MAX // 2) // <size_t> n_used:
            memory = <char*> PyMem_RawMalloc(CACHE_LINE + size + (n_used - 1) * more)
        if memory != NULL or n_used == 1:
            break
        # Fewer threads need less.
        n_used = n_used // 2
    n_workers = 1 if split else n_used
    scratch = whole_line(memory)
    if memory == NULL or results == NULL:
        PyMem_RawFree(memory)
        PyMem_RawFree(results)
        with gil:
            raise MemoryError("no memory for the scratch space of the loss")
    n_inner = n_used if split else 1
    begin_turns(&turns, n_workers, call.n_tiles, n_at_once)
    if n_workers > 1:
        for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
            run_tiles[floating](call, &turns, worker, n_inner, &sizes, scratch + worker * size, results, 0)
        end_turns(&turns)
    else:
        run_tiles[floating](call, &turns, 0, n_inner, &sizes, scratch, results, 0)
    result.loss = 0
    result.n_counted = 0
    result.has_bad_target = False
    for number in range(call.n_tiles):
        add[double](&result.loss, &lost, results[number].loss)
        result.n_counted += results[number].n_counted
        result.has_bad_target = result.has_bad_target or results[number].has_bad_target
    result.loss = settled(result.loss, lost)
    PyMem_RawFree(memory)
    PyMem_RawFree(results)
    return 0
