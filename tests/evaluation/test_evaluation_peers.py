"""Evaluations beside torchmetrics, scikit-learn and SciPy."""

import numpy as np
import pytest

import cyce

pytestmark = pytest.mark.integration


@pytest.fixture
def logits(rng):
    return (rng.standard_normal((2000, 7)) * 2).astype(np.float32)


@pytest.fixture
def target(rng, logits):
    return np.where(rng.random(2000) < 0.4, logits.argmax(axis=1), rng.integers(7, size=2000))


def probabilities(logits):
    from scipy.special import softmax

    return softmax(logits.astype(np.float64), axis=1)


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn(logits, target, rng, weighted):
    from sklearn import metrics

    weight = rng.uniform(0.1, 2, 2000) if weighted else None
    result = cyce.evaluate(logits, target, sample_weight=weight, top_k=(1, 2, 3), confusion_matrix=True)
    p = probabilities(logits)
    assert result.loss == pytest.approx(metrics.log_loss(target, p, sample_weight=weight), rel=1e-6)
    accuracy = metrics.accuracy_score(target, p.argmax(axis=1), sample_weight=weight)
    assert result.accuracy == pytest.approx(accuracy, rel=1e-12)
    for k in (2, 3):
        share = metrics.top_k_accuracy_score(target, p, k=k, sample_weight=weight)
        assert result.top_k[k] == pytest.approx(share, rel=1e-12)
    # Of several classes, it can be half of what it was defined as; this is the default.
    brier_score = metrics.brier_score_loss(target, p, sample_weight=weight, scale_by_half=False)
    assert result.brier_score == pytest.approx(brier_score, rel=1e-6)
    matrix = metrics.confusion_matrix(target, p.argmax(axis=1))
    np.testing.assert_array_equal(result.per_class.confusion_matrix, matrix)
    iou = metrics.jaccard_score(target, p.argmax(axis=1), average=None, sample_weight=weight)
    np.testing.assert_allclose(result.per_class.iou, iou)
    recall = metrics.recall_score(target, p.argmax(axis=1), average=None, sample_weight=weight)
    np.testing.assert_allclose(result.per_class.accuracy, recall)


def test_torchmetrics(logits, target):
    import torch
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassCalibrationError,
        MulticlassJaccardIndex,
    )
    from torchmetrics.text import Perplexity

    target[5] = -100
    scores, labels = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(target)
    result = cyce.evaluate(logits, target, top_k=(1, 3))

    perplexity = Perplexity(ignore_index=-100)
    perplexity.update(scores[None], labels[None])
    assert result.perplexity == pytest.approx(float(perplexity.compute()), rel=1e-5)
    for k in (1, 3):
        accuracy = MulticlassAccuracy(7, top_k=k, average="micro", ignore_index=-100)
        assert result.top_k[k] == pytest.approx(float(accuracy(scores, labels)), rel=1e-6)
    for norm, ours in (("l1", result.calibration_error), ("max", result.max_calibration_error)):
        error = MulticlassCalibrationError(7, n_bins=15, norm=norm, ignore_index=-100)
        assert ours == pytest.approx(float(error(scores.softmax(1), labels)), rel=1e-4)
    iou = MulticlassJaccardIndex(7, ignore_index=-100)
    assert result.per_class.mean_iou == pytest.approx(float(iou(scores.argmax(1), labels)), rel=1e-6)


def test_scipy(logits, target, rng):
    from scipy.spatial.distance import jensenshannon
    from scipy.special import rel_entr
    from scipy.stats import entropy

    other = logits + (rng.standard_normal(logits.shape) * 0.5).astype(np.float32)
    p, q = probabilities(logits), probabilities(other)
    result = cyce.divergence(logits, other)
    assert result.kl == pytest.approx(rel_entr(q, p).sum(axis=1).mean(), rel=1e-6)
    assert result.reverse_kl == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-6)
    assert result.js == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-6)
    assert cyce.evaluate(logits, target).entropy == pytest.approx(entropy(p, axis=1).mean(), rel=1e-6)


def test_digits_of_a_real_classifier():
    """The numbers of scikit-learn's own classifier of its digits."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    pixels, digits = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=300, C=0.01).fit(pixels[:900], digits[:900])
    result = cyce.evaluate(model.decision_function(pixels[900:]), digits[900:])
    expected = log_loss(digits[900:], model.predict_proba(pixels[900:]))
    assert result.loss == pytest.approx(expected, rel=1e-9)
    assert result.accuracy == pytest.approx(model.score(pixels[900:], digits[900:]))
