"""exp and log1p for one lane, in float and in double, the machine operations under them, and sums.

All of it is branch-free, so that a loop over lanes that calls it becomes vector code. Products and
sums are fused only where the code says so (`multiply_add`) and the compiler is told not to fuse on
its own: every level with the instruction gives the same bits.
"""
from cython cimport floating
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint64_t


cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    /* C's fma() is a slow library call where the instruction is missing. */
    #if defined(__FMA__) || defined(__aarch64__)
    static inline float cyce_fma_float(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    static inline double cyce_fma_double(double a, double b, double c) { return __builtin_fma(a, b, c); }
    static inline double cyce_product_lost(double a, double b, double product)
    {
        return __builtin_fma(a, b, -product);
    }
    #else
    static inline float cyce_fma_float(float a, float b, float c) { return a * b + c; }
    static inline double cyce_fma_double(double a, double b, double c) { return a * b + c; }
    /* Dekker's product: both factors in halves, whose products are exact. */
    static inline double cyce_product_lost(double a, double b, double product)
    {
        const double a_scaled = 134217729.0 * a, b_scaled = 134217729.0 * b;  /* 2**27 + 1 */
        const double a_high = a_scaled - (a_scaled - a), b_high = b_scaled - (b_scaled - b);
        const double a_low = a - a_high, b_low = b - b_high;
        return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    }
    #endif

    #if defined(__GNUC__) || defined(__clang__)
    #define cyce_prefetch(address) __builtin_prefetch(address)
    #else
    #define cyce_prefetch(address) ((void) (address))
    #endif

    /* The calling thread's floating point environment: rounding, subnormal numbers, flags, traps. */
    #if defined(__SSE2__)
    #include <xmmintrin.h>
    typedef unsigned int cyce_environment;
    /* The default and no flags: nearest, subnormal numbers as they are, no traps. */
    static inline void cyce_enter(cyce_environment *found) { *found = _mm_getcsr(); _mm_setcsr(0x1f80); }
    static inline void cyce_leave(const cyce_environment *found) { _mm_setcsr(*found); }
    #else
    #include <fenv.h>
    typedef fenv_t cyce_environment;
    static inline void cyce_enter(cyce_environment *found) { fegetenv(found); fesetenv(FE_DFL_ENV); }
    static inline void cyce_leave(const cyce_environment *found) { fesetenv(found); }
    #endif

    static inline uint64_t cyce_bits(double value)
    {
        uint64_t bits;
        memcpy(&bits, &value, sizeof bits);
        return bits;
    }

    static inline double cyce_from_bits(uint64_t bits)
    {
        double value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    static inline double cyce_low_bits_as_power_double(double value)
    {
        return cyce_from_bits(cyce_bits(value) << 52);
    }

    static inline float cyce_low_bits_as_power_float(float value)
    {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits <<= 23;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    """
    # What computes, enters before and leaves after: with subnormal numbers whatever the caller does with
    # them (torch.set_flush_denormal; new threads inherit it), no flags raised, no traps sprung.
    ctypedef struct cyce_environment:
        pass
    void cyce_enter(cyce_environment* found) noexcept
    void cyce_leave(const cyce_environment* found) noexcept
    float cyce_fma_float(float a, float b, float c) noexcept
    double cyce_fma_double(double a, double b, double c) noexcept
    double cyce_product_lost(double a, double b, double product) noexcept
    float cyce_low_bits_as_power_float(float value) noexcept
    double cyce_low_bits_as_power_double(double value) noexcept
    void cyce_prefetch(const void* address) noexcept
    uint64_t cyce_bits(double value) noexcept
    double cyce_from_bits(uint64_t bits) noexcept


cdef inline floating multiply_add(floating a, floating b, floating c) noexcept nogil:
    """a * b + c, rounded once where the level has the instruction."""
    if floating is float:
        return cyce_fma_float(a, b, c)
    else:
        return cyce_fma_double(a, b, c)


cdef inline floating low_bits_as_power(floating value) noexcept nogil:
    """2**(k - bias) for a value whose last mantissa bits hold k, as after adding 1.5 * 2**23 (or 52)."""
    if floating is float:
        return cyce_low_bits_as_power_float(value)
    else:
        return cyce_low_bits_as_power_double(value)


cdef inline floating expm1_factor(floating r) noexcept nogil:
    """P(r), by which e**r - 1 is r + r**2 * P(r) for abs(r) <= ln(2)/2.

    It minimises the largest relative error (Remez' algorithm on that interval widened by 0.05 %, in
    60 digits): 3.1e-9 with degree 6 in all for float, 3.6e-18 with degree 11 for double.
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
    """e**r for abs(r) <= ln(2)/2."""
    return expm1_near_zero(r) + <floating> 1.0


cdef inline double exp_of_parts(double high, double low, double* lost_out) noexcept nogil:
    """e**(high + low) for abs(high) <= ln(2)/2 and a small low part, to 0.7 ulp; and what rounding loses.

    1 + r is added up exactly, so that the last addition rounds alone.
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


# ln 2 in two parts (Cody and Waite): the first has so few bits that a product with the integers met
# here (below 2**12) is exact, the second is the rest. float: W. J. Cody's 355/512; double: fdlibm's.
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

    Adding it rounds to an integer, which then stands in the last bits of the sum.
    """
    if floating is float:
        return <float> 12582912.0
    else:
        return 6755399441055744.0


cdef inline int exponent_bias(floating like) noexcept nogil:
    """What IEEE 754 adds to an exponent in the type of `like`."""
    return 127 if floating is float else 1023


# Exponentials are computed 2**HEADROOM times too large, so that terms far below the smallest normal
# number still count in a sum: 262,144 terms of e**-95 make a float32 loss of 1.4e-36.
cdef inline int headroom(floating like) noexcept nogil:
    """Exponent of the factor that `exp_scaled` has on top."""
    return 64 if floating is float else 512


cdef inline floating without_headroom(floating like) noexcept nogil:
    """2**-HEADROOM, exactly."""
    if floating is float:
        return <float> 5.421010862427522e-20
    else:
        return 7.458340731200207e-155


cdef inline floating cut_off(floating like) noexcept nogil:
    """How far below its reference an exponential becomes 0: -ln 2 * (bias - 2 + HEADROOM), towards 0."""
    if floating is float:
        return <float> -131.0
    else:
        return -1062.0


cdef inline double difference_lost(double a, double b, double difference) noexcept nogil:
    """(a - b) - difference, exactly, where difference is a - b rounded (Knuth's TwoSum).

    NaN where a is -inf: it belongs to an exponential that is 0.
    """
    cdef double minus_b = difference - a
    return (a - (difference - minus_b)) - (b + minus_b)


cdef inline double sum_lost(double a, double b, double sum) noexcept nogil:
    """(a + b) - sum, exactly, where sum is a + b rounded."""
    return difference_lost(a, -b, sum)


cdef inline double quotient_lost(double a, double b, double quotient) noexcept nogil:
    """a / b - quotient, to its leading bits, where quotient is a / b rounded."""
    cdef double product = quotient * b
    return ((a - product) - cyce_product_lost(quotient, b, product)) / b


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


cdef inline double exp_with_headroom(double x, double headroom) noexcept nogil:
    """2**headroom * e**x, to 1 ulp, where that is a normal number."""
    cdef double exponent_shift = round_shift[double](x) + (1023 + headroom)
    cdef double rounded = multiply_add[double](x, 1.4426950408889634, exponent_shift)
    cdef double n = rounded - exponent_shift
    cdef double r = multiply_add[double](n, -ln2_high[double](x), x)
    r = multiply_add[double](n, -ln2_low[double](x), r)
    return exp_near_zero[double](r) * low_bits_as_power[double](rounded)


cdef inline double exp_nonpositive(double x) noexcept nogil:
    """e**x for x <= 0, to 1 ulp; gradual underflow, NaN stays NaN."""
    # ln 2**-1075 is -745.13.
    return 0.0 if x < -746.0 else exp_with_headroom(x, 512) * without_headroom[double](x)


cdef inline double exp_in_parts(double x, double x_lost, double* lost_out) noexcept nogil:
    """e**(x + x_lost) for x <= 0, as exp_nonpositive, but to 0.7 ulp; and what rounding it loses."""
    cdef double exponent_shift = round_shift[double](x) + (1023 + 512)
    cdef double rounded = multiply_add[double](x, 1.4426950408889634, exponent_shift)
    cdef double n = rounded - exponent_shift
    cdef double high = multiply_add[double](n, -ln2_high[double](x), x)
    cdef double lost
    cdef double power = exp_of_parts(high, multiply_add[double](n, -ln2_low[double](x), x_lost), &lost)
    cdef double unit = low_bits_as_power[double](rounded)
    lost_out[0] = 0.0 if x < -746.0 else lost * unit * without_headroom[double](x)
    return 0.0 if x < -746.0 else power * unit * without_headroom[double](x)


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
    """1 / cosh(x)**2 = 1 - tanh(x)**2, which does not cancel here; NaN stays NaN."""
    cdef double tail = exp_nonpositive(2.0 * x if x < 0 else -2.0 * x)
    cdef double inverse = 1.0 / (1.0 + tail)
    return 4.0 * tail * inverse * inverse


cdef inline double exp_clamped(double x) noexcept nogil:
    """e**x; inf from 709.8 on, gradual underflow, NaN stays NaN."""
    cdef double bounded = 710.0 if x > 710.0 else x
    # 2**512 and its inverse
    cdef double scale = 1.3407807929942597e154 if x > 0 else 7.458340731200207e-155
    cdef double scaled = exp_with_headroom(bounded, -512.0 if x > 0 else 512.0)
    return 0.0 if x < -746.0 else scaled * scale


cdef inline double log1p_nonnegative(double r) noexcept nogil:
    """log(1 + r) for r >= 0, to 1 ulp; NaN stays NaN."""
    cdef double unused
    return log1p_in_parts(r, &unused)


cdef inline double log1p_in_parts(double r, double* lost_out) noexcept nogil:
    """log(1 + r) for r >= 0, to 1 ulp, and with what rounding it loses, to 0.4; NaN stays NaN.

    Reduction, polynomial and constants are those of log1p in fdlibm (Sun Microsystems, 1993), laid
    out without branches: 1 + r = 2**k * m with m in [sqrt(1/2), sqrt(2)), f = m - 1, s = f / (2 + f).
    """
    cdef double one_plus = 1.0 + r
    # Adding 1 - sqrt(1/2) on the bit patterns carries into the exponent where m >= sqrt(2).
    cdef uint64_t bits = cyce_bits(one_plus) + (
        <uint64_t> 0x3ff0000000000000 - <uint64_t> 0x3fe6a09e00000000
    )
    # k + 2**52, written into the mantissa of 2**52
    cdef double k = (
        cyce_from_bits((bits >> 52) | <uint64_t> 0x4330000000000000) - (4503599627370496.0 + 1023.0)
    )
    cdef double m = cyce_from_bits(
        (bits & <uint64_t> 0x000fffffffffffff) + <uint64_t> 0x3fe6a09e00000000
    )
    cdef bint unscaled = k == 0.0
    cdef double f = r if unscaled else m - 1.0
    # what the addition 1 + r lost
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

    As log1p_nonnegative, without a reduction: s = t / (2 + t) is at most 1/3, and the polynomial in s**2
    minimises the largest relative error of the logarithm there (Remez' algorithm on that interval
    widened by 0.05 %, in 50 digits): 1.3e-18.
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
    """log(x) for x > 0, to 1 ulp of the larger of that and 1; large for 0, NaN of other x."""
    # 2**200 keeps (1 - x) / x finite.
    cdef bint tiny = x < 1e-290
    cdef double scaled = x * 1.6069380442589903e60 if tiny else x
    cdef double odds = scaled - 1.0 if scaled >= 1.0 else (1.0 - scaled) / scaled
    # log1p_nonnegative does not know infinity.
    cdef double logarithm = log1p_nonnegative(odds if odds < DBL_MAX else DBL_MAX)
    logarithm = logarithm if scaled >= 1.0 else -logarithm
    logarithm = logarithm - 138.62943611198907 if tiny else logarithm
    logarithm = logarithm if x < INFINITY else x
    return logarithm if x >= 0.0 else NAN


# ---------------------------------------------------------------------------------------------
# Sums in double, and what they lose


cdef enum:
    # Independent accumulators along an array: two vectors of the widest level in float.
    LANES = 32


cdef inline void add(double* total, double* lost, floating value) noexcept nogil:
    """Add to a running total in double; of doubles, collect what that loses (Knuth's TwoSum)."""
    cdef double before, added
    if floating is float:
        total[0] += value
    else:
        before = total[0]
        total[0] = before + value
        added = total[0] - before
        lost[0] += (before - (total[0] - added)) + (value - added)


cdef inline void add_product(
    double* total, double* lost, double a, double a_lost, double b, double b_lost, floating like
) noexcept nogil:
    """Add (a + a_lost) * (b + b_lost) to a running total; of doubles, collect what that loses."""
    cdef double product = a * b
    if floating is float:
        total[0] += product
    else:
        lost[0] += cyce_product_lost(a, b, product) + (a * b_lost + a_lost * b)
        add[double](total, lost, product)


cdef inline floating finite_or_zero(floating value) noexcept nogil:
    """value, or 0 where it is infinite or NaN."""
    # One comparison, which compilers make a mask of: value - value is NaN for both.
    return value if value - value == 0 else <floating> 0.0


cdef inline double settled(double total, double lost) noexcept nogil:
    """The running total with what it lost; an infinite total has lost nothing that is a number."""
    return total + finite_or_zero(lost)


cdef inline void sum_of_lanes(double* lane, double* lost, floating like) noexcept nogil:
    """Add up LANES totals, and what they lost, as a tree; the sums go to lane[0] and lost[0].

    like: of what type the values are; those of floats have lost nothing.
    """
    cdef Py_ssize_t k
    if floating is float:
        for k in range(16):
            lane[k] += lane[k + 16]
        for k in range(8):
            lane[k] += lane[k + 8]
        for k in range(4):
            lane[k] += lane[k + 4]
        for k in range(2):
            lane[k] += lane[k + 2]
        lane[0] += lane[1]
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
