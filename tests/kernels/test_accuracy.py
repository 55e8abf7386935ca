"""The accuracy that docs/accuracy.md promises, at every level, against long double.

`accuracy_table` has the bounds and a grid of ordinary and confident rows. Here are rows that a grid does not
have, and a search.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import accuracy_table
import cyce.functional as F
import oracle
from platforms import LEVELS
from stages import one_in

pytestmark = pytest.mark.slow


def check(loss_and_gradient, logits, target):
    """Assert the bounds of the loss and of the gradient for class indices."""
    losses, gradients = loss_and_gradient(logits, target, reduction="none")
    exact = oracle.per_position(logits, target)
    at_target = np.arange(logits.shape[1]) == target[:, None]
    large = exact.losses >= 0.1
    others = ~at_target & (exact.gradients > 1e-12)
    column = {4: 0, 8: 1}[logits.dtype.itemsize]
    for name, values, exact_values, where in (
        ("loss of 0.1 or more", losses, exact.losses, large),
        ("loss from 1e-36 to 0.1", losses, exact.losses, ~large),
        ("gradient at the target", gradients, exact.gradients, at_target),
        ("other gradients above 1e-12", gradients, exact.gradients, others),
    ):
        error = accuracy_table.ulps(values, exact_values, where)
        assert error <= accuracy_table.BOUNDS[f"cross_entropy, {name}"][column], name


@pytest.mark.parametrize("margin", [2.15, 9.16, 20.0, 95.0])
@pytest.mark.parametrize("n_classes", one_in(2, [2, 3, 17, 100, 1000, 262144, 9000]))
def test_equal_rivals(level, dtype, loss_and_gradient, n_classes, margin):
    # All rivals round alike: no error averages out.
    rivals = -np.linspace(0.011, 0.93, 40)
    logits = np.repeat(rivals[:, None], n_classes, axis=1).astype(dtype)[: max(1, 500_000 // n_classes)]
    logits[:, n_classes // 2] = margin
    check(loss_and_gradient, logits, np.full(len(logits), n_classes // 2))


@pytest.mark.parametrize("axis_last", [False, True])
def test_strided_classes_are_as_accurate(level, dtype, rng, loss_and_gradient, axis_last):
    logits = (rng.standard_normal((300, 150)) * 10).astype(dtype)
    if not axis_last:
        logits = np.asfortranarray(logits)
    check(loss_and_gradient, logits, rng.integers(150, size=300))


def test_a_confident_row_keeps_its_loss(level, loss_and_gradient):
    losses, gradients = loss_and_gradient(np.float32([[20, 0, 0]]), [0], reduction="none")
    # 2 * exp(-20), and its gradient is the same number with the other sign
    np.testing.assert_allclose(losses, [4.1223072e-09], rtol=1e-7)
    np.testing.assert_allclose(gradients, [[-4.1223072e-09, 2.0611536e-09, 2.0611536e-09]], rtol=1e-7)


def test_equal_large_logits_give_the_logarithm_of_two(level, dtype, loss_and_gradient):
    loss, gradient = loss_and_gradient(np.full((1, 2), 1e8, dtype), [0])
    assert loss == dtype.type(np.log(2))
    np.testing.assert_array_equal(gradient, [[-0.5, 0.5]])


def test_what_was_beyond_2_ulp(level, loss_and_gradient):
    # An exponential, its logarithm and the merge each rounded the same way.
    row = [
        [
            float.fromhex(x)
            for x in ("0x1.382def641f780p+13", "0x1.38a064a2ae96ep+13", "0x1.38a3ed836a9c2p+13")
        ]
    ]
    (loss,), _ = loss_and_gradient(np.array(row), [2], reduction="none")
    exact = oracle.per_position(np.array(row), [2]).losses[0]
    assert abs(loss - exact) <= np.spacing(float(exact))


@pytest.mark.integration
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_search_for_losses_beyond_their_bounds(level, dtype, layout):
    # With CYCE_FUZZ=100 some 20 million rows of each dtype.
    n_draws = 20 * int(os.environ.get("CYCE_FUZZ", "1"))
    for quantity, _, error in accuracy_table.search(F.cross_entropy, dtype, layout, n_draws):
        assert error <= accuracy_table.BOUNDS[quantity][{4: 0, 8: 1}[dtype.itemsize]]


class TestGradientAtTheMaximum:
    @pytest.mark.parametrize("n_classes", [2, 10, 100, 32_000])
    def test_of_class_probabilities(self, level, dtype, rng, loss_and_gradient, n_classes):
        # Where softmax is small, 1 - softmax has none of its digits; where it is nearly 1, softmax has none
        # of those of 1 - softmax.
        n_rows = max(4, 20_000 // n_classes)
        for margin in (0, 3, 20, 60):
            logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
            at_max = logits.argmax(axis=1)
            logits[np.arange(n_rows), at_max] += dtype.type(margin)
            target = accuracy_table.class_probabilities(rng, logits)
            _, gradient = loss_and_gradient(logits, target, reduction="none")
            exact = oracle.per_position(logits, target)
            rows = np.arange(n_rows), at_max
            bound = accuracy_table.BOUNDS["cross_entropy of class probabilities, gradient"]
            scales = exact.scales[rows]
            error = accuracy_table.ulps(gradient[rows], exact.gradients[rows], scales > 1e-12, scales)
            assert error <= bound[{4: 0, 8: 1}[dtype.itemsize]]

    @pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
    @pytest.mark.parametrize("n_classes", [2, 200, 9000])
    @pytest.mark.parametrize("margin", [7, 15, 26.5, 60])
    @pytest.mark.parametrize("mass", one_in(2, [1e-17, 7e-17, 1.5e-12, 0]))
    def test_of_nearly_all_the_mass(self, level, dtype, loss_and_gradient, layout, n_classes, margin, mass):
        # The masses of the other classes are nothing beside 1, and their sum need not be.
        logits, target = np.zeros((2, n_classes), dtype), np.full((2, n_classes), mass, dtype)
        logits[:, 0] = margin + np.log(n_classes)
        target[:, 0] = 1
        _, gradient = loss_and_gradient(layout(logits), target, reduction="none")
        exact = oracle.per_position(logits, target)
        bound = accuracy_table.BOUNDS["cross_entropy of class probabilities, gradient"]
        error = accuracy_table.ulps(gradient, exact.gradients, exact.scales > 1e-12, exact.scales)
        assert error <= bound[{4: 0, 8: 1}[dtype.itemsize]]

    @pytest.mark.parametrize("z_loss", [1e13, 1e-13])
    def test_with_a_z_loss_of_another_size(self, level, dtype, loss_and_gradient, z_loss):
        _, gradient = loss_and_gradient(np.array([[1000, 0]], dtype), [1], z_loss=z_loss)
        np.testing.assert_allclose(gradient, [[1 + 2 * z_loss * 1000, -1]], rtol=3 * np.finfo(dtype).eps)


# Blocks of rows are not in the short grid: other tests are for these.
FEW_CLASSES = [size for size in accuracy_table.CLASSES if size[0] <= 1000]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("float32", FEW_CLASSES, id="float32, up to 1000 classes"),
        pytest.param("float32", accuracy_table.CLASSES, id="float32", marks=pytest.mark.integration),
        pytest.param("float64", accuracy_table.CLASSES, id="float64", marks=pytest.mark.integration),
    ],
)
def test_no_error_on_the_grid_is_beyond_its_bound(name, sizes):
    # All levels in one test: the exact results take longer to compute than all of them.
    dtype = np.dtype(name)
    column = {4: 0, 8: 1}[dtype.itemsize]
    libraries = [accuracy_table.Cyce(level) for level in LEVELS]
    for largest in accuracy_table.errors(libraries, dtype, sizes):
        beyond = {
            name: error for name, error in largest.items() if not error <= accuracy_table.BOUNDS[name][column]
        }
        assert not beyond
        # A quantity that was never measured would have error 0.
        assert all(largest.values())


def test_the_page_shows_the_bounds():
    page = Path(__file__).parents[2].joinpath("docs", "accuracy.md").read_text()
    # The first table; the other one is of searches.
    page = page[page.index("| |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    shown = {row[0]: (int(row[1]), int(row[4])) for row in rows[2:]}
    assert shown == accuracy_table.BOUNDS
    for row in rows[2:]:
        assert float(row[2]) <= int(row[1])
        assert float(row[5]) <= int(row[4])
