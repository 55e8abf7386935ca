"""Targets on a few classes, and class masks, against what dense probabilities and smaller problems give."""

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
from autograd_oracle import LAYOUTS, assert_near, double, positions_of, values_and_gradient


def sparse_and_dense(rng, shape, axis, k):
    """Return a target on k classes of each position, some named twice, and the same as probabilities."""
    indices = rng.integers(shape[axis], size=(*positions_of(shape, axis), k))
    indices[..., -1] = indices[..., 0]
    mass = rng.random(indices.shape)
    dense = np.zeros((*positions_of(shape, axis), shape[axis]))
    for j in range(k):
        place = indices[..., j : j + 1]
        np.put_along_axis(dense, place, np.take_along_axis(dense, place, -1) + mass[..., j : j + 1], -1)
    indices, mass, dense = (np.moveaxis(array, -1, axis) for array in (indices, mass, dense))
    return cyce.SparseTarget(indices, mass), np.ascontiguousarray(dense)


class TestSparseTargets:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
    def test_as_dense_ones(self, level, dtype, rng, loss_and_gradient, shape, axis, smoothing):
        logits = (3 * rng.standard_normal(shape)).astype(dtype)
        weight = rng.uniform(0.5, 2, shape[axis]).astype(dtype)
        target, dense = sparse_and_dense(rng, shape, axis, 4)
        for options in ({}, {"softcap": 4.0, "temperature": 1.5}):
            named = {"label_smoothing": smoothing, "axis": axis, "reduction": "none", **options}
            expected, slopes = loss_and_gradient(logits.astype(np.float64), dense, weight, **named)
            losses, gradient = loss_and_gradient(logits, target, weight, **named)
            assert_near(losses, expected)
            assert_near(gradient, slopes)
        loss_and_gradient(logits, target, weight, out=logits, **named)
        assert_near(logits, slopes)

    def test_one_class_is_a_class_index(self, level, dtype, rng, loss_and_gradient):
        logits, target = rng.standard_normal((40, 130)).astype(dtype), rng.integers(130, size=40)
        sparse = cyce.SparseTarget(target[:, None], np.ones((40, 1)))
        for ours, theirs in zip(
            loss_and_gradient(logits, sparse), loss_and_gradient(logits, target), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=4 * np.finfo(dtype).eps)

    def test_confident_rows_keep_their_precision(self, level, loss_and_gradient):
        target = cyce.SparseTarget([[0, 1]], [[1.0, 0.0]])
        loss, gradient = loss_and_gradient(np.array([[40.0, 0.0, 0.0]]), target)
        rest = 2 * np.exp(-40.0)
        np.testing.assert_allclose(loss, np.log1p(rest), rtol=1e-15)
        np.testing.assert_allclose(
            gradient[0], np.array([-rest, rest / 2, rest / 2]) / (1 + rest), rtol=1e-14
        )

    def test_empty_entries_and_positions(self, level, dtype, rng, loss_and_gradient):
        logits = rng.standard_normal((4, 5)).astype(dtype)
        logits[1] = np.nan
        target = cyce.SparseTarget([[0, -1], [-1, 7], [7, 3], [2, 2]], np.full((4, 2), 0.5))
        loss, gradient = loss_and_gradient(logits, target, ignore_index=7, sample_weight=[1, 1, 2, 1])
        dense = np.zeros((3, 5))
        dense[[0, 1, 2], [0, 3, 2]] = [0.5, 0.5, 1.0]
        counts = [0, 2, 3]
        expected, slopes = loss_and_gradient(logits[counts].astype(float), dense, sample_weight=[1, 2, 1])
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert_near(gradient[counts], slopes)
        np.testing.assert_array_equal(gradient[1], 0)

    def test_a_class_without_mass_or_probability(self, level, dtype, loss_and_gradient):
        logits = np.array([[0.0, -np.inf, 1.0]], dtype)
        loss, gradient = loss_and_gradient(logits, cyce.SparseTarget([[1, 2]], [[0.0, 1.0]]))
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert loss_and_gradient(logits, cyce.SparseTarget([[1, 2]], [[0.5, 0.5]]))[0] == np.inf

    @pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
    def test_indices_of_any_integer_dtype(self, rng, kind):
        logits, indices = rng.standard_normal((6, 9)), rng.integers(9, size=(6, 2))
        mass = rng.random((6, 2))
        expected = F.cross_entropy(logits, cyce.SparseTarget(indices, mass))
        assert F.cross_entropy(logits, cyce.SparseTarget(indices.astype(kind), mass)) == expected

    @pytest.mark.parametrize(
        ("indices", "probabilities", "error", "message"),
        [
            ([[0, 3]], [[1, 0]], IndexError, r"target.indices\[0, 1\]: 3 is out of bounds"),
            ([[0, -2]], [[1, 0]], IndexError, r"from 0 to 2 or one of -1, -100, for none"),
            ([0, 1], [1, 0], ValueError, r"target.indices: .* must have shape \[1, K\], got \[2\]"),
            (
                [[0, 1]],
                [[1]],
                ValueError,
                r"probabilities: must have one number for each of indices, \[1, 2\]",
            ),
            ([[0.0]], [[1]], TypeError, "indices: must be integer class indices, got dtype float64"),
            ([[0]], [["1"]], TypeError, "probabilities: must hold real numbers"),
        ],
    )
    def test_what_is_refused(self, indices, probabilities, error, message):
        with pytest.raises(error, match=message):
            F.cross_entropy(np.zeros((1, 3)), cyce.SparseTarget(indices, probabilities))


def masked(rng, shape, axis, target):
    """Return a class mask that leaves the targets."""
    mask = rng.random(shape) < 0.6
    np.put_along_axis(mask, np.expand_dims(target, axis), True, axis)
    return mask


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
class TestClassMasks:
    def spoiled(self, rng, logits, mask):
        """Return logits with anything at the classes that are left out."""
        other = rng.choice([np.nan, np.inf, -np.inf, 1e30], size=logits.shape)
        return np.where(mask, logits, other).astype(logits.dtype)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("is_weighted", [False, True])
    def test_of_class_indices(
        self, level, dtype, rng, loss_and_gradient, shape, axis, smoothing, is_weighted
    ):
        logits = (3 * rng.standard_normal(shape)).astype(dtype)
        target = rng.integers(shape[axis], size=positions_of(shape, axis))
        weight = (
            rng.uniform(0.5, 2, shape[axis]).astype(dtype) if is_weighted else np.ones(shape[axis], dtype)
        )
        mask = masked(rng, shape, axis, target)

        def formula(x):
            log_p = torch.log_softmax(x.masked_fill(torch.tensor(~mask), -torch.inf), axis)
            weights = torch.movedim(torch.ones(shape).movedim(axis, -1) * double(weight), -1, axis)
            index = torch.tensor(target).unsqueeze(axis)
            terms = torch.where(torch.tensor(mask), log_p, 0) * weights
            spread = terms.sum(axis) / torch.tensor(mask.sum(axis))
            own = (log_p * weights).gather(axis, index).squeeze(axis)
            return -(1 - smoothing) * own - smoothing * spread

        expected, slopes = values_and_gradient(formula, logits, np.ones(target.shape))
        spoiled = self.spoiled(rng, logits, mask)
        named = {"label_smoothing": smoothing, "axis": axis, "class_mask": mask, "reduction": "none"}
        losses, gradient = loss_and_gradient(spoiled, target, weight if is_weighted else None, **named)
        assert_near(losses, expected)
        assert_near(gradient, slopes)
        np.testing.assert_array_equal(gradient[~mask], 0)
        _, gradient = loss_and_gradient(spoiled, target, softcap=9.0, temperature=2.0, z_loss=1e-3, **named)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[~mask], 0)

    def test_of_class_probabilities(self, level, dtype, rng, loss_and_gradient, shape, axis):
        logits = rng.standard_normal(shape).astype(dtype)
        target = rng.integers(shape[axis], size=positions_of(shape, axis))
        mask = masked(rng, shape, axis, target)
        probabilities = rng.random(shape) * mask
        smoothed = 0.9 * probabilities + 0.1 * mask / mask.sum(axis, keepdims=True)
        far = np.where(mask, logits, -1e4).astype(float)
        named = {"axis": axis, "reduction": "none"}
        expected, slopes = loss_and_gradient(far, smoothed, **named)
        losses, gradient = loss_and_gradient(
            self.spoiled(rng, logits, mask), probabilities, label_smoothing=0.1, class_mask=mask, **named
        )
        assert_near(losses, expected)
        assert_near(gradient, slopes)
        np.testing.assert_array_equal(gradient[~mask], 0)

    def test_of_softmax_and_the_others(self, level, dtype, rng, shape, axis):
        logits = rng.standard_normal(shape).astype(dtype)
        target = rng.integers(shape[axis], size=positions_of(shape, axis))
        mask = masked(rng, shape, axis, target)
        spoiled, named = self.spoiled(rng, logits, mask), {"class_mask": mask}
        far = np.where(mask, logits, -np.inf).astype(dtype)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        for name in ("softmax", "log_softmax"):
            values = getattr(F, name)(spoiled, axis, **named)
            np.testing.assert_allclose(values, getattr(F, name)(far, axis), **tolerance)
            np.testing.assert_array_equal(values[~mask], 0 if name == "softmax" else -np.inf)
            upstream = rng.standard_normal(shape).astype(dtype)
            _, gradient = cyce.value_and_grad(getattr(F, name))(spoiled, axis, grad_output=upstream, **named)
            left = np.where(mask, upstream, 0)
            _, slopes = cyce.value_and_grad(getattr(F, name))(far, axis, grad_output=left)
            np.testing.assert_allclose(gradient, slopes, **tolerance)
        stats = F.cross_entropy_stats(spoiled, target, axis=axis, **named)
        for value, other in zip(stats, F.cross_entropy_stats(far, target, axis=axis), strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-5)
        np.testing.assert_allclose(F.entropy(spoiled, axis=axis, **named), stats.entropy, rtol=1e-5)
        _, gradient = cyce.value_and_grad(F.entropy)(spoiled, axis=axis, **named)
        np.testing.assert_array_equal(gradient[~mask], 0)
        losses = F.focal_loss(spoiled, target, 1.0, axis=axis, reduction="none", **named)
        np.testing.assert_allclose(losses, (1 - stats.probability) * stats.loss, rtol=1e-4, atol=1e-6)


class TestWhatAMaskMustBe:
    def test_it_is_broadcast(self, level, dtype, rng, loss_and_gradient):
        logits, target = rng.standard_normal((2, 6, 4, 3)).astype(dtype), rng.integers(3, size=(2, 4, 3))
        mask = np.array([True, True, True, False, False, True])[:, None, None]
        expected = loss_and_gradient(logits, target, class_mask=np.broadcast_to(mask, logits.shape))
        for ours, theirs in zip(loss_and_gradient(logits, target, class_mask=mask), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        criterion = cyce.CrossEntropyLoss(class_mask=mask)
        assert criterion(logits, target) == expected[0]
        assert cyce.CrossEntropyLoss()(logits, target, class_mask=mask) == expected[0]

    def test_nothing_is_left(self, level, dtype):
        mask = np.array([[False] * 3, [True] * 3])
        values = F.softmax(np.ones((2, 3), dtype), 1, class_mask=mask)
        assert np.isnan(values[0]).all()
        np.testing.assert_allclose(values[1], 1 / 3, rtol=1e-6)
        # An ignored position needs no class, nor that of its target.
        values = F.cross_entropy(
            np.ones((2, 3), dtype), [1, 0], ignore_index=1, class_mask=[True, False, True], reduction="none"
        )
        np.testing.assert_allclose(values, [0, np.log(2)], rtol=1e-6)
        loss = F.cross_entropy(np.ones((2, 3), dtype), [-100, 0], class_mask=mask, label_smoothing=0.1)
        np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)

    @pytest.mark.parametrize(
        ("target", "mask", "error", "message"),
        [
            ([0, 2], [True, True, False], ValueError, r"leaves out the class of target\[1\], which is 2"),
            ([0, 1], [1, 1, 0], TypeError, "class_mask: must be bool, .* got dtype int64; convert it"),
            ([0, 1], [True, False], ValueError, r"class_mask: its shape \[2\] cannot be broadcast"),
            ([0, 7], [True, True, False], IndexError, "Target 7 is out of bounds"),
            (
                np.full((2, 3), 0.5),
                [True, False, True],
                ValueError,
                r"leaves out the class of target\[0, 1\]",
            ),
            (
                cyce.SparseTarget([[0], [1]], [[1], [1]]),
                [True, False, True],
                ValueError,
                r"target.indices\[1, 0\]",
            ),
        ],
    )
    def test_what_is_refused(self, target, mask, error, message):
        with pytest.raises(error, match=message):
            F.cross_entropy(np.zeros((2, 3)), target, class_mask=mask)

    def test_a_chosen_class_that_is_left_out(self):
        with pytest.raises(ValueError, match=r"leaves out the class of index\[0, 1\]"):
            F.selective_log_softmax(np.zeros((2, 3)), [[0, 1], [0, 0]], class_mask=[True, False, True])
