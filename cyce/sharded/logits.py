"""Shards of logits: reduced to partials, and finished with the merged one."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    FLOAT64,
    arithmetic_dtype,
    as_axis,
    as_grad_output,
    as_ignore_index,
    as_label_smoothing,
    as_logits,
    as_number,
    as_sample_weight,
    as_size,
    as_stored,
    as_target,
    as_weight,
    check_indices,
    class_axis,
    position_shape,
)
from cyce.fused.requests import as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.sharded.states import (
    IGNORED,
    MOST_CLASSES,
    Partial,
    Settings,
    as_partial,
    described,
    neutral_states,
    new_states,
    partial_of,
    states_of,
)
from cyce.threads.budget import budget

Array = NDArray[Any]


def partial(
    logits: Any,
    target: Any,
    first_class: int = 0,
    *,
    n_classes: int | None = None,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    axis: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Partial:
    r"""Reduce the logits of some of the classes to a few numbers per position.

    Parameters
    ----------
    logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits of the C classes of this shard, as in `cyce.functional.cross_entropy`.
    target : array_like
        Class indices among the classes of all shards, one for each position; or class probabilities of the
        shape of `logits`.
    first_class : int, default=0
        Index, among the classes of all shards, of the first class of `logits`.
    n_classes : int, default=None
        Number of the classes of all shards; `weight` of all classes tells it, too. With it, class indices are
        checked at once, and `finish` and `gradient` notice any shard that is missing. Without it, they notice
        gaps, and class indices that are in no shard, but not that the last shards were left out.
    weight : array_like, default=None
        A weight for each class: of this shard, (C,), or of all shards.
    ignore_index : int, default=-100
        Class index of ignored positions.
    label_smoothing : float in [0, 1], default=0.0
        Fraction of every target that is spread evenly over the classes of all shards.
    axis : int, default=None
        The axis of the classes, as in `cross_entropy`.
    z_loss : float, default=0.0
        As in `cross_entropy`.
    softcap : float, default=None
        As in `cross_entropy`.
    temperature : float, default=1.0
        As in `cross_entropy`.

    Returns
    -------
    Partial
        A named tuple of arrays, which any engine can move, for `merge`, `finish` and `gradient`.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; if the shard lies outside of the classes; if `n_classes` is missing for label
        smoothing of class probabilities.
    IndexError
        If a class index is negative, or not below `n_classes` if that is known, and not `ignore_index`; if
        `logits` has no such `axis`.

    See Also
    --------
    linear_partial : The same of the logits of a linear layer, which are never in memory as a whole.

    Notes
    -----
    With the maximum :math:`m` of a shard and :math:`r = \sum_j e^{x_j - m}` over its other classes, two
    shards merge to the larger of the maxima, the other one's terms scaled by the exponential of the
    difference: the sums of the online softmax [1]_. The loss is :math:`(m - x_y) + \operatorname{log1p}(r)`
    of all shards, as in `cross_entropy`, and keeps its precision.

    Sample weights do not enter here: `finish` and `gradient` take them. Class probabilities that are nearly
    one-hot have a less precise gradient at the maximum in float32 than unsplit.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    Two shards of two classes each:

    >>> import numpy as np
    >>> from cyce import sharded
    >>> logits, target = np.array([[2.0, 0.5, 0.3, -1.0], [0.1, 0.2, 2.5, 0.0]]), np.array([0, 2])
    >>> parts = [sharded.partial(logits[:, a : a + 2], target, first_class=a) for a in (0, 2)]
    >>> whole = sharded.merge(*parts)
    >>> print(sharded.finish(whole).round(4), whole.argmax)
    [0.3754 0.2414] [0 2]
    >>> print(sharded.gradient(logits[:, 2:], target, whole, first_class=2).round(4))
    [[ 0.1255  0.0342]
     [-0.2145  0.0645]]
    """
    array = as_logits(logits, name="logits", target=target)
    axis = class_axis(array) if axis is None else as_axis(axis, array.ndim, "axis")
    settings = as_settings(
        array.dtype, ignore_index, label_smoothing, z_loss, softcap, temperature, as_n_classes(n_classes)
    )
    call, settings = call_of(array, target, axis, first_class, weight, settings)
    positions = position_shape(array, axis)
    if array.shape[axis]:
        states = new_states(math.prod(positions))
        call.logits = as_stored(array)
        call.num_threads = budget()
        dispatch.kernels.reduce(call, states)
    else:
        states = neutral_states(math.prod(positions), call.target, call.ignore_index)
    classes = (call.first_class, call.first_class + array.shape[axis])
    return partial_of(states, positions, arithmetic_dtype(array.dtype), [classes], settings)


def finish(state: Any, *, sample_weight: Any = None) -> Array:
    """Return the losses of the positions, from the merged partials of all shards.

    Parameters
    ----------
    state : Partial
        The merged partials of all shards, from `merge`.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position, as in `cyce.functional.cross_entropy`.

    Returns
    -------
    ndarray
        The losses, as those of ``cross_entropy(..., reduction="none")``. Their mean is
        ``losses.sum() / state.target_weight.sum()``; with sample weights,
        ``losses.sum() / (state.target_weight * sample_weight).sum()``.

    Raises
    ------
    TypeError
        If `state` is no partial, or `sample_weight` is not numeric.
    ValueError
        If classes are missing, or `sample_weight` does not have the positions' shape.
    IndexError
        If a class index is in no shard, and not the `ignore_index` of the partials.

    Examples
    --------
    >>> import numpy as np
    >>> from cyce import sharded
    >>> state = sharded.partial(np.array([[2.0, 0.5, 0.3]]), [0])
    >>> print(sharded.finish(state).round(4))
    [0.3406]
    """
    return finished(state, sample_weight)[0]


def finished(state: Any, sample_weight: Any) -> tuple[Array, float]:
    """Return the losses of the positions, and their sum in double."""
    merged = as_whole(state, "state")
    dtype, settings = merged.maximum.dtype, merged.settings
    call = CrossEntropyArguments()
    call.label_smoothing = settings.label_smoothing
    call.z_loss = settings.z_loss
    call.n_all_classes = int(merged.classes[-1, 1])
    losses: Array = np.empty(merged.maximum.shape, dtype)
    call.loss_out = losses
    if sample_weight is not None:
        # As of logits whose last axis has the classes.
        call.sample_weight = as_sample_weight(sample_weight, losses[..., np.newaxis], losses.ndim)
    total = dispatch.kernels.finish_states(call, states_of(merged), not settings.has_probabilities)
    return losses, total


def gradient(
    logits: Any,
    target: Any,
    state: Any,
    first_class: int = 0,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
    axis: int | None = None,
    z_loss: float | None = None,
    softcap: float | None = None,
    temperature: float | None = None,
    sample_weight: Any = None,
    grad_output: Any = None,
    out: Any = None,
) -> Array:
    """Return the gradient of the sum of the losses with respect to the logits of a shard.

    Parameters
    ----------
    logits, target, first_class, axis
        As in `partial`.
    state : Partial
        The merged partials of all shards, from `merge`.
    weight : array_like, default=None
        As in `partial`; needed if that had one.
    ignore_index, label_smoothing, z_loss, softcap, temperature : default=None
        None means that of `state`; anything else must equal it.
    sample_weight : array_like of the positions' shape, default=None
        As in `finish`.
    grad_output : number or array_like of the positions' shape, default=None
        The upstream gradient of the losses. None means 1. To get the gradient of the mean, pass 1 divided by
        the denominator of the mean, see `finish`.
    out : ndarray of the shape and dtype of `logits`, default=None
        Where to write the gradient; it may be `logits`.

    Returns
    -------
    ndarray
        The gradient, of the shape and dtype of `logits`: the part of this shard.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `partial` and `finish`; and if an option differs from that of `state`.

    Examples
    --------
    >>> import numpy as np
    >>> from cyce import sharded
    >>> logits = np.array([[2.0, 0.5, 0.3]])
    >>> state = sharded.partial(logits, [0])
    >>> print(sharded.gradient(logits, [0], state).round(4))
    [[-0.2887  0.1587  0.1299]]
    """
    merged = as_whole(state, "state")
    array = as_logits(logits, name="logits", target=target)
    axis = class_axis(array) if axis is None else as_axis(axis, array.ndim, "axis")
    settings = agreed_settings(
        merged,
        array.dtype,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
    )
    call, _ = call_of(array, target, axis, first_class, weight, settings)
    positions = position_shape(array, axis)
    check_state(merged, array.dtype, positions, call, array.shape[axis])
    check_logits(merged, array, call, ..., rtol=1e-6)
    if sample_weight is not None:
        call.sample_weight = as_sample_weight(sample_weight, array, axis)
    call.upstream, call.grad_output = as_grad_output(grad_output, array.dtype, positions, "none")
    read = {
        "target": call.probabilities,
        "weight": call.weight,
        "sample_weight": call.sample_weight,
        "grad_output": call.grad_output,
    }
    grad_out = as_grad_out(out, array, read)
    call.logits, call.grad_out = as_stored(array), as_stored(grad_out)
    call.num_threads = budget()
    if array.shape[axis]:
        dispatch.kernels.finish(call, states_of(merged))
    return grad_out


# ---------------------------------------------------------------------------------------------
# Arguments


def as_n_classes(value: Any) -> int:
    """Return the number of classes of all shards, -1 for None."""
    if value is None:
        return -1
    n_classes = as_size(value, "n_classes")
    if n_classes > MOST_CLASSES:
        raise ValueError(f"n_classes: must be at most {MOST_CLASSES}, got {n_classes}")
    return n_classes


def as_settings(
    dtype: np.dtype[Any],
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    temperature: Any,
    n_classes: int,
) -> Settings:
    """Return the options of a partial; dtype: of the logits."""
    dtype = arithmetic_dtype(dtype)
    return Settings(
        ignore_index=as_ignore_index(ignore_index),
        has_probabilities=False,
        has_weight=False,
        has_bias=False,
        n_classes=n_classes,
        label_smoothing=as_label_smoothing(label_smoothing),
        z_loss=as_number(z_loss, "z_loss", FLOAT64, positive=False),
        softcap=0.0 if softcap is None else as_number(softcap, "softcap", dtype),
        temperature=as_number(temperature, "temperature", dtype),
    )


def agreed_settings(merged: Partial, dtype: np.dtype[Any], **given: Any) -> Settings:
    """Return the options of a merged partial, which those that are given must equal; None is not given.

    dtype: of the logits.
    """
    of_state = merged.settings._replace(n_classes=int(merged.classes[-1, 1]))
    wanted = {name: value for name, value in of_state._asdict().items() if name in given}
    wanted["softcap"] = wanted["softcap"] or None
    named = {name: value for name, value in given.items() if value is not None}
    settings = as_settings(dtype, **{**wanted, **named}, n_classes=of_state.n_classes)
    for name in named:
        if getattr(settings, name) != getattr(of_state, name):
            raise ValueError(
                f"{name}: must be that of the partials, {wanted[name]}, got {named[name]}; leave it out"
            )
    return settings


def call_of(
    logits: Array, target: Any, axis: int, first_class: Any, weight: Any, settings: Settings
) -> tuple[CrossEntropyArguments, Settings]:
    """Return the arguments of a kernel, without logits, and the settings with what the target is.

    logits: checked, of which shape and dtype alone count.
    """
    first, n_own = as_size(first_class, "first_class"), logits.shape[axis]
    if weight is not None:
        settings = settings._replace(has_weight=True)
        weight, settings = _weight_of_shard(weight, logits, axis, first, settings)
    n_all = MOST_CLASSES if settings.n_classes < 0 else settings.n_classes
    if first + n_own > n_all:
        limit = f"n_classes is {n_all}" if settings.n_classes >= 0 else f"there may be {n_all} classes"
        raise ValueError(f"first_class: {n_own} classes from {first} on end at {first + n_own}, but {limit}")
    call = CrossEntropyArguments()
    call.axis = axis
    indices, probabilities = as_target(target, logits, axis, "logits")
    if indices is not None:
        # A copy: no other thread changes it.
        call.target = np.array(indices).reshape(position_shape(logits, axis))
        _check_indices(call.target, settings)
    if probabilities is not None:
        call.probabilities = as_stored(probabilities)
        settings = settings._replace(has_probabilities=True)
        if settings.ignore_index >= 0:
            raise ValueError(
                "ignore_index is not supported for floating point target: target is class probabilities, "
                f"ignore_index must be negative; got {settings.ignore_index}"
            )
        if settings.label_smoothing and settings.n_classes < 0:
            raise ValueError(
                "n_classes: is needed for label_smoothing of class probabilities; pass the number of classes "
                "of all shards"
            )
    call.weight = weight
    call.ignore_index = settings.ignore_index
    call.label_smoothing = settings.label_smoothing
    call.z_loss = settings.z_loss
    call.softcap = settings.softcap
    call.temperature = settings.temperature
    call.first_class, call.n_all_classes = first, n_all
    return call, settings


def _check_indices(target: Array, settings: Settings) -> None:
    """Raise for class indices that no shard can have."""
    if settings.n_classes >= 0:
        check_indices(target, settings.n_classes, settings.ignore_index, "logits")
        return
    is_bad = ((target < 0) | (target >= MOST_CLASSES)) & (target != settings.ignore_index)
    if is_bad.any():
        bad = np.unravel_index(int(is_bad.argmax()), target.shape)
        where = ", ".join(map(str, bad))
        raise IndexError(
            f"Target {target[bad]} is out of bounds. {f'target[{where}]' if where else 'target'} must be a "
            f"class index from 0 on, below {MOST_CLASSES}, or ignore_index ({settings.ignore_index})"
        )


def _weight_of_shard(
    value: Any, logits: Array, axis: int, first: int, settings: Settings
) -> tuple[Array | None, Settings]:
    """Return the weights of the classes of a shard, given these or those of all classes.

    The latter tell the number of all classes.
    """
    n_own = logits.shape[axis]
    length = np.shape(value)[0] if np.ndim(value) == 1 else 0
    if length != n_own and length >= first + n_own and settings.n_classes in (-1, length):
        value = value[first : first + n_own]
        settings = settings._replace(n_classes=length)
    return as_weight(value, logits, axis, "logits"), settings


def as_whole(value: Any, name: str) -> Partial:
    """Return a partial that has all classes, and all targets that count."""
    merged = as_partial(value, name)
    n_classes = merged.settings.n_classes
    if n_classes < 0:
        n_classes = int(merged.classes[-1, 1])
    if merged.classes.tolist() != [[0, n_classes]]:
        raise ValueError(
            f"{name}: classes are missing: it has {described(merged)}, of {n_classes}; merge the partials of "
            "all shards first"
        )
    if not merged.is_known.all():
        bad = np.unravel_index(int(merged.is_known.argmin()), merged.is_known.shape)
        where = ", ".join(map(str, bad))
        raise IndexError(
            f"Target is out of bounds. {f'target[{where}]' if where else 'target'} is in no shard: it must "
            f"be a class index from 0 to {n_classes - 1} or ignore_index ({merged.settings.ignore_index})"
        )
    return merged


def check_state(
    merged: Partial,
    dtype: np.dtype[Any],
    positions: tuple[int, ...],
    call: CrossEntropyArguments,
    n_own: int,
    has_bias: bool = False,
) -> None:
    """Raise unless a merged partial is that of the logits of a shard.

    dtype: of the logits. n_own: the number of their classes.
    """
    settings = merged.settings
    if merged.maximum.dtype != arithmetic_dtype(dtype):
        raise TypeError(
            f"state: is of {merged.maximum.dtype.name} logits, got {dtype.name}; pass the logits that the "
            "partials are of"
        )
    if merged.maximum.shape != positions:
        raise ValueError(
            f"state: has positions of shape {list(merged.maximum.shape)}, logits have {list(positions)}"
        )
    if settings.has_probabilities != (call.target is None):
        kinds = ("class indices", "class probabilities")
        raise ValueError(
            f"target: must be {kinds[settings.has_probabilities]} as in the partials, got "
            f"{kinds[call.target is None]}"
        )
    if settings.has_bias != has_bias:
        what = "must be given" if settings.has_bias else "was not given"
        raise ValueError(f"linear_bias: {what} in the partials, and must be the same here")
    if settings.has_weight != (call.weight is not None):
        what = "must be given, as in the partials" if settings.has_weight else "was not given in the partials"
        raise ValueError(f"weight: {what}")
    if call.first_class + n_own > merged.classes[-1, 1]:
        raise ValueError(
            f"first_class: {n_own} classes from {call.first_class} on end at {call.first_class + n_own}, "
            f"but state has {described(merged)}"
        )
    if call.target is None:
        return
    own = call.target.astype(np.int64) - call.first_class
    counts, is_own = call.target != call.ignore_index, (own >= 0) & (own < n_own)
    weights = np.ones(n_own) if call.weight is None else call.weight
    if np.any(counts != (merged.argmax != IGNORED)):
        raise ValueError("target: ignores other positions than in the partials; pass the same target")
    of_state, of_call = merged.target_weight[counts & is_own], weights[own[counts & is_own]]
    if not np.array_equal(of_state, of_call, equal_nan=True):
        raise ValueError("target or weight: differs from that of the partials; pass the same as to partial")


def targets_logits(
    logits: Array, target: Array, axis: int, first_class: int, ignore_index: int, temperature: float
) -> Array:
    """Return the logits of the targets, after the temperature; NaN for those that are not in the shard."""
    dtype = arithmetic_dtype(logits.dtype)
    # Checked before: an unsigned one is a class.
    own = target.astype(np.int64) - first_class
    is_own = (own >= 0) & (own < logits.shape[axis]) & (target != ignore_index)
    result = np.full(target.shape, np.nan, dtype)
    if is_own.any():
        index = np.expand_dims(np.where(is_own, own, 0), axis)
        found = np.take_along_axis(logits, index, axis).squeeze(axis)
        result[is_own] = divided(found[is_own], temperature)
    return result


def divided(logits: Array, temperature: float) -> Array:
    """Return logits divided by the temperature, in the dtype of the arithmetic, as the kernels do."""
    dtype = arithmetic_dtype(logits.dtype)
    with np.errstate(all="ignore"):
        values: Array = logits.astype(dtype)
        return values if temperature == 1 else values / dtype.type(temperature)


def check_logits(merged: Partial, logits: Array, call: CrossEntropyArguments, rows: Any, rtol: float) -> None:
    """Raise unless the targets' logits are those of the partials, where they are in the shard.

    rows: which positions the logits are of. rtol: relative to the maxima.
    """
    if call.target is None or call.softcap:
        return
    picked = targets_logits(
        logits, call.target[rows], call.axis, call.first_class, call.ignore_index, call.temperature
    )
    expected, scale = merged.target_logit[rows], np.abs(merged.maximum[rows])
    with np.errstate(all="ignore"):
        # What is not finite, or in another shard, says nothing.
        differs = np.abs(picked - expected) > rtol * (1 + scale)
    if differs.any():
        bad = np.unravel_index(int(differs.argmax()), differs.shape)
        raise ValueError(
            f"logits, target or first_class: the logit of a target is {picked[bad]} here, and was "
            f"{expected[bad]} in the partials; pass the same arguments as to partial"
        )
