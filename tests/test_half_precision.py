"""Logits in half precision: computed in float32, losses float32, gradients rounded once.

What a call returns is compared with what it returns for the same numbers in float32, bit by bit, so that the
bounds of docs/accuracy.md hold.
"""

import sys

import ml_dtypes
import numpy as np
import pytest

import cyce
import cyce.functional as F
from functions import FUNCTIONS, NAMES, arrays_of, bits
from platforms import on_linux, with_resource_usage

HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LAYOUTS = {
    "rows": (6, 1000),
    "long rows": (3, 9001),
    "few classes": (300, 10),
    "neither": (130, 127),
    "images": (2, 21, 9, 7),
    "many classes of images": (2, 300, 5, 3),
}
ELEMENTWISE = (
    "binary_cross_entropy",
    "kl_div",
    "sigmoid",
    "logsigmoid",
    "gradient of sig",
    "gradient of logsig",
    "Hessian of binary",
    "Hessian of sig",
    "product with the Hessian of binary",
)
# Whose results are in the dtype of the logits.
OF_LOGITS = ("softm", "log_softmax", "sigmoid", "logsigmoid", "gradient of")


@pytest.fixture(params=HALVES.values(), ids=HALVES)
def half(request):
    """Return a dtype of half precision."""
    return request.param


def logits_of(rng, shape, half):
    """Return random logits, some of them far apart."""
    return (3 * rng.standard_normal(shape)).astype(half)


def index_targets(rng, shape):
    """Return class indices, some of which are ignored."""
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    target.flat[::7] = -100
    return target


def wide(array):
    """Return the same numbers in float32."""
    return array.astype(np.float32)


def assert_rounded(result, expected, half):
    """Check that a result in half precision is what float32 gives, rounded."""
    assert result.dtype == half
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(result.view(np.uint16), expected.astype(half).view(np.uint16))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "one_hot"])
@pytest.mark.parametrize("shape", [(40, 9), (7, 300)])
def test_every_function_as_in_float32(level, half, rng, name, shape):
    function = FUNCTIONS[name]
    x = (0.1 + 0.8 * rng.random(shape)).astype(half)
    exact = arrays_of(function(function.arguments(x.astype(np.float64))))
    expected = arrays_of(function(function.arguments(wide(x))))
    result = arrays_of(function(function.arguments(x)))
    assert len(result) == len(expected)
    n_half = 0
    for array, same, precise in zip(result, expected, exact, strict=True):
        if array.dtype != half:
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)
        elif name.startswith(ELEMENTWISE):
            # Rounded to half precision from double, not from float32.
            assert_rounded(array, precise.astype(half).astype(np.float32), half)
            n_half += 1
        else:
            assert_rounded(array, same, half)
            n_half += 1
    is_of_logits = name.startswith(OF_LOGITS) and not name.endswith(("focal_loss", "logsumexp"))
    assert n_half == function.n_derivatives + is_of_logits


def in_layout(array, order):
    """Return the same numbers in another layout."""
    if order == "gaps":
        spaced = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        spaced[..., ::2] = array
        return spaced[..., ::2]
    if order == "reversed":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    return np.array(array, order=order)


OPTIONS = {
    "plain": {},
    "none": {"reduction": "none"},
    "label_smoothing": {"label_smoothing": 0.1, "reduction": "sum"},
    "softcap": {"softcap": 4.0, "temperature": 2.0},
    "z_loss": {"z_loss": 1e-3, "label_smoothing": 0.1},
}
CASES = [
    *(("C", name) for name in OPTIONS),
    *((order, name) for order in ("F", "gaps", "reversed") for name in ("plain", "softcap")),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("order", "name"), CASES)
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_and_option(level, half, rng, loss_and_gradient, shape, order, name):
    options = OPTIONS[name]
    logits = in_layout(logits_of(rng, shape, half), order)
    target, float32 = index_targets(rng, shape), in_layout(wide(logits), order)
    expected, slopes = loss_and_gradient(float32, target, **options)
    loss, gradient = loss_and_gradient(logits, target, **options)
    assert loss.dtype == np.float32
    np.testing.assert_array_equal(loss, expected)
    assert_rounded(gradient, slopes, half)
    np.testing.assert_array_equal(
        F.cross_entropy(logits, target, **options), F.cross_entropy(float32, target, **options)
    )
    _, unrounded = loss_and_gradient(logits, target, out=np.empty_like(float32), **options)
    np.testing.assert_array_equal(unrounded, slopes)
    # In place.
    loss_and_gradient(float32, target, out=float32, **options)
    _, in_place = loss_and_gradient(logits, target, out=logits, **options)
    assert in_place is logits
    assert_rounded(np.ascontiguousarray(logits), np.ascontiguousarray(float32), half)


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_probabilities_and_weights_of_any_dtype(level, half, rng, loss_and_gradient, shape):
    logits = logits_of(rng, shape, half)
    probabilities = rng.random(shape).astype(half)
    weight = rng.random(shape[1]).astype(half)
    sample_weight = rng.random(shape[:1] + shape[2:]).astype(half)
    upstream = rng.random(shape[:1] + shape[2:]).astype(half)
    arguments = [probabilities, weight, sample_weight, upstream]

    def call(logits, probabilities, weight, sample_weight, upstream):
        named = {"weight": weight, "sample_weight": sample_weight, "reduction": "none"}
        return loss_and_gradient(logits, probabilities, grad_output=upstream, **named)

    expected, slopes = call(wide(logits), *map(wide, arguments))
    for dtype in (half, np.dtype(np.float64), np.dtype(np.longdouble)):
        loss, gradient = call(logits, *(array.astype(dtype) for array in arguments))
        np.testing.assert_array_equal(loss, expected)
        assert_rounded(gradient, slopes, half)
    # Other logits take them, too.
    loss, gradient = call(wide(logits), *arguments)
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(gradient, slopes)
    for dtype in (np.float64, np.longdouble):
        loss, _ = call(logits.astype(np.float64), *(array.astype(dtype) for array in arguments))
        assert loss.tobytes() == call(logits.astype(np.float64), *arguments)[0].tobytes()


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_softmax_and_its_like(level, half, rng, shape, function):
    logits = logits_of(rng, shape, half)
    expected = function(wide(logits), 1)
    assert_rounded(function(logits, 1), expected, half)
    np.testing.assert_array_equal(function(logits, 1, dtype=np.float32), expected)
    np.testing.assert_array_equal(function(logits, 1, out=np.empty(shape, np.float32)), expected)
    out = logits.copy()
    assert function(out, 1, out=out) is out
    assert_rounded(out, expected, half)
    assert function(logits, 1, dtype=np.float64).dtype == np.float64
    with pytest.raises(TypeError, match="out: must have the dtype float32, got"):
        function(logits, 1, dtype=np.float32, out=out)
    assert F.logsumexp(logits, (0, 1)).dtype == np.float32


def test_scalars_and_empty_arrays(half):
    assert F.softmax(np.array(3, half), 0) == 1
    assert F.logsumexp(np.array(3, half), 0) == 3
    assert F.softmax(np.empty((0, 3), half), 1).dtype == half
    assert np.isnan(F.cross_entropy(np.empty((0, 3), half), np.empty(0, int)))
    assert F.cross_entropy(np.array([0, 0], half), 1) == np.float32(np.log(2))


def test_infinities_and_nan(level, half):
    logits = np.array([[np.inf, 0, 0], [-np.inf, 0, 0], [np.nan, 0, 0], [0, 0, -np.inf]], half)
    target = np.array([0, 1, 0, 1])
    loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [True, False, True, False])
    np.testing.assert_array_equal(np.isnan(wide(gradient)).any(axis=1), [True, False, True, False])
    assert loss[1] == loss[3] == np.float32(np.log(2))


def test_gradients_that_are_subnormal_in_half_precision(level, half):
    # Without gradual underflow, they would be 0.
    tiny = (
        np.finfo(half).smallest_subnormal if half == np.float16 else ml_dtypes.finfo(half).smallest_subnormal
    )
    logits = np.zeros((1, 1000), half)
    for scale in (1000, 1500, 2500):
        upstream = float(tiny) * scale
        _, gradient = cyce.value_and_grad(F.cross_entropy)(logits, [0], grad_output=upstream)
        expected = np.float32(upstream * 1e-3).astype(half)
        assert expected > 0
        assert (gradient[0, 1:] == expected).all()


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_threads_do_not_change_a_bit(level, half, rng, loss_and_gradient, threads, shape):
    shape = (30 * shape[0], *shape[1:])
    logits, target = logits_of(rng, shape, half), index_targets(rng, shape)
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(bits(loss_and_gradient(logits, target)))
    assert results[0] == results[1] == results[2]


def test_gradients_as_near_to_one_number_as_to_the_next(level):
    # 16.3359375 is: exactly between 16.328125 and 16.34375, whose last bit is 0.
    for dtype in (np.float16, np.float32, np.float64):
        _, gradient = cyce.value_and_grad(F.binary_cross_entropy)(
            np.array([0.96875], dtype), [0.0], weight=[0.510498046875], reduction="sum"
        )
        assert gradient == (16.34375 if dtype == np.float16 else 16.3359375)


def test_of_operands_only_integers_are_copied(rng, half):
    x = rng.random((30, 40))
    expected = F.binary_cross_entropy(x.astype(np.float32), x.astype(np.float32), weight=x.astype(half))
    assert F.binary_cross_entropy(x.astype(np.float32), x, weight=x.astype(half)) == expected


class TestErrors:
    @pytest.mark.parametrize("bits", [np.uint16, "V2"])
    @pytest.mark.parametrize(
        "call",
        [
            lambda x: F.logsumexp(x, 1),
            lambda x: F.softmax(x, 1),
            lambda x: F.softmax(x, 1, dtype=np.float32),
            lambda x: F.cross_entropy(x, [0, 1]),
            lambda x: F.linear_cross_entropy(x, np.zeros((3, 4)), [0, 1]),
            lambda x: F.binary_cross_entropy(x, np.zeros((2, 4))),
        ],
    )
    def test_bits_of_bfloat16(self, bits, call):
        x = np.ones((2, 4), ml_dtypes.bfloat16).view(bits)
        with pytest.raises(
            TypeError, match=r"input: .*, view them as such: input\.view\(ml_dtypes\.bfloat16\)"
        ):
            call(x)

    @pytest.mark.parametrize("bits", [np.uint16, "V2"])
    def test_bits_of_bfloat16_as_probabilities(self, bits):
        target = np.ones((2, 4), ml_dtypes.bfloat16).view(bits)
        message = r"target: .*, view them as such: target\.view\(ml_dtypes\.bfloat16\)"
        with pytest.raises(TypeError, match=message):
            F.cross_entropy(np.ones((2, 4)), target)
        if bits == "V2":
            with pytest.raises(TypeError, match=message):
                F.binary_cross_entropy(np.ones((2, 4)), target)

    @pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn"])
    def test_eight_bits(self, name):
        x = np.ones((2, 3)).astype(getattr(ml_dtypes, name))
        for call in (lambda: F.cross_entropy(x, [0, 1]), lambda: F.logsumexp(x, 1), lambda: F.softmax(x, 1)):
            with pytest.raises(TypeError, match=f"input: logits must be .*float16, .*, got .*{name}"):
                call()

    def test_arguments_that_are_swapped(self, half):
        with pytest.raises(TypeError, match="they seem to be swapped, input comes first"):
            F.cross_entropy(np.array([0, 1]), np.ones((2, 3), half))

    def test_class_indices(self, half):
        name = {"float16": "Half", "bfloat16": "BFloat16"}[half.name]
        with pytest.raises(
            TypeError, match=f"expected target dtype to be Long or Byte, but got {name}: .*astype"
        ):
            F.cross_entropy(np.ones((2, 3), half), np.array([0, 1], half))

    @pytest.mark.torch
    def test_sparse_tensors(self):
        import torch

        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(TypeError, match=r"input: .*to_dense\(\)"):
                F.cross_entropy(torch.ones(2, 3, dtype=dtype).to_sparse(), [0, 1])

    @pytest.mark.torch
    def test_subclasses_of_tensors(self):
        import torch

        class Tensor(torch.Tensor):
            pass

        tensor = torch.zeros(2, 3, dtype=torch.bfloat16).as_subclass(Tensor)
        assert F.cross_entropy(tensor, [0, 1]) == np.float32(np.log(3))


class TestOut:
    def test_what_is_refused(self, half, rng, loss_and_gradient):
        logits = logits_of(rng, (4, 6), half)
        other = HALVES["bfloat16" if half == np.float16 else "float16"]
        for dtype in (np.float64, other, np.uint16):
            out = np.full((4, 6), 7, dtype)
            with pytest.raises(TypeError, match=f"out: must have input's dtype {half.name}, or float32, got"):
                loss_and_gradient(logits, [0, 1, 2, 3], out=out)
            assert (out == 7).all()

    def test_float32_in_the_memory_of_the_logits(self, half, loss_and_gradient):
        memory = np.zeros(48, np.float32)
        logits = memory.view(half)[:24].reshape(4, 6)
        with pytest.raises(ValueError, match="out: shares a part of its memory with input"):
            loss_and_gradient(logits, [0, 1, 2, 3], out=memory[:24].reshape(4, 6))

    def test_modules_and_functions_keep_it(self, half, rng):
        logits = logits_of(rng, (4, 6), half)
        for loss in (cyce.BCEWithLogitsLoss(), F.nll_loss, F.kl_div):
            target = np.zeros(4, int) if loss is F.nll_loss else np.full((4, 6), 0.5)
            named = {"reduction": "sum"} if loss is F.kl_div else {}
            for out in (np.empty_like(logits), np.empty((4, 6), np.float32)):
                value, gradient = cyce.value_and_grad(loss)(logits, target, out=out, **named)
                assert gradient is out
                assert value.dtype == np.float32


class TestLinear:
    def arguments(self, rng, half, n_rows=300, n_features=40, n_classes=3000):
        hidden = rng.standard_normal((n_rows, n_features)).astype(half)
        weights = (rng.standard_normal((n_classes, n_features)) / 4).astype(half)
        bias = rng.standard_normal(n_classes).astype(half)
        target = rng.integers(n_classes, size=n_rows)
        return hidden, weights, bias, target

    @pytest.mark.parametrize("ignores", [False, True])
    @pytest.mark.parametrize("rows", [None, 8])
    def test_as_in_float32(self, half, rng, rows, ignores):
        hidden, weights, bias, target = self.arguments(rng, half)
        if ignores:
            target[::3] = -100
        named = {"ignore_index": -100, "options": cyce.LinearCrossEntropyOptions(batch_chunk_size=rows)}
        call = cyce.value_and_grad(F.linear_cross_entropy)
        expected, slopes = call(wide(hidden), wide(weights), target, linear_bias=wide(bias), **named)
        loss, gradients = call(hidden, weights, target, linear_bias=bias, **named)
        assert loss == expected
        for gradient, slope in zip(gradients[:2], slopes[:2], strict=True):
            assert_rounded(gradient, slope, half)
        # From a sum in float64.
        step, tiny = (2.0**-10, 2.0**-24) if half == np.float16 else (2.0**-7, 0)
        np.testing.assert_allclose(wide(gradients[2]), slopes[2], rtol=0.501 * step, atol=0.501 * tiny)
        outs = tuple(np.empty(np.shape(array), np.float32) for array in (hidden, weights, bias))
        call(hidden, weights, target, linear_bias=bias, **named, out=outs)
        np.testing.assert_array_equal(outs[0], slopes[0])
        np.testing.assert_array_equal(outs[1], slopes[1])

    def test_what_overflows_becomes_infinite_without_a_warning(self):
        # The tests make errors of warnings.
        hidden, weights = np.float16([[1, 2], [3, 4]]), np.float16([[100, -100], [200, 500]])
        for target in ([0, 0], [0, -100]):
            _, (of_hidden, _) = cyce.value_and_grad(F.linear_cross_entropy)(
                hidden, weights, target, ignore_index=-100, reduction="sum", grad_output=5e3
            )
            assert np.isposinf(of_hidden[0]).all()

    def test_weights_in_any_layout(self, half, rng):
        hidden, weights, _, target = self.arguments(rng, half, 20, 24, 300)
        expected = F.linear_cross_entropy(hidden, weights, target)
        for same in (np.asfortranarray(weights), np.repeat(weights, 2, axis=1)[:, ::2]):
            assert F.linear_cross_entropy(hidden, same, target) == pytest.approx(expected, rel=1e-6)

    def test_modules(self, half, rng):
        module = cyce.LinearCrossEntropyLoss(24, 300, bias=True, dtype=half, rng=0)
        assert module.linear.weight.dtype == module.linear.bias.dtype == half
        hidden, _, _, target = self.arguments(rng, half, 20, 24, 300)
        loss, gradients = cyce.value_and_grad(module)(hidden, target)
        assert loss.dtype == np.float32
        assert {gradient.dtype for gradient in gradients} == {half}


class OnlyDLPack:
    """An array of another library, which offers its memory by DLPack alone."""

    def __init__(self, array):
        self._array = array
        self.dtype = array.dtype

    def __dlpack__(self, **named):
        return self._array.__dlpack__(**named)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class TestArraysOfOthers:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_dlpack(self, rng, dtype):
        logits = rng.standard_normal((4, 6)).astype(dtype)
        expected, gradient = cyce.value_and_grad(F.cross_entropy)(logits, [0, 1, 2, 3])
        out = logits.copy()
        assert F.cross_entropy(OnlyDLPack(out), OnlyDLPack(np.arange(4))) == expected
        if not np.from_dlpack(out).flags.writeable:
            # as before NumPy 2.1
            return
        loss, result = cyce.value_and_grad(F.cross_entropy)(
            OnlyDLPack(out), np.arange(4), out=OnlyDLPack(out)
        )
        assert loss == expected
        assert type(result) is OnlyDLPack
        np.testing.assert_array_equal(out, gradient)

    @pytest.mark.torch
    @pytest.mark.parametrize("name", HALVES)
    def test_tensors(self, rng, name):
        import torch

        logits = torch.from_numpy(rng.standard_normal((4, 6)).astype(np.float32)).to(getattr(torch, name))
        expected, gradient = cyce.value_and_grad(F.cross_entropy)(logits.float(), [0, 1, 2, 3])
        loss, result = cyce.value_and_grad(F.cross_entropy)(logits, [0, 1, 2, 3])
        assert loss == expected
        assert_rounded(result, gradient, HALVES[name])
        # A view, no copy: written to in place, transposed or not.
        for tensor in (logits.clone(), logits.clone().T.contiguous().T):
            _, same = cyce.value_and_grad(F.cross_entropy)(tensor, [0, 1, 2, 3], out=tensor)
            assert same is tensor
            np.testing.assert_array_equal(tensor.float().numpy(), wide(result))

    @pytest.mark.torch
    def test_tensors_without_ml_dtypes(self, run_python):
        program = (
            "import sys; sys.modules['ml_dtypes'] = None\n"
            "import torch, cyce\n"
            "print(cyce.cross_entropy(torch.zeros(2, 3, dtype=torch.float16), [0, 1]))\n"
            "cyce.cross_entropy(torch.zeros(2, 3, dtype=torch.bfloat16), [0, 1])\n"
        )
        result = run_python("-c", program)
        assert result.stdout == "1.0986123\n"
        assert result.stderr.endswith(
            "TypeError: input: NumPy has no bfloat16 of its own; install the package that has: "
            "pip install ml_dtypes\n"
        )

    def test_it_is_imported_for_such_arrays_alone(self, run_python):
        program = (
            "import sys, numpy as np, cyce\n"
            "print(cyce.cross_entropy(np.zeros((2, 3), np.float16), [0, 1]))\n"
            "assert 'ml_dtypes' not in sys.modules\n"
        )
        assert run_python("-c", program).stdout == "1.0986123\n"

    def test_files(self, rng, tmp_path, half):
        logits, target = logits_of(rng, (50, 300), half), np.arange(50)
        np.save(tmp_path / "logits.npy", logits)
        loaded = np.load(tmp_path / "logits.npy", mmap_mode="r")
        if half != np.float16:
            assert loaded.dtype == "V2"
            with pytest.raises(TypeError, match=r"bits of bfloat16, .* input\.view\(ml_dtypes\.bfloat16\)$"):
                F.cross_entropy(loaded, target)
            loaded = loaded.view(half)
        assert F.cross_entropy(loaded, target) == F.cross_entropy(wide(logits), target)


PEAK = """
import resource, sys
import ml_dtypes, numpy as np
import cyce
import cyce.functional as F

cyce.set_num_threads(2)
half = np.dtype(sys.argv[1])
rng = np.random.default_rng(0)
pattern = rng.standard_normal(4096, np.float32).astype(half)

def logits(n_positions, n_classes):
    # 400 MB
    array = np.empty((n_positions, n_classes), half)
    array.reshape(-1, 4096)[...] = pattern
    return array

V = cyce.value_and_grad(F.cross_entropy)
if sys.argv[2] == "rows":
    x, t = logits(4096, 51200), rng.integers(51200, size=4096)
    F.cross_entropy_stats(x[:2], t[:2])
    calls = lambda x, t: (F.cross_entropy_stats(x, t), V(x, t, out=x), F.softmax(x, 1, out=x))
elif sys.argv[2] == "long rows":
    x, t = logits(4, 51200000), rng.integers(51200000, size=4)
    F.cross_entropy_stats(x[:1, :100000], [0])
    calls = lambda x, t: (F.cross_entropy(x, t), V(x, t, out=x, softcap=5.0), F.softmax(x, 1, out=x))
elif sys.argv[2] == "Fortran order":
    x, t = logits(51200, 4096).T, rng.integers(51200, size=4096)
    calls = lambda x, t: (F.cross_entropy(x, t), F.log_softmax(x, 1, out=x), V(x, t, out=x))
elif sys.argv[2] == "images":
    x = logits(800, 262144).reshape(4, 200, 512, 512)
    t = rng.integers(200, size=(4, 512, 512), dtype=np.uint8)
    calls = lambda x, t: (F.cross_entropy(x, t), V(x, t, out=x))
elif sys.argv[2] == "gaps":
    x, t = logits(4096, 51200)[:, ::2], rng.integers(25600, size=4096)
    calls = lambda x, t: (F.cross_entropy(x, t), V(x, t, out=x))
elif sys.argv[2] == "elements":
    x = logits(4096, 51200)
    t = x[:, ::-1]
    calls = lambda x, t: F.binary_cross_entropy_with_logits(x, t)
else:
    # a layer's weights
    x, t = logits(262144, 768), rng.integers(262144, size=4)
    hidden = rng.standard_normal((4, 768), np.float32).astype(half)
    calls = lambda x, t: F.linear_cross_entropy(hidden, x, t)
F.cross_entropy(np.zeros((2, 3), half), [0, 1])
np.matmul(np.ones((300, 300), np.float32), np.ones((300, 300), np.float32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
calls(x, t)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@with_resource_usage
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(
    "what", ["rows", "long rows", "Fortran order", "images", "gaps", "elements", "linear"]
)
def test_nothing_of_the_size_of_the_logits_is_allocated(run_python, name, what):
    result = run_python("-c", PEAK, name, what)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    # The logits take 400 MB. Products have a block of weights in float32 for each thread.
    assert int(result.stdout) * unit < 40e6


MAPPED = """
import sys
import numpy as np
import cyce

def own_kilobytes():
    with open("/proc/self/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith("RssAnon")))

with open("logits", "wb") as file:
    # zeros that take no place on the disk
    file.truncate(8192 * 128256 * 2)
logits = np.memmap("logits", np.float16, "r", shape=(8192, 128256))
target = np.arange(8192)
cyce.cross_entropy(logits[:10], target[:10])
before = own_kilobytes()
perplexity = np.exp(cyce.cross_entropy(logits, target))
print(perplexity, own_kilobytes() - before)
"""


@on_linux
@pytest.mark.integration
def test_perplexity_of_two_gigabytes_of_a_memory_map(run_python):
    result = run_python("-c", MAPPED)
    assert result.returncode == 0, result.stderr
    perplexity, kilobytes = map(float, result.stdout.split())
    assert perplexity == pytest.approx(128256, rel=1e-5)
    assert kilobytes < 20_000
