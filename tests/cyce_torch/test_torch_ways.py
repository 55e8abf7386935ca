"""What cyce computes, and what goes to torch's own functions."""

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
import cyce.torch as CT
from platforms import with_thread_list
from torch_losses import DTYPES, HALVES, LOGITS, TARGET, TORCH

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
        with pytest.raises(
            TypeError, match=r"; got input of torch\.float32 on cpu and target of torch\.int32"
        ):
            CT.cross_entropy(LOGITS, TARGET.int(), axis=-1)
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


@pytest.mark.integration
def test_the_core_imports_no_torch(run_python):
    program = (
        "import sys, cyce\n"
        "assert 'torch' not in sys.modules\n"
        "cyce.torch.cross_entropy\n"
        "assert 'torch' in sys.modules\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


def test_modules_are_attributes_of_the_package():
    assert cyce.torch is CT
    assert "torch" in dir(cyce)
