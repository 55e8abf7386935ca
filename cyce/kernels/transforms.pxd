"""Options that change the logits: the softcap, the temperature, and their slopes; the class mask.

With softcap s and temperature T, the loss is that of x' = s * tanh(x / s) / T, rounded to the arithmetic's
type. A block of logits is changed in scratch memory before it is reduced, so that the loops over it do not
know. The gradient needs the softcap's slope, 1 / cosh(x / s)**2, at the original logits. For rows, slopes
wait in scratch memory. For tiles, they are computed from the logits again when a block is finished, as are
then the exponentials (`restarts` in streaming.pxd). 1 / T is part of `Call.grad_scale`.

Where the class mask is 0, a position has no such class: the logit becomes -inf, whatever it is.
"""
from cython cimport floating

from libc.math cimport INFINITY, copysignf, fabsf

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport low_bits_as_power, multiply_add
from cyce.kernels.math cimport (
    exp_near_zero, exponent_bias, ln2_high, ln2_low, round_shift, square_of_sech, tanh_of,
)
from cyce.kernels.vectors cimport HAS_VECTORS


cdef inline bint changes_logits(const Call* call) noexcept nogil:
    """Whether the loss is that of other logits than the given ones."""
    return call.softcap > 0 or call.temperature != 1


cdef inline bint has_mask(const Call* call) noexcept nogil:
    """Whether positions may lack classes."""
    return call.class_mask != NULL


cdef inline bint mask_at(const Call* call, const Tile* tile, Py_ssize_t k, Py_ssize_t c) noexcept nogil:
    """Whether a position of a tile has class c, of a call that has a mask."""
    return call.class_mask.start[tile.mask_at[k] + c * call.class_mask.class_stride] != 0


cdef inline bint copies_logits(const Call* call) noexcept nogil:
    """Whether a block of logits is changed before it is reduced."""
    return changes_logits(call) or has_mask(call)


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


cdef inline double slope_at(const Call* call, floating logit) noexcept nogil:
    """Slope of the softcap at a logit; 1 without a softcap."""
    return square_of_sech(logit / call.softcap) if call.softcap > 0 else 1.0


# ---------------------------------------------------------------------------------------------
# The softcap of floats, where multiplication and addition are fused: to 1.2 ulp, slopes to 4, in a quarter of
# the time that double takes


cdef struct Softcap:
    float cap
    float cap_lost                  # what rounding the cap loses
    float inverse
    float exponent                  # -2 / cap
    float exponent_lost
    float saturated                 # where the slope becomes 0: it would be less than the least normal number


cdef inline bint has_float_softcap(const Call* call, floating like) noexcept nogil:
    """Whether numbers are such that nothing overflows below."""
    return floating is float and HAS_VECTORS and 1e-30 < call.softcap < 1e30


cdef inline void begin_softcap(double cap, Softcap* out) noexcept nogil:
    """What is computed once per block."""
    out.cap = <float> cap
    out.cap_lost = <float> (cap - out.cap)
    out.inverse = <float> (1.0 / cap)
    out.exponent = <float> (-2.0 / cap)
    out.exponent_lost = <float> (-2.0 / cap - out.exponent)
    out.saturated = <float> (43.5 * cap)


cdef inline float shortfall_of(float magnitude, const Softcap* softcap) noexcept nogil:
    """1 - tanh(magnitude / cap), as 2 q / (1 + q) with q = e**(-2 magnitude / cap); NaN stays NaN."""
    cdef float bounded = softcap.saturated if magnitude > softcap.saturated else magnitude
    cdef float t = bounded * softcap.exponent
    cdef float t_lost = multiply_add(bounded, softcap.exponent, -t) + bounded * softcap.exponent_lost
    cdef float exponent_shift = round_shift[float](0) + <float> exponent_bias[float](0)
    cdef float rounded = multiply_add(t, <float> 1.4426950408889634, exponent_shift)
    cdef float n = rounded - exponent_shift
    cdef float high = multiply_add(n, -ln2_high[float](0), t)
    cdef float r = multiply_add(n, -ln2_low[float](0), high) + t_lost
    cdef float q = exp_near_zero(r) * low_bits_as_power(rounded)
    q = <float> 0 if bounded == softcap.saturated else q
    return (q + q) / (<float> 1 + q)


cdef inline float capped(float logit, float shortfall, const Softcap* softcap) noexcept nogil:
    """cap * tanh(logit / cap).

    Near 0, it is logit + logit * g((logit / cap)**2). The polynomial minimises the largest relative error up
    to logit = cap: 4.6e-9.
    """
    cdef float u = logit * softcap.inverse
    cdef float square = u * u
    cdef float g = multiply_add[float](<float> -0.00035845177, square, <float> 0.0023013637)
    g = multiply_add[float](g, square, <float> -0.007946106)
    g = multiply_add[float](g, square, <float> 0.021486657)
    g = multiply_add[float](g, square, <float> -0.0538798)
    g = multiply_add[float](g, square, <float> 0.13332345)
    g = multiply_add[float](g, square, <float> -0.33333296)
    cdef float near = multiply_add(logit, g * square, logit)
    cdef float far = copysignf(
        softcap.cap + multiply_add(-softcap.cap, shortfall, softcap.cap_lost), logit
    )
    return near if fabsf(logit) < softcap.cap else far


# ---------------------------------------------------------------------------------------------
# Blocks


cdef inline void cap(
    const Call* call, const floating* logits, Py_ssize_t n, floating* out, floating* slopes_out
) noexcept nogil:
    """Apply the softcap to n logits, and write its slopes there unless slopes_out is NULL.

    `out` may be `logits`.
    """
    cdef Softcap softcap
    cdef floating logit
    cdef float shortfall
    cdef Py_ssize_t k
    if has_float_softcap[floating](call, 0):
        begin_softcap(call.softcap, &softcap)
        if slopes_out == NULL:
            for k in range(n):
                out[k] = capped(
                    <float> logits[k], shortfall_of(fabsf(<float> logits[k]), &softcap), &softcap
                )
            return
        for k in range(n):
            logit = logits[k]
            shortfall = shortfall_of(fabsf(<float> logit), &softcap)
            out[k] = capped(<float> logit, shortfall, &softcap)
            # 1 - tanh**2
            slopes_out[k] = shortfall * (<float> 2 - shortfall)
        return
    if slopes_out != NULL:
        for k in range(n):
            slopes_out[k] = <floating> slope_at(call, logits[k])
    for k in range(n):
        out[k] = <floating> (call.softcap * tanh_of(logits[k] / call.softcap))


cdef inline void transform(
    const Call* call, const floating* logits, Py_ssize_t n, floating* out, floating* slopes_out
) noexcept nogil:
    """Apply softcap and temperature to n logits, and write the softcap's slopes unless slopes_out is NULL.

    `out` may be `logits`.
    """
    cdef floating temperature = <floating> call.temperature
    if call.softcap > 0:
        cap(call, logits, n, out, slopes_out)
        if temperature != 1:
            divide(<const floating*> out, n, temperature, out)
    else:
        divide(logits, n, temperature, out)


cdef inline void mask_row(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t first, Py_ssize_t n, floating* logits,
    floating* slopes,
) noexcept nogil:
    """Set n logits from class number `first` on to -inf where the mask is 0, and their slopes to 0.

    slopes: NULL if there are none.
    """
    cdef Py_ssize_t stride = call.class_mask.class_stride
    cdef const char* mask = call.class_mask.start + tile.mask_at[row] + first * stride
    cdef Py_ssize_t k
    for k in range(n):
        logits[k] = logits[k] if mask[k * stride] else -INFINITY
    if slopes != NULL:
        for k in range(n):
            slopes[k] = slopes[k] if mask[k * stride] else <floating> 0.0


cdef inline void mask_tile(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, floating* packed, floating* slopes
) noexcept nogil:
    """`mask_row` for n packed classes of a tile."""
    cdef Py_ssize_t c, k
    for c in range(n):
        for k in range(tile.width):
            # Ignored positions have logits of 0 here, whatever theirs.
            if tile.counts[k] and not mask_at(call, tile, k, first + c):
                packed[c * tile.pitch + k] = -INFINITY
                if slopes != NULL:
                    slopes[c * tile.pitch + k] = 0
