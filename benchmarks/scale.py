"""Time losses and count what moves on local clusters of Dask: `python -m benchmarks.scale --help`.

The file of logits is in the page cache. "plain" is `cross_entropy` of the mapped file, with two threads, in a
process of its own; the cluster has two workers of one thread each. All map the file once, and keep the map.
"""

import functools
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import cyce
import cyce.dask
import cyce.functional as F
from benchmarks import report, tables, turns
from benchmarks.linear import memory
from cyce import sharded

N_CLASSES = 32_000
# Positions and classes of a chunk.
CHUNKS = ((4096, 32_000), (2048, 32_000), (1024, 32_000), (4096, 8_000))
# What moves is counted with these chunks, shards of the classes, and so many positions.
SHARDS = (2048, 4_000)
N_COUNTED = 8192


def write_files(folder, n_positions):
    """Write logits, a block of which repeats, and targets."""
    rng = np.random.Generator(np.random.SFC64(0))
    block = rng.standard_normal((1024, N_CLASSES), np.float32) * 3
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (n_positions, N_CLASSES))
    for first in range(0, n_positions, len(block)):
        logits[first : first + len(block)] = block[: n_positions - first]
    logits.flush()
    np.save(folder / "target.npy", rng.integers(N_CLASSES, size=n_positions))


@functools.lru_cache
def mapped(path):
    """Map a file, once in each process."""
    return np.load(path, mmap_mode="r")


def read(path, block_info=None):
    """Return a chunk of a file: a view."""
    return mapped(path)[tuple(slice(*place) for place in block_info[None]["array-location"])]


def from_file(path, chunks):
    """Return the Dask array of a file, which workers map themselves."""
    logits = mapped(path)
    return da.map_blocks(
        read,
        path,
        chunks=da.core.normalize_chunks(chunks, logits.shape),
        dtype=logits.dtype,
        meta=np.empty((0, 0), logits.dtype),
    )


def plain(folder, connection, n_threads):
    """Time the plain call whenever that is asked for."""
    cyce.set_num_threads(n_threads)
    logits, target = mapped(f"{folder}/logits.npy"), np.load(f"{folder}/target.npy")
    while connection.recv():
        start = time.perf_counter()
        loss = float(F.cross_entropy(logits, target))
        connection.send((time.perf_counter() - start, loss))


def time_losses(run, folder, n_rounds, n_threads):
    """Time the plain call and the cluster, in turns."""
    target = np.load(folder / "target.npy")
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    arguments = (str(folder), theirs, n_threads)
    process = multiprocessing.get_context("spawn").Process(target=plain, args=arguments)
    process.start()
    path = str(folder / "logits.npy")
    run.begin_table(
        "The loss of a mapped file", ["chunks of positions x classes", "cluster", "plain", "ratio"]
    )
    with (
        LocalCluster(n_workers=n_threads, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        for chunks in CHUNKS:
            loss = cyce.dask.cross_entropy(from_file(path, chunks), target)
            seconds = {"plain": [], "cluster": []}
            for number in range(n_rounds + 3):
                ours.send(True)
                once, expected = ours.recv()
                start = time.perf_counter()
                result = float(loss.compute())
                again = time.perf_counter() - start
                assert abs(result - expected) <= 2e-6 * abs(expected), (result, expected)
                # The first rounds map the file: either worker may get any chunk.
                if number >= 3:
                    seconds["plain"].append(once)
                    seconds["cluster"].append(again)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            ratio = medians["cluster"] / medians["plain"]
            times = [report.milliseconds(medians[name]) for name in ("cluster", "plain")]
            run.row(f"{chunks[0]} x {chunks[1]}", *times, f"{ratio:.2f}")
    ours.send(False)
    process.join()


def moved_bytes(dask_worker):
    """Return what a worker has received from others."""
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


def count_bytes(run, folder):
    """Count what moves between workers, per position: states, and logits that are gathered."""
    target = np.load(folder / "target.npy")[:N_COUNTED]
    path = str(folder / "logits.npy")
    columns = ["workers", "of states", "of logits, rechunked to whole rows"]
    run.begin_table("Bytes per position that move", columns)
    for n_workers in (2, 4):
        counts = []
        for gathered in (False, True):
            with (
                LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
                Client(cluster) as client,
                # Rechunked in memory: what a shuffle writes to disk is not counted.
                dask.config.set({"array.rechunk.method": "tasks"}),
            ):
                logits = from_file(path, SHARDS)[:N_COUNTED]
                if gathered:
                    logits = logits.rechunk((SHARDS[0], N_CLASSES))
                cyce.dask.cross_entropy(logits, target).compute()
                counts.append(sum(client.run(moved_bytes).values()) / len(target))
        run.row(str(n_workers), f"{counts[0]:.0f}", f"{counts[1]:,.0f}")


def time_merging(run):
    """Time how long states of two shards take to merge, and to be finished."""
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((N_COUNTED, 200), np.float32), rng.integers(200, size=N_COUNTED)
    parts = [sharded.partial(logits[:, a : a + 100], target, a, n_classes=200) for a in (0, 100)]
    state = sharded.merge(*parts)
    calls = (lambda: sharded.merge(*parts)), (lambda: sharded.finish(state))
    run.begin_table("Nanoseconds per position", ["merging two states", "finishing one"])
    run.row(*(f"{turns.shortest(call, 0.5) / N_COUNTED * 1e9:.0f}" for call in calls))


def peak_of_random(n_bytes):
    """Evaluate random logits that are made chunk by chunk; return the peak of this process's memory."""
    n_positions = int(n_bytes / 4 / N_CLASSES)
    logits = da.random.default_rng(0).standard_normal(
        (n_positions, N_CLASSES), dtype=np.float32, chunks=(1024, N_CLASSES)
    )
    target = da.random.default_rng(1).integers(N_CLASSES, size=n_positions, chunks=1024)
    with dask.config.set(scheduler="threads"):
        result = cyce.dask.evaluate(logits, target).compute()
    assert result.n_positions == n_positions
    # Not from getrusage: it counts what the parent had when it forked.
    return memory("VmHWM")


def main(arguments=None):
    """Run what was asked for."""
    parser = tables.make_parser("benchmarks.scale", __doc__.splitlines()[0].partition(":")[0], rounds=9)
    parser.add_argument("--gigabytes", type=float, default=4, help="of the file (default: 4)")
    parser.add_argument("--folder", help="for the file; by default, that of temporary files")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="also evaluate that many random logits by Dask's threads, and tell the process's memory",
    )
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.scale", settings, arguments)
    run.versions |= {"cyce": cyce.__version__, "dask": dask.__version__}
    with tempfile.TemporaryDirectory(dir=settings.folder) as temporary:
        folder = Path(temporary)
        write_files(folder, round(settings.gigabytes * 1e9 / 4 / N_CLASSES))
        time_losses(run, folder, settings.rounds, settings.threads)
        count_bytes(run, folder)
    time_merging(run)
    if settings.memory:
        # In a process of its own, which has mapped no file.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_of_random, [settings.memory * 1e9])
        run.begin_table("Evaluation of random logits", ["GB of logits", "GB of the process, at most"])
        run.row(f"{settings.memory:g}", f"{peak / 1e9:.2f}")
    return run.end(f"Milliseconds, medians over {settings.rounds} rounds; workers have one thread each")


if __name__ == "__main__":
    sys.exit(main())
