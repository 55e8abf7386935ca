"""What a caller requests beyond the loss: a gradient, or statistics."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_array, as_operand, as_out, check_same_size, share_memory
from cyce.memory.arrays import empty_like

# What `value_and_grad` takes beyond the arguments of the loss, as given: `grad_output` and `out`.
GradientRequest = tuple[Any, Any]


class HessianRequest(tuple[Any, Any]):
    """A gradient request for the second order, of losses that have one.

    The diagonal of the Hessian is wanted along with the gradient, and `out` is of both; or, given a vector,
    the product of the Hessian with that in place of the gradient.

    Parameters
    ----------
    grad_output, out
        As of any gradient request.
    vector
        What the Hessian is multiplied by; None for the diagonal.
    factor, floor
        What the diagonal is multiplied by, and the least that it is then.
    """

    vector: Any
    factor: float
    floor: float

    def __new__(
        cls, grad_output: Any, out: Any, vector: Any = None, factor: float = 1.0, floor: float = -math.inf
    ) -> Self:
        """Create a request."""
        request = super().__new__(cls, (grad_output, out))
        request.vector, request.factor, request.floor = vector, factor, floor
        return request


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


def as_hessian_outs(
    value: Any, like: NDArray[Any], read: Mapping[str, NDArray[Any] | None]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the arrays for the gradient and the diagonal of the Hessian; like, read: as of `as_grad_out`."""
    if value is None:
        return empty_like(like), empty_like(like)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(
            "out: must be a tuple of two arrays, (gradient, hessian), either of which may be None, got "
            f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
        )
    grad_out, hessian_out = (
        empty_like(like)
        if array is None
        else as_out(
            array, like, read if i == 0 else {**read, "input": like}, name=f"out[{i}]", any_precision=True
        )
        for i, array in enumerate(value)
    )
    if share_memory(grad_out, hessian_out):
        raise ValueError("out[1]: shares memory with out[0]")
    return grad_out, hessian_out


def as_vector(value: Any, like: NDArray[Any]) -> NDArray[Any]:
    """Return what a Hessian is multiplied by, of the shape of the input."""
    vector = as_operand(as_array(value, "vector"), "vector", like.dtype)
    check_same_size(vector, like, "vector has size {target}, input {input}", ("vector", "input"))
    return vector


def as_product_out(value: Any, like: NDArray[Any], read: Mapping[str, NDArray[Any] | None]) -> NDArray[Any]:
    """Return the array for the product of a Hessian; like, read: as of `as_grad_out`."""
    if value is None:
        return empty_like(like)
    return as_out(value, like, {**read, "input": like}, any_precision=True)
