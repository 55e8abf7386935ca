"""A progress bar on a terminal: tqdm's where it is installed, else one line of our own."""

import importlib
import os
import time
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """A progress bar on `stream` if that is a terminal, else nothing.

    total: in `unit`; None if it is not known. "B" stands for bytes.
    """

    def __init__(self, total: int | None, unit: str, stream: TextIO, *, shown: bool = True) -> None:
        self._bar: Any = None
        if shown and _is_terminal(stream):
            try:
                tqdm = importlib.import_module("tqdm").tqdm
            except ModuleNotFoundError:
                tqdm = _Line
            columns, rows = _size_of(stream)
            self._bar = tqdm(
                total=total, unit=unit, unit_scale=unit == "B", file=stream, ncols=columns, nrows=rows
            )

    def update(self, n: int, text: str = "") -> None:
        """Show that n more are done."""
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _is_terminal(stream: Any) -> bool:
    """Return whether a stream is an open terminal; what is put in its place may be anything."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _size_of(stream: TextIO) -> tuple[int, int]:
    """Return columns and rows of a terminal, which may not know them: tqdm would show nothing then."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24


class _Line:
    """What is used of tqdm, on one line."""

    WIDTH = 30
    INTERVAL = 0.1

    def __init__(self, total: int | None, unit: str, file: TextIO, **_: Any) -> None:
        self._total, self._unit, self._file = total, unit, file
        self._n, self._text, self._width = 0, "", 0
        self._began = time.perf_counter()
        self._shown_at = 0.0

    def set_postfix_str(self, text: str, **_: Any) -> None:
        """Set what is shown after the bar."""
        self._text = text

    def update(self, n: int) -> None:
        """Show that n more are done, ten times a second at most."""
        self._n += n
        now = time.perf_counter()
        if self._n == self._total or now - self._shown_at >= self.INTERVAL:
            self._shown_at = now
            self._show()

    def _show(self) -> None:
        """Write the line."""
        bar = ""
        if self._total:
            bar = f"[{'#' * (self.WIDTH * self._n // self._total):{self.WIDTH}}] "
        done = f"{self._n}" if self._total is None else f"{self._n}/{self._total}"
        if self._unit == "B":
            seconds = max(time.perf_counter() - self._began, 1e-9)
            done = f"{self._n / 1e9:.2f} GB, {self._n / seconds / 1e9:.2f} GB/s"
        line = f"{bar}{done}  {self._text}".rstrip()
        # Blanks over what is left of a longer line.
        self._file.write(f"\r{line:{self._width}}")
        self._width = len(line)
        self._file.flush()

    def close(self) -> None:
        """End the line."""
        self._show()
        self._file.write("\n")
        self._file.flush()
