"""Choice of the compiled level: which were built, which this CPU runs, which is in use.

Two separate questions. A level may be missing because the compiler did not know it, and a level that
is there may use instructions that this CPU lacks; its module must then not even be imported.
"""

import importlib
import importlib.util
import os
from types import ModuleType

from cyce._cpu import runnable_levels

LEVELS = ("baseline", "x86_64_v3", "x86_64_v4")
"""All levels that there are, from the most general to the fastest."""


def built_levels() -> tuple[str, ...]:
    """Levels that were compiled into this installation."""
    return tuple(level for level in LEVELS if importlib.util.find_spec(f"cyce._kernels_{level}"))


def usable_levels() -> tuple[str, ...]:
    """Levels that were compiled and that this CPU runs."""
    return tuple(level for level in built_levels() if level in runnable_levels())


def load_level(level: str, source: str = "_kernels") -> ModuleType:
    """Import what was compiled from one source for one level."""
    if level not in LEVELS:
        raise ImportError(f"CYCE_LEVEL: no level {level!r}; there are {', '.join(LEVELS)}")
    if level not in built_levels():
        raise ImportError(
            f"CYCE_LEVEL: {level} is not compiled into this installation, which has "
            f"{', '.join(built_levels()) or 'no level at all: build it with `python -m pip install .`'}"
        )
    if level not in runnable_levels():
        raise ImportError(f"CYCE_LEVEL: this CPU does not run {level}; it runs {', '.join(usable_levels())}")
    return importlib.import_module(f"cyce.{source}_{level}")


level: str = os.environ.get("CYCE_LEVEL") or (usable_levels() or ("baseline",))[-1]
"""The level in use."""

kernels = load_level(level)
"""The kernels of the level in use; the interface is that of `_kernels.pyi`."""

elementwise = load_level(level, "_elementwise")
"""The kernels of single elements, of the same level; the interface is that of `_elementwise.pyi`."""
