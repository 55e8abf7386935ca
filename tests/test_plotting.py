"""The artists that cyce.plotting draws."""

import sys

import matplotlib as mpl
import numpy as np
import pytest

import cyce.functional as F
from cyce import plotting

mpl.use("agg")

from matplotlib import pyplot


@pytest.fixture(autouse=True)
def no_figures_left():
    """Close what a test has drawn."""
    yield
    pyplot.close("all")


def heights(container):
    return [bar.get_height() for bar in container]


def centres(container):
    return np.array([bar.get_x() + bar.get_width() / 2 for bar in container])


class TestProbabilities:
    @pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 11, 25])
    def test_bars(self, n_classes, dtype, rng):
        logits = rng.standard_normal((4, n_classes)).astype(dtype)
        ax = plotting.probabilities(logits)
        expected = F.softmax(logits, dim=1)
        assert len(ax.containers) == n_classes
        for number, container in enumerate(ax.containers):
            np.testing.assert_array_equal(heights(container), expected[:, number])
            assert np.all(np.abs(centres(container) - np.arange(4)) < 0.5)
        colours = {container[0].get_facecolor() for container in ax.containers}
        assert len(colours) == n_classes
        assert not ax.lines
        assert ax.get_xlabel() == "sample"
        assert ax.get_ylabel() == "probability"
        ax.figure.draw_without_rendering()

    @pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)], ids=str)
    def test_the_true_class_is_marked(self, shape, rng):
        logits = rng.standard_normal(shape)
        target = rng.integers(3, size=shape[:-1])
        ax = plotting.probabilities(logits, target)
        (marks,) = ax.lines
        assert marks.get_label() == "true class"
        for sample, (x, y) in enumerate(zip(*marks.get_data(), strict=True)):
            bar = ax.containers[np.ravel(target)[sample]][sample]
            assert x == pytest.approx(bar.get_x() + bar.get_width() / 2)
            assert 0 < y - bar.get_height() < 0.1

    def test_a_sample_that_is_left_out(self, rng):
        (marks,) = plotting.probabilities(rng.standard_normal((3, 2)), [0, -100, 1]).lines
        np.testing.assert_array_equal(np.round(marks.get_xdata()), [0, 2])

    def test_many_samples(self, rng):
        ax = plotting.probabilities(rng.standard_normal((300, 2)))
        assert len(ax.get_xticks()) < 30

    def test_names(self, rng):
        ax = plotting.probabilities(rng.standard_normal((2, 3)), [0, 1], ["cat", "dog", "owl"])
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert sorted(texts) == ["cat", "dog", "owl", "true class"]
        ax = plotting.probabilities(rng.standard_normal((2, 3)))
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2"]
        assert plotting.probabilities(np.zeros((2, 50))).get_legend() is None

    def test_given_axes(self, rng):
        _, axes = pyplot.subplots(1, 2)
        assert plotting.probabilities(rng.standard_normal((2, 3)), ax=axes[1]) is axes[1]
        assert not axes[0].containers
        assert len(pyplot.get_fignums()) == 1

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((np.zeros((2, 3, 4)),), ValueError, r"logits: must have shape \(C,\) or \(N, C\)"),
            ((np.zeros((2, 3), int),), TypeError, "logits: logits must be floating point"),
            ((1.0,), ValueError, "logits: logits need at least one dimension"),
            ((np.zeros((0, 3)),), ValueError, "logits: must have at least one sample and one class"),
            ((np.zeros((2, 0)),), ValueError, "logits: must have at least one sample and one class"),
            ((np.zeros((2, 3)), [0]), ValueError, "target"),
            ((np.zeros((2, 3)), [0.0, 1.0]), TypeError, "target"),
            ((np.zeros((2, 3)), [0, 3]), IndexError, r"target\[1\] must be a class index from 0 to 2"),
            ((np.zeros((2, 3)), [0, -1]), IndexError, "Target -1 is out of bounds"),
            ((np.array([[np.nan, 0]]),), ValueError, "logits: a maximum is NaN or infinite"),
            ((np.zeros((2, 3)), None, None, 3), TypeError, "ax: must be matplotlib Axes, got int"),
            ((np.zeros((2, 3)), None, 5), TypeError, "class_names: must be a sequence of str, got int"),
            ((np.zeros((2, 3)), None, ["a", "b"]), ValueError, "class_names: must have one name for each"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            plotting.probabilities(*arguments)
        assert not pyplot.get_fignums()


def calibration_by_hand(logits, target, n_bins):
    """Return (accuracy, mean confidence, count) of each bin that is not empty, by its number."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    bins = {}
    for row, true in zip(probabilities, target, strict=True):
        number = min(max(int(np.ceil(row.max() * n_bins)) - 1, 0), n_bins - 1)
        bins.setdefault(number, []).append((row.argmax() == true, row.max()))
    return {number: (*np.mean(pairs, axis=0), len(pairs)) for number, pairs in sorted(bins.items())}


class TestReliabilityDiagram:
    @pytest.mark.parametrize("n_bins", [1, 2, 10, 15])
    def test_bars(self, n_bins, rng):
        logits = rng.standard_normal((500, 4)) * 2
        target = rng.integers(4, size=500)
        ax = plotting.reliability_diagram(logits, target, n_bins)
        expected = calibration_by_hand(logits, target, n_bins)
        accuracies, gaps = ax.containers
        assert [bar.get_x() for bar in accuracies] == pytest.approx([number / n_bins for number in expected])
        assert all(bar.get_width() == pytest.approx(1 / n_bins) for bar in (*accuracies, *gaps))
        assert heights(accuracies) == pytest.approx([accuracy for accuracy, *_ in expected.values()])
        assert heights(gaps) == pytest.approx([c - a for a, c, _ in expected.values()])
        error = sum(n * abs(a - c) for a, c, n in expected.values()) / 500
        assert ax.get_title() == f"expected calibration error {error:.4f}"
        (diagonal,) = ax.lines
        np.testing.assert_array_equal(diagonal.get_data(), [[0, 1], [0, 1]])

    def test_how_many_there_are(self, rng):
        logits = rng.standard_normal((500, 4)) * 3
        target = rng.integers(4, size=500)
        target[:100] = -100
        axes = plotting.reliability_diagram(logits, target, n_bins=5)
        (below,) = axes.child_axes
        (bars,) = below.containers
        confidence = np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)
        counts = np.histogram(confidence[100:], np.linspace(0, 1, 6))[0]
        np.testing.assert_array_equal([bar.get_height() for bar in bars], counts)
        np.testing.assert_allclose([bar.get_x() for bar in bars], np.arange(5) / 5)
        assert below.get_xlabel() == "confidence"

    def test_left_out_positions(self, rng):
        logits = rng.standard_normal((20, 3))
        target = rng.integers(3, size=20)
        kept = plotting.reliability_diagram(logits[:15], target[:15]).get_title()
        target[15:] = -100
        logits[15:] = np.nan
        assert plotting.reliability_diagram(logits, target).get_title() == kept

    def test_images(self, rng):
        logits = rng.standard_normal((2, 3, 4, 5))
        target = rng.integers(3, size=(2, 4, 5))
        flat = np.moveaxis(logits, 1, -1).reshape(-1, 3)
        expected = plotting.reliability_diagram(flat, target.ravel()).get_title()
        assert plotting.reliability_diagram(logits, target).get_title() == expected

    @pytest.mark.parametrize("n_classes", range(2, 21))
    def test_bins_have_their_upper_edges(self, n_classes, dtype):
        # the confidence of constant logits is an edge
        ax = plotting.reliability_diagram(np.zeros((2, n_classes), dtype), [0, 0], n_bins=n_classes)
        assert [bar.get_x() for bar in ax.containers[0]] == [0]

    def test_certainty_belongs_to_the_last_bin(self):
        ax = plotting.reliability_diagram([[1000.0, 0.0], [0.0, 1000.0]], [0, 0], n_bins=4)
        assert [bar.get_x() for bar in ax.containers[0]] == [0.75]
        assert heights(ax.containers[0]) == [0.5]
        assert ax.get_title() == "expected calibration error 0.5000"

    def test_given_axes(self):
        _, axes = pyplot.subplots(1, 2)
        assert plotting.reliability_diagram([[1.0, 2.0]], [0], ax=axes[0]) is axes[0]
        assert len(pyplot.get_fignums()) == 1

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([[1.0, 2.0]], [0], 0), ValueError, "n_bins: must be from 1 to 1000, got 0"),
            (([[1.0, 2.0]], [0], 10**8), ValueError, "n_bins: must be from 1 to 1000, got 100000000"),
            (([[1.0, 2.0]], [0], 1.5), TypeError, "n_bins: must be an integer, got float"),
            (([[1, 2]], [0]), TypeError, "logits: logits must be floating point"),
            (([[1.0, 2.0]], [2]), IndexError, "Target 2 is out of bounds"),
            (([[1.0, 2.0]], [0, 1]), ValueError, "target"),
            (([[1.0, 2.0]], [-100]), ValueError, "target: must have at least one position"),
            (([[1.0, np.nan]], [0]), ValueError, "logits: a maximum is NaN or infinite"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            plotting.reliability_diagram(*arguments)
        assert not pyplot.get_fignums()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (plotting.probabilities, plotting.reliability_diagram):
        with pytest.raises(ModuleNotFoundError, match=r"python -m pip install 'cyce\[plot\]'"):
            draw([[1.0, 2.0]], [0])
