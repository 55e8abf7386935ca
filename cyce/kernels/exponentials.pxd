"""Exponentials of vectors of floats, relative to a reference (see reference.pxd).

e**t = 2**(k/8) * 2**n * e**r with the integer 8 n + k next to 8 t / ln 2, and abs(r) <= ln(2) / 16. The
powers of 2**(1/8) come from a table in a register, e**r - 1 from a polynomial of degree 4, and one
multiply-add puts them together.

The powers in the table are floats, and their roundings would be half of the error. They are made to vanish:
all have the common factor TABLE_SCALE, which was searched for, among the floats between 1 and 2**(1/8), so
that each product is within 0.033 ulp of a float (after S. Gal's accurate tables, ACM TOMS 17, 1991).
`unit_of_reference` divides it out, once per block. What is left is the rounding of the last operation.
Measured at every float from -1.4 to -0.69, and at every 23rd from -86 to -1e-6, the relative error is at most
6.28e-8 and 2.3e-8 on average; 6.0e-8 is half an ulp just above a power of two. `exp_scaled`, which levels
without vectors use, is within 9e-8.
"""
from cyce.kernels.math cimport exp_nonpositive, ln2_high, ln2_low
from cyce.kernels.reference cimport cut_off, headroom, power_at, relative_at, shift_at, unit_of
from cyce.kernels.sums cimport finite_or_zero
from cyce.kernels.vectors cimport (
    fill16, larger16, load16, multiply16, multiply_add16, store16, subtract16, table_power16, vector,
)

cdef extern from * nogil:
    """
    #include <stdint.h>

    /* Bits of TABLE_SCALE * 2**(k/8), less k in the place where `table_power16` adds it; twice, for vectors
       of 16. */
    #define CYCE_E(mantissa, k) (0x3f000000u + UINT32_C(mantissa) - (UINT32_C(k) << 20))
    #define CYCE_LOW CYCE_E(0x8b3a3e, 0), CYCE_E(0x97d424, 1), CYCE_E(0xa59202, 2), CYCE_E(0xb48e45, 3)
    #define CYCE_HIGH CYCE_E(0xc4e5be, 4), CYCE_E(0xd6b7da, 5), CYCE_E(0xea26de, 6), CYCE_E(0xff5829, 7)
    static const uint32_t cyce_table[16] = {CYCE_LOW, CYCE_HIGH, CYCE_LOW, CYCE_HIGH};
    """
    const float TABLE "((const float *) cyce_table)"[16]
    # 2**-124: no exponential above `lowest` is less.
    const float LEAST_EXPONENTIAL "4.7019774e-38f"


cdef inline float most_above() noexcept nogil:
    """By how much logits may exceed their reference: 2**(HEADROOM + 47) is far from the largest float."""
    return 32


cdef struct VectorReference:
    float shift                     # what is subtracted from the logits, 0 for most
    float exponent_shift            # rounds to eighths, and holds what is added to the exponent
    float lowest                    # below that, exponentials are replaced by the one there


cdef inline void refer_vectors_to(float reference, VectorReference* out) noexcept nogil:
    """Make a number what exponentials are relative to; 0 if it is not finite."""
    cdef float relative = relative_at(reference)
    out.shift = shift_at(reference)
    # 1.5 * 2**20: its last bit is an eighth.
    out.exponent_shift = <float> 1572864.0 + (headroom(relative) - power_at(relative))
    out.lowest = relative + cut_off(relative)


cdef inline double unit_of_reference(float reference, float block_max) noexcept nogil:
    """What turns exponentials, without their headroom, into exp(logit - block_max), to 2 ulp."""
    cdef float relative = relative_at(reference)
    # 1 / TABLE_SCALE
    cdef double unit = unit_of(relative, power_at(relative)) * 0.91935854891893275
    return unit * exp_nonpositive(<double> finite_or_zero(reference) - <double> finite_or_zero(block_max))


cdef inline vector exp_of_vector(vector t, float exponent_shift, float lowest) noexcept nogil:
    """TABLE_SCALE * 2**HEADROOM * 2**-n * e**t, t no less than `lowest`; NaN stays NaN.

    The table's number is in the last three bits of `rounded`, the exponent in those before.
    """
    cdef vector above = larger16(fill16(lowest), t)
    # 1 / ln 2
    cdef vector rounded = multiply_add16(above, fill16(<float> 1.4426950408889634), fill16(exponent_shift))
    cdef vector n = subtract16(rounded, fill16(exponent_shift))
    cdef vector high = multiply_add16(n, fill16(-ln2_high[float](0)), above)
    cdef vector r = multiply_add16(n, fill16(-ln2_low[float](0)), high)
    cdef vector power = table_power16(load16(TABLE), rounded)
    # Minimises the largest relative error of e**r: 1.9e-10.
    cdef vector p = multiply_add16(fill16(<float> 0.041660428), r, fill16(<float> 0.16668028))
    p = multiply_add16(p, r, fill16(<float> 0.5))
    return multiply_add16(power, multiply_add16(p, multiply16(r, r), r), power)


cdef inline void exponentials_of_vectors(
    const float* logits, Py_ssize_t n, float reference, float* exps_out
) noexcept nogil:
    """Write the exponentials of n logits, n a multiple of 16."""
    cdef VectorReference to
    cdef Py_ssize_t k
    refer_vectors_to(reference, &to)
    for k in range(n // 16):
        store16(
            exps_out + 16 * k,
            exp_of_vector(
                subtract16(load16(logits + 16 * k), fill16(to.shift)), to.exponent_shift, to.lowest
            ),
        )
