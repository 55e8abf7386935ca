"""The phases of the kernels by themselves: reduce, merge, finish.

Classes are cut anywhere, each part is reduced alone, the states are merged in order, and each part is
finished with the merged states.
"""

import numpy as np
import pytest

import accuracy_table
import cyce
import cyce.functional as F
import oracle
from cyce.kernels import dispatch
from records import of_classes
from sharded_cases import OPTIONS

pytestmark = pytest.mark.smoke

# Classes that a kernel reduces together: rows, and tiles of more than 128 classes.
ROW_BLOCK, TILE_BLOCK = 8192, 64


def in_parts(logits, cuts, target=None, probabilities=None, **options):
    """Losses and the gradient of their sum, of logits (N, C, ...) cut at these classes."""
    kernels = dispatch.kernels
    n_classes = logits.shape[1]
    losses = np.empty(logits.shape[:1] + logits.shape[2:], logits.dtype)
    gradient = np.empty_like(logits)
    calls, merged = [], None
    weight = options.pop("weight", None)
    for first, end in zip([0, *cuts], [*cuts, n_classes], strict=True):
        call = of_classes(logits=logits[:, first:end], axis=1, target=target, **options)
        call.weight = None if weight is None else weight[first:end]
        call.probabilities = None if probabilities is None else probabilities[:, first:end]
        call.first_class, call.n_all_classes = first, n_classes
        states = np.empty((kernels.N_FIELDS, losses.size))
        kernels.reduce(call, states)
        if merged is None:
            merged = states
        else:
            kernels.merge(merged, states, logits.dtype == np.float64)
        call.loss_out, call.grad_out = losses, gradient[:, first:end]
        calls.append(call)
    for call in calls:
        kernels.finish(call, merged)
    return losses, gradient


def whole(logits, target, probabilities=None, **options):
    target = target if probabilities is None else probabilities
    return cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none", **options)


def make(rng, shape, dtype):
    logits = (rng.standard_normal(shape) * 4).astype(dtype)
    positions = shape[:1] + shape[2:]
    target = rng.integers(shape[1], size=positions)
    target[rng.random(positions) < 0.2] = -100
    return logits, target


WITH_WEIGHTS = (False, True)


@pytest.mark.parametrize("weights", WITH_WEIGHTS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestTheBlocksOfTheKernel:
    """Reduced alone and merged one by one, they give its bits."""

    @pytest.mark.parametrize("n_classes", [ROW_BLOCK + 129, 3 * ROW_BLOCK + 700])
    def test_rows(self, level, dtype, rng, options, weights, n_classes):
        logits, target = make(rng, (5, n_classes), dtype)
        # A row whose maximum is in each block, and one with all mass in the last.
        logits[0, ::ROW_BLOCK] += np.arange(len(logits[0, ::ROW_BLOCK])) * 20
        logits[1, :ROW_BLOCK] = -np.inf
        target[1] = ROW_BLOCK
        self.compare(rng, logits, target, range(ROW_BLOCK, n_classes, ROW_BLOCK), options, weights)

    @pytest.mark.parametrize("n_classes", [2 * TILE_BLOCK + 1, 700])
    def test_tiles(self, level, dtype, rng, options, weights, n_classes):
        logits, target = make(rng, (2, n_classes, 70), dtype)
        self.compare(rng, logits, target, range(TILE_BLOCK, n_classes, TILE_BLOCK), options, weights)

    def compare(self, rng, logits, target, cuts, options, weights):
        if weights:
            options = {
                **options,
                "weight": rng.random(logits.shape[1]).astype(logits.dtype),
                "sample_weight": rng.integers(0, 3, target.shape).astype(logits.dtype),
            }
        expected = whole(logits, target, **options)
        losses, gradient = in_parts(logits, cuts, target, **options)
        assert losses.tobytes() == expected[0].tobytes()
        assert gradient.tobytes() == expected[1].tobytes()


def random_cuts(rng, n_classes):
    n_cuts = rng.integers(1, min(6, n_classes))
    return sorted(rng.choice(np.arange(1, n_classes), n_cuts, replace=False))


@pytest.mark.parametrize("n_classes", [2, 3, 10, 127, 300, 9000])
@pytest.mark.parametrize("option", ["cross_entropy", "label_smoothing", "z_loss"])
def test_classes_that_are_cut_anywhere_keep_the_bounds(level, dtype, rng, n_classes, option):
    options = {
        "cross_entropy": {},
        "label_smoothing": {"label_smoothing": 0.1},
        "z_loss": {"z_loss": 1e-4},
    }[option]
    name = "cross_entropy" if option == "cross_entropy" else f"cross_entropy with {option}"
    column = 0 if dtype == np.float32 else 1
    bounds = {key: bound[column] for key, bound in accuracy_table.BOUNDS.items() if key.startswith(name)}
    for scale in (0.1, 1.0, 10.0, 50.0):
        logits = (rng.standard_normal((max(4, 3000 // n_classes), n_classes)) * scale).astype(dtype)
        target = rng.integers(n_classes, size=len(logits))
        losses, gradient = in_parts(logits, random_cuts(rng, n_classes), target, **options)
        exact = oracle.per_position(logits, target, **options)
        if option == "cross_entropy":
            scales, loss_bound = np.abs(exact.gradients), 2
            gradient_bound = max(bounds[key] for key in bounds if "gradient" in key)
        else:
            scales, loss_bound = exact.scales, bounds[f"{name}, loss"]
            gradient_bound = bounds[f"{name}, gradient"]
        # With z_loss, log-sum-exps near 0 are a small difference of two numbers, as in accuracy_table.
        ordinary = np.abs(exact.losses) > (0.5 if option == "z_loss" else 0)
        assert accuracy_table.ulps(losses, exact.losses, ordinary) <= loss_bound
        if option != "z_loss":
            large = scales > 1e-12
            assert accuracy_table.ulps(gradient, exact.gradients, large, scales) <= gradient_bound


def test_class_probabilities(level, dtype, rng):
    logits = (rng.standard_normal((40, 300)) * 3).astype(dtype)
    probabilities = rng.dirichlet(np.ones(300), 40).astype(dtype)
    exact = oracle.per_position(logits, probabilities)
    for cuts in ([1], [299], [64, 65, 200]):
        losses, gradient = in_parts(logits, cuts, probabilities=probabilities)
        column = 0 if dtype == np.float32 else 1
        bounds = {key: bound[column] for key, bound in accuracy_table.BOUNDS.items()}
        assert (
            accuracy_table.ulps(losses, exact.losses) <= bounds["cross_entropy of class probabilities, loss"]
        )
        error = accuracy_table.ulps(gradient, exact.gradients, exact.scales > 1e-12, exact.scales)
        assert error <= bounds["cross_entropy of class probabilities, gradient"]


def test_states_hold_what_the_notes_say(level, dtype):
    logits = np.array([[1.0, 3.0, 2.0], [-np.inf, -np.inf, -np.inf], [5.0, 5.0, 4.0]], dtype)
    call = of_classes(logits=logits, axis=1, target=np.array([2, 0, 7]), first_class=0, n_all_classes=9)
    states = np.empty((dispatch.kernels.N_FIELDS, 3))
    dispatch.kernels.reduce(call, states)
    np.testing.assert_array_equal(states[0], [3, -np.inf, 5])
    # No class where nothing is above -inf.
    np.testing.assert_array_equal(states[1], [1, -2, 0])
    np.testing.assert_allclose(states[2, [0, 2]], [np.exp(-1) + np.exp(-2), 1 + np.exp(-1)], rtol=1e-7)
    # The target's logit and weight, NaN if another shard has them.
    np.testing.assert_array_equal(states[12], [2, -np.inf, np.nan])
    np.testing.assert_array_equal(states[13], [1, 1, np.nan])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_change_no_bit(level, dtype, rng, n_threads):
    logits, target = make(rng, (3, 40_000), dtype)
    expected = in_parts(logits, [20_000], target)
    losses, gradient = in_parts(logits, [20_000], target, num_threads=n_threads)
    assert losses.tobytes() == expected[0].tobytes()
    assert gradient.tobytes() == expected[1].tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_class", -1), ("first_class", 7), ("n_all_classes", 2), ("target", np.array([9, 0]))],
)
def test_shards_outside_of_the_classes(level, field, value):
    call = of_classes(logits=np.zeros((2, 3)), axis=1, target=np.array([8, 0]), n_all_classes=9)
    states = np.empty((dispatch.kernels.N_FIELDS, 2))
    dispatch.kernels.reduce(call, states)
    setattr(call, field, value)
    with pytest.raises((ValueError, IndexError)):
        dispatch.kernels.reduce(call, states)


@pytest.mark.parametrize("shape", [(14, 3), (14, 2), (14, 1)])
def test_states_of_another_size_or_dtype(level, shape):
    kernels = dispatch.kernels
    call = of_classes(logits=np.zeros((2, 3)), axis=1, target=np.zeros(2, int))
    with pytest.raises(ValueError, match="kernel call: "):
        kernels.reduce(call, np.empty(shape, np.float32 if shape == (14, 2) else np.float64))
    with pytest.raises(ValueError, match="kernel call: "):
        kernels.merge(np.empty((14, 4)), np.empty(shape), True)
