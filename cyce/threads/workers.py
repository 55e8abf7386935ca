"""Python threads that share the work of one call: matrix products by NumPy's BLAS, and kernels.

BLAS and OpenMP have their own threads. After a product, or a loop, these stay awake for milliseconds and take
the CPUs from each other: a call that alternates between the two loses 4 to 10 % of its time. Here neither
starts threads. BLAS is limited to one thread, kernels are called with one, and the threads of this module,
which sleep while they wait, call both. The work is cut up independently of their number and added up in
order, so that results do not depend on it. Calls that are too small for several threads leave BLAS unchanged.
"""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cyce.threads import budget, handover, team

# Seconds after which a caller checks whether the thread that should do the work has begun.
PATIENCE = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")
Share = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


class _SerialBlas:
    """Limits BLAS to one thread, in the whole process, while at least one call needs that."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._n_calls = 0
        self._libraries: Any = None
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_calls == 0:
                self._limits = self.limit()
            self._n_calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_calls -= 1
            if self._n_calls == 0:
                self._restore()

    def limit(self) -> Any:
        """Set the limit for this thread or, depending on the BLAS, for the process."""
        with self._lock:
            if self._libraries is None:
                self._libraries = _import_threadpoolctl().ThreadpoolController().select(user_api="blas")
            _let_any_thread_set_limits()
            limits = self._libraries.limit(limits=1)
            _let_any_thread_set_limits()
        return limits

    def _restore(self) -> None:
        _let_any_thread_set_limits()
        self._limits.restore_original_limits()
        _let_any_thread_set_limits()

    def before_fork(self) -> None:
        """Keep other threads from changing the state that the child inherits."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Let other threads change the state again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Forget the calls of threads that only the parent has."""
        if self._n_calls:
            self._n_calls = 0
            self._restore()
        self._lock.release()


def _import_threadpoolctl() -> Any:
    """Import threadpoolctl, which only linear_cross_entropy needs, and undo its change of the environment."""
    variable = "KMP_DUPLICATE_LIB_OK"
    is_ours = "threadpoolctl" not in sys.modules and variable not in os.environ
    import threadpoolctl

    if is_ours:
        os.environ.pop(variable, None)
    return threadpoolctl


def _let_any_thread_set_limits() -> None:
    """Let any thread set OpenBLAS's number of threads, which is that of the whole process.

    threadpoolctl 3.8 and later reserve that for the thread that did it first; calls use several threads.
    """
    openblas = _import_threadpoolctl().OpenBLASController
    if hasattr(openblas, "clear_controlling_thread"):
        openblas.clear_controlling_thread(force=True)


_serial_blas = _SerialBlas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_serial_blas.before_fork,
        after_in_parent=_serial_blas.after_fork_in_parent,
        after_in_child=_serial_blas.after_fork_in_child,
    )


def with_workers(work: Callable[[Share], Result], n_shares: int) -> Result:
    """Return the result of `work`, which several threads may share: at most one for each of n_shares.

    `work` is called with ``share(function, items)``, which calls the function with every item, in several
    threads, and returns the results in the order of the items. NumPy's floating point warnings are off
    meanwhile. With one share, `work` runs in this thread, and BLAS keeps its number of threads.
    """
    if n_shares <= 1:
        return work(_in_turn)
    return _Call(work, n_shares).result()


def _in_turn(function: Callable[[Item], Any], items: Iterable[Item]) -> list[Any]:
    """Call a function with every item, in this thread."""
    with np.errstate(all="ignore"):
        return [function(item) for item in items]


class _CancelledError(Exception):
    """The caller was interrupted."""


class _Call(Generic[Result]):
    """Work that a separate thread conducts.

    The caller only waits: an interrupt (Ctrl-C) must not reach it while it holds a lock of these threads, or
    before it has noted that BLAS's limit has to be restored.
    """

    def __init__(self, work: Callable[[Share], Result], n_shares: int) -> None:
        self._work = work
        self._n_shares = n_shares
        # From the caller's context and OpenMP's limit for its thread.
        n_threads = budget.budget()
        self._budget = team.threads_within(n_threads) if team.HAS_OPENMP else n_threads
        self._cancelled = False
        self._handover = handover.Handover()
        self._conductor = threading.Thread(target=self._conduct, name="cyce", daemon=True)
        self._error: BaseException | None = None
        self._result: Result

    def result(self) -> Result:
        """Start, and wait for the end; raise the exception of the work."""
        try:
            # Not Thread.start: an interrupt in this thread would leave its locks taken.
            if not handover.start_thread(self._start):
                self._conduct()
            while not self._handover.wait(PATIENCE):
                # The thread was started, but it may lack the memory to begin.
                self._conduct()
            if self._conductor.is_alive():
                self._conductor.join()
        except BaseException as interrupt:
            interruption = interrupt
            self._cancelled = True
            self._handover.give_up()
            # Nothing is written any more; the thread is about to end.
            while self._conductor.is_alive():
                try:
                    self._conductor.join()
                except BaseException as another:
                    interruption = another
            raise interruption  # noqa: B904 - it is this exception, or one that has it for its context
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                # Its traceback refers to this frame, and so to the buffers.
                del error
        return self._result

    def _start(self) -> None:
        # Threads inherit the CPUs of their parent.
        budget.unbind_thread()
        try:
            self._conductor.start()
        except BaseException:
            self._conduct()

    def _conduct(self) -> None:
        """Do the work with the threads that it gets, including this one, unless another thread does it."""
        if not self._handover.claim():
            return
        try:
            with team.Workers(self._budget, self._n_shares) as n_threads:
                # Some BLAS have a limit for each thread that calls them.
                pool = ThreadPoolExecutor(max(1, n_threads - 1), "cyce", initializer=_serial_blas.limit)
                with _serial_blas, pool:
                    self._result = self._work(
                        lambda function, items: self._share(pool, n_threads - 1, function, items)
                    )
        except BaseException as error:
            self._error = error
        finally:
            self._handover.finish()

    def _share(
        self,
        pool: ThreadPoolExecutor,
        n_helpers: int,
        function: Callable[[Item], Any],
        items: Iterable[Item],
    ) -> list[Any]:
        """Call a function with every item, in this thread and in those of a pool."""
        todo = deque(enumerate(items))
        results = [None] * len(todo)

        def take_items() -> None:
            try:
                with np.errstate(all="ignore"):
                    while True:
                        try:
                            number, item = todo.popleft()
                        except IndexError:
                            return
                        if self._cancelled:
                            raise _CancelledError
                        results[number] = function(item)
            except BaseException:
                # Let the others stop, too.
                todo.clear()
                raise

        helpers: list[Future[None]] = []
        # The system may refuse threads, and the interpreter starts none while it ends.
        with contextlib.suppress(RuntimeError, MemoryError):
            for _ in range(min(n_helpers, len(todo) - 1)):
                helpers.append(pool.submit(take_items))  # noqa: PERF401 - keeps those before an error
        try:
            take_items()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return results


class OrderedSum:
    """Adds arrays in the order of their numbers, whenever they arrive: the same bits every time.

    Parameters
    ----------
    total : ndarray
        The sum.
    spares : Spares
        Source of arrays for the addends.
    is_empty : bool
        Whether `total` holds nothing yet: then the first addend is written there.
    add : callable
        Called with (addend, total), adds one to the other.
    """

    def __init__(
        self,
        total: NDArray[Any],
        spares: "Spares",
        is_empty: bool,
        add: Callable[[NDArray[Any], NDArray[Any]], object],
    ) -> None:
        self._total = total
        self._spares = spares
        self._add = add
        self._lock = threading.Lock()
        self._waiting: dict[int, NDArray[Any]] = {}
        self._next = 0
        self._first = 0 if is_empty else -1

    def array(self, number: int) -> NDArray[Any]:
        """Return the array for the addend of a number; numbers begin at 0."""
        return self._total if number == self._first else self._spares.take(self._total.shape)

    def add(self, number: int, addend: NDArray[Any]) -> None:
        """Add the array of a number, which has been written."""
        with self._lock:
            self._waiting[number] = addend
            while self._next in self._waiting:
                addend = self._waiting.pop(self._next)
                if self._next != self._first:
                    self._add(addend, self._total)
                    self._spares.give_back(addend)
                self._next += 1


class Spares:
    """Arrays of one dtype for repeated use, each with room for `size` elements."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._size = size
        self._dtype = dtype
        self._free: deque[NDArray[Any]] = deque()

    def take(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return an array of this shape with arbitrary contents."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._size, self._dtype)
        return memory[: np.prod(shape, dtype=int)].reshape(shape)

    def give_back(self, array: NDArray[Any]) -> None:
        """Take back an array that `take` returned."""
        memory = array.base
        assert isinstance(memory, np.ndarray)
        self._free.append(memory)
