"""Kullback-Leibler divergences of two distributions of a position in float, and their gradients.

They need no normalizers, whose errors would count near the teacher. With u = (t - s) / T, the difference of
the logits, and v = u - sum of q * u,

    KL(q || p) = log(sum of q * e**-v) = log1p(G),  G = sum of q * g(v),  g(v) = e**-v - 1 + v >= 0
    p - q = q * (e**-v - 1 - G) / (1 + G)

What rounding t - s loses is carried along. The reverse divergence is the same with both sides exchanged; its
gradient is p * (v - sum of p * v).
"""
from libc.math cimport INFINITY, exp, fabs, fabsf, log1p
from libc.string cimport memcpy

from cyce.kernels.arrays cimport Operand
from cyce.kernels.comparison cimport REVERSE, Comparison
from cyce.kernels.machine cimport multiply_add
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.reference cimport refer_to, unit_at
from cyce.kernels.storage cimport is_native, load
from cyce.kernels.sums cimport LANES, finite_or_zero, whole_lanes
from cyce.kernels.transforms cimport divide
from cyce.kernels.two_passes cimport exponentials_of, max_of


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
