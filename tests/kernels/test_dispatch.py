"""Which compiled level is in use, and what show_config says of it."""

import platform
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import cyce
from cyce.kernels import _cpu, dispatch
from cyce.kernels._cpu import runnable_levels
from cyce.threads import team

LEVEL = "import cyce; print(cyce.show_config(mode='dicts')['level'])"


def test_every_level_of_this_machine_was_compiled():
    if platform.machine().lower() in {"x86_64", "amd64"} and sys.platform != "win32":
        assert dispatch.built_levels() == dispatch.LEVELS
    else:
        assert dispatch.built_levels() == ("baseline",)


def test_levels_are_those_of_numpy():
    # An independent way to ask which levels this CPU runs.
    features = np.show_config(mode="dicts")["SIMD Extensions"]
    found = {*features["baseline"], *features["found"]}
    if not any(name.startswith("X86_V") for name in found):
        pytest.skip("this NumPy names no levels")
    assert ("x86_64_v3" in runnable_levels()) == ("X86_V3" in found)
    assert ("x86_64_v4" in runnable_levels()) == ("X86_V4" in found)


def test_the_fastest_is_chosen(run_python):
    result = run_python("-c", LEVEL, environment={"CYCE_LEVEL": ""})
    assert result.stdout.strip() == dispatch.usable_levels()[-1]


@pytest.mark.parametrize("level", dispatch.usable_levels())
def test_a_level_can_be_forced(run_python, level):
    assert run_python("-c", LEVEL, environment={"CYCE_LEVEL": level}).stdout.strip() == level


def test_an_unknown_level(run_python):
    result = run_python("-c", LEVEL, environment={"CYCE_LEVEL": "avx9"})
    assert result.returncode == 1
    assert (
        "ImportError: CYCE_LEVEL: no level 'avx9'; there are baseline, x86_64_v3, x86_64_v4" in result.stderr
    )


def test_a_level_that_this_cpu_does_not_run(monkeypatch):
    monkeypatch.setattr(dispatch, "runnable_levels", lambda: ("baseline",))
    monkeypatch.setattr(dispatch, "built_levels", lambda: ("baseline", "x86_64_v3"))
    with pytest.raises(ImportError, match="CYCE_LEVEL: this CPU does not run x86_64_v3; it runs baseline"):
        dispatch.load_level("x86_64_v3", "cross_entropy")
    assert dispatch.usable_levels() == ("baseline",)


def test_a_level_that_was_not_compiled(monkeypatch):
    monkeypatch.setattr(dispatch, "built_levels", lambda: ("baseline",))
    with pytest.raises(ImportError, match=r"CYCE_LEVEL: x86_64_v4 is not compiled .* which has baseline"):
        dispatch.load_level("x86_64_v4", "cross_entropy")


def test_what_was_left_out():
    left_out = dict(_cpu.left_out())
    if sys.platform == "win32":
        # Microsoft's compiler has no such flags.
        assert left_out.pop("x86_64_v3", None)
        assert left_out.pop("x86_64_v4", None)
    assert left_out == ({} if team.HAS_OPENMP else {"openmp": "CYCE_OPENMP=0"})


def test_show_config_prints(capsys):
    config = cyce.show_config()
    printed = capsys.readouterr().out
    assert printed == f"{config}\n"
    lines = dict(line.split("  ", 1) for line in printed.splitlines())
    assert lines["version"].strip() == cyce.__version__
    assert lines["level"].strip() == dispatch.level
    assert lines["compiled levels"].strip() == ", ".join(dispatch.built_levels())


def test_show_config_returns_dicts(capsys):
    config = cyce.show_config(mode="dicts")
    assert config["threads"] == cyce.get_num_threads()
    assert config["openmp"] is team.HAS_OPENMP
    assert capsys.readouterr().out == ""


def test_show_config_can_be_looked_at(monkeypatch):
    reason = "cc does not take -mavx2 & <others>"
    monkeypatch.setattr(_cpu, "left_out", lambda: {"x86_64_v4": reason})
    config = cyce.show_config(mode="dicts")
    assert repr(config) == f"<cyce {cyce.__version__}, level {dispatch.level}, threads {config['threads']}>"
    assert config["left out"] == {"x86_64_v4": reason}
    assert f"left out           x86_64_v4: {reason}\n" in str(config)
    table = ElementTree.fromstring(config._repr_html_())
    cells = {row[0].text: row[1].text for row in table}
    assert cells["left out"] == f"x86_64_v4: {reason}"
    assert cells["level"] == dispatch.level


def test_show_config_has_no_other_mode():
    with pytest.raises(ValueError, match="mode: must be 'stdout' or 'dicts', got 'json'"):
        cyce.show_config(mode="json")
