"""Time calls on quiet and on busy CPUs: `python -m benchmarks.waiting --help`.

Beside busy processes, a call may wait for a thread that has no CPU. So these are means, and 99th percentiles,
over all calls of some seconds, not the shortest call. Every contender has a process of its own, which is
stopped while another one is at work.
"""

import subprocess
import sys
import time

import numpy as np

from benchmarks import tables
from benchmarks.processes import ContenderError, Process

CONTENDERS = ("cyce", "torch")


def make_call(name, shape, gradient):
    """Return a call of the cross-entropy, after its loss was compared with NumPy's in float64."""
    rng = np.random.Generator(np.random.SFC64(0))
    logits = rng.standard_normal(shape, dtype=np.float32)
    target = rng.integers(shape[1], size=shape[0])
    rows = np.arange(shape[0])
    expected = np.mean(np.log(np.exp(logits.astype(float)).sum(axis=1)) - logits[rows, target])
    if name == "torch":
        import torch

        function = torch.nn.functional.cross_entropy
        given, classes = torch.from_numpy(logits).requires_grad_(gradient), torch.from_numpy(target)

        def call():
            given.grad = None
            loss = function(given, classes)
            if gradient:
                loss.backward()
            return float(loss.detach())
    else:
        import cyce

        with_gradient, out = cyce.value_and_grad(cyce.cross_entropy), np.zeros_like(logits)

        def call():
            if gradient:
                return with_gradient(logits, target, out=out)[0]
            return cyce.cross_entropy(logits, target)

    np.testing.assert_allclose(call(), expected, rtol=1e-5)
    return call


class Worker:
    """A contender with its call."""

    def __init__(self, name, n_threads):
        self._name = name.partition(":")[0]
        self._call = None
        module = __import__(self._name)
        module.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__}

    def prepare(self, shape, gradient):
        """Make the arrays and the call, and check its answer."""
        self._call = make_call(self._name, shape, gradient)

    def round(self, seconds):
        """Call for some time; return what each call took, in seconds."""
        took = []
        end = time.perf_counter() + seconds
        while not took or time.perf_counter() < end:
            start = time.perf_counter()
            self._call()
            took.append(time.perf_counter() - start)
        return took


class BusyProcesses:
    """Processes that want a CPU each."""

    def __init__(self, n_processes):
        self._processes = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_processes)
        ]
        time.sleep(0.3)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()


def main(arguments=None):
    """Run the bench; return the exit status: 1 if a contender was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.waiting",
        "Time calls beside busy processes.",
        rounds=3,
        seconds=3,
        contenders=CONTENDERS,
        levels=True,
    )
    parser.add_argument("--shape", default="1024 x 1000", metavar="'POSITIONS x CLASSES'")
    parser.add_argument("--gradient", action="store_true", help="with the gradient")
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes")
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.waiting", settings, arguments)
    shape = tuple(map(int, settings.shape.split(" x ")))
    processes, took = {}, {}
    try:
        for name in settings.contenders:
            processes[name] = Process(name, settings.threads, Worker)
            run.versions |= processes[name].versions
            processes[name].ask("prepare", shape, settings.gradient)
        for _ in range(settings.rounds):
            for n_busy in (0, settings.busy):
                for name, process in processes.items():
                    with BusyProcesses(n_busy):
                        took.setdefault((name, n_busy), []).extend(process.ask("round", settings.seconds))
    except ContenderError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return 1
    finally:
        for process in processes.values():
            process.end()
    columns = ["contender", "busy processes", "mean", "median", "99th percentile", "longest"]
    run.begin_table(settings.shape, columns)
    for (name, n_busy), times in sorted(took.items()):
        figures = [np.mean(times), *np.quantile(times, [0.5, 0.99, 1])]
        run.row(name, str(n_busy), *(f"{1e3 * figure:.3g}" for figure in figures))
    return run.end(f"Milliseconds of all calls at {settings.shape}")


if __name__ == "__main__":
    sys.exit(main())
