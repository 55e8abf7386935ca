"""The softmax family, and the gradients of sums of its results: vector-Jacobian products."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_array,
    as_axis,
    as_dtype,
    as_flag,
    as_floating,
    as_grad_output,
    as_operand,
    as_out,
    as_stored,
    implicit_axis,
    position_shape,
)
from cyce._targets import as_class_mask
from cyce.fused.requests import GradientRequest, as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments, DistillationArguments
from cyce.memory.arrays import empty_like
from cyce.threads.budget import budget


def normalize(
    name: str,
    input: Any,
    dim: int | None,
    stacklevel: int,
    dtype: DTypeLike | None,
    out: Any = None,
    class_mask: Any = None,
    negate: bool = False,
    n_frames: int = 0,
) -> tuple[NDArray[Any], int, NDArray[Any], NDArray[np.bool_] | None]:
    """Map logits, or their negatives, to their softmax or log-softmax.

    n_frames: as of `implicit_axis`. Returns the logits, their axis, the result and the class mask.
    """
    logits = as_floating(input, dtype)
    n_dims = logits.ndim
    axis = implicit_axis(n_dims, name, stacklevel, n_frames) if dim is None else as_axis(dim, n_dims)
    result_dtype = logits.dtype if dtype is None else as_dtype(dtype)
    mask = None if class_mask is None else as_class_mask(class_mask, logits)
    read = {"class_mask": mask}
    result = empty_like(logits, result_dtype) if out is None else as_out(out, logits, read)
    if dtype is not None and result.dtype != result_dtype:
        raise TypeError(f"out: must have the dtype {result_dtype.name}, got {result.dtype.name}")
    if negate:
        # Exact, as the result has at least the digits of the logits.
        logits = np.negative(logits, out=result)
    kernels = dispatch.kernels
    kernel = kernels.log_softmax if name == "log_softmax" else kernels.softmax
    # A scalar is a single class.
    given, out_given = (
        as_stored(array.reshape(1) if array.ndim == 0 else array) for array in (logits, result)
    )
    kernel(given, axis, out_given, budget(), class_mask=None if mask is None else mask.reshape(given.shape))
    return logits, axis, result, mask


def softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the softmax and its gradient, None unless requested."""
    logits, axis, result, mask = normalize(
        "softmax", input, dim, _stacklevel, dtype, class_mask=class_mask, n_frames=1
    )
    if gradient is None:
        return result, None
    upstream, grad_out = _upstream(gradient, logits, mask)
    call = DistillationArguments()
    call.student, call.teacher, call.axis = as_stored(logits), as_stored(upstream), axis
    call.formula, call.class_mask, call.grad_out = "product", mask, as_stored(grad_out)
    call.num_threads = budget()
    dispatch.kernels.distill(call)
    return result, grad_out


def log_softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the log-softmax and its gradient, None unless requested."""
    logits, axis, result, mask = normalize(
        "log_softmax", input, dim, _stacklevel, dtype, class_mask=class_mask, n_frames=1
    )
    if gradient is None:
        return result, None
    upstream, grad_out = _upstream(gradient, logits, mask)
    # sum(g * log_softmax) is the cross-entropy with masses -g.
    call = CrossEntropyArguments()
    call.logits, call.axis, call.probabilities = as_stored(logits), axis, as_stored(upstream)
    call.class_mask, call.upstream, call.grad_out = mask, -1.0, as_stored(grad_out)
    call.num_threads = budget()
    dispatch.kernels.cross_entropy(call)
    return result, grad_out


def _upstream(
    gradient: GradientRequest, logits: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the upstream gradient in the logits' shape, and the array for the gradient."""
    if logits.ndim == 0:
        raise ValueError("input: a gradient needs at least one dimension, the classes; got a scalar")
    given, out = gradient
    upstream = as_operand(1.0 if given is None else given, "grad_output", logits.dtype)
    if upstream.ndim and upstream.shape != logits.shape:
        raise ValueError(
            f"grad_output: must be a number or have the result's shape {list(logits.shape)}, got "
            f"{list(upstream.shape)}"
        )
    grad_out = as_grad_out(out, logits, {"grad_output": upstream, "class_mask": mask})
    return np.broadcast_to(upstream, logits.shape), grad_out


def logsumexp(
    input: Any,
    dim: int | Sequence[int],
    keepdim: bool = False,
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the log-sum-exp and its gradient, None unless requested."""
    array = as_array(input, "input")
    # Integers of 16 bits may be bfloat16 (`as_floating`).
    casts = array.dtype.kind in "iu" and gradient is None
    logits = as_floating(array, np.float32 if casts else None)
    n_dims = logits.ndim
    axes = [as_axis(axis, n_dims) for axis in ([dim] if np.ndim(dim) == 0 else dim)]  # type: ignore[union-attr]
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"dim: must name one or more distinct dimensions, got {dim!r}")
    result = logits.reshape(1) if n_dims == 0 else logits
    for axis in sorted(axes, reverse=True):
        # One axis after the other: a partial result is as accurate as a logit.
        summed = np.empty(position_shape(result, axis), arithmetic_dtype(result.dtype))
        if result.shape[axis]:
            dispatch.kernels.logsumexp(as_stored(result), axis, summed, budget())
        else:
            summed[...] = -np.inf
        result = summed
    keeps = as_flag(keepdim, "keepdim") and n_dims > 0
    value = np.expand_dims(result, tuple(axes)) if keeps else result
    if gradient is None:
        return value, None
    upstream, grad_output = as_grad_output(gradient[0], logits.dtype, value.shape, "none")
    grad_out = as_grad_out(gradient[1], logits, {"grad_output": grad_output})
    _scaled_softmax(logits, axes, upstream if grad_output is None else grad_output, keeps, grad_out)
    return value, grad_out


def _scaled_softmax(
    logits: NDArray[Any], axes: Sequence[int], factor: Any, keeps: bool, out: NDArray[Any]
) -> None:
    """Write the softmax over several axes, times a factor of the others' shape."""
    if logits.ndim == 0:
        out[...] = factor
        return
    if np.ndim(factor) and not keeps:
        factor = np.expand_dims(factor, tuple(axes))
    if len(axes) == 1:
        softmax = np.empty(logits.shape, arithmetic_dtype(logits.dtype))
        dispatch.kernels.softmax(as_stored(logits), axes[0], softmax, budget())
    else:
        moved = np.moveaxis(logits, axes, range(-len(axes), 0))
        rows = np.ascontiguousarray(moved).reshape(*moved.shape[: -len(axes)], -1)
        of_rows = np.empty(rows.shape, arithmetic_dtype(logits.dtype))
        dispatch.kernels.softmax(as_stored(rows), rows.ndim - 1, of_rows, budget())
        softmax = np.moveaxis(of_rows.reshape(moved.shape), range(-len(axes), 0), axes)
    with np.errstate(all="ignore"):
        np.multiply(softmax, factor, out=softmax)
        out[...] = softmax
