"""One rank of MPI or of torch.distributed: its shard of losses, gradients and a linear layer.

Usage: mpiexec -n 4 python sharded_ranks.py mpi FOLDER
       torchrun --nproc-per-node 4 sharded_ranks.py gloo FOLDER
"""

import functools
import itertools
import os
import sys
from pathlib import Path

import numpy as np

from cyce import sharded

N_CLASSES, N_POSITIONS, N_FEATURES = 1003, 50, 12
OPTIONS = {
    "plain": {},
    "weight": {"weight": np.random.default_rng(1).random(N_CLASSES)},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 0.7, "softcap": 20.0, "ignore_index": 5},
}


def problem(dtype):
    """Return logits, targets, hidden states and weights: the same in all ranks."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((N_POSITIONS, N_CLASSES)) * 5).astype(dtype)
    target = rng.integers(N_CLASSES, size=N_POSITIONS)
    target[::7] = 5
    hidden = rng.standard_normal((N_POSITIONS, N_FEATURES)).astype(dtype)
    weights = rng.standard_normal((N_CLASSES, N_FEATURES)).astype(dtype)
    return logits, target, hidden, weights


class Mpi:
    def __init__(self):
        from mpi4py import MPI

        self.world = MPI.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size

    def merge(self, part):
        pickled = self.world.allreduce(part, op=sharded.merge)
        # The same as plain buffers.
        fields = []
        for field in part:
            of_ranks = np.empty((self.size, *field.shape), field.dtype)
            self.world.Allgather(np.ascontiguousarray(field), of_ranks)
            fields.append(of_ranks)
        merged = functools.reduce(
            sharded.merge, itertools.starmap(sharded.Partial, zip(*fields, strict=True))
        )
        np.testing.assert_allclose(sharded.finish(pickled), sharded.finish(merged), rtol=1e-6)
        return pickled

    def add(self, array):
        total = np.empty_like(array)
        self.world.Allreduce(np.ascontiguousarray(array), total)
        return total

    def leave(self):
        pass


class Gloo:
    def __init__(self):
        import torch
        import torch.distributed

        self.torch = torch
        torch.distributed.init_process_group("gloo")
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def merge(self, part):
        fields = []
        for field in map(self.torch.from_numpy, part):
            of_ranks = [self.torch.empty_like(field) for _ in range(self.size)]
            self.torch.distributed.all_gather(of_ranks, field)
            fields.append(of_ranks)
        # Tensors are read as they are.
        return functools.reduce(sharded.merge, itertools.starmap(sharded.Partial, zip(*fields, strict=True)))

    def add(self, array):
        total = self.torch.from_numpy(array.copy())
        self.torch.distributed.all_reduce(total)
        return total.numpy()

    def leave(self):
        self.torch.distributed.destroy_process_group()
        # Gloo's threads live on, see test_training.py.
        os._exit(0)


def main():
    ranks = {"mpi": Mpi, "gloo": Gloo}[sys.argv[1]]()
    results = {}
    for dtype, (name, options) in itertools.product(("float32", "float64"), OPTIONS.items()):
        logits, target, hidden, weights = problem(dtype)
        bounds = np.linspace(0, N_CLASSES, ranks.size + 1).astype(int)
        first, end = bounds[ranks.rank], bounds[ranks.rank + 1]
        named = {"weight": options["weight"][first:end]} if "weight" in options else {}
        key = f"{dtype} {name}"

        part = sharded.partial(logits[:, first:end], target, first, **{**options, **named})
        state = ranks.merge(part)
        results[f"{key} losses"] = sharded.finish(state)
        results[f"{key} gradient"] = sharded.gradient(logits[:, first:end], target, state, first, **named)

        own = weights[first:end]
        part = sharded.linear_partial(hidden, own, target, first, **{**options, **named})
        state = ranks.merge(part)
        of_hidden, of_own = sharded.linear_gradient(hidden, own, target, state, first, **named)
        results[f"{key} linear losses"] = sharded.finish(state)
        results[f"{key} linear hidden"] = ranks.add(of_hidden)
        results[f"{key} linear gradient"] = of_own
    np.savez(Path(sys.argv[2], f"{ranks.rank}.npz"), **results)
    ranks.leave()


if __name__ == "__main__":
    main()
