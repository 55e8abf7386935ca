"""Fixtures of the tests of cyce.torch."""

import pytest


@pytest.fixture
def without_torch(monkeypatch):
    """Let torch's own functions fail: what passes is computed by cyce."""
    from cyce.torch import tensors

    def refuse(*arguments, **named):
        raise AssertionError("torch's own function was called")

    for name in tensors.TORCH:
        monkeypatch.setitem(tensors.TORCH, name, refuse)
