"""Measure everything that the documentation states: `python -m benchmarks.record --help`.

Each bench writes its tables to a file in `benchmarks/results`, in the folder of this make of CPU; the
documentation shows all of them. It takes about an hour, in which the machine must be quiet.
"""

import argparse
import re
import shlex
import subprocess
import sys

from benchmarks import tables

RESULTS = tables.ROOT / "benchmarks" / "results"

ROWS = "'2048 x 32000' '512 x 128256'"
IMAGES = "'(8, 21, 512, 512)' '(16, 19, 513, 513)'"
# One setting at a time is unusual.
PLAIN = "--selection full --targets indices --data normal --threads 2"
RUNS = {
    "cross_entropy": "compare --rounds 4 --modes loss reused fresh --dtypes float32 --targets indices"
    " --contenders cyce torch torch.compile JAX scikit-learn SciPy NumPy limit --shapes '64 x 10' '256 x 100'"
    f" '1024 x 1000' '128 x 21841' '100,000 x 2' '1,000,000 x 10' {ROWS} '1024 x 50257' {IMAGES}",
    "levels": f"compare {PLAIN} --rounds 3 --modes loss reused --dtypes float32 float64"
    f" --contenders cyce cyce:x86_64_v3 cyce:baseline limit --shapes '1024 x 1000' '1,000,000 x 10' {ROWS}",
    "float64": f"compare {PLAIN} --rounds 3 --modes loss reused --dtypes float64"
    f" --contenders cyce torch torch.compile JAX limit --shapes '1024 x 1000' '1,000,000 x 10' {ROWS}",
    "half_precision": "compare --rounds 3 --modes loss reused --dtypes bfloat16 float16"
    f" --contenders cyce torch limit --shapes {ROWS}",
    "threads": "compare --selection full --rounds 3 --modes loss reused --dtypes float32 --targets indices"
    " --data normal --threads 1 2 --contenders cyce limit"
    f" --shapes '1024 x 1000' '1,000,000 x 10' {ROWS} {IMAGES}",
    "elementwise": "elementwise",
    "compositions": "compositions",
    "nll_loss": "compositions --cases nll_loss --shapes '64 x 10' '256 x 100' '1024 x 1000' '16384 x 1000'"
    " '1,000,000 x 10'",
    "second_order": "second_order --rounds-of-boosting 5",
    "linear": "linear --rounds 3",
    "torch": "torch --rounds 3",
    "evaluate": "evaluate --rounds 3 --memory 6",
    "scale": "scale --memory 20",
    "waiting": "waiting",
}
"""By the name of the file: the bench and its arguments."""


def machine_folder():
    """Return the folder of this make of CPU, by what the system tells of it."""
    machine = tables.describe_machine()
    words = [machine.get("model name", machine["system"]), machine.get("cpu family"), machine.get("model")]
    name = "-".join(word for word in words if word).lower()
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def main(arguments=None):
    """Run the benches; return the exit status: 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record", description="Measure everything that the documentation states."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)} (default: all)")
    settings = parser.parse_args(arguments)
    if unknown := set(settings.runs) - set(RUNS):
        parser.error(f"no run {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if tables.commit().endswith("-dirty"):
        parser.error("files were changed since the last commit; times are stated of a commit")
    folder = machine_folder()
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in settings.runs or RUNS:
        bench, *options = shlex.split(RUNS[name])
        print(f"\n## {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{bench}", *options]
        if subprocess.run([*command, "--json", str(folder / f"{name}.json")], cwd=tables.ROOT).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
