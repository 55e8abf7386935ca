"""linear_cross_entropy: the answers of the composition that it stands for."""

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.linear import evaluate
from cyce.threads import workers
from linear_cases import LINEAR_AND_GRADIENTS, assert_agree, chunks_of, composed, make
from stages import one_in

OUTPUTS = [(3,), (150,), (9000,), (4, 3), (3, 2, 2), (140, 2)]


OPTIONS = {
    "plain": {},
    "weighted": {"weight": True, "label_smoothing": 0.1, "reduction": "sum"},
    "z-loss": {"z_loss": 0.01, "softcap": 2.0},
    "softcap": {"softcap": 3.0, "temperature": 2.0, "label_smoothing": 0.2, "reduction": "none"},
    "counted": {"normalizer": 7.0, "sample_weight": True},
    "sampled": {"sample_weight": True, "reduction": "none", "weight": True},
}


@pytest.mark.parametrize("options", one_in(4, OPTIONS))
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
def test_the_composition(level, dtype, rng, outputs, kind, options):
    hidden, weights, bias, target = make(rng, 70, 8, outputs, dtype, kind)
    options = dict(options)
    if "weight" in options:
        options["weight"] = rng.random(outputs[0]).astype(dtype)
    positions = (70, *outputs[1:])
    if "sample_weight" in options:
        # some of weight 0, and rows of nothing else
        options["sample_weight"] = rng.choice([0, 0.5, 2], positions).astype(dtype)
        options["sample_weight"][10:20] = 0
    if kind == "indices":
        target[rng.random(positions) < 0.3] = -100
        target[[0, 33, 34, 69]] = -100
    upstream = 0.3
    if options.get("reduction") == "none":
        upstream = rng.standard_normal(positions).astype(dtype)
    named = {**options, "grad_output": upstream}
    expected = composed(hidden, weights, target, **named)
    expected_with_bias = composed(hidden, weights, target, bias, **named)
    # Chunks of one row where there are few classes: each of them goes over all weights.
    for rows in (None, 33, 1 if outputs != (9000,) else 9):
        cut = {} if rows is None else {"options": chunks_of(rows)}
        assert_agree(LINEAR_AND_GRADIENTS(hidden, weights, target, **named, **cut), expected, dtype)
        result = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, **named, **cut)
        assert_agree(result, expected_with_bias, dtype)
        loss = F.linear_cross_entropy(hidden, weights, target, linear_bias=bias, **options, **cut)
        np.testing.assert_array_equal(loss, result[0])


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_one_row_without_a_batch(level, dtype, rng, kind):
    hidden, weights, bias, target = make(rng, 1, 8, (150,), dtype, kind)
    expected = composed(hidden[0], weights, target[0], bias)
    result = LINEAR_AND_GRADIENTS(hidden[0], weights, target[0], linear_bias=bias)
    assert_agree(result, expected, dtype)
    assert result[1][0].shape == (8,)
    losses = F.linear_cross_entropy(hidden[0], weights, target[0], linear_bias=bias, reduction="none")
    assert losses.shape == ()


# Rows, features and outputs that are cut into several pieces, blocks and kernel calls, by several threads.
LARGE = [(1500, 64, (300,)), (600, 48, (9000,)), (80, 32, (40_000,)), (700, 64, (70, 30))]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("rows", [None, 257])
def test_large_calls(threads, dtype, rng, shape, rows):
    hidden, weights, bias, target = make(rng, *shape, dtype)
    target[::3] = -100
    expected = composed(hidden.astype(float), weights.astype(float), target, bias.astype(float))
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        options = None if rows is None else chunks_of(rows)
        results.append(LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, options=options))
    for loss, gradients in results:
        np.testing.assert_allclose(loss, expected[0], rtol=3e-6 if dtype == np.float32 else 1e-13)
        for gradient, exact in zip(gradients, expected[1], strict=True):
            error = np.abs(gradient - exact).max() / np.abs(exact).max()
            assert error < (3e-6 if dtype == np.float32 else 1e-14)
        assert loss == results[0][0]
        for gradient, other in zip(gradients, results[0][1], strict=True):
            assert gradient.tobytes() == other.tobytes()


@pytest.mark.parametrize("shape", [(900, 24, (3000,)), (40, 24, (9000,))], ids=str)
def test_the_order_of_the_threads_changes_no_bit(threads, rng, monkeypatch, shape):
    """Blocks are added in order even if they are ready in another one."""
    hidden, weights, bias, target = make(rng, *shape, np.float32)
    in_turn = workers._in_turn
    results = []
    for order in (1, -1):

        def with_workers(work, n_shares, order=order):
            return work(lambda function, items: in_turn(function, list(items)[::order])[::order])

        monkeypatch.setattr(evaluate, "with_workers", with_workers)
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, options=chunks_of(600)
        )
        results.append((loss, *(gradient.tobytes() for gradient in gradients)))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("outputs", [(4,), (3, 2)], ids=str)
def test_central_differences(level, rng, outputs, reduction, kind):
    hidden, weights, bias, target = make(rng, 5, 3, outputs, np.float64, kind)
    options = {
        "reduction": reduction,
        "weight": rng.uniform(0.2, 2, outputs[0]),
        "label_smoothing": 0.1,
        "z_loss": 0.05,
        "softcap": 4.0,
        "temperature": 1.5,
        "sample_weight": rng.uniform(0.2, 2, (5, *outputs[1:])),
    }
    arrays = {"input": hidden, "linear_weight": weights, "linear_bias": bias}
    upstream = rng.standard_normal((5, *outputs[1:]) if reduction == "none" else ())
    _, gradients = LINEAR_AND_GRADIENTS(
        **arrays, target=target, **options, grad_output=upstream, options=chunks_of(2)
    )
    step = 1e-5
    for (name, array), gradient in zip(arrays.items(), gradients, strict=True):
        for index in np.ndindex(array.shape):
            low, high = array.copy(), array.copy()
            low[index] -= step
            high[index] += step
            values = [
                np.sum(upstream * F.linear_cross_entropy(**{**arrays, name: x}, target=target, **options))
                for x in (low, high)
            ]
            assert abs((values[1] - values[0]) / (2 * step) - gradient[index]) < 1e-7, (name, index)


@pytest.mark.integration
@pytest.mark.parametrize("rows", [None, 1, 16, 128, 300, 342, 1000])
@pytest.mark.parametrize("offset", [0, 2])
def test_the_sum_over_chunks_is_no_less_accurate_than_one_product(level, rng, offset, rows):
    """Errors of the gradient of the weights, beside those of one product in the same precision."""
    hidden, weights, bias, target = make(rng, 4096, 16, (50,), np.float32)
    hidden += offset
    wide = [array.astype(np.longdouble) for array in (hidden, weights, bias)]
    _, slopes = cyce.value_and_grad(F.cross_entropy)((wide[0] @ wide[1].T + wide[2]).astype(float), target)
    exact = slopes.T.astype(np.longdouble) @ wide[0], slopes.astype(np.longdouble).sum(axis=0)
    # The logits of the composition are rounded, too.
    _, (_, *one_product) = composed(hidden, weights, target, bias)
    _, (_, *gradients) = LINEAR_AND_GRADIENTS(
        hidden, weights, target, linear_bias=bias, options=rows and chunks_of(rows)
    )
    for gradient, product, right in zip(gradients, one_product, exact, strict=True):
        error, of_one = (float(np.sqrt(np.mean((x - right) ** 2))) for x in (gradient, product))
        assert error < 1.1 * of_one
