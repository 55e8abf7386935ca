"""Losses of single elements: the binary cross-entropies and the Kullback-Leibler divergence."""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from cyce._losses import has_gradient
from cyce._signatures import KLDivReduction, Reduction
from cyce.fused import elementwise as fused


@overload
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Literal["mean", "sum"] = "mean",
    pos_weight: Any = None,
) -> np.floating[Any]: ...
@overload
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    reduce: None = None,
    *,
    reduction: Literal["none"],
    pos_weight: Any = None,
) -> NDArray[Any]: ...
@overload
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: Any = None,
) -> np.floating[Any] | NDArray[Any]: ...
@has_gradient(fused.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: Any = None,
) -> Any:
    r"""Binary cross-entropy of logits, as `torch.nn.functional.binary_cross_entropy_with_logits`.

    One logit per sample (binary classification), or one per sample and label (multi-label classification). If
    exactly one of several classes is right, use `cross_entropy`.

    Parameters
    ----------
    input : array_like
        Logits of the positive class, of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64.
    target : array_like of the shape of `input`
        1 for positive, 0 for negative, or probabilities of the positive class, of any real dtype, bool
        included.
    weight : array_like, default=None
        Weights of the elements; must broadcast to the shape of `input`.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum, "mean" divides that by their number.
    pos_weight : array_like, default=None
        Weight of the positive class, such as the ratio of negatives to positives in unbalanced data; must
        broadcast to the shape of `input`, such as (n_labels,) for one weight per label.

    Returns
    -------
    scalar or ndarray
        In float64 if `input` is, else in float32: a NumPy scalar, or an array of its shape with
        ``reduction="none"``.
        The mean of no elements is NaN.

    Raises
    ------
    TypeError
        If `input` is not of the dtypes above, or another argument is not numeric.
    ValueError
        If `target` does not have the shape of `input`, weights do not broadcast to it, or `reduction` is
        invalid.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.BCEWithLogitsLoss : The same loss as an object that holds the settings.
    cross_entropy : Exactly one of several classes.
    binary_cross_entropy : The same loss of probabilities, which are rounded near 0 and 1.

    Notes
    -----
    With logit :math:`x`, target :math:`y`, weight :math:`w`, positive weight :math:`p` and the logistic
    function :math:`\sigma`:

    .. math::
        \ell = w \bigl( (1 - y) \log(1 + e^x) + p y \log(1 + e^{-x}) \bigr), \qquad
        \frac{\partial \ell}{\partial x} = w \bigl( (1 - y) \sigma(x) - p y \sigma(-x) \bigr)

    Both logarithms are computed from :math:`\operatorname{log1p}(e^{-|x|})` in double precision. Logits of
    any size give finite losses, nothing cancels, and tiny losses keep their precision.

    Differs from torch: a target of exactly 0 or 1 contributes 0 for the other answer even if the logit is
    infinite (torch: NaN); the result is float64 or float32, as `input` is, not a common dtype with `target`.

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

    Losses are finite, and not rounded to 0 (torch returns 0 for the second):

    >>> print(F.binary_cross_entropy_with_logits(np.float32([-1e4, -50]), [1, 0], reduction="none"))
    [1.0000000e+04 1.9287499e-22]
    """
    return fused.binary_cross_entropy_with_logits(
        input, target, weight, size_average, reduce, reduction, pos_weight
    )[0]


@overload
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    reduce: None = None,
    *,
    reduction: Literal["none"],
) -> NDArray[Any]: ...
@overload
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: int | None = None,
    reduction: Reduction = "mean",
) -> np.floating[Any] | NDArray[Any]: ...
@has_gradient(fused.binary_cross_entropy)
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Binary cross-entropy of probabilities, as `torch.nn.functional.binary_cross_entropy`.

    Takes probabilities, such as those of a logistic function. For logits, use
    `binary_cross_entropy_with_logits`: probabilities are rounded near 0 and 1.

    Parameters
    ----------
    input : array_like
        Probabilities of the positive class, of any shape, in [0, 1], float16, bfloat16 (of ml_dtypes),
        float32 or float64.
    target : array_like of the shape of `input`
        1 for positive, 0 for negative, or probabilities of the positive class, of any real dtype, bool
        included.
    weight : array_like, default=None
        Weights of the elements; must broadcast to the shape of `input`.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum, "mean" divides that by their number.

    Returns
    -------
    scalar or ndarray
        In float64 if `input` is, else in float32: a NumPy scalar, or an array of its shape with
        ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` is not of the dtypes above, or another argument is not numeric.
    ValueError
        If an element of `input` or `target` is outside [0, 1], `target` does not have the shape of
        `input`, `weight` does not broadcast to it, or `reduction` is invalid.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.BCELoss : The same loss as an object that holds the settings.
    binary_cross_entropy_with_logits : The same loss of logits.

    Notes
    -----
    With probability :math:`p`, target :math:`y` and weight :math:`w`, and torch's bounds, which keep both
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
    return fused.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)[0]


@overload
def kl_div(
    input: Any,
    target: Any,
    size_average: None = None,
    reduce: None = None,
    reduction: Literal["batchmean", "mean", "sum"] = "mean",
    log_target: bool = False,
) -> np.floating[Any]: ...
@overload
def kl_div(
    input: Any,
    target: Any,
    size_average: None = None,
    reduce: None = None,
    *,
    reduction: Literal["none"],
    log_target: bool = False,
) -> NDArray[Any]: ...
@overload
def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: KLDivReduction = "mean",
    log_target: bool = False,
) -> np.floating[Any] | NDArray[Any]: ...
@has_gradient(fused.kl_div)
def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: KLDivReduction = "mean",
    log_target: bool = False,
) -> Any:
    r"""Kullback-Leibler divergence KL(target || input), as `torch.nn.functional.kl_div`.

    Parameters
    ----------
    input : array_like
        Log-probabilities of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64, such as those
        of `log_softmax`.
    target : array_like
        Probabilities, or their logarithms with `log_target`, floating point; `input` and `target` are
        broadcast to one shape.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"none", "batchmean", "mean", "sum"}, default="mean"
        "none" returns the losses of the elements, "sum" their sum. "batchmean" divides that by the
        first dimension of `input`, which gives the mean divergence of a batch; "mean" divides by the number
        of elements, which does not.
    log_target : bool, default=False
        Whether `target` holds log-probabilities.

    Returns
    -------
    scalar or ndarray
        In float64 if `input` is, else in float32: a NumPy scalar, or an array of the common shape with
        ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` or `target` is not floating point.
    ValueError
        If the shapes cannot be broadcast to one, or `reduction` is invalid.

    Warns
    -----
    UserWarning
        If `reduction` is "mean".
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.KLDivLoss : The same loss as an object that holds the settings.
    cross_entropy : Takes class probabilities; differs by their entropy.

    Notes
    -----
    With log-probability :math:`x` and target :math:`q`: :math:`\ell = q (\log q - x)` and
    :math:`\partial \ell / \partial x = -q`, both 0 if :math:`q = 0` (torch: NaN if :math:`x` is also
    infinite).

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
    return fused.kl_div(input, target, size_average, reduce, reduction, log_target)[0]
