"""One block of one position, vectors along the classes; `plan` (plan.pxd) chooses between rows and tiles.

`row_reduce_block` reduces the block to its statistics (merge.pxd) and leaves its exponentials where they wait
for `row_finish_block`, which turns them into the gradient or the softmax.

The loops over one chunk are functions that are called apart for whole chunks, so that the compiler knows how
long these are, and for the last one: a twentieth off the loss.
"""
from cython cimport floating
from libc.math cimport INFINITY
from libc.string cimport memcpy

from cyce.kernels.call cimport GRADIENT, SOFTMAX, Call, Tile
from cyce.kernels.machine cimport prefetch
from cyce.kernels.masses cimport fill_dense
from cyce.kernels.merge cimport (
    ARGMAX, GAP, GAP_LOST, MASS, MASS_LOST, MAX, N_BLOCK_FIELDS, RANK, REST, REST_LOST, SPREAD, UNIT,
    block_factor,
)
from cyce.kernels.plan cimport CHUNK, ROW_BLOCK, classes_of_block, lies_within
from cyce.kernels.points cimport (
    add_dense, add_spread, at_most_1, comes_before, less_mass, log_softmax_of, scaled_softmax,
)
from cyce.kernels.positions cimport log_softmax_parts
from cyce.kernels.reference cimport exp_scaled, refer_to, unit_at, without_headroom
from cyce.kernels.storage cimport address_of, destination, load, size_of, store, store_zeros
from cyce.kernels.sums cimport LANES, add, finite_or_zero, settled, sum_of_lanes, whole_lanes
from cyce.kernels.transforms cimport changes_logits, has_slopes, slope_at, transform


cdef inline floating max_of(const floating* values, Py_ssize_t n) noexcept nogil:
    """Maximum of n values, n a multiple of LANES; NaN is skipped."""
    cdef floating lane[LANES]
    cdef floating half[16]
    cdef floating quarter[8]
    cdef floating eighth[4]
    cdef Py_ssize_t group, k
    cdef floating value
    for k in range(LANES):
        lane[k] = -INFINITY
    for group in range(n // LANES):
        for k in range(LANES):
            value = values[group * LANES + k]
            lane[k] = value if value > lane[k] else lane[k]
    for k in range(16):
        half[k] = lane[k] if lane[k] > lane[k + 16] else lane[k + 16]
    for k in range(8):
        quarter[k] = half[k] if half[k] > half[k + 8] else half[k + 8]
    for k in range(4):
        eighth[k] = quarter[k] if quarter[k] > quarter[k + 4] else quarter[k + 4]
    for k in range(2):
        eighth[k] = eighth[k] if eighth[k] > eighth[k + 2] else eighth[k + 2]
    return eighth[0] if eighth[0] > eighth[1] else eighth[1]


cdef inline void exponentials_of(
    const floating* values, Py_ssize_t n, floating shift, floating exponent_shift, floating lowest,
    floating* exps_out,
) noexcept nogil:
    """Write exp_scaled of n values, n a multiple of LANES."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            exps_out[group * LANES + k] = exp_scaled(
                values[group * LANES + k], shift, exponent_shift, lowest
            )


cdef inline void add_chunk(const floating* values, Py_ssize_t n, double* total, double* lost) noexcept nogil:
    """Add n values, n a multiple of LANES, to LANES totals."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            add(&total[k], &lost[k], values[group * LANES + k])


cdef inline int index_of(const floating* values, int n, floating value) noexcept nogil:
    """First index of a value among n, or n if it is not there."""
    cdef int best = n
    cdef int k, candidate
    for k in range(n):
        candidate = k if values[k] == value else n
        best = candidate if candidate < best else best
    return best


cdef inline void row_reduce_dense(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* chunk_logits, Py_ssize_t first,
    Py_ssize_t n, floating finite_max, double* mass, double* mass_lost, double* gap, double* gap_lost,
) noexcept nogil:
    """Add the dense masses of one chunk of a row to the LANES totals of masses and gaps."""
    cdef floating dense[CHUNK]
    cdef Py_ssize_t group, k
    fill_dense(call, tile.probabilities_at[row], first, n, dense)
    for k in range(n, whole_lanes(n)):
        dense[k] = 0
    for group in range(whole_lanes(n) // LANES):
        for k in range(LANES):
            add_dense(
                dense[group * LANES + k], finite_max, chunk_logits[group * LANES + k],
                &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
            )


cdef inline void row_reduce_stats(
    const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first, Py_ssize_t n,
    floating block_max, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their spread and rank."""
    cdef floating shift, exponent_shift, lowest, logit
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef double pivot_logit = tile.pivot_logit[row]
    cdef double spread[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t n_before = 0
    cdef Py_ssize_t group, k
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        spread[k] = lost[k] = 0
    for group in range(n // LANES):
        for k in range(LANES):
            logit = block_logits[group * LANES + k]
            add_spread(
                exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
                &spread[k], &lost[k],
            )
    for k in range(n % LANES):
        logit = block_logits[n // LANES * LANES + k]
        add_spread(
            exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
            &spread[k], &lost[k],
        )
    for k in range(n):
        n_before += comes_before(block_logits[k], k, pivot_logit, pivot)
    sum_of_lanes(spread, lost, block_max)
    stats[SPREAD * stride] = (
        settled(spread[0], lost[0]) * <double> without_headroom(block_max) * stats[UNIT * stride]
    )
    stats[RANK * stride] = n_before


cdef inline floating row_max_of_block(
    const floating* block_logits, const floating* tail, Py_ssize_t n, Py_ssize_t* max_at_out
) noexcept nogil:
    """Maximum of n logits, whose last chunk is in `tail` unless it is whole, and where it is.

    If nothing is above -inf, max_at_out becomes n.
    """
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef floating block_max = -INFINITY
    cdef floating chunk_max
    cdef const floating* values
    cdef Py_ssize_t max_chunk = 0
    cdef Py_ssize_t chunk, size
    for chunk in range(n_full + (n_tail > 0)):
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        chunk_max = max_of(values, CHUNK) if chunk < n_full else max_of(values, whole_lanes(n_tail))
        if chunk_max > block_max:
            block_max = chunk_max
            max_chunk = chunk
    values = block_logits + max_chunk * CHUNK if max_chunk < n_full else tail
    size = min(<Py_ssize_t> CHUNK, n - max_chunk * CHUNK)
    max_at_out[0] = n
    if block_max > -INFINITY:
        max_at_out[0] = max_chunk * CHUNK + index_of(values, <int> size, block_max)
    return block_max


cdef inline const floating* row_logits(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* packed
) noexcept nogil:
    """The logits of a block: where they lie, or in `packed`, with the options that change them."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef const floating* block_logits = load(&call.logits, tile.logits_at[row] + first, 1, n, packed)
    if changes_logits(call):
        if block_logits != packed:
            memcpy(packed, block_logits, n * sizeof(floating))
        transform(call, n, packed)
        return packed
    return block_logits


cdef inline void row_write_max(
    floating block_max, Py_ssize_t argmax, double* total, double* lost, double* stats, Py_ssize_t stride
) noexcept nogil:
    """Write the maximum of a block, and the rest from LANES totals."""
    cdef double unit = unit_at(block_max)
    sum_of_lanes(total, lost, block_max)
    stats[MAX * stride] = block_max
    stats[ARGMAX * stride] = <double> argmax
    stats[REST * stride] = total[0] * <double> without_headroom(block_max) * unit
    stats[REST_LOST * stride] = lost[0] * <double> without_headroom(block_max) * unit
    stats[UNIT * stride] = unit


cdef inline void row_write_dense(
    floating block_max, double* mass, double* mass_lost, double* gap, double* gap_lost, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Write the dense masses and the gaps of a block from LANES totals of each."""
    sum_of_lanes(mass, mass_lost, block_max)
    sum_of_lanes(gap, gap_lost, block_max)
    stats[MASS * stride] = mass[0]
    stats[MASS_LOST * stride] = finite_or_zero(mass_lost[0])
    stats[GAP * stride] = gap[0]
    stats[GAP_LOST * stride] = finite_or_zero(gap_lost[0])


cdef inline void row_reduce_block(
    const Call* call, const Tile* tile, Py_ssize_t row, floating* row_exps, Py_ssize_t block, double* stats,
    floating* packed,
) noexcept nogil:
    """Reduce one block of a row; leave its exponentials in row_exps, unless that is NULL.

    stats: of this block and row; its fields are call.tile_width apart.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef Py_ssize_t stride = call.tile_width
    cdef const floating* block_logits = row_logits(call, tile, row, block, packed)
    cdef const char* next_logits = address_of(&call.logits, tile.logits_at[row] + first + n)
    cdef Py_ssize_t chunk_bytes = CHUNK * size_of(call.logits.format)
    cdef floating tail[CHUNK]
    cdef floating local[CHUNK]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef double mass[LANES]
    cdef double mass_lost[LANES]
    cdef double gap[LANES]
    cdef double gap_lost[LANES]
    cdef const floating* values
    cdef floating* exps
    cdef floating at_max = 0
    cdef floating block_max, shift, exponent_shift, lowest
    cdef Py_ssize_t max_at, chunk, k, size
    cdef bint has_max

    # A short last chunk is filled up with logits that add nothing.
    if n_tail:
        memcpy(tail, block_logits + n_full * CHUNK, n_tail * sizeof(floating))
        for k in range(n_tail, whole_lanes(n_tail)):
            tail[k] = -INFINITY
    block_max = row_max_of_block(block_logits, tail, n, &max_at)
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        total[k] = lost[k] = mass[k] = mass_lost[k] = gap[k] = gap_lost[k] = 0
    for chunk in range(n_full + (n_tail > 0)):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        exps = row_exps + first + chunk * CHUNK if row_exps != NULL and chunk < n_full else local
        # Prefetch the next block, or row: a quarter off the loss of 2048 x 32000 at x86_64_v4, and a fifth
        # off a gradient that streams. Without streaming, a gradient keeps the memory busy anyway.
        if row_exps == NULL or call.streams:
            prefetch(next_logits + chunk * chunk_bytes, chunk_bytes)
        if call.has_dense:
            row_reduce_dense(
                call, tile, row, values, first + chunk * CHUNK, size, finite_or_zero(block_max),
                mass, mass_lost, gap, gap_lost,
            )
        if chunk < n_full:
            exponentials_of(values, CHUNK, shift, exponent_shift, lowest, exps)
        else:
            exponentials_of(values, whole_lanes(n_tail), shift, exponent_shift, lowest, exps)
        # The maximum stays out of the sum.
        has_max = lies_within(max_at - chunk * CHUNK, size)
        if has_max:
            at_max = exps[max_at - chunk * CHUNK]
            exps[max_at - chunk * CHUNK] = 0
        if chunk < n_full:
            add_chunk(exps, CHUNK, total, lost)
        else:
            add_chunk(exps, whole_lanes(n_tail), total, lost)
        if has_max:
            exps[max_at - chunk * CHUNK] = at_max
        if row_exps != NULL and chunk == n_full:
            memcpy(row_exps + first + chunk * CHUNK, local, n_tail * sizeof(floating))

    row_write_max(block_max, first + max_at, total, lost, stats, stride)
    if call.has_dense:
        row_write_dense(block_max, mass, mass_lost, gap, gap_lost, stats, stride)
    if call.has_stats:
        row_reduce_stats(tile, row, block_logits, first, n, block_max, stats, stride)


cdef inline void row_leave_out(const Call* call, double* stats) noexcept nogil:
    """What `row_reduce_block` leaves of an ignored row, whatever its logits."""
    cdef int field
    for field in range(N_BLOCK_FIELDS):
        stats[field * call.tile_width] = 0


cdef inline void row_restart_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating block_max, floating* packed
) noexcept nogil:
    """Turn the logits of a block into exponentials again, in `packed`, with the slopes behind them."""
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef floating* slopes = packed + ROW_BLOCK
    cdef const floating* logits = load(
        &call.logits, tile.logits_at[row] + block * ROW_BLOCK, 1, n, packed
    )
    cdef floating shift, exponent_shift, lowest
    cdef Py_ssize_t k
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(n):
        slopes[k] = <floating> slope_at(call, logits[k])
    if logits != packed:
        memcpy(packed, logits, n * sizeof(floating))
    transform(call, n, packed)
    for k in range(n):
        packed[k] = exp_scaled(packed[k], shift, exponent_shift, lowest)


cdef inline void row_finish_block(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* row_exps, Py_ssize_t block,
    const double* stats, floating* packed,
) noexcept nogil:
    """Turn the exponentials of one block of a row into the gradient, 0 for an ignored row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef Py_ssize_t grad_at = tile.grad_at[row] + first
    cdef floating factor = <floating> block_factor(tile, stats, call.tile_width, row)
    cdef floating dense_factor = <floating> (tile.scale[row] * call.dense_scale)
    cdef floating dense[CHUNK]
    cdef floating local[CHUNK]
    cdef const floating* block_exps = packed
    cdef const floating* slopes = packed + ROW_BLOCK
    cdef const floating* chunk_exps
    cdef floating* chunk_grad
    cdef Py_ssize_t chunk, k, size
    if not tile.counts[row]:
        store_zeros(n, &call.grad, grad_at)
        return
    if has_slopes(call):
        row_restart_block(call, tile, row, block, <floating> stats[MAX * call.tile_width + row], packed)
    else:
        block_exps = row_exps + first
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        chunk_exps = block_exps + chunk * CHUNK
        chunk_grad = destination(&call.grad, grad_at + chunk * CHUNK, local, call.streams)
        for k in range(size):
            chunk_grad[k] = scaled_softmax(chunk_exps[k], factor)
        if call.output == SOFTMAX:
            for k in range(size):
                chunk_grad[k] = at_most_1(chunk_grad[k])
        if call.has_dense:
            fill_dense(call, tile.probabilities_at[row], first + chunk * CHUNK, size, dense)
            for k in range(size):
                chunk_grad[k] = less_mass(chunk_grad[k], dense[k], dense_factor)
        if has_slopes(call):
            for k in range(size):
                chunk_grad[k] *= slopes[chunk * CHUNK + k]
        if call.output == GRADIENT and lies_within(pivot - chunk * CHUNK, size):
            chunk_grad[pivot - chunk * CHUNK] = <floating> tile.pivot_gradient[row]
        store(chunk_grad, size, &call.grad, grad_at + chunk * CHUNK, call.streams)


cdef inline void row_log_softmax_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* packed
) noexcept nogil:
    """Write the log-softmax of one block of a row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t out_at = tile.grad_at[row] + first
    cdef const floating* logits = load(&call.logits, tile.logits_at[row] + first, 1, n, packed)
    cdef floating* block_out = destination(&call.grad, out_at, packed, False)
    cdef double subtracted_then
    cdef double subtracted = log_softmax_parts[floating](tile, row, &subtracted_then, 0)
    cdef Py_ssize_t k
    for k in range(n):
        block_out[k] = log_softmax_of(logits[k], subtracted, subtracted_then)
    store(block_out, n, &call.grad, out_at, False)
