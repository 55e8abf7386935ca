"""`Evaluator` beside the obvious NumPy, and merged in any order."""

import base64
import concurrent.futures
import copy
import pickle
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyce
import cyce.functional as F

VERSION_1 = """
gASVcQcAAAAAAACMGWN5Y2UuZXZhbHVhdGlvbi5ldmFsdWF0b3KUjAlFdmFsdWF0b3KUk5QpgZR9lCiMB3ZlcnNpb26USwGMCHNl
dHRpbmdzlH2UKIwMaWdub3JlX2luZGV4lEqc////jARheGlzlE6MBXRvcF9rlEsBSwWGlIwGbl9iaW5zlEsPjAxjbGFzc193ZWln
aHSUTowLdGVtcGVyYXR1cmWURz/wAAAAAAAAjBBjb25mdXNpb25fbWF0cml4lIl1jARzdW1zlH2UKIwJbl9jbGFzc2VzlEsDjAZ0
b3RhbHOUfZQojAtuX3Bvc2l0aW9uc5R9lCiMBWR0eXBllIwDPGk4lIwFc2hhcGWUKYwFYnl0ZXOUQwgCAAAAAAAAAJR1jAluX2ln
bm9yZWSUfZQoaBeMAzxpOJRoGSloGkMIAAAAAAAAAACUdYwNbmFuX3Bvc2l0aW9uc5R9lChoF4wDPGk4lGgZKWgaQwgAAAAAAAAA
AJR1jAZ3ZWlnaHSUfZQoaBeMAzxmOJRoGSloGkMIAAAAAAAAAECUdYwHY29ycmVjdJR9lChoF4wDPGY4lGgZKWgaQwgAAAAAAADw
P5R1jAdlbnRyb3B5lH2UKGgXjAM8ZjiUaBkpaBpDCBKCe0XsnPU/lHWMCmNvbmZpZGVuY2WUfZQoaBeMAzxmOJRoGSloGkMIFhIz
FM/Q+D+UdYwLYnJpZXJfc2NvcmWUfZQoaBeMAzxmOJRoGSloGkMI2nLsQY3M+j+UdWgKfZQoaBeMAzxmOJRoGUsChZRoGkMQAAAA
AAAA8D8AAAAAAAAAQJR1jApiaW5fY291bnRzlH2UKGgXjAM8aTiUaBlLD4WUaBpDeAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAEAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAJR1jApiaW5fd2VpZ2h0lH2UKGgXjAM8ZjiUaBlLD4WUaBpDeAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA8D8AAAAAAAAA
AAAAAAAAAPA/AAAAAAAAAAAAAAAAAAAAAJR1jA5iaW5fY29uZmlkZW5jZZR9lChoF4wDPGY4lGgZSw+FlGgaQ3gAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAANpubvA6
w+Y/AAAAAAAAAABRtfc3Y97qPwAAAAAAAAAAAAAAAAAAAACUdYwLYmluX2NvcnJlY3SUfZQoaBeMAzxmOJRoGUsPhZRoGkN4AAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAADwPwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAlHWMDGNsYXNzX2NvdW50c5R9lChoF4wDPGk4lGgZSwOF
lGgaQxgBAAAAAAAAAAEAAAAAAAAAAAAAAAAAAACUdYwPY2xhc3NfcHJlZGljdGVklH2UKGgXjAM8aTiUaBlLA4WUaBpDGAEAAAAA
AAAAAAAAAAAAAAABAAAAAAAAAJR1aA19lChoF4wDPGY4lGgZSwOFlGgaQxgAAAAAAADwPwAAAAAAAPA/AAAAAAAAAACUdYwWY2xh
c3NfcHJlZGljdGVkX3dlaWdodJR9lChoF4wDPGY4lGgZSwOFlGgaQxgAAAAAAADwPwAAAAAAAAAAAAAAAAAA8D+UdYwKY2xhc3Nf
bG9zc5R9lChoF4wDPGY4lGgZSwOFlGgaQxjBvNUuqMzVPyNN2zVWzANAAAAAAAAAAACUdYwNY2xhc3NfY29ycmVjdJR9lChoF4wD
PGY4lGgZSwOFlGgaQxgAAAAAAADwPwAAAAAAAAAAAAAAAAAAAACUdXWMF25lZ2F0aXZlX2xvZ19saWtlbGlob29klH2UKIwJZGV2
aWF0aW9ulEcAAAAAAAAAAIwEbWVhbpRHP/aF6zu2BLuMAW6USwKMDXNxdWFyZV93ZWlnaHSURz/gAAAAAAAAjAl2YXJpYXRpb26U
Rz/iN/CBydW2aCRLAnWMDXdlaWdodGVkX2xvc3OUTowObG9zc19xdWFudGlsZXOUfZQojAdidWNrZXRzlH2UKGgXjAM8aTiUaBlL
AoWUaBpDEK6+AAAAAAAAHsAAAAAAAACUdYwHd2VpZ2h0c5R9lChoF4wDPGY4lGgZSwKFlGgaQxAAAAAAAADwPwAAAAAAAPA/lHWM
Bmxvd2VzdJRHP9XMqC7VvMGMB2hpZ2hlc3SUR0ADzFY1200jdXV1Yi4=
"""


def obvious(logits, target, weight=None, class_weight=None, top_k=(1, 5), n_bins=15):
    """Statistics of positions that all count, in float64; logits (N, C)."""
    x = logits.astype(np.float64)
    n, n_classes = x.shape
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    weight = np.ones(n) if weight is None else weight
    loss = -np.log(p[np.arange(n), target])
    u = weight if class_weight is None else weight * class_weight[target]
    mean, nll = np.average(loss, weights=u), np.average(loss, weights=weight)
    order = np.argsort(-x, axis=1, kind="stable")
    rank = (order == target[:, None]).argmax(axis=1)
    confidence, correct = p.max(axis=1).astype(logits.dtype), rank == 0
    bins = np.ceil(confidence.astype(float) * n_bins).astype(int).clip(1, n_bins) - 1
    inside = [bins == b for b in range(n_bins)]
    gaps = [
        abs(np.average(correct[b], weights=weight[b]) - np.average(confidence[b], weights=weight[b]))
        if b.any()
        else 0
        for b in inside
    ]

    def error(mean, u):
        return np.sqrt(np.sum((u * (loss - mean)) ** 2) * n / (n - 1)) / u.sum()

    return {
        "n_positions": n,
        "loss": mean,
        "loss_standard_error": error(mean, u),
        "perplexity": np.exp(nll),
        "perplexity_standard_error": np.exp(nll) * error(nll, weight),
        "bits_per_position": nll / np.log(2),
        "accuracy": np.average(correct, weights=weight),
        "entropy": np.average(-(p * np.log(p)).sum(axis=1), weights=weight),
        "confidence": np.average(confidence, weights=weight),
        "brier_score": np.average(((p - np.eye(n_classes)[target]) ** 2).sum(axis=1), weights=weight),
        "calibration_error": sum(weight[b].sum() * gap for b, gap in zip(inside, gaps, strict=True))
        / weight.sum(),
        "max_calibration_error": max(gaps),
        "top_k": {k: np.average(rank < k, weights=weight) for k in top_k},
        "bin_counts": [int(b.sum()) for b in inside],
        "losses": loss,
        "prediction": order[:, 0],
    }


def make(rng, n=500, n_classes=10, dtype=np.float32):
    """Logits, targets of which half are predicted right."""
    logits = (rng.standard_normal((n, n_classes)) * 3).astype(dtype)
    target = np.where(rng.random(n) < 0.5, logits.argmax(axis=1), rng.integers(n_classes, size=n))
    return logits, target


def assert_is(result, expected, rel):
    """Assert that an evaluation has the expected numbers."""
    for name, value in expected.items():
        if hasattr(result, name):
            assert getattr(result, name) == pytest.approx(value, rel=rel, abs=1e-12), name


class TestStatistics:
    @pytest.mark.parametrize("n_classes", [2, 10, 300])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_beside_numpy(self, dtype, rng, weighted, n_classes):
        logits, target = make(rng, n_classes=n_classes, dtype=dtype)
        weight = rng.uniform(0.1, 2, len(target)) if weighted else None
        class_weight = rng.uniform(0.5, 2, n_classes) if weighted else None
        evaluator = cyce.Evaluator(top_k=(1, 2, 7), n_bins=12, class_weight=class_weight)
        result = evaluator.update(logits, target, weight).compute()
        expected = obvious(logits, target, weight, class_weight, (1, 2, 7), 12)
        assert_is(result, expected, 3e-6 if dtype == np.float32 else 1e-12)
        assert result.reliability.counts.tolist() == expected["bin_counts"]
        assert result.n_ignored == result.nan_positions == 0

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    def test_half_precision(self, rng, dtype):
        logits, target = make(rng, dtype=dtype)
        result = cyce.Evaluator().update(logits, target).compute()
        assert_is(result, obvious(logits.astype(np.float32), target), 3e-6)

    def test_classes(self, rng):
        logits, target = make(rng, n_classes=4)
        target[target == 3] = 0
        logits[:, 1] = -50
        result = cyce.Evaluator(confusion_matrix=True).update(logits, target).compute()
        expected = obvious(logits, target)
        classes, prediction = result.per_class, expected["prediction"]
        matrix = np.array([[np.sum((target == i) & (prediction == j)) for j in range(4)] for i in range(4)])
        np.testing.assert_array_equal(classes.confusion_matrix, matrix)
        np.testing.assert_array_equal(classes.counts, matrix.sum(axis=1))
        np.testing.assert_array_equal(classes.n_predicted, matrix.sum(axis=0))
        hits = np.diag(matrix)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(classes.accuracy, hits / matrix.sum(axis=1))
        iou = hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)
        np.testing.assert_array_equal(classes.iou, iou)
        assert classes.mean_iou == pytest.approx(iou.mean())
        assert np.isnan(classes.loss[3])
        for c in range(3):
            assert classes.loss[c] == pytest.approx(expected["losses"][target == c].mean(), rel=1e-6)

    def test_quantiles(self, rng):
        logits, target = make(rng, n=3000)
        result = cyce.Evaluator().update(logits, target).compute()
        losses = obvious(logits, target)["losses"]
        for share, quantile in result.loss_quantiles.items():
            exact = np.quantile(losses, share, method="inverted_cdf")
            tolerance = 1e-6 if share in (0, 1) else 2.0**-8 + 1e-6
            assert quantile == pytest.approx(exact, rel=tolerance), share
        edges, weight = result.loss_histogram.edges, result.loss_histogram.weight
        np.testing.assert_array_equal(weight, np.histogram(losses.astype(np.float32), edges)[0])

    def test_ignored_positions_are_as_if_not_there(self, rng):
        logits, target = make(rng)
        weight = rng.uniform(0.1, 2, len(target))
        ignored = rng.random(len(target)) < 0.3
        without = cyce.Evaluator().update(logits[~ignored], target[~ignored], weight[~ignored]).compute()
        logits[ignored] = np.nan
        by_index = np.where(ignored, -7, target)
        by_weight = np.where(ignored, 0, weight)
        for evaluator in (
            cyce.Evaluator(ignore_index=-7).update(logits, by_index, weight),
            cyce.Evaluator().update(logits, target, by_weight),
        ):
            result = evaluator.compute()
            assert result.n_ignored == np.count_nonzero(ignored)
            assert result.n_positions == without.n_positions
            assert_is(result, {name: getattr(without, name) for name in ("loss", "entropy", "top_k")}, 1e-12)
            assert result.loss_quantiles == pytest.approx(without.loss_quantiles)

    def test_images_and_the_axis(self, rng):
        logits = rng.standard_normal((2, 5, 7, 6)).astype(np.float32)
        target = rng.integers(5, size=(2, 7, 6))
        flat = np.moveaxis(logits, 1, -1).reshape(-1, 5)
        expected = cyce.Evaluator().update(flat, target.ravel()).compute()
        for axis in (1, 3, 0):
            moved = np.moveaxis(logits, 1, axis)
            result = cyce.Evaluator(axis=axis if axis != 1 else None).update(moved, target).compute()
            assert result.loss == pytest.approx(expected.loss, rel=1e-7)
            assert result.per_class.counts.tolist() == expected.per_class.counts.tolist()
        one = cyce.Evaluator().update(logits[0, :, 0, 0], target[0, 0, 0]).compute()
        assert one.n_positions == 1
        assert np.isnan(one.loss_standard_error)

    def test_temperature(self, rng):
        logits, target = make(rng)
        result = cyce.Evaluator(temperature=2.5).update(logits, target).compute()
        assert_is(result, obvious(logits / np.float32(2.5), target), 3e-6)
        assert result.temperature == 2.5

    def test_nan_is_not_hidden(self, rng):
        logits, target = make(rng)
        logits[3, 2], logits[4, 1] = np.nan, np.inf
        result = cyce.Evaluator().update(logits, target).compute()
        assert result.nan_positions == 2
        assert result.n_positions == len(target)
        for name in ("loss", "perplexity", "entropy", "calibration_error", "brier_score", "confidence"):
            assert np.isnan(getattr(result, name)), name
        assert result.accuracy > 0
        assert result.loss_quantiles[1] > 0
        assert "2 positions" in str(result)

    def test_nothing_seen(self):
        result = cyce.Evaluator(top_k=()).compute()
        assert result.n_positions == 0
        assert np.isnan([result.loss, result.perplexity, result.accuracy, result.per_class.mean_iou]).all()
        assert result.top_k == {}
        assert str(result)
        nothing = cyce.Evaluator().update(np.zeros((0, 3)), np.zeros(0, int)).compute()
        assert nothing.n_positions == 0

    def test_infinite_losses(self):
        logits = [[0.0, -np.inf], [0.0, 1.0]]
        result = cyce.Evaluator().update(logits, [1, 1]).compute()
        assert result.loss == result.perplexity == result.loss_quantiles[1] == np.inf
        assert result.nan_positions == 0

    def test_many_pieces_of_few_positions_are_as_few_of_many(self, rng, monkeypatch):
        logits, target = make(rng, n=300, n_classes=40)
        weight = rng.uniform(0.1, 2, 300)
        whole = cyce.Evaluator(confusion_matrix=True).update(logits, target, weight).compute()
        monkeypatch.setattr("cyce.evaluation.sources.PIECE_POSITIONS", 7)
        pieces = cyce.Evaluator(confusion_matrix=True).update(logits, target, weight).compute()
        assert_is(pieces, {name: getattr(whole, name) for name in ("loss", "loss_standard_error")}, 1e-12)
        np.testing.assert_array_equal(pieces.per_class.confusion_matrix, whole.per_class.confusion_matrix)


class TestMerging:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), n_parts=st.integers(1, 8), weighted=st.booleans())
    def test_random_trees_of_random_pieces(self, seed, n_parts, weighted):
        rng = np.random.default_rng(seed)
        logits, target = make(rng, n=60, n_classes=6)
        target[rng.random(60) < 0.2] = -100
        weight = rng.uniform(0, 2, 60) if weighted else None
        options = {"class_weight": np.arange(1, 7) if weighted else None, "confusion_matrix": True}
        whole = cyce.Evaluator(**options).update(logits, target, weight).compute()
        cuts = np.sort(rng.integers(0, 61, n_parts - 1))
        order = rng.permutation(n_parts)
        parts = [np.split(np.arange(60), cuts)[i] for i in order]
        forest = [
            cyce.Evaluator(**options).update(logits[i], target[i], None if weight is None else weight[i])
            for i in parts
        ]
        while len(forest) > 1:
            a = forest.pop(rng.integers(len(forest)))
            forest[rng.integers(len(forest))].merge(a)
        result = forest[0].compute()
        exact = ("n_positions", "n_ignored", "loss_quantiles")
        for name in exact if weight is None else exact[:2]:
            assert getattr(result, name) == getattr(whole, name), name
        np.testing.assert_array_equal(result.per_class.confusion_matrix, whole.per_class.confusion_matrix)
        assert_is(
            result,
            {name: getattr(whole, name) for name in obvious(logits, target.clip(0)) if hasattr(whole, name)},
            1e-12,
        )

    def test_standard_errors_do_not_cancel(self):
        # Losses near 1000 that differ by 1e-4.
        logits = np.zeros((1000, 2))
        logits[:, 0] = 1000 + 1e-4 * (np.arange(1000) % 2)
        whole = cyce.Evaluator().update(logits, np.ones(1000, int))
        parts = cyce.Evaluator()
        for i in range(0, 1000, 10):
            parts.merge(cyce.Evaluator().update(logits[i : i + 10], np.ones(10, int)))
        expected = np.std(logits[:, 0], ddof=1) / np.sqrt(1000)
        for evaluator in (whole, parts):
            assert evaluator.compute().loss_standard_error == pytest.approx(expected, rel=1e-6)

    def test_merge_returns_and_changes_the_evaluator(self, rng):
        logits, target = make(rng)
        a, b = cyce.Evaluator().update(logits, target), cyce.Evaluator().update(logits[:9], target[:9])
        before = b.compute().to_dict()
        assert a.merge(b) is a
        assert a.compute().n_positions == 509
        assert str(b.compute().to_dict()) == str(before)
        # neither shares memory with the other
        a.update(logits, target)
        assert str(b.compute().to_dict()) == str(before)
        assert a.merge(cyce.Evaluator()).compute().n_positions == 1009
        empty = cyce.Evaluator().merge(b)
        empty.update(logits, target)
        assert str(b.compute().to_dict()) == str(before)
        assert a.reset() is a
        assert a.compute().n_positions == 0
        a.update(logits[:, :3], target % 3)

    def test_merge_of_what_does_not_fit(self, rng):
        logits, target = make(rng)
        evaluator = cyce.Evaluator().update(logits, target)
        with pytest.raises(ValueError, match="same n_bins, temperature as"):
            evaluator.merge(cyce.Evaluator(n_bins=3, temperature=2))
        with pytest.raises(ValueError, match="same class_weight"):
            evaluator.merge(cyce.Evaluator(class_weight=np.ones(10)))
        with pytest.raises(ValueError, match="seen 10 classes, as this evaluator, got 3"):
            evaluator.merge(cyce.Evaluator().update(logits[:, :3], target % 3))
        with pytest.raises(TypeError, match=r"must be a cyce\.Evaluator, got int"):
            evaluator.merge(3)
        assert evaluator.compute().n_positions == 500

    def test_copies_share_nothing(self, rng):
        logits, target = make(rng)
        evaluator = cyce.Evaluator(confusion_matrix=True).update(logits, target)
        before = str(evaluator.compute().to_dict())
        for duplicate in (copy.copy, copy.deepcopy):
            duplicate(evaluator).update(logits, target).merge(evaluator)
            assert str(evaluator.compute().to_dict()) == before

    @pytest.mark.thread_unsafe
    def test_threads(self, rng):
        logits, target = make(rng)
        evaluator = cyce.Evaluator()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: evaluator.update(logits, target), range(60)))
        finally:
            sys.setswitchinterval(interval)
        result = evaluator.compute()
        assert result.n_positions == 60 * 500
        assert result.loss == pytest.approx(obvious(logits, target)["loss"], rel=1e-6)
        assert result.per_class.counts.sum() == 60 * 500

    @pytest.mark.parametrize("scale", [1e-99, 1e-50, 1e50, 1e99])
    def test_the_scale_of_weights_does_not_matter(self, rng, scale):
        logits, target = make(rng)
        weight = rng.uniform(0.1, 2, 500)
        expected = cyce.Evaluator().update(logits, target, weight).compute()
        parts = [cyce.Evaluator().update(logits[i::2], target[i::2], weight[i::2] * scale) for i in (0, 1)]
        result = parts[0].merge(parts[1]).compute()
        for name in ("loss", "loss_standard_error", "accuracy", "calibration_error"):
            assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-9), name

    @pytest.mark.integration
    @pytest.mark.thread_unsafe
    def test_a_large_confusion_matrix_is_not_copied(self):
        evaluator = cyce.Evaluator(confusion_matrix=True).update(np.zeros((1, 5000), np.float32), [3])
        tracemalloc.start()
        try:
            for _ in range(3):
                evaluator.update(np.zeros((1, 5000), np.float32), [3])
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The matrix has 200 MB.
        assert most < 5e6
        other = copy.copy(evaluator)
        merged = cyce.Evaluator(confusion_matrix=True).merge(evaluator).merge(other)
        for each, n in ((evaluator, 4), (other, 4), (merged, 8)):
            assert each.compute().per_class.confusion_matrix[3, 0] == n

    def test_evaluators_of_other_axes_merge(self, rng):
        logits, target = make(rng)
        a, b = cyce.Evaluator(axis=-1), cyce.Evaluator(axis=0)
        result = a.update(logits, target).merge(b.update(logits.T, target)).compute()
        assert result.n_positions == 1000

    def test_an_interrupted_update_changes_nothing(self, rng, monkeypatch):
        logits, target = make(rng)
        evaluator = cyce.Evaluator().update(logits, target)
        before = str(evaluator.compute().to_dict())

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("cyce.evaluation.evaluator.Sums._add_to_bins", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluator.update(logits, target)
        assert str(evaluator.compute().to_dict()) == before

    def test_pickles(self, rng):
        logits, target = make(rng)
        evaluator = cyce.Evaluator(class_weight=np.arange(10), confusion_matrix=True).update(logits, target)
        other = pickle.loads(pickle.dumps(evaluator))
        assert str(other.compute().to_dict()) == str(evaluator.compute().to_dict())
        other.update(logits, target).merge(evaluator)
        assert other.compute().n_positions == 1500
        again = pickle.loads(pickle.dumps(other)).update(logits, target).merge(other)
        assert again.compute().n_positions == 3500
        assert other.compute().n_positions == 1500
        # Other versions of NumPy have other modules.
        assert b"numpy" not in pickle.dumps(other)
        # Few losses, small pickle.
        assert len(pickle.dumps(cyce.Evaluator().update(logits, target))) < 10_000
        state = evaluator.__getstate__()
        with pytest.raises(ValueError, match=r"later version of cyce \(format 99"):
            cyce.Evaluator().__setstate__({**state, "version": 99})

    def test_a_pickle_of_version_1(self):
        evaluator = pickle.loads(base64.b64decode(VERSION_1))
        result = evaluator.update([[2.0, 0.5, 0.3]], [0]).compute()
        assert result.n_positions == 3
        expected = F.cross_entropy([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [2.0, 0.5, 0.3]], [0, 1, 0])
        assert result.loss == pytest.approx(float(expected))


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"top_k": 5}, TypeError, "top_k: must be a sequence of integers"),
            ({"top_k": (0, 1)}, ValueError, "top_k: must be at least 1, got 0"),
            ({"n_bins": 0}, ValueError, "n_bins: must be from 1 to 1000, got 0"),
            ({"n_bins": 2.5}, TypeError, "n_bins: must be an integer"),
            ({"class_weight": [[1.0]]}, ValueError, "class_weight: must be one real number for each class"),
            (
                {"class_weight": [1, -1]},
                ValueError,
                r"class_weight: must be 0, or from 1e-100 to .*, got -1.0 at \[1\]",
            ),
            ({"class_weight": "balanced"}, ValueError, "class_weight: must be one real number"),
            ({"temperature": 0}, ValueError, "temperature: must be a positive, finite number"),
            ({"temperature": "fit"}, TypeError, "temperature: must be a number"),
            ({"axis": 1.5}, TypeError, "axis: must be an integer"),
            ({"ignore_index": None}, TypeError, "ignore_index: must be an integer"),
            ({"confusion_matrix": "yes"}, TypeError, "confusion_matrix: must be True or False"),
        ],
    )
    def test_bad_settings(self, arguments, error, message):
        with pytest.raises(error, match=message):
            cyce.Evaluator(**arguments)

    @pytest.mark.parametrize(
        ("logits", "target", "weight", "error", "message"),
        [
            ([[1, 2]], [0], None, TypeError, "logits: logits must be floating point, got int64; cast them"),
            ([[1.0, 2.0]], [2], None, IndexError, r"Target 2 is out of bounds. target\[0\] must be a class"),
            ([[1.0, 2.0]], [0.5], None, TypeError, "target must be integer class indices"),
            ([[1.0, 2.0]], [0, 1], None, ValueError, r"must have shape \[1\]; got \[2\]"),
            ([[1.0, 2.0]], [0], [1, 2], ValueError, "sample_weight: must have one number for each position"),
            (
                [[1.0, 2.0, 3.0]],
                [0],
                None,
                ValueError,
                "logits: must have 2 classes at axis 1, as those before",
            ),
        ],
    )
    def test_bad_pieces_change_nothing(self, logits, target, weight, error, message):
        evaluator = cyce.Evaluator().update([[1.0, 2.0]], [1])
        before = evaluator.compute().to_dict()
        with pytest.raises(error, match=message):
            evaluator.update(logits, target, weight)
        assert str(evaluator.compute().to_dict()) == str(before)

    def test_positions_are_named_where_they_are(self, monkeypatch):
        monkeypatch.setattr("cyce.evaluation.sources.PIECE_POSITIONS", 4)
        target = np.zeros((9, 3), int)
        target[7, 2] = 5
        with pytest.raises(
            IndexError, match=r"target\[7, 2\] must be a class index from 0 to 1 or ignore_index"
        ):
            cyce.Evaluator().update(np.zeros((9, 2, 3)), target)

    def test_class_weights_that_do_not_fit(self):
        with pytest.raises(
            ValueError, match="class_weight: has 3 numbers, must have one for each of 2 classes"
        ):
            cyce.Evaluator(class_weight=[1, 2, 3]).update([[1.0, 2.0]], [1])

    def test_too_many_classes_for_a_matrix(self):
        evaluator = cyce.Evaluator(confusion_matrix=True)
        with pytest.raises(ValueError, match=r"of 128256 classes would need 131\.6 GB"):
            evaluator.update(np.zeros((1, 128256), np.float32), [0])


class TestRecord:
    def test_it_is_frozen(self):
        result = cyce.Evaluator().compute()
        with pytest.raises(AttributeError):
            result.loss = 0

    def test_dict_has_pythons_own_types(self, rng):
        logits, target = make(rng)
        result = cyce.Evaluator(confusion_matrix=True).update(logits, target).compute()

        def check(value):
            if isinstance(value, dict):
                assert all(type(key) is str for key in value)
                return [check(item) for item in value.values()]
            if isinstance(value, list):
                return [check(item) for item in value]
            assert type(value) in (int, float, bool, type(None)), value
            return None

        plain = result.to_dict()
        check(plain)
        assert plain["loss"] == result.loss
        assert plain["top_k"]["5"] == result.top_k[5]
        assert len(plain["per_class"]["confusion_matrix"]) == 10
        assert cyce.Evaluator().update(np.zeros((1, 1001)), [0]).compute().to_dict()["per_class"] is None

    def test_tables(self, rng):
        logits, target = make(rng)
        result = cyce.Evaluator(temperature=2).update(logits, target).compute()
        lines = str(result).splitlines()
        assert lines[0].split() == ["positions", "500"]
        assert any(line.startswith("top-5 accuracy") for line in lines)
        html = result._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == len(lines)
