"""The names of the package and of its modules; what is imported when it is first used."""

import inspect

import pytest

import cyce
import cyce.functional as F


def test_the_public_names_of_functional():
    assert dir(F) == sorted(F.__all__)
    assert not [name for name in dir(F) if name.startswith("_")]
    names = dict(inspect.getmembers(F))
    assert all(callable(value) for value in names.values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("dask", "torch")]
    + ["boosting", "plotting", "sharded"],
)
def test_lazy_modules(run_python, name):
    assert name in cyce._LAZY
    program = f"""
import sys
import cyce
before = set(sys.modules)
assert "{name}" in dir(cyce)
assert not {{"cyce.{name}", "dask", "matplotlib", "torch"}} & before
module = cyce.{name}
assert module is sys.modules["cyce.{name}"] and module.__all__
from cyce import {name}
assert {name} is module
"""
    result = run_python("-W", "error", "-c", program)
    assert result.returncode == 0, result.stderr


def test_the_list_has_every_lazy_module():
    assert set(cyce._LAZY) == {"boosting", "dask", "plotting", "sharded", "torch"}


@pytest.mark.matplotlib
def test_plotting_imports_matplotlib_when_it_draws(run_python):
    program = """
import sys
import cyce
cyce.plotting.probabilities
assert "matplotlib" not in sys.modules
cyce.plotting.probabilities([[1.0, 2.0]])
assert "matplotlib" in sys.modules
"""
    result = run_python("-c", program, environment={"MPLBACKEND": "agg"})
    assert result.returncode == 0, result.stderr


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match=r"^module 'cyce' has no attribute 'cross_entorpy'"):
        _ = cyce.cross_entorpy
    assert set(cyce.__all__) <= set(dir(cyce))
