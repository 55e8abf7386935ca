"""Plain calls, which the kernels look at themselves: what they take, and that nothing differs."""

import contextlib
import inspect
import math
import sys
import warnings

import numpy as np
import pytest

import cyce
import cyce.functional as F
import cyce.fused.cross_entropy
import cyce.fused.nll_loss
from cyce.fused.plain import plain_mean

# The type of this number makes a call one that is not plain.
NOT_PLAIN = {"ignore_index": np.int64(-100)}
LOSSES = {"cross_entropy": F.cross_entropy, "nll_loss": F.nll_loss}
SHAPES = [
    (3,),
    (1, 3),
    (64, 10),
    (300, 2),
    (40, 100),
    (5, 9000),
    (0, 4),
    (4, 0),
    (2, 5, 7),
    (2, 21, 30, 11),
    (40_000, 3),
]


def make_case(rng, shape, dtype):
    """Return logits and targets, some of which are ignored."""
    axis = 0 if len(shape) == 1 else 1
    positions = shape[:axis] + shape[axis + 1 :]
    n_classes = shape[axis]
    target = np.array(rng.integers(n_classes, size=positions) if n_classes else np.full(positions, -100))
    target.flat[3::5] = -100
    return np.asarray(rng.standard_normal(shape), dtype), target


@pytest.fixture(params=LOSSES)
def loss(request):
    """Return a loss of class indices."""
    return LOSSES[request.param]


def picks(loss):
    """Return whether a loss is of log-probabilities."""
    return loss is F.nll_loss


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_answer_is_that_of_other_calls(level, dtype, rng, loss, shape):
    logits, target = make_case(rng, shape, dtype)
    answer = plain_mean(logits, target, None, picks=picks(loss))
    assert answer is not None
    value = loss(logits, target)
    assert type(value) is dtype.type
    np.testing.assert_array_equal([value, answer[0]], loss(logits, target, **NOT_PLAIN))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_that_of_other_calls(level, dtype, rng, loss, shape):
    logits, target = make_case(rng, shape, dtype)
    with_gradient = cyce.value_and_grad(loss)
    value, expected = with_gradient(logits, target, **NOT_PLAIN)
    for given, out in ((logits, None), (logits, np.full_like(logits, 77)), (2 * (logits.copy(),))):
        answer = plain_mean(given, target, (None, out), picks=picks(loss))
        assert answer is not None
        assert out is None or answer[1] is out
        np.testing.assert_array_equal(answer[0], value)
        np.testing.assert_array_equal(answer[1], expected)
    # In place comes last.
    for out in (None, np.full_like(logits, 77), logits):
        again, gradient = with_gradient(logits, target, out=out)
        assert out is None or gradient is out
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(again, value)
        np.testing.assert_array_equal(gradient, expected)


def test_threads_change_no_bit(rng, threads, loss):
    logits, target = make_case(rng, (70_000, 3), np.float32)
    answers = []
    for n in (1, 2, 3):
        threads(n)
        answers.append(np.concatenate([np.ravel(part) for part in cyce.value_and_grad(loss)(logits, target)]))
        answers[-1][0] = loss(logits, target)
    np.testing.assert_array_equal(answers, [answers[0]] * 3)


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_targets_that_are_plain(rng, loss, dtype):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert plain_mean(logits, target.astype(dtype), None, picks=picks(loss)) is not None


def test_logits_of_any_strides_are_plain_without_a_gradient(rng, loss):
    logits, target = make_case(rng, (12, 10), np.float32)
    for array in (logits[:, ::2], np.asfortranarray(logits), logits[:, ::-1]):
        target = target % array.shape[1]
        value, _ = plain_mean(array, target, None, picks=picks(loss))
        assert value == loss(array, target, **NOT_PLAIN)
        assert plain_mean(array, target, (None, None), picks=picks(loss)) is None


class Subclass(np.ndarray):
    """An array that may mean something else."""


def misaligned(array):
    """Return a copy at an address that is no multiple of the item size."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


LOGITS = {
    "half precision": lambda x: x.astype(np.float16),
    "extended precision": lambda x: x.astype(np.longdouble),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "integers": lambda x: x.astype(int),
    "complex": lambda x: x.astype(complex),
    "objects": lambda x: x.astype(object),
    "dates": lambda x: x.astype("m8[s]"),
    "subclass": lambda x: x.view(Subclass),
    "masked": np.ma.array,
    "list": lambda x: x.tolist(),
    "memory": memoryview,
    "scalar": lambda x: x[0, 0, ...],
    "one dimension more": lambda x: x[..., None],
    "other positions": lambda x: x[1:],
}
TARGETS = {
    "other byte order": lambda y: y.astype(y.dtype.newbyteorder()),
    "misaligned": misaligned,
    "short": lambda y: y.astype(np.int16),
    "unsigned": lambda y: np.where(y < 0, 0, y).astype(np.uint64),
    "booleans": lambda y: y > 0,
    "floats": lambda y: y.astype(float),
    "objects": lambda y: y.astype(object),
    "dates": lambda y: y.astype("M8[s]"),
    "records": lambda y: y.astype([("class", int)]),
    "not contiguous": lambda y: np.repeat(y, 2)[::2],
    "column": lambda y: y[:, None],
    "row": lambda y: y[None],
    "one-hot": lambda y: np.eye(5, dtype=int)[np.abs(y) % 5],
    "probabilities": lambda y: np.eye(5, dtype=np.float32)[np.abs(y) % 5],
    "list": lambda y: y.tolist(),
    "subclass": lambda y: y.view(Subclass),
}


@pytest.mark.parametrize("change", LOGITS)
def test_other_logits_are_left_to_the_facade(rng, loss, change):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert plain_mean(LOGITS[change](logits), target, None, picks=picks(loss)) is None


@pytest.mark.parametrize("change", TARGETS)
def test_other_targets_are_left_to_the_facade(rng, loss, change):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert plain_mean(logits, TARGETS[change](target), None, picks=picks(loss)) is None


def read_only(array):
    """Return an array that cannot be written."""
    array.flags.writeable = False
    return array


OUTS = {
    "read-only": lambda x: read_only(x.copy()),
    "other dtype": lambda x: x.astype(np.float64),
    "other shape": lambda x: x.T.copy(),
    "not contiguous": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "broadcast": lambda x: np.lib.stride_tricks.as_strided(x.copy(), strides=(0, 4)),
    "misaligned": misaligned,
    "list": lambda x: x.tolist(),
    "subclass": lambda x: x.copy().view(Subclass),
}


@pytest.mark.parametrize("change", OUTS)
def test_other_outs_are_left_to_the_facade(rng, loss, change):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert plain_mean(logits, target, (None, logits.copy()), picks=picks(loss)) is not None
    assert plain_mean(logits, target, (None, OUTS[change](logits)), picks=picks(loss)) is None


@pytest.mark.parametrize("first", [0, 4, 12, 80, 104, 112])
def test_overlaps_are_left_to_the_facade(rng, loss, first):
    # In memory: 8 bytes, the logits, the targets, 8 bytes.
    logits, target = make_case(rng, (12, 2), np.float32)
    memory = np.zeros(2 + 24 + 24 + 2, np.float32)
    given, target_in_memory = memory[2:26].reshape(12, 2), memory[26:50].view(np.int64)
    given[...], target_in_memory[...] = logits, target
    before = memory.copy()
    out = memory[first // 4 :][: given.size].reshape(12, 2)
    assert plain_mean(given, target_in_memory, (None, out.copy()), picks=picks(loss)) is not None
    assert plain_mean(given, target_in_memory, (None, out), picks=picks(loss)) is None
    np.testing.assert_array_equal(memory.view(np.int32), before.view(np.int32))


def test_an_upstream_gradient_is_left_to_the_facade(rng, loss):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert plain_mean(logits, target, (1.0, None), picks=picks(loss)) is None
    doubled = cyce.value_and_grad(loss)(logits, target, grad_output=2.0)[1]
    np.testing.assert_array_equal(doubled, 2 * cyce.value_and_grad(loss)(logits, target)[1])


OPTIONS = {
    "weight": np.ones(5, np.float32),
    "size_average": True,
    "ignore_index": 4,
    "reduce": True,
    "reduction": "sum",
    "label_smoothing": 0.1,
    "axis": 1,
    "sample_weight": np.ones(3, np.float32),
    "normalizer": 2.0,
    "empty": "zero",
    "z_loss": 1e-3,
    "softcap": 30.0,
    "temperature": 2.0,
    "class_mask": np.ones((3, 5), bool),
    "stats": (),
    "focus": (2.0, 0.0),
}


@pytest.mark.parametrize("evaluate", [cyce.fused.cross_entropy.cross_entropy, cyce.fused.nll_loss.nll_loss])
def test_no_call_with_an_option_is_plain(monkeypatch, evaluate):
    logits, target = np.zeros((3, 5), np.float32), np.array([0, 1, 2])
    tried = []
    monkeypatch.setattr(sys.modules[evaluate.__module__], "plain_mean", lambda *_, **__: tried.append(1))
    evaluate(logits, target)
    assert tried
    for name in set(inspect.signature(evaluate).parameters) - {"input", "target", "gradient"}:
        # Of another value, of another type; whatever is made of that, it is no default.
        for value in (OPTIONS[name], object()):
            tried.clear()
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                evaluate(logits, target, **{name: value})
            assert not tried, (name, value)


@pytest.mark.parametrize(
    ("target", "error"),
    [(np.zeros(3, int), ValueError), (np.zeros(2), TypeError), (np.array(["a", "b"]), TypeError)],
)
def test_no_gradient_is_made_for_a_bad_target(loss, target, error):
    # There is no memory for one.
    logits = np.broadcast_to(np.zeros((), np.float32), (2, 2**44))
    with pytest.raises(error, match=r"target|batch_size"):
        cyce.value_and_grad(loss)(logits, target)


@pytest.mark.parametrize("named", [{"label_smoothing": 0}, {"z_loss": np.float32(0)}, {"temperature": 1}])
def test_defaults_of_other_types_are_taken(rng, named):
    logits, target = make_case(rng, (12, 5), np.float32)
    assert F.cross_entropy(logits, target, **named) == F.cross_entropy(logits, target)


@pytest.mark.parametrize("name", ["reduction", "empty"])
def test_an_array_is_no_option(rng, name):
    # `==` of an array is an array, which has no truth value.
    logits, target = make_case(rng, (12, 5), np.float32)
    with pytest.raises(ValueError, match=name):
        F.cross_entropy(logits, target, **{name: np.array(["mean", "nan"])})


def test_a_bad_target_leaves_everything_as_it_was(loss):
    logits = np.zeros((3, 5), np.float32)
    out = np.full_like(logits, 77)
    with pytest.raises(IndexError, match=r"Target 5 is out of bounds. target\[1\] must be a class index"):
        cyce.value_and_grad(loss)(logits, np.array([0, 5, 1]), out=out)
    assert (out == 77).all()


def test_nothing_counts(loss):
    logits = np.zeros((3, 5), np.float32)
    value, gradient = cyce.value_and_grad(loss)(logits, np.full(3, -100))
    assert math.isnan(value)
    assert not gradient.any()
