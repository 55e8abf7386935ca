"""Options that change the logits: the softcap, the temperature, and their slopes.

With softcap s and temperature T, the loss is that of x' = s * tanh(x / s) / T, rounded to the arithmetic's
type. A block of logits is changed in scratch memory before it is reduced, so that the loops over it do not
know. The gradient needs the softcap's slope, 1 / cosh(x / s)**2, at the original logits: these are read again
when a block is finished. 1 / T is part of `Call.grad_scale`.
"""
from cython cimport floating

from cyce.kernels.call cimport Call
from cyce.kernels.math cimport square_of_sech, tanh_of


cdef inline bint changes_logits(const Call* call) noexcept nogil:
    """Whether the loss is that of other logits than the given ones."""
    return call.softcap > 0 or call.temperature != 1


cdef inline bint has_slopes(const Call* call) noexcept nogil:
    """Whether the gradient depends on the original logits."""
    return call.softcap > 0


cdef inline void transform(const Call* call, Py_ssize_t n, floating* logits_out) noexcept nogil:
    """Apply softcap and temperature to logits, in place."""
    cdef floating temperature = <floating> call.temperature
    cdef Py_ssize_t k
    if call.softcap > 0:
        for k in range(n):
            logits_out[k] = <floating> (call.softcap * tanh_of(logits_out[k] / call.softcap))
    if temperature != 1:
        for k in range(n):
            logits_out[k] = logits_out[k] / temperature


cdef inline double slope_at(const Call* call, floating logit) noexcept nogil:
    """Slope of the softcap at a logit; 1 without a softcap."""
    return square_of_sech(logit / call.softcap) if call.softcap > 0 else 1.0
