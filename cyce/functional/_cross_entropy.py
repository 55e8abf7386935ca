"""Cross-entropy of logits, and statistics of the same pass."""

from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    arithmetic_dtype,
    as_axis,
    as_logits,
    as_target,
    class_axis,
    position_shape,
)
from cyce._losses import has_gradient
from cyce._signatures import Reduction
from cyce.fused import cross_entropy as fused
from cyce.fused.requests import StatsRequest, new_stats


@overload
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    *,
    reduction: Literal["none"],
    label_smoothing: float = 0.0,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> NDArray[Any]: ...
@overload
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> np.floating[Any] | NDArray[Any]: ...
@has_gradient(fused.cross_entropy)
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> Any:
    r"""Cross-entropy between logits and targets, as `torch.nn.functional.cross_entropy`.

    Softmax, logarithm and negative log-likelihood in one: `input` holds the unnormalised scores of a
    classifier (logits), not probabilities.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits of C classes, float16, bfloat16 (of ml_dtypes), float32 or float64, at 1, N, or N * d1 * ... *
        dk positions. The positions' shape is that of `input` without the axis of the classes. Arrays of any
        strides, read-only arrays, detached CPU tensors of torch and arrays that support DLPack are read
        without a copy; arrays of another byte order are copied. Half precision is computed in float32, a
        block at a time.
    target : array_like
        Either class indices in [0, C) of shape (), (N,) or (N, d1, ..., dk) and any integer dtype,
        or class probabilities of the shape of `input` and a floating point dtype, or a `cyce.SparseTarget`
        with the probabilities of a few classes. Probabilities need not sum to 1.
    weight : array_like of shape (C,), default=None
        A weight for each class, cast to the dtype of the result. None means 1.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    ignore_index : int, default=-100
        Class index of ignored positions: their loss and gradient are 0, even if their logits are NaN. It may
        lie in [0, C). In a sparse target, entries of this index are empty. With class probabilities, it must
        be negative and has no effect.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the positions, "sum" their sum. "mean" divides the sum by the
        sum of the class weights of the targets that are not ignored; with class probabilities and sparse
        targets, by the number of positions that are not ignored.
    label_smoothing : float in [0, 1], default=0.0
        Fraction of every target that is spread evenly over the classes [2]_.
    axis : int, default=None
        The axis of the classes, such as -1 for logits of shape (N, L, C), which are neither transposed nor
        copied. The other axes are the positions, in their order. None means 0 for one dimension, else 1, as
        in torch. This and all further arguments are not in torch.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position, cast to the dtype of the result. A position of weight 2 counts as two
        positions, also in the mean's denominator; one of weight 0 as ignored.
    normalizer : float, default=None
        Denominator of "mean"; positive. None means the one described at `reduction`. To accumulate gradients
        over micro-batches, pass the denominator of the whole batch to each: the sum, over the positions that
        are not ignored, of the target's class weight times the sample weight; for class probabilities and
        sparse targets, of the sample weight. Without weights, it is the number of these positions. A
        micro-batch whose positions are all ignored then has a loss of 0.
    empty : {"nan", "zero"}, default="nan"
        The mean of no positions, that is, with a denominator of 0: NaN as in torch, or 0 with gradient 0.
    z_loss : float, default=0.0
        Coefficient :math:`\zeta` of the squared log-sum-exp, which is added to the loss of each position to
        keep the logits from drifting ([3]_; `lse_square_scale` of [4]_).
    softcap : float, default=None
        Bound :math:`\kappa` of the logits, which are replaced by :math:`\kappa \tanh(x / \kappa)` ([4]_,
        [5]_); positive. A logit of -inf becomes :math:`-\kappa` and no longer masks its class.
    temperature : float, default=1.0
        Divisor of the logits, after the softcap ([6]_); positive.
    class_mask : array_like of bool, default=None
        False where a position does not have a class, such as an action that is not allowed; must broadcast to
        the shape of `input`. The class then has probability and gradient 0, whatever its logit, and label
        smoothing spreads over the classes that are left.

    Returns
    -------
    scalar or ndarray
        In float64 if `input` is, else in float32: a NumPy scalar, or an array of the positions' shape with
        ``reduction="none"``. The mean of no positions is NaN, or 0 with ``empty="zero"``.

    Raises
    ------
    TypeError
        If `input` is not of the dtypes above, or is a masked array; if `target` is neither class indices
        nor class probabilities nor a SparseTarget, such as integers in the shape of `input`; if another
        argument is not numeric.
    ValueError
        If shapes do not fit, `reduction` is invalid, `label_smoothing` lies outside [0, 1],
        `ignore_index` is not negative with class probabilities, `normalizer`, `softcap` or `temperature`
        is not positive and finite, `normalizer` is given without ``reduction="mean"``, or `class_mask` leaves
        out the class of a target.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`, or `input` has no such `axis`.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    Warnings
    --------
    Without `axis`, the second axis has the classes. Logits of shape (N, H, W, C) need ``axis=-1``. If C
    equals H and W, the shapes fit without it, and the result is silently wrong.

    See Also
    --------
    cyce.CrossEntropyLoss : The same loss as an object that holds the settings.
    cyce.value_and_grad : Loss and gradient in one pass.
    cross_entropy_stats : Losses, predictions, ranks and more, in one pass.

    Notes
    -----
    With logits :math:`x`, class weights :math:`w`, smoothing :math:`\varepsilon` and the target
    :math:`y` of one position, :math:`s_c = x_c - \log \sum_j e^{x_j}` and :math:`p_c = e^{s_c}`:

    .. math::
        \ell = -(1 - \varepsilon) w_y s_y - \frac{\varepsilon}{C} \sum_c w_c s_c, \qquad
        \frac{\partial \ell}{\partial x_c} = (1 - \varepsilon) w_y (p_c - [c = y])
            + \frac{\varepsilon}{C} \Bigl(p_c \sum_j w_j - w_c\Bigr)

    With class probabilities :math:`q` and
    :math:`a_c = w_c ((1 - \varepsilon) q_c + \varepsilon / C)`:

    .. math::
        \ell = -\sum_c a_c s_c, \qquad
        \frac{\partial \ell}{\partial x_c} = p_c \sum_j a_j - a_c

    With :math:`L = \log \sum_j e^{x_j}`, a z-loss adds :math:`\zeta L^2` to :math:`\ell` and
    :math:`2 \zeta L p_c` to its gradient; class weights do not scale it. The sample weight multiplies
    the sum. Softcap and temperature replace :math:`x` by
    :math:`x' = \kappa \tanh(x / \kappa) / T`, rounded to the dtype of the result, and multiply the gradient
    by :math:`\partial x'_c / \partial x_c = (1 - \tanh^2(x_c / \kappa)) / T`. "mean" divides by
    :math:`\sum s_n w_{y_n}` over the positions that are not ignored, with sample weights :math:`s`; with
    class probabilities, by :math:`\sum s_n`. With a class mask, sums are over the classes that are left, and
    :math:`C` is their number.

    Rows are computed as :math:`(m - x_y) + \operatorname{log1p}(r)` with the maximum :math:`m` and
    :math:`r = \sum e^{x_j - m}` over the other classes, so that nothing cancels and small losses
    keep their precision. Results are the same bits for any number of threads.

    Differs from torch: losses of half precision are float32; `target` may have any integer dtype; tiny
    losses are not rounded to 0; ignored positions do not contribute NaN; a class of probability 0
    contributes 0 even if its logit is -inf; errors are ValueError or TypeError in place of RuntimeError.

    References
    ----------
    .. [1] `torch.nn.CrossEntropyLoss
       <https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html>`_
    .. [2] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016,
       arXiv:1512.00567.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5,
       arXiv:2204.02311.
    .. [4] P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024,
       arXiv:2410.10989.
    .. [5] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2,
       arXiv:2408.00118.
    .. [6] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2,
       arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> print(F.cross_entropy(logits, [0, 2], reduction="none").round(4))
    [0.3406 0.1748]
    >>> print(F.cross_entropy(logits, [0, 2]).round(4))
    0.2577

    Class probabilities instead of indices:

    >>> print(F.cross_entropy(logits, [[0.8, 0.1, 0.1], [0.0, 0.0, 1.0]]).round(4))
    0.4177

    A confident classifier; torch returns 0:

    >>> print(F.cross_entropy(np.float32([[20, 0, 0]]), [0]))
    4.1223074e-09

    Sequences with the classes last, as in language models:

    >>> sequences = np.zeros((2, 5, 7))
    >>> print(F.cross_entropy(sequences, np.ones((2, 5), int), axis=-1).round(4))
    1.9459
    """
    return fused.cross_entropy(
        input,
        target,
        weight,
        size_average,
        ignore_index,
        reduce,
        reduction,
        label_smoothing,
        axis=axis,
        sample_weight=sample_weight,
        normalizer=normalizer,
        empty=empty,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
    )[0]


class CrossEntropyMeans(NamedTuple):
    """Means of `CrossEntropyStats` over the positions that are not ignored; NaN if all are ignored."""

    loss: Any
    """The same as ``cross_entropy(..., reduction="mean")``."""
    lse: Any
    """Mean of the log-sum-exp."""
    correct: Any
    """The accuracy."""
    probability: Any
    """Mean probability of the target."""
    entropy: Any
    """Mean entropy of the softmax."""
    rank: Any
    """Mean rank of the target."""


class CrossEntropyStats(NamedTuple):
    """Result of `cross_entropy_stats`: arrays of the positions' shape, and their means."""

    loss: NDArray[Any]
    """The same as ``cross_entropy(..., reduction="none")``; 0 at ignored positions."""
    lse: NDArray[Any]
    """Log-sum-exp of the logits; 0 at ignored positions."""
    prediction: NDArray[np.int64]
    """Class of the highest logit, the first of equals; -1 at ignored positions."""
    correct: NDArray[np.bool_]
    """Whether the prediction is the target."""
    probability: NDArray[Any]
    """Softmax of the target's class; 0 at ignored positions."""
    entropy: NDArray[Any]
    """Entropy of the softmax, in nats; 0 at ignored positions."""
    rank: NDArray[np.int64]
    """Number of classes that a stable sort by descending logit puts before the target: the target is among
    the top k if ``0 <= rank < k``. -1 at ignored positions."""
    means: CrossEntropyMeans
    """Means over the positions that are not ignored."""


def cross_entropy_stats(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> CrossEntropyStats:
    r"""Cross-entropy of each position, predictions, ranks and more, in one pass over the logits.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices, as in `cross_entropy`.
    weight : array_like of shape (C,), default=None
        A weight for each class; applies to the losses only.
    ignore_index : int, default=-100
        Class index of ignored positions.
    label_smoothing : float in [0, 1], default=0.0
        As in `cross_entropy`; applies to the losses only.
    axis : int, default=None
        The axis of the classes, as in `cross_entropy`.
    z_loss : float, default=0.0
        As in `cross_entropy`; applies to the losses only.
    softcap : float, default=None
        As in `cross_entropy`; applies to all statistics.
    temperature : float, default=1.0
        As in `cross_entropy`; applies to all statistics.
    class_mask : array_like of bool, default=None
        As in `cross_entropy`; applies to all statistics.

    Returns
    -------
    CrossEntropyStats
        Named tuple of arrays of the positions' shape, `loss`, `lse`, `prediction`, `correct`,
        `probability`, `entropy` and `rank`, and the named tuple of their `means`, without `prediction`.
        For weighted means, use ``np.average(stats.entropy, weights=...)``.

    Raises
    ------
    TypeError
        If `target` is not integer, and as `cross_entropy`.
    ValueError
        As `cross_entropy`.
    IndexError
        As `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss alone.
    linear_cross_entropy_stats : The same from hidden states, without the logits.

    Notes
    -----
    With :math:`s_c = x_c - \log \sum_j e^{x_j}` and :math:`p_c = e^{s_c}`, the entropy is
    :math:`-\sum_c p_c s_c`. If a logit is NaN or the highest is infinite, loss, probability and entropy
    are NaN. NaN counts as the highest logit, as in `numpy.argmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [1.0, 2.0, 3.0]])
    >>> stats = F.cross_entropy_stats(logits, [0, 1, -100])
    >>> stats.prediction
    array([ 0,  2, -1])
    >>> stats.rank
    array([ 0,  1, -1])
    >>> print(stats.means.correct, stats.means.loss.round(4))
    0.5 1.4077
    """
    logits = as_logits(input)
    axis = class_axis(logits) if axis is None else as_axis(axis, logits.ndim, "axis")
    indices, _ = as_target(target, logits, axis)
    if indices is None:
        raise TypeError(
            f"target: must be class indices, got class probabilities; pass target.argmax(axis={axis})"
        )
    request = new_stats(position_shape(logits, axis), arithmetic_dtype(logits.dtype))
    mean_loss, _ = fused.cross_entropy(
        logits,
        indices,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
        stats=request,
    )
    return finished_stats(request, mean_loss)


def finished_stats(request: StatsRequest, mean_loss: Any) -> CrossEntropyStats:
    """Return the statistics and their means."""
    loss, lse, probability, entropy, prediction, rank = request[:6]
    correct = np.asarray(rank == 0)
    counts = rank >= 0
    with np.errstate(all="ignore"):
        means = (
            loss.dtype.type(values.sum(where=counts, dtype=np.float64) / np.count_nonzero(counts))
            for values in (lse, correct, probability, entropy, rank)
        )
        return CrossEntropyStats(
            loss, lse, prediction, correct, probability, entropy, rank, CrossEntropyMeans(mean_loss, *means)
        )
