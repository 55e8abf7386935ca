"""torch's own samples and error cases, through cyce.torch and through its patch."""

import contextlib
import copy
import functools
import warnings

import pytest
import torch

with warnings.catch_warnings():
    # torch's test helpers warn of what they do themselves.
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import cyce.torch as CT
from torch_losses import DTYPES, HALVES, LOGITS, NAMES, TARGET, TORCH

# torch's own tests'.
TOLERANCE = {torch.float32: {"rtol": 1.3e-6, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-13}}

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides", "ignore:linear_cross_entropy. ``options`` ignored"
)


def samples(dtypes):
    """Yield torch's own samples of the functions."""
    for name in NAMES:
        n_samples = 0
        for op in (op for op in op_db if op.name == f"nn.functional.{name}" and not op.variant_test_name):
            for dtype in dtypes:
                torch.manual_seed(0)
                for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=False)):
                    n_samples += 1
                    # Others in .ci/run only, which has the time.
                    marks = [] if dtype in (torch.float32, torch.bfloat16) else [pytest.mark.integration]
                    variant = f"{name}-{dtype}-{number}".replace("torch.", "")
                    yield pytest.param(name, sample, id=variant, marks=marks)
        assert n_samples >= 10 * len(dtypes), f"{n_samples} of {name}"


def with_gradients(function, sample, to=None):
    """Return the loss and the gradients of the first inputs, for a random upstream gradient."""

    def converted(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and to is not None:
            return value.detach().to(to)
        return value

    named = {name: converted(value) for name, value in sample.kwargs.items()}
    arguments = [converted(value) for value in sample.args]
    inputs = [converted(sample.input).detach().clone().requires_grad_()]
    if arguments and function.__name__ == "linear_cross_entropy":
        arguments[0] = arguments[0].detach().clone().requires_grad_()
        inputs.append(arguments[0])
        if named.get("linear_bias") is not None:
            named["linear_bias"] = named["linear_bias"].detach().clone().requires_grad_()
            inputs.append(named["linear_bias"])
    loss = function(inputs[0], *arguments, **named)
    return differentiated(loss, inputs, sample.input.dtype)


def differentiated(loss, inputs, dtype):
    """Return a loss and its gradients, for a random upstream gradient whose numbers are of a dtype."""
    torch.manual_seed(1)
    upstream = torch.randn(loss.shape, dtype=torch.float32).to(dtype).to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, inputs, upstream)


def assert_as_good(ours, theirs, exact, one_by_one=True):
    """Assert that losses and gradients are torch's or, in half precision, no further from the truth.

    exact: returns the truth. one_by_one: False if torch rounds products to half precision on the way, so that
    single numbers are better or worse by chance; then, the largest errors are compared.
    """
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
    if ours[0].dtype not in HALVES:
        torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE[ours[0].dtype])
        return
    eps = torch.finfo(ours[0].dtype).eps
    tiny = torch.finfo(torch.float16).smallest_normal * eps
    for our, their, truth in zip(ours, theirs, exact(), strict=True):
        assert our.shape == their.shape
        error = (our.double() - truth).abs()
        # Half an ulp of the result, and of the upstream gradient's product.
        allowed = (their.double() - truth).abs() + eps * truth.abs() + tiny
        if not one_by_one:
            error, allowed = error.max(), allowed.max()
        assert torch.logical_or(error <= allowed + 1e-6, our.isnan() & their.isnan()).all()


def is_of_each_position(name, named):
    """Return whether torch computes a linear layer, and calls cross_entropy then."""
    return name in ("linear_cross_entropy", "LinearCrossEntropyLoss") and named.get("reduction") == "none"


@pytest.mark.parametrize("is_patched", [False, pytest.param(True, marks=pytest.mark.integration)])
@pytest.mark.parametrize(("name", "sample"), list(samples(DTYPES)))
def test_samples(name, sample, is_patched):
    with CT.patch() if is_patched else contextlib.nullcontext():
        function = getattr(torch.nn.functional if is_patched else CT, name)
        assert function is not TORCH[name]
        ours = with_gradients(function, sample)
    theirs = with_gradients(TORCH[name], sample)
    one_by_one = not (is_patched and is_of_each_position(name, sample.kwargs))
    assert_as_good(ours, theirs, lambda: with_gradients(TORCH[name], sample, torch.float64), one_by_one)


def module_samples():
    """Yield torch's own samples of the modules."""
    for name in ("CrossEntropyLoss", "NLLLoss", "BCEWithLogitsLoss", "KLDivLoss", "LinearCrossEntropyLoss"):
        (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, name))
        for dtype in DTYPES:
            torch.manual_seed(0)
            made = info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=False, training=True
            )
            assert len(made) >= 5
            for number, sample in enumerate(made):
                is_brief = dtype == torch.float32 and number < 30
                marks = [] if is_brief else [pytest.mark.integration]
                variant = f"{name}-{dtype}-{number}".replace("torch.", "")
                yield pytest.param(name, sample, id=variant, marks=marks)


@pytest.mark.parametrize(("name", "sample"), list(module_samples()))
def test_samples_of_modules(name, sample):
    arguments, named = sample.constructor_input.args, sample.constructor_input.kwargs
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*arguments, **named)
    torch.manual_seed(0)
    ours = getattr(CT, name)(*arguments, **named)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    dtype = sample.forward_input.args[0].dtype

    def result_of(module, to=None):
        logits, *others = (
            value.detach().clone().to(to if value.is_floating_point() else value.dtype)
            for value in sample.forward_input.args
        )
        logits.requires_grad_()
        return differentiated(module(logits, *others), [logits], dtype)

    expected = result_of(theirs)
    exact = functools.partial(result_of, copy.deepcopy(theirs).double(), torch.float64)
    assert_as_good(result_of(ours), expected, exact)
    with CT.patch():
        by_patch = result_of(theirs)
    assert_as_good(by_patch, expected, exact, not is_of_each_position(name, named))


def error_cases():
    """Yield torch's own error cases of the functions and modules."""
    for name in ("CrossEntropyLoss", "LinearCrossEntropyLoss"):
        (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, name))
        for number, sample in enumerate(
            info.module_error_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
            )
        ):
            yield pytest.param(name, sample, id=f"{name}-{number}")


@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize(("name", "sample"), list(error_cases()))
def test_errors_are_torch_s(name, sample):
    case = sample.module_error_input
    arguments, named = case.constructor_input.args, case.constructor_input.kwargs
    with pytest.raises(sample.error_type, match=sample.error_regex) as theirs:
        getattr(torch.nn, name)(*arguments, **named)(*case.forward_input.args)
    with pytest.raises(sample.error_type, match=sample.error_regex) as ours:
        getattr(CT, name)(*arguments, **named)(*case.forward_input.args)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


WRONG = [
    lambda f, x: f(x, torch.tensor([0, 3, 1])),
    lambda f, x: f(x, torch.tensor([0, 1])),
    lambda f, x: f(x, torch.tensor([0, 1, 2], dtype=torch.int32)),
    lambda f, x: f(x, TARGET, weight=torch.ones(2)),
    lambda f, x: f(x, TARGET, weight=torch.ones(3, dtype=torch.float64)),
    lambda f, x: f(x, TARGET, reduction="average"),
    lambda f, x: f(x, TARGET, label_smoothing=1.5),
    lambda f, x: f(x, torch.nn.functional.one_hot(TARGET)),
    lambda f, x: f(x, "cat"),
    lambda f, x: f(x.long(), TARGET),
    lambda f, x: f(x.detach().numpy(), TARGET),
    lambda f, x: f(x, [0, 1, 2]),
    lambda f, x: f(x),
    lambda f, x: f(x, None),
    lambda f, x: f(x, TARGET, label_smoothing="a"),
    lambda f, x: f(x, TARGET, label_smoothing=torch.tensor([0.1, 0.2])),
    lambda f, x: f(x, TARGET, ignore_index=1.5),
    lambda f, x: f(x, TARGET, weight=torch.ones(3, dtype=torch.int64)),
]


@pytest.mark.parametrize("call", WRONG)
def test_other_errors_are_torch_s(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011  (any: the same is expected of cyce)
        call(TORCH["cross_entropy"], LOGITS.clone().requires_grad_())
    with pytest.raises(type(theirs.value)) as ours:
        call(CT.cross_entropy, LOGITS.clone().requires_grad_())
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)
