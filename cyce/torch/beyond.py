"""Losses that torch does not have, and log-probabilities of chosen classes: differentiable, of tensors.

Where cyce does not compute a call (other devices, transforms, `torch.compile`), and for second derivatives,
it is composed of torch's own functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyce._arguments import as_reduction
from cyce.fused import distillation as fused_distillation
from cyce.fused import focal as fused_focal
from cyce.fused import log_probabilities as fused_log_probabilities
from cyce.fused.distillation import as_options, check_shapes
from cyce.fused.focal import as_gamma
from cyce.fused.requests import GradientRequest
from cyce.torch.autograd import Loss, computed_or_torch_s
from cyce.torch.tensors import (
    TORCH,
    array_of,
    class_axis,
    dtype_of_result,
    result_of,
    takes,
    tensor_of,
)


def reduced(loss: Tensor, reduction: str, denominator: Any) -> Tensor:
    """Return the losses of positions, reduced; what is neither "none" nor "sum" is a mean."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / denominator


# ---------------------------------------------------------------------------------------------
# Losses


def focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Focal loss of logits and class indices, as `cyce.functional.focal_loss`.

    Parameters
    ----------
    input : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, float16, bfloat16, float32 or float64.
    target : Tensor of int64
        Class indices.
    gamma : float, default=2.0
        The exponent, not negative.
    weight, ignore_index, reduction, label_smoothing
        As in `cross_entropy`.

    Returns
    -------
    Tensor
        In the dtype that the cross-entropy has.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cyce.functional.focal_loss`.

    See Also
    --------
    cyce.functional.focal_loss : The formula; takes more options.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.focal_loss(torch.tensor([[5.0, 0.0, 0.0], [0.1, 0.2, 0.3]]), torch.tensor([0, 2]))
    tensor(0.2006)
    """
    as_reduction(reduction, None, None)
    as_gamma(gamma)

    def by_torch(input: Tensor) -> Tensor:
        loss = TORCH["cross_entropy"]
        options = {"ignore_index": ignore_index, "reduction": "none"}
        # Powers below 1 have no slope at 0.
        miss = (-torch.expm1(-loss(input, target, **options))).clamp_min(torch.finfo(input.dtype).tiny)
        focal = miss**gamma * loss(input, target, weight, label_smoothing=label_smoothing, **options)
        counts = target != ignore_index
        weights = counts if weight is None else torch.where(counts, weight[target * counts], 0)
        return reduced(focal, reduction, weights.sum())

    if torch.compiler.is_compiling() or not takes(input, target, weight) or target.dtype != torch.int64:
        return by_torch(input)

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_focal.focal_loss(
            array_of(input),
            array_of(target),
            gamma,
            array_of(weight),
            ignore_index,
            reduction,
            label_smoothing,
            gradient=gradient,
        )

    axis, dtype = class_axis(input, None), dtype_of_result(input)
    return computed_or_torch_s(
        Loss((input,), (target, weight), evaluate, by_torch, dtype, axis, falls_back=False)
    )


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    divergence: str = "forward",
    reduction: str = "batchmean",
    *,
    beta: float = 0.5,
    scale_by_temperature: bool = False,
    axis: int | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Divergence of a student's softmax from a teacher's, as `cyce.functional.distillation_loss`.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Of one shape and dtype: float16, bfloat16, float32 or float64. The gradient is by the student's.
    temperature, divergence, reduction, beta, scale_by_temperature, axis
        As in `cyce.functional.distillation_loss`.
    sample_weight : Tensor of the positions' shape, default=None
        A weight for each position, such as a mask of those that are not padding, in the logits' dtype.

    Returns
    -------
    Tensor
        In the dtype of the logits; float32 under autocast.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cyce.functional.distillation_loss`.

    See Also
    --------
    cyce.functional.distillation_loss : The formulas.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> student = torch.tensor([[1.0, 0.5, 0.3]], requires_grad=True)
    >>> CT.distillation_loss(student, torch.tensor([[2.0, 0.5, 0.3]])).backward()
    >>> print(student.grad.numpy().round(3))
    [[-0.236  0.13   0.106]]
    """
    options: dict[str, Any] = {
        "temperature": temperature,
        "divergence": divergence,
        "reduction": reduction,
        "beta": beta,
        "scale_by_temperature": scale_by_temperature,
        "axis": axis,
    }
    as_options(temperature, divergence, reduction, beta, scale_by_temperature)
    check_shapes(student_logits, teacher_logits)
    of_classes = class_axis(student_logits, axis)

    def by_torch(student: Tensor) -> Tensor:
        loss = composed_divergence(
            torch.log_softmax(student / temperature, of_classes),
            torch.log_softmax(teacher_logits.detach() / temperature, of_classes),
            divergence,
            beta,
        ).sum(of_classes)
        if scale_by_temperature:
            loss = loss * temperature**2
        if sample_weight is None:
            return reduced(loss, reduction, loss.numel())
        loss = torch.where(sample_weight == 0, 0, loss * sample_weight)
        return reduced(loss, reduction, sample_weight.sum())

    teacher = teacher_logits.detach()
    if torch.compiler.is_compiling() or not takes(student_logits, teacher, teacher, sample_weight):
        return by_torch(student_logits)

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_distillation.distillation_loss(
            array_of(student_logits),
            array_of(teacher),
            sample_weight=array_of(sample_weight),
            gradient=gradient,
            **options,
        )

    dtype, others = dtype_of_result(student_logits), (teacher, sample_weight)
    return computed_or_torch_s(
        Loss((student_logits,), others, evaluate, by_torch, dtype, of_classes, falls_back=False)
    )


def composed_divergence(log_p: Tensor, log_q: Tensor, divergence: str, beta: float) -> Tensor:
    """Return the terms of the divergence of a student's log-probabilities and a teacher's."""

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        # Classes without probability add nothing, and have no slope.
        is_none = log_a == -torch.inf
        distance = torch.where(is_none, 0, log_a) - torch.where(is_none, 0, log_b)
        return log_a.exp() * distance

    if divergence == "forward":
        return kl(log_q, log_p)
    if divergence == "reverse":
        return kl(log_p, log_q)
    mixture = beta * log_q.exp() + (1 - beta) * log_p.exp()
    log_m = torch.log(torch.where(mixture > 0, mixture, 1))
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


# ---------------------------------------------------------------------------------------------
# Log-probabilities and entropies, whose gradient is computed in the backward pass


class Product(NamedTuple):
    """Functions of logits whose vector-Jacobian product cyce computes."""

    evaluate: Callable[[Tensor, GradientRequest | None], tuple[Any, Any]]
    """Returns the results, an array or a tuple of these, and the gradient."""
    by_torch: Callable[[Tensor], Any]
    dtype: torch.dtype


def outputs_of(values: Any, dtype: torch.dtype) -> Any:
    """Return results as tensors."""
    if isinstance(values, tuple):
        return tuple(result_of(value, dtype) for value in values)
    return result_of(values, dtype)


class DifferentiableProduct(torch.autograd.Function):  # type: ignore[misc]
    """Such functions in torch's graph: the backward pass reads the logits again."""

    @staticmethod
    def forward(ctx: Any, product: Product, logits: Tensor) -> Any:
        """Compute the results."""
        ctx.product = product
        ctx.save_for_backward(logits)
        ctx.set_materialize_grads(True)
        return outputs_of(product.evaluate(logits, None)[0], product.dtype)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> Any:
        """Return the gradient."""
        (logits,) = ctx.saved_tensors
        product: Product = ctx.product
        if torch.is_grad_enabled():
            alias = logits.view_as(logits)
            outputs = product.by_torch(alias)
            (gradient,) = torch.autograd.grad(outputs, alias, upstreams, create_graph=True)
            return None, gradient
        given = tuple(array_of(upstream.contiguous()) for upstream in upstreams)
        _, array = product.evaluate(logits, (given if len(given) > 1 else given[0], None))
        return None, tensor_of(array)


def product_of(logits: Tensor, product: Product) -> Any:
    """Return the results, with a gradient if the logits require it."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return DifferentiableProduct.apply(product, logits)
    return outputs_of(product.evaluate(logits, None)[0], product.dtype)


def composed_entropy(log_p: Tensor, axis: int) -> Tensor:
    """Return the entropy of log-probabilities, to which classes without probability add nothing."""
    return -(log_p.exp() * torch.where(log_p == -torch.inf, 0, log_p)).sum(axis)


def entropy(logits: Tensor, *, axis: int | None = None, temperature: float = 1.0) -> Tensor:
    """Entropy of the softmax of each position, as `cyce.functional.entropy`.

    Parameters
    ----------
    logits : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, float16, bfloat16, float32 or float64.
    axis : int, default=None
        The axis of the classes. None means 0 for one dimension, else 1.
    temperature : float, default=1.0
        Divisor of the logits.

    Returns
    -------
    Tensor
        Of the positions' shape, in the dtype of the logits; float32 under autocast.

    Raises
    ------
    ValueError, IndexError
        As `cyce.functional.entropy`.

    See Also
    --------
    selective_log_softmax : Log-probabilities and entropies in one pass.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.entropy(torch.zeros(1, 4))
    tensor([1.3863])
    """
    of_classes = class_axis(logits, axis)

    def by_torch(logits: Tensor) -> Tensor:
        return composed_entropy(torch.log_softmax(logits / temperature, of_classes), of_classes)

    if torch.compiler.is_compiling() or not takes(logits, logits.detach()):
        return by_torch(logits)

    def evaluate(logits: Tensor, gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_log_probabilities.entropy(
            array_of(logits), axis=of_classes, temperature=temperature, gradient=gradient
        )

    result: Tensor = product_of(logits, Product(evaluate, by_torch, dtype_of_result(logits)))
    return result


def selective_log_softmax(
    logits: Tensor,
    index: Tensor,
    *,
    axis: int | None = None,
    return_entropy: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Log-probabilities of chosen classes, as `cyce.functional.selective_log_softmax`.

    Parameters
    ----------
    logits : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, float16, bfloat16, float32 or float64.
    index : Tensor of int64
        The chosen classes: of the positions' shape, or of the logits' shape with K in place of C.
    axis : int, default=None
        The axis of the classes, such as -1 for logits of shape (B, T, C). None means 1, or 0 if there is only
        one.
    return_entropy : bool, default=False
        Whether to return the entropy of each position, too.
    temperature : float, default=1.0
        Divisor of the logits.

    Returns
    -------
    Tensor, or tuple of two
        Log-probabilities of the shape of `index`, and entropies of the positions' shape, in the dtype of the
        logits; float32 under autocast.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cyce.functional.selective_log_softmax`.

    See Also
    --------
    cyce.functional.selective_log_softmax : The formula; takes more options.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> logits = torch.tensor([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> log_p, entropy = CT.selective_log_softmax(logits, torch.tensor([0, 1]), return_entropy=True)
    >>> print(log_p, entropy)
    tensor([-0.3406, -2.4748]) tensor([0.7996, 0.5512])
    """
    of_classes = class_axis(logits, axis)

    def by_torch(logits: Tensor) -> Any:
        log_p = torch.log_softmax(logits / temperature, of_classes)
        if index.ndim == logits.ndim:
            chosen = log_p.gather(of_classes, index)
        else:
            chosen = log_p.gather(of_classes, index.unsqueeze(of_classes)).squeeze(of_classes)
        return (chosen, composed_entropy(log_p, of_classes)) if return_entropy else chosen

    if torch.compiler.is_compiling() or not takes(logits, index) or index.dtype != torch.int64:
        return by_torch(logits)

    def evaluate(logits: Tensor, gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_log_probabilities.selective_log_softmax(
            array_of(logits),
            array_of(index),
            axis=of_classes,
            return_entropy=return_entropy,
            temperature=temperature,
            gradient=gradient,
        )

    return product_of(logits, Product(evaluate, by_torch, dtype_of_result(logits)))
