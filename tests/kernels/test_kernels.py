"""The kernels at every level: against the oracle, and the same bits whatever the layout of the work."""

import itertools

import numpy as np
import pytest

import oracle
from cyce import functional
from cyce.functional import cross_entropy
from cyce.kernels import dispatch
from records import of_classes
from stages import one_in

# Around the lanes (32), a chunk (256), a block of a tile (64) and of a row (8192).
WIDTHS = [
    1,
    2,
    3,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    257,
    1000,
    4097,
    8191,
    8192,
    8193,
    50257,
]
SHAPES = [
    *[(3, width) for width in WIDTHS],
    *[(n, 5) for n in (1, 2, 31, 32, 33, 127, 128, 129, 300)],
    (7,),
    (2, 3, 1),
    (2, 5, 7),
    (3, 40, 33),
    (1, 65, 130),
    (2, 21, 9, 11),
    (2, 130, 3, 4),
    (2, 3, 2, 5, 3),
    (1, 4100, 3),
]
OPTIONS = {
    "plain": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight, smoothing": {"weight": True, "label_smoothing": 0.3},
    "all smoothing": {"label_smoothing": 1.0},
    "ignored": {"ignore_index": 0},
    "ignored, weight, smoothing": {"ignore_index": 0, "weight": True, "label_smoothing": 0.2},
    "probabilities": {"probabilities": True},
    "probabilities, weight, smoothing": {"probabilities": True, "weight": True, "label_smoothing": 0.2},
}


# Statistics of three positions, without the last three.
STATS = [np.zeros(3, np.float32)] * 3 + [np.zeros(3, np.int64)] * 2


def make_case(rng, shape, dtype, weight=False, probabilities=False, **options):
    """Logits, target and the options of cross_entropy."""
    axis = 0 if len(shape) == 1 else 1
    logits = (rng.standard_normal(shape) * 3).astype(dtype)
    if probabilities:
        target = rng.dirichlet(np.ones(shape[axis]), size=shape[:axis] + shape[axis + 1 :])
        target = np.moveaxis(target, -1, axis).astype(dtype)
    else:
        target = rng.integers(shape[axis], size=shape[:axis] + shape[axis + 1 :])
    if weight:
        options["weight"] = rng.uniform(0.2, 2, shape[axis]).astype(dtype)
    return logits, target, options


@pytest.mark.parametrize("options", one_in(2, OPTIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient(level, dtype, rng, loss_and_gradient, shape, options):
    logits, target, options = make_case(rng, shape, dtype, **options)
    axis = oracle.class_axis(logits)
    eps = np.finfo(dtype).eps
    exact = oracle.per_position(logits, target, **options)
    for reduction in ("none", "sum", "mean"):
        upstream = rng.standard_normal(exact.losses.shape if reduction == "none" else ()).astype(dtype)
        loss, gradient = loss_and_gradient(
            logits, target, reduction=reduction, grad_output=upstream, **options
        )
        exact_loss, exact_gradient = oracle.cross_entropy(
            logits, target, reduction=reduction, grad_output=upstream, **options
        )
        # Sums over the classes of doubles add a little of their own.
        np.testing.assert_allclose(loss, exact_loss.astype(dtype), rtol=8 * eps, atol=0)
        # mass * softmax - target: the two may cancel. Each is an exponential (1 ulp) and some ten
        # products, sums and divisions (half an ulp each, of random sign).
        divisor = exact.denominator if reduction == "mean" and exact.denominator else 1
        scale = np.abs(np.expand_dims(exact.masses * upstream / divisor, axis))
        assert np.all(np.abs(gradient - exact_gradient) <= 6 * eps * scale)


@pytest.mark.parametrize("options", ["plain", "weight, smoothing", "probabilities"])
@pytest.mark.parametrize(
    "shape", [(300, 10), (50, 100), (40, 1000), (4, 9000), (2, 21, 40, 33), (5, 130, 60)], ids=str
)
def test_the_loss_alone_has_the_same_bits(level, dtype, rng, loss_and_gradient, shape, options):
    logits, target, options = make_case(rng, shape, dtype, **OPTIONS[options])
    for reduction in ("none", "sum", "mean"):
        with_gradient, _ = loss_and_gradient(logits, target, reduction=reduction, **options)
        alone = cross_entropy(logits, target, reduction=reduction, **options)
        assert alone.tobytes() == with_gradient.tobytes()


# Layouts that the rows of test_qualities do not have.
THREADED = {
    "one row, 1-D": (300_001,),
    "image": (2, 21, 70, 90),
    "sequence": (3, 700, 90),
    "long sequence": (1, 40_000, 5),
}


@pytest.mark.parametrize("options", ["plain", "ignored, weight, smoothing", "probabilities"])
@pytest.mark.parametrize("shape", THREADED.values(), ids=THREADED)
def test_the_same_bits_for_any_number_of_threads(
    level, dtype, rng, loss_and_gradient, threads, shape, options
):
    logits, target, options = make_case(rng, shape, dtype, **OPTIONS[options])
    results = set()
    for n in (1, 2, 3, 7):
        threads(n)
        loss, gradient = loss_and_gradient(logits, target, **options)
        in_place = logits.copy()
        losses, _ = loss_and_gradient(in_place, target, reduction="none", **options, out=in_place)
        results.add((loss.tobytes(), gradient.tobytes(), losses.tobytes(), in_place.tobytes()))
    assert len(results) == 1


@pytest.mark.skipif(
    not {"x86_64_v3", "x86_64_v4"} <= set(dispatch.usable_levels()), reason="one level with FMA at most"
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(300, 10), (9, 1000), (2, 9000), (2, 21, 30, 9)], ids=str)
def test_levels_with_fused_multiply_add_have_the_same_bits(
    dtype, rng, loss_and_gradient, monkeypatch, shape, options
):
    logits, target, options = make_case(rng, shape, dtype, **options)
    results = []
    for name in ("x86_64_v3", "x86_64_v4"):
        monkeypatch.setattr(dispatch, "kernels", dispatch.load_level(name, "cross_entropy"))
        loss, gradient = loss_and_gradient(logits, target, **options)
        results.append((loss.tobytes(), gradient.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("shape", [(6, 70), (5, 8, 9), (4, 40, 3, 5), (200, 4)], ids=str)
def test_any_strides(level, dtype, rng, loss_and_gradient, shape):
    logits, target, _ = make_case(rng, shape, dtype)
    expected = loss_and_gradient(logits, target, reduction="none")
    for permutation in itertools.permutations(range(len(shape))):
        for step in (1, 2, -1, -3):
            # The same shape and values, in another memory order and with gaps.
            memory = np.empty([abs(step) * shape[axis] for axis in permutation], dtype)
            strided = memory[tuple(slice(None, None, step) for _ in shape)].transpose(np.argsort(permutation))
            strided[...] = logits
            losses, gradient = loss_and_gradient(strided, target, reduction="none")
            # Vectors along the classes and across positions add in different orders.
            np.testing.assert_allclose(losses, expected[0], rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=4 * np.finfo(dtype).eps)
            # The same layout for the gradient; its gaps must not be written.
            out_memory = np.full_like(memory, 77)
            slices = tuple(slice(None, None, step) for _ in shape)
            out = out_memory[slices].transpose(np.argsort(permutation))
            loss_and_gradient(logits, target, reduction="none", out=out)
            np.testing.assert_allclose(out, expected[1], rtol=1e-4, atol=4 * np.finfo(dtype).eps)
            gaps = np.ones(memory.shape, bool)
            gaps[slices] = False
            assert (out_memory[gaps] == 77).all()
            # And in place.
            loss_and_gradient(strided, target, reduction="none", out=strided)
            np.testing.assert_array_equal(strided, gradient)


@pytest.mark.not_sanitized
def test_more_than_two_to_the_31_logits(level, rng):
    # Rows of stride 0: no memory is needed.
    row = rng.standard_normal(50_000).astype(np.float32)
    logits = np.broadcast_to(row, (2**31 // 50_000 + 10, 50_000))
    target = np.full(len(logits), -100)
    target[[0, -1]] = 7
    losses = cross_entropy(logits, target, reduction="none")
    single = cross_entropy(row[None], [7])
    assert losses[0] == losses[-1] == single
    assert not losses[1:-1].any()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("target", np.zeros(4, np.int64)),
        ("target", np.zeros(3)),
        ("weight", np.ones(4, np.float32)),
        ("weight", np.ones(5)),
        ("loss_out", np.zeros(4, np.float32)),
        ("loss_out", np.zeros(3)),
        ("grad_out", np.zeros((3, 4), np.float32)),
        ("grad_out", np.zeros((5, 3), np.float32)),
        ("grad_out", np.zeros(15, np.float32)),
        ("axis", 2),
        ("axis", -1),
        ("grad_out", np.zeros((3, 5), np.int32)),
        ("grad_output", np.zeros(4, np.float32)),
        ("logits", np.zeros((3, 5), np.int32)),
        ("sample_weight", np.ones(4, np.float32)),
        ("sample_weight", np.ones(3)),
        ("first_class", 6),
        ("n_all_classes", 4),
        ("stats_out", [np.zeros(3, np.float32)] * 3 + [np.zeros(3, np.int64)]),
        ("stats_out", []),
        ("stats_out", 5),
        ("stats_out", [np.zeros(3, np.float32)] * 3 + [np.zeros(2, np.int64)] * 2),
        ("stats_out", [np.zeros(3, np.float32)] * 5),
        ("stats_out", [np.zeros(3)] * 3 + [np.zeros(3, np.int64)] * 2),
        ("stats_out", [*STATS, np.zeros(3, np.float32)]),
        ("stats_out", [*STATS, *[np.zeros(3, np.float32)] * 3]),
        ("stats_out", [*STATS, *[np.zeros(3, np.float32)] * 3, np.zeros(3)]),
        ("stats_out", [*STATS, *[np.zeros(3, np.float32)] * 3, np.zeros(2, np.float32)]),
    ],
)
def test_the_kernels_do_not_trust_the_facade(level, argument, value):
    arguments = {
        "logits": np.zeros((3, 5), np.float32),
        "axis": 1,
        "target": np.zeros(3, np.int64),
        "n_all_classes": 5,
    }
    kernels = dispatch.load_level(level, "cross_entropy")
    kernels.cross_entropy(of_classes(**arguments))
    with pytest.raises((ValueError, TypeError)):
        kernels.cross_entropy(of_classes(**{**arguments, argument: value}))


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("reference", np.zeros((3, 4), np.float32)),
        ("reference", np.zeros((2, 5), np.float32)),
        ("reference", np.zeros((3, 5), np.int32)),
        ("kl_out", np.zeros(2)),
        ("kl_out", np.zeros(3, np.float32)),
        ("loss_out", np.zeros(4)),
        ("top_out", np.zeros((3, 9), np.int64)),
        ("reference_top_out", np.zeros((3, 10))),
    ],
)
def test_diverge_does_not_trust_the_facade(level, changed, value):
    kernels = dispatch.load_level(level, "cross_entropy")
    target = np.zeros(3, np.int64)
    sums = ("kl_out", "reverse_kl_out", "js_out", "loss_out", "reference_loss_out")
    arrays = {
        "reference": np.zeros((3, 5), np.float32),
        **{name: np.zeros(3) for name in sums},
        **{name: np.zeros((3, kernels.N_TOP), np.int64) for name in ("top_out", "reference_top_out")},
    }

    def diverge(reference, **outputs):
        model = of_classes(logits=np.zeros((3, 5), np.float32), axis=1, target=target)
        reference = of_classes(logits=reference, axis=1, target=target)
        kernels.diverge(model, reference, **outputs)

    diverge(**arrays)
    with pytest.raises((ValueError, TypeError)):
        diverge(**{**arrays, changed: value})
    target[1] = 5
    with pytest.raises(IndexError):
        diverge(**arrays)


def test_probabilities_of_another_shape_are_not_read(level):
    kernels = dispatch.load_level(level, "cross_entropy")
    for shape in ((2, 8), (16,)):
        arguments = of_classes(
            logits=np.zeros((8, 2), np.float32), axis=1, probabilities=np.zeros(shape, np.float32)
        )
        with pytest.raises(ValueError, match="probabilities are not of the logits' shape"):
            kernels.cross_entropy(arguments)


@pytest.mark.parametrize("options", ["plain", "ignored, weight, smoothing", "probabilities"])
@pytest.mark.parametrize("n_classes", [3, 10, 127, 128, 200, 1000, 9000])
def test_a_position_has_the_same_bits_in_any_company(
    level, dtype, rng, loss_and_gradient, n_classes, options
):
    # Positions are taken several at a time, in vectors and without.
    logits, target, options = make_case(rng, (41, n_classes), dtype, **OPTIONS[options])
    losses, gradients = loss_and_gradient(logits, target, reduction="none", **options)
    for row in (0, 7, 8, 15, 16, 31, 32, 40):
        alone = slice(row, row + 1)
        loss, gradient = loss_and_gradient(logits[alone], target[alone], reduction="none", **options)
        assert loss.tobytes() == losses[alone].tobytes()
        assert gradient.tobytes() == gradients[alone].tobytes()


STREAMED = {
    "rows": ((270, 32_000), np.float32),
    "short rows": ((8450, 1000), np.float32),
    "doubles": ((135, 32_000), np.float64),
    "halves": ((530, 32_000), np.float16),
    "few classes": ((900_007, 10), np.float32),
    "more classes": ((130_003, 67), np.float32),
    "few classes of doubles": ((600_001, 7), np.float64),
    "image": ((7, 21, 251, 251), np.float32),
    "image of doubles": ((3, 21, 271, 271), np.float64),
}


@pytest.mark.parametrize("smoothing", one_in(2, [0.0, 0.1]))
@pytest.mark.parametrize(("shape", "dtype"), STREAMED.values(), ids=STREAMED)
def test_large_gradients_are_the_same_bytes_as_in_place(
    level, rng, loss_and_gradient, shape, dtype, smoothing
):
    # From 32 MiB on they go past the caches, in place they do not. Neither begins at a cache line.
    size = int(np.prod(shape))
    logits = np.resize(rng.standard_normal(1_000_003).astype(dtype), size + 1)[1:].reshape(shape)
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    target.flat[::10] = -100
    memory = np.full(size + 32, 7, dtype)
    out = memory[3 : size + 3].reshape(shape)
    loss, _ = loss_and_gradient(logits, target, label_smoothing=smoothing, out=out)
    assert (memory[:3] == 7).all()
    assert (memory[size + 3 :] == 7).all()
    in_place, _ = loss_and_gradient(logits, target, label_smoothing=smoothing, out=logits)
    assert loss == in_place
    assert np.array_equal(out.view(np.uint32), logits.view(np.uint32))
    assert not np.moveaxis(out, 1, -1)[target == -100].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n_classes", [3, 40, 300])
def test_a_weight_that_no_target_asks_for_does_no_harm(level, dtype, rng, loss_and_gradient, n_classes, bad):
    logits = rng.standard_normal((50, n_classes)).astype(dtype)
    target = rng.integers(1, n_classes, size=50)
    target[::3] = -100
    weight = np.ones(n_classes, dtype)
    expected = loss_and_gradient(logits, target, weight)
    weight[0] = bad
    loss, gradient = loss_and_gradient(logits, target, weight)
    assert loss == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])
    assert not gradient[::3].any()


@pytest.mark.parametrize("integer", ["b", "h", "i", "q", "B", "H", "I", "Q"])
@pytest.mark.parametrize("position", [0, 127, 128, 255, 256, 8191, 8192, 19_999])
def test_every_block_of_targets_is_checked(level, integer, position):
    target = np.zeros(20_000, integer)
    target[5] = target[position - 1] = 3
    target[position] = 9
    with pytest.raises(IndexError, match=rf"Target 9 is out of bounds\. target\[{position}\]"):
        cross_entropy(np.zeros((20_000, 4), np.float32), target, ignore_index=3)


@pytest.mark.integration
def test_classes_that_a_float_cannot_count_are_told_apart(level, rng):
    n_classes = 2**24 + 9
    logits = np.zeros((n_classes, 2), np.float32)
    best = n_classes - 2
    logits[best] = 1
    stats = functional.cross_entropy_stats(logits, [best, best], axis=0)
    assert stats.prediction.tolist() == [best, best]
    assert stats.rank.tolist() == [0, 0]
