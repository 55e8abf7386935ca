"""Plain calls: the mean loss of two arrays, without any option, which is what most small calls are.

The kernels look at such arrays themselves, which takes a fraction of the time that Python takes. With all
others, the functions of this folder go on as if nothing had been tried.
"""

from typing import Any

from numpy import ndarray

from cyce._arguments import FLOATS, class_axis, describe_bad_target
from cyce.fused.requests import GradientRequest
from cyce.kernels import dispatch
from cyce.memory.arrays import empty_like
from cyce.threads.budget import budget


def plain_mean(
    input: Any, target: Any, gradient: GradientRequest | None, *, picks: bool
) -> tuple[Any, Any] | None:
    """Return the loss, and its gradient if requested; None if the call is not plain.

    picks: whether the input is log-probabilities. The caller has seen that no option is given.
    """
    if not (type(input) is type(target) is ndarray and input.dtype in FLOATS):
        return None
    grad_out = new_like = None
    if gradient is not None:
        # Of the second order, it is another type.
        if type(gradient) is not tuple:
            return None
        upstream, grad_out = gradient
        if upstream is not None or not (grad_out is None or type(grad_out) is ndarray):
            return None
        if grad_out is None:
            new_like = empty_like
    try:
        answer = dispatch.kernels.plain_mean(input, target, grad_out, new_like, picks, budget())
    except IndexError as error:
        n_classes = input.shape[class_axis(input)]
        raise IndexError(describe_bad_target(error.args[0], target, n_classes, -100)) from None
    return None if answer is None else (input.dtype.type(answer[0]), answer[1])
