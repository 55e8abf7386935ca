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
    as_number,
    as_stored,
    class_axis,
    described,
    position_shape,
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
    call, array, of_classes = _call(logits, axis, softcap, temperature, class_mask, index)
    has_entropy = as_flag(return_entropy, "return_entropy")
    shape = as_array(index, "index").shape
    call.chosen = as_chosen(index, array, of_classes, "index", may_be_one=True).classes
    upstreams = None, None
    if call.class_mask is not None:
        check_mask(call)
    if gradient is not None:
        upstreams = upstreams_of(gradient[0], has_entropy)
    set_upstreams(call, upstreams[0], upstreams[1], shape, has_entropy)
    grad_out = _run(call, array, gradient, {"grad_output": call.entropy_grad})
    result = call.chosen_out
    if shape != position_shape(array, of_classes):
        result = np.moveaxis(result, -1, of_classes)
    result = result.reshape(shape)
    return ((result, call.entropy_out) if has_entropy else result), grad_out


def upstreams_of(given: Any, has_entropy: bool) -> tuple[Any, Any]:
    """Return the upstream gradients of the log-probabilities and of the entropies, as given."""
    if not has_entropy:
        return given, None
    if given is None:
        return None, None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(
            "grad_output: with return_entropy=True, must be a tuple of two, of the log-probabilities and of "
            "the entropies"
        )
    return given[0], given[1]


def set_upstreams(
    call: CrossEntropyArguments,
    of_chosen: Any,
    of_entropy: Any,
    shape: tuple[int, ...],
    has_entropy: bool,
) -> None:
    """Set the upstream gradients, and the arrays for the results, of chosen classes that are set already.

    shape: of the index.
    """
    dtype = arithmetic_dtype(call.logits.dtype)
    positions = call.chosen.shape[:-1]
    factor, array = as_grad_output(of_chosen, dtype, shape, "none")
    masses = np.full(call.chosen.shape, -factor, dtype)
    if array is not None:
        if shape != positions:
            array = np.moveaxis(array, call.axis, -1)
        np.negative(array.reshape(call.chosen.shape), out=masses)
    call.chosen_mass = masses
    # Zeros: of no classes, the kernel writes nothing.
    call.chosen_out = np.zeros(call.chosen.shape, dtype)
    if has_entropy:
        set_entropy(call, of_entropy, positions, dtype)


def set_entropy(
    call: CrossEntropyArguments, of_entropy: Any, positions: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Set the upstream gradient of the entropy, and the array for it."""
    factor, array = as_grad_output(of_entropy, dtype, positions, "none")
    call.entropy_grad = np.full(positions, factor, dtype) if array is None else array
    call.entropy_out = np.zeros(positions, dtype)


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
    call, array, of_classes = _call(logits, axis, softcap, temperature, class_mask)
    positions = position_shape(array, of_classes)
    upstream = None if gradient is None else gradient[0]
    set_entropy(call, upstream, positions, arithmetic_dtype(array.dtype))
    grad_out = _run(call, array, gradient, {"grad_output": call.entropy_grad})
    return call.entropy_out, grad_out


def _call(
    logits: Any, axis: Any, softcap: Any, temperature: Any, class_mask: Any, index: Any = None
) -> tuple[CrossEntropyArguments, NDArray[Any], int]:
    """Return the arguments of the kernel, the logits as an array, and the axis of the classes."""
    array = as_logits(logits, name="logits", target=index)
    of_classes = class_axis(array) if axis is None else as_axis(axis, array.ndim, "axis")
    dtype = arithmetic_dtype(array.dtype)
    call = CrossEntropyArguments()
    call.logits, call.axis = as_stored(array), of_classes
    if softcap is not None:
        call.softcap = as_number(softcap, "softcap", dtype)
    call.temperature = as_number(temperature, "temperature", dtype)
    if class_mask is not None:
        call.class_mask = as_class_mask(class_mask, array)
    call.num_threads = budget()
    return call, array, of_classes


def check_mask(call: CrossEntropyArguments) -> None:
    """Raise if a chosen class is one that its position does not have."""
    check_chosen(call.class_mask, call.axis, call.chosen, call.chosen >= 0, "index")


def _run(
    call: CrossEntropyArguments,
    logits: NDArray[Any],
    gradient: GradientRequest | None,
    read: dict[str, NDArray[Any] | None],
) -> NDArray[Any] | None:
    """Call the kernel; return the gradient, None unless requested."""
    grad_out = None
    if gradient is None:
        call.entropy_grad = None
    else:
        grad_out = as_grad_out(gradient[1], logits, {**read, "class_mask": call.class_mask})
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
    call, array, of_classes = _call(logits, axis, softcap, temperature, class_mask)
    n_classes, positions = array.shape[of_classes], position_shape(array, of_classes)
    try:
        number = operator.index(k)
    except TypeError:
        raise TypeError(f"k: must be an integer, got {described(k)}") from None
    if not 1 <= number <= n_classes:
        raise ValueError(f"k: must be from 1 to the number of classes, {n_classes}, got {k}")
    call.chosen = np.empty((*positions, number), np.int64)
    dispatch.kernels.highest(call.logits, of_classes, call.class_mask, number, call.chosen, call.num_threads)
    set_upstreams(call, None, None, call.chosen.shape, False)
    _run(call, array, None, {})
    return np.moveaxis(call.chosen_out, -1, of_classes), np.moveaxis(call.chosen, -1, of_classes)
