"""What a caller requests beyond the loss: a gradient, or statistics."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_grad_output, as_out


class GradientRequest(NamedTuple):
    """What `value_and_grad` takes beyond the loss's own arguments, as the caller gave it."""

    grad_output: Any
    out: Any


class StatsRequest(NamedTuple):
    """Arrays to fill with the statistics of each position."""

    loss_out: NDArray[Any]
    lse_out: NDArray[Any]
    probability_out: NDArray[Any]
    entropy_out: NDArray[Any]
    prediction_out: NDArray[np.int64]
    rank_out: NDArray[np.int64]


def gradient_arrays(
    gradient: GradientRequest,
    like: NDArray[Any],
    loss_shape: tuple[int, ...],
    reduction: str,
    read: Mapping[str, NDArray[Any] | None],
) -> tuple[float, NDArray[Any] | None, NDArray[Any]]:
    """Return the upstream gradient, as a number and as an array, and the array for the gradient.

    like: the input. read: the other arrays that are read while the gradient is written.
    """
    upstream, grad_output = as_grad_output(gradient.grad_output, like.dtype, loss_shape, reduction)
    if gradient.out is None:
        # The layout of the input, unless it is broadcast.
        grad_out = np.empty_like(like, order="C" if 0 in like.strides else "K")
    else:
        grad_out = as_out(gradient.out, like, {**read, "grad_output": grad_output})
    return upstream, grad_output, grad_out
