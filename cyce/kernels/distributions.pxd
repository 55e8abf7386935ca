"""Divergences of two distributions of a position in double, and their gradients; see distillation.pxd.

Logits, divided by the temperature, and their softmax are in scratch memory. Near the teacher,
log q - log p is a difference of differences of logits, which double holds.
"""
from cython cimport floating
from libc.math cimport INFINITY, NAN, fabs

from cyce.kernels.arrays cimport Operand
from cyce.kernels.comparison cimport FORWARD, JENSEN_SHANNON, REVERSE, Comparison
from cyce.kernels.divergences cimport kl_term
from cyce.kernels.machine cimport multiply_add
from cyce.kernels.math cimport exp_nonpositive, log_for_float, log_nonnegative
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.storage cimport load
from cyce.kernels.sums cimport sum_of_16

cdef enum:
    # Independent sums along the classes, the same for all levels.
    GROUP = 16


cdef struct Side:
    # One of the two at one position; n_classes numbers, filled up to whole groups.
    double* logit                   # divided by the temperature, less the maximum
    double* softmax
    double log_normalizer           # of what is less the maximum


cdef inline Py_ssize_t whole_groups(Py_ssize_t n) noexcept nogil:
    """n, rounded up to a multiple of GROUP."""
    return (n + GROUP - 1) // GROUP * GROUP


# ---------------------------------------------------------------------------------------------
# One side of a position


cdef inline double load_scaled(
    const Operand* source, Py_ssize_t at, Py_ssize_t n, double divisor, const char* mask,
    Py_ssize_t mask_stride, double filling, double* out, floating like,
) noexcept nogil:
    """Load n numbers, divided; returns the largest, NaN being skipped.

    filling: what follows, up to whole groups, and what is where the mask is 0, unless that is NULL.
    """
    cdef floating room[CHUNK]
    cdef const floating* values
    cdef double largest[GROUP]
    cdef double inverse = 1.0 / divisor
    cdef double value
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t group, size, k
    while first < n:
        size = min(<Py_ssize_t> CHUNK, n - first)
        values = load(source, at + first * source.class_stride, source.class_stride, size, room)
        if floating is float and inverse < INFINITY:
            # A rounding of double more.
            for k in range(size):
                out[first + k] = <double> values[k] * inverse
        else:
            for k in range(size):
                out[first + k] = <double> values[k] / divisor
        first += size
    if mask != NULL:
        for k in range(n):
            out[k] = out[k] if mask[k * mask_stride] else filling
    for k in range(n, whole_groups(n)):
        out[k] = filling
    for k in range(GROUP):
        largest[k] = -INFINITY
    for group in range(whole_groups(n) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            value = out[first + k]
            largest[k] = value if value > largest[k] else largest[k]
    value = -INFINITY
    for k in range(GROUP):
        value = largest[k] if largest[k] > value else value
    return value


cdef inline void begin_side(
    const Operand* source, Py_ssize_t at, Py_ssize_t n, double temperature, const char* mask,
    Py_ssize_t mask_stride, Side* side, floating like,
) noexcept nogil:
    """Logits and softmax of one position."""
    cdef double maximum = load_scaled(
        source, at, n, temperature, mask, mask_stride, -INFINITY, side.logit, like
    )
    cdef double total[GROUP]
    cdef double inverse
    cdef Py_ssize_t group, first, k
    for k in range(GROUP):
        total[k] = 0
    # An infinite maximum has no softmax.
    maximum = maximum if maximum - maximum == 0 else NAN
    for group in range(whole_groups(n) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            side.logit[first + k] -= maximum
            side.softmax[first + k] = exp_nonpositive(side.logit[first + k])
            total[k] += side.softmax[first + k]
    total[0] = sum_of_16(total)
    side.log_normalizer = log_nonnegative(total[0])
    inverse = 1.0 / total[0]
    for k in range(whole_groups(n)):
        side.softmax[k] *= inverse


# ---------------------------------------------------------------------------------------------
# One class


cdef inline double distance_of(const Side* side, const Side* other, Py_ssize_t c) noexcept nogil:
    """How much the other's log-probability of a class is above one side's."""
    # Without normalizers: they are known to be equal then, as are -inf and -inf.
    cdef double unlike = other.logit[c] - side.logit[c]
    unlike = 0.0 if other.logit[c] == side.logit[c] else unlike
    return unlike - (other.log_normalizer - side.log_normalizer)


cdef inline double log1p_of(double a, floating like) noexcept nogil:
    """log(1 + a) for a >= -1, as precise as results of a type need; a large negative number for -1."""
    # Rounding may have led below.
    cdef double ratio = 0.0 if a < -1 else 1.0 + a
    if floating is float:
        # NaN stays NaN.
        return log_for_float(ratio, a) + (a - a)
    return log_nonnegative(ratio)


cdef inline double excess_of(double a, floating like) noexcept nogil:
    """H(a) = (1 + a) * log(1 + a) - a, for a >= -1."""
    cdef bint is_near = fabs(a) < 0.03
    cdef double near = a if is_near else 0.0
    # The sum of (-a)**(k - 2) / (k (k - 1)) for k = 2 to 12.
    cdef double p = 1.0 / 132.0
    p = multiply_add[double](p, -near, 1.0 / 110.0)
    p = multiply_add[double](p, -near, 1.0 / 90.0)
    p = multiply_add[double](p, -near, 1.0 / 72.0)
    p = multiply_add[double](p, -near, 1.0 / 56.0)
    p = multiply_add[double](p, -near, 1.0 / 42.0)
    p = multiply_add[double](p, -near, 1.0 / 30.0)
    p = multiply_add[double](p, -near, 1.0 / 20.0)
    p = multiply_add[double](p, -near, 1.0 / 12.0)
    p = multiply_add[double](p, -near, 1.0 / 6.0)
    p = multiply_add[double](p, -near, 0.5)
    # At -1, the logarithm is finite.
    cdef double ratio = 0.0 if a < -1 else 1.0 + a
    return near * near * p if is_near else ratio * log1p_of(a, like) - a


cdef inline double mixed(double p, double q, double beta) noexcept nogil:
    """beta * q + (1 - beta) * p; 1 where that is 0, to divide by."""
    cdef double mixture = beta * q + (1.0 - beta) * p
    return mixture if mixture > 0 else 1.0


cdef inline double js_term(double p, double q, double beta, floating like) noexcept nogil:
    """What a class adds to the divergence from a mixture."""
    cdef double mixture = mixed(p, q, beta)
    cdef double difference = (q - p) / mixture
    return mixture * (
        beta * excess_of((1.0 - beta) * difference, like)
        + (1.0 - beta) * excess_of(-beta * difference, like)
    )


cdef inline double js_slope(double p, double q, double beta, floating like) noexcept nogil:
    """Its derivative by p, but for what is the same for all classes."""
    return (1.0 - beta) * log1p_of(beta * (p - q) / mixed(p, q, beta), like)


# ---------------------------------------------------------------------------------------------
# All classes


cdef inline double compare_sides(
    const Comparison* call, double scale, const Side* student, const Side* teacher, double* gradient,
    floating like,
) noexcept nogil:
    """Divergence of two sides, and the gradient, unless that is NULL; it may be the teacher's logits."""
    cdef double total[GROUP]
    cdef double mean[GROUP]
    # KL(weighing || other)
    cdef const Side* weighing = student if call.formula == REVERSE else teacher
    cdef const Side* other = teacher if call.formula == REVERSE else student
    cdef double beta = call.beta
    cdef double divergence
    cdef Py_ssize_t n_groups = whole_groups(call.n_classes) // GROUP
    cdef Py_ssize_t group, c, k
    for k in range(GROUP):
        total[k] = mean[k] = 0
    # Loops that are vectorised each.
    if call.formula == JENSEN_SHANNON:
        for group in range(n_groups):
            for k in range(GROUP):
                c = group * GROUP + k
                total[k] += js_term(student.softmax[c], teacher.softmax[c], beta, like)
    else:
        for group in range(n_groups):
            for k in range(GROUP):
                c = group * GROUP + k
                total[k] += kl_term(other.softmax[c], weighing.softmax[c], distance_of(other, weighing, c))
    divergence = sum_of_16(total)
    if gradient == NULL:
        return divergence
    if call.formula == FORWARD:
        for c in range(n_groups * GROUP):
            gradient[c] = scale * (student.softmax[c] - teacher.softmax[c])
        return divergence
    if call.formula == REVERSE:
        for c in range(n_groups * GROUP):
            gradient[c] = distance_of(teacher, student, c)
    else:
        for c in range(n_groups * GROUP):
            gradient[c] = js_slope(student.softmax[c], teacher.softmax[c], beta, like)
    # Apart from the sum: of a sum with a condition, GCC 12 takes the lanes of another vector.
    for c in range(n_groups * GROUP):
        gradient[c] = gradient[c] if student.softmax[c] > 0 else 0.0
    for group in range(n_groups):
        for k in range(GROUP):
            c = group * GROUP + k
            mean[k] += student.softmax[c] * gradient[c]
    mean[0] = sum_of_16(mean)
    for c in range(n_groups * GROUP):
        gradient[c] = student.softmax[c] * (gradient[c] - mean[0]) * scale
    return divergence


cdef inline double weigh_numbers(
    const Comparison* call, double scale, const Side* student, double* numbers
) noexcept nogil:
    """Sum of p * g; turns g into the gradient of that."""
    cdef double mean[GROUP]
    cdef Py_ssize_t group, first, c, k
    for k in range(GROUP):
        mean[k] = 0
    for group in range(whole_groups(call.n_classes) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            mean[k] += student.softmax[first + k] * numbers[first + k]
    mean[0] = sum_of_16(mean)
    for c in range(whole_groups(call.n_classes)):
        numbers[c] = scale * student.softmax[c] * (numbers[c] - mean[0])
    return mean[0]
