"""LinearCrossEntropyLoss: parameters, calls, errors."""

import copy
import pickle

import numpy as np
import pytest

import cyce
from linear_cases import LINEAR_AND_GRADIENTS, chunks_of, make


class TestModule:
    def test_parameters(self):
        module = cyce.LinearCrossEntropyLoss(16, 5, out_features=(3, 2), bias=True, dtype=np.float64, rng=0)
        assert module.linear.weight.shape == (30, 16)
        assert module.linear.bias.shape == (30,)
        assert module.linear.weight.dtype == module.linear.bias.dtype == np.float64
        assert 0.2 < np.abs(module.linear.weight).max() <= 0.25
        again = cyce.LinearCrossEntropyLoss(16, 5, out_features=(3, 2), dtype=np.float64, rng=0)
        np.testing.assert_array_equal(module.linear.weight, again.linear.weight)
        assert again.linear.bias is None
        assert cyce.LinearCrossEntropyLoss(16, 5).linear.weight.dtype == np.float32
        assert cyce.LinearCrossEntropyLoss(0, 5, bias=True).linear.weight.shape == (5, 0)
        assert "in_features=16, out_features=30, bias=True" in repr(module.linear)
        assert "in_features=16, num_classes=5, out_features=(3, 2), bias=True" in repr(module)

    @pytest.mark.parametrize("outputs", [(5,), (5, 3, 2)], ids=str)
    def test_it_is_the_function(self, rng, dtype, outputs):
        hidden, weights, bias, target = make(rng, 12, 4, outputs, dtype)
        sample_weight = rng.random(target.shape)
        options = {"weight": rng.random(5), "ignore_index": 2, "label_smoothing": 0.1, "softcap": 3.0}
        module = cyce.LinearCrossEntropyLoss(
            4, 5, out_features=outputs[1:], bias=True, dtype=dtype, **options
        )
        module.linear.weight = weights.reshape(-1, 4)
        module.linear.bias = bias.ravel()
        for named in ({}, {"sample_weight": sample_weight}):
            expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, **options, **named)
            assert module(hidden, target, **named) == module.forward(hidden, target, **named) == expected[0]
            loss, gradients = cyce.value_and_grad(module)(input=hidden, target=target, **named)
            assert loss == expected[0]
            shapes = [hidden.shape, module.linear.weight.shape, module.linear.bias.shape]
            assert [gradient.shape for gradient in gradients] == shapes
            for gradient, other in zip(gradients, expected[1], strict=True):
                np.testing.assert_array_equal(gradient.ravel(), other.ravel())
        out = tuple(np.empty_like(gradient) for gradient in gradients)
        assert cyce.value_and_grad(module)(hidden, target, **named, out=out)[1] is out
        np.testing.assert_array_equal(out[1], gradients[1])

    def test_arrays_of_out_have_the_shapes_of_the_parameters(self, rng):
        module = cyce.LinearCrossEntropyLoss(4, 3, out_features=(2,), bias=True, rng=0)
        hidden, target = rng.standard_normal((5, 4), dtype=np.float32), rng.integers(3, size=(5, 2))
        gradients = cyce.value_and_grad(module)
        right = gradients(hidden, target)[1]
        for lay_out in (
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
        ):
            out = [lay_out(np.full_like(array, 77)) for array in right]
            assert gradients(hidden, target, out=out)[1] is out
            for array, expected in zip(out, right, strict=True):
                np.testing.assert_array_equal(array, expected)
        linear = module.linear
        for number, wrong, error, message in (
            (1, np.empty((3, 2, 4), "f4"), ValueError, r"linear_weight's shape \[6, 4\], got \[3, 2, 4\]"),
            (2, np.empty((3, 2), "f4"), ValueError, r"linear_bias's shape \[6\], got \[3, 2\]"),
            (1, np.empty((6, 4)), TypeError, "linear_weight's dtype float32, got float64"),
            (1, np.zeros((6, 4)).tolist(), TypeError, "whose memory can be written, got list"),
            (1, linear.weight, ValueError, "out: shares memory with linear_weight"),
            (1, right[0], ValueError, r"linear_weight's shape \[6, 4\], got \[5, 4\]"),
        ):
            with pytest.raises(error, match=message):
                gradients(hidden, target, out=[*right[:number], wrong, *right[number + 1 :]])
        with pytest.raises(TypeError, match=r"out: must be a tuple of 3 arrays, .* got 2 of them"):
            gradients(hidden, target, out=right[:2])

    def test_descent(self, rng):
        hidden = rng.standard_normal((50, 4))
        target = (hidden @ rng.standard_normal((4, 3))).argmax(axis=1)
        module = cyce.LinearCrossEntropyLoss(4, 3, bias=True, dtype=np.float64, rng=1)
        before = module(hidden, target)
        for _ in range(200):
            _, (_, of_weight, of_bias) = cyce.value_and_grad(module)(hidden, target)
            module.linear.weight -= of_weight
            module.linear.bias -= of_bias
        assert module(hidden, target) < 0.2 * before

    @pytest.mark.parametrize(
        "duplicate", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
    )
    def test_copies(self, rng, duplicate):
        module = cyce.LinearCrossEntropyLoss(4, 3, bias=True, options=chunks_of(5), reduction="sum")
        hidden, target = rng.standard_normal((7, 4), dtype=np.float32), rng.integers(3, size=7)
        assert duplicate(module)(hidden, target) == module(hidden, target)

    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"in_features": -1}, ValueError, "in_features: must not be negative"),
            ({"in_features": 1.5}, TypeError, "in_features: must be an integer"),
            ({"num_classes": None}, TypeError, "num_classes: must be an integer"),
            ({"out_features": 3}, TypeError, "out_features: must be a tuple of integers, got int"),
            ({"out_features": (3, -1)}, ValueError, "out_features: must not be negative"),
            ({"dtype": np.int32}, TypeError, "dtype: must be float16, bfloat16"),
            ({"device": "cuda"}, ValueError, "device: must be None or 'cpu', got 'cuda'"),
            ({"rng": "x"}, TypeError, "rng: must be None, an integer or a numpy.random.Generator"),
            ({"rng": -1}, ValueError, "rng: must be None, an integer or a numpy.random.Generator"),
            ({"weight": [1.0]}, ValueError, r"expected weight shape to be \(3,\), got \(1,\)"),
            (
                {"label_smoothing": 2.0},
                ValueError,
                r"expected label_smoothing to be in range \[0, 1\], got 2.0",
            ),
        ],
    )
    def test_constructors_that_are_refused(self, named, error, message):
        with pytest.raises(error, match=message):
            cyce.LinearCrossEntropyLoss(**{"in_features": 2, "num_classes": 3, **named})

    def test_parameters_of_wrong_shapes(self):
        module = cyce.LinearCrossEntropyLoss(2, 3, bias=True)
        hidden = np.ones((4, 2), np.float32)
        for name, wrong, right in (
            ("weight", np.ones((2, 3)), (3, 2)),
            ("weight", np.float64(1), (3, 2)),
            ("bias", np.ones(2), (3,)),
        ):
            kept = getattr(module.linear, name)
            setattr(module.linear, name, wrong)
            with pytest.raises(ValueError) as raised:  # noqa: PT011
                module(hidden, [0] * 4)
            assert str(raised.value) == f"linear.{name}: must have shape {right}, got {wrong.shape}"
            setattr(module.linear, name, kept)
        with pytest.raises(TypeError, match="a call takes no argument 'gradient'"):
            module(hidden, [0] * 4, gradient=None)
