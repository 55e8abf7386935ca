"""cross_entropy for its callers: special values, kinds of arrays, properties."""

import warnings

import numpy as np
import pytest

import cyce
import cyce.functional as F
from stages import one_in

INF = np.inf
NAN = np.nan


def test_the_seed_example():
    logits = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]])
    # log(e**2 + e**0.5 + e**0.3) - 2 and log(e**0.1 + e**0.2 + e**2.5) - 2.5, by mpmath:
    # from mpmath import *; log(exp(2) + exp(0.5) + exp(mpf("0.3"))) - 2
    np.testing.assert_allclose(
        F.cross_entropy(logits, [0, 2], reduction="none"), [0.34061627, 0.17477381], atol=5e-9
    )
    np.testing.assert_allclose(F.cross_entropy(logits, [0, 2]), 0.25769504, atol=5e-9)


@pytest.mark.parametrize("name", ["cross_entropy", "CrossEntropyLoss", "value_and_grad", "set_num_threads"])
def test_public_names(name):
    assert name in cyce.__all__
    assert getattr(cyce, name).__doc__
    assert cyce.cross_entropy is F.cross_entropy


class TestResult:
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_scalar_of_the_dtype_of_the_logits(self, dtype, reduction):
        loss = F.cross_entropy(np.zeros((2, 3), dtype), [0, 1], reduction=reduction)
        assert type(loss) is dtype.type

    @pytest.mark.parametrize(
        ("shape", "positions"), [((3,), ()), ((2, 3), (2,)), ((2, 3, 4, 5), (2, 4, 5)), ((0, 3, 4), (0, 4))]
    )
    def test_none_has_the_shape_of_the_positions(self, dtype, shape, positions):
        losses = F.cross_entropy(np.zeros(shape, dtype), np.zeros(positions, int), reduction="none")
        assert isinstance(losses, np.ndarray)
        assert losses.shape == positions
        assert losses.dtype == dtype

    def test_one_position_with_a_target_of_shape_1(self):
        losses = F.cross_entropy(np.zeros(3), [1], reduction="none")
        assert losses.shape == ()

    def test_sum_of_float32_that_overflows_is_inf_without_a_warning(self):
        logits = np.array([[3e38, -3e38]], np.float32)
        assert F.cross_entropy(logits, [1]) == INF


class TestSpecialValues:
    """Row by row, what design and torch want."""

    @pytest.mark.parametrize("width", [3, 40, 9000])
    @pytest.mark.parametrize(
        ("start", "target", "loss"),
        [
            ([0.0, -INF, 0.0], 0, None),  # finite, whatever it is
            ([0.0, -INF, 0.0], 1, INF),
            ([0.0, INF, 0.0], 0, NAN),
            ([0.0, INF, 0.0], 1, NAN),
            ([0.0, NAN, 0.0], 0, NAN),
            ([NAN, 0.0, 0.0], 1, NAN),
            ([0.0, INF, NAN], 1, NAN),
        ],
    )
    def test_rows(self, level, dtype, loss_and_gradient, width, start, target, loss):
        logits = np.zeros((2, width), dtype)
        logits[0, :3] = start
        losses, gradients = loss_and_gradient(logits, [target, 0], reduction="none")
        if loss is None:
            assert np.isfinite(losses[0])
            assert gradients[0, 1] == 0
            assert abs(gradients[0].sum()) < 1e-5
        else:
            np.testing.assert_equal(losses[0], dtype.type(loss))
            if loss == INF:
                assert gradients[0, target] == -1
            else:
                assert np.isnan(gradients[0]).all()
        # The other row is not affected.
        np.testing.assert_allclose(losses[1], np.log(width), rtol=1e-6)

    @pytest.mark.parametrize("width", [1, 3, 40, 9000])
    def test_nothing_but_minus_inf(self, level, dtype, loss_and_gradient, width):
        losses, gradients = loss_and_gradient(np.full((1, width), -INF, dtype), [0], reduction="none")
        assert np.isnan(losses).all()
        assert np.isnan(gradients).all()

    def test_whole_blocks_of_minus_inf(self, level, dtype, loss_and_gradient):
        # 8192 classes are a block: the first two and the last are masked away.
        logits = np.full((1, 32_768), -INF, dtype)
        logits[0, 16_384:24_576] = np.linspace(-3, 3, 8192)
        losses, gradients = loss_and_gradient(logits, [17_000], reduction="none")
        alone, gradient_alone = loss_and_gradient(logits[:, 16_384:24_576], [616], reduction="none")
        np.testing.assert_array_equal(losses, alone)
        np.testing.assert_array_equal(gradients[:, 16_384:24_576], gradient_alone)
        assert not gradients[:, :16_384].any()
        assert not gradients[:, 24_576:].any()

    @pytest.mark.parametrize("width", [3, 40])
    def test_gradients_of_certain_rows_have_no_sign(self, level, dtype, loss_and_gradient, width):
        logits = np.zeros((40, width), dtype)
        logits[:, 1] = 1000
        _, gradients = loss_and_gradient(logits, np.ones(40, int))
        assert not gradients.any()
        assert not np.signbit(gradients).any()

    @pytest.mark.parametrize("place", one_in(2, [1, 63, 64, 127, 128, 8191, 8192, 9000, -1]))
    @pytest.mark.parametrize("width", one_in(2, [65, 129, 4161, 8193, 16_385]))
    @pytest.mark.parametrize("layout", ["rows", "image", "columns"])
    @pytest.mark.parametrize("others", [-INF, 0.0])
    def test_a_nan_anywhere(self, level, dtype, loss_and_gradient, others, layout, width, place):
        # At the edge of a block, alone in it, or before nothing but -inf.
        logits = np.full((3, width), others, dtype)
        logits[:, 0] = 1
        logits[1, place % width] = NAN
        target = np.zeros(3, int)
        if layout == "image":
            logits, target = logits.T[None].copy(), target[None]
        elif layout == "columns":
            logits = np.asfortranarray(logits)
        losses, gradient = loss_and_gradient(logits, target, reduction="none")
        np.testing.assert_array_equal(np.isnan(losses.ravel()), [False, True, False])
        gradient = gradient[0].T if layout == "image" else gradient
        np.testing.assert_array_equal(np.isnan(gradient), [[False] * width, [True] * width, [False] * width])

    @pytest.mark.parametrize("width", [1, 2, 40])
    def test_a_perfect_row_is_plus_zero(self, level, dtype, loss_and_gradient, width):
        logits = np.full((1, width), -1e5, dtype)
        logits[0, 0] = 1e5
        loss, gradient = loss_and_gradient(logits, [0])
        assert loss == 0
        assert not np.signbit(loss)
        assert not gradient.any()

    @pytest.mark.parametrize("n_rows", [2, 300])
    @pytest.mark.parametrize("width", [3, 40])
    def test_one_infinite_loss_among_others(self, level, dtype, n_rows, width):
        logits = np.zeros((n_rows, width), dtype)
        logits[1, 0] = -INF
        assert F.cross_entropy(logits, np.zeros(n_rows, int)) == INF
        assert F.cross_entropy(logits, np.zeros(n_rows, int), reduction="sum") == INF

    @pytest.mark.parametrize("width", [2, 3, 40, 9000])
    @pytest.mark.parametrize("image", [False, True])
    def test_mass_at_minus_inf_is_inf(self, level, dtype, image, width):
        logits = np.zeros((1, width), dtype)
        logits[0, 1] = -INF
        if image:
            logits = logits.reshape(1, width, 1)
        target = np.zeros((1, 1) if image else 1, int)
        assert F.cross_entropy(logits, target, label_smoothing=0.1) == INF
        assert F.cross_entropy(logits, np.full(logits.shape, 1 / width)) == INF

    @pytest.mark.parametrize("width", [2, 40, 130, pytest.param(8192, marks=pytest.mark.integration)])
    @pytest.mark.parametrize("image", [False, True])
    def test_differences_beyond_the_largest_number(self, level, dtype, loss_and_gradient, image, width):
        huge = 0.95 * np.finfo(dtype).max
        for place in (0, width // 2, width - 1):
            logits = np.full((1, width), -huge, dtype)
            logits[0, place] = huge
            target, one_hot = np.array([place]), np.eye(width, dtype=dtype)[[place]]
            if image:
                logits, target, one_hot = logits[:, :, None], target[:, None], one_hot[:, :, None]
            for given in (target, one_hot):
                loss, gradient = loss_and_gradient(logits, given)
                assert loss == 0
                assert not gradient.any()

    @pytest.mark.parametrize("width", [3, 40, 9000])
    def test_probability_zero_at_minus_inf_adds_nothing(self, level, dtype, loss_and_gradient, width):
        logits = np.zeros((1, width), dtype)
        logits[0, 1] = -INF
        target = np.zeros((1, width), dtype)
        target[0, 0] = 1
        loss, gradient = loss_and_gradient(logits, target)
        np.testing.assert_allclose(loss, np.log(width - 1), rtol=1e-6)
        assert gradient[0, 1] == 0
        assert np.isfinite(gradient).all()

    def test_masks_of_large_negative_numbers(self, level, dtype, loss_and_gradient):
        for mask in (-1e9, np.finfo(dtype).min, -INF):
            logits = np.array([[1.0, mask, 2.0, mask]], dtype)
            loss, gradient = loss_and_gradient(logits, [2])
            np.testing.assert_allclose(loss, np.log1p(np.exp(-1)), rtol=1e-6)
            np.testing.assert_array_equal(gradient[0, [1, 3]], 0)

    def test_subnormal_losses(self, level, loss_and_gradient):
        loss, gradient = loss_and_gradient(np.float32([[95, 0]]), [0])
        # exp(-95) = 5.5e-42, a subnormal float32
        assert loss == np.float32(5.521e-42)
        assert gradient[0, 0] == -loss


class TestIgnoredPositions:
    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    @pytest.mark.parametrize("shape", [(4, 3), (4, 50), (4, 6000), (4, 3, 5)], ids=str)
    def test_nothing_leaks(self, level, dtype, rng, loss_and_gradient, shape, bad):
        logits = rng.standard_normal(shape).astype(dtype)
        target = np.zeros(shape[:1] + shape[2:], int)
        target[1] = -100
        clean = loss_and_gradient(logits, target)
        logits[1] = bad
        loss, gradient = loss_and_gradient(logits, target)
        assert loss == clean[0]
        np.testing.assert_array_equal(gradient, clean[1])
        assert not gradient[1].any()
        losses = F.cross_entropy(logits, target, reduction="none")
        assert not losses[1].any()

    @pytest.mark.parametrize("shape", [(4, 3), (4, 50), (4, 3, 5)], ids=str)
    def test_an_ignored_row_equals_a_removed_row(self, level, dtype, rng, loss_and_gradient, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        target = rng.integers(shape[1], size=shape[:1] + shape[2:])
        kept = [0, 2, 3]
        expected, expected_gradient = loss_and_gradient(logits[kept], target[kept])
        target[1] = 77
        loss, gradient = loss_and_gradient(logits, target, ignore_index=77)
        np.testing.assert_allclose(loss, expected, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(gradient[kept], expected_gradient, rtol=8 * np.finfo(dtype).eps)

    @pytest.mark.parametrize("shape", [(4, 3), (4, 50), (4, 3, 5)], ids=str)
    def test_all_ignored(self, level, dtype, loss_and_gradient, shape):
        logits = np.zeros(shape, dtype)
        target = np.full(shape[:1] + shape[2:], -100)
        for reduction, value in (("mean", NAN), ("sum", 0)):
            loss, gradient = loss_and_gradient(logits, target, reduction=reduction)
            np.testing.assert_equal(loss, dtype.type(value))
            assert not gradient.any()
        losses, gradient = loss_and_gradient(logits, target, reduction="none")
        assert not losses.any()
        assert not gradient.any()

    @pytest.mark.parametrize("shape", [(4, 3), (4, 50), (4, 3, 5)], ids=str)
    @pytest.mark.parametrize("weight", [NAN, INF])
    def test_no_weight_leaks(self, level, dtype, loss_and_gradient, shape, weight):
        weights = np.ones(shape[1])
        weights[1] = weight
        target = np.zeros(shape[:1] + shape[2:], int)
        target[1] = -100
        _, gradient = loss_and_gradient(
            np.zeros(shape, dtype), target, weight=weights, label_smoothing=0.1, reduction="sum"
        )
        np.testing.assert_array_equal(gradient[1], 0)

    def test_an_ignored_class_stays_in_the_denominator(self, dtype):
        loss = F.cross_entropy(np.zeros((2, 4), dtype), [0, 1], ignore_index=1)
        np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)

    @pytest.mark.parametrize("ignore_index", [255, 200])
    def test_any_value_of_an_unsigned_target(self, ignore_index):
        target = np.array([0, ignore_index], np.uint8)
        assert F.cross_entropy(np.zeros((2, 1)), target, ignore_index=ignore_index) == 0

    def test_an_unsigned_target_never_equals_a_negative_index(self):
        with pytest.raises(IndexError, match="Target 255"):
            F.cross_entropy(np.zeros((1, 3)), np.array([255], np.uint8), ignore_index=-1)
        with pytest.raises(IndexError, match=f"Target {2**64 - 1}"):
            F.cross_entropy(np.zeros((1, 3)), np.array([2**64 - 1], np.uint64), ignore_index=-1)
        with pytest.raises(IndexError, match=f"Target {2**64 - 1}"):
            F.cross_entropy(np.zeros((1, 3)), np.array([2**64 - 1], np.uint64), ignore_index=2**63 - 1)


class TestWeights:
    def test_present_classes_of_weight_zero(self, level, dtype, loss_and_gradient):
        loss, gradient = loss_and_gradient(np.zeros((2, 3), dtype), [0, 0], weight=[0, 1, 1])
        assert np.isnan(loss)
        assert np.isnan(gradient).all()
        loss, gradient = loss_and_gradient(np.zeros((2, 3), dtype), [0, 0], weight=[0, 1, 1], reduction="sum")
        assert loss == 0
        assert not gradient.any()
        for smoothing in (0.1, 1.0):
            loss, gradient = loss_and_gradient(
                np.zeros((2, 3), dtype), [0, 0], weight=[0, 1, 1], label_smoothing=smoothing
            )
            assert np.isnan(loss)
            assert np.isnan(gradient).all()

    @pytest.mark.parametrize("n_classes", [3, 300, 9000])
    @pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
    def test_an_impossible_class_of_weight_0_adds_nothing(self, level, dtype, n_classes, layout):
        logits = np.zeros((2, n_classes), dtype)
        logits[:, 1] = -INF
        weight = np.ones(n_classes)
        weight[1] = 0
        one_hot = np.eye(n_classes, dtype=dtype)[[1, 0]]
        for reduction in ("none", "sum"):
            of_indices, of_probabilities = (
                cyce.value_and_grad(F.cross_entropy)(layout(logits), target, weight, reduction=reduction)
                for target in ([1, 0], one_hot)
            )
            for ours, theirs in zip(of_indices, of_probabilities, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            assert np.all(of_indices[1][0] == 0)
        assert F.nll_loss(F.log_softmax(logits, dim=1), [1, 0], weight, reduction="none")[0] == 0

    def test_what_the_dtype_cannot_hold_is_infinite(self):
        # Without a warning: warnings are errors here.
        logits = np.zeros((2, 3), np.float32)
        assert F.cross_entropy(logits, [0, 1], weight=[1, 1e300, 1], reduction="sum") == INF
        probabilities = np.array([[0, 0, 1], [0, 0, 1e300]], np.longdouble)
        assert not np.isfinite(F.cross_entropy(logits, probabilities))

    def test_weight_one_equals_none(self, level, dtype, rng, loss_and_gradient):
        logits = rng.standard_normal((30, 7)).astype(dtype)
        target = rng.integers(7, size=30)
        plain = loss_and_gradient(logits, target)
        weighted = loss_and_gradient(logits, target, weight=np.ones(7))
        assert plain[0] == weighted[0]
        np.testing.assert_array_equal(plain[1], weighted[1])

    @pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4", int, list])
    def test_any_real_dtype_is_cast(self, kind):
        values = [1, 2, 0.5] if kind is not int else [1, 2, 3]
        weight = values if kind is list else np.array(values, kind)
        logits = np.float32([[1, 2, 3], [3, 1, 2]])
        expected = F.cross_entropy(logits, [0, 1], weight=np.array(values, np.float32))
        assert F.cross_entropy(logits, [0, 1], weight=weight) == expected

    def test_one_hot_probabilities_with_weights_differ_from_indices_under_mean(self):
        logits, weight = np.zeros((2, 2)), [1.0, 3.0]
        assert F.cross_entropy(logits, [0, 1], weight=weight) == pytest.approx(np.log(2))
        assert F.cross_entropy(logits, np.eye(2), weight=weight) == pytest.approx(2 * np.log(2))


class TestArrays:
    """What NumPy users may pass."""

    @pytest.mark.parametrize("kind", [*"bhilqBHILQ", ">i2", ">u8", list])
    def test_every_integer_dtype_of_target(self, level, rng, kind):
        logits = rng.standard_normal((5, 4))
        target = np.array([3, 0, 1, 2, 3])
        given = target.tolist() if kind is list else target.astype(kind)
        assert F.cross_entropy(logits, given) == F.cross_entropy(logits, target)

    def test_every_kind_of_logits(self, rng):
        logits = rng.standard_normal((4, 3))
        target = [0, 1, 2, 0]
        expected = F.cross_entropy(logits, target)
        read_only = logits.copy()
        read_only.flags.writeable = False
        unaligned = np.frombuffer(b"x" + logits.tobytes(), np.uint8)[1:].view(np.float64).reshape(4, 3)
        assert not unaligned.flags.aligned
        kinds = [
            logits.tolist(),
            read_only,
            unaligned,
            logits.astype(">f8"),
            np.asfortranarray(logits),
            memoryview(logits),
            logits.view(type("Subclass", (np.ndarray,), {})),
            np.ma.getdata(logits),
        ]
        for given in kinds:
            assert F.cross_entropy(given, target) == pytest.approx(expected, rel=1e-15)

    def test_an_object_with_array(self):
        class Holder:
            def __array__(self, dtype=None, copy=None):
                return np.zeros((1, 2), np.float32)

        loss = F.cross_entropy(Holder(), [0])
        assert loss == np.float32(np.log(2))

    def test_an_empty_list_is_no_targets(self):
        assert np.isnan(F.cross_entropy(np.zeros((0, 3)), []))

    @pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 0)])
    def test_nothing_at_all(self, level, dtype, loss_and_gradient, shape):
        logits = np.zeros(shape, dtype)
        for target in (np.zeros(shape[:1] + shape[2:], int), np.zeros(shape)):
            loss, gradient = loss_and_gradient(logits, target)
            assert np.isnan(loss)
            assert gradient.shape == shape
            assert F.cross_entropy(logits, target, reduction="sum") == 0

    def test_no_classes(self, dtype):
        logits = np.zeros((2, 0), dtype)
        np.testing.assert_array_equal(F.cross_entropy(logits, np.zeros((2, 0)), reduction="none"), [0, 0])
        assert np.isnan(F.cross_entropy(logits, [-100, -100]))
        with pytest.raises(IndexError, match=r"Target 0 is out of bounds\..*no classes"):
            F.cross_entropy(logits, [-100, 0])

    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
    def test_probabilities_of_any_floating_point_dtype(self, level, dtype, kind):
        target = np.array([[0.5, 0.25, 0.25], [0, 1, 0]]).astype(kind)
        logits = np.array([[1, 2, 3], [3, 1, 2]], dtype)
        assert F.cross_entropy(logits, target) == F.cross_entropy(logits, target.astype(dtype))


class TestDeprecatedArguments:
    @pytest.mark.parametrize(
        ("size_average", "reduce", "reduction"),
        [
            (None, True, "mean"),
            (True, None, "mean"),
            (True, True, "mean"),
            (False, None, "sum"),
            (False, True, "sum"),
            (None, False, "none"),
            (True, False, "none"),
            (False, False, "none"),
        ],
    )
    def test_they_override_reduction_with_a_warning(self, size_average, reduce, reduction):
        logits = np.array([[1.0, 2.0], [3.0, 1.0]])
        message = f"please use reduction='{reduction}' instead"
        with pytest.warns(DeprecationWarning, match=message) as function_warnings:
            loss = F.cross_entropy(logits, [0, 1], None, size_average, -100, reduce, "no such thing")
        np.testing.assert_array_equal(loss, F.cross_entropy(logits, [0, 1], reduction=reduction))
        with pytest.warns(DeprecationWarning, match=message) as module_warnings:
            criterion = cyce.CrossEntropyLoss(None, size_average, -100, reduce, "no such thing")
        assert criterion.reduction == reduction
        with pytest.warns(DeprecationWarning, match=message) as gradient_warnings:
            cyce.value_and_grad(F.cross_entropy)(logits, [0, 1], size_average=size_average, reduce=reduce)
        # The warning points at the caller's line.
        for record in (*function_warnings, *module_warnings, *gradient_warnings):
            assert record.filename == __file__

    def test_without_them_there_is_no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            F.cross_entropy(np.zeros((1, 2)), [0])
            cyce.CrossEntropyLoss()


class TestProperties:
    """Two spellings, one answer."""

    @pytest.mark.parametrize("shape", [(6, 5), (6, 300), (6, 5, 7)], ids=str)
    def test_shift_invariance(self, level, rng, shape):
        logits = rng.integers(-8, 8, shape).astype(np.float32)
        target = rng.integers(shape[1], size=shape[:1] + shape[2:])
        losses = F.cross_entropy(logits, target, reduction="none")
        for shift in (1.0, -1000.0, 1e5):
            np.testing.assert_allclose(
                F.cross_entropy(logits + np.float32(shift), target, reduction="none"), losses, rtol=3e-7
            )

    @pytest.mark.parametrize("shape", [(6, 5), (6, 300), (6, 5, 7)], ids=str)
    def test_class_permutation(self, level, dtype, rng, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        target = rng.integers(shape[1], size=shape[:1] + shape[2:])
        order = rng.permutation(shape[1])
        np.testing.assert_allclose(
            F.cross_entropy(logits[:, order], np.argsort(order)[target], reduction="none"),
            F.cross_entropy(logits, target, reduction="none"),
            rtol=4 * np.finfo(dtype).eps,
        )

    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    def test_one_hot_probabilities_equal_indices(self, level, dtype, rng, loss_and_gradient, smoothing):
        logits = rng.standard_normal((20, 6)).astype(dtype)
        target = rng.integers(6, size=20)
        indices = loss_and_gradient(logits, target, label_smoothing=smoothing)
        probabilities = loss_and_gradient(logits, np.eye(6)[target], label_smoothing=smoothing)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(indices[0], probabilities[0], rtol=4 * eps)
        np.testing.assert_allclose(indices[1], probabilities[1], atol=eps)

    def test_spatial_positions_equal_rows(self, level, dtype, rng, loss_and_gradient):
        logits = rng.standard_normal((2, 7, 5, 4)).astype(dtype)
        target = rng.integers(7, size=(2, 5, 4))
        loss, gradient = loss_and_gradient(logits, target)
        rows, row_gradient = loss_and_gradient(np.moveaxis(logits, 1, -1).reshape(-1, 7), target.ravel())
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(loss, rows, rtol=4 * eps)
        np.testing.assert_allclose(np.moveaxis(gradient, 1, -1).reshape(-1, 7), row_gradient, rtol=4 * eps)
