"""The one way into linear_cross_entropy: check the arguments, run the pass, collect loss and gradients."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_reduction
from cyce.fused.requests import GradientRequest
from cyce.kernels import dispatch
from cyce.linear.arguments import Layer, Loss, Upstream, as_layer, as_loss, as_upstream
from cyce.linear.chunks import ROWS, Gradients, Pass, Problem, rows_per_chunk
from cyce.linear.options import LinearCrossEntropyOptions, as_options
from cyce.memory.arrays import copy
from cyce.threads.workers import with_workers

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
    class_mask: Any = None,
    gradient: GradientRequest | None = None,
    wanted: Sequence[bool] | None = None,
) -> tuple[Any, Any]:
    """Return the loss and the gradients of input, linear_weight and linear_bias, None unless requested.

    wanted: which of these gradients to compute if they are requested; the others are None. By default, all.
    """
    reduction = as_reduction(reduction, None, None)
    layer = as_layer(input, linear_weight, linear_bias)
    options = as_options(options, layer.dtype)
    extensions = (sample_weight, normalizer, empty, z_loss, softcap, temperature)
    logits = layer.logits()
    loss = as_loss(target, weight, ignore_index, label_smoothing, extensions, logits, reduction, class_mask)
    upstream = as_upstream(gradient, wanted, layer, loss)
    rows, divisor = count_rows(layer, loss)
    losses = np.zeros((layer.n_rows, layer.n_inner), layer.dtype) if reduction == "none" else None
    problem = problem_of(layer, loss, upstream, rows, losses)
    value = run(problem, layer, upstream.outs, options)
    gradients = None if upstream.outs is None else tuple(upstream.outs)
    if losses is not None:
        if rows is not None:
            losses[rows] = problem.call.loss_out
        return losses.reshape(loss.positions), gradients
    with np.errstate(over="ignore"):
        # 0 / 0 where nothing counts
        return layer.dtype.type(value + 0.0 / divisor), gradients


def count_rows(layer: Layer, loss: Loss) -> tuple[NDArray[np.intp] | None, float]:
    """Check the class indices; return the rows that count, None for all, and what the sum is divided by.

    A row counts if one of its positions does. Chunks divide by what all rows together divide by.
    """
    call = loss.call
    if call.target is not None:
        # A copy: no other thread changes it.
        call.target = np.array(call.target).reshape(loss.positions)
    counts = np.empty((layer.n_rows, layer.n_inner), bool)
    try:
        denominator, is_empty = dispatch.kernels.denominator(call, counts)
    except IndexError as error:
        raise IndexError(loss.describe_bad_target(error.args[0])) from None
    row_counts = counts.any(axis=1)
    rows = None if row_counts.all() else np.flatnonzero(row_counts)
    if not call.mean:
        return rows, 1.0
    call.normalizer = denominator
    if is_empty and call.zero_if_empty:
        rows = np.empty(0, np.intp)
    return rows, denominator


def problem_of(
    layer: Layer, loss: Loss, upstream: Upstream, rows: NDArray[np.intp] | None, losses: NDArray[Any] | None
) -> Problem:
    """Return what the pass computes: matrices, and arrays of the rows that count."""
    n_rows, n_inner, row_shape = layer.n_rows, layer.n_inner, layer.row_shape
    n_outputs, in_features = math.prod(row_shape), layer.weights.shape[-1]

    def of_rows(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        # Some have a number for each position, some several.
        array = array.reshape(n_rows, n_inner, *array.shape[len(loss.positions) :])
        return array if rows is None else array[rows]

    call = loss.call.copy()
    call.axis = 1
    call.upstream = upstream.factor
    call.grad_output = upstream.grad_output
    if losses is not None:
        call.loss_out = losses.reshape(loss.positions)
    for name in ROWS:
        setattr(call, name, of_rows(getattr(call, name)))
    if call.stats_out is not None:
        call.stats_out = [array for array in map(of_rows, call.stats_out) if array is not None]
    for name in ("probabilities", "class_mask"):
        array = getattr(call, name)
        if array is not None:
            setattr(call, name, array.reshape(n_rows, *row_shape))
    return Problem(
        _as_matrix(layer.hidden, (n_rows, in_features)),
        _as_matrix(layer.weights, (n_outputs, in_features)),
        None if layer.bias is None else layer.bias.reshape(n_outputs).astype(layer.dtype, copy=False),
        row_shape,
        rows,
        call,
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


def run(
    problem: Problem,
    layer: Layer,
    outs: Sequence[NDArray[Any] | None] | None,
    options: LinearCrossEntropyOptions,
) -> float:
    """Run the pass; write the gradients to `outs` unless that is None, and return the loss."""
    n_outputs, in_features = problem.weights.shape
    gradients = None
    if outs is not None:
        # The gradient of the weights is a sum over chunks, others are rounded once they are complete.
        shapes = ((layer.n_rows, in_features), (n_outputs, in_features), (n_outputs,))
        dtypes = (None, layer.dtype, None)
        gradients = Gradients(*map(_writable, outs, shapes, dtypes))
    n_products = 1 + sum(out is not None for out in (outs or ())[:2])
    work = problem.n_rows * n_outputs * (n_products * in_features + LOSS_PER_LOGIT)
    rows = rows_per_chunk(
        options,
        layer.n_rows,
        problem.n_rows,
        in_features,
        n_outputs,
        layer.dtype.itemsize,
        converts=problem.is_half,
    )
    value = with_workers(Pass(problem, gradients, rows).run, work // SHARE)
    if outs is not None and gradients is not None:
        for out, written in zip(outs, gradients, strict=False):
            if out is not None and written is not None and not np.may_share_memory(out, written):
                copy(written.reshape(out.shape), out)
    return value


def _writable(
    out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any] | None
) -> NDArray[Any] | None:
    """Return `out` in another shape, if that is C-contiguous and of a dtype, or a new array like that.

    dtype: None for that of `out`. Without `out`, there is none.
    """
    if out is None:
        return None
    if dtype is None:
        dtype = out.dtype
    view = out.reshape(shape)
    if view.flags.c_contiguous and view.dtype == dtype and np.may_share_memory(view, out):
        return view
    return np.empty(shape, dtype)
