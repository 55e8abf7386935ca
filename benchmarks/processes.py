"""Contenders' processes, which are stopped unless they are asked for something."""

import contextlib
import multiprocessing
import os
import signal
import sys

from benchmarks import worker

# Compiling is what takes long.
PATIENCE_SECONDS = 300.0


class ContenderError(Exception):
    """A contender did not do what it was asked; `kind` is one of the worker's answers."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class Process:
    """A contender's process, stopped unless it has been asked for something."""

    def __init__(self, name, n_threads, make_worker=worker.Worker):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, make_worker, name, n_threads)
        self._process = context.Process(target=worker.main, args=arguments, daemon=True)
        with pinned(name, n_threads):
            self._process.start()
        other.close()
        try:
            self.versions = self._answer()
        except ContenderError:
            self.end()
            raise
        self._signal("SIGSTOP")

    def ask(self, method, *arguments):
        """Return the answer to a request; raise ContenderError if there is none."""
        self._signal("SIGCONT")
        try:
            self._connection.send((method, arguments))
            return self._answer()
        except OSError as error:
            raise ContenderError("failed", f"its process is gone: {error}") from None
        finally:
            self._signal("SIGSTOP")

    def _answer(self):
        if not self._connection.poll(PATIENCE_SECONDS):
            self.end()
            raise ContenderError("failed", f"no answer within {PATIENCE_SECONDS:.0f} s")
        try:
            kind, answer = self._connection.recv()
        except EOFError:
            raise ContenderError("failed", "its process ended") from None
        if kind not in ("ready", "done"):
            raise ContenderError(kind, answer)
        return answer

    def _signal(self, name):
        # Without these signals (Windows) the others are merely idle.
        if hasattr(signal, name) and self._process.is_alive():
            os.kill(self._process.pid, getattr(signal, name))

    @property
    def alive(self):
        """Whether it can be asked again."""
        return self._process.is_alive()

    def end(self):
        """End the process."""
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def pinned(name, n_threads):
    """Have a process that is started now use so many threads, on as many CPUs."""
    variables = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CYCE_NUM_THREADS"), str(n_threads)
    )
    level = name.partition(":")[2]
    if level:
        variables["CYCE_LEVEL"] = level
    before = {variable: os.environ.get(variable) for variable in variables}
    os.environ.update(variables)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cpus is not None:
        os.sched_setaffinity(0, sorted(cpus)[:n_threads])
    try:
        yield
    finally:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


def note(text):
    """Tell how far things are."""
    print(text, file=sys.stderr, flush=True)
