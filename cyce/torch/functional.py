"""The losses: torch's signatures, cyce's keywords at the end.

Each function decides whether cyce computes the call; else it is torch's own.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from cyce.fused import cross_entropy as fused_cross_entropy
from cyce.fused import elementwise as fused_elementwise
from cyce.fused import nll_loss as fused_nll_loss
from cyce.fused.requests import GradientRequest
from cyce.linear import evaluate as fused_linear
from cyce.torch import operators
from cyce.torch.autograd import Loss, computed_or_torch_s, extensions_of, refuse_extensions
from cyce.torch.tensors import (
    TORCH,
    are_options,
    array_of,
    class_axis,
    dtype_of_result,
    is_target,
    takes,
)

F = TypeVar("F", bound=Callable[..., Tensor])


def wants_gradient(input: Tensor) -> bool:
    """Return whether an operator computes a gradient, too: an exported one may be differentiated later."""
    return bool(torch.compiler.is_exporting() or (torch.is_grad_enabled() and input.requires_grad))


def scripted_as_torch_s(function: F) -> F:
    """Decorate a function that torch.jit.script cannot compile: it takes torch's of that name instead."""
    # It asks whether the first of these is there, torch.compile whether it is true.
    function.__script_if_tracing_wrapper = False  # type: ignore[attr-defined]
    function.__original_fn = TORCH[function.__name__]  # type: ignore[attr-defined]
    return function


@scripted_as_torch_s
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Tensor | None = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy between logits and targets, as `torch.nn.functional.cross_entropy`.

    Parameters
    ----------
    input : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, float16, bfloat16, float32 or float64.
    target : Tensor
        Class indices, or class probabilities of the shape and dtype of `input`.
    weight : Tensor of shape (C,), default=None
        A weight for each class.
    size_average, reduce : bool, default=None
        Deprecated, as in torch.
    ignore_index : int, default=-100
        Class index of ignored positions.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the positions.
    label_smoothing : float in [0, 1], default=0.0
        Fraction of every target that is spread evenly over the classes.
    axis, sample_weight, normalizer, empty, z_loss, softcap, temperature
        As in `cyce.functional.cross_entropy`, whose `class_mask` and sparse targets are not for tensors; not
        in torch.
    inplace : bool, default=False
        Whether to write the gradient over the logits, which saves its memory. Autograd notices if the logits
        are needed by another operation. Has no effect where no gradient is needed.

    Returns
    -------
    Tensor
        In the dtype of `input`, rounded once; float32 for half precision under autocast.

    Raises
    ------
    RuntimeError, ValueError, IndexError
        As torch; and RuntimeError if `inplace` would overwrite a leaf of the graph.
    TypeError
        If there are arguments that torch does not have, and cyce does not take the tensors.

    See Also
    --------
    cyce.functional.cross_entropy : Takes arrays and tensors, returns arrays; the formula.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> logits = torch.tensor([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], requires_grad=True)
    >>> loss = CT.cross_entropy(logits, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> print(f"{loss.item():.4f}", logits.grad[0].numpy().round(3))
    0.2577 [-0.144  0.079  0.065]
    """
    extensions = extensions_of(
        axis=(axis, None),
        normalizer=(normalizer, None),
        empty=(empty, "nan"),
        z_loss=(z_loss, 0.0),
        softcap=(softcap, None),
        temperature=(temperature, 1.0),
    )
    if sample_weight is not None:
        extensions["sample_weight"] = sample_weight
    by_torch = functools.partial(
        TORCH["cross_entropy"],
        target=target,
        weight=weight,
        size_average=size_average,
        ignore_index=ignore_index,
        reduce=reduce,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if not (
        takes(input, target, weight, sample_weight)
        and is_target(target, input)
        and size_average is reduce is None
        and are_options(ignore_index, label_smoothing)
    ):
        refuse_extensions(extensions, input, target)
        return by_torch(input)
    of_classes = class_axis(input, axis)
    if torch.compiler.is_compiling():
        loss, _ = operators.cross_entropy(
            input,
            target,
            weight,
            sample_weight,
            reduction,
            ignore_index,
            label_smoothing,
            of_classes,
            normalizer,
            empty,
            z_loss,
            softcap,
            temperature,
            wants_gradient(input),
        )
        return loss.to(dtype_of_result(input))

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_cross_entropy.cross_entropy(
            array_of(input),
            array_of(target),
            array_of(weight),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            gradient=gradient,
            **{**extensions, "sample_weight": array_of(sample_weight)},
        )

    dtype = dtype_of_result(input)
    others = (target, weight, sample_weight)
    return computed_or_torch_s(
        Loss((input,), others, evaluate, by_torch, dtype, of_classes, inplace, tuple(extensions))
    )


@scripted_as_torch_s
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of log-probabilities, as `torch.nn.functional.nll_loss`.

    Parameters
    ----------
    input : Tensor of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Log-probabilities, float16, bfloat16, float32 or float64.
    target : Tensor of int64
        Class indices.
    weight, size_average, ignore_index, reduce, reduction
        As in torch.

    Returns
    -------
    Tensor
        In the dtype of `input`; float32 for half precision under autocast.

    Raises
    ------
    RuntimeError, ValueError, IndexError
        As torch.

    See Also
    --------
    cross_entropy : Takes logits.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.nll_loss(torch.tensor([[-0.5, -1.0]]), torch.tensor([0]))
    tensor(0.5000)
    """
    by_torch = functools.partial(
        TORCH["nll_loss"],
        target=target,
        weight=weight,
        size_average=size_average,
        ignore_index=ignore_index,
        reduce=reduce,
        reduction=reduction,
    )
    if not (
        takes(input, target, weight)
        and target.dtype == torch.int64
        and size_average is reduce is None
        and are_options(ignore_index)
    ):
        return by_torch(input)
    axis = class_axis(input)
    if torch.compiler.is_compiling():
        loss, _ = operators.nll_loss(input, target, weight, reduction, ignore_index, wants_gradient(input))
        return loss.to(dtype_of_result(input))

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_nll_loss.nll_loss(
            array_of(input),
            array_of(target),
            array_of(weight),
            ignore_index=ignore_index,
            reduction=reduction,
            gradient=gradient,
        )

    others = (target, weight)
    return computed_or_torch_s(Loss((input,), others, evaluate, by_torch, dtype_of_result(input), axis))


@scripted_as_torch_s
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of logits, as `torch.nn.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    input, target : Tensor of one shape and dtype
        Logits of yes, and probabilities of yes.
    weight, size_average, reduce, reduction, pos_weight
        As in torch.

    Returns
    -------
    Tensor
        In the dtype of `input`, rounded once; float32 for half precision under autocast.

    Raises
    ------
    RuntimeError, ValueError
        As torch.

    See Also
    --------
    cyce.functional.binary_cross_entropy_with_logits : Takes arrays and tensors, returns arrays.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.binary_cross_entropy_with_logits(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """
    by_torch = functools.partial(
        TORCH["binary_cross_entropy_with_logits"],
        target=target,
        weight=weight,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        pos_weight=pos_weight,
    )
    if not (
        takes(input, target, weight, pos_weight)
        and target.dtype == input.dtype
        and target.shape == input.shape
        and size_average is reduce is None
    ):
        return by_torch(input)
    if torch.compiler.is_compiling():
        loss, _ = operators.binary_cross_entropy_with_logits(
            input, target, weight, pos_weight, reduction, wants_gradient(input)
        )
        return loss.to(dtype_of_result(input))

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_elementwise.binary_cross_entropy_with_logits(
            array_of(input),
            array_of(target),
            array_of(weight),
            reduction=reduction,
            pos_weight=array_of(pos_weight),
            gradient=gradient,
        )

    others = (target, weight, pos_weight)
    return computed_or_torch_s(Loss((input,), others, evaluate, by_torch, dtype_of_result(input)))


@scripted_as_torch_s
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence of log-probabilities, as `torch.nn.functional.kl_div`.

    Parameters
    ----------
    input, target : Tensor of one shape and dtype
        Log-probabilities, and probabilities or, with `log_target`, their logarithms.
    size_average, reduce, reduction, log_target
        As in torch.

    Returns
    -------
    Tensor
        In the dtype of `input`, rounded once; float32 for half precision under autocast.

    Raises
    ------
    RuntimeError, ValueError
        As torch.

    Warns
    -----
    UserWarning
        If `reduction` is "mean", as torch.

    See Also
    --------
    cyce.functional.kl_div : Takes arrays and tensors, returns arrays.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.kl_div(torch.tensor([-1.0]), torch.tensor([1.0]), reduction="sum")
    tensor(1.)
    """
    by_torch = functools.partial(
        TORCH["kl_div"],
        target=target,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        log_target=log_target,
    )
    if not (
        takes(input, target)
        and target.dtype == input.dtype
        and target.shape == input.shape
        and size_average is reduce is None
    ):
        return by_torch(input)
    if torch.compiler.is_compiling():
        loss, _ = operators.kl_div(input, target, reduction, log_target, wants_gradient(input))
        return loss.to(dtype_of_result(input))

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_elementwise.kl_div(
            array_of(input), array_of(target), reduction=reduction, log_target=log_target, gradient=gradient
        )

    return computed_or_torch_s(Loss((input,), (target,), evaluate, by_torch, dtype_of_result(input)))


@scripted_as_torch_s
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Tensor | None = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy of a linear layer's logits, as `torch.nn.functional.linear_cross_entropy`.

    In chunks of rows, whatever the options: the logits are never in memory all at once.

    Parameters
    ----------
    input : Tensor of shape (H,) or (N, H)
        Hidden states.
    linear_weight : Tensor of shape (C, d1, ..., dk, H)
        Weights of the layer, in the dtype of `input`.
    target : Tensor
        Class indices, or class probabilities of the shape of the logits.
    linear_bias, weight, reduction, ignore_index, label_smoothing, options
        As in torch; `options` may be `cyce.LinearCrossEntropyOptions`.
    sample_weight, normalizer, empty, z_loss, softcap, temperature
        As in `cyce.functional.linear_cross_entropy`; not in torch.

    Returns
    -------
    Tensor
        In the dtype of `input`, rounded once.

    Raises
    ------
    RuntimeError, ValueError, IndexError
        As torch.
    TypeError
        If there are arguments that torch does not have, and cyce does not take the tensors.

    See Also
    --------
    cyce.functional.linear_cross_entropy : Takes arrays and tensors, returns arrays.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> hidden, vocabulary = torch.zeros(2, 3), torch.zeros(10, 3)
    >>> CT.linear_cross_entropy(hidden, vocabulary, torch.tensor([0, 9]))
    tensor(2.3026)
    """
    extensions = extensions_of(
        normalizer=(normalizer, None),
        empty=(empty, "nan"),
        z_loss=(z_loss, 0.0),
        softcap=(softcap, None),
        temperature=(temperature, 1.0),
    )
    if sample_weight is not None:
        extensions["sample_weight"] = sample_weight
    inputs = (input, linear_weight) if linear_bias is None else (input, linear_weight, linear_bias)

    def by_torch(hidden: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        result: Tensor = TORCH["linear_cross_entropy"](
            hidden,
            weights,
            target,
            linear_bias=bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
        return result

    has_gradient = torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in inputs
    )
    if not (
        takes(input, target, weight, sample_weight, differentiable=inputs[1:])
        and (target.dtype == torch.int64 or target.dtype == input.dtype)
        and are_options(-100 if ignore_index is None else ignore_index, label_smoothing)
        # The gradients of layers depend on the upstream gradient of each position, which is not known yet.
        and not (has_gradient and reduction == "none")
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        refuse_extensions(extensions, input, target)
        return by_torch(*inputs)

    def evaluate(gradient: GradientRequest | None) -> tuple[Any, Any]:
        return fused_linear.linear_cross_entropy(
            array_of(input),
            array_of(linear_weight),
            array_of(target),
            linear_bias=array_of(linear_bias),
            weight=array_of(weight),
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            gradient=gradient,
            wanted=[tensor.requires_grad for tensor in inputs],
            **{**extensions, "sample_weight": array_of(sample_weight)},
        )

    others = (target, weight, sample_weight)
    return computed_or_torch_s(
        Loss(inputs, others, evaluate, by_torch, input.dtype, extensions=tuple(extensions))
    )


def causal_lm_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Loss of a causal language model, for transformers' ``Trainer(compute_loss_func=causal_lm_loss)``.

    The logits of a position are those of the next token; labels of -100 are ignored.

    Parameters
    ----------
    outputs : mapping or object with `logits`, or Tensor
        Logits of shape (batch, length, vocabulary), of any floating point dtype.
    labels : Tensor of int64, of shape (batch, length)
        The words.
    num_items_in_batch : int or Tensor, default=None
        What the sum of the losses is divided by, such as the number of tokens in all accumulated batches.
        None means the number of tokens that are not ignored.

    Returns
    -------
    Tensor
        In float32, or float64 for logits of float64.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch as CT
    >>> CT.causal_lm_loss({"logits": torch.zeros(1, 4, 10)}, torch.tensor([[1, 2, 3, -100]]))
    tensor(2.3026)
    """
    logits = outputs
    if not isinstance(outputs, Tensor):
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    # Words are shifted, not logits, which would be copied. The last position has no next word.
    words = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=-100).to(logits.device)
    logits, words = logits.reshape(-1, logits.shape[-1]), words.reshape(-1)
    reduction = "mean" if num_items_in_batch is None else "sum"
    half = logits.dtype in (torch.float16, torch.bfloat16)
    if half and logits.device.type != "cpu":
        logits, half = logits.float(), False
    # Under autocast, losses of half precision are float32.
    with torch.autocast("cpu", dtype=logits.dtype) if half else contextlib.nullcontext():
        loss = cross_entropy(logits, words, reduction=reduction)
    if num_items_in_batch is not None:
        items = num_items_in_batch
        loss = loss / (items.to(loss.device) if isinstance(items, Tensor) else items)
    return loss
