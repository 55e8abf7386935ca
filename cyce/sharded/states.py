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
    n_classes: int
    """Number of all classes, 0 if it was not given."""
    label_smoothing: float
    z_loss: float
    softcap: float
    """0 means unset."""
    temperature: float

    def differences(self, other: "Settings") -> list[str]:
        """Return the names of the arguments that are not the same."""
        names = {"has_probabilities": "target", "has_weight": "weight"}
        return [
            names.get(name, name)
            for name, ours, theirs in zip(self._fields, self, other, strict=True)
            # Some may know the number of classes, and others not.
            if ours != theirs and not (name == "n_classes" and 0 in (ours, theirs))
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
    shards: Array
    """First class, last class + 1, number of classes, and that of all shards, 0 if it was not given: int64,
    (4,)."""
    targets: Array
    """ignore_index, whether targets are class probabilities, and whether there are class weights: int64,
    (3,)."""
    options: Array
    """label_smoothing, z_loss, softcap (0 means unset), temperature: float64, (4,)."""

    @property
    def settings(self) -> Settings:
        """What the partial was computed with, by name."""
        ignore_index, has_probabilities, has_weight = self.targets.tolist()
        return Settings(
            ignore_index,
            bool(has_probabilities),
            bool(has_weight),
            int(self.shards[3]),
            *self.options.tolist(),
        )


# Rows of the kernels' states, see merge.pxd.
_ROWS = {
    "maximum": 0,
    "argmax": 1,
    "rest": 2,
    "mass": 4,
    "gap": 6,
    "target_logit": 12,
    "target_weight": 13,
}
# Rows of errors follow that of the sum.
_ERRORS = {"rest_error": "rest", "mass_error": "mass", "gap_error": "gap"}


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
    partial = Partial(*map(np.asarray, fields))
    dtype, positions = partial.maximum.dtype, partial.maximum.shape
    if dtype not in FLOATS:
        raise TypeError(f"{name}: maximum must be float32 or float64, got {dtype.name}")
    for field, array in zip(partial._fields, partial, strict=True):
        expected = {"shards": (4,), "targets": (3,), "options": (4,)}.get(field, positions)
        if array.shape != expected:
            raise ValueError(f"{name}: {field} must have shape {list(expected)}, got {list(array.shape)}")
    return partial


def states_of(partial: Partial) -> Array:
    """Return a new array of the states of a partial's positions, in the form that the kernels take."""
    states = np.zeros((dispatch.kernels.N_FIELDS, partial.maximum.size))
    with np.errstate(all="ignore"):
        for name, row in _ROWS.items():
            states[row] = getattr(partial, name).reshape(-1)
        for name, of in _ERRORS.items():
            error = states[_ROWS[of]] * getattr(partial, name).reshape(-1)
            states[_ROWS[of] + 1] = np.where(np.isfinite(error), error, 0)
    return states


def partial_of(
    states: Array,
    positions: tuple[int, ...],
    dtype: np.dtype[Any],
    shards: tuple[int, int, int],
    settings: Settings,
) -> Partial:
    """Return the partial with these states.

    dtype: of the arithmetic. shards: first class, last class + 1, number of classes.
    """
    fields = {
        "shards": np.array([*shards, settings.n_classes]),
        "targets": np.array([settings.ignore_index, settings.has_probabilities, settings.has_weight]),
        "options": np.array(
            [settings.label_smoothing, settings.z_loss, settings.softcap, settings.temperature]
        ),
    }
    with np.errstate(all="ignore"):
        for name, row in _ROWS.items():
            wanted = {"argmax": np.int32, "rest": FLOAT64, "mass": FLOAT64, "gap": FLOAT64}.get(name, dtype)
            fields[name] = states[row].astype(wanted).reshape(positions)
        for name, of in _ERRORS.items():
            error = states[_ROWS[of] + 1] / states[_ROWS[of]]
            fields[name] = np.where(np.isfinite(error), error, 0).astype(np.float32).reshape(positions)
    return Partial(**fields)


def neutral_states(n_positions: int) -> Array:
    """Return the states of positions without classes, whose targets are elsewhere."""
    states = np.zeros((dispatch.kernels.N_FIELDS, n_positions))
    states[_ROWS["maximum"]] = -np.inf
    states[_ROWS["argmax"]] = NO_MAXIMUM
    states[_ROWS["target_logit"]] = states[_ROWS["target_weight"]] = np.nan
    return states


def leave_out(states: Array, which: Array) -> None:
    """Make the states of some positions those of ignored ones. which: bool, (n_positions,)."""
    states[:, which] = 0
    states[_ROWS["argmax"], which] = IGNORED
    states[_ROWS["target_logit"], which] = np.nan


def merge(a: Any, b: Any) -> Partial:
    """Return the partial of the classes of two partials.

    Parameters
    ----------
    a, b : Partial
        Of the same positions, options and dtype, and of different classes.

    Returns
    -------
    Partial
        A new one. ``merge(a, b)`` and ``merge(b, a)`` are the same bits. Other trees of merges round
        differently, within the bounds of docs/accuracy.md; the same tree gives the same bits.

    Raises
    ------
    TypeError
        If these are no partials, or of different dtypes.
    ValueError
        If they differ in their positions or options, or share classes.

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
    # Empty shards are nowhere.
    if not a.shards[2] or (b.shards[2] and a.shards[0] > b.shards[0]):
        a, b = b, a
    (first, end, n, _), (other_first, other_end, other_n, _) = a.shards.tolist(), b.shards.tolist()
    if not other_n:
        other_end = end
    if n and other_n and (first == other_first or n + other_n > max(end, other_end) - first):
        raise ValueError(
            f"a and b: share classes: one has {n} from {first} to {end - 1}, the other {other_n} from "
            f"{other_first} to {other_end - 1}; first_class must be the number of a shard's first class "
            "among all"
        )
    is_ignored = a.argmax == IGNORED
    if np.any(is_ignored != (b.argmax == IGNORED)):
        raise ValueError("a and b: differ in which positions are ignored; pass the same target in all shards")
    states = states_of(a)
    dispatch.kernels.merge(states, states_of(b), dtype == FLOAT64)
    leave_out(states, is_ignored.reshape(-1))
    # Of equal maxima the first, even where the shards of a and b alternate.
    argmax = states[_ROWS["argmax"]].reshape(positions)
    ties = (a.maximum == b.maximum) & (a.argmax >= 0) & (b.argmax >= 0)
    np.copyto(argmax, np.minimum(a.argmax, b.argmax), where=ties)
    settings = a.settings if a.settings.n_classes else b.settings
    return partial_of(states, positions, dtype, (first, max(end, other_end), n + other_n), settings)
