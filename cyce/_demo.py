"""The demonstration: a softmax classifier of handwritten digits, trained by `value_and_grad`."""

import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyce import plotting
from cyce._progress import Progress
from cyce.functional import cross_entropy, cross_entropy_stats
from cyce.gradients import value_and_grad

N_EPOCHS = 60
BATCH_SIZE = 64
LEARNING_RATE = 0.1
MOMENTUM = 0.9
N_HELD_OUT = 450


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return pixels in [0, 1], (1797, 64), and digits, (1797,)."""
    with as_file(files("cyce") / "data" / "digits.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8, encoding="ascii")
    return table[:, :-1].astype(np.float32) / np.float32(16), table[:, -1]


class Training(NamedTuple):
    """Parameters of the classifier, and the times of its losses and gradients."""

    weights: NDArray[np.float32]
    """(64, 10)"""
    biases: NDArray[np.float32]
    """(10,)"""
    seconds: NDArray[np.float64]
    """Time of loss and gradient in each step."""


def train(pixels: NDArray[np.float32], digits: NDArray[np.uint8], progress: Progress, seed: int) -> Training:
    """Fit weights and biases by stochastic gradient descent with momentum."""
    rng = np.random.default_rng(seed)
    loss_and_gradient = value_and_grad(cross_entropy)
    parameters = np.zeros((pixels.shape[1] + 1, 10), np.float32)
    velocity = np.zeros_like(parameters)
    # The weights of the column of ones are the biases.
    inputs = np.column_stack([pixels, np.ones(len(pixels), np.float32)])
    seconds = []
    for _ in range(N_EPOCHS):
        loss = np.float32(0)
        order = rng.permutation(len(inputs))
        for batch in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
            logits = inputs[batch] @ parameters
            began = time.perf_counter()
            # The logits are not used again: the gradient overwrites them.
            loss, gradient = loss_and_gradient(logits, digits[batch], out=logits)
            seconds.append(time.perf_counter() - began)
            velocity = MOMENTUM * velocity - LEARNING_RATE * (inputs[batch].T @ gradient)
            parameters += velocity
        progress.update(1, f"loss {loss:.4f}")
    return Training(parameters[:-1], parameters[-1], np.array(seconds))


def train_in_torch(
    pixels: NDArray[np.float32], digits: NDArray[np.uint8], progress: Progress, seed: int
) -> Training:
    """Fit the same classifier in torch, with the loss of `cyce.torch`."""
    import torch

    from cyce.torch import CrossEntropyLoss

    torch.manual_seed(seed)
    inputs, targets = torch.from_numpy(pixels), torch.from_numpy(digits.astype(np.int64))
    model = torch.nn.Linear(pixels.shape[1], 10)
    # In place of torch.nn.CrossEntropyLoss: nothing else differs.
    criterion = CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    seconds = []
    for _ in range(N_EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            logits = model(inputs[batch])
            began = time.perf_counter()
            loss = criterion(logits, targets[batch])
            loss.backward()
            seconds.append(time.perf_counter() - began)
            optimizer.step()
        progress.update(1, f"loss {loss.item():.4f}")
    weights, biases = (parameter.detach().numpy() for parameter in (model.weight.T, model.bias))
    return Training(weights, biases, np.array(seconds))


def draw(
    path: Path, pixels: NDArray[np.float32], digits: NDArray[np.uint8], logits: NDArray[np.float32]
) -> Path:
    """Write two PNGs: some digits over their predicted probabilities, and the reliability of all.

    Returns the path of the second, beside the first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_columns = 8
    stats = cross_entropy_stats(logits, digits)
    # The first digits, and those with the largest losses.
    half = n_columns // 2
    shown = np.concatenate([np.arange(half), half + np.argsort(-stats.loss[half:])[:half]])
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{half} digits as they come, and the {half} with the largest losses of {len(digits)} held out, of "
        f"which {stats.means.correct:.1%} are predicted right"
    )
    grid: Any = figure.add_gridspec(2, n_columns, height_ratios=[1, 2.5])
    for column, number in enumerate(shown):
        image_axes: Any = figure.add_subplot(grid[0, column])
        image_axes.imshow(pixels[number].reshape(8, 8), cmap="gray_r")
        image_axes.set(xticks=[], yticks=[], title=f"a {digits[number]}")
    plotting.probabilities(logits[shown], digits[shown], ax=figure.add_subplot(grid[1, :]))
    figure.savefig(path, dpi=80)

    reliability = path.with_name(f"{path.stem}-reliability{path.suffix}")
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    plotting.reliability_diagram(logits, digits, ax=figure.add_subplot())
    figure.savefig(reliability, dpi=80)
    return reliability


def run(png: Path | None, seed: int, in_torch: bool = False) -> None:
    """Train, print loss and accuracy on held-out digits, and draw some of them."""
    pixels, digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(pixels))
    held_out, rest = order[:N_HELD_OUT], order[N_HELD_OUT:]
    print(f"Training a softmax classifier on {len(rest)} of {len(pixels)} handwritten digits ...")
    fit = train_in_torch if in_torch else train
    with Progress(N_EPOCHS, "epochs", sys.stderr) as progress:
        training = fit(pixels[rest], digits[rest], progress, seed)
    logits = pixels[held_out] @ training.weights + training.biases
    means = cross_entropy_stats(logits, digits[held_out]).means
    print(f"Held-out loss {means.loss:.4f}, accuracy {means.correct:.1%} on {N_HELD_OUT} digits.")
    what = "the loss and torch its backward pass" if in_torch else "loss and gradient"
    print(
        f"cyce computed {what} of up to {BATCH_SIZE} x 10 logits in each of {len(training.seconds)} steps, "
        f"in {1e6 * np.median(training.seconds):.1f} microseconds (median)."
    )
    if png is None:
        return
    try:
        reliability = draw(png, pixels[held_out], digits[held_out], logits)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("No picture: matplotlib is not installed (python -m pip install matplotlib).")
    else:
        print(f"Some digits and their predicted probabilities: {png}")
        print(f"How far these probabilities can be trusted: {reliability}")
