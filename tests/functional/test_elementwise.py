"""Binary cross-entropy and Kullback-Leibler divergence, beside their formulas in long double."""

import contextlib
import itertools

import numpy as np
import pytest

import cyce
import cyce.functional as F
from accuracy_table import ulps
from cyce.kernels import dispatch
from oracle import LONG
from records import of_elements

BCE_WITH_LOGITS = F.binary_cross_entropy_with_logits
LOSSES = [BCE_WITH_LOGITS, F.binary_cross_entropy, F.kl_div]


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def exact(loss, given, target, weight=1, pos_weight=1, log_target=False):
    """Return losses and slopes of all elements."""
    x, y, w, p = (np.asarray(array).astype(LONG) for array in (given, target, weight, pos_weight))
    with np.errstate(all="ignore"):
        if loss is BCE_WITH_LOGITS:
            losses = (1 - y) * softplus(x) + p * y * softplus(-x)
            slopes = (1 - y) / (1 + np.exp(-x)) - p * y / (1 + np.exp(x))
        elif loss is F.binary_cross_entropy:
            losses = (1 - y) * np.minimum(-np.log1p(-x), 100) + y * np.minimum(-np.log(x), 100)
            slopes = (x - y) / np.maximum(x * (1 - x), LONG("1e-12"))
        else:
            q = np.exp(y) if log_target else y
            losses = np.where(q == 0, 0, q * ((y if log_target else np.log(y)) - x))
            slopes = -q * np.ones_like(x)
    return losses * w, slopes * w


def draw(loss, rng, shape, dtype):
    """Draw an input and a target for a loss."""
    target = rng.choice([0, 0.25, 0.3, 1], size=shape) if shape else np.float64(0.3)
    if loss is BCE_WITH_LOGITS:
        given = rng.standard_normal(shape) * 10
    elif loss is F.binary_cross_entropy:
        given = rng.random(shape)
    else:
        given = np.log(rng.random(shape))
    return np.asarray(given, dtype), np.asarray(target, dtype)


def both(loss, *arguments, **named):
    """Return loss and gradient."""
    return cyce.value_and_grad(loss)(*arguments, **named)


class TestFormulas:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "shape", [(), (1,), (7,), (511,), (512,), (513,), (3, 0), (5, 40), (9000, 3)], ids=str
    )
    def test_losses_and_gradients(self, level, loss, shape, dtype, rng):
        given, target = draw(loss, rng, shape, dtype)
        upstream = np.asarray(rng.standard_normal(shape), dtype)
        losses, gradient = both(loss, given, target, reduction="none", grad_output=upstream)
        exact_losses, slopes = exact(loss, given, target)
        eps = np.finfo(dtype).eps
        assert losses.shape == gradient.shape == shape
        assert losses.dtype == gradient.dtype == dtype
        scale = np.abs(target * given) if loss is F.kl_div else 0
        np.testing.assert_array_less(
            np.abs(losses - exact_losses), 3 * eps * (np.abs(exact_losses) + scale) + 1e-300
        )
        np.testing.assert_array_less(
            np.abs(gradient - slopes * upstream),
            6 * eps * np.maximum(np.abs(slopes), 1) * np.abs(upstream) + 1e-300,
        )

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
    def test_reductions(self, level, loss, reduction, dtype, rng):
        if reduction == "batchmean" and loss is not F.kl_div:
            with pytest.raises(ValueError, match="batchmean is not a valid value"):
                loss([0.5], [0.5], reduction=reduction)
            return
        given, target = draw(loss, rng, (60, 400), dtype)
        warned = loss is F.kl_div and reduction == "mean"
        with pytest.warns(UserWarning, match="batchmean") if warned else contextlib.nullcontext():
            value, gradient = both(loss, given, target, reduction=reduction, grad_output=3)
        losses, slopes = exact(loss, given, target)
        divisor = {"sum": 1, "mean": 60 * 400, "batchmean": 60}[reduction]
        eps = np.finfo(dtype).eps
        assert isinstance(value, dtype.type)
        assert abs(value - losses.sum() / divisor) <= 2 * eps * np.abs(losses).sum() / divisor
        np.testing.assert_allclose(gradient, slopes * 3 / divisor, rtol=4 * eps, atol=4 * eps / divisor)

    @pytest.mark.parametrize("shape", [(300, 7), (7,), (300, 1), (1, 1), ()], ids=str)
    def test_weights_are_broadcast(self, level, shape, dtype, rng):
        for loss in (BCE_WITH_LOGITS, F.binary_cross_entropy):
            given, target = draw(loss, rng, (300, 7), dtype)
            named = {"weight": np.asarray(rng.random(shape), dtype)}
            if loss is BCE_WITH_LOGITS:
                named["pos_weight"] = np.asarray(rng.random(shape) * 5, dtype)
            losses, gradient = both(loss, given, target, reduction="none", **named)
            exact_losses, slopes = exact(loss, given, target, **named)
            np.testing.assert_allclose(losses, exact_losses, rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_allclose(gradient, slopes, rtol=1e3 * np.finfo(dtype).eps)

    @pytest.mark.parametrize("log_target", [False, True])
    @pytest.mark.parametrize(
        ("input_shape", "target_shape"),
        [((4, 3), (3,)), ((3,), (4, 3)), ((4, 1), (1, 3)), ((), (2, 3)), ((2, 3), ())],
        ids=str,
    )
    def test_kl_div_broadcasts(self, level, input_shape, target_shape, log_target, dtype, rng):
        given = np.log(np.asarray(rng.random(input_shape))).astype(dtype)
        target = np.asarray(rng.random(target_shape), dtype)
        target = np.log(target) if log_target else target
        losses, gradient = both(F.kl_div, given, target, reduction="none", log_target=log_target)
        exact_losses, slopes = exact(F.kl_div, given, target, log_target=log_target)
        assert losses.shape == exact_losses.shape
        assert gradient.shape == input_shape
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(losses, exact_losses, rtol=100 * eps, atol=4 * eps)
        slopes = np.broadcast_to(slopes, losses.shape)
        axes = tuple(range(losses.ndim - gradient.ndim)) + tuple(
            axis
            for axis in range(losses.ndim)
            if axis >= losses.ndim - gradient.ndim
            and gradient.shape[axis - losses.ndim + gradient.ndim] == 1 != losses.shape[axis]
        )
        np.testing.assert_allclose(gradient, slopes.sum(axis=axes).reshape(input_shape), rtol=4 * eps)

    def test_divisor_of_batchmean_is_that_of_input(self):
        # as in torch: not of what both are broadcast to
        value = F.kl_div(np.zeros(3), np.full((2, 3), 0.5), reduction="batchmean")
        assert value == pytest.approx(6 * 0.5 * np.log(0.5) / 3)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_mean_of_nothing(self, loss):
        for reduction in ("mean", "sum") if loss is not F.kl_div else ("batchmean", "sum"):
            value, gradient = both(loss, np.zeros((0, 3)), np.zeros((0, 3)), reduction=reduction)
            assert np.isnan(value) if reduction != "sum" else value == 0
            assert gradient.shape == (0, 3)


class TestPrecision:
    def test_logits_of_any_size(self, level, dtype):
        logits = np.array([1e4, -1e4, 1e4, -1e4, 80, -80, 80, -80, 20, -20, 1e-30, 0], dtype)
        target = np.array([0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], dtype)
        losses, gradient = both(BCE_WITH_LOGITS, logits, target, reduction="none")
        expected, slopes = exact(BCE_WITH_LOGITS, logits, target)
        # what is below the smallest number of the dtype is 0
        np.testing.assert_allclose(losses, expected.astype(dtype), rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_allclose(gradient, slopes.astype(dtype), rtol=2 * np.finfo(dtype).eps)
        assert losses[5] > 0
        assert losses[8] == losses[9] > 0

    @pytest.mark.parametrize("target", ["labels", "soft", "tiny"])
    @pytest.mark.parametrize("weighs", [False, True])
    def test_logits_of_any_target(self, level, dtype, rng, target, weighs):
        logits = (rng.standard_normal(20_000) * 10 ** rng.uniform(-3, 2.2, 20_000)).astype(dtype)
        target = {
            "labels": lambda: rng.integers(2, size=20_000),
            "soft": lambda: rng.random(20_000),
            "tiny": lambda: np.exp(rng.uniform(-85, 0, 20_000)),
        }[target]().astype(dtype)
        pos_weight = rng.random(20_000).astype(dtype) * 5 if weighs else np.ones(20_000, dtype)
        losses, gradient = both(
            BCE_WITH_LOGITS, logits, target, pos_weight=pos_weight if weighs else None, reduction="none"
        )
        alone = BCE_WITH_LOGITS(logits, target, pos_weight=pos_weight if weighs else None, reduction="none")
        np.testing.assert_array_equal(alone, losses)
        expected, slopes = exact(BCE_WITH_LOGITS, logits, target, pos_weight=pos_weight)
        single = dtype == np.float32
        assert ulps(losses, expected) <= (1 if single else 3)
        # The slope is a difference of the mass that speaks against the logit's sign, and a sigmoid.
        against = np.where(logits > 0, 1 - target.astype(LONG), target.astype(LONG) * pos_weight)
        scales = np.maximum(np.abs(slopes), against)
        assert ulps(gradient, slopes, scales=scales) <= (1 if single else 4)

    def test_huge_weights_make_nothing_of_nothing(self, level, dtype):
        huge = np.full(3, 1e38, dtype)
        logits, target = np.array([np.inf, -np.inf, np.nan], dtype), np.array([1, 0, 1], dtype)
        for pos_weight in (huge, np.array([1e38, 1, 0], dtype)):
            losses, gradient = both(
                BCE_WITH_LOGITS, logits, target, weight=huge, pos_weight=pos_weight, reduction="none"
            )
            np.testing.assert_array_equal(losses, [0, 0, np.nan if pos_weight[2] else 0])
            np.testing.assert_array_equal(gradient[:2], 0)

    @pytest.mark.parametrize("pos_weight", [None, 2.0])
    def test_infinite_logits_and_targets_in_between(self, level, dtype, pos_weight):
        logits = np.array([np.inf, -np.inf, 0.0, -0.0], dtype)
        losses, gradient = both(
            BCE_WITH_LOGITS,
            logits,
            np.full(4, 0.25, dtype),
            reduction="none",
            pos_weight=None if pos_weight is None else np.full(4, pos_weight, dtype),
        )
        positive = 0.25 * (pos_weight or 1)
        at_0 = (0.75 + positive) * np.log(2)
        np.testing.assert_allclose(losses, [np.inf, np.inf, at_0, at_0], rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_allclose(gradient, [0.75, -positive] + [(0.75 - positive) / 2] * 2)

    def test_infinite_logits_have_their_limits(self, level, dtype):
        # torch has NaN in all cases but the second
        logits = np.array([np.inf, np.inf, -np.inf, -np.inf], dtype)
        losses, gradient = both(BCE_WITH_LOGITS, logits, [1, 0, 0, 1], reduction="none")
        np.testing.assert_array_equal(losses, [0, np.inf, 0, np.inf])
        np.testing.assert_array_equal(gradient, [0, 1, 0, -1])

    def test_nan_stays_nan(self, level, dtype):
        losses, gradient = both(
            BCE_WITH_LOGITS, np.array([np.nan, 0, 1], dtype), [1, np.nan, 1], reduction="none"
        )
        np.testing.assert_array_equal(np.isnan(losses), [True, True, False])
        np.testing.assert_array_equal(np.isnan(gradient), [True, True, False])
        losses = F.kl_div(np.array([np.nan, 0, 0], dtype), np.array([1, np.nan, -1], dtype), reduction="none")
        assert np.isnan(losses).all()

    @pytest.mark.parametrize(
        ("probability", "losses", "slopes"),
        [(0, [0, 30, 100], [0, -3e11, -1e12]), (1, [100, 70, 0], [1e12, 7e11, 0])],
    )
    def test_probabilities_of_0_and_1(self, level, dtype, probability, losses, slopes):
        # Whole vectors: a 0 beside a 1 would have both computed by one loop.
        target = np.tile([0, 0.3, 1], 16)
        given = np.full(48, probability, dtype)
        found, gradient = both(F.binary_cross_entropy, given, target, reduction="none")
        np.testing.assert_allclose(found, np.tile(losses, 16), rtol=1e-6)
        np.testing.assert_allclose(gradient, np.tile(slopes, 16), rtol=1e-6)

    @pytest.mark.parametrize("loss", [BCE_WITH_LOGITS, F.binary_cross_entropy])
    def test_a_weight_of_0_adds_nothing(self, level, loss, dtype):
        given = np.array([np.nan if loss is BCE_WITH_LOGITS else 0.5, 0.5], dtype)
        value, gradient = both(loss, given, [1, 1], weight=[0, 1], reduction="sum")
        single, slope = both(loss, given[1:], [1], reduction="sum")
        assert value == single
        np.testing.assert_array_equal(gradient, [0, slope[0]])

    def test_masses_of_kl_div_beyond_a_float(self, level, dtype):
        # e**-160 is 0 in float32, e**1000 is infinite: they are what they are in double.
        log_target = np.array([-160, -160, 1000, 300], dtype)
        given = np.array([np.nan, -np.inf, 1000, 300], dtype)
        losses = F.kl_div(given, log_target, reduction="none", log_target=True)
        np.testing.assert_array_equal(losses, [np.nan, np.inf, np.nan, 0])

    def test_huge_targets_of_kl_div(self, level, dtype):
        # up to the largest float32, with log-probabilities for which the products are finite
        target = np.geomspace(1e36, 3.4e38, 200).astype(dtype)
        given = (np.log(target) - 0.5).astype(dtype)
        expected, _ = exact(F.kl_div, given, target)
        np.testing.assert_allclose(F.kl_div(given, target, reduction="none"), expected, rtol=2e-7)
        for infinite in (np.inf, -np.inf):
            losses = F.kl_div(np.full_like(target, infinite), target, reduction="none")
            np.testing.assert_array_equal(losses, -infinite)

    def test_infinite_targets_of_kl_div(self, level, dtype):
        losses = F.kl_div(np.array([-1, -np.inf], dtype), np.array([np.inf, np.inf], dtype), reduction="none")
        np.testing.assert_array_equal(losses, np.inf)

    def test_all_exponents_of_probabilities(self, level, dtype):
        # subnormal ones, too
        exponents = np.arange(np.finfo(dtype).minexp - np.finfo(dtype).nmant, 0)
        probabilities = np.ldexp(dtype.type(1.3), exponents).clip(max=1).astype(dtype)
        for target in (0, 1):
            losses = F.binary_cross_entropy(
                probabilities, np.full_like(probabilities, target), reduction="none"
            )
            expected, _ = exact(F.binary_cross_entropy, probabilities, target)
            np.testing.assert_allclose(losses, expected, rtol=3 * np.finfo(dtype).eps)

    def test_all_exponents_of_targets(self, level, dtype):
        # down to subnormal ones, where the logarithm is scaled
        info = np.finfo(dtype)
        target = np.ldexp(dtype.type(1.3), np.arange(info.minexp - info.nmant, info.maxexp - 10))
        losses = F.kl_div(np.zeros_like(target), target, reduction="none")
        expected, _ = exact(F.kl_div, np.zeros_like(target), target)
        np.testing.assert_allclose(
            losses, expected.astype(dtype), rtol=4 * info.eps, atol=info.smallest_subnormal
        )

    @pytest.mark.parametrize(
        ("first", "last", "step"),
        [
            pytest.param(1, 0x7C000000, 4999, id="of all exponents"),
            # where tables change: from sqrt(1/2) to sqrt(2), and opposites of that
            pytest.param(0x3F3504F3, 0x3FB504F3, 29, id="next to 1"),
            pytest.param(0x3D000000, 0x3F000000, 59, id="less than 1/2"),
        ],
    )
    def test_logarithms_of_floats(self, level, first, last, step):
        numbers = np.arange(first, last, step, dtype=np.uint32).view(np.float32)
        # The promise is 1, which a forgotten term need not break. "baseline" has other logarithms.
        bound = 0.9 if level == "baseline" else 0.7
        of_targets, _ = exact(F.kl_div, np.zeros_like(numbers), numbers)
        assert ulps(F.kl_div(np.zeros_like(numbers), numbers, reduction="none"), of_targets) <= bound
        probabilities = numbers[numbers <= 1]
        # Of the second one's opposite, float32 does not hold all.
        for target in (0, 1.5 * 2**-24, 0.25, 1):
            targets = np.full_like(probabilities, target)
            losses = F.binary_cross_entropy(probabilities, targets, reduction="none")
            expected, _ = exact(F.binary_cross_entropy, probabilities, targets)
            assert ulps(losses, expected) <= bound

    def test_probabilities_beside_those_whose_cost_is_100(self, level):
        # e**-100 is 26.5 of the smallest subnormal floats.
        probabilities = np.arange(24, 30) * np.float32(2.0**-149)
        losses = F.binary_cross_entropy(probabilities, np.ones(6), reduction="none")
        np.testing.assert_array_equal(losses == 100, probabilities < np.exp(-100.0))

    def test_negative_zero_is_a_probability(self, level, dtype):
        given = np.array([-0.0, 0.0, -0.0], dtype)
        losses, gradient = both(F.binary_cross_entropy, given, [1, 0, -0.0], reduction="none")
        np.testing.assert_array_equal(losses, [100, 0, 0])
        assert not np.signbit(losses).any()
        np.testing.assert_array_equal(gradient, [-1e12 if dtype == np.float64 else np.float32(-1e12), 0, 0])

    def test_costs_of_labels_do_not_depend_on_the_targets_beside_them(self, level, dtype, rng):
        # Where all are labels, only one of the two logarithms is computed.
        given = np.concatenate([rng.random(400), [0, 1] * 10, np.exp(rng.uniform(-90, 0, 80))]).astype(dtype)
        labels = rng.integers(2, size=500).astype(dtype)
        losses = F.binary_cross_entropy(given, labels, reduction="none")
        among_others = F.binary_cross_entropy(given, np.append(0.5, labels[1:]), reduction="none")
        np.testing.assert_array_equal(losses[1:], among_others[1:])

    @pytest.mark.parametrize("weight", [None, 1])
    def test_slopes_of_what_is_right_are_positive_zeros(self, level, dtype, weight):
        given = np.tile(np.array([0, 0.3, 1], dtype), 7)
        weight = weight and np.ones(21, dtype)
        for reduction in ("sum", "mean"):
            _, gradient = both(F.binary_cross_entropy, given, given, weight=weight, reduction=reduction)
            np.testing.assert_array_equal(gradient, 0)
            assert not np.signbit(gradient).any()

    @pytest.mark.parametrize("kind", ["targets", "labels", "divergences"])
    def test_elements_do_not_depend_on_the_probabilities_beside_them(self, level, dtype, kind, rng):
        # From the first 0, 1 or subnormal number of a chunk on, another loop computes the rest.
        loss = F.kl_div if kind == "divergences" else F.binary_cross_entropy
        given = rng.random(600).astype(dtype)
        other = (rng.integers(2, size=600) if kind == "labels" else rng.random(600)).astype(dtype)
        beside = given.copy()
        beside[165:400:9] = rng.choice([0, -0.0, 1, np.finfo(dtype).tiny / 3], size=27)
        # What is a probability is the target of a divergence.
        arguments = [(other, p) if loss is F.kl_div else (p, other) for p in (given, beside)]
        expected, found = (both(loss, *pair, reduction="none") for pair in arguments)
        same = beside == given
        for array, expected_array in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array[same], expected_array[same])

    def test_small_targets_of_small_probabilities(self, level, rng):
        # Their products are subnormal.
        given, target = np.exp(rng.uniform(-100, -80, (2, 2000))).astype(np.float32)
        losses = F.binary_cross_entropy(given, target, reduction="none")
        expected, _ = exact(F.binary_cross_entropy, given, target)
        errors = np.abs(losses - expected) / np.spacing(expected.astype(np.float32))
        assert errors.max() <= 0.6

    def test_sums_of_binary_cross_entropy_are_rounded_once(self, level, rng):
        # With losses that are rounded before, they are off by 1 ulp.
        for labels in (False, True):
            for probability, target in rng.random((300, 2), dtype=np.float32):
                given, targets = (
                    np.repeat(probability, 3),
                    np.repeat(np.round(target) if labels else target, 3),
                )
                expected, _ = exact(F.binary_cross_entropy, given, targets)
                assert ulps(F.binary_cross_entropy(given, targets, reduction="sum"), expected.sum()) <= 0.6

    @pytest.mark.parametrize("upstream", [1e-42, 1e-20, 1, 1e20, 1e37])
    def test_slopes_of_binary_cross_entropy_of_any_scale(self, level, dtype, upstream, rng):
        # Divided by the number of elements, the first one is a subnormal float of one digit.
        given, target = draw(F.binary_cross_entropy, rng, (600,), dtype)
        upstream = dtype.type(upstream)
        _, gradient = both(F.binary_cross_entropy, given, target, grad_output=upstream)
        _, slopes = exact(F.binary_cross_entropy, given, target)
        info = np.finfo(dtype)
        expected = (slopes * upstream / 600).astype(dtype)
        np.testing.assert_allclose(gradient, expected, rtol=4 * info.eps, atol=info.smallest_subnormal)

    def test_masses_of_0_add_nothing(self, level, dtype):
        given = np.array([-np.inf, -np.inf, 0, -1e30], dtype)
        for target, log_target in (([0, 0, 0, 0], False), ([-np.inf] * 4, True)):
            losses, gradient = both(
                F.kl_div, given, np.array(target, dtype), reduction="none", log_target=log_target
            )
            np.testing.assert_array_equal(losses, 0)
            np.testing.assert_array_equal(gradient, 0)

    def test_log_targets_of_any_size(self, level):
        target = np.array([-800.0, -700, -1, 0, 1, 700, 800])
        losses, gradient = both(F.kl_div, np.full(7, 2.0), target, reduction="none", log_target=True)
        expected, slopes = exact(F.kl_div, np.full(7, 2.0), target, log_target=True)
        with np.errstate(over="ignore"):
            expected, slopes = expected.astype(float), slopes.astype(float)
        np.testing.assert_allclose(losses, expected, rtol=1e-15)
        np.testing.assert_allclose(gradient, slopes, rtol=1e-15)


class TestMemory:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_any_strides(self, level, loss, dtype, rng):
        shape = (6, 33, 5)
        given, target = draw(loss, rng, shape, dtype)
        options = {"reduction": "none"}
        upstream = rng.random(shape).astype(dtype)
        named = {"grad_output": upstream}
        if loss is not F.kl_div:
            named["weight"] = rng.random(shape).astype(dtype)
        if loss is BCE_WITH_LOGITS:
            named["pos_weight"] = rng.random(shape).astype(dtype)
        expected = both(loss, given, target, **options, **named)
        strided_target = np.repeat(target, 2, axis=1)[:, ::2]
        strided = {name: np.asfortranarray(array)[:, ::-1].copy()[:, ::-1] for name, array in named.items()}
        for order in itertools.permutations(range(3)):
            there, back = np.argsort(order), order
            out = np.zeros([2 * n for n in shape], dtype)[::2, ::-2, 1::2]
            view = np.empty([shape[axis] for axis in there], dtype).transpose(back)
            view[...] = given
            results = both(loss, view, strided_target, **options, **strided, out=out)
            assert results[1] is out
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, wanted)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_in_place(self, level, loss, dtype, rng):
        given, target = draw(loss, rng, (70, 300), dtype)
        value, gradient = both(loss, given, target, reduction="sum")
        value_in_place, same = both(loss, given, target, reduction="sum", out=given)
        assert same is given
        assert value_in_place == value
        np.testing.assert_array_equal(given, gradient)

    def test_gradients_past_the_caches(self, level, dtype, rng):
        # From 32 MiB of all arrays on, whatever the loss.
        loss = F.binary_cross_entropy
        n = 2**25 // (3 * dtype.itemsize) + 100
        given, target = (np.resize(array, n) for array in draw(loss, rng, (5000,), dtype))
        memory = np.zeros(n + 2, dtype)
        _, gradient = both(loss, given, target, reduction="sum", out=memory[1:-1])
        _, of_part = both(loss, given[:5000], target[:5000], reduction="sum")
        np.testing.assert_array_equal(gradient, np.resize(of_part, n))
        assert memory[0] == memory[-1] == 0

    def test_out_must_not_be_read(self, rng):
        given, target = draw(BCE_WITH_LOGITS, rng, (3, 4), np.float64)
        weight = rng.random((3, 4))
        for name, out in (("target", target), ("weight", weight), ("pos_weight", weight)):
            with pytest.raises(ValueError, match=f"out: shares memory with {name}"):
                both(BCE_WITH_LOGITS, given, target, **({} if name == "target" else {name: weight}), out=out)
        with pytest.raises(ValueError, match="out: shares memory with grad_output"):
            both(BCE_WITH_LOGITS, given, target, reduction="none", grad_output=weight, out=weight)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_levels_with_the_same_instructions_give_the_same_bits(self, loss, dtype, rng, monkeypatch):
        given, target = draw(loss, rng, (101, 97), dtype)
        results = set()
        for name in dispatch.usable_levels():
            if name != "baseline":
                monkeypatch.setattr(dispatch, "elementwise", dispatch.load_level(name, "elementwise"))
                value, gradient = both(loss, given, target, reduction="sum")
                results.add((value, gradient.tobytes()))
        assert len(results) <= 1

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("shape", [(1,), (511,), (513,), (7, 11)], ids=str)
    def test_nothing_beside_the_outputs_is_written(self, level, loss, shape, dtype, rng):
        given, target = draw(loss, rng, shape, dtype)
        memory = np.full(np.prod(shape) + 128, 77, dtype)
        both(loss, given, target, reduction="sum", out=memory[64:-64].reshape(shape))
        assert np.all(memory[:64] == 77)
        assert np.all(memory[-64:] == 77)

    @pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
    @pytest.mark.parametrize("name", ["input", "target"])
    @pytest.mark.parametrize("at", [0, 50_000, 99_999])
    def test_nothing_is_written_if_an_element_is_no_probability(self, level, dtype, at, name, value):
        arrays = {"input": np.full(100_000, 0.5, dtype), "target": np.ones(100_000, dtype)}
        arrays[name][at] = value
        for strided in (lambda array: array, lambda array: np.repeat(array, 2)[::2]):
            named = {key: strided(array) for key, array in arrays.items()}
            out = np.full(100_000, 7, dtype)
            message = rf"^all elements of {name} should be .* got {dtype.type(value)} at {name}\[{at}\]"
            with pytest.raises(ValueError, match=message):
                cyce.value_and_grad(F.binary_cross_entropy)(**named, out=out)
            assert (out == 7).all()
            for call in (F.binary_cross_entropy, cyce.value_and_grad(F.binary_cross_entropy)):
                with pytest.raises(ValueError, match=message):
                    call(**named)

    @pytest.mark.integration
    def test_more_than_two_to_the_31_elements(self):
        # All the same element: no memory is needed.
        logits = np.broadcast_to(np.float32(0), (2**16, 2**15 + 1))
        assert BCE_WITH_LOGITS(logits, logits) == np.float32(np.log(2))

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("target", np.zeros(4, np.float32)),
            ("target", np.zeros(3, np.int16)),
            ("target", np.zeros((3, 1), np.float32)),
            ("weight", np.zeros(2, np.float32)),
            ("pos_weight", np.zeros(3, np.int32)),
            ("loss_out", np.zeros(4, np.float32)),
            ("grad_out", np.zeros(3, np.int64)),
            ("grad_output", np.zeros((), np.float32)),
            ("input", np.zeros(3, np.int32)),
        ],
    )
    def test_the_kernels_do_not_trust_the_facade(self, level, argument, value):
        arguments = {
            "input": np.zeros(3, np.float32),
            "target": np.zeros(3, np.float32),
        }
        kernel = dispatch.load_level(level, "elementwise").binary_cross_entropy_with_logits
        kernel(of_elements(**arguments))
        with pytest.raises(ValueError, match="kernel call"):
            kernel(of_elements(**{**arguments, argument: value}))


class TestArguments:
    @pytest.mark.parametrize("kind", [bool, np.int8, np.uint16, np.int64, np.float16, np.float32, ">f8"])
    def test_dtypes_of_targets(self, kind, dtype):
        target = np.array([1, 0, 1], kind)
        for loss in (BCE_WITH_LOGITS, F.binary_cross_entropy):
            expected = loss(np.array([0.3, 0.2, 0.9], dtype), np.array([1, 0, 1], dtype))
            assert loss(np.array([0.3, 0.2, 0.9], dtype), target) == expected
            assert loss(np.array([0.3, 0.2, 0.9], dtype), target.tolist()) == expected

    @pytest.mark.parametrize(
        ("loss", "arguments", "named", "error", "message"),
        [
            (BCE_WITH_LOGITS, ([1.0], [1.0, 0.0]), {}, ValueError, r"Target size \(\[2\]\) must be the same"),
            (BCE_WITH_LOGITS, ([1], [1]), {}, TypeError, "input: logits must be floating point, got int64"),
            (BCE_WITH_LOGITS, (["a"], [1]), {}, TypeError, "input: logits must be an array of float16"),
            (BCE_WITH_LOGITS, ([1.0], ["a"]), {}, TypeError, "target: must hold real numbers"),
            (BCE_WITH_LOGITS, ([1.0], [1j]), {}, TypeError, "target: must hold real numbers"),
            (BCE_WITH_LOGITS, ([1.0], [1]), {"weight": [1.0, 2.0]}, ValueError, "weight: its shape"),
            (
                BCE_WITH_LOGITS,
                ([1.0], [1]),
                {"pos_weight": [[1.0], [2.0]]},
                ValueError,
                "pos_weight: its shape",
            ),
            (BCE_WITH_LOGITS, ([1.0], [1]), {"pos_weight": "a"}, TypeError, "pos_weight: must hold real"),
            (
                BCE_WITH_LOGITS,
                ([1.0], [1]),
                {"reduction": "batchmean"},
                ValueError,
                "batchmean is not a valid",
            ),
            (BCE_WITH_LOGITS, ([1.0], np.ma.array([1])), {}, TypeError, "target: a masked array"),
            (
                F.binary_cross_entropy,
                ([1.5], [1]),
                {},
                ValueError,
                r"all elements of input .* got 1.5 at input\[0\]",
            ),
            (F.binary_cross_entropy, ([0.5, np.nan], [1, 1]), {}, ValueError, r"got nan at input\[1\]"),
            (
                F.binary_cross_entropy,
                ([0.5, -0.1], [1, 1]),
                {},
                ValueError,
                "binary_cross_entropy_with_logits",
            ),
            (
                F.binary_cross_entropy,
                ([0.5], [2]),
                {},
                ValueError,
                "all elements of target should be between",
            ),
            (F.binary_cross_entropy, (0.5, -1), {}, ValueError, "all elements of target should be between"),
            (F.binary_cross_entropy, ([0.5], [[1]]), {}, ValueError, "Using a target size"),
            (
                F.binary_cross_entropy,
                ([1], [1]),
                {},
                TypeError,
                "input: probabilities must be floating point",
            ),
            (F.binary_cross_entropy, ([0.5], [1]), {"weight": [1, 2]}, ValueError, "weight: its shape"),
            (F.kl_div, ([0.5], [1]), {"reduction": "sum"}, TypeError, "target: must hold floating"),
            (F.kl_div, ([1], [0.5]), {"reduction": "sum"}, TypeError, "input: log-probabilities must be"),
            (F.kl_div, (np.zeros(2), np.zeros(3)), {"reduction": "sum"}, ValueError, "broadcast to one"),
            (F.kl_div, ([0.5], [0.5]), {"reduction": "average"}, ValueError, "'batchmean', 'mean' or 'sum'"),
            (
                F.kl_div,
                ([0.5], [0.5]),
                {"reduction": "sum", "log_target": np.zeros(2)},
                TypeError,
                "log_target",
            ),
        ],
    )
    def test_errors(self, loss, arguments, named, error, message):
        out = np.full(np.shape(arguments[0]), 7.0)
        with pytest.raises(error, match=message):
            loss(*arguments, **named)
        with pytest.raises(error, match=message):
            both(loss, *arguments, **named, out=out)
        np.testing.assert_array_equal(out, 7)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_errors_of_gradients(self, loss):
        given, target = np.array([0.5, 0.25]), np.array([0.5, 0.5])
        for named, error, message in (
            (
                {"grad_output": [1.0, 2.0], "reduction": "sum"},
                ValueError,
                "grad_output: with reduction='sum'",
            ),
            ({"grad_output": [1.0], "reduction": "none"}, ValueError, "grad_output: must be a number or"),
            ({"out": np.zeros(3), "reduction": "sum"}, ValueError, "out: must have input's shape"),
            ({"out": np.zeros(2, np.float32), "reduction": "sum"}, TypeError, "out: must have input's dtype"),
            ({"out": target, "reduction": "sum"}, ValueError, "out: shares memory with target"),
        ):
            with pytest.raises(error, match=message):
                both(loss, given, target, **named)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_deprecated_arguments(self, loss):
        with pytest.warns(DeprecationWarning, match="reduction='sum'") as caught:
            value = loss([0.5, 0.25], [0.5, 0.5], size_average=False)
        assert caught[0].filename == __file__
        assert value == loss([0.5, 0.25], [0.5, 0.5], reduction="sum")

    @pytest.mark.parametrize("loss", [F.kl_div, cyce.KLDivLoss(), cyce.value_and_grad(cyce.KLDivLoss())])
    def test_warning_of_kl_div(self, loss):
        with pytest.warns(UserWarning, match="batchmean") as caught:
            loss([0.5], [0.5])
        assert caught[0].filename == __file__


class TestModules:
    @pytest.mark.parametrize(
        ("module", "loss", "settings"),
        [
            (
                cyce.BCEWithLogitsLoss,
                BCE_WITH_LOGITS,
                {"weight": [2.0], "pos_weight": [3.0], "reduction": "none"},
            ),
            (cyce.BCELoss, F.binary_cross_entropy, {"weight": [2.0], "reduction": "sum"}),
            (cyce.KLDivLoss, F.kl_div, {"reduction": "batchmean", "log_target": True}),
        ],
    )
    def test_settings(self, module, loss, settings):
        given, target = [0.5, 0.25], [0.5, 0.75]
        criterion = module(**settings)
        assert {name: getattr(criterion, name) for name in settings} == settings
        assert repr(criterion) == f"{module.__name__}()"
        np.testing.assert_array_equal(criterion(given, target), loss(given, target, **settings))
        for ours, expected in zip(
            both(criterion, given, target), both(loss, given, target, **settings), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)

    def test_deprecated_arguments(self):
        for module in (cyce.BCEWithLogitsLoss, cyce.BCELoss, cyce.KLDivLoss):
            with pytest.warns(DeprecationWarning, match="reduction='none'") as caught:
                assert module(reduce=False).reduction == "none"
            assert caught[0].filename == __file__


class TestSumsOfManyArrays:
    def test_what_additions_lose_is_added_in_the_end(self, level, dtype, rng):
        accumulate = dispatch.load_level(level, "elementwise").accumulate
        addends = (rng.standard_normal((1000, 77)) + 0.5).astype(dtype)
        total = np.zeros(77, dtype)
        lost = np.zeros(77, np.uint16 if dtype == np.float32 else np.float32)
        for addend in addends:
            accumulate(addend, total, lost)
        exact = addends.astype(np.longdouble).sum(axis=0)
        errors = np.abs(total - exact) / np.spacing(np.abs(exact).astype(dtype))
        # A plain sum is off by more than 10 ulp.
        assert errors.max() < 1.5

    def test_infinities_stay_and_nan_is_kept(self, level, dtype):
        accumulate = dispatch.load_level(level, "elementwise").accumulate
        total, lost = np.zeros(3, dtype), np.zeros(3, np.uint16 if dtype == np.float32 else np.float32)
        for value in (
            [1, np.inf, np.nan],
            [np.finfo(dtype).max, 1, 1],
            [np.finfo(dtype).max, 1, 1],
            [1, 1, 1],
        ):
            accumulate(np.array(value, dtype), total, lost)
        np.testing.assert_array_equal(total, [np.inf, np.inf, np.nan])

    def test_arrays_that_do_not_belong_together(self, level):
        accumulate = dispatch.load_level(level, "elementwise").accumulate
        single, double = np.zeros(3, np.float32), np.zeros(3)
        lost = np.zeros(3, np.uint16)
        for arguments in (
            (single[:2], single, lost),
            (single, single, lost[:2]),
            (single, double, lost),
            (single, single, single),
            (double, double, lost),
            (lost, lost, lost),
        ):
            with pytest.raises(ValueError, match="kernel call"):
                accumulate(*arguments)


@pytest.mark.parametrize("target", [0, 1])
def test_underflow_of_binary_cross_entropy_is_gradual(level, dtype, target):
    info = np.finfo(dtype)
    logits = (np.log(info.tiny).astype(float) + np.linspace(-15, 3, 50)).astype(dtype)
    exact = np.exp(logits.astype(np.longdouble))
    losses, gradient = cyce.value_and_grad(F.binary_cross_entropy_with_logits)(
        -logits if target else logits, np.full(50, target, dtype), reduction="none"
    )
    ulp = np.spacing(exact.astype(dtype))
    assert np.all(np.abs(losses - exact) <= ulp)
    assert np.all(np.abs(np.abs(gradient) - exact) <= ulp)


def test_underflow_of_kl_div_is_gradual(level):
    log_target = np.array([-707.0, -720, -740])
    losses = F.kl_div(log_target - 1, log_target, log_target=True, reduction="none")
    exact = np.exp(log_target.astype(np.longdouble))
    np.testing.assert_array_less(np.abs(losses - exact), 2 * np.spacing(exact.astype(float)))
