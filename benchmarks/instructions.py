"""Count the instructions of five kernels: `python -m benchmarks.instructions --help`.

Valgrind's callgrind counts the same on a busy machine as on a quiet one, so that CI can tell whether a kernel
got slower by its code. It says nothing about memory. The level is `x86_64_v3`: valgrind does not run AVX-512.
Counts of each compiler are in `instructions.json`; what valgrind counts of another one cannot be compared.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tables

LEVEL = "x86_64_v3"
N_CALLS = 20
# Growth that is an error.
TOLERANCE = 0.03
COUNTS = Path(__file__).with_name("instructions.json")

PRELUDE = """
import numpy as np
import cyce
import cyce.functional as F
rng = np.random.default_rng(0)
def arrays(n_rows, n_classes, dtype):
    logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    return logits, rng.integers(n_classes, size=n_rows), np.zeros_like(logits)
"""
GRADIENT = """
call = cyce.value_and_grad(F.{function})
for _ in range({n}):
    call(logits, target, out=out)
"""
KERNELS = {
    "rows, loss": """
logits, target, _ = arrays(64, 1000, np.float32)
for _ in range({n}):
    F.cross_entropy(logits, target)
""",
    "rows, gradient": "logits, target, out = arrays(64, 1000, np.float32)"
    + GRADIENT.replace("{function}", "cross_entropy"),
    "rows, gradient, float64": "logits, target, out = arrays(64, 1000, np.float64)"
    + GRADIENT.replace("{function}", "cross_entropy"),
    "tiles, gradient": "logits, target, out = arrays(6400, 10, np.float32)"
    + GRADIENT.replace("{function}", "cross_entropy"),
    "elementwise, gradient": "logits, _, out = arrays(64, 1000, np.float32)\ntarget = np.abs(np.sin(logits))"
    + GRADIENT.replace("{function}", "binary_cross_entropy_with_logits"),
}
"""Programs, by the name of the kernel that they call {n} times."""


def compiler():
    """Return what the kernels were compiled by, such as "GCC 12"."""
    from cyce.kernels import dispatch

    contents = Path(dispatch.load_level(LEVEL, "cross_entropy").__file__).read_bytes()
    found = re.search(rb"(GCC): \([^)]*\) (\d+)|(clang) version (\d+)", contents)
    return b" ".join(part for part in found.groups() if part).decode() if found else "unknown"


def self_cost(text):
    """Return the instructions within the kernels' own modules, of callgrind's output."""
    names, total, inside, of_call = {}, 0, False, False
    for line in text.splitlines():
        if line.startswith("ob="):
            number, name = re.fullmatch(r"ob=\((\d+)\)(?: (.*))?", line).groups()
            names.setdefault(number, name)
            inside = re.search(rf"/kernels/_(cross_entropy|elementwise)_{LEVEL}\.", names[number]) is not None
        elif line.startswith(("cob=", "cfn=", "cfi=")):
            found = re.fullmatch(r"cob=\((\d+)\) (.*)", line)
            if found:
                names.setdefault(*found.groups())
        elif line.startswith("calls="):
            # The next line is what was called, which counts where it is.
            of_call = True
        elif line[:1] in "0123456789+-*" and line:
            if inside and not of_call:
                total += int(line.split()[1])
            of_call = False
    return total


def count(program):
    """Return the instructions that a program takes within the kernels' modules."""
    environment = {**os.environ, "CYCE_LEVEL": LEVEL, "CYCE_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={path}", sys.executable, "-c"]
        process = subprocess.run(
            [*command, PRELUDE + program], env=environment, capture_output=True, text=True, check=False
        )
        if process.returncode:
            raise SystemExit(f"valgrind failed:\n{process.stderr[-3000:]}")
        return self_cost(path.read_text())


def main(arguments=None):
    """Count; return the exit status: 1 if a kernel grew, or there is nothing to compare with."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description="Count the instructions of five kernels."
    )
    parser.add_argument("--update", action="store_true", help="write the counts, in place of those of before")
    settings = parser.parse_args(arguments)
    name = compiler()
    recorded = json.loads(COUNTS.read_text())
    before = recorded.get(name, {})
    idle = count("")
    counts = {
        kernel: (count(program.replace("{n}", str(N_CALLS))) - idle) // N_CALLS
        for kernel, program in KERNELS.items()
    }
    table = tables.Table("", [f"{name}, {LEVEL}", "instructions of a call", "before", "change"], [])
    for kernel, number in counts.items():
        change = f"{number / before[kernel] - 1:+.1%}" if kernel in before else "-"
        table.rows.append([kernel, f"{number:,}", f"{before.get(kernel, 0):,}", change])
    print(*table.markdown(), sep="\n")
    if settings.update:
        COUNTS.write_text(json.dumps({**recorded, name: counts}, indent=1) + "\n")
        return 0
    if not before:
        print(
            f"There are no counts of {name}: run `python -m benchmarks.instructions --update` at the commit "
            "to compare with, and again without --update at this one.",
            file=sys.stderr,
        )
        return 1
    grown = [kernel for kernel, number in counts.items() if number > (1 + TOLERANCE) * before.get(kernel, 0)]
    if grown:
        print(
            f"Grown by more than {TOLERANCE:.0%}: {'; '.join(grown)}. If that is worth it, commit what "
            "`python -m benchmarks.instructions --update` writes, and say why.",
            file=sys.stderr,
        )
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
