"""Python threads that conduct a call: what goes wrong when they start, exceptions meanwhile, their CPUs."""

import _thread
import os
import signal
import threading

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.threads import budget, workers

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
        # As where there is no memory for what a new thread calls: the interpreter only prints that.
        monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
        monkeypatch.setattr(workers, "PATIENCE", 0.01)
        assert workers.with_workers(double, WORK_FOR_SEVERAL) == [0, 2, 4, 6, 8]

    def test_after_they_were_started(self, two_threads, monkeypatch):
        # Thread.start waits for the thread that it has started, and may lack memory for that.
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


# A handler that raises, again and again: also while the call that it has interrupted is given up.
RAISING = """
import signal, threading, time
import numpy as np
import cyce
import cyce.functional as F

class Alarm(Exception):
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
