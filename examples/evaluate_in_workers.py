"""
Evaluating in several workers
=============================

Evaluate saved logits in several workers: each updates its own evaluator, and these merge in a tree.

Usage::

    python examples/evaluate_in_workers.py multiprocessing [N_WORKERS]
    python examples/evaluate_in_workers.py dask [N_WORKERS]
    mpiexec -n 4 python examples/evaluate_in_workers.py mpi
"""

import functools
import itertools
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np

import cyce

N_POSITIONS, N_CLASSES = 20_000, 100


def save_logits(folder: Path) -> None:
    """Write logits and targets to files."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((N_POSITIONS, N_CLASSES), dtype=np.float32)
    target = logits.argmax(axis=1)
    logits += rng.standard_normal(logits.shape, dtype=np.float32)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "target.npy", target)


def pieces(n_workers: int) -> list[slice]:
    """Return a part of the positions for each worker."""
    bounds = np.linspace(0, N_POSITIONS, n_workers + 1).astype(int).tolist()
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def evaluated(folder: Path, positions: slice) -> cyce.Evaluator:
    """Return an evaluator that has seen some of the positions."""
    logits = np.load(folder / "logits.npy", mmap_mode="r")
    target = np.load(folder / "target.npy", mmap_mode="r")
    return cyce.Evaluator(top_k=(1, 5)).update(logits[positions], target[positions])


def merged(a: cyce.Evaluator, b: cyce.Evaluator) -> cyce.Evaluator:
    """Return what two evaluators have seen."""
    return cyce.Evaluator(top_k=(1, 5)).merge(a).merge(b)


def with_multiprocessing(folder: Path, n_workers: int) -> cyce.Evaluator:
    """Evaluate in the processes of a pool; evaluators come back pickled."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(n_workers) as pool:
        evaluators = pool.imap(functools.partial(evaluated, folder), pieces(n_workers))
        return functools.reduce(merged, evaluators)


def with_dask(folder: Path, n_workers: int) -> cyce.Evaluator:
    """Evaluate in the workers of a local cluster; any other cluster will do."""
    import dask
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        evaluators = [dask.delayed(evaluated)(folder, part) for part in pieces(4 * n_workers)]
        while len(evaluators) > 1:
            pairs = zip(evaluators[::2], evaluators[1::2], strict=False)
            evaluators = [dask.delayed(merged)(*pair) for pair in pairs] + evaluators[
                len(evaluators) // 2 * 2 :
            ]
        return evaluators[0].compute()


def with_mpi(folder: Path) -> cyce.Evaluator | None:
    """Evaluate in the ranks of MPI; the first of them returns the result."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.rank == 0:
        save_logits(folder)
    folder = world.bcast(folder)
    return world.reduce(evaluated(folder, pieces(world.size)[world.rank]), op=merged)


def main() -> None:
    """Evaluate in workers, and compare the result with that of one process."""
    engine = sys.argv[1] if len(sys.argv) > 1 else ""
    n_workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    if engine not in ("multiprocessing", "dask", "mpi"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if engine == "mpi":
            evaluator = with_mpi(folder)
            if evaluator is None:
                return
        else:
            save_logits(folder)
            evaluate = {"multiprocessing": with_multiprocessing, "dask": with_dask}[engine]
            evaluator = evaluate(folder, n_workers)
        result = evaluator.compute()
        whole = evaluated(folder, slice(None)).compute()
        assert result.n_positions == N_POSITIONS
        assert result.top_k == whole.top_k
        np.testing.assert_allclose(result.loss, whole.loss, rtol=1e-13)
        print(result)


if __name__ == "__main__":
    main()
