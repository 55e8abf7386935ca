"""`Evaluator`: statistics of logits that arrive in pieces."""

import operator
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    FLOAT64,
    arithmetic_dtype,
    as_array,
    as_flag,
    as_ignore_index,
    as_indices,
    as_logits,
    as_number,
    as_sample_weight,
    check_indices,
    position_shape,
)
from cyce.evaluation.record import Evaluation, evaluation_of
from cyce.evaluation.sources import Index, axis_of, of_positions, pieces_of
from cyce.evaluation.sums import Array, Mean, Quantiles, add_at, packed, sum_of, unpacked
from cyce.fused import cross_entropy as fused
from cyce.fused.requests import StatsRequest

STATE_VERSION = 1
"""Version of the pickles. A later version of cyce reads those of all versions before."""

# More bars than a picture has pixels take minutes to draw.
MOST_BINS = 1000
# A matrix of int64 takes 800 MB then.
MOST_CONFUSED_CLASSES = 10_000
LEAST_WEIGHT = 1e-100


class Settings(NamedTuple):
    """What an `Evaluator` computes; the same for all that are merged."""

    ignore_index: int
    axis: int | None
    top_k: tuple[int, ...]
    n_bins: int
    class_weight: Array | None
    temperature: float
    confusion_matrix: bool

    def differences(self, other: "Settings") -> list[str]:
        """Return the names of the settings that are not the same."""
        return [
            name
            for name, ours, theirs in zip(self._fields, self, other, strict=True)
            # Where the classes are does not matter once they are counted.
            if name != "axis" and not np.array_equal(np.asarray(ours, object), np.asarray(theirs, object))
        ]


class Labels(NamedTuple):
    """Targets of the positions, and their weights if there are any."""

    target: Array
    sample_weight: Array | None

    @classmethod
    def of(cls, logits: Array, target: Any, sample_weight: Any, axis: int, ignore_index: int) -> "Labels":
        """Return checked labels. logits: those of the positions, of which only the shape counts."""
        positions = position_shape(logits, axis)
        array = as_array(target, "target")
        if array.shape == logits.shape != (1,):
            raise TypeError(
                f"target: must be class indices, got an array of the shape of logits, {list(array.shape)}: a "
                f"one-hot, or probabilities; pass target.argmax(axis={axis})"
            )
        for other in range(logits.ndim):
            if array.shape != positions and array.shape == position_shape(logits, other) and array.ndim > 1:
                raise ValueError(
                    f"target: has shape {list(array.shape)}, must have {list(positions)}, as the classes are "
                    f"at axis {axis} of logits, {list(logits.shape)}; if they are at axis {other}, pass "
                    f"axis={other}"
                )
        indices = as_indices(array if array.size else target, logits, axis, "logits", target).reshape(
            positions
        )
        check_indices(indices, logits.shape[axis], ignore_index, "logits")
        if sample_weight is not None:
            sample_weight = as_sample_weight(sample_weight, logits, axis, FLOAT64)
            _check_weights(sample_weight, "sample_weight")
        return cls(indices, sample_weight)

    def piece(self, index: Index, axis: int) -> "Labels":
        """Return the labels of a piece of the logits."""
        at = of_positions(index, axis)
        return Labels(self.target[at], None if self.sample_weight is None else self.sample_weight[at])


class PositionStats(NamedTuple):
    """What the kernel computes for each position."""

    loss: Array
    lse: Array
    probability: Array
    entropy: Array
    prediction: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence: Array
    brier_score: Array
    slope: Array
    variance: Array


def empty_stats(positions: tuple[int, ...], dtype: np.dtype[Any]) -> PositionStats:
    """Return statistics of positions that are all ignored. dtype: of the arithmetic."""
    return PositionStats(
        *(
            np.full(positions, -1) if name in ("prediction", "rank") else np.zeros(positions, dtype)
            for name in PositionStats._fields
        )
    )


def position_stats(
    logits: Array, target: Array, axis: int, ignore_index: int, temperature: float
) -> PositionStats:
    """Return the statistics of each position, in one pass over checked logits."""
    stats = empty_stats(position_shape(logits, axis), arithmetic_dtype(logits.dtype))
    fused.cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        axis=axis,
        temperature=temperature,
        stats=StatsRequest(*stats),
    )
    return stats


class Sums:
    """What an `Evaluator` has seen: sums, counts and histograms, all of which merge."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.n_classes: int | None = None
        self.uncounted: list[Array] = []
        """Where positions belong in the flat confusion matrix."""
        self.negative_log_likelihood = Mean()
        # With class weights; the same without.
        self.weighted_loss = None if settings.class_weight is None else Mean()
        self.loss_quantiles = Quantiles()
        n_bins = settings.n_bins
        self.totals: dict[str, Array] = {
            "n_positions": np.zeros((), np.int64),
            "n_ignored": np.zeros((), np.int64),
            "nan_positions": np.zeros((), np.int64),
            "weight": np.zeros(()),
            "correct": np.zeros(()),
            "entropy": np.zeros(()),
            "confidence": np.zeros(()),
            "brier_score": np.zeros(()),
            "top_k": np.zeros(len(settings.top_k)),
            "bin_counts": np.zeros(n_bins, np.int64),
            "bin_weight": np.zeros(n_bins),
            "bin_confidence": np.zeros(n_bins),
            "bin_correct": np.zeros(n_bins),
        }

    def expect_classes(self, n_classes: int) -> None:
        """Begin the sums of each class, unless they are there."""
        if "class_counts" in self.totals:
            return
        self.n_classes = n_classes
        self.totals |= {
            "class_counts": np.zeros(n_classes, np.int64),
            "class_predicted": np.zeros(n_classes, np.int64),
            "class_weight": np.zeros(n_classes),
            "class_predicted_weight": np.zeros(n_classes),
            "class_loss": np.zeros(n_classes),
            "class_correct": np.zeros(n_classes),
        }
        if self.settings.confusion_matrix:
            self.totals["confusion_matrix"] = np.zeros((n_classes, n_classes), np.int64)

    def merge(self, other: "Sums") -> None:
        """Add all that another one has seen."""
        self.negative_log_likelihood.merge(other.negative_log_likelihood)
        if self.weighted_loss is not None and other.weighted_loss is not None:
            self.weighted_loss.merge(other.weighted_loss)
        self.loss_quantiles.merge(other.loss_quantiles)
        for name, total in other.totals.items():
            if name in self.totals:
                self.totals[name] = self.totals[name] + total
            else:
                self.totals[name] = total.copy()
        if self.n_classes is None:
            self.n_classes = other.n_classes

    def add(self, stats: PositionStats, target: Array, sample_weight: Array | None) -> None:
        """Add positions; sample_weight: one for each, or None."""
        n_classes, totals, settings = self.n_classes, self.totals, self.settings
        assert n_classes is not None
        counts = stats.rank >= 0
        if sample_weight is not None:
            counts &= sample_weight != 0
        n = int(np.count_nonzero(counts))
        totals["n_ignored"] += counts.size - n
        totals["n_positions"] += n
        if not n:
            return
        if n == counts.size:
            stats = PositionStats(*(array.ravel() for array in stats))
            target = target.ravel()
            weight = None if sample_weight is None else sample_weight.ravel()
        else:
            stats = PositionStats(*(array[counts] for array in stats))
            target = target[counts]
            weight = None if sample_weight is None else sample_weight[counts]
        # Class indices may be unsigned, or of few bits.
        target = target.astype(np.intp, copy=False)
        loss, correct = stats.loss, stats.rank == 0
        self.negative_log_likelihood.add(loss, weight)
        if self.weighted_loss is not None and settings.class_weight is not None:
            class_weight = settings.class_weight[target]
            self.weighted_loss.add(loss, class_weight if weight is None else class_weight * weight)
        self.loss_quantiles.add(loss, weight)
        totals["nan_positions"] += np.count_nonzero(np.isnan(loss))
        totals["weight"] += n if weight is None else weight.sum(dtype=np.float64)
        for name, values in (
            ("correct", correct),
            ("entropy", stats.entropy),
            ("confidence", stats.confidence),
            ("brier_score", stats.brier_score),
        ):
            totals[name] += sum_of(values, weight)
        for number, k in enumerate(settings.top_k):
            totals["top_k"][number] += sum_of(stats.rank < k, weight)
        self._add_to_bins(stats.confidence, correct, weight)
        add_at(totals["class_counts"], target)
        add_at(totals["class_predicted"], stats.prediction)
        ones = np.ones(n) if weight is None else weight
        add_at(totals["class_weight"], target, ones)
        add_at(totals["class_predicted_weight"], stats.prediction, ones)
        add_at(totals["class_loss"], target, loss if weight is None else loss * weight)
        add_at(totals["class_correct"], target, correct if weight is None else correct * weight)
        if settings.confusion_matrix:
            self.uncounted.append(target * n_classes + stats.prediction)

    def _add_to_bins(self, confidence: Array, correct: Array, weight: Array | None) -> None:
        """Add positions to the bins of their confidences; NaN belongs to none."""
        known = ~np.isnan(confidence)
        if not known.all():
            confidence, correct = confidence[known], correct[known]
            weight = None if weight is None else weight[known]
        n_bins, totals = self.settings.n_bins, self.totals
        # Upper edges, in the dtype of the confidences, so that one of exactly 1 / C is on an edge.
        edges = (np.arange(1, n_bins) / n_bins).astype(confidence.dtype)
        number = np.searchsorted(edges, confidence, side="left")
        counts = np.bincount(number, minlength=n_bins)
        totals["bin_counts"] += counts
        totals["bin_weight"] += counts if weight is None else np.bincount(number, weight, n_bins)
        for name, values in (("bin_confidence", confidence), ("bin_correct", correct)):
            totals[name] += np.bincount(number, values if weight is None else values * weight, n_bins)

    def count_confusions(self) -> None:
        """Count what was added since the last time in the confusion matrix."""
        while self.uncounted:
            add_at(self.totals["confusion_matrix"].reshape(-1), self.uncounted.pop())

    def copy(self) -> "Sums":
        """Return the same, which shares no memory but the confusion matrix, which may be large."""
        other = Sums.from_state(self.settings, self.state(without="confusion_matrix"))
        if "confusion_matrix" in self.totals:
            other.totals["confusion_matrix"] = self.totals["confusion_matrix"]
        return other

    def state(self, without: str = "") -> dict[str, Any]:
        """Return plain arrays and numbers, for pickles; without one of the totals, if named."""
        return {
            "n_classes": self.n_classes,
            "totals": {name: total.copy() for name, total in self.totals.items() if name != without},
            "negative_log_likelihood": self.negative_log_likelihood.state(),
            "weighted_loss": None if self.weighted_loss is None else self.weighted_loss.state(),
            "loss_quantiles": self.loss_quantiles.state(),
        }

    @classmethod
    def from_state(cls, settings: Settings, state: dict[str, Any]) -> "Sums":
        """Return the sums with that state."""
        sums = cls(settings)
        sums.n_classes = state["n_classes"]
        sums.totals = {name: np.asarray(total) for name, total in state["totals"].items()}
        sums.negative_log_likelihood = Mean.from_state(state["negative_log_likelihood"])
        if state["weighted_loss"] is not None:
            sums.weighted_loss = Mean.from_state(state["weighted_loss"])
        sums.loss_quantiles = Quantiles.from_state(state["loss_quantiles"])
        return sums


class Evaluator:
    r"""Loss, accuracies, calibration and more of logits that arrive in pieces.

    Like a metric of torchmetrics or torcheval: `update` it with pieces, `merge` those of other workers,
    `compute` the result. The memory that it takes does not depend on the number of positions.

    Parameters
    ----------
    ignore_index : int, default=-100
        Class index of positions that do not count.
    axis : int, default=None
        The axis of the classes: None means 0 for one dimension, else 1.
    top_k : sequence of int, default=(1, 5)
        For which k to compute the share of positions whose target is among the k highest logits.
    n_bins : int, default=15
        Number of bins of the confidence, of equal width, from 1 to 1000.
    class_weight : array_like of shape (C,), default=None
        A weight for each class; applies to `Evaluation.loss` and its standard error alone.
    temperature : float, default=1.0
        Logits are divided by this, for all statistics.
    confusion_matrix : bool, default=False
        Whether to count predictions by class and target, of up to 10,000 classes.

    See Also
    --------
    cyce.evaluate : The same for an array, a file, or an iterable, in one call.
    cyce.functional.cross_entropy_stats : Statistics of each position.

    Notes
    -----
    Counts are exact, and do not depend on the order of the pieces, nor on how they are merged. Sums of
    float64 do, by their rounding: about 1e-15 of a mean for each hundred pieces.

    A pickle of an evaluator is read by later versions of cyce. Copies and pickles hold what was seen so far:
    pass them between processes, and merge them there. Threads may share an evaluator, but update it one after
    the other: one for each thread, merged at the end, is faster.

    Examples
    --------
    >>> import cyce
    >>> evaluator = cyce.Evaluator(top_k=(1, 2))
    >>> evaluator.update([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], [0, 1])
    <cyce.Evaluator of 2 positions>
    >>> other = cyce.Evaluator(top_k=(1, 2)).update([[1.0, 2.0, 3.0]], [2])
    >>> result = evaluator.merge(other).compute()
    >>> print(round(result.loss, 4), result.accuracy, result.top_k[2])
    1.0743 0.6666666666666666 1.0
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        axis: int | None = None,
        top_k: Sequence[int] = (1, 5),
        n_bins: int = 15,
        class_weight: Any = None,
        temperature: float = 1.0,
        confusion_matrix: bool = False,
    ) -> None:
        self._settings = Settings(
            ignore_index=as_ignore_index(ignore_index),
            axis=None if axis is None else _as_int(axis, "axis"),
            top_k=_as_top_k(top_k),
            n_bins=_as_n_bins(n_bins),
            class_weight=as_class_weight(class_weight),
            temperature=as_number(temperature, "temperature", FLOAT64),
            confusion_matrix=as_flag(confusion_matrix, "confusion_matrix"),
        )
        self._lock = threading.Lock()
        self._sums = Sums(self._settings)

    @property
    def ignore_index(self) -> int:
        """Class index of positions that do not count."""
        return self._settings.ignore_index

    @property
    def n_classes(self) -> int | None:
        """Number of classes, None before the first positions."""
        return self._sums.n_classes

    def reset(self) -> "Evaluator":
        """Forget all positions.

        Returns
        -------
        Evaluator
            This one.
        """
        with self._lock:
            self._sums = Sums(self._settings)
        return self

    def update(self, logits: Any, target: Any, sample_weight: Any = None) -> "Evaluator":
        """Add positions.

        Parameters
        ----------
        logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk), or with the classes at `axis`
            Logits, float16, bfloat16 (of ml_dtypes), float32 or float64.
        target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
            The true classes.
        sample_weight : array_like of the shape of `target`, default=None
            A weight for each position, in every mean; positions of weight 0 are ignored.

        Returns
        -------
        Evaluator
            This one. If an exception is raised, it is as before.

        Raises
        ------
        TypeError
            If `logits` is not floating point, or `target` not integer.
        ValueError
            If shapes do not fit, the number of classes differs from that of earlier updates, or a weight is
            neither 0 nor from 1e-100 to 1e100.
        IndexError
            If a target is neither a class nor `ignore_index`, or `axis` is no dimension of `logits`.
        """
        scores = as_logits(logits, name="logits", target=target)
        axis = axis_of(scores.ndim, self._settings.axis)
        labels = Labels.of(scores, target, sample_weight, axis, self._settings.ignore_index)
        with self._lock:
            self.check_classes(scores.shape, axis)
            # Aside: an exception, such as that of Ctrl-C, leaves all as it was.
            sums = self._sums.copy()
            sums.expect_classes(scores.shape[axis])
            for index in pieces_of(scores.shape, scores.itemsize, axis):
                self._add(scores[index], axis, labels.piece(index, axis), sums)
            self._sums = sums
            sums.count_confusions()
        return self

    def add_piece(self, logits: Array, axis: int, labels: Labels) -> None:
        """Add checked logits, in place."""
        self._sums.expect_classes(logits.shape[axis])
        self._add(logits, axis, labels, self._sums)
        self._sums.count_confusions()

    def add_stats(
        self, stats: PositionStats, n_classes: int, target: Array, sample_weight: Array | None
    ) -> None:
        """Add statistics of positions, in place."""
        self._sums.expect_classes(n_classes)
        self._sums.add(stats, target, sample_weight)
        self._sums.count_confusions()

    def _add(self, logits: Array, axis: int, labels: Labels, sums: Sums) -> None:
        """Add checked logits to some sums."""
        target = np.asarray(labels.target, order="C")
        stats = position_stats(logits, target, axis, self._settings.ignore_index, self._settings.temperature)
        sums.add(stats, target, labels.sample_weight)

    def check_classes(self, shape: tuple[int, ...], axis: int) -> None:
        """Raise unless the number of classes is that of before, and fits the settings."""
        known, n_classes = self._sums.n_classes, shape[axis]
        if known is not None and n_classes != known:
            raise ValueError(
                f"logits: must have {known} classes at axis {axis}, as those before, got {n_classes}: shape "
                f"{list(shape)}"
            )
        check_class_weight(self._settings.class_weight, shape, axis)
        if self._settings.confusion_matrix and n_classes > MOST_CONFUSED_CLASSES:
            raise ValueError(
                f"confusion_matrix: of {n_classes} classes would need {8e-9 * n_classes**2:,.1f} GB; it is "
                f"for up to {MOST_CONFUSED_CLASSES:,} classes. Counts per class are in per_class without it"
            )

    def merge(self, other: "Evaluator") -> "Evaluator":
        """Add all positions of another evaluator with the same arguments.

        Parameters
        ----------
        other : Evaluator
            It is not changed.

        Returns
        -------
        Evaluator
            This one.

        Raises
        ------
        TypeError
            If `other` is not an Evaluator.
        ValueError
            If it was made with other arguments, or has seen another number of classes.
        """
        if not isinstance(other, Evaluator):
            raise TypeError(f"other: must be a cyce.Evaluator, got {type(other).__name__}")
        if differences := self._settings.differences(other._settings):
            raise ValueError(f"other: must have the same {', '.join(differences)} as this evaluator")
        theirs = other._sums
        with self._lock:
            known, others = self._sums.n_classes, theirs.n_classes
            if known is not None and others is not None and known != others:
                raise ValueError(f"other: must have seen {known} classes, as this evaluator, got {others}")
            sums = self._sums.copy()
            # Not in place: it gets a new confusion matrix.
            sums.merge(theirs)
            self._sums = sums
        return self

    def compute(self) -> Evaluation:
        """Return the statistics of all positions so far.

        Returns
        -------
        Evaluation
            Means are NaN if there are no positions.
        """
        return evaluation_of(self._sums)

    def __repr__(self) -> str:
        return f"<cyce.Evaluator of {int(self._sums.totals['n_positions'])} positions>"

    def __getstate__(self) -> dict[str, Any]:
        """Return what Python itself can pickle, with the version of its meaning."""
        state = {"settings": self._settings._asdict(), "sums": self._sums.state()}
        return {"version": STATE_VERSION, **packed(state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` of this or an earlier version returned."""
        if state["version"] > STATE_VERSION:
            raise ValueError(
                f"this Evaluator was pickled by a later version of cyce (format {state['version']}, this one "
                f"reads up to {STATE_VERSION}): upgrade cyce"
            )
        self._lock = threading.Lock()
        self._settings = Settings(**unpacked(state["settings"]))
        self._sums = Sums.from_state(self._settings, unpacked(state["sums"]))


def as_class_weight(value: Any) -> Array | None:
    """Return class weights in double, or None."""
    if value is None:
        return None
    weight = as_array(value, "class_weight")
    if weight.dtype.kind not in "fiu" or weight.ndim != 1:
        raise ValueError(
            f"class_weight: must be one real number for each class, shape (C,), got shape "
            f"{list(weight.shape)} and dtype {weight.dtype.name}"
        )
    weight = weight.astype(np.float64)
    _check_weights(weight, "class_weight")
    return weight


def check_class_weight(weight: Array | None, shape: tuple[int, ...], axis: int) -> None:
    """Raise unless there is a weight for each class of logits of a shape, or none at all."""
    if weight is not None and len(weight) != shape[axis]:
        raise ValueError(
            f"class_weight: has {len(weight)} numbers, must have one for each of {shape[axis]} classes at "
            f"axis {axis} of logits, {list(shape)}"
        )


def _check_weights(weight: Array, name: str) -> None:
    """Raise unless weights are finite and not negative."""
    # Products of two, and sums of many, neither overflow nor underflow then.
    is_right = (weight == 0) | ((weight >= LEAST_WEIGHT) & (weight <= 1 / LEAST_WEIGHT))
    if not is_right.all():
        bad = np.unravel_index(int(np.argmin(is_right)), weight.shape)
        where = ", ".join(map(str, bad))
        raise ValueError(
            f"{name}: must be 0, or from {LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}, got {weight[bad]} at "
            f"[{where}]"
        )


def _as_int(value: Any, name: str) -> int:
    """Return an integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be an integer, got {type(value).__name__}") from None


def _as_top_k(value: Any) -> tuple[int, ...]:
    """Return numbers of highest classes, each once, ascending."""
    try:
        numbers = tuple(sorted({operator.index(k) for k in value}))
    except TypeError:
        raise TypeError(f"top_k: must be a sequence of integers such as (1, 5), got {value!r}") from None
    if numbers and numbers[0] < 1:
        raise ValueError(f"top_k: must be at least 1, got {numbers[0]}")
    return numbers


def _as_n_bins(value: Any) -> int:
    """Return a number of bins."""
    n_bins = _as_int(value, "n_bins")
    if not 1 <= n_bins <= MOST_BINS:
        raise ValueError(f"n_bins: must be from 1 to {MOST_BINS}, got {n_bins}")
    return n_bins
