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
(1 - beta) * log(p / m), or g. All of this is in double (distributions.pxd). Of float logits, the first two
are computed in float, from differences of logits (logit_differences.pxd), in a quarter of the time.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport NAN

from cyce.kernels.arrays cimport offsets_of
from cyce.kernels.comparison cimport FORWARD, PRODUCT, REVERSE, Comparison
from cyce.kernels.distributions cimport (
    Side, begin_side, compare_sides, load_scaled, weigh_numbers, whole_groups,
)
from cyce.kernels.logit_differences cimport compare_floats
from cyce.kernels.machine cimport CACHE_LINE, cyce_enter, cyce_environment, cyce_leave, whole_line
from cyce.kernels.storage cimport is_native, store_one
from cyce.kernels.sums cimport whole_lanes
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, count_turns, next_turn

cdef extern from *:
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # Numbers that a thread takes at a time, at least.
    AT_ONCE = 16384


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
    cdef Py_ssize_t mask_stride = 0
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
    if call.class_mask != NULL:
        offsets_of(&call.class_mask.positions, position, 1, &mask_at)
        mask = call.class_mask.start + mask_at
        mask_stride = call.class_mask.class_stride
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
            &call.student, student_at, n, call.temperature, mask, mask_stride, &student, like
        )
        if call.formula == PRODUCT:
            load_scaled(
                &call.teacher, teacher_at, n, 1.0, mask, mask_stride, 0, teacher.logit, like
            )
            value = weigh_numbers(call, scale, &student, teacher.logit)
        else:
            begin_side(&call.teacher, teacher_at, n, call.temperature, NULL, 0, &teacher, like)
            value = compare_sides(
                call, scale, &student, &teacher, teacher.logit if has_gradient else <double*> NULL, like
            )
            if student.log_normalizer != student.log_normalizer:
                value = NAN
    if call.value_out != NULL:
        call.value_out[position] = value
    if has_gradient:
        store_gradient(call, grad_at, <const double*> teacher.logit, like)


# ---------------------------------------------------------------------------------------------
# All positions


cdef inline void compare_some(
    const Comparison* call, Turns* turns, int worker, double* scratch, floating like
) noexcept nogil:
    """The positions that one thread takes."""
    cdef Py_ssize_t student_at, teacher_at
    cdef Py_ssize_t grad_at = 0
    cdef Py_ssize_t position, first, end
    cdef cyce_environment found
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        for position in range(first, end):
            offsets_of(&call.student.positions, position, 1, &student_at)
            offsets_of(&call.teacher.positions, position, 1, &teacher_at)
            if call.grad.start != NULL:
                offsets_of(&call.grad.positions, position, 1, &grad_at)
            compare_position(call, position, student_at, teacher_at, grad_at, scratch, like)
    cyce_leave(&found)


cdef inline int compare_logits(const Comparison* call, int n_threads, floating like) except -1 nogil:
    """All positions."""
    cdef Py_ssize_t n_at_once = max(<Py_ssize_t> 1, AT_ONCE // call.n_classes)
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, count_turns(call.n_positions, n_at_once))
    cdef size_t size = <size_t> (4 * whole_lanes(call.n_classes)) * sizeof(double) + CACHE_LINE
    cdef char* memory = NULL
    cdef char* scratch
    cdef Turns turns
    cdef int worker
    # The bytes for 2**60 broadcast classes are more than can be counted.
    if call.n_classes < PY_SSIZE_T_MAX // 64 // n_workers:
        memory = <char*> PyMem_RawMalloc(CACHE_LINE + n_workers * size)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the scratch space of the divergence")
    scratch = whole_line(memory)
    begin_turns(&turns, n_workers, call.n_positions, n_at_once)
    # Also for one thread: its code would be there twice.
    for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
        compare_some[floating](call, &turns, worker, <double*> (scratch + worker * size), 0)
    end_turns(&turns)
    PyMem_RawFree(memory)
    return 0
