"""What the arguments must be, and their chunks, which are those of the logits."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    as_logits,
    as_sample_weight,
    as_target,
    as_weight,
    check_indices,
    position_shape,
)
from cyce.dask.graphs import Pieces

Array = NDArray[Any]


def as_dask_array(value: Any, name: str) -> Any:
    """Return a Dask array of logits, in native byte order; raise for anything else."""
    if not isinstance(value, da.Array):
        raise TypeError(
            f"{name}: must be a dask.array.Array, got {type(value).__name__}; cyce.functional takes other "
            "arrays, dask.array.from_array makes a Dask array of them"
        )
    if type(value._meta) is not np.ndarray:
        raise TypeError(
            f"{name}: its chunks must be arrays of NumPy, got {type(value._meta).__name__}; convert them by "
            f"{name}.map_blocks"
        )
    return value


def like(array: Any, name: str) -> Array:
    """Return an array like a Dask array that has no elements; raise if that cannot hold logits."""
    return as_logits(np.empty((0,) * array.ndim, array.dtype), name=name)


def n_classes_of(array: Any, axis: int, name: str) -> int:
    """Return the number of classes."""
    sizes = array.chunks[axis]
    if any(math.isnan(size) for size in sizes):
        raise ValueError(
            f"{name}: the sizes of its chunks along the classes, axis {axis}, must be known; call "
            f"{name}.compute_chunk_sizes()"
        )
    return int(sum(sizes))


def first_classes(array: Any, axis: int) -> Any:
    """Return the numbers of the first classes of the chunks, in chunks of one number."""
    sizes = array.chunks[axis]
    return Pieces(np.cumsum([0, *sizes[:-1]]), ((1,) * len(sizes),))


def of_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _whole(logits: Any) -> Array | None:
    """Return an array of the shape of Dask's, which takes no memory; None if that is not known."""
    if any(math.isnan(size) for size in logits.shape):
        return None
    return of_shape(logits.shape, logits.dtype)


def targets_of(value: Any, logits: Any, axis: int, ignore_index: int, name: str) -> tuple[Any, bool]:
    """Return targets in the chunks of the logits, and whether these are class probabilities.

    Those that are no Dask array are checked at once. name: of the logits.
    """
    whole = _whole(logits)
    if not isinstance(value, da.Array):
        if whole is None:
            raise ValueError(_unknown(name))
        indices, probabilities = as_target(value, whole, axis, name)
        if indices is None:
            return _rechunked(probabilities, logits.chunks, "target"), True
        check_indices(indices, logits.shape[axis], ignore_index, name)
        positions = indices.reshape(position_shape(whole, axis))
        return Pieces(positions, logits.chunks[:axis] + logits.chunks[axis + 1 :]), False
    is_like_logits = value.ndim == logits.ndim and _same_shape(value.shape, logits.shape)
    if whole is not None and not any(math.isnan(size) for size in value.shape):
        as_target(of_shape(value.shape, value.dtype.newbyteorder("=")), whole, axis, name)
    if not is_like_logits:
        return _of_positions(value, logits, axis, "target"), False
    return _rechunked(value, logits.chunks, "target"), True


def sample_weight_of(value: Any, logits: Any, axis: int, name: str, dtype: np.dtype[Any]) -> Any:
    """Return weights of the positions in the chunks of the logits, or None.

    name: of the logits. dtype: of weights that are no Dask array.
    """
    if value is None or isinstance(value, da.Array):
        return None if value is None else _of_positions(value, logits, axis, "sample_weight")
    whole = _whole(logits)
    if whole is None:
        raise ValueError(_unknown(name))
    weights = as_sample_weight(value, whole, axis, dtype)
    return Pieces(weights, logits.chunks[:axis] + logits.chunks[axis + 1 :])


def class_weight_of(value: Any, logits: Any, axis: int, name: str) -> Any:
    """Return class weights in the chunks of the classes, or None. name: of the logits."""
    if value is None:
        return None
    n_classes = n_classes_of(logits, axis, name)
    if isinstance(value, da.Array):
        if value.shape != (n_classes,):
            raise ValueError(
                f"weight: must have one number for each of {n_classes} classes, got {list(value.shape)}"
            )
    else:
        value = as_weight(value, of_shape((n_classes,), logits.dtype), 0, name)
    return _rechunked(value, (logits.chunks[axis],), "weight")


def _same_shape(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether two shapes may be the same, as far as they are known."""
    return len(a) == len(b) and all(
        x == y or math.isnan(x) or math.isnan(y) for x, y in zip(a, b, strict=True)
    )


def _of_positions(array: Any, logits: Any, axis: int, name: str) -> Any:
    """Return a Dask array of the positions in the chunks of the logits."""
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if logits.ndim == 1 and array.shape == (1,):
        array = array.reshape(())
    if not _same_shape(array.shape, shape):
        raise ValueError(
            f"{name}: must have the positions' shape {list(shape)}, for logits of shape "
            f"{list(logits.shape)} with the classes at axis {axis}; got {list(array.shape)}"
        )
    return _rechunked(array, logits.chunks[:axis] + logits.chunks[axis + 1 :], name)


def _rechunked(array: Any, chunks: tuple[tuple[float, ...], ...], name: str) -> Any:
    """Return an array in these chunks; those of unknown size must be as many already."""
    if not isinstance(array, da.Array):
        return da.from_array(array, chunks=chunks)
    unknown = {
        axis
        for axis, (own, wanted) in enumerate(zip(array.chunks, chunks, strict=True))
        if any(math.isnan(size) for size in (*own, *wanted))
    }
    for axis in unknown:
        if len(array.chunks[axis]) != len(chunks[axis]):
            raise ValueError(
                f"{name}: its chunks, or those of the logits, have unknown sizes, and are not as many: "
                f"{len(array.chunks[axis])} and {len(chunks[axis])} at axis {axis}; call "
                "compute_chunk_sizes() of both"
            )
    known = {axis: sizes for axis, sizes in enumerate(chunks) if axis not in unknown}
    return array.rechunk(known) if known else array


def _unknown(name: str) -> str:
    """Return the message for arrays that cannot be cut."""
    return (
        f"{name}: some of its chunks have an unknown size, so that arrays cannot be cut like it; pass Dask "
        f"arrays of the same chunks, or call {name}.compute_chunk_sizes()"
    )


@contextlib.contextmanager
def numbered_in_chunks() -> Iterator[None]:
    """Say of bad targets, whose message has their position, that this is one within a chunk."""
    try:
        yield
    except IndexError as error:
        raise IndexError(f"{error}; positions are numbered within their chunk") from None
