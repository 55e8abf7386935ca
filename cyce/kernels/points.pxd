"""Formulas of one class of one position, for the loops of rows and of tiles alike.

`add_` functions add to a running total in double; for doubles, they also collect what the addition loses.
"""
from cython cimport floating

from cyce.kernels.machine cimport multiply_add
from cyce.kernels.reference cimport without_headroom
from cyce.kernels.sums cimport add, difference_lost, finite_or_zero


cdef inline floating smoothed(floating probability, floating keep, floating spread) noexcept nogil:
    """A class probability after label smoothing: keep = 1 - smoothing, spread = smoothing / n_classes."""
    return multiply_add(probability, keep, spread)


cdef inline void add_dense(
    floating mass, floating row_max, floating logit, double* mass_total, double* mass_lost,
    double* gap_total, double* gap_lost,
) noexcept nogil:
    """Add a dense mass, and mass * (row_max - logit), to their totals."""
    # A class without mass adds nothing, even where its logit is -inf.
    cdef double gap = 0.0 if mass == 0 else <double> mass * (<double> row_max - <double> logit)
    add(mass_total, mass_lost, mass)
    if floating is float:
        gap_total[0] += gap
    else:
        add[double](gap_total, gap_lost, gap)


cdef inline void add_spread(
    floating exponential, floating row_max, floating logit, double* total, double* lost
) noexcept nogil:
    """Add exponential * (row_max - logit), of which the entropy is made; an exponential of 0 adds nothing."""
    cdef double spread = (
        0.0 if exponential == 0 else <double> exponential * (<double> row_max - <double> logit)
    )
    if floating is float:
        total[0] += spread
    else:
        add[double](total, lost, spread)


cdef inline void add_moments(
    floating exponential, floating row_max, floating logit, bint is_maximum, double* spread_2,
    double* squares,
) noexcept nogil:
    """Add exponential * (row_max - logit)**2, and the square of the exponential without its headroom.

    is_maximum: the class that is not part of the rest, nor of its squares.
    """
    cdef double gap = 0.0 if exponential == 0 else <double> row_max - <double> logit
    cdef double scaled = <double> exponential * <double> without_headroom(exponential)
    spread_2[0] += <double> exponential * gap * gap
    squares[0] += 0.0 if is_maximum else scaled * scaled


cdef inline bint comes_before(
    floating logit, Py_ssize_t number, double pivot_logit, Py_ssize_t pivot
) noexcept nogil:
    """Whether a class ranks before the pivot: a higher logit, or an equal one and a lower number."""
    return logit > pivot_logit or (logit == pivot_logit and number < pivot)


cdef inline Py_ssize_t count_before(
    const floating* logits, Py_ssize_t n, floating pivot_logit, Py_ssize_t pivot
) noexcept nogil:
    """How many of n logits of consecutive classes come before the pivot (`comes_before`)."""
    cdef Py_ssize_t n_lower_numbers = max(<Py_ssize_t> 0, min(pivot, n))
    cdef int n_before = 0
    cdef Py_ssize_t k
    for k in range(n_lower_numbers):
        n_before += logits[k] >= pivot_logit
    for k in range(n_lower_numbers, n):
        n_before += logits[k] > pivot_logit
    return n_before


cdef inline floating scaled_softmax(floating exponential, floating factor) noexcept nogil:
    """A waiting exponential, times the factor of its block (`block_factor`)."""
    return exponential * without_headroom(factor) * factor


cdef inline floating less_mass(floating gradient, floating mass, floating scale) noexcept nogil:
    """A gradient without the dense mass of its class, times its scale."""
    return gradient - mass * scale


cdef inline floating entropy_factor(
    floating base, floating number_scale, floating row_max, floating logit
) noexcept nogil:
    """What a softmax is multiplied by, for a gradient with that of the entropy."""
    cdef floating gap = row_max - logit
    # Beyond, the softmax is 0, whatever it is multiplied by that is finite.
    return multiply_add(number_scale, gap if gap < 1000 else <floating> 1000.0, base)


cdef inline floating number_factor(
    floating base, floating number_scale, floating top, floating number
) noexcept nogil:
    """What a softmax is multiplied by, for the product of the Hessian with a vector."""
    return multiply_add(number_scale, number - top, base)


cdef inline floating at_most_1(floating probability) noexcept nogil:
    """A probability, where rounding may have led beyond 1; NaN stays."""
    return 1 if probability > 1 else probability


cdef inline floating log_softmax_of(
    floating logit, double subtracted, double subtracted_then
) noexcept nogil:
    """Log-softmax of one class; at the maximum, as precise as the logarithm. See `log_softmax_parts`."""
    cdef double difference = logit - subtracted
    if floating is float:
        return <floating> (difference - subtracted_then)
    else:
        return difference + finite_or_zero(difference_lost(logit, subtracted, difference) - subtracted_then)
