"""Every test that asks for `level` runs once on the kernels of each level that this CPU has."""

import functools

import numpy as np
import pytest

import cyce
from cyce import _dispatch, functional


@pytest.fixture(params=_dispatch.usable_levels())
def level(request, monkeypatch):
    """Name of a compiled level, which is in use during the test."""
    monkeypatch.setattr(functional, "kernels", _dispatch.load_level(request.param))
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
    return functools.partial(cyce.value_and_grad(functional.cross_entropy))
