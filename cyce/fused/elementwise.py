"""Losses of single elements and their gradients in one pass."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_factor,
    as_flag,
    as_floating,
    as_grad_output,
    as_operand,
    as_out,
    as_reduction,
    as_stored,
    check_probabilities,
    check_same_size,
    common_shape,
    warn,
)
from cyce.fused.requests import (
    GradientRequest,
    HessianRequest,
    as_grad_out,
    as_hessian_outs,
    as_product_out,
    as_vector,
)
from cyce.kernels import dispatch
from cyce.kernels.arguments import ElementwiseArguments
from cyce.memory.arrays import copy, empty_like
from cyce.threads.budget import budget


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    reduction = as_reduction(reduction, size_average, reduce)
    logits = as_floating(input)
    targets = as_operand(target, "target", logits.dtype)
    check_same_size(targets, logits, "Target size ({target}) must be the same as input size ({input})")
    operands = {
        "target": targets,
        "weight": as_factor(weight, "weight", logits),
        "pos_weight": as_factor(pos_weight, "pos_weight", logits),
    }
    kernel = dispatch.elementwise.binary_cross_entropy_with_logits
    return evaluate_elements(kernel, logits, operands, logits.shape, reduction, gradient)


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: Any = None,
    reduction: str = "mean",
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    reduction = as_reduction(reduction, size_average, reduce)
    probabilities = as_floating(input, what="probabilities")
    targets = as_operand(target, "target", probabilities.dtype)
    check_same_size(
        targets,
        probabilities,
        "Using a target size ({target}) that is different to the input size ({input}) is deprecated",
    )
    operands = {"target": targets, "weight": as_factor(weight, "weight", probabilities)}
    kernel = dispatch.elementwise.binary_cross_entropy
    try:
        return evaluate_elements(kernel, probabilities, operands, probabilities.shape, reduction, gradient)
    except ValueError as error:
        failure = error
    # If it is that the kernel found an element that is not a probability: name that.
    check_probabilities(probabilities, "input")
    check_probabilities(targets, "target")
    raise failure


def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    choices = ("none", "batchmean", "mean", "sum")
    reduction = as_reduction(reduction, size_average, reduce, choices)
    if reduction == "mean" and size_average is None and reduce is None:
        warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size. "
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition.",
            UserWarning,
        )
    log_probabilities = as_floating(input, what="log-probabilities")
    operands = {"target": as_operand(target, "target", log_probabilities.dtype, kinds="f")}
    shape = common_shape(log_probabilities, operands["target"])
    kernels = dispatch.elementwise
    kernel = kernels.kl_div_of_log_target if as_flag(log_target, "log_target") else kernels.kl_div
    return evaluate_elements(kernel, log_probabilities, operands, shape, reduction, gradient)


def sigmoid(input: Any, *, out: Any = None, gradient: GradientRequest | None = None) -> tuple[Any, Any]:
    """Return the logistic function and its gradient, None unless requested."""
    return _function(dispatch.elementwise.sigmoid, input, out, gradient)


def logsigmoid(input: Any, *, out: Any = None, gradient: GradientRequest | None = None) -> tuple[Any, Any]:
    """Return the logarithm of the logistic function and its gradient, None unless requested."""
    return _function(dispatch.elementwise.logsigmoid, input, out, gradient)


def _function(
    kernel: Callable[[ElementwiseArguments], float], input: Any, out: Any, gradient: GradientRequest | None
) -> tuple[Any, Any]:
    """Apply a function to each element; the result has the dtype of the input, or is `out`."""
    logits = as_floating(input)
    result = empty_like(logits) if out is None else as_out(out, logits, {})
    return evaluate_elements(kernel, logits, {}, logits.shape, "none", gradient, loss_out=result)


def evaluate_elements(
    kernel: Callable[[ElementwiseArguments], float],
    input: NDArray[Any],
    operands: Mapping[str, NDArray[Any] | None],
    shape: tuple[int, ...],
    reduction: str,
    gradient: GradientRequest | None,
    settings: Mapping[str, float] | None = None,
    loss_out: NDArray[Any] | None = None,
) -> tuple[Any, Any]:
    """Apply an elementwise kernel to the input and its operands.

    shape: the common shape that input and operands are broadcast to. settings: numbers that the kernel takes.
    loss_out: where "none" writes to, of the shape; None for a new array in the arithmetic's dtype.
    """
    dtype = arithmetic_dtype(input.dtype)
    divisor = 1
    if reduction == "mean":
        divisor = math.prod(shape)
    elif reduction == "batchmean" and input.ndim:
        divisor = input.shape[0]
    upstream, grad_output, grad_out, hessian_out, vector = 1.0, None, None, None, None
    if gradient is not None:
        upstream, grad_output = as_grad_output(gradient[0], input.dtype, shape, reduction)
        read = {**operands, "grad_output": grad_output}
        if not isinstance(gradient, HessianRequest):
            grad_out = as_grad_out(gradient[1], input, read)
        elif gradient.vector is None:
            grad_out, hessian_out = as_hessian_outs(gradient[1], input, read)
        else:
            # The Hessian is diagonal: the product has one more factor.
            vector = as_vector(gradient.vector, input)
            hessian_out = as_product_out(gradient[1], input, {**read, "vector": vector})
    is_broadcast = input.shape != shape
    full_grad = grad_out
    if grad_out is not None and is_broadcast:
        full_grad = np.empty(shape, dtype)
    if reduction == "none" and loss_out is None:
        loss_out = np.empty(shape, dtype) if is_broadcast else np.empty_like(input, dtype)
    call = ElementwiseArguments()
    others = [*operands.values(), loss_out, full_grad, grad_output, hessian_out, vector]
    laid_out = iter(_in_memory_order(input, shape, others))
    call.input = next(laid_out)
    for name in operands:
        setattr(call, name, next(laid_out))
    call.loss_out, call.grad_out, call.grad_output, call.hessian_out, call.vector = laid_out
    call.is_grad_new = is_broadcast or (gradient is not None and gradient[1] is None)
    if isinstance(gradient, HessianRequest):
        call.hessian_factor, call.hessian_floor = gradient.factor, gradient.floor
    for name, number in (settings or {}).items():
        setattr(call, name, number)
    call.upstream = upstream
    call.divisor = divisor
    call.num_threads = budget()
    value = kernel(call)
    if grad_out is not None and full_grad is not None and is_broadcast:
        n_new = len(shape) - input.ndim
        repeated = tuple(i for i in range(len(shape)) if i < n_new or input.shape[i - n_new] != shape[i])
        copy(full_grad.sum(axis=repeated, dtype=np.float64).reshape(input.shape), grad_out)
    result = dtype.type(value) if loss_out is None else loss_out
    if hessian_out is not None:
        return result, (grad_out, hessian_out) if vector is None else hessian_out
    return result, grad_out


def _in_memory_order(
    input: NDArray[Any], shape: tuple[int, ...], others: list[NDArray[Any] | None]
) -> list[NDArray[Any] | None]:
    """Return views of one shape as stored, with the axes in the order of the strides of `input`."""
    stored = [None if array is None else as_stored(array) for array in (input, *others)]
    views = [
        array if array is None or array.shape == shape else np.broadcast_to(array, shape) for array in stored
    ]
    if input.flags.c_contiguous:
        return views
    strides = np.broadcast_to(input, shape).strides
    order = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    return [None if view is None else view.transpose(order) for view in views]
