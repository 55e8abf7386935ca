"""Python threads that conduct a call: what goes wrong when they start, exceptions meanwhile, their CPUs."""

import _thread
import concurrent.futures
import os
import signal
import threading

import numpy as np
import pytest
import threadpoolctl

import cyce
import cyce.functional as F
from cyce.kernels import dispatch
from cyce.linear import chunks
from cyce.threads import budget, team, workers
from linear_cases import LINEAR_AND_GRADIENTS, make
from platforms import with_openmp

WORK_FOR_SEVERAL = 3


@pytest.fixture
def two_threads(threads):
    """Let calls use two threads."""
    threads(2)


def double(share):
    return share(lambda number: 2 * number, range(5))


class TestThreadsThatDoNotStart:
    @pytest.mark.parametrize("error", [MemoryError, RuntimeError("can't start new thread")])
    def test_any(self, two_threads, monkeypatch, error):
        def start(self):
            raise error

        monkeypatch.setattr(threading.Thread, "start", start)
        assert workers.with_workers(double, WORK_FOR_SEVERAL) == [0, 2, 4, 6, 8]

    @pytest.mark.parametrize("error", [MemoryError, RuntimeError("can't start new thread")])
    def test_the_one_that_starts_the_others(self, two_threads, monkeypatch, error):
        def start(function, arguments):
            raise error

        monkeypatch.setattr(_thread, "start_new_thread", start)
        assert workers.with_workers(double, WORK_FOR_SEVERAL) == [0, 2, 4, 6, 8]

    def test_silently(self, two_threads, monkeypatch):
        # As if a new thread had no memory for its first call: the interpreter only prints that.
        monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
        monkeypatch.setattr(workers, "PATIENCE", 0.01)
        assert workers.with_workers(double, WORK_FOR_SEVERAL) == [0, 2, 4, 6, 8]

    def test_after_they_were_started(self, two_threads, monkeypatch):
        # Thread.start waits for the new thread, and may run out of memory then.
        start = threading.Thread.start
        n_calls = 0

        def work(share):
            nonlocal n_calls
            n_calls += 1
            return double(share)

        def start_and_fail(self):
            start(self)
            raise MemoryError

        monkeypatch.setattr(threading.Thread, "start", start_and_fail)
        assert workers.with_workers(work, WORK_FOR_SEVERAL) == [0, 2, 4, 6, 8]
        assert n_calls == 1

    def test_what_the_work_raises(self, two_threads):
        def work(share):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            workers.with_workers(work, WORK_FOR_SEVERAL)


# A handler that raises repeatedly, also while the interrupted call is being unwound. What it raises is no
# Exception, as an interrupt is none: while an argument is read, that would become an error of the argument.
RAISING = """
import signal, threading, time
import numpy as np
import cyce
import cyce.functional as F

class Alarm(BaseException):
    pass

armed = False

def handler(*_):
    if armed:
        raise Alarm

cyce.set_num_threads(2)
rng = np.random.default_rng(0)
hidden = rng.standard_normal((2000, 64), dtype=np.float32)
weights = rng.standard_normal((2000, 64), dtype=np.float32)
target = rng.integers(2000, size=2000)
linear = cyce.value_and_grad(F.linear_cross_entropy)
out = np.empty_like(hidden), np.empty_like(weights)
linear(hidden, weights, target, out=out)
expected = [array.tobytes() for array in out]
n_raised = n_written = 0
signal.signal(signal.SIGALRM, handler)
for i in range(100):
    for array in out:
        array[...] = np.nan
    armed = True
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + i % 30), 0.0003)
        linear(hidden, weights, target, out=out)
        armed = False
    except Alarm:
        armed = False
        n_raised += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    left = [array.tobytes() for array in out]
    time.sleep(0.01)
    n_written += left != [array.tobytes() for array in out]
linear(hidden, weights, target, out=out)
print(n_raised > 50, n_written, [array.tobytes() for array in out] == expected, threading.active_count())
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_nothing_is_written_after_an_exception(run_python):
    result = run_python("-c", RAISING)
    assert (result.returncode, result.stdout) == (0, "True 0 True 1\n"), result.stderr


BOUND = """
import os
import cyce
from cyce.threads import workers
cyce.set_num_threads(2)
print(workers.with_workers(lambda share: share(lambda _: sorted(os.sched_getaffinity(0)), range(4)), 4))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(
    "environment",
    [{}, {"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}, {"OMP_PLACES": "threads"}],
    ids=str,
)
def test_they_may_use_all_cpus(run_python, environment):
    # OpenMP binds the thread that they are started from to one place.
    result = run_python("-c", BOUND, environment=environment)
    assert result.stdout == f"{[sorted(os.sched_getaffinity(0))] * 4}\n", result.stderr


def test_a_call_that_is_large_enough_has_them(two_threads, monkeypatch):
    # What the other tests here rely on.
    used = []
    monkeypatch.setattr(workers, "_Call", lambda _, n: used.append(n) or pytest.fail("used"))
    hidden = np.ones((4000, 64), np.float32)
    with pytest.raises(pytest.fail.Exception):
        F.linear_cross_entropy(hidden, hidden, np.zeros(4000, int))
    assert used[0] > 1
    assert budget.budget() == 2
    assert cyce.get_num_threads() >= 1


class TestThreads:
    def test_blas_is_left_as_it_was(self, threads, rng):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)

        def counts():
            return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

        before = counts()
        LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert counts() == before
        target[5] = 600
        with pytest.raises(IndexError, match="Target 600 is out of bounds"):
            LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert counts() == before

    def test_blas_and_kernels_have_one_thread_each_meanwhile(self, threads, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(3)
        seen, n_at_once = [], []
        kernel = dispatch.kernels.cross_entropy

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                libraries = threadpoolctl.threadpool_info()
                seen.append(
                    {library["num_threads"] for library in libraries if library["user_api"] == "blas"}
                )
                n_at_once.append(sum(thread.name.startswith("cyce_") for thread in threading.enumerate()))
                assert arguments.num_threads == 1
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        monkeypatch.setattr(chunks, "KERNEL_LOGITS", 100_000)
        LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert len(seen) == 13
        assert set().union(*seen) == {1}
        assert max(n_at_once) == 2
        assert not any(thread.name.startswith("cyce") for thread in threading.enumerate())

    @with_openmp
    def test_limits_of_threadpoolctl(self, run_python):
        # In a process of its own: torch, too, sets OpenMP's number, which is this limit.
        program = """
import numpy as np, threadpoolctl
import cyce, cyce.functional as F
from cyce.threads import team

cyce.set_num_threads(3)
Workers = team.Workers

def told(n, n_shares):
    print(n)
    return Workers(n, n_shares)

team.Workers = told
hidden, weights, target = np.ones((2000, 64)), np.ones((600, 64)), np.zeros(2000, int)
F.linear_cross_entropy(hidden, weights, target)
with threadpoolctl.threadpool_limits(1):
    F.linear_cross_entropy(hidden, weights, target)
with cyce.num_threads(2):
    F.linear_cross_entropy(hidden, weights, target)
"""
        assert run_python("-c", program, environment={"OMP_NUM_THREADS": "4"}).stdout == "3\n1\n2\n"

    @pytest.mark.parametrize("limit", [None, 1, 2, 3])
    def test_blas_has_one_thread_whatever_its_limit_was(self, threads, rng, monkeypatch, limit):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)
        seen = []
        kernel = dispatch.kernels.cross_entropy

        def blas_threads():
            libraries = threadpoolctl.threadpool_info()
            return {library["num_threads"] for library in libraries if library["user_api"] == "blas"}

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                seen.append(blas_threads())
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        before = blas_threads()
        with threadpoolctl.threadpool_limits(limit, user_api="blas"):
            limited = blas_threads()
            LINEAR_AND_GRADIENTS(hidden, weights, target)
            assert blas_threads() == limited
        assert blas_threads() == before
        assert set().union(*seen) == {1}

    def test_calls_at_once_share_the_budget(self, threads, rng):
        hidden, weights, _, target = make(rng, 3000, 64, (600,), np.float32)
        threads(1)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1].tobytes()
        threads(4)
        barrier, most, done = threading.Barrier(6), [0], threading.Event()

        def compute():
            barrier.wait()
            return [LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1].tobytes() for _ in range(5)]

        def watch():
            while not done.is_set():
                helpers = sum(thread.name.startswith("cyce_") for thread in threading.enumerate())
                most[0] = max(most[0], helpers)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with concurrent.futures.ThreadPoolExecutor(6, thread_name_prefix="caller") as pool:
            results = [pool.submit(compute) for _ in range(6)]
            results = [result.result() for result in results]
        done.set()
        watcher.join()
        assert {value for result in results for value in result} == {expected}
        # Of the 4 threads, at least one is a caller itself.
        assert most[0] <= 3
        with team.Workers(4, 100) as n_threads:
            assert n_threads == 4

    @pytest.mark.parametrize("n_started", [0, 1])
    def test_where_no_thread_can_be_started(self, threads, rng, monkeypatch, n_started):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(3)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1]

        start, started = threading.Thread.start, []

        def start_or_refuse(thread):
            if len(started) == n_started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
        np.testing.assert_array_equal(LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1], expected)

    @pytest.mark.parametrize("where", ["conductor", "helper"])
    def test_an_error_in_one_thread_ends_the_call(self, threads, rng, monkeypatch, where):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)
        failed, n_calls = threading.Event(), []

        def multiply(*arguments, **named):
            n_calls.append(1)
            if threading.current_thread().name.startswith("cyce_") == (where == "helper"):
                failed.set()
                raise MemoryError("of a product")
            # The other thread waits: otherwise it could finish before the failure.
            assert failed.wait(60)
            return np.matmul(*arguments, **named)

        class NumPy:
            matmul = staticmethod(multiply)

            def __getattr__(self, name):
                return getattr(np, name)

        monkeypatch.setattr(chunks, "np", NumPy())
        with pytest.raises(MemoryError, match="of a product"):
            LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert len(n_calls) <= 4
        assert not any(thread.name.startswith("cyce") for thread in threading.enumerate())


INTERRUPTED = """
import signal, threading, time
import numpy as np
import threadpoolctl
import cyce
import cyce.functional as F
from cyce.linear import chunks

def state():
    libraries = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in libraries]

def threads_end():
    # A thread that was about to start at the interrupt may still start, and exit a little later.
    until = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < until:
        time.sleep(0.001)
    return threading.active_count() == 1

cyce.set_num_threads(2)
rng = np.random.default_rng(0)
hidden = rng.standard_normal((3000, 64), dtype=np.float32)
weights = rng.standard_normal((3000, 64), dtype=np.float32)
target = rng.integers(3000, size=3000)
linear = cyce.value_and_grad(F.linear_cross_entropy)
expected = linear(hidden, weights, target)[1][1].tobytes()
before = state()
n_interrupted = 0
for i in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001 * (i + 1))
        linear(hidden, weights, target)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        n_interrupted += 1
    assert state() == before, i
    assert linear(hidden, weights, target)[1][1].tobytes() == expected

# Interrupted while threads start, and in calls that take hardly longer than that.
short = hidden[:400], weights[:400], target[:400] % 400
expected = linear(*short)[1][1].tobytes()
for i in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 10e-6 * (i % 100 + 1))
        linear(*short)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    assert state() == before, i
    assert linear(*short)[1][1].tobytes() == expected
assert threads_end()

class SlowNumPy:
    @staticmethod
    def matmul(*arguments, **named):
        time.sleep(0.02)
        return np.matmul(*arguments, **named)

    def __getattr__(self, name):
        return getattr(np, name)

# A call that would take 18 seconds at least ends when it is interrupted.
chunks.np = SlowNumPy()
start = time.monotonic()
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    linear(hidden, weights, target, options=cyce.LinearCrossEntropyOptions(batch_chunk_size=10))
except KeyboardInterrupt:
    print(n_interrupted > 5, time.monotonic() - start < 6)
assert state() == before
assert threads_end()
"""


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_ctrl_c_in_a_call(run_python):
    interrupt = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)"
    result = run_python("-c", interrupt + INTERRUPTED)
    assert (result.stdout, result.returncode) == ("True True\n", 0), result.stderr


AT_EXIT = """
import atexit
import numpy as np
import cyce
import cyce.functional as F

cyce.set_num_threads(2)
hidden, weights, target = np.ones((4000, 64)), np.ones((500, 64)), np.zeros(4000, int)
atexit.register(lambda: print(F.linear_cross_entropy(hidden, weights, target).round(4)))
F.linear_cross_entropy(hidden, weights, target)
"""


def test_calls_at_the_end_of_the_interpreter(run_python):
    result = run_python("-c", AT_EXIT)
    assert (result.stdout, result.stderr) == (f"{np.log(500).round(4)}\n", "")
