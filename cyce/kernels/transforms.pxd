"""Options that change the logits: the softcap, the temperature, and their slopes.

With softcap s and temperature T, the loss is that of x' = s * tanh(x / s) / T, rounded to the arithmetic's
type. A block of logits is changed in scratch memory before it is reduced, so that the loops over it do not
know. The gradient needs the softcap's slope, 1 / cosh(x / s)**2, at the original logits: these are read again
when a block is finished. 1 / T is part of `Call.grad_scale`.
"""
from cython cimport floating

from cyce.kernels.call cimport Call
from cyce.kernels.machine cimport multiply_add
from cyce.kernels.math cimport square_of_sech, tanh_of
from cyce.kernels.vectors cimport HAS_VECTORS


cdef inline bint changes_logits(const Call* call) noexcept nogil:
    """Whether the loss is that of other logits than the given ones."""
    return call.softcap > 0 or call.temperature != 1


cdef inline bint has_slopes(const Call* call) noexcept nogil:
    """Whether the gradient depends on the original logits."""
    return call.softcap > 0


cdef inline void divide(
    const floating* values, Py_ssize_t n, floating divisor, floating* out
) noexcept nogil:
    """Divide n values by a positive number; `out` may be `values`.

    Where multiplication and addition are fused, by its reciprocal, and corrected by the remainder: that is
    the quotient, rounded to nearest (P. Markstein, IBM J. Res. Dev. 34, 1990), in a third of the time.
    """
    cdef floating inverse = 1 / divisor
    cdef floating quotient, corrected
    cdef Py_ssize_t k
    # Elsewhere, the inverse or remainders are not exact enough.
    if floating is float and HAS_VECTORS and 1e-30 < divisor < 1e30:
        for k in range(n):
            quotient = values[k] * inverse
            corrected = multiply_add(multiply_add(-quotient, divisor, values[k]), inverse, quotient)
            # Not where there is no remainder: infinite, or NaN.
            out[k] = corrected if quotient - quotient == 0 else quotient
    else:
        for k in range(n):
            out[k] = values[k] / divisor


cdef inline void transform(
    const Call* call, const floating* logits, Py_ssize_t n, floating* out
) noexcept nogil:
    """Apply softcap and temperature to n logits; `out` may be `logits`."""
    cdef floating temperature = <floating> call.temperature
    cdef Py_ssize_t k
    if call.softcap > 0:
        for k in range(n):
            out[k] = <floating> (call.softcap * tanh_of(logits[k] / call.softcap))
        if temperature != 1:
            divide(<const floating*> out, n, temperature, out)
    else:
        divide(logits, n, temperature, out)


cdef inline double slope_at(const Call* call, floating logit) noexcept nogil:
    """Slope of the softcap at a logit; 1 without a softcap."""
    return square_of_sech(logit / call.softcap) if call.softcap > 0 else 1.0
