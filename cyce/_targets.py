"""What a target may be beyond torch's two kinds, and which classes a position has.

A sparse target puts mass on a few classes of each position. A class mask leaves out classes.
"""

import dataclasses
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    FLOAT64,
    arithmetic_dtype,
    as_array,
    as_operand,
    can_be_broadcast,
    position_shape,
)
from cyce.kernels.arguments import CrossEntropyArguments

# Elements of a mask and of class probabilities that are compared at a time.
BLOCK = 1 << 20


@final
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SparseTarget:
    """Probabilities of a few classes, a target of `cyce.functional.cross_entropy`.

    For example, the most probable tokens of a teacher, without an array over all classes.

    Parameters
    ----------
    indices : array_like of int of shape (N, K)
        Classes of each position; in general, of the shape of the logits, with K in place of the number of
        classes. A class that is named twice carries both probabilities. Entries of -1, or of the loss's
        `ignore_index`, are empty; a position without any other is ignored.
    probabilities : array_like of the shape of `indices`
        Probability of each of these classes, of any real dtype. All other classes have probability 0; the sum
        need not be 1.

    Raises
    ------
    TypeError
        If `indices` are not integers, or `probabilities` not real numbers.
    ValueError
        If their shapes differ.

    See Also
    --------
    cyce.functional.cross_entropy : Takes it as target.
    cyce.functional.topk_log_softmax : Gives what to fill it with.

    Examples
    --------
    >>> import cyce
    >>> import cyce.functional as F
    >>> target = cyce.SparseTarget([[0, 2], [2, -1]], [[0.8, 0.2], [1.0, 0.0]])
    >>> print(F.cross_entropy([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], target).round(4))
    0.4277
    """

    indices: Any
    probabilities: Any

    def __post_init__(self) -> None:
        indices = as_array(self.indices, "indices")
        probabilities = as_operand(self.probabilities, "probabilities", FLOAT64)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"indices: must be integer class indices, got dtype {indices.dtype.name}")
        if indices.shape != probabilities.shape:
            raise ValueError(
                f"probabilities: must have one number for each of indices, {list(indices.shape)}, got shape "
                f"{list(probabilities.shape)}"
            )
        # Views, of a frozen record.
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "probabilities", probabilities)


class Chosen(NamedTuple):
    """A few classes of each position, copied for one call."""

    classes: NDArray[np.int64]
    """(..., K); 0 for empty entries."""
    is_empty: NDArray[np.bool_]
    """(..., K)"""


def as_chosen(
    value: Any,
    logits: NDArray[Any],
    axis: int,
    name: str,
    empty: tuple[int, ...] = (),
    may_be_one: bool = False,
) -> Chosen:
    """Return classes of the logits' shape, with K at the class axis, with that axis last.

    empty: which numbers stand for no class. may_be_one: whether they may be of the positions' shape, too.
    """
    array = as_array(value, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: must be integer class indices, got dtype {array.dtype.name}")
    n_classes, positions = logits.shape[axis], position_shape(logits, axis)
    is_one = may_be_one and array.shape == positions
    if is_one:
        array = np.expand_dims(array, axis)
    if array.ndim != logits.ndim or position_shape(array, axis) != positions:
        shape = ", ".join(map(str, [*positions[:axis], "K", *positions[axis:]]))
        one = f"{list(positions)} or " if may_be_one else ""
        raise ValueError(
            f"{name}: for logits of shape {list(logits.shape)}, must have shape {one}[{shape}], got "
            f"{list(array.shape)}"
        )
    given = np.moveaxis(array, axis, -1)
    # Comparisons of NumPy take an unsigned number and a negative one for what they are.
    is_empty = np.zeros(given.shape, bool)
    for number in empty:
        is_empty |= given == number
    is_bad = ((given < 0) | (given >= n_classes)) & ~is_empty
    if is_bad.any():
        place = np.unravel_index(int(np.moveaxis(is_bad, -1, axis).argmax()), array.shape)
        where = ", ".join(str(number) for dim, number in enumerate(place) if dim != axis or not is_one)
        allowed = f" or one of {', '.join(map(str, empty))}, for none" if empty else ""
        where = f"[{where}]" if where else ""
        raise IndexError(
            f"{name}{where}: {array[place]} is out of bounds, it must be a class index from 0 to "
            f"{n_classes - 1}{allowed}"
        )
    classes = np.array(given, np.int64, order="C")
    classes[is_empty] = 0
    return Chosen(classes, is_empty)


def set_sparse_target(
    call: CrossEntropyArguments, target: SparseTarget, logits: NDArray[Any], weight: NDArray[Any] | None
) -> None:
    """Set the masses of a sparse target, and leave out the positions that have none.

    All other fields are set already.
    """
    dtype = arithmetic_dtype(logits.dtype)
    empty = tuple(dict.fromkeys((-1, call.ignore_index)))
    classes, is_empty = as_chosen(target.indices, logits, call.axis, "target.indices", empty)
    probabilities = as_operand(target.probabilities, "target.probabilities", logits.dtype)
    masses = np.array(np.moveaxis(probabilities, call.axis, -1), dtype, order="C")
    masses[is_empty] = 0
    if call.class_mask is not None:
        check_chosen(call.class_mask, call.axis, classes, masses != 0, "target.indices")
    masses *= dtype.type(1.0 - call.label_smoothing)
    if weight is not None:
        masses *= weight[classes]
    call.chosen, call.chosen_mass = classes, masses
    ignored = is_empty.all(axis=-1)
    if ignored.any():
        weights = np.ones(ignored.shape, dtype) if call.sample_weight is None else call.sample_weight
        call.sample_weight = np.where(ignored, dtype.type(0), weights)


# ---------------------------------------------------------------------------------------------
# Class masks


def as_class_mask(value: Any, logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a class mask as a view of the logits' shape."""
    mask = as_array(value, "class_mask")
    if mask.dtype != bool:
        raise TypeError(
            f"class_mask: must be bool, True where a position has the class, got dtype {mask.dtype.name}; "
            "convert it: np.asarray(class_mask) != 0"
        )
    if not can_be_broadcast(mask.shape, logits.shape):
        raise ValueError(
            f"class_mask: its shape {list(mask.shape)} cannot be broadcast to that of the logits, "
            f"{list(logits.shape)}"
        )
    return np.broadcast_to(mask, logits.shape)


def check_unmasked(
    mask: NDArray[np.bool_],
    axis: int,
    indices: NDArray[Any] | None,
    probabilities: NDArray[Any] | None,
    ignore_index: int,
) -> None:
    """Raise if a target is a class that its position does not have.

    Indices that are no classes are left to the kernel.
    """
    if indices is not None:
        counts = (indices >= 0) & (indices < mask.shape[axis]) & (indices != ignore_index)
        classes = np.where(counts, indices, 0).astype(np.int64).reshape(position_shape(mask, axis))
        counts = counts.reshape(classes.shape)
        check_chosen(mask, axis, classes[..., None], counts[..., None], "target", is_one=True)
        return
    assert probabilities is not None
    step = max(1, BLOCK // max(1, mask[:1].size))
    for first in range(0, len(mask), step):
        block = slice(first, first + step)
        is_masked = ~mask[block] & (probabilities[block] != 0)
        if is_masked.any():
            place = np.unravel_index(int(is_masked.argmax()), is_masked.shape)
            where = ", ".join(map(str, (place[0] + first, *place[1:])))
            raise ValueError(
                f"class_mask: leaves out the class of target[{where}], which is "
                f"{probabilities[block][place]}; the probability of such a class must be 0"
            )


def check_chosen(
    mask: NDArray[np.bool_],
    axis: int,
    classes: NDArray[np.int64],
    counts: NDArray[np.bool_],
    name: str,
    is_one: bool = False,
) -> None:
    """Raise if one of some classes, (..., K), that counts is one that its position does not have.

    is_one: whether the argument has the positions' shape, without an axis of K = 1.
    """
    if not counts.any():
        return
    is_masked = counts & ~np.take_along_axis(np.moveaxis(mask, axis, -1), classes, -1)
    if is_masked.any():
        place = np.unravel_index(int(is_masked.argmax()), is_masked.shape)
        of_argument = list(place[:-1])
        if not is_one:
            of_argument.insert(axis, place[-1])
        where = f"[{', '.join(map(str, of_argument))}]" if of_argument else ""
        raise ValueError(
            f"class_mask: leaves out the class of {name}{where}, which is {classes[place]}; it must be one "
            "that its position has"
        )
