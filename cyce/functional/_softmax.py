"""The softmax family: arrays of the shape of the logits, and the log-sum-exp."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from cyce._arguments import as_out
from cyce._losses import has_gradient
from cyce.fused import softmax as fused


@has_gradient(fused.softmax)
def softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    out: Any = None,
    class_mask: Any = None,
) -> Any:
    r"""Probabilities of classes from their logits, as `torch.nn.functional.softmax`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64, or of any real dtype with
        `dtype`.
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.
    _stacklevel : int, default=3
        Stack level that a warning points at; 3 is the caller of this function.
    dtype : dtype, default=None
        One of these four; `input` is cast to it first. With float32, half precision is not cast but computed
        in float32, as it always is, and not rounded to its dtype again.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Array to write the result to, with any strides; it may be `input` itself. For half precision, it may
        be float32.
    class_mask : array_like of bool, default=None
        False where there is no such class: it has probability 0, whatever its logit; must broadcast to the
        shape of `input`.

    Returns
    -------
    ndarray
        In the shape and dtype of `input`, or in `dtype`; `out` if that is given.

    Raises
    ------
    TypeError
        If `input` is not floating point and `dtype` is None, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` in part, or `class_mask` does not
        broadcast.
    IndexError
        If `dim` is not a dimension of `input`.

    Warns
    -----
    UserWarning
        If `dim` is None.

    See Also
    --------
    log_softmax : The logarithms, which keep their precision for tiny probabilities.
    cross_entropy : Takes logits; do not apply a softmax before it.

    Notes
    -----
    :math:`p_c = e^{x_c} / \sum_j e^{x_j}`. NaN if all logits are -inf, or one is inf or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> print(F.softmax([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], dim=1).round(3))
    [[0.711 0.159 0.13 ]
     [0.076 0.084 0.84 ]]
    """
    result = fused.normalize("softmax", input, dim, _stacklevel, dtype, out, class_mask)[2]
    return result if out is None else out


@has_gradient(fused.log_softmax)
def log_softmax(
    input: Any,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DTypeLike | None = None,
    *,
    out: Any = None,
    class_mask: Any = None,
) -> Any:
    r"""Logarithms of the probabilities of classes, from their logits, as `torch.nn.functional.log_softmax`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64, or of any real dtype with
        `dtype`.
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.
    _stacklevel : int, default=3
        Stack level that a warning points at; 3 is the caller of this function.
    dtype : dtype, default=None
        One of these four; `input` is cast to it first. With float32, half precision is not cast but computed
        in float32, as it always is, and not rounded to its dtype again.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Array to write the result to, with any strides; it may be `input` itself. For half precision, it may
        be float32.
    class_mask : array_like of bool, default=None
        False where there is no such class: it has probability 0, whatever its logit; must broadcast to the
        shape of `input`.

    Returns
    -------
    ndarray
        In the shape and dtype of `input`, or in `dtype`; `out` if that is given.

    Raises
    ------
    TypeError
        If `input` is not floating point and `dtype` is None, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` in part, or `class_mask` does not
        broadcast.
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
    :math:`r = \sum e^{x_j - m}` over the other classes: the logarithm keeps its precision at the maximum of
    a confident row, where torch returns 0.

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
    result = fused.normalize("log_softmax", input, dim, _stacklevel, dtype, out, class_mask)[2]
    return result if out is None else out


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
        Logits of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64, or of any real dtype with
        `dtype`.
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.
    _stacklevel : int, default=3
        Stack level that a warning points at; 3 is the caller of this function.
    dtype : dtype, default=None
        One of these four; `input` is cast to it first. With float32, half precision is not cast but computed
        in float32, as it always is, and not rounded to its dtype again.
    out : ndarray of the shape of `input` and the dtype of the result, default=None
        Array to write the result to, with any strides; it may be `input` itself. For half precision, it may
        be float32.

    Returns
    -------
    ndarray
        In the shape and dtype of `input`, or in `dtype`; `out` if that is given.

    Raises
    ------
    TypeError
        If `input` is not floating point and `dtype` is None, or `dtype` or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` in part.
    IndexError
        If `dim` is not a dimension of `input`.

    Warns
    -----
    UserWarning
        If `dim` is None.

    See Also
    --------
    softmax : The softmax of the logits.

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
    result = fused.normalize("softmin", input, dim, _stacklevel, dtype, out, negate=True)[2]
    return result if out is None else out


@has_gradient(fused.logsumexp)
def logsumexp(input: Any, dim: int | Sequence[int], keepdim: bool = False, *, out: Any = None) -> Any:
    r"""Logarithm of the sum of exponentials, as `torch.logsumexp`.

    Parameters
    ----------
    input : array_like
        Of any shape; float16, bfloat16 (of ml_dtypes), float32 or float64, or integers, which are cast to
        float32.
    dim : int or sequence of int
        The axis or axes to sum over.
    keepdim : bool, default=False
        Whether to keep these axes, with size 1.
    out : ndarray of the shape and dtype of the result, default=None
        Array to write the result to.

    Returns
    -------
    ndarray
        In float64 if `input` is, else in float32; -inf if all elements are -inf, or there are none.

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
    log_softmax : The logits minus this.

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
    result, _ = fused.logsumexp(input, dim, keepdim)
    if out is None:
        return result
    as_out(out, result, {}, whose="the result's")[...] = result
    return out
