"""What cross_entropy takes on top of torch, beside the same by hand in long double."""

import itertools
import pickle

import numpy as np
import pytest

import accuracy_table
import cyce
import cyce.functional as F
import oracle
from oracle import LONG

# rows and tiles, one block of classes and several, short last blocks
SHAPES = [(5,), (1, 1), (130, 7), (40, 33), (3, 9000), (2, 70, 150), (2, 40, 3, 3)]

OPTIONS = [
    {"z_loss": 0.01},
    {"softcap": 5.0},
    {"temperature": 0.7},
    {"softcap": 30.0, "temperature": 2.0, "z_loss": 1e-4},
    {"softcap": 3.0, "z_loss": 0.5, "label_smoothing": 0.1},
]


def eps_of(dtype):
    """Return the machine epsilon as a float, which pytest.approx wants."""
    return float(np.finfo(dtype).eps)


def draw(rng, shape, dtype, scale=4):
    logits = (rng.standard_normal(shape) * scale).astype(dtype)
    axis = oracle.class_axis(logits)
    target = np.asarray(rng.integers(shape[axis], size=shape[:axis] + shape[axis + 1 :]))
    return logits, target


def transformed(logits, softcap=None, temperature=1.0):
    """Return the logits after softcap and temperature, rounded as cyce does, and their slopes."""
    x = logits.astype(LONG)
    slopes = np.ones_like(x)
    if softcap is not None:
        slopes = 1 / np.cosh(x / softcap) ** 2
        x = (softcap * np.tanh(x / softcap)).astype(logits.dtype).astype(LONG)
    return (x / LONG(logits.dtype.type(temperature))).astype(logits.dtype), slopes / temperature


def per_position(logits, target, z_loss=0.0, softcap=None, temperature=1.0, **options):
    """Return exact losses and gradients of each position, and what bounds their errors."""
    x, slopes = transformed(logits, softcap, temperature)
    axis = oracle.class_axis(logits)
    exact = oracle.per_position(x, target, **options)
    wide = x.astype(LONG)
    row_max = wide.max(axis=axis, keepdims=True)
    exponentials = np.exp(wide - row_max)
    lse = (row_max + np.log(exponentials.sum(axis=axis, keepdims=True))).squeeze(axis)
    softmax = exponentials / exponentials.sum(axis=axis, keepdims=True)
    gradients = exact.gradients + np.expand_dims(2 * z_loss * lse, axis) * softmax
    # A logit after the softcap may be one unit in the last place off.
    scale = 1 + np.abs(x).max() * (softcap is not None)
    masses = np.expand_dims(exact.masses + np.abs(2 * z_loss * lse), axis)
    return exact.losses + z_loss * lse**2, gradients * slopes, scale, masses * slopes


class TestLossesAndGradients:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_of_class_indices(self, level, shape, options, dtype, rng, loss_and_gradient):
        logits, target = draw(rng, shape, dtype)
        losses, gradient = loss_and_gradient(logits, target, **options, reduction="none")
        exact_losses, gradients, scale, masses = per_position(logits, target, **options)
        eps = eps_of(dtype)
        assert np.all(np.abs(losses - exact_losses) <= eps * (4 * exact_losses + 4 * (scale - 1)))
        assert np.all(np.abs(gradient - gradients) <= 8 * eps * scale * masses)
        in_place = logits.copy()
        again, same = loss_and_gradient(in_place, target, **options, reduction="none", out=in_place)
        assert same is in_place
        assert again.tobytes() == losses.tobytes()
        assert in_place.tobytes() == gradient.tobytes()

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("shape", [(5,), (130, 7), (3, 9000)], ids=str)
    def test_of_class_probabilities(self, level, shape, options, dtype, rng, loss_and_gradient):
        logits, _ = draw(rng, shape, dtype)
        axis = oracle.class_axis(logits)
        target = rng.random(shape)
        target = (target / target.sum(axis=axis, keepdims=True)).astype(dtype)
        losses, gradient = loss_and_gradient(logits, target, **options, reduction="none")
        exact_losses, gradients, scale, masses = per_position(logits, target, **options)
        eps = eps_of(dtype)
        assert np.all(np.abs(losses - exact_losses) <= 4 * eps * scale * exact_losses)
        assert np.all(np.abs(gradient - gradients) <= 8 * eps * scale * masses)
        in_place = logits.copy()
        loss_and_gradient(in_place, target, **options, reduction="none", out=in_place)
        assert in_place.tobytes() == gradient.tobytes()

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_all_together(self, level, options, dtype, rng, loss_and_gradient):
        logits, target = draw(rng, (50, 60), dtype)
        target[::7] = -1
        named = {"weight": rng.random(60).astype(dtype), "ignore_index": -1, **options}
        sample_weight = rng.random(50).astype(dtype)
        loss, gradient = loss_and_gradient(
            logits, target, **named, sample_weight=sample_weight, grad_output=3
        )
        counts = target != -1
        weights = named["weight"].astype(LONG)[np.where(counts, target, 0)] * counts * sample_weight
        losses, gradients, scale, masses = per_position(logits, target, **named)
        losses, gradients = losses * counts * sample_weight, gradients * (counts * sample_weight)[:, None]
        eps = eps_of(dtype)
        assert abs(loss - losses.sum() / weights.sum()) <= 8 * eps * scale * losses.sum() / weights.sum()
        bound = 8 * eps * scale * masses * 3 / weights.sum()
        assert np.all(np.abs(gradient - gradients * 3 / weights.sum()) <= bound)

    def test_one_long_row_in_several_threads(self, level, dtype, rng, threads, loss_and_gradient):
        logits, target = draw(rng, (1, 300_001), dtype)
        results = set()
        for n in (1, 3):
            threads(n)
            loss, gradient = loss_and_gradient(logits, target, softcap=8.0, z_loss=0.1)
            results.add((loss, gradient.tobytes()))
        assert len(results) == 1
        (loss, _) = results.pop()
        assert loss == pytest.approx(
            float(per_position(logits, target, softcap=8.0, z_loss=0.1)[0][0]), rel=1e-5
        )


class TestAxis:
    @pytest.mark.parametrize("shape", [(4, 6, 5), (3, 8, 40), (2, 3, 4, 5), (7, 3)], ids=str)
    def test_any_axis(self, level, shape, dtype, rng, loss_and_gradient):
        logits = (rng.standard_normal(shape) * 3).astype(dtype)
        before = logits.copy()
        for axis in range(-len(shape), len(shape)):
            positions = np.delete(shape, axis)
            target = rng.integers(shape[axis], size=positions)
            weight = rng.random(shape[axis]).astype(dtype)
            for kind in ("indices", "probabilities"):
                if kind == "probabilities":
                    target = rng.random(shape).astype(dtype)
                losses, gradient = loss_and_gradient(
                    logits, target, weight, axis=axis, reduction="none", label_smoothing=0.1
                )
                moved = np.moveaxis(logits, axis, 1)
                there = np.moveaxis(target, axis, 1) if kind == "probabilities" else target
                expected, slopes = loss_and_gradient(
                    moved, there, weight, reduction="none", label_smoothing=0.1
                )
                np.testing.assert_array_equal(losses, expected)
                np.testing.assert_array_equal(gradient, np.moveaxis(slopes, 1, axis))
                out = np.empty_like(logits)
                loss_and_gradient(
                    logits, target, weight, axis=axis, reduction="none", label_smoothing=0.1, out=out
                )
                np.testing.assert_array_equal(out, gradient)
        np.testing.assert_array_equal(logits, before)

    def test_of_one_position(self):
        assert F.cross_entropy([1.0, 2.0, 3.0], 0, axis=-1) == F.cross_entropy([1.0, 2.0, 3.0], 0)

    def test_a_one_hot_target(self):
        with pytest.raises(TypeError, match=r"target\.argmax\(axis=2\)"):
            F.cross_entropy(np.zeros((2, 3, 4)), np.zeros((2, 3, 4), int), axis=-1)

    @pytest.mark.parametrize(
        ("axis", "error"), [(3, IndexError), (-4, IndexError), (1.0, TypeError), ("0", TypeError)]
    )
    def test_no_axis(self, axis, error):
        with pytest.raises(error, match="axis"):
            F.cross_entropy(np.zeros((2, 3, 4)), np.zeros((2, 3), int), axis=axis)

    def test_a_target_of_another_shape(self):
        with pytest.raises(ValueError, match=r"Expected target size \[2, 3\], got \[2, 4\]"):
            F.cross_entropy(np.zeros((2, 3, 4)), np.zeros((2, 4), int), axis=-1)


class TestSampleWeight:
    def test_a_weight_of_two_counts_as_two(self, level, dtype, rng, loss_and_gradient):
        logits, target = draw(rng, (60, 40), dtype)
        counts = rng.integers(4, size=60)
        repeated = np.repeat(np.arange(60), counts)
        weight = rng.random(40).astype(dtype)
        for options in ({}, {"weight": weight}, {"label_smoothing": 0.2, "z_loss": 0.1}):
            loss, gradient = loss_and_gradient(logits, target, sample_weight=counts, **options)
            expected, slopes = loss_and_gradient(logits[repeated], target[repeated], **options)
            assert loss == pytest.approx(float(expected), rel=4 * eps_of(dtype))
            sums = np.zeros((60, 40))
            np.add.at(sums, repeated, slopes)
            np.testing.assert_allclose(gradient, sums, rtol=1e3 * eps_of(dtype), atol=eps_of(dtype))

    def test_of_class_probabilities(self, level, dtype, rng):
        logits, target = draw(rng, (50, 7), dtype)
        one_hot = F.one_hot(target, 7).astype(dtype)
        sample_weight = rng.random(50)
        loss = F.cross_entropy(logits, one_hot, sample_weight=sample_weight)
        expected = F.cross_entropy(logits, target, sample_weight=sample_weight)
        assert loss == pytest.approx(float(expected), rel=8 * eps_of(dtype))

    @pytest.mark.parametrize("shape", [(50, 7), (50, 40)], ids=str)
    @pytest.mark.parametrize("kind", ["indices", "probabilities"])
    def test_a_weight_of_0_leaves_a_position_out(self, level, kind, shape, dtype, rng, loss_and_gradient):
        logits, target = draw(rng, shape, dtype)
        if kind == "probabilities":
            target = rng.random(shape).astype(dtype)
        sample_weight = np.ones(50)
        sample_weight[10:20] = 0
        logits[10:20] = np.nan
        if kind == "probabilities":
            target[12:15] = np.nan
        loss, gradient = loss_and_gradient(logits, target, sample_weight=sample_weight)
        kept = sample_weight > 0
        expected, slopes = loss_and_gradient(logits[kept], target[kept])
        assert loss == pytest.approx(float(expected), rel=4 * eps_of(dtype))
        np.testing.assert_array_equal(gradient[10:20], 0)
        np.testing.assert_allclose(gradient[kept], slopes, rtol=4 * eps_of(dtype))

    def test_a_mask(self, dtype, rng):
        logits, target = draw(rng, (20, 5), dtype)
        mask = rng.random(20) < 0.5
        loss = F.cross_entropy(logits, target, sample_weight=mask)
        assert loss == pytest.approx(
            float(F.cross_entropy(logits[mask], target[mask])), rel=4 * eps_of(dtype)
        )

    def test_out_must_not_share_its_memory(self, loss_and_gradient):
        memory = np.ones(6)
        with pytest.raises(ValueError, match="out: shares memory with sample_weight"):
            loss_and_gradient(np.zeros((3, 2)), [0, 1, 0], sample_weight=memory[:3], out=memory.reshape(3, 2))
        np.testing.assert_array_equal(memory, 1)

    @pytest.mark.parametrize(
        ("value", "error"),
        [(np.ones(2), ValueError), (1.0, ValueError), (np.ones((3, 1)), ValueError), (["a"] * 3, TypeError)],
    )
    def test_errors(self, value, error):
        with pytest.raises(error, match="sample_weight"):
            F.cross_entropy(np.zeros((3, 2)), [0, 1, 0], sample_weight=value)


class TestMeans:
    def test_normalizer(self, level, dtype, rng, loss_and_gradient):
        logits, target = draw(rng, (60, 7), dtype)
        # Two micro-batches of different sizes make the gradient of the whole.
        whole, slopes = loss_and_gradient(logits, target)
        parts = [
            loss_and_gradient(logits[rows], target[rows], normalizer=60)
            for rows in (slice(20), slice(20, 60))
        ]
        assert sum(loss for loss, _ in parts) == pytest.approx(float(whole), rel=4 * eps_of(dtype))
        np.testing.assert_allclose(
            np.concatenate([gradient for _, gradient in parts]), slopes, rtol=4 * eps_of(dtype)
        )

    @pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
    def test_normalizers_that_do_not_divide(self, value):
        with pytest.raises(ValueError, match="normalizer: must be a positive, finite number"):
            F.cross_entropy([[1.0, 2.0]], [0], normalizer=value)

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_a_normalizer_needs_a_mean(self, reduction):
        with pytest.raises(ValueError, match="normalizer requires reduction='mean', got '"):
            F.cross_entropy([[1.0, 2.0]], [0], normalizer=2, reduction=reduction)

    @pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"normalizer": 3}])
    def test_nothing_counts(self, level, options, dtype, loss_and_gradient):
        logits = np.ones((2, 3), dtype)
        loss, gradient = loss_and_gradient(logits, [-100, -100], **options)
        if "normalizer" in options:
            assert loss == 0
        else:
            assert np.isnan(loss)
        np.testing.assert_array_equal(gradient, 0)
        loss, gradient = loss_and_gradient(logits, [-100, -100], empty="zero", **options)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)

    def test_other_empty_means(self, level, dtype, loss_and_gradient):
        for logits, target, options in (
            (np.zeros((0, 3), dtype), np.zeros(0, int), {}),
            (np.zeros((0, 3), dtype), np.zeros((0, 3), dtype), {}),
            (np.zeros((2, 3), dtype), [0, 0], {"weight": [0, 1, 1]}),
            (np.zeros((2, 3), dtype), [0, 0], {"sample_weight": [0, 0]}),
        ):
            assert np.isnan(F.cross_entropy(logits, target, **options))
            loss, gradient = loss_and_gradient(logits, target, empty="zero", **options)
            assert loss == 0
            np.testing.assert_array_equal(gradient, 0)

    def test_zero_is_zero_whatever_the_logits(self, level, dtype, loss_and_gradient):
        for n_classes in (2, 40):
            logits = np.zeros((1, n_classes), dtype)
            logits[0, 0] = np.inf
            weight = np.ones(n_classes)
            weight[1] = 0
            loss, gradient = loss_and_gradient(logits, [1], weight, empty="zero")
            assert loss == 0
            np.testing.assert_array_equal(gradient, 0)
        assert F.cross_entropy(np.zeros((0, 0), dtype), np.zeros((0, 0), dtype), empty="zero") == 0

    @pytest.mark.parametrize("value", [0, None, "0", np.zeros(2)], ids=repr)
    def test_bad_empty(self, value):
        with pytest.raises(ValueError, match="empty: must be 'nan' or 'zero'"):
            F.cross_entropy([[1.0, 2.0]], [0], empty=value)


class TestOtherLogits:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_temperature_divides(self, level, shape, dtype, rng):
        logits, target = draw(rng, shape, dtype)
        for temperature in (0.3, 1.7, 1e4):
            expected = F.cross_entropy(logits / dtype.type(temperature), target, reduction="none")
            result = F.cross_entropy(logits, target, reduction="none", temperature=temperature)
            np.testing.assert_array_equal(result, expected)

    def test_softcap_over_all_magnitudes(self, level, dtype):
        # tanh itself: the loss of [x, 0] is log(1 + e**-x).
        x = np.concatenate([[0], np.logspace(-30, 4, 500)]).astype(dtype)
        x = np.concatenate([x, -x])
        logits = np.stack([x, np.zeros_like(x)], axis=1)
        losses, gradient = cyce.value_and_grad(F.cross_entropy)(
            logits, np.zeros(len(x), int), reduction="none", softcap=1.0
        )
        capped = np.tanh(x.astype(LONG))
        eps = eps_of(dtype)
        np.testing.assert_allclose(losses, np.log1p(np.exp(-capped)), rtol=3 * eps)
        with np.errstate(over="ignore"):
            slopes = 1 / np.cosh(x.astype(LONG)) ** 2
        at_target = -slopes / (1 + np.exp(capped))
        np.testing.assert_allclose(gradient[:, 0], at_target, rtol=8 * eps, atol=np.finfo(dtype).tiny)
        _, gradient = cyce.value_and_grad(F.cross_entropy)(
            logits, np.ones(len(x), int), reduction="sum", softcap=1.0
        )
        elsewhere = slopes / (1 + np.exp(-capped))
        np.testing.assert_allclose(gradient[:, 0], elsewhere, rtol=8 * eps, atol=4 * np.finfo(dtype).tiny)

    @pytest.mark.parametrize("cap", [1.0, 1.3, 30.0, 50.0, 1e-31, 1e31])
    def test_softcap_and_its_slope_to_some_ulp(self, level, dtype, rng, cap):
        # With one class, the log-sum-exp is the capped logit, and the gradient twice that, times its slope.
        x = cap * np.concatenate([rng.uniform(-3, 3, 20_000), 10 ** rng.uniform(-6, 1.5, 20_000)])
        logits, target = x.astype(dtype)[:, None], np.zeros(len(x), int)
        capped = F.cross_entropy_stats(logits, target, softcap=cap).lse
        gradient = cyce.value_and_grad(F.cross_entropy)(
            logits, target, z_loss=1, softcap=cap, reduction="sum"
        )[1][:, 0]
        u = logits[:, 0].astype(LONG) / LONG(cap)
        exact = LONG(cap) * np.tanh(u)
        assert accuracy_table.ulps(capped, exact) <= (1.3 if dtype == np.float32 else 4)
        # Rounding u changes the slope by up to u ulp.
        gradients = 2 * exact / np.cosh(u) ** 2
        assert accuracy_table.ulps(gradient, gradients, np.abs(u) < 3) <= (4 if dtype == np.float32 else 10)

    def test_softcap_of_infinite_logits(self, level, dtype, loss_and_gradient):
        loss, gradient = loss_and_gradient(np.array([[np.inf, -np.inf, 0]], dtype), [0], softcap=2.0)
        assert loss == pytest.approx(np.log(np.exp(2) + np.exp(-2) + 1) - 2, rel=1e-6)
        np.testing.assert_array_equal(gradient[0, :2], 0)

    def test_nan_stays_nan(self, level, dtype):
        for options in OPTIONS:
            for shape in ((3, 5), (3, 50)):
                logits = np.zeros(shape, dtype)
                logits[1, 2] = np.nan
                losses = F.cross_entropy(logits, [0, 0, 0], reduction="none", **options)
                np.testing.assert_array_equal(np.isnan(losses), [False, True, False])

    @pytest.mark.parametrize("name", ["softcap", "temperature", "z_loss", "normalizer"])
    @pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, "1", 1j, [1.0], np.ones(2), object], ids=str)
    def test_errors(self, name, value, loss_and_gradient):
        out = np.full((1, 2), 7.0)
        if name == "z_loss" and type(value) is int:
            assert np.isfinite(F.cross_entropy([[1.0, 2.0]], [0], z_loss=value))
            return
        with pytest.raises((ValueError, TypeError), match=f"{name}: "):
            loss_and_gradient([[1.0, 2.0]], [0], **{name: value}, out=out)
        np.testing.assert_array_equal(out, 7)

    def test_a_number_beyond_all_floats(self):
        with pytest.raises(ValueError, match="temperature: must be a positive, finite number, got 1000"):
            F.cross_entropy([[1.0, 2.0]], [0], temperature=10**400)

    def test_what_the_dtype_rounds_to_0(self):
        with pytest.raises(ValueError, match="temperature: must be a positive, finite number, got 1e-60"):
            F.cross_entropy(np.float32([[1, 2]]), [0], temperature=1e-60)
        assert F.cross_entropy(np.float64([[1, 2]]), [0], temperature=1e-60) > 1e59


SETTINGS = {
    "axis": -1,
    "sample_weight": [[1.0, 2.0]],
    "normalizer": 3.0,
    "empty": "zero",
    "z_loss": 0.1,
    "softcap": 4.0,
    "temperature": 2.0,
}


class TestModule:
    def test_settings(self, rng):
        logits, target = rng.standard_normal((1, 2, 5)), [[1, 3]]
        criterion = cyce.CrossEntropyLoss(**SETTINGS)
        assert {name: getattr(criterion, name) for name in SETTINGS} == SETTINGS
        assert criterion(logits, target) == F.cross_entropy(logits, target, **SETTINGS)
        assert pickle.loads(pickle.dumps(criterion))(logits, target) == criterion(logits, target)

    def test_a_call_brings_its_own_data(self, rng):
        logits, target = rng.standard_normal((3, 5)), [1, 3, 0]
        criterion = cyce.CrossEntropyLoss(sample_weight=[1.0, 1.0, 1.0])
        for named in ({"sample_weight": [1.0, 2.0, 3.0]}, {"normalizer": 7}, {"sample_weight": None}):
            expected = F.cross_entropy(logits, target, **named)
            assert criterion(logits, target, **named) == expected
            assert criterion.forward(logits, target, **named) == expected
            assert cyce.value_and_grad(criterion)(logits, target, **named)[0] == expected
        assert criterion.sample_weight == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("named", [{"axis": 0}, {"weight": None}, {"wieght": None}], ids=str)
    def test_other_settings_are_the_object_s(self, named):
        (name,) = named
        for call in (cyce.CrossEntropyLoss(), cyce.value_and_grad(cyce.CrossEntropyLoss())):
            with pytest.raises(TypeError, match=f"CrossEntropyLoss: a call takes no argument '{name}'"):
                call([[1.0, 2.0]], [0], **named)
        with pytest.raises(TypeError, match="NLLLoss: a call takes no argument 'normalizer'"):
            cyce.NLLLoss()([[1.0, 2.0]], [0], normalizer=2)


def reference_stats(logits, target, ignore_index=-100):
    """Return what cross_entropy_stats should, for one position per row."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    counts = target != ignore_index
    x = logits.astype(LONG)
    row_max = x.max(axis=1)
    others = np.exp(x - row_max[:, None])
    lse = row_max + np.log(others.sum(axis=1))
    p = others / others.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        entropy = lse - np.where(p > 0, p * x, 0).sum(axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    rank = (order == target[:, None]).argmax(axis=1)
    probability = p[np.arange(len(p)), np.where(counts, target, 0)]
    return {
        "loss": losses,
        "lse": np.where(counts, lse, 0),
        "prediction": np.where(counts, logits.argmax(axis=1), -1),
        "correct": counts & (logits.argmax(axis=1) == target),
        "probability": np.where(counts, probability, 0),
        "entropy": np.where(counts, entropy, 0),
        "rank": np.where(counts, rank, -1),
    }


class TestStats:
    @pytest.mark.parametrize("n_classes", [1, 2, 10, 31, 32, 33, 257, 4097, 20_000])
    @pytest.mark.parametrize("layout", ["C", "F"])
    @pytest.mark.parametrize("scale", [0.1, 5, 40])
    def test_beside_numpy(self, level, scale, layout, n_classes, dtype, rng):
        n = 300 if n_classes < 1000 else 9
        logits = np.asarray((rng.standard_normal((n, n_classes)) * scale).astype(dtype), order=layout)
        # ties, the target among them
        logits[::2] = np.round(logits[::2])
        target = rng.integers(n_classes, size=n)
        target[n // 2] = -100
        stats = F.cross_entropy_stats(logits, target)
        expected = reference_stats(logits, target)
        eps = eps_of(dtype)
        for name, values in expected.items():
            ours = getattr(stats, name)
            assert ours.shape == (n,)
            if name in ("prediction", "rank", "correct", "loss"):
                np.testing.assert_array_equal(ours, values, err_msg=name)
            else:
                assert ours.dtype == dtype
                np.testing.assert_allclose(ours, values, rtol=16 * eps, atol=2 * eps, err_msg=name)
        counts = target != -100
        assert stats.prediction.dtype == stats.rank.dtype == np.int64
        for name, mean in stats.means._asdict().items():
            assert mean == pytest.approx(float(np.mean(expected[name][counts])), rel=8 * eps), name
            assert mean.dtype == dtype
        np.testing.assert_array_equal(stats.correct, stats.rank == 0)

    def test_entropy_of_confident_rows(self, level, dtype):
        # H = log1p(r) + (r * 20) / (1 + r) with r = 2 e**-20, not lse - sum of p * x, which cancels
        for n_classes in (3, 40):
            logits = np.full((1, n_classes), -np.inf, dtype)
            logits[0, :3] = [20, 0, 0]
            rest = 2 * np.exp(-20.0)
            entropy = F.cross_entropy_stats(logits, [0]).entropy[0]
            assert entropy == pytest.approx(np.log1p(rest) + rest * 20 / (1 + rest), rel=8 * eps_of(dtype))

    @pytest.mark.parametrize("n_classes", [3, 40, 9000])
    def test_options(self, level, n_classes, dtype, rng):
        logits = rng.standard_normal((4, 5, n_classes)).astype(dtype) * 9
        target = rng.integers(n_classes, size=(4, 5))
        weight = rng.random(n_classes).astype(dtype)
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0, "temperature": 0.5}
        stats = F.cross_entropy_stats(logits, target, weight, axis=-1, **options)
        np.testing.assert_array_equal(
            stats.loss, F.cross_entropy(logits, target, weight, reduction="none", axis=-1, **options)
        )
        assert stats.means.loss == F.cross_entropy(logits, target, weight, axis=-1, **options)
        other, _ = transformed(logits, 5.0, 0.5)
        expected = reference_stats(other.reshape(20, n_classes), target.ravel())
        np.testing.assert_array_equal(stats.prediction.ravel(), expected["prediction"])
        np.testing.assert_array_equal(stats.rank.ravel(), expected["rank"])
        np.testing.assert_allclose(stats.entropy.ravel(), expected["entropy"], rtol=1e-5)

    @pytest.mark.parametrize("n_classes", [5, 40, 9000])
    def test_logits_that_are_no_numbers(self, level, n_classes, dtype):
        last = n_classes - 1
        logits = np.zeros((6, n_classes), dtype)
        logits[0, [2, last]] = np.nan
        logits[1, 3] = np.inf
        logits[2] = -np.inf
        logits[3, :last] = -np.inf
        logits[4, [1, 2]] = np.inf, np.nan
        target = np.array([last, 3, 1, 0, 1, 0])
        stats = F.cross_entropy_stats(logits, target)
        np.testing.assert_array_equal(stats.prediction, logits.argmax(axis=1))
        np.testing.assert_array_equal(stats.rank, [1, 0, 1, 1, 1, 0])
        np.testing.assert_array_equal(stats.lse[:5], [np.nan, np.inf, -np.inf, 0, np.nan])
        np.testing.assert_array_equal(stats.entropy[:5], [np.nan, np.nan, np.nan, 0, np.nan])
        np.testing.assert_array_equal(stats.probability[:5], [np.nan, np.nan, np.nan, 0, np.nan])

    @pytest.mark.parametrize("n_classes", [5, 40])
    def test_nan_among_other_logits(self, level, n_classes, dtype):
        # 1e9 and 2e9 are equal after the softcap, so that the first comes first.
        logits = np.zeros((1, n_classes), dtype)
        logits[0, :3] = np.nan, 1e9, 2e9
        stats = F.cross_entropy_stats(logits, [2], softcap=5.0)
        assert stats.rank[0] == 2
        assert F.cross_entropy_stats(logits, [2]).rank[0] == 1

    @pytest.mark.parametrize("n_classes", [5, 40])
    def test_ignored_positions(self, level, n_classes, dtype):
        stats = F.cross_entropy_stats(np.full((3, n_classes), np.nan, dtype), [1, 1, 1], ignore_index=1)
        for name in ("loss", "lse", "correct", "probability", "entropy"):
            np.testing.assert_array_equal(getattr(stats, name), 0)
        np.testing.assert_array_equal(stats.prediction, -1)
        np.testing.assert_array_equal(stats.rank, -1)
        assert all(np.isnan(mean) for mean in stats.means)

    def test_no_positions(self, dtype):
        stats = F.cross_entropy_stats(np.zeros((2, 3, 0), dtype), np.zeros((2, 0), int))
        assert stats.rank.shape == (2, 0)
        assert np.isnan(stats.means.loss)

    def test_one_position(self, dtype):
        stats = F.cross_entropy_stats(np.array([1, 3, 2], dtype), 2)
        assert stats.prediction == 1
        assert stats.rank == 1
        assert all(isinstance(array, np.ndarray) and array.shape == () for array in stats[:-1])

    def test_images(self, level, dtype, rng):
        logits = rng.standard_normal((2, 21, 9, 9)).astype(dtype)
        target = rng.integers(21, size=(2, 9, 9))
        stats = F.cross_entropy_stats(logits, target)
        flat = np.moveaxis(logits, 1, -1).reshape(-1, 21)
        expected = reference_stats(flat, target.ravel())
        np.testing.assert_array_equal(stats.prediction, logits.argmax(axis=1))
        np.testing.assert_array_equal(stats.rank.ravel(), expected["rank"])

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([[1.0, 2.0]], [[0.5, 0.5]]), TypeError, "target: must be class indices"),
            (([[1.0, 2.0]], [0.5]), TypeError, "expected target dtype to be Long or Byte"),
            (([[1.0, 2.0]], [2]), IndexError, "Target 2 is out of bounds"),
            (([[1.0, 2.0]], [[0, 1]]), TypeError, "pass the class indices"),
            (([[1.0, 2.0]], [0, 1]), ValueError, "Expected input batch_size"),
            (([[1, 2]], [0]), TypeError, "input: logits must be floating point"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            F.cross_entropy_stats(*arguments)


def test_all_combinations_give_the_same_loss_with_and_without_a_gradient(
    level, dtype, rng, loss_and_gradient
):
    logits, target = draw(rng, (20, 50), dtype)
    choices = {
        "softcap": [None, 10.0],
        "temperature": [1.0, 0.5],
        "z_loss": [0.0, 0.1],
        "sample_weight": [None, rng.random(20)],
        "normalizer": [None, 7],
        "label_smoothing": [0.0, 0.1],
    }
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        assert loss_and_gradient(logits, target, **options)[0] == F.cross_entropy(logits, target, **options)
