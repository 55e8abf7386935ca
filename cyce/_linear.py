"""The cross-entropy of a linear layer's logits, and its gradients, without the logits as a whole.

With hidden states X (N, H) and weights W (K, H), where K is the number of classes times that of the
positions of a row, a chunk of rows at a time goes through one buffer:

    logits = X_chunk W^T + bias             a product
    G = their gradient, over the logits     the kernel of cross_entropy, in place
    dX_chunk = G W,  dW += G^T X_chunk      two products

Each step is cut into blocks of outputs and pieces of rows, which threads share (`_workers.py`). The blocks
are chosen by the shapes alone, and what several of them add to is added up in order: results do not
depend on the number of threads. A block of dW is computed apart and then added while it is in the cache, by
NumPy: its products cannot add to what is there, and SciPy's, which can, would bring a second BLAS with
threads of its own, to save 2 % of the time.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    FLOAT32,
    Extensions,
    as_extensions,
    as_floating,
    as_grad_output,
    as_ignore_index,
    as_label_smoothing,
    as_out,
    as_reduction,
    as_target,
    as_weight,
    class_axis,
    describe_bad_target,
    position_shape,
)
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.kernels.dispatch import elementwise, kernels
from cyce._losses import GradientRequest
from cyce.threads.workers import OrderedSum, Share, Spares, with_workers

# The buffer of a chunk: BLAS reads the weights once per chunk, so that chunks should not be short.
BUFFER_BYTES = 168 << 20
# Rows of a chunk at least, if there are as many; and what their number is a multiple of, in several chunks.
MIN_ROWS = 32
ROUND_ROWS = 16
# Outputs of a block, at most; bytes of a block of weights, at most, unless that leaves but a few outputs.
BLOCK_OUTPUTS = 2048
BLOCK_BYTES = 8 << 20
MIN_BLOCK_OUTPUTS = 256
# Blocks of a chunk that there should be; fewer blocks of outputs are cut along the rows, too.
ENOUGH_BLOCKS = 16
MIN_PIECE_ROWS = 256
# Chunks and pieces up to which the gradient of the weights is added up plainly: the errors of one product,
# which BLAS adds up in parts, too, are no smaller. Of more, what is lost is kept, in half the precision.
PLAIN_ADDENDS = 12
# Rows whose part of the bias's gradient is added up in the dtype of `input`, before it is added in float64.
BIAS_ROWS = 256
# Logits that a kernel is called with.
KERNEL_LOGITS = 1 << 20
# Multiplications and additions that are worth a thread, and as how many of them a logit's loss counts.
SHARE = 1 << 24
LOSS_PER_LOGIT = 32


@dataclasses.dataclass(frozen=True, slots=True)
class LinearCrossEntropyOptions:
    """How `linear_cross_entropy` cuts its work up, as `torch.nn.LinearCrossEntropyOptions`.

    Parameters
    ----------
    allow_retain_graph : bool, default=False
        Taken for torch's sake: cyce has no graph to retain.
    batch_chunk_size : int, default=None
        Rows of `input` whose logits are in memory at a time. Fewer take less memory and more time. From 13
        chunks on, what rounding loses of the gradient of the weights is kept as well, in half the memory
        of these.
    chunking_method : str or None, default="auto"
        How that number is chosen if it is not given. "auto" is cyce's own choice, as many rows as 168 MiB
        hold, at least 32, which keeps the matrix products at nearly their full speed. "aspect_ratio" and
        "aspect_ratio:n" are torch's: as many rows as make the logits about as large as `input`, or an n-th of
        that. None takes all rows at once.
    acc_policy : {"auto", "accurate", "balanced", "compact"}, default="auto"
        Taken for torch's sake: it matters for half precision only.
    acc_dtype : dtype, default=None
        Must be that of `input`, as in torch, or None.

    Raises
    ------
    ValueError
        If a value is none of these.

    See Also
    --------
    cyce.functional.linear_cross_entropy : What takes these options.

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
        if not isinstance(self.acc_policy, str) or self.acc_policy not in (
            "auto",
            "accurate",
            "balanced",
            "compact",
        ):
            raise ValueError(
                f"invalid acc_policy: {self.acc_policy!r}; it must be 'auto', 'accurate', 'balanced' or "
                "'compact'"
            )
        method = self.chunking_method
        if method is not None and not (isinstance(method, str) and (method == "auto" or self._parts())):
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
        if self.acc_dtype is not None and _name_of(self.acc_dtype) not in (
            "float16",
            "bfloat16",
            "float32",
            "float64",
        ):
            raise ValueError(
                f"acc_dtype must be None or a floating point dtype of at most 64 bits, got {self.acc_dtype!r}"
            )

    def _parts(self) -> int:
        """Return n of "aspect_ratio:n", 0 of anything else."""
        name, colon, n = str(self.chunking_method).partition(":")
        if name != "aspect_ratio" or (colon and not n.isdecimal()):
            return 0
        return int(n) if colon else 1

    def _rows(self, n_rows: int, in_features: int, n_outputs: int) -> int | None:
        """Return the rows of a chunk, None for cyce's own choice."""
        if self.chunking_method == "auto":
            return None if self.batch_chunk_size is None else operator.index(self.batch_chunk_size)
        if self.chunking_method is None:
            return n_rows if self.batch_chunk_size is None else operator.index(self.batch_chunk_size)
        ratio = -(-n_outputs // max(1, in_features))
        target = -(-n_rows // max(1, ratio))
        size = min((1 << max(0, target - 1).bit_length()) // self._parts(), n_rows)
        if self.batch_chunk_size is not None and self.batch_chunk_size != size:
            raise ValueError(
                f"options: batch_chunk_size (={self.batch_chunk_size}) and chunking_method "
                f"({self.chunking_method!r}) give different chunk sizes ({self.batch_chunk_size} vs {size}); "
                "pass only one"
            )
        return max(1, size)


_DEFAULT_OPTIONS = LinearCrossEntropyOptions()


def _name_of(dtype: Any) -> str:
    """Return the name of a dtype of NumPy's or, as it prints, of torch's."""
    try:
        name: str = np.dtype(dtype).name
    except Exception:
        name = str(dtype).removeprefix("torch.")
    return name


def _as_options(value: Any, dtype: np.dtype[Any]) -> LinearCrossEntropyOptions:
    """Return the options, which may be an object of torch's."""
    if value is None:
        return _DEFAULT_OPTIONS
    fields = [field.name for field in dataclasses.fields(LinearCrossEntropyOptions)]
    if not all(hasattr(value, name) for name in fields):
        raise TypeError(
            f"options: a cyce.LinearCrossEntropyOptions or None is needed, got {type(value).__name__}"
        )
    options = LinearCrossEntropyOptions(**{name: getattr(value, name) for name in fields})
    if options.acc_dtype is not None and _name_of(options.acc_dtype) != dtype.name:
        raise ValueError(
            f"options: acc_dtype must be the dtype of input, {dtype.name}, or None; got "
            f"{_name_of(options.acc_dtype)}"
        )
    return options


def _as_parameter(value: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the weights or the bias of the layer."""
    array = as_floating(value, what="parameters", name=name)
    if array.dtype != dtype:
        raise TypeError(
            f"{name}: must have the dtype of input, {dtype.name}, got {array.dtype.name}; cast one of them"
        )
    return array


def _as_matrix(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return an array in the shape of a matrix that BLAS can read, copied only if it has to be."""
    matrix = array.reshape(shape)
    if matrix.flags.forc:
        return matrix
    by_row, by_column = matrix.strides
    size = matrix.itemsize
    for near, far, extent in ((by_column, by_row, shape[1]), (by_row, by_column, shape[0])):
        if near == size and far >= extent * size and far % size == 0:
            return matrix
    return np.ascontiguousarray(matrix)


class _Layer(NamedTuple):
    """What is the same in all chunks."""

    hidden: NDArray[Any]
    """(N, H)"""
    weights: NDArray[Any]
    """(K, H)"""
    bias: NDArray[Any] | None
    """(K,)"""
    logits_shape: tuple[int, ...]
    """Of a row: (C,) or (C, number of positions)."""
    rows: NDArray[np.intp] | None
    """The rows that count, None for all."""
    indices: NDArray[Any] | None
    """Targets of the rows that count."""
    probabilities: NDArray[Any] | None
    """Targets of all rows."""
    weight: NDArray[Any] | None
    ignore_index: int
    label_smoothing: float
    mean: bool
    losses: NDArray[Any] | None
    """Where those of the rows that count are written."""
    grad_output: NDArray[Any] | None
    """Of the rows that count."""
    upstream: float
    extensions: Extensions
    """Sample weights of the rows that count."""

    @property
    def n_rows(self) -> int:
        """Number of rows that count."""
        return len(self.hidden) if self.rows is None else len(self.rows)

    def take(self, array: NDArray[Any], first: int, end: int) -> NDArray[Any]:
        """Return the rows number `first` to `end`, of those that count, of an array of all rows."""
        return array[first:end] if self.rows is None else array[self.rows[first:end]]


class _Gradients(NamedTuple):
    """Where gradients are written."""

    hidden: NDArray[Any]
    weights: NDArray[Any]
    bias: NDArray[Any] | None = None


class _Pass:
    """The pass over the chunks."""

    def __init__(self, layer: _Layer, gradients: _Gradients | None, rows_per_chunk: int) -> None:
        self._layer = layer
        self._gradients = gradients
        self._rows_per_chunk = rows_per_chunk
        n_outputs, in_features = layer.weights.shape
        dtype = layer.hidden.dtype
        width = BLOCK_BYTES // max(1, in_features * dtype.itemsize)
        width = min(BLOCK_OUTPUTS, max(MIN_BLOCK_OUTPUTS, width))
        self._blocks = _slices(n_outputs, width)
        n_pieces = 1 if len(self._blocks) >= ENOUGH_BLOCKS else 2 * ENOUGH_BLOCKS // max(1, len(self._blocks))
        piece_rows = max(MIN_PIECE_ROWS, -(-rows_per_chunk // n_pieces))
        most = max(MIN_ROWS, BLOCK_BYTES // max(1, in_features * dtype.itemsize))
        self._piece_rows = min(piece_rows, most, rows_per_chunk)
        # All that is large is allocated before anything is written.
        self._buffer = np.empty((rows_per_chunk, n_outputs), dtype)
        self._spare_blocks = Spares(min(width, n_outputs) * in_features, dtype)
        self._spare_pieces = Spares(self._piece_rows * in_features, dtype)
        with_bias = gradients is not None and gradients.bias is not None
        self._bias_gradient = np.zeros(n_outputs) if with_bias else None
        n_addends = -(-layer.n_rows // rows_per_chunk) * -(-rows_per_chunk // self._piece_rows)
        self._lost: NDArray[Any] | None = None
        if gradients is not None and n_addends > PLAIN_ADDENDS:
            self._lost = np.zeros(layer.weights.shape, np.uint16 if dtype == FLOAT32 else np.float32)

    def run(self, share: Share) -> float:
        """Compute the loss and the gradients; return the loss."""
        layer, value = self._layer, 0.0
        if self._gradients is not None:
            self._clear()
        for chunk in _slices(layer.n_rows, self._rows_per_chunk):
            hidden = layer.take(layer.hidden, chunk.start, chunk.stop)
            logits = self._buffer[: len(hidden)]
            self._fill(share, hidden, logits)
            value += self._apply_kernel(share, chunk.start, logits)
            if self._gradients is not None:
                self._multiply(share, chunk, hidden, logits)
        if self._gradients is not None and self._gradients.bias is not None:
            with np.errstate(over="ignore", under="ignore"):
                self._gradients.bias[...] = self._bias_gradient
        return value

    def _clear(self) -> None:
        """Make the gradients 0 where nothing will be written, or something added."""
        assert self._gradients is not None
        if self._layer.rows is not None or not self._layer.weights.size:
            self._gradients.hidden[...] = 0
        if not self._layer.n_rows:
            self._gradients.weights[...] = 0

    def _fill(self, share: Share, hidden: NDArray[Any], logits: NDArray[Any]) -> None:
        """Compute the logits of a chunk."""
        weights, bias = self._layer.weights, self._layer.bias

        def fill(tile: tuple[slice, slice]) -> None:
            piece, block = tile
            part = logits[piece, block]
            np.matmul(hidden[piece], weights[block].T, out=part)
            if bias is not None:
                np.add(part, bias[block], out=part)

        pieces = _slices(len(hidden), self._piece_rows)
        share(fill, [(piece, block) for piece in pieces for block in self._blocks])

    def _apply_kernel(self, share: Share, start: int, logits: NDArray[Any]) -> float:
        """Return the loss of a chunk, and turn its logits into their gradient if that is wanted."""
        layer = self._layer
        logits = logits.reshape(len(logits), *layer.logits_shape)
        sample_weight = layer.extensions.sample_weight

        def apply(piece: slice) -> float:
            first, end = start + piece.start, start + piece.stop
            part = logits[piece]
            call = CrossEntropyArguments()
            call.logits = part
            call.axis = 1
            call.target = None if layer.indices is None else layer.indices[first:end]
            call.probabilities = (
                None if layer.probabilities is None else layer.take(layer.probabilities, first, end)
            )
            call.weight = layer.weight
            call.ignore_index = layer.ignore_index
            call.label_smoothing = layer.label_smoothing
            call.mean = layer.mean
            call.loss_out = None if layer.losses is None else layer.losses[first:end]
            call.grad_out = None if self._gradients is None else part
            call.grad_output = None if layer.grad_output is None else layer.grad_output[first:end]
            call.upstream = layer.upstream
            (_, call.normalizer, call.zero_if_empty, call.z_loss, call.softcap, call.temperature) = layer.extensions
            call.sample_weight = None if sample_weight is None else sample_weight[first:end]
            loss: float = kernels.cross_entropy(call)
            return loss

        rows = max(1, KERNEL_LOGITS // max(1, self._buffer.shape[1]))
        return sum(share(apply, _slices(len(logits), rows)))

    def _sum_of_block(self, block: slice, is_first: bool) -> OrderedSum:
        """Return the gradient of a block of weights as a sum, to which a chunk adds."""
        assert self._gradients is not None
        add: Callable[[NDArray[Any], NDArray[Any]], object] = _add
        if self._lost is not None:
            add = functools.partial(elementwise.accumulate, lost=self._lost[block])
        return OrderedSum(self._gradients.weights[block], self._spare_blocks, is_first, add)

    def _multiply(self, share: Share, chunk: slice, hidden: NDArray[Any], slopes: NDArray[Any]) -> None:
        """Take the gradients of input, weights and bias from those of the logits of a chunk."""
        layer, gradients = self._layer, self._gradients
        assert gradients is not None
        pieces = _slices(len(hidden), self._piece_rows)
        hidden_gradient = gradients.hidden[chunk] if layer.rows is None else np.zeros_like(hidden)
        of_pieces = [OrderedSum(hidden_gradient[piece], self._spare_pieces, True, _add) for piece in pieces]
        of_blocks = [self._sum_of_block(block, chunk.start == 0) for block in self._blocks]

        def multiply(tile: tuple[int, int]) -> None:
            i, j = tile
            piece, block = pieces[i], self._blocks[j]
            part = slopes[piece, block]
            array = of_blocks[j].array(i)
            of_blocks[j].add(i, np.matmul(part.T, hidden[piece], out=array))
            array = of_pieces[i].array(j)
            of_pieces[i].add(j, np.matmul(part, layer.weights[block], out=array))

        share(multiply, [(i, j) for i in range(len(pieces)) for j in range(len(self._blocks))])
        if self._bias_gradient is not None:
            sums = self._bias_gradient
            ones = np.ones(BIAS_ROWS, slopes.dtype)

            def add_up(block: slice) -> None:
                for rows in _slices(len(slopes), BIAS_ROWS):
                    sums[block] += ones[: rows.stop - rows.start] @ slopes[rows, block]

            share(add_up, self._blocks)
        if layer.rows is not None:
            gradients.hidden[layer.rows[chunk]] = hidden_gradient


def _add(addend: NDArray[Any], total: NDArray[Any]) -> None:
    """Add an array to a total."""
    np.add(total, addend, out=total)


def _slices(n: int, step: int) -> list[slice]:
    """Cut n elements into slices of so many."""
    return [slice(first, min(n, first + step)) for first in range(0, n, step)]


def _rows_per_chunk(
    options: LinearCrossEntropyOptions,
    n_rows: int,
    n_counting: int,
    in_features: int,
    n_outputs: int,
    itemsize: int,
) -> int:
    """Return how many of the rows that count go through the buffer at a time."""
    wanted = options._rows(n_rows, in_features, n_outputs)
    if n_counting == 0:
        return 1
    if wanted is not None:
        return min(wanted, n_counting)
    # Where some rows are left out, the others are copied, and so are their gradients.
    of_row = n_outputs + (2 * in_features if n_counting < n_rows else 0)
    limit = max(MIN_ROWS, BUFFER_BYTES // max(1, of_row * itemsize))
    if limit >= n_counting:
        return n_counting
    n_chunks = -(-n_counting // limit)
    return min(limit, -(-n_counting // n_chunks // ROUND_ROWS) * ROUND_ROWS)


def _check_shapes(weights: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    """Raise unless the shapes of linear_weight and linear_bias are those of a layer."""
    if len(weights) < 2:
        raise ValueError(
            f"expected linear_weight with dimensionality at least 2, got {len(weights)}: it must have shape "
            "(C, in_features) or (C, d1, ..., dk, in_features)"
        )
    if bias is not None and bias != weights[:-1]:
        raise ValueError(
            f"expected linear_bias shape {weights[:-1]}, got {bias}: it must have one number for each logit "
            "of a row"
        )


def _check_features(hidden: tuple[int, ...], weights: tuple[int, ...]) -> None:
    """Raise unless input has a shape that a layer of such weights takes."""
    if hidden[-1] != weights[-1]:
        raise ValueError(
            "expected equal input and linear_weight last dimensions (in_features), got "
            f"{hidden[-1]} and {weights[-1]}, respectively: input has shape {hidden}, linear_weight {weights}"
        )
    if len(weights) > 2 and len(hidden) == 1:
        raise ValueError(
            f"K-dimensional loss defined by linear_weight shape {weights} requires batched input, "
            f"(N, {hidden[-1]}), got unbatched input with shape {hidden}"
        )


def _as_outs(
    value: Any, likes: dict[str, NDArray[Any]], read: dict[str, NDArray[Any] | None]
) -> list[NDArray[Any]]:
    """Return arrays over the memory of `out`, one for each gradient."""
    names = ", ".join(likes)
    if not isinstance(value, (tuple, list)) or len(value) != len(likes):
        what = f"{len(value)} of them" if isinstance(value, (tuple, list)) else type(value).__name__
        raise TypeError(
            f"out: a tuple of {len(likes)} arrays is needed, for the gradients of {names}; got {what}"
        )
    outs: list[NDArray[Any]] = []
    for (name, like), out in zip(likes.items(), value, strict=True):
        others = {**read, **{f"out[{i}]": other for i, other in enumerate(outs)}}
        outs.append(as_out(out, like, others, whose=f"{name}'s"))
    return outs


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Any = None,
    normalizer: float | None = None,
    empty: str = "nan",
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    logits_shape: tuple[int, ...] | None = None,
    gradient: GradientRequest | None = None,
) -> tuple[Any, Any]:
    """Compute the loss and, if asked for, the gradients of input, linear_weight and linear_bias.

    logits_shape: (C, d1, ..., dk), where linear_weight and linear_bias have these in one dimension, as those
    of modules do.
    """
    reduction = as_reduction(reduction, None, None)
    hidden = as_floating(input, what="hidden states")
    if hidden.ndim not in (1, 2):
        raise ValueError(
            f"expected input with dimensionality 1 or 2, got {hidden.ndim}: input must have shape "
            "(in_features,) or (N, in_features)"
        )
    dtype = hidden.dtype
    weights = _as_parameter(linear_weight, "linear_weight", dtype)
    bias = None if linear_bias is None else _as_parameter(linear_bias, "linear_bias", dtype)
    if logits_shape is None:
        logits_shape = weights.shape[:-1]
        _check_shapes(weights.shape, None if bias is None else bias.shape)
    _check_features(hidden.shape, (*logits_shape, *weights.shape[-1:]))
    options = _as_options(options, dtype)

    n_classes, in_features = logits_shape[0], weights.shape[-1]
    n_rows = 1 if hidden.ndim == 1 else len(hidden)
    n_inner = math.prod(logits_shape[1:])
    n_outputs = n_classes * n_inner
    # Stands for the logits wherever only their shape and dtype matter.
    like = np.broadcast_to(np.zeros((), dtype), (*hidden.shape[:-1], *logits_shape))
    axis = class_axis(like)
    positions = position_shape(like, axis)
    indices, probabilities = as_target(target, like, axis, "the logits")
    weight = as_weight(weight, like, axis, "the logits")
    if probabilities is not None and ignore_index is not None:
        raise ValueError(
            "ignore_index cannot be specified when target contains probabilities: target has the shape of "
            f"the logits, so that ignore_index must be None; got {ignore_index}"
        )
    ignore_index = -100 if ignore_index is None else as_ignore_index(ignore_index)
    label_smoothing = as_label_smoothing(label_smoothing)
    extensions = as_extensions(
        sample_weight, normalizer, empty, z_loss, softcap, temperature, like, axis, reduction
    )
    likes = {"input": hidden, "linear_weight": weights}
    if bias is not None:
        likes["linear_bias"] = bias
    upstream, grad_output, outs = 1.0, None, None
    if gradient is not None:
        upstream, grad_output = as_grad_output(gradient.grad_output, dtype, positions, reduction)
        if gradient.out is not None:
            read = {
                **likes,
                "target": indices if probabilities is None else probabilities,
                "weight": weight,
                "sample_weight": extensions.sample_weight,
                "grad_output": grad_output,
            }
            outs = _as_outs(gradient.out, likes, read)
        else:
            outs = [np.empty(array.shape, dtype) for array in likes.values()]

    if indices is not None:
        # A copy: no other thread changes it.
        indices = np.array(indices).reshape(n_rows, n_inner)
    try:
        call = CrossEntropyArguments()
        call.logits = like
        call.axis = axis
        call.target = None if indices is None else indices
        call.probabilities = probabilities
        call.ignore_index = ignore_index
        call.weight = weight
        call.sample_weight = extensions.sample_weight
        call.normalizer = extensions.normalizer
        call.zero_if_empty = True
        denominator, empty_ = kernels.denominator(call)
        if empty_: denominator = 0.0
    except IndexError as error:
        assert indices is not None
        raise IndexError(
            describe_bad_target(
                error.args[0], indices.reshape(positions), n_classes, ignore_index, "linear_weight"
            )
        ) from None

    rows = _rows_that_count(indices, ignore_index, extensions.sample_weight, (n_rows, n_inner))
    mean = reduction == "mean"
    divisor = 1.0
    if mean:
        divisor = extensions.normalizer or denominator
        if divisor == 0:
            # Nothing counts: 0 / 0, or 0.
            divisor = 1.0 if extensions.zero_if_empty else math.nan
            rows = np.empty(0, np.intp) if extensions.zero_if_empty else rows
        extensions = extensions._replace(normalizer=divisor)

    def of_rows(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        array = array.reshape(n_rows, n_inner)
        return array if rows is None else array[rows]

    losses = np.zeros((n_rows, n_inner), dtype) if reduction == "none" else None
    layer = _Layer(
        _as_matrix(hidden, (n_rows, in_features)),
        _as_matrix(weights, (n_outputs, in_features)),
        None if bias is None else bias.reshape(n_outputs),
        logits_shape,
        rows,
        of_rows(indices),
        None if probabilities is None else probabilities.reshape(n_rows, *logits_shape),
        weight,
        ignore_index,
        label_smoothing,
        mean,
        of_rows(losses),
        of_rows(grad_output),
        upstream,
        extensions._replace(sample_weight=of_rows(extensions.sample_weight)),
    )
    gradients = None
    if outs is not None:
        shapes = ((n_rows, in_features), (n_outputs, in_features), (n_outputs,))
        gradients = _Gradients(
            *(np.ascontiguousarray(out.reshape(shape)) for out, shape in zip(outs, shapes, strict=False))
        )
    work = layer.n_rows * n_outputs * ((1 if outs is None else 3) * in_features + LOSS_PER_LOGIT)
    rows_per_chunk = _rows_per_chunk(options, n_rows, layer.n_rows, in_features, n_outputs, dtype.itemsize)
    a_pass = _Pass(layer, gradients, rows_per_chunk)
    # 0 / 0 where nothing counts
    value = with_workers(a_pass.run, work // SHARE) + 0.0 / divisor
    gradient_arrays = None
    if outs is not None and gradients is not None:
        for out, written in zip(outs, gradients, strict=False):
            if written is not None and not np.may_share_memory(out, written):
                # There is no C-contiguous view of `out` in this shape.
                out[...] = written.reshape(out.shape)
        gradient_arrays = tuple(outs)
    if losses is not None:
        if layer.losses is not None and rows is not None:
            losses[rows] = layer.losses
        return losses.reshape(positions), gradient_arrays
    with np.errstate(over="ignore"):
        return dtype.type(value), gradient_arrays


def _rows_that_count(
    indices: NDArray[Any] | None,
    ignore_index: int,
    sample_weight: NDArray[Any] | None,
    shape: tuple[int, int],
) -> NDArray[np.intp] | None:
    """Return the rows of which some position is neither ignored nor of weight 0; None for all."""
    counts = np.ones(shape, bool) if indices is None else indices != ignore_index
    if sample_weight is not None:
        counts = counts & (sample_weight.reshape(shape) != 0)
    of_rows = counts.any(axis=1)
    return None if of_rows.all() else np.flatnonzero(of_rows)


def evaluate(*arguments: Any, gradient: GradientRequest | None = None, **named: Any) -> tuple[Any, Any]:
    """Compute the public function and, if asked for, its gradients."""
    if "logits_shape" in named:
        raise TypeError("linear_cross_entropy() got an unexpected keyword argument 'logits_shape'")
    return linear_cross_entropy(*arguments, gradient=gradient, **named)
