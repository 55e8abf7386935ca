"""Where logits and targets come from: arrays, memory-mapped files, safetensors, llama.cpp's files.

A `Source` is read in pieces of positions. What it has in memory is one piece; a file of .npy is mapped, so
that its pages are the operating system's to keep or drop.
"""

import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import as_array, as_axis, as_dtype, as_logits, as_size, is_half

Array = NDArray[Any]
Index = tuple[slice, ...]

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
LLAMA_MAGIC = b"_logits_"
# A piece is at least as long as a call takes to start, and what is kept for its positions stays small.
PIECE_BYTES = 1 << 27
PIECE_POSITIONS = 1 << 16


class FileError(ValueError):
    """A file that cannot be what it is given for; the message is one line."""


class Source:
    """Logits of many positions, read in pieces.

    `shape` has the classes at one axis. `target`: class indices that the source brings itself, or None.
    `uses`: which of the dtype and the shape of the call are about this source.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    target: Array | None = None
    uses: tuple[str, ...] = ()
    piece_bytes = PIECE_BYTES

    def read(self, index: Index) -> Array:
        """Return a piece."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all logits, as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArraySource(Source):
    """Logits of an array, which may be memory-mapped."""

    # Pieces are views.
    piece_bytes = 2 * PIECE_BYTES

    def __init__(self, array: Array, name: str, uses: tuple[str, ...] = ()) -> None:
        # Only a piece is swapped or copied, where that is needed.
        as_logits(array[:0] if array.ndim else array, name=name)
        self._array = array
        self.shape, self.dtype, self.uses = array.shape, array.dtype, uses

    def read(self, index: Index) -> Array:
        """Return a piece: a view."""
        return self._array[index]


class SafetensorsSource(Source):
    """Logits of one tensor of a safetensors file."""

    def __init__(self, path: Path, tensor: str) -> None:
        self._slice = _open_safetensors(path).get_slice(tensor)
        self.shape = tuple(self._slice.get_shape())
        stored = self._slice.get_dtype()
        if stored not in ("F16", "BF16", "F32", "F64"):
            raise FileError(f"{path}: tensor {tensor} is {stored}; logits must be F16, BF16, F32 or F64")
        if not self.shape:
            raise FileError(
                f"{path}: tensor {tensor} is a scalar; logits need at least one dimension, the classes"
            )
        self.dtype = as_dtype(_bfloat16() if stored == "BF16" else f"f{int(stored[1:]) // 8}")

    def read(self, index: Index) -> Array:
        """Return a piece: a copy."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
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

    def read(self, index: Index) -> Array:
        """Return a piece, in float32."""
        rows = self._rows[index[0]]
        scale_and_minimum = np.ascontiguousarray(rows[:, :4]).view("<f4")
        logits: Array = np.multiply(
            rows[:, 4 : 4 + self.shape[1]], scale_and_minimum[:, :1], dtype=np.float32
        )
        logits += scale_and_minimum[:, 1:]
        return logits[:, index[1]]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._rows.nbytes


class Format(NamedTuple):
    """What is said of files without a header: None if nothing is."""

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, dtype: Any, shape: Any) -> "Format":
        """Return the checked arguments."""
        if shape is not None:
            if isinstance(shape, str) or not isinstance(shape, Sequence):
                raise TypeError(f"shape: must be a sequence of integers such as (100, 32000), got {shape!r}")
            shape = tuple(as_size(size, "shape") for size in shape)
        return cls(None if dtype is None else as_dtype(dtype), shape)


def open_sources(values: Mapping[str, Any], dtype: Any, shape: Any) -> list[Source]:
    """Return the sources of logits that arguments mean: arrays, or paths.

    values: by the names of the arguments. dtype, shape: of files without a header, or the dtype that two
    bytes without a name mean; an error if no source is such a file.
    """
    stored = Format.of(dtype, shape)
    sources = [_open(value, name, stored) for name, value in values.items()]
    given = [name for name, value in zip(stored._fields, stored, strict=True) if value is not None]
    used = {name for source in sources for name in source.uses}
    if given := [name for name in given if name not in used]:
        names = " and ".join(values)
        raise TypeError(
            f"{' and '.join(given)}: for files without a header, and .npy files of bfloat16; {names} "
            f"{'has its' if len(values) == 1 else 'have their'} own"
        )
    return sources


def _open(value: Any, name: str, stored: Format) -> Source:
    """Return one source."""
    if not is_path(value):
        return ArraySource(as_array(value, name), name)
    path, tensor = split_path(value)
    magic = _first_bytes(path)
    if magic.startswith(LLAMA_MAGIC):
        return LlamaSource(path)
    if tensor is not None or path.suffix == ".safetensors":
        return SafetensorsSource(path, _tensor_name(path, tensor, name))
    array, uses = _map_file(path, magic, stored)
    if array.dtype.str in ("|V2", "<u2") and not is_half(array.dtype):
        raise FileError(
            f"{path}: its numbers have two bytes and no name; if they are bfloat16, say so: dtype=bfloat16 "
            "(of ml_dtypes)"
        )
    if not (array.dtype.kind == "f" and array.dtype.itemsize <= 8) and not is_half(array.dtype):
        raise FileError(
            f"{path}: holds {array.dtype.name}; {name} must be float16, bfloat16, float32 or float64"
        )
    return ArraySource(array, name, uses)


def load_array(value: Any, name: str) -> Any:
    """Return an argument that is not logits: itself, or what a path has, completely."""
    if not is_path(value):
        return value
    path, tensor = split_path(value)
    magic = _first_bytes(path)
    if magic.startswith(LLAMA_MAGIC) and name == "target":
        return LlamaSource(path).target
    if tensor is not None or path.suffix == ".safetensors":
        return np.asarray(_open_safetensors(path).get_tensor(_tensor_name(path, tensor, name)))
    if not magic.startswith((NPY_MAGIC, ZIP_MAGIC)):
        raise FileError(f"{path}: is not a .npy or .safetensors file, which {name} must be")
    return _map_file(path, magic, Format(None, None))[0]


def is_path(value: Any) -> bool:
    """Return whether an argument is a path."""
    return isinstance(value, (str, bytes, os.PathLike))


def split_path(value: str | bytes | os.PathLike[Any]) -> tuple[Path, str | None]:
    """Return a path and, of FILE.safetensors:NAME, the name of a tensor."""
    text = os.fsdecode(value)
    file, marker, tensor = text.rpartition(".safetensors:")
    if marker and not Path(text).exists():
        return Path(file + ".safetensors"), tensor
    return Path(text), None


def _first_bytes(path: Path) -> bytes:
    """Return the first eight bytes of a file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(f"{path}: is not a regular file, of which pieces could be read")
    with path.open("rb") as file:
        return file.read(8)


def _bfloat16() -> Any:
    """Return NumPy's dtype of bfloat16."""
    try:
        return importlib.import_module("ml_dtypes").bfloat16
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "bfloat16 needs ml_dtypes: python -m pip install 'cyce[half]'", name=error.name
        ) from error


def named_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype by its name."""
    return np.dtype(_bfloat16() if name == "bfloat16" else name)


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
    """Return the name of the tensor that is meant: given, the only one, or that of the argument."""
    names = sorted(map(str, _open_safetensors(path).keys()))
    if tensor in names:
        return str(tensor)
    if tensor is None:
        if len(names) == 1:
            return names[0]
        for candidate in (name, name.removeprefix("reference_")):
            if candidate in names:
                return candidate
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if not names:
        raise FileError(f"{path}: has no tensors")
    problem = "has several tensors" if tensor is None else f"has no tensor {tensor!r}"
    raise FileError(f"{path}: {problem}; name one as {path}:NAME, of {listed}")


def _map_file(path: Path, magic: bytes, stored: Format) -> tuple[Array, tuple[str, ...]]:
    """Map a .npy file, or one without a header, into memory; return whether the format was needed."""
    if magic.startswith(ZIP_MAGIC):
        raise FileError(f"{path}: is an archive of several arrays; load one: np.load(file)[name]")
    if magic.startswith(NPY_MAGIC):
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            # A broken header may raise anything that Python's parser does.
            problem = str(error).partition("\n")[0] or type(error).__name__
            problem = "is cut off" if "mmap length" in problem else f"cannot be read as numbers: {problem}"
            raise FileError(f"{path}: {problem}") from error
        if array.dtype.str not in ("|V2", "<u2") or stored.dtype is None:
            # A dtype that the file names itself is not in doubt.
            return array, ()
        if not is_half(stored.dtype):
            raise FileError(f"{path}: its numbers have two bytes, {stored.dtype.name} has more; try bfloat16")
        return array.view(stored.dtype), ("dtype",)
    if not magic and stored.shape is None:
        raise FileError(f"{path}: is empty")
    if stored.dtype is None or stored.shape is None:
        raise FileError(
            f"{path}: is not a .npy, .safetensors or llama.cpp file; of a file of numbers without a header, "
            f"pass dtype and shape"
        )
    size, needed = path.stat().st_size, math.prod(stored.shape) * stored.dtype.itemsize
    if size != needed:
        raise FileError(
            f"{path}: has {size:,} bytes, {stored.dtype.name} of shape {list(stored.shape)} needs {needed:,}"
        )
    if not size:
        return np.empty(stored.shape, stored.dtype), stored._fields
    return np.memmap(path, stored.dtype, "r", shape=stored.shape), stored._fields


# ---------------------------------------------------------------------------------------------
# Pieces


def axis_of(n_dims: int, axis: int | None) -> int:
    """Return the axis of the classes; None means 0 for one dimension, else 1."""
    return min(n_dims - 1, 1) if axis is None else as_axis(axis, n_dims, "axis")


def pieces_of(
    shape: tuple[int, ...], itemsize: int, axis: int, n_bytes: int | None = None
) -> Iterator[Index]:
    """Yield the indices of pieces of logits, one slice per axis, all classes in each.

    n_bytes: of a piece, at most, unless a position has more.
    """
    n_bytes = PIECE_BYTES if n_bytes is None else n_bytes
    most = max(1, min(PIECE_POSITIONS, n_bytes // max(shape[axis] * itemsize, 1)))
    index = [slice(None)] * len(shape)
    return _pieces([dim for dim in range(len(shape)) if dim != axis], shape, most, index)


def _pieces(dims: list[int], shape: tuple[int, ...], most: int, index: list[slice]) -> Iterator[Index]:
    """Cut the first of some axes, and the others where one step along it has more than `most` positions."""
    if not dims:
        yield tuple(index)
        return
    first, *others = dims
    n_positions = math.prod(shape[dim] for dim in others)
    step = max(1, most // max(n_positions, 1))
    for start in range(0, shape[first], step):
        index[first] = slice(start, min(start + step, shape[first]))
        if n_positions > most:
            yield from _pieces(others, shape, most, index)
        else:
            yield tuple(index)
    for dim in dims:
        index[dim] = slice(None)


def of_positions(index: Index, axis: int) -> Index:
    """Return the index of the positions, from that of logits with all classes."""
    return index[:axis] + index[axis + 1 :]
