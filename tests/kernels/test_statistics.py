"""Statistics that are made of squares, and divergences, at every level, beside long double."""

import numpy as np
import pytest

from cyce.evaluation.divergence import compare_positions
from cyce.evaluation.evaluator import position_stats
from cyce.kernels import dispatch
from records import of_classes

LONG = np.longdouble
# Rows with a tail, of one and of several blocks; tiles of positions, of one and of several blocks.
SHAPES = [(5, 1), (40, 3), (130, 10), (3, 129), (4, 300), (3, 8193), (2, 17_000), (2, 21, 9, 11), (3, 150, 5)]


def long_softmax(logits, axis):
    """Probabilities, their logarithms, and the sum of those that are not the highest; classes last."""
    x = np.moveaxis(logits, axis, -1).astype(LONG)
    apart = x - x.max(axis=-1, keepdims=True)
    others = np.exp(apart)
    np.put_along_axis(others, x.argmax(axis=-1)[..., None], 0, -1)
    rest = others.sum(axis=-1, keepdims=True)
    log_p = apart - np.log1p(rest)
    return np.exp(log_p), log_p, (rest / (1 + rest))[..., 0]


def exact_stats(logits, target, axis):
    """Confidence, Brier score and variance of the logits, without cancellation."""
    p, log_p, others = long_softmax(logits, axis)
    at_target = np.take_along_axis(p, target[..., None], -1)[..., 0]
    is_highest = p.argmax(axis=-1) == target
    squares = p**2
    np.put_along_axis(squares, target[..., None], 0, -1)
    brier_score = np.where(is_highest, others, 1 - at_target) ** 2 + squares.sum(axis=-1)
    gap = log_p.max(axis=-1, keepdims=True) - log_p
    of_target = np.take_along_axis(gap, target[..., None], -1)[..., 0]
    gap = np.where(p > 0, gap, 0)
    mean = (p * gap).sum(axis=-1, keepdims=True)
    return {
        "confidence": p.max(axis=-1),
        "brier_score": brier_score,
        "slope": of_target - mean[..., 0],
        "variance": (p * (gap - mean) ** 2).sum(axis=-1),
    }


def make_logits(rng, shape, dtype, scale, offset):
    """Logits, some of whose rows are confident, and have -inf."""
    logits = (rng.standard_normal(shape) * scale + offset).astype(dtype)
    logits[0] += dtype.type(30) * (logits[0] == logits[0].max(axis=0))
    logits[1].reshape(-1)[1::7] = -np.inf
    return logits


@pytest.mark.smoke
@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("scale", [0.1, 3, 50])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_of_squares(level, dtype, rng, shape, scale, offset):
    logits = make_logits(rng, shape, dtype, scale, offset)
    target = np.where(rng.random(logits[:, 0].shape) < 0.5, logits.argmax(axis=1), 0)
    stats = position_stats(logits, target, 1, -100, 1.0)
    eps = np.finfo(dtype).eps
    for name, values in exact_stats(logits, target, 1).items():
        ours = getattr(stats, name)
        # A variance of nearly equal logits is what their rounding left of it; a slope is a difference.
        tolerance = {"rtol": 64 * eps, "atol": 1e-35} if name != "variance" else {"rtol": 1e-5, "atol": 1e-9}
        if name == "slope":
            tolerance["atol"] = 8 * eps * scale
        np.testing.assert_allclose(ours, values.astype(dtype), **tolerance, err_msg=name)


@pytest.mark.parametrize("rise", [31, 33, 87, 200, 301])
@pytest.mark.parametrize("n_classes", [300, 8192, 17_000])
def test_a_maximum_beyond_the_sample(level, dtype, rng, n_classes, rise):
    logits = rng.standard_normal((4, n_classes)).astype(dtype)
    logits[:, 100] += dtype.type(rise)
    logits[1, -1] += dtype.type(rise)
    logits[2, 200::256] += dtype.type(rise - 1)
    target = np.array([100, 3, 100, 7])
    stats = position_stats(logits, target, 1, -100, 1.0)
    for name, values in exact_stats(logits, target, 1).items():
        np.testing.assert_allclose(
            getattr(stats, name), values.astype(dtype), rtol=1e-5, atol=1e-37, err_msg=name
        )


def test_statistics_are_the_same_with_and_without_squares(level, dtype, rng):
    for shape in [(3, 9000), (200, 10)]:
        logits = rng.standard_normal(shape).astype(dtype) * dtype.type(5)
        target = rng.integers(shape[1], size=shape[0])
        whole = position_stats(logits, target, 1, -100, 1.0)
        fewer = [np.zeros_like(array) for array in whole[1:6]]
        arguments = of_classes(logits=logits, axis=1, target=target, stats_out=fewer)
        dispatch.load_level(level, "cross_entropy").cross_entropy(arguments)
        for name, values, ours in zip(whole._fields[1:6], fewer, whole[1:6], strict=True):
            np.testing.assert_array_equal(values, ours, err_msg=name)


@pytest.mark.parametrize("layout", ["rows", "columns", "steps"])
def test_statistics_do_not_depend_on_threads(level, dtype, rng, threads, layout):
    logits = rng.standard_normal((300, 700)).astype(dtype)
    logits = {"rows": logits, "columns": logits.T.copy().T, "steps": np.repeat(logits, 2, 1)[:, ::2]}[layout]
    target = rng.integers(700, size=300)
    target[7] = -100
    logits[7] = np.nan
    results = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        results.append(position_stats(logits, target, 1, -100, 1.3))
        results[-1:] = [[*results[-1], *compare_positions(logits, logits[::-1], 1, target % 700, -100)]]
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    stats = position_stats(logits, target, 1, -100, 1.0)
    assert stats.confidence[7] == stats.brier_score[7] == stats.variance[7] == 0


def test_v3_and_v4_give_the_same_statistics(rng, dtype):
    if not {"x86_64_v3", "x86_64_v4"} <= set(dispatch.usable_levels()):
        pytest.skip("this CPU does not run x86_64_v4")
    before, results = dispatch.kernels, []
    logits = rng.standard_normal((30, 9000)).astype(dtype) * dtype.type(4)
    target = rng.integers(9000, size=30)
    try:
        for name in ("x86_64_v3", "x86_64_v4"):
            dispatch.kernels = dispatch.load_level(name, "cross_entropy")
            stats = position_stats(logits, target, 1, -100, 1.0)
            results.append([*stats, *compare_positions(logits, logits[::-1], 1, target, -100)])
    finally:
        dispatch.kernels = before
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def exact_divergences(logits, reference, axis):
    """KL(q || p), KL(p || q) and Jensen-Shannon, of the reference's q and the model's p."""
    (p, log_p, _), (q, log_q, _) = long_softmax(logits, axis), long_softmax(reference, axis)
    with np.errstate(all="ignore"):
        # Relative to q, so that what cancels is known: log(m / q) = log1p((p / q - 1) / 2).
        of_q, of_p = np.expm1(log_p - log_q), np.expm1(log_q - log_p)
        kl = np.where(q > 0, q * (of_q + log_q - log_p), p)
        reverse_kl = np.where(p > 0, p * (of_p + log_p - log_q), q)
        js = np.where(q > 0, q * (of_q / 2 - np.log1p(of_q / 2)), p / 2)
        js = js + np.where(p > 0, p * (of_p / 2 - np.log1p(of_p / 2)), q / 2)
    return kl.sum(axis=-1), reverse_kl.sum(axis=-1), js.sum(axis=-1) / 2


@pytest.mark.smoke
@pytest.mark.parametrize("distance", [10, 1, 0.1, 1e-3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_divergences(level, dtype, rng, shape, distance):
    logits = (rng.standard_normal(shape) * 3).astype(dtype)
    reference = (logits + distance * rng.standard_normal(shape)).astype(dtype)
    target = np.zeros(logits[:, 0].shape, int)
    divergences = compare_positions(logits, reference, 1, target, -100)
    # Log-probabilities are rounded, to some 1e-15, and divergences are the square of their distance.
    tolerance = 8 * np.finfo(dtype).eps + 2e-14 / distance
    for ours, exact in zip(divergences[:3], exact_divergences(logits, reference, 1), strict=True):
        np.testing.assert_allclose(ours, exact.ravel(), rtol=tolerance, atol=1e-19)
    for ours, scores in zip(divergences[5:], (logits, reference), strict=True):
        flat = np.moveaxis(scores, 1, -1).reshape(-1, shape[1])
        order = np.argsort(-flat, axis=1, kind="stable")[:, :10]
        np.testing.assert_array_equal(ours[:, : order.shape[1]], order)
        assert (ours[:, order.shape[1] :] == -1).all()


def test_divergences_of_what_is_nearly_the_same(level, rng):
    # Exact in float32: multiples of 2**-12 beside multiples of 1/8.
    logits = np.float32(rng.integers(-40, 40, (50, 1000)) / 8)
    reference = logits + np.float32(rng.integers(-1, 2, logits.shape) * 2.0**-12)
    kl, reverse_kl, js, *_ = compare_positions(logits, reference, 1, np.zeros(50, int), -100)
    exact = exact_divergences(logits, reference, 1)
    assert float(exact[0].max()) < 1e-7
    for ours, theirs in zip((kl, reverse_kl, js), exact, strict=True):
        np.testing.assert_allclose(ours, theirs.astype(float), rtol=1e-6)


def test_divergences_where_one_has_no_such_class(level, dtype):
    inf = np.inf
    logits = np.array([[0, 0, -inf], [0, -inf, 0], [0, 0, 0], [0, 0, inf], [0, np.nan, 0]], dtype)
    reference = np.array([[0, 0, -inf], [0, 0, 0], [0, 0, -inf], [0, 0, 0], [0, 0, 0]], dtype)
    kl, reverse_kl, js, *_ = compare_positions(logits, reference, 1, np.zeros(5, int), -100)
    np.testing.assert_allclose(kl, [0, inf, np.log(1.5), np.nan, np.nan], rtol=1e-15)
    np.testing.assert_allclose(reverse_kl, [0, np.log(1.5), inf, np.nan, np.nan], rtol=1e-15)
    # m is (5, 2, 5) / 12, q is (4, 4, 4) / 12, p is (6, 0, 6) / 12.
    exact = (np.log(0.8) * 2 / 3 + np.log(2) / 3 + np.log(1.2)) / 2
    np.testing.assert_allclose(js, [0, exact, exact, np.nan, np.nan], rtol=1e-12, atol=1e-16)


def test_two_storages_and_layouts(level, rng):
    logits = rng.standard_normal((4, 300, 6))
    reference = rng.standard_normal((4, 300, 6)).astype(np.float16)
    target = rng.integers(300, size=(4, 6))
    results = [
        compare_positions(a, b, 1, target, -100)
        for a, b in (
            (logits, reference),
            (logits, reference.astype(np.float32)),
            (np.asfortranarray(logits), reference.astype(np.float64)),
            (logits.transpose(0, 2, 1).copy().transpose(0, 2, 1), reference),
        )
    ]
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
