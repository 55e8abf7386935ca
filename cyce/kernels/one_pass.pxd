"""A block of a row, reduced in one pass over its logits, where there are vectors (vectors.pxd).

Exponentials need a reference before the maximum is known. It is the largest of a sample of the block, one
vector in every 272 logits; that depends on the block alone. Chunks with a logit that exceeds it by so much
that exponentials might overflow are done again, relative to the maximum.

The maximum stays out of the sum. Where it is, is known only after the pass: sums are kept for each chunk
(chunks.pxd), and that of the maximum's chunk is added up again, without it. Nothing is subtracted.
"""
from cython cimport floating
from libc.math cimport INFINITY, NAN, nextafterf
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.chunks cimport (
    AHEAD_TO_L2, BLOCK_LANES, MOST_LANES, STEP, Chunks, Sums, exps_of, has, is_in_place,
    lanes_of, largest_of, largest_of_chunk, logits_of, position_of, reduce_chunk, size_of_chunk, sum_chunk,
)
from cyce.kernels.exponentials cimport (
    VectorReference, most_above, refer_vectors_to, step_of_references, unit_of_reference,
)
from cyce.kernels.machine cimport check, cyce_prefetch, cyce_prefetch_to_l2
from cyce.kernels.masses cimport dense_lanes, is_uniform
from cyce.kernels.merge cimport (
    ARGMAX, BELOW, GAP, GAP_LOST, MASS, MASS_LOST, MAX, RANK, REFERENCE, REST, REST_LOST, SPREAD, SPREAD_2,
    SQUARES, UNIT, UNIT_BELOW, UNIT_LOST,
)
from cyce.kernels.plan cimport CHUNK, ROW_BLOCK
from cyce.kernels.points cimport count_before
from cyce.kernels.reference cimport without_headroom
from cyce.kernels.storage cimport address_of, size_of
from cyce.kernels.sums cimport LANES, add, add_product, finite_or_zero, sum_of_16, whole_lanes
from cyce.kernels.two_passes cimport add_dense_of_row, add_stats_of_row
from cyce.kernels.vectors cimport (
    doubles, fill8, fill16, floats, high8, larger16, load16, low8, multiply16, multiply_add8, multiply_add16,
    n_above16, store8, subtract16, sum_gaps16, sum_rows16,
)

cdef enum:
    # How far apart the vectors of the sample are. With a power of two, few sets of L1 would have all of them.
    SAMPLE_STEP = CHUNK + 16

# ---------------------------------------------------------------------------------------------
# The chunks of a block


cdef inline floating sampled_reference(const Chunks* chunks, floating like) noexcept nogil:
    """The largest of a sample of the logits; -inf if there is none."""
    cdef Py_ssize_t n = (chunks.n_in_place + SAMPLE_STEP - 1) // SAMPLE_STEP
    if n == 0:
        return largest_of(<const floating*> chunks.left, 1, 0)
    return largest_of(<const floating*> chunks.logits, n, SAMPLE_STEP)


cdef inline const char* stored_at(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """What to prefetch for a chunk; NULL if that is its logits."""
    return NULL if chunks.stored == NULL else chunks.stored + chunk * CHUNK * chunks.itemsize


cdef inline void reduce_any_chunk(
    const Chunks* chunks, Py_ssize_t chunk, const VectorReference* to, Sums* sums, floating like
) noexcept nogil:
    """Reduce any chunk of a block."""
    reduce_chunk(
        logits_of(chunks, chunk, like), size_of_chunk(chunks, chunk), to, True, chunks.stored, 0,
        exps_of(chunks, chunk, like), chunk, sums,
    )


cdef inline floating reduce_chunks(const Chunks* chunks, floating reference, Sums* sums) noexcept nogil:
    """Reduce all chunks of a block, relative to a reference; returns the block's maximum.

    Meanwhile, prefetch the sample of the next block.
    """
    cdef VectorReference to
    cdef const floating* next_block = <const floating*> chunks.logits + chunks.n_in_place
    cdef Py_ssize_t chunk
    refer_vectors_to(reference, &to)
    check(chunks.n * MOST_LANES <= BLOCK_LANES)
    for chunk in range(chunks.n):
        cyce_prefetch(next_block + chunk * SAMPLE_STEP)
        # Most chunks are whole, and have nothing subtracted.
        if to.shift == 0 and (chunk + 1) * CHUNK <= chunks.n_in_place:
            reduce_chunk(
                <const floating*> chunks.logits + chunk * CHUNK, CHUNK, &to, False,
                stored_at(chunks, chunk), chunks.itemsize, <floating*> chunks.exps + chunk * CHUNK, chunk,
                sums,
            )
        else:
            reduce_any_chunk(chunks, chunk, &to, sums, reference)
    return largest_of(<const floating*> sums.largest, chunks.n, MOST_LANES)


cdef inline bint exceeds(
    const Chunks* chunks, Py_ssize_t chunk, floating limit, const Sums* sums
) noexcept nogil:
    """Whether the maximum of a chunk is above a limit.

    What is left of a block counts with the logits before it, if these are not a whole chunk: for
    row_finish_block, both are one.
    """
    cdef floating largest = largest_of_chunk(sums, chunk, limit)
    cdef bint parted = chunks.n_in_place % CHUNK > 0 and not is_in_place(chunks, chunks.n - 1)
    if parted and chunk >= chunks.n - 2:
        largest = max(
            largest_of_chunk(sums, chunks.n - 2, limit), largest_of_chunk(sums, chunks.n - 1, limit)
        )
    return not largest <= limit


cdef inline void scale_sums(
    Py_ssize_t chunk, double factor, double factor_lost, Sums* sums, floating like
) noexcept nogil:
    """Multiply the sums of a chunk."""
    cdef double total, lost
    cdef Py_ssize_t k
    for k in range(chunk * MOST_LANES, chunk * MOST_LANES + lanes_of(like)):
        total = lost = 0
        if floating is double:
            lost = sums.lost[k] * factor
        add_product[floating](&total, &lost, sums.total[k], 0.0, factor, factor_lost, 0)
        sums.total[k] = total
        sums.lost[k] = lost


cdef inline int64_t redo_chunks(
    const Chunks* chunks, floating reference, floating block_max, Sums* sums
) noexcept nogil:
    """Redo the chunks that exceed the reference by too much, relative to the maximum.

    The sums of the others become relative to the maximum, too; their exponentials stay as they are. Returns
    the bits of these.
    """
    cdef VectorReference to
    # Nothing is known about chunks if there was no reference, or the maximum is infinite.
    cdef bint all_exceed = reference == -INFINITY or block_max == INFINITY
    cdef double step_lost
    cdef double step = step_of_references(reference, block_max, &step_lost)
    cdef int64_t below = 0
    cdef Py_ssize_t chunk
    for chunk in range(chunks.n):
        if not (all_exceed or exceeds(chunks, chunk, reference + most_above(reference), sums)):
            below |= <int64_t> 1 << chunk
    refer_vectors_to(block_max, &to)
    for chunk in range(chunks.n):
        if below >> chunk & 1:
            scale_sums(chunk, step, step_lost, sums, reference)
        else:
            reduce_any_chunk(chunks, chunk, &to, sums, reference)
    return below


cdef inline Py_ssize_t leave_out_maximum(
    const Chunks* chunks, floating block_max, Sums* sums
) noexcept nogil:
    """Add up the maximum's chunk without it; returns the number of the first maximum in the block."""
    cdef Py_ssize_t chunk = 0
    cdef Py_ssize_t number
    cdef floating* exps
    cdef floating kept
    while not has(<const floating*> sums.largest + chunk * MOST_LANES, block_max):
        chunk += 1
    number = position_of(logits_of(chunks, chunk, block_max), block_max)
    check(chunk < chunks.n and number < size_of_chunk(chunks, chunk))
    exps = exps_of(chunks, chunk, block_max)
    kept = exps[number]
    exps[number] = 0
    sum_chunk(exps, size_of_chunk(chunks, chunk), chunk, sums)
    exps[number] = kept
    return (chunk * CHUNK if is_in_place(chunks, chunk) else chunks.left_from) + number


cdef inline double total_of(
    const Sums* sums, Py_ssize_t n_chunks, double* lost_out, floating like
) noexcept nogil:
    """Sum over all chunks and lanes; for doubles, with what that loses."""
    cdef double total[16]
    cdef double lost[8]
    cdef const double* chunk_total
    cdef Py_ssize_t chunk, k
    for k in range(16):
        total[k] = 0
    for k in range(8):
        lost[k] = 0
    for chunk in range(n_chunks):
        chunk_total = sums.total + chunk * MOST_LANES
        if floating is float:
            for k in range(16):
                total[k] += chunk_total[k]
        else:
            for k in range(8):
                lost[k] += sums.lost[chunk * MOST_LANES + k]
                add[double](&total[k], &lost[k], chunk_total[k])
    if floating is float:
        lost_out[0] = 0
        return sum_of_16(total)
    else:
        for k in range(4):
            lost[k] += lost[k + 4]
            add[double](&total[k], &lost[k], total[k + 4])
        for k in range(2):
            lost[k] += lost[k + 2]
            add[double](&total[k], &lost[k], total[k + 2])
        lost_out[0] = lost[0] + lost[1]
        add[double](&total[0], lost_out, total[1])
        return total[0]


# ---------------------------------------------------------------------------------------------
# A block of a row


cdef inline void fill_up(const floating* logits, Py_ssize_t n, floating* out) noexcept nogil:
    """Copy n logits, and fill them up with ones that add nothing."""
    cdef Py_ssize_t k
    for k in range(n):
        out[k] = logits[k]
    for k in range(n, whole_lanes(n)):
        out[k] = -INFINITY


cdef inline void copy_left(const floating* end, Py_ssize_t n, floating* out) noexcept nogil:
    """Copy the last n logits before `end`, behind ones that add nothing: STEP in all.

    As many are loaded, in vectors: what is stored one by one must reach the cache before it can be loaded as
    a vector.
    """
    cdef floating logit
    cdef Py_ssize_t k
    for k in range(STEP):
        logit = end[k - STEP]
        out[k] = logit if k >= STEP - n else <floating> -INFINITY


cdef inline void add_dense_of_floats(
    const Call* call, const Tile* tile, Py_ssize_t row, const float* block_logits, Py_ssize_t first,
    Py_ssize_t n, float block_max, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their dense masses and gaps."""
    cdef Py_ssize_t stride = call.tile_width
    cdef const float* logits
    cdef const float* dense
    cdef float room[CHUNK]
    cdef float left[CHUNK]
    cdef double chunk_total[16]
    cdef double mass[16]
    cdef double gap[16]
    cdef Py_ssize_t chunk, size, whole, k
    for k in range(16):
        mass[k] = gap[k] = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        whole = whole_lanes(size)
        logits = block_logits + chunk * CHUNK
        dense = dense_lanes[float](call, tile, row, first + chunk * CHUNK, size, room)
        if size < whole:
            fill_up(logits, size, left)
            logits = left
        sum_rows16(dense, whole // 16, chunk_total)
        for k in range(16):
            mass[k] += chunk_total[k]
        sum_gaps16(dense, logits, whole // 16, finite_or_zero(block_max), chunk_total)
        for k in range(16):
            gap[k] += chunk_total[k]
    stats[MASS * stride] = sum_of_16(mass)
    stats[GAP * stride] = sum_of_16(gap)
    stats[MASS_LOST * stride] = stats[GAP_LOST * stride] = 0


cdef inline void add_uniform(
    const float* block_logits, Py_ssize_t n, double block_max, double* stats, Py_ssize_t stride
) noexcept nogil:
    """The same for masses of 1: the gap is n * maximum - sum of the logits.

    That loses nothing that counts: the sum of up to 8192 floats is exact unless one of them is less than
    2**-16 of another, and then the gap is as large as the larger one.
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


cdef struct MomentSums:
    # Of a block, by lanes.
    doubles spread
    doubles spread_2
    doubles squares
    Py_ssize_t n_above              # logits above the limit of their chunk


cdef inline void add_moments_of_floats(
    const float* exps, const float* logits, Py_ssize_t n, float top, float limit, float scale, double unit,
    const char* next_block, Py_ssize_t step, MomentSums* sums,
) noexcept nogil:
    """Add, over n classes, exponential * gap and * gap**2, and its square, times a unit each; count logits.

    n is a multiple of 16, at most CHUNK. The gap to the top is at most 200: beyond 131, exponentials do not
    count. Squares are those of the exponentials times a scale, which are at least 2**-60. Nothing becomes
    infinite or subnormal then. next_block: what to prefetch meanwhile, `step` bytes for each logit;
    else the memory would be idle, which is a fifth of the time of statistics.
    """
    cdef floats tops = fill16(top)
    cdef floats lowest = fill16(top - <float> 200)
    cdef floats limits = fill16(limit)
    cdef floats scales = fill16(scale)
    # 2**-60
    cdef floats least = fill16(<float> 8.673617379884035e-19)
    cdef floats spread = fill16(0)
    cdef floats spread_2 = fill16(0)
    cdef floats squares = fill16(0)
    cdef doubles units = fill8(unit)
    cdef doubles units_of_squares = fill8((unit / scale) * (unit / scale))
    cdef floats exponential, logit, gap, product
    cdef Py_ssize_t k
    check(n <= CHUNK and n % 16 == 0)
    for k in range(0, n, 16):
        cyce_prefetch_to_l2(next_block + k * step)
        exponential = load16(exps + k)
        logit = load16(logits + k)
        sums.n_above += n_above16(logit, limits)
        gap = subtract16(tops, larger16(logit, lowest))
        product = multiply16(exponential, gap)
        spread = multiply_add16(exponential, gap, spread)
        spread_2 = multiply_add16(product, gap, spread_2)
        exponential = larger16(multiply16(exponential, scales), least)
        squares = multiply_add16(exponential, exponential, squares)
    sums.spread = multiply_add8(low8(spread), units, sums.spread)
    sums.spread = multiply_add8(high8(spread), units, sums.spread)
    sums.spread_2 = multiply_add8(low8(spread_2), units, sums.spread_2)
    sums.spread_2 = multiply_add8(high8(spread_2), units, sums.spread_2)
    sums.squares = multiply_add8(low8(squares), units_of_squares, sums.squares)
    sums.squares = multiply_add8(high8(squares), units_of_squares, sums.squares)


cdef inline double sum_of_8(doubles a) noexcept nogil:
    """Sum of the lanes."""
    cdef double lane[8]
    cdef Py_ssize_t k
    store8(lane, a)
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef inline float limit_of_rank(
    float pivot_logit, Py_ssize_t first, Py_ssize_t n, Py_ssize_t pivot
) noexcept nogil:
    """Limit that those of n classes from `first` on exceed that come before the pivot (`comes_before`).

    NaN where there is none: the pivot is among them, or its logit is -inf.
    """
    if pivot >= first + n and pivot_logit > -INFINITY:
        # No less than the pivot's.
        return nextafterf(pivot_logit, -INFINITY)
    return pivot_logit if pivot < first and pivot_logit > -INFINITY else <float> NAN


cdef inline void add_stats_of_floats(
    const Call* call, const Tile* tile, Py_ssize_t row, const float* block_logits, float* exps,
    Py_ssize_t first, Py_ssize_t n, float block_max, Py_ssize_t max_at, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row to the fields that statistics are made of, from waiting exponentials.

    `settle_rests` has to follow. Exponentials below 2**-124, that is 2**-188 of the maximum's, may be those
    of -inf.
    """
    cdef MomentSums sums
    cdef double unused
    cdef double unit_below = 1
    cdef float top = finite_or_zero(block_max)
    # The highest exponentials become 2**32; of those that are relative to something lower, 2**110 at most,
    # 2**30.
    cdef float scale = 1
    cdef float scale_below = <float> 8.271806125530277e-25
    cdef float kept = 0
    cdef float left[16]
    cdef float left_exps[16]
    cdef float pivot_logit = <float> tile.pivot_logit[row]
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef float limit
    cdef Py_ssize_t chunk, at, size, whole, k
    cdef int64_t below = <int64_t> stats[BELOW * stride]
    cdef Py_ssize_t itemsize = size_of(call.logits.format)
    # The memory's share of this loop: the rest of the next block, so many bytes for each logit. The beginning
    # was that of the reduction of this one.
    cdef Py_ssize_t step = itemsize - AHEAD_TO_L2 // ROW_BLOCK
    cdef const char* next_block = (
        address_of(&call.logits, tile.logits_at[row] + first) + ROW_BLOCK * itemsize + AHEAD_TO_L2
    )
    if max_at < n:
        kept = exps[max_at]
        scale = <float> 4294967296.0 / kept
        # The maximum stays out of the sum of squares, and its gap is 0.
        exps[max_at] = 0
    if below != 0:
        unit_below = stats[UNIT_BELOW * stride] / unit_of_reference(
            <float> stats[REFERENCE * stride], block_max, &unused
        )
    sums.spread = sums.spread_2 = sums.squares = fill8(0)
    sums.n_above = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        at = chunk * CHUNK
        size = min(<Py_ssize_t> CHUNK, n - at)
        whole = size // 16 * 16
        limit = limit_of_rank(pivot_logit, at, size, pivot)
        if limit != limit:
            sums.n_above += count_before(block_logits + at, size, pivot_logit, pivot - at)
        if below >> chunk & 1:
            add_moments_of_floats(
                exps + at, block_logits + at, whole, top, limit, scale_below, unit_below,
                next_block + at * step, step, &sums,
            )
        else:
            add_moments_of_floats(
                exps + at, block_logits + at, whole, top, limit, scale, 1, next_block + at * step, step,
                &sums,
            )
    if n % 16:
        at = n // 16 * 16
        for k in range(16):
            left[k] = block_logits[at + k] if at + k < n else -INFINITY
            left_exps[k] = exps[at + k] if at + k < n else <float> 0
        if below >> (at // CHUNK) & 1:
            add_moments_of_floats(
                left_exps, left, 16, top, limit, scale_below, unit_below, next_block, step, &sums
            )
        else:
            add_moments_of_floats(left_exps, left, 16, top, limit, scale, 1, next_block, step, &sums)
    if max_at < n:
        exps[max_at] = kept
    stats[SPREAD * stride] = sum_of_8(sums.spread)
    stats[SPREAD_2 * stride] = sum_of_8(sums.spread_2)
    stats[SQUARES * stride] = sum_of_8(sums.squares)
    stats[RANK * stride] = <double> sums.n_above


cdef inline floating sum_in_one_pass(
    const floating* block_logits, Py_ssize_t n, const char* stored, Py_ssize_t itemsize, floating* exps_out,
    Py_ssize_t* max_at_out, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Exponentials of n logits, their maximum and their sum without that; returns the maximum.

    `settle_rests` has to follow.
    """
    cdef Chunks chunks
    cdef Sums sums
    cdef floating left[LANES]
    cdef floating left_exps[LANES]
    cdef floating reference, block_max
    cdef double unused
    cdef Py_ssize_t k
    chunks.stored = stored
    chunks.itemsize = itemsize
    chunks.logits = block_logits
    chunks.left = left
    chunks.exps = exps_out
    chunks.left_exps = left_exps
    chunks.n_in_place = n // STEP * STEP
    chunks.n = (chunks.n_in_place + CHUNK - 1) // CHUNK + (n > chunks.n_in_place)
    chunks.left_from = max(<Py_ssize_t> 0, n - STEP)
    if chunks.n_in_place == 0:
        fill_up(block_logits, n, left)
    elif n > chunks.n_in_place:
        copy_left(block_logits + n, n - chunks.n_in_place, left)
    reference = sampled_reference(&chunks, <floating> 0)
    block_max = reduce_chunks(&chunks, reference, &sums)
    stats[MAX * stride] = block_max
    stats[REFERENCE * stride] = reference
    stats[BELOW * stride] = 0
    if block_max > -INFINITY and not block_max <= reference + most_above(reference):
        stats[BELOW * stride] = redo_chunks(&chunks, reference, block_max, &sums)
        stats[UNIT_BELOW * stride] = unit_of_reference(reference, block_max, &unused)
        stats[REFERENCE * stride] = block_max
    max_at_out[0] = n
    if block_max > -INFINITY:
        max_at_out[0] = leave_out_maximum(&chunks, block_max, &sums)
    for k in range(n - chunks.n_in_place):
        exps_out[chunks.n_in_place + k] = left_exps[chunks.n_in_place - chunks.left_from + k]
    stats[REST * stride] = total_of(&sums, chunks.n, &stats[REST_LOST * stride], block_max)
    return block_max


cdef inline void settle_rests(
    const Call* call, const Tile* tile, double* stats, floating like
) noexcept nogil:
    """Units of one block of all rows of a tile, in vectors, and what their rests become by these."""
    cdef double* unit = stats + UNIT * call.tile_width
    cdef double* unit_lost = stats + UNIT_LOST * call.tile_width
    cdef double* rest = stats + REST * call.tile_width
    cdef double* rest_lost = stats + REST_LOST * call.tile_width
    cdef const double* block_max = stats + MAX * call.tile_width
    cdef const double* reference = stats + REFERENCE * call.tile_width
    cdef double scale = <double> without_headroom(like)
    cdef double total, lost
    cdef Py_ssize_t row
    for row in range(tile.width):
        unit[row] = unit_of_reference(<floating> reference[row], <floating> block_max[row], &unit_lost[row])
        total = rest[row] * scale
        lost = rest_lost[row] * scale
        rest[row] = 0
        rest_lost[row] = 0
        add_product[floating](&rest[row], &rest_lost[row], total, lost, unit[row], unit_lost[row], 0)
    if floating is float and call.has_stats:
        for row in range(tile.width):
            stats[SPREAD * call.tile_width + row] *= scale * unit[row]
            stats[SPREAD_2 * call.tile_width + row] *= scale * unit[row]
            stats[SQUARES * call.tile_width + row] *= (scale * unit[row]) * (scale * unit[row])


cdef inline void reduce_in_one_pass(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first,
    Py_ssize_t n, floating* exps_out, double* stats, floating* room,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on.

    exps_out: NULL if they are not kept; may be where the logits are. room: for a block of them. stats: of
    this block and row; its fields are call.tile_width apart. `settle_rests` has to follow.
    """
    cdef Py_ssize_t stride = call.tile_width
    cdef floating tail[CHUNK]
    # The logits are needed once more, after their exponentials.
    cdef floating* exps = room if exps_out == NULL or exps_out == block_logits else exps_out
    cdef Py_ssize_t max_at
    cdef floating block_max
    cdef const char* stored = NULL
    cdef Py_ssize_t itemsize = size_of(call.logits.format)
    # Copied logits are in a cache: prefetch what the next but one block is copied from.
    if <const char*> block_logits != address_of(&call.logits, tile.logits_at[row] + first):
        stored = address_of(&call.logits, tile.logits_at[row] + first) + 2 * ROW_BLOCK * itemsize
    block_max = sum_in_one_pass(block_logits, n, stored, itemsize, exps, &max_at, stats, stride)
    stats[ARGMAX * stride] = <double> (first + max_at)
    if floating is float:
        if is_uniform(call):
            add_uniform(block_logits, n, block_max, stats, stride)
        elif call.has_dense:
            add_dense_of_floats(call, tile, row, block_logits, first, n, block_max, stats)
        if call.has_stats:
            add_stats_of_floats(
                call, tile, row, block_logits, <float*> exps, first, n, block_max, max_at, stats, stride
            )
    else:
        if call.has_dense:
            fill_up(block_logits + n // CHUNK * CHUNK, n % CHUNK, tail)
            add_dense_of_row(
                call, tile, row, block_logits, <const floating*> tail, first, n, block_max, stats
            )
        if call.has_stats:
            add_stats_of_row(call, tile, row, block_logits, first, n, block_max, max_at, stats, stride)
    if exps_out != NULL and exps != exps_out:
        memcpy(exps_out, exps, n * sizeof(floating))
