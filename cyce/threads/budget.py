"""The thread budget: how many threads a call may use. `team.pyx` shares it between calls."""

import contextlib
import math
import operator
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from cyce.threads import team

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def _quota_of(group: Path) -> float:
    """CPUs of one control group, from its files of version 2 or 1; infinite without a limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text(encoding="ascii") for name in files).split()
            cpus = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if cpus > 0:
            return cpus
    return math.inf


def _cgroup_quota() -> float:
    """CPUs of the control groups of this process, infinite without a limit.

    A container often sees its group as the root; those of a service or a job are deeper. Every group from the
    root to that of this process counts.
    """
    # The root is needed for containers that see their own group there under a name from outside.
    groups = {CGROUPS, CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"}
    try:
        # Names are arbitrary bytes, like those of files.
        lines = os.fsdecode(OWN_CGROUPS.read_bytes()).split("\n")
    except OSError:
        lines = []
    for line in lines:
        # number:controllers:path; version 2 has no controllers.
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = CGROUPS / controllers / path.lstrip("/")
        groups.update(parent for parent in (group, *group.parents) if parent.is_relative_to(CGROUPS))
    return min(map(_quota_of, groups))


def affinity() -> set[int] | None:
    """CPUs that the threads of this process may use; None if the system does not say.

    If OpenMP binds threads to places (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY), it has bound the main
    thread to one of them when it was loaded: the places count then, not the thread's affinity.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    return team.cpus_of_places() or os.sched_getaffinity(0)


def unbind_thread() -> None:
    """Let a new Python thread use all CPUs, if OpenMP has bound its parent thread."""
    places = team.cpus_of_places()
    if places and hasattr(os, "sched_setaffinity"):
        # If the system refuses, the thread stays bound.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, places)


def _available_cpus() -> int:
    """CPUs that this process may use: its affinity, within its control group's quota."""
    available = affinity()
    cpus = (os.cpu_count() or 1) if available is None else len(available)
    return max(1, min(cpus, math.ceil(min(_cgroup_quota(), cpus))))


def _bounded(n: int) -> int:
    """Return n, within a bound that no machine needs more threads than.

    OpenMP ends the process if the system refuses to start threads.
    """
    return min(n, max(64, 8 * (os.cpu_count() or 1)))


def _openmp_threads() -> int | None:
    """OMP_NUM_THREADS, None if it is unset or not a number, which OpenMP ignores, too."""
    # A list has one number per nesting level.
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return _bounded(int(openmp)) if openmp.isdecimal() and int(openmp) >= 1 else None


def _default() -> int:
    """CYCE_NUM_THREADS, or OMP_NUM_THREADS, or the number of available CPUs."""
    own = os.environ.get("CYCE_NUM_THREADS")
    if own:
        if not own.strip().isdecimal() or int(own) < 1:
            raise ValueError(f"CYCE_NUM_THREADS: must be an integer of at least 1, got {own!r}")
        return _bounded(int(own))
    return _openmp_threads() or _available_cpus()


def _as_count(n: object) -> int:
    """Check a number of threads."""
    try:
        wanted = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"n: must be an integer, got {type(n).__name__}") from None
    if isinstance(n, bool):
        raise TypeError("n: must be an integer, got bool")
    if wanted < 1:
        raise ValueError(f"n: must be at least 1, got {wanted}")
    return _bounded(wanted)


_of_process = _default()
_of_context: ContextVar[int | None] = ContextVar("cyce.num_threads", default=None)
if openmp := _openmp_threads():
    team.set_openmp_default(openmp)


def budget() -> int:
    """Threads that all concurrent calls may use together, in this context."""
    return _of_context.get() or _of_process


def get_num_threads() -> int:
    """Return the number of threads that a call may use.

    The default is `CYCE_NUM_THREADS` or else `OMP_NUM_THREADS` from the environment or else the
    number of CPUs that the process may use (affinity and control-group quota). Small inputs use fewer.
    Concurrent calls, in several Python threads, share the number. Results do not depend on it.

    Returns
    -------
    int
        At least 1. It is 1 if cyce was built without OpenMP, and in a process that was forked from one whose
        calls had used threads. If OpenMP's own number for the calling thread was lowered, as by
        `threadpoolctl.threadpool_limits` or `torch.set_num_threads`, it is at most that.

    See Also
    --------
    set_num_threads, num_threads

    Examples
    --------
    >>> import cyce
    >>> cyce.get_num_threads() >= 1
    True
    """
    return team.threads_within(budget())


def set_num_threads(n: int) -> None:
    """Set the number of threads that calls may use, in all Python threads of this process.

    Parameters
    ----------
    n : int
        At least 1. At most 64 or eight times the number of CPUs are used, whichever is larger. If OpenMP's
        own number for the calling thread is lowered, as by `threadpoolctl.threadpool_limits` or
        `torch.set_num_threads`, before or afterwards, calls use at most that.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1.

    See Also
    --------
    num_threads : the same for a block of code.

    Examples
    --------
    >>> import cyce
    >>> before = cyce.get_num_threads()
    >>> cyce.set_num_threads(1)
    >>> cyce.get_num_threads()
    1
    >>> cyce.set_num_threads(before)
    """
    global _of_process
    _of_process = _as_count(n)


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Context manager that sets the number of threads that calls may use in a block of code.

    It applies to calls from the current context (`contextvars`), not to those from other Python threads or
    other tasks of an event loop, and takes precedence over `set_num_threads`.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1.

    See Also
    --------
    set_num_threads : the same for the whole process.

    Examples
    --------
    >>> import cyce
    >>> with cyce.num_threads(1):
    ...     cyce.get_num_threads()
    1
    """
    token = _of_context.set(_as_count(n))
    try:
        yield
    finally:
        _of_context.reset(token)
