"""Fixtures, and marks that follow from what a test uses.

Every test that asks for `level` runs once on the kernels of each level that this CPU has. With CYCE_LEVEL,
all tests run on that one alone.
"""

import gc
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cyce
from cyce import functional
from cyce.kernels import dispatch
from platforms import LEVELS

# Packages that tests may need: -m "not torch" is for where there is none.
FOREIGN = ("torch", "matplotlib", "dask")
# Fixtures that change what all threads of the process share.
THREAD_UNSAFE = {"capfd", "capsys", "monkeypatch", "recwarn", "run_python", "threads"}


def pytest_configure(config):
    """Leave out the doctests of what cannot be imported without torch, or Dask."""
    for name in ("torch", "dask"):
        if f"not {name}" in config.option.markexpr:
            config.option.ignore = [*(config.option.ignore or []), str(config.rootpath / "cyce" / name)]


def pytest_ignore_collect(collection_path, config):
    """Leave out files that import what is deselected, and may not be there."""
    deselected = [name for name in FOREIGN if f"not {name}" in config.option.markexpr]
    if collection_path.suffix == ".py":
        text = collection_path.read_text(encoding="utf-8")
        for name in deselected:
            if re.search(rf"^(import|from) {name}\b", text, re.M):
                return True
    return None


def pytest_collection_finish():
    """Have the garbage collector pass over what stays for good: torch's modules, and 20,000 tests."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Mark tests by what they use, and let the levels of a case run one after the other, for the oracle."""
    first = {}
    for number, item in enumerate(items):
        fixtures = getattr(item, "fixturenames", ())
        if "level" in fixtures:
            item.add_marker("levels")
        if THREAD_UNSAFE.intersection(fixtures):
            item.add_marker("thread_unsafe")
        if "save_file" in fixtures:
            item.add_marker("safetensors")
        for name in FOREIGN:
            if hasattr(getattr(item, "module", None), name):
                item.add_marker(name)
        # Doctests.
        if item.path.name == "plotting.py":
            item.add_marker("matplotlib")
        for name in ("torch", "dask"):
            if item.path.parent.parts[-2:] == ("cyce", name):
                item.add_marker(name)
        if item.path.suffix == ".md":
            imported = re.findall(r"^>>> (?:import|from) (\w+)", item.path.read_text("utf-8"), re.M)
            for name in FOREIGN:
                if name in imported:
                    item.add_marker(name)
            if not {"scipy", "xgboost", "lightgbm"}.isdisjoint(imported):
                item.add_marker("integration")
        # For the report (--junitxml).
        item.user_properties += [
            ("mark", name) for name in ("levels", "torch") if item.get_closest_marker(name)
        ]
        parameters = dict(item.callspec.indices) if hasattr(item, "callspec") else {}
        parameters.pop("level", None)
        case = (item.nodeid.partition("[")[0], *parameters.items())
        first.setdefault(case, number)
        item.stash[CASE] = first[case]
    items.sort(key=lambda item: item.stash[CASE])


CASE = pytest.StashKey()


@pytest.fixture(params=LEVELS)
def level(request):
    """Name of a compiled level, which is in use during the test."""
    # Not by monkeypatch: with that, pytest-run-parallel runs a test in one thread only.
    before = dispatch.kernels, dispatch.elementwise
    dispatch.kernels = dispatch.load_level(request.param, "cross_entropy")
    dispatch.elementwise = dispatch.load_level(request.param, "elementwise")
    yield request.param
    dispatch.kernels, dispatch.elementwise = before


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    """Return a dtype of logits."""
    return np.dtype(request.param)


class RandomNumbers(threading.local):
    """A numpy.random.Generator for each thread, the same numbers in each."""

    def __init__(self):
        self._generator = np.random.default_rng(20261122)

    def __getattr__(self, name):
        return getattr(self._generator, name)


@pytest.fixture
def rng():
    """Return random numbers, the same in every run and, with pytest-run-parallel, in every thread."""
    return RandomNumbers()


@pytest.fixture
def threads():
    """Return a function that sets the number of threads for this test."""
    before = cyce.get_num_threads()
    yield cyce.set_num_threads
    cyce.set_num_threads(before)


@pytest.fixture
def synchronous():
    """Let Dask run all tasks in this thread."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def loss_and_gradient():
    """Return cross_entropy together with its gradient."""
    return cyce.value_and_grad(functional.cross_entropy)


@pytest.fixture
def run_python(tmp_path):
    """Return a function that runs a program in a fresh interpreter and returns what it did.

    `environment` is added to this process's, from which numbers of threads are left out.
    """

    def run(*arguments, environment=None, timeout=120):
        variables = {**os.environ, **(environment or {})}
        for name in ("CYCE_NUM_THREADS", "OMP_NUM_THREADS"):
            if name not in (environment or {}):
                variables.pop(name, None)
        # The package under test, wherever this process found it, and `functions`.
        folders = [str(Path(cyce.__file__).parent.parent), str(Path(__file__).parent)]
        variables["PYTHONPATH"] = os.pathsep.join([*folders, variables.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=variables,
            cwd=tmp_path,
            timeout=timeout,
        )

    return run
