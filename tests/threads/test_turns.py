"""Which turns threads take: `cyce/threads/turns.pxd` compiled alone, threads come as they are told."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

# With the sources, which an installed package has not.
ROOT = Path(__file__).parents[2]

PROGRAM = """
from cyce.threads.turns cimport Turns, begin_turns, next_turn


def turns_of(threads, int n_threads, Py_ssize_t n_items, Py_ssize_t n_at_once):
    cdef Turns turns
    cdef Py_ssize_t first, end
    taken = []
    begin_turns(&turns, n_threads, n_items, n_at_once)
    for thread in threads:
        taken.append((first, end) if next_turn(&turns, thread, &first, &end) else None)
    return taken
"""


@pytest.fixture(scope="module")
def turns_of(tmp_path_factory):
    """Return a function that returns the turns of threads that come in some order, or None for no turn."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    folder = tmp_path_factory.mktemp("turns")
    source = folder / "taken_turns.pyx"
    source.write_text(PROGRAM)
    modules = cythonize(
        [Extension("taken_turns", [str(source)])],
        include_path=[str(ROOT)],
        compiler_directives={"language_level": 3, "cdivision": True},
        quiet=True,
    )
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    spec = importlib.util.spec_from_file_location("taken_turns", command.get_ext_fullpath("taken_turns"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.turns_of


@pytest.mark.integration
def test_each_thread_takes_its_own_part_first(turns_of):
    assert turns_of([0, 1, 2, 1, 0], 3, 60, 10) == [(0, 10), (20, 30), (40, 50), (30, 40), (10, 20)]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("thread", "taken"),
    [(0, [(0, 10), (10, 20), (20, 30), (30, 35), None]), (1, [(20, 30), (30, 35), (0, 10), (10, 20), None])],
)
def test_a_thread_takes_what_another_one_has_left(turns_of, thread, taken):
    # The other one has no CPU.
    assert turns_of([thread] * 5, 2, 35, 10) == taken


@pytest.mark.integration
@pytest.mark.parametrize("n_items", [0, 1, 7, 640, 1001])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 64, 100])
def test_each_item_is_taken_once(turns_of, rng, n_threads, n_items):
    # Beyond 64 threads, some have one part together.
    n_turns = -(-n_items // 7)
    taken = turns_of(rng.integers(0, n_threads, n_turns + 3).tolist(), n_threads, n_items, 7)
    assert taken[n_turns:] == [None] * 3
    items = [np.arange(*turn) for turn in taken[:n_turns]]
    assert all(len(turn) <= 7 for turn in items)
    np.testing.assert_array_equal(np.sort(np.concatenate([np.arange(0), *items])), np.arange(n_items))
