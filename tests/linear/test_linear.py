"""linear_cross_entropy: the answers of the composition that it stands for, in chunks, by any threads."""

import concurrent.futures
import copy
import pickle
import signal
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

import cyce
import cyce.functional as F
from cyce.kernels import dispatch
from cyce.linear import chunks, evaluate
from cyce.threads import team, workers
from platforms import with_fork, with_openmp, with_resource_usage

LINEAR_AND_GRADIENTS = cyce.value_and_grad(F.linear_cross_entropy)

# Rounding of the products; of results around 1.
TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5}, "float64": {"rtol": 1e-12, "atol": 1e-13}}


def chunks_of(n):
    return cyce.LinearCrossEntropyOptions(batch_chunk_size=n)


def make(rng, n, in_features, outputs, dtype=np.float64, kind="indices"):
    """Return hidden states, weights, a bias and a target."""
    n_classes, *inner = outputs
    hidden = rng.standard_normal((n, in_features)).astype(dtype)
    weights = (rng.standard_normal((*outputs, in_features)) / in_features**0.5).astype(dtype)
    bias = rng.standard_normal(outputs).astype(dtype)
    if kind == "indices":
        target = rng.integers(n_classes, size=(n, *inner))
    else:
        target = np.moveaxis(rng.dirichlet(np.ones(n_classes), size=(n, *inner)), -1, 1).astype(dtype)
    return hidden, weights, bias, target


def composed(hidden, weights, target, bias=None, grad_output=None, **options):
    """Return what linear_cross_entropy stands for, with all logits in memory."""
    outputs = weights.shape[:-1]
    flat = weights.reshape(np.prod(outputs), weights.shape[-1])
    logits = hidden @ flat.T + (0 if bias is None else bias.ravel())
    logits = logits.reshape(*hidden.shape[:-1], *outputs)
    loss, slopes = cyce.value_and_grad(F.cross_entropy)(logits, target, grad_output=grad_output, **options)
    slopes = slopes.reshape(*hidden.shape[:-1], len(flat))
    gradients = [slopes @ flat, (np.atleast_2d(slopes).T @ np.atleast_2d(hidden)).reshape(weights.shape)]
    if bias is not None:
        gradients.append(np.atleast_2d(slopes).sum(axis=0).reshape(bias.shape))
    return loss, gradients


def assert_agree(result, expected, dtype):
    loss, gradients = result
    expected_loss, expected_gradients = expected
    tolerance = TOLERANCE[np.dtype(dtype).name]
    np.testing.assert_allclose(loss, expected_loss, **tolerance)
    assert loss.dtype == dtype
    assert isinstance(gradients, tuple)
    assert len(gradients) == len(expected_gradients)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == other.shape
        np.testing.assert_allclose(gradient, other, **tolerance)


OUTPUTS = [(3,), (150,), (5000,), (4, 3), (3, 2, 2), (140, 2)]

OPTIONS = {
    "plain": {},
    "weighted": {"weight": True, "label_smoothing": 0.1, "reduction": "sum"},
    "z-loss": {"z_loss": 0.01, "softcap": 2.0},
    "softcap": {"softcap": 3.0, "temperature": 2.0, "label_smoothing": 0.2, "reduction": "none"},
    "counted": {"normalizer": 7.0, "sample_weight": True},
    "sampled": {"sample_weight": True, "reduction": "none", "weight": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
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
    for rows in (None, 33, 1):
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


class TestWhatIsLeftOut:
    def test_ignored_rows_are_not_looked_at(self, level, dtype, rng):
        hidden, weights, bias, target = make(rng, 60, 8, (150,), dtype)
        left_out = rng.random(60) < 0.5
        target[left_out] = -1
        kept = ~left_out
        hidden[left_out] = rng.choice([np.nan, np.inf, -np.inf], (left_out.sum(), 8))
        expected_loss, expected = LINEAR_AND_GRADIENTS(
            hidden[kept], weights, target[kept], linear_bias=bias, options=chunks_of(16)
        )
        loss, (of_hidden, *others) = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, ignore_index=-1, options=chunks_of(16)
        )
        assert loss == expected_loss
        np.testing.assert_array_equal(of_hidden[kept], expected[0])
        np.testing.assert_array_equal(of_hidden[left_out], 0)
        for gradient, other in zip(others, expected[1:], strict=True):
            np.testing.assert_array_equal(gradient, other)
        losses = F.linear_cross_entropy(hidden, weights, target, ignore_index=-1, reduction="none")
        np.testing.assert_array_equal(losses[left_out], 0)
        assert np.isfinite(losses).all()

    def test_rows_of_which_a_position_counts(self, rng):
        hidden, weights, _, target = make(rng, 9, 4, (3, 2))
        target[:, 0] = -100
        target[4] = -100
        expected = composed(hidden, weights, target)
        assert_agree(LINEAR_AND_GRADIENTS(hidden, weights, target), expected, np.float64)

    @pytest.mark.parametrize("kind", ["indices", "probabilities"])
    def test_rows_of_weight_0(self, rng, kind):
        hidden, weights, bias, target = make(rng, 9, 4, (3,), kind=kind)
        sample_weight = rng.choice([0.0, 1.0], 9)
        hidden[sample_weight == 0] = np.nan
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, sample_weight=sample_weight
        )
        kept = sample_weight == 1
        expected_loss, expected = LINEAR_AND_GRADIENTS(hidden[kept], weights, target[kept], linear_bias=bias)
        assert loss == expected_loss
        np.testing.assert_array_equal(gradients[0][kept], expected[0])
        np.testing.assert_array_equal(gradients[0][~kept], 0)
        np.testing.assert_array_equal(gradients[1], expected[1])

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, np.nan),
            ({"empty": "zero"}, 0),
            ({"reduction": "sum"}, 0),
            ({"reduction": "none"}, np.zeros(4)),
            ({"normalizer": 3.0}, 0),
        ],
    )
    def test_all_ignored(self, rng, options, expected):
        hidden, weights, bias, _ = make(rng, 4, 3, (5,))
        buffers = tuple(np.full_like(array, 77) for array in (hidden, weights, bias))
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, [-100] * 4, linear_bias=bias, **options, out=buffers
        )
        np.testing.assert_array_equal(loss, expected)
        assert gradients is buffers
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)

    def test_weights_of_0_are_nothing_to_divide_by(self, rng):
        hidden, weights, _, target = make(rng, 4, 3, (5,))
        expected = F.cross_entropy(hidden @ weights.T, target, np.zeros(5))
        np.testing.assert_array_equal(
            F.linear_cross_entropy(hidden, weights, target, weight=np.zeros(5)), expected
        )
        assert np.isnan(expected)
        loss, gradients = LINEAR_AND_GRADIENTS(hidden, weights, target, weight=np.zeros(5), empty="zero")
        assert loss == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)

    @pytest.mark.parametrize("empty", ["nan", "zero"])
    def test_targets_of_weight_0_with_smoothing(self, rng, empty):
        hidden, weights, _, _ = make(rng, 4, 3, (5,))
        options = {"weight": [0.0, 1, 1, 1, 1], "label_smoothing": 0.1, "empty": empty}
        expected_loss, (of_hidden, of_weights) = composed(hidden, weights, np.zeros(4, int), **options)
        loss, gradients = LINEAR_AND_GRADIENTS(hidden, weights, [0] * 4, **options)
        np.testing.assert_array_equal(loss, expected_loss)
        np.testing.assert_array_equal(gradients[0], of_hidden)
        np.testing.assert_array_equal(gradients[1], of_weights)

    @pytest.mark.parametrize("shape", [(0, 3, (5,)), (4, 0, (5,)), (4, 3, (5, 0)), (0, 0, (2,))], ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_no_rows_features_or_positions(self, rng, shape, reduction):
        n, in_features, outputs = shape
        hidden, weights = np.ones((n, in_features)), np.ones((*outputs, in_features))
        bias = rng.standard_normal(outputs)
        target = np.zeros((n, *outputs[1:]), int)
        expected = composed(hidden, weights, target, bias, reduction=reduction)
        result = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, reduction=reduction)
        assert_agree(result, expected, np.float64)

    def test_no_classes(self):
        hidden, weights, probabilities = np.ones((2, 3)), np.ones((0, 3)), np.ones((2, 0))
        expected = F.cross_entropy(np.ones((2, 0)), probabilities)
        np.testing.assert_array_equal(F.linear_cross_entropy(hidden, weights, probabilities), expected)
        _, (of_hidden, _) = LINEAR_AND_GRADIENTS(
            hidden, weights, probabilities, reduction="sum", sample_weight=[1.0, 0.0]
        )
        np.testing.assert_array_equal(of_hidden, np.zeros((2, 3)))
        with pytest.raises(IndexError, match=r"Target 0 is out of bounds.*linear_weight has no classes"):
            F.linear_cross_entropy(hidden, weights, [0, 0])


class TestArrays:
    def test_any_strides_are_read(self, rng, dtype):
        hidden, weights, bias, target = make(rng, 30, 8, (40,), dtype)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias)
        for lay_out in (
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.repeat(a, 3, axis=0)[::3],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
            lambda a: np.pad(a, [(0, 3)] * a.ndim)[(slice(-3),) * a.ndim],
            lambda a: a.astype(a.dtype.newbyteorder()),
            lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
        ):
            result = LINEAR_AND_GRADIENTS(
                lay_out(hidden), lay_out(weights), target, linear_bias=lay_out(bias)
            )
            assert_agree(result, expected, dtype)
        result = LINEAR_AND_GRADIENTS(hidden.tolist(), weights.tolist(), target.tolist())
        assert result[0].dtype == np.float64

    def test_broadcast_arrays_are_read(self, rng):
        hidden = np.broadcast_to(rng.standard_normal(8), (30, 8))
        weights = np.broadcast_to(rng.standard_normal((40, 1)), (40, 8))
        target = rng.integers(40, size=30)
        expected = LINEAR_AND_GRADIENTS(hidden.copy(), weights.copy(), target)
        assert_agree(LINEAR_AND_GRADIENTS(hidden, weights, target), expected, np.float64)

    def test_arguments_are_left_alone(self, rng):
        arrays = make(rng, 30, 8, (40,))
        arrays[3][3] = -100
        before = [array.tobytes() for array in arrays]
        for array in arrays:
            array.flags.writeable = False
        hidden, weights, bias, target = arrays
        LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias)
        assert [array.tobytes() for array in arrays] == before

    def test_another_thread_that_changes_the_target_is_too_late(self, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 40, 8, (40,))
        expected = F.linear_cross_entropy(hidden, weights, target, options=chunks_of(10))
        matmul = np.matmul

        class NumPy:
            @staticmethod
            def matmul(*arguments, **named):
                target[:] = 99
                return matmul(*arguments, **named)

            def __getattr__(self, name):
                return getattr(np, name)

        monkeypatch.setattr(chunks, "np", NumPy())
        assert F.linear_cross_entropy(hidden, weights, target, options=chunks_of(10)) == expected

    @pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint32, np.uint64, ">i4"])
    def test_integer_dtypes(self, rng, kind):
        hidden, weights, _, target = make(rng, 30, 8, (40,))
        expected = F.linear_cross_entropy(hidden, weights, target, ignore_index=3)
        assert F.linear_cross_entropy(hidden, weights, target.astype(kind), ignore_index=3) == expected

    def test_no_warnings_of_overflow(self, level):
        # filterwarnings = error
        hidden = np.array([[1e30, np.inf], [1.0, np.nan], [1e30, 1e30]], np.float32)
        weights = np.array([[1e30, 1e30], [-1.0, 1.0]], np.float32)
        loss, _ = LINEAR_AND_GRADIENTS(hidden, weights, [0, 1, 1])
        assert np.isnan(loss)
        weights = np.array([[1e30, 1e30], [1.0, 1.0]], np.float32)
        assert F.linear_cross_entropy(hidden[2:] * 1e-2, weights * 1e-20, [1]) == np.float32(2e38)
        assert (
            F.linear_cross_entropy(hidden[[2, 2]] * 1e-2, weights * 1e-20, [1, 1], reduction="sum") == np.inf
        )

    def test_a_gradient_of_the_bias_may_overflow(self):
        # The sums of 256 rows do not, but that of all does.
        n = 900
        with np.errstate(all="raise"):
            _, (_, _, of_bias) = LINEAR_AND_GRADIENTS(
                np.zeros((n, 1), np.float32),
                np.zeros((2, 1), np.float32),
                np.zeros(n, int),
                linear_bias=np.zeros(2, np.float32),
                reduction="sum",
                grad_output=np.float32(2e36),
            )
        np.testing.assert_array_equal(of_bias, [-np.inf, np.inf])

    def test_large_calls_do_not_warn_either(self, threads):
        threads(2)
        hidden, weights = np.full((2000, 64), 1e30, np.float32), np.full((600, 64), 1e30, np.float32)
        with np.errstate(all="raise"):
            assert np.isnan(F.linear_cross_entropy(hidden, weights, np.zeros(2000, int)))


class TestOut:
    @pytest.mark.parametrize("outputs", [(40,), (5, 4)], ids=str)
    @pytest.mark.parametrize(
        "lay_out",
        [
            np.array,
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
        ],
    )
    def test_gradients_are_written_there(self, rng, dtype, outputs, lay_out):
        hidden, weights, bias, target = make(rng, 30, 8, outputs, dtype)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, options=chunks_of(16))
        out = tuple(lay_out(np.full_like(array, 77)) for array in (hidden, weights, bias))
        loss, gradients = LINEAR_AND_GRADIENTS(
            hidden, weights, target, linear_bias=bias, options=chunks_of(16), out=out
        )
        assert gradients is out
        assert_agree((loss, gradients), expected, dtype)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.zeros((2, 3)), TypeError, r"out: must be a tuple of 3 arrays, .* got ndarray"),
            (
                [np.zeros((2, 3))] * 2,
                TypeError,
                r"out: must be a tuple of 3 arrays, .* linear_bias; got 2 of them",
            ),
            (
                (np.zeros((2, 3)), np.zeros((3, 4)), np.zeros(4)),
                ValueError,
                r"out: must have linear_weight's shape \[4, 3\]",
            ),
            (
                (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(4, np.float32)),
                TypeError,
                "out: must have linear_bias's dtype float64",
            ),
        ],
    )
    def test_what_is_not_such_a_tuple(self, out, error, message):
        with pytest.raises(error, match=message):
            LINEAR_AND_GRADIENTS(np.ones((2, 3)), np.ones((4, 3)), [0, 1], linear_bias=np.ones(4), out=out)

    def test_overlaps(self, rng):
        hidden, weights, _, target = make(rng, 4, 3, (4,))
        of_hidden, of_weights = np.empty_like(hidden), np.empty_like(weights)
        for out, other in (
            ((hidden, of_weights), "input"),
            ((of_hidden, weights), "linear_weight"),
            ((weights, of_weights), "linear_weight"),
            ((of_hidden, of_hidden), r"out\[0\]"),
        ):
            before = hidden.copy(), weights.copy()
            with pytest.raises(ValueError, match=f"out: shares memory with {other}"):
                LINEAR_AND_GRADIENTS(hidden, weights, target, out=out)
            np.testing.assert_array_equal(hidden, before[0])
            np.testing.assert_array_equal(weights, before[1])


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


class TestThreads:
    def test_blas_is_left_as_it_was(self, threads, rng):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)

        def counts():
            return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

        before = counts()
        LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert counts() == before
        target[5] = 600
        with pytest.raises(IndexError, match="Target 600 is out of bounds"):
            LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert counts() == before

    def test_blas_and_kernels_have_one_thread_each_meanwhile(self, threads, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(3)
        seen, n_at_once = [], []
        kernel = dispatch.kernels.cross_entropy

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                libraries = threadpoolctl.threadpool_info()
                seen.append(
                    {library["num_threads"] for library in libraries if library["user_api"] == "blas"}
                )
                n_at_once.append(sum(thread.name.startswith("cyce_") for thread in threading.enumerate()))
                assert arguments.num_threads == 1
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        monkeypatch.setattr(chunks, "KERNEL_LOGITS", 100_000)
        LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert len(seen) == 13
        assert set().union(*seen) == {1}
        assert max(n_at_once) == 2
        assert not any(thread.name.startswith("cyce") for thread in threading.enumerate())

    @with_openmp
    def test_limits_of_threadpoolctl(self, run_python):
        # In a process of its own: torch, too, sets OpenMP's number, which is this limit.
        program = """
import numpy as np, threadpoolctl
import cyce, cyce.functional as F
from cyce.threads import team

cyce.set_num_threads(3)
Workers = team.Workers

def told(n, n_shares):
    print(n)
    return Workers(n, n_shares)

team.Workers = told
hidden, weights, target = np.ones((2000, 64)), np.ones((600, 64)), np.zeros(2000, int)
F.linear_cross_entropy(hidden, weights, target)
with threadpoolctl.threadpool_limits(1):
    F.linear_cross_entropy(hidden, weights, target)
with cyce.num_threads(2):
    F.linear_cross_entropy(hidden, weights, target)
"""
        assert run_python("-c", program, environment={"OMP_NUM_THREADS": "4"}).stdout == "3\n1\n2\n"

    @pytest.mark.parametrize("limit", [None, 1, 2, 3])
    def test_blas_has_one_thread_whatever_its_limit_was(self, threads, rng, monkeypatch, limit):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)
        seen = []
        kernel = dispatch.kernels.cross_entropy

        def blas_threads():
            libraries = threadpoolctl.threadpool_info()
            return {library["num_threads"] for library in libraries if library["user_api"] == "blas"}

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                seen.append(blas_threads())
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        before = blas_threads()
        with threadpoolctl.threadpool_limits(limit, user_api="blas"):
            limited = blas_threads()
            LINEAR_AND_GRADIENTS(hidden, weights, target)
            assert blas_threads() == limited
        assert blas_threads() == before
        assert set().union(*seen) == {1}

    def test_calls_at_once_share_the_budget(self, threads, rng):
        hidden, weights, _, target = make(rng, 3000, 64, (600,), np.float32)
        threads(1)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1].tobytes()
        threads(4)
        barrier, most, done = threading.Barrier(6), [0], threading.Event()

        def compute():
            barrier.wait()
            return [LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1].tobytes() for _ in range(5)]

        def watch():
            while not done.is_set():
                helpers = sum(thread.name.startswith("cyce_") for thread in threading.enumerate())
                most[0] = max(most[0], helpers)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with concurrent.futures.ThreadPoolExecutor(6, thread_name_prefix="caller") as pool:
            results = [pool.submit(compute) for _ in range(6)]
            results = [result.result() for result in results]
        done.set()
        watcher.join()
        assert {value for result in results for value in result} == {expected}
        # Of the 4 threads, at least one is a caller itself.
        assert most[0] <= 3
        with team.Workers(4, 100) as n_threads:
            assert n_threads == 4

    @pytest.mark.parametrize("n_started", [0, 1])
    def test_where_no_thread_can_be_started(self, threads, rng, monkeypatch, n_started):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(3)
        expected = LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1]

        start, started = threading.Thread.start, []

        def start_or_refuse(thread):
            if len(started) == n_started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
        np.testing.assert_array_equal(LINEAR_AND_GRADIENTS(hidden, weights, target)[1][1], expected)

    @pytest.mark.parametrize("where", ["conductor", "helper"])
    def test_an_error_in_one_thread_ends_the_call(self, threads, rng, monkeypatch, where):
        hidden, weights, _, target = make(rng, 2000, 64, (600,), np.float32)
        threads(2)
        failed, n_calls = threading.Event(), []

        def multiply(*arguments, **named):
            n_calls.append(1)
            if threading.current_thread().name.startswith("cyce_") == (where == "helper"):
                failed.set()
                raise MemoryError("of a product")
            # The other one waits, or there may be nothing left to fail at.
            assert failed.wait(60)
            return np.matmul(*arguments, **named)

        class NumPy:
            matmul = staticmethod(multiply)

            def __getattr__(self, name):
                return getattr(np, name)

        monkeypatch.setattr(chunks, "np", NumPy())
        with pytest.raises(MemoryError, match="of a product"):
            LINEAR_AND_GRADIENTS(hidden, weights, target)
        assert len(n_calls) <= 4
        assert not any(thread.name.startswith("cyce") for thread in threading.enumerate())


FORK = """
import os, sys, threading
import numpy as np
import threadpoolctl
import cyce
import cyce.functional as F

def blas_threads():
    libraries = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in libraries if library["user_api"] == "blas"]

before = blas_threads()
cyce.set_num_threads(2)
rng = np.random.default_rng(0)
hidden = rng.standard_normal((4000, 64), dtype=np.float32)
weights = rng.standard_normal((2000, 64), dtype=np.float32)
target = rng.integers(2000, size=4000)
linear = cyce.value_and_grad(F.linear_cross_entropy)
expected = linear(hidden, weights, target)[1][1].tobytes()
done = threading.Event()

def compute():
    while not done.is_set():
        assert linear(hidden, weights, target)[1][1].tobytes() == expected

thread = threading.Thread(target=compute)
thread.start()
try:
    for _ in range(10):
        child = os.fork()
        if child == 0:
            ok = blas_threads() == before and linear(hidden, weights, target)[1][1].tobytes() == expected
            os._exit(0 if ok and blas_threads() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
finally:
    done.set()
    thread.join()
assert blas_threads() == before
"""


# Forking while other threads run warns since Python 3.12.
@with_fork
def test_forks_during_a_call(run_python):
    result = run_python("-W", "ignore::DeprecationWarning", "-c", FORK)
    assert result.returncode == 0, result.stderr


INTERRUPTED = """
import signal, threading, time
import numpy as np
import threadpoolctl
import cyce
import cyce.functional as F
from cyce.linear import chunks

def state():
    libraries = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in libraries]

def threads_end():
    # One that was about to start when the call was interrupted may do so, and end, a little later.
    until = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < until:
        time.sleep(0.001)
    return threading.active_count() == 1

cyce.set_num_threads(2)
rng = np.random.default_rng(0)
hidden = rng.standard_normal((3000, 64), dtype=np.float32)
weights = rng.standard_normal((3000, 64), dtype=np.float32)
target = rng.integers(3000, size=3000)
linear = cyce.value_and_grad(F.linear_cross_entropy)
expected = linear(hidden, weights, target)[1][1].tobytes()
before = state()
n_interrupted = 0
for i in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001 * (i + 1))
        linear(hidden, weights, target)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        n_interrupted += 1
    assert state() == before, i
    assert linear(hidden, weights, target)[1][1].tobytes() == expected

# Interrupted while threads are started, and in calls that are hardly longer.
short = hidden[:400], weights[:400], target[:400] % 400
expected = linear(*short)[1][1].tobytes()
for i in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 10e-6 * (i % 100 + 1))
        linear(*short)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    assert state() == before, i
    assert linear(*short)[1][1].tobytes() == expected
assert threads_end()

class SlowNumPy:
    @staticmethod
    def matmul(*arguments, **named):
        time.sleep(0.02)
        return np.matmul(*arguments, **named)

    def __getattr__(self, name):
        return getattr(np, name)

# A call that would take 18 seconds at least ends when it is interrupted.
chunks.np = SlowNumPy()
start = time.monotonic()
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    linear(hidden, weights, target, options=cyce.LinearCrossEntropyOptions(batch_chunk_size=10))
except KeyboardInterrupt:
    print(n_interrupted > 5, time.monotonic() - start < 6)
assert state() == before
assert threads_end()
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_ctrl_c_in_a_call(run_python):
    interrupt = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)"
    result = run_python("-c", interrupt + INTERRUPTED)
    assert (result.stdout, result.returncode) == ("True True\n", 0), result.stderr


AT_EXIT = """
import atexit
import numpy as np
import cyce
import cyce.functional as F

cyce.set_num_threads(2)
hidden, weights, target = np.ones((4000, 64)), np.ones((500, 64)), np.zeros(4000, int)
atexit.register(lambda: print(F.linear_cross_entropy(hidden, weights, target).round(4)))
F.linear_cross_entropy(hidden, weights, target)
"""


def test_calls_at_the_end_of_the_interpreter(run_python):
    result = run_python("-c", AT_EXIT)
    assert (result.stdout, result.stderr) == (f"{np.log(500).round(4)}\n", "")


# The logits would take 1.6 GB.
PEAK = """
import resource, sys
import numpy as np
import cyce
import cyce.functional as F

rng = np.random.default_rng(0)
hidden = rng.standard_normal((8192, 16), dtype=np.float32)
weights = rng.standard_normal((50_000, 16), dtype=np.float32)
target = rng.integers(50_000, size=8192)
out = np.ones_like(hidden), np.ones_like(weights)
rows = int(sys.argv[1])
options = cyce.LinearCrossEntropyOptions(batch_chunk_size=rows) if rows else None
linear = cyce.value_and_grad(F.linear_cross_entropy)
linear(hidden[:64], weights, target[:64], out=(out[0][:64], out[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear(hidden, weights, target, out=out, options=options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@with_resource_usage
@pytest.mark.parametrize(("rows", "megabytes"), [(0, 200), (64, 30)])
def test_the_logits_are_never_in_memory_as_a_whole(run_python, rows, megabytes):
    result = run_python("-c", PEAK, str(rows))
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < megabytes * 1e6


# The hidden states take 205 MB, as does their gradient; nearly all rows count.
PEAK_OF_WIDE = """
import resource
import numpy as np
import cyce
import cyce.functional as F

hidden = np.ones((50_000, 1024), np.float32)
weights = np.ones((100, 1024), np.float32)
target = np.zeros(50_000, int)
target[7] = -100
out = np.ones_like(hidden), np.ones_like(weights)
linear = cyce.value_and_grad(F.linear_cross_entropy)
linear(hidden[:64], weights, target[:64], out=(out[0][:64], out[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear(hidden, weights, target, out=out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@with_resource_usage
def test_rows_that_count_are_copied_in_chunks(run_python):
    result = run_python("-c", PEAK_OF_WIDE)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 220e6


class TestErrors:
    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"input": np.ones((2, 3, 3))}, ValueError, "expected input with dimensionality 1 or 2, got 3"),
            ({"input": 1.0}, ValueError, "expected input with dimensionality 1 or 2, got 0"),
            ({"input": np.ones((2, 3), int)}, TypeError, "input: hidden states must be floating point"),
            ({"input": [["a"]]}, TypeError, "input: hidden states must be"),
            (
                {"linear_weight": np.ones(3)},
                ValueError,
                "expected linear_weight with dimensionality at least 2",
            ),
            ({"linear_weight": 1.0}, ValueError, "expected linear_weight with dimensionality at least 2"),
            (
                {"linear_weight": np.ones((4, 3), np.float32)},
                TypeError,
                "linear_weight: must have the dtype of input, float64, got float32",
            ),
            (
                {"linear_weight": np.ones((4, 3), int)},
                TypeError,
                "linear_weight: parameters must be floating",
            ),
            (
                {"linear_weight": np.ones((4, 2))},
                ValueError,
                r"expected equal input and linear_weight last dimensions \(in_features\), got 3 and 2",
            ),
            ({"linear_bias": np.ones(3)}, ValueError, r"expected linear_bias shape \(4,\), got \(3,\)"),
            ({"linear_bias": 1.0}, ValueError, r"expected linear_bias shape \(4,\), got \(\)"),
            ({"linear_bias": np.ones(4, np.float32)}, TypeError, "linear_bias: must have the dtype of input"),
            (
                {"input": np.ones(3), "linear_weight": np.ones((4, 2, 3))},
                ValueError,
                r"K-dimensional loss defined by linear_weight shape \(4, 2, 3\) requires batched input",
            ),
            (
                {"target": [0, 4]},
                IndexError,
                r"Target 4 is out of bounds. target\[1\] must be a class index from 0 to 3",
            ),
            (
                {"target": [0]},
                ValueError,
                r"Expected input batch_size \(2\) .* For the logits of shape \[2, 4\]",
            ),
            ({"target": np.ones((2, 4), int)}, TypeError, "target has the shape of the logits"),
            (
                {"target": np.ones((2, 4)), "ignore_index": -100},
                ValueError,
                "ignore_index cannot be specified when target contains probabilities",
            ),
            ({"ignore_index": 1.5}, TypeError, "ignore_index: must be an integer"),
            ({"weight": np.ones(3)}, ValueError, "weight tensor should be defined either for all 4 classes"),
            ({"reduction": "avg"}, ValueError, "avg is not a valid value for reduction"),
            ({"label_smoothing": 2}, ValueError, "label_smoothing must be between"),
            (
                {"sample_weight": np.ones(3)},
                ValueError,
                r"sample_weight: must have .* shape \[2\], got \[3\]",
            ),
            (
                {"options": 3},
                TypeError,
                "options: must be a cyce.LinearCrossEntropyOptions or None, got int",
            ),
            (
                {"options": cyce.LinearCrossEntropyOptions(acc_dtype=np.float32)},
                ValueError,
                "options: acc_dtype must be the dtype of input, float64, or None; got float32",
            ),
            (
                {
                    "options": cyce.LinearCrossEntropyOptions(
                        batch_chunk_size=2, chunking_method="aspect_ratio:2"
                    )
                },
                ValueError,
                r"options: batch_chunk_size \(=2\) and chunking_method",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, named, error, message):
        arguments = {"input": np.ones((2, 3)), "linear_weight": np.ones((4, 3)), "target": [0, 1], **named}
        out = np.full((2, 3), 77.0), np.full((4, 3), 77.0)
        with pytest.raises(error, match=message):
            LINEAR_AND_GRADIENTS(**arguments, out=out)
        with pytest.raises(error, match=message):
            F.linear_cross_entropy(**arguments)
        assert (out[0] == 77).all()
        assert (out[1] == 77).all()

    def test_where_a_target_of_several_positions_is_wrong(self):
        with pytest.raises(IndexError, match=r"Target 9 is out of bounds. target\[1, 1\]"):
            F.linear_cross_entropy(np.ones((2, 3)), np.ones((4, 2, 3)), [[0, 1], [2, 9]])


class TestOptions:
    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"acc_policy": "best"}, "invalid acc_policy: 'best'"),
            ({"chunking_method": "aspect_ratio:0"}, "invalid chunking_method: 'aspect_ratio:0'"),
            ({"chunking_method": "aspect_ratio:"}, "invalid chunking_method: 'aspect_ratio:'"),
            ({"chunking_method": "golden"}, "invalid chunking_method: 'golden'"),
            ({"batch_chunk_size": 0}, "batch_chunk_size must be positive int or None, got 0"),
            ({"batch_chunk_size": 1.5}, "batch_chunk_size must be positive int or None, got 1.5"),
            ({"acc_dtype": "int32"}, "acc_dtype must be None or a floating point dtype"),
        ],
    )
    def test_values_that_are_none(self, named, message):
        with pytest.raises(ValueError, match=message):
            cyce.LinearCrossEntropyOptions(**named)

    def test_our_own_choice(self):
        def rows(n_rows, in_features, n_outputs, itemsize=4, n_counting=None, **named):
            options = cyce.LinearCrossEntropyOptions(**named)
            n_counting = n_rows if n_counting is None else n_counting
            return chunks.rows_per_chunk(options, n_rows, n_counting, in_features, n_outputs, itemsize)

        assert rows(100, 64, 1000) == 100
        # In chunks of about the same size, which fill the buffer but no more.
        assert rows(4096, 256, 128_256) == 343
        assert rows(1024, 1024, 50_257) == 512
        assert rows(10**6, 64, 10**7, 8) == chunks.MIN_ROWS
        assert rows(4096, 256, 128_256, chunking_method=None) == 4096
        # Copies of the rows that count, and their gradients, count, too.
        n = rows(100_000, 1024, 100, n_counting=99_999)
        assert 0.9 * chunks.BUFFER_BYTES < 4 * n * (100 + 2 * 1024) <= chunks.BUFFER_BYTES

    def test_the_aspect_ratio_is_that_of_all_rows(self, rng):
        hidden, weights, _, target = make(rng, 64, 4, (64,))
        both = cyce.LinearCrossEntropyOptions(batch_chunk_size=4, chunking_method="aspect_ratio")
        for n_ignored in (0, 40, 64):
            target[:n_ignored] = -100
            F.linear_cross_entropy(hidden, weights, target, options=both)

    def test_the_number_of_rows_is_kept_to(self, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 70, 4, (5,))
        sizes = []
        kernel = dispatch.kernels.cross_entropy

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                sizes.append(len(arguments.logits))
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        F.linear_cross_entropy(hidden, weights, target, options=chunks_of(np.int64(32)))
        assert sizes == [32, 32, 6]


class TestModule:
    def test_parameters(self):
        module = cyce.LinearCrossEntropyLoss(16, 5, out_features=(3, 2), bias=True, dtype=np.float64, rng=0)
        assert module.linear.weight.shape == (30, 16)
        assert module.linear.bias.shape == (30,)
        assert module.linear.weight.dtype == module.linear.bias.dtype == np.float64
        assert 0.2 < np.abs(module.linear.weight).max() <= 0.25
        again = cyce.LinearCrossEntropyLoss(16, 5, out_features=(3, 2), dtype=np.float64, rng=0)
        np.testing.assert_array_equal(module.linear.weight, again.linear.weight)
        assert again.linear.bias is None
        assert cyce.LinearCrossEntropyLoss(16, 5).linear.weight.dtype == np.float32
        assert cyce.LinearCrossEntropyLoss(0, 5, bias=True).linear.weight.shape == (5, 0)
        assert "in_features=16, out_features=30, bias=True" in repr(module.linear)
        assert "in_features=16, num_classes=5, out_features=(3, 2), bias=True" in repr(module)

    @pytest.mark.parametrize("outputs", [(5,), (5, 3, 2)], ids=str)
    def test_it_is_the_function(self, rng, dtype, outputs):
        hidden, weights, bias, target = make(rng, 12, 4, outputs, dtype)
        sample_weight = rng.random(target.shape)
        options = {"weight": rng.random(5), "ignore_index": 2, "label_smoothing": 0.1, "softcap": 3.0}
        module = cyce.LinearCrossEntropyLoss(
            4, 5, out_features=outputs[1:], bias=True, dtype=dtype, **options
        )
        module.linear.weight = weights.reshape(-1, 4)
        module.linear.bias = bias.ravel()
        for named in ({}, {"sample_weight": sample_weight}):
            expected = LINEAR_AND_GRADIENTS(hidden, weights, target, linear_bias=bias, **options, **named)
            assert module(hidden, target, **named) == module.forward(hidden, target, **named) == expected[0]
            loss, gradients = cyce.value_and_grad(module)(input=hidden, target=target, **named)
            assert loss == expected[0]
            shapes = [hidden.shape, module.linear.weight.shape, module.linear.bias.shape]
            assert [gradient.shape for gradient in gradients] == shapes
            for gradient, other in zip(gradients, expected[1], strict=True):
                np.testing.assert_array_equal(gradient.ravel(), other.ravel())
        out = tuple(np.empty_like(gradient) for gradient in gradients)
        assert cyce.value_and_grad(module)(hidden, target, **named, out=out)[1] is out
        np.testing.assert_array_equal(out[1], gradients[1])

    def test_arrays_of_out_have_the_shapes_of_the_parameters(self, rng):
        module = cyce.LinearCrossEntropyLoss(4, 3, out_features=(2,), bias=True, rng=0)
        hidden, target = rng.standard_normal((5, 4), dtype=np.float32), rng.integers(3, size=(5, 2))
        gradients = cyce.value_and_grad(module)
        right = gradients(hidden, target)[1]
        for lay_out in (
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
            lambda a: np.ascontiguousarray(a[::-1])[::-1],
        ):
            out = [lay_out(np.full_like(array, 77)) for array in right]
            assert gradients(hidden, target, out=out)[1] is out
            for array, expected in zip(out, right, strict=True):
                np.testing.assert_array_equal(array, expected)
        linear = module.linear
        for number, wrong, error, message in (
            (1, np.empty((3, 2, 4), "f4"), ValueError, r"linear_weight's shape \[6, 4\], got \[3, 2, 4\]"),
            (2, np.empty((3, 2), "f4"), ValueError, r"linear_bias's shape \[6\], got \[3, 2\]"),
            (1, np.empty((6, 4)), TypeError, "linear_weight's dtype float32, got float64"),
            (1, np.zeros((6, 4)).tolist(), TypeError, "whose memory can be written, got list"),
            (1, linear.weight, ValueError, "out: shares memory with linear_weight"),
            (1, right[0], ValueError, r"linear_weight's shape \[6, 4\], got \[5, 4\]"),
        ):
            with pytest.raises(error, match=message):
                gradients(hidden, target, out=[*right[:number], wrong, *right[number + 1 :]])
        with pytest.raises(TypeError, match=r"out: must be a tuple of 3 arrays, .* got 2 of them"):
            gradients(hidden, target, out=right[:2])

    def test_descent(self, rng):
        hidden = rng.standard_normal((50, 4))
        target = (hidden @ rng.standard_normal((4, 3))).argmax(axis=1)
        module = cyce.LinearCrossEntropyLoss(4, 3, bias=True, dtype=np.float64, rng=1)
        before = module(hidden, target)
        for _ in range(200):
            _, (_, of_weight, of_bias) = cyce.value_and_grad(module)(hidden, target)
            module.linear.weight -= of_weight
            module.linear.bias -= of_bias
        assert module(hidden, target) < 0.2 * before

    @pytest.mark.parametrize(
        "duplicate", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
    )
    def test_copies(self, rng, duplicate):
        module = cyce.LinearCrossEntropyLoss(4, 3, bias=True, options=chunks_of(5), reduction="sum")
        hidden, target = rng.standard_normal((7, 4), dtype=np.float32), rng.integers(3, size=7)
        assert duplicate(module)(hidden, target) == module(hidden, target)

    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"in_features": -1}, ValueError, "in_features: must not be negative"),
            ({"in_features": 1.5}, TypeError, "in_features: must be an integer"),
            ({"num_classes": None}, TypeError, "num_classes: must be an integer"),
            ({"out_features": 3}, TypeError, "out_features: must be a tuple of integers, got int"),
            ({"out_features": (3, -1)}, ValueError, "out_features: must not be negative"),
            ({"dtype": np.int32}, TypeError, "dtype: must be numpy.float32 or numpy.float64"),
            ({"device": "cuda"}, ValueError, "device: must be None or 'cpu', got 'cuda'"),
            ({"rng": "x"}, TypeError, "rng: must be None, an integer or a numpy.random.Generator"),
            ({"rng": -1}, ValueError, "rng: must be None, an integer or a numpy.random.Generator"),
            ({"weight": [1.0]}, ValueError, r"expected weight shape to be \(3,\), got \(1,\)"),
            (
                {"label_smoothing": 2.0},
                ValueError,
                r"expected label_smoothing to be in range \[0, 1\], got 2.0",
            ),
        ],
    )
    def test_constructors_that_are_refused(self, named, error, message):
        with pytest.raises(error, match=message):
            cyce.LinearCrossEntropyLoss(**{"in_features": 2, "num_classes": 3, **named})

    def test_parameters_of_wrong_shapes(self):
        module = cyce.LinearCrossEntropyLoss(2, 3, bias=True)
        hidden = np.ones((4, 2), np.float32)
        for name, wrong, right in (
            ("weight", np.ones((2, 3)), (3, 2)),
            ("weight", np.float64(1), (3, 2)),
            ("bias", np.ones(2), (3,)),
        ):
            kept = getattr(module.linear, name)
            setattr(module.linear, name, wrong)
            with pytest.raises(ValueError) as raised:  # noqa: PT011
                module(hidden, [0] * 4)
            assert str(raised.value) == f"linear.{name}: must have shape {right}, got {wrong.shape}"
            setattr(module.linear, name, kept)
        with pytest.raises(TypeError, match="a call takes no argument 'gradient'"):
            module(hidden, [0] * 4, gradient=None)
