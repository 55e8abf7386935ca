"""Focal losses, which down-weight what is classified well already."""

from typing import Any, Literal

from cyce._losses import has_gradient
from cyce._signatures import Reduction
from cyce.fused import focal as fused


@has_gradient(fused.focal_loss)
def focal_loss(
    input: Any,
    target: Any,
    gamma: float = 2.0,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    poly1: float = 0.0,
    axis: int | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> Any:
    r"""Focal loss of logits and class indices: the cross-entropy times :math:`(1 - p)^\gamma`.

    Samples whose target has a high probability :math:`p` already count less, which helps where most samples
    are easy, such as the background of images [1]_.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits, as in `cross_entropy`.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices, as in `cross_entropy`.
    gamma : float, default=2.0
        The exponent :math:`\gamma`, not negative; 0 is the cross-entropy.
    weight : array_like of shape (C,), default=None
        A weight for each class, the :math:`\alpha` of [1]_.
    ignore_index, reduction, label_smoothing
        As in `cross_entropy`. "mean" divides as that does, by the sum of the targets' weights.
    poly1 : float, default=0.0
        Coefficient :math:`\epsilon` of a further power of :math:`1 - p` [2]_; with ``gamma=0``, that is
        Poly-1 cross-entropy.
    axis, sample_weight, normalizer, empty, softcap, temperature, class_mask
        As in `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As `cross_entropy`.

    Raises
    ------
    TypeError
        If `target` is not class indices, and as `cross_entropy`.
    ValueError
        If `gamma` is negative or not finite, and as `cross_entropy`.
    IndexError
        As `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss that is weighted.
    sigmoid_focal_loss : The same for binary and multi-label classification.

    Notes
    -----
    With the target's probability :math:`p = e^{s_y}`, the cross-entropy :math:`\ell` of the position, with
    smoothing :math:`\varepsilon` and class weights :math:`w` as in `cross_entropy`, and
    :math:`a = (1 - \varepsilon) w_y`:

    .. math::
        (1 - p)^\gamma \bigl(\ell + \epsilon a (1 - p)\bigr), \qquad
        \frac{\partial}{\partial x_c} = (1 - p)^\gamma \Bigl( \frac{\partial \ell}{\partial x_c}
            + p \Bigl( \frac{\gamma \ell}{1 - p} + \epsilon a (\gamma + 1) \Bigr) (p_c - [c = y]) \Bigr)

    Where the target is the highest class, :math:`1 - p` is the probability of the others,
    :math:`r / (1 + r)`: losses and gradients of easy samples keep their precision, where ``1 - p`` would be
    0.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002.
    .. [2] Z. Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
       2022, arXiv:2204.12511.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> logits = np.array([[5.0, 0.0, 0.0], [0.1, 0.2, 0.3]])
    >>> print(F.cross_entropy(logits, [0, 2], reduction="none").round(5))
    [0.01339 1.00194]
    >>> print(F.focal_loss(logits, [0, 2], reduction="none").round(5))
    [0.      0.40126]
    >>> _, gradient = cyce.value_and_grad(F.focal_loss)(np.array([[20.0, 0.0, 0.0]]), [0])
    >>> print([f"{value:.4g}" for value in gradient[0]])
    ['-2.102e-25', '1.051e-25', '1.051e-25']
    """
    return fused.focal_loss(
        input,
        target,
        gamma,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        poly1=poly1,
        axis=axis,
        sample_weight=sample_weight,
        normalizer=normalizer,
        empty=empty,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
    )[0]


@has_gradient(fused.sigmoid_focal_loss)
def sigmoid_focal_loss(
    inputs: Any, targets: Any, alpha: float = 0.25, gamma: float = 2, reduction: Reduction = "none"
) -> Any:
    r"""Focal loss of binary and multi-label classification, as `torchvision.ops.sigmoid_focal_loss`.

    Parameters
    ----------
    inputs : array_like
        Logits of the positive class, of any shape, float16, bfloat16 (of ml_dtypes), float32 or float64.
    targets : array_like of the shape of `inputs`
        1 for positive, 0 for negative, or probabilities of the positive class, of any real dtype, bool
        included.
    alpha : float, default=0.25
        Weight of the positive class; the negative class has the weight ``1 - alpha``. If `alpha` is negative,
        no weights are applied.
    gamma : float, default=2
        The exponent, not negative; 0 is `binary_cross_entropy_with_logits`.
    reduction : {"none", "mean", "sum"}, default="none"
        "none" returns the losses of the elements, "sum" their sum, "mean" divides that by their number.

    Returns
    -------
    scalar or ndarray
        In float64 if `inputs` is, else in float32.

    Raises
    ------
    TypeError
        If `inputs` is not of the dtypes above, or another argument is not numeric.
    ValueError
        If `targets` does not have the shape of `inputs`, `gamma` is negative, it or `alpha` is not finite,
        or `reduction` is invalid.

    See Also
    --------
    focal_loss : One of several classes.
    binary_cross_entropy_with_logits : The loss that is weighted.

    Notes
    -----
    With logit :math:`x`, target :math:`y`, :math:`p = \sigma(x)`, the binary cross-entropy :math:`\ell`,
    :math:`o = p (1 - y) + (1 - p) y` and :math:`\alpha_y = \alpha y + (1 - \alpha)(1 - y)` ([1]_):

    .. math::
        \alpha_y o^\gamma \ell, \qquad
        \alpha_y o^\gamma \Bigl( p - y + \gamma \ell \frac{p (1 - p)}{o} (1 - 2 y) \Bigr)

    :math:`o` is a sum of products, so that losses of easy samples keep their precision.

    References
    ----------
    .. [1] `torchvision.ops.sigmoid_focal_loss
       <https://pytorch.org/vision/stable/generated/torchvision.ops.sigmoid_focal_loss.html>`_

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> print(F.sigmoid_focal_loss(np.array([0.0, 3.0]), [1, 1]).round(6))
    [4.3322e-02 2.7000e-05]
    """
    return fused.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)[0]
