"""How many threads a call gets: one budget for all calls of the process, whatever thread they come from.

* Calls that run at once share the budget: all together they start fewer threads than that.
* libgomp keeps a pool of idle threads for every thread that called, until that one ends. Here one pool is
  kept: of a thread, the keeper, that calls again and again while no other does. Other pools are ended with
  their calls. That takes some 40 us, so that only calls that are long beside it start threads.
* Threads that are kept count as in use, unless their keeper has not called for a while: then another thread
  may become the keeper. One former keeper at most is left with its idle pool, until it calls again or ends.
* A pool does not survive a fork: the child would wait for ever for threads that only its parent has.
  So the forking thread's pool is ended before a fork, whoever started it, for libgomp may be another
  library's, too. The child of a process whose calls had used threads computes serially all the same: it
  is seldom the only one.

A module of its own, because all levels count together.
"""
from cpython.pythread cimport (
    WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from * nogil:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define CYCE_OPENMP 1
    #else
    #define CYCE_OPENMP 0
    #define omp_get_max_threads() 1
    #define omp_get_num_procs() 1
    #define omp_get_level() 0
    #endif

    #ifdef _WIN32
    #define cyce_at_fork(before, in_parent, in_child) 0
    #else
    #include <pthread.h>
    #define cyce_at_fork pthread_atfork
    #endif

    #if CYCE_OPENMP && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
    #define CYCE_LIBGOMP 1
    #else
    #define CYCE_LIBGOMP 0
    #endif

    #if CYCE_LIBGOMP
    #include <time.h>
    #define cyce_end_pool() (omp_pause_resource_all(omp_pause_soft) == 0)
    /* A mark on a thread, NULL on most; `on_exit` is called with it when a thread ends that bears one. */
    static pthread_key_t cyce_key;
    #define cyce_create_mark(on_exit) pthread_key_create(&cyce_key, on_exit)
    #define cyce_set_mark(mark) pthread_setspecific(cyce_key, mark)
    #define cyce_mark() pthread_getspecific(cyce_key)
    static double cyce_now(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double) now.tv_sec + 1e-9 * (double) now.tv_nsec;
    }
    #else
    /* Other runtimes have one pool for all threads, and take care of forks themselves. */
    #define cyce_end_pool() 1
    #define cyce_create_mark(on_exit) ((void) (on_exit), 0)
    #define cyce_set_mark(mark) 0
    #define cyce_mark() NULL
    #define cyce_now() 0.0
    #endif
    """
    const bint CYCE_OPENMP
    const bint CYCE_LIBGOMP
    int omp_get_max_threads()
    int omp_get_num_procs()
    int omp_get_level()
    int cyce_at_fork(void (*before)() noexcept nogil, void (*in_parent)() noexcept nogil,
                     void (*in_child)() noexcept nogil)
    bint cyce_end_pool()
    int cyce_create_mark(void (*on_exit)(void*) noexcept nogil)
    int cyce_set_mark(const void* mark)
    void* cyce_mark()
    double cyce_now()

cdef enum:
    # Shares of the work per thread of a call whose pool is not kept: twice what that costs.
    SHARES_IF_ENDED = 16

# Seconds after which a keeper that did not call no longer counts.
cdef double DORMANT = 0.1

HAS_OPENMP = bool(CYCE_OPENMP)

# What all threads of the process count together, under the lock.
cdef PyThread_type_lock lock = PyThread_allocate_lock()
cdef int n_calls = 0                # that are running, of those that are worth several threads
cdef int n_in_use = 0               # threads of these calls, their own included, and those that are kept
cdef int n_kept = 0                 # threads in the keeper's pool
cdef char MARKS[2]                  # their addresses mark the keeper and the former keeper
cdef int mark_of_keeper = 0         # which of them
cdef int mark_of_former = 1
cdef bint has_keeper = False
cdef bint has_former_keeper = False
cdef bint keeper_calls = False      # whether it is in a call
cdef double keeper_called = 0       # when its last call ended
cdef unsigned long last_caller = 0
cdef bint used_threads = False
cdef bint serial = False            # whether this is the child of a process that had used threads
cdef bint pool_is_left = False      # whether the forking thread's pool could not be ended
cdef int openmp_threads = omp_get_num_procs()


cdef inline int limited(int budget) noexcept nogil:
    """The budget, within what OpenMP's own limit for this thread has been lowered to."""
    cdef int now
    # In another library's parallel region there would be no more threads.
    if serial or not CYCE_OPENMP or omp_get_level() > 0:
        return 1
    now = omp_get_max_threads()
    return min(budget, now) if now < openmp_threads else budget


cdef void hire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil:
    """Find threads for a call: at most `budget`, and one for each share of the work."""
    global n_calls, n_in_use, n_kept, keeper_calls, last_caller, used_threads
    global has_former_keeper, mark_of_former
    cdef unsigned long caller
    cdef bint is_keeper, is_dormant
    cdef int n
    team.n_threads = 1
    team.hired = False
    if budget <= 1 or n_shares <= 1:
        return
    budget = limited(budget)
    if budget <= 1:
        return
    caller = PyThread_get_thread_ident()
    PyThread_acquire_lock(lock, WAIT_LOCK)
    is_keeper = bears_mark_of_keeper()
    team.alone = last_caller == caller or last_caller == 0
    last_caller = caller
    n_calls += 1
    is_dormant = has_keeper and not keeper_calls and cyce_now() - keeper_called > DORMANT
    if is_dormant and not is_keeper and team.alone and not has_former_keeper:
        forget_keeper()
        has_former_keeper = True
        mark_of_former = mark_of_keeper
        is_dormant = False
    n = budget - n_in_use
    if is_keeper or is_dormant:
        n += n_kept
    n = <int> min(<Py_ssize_t> min(n, budget // max(1, n_calls)), n_shares)
    if CYCE_LIBGOMP and not is_keeper and (has_keeper or not team.alone):
        n = <int> min(<Py_ssize_t> n, n_shares // SHARES_IF_ENDED)
    n = max(1, n)
    if is_keeper:
        keeper_calls = True
        n_in_use += 1
        if n > 1:
            # libgomp ends those that a smaller team leaves out.
            n_in_use += n - 1 - n_kept
            n_kept = n - 1
    else:
        n_in_use += n
    used_threads = used_threads or n > 1
    PyThread_release_lock(lock)
    team.n_threads = n
    team.hired = True


cdef void dismiss(Team* team) noexcept nogil:
    """Let the threads of a call go."""
    global n_calls, n_in_use, n_kept, has_keeper, keeper_calls, keeper_called, mark_of_keeper
    cdef bint is_keeper
    cdef bint keeps = False
    if not team.hired:
        return
    team.hired = False
    PyThread_acquire_lock(lock, WAIT_LOCK)
    is_keeper = bears_mark_of_keeper()
    if CYCE_LIBGOMP and team.alone and last_caller == PyThread_get_thread_ident():
        keeps = is_keeper or (team.n_threads > 1 and not has_keeper)
    if keeps:
        if not is_keeper:
            forget_mark(cyce_mark())
            mark_of_keeper = 1 - mark_of_former
            cyce_set_mark(&MARKS[mark_of_keeper])
            has_keeper = True
            n_kept = team.n_threads - 1
        keeper_calls = False
        keeper_called = cyce_now()
        n_in_use -= 1
        n_calls -= 1
    PyThread_release_lock(lock)
    if keeps:
        return
    if team.n_threads > 1 or cyce_mark() != NULL:
        cyce_end_pool()
    PyThread_acquire_lock(lock, WAIT_LOCK)
    # What the keeper has kept is no longer in use either.
    n_in_use -= 1 if is_keeper else team.n_threads
    n_calls -= 1
    forget_mark(cyce_mark())
    cyce_set_mark(NULL)
    PyThread_release_lock(lock)


# Under the lock:


cdef inline bint bears_mark_of_keeper() noexcept nogil:
    """Whether this thread is the keeper, not a former one."""
    return has_keeper and cyce_mark() == &MARKS[mark_of_keeper]


cdef void forget_keeper() noexcept nogil:
    """Count without the keeper."""
    global n_in_use, n_kept, has_keeper, keeper_calls
    n_in_use -= n_kept
    n_kept = 0
    has_keeper = False
    keeper_calls = False


cdef void forget_mark(const void* mark) noexcept nogil:
    """Count without the pool of the thread that bears, or bore, a mark."""
    global has_former_keeper
    if mark == NULL:
        return
    if has_keeper and mark == &MARKS[mark_of_keeper]:
        forget_keeper()
    else:
        has_former_keeper = False


cdef void when_marked_thread_ends(void* mark) noexcept nogil:
    """Let another thread keep its pool."""
    PyThread_acquire_lock(lock, WAIT_LOCK)
    forget_mark(mark)
    PyThread_release_lock(lock)


cdef void before_fork() noexcept nogil:
    """End this thread's pool, and have no other thread change what the child will find."""
    global pool_is_left
    cdef bint is_left = not cyce_end_pool()
    PyThread_acquire_lock(lock, WAIT_LOCK)
    pool_is_left = is_left


cdef void after_fork_in_parent() noexcept nogil:
    """Count without the pool that was ended."""
    if not pool_is_left:
        forget_mark(cyce_mark())
        cyce_set_mark(NULL)
    PyThread_release_lock(lock)


cdef void after_fork_in_child() noexcept nogil:
    """Forget the threads that only the parent has."""
    global n_calls, n_in_use, has_former_keeper, last_caller, serial
    forget_keeper()
    has_former_keeper = False
    cyce_set_mark(NULL)
    n_calls = 0
    n_in_use = 0
    last_caller = 0
    serial = serial or used_threads or pool_is_left
    PyThread_release_lock(lock)


def occupy(int budget, Py_ssize_t n_shares):
    """Count a call that starts Python threads of its own, and return how many it may use, itself included.

    As `hire`, without OpenMP's pools and its limit; what was counted is to be given to `vacate`.
    """
    global n_calls, n_in_use
    cdef int n = budget
    PyThread_acquire_lock(lock, WAIT_LOCK)
    n_calls += 1
    n = min(n - n_in_use + (0 if keeper_calls else n_kept), n // n_calls)
    n = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> n, n_shares))
    n_in_use += n
    PyThread_release_lock(lock)
    return n


def vacate(int n):
    """Count without a call and its n threads."""
    global n_calls, n_in_use
    PyThread_acquire_lock(lock, WAIT_LOCK)
    # Of a call that was running when this process was forked, nothing is counted.
    if n_calls > 0:
        n_calls -= 1
        n_in_use -= n
    PyThread_release_lock(lock)


def threads_within(int budget):
    """Threads that a call from this thread may use of a budget, when it is the only one."""
    return limited(budget)


def forked_after_use():
    """Whether this process is serial because its parent had used threads before the fork."""
    return serial


def set_openmp_default(n=None):
    """Set below which number OpenMP's own counts: n, or what it is for this thread now."""
    global openmp_threads
    openmp_threads = omp_get_max_threads() if n is None else n


if lock == NULL:
    raise MemoryError("no memory for a lock")
if (
    cyce_create_mark(when_marked_thread_ends)
    or cyce_at_fork(before_fork, after_fork_in_parent, after_fork_in_child)
):
    raise OSError("this system refuses to tell when threads end, or processes fork")
