"""Command line, tables and results file of a bench.

Every bench prints its tables row by row, in Markdown, and writes them to a file with `--json`: with the
command, the commit, the date, the machine and the versions. `docs/` shows such files as they are.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks import turns

ROOT = Path(__file__).parents[1]


class Table(NamedTuple):
    """Cells of a table, as text."""

    title: str
    columns: list
    rows: list

    def markdown(self):
        """Return the lines of the table."""
        head = ["| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        return head + ["| " + " | ".join(row) + " |" for row in self.rows]


def make_parser(module, description, *, rounds, seconds=None, contenders=None, levels=False):
    """Return a parser with the options that all benches have.

    seconds: of a contender's turn. contenders: their names; with `levels`, also cyce:LEVEL.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    if contenders is not None:

        def contender(name):
            if name not in contenders and not (levels and name.startswith("cyce:")):
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(contenders)}")
            return name

        text = "also cyce:LEVEL for a level" if levels else f"of {', '.join(contenders)}"
        parser.add_argument(
            "--contenders", nargs="+", type=contender, default=list(contenders), metavar="NAME", help=text
        )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"(default: {rounds})")
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="of one contender's turn in a round"
        )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the tables, and what was measured on"
    )
    return parser


class Run:
    """A run of a bench: its tables, which are printed as they grow."""

    def __init__(self, module, settings, arguments=None):
        self._module, self._settings, self._arguments = module, settings, arguments
        self.tables = []
        self.versions = {}
        self.failed = False

    def begin_table(self, title, columns):
        """Print the head of a table."""
        if self.tables:
            print()
        self.tables.append(Table(title, columns, []))
        print(*self.tables[-1].markdown(), sep="\n", flush=True)

    def row(self, *cells):
        """Print a row of the last table."""
        self.tables[-1].rows.append(list(cells))
        print(self.tables[-1].markdown()[-1], flush=True)

    def time(self, what, labels, make_worker, prepare, in_round=(), **how):
        """Time a case by all contenders, in turns, for a row of the last table.

        what: for messages. labels: the row's first cells. prepare, in_round: arguments of the worker's
        methods. how: arguments of `turns.cells`.
        """
        names, n_threads, n_rounds = (
            getattr(self._settings, name) for name in ("contenders", "threads", "rounds")
        )
        outcome = turns.take_turns(
            what, names, make_worker, n_threads, n_rounds, prepare, self.versions, in_round
        )
        self.failed |= any(name.startswith("cyce") for name in outcome.troubles)
        self.row(*labels, *turns.cells(outcome, names, **how))

    def end(self, note):
        """Say what the numbers are, write the file; return the exit status: 1 if cyce was wrong or failed."""
        print(f"\n{note}; {describe_run(self._settings.threads, self.versions)}")
        if self._settings.json is not None:
            about = measured(self._module, self._arguments, self.versions)
            write(self._settings.json, {**about, "note": note}, self.tables)
        return int(self.failed)


def measured(module, arguments, versions):
    """Return the command, when, on which machine and of which commit times are.

    arguments: of the command, None for those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--json" in given:
        at = given.index("--json")
        del given[at : at + 2]
    return {
        "command": shlex.join(["python", "-m", module, *given]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": describe_machine(),
        "versions": versions,
    }


def commit():
    """Return the commit that is checked out, followed by "-dirty" if files were changed; "" where unknown."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write(path, about, tables):
    """Write a file of results: what they are of, and tables."""
    contents = {**about, "tables": [table._asdict() for table in tables]}
    path.write_text(as_lines(contents) + "\n", "utf-8")


def as_lines(contents):
    """Return JSON with a line for each field and, of lists, for each item."""

    def line(value):
        return json.dumps(value, ensure_ascii=False)

    fields = []
    for name, value in contents.items():
        items = ",\n  ".join(map(line, value)) if isinstance(value, list) and value else None
        fields.append(f" {line(name)}: " + (line(value) if items is None else f"[\n  {items}\n ]"))
    return "{\n" + ",\n".join(fields) + "\n}"


def describe_run(n_threads, versions):
    """Return the CPU, the number of threads and the versions of a run, in one line."""
    machine = describe_machine()
    packages = " ".join(f"{name} {version}" for name, version in versions.items())
    words = [machine.get("model name", machine["system"]), f"{n_threads} threads", packages]
    return ", ".join(word for word in words if word)


def describe_machine():
    """Return what the times depend on."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = [line.partition(":") for line in cpu_info.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        wanted = ("model name", "cpu family", "model", "cpu MHz")
        machine.update({key: fields[key] for key in wanted if key in fields})
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        # Virtual machines may hide them.
        with contextlib.suppress(OSError):
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
            machine[f"L{level} {kind.lower()} cache"] = size
    return machine
