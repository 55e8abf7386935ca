"""A loss in torch's graph: computed by cyce together with its gradient, which the backward pass scales."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyce.fused.requests import GradientRequest
from cyce.torch.tensors import array_of, result_of, tensor_of

# The errors by which cyce refuses arguments. torch's function is called then, which raises torch's.
REFUSALS = (TypeError, ValueError, IndexError)


class Loss(NamedTuple):
    """A loss that cyce computes of some tensors."""

    inputs: tuple[Tensor, ...]
    """What it is differentiated by."""
    evaluate: Callable[[GradientRequest | None], tuple[Any, Any]]
    """Returns the loss and the gradients: of one input an array, of several a tuple."""
    by_torch: Callable[..., Tensor]
    """The same by torch's function, of the inputs."""
    dtype: torch.dtype
    """Of the result."""
    axis: int | None = None
    """The axis of the classes, which an upstream gradient of positions lacks; None if there is none."""
    inplace: bool = False
    extensions: tuple[str, ...] = ()
    """Names of arguments that torch does not have."""


def computed(loss: Loss) -> Tensor:
    """Return the loss, with a gradient if an input requires it."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in loss.inputs):
        result: Tensor = Differentiable.apply(loss, *loss.inputs)
        return result
    return result_of(loss.evaluate(None)[0], loss.dtype)


def was_written(version: int, tensor: Tensor) -> bool:
    """Return whether a tensor was written to since it had this version; nobody knows of inference tensors."""
    return not tensor.is_inference() and tensor._version != version


# torch's own words.
BACKWARD_TWICE = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have "
    "already been freed). Saved intermediate values of the graph are freed when you call .backward() or "
    "autograd.grad(). Specify retain_graph=True if you need to backward through the graph a second time or "
    "if you need to access saved tensors after calling backward."
)


class Differentiable(torch.autograd.Function):  # type: ignore[misc]
    """The loss in torch's graph: the forward pass computes the gradient, which the backward pass scales."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, *inputs: Tensor) -> Tensor:
        """Compute the loss and its gradients."""
        out = None
        if loss.inplace:
            if inputs[0].is_leaf:
                raise RuntimeError(
                    "a leaf Variable that requires grad is being used in an in-place operation: inplace=True "
                    "would overwrite it with its gradient; pass the result of another operation"
                )
            out = array_of(inputs[0])
        value, gradients = loss.evaluate((None, out))
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        ctx.gradients = [tensor_of(gradient) for gradient in gradients]
        if loss.inplace:
            # Who has saved the logits must not take the gradient for them.
            torch.autograd.graph.increment_version(inputs[0])
            ctx.gradients = [inputs[0].detach()]
        ctx.loss = loss
        # Not saved for the backward pass: the logits may be overwritten before it, as with torch.
        ctx.versions = [0 if tensor.is_inference() else tensor._version for tensor in inputs]
        return result_of(value, loss.dtype)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> Any:
        """Return the gradients, times the upstream gradient."""
        (upstream,) = upstreams
        loss, gradients, needed = ctx.loss, ctx.gradients, ctx.needs_input_grad[1:]
        if loss is None:
            raise RuntimeError(BACKWARD_TWICE)
        if (loss.inplace or torch.is_grad_enabled()) and any(map(was_written, ctx.versions, loss.inputs)):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace "
                "operation: the input of the loss"
            )
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(loss, needed, upstream)
        keeps = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keeps:
            # Autograd takes over a gradient that nobody else refers to.
            ctx.loss = ctx.gradients = None
        scaled: list[Tensor | None] = []
        for number, is_needed in enumerate(needed):
            gradient, gradients[number] = gradients[number], gradients[number] if keeps else None
            scaled.append(scaled_by(gradient, upstream, loss.axis, keeps) if is_needed else None)
        return None, *scaled


def differentiable_gradients(loss: Loss, needed: Sequence[bool], upstream: Tensor) -> list[Tensor | None]:
    """Return the gradients by torch's formula, for second derivatives."""
    if loss.inplace:
        raise RuntimeError("inplace=True overwrites the logits, so that there is no second derivative")
    if loss.extensions:
        raise RuntimeError(f"{', '.join(loss.extensions)}: not in torch, whose second derivatives these are")
    again = loss.by_torch(*loss.inputs).to(loss.dtype)
    wanted = [tensor for tensor, is_needed in zip(loss.inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(again, wanted, upstream, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def scaled_by(gradient: Tensor, upstream: Tensor, axis: int | None, keeps: bool) -> Tensor:
    """Return a gradient times the upstream gradient, in its own memory unless it has to be kept."""
    factor: Any = upstream
    if upstream.ndim == 0 and gradient.ndim != 0:
        factor = upstream.item()
    elif axis is not None and upstream.ndim < gradient.ndim:
        factor = upstream.unsqueeze(axis)
    if isinstance(factor, Tensor):
        factor = factor.to(gradient.dtype)
    if keeps:
        return gradient * factor
    return gradient if isinstance(factor, float) and factor == 1 else gradient.mul_(factor)


def computed_or_torch_s(loss: Loss) -> Tensor:
    """Return the loss; if cyce refuses the arguments, torch's, whose errors they are."""
    try:
        return computed(loss)
    except REFUSALS:
        if loss.extensions:
            raise
    return loss.by_torch(*loss.inputs)


def refuse_extensions(extensions: dict[str, Any], input: Any) -> None:
    """Raise if there are arguments that torch does not have, for tensors that cyce does not take."""
    if extensions:
        what = f"{input.dtype} on {input.device}" if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(
            f"{', '.join(extensions)}: not in torch, and cyce does not compute this call; it takes ordinary, "
            "non-empty CPU tensors of one floating point dtype, with int64 targets or probabilities of that "
            f"dtype; got {what}"
        )


def extensions_of(**named: tuple[Any, Any]) -> dict[str, Any]:
    """Return the arguments, given as (value, default), that are not at their defaults."""
    return {
        name: value for name, (value, default) in named.items() if value is not default and value != default
    }
