"""Work that one thread hands over to another, safe against interrupts (Ctrl-C) and threads that do not start.

In C, so that no signal handler runs between two steps that belong together.
"""
import _thread

from cpython.exc cimport PyErr_CheckSignals
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


def start_thread(function):
    """Start a thread that calls a function; returns whether that was possible.

    No signal handler runs meanwhile, so that its exception is not taken for the thread's.
    """
    try:
        _thread.start_new_thread(function, ())
    except (RuntimeError, MemoryError):
        return False
    return True


cdef class Handover:
    """Work that one of two threads does, while the other may wait for its end."""

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
        """Return whether the calling thread is to do the work: True once."""
        if not PyThread_acquire_lock(self.unclaimed, NOWAIT_LOCK):
            return False
        self.claimer = PyThread_get_thread_ident()
        return True

    def finish(self):
        """Mark the work as done; called by the thread that claimed it."""
        PyThread_release_lock(self.unfinished)

    def wait(self, double seconds):
        """Wait for the end for at most so many seconds; return whether it has come.

        Signal handlers run meanwhile, and may raise.
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
        """Keep other threads from beginning; if one has begun, wait for the end.

        No signal handler runs meanwhile.
        """
        if self.claim() or self.claimer == PyThread_get_thread_ident():
            return
        with nogil:
            PyThread_acquire_lock(self.unfinished, WAIT_LOCK)
            PyThread_release_lock(self.unfinished)
