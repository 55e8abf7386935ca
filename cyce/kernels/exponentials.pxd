"""Exponentials of vectors, relative to a reference (see reference.pxd).

e**t = 2**(k/8) * 2**n * e**r with the integer 8 n + k next to 8 t / ln 2, and abs(r) <= ln(2) / 16. The
powers of 2**(1/8) come from a table in a register, e**r - 1 from a polynomial, and one multiply-add puts them
together.

The powers in the table are rounded, and that would be half of the error. Their roundings are made to
vanish: all have a common factor, which was searched for, among the numbers between 1 and 2**(1/8), so that
each product is within 0.033 ulp of a float, or 0.011 of a double (after S. Gal's accurate tables, ACM TOMS
17, 1991). `unit_of_reference` divides it out, once per block. What is left is the rounding of the last
operation.

Floats, measured at every one from -1.4 to -0.69, and at every 23rd from -86 to -1e-6: the relative error is
at most 6.28e-8 and 2.3e-8 on average; 6.0e-8 is half an ulp just above a power of two. `exp_scaled`, which
levels without vectors use, is within 9e-8. Doubles, measured at 60 million from -708 to 0: at most 1.17e-16
and 4.0e-17 on average; in ulp at most 0.60, where `exp_scaled` is within 0.7.
"""
from cython cimport floating
from libc.math cimport fabs

from cyce.kernels.math cimport exp_for_float, exp_in_parts, ln2_high, ln2_low
from cyce.kernels.reference cimport cut_off, headroom, power_at, shift_at
from cyce.kernels.sums cimport add_product, difference_lost, finite_or_zero
from cyce.kernels.vectors cimport (
    cut_off8, cut_off16, doubles, fill8, fill16, floats, load16, multiply8, multiply16,
    multiply_add8, multiply_add16, subtract8, subtract16, table_power8, table_power16,
)

cdef extern from * nogil:
    """
    #include <stdint.h>

    /* Bits of the common factor times 2**(k/8), less k in the place where `table_power` adds it; of floats
       twice, for vectors of 16. */
    #define CYCE_E(mantissa, k) (0x3f000000u + UINT32_C(mantissa) - (UINT32_C(k) << 20))
    #define CYCE_LOW CYCE_E(0x8b3a3e, 0), CYCE_E(0x97d424, 1), CYCE_E(0xa59202, 2), CYCE_E(0xb48e45, 3)
    #define CYCE_HIGH CYCE_E(0xc4e5be, 4), CYCE_E(0xd6b7da, 5), CYCE_E(0xea26de, 6), CYCE_E(0xff5829, 7)
    static const uint32_t cyce_table_of_floats[16] = {CYCE_LOW, CYCE_HIGH, CYCE_LOW, CYCE_HIGH};

    #define CYCE_D(bits, k) (UINT64_C(bits) - (UINT64_C(k) << 49))
    static const uint64_t cyce_table_of_doubles[8] = {
        CYCE_D(0x3ff00001427feace, 0), CYCE_D(0x3ff172b99c2d8be1, 1), CYCE_D(0x3ff306ff89b68e5e, 2),
        CYCE_D(0x3ff4bfdc77712184, 3), CYCE_D(0x3ff6a0a02e949695, 4), CYCE_D(0x3ff8ace733876d29, 5),
        CYCE_D(0x3ffae8a1b7bb80f3, 6), CYCE_D(0x3ffd581b2c7332ce, 7),
    };
    """
    const float TABLE_OF_FLOATS "((const float *) cyce_table_of_floats)"[16]
    const double TABLE_OF_DOUBLES "((const double *) cyce_table_of_doubles)"[8]
    # The inverse of the factor of the table of floats.
    const double INVERSE_OF_FACTOR "0.91935854891893275"


cdef inline floating most_above(floating like) noexcept nogil:
    """By how much logits may exceed their reference: 2**HEADROOM * e**that is far from overflow."""
    return 32 if floating is float else 300


cdef struct VectorReference:
    double shift                    # what is subtracted from the logits, 0 for most
    double exponent_shift           # rounds to eighths, and holds what is added to the exponent
    double lowest                   # below that, exponentials are replaced, by the one there or by 0


cdef inline floating shift_for_vectors(floating reference) noexcept nogil:
    """What is subtracted from the logits, without rounding: nothing that counts is less than half of it."""
    cdef floating finite = finite_or_zero(reference)
    if floating is float:
        return shift_at(reference)
    else:
        return finite if fabs(finite) > 2200 else 0.0


cdef inline void refer_vectors_to(floating reference, VectorReference* out) noexcept nogil:
    """Make a number what exponentials are relative to; 0 if it is not finite."""
    cdef floating relative = finite_or_zero(reference) - shift_for_vectors(reference)
    out.shift = shift_for_vectors(reference)
    # 1.5 * 2**20 and 1.5 * 2**49: their last bit is an eighth.
    out.exponent_shift = 1572864.0 if floating is float else 844424930131968.0
    out.exponent_shift += headroom(relative) - power_at(relative)
    out.lowest = relative + cut_off(relative)


# ---------------------------------------------------------------------------------------------
# Factors that turn exponentials into others, relative to something else


cdef inline double power_times_exp(
    double power, double shift, double top, double* lost_out
) noexcept nogil:
    """2**power * e**(shift - top) for an integer power, at most 2 or so; and what rounding it loses."""
    cdef double distance = shift - top
    cdef double from_power = power * ln2_high[double](0)
    cdef double sum = from_power + distance
    cdef double lost = difference_lost(from_power, -distance, sum) + difference_lost(shift, top, distance)
    return exp_in_parts(sum, power * ln2_low[double](0) + finite_or_zero(lost), lost_out)


cdef inline double unit_of_reference(floating reference, floating block_max, double* lost_out) noexcept nogil:
    """What turns exponentials, without their headroom, into exp(logit - block_max).

    For floats, as precise as their results need; for doubles, with what rounding it loses.
    """
    cdef floating shift = shift_for_vectors(reference)
    cdef floating relative = finite_or_zero(reference) - shift
    cdef double top = finite_or_zero(block_max)
    cdef double unit, unit_lost
    cdef double scaled = 0
    # Times the inverses of the tables' factors.
    if floating is float:
        lost_out[0] = 0
        # ln 2
        unit = exp_for_float(power_at(relative) * 0.6931471805599453 + (<double> shift - top))
        return unit * INVERSE_OF_FACTOR
    else:
        unit = power_times_exp(power_at(relative), shift, top, &unit_lost)
        lost_out[0] = 0
        add_product[double](&scaled, lost_out, unit, unit_lost, 0.999998798596527, -2.7851880219204015e-17, 0)
        return scaled


cdef inline double step_of_references(floating reference, floating higher, double* lost_out) noexcept nogil:
    """What turns exponentials relative to one reference into those relative to a higher one.

    For doubles, with what rounding it loses.
    """
    cdef floating shift = shift_for_vectors(reference)
    cdef floating higher_shift = shift_for_vectors(higher)
    cdef floating power = power_at(finite_or_zero(reference) - shift)
    cdef floating higher_power = power_at(finite_or_zero(higher) - higher_shift)
    return power_times_exp(power - higher_power, shift, higher_shift, lost_out)


# ---------------------------------------------------------------------------------------------
# Vectors


cdef inline void vectors_of_floats(
    const VectorReference* to, floats* shift_out, floats* exponent_shift_out, floats* lowest_out
) noexcept nogil:
    """The fields of a reference in all lanes."""
    shift_out[0] = fill16(<float> to.shift)
    exponent_shift_out[0] = fill16(<float> to.exponent_shift)
    lowest_out[0] = fill16(<float> to.lowest)


cdef inline void vectors_of_doubles(
    const VectorReference* to, doubles* shift_out, doubles* exponent_shift_out, doubles* lowest_out
) noexcept nogil:
    """The fields of a reference in all lanes."""
    shift_out[0] = fill8(to.shift)
    exponent_shift_out[0] = fill8(to.exponent_shift)
    lowest_out[0] = fill8(to.lowest)


cdef inline floats begin_exp(floats t, floats exponent_shift, floats* rest_out) noexcept nogil:
    """The first half of an exponential: t / ln 2 rounded to eighths, and what of t that leaves.

    In halves, for loops in which the second half of one overlaps the first of the next: instructions that
    wait for one another fill a CPU's schedulers.
    """
    # 1 / ln 2
    cdef floats rounded = multiply_add16(t, fill16(<float> 1.4426950408889634), exponent_shift)
    cdef floats n = subtract16(rounded, exponent_shift)
    cdef floats high = multiply_add16(n, fill16(-ln2_high[float](0)), t)
    rest_out[0] = multiply_add16(n, fill16(-ln2_low[float](0)), high)
    return rounded


cdef inline floats expm1_of_rest(floats r) noexcept nogil:
    """e**r - 1 of a rest."""
    # Minimises the largest relative error of e**r: 1.9e-10.
    cdef floats p = multiply_add16(fill16(<float> 0.041660428), r, fill16(<float> 0.16668028))
    p = multiply_add16(p, r, fill16(<float> 0.5))
    return multiply_add16(p, multiply16(r, r), r)


cdef inline floats end_exp(floats rounded, floats r) noexcept nogil:
    """The second half: 2**HEADROOM * 2**-n * e**t, times the table's factor; NaN stays NaN.

    The table's number is in the last three bits of `rounded`, the exponent in those before.
    """
    cdef floats power = table_power16(load16(TABLE_OF_FLOATS), rounded)
    return multiply_add16(power, expm1_of_rest(r), power)


cdef inline floats exp_of_floats_or_0(floats t, floats exponent_shift, floats lowest) noexcept nogil:
    """Both halves, but 0 for t less than `lowest`: products with the smallest numbers would take long."""
    cdef floats r
    cdef floats rounded = begin_exp(t, exponent_shift, &r)
    return cut_off16(end_exp(rounded, r), t, lowest)


cdef inline doubles exp_of_doubles(doubles t, doubles exponent_shift, doubles lowest) noexcept nogil:
    """The same as `exp_of_floats_or_0`."""
    cdef doubles rounded = multiply_add8(t, fill8(1.4426950408889634), exponent_shift)
    cdef doubles n = subtract8(rounded, exponent_shift)
    cdef doubles high = multiply_add8(n, fill8(-ln2_high[double](0)), t)
    cdef doubles r = multiply_add8(n, fill8(-ln2_low[double](0)), high)
    cdef doubles power = table_power8(TABLE_OF_DOUBLES, rounded)
    # Minimises the largest relative error of e**r: 2.9e-18.
    cdef doubles p = multiply_add8(fill8(0.000198405651989321), r, fill8(0.0013889781385203756))
    p = multiply_add8(p, r, fill8(0.008333333371187926))
    p = multiply_add8(p, r, fill8(0.041666666569919276))
    p = multiply_add8(p, r, fill8(0.16666666666663718))
    p = multiply_add8(p, r, fill8(0.5000000000000296))
    p = multiply_add8(p, multiply8(r, r), r)
    return cut_off8(multiply_add8(power, p, power), t, lowest)
