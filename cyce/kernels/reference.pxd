"""What exponentials are computed relative to.

The exponentials of a block of logits are needed relative to its maximum m (or to 0, where that is not
finite). logit - m is never rounded, which would cost up to abs(logit - m) / 2 ulp:

* float: the exponential is that of the logit itself. The maximum enters as a power of two, and once per
  block as a factor in double (`unit_at`). From abs(m) = 256 on, m is subtracted first: there, that is exact
  for every logit that counts (Sterbenz).
* double: what the subtraction loses is carried along; vectors (exponentials.pxd) subtract nothing up to 2200,
  either.

So e**(x - m) = exp_scaled(x, *reference of m) * 2**-HEADROOM * unit_at(m). The factor 2**HEADROOM is there so
that terms far below the smallest normal number still count in a sum: 262,144 terms of e**-95 make a float32
loss of 1.4e-36.
"""
from cython cimport floating
from libc.math cimport fabsf

from cyce.kernels.machine cimport low_bits_as_power, multiply_add
from cyce.kernels.math cimport (
    exp_for_float, exp_near_zero, exp_of_parts, exponent_bias, ln2_high, ln2_low, round_shift,
)
from cyce.kernels.sums cimport difference_lost, finite_or_zero


cdef inline int headroom(floating like) noexcept nogil:
    """HEADROOM: the exponent of the factor that `exp_scaled` contains."""
    return 64 if floating is float else 512


cdef inline floating without_headroom(floating like) noexcept nogil:
    """2**-HEADROOM, exactly."""
    if floating is float:
        return <floating> 5.421010862427522e-20
    else:
        return 7.458340731200207e-155


cdef inline floating cut_off(floating like) noexcept nogil:
    """How far below its reference an exponential becomes 0: -ln 2 * (bias - 2 + HEADROOM), towards 0."""
    if floating is float:
        return <floating> -131.0
    else:
        return -1062.0


cdef inline floating shift_at(floating row_max) noexcept nogil:
    """What is subtracted from the logits."""
    cdef floating finite = finite_or_zero(row_max)
    if floating is float:
        return finite if fabsf(finite) > 256 else <floating> 0.0
    else:
        return finite


cdef inline floating relative_at(floating row_max) noexcept nogil:
    """What is left of the maximum, relative to what is subtracted."""
    return finite_or_zero(row_max) - shift_at(row_max)


cdef inline floating power_at(floating relative) noexcept nogil:
    """Power of two next to e**relative."""
    return multiply_add(
        relative, <floating> 1.4426950408889634, round_shift(relative)
    ) - round_shift(relative)


cdef inline void refer_to(
    floating row_max, floating* shift_out, floating* exponent_shift_out, floating* lowest_out
) noexcept nogil:
    """Arguments of `exp_scaled` for exponentials relative to a maximum: the reference."""
    cdef floating shift = shift_at(row_max)
    cdef floating relative = finite_or_zero(row_max) - shift
    shift_out[0] = shift
    exponent_shift_out[0] = round_shift(relative) + (
        exponent_bias(relative) + headroom(relative) - power_at(relative)
    )
    lowest_out[0] = relative + cut_off(relative)


cdef inline double unit_of(double relative, double power, floating like) noexcept nogil:
    """2**power / e**relative: to 1 ulp, or as precise as results in float need."""
    if floating is float:
        # ln 2
        return exp_for_float(power * 0.6931471805599453 - relative)
    else:
        return exp_near_zero[double](
            (power * ln2_high[double](1.0) - relative) + power * ln2_low[double](1.0)
        )


cdef inline double unit_at(floating row_max) noexcept nogil:
    """What exp_scaled, without its headroom, is multiplied by to be relative to a maximum."""
    cdef floating relative = relative_at(row_max)
    return unit_of(relative, power_at(relative), row_max)


cdef inline floating exp_scaled(
    floating x, floating shift, floating exponent_shift, floating lowest
) noexcept nogil:
    """2**HEADROOM * 2**-n * e**(x - shift), or 0 where x - shift < lowest; NaN stays NaN.

    `exponent_shift` is `round_shift` plus what the exponent bits are to hold for e**0, so that the
    rounding, the factor 2**-n and the exponent's bias cost one addition together.
    """
    cdef floating t = x - shift
    cdef double unused
    # log2(e) in the working type
    cdef floating rounded = multiply_add(t, <floating> 1.4426950408889634, exponent_shift)
    cdef floating n = rounded - exponent_shift
    cdef floating r = multiply_add(n, -ln2_high(x), t)
    cdef floating power
    if floating is double:
        power = exp_of_parts(r, multiply_add(n, -ln2_low(x), difference_lost(x, shift, t)), &unused)
    else:
        power = exp_near_zero(multiply_add(n, -ln2_low(x), r))
    cdef floating scaled = power * low_bits_as_power(rounded)
    # Not `scaled if t >= lowest else 0`, which would turn NaN into 0.
    return <floating> 0.0 if t < lowest else scaled
