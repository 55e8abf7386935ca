"""Statistics of a linear layer's logits, and log-probabilities of chosen classes, in chunks of rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cyce._arguments import as_array, as_flag, as_number, class_axis, position_shape
from cyce._targets import as_chosen, as_class_mask
from cyce.fused.log_probabilities import check_mask, set_upstreams, upstreams_of
from cyce.fused.requests import GradientRequest, StatsRequest
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
    has_entropy = as_flag(return_entropy, "return_entropy")
    call = CrossEntropyArguments()
    logits = call.logits = layer.logits()
    call.axis = class_axis(logits)
    shape = as_array(index, "index").shape
    call.chosen = as_chosen(index, logits, call.axis, "index", may_be_one=True).classes
    if softcap is not None:
        call.softcap = as_number(softcap, "softcap", layer.dtype)
    call.temperature = as_number(temperature, "temperature", layer.dtype)
    if class_mask is not None:
        call.class_mask = as_class_mask(class_mask, logits)
        check_mask(call)
    given = upstreams_of(None if gradient is None else gradient[0], has_entropy)
    set_upstreams(call, *given, shape, has_entropy)
    positions = position_shape(logits, call.axis)
    loss = Loss(call, positions, "none")
    upstream = as_upstream(None if gradient is None else (None, gradient[1]), wanted, layer, loss)
    if gradient is None:
        call.entropy_grad = None
    run(problem_of(layer, loss, upstream, None, None), layer, upstream.outs, options)
    result = call.chosen_out
    if shape != positions:
        result = np.moveaxis(result, -1, call.axis)
    result = result.reshape(shape)
    gradients = None if upstream.outs is None else tuple(upstream.outs)
    return ((result, call.entropy_out) if has_entropy else result), gradients


def linear_cross_entropy_stats(
    input: Any,
    linear_weight: Any,
    target: Any,
    stats: StatsRequest,
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
) -> Any:
    """Return the mean loss; fill the arrays of `stats`, of the positions' shape."""
    layer = as_layer(input, linear_weight, linear_bias)
    options = as_options(options, layer.dtype)
    extensions = (None, None, "nan", z_loss, softcap, temperature)
    loss = as_loss(
        target, weight, ignore_index, label_smoothing, extensions, layer.logits(), "mean", class_mask
    )
    if loss.call.target is None:
        raise TypeError("target: must be class indices, got class probabilities or a SparseTarget")
    rows, divisor = count_rows(layer, loss)
    losses, *others = (array for array in stats if array is not None)
    loss.call.stats_out = others
    problem = problem_of(layer, loss, Upstream(), rows, losses)
    value = run(problem, layer, None, options)
    if rows is not None:
        written = (problem.call.loss_out, *(problem.call.stats_out or ()))
        for array, part in zip((losses, *others), written, strict=True):
            array.reshape(layer.n_rows, layer.n_inner)[rows] = part
    with np.errstate(over="ignore"):
        return layer.dtype.type(value + 0.0 / divisor)
