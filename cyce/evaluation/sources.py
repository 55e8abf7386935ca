"""Where logits and targets come from: arrays, memory-mapped files, safetensors, llama.cpp's files.

A `Source` is read in pieces of positions. What it has in memory is one piece; a file of .npy is mapped, so
that its pages are the operating system's to keep or drop.
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_axis, as_logits

Array = NDArray[Any]

NPY_MAGIC = b"\x93NUMPY"
LLAMA_MAGIC = b"_logits_"
# A piece is at least as long as a call takes to start, and what is kept for its positions stays small.
PIECE_BYTES = 1 << 27
PIECE_POSITIONS = 1 << 16


class FileError(ValueError):
    """A file that cannot be what it is given for; the message is one line."""


class Source:
    """Logits of many positions, read in pieces.

    `shape` has the classes at `axis`. `target`: class indices that the source brings itself, or None.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    target: Array | None = None
    piece_bytes = PIECE_BYTES

    def read(self, index: tuple[slice, ...]) -> Array:
        """Return a piece."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all logits, as stored."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class ArraySource(Source):
    """Logits of an array, which may be memory-mapped."""

    # Pieces are views.
    piece_bytes = 2 * PIECE_BYTES

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, index: tuple[slice, ...]) -> Array:
        """Return a piece: a view."""
        return self._array[index]


class SafetensorsSource(Source):
    """Logits of one tensor of a safetensors file."""

    def __init__(self, path: Path, tensor: str) -> None:
        self._slice = _open_safetensors(path).get_slice(tensor)
        self.shape = tuple(self._slice.get_shape())
        # An empty piece has the dtype that the package chooses.
        self.dtype = np.asarray(self._slice[:0] if self.shape else np.zeros(())).dtype

    def read(self, index: tuple[slice, ...]) -> Array:
        """Return a piece: a copy."""
        return np.asarray(self._slice[index])


class LlamaSource(Source):
    """Log-probabilities that llama.cpp's perplexity tool wrote by --kl-divergence-base, and their targets.

    The second half of each chunk of tokens, of which each predicts the next one. A row is 16-bit numbers q
    with a scale and a minimum: log p = scale * q + minimum, which is 16 below the maximum at least.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header = file.read(20)
            if len(header) < 20:
                raise FileError(f"{path}: is cut off in its header")
            n_context, n_vocabulary, n_chunks = map(int, np.frombuffer(header, "<u4", offset=8))
            self._per_chunk = n_context - 1 - n_context // 2
            self._row_size = 2 * ((n_vocabulary + 1) // 2) + 4
            if not (self._per_chunk > 0 and 0 < n_vocabulary < 2**31 and 0 < n_chunks < 2**31):
                raise FileError(
                    f"{path}: its header makes no sense: {n_context} tokens of context, {n_vocabulary} in "
                    f"the vocabulary, {n_chunks} chunks"
                )
            n_tokens = n_context * n_chunks
            n_positions = self._per_chunk * n_chunks
            expected = 20 + 4 * n_tokens + 2 * n_positions * self._row_size
            if (size := path.stat().st_size) != expected:
                raise FileError(
                    f"{path}: has {size:,} bytes, its header asks for {expected:,}: it is "
                    f"{'cut off' if size < expected else 'not what its header says'}"
                )
            tokens = np.fromfile(file, "<i4", n_tokens).reshape(n_chunks, n_context)
        self.target = tokens[:, n_context // 2 + 1 :].ravel()
        self._rows = np.memmap(
            path, "<u2", "r", offset=20 + 4 * n_tokens, shape=(n_positions, self._row_size)
        )
        self.shape, self.dtype = (n_positions, n_vocabulary), np.dtype(np.float32)

    def read(self, index: tuple[slice, ...]) -> Array:
        """Return a piece, in float32."""
        rows = self._rows[index[0]]
        scale_and_minimum = np.ascontiguousarray(rows[:, :4]).view("<f4")
        logits: Array = np.multiply(
            rows[:, 4 : 4 + self.shape[1]], scale_and_minimum[:, :1], dtype=np.float32
        )
        logits += scale_and_minimum[:, 1:]
        return logits

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._rows.nbytes


def open_source(value: Any, name: str, *, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Source:
    """Return the source of logits that an argument means: an array, or a path.

    dtype, shape: of a file without a header, or the dtype that two bytes without a name mean.
    """
    if not isinstance(value, (str, os.PathLike)):
        if dtype is not None or shape is not None:
            raise TypeError(f"{name}: dtype and shape are for files, got {type(value).__name__}")
        return ArraySource(as_logits(value, name=name))
    path, tensor = split_path(value)
    magic = _first_bytes(path)
    if magic.startswith(LLAMA_MAGIC):
        return LlamaSource(path)
    if tensor is not None or path.suffix == ".safetensors":
        return SafetensorsSource(path, _tensor_name(path, tensor, name))
    array = _map_file(path, magic, dtype, shape)
    return ArraySource(as_logits(array, name=f"{name} ({path})"))


def load_integers(value: Any, name: str = "target") -> Any:
    """Return class indices of an argument: itself, or what a path has, completely."""
    if not isinstance(value, (str, os.PathLike)):
        return value
    path, tensor = split_path(value)
    magic = _first_bytes(path)
    if magic.startswith(LLAMA_MAGIC):
        return LlamaSource(path).target
    if tensor is not None or path.suffix == ".safetensors":
        return np.asarray(_open_safetensors(path).get_tensor(_tensor_name(path, tensor, name)))
    return _map_file(path, magic, None, None)


def split_path(value: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return a path and, of FILE.safetensors:NAME, the name of a tensor."""
    text = os.fspath(value)
    file, marker, tensor = text.rpartition(".safetensors:")
    if marker and not Path(text).exists():
        return Path(file + ".safetensors"), tensor
    return Path(text), None


def _first_bytes(path: Path) -> bytes:
    """Return the first eight bytes of a file."""
    with path.open("rb") as file:
        return file.read(8)


def _open_safetensors(path: Path) -> Any:
    """Return an open safetensors file."""
    try:
        safetensors = importlib.import_module("safetensors")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors files need the package safetensors: python -m pip install 'cyce[evaluate]'",
            name=error.name,
        ) from error
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise FileError(f"{path}: is not a safetensors file, or cut off: {error}") from error


def _tensor_name(path: Path, tensor: str | None, name: str) -> str:
    """Return the name of the tensor that is meant: the one given, that of the argument, or the only one."""
    names = sorted(_open_safetensors(path).keys())
    if tensor is None and len(names) == 1:
        return str(names[0])
    if tensor is None and name in names:
        return name
    if tensor in names:
        return str(tensor)
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    problem = "has several tensors" if tensor is None else f"has no tensor {tensor!r}"
    raise FileError(f"{path}: {problem}; name one as {path}:NAME, of {listed or 'none'}")


def _map_file(path: Path, magic: bytes, dtype: Any, shape: tuple[int, ...] | None) -> Array:
    """Map a .npy file, or one without a header, into memory."""
    if magic.startswith(NPY_MAGIC):
        if shape is not None:
            raise FileError(f"{path}: is a .npy file, which has its own shape; leave shape out")
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise FileError(f"{path}: cannot be mapped, it may be cut off: {error}") from error
        # A dtype that the file names itself is not in doubt.
        return array.view(dtype) if dtype is not None and array.dtype.str in ("|V2", "<u2") else array
    if dtype is None or shape is None:
        raise FileError(
            f"{path}: is not a .npy, .safetensors or llama.cpp file; of a file of numbers without a header, "
            f"pass dtype and shape"
        )
    size, numbers = path.stat().st_size, int(np.prod(shape, dtype=object))
    if size != numbers * np.dtype(dtype).itemsize:
        raise FileError(
            f"{path}: has {size:,} bytes, {np.dtype(dtype).name} of shape {list(shape)} needs "
            f"{numbers * np.dtype(dtype).itemsize:,}"
        )
    return np.memmap(path, dtype, "r", shape=shape)


# ---------------------------------------------------------------------------------------------
# Pieces


def axis_of(n_dims: int, axis: int | None) -> int:
    """Return the axis of the classes; None means 0 for one dimension, else 1."""
    return min(n_dims - 1, 1) if axis is None else as_axis(axis, n_dims, "axis")


def pieces_of(
    shape: tuple[int, ...], itemsize: int, axis: int, n_bytes: int = PIECE_BYTES
) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of pieces of logits, cut along the first axis of positions; all classes in each."""
    if len(shape) == 1:
        yield (slice(None),)
        return
    cut = 1 if axis == 0 else 0
    n_numbers = int(np.prod(shape, dtype=object)) // max(shape[cut], 1)
    n_positions = n_numbers // max(shape[axis], 1)
    size = max(1, min(PIECE_POSITIONS // max(n_positions, 1), n_bytes // max(n_numbers * itemsize, 1)))
    for first in range(0, shape[cut], size):
        yield (slice(None),) * cut + (slice(first, min(first + size, shape[cut])),)


def of_positions(index: tuple[slice, ...], axis: int) -> tuple[slice, ...]:
    """Return the index of the positions, from that of logits with all classes."""
    return index[:axis] + index[axis + 1 :] if axis < len(index) else index
