"""torch's loss functions, as in `torch.nn.functional`."""

from typing import Any

import numpy as np

from cyce import _threads
from cyce._arguments import (
    as_grad_output,
    as_ignore_index,
    as_label_smoothing,
    as_logits,
    as_out,
    as_reduction,
    as_target,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce._dispatch import kernels
from cyce._losses import GradientRequest, has_gradient

__all__ = ["cross_entropy"]


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
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradient."""
    reduction = as_reduction(reduction, size_average, reduce, stacklevel=4)
    logits = as_logits(input)
    axis = class_axis(logits)
    indices, probabilities = as_target(target, logits)
    weight = as_weight(weight, logits)
    ignore_index = as_ignore_index(ignore_index)
    smoothing = as_label_smoothing(label_smoothing)
    if probabilities is not None and ignore_index >= 0:
        raise ValueError(
            "ignore_index is not supported for floating point target: target is class probabilities, "
            f"ignore_index must be negative; got {ignore_index}"
        )
    upstream, grad_output, grad_out = 1.0, None, None
    if gradient is not None:
        upstream, grad_output = as_grad_output(gradient.grad_output, logits, reduction)
        if gradient.out is None:
            grad_out = np.empty_like(logits)
        else:
            read = {"target": indices if probabilities is None else probabilities}
            read |= {"weight": weight, "grad_output": grad_output}
            grad_out = as_out(gradient.out, logits, read)
    loss_out = np.empty(position_shape(logits), logits.dtype) if reduction == "none" else None
    try:
        value = kernels.cross_entropy(
            logits,
            axis,
            indices,
            probabilities,
            weight,
            ignore_index,
            smoothing,
            reduction == "mean",
            loss_out,
            grad_out,
            grad_output,
            upstream,
            _threads.threads_for_call(),
        )
    except IndexError as error:
        if indices is None:
            raise
        raise IndexError(
            describe_bad_target(error.args[0], indices, logits.shape[axis], ignore_index)
        ) from None
    if gradient is not None and gradient.out is not None:
        grad_out = gradient.out
    return logits.dtype.type(value) if loss_out is None else loss_out, grad_out


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
        Part of every target that is spread evenly over the classes (Szegedy et al., 2016).

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
        [0, 1], or `ignore_index` is not negative with class probabilities.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.CrossEntropyLoss : The same as an object that holds the settings.
    cyce.value_and_grad : Loss and gradient in one pass.

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
    """
    return _cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )[0]
