"""value_and_grad: upstream gradients, outputs, what it takes; and gradients by differences."""

import inspect
import pickle

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce._losses import evaluator_of
from cyce.gradients import INTERNAL

SHAPES = [(7,), (4, 3), (3, 50), (2, 4, 5), (2, 3, 4, 2)]


def make_targets(rng, shape):
    axis = 0 if len(shape) == 1 else 1
    positions = shape[:axis] + shape[axis + 1 :]
    indices = rng.integers(shape[axis], size=positions)
    probabilities = np.moveaxis(rng.dirichlet(np.ones(shape[axis]), size=positions), -1, axis)
    return {"indices": indices, "probabilities": probabilities}


class TestByDifferences:
    @pytest.mark.parametrize("kind", ["indices", "probabilities"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_central_differences(self, level, rng, shape, smoothing, reduction, kind):
        logits = rng.standard_normal(shape)
        target = make_targets(rng, shape)[kind]
        options = {
            "weight": rng.uniform(0.2, 2, shape[0 if len(shape) == 1 else 1]),
            "reduction": reduction,
            "label_smoothing": smoothing,
        }
        value = F.cross_entropy(logits, target, **options)
        upstream = rng.standard_normal(np.shape(value))
        _, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, **options, grad_output=upstream)
        step = 1e-5
        for index in np.ndindex(shape):
            shifted = np.stack([logits, logits])
            shifted[(0, *index)] -= step
            shifted[(1, *index)] += step
            low, high = (np.sum(upstream * F.cross_entropy(x, target, **options)) for x in shifted)
            # truncation step**2 times a third derivative, cancellation eps * value / step
            assert (
                abs((high - low) / (2 * step) - gradient[index])
                < 1e-8 * (1 + np.abs(upstream).max()) * logits.size
            )

    def test_the_optimum_of_a_convex_loss(self, rng):
        # Newton's method on the bias of a constant model ends at the class frequencies.
        target = rng.integers(4, size=200)
        bias = np.zeros(4)
        for _ in range(30):
            logits = np.broadcast_to(bias, (200, 4))
            _, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target)
            p = np.exp(bias) / np.exp(bias).sum()
            bias = bias - np.linalg.pinv(np.diag(p) - np.outer(p, p)) @ gradient.sum(axis=0)
        np.testing.assert_allclose(np.exp(bias) / np.exp(bias).sum(), np.bincount(target) / 200, rtol=1e-12)

    @pytest.mark.parametrize("shape", [(50, 3), (20, 1000), (3, 20_000), (5, 21, 30)], ids=str)
    def test_gradients_of_a_position_add_up_to_zero(self, level, dtype, rng, loss_and_gradient, shape):
        logits = (rng.standard_normal(shape) * 5).astype(dtype)
        target = make_targets(rng, shape)["indices"]
        _, gradient = loss_and_gradient(logits, target, reduction="sum", label_smoothing=0.1)
        sums = gradient.astype(np.longdouble).sum(axis=1)
        # Every entry is right to a few ulp of itself, and their absolute values add up to 2 at most.
        assert np.abs(sums).max() <= 8 * np.finfo(dtype).eps


class TestGradOutput:
    def test_a_number(self, level, dtype, rng, loss_and_gradient):
        logits = rng.standard_normal((5, 4)).astype(dtype)
        for reduction in ("mean", "sum", "none"):
            loss, gradient = loss_and_gradient(logits, [0, 1, 2, 3, 0], reduction=reduction)
            for upstream in (-2.5, np.float32(-2.5), np.array(-2.5), dtype.type(-2.5)):
                same_loss, scaled = loss_and_gradient(
                    logits, [0, 1, 2, 3, 0], reduction=reduction, grad_output=upstream
                )
                np.testing.assert_array_equal(same_loss, loss)
                np.testing.assert_allclose(scaled, -2.5 * gradient, rtol=4 * np.finfo(dtype).eps)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_one_per_position(self, level, dtype, rng, loss_and_gradient, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        target = make_targets(rng, shape)["indices"]
        _, gradient = loss_and_gradient(logits, target, reduction="none")
        upstream = np.asarray(rng.standard_normal(target.shape))
        axis = 0 if len(shape) == 1 else 1
        expected = gradient * np.expand_dims(upstream, axis)
        for given in (upstream, upstream.astype(np.float32), upstream.tolist(), upstream.copy(order="F")):
            _, scaled = loss_and_gradient(logits, target, reduction="none", grad_output=given)
            np.testing.assert_allclose(scaled, expected, rtol=1e-6)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_reduced_loss_takes_one_number(self, loss_and_gradient, reduction):
        with pytest.raises(ValueError, match="grad_output: with reduction"):
            loss_and_gradient(np.zeros((2, 3)), [0, 1], reduction=reduction, grad_output=[1.0, 2.0])

    @pytest.mark.parametrize("wrong", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]])
    def test_a_wrong_shape(self, loss_and_gradient, wrong):
        with pytest.raises(ValueError, match="grad_output: must be a number or have the loss's shape"):
            loss_and_gradient(np.zeros((2, 3)), [0, 1], reduction="none", grad_output=wrong)

    @pytest.mark.parametrize("wrong", ["1", 1j, None, ["a", "b"]])
    def test_a_wrong_kind(self, loss_and_gradient, wrong):
        if wrong is None:
            loss_and_gradient(np.zeros((2, 3)), [0, 1], grad_output=wrong)
            return
        with pytest.raises(TypeError, match="grad_output: must hold real numbers"):
            loss_and_gradient(np.zeros((2, 3)), [0, 1], reduction="none", grad_output=wrong)

    def test_an_ignored_position_stays_zero(self, level, dtype, loss_and_gradient):
        for upstream in (np.inf, np.nan, 1e30):
            _, gradient = loss_and_gradient(np.zeros((2, 3), dtype), [0, -100], grad_output=upstream)
            assert not gradient[1].any()


class TestOut:
    @pytest.mark.parametrize("shape", [*SHAPES, (3, 9000), (2, 100, 70)], ids=str)
    def test_in_place(self, level, dtype, rng, loss_and_gradient, shape):
        for kind, target in make_targets(rng, shape).items():
            for options in ({}, {"label_smoothing": 0.2}, {"reduction": "none"}):
                logits = rng.standard_normal(shape).astype(dtype)
                for given in (logits, np.asfortranarray(logits)):
                    expected = loss_and_gradient(given, target, **options)
                    in_place = given.copy(order="K")
                    loss, gradient = loss_and_gradient(in_place, target, **options, out=in_place)
                    assert gradient is in_place
                    assert loss.tobytes() == expected[0].tobytes(), kind
                    np.testing.assert_array_equal(gradient, expected[1])

    def test_another_array_over_the_same_memory_is_in_place_too(self, rng, loss_and_gradient):
        logits = rng.standard_normal((3, 40))
        expected = loss_and_gradient(logits, [0, 1, 2])[1]
        loss_and_gradient(logits, [0, 1, 2], out=logits[:])
        np.testing.assert_array_equal(logits, expected)

    def test_any_strides(self, level, dtype, rng, loss_and_gradient):
        logits = rng.standard_normal((6, 50)).astype(dtype)
        target = rng.integers(50, size=6)
        expected = loss_and_gradient(logits, target)[1]
        for out in (
            np.empty((6, 50), dtype, order="F"),
            np.empty((12, 100), dtype)[::2, ::-2],
            np.empty((6, 64), dtype)[:, 7:57],
        ):
            assert loss_and_gradient(logits, target, out=out)[1] is out
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-9)

    def test_the_default_has_the_layout_of_the_logits(self, loss_and_gradient):
        logits = np.zeros((2, 8, 3)).transpose(0, 2, 1)
        assert loss_and_gradient(logits, np.zeros((2, 8), int))[1].strides == logits.strides

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.empty((3, 4), np.float32), TypeError, "out: must have input's dtype float64, got float32"),
            (np.empty((3, 4), ">f8"), TypeError, "out: must be in native byte order, got dtype >f8"),
            (np.empty((3, 4), int), TypeError, "out: must have input's dtype float64, got int64"),
            (np.empty((4, 3)), ValueError, r"out: must have input's shape \[3, 4\], got \[4, 3\]"),
            ([[0.0] * 4] * 3, TypeError, "out: must be an array whose memory can be written, got list"),
            (np.broadcast_to(0.0, (3, 4)), ValueError, "out: is read-only"),
            (np.lib.stride_tricks.as_strided(np.empty(4), (3, 4), (0, 8)), ValueError, "out: several of its"),
            (
                np.lib.stride_tricks.as_strided(np.empty(9), (3, 4), (16, 8)),
                ValueError,
                "out: several of its",
            ),
            (
                np.empty(97, np.uint8)[1:].view(float).reshape(3, 4),
                ValueError,
                "out: its memory is not aligned",
            ),
            (np.ma.masked_array(np.empty((3, 4))), TypeError, "out: a masked array"),
            ("out", TypeError, "out: must"),
        ],
    )
    def test_what_it_may_not_be(self, loss_and_gradient, out, error, message):
        with pytest.raises(error, match=message):
            loss_and_gradient(np.zeros((3, 4)), [0, 1, 2], out=out)

    def test_a_part_of_the_logits(self, loss_and_gradient):
        memory = np.arange(20.0)
        logits = memory[:16].reshape(4, 4)
        before = memory.copy()
        for out in (memory[4:].reshape(4, 4), logits[::-1], logits.T):
            with pytest.raises(ValueError, match="out: shares a part of its memory with input"):
                loss_and_gradient(logits, [0, 1, 2, 3], out=out)
        np.testing.assert_array_equal(memory, before)

    def test_interleaved_with_the_logits(self, loss_and_gradient):
        # Between the logits' elements, not on them.
        memory = np.zeros((4, 8))
        memory[:, ::2] = np.arange(16.0).reshape(4, 4)
        expected = loss_and_gradient(memory[:, ::2].copy(), [0, 1, 2, 3])[1]
        loss_and_gradient(memory[:, ::2], [0, 1, 2, 3], out=memory[:, 1::2])
        np.testing.assert_allclose(memory[:, 1::2], expected, rtol=1e-14)

    @pytest.mark.parametrize("name", ["target", "weight", "grad_output"])
    def test_another_argument(self, loss_and_gradient, name):
        memory = np.ones((3, 3))
        arguments = {
            "target": memory if name == "target" else [0, 1, 2],
            "weight": memory[0] if name == "weight" else None,
            "grad_output": memory[0] if name == "grad_output" else None,
        }
        with pytest.raises(ValueError, match=f"out: shares memory with {name}"):
            loss_and_gradient(np.zeros((3, 3)), **arguments, reduction="none", out=memory)

    def test_after_an_error_nothing_has_been_written(self, level, dtype, loss_and_gradient):
        for shape, bad in (((500, 10), 499), ((50, 1000), 49), ((2, 5, 90), (1, 89))):
            logits = np.ones(shape, dtype)
            target = np.zeros(shape[:1] + shape[2:], int)
            target[bad] = shape[1]
            with pytest.raises(IndexError):
                loss_and_gradient(logits, target, out=logits)
            assert (logits == 1).all()


class TestWhatItTakes:
    def test_functions_and_modules(self, rng):
        logits, target = rng.standard_normal((4, 3)), [0, 1, -1, 2]
        criterion = cyce.CrossEntropyLoss(
            weight=[1, 2, 3], ignore_index=-1, reduction="sum", label_smoothing=0.1
        )
        loss, gradient = cyce.value_and_grad(criterion)(logits, target)
        expected = cyce.value_and_grad(F.cross_entropy)(
            logits, target, weight=[1, 2, 3], ignore_index=-1, reduction="sum", label_smoothing=0.1
        )
        assert loss == expected[0] == criterion(logits, target)
        np.testing.assert_array_equal(gradient, expected[1])

    def test_the_module_may_change_afterwards(self):
        criterion = cyce.CrossEntropyLoss()
        loss_and_gradient = cyce.value_and_grad(criterion)
        criterion.reduction = "sum"
        assert loss_and_gradient(np.zeros((2, 3)), [0, 1])[0] == pytest.approx(2 * np.log(3))

    def test_positional_and_named_arguments(self):
        loss_and_gradient = cyce.value_and_grad(F.cross_entropy)
        loss, _ = loss_and_gradient(np.zeros((2, 3)), [0, 1], [1.0, 1.0, 2.0], None, 0, None, "sum", 0.1)
        named, _ = loss_and_gradient(
            input=np.zeros((2, 3)),
            target=[0, 1],
            weight=[1.0, 1.0, 2.0],
            ignore_index=0,
            reduction="sum",
            label_smoothing=0.1,
        )
        assert loss == named

    @pytest.mark.parametrize("name", ["stats_out", "wieght", *sorted(INTERNAL)])
    def test_it_takes_no_other_arguments(self, name):
        for loss in (F.cross_entropy, F.kl_div, F.linear_cross_entropy, cyce.CrossEntropyLoss()):
            with pytest.raises(TypeError, match=name):
                cyce.value_and_grad(loss)(np.zeros((2, 3)), [0, 1], **{name: [np.zeros(2)]})

    @pytest.mark.parametrize("shape", [(8, 300), (8, 5), (2, 300, 3)], ids=str)
    def test_broadcast_logits(self, shape, dtype, rng, loss_and_gradient):
        row = (rng.standard_normal(shape[1]) * 5).astype(dtype)
        logits = np.broadcast_to(row.reshape(-1, *[1] * (len(shape) - 2)), shape)
        target = np.zeros(shape[:1] + shape[2:], int)
        loss, gradient = loss_and_gradient(logits, target)
        assert gradient.flags.c_contiguous
        assert loss == F.cross_entropy(logits, target)

    def test_its_name_and_signature(self):
        loss_and_gradient = cyce.value_and_grad(F.cross_entropy)
        assert loss_and_gradient.__name__ == "cross_entropy"
        assert repr(loss_and_gradient) == "value_and_grad(cross_entropy)"
        names = list(inspect.signature(loss_and_gradient).parameters)
        assert names == [*inspect.signature(F.cross_entropy).parameters, "grad_output", "out"]
        of_module = cyce.value_and_grad(cyce.CrossEntropyLoss())
        assert repr(of_module) == "value_and_grad(CrossEntropyLoss())"
        names = ["input", "target", "class_mask", "normalizer", "sample_weight", "grad_output", "out"]
        assert list(inspect.signature(of_module).parameters) == names

    @pytest.mark.parametrize("loss", [F.cross_entropy, cyce.CrossEntropyLoss(reduction="sum")])
    def test_it_can_be_pickled(self, loss):
        loss_and_gradient = pickle.loads(pickle.dumps(cyce.value_and_grad(loss)))
        assert loss_and_gradient(np.zeros((2, 3)), [0, 1])[0] == loss(np.zeros((2, 3)), [0, 1])

    @pytest.mark.parametrize("wrong", [np.sum, 3, None, "cross_entropy", cyce.CrossEntropyLoss, []])
    def test_what_is_no_loss(self, wrong):
        with pytest.raises(TypeError, match="loss: must be a loss function or loss module of cyce"):
            cyce.value_and_grad(wrong)

    def test_missing_and_unknown_arguments(self):
        # Python's own message, with the name of the function that was called.
        with pytest.raises(TypeError, match=r"^cross_entropy\(\) got an unexpected .* 'no_such'"):
            cyce.value_and_grad(F.cross_entropy)(np.zeros((1, 2)), [0], no_such=1)
        with pytest.raises(TypeError, match=r"^cross_entropy\(\) got an unexpected .* 'stats'"):
            cyce.value_and_grad(F.cross_entropy)(np.zeros((1, 2)), [0], stats=None)
        with pytest.raises(TypeError, match=r"^cross_entropy\(\) missing .* 'target'"):
            cyce.value_and_grad(F.cross_entropy)(np.zeros((1, 2)))

    @pytest.mark.parametrize(
        "loss",
        [
            F.cross_entropy,
            F.nll_loss,
            F.binary_cross_entropy,
            F.binary_cross_entropy_with_logits,
            F.kl_div,
            F.linear_cross_entropy,
        ],
    )
    def test_what_computes_it_is_named_and_called_as_the_loss(self, loss):
        evaluate = evaluator_of(loss)
        assert evaluate.__name__ == evaluate.__code__.co_name == loss.__name__
        theirs = inspect.signature(loss).parameters
        ours = inspect.signature(evaluate).parameters
        assert [(p.name, p.default, p.kind) for p in theirs.values()] == [
            (p.name, p.default, p.kind) for p in ours.values() if p.name not in INTERNAL
        ]
