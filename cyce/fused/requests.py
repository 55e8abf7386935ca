"""What a caller requests beyond the loss: a gradient, or statistics."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_out
from cyce.memory.arrays import empty_like

# What `value_and_grad` takes beyond the arguments of the loss, as given: `grad_output` and `out`.
GradientRequest = tuple[Any, Any]


class StatsRequest(NamedTuple):
    """Arrays to fill with the statistics of each position."""

    loss_out: NDArray[Any]
    lse_out: NDArray[Any]
    probability_out: NDArray[Any]
    entropy_out: NDArray[Any]
    prediction_out: NDArray[np.int64]
    rank_out: NDArray[np.int64]
    confidence_out: NDArray[Any] | None = None
    """The highest probability. Given all of the last four, or none."""
    brier_score_out: NDArray[Any] | None = None
    """The sum over the classes of (probability - [class is the target])**2."""
    slope_out: NDArray[Any] | None = None
    """The derivative of the loss by the logarithm of a factor of the logits: their mean, as the softmax
    weights them, less that of the target."""
    variance_out: NDArray[Any] | None = None
    """The variance of the logits, as the softmax weights them."""


def new_stats(positions: tuple[int, ...], dtype: np.dtype[Any]) -> StatsRequest:
    """Return arrays for the statistics of positions, as they are where these are ignored."""
    loss, lse, probability, entropy = (np.zeros(positions, dtype) for _ in range(4))
    prediction, rank = (np.full(positions, -1, np.int64) for _ in range(2))
    return StatsRequest(loss, lse, probability, entropy, prediction, rank)


def as_grad_out(value: Any, like: NDArray[Any], read: Mapping[str, NDArray[Any] | None]) -> NDArray[Any]:
    """Return the array for the gradient: the view of `out`, or a new one.

    like: the input. read: the other arrays that are read while the gradient is written.
    """
    if value is None:
        return empty_like(like)
    return as_out(value, like, read)
