"""Cross-entropy of logits and its gradient in one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_axis,
    as_grad_output,
    as_ignore_index,
    as_label_smoothing,
    as_logits,
    as_reduction,
    as_stored,
    as_target,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
    set_extensions,
)
from cyce._targets import SparseTarget, as_class_mask, check_unmasked, set_sparse_target
from cyce.fused.plain import plain_mean
from cyce.fused.requests import (
    GradientRequest,
    HessianRequest,
    StatsRequest,
    as_grad_out,
    as_hessian_outs,
    as_product_out,
    as_vector,
)
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.threads.budget import budget


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
    stats: StatsRequest | None = None,
    focus: tuple[float, float] | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested; fill the arrays of `stats`.

    focus: gamma and poly1 of a focal loss.
    """
    # Check types first: `==` on an array is elementwise.
    if (
        weight is size_average is reduce is axis is sample_weight is normalizer is softcap is None
        and focus is class_mask is stats is None
        and (type(reduction) is type(empty) is str and reduction == "mean" and empty == "nan")
        and (type(ignore_index) is int and ignore_index == -100)
        and (type(label_smoothing) is type(z_loss) is type(temperature) is float)
        and label_smoothing == z_loss == 0.0
        and temperature == 1.0
        and (answer := plain_mean(input, target, gradient, picks=False)) is not None
    ):
        return answer
    reduction = as_reduction(reduction, size_average, reduce)
    logits = as_logits(input, target=target)
    dtype = arithmetic_dtype(logits.dtype)
    axis = class_axis(logits) if axis is None else as_axis(axis, logits.ndim, "axis")
    is_sparse = type(target) is SparseTarget
    indices, probabilities = (None, None) if is_sparse else as_target(target, logits, axis)
    # Arguments at their defaults need no validation, which takes most of the time of a small call. Check the
    # type first: `==` on an array is elementwise.
    if weight is not None:
        weight = as_weight(weight, logits, axis)
    if type(ignore_index) is not int or ignore_index != -100:
        ignore_index = as_ignore_index(ignore_index)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = as_label_smoothing(label_smoothing)
    if probabilities is not None and ignore_index >= 0:
        raise ValueError(
            "ignore_index is not supported for floating point target: target is class probabilities, "
            f"ignore_index must be negative; got {ignore_index}"
        )
    call = CrossEntropyArguments()
    grad_out: Any = None
    if not (
        sample_weight is normalizer is softcap is None
        and (type(empty) is str and empty == "nan")
        and (type(z_loss) is float and z_loss == 0.0)
        and (type(temperature) is float and temperature == 1.0)
    ):
        set_extensions(
            call, sample_weight, normalizer, empty, z_loss, softcap, temperature, logits, axis, reduction
        )
    is_half = dtype is not logits.dtype
    call.logits = as_stored(logits) if is_half else logits
    call.axis = axis
    call.target = indices
    call.num_threads = budget()
    # An assignment takes 20 ns.
    if probabilities is not None:
        call.probabilities = as_stored(probabilities)
    if weight is not None:
        call.weight = weight
    if ignore_index != -100:
        call.ignore_index = ignore_index
    if label_smoothing:
        call.label_smoothing = label_smoothing
    # One condition, for the sake of small calls.
    if is_sparse or not (class_mask is focus is None):
        _set_others(call, target, indices, probabilities, class_mask, focus, logits, weight)
    if reduction == "mean":
        call.mean = True
    elif reduction == "none":
        call.loss_out = np.empty(position_shape(logits, axis), dtype)
    if stats is not None:
        call.loss_out, *call.stats_out = (array for array in stats if array is not None)
    elif gradient is not None:
        upstream, out = gradient
        grad_output = None
        if upstream is not None:
            call.upstream, grad_output = as_grad_output(
                upstream, dtype, position_shape(logits, axis), reduction
            )
            call.grad_output = grad_output
        read = {
            "target": indices if probabilities is None else probabilities,
            "weight": weight,
            "sample_weight": call.sample_weight,
            "class_mask": call.class_mask,
            "grad_output": grad_output,
        }
        if isinstance(gradient, HessianRequest):
            grad_out = _set_second_order(call, gradient, logits, read)
        else:
            grad_out = as_grad_out(out, logits, read)
            call.grad_out = as_stored(grad_out) if is_half else grad_out
    try:
        value = dispatch.kernels.cross_entropy(call)
    except IndexError as error:
        if indices is None:
            raise
        raise IndexError(
            describe_bad_target(error.args[0], indices, logits.shape[axis], ignore_index)
        ) from None
    return call.loss_out if reduction == "none" else dtype.type(value), grad_out


def _set_second_order(
    call: CrossEntropyArguments,
    request: HessianRequest,
    logits: NDArray[Any],
    read: dict[str, NDArray[Any] | None],
) -> Any:
    """Set what is wanted of the Hessian; return the gradient and the diagonal, or the product."""
    if call.softcap:
        raise ValueError(
            "softcap: second derivatives are not available with it; for those with respect to the capped "
            "logits, pass input = softcap * np.tanh(logits / softcap) and no softcap"
        )
    if request.vector is None:
        grad_out, hessian_out = as_hessian_outs(request[1], logits, read)
        call.grad_out, call.hessian_out = as_stored(grad_out), as_stored(hessian_out)
        call.hessian_factor, call.hessian_floor = request.factor, request.floor
        return grad_out, hessian_out
    vector = as_vector(request.vector, logits)
    product_out = as_product_out(request[1], logits, {**read, "vector": vector})
    call.grad_out, call.vector = as_stored(product_out), as_stored(vector)
    return product_out


def _set_others(
    call: CrossEntropyArguments,
    target: Any,
    indices: NDArray[Any] | None,
    probabilities: NDArray[Any] | None,
    class_mask: Any,
    focus: tuple[float, float] | None,
    logits: NDArray[Any],
    weight: NDArray[Any] | None,
) -> None:
    """Set a sparse target, a class mask, what makes the loss a focal one."""
    is_sparse = indices is probabilities is None
    if class_mask is not None:
        call.class_mask = as_class_mask(class_mask, logits)
        if not is_sparse:
            check_unmasked(call.class_mask, call.axis, indices, probabilities, call.ignore_index)
    if is_sparse:
        set_sparse_target(call, target, logits, weight)
    if focus is not None:
        if indices is None:
            advice = "" if is_sparse else f", such as target.argmax(axis={call.axis}) of class probabilities"
            raise TypeError(f"target: a focal loss takes class indices, one for each position{advice}")
        call.is_focal = True
        call.gamma, call.poly1 = focus
