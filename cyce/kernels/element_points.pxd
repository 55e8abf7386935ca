"""Formulas of one element: its loss or function, and the slope of that with respect to the input.

Losses are computed in double; for floats, functions are only as precise as results in float need, and
logarithms are those of logarithms.pxd. Binary cross-entropies are sums of mass * cost with cost >= 0, so that
nothing cancels and tiny losses keep their precision. A mass or weight of 0 adds nothing, whatever the cost.
Where there are vectors, those of floats are in binary_logits.pxd and float_losses.pxd.
"""
from cython cimport floating
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY

from cyce.kernels.machine cimport multiply_add
from cyce.kernels.math cimport (
    exp_clamped, exp_for_float, exp_nonpositive, inverse_for_float, log1p_nonnegative, log1p_of_fraction,
    log1p_of_fraction_for_float, log_nonnegative, power_of,
)


cdef inline double weighed(double mass, double cost) noexcept nogil:
    """mass * cost; 0 for a mass of 0, even where the cost is infinite."""
    return 0.0 if mass == 0 else mass * cost


# ---------------------------------------------------------------------------------------------
# Binary cross-entropy of logits


cdef inline double tail_of(floating logit) noexcept nogil:
    """e**-abs(logit)."""
    cdef double wide = logit
    cdef double distance = wide if wide > 0 else -wide
    return exp_for_float(-distance) if floating is float else exp_nonpositive(-distance)


cdef inline double sigmoid(floating logit, double tail) noexcept nogil:
    """1 / (1 + e**-logit); tail: `tail_of` the logit."""
    cdef double inverse = inverse_for_float(1.0 + tail) if floating is float else 1.0 / (1.0 + tail)
    return inverse if logit > 0 else tail * inverse


cdef inline double logsigmoid(floating logit, double tail) noexcept nogil:
    """log(sigmoid(logit))."""
    cdef double rest = log1p_of_fraction_for_float(tail) if floating is float else log1p_of_fraction(tail)
    # 0 - x: not -0.
    return 0.0 - rest if logit > 0 else <double> logit - rest


cdef inline double bce_with_logits(
    floating logit, double target, double pos_weight, double tail
) noexcept nogil:
    """(1 - target) * softplus(logit) + pos_weight * target * softplus(-logit); tail: `tail_of` the logit."""
    cdef double wide = logit
    cdef bint positive = wide > 0
    cdef double distance = wide if positive else -wide
    cdef double rest = log1p_of_fraction_for_float(tail) if floating is float else log1p_of_fraction(tail)
    cdef double cost = distance + rest if positive else rest
    cdef double cost_of_negative = rest if positive else distance + rest
    return weighed(1.0 - target, cost) + weighed(pos_weight * target, cost_of_negative)


cdef inline double bce_of_plain_logits(floating logit, double target, double tail) noexcept nogil:
    """bce_with_logits for a pos_weight of 1: the tail's share does not depend on the target."""
    cdef double wide = logit
    cdef bint positive = wide > 0
    cdef double distance = wide if positive else -wide
    cdef double rest = log1p_of_fraction_for_float(tail) if floating is float else log1p_of_fraction(tail)
    return weighed(1.0 - target if positive else target, distance) + rest


cdef inline double slope_of_bce_with_logits(
    floating logit, double target, double pos_weight, double tail
) noexcept nogil:
    """(1 - target) * sigmoid(logit) - pos_weight * target * sigmoid(-logit)."""
    return (1.0 - target) * sigmoid(logit, tail) - pos_weight * target * sigmoid(-logit, tail)


cdef inline double slope_of_plain_logits(floating logit, double target, double tail) noexcept nogil:
    """slope_of_bce_with_logits for a pos_weight of 1."""
    cdef bint positive = logit > 0
    cdef double against = 1.0 - target if positive else target
    cdef double in_favour = target if positive else 1.0 - target
    cdef double inverse = inverse_for_float(1.0 + tail) if floating is float else 1.0 / (1.0 + tail)
    cdef double slope = inverse * multiply_add[double](-in_favour, tail, against)
    return slope if positive else -slope


cdef inline double spread_of(floating logit, double tail) noexcept nogil:
    """sigmoid(logit) * sigmoid(-logit), the derivative of the logistic function."""
    return sigmoid(logit, tail) * sigmoid(-logit, tail)


# ---------------------------------------------------------------------------------------------
# Focal loss of yes-no questions


cdef inline double weight_of_target(double target, double alpha) noexcept nogil:
    """alpha of yes, 1 - alpha of no; 1 if alpha is negative."""
    return alpha * target + (1.0 - alpha) * (1.0 - target) if alpha >= 0 else 1.0


cdef inline double miss_of(floating logit, double target, double tail) noexcept nogil:
    """The probability that is not the target's, 1 - p_t: a sum of products, in which nothing cancels."""
    return (1.0 - target) * sigmoid(logit, tail) + target * sigmoid(-logit, tail)


cdef inline double focal(
    floating logit, double target, double alpha, double gamma, double tail
) noexcept nogil:
    """weight_of_target * (1 - p_t)**gamma * cross-entropy; tail: `tail_of` the logit."""
    cdef double power = power_of(miss_of(logit, target, tail), gamma)
    return weight_of_target(target, alpha) * weighed(power, bce_with_logits(logit, target, 1.0, tail))


cdef inline double slope_of_focal(
    floating logit, double target, double alpha, double gamma, double tail
) noexcept nogil:
    """Its derivative: two terms of one sign where the target is 0 or 1."""
    cdef double miss = miss_of(logit, target, tail)
    cdef double spread = spread_of(logit, tail)
    # The limit, where nothing is missed.
    cdef double ratio = spread / miss if miss > 0 else 1.0
    cdef double loss = bce_with_logits(logit, target, 1.0, tail)
    cdef double slope = slope_of_bce_with_logits(logit, target, 1.0, tail)
    slope += gamma * weighed(ratio * (1.0 - 2.0 * target), loss)
    return weight_of_target(target, alpha) * weighed(power_of(miss, gamma), slope)


cdef inline double curvature_of_focal(
    floating logit, double target, double alpha, double gamma, double tail
) noexcept nogil:
    """The second derivative, of the product of (1 - p_t)**gamma and the cross-entropy.

    With m = 1 - p_t, whose derivative is (1 - 2 * target) * spread:
    m**gamma * (spread + gamma * (2 * m' / m * slope + ((gamma - 1) * (m' / m)**2 + m'' / m) * loss)).
    """
    cdef double miss = miss_of(logit, target, tail)
    cdef double spread = spread_of(logit, tail)
    cdef double ratio = (spread / miss if miss > 0 else 1.0) * (1.0 - 2.0 * target)
    cdef double loss = bce_with_logits(logit, target, 1.0, tail)
    cdef double slope = slope_of_bce_with_logits(logit, target, 1.0, tail)
    cdef double turn = sigmoid(-logit, tail) - sigmoid(logit, tail)
    cdef double curvature = spread + gamma * (
        2.0 * ratio * slope + weighed(ratio * ((gamma - 1.0) * ratio + turn), loss)
    )
    return weight_of_target(target, alpha) * weighed(power_of(miss, gamma), curvature)


# ---------------------------------------------------------------------------------------------
# Binary cross-entropy of probabilities


cdef extern from *:
    # torch's bound, which keeps the slope finite at 0 and 1.
    const double LEAST_VARIANCE "1e-12"


cdef inline double at_least_minus_100(double log) noexcept nogil:
    """A logarithm, at least -100, as in torch."""
    return log if log > -100.0 else -100.0


cdef inline double log_of_ratio(double numerator, double denominator) noexcept nogil:
    """log(numerator / (numerator + denominator))."""
    cdef double odds = denominator / numerator
    # log1p_nonnegative needs a finite argument.
    return -log1p_nonnegative(odds if odds < DBL_MAX else DBL_MAX)


cdef inline double bce(double probability, double target) noexcept nogil:
    """-(1 - target) * log(1 - probability) - target * log(probability), for 0 <= probability <= 1."""
    cdef double opposite = 1.0 - probability
    cdef double log = at_least_minus_100(log_of_ratio(probability, opposite))
    cdef double log_of_opposite = at_least_minus_100(log_of_ratio(opposite, probability))
    # 0 - x: not -0.
    return 0.0 - ((1.0 - target) * log_of_opposite + target * log)


cdef inline floating slope_of_bce(floating probability, floating target) noexcept nogil:
    """(probability - target) / (probability * (1 - probability)), to 1.5 ulp."""
    # 1 - probability is exact where it is the smaller one.
    cdef floating opposite = 1 - probability
    cdef floating smaller = probability if probability < opposite else opposite
    cdef floating variance = multiply_add(-smaller, smaller, smaller)
    cdef floating least = <floating> LEAST_VARIANCE
    return (probability - target) / (variance if variance > least else least)


# ---------------------------------------------------------------------------------------------
# Kullback-Leibler divergence


cdef inline double kl(double log_probability, double target) noexcept nogil:
    """target * (log(target) - log_probability)."""
    return weighed(target, log_nonnegative(target) - log_probability)


cdef inline double exp_of(floating x) noexcept nogil:
    """e**x; 0 and inf where it is in double."""
    cdef double wide = x
    cdef double power
    if floating is float:
        power = exp_for_float(wide if wide < 709.0 else 709.0)
        power = 0.0 if wide < -746.0 else power
        power = INFINITY if wide > 709.782712893384 else power
        return power if wide == wide else wide
    else:
        return exp_clamped(wide)


cdef inline double kl_of_log(floating log_probability, floating log_target) noexcept nogil:
    """e**log_target * (log_target - log_probability)."""
    return weighed(exp_of(log_target), <double> log_target - <double> log_probability)
