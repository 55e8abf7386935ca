"""The examples that train, as programs."""

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def percentages(result):
    """Return the percentages that a program has printed."""
    assert result.returncode == 0, result.stderr
    return [float(number) for number in re.findall(r"(\d+\.\d)%", result.stdout)]


def test_distillation(run_python):
    teacher, of_labels, of_teacher, of_highest = percentages(run_python(str(EXAMPLES / "distill_digits.py")))
    assert teacher > 90
    assert of_teacher > of_labels + 5
    assert of_highest > of_labels + 5


def test_policy_gradient(run_python):
    result = run_python(str(EXAMPLES / "policy_gradient.py"))
    assert percentages(result)[-1] > 85
    rewards = [float(number) for number in re.findall(r"reward (\d\.\d+)", result.stdout)]
    assert rewards[-1] > rewards[0] + 0.2


@pytest.mark.integration
def test_newton_softmax_regression(run_python):
    result = run_python(str(EXAMPLES / "newton_softmax_regression.py"))
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    differences = re.findall(r"from scikit-learn's (\S+) +by at most (\S+)", result.stdout)
    assert [solver for solver, _ in differences] == 2 * ["newton-cg", "lbfgs"]
    for solver, difference in differences:
        # With any tolerance, lbfgs stops where its objective no longer changes: some 1e-6 away.
        assert float(difference) < {"newton-cg": 1e-6, "lbfgs": 1e-5}[solver]
    milliseconds = [float(number) for number in re.findall(r"(\d+\.\d) ms", result.stdout)]
    assert len(milliseconds) == 6
    for ours, newton_cg, lbfgs in (milliseconds[:3], milliseconds[3:]):
        # scikit-learn's default. It takes about twice as long.
        assert ours < lbfgs
        # About as long.
        assert ours < 2 * newton_cg


@pytest.mark.integration
def test_boosting(run_python):
    result = run_python(str(EXAMPLES / "boost_digits.py"))
    accuracies = percentages(result)
    assert len(accuracies) == 8
    assert min(accuracies) > 90
    rows = re.findall(r"% +(\d+\.\d+)  (\d+\.\d+) \((\w+)\)", result.stdout)
    metrics = ["cross_entropy", "cross_entropy", "focal"]
    assert [name for *_, name in rows] == ["mlogloss", *metrics, "multi_logloss", *metrics]
    losses = [(float(log_loss), float(metric)) for log_loss, metric, _ in rows]
    for built_in, plain, smoothed, focal in (losses[:4], losses[4:]):
        # The log loss here, and the metrics of the library and of cyce.
        assert max(*built_in, *plain) - min(*built_in, *plain) < 2e-4
        # The options reach the objective and its metric.
        assert smoothed[0] > plain[0] + 0.02
        assert focal[0] > plain[0] + 0.02
        assert smoothed[1] > smoothed[0] + 0.1
        assert focal[1] < focal[0] - 0.1
    differences = re.findall(r"the same raw scores, .* largest difference (\S+)", result.stdout)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-5
