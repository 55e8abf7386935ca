"""Sums of many arrays, for gradients that are added up over chunks.

What the additions lose is kept in half the precision, and added the next time (Kahan's summation with Knuth's
TwoSum).
"""
from cython cimport floating
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from cyce.kernels.sums cimport finite_or_zero


cdef inline float from_half_precision(uint16_t half) noexcept nogil:
    """The float whose upper half these bits are."""
    cdef uint32_t bits = <uint32_t> half << 16
    cdef float value
    memcpy(&value, &bits, sizeof(value))
    return value


cdef inline uint16_t to_half_precision(float value) noexcept nogil:
    """The upper half of a finite float, rounded."""
    cdef uint32_t bits
    memcpy(&bits, &value, sizeof(bits))
    return <uint16_t> ((bits + 0x8000) >> 16)


cdef inline void add_array(
    const floating* addend, Py_ssize_t n, floating* total, void* lost
) noexcept nogil:
    """Add to a running total, and to what that has lost so far."""
    cdef uint16_t* lost_of_single = <uint16_t*> lost
    cdef float* lost_of_double = <float*> lost
    cdef floating value, before, after, added
    cdef Py_ssize_t k
    for k in range(n):
        before = total[k]
        if floating is float:
            value = addend[k] + from_half_precision(lost_of_single[k])
        else:
            value = addend[k] + lost_of_double[k]
        after = before + value
        added = after - before
        total[k] = after
        value = finite_or_zero((before - (after - added)) + (value - added))
        if floating is float:
            lost_of_single[k] = to_half_precision(value)
        else:
            lost_of_double[k] = <float> value
