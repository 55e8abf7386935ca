"""Focal losses, against torch's autograd of their formulas, and where they would cancel."""

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
from autograd_oracle import LAYOUTS, assert_near, double, positions_of, values_and_gradient

focal = cyce.value_and_grad(F.focal_loss)


def formula(logits, target, gamma, weight, poly1, smoothing, axis):
    """Return the losses of the positions."""
    log_p = torch.log_softmax(logits, axis)
    weights = torch.movedim(torch.movedim(torch.ones_like(log_p), axis, -1) * weight, -1, axis)
    index = torch.tensor(target).unsqueeze(axis)
    of_target = log_p.gather(axis, index).squeeze(axis)
    own = (1 - smoothing) * weights.gather(axis, index).squeeze(axis)
    loss = -own * of_target - smoothing * (weights * log_p).mean(axis)
    miss = -torch.expm1(of_target)
    return miss**gamma * (loss + poly1 * own * miss)


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("options", [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.5, 1.5, 0.1), (3.0, -0.5, 0.2)])
def test_losses_and_gradients(level, dtype, rng, shape, axis, options):
    gamma, poly1, smoothing = options
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    target = rng.integers(shape[axis], size=positions_of(shape, axis))
    weight = rng.uniform(0.5, 2, shape[axis]).astype(dtype)
    upstream = rng.standard_normal(target.shape).astype(dtype)
    expected, slopes = values_and_gradient(
        lambda x: formula(x, target, gamma, double(weight), poly1, smoothing, axis), logits, upstream
    )
    named = {"poly1": poly1, "label_smoothing": smoothing, "axis": axis, "reduction": "none"}
    losses, gradient = focal(logits, target, gamma, weight, grad_output=upstream, **named)
    assert_near(losses, expected)
    assert_near(gradient, slopes)
    np.testing.assert_array_equal(F.focal_loss(logits, target, gamma, weight, **named), losses)


def test_without_gamma_it_is_the_cross_entropy(level, dtype, rng, loss_and_gradient):
    logits, target = rng.standard_normal((50, 10)).astype(dtype), rng.integers(10, size=50)
    target[::7] = -100
    weight = rng.random(10)
    for ours, theirs in zip(
        focal(logits, target, 0, weight, label_smoothing=0.1),
        loss_and_gradient(logits, target, weight, label_smoothing=0.1),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_mean_divides_as_that_of_cross_entropy(level, dtype, rng):
    logits, target = rng.standard_normal((50, 10)).astype(dtype), rng.integers(10, size=50)
    target[::7] = 3
    weight = rng.random(10).astype(dtype)
    losses = F.focal_loss(logits, target, weight=weight, ignore_index=3, reduction="none")
    counts = target != 3
    assert (losses[~counts] == 0).all()
    expected = losses.sum(dtype=np.float64) / weight[target[counts]].sum(dtype=np.float64)
    np.testing.assert_allclose(F.focal_loss(logits, target, weight=weight, ignore_index=3), expected, 1e-6)


@pytest.mark.parametrize("margin", [20.0, 40.0, 100.0])
def test_easy_samples_keep_their_precision(level, margin):
    # With the rest r of two other classes: log1p(r) * (r / (1 + r))**2, of which 1 - p would leave nothing.
    rest = 2 * np.exp(-margin)
    miss, own = rest / (1 + rest), 1 / (1 + rest)
    loss, gradient = focal(np.array([[margin, 0.0, 0.0]]), [0])
    np.testing.assert_allclose(loss, np.log1p(rest) * miss**2, rtol=1e-14)
    slope = miss**2 * (miss + own * 2 * np.log1p(rest) / miss * miss)
    np.testing.assert_allclose(gradient[0], [-slope, slope / 2, slope / 2], rtol=1e-13)


def test_nothing_is_left_of_a_certain_sample(level, dtype):
    loss, gradient = focal(np.array([[1e4, 0.0]], dtype), [0], label_smoothing=0.1)
    assert loss == 0
    assert (gradient == 0).all()
    loss, gradient = focal(np.array([[0.0, -np.inf]], dtype), [1])
    assert loss == np.inf
    np.testing.assert_array_equal(gradient, [[1, -1]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_but_smoothed(level, gamma, loss_and_gradient):
    logits = np.array([[709.5, 0.0, 0.0]])
    loss, gradient = focal(logits, [0], gamma, label_smoothing=0.1)
    if gamma == 0:
        expected, slopes = loss_and_gradient(logits, [0], label_smoothing=0.1)
        assert loss == expected
        np.testing.assert_array_equal(gradient, slopes)
    else:
        np.testing.assert_allclose(gradient, 0, atol=1e-150)


@pytest.mark.parametrize("gamma", [-1, np.nan, np.inf])
def test_what_gamma_must_be(gamma):
    with pytest.raises(ValueError, match="gamma: must"):
        F.focal_loss(np.zeros((2, 3)), [0, 1], gamma)


def test_class_probabilities_are_refused():
    with pytest.raises(TypeError, match=r"target: a focal loss takes class indices.*argmax\(axis=1\)"):
        F.focal_loss(np.zeros((2, 3)), np.full((2, 3), 1 / 3))


class TestOfYesNoQuestions:
    @pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 2), (0.6, 1.5), (0.5, 0)])
    def test_torchvision_s_formula(self, level, dtype, rng, alpha, gamma):
        logits = (4 * rng.standard_normal((60, 7))).astype(dtype)
        labels = rng.integers(2, size=logits.shape).astype(dtype)
        labels[0] = 0.3

        def formula(x):
            y = double(labels)
            p = torch.sigmoid(x)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
            loss = loss * (1 - (p * y + (1 - p) * (1 - y))) ** gamma
            return (alpha * y + (1 - alpha) * (1 - y)) * loss if alpha >= 0 else loss

        upstream = rng.standard_normal(logits.shape).astype(dtype)
        expected, slopes = values_and_gradient(formula, logits, upstream)
        losses, gradient = cyce.value_and_grad(F.sigmoid_focal_loss)(
            logits, labels, alpha, gamma, grad_output=upstream
        )
        assert_near(losses, expected)
        assert_near(gradient, slopes)
        np.testing.assert_allclose(
            F.sigmoid_focal_loss(logits, labels, alpha, gamma, "mean"), expected.mean(), rtol=1e-6
        )

    def test_easy_samples_keep_their_precision(self, level):
        losses, gradient = cyce.value_and_grad(F.sigmoid_focal_loss)(
            np.array([40.0, -40.0]), [1, 0], alpha=-1
        )
        tail = np.exp(-40.0)
        np.testing.assert_allclose(losses, np.log1p(tail) * (tail / (1 + tail)) ** 2, rtol=1e-14)
        np.testing.assert_allclose(gradient, [-3 * tail**3, 3 * tail**3], rtol=1e-14)

    def test_infinite_logits(self, level, dtype):
        logits = np.array([np.inf, -np.inf, np.inf, np.nan], dtype)
        losses = F.sigmoid_focal_loss(logits, [1, 0, 0, 1], gamma=0.5)
        np.testing.assert_array_equal(losses, [0, 0, np.inf, np.nan])

    @pytest.mark.parametrize("name", ["sigmoid", "logsigmoid"])
    def test_the_logistic_function(self, level, dtype, rng, name):
        logits = (9 * rng.standard_normal((40, 5))).astype(dtype)
        upstream = rng.standard_normal(logits.shape).astype(dtype)
        theirs = {"sigmoid": torch.sigmoid, "logsigmoid": torch.nn.functional.logsigmoid}[name]
        expected, slopes = values_and_gradient(theirs, logits, upstream)
        values, gradient = cyce.value_and_grad(getattr(F, name))(logits, grad_output=upstream)
        assert_near(values, expected)
        assert_near(gradient, slopes)
        # Each to its own size.
        np.testing.assert_allclose(values, expected, rtol=3 * np.finfo(dtype).eps)
        at_ends = getattr(F, name)(np.array([-np.inf, np.inf, np.nan], dtype))
        np.testing.assert_array_equal(
            at_ends, [0 if name == "sigmoid" else -np.inf, name == "sigmoid", np.nan]
        )
