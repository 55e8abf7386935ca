"""Sums in double, and what rounding them loses.

The running total of floats is kept in double. The running total of doubles is kept with the sum of what each
addition lost (Knuth's TwoSum), which is added once, at the end (`settled`). Names that end in `_lost` are
such remainders: exact value = value + value_lost, to first order.
"""
from cython cimport floating

from cyce.kernels.machine cimport cyce_product_lost


cdef enum:
    # Independent accumulators along an array: two vectors of the widest level in float. All levels
    # add in the order that this gives.
    LANES = 32


cdef inline floating finite_or_zero(floating value) noexcept nogil:
    """value, or 0 if it is infinite or NaN."""
    # One comparison, which compilers turn into a mask: value - value is NaN for both.
    return value if value - value == 0 else <floating> 0.0


cdef inline double difference_lost(double a, double b, double difference) noexcept nogil:
    """(a - b) - difference, exactly, where difference is a - b rounded (Knuth's TwoSum).

    NaN if a is -inf: the exponential that this belongs to is 0.
    """
    cdef double minus_b = difference - a
    return (a - (difference - minus_b)) - (b + minus_b)


cdef inline double sum_lost(double a, double b, double sum) noexcept nogil:
    """(a + b) - sum, exactly, where sum is a + b rounded."""
    return difference_lost(a, -b, sum)


cdef inline double quotient_lost(double a, double b, double quotient) noexcept nogil:
    """a / b - quotient, to first order, where quotient is a / b rounded."""
    cdef double product = quotient * b
    return ((a - product) - cyce_product_lost(quotient, b, product)) / b


cdef inline void add(double* total, double* lost, floating value) noexcept nogil:
    """Add to a running total in double. For doubles, collect what that loses (Knuth's TwoSum)."""
    cdef double before, added
    if floating is float:
        total[0] += value
    else:
        before = total[0]
        total[0] = before + value
        added = total[0] - before
        lost[0] += (before - (total[0] - added)) + (value - added)


cdef inline void add_double(double* total, double* lost, double value, floating like) noexcept nogil:
    """Add a number in double to a running total. For doubles, the type of `like`, collect what that loses."""
    if floating is float:
        total[0] += value
    else:
        add[double](total, lost, value)


cdef inline void add_product(
    double* total, double* lost, double a, double a_lost, double b, double b_lost, floating like
) noexcept nogil:
    """Add (a + a_lost) * (b + b_lost) to a running total. For doubles, collect what that loses."""
    cdef double product = a * b
    if floating is double:
        lost[0] += cyce_product_lost(a, b, product) + (a * b_lost + a_lost * b)
    add_double(total, lost, product, like)


cdef inline double settled(double total, double lost) noexcept nogil:
    """The running total with what it lost. What an infinite total lost is NaN, and does not count."""
    return total + finite_or_zero(lost)


cdef inline double sum_of_16(double* lane) noexcept nogil:
    """Sum of 16 totals, which are overwritten, as a tree."""
    cdef Py_ssize_t k
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef inline void sum_of_lanes(double* lane, double* lost, floating like) noexcept nogil:
    """Add up LANES totals, and what they lost, as a tree. The sums go to lane[0] and lost[0].

    like: of the type of the values. Totals of floats have lost nothing.
    """
    cdef Py_ssize_t k
    if floating is float:
        for k in range(16):
            lane[k] += lane[k + 16]
        lane[0] = sum_of_16(lane)
    else:
        for k in range(16):
            lost[k] += lost[k + 16]
            add[double](&lane[k], &lost[k], lane[k + 16])
        for k in range(8):
            lost[k] += lost[k + 8]
            add[double](&lane[k], &lost[k], lane[k + 8])
        for k in range(4):
            lost[k] += lost[k + 4]
            add[double](&lane[k], &lost[k], lane[k + 4])
        for k in range(2):
            lost[k] += lost[k + 2]
            add[double](&lane[k], &lost[k], lane[k + 2])
        lost[0] += lost[1]
        add[double](&lane[0], &lost[0], lane[1])


cdef inline double settled_of(double total, double lost, floating like) noexcept nogil:
    """The running total with what it lost; totals of floats, the type of `like`, have lost nothing."""
    if floating is float:
        return total
    else:
        return settled(total, lost)


cdef inline Py_ssize_t whole_lanes(Py_ssize_t n) noexcept nogil:
    """n, rounded up to a multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES
