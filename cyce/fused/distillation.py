"""Divergence of a student's softmax from a teacher's, and its gradient."""

from typing import Any

import numpy as np

from cyce._arguments import (
    FLOAT64,
    arithmetic_dtype,
    as_axis,
    as_flag,
    as_grad_output,
    as_logits,
    as_number,
    as_reduction,
    as_sample_weight,
    as_stored,
    class_axis,
    position_shape,
)
from cyce.fused.requests import GradientRequest, as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import DistillationArguments
from cyce.threads.budget import budget

DIVERGENCES = ("forward", "reverse", "js")


def as_options(
    temperature: Any, divergence: Any, reduction: Any, beta: Any, scale_by_temperature: Any
) -> tuple[float, float, float]:
    """Check the options; return the temperature, beta, and the factor of the loss."""
    as_reduction(reduction, None, None, ("none", "batchmean", "mean", "sum"))
    if not isinstance(divergence, str) or divergence not in DIVERGENCES:
        raise ValueError(f"divergence: must be 'forward', 'reverse' or 'js', got {divergence!r}")
    divisor = as_number(temperature, "temperature", FLOAT64)
    mixture = as_number(beta, "beta", FLOAT64, positive=False)
    if not 0 <= mixture <= 1:
        raise ValueError(f"beta: must be between 0 and 1, got {beta}")
    is_scaled = as_flag(scale_by_temperature, "scale_by_temperature")
    return divisor, mixture, divisor * divisor if is_scaled else 1.0


def check_shapes(student: Any, teacher: Any) -> None:
    """Raise unless both have one shape."""
    if tuple(teacher.shape) != tuple(student.shape):
        raise ValueError(
            f"teacher_logits: must have the shape of student_logits, {list(student.shape)}, got "
            f"{list(teacher.shape)}"
        )


def distillation_loss(
    student_logits: Any,
    teacher_logits: Any,
    temperature: float = 1.0,
    divergence: str = "forward",
    reduction: str = "batchmean",
    *,
    beta: float = 0.5,
    scale_by_temperature: bool = False,
    axis: int | None = None,
    sample_weight: Any = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and its gradient, None unless requested."""
    divisor, mixture, factor = as_options(temperature, divergence, reduction, beta, scale_by_temperature)
    student = as_logits(student_logits, name="student_logits")
    teacher = as_logits(teacher_logits, name="teacher_logits")
    check_shapes(student, teacher)
    dtype = arithmetic_dtype(student.dtype)
    of_classes = class_axis(student) if axis is None else as_axis(axis, student.ndim, "axis")
    positions = position_shape(student, of_classes)
    counts, weights, denominator = None, None, 1.0
    if sample_weight is not None:
        weights = as_sample_weight(sample_weight, student, of_classes, FLOAT64)
        counts = weights != 0
    if reduction in ("batchmean", "mean"):
        denominator = float(np.prod(positions)) if weights is None else float(weights.sum())
    grad_out = scale = None
    if gradient is not None:
        upstream, grad_output = as_grad_output(gradient[0], FLOAT64, positions, reduction)
        others = {"teacher_logits": teacher, "sample_weight": weights, "grad_output": grad_output}
        grad_out = as_grad_out(gradient[1], student, others)
        with np.errstate(all="ignore"):
            scale = np.full(positions, np.float64(upstream * factor / divisor) / denominator)
            for array in (weights, grad_output):
                scale *= 1.0 if array is None else array
    values = np.zeros(positions)
    call = DistillationArguments()
    call.student, call.teacher, call.axis = as_stored(student), as_stored(teacher), of_classes
    call.formula, call.temperature, call.beta = divergence, divisor, mixture
    call.counts, call.scale, call.value_out = counts, scale, values
    call.grad_out = None if grad_out is None else as_stored(grad_out)
    call.num_threads = budget()
    dispatch.kernels.distill(call)
    with np.errstate(all="ignore"):
        values *= factor
        if weights is not None:
            values *= weights
        loss = values if reduction == "none" else np.float64(values.sum()) / denominator
        return loss.astype(dtype), grad_out
