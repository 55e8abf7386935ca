"""The highest classes of each position, of equal ones the first; NaN is higher than all, as in torch."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from cyce.kernels.arrays cimport offsets_of
from cyce.kernels.call cimport Call
from cyce.kernels.machine cimport cyce_enter, cyce_environment, cyce_leave
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.storage cimport load
from cyce.kernels.transforms cimport has_mask
from cyce.threads.team cimport Progress, begin_progress, note_progress, report_progress


cdef struct Highest:
    const Call* call                # logits and mask alone
    Py_ssize_t k
    int64_t* classes                # (n_positions, k)


cdef inline bint any_above(const floating* values, Py_ssize_t n, floating limit) noexcept nogil:
    """Whether one of n values is above a limit, or NaN."""
    cdef int n_above = 0
    cdef Py_ssize_t k
    for k in range(n):
        n_above += not values[k] <= limit
    return n_above > 0


cdef inline bint is_above(floating value, floating other) noexcept nogil:
    """Whether a value ranks before another, of a class with a lower number."""
    return value > other or (value != value and other == other)


cdef inline void find_highest(
    const Highest* request, Py_ssize_t position, floating* top, floating like
) noexcept nogil:
    """The highest classes of one position; top: room for k logits."""
    cdef const Call* call = request.call
    cdef Py_ssize_t stride = call.logits.class_stride
    cdef int64_t* classes = request.classes + position * request.k
    cdef const char* mask = NULL
    cdef floating room[CHUNK]
    cdef const floating* values
    cdef floating value
    cdef Py_ssize_t at, mask_at, chunk, first, size, c, place
    cdef Py_ssize_t n = 0
    offsets_of(&call.logits.positions, position, 1, &at)
    if has_mask(call):
        offsets_of(&call.class_mask.positions, position, 1, &mask_at)
        mask = call.class_mask.start + mask_at
    for chunk in range((call.n_classes + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        size = min(<Py_ssize_t> CHUNK, call.n_classes - first)
        values = load(&call.logits, at + first * stride, stride, size, room)
        if n == request.k and not any_above(values, size, top[n - 1]):
            continue
        for c in range(size):
            value = values[c]
            if mask != NULL and not mask[(first + c) * call.class_mask.class_stride]:
                value = -INFINITY
            if n == request.k and not is_above(value, top[n - 1]):
                continue
            n = min(n + 1, request.k)
            place = n - 1
            while place > 0 and is_above(value, top[place - 1]):
                top[place] = top[place - 1]
                classes[place] = classes[place - 1]
                place -= 1
            top[place] = value
            classes[place] = first + c


cdef inline void find_highest_apart(
    const Highest* request, Py_ssize_t position, floating* top, floating like
) noexcept nogil:
    """`find_highest` in another thread, which has its own floating point environment."""
    cdef cyce_environment found
    cyce_enter(&found)
    find_highest(request, position, top, like)
    cyce_leave(&found)


cdef inline int find_all_highest(const Highest* request, int n_threads, floating like) except -1 nogil:
    """The highest classes of all positions."""
    cdef Py_ssize_t n = request.call.n_positions
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n)
    cdef floating* top = <floating*> PyMem_RawMalloc(n_workers * request.k * sizeof(floating))
    cdef Progress progress
    cdef Py_ssize_t position
    if top == NULL:
        with gil:
            raise MemoryError("no memory for the highest logits")
    begin_progress(&progress)
    for position in prange(n, num_threads=n_workers, schedule="static"):
        find_highest_apart[floating](request, position, top + threadid() * request.k, 0)
        note_progress(&progress, threadid(), True)
    report_progress(&progress, n_workers, n)
    PyMem_RawFree(top)
    return 0
