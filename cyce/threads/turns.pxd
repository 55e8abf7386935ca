"""Which thread takes which turn of a loop; a turn is some items that follow one another.

Each thread has an equal part of the turns, one after the other, and takes these first: what it, or another
library's thread beside it, read or wrote before is near it. Then it takes what others have left, because a
thread may have no CPU for a while, and CPUs may be of several kinds.

Within the loop over threads, each computes

    while next_turn(turns, thread, &first, &end):
        for item in range(first, end):
            ...
"""
from libc.string cimport memset

cdef extern from * nogil:
    """
    #if !defined(_WIN32)
    #include <time.h>
    static inline double cyce_wall(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double) now.tv_sec + 1e-9 * (double) now.tv_nsec;
    }
    #elif defined(_OPENMP)
    #include <omp.h>
    #define cyce_wall() omp_get_wtime()
    #else
    #define cyce_wall() 0.0
    #endif

    #if defined(__GNUC__) || defined(__clang__)
    #define cyce_load_relaxed(number) __atomic_load_n(number, __ATOMIC_RELAXED)
    #define cyce_count_relaxed(number) __atomic_fetch_add(number, 1, __ATOMIC_RELAXED)
    #elif defined(_WIN64)
    #include <intrin.h>
    #define cyce_load_relaxed(number) (*(const volatile Py_ssize_t *) (number))
    #define cyce_count_relaxed(number) _InterlockedExchangeAdd64(number, 1)
    #else
    #include <intrin.h>
    #define cyce_load_relaxed(number) (*(const volatile Py_ssize_t *) (number))
    #define cyce_count_relaxed(number) _InterlockedExchangeAdd((volatile long *) (number), 1)
    #endif
    """
    # Seconds since some time, of a clock that nobody sets.
    double cyce_wall() noexcept
    # A number that several threads count up; the second returns what it was before.
    Py_ssize_t cyce_load_relaxed(const Py_ssize_t* number) noexcept
    Py_ssize_t cyce_count_relaxed(Py_ssize_t* number) noexcept


cdef enum:
    # Parts of the turns; of more threads, some share one.
    MAX_PARTS = 64
    # Threads whose progress is noted: one of them may have no CPU.
    N_NOTED = 2


cdef struct Part:
    # The turns of one thread, and how it gets on.
    Py_ssize_t next                 # the first turn that nobody has taken
    Py_ssize_t end
    double noted                    # when the thread took its last turn, whosever
    Py_ssize_t n_taken              # items of that turn
    double computed                 # seconds from its first turn to its last, without those without a CPU
    Py_ssize_t n_computed           # items in these seconds
    char unused[80]                 # so that no two parts are in one cache line, nor in neighbouring ones


cdef struct Turns:
    Part parts[MAX_PARTS]
    double began
    int n_threads
    int n_parts
    Py_ssize_t n_items
    Py_ssize_t n_at_once            # items of a turn; the last one may have fewer


cdef inline Py_ssize_t count_turns(Py_ssize_t n_items, Py_ssize_t n_at_once) noexcept nogil:
    """How many turns some items are."""
    return (n_items + n_at_once - 1) // n_at_once


cdef inline void begin_turns(
    Turns* turns, int n_threads, Py_ssize_t n_items, Py_ssize_t n_at_once
) noexcept nogil:
    """Call before the loop, and `end_turns` after it; n_threads: 0 where there are no items."""
    cdef Py_ssize_t n_turns = count_turns(n_items, n_at_once)
    cdef Py_ssize_t share, more
    cdef Py_ssize_t first = 0
    cdef int part
    turns.n_threads = n_threads
    turns.n_items = n_items
    turns.n_at_once = n_at_once
    turns.n_parts = max(1, min(n_threads, MAX_PARTS))
    share = n_turns // turns.n_parts
    more = n_turns % turns.n_parts
    for part in range(turns.n_parts):
        memset(&turns.parts[part], 0, sizeof(Part))
        turns.parts[part].next = first
        first += share + (part < more)
        turns.parts[part].end = first
    if n_threads > 1:
        turns.began = cyce_wall()


cdef inline void note_turn(Part* own) noexcept nogil:
    """A thread is about to take a turn, and has ended the one before."""
    cdef double now = cyce_wall()
    cdef double gap = now - own.noted
    cdef double usual
    if own.n_taken > 0:
        usual = own.n_taken * own.computed / max(<Py_ssize_t> 1, own.n_computed)
        own.computed += usual if own.n_computed > 0 and gap > max(1e-3, 8 * usual) else gap
        own.n_computed += own.n_taken
    own.noted = now


cdef inline bint next_turn(Turns* turns, int thread, Py_ssize_t* first, Py_ssize_t* end) noexcept nogil:
    """Take a turn, the items from first[0] to end[0]; returns whether one was left."""
    cdef bint is_noted = turns.n_threads > 1 and thread < N_NOTED
    cdef Part* part
    cdef Py_ssize_t turn
    cdef int k
    if is_noted:
        note_turn(&turns.parts[thread])
    for k in range(turns.n_parts):
        part = &turns.parts[(thread + k) % turns.n_parts]
        if cyce_load_relaxed(&part.next) < part.end:
            turn = cyce_count_relaxed(&part.next)
            if turn < part.end:
                first[0] = turn * turns.n_at_once
                end[0] = min(turns.n_items, first[0] + turns.n_at_once)
                if is_noted:
                    turns.parts[thread].n_taken = end[0] - first[0]
                return True
    return False
