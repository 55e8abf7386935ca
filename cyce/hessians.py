"""Second derivatives of the losses: diagonals of Hessians, and products of Hessians with vectors."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, cast, overload

from cyce import _signatures, functional
from cyce.fused.requests import HessianRequest
from cyce.gradients import Derivative, of_a_loss_alone
from cyce.modules import BCEWithLogitsLoss, CrossEntropyLoss

__all__ = ["hessian_vector_product", "value_grad_and_hess"]

Module: TypeAlias = CrossEntropyLoss | BCEWithLogitsLoss


@overload
def value_grad_and_hess(loss: Module) -> _signatures.ModuleDerivative[_signatures.Triple]: ...  # type: ignore[overload-overlap]
@overload
def value_grad_and_hess(
    loss: _signatures.FocalLoss,
) -> _signatures.FocalLossDerivative[_signatures.Triple]: ...
@overload
def value_grad_and_hess(
    loss: _signatures.CrossEntropy,
) -> _signatures.CrossEntropyDerivative[_signatures.Triple]: ...
@overload
def value_grad_and_hess(
    loss: _signatures.BinaryCrossEntropyWithLogits,
) -> _signatures.BinaryCrossEntropyWithLogitsDerivative[_signatures.Triple]: ...
@overload
def value_grad_and_hess(loss: _signatures.SigmoidFocalLoss) -> Callable[..., tuple[Any, Any, Any]]: ...
@of_a_loss_alone
def value_grad_and_hess(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any, Any]]:
    r"""Return a function that computes a loss, its gradient and the diagonal of its Hessian.

    All three come from one fused pass. Boosting and diagonal Newton's methods take such steps.

    Parameters
    ----------
    loss : function or module
        `cyce.functional.cross_entropy`, `focal_loss`, `binary_cross_entropy_with_logits` or
        `sigmoid_focal_loss`; or an instance of `cyce.CrossEntropyLoss` or `cyce.BCEWithLogitsLoss`.

    Returns
    -------
    function
        ``f(input, target, ..., *, grad_output=None, out=None) -> (value, gradient, hessian)``. It takes the
        arguments of `loss`, and:

        grad_output : float or array_like of the loss's shape, default=None
            Upstream gradient, as in `value_and_grad`: gradient and Hessian are those of ``(grad_output *
            loss).sum()``.
        out : tuple of two ndarrays of the shape of `input`, default=None
            Where to write the gradient and the Hessian, with any strides and of any of the dtypes float16,
            bfloat16, float32 and float64, each rounded once. Each may be None, for a new array of the dtype
            of `input`. The gradient's may be `input` itself; any other overlap is an error.

        `hessian` has the shape of `input`: the second derivatives
        :math:`\partial^2 / \partial x_c^2`. `value` and `gradient` are those of `value_and_grad`: the same
        bits, or up to rounding if the class strides of the arrays differ.

    Raises
    ------
    TypeError
        If `loss` is none of these, or is a module that overrides `forward` or ``__call__``, or if there are
        more arguments. From the returned function: if `out` is no tuple of two, or an array of another
        dtype; and all that `loss` raises.
    ValueError
        From the returned function: if `softcap` is given, of which there is no second derivative here; if an
        array of `out` has a wrong shape, is read-only or overlaps another one; and all that `loss` raises.

    See Also
    --------
    value_and_grad : The gradient alone.
    hessian_vector_product : The whole Hessian, times a vector.
    cyce.boosting : Objectives of XGBoost and LightGBM.

    Notes
    -----
    With the softmax :math:`p`, the mass :math:`M` of the position's target (the class weight, or the sum of
    weighted probabilities), the coefficient :math:`z` of z-loss and :math:`\ell = \operatorname{logsumexp}`,
    the diagonal of the cross-entropy's Hessian is

    .. math:: (M + 2 z \ell) \, p_c (1 - p_c) + 2 z p_c^2,

    times the sample weight, over the square of the temperature and the denominator of the mean. At a class
    whose probability is above a half, :math:`1 - p_c` is :math:`r / (1 + r)`, with the sum :math:`r` of the
    other exponentials: confident rows have Hessians above 0, where ``p * (1 - p)`` is 0. That of a focal loss
    is exact, too, and may be negative [1]_.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002, appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [40.0, 0.0, 0.0]])
    >>> loss, gradient, hessian = cyce.value_grad_and_hess(F.cross_entropy)(logits, [0, 0], reduction="sum")
    >>> print(f"{loss:.4f}")
    0.3406
    >>> print([f"{value:.4g}" for value in hessian[0]])
    ['0.2053', '0.1335', '0.1131']
    >>> print([f"{value:.4g}" for value in hessian[1]])
    ['8.497e-18', '4.248e-18', '4.248e-18']
    """
    return ValueGradAndHess(loss)


class ValueGradAndHess(Derivative):
    """The function that `value_grad_and_hess` returns."""

    maker = "value_grad_and_hess"
    returns = tuple[Any, Any, Any]
    losses = (
        functional.cross_entropy,
        functional.focal_loss,
        functional.binary_cross_entropy_with_logits,
        functional.sigmoid_focal_loss,
    )

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__(loss)
        check_order(self, self.losses)

    def __call__(
        self, *arguments: Any, grad_output: Any = None, out: Any = None, **named: Any
    ) -> tuple[Any, Any, Any]:
        """Return the value, the gradient and the Hessian, see `value_grad_and_hess`."""
        value, answer = self._answer(HessianRequest(grad_output, out), arguments, named)
        gradient, hessian = (
            answer
            if out is None
            else (array if given is None else given for array, given in zip(answer, out, strict=True))
        )
        return value, gradient, hessian

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return cast(Any, value_grad_and_hess), (self._loss,)


@overload
def hessian_vector_product(loss: Module) -> _signatures.HessianProduct: ...
@overload
def hessian_vector_product(loss: _signatures.CrossEntropy) -> _signatures.HessianProduct: ...
@overload
def hessian_vector_product(loss: _signatures.BinaryCrossEntropyWithLogits) -> _signatures.HessianProduct: ...
@overload
def hessian_vector_product(loss: _signatures.SigmoidFocalLoss) -> Callable[..., Any]: ...
@of_a_loss_alone
def hessian_vector_product(loss: Callable[..., Any]) -> Callable[..., Any]:
    r"""Return a function that computes the product of a loss's Hessian with a vector.

    Newton's method with conjugate gradients, and trust regions, need no more of a Hessian.

    Parameters
    ----------
    loss : function or module
        `cyce.functional.cross_entropy`, `binary_cross_entropy_with_logits` or `sigmoid_focal_loss`; or an
        instance of `cyce.CrossEntropyLoss` or `cyce.BCEWithLogitsLoss`.

    Returns
    -------
    function
        ``f(input, target, vector, *, grad_output=None, out=None, ...) -> product``. It takes the other
        arguments of `loss` by name, and:

        vector : array_like of the shape of `input`
            What to multiply the Hessian by; converted to float64 if `input` is, else to float32. Its numbers
            do not matter at ignored positions.
        grad_output : float or array_like of the loss's shape, default=None
            Upstream gradient, as in `value_and_grad`: the Hessian is that of ``(grad_output * loss).sum()``.
        out : ndarray of the shape of `input`, default=None
            Array to write the product to, with any strides and of dtype float16, bfloat16, float32 or
            float64. It must not overlap an argument. None means a new array of the dtype of `input`.

    Raises
    ------
    TypeError
        If `loss` is none of these, or is a module that overrides `forward` or ``__call__``, or if there are
        more arguments. From the returned function: if `vector` is not numeric, or arguments after it are not
        named; and all that `loss` raises.
    ValueError
        From the returned function: if `vector` is not of the shape of `input`, or `softcap` is given; as
        `value_and_grad` for `out`; and all that `loss` raises.

    See Also
    --------
    value_grad_and_hess : The diagonal of the Hessian.

    Notes
    -----
    The Hessian consists of one block for each position. With :math:`M`, :math:`p`, :math:`z` and :math:`\ell`
    as in `value_grad_and_hess`, its product with a vector :math:`v` is

    .. math:: p_c \bigl( (M + 2 z \ell) (v_c - \bar v) + 2 z \bar v \bigr), \qquad
        \bar v = \sum_j p_j v_j.

    Numbers of :math:`v` are taken relative to that of the highest class, so that nothing cancels in confident
    rows. In torch, it is the second result of ``torch.autograd.functional.hvp``.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> vector = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> product = cyce.hessian_vector_product(F.cross_entropy)(logits, [0, 2], vector)
    >>> print(product[0].round(4), abs(product[1]).max() < 1e-15)
    [ 0.1027 -0.0565 -0.0462] True
    """
    return HessianVectorProduct(loss)


class HessianVectorProduct(Derivative):
    """The function that `hessian_vector_product` returns."""

    maker = "hessian_vector_product"
    call = "input, target, vector"
    returns = Any
    losses = (
        functional.cross_entropy,
        functional.binary_cross_entropy_with_logits,
        functional.sigmoid_focal_loss,
    )

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__(loss)
        check_order(self, self.losses)
        self._names = tuple(inspect.signature(self.function).parameters)[:2]

    def __call__(
        self, *arguments: Any, vector: Any = None, grad_output: Any = None, out: Any = None, **named: Any
    ) -> Any:
        """Return the product, see `hessian_vector_product`."""
        given = (*self._names, "vector")
        if len(arguments) > len(given):
            raise TypeError(
                f"{self.maker}({self.__name__}) takes {', '.join(given)}, and other arguments by name; got "
                f"{len(arguments)} without a name"
            )
        if len(arguments) == len(given):
            if vector is not None:
                raise TypeError(f"{self.maker}({self.__name__}) got vector twice")
            vector = arguments[-1]
            arguments = arguments[:-1]
        if vector is None:
            raise TypeError(
                f"vector: {self.maker}({self.__name__}) needs one, after {given[1]}: an array of the shape "
                f"of {given[0]}"
            )
        _, product = self._answer(HessianRequest(grad_output, out, vector), arguments, named)
        return product if out is None else out

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return cast(Any, hessian_vector_product), (self._loss,)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the loss with `vector` after the target, and all others by name."""
        signature = super().__signature__
        first, second, *others = signature.parameters.values()
        vector = inspect.Parameter("vector", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any)
        named = (parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in others)
        return signature.replace(parameters=[first, second, vector, *named])


def check_order(derivative: Derivative, losses: tuple[Callable[..., Any], ...]) -> None:
    """Raise unless the loss is among those whose second derivatives are known."""
    if derivative.function not in losses:
        *others, last = (loss.__name__ for loss in losses)
        raise TypeError(
            f"loss: {derivative.maker} takes {', '.join(others)} and {last}, or a module of one of these; "
            f"got {derivative.__name__}"
        )
