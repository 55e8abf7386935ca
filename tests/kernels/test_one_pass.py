"""Rows whose maximum is not where a sample of them would have it, and what is made of their exponentials.

A block of a row is reduced relative to the largest of a sample: the first 64 bytes of each 256 logits. From
32 (float32) or 300 (float64) above that on, chunks are done again.
"""

import numpy as np
import pytest

import accuracy_table
import cyce
import cyce.functional as F
import oracle
from cyce.kernels import dispatch
from records import of_classes
from stages import one_in

LONG = np.longdouble
REST = 2
REST_LOST = 3
with_gradient = cyce.value_and_grad(F.cross_entropy)


def assert_within_bounds(logits, target, **options):
    """Assert the bounds of loss and gradient where logits are finite or -inf."""
    losses, gradient = with_gradient(logits, target, reduction="none", **options)
    finite = np.where(np.isfinite(logits), logits, -np.finfo(logits.dtype).max / 4)
    exact = oracle.per_position(finite, target, **options)
    column = {4: 0, 8: 1}[logits.dtype.itemsize]
    bounds = {name: bound[column] for name, bound in accuracy_table.BOUNDS.items()}
    assert accuracy_table.ulps(losses, exact.losses) <= bounds["cross_entropy, loss of 0.1 or more"]
    at_target = np.arange(logits.shape[1]) == target[:, None]
    error = accuracy_table.ulps(gradient, exact.gradients, at_target)
    assert error <= bounds["cross_entropy, gradient at the target"]
    others = ~at_target & (exact.gradients > 1e-30)
    error = accuracy_table.ulps(gradient, exact.gradients, others)
    assert error <= bounds["cross_entropy, other gradients above 1e-12"]
    assert (gradient[logits == -np.inf] == 0).all()


@pytest.mark.parametrize("rise", [0.5, 20, 31.9, 32.1, 60, 87, 100, 299, 301, 700, 1000, 1e30])
@pytest.mark.parametrize("n_classes", one_in(2, [129, 300, 8192, 20_000, 9000]))
def test_a_maximum_beyond_the_sample(level, dtype, rng, n_classes, rise):
    logits = rng.standard_normal((6, n_classes)).astype(dtype)
    logits[:, 100] += dtype.type(rise)
    logits[3, -1] += dtype.type(rise)
    logits[4, 16::272] += dtype.type(rise)
    logits[5] += dtype.type(1e4)
    assert_within_bounds(logits, np.array([100, 3, 5, 0, 16, 100]))


@pytest.mark.parametrize("step", [0.003, 0.03, 0.3, 10])
@pytest.mark.parametrize("n_classes", [700, 8193, 17_000])
def test_slopes(level, dtype, n_classes, step):
    slope = np.arange(n_classes) * step
    logits = np.array([slope, slope[::-1], slope - 1000, -slope]).astype(dtype)
    assert_within_bounds(logits, np.array([n_classes - 1, 0, 7, 300]))


def test_nothing_in_the_sample(level, dtype, rng):
    logits = rng.standard_normal((4, 17_000)).astype(dtype)
    logits.reshape(4, -1)[:, :8300] = -np.inf
    logits[1, 5:9000] = -np.inf
    for block in range(0, 17_000, 8192):
        for first in range(block, block + 8192, 272):
            logits[2, first : first + 16] = -np.inf
    logits[3] -= 500
    logits[3, :300] = -np.inf
    assert_within_bounds(logits, np.array([16_999, 16_000, 8800, 16_000]))


@pytest.mark.parametrize("payload", [0, 1, 0x155])
@pytest.mark.parametrize("at", [0, 15, 16, 300, 8191, 8192, 8999])
def test_nan_anywhere(level, dtype, rng, at, payload):
    logits = rng.standard_normal((3, 9000)).astype(dtype)
    logits[0, at] = np.nan
    logits.view(f"u{dtype.itemsize}")[0, at] += payload
    logits[2, 100] = np.inf
    losses, gradient = with_gradient(logits, [1, 1, 1], reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [True, False, True])
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), [True, False, True])
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), [True, False, True])


@pytest.mark.parametrize("softcap", [20.0, 45.0])
def test_a_softcap_begins_again(level, dtype, rng, softcap):
    # Its slopes are computed from the logits once more: with the exponentials relative to the same number.
    logits = rng.standard_normal((3, 9000)).astype(dtype)
    logits[:, 100] += 1000
    logits[1] *= 30
    _, gradient = with_gradient(logits, [100, 5, 7], softcap=softcap, reduction="sum")
    x = logits.astype(LONG)
    capped = softcap * np.tanh(x / softcap)
    exact = oracle.per_position(capped, np.array([100, 5, 7])).gradients / np.cosh(x / softcap) ** 2
    scale = np.abs(exact).max(axis=1, keepdims=True)
    np.testing.assert_allclose(
        (gradient / scale).astype(float), (exact / scale).astype(float), atol=1e2 * np.finfo(dtype).eps
    )


def test_tiny_probabilities_keep_their_digits(level, dtype):
    # In a chunk whose maximum is far below that of the row, relative to something lower still.
    logits = np.full((1, 9000), -200, dtype)
    logits[0, 100] = 0
    logits[0, 4500:4600] = np.linspace(-85, -60, 100)
    softmax = F.softmax(logits, dim=1)[0, 4500:4600]
    exact = np.exp(logits[0, 4500:4600].astype(LONG))
    np.testing.assert_allclose((softmax / exact).astype(float), 1, rtol=3 * np.finfo(dtype).eps)


# In float32 and float64.
RELATIVE_ERROR_OF_EXP = {
    "baseline": (9e-8, 1.6e-16),
    "x86_64_v3": (6.3e-8, 1.2e-16),
    "x86_64_v4": (6.3e-8, 1.2e-16),
}


@pytest.mark.parametrize("at_max", [0, 50])
def test_exp_in_rows_is_within_its_bound(level, dtype, rng, at_max):
    # The rest of a row of 0, x and -inf is e**x. Relative to 0 or, where that is not in the sample, to x.
    n_rows = 60_000
    magnitudes = np.concatenate([rng.uniform(0, 31, n_rows // 2), np.exp(rng.uniform(-20, 3, n_rows // 2))])
    x = -magnitudes.astype(dtype)
    logits = np.full((n_rows, 128), -np.inf, dtype)
    logits[:, at_max] = 0
    logits[:, 5] = x
    kernels = dispatch.load_level(level, "cross_entropy")
    states = np.empty((kernels.N_FIELDS, n_rows))
    kernels.reduce(of_classes(logits=logits, axis=1, target=np.zeros(n_rows, np.int64)), states)
    error = states[REST].astype(LONG) + states[REST_LOST] - np.exp(x.astype(LONG))
    bound = RELATIVE_ERROR_OF_EXP[level][dtype == np.float64]
    assert np.abs(error / np.exp(x.astype(LONG))).max() <= bound


@pytest.mark.parametrize("temperature", [0.7, 1 / 3, 3.0, 1e-20, 1e20, 1e-40, 1e-35, 1e35])
def test_a_temperature_divides(level, dtype, rng, temperature):
    # Partly by multiplication; the quotients have the same bits.
    if dtype == np.float64 or temperature > np.finfo(dtype).tiny:
        largest = np.log10(float(np.finfo(dtype).max)) + np.log10(temperature)
        exponents = rng.uniform(-25, min(30, largest), (40, 3000))
        logits = (rng.choice([-1, 1], exponents.shape) * 10**exponents).astype(dtype)
        logits[:, 7] = -np.inf
        logits[3, 5] = np.inf
        logits[4, 5] = np.nan
        logits[5, 5] = 0
        with np.errstate(all="ignore"):
            divided = logits / dtype.type(temperature)
        target = rng.integers(8, 3000, 40)
        losses = F.cross_entropy(logits, target, temperature=temperature, reduction="none")
        np.testing.assert_array_equal(losses, F.cross_entropy(divided, target, reduction="none"))
