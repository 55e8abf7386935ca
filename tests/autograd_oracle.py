"""Values and gradients of a formula by torch's autograd in float64, and layouts of logits."""

import numpy as np
import pytest
import torch

# Shapes of logits, and the axis of their classes.
LAYOUTS = [
    pytest.param((7, 10), 1, id="few classes"),
    pytest.param((6, 300), 1, id="rows"),
    pytest.param((2, 9001), 1, id="long rows"),
    pytest.param((2, 21, 5, 3), 1, id="images"),
    pytest.param((2, 3, 130), -1, id="sequences"),
    pytest.param((2, 300, 3), 1, id="many classes of images", marks=pytest.mark.integration),
    pytest.param((4500, 7), 0, id="classes first", marks=pytest.mark.integration),
    pytest.param((40,), 0, id="one position", marks=pytest.mark.integration),
]
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
