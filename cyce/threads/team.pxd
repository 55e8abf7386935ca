"""How many threads a call gets, for the kernels."""
from cyce.threads.turns cimport Turns


cdef struct Team:
    int n_threads                   # that the call may use, including the caller
    bint is_counted                 # whether these are counted, and to be released
    bint alone                      # whether no other thread called since this one last did


cdef void acquire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil
cdef void release(Team* team) noexcept nogil
cdef void end_turns(const Turns* turns) noexcept nogil
