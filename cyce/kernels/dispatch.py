"""Choice of the compiled level: which are built, which this CPU runs, which is in use.

These are separate questions. A level may be missing because the compiler does not know it. A level that is
there may use instructions that this CPU lacks: its module must not even be imported then.
"""

import importlib
import importlib.util
import os
from types import ModuleType

from cyce.kernels._cpu import runnable_levels

LEVELS = ("baseline", "x86_64_v3", "x86_64_v4")
"""All levels, from the most general to the fastest."""


def built_levels() -> tuple[str, ...]:
    """Levels that are compiled into this installation."""
    names = {level: f"{__package__}._cross_entropy_{level}" for level in LEVELS}
    return tuple(level for level, name in names.items() if importlib.util.find_spec(name))


def usable_levels() -> tuple[str, ...]:
    """Levels that are compiled and that this CPU runs."""
    return tuple(level for level in built_levels() if level in runnable_levels())


def load_level(level: str, source: str) -> ModuleType:
    """Import the module that was compiled from a source for a level."""
    if level not in LEVELS:
        raise ImportError(f"CYCE_LEVEL: no level {level!r}; there are {', '.join(LEVELS)}")
    if level not in built_levels():
        raise ImportError(
            f"CYCE_LEVEL: {level} is not compiled into this installation, which has "
            f"{', '.join(built_levels()) or 'no level at all: build it with `python -m pip install .`'}"
        )
    if level not in runnable_levels():
        raise ImportError(f"CYCE_LEVEL: this CPU does not run {level}; it runs {', '.join(usable_levels())}")
    return importlib.import_module(f"{__package__}._{source}_{level}")


level: str = os.environ.get("CYCE_LEVEL") or (usable_levels() or ("baseline",))[-1]
"""The level in use."""

kernels = load_level(level, "cross_entropy")
"""The kernels over classes, of the level in use; the interface is that of `cross_entropy.pyi`."""

elementwise = load_level(level, "elementwise")
"""The kernels of single elements, of the same level; the interface is that of `elementwise.pyi`."""
