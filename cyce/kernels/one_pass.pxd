"""A block of a row of floats, reduced in one pass over its logits, where there are vectors (vectors.pxd).

Exponentials need a reference before the maximum is known. It is the largest of a sample of the block, 16
logits of each chunk; that depends on the block alone. Chunks with a logit that exceeds it by so much that
exponentials might overflow are done again, relative to the maximum.

The maximum stays out of the sum. Where it is, is known only after the pass: sums are kept for each chunk, and
that of the maximum's chunk is added up again, without it. Nothing is subtracted.

Each exponential is added in double. Added in pairs first, as floats, they would take 8 % less time (in L2),
and losses be off by up to 2.34 ulp: an ulp of the pair's rounding, where that is just above a power of two
and the loss just below one.
"""
from libc.math cimport INFINITY
from libc.string cimport memcpy

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.exponentials cimport (
    LEAST_EXPONENTIAL, VectorReference, exp_of_vector, most_above, refer_vectors_to, unit_of_reference,
)
from cyce.kernels.machine cimport check, cyce_prefetch, cyce_prefetch_to_l2
from cyce.kernels.masses cimport fill_dense, is_uniform
from cyce.kernels.merge cimport (
    ARGMAX, BELOW, GAP, GAP_LOST, MASS, MASS_LOST, MAX, RANK, REFERENCE, REST, REST_LOST, SPREAD, UNIT,
    UNIT_BELOW,
)
from cyce.kernels.plan cimport CHUNK, ROW_BLOCK
from cyce.kernels.points cimport count_before
from cyce.kernels.reference cimport without_headroom
from cyce.kernels.sums cimport LANES, finite_or_zero, whole_lanes
from cyce.kernels.vectors cimport (
    fill16, has16, larger16, largest16, load16, store16, subtract16, sum_gaps16, sum_rows16, vector,
)

cdef enum:
    # Numbers of a vector, and of two.
    VECTOR = 16
    PAIR = 32
    # Chunks of a block, one more than whole ones, and all their lanes.
    MOST_CHUNKS = 17
    BLOCK_LANES = 272
    # How far ahead logits are fetched: to L1, and to L2 as far as the memory's latency is long.
    AHEAD = 256
    AHEAD_TO_L2 = 2048


cdef struct BlockSums:
    # Of each chunk of a block, by lanes.
    float largest[BLOCK_LANES]
    double total[BLOCK_LANES]


cdef struct Chunks:
    # A block of logits, cut into chunks, and where their exponentials go. What is left of it, less than two
    # vectors, is the last chunk: it lies apart, filled up with -inf.
    const float* logits
    const float* left
    float* exps
    float* left_exps
    Py_ssize_t n_in_place           # logits, a multiple of 32
    Py_ssize_t n                    # chunks


cdef inline void reduce_chunk(
    const float* logits, Py_ssize_t n, const VectorReference* to, bint shifts, float* exps_out,
    float* largest_out, double* total_out,
) noexcept nogil:
    """Exponentials of n logits of a chunk, n a multiple of 32; by lanes, the largest logits and the sums."""
    cdef vector first, second
    cdef vector largest = fill16(-INFINITY)
    cdef Py_ssize_t group, k
    check(n <= CHUNK and n % PAIR == 0)
    # The sample of the next block.
    cyce_prefetch(logits + ROW_BLOCK)
    for group in range(n // PAIR):
        k = group * PAIR
        # Twice, as CPUs drop prefetches, and their own do not reach beyond a page.
        cyce_prefetch(logits + k + AHEAD)
        cyce_prefetch(logits + k + AHEAD + VECTOR)
        cyce_prefetch_to_l2(logits + k + AHEAD_TO_L2)
        cyce_prefetch_to_l2(logits + k + AHEAD_TO_L2 + VECTOR)
        first = load16(logits + k)
        second = load16(logits + k + VECTOR)
        largest = larger16(second, larger16(first, largest))
        if shifts:
            first = subtract16(first, fill16(to.shift))
            second = subtract16(second, fill16(to.shift))
        first = exp_of_vector(first, to.exponent_shift, to.lowest)
        second = exp_of_vector(second, to.exponent_shift, to.lowest)
        store16(exps_out + k, first)
        store16(exps_out + k + VECTOR, second)
    store16(largest_out, largest)
    # From memory, where vectors of doubles begin with any number.
    sum_rows16(exps_out, n // VECTOR, total_out)


cdef inline bint is_in_place(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """Whether a chunk is not the one that lies apart."""
    return chunk * CHUNK < chunks.n_in_place and chunk < chunks.n


cdef inline const float* logits_of(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """The logits of a chunk."""
    return chunks.logits + chunk * CHUNK if is_in_place(chunks, chunk) else chunks.left


cdef inline float* exps_of(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """The exponentials of a chunk."""
    return chunks.exps + chunk * CHUNK if is_in_place(chunks, chunk) else chunks.left_exps


cdef inline Py_ssize_t size_of_chunk(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """Logits of a chunk, with those that fill up the last one."""
    if not is_in_place(chunks, chunk):
        return PAIR
    return min(<Py_ssize_t> CHUNK, chunks.n_in_place - chunk * CHUNK)


cdef inline float sampled_reference(const Chunks* chunks) noexcept nogil:
    """The largest of the first 16 logits of each chunk; -inf if there is none."""
    cdef vector largest = fill16(-INFINITY)
    cdef Py_ssize_t chunk
    for chunk in range(chunks.n):
        largest = larger16(load16(logits_of(chunks, chunk)), largest)
    return largest16(largest)


cdef inline void reduce_one_chunk(
    const Chunks* chunks, Py_ssize_t chunk, const VectorReference* to, BlockSums* sums
) noexcept nogil:
    """Reduce any chunk of a block."""
    reduce_chunk(
        logits_of(chunks, chunk), size_of_chunk(chunks, chunk), to, True, exps_of(chunks, chunk),
        sums.largest + chunk * VECTOR, sums.total + chunk * VECTOR,
    )


cdef inline float reduce_chunks(const Chunks* chunks, float reference, BlockSums* sums) noexcept nogil:
    """Reduce all chunks of a block, relative to a reference; returns the block's maximum."""
    cdef VectorReference to
    cdef vector largest = fill16(-INFINITY)
    cdef Py_ssize_t chunk
    refer_vectors_to(reference, &to)
    check(chunks.n * VECTOR <= BLOCK_LANES)
    for chunk in range(chunks.n):
        # Most chunks are whole, and have nothing subtracted.
        if to.shift == 0 and (chunk + 1) * CHUNK <= chunks.n_in_place:
            reduce_chunk(
                chunks.logits + chunk * CHUNK, CHUNK, &to, False, chunks.exps + chunk * CHUNK,
                sums.largest + chunk * VECTOR, sums.total + chunk * VECTOR,
            )
        else:
            reduce_one_chunk(chunks, chunk, &to, sums)
    for chunk in range(chunks.n):
        largest = larger16(load16(sums.largest + chunk * VECTOR), largest)
    return largest16(largest)


cdef inline bint exceeds(
    const Chunks* chunks, Py_ssize_t chunk, float limit, const BlockSums* sums
) noexcept nogil:
    """Whether the maximum of a chunk is above a limit.

    What is left of a block counts with the logits before it, if these are not a whole chunk: for
    row_finish_block, both are one.
    """
    cdef float largest = largest16(load16(sums.largest + chunk * VECTOR))
    cdef bint parted = chunks.n_in_place % CHUNK > 0 and not is_in_place(chunks, chunks.n - 1)
    if parted and chunk >= chunks.n - 2:
        largest = max(
            largest16(load16(sums.largest + (chunks.n - 2) * VECTOR)),
            largest16(load16(sums.largest + (chunks.n - 1) * VECTOR)),
        )
    return not largest <= limit


cdef inline double redo_chunks(
    const Chunks* chunks, float reference, float block_max, double unit, BlockSums* sums
) noexcept nogil:
    """Redo the chunks that exceed the reference by too much, relative to the maximum.

    The sums of the others, whose unit is given, become relative to the maximum, too; their exponentials stay
    as they are. Returns the bits of these.
    """
    cdef VectorReference to
    cdef double factor = unit / unit_of_reference(block_max, block_max)
    # Nothing is known about chunks if there was no reference, or the maximum is infinite.
    cdef bint all_exceed = reference == -INFINITY or block_max == INFINITY
    cdef bint redo[MOST_CHUNKS]
    cdef int below = 0
    cdef Py_ssize_t chunk, k
    for chunk in range(chunks.n):
        redo[chunk] = all_exceed or exceeds(chunks, chunk, reference + most_above(), sums)
    refer_vectors_to(block_max, &to)
    for chunk in range(chunks.n):
        if redo[chunk]:
            reduce_one_chunk(chunks, chunk, &to, sums)
        else:
            below |= 1 << chunk
            for k in range(VECTOR):
                sums.total[chunk * VECTOR + k] *= factor
    return below


cdef inline Py_ssize_t leave_out_maximum(
    const Chunks* chunks, float block_max, BlockSums* sums
) noexcept nogil:
    """Add up the maximum's chunk without it; returns the number of the first maximum in the block."""
    cdef Py_ssize_t chunk = 0
    cdef Py_ssize_t number = 0
    cdef const float* logits
    cdef float* exps
    cdef float kept
    while not has16(load16(sums.largest + chunk * VECTOR), block_max):
        chunk += 1
    logits = logits_of(chunks, chunk)
    while not has16(load16(logits + number), block_max):
        number += VECTOR
    while logits[number] != block_max:
        number += 1
    check(chunk < chunks.n and number < size_of_chunk(chunks, chunk))
    exps = exps_of(chunks, chunk)
    kept = exps[number]
    exps[number] = 0
    sum_rows16(exps, size_of_chunk(chunks, chunk) // VECTOR, sums.total + chunk * VECTOR)
    exps[number] = kept
    return (chunk * CHUNK if is_in_place(chunks, chunk) else chunks.n_in_place) + number


cdef inline double sum_of_16(double* total) noexcept nogil:
    """Sum of 16 numbers."""
    cdef Py_ssize_t k
    for k in range(8):
        total[k] += total[k + 8]
    for k in range(4):
        total[k] += total[k + 4]
    return (total[0] + total[2]) + (total[1] + total[3])


cdef inline double total_of(BlockSums* sums, Py_ssize_t n_chunks) noexcept nogil:
    """Sum over all chunks and lanes."""
    cdef Py_ssize_t chunk, k
    for chunk in range(1, n_chunks):
        for k in range(VECTOR):
            sums.total[k] += sums.total[chunk * VECTOR + k]
    return sum_of_16(sums.total)


# ---------------------------------------------------------------------------------------------
# A block of a row


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


cdef inline void add_dense_of_floats(
    const Call* call, const Tile* tile, Py_ssize_t row, const float* block_logits, Py_ssize_t first,
    Py_ssize_t n, float block_max, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their dense masses and gaps."""
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


cdef inline void add_uniform(
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


cdef inline void add_stats_of_floats(
    const Tile* tile, Py_ssize_t row, const float* block_logits, const float* exps, Py_ssize_t first,
    Py_ssize_t n, float block_max, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Spread and rank of n classes, from waiting exponentials; `settle_rests` has to follow.

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
    stats[RANK * stride] = count_before(
        block_logits, n, <float> tile.pivot_logit[row], tile.pivot[row] - first
    )


cdef inline float sum_in_one_pass(
    const float* block_logits, Py_ssize_t n, float* exps_out, Py_ssize_t* max_at_out, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Exponentials of n logits, their maximum and their sum without that; returns the maximum.

    `settle_rests` has to follow.
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


cdef inline void settle_rests(const Call* call, const Tile* tile, double* stats) noexcept nogil:
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


cdef inline void reduce_in_one_pass(
    const Call* call, const Tile* tile, Py_ssize_t row, const float* block_logits, Py_ssize_t first,
    Py_ssize_t n, float* exps_out, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on.

    exps_out: NULL if they are not kept; may be where the logits are. stats: of this block and row; its fields
    are call.tile_width apart. `settle_rests` has to follow.
    """
    cdef Py_ssize_t stride = call.tile_width
    cdef float apart[ROW_BLOCK]
    # The logits are needed once more, after their exponentials.
    cdef float* exps = <float*> apart if exps_out == NULL or exps_out == block_logits else exps_out
    cdef Py_ssize_t max_at
    cdef float block_max = sum_in_one_pass(block_logits, n, exps, &max_at, stats, stride)
    stats[ARGMAX * stride] = <double> (first + max_at)
    if is_uniform(call):
        add_uniform(block_logits, n, block_max, stats, stride)
    elif call.has_dense:
        add_dense_of_floats(call, tile, row, block_logits, first, n, block_max, stats)
    if call.has_stats:
        add_stats_of_floats(tile, row, block_logits, exps, first, n, block_max, stats, stride)
    if exps_out != NULL and exps != exps_out:
        memcpy(exps_out, exps, n * sizeof(float))
