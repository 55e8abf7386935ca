"""The cross-entropy and its gradient, slow and obvious, in long double."""

import functools
import inspect
import threading
from typing import NamedTuple

import numpy as np

LONG = np.longdouble


class Exact(NamedTuple):
    """Losses of positions and what belongs to them; finite logits only."""

    losses: np.ndarray
    """Shape positions."""
    gradients: np.ndarray
    """Of each position's own loss; shape of the logits."""
    scales: np.ndarray
    """The largest of the terms that a gradient is the sum of; shape of the logits."""
    masses: np.ndarray
    """Sum of what each target puts on the classes; shape positions. Gradients are mass * softmax - target."""
    denominator: np.longdouble
    """What the mean divides by."""


def class_axis(array):
    """Return torch's class axis."""
    return 0 if np.ndim(array) == 1 else 1


def once_per_input(function):
    """Decorate a function that returns an Exact: the last results are kept, by the bytes of the arguments.

    Reductions, and the levels of a test, which run one after the other, share them.
    """
    signature = inspect.signature(function)
    kept = {}
    lock = threading.Lock()

    @functools.wraps(function)
    def look_up(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        arrays = [np.asarray(value) for value in bound.arguments.values()]
        key = tuple((array.shape, array.dtype.str, array.tobytes()) for array in arrays)
        with lock:
            if key not in kept:
                exact = function(*arguments, **named)
                for array in exact[:-1]:
                    array.flags.writeable = False
                while len(kept) >= MOST_KEPT:
                    del kept[next(iter(kept))]
                kept[key] = exact
            return kept[key]

    return look_up


MOST_KEPT = 12
"""More than any test asks for at one level. Large results take 30 MB each."""


@once_per_input
def per_position(logits, target, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    """Return the exact results of each position."""
    axis = class_axis(logits)
    x = np.moveaxis(np.asarray(logits), axis, -1).astype(LONG)
    n_classes = x.shape[-1]
    smoothing = LONG(label_smoothing)
    w = np.ones(n_classes, LONG) if weight is None else np.asarray(weight).astype(LONG)
    target = np.asarray(target)

    at_max = x.argmax(axis=-1)[..., None]
    row_max = np.take_along_axis(x, at_max, -1)
    exponentials = np.exp(x - row_max)
    # The maximum is left out of the sum, not subtracted from it: 1 + 1e-30 would round to 1.
    others = exponentials.copy()
    np.put_along_axis(others, at_max, 0, -1)
    rest = others.sum(axis=-1, keepdims=True)
    negative_log_softmax = (row_max - x) + np.log1p(rest)
    softmax = exponentials / (1 + rest)
    # 1 - softmax, without the cancellation where that is nearly 0
    not_softmax = np.where(x == row_max, rest / (1 + rest), 1 - softmax)

    if target.shape == np.shape(logits):
        q = np.moveaxis(target, axis, -1).astype(LONG)
        mass = w * (q * (1 - smoothing) + smoothing / n_classes)
        counts = np.ones(x.shape[:-1], bool)
        denominator = LONG(counts.size)
    else:
        target = target.reshape(x.shape[:-1])
        counts = target != ignore_index
        classes = np.where(counts, target, 0).astype(np.int64)
        is_target = np.arange(n_classes) == classes[..., None]
        mass = w * smoothing / n_classes + (1 - smoothing) * w * is_target
        denominator = (w[classes] * counts).sum()

    lse = row_max + np.log1p(rest)
    # The slope of z_loss * lse**2 is another mass on the softmax.
    mass_of_z = 2 * LONG(z_loss) * lse
    total = mass.sum(axis=-1, keepdims=True)
    # total * softmax - mass; at the maximum, where the softmax may be nearly 1, in another way.
    mass_of_others = mass.copy()
    np.put_along_axis(mass_of_others, at_max, 0, -1)
    is_max = np.arange(n_classes) == at_max
    raising = np.where(is_max, mass_of_others.sum(axis=-1, keepdims=True), total) * softmax
    lowering = np.where(is_max, mass * not_softmax, mass)
    terms = np.stack([raising, -lowering, np.broadcast_to(mass_of_z * softmax, x.shape)])
    losses = (mass * negative_log_softmax).sum(axis=-1) + LONG(z_loss) * lse[..., 0] ** 2
    return Exact(
        np.where(counts, losses, 0),
        np.moveaxis(np.where(counts[..., None], terms.sum(axis=0), 0), -1, axis),
        np.moveaxis(abs(terms).max(axis=0), -1, axis),
        (total + mass_of_z)[..., 0],
        denominator,
    )


def cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, grad_output=1.0
):
    """Return loss and gradient under a reduction and an upstream gradient."""
    exact = per_position(logits, target, weight, ignore_index, label_smoothing)
    upstream = np.asarray(grad_output).astype(LONG)
    if reduction == "none":
        return exact.losses, exact.gradients * np.expand_dims(
            np.broadcast_to(upstream, exact.losses.shape), class_axis(logits)
        )
    if reduction == "sum":
        return exact.losses.sum(), exact.gradients * upstream
    with np.errstate(divide="ignore", invalid="ignore"):
        ignored = exact.gradients == 0
        return exact.losses.sum() / exact.denominator, np.where(
            ignored, 0, exact.gradients * upstream / exact.denominator
        )
