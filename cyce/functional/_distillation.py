"""Distillation: a student learns a teacher's probabilities."""

from typing import Any, Literal

from cyce._losses import has_gradient
from cyce.fused import distillation as fused


@has_gradient(fused.distillation_loss)
def distillation_loss(
    student_logits: Any,
    teacher_logits: Any,
    temperature: float = 1.0,
    divergence: Literal["forward", "reverse", "js"] = "forward",
    reduction: Literal["none", "batchmean", "mean", "sum"] = "batchmean",
    *,
    beta: float = 0.5,
    scale_by_temperature: bool = False,
    axis: int | None = None,
    sample_weight: Any = None,
) -> Any:
    r"""Divergence of a student's softmax from a teacher's, both from logits.

    `cyce.value_and_grad` gives the gradient with respect to the student's logits; the teacher's are
    constants. No array of their size is made but the gradient.

    Parameters
    ----------
    student_logits : array_like of shape (C,), (N, C) or (N, C, d1, ..., dk)
        Logits of the model that learns; float16, bfloat16 (of ml_dtypes), float32 or float64.
    teacher_logits : array_like of the shape of `student_logits`
        Logits of the model that it learns from, of any of these dtypes.
    temperature : float, default=1.0
        Divisor of both; positive.
    divergence : {"forward", "reverse", "js"}, default="forward"
        "forward": KL(teacher || student), as in [1]_. "reverse": KL(student || teacher). "js":
        beta * KL(teacher || m) + (1 - beta) * KL(student || m), with the mixture
        m = beta * teacher + (1 - beta) * student [2]_; Jensen-Shannon with the default `beta`.
    reduction : {"none", "batchmean", "mean", "sum"}, default="batchmean"
        "none" returns the divergences of the positions, "sum" their sum; "batchmean" divides that by the
        number of positions, or by the sum of `sample_weight`; "mean" is the same. (In `kl_div`, positions
        are unknown: "batchmean" divides by the size of the first axis, "mean" by the number of elements.)
    beta : float in [0, 1], default=0.5
        The teacher's weight in the mixture of "js". At 0 and 1, the divergence "js" is 0.
    scale_by_temperature : bool, default=False
        Whether to multiply by the square of the temperature, which keeps the size of gradients [1]_.
    axis : int, default=None
        The axis of the classes, such as -1 for logits of shape (B, T, C). None means 1, or 0 if there is only
        one.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position. One of weight 0, such as padding, is left out: its loss and gradient are
        0, even if its logits are NaN.

    Returns
    -------
    scalar or ndarray
        In float64 if `student_logits` are, else in float32. The mean of no positions is NaN.

    Raises
    ------
    TypeError
        If logits are not floating point, or another argument is not numeric.
    ValueError
        If shapes differ, `divergence` or `reduction` is none of these, `beta` is outside of [0, 1], or
        `temperature` is not positive.
    IndexError
        If there is no such `axis`.

    See Also
    --------
    cross_entropy : Takes the teacher's probabilities, or a `cyce.SparseTarget` of its most probable classes.
    cyce.divergence : Statistics of the divergences of two models.

    Notes
    -----
    With probabilities :math:`q` of the teacher and :math:`p` of the student, at the temperature :math:`T`,
    and :math:`m = \beta q + (1 - \beta) p`, the gradients are

    .. math::
        \tfrac{1}{T} (p_c - q_c), \qquad
        \tfrac{1}{T} p_c \Bigl( \log \frac{p_c}{q_c} - D \Bigr), \qquad
        \tfrac{1 - \beta}{T} p_c \Bigl( \log \frac{p_c}{m_c} - \sum_j p_j \log \frac{p_j}{m_j} \Bigr)

    with the divergence :math:`D`. A divergence is a sum of terms that are never negative, such as
    :math:`p_c - q_c + q_c (\log q_c - \log p_c)`, of differences of logits whose rounding errors are carried
    along: near the teacher, nothing cancels. A class whose probabilities are both 0 contributes 0; one that
    the first distribution has and the second lacks makes the divergence infinite, unless its probability
    underflows (below 1e-56 of the highest in float32).

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
       arXiv:1503.02531.
    .. [2] R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
       Mistakes", 2024, arXiv:2306.13649.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> teacher = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> student = np.array([[1.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> print(F.distillation_loss(student, teacher, temperature=2.0).round(4))
    0.0156
    >>> loss, gradient = cyce.value_and_grad(F.distillation_loss)(student, teacher)
    >>> print(gradient.round(4))
    [[-0.1179  0.0648  0.0531]
     [ 0.      0.      0.    ]]

    Near the teacher:

    >>> print(f"{F.distillation_loss(teacher + [1e-6, 0.0, 0.0], teacher):.4g}")
    6.893e-14
    """
    return fused.distillation_loss(
        student_logits,
        teacher_logits,
        temperature,
        divergence,
        reduction,
        beta=beta,
        scale_by_temperature=scale_by_temperature,
        axis=axis,
        sample_weight=sample_weight,
    )[0]
