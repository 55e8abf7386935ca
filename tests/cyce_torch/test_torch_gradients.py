"""Gradients of cyce.torch in torch's graph: retained, accumulated, scaled, differentiated again, in place."""

import gc
import itertools
import sys
import weakref

import pytest
import torch
import torch.utils.checkpoint

import cyce.torch as CT
from cyce.torch import functional
from platforms import with_resource_usage
from torch_losses import LOGITS, TARGET, TORCH, is_by_cyce

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

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    @pytest.mark.parametrize("required", list(itertools.product([False, True], repeat=3))[1:])
    def test_only_what_is_required_of_the_linear_layer(self, monkeypatch, required, dtype):
        computed = []

        def look(*arguments, **named):
            result = compute(*arguments, **named)
            computed.append(tuple(gradient is not None for gradient in result[1]))
            return result

        compute = functional.fused_linear.linear_cross_entropy
        monkeypatch.setattr(functional.fused_linear, "linear_cross_entropy", look)
        found = []
        for is_required in (required, (True, True, True)):
            variables = [LOGITS, torch.eye(3) + 1, torch.ones(3)]
            hidden, weights, bias = (
                variable.to(dtype).requires_grad_(requires)
                for variable, requires in zip(variables, is_required, strict=True)
            )
            CT.linear_cross_entropy(hidden, weights, TARGET, linear_bias=bias).backward()
            found.append([variable.grad for variable in (hidden, weights, bias)])
        assert computed == [required, (True, True, True)]
        for is_required, gradient, among_all in zip(required, *found, strict=True):
            assert torch.equal(gradient, among_all) if is_required else gradient is None

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


@pytest.mark.integration
@with_resource_usage
def test_no_more_memory_than_the_gradient(run_python):
    result = run_python("-c", PEAK)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 200e6 + 20e6
