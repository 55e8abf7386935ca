"""Shards of a linear layer: its weights are split along the classes, hidden states are in all shards."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_sample_weight
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.linear.arguments import Layer, Loss, as_layer, as_upstream
from cyce.linear.evaluate import problem_of, run
from cyce.linear.options import LinearCrossEntropyOptions, as_options
from cyce.sharded.logits import (
    agreed_settings,
    as_n_classes,
    as_settings,
    as_whole,
    call_of,
    check_logits,
    check_state,
)
from cyce.sharded.states import Partial, Settings, neutral_states, new_states, partial_of, states_of

Array = NDArray[Any]


# Logits that are computed again may be rounded otherwise: relative to the largest of a row.
PRODUCT_ERROR = 1e-2


def linear_partial(
    input: Any,
    linear_weight: Any,
    target: Any,
    first_class: int = 0,
    *,
    linear_bias: Any = None,
    n_classes: int | None = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Partial:
    """Reduce a shard's logits of a linear layer, a chunk of rows at a time.

    Parameters
    ----------
    input : array_like of shape (H,) or (N, H)
        Hidden states, the same in all shards; as in `cyce.functional.linear_cross_entropy`.
    linear_weight : array_like of shape (C, H)
        The layer's weights of the C classes of this shard.
    target, first_class, n_classes, weight, label_smoothing, z_loss, softcap, temperature
        As in `cyce.sharded.partial`.
    linear_bias : array_like of shape (C,), default=None
        The layer's bias of the classes of this shard.
    ignore_index : int, default=None
        Class index of ignored positions. None means -100.
    options : LinearCrossEntropyOptions, default=None
        How the rows are cut into chunks.

    Returns
    -------
    Partial
        As that of `cyce.sharded.partial`, for `merge`, `finish` and `linear_gradient`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `linear_cross_entropy` and `cyce.sharded.partial`.

    Examples
    --------
    Four classes, two in each shard:

    >>> import numpy as np
    >>> from cyce import sharded
    >>> hidden, target = np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([1, 2])
    >>> vocabulary = np.array([[0.1, 0.2], [1.0, -1.0], [-0.3, 0.4], [0.2, 0.0]])
    >>> shards = [(a, vocabulary[a : a + 2]) for a in (0, 2)]
    >>> state = sharded.merge(*(sharded.linear_partial(hidden, w, target, a) for a, w in shards))
    >>> print(sharded.finish(state).round(4))
    [0.3038 0.9211]
    >>> gradients = [sharded.linear_gradient(hidden, w, target, state, a) for a, w in shards]
    >>> of_hidden = gradients[0][0] + gradients[1][0]
    >>> print(of_hidden.round(4))
    [[-0.2434  0.2999]
     [ 0.3055 -0.222 ]]
    """
    layer = _layer(input, linear_weight, linear_bias)
    chosen = as_options(options, layer.dtype)
    settings = as_settings(
        layer.dtype,
        -100 if ignore_index is None else ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        temperature,
        as_n_classes(n_classes),
    )
    loss, settings = _loss_of(layer, target, first_class, weight, settings)
    settings = settings._replace(has_bias=layer.bias is not None)
    rows = _rows_that_count(loss)
    first, n_own = loss.call.first_class, layer.row_shape[0]
    states = neutral_states(layer.n_rows, loss.call.target, loss.call.ignore_index)

    def reduce_rows(call: CrossEntropyArguments, chunk: slice) -> float:
        """Note the states of some rows."""
        of_chunk = new_states(chunk.stop - chunk.start)
        dispatch.kernels.reduce(call, of_chunk)
        states[:, chunk if rows is None else rows[chunk]] = of_chunk
        return 0.0

    if n_own:
        problem = problem_of(layer, loss, as_upstream(None, None, layer, loss), rows, None)
        run(problem._replace(kernel=reduce_rows), layer, None, chosen)
    return partial_of(states, loss.positions, layer.dtype, [(first, first + n_own)], settings)


def linear_gradient(
    input: Any,
    linear_weight: Any,
    target: Any,
    state: Any,
    first_class: int = 0,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
    options: LinearCrossEntropyOptions | None = None,
    z_loss: float | None = None,
    softcap: float | None = None,
    temperature: float | None = None,
    sample_weight: Any = None,
    grad_output: Any = None,
    out: Any = None,
) -> tuple[Array, ...]:
    """Return the gradients of the sum of the losses with respect to a shard's layer.

    Parameters
    ----------
    input, linear_weight, target, first_class, linear_bias, options
        As in `linear_partial`.
    state : Partial
        The merged partials of all shards, from `merge`.
    weight, ignore_index, label_smoothing, z_loss, softcap, temperature, sample_weight, grad_output
        As in `cyce.sharded.gradient`.
    out : tuple of ndarray, default=None
        Where to write the gradients, as in `linear_cross_entropy`.

    Returns
    -------
    tuple of ndarray
        The gradients with respect to `input`, `linear_weight` and, if it is given, `linear_bias`, each of the
        shape and dtype of that array. The first is the contribution of this shard: add those of all shards.
        The others are complete.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `linear_partial` and `cyce.sharded.gradient`.

    Examples
    --------
    See `linear_partial`.
    """
    layer = _layer(input, linear_weight, linear_bias)
    chosen = as_options(options, layer.dtype)
    merged = as_whole(state, "state")
    settings = agreed_settings(
        merged,
        layer.dtype,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
    )
    loss, _ = _loss_of(layer, target, first_class, weight, settings)
    check_state(merged, layer.dtype, loss.positions, loss.call, layer.row_shape[0], layer.bias is not None)
    if sample_weight is not None:
        loss.call.sample_weight = as_sample_weight(sample_weight, layer.logits(), loss.call.axis)
    upstream = as_upstream((grad_output, out), None, layer, loss)
    assert upstream.outs is not None
    rows = _rows_that_count(loss)
    states = states_of(merged)
    # One row has no axis of positions.
    flat = merged._replace(target_logit=merged.target_logit.reshape(-1), maximum=merged.maximum.reshape(-1))
    if loss.call.target is not None:
        loss.call.target = loss.call.target.reshape(-1)

    def finish_rows(call: CrossEntropyArguments, chunk: slice) -> float:
        """Write the gradient of the logits of some rows, and return their loss."""
        numbers = chunk if rows is None else rows[chunk]
        check_logits(flat, call.logits, loss.call, numbers, rtol=PRODUCT_ERROR)
        of_chunk = np.ascontiguousarray(states[:, numbers])
        value: float = dispatch.kernels.finish(call, of_chunk)
        return value

    problem = problem_of(layer, loss, upstream, rows, None)
    run(problem._replace(kernel=finish_rows), layer, upstream.outs, chosen)
    return tuple(array for array in upstream.outs if array is not None)


def _layer(input: Any, linear_weight: Any, linear_bias: Any) -> Layer:
    """Return a layer whose rows have one position each."""
    layer = as_layer(input, linear_weight, linear_bias)
    if layer.weights.ndim != 2:
        raise ValueError(
            f"linear_weight: must have shape (C, in_features) in shards, got {list(layer.weights.shape)}; "
            "call linear_partial for each of the other dimensions"
        )
    return layer


def _loss_of(
    layer: Layer, target: Any, first_class: Any, weight: Any, settings: Settings
) -> tuple[Loss, Settings]:
    """Return the loss of a shard, and the settings with what the target is."""
    logits = layer.logits()
    call, settings = call_of(logits, target, logits.ndim - 1, first_class, weight, settings)
    call.logits = logits
    return Loss(call, logits.shape[:-1], "none"), settings


def _rows_that_count(loss: Loss) -> NDArray[np.intp] | None:
    """Return the rows that are not ignored, None for all."""
    if loss.call.target is None:
        return None
    counts = (loss.call.target != loss.call.ignore_index).reshape(-1)
    return None if counts.all() else np.flatnonzero(counts)
