"""
Evaluating files of logits
==========================

Train on the demo's digits, save the logits of those held out, and evaluate the files.

Usage::

    python examples/evaluate_files.py [FOLDER]

The same from the shell: ``python -m cyce evaluate FOLDER/logits.npy FOLDER/target.npy --html page.html``.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import cyce
from cyce import _demo


def main(folder: Path) -> None:
    """Write logits and targets to a folder, and evaluate them."""
    pixels, digits = _demo.load_digits()
    n_held_out = 450
    with _demo.Progress(_demo.N_EPOCHS, "epochs", sys.stderr) as progress:
        training = _demo.train(pixels[n_held_out:], digits[n_held_out:], progress, seed=0)
    logits = pixels[:n_held_out] @ training.weights + training.biases
    np.save(folder / "logits.npy", logits)
    np.save(folder / "rounded.npy", logits.astype(np.float16))
    np.save(folder / "target.npy", digits[:n_held_out])

    # Files may be larger than memory: they are read in pieces.
    result = cyce.evaluate(folder / "logits.npy", folder / "target.npy")
    print(result, end="\n\n")

    calibrated = cyce.evaluate(folder / "logits.npy", folder / "target.npy", temperature="fit")
    print(f"With temperature {calibrated.temperature:.3f}, the loss is {calibrated.loss:.4f}, and")
    print(
        f"the calibration error {calibrated.calibration_error:.4f} instead of {result.calibration_error:.4f}."
    )

    # What half precision costs.
    divergence = cyce.divergence(folder / "rounded.npy", folder / "logits.npy", folder / "target.npy")
    print(f"Rounded to float16, the probabilities diverge by {divergence.kl:.1e} nats.")

    # In two workers; each sees a half.
    first, second = (cyce.Evaluator().update(logits[half::2], digits[half:n_held_out:2]) for half in (0, 1))
    print(f"Merged from two workers: {first.merge(second).compute().loss:.6f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
