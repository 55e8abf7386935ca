"""`evaluate`: statistics of logits in memory or on disk; `fit_temperature`: what calibrates them."""

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cyce._arguments import as_flag, as_ignore_index, as_logits, as_size, described
from cyce._progress import Progress
from cyce.evaluation.evaluator import (
    Evaluator,
    Labels,
    as_class_weight,
    check_class_weight,
    position_stats,
)
from cyce.evaluation.record import Evaluation
from cyce.evaluation.sources import Source, axis_of, is_path, load_array, open_sources, pieces_of
from cyce.evaluation.sums import Array, sum_of

# Beyond these, temperatures do not calibrate: a loss that falls to the end has no minimum.
LEAST_TEMPERATURE = 1e-6
MOST_TEMPERATURE = 1e6
# Where the highest probability is within this factor of 1 / C, all classes are as good as equally probable.
UNIFORM = 1.001
# Most that a temperature changes by in one step: far from the minimum, a parabola leads far beyond it.
MOST_FACTOR = 8.0
# Newton's method squares the distance at each step: some six steps will do.
MOST_STEPS = 60
TOLERANCE = 1e-7


class Piece(NamedTuple):
    """Checked logits of some positions, and their labels."""

    logits: Array
    axis: int
    labels: Labels
    name: str
    """Of the piece, for errors; empty unless the caller gave it apart."""


class LabelledLogits:
    """Logits with targets, of whatever origin, that are read in pieces, several times if need be."""

    def __init__(
        self,
        logits: Any,
        target: Any,
        sample_weight: Any,
        *,
        axis: int | None,
        ignore_index: int,
        n_classes: int | None,
        dtype: Any,
        shape: Sequence[int] | None,
        progress: bool | None,
    ) -> None:
        self._axis, self._ignore_index = axis, as_ignore_index(ignore_index)
        self._n_classes = None if n_classes is None else as_size(n_classes, "n_classes")
        self._shown = True if progress is None else as_flag(progress, "progress")
        self.source: Source | None = None
        self._parts: Iterable[Any] = ()
        if target is None and not (is_path(logits) or _is_one_array(logits)):
            if sample_weight is not None:
                raise TypeError(
                    "sample_weight: of an iterable of pieces, it is the third element of a piece: "
                    "(logits, target, sample_weight)"
                )
            if dtype is not None or shape is not None:
                raise TypeError("dtype and shape: are for files, got an iterable of pieces")
            if not isinstance(logits, Iterable):
                raise TypeError(
                    "logits: must be an array, a path, or an iterable of (logits, target), got "
                    f"{type(logits).__name__}"
                )
            self._parts = logits
            return
        (self.source,) = open_sources({"logits": logits}, dtype, shape)
        target = self.source.target if target is None else load_array(target, "target")
        if target is None:
            raise TypeError(
                "target: is missing; pass class indices, or their file; only llama.cpp's files bring theirs"
            )
        self.axis = axis_of(len(self.source.shape), axis)
        self.shape = with_classes(self.source.shape, self.axis, self._n_classes)
        # Has the shape of the logits, and no memory.
        like = np.broadcast_to(np.float32(0), self.shape)
        sample_weight = load_array(sample_weight, "sample_weight")
        self.labels = Labels.of(like, target, sample_weight, self.axis, self._ignore_index)

    @property
    def is_read_once(self) -> bool:
        """Whether the pieces are gone once they are read."""
        return self.source is None and isinstance(self._parts, Iterator)

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces."""
        if self.source is None:
            yield from self._given_pieces()
            return
        itemsize, n_numbers = self.source.dtype.itemsize, max(1, math.prod(self.shape))
        with Progress(self.source.nbytes, "B", sys.stderr, shown=self._shown) as progress:
            for index in pieces_of(self.shape, itemsize, self.axis, self.source.piece_bytes):
                piece = first_classes(self.source.read(index), self.axis, self.shape[self.axis])
                logits = as_logits(piece, name="logits")
                yield Piece(logits, self.axis, self.labels.piece(index, self.axis), "")
                progress.update(round(logits.size / n_numbers * self.source.nbytes))

    def _given_pieces(self) -> Iterator[Piece]:
        """Yield the pieces of an iterable."""
        with Progress(None, "B", sys.stderr, shown=self._shown) as progress:
            for number, part in enumerate(self._parts):
                name = f"piece {number}: "
                is_piece = isinstance(part, (tuple, list)) and len(part) in (2, 3)
                if not is_piece or isinstance(part[0], (int, float)):
                    raise TypeError(
                        "logits: an iterable must yield (logits, target) or (logits, target, sample_weight), "
                        f"arrays, got {described(part)} as piece {number}; an array, or a list of numbers, "
                        "needs target"
                    )
                with prefixed(name):
                    if part[1] is None:
                        raise TypeError("target: is missing")
                    logits = as_logits(part[0], name="logits", target=part[1])
                    axis = axis_of(logits.ndim, self._axis)
                    n_classes = with_classes(logits.shape, axis, self._n_classes)[axis]
                    logits = first_classes(logits, axis, n_classes)
                    labels = Labels.of(logits, part[1], (*part, None)[2], axis, self._ignore_index)
                if not logits.size:
                    yield Piece(logits, axis, labels, name)
                for index in pieces_of(logits.shape, logits.itemsize, axis):
                    yield Piece(logits[index], axis, labels.piece(index, axis), name)
                progress.update(logits.nbytes)


@contextlib.contextmanager
def prefixed(name: str) -> Iterator[None]:
    """Begin the messages of errors by a name."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        if not name:
            raise
        raise type(error)(f"{name}{error}") from error


def _is_one_array(logits: Any) -> bool:
    """Return whether logits are an array, not an iterable of pieces."""
    return isinstance(logits, (np.ndarray, np.generic)) or hasattr(logits, "__array__")


def with_classes(shape: tuple[int, ...], axis: int, n_classes: int | None) -> tuple[int, ...]:
    """Return the shape of logits of which the first classes count; None means all."""
    if n_classes is None:
        return shape
    if not 1 <= n_classes <= shape[axis]:
        raise ValueError(
            f"n_classes: must be from 1 to {shape[axis]}, the classes at axis {axis} of logits of shape "
            f"{list(shape)}; got {n_classes}"
        )
    return (*shape[:axis], n_classes, *shape[axis + 1 :])


def first_classes(logits: Array, axis: int, n_classes: int) -> Array:
    """Return a view of the first classes."""
    return logits if logits.shape[axis] == n_classes else logits[(slice(None),) * axis + (slice(n_classes),)]


def evaluate(
    logits: Any,
    target: Any = None,
    *,
    sample_weight: Any = None,
    ignore_index: int = -100,
    axis: int | None = None,
    n_classes: int | None = None,
    top_k: Sequence[int] = (1, 5),
    n_bins: int = 15,
    class_weight: Any = None,
    temperature: float | Literal["fit"] = 1.0,
    confusion_matrix: bool = False,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    progress: bool | None = None,
) -> Evaluation:
    r"""Loss, perplexity, accuracies, calibration and more of logits, in one pass, from memory or from disk.

    Parameters
    ----------
    logits : array_like, path, or iterable of (logits, target)
        Logits of shape (C,), (N, C) or (N, C, d1, ..., dk), or with the classes at `axis`. Either an array,
        which may be memory-mapped, or the path of a file: a .npy file; a .safetensors file, with
        FILE.safetensors:NAME for one of its tensors; a file that llama.cpp's perplexity tool wrote by
        ``--kl-divergence-base``, which contains the targets; or a file without a header, with `dtype` and
        `shape`. Without `target`, also an iterable of pieces (logits, target) or (logits, target,
        sample_weight).
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk), or path, default=None
        The true classes.
    sample_weight : array_like of the shape of `target`, default=None
        A weight for each position, in every mean; positions of weight 0 are ignored. May be a path, too.
    ignore_index : int, default=-100
        Class index of positions that do not count.
    axis : int, default=None
        The axis of the classes: None means 0 for one dimension, else 1. Logits (B, L, C) of a language
        model need -1.
    n_classes : int, default=None
        Leave out what is beyond this many classes, such as a vocabulary's padding.
    top_k, n_bins, class_weight, confusion_matrix
        As in `cyce.Evaluator`.
    temperature : float or "fit", default=1.0
        Logits are divided by this; "fit" finds it first, by `fit_temperature`.
    dtype : dtype, default=None
        Of a file without a header; or bfloat16 (of ml_dtypes), for a .npy file that NumPy knows as ``|V2``.
    shape : sequence of int, default=None
        Of a file without a header.
    progress : bool, default=None
        Whether to show a progress bar on standard error, if that is a terminal; None means True.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError
        If logits are not floating point, or targets not integer, or missing.
    ValueError
        If shapes do not fit, or a file is cut off or not what it says.
    IndexError
        If a target is neither a class nor `ignore_index`.
    OSError
        If a file cannot be read.
    ModuleNotFoundError
        If a safetensors file is given and safetensors is not installed (the extra `evaluate`), or one of
        bfloat16 and ml_dtypes is not (`half`).

    See Also
    --------
    cyce.Evaluator : The same for pieces that arrive one by one, and for several workers.
    cyce.divergence : Two models on the same positions.

    Notes
    -----
    Each byte of the logits is read once, and four to eight times more for ``temperature="fit"``. What is kept
    does not grow with the number of positions. A file must not be cut off while it is read.

    Examples
    --------
    >>> import cyce
    >>> result = cyce.evaluate([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], [0, 1])
    >>> print(round(result.loss, 4), round(result.perplexity, 4), result.accuracy)
    1.4077 4.0865 0.5
    """
    source = LabelledLogits(
        logits,
        target,
        sample_weight,
        axis=axis,
        ignore_index=ignore_index,
        n_classes=n_classes,
        dtype=dtype,
        shape=shape,
        progress=progress,
    )
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "axis": axis,
        "top_k": top_k,
        "n_bins": n_bins,
        "class_weight": class_weight,
        "confusion_matrix": confusion_matrix,
    }
    fits = isinstance(temperature, str)
    if fits and temperature != "fit":
        raise ValueError(f"temperature: must be a number or 'fit', got {temperature!r}")
    # Before it is fitted, for what is wrong with the arguments.
    evaluator = Evaluator(temperature=1.0 if isinstance(temperature, str) else temperature, **options)
    if source.source is not None:
        evaluator.check_classes(source.shape, source.axis)
    if fits:
        fitted = _fit(source, ignore_index, as_class_weight(class_weight))
        evaluator = Evaluator(temperature=fitted, **options)
    for piece in source.pieces():
        with prefixed(piece.name):
            evaluator.check_classes(piece.logits.shape, piece.axis)
        evaluator.add_piece(*piece[:3])
    return evaluator.compute()


def fit_temperature(
    logits: Any,
    target: Any = None,
    *,
    sample_weight: Any = None,
    ignore_index: int = -100,
    axis: int | None = None,
    n_classes: int | None = None,
    class_weight: Any = None,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    progress: bool | None = None,
) -> float:
    r"""Return the temperature that minimises the loss of logits: that calibrates them.

    Parameters
    ----------
    logits, target, sample_weight, ignore_index, axis, n_classes, class_weight, dtype, shape, progress
        As in `cyce.evaluate`. Logits are read several times, mostly four to eight: an iterable of pieces must
        be one that can be iterated repeatedly, such as a list, not a generator.

    Returns
    -------
    float
        The temperature, for ``cyce.functional.cross_entropy(..., temperature=)`` and ``cyce.evaluate``.

    Raises
    ------
    ValueError
        If no position counts; if the loss has no minimum between 1e-6 and 1e6, as where all predictions are
        right; or as `cyce.evaluate`.
    TypeError
        If an iterable can be read only once; or as `cyce.evaluate`.

    Notes
    -----
    Newton's method on :math:`\beta = 1 / T`, in which the loss is convex [1]_: with the probabilities
    :math:`p` at :math:`\beta`, the derivatives of a position's loss are :math:`\sum_c p_c x_c - x_y` and
    :math:`\sum_c p_c x_c^2 - (\sum_c p_c x_c)^2`.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import cyce
    >>> logits = [[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]
    >>> round(cyce.fit_temperature(logits, [0, 0, 1, 1]), 4)
    3.641
    """
    source = LabelledLogits(
        logits,
        target,
        sample_weight,
        axis=axis,
        ignore_index=ignore_index,
        n_classes=n_classes,
        dtype=dtype,
        shape=shape,
        progress=progress,
    )
    return _fit(source, ignore_index, as_class_weight(class_weight))


class _Slopes(NamedTuple):
    """Sums over the positions, at one temperature."""

    weight: float
    loss: float
    slope: float
    """Of beta times the derivative of the loss by beta."""
    curvature: float
    """Of the variance of the scaled logits, which is beta**2 times the second derivative."""
    all_right: bool
    """Whether all targets are predicted."""
    all_uniform: bool
    """Whether all classes have nearly the same probability, everywhere."""


def _slopes(
    source: LabelledLogits, temperature: float, ignore_index: int, class_weight: Array | None
) -> _Slopes:
    """Return what Newton's method needs, in one pass."""
    total, all_right, all_uniform = np.zeros(4), True, True
    for logits, axis, labels, name in source.pieces():
        with prefixed(name):
            check_class_weight(class_weight, logits.shape, axis)
        target = np.asarray(labels.target, order="C")
        stats = position_stats(logits, target, axis, ignore_index, temperature)
        weights = (stats.rank >= 0).astype(np.float64)
        if labels.sample_weight is not None:
            weights *= labels.sample_weight
        if class_weight is not None:
            weights *= class_weight[np.where(stats.rank >= 0, target, 0)]
        counts = weights != 0
        weights = weights[counts]
        sums = (sum_of(values[counts], weights) for values in (stats.loss, stats.slope, stats.variance))
        total += weights.sum(), *sums
        all_right = all_right and bool(np.all(stats.rank[counts] == 0))
        highest = stats.confidence[counts].max(initial=0)
        all_uniform = all_uniform and bool(highest * logits.shape[axis] < UNIFORM)
    weight, loss, slope, curvature = total.tolist()
    return _Slopes(weight, loss, slope, curvature, all_right, all_uniform)


def _fit(source: LabelledLogits, ignore_index: int, class_weight: Array | None) -> float:
    """Return the temperature that minimises the loss."""
    if source.is_read_once:
        raise TypeError(
            "logits: a temperature is found by reading them several times, and this iterable can be read "
            "only once; pass a list of its pieces, or an array or a file"
        )
    beta = 1.0
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    for _ in range(MOST_STEPS):
        slopes = _slopes(source, 1 / beta, ignore_index, class_weight)
        if slopes.weight == 0:
            raise ValueError("target: must have at least one position that counts")
        if not math.isfinite(slopes.slope):
            raise ValueError(
                "logits: some have no softmax (NaN, or an infinite maximum), or the loss is infinite"
            )
        if slopes.curvature == slopes.slope == 0 and slopes.loss > 0:
            raise ValueError("logits: are the same for all classes, so that no temperature changes the loss")
        # Where beta goes to infinity, the slope is the gap between the highest logit and the target's.
        # If that is 0 everywhere, the slope never becomes positive.
        is_down = slopes.slope <= 0 or slopes.all_right
        is_end = slopes.all_right if is_down else slopes.all_uniform
        ends = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
        if is_end or beta == ends[is_down]:
            side, what = ("lower", "right") if is_down else ("higher", "no better than chance")
            raise ValueError(
                f"logits: no temperature from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g} minimises the "
                f"loss, which falls as long as the temperature gets {side}: predictions are all {what}, or "
                "nearly so; fit it on other data"
            )
        low, high = (beta, high) if is_down else (low, beta)
        step = MOST_FACTOR if is_down else -MOST_FACTOR
        if slopes.curvature > 0:
            step = -slopes.slope / slopes.curvature
        if abs(step) < TOLERANCE:
            return 1 / (beta * (1 + step))
        if high / low < 1 + TOLERANCE:
            break
        following = beta * min(max(1 + step, 1 / MOST_FACTOR), MOST_FACTOR)
        if following >= high:
            following = high if high in ends else math.sqrt(low * high)
        elif following <= low:
            following = low if low in ends else math.sqrt(low * high)
        beta = following
    return 1 / beta
