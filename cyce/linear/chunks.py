"""The pass over chunks of rows: logits, their gradient and the gradients of the layer, in one buffer.

With hidden states X (N, H) and weights W (K, H), where K is the number of classes times the number of
positions of a row, a chunk of rows at a time goes through one buffer:

    logits = X_chunk W^T + bias             a product
    G = gradient of the logits              the kernel of cross_entropy, in place
    dX_chunk = G W,  dW += G^T X_chunk      two products

Each step is cut into blocks of outputs and pieces of rows, which threads share
(cyce/threads/workers.py). The shapes alone determine the blocks, and the addends of a sum are added in
order: results do not depend on the number of threads. A block of dW is computed apart and then added by NumPy
while it is in the cache. NumPy's products cannot add to an array. SciPy's can, but they would bring a second
BLAS with its own threads, to save 2 % of the time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import FLOAT32, arithmetic_dtype, is_half
from cyce.kernels import dispatch
from cyce.kernels.arguments import CrossEntropyArguments
from cyce.linear.options import LinearCrossEntropyOptions, chosen_rows
from cyce.memory.arrays import copy
from cyce.threads.workers import OrderedSum, Share, Spares

# Bytes of the buffer. BLAS reads the weights once per chunk, so that chunks should not be short.
BUFFER_BYTES = 168 << 20
# Minimal number of rows of a chunk; with several chunks, it is a multiple of ROUND_ROWS.
MIN_ROWS = 32
ROUND_ROWS = 16
# A block has at most BLOCK_OUTPUTS outputs and BLOCK_BYTES of weights, but never fewer than
# MIN_BLOCK_OUTPUTS outputs.
BLOCK_OUTPUTS = 2048
BLOCK_BYTES = 8 << 20
MIN_BLOCK_OUTPUTS = 256
# With fewer blocks of outputs, a chunk is cut along the rows, too.
ENOUGH_BLOCKS = 16
MIN_PIECE_ROWS = 256
# Up to so many chunks and pieces, the gradient of the weights is a plain sum: its errors are no larger than
# those of one product, which BLAS sums in parts, too. With more, rounding errors are kept, in half the
# precision.
PLAIN_ADDENDS = 12
# Rows whose part of the bias's gradient is summed in the dtype of the logits, before it is added in float64.
BIAS_ROWS = 256
# Arguments of a kernel that have a row for each row of logits.
ROWS = (
    "target",
    "sample_weight",
    "chosen",
    "chosen_mass",
    "grad_output",
    "entropy_grad",
    "loss_out",
    "chosen_out",
    "entropy_out",
)
# Number of logits that a kernel is called with.
KERNEL_LOGITS = 1 << 20


# Called with the arguments of some rows, and with their numbers among those that count; returns their loss.
Kernel = Callable[[CrossEntropyArguments, slice], float]


def _loss(call: CrossEntropyArguments, _: slice) -> float:
    """Return the loss of the rows of a call, and write its gradient if there is an array for it."""
    loss: float = dispatch.kernels.cross_entropy(call)
    return loss


class Problem(NamedTuple):
    """What is the same in all chunks."""

    hidden: NDArray[Any]
    """(N, H)"""
    weights: NDArray[Any]
    """(K, H)"""
    bias: NDArray[Any] | None
    """(K,)"""
    row_shape: tuple[int, ...]
    """Shape of the logits of a row, (C, d1, ..., dk)."""
    rows: NDArray[np.intp] | None
    """The rows that count, None for all."""
    call: CrossEntropyArguments
    """The arguments of the loss: class probabilities and masks of all rows, others of those that count."""
    kernel: Kernel = _loss
    """What is done with the logits of some rows."""

    @property
    def is_half(self) -> bool:
        """Whether hidden states and weights are stored in half precision."""
        return is_half(self.hidden.dtype)

    @property
    def n_rows(self) -> int:
        """Number of rows that count."""
        return len(self.hidden) if self.rows is None else len(self.rows)

    def take(self, array: NDArray[Any], first: int, end: int) -> NDArray[Any]:
        """Return the rows `first` to `end` among those that count, from an array of all rows."""
        return array[first:end] if self.rows is None else array[self.rows[first:end]]


class Gradients(NamedTuple):
    """Arrays to write the gradients to, None for those that are not wanted."""

    hidden: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None


class Pass:
    """The pass over the chunks."""

    def __init__(self, problem: Problem, gradients: Gradients | None, rows_per_chunk: int) -> None:
        self._problem = problem
        self._gradients = gradients
        self._rows_per_chunk = rows_per_chunk
        n_outputs, in_features = problem.weights.shape
        dtype = arithmetic_dtype(problem.hidden.dtype)
        width = BLOCK_BYTES // max(1, in_features * dtype.itemsize)
        width = min(BLOCK_OUTPUTS, max(MIN_BLOCK_OUTPUTS, width))
        self._blocks = _slices(n_outputs, width)
        n_pieces = 1 if len(self._blocks) >= ENOUGH_BLOCKS else 2 * ENOUGH_BLOCKS // max(1, len(self._blocks))
        piece_rows = max(MIN_PIECE_ROWS, -(-rows_per_chunk // n_pieces))
        most = max(MIN_ROWS, BLOCK_BYTES // max(1, in_features * dtype.itemsize))
        self._piece_rows = min(piece_rows, most, rows_per_chunk)
        # Allocate everything large before anything is written: a MemoryError leaves `out` unchanged.
        self._buffer = np.empty((rows_per_chunk, n_outputs), dtype)
        self._spare_blocks = Spares(min(width, n_outputs) * in_features, dtype)
        self._spare_weights = Spares(min(width, n_outputs) * in_features, dtype)
        self._spare_pieces = Spares(self._piece_rows * in_features, dtype)
        with_bias = gradients is not None and gradients.bias is not None
        self._bias_gradient = np.zeros(n_outputs) if with_bias else None
        n_addends = -(-problem.n_rows // rows_per_chunk) * -(-rows_per_chunk // self._piece_rows)
        self._lost: NDArray[Any] | None = None
        if gradients is not None and gradients.weights is not None and n_addends > PLAIN_ADDENDS:
            self._lost = np.zeros(problem.weights.shape, np.uint16 if dtype == FLOAT32 else np.float32)

    def run(self, share: Share) -> float:
        """Compute the loss and the gradients; return the loss."""
        problem, value = self._problem, 0.0
        if self._gradients is not None:
            self._clear()
        for chunk in _slices(problem.n_rows, self._rows_per_chunk):
            hidden = self._converted(problem.take(problem.hidden, chunk.start, chunk.stop))
            logits = self._buffer[: len(hidden)]
            self._fill(share, hidden, logits)
            value += self._apply_kernel(share, chunk.start, logits)
            if self._gradients is not None:
                self._multiply(share, chunk, hidden, logits)
        if self._gradients is not None and self._gradients.bias is not None:
            assert self._bias_gradient is not None
            copy(self._bias_gradient, self._gradients.bias)
        return value

    def _converted(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return hidden states in the arithmetic's dtype."""
        if not self._problem.is_half:
            return array
        converted = np.empty(array.shape, self._buffer.dtype)
        copy(array, converted)
        return converted

    @contextlib.contextmanager
    def _weights_of(self, block: slice) -> Iterator[NDArray[Any]]:
        """Return a block of the weights in the arithmetic's dtype."""
        weights = self._problem.weights[block]
        if not self._problem.is_half:
            yield weights
            return
        converted = self._spare_weights.take(weights.shape)
        copy(weights, converted)
        yield converted
        self._spare_weights.give_back(converted)

    def _clear(self) -> None:
        """Set gradients to 0 that the chunks do not write, or only add to."""
        problem, gradients = self._problem, self._gradients
        assert gradients is not None
        if gradients.hidden is not None and (problem.rows is not None or not problem.weights.size):
            gradients.hidden[...] = 0
        if gradients.weights is not None and not problem.n_rows:
            gradients.weights[...] = 0

    def _fill(self, share: Share, hidden: NDArray[Any], logits: NDArray[Any]) -> None:
        """Compute the logits of a chunk."""
        bias = self._problem.bias

        def fill(tile: tuple[slice, slice]) -> None:
            piece, block = tile
            part = logits[piece, block]
            with self._weights_of(block) as weights:
                np.matmul(hidden[piece], weights.T, out=part)
            if bias is not None:
                np.add(part, bias[block], out=part)

        pieces = _slices(len(hidden), self._piece_rows)
        share(fill, [(piece, block) for piece in pieces for block in self._blocks])

    def _apply_kernel(self, share: Share, start: int, logits: NDArray[Any]) -> float:
        """Return the loss of a chunk; overwrite its logits with their gradient if that is requested."""
        problem = self._problem
        logits = logits.reshape(len(logits), *problem.row_shape)

        def apply(piece: slice) -> float:
            rows = slice(start + piece.start, start + piece.stop)
            call = problem.call.copy()
            call.logits = logits[piece]
            for name in ("probabilities", "class_mask"):
                array = getattr(call, name)
                if array is not None:
                    setattr(call, name, problem.take(array, rows.start, rows.stop))
            for name in ROWS:
                array = getattr(call, name)
                if array is not None:
                    setattr(call, name, array[rows])
            if call.stats_out is not None:
                call.stats_out = [array[rows] for array in call.stats_out]
            if self._gradients is not None:
                call.grad_out = call.logits
            return problem.kernel(call, rows)

        rows = max(1, KERNEL_LOGITS // max(1, self._buffer.shape[1]))
        return sum(share(apply, _slices(len(logits), rows)))

    def _sum_of_block(self, weights: NDArray[Any], block: slice, is_first: bool) -> OrderedSum:
        """Return the gradient of a block of weights as a sum that a chunk adds to."""
        add: Callable[[NDArray[Any], NDArray[Any]], object] = _add
        if self._lost is not None:
            add = functools.partial(dispatch.elementwise.accumulate, lost=self._lost[block])
        return OrderedSum(weights[block], self._spare_blocks, is_first, add)

    def _multiply(self, share: Share, chunk: slice, hidden: NDArray[Any], slopes: NDArray[Any]) -> None:
        """Compute the gradients of input, weights and bias from the gradient of a chunk's logits."""
        problem, gradients = self._problem, self._gradients
        assert gradients is not None
        pieces = _slices(len(hidden), self._piece_rows)
        of_pieces, of_blocks = [], []
        is_apart = gradients.hidden is not None and (
            problem.rows is not None or gradients.hidden.dtype != hidden.dtype
        )
        if gradients.hidden is not None:
            hidden_gradient = np.zeros_like(hidden) if is_apart else gradients.hidden[chunk]
            of_pieces = [
                OrderedSum(hidden_gradient[piece], self._spare_pieces, True, _add) for piece in pieces
            ]
        if gradients.weights is not None:
            of_blocks = [
                self._sum_of_block(gradients.weights, block, chunk.start == 0) for block in self._blocks
            ]

        def multiply(tile: tuple[int, int]) -> None:
            i, j = tile
            piece, block = pieces[i], self._blocks[j]
            part = slopes[piece, block]
            if of_blocks:
                array = of_blocks[j].array(i)
                of_blocks[j].add(i, np.matmul(part.T, hidden[piece], out=array))
            if of_pieces:
                array = of_pieces[i].array(j)
                with self._weights_of(block) as weights:
                    of_pieces[i].add(j, np.matmul(part, weights, out=array))

        if of_blocks or of_pieces:
            share(multiply, [(i, j) for i in range(len(pieces)) for j in range(len(self._blocks))])
        if self._bias_gradient is not None:
            sums = self._bias_gradient
            ones = np.ones(BIAS_ROWS, slopes.dtype)

            def add_up(block: slice) -> None:
                for rows in _slices(len(slopes), BIAS_ROWS):
                    sums[block] += ones[: rows.stop - rows.start] @ slopes[rows, block]

            share(add_up, self._blocks)
        if gradients.hidden is not None and is_apart:
            rounded = np.empty(hidden.shape, gradients.hidden.dtype)
            copy(hidden_gradient, rounded)
            gradients.hidden[chunk if problem.rows is None else problem.rows[chunk]] = rounded


def _add(addend: NDArray[Any], total: NDArray[Any]) -> None:
    """Add an array to a total."""
    np.add(total, addend, out=total)


def _slices(n: int, step: int) -> list[slice]:
    """Cut n elements into slices of at most `step`."""
    return [slice(first, min(n, first + step)) for first in range(0, n, step)]


def rows_per_chunk(
    options: LinearCrossEntropyOptions,
    n_rows: int,
    n_counting: int,
    in_features: int,
    n_outputs: int,
    itemsize: int,
    converts: bool = False,
) -> int:
    """Return the number of rows of a chunk, of those that count.

    itemsize: of the arithmetic's dtype. converts: whether hidden states are stored in another one.
    """
    wanted = chosen_rows(options, n_rows, in_features, n_outputs)
    if n_counting == 0:
        return 1
    if wanted is not None:
        return min(wanted, n_counting)
    # If some rows are ignored, the others are copied, and so are their gradients.
    of_row = n_outputs + (2 * in_features if n_counting < n_rows or converts else 0)
    limit = max(MIN_ROWS, BUFFER_BYTES // max(1, of_row * itemsize))
    if limit >= n_counting:
        return n_counting
    n_chunks = -(-n_counting // limit)
    return min(limit, -(-n_counting // n_chunks // ROUND_ROWS) * ROUND_ROWS)
