"""Statistics of logits whose classes are split: reduced, merged and finished as losses are in cyce.sharded.

Ranks need the logit of the target first, which is in one shard only: `picked` looks it up.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import FLOAT64, arithmetic_dtype, as_stored, position_shape
from cyce.evaluation.evaluator import PositionStats, empty_stats
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.sharded.logits import divided, targets_logits
from cyce.sharded.states import IGNORED, new_states, row
from cyce.threads.budget import budget

Array = NDArray[Any]

# Rows of the kernels' states.
MAX, ARGMAX, REST, RANK = map(row, ("maximum", "argmax", "rest", "rank"))


class StatsPartial(NamedTuple):
    """What is kept of the classes of a shard, for the statistics of each position."""

    states: Array
    """(N_FIELDS, n_positions)"""
    has_nan: Array
    """Whether a logit is NaN, which counts as the highest: bool, (n_positions,)."""


class Shard(NamedTuple):
    """Checked logits of some classes, and the targets of their positions."""

    logits: Array
    target: Array
    """Class indices among all classes, in C order."""
    axis: int
    first_class: int
    n_all_classes: int
    ignore_index: int
    temperature: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """What is computed in."""
        return arithmetic_dtype(self.logits.dtype)


def picked(shard: Shard) -> Array:
    """Return the logits of the targets, after the temperature; NaN for those in another shard."""
    return targets_logits(
        shard.logits, shard.target, shard.axis, shard.first_class, shard.ignore_index, shard.temperature
    )


def reduce_stats(shard: Shard, target_logit: Array) -> StatsPartial:
    """Reduce a shard; target_logit: of all positions."""
    n = math.prod(position_shape(shard.logits, shard.axis))
    states = new_states(n)
    call = CrossEntropyArguments()
    call.logits, call.axis = as_stored(shard.logits), shard.axis
    call.target, call.target_logit = shard.target, np.ascontiguousarray(target_logit)
    call.ignore_index, call.temperature = shard.ignore_index, shard.temperature
    call.first_class, call.n_all_classes = shard.first_class, shard.n_all_classes
    call.num_threads = budget()
    dispatch.kernels.reduce(call, states)
    return StatsPartial(states, _order_the_unordered(shard, target_logit, states))


def _order_the_unordered(shard: Shard, target_logit: Array, states: Array) -> Array:
    """Correct predictions and ranks where logits are NaN or infinite; return where there is NaN."""
    has_nan = np.zeros(states.shape[1], bool)
    counts = states[ARGMAX] != IGNORED
    positions = np.flatnonzero(counts & ~(np.isfinite(states[MAX]) & np.isfinite(states[REST])))
    if not positions.size:
        return has_nan
    rows = np.moveaxis(shard.logits, shard.axis, -1)
    if rows.ndim == 1:
        rows = rows[np.newaxis]
    where = np.unravel_index(positions, rows.shape[:-1])
    logits = divided(rows[where], shard.temperature)
    numbers = shard.first_class + np.arange(logits.shape[-1])
    target = shard.target.reshape(-1)[positions, np.newaxis].astype(np.int64)
    of_target = target_logit.reshape(-1)[positions, np.newaxis]
    is_nan = np.isnan(logits)
    is_before = (logits > of_target) | ((logits == of_target) & (numbers < target))
    is_before = np.where(np.isnan(of_target), is_nan & (numbers < target), is_before | is_nan)
    states[RANK, positions] = is_before.sum(axis=-1)
    # The first NaN, or the first of the highest.
    states[ARGMAX, positions] = numbers[logits.argmax(axis=-1)]
    has_nan[positions] = is_nan.any(axis=-1)
    return has_nan


def merge_stats(a: StatsPartial, b: StatsPartial, dtype: np.dtype[Any]) -> StatsPartial:
    """Merge the partial of the classes that follow. dtype: of the arithmetic."""
    states = a.states.copy()
    dispatch.kernels.merge(states, b.states, dtype == FLOAT64)
    states[ARGMAX] = np.where(a.has_nan, a.states[ARGMAX], states[ARGMAX])
    states[ARGMAX] = np.where(b.has_nan & ~a.has_nan, b.states[ARGMAX], states[ARGMAX])
    return StatsPartial(states, a.has_nan | b.has_nan)


def finish_stats(merged: StatsPartial, positions: tuple[int, ...], dtype: np.dtype[Any]) -> PositionStats:
    """Return the statistics of each position, from what all shards were merged to."""
    stats = empty_stats(positions, dtype)
    call = CrossEntropyArguments()
    call.loss_out, *call.stats_out = stats
    dispatch.kernels.finish_states(call, merged.states, True)
    return stats
