"""Statistics of a linear layer's logits, and log-probabilities of chosen classes, in chunks of rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cyce._arguments import class_axis, position_shape
from cyce.fused.log_probabilities import result_of_chosen, set_chosen
from cyce.fused.requests import GradientRequest, StatsRequest, new_stats
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.linear.arguments import Loss, Upstream, as_layer, as_loss, as_upstream
from cyce.linear.evaluate import count_rows, problem_of, run
from cyce.linear.options import as_options


def linear_selective_log_softmax(
    input: Any,
    linear_weight: Any,
    index: Any,
    *,
    linear_bias: Any = None,
    return_entropy: bool = False,
    options: Any = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
    wanted: Sequence[bool] | None = None,
) -> tuple[Any, Any]:
    """Return log-probabilities, and entropies, and the gradients, None unless requested.

    wanted: as of `linear_cross_entropy`.
    """
    layer = as_layer(input, linear_weight, linear_bias)
    options = as_options(options, layer.dtype)
    call = CrossEntropyArguments()
    logits = call.logits = layer.logits()
    call.axis = class_axis(logits)
    set_chosen(call, index, logits, softcap, temperature, class_mask, return_entropy, gradient)
    loss = Loss(call, position_shape(logits, call.axis), "none")
    upstream = as_upstream(None if gradient is None else (None, gradient[1]), wanted, layer, loss)
    run(problem_of(layer, loss, upstream, None, None), layer, upstream.outs, options)
    gradients = None if upstream.outs is None else tuple(upstream.outs)
    return result_of_chosen(call, index), gradients


def linear_cross_entropy_stats(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any,
    weight: Any,
    ignore_index: int | None,
    label_smoothing: float,
    options: Any,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    class_mask: Any,
) -> tuple[StatsRequest, Any]:
    """Return the statistics of the positions, and the mean loss."""
    layer = as_layer(input, linear_weight, linear_bias)
    options = as_options(options, layer.dtype)
    extensions = (None, None, "nan", z_loss, softcap, temperature)
    loss = as_loss(
        target, weight, ignore_index, label_smoothing, extensions, layer.logits(), "mean", class_mask
    )
    if loss.call.target is None:
        raise TypeError("target: must be class indices, got class probabilities or a SparseTarget")
    rows, divisor = count_rows(layer, loss)
    stats = new_stats(loss.positions, layer.dtype)
    losses, *others = (array for array in stats if array is not None)
    loss.call.stats_out = others
    problem = problem_of(layer, loss, Upstream(), rows, losses)
    value = run(problem, layer, None, options)
    if rows is not None:
        written = (problem.call.loss_out, *(problem.call.stats_out or ()))
        for array, part in zip((losses, *others), written, strict=True):
            array.reshape(layer.n_rows, layer.n_inner)[rows] = part
    with np.errstate(over="ignore"):
        return stats, layer.dtype.type(value + 0.0 / divisor)
