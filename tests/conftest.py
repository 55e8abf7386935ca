"""Every test that asks for `level` runs once on the kernels of each level that this CPU has.

With CYCE_LEVEL, all tests run on that one alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cyce
from cyce import functional
from cyce.kernels import dispatch


@pytest.fixture(params=[dispatch.level] if os.environ.get("CYCE_LEVEL") else dispatch.usable_levels())
def level(request, monkeypatch):
    """Name of a compiled level, which is in use during the test."""
    monkeypatch.setattr(dispatch, "kernels", dispatch.load_level(request.param, "cross_entropy"))
    monkeypatch.setattr(dispatch, "elementwise", dispatch.load_level(request.param, "elementwise"))
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    """Return a dtype of logits."""
    return np.dtype(request.param)


@pytest.fixture
def rng():
    """Return random numbers, the same in every run."""
    return np.random.default_rng(20261122)


@pytest.fixture
def threads():
    """Return a function that sets the number of threads for this test."""
    before = cyce.get_num_threads()
    yield cyce.set_num_threads
    cyce.set_num_threads(before)


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
