"""Packed classes of 16 positions at a time, in vectors: the loops of tiles.pxd for floats.

As one_pass.pxd is for rows, but two passes: what is packed is in L1, so that exponentials are relative to the
maximum of the block itself. Classes at the maximum are left out of the sum, and counted instead: they would
be 1 each.
"""
from libc.math cimport INFINITY, fabsf

from cyce.kernels.call cimport Ahead, Tile
from cyce.kernels.exponentials cimport INVERSE_OF_FACTOR, begin_exp, end_exp, exp_of_floats_or_0
from cyce.kernels.machine cimport cyce_prefetch
from cyce.kernels.math cimport exp_near_zero_for_float
from cyce.kernels.merge cimport MAX, REST, REST_LOST, UNIT
from cyce.kernels.reference cimport cut_off, headroom, power_at, without_headroom
from cyce.kernels.storage cimport TILE
from cyce.kernels.sums cimport finite_or_zero
from cyce.kernels.vectors cimport (
    ColumnSums, add_columns16, add_columns_above16, begin_columns16, cut_off16, end_columns16, fill16, floats,
    larger16, load16, multiply16, n_above16, store16, subtract16,
)

cdef enum:
    # Positions of a vector, and of as many as there are registers for.
    COLUMNS = 16
    WIDE = 64
    # Maxima up to this large are left where they are: nothing is subtracted from their logits.
    NO_SHIFT = 256


cdef struct References:
    # What the exponentials of the positions are relative to: see `VectorReference`.
    float shift[TILE]
    float exponent_shift[TILE]
    float lowest[TILE]


cdef inline void refer_columns_to(
    const float* row_max, Py_ssize_t n_columns, References* out, double* unit_out
) noexcept nogil:
    """Make the maxima of positions what their exponentials are relative to.

    unit_out: what turns exponentials, without their headroom, into those relative to the maxima; or NULL.
    """
    cdef float relative[TILE]
    cdef float power[TILE]
    cdef float finite
    cdef Py_ssize_t k
    for k in range(n_columns):
        finite = finite_or_zero(row_max[k])
        out.shift[k] = finite if fabsf(finite) > NO_SHIFT else <float> 0
        relative[k] = finite - out.shift[k]
        power[k] = power_at(relative[k])
        # 1.5 * 2**20: its last bit is an eighth.
        out.exponent_shift[k] = <float> 1572864.0 + (<float> headroom(finite) - power[k])
        out.lowest[k] = relative[k] + cut_off(finite)
    if unit_out == NULL:
        return
    for k in range(n_columns):
        # ln 2
        unit_out[k] = (
            exp_near_zero_for_float(power[k] * 0.6931471805599453 - <double> relative[k])
            * INVERSE_OF_FACTOR
        )


cdef inline bint has_shifts(const References* to, Py_ssize_t first) noexcept nogil:
    """Whether anything is subtracted from the logits of 16 positions."""
    cdef floats shift = load16(to.shift + first)
    return n_above16(multiply16(shift, shift), fill16(0)) != 0


cdef inline void find_maxima(
    const Tile* tile, const float* packed, Py_ssize_t n, float* row_max_out
) noexcept nogil:
    """Maxima of n packed classes; NaN counts as what is before it."""
    cdef const float* column
    cdef floats largest
    cdef Py_ssize_t group, c
    for group in range(tile.lanes // COLUMNS):
        column = packed + group * COLUMNS
        largest = fill16(-INFINITY)
        for c in range(n):
            largest = larger16(load16(column + c * tile.pitch), largest)
        store16(row_max_out + group * COLUMNS, largest)


cdef inline void pack_planes_with_maxima(
    const Tile* tile, const float* logits, Py_ssize_t class_stride, Py_ssize_t n, float* packed_out,
    float* row_max_out,
) noexcept nogil:
    """Pack n classes of neighbouring positions, a multiple of WIDE, and find their maxima meanwhile."""
    cdef const float* source
    cdef float* target
    cdef floats a, b, c, d, largest_a, largest_b, largest_c, largest_d
    cdef Py_ssize_t group, k
    for group in range(tile.lanes // WIDE):
        largest_a = largest_b = largest_c = largest_d = fill16(-INFINITY)
        for k in range(n):
            source = logits + k * class_stride + group * WIDE
            target = packed_out + k * tile.pitch + group * WIDE
            a = load16(source)
            b = load16(source + 16)
            c = load16(source + 32)
            d = load16(source + 48)
            store16(target, a)
            store16(target + 16, b)
            store16(target + 32, c)
            store16(target + 48, d)
            largest_a = larger16(a, largest_a)
            largest_b = larger16(b, largest_b)
            largest_c = larger16(c, largest_c)
            largest_d = larger16(d, largest_d)
        store16(row_max_out + group * WIDE, largest_a)
        store16(row_max_out + group * WIDE + 16, largest_b)
        store16(row_max_out + group * WIDE + 32, largest_c)
        store16(row_max_out + group * WIDE + 48, largest_d)


cdef inline floats shifted_logits(const float* column, bint shifts, floats shift) noexcept nogil:
    """The logits of one class, less the shifts if there are any."""
    cdef floats logits = load16(column)
    return subtract16(logits, shift) if shifts else logits


cdef inline void reduce_group(
    const References* to, const float* row_max, Py_ssize_t first, float* column, Py_ssize_t pitch,
    Py_ssize_t n, bint shifts, bint keeps, const Ahead* next_logits, const Ahead* grad, ColumnSums* sums,
) noexcept nogil:
    """Exponentials of n classes of 16 positions, from number `first` on, and their sums.

    shifts: whether any is not 0. keeps: see `reduce_columns`.
    """
    cdef floats largest = load16(row_max + first)
    cdef floats shift = load16(to.shift + first)
    cdef floats exponent_shift = load16(to.exponent_shift + first)
    cdef floats lowest = load16(to.lowest + first)
    cdef const char* ahead = next_logits.start + first * next_logits.step
    cdef const char* grad_ahead = grad.start + first * grad.step
    cdef floats logits, t, before, rounded, r, exponentials
    cdef Py_ssize_t c
    begin_columns16(sums)
    t = shifted_logits(column, shifts, shift)
    rounded = begin_exp(t, exponent_shift, &r)
    for c in range(n):
        cyce_prefetch(ahead)
        ahead += next_logits.class_step
        logits = load16(column)
        exponentials = end_exp(rounded, r)
        if keeps:
            exponentials = cut_off16(exponentials, t, lowest)
            cyce_prefetch(grad_ahead)
            grad_ahead += grad.class_step
            store16(column, exponentials)
        before = t
        if c + 1 < n:
            column += pitch
            t = shifted_logits(column, shifts, shift)
            rounded = begin_exp(t, exponent_shift, &r)
        if keeps:
            add_columns16(sums, exponentials, logits, largest)
        else:
            add_columns_above16(sums, exponentials, logits, largest, before, lowest)


cdef inline void reduce_columns(
    const Tile* tile, float* packed, Py_ssize_t n, const float* row_max, bint keeps, const Ahead* next_logits,
    const Ahead* grad, double* stats,
) noexcept nogil:
    """Reduce n packed classes of a tile to maxima, which are known, units and rests.

    A loop for each step, as the steps of 16 positions wait for one another. keeps: whether `packed` becomes
    the exponentials. next_logits, and grad if it keeps them: what is prefetched, line by line, as the CPU has
    room for a dozen at a time.
    """
    cdef References to
    cdef float others[TILE]
    cdef double* unit = stats + UNIT * tile.pitch
    cdef double* rest = stats + REST * tile.pitch
    cdef ColumnSums sums
    cdef Py_ssize_t group, first, k
    refer_columns_to(row_max, tile.lanes, &to, unit)
    for group in range(tile.lanes // COLUMNS):
        first = group * COLUMNS
        if has_shifts(&to, first):
            reduce_group(
                &to, row_max, first, packed + first, tile.pitch, n, True, keeps, next_logits, grad, &sums
            )
        elif keeps:
            reduce_group(
                &to, row_max, first, packed + first, tile.pitch, n, False, True, next_logits, grad, &sums
            )
        else:
            reduce_group(
                &to, row_max, first, packed + first, tile.pitch, n, False, False, next_logits, grad, &sums
            )
        end_columns16(&sums, rest + first, others + first)
    for k in range(tile.lanes):
        stats[MAX * tile.pitch + k] = row_max[k]
        # One of those at the maximum is no part of the rest.
        rest[k] = rest[k] * <double> without_headroom(row_max[k]) * unit[k] + ((n - 1) - <double> others[k])
        stats[REST_LOST * tile.pitch + k] = 0


cdef inline void restart_columns(
    const Tile* tile, float* packed, Py_ssize_t n, const double* stats
) noexcept nogil:
    """Turn n packed classes of a tile into exponentials, as `reduce_columns` did."""
    cdef References to
    cdef float row_max[TILE]
    cdef float* column
    cdef floats shift, exponent_shift, lowest
    cdef Py_ssize_t group, first, c, k
    for k in range(tile.lanes):
        row_max[k] = <float> stats[MAX * tile.pitch + k]
    refer_columns_to(row_max, tile.lanes, &to, NULL)
    for group in range(tile.lanes // COLUMNS):
        first = group * COLUMNS
        shift = load16(to.shift + first)
        exponent_shift = load16(to.exponent_shift + first)
        lowest = load16(to.lowest + first)
        for c in range(n):
            column = packed + c * tile.pitch + first
            store16(column, exp_of_floats_or_0(subtract16(load16(column), shift), exponent_shift, lowest))
