"""What a loss is to the rest of cyce: a function whose gradient is known, or a module around one."""

from collections.abc import Callable
from typing import Any, TypeVar

from cyce._arguments import legacy_reduction
from cyce.fused.requests import GradientRequest

Loss = TypeVar("Loss", bound=Callable[..., Any])
Evaluator = Callable[..., tuple[Any, Any]]

_evaluators: dict[Any, Evaluator] = {}


def has_gradient(evaluate: Evaluator) -> Callable[[Loss], Loss]:
    """Decorate a loss function with the function that also computes its gradient.

    `evaluate` takes the loss's arguments and `gradient`, a GradientRequest or None. It returns the loss
    and the gradient, which is None without a request. It is named as the loss.
    """

    def register(loss: Loss) -> Loss:
        _evaluators[loss] = evaluate
        return loss

    return register


def evaluator_of(loss: Any) -> Evaluator | None:
    """Return the function that computes a loss function and its gradient; None if there is none."""
    try:
        return _evaluators.get(loss)
    except TypeError:
        # not hashable
        return None


class LossModule:
    """Settings of a loss function; calling it computes the loss."""

    per_call: frozenset[str] = frozenset()
    """Settings that a call may override, because they belong to its data."""

    def __init__(self, size_average: bool | None, reduce: bool | None, reduction: str) -> None:
        if size_average is not None or reduce is not None:
            reduction = legacy_reduction(size_average, reduce)
        self.reduction = reduction

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the loss function and the settings as its keyword arguments."""
        raise NotImplementedError

    def _of_call(self, named: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the loss function and the settings, some of which a call overrides by name."""
        for name in named:
            if name not in self.per_call:
                raise TypeError(f"{type(self).__name__}: a call takes no argument {name!r}")
        function, settings = self.loss_and_settings()
        return function, {**settings, **named}

    def evaluate(
        self, gradient: GradientRequest | None, /, input: Any, target: Any, **named: Any
    ) -> tuple[Any, Any]:
        """Return the loss and its gradient, None unless requested."""
        function, settings = self._of_call(named)
        return _evaluators[function](input=input, target=target, **settings, gradient=gradient)

    def forward(self, input: Any, target: Any, **named: Any) -> Any:
        """Return the loss; the same as calling the module."""
        return self.evaluate(None, input, target, **named)[0]

    def __call__(self, input: Any, target: Any, **named: Any) -> Any:
        return self.forward(input, target, **named)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
