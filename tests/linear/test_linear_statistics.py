"""What else a linear layer's logits give without being in memory: the same as from the logits."""

import numpy as np
import pytest

import cyce
import cyce.functional as F

ROWS_AT_ONCE = cyce.LinearCrossEntropyOptions(batch_chunk_size=32)


@pytest.fixture
def layer(rng, dtype):
    """Return hidden states, weights and bias of a layer, and its logits."""
    hidden, weights, bias = (
        rng.standard_normal(shape).astype(dtype) for shape in ((70, 16), (300, 16), (300,))
    )
    return hidden, weights, bias, hidden @ weights.T + bias


def tolerance(dtype):
    """Return what products in another order may differ by."""
    return {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("k", [None, 3])
def test_chosen_log_probabilities_and_their_gradients(level, dtype, rng, layer, k):
    hidden, weights, bias, logits = layer
    index = rng.integers(300, size=70 if k is None else (70, k))
    upstream = rng.standard_normal(index.shape).astype(dtype), rng.standard_normal(70).astype(dtype)
    named = {"return_entropy": True, "grad_output": upstream, "temperature": 1.3}
    expected, slopes = cyce.value_and_grad(F.selective_log_softmax)(logits, index, **named)
    values, gradients = cyce.value_and_grad(F.linear_selective_log_softmax)(
        hidden, weights, index, linear_bias=bias, options=ROWS_AT_ONCE, **named
    )
    again = F.linear_selective_log_softmax(
        hidden, weights, index, linear_bias=bias, temperature=1.3, options=ROWS_AT_ONCE
    )
    for value, other, exact in zip(
        (*values, again), (*values, values[0]), (*expected, expected[0]), strict=True
    ):
        np.testing.assert_array_equal(value, other)
        np.testing.assert_allclose(value, exact, **tolerance(dtype))
    for gradient, exact in zip(
        gradients, (slopes @ weights, slopes.T @ hidden, slopes.sum(axis=0)), strict=True
    ):
        np.testing.assert_allclose(gradient, exact, **tolerance(dtype))


def test_statistics(level, dtype, rng, layer):
    hidden, weights, bias, logits = layer
    target = rng.integers(300, size=70)
    # A whole chunk is ignored, and its hidden states are anything.
    target[::5] = target[30:62] = -100
    hidden[30:62] = np.nan
    named = {"label_smoothing": 0.1, "softcap": 20.0, "z_loss": 1e-3}
    expected = F.cross_entropy_stats(logits, target, **named)
    stats = F.linear_cross_entropy_stats(
        hidden, weights, target, linear_bias=bias, options=ROWS_AT_ONCE, **named
    )
    for name in ("loss", "lse", "prediction", "correct", "probability", "entropy", "rank"):
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), **tolerance(dtype))
    np.testing.assert_allclose(stats.means, expected.means, rtol=1e-4)


def test_sparse_targets_and_masks(level, dtype, rng, layer):
    hidden, weights, bias, logits = layer
    indices = rng.integers(300, size=(70, 3))
    mask = rng.random((70, 300)) < 0.7
    np.put_along_axis(mask, indices, True, 1)
    indices[5] = -1
    target = cyce.SparseTarget(indices, rng.random((70, 3)))
    named = {"class_mask": mask, "label_smoothing": 0.1}
    expected, slopes = cyce.value_and_grad(F.cross_entropy)(logits, target, **named)
    loss, gradients = cyce.value_and_grad(F.linear_cross_entropy)(
        hidden, weights, target, linear_bias=bias, options=ROWS_AT_ONCE, **named
    )
    np.testing.assert_allclose(loss, expected, **tolerance(dtype))
    for gradient, exact in zip(
        gradients, (slopes @ weights, slopes.T @ hidden, slopes.sum(axis=0)), strict=True
    ):
        np.testing.assert_allclose(gradient, exact, **tolerance(dtype))


def test_several_positions_of_a_row(rng):
    hidden, weights = rng.standard_normal((6, 4)), rng.standard_normal((5, 2, 4))
    logits = np.einsum("nh,cdh->ncd", hidden, weights)
    index = rng.integers(5, size=(6, 3, 2))
    np.testing.assert_allclose(
        F.linear_selective_log_softmax(hidden, weights, index), F.selective_log_softmax(logits, index)
    )
    target = rng.integers(5, size=(6, 2))
    target[1] = -100
    stats = F.linear_cross_entropy_stats(hidden, weights, target)
    np.testing.assert_allclose(stats.entropy, F.cross_entropy_stats(logits, target).entropy)
    one = F.linear_selective_log_softmax(hidden[0], weights[:, 0], np.array(2))
    np.testing.assert_allclose(one, F.selective_log_softmax(logits[0, :, 0], np.array(2)))


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0, 5], IndexError, r"index\[1\]: 5 is out of bounds"),
        ([0], ValueError, r"index: .* must have shape \[2\] or \[2, K\], got \[1\]"),
    ],
)
def test_what_an_index_must_be(index, error, message):
    with pytest.raises(error, match=message):
        F.linear_selective_log_softmax(np.zeros((2, 3)), np.zeros((5, 3)), index)


def test_statistics_need_class_indices():
    with pytest.raises(TypeError, match="target: must be class indices"):
        F.linear_cross_entropy_stats(np.zeros((2, 3)), np.zeros((5, 3)), np.zeros((2, 5)))
