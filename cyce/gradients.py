"""Gradients of the losses, computed in the same pass as the losses themselves."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

from cyce import _signatures
from cyce._arguments import described
from cyce._losses import LossModule, evaluator_of
from cyce.fused.requests import GradientRequest

__all__ = ["value_and_grad"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Arguments of the evaluators that no caller may pass.
INTERNAL = frozenset({"gradient", "stats", "wanted", "focus"})


def of_a_loss_alone(function: Function) -> Function:
    """Decorate `value_and_grad`, or its like, with an error if it is passed arguments of the loss."""

    @functools.wraps(function)
    def check(loss: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if arguments or named:
            name = function.__name__
            given = "input, target, vector" if name == "hessian_vector_product" else "input, target"
            raise TypeError(
                f"{name} takes only a loss and returns a function of the loss's arguments: "
                f"{name}(cross_entropy)({given})"
            )
        return function(loss)

    return cast(Function, check)


@overload
def value_and_grad(loss: LossModule) -> _signatures.ModuleDerivative[_signatures.Pair]: ...  # type: ignore[overload-overlap]
@overload
def value_and_grad(loss: _signatures.FocalLoss) -> _signatures.FocalLossDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(
    loss: _signatures.CrossEntropy,
) -> _signatures.CrossEntropyDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(loss: _signatures.NLLLoss) -> _signatures.NLLLossDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(
    loss: _signatures.BinaryCrossEntropyWithLogits,
) -> _signatures.BinaryCrossEntropyWithLogitsDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(
    loss: _signatures.BinaryCrossEntropy,
) -> _signatures.BinaryCrossEntropyDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(loss: _signatures.KLDiv) -> _signatures.KLDivDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(
    loss: _signatures.LinearCrossEntropy,
) -> _signatures.LinearCrossEntropyDerivative[_signatures.Pair]: ...
@overload
def value_and_grad(loss: _signatures.OtherFunction) -> Callable[..., tuple[Any, Any]]: ...
@of_a_loss_alone
def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    r"""Return a function that computes a loss and its gradient with respect to its first argument.

    Both come from one fused pass over the logits; of softmax, log_softmax and logsumexp, from two.

    Parameters
    ----------
    loss : function or module
        A loss function of `cyce.functional`, such as `cyce.functional.cross_entropy`, or a loss module, such
        as an instance of `cyce.CrossEntropyLoss`. Also softmax, log_softmax, logsumexp,
        selective_log_softmax, linear_selective_log_softmax, entropy, sigmoid and logsigmoid. Their gradient
        is the vector-Jacobian product with `grad_output`, which has the shape of the result.

    Returns
    -------
    function
        ``f(input, target, ..., *, grad_output=None, out=None) -> (value, gradient)``. It takes the
        arguments of `loss` and:

        grad_output : float or array_like of the loss's shape, default=None
            Upstream gradient: the gradient is that of ``(grad_output * loss).sum()``. With
            ``reduction="none"``, one number per position or one for all; else one number. None
            means 1.
        out : ndarray of the shape and dtype of `input`, default=None
            Array to write the gradient to, with any strides. If `input` is half precision, `out` may be
            float32; the gradient is then not rounded to half precision. `out` may be `input` itself, which is
            then overwritten; any other overlap with an argument is an error. None means a new array, whose
            memory is kept for the next ones when nothing refers to it any more.

        `value` is what `loss` returns: the same bits, or up to rounding if the class strides of `out` and
        `input` differ. `gradient` has the shape and dtype of `input`, and is `out` if that is given.

        For `cyce.functional.linear_cross_entropy`, `linear_selective_log_softmax` and
        `cyce.LinearCrossEntropyLoss`, `gradient` and `out` are tuples of the gradients with respect to
        `input`, the layer's weights and its bias, if it has one, each in the shape of that array. No array of
        `out` may share memory with an argument.

    Raises
    ------
    TypeError
        If `loss` is not a loss of cyce, or is a module that overrides `forward` or ``__call__``, or if there
        are more arguments. From the returned function: if `out` is not an array of the dtype of `input`, or
        `grad_output` is not numeric; and all that `loss` raises.
    ValueError
        From the returned function: if `out` or `grad_output` has a wrong shape, or `out` is read-only or
        overlaps an argument; and all that `loss` raises. `out` is unchanged then.

    See Also
    --------
    cyce.functional.cross_entropy : The formula of its gradient.

    Notes
    -----
    The name is that of ``jax.value_and_grad`` and ``mlx.core.value_and_grad``. In torch,
    ``loss.backward(grad_output)`` leaves the same gradient in ``input.grad``.

    Examples
    --------
    >>> import numpy as np
    >>> import cyce
    >>> import cyce.functional as F
    >>> logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    >>> loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, [0, 2])
    >>> print(f"{loss:.4f}")
    0.2577
    >>> print(gradient.round(4))
    [[-0.1443  0.0794  0.065 ]
     [ 0.0381  0.0421 -0.0802]]

    In place: the gradient overwrites the logits.

    >>> criterion = cyce.CrossEntropyLoss(label_smoothing=0.1)
    >>> _, gradient = cyce.value_and_grad(criterion)(logits, [0, 2], out=logits)
    >>> gradient is logits
    True
    """
    return ValueAndGrad(loss)


class Derivative:
    """A function of a loss's arguments, that `value_and_grad` or one of its like returns."""

    maker: str
    """Name of what returns it."""
    call = "input, target"
    """Arguments of an example in errors."""
    returns: Any = tuple[Any, Any]
    """What its signature says that it returns."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        if isinstance(loss, LossModule):
            for method in ("forward", "__call__"):
                if getattr(type(loss), method) is not getattr(LossModule, method):
                    raise TypeError(
                        f"loss: {type(loss).__name__} overrides {method}, so that its derivatives are "
                        "unknown; pass a loss module of cyce, or a function"
                    )
        self._loss = loss
        function = loss.loss_and_settings()[0] if isinstance(loss, LossModule) else loss
        evaluate = evaluator_of(function)
        if evaluate is None:
            what = getattr(loss, "__name__", None) or described(loss)
            raise TypeError(
                f"loss: must be a loss function or loss module of cyce, got {what}; {self._advice()}"
            )
        self._evaluate = evaluate
        self.function = function
        self.__name__ = function.__name__

    def _advice(self) -> str:
        """Return advice on what to pass instead of an object that is not a loss."""
        loss = self._loss
        if isinstance(loss, type) and issubclass(loss, LossModule):
            return f"create the module first: {loss.__name__}()"
        if isinstance(loss, functools.partial) or getattr(loss, "__name__", "") == "<lambda>":
            return (
                "pass the loss itself, and the options to the returned function, "
                f"{self.maker}(cross_entropy)({self.call}, label_smoothing=0.1), or pass a module with these "
                "options, CrossEntropyLoss(label_smoothing=0.1)"
            )
        return f"call {self.maker}(cross_entropy)({self.call})"

    def _answer(
        self, request: GradientRequest, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return the value, and what the request is for."""
        if isinstance(self._loss, LossModule):
            # Read the settings at each call: they may change.
            return self._loss.evaluate(request, *arguments, **named)
        if named and not INTERNAL.isdisjoint(named):
            name = min(INTERNAL.intersection(named))
            raise TypeError(f"{self.__name__}() got an unexpected keyword argument {name!r}")
        return self._evaluate(*arguments, **named, gradient=request)

    def __repr__(self) -> str:
        return f"{self.maker}({getattr(self._loss, '__name__', self._loss)})"

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the loss with `grad_output` and `out`."""
        loss: Callable[..., Any] = self._loss
        per_call: list[str] = []
        if isinstance(self._loss, LossModule):
            loss, per_call = self._loss.forward, sorted(self._loss.per_call)
        extra = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)
            for name in (*per_call, "grad_output", "out")
        ]
        signature = inspect.signature(loss)
        # The **named of a module are its per_call; `out` is for the gradient, not for the softmax.
        parameters = signature.parameters.values()
        own = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "out"]
        return signature.replace(parameters=[*own, *extra], return_annotation=self.returns)


class ValueAndGrad(Derivative):
    """The function that `value_and_grad` returns."""

    maker = "value_and_grad"

    def __call__(
        self, *arguments: Any, grad_output: Any = None, out: Any = None, **named: Any
    ) -> tuple[Any, Any]:
        """Return the value and the gradient, see `value_and_grad`."""
        value, gradient = self._answer((grad_output, out), arguments, named)
        # `out` itself, not the view of it: it may be an array of another library.
        return value, gradient if out is None else out

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return value_and_grad, (self._loss,)
