"""Memory of large new arrays, which is kept for the next ones when they are gone.

The system zeroes new pages, which takes longer than to compute the gradient that is written to them. A
`Buffer` is memory that arrays are views of. It lives as long as anything refers to it: arrays, views of
views, memoryviews, tensors, DLPack capsules. Then its memory becomes idle, and the next buffer of about its
size takes it.

Idle memory is bounded: the oldest is returned to the system first. While it is idle, the system may take its
pages back where memory is short (MADV_FREE). A forked child returns what is idle, and keeps nothing that its
parent had taken.

Arrays come and go in any thread, and there are Pythons without a GIL: a lock guards what is idle. No Python
code runs under it. It is held across a fork, so that the child finds the pool consistent.
"""
from cpython.pythread cimport (
    WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)

cdef extern from * nogil:
    """
    #include <stddef.h>
    #ifndef _WIN32
    #include <sys/mman.h>
    #endif
    #if !defined(_WIN32) && defined(MAP_ANONYMOUS)
    #include <stdint.h>
    #define CYCE_HAS_POOL 1
    /* Large pages begin at multiples of their size: map more, and return what is around. */
    static void *cyce_map(size_t n_bytes, size_t alignment)
    {
        char *start = (char *) mmap(NULL, n_bytes + alignment, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        size_t before;
        if ((void *) start == MAP_FAILED)
            return NULL;
        before = (alignment - (uintptr_t) start % alignment) % alignment;
        if (before > 0)
            munmap(start, before);
        munmap(start + before + n_bytes, alignment - before);
    #ifdef MADV_HUGEPAGE
        madvise(start + before, n_bytes, MADV_HUGEPAGE);
    #endif
        return start + before;
    }
    #define cyce_unmap(start, n_bytes) munmap(start, n_bytes)
    /* Without that, idle pages stay: only memory is lost. */
    #ifdef MADV_FREE
    #define cyce_lend(start, n_bytes) ((void) madvise(start, n_bytes, MADV_FREE))
    #else
    #define cyce_lend(start, n_bytes) ((void) (start))
    #endif
    #else
    #define CYCE_HAS_POOL 0
    #define cyce_map(n_bytes, alignment) NULL
    #define cyce_unmap(start, n_bytes) ((void) (start))
    #define cyce_lend(start, n_bytes) ((void) (start))
    #endif
    """
    const bint CYCE_HAS_POOL
    void* cyce_map(size_t n_bytes, size_t alignment) noexcept
    void cyce_unmap(void* start, size_t n_bytes) noexcept
    void cyce_lend(void* start, size_t n_bytes) noexcept


cdef enum:
    MAX_IDLE = 64
    # The size of a large page. Blocks are whole ones, so that they fit more often, too.
    ALIGNMENT = 2 << 20


cdef struct Block:
    char* start
    size_t n_bytes


# Under the lock.
cdef PyThread_type_lock lock = PyThread_allocate_lock()
cdef Block idle[MAX_IDLE]           # the oldest first
cdef int n_idle = 0
cdef size_t n_bytes_idle = 0
cdef size_t limit = 0
cdef int n_forks = 0                # between this process and the one that imported

HAS_POOL = bool(CYCE_HAS_POOL)


cdef Block remove(int number) noexcept:
    """Remove an idle block from the pool, by its index."""
    global n_idle, n_bytes_idle
    cdef Block block = idle[number]
    cdef int i
    n_idle -= 1
    n_bytes_idle -= block.n_bytes
    for i in range(number, n_idle):
        idle[i] = idle[i + 1]
    return block


cdef void return_idle(size_t most) noexcept:
    """Return the oldest idle blocks to the system until at most so many bytes are idle."""
    cdef Block block
    while n_bytes_idle > most:
        block = remove(0)
        cyce_unmap(block.start, block.n_bytes)


cdef Block take(size_t n_bytes) noexcept:
    """Idle memory of about this size, the latest, or new; its start is NULL if there is none."""
    cdef Block block
    cdef int i
    block.n_bytes = (n_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    block.start = NULL
    PyThread_acquire_lock(lock, WAIT_LOCK)
    for i in range(n_idle - 1, -1, -1):
        if block.n_bytes <= idle[i].n_bytes <= block.n_bytes + block.n_bytes // 4:
            block = remove(i)
            break
    PyThread_release_lock(lock)
    if block.start == NULL:
        block.start = <char*> cyce_map(block.n_bytes, ALIGNMENT)
    if block.start == NULL:
        PyThread_acquire_lock(lock, WAIT_LOCK)
        return_idle(0)
        PyThread_release_lock(lock)
        block.start = <char*> cyce_map(block.n_bytes, ALIGNMENT)
    return block


cdef void give(Block block) noexcept:
    """Keep a block as idle, within the limit, or return it to the system."""
    global n_idle, n_bytes_idle
    cdef Block oldest
    cdef bint is_kept
    PyThread_acquire_lock(lock, WAIT_LOCK)
    is_kept = block.n_bytes <= limit
    if is_kept:
        return_idle(limit - block.n_bytes)
        if n_idle == MAX_IDLE:
            oldest = remove(0)
            cyce_unmap(oldest.start, oldest.n_bytes)
        cyce_lend(block.start, block.n_bytes)
        idle[n_idle] = block
        n_idle += 1
        n_bytes_idle += block.n_bytes
    PyThread_release_lock(lock)
    if not is_kept:
        cyce_unmap(block.start, block.n_bytes)


cdef class Buffer:
    """Writable memory of n_bytes, of any content."""

    cdef Block block
    cdef Py_ssize_t n_bytes
    cdef int of_fork

    def __cinit__(self, Py_ssize_t n_bytes):
        if n_bytes <= 0:
            raise ValueError(f"n_bytes: must be positive, got {n_bytes}")
        self.block = take(n_bytes)
        if self.block.start == NULL:
            raise MemoryError(f"no memory for an array of {n_bytes} bytes")
        self.n_bytes = n_bytes
        self.of_fork = n_forks

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.obj = self
        view.buf = self.block.start
        view.len = self.n_bytes
        view.itemsize = 1
        view.readonly = False
        view.format = b"B"
        view.ndim = 1
        view.shape = &self.n_bytes
        view.strides = &view.itemsize
        view.suboffsets = NULL
        view.internal = NULL

    def __dealloc__(self):
        if self.block.start == NULL:
            return
        if self.of_fork == n_forks:
            give(self.block)
        else:
            cyce_unmap(self.block.start, self.block.n_bytes)


def set_limit(size_t n_bytes):
    """Set how many bytes may be idle."""
    global limit
    PyThread_acquire_lock(lock, WAIT_LOCK)
    limit = n_bytes
    return_idle(limit)
    PyThread_release_lock(lock)


def get_limit():
    """Return how many bytes may be idle."""
    return limit


def get_idle():
    """Return how many bytes are idle."""
    return n_bytes_idle


def before_fork():
    """Keep the lock, so that the child finds a consistent pool."""
    PyThread_acquire_lock(lock, WAIT_LOCK)


def after_fork_in_parent():
    """Release the lock."""
    PyThread_release_lock(lock)


def after_fork_in_child():
    """Return what is idle to the system."""
    global n_forks
    n_forks += 1
    return_idle(0)
    PyThread_release_lock(lock)


if lock == NULL:
    raise MemoryError("no memory for a lock")
