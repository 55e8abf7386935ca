"""Comparison of cyce with torch: losses, gradients and times of a few typical calls."""

import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce.functional import cross_entropy
from cyce.gradients import value_and_grad
from cyce.threads.budget import get_num_threads


class Case(NamedTuple):
    """One call: the shape of the logits, and the options."""

    shape: tuple[int, ...]
    options: dict[str, Any]
    probabilities: bool = False

    def describe(self) -> str:
        """Return the shape and the options in a few words."""
        options = ["probabilities"] * self.probabilities + [
            name if name == "weight" else f"{name}={value}" for name, value in self.options.items()
        ]
        return " ".join(["x".join(map(str, self.shape)), *options])


# Relative to the loss, or to the largest element of the gradient: both libraries round about ten times.
TOLERANCE = 1e-5

CASES = [
    Case((64, 10), {}),
    Case((64, 10), {"weight": True, "label_smoothing": 0.1}),
    Case((64, 10), {"label_smoothing": 0.1}, probabilities=True),
    Case((64, 10), {"ignore_index": 3, "reduction": "sum"}),
    Case((1024, 1000), {}),
    Case((200_000, 10), {}),
    Case((2, 21, 256, 256), {"ignore_index": 0}),
    Case((256, 50257), {}),
]


def inputs(case: Case, seed: int) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    """Return random logits, targets and options of a case."""
    rng = np.random.default_rng(seed)
    n_classes = case.shape[1]
    logits = rng.standard_normal(case.shape, dtype=np.float32)
    target: NDArray[Any]
    if case.probabilities:
        target = rng.random(case.shape, dtype=np.float32)
        target /= target.sum(axis=1, keepdims=True)
    else:
        target = rng.integers(n_classes, size=case.shape[:1] + case.shape[2:])
    options = dict(case.options)
    if "weight" in options:
        options["weight"] = rng.random(n_classes, dtype=np.float32)
    return logits, target, options


def best_time(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """Return the shortest time of a call, in milliseconds."""
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def torch_call(
    torch: Any, logits: NDArray[Any], target: NDArray[Any], options: dict[str, Any]
) -> Callable[[], tuple[float, NDArray[Any]]]:
    """Return a function that computes torch's loss and gradient."""
    variable = torch.from_numpy(logits).requires_grad_()
    torch_target = torch.from_numpy(target)
    torch_options = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }

    def call() -> tuple[float, NDArray[Any]]:
        variable.grad = None
        loss = torch.nn.functional.cross_entropy(variable, torch_target, **torch_options)
        loss.backward()
        return float(loss.detach()), variable.grad.numpy()

    return call


class Result(NamedTuple):
    """Result of a case; differences to torch and its time are None without torch."""

    case: Case
    loss: float
    milliseconds: float
    loss_difference: float | None = None
    gradient_difference: float | None = None
    torch_milliseconds: float | None = None
    agrees: bool | None = None

    def line(self) -> str:
        """Return a line of the table."""
        line = f"{self.case.describe():40} {self.loss:12.7g}"
        if self.torch_milliseconds is None:
            return f"{line} {self.milliseconds:10.4f}"
        return (
            f"{line} {self.loss_difference:11.2e} {self.gradient_difference:11.2e} {self.milliseconds:10.4f} "
            f"{self.torch_milliseconds:10.4f} {self.torch_milliseconds / self.milliseconds:9.1f}x"
        )


def compare(case: Case, seed: int, torch: Any) -> Result:
    """Compute a case with cyce and, unless it is None, with torch."""
    logits, target, options = inputs(case, seed)
    loss_and_gradient = value_and_grad(cross_entropy)
    loss, gradient = loss_and_gradient(logits, target, **options)
    milliseconds = best_time(lambda: loss_and_gradient(logits, target, **options))
    if torch is None:
        return Result(case, loss, milliseconds)
    call = torch_call(torch, logits, target, options)
    torch_loss, torch_gradient = call()
    loss_difference = abs(loss - torch_loss)
    gradient_difference = np.abs(gradient - torch_gradient).max()
    return Result(
        case,
        loss,
        milliseconds,
        loss_difference,
        gradient_difference,
        best_time(call),
        bool(
            loss_difference <= TOLERANCE * abs(torch_loss)
            and gradient_difference <= TOLERANCE * np.abs(torch_gradient).max()
        ),
    )


def verdict(results: list[Result]) -> str:
    """Summarise the results in a sentence or two."""
    different = [result.case.describe() for result in results if not result.agrees]
    ratios = sorted((result.torch_milliseconds or 0) / result.milliseconds for result in results)
    agreement = (
        f"All {len(results)} losses and gradients agree to a relative difference of {TOLERANCE:g}."
        if not different
        else f"Beyond a relative difference of {TOLERANCE:g}: {'; '.join(different)}."
    )
    return (
        f"{agreement} cyce is {ratios[0]:.1f} to {ratios[-1]:.1f} times as fast as torch, "
        f"{np.median(ratios):.1f} times in the median."
    )


def run(seed: int) -> bool:
    """Print one line per case, and the verdict; returns whether cyce and torch agree."""
    torch: Any = None
    # torch is optional: without it, the table has cyce's columns only.
    with contextlib.suppress(ModuleNotFoundError):
        torch = importlib.import_module("torch")
    n_threads = get_num_threads()
    setting = f"{n_threads} threads, float32, loss and fresh gradient, best of 0.3 s"
    header = f"{'case':40} {'loss':>12}"
    if torch is None:
        print(f"torch is not installed: cyce alone, {setting}")
        print(f"{header} {'cyce ms':>10}")
    else:
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        print(f"cyce beside torch {torch.__version__}, {setting}; differences are absolute")
        print(
            f"{header} {'loss diff':>11} {'grad diff':>11} {'cyce ms':>10} {'torch ms':>10} {'speed-up':>10}"
        )
    results = []
    try:
        for case in CASES:
            results.append(compare(case, seed, torch))
            print(results[-1].line(), flush=True)
    finally:
        if torch is not None:
            torch.set_num_threads(torch_threads)
    if torch is None:
        return True
    print(verdict(results))
    return all(result.agrees for result in results)
