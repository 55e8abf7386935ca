"""torch's loss modules: objects that hold settings and call `cyce.functional`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cyce import functional
from cyce._arguments import FLOAT32, arithmetic_dtype, as_array, as_dtype, as_flag, as_out, as_size
from cyce._losses import LossModule
from cyce._signatures import KLDivReduction, Reduction
from cyce.fused.requests import GradientRequest
from cyce.linear.options import LinearCrossEntropyOptions

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LinearCrossEntropyLoss",
    "LogSoftmax",
    "NLLLoss",
    "Softmax",
    "Softmax2d",
    "Softmin",
]


# ---------------------------------------------------------------------------------------------
# Losses of classes


class CrossEntropyLoss(LossModule):
    """Cross-entropy between logits and targets, as `torch.nn.CrossEntropyLoss`.

    Holds the settings of `cyce.functional.cross_entropy`. As in torch, they are plain attributes, which are
    checked when the loss is computed.

    Parameters
    ----------
    weight : array_like of shape (C,), default=None
        A weight for each class.
    size_average : bool, default=None
        Deprecated, see `reduction`.
    ignore_index : int, default=-100
        Class index of ignored positions.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the positions to one number; "none" returns them all.
    label_smoothing : float in [0, 1], default=0.0
        Fraction of each target that is spread evenly over all classes.
    axis : int, default=None
        The axis of the classes. This and all further arguments are not in torch; see
        `cyce.functional.cross_entropy`.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position; a call may give its own: ``criterion(input, target, sample_weight=w)``.
    normalizer : float, default=None
        Denominator of "mean"; a call may give its own.
    empty : {"nan", "zero"}, default="nan"
        The mean of no positions.
    z_loss : float, default=0.0
        Coefficient of the squared log-sum-exp.
    softcap : float, default=None
        Bound of the logits.
    temperature : float, default=1.0
        Divisor of the logits.
    class_mask : array_like of bool, default=None
        False where a position does not have a class; a call may give its own.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.cross_entropy : The formula, the shapes, the errors.
    cyce.value_and_grad : Loss and gradient in one pass.

    Examples
    --------
    >>> import cyce
    >>> criterion = cyce.CrossEntropyLoss(ignore_index=-1)
    >>> loss = criterion([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [9.0, 9.0, 9.0]], [0, 2, -1])
    >>> print(f"{loss:.4f}")
    0.2577
    """

    per_call = frozenset({"sample_weight", "normalizer", "class_mask"})

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        axis: int | None = None,
        sample_weight: Any = None,
        normalizer: float | None = None,
        empty: Literal["nan", "zero"] = "nan",
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        class_mask: Any = None,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.axis = axis
        self.sample_weight = sample_weight
        self.normalizer = normalizer
        self.empty = empty
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.class_mask = class_mask

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.cross_entropy` and its keyword arguments."""
        return functional.cross_entropy, {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
            "axis": self.axis,
            "sample_weight": self.sample_weight,
            "normalizer": self.normalizer,
            "empty": self.empty,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "temperature": self.temperature,
            "class_mask": self.class_mask,
        }


class NLLLoss(LossModule):
    """Negative log-likelihood of class indices, as `torch.nn.NLLLoss`.

    Holds the settings of `cyce.functional.nll_loss`.

    Parameters
    ----------
    weight : array_like of shape (C,), default=None
        A weight for each class.
    size_average : bool, default=None
        Deprecated, see `reduction`.
    ignore_index : int, default=-100
        Class index of ignored positions.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the positions to one number; "none" returns them all.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.nll_loss : The formula, the shapes, the errors.
    cyce.CrossEntropyLoss : The same loss of logits.

    Examples
    --------
    >>> import cyce
    >>> log_probabilities = cyce.LogSoftmax(dim=1)([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> print(cyce.NLLLoss()(log_probabilities, [0, 2]).round(4))
    0.2577
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.weight = weight
        self.ignore_index = ignore_index

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.nll_loss` and its keyword arguments."""
        return functional.nll_loss, {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }


# ---------------------------------------------------------------------------------------------
# Elementwise losses


class BCEWithLogitsLoss(LossModule):
    """Binary cross-entropy of logits, as `torch.nn.BCEWithLogitsLoss`.

    Holds the settings of `cyce.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    weight : array_like, default=None
        Weights of the elements; must broadcast to the shape of the logits.
    size_average : bool, default=None
        Deprecated, see `reduction`.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the elements to one number; "none" returns them all.
    pos_weight : array_like, default=None
        Factor of the losses of positive targets, such as one number per label.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.binary_cross_entropy_with_logits : The formula, the shapes, the errors.
    cyce.value_and_grad : Loss and gradient in one pass.

    Examples
    --------
    >>> import cyce
    >>> print(cyce.BCEWithLogitsLoss()([2.0, -1.0, 0.5], [1, 0, 1]).round(4))
    0.3048
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        pos_weight: Any = None,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.weight = weight
        self.pos_weight = pos_weight

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.binary_cross_entropy_with_logits` and its keyword arguments."""
        return functional.binary_cross_entropy_with_logits, {
            "weight": self.weight,
            "reduction": self.reduction,
            "pos_weight": self.pos_weight,
        }


class BCELoss(LossModule):
    """Binary cross-entropy of probabilities, as `torch.nn.BCELoss`.

    Holds the settings of `cyce.functional.binary_cross_entropy`.

    Parameters
    ----------
    weight : array_like, default=None
        Weights of the elements; must broadcast to the shape of the probabilities.
    size_average : bool, default=None
        Deprecated, see `reduction`.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the elements to one number; "none" returns them all.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.binary_cross_entropy : The formula, the errors.
    cyce.BCEWithLogitsLoss : The same loss of logits, which is more accurate.

    Examples
    --------
    >>> import cyce
    >>> print(cyce.BCELoss()([0.9, 0.2, 0.5], [1, 0, 1]).round(4))
    0.3406
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.weight = weight

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.binary_cross_entropy` and its keyword arguments."""
        return functional.binary_cross_entropy, {"weight": self.weight, "reduction": self.reduction}


class KLDivLoss(LossModule):
    """Kullback-Leibler divergence, as `torch.nn.KLDivLoss`.

    Holds the settings of `cyce.functional.kl_div`.

    Parameters
    ----------
    size_average : bool, default=None
        Deprecated, see `reduction`.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"none", "batchmean", "mean", "sum"}, default="mean"
        How to reduce the losses of the elements to one number; "none" returns them all.
    log_target : bool, default=False
        Whether targets hold log-probabilities.

    Warns
    -----
    UserWarning
        When called, if `reduction` is "mean".
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.kl_div : The formula, the shapes, the errors.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> criterion = cyce.KLDivLoss(reduction="batchmean")
    >>> print(criterion(np.log([[0.7, 0.2, 0.1]]), [[0.5, 0.25, 0.25]]).round(4))
    0.1166
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: KLDivReduction = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.kl_div` and its keyword arguments."""
        return functional.kl_div, {"reduction": self.reduction, "log_target": self.log_target}


# ---------------------------------------------------------------------------------------------
# The loss of a linear layer's logits


class _Linear:
    """The parameters of a linear layer, as torch's `Linear` holds them.

    Parameters
    ----------
    in_features, out_features : int
        The layer's sizes.
    bias : bool
        Whether there is a bias.
    dtype : dtype
        Dtype of the parameters.
    rng : Generator
        Source of the initial parameters, which are uniform between plus and minus one over the square root
        of `in_features`, as in torch.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: np.dtype[Any], rng: np.random.Generator
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        bound = in_features**-0.5 if in_features else 0.0
        self.weight: Any = _uniform(rng, bound, (out_features, in_features), dtype)
        """Array of shape (out_features, in_features)."""
        self.bias: Any = _uniform(rng, bound, (out_features,), dtype) if bias else None
        """Array of shape (out_features,), or None."""

    def __repr__(self) -> str:
        return (
            f"Linear(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None})"
        )


def _uniform(
    rng: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return random numbers between -bound and bound."""
    array: NDArray[Any] = rng.random(shape, arithmetic_dtype(dtype))
    array *= 2 * bound
    array -= bound
    return array.astype(dtype, copy=False)


class LinearCrossEntropyLoss(LossModule):
    """Cross-entropy of the logits of a linear layer, as `torch.nn.LinearCrossEntropyLoss`.

    Holds the parameters of the layer and the settings of `cyce.functional.linear_cross_entropy`. The
    parameters are arrays, ``module.linear.weight`` of shape (C * d1 * ... * dk, H) and ``module.linear.bias``
    of shape (C * d1 * ... * dk,) or None. They can be changed and assigned.

    Parameters
    ----------
    in_features : int
        Number of features H of a row of `input`.
    num_classes : int
        Number of classes C.
    out_features : tuple of int, default=()
        Further dimensions (d1, ..., dk) of the logits (N, C, d1, ..., dk).
    bias : bool, default=False
        Whether the layer has a bias.
    device : None or "cpu", default=None
        Accepted for compatibility with torch.
    dtype : dtype, default=None
        Dtype of the parameters, float16, bfloat16, float32 or float64. None means float32.
    reduction : {"mean", "sum", "none"}, default="mean"
        How to reduce the losses of the positions to one number; "none" returns them all.
    weight : array_like of shape (C,), default=None
        A weight for each class.
    ignore_index : int, default=None
        Class index of ignored positions. None means -100, and is required with class probabilities.
    label_smoothing : float in [0, 1], default=0.0
        Fraction of each target that is spread evenly over all classes.
    options : LinearCrossEntropyOptions, default=None
        How the rows are cut into chunks. None means ``LinearCrossEntropyOptions()``.
    sample_weight : array_like of the positions' shape, default=None
        A weight for each position; a call may give its own. This and all further arguments are not in
        torch; see `cyce.functional.cross_entropy`.
    normalizer : float, default=None
        Denominator of "mean"; a call may give its own.
    empty : {"nan", "zero"}, default="nan"
        The mean of no positions.
    z_loss : float, default=0.0
        Coefficient of the squared log-sum-exp.
    softcap : float, default=None
        Bound of the logits.
    temperature : float, default=1.0
        Divisor of the logits.
    class_mask : array_like of bool, default=None
        False where a position does not have a class; a call may give its own.
    rng : None, int or numpy.random.Generator, default=None
        Source of the initial parameters: a generator, or a seed for `numpy.random.default_rng`. None means a
        different seed each time.

    Raises
    ------
    TypeError
        If a size is not an integer, or `dtype` is none of those above.
    ValueError
        If a size is negative, `device` is not the CPU, `weight` is not of shape (C,), or `label_smoothing`
        is outside [0, 1].

    See Also
    --------
    cyce.functional.linear_cross_entropy : The formula, the shapes, the errors.
    cyce.value_and_grad : Loss and gradients in one pass.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> criterion = cyce.LinearCrossEntropyLoss(2, 3)
    >>> criterion.linear.weight = np.array([[0.1, 0.2], [1.0, -1.0], [-0.3, 0.4]])
    >>> hidden = np.array([[1.0, -1.0], [0.5, 2.0]])
    >>> print(criterion(hidden, [1, 2]).round(4))
    0.4169

    A descent step:

    >>> loss, (of_hidden, of_weight) = cyce.value_and_grad(criterion)(hidden, [1, 2])
    >>> criterion.linear.weight -= 0.1 * of_weight
    >>> print(criterion(hidden, [1, 2]).round(4))
    0.3734
    """

    per_call = frozenset({"sample_weight", "normalizer", "class_mask"})

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: DTypeLike | None = None,
        reduction: Reduction = "mean",
        weight: Any = None,
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
        rng: Any = None,
    ) -> None:
        super().__init__(None, None, reduction)
        self.num_classes = as_size(num_classes, "num_classes")
        if not isinstance(out_features, tuple | list):
            raise TypeError(f"out_features: must be a tuple of integers, got {type(out_features).__name__}")
        self.out_features = tuple(as_size(size, "out_features") for size in out_features)
        if device is not None and str(device) != "cpu":
            raise ValueError(f"device: must be None or 'cpu', got {device!r}")
        if weight is not None:
            shape = as_array(weight, "weight").shape
            if shape != (num_classes,):
                raise ValueError(
                    f"expected weight shape to be {(num_classes,)}, got {shape}: it must have one number for "
                    "each class"
                )
        # A call rejects anything but a number, as for other settings.
        if (
            isinstance(label_smoothing, float | int | np.floating | np.integer)
            and not 0 <= label_smoothing <= 1
        ):
            raise ValueError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self.sample_weight = sample_weight
        self.normalizer = normalizer
        self.empty = empty
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.class_mask = class_mask
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"rng: must be None, an integer or a numpy.random.Generator: {error}"
            ) from error
        self.linear = _Linear(
            as_size(in_features, "in_features"),
            math.prod(self.out_features, start=self.num_classes),
            as_flag(bias, "bias"),
            FLOAT32 if dtype is None else as_dtype(dtype),
            generator,
        )

    def __repr__(self) -> str:
        settings = {
            "in_features": self.linear.in_features,
            "num_classes": self.num_classes,
            "out_features": self.out_features,
            "bias": self.linear.bias is not None,
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    def evaluate(
        self, gradient: GradientRequest | None, /, input: Any, target: Any, **named: Any
    ) -> tuple[Any, Any]:
        """Return the loss and its gradients, None unless requested, each in the shape of its parameter."""
        if gradient is not None and isinstance(gradient[1], tuple | list):
            gradient = gradient[0], self._split_outs(gradient[1])
        loss, gradients = super().evaluate(gradient, input, target, **named)
        if gradients is None:
            return loss, None
        of_input, *of_parameters = gradients
        shapes = [np.shape(parameter) for parameter in self._parameters().values()]
        merged = (array.reshape(shape) for array, shape in zip(of_parameters, shapes, strict=True))
        return loss, (of_input, *merged)

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters, by the names of the function's arguments."""
        named = {"linear_weight": self.linear.weight, "linear_bias": self.linear.bias}
        return {name: array for name, array in named.items() if array is not None}

    def _split(self, array: Any) -> Any:
        """Return a view of shape (C, d1, ..., dk, ...), as the function takes parameters."""
        return np.reshape(array, (self.num_classes, *self.out_features, *np.shape(array)[1:]))

    def _split_outs(self, outs: Sequence[Any]) -> Sequence[Any]:
        """Return `out` with views as the function takes them."""
        parameters = self._parameters()
        if not self.out_features or len(outs) != 1 + len(parameters):
            return outs
        views = [outs[0]]
        for out, (name, parameter) in zip(outs[1:], parameters.items(), strict=True):
            # Memory and shape only; the function checks the rest.
            like = np.broadcast_to(np.zeros((), as_array(out, "out").dtype), np.shape(parameter))
            views.append(self._split(as_out(out, like, {}, whose=f"{name}'s")))
        return views

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.linear_cross_entropy` and its keyword arguments."""
        linear = self.linear
        for name, array, expected in (
            ("weight", linear.weight, (linear.out_features, linear.in_features)),
            ("bias", linear.bias, (linear.out_features,)),
        ):
            if (array is not None or name == "weight") and np.shape(array) != expected:
                raise ValueError(f"linear.{name}: must have shape {expected}, got {np.shape(array)}")
        return functional.linear_cross_entropy, {
            "linear_weight": self._split(linear.weight),
            "linear_bias": None if linear.bias is None else self._split(linear.bias),
            "weight": self.weight,
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "options": self.options,
            "sample_weight": self.sample_weight,
            "normalizer": self.normalizer,
            "empty": self.empty,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "temperature": self.temperature,
            "class_mask": self.class_mask,
        }


# ---------------------------------------------------------------------------------------------
# The softmax family


class _Normalizer:
    """A function of the softmax family that holds its dimension."""

    _function: Callable[..., Any]

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Any:
        """Return the result; the same as calling the module."""
        # A warning points at the caller of __call__.
        return self._function(input, self.dim, 5)

    def __call__(self, input: Any) -> Any:
        return self.forward(input)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"


class Softmax(_Normalizer):
    """Probabilities of classes from their logits, as `torch.nn.Softmax`.

    Parameters
    ----------
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.

    See Also
    --------
    cyce.functional.softmax : The formula, the errors.

    Examples
    --------
    >>> import cyce
    >>> print(cyce.Softmax(dim=0)([2.0, 0.5, 0.3]).round(3))
    [0.711 0.159 0.13 ]
    """

    _function = staticmethod(functional.softmax)


class LogSoftmax(_Normalizer):
    """Logarithms of the probabilities of classes, as `torch.nn.LogSoftmax`.

    Parameters
    ----------
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.

    See Also
    --------
    cyce.functional.log_softmax : The formula, the errors.

    Examples
    --------
    >>> import cyce
    >>> print(cyce.LogSoftmax(dim=0)([2.0, 0.5, 0.3]).round(3))
    [-0.341 -1.841 -2.041]
    """

    _function = staticmethod(functional.log_softmax)


class Softmin(_Normalizer):
    """Softmax of the negative logits, as `torch.nn.Softmin`.

    Parameters
    ----------
    dim : int, default=None
        The axis of the classes. None means 0 for 0, 1 or 3 dimensions, else 1, with a warning.

    See Also
    --------
    cyce.functional.softmin : The formula, the errors.

    Examples
    --------
    >>> import cyce
    >>> print(cyce.Softmin(dim=0)([2.0, 0.5, 0.3]).round(3))
    [0.091 0.409 0.5  ]
    """

    _function = staticmethod(functional.softmin)


class Softmax2d(_Normalizer):
    """Softmax over the channels of images, as `torch.nn.Softmax2d`.

    See Also
    --------
    cyce.functional.softmax : The formula.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> images = np.zeros((2, 4, 3, 3))
    >>> print(cyce.Softmax2d()(images)[0, :, 0, 0])
    [0.25 0.25 0.25 0.25]
    """

    def __init__(self) -> None:
        super().__init__(dim=-3)

    def forward(self, input: Any) -> Any:
        """Return the result; the same as calling the module.

        Parameters
        ----------
        input : array_like of shape (N, C, H, W) or (C, H, W)
            Logits.

        Raises
        ------
        ValueError
            If `input` has another number of dimensions.
        """
        n_dims = as_array(input, "input").ndim
        if n_dims not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {n_dims}D instead")
        return functional.softmax(input, self.dim)

    def __repr__(self) -> str:
        return "Softmax2d()"
