"""What holds for every function: threads, strides, floating point errors, memory, bad arguments."""

import ctypes
import gc
import sys

import numpy as np
import pytest

import cyce
import cyce.functional as F
from functions import FUNCTIONS, NAMES, arrays_of, bits
from platforms import with_fork, with_resource_usage
from stages import one_in

with_gradient = cyce.value_and_grad

# cyce casts integers here, or takes nothing else.
TAKE_INTEGERS = {F.logsumexp, F.one_hot}


@pytest.fixture(params=NAMES)
def function(request):
    """Return an entry of the list of functions."""
    return FUNCTIONS[request.param]


def test_the_list_has_every_function():
    results = {"CrossEntropyStats", "CrossEntropyMeans"}
    assert {entry.function.__name__ for entry in FUNCTIONS.values()} == set(F.__all__) - results


def assert_same_numbers(result, expected):
    for array, other in zip(arrays_of(result), arrays_of(expected), strict=True):
        np.testing.assert_array_equal(array, other)


# A thread takes at least 12,288 logits, or 8192 elements: these are several shares for each of 7 threads.
THREADED = {
    "rows": (600, 300),
    "few long rows": (3, 90_000),
    "one row": (1, 300_001),
    "few classes": (30_000, 10),
}


@pytest.mark.parametrize("shape", one_in(2, THREADED))
def test_the_same_bits_for_any_number_of_threads(level, dtype, rng, threads, function, shape):
    arguments = function.arguments(rng.random(shape, dtype))
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        results.append(bits(function(arguments)))
    assert results[1:] == results[:1] * 3


@pytest.mark.parametrize("select", [np.s_[:1, ::2], np.s_[::7, :1], np.s_[:1, :1], np.s_[:0, ::2]], ids=str)
def test_axes_that_take_no_step_may_have_any_stride(level, dtype, rng, function, select):
    # A field of packed records: its rows are no multiple of the item size apart.
    records = np.zeros(7, [("x", dtype, 6), ("tag", "u1")])
    records["x"] = rng.random((7, 6))
    view = records["x"][select]
    expected = function(function.arguments(np.array(view)))
    assert_same_numbers(function(function.arguments(view)), expected)


@pytest.mark.parametrize("factor", [1, 1e-30, 1e-300])
def test_numpy_may_raise_all_floating_point_errors(level, dtype, rng, function, factor):
    arguments = function.arguments((rng.random((5, 7)) * factor).astype(dtype))
    with np.errstate(all="ignore"):
        expected = function(arguments)
    with np.errstate(all="raise"):
        assert_same_numbers(function(arguments), expected)


TINY = 1e-50


@pytest.mark.parametrize(
    "call",
    [
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], grad_output=TINY),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], grad_output=[TINY, 1], reduction="none"),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], weight=[TINY, 1, 1e50]),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], sample_weight=[TINY, 1]),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], normalizer=1e50),
        lambda x: with_gradient(F.cross_entropy)(x, [0, 1], z_loss=TINY),
        lambda x: with_gradient(F.cross_entropy)(x, np.full((2, 3), TINY)),
        lambda x: with_gradient(F.cross_entropy)(x, np.full((2, 3), TINY, np.longdouble)),
        lambda x: with_gradient(F.nll_loss)(x, [0, 1], weight=[TINY, 1, 1], grad_output=TINY),
        lambda x: with_gradient(F.linear_cross_entropy)(x, x, [0, 1], weight=[TINY, 1], grad_output=TINY),
        lambda x: with_gradient(F.binary_cross_entropy_with_logits)(
            x, np.full((2, 3), TINY), pos_weight=TINY
        ),
        lambda x: with_gradient(F.kl_div)(x, np.full((2, 3), TINY), reduction="sum", grad_output=TINY),
        lambda _: F.softmax([TINY, 1.0], dim=0, dtype="f4"),
        lambda _: F.log_softmax(np.array([1e300, TINY]), dim=0, dtype=np.float32),
    ],
)
def test_numbers_that_float32_does_not_hold(call):
    x = np.zeros((2, 3), np.float32)
    with np.errstate(all="ignore"):
        expected = call(x)
    with np.errstate(all="raise"):
        assert_same_numbers(call(x), expected)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


class TestArrays:
    """How an array lies in memory changes no result, and no argument is changed."""

    @pytest.mark.parametrize("lay_out", [read_only, byte_swapped, unaligned])
    def test_any_kind_of_memory(self, level, dtype, rng, function, lay_out):
        arguments = function.arguments(rng.random((40, 33), dtype))
        given = {
            name: lay_out(value) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
        before = {name: bits(value) for name, value in given.items()}
        assert bits(function(given)) == bits(function(arguments))
        assert {name: bits(value) for name, value in given.items()} == before

    @pytest.mark.parametrize("shape", [(40, 33), (600, 300)], ids=str)
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_arguments_are_left_alone(self, level, dtype, rng, function, shape, order):
        arguments = function.arguments(np.asarray(rng.random(shape, dtype), order=order))
        before = {name: bits(value) for name, value in arguments.items()}
        out = function.out(arguments)
        function(arguments)
        if out is not None:
            function(arguments, out=out)
        assert {name: bits(value) for name, value in arguments.items()} == before

    def test_out_gets_the_same_numbers(self, level, dtype, rng, function):
        arguments = function.arguments(rng.random((40, 33), dtype))
        out = function.out(arguments)
        if out is None:
            with pytest.raises(TypeError, match="'out'"):
                function(arguments, out=np.zeros(3))
            return
        expected = function(arguments)
        result = function(arguments, out=out)
        assert bits(result) == bits(expected)
        outs = arrays_of(out)
        for array, given in zip(arrays_of(result)[-len(outs) :], outs, strict=True):
            assert array is given


class Foreign:
    """No array, and nothing that becomes one."""


WRONG_KINDS = {
    "complex": lambda array: array.astype(complex),
    "objects": lambda array: array.astype(object),
    "texts": lambda array: array.astype(str),
    "dates": lambda array: array.astype("M8[s]"),
    "masked": np.ma.masked_array,
    "something else": lambda _: Foreign(),
    "ragged": lambda _: [[0.5, 0.5], [0.5]],
}


def assert_refused(function, arguments, error, *words):
    """Assert an error whose message has these words, with nothing written to `out`."""
    out = function.out(function.arguments(np.full((6, 5), 0.5)))
    named = {} if out is None else {"out": out}
    with pytest.raises(error) as caught:
        function(arguments, **named)
    for word in words:
        assert word in str(caught.value)
    for array in [] if out is None else arrays_of(out):
        assert (array == 77).all()


class TestBadArguments:
    @pytest.mark.parametrize("kind", WRONG_KINDS)
    def test_arrays_that_hold_no_real_numbers(self, function, kind):
        arguments = function.arguments(np.full((6, 5), 0.5))
        for name, value in arguments.items():
            if isinstance(value, np.ndarray):
                wrong = {**arguments, name: WRONG_KINDS[kind](value)}
                assert_refused(function, wrong, TypeError, name)

    @pytest.mark.parametrize("kind", [np.longdouble, np.int64, bool])
    def test_dtypes_that_the_kernels_do_not_have(self, function, kind):
        arguments = function.arguments(np.full((6, 5), 0.5))
        name = next(iter(arguments))
        arguments[name] = arguments[name].astype(kind)
        if function.function in TAKE_INTEGERS and kind is np.int64 and not function.slopes_of:
            assert np.all(np.isfinite(function(arguments)))
        else:
            assert_refused(function, arguments, TypeError, name, np.dtype(kind).name)

    def test_no_array_at_all(self, function):
        arguments = function.arguments(np.full((6, 5), 0.5))
        name = next(iter(arguments))
        assert_refused(function, {**arguments, name: None}, TypeError, name)

    def test_an_argument_is_missing(self, function):
        arguments = function.arguments(np.full((6, 5), 0.5))
        name = next(iter(arguments))
        del arguments[name]
        assert_refused(function, arguments, TypeError, f"{function.function.__name__}()", repr(name))

    def test_an_unknown_keyword(self, function):
        arguments = {**function.arguments(np.full((6, 5), 0.5)), "no_such": None}
        assert_refused(function, arguments, TypeError, f"{function.function.__name__}()", "'no_such'")

    def test_out_of_another_shape_or_dtype(self, function):
        arguments = function.arguments(np.full((6, 5), 0.5))
        out = function.out(arguments)
        for array in [] if out is None else arrays_of(out):
            for wrong, error in (
                (np.zeros((*array.shape, 2)), ValueError),
                (array.astype(np.int64), TypeError),
                (read_only(array), ValueError),
                (array.tolist(), TypeError),
            ):
                parts = [wrong if other is array else other for other in arrays_of(out)]
                with pytest.raises(error, match=r"^out(\[[01]\])?: "):
                    function(arguments, out=tuple(parts) if isinstance(out, tuple) else wrong)


def refused(arguments):
    """Return arguments that are refused, if possible by the kernels, in the midst of a call."""
    target = arguments.get("target")
    if isinstance(target, cyce.SparseTarget):
        return {**arguments, "target": cyce.SparseTarget(target.indices + 1000, target.probabilities)}
    if target is not None and target.dtype.kind == "i":
        return {**arguments, "target": target + 1000}
    name = next(iter(arguments))
    return {**arguments, name: arguments[name] + 1000j}


def expect_refusal(function, arguments):
    """Call a function with arguments that it must refuse."""
    try:
        function(arguments)
    except (TypeError, IndexError):
        return
    raise AssertionError


def test_arguments_are_released(level, dtype, rng, function):
    # After results and after errors alike, nothing refers to them.
    arguments = function.arguments(rng.random((40, 33), dtype))
    wrong = refused(arguments)
    out = function.out(arguments)
    named = {} if out is None else {"out": out}
    arrays = [value for value in (*arguments.values(), *wrong.values()) if isinstance(value, np.ndarray)]
    arrays += [] if out is None else arrays_of(out)

    def references():
        return [sys.getrefcount(array) for array in arrays]

    before = references()
    function(arguments)
    function(arguments, **named)
    for _ in range(3):
        with pytest.raises((TypeError, IndexError)):
            function(wrong, **named)
    assert references() == before


class MallocInfo(ctypes.Structure):
    """What mallinfo2 of glibc returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks"),
            *("fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated():
    """Return how many blocks Python has allocated, and how many bytes C has, where that can be told."""
    # This also clears the free lists of tuples, which hold thousands.
    gc.collect()
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return sys.getallocatedblocks(), 0
    mallinfo2.restype = MallocInfo
    return sys.getallocatedblocks(), mallinfo2().uordblks


@pytest.mark.integration
def test_nothing_stays_allocated(rng, threads, function):
    # One thread: only the main thread's allocations are counted.
    threads(1)
    arguments = function.arguments(rng.random((8, 6), np.float32))
    wrong = refused(arguments)

    def many(n):
        for _ in range(n):
            function(arguments)
            expect_refusal(function, wrong)

    many(100)
    before = allocated()
    many(300)
    n_blocks, n_bytes = np.subtract(allocated(), before)
    # A leak in each call would be 300 blocks, and 9600 bytes: malloc has no smaller blocks.
    assert n_blocks < 150
    assert n_bytes < 5000


MANY_CALLS = """
import resource
import numpy as np
from functions import FUNCTIONS
from test_qualities import expect_refusal, refused

x = np.random.default_rng(0).random((8, 6), np.float32)
calls = [(function, function.arguments(x)) for function in FUNCTIONS.values()]

def many(n):
    for _ in range(n):
        for function, arguments in calls:
            function(arguments)
            expect_refusal(function, refused(arguments))

many(2000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
many(25_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@with_resource_usage
def test_a_million_small_calls_do_not_grow(run_python):
    result = run_python("-c", MANY_CALLS, timeout=300)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    # 32 bytes leaked by each call of one function would be as much.
    assert int(result.stdout) * unit < 800_000


FORK = """
import os, sys
import numpy as np
import cyce
from functions import FUNCTIONS, bits

function = FUNCTIONS[sys.argv[1]]
arguments = function.arguments(np.random.default_rng(0).random((600, 300)))
with cyce.num_threads(1):
    expected = bits(function(arguments))
cyce.set_num_threads(3)
assert bits(function(arguments)) == expected
child = os.fork()
if child == 0:
    os._exit(0 if bits(function(arguments)) == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bits(function(arguments)) == expected
"""


@with_fork
@pytest.mark.parametrize("name", one_in(12, list(FUNCTIONS)))
def test_a_forked_child_computes_the_same(run_python, name):
    result = run_python("-c", FORK, name, timeout=60)
    assert result.returncode == 0, result.stderr
