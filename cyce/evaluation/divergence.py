"""`divergence`: how far the probabilities of one model are from those of another."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cyce._arguments import as_flag, as_ignore_index, as_logits, as_size, as_stored, position_shape
from cyce._progress import Progress
from cyce.evaluation.evaluate import first_classes, with_classes
from cyce.evaluation.evaluator import Labels
from cyce.evaluation.record import Histogram, Record, by_share, number, percent, with_error
from cyce.evaluation.sources import Source, axis_of, load_array, open_sources, pieces_of
from cyce.evaluation.sums import Array, Mean, Quantiles, sum_of
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.threads.budget import budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Divergence(Record):
    r"""How far a model's probabilities are from those of a reference, computed by `cyce.divergence`.

    All means are over the positions that are not ignored, weighted by `sample_weight`. What needs targets is
    None without them.

    Attributes
    ----------
    n_positions : int
        Number of positions that are not ignored.
    n_ignored : int
        Number of positions with `ignore_index`, or of sample weight 0.
    kl : float
        Mean of KL(reference || model).
    kl_standard_error : float
        Standard error of that mean.
    kl_quantiles : dict of float to float
        Quantiles of the divergences, by probability (0.5 is the median), with a relative error of 2**-8.
    max_kl : float
        The largest, exactly.
    kl_histogram : Histogram
        How the divergences are distributed.
    reverse_kl : float
        Mean of KL(model || reference).
    js : float
        Mean of the Jensen-Shannon divergence.
    agreement : dict of int to float
        For k of 1, 5 and 10, the share of positions at which both have the same k highest classes in order.
    nan_positions : int
        Number of positions at which one of the two has no softmax, which make means NaN.
    perplexity : float or None
        Of the model.
    perplexity_standard_error : float or None
        Of the model's perplexity.
    reference_perplexity : float or None
        Of the reference.
    reference_perplexity_standard_error : float or None
        Of the reference's perplexity.
    perplexity_ratio : float or None
        Model / reference.
    perplexity_ratio_standard_error : float or None
        Standard error of the ratio, from the differences of the losses at each position: variation that both
        models share cancels.
    probability_change : float or None
        Mean change of the target's probability: that of the model minus that of the reference.
    probability_change_standard_error : float or None
        Standard error of `probability_change`.
    probability_change_rms : float or None
        Root mean square of the change of the target's probability.
    probability_change_quantiles : dict of float to float or None
        Quantiles of the same, to a relative error of 2**-8.

    Notes
    -----
    With the probabilities :math:`q` of the reference and :math:`p` of the model,
    :math:`\mathrm{KL}(q \| p) = \sum_c q_c \log(q_c / p_c)`, the reverse :math:`\mathrm{KL}(p \| q)`, and the
    Jensen-Shannon divergence :math:`(\mathrm{KL}(q \| m) + \mathrm{KL}(p \| m)) / 2` with
    :math:`m = (p + q) / 2`. All are in nats.
    """

    n_positions: int
    n_ignored: int
    kl: float
    kl_standard_error: float
    kl_quantiles: dict[float, float]
    max_kl: float
    kl_histogram: Histogram
    reverse_kl: float
    js: float
    agreement: dict[int, float]
    nan_positions: int
    perplexity: float | None
    perplexity_standard_error: float | None
    reference_perplexity: float | None
    reference_perplexity_standard_error: float | None
    perplexity_ratio: float | None
    perplexity_ratio_standard_error: float | None
    probability_change: float | None
    probability_change_standard_error: float | None
    probability_change_rms: float | None
    probability_change_quantiles: dict[float, float] | None

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as text."""
        rows = [
            ("positions", f"{self.n_positions:,}"),
            ("ignored", f"{self.n_ignored:,}"),
            ("KL(reference || model)", with_error(self.kl, self.kl_standard_error)),
            ("KL(model || reference)", number(self.reverse_kl)),
            ("Jensen-Shannon", number(self.js)),
            *((f"KL quantile {share:g}", number(value)) for share, value in self.kl_quantiles.items()),
            *((f"same top {k}", percent(share)) for k, share in self.agreement.items()),
        ]
        if self.nan_positions:
            rows.insert(2, ("NaN", f"{self.nan_positions:,} positions"))
        if (
            self.perplexity is None
            or self.perplexity_standard_error is None
            or self.reference_perplexity is None
            or self.reference_perplexity_standard_error is None
            or self.perplexity_ratio is None
            or self.perplexity_ratio_standard_error is None
            or self.probability_change is None
            or self.probability_change_standard_error is None
            or self.probability_change_rms is None
            or self.probability_change_quantiles is None
        ):
            return rows
        return [
            *rows,
            ("perplexity", with_error(self.perplexity, self.perplexity_standard_error)),
            (
                "reference's perplexity",
                with_error(self.reference_perplexity, self.reference_perplexity_standard_error),
            ),
            ("ratio", with_error(self.perplexity_ratio, self.perplexity_ratio_standard_error)),
            (
                "change of the target's probability",
                with_error(self.probability_change, self.probability_change_standard_error),
            ),
            ("its root mean square", number(self.probability_change_rms)),
            *(
                (f"its quantile {share:g}", number(value))
                for share, value in self.probability_change_quantiles.items()
            ),
        ]

    def plot(self) -> "Figure":
        """Draw the histogram of the divergences, and their mean.

        Returns
        -------
        matplotlib Figure
            Not one of pyplot's: nothing has to be closed.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed.
        """
        from cyce import plotting

        return plotting.divergence(self)


class Comparison(NamedTuple):
    """What the kernel computes for each position of two models, (n_positions,) but for the last two."""

    kl: Array
    reverse_kl: Array
    js: Array
    loss: Array
    reference_loss: Array
    top: Array
    """The highest classes of the model, (n_positions, N_TOP)."""
    reference_top: Array


def compare_positions(
    logits: Array, reference_logits: Array, axis: int, target: Array, ignore_index: int
) -> Comparison:
    """Compare two models at each position, in one pass over checked logits."""
    records = []
    for scores in (logits, reference_logits):
        record = CrossEntropyArguments()
        record.logits, record.axis, record.target = as_stored(scores), axis, target
        record.ignore_index, record.num_threads = ignore_index, budget()
        records.append(record)
    kernels = dispatch.kernels
    sums = [np.zeros(target.size) for _ in range(5)]
    tops = [np.zeros((target.size, kernels.N_TOP), np.int64) for _ in range(2)]
    result = Comparison(*sums, *tops)
    try:
        kernels.diverge(*records, *result)
    except IndexError:
        raise IndexError("target: another thread changes it during the call") from None
    return result


class _Sums:
    """What is kept of all positions."""

    def __init__(self, has_target: bool) -> None:
        self.has_target = has_target
        self.n_ignored = 0
        self.nan_positions = 0
        self.kl, self.reverse_kl, self.js = Mean(), Mean(), Mean()
        self.kl_quantiles = Quantiles()
        self.agreement = np.zeros(len(TOP))
        self.loss, self.reference_loss, self.loss_change = Mean(), Mean(), Mean()
        self.change, self.square_change = Mean(), Mean()
        self.change_quantiles = Quantiles()

    def add(self, comparison: Comparison, labels: Labels, ignore_index: int) -> None:
        """Add positions."""
        counts = (
            labels.target.ravel() != ignore_index if self.has_target else np.ones(len(comparison.kl), bool)
        )
        weight = None
        if labels.sample_weight is not None:
            weight = labels.sample_weight.ravel()
            counts = counts & (weight != 0)
            weight = weight[counts]
        n = int(np.count_nonzero(counts))
        self.n_ignored += counts.size - n
        if not n:
            return
        kl, reverse_kl, js, loss, reference_loss, top, reference_top = (
            values[counts] for values in comparison
        )
        self.nan_positions += int(np.count_nonzero(np.isnan(kl)))
        for mean, values in ((self.kl, kl), (self.reverse_kl, reverse_kl), (self.js, js)):
            mean.add(values, weight)
        self.kl_quantiles.add(kl, weight)
        same = np.logical_and.accumulate(top == reference_top, axis=1)
        for i, k in enumerate(TOP):
            self.agreement[i] += sum_of(same[:, k - 1], weight)
        if self.has_target:
            with np.errstate(all="ignore"):
                change = np.exp(-loss) - np.exp(-reference_loss)
                self.loss_change.add(loss - reference_loss, weight)
            self.loss.add(loss, weight)
            self.reference_loss.add(reference_loss, weight)
            self.change.add(change, weight)
            self.square_change.add(change * change, weight)
            self.change_quantiles.add(change, weight)

    def divergence(self) -> Divergence:
        """Return the statistics."""
        loss, reference_loss, loss_change = self.loss, self.reference_loss, self.loss_change
        with np.errstate(all="ignore"):
            perplexity, reference_perplexity, perplexity_ratio = (
                float(np.exp(np.float64(mean.value))) for mean in (loss, reference_loss, loss_change)
            )
            agreement = self.agreement / np.float64(self.kl.weight)
        return Divergence(
            n_positions=self.kl.n,
            n_ignored=self.n_ignored,
            kl=self.kl.value,
            kl_standard_error=self.kl.standard_error,
            kl_quantiles=by_share(self.kl_quantiles),
            max_kl=self.kl_quantiles.highest if self.kl.n > self.nan_positions else math.nan,
            kl_histogram=Histogram(*self.kl_quantiles.histogram()),
            reverse_kl=self.reverse_kl.value,
            js=self.js.value,
            agreement=dict(zip(TOP, agreement.tolist(), strict=True)),
            nan_positions=self.nan_positions,
            perplexity=self._if_target(perplexity),
            perplexity_standard_error=self._if_target(perplexity * loss.standard_error),
            reference_perplexity=self._if_target(reference_perplexity),
            reference_perplexity_standard_error=self._if_target(
                reference_perplexity * reference_loss.standard_error
            ),
            perplexity_ratio=self._if_target(perplexity_ratio),
            perplexity_ratio_standard_error=self._if_target(perplexity_ratio * loss_change.standard_error),
            probability_change=self._if_target(self.change.value),
            probability_change_standard_error=self._if_target(self.change.standard_error),
            probability_change_rms=self._if_target(float(np.sqrt(self.square_change.value))),
            probability_change_quantiles=by_share(self.change_quantiles) if self.has_target else None,
        )

    def _if_target(self, value: float) -> float | None:
        """Return a value that needs targets, None without them."""
        return value if self.has_target else None


def divergence(
    logits: Any,
    reference_logits: Any,
    target: Any = None,
    *,
    sample_weight: Any = None,
    ignore_index: int = -100,
    axis: int | None = None,
    n_classes: int | None = None,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    progress: bool | None = None,
) -> Divergence:
    r"""How far a model's probabilities are from a reference's, such as those before it was quantised.

    Parameters
    ----------
    logits : array_like or path
        Logits of the model, of shape (C,), (N, C) or (N, C, d1, ..., dk), or with the classes at `axis`: an
        array or a file, as in `cyce.evaluate`.
    reference_logits : array_like or path
        Those of the reference on the same positions; they may have another dtype. A file that llama.cpp's
        perplexity tool wrote by ``--kl-divergence-base`` contains the targets. The tool rounds
        log-probabilities, which changes the divergences by about 1e-5, or by more where logits are 16 below
        the maximum.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk), or path, default=None
        The true classes, for perplexities and the change of their probability.
    sample_weight : array_like of the shape of the positions, default=None
        A weight for each position, in every mean; positions of weight 0 are ignored.
    ignore_index : int, default=-100
        Class index of positions that do not count; needs targets.
    axis : int, default=None
        The axis of the classes, in both: None means 0 for one dimension, else 1. Logits (B, L, C) of a
        language model need -1.
    n_classes : int, default=None
        Compare this many classes, the first ones, where one of the two has more: a padded vocabulary.
    dtype, shape
        Of files without a header, as in `cyce.evaluate`; the same for both, if both are such files.
    progress : bool, default=None
        Whether to show a progress bar on standard error, if that is a terminal; None means True.

    Returns
    -------
    Divergence

    Raises
    ------
    TypeError, ValueError, IndexError, OSError, ModuleNotFoundError
        As `cyce.evaluate`.

    See Also
    --------
    cyce.evaluate : Statistics of one model.
    cyce.functional.kl_div : The same of log-probabilities, with a gradient.

    Notes
    -----
    One pass over both, in double. A divergence is a sum of terms that are never negative, such as
    :math:`q_c (e^{-d} - 1 + d)` with :math:`d = \log(q_c / p_c)`: nothing cancels where the two are close.

    Examples
    --------
    >>> import cyce
    >>> result = cyce.divergence([[2.0, 0.5, 0.3]], [[2.0, 0.6, 0.1]], target=[0])
    >>> print(f"{result.kl:.6f} {result.js:.6f} {result.perplexity_ratio:.6f} {result.agreement[1]}")
    0.003123 0.000793 1.006910 1.0
    """
    n_classes = None if n_classes is None else as_size(n_classes, "n_classes")
    values = {"logits": logits, "reference_logits": reference_logits}
    model, reference = open_sources(values, dtype, shape)
    class_axis = axis_of(len(model.shape), axis)
    shapes = _common_shape(model, reference, class_axis, n_classes)
    if target is None:
        target = _own_target(model, reference)
    like = np.broadcast_to(np.float32(0), shapes)
    has_target = target is not None
    # Without targets, all positions count.
    ignore_index = as_ignore_index(ignore_index)
    ignore_index = ignore_index if has_target else -1
    if has_target:
        target = load_array(target, "target")
    else:
        target = np.broadcast_to(np.int64(0 if shapes[class_axis] else -1), position_shape(like, class_axis))
    labels = Labels.of(like, target, load_array(sample_weight, "sample_weight"), class_axis, ignore_index)
    sums = _Sums(has_target)
    itemsize = model.dtype.itemsize + reference.dtype.itemsize
    total = model.nbytes + reference.nbytes
    shown = True if progress is None else as_flag(progress, "progress")
    with Progress(total, "B", sys.stderr, shown=shown) as bar:
        for index in pieces_of(shapes, itemsize, class_axis, min(model.piece_bytes, reference.piece_bytes)):
            scores, reference_scores = (
                as_logits(first_classes(source.read(index), class_axis, shapes[class_axis]), name=name)
                for source, name in ((model, "logits"), (reference, "reference_logits"))
            )
            piece = labels.piece(index, class_axis)
            indices = np.asarray(piece.target, order="C")
            comparison = compare_positions(scores, reference_scores, class_axis, indices, ignore_index)
            sums.add(comparison, piece, ignore_index)
            bar.update(round(total * (indices.size / max(1, labels.target.size))))
    return sums.divergence()


def _own_target(model: Source, reference: Source) -> Array | None:
    """Return the targets that the sources bring themselves, if there are any."""
    ours, theirs = model.target, reference.target
    if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
        raise ValueError(
            "reference_logits: brings other targets than logits: the files are not of the same text; pass "
            "target if they are to be compared nevertheless"
        )
    return ours if theirs is None else theirs


def _common_shape(model: Source, reference: Source, axis: int, n_classes: int | None) -> tuple[int, ...]:
    """Return the shape that the two are compared in."""
    ours, theirs = model.shape, reference.shape
    if len(ours) != len(theirs) or ours[:axis] + ours[axis + 1 :] != theirs[:axis] + theirs[axis + 1 :]:
        raise ValueError(
            f"reference_logits: must have the positions of logits, which have shape {list(ours)}, got shape "
            f"{list(theirs)} (classes at axis {axis})"
        )
    if n_classes is None and ours[axis] != theirs[axis]:
        raise ValueError(
            f"reference_logits: has {theirs[axis]} classes, logits {ours[axis]}; if the others are padding, "
            f"pass n_classes={min(ours[axis], theirs[axis])}"
        )
    with_classes(theirs, axis, n_classes)
    return with_classes(ours, axis, n_classes)
