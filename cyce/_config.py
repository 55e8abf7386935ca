"""What this installation is and does on this machine."""

from typing import Any, Literal, overload

import numpy as np

import cyce
from cyce import _dispatch, _team, _threads


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show the version, the compiled levels, the level in use, OpenMP and the threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default="stdout"
        Whether to print the configuration or to return it as a dictionary, as in
        `numpy.show_config`.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: keys "version", "numpy", "compiled levels" and "usable levels" (tuples
        of str), "level", "openmp" and "debug" (bool: built with CYCE_DEBUG=1, slow and checked), "threads"
        (int: of a call from here, when it is the only one), "serial after fork" (bool: whether this process
        was forked from one whose calls had used threads).

    Raises
    ------
    ValueError
        If `mode` is neither of the two.

    Examples
    --------
    >>> import cyce
    >>> config = cyce.show_config(mode="dicts")
    >>> config["level"] in config["usable levels"]
    True
    """
    if not isinstance(mode, str) or mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: 'stdout' or 'dicts' is needed, got {mode!r}")
    config = {
        "version": cyce.__version__,
        "numpy": np.__version__,
        "compiled levels": _dispatch.built_levels(),
        "usable levels": _dispatch.usable_levels(),
        "level": _dispatch.level,
        "openmp": _team.HAS_OPENMP,
        "debug": _dispatch.kernels.HAS_CHECKS,
        "threads": _threads.get_num_threads(),
        "serial after fork": _team.forked_after_use(),
    }
    if mode == "dicts":
        return config
    width = max(map(len, config))
    for key, value in config.items():
        if isinstance(value, tuple):
            text = ", ".join(value)
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = str(value)
        print(f"{key:{width}}  {text}")
    return None
