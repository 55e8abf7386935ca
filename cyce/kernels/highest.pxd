"""The highest classes of each position, of equal ones the first; NaN is higher than all, as in torch."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from cyce.kernels.arrays cimport offsets_of
from cyce.kernels.call cimport Call
from cyce.kernels.machine cimport CACHE_LINE, cyce_enter, cyce_environment, cyce_leave
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.storage cimport load
from cyce.kernels.transforms cimport has_mask
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, count_turns, next_turn

cdef enum:
    # Logits that are worth a turn.
    AT_ONCE = 16384


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


cdef inline bint comes_first(
    floating value, int64_t number, floating other, int64_t other_number
) noexcept nogil:
    """Whether a class ranks before another one."""
    cdef bint is_above = value > other or (value != value and other == other)
    cdef bint is_equal = value == other or (value != value and other != other)
    return is_above or (is_equal and number < other_number)


cdef inline void sift_down(floating* top, int64_t* classes, Py_ssize_t n, Py_ssize_t place) noexcept nogil:
    """Let an entry of a heap of n sink to its place; the first is the one that ranks last."""
    cdef floating value = top[place]
    cdef int64_t number = classes[place]
    cdef Py_ssize_t child = 2 * place + 1
    while child < n:
        if child + 1 < n and comes_first(top[child], classes[child], top[child + 1], classes[child + 1]):
            child += 1
        if not comes_first(value, number, top[child], classes[child]):
            break
        top[place] = top[child]
        classes[place] = classes[child]
        place = child
        child = 2 * place + 1
    top[place] = value
    classes[place] = number


cdef inline void find_highest(
    const Highest* request, Py_ssize_t position, floating* top, floating like
) noexcept nogil:
    """The highest classes of one position; top: room for k logits.

    They are in a heap, whose first entry is the next to go.
    """
    cdef const Call* call = request.call
    cdef Py_ssize_t stride = call.logits.class_stride
    cdef Py_ssize_t k = request.k
    cdef int64_t* classes = request.classes + position * k
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
        if n == k and not any_above(values, size, top[0]):
            continue
        for c in range(size):
            value = values[c]
            if mask != NULL and not mask[(first + c) * call.class_mask.class_stride]:
                value = -INFINITY
            if n < k:
                top[n] = value
                classes[n] = first + c
                n += 1
                if n == k:
                    for place in range(k // 2 - 1, -1, -1):
                        sift_down(top, classes, k, place)
            elif comes_first(value, first + c, top[0], classes[0]):
                top[0] = value
                classes[0] = first + c
                sift_down(top, classes, k, 0)
    # The last one goes to the end, and so on.
    while n > 1:
        n -= 1
        value = top[n]
        c = classes[n]
        top[n] = top[0]
        classes[n] = classes[0]
        top[0] = value
        classes[0] = c
        sift_down(top, classes, n, 0)


cdef inline void find_some_highest(
    const Highest* request, Turns* turns, int worker, floating* top, floating like
) noexcept nogil:
    """The positions that one thread takes."""
    cdef cyce_environment found
    cdef Py_ssize_t position, first, end
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        for position in range(first, end):
            find_highest(request, position, top, like)
    cyce_leave(&found)


cdef inline int find_all_highest(const Highest* request, int n_threads, floating like) except -1 nogil:
    """The highest classes of all positions."""
    cdef Py_ssize_t n_positions = request.call.n_positions
    cdef Py_ssize_t n_at_once = max(<Py_ssize_t> 1, AT_ONCE // request.call.n_classes)
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, count_turns(n_positions, n_at_once))
    # A line between what threads write to.
    cdef size_t size = request.k * sizeof(floating) + CACHE_LINE
    cdef char* memory = <char*> PyMem_RawMalloc(n_workers * size)
    cdef Turns turns
    cdef int worker
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the highest logits")
    begin_turns(&turns, n_workers, n_positions, n_at_once)
    if n_workers > 1:
        for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
            find_some_highest[floating](request, &turns, worker, <floating*> (memory + worker * size), 0)
        end_turns(&turns)
    else:
        find_some_highest[floating](request, &turns, 0, <floating*> memory, 0)
    PyMem_RawFree(memory)
    return 0
