"""The logistic function and its logarithm."""

from typing import Any

from cyce._losses import has_gradient
from cyce.fused import elementwise as fused


@has_gradient(fused.sigmoid)
def sigmoid(input: Any, *, out: Any = None) -> Any:
    r"""Logistic sigmoid of each element, as `torch.nn.functional.sigmoid`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64.
    out : ndarray of the shape and dtype of `input`, default=None
        Array to write the result to; it may be `input` itself. For half precision, it may be float32.

    Returns
    -------
    ndarray
        In the shape and dtype of `input`; `out` if that is given.

    Raises
    ------
    TypeError
        If `input` is not floating point, or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` in part.

    See Also
    --------
    logsigmoid : The logarithm, which keeps its precision near 0.
    softmax : Probabilities of several classes.

    Notes
    -----
    :math:`\sigma(x) = 1 / (1 + e^{-x})`, from :math:`e^{-|x|}`; the gradient is
    :math:`\sigma(x) \sigma(-x)`.

    Examples
    --------
    >>> import cyce.functional as F
    >>> print(F.sigmoid([-2.0, 0.0, 2.0]).round(4))
    [0.1192 0.5    0.8808]
    """
    result = fused.sigmoid(input, out=out)[0]
    return result if out is None else out


@has_gradient(fused.logsigmoid)
def logsigmoid(input: Any, *, out: Any = None) -> Any:
    r"""Logarithm of the logistic sigmoid of each element, as `torch.nn.functional.logsigmoid`.

    Parameters
    ----------
    input : array_like
        Logits of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64.
    out : ndarray of the shape and dtype of `input`, default=None
        Array to write the result to; it may be `input` itself. For half precision, it may be float32.

    Returns
    -------
    ndarray
        In the shape and dtype of `input`; `out` if that is given.

    Raises
    ------
    TypeError
        If `input` is not floating point, or `out` has another dtype.
    ValueError
        If `out` has another shape, is read-only, or overlaps `input` in part.

    See Also
    --------
    sigmoid : The probabilities.
    log_softmax : The same for several classes.

    Notes
    -----
    :math:`\min(x, 0) - \operatorname{log1p}(e^{-|x|})`; the gradient is :math:`\sigma(-x)`.

    Examples
    --------
    >>> import cyce.functional as F
    >>> print(F.logsigmoid([-1000.0, 0.0, 50.0]))
    [-1.00000000e+03 -6.93147181e-01 -1.92874985e-22]
    """
    result = fused.logsigmoid(input, out=out)[0]
    return result if out is None else out
