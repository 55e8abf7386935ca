"""Tensors and arrays: views of each other's memory, which tensors cyce takes, and torch's own functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyce._arguments import as_array

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)

# torch's own functions, whatever `patch` puts in their place.
TORCH = {
    name: getattr(torch.nn.functional, name)
    for name in (
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "kl_div",
        "linear_cross_entropy",
        "nll_loss",
    )
}


def array_of(tensor: Tensor | None) -> Any:
    """Return a view of a tensor's memory, with or without a gradient; None for None."""
    if tensor is None:
        return None
    return as_array(tensor.detach(), "input") if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return a tensor over an array's memory."""
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def result_of(value: Any, dtype: torch.dtype) -> Tensor:
    """Return a loss as a tensor of this dtype."""
    tensor = torch.from_numpy(np.asarray(value))
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def dtype_of_result(input: Tensor) -> torch.dtype:
    """Return the dtype of torch's loss: that of `input`, but float32 for half precision under autocast."""
    if input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled("cpu"):
        return torch.float32
    return input.dtype


# Subclasses may be anything: fake, nested, of other libraries.
PLAIN = (Tensor, torch.nn.Parameter)


def is_intercepted() -> bool:
    """Return whether a transform, a mode or a tracer wants to see torch's own operators."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
    )


def takes(input: Any, *others: Any, differentiable: Sequence[Any] = ()) -> bool:
    """Return whether cyce computes a loss of `input` with these other tensors.

    differentiable: others with respect to which cyce has gradients, too. Whatever else requires a gradient
    gets it by torch's formula.
    """
    compiles = torch.compiler.is_compiling()
    if not compiles and is_intercepted():
        return False
    if not isinstance(input, Tensor) or input.dtype not in DTYPES or input.numel() == 0:
        return False
    for tensor in (input, *others, *differentiable):
        if tensor is None:
            continue
        # The imaginary part of conjugate numbers has its sign elsewhere.
        if not compiles and (type(tensor) not in PLAIN or tensor.is_neg()):
            return False
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return False
    for other in others:
        if other is None:
            continue
        if other.requires_grad and torch.is_grad_enabled():
            return False
        if other.dtype != input.dtype and other.is_floating_point():
            return False
    return True


def is_target(target: Any, input: Tensor) -> bool:
    """Return whether a target holds class indices as torch takes them, or probabilities."""
    return bool(target.dtype == torch.int64 or (target.dtype == input.dtype and target.shape == input.shape))
