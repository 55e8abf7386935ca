"""Chunks of a block of a row, reduced in vectors: the loops of one_pass.pxd.

Exponentials of floats are added in double. Added in pairs first, as floats, they would take 8 % less time
(in L2), and losses be off by up to 2.34 ulp: an ulp of the pair's rounding, where that is just above a power
of two and the loss just below one. Exponentials of doubles are added with what each addition loses.
"""
from cython cimport floating
from libc.math cimport INFINITY

from cyce.kernels.exponentials cimport (
    VectorReference, begin_exp, end_exp, exp_of_doubles, vectors_of_doubles, vectors_of_floats,
)
from cyce.kernels.machine cimport CACHE_LINE, check, cyce_prefetch, cyce_prefetch_to_l2
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.vectors cimport (
    RowSums, add8, add_rows16, begin_rows16, doubles, end_rows16, fill8, fill16, floats, has8, has16, larger8,
    larger16, largest8, largest16, load8, load16, store8, store16, subtract8, subtract16, sum_rows16,
)

cdef enum:
    # Numbers that are reduced in one step.
    STEP = 32
    # Totals of a chunk, of doubles only half as many.
    MOST_LANES = 16
    # Chunks of a block, one more than whole ones, and all their lanes.
    MOST_CHUNKS = 33
    BLOCK_LANES = 528
    # How many bytes ahead logits are fetched: to L1, and to L2 as far as the memory's latency is long.
    AHEAD = 1024
    AHEAD_TO_L2 = 8192


cdef struct Sums:
    # Of the chunks of a block, MOST_LANES each. `largest` is of the logits' type.
    double largest[BLOCK_LANES]
    double total[BLOCK_LANES]
    double lost[BLOCK_LANES]


cdef struct Chunks:
    # A block of logits, cut into chunks, and where their exponentials go, of the arithmetic's type. What is
    # left of it, less than a step, is the last chunk: it lies apart, among a step's numbers of which all
    # others are -inf.
    const void* logits
    const void* left
    void* exps
    void* left_exps
    # What to prefetch beside the logits: where those of the next blocks are stored, if it is not as they are
    # here; and the bytes of one there, 0 where there is nothing to prefetch.
    const char* stored
    Py_ssize_t itemsize
    Py_ssize_t n_in_place           # logits, a multiple of STEP
    Py_ssize_t left_from            # which logit of the block the first one of `left` would be
    Py_ssize_t n                    # chunks


cdef inline Py_ssize_t lanes_of(floating like) noexcept nogil:
    """Numbers of a vector."""
    return 16 if floating is float else 8


cdef inline bint is_in_place(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """Whether a chunk is not the one that lies apart."""
    return chunk * CHUNK < chunks.n_in_place and chunk < chunks.n


cdef inline const floating* logits_of(const Chunks* chunks, Py_ssize_t chunk, floating like) noexcept nogil:
    """The logits of a chunk."""
    if is_in_place(chunks, chunk):
        return <const floating*> chunks.logits + chunk * CHUNK
    return <const floating*> chunks.left


cdef inline floating* exps_of(const Chunks* chunks, Py_ssize_t chunk, floating like) noexcept nogil:
    """The exponentials of a chunk."""
    if is_in_place(chunks, chunk):
        return <floating*> chunks.exps + chunk * CHUNK
    return <floating*> chunks.left_exps


cdef inline Py_ssize_t size_of_chunk(const Chunks* chunks, Py_ssize_t chunk) noexcept nogil:
    """Logits of a chunk, with those that fill up the last one."""
    if not is_in_place(chunks, chunk):
        return STEP
    return min(<Py_ssize_t> CHUNK, chunks.n_in_place - chunk * CHUNK)


cdef inline void fetch_ahead(const void* logits) noexcept nogil:
    """Prefetch a cache line that is needed later.

    Twice, as CPUs drop prefetches, and their own do not reach beyond a page.
    """
    cyce_prefetch(<const char*> logits + AHEAD)
    cyce_prefetch_to_l2(<const char*> logits + AHEAD_TO_L2)


cdef inline void fetch_chunk_ahead(const char* logits, Py_ssize_t itemsize) noexcept nogil:
    """Prefetch as many numbers as a chunk has, for loops that do not."""
    cdef Py_ssize_t line
    for line in range(CHUNK * itemsize // CACHE_LINE):
        fetch_ahead(logits + CACHE_LINE * line)


# ---------------------------------------------------------------------------------------------
# One chunk


cdef inline floats begin_logits(
    const float* logits, bint shifts, floats shift, floats exponent_shift, floats lowest, floats* largest,
    floats* rest_out,
) noexcept nogil:
    """The first half of the exponentials of 16 logits, see `begin_exp`; notes which are the largest."""
    cdef floats t = load16(logits)
    largest[0] = larger16(t, largest[0])
    if shifts:
        t = subtract16(t, shift)
    return begin_exp(larger16(lowest, t), exponent_shift, rest_out)


cdef inline void reduce_floats(
    const float* logits, Py_ssize_t n, const VectorReference* to, bint shifts, const char* stored,
    Py_ssize_t itemsize, float* exps_out, float* largest_out, double* total_out,
) noexcept nogil:
    """`reduce_chunk` of floats."""
    cdef floats first, second, r, r_of_second, exp, exp_of_second, shift, exponent_shift, lowest
    cdef floats largest = fill16(-INFINITY)
    cdef RowSums sums
    cdef Py_ssize_t step, k
    begin_rows16(&sums)
    vectors_of_floats(to, &shift, &exponent_shift, &lowest)
    first = begin_logits(logits, shifts, shift, exponent_shift, lowest, &largest, &r)
    second = begin_logits(logits + 16, shifts, shift, exponent_shift, lowest, &largest, &r_of_second)
    for step in range(n // STEP):
        k = step * STEP
        if stored == NULL:
            fetch_ahead(logits + k)
            fetch_ahead(logits + k + 16)
        else:
            cyce_prefetch_to_l2(stored + k * itemsize)
        exp = end_exp(first, r)
        exp_of_second = end_exp(second, r_of_second)
        if k + STEP < n:
            first = begin_logits(logits + k + STEP, shifts, shift, exponent_shift, lowest, &largest, &r)
            second = begin_logits(
                logits + k + STEP + 16, shifts, shift, exponent_shift, lowest, &largest, &r_of_second
            )
        store16(exps_out + k, exp)
        store16(exps_out + k + 16, exp_of_second)
        add_rows16(&sums, exp, exp_of_second)
    store16(largest_out, largest)
    end_rows16(&sums, exps_out, n // 16, total_out)


cdef inline void reduce_doubles(
    const double* logits, Py_ssize_t n, const VectorReference* to, bint shifts, double* exps_out,
    double* largest_out, double* total_out, double* lost_out,
) noexcept nogil:
    """`reduce_chunk` of doubles."""
    cdef doubles value, shift, exponent_shift, lowest
    cdef doubles largest = fill8(-INFINITY)
    cdef doubles total = fill8(0)
    cdef doubles lost = fill8(0)
    cdef Py_ssize_t step, k
    vectors_of_doubles(to, &shift, &exponent_shift, &lowest)
    for step in range(n // 8):
        k = step * 8
        fetch_ahead(logits + k)
        value = load8(logits + k)
        largest = larger8(value, largest)
        if shifts:
            value = subtract8(value, shift)
        value = exp_of_doubles(value, exponent_shift, lowest)
        store8(exps_out + k, value)
        add8(&total, &lost, value)
    store8(largest_out, largest)
    store8(total_out, total)
    store8(lost_out, lost)


cdef inline void reduce_chunk(
    const floating* logits, Py_ssize_t n, const VectorReference* to, bint shifts, const char* stored,
    Py_ssize_t itemsize, floating* exps_out, Py_ssize_t chunk, Sums* sums,
) noexcept nogil:
    """Exponentials of n logits, n a multiple of STEP; by lanes, the largest logits and the sums.

    shifts: False if `to.shift` is known to be 0.
    """
    cdef floating* largest_out = <floating*> sums.largest + chunk * MOST_LANES
    cdef double* total_out = sums.total + chunk * MOST_LANES
    check(0 < n <= CHUNK and n % STEP == 0 and chunk < MOST_CHUNKS)
    if floating is float:
        reduce_floats(logits, n, to, shifts, stored, itemsize, exps_out, largest_out, total_out)
    else:
        reduce_doubles(
            logits, n, to, shifts, exps_out, largest_out, total_out, sums.lost + chunk * MOST_LANES
        )


cdef inline void sum_chunk(const floating* exps, Py_ssize_t n, Py_ssize_t chunk, Sums* sums) noexcept nogil:
    """Add up the exponentials of a chunk again."""
    cdef double* total_out = sums.total + chunk * MOST_LANES
    cdef doubles total = fill8(0)
    cdef doubles lost = fill8(0)
    cdef Py_ssize_t k
    if floating is float:
        sum_rows16(exps, n // 16, total_out)
    else:
        for k in range(n // 8):
            add8(&total, &lost, load8(exps + 8 * k))
        store8(total_out, total)
        store8(sums.lost + chunk * MOST_LANES, lost)


# ---------------------------------------------------------------------------------------------
# Maxima


cdef inline bint has(const floating* values, floating value) noexcept nogil:
    """Whether one of the numbers of a vector equals a number."""
    if floating is float:
        return has16(load16(values), value)
    else:
        return has8(load8(values), value)


cdef inline Py_ssize_t position_of(const floating* values, floating value) noexcept nogil:
    """The position of a number that is known to be there."""
    cdef Py_ssize_t k = 0
    while not has(values + k, value):
        k += lanes_of(value)
    while values[k] != value:
        k += 1
    return k


cdef inline floating largest_of(const floating* values, Py_ssize_t n, Py_ssize_t stride) noexcept nogil:
    """The largest number of n vectors that are `stride` numbers apart; NaN is skipped."""
    cdef floats largest_float = fill16(-INFINITY)
    cdef doubles largest_double = fill8(-INFINITY)
    cdef Py_ssize_t k
    if floating is float:
        for k in range(n):
            largest_float = larger16(load16(values + k * stride), largest_float)
        return largest16(largest_float)
    else:
        for k in range(n):
            largest_double = larger8(load8(values + k * stride), largest_double)
        return largest8(largest_double)


cdef inline floating largest_of_chunk(const Sums* sums, Py_ssize_t chunk, floating like) noexcept nogil:
    """The largest logit of a chunk."""
    return largest_of[floating](<const floating*> sums.largest + chunk * MOST_LANES, 1, 0)
