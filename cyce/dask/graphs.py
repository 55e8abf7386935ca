"""Graphs whose blocks are states rather than arrays, and their reduction in a tree."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask._task_spec import DataNode, convert_legacy_graph
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArrayBlockwiseDep
from numpy.typing import NDArray

from cyce.sharded.states import Partial, merge

# Of blocks that are no arrays: states, evaluators, or pairs of sums.
OBJECT = np.dtype(object)
# Blocks that are joined in one task.
FAN_IN = 8


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
    """Join the blocks of some dimensions, by number, in a tree of tasks that take FAN_IN of them each.

    `dask.array.reduction` has one more task for each block.
    """
    if all(blocks.numblocks[axis] == 1 for axis in axes):
        return squeezed(blocks, axes)
    kept = tuple(axis for axis in range(blocks.ndim) if axis not in axes)
    name = f"{join.__name__.strip('_')}-{tokenize(blocks.name, axes, join)}"
    layer: dict[Any, Any] = {}
    for place in itertools.product(*(range(blocks.numblocks[axis]) for axis in kept)):
        fixed = dict(zip(kept, place, strict=True))
        numbers = ((fixed[axis],) if axis in fixed else range(n) for axis, n in enumerate(blocks.numblocks))
        keys: list[Any] = [(blocks.name, *number) for number in itertools.product(*numbers)]
        for level in itertools.count():
            groups = [keys[first : first + FAN_IN] for first in range(0, len(keys), FAN_IN)]
            keys = [(f"{name}-{level}", *place, number) for number in range(len(groups))]
            if len(groups) == 1:
                keys = [(name, *place)]
            layer |= {key: (join, group) for key, group in zip(keys, groups, strict=True)}
            if len(groups) == 1:
                break
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[blocks])
    chunks = tuple(blocks.chunks[axis] for axis in kept)
    return da.Array(graph, name, chunks, meta=np.empty((0,) * len(kept), OBJECT))


def squeezed(blocks: Any, axes: tuple[int, ...]) -> Any:
    """Remove dimensions of one block."""
    kept = tuple(axis for axis in range(blocks.ndim) if axis not in axes)
    return da.blockwise(
        _only_block, kept, blocks, tuple(range(blocks.ndim)), **of_objects(len(kept)), n_dims=len(axes)
    )


def _only_block(block: Any, n_dims: int) -> Any:
    """Return the only block of some dimensions that a graph contracts: a list of lists of one."""
    for _ in range(n_dims):
        (block,) = block
    return block


def again(array: Any) -> Any:
    """Return the same array, made by tasks of its own: no chunk of it is kept for whom uses the other.

    `dask.graph_manipulation.clone` is for that, but fails for most graphs
    (https://github.com/dask/dask/issues/12455).
    """
    (array,) = dask.optimize(array)
    graph = convert_legacy_graph(dict(array.__dask_graph__()))
    blocks = set(flatten(array.__dask_keys__()))
    # Those that workers of a cluster keep are not even in the graph.
    if all(key not in graph or isinstance(graph[key], DataNode) for key in blocks):
        return array
    # What is data already, such as persisted chunks, may be shared.
    names = {
        key: f"again-{key}" if isinstance(key, str) else (f"again-{key[0]}", *key[1:])
        for key, node in graph.items()
        if key in blocks or not isinstance(node, DataNode)
    }
    renamed = {
        names.get(key, key): node.substitute(names, names.get(key, key)) for key, node in graph.items()
    }
    name = f"again-{array.name}"
    return da.Array(HighLevelGraph.from_collections(name, renamed), name, array.chunks, meta=array._meta)


class Pieces(ArrayBlockwiseDep):  # type: ignore[misc]
    """A NumPy array in pieces, which become part of the tasks: as a Dask array, each is a task of its own."""

    def __init__(self, array: NDArray[Any], chunks: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(chunks)
        self.ndim = array.ndim
        # A copy: whoever has the array may change it before the tasks run.
        self._array = np.array(array)
        self._bounds = [np.cumsum([0, *sizes]).tolist() for sizes in chunks]

    def __getitem__(self, number: tuple[int, ...]) -> NDArray[Any]:
        """Return the piece with these numbers."""
        bounds = zip(self._bounds, number, strict=True)
        piece: NDArray[Any] = self._array[tuple(slice(of[n], of[n + 1]) for of, n in bounds)]
        return piece

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, tokenize(self._array), self.chunks


def merge_partials(partials: list[Partial]) -> Partial:
    """Merge partials of neighbouring classes, one or more."""
    return functools.reduce(merge, partials)
