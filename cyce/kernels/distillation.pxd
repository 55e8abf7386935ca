"""Two distributions of each position, from logits: divergences, and their gradients by one of the two.

A thread has the scaled logits of a position and their softmax in scratch memory, in double: both sets are read
once. With probabilities p of the student and q of the teacher, and d = log q - log p:

    FORWARD         KL(q || p) = sum of p - q + q * d, terms that are never negative (divergences.pxd)
                    gradient   p - q
    REVERSE         KL(p || q) = sum of q - p - p * d
    JENSEN_SHANNON  beta * KL(q || m) + (1 - beta) * KL(p || m),  m = beta * q + (1 - beta) * p
                    = sum of m * (beta * H(q / m - 1) + (1 - beta) * H(p / m - 1)),
                    H(a) = (1 + a) * log(1 + a) - a
    PRODUCT         sum of p * g, with any numbers g in place of the teacher's logits

The gradient of all but the first is p * (f - sum of p * f), where f is log p - log q, (1 - beta) * log(p / m),
or g. All of it is in double: near the teacher, d is a difference of differences of logits.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.divergences cimport kl_term
from cyce.kernels.machine cimport cyce_enter, cyce_environment, cyce_leave, multiply_add
from cyce.kernels.math cimport exp_nonpositive, log_nonnegative
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.scratch cimport CACHE_LINE
from cyce.kernels.storage cimport is_native, load, store_one
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
    Py_ssize_t mask_stride, double* out, floating like,
) noexcept nogil:
    """Load n numbers, divided; returns the largest, NaN being skipped. Filled up by -inf.

    mask: where it is 0, the number is -inf; or NULL.
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
            out[k] = out[k] if mask[k * mask_stride] else -INFINITY
    for k in range(n, whole_groups(n)):
        out[k] = -INFINITY
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
    cdef double maximum = load_scaled(source, at, n, temperature, mask, mask_stride, side.logit, like)
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
    cdef double distance = (teacher.logit[c] - student.logit[c]) - (
        teacher.log_normalizer - student.log_normalizer
    )
    return 0.0 if teacher.logit[c] == student.logit[c] == -INFINITY else distance


cdef inline double excess_of(double a) noexcept nogil:
    """H(a) = (1 + a) * log(1 + a) - a, for a >= -1."""
    cdef bint is_near = -0.03 < a < 0.03
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
    return near * near * p if is_near else (1.0 + a) * log_nonnegative(1.0 + a) - a


cdef inline double term_of(const Comparison* call, double p, double q, double distance) noexcept nogil:
    """What a class adds to the divergence."""
    cdef double mixture, above, below
    if call.formula == FORWARD:
        return kl_term(p, q, distance)
    if call.formula == REVERSE:
        return kl_term(q, p, -distance)
    mixture = call.beta * q + (1.0 - call.beta) * p
    above = (1.0 - call.beta) * (q - p) / mixture if mixture > 0 else 0.0
    below = call.beta * (p - q) / mixture if mixture > 0 else 0.0
    return mixture * (call.beta * excess_of(above) + (1.0 - call.beta) * excess_of(below))


cdef inline double slope_of(const Comparison* call, double p, double q, double distance) noexcept nogil:
    """f of a class: the derivative of the divergence by p, but for what is the same for all classes."""
    cdef double mixture
    if call.formula == REVERSE:
        return -distance
    mixture = call.beta * q + (1.0 - call.beta) * p
    return (1.0 - call.beta) * log_nonnegative(1.0 + call.beta * (p - q) / mixture if mixture > 0 else 1.0)


# ---------------------------------------------------------------------------------------------
# One position


cdef inline void store_gradient(
    const Comparison* call, Py_ssize_t at, const double* gradient, floating like
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
    cdef double p, q, distance, slope
    cdef Py_ssize_t n = call.n_classes
    cdef Py_ssize_t group, first, c, k
    for k in range(GROUP):
        total[k] = mean[k] = 0
    for group in range(whole_groups(n) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            c = first + k
            total[k] += term_of(
                call, student.softmax[c], teacher.softmax[c], distance_of(student, teacher, c)
            )
    if gradient == NULL:
        return sum_of_group(total)
    if call.formula == FORWARD:
        for c in range(whole_groups(n)):
            gradient[c] = scale * (student.softmax[c] - teacher.softmax[c])
        return sum_of_group(total)
    for group in range(whole_groups(n) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            p = student.softmax[first + k]
            q = teacher.softmax[first + k]
            slope = slope_of(call, p, q, distance_of(student, teacher, first + k))
            gradient[first + k] = slope
            mean[k] += 0.0 if p == 0 else p * slope
    mean[0] = sum_of_group(mean)
    for c in range(whole_groups(n)):
        p = student.softmax[c]
        gradient[c] = 0.0 if p == 0 else scale * p * (gradient[c] - mean[0])
    return sum_of_group(total)


cdef inline double weigh_numbers(
    const Comparison* call, double scale, const Side* student, double* numbers
) noexcept nogil:
    """Sum of p * g; turns g into the gradient of that."""
    cdef double mean[GROUP]
    cdef double p
    cdef Py_ssize_t group, first, c, k
    for k in range(GROUP):
        mean[k] = 0
    for group in range(whole_groups(call.n_classes) // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            p = student.softmax[first + k]
            mean[k] += 0.0 if p == 0 else p * numbers[first + k]
    mean[0] = sum_of_group(mean)
    for c in range(whole_groups(call.n_classes)):
        p = student.softmax[c]
        numbers[c] = 0.0 if p == 0 else scale * p * (numbers[c] - mean[0])
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
    cdef Side student
    cdef Side teacher
    cdef const char* mask = NULL
    cdef Py_ssize_t mask_at
    cdef double value = 0
    cdef Py_ssize_t c
    if call.class_mask.start != NULL:
        offsets_of(&call.class_mask.positions, position, 1, &mask_at)
        mask = call.class_mask.start + mask_at
    student.logit = scratch
    student.softmax = scratch + size
    teacher.logit = scratch + 2 * size
    teacher.softmax = scratch + 3 * size
    if call.counts != NULL and not call.counts[position]:
        # Whatever its logits.
        for c in range(size):
            teacher.logit[c] = 0
    else:
        begin_side(
            &call.student, student_at, n, call.temperature, mask, call.class_mask.class_stride, &student, like
        )
        if call.formula == PRODUCT:
            load_scaled(&call.teacher, teacher_at, n, 1.0, NULL, 0, teacher.logit, like)
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
    cdef size_t size = <size_t> (4 * whole_groups(call.n_classes)) * sizeof(double) + CACHE_LINE
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
