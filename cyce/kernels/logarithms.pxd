"""Logarithms of floats, mostly in float.

log(x) = power * ln(2) + fraction - fraction**2 / 2 + rest, where fraction = x / 2**power - 1 is exact, and

    rest = log(1 + fraction) - fraction + fraction**2 / 2

is at most 6 % of the logarithm: computed in float, it keeps that to a relative error of 1.6e-8. Only the
other terms need double. Parts are computed for a chunk of numbers before they are added up: conversions to
double take less time from memory than from registers.
"""
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int32_t, uint32_t

from cyce.kernels.machine cimport cyce_float_bits, cyce_float_from_bits, multiply_add
from cyce.kernels.vectors cimport doubles, fill8, multiply8, multiply_add8, sum8, widen8, widen_integers8


cdef inline float rest_of_log(float f) noexcept nogil:
    """log(1 + f) - f + f**2 / 2, for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    # Minimises the largest relative error of log(1 + f): 5.8e-9.
    cdef float p = <float> -0.0763450028427
    p = multiply_add[float](p, f, <float> 0.127616143644)
    p = multiply_add[float](p, f, <float> -0.13160197937)
    p = multiply_add[float](p, f, <float> 0.142017541217)
    p = multiply_add[float](p, f, <float> -0.166233555357)
    p = multiply_add[float](p, f, <float> 0.200012269804)
    p = multiply_add[float](p, f, <float> -0.250008210818)
    p = multiply_add[float](p, f, <float> 0.333333317069)
    return (p * f) * (f * f)


cdef inline int32_t power_next_to(float x) noexcept nogil:
    """2**23 times the integer k for which x / 2**k is between sqrt(1/2) and sqrt(2), for a normal number."""
    # The bits of sqrt(1/2), and of the exponent, which wrap around to those of a negative number.
    return <int32_t> ((cyce_float_bits(x) - <uint32_t> 0x3f3504f3) & <uint32_t> 0xff800000)


cdef inline void split(float x, int32_t* power_out, float* fraction_out) noexcept nogil:
    """Power, times 2**23, and fraction of 0 <= x < inf; of 0, a power of less than -144 / ln(2)."""
    # 2**-64: numbers below may be subnormal.
    cdef bint tiny = x < <float> 5.421010862427522e-20
    cdef float factor = 1.8446744073709552e19 if tiny else 1
    # + 0: -0 becomes 0.
    cdef float scaled = multiply_add[float](x, factor, <float> 0)
    cdef int32_t power = power_next_to(scaled)
    fraction_out[0] = cyce_float_from_bits(cyce_float_bits(scaled) - <uint32_t> power) - <float> 1
    # Unsigned: what is no probability may be beyond an int32.
    power_out[0] = <int32_t> (<uint32_t> power - <uint32_t> (64 << 23 if tiny else 0))


cdef inline void split_opposite(float probability, int32_t* power_out, float* fraction_out) noexcept nogil:
    """Power, times 2**23, and fraction of 1 - probability, for a probability less than 1."""
    # Rounded, as only its power is needed; 2**-power.
    cdef int32_t power = power_next_to(<float> 1 - probability)
    cdef float unit = cyce_float_from_bits(<uint32_t> 0x3f800000 - <uint32_t> power)
    fraction_out[0] = multiply_add[float](-probability, unit, unit - <float> 1)
    power_out[0] = power


cdef inline doubles logs_of_parts(
    const int32_t* power, const float* fraction, const float* rest
) noexcept nogil:
    """log(x) of eight numbers, of what they were split into."""
    # ln(2) / 2**23
    cdef doubles ln2 = fill8(8.262958294867817e-08)
    cdef doubles f = widen8(fraction)
    cdef doubles log = multiply_add8(multiply8(f, f), fill8(-0.5), sum8(f, widen8(rest)))
    return multiply_add8(widen_integers8(power), ln2, log)


cdef inline void split_probabilities(
    const float* probability, Py_ssize_t n, int32_t* power_out, float* fraction_out, float* rest_out
) noexcept nogil:
    """Split n numbers x with 0 <= x < inf."""
    cdef Py_ssize_t k
    for k in range(n):
        split(probability[k], &power_out[k], &fraction_out[k])
        rest_out[k] = rest_of_log(fraction_out[k])


cdef inline void split_opposites(
    const float* probability, Py_ssize_t n, int32_t* power_out, float* fraction_out, float* rest_out
) noexcept nogil:
    """Split 1 - x for n probabilities x; where that is 0, the logarithm is -100."""
    cdef float rest
    cdef Py_ssize_t k
    for k in range(n):
        split_opposite(probability[k], &power_out[k], &fraction_out[k])
        power_out[k] = 0 if probability[k] == 1 else power_out[k]
        rest = rest_of_log(fraction_out[k])
        rest_out[k] = <float> -100 if probability[k] == 1 else rest


cdef inline void split_where(
    const float* probability, const float* target, Py_ssize_t n, int32_t* power_out, float* fraction_out,
    float* rest_out,
) noexcept nogil:
    """Split x where the target is 1, else 1 - x, for n probabilities x."""
    cdef int32_t power, power_of_opposite
    cdef float fraction, fraction_of_opposite, rest
    cdef bint direct
    cdef Py_ssize_t k
    for k in range(n):
        direct = target[k] == 1
        split(probability[k], &power, &fraction)
        split_opposite(probability[k], &power_of_opposite, &fraction_of_opposite)
        power = power if direct else power_of_opposite
        fraction_out[k] = fraction if direct else fraction_of_opposite
        rest = rest_of_log(fraction_out[k])
        power_out[k] = 0 if target[k] == 0 and probability[k] == 1 else power
        rest_out[k] = <float> -100 if target[k] == 0 and probability[k] == 1 else rest


cdef inline void split_numbers(
    const float* x, Py_ssize_t n, int32_t* power_out, float* fraction_out, float* rest_out
) noexcept nogil:
    """Split n numbers; infinity and NaN, also for negative numbers, are in the rest."""
    cdef float rest
    cdef Py_ssize_t k
    for k in range(n):
        split(x[k], &power_out[k], &fraction_out[k])
        rest = rest_of_log(fraction_out[k])
        rest = rest if x[k] < <float> INFINITY else x[k]
        rest_out[k] = rest if x[k] >= 0 else <float> NAN
