"""Operators for torch.compile and torch.export: what a compiler sees in place of the functions.

Each returns the loss and the gradient for an upstream gradient of 1, without elements unless it is wanted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cyce.fused import cross_entropy as fused_cross_entropy
from cyce.fused import elementwise as fused_elementwise
from cyce.fused import nll_loss as fused_nll_loss
from cyce.torch.autograd import REFUSALS
from cyce.torch.tensors import TORCH, array_of, result_of


def gradient_like(input: Tensor, wants_gradient: bool) -> Tensor:
    """Return an empty tensor for the gradient, of no elements if there is none.

    That of float16 is float32 until it is scaled.
    """
    dtype = torch.float32 if input.dtype == torch.float16 else input.dtype
    return torch.empty_like(input, dtype=dtype) if wants_gradient else input.new_empty(0, dtype=dtype)


def dtype_of_loss(input: Tensor) -> torch.dtype:
    """Return the dtype of an operator's loss, which is not rounded to half precision."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def shape_of_loss(input: Tensor, reduction: str, axis: int | None) -> list[int]:
    """Return the shape of a loss; axis: None if each element has one."""
    if reduction != "none":
        return []
    shape = list(input.shape)
    if axis is not None:
        del shape[axis]
    return shape


def evaluated(
    function: Callable[..., tuple[Any, Any]],
    input: Tensor,
    arguments: Sequence[Any],
    wants_gradient: bool,
    by_torch: Callable[[], Tensor],
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient as an operator's outputs."""
    gradient = gradient_like(input, wants_gradient)
    request = (None, array_of(gradient)) if wants_gradient else None
    try:
        value, _ = function(array_of(input), *arguments, gradient=request, **named)
    except REFUSALS:
        by_torch()
        raise
    return result_of(value, dtype_of_loss(input)), gradient


@torch.library.custom_op("cyce::scaled", mutates_args=())  # type: ignore[untyped-decorator]
def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient times a factor; what is 0, as at ignored positions, stays 0 whatever that is."""
    product = gradient * factor
    if not factor.isfinite().all():
        product = torch.where(gradient == 0, gradient, product)
    return product.to(dtype)


@scaled.register_fake  # type: ignore[untyped-decorator]
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * factor).to(dtype)


def register(
    name: str, axis_of: Callable[[tuple[Any, ...]], int | None], reduction_at: int
) -> Callable[[Callable[..., tuple[Tensor, Tensor]]], Any]:
    """Decorate the implementation of an operator, whose last argument is whether the gradient is wanted.

    axis_of: the axis of the classes, from all arguments. reduction_at: which argument is the reduction.
    """

    def decorate(implementation: Callable[..., tuple[Tensor, Tensor]]) -> Any:
        operator = torch.library.custom_op(f"cyce::{name}", implementation, mutates_args=())

        def fake(*arguments: Any) -> tuple[Tensor, Tensor]:
            logits = arguments[0]
            shape = shape_of_loss(logits, arguments[reduction_at], axis_of(arguments))
            return logits.new_empty(shape, dtype=dtype_of_loss(logits)), gradient_like(logits, arguments[-1])

        def set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.axis = axis_of(inputs) if inputs[reduction_at] == "none" else None
            ctx.n_inputs = len(inputs)
            ctx.dtype = inputs[0].dtype
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(output[1])

        def backward(ctx: Any, upstream: Tensor, _: Any) -> Any:
            # With gradients enabled, this is for a second derivative, unless a compiler looks on.
            if torch.is_grad_enabled() and not torch._C._len_torch_dispatch_stack():
                raise RuntimeError(f"cyce::{name}: a compiled or exported loss has no second derivative")
            (gradient,) = ctx.saved_tensors
            factor = upstream if ctx.axis is None else upstream.unsqueeze(ctx.axis)
            return scaled(gradient, factor, ctx.dtype), *[None] * (ctx.n_inputs - 1)

        operator.register_fake(fake)
        operator.register_autograd(backward, setup_context=set_up)
        return operator

    return decorate


def torch_axis(arguments: tuple[Any, ...]) -> int:
    """Return torch's axis of the classes."""
    return 0 if arguments[0].ndim == 1 else 1


def given_axis(arguments: tuple[Any, ...]) -> int:
    """Return the axis of the classes of the operator `cross_entropy`."""
    axis: int = arguments[7]
    return axis


def no_axis(_arguments: tuple[Any, ...]) -> None:
    """Losses of single elements have no classes."""


@register("cross_entropy", given_axis, 4)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    axis: int,
    normalizer: float | None,
    empty: str,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `cyce.torch.cross_entropy`, with the axis of the classes."""
    return evaluated(
        fused_cross_entropy.cross_entropy,
        input,
        [array_of(target), array_of(weight)],
        wants_gradient,
        lambda: TORCH["cross_entropy"](
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        ),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        axis=axis,
        sample_weight=array_of(sample_weight),
        normalizer=normalizer,
        empty=empty,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
    )


@register("nll_loss", torch_axis, 3)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `cyce.torch.nll_loss`."""
    return evaluated(
        fused_nll_loss.nll_loss,
        input,
        [array_of(target), array_of(weight)],
        wants_gradient,
        lambda: TORCH["nll_loss"](input, target, weight, ignore_index=ignore_index, reduction=reduction),
        ignore_index=ignore_index,
        reduction=reduction,
    )


@register("binary_cross_entropy_with_logits", no_axis, 4)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `cyce.torch.binary_cross_entropy_with_logits`."""
    return evaluated(
        fused_elementwise.binary_cross_entropy_with_logits,
        input,
        [array_of(target), array_of(weight)],
        wants_gradient,
        lambda: TORCH["binary_cross_entropy_with_logits"](
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        ),
        reduction=reduction,
        pos_weight=array_of(pos_weight),
    )


@register("kl_div", no_axis, 2)
def kl_div(
    input: Tensor, target: Tensor, reduction: str, log_target: bool, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Compute `cyce.torch.kl_div`."""
    return evaluated(
        fused_elementwise.kl_div,
        input,
        [array_of(target)],
        wants_gradient,
        lambda: TORCH["kl_div"](input, target, reduction=reduction, log_target=log_target),
        reduction=reduction,
        log_target=log_target,
    )
