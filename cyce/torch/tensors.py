"""Tensors and arrays: views of each other's memory, which tensors cyce takes, and torch's own functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

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


def tensor_of(array: NDArray[Any] | None) -> Tensor | None:
    """Return a tensor over an array's memory; None for None."""
    if array is None:
        return None
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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_transformed() -> bool:
    """Return whether a transform of torch.func, such as vmap, is at work.

    A compiler calls this while it reads the code, and guards the transforms itself.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_intercepted() -> bool:
    """Return whether a mode or a tracer wants to see torch's own operators."""
    return (
        torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
        or (
            torch._C._len_torch_function_stack() > 0
            # Of torch.device(...), which says where new tensors are.
            and not all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
        )
    )


def class_axis(input: Tensor, axis: int | None = None) -> int:
    """Return the axis of the classes: the given one, or torch's."""
    return axis if axis is not None else (0 if input.ndim == 1 else 1)


def takes(input: Any, target: Any, *factors: Any, differentiable: Sequence[Any] = ()) -> bool:
    """Return whether cyce computes a loss of `input` with a target and factors, each a tensor or None.

    differentiable: others with respect to which cyce has gradients, too. Whatever else requires a gradient
    gets it by torch's formula.
    """
    compiles = torch.compiler.is_compiling()
    if is_transformed() or (not compiles and is_intercepted()):
        return False
    given = (input, target, *differentiable, *(factor for factor in factors if factor is not None))
    if not all(isinstance(tensor, Tensor) for tensor in given) or input.dtype not in DTYPES:
        return False
    for tensor in given:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return False
        if tensor is not target and tensor.dtype != input.dtype:
            return False
        # The imaginary part of conjugate numbers has its sign elsewhere, zero tensors have no memory.
        if not compiles and (type(tensor) not in PLAIN or tensor.is_neg() or tensor._is_zerotensor()):
            return False
    if torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (target, *factors) if tensor is not None
    ):
        return False
    # Compilers cannot branch on a size that they do not know.
    return compiles or bool(input.numel() > 0)


def is_target(target: Tensor, input: Tensor) -> bool:
    """Return whether a target holds class indices as torch takes them, or probabilities."""
    return bool(target.dtype == torch.int64 or (target.dtype == input.dtype and target.shape == input.shape))


def are_options(ignore_index: Any, label_smoothing: Any = 0.0) -> bool:
    """Return whether options are of types, and in a range, that torch accepts and cyce, too."""
    return (
        type(ignore_index) is int and type(label_smoothing) in (int, float) and 0.0 <= label_smoothing <= 1.0
    )
