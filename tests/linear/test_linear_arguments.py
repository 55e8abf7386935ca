"""What linear_cross_entropy takes: arrays of any layout, out, errors."""

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.linear import chunks
from linear_cases import LINEAR_AND_GRADIENTS, assert_agree, chunks_of, make


class TestArrays:
    def test_any_strides_are_read(self, rng, dtype):
        hidden, weights, bias, target = make(rng, 30, 8, (40,), dtype)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias)
        for lay_out in (
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.repeat(a, 3, axis=0)[::3],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
            lambda a: np.pad(a, [(0, 3)] * a.ndim)[(slice(-3),) * a.ndim],
            lambda a: a.astype(a.dtype.newbyteorder()),
            lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
        ):
            result = LINEAR_AND_GRADIENTS(
                lay_out(hidden), lay_out(weights), target, linear_bias=lay_out(bias)
            )
            assert_agree(result, expected, dtype)
        result = LINEAR_AND_GRADIENTS(hidden.tolist(), weights.tolist(), target.tolist())
        assert result[0].dtype == np.float64

    def test_broadcast_arrays_are_read(self, rng):
        hidden = np.broadcast_to(rng.standard_normal(8), (30, 8))
        weights = np.broadcast_to(rng.standard_normal((40, 1)), (40, 8))
        target = rng.integers(40, size=30)
        expected = LINEAR_AND_GRADIENTS(hidden.copy(), weights.copy(), target)
        assert_agree(LINEAR_AND_GRADIENTS(hidden, weights, target), expected, np.float64)

    def test_another_thread_that_changes_the_target_is_too_late(self, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 40, 8, (40,))
        expected = F.linear_cross_entropy(hidden, weights, target, options=chunks_of(10))
        matmul = np.matmul

        class NumPy:
            @staticmethod
            def matmul(*arguments, **named):
                target[:] = 99
                return matmul(*arguments, **named)

            def __getattr__(self, name):
                return getattr(np, name)

        monkeypatch.setattr(chunks, "np", NumPy())
        assert F.linear_cross_entropy(hidden, weights, target, options=chunks_of(10)) == expected

    @pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint32, np.uint64, ">i4"])
    def test_integer_dtypes(self, rng, kind):
        hidden, weights, _, target = make(rng, 30, 8, (40,))
        expected = F.linear_cross_entropy(hidden, weights, target, ignore_index=3)
        assert F.linear_cross_entropy(hidden, weights, target.astype(kind), ignore_index=3) == expected

    def test_no_warnings_of_overflow(self, level):
        # filterwarnings = error
        hidden = np.array([[1e30, np.inf], [1.0, np.nan], [1e30, 1e30]], np.float32)
        weights = np.array([[1e30, 1e30], [-1.0, 1.0]], np.float32)
        loss, _ = LINEAR_AND_GRADIENTS(hidden, weights, [0, 1, 1])
        assert np.isnan(loss)
        weights = np.array([[1e30, 1e30], [1.0, 1.0]], np.float32)
        assert F.linear_cross_entropy(hidden[2:] * 1e-2, weights * 1e-20, [1]) == np.float32(2e38)
        assert (
            F.linear_cross_entropy(hidden[[2, 2]] * 1e-2, weights * 1e-20, [1, 1], reduction="sum") == np.inf
        )

    def test_a_gradient_of_the_bias_may_overflow(self):
        # The sums of 256 rows do not, but that of all does.
        n = 900
        with np.errstate(all="raise"):
            _, (_, _, of_bias) = LINEAR_AND_GRADIENTS(
                np.zeros((n, 1), np.float32),
                np.zeros((2, 1), np.float32),
                np.zeros(n, int),
                linear_bias=np.zeros(2, np.float32),
                reduction="sum",
                grad_output=np.float32(2e36),
            )
        np.testing.assert_array_equal(of_bias, [-np.inf, np.inf])

    def test_large_calls_do_not_warn_either(self, threads):
        threads(2)
        hidden, weights = np.full((2000, 64), 1e30, np.float32), np.full((600, 64), 1e30, np.float32)
        with np.errstate(all="raise"):
            assert np.isnan(F.linear_cross_entropy(hidden, weights, np.zeros(2000, int)))


class TestOut:
    @pytest.mark.parametrize("outputs", [(40,), (5, 4)], ids=str)
    @pytest.mark.parametrize(
        "lay_out",
        [
            np.array,
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
        ],
    )
    def test_gradients_are_written_there(self, rng, dtype, outputs, lay_out):
        hidden, weights, bias, target = make(rng, 30, 8, outputs, dtype)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, options=chunks_of(16))
        out = tuple(lay_out(np.full_like(array, 77)) for array in (hidden, weights, bias))
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, options=chunks_of(16), out=out
        )
        assert gradients is out
        assert_agree((loss, gradients), expected, dtype)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.zeros((2, 3)), TypeError, r"out: must be a tuple of 3 arrays, .* got ndarray"),
            (
                [np.zeros((2, 3))] * 2,
                TypeError,
                r"out: must be a tuple of 3 arrays, .* linear_bias; got 2 of them",
            ),
            (
                (np.zeros((2, 3)), np.zeros((3, 4)), np.zeros(4)),
                ValueError,
                r"out: must have linear_weight's shape \[4, 3\]",
            ),
            (
                (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(4, np.float32)),
                TypeError,
                "out: must have linear_bias's dtype float64",
            ),
        ],
    )
    def test_what_is_not_such_a_tuple(self, out, error, message):
        with pytest.raises(error, match=message):
            LINEAR_AND_GRADIENTS(np.ones((2, 3)), np.ones((4, 3)), [0, 1], linear_bias=np.ones(4), out=out)

    def test_overlaps(self, rng):
        hidden, weights, _, target = make(rng, 4, 3, (4,))
        of_hidden, of_weights = np.empty_like(hidden), np.empty_like(weights)
        for out, other in (
            ((hidden, of_weights), "input"),
            ((of_hidden, weights), "linear_weight"),
            ((weights, of_weights), "linear_weight"),
            ((of_hidden, of_hidden), r"out\[0\]"),
        ):
            before = hidden.copy(), weights.copy()
            with pytest.raises(ValueError, match=f"out: shares memory with {other}"):
                LINEAR_AND_GRADIENTS(hidden, weights, target, out=out)
            np.testing.assert_array_equal(hidden, before[0])
            np.testing.assert_array_equal(weights, before[1])


class TestErrors:
    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"input": np.ones((2, 3, 3))}, ValueError, "expected input with dimensionality 1 or 2, got 3"),
            (
                {"input": np.ones((2, 3, 3))},
                ValueError,
                r"input\.reshape\(-1, in_features\), target\.reshape",
            ),
            ({"input": 1.0}, ValueError, "expected input with dimensionality 1 or 2, got 0"),
            ({"input": np.ones((2, 3), int)}, TypeError, "input: hidden states must be floating point"),
            ({"input": [["a"]]}, TypeError, "input: hidden states must be"),
            (
                {"linear_weight": np.ones(3)},
                ValueError,
                "expected linear_weight with dimensionality at least 2",
            ),
            ({"linear_weight": 1.0}, ValueError, "expected linear_weight with dimensionality at least 2"),
            (
                {"linear_weight": np.ones((4, 3), np.float32)},
                TypeError,
                "linear_weight: must have the dtype of input, float64, got float32",
            ),
            (
                {"linear_weight": np.ones((4, 3), int)},
                TypeError,
                "linear_weight: parameters must be floating",
            ),
            (
                {"linear_weight": np.ones((4, 2))},
                ValueError,
                r"expected equal input and linear_weight last dimensions \(in_features\), got 3 and 2",
            ),
            ({"linear_bias": np.ones(3)}, ValueError, r"expected linear_bias shape \(4,\), got \(3,\)"),
            ({"linear_bias": 1.0}, ValueError, r"expected linear_bias shape \(4,\), got \(\)"),
            ({"linear_bias": np.ones(4, np.float32)}, TypeError, "linear_bias: must have the dtype of input"),
            (
                {"input": np.ones(3), "linear_weight": np.ones((4, 2, 3))},
                ValueError,
                r"K-dimensional loss defined by linear_weight shape \(4, 2, 3\) requires batched input",
            ),
            (
                {"target": [0, 4]},
                IndexError,
                r"Target 4 is out of bounds. target\[1\] must be a class index from 0 to 3",
            ),
            (
                {"target": [0]},
                ValueError,
                r"Expected input batch_size \(2\) .* For the logits of shape \[2, 4\]",
            ),
            ({"target": np.ones((2, 4), int)}, TypeError, "target has the shape of the logits"),
            (
                {"target": np.ones((2, 4)), "ignore_index": -100},
                ValueError,
                "ignore_index cannot be specified when target contains probabilities",
            ),
            ({"ignore_index": 1.5}, TypeError, "ignore_index: must be an integer"),
            ({"weight": np.ones(3)}, ValueError, "weight tensor should be defined either for all 4 classes"),
            ({"reduction": "avg"}, ValueError, "avg is not a valid value for reduction"),
            ({"label_smoothing": 2}, ValueError, "label_smoothing must be between"),
            (
                {"sample_weight": np.ones(3)},
                ValueError,
                r"sample_weight: must have .* shape \[2\], got \[3\]",
            ),
            (
                {"options": 3},
                TypeError,
                "options: must be a cyce.LinearCrossEntropyOptions or None, got int",
            ),
            (
                {"options": cyce.LinearCrossEntropyOptions(acc_dtype=np.float32)},
                ValueError,
                "options: acc_dtype must be float64, which is computed with, or None; got float32",
            ),
            (
                {
                    "options": cyce.LinearCrossEntropyOptions(
                        batch_chunk_size=2, chunking_method="aspect_ratio:2"
                    )
                },
                ValueError,
                r"options: batch_chunk_size \(=2\) and chunking_method",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, named, error, message):
        arguments = {"input": np.ones((2, 3)), "linear_weight": np.ones((4, 3)), "target": [0, 1], **named}
        out = np.full((2, 3), 77.0), np.full((4, 3), 77.0)
        with pytest.raises(error, match=message):
            LINEAR_AND_GRADIENTS(**arguments, out=out)
        with pytest.raises(error, match=message):
            F.linear_cross_entropy(**arguments)
        assert (out[0] == 77).all()
        assert (out[1] == 77).all()

    def test_where_a_target_of_several_positions_is_wrong(self):
        with pytest.raises(IndexError, match=r"Target 9 is out of bounds. target\[1, 1\]"):
            F.linear_cross_entropy(np.ones((2, 3)), np.ones((4, 2, 3)), [[0, 1], [2, 9]])
