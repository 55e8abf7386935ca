"""Log-probabilities of chosen classes, and the entropy of the softmax, with their gradients, in one pass."""

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_array,
    as_axis,
    as_flag,
    as_grad_output,
    as_logits,
    as_stored,
    class_axis,
    described,
    position_shape,
    set_transforms,
)
from cyce._targets import as_chosen, as_class_mask, check_chosen
from cyce.fused.requests import GradientRequest, as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.threads.budget import budget


def selective_log_softmax(
    logits: Any,
    index: Any,
    *,
    axis: int | None = None,
    return_entropy: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return log-probabilities, and entropies, and the gradient, None unless requested."""
    call, array = _call(logits, axis, index)
    set_chosen(call, index, array, softcap, temperature, class_mask, return_entropy, gradient)
    grad_out = _run(call, array, gradient)
    return result_of_chosen(call, index), grad_out


def set_chosen(
    call: CrossEntropyArguments,
    index: Any,
    logits: NDArray[Any],
    softcap: Any,
    temperature: Any,
    class_mask: Any,
    return_entropy: Any,
    gradient: GradientRequest | None,
) -> None:
    """Set everything but the logits, their axis and the gradient."""
    has_entropy = as_flag(return_entropy, "return_entropy")
    call.chosen = as_chosen(index, logits, call.axis, "index", may_be_one=True).classes
    _set_options(call, logits, softcap, temperature, class_mask)
    if class_mask is not None:
        check_chosen(call.class_mask, call.axis, call.chosen, np.ones(call.chosen.shape, bool), "index")
    of_chosen, of_entropy = None if gradient is None else gradient[0], None
    if has_entropy and of_chosen is not None:
        if not isinstance(of_chosen, tuple | list) or len(of_chosen) != 2:
            raise TypeError(
                "grad_output: with return_entropy=True, must be a tuple of two, of the log-probabilities and "
                "of the entropies"
            )
        of_chosen, of_entropy = of_chosen
    dtype, positions = arithmetic_dtype(logits.dtype), call.chosen.shape[:-1]
    _set_masses(call, of_chosen, as_array(index, "index").shape, dtype)
    if has_entropy:
        _set_entropy(call, of_entropy, positions, dtype, gradient is not None)


def _set_options(
    call: CrossEntropyArguments, logits: NDArray[Any], softcap: Any, temperature: Any, class_mask: Any
) -> None:
    """Set what changes the logits."""
    set_transforms(call, softcap, temperature, logits.dtype)
    if class_mask is not None:
        call.class_mask = as_class_mask(class_mask, logits)


def _set_masses(
    call: CrossEntropyArguments, of_chosen: Any, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Set the masses of the chosen classes, and the array for their log-probabilities.

    of_chosen: the upstream gradient, of the index's shape, or a number, or None for 1.
    """
    factor, array = as_grad_output(of_chosen, dtype, shape, "none")
    # sum(g * log_softmax) is the loss with masses -g.
    masses = np.full(call.chosen.shape, -factor, dtype)
    if array is not None:
        if shape != call.chosen.shape[:-1]:
            array = np.moveaxis(array, call.axis, -1)
        np.negative(array.reshape(call.chosen.shape), out=masses)
    call.chosen_mass = masses
    # Zeros: of no classes, the kernel writes nothing.
    call.chosen_out = np.zeros(call.chosen.shape, dtype)


def _set_entropy(
    call: CrossEntropyArguments,
    upstream: Any,
    positions: tuple[int, ...],
    dtype: np.dtype[Any],
    has_gradient: bool,
) -> None:
    """Set the upstream gradient of the entropy, and the array for it."""
    call.entropy_out = np.zeros(positions, dtype)
    if has_gradient:
        factor, array = as_grad_output(upstream, dtype, positions, "none")
        call.entropy_grad = np.full(positions, factor, dtype) if array is None else array


def result_of_chosen(call: CrossEntropyArguments, index: Any) -> Any:
    """Return the log-probabilities in the shape of the index, and the entropies, if wanted."""
    result, shape = call.chosen_out, as_array(index, "index").shape
    if shape != call.chosen.shape[:-1]:
        result = np.moveaxis(result, -1, call.axis)
    result = result.reshape(shape)
    return result if call.entropy_out is None else (result, call.entropy_out)


def entropy(
    logits: Any,
    *,
    axis: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the entropies and the gradient, None unless requested."""
    call, array = _call(logits, axis)
    _set_options(call, array, softcap, temperature, class_mask)
    upstream = None if gradient is None else gradient[0]
    positions = position_shape(array, call.axis)
    _set_entropy(call, upstream, positions, arithmetic_dtype(array.dtype), gradient is not None)
    grad_out = _run(call, array, gradient)
    return call.entropy_out, grad_out


def _call(logits: Any, axis: Any, index: Any = None) -> tuple[CrossEntropyArguments, NDArray[Any]]:
    """Return arguments of the kernel with the logits and their axis, and the logits as an array."""
    array = as_logits(logits, name="logits", target=index)
    call = CrossEntropyArguments()
    call.logits = as_stored(array)
    call.axis = class_axis(array) if axis is None else as_axis(axis, array.ndim, "axis")
    call.num_threads = budget()
    return call, array


def _run(
    call: CrossEntropyArguments, logits: NDArray[Any], gradient: GradientRequest | None
) -> NDArray[Any] | None:
    """Call the kernel; return the gradient, None unless requested."""
    grad_out = None
    if gradient is not None:
        read = {"grad_output": call.entropy_grad, "class_mask": call.class_mask}
        grad_out = as_grad_out(gradient[1], logits, read)
        call.grad_out = as_stored(grad_out)
    dispatch.kernels.cross_entropy(call)
    return grad_out


def topk_log_softmax(
    logits: Any,
    k: Any,
    *,
    axis: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the highest log-probabilities and their classes, with these at the class axis."""
    call, array = _call(logits, axis)
    _set_options(call, array, softcap, temperature, class_mask)
    n_classes, positions = array.shape[call.axis], position_shape(array, call.axis)
    try:
        number = operator.index(k)
    except TypeError:
        raise TypeError(f"k: must be an integer, got {described(k)}") from None
    if not 1 <= number <= n_classes:
        raise ValueError(f"k: must be from 1 to the number of classes, {n_classes}, got {k}")
    call.chosen = np.empty((*positions, number), np.int64)
    dispatch.kernels.highest(call.logits, call.axis, call.class_mask, number, call.chosen, call.num_threads)
    _set_masses(call, None, call.chosen.shape, arithmetic_dtype(array.dtype))
    _run(call, array, None)
    return np.moveaxis(call.chosen_out, -1, call.axis), np.moveaxis(call.chosen, -1, call.axis)
