"""torch's own samples, and random calls: values and gradients beside torch's.

torch is needed, not optional: without it this file is an error, not a skip.
"""

import dataclasses
import warnings
import zlib

import numpy as np
import pytest
import torch

import oracle

with warnings.catch_warnings():
    # torch's test helpers warn of what they do themselves.
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import cyce
import cyce.functional as F
from cyce.linear import chunks
from cyce.memory import pool

DTYPES = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]

# float32: what torch's own tests allow, and what its reductions need. float64: a few eps of the terms.
TOLERANCE = {torch.float32: {"rtol": 1.3e-6, "atol": 1e-5}, torch.float64: {"rtol": 1e-13, "atol": 1e-14}}

# cyce has one exception type per kind of error where torch has RuntimeError for all.
ERRORS = (ValueError, TypeError, IndexError)


def detached(value):
    """Return what cyce gets: the very tensor, without its history; of a dtype, NumPy's."""
    if isinstance(value, torch.dtype):
        return np.dtype(str(value).removeprefix("torch."))
    return value.detach() if isinstance(value, torch.Tensor) else value


def assert_agree(ours, theirs, logits, arguments, named, with_gradient=True):
    """Assert the same value and, of a loss, the same gradient for a random upstream gradient."""
    torch.manual_seed(0)
    variable = logits.detach().clone()
    if with_gradient:
        variable.requires_grad_()
    expected = theirs(variable, *arguments, **named)
    upstream = torch.randn_like(expected) if with_gradient else None
    if with_gradient:
        expected.backward(upstream)
    given = [detached(value) for value in arguments]
    given_named = {name: detached(value) for name, value in named.items()}
    tolerance = TOLERANCE[logits.dtype]
    value = ours(logits.detach(), *given, **given_named)
    assert value.shape == tuple(expected.shape)
    assert value.dtype == detached(expected.dtype)
    np.testing.assert_allclose(value, expected.detach().numpy(), **tolerance)
    if not with_gradient:
        return
    same_value, gradient = cyce.value_and_grad(ours)(
        logits.detach(), *given, **given_named, grad_output=upstream
    )
    np.testing.assert_array_equal(same_value, value)
    np.testing.assert_allclose(gradient, variable.grad.numpy(), **tolerance)


# torch's name of its samples, cyce's function, how many samples there are at least, whether it is a loss
FUNCTIONS = [
    ("nn.functional.cross_entropy", F.cross_entropy, 21, True),
    ("nn.functional.nll_loss", F.nll_loss, 20, True),
    ("nn.functional.binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, 10, True),
    ("nn.functional.binary_cross_entropy", F.binary_cross_entropy, 10, True),
    ("nn.functional.kl_div", F.kl_div, 10, True),
    ("softmax", F.softmax, 5, False),
    ("log_softmax", F.log_softmax, 5, False),
    ("nn.functional.softmin", F.softmin, 5, False),
    ("logsumexp", F.logsumexp, 5, False),
]


def function_samples(dtypes):
    """Yield torch's own samples of the functions that cyce has."""
    for name, ours, n_least, is_loss in FUNCTIONS:
        n_samples = 0
        for op in (op for op in op_db if op.name == name):
            for dtype in dtypes:
                torch.manual_seed(0)
                for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=False)):
                    n_samples += 1
                    variant = f"{ours.__name__}{op.variant_test_name}-{dtype}-{number}".replace("torch.", "")
                    yield pytest.param(ours, op.op, sample, is_loss, id=variant)
        assert n_samples >= 2 * n_least, f"{n_samples} of {name}"


@pytest.mark.filterwarnings("ignore:Implicit dimension choice", "ignore:reduction. 'mean' divides")
@pytest.mark.parametrize(("ours", "theirs", "sample", "is_loss"), list(function_samples(DTYPES)))
def test_samples_of_functions(ours, theirs, sample, is_loss):
    assert_agree(ours, theirs, sample.input, sample.args, sample.kwargs, with_gradient=is_loss)


# cyce's module, how many samples and error cases there are at least, whether it is a loss
MODULES = [
    (cyce.CrossEntropyLoss, 105, 7, True),
    (cyce.NLLLoss, 20, 0, True),
    (cyce.BCEWithLogitsLoss, 5, 0, True),
    (cyce.BCELoss, 5, 0, True),
    (cyce.KLDivLoss, 5, 0, True),
    # Its samples are tested separately: there are several gradients.
    (cyce.LinearCrossEntropyLoss, 0, 5, True),
    (cyce.Softmax, 2, 0, False),
    (cyce.LogSoftmax, 2, 0, False),
    (cyce.Softmin, 1, 0, False),
    (cyce.Softmax2d, 1, 0, False),
]


def module_samples(dtypes, errors=False):
    """Yield torch's own samples, or error cases, of the modules that cyce has."""
    for ours, n_samples, n_errors, is_loss in MODULES:
        if n_samples == 0 and not errors:
            continue
        (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, ours.__name__))
        make = info.module_error_inputs_func if errors else info.module_inputs_func
        if make is None:
            assert errors
            assert n_errors == 0
            continue
        for dtype in dtypes:
            torch.manual_seed(0)
            samples = make(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
            assert len(samples) >= (n_errors if errors else n_samples), f"{len(samples)} of {ours.__name__}"
            for number, sample in enumerate(samples):
                name = f"{ours.__name__}-{dtype}-{number}".replace("torch.", "")
                yield pytest.param(ours, info.module_cls, sample, is_loss, id=name)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice", "ignore:reduction. 'mean' divides")
@pytest.mark.parametrize(("ours", "theirs", "sample", "is_loss"), list(module_samples(DTYPES)))
def test_samples_of_modules(ours, theirs, sample, is_loss):
    arguments, named = sample.constructor_input.args, sample.constructor_input.kwargs
    logits, *others = sample.forward_input.args
    assert not sample.forward_input.kwargs
    module = ours(*map(detached, arguments), **{name: detached(value) for name, value in named.items()})
    assert_agree(module, theirs(*arguments, **named), logits, others, {}, with_gradient=is_loss)


@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize(("ours", "theirs", "sample", "is_loss"), list(module_samples(DTYPES, errors=True)))
def test_error_cases_of_modules(ours, theirs, sample, is_loss):
    case = sample.module_error_input
    arguments, named = case.constructor_input.args, case.constructor_input.kwargs
    with pytest.raises((sample.error_type, *ERRORS), match=sample.error_regex):
        theirs(*arguments, **named)(*case.forward_input.args)
    given = {name: detached(value) for name, value in named.items()}
    if sample.error_regex.startswith("expected scalar type"):
        # A weight of another dtype: cyce casts it.
        ours(*map(detached, arguments), **given)(*map(detached, case.forward_input.args))
        return
    with pytest.raises(ERRORS, match=sample.error_regex):
        ours(*map(detached, arguments), **given)(*map(detached, case.forward_input.args))


def numpy_options(options):
    """Return the options of linear_cross_entropy that torch's stand for."""
    if options is None:
        return None
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return cyce.LinearCrossEntropyOptions(**{name: detached(value) for name, value in fields.items()})


def assert_linear_agree(loss, gradients, expected, variables, shapes=None):
    """Assert the value and the gradients with respect to input, weight and maybe bias."""
    tolerance = TOLERANCE[expected.dtype]
    assert np.shape(loss) == tuple(expected.shape)
    assert loss.dtype == detached(expected.dtype)
    np.testing.assert_allclose(loss, expected.detach().numpy(), **tolerance)
    for gradient, variable in zip(gradients, variables, strict=True):
        assert gradient.shape == tuple(variable.shape)
        np.testing.assert_allclose(gradient, variable.grad.numpy(), **tolerance)


def linear_samples(dtypes):
    """Yield torch's own samples of linear_cross_entropy, of its variants in chunks, too."""
    variants = [op for op in op_db if op.name == "nn.functional.linear_cross_entropy"]
    assert {op.variant_test_name for op in variants} == {"", "chunked", "chunked_none"}
    for op in variants:
        for dtype in dtypes:
            torch.manual_seed(0)
            samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
            assert len(samples) >= 30, f"{len(samples)} of {op.variant_test_name}"
            # Chunks, and half precision, in .ci/run, which has the time.
            marks = [pytest.mark.integration] if op.variant_test_name or dtype in HALVES else []
            for number, sample in enumerate(samples):
                name = f"{op.variant_test_name}-{dtype}-{number}".replace("torch.", "")
                yield pytest.param(op.op, sample, id=name, marks=marks)


@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")
@pytest.mark.parametrize(("theirs", "sample"), list(linear_samples(DTYPES)))
def test_samples_of_linear_cross_entropy(theirs, sample):
    torch.manual_seed(0)
    named = dict(sample.kwargs)
    variables = [sample.input, sample.args[0], named.pop("linear_bias", None)]
    variables = [v.detach().clone().requires_grad_() for v in variables if v is not None]
    bias = variables[2] if len(variables) == 3 else None
    target = sample.args[1]
    expected = theirs(*variables[:2], target, linear_bias=bias, **named)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    given = {name: detached(value) for name, value in named.items()}
    for options in (numpy_options(named.get("options")), named.get("options"), None):
        given["options"] = options
        arguments = [detached(v) for v in (*variables[:2], target)]
        loss, gradients = cyce.value_and_grad(F.linear_cross_entropy)(
            *arguments, linear_bias=detached(bias), **given, grad_output=upstream
        )
        assert_linear_agree(loss, gradients, expected, variables)
        np.testing.assert_array_equal(
            F.linear_cross_entropy(*arguments, linear_bias=detached(bias), **given), loss
        )


def test_error_cases_of_linear_cross_entropy():
    op = next(op for op in op_db if op.name == "nn.functional.linear_cross_entropy")
    cases = list(op.error_inputs("cpu"))
    assert len(cases) >= 6
    for case in cases:
        sample = case.sample_input
        with pytest.raises(ERRORS, match=case.error_regex):
            F.linear_cross_entropy(
                detached(sample.input),
                *map(detached, sample.args),
                **{name: detached(value) for name, value in sample.kwargs.items()},
            )


# torch computes half precision in various ways. What counts is the exact result for the numbers as they are,
# which torch computes in float64.


def in_double(value):
    """Return torch's arguments with the same numbers in float64."""
    if isinstance(value, torch.Tensor) and value.dtype in HALVES:
        return value.detach().double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def assert_half_agrees(array, expected, dtype):
    """Assert that an array has torch's values: float32, or rounded to half precision."""
    tolerance = {**TOLERANCE[torch.float32]}
    if array.dtype != np.float32:
        assert array.dtype == detached(dtype)
        # Half an ulp, at most this relative to a number.
        tolerance["rtol"] += torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(array.astype(np.float64), expected.detach().numpy(), **tolerance)


def assert_half_agrees_with_gradient(ours, theirs, logits, arguments, named, is_loss):
    """Assert the values of logits in half precision and, of a loss, the gradient."""
    variable = in_double(logits).requires_grad_(is_loss)
    named_in_double = {name: in_double(value) for name, value in named.items()}
    expected = theirs(variable, *map(in_double, arguments), **named_in_double)
    given = [detached(value) for value in arguments]
    given_named = {name: detached(value) for name, value in named.items()}
    value = ours(logits, *given, **given_named)
    assert value.shape == tuple(expected.shape)
    assert_half_agrees(value, expected, logits.dtype)
    if is_loss:
        assert value.dtype == np.float32
        upstream = torch.randn_like(expected).to(logits.dtype)
        expected.backward(upstream.double())
        _, gradient = cyce.value_and_grad(ours)(logits, *given, **given_named, grad_output=upstream)
        assert gradient.dtype == detached(logits.dtype)
        assert_half_agrees(gradient, variable.grad, logits.dtype)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice", "ignore:reduction. 'mean' divides")
@pytest.mark.parametrize(("ours", "theirs", "sample", "is_loss"), list(function_samples(HALVES)))
def test_samples_of_functions_in_half_precision(ours, theirs, sample, is_loss):
    torch.manual_seed(0)
    named = dict(sample.kwargs)
    if "dtype" in named:
        # torch's samples cast to float64.
        named["dtype"] = torch.float32
    assert_half_agrees_with_gradient(ours, theirs, sample.input, sample.args, named, is_loss)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice", "ignore:reduction. 'mean' divides")
@pytest.mark.parametrize(("ours", "theirs", "sample", "is_loss"), list(module_samples([torch.bfloat16])))
def test_samples_of_modules_in_half_precision(ours, theirs, sample, is_loss):
    torch.manual_seed(0)
    arguments, named = sample.constructor_input.args, sample.constructor_input.kwargs
    logits, *others = sample.forward_input.args
    module = ours(*map(detached, arguments), **{name: detached(value) for name, value in named.items()})
    reference = theirs(*map(in_double, arguments), **{name: in_double(v) for name, v in named.items()})
    assert_half_agrees_with_gradient(module, reference, logits, others, {}, is_loss)


@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")
@pytest.mark.parametrize(("theirs", "sample"), list(linear_samples([torch.bfloat16])))
def test_samples_of_linear_cross_entropy_in_half_precision(theirs, sample):
    torch.manual_seed(0)
    named = dict(sample.kwargs)
    given = [
        value for value in (sample.input, sample.args[0], named.pop("linear_bias", None)) if value is not None
    ]
    variables = [in_double(value).requires_grad_() for value in given]
    bias = {"linear_bias": variables[2]} if len(variables) == 3 else {}
    in_doubles = {name: in_double(value) for name, value in named.items() if name != "options"}
    expected = theirs(*variables[:2], in_double(sample.args[1]), **bias, **in_doubles)
    upstream = torch.randn_like(expected).to(sample.input.dtype)
    expected.backward(upstream.double())
    ours = {name: detached(value) for name, value in named.items()}
    ours["options"] = numpy_options(named.get("options"))
    if bias:
        ours["linear_bias"] = detached(given[2])
    loss, gradients = cyce.value_and_grad(F.linear_cross_entropy)(
        *map(detached, given[:2]), detached(sample.args[1]), **ours, grad_output=upstream
    )
    assert_half_agrees(loss, expected, sample.input.dtype)
    for gradient, variable in zip(gradients, variables, strict=True):
        assert_half_agrees(gradient, variable.grad, sample.input.dtype)


def linear_module_samples():
    """Yield torch's own samples of LinearCrossEntropyLoss."""
    (info,) = (info for info in module_db if info.module_cls is torch.nn.LinearCrossEntropyLoss)
    for dtype in DTYPES:
        torch.manual_seed(0)
        samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
        assert len(samples) >= 400, f"{len(samples)} of LinearCrossEntropyLoss"
        for number, sample in enumerate(samples):
            # One in four here, the others in the integration stage.
            marks = [pytest.mark.integration] if number % 4 else []
            yield pytest.param(sample, id=f"{dtype}-{number}".replace("torch.", ""), marks=marks)


@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")
@pytest.mark.parametrize("sample", list(linear_module_samples()))
def test_samples_of_linear_cross_entropy_loss(sample):
    torch.manual_seed(0)
    arguments, named = sample.constructor_input.args, sample.constructor_input.kwargs
    hidden, target = sample.forward_input.args
    theirs = torch.nn.LinearCrossEntropyLoss(*arguments, **named)
    given = {name: detached(value) for name, value in named.items()}
    ours = cyce.LinearCrossEntropyLoss(*arguments, **{**given, "options": numpy_options(given["options"])})
    assert ours.linear.weight.shape == tuple(theirs.linear.weight.shape)
    assert ours.linear.weight.dtype == detached(theirs.linear.weight.dtype)
    ours.linear.weight = detached(theirs.linear.weight).numpy()
    if theirs.linear.bias is not None:
        assert ours.linear.bias.shape == tuple(theirs.linear.bias.shape)
        ours.linear.bias = detached(theirs.linear.bias).numpy()
    variable = hidden.detach().clone().requires_grad_()
    expected = theirs(variable, target)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    loss, gradients = cyce.value_and_grad(ours)(detached(hidden), detached(target), grad_output=upstream)
    assert_linear_agree(loss, gradients, expected, [variable, *theirs.linear.parameters()])
    np.testing.assert_array_equal(ours(detached(hidden), detached(target)), loss)


@pytest.mark.parametrize("rows", [1, 5, 64, 4096])
@pytest.mark.parametrize("sizes", [(3, 7), (256, 128_256), (512, 32_000), (7, 3)])
@pytest.mark.parametrize("method", ["aspect_ratio", "aspect_ratio:2", "aspect_ratio:5"])
def test_the_chunks_of_an_aspect_ratio(rows, sizes, method):
    theirs = torch.nn.LinearCrossEntropyOptions(chunking_method=method)
    expected = max(1, theirs._compute_batch_chunk_size(rows, *sizes))
    ours = cyce.LinearCrossEntropyOptions(chunking_method=method)
    assert chunks.rows_per_chunk(ours, rows, rows, *sizes, 4) == expected


RANDOM_SHAPES = [(5,), (4, 3), (7, 40), (3, 9000), (2, 3, 4), (2, 33, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", RANDOM_SHAPES, ids=str)
def test_random_calls(shape, weighted, reduction, smoothing, kind, dtype):
    generator = torch.Generator().manual_seed(
        zlib.crc32(repr((shape, weighted, reduction, smoothing, kind)).encode())
    )
    axis = 0 if len(shape) == 1 else 1
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 4
    named = {"reduction": reduction, "label_smoothing": smoothing}
    if kind == "indices":
        target = torch.randint(shape[axis], shape[:axis] + shape[axis + 1 :], generator=generator)
        named["ignore_index"] = 0
        if target.ndim:
            target[0] = 1
    else:
        target = torch.rand(shape, generator=generator, dtype=dtype)
    if weighted:
        named["weight"] = torch.rand(shape[axis], generator=generator, dtype=dtype) + 0.1
    if kind == "probabilities" and len(shape) > 1:
        # sums over thousands of classes that do not add up to 1
        target /= target.sum(dim=axis, keepdim=True)
    assert_agree(F.cross_entropy, torch.nn.functional.cross_entropy, logits, [target], named)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(5,), (9, 3), (9, 4, 40), (3, 5, 9000)], ids=str)
def test_extensions_by_composition(shape, smoothing, dtype):
    """The extensions of cross_entropy as torch users write them, differentiated by torch."""

    def theirs(logits, target, axis, softcap, temperature, z_loss, sample_weight, normalizer, **named):
        logits = softcap * torch.tanh(logits.movedim(axis, 1 if logits.ndim > 1 else 0) / softcap)
        logits = logits / temperature
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none", **named)
        lse = torch.logsumexp(logits, dim=1 if logits.ndim > 1 else 0)
        return ((losses + z_loss * lse**2 * (target != -1)) * sample_weight).sum() / normalizer

    generator = torch.Generator().manual_seed(zlib.crc32(repr((shape, smoothing)).encode()))
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 4
    target = torch.randint(-1, shape[-1], shape[:-1], generator=generator)
    named = {
        "axis": -1,
        "softcap": 6.0,
        "temperature": 1.5,
        "z_loss": 0.02,
        "sample_weight": torch.rand(shape[:-1], generator=generator, dtype=dtype),
        "normalizer": 17.0,
        "label_smoothing": smoothing,
        "ignore_index": -1,
        "weight": torch.rand(shape[-1], generator=generator, dtype=dtype),
    }
    assert_agree(F.cross_entropy, theirs, logits, [target], named)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("rows", "target", "named"),
    [
        ([[0.0, 1.0]], [-100], {}),
        ([[0.0, 1.0]], [-100], {"reduction": "sum"}),
        ([[0.0, 1.0]], [-100], {"reduction": "none"}),
        ([[0.0, 1.0]], [0], {"weight": [0.0, 1.0]}),
        ([[0.0, 1.0]], [0], {"weight": [-1.0, 1.0], "reduction": "sum"}),
        ([[7.0]], [0], {}),
        ([[1e8, 1e8]], [1], {}),
        ([[0.0, -np.inf, 1.0]], [0], {}),
        ([[0.0, -np.inf, 1.0]], [1], {}),
        ([[0.0, -np.inf, 1.0]], [0], {"label_smoothing": 0.1}),
        ([[0.0, np.inf, 1.0]], [0], {}),
        ([[-np.inf, -np.inf]], [0], {}),
        ([[np.nan, 1.0]], [1], {}),
        ([[np.nan, 1.0], [0.0, 2.0]], [1, 0], {"reduction": "none"}),
    ],
)
def test_edge_values_where_the_two_agree(rows, target, named, dtype):
    if "weight" in named:
        named = {**named, "weight": torch.tensor(named["weight"], dtype=dtype)}
    assert_agree(
        F.cross_entropy,
        torch.nn.functional.cross_entropy,
        torch.tensor(rows, dtype=dtype),
        [torch.tensor(target)],
        named,
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)], ids=str)
def test_empty_batches(shape):
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    for reduction in ("mean", "sum", "none"):
        assert_agree(
            F.cross_entropy,
            torch.nn.functional.cross_entropy,
            torch.zeros(shape),
            [target],
            {"reduction": reduction},
        )


class TestWhereTheTwoDiffer:
    """The table of docs/torch_differences.md: what torch does, and what cyce does."""

    def test_tiny_losses(self):
        logits, target = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([0])
        assert torch.nn.functional.cross_entropy(logits, target) == 0
        loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target)
        assert loss == pytest.approx(4.1223072e-09)
        assert gradient[0, 0] == pytest.approx(-4.1223072e-09)

    def test_ignored_positions_that_are_nan(self):
        logits, target = torch.tensor([[np.nan, 1.0], [0.0, 1.0]]), torch.tensor([-100, 0])
        variable = logits.clone().requires_grad_()
        torch.nn.functional.cross_entropy(variable, target).backward()
        assert variable.grad[0].isnan().any()
        _, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target)
        np.testing.assert_array_equal(gradient[0], [0, 0])

    def test_probability_zero_at_minus_inf(self):
        logits, target = torch.tensor([[0.0, -np.inf]]), torch.tensor([[1.0, 0.0]])
        assert torch.nn.functional.cross_entropy(logits, target).isnan()
        assert F.cross_entropy(logits, target) == 0

    @pytest.mark.parametrize(
        ("logit", "target", "theirs"), [(-50, 0, 0), (-np.inf, 0, np.nan), (np.inf, 1, np.nan)]
    )
    def test_binary_cross_entropy_of_perfect_answers(self, logit, target, theirs):
        arguments = torch.tensor([float(logit)]), torch.tensor([float(target)])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(*arguments)
        np.testing.assert_array_equal(loss, theirs)
        exact = np.float32(np.log1p(np.exp(-abs(float(logit)))))
        assert F.binary_cross_entropy_with_logits(*arguments) == exact

    def test_kl_div_without_mass(self):
        arguments = torch.tensor([-np.inf]), torch.tensor([0.0])
        assert torch.nn.functional.kl_div(*arguments, reduction="sum").isnan()
        assert F.kl_div(*arguments, reduction="sum") == 0

    def test_integer_targets_of_binary_cross_entropies(self):
        given, target = torch.tensor([0.25]), torch.tensor([1])
        for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
            with pytest.raises(RuntimeError):
                getattr(torch.nn.functional, name)(given, target)
            assert getattr(F, name)(given, target) == getattr(F, name)(given, target.float())

    def test_integer_dtypes_of_targets(self):
        logits, target = torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int16)
        with pytest.raises(RuntimeError):
            torch.nn.functional.cross_entropy(logits, target)
        assert F.cross_entropy(logits, target) == np.float32(np.log(3))

    def test_weights_of_another_dtype(self):
        logits, weight = torch.zeros(2, 3), torch.ones(3, dtype=torch.float64)
        with pytest.raises(RuntimeError):
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), weight=weight)
        assert F.cross_entropy(logits, torch.tensor([0, 1]), weight=weight) == np.float32(np.log(3))

    @pytest.mark.parametrize("smoothing", [-0.5, float("nan")])
    def test_smoothing_out_of_range(self, smoothing):
        logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
        torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
        with pytest.raises(ValueError, match="label_smoothing"):
            F.cross_entropy(logits, target, label_smoothing=smoothing)

    def test_integer_logits(self):
        with pytest.raises(NotImplementedError):
            torch.nn.functional.cross_entropy(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]))
        with pytest.raises(TypeError, match="input"):
            F.cross_entropy(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_losses_of_half_precision(self, dtype):
        logits, target = torch.tensor([[0.0, 1.0, 2.0]], dtype=dtype), torch.tensor([1])
        rounded = torch.nn.functional.cross_entropy(logits, target)
        assert rounded.dtype == dtype
        loss = F.cross_entropy(logits, target)
        assert loss == F.cross_entropy(np.float32([[0, 1, 2]]), [1])
        assert loss.dtype == np.float32
        assert float(rounded) == float(torch.tensor(loss).to(dtype)) != loss

    def test_deprecated_arguments(self):
        logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
        with pytest.warns(UserWarning, match="size_average"):
            torch.nn.functional.cross_entropy(logits, target, size_average=False)
        with pytest.warns(DeprecationWarning, match="size_average"):
            F.cross_entropy(logits, target, size_average=False)


class TestTensors:
    """torch's tensors as arguments."""

    def test_a_detached_tensor_is_not_copied(self):
        logits = torch.randn(3, 5)
        _, gradient = cyce.value_and_grad(F.cross_entropy)(logits, [0, 1, 2], out=logits)
        assert gradient is logits
        np.testing.assert_allclose(logits.sum(dim=1), 0, atol=1e-6)

    def test_a_tensor_that_requires_a_gradient(self):
        message = (
            r"Can't call numpy\(\) on Tensor that requires grad\..*; for a loss with a backward pass, use "
        )
        with pytest.raises(TypeError, match=rf"input: cannot be read as an array: {message}cyce\.torch"):
            F.cross_entropy(torch.zeros(1, 2, requires_grad=True), [0])

    def test_a_transposed_tensor(self):
        logits = torch.randn(4, 6, 5).transpose(1, 2)
        target = torch.randint(5, (4, 6))
        assert_agree(F.cross_entropy, torch.nn.functional.cross_entropy, logits, [target], {})


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("n_classes", [2, 10, 1000, pytest.param(50_257, marks=pytest.mark.integration)])
def test_no_further_from_the_truth_than_torch(rng, n_classes, scale, dtype):
    logits = torch.from_numpy(rng.standard_normal((1_000_000 // (n_classes + 1000), n_classes)) * scale).to(
        dtype
    )
    target = torch.from_numpy(rng.integers(n_classes, size=len(logits)))
    exact, exact_gradient, *_ = oracle.per_position(logits, target)
    variable = logits.clone().requires_grad_()
    theirs = torch.nn.functional.cross_entropy(variable, target, reduction="none")
    theirs.sum().backward()
    ours, our_gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none")
    eps = torch.finfo(dtype).eps
    for our, their, truth in (
        (ours, theirs.detach().numpy(), exact),
        (our_gradient, variable.grad.numpy(), exact_gradient),
    ):
        # Half a unit in the last place is what any rounded result may be off.
        assert np.abs(our - truth).max() <= np.abs(their - truth).max() + eps / 2 * np.abs(truth).max()


@pytest.mark.thread_unsafe
def test_a_tensor_keeps_the_memory_of_a_gradient():
    gradient = cyce.value_and_grad(F.cross_entropy)(np.zeros((1024, 1024), np.float32), np.zeros(1024, int))[
        1
    ]
    tensor = torch.from_numpy(gradient)[1:]
    before = pool.get_idle()
    del gradient
    assert pool.get_idle() == before
    del tensor
    assert pool.get_idle() > before
