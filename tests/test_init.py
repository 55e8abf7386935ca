"""The names of the package and of its modules."""

import inspect

import cyce.functional as F


def test_the_public_names_of_functional():
    assert dir(F) == sorted(F.__all__)
    assert not [name for name in dir(F) if name.startswith("_")]
    names = dict(inspect.getmembers(F))
    assert all(callable(value) for value in names.values())
