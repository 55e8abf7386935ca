"""Inputs of linear_cross_entropy, and the composition that it stands for."""

import numpy as np

import cyce
import cyce.functional as F

LINEAR_AND_GRADIENTS = cyce.value_and_grad(F.linear_cross_entropy)


# Rounding of the products; of results around 1.
TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5}, "float64": {"rtol": 1e-12, "atol": 1e-13}}


def chunks_of(n):
    return cyce.LinearCrossEntropyOptions(batch_chunk_size=n)


def make(rng, n, in_features, outputs, dtype=np.float64, kind="indices"):
    """Return hidden states, weights, a bias and a target."""
    n_classes, *inner = outputs
    hidden = rng.standard_normal((n, in_features)).astype(dtype)
    weights = (rng.standard_normal((*outputs, in_features)) / in_features**0.5).astype(dtype)
    bias = rng.standard_normal(outputs).astype(dtype)
    if kind == "indices":
        target = rng.integers(n_classes, size=(n, *inner))
    else:
        target = np.moveaxis(rng.dirichlet(np.ones(n_classes), size=(n, *inner)), -1, 1).astype(dtype)
    return hidden, weights, bias, target


def composed(hidden, weights, target, bias=None, grad_output=None, **options):
    """Return what linear_cross_entropy stands for, with all logits in memory."""
    outputs = weights.shape[:-1]
    flat = weights.reshape(np.prod(outputs), weights.shape[-1])
    logits = hidden @ flat.T + (0 if bias is None else bias.ravel())
    logits = logits.reshape(*hidden.shape[:-1], *outputs)
    loss, slopes = cyce.value_and_grad(F.cross_entropy)(logits, target, grad_output=grad_output, **options)
    slopes = slopes.reshape(*hidden.shape[:-1], len(flat))
    gradients = [slopes @ flat, (np.atleast_2d(slopes).T @ np.atleast_2d(hidden)).reshape(weights.shape)]
    if bias is not None:
        gradients.append(np.atleast_2d(slopes).sum(axis=0).reshape(bias.shape))
    return loss, gradients


def assert_agree(result, expected, dtype):
    loss, gradients = result
    expected_loss, expected_gradients = expected
    tolerance = TOLERANCE[np.dtype(dtype).name]
    np.testing.assert_allclose(loss, expected_loss, **tolerance)
    assert loss.dtype == dtype
    assert isinstance(gradients, tuple)
    assert len(gradients) == len(expected_gradients)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == other.shape
        np.testing.assert_allclose(gradient, other, **tolerance)
