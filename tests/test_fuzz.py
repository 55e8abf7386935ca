"""Random calls, good and bad: the oracle's answer, or a clear error."""

import inspect
import re

import hypothesis.extra.numpy as hnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyce
import cyce.functional as F
import oracle
from cyce import plotting

mpl.use("agg")

from matplotlib import pyplot

LOSS_AND_GRADIENT = cyce.value_and_grad(F.cross_entropy)


@st.composite
def strided(draw, array):
    """Lay an array out in memory in any order of its axes, with gaps, backwards, in another byte order."""
    order = draw(st.permutations(range(array.ndim)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2, -1]) for _ in order]))
    memory = np.zeros(
        [abs(step) * array.shape[axis] for axis, step in zip(order, steps, strict=True)], array.dtype
    )
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
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
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


@settings(max_examples=400, deadline=None)
@given(calls())
def test_the_oracle_s_answer(call):
    logits, target, options = call
    before = logits.copy(), target.copy()
    loss, gradient = LOSS_AND_GRADIENT(logits, target, **options)
    eps = np.finfo(logits.dtype).eps
    exact_loss, exact_gradient = oracle.cross_entropy(logits, target, **options)
    without_reduction = {name: value for name, value in options.items() if name != "reduction"}
    exact = oracle.per_position(logits, target, **without_reduction)
    np.testing.assert_allclose(loss, exact_loss.astype(logits.dtype), rtol=8 * eps, atol=0)
    divisor = exact.denominator if options["reduction"] == "mean" and exact.denominator else 1
    scale = np.expand_dims(exact.masses / divisor, oracle.class_axis(logits))
    assert np.all(np.abs(gradient - exact_gradient) <= 8 * eps * scale)
    assert np.array_equal(F.cross_entropy(logits, target, **options), loss, equal_nan=True)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(target, before[1])


SPECIAL = st.sampled_from(
    np.float32([-np.inf, -np.inf, 0, 1, -1, np.inf, np.nan, 1e30, -1e30, 100, 1e-40, -0.0]).tolist()
)


@settings(max_examples=500, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 33, 65, 129, 300, 4161])),
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


# Every public function that takes arrays, with arguments that are all right.
LOSSES = {
    F.cross_entropy: {"input": np.zeros((2, 3)), "target": [0, 1]},
    F.nll_loss: {"input": np.zeros((2, 3)), "target": [0, 1]},
    F.binary_cross_entropy_with_logits: {"input": np.zeros((2, 3)), "target": np.ones((2, 3))},
    F.binary_cross_entropy: {"input": np.full((2, 3), 0.5), "target": np.ones((2, 3))},
    F.kl_div: {"input": np.zeros((2, 3)), "target": np.ones((2, 3))},
}
FUNCTIONS = {
    **LOSSES,
    F.cross_entropy_stats: {"input": np.zeros((2, 3)), "target": [0, 1]},
    F.softmax: {"input": np.zeros((2, 3)), "dim": 1},
    F.log_softmax: {"input": np.zeros((2, 3)), "dim": 1},
    F.softmin: {"input": np.zeros((2, 3)), "dim": 1},
    F.logsumexp: {"input": np.zeros((2, 3)), "dim": 1},
    F.one_hot: {"tensor": [0, 1], "num_classes": 3},
}
PICTURES = {
    plotting.probabilities: {"logits": np.zeros((2, 3)), "target": [0, 1]},
    plotting.reliability_diagram: {"logits": np.zeros((2, 3)), "target": [0, 1]},
}

# How messages begin where it is not with the argument's name: in torch's words.
TORCH_S_WORDS = re.compile(
    r"Expected (input batch_size|target size|floating point type for target)"
    r"|expected target dtype|Target -?\d+ is out of bounds|(0D or 1D|For 1D input, 1D) target"
    r"|only batches of spatial targets|size mismatch \(got input|(?s:.*) is not a valid value for reduction"
    r"|Target size|Using a target size|all elements of (input|target) should be"
    r"|Dimension out of range .* (dim|axis) must|one_hot is only applicable|Can not infer total number of"
    r"|Class values must be"
)


def assert_a_result_or_a_clear_error(function, arguments):
    """Assert that only TypeError, ValueError or IndexError is raised, and that it names an argument."""
    try:
        function(**arguments)
    except (TypeError, ValueError, IndexError) as error:
        message = str(error)
    except MemoryError:
        # a true answer to 10**15 classes
        return
    else:
        return
    names = "|".join(inspect.signature(function).parameters)
    assert re.match(rf"({names})\b", message) or TORCH_S_WORDS.match(message), message


@st.composite
def wrong_calls(draw, functions):
    """Draw a function and its arguments, some of which may be anything."""
    function = draw(st.sampled_from(list(functions)))
    loss = function
    if isinstance(function, type(LOSS_AND_GRADIENT)):
        loss = next(loss for loss in LOSSES if loss.__name__ == function.__name__)
    arguments = dict({**FUNCTIONS, **PICTURES}[loss])
    names = [name for name in inspect.signature(function).parameters if name != "ax"]
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        arguments[name] = draw(ANYTHING)
    return function, arguments


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Implicit dimension", "ignore:reduction. 'mean' divides"
)
@settings(max_examples=3000, deadline=None)
@given(wrong_calls([*FUNCTIONS, *map(cyce.value_and_grad, LOSSES)]))
def test_only_clear_errors(call):
    assert_a_result_or_a_clear_error(*call)


@settings(max_examples=200, deadline=None)
@given(wrong_calls(PICTURES))
def test_only_clear_errors_of_pictures(call):
    try:
        assert_a_result_or_a_clear_error(*call)
    finally:
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:reduction. 'mean' divides")
@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(
        [cyce.CrossEntropyLoss, cyce.NLLLoss, cyce.BCEWithLogitsLoss, cyce.BCELoss, cyce.KLDivLoss]
    ),
    st.data(),
)
def test_only_clear_errors_of_modules(module, data):
    names = list(inspect.signature(module).parameters)
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    named = {name: data.draw(ANYTHING) for name in chosen}

    def build_and_call(input, target, **named):
        return module(**named)(input, target)

    build_and_call.__signature__ = inspect.signature(module)
    target = np.array([0, 1]) if module in (cyce.CrossEntropyLoss, cyce.NLLLoss) else np.full((2, 2), 0.5)
    assert_a_result_or_a_clear_error(
        build_and_call, {"input": np.full((2, 2), 0.5), "target": target, **named}
    )
