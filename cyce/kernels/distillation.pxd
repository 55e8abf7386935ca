"""Two distributions of each position, from logits: divergences, and their gradients by one of the two.

With probabilities p of the student and q of the teacher, and d = log q - log p:

    FORWARD         KL(q || p) = sum of p - q + q * d, terms that are never negative (divergences.pxd)
                    gradient   p - q
    REVERSE         KL(p || q) = sum of q - p - p * d
    JENSEN_SHANNON  beta * KL(q || m) + (1 - beta) * KL(p || m),  m = beta * q + (1 - beta) * p
                    = sum of m * (beta * H(q / m - 1) + (1 - beta) * H(p / m - 1)),
                    H(a) = (1 + a) * log(1 + a) - a
    PRODUCT         sum of p * g, with any numbers g in place of the teacher's logits

The gradient of all but the first is p * (f - sum of p * f), where f is log p - log q,
(1 - beta) * log(p / m), or g. A thread has the scaled logits of a position and their softmax in scratch
memory, so that both sets are read once; in double, since near the teacher d is a difference of differences.

Of float logits, the first two are computed in float (`compare_floats`), in a quarter of the time. That needs
no normalizers, whose errors would count near the teacher: with u = (t - s) / T, the difference of the logits,
and v = u - sum of q * u,

    KL(q || p) = log(sum of q * e**-v) = log1p(G),  G = sum of q * g(v),  g(v) = e**-v - 1 + v >= 0
    p - q = q * (e**-v - 1 - G) / (1 + G)

What rounding t - s loses is carried along. The reverse divergence is the same with both sides exchanged; its
gradient is p * (v - sum of p * v).
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN, exp, fabs, fabsf, log1p
from libc.string cimport memcpy

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.divergences cimport kl_term
from cyce.kernels.machine cimport cyce_enter, cyce_environment, cyce_leave, multiply_add
from cyce.kernels.math cimport exp_nonpositive, log_nonnegative
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.reference cimport refer_to, unit_at
from cyce.kernels.scratch cimport CACHE_LINE
from cyce.kernels.storage cimport is_native, load, store_one
from cyce.kernels.sums cimport LANES, finite_or_zero, whole_lanes
from cyce.kernels.transforms cimport divide
from cyce.kernels.two_passes cimport exponentials_of, max_of
from cyce.threads.team cimport Progress, begin_progress, note_progress, report_progress

cdef extern from *:
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # Independent sums along the classes, the same for all levels.
    GROUP = 16
    # Numbers that a thread takes at a time, at least.
    AT_ONCE = 16384


cdef enum Formula:
    FORWARD
    REVERSE
    JENSEN_SHANNON
    PRODUCT


cdef struct Comparison:
    # What one call computes. Pointers that do not apply are NULL, as is `grad.start`.
    Formula formula
    Py_ssize_t n_positions
    Py_ssize_t n_classes
    Operand student
    Operand teacher
    Operand class_mask              # of PRODUCT; see call.pxd
    Operand grad
    double temperature
    double beta
    const char* counts              # (n_positions,): whether a position counts; 0 is what the others get
    const double* scale             # (n_positions,): factor of the gradient
    double* value_out               # (n_positions,)


cdef struct Side:
    # One of the two at one position; n_classes numbers, filled up to whole groups.
    double* logit                   # divided by the temperature, less the maximum
    double* softmax
    double log_normalizer           # of what is less the maximum


cdef inline Py_ssize_t whole_groups(Py_ssize_t n) noexcept nogil:
    """n, rounded up to a multiple of GROUP."""
    return (n + GROUP - 1) // GROUP * GROUP


cdef inline double sum_of_group(double* lane) noexcept nogil:
    """Sum of GROUP numbers."""
    cdef Py_ssize_t k
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


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
    cdef double value
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t group, size, k
    while first < n:
        size = min(<Py_ssize_t> CHUNK, n - first)
        values = load(source, at + first * source.class_stride, source.class_stride, size, room)
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
    total[0] = sum_of_group(total)
    side.log_normalizer = log_nonnegative(total[0])
    inverse = 1.0 / total[0]
    for k in range(whole_groups(n)):
        side.softmax[k] *= inverse


# ---------------------------------------------------------------------------------------------
# One class


cdef inline double distance_of(const Side* student, const Side* teacher, Py_ssize_t c) noexcept nogil:
    """log q - log p of a class; 0 where neither has it."""
    # Without normalizers: they are known to be equal then, as are -inf and -inf.
    cdef double unlike = teacher.logit[c] - student.logit[c]
    unlike = 0.0 if teacher.logit[c] == student.logit[c] else unlike
    return unlike - (teacher.log_normalizer - student.log_normalizer)


cdef inline double excess_of(double a) noexcept nogil:
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
    # Rounding may have led below.
    cdef double ratio = 1.0 + a if a > -1 else 0.0
    return near * near * p if is_near else ratio * log_nonnegative(ratio) - a


cdef inline double mixed(double p, double q, double beta) noexcept nogil:
    """beta * q + (1 - beta) * p; 1 where that is 0, to divide by."""
    cdef double mixture = beta * q + (1.0 - beta) * p
    return mixture if mixture > 0 else 1.0


cdef inline double js_term(double p, double q, double beta) noexcept nogil:
    """What a class adds to the divergence from a mixture."""
    cdef double mixture = mixed(p, q, beta)
    cdef double difference = (q - p) / mixture
    return mixture * (
        beta * excess_of((1.0 - beta) * difference) + (1.0 - beta) * excess_of(-beta * difference)
    )


cdef inline double js_slope(double p, double q, double beta) noexcept nogil:
    """Its derivative by p, but for what is the same for all classes."""
    return (1.0 - beta) * log_nonnegative(1.0 + beta * (p - q) / mixed(p, q, beta))


# ---------------------------------------------------------------------------------------------
# Floats


cdef struct FloatSide:
    # One of the two at one position, filled up to whole lanes.
    const float* logit
    float* exponential              # relative to the maximum, times a factor that is the same for all classes
    float maximum


cdef struct Weighted:
    # Sums over the classes.
    double total                    # of the weights
    double first                    # of these, times differences
    double second                   # of these, times g(v)


cdef inline void begin_float_side(
    const Operand* source, Py_ssize_t at, Py_ssize_t n, float* room, float* exponential, FloatSide* side
) noexcept nogil:
    """Logits of one position: where they lie, or in `room`; and their maximum."""
    cdef float last[LANES]
    cdef Py_ssize_t n_whole = n // LANES * LANES
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t size, k
    side.exponential = exponential
    side.logit = <const float*> source.start + at
    if source.class_stride != 1 or not is_native[float](source.format, 0):
        side.logit = room
        while first < n:
            size = min(<Py_ssize_t> CHUNK, n - first)
            load[float](
                source, at + first * source.class_stride, source.class_stride, size, room + first
            )
            first += size
    for k in range(LANES):
        last[k] = side.logit[n_whole + k] if n_whole + k < n else -INFINITY
    side.maximum = max(max_of(<const float*> last, LANES), max_of(side.logit, n_whole))


cdef inline const float* whole_chunk(const float* values, Py_ssize_t n, float* room) noexcept nogil:
    """n values, filled up by -inf to whole lanes: where they lie, or in `room`."""
    cdef Py_ssize_t k
    if n == whole_lanes(n):
        return values
    memcpy(room, values, n * sizeof(float))
    for k in range(n, whole_lanes(n)):
        room[k] = -INFINITY
    return room


cdef inline void exponentials_of_chunk(
    const FloatSide* side, Py_ssize_t first, Py_ssize_t n, float temperature
) noexcept nogil:
    """Exponentials of n classes from number `first` on, filled up by 0."""
    cdef float room[CHUNK]
    cdef float divided[CHUNK]
    cdef float top, shift, exponent_shift, lowest
    cdef Py_ssize_t k
    cdef const float* logits = whole_chunk(side.logit + first, n, room)
    top = side.maximum
    if temperature != 1:
        # Less the maximum, which is exact for most: quotients are rounded at their own size.
        for k in range(whole_lanes(n)):
            divided[k] = logits[k] - side.maximum
        divide(<const float*> divided, whole_lanes(n), temperature, <float*> divided)
        logits = divided
        top = 0
    refer_to(top, &shift, &exponent_shift, &lowest)
    exponentials_of(logits, whole_lanes(n), shift, exponent_shift, lowest, side.exponential + first)


cdef inline double unit_of_side(const FloatSide* side, float temperature) noexcept nogil:
    """What exponentials of a side, without headroom, are multiplied by to be relative to its maximum."""
    return unit_at[float](side.maximum if temperature == 1 else <float> 0)


cdef inline double sum_of_floats(const float* lane) noexcept nogil:
    """Sum of LANES floats."""
    cdef double total = 0
    cdef Py_ssize_t k
    for k in range(LANES):
        total += lane[k]
    return total


cdef inline void weigh_differences(
    const FloatSide* weighing, const FloatSide* other, Py_ssize_t n, float temperature, Weighted* sums
) noexcept nogil:
    """Exponentials of both sides; sums of the first one's, and of these times the differences of the logits.

    Differences, without temperature, are less that of the maxima.
    """
    cdef float offset = weighing.maximum - other.maximum
    cdef float total[LANES]
    cdef float first_sum[LANES]
    cdef float room[CHUNK]
    cdef float other_room[CHUNK]
    cdef const float* logits
    cdef const float* others
    cdef const float* weights
    cdef float weighted[CHUNK]
    cdef float difference
    cdef Py_ssize_t chunk, first, size, group, k
    sums.total = sums.first = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        size = min(<Py_ssize_t> CHUNK, n - first)
        exponentials_of_chunk(weighing, first, size, temperature)
        exponentials_of_chunk(other, first, size, temperature)
        logits = whole_chunk(weighing.logit + first, size, room)
        others = whole_chunk(other.logit + first, size, other_room)
        weights = weighing.exponential + first
        for k in range(whole_lanes(size)):
            difference = (logits[k] - others[k]) - offset
            weighted[k] = weights[k] * difference
            weighted[k] = weighted[k] if weights[k] > 0 else <float> 0
        for k in range(LANES):
            total[k] = first_sum[k] = 0
        for group in range(whole_lanes(size) // LANES):
            for k in range(LANES):
                total[k] += weights[group * LANES + k]
                first_sum[k] += weighted[group * LANES + k]
        sums.total += sum_of_floats(total)
        sums.first += sum_of_floats(first_sum)


cdef inline float excess_factor(float v) noexcept nogil:
    """g(v) / v**2 = (e**-v - 1 + v) / v**2 for abs(v) <= 1: Taylor's sum, to 5e-8.

    `expm1_factor` is for up to ln(2) / 2. From there to 1, what is left of the exponentials would have some
    hundred times their relative errors.
    """
    cdef float p = <float> (1.0 / 3628800.0)
    p = multiply_add[float](p, -v, <float> (1.0 / 362880.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 40320.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 5040.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 720.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 120.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 24.0))
    p = multiply_add[float](p, -v, <float> (1.0 / 6.0))
    return multiply_add[float](p, -v, <float> 0.5)


cdef inline void compare_weighted(
    const FloatSide* weighing, const FloatSide* other, Py_ssize_t n, float temperature, double mean,
    double ratio, bint reverse, float* parts_out, Weighted* sums,
) noexcept nogil:
    """Sums of weight * v and of weight * g(v), and what the gradient is made of, unless that is NULL.

    mean: of the differences, without temperature. ratio: what the other's exponentials are multiplied by to
    be weight * e**-v. parts_out: weight * (e**-v - 1) or, of the reverse divergence, weight * v.
    """
    cdef float mean_high = <float> mean
    cdef float mean_low = <float> (mean - mean_high)
    cdef float inverse = <float> (1.0 / temperature)
    cdef float factor = <float> ratio
    cdef float first_sum[LANES]
    cdef float second_sum[LANES]
    cdef float room[CHUNK]
    cdef float other_room[CHUNK]
    cdef const float* logits
    cdef const float* others
    cdef const float* weights
    cdef const float* other_weights
    cdef float v[CHUNK]
    cdef float weighted[CHUNK]
    cdef float excess[CHUNK]
    cdef float high, minus, low, near, far
    cdef Py_ssize_t chunk, first, size, whole, group, k
    sums.first = sums.second = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        size = min(<Py_ssize_t> CHUNK, n - first)
        whole = whole_lanes(size)
        logits = whole_chunk(weighing.logit + first, size, room)
        others = whole_chunk(other.logit + first, size, other_room)
        weights = weighing.exponential + first
        other_weights = other.exponential + first
        # Loops that are vectorised each.
        for k in range(whole):
            # What rounding the difference loses (Knuth's TwoSum).
            high = logits[k] - others[k]
            minus = high - logits[k]
            low = (logits[k] - (high - minus)) - (others[k] + minus)
            v[k] = ((high - mean_high) + (finite_or_zero(low) - mean_low)) * inverse
        for k in range(whole):
            # Both are computed, and a class without weight has neither.
            near = weights[k] * (v[k] * v[k] * excess_factor(v[k]))
            weighted[k] = weights[k] * v[k]
            weighted[k] = weighted[k] if weights[k] > 0 else <float> 0
            far = (other_weights[k] * factor - weights[k]) + weighted[k]
            excess[k] = near if fabsf(v[k]) < 1 else far
        for k in range(LANES):
            first_sum[k] = second_sum[k] = 0
        for group in range(whole // LANES):
            for k in range(LANES):
                first_sum[k] += weighted[group * LANES + k]
                second_sum[k] += excess[group * LANES + k]
        if parts_out != NULL and reverse:
            memcpy(parts_out + first, weighted, whole * sizeof(float))
        elif parts_out != NULL:
            for k in range(whole):
                parts_out[first + k] = excess[k] - weighted[k]
        sums.first += sum_of_floats(first_sum)
        sums.second += sum_of_floats(second_sum)


cdef inline bint compare_floats(
    const Comparison* call, double scale, Py_ssize_t student_at, Py_ssize_t teacher_at, float* scratch,
    double* value_out, float** gradient_out,
) noexcept nogil:
    """Divergence of one position, in float, and its gradient; returns False where it is out of range.

    gradient_out becomes the gradient, in scratch memory, of which there are five numbers per class.
    """
    cdef Py_ssize_t n = call.n_classes
    cdef Py_ssize_t size = whole_lanes(n)
    cdef bint reverse = call.formula == REVERSE
    cdef bint has_gradient = call.grad.start != NULL
    cdef float temperature = <float> call.temperature
    cdef FloatSide student
    cdef FloatSide teacher
    cdef FloatSide* weighing = &student if reverse else &teacher
    cdef FloatSide* other = &teacher if reverse else &student
    cdef Weighted sums
    cdef double mean, exponent, excess, shift, factor
    cdef float* parts = scratch + 4 * size
    cdef float own, common
    cdef Py_ssize_t c
    begin_float_side(&call.student, student_at, n, scratch, scratch + 2 * size, &student)
    begin_float_side(&call.teacher, teacher_at, n, scratch + size, scratch + 3 * size, &teacher)
    if not (student.maximum - student.maximum == 0 and teacher.maximum - teacher.maximum == 0):
        return False
    weigh_differences(weighing, other, n, temperature, &sums)
    mean = sums.first / sums.total + (<double> weighing.maximum - other.maximum)
    exponent = ((<double> other.maximum - weighing.maximum) + mean) / call.temperature
    # Negated: NaN.
    if not fabs(exponent) < 60:
        return False
    compare_weighted(
        weighing, other, n, temperature, mean,
        exp(exponent) * unit_of_side(other, temperature) / unit_of_side(weighing, temperature), reverse,
        parts if has_gradient else <float*> NULL, &sums,
    )
    shift = sums.first / sums.total
    excess = sums.second / sums.total - shift
    value_out[0] = log1p(excess) + shift
    if not value_out[0] - value_out[0] == 0:
        return False
    if not has_gradient:
        return True
    factor = scale / sums.total
    if not reverse:
        factor /= 1.0 + excess
    common = <float> (shift if reverse else excess)
    own = <float> factor
    for c in range(n):
        parts[c] = (parts[c] - common * weighing.exponential[c]) * own
    gradient_out[0] = parts
    return True


# ---------------------------------------------------------------------------------------------
# One position


ctypedef fused computed:
    float
    double


cdef inline void store_gradient(
    const Comparison* call, Py_ssize_t at, const computed* gradient, floating like
) noexcept nogil:
    """Round and write the gradient of a position."""
    cdef floating* native = <floating*> call.grad.start + at
    cdef Py_ssize_t stride = call.grad.class_stride
    cdef Py_ssize_t c
    if stride == 1 and is_native(call.grad.format, like):
        for c in range(call.n_classes):
            native[c] = <floating> gradient[c]
        return
    for c in range(call.n_classes):
        store_one(<floating> gradient[c], &call.grad, at + c * stride)


cdef inline double compare_sides(
    const Comparison* call, double scale, const Side* student, const Side* teacher, double* gradient
) noexcept nogil:
    """Divergence of two sides, and the gradient, unless that is NULL; it may be the teacher's logits."""
    cdef double total[GROUP]
    cdef double mean[GROUP]
    cdef double beta = call.beta
    cdef double divergence
    cdef Py_ssize_t n_groups = whole_groups(call.n_classes) // GROUP
    cdef Py_ssize_t group, c, k
    for k in range(GROUP):
        total[k] = mean[k] = 0
    # Loops that are vectorised each.
    if call.formula == FORWARD:
        for group in range(n_groups):
            for k in range(GROUP):
                c = group * GROUP + k
                total[k] += kl_term(
                    student.softmax[c], teacher.softmax[c], distance_of(student, teacher, c)
                )
    elif call.formula == REVERSE:
        for group in range(n_groups):
            for k in range(GROUP):
                c = group * GROUP + k
                total[k] += kl_term(
                    teacher.softmax[c], student.softmax[c], -distance_of(student, teacher, c)
                )
    else:
        for group in range(n_groups):
            for k in range(GROUP):
                c = group * GROUP + k
                total[k] += js_term(student.softmax[c], teacher.softmax[c], beta)
    divergence = sum_of_group(total)
    if gradient == NULL:
        return divergence
    if call.formula == FORWARD:
        for c in range(n_groups * GROUP):
            gradient[c] = scale * (student.softmax[c] - teacher.softmax[c])
        return divergence
    if call.formula == REVERSE:
        for c in range(n_groups * GROUP):
            gradient[c] = -distance_of(student, teacher, c)
    else:
        for c in range(n_groups * GROUP):
            gradient[c] = js_slope(student.softmax[c], teacher.softmax[c], beta)
    # Apart from the sum: of a sum with a condition, GCC 12 takes the lanes of another vector.
    for c in range(n_groups * GROUP):
        gradient[c] = gradient[c] if student.softmax[c] > 0 else 0.0
    for group in range(n_groups):
        for k in range(GROUP):
            c = group * GROUP + k
            mean[k] += student.softmax[c] * gradient[c]
    mean[0] = sum_of_group(mean)
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
    mean[0] = sum_of_group(mean)
    for c in range(whole_groups(call.n_classes)):
        numbers[c] = scale * student.softmax[c] * (numbers[c] - mean[0])
    return mean[0]


cdef inline void compare_position(
    const Comparison* call, Py_ssize_t position, Py_ssize_t student_at, Py_ssize_t teacher_at,
    Py_ssize_t grad_at, double* scratch, floating like,
) noexcept nogil:
    """One position."""
    cdef Py_ssize_t n = call.n_classes
    cdef Py_ssize_t size = whole_groups(n)
    cdef double scale = call.scale[position] if call.scale != NULL else 1.0
    cdef bint has_gradient = call.grad.start != NULL
    cdef bint counts = call.counts == NULL or call.counts[position]
    cdef float* float_gradient = NULL
    cdef Side student
    cdef Side teacher
    cdef const char* mask = NULL
    cdef Py_ssize_t mask_at
    cdef double value = 0
    cdef Py_ssize_t c
    if floating is float and counts and (call.formula == FORWARD or call.formula == REVERSE):
        if compare_floats(
            call, scale, student_at, teacher_at, <float*> scratch, &value, &float_gradient
        ):
            if call.value_out != NULL:
                call.value_out[position] = value
            if has_gradient:
                store_gradient(call, grad_at, <const float*> float_gradient, like)
            return
        value = 0
    if call.class_mask.start != NULL:
        offsets_of(&call.class_mask.positions, position, 1, &mask_at)
        mask = call.class_mask.start + mask_at
    student.logit = scratch
    student.softmax = scratch + size
    teacher.logit = scratch + 2 * size
    teacher.softmax = scratch + 3 * size
    if not counts:
        # Whatever its logits.
        for c in range(size):
            teacher.logit[c] = 0
    else:
        begin_side(
            &call.student, student_at, n, call.temperature, mask, call.class_mask.class_stride, &student, like
        )
        if call.formula == PRODUCT:
            load_scaled(
                &call.teacher, teacher_at, n, 1.0, mask, call.class_mask.class_stride, 0, teacher.logit, like
            )
            value = weigh_numbers(call, scale, &student, teacher.logit)
        else:
            begin_side(&call.teacher, teacher_at, n, call.temperature, NULL, 0, &teacher, like)
            value = compare_sides(call, scale, &student, &teacher, teacher.logit if has_gradient else NULL)
            if student.log_normalizer != student.log_normalizer:
                value = NAN
    if call.value_out != NULL:
        call.value_out[position] = value
    if has_gradient:
        store_gradient(call, grad_at, <const double*> teacher.logit, like)


# ---------------------------------------------------------------------------------------------
# All positions


cdef inline void compare_some(
    const Comparison* call, Py_ssize_t first, Py_ssize_t end, double* scratch, floating like
) noexcept nogil:
    """Some positions, in the thread that took them."""
    cdef Py_ssize_t student_at, teacher_at
    cdef Py_ssize_t grad_at = 0
    cdef Py_ssize_t position
    cdef cyce_environment found
    cyce_enter(&found)
    for position in range(first, end):
        offsets_of(&call.student.positions, position, 1, &student_at)
        offsets_of(&call.teacher.positions, position, 1, &teacher_at)
        if call.grad.start != NULL:
            offsets_of(&call.grad.positions, position, 1, &grad_at)
        compare_position(call, position, student_at, teacher_at, grad_at, scratch, like)
    cyce_leave(&found)


cdef inline int compare_logits(const Comparison* call, int n_threads, floating like) except -1 nogil:
    """All positions."""
    cdef Py_ssize_t at_once = max(<Py_ssize_t> 1, AT_ONCE // call.n_classes)
    cdef Py_ssize_t n_shares = (call.n_positions + at_once - 1) // at_once
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n_shares)
    cdef size_t size = <size_t> (4 * whole_lanes(call.n_classes)) * sizeof(double) + CACHE_LINE
    cdef char* memory = NULL
    cdef char* scratch
    cdef Progress progress
    cdef Py_ssize_t share
    # The bytes for 2**60 broadcast classes are more than can be counted.
    if call.n_classes < PY_SSIZE_T_MAX // 64 // n_workers:
        memory = <char*> PyMem_RawMalloc(CACHE_LINE + n_workers * size)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the scratch space of the divergence")
    scratch = memory + (CACHE_LINE - <size_t> memory % CACHE_LINE)
    begin_progress(&progress)
    for share in prange(n_shares, num_threads=n_workers, schedule="dynamic"):
        compare_some[floating](
            call, share * at_once, min((share + 1) * at_once, call.n_positions),
            <double*> (scratch + threadid() * size), 0
        )
        note_progress(&progress, threadid(), True)
    report_progress(&progress, n_workers, n_shares)
    PyMem_RawFree(memory)
    return 0
