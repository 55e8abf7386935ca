"""Losses of a linear layer whose weights are split along the classes."""

import numpy as np
import pytest

import cyce
import cyce.functional as F
import linear_cases
from cyce import sharded
from sharded_cases import in_order, random_cuts, shards_of

with_gradients = cyce.value_and_grad(F.linear_cross_entropy)

TOLERANCE = {
    "float16": {"rtol": 5e-3, "atol": 5e-3},
    "float32": {"rtol": 2e-5, "atol": 2e-5},
    "float64": {"rtol": 1e-12, "atol": 1e-13},
}


def in_shards(hidden, weights, target, cuts, bias=None, options=None, of_gradient=None, **named):
    """Return losses, and the gradients of hidden states, weights and bias."""
    classes = shards_of(weights, cuts, 0)
    biases = [None if bias is None else bias[first : first + len(part)] for first, part in classes]
    merged = in_order(
        [
            sharded.linear_partial(hidden, part, target, first, linear_bias=of_part, options=options, **named)
            for (first, part), of_part in zip(classes, biases, strict=True)
        ]
    )
    gradients = [
        sharded.linear_gradient(
            hidden,
            part,
            target,
            merged,
            first,
            linear_bias=of_part,
            options=options,
            weight=named.get("weight"),
            **(of_gradient or {}),
        )
        for (first, part), of_part in zip(classes, biases, strict=True)
    ]
    of_hidden, *others = zip(*gradients, strict=True)
    total = sum(array.astype(float) for array in of_hidden).astype(hidden.dtype)
    losses = sharded.finish(merged, sample_weight=(of_gradient or {}).get("sample_weight"))
    return losses, (total, *map(np.concatenate, others))


@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"softcap": 3.0, "temperature": 0.7}],
    ids=["plain", "smoothing and z_loss", "softcap and temperature"],
)
@pytest.mark.parametrize("storage", [np.float16, np.float32, np.float64])
def test_the_unsplit_loss(rng, storage, options, bias, chunk):
    hidden, weights, of_bias, target = linear_cases.make(rng, 40, 12, (31,), storage)
    target[rng.random(40) < 0.3] = -100
    named = {"weight": rng.random(31), **options}
    of_gradient = {"grad_output": rng.random(40), "sample_weight": rng.integers(0, 3, 40)}
    expected = with_gradients(
        hidden,
        weights,
        target,
        linear_bias=of_bias if bias else None,
        reduction="none",
        **named,
        **of_gradient,
    )
    losses, gradients = in_shards(
        hidden,
        weights,
        target,
        random_cuts(rng, 31, 3),
        of_bias if bias else None,
        linear_cases.chunks_of(chunk),
        of_gradient,
        **named,
    )
    tolerance = TOLERANCE[np.dtype(storage).name]
    np.testing.assert_allclose(losses, expected[0], **tolerance)
    for gradient, other in zip(gradients, expected[1], strict=True):
        assert gradient.dtype == other.dtype
        np.testing.assert_allclose(gradient.astype(float), other.astype(float), **tolerance)


def test_class_probabilities(rng):
    hidden, weights, bias, target = linear_cases.make(rng, 9, 5, (8,), kind="probabilities")
    expected = with_gradients(hidden, weights, target, linear_bias=bias, reduction="sum")
    parts = [
        sharded.linear_partial(hidden, weights[a:b], target[:, a:b], a, linear_bias=bias[a:b])
        for a, b in ((0, 3), (3, 8))
    ]
    merged = in_order(parts)
    assert sharded.finish(merged).sum() == pytest.approx(expected[0])
    of_hidden, of_weights, of_bias = sharded.linear_gradient(
        hidden, weights[3:], target[:, 3:], merged, 3, linear_bias=bias[3:]
    )
    np.testing.assert_allclose(of_weights, expected[1][1][3:])
    np.testing.assert_allclose(of_bias, expected[1][2][3:])
    assert of_hidden.shape == hidden.shape


def test_one_row(rng):
    hidden, weights, _, _ = linear_cases.make(rng, 1, 5, (8,))
    state = sharded.linear_partial(hidden[0], weights, 3)
    expected = with_gradients(hidden[0], weights, 3)
    assert sharded.finish(state) == pytest.approx(expected[0])
    for gradient, other in zip(
        sharded.linear_gradient(hidden[0], weights, 3, state), expected[1], strict=True
    ):
        np.testing.assert_allclose(gradient, other, atol=1e-14)


def test_the_logits_are_never_whole(rng, monkeypatch):
    hidden, weights, _, target = linear_cases.make(rng, 64, 4, (500,))
    largest = 0
    empty = np.empty

    def counted(shape, *arguments, **named):
        nonlocal largest
        largest = max(largest, int(np.prod(shape)))
        return empty(shape, *arguments, **named)

    monkeypatch.setattr(np, "empty", counted)
    sharded.linear_partial(hidden, weights, target, options=linear_cases.chunks_of(8))
    assert largest == 8 * 500


def test_out(rng):
    hidden, weights, _, target = linear_cases.make(rng, 6, 4, (5,))
    state = sharded.linear_partial(hidden, weights, target)
    out = np.empty_like(hidden), np.empty_like(weights)
    result = sharded.linear_gradient(hidden, weights, target, state, out=out)
    assert all(array is other for array, other in zip(result, out, strict=True))
    for array, other in zip(out, sharded.linear_gradient(hidden, weights, target, state), strict=True):
        np.testing.assert_array_equal(array, other)


class TestErrors:
    @pytest.fixture
    def problem(self, rng):
        return linear_cases.make(rng, 6, 4, (5,))

    def test_dimensions(self, rng):
        hidden, weights, _, target = linear_cases.make(rng, 6, 4, (5, 2))
        with pytest.raises(ValueError, match=r"^linear_weight: must have shape \(C, in_features\) in shards"):
            sharded.linear_partial(hidden, weights, target)

    def test_targets(self, problem):
        hidden, weights, _, target = problem
        with pytest.raises(IndexError, match=r"^Target 5 is out of bounds\. target\[0\] must be"):
            sharded.linear_partial(hidden, weights, np.where(target >= 0, 5, 0), n_classes=5)
        state = sharded.linear_partial(hidden, weights, np.where(target >= 0, 5, 0))
        with pytest.raises(IndexError, match=r"^Target is out of bounds\. target\[0\] is in no shard"):
            sharded.linear_gradient(hidden, weights, target, state)

    @pytest.mark.parametrize("forgets", ["partial", "gradient"])
    def test_a_bias_that_is_forgotten(self, problem, forgets):
        hidden, weights, bias, target = problem
        of_partial, of_gradient = (None, bias) if forgets == "partial" else (bias, None)
        state = sharded.linear_partial(hidden, weights, target, linear_bias=of_partial)
        with pytest.raises(
            ValueError, match=r"^linear_bias: (must be|was not) given in the partials, and must"
        ):
            sharded.linear_gradient(hidden, weights, target, state, linear_bias=of_gradient)

    def test_a_bias_in_one_shard_only(self, problem):
        hidden, weights, bias, target = problem
        parts = [
            sharded.linear_partial(hidden, weights[:2], target, linear_bias=bias[:2]),
            sharded.linear_partial(hidden, weights[2:], target, 2),
        ]
        with pytest.raises(ValueError, match=r"^a and b: were computed with different options: linear_bias"):
            sharded.merge(*parts)

    def test_another_shard(self, problem):
        hidden, weights, _, target = problem
        parts = [sharded.linear_partial(hidden, weights[a : a + 2], target % 4, a) for a in (0, 2)]
        state = sharded.merge(*parts)
        with pytest.raises(ValueError, match=r"^logits, target or first_class: the logit of a target is"):
            sharded.linear_gradient(hidden, weights[2:4], target % 4, state)

    def test_other_options(self, problem):
        hidden, weights, _, target = problem
        state = sharded.linear_partial(hidden, weights, target, softcap=2.0)
        with pytest.raises(ValueError, match=r"^softcap: must be that of the partials, 2\.0, got 3\.0"):
            sharded.linear_gradient(hidden, weights, target, state, softcap=3.0)
