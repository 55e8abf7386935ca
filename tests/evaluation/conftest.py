"""Fixtures of the tests of evaluation."""

import pytest


@pytest.fixture
def save_file():
    """Return what writes a safetensors file; tests that use it are marked `safetensors`."""
    from safetensors.numpy import save_file

    return save_file
