"""One block of one position, vectors along the classes; `plan` (plan.pxd) chooses between rows and tiles.

`row_reduce_block` reduces the block to its statistics (merge.pxd) and leaves its exponentials where they wait
for `row_finish_block`, which turns them into the gradient or the softmax.

The loops over one chunk are functions that are called apart for whole chunks, so that the compiler knows how
long these are, and for the last one: a twentieth off the loss.
"""
from cython cimport floating
from libc.math cimport INFINITY, fabs
from libc.string cimport memcpy

from cyce.kernels.call cimport GRADIENT, SOFTMAX, Call, Tile
from cyce.kernels.exponentials cimport (
    LEAST_EXPONENTIAL, exponentials_of_vectors, most_above, unit_of_reference,
)
from cyce.kernels.machine cimport cyce_to_float, prefetch
from cyce.kernels.masses cimport fill_dense, is_uniform
from cyce.kernels.merge cimport (
    ARGMAX, BELOW, GAP, GAP_LOST, MASS, MASS_LOST, MAX, N_BLOCK_FIELDS, RANK, REFERENCE, REST, REST_LOST,
    SPREAD, UNIT, UNIT_BELOW, block_factor,
)
from cyce.kernels.one_pass cimport (
    BlockSums, Chunks, leave_out_maximum, redo_chunks, reduce_chunks, sampled_reference, total_of,
)
from cyce.kernels.plan cimport CHUNK, ROW_BLOCK, classes_of_block, lies_within
from cyce.kernels.points cimport (
    add_dense, add_spread, at_most_1, less_mass, log_softmax_of, scaled_softmax,
)
from cyce.kernels.positions cimport log_softmax_parts
from cyce.kernels.reference cimport exp_scaled, refer_to, unit_at, without_headroom
from cyce.kernels.storage cimport address_of, destination, load, size_of, store, store_zeros
from cyce.kernels.sums cimport LANES, add, finite_or_zero, settled, sum_of_lanes, whole_lanes
from cyce.kernels.transforms cimport changes_logits, has_slopes, slope_at, transform
from cyce.kernels.vectors cimport HAS_VECTORS, sum_gaps16, sum_rows16


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
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, const floating* tail,
    Py_ssize_t first, Py_ssize_t n, floating block_max, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their dense masses and gaps."""
    cdef Py_ssize_t stride = call.tile_width
    cdef floating finite_max = finite_or_zero(block_max)
    cdef const floating* values
    cdef floating dense[CHUNK]
    cdef double mass[LANES]
    cdef double mass_lost[LANES]
    cdef double gap[LANES]
    cdef double gap_lost[LANES]
    cdef Py_ssize_t chunk, size, group, k
    for k in range(LANES):
        mass[k] = mass_lost[k] = gap[k] = gap_lost[k] = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if size == CHUNK else tail
        fill_dense(call, tile.probabilities_at[row], first + chunk * CHUNK, size, dense)
        for k in range(size, whole_lanes(size)):
            dense[k] = 0
        for group in range(whole_lanes(size) // LANES):
            for k in range(LANES):
                add_dense(
                    dense[group * LANES + k], finite_max, values[group * LANES + k],
                    &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
                )
    sum_of_lanes(mass, mass_lost, block_max)
    sum_of_lanes(gap, gap_lost, block_max)
    stats[MASS * stride] = mass[0]
    stats[MASS_LOST * stride] = finite_or_zero(mass_lost[0])
    stats[GAP * stride] = gap[0]
    stats[GAP_LOST * stride] = finite_or_zero(gap_lost[0])


cdef inline double sum_of_16(double* total) noexcept nogil:
    """Sum of 16 numbers."""
    cdef Py_ssize_t k
    for k in range(8):
        total[k] += total[k + 8]
    for k in range(4):
        total[k] += total[k + 4]
    return (total[0] + total[2]) + (total[1] + total[3])


cdef inline double sum_of_gaps(
    const float* masses, const float* logits, Py_ssize_t n, double top, float least
) noexcept nogil:
    """Sum of mass * (top - logit) over n classes; masses of at most `least` count as 0."""
    cdef double total[16]
    cdef double sum
    cdef Py_ssize_t k
    sum_gaps16(masses, logits, n // 16, top, least, total)
    sum = sum_of_16(total)
    for k in range(n // 16 * 16, n):
        if not -least <= masses[k] <= least:
            sum += <double> masses[k] * (top - <double> logits[k])
    return sum


cdef inline void row_reduce_dense_in_vectors(
    const Call* call, const Tile* tile, Py_ssize_t row, const float* block_logits, Py_ssize_t first,
    Py_ssize_t n, float block_max, double* stats,
) noexcept nogil:
    """The same for floats, where there are vectors."""
    cdef Py_ssize_t stride = call.tile_width
    cdef float dense[CHUNK]
    cdef double total[16]
    cdef double mass = 0
    cdef double gap = 0
    cdef Py_ssize_t chunk, size, k
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        fill_dense[float](call, tile.probabilities_at[row], first + chunk * CHUNK, size, dense)
        for k in range(size, whole_lanes(size)):
            dense[k] = 0
        sum_rows16(dense, whole_lanes(size) // 16, total)
        mass += sum_of_16(total)
        gap += sum_of_gaps(dense, block_logits + chunk * CHUNK, size, finite_or_zero(block_max), 0)
    stats[MASS * stride] = mass
    stats[GAP * stride] = gap
    stats[MASS_LOST * stride] = stats[GAP_LOST * stride] = 0


cdef inline void row_reduce_uniform(
    const float* block_logits, Py_ssize_t n, double block_max, double* stats, Py_ssize_t stride
) noexcept nogil:
    """The same for masses of 1: the gap is n * maximum - sum of the logits.

    That loses nothing that counts: the sum of up to 4096 floats is exact unless one of them is less than
    2**-17 of another, and then the gap is as large as the larger one.
    """
    cdef Py_ssize_t n_whole = n // LANES * LANES
    cdef double total[16]
    cdef double sum
    cdef Py_ssize_t k
    sum_rows16(block_logits, n_whole // 16, total)
    sum = sum_of_16(total)
    for k in range(n_whole, n):
        sum += block_logits[k]
    stats[MASS * stride] = <double> n
    stats[GAP * stride] = <double> n * finite_or_zero(block_max) - sum
    stats[MASS_LOST * stride] = stats[GAP_LOST * stride] = 0


cdef inline void row_reduce_stats_in_vectors(
    const Tile* tile, Py_ssize_t row, const float* block_logits, const float* exps, Py_ssize_t first,
    Py_ssize_t n, float block_max, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Spread and rank of n classes, from waiting exponentials; `rows_settle_rests` has to follow.

    Exponentials below 2**-124, that is 2**-188 of the maximum's, may be those of -inf.
    """
    cdef double unit, unit_below
    cdef double spread = 0
    cdef Py_ssize_t chunk, size
    cdef int below = <int> stats[BELOW * stride]
    if below == 0:
        spread = sum_of_gaps(exps, block_logits, n, finite_or_zero(block_max), LEAST_EXPONENTIAL)
    else:
        unit = unit_of_reference(<float> stats[REFERENCE * stride], block_max)
        unit_below = stats[UNIT_BELOW * stride]
        for chunk in range((n + CHUNK - 1) // CHUNK):
            size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
            spread += sum_of_gaps(
                exps + chunk * CHUNK, block_logits + chunk * CHUNK, size, finite_or_zero(block_max),
                LEAST_EXPONENTIAL,
            ) * (unit_below / unit if below >> chunk & 1 else 1.0)
    stats[SPREAD * stride] = spread
    stats[RANK * stride] = row_rank(
        block_logits, n, <float> tile.pivot_logit[row], tile.pivot[row] - first
    )


cdef inline Py_ssize_t row_rank(
    const floating* logits, Py_ssize_t n, floating pivot_logit, Py_ssize_t pivot
) noexcept nogil:
    """How many of n logits come before the pivot (`comes_before`)."""
    cdef Py_ssize_t n_lower_numbers = max(<Py_ssize_t> 0, min(pivot, n))
    cdef int n_before = 0
    cdef Py_ssize_t k
    for k in range(n_lower_numbers):
        n_before += logits[k] >= pivot_logit
    for k in range(n_lower_numbers, n):
        n_before += logits[k] > pivot_logit
    return n_before


cdef inline void row_reduce_stats(
    const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first, Py_ssize_t n,
    floating block_max, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their spread and rank."""
    cdef floating shift, exponent_shift, lowest, logit
    cdef double spread[LANES]
    cdef double lost[LANES]
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
    sum_of_lanes(spread, lost, block_max)
    stats[SPREAD * stride] = (
        settled(spread[0], lost[0]) * <double> without_headroom(block_max) * unit_at(block_max)
    )
    stats[RANK * stride] = row_rank(
        block_logits, n, <floating> tile.pivot_logit[row], tile.pivot[row] - first
    )


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
        transform(call, block_logits, n, packed)
        return packed
    return block_logits


cdef inline void row_write_rest(
    double rest, double lost, double unit, floating reference, floating block_max, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Write the rest of a block, of which a sum of exponentials and its unit are given."""
    stats[MAX * stride] = block_max
    stats[REST * stride] = rest * <double> without_headroom(block_max) * unit
    stats[REST_LOST * stride] = lost * <double> without_headroom(block_max) * unit
    stats[UNIT * stride] = unit
    stats[REFERENCE * stride] = reference


cdef inline void row_add_exponentials(
    const floating* block_logits, const floating* tail, Py_ssize_t n, floating block_max, Py_ssize_t max_at,
    floating* exps_out, floating* tail_exps_out, const char* next_logits, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """The second of two passes over n logits, whose maximum is known: exponentials relative to it, their
    rest.

    exps_out: NULL if they are not kept. next_logits: what to prefetch, or NULL.
    """
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef floating local[CHUNK]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef const floating* values
    cdef floating* exps
    cdef floating at_max = 0
    cdef floating shift, exponent_shift, lowest
    cdef Py_ssize_t chunk, k, size
    cdef bint has_max
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        total[k] = lost[k] = 0
    for chunk in range(n_full + (n_tail > 0)):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        exps = exps_out + chunk * CHUNK if exps_out != NULL else local
        if chunk == n_full:
            exps = tail_exps_out
        # Prefetch the next block, or row: a quarter off the loss of 2048 x 32000 at x86_64_v4, and a fifth
        # off a gradient that streams. Without streaming, a gradient keeps the memory busy anyway.
        if next_logits != NULL:
            prefetch(next_logits + chunk * CHUNK * sizeof(floating), CHUNK * sizeof(floating))
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
    sum_of_lanes(total, lost, block_max)
    row_write_rest(total[0], lost[0], unit_at(block_max), block_max, block_max, stats, stride)


cdef inline float row_reduce_in_one_pass(
    const float* block_logits, Py_ssize_t n, float* exps_out, Py_ssize_t* max_at_out, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Exponentials of n logits and their sum, in one pass (one_pass.pxd); returns their maximum.

    `rows_settle_rests` has to follow.
    """
    cdef Chunks chunks
    cdef BlockSums sums
    cdef float left[LANES]
    cdef float left_exps[LANES]
    cdef float reference, block_max
    cdef Py_ssize_t k
    chunks.logits = block_logits
    chunks.left = left
    chunks.exps = exps_out
    chunks.left_exps = left_exps
    chunks.n_in_place = n // LANES * LANES
    chunks.n = (chunks.n_in_place + CHUNK - 1) // CHUNK + (n > chunks.n_in_place)
    # What is left is filled up with logits that add nothing.
    for k in range(LANES):
        left[k] = -INFINITY
    for k in range(n - chunks.n_in_place):
        left[k] = block_logits[chunks.n_in_place + k]
    reference = sampled_reference(&chunks)
    block_max = reduce_chunks(&chunks, reference, &sums)
    stats[BELOW * stride] = 0
    if block_max > -INFINITY and not block_max <= reference + most_above():
        stats[UNIT_BELOW * stride] = unit_of_reference(reference, block_max)
        stats[BELOW * stride] = redo_chunks(
            &chunks, reference, block_max, stats[UNIT_BELOW * stride], &sums
        )
        reference = block_max
    max_at_out[0] = n
    if block_max > -INFINITY:
        max_at_out[0] = leave_out_maximum(&chunks, block_max, &sums)
    for k in range(n - chunks.n_in_place):
        exps_out[chunks.n_in_place + k] = left_exps[k]
    stats[MAX * stride] = block_max
    stats[REFERENCE * stride] = reference
    stats[REST * stride] = total_of(&sums, chunks.n)
    return block_max


cdef inline void rows_settle_rests(const Call* call, const Tile* tile, double* stats) noexcept nogil:
    """Units of one block of all rows of a tile, in vectors, and what their rests become by these."""
    cdef double* unit = stats + UNIT * call.tile_width
    cdef double* rest = stats + REST * call.tile_width
    cdef double* lost = stats + REST_LOST * call.tile_width
    cdef const double* block_max = stats + MAX * call.tile_width
    cdef const double* reference = stats + REFERENCE * call.tile_width
    cdef Py_ssize_t row
    for row in range(tile.width):
        unit[row] = unit_of_reference(<float> reference[row], <float> block_max[row])
        rest[row] *= <double> without_headroom[float](0) * unit[row]
        lost[row] = 0
    if call.has_stats:
        for row in range(tile.width):
            stats[SPREAD * call.tile_width + row] *= <double> without_headroom[float](0) * unit[row]


cdef inline void row_reduce_block(
    const Call* call, const Tile* tile, Py_ssize_t row, floating* row_exps, Py_ssize_t block, double* stats,
    floating* packed,
) noexcept nogil:
    """Reduce one block of a row; leave its exponentials in row_exps, unless that is NULL.

    row_exps may be where the logits are. stats: of this block and row; its fields are call.tile_width apart.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef Py_ssize_t stride = call.tile_width
    cdef const floating* block_logits = row_logits(call, tile, row, block, packed)
    cdef floating* exps_out = row_exps + first if row_exps != NULL else NULL
    cdef const char* next_logits = NULL
    cdef floating tail[CHUNK]
    cdef floating tail_exps[CHUNK]
    cdef float apart[ROW_BLOCK]
    cdef floating* exps = exps_out
    cdef floating block_max
    cdef Py_ssize_t max_at, k

    # A short last chunk is filled up with logits that add nothing.
    if n_tail and not (floating is float and HAS_VECTORS):
        memcpy(tail, block_logits + n_full * CHUNK, n_tail * sizeof(floating))
        for k in range(n_tail, whole_lanes(n_tail)):
            tail[k] = -INFINITY
    if floating is float and HAS_VECTORS:
        # The logits are needed once more, after their exponentials.
        if exps_out == NULL or exps_out == block_logits:
            exps = <floating*> apart
        block_max = row_reduce_in_one_pass(
            <const float*> block_logits, n, <float*> exps, &max_at, stats, stride
        )
    else:
        block_max = row_max_of_block(block_logits, tail, n, &max_at)
    stats[ARGMAX * stride] = <double> (first + max_at)
    if floating is float and HAS_VECTORS and is_uniform(call):
        row_reduce_uniform(<const float*> block_logits, n, block_max, stats, stride)
    elif floating is float and HAS_VECTORS and call.has_dense:
        row_reduce_dense_in_vectors(
            call, tile, row, <const float*> block_logits, first, n, <float> block_max, stats
        )
    elif call.has_dense:
        row_reduce_dense(call, tile, row, block_logits, tail, first, n, block_max, stats)
    if floating is float and HAS_VECTORS:
        if call.has_stats:
            row_reduce_stats_in_vectors(
                tile, row, <const float*> block_logits, <const float*> exps, first, n, <float> block_max,
                stats, stride,
            )
        if exps_out != NULL and exps != exps_out:
            memcpy(exps_out, exps, n * sizeof(floating))
        return
    if call.has_stats:
        row_reduce_stats(tile, row, block_logits, first, n, block_max, stats, stride)
    if row_exps == NULL or call.streams:
        next_logits = address_of(&call.logits, tile.logits_at[row] + first + n)
    row_add_exponentials(
        block_logits, <const floating*> tail, n, block_max, max_at, exps, tail_exps, next_logits, stats,
        stride,
    )
    if exps_out != NULL:
        memcpy(exps_out + n_full * CHUNK, tail_exps, n_tail * sizeof(floating))


cdef inline void row_leave_out(const Call* call, double* stats) noexcept nogil:
    """What `row_reduce_block` leaves of an ignored row, whatever its logits."""
    cdef int field
    for field in range(N_BLOCK_FIELDS):
        stats[field * call.tile_width] = 0


cdef inline void exponentials_again(floating* values, Py_ssize_t n, floating reference) noexcept nogil:
    """Replace n values by their exponentials."""
    cdef floating shift, exponent_shift, lowest
    cdef Py_ssize_t k
    refer_to(reference, &shift, &exponent_shift, &lowest)
    for k in range(n):
        values[k] = exp_scaled(values[k], shift, exponent_shift, lowest)


cdef inline void row_restart_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating reference, floating* packed
) noexcept nogil:
    """Turn the logits of a block into exponentials again, in `packed`, with the slopes behind them."""
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef floating* slopes = packed + ROW_BLOCK
    cdef const floating* logits = load(
        &call.logits, tile.logits_at[row] + block * ROW_BLOCK, 1, n, packed
    )
    cdef Py_ssize_t k
    for k in range(n):
        slopes[k] = <floating> slope_at(call, logits[k])
    transform(call, logits, n, packed)
    for k in range(n, whole_lanes(n)):
        packed[k] = 0
    if floating is float:
        if HAS_VECTORS:
            exponentials_of_vectors(packed, whole_lanes(n), reference, packed)
        else:
            exponentials_again(<float*> packed, n, reference)
    else:
        exponentials_again(<double*> packed, n, reference)


cdef inline void scale_exponentials(
    const floating* exps, Py_ssize_t n, double factor, floating less, bint in_double, floating* out
) noexcept nogil:
    """Write n exponentials, without their headroom, times a factor, less a number; `out` may be `exps`.

    in_double: where the factor as a float would lose digits that the products have, since exponentials may be
    far above 1, or where many products are subnormal, which costs 3 to 8 times the time in float.
    """
    cdef floating rounded = <floating> factor
    cdef double scaled = factor * <double> without_headroom(rounded)
    cdef Py_ssize_t k
    if floating is float and in_double and fabs(factor) < 1e-60:
        # Exponentials are below 2**112: all products are 0.
        for k in range(n):
            out[k] = <floating> 0 - less
    elif floating is float and in_double:
        for k in range(n):
            out[k] = cyce_to_float(<double> exps[k] * scaled) - less
    else:
        for k in range(n):
            out[k] = scaled_softmax(exps[k], rounded) - less


cdef inline void row_finish_block(
    const Call* call, const Tile* tile, Py_ssize_t row, floating* row_exps, Py_ssize_t block,
    const double* stats, floating* packed,
) noexcept nogil:
    """Turn the exponentials of one block of a row into the gradient, 0 for an ignored row.

    What streams is put together in place of the exponentials and written as a whole: each piece begins and
    ends within a cache line, which cannot be streamed.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef Py_ssize_t grad_at = tile.grad_at[row] + first
    cdef double factor = block_factor(tile, stats, call.tile_width, row)
    cdef double unit = stats[UNIT * call.tile_width + row]
    cdef double unit_below = unit
    cdef int below = 0
    cdef floating dense_factor = <floating> (tile.scale[row] * call.dense_scale)
    cdef floating dense[CHUNK]
    cdef floating local[CHUNK]
    cdef floating* block_exps = packed
    cdef const floating* slopes = packed + ROW_BLOCK
    cdef floating* chunk_exps
    cdef floating* chunk_grad
    cdef Py_ssize_t chunk, k, size
    cdef bint in_double
    if not tile.counts[row]:
        store_zeros(n, &call.grad, grad_at)
        return
    if has_slopes(call):
        row_restart_block(
            call, tile, row, block, <floating> stats[REFERENCE * call.tile_width + row], packed
        )
    else:
        block_exps = row_exps + first
        if floating is float and HAS_VECTORS:
            below = <int> stats[BELOW * call.tile_width + row]
            unit_below = stats[UNIT_BELOW * call.tile_width + row]
    in_double = HAS_VECTORS and (below != 0 or fabs(factor * unit) < 1e-25)
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        chunk_exps = block_exps + chunk * CHUNK
        chunk_grad = chunk_exps if call.streams else destination(
            &call.grad, grad_at + chunk * CHUNK, local, False
        )
        scale_exponentials(
            chunk_exps, size, factor * (unit_below if below >> chunk & 1 else unit),
            dense_factor if is_uniform(call) else <floating> 0, in_double, chunk_grad,
        )
        if call.output == SOFTMAX:
            for k in range(size):
                chunk_grad[k] = at_most_1(chunk_grad[k])
        if call.has_dense and not is_uniform(call):
            fill_dense(call, tile.probabilities_at[row], first + chunk * CHUNK, size, dense)
            for k in range(size):
                chunk_grad[k] = less_mass(chunk_grad[k], dense[k], dense_factor)
        if has_slopes(call):
            for k in range(size):
                chunk_grad[k] *= slopes[chunk * CHUNK + k]
        if call.output == GRADIENT and lies_within(pivot - chunk * CHUNK, size):
            chunk_grad[pivot - chunk * CHUNK] = <floating> tile.pivot_gradient[row]
        if not call.streams:
            store(chunk_grad, size, &call.grad, grad_at + chunk * CHUNK, False)
    if call.streams:
        store(block_exps, n, &call.grad, grad_at, True)


cdef inline void row_log_softmax_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* packed
) noexcept nogil:
    """Write the log-softmax of one block of a row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t out_at = tile.grad_at[row] + first
    cdef const floating* logits = load(&call.logits, tile.logits_at[row] + first, 1, n, packed)
    cdef floating* block_out = destination(&call.grad, out_at, packed, call.streams)
    cdef double subtracted_then
    cdef double subtracted = log_softmax_parts[floating](tile, row, &subtracted_then, 0)
    cdef Py_ssize_t k
    for k in range(n):
        block_out[k] = log_softmax_of(logits[k], subtracted, subtracted_then)
    store(block_out, n, &call.grad, out_at, call.streams)
