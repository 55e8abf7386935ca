"""softmax, log_softmax, softmin and logsumexp, and their modules."""

import itertools

import numpy as np
import pytest

import cyce
import cyce.functional as F

LONG = np.longdouble
INF, NAN = np.inf, np.nan
SHAPES = [
    (1,),
    (7,),
    (300_001,),
    (5, 3),
    (4, 33),
    (3, 8193),
    (300, 10),
    (2, 3, 4),
    (2, 21, 9, 11),
    (2, 130, 5),
    (2, 3, 2, 2, 3),
]


def exact(logits, axis):
    """Log-sum-exp and log-softmax in long double; finite logits only."""
    x = logits.astype(LONG)
    at_max = np.expand_dims(x.argmax(axis=axis), axis)
    row_max = np.take_along_axis(x, at_max, axis)
    others = np.exp(x - row_max)
    np.put_along_axis(others, at_max, 0, axis)
    logarithm = np.log1p(others.sum(axis=axis, keepdims=True))
    return (row_max + logarithm).squeeze(axis), (x - row_max) - logarithm


def axes_of(shape):
    return [pytest.param(shape, axis, id=f"{shape}-{axis}") for axis in range(-1, len(shape) - 1)]


@pytest.mark.parametrize(("shape", "axis"), list(itertools.chain.from_iterable(map(axes_of, SHAPES))))
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_values(level, dtype, rng, shape, axis, scale):
    logits = (rng.standard_normal(shape) * scale).astype(dtype)
    lse, log_softmax = exact(logits, axis)
    eps = np.finfo(dtype).eps
    # Subnormal results may be off by two of their steps.
    atol = 2 * np.finfo(dtype).smallest_subnormal
    np.testing.assert_allclose(
        F.log_softmax(logits, axis), log_softmax.astype(dtype), rtol=4 * eps, atol=atol
    )
    softmax = F.softmax(logits, axis)
    # An exponential (1 ulp), a factor, two products.
    np.testing.assert_allclose(softmax, np.exp(log_softmax).astype(dtype), rtol=6 * eps, atol=atol)
    np.testing.assert_allclose(F.softmin(-logits, axis), softmax, rtol=0)
    np.testing.assert_allclose(F.logsumexp(logits, axis), lse.astype(dtype), rtol=2 * eps, atol=2 * eps)
    for result in (softmax, F.log_softmax(logits, axis)):
        assert result.dtype == dtype
        assert result.shape == shape


def test_a_confident_row_keeps_its_logarithm(level):
    np.testing.assert_allclose(
        F.log_softmax(np.float32([[20, 0, 0]]), 1), [[-4.1223072e-09, -20, -20]], rtol=1e-7
    )


@pytest.mark.parametrize("width", [3, 40, 9000])
@pytest.mark.parametrize("axis", [0, 1])
def test_special_values(level, dtype, width, axis):
    rows = np.zeros((6, width), dtype)
    rows[0, 1] = -INF
    rows[1, 2] = INF
    rows[2, 0] = NAN
    rows[3] = -INF
    rows[4] = -INF
    rows[4, 1] = NAN
    rows[5, :2] = INF, NAN
    logits = rows if axis == 1 else np.ascontiguousarray(rows.T)
    softmax, log_softmax = F.softmax(logits, axis), F.log_softmax(logits, axis)
    if axis == 0:
        softmax, log_softmax = softmax.T, log_softmax.T
    assert softmax[0, 1] == 0
    assert log_softmax[0, 1] == -INF
    np.testing.assert_allclose(softmax[0, 0], 1 / (width - 1), rtol=1e-6)
    assert np.isnan(softmax[1:]).all()
    assert np.isnan(log_softmax[1:]).all()
    np.testing.assert_allclose(
        F.logsumexp(logits, axis), [np.log(width - 1), INF, NAN, -INF, NAN, NAN], rtol=1e-6
    )


@pytest.mark.parametrize("n_classes", [2, 10, 200])
@pytest.mark.parametrize("axis", [0, 1])
def test_probabilities_are_at_most_1(level, dtype, rng, n_classes, axis):
    # Confident rows, whose largest probability rounds to 1, or beyond where each factor is rounded.
    logits = (rng.standard_normal((5000, n_classes)) * 50).astype(dtype)
    logits = logits if axis == 1 else np.ascontiguousarray(logits.T)
    softmax = F.softmax(logits, axis)
    assert softmax.max() == 1
    assert F.log_softmax(logits, axis).max() <= 0
    stats = F.cross_entropy_stats(logits, logits.argmax(axis), axis=axis)
    assert stats.probability.max() == 1
    assert F.binary_cross_entropy(softmax, softmax) >= 0


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin])
@pytest.mark.parametrize("shape", [(5, 3), (40, 1000), (2, 9000), (2, 21, 40, 30), (3, 130, 70)], ids=str)
def test_out_and_threads(level, dtype, rng, threads, function, shape):
    logits = rng.standard_normal(shape).astype(dtype)
    threads(1)
    expected = function(logits, 1)
    for n in (1, 2, 3, 7):
        threads(n)
        assert function(logits, 1).tobytes() == expected.tobytes()
        in_place = logits.copy()
        assert function(in_place, 1, out=in_place) is in_place
        assert in_place.tobytes() == expected.tobytes()
    gaps = np.full((*shape[:-1], 2 * shape[-1]), 77, dtype)
    function(logits, 1, out=gaps[..., ::2])
    np.testing.assert_allclose(gaps[..., ::2], expected, rtol=1e-5)
    assert (gaps[..., 1::2] == 77).all()


@pytest.mark.parametrize("shape", [(300_001,), (1, 40_000, 5)], ids=str)
def test_logsumexp_of_other_layouts_in_any_number_of_threads(level, dtype, rng, threads, shape):
    logits = rng.standard_normal(shape).astype(dtype)
    results = set()
    for n in (1, 2, 3, 7):
        threads(n)
        results.add(F.logsumexp(logits, min(1, len(shape) - 1)).tobytes())
    assert len(results) == 1


class TestArguments:
    def test_scalars(self, dtype):
        for given in (dtype.type(3), np.array(3, dtype)):
            assert F.softmax(given, 0) == 1
            assert F.softmin(given, -1) == 1
            assert F.log_softmax(given, 0).shape == ()
            assert F.logsumexp(given, 0) == 3

    def test_casts(self):
        assert F.softmax([1, 2], 0, dtype=np.float32).dtype == np.float32
        assert F.log_softmax(np.float32([1, 2]), 0, dtype="f8").dtype == np.float64
        assert F.softmax(np.float16([1, 2]), 0, dtype=np.float32).dtype == np.float32
        assert F.logsumexp([1, 1], 0) == np.float32(1 + np.log(2))

    @pytest.mark.parametrize("wrong", [int, np.longdouble, ">f2", "nonsense", 3])
    def test_casts_to_what_there_is_not(self, wrong):
        with pytest.raises(TypeError, match="dtype: must be float16, bfloat16"):
            F.softmax([1.0], 0, dtype=wrong)

    @pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin])
    def test_integers_need_a_dtype(self, function):
        with pytest.raises(TypeError, match="input: logits must be floating point, got int64"):
            function([1, 2], 0)

    @pytest.mark.parametrize(("n_dims", "axis"), [(0, 0), (1, 0), (2, 1), (3, 0), (4, 1), (5, 1)])
    def test_an_implicit_dimension(self, rng, n_dims, axis):
        logits = np.asarray(rng.standard_normal((2, 3, 2, 3, 2)[:n_dims]))
        for function in (F.softmax, F.log_softmax, F.softmin):
            message = f"Implicit dimension choice for {function.__name__} has been deprecated"
            with pytest.warns(UserWarning, match=message) as warned:
                result = function(logits)
            np.testing.assert_array_equal(result, function(logits, axis))
            assert warned[0].filename == __file__
        with pytest.warns(UserWarning, match="Implicit dimension choice for softmax") as warned:
            cyce.Softmax()(logits)
        assert warned[0].filename == __file__

    @pytest.mark.parametrize("dim", [2, -3, 100])
    def test_no_such_dimension(self, dim):
        for function in (F.softmax, F.log_softmax, F.softmin, F.logsumexp):
            with pytest.raises(
                IndexError, match=r"Dimension out of range \(expected to be in range of \[-2, 1\]"
            ):
                function(np.zeros((2, 3)), dim)

    @pytest.mark.parametrize("dim", ["1", 1.0, [0.5]])
    def test_no_dimension_at_all(self, dim):
        for function in (F.softmax, F.logsumexp):
            with pytest.raises(TypeError, match="dim: must be an integer"):
                function(np.zeros((2, 3)), dim)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.zeros((2, 3), np.float32), TypeError, "out: must have input's dtype float64"),
            (np.zeros((3, 2)), ValueError, r"out: must have input's shape \[2, 3\]"),
            (np.broadcast_to(0.0, (2, 3)), ValueError, "out: is read-only"),
        ],
    )
    def test_a_wrong_out(self, out, error, message):
        for function in (F.softmax, F.log_softmax, F.softmin):
            with pytest.raises(error, match=message):
                function(np.ones((2, 3)), 1, out=out)

    def test_an_overlapping_out(self):
        memory = np.zeros(7)
        with pytest.raises(ValueError, match="out: shares a part of its memory with input"):
            F.softmax(memory[:6], 0, out=memory[1:])

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
    def test_nothing(self, shape):
        for function in (F.softmax, F.log_softmax, F.softmin):
            assert function(np.zeros(shape), -1).shape == shape
        np.testing.assert_array_equal(F.logsumexp(np.zeros(shape), -1), np.full(shape[:-1], -INF))


class TestLogsumexp:
    @pytest.mark.parametrize("axes", [(0,), (1, 2), [0, 2], (-1, 0), (0, 1, 2)])
    def test_several_axes(self, level, dtype, rng, axes):
        logits = (rng.standard_normal((4, 5, 6)) * 5).astype(dtype)
        expected = np.log(np.exp(logits.astype(LONG)).sum(axis=tuple(axes)))
        result = F.logsumexp(logits, axes)
        np.testing.assert_allclose(result, expected.astype(dtype), rtol=4 * np.finfo(dtype).eps)
        kept = F.logsumexp(logits, axes, keepdim=True)
        assert kept.shape == np.sum(logits, axis=tuple(axes), keepdims=True).shape
        np.testing.assert_array_equal(kept.ravel(), result.ravel())

    @pytest.mark.parametrize("axes", [(), [], (0, 0), (1, -1)])
    def test_no_axis_or_one_twice(self, axes):
        with pytest.raises(ValueError, match="dim: must name one or more distinct dimensions"):
            F.logsumexp(np.zeros((2, 3)), axes)

    def test_out(self, rng):
        logits = rng.standard_normal((3, 4))
        out = np.empty(3)
        assert F.logsumexp(logits, 1, out=out) is out
        np.testing.assert_array_equal(out, F.logsumexp(logits, 1))
        with pytest.raises(ValueError, match=r"out: must have the result's shape \[3\], got \[4\]"):
            F.logsumexp(logits, 1, out=np.empty(4))


class TestModules:
    @pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmin"])
    def test_they_are_their_functions(self, rng, name):
        module = getattr(cyce, name)(dim=0)
        assert repr(module) == f"{name}(dim=0)"
        logits = rng.standard_normal((3, 4))
        function = {"Softmax": F.softmax, "LogSoftmax": F.log_softmax, "Softmin": F.softmin}[name]
        np.testing.assert_array_equal(module(logits), function(logits, 0))
        np.testing.assert_array_equal(module.forward(logits), function(logits, 0))

    @pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)])
    def test_softmax2d(self, rng, shape):
        logits = rng.standard_normal(shape)
        np.testing.assert_array_equal(cyce.Softmax2d()(logits), F.softmax(logits, -3))
        assert repr(cyce.Softmax2d()) == "Softmax2d()"

    @pytest.mark.parametrize("shape", [(3,), (3, 4), (1, 1, 1, 1, 1)])
    def test_softmax2d_of_no_image(self, shape):
        with pytest.raises(ValueError, match=f"Softmax2d: expected input to be 3D or 4D, got {len(shape)}D"):
            cyce.Softmax2d()(np.zeros(shape))


@pytest.mark.parametrize("n_classes", [3, 40, 200, 9000])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_underflow_is_gradual(level, dtype, n_classes, layout):
    # Down to the smallest subnormal number, also where a block of classes is far below the others.
    info = np.finfo(dtype)
    depths = np.log(float(info.tiny)) - np.array([0.25, 2, 12])
    logits = np.full((3, n_classes), -np.inf, dtype)
    logits[:, 0] = 0
    logits[:, -1] = depths
    exact = np.exp(logits[:, -1].astype(np.longdouble))
    assert np.all(exact > info.smallest_subnormal)
    for probabilities in (F.softmax(layout(logits), dim=1), F.softmin(layout(-logits), dim=1)):
        assert np.all(np.abs(probabilities[:, -1] - exact) <= 2 * info.smallest_subnormal)
    stats = F.cross_entropy_stats(layout(logits), np.full(3, n_classes - 1))
    assert np.all(np.abs(stats.probability - exact) <= 2 * info.smallest_subnormal)
