"""Log-probabilities of chosen and of the highest classes, and the entropy of the softmax."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._losses import has_gradient
from cyce.fused import log_probabilities as fused


@has_gradient(fused.selective_log_softmax)
def selective_log_softmax(
    logits: Any,
    index: Any,
    *,
    axis: int | None = None,
    return_entropy: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> Any:
    r"""Log-probabilities of chosen classes, such as the tokens that a policy has sampled.

    The same as ``log_softmax`` followed by a gather, without an array of the logits' size.

    Parameters
    ----------
    logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`; float16, bfloat16 (of ml_dtypes), float32 or float64.
    index : array_like of int
        The chosen classes: one for each position, of the positions' shape, or K of them, of the logits' shape
        with K in place of C.
    axis : int, default=None
        The axis of the classes, such as -1 for logits of shape (B, T, C). None means 1, or 0 if there is only
        one.
    return_entropy : bool, default=False
        Whether to return the entropy of each position, too.
    softcap, temperature, class_mask
        As in `cross_entropy`.

    Returns
    -------
    ndarray, or tuple of two
        Log-probabilities of the shape of `index`; with `return_entropy`, the tuple of these and the entropies
        in nats, of the positions' shape. In float64 if `logits` are, else in float32.

    Raises
    ------
    TypeError
        If `logits` are not floating point, or `index` is not integer.
    ValueError
        If shapes do not fit, `softcap` or `temperature` is not positive, or `class_mask` leaves out a chosen
        class.
    IndexError
        If a chosen class is not in [0, C), or `logits` have no such `axis`.

    See Also
    --------
    entropy : The entropies alone.
    topk_log_softmax : Of the highest classes.
    linear_selective_log_softmax : From hidden states, without the logits.

    Notes
    -----
    With `cyce.value_and_grad`, `grad_output` has the shape of `index`; with `return_entropy`, it is a tuple
    of that and of the entropies' upstream gradient, a number or one per position. With upstream gradients
    :math:`g_k` of the classes :math:`y_k` and :math:`h` of the entropy :math:`H`, the gradient is

    .. math::
        \sum_k g_k ([c = y_k] - p_c) - h p_c (s_c + H)

    Examples
    --------
    The objective of a policy gradient with an entropy bonus, and its gradient, in one pass:

    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> actions, advantages = np.array([0, 1]), np.array([1.0, -0.5])
    >>> print(F.selective_log_softmax(logits, actions).round(4))
    [-0.3406 -2.4748]
    >>> (log_p, entropy), gradient = cyce.value_and_grad(F.selective_log_softmax)(
    ...     logits, actions, return_entropy=True, grad_output=(advantages, 0.01)
    ... )
    >>> print(gradient.round(4))
    [[ 0.2854 -0.1571 -0.1283]
     [ 0.0396 -0.4563  0.4167]]
    """
    return fused.selective_log_softmax(
        logits,
        index,
        axis=axis,
        return_entropy=return_entropy,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
    )[0]


@has_gradient(fused.entropy)
def entropy(
    logits: Any,
    *,
    axis: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> NDArray[Any]:
    r"""Entropy of the softmax of each position, in nats.

    Parameters
    ----------
    logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`; float16, bfloat16 (of ml_dtypes), float32 or float64.
    axis : int, default=None
        The axis of the classes. None means 0 for one dimension, else 1.
    softcap, temperature, class_mask
        As in `cross_entropy`.

    Returns
    -------
    ndarray
        Of the positions' shape, in float64 if `logits` are, else in float32.

    Raises
    ------
    TypeError
        If `logits` are not floating point.
    ValueError
        If `class_mask` cannot be broadcast to their shape, or `softcap` or `temperature` is not positive.
    IndexError
        If `logits` have no such `axis`.

    See Also
    --------
    selective_log_softmax : Log-probabilities and entropies in one pass.
    cross_entropy_stats : Entropies among other statistics.

    Notes
    -----
    :math:`H = -\sum_c p_c s_c` with :math:`s_c = x_c - \log \sum_j e^{x_j}`, computed as
    :math:`\operatorname{log1p}(r) + \sum_c p_c (m - x_c)` with the maximum :math:`m`: no term is negative.
    The gradient is :math:`-p_c (s_c + H) = p_c (d_c - \sum_j p_j d_j)` with :math:`d_c = m - x_c`.

    Examples
    --------
    >>> import cyce.functional as F
    >>> print(F.entropy([[0.0, 0.0], [30.0, 0.0]]))
    [6.93147181e-01 2.90086312e-12]
    """
    values: NDArray[Any] = fused.entropy(
        logits, axis=axis, softcap=softcap, temperature=temperature, class_mask=class_mask
    )[0]
    return values


def topk_log_softmax(
    logits: Any,
    k: int,
    *,
    axis: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Log-probabilities and indices of the k most probable classes.

    With ``np.exp`` of the log-probabilities, they make a `cyce.SparseTarget` from a teacher's logits.

    Parameters
    ----------
    logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`; float16, bfloat16 (of ml_dtypes), float32 or float64.
    k : int
        How many classes, from 1 to C.
    axis : int, default=None
        The axis of the classes. None means 0 for one dimension, else 1.
    softcap, temperature, class_mask
        As in `cross_entropy`.

    Returns
    -------
    values : ndarray
        Log-probabilities, the highest first, of the logits' shape with k in place of C; in float64 if
        `logits` are, else in float32.
    indices : ndarray of int64
        Class indices of `values`, in the same shape; of equal logits, the lower index comes first. NaN counts
        as the highest logit, a class that `class_mask` leaves out as a logit of -inf.

    Raises
    ------
    TypeError
        If `logits` are not floating point, or `k` is not an integer.
    ValueError
        If `k` is not from 1 to C, `softcap` or `temperature` is not positive, or `class_mask` cannot be
        broadcast to the logits' shape.
    IndexError
        If `logits` have no such `axis`.

    See Also
    --------
    cyce.SparseTarget : A target of a few classes.
    selective_log_softmax : Of chosen classes.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> teacher = np.array([[2.0, 0.5, 0.3, -4.0], [0.1, 0.2, 2.5, -4.0]])
    >>> log_p, classes = F.topk_log_softmax(teacher, 2)
    >>> print(classes.tolist(), log_p.round(3).tolist())
    [[0, 1], [2, 1]] [[-0.342, -1.842], [-0.176, -2.476]]
    >>> print(F.cross_entropy(np.zeros((2, 4)), cyce.SparseTarget(classes, np.exp(log_p))).round(4))
    1.2416
    """
    return fused.topk_log_softmax(
        logits, k, axis=axis, softcap=softcap, temperature=temperature, class_mask=class_mask
    )
