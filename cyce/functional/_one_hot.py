"""One-hot encoding of class indices."""

import operator
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_array


def one_hot(tensor: Any, num_classes: int = -1) -> NDArray[np.int64]:
    """One-hot encoding of class indices, as `torch.nn.functional.one_hot`.

    The inverse is ``argmax(axis=-1)``. Losses take class indices without this encoding.

    Parameters
    ----------
    tensor : array_like of int
        Class indices, of any shape and integer dtype.
    num_classes : int, default=-1
        Number of classes; -1 means the largest index plus 1.

    Returns
    -------
    ndarray of int64
        In the shape of `tensor`, with the axis of the classes at the end.

    Raises
    ------
    TypeError
        If `tensor` is not integer.
    ValueError
        If an index is negative or not below `num_classes`, or `num_classes` is -1 and there are no indices.

    Examples
    --------
    >>> import cyce.functional as F
    >>> F.one_hot([0, 2])
    array([[1, 0, 0],
           [0, 0, 1]])
    """
    indices = as_array(tensor, "tensor")
    try:
        n_classes = operator.index(num_classes)
    except TypeError:
        raise TypeError(f"num_classes: must be an integer, got {type(num_classes).__name__}") from None
    if indices.size == 0 and not hasattr(tensor, "dtype"):
        indices = indices.astype(np.int64)
    if indices.dtype.kind not in "iu":
        raise TypeError(
            "one_hot is only applicable to index tensor of type LongTensor: tensor must be integer, got "
            f"dtype {indices.dtype.name}"
        )
    if indices.size == 0 and n_classes <= 0:
        raise ValueError("Can not infer total number of classes from empty tensor: pass num_classes")
    if indices.size and indices.min() < 0:
        raise ValueError(f"Class values must be non-negative. tensor has {indices.min()}")
    if n_classes == -1:
        n_classes = int(indices.max()) + 1
    if max(indices.size, 1) * n_classes > sys.maxsize // 8:
        raise ValueError(f"num_classes: {n_classes} for {indices.size} indices are more than memory can hold")
    if indices.size and indices.max() >= n_classes:
        raise ValueError(
            f"Class values must be smaller than num_classes. tensor has {indices.max()}, num_classes is "
            f"{n_classes}"
        )
    encoding: NDArray[np.int64] = (indices[..., None] == np.arange(n_classes)).astype(np.int64)
    return encoding
