"""exp and log1p of _math.pxd, in units in the last place, over bit patterns, at every level."""

import numpy as np
import pytest

from cyce import _dispatch

LONG = np.longdouble
N_SAMPLES = 500_000


def ulp_error(values, exact, dtype):
    """Largest error in spacings of the exact result."""
    return float(np.max(np.abs(values - exact) / np.spacing(exact.astype(dtype)).astype(LONG)))


def bit_patterns(rng, low, high, dtype):
    """Sample positive numbers evenly over their bit patterns, which covers every magnitude."""
    integers = {4: np.int32, 8: np.int64}[dtype.itemsize]
    low, high = (dtype.type(bound).view(integers) for bound in (low, high))
    return rng.integers(low, high, N_SAMPLES, dtype=integers, endpoint=True).view(dtype)


def exponentials(level, logits, row_max=0.0):
    out = np.empty(logits.shape)
    _dispatch.load_level(level).exponentials(logits, row_max, out)
    return out


@pytest.mark.parametrize("sampling", ["bit patterns", "uniform"])
def test_exp_is_within_its_ulp_bound(level, dtype, rng, sampling):
    # Results below the smallest normal number have no ulp to speak of.
    lowest = {4: 87.0, 8: 708.0}[dtype.itemsize]
    if sampling == "uniform":
        logits = rng.uniform(-lowest, 0, N_SAMPLES).astype(dtype)
    else:
        logits = -bit_patterns(rng, 1e-30, lowest, dtype)
    assert ulp_error(exponentials(level, logits), np.exp(logits.astype(LONG)), dtype) <= 1.05


def test_exp_reaches_below_the_smallest_normal_number(level, dtype, rng):
    # For sums of many tiny terms: a relative bound, down to the cut-off.
    lowest = {4: 130.9, 8: 1061.0}[dtype.itemsize]
    logits = rng.uniform(-lowest, 0, N_SAMPLES).astype(dtype)
    if dtype == np.float64:
        logits = logits[logits > -708]  # what the test sees is a double
    exact = np.exp(logits.astype(LONG))
    relative = np.abs(exponentials(level, logits) - exact) / exact
    assert float(relative.max()) <= 1.05 * np.finfo(dtype).eps


@pytest.mark.parametrize("row_max", [0.0, 3.25, -100.0, 250.0, -250.0, 1e4, -1e4, 1e8])
def test_exp_relative_to_any_maximum_rounds_no_difference(level, dtype, rng, row_max):
    # Relative to 3.25 the difference itself has no exact float: its rounding must not show.
    row_max = float(dtype.type(row_max))
    logits = (row_max - rng.uniform(0, 60, 20_000)).astype(dtype)
    values = exponentials(level, logits, row_max)
    exact = np.exp(logits.astype(LONG) - LONG(row_max))
    # The factor in double that the kernels apply once per block is the same for all of them.
    at_max = exponentials(level, np.full(1, row_max, dtype), row_max)
    relative = np.abs(values / at_max - exact) / exact
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
    logarithms = np.empty_like(rests)
    _dispatch.load_level(level).log1p(rests, logarithms)
    assert ulp_error(logarithms, np.log1p(rests.astype(LONG)), np.float64) <= 0.9


def test_log1p_special_values(level):
    rests = np.array([0.0, np.nan, 1.0])
    logarithms = np.empty_like(rests)
    _dispatch.load_level(level).log1p(rests, logarithms)
    np.testing.assert_array_equal(logarithms, [0.0, np.nan, np.log(2.0)])
