"""The configuration of this installation on this machine."""

import html
from typing import Any, Literal

import numpy as np

import cyce
from cyce.kernels import _cpu, dispatch
from cyce.memory import pool
from cyce.threads import budget, team


class Config(dict[str, Any]):
    """The configuration as a dict; `str` formats it as a table, notebooks as an HTML table."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as text."""
        return [(name, _text(value)) for name, value in self.items()]

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {text}" for name, text in self.rows())

    def __repr__(self) -> str:
        return f"<cyce {self['version']}, level {self['level']}, threads {self['threads']}>"

    def _repr_html_(self) -> str:
        """Return the table in HTML, for notebooks."""
        rows = (
            f"<tr><th style='text-align: left'>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self.rows()
        )
        return f"<table>{''.join(rows)}</table>"


def _text(value: Any) -> str:
    """Format a value of the configuration."""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {reason}" for name, reason in value.items()) or "nothing"
    return str(value)


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> Config:
    """Show the version, the compiled levels, the level in use, OpenMP and the threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default="stdout"
        Whether to print the configuration or only return it, as in `numpy.show_config`.

    Returns
    -------
    dict
        Keys "version", "numpy", "compiled levels" and "usable levels" (tuples of str), "left out" (dict of
        str: levels or "openmp" that this build lacks, and the reason), "level", "openmp" and "debug" (bool:
        built with CYCE_DEBUG=1, slow and checked), "threads" (int: of a call from this thread, if it is the
        only one), "serial after fork" (bool: whether this process was forked from one whose calls had used
        threads), "idle memory" and "idle memory limit" (int, bytes: what is kept of large arrays that are
        gone, for the next ones, and the most that is, see `CYCE_POOL` in the documentation).
        ``str(config)`` is the printed table; notebooks show the dict as a table.

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
        raise ValueError(f"mode: must be 'stdout' or 'dicts', got {mode!r}")
    config = Config(
        {
            "version": cyce.__version__,
            "numpy": np.__version__,
            "compiled levels": dispatch.built_levels(),
            "usable levels": dispatch.usable_levels(),
            "left out": _cpu.left_out(),
            "level": dispatch.level,
            "openmp": team.HAS_OPENMP,
            "debug": dispatch.kernels.HAS_CHECKS,
            "threads": budget.get_num_threads(),
            "serial after fork": team.forked_after_use(),
            "idle memory": pool.get_idle(),
            "idle memory limit": pool.get_limit(),
        }
    )
    if mode == "stdout":
        print(config)
    return config
