"""Types of the compiled kernels; `cyce._elementwise_<level>` are compiled from `_elementwise.pyx`."""

from typing import Any

from numpy.typing import NDArray

def binary_cross_entropy_with_logits(
    input: NDArray[Any],
    target: NDArray[Any],
    weight: NDArray[Any] | None,
    pos_weight: NDArray[Any] | None,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    upstream: float,
    divisor: float,
    num_threads: int,
) -> float: ...
def binary_cross_entropy(
    input: NDArray[Any],
    target: NDArray[Any],
    weight: NDArray[Any] | None,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    upstream: float,
    divisor: float,
    num_threads: int,
) -> float: ...
def kl_div(
    input: NDArray[Any],
    target: NDArray[Any],
    log_target: bool,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    upstream: float,
    divisor: float,
    num_threads: int,
) -> float: ...
def accumulate(addend: NDArray[Any], total: NDArray[Any], lost: NDArray[Any]) -> None: ...
