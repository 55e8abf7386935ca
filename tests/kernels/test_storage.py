"""What is in memory is not what is computed with: outputs of another dtype than the logits'."""

import numpy as np
import pytest

from cyce.kernels import dispatch
from records import of_classes

pytestmark = pytest.mark.smoke

LAYOUTS = {
    "rows": (5, 1000),
    "long rows": (2, 9000),
    "few classes": (300, 10),
    "images": (2, 21, 9, 7),
    "many classes of images": (2, 300, 5, 3),
}
OPTIONS = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "softcap": {"softcap": 4.0, "temperature": 2.0},
}


def gradient_in(logits, target, grad_out, **options):
    call = of_classes(logits=logits, axis=1, target=target, mean=True, grad_out=grad_out, **options)
    dispatch.kernels.cross_entropy(call)
    return grad_out


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_a_gradient_of_another_dtype_is_rounded_once(level, dtype, rng, shape, order, options, n_threads):
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    target.flat[::7] = -100
    options = {**options, "num_threads": n_threads}
    other = np.dtype(np.float64 if dtype == np.float32 else np.float32)
    expected = gradient_in(logits, target, np.empty(shape, dtype, order), **options)
    gradient = gradient_in(logits, target, np.empty(shape, other, order), **options)
    np.testing.assert_array_equal(gradient, expected.astype(other))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_softmax_of_another_dtype(level, dtype, rng, shape, name):
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    other = np.dtype(np.float64 if dtype == np.float32 else np.float32)
    kernel = getattr(dispatch.kernels, name)
    expected, result = np.empty(shape, dtype), np.empty(shape, other)
    kernel(logits, 1, expected, 1)
    kernel(logits, 1, result, 1)
    np.testing.assert_array_equal(result, expected.astype(other))


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_probabilities_of_another_dtype_are_those_that_are_cast(level, dtype, rng, shape):
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    probabilities = rng.random(shape).astype(np.float32)
    results = []
    for kind in (np.float32, np.float64):
        call = of_classes(logits=logits, axis=1, probabilities=probabilities.astype(kind), mean=True)
        call.grad_out = np.empty_like(logits)
        results.append((dispatch.kernels.cross_entropy(call), call.grad_out.tobytes()))
    assert results[0] == results[1]


def test_formats_that_are_no_storage(level):
    for kind in (np.int32, np.int16, np.longdouble, np.complex64, ">f4", ">f2"):
        with pytest.raises(ValueError, match="kernel call: "):
            gradient_in(np.zeros((2, 3), np.float32), np.zeros(2, int), np.zeros((2, 3), kind))
        with pytest.raises(ValueError, match="kernel call: "):
            gradient_in(np.zeros((2, 3), kind), np.zeros(2, int), np.zeros((2, 3), np.float32))
