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
    others: tuple[Tensor | None, ...]
    """Targets and weights."""
    evaluate: Callable[[GradientRequest | None], tuple[Any, Any]] | None
    """Returns the loss and the gradients: of one input an array, of several a tuple, with None for those
    that no gradient is required of. None afterwards."""
    by_torch: Callable[..., Tensor]
    """The same by torch's function, of the inputs."""
    dtype: torch.dtype
    """Of the result."""
    axis: int | None = None
    """The axis of the classes, which an upstream gradient of positions lacks; None if there is none."""
    inplace: bool = False
    extensions: tuple[str, ...] = ()
    """Names of arguments that torch does not have."""
    falls_back: bool = True
    """Whether `by_torch` is called where cyce refuses the arguments; else the error is cyce's."""


def computed_or_torch_s(loss: Loss) -> Tensor:
    """Return the loss, with a gradient if an input requires it.

    If cyce refuses the arguments, torch's function gets them, whose errors they are.
    """
    try:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in loss.inputs):
            result: Tensor = Differentiable.apply(loss, *loss.inputs)
            return result
        assert loss.evaluate is not None
        return result_of(loss.evaluate(None)[0], loss.dtype)
    except REFUSALS:
        if loss.extensions or not loss.falls_back:
            raise
    return loss.by_torch(*loss.inputs)


def refuse_leaf(tensor: Tensor) -> None:
    """Raise if a leaf of the graph, or a view of one, would be overwritten."""
    base = tensor._base if tensor._is_view() else None
    if tensor.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation: inplace=True would "
            "overwrite it with its gradient; pass the result of another operation"
        )


class Differentiable(torch.autograd.Function):  # type: ignore[misc]
    """The loss in torch's graph: the forward pass computes the gradient, which the backward pass scales."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, *inputs: Tensor) -> Tensor:
        """Compute the loss and its gradients."""
        out = None
        if loss.inplace:
            refuse_leaf(inputs[0])
            out = array_of(inputs[0])
        elif inputs[0].dtype == torch.float16:
            # Gradients of a mean may be too small for float16 until they are scaled.
            out = tuple(
                array_of(torch.empty_like(tensor, dtype=torch.float32)) if tensor.requires_grad else None
                for tensor in inputs
            )
            out = out if len(out) > 1 else out[0]
        assert loss.evaluate is not None
        value, gradients = loss.evaluate((None, out))
        if loss.inplace:
            # Who has saved the logits must not take the gradient for them.
            torch.autograd.graph.increment_version(inputs[0])
            saved = [inputs[0].detach()]
        else:
            saved = list(map(tensor_of, gradients if isinstance(gradients, tuple) else (gradients,)))
        # Checkpoints and the like, which take what is saved elsewhere, get the logits, too.
        ctx.saves_inputs = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ctx.save_for_backward(*saved, *(inputs if ctx.saves_inputs else ()))
        # Otherwise they are not saved: they may be overwritten before the backward pass, as with torch.
        ctx.loss = loss._replace(evaluate=None, inputs=() if ctx.saves_inputs else inputs)
        ctx.states = list(map(state_of, (*inputs, *loss.others)))
        ctx.dtype = inputs[0].dtype
        return result_of(value, loss.dtype)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> Any:
        """Return the gradients, times the upstream gradient."""
        (upstream,) = upstreams
        needed = ctx.needs_input_grad[1:]
        saved = list(ctx.saved_tensors)
        loss: Loss = ctx.loss
        if torch.is_grad_enabled():
            inputs = saved[-len(needed) :] if ctx.saves_inputs else loss.inputs
            checked = zip(ctx.states, (*inputs, *loss.others), strict=True)
            if not ctx.saves_inputs and any(state != state_of(tensor) for state, tensor in checked):
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace "
                    "operation: an argument of the loss, whose second derivative needs it as it was"
                )
            return None, *differentiable_gradients(loss, inputs, needed, upstream)
        keeps = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keeps:
            # Autograd takes over a gradient that nobody else refers to.
            ctx.loss = None
            ctx.maybe_clear_saved_tensors()
        scaled: list[Tensor | None] = []
        for number, is_needed in enumerate(needed):
            gradient, saved[number] = saved[number], None
            scaled.append(
                scaled_by(gradient, upstream, loss.axis, keeps).to(ctx.dtype) if is_needed else None
            )
        return None, *scaled


def state_of(tensor: Tensor | None) -> tuple[int, int]:
    """Return what changes where a tensor is written to or gets other memory; unknown of inference tensors."""
    if tensor is None or tensor.is_inference():
        return 0, 0
    return tensor._version, tensor.data_ptr()


def differentiable_gradients(
    loss: Loss, inputs: Sequence[Tensor], needed: Sequence[bool], upstream: Tensor
) -> list[Tensor | None]:
    """Return the gradients by torch's formula, for second derivatives."""
    if loss.inplace:
        raise RuntimeError("inplace=True overwrites the logits, so that there is no second derivative")
    if loss.extensions:
        raise RuntimeError(f"{', '.join(loss.extensions)}: not in torch, whose second derivatives these are")
    # Aliases, which have no hooks: those of the inputs are called for what is returned.
    aliases = [tensor.view_as(tensor) for tensor in inputs]
    again = loss.by_torch(*aliases).to(loss.dtype)
    wanted = [alias for alias, is_needed in zip(aliases, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(again, wanted, upstream, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def scaled_by(gradient: Tensor, upstream: Tensor, axis: int | None, keeps: bool) -> Tensor:
    """Return a gradient times the upstream gradient, in its own memory unless it has to be kept."""
    factor = upstream if axis is None or upstream.ndim == 0 else upstream.unsqueeze(axis)
    try:
        is_one = upstream.ndim == 0 and upstream.item() == 1
        is_finite = bool(upstream.isfinite().all()) if not is_one else True
    except RuntimeError:
        # A transform sees many upstream gradients at once, which tell no number.
        return gradient * factor
    if is_one and not keeps:
        return gradient
    if not is_finite:
        # Ignored positions and what is 0 like them have no gradient, whatever comes from above.
        return torch.where(gradient == 0, gradient, gradient * factor)
    if keeps or (gradient.dtype != torch.float32 and factor.dtype == torch.float32 and factor.ndim > 0):
        return (gradient * factor).to(gradient.dtype)
    return gradient.mul_(factor)


def refuse_extensions(extensions: dict[str, Any], input: Any, target: Any) -> None:
    """Raise if there are arguments that torch does not have, for tensors that cyce does not take."""
    if extensions:
        given = {"input": input, "target": target}
        what = " and ".join(
            f"{name} of {value.dtype} on {value.device}"
            if isinstance(value, Tensor)
            else f"{name}, {type(value).__name__}"
            for name, value in given.items()
        )
        raise TypeError(
            f"{', '.join(extensions)}: not in torch, and cyce does not compute this call; it takes ordinary, "
            "non-empty CPU tensors of one floating point dtype, with int64 targets or probabilities of that "
            f"dtype; got {what}"
        )


def extensions_of(**named: tuple[Any, Any]) -> dict[str, Any]:
    """Return the arguments, given as (value, default), that are not at their defaults."""
    extensions = {}
    for name, (value, default) in named.items():
        if isinstance(value, Tensor):
            if value.requires_grad and torch.is_grad_enabled():
                raise TypeError(f"{name}: cyce has no gradient with respect to it; pass {name}.detach()")
            extensions[name] = value.item() if value.ndim == 0 else value
        elif value is not default and value != default:
            extensions[name] = value
    return extensions
