"""exp, log and their relatives for one number, in float and in double.

Branch-free, so that a loop over lanes that calls them is vectorised. Products and sums are fused only where
the code says so (`multiply_add`), and the compiler is told not to fuse on its own: every level that has the
instruction gives the same bits. Docstrings give the error bounds, in ulp of the result.
"""
from cython cimport floating
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, pow
from libc.stdint cimport uint64_t

from cyce.kernels.machine cimport cyce_bits, cyce_from_bits, low_bits_as_power, multiply_add
from cyce.kernels.sums cimport difference_lost


cdef inline floating expm1_factor(floating r) noexcept nogil:
    """P(r) such that e**r - 1 = r + r**2 * P(r) for abs(r) <= ln(2)/2.

    Minimises the largest relative error of e**r (Remez' algorithm on that interval widened by 0.05 %, in 60
    digits): 3.1e-9 with total degree 6 for float, 3.6e-18 with total degree 11 for double.
    """
    cdef floating p
    if floating is float:
        p = <float> 0.00138145405799
        p = multiply_add[float](p, r, <float> 0.00836874544621)
        p = multiply_add[float](p, r, <float> 0.0416683889925)
        p = multiply_add[float](p, r, <float> 0.166665211320)
        return multiply_add[float](p, r, <float> 0.499999940395)
    else:
        p = 2.5000018094703843e-08
        p = multiply_add[double](p, r, 2.763030623625996e-07)
        p = multiply_add[double](p, r, 2.7557586806200696e-06)
        p = multiply_add[double](p, r, 2.480149294967783e-05)
        p = multiply_add[double](p, r, 0.00019841269505771318)
        p = multiply_add[double](p, r, 0.001388888894375992)
        p = multiply_add[double](p, r, 0.008333333333494978)
        p = multiply_add[double](p, r, 0.041666666666529725)
        p = multiply_add[double](p, r, 0.1666666666666641)
        return multiply_add[double](p, r, 0.5000000000000011)


cdef inline floating expm1_near_zero(floating r) noexcept nogil:
    """e**r - 1 for abs(r) <= ln(2)/2."""
    return multiply_add(r * r, expm1_factor(r), r)


cdef inline floating exp_near_zero(floating r) noexcept nogil:
    """e**r for abs(r) <= ln(2)/2, to 1.05 ulp of float, 1 ulp of double."""
    return expm1_near_zero(r) + <floating> 1.0


cdef inline double exp_of_parts(double high, double low, double* lost_out) noexcept nogil:
    """e**(high + low) for abs(high) <= ln(2)/2 and a small low part, to 0.7 ulp, and what rounding loses.

    1 + r is computed exactly, so that only the last addition rounds.
    """
    cdef double r = high + low
    cdef double r_lost = low - (r - high)
    cdef double one_plus = 1.0 + r
    cdef double rest = multiply_add[double](
        r * r, expm1_factor[double](r), (r - (one_plus - 1.0)) + r_lost
    )
    cdef double power = one_plus + rest
    lost_out[0] = rest - (power - one_plus)
    return power


# ln 2 in two parts (Cody and Waite). The first has so few bits that its product with the integers used
# here (below 2**12) is exact; the second is the rest. float: W. J. Cody's 355/512; double: fdlibm's.
cdef inline floating ln2_high(floating like) noexcept nogil:
    """Leading bits of ln 2 in the type of `like`."""
    if floating is float:
        return <float> 0.693359375
    else:
        return 6.93147180369123816490e-01


cdef inline floating ln2_low(floating like) noexcept nogil:
    """ln 2 less its leading bits."""
    if floating is float:
        return <float> -2.12194440054690583e-4
    else:
        return 1.90821492927058770002e-10


cdef inline floating round_shift(floating like) noexcept nogil:
    """1.5 * 2**23 (float) or 1.5 * 2**52 (double).

    Adding it rounds to an integer, which is then in the last bits of the sum.
    """
    if floating is float:
        return <float> 12582912.0
    else:
        return 6755399441055744.0


cdef inline int exponent_bias(floating like) noexcept nogil:
    """Exponent bias of IEEE 754 in the type of `like`."""
    return 127 if floating is float else 1023


cdef inline double exp_times_power(double x, double exponent) noexcept nogil:
    """2**exponent * e**x, to 1 ulp, where that is a normal number."""
    cdef double exponent_shift = round_shift[double](x) + (1023 + exponent)
    cdef double rounded = multiply_add[double](x, 1.4426950408889634, exponent_shift)
    cdef double n = rounded - exponent_shift
    cdef double r = multiply_add[double](n, -ln2_high[double](x), x)
    r = multiply_add[double](n, -ln2_low[double](x), r)
    return exp_near_zero[double](r) * low_bits_as_power[double](rounded)


cdef inline double exp_nonpositive(double x) noexcept nogil:
    """e**x for x <= 0, to 1 ulp; gradual underflow, NaN stays NaN."""
    # 7.46e-155 is 2**-512; ln 2**-1075 is -745.13.
    return 0.0 if x < -746.0 else exp_times_power(x, 512) * 7.458340731200207e-155


cdef inline double exp_in_parts(double x, double x_lost, double* lost_out) noexcept nogil:
    """e**(x + x_lost) for x <= 0, as exp_nonpositive, but to 0.7 ulp, and what rounding it loses."""
    # 2**-512
    cdef double scale = 7.458340731200207e-155
    cdef double exponent_shift = round_shift[double](x) + (1023 + 512)
    cdef double rounded = multiply_add[double](x, 1.4426950408889634, exponent_shift)
    cdef double n = rounded - exponent_shift
    cdef double high = multiply_add[double](n, -ln2_high[double](x), x)
    cdef double lost
    cdef double power = exp_of_parts(high, multiply_add[double](n, -ln2_low[double](x), x_lost), &lost)
    cdef double unit = low_bits_as_power[double](rounded)
    lost_out[0] = 0.0 if x < -746.0 else lost * unit * scale
    return 0.0 if x < -746.0 else power * unit * scale


cdef inline double expm1_nonpositive(double x) noexcept nogil:
    """e**x - 1 for x <= 0, to 1.5 ulp; NaN stays NaN."""
    # e**-708 is nothing beside 1.
    cdef double bounded = -708.0 if x < -708.0 else x
    cdef double rounded = multiply_add[double](bounded, 1.4426950408889634, round_shift[double](x) + 1023)
    cdef double n = rounded - (round_shift[double](x) + 1023)
    cdef double r = multiply_add[double](n, -ln2_high[double](x), bounded)
    r = multiply_add[double](n, -ln2_low[double](x), r)
    cdef double power = low_bits_as_power[double](rounded)
    return multiply_add[double](power, expm1_near_zero[double](r), power - 1.0)


cdef inline double tanh_of(double x) noexcept nogil:
    """tanh(x), to 3 ulp; NaN stays NaN."""
    cdef double distance = -x if x < 0 else x
    cdef double shortfall = expm1_nonpositive(-2.0 * distance)
    cdef double magnitude = -shortfall / (2.0 + shortfall)
    return -magnitude if x < 0 else magnitude


cdef inline double square_of_sech(double x) noexcept nogil:
    """1 / cosh(x)**2 = 1 - tanh(x)**2, without the cancellation, to 5 ulp; NaN stays NaN."""
    cdef double tail = exp_nonpositive(2.0 * x if x < 0 else -2.0 * x)
    cdef double inverse = 1.0 / (1.0 + tail)
    return 4.0 * tail * inverse * inverse


cdef inline double exp_clamped(double x) noexcept nogil:
    """e**x, to 1 ulp; inf from 709.8 on, gradual underflow, NaN stays NaN."""
    cdef double bounded = 710.0 if x > 710.0 else x
    # 2**512 and its inverse
    cdef double scale = 1.3407807929942597e154 if x > 0 else 7.458340731200207e-155
    cdef double scaled = exp_times_power(bounded, -512.0 if x > 0 else 512.0)
    return 0.0 if x < -746.0 else scaled * scale


cdef inline double log1p_nonnegative(double r) noexcept nogil:
    """log(1 + r) for r >= 0, to 1 ulp; NaN stays NaN."""
    cdef double unused
    return log1p_in_parts(r, &unused)


cdef inline double log1p_in_parts(double r, double* lost_out) noexcept nogil:
    """log(1 + r) for r >= 0, to 1 ulp; with what rounding loses, to 0.4 ulp. NaN stays NaN.

    Reduction, polynomial and constants are those of log1p in fdlibm (Sun Microsystems, 1993), written
    without branches: 1 + r = 2**k * m with m in [sqrt(1/2), sqrt(2)), f = m - 1, s = f / (2 + f).
    """
    cdef double one_plus = 1.0 + r
    # Adding 1 - sqrt(1/2) on the bit patterns carries into the exponent where m >= sqrt(2).
    cdef uint64_t bits = cyce_bits(one_plus) + (
        <uint64_t> 0x3ff0000000000000 - <uint64_t> 0x3fe6a09e00000000
    )
    # k + 2**52: k goes into the mantissa of 2**52.
    cdef double k = (
        cyce_from_bits((bits >> 52) | <uint64_t> 0x4330000000000000) - (4503599627370496.0 + 1023.0)
    )
    cdef double m = cyce_from_bits(
        (bits & <uint64_t> 0x000fffffffffffff) + <uint64_t> 0x3fe6a09e00000000
    )
    cdef bint unscaled = k == 0.0
    cdef double f = r if unscaled else m - 1.0
    # What the addition 1 + r lost.
    cdef double lost = 0.0 if unscaled else (r - (one_plus - 1.0)) * (1.0 / one_plus)
    cdef double s = f / (2.0 + f)
    cdef double z = s * s
    cdef double p = 1.479819860511658591e-01
    p = multiply_add[double](p, z, 1.531383769920937332e-01)
    p = multiply_add[double](p, z, 1.818357216161805012e-01)
    p = multiply_add[double](p, z, 2.222219843214978396e-01)
    p = multiply_add[double](p, z, 2.857142874366239149e-01)
    p = multiply_add[double](p, z, 3.999999999940941908e-01)
    p = multiply_add[double](p, z, 6.666666666666735130e-01)
    p = p * z
    cdef double half_square = 0.5 * f * f
    cdef double tail = multiply_add[double](k, 1.90821492927058770002e-10, lost)
    cdef double correction = half_square - (s * (half_square + p) + tail)
    cdef double minus_log_m = correction - f
    cdef double log_of_power = k * 6.93147180369123816490e-01
    cdef double logarithm = log_of_power - minus_log_m
    lost_out[0] = (
        difference_lost(log_of_power, minus_log_m, logarithm) - difference_lost(correction, f, minus_log_m)
    )
    return logarithm


cdef inline double log1p_of_fraction(double t) noexcept nogil:
    """log(1 + t) for 0 <= t <= 1, to 1 ulp; NaN stays NaN.

    log1p_nonnegative without its reduction: s = t / (2 + t) is at most 1/3. The polynomial in s**2 minimises
    the largest relative error of the logarithm there (Remez' algorithm on that interval widened by
    0.05 %, in 50 digits): 1.3e-18.
    """
    cdef double s = t / (2.0 + t)
    cdef double z = s * s
    cdef double p = 0.17023705519478089
    p = multiply_add[double](p, z, 0.083374058633077396)
    p = multiply_add[double](p, z, 0.12106685815265545)
    p = multiply_add[double](p, z, 0.13300900116851048)
    p = multiply_add[double](p, z, 0.15386565330013785)
    p = multiply_add[double](p, z, 0.18181743680665223)
    p = multiply_add[double](p, z, 0.22222223976369290)
    p = multiply_add[double](p, z, 0.28571428547752274)
    p = multiply_add[double](p, z, 0.40000000000158002)
    p = multiply_add[double](p, z, 0.66666666666666302)
    cdef double half_square = 0.5 * t * t
    return t - (half_square - s * (half_square + z * p))


cdef inline double log_nonnegative(double x) noexcept nogil:
    """log(x) for x > 0, to 1 ulp of max(abs(log(x)), 1); a large negative number for 0, NaN for other x."""
    # 2**200 keeps (1 - x) / x finite.
    cdef bint tiny = x < 1e-290
    cdef double scaled = x * 1.6069380442589903e60 if tiny else x
    cdef double odds = scaled - 1.0 if scaled >= 1.0 else (1.0 - scaled) / scaled
    # log1p_nonnegative needs a finite argument.
    cdef double logarithm = log1p_nonnegative(odds if odds < DBL_MAX else DBL_MAX)
    logarithm = logarithm if scaled >= 1.0 else -logarithm
    logarithm = logarithm - 138.62943611198907 if tiny else logarithm
    logarithm = logarithm if x < INFINITY else x
    return logarithm if x >= 0.0 else NAN


# ---------------------------------------------------------------------------------------------
# For results in float: computed in double, but only to some 1e-10, without divisions


cdef inline double exp_near_zero_for_float(double r) noexcept nogil:
    """e**r for abs(r) <= ln(2)/2, to a relative error of 5.2e-11, which this minimises."""
    cdef double p = 0.00019790296962050099
    p = multiply_add[double](p, r, 0.001394470346478268)
    p = multiply_add[double](p, r, 0.008333497342531066)
    p = multiply_add[double](p, r, 0.04166629436642221)
    p = multiply_add[double](p, r, 0.16666665867005917)
    p = multiply_add[double](p, r, 0.5000000067839091)
    return multiply_add[double](p * r, r, r) + 1.0


cdef inline double exp_for_float(double x) noexcept nogil:
    """e**x for x <= 709, to a relative error of 6e-11; e**-708 for less than -708. NaN stays NaN."""
    cdef double bounded = -708.0 if x < -708.0 else x
    cdef double exponent_shift = round_shift[double](x) + 1023
    cdef double rounded = multiply_add[double](bounded, 1.4426950408889634, exponent_shift)
    # ln 2
    cdef double r = multiply_add[double](rounded - exponent_shift, -0.6931471805599453, bounded)
    return exp_near_zero_for_float(r) * low_bits_as_power(rounded)


cdef inline double log_for_float(double x, double x_minus_1) noexcept nogil:
    """log(x) for 0 < x < inf, to a relative error of 1.1e-10; a large negative number for 0.

    x_minus_1: x - 1, without rounding where x is near 1.
    """
    # The reduction is that of `log1p_in_parts`: x = 2**k * (1 + f).
    cdef uint64_t bits = cyce_bits(x) + (<uint64_t> 0x3ff0000000000000 - <uint64_t> 0x3fe6a09e00000000)
    cdef double k = (
        cyce_from_bits((bits >> 52) | <uint64_t> 0x4330000000000000) - (4503599627370496.0 + 1023.0)
    )
    cdef double m = cyce_from_bits(
        (bits & <uint64_t> 0x000fffffffffffff) + <uint64_t> 0x3fe6a09e00000000
    )
    cdef double f = x_minus_1 if k == 0.0 else m - 1.0
    # Minimises the largest relative error of log(1 + f) for sqrt(1/2) <= 1 + f <= sqrt(2): 1.1e-10.
    cdef double p = -0.05994119166778033
    p = multiply_add[double](p, f, 0.10726990810181634)
    p = multiply_add[double](p, f, -0.10870506939963342)
    p = multiply_add[double](p, f, 0.11021097339283557)
    p = multiply_add[double](p, f, -0.12412643457395671)
    p = multiply_add[double](p, f, 0.14285697477615505)
    p = multiply_add[double](p, f, -0.16670327627329645)
    p = multiply_add[double](p, f, 0.20000096482042706)
    p = multiply_add[double](p, f, -0.24999938117374562)
    p = multiply_add[double](p, f, 0.3333333198236555)
    p = multiply_add[double](p, f, -0.5000000028413975)
    # ln 2
    return multiply_add[double](k, 0.6931471805599453, multiply_add[double](p * f, f, f))


cdef inline double log1p_of_fraction_for_float(double t) noexcept nogil:
    """log(1 + t) for 0 <= t <= 1, to a relative error of 1.3e-10; NaN stays NaN."""
    # Minimises that error.
    cdef double p = -0.001305465844856923
    p = multiply_add[double](p, t, 0.009223805809109214)
    p = multiply_add[double](p, t, -0.030529204231852656)
    p = multiply_add[double](p, t, 0.06451530625692116)
    p = multiply_add[double](p, t, -0.10169684508615985)
    p = multiply_add[double](p, t, 0.13452903000522334)
    p = multiply_add[double](p, t, -0.1646291319620927)
    p = multiply_add[double](p, t, 0.19967753691702178)
    p = multiply_add[double](p, t, -0.24996977665381262)
    p = multiply_add[double](p, t, 0.33333190144261277)
    p = multiply_add[double](p, t, -0.49999997617987235)
    return multiply_add[double](p * t, t, t)


cdef inline double inverse_for_float(double x) noexcept nogil:
    """1 / x, to a relative error of 2e-14, for x among the normal floats; NaN stays NaN."""
    # A division of floats takes a quarter of the time, and one step of Newton's doubles its digits.
    cdef double inverse = <double> (<float> 1 / <float> x)
    return multiply_add[double](multiply_add[double](-x, inverse, 1.0), inverse, inverse)


cdef inline double power_of(double base, double exponent) noexcept nogil:
    """base**exponent, for base >= 0; the C library's, but for squares."""
    return base * base if exponent == 2 else pow(base, exponent)
