"""How `linear_cross_entropy` cuts its work into chunks, as the caller chooses."""

import dataclasses
import operator
from typing import Any, Literal

import numpy as np

ACC_POLICIES = ("auto", "accurate", "balanced", "compact")
ACC_DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, slots=True)
class LinearCrossEntropyOptions:
    """How `linear_cross_entropy` cuts its work into chunks, as `torch.nn.LinearCrossEntropyOptions`.

    Parameters
    ----------
    allow_retain_graph : bool, default=False
        Accepted for compatibility with torch and ignored: there is no graph to retain.
    batch_chunk_size : int, default=None
        Number of rows of `input` whose logits are in memory at a time. Fewer rows take less memory and more
        time. With 13 or more chunks, the rounding errors of the gradient of the weights are kept and
        compensated, which takes half the memory of the weights.
    chunking_method : str or None, default="auto"
        How to choose the number of rows if `batch_chunk_size` is None. "auto" takes as many rows as fit
        into 168 MiB, at least 32, which keeps the matrix products at nearly full speed. "aspect_ratio" and
        "aspect_ratio:n" are torch's: as many rows as make the logits about as large as `input`, or an n-th
        of that. None takes all rows at once.
    acc_policy : {"auto", "accurate", "balanced", "compact"}, default="auto"
        Accepted for compatibility with torch and ignored: half precision is always accumulated in float32.
    acc_dtype : dtype, default=None
        None or the dtype that is computed with, that of `input` or float32 for half precision.

    Raises
    ------
    ValueError
        If a value is none of these.

    See Also
    --------
    cyce.functional.linear_cross_entropy : Takes these options.

    Examples
    --------
    >>> import cyce
    >>> cyce.LinearCrossEntropyOptions(batch_chunk_size=256).batch_chunk_size
    256
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: Literal["accurate", "balanced", "compact", "auto"] = "auto"
    acc_dtype: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.acc_policy, str) or self.acc_policy not in ACC_POLICIES:
            raise ValueError(
                f"invalid acc_policy: {self.acc_policy!r}; it must be 'auto', 'accurate', 'balanced' or "
                "'compact'"
            )
        method = self.chunking_method
        if method is not None and not (
            isinstance(method, str) and (method == "auto" or _aspect_ratio_parts(method))
        ):
            raise ValueError(
                f"invalid chunking_method: {method!r}; it must be 'auto', 'aspect_ratio', "
                "'aspect_ratio:n' with n of at least 1, or None"
            )
        if self.batch_chunk_size is not None:
            try:
                size = operator.index(self.batch_chunk_size)
            except TypeError:
                size = 0
            if size < 1:
                raise ValueError(
                    f"batch_chunk_size must be positive int or None, got {self.batch_chunk_size!r}"
                )
        if self.acc_dtype is not None and _dtype_name(self.acc_dtype) not in ACC_DTYPES:
            raise ValueError(
                f"acc_dtype must be None or a floating point dtype of at most 64 bits, got {self.acc_dtype!r}"
            )


DEFAULT_OPTIONS = LinearCrossEntropyOptions()


def as_options(value: Any, dtype: np.dtype[Any]) -> LinearCrossEntropyOptions:
    """Return the options; torch's are converted. dtype: of the arithmetic."""
    if value is None:
        return DEFAULT_OPTIONS
    fields = [field.name for field in dataclasses.fields(LinearCrossEntropyOptions)]
    if not all(hasattr(value, name) for name in fields):
        raise TypeError(
            f"options: must be a cyce.LinearCrossEntropyOptions or None, got {type(value).__name__}"
        )
    options = LinearCrossEntropyOptions(**{name: getattr(value, name) for name in fields})
    if options.acc_dtype is not None and _dtype_name(options.acc_dtype) != dtype.name:
        raise ValueError(
            f"options: acc_dtype must be {dtype.name}, which is computed with, or None; got "
            f"{_dtype_name(options.acc_dtype)}"
        )
    return options


def chosen_rows(
    options: LinearCrossEntropyOptions, n_rows: int, in_features: int, n_outputs: int
) -> int | None:
    """Return the rows per chunk that the options ask for, None if they leave the choice to cyce."""
    size, method = options.batch_chunk_size, options.chunking_method
    if method == "auto":
        return None if size is None else operator.index(size)
    if method is None:
        return n_rows if size is None else operator.index(size)
    # torch's formula
    ratio = -(-n_outputs // max(1, in_features))
    target = -(-n_rows // max(1, ratio))
    rows = min((1 << max(0, target - 1).bit_length()) // _aspect_ratio_parts(method), n_rows)
    if size is not None and size != rows:
        raise ValueError(
            f"options: batch_chunk_size (={size}) and chunking_method ({method!r}) give different chunk "
            f"sizes ({size} vs {rows}); pass only one"
        )
    return max(1, rows)


def _aspect_ratio_parts(method: str) -> int:
    """Return n of "aspect_ratio:n", 1 of "aspect_ratio", 0 of anything else."""
    name, colon, n = method.partition(":")
    if name != "aspect_ratio" or (colon and not n.isdecimal()):
        return 0
    return int(n) if colon else 1


def _dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of NumPy or torch."""
    try:
        name: str = np.dtype(dtype).name
    except Exception:
        # NumPy raises TypeError, ValueError or SyntaxError; torch's dtypes print as "torch.float32".
        name = str(dtype).removeprefix("torch.")
    return name
