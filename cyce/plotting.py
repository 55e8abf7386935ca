"""Plots of predicted probabilities with matplotlib (the extra `plot`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import arithmetic_dtype, as_indices, as_logits, check_indices, class_axis
from cyce.evaluation.evaluator import Evaluator
from cyce.functional import softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cyce.evaluation.divergence import Divergence
    from cyce.evaluation.record import Evaluation, Histogram

__all__ = ["divergence", "evaluation", "probabilities", "reliability_diagram"]

# Number of colours in matplotlib's default cycle; most entries of a legend; most ticks.
MAX_NAMED_COLOURS = 10
MAX_LEGEND = 20
MAX_TICKS = 30

# Target of positions to ignore, as in cross_entropy.
IGNORE_INDEX = -100

NO_PROBABILITIES = "logits: a maximum is NaN or infinite, so that there are no probabilities"


def _as_axes(ax: Any) -> Any:
    """Return the Axes to draw on; those of a new figure if `ax` is None."""
    if ax is not None:
        if not hasattr(ax, "bar"):
            raise TypeError(f"ax: must be matplotlib Axes, got {type(ax).__name__}")
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise _no_matplotlib(error) from error
    return pyplot.subplots(layout="constrained")[1]


def _no_matplotlib(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return an error that says what to install."""
    return ModuleNotFoundError(
        "cyce.plotting needs matplotlib: python -m pip install 'cyce[plot]'", name=error.name
    )


def probabilities(
    logits: Any,
    target: Any = None,
    class_names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the predicted probabilities of each sample as bars, the true class marked.

    Parameters
    ----------
    logits : array_like of shape (C,) or (N, C)
        Logits of C classes, of any dtype that `cross_entropy` takes, not probabilities.
    target : array_like of int of shape () or (N,), default=None
        The true classes. With None, no class is marked; with -100 for a sample, none of that sample.
    class_names : sequence of str, default=None
        Names of the C classes, for the legend; None means their numbers.
    ax : matplotlib Axes, default=None
        Where to draw; None means a new figure.

    Returns
    -------
    matplotlib Axes
        With one bar container per class, one bar per sample in each, and a line of markers over the
        true classes.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `target` is not integer, or `ax` is not Axes.
    ValueError
        If `logits` has another number of dimensions, `target` or `class_names` does not fit, there are
        no samples or no classes, or a probability is NaN.
    IndexError
        If a target is neither a class nor -100.
    ModuleNotFoundError
        If matplotlib is not installed.

    See Also
    --------
    cyce.functional.softmax : The probabilities.
    reliability_diagram : How well calibrated the probabilities are.

    Examples
    --------
    >>> import cyce.plotting
    >>> logits = [[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]
    >>> ax = cyce.plotting.probabilities(logits, target=[0, 1], class_names=["cat", "dog", "owl"])
    >>> len(ax.containers)
    3
    """
    scores = as_logits(logits, name="logits")
    if scores.ndim > 2:
        raise ValueError(f"logits: must have shape (C,) or (N, C), got {list(scores.shape)}")
    classes = None
    if target is not None:
        classes = as_indices(target, scores, class_axis(scores))
        check_indices(classes, scores.shape[-1], IGNORE_INDEX, "logits")
    if not scores.size:
        raise ValueError(f"logits: must have at least one sample and one class, got {list(scores.shape)}")
    shown = softmax(scores, dim=-1, dtype=arithmetic_dtype(scores.dtype)).reshape(-1, scores.shape[-1])
    n_samples, n_classes = shown.shape
    if np.isnan(shown).any():
        raise ValueError(NO_PROBABILITIES)
    try:
        names = list(map(str, range(n_classes) if class_names is None else class_names))
    except TypeError:
        raise TypeError(f"class_names: must be a sequence of str, got {type(class_names).__name__}") from None
    if len(names) != n_classes:
        raise ValueError(f"class_names: must have one name for each of {n_classes} classes, got {len(names)}")

    axes = _as_axes(ax)
    width = 0.8 / n_classes
    offsets = (np.arange(n_classes) - (n_classes - 1) / 2) * width
    samples = np.arange(n_samples)
    for number, name in enumerate(names):
        colour = f"C{number}"
        if n_classes > MAX_NAMED_COLOURS:
            from matplotlib import colormaps

            colour = colormaps["viridis"](number / (n_classes - 1))
        axes.bar(samples + offsets[number], shown[:, number], width, color=colour, label=name)
    if classes is not None:
        marked = np.flatnonzero(classes.ravel() != IGNORE_INDEX)
        true = classes.ravel()[marked]
        axes.plot(
            marked + offsets[true],
            shown[marked, true] + 0.03,
            linestyle="none",
            marker="v",
            color="black",
            label="true class",
        )
    axes.set(xlabel="sample", ylabel="probability", xlim=(-0.5, n_samples - 0.5), ylim=(0, 1.08))
    if n_samples <= MAX_TICKS:
        axes.set_xticks(samples)
    if n_classes <= MAX_LEGEND:
        # Beside the bars, which may fill the Axes.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    return axes  # type: ignore[no-any-return]


def reliability_diagram(logits: Any, target: Any, n_bins: int = 15, ax: "Axes | None" = None) -> "Axes":
    r"""Draw the accuracy of predictions against their confidence.

    Predictions are sorted into bins by their probability, the confidence. Bars show the accuracy of each
    bin; for calibrated logits, they end on the diagonal.

    Parameters
    ----------
    logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits of C classes, of any dtype that `cross_entropy` takes.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        The true classes; positions with -100 are ignored.
    n_bins : int, default=15
        Number of bins of equal width, from 1 to 1000.
    ax : matplotlib Axes, default=None
        Where to draw; None means a new figure.

    Returns
    -------
    matplotlib Axes
        With bars of the accuracies and of the gaps to the confidences, the diagonal, and the expected
        calibration error in the title. Its only child Axes (``ax.child_axes``), below, shows the number of
        positions in each bin.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `target` or `n_bins` is not integer, or `ax` is not Axes.
    ValueError
        If `target` does not fit, `n_bins` is out of range, all positions are ignored, or a probability is
        NaN.
    IndexError
        If a target is neither a class nor -100.
    ModuleNotFoundError
        If matplotlib is not installed.

    See Also
    --------
    cyce.fit_temperature : The temperature that calibrates logits.
    cyce.Evaluation.plot : The same for logits that are in a file, or arrive in pieces.

    Notes
    -----
    With :math:`n_b` of :math:`n` positions in bin :math:`b`, and their mean confidence and accuracy, the
    expected calibration error is
    :math:`\sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|` [1]_.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import cyce.plotting
    >>> logits = [[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]
    >>> ax = cyce.plotting.reliability_diagram(logits, target=[0, 1])
    >>> ax.get_title()
    'expected calibration error 0.5642'
    """
    result = Evaluator(n_bins=n_bins).update(logits, target).compute()
    if not result.n_positions:
        raise ValueError("target: must have at least one position that is not ignored")
    if result.nan_positions:
        raise ValueError(NO_PROBABILITIES)
    axes = _as_axes(ax)
    _draw_reliability(axes, result)
    return axes  # type: ignore[no-any-return]


def _draw_reliability(axes: Any, result: "Evaluation") -> None:
    """Draw accuracies by confidence, and the number of positions in each bin below."""
    bins, n = result.reliability, len(result.reliability.counts)
    filled = bins.counts > 0
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    every: dict[str, Any] = {"x": bins.edges[:-1], "width": 1 / n, "align": "edge"}
    where = every | {"x": bins.edges[:-1][filled]}
    gap: NDArray[np.float64] = confidence - accuracy
    axes.bar(height=accuracy, color="lightsteelblue", edgecolor="black", label="accuracy", **where)
    axes.bar(height=gap, bottom=accuracy, color="tab:red", alpha=0.4, label="gap to the confidence", **where)
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="calibrated")
    axes.set(
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
        title=f"expected calibration error {result.calibration_error:.4f}",
    )
    axes.legend(loc="best", fontsize="small")
    axes.tick_params(labelbottom=False)
    # The counts, below: the gap of a bin with few positions means little.
    below = axes.inset_axes((0, -0.3, 1, 0.25), sharex=axes)
    below.bar(height=bins.counts, color="grey", edgecolor="black", **every)
    # Logarithmic, because most positions are in a few bins; from 0.5, so that a count of 1 has a height.
    below.set(xlabel="confidence", ylabel="positions", xlim=(0, 1))
    if filled.any():
        below.set(yscale="log", ylim=(0.5, None))


def _draw_histogram(axes: Any, histogram: "Histogram", mean: float, what: str) -> None:
    """Draw how positive values are distributed, and their mean."""
    finite = np.isfinite(histogram.edges)
    edges, weight = histogram.edges[finite], histogram.weight[finite[1:]]
    # What rounds to 0 has no logarithm.
    if len(edges) > 1 and edges[0] == 0:
        edges, weight = edges[1:], weight[1:]
    # The last 30 powers of two: what is below them is next to nothing.
    shown = edges[:-1] >= edges[-1] * 2.0**-30 if len(edges) else edges.astype(bool)
    axes.bar(
        edges[:-1][shown],
        weight[shown],
        np.diff(edges)[shown],
        align="edge",
        color="lightsteelblue",
        edgecolor="black",
    )
    if np.isfinite(mean) and mean > 0:
        axes.axvline(mean, linestyle="--", color="tab:red", label=f"mean {mean:.4g}")
        axes.legend(loc="best", fontsize="small")
    axes.set(xlabel=what, ylabel="positions", title=f"distribution of the {what}")
    if shown.any():
        axes.set_xscale("log")


def _new_figure(width: float) -> Any:
    """Return a figure that is not pyplot's."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise _no_matplotlib(error) from error
    figure = Figure(figsize=(width, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def evaluation(result: "Evaluation") -> "Figure":
    """Draw the reliability of an evaluation, and the distribution of its losses.

    Parameters
    ----------
    result : cyce.Evaluation
        What `cyce.evaluate` or `cyce.Evaluator.compute` returned.

    Returns
    -------
    matplotlib Figure
        With two Axes. It is not one of pyplot's: nothing has to be closed.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.

    See Also
    --------
    cyce.Evaluation.plot : The same.

    Examples
    --------
    >>> import cyce
    >>> result = cyce.evaluate([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], [0, 1])
    >>> len(cyce.plotting.evaluation(result).axes)
    2
    """
    figure = _new_figure(9.5)
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, result)
    _draw_histogram(right, result.loss_histogram, result.bits_per_position * np.log(2), "loss")
    return figure  # type: ignore[no-any-return]


def divergence(result: "Divergence") -> "Figure":
    """Draw the distribution of the divergences of two models.

    Parameters
    ----------
    result : cyce.Divergence
        What `cyce.divergence` returned.

    Returns
    -------
    matplotlib Figure
        It is not one of pyplot's: nothing has to be closed.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.

    See Also
    --------
    cyce.Divergence.plot : The same.

    Examples
    --------
    >>> import cyce
    >>> result = cyce.divergence([[2.0, 0.5, 0.3]], [[2.0, 0.6, 0.1]])
    >>> len(cyce.plotting.divergence(result).axes)
    1
    """
    figure = _new_figure(6)
    _draw_histogram(figure.subplots(), result.kl_histogram, result.kl, "KL(reference || model)")
    return figure  # type: ignore[no-any-return]
