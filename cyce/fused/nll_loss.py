"""Negative log-likelihood and its gradient in one pass."""

from typing import Any

import numpy as np

from cyce._arguments import (
    arithmetic_dtype,
    as_grad_output,
    as_ignore_index,
    as_indices,
    as_logits,
    as_reduction,
    as_stored,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce.fused.plain import plain_mean
from cyce.fused.requests import GradientRequest, as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.threads.budget import budget


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
    # Check types first: `==` on an array is elementwise.
    if (
        weight is size_average is reduce is None
        and (type(reduction) is str and reduction == "mean")
        and (type(ignore_index) is int and ignore_index == -100)
        and (answer := plain_mean(input, target, gradient, picks=True)) is not None
    ):
        return answer
    reduction = as_reduction(reduction, size_average, reduce)
    log_probabilities = as_logits(input, "log-probabilities", target=target)
    dtype, axis = arithmetic_dtype(log_probabilities.dtype), class_axis(log_probabilities)
    n_classes = log_probabilities.shape[axis]
    indices = as_indices(target, log_probabilities, axis)
    weight = as_weight(weight, log_probabilities, axis)
    ignore_index = as_ignore_index(ignore_index)
    positions = position_shape(log_probabilities, axis)
    call = CrossEntropyArguments()
    call.logits, call.axis, call.target = as_stored(log_probabilities), axis, indices
    grad_out = None
    call.weight, call.ignore_index = weight, ignore_index
    call.mean = reduction == "mean"
    call.num_threads = budget()
    if reduction == "none":
        call.loss_out = np.empty(positions, dtype)
    if gradient is not None:
        call.upstream, call.grad_output = as_grad_output(gradient[0], dtype, positions, reduction)
        read = {"target": indices, "weight": weight, "grad_output": call.grad_output}
        grad_out = as_grad_out(gradient[1], log_probabilities, read)
        call.grad_out = as_stored(grad_out)
    try:
        value = dispatch.kernels.nll_loss(call)
    except IndexError as error:
        raise IndexError(describe_bad_target(error.args[0], indices, n_classes, ignore_index)) from None
    return call.loss_out if reduction == "none" else dtype.type(value), grad_out
