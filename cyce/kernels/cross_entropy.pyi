"""Types of the compiled kernels; `cyce._kernels_<level>` are compiled from `_kernels.pyx`."""

from typing import Any

from numpy.typing import NDArray

HAS_CHECKS: bool

def cross_entropy(
    logits: NDArray[Any],
    axis: int,
    target: NDArray[Any] | None,
    probabilities: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    ignore_index: int,
    smoothing: float,
    mean: bool,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    upstream: float,
    num_threads: int,
    extensions: tuple[NDArray[Any] | None, float, bool, float, float, float] | None = None,
    stats_out: list[NDArray[Any]] | None = None,
) -> float: ...
def weighted_count(
    n_positions: int,
    n_classes: int,
    target: NDArray[Any] | None,
    ignore_index: int,
    weight: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
) -> float: ...
def softmax(logits: NDArray[Any], axis: int, out: NDArray[Any], num_threads: int) -> None: ...
def log_softmax(logits: NDArray[Any], axis: int, out: NDArray[Any], num_threads: int) -> None: ...
def logsumexp(logits: NDArray[Any], axis: int, out: NDArray[Any], num_threads: int) -> None: ...
def exponentials(logits: NDArray[Any], row_max: float, exponentials_out: NDArray[Any]) -> None: ...
def log1p(rests: NDArray[Any], logarithms_out: NDArray[Any]) -> None: ...
