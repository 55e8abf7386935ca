"""Losses that torch does not have: differentiable, the same by cyce and as composed of torch's functions."""

import numpy as np
import pytest
import torch

import cyce.functional as F
import cyce.torch as CT
from cyce.torch import beyond

generator = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 7, dtype=torch.float64, generator=generator)
TEACHER = torch.randn(6, 7, dtype=torch.float64, generator=generator)
TARGET = torch.tensor([0, 6, -100, 3, 3, 1])
INDEX = torch.randint(0, 7, (6, 3), generator=generator)
WEIGHT = torch.rand(7, dtype=torch.float64, generator=generator)
MASK = torch.tensor([1.0, 0, 2, 1, 1, 1], dtype=torch.float64)

CALLS = {
    "focal": lambda x: CT.focal_loss(x, TARGET, 1.5, WEIGHT.to(x.dtype), label_smoothing=0.1),
    "focal of each": lambda x: CT.focal_loss(x, TARGET, reduction="none"),
    "forward": lambda x: CT.distillation_loss(x, TEACHER.to(x.dtype), 2.0, sample_weight=MASK.to(x.dtype)),
    "reverse": lambda x: CT.distillation_loss(x, TEACHER.to(x.dtype), 0.7, "reverse", "none"),
    "js": lambda x: CT.distillation_loss(
        x, TEACHER.to(x.dtype), 2.0, "js", beta=0.3, scale_by_temperature=True
    ),
    "entropy": lambda x: CT.entropy(x, temperature=2.0),
    "entropy over rows": lambda x: CT.entropy(x, axis=0),
    "selected": lambda x: CT.selective_log_softmax(x, INDEX, temperature=0.7),
    "selected and entropy": lambda x: CT.selective_log_softmax(x, TARGET.clamp(min=0), return_entropy=True),
}


@pytest.fixture(params=CALLS.values(), ids=CALLS)
def call(request):
    """Return a function of logits."""
    return request.param


def parts(outputs):
    """Return outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_first_and_second_derivatives(call):
    variable = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (variable,))
    assert torch.autograd.gradgradcheck(call, (variable,))


def test_as_composed_of_torch_s_functions(call, monkeypatch):
    def value_and_gradient():
        variable = LOGITS.clone().requires_grad_()
        outputs = parts(call(variable))
        sum(
            (output * torch.arange(output.numel()).reshape(output.shape)).sum() for output in outputs
        ).backward()
        return (*(output.detach() for output in outputs), variable.grad)

    ours = value_and_gradient()
    monkeypatch.setattr(beyond, "takes", lambda *_: False)
    for one, other in zip(ours, value_and_gradient(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(call, dtype):
    variable = LOGITS.to(dtype).requires_grad_()
    outputs = parts(call(variable))
    exact = parts(call(variable.detach().double()))
    sum(output.sum() for output in outputs).backward()
    assert variable.grad.dtype == dtype
    for output, expected in zip(outputs, exact, strict=True):
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)


def test_compiled_and_transformed(call):
    with torch.no_grad():
        expected = parts(call(LOGITS))
        compiled = parts(torch.compile(call, backend="eager")(LOGITS))
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradient = torch.func.grad(lambda x: sum(part.sum() for part in parts(call(x))))(LOGITS)
    variable = LOGITS.clone().requires_grad_()
    sum(part.sum() for part in parts(call(variable))).backward()
    torch.testing.assert_close(gradient, variable.grad)


def test_errors_are_cyce_s():
    for wrong, error, message in (
        (lambda x: CT.distillation_loss(x, TEACHER[:3]), ValueError, "teacher_logits: must have the shape"),
        (lambda x: CT.distillation_loss(x, TEACHER, divergence="kl"), ValueError, "divergence: must be"),
        (
            lambda x: CT.distillation_loss(x, TEACHER, reduction="max"),
            ValueError,
            "not a valid value for reduction",
        ),
        (lambda x: CT.focal_loss(x, TARGET + 5), IndexError, r"Target 11 is out of bounds. target\[1\]"),
        (lambda x: CT.selective_log_softmax(x, INDEX + 7), IndexError, r"out of bounds. index\[0, 0\]"),
        (lambda x: CT.entropy(x, axis=7), IndexError, "axis must be one of"),
    ):
        for variable in (LOGITS, LOGITS.clone().requires_grad_()):
            with pytest.raises(error, match=message):
                wrong(variable)


def test_the_teacher_is_a_constant():
    teacher = TEACHER.clone().requires_grad_()
    student = LOGITS.clone().requires_grad_()
    CT.distillation_loss(student, teacher).backward()
    assert teacher.grad is None
    expected = F.distillation_loss(LOGITS.numpy(), TEACHER.numpy())
    np.testing.assert_allclose(CT.distillation_loss(LOGITS, teacher).item(), expected, rtol=1e-14)


def test_logits_that_were_overwritten():
    variable = LOGITS.clone().requires_grad_()
    logits = variable * 1
    log_p = CT.selective_log_softmax(logits, INDEX)
    logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_p.sum().backward()
