"""
Distillation
============

Distil the demo's classifier of digits into a smaller one, which sees a quarter of the pixels.

Usage::

    python examples/distill_digits.py

There are labels for 60 digits only. A student that learns from these alone is compared with students that
learn a teacher's probabilities, for all digits: of all classes, or of the two highest of each (a sparse
target).
"""

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import cyce
import cyce.functional as F
from cyce import _demo

Array = NDArray[np.float32]

N_HELD_OUT = 450
N_LABELS = 60
TEMPERATURE = 4.0


def blurred(pixels: Array) -> Array:
    """Return the means of squares of two by two pixels, and a column of ones for the biases."""
    squares = pixels.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return np.column_stack([squares, np.ones(len(squares), np.float32)])


def fit(inputs: Array, loss_and_gradient: Callable[[Array], tuple[float, Array]], rate: float) -> Array:
    """Return the weights of a layer, by gradient descent with momentum; rate: per step."""
    weights = np.zeros((inputs.shape[1], 10), np.float32)
    velocity = np.zeros_like(weights)
    for _ in range(1500):
        _, gradient = loss_and_gradient(inputs @ weights)
        velocity = 0.9 * velocity - np.float32(rate) * (inputs.T @ gradient)
        weights += velocity
    return weights


def main() -> None:
    """Train a teacher and three students, and print their accuracies on digits that none of them has seen."""
    pixels, digits = _demo.load_digits()
    with _demo.Progress(_demo.N_EPOCHS, "epochs", sys.stderr) as progress:
        teacher = _demo.train(pixels[N_HELD_OUT:], digits[N_HELD_OUT:], progress, seed=0)
    teacher_logits = pixels @ teacher.weights + teacher.biases
    small = blurred(pixels)
    learn, labelled = slice(N_HELD_OUT, None), slice(N_HELD_OUT, N_HELD_OUT + N_LABELS)

    def accuracy(logits: Array) -> float:
        return float(np.mean(logits[:N_HELD_OUT].argmax(axis=1) == digits[:N_HELD_OUT]))

    def of_labels(logits: Array) -> tuple[float, Array]:
        loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, digits[labelled])
        return float(loss), gradient

    def of_teacher(logits: Array) -> tuple[float, Array]:
        loss, gradient = cyce.value_and_grad(F.distillation_loss)(
            logits, teacher_logits[learn], temperature=TEMPERATURE, scale_by_temperature=True
        )
        return float(loss), gradient

    # What to keep of a teacher with a large vocabulary.
    log_p, classes = F.topk_log_softmax(teacher_logits[learn], 2)
    highest = cyce.SparseTarget(classes, np.exp(log_p))

    def of_highest(logits: Array) -> tuple[float, Array]:
        loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, highest)
        return float(loss), gradient

    students = {
        f"student, {N_LABELS} labels": fit(small[labelled], of_labels, 1.0),
        "student, the teacher's probabilities": fit(small[learn], of_teacher, 0.3),
        "student, the teacher's two highest classes": fit(small[learn], of_highest, 1.0),
    }
    print(f"{'teacher, all labels':43} {accuracy(teacher_logits):.1%}")
    for name, weights in students.items():
        print(f"{name:43} {accuracy(small @ weights):.1%}")


if __name__ == "__main__":
    main()
