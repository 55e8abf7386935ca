"""The examples that train, as programs."""

import re
from pathlib import Path

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
