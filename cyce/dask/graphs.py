"""Graphs whose blocks are states rather than arrays, and their reduction in a tree."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from cyce.sharded.states import Partial, merge

# Of blocks that are no arrays: states, evaluators, or pairs of sums.
OBJECT = np.dtype(object)


def of_objects(n_dims: int) -> dict[str, Any]:
    """Return arguments of `blockwise` for blocks that are no arrays."""
    return {"dtype": OBJECT, "meta": np.empty((0,) * n_dims, OBJECT), "align_arrays": False}


def optional(array: Any, dimensions: tuple[int, ...]) -> tuple[Any, Any]:
    """Return arguments of `blockwise` for an array, or None."""
    return (None, None) if array is None else (array, dimensions)


def dimensions_of(array: Any, axis: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return names of all dimensions of logits, and of those of the positions."""
    dimensions = tuple(range(array.ndim))
    return dimensions, dimensions[:axis] + dimensions[axis + 1 :]


def reduced(blocks: Any, axes: tuple[int, ...], join: Callable[[list[Any]], Any]) -> Any:
    """Join blocks along some dimensions, numbered from 0, in a tree."""
    # Dimensions are named by number, and may be named beyond those that are left.
    numbers = tuple(range(blocks.ndim)) if len(axes) == blocks.ndim else axes
    if not numbers or all(blocks.numblocks[number] == 1 for number in numbers):
        left = tuple(i for i in range(blocks.ndim) if i not in numbers)
        return da.blockwise(
            only_block, left, blocks, tuple(range(blocks.ndim)), **of_objects(len(left)), n_dims=len(numbers)
        )
    return da.reduction(
        blocks,
        chunk=_unchanged,
        combine=_Joined(join),
        aggregate=_Joined(join),
        axis=numbers,
        concatenate=False,
        dtype=OBJECT,
        meta=np.empty((0,) * (blocks.ndim - len(numbers)), OBJECT),
    )


def only_block(block: Any, n_dims: int) -> Any:
    """Return the only block of some dimensions that a graph contracts: a list of lists of one."""
    for _ in range(n_dims):
        (block,) = block
    return block


def _unchanged(block: Any, axis: Any, keepdims: bool) -> Any:  # noqa: ARG001
    """Return a block of objects as it is."""
    return block


class _Joined:
    """Joins the blocks of a list, which is nested where several dimensions are reduced."""

    def __init__(self, join: Callable[[list[Any]], Any]) -> None:
        self._join = join

    def __call__(self, blocks: Any, axis: Any, keepdims: bool) -> Any:  # noqa: ARG002
        return self._join(list(_flat(blocks)))

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self._join.__name__


def _flat(blocks: Any) -> Any:
    """Yield what nested lists hold."""
    if isinstance(blocks, list):
        for block in blocks:
            yield from _flat(block)
    else:
        yield blocks


def merge_partials(partials: list[Partial]) -> Partial:
    """Merge partials of neighbouring classes."""
    merged = partials[0]
    for other in partials[1:]:
        merged = merge(merged, other)
    return merged
