"""exp and log1p of the kernels, in units in the last place, over bit patterns, at every level.

Seen through the phases: the state of the logits [m, x] has the rest e**(x - m), in double whatever the logits
are, and a state with maximum 0 and rest r has the loss log(1 + r).
"""

import numpy as np
import pytest

from cyce.kernels import dispatch
from records import of_classes

pytestmark = pytest.mark.smoke

LONG = np.longdouble
N_SAMPLES = 500_000
# Fields of a state, as in merge.pxd.
MAX, ARGMAX, REST, REST_LOST, PICKED, WEIGHT = 0, 1, 2, 3, 12, 13


def ulp_error(values, exact, dtype):
    """Largest error in spacings of the exact result."""
    return float(np.max(np.abs(values - exact) / np.spacing(exact.astype(dtype)).astype(LONG)))


def bit_patterns(rng, low, high, dtype):
    """Sample positive numbers evenly over their bit patterns, which covers every magnitude."""
    integers = {4: np.int32, 8: np.int64}[dtype.itemsize]
    low, high = (dtype.type(bound).view(integers) for bound in (low, high))
    return rng.integers(low, high, N_SAMPLES, dtype=integers, endpoint=True).view(dtype)


def exponentials(level, logits, row_max=0.0):
    """e**(logits - row_max), for logits of at most row_max."""
    kernels = dispatch.load_level(level, "cross_entropy")
    pairs = np.stack([np.full_like(logits, row_max), logits], axis=1)
    states = np.empty((kernels.N_FIELDS, len(logits)))
    kernels.reduce(of_classes(logits=pairs, axis=1, target=np.zeros(len(logits), np.int64)), states)
    return states[REST] + states[REST_LOST]


def log1p(level, rests):
    kernels = dispatch.load_level(level, "cross_entropy")
    states = np.zeros((kernels.N_FIELDS, len(rests)))
    states[REST] = rests
    states[WEIGHT] = 1
    losses = np.empty(len(rests))
    arguments = of_classes(logits=np.zeros((len(rests), 1)), axis=1, target=np.zeros(len(rests), np.int64))
    arguments.loss_out = losses
    kernels.finish(arguments, states)
    return losses


@pytest.mark.parametrize("sampling", ["bit patterns", "uniform"])
def test_exp_is_within_its_ulp_bound(level, dtype, rng, sampling):
    # Subnormal results are not counted in ulp.
    lowest = {4: 87.0, 8: 708.0}[dtype.itemsize]
    if sampling == "uniform":
        logits = rng.uniform(-lowest, 0, N_SAMPLES).astype(dtype)
    else:
        logits = -bit_patterns(rng, 1e-30, lowest, dtype)
    assert ulp_error(exponentials(level, logits), np.exp(logits.astype(LONG)), dtype) <= 1.05


def test_exp_reaches_below_the_smallest_normal_number(level, dtype, rng):
    # For sums of many tiny terms: a relative bound, down to the cut-off.
    lowest = {4: 130.9, 8: 708.0}[dtype.itemsize]
    logits = rng.uniform(-lowest, 0, N_SAMPLES).astype(dtype)
    exact = np.exp(logits.astype(LONG))
    relative = np.abs(exponentials(level, logits) - exact) / exact
    assert float(relative.max()) <= 1.05 * np.finfo(dtype).eps


@pytest.mark.parametrize("row_max", [0.0, 3.25, -100.0, 250.0, -250.0, 1e4, -1e4, 1e8])
def test_exp_relative_to_any_maximum_rounds_no_difference(level, dtype, rng, row_max):
    # The difference to 3.25 is not a float: its rounding must not show.
    row_max = float(dtype.type(row_max))
    logits = (row_max - rng.uniform(0, 60, 20_000)).astype(dtype)
    exact = np.exp(logits.astype(LONG) - LONG(row_max))
    relative = np.abs(exponentials(level, logits, row_max) - exact) / exact
    assert float(relative.max()) <= 2.1 * np.finfo(dtype).eps


def test_exp_special_values(level, dtype):
    tiny = {4: -200.0, 8: -1100.0}[dtype.itemsize]
    logits = np.array([0.0, -0.0, -np.inf, np.nan, tiny, np.finfo(dtype).min], dtype)
    np.testing.assert_array_equal(exponentials(level, logits), [1, 1, 0, np.nan, 0, 0])


def test_log1p_is_within_its_ulp_bound(level, rng):
    rests = np.concatenate(
        [
            bit_patterns(rng, 1e-300, 1e9, np.dtype(np.float64)),
            rng.uniform(0, 4, N_SAMPLES),
            np.arange(1.0, 5000.0),
        ]
    )
    assert ulp_error(log1p(level, rests), np.log1p(rests.astype(LONG)), np.float64) <= 0.9


def test_log1p_special_values(level):
    np.testing.assert_array_equal(log1p(level, np.array([0.0, np.nan, 1.0])), [0.0, np.nan, np.log(2.0)])
