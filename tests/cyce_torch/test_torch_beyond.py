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

# Classes that both the student and the teacher lack.
HOLES = torch.zeros(6, 7, dtype=torch.bool)
HOLES[::2, 2] = HOLES[1, 4:] = True


def without_a_class(x, divergence):
    """Return the divergence of logits of which some are -inf."""
    student, teacher = (logits.masked_fill(HOLES, -torch.inf) for logits in (x, TEACHER.to(x.dtype)))
    return CT.distillation_loss(student, teacher, divergence=divergence, reduction="none")


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
    "entropy without a class": lambda x: CT.entropy(x.masked_fill(HOLES, -torch.inf)),
    "forward without a class": lambda x: without_a_class(x, "forward"),
    "reverse without a class": lambda x: without_a_class(x, "reverse"),
    "js without a class": lambda x: without_a_class(x, "js"),
    "selected of sequences": lambda x: CT.selective_log_softmax(
        x.reshape(2, 3, 7), INDEX.reshape(2, 3, 3), axis=-1, return_entropy=True
    ),
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
    wide = variable.detach().double().requires_grad_()
    outputs, exact = (parts(call(logits)) for logits in (variable, wide))
    for results in (outputs, exact):
        sum(output.sum() for output in results).backward()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-5}
    assert variable.grad.dtype == dtype
    torch.testing.assert_close(variable.grad.double(), wide.grad, **tolerance)
    for output, expected in zip(outputs, exact, strict=True):
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, **tolerance)


def test_float32_under_autocast(call):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(output.dtype == torch.float32 for output in parts(call(LOGITS.bfloat16())))


@pytest.mark.integration
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
        (
            lambda x: CT.selective_log_softmax(x, INDEX + 7),
            IndexError,
            r"index\[0, 0\]: \d+ is out",
        ),
        (lambda x: CT.entropy(x, axis=7), IndexError, "axis must be one of"),
    ):
        for variable in (LOGITS, LOGITS.clone().requires_grad_()):
            with pytest.raises(error, match=message):
                wrong(variable)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: CT.distillation_loss(x, TEACHER[:1]), "teacher_logits: must have the shape"),
        (lambda x: CT.distillation_loss(x, TEACHER, divergence="kl"), "divergence: must be"),
        (lambda x: CT.distillation_loss(x, TEACHER, reduction="max"), "not a valid value for reduction"),
        (
            lambda x: CT.distillation_loss(x, TEACHER, divergence="js", beta=2),
            "beta: must be between 0 and 1",
        ),
        (lambda x: CT.distillation_loss(x, TEACHER, 0), "temperature: must be a positive"),
        (lambda x: CT.focal_loss(x, TARGET, -1.0), "gamma: must not be negative"),
        (lambda x: CT.focal_loss(x, TARGET, reduction="max"), "not a valid value for reduction"),
    ],
)
def test_wrong_options_of_a_composition(wrong, message, monkeypatch):
    monkeypatch.setattr(beyond, "takes", lambda *_: False)
    with pytest.raises(ValueError, match=message):
        wrong(LOGITS)


def test_a_certain_sample_of_the_composition(monkeypatch):
    monkeypatch.setattr(beyond, "takes", lambda *_: False)
    variable = torch.tensor([[1e4, 0.0]], requires_grad=True)
    CT.focal_loss(variable, torch.tensor([0]), 0.5).backward()
    assert variable.grad.isfinite().all()


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
