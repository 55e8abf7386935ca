"""How many threads a call gets, for the kernels."""
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
    """
    # Seconds since some time, of a clock that nobody sets.
    double cyce_wall() noexcept


cdef struct Team:
    int n_threads                   # that the call may use, including the caller
    bint is_counted                 # whether these are counted, and to be released
    bint alone                      # whether no other thread called since this one last did


cdef enum:
    # Threads of a loop whose progress is noted: one of them may have no CPU.
    N_CLOCKS = 2


cdef struct Clock:
    # What one thread does of a loop whose parts go to whichever thread is free.
    double noted                    # when its progress was last noted
    double computed                 # seconds from the first to the last note, without those without a CPU
    Py_ssize_t n_notes
    Py_ssize_t n_parts              # in these seconds
    Py_ssize_t n_new_parts          # since the last note
    double unused[3]                # up to a cache line


cdef struct Progress:
    double began
    Clock clocks[N_CLOCKS]


cdef inline void begin_progress(Progress* progress) noexcept nogil:
    """Call before the loop, and `report_progress` after it."""
    memset(progress, 0, sizeof(Progress))
    progress.began = cyce_wall()


cdef inline void note_progress(Progress* progress, int thread, bint is_last_for_now) noexcept nogil:
    """Call after each part; is_last_for_now: whether the thread may have to wait for another one."""
    cdef Clock* clock
    cdef double now, gap, usual
    if thread >= N_CLOCKS:
        return
    clock = &progress.clocks[thread]
    clock.n_new_parts += 1
    if not is_last_for_now:
        return
    now = cyce_wall()
    # Its first parts include its start.
    if clock.n_notes > 0:
        gap = now - clock.noted
        usual = clock.computed / max(<Py_ssize_t> 1, clock.n_notes - 1)
        clock.computed += usual if clock.n_notes > 1 and gap > max(1e-3, 8 * usual) else gap
        clock.n_parts += clock.n_new_parts
    clock.noted = now
    clock.n_notes += 1
    clock.n_new_parts = 0


cdef void acquire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil
cdef void release(Team* team) noexcept nogil
cdef void report_progress(const Progress* progress, int n_threads, Py_ssize_t n_parts) noexcept nogil
