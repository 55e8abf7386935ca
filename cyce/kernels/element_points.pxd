"""Formulas of one element: its loss, and the slope of that with respect to the input.

Everything is computed in double. Binary cross-entropies are sums of mass * cost with cost >= 0, so that
nothing cancels and tiny losses keep their precision. A mass or weight of 0 adds nothing, whatever the cost.
"""
from libc.float cimport DBL_MAX

from cyce.kernels.math cimport (
    exp_clamped, exp_nonpositive, log1p_nonnegative, log1p_of_fraction, log_nonnegative,
)


cdef inline double weighed(double mass, double cost) noexcept nogil:
    """mass * cost; 0 for a mass of 0, even where the cost is infinite."""
    return 0.0 if mass == 0 else mass * cost


cdef inline double bce_with_logits(
    double logit, double target, double pos_weight, double* tail_out
) noexcept nogil:
    """(1 - target) * softplus(logit) + pos_weight * target * softplus(-logit); tail: e**-abs(logit)."""
    cdef bint positive = logit > 0
    cdef double distance = logit if positive else -logit
    cdef double tail = exp_nonpositive(-distance)
    cdef double rest = log1p_of_fraction(tail)
    cdef double cost = distance + rest if positive else rest
    cdef double cost_of_negative = rest if positive else distance + rest
    tail_out[0] = tail
    return weighed(1.0 - target, cost) + weighed(pos_weight * target, cost_of_negative)


cdef inline double slope_of_bce_with_logits(
    double logit, double target, double pos_weight, double tail
) noexcept nogil:
    """(1 - target) * sigmoid(logit) - pos_weight * target * sigmoid(-logit)."""
    cdef double inverse = 1.0 / (1.0 + tail)
    cdef bint positive = logit > 0
    cdef double sigmoid = inverse if positive else tail * inverse
    cdef double sigmoid_of_negative = tail * inverse if positive else inverse
    return (1.0 - target) * sigmoid - pos_weight * target * sigmoid_of_negative


cdef inline double minus_log_of_ratio(double numerator, double denominator) noexcept nogil:
    """-log(numerator / (numerator + denominator)), at most 100, as in torch."""
    cdef double odds = denominator / numerator
    # log1p_nonnegative needs a finite argument.
    cdef double cost = log1p_nonnegative(odds if odds < DBL_MAX else DBL_MAX)
    return cost if cost < 100.0 else 100.0


cdef inline double bce(double probability, double target, double* slope_out) noexcept nogil:
    """-(1 - target) * log(1 - probability) - target * log(probability), for 0 <= probability <= 1."""
    cdef double opposite = 1.0 - probability
    cdef double variance = probability * opposite
    # torch's bound, 1e-12, keeps the slope finite at 0 and 1.
    slope_out[0] = (probability - target) / (variance if variance > 1e-12 else 1e-12)
    return (
        (1.0 - target) * minus_log_of_ratio(opposite, probability)
        + target * minus_log_of_ratio(probability, opposite)
    )


cdef inline double kl(double log_probability, double target, double* slope_out) noexcept nogil:
    """target * (log(target) - log_probability)."""
    slope_out[0] = -target
    return weighed(target, log_nonnegative(target) - log_probability)


cdef inline double kl_of_log(double log_probability, double log_target, double* slope_out) noexcept nogil:
    """e**log_target * (log_target - log_probability)."""
    cdef double target = exp_clamped(log_target)
    slope_out[0] = -target
    return weighed(target, log_target - log_probability)
