"""New arrays, in memory that was used before if there is some (pool.pyx), and copies in another precision."""

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cyce._arguments import as_stored
from cyce.kernels import dispatch
from cyce.memory import pool

MIN_BYTES = 2 << 20
"""Size of the smallest arrays that come from the pool. The system's allocator keeps smaller ones itself."""


def _default_limit() -> int:
    """CYCE_POOL, or 1 GiB, or a sixteenth of the memory if that is less; in bytes.

    None where the address space is limited, of which idle memory would still take its part.
    """
    own = os.environ.get("CYCE_POOL", "").strip()
    if own:
        if not own.isdecimal():
            raise ValueError(f"CYCE_POOL: must be a number of bytes, 0 for no pool, got {own!r}")
        return min(int(own), sys.maxsize)
    try:
        import resource

        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return 0
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ImportError, AttributeError, OSError, ValueError):
        return 0
    return max(0, min(1 << 30, memory // 16))


def empty_like(like: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return a new array in the layout of another one, or C-contiguous if that is broadcast.

    dtype: None for that of the other one.
    """
    wanted = like.dtype if dtype is None else np.dtype(dtype)
    sizes = zip(like.strides, like.shape, strict=True)
    keeps_layout = not any(stride == 0 and size > 1 for stride, size in sizes)
    n_bytes = like.size * wanted.itemsize
    if n_bytes < MIN_BYTES or not pool.get_limit():
        return np.empty_like(like, wanted, order="K" if keeps_layout else "C")
    flat: NDArray[Any] = np.frombuffer(memoryview(pool.Buffer(n_bytes)), wanted)
    if not keeps_layout or like.flags.c_contiguous:
        return flat.reshape(like.shape)
    # From the axis of the longest strides to that of the shortest.
    axes = np.argsort([-abs(stride) for stride in like.strides], kind="stable")
    return flat.reshape([like.shape[axis] for axis in axes]).transpose(np.argsort(axes))


def copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy an array to one of its shape and any dtype of the logits, rounded once.

    NumPy takes several times as long from and to half precision, and rounds doubles twice on the way to
    bfloat16.
    """
    dispatch.elementwise.copy(as_stored(source), as_stored(target))


if pool.HAS_POOL:
    pool.set_limit(_default_limit())
    os.register_at_fork(
        before=pool.before_fork,
        after_in_parent=pool.after_fork_in_parent,
        after_in_child=pool.after_fork_in_child,
    )
