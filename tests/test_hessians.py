"""Second order, against torch's autograd, differences of gradients and long double."""

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
import oracle
from autograd_oracle import LAYOUTS, assert_near, double, positions_of
from oracle import LONG
from stages import one_in

of_cross_entropy = cyce.value_grad_and_hess(F.cross_entropy)
product_of_cross_entropy = cyce.hessian_vector_product(F.cross_entropy)


def second_order(formula, logits, vector, upstream, axis, classes):
    """Return the diagonal of the Hessian at some classes, and its product with a vector, by torch.

    formula: losses of the positions. They are weighted by `upstream`.
    """
    variable = double(logits).requires_grad_()
    total = (formula(variable) * double(upstream)).sum()
    (gradient,) = torch.autograd.grad(total, variable, create_graph=True)
    diagonal = []
    for c in classes:
        (column,) = torch.autograd.grad(gradient.select(axis, c).sum(), variable, retain_graph=True)
        diagonal.append(column.select(axis, c))
    (product,) = torch.autograd.grad((gradient * double(vector)).sum(), variable)
    return torch.stack(diagonal, axis).numpy(), product.numpy()


def log_probabilities(logits, axis):
    """Return the log-softmax as a tensor, its classes last."""
    return torch.movedim(torch.log_softmax(logits, axis), axis, -1)


def cross_entropies(logits, masses, z_loss, temperature, axis):
    """Return the losses of targets that have a mass on each class; masses: classes last."""
    losses = -(double(masses) * log_probabilities(logits / temperature, axis)).sum(-1)
    return losses + z_loss * torch.logsumexp(logits / temperature, axis) ** 2


def focal_losses(logits, masses, target, own, gamma, poly1, axis):
    """Return the losses of class indices, `own` of whose masses are on the target alone."""
    log_p = log_probabilities(logits, axis)
    miss = -torch.expm1(log_p.gather(-1, torch.tensor(target)[..., None])[..., 0])
    return miss**gamma * (-(double(masses) * log_p).sum(-1) + poly1 * double(own) * miss)


def masses_of(target, n_classes, weight, smoothing):
    """Return what class indices put on each class, the classes last, and on the target alone."""
    own = (1 - smoothing) * weight[target]
    return np.eye(n_classes)[target] * own[..., None] + weight * smoothing / n_classes, own


OPTIONS = {
    "indices": {},
    "weights": {"weight": True, "label_smoothing": 0.1},
    "probabilities": {"probabilities": True, "weight": True, "label_smoothing": 0.2},
    "z-loss": {"z_loss": 0.01, "temperature": 2.5, "label_smoothing": 0.1},
}
FOCAL = {
    "gamma 2": {},
    "gamma 0": {"gamma": 0.0, "poly1": 1.5},
    "smoothed": {"gamma": 0.5, "poly1": 0.7, "label_smoothing": 0.1},
    "gamma 3": {"gamma": 3.0, "poly1": -0.5, "label_smoothing": 0.2},
}


def some_classes(rng, n_classes, target):
    """Return up to 24 classes, among them targets."""
    chosen = rng.permutation(n_classes)[:20]
    return np.unique([*chosen, *np.ravel(target)[:4]])


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("name", one_in(2, list(OPTIONS)))
def test_cross_entropy(level, dtype, rng, shape, axis, name):
    options = {"probabilities": False, "label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0}
    options |= OPTIONS[name]
    n_classes, positions = shape[axis], positions_of(shape, axis)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    vector = rng.standard_normal(shape).astype(dtype)
    target = rng.integers(n_classes, size=positions)
    weight = rng.uniform(0.5, 2, n_classes).astype(dtype) if options.pop("weight", False) else None
    of_classes = np.ones(n_classes) if weight is None else weight
    upstream, sample_weight = (rng.uniform(0.2, 2, positions).astype(dtype) for _ in range(2))
    classes, smoothing = some_classes(rng, n_classes, target), options["label_smoothing"]
    masses, _ = masses_of(target, n_classes, of_classes, smoothing)
    if options.pop("probabilities"):
        probabilities = rng.dirichlet(np.ones(n_classes), positions).astype(dtype)
        masses = of_classes * (probabilities * (1 - smoothing) + smoothing / n_classes)
        target = np.moveaxis(probabilities, -1, axis)
    expected, expected_product = second_order(
        lambda x: cross_entropies(x, masses, options["z_loss"], options["temperature"], axis),
        logits, vector, upstream * sample_weight, axis, classes,
    )  # fmt: skip
    named = {**options, "weight": weight, "sample_weight": sample_weight, "axis": axis, "reduction": "none"}
    losses, gradient, hessian = of_cross_entropy(logits, target, grad_output=upstream, **named)
    same_losses, same_gradient = cyce.value_and_grad(F.cross_entropy)(
        logits, target, grad_output=upstream, **named
    )
    # The same bytes, also of zeros.
    assert losses.tobytes() == same_losses.tobytes()
    assert gradient.tobytes() == same_gradient.tobytes()
    assert_near(hessian.take(classes, axis), expected)
    product = product_of_cross_entropy(logits, target, vector, grad_output=upstream, **named)
    assert_near(product, expected_product)


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("name", one_in(2, list(FOCAL)))
def test_focal_loss(level, dtype, rng, shape, axis, name):
    options = {"gamma": 2.0, "poly1": 0.0, "label_smoothing": 0.0, **FOCAL[name]}
    n_classes, positions = shape[axis], positions_of(shape, axis)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    target = rng.integers(n_classes, size=positions)
    # Some are classified well.
    np.put_along_axis(
        logits, np.expand_dims(target, axis), rng.uniform(0, 9, np.expand_dims(target, axis).shape), axis
    )
    weight = rng.uniform(0.5, 2, n_classes).astype(dtype)
    upstream = rng.uniform(0.2, 2, positions).astype(dtype)
    classes = some_classes(rng, n_classes, target)
    masses, own = masses_of(target, n_classes, weight, options["label_smoothing"])
    expected, _ = second_order(
        lambda x: focal_losses(x, masses, target, own, options["gamma"], options["poly1"], axis),
        logits, logits, upstream, axis, classes,
    )  # fmt: skip
    _, _, hessian = cyce.value_grad_and_hess(F.focal_loss)(
        logits, target, weight=weight, axis=axis, reduction="none", grad_output=upstream, **options
    )
    assert_near(hessian.take(classes, axis), expected)


@pytest.mark.parametrize("name", ["binary", "weights", "focal", "focal without alpha"])
def test_yes_no_questions(level, dtype, rng, name):
    shape = (60, 7)
    logits = (4 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(2, size=shape).astype(dtype)
    labels[0] = 0.3
    vector, upstream, weight = (rng.uniform(0.2, 2, shape).astype(dtype) for _ in range(3))
    loss, options = F.binary_cross_entropy_with_logits, {}
    if name == "weights":
        options = {"weight": weight, "pos_weight": weight[0]}
    elif name != "binary":
        loss = F.sigmoid_focal_loss
        options = {"alpha": -1.0, "gamma": 0.5} if "without" in name else {"alpha": 0.3, "gamma": 2.0}

    def formula(x):
        y, p = double(labels), torch.sigmoid(x)
        tensors = {key: double(value) for key, value in options.items() if key.endswith("weight")}
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x, y, **tensors, reduction="none")
        if "gamma" in options:
            losses = losses * (1 - p * y - (1 - p) * (1 - y)) ** options["gamma"]
            if options["alpha"] >= 0:
                losses = losses * (options["alpha"] * y + (1 - options["alpha"]) * (1 - y))
        return losses

    # The Hessian is diagonal.
    _, expected = second_order(formula, logits, vector, upstream, 1, [0])
    product = cyce.hessian_vector_product(loss)(
        logits, labels, vector, grad_output=upstream, reduction="none", **options
    )
    assert_near(product, expected)
    _, gradient, hessian = cyce.value_grad_and_hess(loss)(
        logits, labels, grad_output=upstream, reduction="none", **options
    )
    assert_near(hessian * vector, expected)
    np.testing.assert_array_equal(
        gradient,
        cyce.value_and_grad(loss)(logits, labels, grad_output=upstream, reduction="none", **options)[1],
    )


@pytest.mark.parametrize("loss", [F.cross_entropy, F.focal_loss, F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_differences_of_gradients(level, rng, loss, reduction):
    logits = rng.standard_normal((6, 9))
    target = rng.integers(9, size=6)
    if loss is F.binary_cross_entropy_with_logits:
        target = rng.random(logits.shape)
    _, _, hessian = cyce.value_grad_and_hess(loss)(logits, target, reduction=reduction)
    step = 1e-5
    for index in np.ndindex(logits.shape):
        shifted = np.stack([logits, logits])
        shifted[(0, *index)] -= step
        shifted[(1, *index)] += step
        low, high = (cyce.value_and_grad(loss)(x, target, reduction=reduction)[1][index] for x in shifted)
        assert abs((high - low) / (2 * step) - hessian[index]) < 1e-9


def focal_diagonal(x, gamma, smoothing):
    """Return the diagonal where class 0 is target and maximum, and the sum of its terms' absolute values."""
    n_classes = x.shape[1]
    exponentials = np.exp(x - x[:, :1])
    rest = exponentials[:, 1:].sum(axis=1, keepdims=True)
    p, miss = exponentials / (1 + rest), rest / (1 + rest)
    masses = np.full_like(p, smoothing / n_classes)
    masses[:, 0] += 1 - smoothing
    nll = (masses * (np.log1p(rest) + (x[:, :1] - x))).sum(axis=1, keepdims=True)
    others = 1 - p
    others[:, :1] = miss
    deviation = p.copy()
    deviation[:, :1] = -miss
    gradient = p - masses
    gradient[:, :1] = p[:, :1] * (1 - masses[:, :1]) - masses[:, :1] * miss
    of_target, ratio = p[:, :1], nll / miss
    terms = [
        p * others,
        of_target * gamma * ratio * p * others,
        deviation**2 * gamma * (gamma - 1) * ratio * of_target**2 / miss,
        -(deviation**2) * gamma * ratio * of_target,
        2 * gamma * of_target / miss * deviation * gradient,
    ]
    return miss**gamma * sum(terms), miss**gamma * sum(map(np.abs, terms))


class TestPrecision:
    def test_ulps_of_confident_rows(self, level, dtype, rng):
        n_classes = 10
        logits = rng.standard_normal((2000, n_classes)).astype(dtype)
        target = rng.integers(n_classes, size=2000)
        logits[np.arange(2000), target] += rng.uniform(0, 80, 2000).astype(dtype)
        x = logits.astype(LONG)
        others = np.exp(x - x.max(axis=1, keepdims=True))
        np.put_along_axis(others, x.argmax(axis=1)[:, None], 0, 1)
        rest = others.sum(axis=1, keepdims=True)
        at_max = x == x.max(axis=1, keepdims=True)
        softmax = np.where(at_max, 1, others) / (1 + rest)
        exact = softmax * np.where(at_max, rest / (1 + rest), 1 - softmax)
        hessian = of_cross_entropy(logits, target, reduction="sum")[2]
        assert (exact[at_max] < 1e-30).any()
        spacing = np.spacing(exact.astype(dtype)).astype(LONG)
        assert (np.abs(hessian - exact) / spacing).max() <= 6

    @pytest.mark.parametrize("n_classes", [2, 10, 300, 9000])
    def test_positive_down_to_the_smallest_normal_number(self, level, dtype, n_classes):
        tiny = np.finfo(dtype).tiny
        for scale in (1.0, 1e-3, 1e3):
            margin = float(np.log(scale) - np.log(tiny)) - 1
            logits = np.full((1, n_classes), -np.inf, dtype)
            logits[0, 0], logits[0, -1] = margin, 0
            _, _, hessian = of_cross_entropy(logits, [0], grad_output=scale)
            # Of margins up to 700, the exponential of the rounded one.
            expected = scale * np.exp(-LONG(logits[0, 0]))
            assert tiny < expected < 4 * tiny
            np.testing.assert_allclose(hessian[0, [0, -1]], float(expected), rtol=1e-5)
            assert (hessian[0, 1:-1] == 0).all()

    @pytest.mark.parametrize("n_classes", [2, 3, 40, 200])
    def test_focal_losses_of_confident_rows(self, level, dtype, n_classes):
        # Up to where the other classes' probabilities become subnormal.
        leads = np.linspace(0, 84 if dtype == np.float32 else 640, 29).astype(dtype)
        logits = np.tile(np.linspace(-1, 1, n_classes).astype(dtype), (len(leads), 1))
        logits[:, 0] = leads + 1
        for gamma in (0.0, 0.5, 1.0, 2.5):
            for smoothing in (0.0, 0.2):
                _, _, hessian = cyce.value_grad_and_hess(F.focal_loss)(
                    logits, np.zeros(len(leads), int), gamma, label_smoothing=smoothing, reduction="sum"
                )
                exact, scale = focal_diagonal(logits.astype(LONG), LONG(gamma), LONG(smoothing))
                counts = np.abs(exact) > 100 * np.finfo(dtype).tiny
                assert np.isfinite(hessian).all()
                error = np.abs(hessian - exact)[counts] / scale[counts]
                assert error.max() < 100 * np.finfo(dtype).eps

    def test_products_at_confident_rows(self, level, dtype, rng):
        # p * (v - w) at the maximum is the sum of p * p_j * (v - v_j) over the others.
        logits = rng.standard_normal((50, 10)).astype(dtype)
        logits[:, 3] += np.linspace(0, 60, 50).astype(dtype)
        vector = (rng.standard_normal(logits.shape) + 100).astype(dtype)
        p = oracle.per_position(logits, np.full(50, 3)).gradients.copy()
        p[:, 3] = 1 - np.delete(p, 3, 1).sum(axis=1)
        v = vector.astype(LONG)
        exact = (p * p[:, 3:4] * (v[:, 3:4] - v)).sum(axis=1)
        terms = (p * p[:, 3:4] * np.abs(v[:, 3:4] - v)).sum(axis=1)
        product = product_of_cross_entropy(logits, np.full(50, 3), vector, reduction="sum")
        assert (np.abs(product[:, 3] - exact) <= 8 * np.finfo(dtype).eps * terms).all()

    def test_a_constant_vector_has_no_product(self, level, dtype, rng):
        for shape in ((40, 10), (5, 300), (2, 9001)):
            logits = (5 * rng.standard_normal(shape)).astype(dtype)
            product = product_of_cross_entropy(logits, np.zeros(shape[0], int), np.full(shape, 7.0))
            np.testing.assert_array_equal(product, 0)

    def test_the_softmax_of_ties(self, level, dtype):
        # Probabilities of a half: nothing is above it.
        _, _, hessian = of_cross_entropy(np.zeros((3, 2), dtype), [0, 1, 0], reduction="sum")
        np.testing.assert_allclose(hessian, 0.25, rtol=4 * np.finfo(dtype).eps)


class TestIgnoredPositions:
    @pytest.mark.parametrize("shape", [(9, 5), (9, 300), (2, 9001), (3, 5, 4), (2, 300, 3)], ids=str)
    def test_they_have_zeros_whatever_is_there(self, level, dtype, rng, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        vector = rng.standard_normal(shape).astype(dtype)
        target = rng.integers(shape[1], size=positions_of(shape, 1))
        target[0] = -100
        expected = of_cross_entropy(logits, target)[2], product_of_cross_entropy(logits, target, vector)
        logits[0], vector[0] = np.nan, np.inf
        _, _, hessian = of_cross_entropy(logits, target)
        product = product_of_cross_entropy(logits, target, vector)
        for array, same in zip((hessian, product), expected, strict=True):
            assert (array[0] == 0).all()
            np.testing.assert_array_equal(array, same)

    @pytest.mark.parametrize("shape", [(4, 5), (4, 300)], ids=str)
    def test_masked_classes_have_none(self, level, dtype, rng, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        mask = np.ones(shape[1], bool)
        mask[1::2] = False
        _, _, hessian = of_cross_entropy(logits, np.zeros(4, int), class_mask=mask)
        assert (hessian[:, ~mask] == 0).all()
        expected = of_cross_entropy(np.ascontiguousarray(logits[:, mask]), np.zeros(4, int))[2]
        np.testing.assert_allclose(hessian[:, mask], expected, rtol=1e-5)


class TestOut:
    @pytest.mark.parametrize("shape", [(70, 10), (30, 100), (6, 300), (2, 9001), (2, 21, 9, 7)], ids=str)
    @pytest.mark.parametrize("order", ["C", "F", "gaps"])
    @pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
    def test_any_strides_and_storage(self, level, dtype, rng, shape, order, stored):
        def empty():
            if order == "gaps":
                return np.full((*shape[:-1], 2 * shape[-1]), 77, stored)[..., ::2]
            return np.full(shape, 77, stored, order=order)

        logits = rng.standard_normal(shape).astype(dtype)
        vector = rng.standard_normal(shape).astype(np.float32)
        target = rng.integers(shape[1], size=positions_of(shape, 1))
        _, gradient, hessian = of_cross_entropy(logits, target, reduction="sum")
        product = product_of_cross_entropy(logits, target, vector, reduction="sum")
        outs = empty(), empty()
        result = of_cross_entropy(logits, target, reduction="sum", out=outs)
        assert result[1] is outs[0]
        assert result[2] is outs[1]
        outs += (product_of_cross_entropy(logits, target, vector, reduction="sum", out=empty()),)
        precision = {2: 1e-3, 4: 3e-7, 8: 1e-15}[max(np.dtype(stored).itemsize, 2)]
        precision = max(precision, 20 * np.finfo(dtype).eps)
        for array, expected in zip(outs, (gradient, hessian, product), strict=True):
            np.testing.assert_allclose(array, expected, rtol=precision, atol=precision * 1e-2)

    def test_one_of_two_arrays(self, rng):
        logits = rng.standard_normal((5, 4))
        expected = of_cross_entropy(logits, np.zeros(5, int))
        hessian = np.empty((5, 4), np.float32)
        result = of_cross_entropy(logits, np.zeros(5, int), out=(None, hessian))
        assert result[2] is hessian
        np.testing.assert_array_equal(result[1], expected[1])
        np.testing.assert_array_equal(hessian, expected[2].astype(np.float32))

    @pytest.mark.parametrize("shape", [(70, 10), (6, 300), (2, 9001)], ids=str)
    def test_the_gradient_in_place(self, level, dtype, rng, shape):
        logits = rng.standard_normal(shape).astype(dtype)
        _, gradient, hessian = of_cross_entropy(logits, np.zeros(shape[0], int))
        result = of_cross_entropy(logits, np.zeros(shape[0], int), out=(logits, None))
        assert result[1] is logits
        np.testing.assert_array_equal(logits, gradient)
        np.testing.assert_array_equal(result[2], hessian)

    def test_what_it_may_not_be(self):
        logits = np.zeros((3, 4))
        shared = np.zeros((3, 4))
        for out, error, message in (
            (shared, TypeError, r"out: must be a tuple of two arrays, \(gradient, hessian\)"),
            ((shared,), TypeError, "out: must be a tuple of two arrays.*got tuple of 1"),
            ((None, logits), ValueError, r"out\[1\]: shares memory with input"),
            ((shared, shared), ValueError, r"out\[1\]: shares memory with out\[0\]"),
            ((None, np.zeros((3, 5))), ValueError, r"out\[1\]: must have input's shape"),
            ((np.zeros((3, 4), int), None), TypeError, r"out\[0\]: must have dtype float16, bfloat16"),
        ):
            with pytest.raises(error, match=message):
                of_cross_entropy(logits, [0, 1, 2], out=out)
        for out in (logits, shared):
            with pytest.raises(ValueError, match=r"out: shares memory with (input|vector)"):
                product_of_cross_entropy(logits, [0, 1, 2], shared, out=out)


class TestWhatItTakes:
    def test_modules(self, rng):
        logits, target = rng.standard_normal((4, 3)), [0, 1, -1, 2]
        criterion = cyce.CrossEntropyLoss(weight=[1, 2, 3], ignore_index=-1, reduction="sum")
        named = {"weight": [1, 2, 3], "ignore_index": -1, "reduction": "sum"}
        for ours, theirs in zip(
            cyce.value_grad_and_hess(criterion)(logits, target),
            of_cross_entropy(logits, target, **named),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(
            cyce.hessian_vector_product(criterion)(logits, target, logits, sample_weight=np.ones(4)),
            product_of_cross_entropy(logits, target, logits, **named),
        )
        binary = cyce.BCEWithLogitsLoss(pos_weight=2.0)
        assert cyce.value_grad_and_hess(binary)(logits, logits)[2].shape == (4, 3)

    @pytest.mark.parametrize(
        "wrong",
        [F.nll_loss, F.kl_div, F.softmax, F.linear_cross_entropy, cyce.KLDivLoss(), F.binary_cross_entropy],
    )
    def test_losses_without_a_second_order(self, wrong):
        for make in (cyce.value_grad_and_hess, cyce.hessian_vector_product):
            with pytest.raises(TypeError, match=f"loss: {make.__name__} takes cross_entropy, .* or a module"):
                make(wrong)

    def test_a_focal_loss_has_no_product(self):
        with pytest.raises(TypeError, match="got focal_loss"):
            cyce.hessian_vector_product(F.focal_loss)

    @pytest.mark.parametrize("wrong", [np.sum, 3, None, cyce.CrossEntropyLoss])
    def test_what_is_no_loss(self, wrong):
        for make in (cyce.value_grad_and_hess, cyce.hessian_vector_product):
            with pytest.raises(TypeError, match="loss: must be a loss function or loss module of cyce"):
                make(wrong)

    def test_only_the_loss_comes_first(self):
        with pytest.raises(TypeError, match="hessian_vector_product takes only a loss"):
            cyce.hessian_vector_product(F.cross_entropy, np.zeros((2, 3)), [0, 1])

    def test_softcap(self):
        for call in (of_cross_entropy, lambda *a, **named: product_of_cross_entropy(*a, a[0], **named)):
            with pytest.raises(ValueError, match="softcap: second derivatives are not available"):
                call(np.zeros((2, 3)), [0, 1], softcap=30.0)

    def test_the_vector(self):
        logits = np.zeros((2, 3))
        with pytest.raises(ValueError, match=r"vector has size \[3\], input \[2, 3\]"):
            product_of_cross_entropy(logits, [0, 1], np.zeros(3))
        with pytest.raises(
            TypeError, match=r"vector: .* needs one, after target: an array of the shape of input"
        ):
            product_of_cross_entropy(logits, [0, 1])
        with pytest.raises(TypeError, match="got vector twice"):
            product_of_cross_entropy(logits, [0, 1], logits, vector=logits)
        with pytest.raises(
            TypeError, match="takes input, target, vector, and other arguments by name; got 4"
        ):
            product_of_cross_entropy(logits, [0, 1], logits, None)
        np.testing.assert_array_equal(
            product_of_cross_entropy(input=logits, target=[0, 1], vector=np.eye(2, 3)),
            product_of_cross_entropy(logits, [0, 1], np.eye(2, 3, dtype=int)),
        )

    def test_names_signatures_and_pickles(self):
        assert repr(of_cross_entropy) == "value_grad_and_hess(cross_entropy)"
        parameters = inspect.signature(product_of_cross_entropy).parameters
        assert list(parameters)[:3] == ["input", "target", "vector"]
        assert {p.kind for p in list(parameters.values())[3:]} == {inspect.Parameter.KEYWORD_ONLY}
        assert list(inspect.signature(of_cross_entropy).parameters)[-2:] == ["grad_output", "out"]
        assert inspect.signature(of_cross_entropy).return_annotation == tuple[Any, Any, Any]
        assert inspect.signature(cyce.value_and_grad(F.cross_entropy)).return_annotation == tuple[Any, Any]
        logits = np.eye(2, 3)
        for function, more in ((of_cross_entropy, ()), (product_of_cross_entropy, (logits,))):
            again = pickle.loads(pickle.dumps(function))
            for ours, theirs in zip(
                again(logits, [0, 1], *more), function(logits, [0, 1], *more), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
