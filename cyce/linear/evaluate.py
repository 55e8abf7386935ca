"""The one way into linear_cross_entropy: check the arguments, run the pass, collect loss and gradients."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce import _dispatch
from cyce._arguments import Extensions, as_reduction, describe_bad_target
from cyce._workers import with_workers
from cyce.fused.requests import GradientRequest
from cyce.linear.arguments import Layer, LossArguments, Upstream, as_layer, as_loss_arguments, as_upstream
from cyce.linear.chunks import Gradients, Pass, Problem, rows_per_chunk
from cyce.linear.options import LinearCrossEntropyOptions, as_options

# Multiplications and additions that are worth a thread; a logit's loss counts as LOSS_PER_LOGIT of them.
SHARE = 1 << 24
LOSS_PER_LOGIT = 32


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Return the loss and the gradients of input, linear_weight and linear_bias, None unless requested."""
    reduction = as_reduction(reduction, None, None)
    layer = as_layer(input, linear_weight, linear_bias)
    options = as_options(options, layer.hidden.dtype)
    extensions = (sample_weight, normalizer, empty, z_loss, softcap, temperature)
    loss = as_loss_arguments(
        target, weight, ignore_index, label_smoothing, extensions, layer.logits(), reduction
    )
    upstream = as_upstream(gradient, layer, loss)
    if loss.indices is not None:
        # A copy: no other thread changes it.
        loss = loss._replace(indices=np.array(loss.indices).reshape(loss.positions))
    counted = _count(layer, loss)
    losses = np.zeros((layer.n_rows, layer.n_inner), layer.hidden.dtype) if reduction == "none" else None
    problem = _problem(layer, loss, upstream, counted, losses)
    value = _run(problem, layer, upstream.outs, options)
    gradients = None if upstream.outs is None else tuple(upstream.outs)
    if losses is not None:
        if problem.losses_out is not None and counted.rows is not None:
            losses[counted.rows] = problem.losses_out
        return losses.reshape(loss.positions), gradients
    with np.errstate(over="ignore"):
        # 0 / 0 where nothing counts
        return layer.hidden.dtype.type(value + 0.0 / counted.divisor), gradients


class _Counted(NamedTuple):
    """What counts."""

    rows: NDArray[np.intp] | None
    """The rows that count, None for all."""
    divisor: float
    """What the sum of the losses is divided by; NaN for the mean of nothing."""
    extensions: Extensions
    """Those of the call, with the divisor as the normalizer."""


def _count(layer: Layer, loss: LossArguments) -> _Counted:
    """Check the class indices; return the rows that count and the mean's denominator."""
    extensions, n_classes = loss.extensions, layer.row_shape[0]
    try:
        denominator = _dispatch.kernels.weighted_count(
            layer.n_rows * layer.n_inner,
            n_classes,
            None if loss.indices is None else loss.indices.reshape(layer.n_rows, layer.n_inner),
            loss.ignore_index,
            loss.weight,
            extensions.sample_weight,
        )
    except IndexError as error:
        assert loss.indices is not None
        raise IndexError(
            describe_bad_target(error.args[0], loss.indices, n_classes, loss.ignore_index, "linear_weight")
        ) from None
    rows = _rows_that_count(layer, loss)
    if loss.reduction != "mean":
        return _Counted(rows, 1.0, extensions)
    divisor = extensions.normalizer or denominator
    if divisor == 0:
        # Nothing counts: 0 / 0, or 0.
        divisor = 1.0 if extensions.zero_if_empty else math.nan
        rows = np.empty(0, np.intp) if extensions.zero_if_empty else rows
    return _Counted(rows, divisor, extensions._replace(normalizer=divisor))


def _rows_that_count(layer: Layer, loss: LossArguments) -> NDArray[np.intp] | None:
    """Return the rows of which some position is neither ignored nor of weight 0; None for all."""
    shape = (layer.n_rows, layer.n_inner)
    sample_weight = loss.extensions.sample_weight
    counts = np.ones(shape, bool)
    if loss.indices is not None:
        counts = loss.indices.reshape(shape) != loss.ignore_index
    if sample_weight is not None:
        counts = counts & (sample_weight.reshape(shape) != 0)
    of_rows = counts.any(axis=1)
    return None if of_rows.all() else np.flatnonzero(of_rows)


def _problem(
    layer: Layer, loss: LossArguments, upstream: Upstream, counted: _Counted, losses: NDArray[Any] | None
) -> Problem:
    """Return what the pass computes: matrices, and arrays of the rows that count."""
    n_rows, n_inner, row_shape = layer.n_rows, layer.n_inner, layer.row_shape
    n_outputs, in_features = math.prod(row_shape), layer.weights.shape[-1]

    def of_rows(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        array = array.reshape(n_rows, n_inner)
        return array if counted.rows is None else array[counted.rows]

    probabilities = loss.probabilities
    return Problem(
        _as_matrix(layer.hidden, (n_rows, in_features)),
        _as_matrix(layer.weights, (n_outputs, in_features)),
        None if layer.bias is None else layer.bias.reshape(n_outputs),
        row_shape,
        counted.rows,
        of_rows(loss.indices),
        None if probabilities is None else probabilities.reshape(n_rows, *row_shape),
        loss.weight,
        loss.ignore_index,
        loss.label_smoothing,
        loss.reduction == "mean",
        of_rows(losses),
        of_rows(upstream.grad_output),
        upstream.factor,
        counted.extensions._replace(sample_weight=of_rows(counted.extensions.sample_weight)),
    )


def _as_matrix(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return an array in the shape of a matrix that BLAS can read, copied only if it has to be."""
    matrix = array.reshape(shape)
    if matrix.flags.forc:
        return matrix
    by_row, by_column = matrix.strides
    size = matrix.itemsize
    for near, far, extent in ((by_column, by_row, shape[1]), (by_row, by_column, shape[0])):
        if near == size and far >= extent * size and far % size == 0:
            return matrix
    return np.ascontiguousarray(matrix)


def _run(
    problem: Problem, layer: Layer, outs: list[NDArray[Any]] | None, options: LinearCrossEntropyOptions
) -> float:
    """Run the pass; write the gradients to `outs` unless that is None, and return the loss."""
    n_outputs, in_features = problem.weights.shape
    itemsize = problem.hidden.itemsize
    gradients = None
    if outs is not None:
        shapes = ((layer.n_rows, in_features), (n_outputs, in_features), (n_outputs,))
        gradients = Gradients(
            *(np.ascontiguousarray(out.reshape(shape)) for out, shape in zip(outs, shapes, strict=False))
        )
    work = problem.n_rows * n_outputs * ((1 if outs is None else 3) * in_features + LOSS_PER_LOGIT)
    rows = rows_per_chunk(options, layer.n_rows, problem.n_rows, in_features, n_outputs, itemsize)
    value = with_workers(Pass(problem, gradients, rows).run, work // SHARE)
    if outs is not None and gradients is not None:
        for out, written in zip(outs, gradients, strict=False):
            if written is not None and not np.may_share_memory(out, written):
                # `out` has no C-contiguous view of this shape.
                out[...] = written.reshape(out.shape)
    return value
