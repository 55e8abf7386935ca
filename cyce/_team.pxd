"""How many threads a call gets, for the kernels."""


cdef struct Team:
    int n_threads                   # that the call may use, itself included
    bint hired                      # whether these are counted, and to be dismissed
    bint alone                      # whether no other thread called since this one last did


cdef void hire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil
cdef void dismiss(Team* team) noexcept nogil
