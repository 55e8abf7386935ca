"""Shards of logits: reduced to partials, and finished with the merged one."""

import operator
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
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce.fused.requests import as_grad_out
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.sharded.states import (
    MOST_CLASSES,
    Partial,
    Settings,
    as_partial,
    leave_out,
    neutral_states,
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
        The number of the first class of `logits` among all.
    n_classes : int, default=None
        Number of the classes of all shards. If it is given, class indices are checked at once; otherwise
        `finish` and `gradient` find those that are in no shard. Label smoothing of class probabilities needs
        it.
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
        As `cross_entropy`; and if the shard lies outside of the classes.
    IndexError
        If a class index is negative, or not below `n_classes` if that is given, and not `ignore_index`.

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
    n_declared = 0 if n_classes is None else as_size(n_classes, "n_classes")
    settings = as_settings(
        array.dtype, ignore_index, label_smoothing, z_loss, softcap, temperature, n_declared
    )
    call, settings = call_of(array, target, axis, first_class, weight, settings)
    call.logits = as_stored(array)
    call.num_threads = budget()
    return reduced(call, settings, position_shape(array, axis), array.shape[axis])


def finish(state: Any, *, sample_weight: Any = None) -> Array:
    """Return the losses of the positions, from the merged partials of all shards.

    Parameters
    ----------
    state : Partial
        Merged from those of all classes.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position, as in `cyce.functional.cross_entropy`.

    Returns
    -------
    ndarray
        The losses, as those of ``cross_entropy(..., reduction="none")``. Their mean is
        ``losses.sum() / state.target_weight.sum()``.

    Raises
    ------
    TypeError
        If `state` is no partial.
    ValueError
        If classes are missing.
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
    call.n_all_classes = int(merged.shards[2])
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
        Merged from those of all shards.
    weight : array_like, default=None
        As in `partial`; needed if that had one.
    ignore_index, label_smoothing, z_loss, softcap, temperature : default=None
        None means that of `state`; anything else must equal it.
    sample_weight : array_like of the positions' shape, default=None
        As in `finish`.
    grad_output : number or array_like of the positions' shape, default=None
        The upstream gradient of the losses. ``1 / state.target_weight.sum()`` gives the gradient of the mean.
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
    given = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "temperature": temperature,
    }
    settings = agreed_settings(given, array.dtype, merged)
    call, _ = call_of(array, target, axis, first_class, weight, settings)
    positions = position_shape(array, axis)
    check_state(merged, array.dtype, positions, call, array.shape[axis])
    if sample_weight is not None:
        call.sample_weight = as_sample_weight(sample_weight, array, axis)
    call.upstream, call.grad_output = as_grad_output(grad_output, array.dtype, positions, "none")
    read = {
        "target": call.target if call.probabilities is None else as_target(target, array, axis)[1],
        "weight": call.weight,
        "sample_weight": call.sample_weight,
        "grad_output": call.grad_output,
    }
    grad_out = as_grad_out(out, array, read)
    call.logits, call.grad_out = as_stored(array), as_stored(grad_out)
    call.num_threads = budget()
    if array.shape[axis]:
        with_errors(call, dispatch.kernels.finish, states_of(merged))
    return grad_out


# ---------------------------------------------------------------------------------------------
# Arguments


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
        n_classes=n_classes,
        label_smoothing=as_label_smoothing(label_smoothing),
        z_loss=as_number(z_loss, "z_loss", FLOAT64, positive=False),
        softcap=0.0 if softcap is None else as_number(softcap, "softcap", dtype),
        temperature=as_number(temperature, "temperature", dtype),
    )


def agreed_settings(given: dict[str, Any], dtype: np.dtype[Any], merged: Partial) -> Settings:
    """Return the options of a merged partial, which those that are given must equal."""
    of_state = merged.settings._replace(n_classes=int(merged.shards[2]))
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
    n_all = settings.n_classes or MOST_CLASSES
    if first + n_own > n_all:
        limit = f"n_classes is {n_all}" if settings.n_classes else f"there may be {MOST_CLASSES} classes"
        raise ValueError(f"first_class: {n_own} classes from {first} on end at {first + n_own}, but {limit}")
    call = CrossEntropyArguments()
    call.axis = axis
    indices, probabilities = as_target(target, logits, axis, "logits")
    call.target = indices
    if indices is not None:
        # A copy: no other thread changes it.
        call.target = np.array(indices).reshape(position_shape(logits, axis))
        _check_indices(call.target, settings)
    if probabilities is not None:
        call.probabilities = as_stored(probabilities)
        if settings.label_smoothing and not settings.n_classes:
            raise ValueError(
                "n_classes: is needed for label_smoothing of class probabilities; pass the number of classes "
                "of all shards"
            )
    call.weight = _weight_of_shard(weight, logits, axis, first, settings)
    call.ignore_index = settings.ignore_index
    call.label_smoothing = settings.label_smoothing
    call.z_loss = settings.z_loss
    call.softcap = settings.softcap
    call.temperature = settings.temperature
    call.first_class, call.n_all_classes = first, n_all
    return call, settings._replace(has_probabilities=indices is None, has_weight=weight is not None)


def _check_indices(target: Array, settings: Settings) -> None:
    """Raise for class indices that no shard can have."""
    n_classes = settings.n_classes or MOST_CLASSES
    is_bad = ((target < 0) | (target >= n_classes)) & (target != settings.ignore_index)
    if is_bad.any():
        position = int(is_bad.argmax())
        raise IndexError(describe_bad_target(position, target, n_classes, settings.ignore_index, "logits"))


def _weight_of_shard(value: Any, logits: Array, axis: int, first: int, settings: Settings) -> Array | None:
    """Return the weights of the classes of a shard, given these or those of all classes."""
    if value is None:
        return None
    n_own = logits.shape[axis]
    length = np.shape(value)[0] if np.ndim(value) == 1 else 0
    if length != n_own and length >= first + n_own and length == (settings.n_classes or length):
        value = value[first : first + n_own]
    weight = as_weight(value, logits, axis, "logits")
    if weight is not None and np.isnan(weight).any():
        raise ValueError(f"weight: must not be NaN, as that of class {first + np.isnan(weight).argmax()} is")
    return weight


def as_whole(value: Any, name: str) -> Partial:
    """Return a partial that has all classes, and all targets that count."""
    merged = as_partial(value, name)
    first, end, n, _ = merged.shards.tolist()
    n_classes = merged.settings.n_classes or end
    if first != 0 or n != n_classes:
        raise ValueError(
            f"{name}: classes are missing: it has {n} of {n_classes}, from {first} to {end - 1}; merge the "
            "partials of all shards first"
        )
    is_missing = np.isnan(merged.target_weight)
    if is_missing.any():
        bad = np.unravel_index(int(is_missing.argmax()), is_missing.shape)
        where = ", ".join(map(str, bad))
        raise IndexError(
            f"Target is out of bounds. {f'target[{where}]' if where else 'target'} is in no shard: it must "
            f"be a class index from 0 to {n - 1} or ignore_index ({merged.settings.ignore_index})"
        )
    return merged


def check_state(
    merged: Partial,
    dtype: np.dtype[Any],
    positions: tuple[int, ...],
    call: CrossEntropyArguments,
    n_own: int,
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
    if settings.has_weight != (call.weight is not None):
        what = "must be given, as in the partials" if settings.has_weight else "was not given in the partials"
        raise ValueError(f"weight: {what}")
    if call.first_class + n_own > merged.shards[1]:
        raise ValueError(
            f"first_class: {n_own} classes from {call.first_class} on end at {call.first_class + n_own}, "
            f"but state has {merged.shards[1]}"
        )


def with_errors(call: CrossEntropyArguments, phase: Any, states: Array) -> None:
    """Run a phase of the kernels, with a message for what is wrong with a target."""
    try:
        phase(call, states)
    except IndexError as error:
        if call.target is None:
            raise
        raise IndexError(
            describe_bad_target(
                error.args[0], call.target, operator.index(call.n_all_classes), call.ignore_index, "logits"
            )
        ) from None


def reduced(
    call: CrossEntropyArguments, settings: Settings, positions: tuple[int, ...], n_own: int
) -> Partial:
    """Return the partial of a call with logits."""
    n = int(np.prod(positions, dtype=np.int64))
    if n_own:
        states = np.empty((dispatch.kernels.N_FIELDS, n))
        with_errors(call, dispatch.kernels.reduce, states)
    else:
        states = neutral_states(n)
        if call.target is not None:
            leave_out(states, (call.target == call.ignore_index).reshape(-1))
        else:
            states[-1] = 1
    return as_result(states, positions, call, settings, n_own)


def as_result(
    states: Array,
    positions: tuple[int, ...],
    call: CrossEntropyArguments,
    settings: Settings,
    n_own: int,
) -> Partial:
    """Return the partial with the states of a shard."""
    dtype = arithmetic_dtype(call.logits.dtype)
    shards = call.first_class, call.first_class + n_own, n_own
    return partial_of(states, positions, dtype, shards, settings)
