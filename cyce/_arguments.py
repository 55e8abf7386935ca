"""Validation of the arguments of a call, and their conversion for the kernels.

Each function takes one argument as the caller gave it and returns what the kernels take. Errors begin with
torch's message, if torch has one, and say what to do. Arrays of the size of the logits are copied only if
their dtype, byte order or alignment requires it.

Logits are stored as float16, bfloat16, float32 or float64. What is computed, and returned for each position,
is float64 for float64 and float32 for the others: the dtype of the arithmetic.
"""

import importlib
import inspect
import operator
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce.kernels.arguments import CrossEntropyArguments

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
# The dtypes of the arithmetic.
FLOATS = (FLOAT32, FLOAT64)
UINT16 = np.dtype(np.uint16)
# The most frequent first.
INTEGERS = tuple(map(np.dtype, ("int64", "int32", "uint8", "int16", "int8", "uint16", "uint32", "uint64")))

# Names of dtypes in torch's messages.
_TORCH_NAMES = {
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "float32": "Float",
    "float64": "Double",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}


def _torch_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype in torch's messages; NumPy's name if torch has no such dtype."""
    return _TORCH_NAMES.get(dtype.name, dtype.name)


# ---------------------------------------------------------------------------------------------
# Dtypes


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether this is the bfloat16 of ml_dtypes, which NumPy does not count among the floats."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return whether numbers of this dtype are stored in half precision, in any byte order."""
    return (dtype.kind == "f" and dtype.itemsize == 2) or is_bfloat16(dtype)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether this is a floating point dtype that the kernels read, in any byte order."""
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or is_bfloat16(dtype)


def _are_bits(dtype: np.dtype[Any]) -> bool:
    """Return whether this is what bfloat16 becomes in files: NumPy's have no name for it."""
    return dtype.kind in "uV" and dtype.itemsize == 2 and dtype.name in ("uint16", "void16")


def arithmetic_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return what is computed with, for logits of a dtype: itself, or float32 for half precision."""
    return dtype if dtype in FLOATS else FLOAT32


def as_stored(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the form that the kernels take: bfloat16, which buffers cannot name, as its bits."""
    return array.view(UINT16) if is_bfloat16(array.dtype) else array


# ---------------------------------------------------------------------------------------------
# Arrays of any origin: lists, tensors, foreign arrays


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return a view of `value`, or a new array if it has no memory to view."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: a masked array is not supported, its mask would be lost; fill it "
            f"({name}.filled(...)), or set target to ignore_index at positions to ignore"
        )
    if not isinstance(value, (np.ndarray, np.generic, list, tuple, int, float)):
        _check_foreign(value, name)
    try:
        if _is_tensor(value) and str(value.dtype) == "torch.bfloat16":
            return _view_bfloat16_of_tensor(value)
        if _speaks_only_dlpack(value):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ModuleNotFoundError as error:
        raise TypeError(f"{name}: {error}") from None
    except Exception as error:
        # A foreign __array__ may raise anything; torch raises RuntimeError if a tensor requires a gradient.
        advice = f"; convert it: {name}.detach().cpu()" if _is_tensor(value) else ""
        if advice and value.requires_grad:
            advice = f"; for a loss with a backward pass, use cyce.torch; for arrays{advice[1:]}"
        raise TypeError(f"{name}: cannot be read as an array: {error}{advice}") from error


def _is_tensor(value: Any) -> bool:
    """Return whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def _view_bfloat16_of_tensor(tensor: Any) -> NDArray[Any]:
    """Return a view of a tensor of bfloat16, which its own method `numpy` refuses."""
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise TypeError(f"it is a tensor of layout {tensor.layout}; make it dense by to_dense()")
    if tensor.requires_grad:
        raise TypeError("it is a tensor that requires a gradient")
    bits: NDArray[Any] = tensor.view(torch.int16).numpy()
    try:
        return bits.view(importlib.import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "NumPy has no bfloat16 of its own; install the package that has: pip install ml_dtypes"
        ) from None


def _speaks_only_dlpack(value: Any) -> bool:
    """Return whether an object offers its memory by DLPack, and in no older way."""
    older = ("__array__", "__array_interface__", "__array_struct__")
    return hasattr(value, "__dlpack__") and not any(hasattr(value, name) for name in older)


def _check_foreign(value: Any, name: str) -> None:
    """Raise for objects that NumPy would read as a scalar object, or load completely."""
    if hasattr(value, "__dask_graph__"):
        raise TypeError(
            f"{name}: a Dask collection is not supported, it would be loaded completely; cyce.dask has "
            "cross_entropy, softmax, log_softmax and evaluate for Dask arrays, or load it first: "
            f"{name}.compute()"
        )
    if isinstance(value, getattr(sys.modules.get("cyce._targets"), "SparseTarget", ())):
        raise TypeError(
            f"{name}: a SparseTarget is not supported here; cross_entropy and linear_cross_entropy take it "
            "as target"
        )
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name}: a sparse array is not supported; convert it: {name}.toarray()")


def _cast(value: Any, name: str, dtype: str) -> str:
    """Return the code that casts an argument: dtype is "float32", "float64" or "int"."""
    if _is_tensor(value):
        method = {"float32": "float", "float64": "double", "int": "long"}[dtype]
        return f"{name}.{method}()"
    dtype = dtype if dtype == "int" else f"np.{dtype}"
    if hasattr(value, "astype"):
        return f"{name}.astype({dtype})"
    return f"np.asarray({name}, dtype={dtype})"


def _refuse_bits(dtype: np.dtype[Any], value: Any, name: str, what: str) -> None:
    """Raise if this may be bfloat16 that is not named as such: taken as integers, it gives nonsense."""
    if _are_bits(dtype):
        package = "torch" if _is_tensor(value) else "ml_dtypes"
        raise TypeError(
            f"{name}: {what} must be floating point, got {dtype.name}; if these are the bits of bfloat16, "
            f"view them as such: {name}.view({package}.bfloat16)"
        )


def _native(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array if it has this dtype and is aligned, else a copy."""
    if array.dtype != dtype or not array.flags.aligned:
        # As in arithmetic of this dtype, numbers may overflow to infinity or underflow to 0.
        with np.errstate(all="ignore"):
            return np.array(array, dtype=dtype, order="K", copy=True)
    return array


# ---------------------------------------------------------------------------------------------
# Logits and other floating point inputs; dtypes


def as_logits(value: Any, what: str = "logits", name: str = "input", target: Any = None) -> NDArray[Any]:
    """Return logits as a native, aligned floating point array of at least one dimension.

    what, name: content and name of the argument, for errors. target: the next argument, to detect that the
    two are swapped.
    """
    if type(value) is np.ndarray and value.dtype in FLOATS and value.ndim:
        return value if value.flags.aligned else _native(value, value.dtype)
    array = as_array(value, name)
    kind = array.dtype.kind
    target_dtype = getattr(target, "dtype", None)
    if kind in "iub" and isinstance(target_dtype, np.dtype) and _is_floating(target_dtype):
        raise TypeError(
            f"{name}: {what} must be floating point, got {array.dtype.name}, and {target.dtype.name} for "
            f"target: they seem to be swapped, {name} comes first"
        )
    _refuse_bits(array.dtype, value, name, what)
    if kind in "iub":
        raise TypeError(
            f"{name}: {what} must be floating point, got {array.dtype.name}; cast them: "
            f"{_cast(value, name, 'float32')}"
        )
    if kind == "c":
        raise TypeError(
            f"{name}: {what} must be real, got {array.dtype.name}; pass {name}.real or abs({name})"
        )
    if kind == "f" and not _is_floating(array.dtype):
        dtype = "float64" if array.dtype.itemsize > 8 else "float32"
        raise TypeError(
            f"{name}: {what} must be float16, bfloat16, float32 or float64, got {array.dtype.name}; cast "
            f"them: {_cast(value, name, dtype)}"
        )
    if not _is_floating(array.dtype):
        raise TypeError(
            f"{name}: {what} must be an array of float16, bfloat16, float32 or float64, got dtype "
            f"{array.dtype.name}; convert them: np.asarray({name}, dtype=np.float32)"
        )
    if not array.ndim:
        raise ValueError(f"{name}: {what} need at least one dimension, the classes; got a scalar")
    return _native(array, array.dtype.newbyteorder("="))


def as_floating(value: Any, dtype: Any = None, what: str = "logits", name: str = "input") -> NDArray[Any]:
    """Return the same as `as_logits`, cast to dtype unless that is None; scalars are allowed.

    Half precision is not cast to float32, which it is computed in anyway.
    """
    array = as_array(value, name)
    if dtype is not None:
        _refuse_bits(array.dtype, value, name, what)
        wanted = as_dtype(dtype)
        if array.dtype.kind not in "iubf" and not is_bfloat16(array.dtype):
            raise TypeError(f"{name}: must hold real numbers, got dtype {array.dtype.name}")
        if not (wanted == FLOAT32 and is_half(array.dtype)):
            array = _native(array, wanted)
    logits = as_logits(np.atleast_1d(array), what, name)
    return logits.reshape(()) if array.ndim == 0 else logits


def as_dtype(value: Any) -> np.dtype[Any]:
    """Return a native floating point dtype of at most 64 bits."""
    message = f"dtype: must be float16, bfloat16 (of ml_dtypes), float32 or float64, got {value!r}"
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except Exception as error:
        # For strings that it cannot parse, NumPy raises TypeError, ValueError or SyntaxError.
        raise TypeError(message) from error
    if dtype not in FLOATS and not (is_half(dtype) and dtype.isnative):
        raise TypeError(message)
    return dtype


# ---------------------------------------------------------------------------------------------
# Sizes, axes and shapes


def as_size(value: Any, name: str) -> int:
    """Return a number of elements."""
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be an integer, got {type(value).__name__}") from None
    if size < 0:
        raise ValueError(f"{name}: must not be negative, got {size}")
    return size


def as_axis(dim: Any, n_dims: int, name: str = "dim") -> int:
    """Return a dimension as a non-negative axis; a scalar has one dimension here, as in torch."""
    try:
        axis = operator.index(dim)
    except TypeError:
        raise TypeError(f"{name}: must be an integer, got {type(dim).__name__}") from None
    n = max(n_dims, 1)
    if not -n <= axis < n:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {axis}): {name} "
            f"must be one of the {n_dims} dimensions of input"
        )
    return axis % n


def implicit_axis(n_dims: int, name: str, stacklevel: int, n_frames: int = 0) -> int:
    """Return the axis that torch chooses if dim is None, with torch's warning.

    n_frames: how many functions there are between this one and the public one, beyond one.
    """
    axis = 0 if n_dims in (0, 1, 3) else 1
    try:
        stacklevel = operator.index(stacklevel)
    except TypeError:
        raise TypeError(f"_stacklevel: must be an integer, got {type(stacklevel).__name__}") from None
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an "
        "argument.",
        UserWarning,
        # The bound: no stack is deeper. + 1: this function.
        stacklevel=min(max(stacklevel, 0), 10_000) + n_frames + 1,
    )
    return axis


def class_axis(logits: NDArray[Any]) -> int:
    """Return torch's class axis: 0 for a single position, else 1."""
    return 0 if logits.ndim == 1 else 1


def position_shape(logits: NDArray[Any], axis: int) -> tuple[int, ...]:
    """Return the shape of the logits without their class axis."""
    shape = logits.shape
    return shape[:axis] + shape[axis + 1 :]


def _sizes(shape: tuple[int, ...]) -> str:
    """Format a shape as in torch's messages."""
    return str(list(shape))


# ---------------------------------------------------------------------------------------------
# Targets: class indices and class probabilities


def as_target(
    value: Any, logits: NDArray[Any], axis: int, name: str = "input", has_axis: bool = True
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Return (class indices, None) or (None, class probabilities).

    As in torch, a target of the logits' shape holds class probabilities, any other class indices.
    name: name of the logits in errors, here and in the functions below. has_axis: whether the caller may
    choose the axis of the classes.
    """
    target = as_array(value, "target")
    if target.ndim == logits.ndim and target.shape == logits.shape:
        return None, _as_probabilities(target, logits, axis, name)
    # An empty list has no dtype of its own: pass on what was given.
    return as_indices(target if target.size else value, logits, axis, name, value, has_axis), None


def as_indices(
    value: Any,
    logits: NDArray[Any],
    axis: int,
    name: str = "input",
    given: Any = None,
    has_axis: bool = False,
) -> NDArray[Any]:
    """Return class indices as a native, C-contiguous array of an integer dtype.

    given: what the caller gave, for errors, if value is an array made from it.
    """
    target = as_array(value, "target")
    expected = position_shape(logits, axis)
    flags = target.flags
    if target.dtype in INTEGERS and target.shape == expected and flags.c_contiguous and flags.aligned:
        return target
    if target.dtype.kind not in "iu" and target.size == 0 and not hasattr(value, "dtype"):
        target = target.astype(np.int64)
    kind = "f" if is_bfloat16(target.dtype) else target.dtype.kind
    if kind not in "iufbc":
        raise TypeError(
            f"target: must hold numbers, got dtype {target.dtype.name}: class indices of shape "
            f"{_sizes(expected)}, or class probabilities of the shape of {name}, "
            f"{_sizes(logits.shape)}. Labels become class indices by "
            "np.unique(target, return_inverse=True)[1], class indices among objects by "
            "np.asarray(target, dtype=int)"
        )
    if target.shape != expected:
        advice = _other_axis(target.shape, logits.shape, axis) if has_axis else ""
        _check_target_shape(target.shape, logits, axis, name, advice)
    if kind not in "iu":
        raise TypeError(
            f"expected target dtype to be Long or Byte, but got {_torch_name(target.dtype)}: target must "
            f"be integer class indices of shape {_sizes(expected)}, or floating point "
            f"class probabilities of the shape of {name}, {_sizes(logits.shape)}; got {target.dtype.name} of "
            f"shape {_sizes(target.shape)}. Class indices may have any integer dtype; cast them: "
            f"{_cast(value if given is None else given, 'target', 'int')}"
        )
    return np.require(target, target.dtype.newbyteorder("="), ("C", "A"))


def _as_probabilities(target: NDArray[Any], logits: NDArray[Any], axis: int, name: str) -> NDArray[Any]:
    """Return class probabilities as a native floating point array of at most 64 bits."""
    kind = target.dtype.kind
    _refuse_bits(target.dtype, target, "target", "class probabilities")
    if kind in "iub":
        raise TypeError(
            "Expected floating point type for target with class probabilities, got "
            f"{_torch_name(target.dtype)}: target has the shape of {name}, {_sizes(logits.shape)}, and "
            f"dtype {target.dtype.name}. If it is one-hot, pass the class indices, "
            f"target.argmax(axis={axis}), or cast it, target.astype({logits.dtype.name!r})"
        )
    if kind != "f" and not _is_floating(target.dtype):
        raise TypeError(
            "Expected floating point type for target with class probabilities, got "
            f"{_torch_name(target.dtype)}: target must be float16, bfloat16, float32 or float64, got "
            f"{target.dtype.name}"
        )
    if _is_floating(target.dtype):
        return _native(target, target.dtype.newbyteorder("="))
    return _native(target, arithmetic_dtype(logits.dtype))


def _other_axis(target: tuple[int, ...], logits: tuple[int, ...], axis: int) -> str:
    """Return advice to pass another axis, if the target's shape is that of the positions then."""
    for other in reversed(range(len(logits))):
        if other != axis and logits[:other] + logits[other + 1 :] == target:
            return f"; if the classes are at axis {other}, pass axis={other}"
    return ""


def _check_target_shape(
    target: tuple[int, ...], logits: NDArray[Any], axis: int, name: str, advice: str
) -> None:
    """Raise unless class indices have the positions' shape; for a single position, (1,) is allowed, too."""
    n_dims, shape = logits.ndim, _sizes(logits.shape)
    expected = position_shape(logits, axis)
    if n_dims == 1:
        if target == (1,):
            return
        if len(target) > 1:
            raise ValueError(
                f"0D or 1D target tensor expected, multi-target not supported: for {name} of shape "
                f"{shape}, target must be one class index; got shape {_sizes(target)}"
            )
        raise ValueError(
            f"For 1D input, 1D target must have size 1, but got target size: {target[0]}: "
            f"for {name} of shape {shape}, target must be one class index"
        )
    batch, target_batch = expected[0], target[0] if target else 0
    if target_batch != batch:
        raise ValueError(
            f"Expected input batch_size ({batch}) to match target batch_size ({target_batch}). "
            f"For {name} of shape {shape}, target must have shape {_sizes(expected)}; got "
            f"{_sizes(target) if target else 'a scalar'}{advice}"
        )
    if n_dims == 2:
        message = "0D or 1D target tensor expected, multi-target not supported"
    elif n_dims == 4 and len(target) != 3:
        message = (
            "only batches of spatial targets supported (3D tensors) but got targets of dimension: "
            f"{len(target)}"
        )
    elif n_dims == 4:
        message = f"size mismatch (got input: {shape} , target: {_sizes(target)}"
    else:
        message = f"Expected target size {_sizes(expected)}, got {_sizes(target)}"
    raise ValueError(
        f"{message}: for {name} of shape {shape}, target must be class indices of shape "
        f"{_sizes(expected)} or class probabilities of the shape of {name}; got shape {_sizes(target)}"
        f"{advice}"
    )


# ---------------------------------------------------------------------------------------------
# Operands of elementwise losses


def as_operand(value: Any, name: str, dtype: np.dtype[Any], kinds: str = "biuf") -> NDArray[Any]:
    """Return an operand of an elementwise loss: floating point as it is, others in the arithmetic's dtype.

    dtype: that of `input`.
    """
    array = as_array(value, name)
    if array.dtype.kind == "V":
        _refuse_bits(array.dtype, value, name, "numbers")
    if array.dtype.kind not in kinds and not is_bfloat16(array.dtype):
        needed = "real" if "i" in kinds else "floating point"
        raise TypeError(f"{name}: must hold {needed} numbers, got dtype {array.dtype.name}")
    if _is_floating(array.dtype):
        return _native(array, array.dtype.newbyteorder("="))
    return _native(array, arithmetic_dtype(dtype))


def _contiguous(value: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return real numbers as a C-contiguous array of the arithmetic's dtype.

    dtype: that of the logits.
    """
    return np.asarray(_native(as_operand(value, name, dtype), arithmetic_dtype(dtype)), order="C")


def can_be_broadcast(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether an array of a shape can be broadcast to another shape."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def as_factor(value: Any, name: str, input: NDArray[Any]) -> NDArray[Any] | None:
    """Return weights that can be broadcast to `input`, or None."""
    if value is None:
        return None
    _check_no_reduction(value, name)
    factor = as_operand(value, name, input.dtype)
    if not can_be_broadcast(factor.shape, input.shape):
        raise ValueError(
            f"{name}: its shape {_sizes(factor.shape)} cannot be broadcast to that of input, "
            f"{_sizes(input.shape)}"
        )
    return factor


def check_same_size(
    target: NDArray[Any], input: NDArray[Any], message: str, names: tuple[str, str] = ("target", "input")
) -> None:
    """Raise unless target has the shape of input.

    message: torch's, with {target} and {input} in place of the sizes. names: of the arguments.
    """
    if target.shape != input.shape:
        raise ValueError(
            message.format(target=_sizes(target.shape), input=_sizes(input.shape))
            + f": {names[0]} must have one number for each of {names[1]}"
        )


def common_shape(input: NDArray[Any], target: NDArray[Any]) -> tuple[int, ...]:
    """Return the broadcast shape of input and target."""
    if input.shape == target.shape:
        return input.shape
    try:
        return np.broadcast_shapes(input.shape, target.shape)
    except ValueError:
        raise ValueError(
            f"target: its shape {_sizes(target.shape)} and that of input, {_sizes(input.shape)}, cannot be "
            "broadcast to one"
        ) from None


def check_probabilities(array: NDArray[Any], name: str) -> None:
    """Raise unless all elements are in [0, 1]."""
    # `&` of comparisons, because NaN fails both; of which bfloat16 would warn.
    with np.errstate(invalid="ignore"):
        are_right = (array >= 0) & (array <= 1)
    if not are_right.all():
        bad = np.unravel_index(np.argmin(are_right), array.shape)
        where = ", ".join(map(str, bad))
        hint = "; for logits, use binary_cross_entropy_with_logits" if name == "input" else ""
        raise ValueError(
            f"all elements of {name} should be between 0 and 1, got {array[bad]}"
            + (f" at {name}[{where}]" if where else "")
            + hint
        )


# ---------------------------------------------------------------------------------------------
# Weights


def _check_no_reduction(value: Any, name: str) -> None:
    """Raise if a reduction was passed as the weights, which are the third argument."""
    if isinstance(value, str) and value in ("none", "mean", "sum", "balanced"):
        advice = f"To choose the reduction, pass it by keyword: reduction={value!r}"
        if value == "balanced":
            advice = (
                "Balanced class weights are len(target) / (n_classes * np.bincount(target, "
                "minlength=n_classes))"
            )
        raise TypeError(f"{name}: must hold real numbers, got {value!r}. {advice}")


def as_weight(value: Any, logits: NDArray[Any], axis: int, name: str = "input") -> NDArray[Any] | None:
    """Return class weights in the arithmetic's dtype, or None."""
    if value is None:
        return None
    _check_no_reduction(value, "weight")
    weight = _contiguous(value, "weight", logits.dtype)
    n_classes = logits.shape[axis]
    if weight.shape != (n_classes,):
        raise ValueError(
            f"weight tensor should be defined either for all {n_classes} classes or no classes but got "
            f"weight tensor of shape: {_sizes(weight.shape)}; weight must have shape [{n_classes}], one "
            f"number per class of {name}, {_sizes(logits.shape)}"
        )
    return weight


# ---------------------------------------------------------------------------------------------
# The arguments that are not in torch


def set_extensions(
    call: CrossEntropyArguments,
    sample_weight: Any,
    normalizer: Any,
    empty: Any,
    z_loss: Any,
    softcap: Any,
    temperature: Any,
    logits: NDArray[Any],
    axis: int,
    reduction: str,
) -> None:
    """Set the arguments of cross_entropy that are not in torch."""
    if not isinstance(empty, str) or empty not in ("nan", "zero"):
        raise ValueError(f"empty: must be 'nan' or 'zero', got {empty!r}")
    if normalizer is not None and reduction != "mean":
        raise ValueError(f"normalizer requires reduction='mean', got {reduction!r}")
    if sample_weight is not None:
        call.sample_weight = as_sample_weight(sample_weight, logits, axis)
    if normalizer is not None:
        call.normalizer = as_number(normalizer, "normalizer", FLOAT64)
    call.zero_if_empty = empty == "zero"
    call.z_loss = as_number(z_loss, "z_loss", FLOAT64, positive=False)
    set_transforms(call, softcap, temperature, logits.dtype)


def set_transforms(call: CrossEntropyArguments, softcap: Any, temperature: Any, dtype: np.dtype[Any]) -> None:
    """Set what changes the logits; dtype: theirs."""
    if softcap is not None:
        call.softcap = as_number(softcap, "softcap", arithmetic_dtype(dtype))
    call.temperature = as_number(temperature, "temperature", arithmetic_dtype(dtype))


def as_sample_weight(
    value: Any, logits: NDArray[Any], axis: int, dtype: np.dtype[Any] | None = None
) -> NDArray[Any]:
    """Return weights of the positions in a dtype, by default the arithmetic's."""
    sample_weight = _contiguous(value, "sample_weight", dtype or logits.dtype)
    positions = position_shape(logits, axis)
    if sample_weight.shape != positions:
        raise ValueError(
            f"sample_weight: must have one number for each position, shape {_sizes(positions)}, got "
            f"{_sizes(sample_weight.shape)}"
        )
    return sample_weight


def as_number(value: Any, name: str, dtype: np.dtype[Any], positive: bool = True) -> float:
    """Return a number that is finite and, unless positive is False, positive after rounding to dtype."""
    number = _number(value, name)
    with np.errstate(over="ignore", under="ignore"):
        rounded = dtype.type(number)
    if not np.isfinite(rounded) or (positive and rounded <= 0):
        raise ValueError(f"{name}: must be a {'positive, ' if positive else ''}finite number, got {value}")
    return number


def _number(value: Any, name: str) -> float:
    """Return a number as a float; infinity for an int that no dtype holds."""
    array = as_array(value, name)
    is_number = array.dtype.kind in "fiu" or is_bfloat16(array.dtype)
    if array.ndim or not (is_number or type(value) is int):
        raise TypeError(f"{name}: must be a number, got {described(value)}")
    return float(array) if is_number else np.inf


def described(value: Any) -> str:
    """Describe a value in an error: a string, the shape of an array, else the type."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"an array of shape {_sizes(value.shape)} and dtype {value.dtype.name}"
    return type(value).__name__


# ---------------------------------------------------------------------------------------------
# Options: ignore_index, label_smoothing, reduction, flags


def as_ignore_index(value: Any) -> int:
    """Return ignore_index as an int of at most 64 bits."""
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"ignore_index: must be an integer, got {type(value).__name__}") from None
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"ignore_index: must be a signed 64-bit integer, got {index}")
    return index


def as_label_smoothing(value: Any) -> float:
    """Return label_smoothing as a float in [0, 1]."""
    smoothing: float = value if type(value) is float else _number(value, "label_smoothing")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0.0 and 1.0. Got: {smoothing}")
    return smoothing


def as_reduction(
    reduction: Any,
    size_average: bool | None,
    reduce: bool | None,
    choices: tuple[str, ...] = ("none", "mean", "sum"),
) -> str:
    """Return the reduction; the deprecated arguments override it."""
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if not isinstance(reduction, str) or reduction not in choices:
        *others, last = map(repr, choices)
        raise ValueError(
            f"{reduction} is not a valid value for reduction; it must be {', '.join(others)} or {last}"
        )
    return reduction


def as_flag(value: Any, name: str) -> bool:
    """Return an argument as a bool."""
    advice = ""
    if name in ("size_average", "reduce"):
        advice = (
            f"; pass reduction by name: reduction={value!r}"
            if isinstance(value, str)
            else "; create the loss module first, then call it: CrossEntropyLoss()(input, target)"
        )
    if isinstance(value, (str, list, tuple)) or np.ndim(value) > 0:
        raise TypeError(f"{name}: must be True or False, got {described(value)}{advice}")
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: must be True or False, got {type(value).__name__}") from None


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """Return the reduction that the deprecated `size_average` and `reduce` mean, with a warning."""
    averages = size_average is None or as_flag(size_average, "size_average")
    if not (reduce is None or as_flag(reduce, "reduce")):
        reduction = "none"
    elif averages:
        reduction = "mean"
    else:
        reduction = "sum"
    warn(
        f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
        DeprecationWarning,
    )
    return reduction


def warn(message: str, category: type[Warning]) -> None:
    """Warn the caller of cyce: the warning points at the first frame outside the package."""
    frame, stacklevel = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__package__")).partition(".")[0] == __package__:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)


# ---------------------------------------------------------------------------------------------
# Gradients: upstream, and the memory that they are written to


def as_grad_output(
    value: Any, dtype: np.dtype[Any], loss_shape: tuple[int, ...], reduction: str
) -> tuple[float, NDArray[Any] | None]:
    """Return the upstream gradient as (number, None) or (1.0, array of the loss's shape).

    dtype: that of the logits. loss_shape: shape of the loss before the reduction.
    """
    if value is None:
        return 1.0, None
    upstream = _contiguous(value, "grad_output", dtype)
    if upstream.ndim == 0:
        return float(upstream), None
    if reduction != "none":
        raise ValueError(
            f"grad_output: with reduction={reduction!r}, loss and upstream gradient are one number; "
            f"got shape {_sizes(upstream.shape)}"
        )
    if upstream.shape != loss_shape:
        raise ValueError(
            f"grad_output: must be a number or have the loss's shape {_sizes(loss_shape)}, got "
            f"{_sizes(upstream.shape)}"
        )
    return 1.0, upstream


def as_out(
    value: Any,
    logits: NDArray[Any],
    others: Mapping[str, NDArray[Any] | None],
    whose: str = "input's",
    name: str = "out",
    any_precision: bool = False,
) -> NDArray[Any]:
    """Return a view of `out` that has the shape and dtype of `logits` and can be written.

    For half precision, float32 will do as well; with any_precision, all that logits can be. It may be the
    logits themselves; any other overlap with them, or with `others`, is an error: both are read while `out`
    is written. name: how the caller calls `out`.
    """
    array = as_array(value, name)
    if array.size and not (array is value or np.may_share_memory(array, as_array(value, name))):
        raise TypeError(f"{name}: must be an array whose memory can be written, got {type(value).__name__}")
    # What it mostly is needs no further checks, for the sake of small calls.
    if array.dtype is not logits.dtype:
        _check_dtype_of_out(array.dtype, logits.dtype, whose, name, any_precision)
    if array.shape != logits.shape:
        raise ValueError(f"{name}: must have {whose} shape {_sizes(logits.shape)}, got {_sizes(array.shape)}")
    flags = array.flags
    if not flags.writeable:
        raise ValueError(
            f"{name}: is read-only; pass an array that can be written, such as np.empty_like(input)"
        )
    if not flags.aligned:
        raise ValueError(f"{name}: its memory is not aligned to its dtype; pass a copy, {name}.copy()")
    if not flags.forc and _overlaps_itself(array):
        raise ValueError(
            f"{name}: several of its elements share memory, such as those of a broadcast array; pass an "
            "array of its own memory, such as np.empty_like(input)"
        )
    if share_memory(array, logits) and not _same_memory(array, logits):
        raise ValueError(
            f"{name}: shares a part of its memory with input; it must be input itself or separate from it"
        )
    for other_name, other in others.items():
        if other is not None and share_memory(array, other):
            raise ValueError(
                f"{name}: shares memory with {other_name}, which is read while {name} is written; pass "
                "another array"
            )
    return array


def _check_dtype_of_out(
    dtype: np.dtype[Any], of_logits: np.dtype[Any], whose: str, name: str, any_precision: bool
) -> None:
    """Raise unless `as_out` takes an array of this dtype."""
    if not dtype.isnative:
        raise TypeError(f"{name}: must be in native byte order, got dtype {dtype.str}")
    if any_precision and not _is_floating(dtype):
        raise TypeError(f"{name}: must have dtype float16, bfloat16, float32 or float64, got {dtype.name}")
    if not any_precision and dtype not in (of_logits, arithmetic_dtype(of_logits)):
        allowed = f"{of_logits.name}, or float32" if is_half(of_logits) else of_logits.name
        raise TypeError(f"{name}: must have {whose} dtype {allowed}, got {dtype.name}")


def _same_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays of one shape have the same elements in memory."""
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.dtype == b.dtype


def share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays share memory; True if the exact answer would take too long."""
    # Two arrays with memory of their own do not; NumPy's answer takes twice the time.
    if (a is not b and a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b):
        return False
    try:
        # NumPy's stubs allow only two values of max_work.
        return np.shares_memory(a, b, max_work=1_000_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Return whether elements of an array may share memory: a stride is shorter than the inner extent."""
    extent = array.itemsize
    steps = zip(map(abs, array.strides), array.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in steps if size != 1):
        if stride < extent:
            return array.size > 0
        extent += stride * (size - 1)
    return False


# ---------------------------------------------------------------------------------------------
# Errors that a kernel finds


def check_indices(target: NDArray[Any], n_classes: int, ignore_index: int, name: str = "input") -> None:
    """Raise unless all class indices are in range or ignored, where no kernel gets all of them at once."""
    # Comparisons of NumPy take an unsigned target and a negative number for what they are.
    is_bad = ((target < 0) | (target >= n_classes)) & (target != ignore_index)
    if is_bad.any():
        raise IndexError(describe_bad_target(int(is_bad.argmax()), target, n_classes, ignore_index, name))


def describe_bad_target(
    position: int, target: NDArray[Any], n_classes: int, ignore_index: int, name: str = "input"
) -> str:
    """Return the message for a target that is out of range.

    position: its number in C order; negative if the target passed the check and was bad when it was used.
    name: the argument that has the classes.
    """
    value = target.flat[max(position, 0)]
    if position < 0 or 0 <= value < n_classes or value == ignore_index:
        return "target: another thread changes it during the call; the content of out is undefined"
    where = ", ".join(map(str, np.unravel_index(position, target.shape)))
    place = f"target[{where}]" if where else "target"
    message = f"Target {value} is out of bounds. {place}"
    if not n_classes:
        return f"{message} cannot be a class: {name} has no classes"
    return f"{message} must be a class index from 0 to {n_classes - 1} or ignore_index ({ignore_index})"
