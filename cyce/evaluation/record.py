"""`Evaluation`: what an evaluator computes, as numbers, a dict, a table, HTML and pictures."""

import html
import math
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cyce.evaluation.sums import Quantiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cyce.evaluation.evaluator import Sums

SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Shares of the positions that quantiles are given for; 0 and 1 are the exact extremes."""
MOST_LISTED_CLASSES = 1000


class Record:
    """A frozen record that is shown as a table."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as text."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as Python's own numbers, lists and dicts, for JSON.

        Statistics of each class are left out of more than 1000 classes. NaN stays NaN.
        """
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows)

    def _repr_html_(self) -> str:
        """Return the table in HTML, for notebooks."""
        rows = (
            f"<tr><th style='text-align: left'>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self.rows()
        )
        return f"<table>{''.join(rows)}</table>"


def _plain(value: Any) -> Any:
    """Return a value made of Python's own types."""
    if isinstance(value, PerClass) and len(value.counts) > MOST_LISTED_CLASSES:
        return None
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def number(value: float) -> str:
    """Format a number for a table."""
    return f"{value:.6g}"


def percent(value: float) -> str:
    """Format a share for a table."""
    return f"{value:.2%}"


def with_error(value: float, error: float) -> str:
    """Format a number and its standard error for a table."""
    return number(value) if math.isnan(error) else f"{number(value)} ± {error:.2g}"


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of the confidence, the highest probability: bin b of n holds ((b - 1) / n, b / n].

    Attributes
    ----------
    edges : ndarray of float64
        (n_bins + 1,)
    counts : ndarray of int64
        Positions in each bin, (n_bins,).
    weight : ndarray of float64
        Their sample weights.
    confidence : ndarray of float64
        Mean confidence in each bin, (n_bins,); NaN in empty bins.
    accuracy : ndarray of float64
        Fraction of positions in each bin that are predicted right, (n_bins,); NaN in empty bins.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    weight: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """How values are distributed: bins from a power of two to the next, four each.

    Attributes
    ----------
    edges : ndarray of float64
        (n_bins + 1,)
    weight : ndarray of float64
        Positions, or their sample weights, in each bin, (n_bins,).
    """

    edges: NDArray[np.float64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerClass:
    """Statistics of each class; NaN for what a class has no positions for.

    Attributes
    ----------
    counts : ndarray of int64
        Positions whose target is the class, (C,).
    n_predicted : ndarray of int64
        Positions that are predicted to be of the class, (C,).
    loss : ndarray of float64
        Mean loss of the positions of the class, (C,).
    accuracy : ndarray of float64
        Fraction of the positions of the class that are predicted right (recall), (C,).
    iou : ndarray of float64
        Intersection over union of the positions of the class and those predicted to be, (C,). Like `loss` and
        `accuracy`, weighted by the sample weights.
    mean_iou : float
        Mean of `iou` over the classes that occur, as targets or predictions.
    confusion_matrix : ndarray of int64 or None
        Counts by target (rows) and prediction (columns), (C, C); None unless asked for.
    """

    counts: NDArray[np.int64]
    n_predicted: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    iou: NDArray[np.float64]
    mean_iou: float
    confusion_matrix: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Evaluation(Record):
    r"""Statistics of logits and targets, computed by `cyce.Evaluator` and `cyce.evaluate`.

    All means are over the positions that are not ignored, weighted by `sample_weight`.

    Attributes
    ----------
    n_positions : int
        Number of positions that are not ignored.
    n_ignored : int
        Number of positions with `ignore_index`, or of sample weight 0.
    loss : float
        Mean cross-entropy, in nats, weighted by `class_weight` as in `cyce.functional.cross_entropy`.
    loss_standard_error : float
        Standard error of that mean.
    perplexity : float
        Exponential of the mean cross-entropy without class weights.
    perplexity_standard_error : float
        Standard error of the perplexity: perplexity times the standard error of the mean.
    bits_per_position : float
        Mean cross-entropy without class weights, in bits.
    accuracy : float
        Fraction of positions whose target is the class of the highest logit, the first one of equal ones.
    top_k : dict of int to float
        For each k, the share of positions whose target is among the k highest logits.
    entropy : float
        Mean entropy of the probabilities, in nats.
    confidence : float
        Mean of the highest probability.
    calibration_error : float
        Expected calibration error.
    max_calibration_error : float
        Largest difference of accuracy and confidence in a bin.
    brier_score : float
        Mean Brier score, from 0 to 2.
    reliability : Reliability
        Accuracy by confidence.
    per_class : PerClass
        Statistics of each class.
    loss_quantiles : dict of float to float
        Quantiles of the losses, by probability (0.5 is the median), with a relative error of 2**-8.
    loss_histogram : Histogram
        How the losses are distributed.
    nan_positions : int
        Number of positions whose logits have no softmax (NaN, or an infinite maximum). Means of losses,
        entropies and probabilities are NaN then; accuracies go by the order of the logits, with NaN as the
        highest, as in `numpy.argmax`.
    temperature : float
        What the logits were divided by.

    Notes
    -----
    With probabilities :math:`p` and target :math:`y` of a position, its loss is :math:`-\log p_y`, its Brier
    score :math:`\sum_c (p_c - [c = y])^2` [1]_, its confidence :math:`\max_c p_c`. The expected calibration
    error is :math:`\sum_b \frac{w_b}{w} |\mathrm{accuracy}_b - \mathrm{confidence}_b|` over the bins [2]_.

    References
    ----------
    .. [1] G. W. Brier, "Verification of forecasts expressed in terms of probability", 1950.
    .. [2] C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """

    n_positions: int
    n_ignored: int
    loss: float
    loss_standard_error: float
    perplexity: float
    perplexity_standard_error: float
    bits_per_position: float
    accuracy: float
    top_k: dict[int, float]
    entropy: float
    confidence: float
    calibration_error: float
    max_calibration_error: float
    brier_score: float
    reliability: Reliability
    per_class: PerClass
    loss_quantiles: dict[float, float]
    loss_histogram: Histogram
    nan_positions: int
    temperature: float

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as text."""
        rows = [
            ("positions", f"{self.n_positions:,}"),
            ("ignored", f"{self.n_ignored:,}"),
            ("loss", with_error(self.loss, self.loss_standard_error)),
            ("perplexity", with_error(self.perplexity, self.perplexity_standard_error)),
            ("bits per position", number(self.bits_per_position)),
            ("accuracy", percent(self.accuracy)),
            *((f"top-{k} accuracy", percent(share)) for k, share in self.top_k.items() if k > 1),
            ("mean IoU", percent(self.per_class.mean_iou)),
            ("confidence", percent(self.confidence)),
            ("calibration error", percent(self.calibration_error)),
            ("largest calibration error", percent(self.max_calibration_error)),
            ("Brier score", number(self.brier_score)),
            ("entropy", number(self.entropy)),
            *((f"loss quantile {share:g}", number(loss)) for share, loss in self.loss_quantiles.items()),
        ]
        if self.temperature != 1:
            rows.insert(2, ("temperature", number(self.temperature)))
        if self.nan_positions:
            rows.insert(2, ("NaN", f"{self.nan_positions:,} positions"))
        return rows

    def plot(self) -> "Figure":
        """Draw the reliability, with the number of positions in each bin, and the histogram of the losses.

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

        return plotting.evaluation(self)


def by_share(quantiles: Quantiles) -> dict[float, float]:
    """Return the quantiles of SHARES."""
    return dict(zip(SHARES, quantiles.at(np.array(SHARES)).tolist(), strict=True))


def ratio(total: Any, weight: Any) -> Any:
    """Return total / weight; NaN where that is 0 / 0."""
    with np.errstate(all="ignore"):
        return np.true_divide(total, weight)


def evaluation_of(sums: "Sums") -> Evaluation:
    """Return the statistics of all that was seen."""
    totals = sums.totals
    weight = totals["weight"]
    nll = sums.negative_log_likelihood
    loss = nll if sums.weighted_loss is None else sums.weighted_loss
    with np.errstate(all="ignore"):
        perplexity = float(np.exp(np.float64(nll.value)))
        perplexity_error = perplexity * nll.standard_error
    confidence = ratio(totals["bin_confidence"], totals["bin_weight"])
    accuracy = ratio(totals["bin_correct"], totals["bin_weight"])
    n_bins = sums.settings.n_bins
    error, largest = float("nan"), float("nan")
    filled = totals["bin_counts"] > 0
    if filled.any() and not totals["nan_positions"]:
        gaps = np.abs(accuracy[filled] - confidence[filled])
        error = float(totals["bin_weight"][filled] @ gaps / totals["bin_weight"].sum())
        largest = float(gaps.max())
    return Evaluation(
        n_positions=int(totals["n_positions"]),
        n_ignored=int(totals["n_ignored"]),
        loss=loss.value,
        loss_standard_error=loss.standard_error,
        perplexity=perplexity,
        perplexity_standard_error=perplexity_error,
        bits_per_position=nll.value / math.log(2),
        accuracy=float(ratio(totals["correct"], weight)),
        top_k={
            k: float(ratio(total, weight))
            for k, total in zip(sums.settings.top_k, totals["top_k"], strict=True)
        },
        entropy=float(ratio(totals["entropy"], weight)),
        confidence=float(ratio(totals["confidence"], weight)),
        calibration_error=error,
        max_calibration_error=largest,
        brier_score=float(ratio(totals["brier_score"], weight)),
        reliability=Reliability(
            edges=np.arange(n_bins + 1) / n_bins,
            counts=totals["bin_counts"].copy(),
            weight=totals["bin_weight"].copy(),
            confidence=confidence,
            accuracy=accuracy,
        ),
        per_class=_per_class_of(sums),
        loss_quantiles=by_share(sums.loss_quantiles),
        loss_histogram=Histogram(*sums.loss_quantiles.histogram()),
        nan_positions=int(totals["nan_positions"]),
        temperature=sums.settings.temperature,
    )


def _per_class_of(sums: "Sums") -> PerClass:
    """Return the statistics of each class."""
    totals = sums.totals
    none = np.zeros(0)
    counts = totals.get("class_counts", none.astype(np.int64)).copy()
    n_predicted = totals.get("class_predicted", none.astype(np.int64)).copy()
    weight, correct = totals.get("class_weight", none), totals.get("class_correct", none)
    iou = ratio(correct, weight + totals.get("class_predicted_weight", none) - correct)
    occurs = counts + n_predicted > 0
    confusion = totals.get("confusion_matrix")
    return PerClass(
        counts=counts,
        n_predicted=n_predicted,
        loss=ratio(totals.get("class_loss", none), weight),
        accuracy=ratio(correct, weight),
        iou=iou,
        mean_iou=float(iou[occurs].mean()) if occurs.any() else float("nan"),
        confusion_matrix=None if confusion is None else confusion.copy(),
    )
