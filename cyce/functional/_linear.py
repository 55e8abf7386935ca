"""Functions of a linear layer's logits, which are never in memory as a whole."""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from cyce._losses import has_gradient
from cyce._signatures import Reduction
from cyce.functional._cross_entropy import CrossEntropyStats, finished_stats
from cyce.linear import evaluate, statistics
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
    class_mask: Any = None,
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
    class_mask: Any = None,
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
    class_mask: Any = None,
) -> Any:
    r"""Cross-entropy of the logits of a linear layer, as `torch.nn.functional.linear_cross_entropy`.

    The same loss as ``cross_entropy(input @ linear_weight.T + linear_bias, target)``, but with the logits of
    a chunk of rows in memory at a time (see `options`): for the last layer of language models, whose logits
    take more memory than everything else.

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
        shape (), (N,) or (N, d1, ..., dk), class probabilities of the shape of the logits, or a
        `cyce.SparseTarget`.
    linear_bias : array_like of shape (C,) or (C, d1, ..., dk), default=None
        Bias of the layer; in the dtype of `input`.
    weight : array_like of shape (C,), default=None
        A weight for each class, cast to the dtype of the result.
    reduction : {"mean", "sum", "none"}, default="mean"
        As in `cross_entropy`.
    ignore_index : int, default=None
        Class index of ignored positions, for class indices and sparse targets; must be None with class
        probabilities. None means -100. Rows whose positions are all ignored take no part in any product.
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
    class_mask : array_like of bool, default=None
        As in `cross_entropy`; must broadcast to the shape of the logits.

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
    linear_cross_entropy_stats : Predictions, ranks and more, in one pass.
    linear_selective_log_softmax : Log-probabilities of chosen classes.
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
        class_mask=class_mask,
    )[0]


@has_gradient(statistics.linear_selective_log_softmax)
def linear_selective_log_softmax(
    input: Any,
    linear_weight: Any,
    index: Any,
    *,
    linear_bias: Any = None,
    return_entropy: bool = False,
    options: LinearCrossEntropyOptions | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> Any:
    r"""Log-probabilities of chosen classes of a linear layer, a chunk of its logits at a time.

    The same as ``selective_log_softmax(input @ linear_weight.T + linear_bias, index)``, a chunk of rows at a
    time: for policies over the vocabulary of a language model.

    Parameters
    ----------
    input : array_like of shape (H,) or (N, H)
        Hidden states, as in `linear_cross_entropy`.
    linear_weight : array_like of shape (C, H) or (C, d1, ..., dk, H)
        Weights of the layer, in the dtype of `input`.
    index : array_like of int
        The chosen classes, as in `selective_log_softmax` of logits of shape (C,), (N, C) or
        (N, C, d1, ..., dk): of shape (), (N,) or (N, d1, ..., dk), or with an axis of K at that of C.
    linear_bias : array_like of shape (C,) or (C, d1, ..., dk), default=None
        Bias of the layer; in the dtype of `input`.
    return_entropy : bool, default=False
        Whether to return the entropy of each position, too.
    options : LinearCrossEntropyOptions, default=None
        How the rows are cut into chunks.
    softcap, temperature, class_mask
        As in `cross_entropy`.

    Returns
    -------
    ndarray, or tuple of two
        As `selective_log_softmax`. `cyce.value_and_grad` also returns the tuple of the gradients with respect
        to `input`, `linear_weight` and, if it is given, `linear_bias`.

    Raises
    ------
    TypeError
        If `linear_weight` or `linear_bias` does not have the dtype of `input`, or `index` is not integer.
    ValueError
        If shapes do not fit, `softcap` or `temperature` is not positive, or `class_mask` leaves out a chosen
        class.
    IndexError
        If a chosen class is not in [0, C).

    See Also
    --------
    selective_log_softmax : The formula, and `grad_output`.
    linear_cross_entropy : How the layer is computed.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> hidden = np.array([[1.0, -1.0], [0.5, 2.0]])
    >>> vocabulary = np.array([[0.1, 0.2], [1.0, -1.0], [-0.3, 0.4]])
    >>> print(F.linear_selective_log_softmax(hidden, vocabulary, [1, 2]).round(4))
    [-0.1737 -0.6602]
    """
    return statistics.linear_selective_log_softmax(
        input,
        linear_weight,
        index,
        linear_bias=linear_bias,
        return_entropy=return_entropy,
        options=options,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
    )[0]


def linear_cross_entropy_stats(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    class_mask: Any = None,
) -> CrossEntropyStats:
    """Cross-entropy, predictions, ranks and more of a linear layer, a chunk of its logits at a time.

    Parameters
    ----------
    input : array_like of shape (H,) or (N, H)
        Hidden states, as in `linear_cross_entropy`.
    linear_weight : array_like of shape (C, H) or (C, d1, ..., dk, H)
        Weights of the layer, in the dtype of `input`.
    target : array_like of int of shape (), (N,) or (N, d1, ..., dk)
        Class indices.
    linear_bias : array_like of shape (C,) or (C, d1, ..., dk), default=None
        Bias of the layer; in the dtype of `input`.
    weight, label_smoothing, z_loss, softcap, temperature, class_mask
        As in `cross_entropy_stats`.
    ignore_index : int, default=None
        Class index of ignored positions. None means -100.
    options : LinearCrossEntropyOptions, default=None
        How the rows are cut into chunks.

    Returns
    -------
    CrossEntropyStats
        As `cross_entropy_stats` of the logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `linear_cross_entropy`; TypeError also if `target` is not class indices.

    See Also
    --------
    cross_entropy_stats : The statistics, from logits.
    linear_cross_entropy : The loss alone, and its gradients.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce.functional as F
    >>> hidden = np.array([[1.0, -1.0], [0.5, 2.0]])
    >>> vocabulary = np.array([[0.1, 0.2], [1.0, -1.0], [-0.3, 0.4]])
    >>> stats = F.linear_cross_entropy_stats(hidden, vocabulary, [1, 0])
    >>> print(stats.prediction, stats.means.correct, stats.entropy.round(4))
    [1 2] 0.5 [0.5424 0.8742]
    """
    request, mean_loss = statistics.linear_cross_entropy_stats(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        class_mask=class_mask,
    )
    return finished_stats(request, mean_loss)
