"""Time evaluations of files that are in the page cache: `python -m benchmarks.evaluate --help`.

Beside how fast NumPy reads them: two threads that sum a half each. Every contender has a process of its own
and maps the file anew for each pass, as a user's first call does. Those that would take minutes, or more
memory than there is, evaluate the first positions only.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.turns import take_turns

N_CLASSES = 128_256
CONTENDERS = ("sum", "cyce", "numpy", "scikit-learn", "torchmetrics")
# Positions of a pass of contenders that are slow, and of those whose losses are compared.
N_FEW = 256
N_CHECKED = 16


def write_files(folder, dtype, n_positions):
    """Write logits, a block of which repeats, and targets."""
    rng = np.random.Generator(np.random.SFC64(0))
    block = rng.standard_normal((256, N_CLASSES), np.float32) * 3
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.dtype(dtype), (n_positions, N_CLASSES))
    for first in range(0, n_positions, len(block)):
        part = logits[first : first + len(block)]
        part[:] = (block + np.float32(first / 4096))[: len(part)]
    logits.flush()
    np.save(folder / "target.npy", rng.integers(N_CLASSES, size=n_positions))


def exact_loss(folder):
    """Mean loss of the first positions, in float64."""
    logits = np.load(folder / "logits.npy", mmap_mode="r")[:N_CHECKED].astype(float)
    target = np.load(folder / "target.npy")[:N_CHECKED]
    apart = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(apart).sum(axis=1)) - apart[np.arange(N_CHECKED), target])


def sum_halves(folder, n):
    """Have two threads sum a half each: half precision as the integers of two numbers."""
    logits = np.load(folder / "logits.npy", mmap_mode="r")[:n]
    numbers = logits.view(np.uint32) if logits.dtype.itemsize == 2 else logits
    half = len(numbers) // 2
    threads = [threading.Thread(target=part.sum) for part in (numbers[:half], numbers[half:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def evaluate_by_cyce(folder, n):
    """Evaluate, and assert that every byte is read once."""
    import cyce
    from cyce.evaluation import sources

    read = []
    original = sources.ArraySource.read

    def note(self, index):
        piece = original(self, index)
        read.append(piece.nbytes)
        return piece

    sources.ArraySource.read = note
    try:
        logits = np.load(folder / "logits.npy", mmap_mode="r")[:n]
        target = np.load(folder / "target.npy")[:n]
        loss = cyce.evaluate(logits, target, progress=False).loss
    finally:
        sources.ArraySource.read = original
    assert sum(read) == logits.nbytes
    return loss


def evaluate_by_numpy(folder, n):
    """Loss, as llama.cpp's perplexity tool computes it: exponentials in float32, their sum in float64."""
    logits = np.load(folder / "logits.npy", mmap_mode="r")[:n]
    target = np.load(folder / "target.npy")[:n]
    total = 0.0
    for first in range(0, n, 64):
        part = logits[first : first + 64].astype(np.float32)
        highest = part.max(axis=1)
        sums = np.exp(part - highest[:, None]).sum(axis=1, dtype=np.float64)
        total += float(
            (highest + np.log(sums) - part[np.arange(len(part)), target[first : first + 64]]).sum()
        )
    return total / n


def evaluate_by_scikit_learn(folder, n):
    """Loss and accuracies, of probabilities that have to be computed first."""
    from scipy.special import softmax
    from sklearn.metrics import log_loss, top_k_accuracy_score

    logits = np.load(folder / "logits.npy", mmap_mode="r")[:n]
    target = np.load(folder / "target.npy")[:n]
    probabilities = softmax(logits.astype(np.float64), axis=1)
    labels = np.arange(N_CLASSES)
    for k in (1, 5):
        top_k_accuracy_score(target, probabilities, k=k, labels=labels)
    return log_loss(target, probabilities, labels=labels)


def evaluate_by_torchmetrics(folder, n):
    """Perplexity, accuracies and calibration error."""
    import torch
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
    from torchmetrics.text import Perplexity

    metrics = [
        MulticlassAccuracy(N_CLASSES, top_k=1, average="micro"),
        MulticlassAccuracy(N_CLASSES, top_k=5, average="micro"),
        MulticlassCalibrationError(N_CLASSES),
    ]
    perplexity = Perplexity()
    logits = np.load(folder / "logits.npy", mmap_mode="r")[:n]
    target = torch.from_numpy(np.load(folder / "target.npy")[:n])
    for first in range(0, n, 64):
        part = torch.from_numpy(logits[first : first + 64].astype(np.float32))
        labels = target[first : first + 64]
        perplexity.update(part[None], labels[None])
        for metric in metrics:
            metric.update(part, labels)
    for metric in metrics:
        metric.compute()
    return float(perplexity.compute().log())


CALLS = {
    "sum": sum_halves,
    "cyce": evaluate_by_cyce,
    "numpy": evaluate_by_numpy,
    "scikit-learn": evaluate_by_scikit_learn,
    "torchmetrics": evaluate_by_torchmetrics,
}
MODULES = {"sum": "numpy", "scikit-learn": "sklearn"}


class Worker:
    """A contender with its call."""

    def __init__(self, name, n_threads):
        self._name = name
        module = __import__(MODULES.get(name, name))
        if name == "cyce":
            module.set_num_threads(n_threads)
        if name == "torchmetrics":
            import torch

            torch.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__}
        self._folder, self._n = None, 0

    def prepare(self, folder, n_positions):
        """Check the loss of the first positions; the whole file, or a part of it, is what is timed."""
        self._folder = Path(folder)
        self._n = n_positions if self._name in ("sum", "cyce") else min(N_FEW, n_positions)
        loss = CALLS[self._name](self._folder, N_CHECKED)
        if loss is not None:
            # bfloat16 and float16 are exact in float32; torchmetrics sums in float32.
            np.testing.assert_allclose(loss, exact_loss(self._folder), rtol=1e-5)

    def round(self):
        """Return the GB/s of one pass."""
        logits = np.load(self._folder / "logits.npy", mmap_mode="r")[: self._n]
        start = time.perf_counter()
        CALLS[self._name](self._folder, self._n)
        return logits.nbytes / 1e9 / (time.perf_counter() - start)


def peak_memory(folder, n_bytes):
    """Evaluate a file of bfloat16 by the command; return the peak of memory that is no file's, in MB."""
    n_positions = n_bytes // 2 // N_CLASSES
    np.lib.format.open_memmap(folder / "big.npy", "w+", "<V2", (n_positions, N_CLASSES)).flush()
    np.save(folder / "big-target.npy", np.zeros(n_positions, np.int64))
    command = [sys.executable, "-m", "cyce", "evaluate", "big.npy", "big-target.npy", "--dtype", "bfloat16"]
    outputs = ["--html", "page.html", "--png", "picture.png"]
    process = subprocess.Popen([*command, *outputs], cwd=folder, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text("ascii"))
        most = max(most, int(found.group(1)) if found else 0)
        time.sleep(0.005)
    assert process.returncode == 0
    assert (folder / "page.html").exists()
    return most / 1024


def main(arguments=None):
    """Run the bench; return the exit status: 1 if a contender was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.evaluate", "Time evaluations of files of logits.", rounds=5, contenders=CONTENDERS
    )
    parser.add_argument("--gigabytes", type=float, default=4.2, help="size of each file (default: 4.2)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"], choices=("float32", "float16"))
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary one)")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="also evaluate a file of bfloat16 by the command, and tell its memory",
    )
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.evaluate", settings, arguments)
    with tempfile.TemporaryDirectory(dir=settings.folder) as temporary:
        folder = Path(temporary)
        run.begin_table("GB/s", ["", *settings.contenders])
        for dtype in settings.dtypes:
            n_positions = int(settings.gigabytes * 1e9 / np.dtype(dtype).itemsize / N_CLASSES) // 2 * 2
            write_files(folder, dtype, n_positions)
            outcome = take_turns(
                dtype,
                settings.contenders,
                Worker,
                settings.threads,
                settings.rounds,
                (os.fspath(folder), n_positions),
                run.versions,
            )
            run.failed |= bool(outcome.troubles)
            rates = {name: np.median(rates) for name, rates in outcome.seconds.items() if rates}
            base = rates.get("sum")
            row = [
                "-"
                if name not in rates
                else f"{rates[name]:.3g}" + (f" ({rates[name] / base:.2f})" if base and name != "sum" else "")
                for name in settings.contenders
            ]
            run.row(f"{dtype}, {n_positions} x {N_CLASSES}", *row)
        if settings.memory:
            (folder / "logits.npy").unlink()
            peak = peak_memory(folder, int(settings.memory * 1e9))
            run.begin_table("Memory of the command", ["GB of bfloat16", "MB beside the file's own pages"])
            run.row(f"{settings.memory:g}", f"{peak:.0f}")
    return run.end("GB/s of files in the page cache; in parentheses, relative to the sum")


if __name__ == "__main__":
    sys.exit(main())
