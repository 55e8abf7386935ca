"""nll_loss, NLLLoss and one_hot."""

import math

import numpy as np
import pytest

import cyce
import cyce.functional as F

LOSS_AND_GRADIENT = cyce.value_and_grad(F.nll_loss)
SHAPES = [(3,), (5, 3), (4, 40), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2)]


def make_case(rng, shape, dtype):
    axis = 0 if len(shape) == 1 else 1
    logits = (rng.standard_normal(shape) * 3).astype(dtype)
    return (
        logits,
        F.log_softmax(logits, axis),
        rng.integers(shape[axis], size=shape[:axis] + shape[axis + 1 :]),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_log_softmax_it_is_cross_entropy(dtype, rng, shape, weighted, reduction):
    logits, log_probabilities, target = make_case(rng, shape, dtype)
    n_classes = shape[0 if len(shape) == 1 else 1]
    options = {"weight": rng.uniform(0.5, 2, n_classes) if weighted else None, "ignore_index": 1}
    loss = F.nll_loss(log_probabilities, target, **options, reduction=reduction)
    expected = F.cross_entropy(logits, target, **options, reduction=reduction)
    np.testing.assert_allclose(loss, expected, rtol=8 * np.finfo(dtype).eps)
    assert np.asarray(loss).dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_by_differences(rng, shape, reduction):
    # The function is linear: a difference quotient is exact up to rounding.
    _, log_probabilities, target = make_case(rng, shape, np.float64)
    options = {"weight": rng.uniform(0.5, 2, shape[0 if len(shape) == 1 else 1]), "reduction": reduction}
    value = F.nll_loss(log_probabilities, target, **options)
    upstream = rng.standard_normal(np.shape(value))
    same, gradient = LOSS_AND_GRADIENT(log_probabilities, target, **options, grad_output=upstream)
    np.testing.assert_array_equal(same, value)
    for index in np.ndindex(shape):
        shifted = log_probabilities.copy()
        shifted[index] += 1
        difference = np.sum(upstream * (F.nll_loss(shifted, target, **options) - value))
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-11, atol=1e-12)


LAYOUTS = {
    "classes last": lambda array: np.ascontiguousarray(array),
    "classes first": lambda array: np.asfortranarray(array),
    "rows apart": lambda array: np.repeat(array, 2, axis=0)[::2],
    "every other": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_positions_in_any_layout(dtype, rng, layout, out_layout):
    # Several shares of 4096 positions, the last one of an odd size; each target is looked up by NumPy.
    n, n_classes = 10_001, 7
    log_probabilities = rng.standard_normal((n, n_classes)).astype(dtype)
    target = rng.integers(n_classes, size=n)
    target[::3] = -100
    weight = rng.uniform(0.5, 2, n_classes).astype(dtype)
    rows, classes = np.arange(n), np.where(target >= 0, target, 0)
    masses = np.where(target >= 0, weight[classes], dtype.type(0))
    losses = -masses * log_probabilities[rows, classes]
    gradient = np.zeros((n, n_classes))
    gradient[rows, classes] = -masses.astype(np.float64) / masses.sum(dtype=np.float64)
    given = LAYOUTS[layout](log_probabilities)
    out = LAYOUTS[out_layout](np.ones_like(log_probabilities))
    none = F.nll_loss(given, target, weight, reduction="none")
    np.testing.assert_array_equal(none, losses)
    loss, _ = LOSS_AND_GRADIENT(given, target, weight, out=out)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(loss, losses.sum(dtype=np.float64) / masses.sum(dtype=np.float64), rtol=eps)
    np.testing.assert_allclose(out, gradient, rtol=eps)
    LOSS_AND_GRADIENT(given, target, weight, out=given)
    np.testing.assert_array_equal(given, out)


@pytest.mark.parametrize("ignored", ["none", "some", "a class"])
@pytest.mark.parametrize("target_dtype", [np.int64, np.uint64, np.int8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_alone_are_those_of_a_weight_of_one(dtype, rng, layout, target_dtype, ignored):
    # Without a weight, positions that all count are added up in a loop of their own: the same numbers in the
    # same order.
    n, n_classes = 4096 + 3 * 128 + 5, 7
    log_probabilities = rng.standard_normal((n, n_classes)).astype(dtype)
    target = rng.integers(n_classes, size=n).astype(target_dtype)
    ignore_index = {"none": -100, "some": 100, "a class": 6}[ignored]
    if ignored == "some":
        target[[0, 255, 4096]] = ignore_index
    counts = target != ignore_index
    losses = -log_probabilities[np.arange(n), np.where(counts, target, 0).astype(int)]
    log_probabilities[~counts] = np.nan
    given = LAYOUTS[layout](log_probabilities)
    total = F.nll_loss(given, target, ignore_index=ignore_index, reduction="sum")
    np.testing.assert_allclose(total, math.fsum(losses[counts]), rtol=np.finfo(dtype).eps)
    ones = np.ones(n_classes, dtype)
    assert total == F.nll_loss(given, target, ones, ignore_index=ignore_index, reduction="sum")
    mean = F.nll_loss(given, target, ignore_index=ignore_index)
    assert mean == F.nll_loss(given, target, ones, ignore_index=ignore_index)


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_a_bad_target_among_those_that_count(dtype, rng, bad):
    target = rng.integers(7, size=1000)
    target[300] = bad
    with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds\. target\[300\]"):
        F.nll_loss(np.zeros((1000, 7), dtype), target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n_classes", [0, 3])
def test_a_bad_target_among_many(rng, n_classes, reduction):
    target = np.full(10_000, -100)
    target[7001] = 3
    log_probabilities = np.zeros((10_000, n_classes))
    message = r"Target 3 is out of bounds\. target\[7001\]"
    with pytest.raises(IndexError, match=message):
        F.nll_loss(log_probabilities, target, reduction=reduction)
    out = np.full_like(log_probabilities, 5)
    with pytest.raises(IndexError, match=message):
        LOSS_AND_GRADIENT(log_probabilities, target, reduction=reduction, out=out)
    assert (out == 5).all()


def test_in_place_and_strided_gradients(dtype, rng):
    _, log_probabilities, target = make_case(rng, (6, 5), dtype)
    expected = LOSS_AND_GRADIENT(log_probabilities, target)[1]
    for out in (
        log_probabilities.copy(),
        np.empty((6, 5), dtype, order="F"),
        np.empty((6, 10), dtype)[:, ::2],
    ):
        assert LOSS_AND_GRADIENT(log_probabilities, target, out=out)[1] is out
        np.testing.assert_array_equal(out, expected)
    _, gradient = LOSS_AND_GRADIENT(log_probabilities, target, out=log_probabilities)
    assert gradient is log_probabilities
    np.testing.assert_array_equal(gradient, expected)


class TestEdges:
    def test_all_ignored(self, dtype):
        given = np.full((2, 3), np.nan, dtype)
        for reduction, value in (("mean", np.nan), ("sum", 0), ("none", [0, 0])):
            loss, gradient = LOSS_AND_GRADIENT(given, [-100, -100], reduction=reduction)
            np.testing.assert_array_equal(loss, value)
            assert not gradient.any()

    def test_ignored_positions_leak_nothing(self, dtype):
        given = np.array([[np.nan, np.nan], [-1.0, -2.0]], dtype)
        loss, gradient = LOSS_AND_GRADIENT(given, [-100, 1])
        assert loss == 2
        np.testing.assert_array_equal(gradient, [[0, 0], [0, -1]])

    def test_present_classes_of_weight_zero(self, dtype):
        loss, gradient = LOSS_AND_GRADIENT(np.zeros((1, 2), dtype), [0], weight=[0, 1])
        assert np.isnan(loss)
        assert np.isnan(gradient[0, 0])

    def test_a_perfect_row_is_plus_zero(self, dtype):
        assert not np.signbit(F.nll_loss(np.zeros((1, 2), dtype), [0]))

    def test_nothing(self):
        assert np.isnan(F.nll_loss(np.zeros((0, 3)), []))
        assert F.nll_loss(np.zeros((0, 3)), [], reduction="none").shape == (0,)
        assert np.isnan(F.nll_loss(np.zeros((2, 0)), [-100, -100]))

    def test_one_class_of_one_position(self):
        # In cross_entropy, these shapes would mean class probabilities.
        assert F.nll_loss([-0.5], [0]) == 0.5

    @pytest.mark.parametrize("bad", [-1, 3, 2**40])
    def test_a_target_out_of_bounds(self, bad):
        given = np.ones((3, 3))
        with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds\. target\[1\] must be"):
            LOSS_AND_GRADIENT(given, [0, bad, 1], out=given)
        assert (given == 1).all()

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            ([0.0, 1.0], TypeError, "expected target dtype to be Long or Byte, but got Double"),
            (np.zeros((2, 3)), ValueError, "0D or 1D target tensor expected"),
            (np.zeros((2, 3), int), ValueError, "0D or 1D target tensor expected"),
            ([0, 1, 2], ValueError, r"Expected input batch_size \(2\) to match target batch_size \(3\)"),
            (None, TypeError, "target: must hold numbers"),
        ],
    )
    def test_a_wrong_target(self, target, error, message):
        with pytest.raises(error, match=message):
            F.nll_loss(np.zeros((2, 3)), target)

    def test_a_wrong_weight(self):
        with pytest.raises(ValueError, match="weight tensor should be defined either for all 3 classes"):
            F.nll_loss(np.zeros((2, 3)), [0, 1], weight=[1.0])


def test_the_module(rng):
    _, log_probabilities, target = make_case(rng, (6, 5), np.float64)
    module = cyce.NLLLoss([1.0, 2, 3, 4, 5], ignore_index=1, reduction="sum")
    assert repr(module) == "NLLLoss()"
    expected = LOSS_AND_GRADIENT(
        log_probabilities, target, weight=[1.0, 2, 3, 4, 5], ignore_index=1, reduction="sum"
    )
    loss, gradient = cyce.value_and_grad(module)(log_probabilities, target)
    assert loss == expected[0] == module(log_probabilities, target)
    np.testing.assert_array_equal(gradient, expected[1])


class TestOneHot:
    @pytest.mark.parametrize("kind", [np.int64, np.uint8, ">i2", list])
    def test_values(self, kind):
        indices = np.array([[0, 2], [1, 0]])
        given = indices.tolist() if kind is list else indices.astype(kind)
        for n_classes, width in ((-1, 3), (5, 5)):
            encoding = F.one_hot(given, n_classes)
            assert encoding.dtype == np.int64
            np.testing.assert_array_equal(encoding, np.eye(width)[indices])

    def test_scalars_and_nothing(self):
        np.testing.assert_array_equal(F.one_hot(2, 4), [0, 0, 1, 0])
        assert F.one_hot([], 3).shape == (0, 3)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([0, -2],), ValueError, "Class values must be non-negative"),
            (([0, 2], 2), ValueError, "Class values must be smaller than num_classes"),
            (([1], 0), ValueError, "Class values must be smaller than num_classes"),
            (([],), ValueError, "Can not infer total number of classes from empty tensor"),
            (([1.0],), TypeError, "one_hot is only applicable to index tensor of type LongTensor"),
            (([True],), TypeError, "one_hot is only applicable to index tensor of type LongTensor"),
            (([1], 2.0), TypeError, "num_classes: must be an integer"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            F.one_hot(*arguments)
