"""The thread budget: how many threads a call may use."""

import math
import operator
import os
from pathlib import Path

from cyce._dispatch import kernels

CGROUPS = Path("/sys/fs/cgroup")

_in_forked_child = False
_num_threads = 1
_used_threads = False


def _cgroup_quota() -> float:
    """CPUs that the control group of this process grants, infinite without a limit."""
    try:
        quota, period = (CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (CGROUPS / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (CGROUPS / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf
    return cpus if cpus > 0 else math.inf


def _available_cpus() -> int:
    """CPUs that this process may use: its affinity, within its control group's quota."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    return max(1, min(cpus, math.ceil(min(_cgroup_quota(), cpus))))


def _bounded(n: int) -> int:
    """Return n, or the most threads that are ever worth asking for.

    Where the system refuses to start so many, OpenMP ends the process.
    """
    return min(n, max(64, 8 * (os.cpu_count() or 1)))


def _default() -> int:
    """CYCE_NUM_THREADS, or OMP_NUM_THREADS, or the CPUs that there are."""
    own = os.environ.get("CYCE_NUM_THREADS")
    if own:
        if not own.strip().isdecimal() or int(own) < 1:
            raise ValueError(f"CYCE_NUM_THREADS: a whole number of at least 1 is needed, got {own!r}")
        return _bounded(int(own))
    # A list there is one number per nesting level; what is no number, OpenMP ignores too.
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if openmp.isdecimal() and int(openmp) >= 1:
        return _bounded(int(openmp))
    return _available_cpus()


def get_num_threads() -> int:
    """Return the number of threads that a call may use.

    The default is `CYCE_NUM_THREADS` or else `OMP_NUM_THREADS` from the environment or else the
    number of CPUs that the process may use (affinity and control-group quota). Small inputs use
    fewer. Results do not depend on it.

    Returns
    -------
    int
        At least 1; 1 where cyce was built without OpenMP, and in a process that was forked from one
        whose calls had used threads.

    See Also
    --------
    set_num_threads
    """
    return 1 if _in_forked_child or not kernels.HAS_OPENMP else _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads that a call may use, in all Python threads of this process.

    Parameters
    ----------
    n : int
        At least 1. Of more than eight times the CPUs, and more than 64, only so many are used.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1.

    Examples
    --------
    >>> import cyce
    >>> before = cyce.get_num_threads()
    >>> cyce.set_num_threads(1)
    >>> cyce.get_num_threads()
    1
    >>> cyce.set_num_threads(before)
    """
    global _num_threads
    try:
        wanted = operator.index(n)
    except TypeError:
        raise TypeError(f"n: an integer is needed, got {type(n).__name__}") from None
    if isinstance(n, bool):
        raise TypeError("n: an integer is needed, got bool")
    if wanted < 1:
        raise ValueError(f"n: at least one thread is needed, got {wanted}")
    _num_threads = _bounded(wanted)


def threads_for_call() -> int:
    """Threads that the next call may use."""
    global _used_threads
    if _in_forked_child:
        return 1
    if _num_threads > 1:
        _used_threads = True
    return _num_threads


def _after_fork() -> None:
    """Compute serially in a child whose parent had started threads.

    libgomp's thread pool does not survive a fork: the next parallel region of the child would wait
    for ever for threads that only its parent has. Results are the same.
    """
    global _in_forked_child
    _in_forked_child = _in_forked_child or _used_threads


def forked_after_use() -> bool:
    """Whether this process is serial because its parent had used threads before the fork."""
    return _in_forked_child


_num_threads = _default()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
