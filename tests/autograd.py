"""Values and gradients of a formula by torch's autograd in float64, and layouts of logits."""

import numpy as np
import torch

# Shapes of logits, and the axis of their classes.
LAYOUTS = {
    "few classes": ((7, 10), 1),
    "rows": ((6, 300), 1),
    "long rows": ((2, 9001), 1),
    "images": ((2, 21, 5, 3), 1),
    "many classes of images": ((2, 300, 3), 1),
    "sequences": ((2, 3, 130), -1),
    "classes first": ((4500, 7), 0),
    "one position": ((40,), 0),
}
TOLERANCES = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-12}


def double(array):
    """Return a tensor of float64."""
    return torch.tensor(np.asarray(array, np.float64))


def values_and_gradient(formula, logits, upstream):
    """Return a formula's values at some logits, and the gradient of their sum, weighted by `upstream`."""
    variable = double(logits).requires_grad_()
    values = formula(variable)
    parts, weights = (values, upstream) if isinstance(values, tuple) else ((values,), (upstream,))
    sum((part * double(weight)).sum() for part, weight in zip(parts, weights, strict=True)).backward()
    arrays = tuple(part.detach().numpy() for part in parts)
    return arrays if isinstance(values, tuple) else arrays[0], variable.grad.numpy()


def assert_near(actual, expected, factor=1.0):
    """Check results relative to the largest of the expected numbers, by what the dtype allows."""
    scale = np.abs(expected).max(initial=1e-30)
    tolerance = factor * TOLERANCES[actual.dtype] * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def positions_of(shape, axis):
    """Return the shape of the positions."""
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]
