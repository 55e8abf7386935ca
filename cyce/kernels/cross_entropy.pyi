"""Types of `cross_entropy.pyx`, which is compiled to `cyce.kernels._cross_entropy_<level>`."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from cyce.kernels.arguments import CrossEntropyArguments, DistillationArguments

HAS_CHECKS: bool
N_FIELDS: int
STATE_ROWS: dict[str, int]
N_TOP: int

def cross_entropy(arguments: CrossEntropyArguments) -> float: ...
def nll_loss(arguments: CrossEntropyArguments) -> float: ...
def plain_mean(
    logits: NDArray[Any],
    target: NDArray[Any],
    grad_out: NDArray[Any] | None,
    new_like: Callable[[NDArray[Any]], NDArray[Any]] | None,
    picks: bool,
    num_threads: int,
) -> tuple[float, NDArray[Any] | None] | None: ...
def denominator(
    arguments: CrossEntropyArguments, counts_out: NDArray[Any] | None = None
) -> tuple[float, bool]: ...
def reduce(arguments: CrossEntropyArguments, states_out: NDArray[Any]) -> None: ...
def merge(states: NDArray[Any], other: NDArray[Any], double_precision: bool) -> None: ...
def finish(arguments: CrossEntropyArguments, states: NDArray[Any]) -> float: ...
def finish_states(arguments: CrossEntropyArguments, states: NDArray[Any], has_target: bool) -> float: ...
def diverge(
    model: CrossEntropyArguments,
    reference: CrossEntropyArguments,
    kl_out: NDArray[Any],
    reverse_kl_out: NDArray[Any],
    js_out: NDArray[Any],
    loss_out: NDArray[Any],
    reference_loss_out: NDArray[Any],
    top_out: NDArray[Any],
    reference_top_out: NDArray[Any],
) -> None: ...
def distill(arguments: DistillationArguments) -> None: ...
def highest(
    logits: NDArray[Any],
    axis: int,
    class_mask: NDArray[Any] | None,
    k: int,
    classes_out: NDArray[Any],
    num_threads: int,
) -> None: ...
def softmax(
    logits: NDArray[Any],
    axis: int,
    out: NDArray[Any],
    num_threads: int,
    states: NDArray[Any] | None = None,
    class_mask: NDArray[Any] | None = None,
) -> None: ...
def log_softmax(
    logits: NDArray[Any],
    axis: int,
    out: NDArray[Any],
    num_threads: int,
    states: NDArray[Any] | None = None,
    class_mask: NDArray[Any] | None = None,
) -> None: ...
def normalizers(logits: NDArray[Any], axis: int, states_out: NDArray[Any], num_threads: int) -> None: ...
def logsumexp(logits: NDArray[Any], axis: int, out: NDArray[Any], num_threads: int) -> None: ...
