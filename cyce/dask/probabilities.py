"""Softmax of Dask arrays."""

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import DTypeLike, NDArray

from cyce import functional
from cyce._arguments import as_axis, as_dtype, as_floating, as_logits, implicit_axis
from cyce.dask.chunks import as_dask_array, first_classes, n_classes_of
from cyce.dask.graphs import dimensions_of, merge_partials, of_objects, reduced
from cyce.sharded.softmax import normalized, normalizer
from cyce.sharded.states import Partial

Array = NDArray[Any]


def softmax(input: Any, dim: int | None = None, dtype: DTypeLike | None = None) -> Any:
    """Probabilities of classes from a Dask array of logits, lazily, as `cyce.functional.softmax`.

    Parameters
    ----------
    input : dask.array.Array
        Logits of any shape, in any chunks.
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.
    dtype : dtype, default=None
        Of the result, to which `input` is cast first; as in `cyce.functional.softmax`.

    Returns
    -------
    dask.array.Array
        Of the shape, the chunks and, without `dtype`, the dtype of `input`.

    Raises
    ------
    TypeError, IndexError
        As `cyce.functional.softmax`, and if `input` is no Dask array.

    Notes
    -----
    Where the classes are in several chunks, each chunk is used twice: for its part of the sum, and when the
    sum is known. The scheduler keeps or reads it again.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cyce.dask
    >>> logits = da.from_array(np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]), chunks=(1, 2))
    >>> print(cyce.dask.softmax(logits, dim=1).compute().round(3))
    [[0.711 0.159 0.13 ]
     [0.076 0.084 0.84 ]]
    """
    return _normalize(input, dim, dtype, log=False)


def log_softmax(input: Any, dim: int | None = None, dtype: DTypeLike | None = None) -> Any:
    """Logarithms of `softmax`, lazily, as `cyce.functional.log_softmax`.

    Parameters
    ----------
    input, dim, dtype
        As in `softmax`.

    Returns
    -------
    dask.array.Array
        As that of `softmax`.

    Raises
    ------
    TypeError, IndexError
        As `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cyce.dask
    >>> logits = da.from_array(np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]), chunks=(1, 2))
    >>> print(cyce.dask.log_softmax(logits, dim=1).compute().round(3))
    [[-0.341 -1.841 -2.041]
     [-2.575 -2.475 -0.175]]
    """
    return _normalize(input, dim, dtype, log=True)


def _normalize(input: Any, dim: int | None, dtype: DTypeLike | None, log: bool) -> Any:
    """Return the graph of a softmax, or log-softmax."""
    logits = as_dask_array(input, "input")
    name = "log_softmax" if log else "softmax"
    result = as_floating(np.empty((0,) * logits.ndim, logits.dtype), dtype)
    of_result = result.dtype if dtype is None else as_dtype(dtype)
    options = {"dtype": of_result, "meta": result.astype(of_result)}
    axis = implicit_axis(logits.ndim, name, 3) if dim is None else as_axis(dim, logits.ndim)
    if dtype is not None:
        logits = logits.map_blocks(_cast, wanted=of_result, **options)
    if logits.ndim == 0 or logits.numblocks[axis] == 1:
        function = functional.log_softmax if log else functional.softmax
        return logits.map_blocks(function, dim=axis, **options)
    n_classes_of(logits, axis, "input")
    classes, positions = dimensions_of(logits, axis)
    states = da.blockwise(
        _normalizer_of_chunk,
        classes,
        logits,
        classes,
        first_classes(logits, axis),
        (axis,),
        **of_objects(len(classes)),
        adjust_chunks={axis: 1},
        class_axis=axis,
    )
    return da.blockwise(
        _normalized_chunk,
        classes,
        logits,
        classes,
        reduced(states, (axis,), merge_partials),
        positions,
        **options,
        align_arrays=False,
        class_axis=axis,
        log=log,
    )


def _cast(logits: Array, wanted: np.dtype[Any]) -> Array:
    """Return logits in another dtype."""
    return as_floating(logits, wanted).astype(wanted, copy=False)


def _normalizer_of_chunk(logits: Array, first_class: Array, class_axis: int) -> Partial:
    """Reduce a chunk of logits to what a softmax needs of them."""
    return normalizer(as_logits(logits), class_axis, int(first_class[0]))


def _normalized_chunk(logits: Array, state: Partial, class_axis: int, log: bool) -> Array:
    """Return the softmax of a chunk of logits."""
    return normalized(as_logits(logits), class_axis, state, log)
