"""Logarithms of floats, mostly in float.

In vectors, with x = 2**power * m, and a short number next to 1 / m from a table,

    log(x) = power * ln(2) - log(inverse) + fraction - fraction**2 / 2 + ...

where fraction = inverse * m - 1 is exact and at most 1/16. The sum of the first two terms is exact, too, up
to 128, as the table and ln(2) are cut off at 2**-17; the series, and what is cut off, are small enough for
float. The result has two parts, which together have a relative error of at most 6e-9, measured at every 97th
float and at each one near 1.

Where there are no vectors, look-ups take too long, and

    log(x) = power * ln(2) + fraction - fraction**2 / 2 + rest, with fraction = x / 2**power - 1,

of which the rest is at most 6 %: computed in float, it keeps that to a relative error of 1.6e-8. The other
terms need double. Parts are computed for a chunk of numbers before they are added up: conversions to double
take less time from memory than from registers.
"""
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int32_t, uint32_t

from cyce.kernels.machine cimport cyce_float_bits, cyce_float_from_bits, multiply_add
from cyce.kernels.vectors cimport (
    EXPONENT_BITS, SQRT_HALF_BITS, doubles, fill8, fill16, floats, look_up16, multiply8, multiply16,
    multiply_add8, multiply_add16, scale_tiny16, split16, subtract16, sum8, sum16, where_equal16, widen8,
    widen_integers8,
)

cdef extern from * nogil:
    """
    #define CYCE_TWICE(a, b, c, d, e, f, g, h) {a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h}
    /* Next to the inverses of the middles of eight intervals from sqrt(1/2) to sqrt(2), which divide the
       bits of floats there evenly; with so few digits that 1 - inverse * m has no more than a float. */
    static const float cyce_inverses[16] = CYCE_TWICE(
        1.375f, 1.25f, 1.1875f, 1.0625f, 1.0f, 0.90625f, 0.8125f, 0.75f);
    /* -log of these, to 2**-17, and the rest. */
    static const float cyce_logs_high[16] = CYCE_TWICE(
        -0.318450927734375f, -0.22314453125f, -0.17185211181640625f, -0.0606231689453125f, 0.0f,
        0.09844207763671875f, 0.2076416015625f, 0.28768157958984375f);
    static const float cyce_logs_low[16] = CYCE_TWICE(
        -2.8033841772412416e-06f, 9.799357485462679e-07f, 1.8548897742221016e-06f, -1.452871174478787e-06f,
        0.0f, -2.004823500101338e-06f, -2.236784212072962e-06f, 4.928619432575942e-07f);
    """
    const float INVERSES "cyce_inverses"[16]
    const float LOGS_HIGH "cyce_logs_high"[16]
    const float LOGS_LOW "cyce_logs_low"[16]


# ---------------------------------------------------------------------------------------------
# In vectors


cdef struct Parts:
    floats power                    # times 2**23
    floats eighths                  # where the inverse is in the table, in the last three bits
    floats fraction
    floats lost                     # by rounding the fraction


cdef struct Logs:
    floats high
    floats low


cdef inline floats split_normal(floats x, Parts* parts_out) noexcept nogil:
    """Split x > 0, where it is normal, but for `lost`; returns what gives the fraction."""
    cdef floats unit = split16(x, INVERSES, &parts_out.power, &parts_out.eighths)
    parts_out.fraction = multiply_add16(x, unit, fill16(-1))
    return unit


cdef inline floats split_scaled(floats x, Parts* parts_out) noexcept nogil:
    """The same for 0 <= x < 2**126, also where it is subnormal. log(0) will be less than -130."""
    cdef floats power_of_scale
    cdef floats unit = split_normal(scale_tiny16(x, &power_of_scale), parts_out)
    parts_out.power = sum16(parts_out.power, power_of_scale)
    return unit


cdef inline Parts parts_of(floats x, bint are_normal) noexcept nogil:
    """What 0 <= x < 2**126 is split into; nothing is `lost`, and that is not set.

    are_normal: whether no number is subnormal or 0, which takes less time.
    """
    cdef Parts parts
    if are_normal:
        split_normal(x, &parts)
    else:
        split_scaled(x, &parts)
    return parts


cdef inline void add_lost(floats lost, floats unit, Parts* parts) noexcept nogil:
    """Add what x has lost: at most half of its last bit, and nothing if it is less than 1/2."""
    cdef floats fraction = parts.fraction
    parts.fraction = multiply_add16(lost, unit, fraction)
    parts.lost = multiply_add16(lost, unit, subtract16(fraction, parts.fraction))


cdef inline floats opposite_of(floats probability, floats* lost_out) noexcept nogil:
    """1 - x, and what rounding it loses."""
    cdef floats opposite = subtract16(fill16(1), probability)
    lost_out[0] = subtract16(subtract16(fill16(1), opposite), probability)
    return opposite


cdef inline Parts parts_of_opposite(floats probability) noexcept nogil:
    """What 1 - x is split into, for 0 <= x < 1: never tiny."""
    cdef Parts parts
    cdef floats lost
    cdef floats opposite = opposite_of(probability, &lost)
    add_lost(lost, split_normal(opposite, &parts), &parts)
    return parts


cdef inline Parts parts_where(floats probability, floats label, bint are_normal) noexcept nogil:
    """What x is split into where the label is 1, else what 1 - x is, for 0 <= x <= 1.

    are_normal: whether no x is subnormal, 0 or 1.
    """
    cdef Parts parts
    cdef floats lost, unit
    cdef floats opposite = opposite_of(probability, &lost)
    cdef floats chosen = where_equal16(label, fill16(1), probability, opposite)
    if are_normal:
        unit = split_normal(chosen, &parts)
    else:
        unit = split_scaled(chosen, &parts)
    add_lost(where_equal16(label, fill16(1), fill16(0), lost), unit, &parts)
    return parts


cdef inline Logs logs_of(const Parts* parts) noexcept nogil:
    """Logarithms, without `lost`."""
    cdef Logs logs
    cdef floats fraction = parts.fraction
    # ln(2) / 2**23, in two parts.
    cdef floats constant = multiply_add16(
        parts.power, fill16(<float> (0.693145751953125 / 8388608)), look_up16(LOGS_HIGH, parts.eighths)
    )
    cdef floats rest = multiply_add16(
        parts.power, fill16(<float> (1.428606765330187e-06 / 8388608)), look_up16(LOGS_LOW, parts.eighths)
    )
    # Minimises the largest relative error of log(1 + fraction): 3.8e-10.
    cdef floats p = multiply_add16(fill16(<float> -0.16746423), fraction, fill16(<float> 0.20078212))
    p = multiply_add16(p, fraction, fill16(<float> -0.24999864))
    p = multiply_add16(p, fraction, fill16(<float> 0.33333239))
    p = multiply_add16(p, fraction, fill16(<float> -0.5))
    rest = multiply_add16(p, multiply16(fraction, fraction), rest)
    logs.high = sum16(constant, fraction)
    logs.low = sum16(sum16(subtract16(constant, logs.high), fraction), rest)
    return logs


cdef inline Logs logs_with_lost(const Parts* parts) noexcept nogil:
    """Logarithms."""
    cdef Logs logs = logs_of(parts)
    logs.low = sum16(logs.low, parts.lost)
    return logs


# ---------------------------------------------------------------------------------------------
# Where there are no vectors


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
    # The exponent wraps around to that of a negative number.
    return <int32_t> ((cyce_float_bits(x) - SQRT_HALF_BITS) & EXPONENT_BITS)


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
