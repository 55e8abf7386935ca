"""Cross-entropy of Dask arrays."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_axis,
    as_ignore_index,
    as_label_smoothing,
    as_reduction,
    class_axis,
    set_extensions,
)
from cyce.dask.chunks import (
    as_dask_array,
    class_weight_of,
    first_classes,
    like,
    n_classes_of,
    numbered_in_chunks,
    sample_weight_of,
    targets_of,
)
from cyce.dask.graphs import (
    dimensions_of,
    merge_partials,
    of_objects,
    optional,
    reduced,
    squeezed,
)
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.sharded.logits import finish, finished, partial
from cyce.sharded.states import Partial

Array = NDArray[Any]


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Any:
    """Cross-entropy of a Dask array of logits, lazily; `cyce.functional.cross_entropy` has the formulas.

    Parameters
    ----------
    input : dask.array.Array of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, float16, bfloat16 (of ml_dtypes), float32 or float64, in any chunks.
    target : dask.array.Array or array_like
        Class indices of the positions' shape, or class probabilities of the shape of `input`. It is rechunked
        to the chunks of `input` if it has others.
    weight : dask.array.Array or array_like of shape (C,), default=None
        A weight for each class.
    size_average, ignore_index, reduce, reduction, label_smoothing, axis, normalizer, empty
        As in `cyce.functional.cross_entropy`.
    sample_weight : dask.array.Array or array_like of the positions' shape, default=None
        A weight for each position.
    z_loss, softcap, temperature
        As in `cyce.functional.cross_entropy`, whose `class_mask` and sparse targets are not for Dask arrays.

    Returns
    -------
    dask.array.Array
        Of no dimension, or of the positions' shape and chunks with ``reduction="none"``; in float64 if
        `input` is, else in float32.

    Raises
    ------
    TypeError
        If `input` is no Dask array of floating point, and as `cyce.functional.cross_entropy`.
    ValueError
        If shapes do not fit, if the number of classes is not known, and as `cyce.functional.cross_entropy`.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`: at once if `target` is in memory, else when
        the result is computed. If `input` has no such `axis`.

    See Also
    --------
    cyce.sharded : What each task does.

    Notes
    -----
    The same chunks give the same bits, whatever runs the tasks. Other chunks of the classes round
    differently, within the bounds that the documentation states ("Accuracy"), as do the sums of other chunks
    of positions.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cyce.dask
    >>> logits = da.from_array(np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]), chunks=(1, 2))
    >>> losses = cyce.dask.cross_entropy(logits, np.array([0, 2]), reduction="none")
    >>> print(losses.chunks, losses.compute().round(4))
    ((1, 1),) [0.3406 0.1748]
    >>> print(cyce.dask.cross_entropy(logits, np.array([0, 2])).compute().round(4))
    0.2577
    """
    reduction = as_reduction(reduction, size_average, reduce)
    array = as_dask_array(input, "input")
    logits = like(array, "input")
    axis = class_axis(logits) if axis is None else as_axis(axis, logits.ndim, "axis")
    dtype = arithmetic_dtype(logits.dtype)
    # For what is wrong with an argument, before anything is computed.
    call = CrossEntropyArguments()
    set_extensions(call, None, normalizer, empty, z_loss, softcap, temperature, logits, axis, reduction)
    ignored = as_ignore_index(ignore_index)
    options = {
        "n_classes": n_classes_of(array, axis, "input"),
        "ignore_index": ignored,
        "label_smoothing": as_label_smoothing(label_smoothing),
        "z_loss": call.z_loss,
        "softcap": call.softcap or None,
        "temperature": call.temperature,
        "axis": axis,
    }
    target, has_probabilities = targets_of(target, array, axis, ignored, "input")
    if has_probabilities and ignored >= 0:
        raise ValueError(
            "ignore_index is not supported for floating point target: target is class probabilities, "
            f"ignore_index must be negative; got {ignore_index}"
        )
    is_none = reduction == "none"
    blocks = _blocks(
        array,
        target,
        has_probabilities,
        class_weight_of(weight, array, axis, "input"),
        sample_weight_of(sample_weight, array, axis, "input", dtype),
        losses_of if is_none else sums_of,
        options,
    )
    if is_none:
        classes, positions = dimensions_of(array, axis)
        if blocks.ndim == len(classes):
            blocks = squeezed(blocks, (axis,))
        # A block of losses is an array.
        meta = np.empty((0,) * len(positions), dtype)
        return da.Array(blocks.dask, blocks.name, blocks.chunks, meta=meta)
    total = reduced(blocks, tuple(range(blocks.ndim)), add_sums)
    return da.blockwise(
        _reduced_loss,
        (),
        total,
        (),
        dtype=dtype,
        meta=np.empty((), dtype),
        align_arrays=False,
        is_mean=reduction == "mean",
        normalizer=call.normalizer or None,
        zero_if_empty=call.zero_if_empty,
        loss_dtype=dtype,
    )


def _blocks(
    logits: Any,
    target: Any,
    has_probabilities: bool,
    weight: Any,
    sample_weight: Any,
    finish_chunk: Callable[[Partial, Any], Any],
    options: dict[str, Any],
) -> Any:
    """Return the graph of what is finished from the states of the positions.

    Where chunks have all classes, one task does all, and the classes are still a dimension, of one block.
    """
    axis = options["axis"]
    classes, positions = dimensions_of(logits, axis)
    graph: dict[str, Any] = {
        **of_objects(len(classes)),
        "adjust_chunks": {axis: 1},
        "options": options,
    }
    chunks = (
        logits,
        classes,
        target,
        classes if has_probabilities else positions,
        *optional(weight, (axis,)),
        first_classes(logits, axis),
        (axis,),
    )
    weights = optional(sample_weight, positions)
    if logits.numblocks[axis] == 1:
        return da.blockwise(_finished_chunk, classes, *chunks, *weights, **graph, finish_chunk=finish_chunk)
    states = da.blockwise(_partial_of_chunk, classes, *chunks, **graph)
    merged = reduced(states, (axis,), merge_partials)
    return da.blockwise(finish_chunk, positions, merged, positions, *weights, **of_objects(len(positions)))


# ---------------------------------------------------------------------------------------------
# Tasks


def _partial_of_chunk(
    logits: Array, target: Array, weight: Array | None, first_class: Array, options: dict[str, Any]
) -> Partial:
    """Reduce a chunk of logits."""
    with numbered_in_chunks():
        return partial(logits, target, int(first_class[0]), weight=weight, **options)


def _finished_chunk(
    logits: Array,
    target: Array,
    weight: Array | None,
    first_class: Array,
    sample_weight: Array | None,
    finish_chunk: Callable[[Partial, Any], Any],
    options: dict[str, Any],
) -> Any:
    """Finish a chunk that has all classes."""
    state = _partial_of_chunk(logits, target, weight, first_class, options)
    return finish_chunk(state, sample_weight)


def losses_of(state: Partial, sample_weight: Array | None) -> Array:
    """Return the losses of a chunk of positions."""
    return finish(state, sample_weight=sample_weight)


def sums_of(state: Partial, sample_weight: Array | None) -> tuple[float, float]:
    """Return the sum of the losses of a chunk of positions, and of their weights."""
    _, loss = finished(state, sample_weight)
    weight = state.target_weight.astype(np.float64)
    if sample_weight is not None:
        # Ignored positions may have any weight.
        counts = weight != 0
        weight[counts] *= np.asarray(sample_weight, state.maximum.dtype)[counts]
    return loss, float(weight.sum())


def add_sums(sums: list[tuple[float, float]]) -> tuple[float, float]:
    """Add sums of losses and of weights."""
    loss, weight = np.sum(sums, axis=0)
    return float(loss), float(weight)


def _reduced_loss(
    total: tuple[float, float],
    is_mean: bool,
    normalizer: float | None,
    zero_if_empty: bool,
    loss_dtype: np.dtype[Any],
) -> Any:
    """Return the sum or the mean of all losses."""
    loss, weight = total
    with np.errstate(all="ignore"):
        if is_mean and normalizer is not None:
            loss /= normalizer
        elif is_mean and weight == 0:
            # 0 / 0, whatever smoothing adds to the sum
            loss = 0.0 if zero_if_empty else np.nan
        elif is_mean:
            loss /= weight
        return np.asarray(loss, loss_dtype)
