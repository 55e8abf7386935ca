"""What the arguments of `linear_cross_entropy` must be, and their form for the pass over chunks."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_floating,
    as_grad_output,
    as_ignore_index,
    as_label_smoothing,
    as_out,
    as_stored,
    as_target,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
    set_extensions,
)
from cyce._targets import SparseTarget, as_class_mask, check_unmasked, set_sparse_target
from cyce.fused.requests import GradientRequest
from cyce.kernels.arguments import CrossEntropyArguments


class Layer(NamedTuple):
    """Hidden states and the parameters of the layer that makes logits of them."""

    hidden: NDArray[Any]
    """(H,) or (N, H)"""
    weights: NDArray[Any]
    """(C, d1, ..., dk, H)"""
    bias: NDArray[Any] | None
    """(C, d1, ..., dk)"""

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """What the loss has gradients of, by the names of the arguments."""
        named = {"input": self.hidden, "linear_weight": self.weights, "linear_bias": self.bias}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one row, (C, d1, ..., dk)."""
        return self.weights.shape[:-1]

    @property
    def n_rows(self) -> int:
        """Number of rows N, 1 if there is no such axis."""
        return 1 if self.hidden.ndim == 1 else len(self.hidden)

    @property
    def n_inner(self) -> int:
        """Number of positions of a row, d1 * ... * dk."""
        return math.prod(self.row_shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """What is computed with, the dtype of the logits."""
        return arithmetic_dtype(self.hidden.dtype)

    def logits(self) -> NDArray[Any]:
        """Return an array of the logits' shape and dtype that takes no memory."""
        return _of_shape((*self.hidden.shape[:-1], *self.row_shape), self.dtype)


class Loss(NamedTuple):
    """The loss of the logits."""

    call: CrossEntropyArguments
    """Its arguments for one call with all logits, of which there is only the shape."""
    positions: tuple[int, ...]
    """The positions' shape."""
    reduction: str

    def describe_bad_target(self, position: int) -> str:
        """Return the message for a bad target."""
        call = self.call
        n_classes = call.logits.shape[call.axis]
        return describe_bad_target(position, call.target, n_classes, call.ignore_index, "linear_weight")


class Upstream(NamedTuple):
    """The upstream gradient, and where the gradients go."""

    factor: float = 1.0
    grad_output: NDArray[Any] | None = None
    """Of the positions' shape."""
    outs: list[NDArray[Any] | None] | None = None
    """In the order of `Layer.parameters`, None for those that are not wanted; None if none is requested."""


def as_layer(input: Any, linear_weight: Any, linear_bias: Any) -> Layer:
    """Return hidden states and parameters of one dtype and of shapes that fit."""
    hidden = as_floating(input, what="hidden states")
    if hidden.ndim not in (1, 2):
        raise ValueError(
            f"expected input with dimensionality 1 or 2, got {hidden.ndim}: input must have shape "
            "(in_features,) or (N, in_features); make rows of sequences: input.reshape(-1, in_features), "
            "target.reshape(-1)"
        )
    weights = _as_parameter(linear_weight, "linear_weight", hidden.dtype)
    bias = None if linear_bias is None else _as_parameter(linear_bias, "linear_bias", hidden.dtype)
    if weights.ndim < 2:
        raise ValueError(
            f"expected linear_weight with dimensionality at least 2, got {weights.ndim}: it must have shape "
            "(C, in_features) or (C, d1, ..., dk, in_features)"
        )
    if bias is not None and bias.shape != weights.shape[:-1]:
        raise ValueError(
            f"expected linear_bias shape {weights.shape[:-1]}, got {bias.shape}: it must have one number for "
            "each logit of a row"
        )
    if hidden.shape[-1] != weights.shape[-1]:
        raise ValueError(
            "expected equal input and linear_weight last dimensions (in_features), got "
            f"{hidden.shape[-1]} and {weights.shape[-1]}, respectively: input has shape {hidden.shape}, "
            f"linear_weight {weights.shape}"
        )
    if weights.ndim > 2 and hidden.ndim == 1:
        raise ValueError(
            f"K-dimensional loss defined by linear_weight shape {weights.shape} requires batched input, "
            f"(N, {hidden.shape[-1]}), got unbatched input with shape {hidden.shape}"
        )
    return Layer(hidden, weights, bias)


def _as_parameter(value: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the weights or the bias of the layer."""
    array = as_floating(value, what="parameters", name=name)
    if array.dtype != dtype:
        raise TypeError(
            f"{name}: must have the dtype of input, {dtype.name}, got {array.dtype.name}; cast one of them"
        )
    return array


def as_loss(
    target: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    extensions: tuple[Any, Any, Any, Any, Any, Any],
    logits: NDArray[Any],
    reduction: str,
    class_mask: Any = None,
) -> Loss:
    """Return the loss of logits of this shape and dtype.

    extensions: sample_weight, normalizer, empty, z_loss, softcap, temperature.
    """
    call = CrossEntropyArguments()
    call.logits = logits
    axis = call.axis = class_axis(logits)
    indices = probabilities = None
    if not isinstance(target, SparseTarget):
        indices, probabilities = as_target(target, logits, axis, "the logits", has_axis=False)
    if probabilities is not None:
        call.probabilities = as_stored(probabilities)
    call.weight = as_weight(weight, logits, axis, "the logits")
    positions = position_shape(logits, axis)
    if probabilities is not None and ignore_index is not None:
        raise ValueError(
            "ignore_index cannot be specified when target contains probabilities: target has the shape of "
            f"the logits, so that ignore_index must be None; got {ignore_index}"
        )
    if ignore_index is not None:
        call.ignore_index = as_ignore_index(ignore_index)
    call.label_smoothing = as_label_smoothing(label_smoothing)
    set_extensions(call, *extensions, logits, axis, reduction)
    call.mean = reduction == "mean"
    call.target = indices
    if class_mask is not None:
        call.class_mask = as_class_mask(class_mask, logits)
    if isinstance(target, SparseTarget):
        set_sparse_target(call, target, logits, call.weight)
    elif call.class_mask is not None:
        check_unmasked(call.class_mask, axis, indices, probabilities, call.ignore_index)
    return Loss(call, positions, reduction)


def as_upstream(
    gradient: GradientRequest | None, wanted: Sequence[bool] | None, layer: Layer, loss: Loss
) -> Upstream:
    """Return the upstream gradient and the arrays for the gradients."""
    if gradient is None:
        return Upstream()
    dtype, parameters, call = layer.hidden.dtype, layer.parameters, loss.call
    upstream, out = gradient
    factor, grad_output = as_grad_output(upstream, layer.dtype, loss.positions, loss.reduction)
    if wanted is None:
        wanted = [True] * len(parameters)
    if out is None:
        outs = [
            np.empty(array.shape, dtype) if is_wanted else None
            for array, is_wanted in zip(parameters.values(), wanted, strict=True)
        ]
        return Upstream(factor, grad_output, outs)
    read = {
        **parameters,
        "target": call.target if call.probabilities is None else call.probabilities,
        "weight": call.weight,
        "sample_weight": call.sample_weight,
        "class_mask": call.class_mask,
        "grad_output": grad_output,
    }
    return Upstream(factor, grad_output, _as_outs(out, wanted, parameters, read))


def _as_outs(
    value: Any,
    wanted: Sequence[bool],
    parameters: dict[str, NDArray[Any]],
    read: dict[str, NDArray[Any] | None],
) -> list[NDArray[Any] | None]:
    """Return arrays over the memory of `out`, one for each gradient."""
    names = ", ".join(parameters)
    if not isinstance(value, (tuple, list)) or len(value) != len(parameters):
        what = f"{len(value)} of them" if isinstance(value, (tuple, list)) else type(value).__name__
        raise TypeError(
            f"out: must be a tuple of {len(parameters)} arrays, for the gradients of {names}; got {what}"
        )
    outs: list[NDArray[Any] | None] = []
    for (name, parameter), out, is_wanted in zip(parameters.items(), value, wanted, strict=True):
        if not is_wanted:
            outs.append(None)
            continue
        others = {**read, **{f"out[{i}]": other for i, other in enumerate(outs)}}
        # The parameters are among the others: no gradient may overwrite what the next chunk reads.
        like = _of_shape(parameter.shape, parameter.dtype)
        outs.append(as_out(out, like, others, whose=f"{name}'s"))
    return outs


def _of_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array of a shape and a dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
