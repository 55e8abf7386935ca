"""Binary cross-entropy of float logits, in vectors (see vectors.pxd).

With tail = e**-abs(logit), the loss is against * abs(logit) + (yes + no) * log(1 + tail), where `yes` and
`no` are the masses of the target, and `against` is the one that speaks against the logit's sign. The slope
is against - (yes + no) * tail / (1 + tail), with the logit's sign.

What a float does not hold is in double, everything else in float: vectors of doubles have half as many
numbers, and a conversion takes as long as two products. Tails of less than e**-150 are 0. Of labels, the
relative error is at most 1.7e-8 of losses and 7e-9 of slopes, before these are rounded to float, measured at
every 97th float.
"""
from cyce.kernels.exponentials cimport INVERSE_OF_FACTOR, TABLE_OF_FLOATS, begin_exp, expm1_of_rest
from cyce.kernels.vectors cimport (
    cut_off16, divide16, doubles, fill8, fill16, floats, high8, load16, low8, minus_magnitude16, multiply8,
    multiply_add8, multiply_add16, step8, store8, subtract8, sum8, sum16, table_power16, times_sign8,
    unless_equal8, widen8,
)


cdef extern from *:
    # 2**100 keeps small tails normal.
    const double HEADROOM "0x1p100"


cdef inline double tail_unit() noexcept nogil:
    """The factor that tails have: the table's stays, too, and what follows has the inverse."""
    return HEADROOM / INVERSE_OF_FACTOR


cdef struct Tails:
    # e**-abs(logit) of 16 logits, times tail_unit().
    doubles low
    doubles high
    # e**-abs(logit) - 1/2, the variable of polynomials.
    floats centred


cdef inline Tails tails_of(const float* logits) noexcept nogil:
    """Tails of 16 logits, to 4e-9; 0 beyond 150. NaN stays NaN."""
    cdef Tails tails
    cdef floats r
    cdef floats farthest = fill16(-150)
    # 1.5 * 2**20: see `refer_vectors_to`.
    cdef floats exponent_shift = fill16(<float> (1572864.0 + 100))
    cdef floats distance = minus_magnitude16(load16(logits))
    cdef floats rounded = begin_exp(distance, exponent_shift, &r)
    # As in `end_exp`, but its last sum is in double.
    cdef floats power = cut_off16(table_power16(load16(TABLE_OF_FLOATS), rounded), distance, farthest)
    cdef floats excess = expm1_of_rest(cut_off16(r, distance, farthest))
    tails.centred = multiply_add16(
        multiply_add16(power, excess, power), fill16(<float> (1 / tail_unit())), fill16(<float> -0.5)
    )
    tails.low = multiply_add8(low8(power), low8(excess), low8(power))
    tails.high = multiply_add8(high8(power), high8(excess), high8(power))
    return tails


cdef inline floats rest_of_log1p(floats centred) noexcept nogil:
    """What `log1p_over_tail` adds, for 0 <= tail <= 1."""
    # Minimises the largest relative error of log(1 + tail), together with the linear function there: 1.8e-9.
    # The numbers are times INVERSE_OF_FACTOR already.
    cdef floats p = fill16(<float> (0.0018637401517480612 / HEADROOM))
    p = multiply_add16(p, centred, fill16(<float> (-0.002994401380419731 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (0.0036648071836680174 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (-0.0061988928355276585 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (0.010897464118897915 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (-0.018912725150585175 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (0.033658381551504135 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (-0.062229182571172714 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (0.12191593647003174 / HEADROOM)))
    p = multiply_add16(p, centred, fill16(<float> (0.010771987959742546 / HEADROOM)))
    return multiply_add16(p, centred, fill16(<float> (-0.016006270423531532 / HEADROOM)))


cdef inline doubles log1p_over_tail(doubles tail, doubles rest) noexcept nogil:
    """log(1 + tail) / tail, divided by tail_unit(), of what has that factor.

    A linear function in double, and a rest that float is enough for: at most 3 % of it.
    """
    cdef doubles slope = fill8(-0.25377224571381321 / HEADROOM / HEADROOM)
    return sum8(multiply_add8(tail, slope, fill8(0.899557824355726694 / HEADROOM)), rest)


cdef inline doubles minus_sigmoid(doubles tail, doubles minus_inverse) noexcept nogil:
    """-tail / (1 + tail), of what `minus_inverses` gives: one step of Newton's method."""
    cdef doubles error = multiply_add8(sum8(tail, fill8(tail_unit())), minus_inverse, fill8(1))
    cdef doubles product = multiply8(tail, minus_inverse)
    return multiply_add8(product, error, product)


cdef inline floats minus_inverses(const Tails* tails) noexcept nogil:
    """-1 / (1 + tail) of 16 in float, divided by tail_unit()."""
    return divide16(fill16(<float> (-1 / tail_unit())), sum16(tails.centred, fill16(<float> 1.5)))


cdef inline doubles cost_of(doubles signed_against, doubles logit) noexcept nogil:
    """The mass that speaks against the sign of a logit, times its magnitude; 0 without mass, also for inf."""
    return multiply8(signed_against, unless_equal8(logit, signed_against, fill8(0)))


cdef inline void plain_loss(
    doubles tail, doubles rest, const float* logits, const float* target, double* loss_out
) noexcept nogil:
    """Losses of eight logits."""
    cdef doubles logit = widen8(logits)
    cdef doubles signed_against = subtract8(step8(logit), widen8(target))
    store8(loss_out, multiply_add8(tail, log1p_over_tail(tail, rest), cost_of(signed_against, logit)))


cdef inline void plain_loss_and_slope(
    doubles tail, doubles rest, doubles minus_inverse, const float* logits, const float* target, double scale,
    double* loss_out, double* slope_out,
) noexcept nogil:
    """The same, and their slopes times `scale`."""
    cdef doubles logit = widen8(logits)
    cdef doubles signed_against = subtract8(step8(logit), widen8(target))
    cdef doubles signed_tail = times_sign8(minus_sigmoid(tail, minus_inverse), logit)
    store8(loss_out, multiply_add8(tail, log1p_over_tail(tail, rest), cost_of(signed_against, logit)))
    store8(slope_out, multiply8(sum8(signed_against, signed_tail), fill8(scale)))


cdef inline void loss_and_slope(
    doubles tail, doubles rest, doubles minus_inverse, const float* logits, const float* target,
    const float* pos_weight, double scale, double* loss_out, double* slope_out,
) noexcept nogil:
    """The same, with weights of the target's positive part."""
    cdef doubles logit = widen8(logits)
    cdef doubles step = step8(logit)
    cdef doubles no = subtract8(fill8(1), widen8(target))
    cdef doubles yes = multiply8(widen8(pos_weight), widen8(target))
    cdef doubles mass = sum8(no, yes)
    cdef doubles signed_against = subtract8(
        unless_equal8(no, step, fill8(0)), unless_equal8(yes, step, fill8(1))
    )
    cdef doubles signed_tail = times_sign8(multiply8(mass, minus_sigmoid(tail, minus_inverse)), logit)
    cdef doubles loss = multiply8(multiply8(mass, tail), log1p_over_tail(tail, rest))
    # No mass, no loss, whatever the logit.
    store8(loss_out, sum8(unless_equal8(loss, mass, fill8(0)), cost_of(signed_against, logit)))
    store8(slope_out, multiply8(sum8(signed_against, signed_tail), fill8(scale)))


# In these loops, the next tails come first: instructions that wait for one another fill a CPU's schedulers.


cdef inline void plain_losses(
    const float* logits, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """Binary cross-entropies of n > 0 logits. Reads and writes a chunk, in sixteens."""
    cdef Tails following = tails_of(logits)
    cdef Tails tails
    cdef floats rest
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t k
    for k in range(0, last + 16, 16):
        tails = following
        following = tails_of(logits + min(k + 16, last))
        rest = rest_of_log1p(tails.centred)
        plain_loss(tails.low, low8(rest), logits + k, target + k, loss_out + k)
        plain_loss(tails.high, high8(rest), logits + k + 8, target + k + 8, loss_out + k + 8)


cdef inline void plain_losses_and_slopes(
    const float* logits, const float* target, Py_ssize_t n, double scale, double* loss_out, double* slope_out
) noexcept nogil:
    """The same, and their slopes times `scale`."""
    cdef Tails following = tails_of(logits)
    cdef Tails tails
    cdef floats rest, inverse
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t k
    for k in range(0, last + 16, 16):
        tails = following
        following = tails_of(logits + min(k + 16, last))
        rest = rest_of_log1p(tails.centred)
        inverse = minus_inverses(&tails)
        plain_loss_and_slope(
            tails.low, low8(rest), low8(inverse), logits + k, target + k, scale, loss_out + k, slope_out + k
        )
        plain_loss_and_slope(
            tails.high, high8(rest), high8(inverse), logits + k + 8, target + k + 8, scale, loss_out + k + 8,
            slope_out + k + 8,
        )


cdef inline void losses_and_slopes(
    const float* logits, const float* target, const float* pos_weight, Py_ssize_t n, double scale,
    double* loss_out, double* slope_out,
) noexcept nogil:
    """The same, with weights of the target's positive part."""
    cdef Tails following = tails_of(logits)
    cdef Tails tails
    cdef floats rest, inverse
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t k
    for k in range(0, last + 16, 16):
        tails = following
        following = tails_of(logits + min(k + 16, last))
        rest = rest_of_log1p(tails.centred)
        inverse = minus_inverses(&tails)
        loss_and_slope(
            tails.low, low8(rest), low8(inverse), logits + k, target + k, pos_weight + k, scale, loss_out + k,
            slope_out + k,
        )
        loss_and_slope(
            tails.high, high8(rest), high8(inverse), logits + k + 8, target + k + 8, pos_weight + k + 8,
            scale, loss_out + k + 8, slope_out + k + 8,
        )
