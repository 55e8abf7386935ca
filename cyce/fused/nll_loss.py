"""Negative log-likelihood and its gradient in one pass."""

from typing import Any

import numpy as np

from cyce._arguments import (
    as_grad_output,
    as_ignore_index,
    as_indices,
    as_logits,
    as_reduction,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce.fused.requests import GradientRequest, as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments


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
        upstream, grad_output = as_grad_output(gradient[0], dtype, positions, reduction)
        read = {"target": indices, "weight": weight, "grad_output": grad_output}
        grad_out = as_grad_out(gradient[1], log_probabilities, read)
    # A copy: another thread may change the target between the check and its use.
    classes = np.array(indices).reshape(positions)
    call = CrossEntropyArguments()
    call.logits, call.axis, call.target = log_probabilities, axis, classes
    call.weight, call.ignore_index = weight, ignore_index
    counts = np.empty(positions, bool)
    try:
        denominator, _ = dispatch.kernels.denominator(call, counts)
    except IndexError as error:
        raise IndexError(describe_bad_target(error.args[0], indices, n_classes, ignore_index)) from None
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
        divisor = np.float64(denominator if reduction == "mean" else 1)
        loss = losses
        if reduction != "none":
            loss = dtype.type(losses.sum(dtype=np.float64) / divisor)
        if grad_out is not None:
            scale = (upstream if grad_output is None else grad_output) / divisor
            grad_out[...] = 0
            if n_classes:
                slopes = np.where(counts, -masses * scale, 0).astype(dtype)
                np.put_along_axis(grad_out, at, np.expand_dims(slopes, axis), axis)
    return loss, grad_out
