"""Random calls, good and bad: the oracle's answer, or a clear error."""

import inspect
import math
import os
import re

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyce
import cyce.functional as F
import oracle
from cyce import plotting
from functions import FUNCTIONS, arrays_of

pytestmark = [pytest.mark.slow, pytest.mark.integration]

LOSS_AND_GRADIENT = cyce.value_and_grad(F.cross_entropy)


def examples(n):
    """Try n examples, and with CYCE_FUZZ in the environment that many times more."""
    return settings(max_examples=n * int(os.environ.get("CYCE_FUZZ", "1")), deadline=None)


@st.composite
def strided(draw, array):
    """Lay an array out in memory in some way.

    In any order of its axes, with gaps, backwards, unaligned, in another byte order, read-only, as a list.
    """
    order = draw(st.permutations(range(array.ndim)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2, -1]) for _ in order]))
    shape = [abs(step) * array.shape[axis] for axis, step in zip(order, steps, strict=True)]
    skipped = draw(st.sampled_from([0, 0, 0, 1, 2]))
    memory = np.zeros(skipped + math.prod(shape) * array.itemsize, np.uint8)
    memory = memory[skipped:].view(array.dtype).reshape(shape)
    view = memory[(*[slice(None, None, step) for step in steps], ...)].transpose(np.argsort(order))
    view[...] = array
    if draw(st.booleans()):
        view = view.astype(view.dtype.newbyteorder())
    if draw(st.booleans()):
        view.flags.writeable = False
    return view


@st.composite
def calls(draw):
    """Draw logits, a target and options that are all right."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=6))
    wide = draw(st.sampled_from([None, None, 33, 65, 300]))
    axis = 0 if len(shape) == 1 else 1
    n_classes = max(1, shape[axis]) if wide is None else wide
    shape = (*shape[:axis], n_classes, *shape[axis + 1 :])
    positions = shape[:axis] + shape[axis + 1 :]
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 3, 50])) + draw(
        st.sampled_from([0, 1e4, -300])
    )
    logits = logits.astype(dtype)
    options = {"label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))}
    # An integer target of the logits' own shape would be taken for a one-hot.
    if draw(st.booleans()) or shape == positions or (shape == (1,) and positions == ()):
        target = rng.dirichlet(np.ones(n_classes), size=positions)
        target = np.moveaxis(target.reshape(*positions, n_classes), -1, axis).astype(dtype)
    else:
        kind = draw(hnp.integer_dtypes() | hnp.unsigned_integer_dtypes())
        target = np.asarray(rng.integers(min(n_classes, np.iinfo(kind).max), size=positions), kind)
        options["ignore_index"] = draw(st.sampled_from([-100, 0, n_classes - 1]))
    if draw(st.booleans()):
        options["weight"] = rng.uniform(0.1, 2, n_classes).astype(dtype)
    options["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    return draw(strided(logits)), draw(strided(target)), options


@examples(400)
@given(calls())
def test_the_oracle_s_answer(call):
    logits, target, options = call
    before = logits.copy(), target.copy()
    loss, gradient = LOSS_AND_GRADIENT(logits, target, **options)
    assert gradient.dtype == logits.dtype.newbyteorder("=")
    eps = np.finfo(loss.dtype).eps
    # Half an ulp, of subnormal numbers, too.
    stored = ml_dtypes.finfo(gradient.dtype)
    rounding = (float(stored.eps) / 2, float(stored.smallest_subnormal) / 2)
    exact_loss, exact_gradient = oracle.cross_entropy(logits, target, **options)
    without_reduction = {name: value for name, value in options.items() if name != "reduction"}
    exact = oracle.per_position(logits, target, **without_reduction)
    np.testing.assert_allclose(loss, exact_loss.astype(loss.dtype), rtol=8 * eps, atol=0)
    divisor = exact.denominator if options["reduction"] == "mean" and exact.denominator else 1
    scale = np.expand_dims(exact.masses / divisor, oracle.class_axis(logits))
    allowed = 8 * eps * scale + rounding[0] * np.abs(exact_gradient) + rounding[1]
    assert np.all(np.abs(gradient.astype(np.longdouble) - exact_gradient) <= allowed)
    assert np.array_equal(F.cross_entropy(logits, target, **options), loss, equal_nan=True)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(target, before[1])


SPECIAL = st.sampled_from(
    np.float32([-np.inf, -np.inf, 0, 1, -1, np.inf, np.nan, 1e30, -1e30, 100, 1e-40, -0.0]).tolist()
)


@examples(500)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 33, 65, 129, 300, 8300])),
        elements=SPECIAL,
        fill=st.sampled_from([0.0, -np.inf]),
    ),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from(["rows", "image", "columns"]),
)
def test_special_values(logits, target, smoothing, layout):
    """NaN and infinities come out where the plain formula in float64 has them."""
    target = np.full(len(logits), target % logits.shape[1])
    x = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        row_max = x.max(axis=1, keepdims=True)
        negative_log_softmax = np.log(np.exp(x - row_max).sum(axis=1, keepdims=True)) + (row_max - x)
        hard = np.take_along_axis(negative_log_softmax, target[:, None], 1)[:, 0]
        expected = (1 - smoothing) * hard
        if smoothing:
            expected += smoothing * negative_log_softmax.mean(axis=1)
    if layout == "image":
        logits, target = logits.T[None].copy(), target[None]
    elif layout == "columns":
        logits = np.asfortranarray(logits)
    losses, gradient = LOSS_AND_GRADIENT(logits, target, reduction="none", label_smoothing=smoothing)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(losses.ravel(), expected.astype(np.float32), rtol=1e-5, atol=1e-12)
    # No gradient where there is no softmax: no finite maximum, or a NaN.
    no_softmax = ~np.isfinite(row_max[:, 0])
    gradient = gradient[0].T if layout == "image" else gradient
    assert np.isnan(gradient[no_softmax]).all()
    assert np.isfinite(gradient[~no_softmax]).all()


@st.composite
def arrays(draw, like=None):
    """Draw numbers of any shape and layout, infinities and tiny numbers among them; or others of a shape."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    if like is not None:
        shape, dtype = like.shape, like.dtype.newbyteorder("=")
    elif shape and draw(st.booleans()):
        wide = draw(st.integers(0, len(shape) - 1))
        shape = (*shape[:wide], draw(st.sampled_from([33, 128, 300])), *shape[wide + 1 :])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.asarray(rng.standard_normal(shape) * draw(st.sampled_from([0.1, 3, 50])))
    values[rng.random(shape) < draw(st.sampled_from([0, 0.1]))] = draw(
        st.sampled_from([1e-40, -0.0, -np.inf, np.inf, np.nan, 1e30])
    )
    return draw(strided(values.astype(dtype)))


def log_softmax(x, axis):
    x = x.astype(oracle.LONG)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def logsumexp(x, axis):
    x = x.astype(oracle.LONG)
    largest = x.max(axis=axis, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(largest), largest, 0)
    return (shift + np.log(np.exp(x - shift).sum(axis=axis, keepdims=True))).squeeze(axis)


ALONG_AN_AXIS = {
    F.softmax: lambda x, axis: np.exp(log_softmax(x, axis)),
    F.softmin: lambda x, axis: np.exp(log_softmax(-x, axis)),
    F.log_softmax: log_softmax,
    F.logsumexp: logsumexp,
}


@examples(500)
@given(st.sampled_from(list(ALONG_AN_AXIS)), arrays(), st.data())
def test_the_formula_along_an_axis(function, x, data):
    axis = data.draw(st.integers(-max(x.ndim, 1), max(x.ndim, 1) - 1))
    before = x.tobytes()
    result = function(x, axis)
    assert result.dtype == x.dtype.newbyteorder("=")
    with np.errstate(all="ignore"):
        if x.size:
            expected = ALONG_AN_AXIS[function](np.atleast_1d(x), axis).astype(result.dtype)
            expected = expected.reshape(result.shape)
        else:
            # No positions, or no classes: then the sum over nothing is 0, its logarithm -inf.
            expected = np.full(result.shape, -np.inf, result.dtype)
    eps = np.finfo(result.dtype).eps
    # A logarithm near 0 is that of a sum near 1, or cancels the largest logit.
    near_0 = 1e-35 if function in (F.softmax, F.softmin) else 16 * eps
    np.testing.assert_allclose(result, expected, rtol=16 * eps, atol=near_0)
    if function is not F.logsumexp:
        out = np.full_like(result, 77)
        assert function(x, axis, out=out) is out
        assert out.tobytes() == result.tobytes()
    assert x.tobytes() == before


def bce_with_logits(x, y, weight):
    with np.errstate(all="ignore"):
        positive = np.maximum(-x, 0) + np.log1p(np.exp(-abs(x)))
        negative = np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))
        # A factor of 0 makes a term 0, also where the other one is infinite.
        losses = np.where(y == 0, 0, y * positive) + np.where(y == 1, 0, (1 - y) * negative)
        return np.where(weight == 0, 0, weight * losses)


@examples(500)
@given(arrays(), st.data())
def test_the_formula_of_binary_cross_entropy(x, data):
    y = np.random.default_rng(data.draw(st.integers(0, 100))).choice([0, 0.25, 1], x.shape)
    y = data.draw(strided(np.asarray(y, x.dtype.newbyteorder("="))))
    weight = data.draw(st.sampled_from([1.0, 0.5, 0.0]))
    before = x.tobytes(), y.tobytes()
    options = {"weight": np.asarray(weight, x.dtype), "reduction": "none"}
    losses, gradient = cyce.value_and_grad(F.binary_cross_entropy_with_logits)(x, y, **options)
    wide_x, wide_y = x.astype(oracle.LONG), y.astype(oracle.LONG)
    expected = bce_with_logits(wide_x, wide_y, weight)
    with np.errstate(all="ignore"):
        slopes = weight * (1 / (1 + np.exp(-wide_x)) - wide_y)
        probability = np.asarray(1 / (1 + np.exp(-wide_x))).astype(losses.dtype)
    no_number = np.isnan(wide_x) & (weight != 0)
    eps = np.finfo(losses.dtype).eps
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(losses, expected.astype(losses.dtype), rtol=8 * eps, atol=1e-37)
    np.testing.assert_array_equal(np.isnan(gradient), no_number)
    fine = np.isfinite(wide_x)
    np.testing.assert_allclose(gradient[fine], slopes[fine].astype(losses.dtype), rtol=8 * eps, atol=8 * eps)
    assert (x.tobytes(), y.tobytes()) == before
    if not np.isnan(probability).any():
        again = F.binary_cross_entropy(probability, y, reduction="none")
        p = probability.astype(oracle.LONG)
        with np.errstate(all="ignore"):
            # as torch, whose logarithms are at least -100
            plain = -np.where(y == 0, 0, wide_y * np.maximum(np.log(p), -100))
            plain -= np.where(y == 1, 0, (1 - wide_y) * np.maximum(np.log1p(-p), -100))
        np.testing.assert_allclose(again, plain.astype(again.dtype), rtol=8 * eps, atol=1e-37)


@examples(300)
@given(arrays(), st.booleans(), st.data())
def test_the_formula_of_kl_div(x, log_target, data):
    target = data.draw(arrays(like=x))
    q = np.asarray(target if log_target else np.nan_to_num(abs(target.astype(x.dtype))), x.dtype)
    with np.errstate(all="ignore"):
        wide_x, wide_q = x.astype(oracle.LONG), q.astype(oracle.LONG)
        mass = np.exp(wide_q) if log_target else wide_q
        gap = (wide_q if log_target else np.log(wide_q)) - wide_x
        expected = np.asarray(np.where(mass == 0, 0, mass * gap))
        scale = np.asarray(np.where(mass == 0, 0, mass * (np.abs(gap) + np.abs(wide_x) + 1)))
        losses, gradient = cyce.value_and_grad(F.kl_div)(x, q, reduction="none", log_target=log_target)
        eps = np.finfo(losses.dtype).eps
        fine = np.isfinite(expected) & (np.abs(expected) < np.finfo(losses.dtype).max)
        assert np.all(np.abs(losses - expected)[fine] <= (8 * eps * scale + 1e-37)[fine])
        np.testing.assert_array_equal(np.isnan(losses), np.isnan(expected))
        fine &= mass < np.finfo(losses.dtype).max
        np.testing.assert_allclose(gradient[fine], -mass[fine].astype(losses.dtype), rtol=8 * eps, atol=1e-37)


@st.composite
def linear_calls(draw):
    """Draw hidden states, weights, a target and options that are all right."""
    n, in_features = draw(st.integers(0, 40)), draw(st.integers(0, 5))
    outputs = draw(st.sampled_from([(1,), (3,), (129,), (300,), (2, 3), (130, 2), (3, 2, 2)]))
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = {
        "input": rng.standard_normal((n, in_features)),
        "linear_weight": rng.standard_normal((*outputs, in_features)),
    }
    if draw(st.booleans()):
        arrays["linear_bias"] = rng.standard_normal(outputs)
    arrays = {name: draw(strided(array.astype(dtype))) for name, array in arrays.items()}
    positions = (n, *outputs[1:])
    options = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "z_loss": draw(st.sampled_from([0.0, 0.1])),
        "sample_weight": draw(st.sampled_from([None, rng.choice([0.0, 0.5, 2.0], positions)])),
        "empty": draw(st.sampled_from(["nan", "zero"])),
    }
    if draw(st.booleans()) or positions == (n, *outputs):
        target = rng.dirichlet(np.ones(outputs[0]), size=positions)
        target = np.moveaxis(target.reshape(*positions, outputs[0]), -1, 1).astype(dtype)
    else:
        target = rng.integers(outputs[0], size=positions, dtype=draw(st.sampled_from([np.int16, np.uint64])))
        options["ignore_index"] = draw(st.sampled_from([-100, 0, None]))
    options["weight"] = draw(st.sampled_from([None, rng.choice([0.0, 0.5, 1.0], outputs[0])]))
    return arrays, draw(strided(target)), options, draw(st.sampled_from([None, 1, 7, 33]))


@examples(300)
@given(linear_calls())
def test_the_composition_that_linear_cross_entropy_stands_for(call):
    arrays, target, options, rows = call
    before = [array.tobytes() for array in (*arrays.values(), target)]
    hidden, weights, *bias = (array.astype(array.dtype.newbyteorder("=")) for array in arrays.values())
    outputs = weights.shape[:-1]
    n_outputs = math.prod(outputs)
    flat = weights.reshape(n_outputs, weights.shape[-1])
    logits = hidden @ flat.T + (bias[0].reshape(n_outputs) if bias else 0)
    logits = logits.reshape(len(hidden), *outputs).astype(hidden.dtype)
    same = {name: value for name, value in options.items() if name != "ignore_index" or value is not None}
    expected, slopes = LOSS_AND_GRADIENT(logits, target, **same)
    slopes = slopes.reshape(len(hidden), n_outputs)
    expected_gradients = [slopes @ flat, (slopes.T @ hidden).reshape(weights.shape)]
    if bias:
        expected_gradients.append(slopes.sum(axis=0).reshape(outputs))
    chunks = rows and cyce.LinearCrossEntropyOptions(batch_chunk_size=rows)
    loss, gradients = cyce.value_and_grad(F.linear_cross_entropy)(
        **arrays, target=target, **options, options=chunks
    )
    tolerance = 1e-4 if hidden.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_array_equal(
        F.linear_cross_entropy(**arrays, target=target, **options, options=chunks), loss
    )
    assert [array.tobytes() for array in (*arrays.values(), target)] == before


@examples(300)
@given(calls())
def test_statistics_nll_and_one_hot_of_the_same_calls(call):
    logits, target, options = call
    axis = oracle.class_axis(logits)
    if "ignore_index" not in options:
        # class probabilities
        return
    n_classes = logits.shape[axis]
    ignored = target == options["ignore_index"]
    counts = ~ignored
    same = {name: value for name, value in options.items() if name != "reduction"}
    stats = F.cross_entropy_stats(logits, target, **same)
    np.testing.assert_array_equal(stats.loss, F.cross_entropy(logits, target, reduction="none", **same))
    np.testing.assert_array_equal(stats.prediction[counts], logits.argmax(axis)[counts])
    log_probability = F.log_softmax(logits, axis, dtype=stats.loss.dtype)
    same.pop("label_smoothing")
    picked = np.take_along_axis(
        log_probability, np.expand_dims(np.where(counts, target, 0).astype(np.int64), axis), axis
    ).squeeze(axis)
    weight = options.get("weight", np.ones(n_classes, log_probability.dtype))
    expected = np.where(counts, -picked * weight[np.where(counts, target, 0).astype(np.int64)], 0)
    losses = F.nll_loss(log_probability, target, reduction="none", **same)
    np.testing.assert_allclose(losses, expected, rtol=4 * np.finfo(losses.dtype).eps)
    np.testing.assert_allclose(stats.probability[counts], np.exp(picked)[counts], rtol=1e-4, atol=1e-30)
    one_hot = F.one_hot(target, n_classes)
    assert one_hot.shape == (*target.shape, n_classes)
    np.testing.assert_array_equal(one_hot.argmax(-1), target)
    np.testing.assert_array_equal(one_hot.sum(-1), 1)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-3, 3), max_size=4),
    st.lists(st.floats(width=32), max_size=4),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)),
)


# Every function with valid arguments, and whether its gradient is requested.
CALLS = [
    (entry, entry.callable if with_gradient else entry.function)
    for entry in FUNCTIONS.values()
    for with_gradient in ((False, True) if entry.slopes_of else (False,))
]
PICTURES = {
    plotting.probabilities: {"logits": np.zeros((2, 3)), "target": [0, 1]},
    plotting.reliability_diagram: {"logits": np.zeros((2, 3)), "target": [0, 1]},
}

# Beginnings of messages that use torch's words instead of an argument's name.
TORCH_S_WORDS = re.compile(
    r"Expected (input batch_size|target size|floating point type for target)"
    r"|expected target dtype|Target -?\d+ is out of bounds|(0D or 1D|For 1D input, 1D) target"
    r"|only batches of spatial targets|size mismatch \(got input|(?s:.*) is not a valid value for reduction"
    r"|Target size|Using a target size|all elements of (input|target) should be"
    r"|Dimension out of range .* (dim|axis) must|one_hot is only applicable|Can not infer total number of"
    r"|Class values must be"
    r"|expected (input with dimensionality|linear_weight with|equal input and linear|linear_bias shape)"
    r"|K-dimensional loss defined by linear_weight|invalid (acc_policy|chunking_method)|acc_dtype must"
    r"|linear_weight: must have the dtype of input|expected (weight shape|label_smoothing) to be"
)


def assert_a_result_or_a_clear_error(function, arguments):
    """Assert that only TypeError, ValueError or IndexError is raised, and that it names an argument."""
    try:
        function(**arguments)
    except (TypeError, ValueError, IndexError) as error:
        message = str(error)
    except MemoryError:
        # the right answer to 10**15 classes
        return
    else:
        return
    names = "|".join(inspect.signature(function).parameters)
    assert re.match(rf"({names})\b", message) or TORCH_S_WORDS.match(message), message
    # Nothing has been written then.
    for out in arrays_of(arguments.get("out")):
        if out.dtype == np.float64 and out.size and out.flat[0] == 77:
            assert (out == 77).all()


def damaged(draw, function, arguments):
    """Let some of a function's arguments be anything."""
    names = [name for name in inspect.signature(function).parameters if name != "ax"]
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        arguments[name] = draw(ANYTHING)


@st.composite
def wrong_calls(draw):
    """Draw a function and its arguments, some of which may be anything."""
    entry, function = draw(st.sampled_from(CALLS))
    arguments = entry.arguments(np.full((2, 3), 0.5))
    out = entry.out(arguments) if "out" in inspect.signature(function).parameters else None
    damaged(draw, function, arguments)
    if out is not None:
        arguments.setdefault("out", out)
    return function, arguments


@st.composite
def wrong_pictures(draw):
    """Draw a function that draws and its arguments, some of which may be anything."""
    function = draw(st.sampled_from(list(PICTURES)))
    arguments = dict(PICTURES[function])
    damaged(draw, function, arguments)
    return function, arguments


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Implicit dimension", "ignore:reduction. 'mean' divides"
)
@examples(2000)
@given(wrong_calls())
def test_only_clear_errors(call):
    assert_a_result_or_a_clear_error(*call)


@pytest.mark.matplotlib
@examples(200)
@given(wrong_pictures())
def test_only_clear_errors_of_pictures(call):
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("agg")
    try:
        assert_a_result_or_a_clear_error(*call)
    finally:
        pyplot.close("all")


@examples(300)
@given(st.sampled_from([cyce.Softmax, cyce.LogSoftmax, cyce.Softmin, cyce.Softmax2d]), ANYTHING, ANYTHING)
@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_only_clear_errors_of_softmax_modules(module, dim, input):
    def build_and_call(dim, input):
        return (module() if module is cyce.Softmax2d else module(dim))(input)

    if module is cyce.Softmax2d:
        with pytest.raises((TypeError, ValueError), match=r"^(input:|Softmax2d: expected)"):
            # There are too few dimensions for a picture, or too many, or no numbers.
            build_and_call(None, input if np.ndim(input) not in (3, 4) else None)
    else:
        assert_a_result_or_a_clear_error(build_and_call, {"dim": dim, "input": input})


@examples(300)
@given(st.data())
def test_only_clear_errors_of_what_takes_no_arrays(data):
    before = cyce.get_num_threads()
    function = data.draw(
        st.sampled_from([cyce.set_num_threads, cyce.num_threads, cyce.show_config, cyce.value_and_grad])
    )
    (name,) = inspect.signature(function).parameters

    def call(**arguments):
        result = function(**arguments)
        if function is cyce.num_threads:
            with result:
                pass

    call.__signature__ = inspect.signature(function)
    try:
        assert_a_result_or_a_clear_error(call, {name: data.draw(ANYTHING)})
    finally:
        cyce.set_num_threads(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:reduction. 'mean' divides")
@examples(500)
@given(
    st.sampled_from(
        [
            cyce.CrossEntropyLoss,
            cyce.NLLLoss,
            cyce.BCEWithLogitsLoss,
            cyce.BCELoss,
            cyce.KLDivLoss,
            cyce.LinearCrossEntropyLoss,
        ]
    ),
    st.data(),
)
def test_only_clear_errors_of_modules(module, data):
    # Sizes that are right may be too large for this machine.
    sizes = {"in_features": 2, "num_classes": 2} if module is cyce.LinearCrossEntropyLoss else {}
    names = [name for name in inspect.signature(module).parameters if name not in (*sizes, "out_features")]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    named = {name: data.draw(ANYTHING) for name in chosen}
    if sizes:
        named = {"dtype": np.float64, **sizes, **named}

    def build_and_call(input, target, **named):
        return module(**named)(input, target)

    build_and_call.__signature__ = inspect.signature(module)
    by_index = (cyce.CrossEntropyLoss, cyce.NLLLoss, cyce.LinearCrossEntropyLoss)
    target = np.array([0, 1]) if module in by_index else np.full((2, 2), 0.5)
    assert_a_result_or_a_clear_error(
        build_and_call, {"input": np.full((2, 2), 0.5), "target": target, **named}
    )


@examples(300)
@given(
    st.dictionaries(
        st.sampled_from(["batch_chunk_size", "chunking_method", "acc_policy", "acc_dtype"]), ANYTHING
    )
)
def test_only_clear_errors_of_options(fields):
    assert_a_result_or_a_clear_error(cyce.LinearCrossEntropyOptions, fields)
