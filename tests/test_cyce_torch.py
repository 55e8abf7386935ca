"""cyce.torch: torch's losses by cyce, beside torch's own, and what goes to torch.

torch is needed, not optional: without it this file is an error, not a skip.
"""

import copy
import gc
import pickle
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.utils.checkpoint

with warnings.catch_warnings():
    # torch's test helpers warn of what they do themselves.
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import cyce
import cyce.functional as F
import cyce.torch as CT
from cyce.torch import tensors
from platforms import with_resource_usage, with_thread_list

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
NAMES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "kl_div", "linear_cross_entropy")
TORCH = {name: getattr(torch.nn.functional, name) for name in NAMES}
# torch's own tests'.
TOLERANCE = {torch.float32: {"rtol": 1.3e-6, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-13}}

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides", "ignore:linear_cross_entropy. ``options`` ignored"
)


def is_by_cyce(loss):
    """Return whether a loss with a gradient was computed by cyce."""
    return loss.grad_fn.name() == "DifferentiableBackward"


@pytest.fixture
def without_torch(monkeypatch):
    """Let torch's own functions fail: what passes is computed by cyce."""

    def refuse(*arguments, **named):
        raise AssertionError("torch's own function was called")

    for name in NAMES:
        monkeypatch.setitem(tensors.TORCH, name, refuse)


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
    torch.manual_seed(1)
    upstream = torch.randn(loss.shape, dtype=torch.float32).to(sample.input.dtype).to(loss.dtype)
    return loss, torch.autograd.grad(loss, inputs, upstream)


@pytest.mark.parametrize(("name", "sample"), list(samples(DTYPES)))
def test_samples(name, sample):
    loss, gradients = with_gradients(getattr(CT, name), sample)
    expected, slopes = with_gradients(TORCH[name], sample)
    assert loss.dtype == expected.dtype
    assert loss.shape == expected.shape
    if sample.input.dtype not in HALVES:
        for ours, theirs in zip((loss, *gradients), (expected, *slopes), strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE[loss.dtype])
        return
    exact, exact_slopes = with_gradients(TORCH[name], sample, torch.float64)
    eps = torch.finfo(loss.dtype).eps
    tiny = torch.finfo(torch.float16).smallest_normal * eps
    for ours, theirs, truth in zip(
        (loss, *gradients), (expected, *slopes), (exact, *exact_slopes), strict=True
    ):
        error = (ours.double() - truth).abs()
        # Half an ulp of the result, and of the upstream gradient's product.
        allowed = (theirs.double() - truth).abs() + eps * truth.abs() + tiny
        assert (error <= allowed + 1e-6).all()


def module_samples():
    """Yield torch's own samples and error cases of the modules."""
    for name in ("CrossEntropyLoss", "NLLLoss", "BCEWithLogitsLoss", "KLDivLoss", "LinearCrossEntropyLoss"):
        (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, name))
        torch.manual_seed(0)
        made = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
        assert len(made) >= 5
        for number, sample in enumerate(made):
            marks = [pytest.mark.integration] if number >= 30 else []
            yield pytest.param(name, sample, id=f"{name}-{number}", marks=marks)


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
    results = []
    for module, patched in ((ours, False), (theirs, False), (theirs, True)):
        logits, *others = (value.detach().clone() for value in sample.forward_input.args)
        logits.requires_grad_()
        if patched:
            with CT.patch():
                loss = module(logits, *others)
        else:
            loss = module(logits, *others)
        torch.manual_seed(1)
        loss.backward(torch.randn_like(loss))
        results.append((loss.detach(), logits.grad))
    for result in (results[0], results[2]):
        torch.testing.assert_close(result, results[1], equal_nan=True, **TOLERANCE[torch.float32])


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


LOGITS = torch.tensor([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [1.0, 1.5, 0.0]])
TARGET = torch.tensor([0, 2, 1])

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


CALLS = {
    "cross_entropy": lambda x: CT.cross_entropy(x, TARGET, label_smoothing=0.1),
    "none": lambda x: CT.cross_entropy(x, TARGET, reduction="none"),
    "extensions": lambda x: CT.cross_entropy(x, TARGET, z_loss=0.1, temperature=2.0),
    "nll_loss": lambda x: CT.nll_loss(x, TARGET),
    "binary": lambda x: CT.binary_cross_entropy_with_logits(x, torch.full((3, 3), 0.3, dtype=x.dtype)),
    "kl_div": lambda x: CT.kl_div(x, torch.full((3, 3), 0.3, dtype=x.dtype), reduction="none"),
    "linear": lambda x: CT.linear_cross_entropy(x, torch.eye(3, dtype=x.dtype), TARGET),
}


class TestGradients:
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_gradcheck(self, call):
        x = LOGITS.double().requires_grad_()
        assert is_by_cyce(call(x))
        assert torch.autograd.gradcheck(call, x)

    @pytest.mark.parametrize("name", [name for name in CALLS if name != "extensions"])
    def test_second_derivatives(self, name):
        x = LOGITS.double().requires_grad_()
        assert torch.autograd.gradgradcheck(CALLS[name], x)

    def test_all_inputs_of_the_linear_layer(self):
        variables = [LOGITS, torch.eye(3) + 1, torch.ones(3)]
        variables = [variable.double().requires_grad_() for variable in variables]

        def call(hidden, weights, bias):
            return CT.linear_cross_entropy(hidden, weights, TARGET, linear_bias=bias)

        assert is_by_cyce(call(*variables))
        assert torch.autograd.gradcheck(call, variables)
        variables[0].requires_grad_(False)
        assert torch.autograd.gradcheck(call, variables)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_a_graph_that_is_retained(self, reduction):
        x = LOGITS.clone().requires_grad_()
        loss = CT.cross_entropy(x, TARGET, reduction=reduction)
        upstream = torch.rand_like(loss) + 0.5
        (first,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
        before = first.clone()
        (second,) = torch.autograd.grad(loss, x, 2 * upstream, retain_graph=True)
        # What was returned is the caller's.
        first.zero_()
        second.zero_()
        (third,) = torch.autograd.grad(loss, x, upstream)
        torch.testing.assert_close(third, before)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, x, upstream)

    def test_accumulation(self):
        x = LOGITS.clone().requires_grad_()
        (CT.cross_entropy(x, TARGET) + 2 * CT.cross_entropy(x, TARGET.flip(0))).backward()
        CT.cross_entropy(x, TARGET).backward()
        y = LOGITS.clone().requires_grad_()
        (TORCH["cross_entropy"](y, TARGET) * 2 + 2 * TORCH["cross_entropy"](y, TARGET.flip(0))).backward()
        torch.testing.assert_close(x.grad, y.grad)

    def test_logits_that_are_overwritten_before_the_backward_pass(self):
        x = LOGITS.clone().requires_grad_()
        logits = x * 1
        loss = CT.cross_entropy(logits, TARGET)
        with torch.no_grad():
            logits.zero_()
        loss.backward()
        y = LOGITS.clone().requires_grad_()
        TORCH["cross_entropy"](y, TARGET).backward()
        torch.testing.assert_close(x.grad, y.grad)
        loss = CT.cross_entropy(x, TARGET)
        with torch.no_grad():
            x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, x, create_graph=True)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_nothing_is_kept(self, without_torch, mode):
        x = LOGITS.clone().requires_grad_()
        with mode():
            logits = x * 1
            loss = CT.cross_entropy(logits, TARGET)
            assert loss.grad_fn is None
            assert not loss.requires_grad
            gone = weakref.ref(logits)
            del logits
        gc.collect()
        assert gone() is None

    def test_memory_is_released_by_the_backward_pass(self):
        x = LOGITS.clone().requires_grad_()
        logits = x * 1
        loss = CT.cross_entropy(logits, TARGET)
        gone = weakref.ref(logits)
        del logits
        loss.backward()
        gc.collect()
        assert gone() is None

    def test_second_derivatives_of_what_torch_does_not_have(self):
        x = LOGITS.clone().requires_grad_()
        loss = CT.cross_entropy(x, TARGET, z_loss=0.1)
        with pytest.raises(RuntimeError, match="z_loss: not in torch, whose second derivatives these are"):
            torch.autograd.grad(loss, x, create_graph=True)

    @pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_hooks_are_called_once(self, create_graph):
        results = []
        for function in (CT.cross_entropy, TORCH["cross_entropy"]):
            x = LOGITS.clone().requires_grad_()
            x.register_hook(lambda slopes: 2 * slopes)
            logits = x * 1
            logits.retain_grad()
            function(logits, TARGET).backward(create_graph=create_graph)
            results.append((x.grad.detach(), logits.grad.detach()))
        torch.testing.assert_close(*results)

    def test_arguments_that_are_overwritten_before_a_second_derivative(self):
        for number in (1, 2):
            arguments = [LOGITS.clone().requires_grad_(), TARGET.clone(), torch.ones(3)]
            loss = CT.cross_entropy(*arguments)
            arguments[number].zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(loss, arguments[0], create_graph=True)
        x = LOGITS.clone().requires_grad_()
        loss = CT.cross_entropy(x, TARGET)
        x.data = torch.zeros(3, 3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, x, create_graph=True)

    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_infinite_upstream_gradients_leave_ignored_positions_alone(self, value, reduction):
        target = torch.tensor([0, -100, 1])
        for function in (CT.cross_entropy, TORCH["cross_entropy"]):
            x = LOGITS.clone().requires_grad_()
            loss = function(x, target, reduction=reduction)
            (slopes,) = torch.autograd.grad(loss, x, torch.full_like(loss, value))
            assert (slopes[1] == 0).all()
            assert not slopes[[0, 2]].isfinite().any()

    @pytest.mark.parametrize("call", ["mean", "none"])
    def test_small_gradients_of_float16_under_loss_scaling(self, call):
        torch.manual_seed(0)
        values = torch.randn(2048, 4000).half()
        target = torch.randint(0, 4000, (2048,))
        results = []
        for function in (CT.cross_entropy, TORCH["cross_entropy"]):
            x = values.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = function(x, target, reduction=call).mean()
            (loss * 65536).backward()
            results.append(x.grad.float())
        torch.testing.assert_close(results[0], results[1], rtol=2e-3, atol=1e-7)

    def test_many_upstream_gradients_at_once(self):
        upstream = torch.tensor([1.0, 2.0])
        results = []
        for function in (CT.cross_entropy, TORCH["cross_entropy"]):
            x = LOGITS.clone().requires_grad_()
            results.append(torch.autograd.grad(function(x, TARGET), x, upstream, is_grads_batched=True)[0])
            results.append(
                torch.autograd.functional.jacobian(
                    lambda x, function=function: function(x, TARGET, reduction="none"), x, vectorize=True
                )
            )
        torch.testing.assert_close(results[:2], results[2:])

    def test_checkpoints_release_what_they_compute_again(self):
        gone = []

        def loss_of(x):
            logits = x.exp()
            gone.append(weakref.ref(logits))
            return CT.cross_entropy(logits, TARGET)

        x = LOGITS.clone().requires_grad_()
        loss = torch.utils.checkpoint.checkpoint(loss_of, x, use_reentrant=False)
        gc.collect()
        assert gone[0]() is None
        loss.backward()
        y = LOGITS.clone().requires_grad_()
        TORCH["cross_entropy"](y.exp(), TARGET).backward()
        torch.testing.assert_close(x.grad, y.grad)

    def test_numbers_that_require_a_gradient_are_refused(self):
        temperature = torch.tensor(1.5, requires_grad=True)
        with pytest.raises(TypeError, match=r"temperature: .* pass temperature\.detach\(\)"):
            CT.cross_entropy(LOGITS, TARGET, temperature=temperature)
        loss = CT.cross_entropy(LOGITS, TARGET, temperature=temperature.detach())
        assert torch.equal(loss, CT.cross_entropy(LOGITS, TARGET, temperature=1.5))

    def test_where_new_tensors_are_does_not_matter(self, without_torch):
        with torch.device("cpu"):
            CT.cross_entropy(LOGITS, TARGET, z_loss=0.1)


class TestInPlace:
    def test_the_gradient_is_where_the_logits_were(self):
        x = LOGITS.clone().requires_grad_()
        logits = x * 1
        loss = CT.cross_entropy(logits, TARGET, inplace=True)
        slopes = []
        logits.register_hook(slopes.append)
        (3 * loss).backward()
        y = LOGITS.clone().requires_grad_()
        (3 * TORCH["cross_entropy"](y, TARGET)).backward()
        torch.testing.assert_close(x.grad, y.grad)
        assert slopes[0].data_ptr() == logits.data_ptr()

    def test_leaves_are_refused(self):
        x = LOGITS.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            CT.cross_entropy(x, TARGET, inplace=True)
        for view in (x[:2], x.view(3, 3)):
            with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
                CT.cross_entropy(view, TARGET[: len(view)], inplace=True)
        assert torch.equal(x, LOGITS)

    def test_others_that_need_the_logits_notice(self):
        x = LOGITS.clone().requires_grad_()
        logits = x.exp()
        CT.cross_entropy(logits, TARGET, inplace=True)
        # exp needs its result.
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.sum().backward()

    def test_a_gradient_that_was_overwritten(self):
        x = LOGITS.clone().requires_grad_()
        logits = x * 1
        loss = CT.cross_entropy(logits, TARGET, inplace=True)
        with torch.no_grad():
            logits.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_second_derivatives_are_refused(self):
        x = LOGITS.clone().requires_grad_()
        loss = CT.cross_entropy(x * 1, TARGET, inplace=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, x, create_graph=True)

    def test_without_a_gradient_nothing_is_overwritten(self):
        logits = LOGITS.clone()
        CT.cross_entropy(logits, TARGET, inplace=True)
        assert torch.equal(logits, LOGITS)


# Ways in which torch calls a function: they return what they make of a loss of logits.


def functorch_grad(function):
    return torch.func.grad(function)(LOGITS)


def jvp(function):
    return torch.func.jvp(function, (LOGITS,), (torch.ones_like(LOGITS),))[1]


def dual(function):
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(LOGITS, torch.ones_like(LOGITS))
        return torch.autograd.forward_ad.unpack_dual(function(x)).tangent


def vmapped(function):
    return torch.vmap(function)(torch.stack([LOGITS, LOGITS + 1]))


def traced(function):
    return torch.jit.trace(function, LOGITS)(LOGITS + 1)


def of_a_subclass(function):
    class Other(torch.Tensor):
        pass

    result = function(LOGITS.as_subclass(Other))
    assert type(result) is Other
    return result.as_subclass(torch.Tensor)


def of_a_view_of_conjugates(function):
    return function(torch.complex(LOGITS, -LOGITS).conj().imag)


WAYS = [functorch_grad, jvp, dual, vmapped, of_a_subclass, of_a_view_of_conjugates]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
class TestWhatGoesToTorch:
    """torch's own function computes what cyce does not."""

    @pytest.mark.parametrize("way", WAYS)
    def test_ways_in_which_torch_calls_functions(self, way):
        ours = way(lambda x: CT.cross_entropy(x, TARGET))
        torch.testing.assert_close(ours, way(lambda x: TORCH["cross_entropy"](x, TARGET)))

    @pytest.mark.parametrize("way", WAYS)
    def test_it_is_torch_that_computes_these(self, without_torch, way):
        with pytest.raises(AssertionError, match="torch's own function was called"):
            way(lambda x: CT.cross_entropy(x, TARGET))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
    def test_tracing(self):
        torch.testing.assert_close(
            traced(lambda x: CT.cross_entropy(x, TARGET)), TORCH["cross_entropy"](LOGITS + 1, TARGET)
        )

    def test_meta_tensors(self):
        target = TARGET.to("meta")
        loss = CT.cross_entropy(LOGITS.to("meta"), target)
        assert loss.device.type == "meta"
        assert loss.shape == ()

    def test_fake_tensors(self):
        with torch._subclasses.FakeTensorMode() as mode:
            loss = CT.cross_entropy(mode.from_tensor(LOGITS), mode.from_tensor(TARGET))
            assert type(loss).__name__ == "FakeTensor"

    def test_probabilities_that_require_a_gradient(self):
        results = []
        for function in (CT.cross_entropy, TORCH["cross_entropy"]):
            q = LOGITS.softmax(1).requires_grad_()
            loss = function(LOGITS, q)
            loss.backward()
            results.append((loss.detach(), q.grad))
        torch.testing.assert_close(*results)

    def test_deprecated_arguments(self):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            loss = CT.cross_entropy(LOGITS, TARGET, size_average=False)
        torch.testing.assert_close(loss, CT.cross_entropy(LOGITS, TARGET, reduction="sum"))

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
    def test_empty_tensors(self, shape):
        x = torch.zeros(shape, requires_grad=True)
        for ours, theirs in ((CT.cross_entropy, TORCH["cross_entropy"]), (CT.nll_loss, TORCH["nll_loss"])):
            target = torch.full(shape[:1], -100)
            assert torch.equal(ours(x, target, reduction="sum"), theirs(x, target, reduction="sum"))

    def test_arguments_that_torch_does_not_have_are_never_dropped(self):
        for named in ({"z_loss": 0.1}, {"axis": -1}, {"sample_weight": torch.ones(3)}, {"empty": "zero"}):
            (name,) = named
            with pytest.raises(
                TypeError, match=f"^{name}: not in torch, and cyce does not compute this call"
            ):
                CT.cross_entropy(LOGITS, TARGET.int(), **named)
        with pytest.raises(ValueError, match="z_loss: must be a finite number"):
            CT.cross_entropy(LOGITS, TARGET, z_loss=float("nan"))


def test_what_cyce_computes(without_torch):
    x = LOGITS.clone().requires_grad_()
    for dtype in DTYPES:
        for tensor in (x.to(dtype), x.to(dtype).T, torch.nn.Parameter(LOGITS.to(dtype)), LOGITS.to(dtype)):
            CT.cross_entropy(tensor, TARGET)
            CT.cross_entropy(tensor, tensor.detach().softmax(1))
            CT.nll_loss(tensor, TARGET, tensor.detach()[0])
            CT.binary_cross_entropy_with_logits(tensor, tensor.detach(), pos_weight=tensor.detach()[0])
            CT.kl_div(tensor, tensor.detach(), reduction="sum", log_target=True)
            CT.linear_cross_entropy(tensor, tensor, TARGET)


def test_extensions_are_those_of_the_functions_of_arrays():
    sample_weight = torch.tensor([1.0, 2.0, 0.5])
    named = {"z_loss": 0.1, "softcap": 3.0, "temperature": 0.5, "label_smoothing": 0.1}
    for reduction in ("mean", "sum", "none"):
        loss = CT.cross_entropy(LOGITS, TARGET, reduction=reduction, sample_weight=sample_weight, **named)
        expected = F.cross_entropy(LOGITS, TARGET, reduction=reduction, sample_weight=sample_weight, **named)
        assert np.array_equal(loss.numpy(), expected)
    along = torch.stack([LOGITS, LOGITS + 1])
    targets = torch.stack([TARGET, TARGET])
    x = along.clone().requires_grad_()
    loss = CT.cross_entropy(x, targets, axis=-1, reduction="none")
    loss.backward(torch.ones_like(loss))
    y = along.clone().requires_grad_()
    TORCH["cross_entropy"](y.movedim(-1, 1), targets, reduction="sum").backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_tiny_losses_keep_their_precision():
    assert CT.cross_entropy(torch.tensor([[20.0, 0, 0]]), torch.tensor([0])).item() == pytest.approx(
        4.12e-9, rel=1e-3
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast(dtype):
    for name, target in (
        ("cross_entropy", TARGET),
        ("nll_loss", TARGET),
        ("binary_cross_entropy_with_logits", LOGITS.sigmoid().to(dtype)),
        ("kl_div", LOGITS.softmax(1).to(dtype)),
    ):
        results = []
        for function in (getattr(CT, name), TORCH[name]):
            x = LOGITS.to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=dtype):
                loss = function(x, target, reduction="sum")
            loss.backward()
            assert x.grad.dtype == dtype
            results.append(loss.detach())
        torch.testing.assert_close(*results)
    with torch.autocast("cpu", dtype=dtype):
        loss = CT.linear_cross_entropy(LOGITS, LOGITS, TARGET)
        assert loss.dtype == TORCH["linear_cross_entropy"](LOGITS, LOGITS, TARGET).dtype


COMPILED = {
    "cross_entropy": lambda x: CT.cross_entropy(2 * x, TARGET, label_smoothing=0.1),
    "none": lambda x: CT.cross_entropy(2 * x, TARGET, reduction="none").exp().sum(),
    "extensions": lambda x: CT.cross_entropy(2 * x, TARGET, z_loss=0.1, axis=-1),
    "nll_loss": lambda x: CT.nll_loss(2 * x, TARGET),
    "binary": lambda x: CT.binary_cross_entropy_with_logits(2 * x, x.detach()),
    "kl_div": lambda x: CT.kl_div(2 * x, x.detach().exp(), reduction="sum"),
    "linear": lambda x: CT.linear_cross_entropy(2 * x, x, TARGET),
    "modules": lambda x: CT.CrossEntropyLoss()(2 * x, TARGET),
}

OPERATORS = {
    "cross_entropy": (TARGET, None, None, "mean", -100, 0.1, 1, None, "nan", 0.0, None, 1.0),
    "cross_entropy of each": (TARGET, None, None, "none", -100, 0.0, 1, None, "nan", 0.0, None, 1.0),
    "nll_loss": (TARGET, None, "sum", -100),
    "binary_cross_entropy_with_logits": (LOGITS.sigmoid(), None, None, "none"),
    "kl_div": (LOGITS.softmax(1), "sum", False),
}


class TestCompilers:
    def compare(self, call, backend):
        torch._dynamo.reset()
        graphs = []

        def look_and_compile(graph, inputs):
            graphs.append(graph.code)
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

        compiled = torch.compile(call, fullgraph=True, backend=look_and_compile)
        results = []
        for function in (compiled, call):
            x = LOGITS.clone().requires_grad_()
            loss = function(x)
            loss.backward()
            results.append((loss.detach(), x.grad))
        torch.testing.assert_close(*results)
        (graph,) = graphs
        assert ("torch.ops.cyce" in graph) == (call is not COMPILED["linear"])

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
    def test_without_a_graph_break(self, call):
        self.compare(call, "aot_eager")

    @pytest.mark.integration
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
    def test_inductor(self, call):
        self.compare(call, "inductor")

    @pytest.mark.filterwarnings("ignore")
    def test_dynamic_shapes(self):
        torch._dynamo.reset()
        compiled = torch.compile(CT.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (3, 4, 7):
                x, target = torch.randn(n, 5, requires_grad=True), torch.randint(0, 5, (n,))
                torch.testing.assert_close(compiled(x, target), TORCH["cross_entropy"](x, target))

    @pytest.mark.filterwarnings("ignore")
    def test_errors_of_compiled_calls(self):
        torch._dynamo.reset()
        compiled = torch.compile(CT.cross_entropy, fullgraph=True, backend="aot_eager")
        with pytest.raises(IndexError, match="Target 3 is out of bounds"):
            compiled(LOGITS, torch.tensor([0, 1, 3]))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("wants_gradient", [True, False])
    @pytest.mark.parametrize("name", OPERATORS)
    def test_operators(self, name, wants_gradient):
        operator = getattr(torch.ops.cyce, name.partition(" ")[0])
        x = LOGITS.clone().requires_grad_(wants_gradient)
        torch.library.opcheck(operator, (x, *OPERATORS[name], wants_gradient))

    @pytest.mark.filterwarnings("ignore")
    def test_export(self):
        class Model(torch.nn.Module):
            def forward(self, x, target):
                return CT.cross_entropy(x, target)

        exported = torch.export.export(Model(), (LOGITS, TARGET))
        torch.testing.assert_close(exported.module()(LOGITS, TARGET), CT.cross_entropy(LOGITS, TARGET))

    @pytest.mark.filterwarnings("ignore")
    def test_second_derivatives_of_compiled_calls_are_refused(self):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: CT.cross_entropy(x, TARGET), fullgraph=True, backend="eager")
        x = LOGITS.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="a compiled or exported loss has no second derivative"):
            torch.autograd.grad(compiled(x), x, create_graph=True)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("dtype", HALVES)
    def test_compiled_autocast(self, dtype):
        def call(x):
            with torch.autocast("cpu", dtype=dtype):
                return CT.cross_entropy(x, target, reduction="sum")

        torch.manual_seed(0)
        x, target = torch.randn(20000, 100).to(dtype), torch.zeros(20000, dtype=torch.int64)
        torch._dynamo.reset()
        loss = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, call(x))

    @pytest.mark.filterwarnings("ignore")
    def test_vmap_inside(self):
        torch._dynamo.reset()
        stacked = torch.stack([LOGITS, LOGITS + 1])
        compiled = torch.compile(
            lambda x: torch.vmap(lambda y: CT.cross_entropy(y, TARGET))(x), fullgraph=True, backend="eager"
        )
        torch.testing.assert_close(
            compiled(stacked), torch.vmap(lambda y: TORCH["cross_entropy"](y, TARGET))(stacked)
        )

    @pytest.mark.filterwarnings("ignore")
    def test_an_exported_call_that_is_differentiated(self):
        class Model(torch.nn.Module):
            def forward(self, x, target):
                return CT.cross_entropy(x, target)

        exported = torch.export.export(Model(), (LOGITS, TARGET))
        x = LOGITS.clone().requires_grad_()
        exported.module()(x, TARGET).backward()
        y = LOGITS.clone().requires_grad_()
        TORCH["cross_entropy"](y, TARGET).backward()
        torch.testing.assert_close(x.grad, y.grad)


class TestModules:
    def test_settings_and_state(self):
        module = CT.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), ignore_index=2, label_smoothing=0.1)
        assert repr(module) == "CrossEntropyLoss()"
        assert list(module.state_dict()) == ["weight"]
        for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(same(LOGITS, TARGET), module(LOGITS, TARGET))
        assert module.double().weight.dtype == torch.float64
        x = LOGITS.double().requires_grad_()
        assert is_by_cyce(module(x, TARGET))


class TestPatch:
    def is_patched(self):
        x = LOGITS.clone().requires_grad_()
        return is_by_cyce(torch.nn.CrossEntropyLoss()(x, TARGET))

    def test_as_a_context_manager(self):
        with CT.patch():
            assert self.is_patched()
        assert not self.is_patched()
        for name in NAMES:
            assert getattr(torch.nn.functional, name) is TORCH[name]

    def test_as_a_call(self):
        patch = CT.patch()
        assert self.is_patched()
        patch.restore()
        assert not self.is_patched()
        patch.restore()
        with CT.patch():
            patch.restore()
            assert self.is_patched()

    def test_the_last_one_restores(self):
        first, second = CT.patch(), CT.patch()
        first.restore()
        assert self.is_patched()
        second.restore()
        assert not self.is_patched()

    def test_what_was_restored_is_not_entered(self):
        patch = CT.patch()
        patch.restore()
        with pytest.raises(RuntimeError, match=r"this patch was restored; call cyce\.torch\.patch\(\) again"):
            patch.__enter__()

    def test_exceptions(self):
        with pytest.raises(ZeroDivisionError), CT.patch():
            1 / 0  # noqa: B018
        assert not self.is_patched()

    def test_what_others_put_there_stays(self, monkeypatch):
        with CT.patch():
            monkeypatch.setattr(torch.nn.functional, "nll_loss", len)
        assert torch.nn.functional.nll_loss is len


class TestCausalLanguageModels:
    def by_hand(self, logits, labels, n_items=None):
        words = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        flat = logits.float().reshape(-1, logits.shape[-1])
        if n_items is None:
            return TORCH["cross_entropy"](flat, words)
        return TORCH["cross_entropy"](flat, words, reduction="sum") / n_items

    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
    @pytest.mark.parametrize("n_items", [None, 7, torch.tensor(7)])
    def test_as_transformers_computes_it(self, without_torch, dtype, n_items):
        torch.manual_seed(0)
        logits = torch.randn(2, 6, 11).to(dtype)
        labels = torch.randint(0, 11, (2, 6))
        labels[1, 3:] = -100
        expected = self.by_hand(logits, labels, n_items)
        for outputs in (logits, {"logits": logits}, type("Outputs", (), {"logits": logits})()):
            loss = CT.causal_lm_loss(outputs, labels, n_items)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, expected)


@with_thread_list
def test_threads_are_torch_s(run_python):
    program = (
        "import os, torch, cyce.torch as CT\n"
        "torch.set_num_threads(1)\n"
        "x, target = torch.zeros(4096, 1000, requires_grad=True), torch.zeros(4096, dtype=torch.int64)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "CT.cross_entropy(x, target).backward()\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert run_python("-c", program).stdout == "0\n"


def test_the_core_imports_no_torch(run_python):
    program = (
        "import sys, cyce\n"
        "assert 'torch' not in sys.modules\n"
        "cyce.torch.cross_entropy\n"
        "assert 'torch' in sys.modules\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


PEAK = """
import resource, torch, cyce.torch as CT

torch.set_num_threads(2)
# logits and gradient: 200 MB each
weights = torch.ones(1, requires_grad=True)
base = torch.randn(1000, 50000)
target = torch.randint(0, 50000, (1000,))
CT.cross_entropy(base[:10] * weights, target[:10]).backward()
logits = base * weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss = CT.cross_entropy(logits, target)
torch.autograd.grad(loss, logits)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@with_resource_usage
def test_no_more_memory_than_the_gradient(run_python):
    result = run_python("-c", PEAK)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 200e6 + 20e6


def test_modules_are_attributes_of_the_package():
    assert cyce.torch is CT
    assert "torch" in dir(cyce)
