"""What type checkers make of the public interface, by the uses in `typing_cases.py`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cyce

CASES = Path(__file__).with_name("typing_cases.py")
# Where the package under test is.
ROOT = Path(cyce.__file__).parent.parent


def run(*arguments, folder, **environment):
    """Run a checker in a folder; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=300,
    )
    # 1: it found errors, or there is no such checker.
    assert result.stdout, result.stderr
    assert result.returncode == 1
    return result.stdout


def mypy_errors(folder):
    """Return pairs of line number and message."""
    arguments = ("--strict", "--follow-imports=silent", "--cache-dir=cache", "--output=json", CASES.name)
    # mypy finds installed packages by itself, and refuses them here.
    path = {} if ROOT.name in ("site-packages", "dist-packages") else {"MYPYPATH": str(ROOT)}
    reports = map(json.loads, run("mypy", "--config-file=", *arguments, folder=folder, **path).splitlines())
    return [(report["line"], report["message"]) for report in reports if report["severity"] == "error"]


def pyright_errors(folder):
    """Return pairs of line number and message."""
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}), encoding="utf-8")
    arguments = ("--pythonpath", sys.executable, "--outputjson", CASES.name)
    # Nothing that would ask the network for a newer version.
    output = run("pyright", *arguments, folder=folder, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    reports = json.loads(output)["generalDiagnostics"]
    return [
        (report["range"]["start"]["line"] + 1, report["message"])
        for report in reports
        if report["severity"] == "error"
    ]


@pytest.mark.integration
@pytest.mark.parametrize("errors", [mypy_errors, pyright_errors], ids=["mypy", "pyright"])
def test_exactly_the_wrong_uses_are_reported(errors, tmp_path):
    source = CASES.read_text(encoding="utf-8")
    (tmp_path / CASES.name).write_text(source, encoding="utf-8")
    marks = (re.search(r"# error: (\w+)$", line) for line in source.splitlines())
    expected = {number: mark[1] for number, mark in enumerate(marks, 1) if mark}
    reported = {}
    for number, message in errors(tmp_path):
        reported[number] = f"{reported.get(number, '')}\n{message}"
    assert sorted(reported) == sorted(expected), reported
    for number, word in expected.items():
        assert word in reported[number]
