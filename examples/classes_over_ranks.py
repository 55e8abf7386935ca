"""
A vocabulary over ranks
=======================

The loss of a language model's head whose vocabulary is split over ranks, of MPI or of torch.distributed.

Usage::

    mpiexec -n 4 python examples/classes_over_ranks.py
    torchrun --nproc-per-node 4 examples/classes_over_ranks.py --torch

Each rank has the weights of a part of the vocabulary, and the hidden states of all positions. What the ranks
exchange is a state of 52 bytes per position, and the gradient of the hidden states.
"""

import functools
import sys
from typing import Any

import numpy as np

import cyce
import cyce.functional as F
from cyce import sharded

N_POSITIONS, N_FEATURES, N_CLASSES = 200, 64, 10_000


class Mpi:
    """Ranks of mpi4py."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self.world = MPI.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size

    def merge(self, part: sharded.Partial) -> sharded.Partial:
        """Return the state of all classes."""
        return self.world.allreduce(part, op=sharded.merge)

    def add(self, array: Any) -> Any:
        """Return the sum of the arrays of all ranks."""
        total = np.empty_like(array)
        self.world.Allreduce(array, total)
        return total


class Torch:
    """Ranks of torch.distributed, over gloo."""

    def __init__(self) -> None:
        import torch
        import torch.distributed

        self.torch = torch
        torch.distributed.init_process_group("gloo")
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def merge(self, part: sharded.Partial) -> sharded.Partial:
        """Return the state of all classes."""
        fields = []
        for field in map(self.torch.from_numpy, part):
            of_ranks = [self.torch.empty_like(field) for _ in range(self.size)]
            self.torch.distributed.all_gather(of_ranks, field)
            fields.append([tensor.numpy() for tensor in of_ranks])
        parts = [sharded.Partial(*of_rank) for of_rank in zip(*fields, strict=True)]
        return functools.reduce(sharded.merge, parts)

    def add(self, array: Any) -> Any:
        """Return the sum of the arrays of all ranks."""
        total = self.torch.from_numpy(array.copy())
        self.torch.distributed.all_reduce(total)
        return total.numpy()


def main() -> None:
    """Compute loss and gradients, and compare them with those of the whole vocabulary."""
    ranks = Torch() if "--torch" in sys.argv else Mpi()
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((N_POSITIONS, N_FEATURES), dtype=np.float32)
    vocabulary = rng.standard_normal((N_CLASSES, N_FEATURES), dtype=np.float32) / 8
    target = rng.integers(N_CLASSES, size=N_POSITIONS)

    bounds = np.linspace(0, N_CLASSES, ranks.size + 1).astype(int)
    first, end = bounds[ranks.rank], bounds[ranks.rank + 1]
    own = vocabulary[first:end]

    part = sharded.linear_partial(hidden, own, target, first, n_classes=N_CLASSES)
    state = ranks.merge(part)
    n_counting = state.target_weight.sum()
    loss = sharded.finish(state).sum() / n_counting
    of_hidden, of_own = sharded.linear_gradient(hidden, own, target, state, first, grad_output=1 / n_counting)
    of_hidden = ranks.add(of_hidden)

    whole, (expected, of_vocabulary) = cyce.value_and_grad(F.linear_cross_entropy)(hidden, vocabulary, target)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_allclose(of_hidden, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(of_own, of_vocabulary[first:end], rtol=1e-4, atol=1e-7)
    if ranks.rank == 0:
        print(f"loss {loss:.6f}, of the whole vocabulary {whole:.6f}")


if __name__ == "__main__":
    main()
