"""A block of a row of floats, reduced in one pass over its logits, where there are vectors (vectors.pxd).

Exponentials need a reference before the maximum is known. It is the largest of a sample of the block, 16
logits of each chunk; that depends on the block alone. Chunks with a logit that exceeds it by so much that
exponentials might overflow are done again, relative to the maximum.

The maximum stays out of the sum. Where it is, is known only after the pass: sums are kept for each chunk and
lane, and that of the maximum's chunk and lane is added up again, without it. Nothing is subtracted.

Each exponential is added in double. Added in pairs first, as floats, they would take 8 % less time (in L2),
and losses be off by up to 2.34 ulp: an ulp of the pair's rounding, where that is just above a power of two
and the loss just below one.
"""
from libc.math cimport INFINITY

from cyce.kernels.exponentials cimport (
    VectorReference, exp_of_vector, most_above, refer_vectors_to, unit_of_reference,
)
from cyce.kernels.machine cimport check, cyce_prefetch, cyce_prefetch_to_l2
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.vectors cimport (
    fill16, larger16, largest16, load16, store16, subtract16, sum_rows16, vector,
)

cdef enum:
    # Numbers of a vector, and of two.
    VECTOR = 16
    PAIR = 32
    # Lanes of all chunks of a block.
    BLOCK_LANES = 256
    # How far ahead of a logit its successors are fetched, in logits.
    AHEAD = 256
    AHEAD_TO_L2 = 128


cdef struct BlockSums:
    # Of each chunk of a block, by lanes.
    float largest[BLOCK_LANES]
    double total[BLOCK_LANES]


cdef struct Chunks:
    # A block of logits in chunks, and where their exponentials go. The last chunk, unless it is whole, lies
    # apart, filled up with -inf.
    const float* logits
    const float* tail
    float* exps
    float* tail_exps
    Py_ssize_t n_full
    Py_ssize_t n_tail               # logits of the last chunk, or 0
    Py_ssize_t n


cdef inline void reduce_chunk(
    const float* logits, Py_ssize_t n, const VectorReference* to, bint shifts, float* exps_out,
    float* largest_out, double* total_out,
) noexcept nogil:
    """Exponentials of n logits of a chunk, n a multiple of 32; by lanes, the largest logits and the sums."""
    cdef vector first, second
    cdef vector largest = fill16(-INFINITY)
    cdef Py_ssize_t group, k
    check(n <= CHUNK and n % PAIR == 0)
    for group in range(n // PAIR):
        k = group * PAIR
        # Twice, as some CPUs drop prefetches.
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


cdef inline const float* logits_of(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """The logits of a chunk."""
    return chunks.logits + chunk * CHUNK if chunk < chunks.n_full else chunks.tail


cdef inline float* exps_of(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """The exponentials of a chunk."""
    return chunks.exps + chunk * CHUNK if chunk < chunks.n_full else chunks.tail_exps


cdef inline Py_ssize_t size_of_chunk(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """Logits of a chunk, with those that fill up the last one."""
    return CHUNK if chunk < chunks.n_full else chunks.n_tail


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
    # Most chunks are whole, and have nothing subtracted.
    for chunk in range(chunks.n_full):
        if to.shift == 0:
            reduce_chunk(
                chunks.logits + chunk * CHUNK, CHUNK, &to, False, chunks.exps + chunk * CHUNK,
                sums.largest + chunk * VECTOR, sums.total + chunk * VECTOR,
            )
        else:
            reduce_one_chunk(chunks, chunk, &to, sums)
    if chunks.n_tail > 0:
        reduce_one_chunk(chunks, chunks.n_full, &to, sums)
    for chunk in range(chunks.n):
        largest = larger16(load16(sums.largest + chunk * VECTOR), largest)
    return largest16(largest)


cdef inline double redo_chunks(
    const Chunks* chunks, float reference, float block_max, double unit, BlockSums* sums
) noexcept nogil:
    """Redo the chunks that exceed the reference by too much, relative to the maximum.

    The sums of the others, whose unit is given, become relative to the maximum, too; their exponentials stay
    as they are. Returns the bits of these.
    """
    cdef VectorReference to
    cdef double factor = unit / unit_of_reference(block_max, block_max)
    cdef int below = 0
    cdef Py_ssize_t chunk, k
    refer_vectors_to(block_max, &to)
    for chunk in range(chunks.n):
        # Nothing is known about chunks if there was no reference, or the maximum is infinite.
        if -INFINITY < reference and block_max < INFINITY and (
            largest16(load16(sums.largest + chunk * VECTOR)) <= reference + most_above()
        ):
            below |= 1 << chunk
            for k in range(VECTOR):
                sums.total[chunk * VECTOR + k] *= factor
        else:
            reduce_one_chunk(chunks, chunk, &to, sums)
    return below


cdef inline Py_ssize_t chunk_of(const BlockSums* sums, Py_ssize_t n_chunks, float block_max) noexcept nogil:
    """First chunk whose maximum is that of the block."""
    cdef Py_ssize_t chunk, k
    cdef bint is_there
    for chunk in range(n_chunks):
        is_there = False
        for k in range(VECTOR):
            is_there |= sums.largest[chunk * VECTOR + k] == block_max
        if is_there:
            return chunk
    return n_chunks


cdef inline void leave_out(
    const Chunks* chunks, Py_ssize_t chunk, Py_ssize_t number, BlockSums* sums
) noexcept nogil:
    """Add up the lane of one number of a chunk again, without that number."""
    cdef const float* exps = exps_of(chunks, chunk)
    cdef Py_ssize_t lane = number % VECTOR
    cdef double total = 0
    cdef Py_ssize_t k
    check(0 <= number < size_of_chunk(chunks, chunk))
    for k in range(size_of_chunk(chunks, chunk) // VECTOR):
        total += exps[k * VECTOR + lane] if k != number // VECTOR else <float> 0.0
    sums.total[chunk * VECTOR + lane] = total


cdef inline double total_of(BlockSums* sums, Py_ssize_t n_chunks) noexcept nogil:
    """Sum over all chunks and lanes."""
    cdef double* total = sums.total
    cdef Py_ssize_t chunk, k
    for chunk in range(1, n_chunks):
        for k in range(VECTOR):
            total[k] += total[chunk * VECTOR + k]
    for k in range(8):
        total[k] += total[k + 8]
    for k in range(4):
        total[k] += total[k + 4]
    for k in range(2):
        total[k] += total[k + 2]
    return total[0] + total[1]
