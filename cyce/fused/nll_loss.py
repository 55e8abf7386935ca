"""Negative log-likelihood and its gradient in one pass."""

from typing import Any

import numpy as np

from cyce._arguments import (
    as_ignore_index,
    as_indices,
    as_logits,
    as_reduction,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce.fused.requests import GradientRequest, gradient_arrays


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: Any = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    reduction = as_reduction(reduction, size_average, reduce)
    log_probabilities = as_logits(input, "log-probabilities", target=target)
    dtype, axis = log_probabilities.dtype, class_axis(log_probabilities)
    n_classes = log_probabilities.shape[axis]
    indices = as_indices(target, log_probabilities, axis)
    weight = as_weight(weight, log_probabilities, axis)
    ignore_index = as_ignore_index(ignore_index)
    positions = position_shape(log_probabilities, axis)
    upstream, grad_output, grad_out = 1.0, None, None
    if gradient is not None:
        read = {"target": indices, "weight": weight}
        upstream, grad_output, grad_out = gradient_arrays(
            gradient, log_probabilities, positions, reduction, read
        )
    # A copy: another thread may change the target between the check and its use.
    classes = np.array(indices).reshape(positions)
    counts = classes != ignore_index
    bad = np.flatnonzero(counts & ((classes < 0) | (classes >= n_classes)))
    if bad.size:
        raise IndexError(describe_bad_target(int(bad[0]), indices, n_classes, ignore_index))
    classes = np.where(counts, classes, 0).astype(np.intp)
    with np.errstate(all="ignore"):
        if n_classes == 0:
            masses = losses = np.zeros(positions, dtype)
        else:
            at = np.expand_dims(classes, axis)
            masses = np.where(counts, dtype.type(1) if weight is None else weight[classes], dtype.type(0))
            picked = np.take_along_axis(log_probabilities, at, axis).reshape(positions)
            # As in cross_entropy, a position of weight 0 has loss 0 even if its class is impossible, and a
            # perfect row has loss +0.0: hence + 0.
            nothing = ~counts | ((masses == 0) & (picked == -np.inf))
            losses = np.where(nothing, dtype.type(0), -masses * picked) + dtype.type(0)
        denominator = masses.sum(dtype=np.float64) if reduction == "mean" else np.float64(1)
        loss = losses
        if reduction != "none":
            loss = dtype.type(losses.sum(dtype=np.float64) / denominator)
        if grad_out is not None:
            scale = (upstream if grad_output is None else grad_output) / denominator
            grad_out[...] = 0
            if n_classes:
                slopes = np.where(counts, -masses * scale, 0).astype(dtype)
                np.put_along_axis(grad_out, at, np.expand_dims(slopes, axis), axis)
    return loss, grad_out
