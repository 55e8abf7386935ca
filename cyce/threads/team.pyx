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
* libgomp ends the process where the system refuses a thread. So threads are tried before they are needed
  (`prove`), and a call does without those that are not to be had.

A module of its own, because all levels count together.
"""
import _thread

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock, PyThread_type_lock,
)

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)

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

    /* OpenMP has places since version 4.5, and Microsoft's compiler an older one. */
    #if !defined(_OPENMP) || _OPENMP < 201511
    #define omp_get_num_places() 0
    #define omp_get_place_num_procs(place) 0
    #define omp_get_place_proc_ids(place, ids) ((void) (ids))
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

    /* Where a thread, or memory for it, is not to be had, libgomp ends the process. So before it is to start
       threads, they are started here once, all at a time, with as much stack. */
    #include <ctype.h>
    #include <errno.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    typedef struct { pthread_t thread; pid_t number; pthread_mutex_t *until; } cyce_trial;

    static void *cyce_try(void *argument)
    {
        cyce_trial *trial = (cyce_trial *) argument;
    #ifdef SYS_gettid
        trial->number = (pid_t) syscall(SYS_gettid);
    #endif
        pthread_mutex_lock(trial->until);
        pthread_mutex_unlock(trial->until);
        return NULL;
    }

    /* The stack that the environment asks for, in bytes: a number and B, K, M or G; 0 where it does not. */
    static size_t cyce_stack_size(void)
    {
        const char *text = getenv("OMP_STACKSIZE");
        char *end;
        unsigned long long size;
        int shift = 10;
        if (text == NULL)
            text = getenv("GOMP_STACKSIZE");
        if (text == NULL)
            return 0;
        errno = 0;
        size = strtoull(text, &end, 10);
        if (errno || end == text)
            return 0;
        while (isspace((unsigned char) *end))
            end++;
        switch (tolower((unsigned char) *end)) {
            case 'b': shift = 0; end++; break;
            case 'k': shift = 10; end++; break;
            case 'm': shift = 20; end++; break;
            case 'g': shift = 30; end++; break;
        }
        while (isspace((unsigned char) *end))
            end++;
        if (*end != '\\0')
            return 0;
        return size > ((size_t) -1 >> shift) ? (size_t) -1 : (size_t) size << shift;
    }

    static const unsigned long long CYCE_UNLIMITED = (unsigned long long) -1;
    static unsigned long long cyce_limit_of(int resource)
    {
        struct rlimit limit;
        if (getrlimit(resource, &limit) || limit.rlim_cur == RLIM_INFINITY)
            return CYCE_UNLIMITED;
        return (unsigned long long) limit.rlim_cur;
    }
    #ifdef RLIMIT_NPROC
    #define cyce_limit_of_threads() cyce_limit_of(RLIMIT_NPROC)
    #else
    #define cyce_limit_of_threads() CYCE_UNLIMITED
    #endif
    #define cyce_limit_of_memory() cyce_limit_of(RLIMIT_AS)

    /* How many of n threads can be had at once. */
    static int cyce_threads_to_be_had(int n, size_t stack_size)
    {
        pthread_mutex_t until = PTHREAD_MUTEX_INITIALIZER;
        /* Beside the threads, what libgomp needs for its team: some hundred bytes each. */
        const size_t n_bytes = 65536 + (size_t) n * 4096;
        cyce_trial *trials = (cyce_trial *) malloc((size_t) n * sizeof(cyce_trial));
        void *room;
        pthread_attr_t attributes;
        sigset_t all, found;
        int n_started = 0, k, turn;
        if (trials == NULL || pthread_attr_init(&attributes)) {
            free(trials);
            return 0;
        }
        if (stack_size > 0)
            (void) pthread_attr_setstacksize(&attributes, stack_size);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &found);
        pthread_mutex_lock(&until);
        while (n_started < n) {
            trials[n_started].number = 0;
            trials[n_started].until = &until;
            if (pthread_create(&trials[n_started].thread, &attributes, cyce_try, &trials[n_started]))
                break;
            n_started++;
        }
        room = malloc(n_bytes);
        pthread_mutex_unlock(&until);
        pthread_sigmask(SIG_SETMASK, &found, NULL);
        for (k = 0; k < n_started; k++)
            pthread_join(trials[k].thread, NULL);
    #ifdef SYS_tgkill
        /* A thread that was joined still counts until the system has cleared it away. */
        for (k = 0; k < n_started; k++)
            for (turn = 0; turn < 10000; turn++) {
                if (syscall(SYS_tgkill, getpid(), trials[k].number, 0) != 0)
                    break;
                sched_yield();
            }
    #endif
        if (room == NULL)
            n_started = 0;
        free(room);
        free(trials);
        pthread_attr_destroy(&attributes);
        return n_started;
    }
    #else
    /* Other runtimes have one pool for all threads, and take care of forks themselves. */
    #define cyce_end_pool() 1
    #define cyce_create_mark(on_exit) ((void) (on_exit), 0)
    #define cyce_set_mark(mark) 0
    #define cyce_mark() NULL
    #define cyce_now() 0.0
    #define cyce_stack_size() 0
    #define CYCE_UNLIMITED 0ULL
    #define cyce_limit_of_threads() CYCE_UNLIMITED
    #define cyce_limit_of_memory() CYCE_UNLIMITED
    /* Nor do they end the process where a thread is not to be had. */
    #define cyce_threads_to_be_had(n, stack_size) (n)
    #endif
    """
    const bint CYCE_OPENMP
    const bint CYCE_LIBGOMP
    int omp_get_max_threads()
    int omp_get_num_procs()
    int omp_get_level()
    int omp_get_num_places()
    int omp_get_place_num_procs(int place)
    void omp_get_place_proc_ids(int place, int* ids)
    int cyce_at_fork(void (*before)() noexcept nogil, void (*in_parent)() noexcept nogil,
                     void (*in_child)() noexcept nogil)
    bint cyce_end_pool()
    int cyce_create_mark(void (*on_exit)(void*) noexcept nogil)
    int cyce_set_mark(const void* mark)
    void* cyce_mark()
    double cyce_now()
    size_t cyce_stack_size()
    const unsigned long long CYCE_UNLIMITED
    unsigned long long cyce_limit_of_threads()
    unsigned long long cyce_limit_of_memory()
    int cyce_threads_to_be_had(int n, size_t stack_size)

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
cdef size_t stack_size = cyce_stack_size()
cdef int n_proven = 0               # the largest n_in_use for which threads were to be had
cdef unsigned long long proven_limit = 0    # of threads, at that time


cdef inline int limited(int budget) noexcept nogil:
    """The budget, within what OpenMP's own limit for this thread has been lowered to."""
    cdef int now
    # In another library's parallel region there would be no more threads.
    if serial or not CYCE_OPENMP or omp_get_level() > 0:
        return 1
    now = omp_get_max_threads()
    return min(budget, now) if now < openmp_threads else budget


cdef void acquire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil:
    """Find threads for a call: at most `budget`, and one for each share of the work."""
    global n_calls, n_in_use, n_kept, keeper_calls, last_caller, used_threads
    global has_former_keeper, mark_of_former
    cdef unsigned long caller
    cdef bint is_keeper, is_dormant
    cdef int n, n_new
    team.n_threads = 1
    team.is_counted = False
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
    # Of a former keeper's pool it is not known how large that is.
    n_new = n - 1 - (n_kept if is_keeper else 0)
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
    team.is_counted = True
    if n_new > 0:
        prove(team, n_new)


cdef void prove(Team* team, int n_new) noexcept nogil:
    """See whether as many new threads are to be had; do without those that are not.

    That takes as long as starting a pool does, so that it is done for the first and for each larger team
    alone, unless limits have changed or are such that other allocations count.
    """
    global n_in_use, n_kept, n_proven, proven_limit
    cdef unsigned long long limit = cyce_limit_of_threads()
    cdef int n_missing, n
    cdef bint is_proven
    PyThread_acquire_lock(lock, WAIT_LOCK)
    n = n_in_use
    is_proven = n <= n_proven and limit == proven_limit and cyce_limit_of_memory() == CYCE_UNLIMITED
    PyThread_release_lock(lock)
    if is_proven:
        return
    n_missing = n_new - cyce_threads_to_be_had(n_new, stack_size)
    PyThread_acquire_lock(lock, WAIT_LOCK)
    if n_missing > 0:
        team.n_threads -= n_missing
        n_in_use -= n_missing
        if bears_mark_of_keeper():
            n_kept -= n_missing
    else:
        n_proven = n if limit != proven_limit else max(n, n_proven)
        proven_limit = limit
    PyThread_release_lock(lock)


cdef void release(Team* team) noexcept nogil:
    """Let the threads of a call go."""
    global n_calls, n_in_use, n_kept, has_keeper, keeper_calls, keeper_called, mark_of_keeper
    cdef bint is_keeper
    cdef bint keeps = False
    if not team.is_counted:
        return
    team.is_counted = False
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

    As `acquire`, without OpenMP's pools and its limit; what was counted is to be given to `vacate`.
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


def set_openmp_default(int n):
    """Set below which number OpenMP's own counts: what it is where nobody has lowered it."""
    global openmp_threads
    openmp_threads = n


def cpus_of_places():
    """CPUs that OpenMP binds its threads to, as a set; empty where it does not."""
    cdef int n_cpus, place, cpu
    cdef int* numbers
    cpus = set()
    for place in range(omp_get_num_places()):
        n_cpus = omp_get_place_num_procs(place)
        numbers = <int*> PyMem_Malloc(max(1, n_cpus) * sizeof(int))
        if numbers == NULL:
            raise MemoryError("no memory for the numbers of the CPUs")
        omp_get_place_proc_ids(place, numbers)
        cpus.update([numbers[cpu] for cpu in range(n_cpus)])
        PyMem_Free(numbers)
    return cpus


def start_thread(function):
    """Start a thread that calls a function; whether one could be had.

    In C, so that no handler of a signal runs meanwhile, whose exception might be taken for the thread's.
    """
    try:
        _thread.start_new_thread(function, ())
    except (RuntimeError, MemoryError):
        return False
    return True


cdef class Handover:
    """Work that a thread hands over to another: one of them does it, and the first can wait for its end."""

    cdef PyThread_type_lock unclaimed
    cdef PyThread_type_lock unfinished
    cdef unsigned long claimer

    def __cinit__(self):
        self.unclaimed = PyThread_allocate_lock()
        self.unfinished = PyThread_allocate_lock()
        if self.unclaimed == NULL or self.unfinished == NULL:
            raise MemoryError("no memory for a lock")
        PyThread_acquire_lock(self.unfinished, WAIT_LOCK)

    def __dealloc__(self):
        if self.unclaimed != NULL:
            PyThread_free_lock(self.unclaimed)
        if self.unfinished != NULL:
            PyThread_free_lock(self.unfinished)

    def claim(self):
        """Whether the work is the calling thread's to do: true once."""
        if not PyThread_acquire_lock(self.unclaimed, NOWAIT_LOCK):
            return False
        self.claimer = PyThread_get_thread_ident()
        return True

    def finish(self):
        """Tell that the work is done, by the thread that claimed it."""
        PyThread_release_lock(self.unfinished)

    def wait(self, double seconds):
        """Wait for the end, no longer than that; whether it has come.

        Handlers of signals run meanwhile, and may raise.
        """
        cdef PyLockStatus status
        cdef long long microseconds = <long long> (1e6 * seconds)
        with nogil:
            status = PyThread_acquire_lock_timed(self.unfinished, microseconds, 1)
        if status == PY_LOCK_INTR:
            PyErr_CheckSignals()
        if status != PY_LOCK_ACQUIRED:
            return False
        PyThread_release_lock(self.unfinished)
        return True

    def give_up(self):
        """See to it that nobody begins; if another thread has, wait for the end.

        No handler of a signal runs meanwhile.
        """
        if self.claim() or self.claimer == PyThread_get_thread_ident():
            return
        with nogil:
            PyThread_acquire_lock(self.unfinished, WAIT_LOCK)
            PyThread_release_lock(self.unfinished)


if lock == NULL:
    raise MemoryError("no memory for a lock")
if (
    cyce_create_mark(when_marked_thread_ends)
    or cyce_at_fork(before_fork, after_fork_in_parent, after_fork_in_child)
):
    raise OSError("this system refuses to tell when threads end, or processes fork")
