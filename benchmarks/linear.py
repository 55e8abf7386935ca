"""Time linear_cross_entropy and its gradients beside torch's: `python -m benchmarks.linear --help`.

Every contender has a process of its own for every shape, which is stopped while another one is at work. Its
memory is that of its first call: the most that its process had, beyond what it had before and
the gradients, which all of them return. Rounds are interleaved, one call each; a time is the median.
"""

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import tables

STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")


class Sizes(NamedTuple):
    """Rows, features and classes."""

    n_rows: int
    n_features: int
    n_classes: int

    @property
    def name(self):
        """As on the command line."""
        return " x ".join(map(str, self))

    @property
    def gradient_bytes(self):
        """Of the hidden states and of the weights."""
        return 4 * self.n_features * (self.n_rows + self.n_classes)


SHAPES = [Sizes(2048, 512, 32_000), Sizes(1024, 1024, 50_257), Sizes(4096, 256, 128_256)]


def make_inputs(sizes):
    """Return hidden states, weights and class indices, the same in every process."""
    rng = np.random.Generator(np.random.SFC64(0))
    hidden = rng.standard_normal((sizes.n_rows, sizes.n_features), dtype=np.float32)
    weights = rng.standard_normal((sizes.n_classes, sizes.n_features), dtype=np.float32)
    weights /= np.float32(sizes.n_features**0.5)
    return hidden, weights, rng.integers(sizes.n_classes, size=sizes.n_rows)


class Expected(NamedTuple):
    """The loss, and the gradients of a few rows and of a few classes, in float64."""

    loss: float
    of_hidden: dict
    of_weights: dict

    @classmethod
    def of(cls, hidden, weights, target):
        """Compute them, a few rows of logits at a time."""
        n_rows, n_classes = len(hidden), len(weights)
        rows, classes = (0, n_rows // 2, n_rows - 1), (0, n_classes // 2, n_classes - 1, int(target[0]))
        wide = weights.astype(np.float64)
        loss, of_hidden = 0.0, {}
        of_weights = {c: np.zeros(hidden.shape[1]) for c in classes}
        for row in range(0, n_rows, 64):
            part = hidden[row : row + 64].astype(np.float64)
            logits = part @ wide.T
            logits -= logits.max(axis=1, keepdims=True)
            at_target = np.arange(len(part)), target[row : row + 64]
            loss -= logits[at_target].sum()
            np.exp(logits, out=logits)
            total = logits.sum(axis=1, keepdims=True)
            loss += np.log(total).sum()
            logits /= total
            logits[at_target] -= 1
            logits /= n_rows
            for c, gradient in of_weights.items():
                gradient += logits[:, c] @ part
            of_hidden |= {r: logits[r - row] @ wide for r in rows if row <= r < row + 64}
        return cls(loss / n_rows, of_hidden, of_weights)

    def check(self, loss, of_hidden, of_weights):
        """Raise an AssertionError unless these are right to float32's rounding of the products."""
        np.testing.assert_allclose(loss, self.loss, rtol=1e-5, err_msg="loss")
        for name, given, right in (
            ("hidden", of_hidden, self.of_hidden),
            ("weights", of_weights, self.of_weights),
        ):
            for number, expected in right.items():
                scale = float(np.abs(expected).max())
                np.testing.assert_allclose(
                    given[number], expected, rtol=0, atol=1e-4 * scale, err_msg=f"gradient of {name} {number}"
                )


def cyce_call(hidden, weights, target):
    """Return the call of cyce, its gradients fresh."""
    import cyce

    linear = cyce.value_and_grad(cyce.linear_cross_entropy)
    return lambda: linear(hidden, weights, target)


def cyce_reused_call(hidden, weights, target):
    """Return the call of cyce that writes the gradients to the same memory each time."""
    import cyce

    linear = cyce.value_and_grad(cyce.linear_cross_entropy)
    out = np.zeros_like(hidden), np.zeros_like(weights)
    return lambda: linear(hidden, weights, target, out=out)


def unfused_call(hidden, weights, target):
    """Return the composition of cyce's cross-entropy with NumPy's products."""
    import cyce

    cross_entropy = cyce.value_and_grad(cyce.cross_entropy)

    def call():
        logits = hidden @ weights.T
        loss, slopes = cross_entropy(logits, target, out=logits)
        return loss, (slopes @ weights, slopes.T @ hidden)

    return call


def torch_call(hidden, weights, target, options=None):
    """Return the call of torch and its backward pass."""
    import torch

    hidden = torch.from_numpy(hidden).requires_grad_()
    weights = torch.from_numpy(weights).requires_grad_()
    target = torch.from_numpy(target)

    def call():
        hidden.grad = weights.grad = None
        loss = torch.nn.functional.linear_cross_entropy(hidden, weights, target, options=options)
        loss.backward()
        return loss.detach(), (hidden.grad.numpy(), weights.grad.numpy())

    return call


def torch_chunked_call(hidden, weights, target):
    """Return the call of torch that goes through the rows in chunks of its own choice."""
    import torch

    return torch_call(hidden, weights, target, torch.nn.LinearCrossEntropyOptions())


def products_call(hidden, weights, _):
    """Return the three products alone, of arrays that are there, into arrays that are there."""
    logits = np.zeros((len(hidden), len(weights)), np.float32)
    out = np.zeros_like(hidden), np.zeros_like(weights)

    def call():
        np.matmul(hidden, weights.T, out=logits)
        np.matmul(logits, weights, out=out[0])
        np.matmul(logits.T, hidden, out=out[1])

    return call


def fresh_products_call(hidden, weights, _):
    """Return the three products alone, each into a new array."""

    def call():
        logits = hidden @ weights.T
        return logits @ weights, logits.T @ hidden

    return call


CONTENDERS = {
    "cyce": cyce_call,
    "cyce, reused": cyce_reused_call,
    "cyce, unfused": unfused_call,
    "torch": torch_call,
    "torch, chunked": torch_chunked_call,
    "products": fresh_products_call,
    "products, reused": products_call,
}
"""By name; "reused" stands for gradients that are written to arrays that are there, else they are new."""


class Worker:
    """A contender with the shape that it is at."""

    def __init__(self, name, n_threads):
        self._name = name
        self._call = None
        module = __import__("torch" if name.startswith("torch") else "cyce")
        module.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__, "numpy": np.__version__}

    def prepare(self, sizes, expected):
        """Make the arrays, check the answer; return the bytes that it took to get it, None if unknown."""
        make_call = CONTENDERS[self._name]
        # What is loaded by the first call is not what the shape takes.
        make_call(*make_inputs(Sizes(512, 64, 512)))()
        self._call = make_call(*make_inputs(sizes))
        before = clear_peak()
        outcome = self._call()
        peak = None if before is None else memory("VmHWM") - before
        if "reused" not in self._name and peak is not None:
            peak -= sizes.gradient_bytes
        if "products" not in self._name:
            loss, gradients = outcome
            expected.check(loss, *gradients)
        return peak

    def round(self):
        """Return the seconds of a call."""
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start


def memory(name):
    """Return a number of bytes of this process, as the system tells it."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def clear_peak():
    """Have the peak count from now on; return what this process takes now, None where that is not known."""
    try:
        CLEAR_PEAK.write_text("5")
        return memory("VmRSS")
    except OSError:
        return None


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.linear",
        "Time the cross-entropy of a linear layer's logits, and its gradients, beside torch's.",
        rounds=5,
        contenders=CONTENDERS,
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[sizes.name for sizes in SHAPES],
        metavar="'ROWS x FEATURES x CLASSES'",
    )
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.linear", settings, arguments)
    run.begin_table("Rows x features x classes", ["shape", *settings.contenders])
    for text in settings.shapes:
        sizes = Sizes(*map(int, text.split(" x ")))
        prepare = sizes, Expected.of(*make_inputs(sizes))
        run.time(sizes.name, [sizes.name], Worker, prepare, unit=1, suffix=" s", digits=2)
    return run.end(
        f"Seconds, medians of {settings.rounds} calls; how many times as long as cyce's; and the memory "
        "beyond inputs and gradients"
    )


if __name__ == "__main__":
    sys.exit(main())
