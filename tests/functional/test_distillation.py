"""The distillation loss, against torch's autograd of its formulas, and near the teacher."""

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F
from autograd_oracle import LAYOUTS, assert_near, double, positions_of, values_and_gradient
from oracle import LONG

distilled = cyce.value_and_grad(F.distillation_loss)
DIVERGENCES = ("forward", "reverse", "js")


def formula(student, teacher, temperature, divergence, beta, axis):
    """Return the divergences of the positions."""
    log_p = torch.log_softmax(student / temperature, axis)
    log_q = torch.log_softmax(teacher / temperature, axis)
    p, q = log_p.exp(), log_q.exp()
    if divergence == "forward":
        return (q * (log_q - log_p)).sum(axis)
    if divergence == "reverse":
        return (p * (log_p - log_q)).sum(axis)
    log_m = torch.log(beta * q + (1 - beta) * p)
    return (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(axis)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_values_and_gradients(level, dtype, rng, shape, axis, divergence, temperature):
    student = (2 * rng.standard_normal(shape)).astype(dtype)
    teacher = (student + rng.standard_normal(shape) + 5).astype(dtype)
    upstream = rng.standard_normal(positions_of(shape, axis)).astype(dtype)
    expected, slopes = values_and_gradient(
        lambda x: formula(x, double(teacher), temperature, divergence, 0.3, axis), student, upstream
    )
    named = {"reduction": "none", "beta": 0.3, "axis": axis}
    values, gradient = distilled(student, teacher, temperature, divergence, grad_output=upstream, **named)
    assert_near(values, expected)
    assert_near(gradient, slopes)
    np.testing.assert_array_equal(
        F.distillation_loss(student, teacher, temperature, divergence, **named), values
    )
    # Where the student's logits are, of another dtype than the teacher's.
    other = np.float64 if dtype == np.float32 else np.float32
    slopes = distilled(student, teacher.astype(other), temperature, divergence, axis=axis)[1]
    distilled(student, teacher.astype(other), temperature, divergence, axis=axis, out=student)
    np.testing.assert_array_equal(student, slopes)


def exact_divergence(student, teacher, temperature, divergence):
    """Return the divergence of one position in long double, and the student's gradient."""
    logits = (np.asarray(array).astype(LONG) / LONG(temperature) for array in (student, teacher))
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in logits)

    def kl(a, b):
        # The sum of b - a is 0; no term is negative.
        return (b - a + a * np.log(a / b)).sum()

    if divergence == "forward":
        value, slopes = kl(q, p), p - q
    elif divergence == "reverse":
        value = kl(p, q)
        slopes = p * (np.log(p / q) - value)
    else:
        m = (p + q) / 2
        value = (kl(q, m) + kl(p, m)) / 2
        slopes = p * (np.log(p / m) - kl(p, m)) / 2
    return value, slopes / LONG(temperature)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("offset", [0, 10, -300])
def test_near_the_teacher_nothing_cancels(level, dtype, rng, offset, temperature, divergence):
    tolerance = 1e-6 if dtype == np.float32 else 1e-9
    for n_classes in (3, 150):
        for distance in (1e-1, 1e-3, 6e-5):
            teacher = (2 * rng.standard_normal(n_classes)).astype(dtype)
            student = (teacher + offset + distance * rng.standard_normal(n_classes)).astype(dtype)
            value, slopes = exact_divergence(student, teacher, temperature, divergence)
            actual, gradient = distilled(student, teacher, temperature, divergence)
            np.testing.assert_allclose(actual, value, rtol=tolerance)
            np.testing.assert_allclose(gradient, slopes, rtol=0, atol=2 * tolerance * np.abs(slopes).max())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_teacher_itself(level, dtype, rng, divergence):
    logits = (20 * rng.standard_normal((30, 200))).astype(dtype)
    values, gradient = distilled(logits, logits, 2.0, divergence, "none")
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_classes_that_one_of_them_lacks(level, dtype):
    student = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, -np.inf], [0.0, 1.0, -np.inf]], dtype)
    teacher = np.array([[0.0, 1.0, -np.inf], [0.0, 1.0, 2.0], [0.0, 1.0, -np.inf]], dtype)
    values, gradient = distilled(student, teacher, reduction="none")
    own = float(F.softmax(student[0], 0)[2])
    np.testing.assert_allclose(values, [-np.log(1 - own), np.inf, 0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 2], own, rtol=1e-6)
    np.testing.assert_array_equal(gradient[2], 0)
    values = F.distillation_loss(student, teacher, divergence="reverse", reduction="none")
    np.testing.assert_allclose(values, [np.inf, -np.log(1 - own), 0], rtol=1e-6)
    # With all the mass of the mixture: finite.
    for beta in np.arange(0.05, 1, 0.05):
        values, gradient = distilled(student, teacher, divergence="js", beta=beta, reduction="none")
        assert np.isfinite(values).all()
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("n_classes", [16, 40, 300])
def test_many_classes_that_both_lack(level, dtype, rng, n_classes, divergence):
    student, teacher = (rng.standard_normal((20, n_classes)).astype(dtype) for _ in range(2))
    lacks = rng.random(n_classes) < 0.4
    named = {"divergence": divergence, "reduction": "none", "temperature": 1.5}
    expected, slopes = distilled(student[:, ~lacks].astype(float), teacher[:, ~lacks].astype(float), **named)
    student[:, lacks] = teacher[:, lacks] = -np.inf
    values, gradient = distilled(student, teacher, **named)
    assert_near(values, expected)
    assert_near(gradient[:, ~lacks], slopes)
    np.testing.assert_array_equal(gradient[:, lacks], 0)


def test_far_from_the_teacher(level, dtype):
    student, teacher = np.array([0.0, 3000.0], dtype), np.array([3000.0, 0.0], dtype)
    for divergence, expected in (("forward", 3000), ("reverse", 3000), ("js", np.log(2))):
        value, gradient = distilled(student, teacher, divergence=divergence)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.isfinite(gradient).all()


class TestReductions:
    def test_weights_and_factors(self, level, dtype, rng):
        student, teacher = (rng.standard_normal((2, 5, 7)).astype(dtype) for _ in range(2))
        weight = rng.random((2, 5))
        weight[0, 1] = 0
        student[0, 1, 3] = np.nan
        values, slopes = distilled(
            student, teacher, 2.0, reduction="none", axis=-1, sample_weight=np.ones((2, 5))
        )
        values[0, 1] = slopes[0, 1] = 0
        for reduction, denominator in (("sum", 1.0), ("batchmean", weight.sum()), ("mean", weight.sum())):
            loss, gradient = distilled(
                student,
                teacher,
                2.0,
                "forward",
                reduction,
                axis=-1,
                sample_weight=weight,
                scale_by_temperature=True,
                grad_output=3.0,
            )
            np.testing.assert_allclose(loss, 4 * (weight * values).sum() / denominator, rtol=1e-5)
            assert_near(gradient, 12 * weight[..., None] * slopes.astype(float) / denominator, 2)
            np.testing.assert_array_equal(gradient[0, 1], 0)

    def test_of_nothing(self, level, dtype):
        empty = np.zeros((0, 3), dtype)
        assert np.isnan(F.distillation_loss(empty, empty))
        assert F.distillation_loss(empty, empty, reduction="sum") == 0
        loss, gradient = distilled(np.ones((2, 3), dtype), np.zeros((2, 3), dtype), sample_weight=[0, 0])
        assert np.isnan(loss)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"teacher_logits": np.zeros((2, 4))},
            r"teacher_logits: must have the shape of student_logits, \[2, 3\]",
        ),
        ({"divergence": "kl"}, "divergence: must be 'forward', 'reverse' or 'js', got 'kl'"),
        ({"beta": 1.5}, "beta: must be between 0 and 1, got 1.5"),
        ({"temperature": 0}, "temperature: must be a positive, finite number"),
        (
            {"reduction": "max"},
            "max is not a valid value for reduction; it must be 'none', 'batchmean', 'mean'",
        ),
        ({"sample_weight": [1.0]}, "sample_weight: must have one number for each position"),
    ],
)
def test_what_is_refused(named, message):
    with pytest.raises(ValueError, match=message):
        F.distillation_loss(
            **{"student_logits": np.zeros((2, 3)), "teacher_logits": np.zeros((2, 3)), **named}
        )
