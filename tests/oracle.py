"""The cross-entropy and its gradient, slow and obvious, in long double."""

import numpy as np

LONG = np.longdouble


def per_position(logits, target, weight=None, ignore_index=-100, label_smoothing=0.0):
    """Losses, shape positions, and their gradients, shape of logits; finite logits only.

    Also returns what `mean` divides by.
    """
    logits = np.asarray(logits)
    axis = 0 if logits.ndim == 1 else 1
    x = np.moveaxis(logits, axis, -1).astype(LONG)
    n_classes = x.shape[-1]
    smoothing = LONG(label_smoothing)
    w = np.ones(n_classes, LONG) if weight is None else np.asarray(weight).astype(LONG)
    target = np.asarray(target)

    at_max = x.argmax(axis=-1)[..., None]
    row_max = np.take_along_axis(x, at_max, -1)
    exponentials = np.exp(x - row_max)
    # Left out of the sum, not subtracted from it: the reference must not round 1 + 1e-30 to 1.
    others = exponentials.copy()
    np.put_along_axis(others, at_max, 0, -1)
    rest = others.sum(axis=-1, keepdims=True)
    negative_log_softmax = (row_max - x) + np.log1p(rest)
    softmax = exponentials / (1 + rest)

    if target.shape == logits.shape:
        mass = w * (np.moveaxis(target, axis, -1).astype(LONG) * (1 - smoothing) + smoothing / n_classes)
        counts = np.ones(x.shape[:-1], bool)
        denominator = LONG(counts.size)
    else:
        target = target.reshape(x.shape[:-1]).astype(object)
        counts = np.array(target != ignore_index, dtype=bool).reshape(target.shape)
        classes = np.where(counts, target, 0).astype(np.int64)[..., None]
        mass = np.broadcast_to(w * smoothing / n_classes, x.shape).copy()
        at_target = np.take_along_axis(mass, classes, -1) + (1 - smoothing) * w[classes]
        np.put_along_axis(mass, classes, at_target, -1)
        denominator = (w[classes[..., 0]] * counts).sum()

    losses = (mass * negative_log_softmax).sum(axis=-1)
    gradients = mass.sum(axis=-1, keepdims=True) * softmax - mass
    # total * p - mass cancels where p is nearly 1: there, 1 - p is the rest over all.
    total = mass.sum(axis=-1, keepdims=True)
    mass_at_max = np.take_along_axis(mass, at_max, -1)
    np.put_along_axis(gradients, at_max, (total - mass_at_max) - total * rest / (1 + rest), -1)
    if target.shape != logits.shape:
        # With a hard target, what the other classes hold is known without a subtraction.
        spread = (w * smoothing / n_classes).sum() - np.take_along_axis(
            w * smoothing / n_classes, classes[..., 0], 0
        )
        p_others = np.where(
            np.take_along_axis(x, classes, -1) == row_max,
            rest / (1 + rest),
            1 - np.take_along_axis(softmax, classes, -1),
        )
        np.put_along_axis(gradients, classes, spread[..., None] - total * p_others, -1)
    losses = np.where(counts, losses, 0)
    gradients = np.where(counts[..., None], gradients, 0)
    return losses, np.moveaxis(gradients, -1, axis), denominator


def cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, grad_output=1.0
):
    """Loss and gradient under a reduction and an upstream gradient."""
    losses, gradients, denominator = per_position(logits, target, weight, ignore_index, label_smoothing)
    axis = 0 if np.ndim(logits) == 1 else 1
    if reduction == "none":
        return losses, gradients * np.expand_dims(
            np.broadcast_to(np.asarray(grad_output, LONG), losses.shape), axis
        )
    scale = LONG(grad_output)
    if reduction == "sum":
        return losses.sum(), gradients * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        return losses.sum() / denominator, np.where(gradients == 0, 0, gradients * scale / denominator)
