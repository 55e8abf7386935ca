"""Softmax of a shard, from the merged normalizers of all."""

import math
from typing import Any

from numpy.typing import NDArray

from cyce._arguments import arithmetic_dtype, as_stored, position_shape
from cyce.kernels import dispatch
from cyce.memory.arrays import empty_like
from cyce.sharded.states import Partial, Settings, neutral_states, new_states, partial_of, states_of
from cyce.threads.budget import budget

Array = NDArray[Any]

# Of no loss: there are no targets.
_SETTINGS = Settings(-100, True, False, False, -1, 0.0, 0.0, 0.0, 1.0)


def normalizer(logits: Array, axis: int, first_class: int) -> Partial:
    """Reduce checked logits of some classes to what a softmax needs of them."""
    positions, n_classes = position_shape(logits, axis), logits.shape[axis]
    if n_classes:
        states = new_states(math.prod(positions))
        dispatch.kernels.normalizers(as_stored(logits), axis, states, budget())
    else:
        states = neutral_states(math.prod(positions), None, 0)
    classes = (first_class, first_class + n_classes)
    return partial_of(states, positions, arithmetic_dtype(logits.dtype), [classes], _SETTINGS)


def normalized(logits: Array, axis: int, state: Partial, log: bool) -> Array:
    """Return the softmax, or log-softmax, of a shard. state: merged from those of all classes."""
    result = empty_like(logits)
    kernel = dispatch.kernels.log_softmax if log else dispatch.kernels.softmax
    kernel(as_stored(logits), axis, as_stored(result), budget(), states_of(state))
    return result
