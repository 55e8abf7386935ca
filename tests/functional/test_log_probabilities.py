"""Log-probabilities of chosen and of the highest classes, entropies, products with the softmax's Jacobian."""

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
from autograd_oracle import LAYOUTS, assert_near, positions_of, values_and_gradient

selected = cyce.value_and_grad(F.selective_log_softmax)


def chosen(rng, shape, axis, k):
    """Return k classes of each position, at the class axis; some are named twice."""
    index = rng.integers(shape[axis], size=(*positions_of(shape, axis), k))
    index[..., -1] = np.where(rng.random(index.shape[:-1]) < 0.3, index[..., 0], index[..., -1])
    return np.ascontiguousarray(np.moveaxis(index, -1, axis))


def entropy_of(log_p, axis):
    """Return the entropy of log-probabilities."""
    return -(log_p.exp() * log_p).sum(axis)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "temperature": 1.7}], ids=["plain", "other logits"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
class TestInEveryLayout:
    def other_logits(self, x, options):
        return 5 * torch.tanh(x / 5) / 1.7 if options else x

    def test_several_classes_and_the_entropy(self, level, dtype, rng, shape, axis, options):
        logits = (3 * rng.standard_normal(shape)).astype(dtype)
        index = chosen(rng, shape, axis, 3)
        upstream = rng.standard_normal(index.shape).astype(dtype)
        of_entropy = rng.standard_normal(positions_of(shape, axis)).astype(dtype)
        # A class whose upstream gradient is 0.
        upstream.flat[0] = 0

        def formula(x):
            log_p = torch.log_softmax(self.other_logits(x, options), axis)
            return log_p.gather(axis, torch.tensor(index)), entropy_of(log_p, axis)

        expected, slopes = values_and_gradient(formula, logits, (upstream, of_entropy))
        named = {"axis": axis, "return_entropy": True, "grad_output": (upstream, of_entropy), **options}
        values, gradient = selected(logits, index, **named)
        for value, exact in zip(values, expected, strict=True):
            assert_near(value, exact, 2)
        assert_near(gradient, slopes, 4)
        # Without a gradient, and where the logits are.
        again = F.selective_log_softmax(logits, index, axis=axis, return_entropy=True, **options)
        for value, other in zip(values, again, strict=True):
            np.testing.assert_array_equal(value, other)
        _, in_place = selected(logits, index, out=logits, **named)
        assert in_place is logits
        assert_near(logits, slopes, 4)

    def test_one_class(self, level, dtype, rng, shape, axis, options):
        logits = (3 * rng.standard_normal(shape)).astype(dtype)
        index = rng.integers(shape[axis], size=positions_of(shape, axis))
        upstream = rng.standard_normal(index.shape).astype(dtype)

        def formula(x):
            log_p = torch.log_softmax(self.other_logits(x, options), axis)
            return log_p.gather(axis, torch.tensor(index).unsqueeze(axis)).squeeze(axis)

        expected, slopes = values_and_gradient(formula, logits, upstream)
        values, gradient = selected(logits, index, axis=axis, grad_output=upstream, **options)
        assert values.shape == index.shape
        assert_near(values, expected, 2)
        assert_near(gradient, slopes, 4)

    def test_the_entropy_alone(self, level, dtype, rng, shape, axis, options):
        logits = (3 * rng.standard_normal(shape)).astype(dtype)
        upstream = rng.standard_normal(positions_of(shape, axis)).astype(dtype)
        expected, slopes = values_and_gradient(
            lambda x: entropy_of(torch.log_softmax(self.other_logits(x, options), axis), axis),
            logits,
            upstream,
        )
        values, gradient = cyce.value_and_grad(F.entropy)(logits, axis=axis, grad_output=upstream, **options)
        assert_near(values, expected, 2)
        assert_near(gradient, slopes, 4)


@pytest.mark.parametrize("n_classes", [600_000, 1_200_000])
def test_exponentials_that_do_not_wait(level, dtype, rng, n_classes):
    # They are computed again: they would take more scratch memory than there is.
    logits = rng.standard_normal((1, n_classes)).astype(dtype)
    logits[0, 7] = 12
    expected, slopes = values_and_gradient(
        lambda x: entropy_of(torch.log_softmax(x, 1), 1), logits, np.ones(1)
    )
    values, gradient = cyce.value_and_grad(F.entropy)(logits)
    assert_near(values, expected)
    assert_near(gradient, slopes, 3)


def test_one_class_is_the_cross_entropy(level, dtype, rng, loss_and_gradient):
    logits, index = rng.standard_normal((30, 200)).astype(dtype), rng.integers(200, size=30)
    losses, slopes = loss_and_gradient(logits, index, reduction="none")
    values, gradient = selected(logits, index)
    np.testing.assert_array_equal(values, -losses)
    np.testing.assert_allclose(gradient, -slopes, rtol=4 * np.finfo(dtype).eps)


def test_confident_rows_keep_their_precision(level):
    logits = np.array([[40.0, 0.0, 0.0]])
    rest = 2 * np.exp(-40.0)
    np.testing.assert_allclose(F.selective_log_softmax(logits, [0]), -np.log1p(rest), rtol=1e-15)
    np.testing.assert_allclose(F.entropy(logits), np.log1p(rest) + rest / (1 + rest) * 40, rtol=1e-15)
    _, gradient = cyce.value_and_grad(F.entropy)(logits)
    mean_gap = 40 * rest / (1 + rest)
    own, other = 1 / (1 + rest), np.exp(-40.0) / (1 + rest)
    np.testing.assert_allclose(gradient[0], [-own * mean_gap, *[other * (40 - mean_gap)] * 2], rtol=1e-14)


def test_of_no_classes(level, dtype):
    np.testing.assert_array_equal(F.entropy(np.zeros((3, 0), dtype)), 0)
    assert F.selective_log_softmax(np.zeros((3, 0), dtype), np.zeros((3, 0), int)).shape == (3, 0)


def test_logits_that_are_not_finite(level, dtype):
    infinite = np.array([[0.0, -np.inf, 1.0], [np.nan, 0, 0], [-np.inf] * 3], dtype)
    values, gradient = cyce.value_and_grad(F.entropy)(infinite)
    assert np.isfinite(values[0])
    assert np.isfinite(gradient[0]).all()
    assert gradient[0, 1] == 0
    assert np.isnan(values[1:]).all()
    np.testing.assert_array_equal(F.selective_log_softmax(infinite[:1], [1]), [-np.inf])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0, 3], IndexError, r"index\[1\]: 3 is out of bounds, it must be a class index from 0 to 2"),
        ([0, -100], IndexError, r"index\[1\]: -100 is out of bounds"),
        ([[0, 5], [1, 1]], IndexError, r"index\[0, 1\]: 5 is out of bounds"),
        ([0, 1, 2], ValueError, r"index: .* must have shape \[2\] or \[2, K\], got \[3\]"),
        ([0.0, 1.0], TypeError, "index: must be integer class indices, got dtype float64"),
    ],
)
def test_what_an_index_must_be(index, error, message):
    with pytest.raises(error, match=message):
        F.selective_log_softmax(np.zeros((2, 3)), index)


def test_two_upstream_gradients():
    with pytest.raises(TypeError, match="grad_output: with return_entropy=True, must be a tuple of two"):
        selected(np.zeros((2, 3)), [0, 1], return_entropy=True, grad_output=1.0)


class TestTheHighest:
    @pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
    @pytest.mark.parametrize("k", [1, 5])
    def test_as_torch(self, level, dtype, rng, shape, axis, k):
        logits = rng.standard_normal(shape).astype(dtype)
        values, indices = F.topk_log_softmax(logits, k, axis=axis)
        expected = torch.topk(torch.tensor(logits), k, dim=axis)
        np.testing.assert_array_equal(indices, expected.indices.numpy())
        every = F.log_softmax(logits, axis)
        np.testing.assert_allclose(
            values, np.take_along_axis(every, indices, axis), rtol=4 * np.finfo(dtype).eps
        )

    def test_ties_masks_and_what_is_no_number(self, level, dtype):
        logits = np.array([[1, 5, 5, 1], [0, -np.inf, np.nan, 3], [-np.inf] * 4, [9, 1, 2, 3]], dtype)
        mask = np.ones((4, 4), bool)
        mask[3, 0] = False
        values, indices = F.topk_log_softmax(logits, 4, class_mask=mask)
        assert values[3, 3] == -np.inf
        np.testing.assert_array_equal(indices, [[1, 2, 0, 3], [2, 3, 0, 1], [0, 1, 2, 3], [3, 2, 1, 0]])

    def test_it_fills_a_sparse_target(self, level, dtype, rng):
        teacher, student = (rng.standard_normal((20, 50)).astype(dtype) for _ in range(2))
        values, indices = F.topk_log_softmax(teacher, 50)
        loss = F.cross_entropy(student, cyce.SparseTarget(indices, np.exp(values)))
        np.testing.assert_allclose(loss, F.cross_entropy(student, F.softmax(teacher, 1)), rtol=1e-6)

    @pytest.mark.parametrize("k", [0, 4, -1, 1.5, None])
    def test_what_k_must_be(self, k):
        error, message = (
            (ValueError, "from 1 to the number of classes, 3") if type(k) is int else (TypeError, "an")
        )
        with pytest.raises(error, match=f"k: must be {message}"):
            F.topk_log_softmax(np.zeros((2, 3)), k)

    @pytest.mark.parametrize("order", [1, -1])
    def test_many_of_many(self, level, order):
        logits = np.arange(50_000.0)[None, ::order]
        _, indices = F.topk_log_softmax(logits, 20_000)
        np.testing.assert_array_equal(indices[0], np.argsort(-logits[0])[:20_000])


class TestProductsWithTheJacobian:
    @pytest.mark.parametrize("name", ["softmax", "log_softmax"])
    @pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
    def test_of_softmax_and_its_logarithm(self, level, dtype, rng, shape, axis, name):
        logits, upstream = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        expected, slopes = values_and_gradient(lambda x: getattr(torch, name)(x, axis), logits, upstream)
        values, gradient = cyce.value_and_grad(getattr(F, name))(logits, axis, grad_output=upstream)
        assert_near(values, expected)
        assert_near(gradient, slopes, 3)

    @pytest.mark.parametrize(("dim", "keepdim"), [(1, False), (0, True), ((0, 2), False), ((2, 0), True)])
    def test_of_logsumexp(self, level, dtype, rng, dim, keepdim):
        logits = rng.standard_normal((4, 30, 5)).astype(dtype)
        expected = torch.logsumexp(torch.tensor(logits), dim, keepdim)
        upstream = rng.standard_normal(expected.shape).astype(dtype)
        expected, slopes = values_and_gradient(lambda x: torch.logsumexp(x, dim, keepdim), logits, upstream)
        values, gradient = cyce.value_and_grad(F.logsumexp)(logits, dim, keepdim, grad_output=upstream)
        assert_near(values, expected)
        assert_near(gradient, slopes)

    def test_without_an_upstream_gradient(self, dtype, rng):
        logits = rng.standard_normal((4, 5)).astype(dtype)
        _, gradient = cyce.value_and_grad(F.softmax)(logits, 1)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
        _, gradient = cyce.value_and_grad(F.log_softmax)(logits, 1, grad_output=2.0)
        np.testing.assert_allclose(gradient, 2 - 10 * F.softmax(logits, 1), rtol=1e-5)

    def test_the_shape_of_the_upstream_gradient(self):
        with pytest.raises(ValueError, match=r"grad_output: must be a number or have .* \[2, 3\], got \[3\]"):
            cyce.value_and_grad(F.softmax)(np.zeros((2, 3)), 1, grad_output=np.ones(3))
