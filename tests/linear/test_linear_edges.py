"""What linear_cross_entropy leaves out: ignored rows, weights of 0, empty arrays."""

import numpy as np
import pytest

import cyce.functional as F
from linear_cases import LINEAR_AND_GRADIENTS, assert_agree, chunks_of, composed, make


class TestWhatIsLeftOut:
    def test_ignored_rows_are_not_looked_at(self, level, dtype, rng):
        hidden, weights, bias, target = make(rng, 60, 8, (150,), dtype)
        left_out = rng.random(60) < 0.5
        target[left_out] = -1
        kept = ~left_out
        hidden[left_out] = rng.choice([np.nan, np.inf, -np.inf], (left_out.sum(), 8))
        expected_loss, expected = LINEAR_AND_GRADIENTS(
            hidden[kept], weights, target[kept], linear_bias=bias, options=chunks_of(16)
        )
        loss, (of_hidden, *others) = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, ignore_index=-1, options=chunks_of(16)
        )
        assert loss == expected_loss
        np.testing.assert_array_equal(of_hidden[kept], expected[0])
        np.testing.assert_array_equal(of_hidden[left_out], 0)
        for gradient, other in zip(others, expected[1:], strict=True):
            np.testing.assert_array_equal(gradient, other)
        losses = F.linear_cross_entropy(hidden, weights, target, ignore_index=-1, reduction="none")
        np.testing.assert_array_equal(losses[left_out], 0)
        assert np.isfinite(losses).all()

    def test_rows_of_which_a_position_counts(self, rng):
        hidden, weights, _, target = make(rng, 9, 4, (3, 2))
        target[:, 0] = -100
        target[4] = -100
        expected = composed(hidden, weights, target)
        assert_agree(LINEAR_AND_GRADIENTS(hidden, weights, target), expected, np.float64)

    @pytest.mark.parametrize("kind", ["indices", "probabilities"])
    def test_rows_of_weight_0(self, rng, kind):
        hidden, weights, bias, target = make(rng, 9, 4, (3,), kind=kind)
        sample_weight = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1.0])
        hidden[sample_weight == 0] = np.nan
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, sample_weight=sample_weight
        )
        kept = sample_weight == 1
        expected_loss, expected = LINEAR_AND_GRADIENTS(hidden[kept], weights, target[kept], linear_bias=bias)
        assert loss == expected_loss
        np.testing.assert_array_equal(gradients[0][kept], expected[0])
        np.testing.assert_array_equal(gradients[0][~kept], 0)
        np.testing.assert_array_equal(gradients[1], expected[1])

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, np.nan),
            ({"empty": "zero"}, 0),
            ({"reduction": "sum"}, 0),
            ({"reduction": "none"}, np.zeros(4)),
            ({"normalizer": 3.0}, 0),
        ],
    )
    def test_all_ignored(self, rng, options, expected):
        hidden, weights, bias, _ = make(rng, 4, 3, (5,))
        buffers = tuple(np.full_like(array, 77) for array in (hidden, weights, bias))
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, [-100] * 4, linear_bias=bias, **options, out=buffers
        )
        np.testing.assert_array_equal(loss, expected)
        assert gradients is buffers
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)

    def test_weights_of_0_are_nothing_to_divide_by(self, rng):
        hidden, weights, _, target = make(rng, 4, 3, (5,))
        expected = F.cross_entropy(hidden @ weights.T, target, np.zeros(5))
        np.testing.assert_array_equal(
            F.linear_cross_entropy(hidden, weights, target, weight=np.zeros(5)), expected
        )
        assert np.isnan(expected)
        loss, gradients = LINEAR_AND_GRADIENTS(hidden, weights, target, weight=np.zeros(5), empty="zero")
        assert loss == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("empty", ["nan", "zero"])
    def test_targets_of_weight_0_with_smoothing(self, rng, empty):
        hidden, weights, _, _ = make(rng, 4, 3, (5,))
        options = {"weight": [0.0, 1, 1, 1, 1], "label_smoothing": 0.1, "empty": empty}
        expected_loss, (of_hidden, of_weights) = composed(hidden, weights, np.zeros(4, int), **options)
        loss, gradients = LINEAR_AND_GRADIENTS(hidden, weights, [0] * 4, **options)
        np.testing.assert_array_equal(loss, expected_loss)
        np.testing.assert_array_equal(gradients[0], of_hidden)
        np.testing.assert_array_equal(gradients[1], of_weights)

    @pytest.mark.parametrize("shape", [(0, 3, (5,)), (4, 0, (5,)), (4, 3, (5, 0)), (0, 0, (2,))], ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_no_rows_features_or_positions(self, rng, shape, reduction):
        n, in_features, outputs = shape
        hidden, weights = np.ones((n, in_features)), np.ones((*outputs, in_features))
        bias = rng.standard_normal(outputs)
        target = np.zeros((n, *outputs[1:]), int)
        expected = composed(hidden, weights, target, bias, reduction=reduction)
        result = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, reduction=reduction)
        assert_agree(result, expected, np.float64)

    def test_no_classes(self):
        hidden, weights, probabilities = np.ones((2, 3)), np.ones((0, 3)), np.ones((2, 0))
        expected = F.cross_entropy(np.ones((2, 0)), probabilities)
        np.testing.assert_array_equal(F.linear_cross_entropy(hidden, weights, probabilities), expected)
        _, (of_hidden, _) = LINEAR_AND_GRADIENTS(
            hidden, weights, probabilities, reduction="sum", sample_weight=[1.0, 0.0]
        )
        np.testing.assert_array_equal(of_hidden, np.zeros((2, 3)))
        with pytest.raises(IndexError, match=r"Target 0 is out of bounds.*linear_weight has no classes"):
            F.linear_cross_entropy(hidden, weights, [0, 0])
