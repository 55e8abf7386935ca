"""Time elementwise losses and their gradients beside torch's: `python -m benchmarks.elementwise --help`.

Every contender has a process of its own, which is stopped while another one is at work. Losses and gradients
are compared with NumPy in float64 first. Rounds are interleaved; a time is the median over the rounds of each
round's shortest call.
"""

import itertools
import sys

import numpy as np

from benchmarks import tables, turns

MODES = ("loss", "gradient")


def make_inputs(loss, shape, dtype):
    """Return input and target, the same in every process."""
    rng = np.random.Generator(np.random.SFC64(0))
    logits = rng.standard_normal(shape, dtype=np.dtype(dtype))
    target = rng.random(shape, dtype=np.dtype(dtype))
    if loss == "binary_cross_entropy":
        return 1 / (1 + np.exp(-logits)), target
    if loss == "kl_div":
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits, target / target.sum(axis=1, keepdims=True)
    return logits, target


def with_logits(x, y):
    """Binary cross-entropy of logits, and its slope."""
    return np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x))), 1 / (1 + np.exp(-x)) - y


def of_probabilities(p, y):
    """Binary cross-entropy of probabilities, and its slope."""
    return -y * np.log(p) - (1 - y) * np.log1p(-p), (p - y) / (p * (1 - p))


def divergence(log_p, y):
    """Kullback-Leibler divergence from log-probabilities, and its slope."""
    return y * (np.log(y) - log_p), -y


LOSSES = {
    "binary_cross_entropy_with_logits": with_logits,
    "binary_cross_entropy": of_probabilities,
    "kl_div": divergence,
}
"""By the name that cyce and torch give them: losses and slopes of the elements."""


def cyce_call(loss, given, target, mode):
    """Return the call of cyce, which writes the gradient to the same memory each time."""
    import cyce

    function = getattr(cyce.functional, loss)
    if mode == "loss":
        return lambda: (function(given, target, reduction="sum"), None)
    with_gradient = cyce.value_and_grad(function)
    out = np.zeros_like(given)
    return lambda: with_gradient(given, target, reduction="sum", out=out)


def torch_call(loss, given, target, mode, compiled=False):
    """Return the call of torch, whose gradient is a new array."""
    import torch

    function = getattr(torch.nn.functional, loss)
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)
    given, target = torch.from_numpy(given), torch.from_numpy(target)

    def call_loss():
        with torch.no_grad():
            return function(given, target, reduction="sum").numpy(), None

    def call_gradient():
        given.grad = None
        value = function(given, target, reduction="sum")
        value.backward()
        return value.detach().numpy(), given.grad.numpy()

    if mode == "loss":
        return call_loss
    given.requires_grad_()
    return call_gradient


def torch_compile_call(loss, given, target, mode):
    """Return the call of the compiled function."""
    return torch_call(loss, given, target, mode, compiled=True)


CONTENDERS = {"cyce": cyce_call, "torch": torch_call, "torch.compile": torch_compile_call}


class Worker:
    """A contender with the loss that it is at."""

    def __init__(self, name, n_threads):
        self._name = name.partition(":")[0]
        self._call = None
        module = __import__("torch" if name.startswith("torch") else "cyce")
        module.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__}

    def prepare(self, loss, shape, dtype, mode):
        """Make the arrays and the call, and check its answer."""
        given, target = make_inputs(loss, shape, dtype)
        self._call = CONTENDERS[self._name](loss, given, target, mode)
        value, gradient = self._call()
        losses, slopes = LOSSES[loss](given.astype(float), target.astype(float))
        tolerance = 1e3 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(value, losses.sum(), rtol=tolerance, err_msg="loss")
        if mode == "gradient":
            scale = np.abs(slopes).max()
            np.testing.assert_allclose(gradient, slopes, rtol=tolerance, atol=tolerance * scale)

    def round(self, seconds):
        """Call for some time; return the shortest time of a call, in seconds."""
        return turns.shortest(self._call, seconds)


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.elementwise",
        "Time binary cross-entropies and the Kullback-Leibler divergence beside torch's.",
        rounds=5,
        seconds=0.3,
        contenders=CONTENDERS,
        levels=True,
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--shape", default="4096 x 1000", metavar="'ROWS x COLUMNS'")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32"])
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.elementwise", settings, arguments)
    run.begin_table(settings.shape, ["loss", "dtype", "mode", *settings.contenders])
    shape = tuple(map(int, settings.shape.split(" x ")))
    for labels in itertools.product(settings.losses, settings.dtypes, settings.modes):
        loss, dtype, mode = labels
        run.time(loss, labels, Worker, (loss, shape, dtype, mode), [settings.seconds])
    return run.end(
        f"Milliseconds at {settings.shape}, medians over {settings.rounds} rounds of each round's shortest "
        "call; in parentheses, how many times as long as cyce's"
    )


if __name__ == "__main__":
    sys.exit(main())
