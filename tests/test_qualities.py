"""What holds for every function: odd strides, NumPy's floating point errors."""

import numpy as np
import pytest

import cyce
import cyce.functional as F

with_gradient = cyce.value_and_grad

# Of an array (N, C) of probabilities, which are finite logits and inputs of any other kind, too.
FUNCTIONS = {
    "cross_entropy": lambda x: with_gradient(F.cross_entropy)(x, np.zeros(len(x), int)),
    "cross_entropy, probabilities": lambda x: with_gradient(F.cross_entropy)(x, x),
    "cross_entropy, none": lambda x: with_gradient(F.cross_entropy)(
        x, np.zeros(len(x), int), reduction="none"
    ),
    "cross_entropy_stats": lambda x: F.cross_entropy_stats(x, np.zeros(len(x), int)),
    "nll_loss": lambda x: with_gradient(F.nll_loss)(x, np.zeros(len(x), int)),
    "linear_cross_entropy": lambda x: with_gradient(F.linear_cross_entropy)(x, x, np.zeros(len(x), int)),
    "binary_cross_entropy_with_logits": lambda x: with_gradient(F.binary_cross_entropy_with_logits)(x, x),
    "binary_cross_entropy": lambda x: with_gradient(F.binary_cross_entropy)(x, x),
    "kl_div": lambda x: with_gradient(F.kl_div)(x, x, reduction="sum"),
    "kl_div, broadcast": lambda x: with_gradient(F.kl_div)(x, np.stack([x, x]), reduction="sum"),
    "softmax": lambda x: F.softmax(x, dim=1),
    "log_softmax": lambda x: F.log_softmax(x, dim=1),
    "softmin": lambda x: F.softmin(x, dim=1),
    "logsumexp": lambda x: F.logsumexp(x, dim=1),
}


def flattened(result):
    """Return all numbers of a result, which may be tuples in tuples."""
    parts = result if isinstance(result, tuple) else (result,)
    if any(isinstance(part, tuple) for part in parts):
        return np.concatenate([flattened(part) for part in parts])
    return np.concatenate([np.ravel(part).astype(float) for part in parts])


@pytest.fixture(params=FUNCTIONS)
def function(request):
    """Return a function of an array."""
    return FUNCTIONS[request.param]


@pytest.mark.parametrize("select", [np.s_[:1, ::2], np.s_[::7, :1], np.s_[:1, :1], np.s_[:0, ::2]], ids=str)
def test_axes_that_take_no_step_may_have_any_stride(level, dtype, rng, function, select):
    # A field of packed records: its rows are no multiple of the item size apart.
    records = np.zeros(7, [("x", dtype, 6), ("tag", "u1")])
    records["x"] = rng.random((7, 6))
    view = records["x"][select]
    expected = function(np.array(view))
    np.testing.assert_array_equal(flattened(function(view)), flattened(expected))


@pytest.mark.parametrize("factor", [1, 1e-30, 1e-300])
def test_numpy_may_raise_all_floating_point_errors(level, dtype, rng, function, factor):
    inputs = (rng.random((5, 7)) * factor).astype(dtype)
    with np.errstate(all="ignore"):
        expected = flattened(function(inputs))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(flattened(function(inputs)), expected)


TINY = 1e-50


@pytest.mark.parametrize(
    "call",
    [
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], grad_output=TINY),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], grad_output=[TINY, 1], reduction="none"),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], weight=[TINY, 1, 1e50]),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], sample_weight=[TINY, 1]),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], normalizer=1e50),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], z_loss=TINY),
        lambda x: with_gradient(F.cross_entropy)(x, np.full((2, 3), TINY)),
        lambda x: with_gradient(F.cross_entropy)(x, np.full((2, 3), TINY, np.longdouble)),
        lambda x: with_gradient(F.nll_loss)(x, [0, 1], weight=[TINY, 1, 1], grad_output=TINY),
        lambda x: with_gradient(F.linear_cross_entropy)(x, x, [0, 1], weight=[TINY, 1], grad_output=TINY),
        lambda x: with_gradient(F.binary_cross_entropy_with_logits)(
            x, np.full((2, 3), TINY), pos_weight=TINY
        ),
        lambda x: with_gradient(F.kl_div)(x, np.full((2, 3), TINY), reduction="sum", grad_output=TINY),
        lambda _: F.softmax([TINY, 1.0], dim=0, dtype="f4"),
        lambda _: F.log_softmax(np.array([1e300, TINY]), dim=0, dtype=np.float32),
    ],
)
def test_numbers_that_float32_does_not_hold(call):
    x = np.zeros((2, 3), np.float32)
    with np.errstate(all="ignore"):
        expected = flattened(call(x))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(flattened(call(x)), expected)
