"""What the arguments must be, and their chunks, which are those of the logits."""

import math
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_logits, as_target, as_weight, is_bfloat16
from cyce.dask.graphs import Pieces

Array = NDArray[Any]


def check_array(value: Any, name: str = "input") -> None:
    """Raise unless this is a Dask array."""
    if not isinstance(value, da.Array):
        raise TypeError(
            f"{name}: must be a dask.array.Array, got {type(value).__name__}; cyce.functional takes other "
            "arrays, dask.array.from_array makes a Dask array of them"
        )


def like(array: Any) -> Array:
    """Return an array like a Dask array that has no elements; raise if that cannot hold logits."""
    return as_logits(np.empty((0,) * array.ndim, array.dtype))


def n_classes_of(array: Any, axis: int) -> int:
    """Return the number of classes."""
    sizes = array.chunks[axis]
    if any(math.isnan(size) for size in sizes):
        raise ValueError(
            f"input: the sizes of its chunks along the classes, axis {axis}, must be known; call "
            "input.compute_chunk_sizes()"
        )
    return int(sum(sizes))


def first_classes(array: Any, axis: int) -> Any:
    """Return the numbers of the first classes of the chunks, in chunks of one number."""
    sizes = array.chunks[axis]
    return Pieces(np.cumsum([0, *sizes[:-1]]), ((1,) * len(sizes),))


def targets_of(value: Any, logits: Any, axis: int) -> tuple[Any, bool]:
    """Return targets in the chunks of the logits, and whether these are class probabilities."""
    target = value if isinstance(value, da.Array) else np.asarray(value)
    is_like_logits = target.ndim == logits.ndim and _same_shape(target.shape, logits.shape)
    kind = "f" if is_bfloat16(target.dtype) else target.dtype.kind
    if not is_like_logits:
        if kind not in "iu":
            # The errors of an array that fails in the same way.
            shape = tuple(0 if math.isnan(size) else size for size in logits.shape)
            sizes = tuple(0 if math.isnan(size) else size for size in target.shape)
            as_target(np.broadcast_to(np.zeros((), target.dtype), sizes), of_shape(shape, logits.dtype), axis)
        return of_positions(target, logits, axis, "target"), False
    if kind != "f":
        shape = (1,) * logits.ndim
        as_target(np.zeros(shape, target.dtype), np.zeros(shape, logits.dtype), axis)
    return _rechunked(target, logits.chunks), True


def of_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _same_shape(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether two shapes may be the same, as far as they are known."""
    return len(a) == len(b) and all(
        x == y or math.isnan(x) or math.isnan(y) for x, y in zip(a, b, strict=True)
    )


def of_positions(value: Any, logits: Any, axis: int, name: str) -> Any:
    """Return an array of the positions in the chunks of the logits, or None."""
    if value is None:
        return None
    array = value if isinstance(value, da.Array) else np.asarray(value)
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if array.ndim != len(shape) and logits.ndim == 1 and array.shape == (1,):
        array = array.reshape(())
    if not _same_shape(array.shape, shape):
        raise ValueError(
            f"{name}: must have the positions' shape {list(shape)}, for logits of shape "
            f"{list(logits.shape)} with the classes at axis {axis}; got {list(array.shape)}"
        )
    chunks = logits.chunks[:axis] + logits.chunks[axis + 1 :]
    if isinstance(array, da.Array):
        return _rechunked(array, chunks)
    _check_known(chunks)
    return Pieces(array, chunks)


def weights_of(value: Any, logits: Any, axis: int) -> Any:
    """Return class weights in the chunks of the classes, or None."""
    if value is None:
        return None
    n_classes = n_classes_of(logits, axis)
    if isinstance(value, da.Array):
        if value.shape != (n_classes,):
            raise ValueError(
                f"weight: must have one number for each of {n_classes} classes, got {list(value.shape)}"
            )
    else:
        like = of_shape((n_classes,), logits.dtype)
        value = as_weight(value, like, 0)
    return _rechunked(value, (logits.chunks[axis],))


def _rechunked(array: Any, chunks: tuple[tuple[float, ...], ...]) -> Any:
    """Return an array in these chunks, which may have unknown sizes."""
    if not isinstance(array, da.Array):
        _check_known(chunks)
        return da.from_array(array, chunks=chunks)
    if array.numblocks == tuple(map(len, chunks)) and any(
        math.isnan(size) for sizes in (*chunks, *array.chunks) for size in sizes
    ):
        return array
    return array.rechunk(chunks)


def _check_known(chunks: tuple[tuple[float, ...], ...]) -> None:
    """Raise unless the sizes of all chunks are known."""
    if any(math.isnan(size) for sizes in chunks for size in sizes):
        raise ValueError(
            "input: some of its chunks have an unknown size, so that arrays cannot be cut like it; pass Dask "
            "arrays of the same chunks, or call input.compute_chunk_sizes()"
        )
