"""torch's loss functions, as in `torch.nn.functional`."""

import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cyce.threads import budget as _threads
from cyce._arguments import (
    as_array,
    as_axis,
    as_extensions,
    as_factor,
    as_flag,
    as_floating,
    as_grad_output,
    as_ignore_index,
    as_indices,
    as_label_smoothing,
    as_logits,
    as_operand,
    as_out,
    as_reduction,
    as_target,
    as_weight,
    check_probabilities,
    check_same_size,
    class_axis,
    common_shape,
    describe_bad_target,
    implicit_axis,
    position_shape,
    warn,
)
from cyce.kernels.arguments import CrossEntropyArguments, ElementwiseArguments
from cyce.kernels.dispatch import elementwise, kernels
from cyce._linear import LinearCrossEntropyOptions
from cyce._linear import evaluate as _linear_cross_entropy
from cyce._losses import GradientRequest, StatsRequest, has_gradient

__all__ = [
    "CrossEntropyMeans",
    "CrossEntropyStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_stats",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "one_hot",
    "softmax",
    "softmin",
]


def _empty_like(array: NDArray[Any]) -> NDArray[Any]:
    """Return a new array with the axes of an array in the same order in memory; C order if that has none."""
    return np.empty_like(array, order="C" if 0 in array.strides else "K")


def _gradient_arrays(
    gradient: GradientRequest,
    like: NDArray[Any],
    loss_shape: tuple[int, ...],
    reduction: str,
    read: Mapping[str, NDArray[Any] | None],
) -> tuple[float, NDArray[Any] | None, NDArray[Any]]:
    """Return the upstream gradient, as a number and as an array, and where the gradient goes.

    read: what is read while that is written, besides the input, which it is like.
    """
    upstream, grad_output = as_grad_output(gradient.grad_output, like.dtype, loss_shape, reduction)
    if gradient.out is None:
        return upstream, grad_output, _empty_like(like)
    return upstream, grad_output, as_out(gradient.out, like, {**read, "grad_output": grad_output})


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient: GradientRequest | StatsRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient or the arrays of `CrossEntropyStats`."""
    reduction = as_reduction(reduction, size_average, reduce)
    logits = as_logits(input, target=target)
    dtype = logits.dtype
    axis = class_axis(logits) if axis is None else as_axis(axis, logits.ndim, "axis")
    indices, probabilities = as_target(target, logits, axis)
    # What is left at its default is not looked at further: small calls are as long as their checks. Of
    # what may be anything, even an array, the type is asked first.
    if weight is not None:
        weight = as_weight(weight, logits, axis)
    if type(ignore_index) is not int or ignore_index != -100:
        ignore_index = as_ignore_index(ignore_index)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = as_label_smoothing(label_smoothing)
    if probabilities is not None and ignore_index >= 0:
        raise ValueError(
            "ignore_index is not supported for floating point target: target is class probabilities, "
            f"ignore_index must be negative; got {ignore_index}"
        )
    extensions = None
    if not (
        sample_weight is normalizer is softcap is None
        and (type(empty) is str and empty == "nan")
        and (type(z_loss) is float and z_loss == 0.0)
        and (type(temperature) is float and temperature == 1.0)
    ):
        extensions = as_extensions(
            sample_weight, normalizer, empty, z_loss, softcap, temperature, logits, axis, reduction
        )
    upstream, grad_output, grad_out = 1.0, None, None
    loss_out, stats_out = None, None
    if reduction == "none":
        loss_out = np.empty(position_shape(logits, axis), dtype)
    if isinstance(gradient, StatsRequest):
        loss_out, *stats_out = gradient
    elif gradient is not None:
        read = {
            "target": indices if probabilities is None else probabilities,
            "weight": weight,
            "sample_weight": None if extensions is None else extensions.sample_weight,
        }
        upstream, grad_output, grad_out = _gradient_arrays(
            gradient, logits, position_shape(logits, axis), reduction, read
        )
    try:
        call = CrossEntropyArguments()
        call.logits = logits
        call.axis = axis
        call.target = indices
        call.num_threads = _threads.budget()
        if reduction == "mean":
            call.mean = True
        if reduction == "none" or stats_out is not None:
            call.loss_out = loss_out
        if probabilities is not None:
            call.probabilities = probabilities
        if weight is not None:
            call.weight = weight
        if ignore_index != -100:
            call.ignore_index = ignore_index
        if label_smoothing != 0.0:
            call.label_smoothing = label_smoothing
        if grad_out is not None:
            call.grad_out = grad_out
            call.grad_output = grad_output
            call.upstream = upstream
        if extensions is not None:
            (call.sample_weight, call.normalizer, call.zero_if_empty, call.z_loss, call.softcap, call.temperature) = extensions
        if stats_out is not None:
            call.stats_out = stats_out
        value = kernels.cross_entropy(call)
    except IndexError as error:
        if indices is None:
            raise
        raise IndexError(
            describe_bad_target(error.args[0], indices, logits.shape[axis], ignore_index)
        ) from None
    return loss_out if reduction == "none" else dtype.type(value), grad_out


@has_gradient(_cross_entropy)
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Any:
    r"""Cross-entropy between logits and targets, as `torch.nn.functional.cross_entropy`.

    Softmax, logarithm and negative log-likelihood in one: `input` is the unnormalised scores of a
    classifier (logits), not probabilities.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits of C classes, float32 or float64, at each position: one, N, or N * d1 * ... * dk of
        them. Any strides and byte order, read-only, a detached CPU tensor of torch: neither copied
        nor changed (another byte order is copied).
    target : array_like
        Either class indices in [0, C) of shape (), (N,) or (N, d1, ..., dk) and any integer dtype,
        or class probabilities of the shape of `input` and a floating point dtype. Probabilities need
        not sum to 1.
    weight : array_like of shape (C,), default=None
        A weight for each class, cast to the dtype of `input`. None stands for 1.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    ignore_index : int, default=-100
        Class index of the positions that are left out: loss and gradient there are 0, whatever the
        logits. It may lie in [0, C). Only for class indices.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the positions, "sum" their sum. "mean" divides the sum by the
        summed weights of the target classes that are not ignored; of class probabilities, by the
        number of positions.
    label_smoothing : float in [0, 1], default=0.0
        Part of every target that is spread evenly over the classes [2]_.
    axis : int, default=None
        The axis of the classes, such as -1 for logits of shape (N, L, C), which are neither transposed
        nor copied; the positions are the other axes, in their order. None stands for torch's: 1, or 0 if
        there is but one. Like all that follow, torch has not got it.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position, cast to the dtype of `input`. A weight of 2 counts as two such
        positions, in the mean's denominator, too; a weight of 0 as an ignored one.
    normalizer : float, default=None
        What "mean" divides the sum by instead, such as the count of all micro-batches over which a
        gradient is accumulated; positive.
    empty : {"nan", "zero"}, default="nan"
        The mean of nothing: where what "mean" divides by is 0, NaN as in torch, or 0 with a gradient of 0.
    z_loss : float, default=0.0
        Coefficient :math:`\zeta` of the squared log-sum-exp that is added to the loss of each position,
        which keeps the logits from drifting ([3]_; `lse_square_scale` of [4]_).
    softcap : float, default=None
        Bound :math:`\kappa` of the logits, which are replaced by :math:`\kappa \tanh(x / \kappa)` ([4]_,
        [5]_); positive. It bounds -inf, too, which then masks nothing.
    temperature : float, default=1.0
        What the logits, after the softcap, are divided by ([6]_); positive.

    Returns
    -------
    scalar or ndarray
        Of the dtype of `input`: a NumPy scalar, or an array of the positions' shape with
        ``reduction="none"``. The mean of no positions is NaN.

    Raises
    ------
    TypeError
        If `input` is not floating point (or neither float32 nor float64), or a masked array; if
        `target` is neither class indices nor class probabilities, such as integers in the shape of
        `input`; if another argument is not numeric.
    ValueError
        If shapes do not fit, `reduction` is none of the three, `label_smoothing` lies outside
        [0, 1], `ignore_index` is not negative with class probabilities, `normalizer`, `softcap` or
        `temperature` is not positive and finite, or there is a `normalizer` without "mean".
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`, or `axis` is no axis of `input`.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    Warnings
    --------
    Without `axis`, the classes are the second axis. Logits (N, H, W, C), with the classes last, need
    ``axis=-1``: where C equals H and W, no shape tells, and another loss is computed.

    See Also
    --------
    cyce.CrossEntropyLoss : The same as an object that holds the settings.
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

    and with class probabilities :math:`q`, where
    :math:`a_c = w_c ((1 - \varepsilon) q_c + \varepsilon / C)`:

    .. math::
        \ell = -\sum_c a_c s_c, \qquad
        \frac{\partial \ell}{\partial x_c} = p_c \sum_j a_j - a_c

    A z-loss adds :math:`\zeta L^2` to :math:`\ell`, where :math:`L = \log \sum_j e^{x_j}`, and
    :math:`2 \zeta L p_c` to its gradient; class weights do not scale it. The sample weight multiplies
    :math:`\ell` with all of this. Softcap and temperature replace :math:`x` by
    :math:`x' = \kappa \tanh(x / \kappa) / T`, rounded to the dtype of `input`, and multiply the gradient by
    :math:`\partial x'_c / \partial x_c = (1 - \tanh^2(x_c / \kappa)) / T`. "mean" divides by
    :math:`\sum s_n w_{y_n}` over the positions that are not ignored, where :math:`s` are the sample
    weights; of class probabilities, by :math:`\sum s_n`.

    Rows are computed as :math:`(m - x_y) + \operatorname{log1p}(r)` with the maximum :math:`m` and
    :math:`r = \sum e^{x_j - m}` over the other classes, so that nothing cancels and small losses
    keep their precision. Results are the same bits for any number of threads.

    Differs from torch: every integer dtype of `target` is taken; tiny losses are not rounded to 0;
    ignored positions do not leak NaN; a class of probability 0 adds nothing even where its logit is
    -inf; errors are ValueError or TypeError in place of RuntimeError.

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

    A confident classifier; in float32, torch returns 0:

    >>> print(F.cross_entropy(np.float32([[20, 0, 0]]), [0]))
    4.1223074e-09

    Sequences with the classes last, as language models have them:

    >>> sequences = np.zeros((2, 5, 7))
    >>> print(F.cross_entropy(sequences, np.ones((2, 5), int), axis=-1).round(4))
    1.9459
    """
    return _cross_entropy(
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
    )[0]


@has_gradient(_linear_cross_entropy)
def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Any:
    r"""Cross-entropy of the logits of a linear layer, as `torch.nn.functional.linear_cross_entropy`.

    The same as ``cross_entropy(input @ linear_weight.T + linear_bias, target)``, without ever having these
    logits in memory as a whole: for the last layer of language models, whose logits are much larger
    than all the rest.

    Parameters
    ----------
    input : array_like of shape (H,) or (N, H)
        Hidden states of H features, float32 or float64.
    linear_weight : array_like of shape (C, H) or (C, d1, ..., dk, H)
        Weights of the layer for C classes, at one position of each row of `input` or at d1 * ... * dk of
        them; of the dtype of `input`. Where a row counts at some of its positions, the weights of
        all of them take part in the products: NaN or infinite weights of a position that is ignored reach the
        gradient of `input`.
    target : array_like
        As of `cross_entropy` for logits of shape (C,), (N, C) or (N, C, d1, ..., dk): class indices of
        shape (), (N,) or (N, d1, ..., dk), or class probabilities of the shape of the logits.
    linear_bias : array_like of shape (C,) or (C, d1, ..., dk), default=None
        What the layer adds to its logits; of the dtype of `input`.
    weight : array_like of shape (C,), default=None
        A weight for each class, cast to the dtype of `input`.
    reduction : {"mean", "sum", "none"}, default="mean"
        As of `cross_entropy`.
    ignore_index : int, default=None
        Class index of the positions that are left out, of class indices only. None stands for -100. Rows of
        which all positions are left out take no part in any product.
    label_smoothing : float in [0, 1], default=0.0
        As of `cross_entropy`.
    options : LinearCrossEntropyOptions, default=None
        How many rows go through memory at a time; None stands for ``LinearCrossEntropyOptions()``, where
        torch has all logits in memory.
    sample_weight : array_like of the positions' shape, default=None
        As of `cross_entropy`. Torch has neither this, nor what follows.
    normalizer : float, default=None
        As of `cross_entropy`.
    empty : {"nan", "zero"}, default="nan"
        As of `cross_entropy`.
    z_loss : float, default=0.0
        As of `cross_entropy`.
    softcap : float, default=None
        As of `cross_entropy`.
    temperature : float, default=1.0
        As of `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As of `cross_entropy`. `cyce.value_and_grad` returns, besides, the tuple of the gradients of
        `input`, of `linear_weight` and, if it is given, of `linear_bias`, and takes such a tuple as `out`.

    Raises
    ------
    TypeError
        If `linear_weight` or `linear_bias` is not of the dtype of `input`, or as `cross_entropy`.
    ValueError
        If shapes do not fit, if `ignore_index` is given with class probabilities, or as `cross_entropy`.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`.

    See Also
    --------
    cross_entropy : The formula, and what the arguments do.
    cyce.LinearCrossEntropyLoss : The same as an object that holds the layer's weights and the settings.

    Notes
    -----
    With hidden states :math:`X`, weights :math:`W`, bias :math:`b` and the gradient :math:`G` of
    `cross_entropy` with respect to the logits :math:`X W^T + b`, the gradients are

    .. math::
        \frac{\partial \ell}{\partial X} = G W, \qquad
        \frac{\partial \ell}{\partial W} = G^T X, \qquad
        \frac{\partial \ell}{\partial b} = \sum_n G_n

    all of them in one pass over chunks of rows, of which one buffer holds the logits and then :math:`G` [1]_.
    Beyond inputs and gradients, that buffer is nearly all the memory that it takes. Where rows are left
    out, those of the chunk that are not are copied; from 13 chunks on, half the memory of the weights keeps
    what rounding loses of their gradient. Matrices that BLAS cannot read (gaps along both axes, negative or
    zero strides) are copied first; arrays of `out` that are not C-contiguous are written at the end.

    The products are those of NumPy's BLAS. Calls that are large enough for several threads share them among
    those that `cyce.set_num_threads` allows, and hold BLAS to one thread each meanwhile, in the whole
    process. Results are the same bits for any number of threads, as far as BLAS gives the same bits
    for the same product; another BLAS, or another CPU, rounds otherwise.

    References
    ----------
    .. [1] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> hidden = np.array([[1.0, -1.0], [0.5, 2.0]])
    >>> vocabulary = np.array([[0.1, 0.2], [1.0, -1.0], [-0.3, 0.4]])
    >>> print(F.linear_cross_entropy(hidden, vocabulary, [1, 2]).round(4))
    0.4169
    >>> print(F.cross_entropy(hidden @ vocabulary.T, [1, 2]).round(4))
    0.4169
    >>> loss, (of_hidden, of_vocabulary) = cyce.value_and_grad(F.linear_cross_entropy)(
    ...     hidden, vocabulary, [1, 2]
    ... )
    >>> print(of_vocabulary.round(4))
    [[ 0.1572  0.3716]
     [-0.0647  0.1399]
     [-0.0926 -0.5115]]
    """
    return _linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
        sample_weight=sample_weight,
        normalizer=normalizer,
        empty=empty,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
    )[0]


class CrossEntropyMeans(NamedTuple):
    """Means of `CrossEntropyStats` over the positions that are not ignored; NaN if there are none."""

    loss: Any
    """As ``cross_entropy(..., reduction="mean")``."""
    lse: Any
    """Of the log-sum-exp."""
    correct: Any
    """The accuracy."""
    probability: Any
    """Of the target."""
    entropy: Any
    """Of the predictions."""
    rank: Any
    """Of the target."""


class CrossEntropyStats(NamedTuple):
    """What `cross_entropy_stats` returns: arrays of the positions' shape, and their means."""

    loss: NDArray[Any]
    """As ``cross_entropy(..., reduction="none")``; 0 of ignored positions."""
    lse: NDArray[Any]
    """Log-sum-exp of the logits; 0 of ignored positions."""
    prediction: NDArray[np.int64]
    """Class of the highest logit, the first of equals; -1 of ignored positions."""
    correct: NDArray[np.bool_]
    """Whether the prediction is the target."""
    probability: NDArray[Any]
    """Softmax of the target's class; 0 of ignored positions."""
    entropy: NDArray[Any]
    """Entropy of the softmax, in nats; 0 of ignored positions."""
    rank: NDArray[np.int64]
    """Number of classes before the target's where logits descend, equal ones in order: the target is
    among the top k where ``0 <= rank < k``. -1 of ignored positions."""
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
) -> CrossEntropyStats:
    r"""Cross-entropy of each position with what the same pass over the logits can tell besides.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices, as in `cross_entropy`.
    weight : array_like of shape (C,), default=None
        A weight for each class, of the losses only.
    ignore_index : int, default=-100
        Class index of the positions that are left out.
    label_smoothing : float in [0, 1], default=0.0
        As in `cross_entropy`, of the losses only.
    axis : int, default=None
        The axis of the classes, as in `cross_entropy`.
    z_loss : float, default=0.0
        As in `cross_entropy`, of the losses only.
    softcap : float, default=None
        As in `cross_entropy`; all statistics are those of the capped logits.
    temperature : float, default=1.0
        As in `cross_entropy`; all statistics are those of the divided logits.

    Returns
    -------
    CrossEntropyStats
        Named tuple of arrays of the positions' shape: `loss`, `lse`, `prediction`, `correct`,
        `probability`, `entropy`, `rank`, and their `means`, a named tuple, too, without `prediction`.
        There are no sample weights: ``np.average(stats.entropy, weights=...)`` takes them.

    Raises
    ------
    TypeError
        If `target` is not integer, or as `cross_entropy`.
    ValueError
        As `cross_entropy`.
    IndexError
        As `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss alone.

    Notes
    -----
    With :math:`s_c = x_c - \log \sum_j e^{x_j}` and :math:`p_c = e^{s_c}`, the entropy is
    :math:`-\sum_c p_c s_c`. Where a logit is NaN or the highest is infinite, loss, probability and
    entropy are NaN, and a NaN is the highest logit, as for `numpy.argmax`.

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
            "target: class indices are needed, got class probabilities, which are not right or wrong; pass "
            f"target.argmax(axis={axis})"
        )
    positions = position_shape(logits, axis)
    loss, lse, probability, entropy = (np.zeros(positions, logits.dtype) for _ in range(4))
    prediction, rank = (np.full(positions, -1, np.int64) for _ in range(2))
    mean_loss, _ = _cross_entropy(
        logits,
        indices,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        gradient=StatsRequest(loss, lse, probability, entropy, prediction, rank),
    )
    correct = np.asarray(rank == 0)
    counts = rank >= 0
    with np.errstate(all="ignore"):
        means = (
            logits.dtype.type(values.sum(where=counts, dtype=np.float64) / np.count_nonzero(counts))
            for values in (lse, correct, probability, entropy, rank)
        )
        return CrossEntropyStats(
            loss, lse, prediction, correct, probability, entropy, rank, CrossEntropyMeans(mean_loss, *means)
        )


def _nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient."""
    reduction = as_reduction(reduction, size_average, reduce)
    log_probabilities = as_logits(input, "log-probabilities", target=target)
    dtype, axis = log_probabilities.dtype, class_axis(log_probabilities)
    n_classes = log_probabilities.shape[axis]
    indices = as_indices(target, log_probabilities, axis)
    weight = as_weight(weight, log_probabilities, axis)
    ignore_index = as_ignore_index(ignore_index)
    positions = position_shape(log_probabilities, axis)
    upstream, grad_output, grad_out = 1.0, None, None
    if gradient is not None:
        read = {"target": indices, "weight": weight}
        upstream, grad_output, grad_out = _gradient_arrays(
            gradient, log_probabilities, positions, reduction, read
        )
    # A copy: what is checked here is what is used below.
    classes = np.array(indices).reshape(positions)
    counts = classes != ignore_index
    bad = np.flatnonzero(counts & ((classes < 0) | (classes >= n_classes)))
    if bad.size:
        raise IndexError(describe_bad_target(int(bad[0]), indices, n_classes, ignore_index))
    classes = np.where(counts, classes, 0).astype(np.intp)
    with np.errstate(all="ignore"):
        if n_classes == 0:
            masses = losses = np.zeros(positions, dtype)
        else:
            at = np.expand_dims(classes, axis)
            masses = np.where(counts, dtype.type(1) if weight is None else weight[classes], dtype.type(0))
            picked = np.take_along_axis(log_probabilities, at, axis).reshape(positions)
            # + 0: a perfect row is +0.0
            # 0 of weight 0, even where that class is impossible, as in cross_entropy
            nothing = ~counts | ((masses == 0) & (picked == -np.inf))
            losses = np.where(nothing, dtype.type(0), -masses * picked) + dtype.type(0)
        denominator = masses.sum(dtype=np.float64) if reduction == "mean" else np.float64(1)
        loss = losses
        if reduction != "none":
            loss = dtype.type(losses.sum(dtype=np.float64) / denominator)
        if grad_out is not None:
            scale = (upstream if grad_output is None else grad_output) / denominator
            grad_out[...] = 0
            if n_classes:
                slopes = np.where(counts, -masses * scale, 0).astype(dtype)
                np.put_along_axis(grad_out, at, np.expand_dims(slopes, axis), axis)
    return loss, grad_out


@has_gradient(_nll_loss)
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    r"""Negative log-likelihood of class indices, as `torch.nn.functional.nll_loss`.

    Takes log-probabilities, such as those of `log_softmax`. For logits, use `cross_entropy`, which is
    faster and the same.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Log-probabilities of C classes, float32 or float64.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices in [0, C), of any integer dtype.
    weight : array_like of shape (C,), default=None
        A weight for each class.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    ignore_index : int, default=-100
        Class index of the positions that are left out.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        As in `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        Of the dtype of `input`: a NumPy scalar, or an array of the positions' shape with
        ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` is not floating point, or `target` not integer.
    ValueError
        If shapes do not fit, or `reduction` is none of the three.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`.

    See Also
    --------
    cross_entropy : The same for logits.

    Notes
    -----
    :math:`\ell = -w_y x_y` and :math:`\partial \ell / \partial x_c = -w_y [c = y]`; the mean divides by
    the sum of the :math:`w_y` that are not ignored.

    Examples
    --------
    >>> import cyce.functional as F
    >>> logits = [[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]
    >>> print(F.nll_loss(F.log_softmax(logits, dim=1), [0, 2]).round(4))
    0.2577
    """
    return _nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)[0]


def _of_elements(
    kernel: Callable[..., float],
    input: NDArray[Any],
    operands: Mapping[str, NDArray[Any] | None],
    flags: tuple[bool, ...],
    shape: tuple[int, ...],
    reduction: str,
    gradient: GradientRequest | None,
) -> tuple[Any, Any]:
    """Apply one of the kernels that take the input and its operands element by element.

    shape: what all of these are broadcast to, the input, too.
    """
    divisor = 1
    if reduction == "mean":
        divisor = math.prod(shape)
    elif reduction == "batchmean" and input.ndim:
        divisor = input.shape[0]
    upstream, grad_output, grad_out = 1.0, None, None
    if gradient is not None:
        upstream, grad_output, grad_out = _gradient_arrays(gradient, input, shape, reduction, operands)
    is_broadcast = input.shape != shape
    full_grad, loss_out = grad_out, None
    if grad_out is not None and is_broadcast:
        full_grad = np.empty(shape, input.dtype)
    if reduction == "none":
        loss_out = np.empty(shape, input.dtype) if is_broadcast else np.empty_like(input)
    laid_out = _in_memory_order(input, shape, [*operands.values(), loss_out, full_grad, grad_output])
    n_operands = 1 + len(operands)
    call = ElementwiseArguments()
    call.input = laid_out[0]
    for name, operand in zip(operands, laid_out[1:n_operands], strict=True):
        setattr(call, name, operand)
    call.loss_out, call.grad_out, call.grad_output = laid_out[n_operands:]
    call.upstream, call.divisor, call.num_threads = upstream, divisor, _threads.budget()
    value = kernel(call)
    if grad_out is not None and full_grad is not None and is_broadcast:
        n_new = len(shape) - input.ndim
        repeated = tuple(i for i in range(len(shape)) if i < n_new or input.shape[i - n_new] != shape[i])
        grad_out[...] = full_grad.sum(axis=repeated, dtype=np.float64).reshape(input.shape)
    return input.dtype.type(value) if loss_out is None else loss_out, grad_out


def _in_memory_order(
    input: NDArray[Any], shape: tuple[int, ...], others: list[NDArray[Any] | None]
) -> list[NDArray[Any] | None]:
    """Return views of all in one shape, their axes in the order in which `input` lies in memory."""
    views = [
        array if array is None or array.shape == shape else np.broadcast_to(array, shape)
        for array in (input, *others)
    ]
    if input.flags.c_contiguous:
        return views
    strides = np.broadcast_to(input, shape).strides
    order = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    return [None if view is None else view.transpose(order) for view in views]


def _binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient."""
    reduction = as_reduction(reduction, size_average, reduce)
    logits = as_floating(input)
    targets = as_operand(target, "target", logits.dtype)
    check_same_size(targets, logits, "Target size ({target}) must be the same as input size ({input})")
    operands = {
        "target": targets,
        "weight": as_factor(weight, "weight", logits),
        "pos_weight": as_factor(pos_weight, "pos_weight", logits),
    }
    kernel = elementwise.binary_cross_entropy_with_logits
    return _of_elements(kernel, logits, operands, (), logits.shape, reduction, gradient)


@has_gradient(_binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    r"""Binary cross-entropy of logits, as `torch.nn.functional.binary_cross_entropy_with_logits`.

    For questions that are answered yes or no, each by itself: one logit per sample (binary
    classification), or one per sample and label (multi-label classification). Where exactly one of
    several classes is right, use `cross_entropy`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float32 or float64: how much speaks for yes.
    target : array_like of the shape of `input`
        1 for yes, 0 for no, or probabilities of yes, of any real dtype, bool included.
    weight : array_like, default=None
        Weights of the elements; can be broadcast to the shape of `input`.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum, "mean" divides that by their number.
    pos_weight : array_like, default=None
        What the losses of yes are multiplied by, such as the ratio of no to yes in unbalanced data; can
        be broadcast to the shape of `input`: one number per label is of shape (n_labels,).

    Returns
    -------
    scalar or ndarray
        Of the dtype of `input`: a NumPy scalar, or an array of its shape with ``reduction="none"``.
        The mean of nothing is NaN.

    Raises
    ------
    TypeError
        If `input` is not floating point (or neither float32 nor float64), or another argument is not
        numeric.
    ValueError
        If `target` has another shape than `input`, weights cannot be broadcast to that, or `reduction`
        is none of the three.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.BCEWithLogitsLoss : The same as an object that holds the settings.
    cross_entropy : One of several classes.
    binary_cross_entropy : The same for probabilities; loses what these round away.

    Notes
    -----
    With logit :math:`x`, target :math:`y`, weight :math:`w`, positive weight :math:`p` and the logistic
    function :math:`\sigma`:

    .. math::
        \ell = w \bigl( (1 - y) \log(1 + e^x) + p y \log(1 + e^{-x}) \bigr), \qquad
        \frac{\partial \ell}{\partial x} = w \bigl( (1 - y) \sigma(x) - p y \sigma(-x) \bigr)

    Both logarithms are computed from :math:`\operatorname{log1p}(e^{-|x|})`, all in double, so that
    logits of any size give finite losses and nothing cancels: tiny losses keep their precision.

    Differs from torch: a target of exactly 0 or 1 adds nothing for the other answer, even where the
    logit is infinite (torch: NaN); the result has the dtype of `input`, whatever that of `target`.

    References
    ----------
    .. [1] `torch.nn.BCEWithLogitsLoss
       <https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html>`_

    Examples
    --------
    Two samples, three labels:

    >>> import numpy as np
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 4.0]])
    >>> target = np.array([[1, 0, 1], [0, 1, 1]])
    >>> print(F.binary_cross_entropy_with_logits(logits, target).round(4))
    0.279
    >>> print(F.binary_cross_entropy_with_logits(logits, target, pos_weight=[1.0, 2.0, 3.0]).round(4))
    0.5586

    Of logits of any size the loss is finite, and not rounded to 0 (torch has 0 for the second):

    >>> print(F.binary_cross_entropy_with_logits(np.float32([-1e4, -50]), [1, 0], reduction="none"))
    [1.0000000e+04 1.9287499e-22]
    """
    return _binary_cross_entropy_with_logits(
        input, target, weight, size_average, reduce, reduction, pos_weight
    )[0]


def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient."""
    reduction = as_reduction(reduction, size_average, reduce)
    probabilities = as_floating(input, what="probabilities")
    targets = as_operand(target, "target", probabilities.dtype)
    check_same_size(
        targets,
        probabilities,
        "Using a target size ({target}) that is different to the input size ({input}) is deprecated",
    )
    operands = {"target": targets, "weight": as_factor(weight, "weight", probabilities)}
    check_probabilities(probabilities, "input")
    check_probabilities(targets, "target")
    kernel = elementwise.binary_cross_entropy
    return _of_elements(kernel, probabilities, operands, (), probabilities.shape, reduction, gradient)


@has_gradient(_binary_cross_entropy)
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    r"""Binary cross-entropy of probabilities, as `torch.nn.functional.binary_cross_entropy`.

    Takes probabilities, such as a logistic function gives. For logits, use
    `binary_cross_entropy_with_logits`, which keeps what probabilities near 0 and 1 round away.

    Parameters
    ----------
    input : array_like
        Probabilities of yes, of any shape, float32 or float64, in [0, 1].
    target : array_like of the shape of `input`
        1 for yes, 0 for no, or probabilities of yes, of any real dtype, bool included.
    weight : array_like, default=None
        Weights of the elements; can be broadcast to the shape of `input`.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum, "mean" divides that by their number.

    Returns
    -------
    scalar or ndarray
        Of the dtype of `input`: a NumPy scalar, or an array of its shape with ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` is not floating point (or neither float32 nor float64), or another argument is not
        numeric.
    ValueError
        If `input` or `target` is not all in [0, 1], `target` has another shape than `input`, `weight`
        cannot be broadcast to that, or `reduction` is none of the three.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.BCELoss : The same as an object that holds the settings.
    binary_cross_entropy_with_logits : The same for logits.

    Notes
    -----
    With probability :math:`p`, target :math:`y` and weight :math:`w`, and torch's bounds that keep both
    finite at 0 and 1:

    .. math::
        \ell = w \bigl( (1 - y) \min(-\log(1 - p), 100) + y \min(-\log p, 100) \bigr), \qquad
        \frac{\partial \ell}{\partial p} = w \frac{p - y}{\max(p (1 - p), 10^{-12})}

    References
    ----------
    .. [1] `torch.nn.BCELoss <https://pytorch.org/docs/stable/generated/torch.nn.BCELoss.html>`_

    Examples
    --------
    >>> import cyce.functional as F
    >>> print(F.binary_cross_entropy([0.9, 0.2, 0.5], [1, 0, 1]).round(4))
    0.3406
    """
    return _binary_cross_entropy(input, target, weight, size_average, reduce, reduction)[0]


def _kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient."""
    choices = ("none", "batchmean", "mean", "sum")
    reduction = as_reduction(reduction, size_average, reduce, choices)
    if reduction == "mean" and size_average is None and reduce is None:
        warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size. "
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition.",
            UserWarning,
        )
    log_probabilities = as_floating(input, what="log-probabilities")
    operands = {"target": as_operand(target, "target", log_probabilities.dtype, kinds="f")}
    shape = common_shape(log_probabilities, operands["target"])
    kernel = elementwise.kl_div_of_log_target if as_flag(log_target, "log_target") else elementwise.kl_div
    return _of_elements(kernel, log_probabilities, operands, (), shape, reduction, gradient)


@has_gradient(_kl_div)
def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Any:
    r"""Kullback-Leibler divergence of `input` from `target`, as `torch.nn.functional.kl_div`.

    Parameters
    ----------
    input : array_like
        Log-probabilities of any shape, float32 or float64, such as those of `log_softmax`.
    target : array_like
        Probabilities, or their logarithms with `log_target`, floating point; `input` and `target` are
        broadcast to one shape.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"none", "batchmean", "mean", "sum"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum. "batchmean" divides that by the
        first dimension of `input`, which gives the divergence of a batch; "mean" by the number of
        elements, which does not.
    log_target : bool, default=False
        Whether `target` is log-probabilities.

    Returns
    -------
    scalar or ndarray
        Of the dtype of `input`: a NumPy scalar, or an array of the common shape with
        ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` or `target` is not floating point.
    ValueError
        If the shapes cannot be broadcast to one, or `reduction` is none of the four.

    Warns
    -----
    UserWarning
        If `reduction` is "mean".
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.KLDivLoss : The same as an object that holds the settings.
    cross_entropy : Takes class probabilities; differs by the entropy of these.

    Notes
    -----
    With log-probability :math:`x` and target :math:`q`: :math:`\ell = q (\log q - x)` and
    :math:`\partial \ell / \partial x = -q`, both 0 where :math:`q = 0` (torch: NaN if :math:`x` is
    infinite there).

    References
    ----------
    .. [1] `torch.nn.KLDivLoss <https://pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html>`_

    Examples
    --------
    >>> import cyce.functional as F
    >>> log_probabilities = F.log_softmax([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], dim=1)
    >>> target = [[0.8, 0.1, 0.1], [0.0, 0.0, 1.0]]
    >>> print(F.kl_div(log_probabilities, target, reduction="batchmean").round(4))
    0.0982
    """
    return _kl_div(input, target, size_average, reduce, reduction, log_target)[0]


def _normalize(
    kernel: Callable[..., None],
    name: str,
    input: Any,
    dim: int | None,
    stacklevel: int,
    dtype: DTypeLike | None,
    out: Any,
) -> Any:
    """Apply one of the kernels that turn logits into an array of their shape."""
    logits = as_floating(input, dtype)
    axis = implicit_axis(logits.ndim, name, stacklevel) if dim is None else as_axis(dim, logits.ndim)
    result = np.empty_like(logits) if out is None else as_out(out, logits, {})
    # A scalar is one class.
    arrays = (array.reshape(1) if array.ndim == 0 else array for array in (logits, result))
    kernel(next(arrays), axis, next(arrays), _threads.budget())
    return result if out is None else out


def softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    out: Any = None,
) -> Any:
    r"""Probabilities of classes from their logits, as `torch.nn.functional.softmax`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float32 or float64, or of any real dtype with `dtype`.
    dim : int, default=None
        The axis of the classes. None stands for 0 if there are 0, 1 or 3 dimensions, else for 1, with a
        warning.
    _stacklevel : int, default=3
        Which caller a warning points at; 3 is this function's.
    dtype : dtype, default=None
        float32 or float64, to which `input` is cast first.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Where to write the result, with any strides; it may be `input` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `input`; `out`, if that was given.

    Raises
    ------
    TypeError
        If `input` is not floating point and there is no `dtype`, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` without being it.
    IndexError
        If `dim` is not a dimension of `input`.

    Warns
    -----
    UserWarning
        If `dim` is None.

    See Also
    --------
    log_softmax : Their logarithms, which keep what probabilities round away.
    cross_entropy : Takes logits; do not apply a softmax before it.

    Notes
    -----
    :math:`p_c = e^{x_c} / \sum_j e^{x_j}`. NaN where all logits are -inf, or one is inf or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> print(F.softmax([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], dim=1).round(3))
    [[0.711 0.159 0.13 ]
     [0.076 0.084 0.84 ]]
    """
    return _normalize(kernels.softmax, "softmax", input, dim, _stacklevel, dtype, out)


def log_softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    out: Any = None,
) -> Any:
    r"""Logarithms of the probabilities of classes, from their logits, as `torch.nn.functional.log_softmax`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float32 or float64, or of any real dtype with `dtype`.
    dim : int, default=None
        The axis of the classes. None stands for 0 if there are 0, 1 or 3 dimensions, else for 1, with a
        warning.
    _stacklevel : int, default=3
        Which caller a warning points at; 3 is this function's.
    dtype : dtype, default=None
        float32 or float64, to which `input` is cast first.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Where to write the result, with any strides; it may be `input` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `input`; `out`, if that was given.

    Raises
    ------
    TypeError
        If `input` is not floating point and there is no `dtype`, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` without being it.
    IndexError
        If `dim` is not a dimension of `input`.

    Warns
    -----
    UserWarning
        If `dim` is None.

    See Also
    --------
    softmax : The probabilities themselves.
    nll_loss : The loss of log-probabilities.

    Notes
    -----
    :math:`s_c = (x_c - m) - \operatorname{log1p}(r)` with the maximum :math:`m` and
    :math:`r = \sum e^{x_j - m}` over the other classes: at the maximum of a confident row, where torch
    returns 0, the logarithm keeps its precision.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> print(F.log_softmax([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], dim=1).round(3))
    [[-0.341 -1.841 -2.041]
     [-2.575 -2.475 -0.175]]
    >>> print(F.log_softmax(np.float32([20, 0, 0]), dim=0)[0])
    -4.1223074e-09
    """
    return _normalize(kernels.log_softmax, "log_softmax", input, dim, _stacklevel, dtype, out)


def softmin(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    out: Any = None,
) -> Any:
    r"""Softmax of the negative logits, as `torch.nn.functional.softmin`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float32 or float64, or of any real dtype with `dtype`.
    dim : int, default=None
        The axis of the classes. None stands for 0 if there are 0, 1 or 3 dimensions, else for 1, with a
        warning.
    _stacklevel : int, default=3
        Which caller a warning points at; 3 is this function's.
    dtype : dtype, default=None
        float32 or float64, to which `input` is cast first.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Where to write the result, with any strides; it may be `input` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `input`; `out`, if that was given.

    Raises
    ------
    TypeError
        If `input` is not floating point and there is no `dtype`, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` without being it.
    IndexError
        If `dim` is not a dimension of `input`.

    Warns
    -----
    UserWarning
        If `dim` is None.

    See Also
    --------
    softmax : Without the sign.

    Notes
    -----
    :math:`p_c = e^{-x_c} / \sum_j e^{-x_j}`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> print(F.softmin([2.0, 0.5, 0.3], dim=0).round(3))
    [0.091 0.409 0.5  ]
    """
    logits = as_floating(input, dtype)
    negative = np.negative(logits, out=np.empty_like(logits))
    if out is None:
        return _normalize(kernels.softmax, "softmin", negative, dim, _stacklevel, None, negative)
    return _normalize(kernels.softmax, "softmin", negative, dim, _stacklevel, None, out)


def logsumexp(input: Any, dim: int | Sequence[int], keepdim: bool = False, *, out: Any = None) -> Any:
    r"""Logarithm of the sum of exponentials, as `torch.logsumexp`.

    Parameters
    ----------
    input : array_like
        Of any shape; float32 or float64, or integers, which are cast to float32.
    dim : int or sequence of int
        The axis or axes that are summed over.
    keepdim : bool, default=False
        Whether these axes stay, with size 1.
    out : ndarray of the shape and dtype of the result, default=None
        Where to write the result.

    Returns
    -------
    ndarray
        -inf where all is -inf, or nothing is summed.

    Raises
    ------
    TypeError
        If `input` is not numeric, or `out` has another dtype.
    ValueError
        If `dim` is empty or names an axis twice, or `out` has another shape or is read-only.
    IndexError
        If `dim` is not a dimension of `input`.

    See Also
    --------
    log_softmax : The logits less this.

    Notes
    -----
    :math:`m + \operatorname{log1p}(r)` with the maximum :math:`m` and :math:`r = \sum e^{x_j - m}` over the
    others.

    Examples
    --------
    >>> import cyce.functional as F
    >>> print(F.logsumexp([1000.0, 1000.0], dim=0).round(4))
    1000.6931
    """
    array = as_array(input, "input")
    result = as_floating(array, np.float32 if array.dtype.kind in "iu" else None)
    n_dims = result.ndim
    axes = [as_axis(axis, n_dims) for axis in ([dim] if np.ndim(dim) == 0 else dim)]  # type: ignore[union-attr]
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"dim: one or more different dimensions are needed, got {dim!r}")
    result = result.reshape(1) if n_dims == 0 else result
    for axis in sorted(axes, reverse=True):
        # One axis after the other: what was summed already is as exact as a logit.
        summed = np.empty(result.shape[:axis] + result.shape[axis + 1 :], result.dtype)
        if result.shape[axis]:
            kernels.logsumexp(result, axis, summed, _threads.budget())
        else:
            summed[...] = -np.inf
        result = summed
    if as_flag(keepdim, "keepdim") and n_dims:
        result = np.expand_dims(result, tuple(axes))
    if out is None:
        return result
    as_out(out, result, {}, whose="the result's")[...] = result
    return out


def one_hot(tensor: Any, num_classes: int = -1) -> NDArray[np.int64]:
    """One-hot encoding of class indices, as `torch.nn.functional.one_hot`.

    The inverse is ``argmax(axis=-1)``. Losses take class indices as they are.

    Parameters
    ----------
    tensor : array_like of int
        Class indices, of any shape and integer dtype.
    num_classes : int, default=-1
        Number of classes; -1 stands for the largest index plus 1.

    Returns
    -------
    ndarray of int64
        Of the shape of `tensor` with an axis of the classes at the end.

    Raises
    ------
    TypeError
        If `tensor` is not integer.
    ValueError
        If an index is negative or not below `num_classes`, or there is none to infer it from.

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
        raise TypeError(f"num_classes: an integer is needed, got {type(num_classes).__name__}") from None
    if indices.size == 0 and not hasattr(tensor, "dtype"):
        indices = indices.astype(np.int64)
    if indices.dtype.kind not in "iu":
        raise TypeError(
            "one_hot is only applicable to index tensor of type LongTensor: tensor must be integer, got "
            f"dtype {indices.dtype.name}"
        )
    if indices.size == 0 and n_classes <= 0:
        raise ValueError("Can not infer total number of classes from empty tensor: num_classes is needed")
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
