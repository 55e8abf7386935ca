"""Time what else cyce computes from logits: `python -m benchmarks.compositions --help`.

Distillation losses, chosen log-probabilities, entropies, focal losses, the highest classes: in torch, each is
composed of softmax or log_softmax and other functions; nll_loss is one function there, too. Every contender
has a process of its own, which is stopped while another one is at work; results are compared with torch's in
float64 on some rows first. A time is the median over the rounds of each round's shortest call; memory is what
the first call adds to the peak of the process.
"""

import itertools
import resource
import sys
from typing import NamedTuple

import numpy as np

from benchmarks import tables, turns

MODES = ("value", "gradient")
CHECKED_ROWS = 16
N_HIGHEST = 50
TEMPERATURE = 2.0


class Inputs(NamedTuple):
    """What all contenders compute from, the same in every process."""

    logits: np.ndarray
    teacher: np.ndarray
    index: np.ndarray


def make_inputs(shape, dtype="float32"):
    """Return logits of scale 2, those of a teacher, and chosen classes."""
    rng = np.random.Generator(np.random.SFC64(0))
    logits = 2 * rng.standard_normal(shape, dtype=np.dtype(dtype))
    teacher = logits + rng.standard_normal(shape, dtype=np.dtype(dtype))
    return Inputs(logits, teacher, rng.integers(shape[1], size=shape[0]))


# ---------------------------------------------------------------------------------------------
# Compositions of torch's functions: the sum over the positions


def divergence(kind):
    """Return the composition of a distillation loss."""

    def compose(torch, logits, teacher, _):
        log_p = torch.log_softmax(logits / TEMPERATURE, 1)
        log_q = torch.log_softmax(teacher / TEMPERATURE, 1)
        kl = torch.nn.functional.kl_div
        named = {"reduction": "sum", "log_target": True}
        if kind == "forward":
            return kl(log_p, log_q, **named)
        if kind == "reverse":
            return kl(log_q, log_p, **named)
        log_m = torch.logsumexp(torch.stack([log_p, log_q]), 0) - np.log(2)
        return (kl(log_m, log_p, **named) + kl(log_m, log_q, **named)) / 2

    return compose


def selected(torch, logits, _, index):
    """Sum of the chosen log-probabilities."""
    return torch.log_softmax(logits, 1).gather(1, index[:, None]).sum()


def selected_and_entropy(torch, logits, _, index):
    """Sum of the chosen log-probabilities and of the entropies."""
    log_p = torch.log_softmax(logits, 1)
    return log_p.gather(1, index[:, None]).sum() - (log_p.exp() * log_p).sum()


def negative_log_likelihood(torch, logits, _, index):
    """Mean of the negative log-likelihoods, as if the logits were log-probabilities."""
    return torch.nn.functional.nll_loss(logits, index)


def focal(torch, logits, _, index):
    """Sum of the focal losses."""
    loss = torch.nn.functional.cross_entropy(logits, index, reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).sum()


def highest(torch, logits, _, __):
    """Sum of the highest log-probabilities."""
    return torch.topk(torch.log_softmax(logits, 1), N_HIGHEST, dim=1)[0].sum()


class Case(NamedTuple):
    """A function of cyce and torch's composition."""

    name: str
    """Of cyce's function."""
    arguments: str
    """Which fields of `Inputs` it takes after the logits."""
    named: dict
    compose: object
    modes: tuple = MODES


CASES = {
    "distillation, forward": Case(
        "distillation_loss", "teacher", {"temperature": 2.0, "reduction": "sum"}, divergence("forward")
    ),
    "distillation, reverse": Case(
        "distillation_loss",
        "teacher",
        {"temperature": 2.0, "reduction": "sum", "divergence": "reverse"},
        divergence("reverse"),
    ),
    "distillation, Jensen-Shannon": Case(
        "distillation_loss",
        "teacher",
        {"temperature": 2.0, "reduction": "sum", "divergence": "js"},
        divergence("js"),
    ),
    "chosen log-probabilities": Case("selective_log_softmax", "index", {}, selected),
    "chosen log-probabilities, entropies": Case(
        "selective_log_softmax", "index", {"return_entropy": True}, selected_and_entropy
    ),
    "nll_loss": Case("nll_loss", "index", {}, negative_log_likelihood),
    "focal loss": Case("focal_loss", "index", {"reduction": "sum"}, focal),
    f"{N_HIGHEST} highest": Case("topk_log_softmax", "", {"k": N_HIGHEST}, highest, ("value",)),
}


def sum_of(value):
    """Return the sum of what a function of cyce returns."""
    if isinstance(value, np.floating):
        # Of short calls, a sum over one number would be the longest part.
        return float(value)
    if isinstance(value, tuple):
        return sum(map(sum_of, value))
    return 0.0 if np.asarray(value).dtype.kind == "i" else float(np.sum(value, dtype=np.float64))


def cyce_call(case, inputs, mode):
    """Return the call of cyce, which writes the gradient to the same memory each time."""
    import cyce

    function = getattr(cyce.functional, case.name)
    arguments = [inputs.logits, *([getattr(inputs, case.arguments)] if case.arguments else [])]
    if mode == "value":
        return lambda: (sum_of(function(*arguments, **case.named)), None)
    with_gradient = cyce.value_and_grad(function)
    # Zeros have no memory until they are written to.
    out = np.full_like(inputs.logits, 1)

    def call():
        value, gradient = with_gradient(*arguments, out=out, **case.named)
        return sum_of(value), gradient

    return call


def torch_call(case, inputs, mode, compiled=False):
    """Return the call of torch, whose gradient is a new array."""
    import torch

    def compose(logits, teacher, index):
        return case.compose(torch, logits, teacher, index)

    if compiled:
        torch._dynamo.reset()
        compose = torch.compile(compose, dynamic=False)
    logits, teacher, index = map(torch.from_numpy, inputs)

    def call_value():
        with torch.no_grad():
            return float(compose(logits, teacher, index)), None

    def call_gradient():
        logits.grad = None
        value = compose(logits, teacher, index)
        value.backward()
        return float(value.detach()), logits.grad.numpy()

    if mode == "value":
        return call_value
    logits.requires_grad_()
    return call_gradient


def torch_compile_call(case, inputs, mode):
    """Return the call of the compiled composition."""
    return torch_call(case, inputs, mode, compiled=True)


CONTENDERS = {"cyce": cyce_call, "torch": torch_call, "torch.compile": torch_compile_call}


class Worker:
    """A contender with the case that it is at."""

    def __init__(self, name, n_threads):
        self._make_call = CONTENDERS[name.partition(":")[0]]
        self._call = None
        module = __import__("torch" if name.startswith("torch") else "cyce")
        module.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__}

    def prepare(self, name, shape, mode):
        """Check the answer on some rows, and make the call; return the bytes that it takes at most."""
        case, few = CASES[name], make_inputs((min(shape[0], CHECKED_ROWS), shape[1]))
        value, gradient = self._make_call(case, few, mode)()
        exact = Inputs(few.logits.astype(float), few.teacher.astype(float), few.index)
        expected, slopes = torch_call(case, exact, mode)()
        np.testing.assert_allclose(value, expected, rtol=1e-4, err_msg="value")
        if mode == "gradient":
            np.testing.assert_allclose(gradient, slopes, rtol=0, atol=1e-4 * np.abs(slopes).max())
        self._call = self._make_call(case, make_inputs(shape), mode)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._call()
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    def round(self, seconds):
        """Call for some time; return the shortest time of a call, in seconds."""
        return turns.shortest(self._call, seconds)


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.compositions",
        "Time what else cyce computes from logits beside compositions of torch's functions.",
        rounds=3,
        seconds=0.5,
        contenders=CONTENDERS,
        levels=True,
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--shapes", nargs="+", default=["2048 x 32000"], metavar="'ROWS x COLUMNS'")
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.compositions", settings, arguments)
    for name in settings.shapes:
        run.begin_table(name, ["", "mode", *settings.contenders])
        shape = tuple(map(int, name.replace(",", "").split(" x ")))
        for case, mode in itertools.product(settings.cases, settings.modes):
            if mode in CASES[case].modes:
                run.time(case, (case, mode), Worker, (case, shape, mode), [settings.seconds])
    return run.end(
        f"Milliseconds, float32, medians over {settings.rounds} rounds of each round's shortest call; in "
        "parentheses, how many times as long as cyce's. MB are what the first call adds to the peak of the "
        "process; torch's gradient is a new array, cyce's is there before"
    )


if __name__ == "__main__":
    sys.exit(main())
