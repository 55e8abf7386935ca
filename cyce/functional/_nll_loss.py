"""Negative log-likelihood of class indices."""

from typing import Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from cyce._losses import has_gradient
from cyce._signatures import Reduction
from cyce.fused import nll_loss as fused


@overload
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    ignore_index: SupportsIndex = -100,
    reduce: None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: None = None,
    ignore_index: SupportsIndex = -100,
    reduce: None = None,
    *,
    reduction: Literal["none"],
) -> NDArray[Any]: ...
@overload
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: SupportsIndex = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> np.floating[Any] | NDArray[Any]: ...
@has_gradient(fused.nll_loss)
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: SupportsIndex = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Negative log-likelihood of class indices, as `torch.nn.functional.nll_loss`.

    Takes log-probabilities, such as those of `log_softmax`. For logits, `cross_entropy` gives the same loss
    faster.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Log-probabilities of C classes, float16, bfloat16 (of ml_dtypes), float32 or float64.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices in [0, C), of any integer dtype.
    weight : array_like of shape (C,), default=None
        A weight for each class.
    size_average : bool, default=None
        Deprecated: with `reduce`, overrides `reduction`.
    ignore_index : int, default=-100
        Class index of ignored positions.
    reduce : bool, default=None
        Deprecated: with `size_average`, overrides `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        As in `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        In float64 if `input` is, else in float32: a NumPy scalar, or an array of the positions' shape with
        ``reduction="none"``.

    Raises
    ------
    TypeError
        If `input` is not floating point, or `target` is not integer.
    ValueError
        If shapes do not fit, or `reduction` is invalid.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cross_entropy : The same loss of logits.

    Notes
    -----
    :math:`\ell = -w_y x_y` and :math:`\partial \ell / \partial x_c = -w_y [c = y]`; the mean divides by
    the sum of :math:`w_y` over the positions that are not ignored.

    Examples
    --------
    >>> import cyce.functional as F
    >>> logits = [[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]]
    >>> print(F.nll_loss(F.log_softmax(logits, dim=1), [0, 2]).round(4))
    0.2577
    """
    return fused.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)[0]
