"""Focal losses and their gradients in one pass."""

from typing import Any

from cyce._arguments import FLOAT64, as_floating, as_number, as_operand, as_reduction, check_same_size
from cyce.fused import cross_entropy as fused_cross_entropy
from cyce.fused.elementwise import evaluate_elements
from cyce.fused.requests import GradientRequest
from cyce.kernels import dispatch


def as_gamma(value: Any) -> float:
    """Return the exponent of a focal loss."""
    gamma = as_number(value, "gamma", FLOAT64, positive=False)
    if gamma < 0:
        raise ValueError(f"gamma: must not be negative, got {value}")
    return gamma


def focal_loss(
    input: Any,
    target: Any,
    gamma: float = 2.0,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    poly1: float = 0.0,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    return fused_cross_entropy.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        axis=axis,
        sample_weight=sample_weight,
        normalizer=normalizer,
        empty=empty,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
        gradient=gradient,
        focus=(as_gamma(gamma), as_number(poly1, "poly1", FLOAT64, positive=False)),
    )


def sigmoid_focal_loss(
    inputs: Any,
    targets: Any,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    reduction = as_reduction(reduction, None, None)
    logits = as_floating(inputs, name="inputs")
    operand = as_operand(targets, "targets", logits.dtype)
    message = "Target size ({target}) must be the same as input size ({input})"
    check_same_size(operand, logits, message, ("targets", "inputs"))
    settings = {"alpha": as_number(alpha, "alpha", FLOAT64, positive=False), "gamma": as_gamma(gamma)}
    kernel = dispatch.elementwise.sigmoid_focal_loss
    operands = {"target": operand}
    return evaluate_elements(kernel, logits, operands, logits.shape, reduction, gradient, settings)
