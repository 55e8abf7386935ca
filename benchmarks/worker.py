"""The process of one contender: it makes the arrays, checks the answers and times the calls."""

import gc
import math
import os
import time
import traceback

import numpy as np

from benchmarks.cases import make_inputs
from benchmarks.contenders import CONTENDERS, Unsupported, versions

# Calls shorter than this are timed several at once.
TIMER_SECONDS = 1e-4


class Worker:
    """A contender with the case that it is at."""

    def __init__(self, name, n_threads):
        contender = CONTENDERS[name.partition(":")[0]]
        self._contender = contender(n_threads)
        self._checked = name != "limit"
        self.versions = versions(contender)
        self._arrays = self._inputs = self._call = self._before = None

    def prepare(self, case, expected):
        """Make the arrays and the call of a case; return how long a call takes, once it was right."""
        if case.arrays != self._arrays:
            self.drop()
            self._inputs = make_inputs(*case.arrays)
            self._arrays = case.arrays
        self._call = self._before = None
        inputs = self._inputs
        if case.mode == "in place":
            inputs = inputs._replace(logits=inputs.logits.copy())
            self._before = lambda: np.copyto(inputs.logits, self._inputs.logits)
        self._call = getattr(self._contender, case.mode.replace(" ", "_"))(inputs)
        outcome = self._call()
        if self._checked:
            expected.check(outcome, case.mode, case.dtype)
        del outcome
        return self.round(0.0)

    def round(self, seconds):
        """Call for some time; return the shortest time of a call, in seconds."""
        best = math.inf
        n_calls = 1
        gc.collect()
        gc.disable()
        end = time.perf_counter() + seconds
        while best == math.inf or time.perf_counter() < end:
            if self._before is not None:
                self._before()
            start = time.perf_counter()
            for _ in range(n_calls):
                self._call()
            duration = time.perf_counter() - start
            best = min(best, duration / n_calls)
            if self._before is None and duration < TIMER_SECONDS:
                n_calls *= 2
        gc.enable()
        return best

    def drop(self):
        """Forget the arrays."""
        self._arrays = self._inputs = self._call = self._before = None
        gc.collect()


def main(connection, make_worker, name, n_threads):
    """Answer requests (method, arguments) with (kind, answer) until there are no more."""
    # What a library prints must not get into the table.
    os.dup2(2, 1)
    try:
        worker = make_worker(name, n_threads)
    except Exception as error:
        connection.send(("missing", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", worker.versions))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", getattr(worker, method)(*arguments)))
        except Unsupported as error:
            connection.send(("unsupported", str(error)))
        except AssertionError as error:
            connection.send(("wrong", " ".join(str(error).split())))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            connection.send(("failed", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"))
