"""Bad arguments: the exception's type, torch's words, the argument's name, and what would be right."""

import functools
import re
import sys

import ml_dtypes
import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.kernels import dispatch


def logits(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def indices(*shape, dtype=np.int64):
    return np.zeros(shape, dtype)


def raises(error, *texts):
    """Expect an error whose message has all these texts, in order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, texts)))


class TestInput:
    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
    def test_integers(self, dtype):
        with raises(TypeError, "input: logits must be floating point, got", "input.astype(np.float32)"):
            F.cross_entropy(logits(2, 3, dtype=dtype), [0, 1])

    def test_extended_precision(self):
        message = "input: logits must be float16, bfloat16, float32 or float64, got"
        with raises(TypeError, message, "input.astype(np.float64)"):
            F.cross_entropy(logits(2, 3, dtype=np.longdouble), [0, 1])

    def test_complex_numbers(self):
        with raises(TypeError, "input: logits must be real, got complex64", "input.real"):
            F.cross_entropy(logits(2, 3, dtype=np.complex64), [0, 1])

    @pytest.mark.parametrize("wrong", [None, "abc", [["a", "b"]], [[None, 1.0]], object()])
    def test_no_numbers(self, wrong):
        with raises(
            TypeError,
            "input: logits must be an array of float16, bfloat16, float32 or float64, got dtype",
            "np.asarray",
        ):
            F.cross_entropy(wrong, [0])

    def test_ragged_lists(self):
        with raises(TypeError, "input: cannot be read as an array"):
            F.cross_entropy([[1.0, 2.0], [3.0]], [0, 1])

    def test_masked_arrays(self):
        with raises(TypeError, "input: a masked array is not supported", "input.filled", "ignore_index"):
            F.cross_entropy(np.ma.masked_array(logits(2, 3)), [0, 1])

    def test_scalars(self):
        with raises(ValueError, "input: logits need at least one dimension"):
            F.cross_entropy(np.float32(1), 0)


class TestTargetShape:
    """torch's words for each number of dimensions."""

    @pytest.mark.parametrize(
        ("input_shape", "target_shape", "message"),
        [
            ((4, 3), (5,), "Expected input batch_size (4) to match target batch_size (5)."),
            ((4, 3), (), "Expected input batch_size (4) to match target batch_size (0)."),
            ((4, 3, 2), (5, 2), "Expected input batch_size (4) to match target batch_size (5)."),
            ((4, 3), (4, 1), "0D or 1D target tensor expected, multi-target not supported"),
            ((3,), (1, 1), "0D or 1D target tensor expected, multi-target not supported"),
            ((3,), (2,), "For 1D input, 1D target must have size 1, but got target size: 2"),
            ((2, 3, 5), (2, 4), "Expected target size [2, 5], got [2, 4]"),
            ((2, 3, 5), (2,), "Expected target size [2, 5], got [2]"),
            ((2, 3, 5, 5, 2), (2, 5, 5, 3), "Expected target size [2, 5, 5, 2], got [2, 5, 5, 3]"),
            ((2, 3, 5, 5), (2, 5, 4), "size mismatch (got input: [2, 3, 5, 5] , target: [2, 5, 4]"),
            (
                (2, 3, 5, 5),
                (2, 5),
                "only batches of spatial targets supported (3D tensors) but got targets of dimension: 2",
            ),
        ],
    )
    @pytest.mark.parametrize("kind", [indices, logits])
    def test_it_fits_neither_way(self, input_shape, target_shape, message, kind):
        with raises(ValueError, message, "target"):
            F.cross_entropy(logits(*input_shape), kind(*target_shape))

    def test_what_would_be_right(self):
        with raises(ValueError, "for input of shape [2, 3, 5], target must be class indices of shape [2, 5]"):
            F.cross_entropy(logits(2, 3, 5), indices(2, 4))

    @pytest.mark.parametrize(("shape", "axis"), [((2, 5, 4), 2), ((5, 2, 4), 2), ((4, 2, 5), 0)])
    def test_the_axis_that_would_be_right(self, shape, axis):
        target = indices(*(size for k, size in enumerate(shape) if k != axis))
        with raises(ValueError, f"; if the classes are at axis {axis}, pass axis={axis}"):
            F.cross_entropy(logits(*shape), target)
        F.cross_entropy(logits(*shape), target, axis=axis)
        # nll_loss has no such argument.
        with pytest.raises(ValueError, match=r"target must be class indices|batch_size") as error:
            F.nll_loss(logits(*shape), target)
        assert "axis" not in str(error.value)


class TestTargetDtype:
    @pytest.mark.parametrize(
        ("dtype", "name"),
        [(np.int64, "Long"), (np.int32, "Int"), (np.uint8, "Byte"), (bool, "Bool"), ("u4", "uint32")],
    )
    @pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
    def test_an_integer_one_hot(self, dtype, name, shape):
        message = f"Expected floating point type for target with class probabilities, got {name}"
        with raises(TypeError, message, "target.argmax(axis=1)", "target.astype('float32')"):
            F.cross_entropy(logits(*shape), indices(*shape, dtype=dtype))

    def test_an_integer_one_hot_of_one_position(self):
        with raises(TypeError, "target.argmax(axis=0)"):
            F.cross_entropy(logits(3), indices(3))

    @pytest.mark.parametrize(
        ("target", "name"),
        [(np.zeros(2), "Double"), (np.zeros(2, bool), "Bool"), (np.zeros(2, complex), "ComplexDouble")],
    )
    def test_indices_that_are_no_integers(self, target, name):
        message = f"expected target dtype to be Long or Byte, but got {name}"
        with raises(
            TypeError, message, "class indices of shape [2]", "probabilities of the shape of input, [2, 3]"
        ):
            F.cross_entropy(logits(2, 3), target)

    @pytest.mark.parametrize("dtype", [complex, object, "U3"])
    def test_probabilities_that_are_no_numbers(self, dtype):
        with raises(TypeError, "Expected floating point type for target with class probabilities, got"):
            F.cross_entropy(logits(2, 3), np.zeros((2, 3), dtype))

    @pytest.mark.parametrize("wrong", [None, "ab", [None, 1], object(), np.zeros(2, "M8[s]")])
    def test_no_numbers(self, wrong):
        with raises(TypeError, "target: must hold numbers, got dtype", "class indices of shape [2]"):
            F.cross_entropy(logits(2, 3), wrong)

    def test_masked_arrays(self):
        with raises(TypeError, "target: a masked array is not supported"):
            F.cross_entropy(logits(2, 3), np.ma.masked_array([0, 1]))


class TestTargetOutOfBounds:
    @pytest.mark.parametrize("bad", [-1, 2**40, -(2**63), 2**63 - 1, "n_classes"])
    @pytest.mark.parametrize(
        "shape",
        [
            (1, 3),
            (3, 5),
            (40, 3),
            (300, 3),
            (5, 50),
            (70_000, 2),
            (3, 5000),
            (2, 5, 7),
            (2, 21, 40, 40),
            (3,),
        ],
        ids=str,
    )
    def test_in_any_position(self, level, dtype, rng, threads, shape, bad):
        threads(2)
        n_classes = shape[0] if len(shape) == 1 else shape[1]
        bad = n_classes if bad == "n_classes" else bad
        positions = () if len(shape) == 1 else shape[:1] + shape[2:]
        size = int(np.prod(positions))
        for flat in {0, size - 1, size // 2, size // 3}:
            target = indices(*positions)
            target.flat[flat] = bad
            if positions:
                where = f"target[{', '.join(map(str, np.unravel_index(flat, positions)))}]"
            else:
                where = "target"
            loss = F.cross_entropy if flat % 2 else cyce.value_and_grad(F.cross_entropy)
            message = (
                f"Target {bad} is out of bounds. {where} must be a class index from 0 to {n_classes - 1}"
            )
            with raises(IndexError, message, "ignore_index (-100)"):
                loss(logits(*shape, dtype=dtype), target)
        # The next call works.
        assert F.cross_entropy(logits(*shape, dtype=dtype), indices(*positions)) == pytest.approx(
            np.log(n_classes)
        )

    @pytest.mark.parametrize("dtype", "bhilqBHILQ")
    def test_of_any_dtype(self, level, dtype):
        info = np.iinfo(dtype)
        for bad in {info.max, info.min, 3} - {0, -100}:
            with raises(IndexError, f"Target {bad} is out of bounds."):
                F.cross_entropy(logits(2, 3), np.array([0, bad], dtype))

    def test_the_first_of_several_is_named(self, threads):
        for n in (1, 2, 7):
            threads(n)
            target = indices(100_000)
            target[[20_000, 50_000, 99_999]] = [7, 8, 9]
            with raises(IndexError, "Target 7 is out of bounds. target[20000]"):
                F.cross_entropy(logits(100_000, 2), target)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_where_another_thread_mends_it_meanwhile(self, monkeypatch, reduction):
        target = np.array([0, 9, 1])

        class Kernels:
            def cross_entropy(self, *arguments):
                target[1] = 0
                raise IndexError(1)

            plain_mean = cross_entropy

        monkeypatch.setattr(dispatch, "kernels", Kernels())
        with raises(IndexError, "target: another thread changes it during the call"):
            F.cross_entropy(logits(3, 5), target, reduction=reduction)

    def test_of_the_caller_s_array(self):
        # Strides and byte order are gone in what the kernels see; the message is about what was given.
        target = np.zeros((3, 8), ">i4")[:, ::2]
        target[1, 2] = 9
        with raises(IndexError, "Target 9 is out of bounds. target[1, 2] must be a class index from 0 to 4"):
            F.cross_entropy(logits(3, 5, 4), target)


class TestOtherArguments:
    @pytest.mark.parametrize(
        ("weight", "shape"), [([1.0, 1.0], "[2]"), (np.ones((3, 1)), "[3, 1]"), (1.0, "[]"), ([], "[0]")]
    )
    @pytest.mark.parametrize("target", [[0, 1], np.full((2, 3), 1 / 3)], ids=["indices", "probabilities"])
    def test_weight_of_a_wrong_shape(self, weight, shape, target):
        message = (
            "weight tensor should be defined either for all 3 classes or no classes but got weight tensor of "
            f"shape: {shape}"
        )
        with raises(ValueError, message, "weight must have shape [3]"):
            F.cross_entropy(logits(2, 3), target, weight=weight)

    @pytest.mark.parametrize("weight", ["abc", [1j, 1, 1], [None, 1, 1]])
    def test_weight_that_is_no_numbers(self, weight):
        with raises(TypeError, "weight: must hold real numbers, got dtype"):
            F.cross_entropy(logits(2, 3), [0, 1], weight=weight)

    def test_a_masked_weight(self):
        with raises(TypeError, "weight: a masked array is not supported"):
            F.cross_entropy(logits(2, 3), [0, 1], weight=np.ma.masked_array([1.0, 1, 1]))

    @pytest.mark.parametrize("reduction", ["avg", "", None, 3, ["mean"], "MEAN"])
    def test_reduction(self, reduction):
        with raises(ValueError, f"{reduction} is not a valid value for reduction", "'none', 'mean' or 'sum'"):
            F.cross_entropy(logits(2, 3), [0, 1], reduction=reduction)

    @pytest.mark.parametrize("smoothing", [1.1, -0.1, np.nan, np.inf, -np.inf, np.float32(2), np.array(-3)])
    def test_label_smoothing_out_of_range(self, smoothing):
        with raises(ValueError, f"label_smoothing must be between 0.0 and 1.0. Got: {smoothing}"):
            F.cross_entropy(logits(2, 3), [0, 1], label_smoothing=smoothing)

    def test_label_smoothing_larger_than_any_float(self):
        with raises(ValueError, "label_smoothing must be between 0.0 and 1.0. Got: inf"):
            F.cross_entropy(logits(2, 3), [0, 1], label_smoothing=10**400)

    @pytest.mark.parametrize(
        "smoothing", [None, "x", "0.1", b"0.1", [0.1, 0.2], [0.1], 1j, np.complex64(0.1)]
    )
    def test_label_smoothing_that_is_no_number(self, smoothing):
        with raises(TypeError, "label_smoothing: must be a number, got"):
            F.cross_entropy(logits(2, 3), [0, 1], label_smoothing=smoothing)

    @pytest.mark.parametrize("index", [1.0, None, "0", [0]])
    def test_ignore_index_that_is_no_integer(self, index):
        with raises(TypeError, "ignore_index: must be an integer, got"):
            F.cross_entropy(logits(2, 3), [0, 1], ignore_index=index)

    @pytest.mark.parametrize("index", [2**63, -(2**63) - 1])
    def test_ignore_index_out_of_range(self, index):
        with raises(ValueError, "ignore_index: must be a signed 64-bit integer, got"):
            F.cross_entropy(logits(2, 3), [0, 1], ignore_index=index)

    def test_ignore_index_with_probabilities(self):
        for index in (0, 1, 10):
            with raises(ValueError, "ignore_index is not supported for floating point target"):
                F.cross_entropy(logits(2, 3), np.zeros((2, 3)), ignore_index=index)
        assert F.cross_entropy(logits(2, 3), np.zeros((2, 3)), ignore_index=-1) == 0


def test_modules_check_nothing_before_the_call():
    criterion = cyce.CrossEntropyLoss("w", None, "i", None, "r", "s")
    with raises(ValueError, "r is not a valid value for reduction"):
        criterion(logits(1, 2), [0])


class Sparse:
    """Has what tells SciPy's sparse arrays."""

    nnz = 1

    def __init__(self, array):
        self._array = array

    def toarray(self):
        return self._array


class Lazy:
    """Has what tells Dask's collections."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        pytest.fail("loaded whole")

    def __dask_graph__(self):
        return {}

    def compute(self):
        return self._array


class Words:
    """Behaves as an array of strings or objects, but is none, as pandas' columns."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype)


class TestAdviceWorks:
    """What a message says to write instead, is written."""

    def follow(self, function, name, argument, pattern):
        """Call a function that refuses an argument, then with what its message says; returns the code."""
        with pytest.raises(TypeError) as error:
            function(argument)
        code = re.search(pattern, str(error.value))[1]
        names = {name: argument, "np": np, "ml_dtypes": ml_dtypes, "torch": sys.modules.get("torch")}
        result = function(eval(code, names))
        assert np.isfinite(result)
        return code

    @pytest.mark.parametrize(
        ("argument", "code"),
        [
            ([[1, 2, 3], [4, 5, 6]], "np.asarray(input, dtype=np.float32)"),
            (np.ones((2, 3), np.int8), "input.astype(np.float32)"),
            (np.ones((2, 3), np.longdouble), "input.astype(np.float64)"),
            (Sparse(np.ones((2, 3))), "input.toarray()"),
            (Lazy(np.ones((2, 3))), "input.compute()"),
        ],
    )
    def test_of_logits(self, argument, code):
        pattern = r"(?:them|it|first): (\S.*)$"
        assert self.follow(lambda x: F.cross_entropy(x, [0, 1]), "input", argument, pattern) == code

    @pytest.mark.torch
    @pytest.mark.parametrize(
        ("dtype", "code"),
        [
            ("int64", "input.float()"),
            ("float32", "input.detach().cpu()"),
            ("bfloat16", "input.detach().cpu()"),
        ],
    )
    def test_of_tensors(self, dtype, code):
        import torch

        tensor = torch.ones(2, 3, dtype=getattr(torch, dtype))
        tensor.requires_grad_(dtype != "int64")
        pattern = r"(?:them|it): (\S.*)$"
        assert self.follow(lambda x: F.cross_entropy(x, [0, 1]), "input", tensor, pattern) == code
        labels = torch.zeros(2)
        pattern = r"cast them: (\S.*)$"
        assert self.follow(lambda y: F.cross_entropy(np.ones((2, 3)), y), "target", labels, pattern) == (
            "target.long()"
        )

    @pytest.mark.parametrize(
        "bits", [np.full((2, 3), 0x3F80, np.uint16), np.full((2, 3), 0x3F80, "<u2").view("V2")]
    )
    def test_of_what_may_be_the_bits_of_bfloat16(self, bits):
        pattern = r"as such: (\S.*)$"
        code = self.follow(lambda x: F.cross_entropy(x, [0, 1]), "input", bits, pattern)
        assert code == "input.view(ml_dtypes.bfloat16)"
        with raises(TypeError, "bits of bfloat16") as error:
            F.cross_entropy(bits, [0, 1])
        assert "cast" not in str(error.value)

    @pytest.mark.torch
    def test_of_tensors_of_the_bits_of_bfloat16(self):
        import torch

        bits = torch.ones(2, 3, dtype=torch.bfloat16).view(torch.uint16)
        pattern = r"as such: (\S.*)$"
        code = self.follow(lambda x: F.cross_entropy(x, [0, 1]), "input", bits, pattern)
        assert code == "input.view(torch.bfloat16)"

    @pytest.mark.parametrize(
        ("argument", "code"),
        [
            (np.array([0.0, 2.0]), "target.astype(int)"),
            (np.array([0.0, 2.0], np.float32), "target.astype(int)"),
            ([0.0, 2.0], "np.asarray(target, dtype=int)"),
            (np.array([True, False]), "target.astype(int)"),
        ],
    )
    @pytest.mark.parametrize("function", [F.cross_entropy, F.nll_loss])
    def test_of_labels_in_floating_point(self, function, argument, code):
        pattern = r"cast them: (\S.*)$"
        assert self.follow(lambda y: function(np.ones((2, 3)), y), "target", argument, pattern) == code

    @pytest.mark.parametrize(
        "labels", [["cat", "dog"], Words(["cat", "dog"]), np.array(["cat", "dog"], object)]
    )
    def test_of_labels_in_words(self, labels):
        pattern = r"by (np.unique\S+ \S+\[1\])"
        self.follow(lambda y: F.cross_entropy(np.ones((2, 3)), y), "target", labels, pattern)

    def test_of_class_indices_among_objects(self):
        labels = np.array([0, 2], object)
        pattern = r"by (np.asarray\(target, dtype=int\))"
        self.follow(lambda y: F.cross_entropy(np.ones((2, 3)), y), "target", labels, pattern)

    def test_of_balanced_weights(self):
        x, y = np.zeros((4, 3)), np.array([0, 1, 2, 2])
        with raises(TypeError, "weight: must hold real numbers, got 'balanced'") as error:
            F.cross_entropy(x, y, "balanced")
        code = re.search(r"weights are (.*)$", str(error.value))[1]
        weights = eval(code, {"target": y, "n_classes": 3, "np": np})
        np.testing.assert_allclose(weights, [4 / 3, 4 / 3, 2 / 3])
        assert np.isfinite(F.cross_entropy(x, y, weights))


class TestArgumentsInTheWrongPlace:
    def test_swapped(self):
        for function in (F.cross_entropy, F.nll_loss):
            with raises(TypeError, "got int64, and float32 for target: they seem to be swapped"):
                function(indices(2), logits(2, 3))

    @pytest.mark.parametrize("function", [F.cross_entropy, F.nll_loss])
    def test_a_reduction_for_the_weight(self, function):
        with raises(
            TypeError,
            "weight: must hold real",
            "To choose the reduction, pass it by keyword",
            "reduction='sum'",
        ):
            function(logits(2, 3), [0, 1], "sum")

    @pytest.mark.parametrize(
        "function",
        [F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.kl_div],
        ids=lambda f: f.__name__,
    )
    def test_a_reduction_for_what_comes_third_elsewhere(self, function):
        with raises(TypeError, "got 'sum'", "reduction='sum'"):
            function(logits(2, 3), logits(2, 3), "sum")

    def test_a_scalar_target(self):
        with raises(ValueError, "target batch_size (0)", "target must have shape [2]; got a scalar"):
            F.cross_entropy(logits(2, 3), 1)

    @pytest.mark.parametrize("module", [cyce.CrossEntropyLoss, cyce.NLLLoss, cyce.BCELoss, cyce.KLDivLoss])
    @pytest.mark.parametrize("target", [np.array([0]), [0], np.zeros((2, 3))], ids=str)
    def test_a_module_that_was_not_made(self, module, target):
        with raises(
            TypeError, "create the loss module first, then call it: CrossEntropyLoss()(input, target)"
        ):
            module(logits(2, 3), target)

    def test_value_and_grad_with_the_loss_s_arguments(self):
        for arguments in ((logits(2, 3), [0, 1]), (F.cross_entropy, logits(2, 3), [0, 1])):
            with raises(TypeError, "value_and_grad(cross_entropy)(input, target)"):
                cyce.value_and_grad(*arguments)
        with raises(
            TypeError, "got an array of shape [2, 3]", "value_and_grad(cross_entropy)(input, target)"
        ):
            cyce.value_and_grad(logits(2, 3))

    @pytest.mark.parametrize(
        "loss",
        [functools.partial(F.cross_entropy, label_smoothing=0.1), lambda x, y: F.cross_entropy(x, y)],
        ids=["partial", "lambda"],
    )
    def test_value_and_grad_of_what_holds_options(self, loss):
        with raises(
            TypeError, "(input, target, label_smoothing=0.1)", "CrossEntropyLoss(label_smoothing=0.1)"
        ):
            cyce.value_and_grad(loss)

    def test_value_and_grad_of_a_class(self):
        with raises(TypeError, "create the module first: BCELoss()"):
            cyce.value_and_grad(cyce.BCELoss)

    @pytest.mark.parametrize("method", ["forward", "__call__"])
    def test_value_and_grad_of_a_module_of_one_s_own(self, method):
        own = type("Own", (cyce.CrossEntropyLoss,), {method: lambda *_: 0.0})
        with raises(TypeError, f"loss: Own overrides {method}, so that its derivatives are unknown"):
            cyce.value_and_grad(own())
