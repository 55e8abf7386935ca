"""Cross-entropy of a linear layer's logits."""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from cyce._losses import has_gradient
from cyce._signatures import Reduction
from cyce.linear import evaluate
from cyce.linear.options import LinearCrossEntropyOptions


@overload
def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: Literal["mean", "sum"] = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> np.floating[Any]: ...
@overload
def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: Literal["none"],
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> NDArray[Any]: ...
@has_gradient(evaluate.linear_cross_entropy)
def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Any:
    r"""Cross-entropy of the logits of a linear layer, as `torch.nn.functional.linear_cross_entropy`.

    The same loss as ``cross_entropy(input @ linear_weight.T + linear_bias, target)``, but the logits are
    never in memory as a whole: for the last layer of language models, whose logits take more memory than
    everything else.

    Parameters
    ----------
    input : array_like of shape (H,) or (N, H)
        Hidden states of H features, float16, bfloat16 (of ml_dtypes), float32 or float64. Half precision is
        computed in float32: weights are converted a block at a time, and their gradient is a sum in float32,
        which is rounded once.
    linear_weight : array_like of shape (C, H) or (C, d1, ..., dk, H)
        Weights of the layer for C classes, at 1 or d1 * ... * dk positions of each row of `input`; in the
        dtype of `input`. If a row counts at some of its positions only, the weights of all positions take
        part in the products: NaN or infinite weights of an ignored position reach the gradient of `input`.
    target : array_like
        As in `cross_entropy`, for logits of shape (C,), (N, C) or (N, C, d1, ..., dk): class indices of
        shape (), (N,) or (N, d1, ..., dk), or class probabilities of the shape of the logits.
    linear_bias : array_like of shape (C,) or (C, d1, ..., dk), default=None
        Bias of the layer; in the dtype of `input`.
    weight : array_like of shape (C,), default=None
        A weight for each class, cast to the dtype of the result.
    reduction : {"mean", "sum", "none"}, default="mean"
        As in `cross_entropy`.
    ignore_index : int, default=None
        Class index of ignored positions, for class indices only. None means -100. Rows with ignored
        positions only take no part in any product.
    label_smoothing : float in [0, 1], default=0.0
        As in `cross_entropy`.
    options : LinearCrossEntropyOptions, default=None
        How the rows are cut into chunks. None means ``LinearCrossEntropyOptions()``; in torch, it means all
        rows at once.
    sample_weight : array_like of the positions' shape, default=None
        As in `cross_entropy`. This and all further arguments are not in torch.
    normalizer : float, default=None
        As in `cross_entropy`.
    empty : {"nan", "zero"}, default="nan"
        As in `cross_entropy`.
    z_loss : float, default=0.0
        As in `cross_entropy`.
    softcap : float, default=None
        As in `cross_entropy`.
    temperature : float, default=1.0
        As in `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As in `cross_entropy`. `cyce.value_and_grad` also returns the tuple of the gradients with respect to
        `input`, `linear_weight` and, if it is given, `linear_bias`, and takes such a tuple as `out`.

    Raises
    ------
    TypeError
        If `linear_weight` or `linear_bias` does not have the dtype of `input`, and as `cross_entropy`.
    ValueError
        If shapes do not fit, if `ignore_index` is given with class probabilities, and as `cross_entropy`.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`.

    See Also
    --------
    cross_entropy : The formula and the arguments in detail.
    cyce.LinearCrossEntropyLoss : The same loss as an object that holds the layer's weights and the settings.

    Notes
    -----
    With hidden states :math:`X`, weights :math:`W`, bias :math:`b` and the gradient :math:`G` of
    `cross_entropy` with respect to the logits :math:`X W^T + b`, the gradients are

    .. math::
        \frac{\partial \ell}{\partial X} = G W, \qquad
        \frac{\partial \ell}{\partial W} = G^T X, \qquad
        \frac{\partial \ell}{\partial b} = \sum_n G_n

    computed in one pass over chunks of rows. A buffer holds the logits of a chunk and then :math:`G` [1]_.
    Beyond inputs and gradients, it is nearly all the memory that the call takes. If some rows are ignored,
    the others of each chunk are copied. With 13 or more chunks, the rounding errors of the gradient of the
    weights are kept and compensated, which takes half the memory of the weights. Matrices that BLAS cannot
    read (gaps along both axes, negative or zero strides) are copied first; arrays of `out` that are not
    C-contiguous are written at the end.

    NumPy's BLAS computes the products. Calls that are large enough for several threads share the products
    among as many threads as `cyce.set_num_threads` allows. During such a call, BLAS is limited to one thread
    in the whole process. Results are the same bits for any number of threads if BLAS gives the same
    bits for the same product; another BLAS or another CPU rounds differently.

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
    return evaluate.linear_cross_entropy(
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
