"""Evaluation of Dask arrays."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from cyce._arguments import FLOAT64, as_logits, position_shape
from cyce.dask.chunks import (
    as_dask_array,
    first_classes,
    like,
    n_classes_of,
    numbered_in_chunks,
    of_shape,
    sample_weight_of,
    targets_of,
)
from cyce.dask.graphs import again, dimensions_of, of_objects, optional, reduced
from cyce.evaluation.evaluator import Evaluator, Labels
from cyce.evaluation.record import Evaluation
from cyce.evaluation.shards import (
    Shard,
    StatsPartial,
    finish_stats,
    merge_stats,
    picked,
    reduce_stats,
)
from cyce.evaluation.sources import axis_of

Array = NDArray[Any]


def evaluate(
    logits: Any,
    target: Any,
    *,
    sample_weight: Any = None,
    ignore_index: int = -100,
    axis: int | None = None,
    top_k: Sequence[int] = (1, 5),
    n_bins: int = 15,
    class_weight: Any = None,
    temperature: float = 1.0,
    confusion_matrix: bool = False,
) -> Delayed:
    """Loss, accuracies, calibration and more of a Dask array of logits, lazily, as `cyce.evaluate`.

    Parameters
    ----------
    logits : dask.array.Array
        Logits in any chunks, as `input` of `cross_entropy`.
    target : dask.array.Array or array_like of int
        Class indices of the positions' shape.
    sample_weight : dask.array.Array or array_like of the positions' shape, default=None
        A weight for each position; one of weight 0 is ignored.
    ignore_index, axis, top_k, n_bins, class_weight, temperature, confusion_matrix
        As in `cyce.Evaluator`.

    Returns
    -------
    dask.delayed.Delayed
        Its `compute()` gives a `cyce.Evaluation`.

    Raises
    ------
    TypeError, ValueError
        As `cyce.Evaluator`; and if `logits` is no Dask array.
    IndexError
        If a target is neither in [0, C) nor `ignore_index`: at once if `target` and `sample_weight` are in
        memory, else when the result is computed.

    Notes
    -----
    Where the classes are in several chunks, `logits` is computed twice, which must give the same numbers:
    ranks need the logits of the targets first. Chunks are not kept for that, so that memory does not depend
    on the number of chunks. Of a mapped file, the first pass reads little more than these logits.

    Of padded vocabularies, pass ``logits[:, :n_classes]``. `cyce.fit_temperature` is for arrays in memory and
    files.

    Each chunk of positions gives a `cyce.Evaluator`: six numbers per class, and the confusion matrix if that
    is asked for. With many classes, chunks should have many positions.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cyce.dask
    >>> logits = da.from_array(np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]), chunks=(1, 2))
    >>> result = cyce.dask.evaluate(logits, np.array([0, 1])).compute()
    >>> print(round(result.loss, 4), result.accuracy)
    1.4077 0.5
    """
    logits = as_dask_array(logits, "logits")
    axis = axis_of(like(logits, "logits").ndim, axis)
    if isinstance(class_weight, da.Array):
        raise TypeError("class_weight: must be in memory; pass class_weight.compute()")
    evaluator = Evaluator(
        ignore_index=ignore_index,
        axis=axis,
        top_k=top_k,
        n_bins=n_bins,
        class_weight=class_weight,
        temperature=temperature,
        confusion_matrix=confusion_matrix,
    )
    n_classes = n_classes_of(logits, axis, "logits")
    evaluator.check_classes(logits.shape, axis)
    if isinstance(target, da.Array) and logits.ndim > 1 and target.shape == logits.shape:
        raise TypeError(
            "target: must be class indices, got an array of the shape of logits, a one-hot or probabilities; "
            f"pass target.argmax(axis={axis})"
        )
    if not any(isinstance(value, da.Array) for value in (target, sample_weight)) and not math.isnan(
        logits.size
    ):
        # For what is wrong with them, before anything is computed.
        Labels.of(of_shape(logits.shape, logits.dtype), target, sample_weight, axis, evaluator.ignore_index)
    target, has_probabilities = targets_of(target, logits, axis, evaluator.ignore_index, "logits")
    if has_probabilities:
        raise TypeError("target: must be class indices, one for each position")
    classes, positions = dimensions_of(logits, axis)
    weights = optional(sample_weight_of(sample_weight, logits, axis, "logits", FLOAT64), positions)
    # With class weights, it is as large as these: one for all tasks.
    shared = evaluator if class_weight is None else dask.delayed(evaluator, pure=True)
    if logits.numblocks[axis] == 1:
        # The classes stay a dimension, of one block: without it, there would be one more task for each chunk.
        evaluators = da.blockwise(
            _evaluate_chunk,
            classes,
            logits,
            classes,
            target,
            positions,
            *weights,
            **of_objects(len(classes)),
            adjust_chunks={axis: 1},
            evaluator=shared,
            n_classes=n_classes,
        )
    else:
        options = {
            "axis": axis,
            "n_all_classes": n_classes,
            "ignore_index": evaluator.ignore_index,
            "temperature": float(temperature),
        }
        first = first_classes(logits, axis)
        # By tasks of their own: chunks would wait until the logits of all targets are known.
        picks = da.blockwise(
            _picks_of_chunk,
            classes,
            again(logits),
            classes,
            target,
            positions,
            first,
            (axis,),
            **of_objects(len(classes)),
            adjust_chunks={axis: 1},
            options=options,
        )
        target_logits = reduced(picks, (axis,), _join_picks)
        states = da.blockwise(
            _stats_of_chunk,
            classes,
            logits,
            classes,
            target,
            positions,
            target_logits,
            positions,
            first,
            (axis,),
            **of_objects(len(classes)),
            adjust_chunks={axis: 1},
            options=options,
        )
        merged = reduced(states, (axis,), _merge_stats)
        evaluators = da.blockwise(
            _evaluate_stats,
            positions,
            merged,
            positions,
            target,
            positions,
            *weights,
            **of_objects(len(positions)),
            evaluator=shared,
            n_classes=n_classes,
        )
    total = reduced(evaluators, tuple(range(evaluators.ndim)), _merge_evaluators)
    (result,) = da.blockwise(_compute, (), total, (), **of_objects(0)).to_delayed().reshape(-1)
    return result


# ---------------------------------------------------------------------------------------------
# Tasks


def _evaluate_chunk(
    logits: Array, target: Array, sample_weight: Array | None, evaluator: Evaluator, n_classes: int
) -> Evaluator:
    """Return an evaluator that has seen a chunk, which has all classes."""
    with numbered_in_chunks():
        result = copy.copy(evaluator).update(logits, target, sample_weight)
    if result.n_classes != n_classes:
        raise ValueError(
            f"logits: a chunk has {result.n_classes} classes, its Dask array {n_classes}; if map_blocks made "
            "it, pass the chunks of its result: map_blocks(..., chunks=...)"
        )
    return result


def _shard(logits: Array, target: Array, first_class: Array, options: dict[str, Any]) -> Shard:
    """Return a chunk of logits and its checked targets."""
    scores = as_logits(logits, name="logits")
    axis, n_classes = options["axis"], options["n_all_classes"]
    whole = of_shape((*scores.shape[:axis], n_classes, *scores.shape[axis + 1 :]), scores.dtype)
    with numbered_in_chunks():
        labels = Labels.of(whole, target, None, axis, options["ignore_index"])
    return Shard(scores, np.asarray(labels.target, order="C"), first_class=int(first_class[0]), **options)


def _picks_of_chunk(logits: Array, target: Array, first_class: Array, options: dict[str, Any]) -> Array:
    """Return the logits of the targets that are in a chunk."""
    return picked(_shard(logits, target, first_class, options))


def _join_picks(picks: list[Array]) -> Array:
    """Return the logits of the targets that are in one of several chunks."""
    joined = picks[0]
    for other in picks[1:]:
        joined = np.where(np.isnan(joined), other, joined)
    return joined


def _stats_of_chunk(
    logits: Array, target: Array, target_logit: Array, first_class: Array, options: dict[str, Any]
) -> tuple[StatsPartial, np.dtype[Any], tuple[int, ...]]:
    """Reduce a chunk of logits; return its dtype and the shape of its positions, too."""
    shard = _shard(logits, target, first_class, options)
    again = picked(shard)
    if not np.array_equal(again, np.where(np.isnan(again), again, target_logit), equal_nan=True):
        raise ValueError(
            "logits: are not the same when they are computed a second time, which ranks need where the "
            "classes are in several chunks; persist them, or rechunk them to whole rows"
        )
    return reduce_stats(shard, target_logit), shard.dtype, position_shape(shard.logits, shard.axis)


def _merge_stats(
    parts: list[tuple[StatsPartial, np.dtype[Any], tuple[int, ...]]],
) -> tuple[StatsPartial, np.dtype[Any], tuple[int, ...]]:
    """Merge what is kept of neighbouring classes."""
    merged, dtype, positions = parts[0]
    for other, _, _ in parts[1:]:
        merged = merge_stats(merged, other, dtype)
    return merged, dtype, positions


def _evaluate_stats(
    merged: tuple[StatsPartial, np.dtype[Any], tuple[int, ...]],
    target: Array,
    sample_weight: Array | None,
    evaluator: Evaluator,
    n_classes: int,
) -> Evaluator:
    """Return an evaluator that has seen positions."""
    states, dtype, positions = merged
    result = copy.copy(evaluator)
    whole = of_shape((*positions, n_classes), dtype)
    labels = Labels.of(whole, target, sample_weight, len(positions), evaluator.ignore_index)
    result.add_stats(finish_stats(states, positions, dtype), n_classes, *labels)
    return result


def _merge_evaluators(evaluators: list[Evaluator]) -> Evaluator:
    """Return an evaluator that has seen what several have."""
    merged = copy.copy(evaluators[0])
    for other in evaluators[1:]:
        merged.merge(other)
    return merged


def _compute(evaluator: Evaluator) -> Evaluation:
    """Return the statistics of all positions."""
    return evaluator.compute()
