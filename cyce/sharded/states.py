"""`Partial`: what is kept of the classes of a shard; how partials merge."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import FLOAT64, FLOATS
from cyce.kernels import dispatch

Array = NDArray[Any]

# argmax is int32.
MOST_CLASSES = 2**31 - 1
# What argmax is at ignored positions, and where no logit is above -inf; as in merge.pxd.
IGNORED, NO_MAXIMUM = -1, -2


class Settings(NamedTuple):
    """What all partials of the same loss agree on."""

    ignore_index: int
    has_probabilities: bool
    """Whether targets are class probabilities."""
    has_weight: bool
    has_bias: bool
    """Of a linear layer."""
    n_classes: int
    """Number of all classes, -1 if it is not known."""
    label_smoothing: float
    z_loss: float
    softcap: float
    """0 means unset."""
    temperature: float

    def differences(self, other: "Settings") -> list[str]:
        """Return the names of the arguments that are not the same."""
        names = {"has_probabilities": "target", "has_weight": "weight", "has_bias": "linear_bias"}
        return [
            names.get(name, name)
            for name, ours, theirs in zip(self._fields, self, other, strict=True)
            # Some may know the number of classes, and others not.
            if ours != theirs and not (name == "n_classes" and -1 in (ours, theirs))
        ]


class Partial(NamedTuple):
    """State of a softmax over some of the classes: 52 bytes per position in float32, 64 in float64.

    All fields are arrays, so that any engine can move them: pickled, as buffers, or as tensors. Those of the
    positions' shape can be cut along the positions, and joined again. A partial is a value: no function
    changes one.
    """

    maximum: Array
    """Highest logit, after softcap and temperature, in float32 or float64 as the losses. This and all fields
    up to `gap_error` have the positions' shape; all numbers are 0 at ignored positions."""
    argmax: Array
    """Its class, the first of equals: int32. -1 at ignored positions, -2 if no logit is above -inf."""
    rest: Array
    """Sum of exp(logit - maximum) over all classes but `argmax`: float64."""
    rest_error: Array
    """What rounding took from `rest`, relative to it: float32, as are all errors."""
    target_logit: Array
    """Logit of the target; NaN if it is in another shard."""
    target_weight: Array
    """Class weight of the target, 1 without weights or with class probabilities; NaN if it is in another
    shard. Its sum over the positions is what the mean of the losses divides by."""
    mass: Array
    """Sum of the class weights (label smoothing) or of the class probabilities; float64."""
    mass_error: Array
    gap: Array
    """The same sum, each term times (maximum - logit): float64."""
    gap_error: Array
    classes: Array
    """Which classes: the first and the last + 1 of each range, ascending: int64, (n_ranges, 2)."""
    int_options: Array
    """ignore_index; whether targets are class probabilities, there are class weights, a linear layer has a
    bias; and the number of all classes, -1 if it is not known: int64, (5,)."""
    float_options: Array
    """label_smoothing, z_loss, softcap (0 means unset), temperature: float64, (4,)."""

    @property
    def settings(self) -> Settings:
        """What the partial was computed with, by name."""
        ignore_index, has_probabilities, has_weight, has_bias, n_classes = self.int_options.tolist()
        return Settings(
            ignore_index,
            bool(has_probabilities),
            bool(has_weight),
            bool(has_bias),
            n_classes,
            *self.float_options.tolist(),
        )

    @property
    def is_known(self) -> Array:
        """Whether the target of each position is among the classes, or needs not be: bool."""
        return ~(np.isnan(self.target_weight) & np.isnan(self.target_logit))


# Of the fields that have the positions' shape. None: as the losses.
_DTYPES: dict[str, Any] = {
    "maximum": None,
    "argmax": np.int32,
    "rest": np.float64,
    "target_logit": None,
    "target_weight": None,
    "mass": np.float64,
    "gap": np.float64,
}
_ERRORS = {"rest_error": "rest", "mass_error": "mass", "gap_error": "gap"}


def row(name: str) -> int:
    """Return the row of a field in the states that the kernels take."""
    number: int = dispatch.kernels.STATE_ROWS[name]
    return number


def as_partial(value: Any, name: str) -> Partial:
    """Return a partial whose fields fit together; one that was moved may be a plain tuple."""
    if not isinstance(value, Iterable):
        raise TypeError(f"{name}: must be a cyce.sharded.Partial, got {type(value).__name__}")
    fields = tuple(value)
    if len(fields) != len(Partial._fields):
        raise TypeError(
            f"{name}: must be a cyce.sharded.Partial, which has {len(Partial._fields)} fields, got "
            f"{type(value).__name__} of {len(fields)}"
        )
    arrays = dict(zip(Partial._fields, map(np.asarray, fields), strict=True))
    dtype = arrays["maximum"].dtype.newbyteorder("=")
    if dtype not in FLOATS:
        raise TypeError(f"{name}: maximum must be float32 or float64, got {dtype.name}")
    positions = arrays["maximum"].shape
    for field, array in arrays.items():
        wanted = np.dtype(_DTYPES.get(field) or (np.float32 if field in _ERRORS else dtype))
        expected: tuple[int, ...] = positions
        if field == "classes":
            expected, wanted = (len(array), 2) if array.ndim else (1, 2), np.dtype(np.int64)
        elif field.endswith("_options"):
            is_int = field == "int_options"
            expected, wanted = (5 if is_int else 4,), np.dtype(np.int64 if is_int else np.float64)
        if array.shape != expected:
            raise ValueError(f"{name}: {field} must have shape {list(expected)}, got {list(array.shape)}")
        if array.dtype.newbyteorder("=") != wanted:
            raise TypeError(f"{name}: {field} must be {wanted.name}, got {array.dtype.name}")
        arrays[field] = array.astype(wanted, copy=False)
    return Partial(**arrays)


def states_of(partial: Partial) -> Array:
    """Return a new array of the states of a partial's positions, in the form that the kernels take."""
    states = np.zeros((dispatch.kernels.N_FIELDS, partial.maximum.size))
    with np.errstate(all="ignore"):
        for name in _DTYPES:
            states[row(name)] = getattr(partial, name).reshape(-1)
        for name, of in _ERRORS.items():
            error = states[row(of)] * getattr(partial, name).reshape(-1)
            states[row(of) + 1] = np.where(np.isfinite(error), error, 0)
    return states


def partial_of(
    states: Array,
    positions: tuple[int, ...],
    dtype: np.dtype[Any],
    classes: list[tuple[int, int]],
    settings: Settings,
) -> Partial:
    """Return the partial with these states.

    dtype: of the arithmetic. classes: their ranges.
    """
    fields: dict[str, Array] = {
        "classes": np.array(classes, np.int64).reshape(-1, 2),
        "int_options": np.array(settings[:5], np.int64),
        "float_options": np.array(settings[5:], np.float64),
    }
    with np.errstate(all="ignore"):
        for name, wanted in _DTYPES.items():
            fields[name] = states[row(name)].astype(wanted or dtype).reshape(positions)
        for name, of in _ERRORS.items():
            error = states[row(of) + 1] / states[row(of)]
            fields[name] = np.where(np.isfinite(error), error, 0).astype(np.float32).reshape(positions)
    return Partial(**fields)


def new_states(n_positions: int) -> Array:
    """Return an array for states of positions, which the kernels fill."""
    return np.empty((dispatch.kernels.N_FIELDS, n_positions))


def neutral_states(n_positions: int, target: Array | None, ignore_index: int) -> Array:
    """Return the states of positions without classes, whose targets are elsewhere, or ignored.

    target: None for class probabilities.
    """
    states = new_states(n_positions)
    states[:] = 0
    states[row("maximum")] = -np.inf
    states[row("argmax")] = NO_MAXIMUM
    states[row("target_logit")] = np.nan
    states[row("target_weight")] = 1 if target is None else np.nan
    if target is not None:
        leave_out(states, target.reshape(-1) == ignore_index)
    return states


def leave_out(states: Array, which: Array) -> None:
    """Make the states of some positions those of ignored ones. which: bool, (n_positions,)."""
    states[:, which] = 0
    states[row("argmax"), which] = IGNORED
    states[row("target_logit"), which] = np.nan


def merge(a: Any, b: Any, *others: Any) -> Partial:
    """Return the partial of the classes of two partials, or more.

    Parameters
    ----------
    a, b : Partial
        Of the same positions, options and dtype, and of different classes.
    *others : Partial
        More of these, which are merged one after the other.

    Returns
    -------
    Partial
        A new one. ``merge(a, b)`` and ``merge(b, a)`` are the same bits. Other trees of merges round
        differently, within the bounds that the documentation states ("Accuracy"); the same tree gives the
        same bits.

    Raises
    ------
    TypeError
        If these are no partials, or of losses of different dtypes.
    ValueError
        If they differ in their positions, options or ignored positions, or share classes or targets.

    Examples
    --------
    >>> import numpy as np
    >>> from cyce import sharded
    >>> logits, target = np.array([[2.0, 0.5, 0.3, -1.0]]), [1]
    >>> left = sharded.partial(logits[:, :2], target)
    >>> right = sharded.partial(logits[:, 2:], target, first_class=2)
    >>> print(sharded.finish(sharded.merge(left, right)).round(4))
    [1.8754]
    """
    for other in others:
        a, b = merge(a, b), other
    a, b = as_partial(a, "a"), as_partial(b, "b")
    dtype, positions = a.maximum.dtype, a.maximum.shape
    if b.maximum.dtype != dtype:
        raise TypeError(
            f"a and b: must have the same dtype, got {dtype.name} and {b.maximum.dtype.name}; use logits of "
            "one dtype in all shards"
        )
    if b.maximum.shape != positions:
        raise ValueError(
            f"a and b: must be of the same positions, got shapes {list(positions)} and "
            f"{list(b.maximum.shape)}"
        )
    if differences := a.settings.differences(b.settings):
        raise ValueError(
            f"a and b: were computed with different options: {', '.join(differences)}; pass the same ones "
            "in all shards"
        )
    classes = _joined(a, b)
    is_ignored = a.argmax == IGNORED
    if np.any(is_ignored != (b.argmax == IGNORED)):
        raise ValueError("a and b: differ in which positions are ignored; pass the same target in all shards")
    if not a.settings.has_probabilities and np.any(a.is_known & b.is_known & ~is_ignored):
        raise ValueError(
            "a and b: both have the target of a position; pass the same target, class indices among the "
            "classes of all shards, in all shards"
        )
    # The first classes first: it decides between equal maxima.
    if tuple(a.classes[0]) > tuple(b.classes[0]):
        a, b = b, a
    states = states_of(a)
    dispatch.kernels.merge(states, states_of(b), dtype == FLOAT64)
    leave_out(states, is_ignored.reshape(-1))
    # Also where the shards of a and b alternate.
    argmax = states[row("argmax")].reshape(positions)
    ties = (a.maximum == b.maximum) & (a.argmax >= 0) & (b.argmax >= 0)
    np.copyto(argmax, np.minimum(a.argmax, b.argmax), where=ties)
    settings = b.settings if a.settings.n_classes < 0 else a.settings
    return partial_of(states, positions, dtype, classes, settings)


def _joined(a: Partial, b: Partial) -> list[tuple[int, int]]:
    """Return the ranges of the classes of two partials; neighbours become one."""
    ranges = sorted((*map(tuple, a.classes.tolist()), *map(tuple, b.classes.tolist())))
    filled = [(first, end) for first, end in ranges if first < end]
    joined: list[tuple[int, int]] = []
    for first, end in filled:
        if joined and first < joined[-1][1]:
            raise ValueError(
                f"a and b: share classes from {first} on: a has {described(a)}, b {described(b)}; "
                "first_class must be the number of a shard's first class among all"
            )
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined or ranges[:1]


def described(partial: Partial) -> str:
    """Describe which classes a partial has."""
    return " and ".join(
        f"{first} to {end - 1}" if first < end else "none" for first, end in partial.classes.tolist()
    )
