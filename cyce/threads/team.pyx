"""The account of threads: how many a call gets, counted for all calls of the process.

Calls acquire threads and release them, whether they run OpenMP loops (`acquire`) or Python threads
(`Workers`). A call gets what is free of the budget, at most an equal part of it for each running call, and at
most one thread for each share of its work (`begin_call`); fewer if its pool ends with the call (`acquire`),
or if the system refuses threads (`prove`).

* Calls that run at once share the budget: together they never use more threads.
* An idle pool may be kept after a call, so that the next one does not start threads again, which takes some
  40 us. At most one pool is kept, by one thread, the *keeper*: a thread whose last call was the last of all
  calls. Its idle threads count as in use, so that no other call oversubscribes the CPUs. Pools of other
  threads end with their calls, and only calls that are long beside 40 us start them.
* The keeper can change. When it has not called for DORMANT seconds, a thread that calls twice in a row
  becomes the new one. The *former keeper* still has its idle pool, which only its own thread can end: at
  its next call, or when it exits. Until then there is no second former keeper, so that at most two pools
  are idle.
* A pool does not survive a fork: the child would wait for ever for threads that only its parent has. So the
  forking thread's pool is ended before a fork, whoever started it: libgomp may be shared with another
  library. The child of a process whose calls had used threads computes serially, because pools of other
  threads may be part of it.
* libgomp ends the process where the system refuses a thread. So threads are tried before they are needed
  (`prove`), and a call does without those that cannot be had.
* Where other processes want the CPUs, a call may wait many times as long as it computes, for a thread that
  has no CPU. When calls lose much time against calls with one thread less, the next ones use fewer threads
  (`n_useful`), for a time that doubles while that goes on.

Simpler rules break a promise: to keep every pool leaves callers x CPUs threads; to keep none makes a call
of 100 us a third longer; to hand a pool from one thread to another is not possible in libgomp, where a pool
belongs to the thread that started it.

A module of its own, because all levels count together.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pythread cimport (
    WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)

from cyce.threads.openmp cimport (
    CYCE_LIBGOMP, CYCE_OPENMP, CYCE_UNLIMITED, cyce_at_fork, cyce_create_mark, cyce_end_pool,
    cyce_limit_of_memory, cyce_limit_of_threads, cyce_mark, cyce_now, cyce_set_mark, cyce_stack_size,
    cyce_threads_to_be_had, omp_get_level, omp_get_max_threads, omp_get_num_places, omp_get_num_procs,
    omp_get_place_num_procs, omp_get_place_proc_ids,
)
from cyce.threads.turns cimport N_NOTED, Turns, cyce_wall

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef enum:
    # Shares of the work per thread of a call whose pool is not kept: twice what that costs.
    SHARES_IF_ENDED = 16

# Seconds after which a keeper that did not call no longer counts.
cdef double DORMANT = 0.1
# Threads are too many when calls lose more than half of RECENT seconds: MUCH_LOST, more than one interruption
# takes. Then fewer are used, for MIN_PATIENCE to MAX_PATIENCE seconds. What it takes to start is not lost.
cdef double RECENT = 0.02
cdef double MUCH_LOST = 0.01
cdef double START = 1e-4
cdef double MIN_PATIENCE = 0.02
cdef double MAX_PATIENCE = 2.0

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
cdef int n_useful = 0               # the most threads that a call uses while CPUs are crowded; 0: no bound
cdef int n_less = 0                 # by how many threads that was lowered last
cdef double recently_lost = 0       # seconds
cdef double crowded_until = 0       # when calls try with more threads
cdef double crowded_last = 0        # when the bound was last lowered
cdef double patience = MIN_PATIENCE


cdef inline int limited(int budget) noexcept nogil:
    """The budget, within OpenMP's own limit for this thread, if that has been lowered."""
    cdef int now
    # In another library's parallel region, OpenMP starts no more threads.
    if serial or not CYCE_OPENMP or omp_get_level() > 0:
        return 1
    now = omp_get_max_threads()
    return min(budget, now) if now < openmp_threads else budget


# ---------------------------------------------------------------------------------------------
# Calls


cdef void acquire(Team* team, int budget, Py_ssize_t n_shares) noexcept nogil:
    """Acquire OpenMP threads for a call: at most `budget`, and one for each share of the work."""
    global n_in_use, n_kept, keeper_calls, last_caller
    cdef unsigned long caller
    cdef bint is_keeper
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
    budget = within_crowd(budget)
    if budget <= 1:
        PyThread_release_lock(lock)
        return
    is_keeper = bears_mark_of_keeper()
    team.alone = last_caller == caller or last_caller == 0
    last_caller = caller
    let_dormant_keeper_go(team.alone and not is_keeper)
    n = begin_call(budget, n_shares, n_kept if is_keeper or is_dormant() else 0)
    if CYCE_LIBGOMP and not is_keeper and (has_keeper or not team.alone):
        n = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> n, n_shares // SHARES_IF_ENDED))
    # How large a former keeper's pool is, is not known.
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
    note_use_of(n)
    PyThread_release_lock(lock)
    team.n_threads = n
    team.is_counted = True
    if n_new > 0:
        prove(team, n_new)


cdef void release(Team* team) noexcept nogil:
    """Release the threads of a call, and keep its pool or end it."""
    global n_in_use, n_kept, has_keeper, keeper_calls, keeper_called, mark_of_keeper
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
        end_call(1)
    PyThread_release_lock(lock)
    if keeps:
        return
    if team.n_threads > 1 or cyce_mark() != NULL:
        cyce_end_pool()
    PyThread_acquire_lock(lock, WAIT_LOCK)
    # What the keeper has kept is no longer in use either.
    end_call(1 if is_keeper else team.n_threads)
    forget_mark(cyce_mark())
    cyce_set_mark(NULL)
    PyThread_release_lock(lock)


cdef class Workers:
    """Threads of Python that a call may use, as a context manager that returns their number.

    budget: within OpenMP's limit for the thread that called. n_shares: of the work, one thread for each.
    """

    cdef int budget
    cdef Py_ssize_t n_shares
    cdef int n_threads

    def __cinit__(self, int budget, Py_ssize_t n_shares):
        self.budget = budget
        self.n_shares = n_shares

    def __enter__(self):
        global n_in_use
        PyThread_acquire_lock(lock, WAIT_LOCK)
        # While the keeper's pool is idle, its CPUs are free.
        self.n_threads = begin_call(self.budget, self.n_shares, 0 if keeper_calls else n_kept)
        n_in_use += self.n_threads
        PyThread_release_lock(lock)
        return self.n_threads

    def __exit__(self, *_):
        PyThread_acquire_lock(lock, WAIT_LOCK)
        end_call(self.n_threads)
        PyThread_release_lock(lock)


cdef void prove(Team* team, int n_new) noexcept nogil:
    """Reduce a team to the new threads that can be had.

    That takes as long as starting a pool, so it is done only for the first and for each larger team, unless
    limits have changed or are such that other allocations count.
    """
    global n_in_use, n_kept, n_proven, proven_limit
    cdef unsigned long long limit = cyce_limit_of_threads()
    cdef int n_refused, n
    cdef bint is_proven
    PyThread_acquire_lock(lock, WAIT_LOCK)
    n = n_in_use
    is_proven = n <= n_proven and limit == proven_limit and cyce_limit_of_memory() == CYCE_UNLIMITED
    PyThread_release_lock(lock)
    if is_proven:
        return
    n_refused = n_new - cyce_threads_to_be_had(n_new, stack_size)
    PyThread_acquire_lock(lock, WAIT_LOCK)
    if n_refused > 0:
        team.n_threads -= n_refused
        n_in_use -= n_refused
        if bears_mark_of_keeper():
            n_kept -= n_refused
    else:
        n_proven = n if limit != proven_limit else max(n, n_proven)
        proven_limit = limit
    PyThread_release_lock(lock)


# ---------------------------------------------------------------------------------------------
# Crowded CPUs


cdef void end_turns(const Turns* turns) noexcept nogil:
    """Note how long a loop took, against what it would have taken with one thread less.

    What two threads did of it tells how long all turns take.
    """
    global n_useful, n_less, recently_lost, crowded_until, crowded_last, patience
    cdef double now = cyce_wall()
    cdef double took = now - turns.began
    cdef double computed = 0
    cdef Py_ssize_t n_computed = 0
    cdef double lost
    cdef bint goes_on
    cdef int thread
    for thread in range(min(turns.n_threads, N_NOTED)):
        computed += turns.parts[thread].computed
        n_computed += turns.parts[thread].n_computed
    # Of few turns, some threads have more than others.
    if turns.n_threads <= 1 or n_computed == 0 or turns.n_items < 4 * turns.n_threads * turns.n_at_once:
        return
    lost = max(0.0, took - START - computed * turns.n_items / n_computed / (turns.n_threads - 1))
    PyThread_acquire_lock(lock, WAIT_LOCK)
    recently_lost = (recently_lost + lost) * RECENT / (RECENT + took)
    if recently_lost > MUCH_LOST:
        recently_lost = 0
        goes_on = now - crowded_last < 0.5 + 4 * patience
        # Each time that more threads were tried (`within_crowd`) has halved it.
        patience = min(4 * patience, MAX_PATIENCE) if goes_on else MIN_PATIENCE
        n_less = 2 * n_less if goes_on and n_less > 0 else 1
        n_useful = max(1, turns.n_threads - n_less)
        crowded_last = now
        crowded_until = now + patience
    PyThread_release_lock(lock)


# ---------------------------------------------------------------------------------------------
# Under the lock


cdef inline int begin_call(int budget, Py_ssize_t n_shares, int n_idle) noexcept nogil:
    """Count a call; returns the threads that it may use, itself included.

    n_idle: threads that count as in use and may be used by this call.
    """
    global n_calls
    cdef int n
    n_calls += 1
    n = min(budget - n_in_use + n_idle, budget // n_calls)
    return <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> n, n_shares))


cdef inline int within_crowd(int budget) noexcept nogil:
    """The budget while CPUs are crowded; from time to time, one call tries with more threads."""
    global n_useful, crowded_until, patience
    cdef double now
    if n_useful == 0:
        return budget
    now = cyce_wall()
    if now >= crowded_until:
        patience = max(patience / 2, MIN_PATIENCE)
        crowded_until = now + patience
        n_useful = 2 * n_useful + 1
        if n_useful >= budget:
            n_useful = 0
            return budget
    return min(budget, n_useful)


cdef inline void end_call(int n_threads) noexcept nogil:
    """Count without a call and its threads."""
    global n_calls, n_in_use
    # Calls that were running when this process was forked are not counted any more.
    if n_calls > 0:
        n_calls -= 1
        n_in_use -= n_threads


cdef inline void note_use_of(int n_threads) noexcept nogil:
    """Note whether threads have been used."""
    global used_threads
    used_threads = used_threads or n_threads > 1


cdef inline bint is_dormant() noexcept nogil:
    """Whether there is a keeper that has not called for a while."""
    return has_keeper and not keeper_calls and cyce_now() - keeper_called > DORMANT


cdef inline void let_dormant_keeper_go(bint may_replace) noexcept nogil:
    """Make a dormant keeper the former one, if another thread may replace it."""
    global has_former_keeper, mark_of_former
    if may_replace and not has_former_keeper and is_dormant():
        forget_keeper()
        has_former_keeper = True
        mark_of_former = mark_of_keeper


cdef inline bint bears_mark_of_keeper() noexcept nogil:
    """Whether this thread is the keeper, not the former one."""
    return has_keeper and cyce_mark() == &MARKS[mark_of_keeper]


cdef void forget_keeper() noexcept nogil:
    """Count without the keeper."""
    global n_in_use, n_kept, has_keeper, keeper_calls
    n_in_use -= n_kept
    n_kept = 0
    has_keeper = False
    keeper_calls = False


cdef void forget_mark(const void* mark) noexcept nogil:
    """Count without the pool of the thread that has, or had, a mark."""
    global has_former_keeper
    if mark == NULL:
        return
    if has_keeper and mark == &MARKS[mark_of_keeper]:
        forget_keeper()
    else:
        has_former_keeper = False


# ---------------------------------------------------------------------------------------------
# Events


cdef void when_marked_thread_ends(void* mark) noexcept nogil:
    """Let another thread keep its pool."""
    PyThread_acquire_lock(lock, WAIT_LOCK)
    forget_mark(mark)
    PyThread_release_lock(lock)


cdef void before_fork() noexcept nogil:
    """End this thread's pool; keep the lock, so that the child finds a consistent account."""
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
    global n_calls, n_in_use, has_former_keeper, last_caller, serial, n_useful, recently_lost
    n_useful = 0
    recently_lost = 0
    forget_keeper()
    has_former_keeper = False
    cyce_set_mark(NULL)
    n_calls = 0
    n_in_use = 0
    last_caller = 0
    serial = serial or used_threads or pool_is_left
    PyThread_release_lock(lock)


# ---------------------------------------------------------------------------------------------
# For budget.py


def threads_within(int budget):
    """Return the threads that a call from this thread may use of a budget, when it is the only one."""
    return limited(budget)


def forked_after_use():
    """Return whether this process is serial because its parent had used threads before the fork."""
    return serial


def set_openmp_default(int n):
    """Set OpenMP's own number of threads while nobody has lowered it: only lower ones are limits."""
    global openmp_threads
    openmp_threads = n


def cpus_of_places():
    """Return the CPUs that OpenMP binds its threads to, as a set; empty if it does not bind them."""
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


if lock == NULL:
    raise MemoryError("no memory for a lock")
if (
    cyce_create_mark(when_marked_thread_ends)
    or cyce_at_fork(before_fork, after_fork_in_parent, after_fork_in_child)
):
    raise OSError("this system refuses to tell when threads end, or processes fork")
