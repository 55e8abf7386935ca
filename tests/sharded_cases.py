"""Logits that are cut along the classes, reduced apart, merged in a tree and finished."""

import numpy as np

from cyce import sharded

OPTIONS = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.01},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 5.0},
    "all": {"label_smoothing": 0.2, "z_loss": 0.1, "temperature": 1.5, "softcap": 9.0},
}


def shards_of(array, cuts, axis):
    """Return the shards of an array and the numbers of their first classes."""
    bounds = zip([0, *cuts], [*cuts, array.shape[axis]], strict=True)
    before = (slice(None),) * axis
    return [(first, array[(*before, slice(first, end))]) for first, end in bounds]


def in_order(partials):
    """Merge one after the other."""
    merged = partials[0]
    for other in partials[1:]:
        merged = sharded.merge(merged, other)
    return merged


def in_pairs(partials):
    """Merge neighbours, then neighbours of these."""
    while len(partials) > 1:
        pairs = zip(partials[::2], partials[1::2], strict=False)
        partials = [sharded.merge(*pair) for pair in pairs] + partials[len(partials) // 2 * 2 :]
    return partials[0]


def backwards(partials):
    """Merge the last ones first."""
    return in_order(partials[::-1])


TREES = (in_order, in_pairs, backwards)


def in_shards(logits, target, cuts, axis=1, tree=in_order, sample_weight=None, grad_output=None, **options):
    """Return losses, the gradient of the logits, and the merged partial."""
    classes = shards_of(logits, cuts, axis)
    weight = options.pop("weight", None)
    if np.shape(target) == logits.shape:
        targets = [part for _, part in shards_of(target, cuts, axis)]
    else:
        targets = [target] * len(classes)
    merged = tree(
        [
            sharded.partial(part, of_part, first, axis=axis, weight=weight, **options)
            for (first, part), of_part in zip(classes, targets, strict=True)
        ]
    )
    losses = sharded.finish(merged, sample_weight=sample_weight)
    gradient = np.empty_like(logits)
    outs = shards_of(gradient, cuts, axis)
    for (first, part), of_part, (_, out) in zip(classes, targets, outs, strict=True):
        result = sharded.gradient(
            part,
            of_part,
            merged,
            first,
            axis=axis,
            weight=weight,
            sample_weight=sample_weight,
            grad_output=grad_output,
            out=out,
        )
        assert result is out
    return losses, gradient, merged


def random_cuts(rng, n_classes, most=5):
    """Return up to so many numbers of classes to cut before; shards may be empty."""
    return sorted(rng.integers(0, n_classes, rng.integers(1, most + 1), endpoint=True).tolist())
