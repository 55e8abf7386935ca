"""The opening and the closing of a call: buffers, threads, the floating point environment.

Every entry point opens a scope, takes its arrays and threads through it, and closes it in a `finally`:

    cdef CallScope scope
    open_scope(&scope)
    try:
        view = take_view(array, flags, &scope)
        n_threads = take_threads(num_threads, n_shares, &scope)
        ...
    finally:
        close_scope(&scope)
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer

from cyce.kernels.arrays cimport Operand
from cyce.kernels.machine cimport cyce_enter, cyce_environment, cyce_leave
from cyce.threads.team cimport Team, acquire, release

cdef enum:
    MAX_VIEWS = 24


cdef struct CallScope:
    Py_buffer views[MAX_VIEWS]
    # Where a call has them; most do not, and have no such records to clear.
    Operand class_mask
    Operand hessian
    Operand vector
    int n_views
    Team team
    cyce_environment found


cdef inline void open_scope(CallScope* scope) noexcept:
    """Enter the kernels' floating point environment."""
    scope.n_views = 0
    scope.team.is_counted = False
    cyce_enter(&scope.found)


cdef inline Py_buffer* take_view(object array, int flags, CallScope* scope) except NULL:
    """Get an array's buffer, with its format."""
    cdef Py_buffer* view = &scope.views[scope.n_views]
    PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT)
    scope.n_views += 1
    return view


cdef inline int take_threads(int budget, Py_ssize_t n_shares, CallScope* scope) noexcept:
    """Acquire threads: at most `budget`, and one for each share of the work; returns their number."""
    acquire(&scope.team, budget, n_shares)
    return scope.team.n_threads


cdef inline void close_scope(CallScope* scope) noexcept:
    """Release everything that was taken."""
    cdef int i
    if scope.team.is_counted:
        with nogil:
            release(&scope.team)
    cyce_leave(&scope.found)
    for i in range(scope.n_views):
        PyBuffer_Release(&scope.views[i])
