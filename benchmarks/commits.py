"""Compare the times of two commits: `python -m benchmarks.commits --help`.

Both are built in folders of their own and timed in turns by pytest-benchmark, with the cases of this
checkout. Its files stay in `.benchmarks`, named for the commits, as a history.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tables

STORAGE = tables.ROOT / ".benchmarks"


def run(*command, **named):
    """Run a command; end this program with its output if it fails."""
    process = subprocess.run(command, capture_output=True, text=True, check=False, **named)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{process.stdout}{process.stderr}")
    return process.stdout


def short_name(commit):
    """Return the hash of a commit, as short as git has it."""
    return run("git", "-C", str(tables.ROOT), "rev-parse", "--short", f"{commit}^{{commit}}").strip()


def build(commit, folder):
    """Check a commit out and compile it there; the benches are those of this checkout."""
    run("git", "clone", "--quiet", "--no-checkout", str(tables.ROOT), str(folder))
    run("git", "-C", str(folder), "checkout", "--quiet", commit)
    shutil.rmtree(folder / "benchmarks", ignore_errors=True)
    shutil.copytree(tables.ROOT / "benchmarks", folder / "benchmarks")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", f"-j{os.cpu_count() or 1}"]
    run(*command, cwd=folder, env={**os.environ, "PYTHONPATH": ""})


def time_once(folder, path, keyword):
    """Time the cases at a commit once; return the shortest times, in seconds, by case."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks", "-k", keyword]
    run(*command, f"--benchmark-json={path}", cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    return {case["name"]: case["stats"]["min"] for case in json.loads(path.read_text())["benchmarks"]}


def main(arguments=None):
    """Compare; return the exit status: 1 if a case takes longer than is tolerated."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.commits", description="Compare the times of two commits."
    )
    parser.add_argument("before", help="a commit, such as HEAD~1")
    parser.add_argument("after", nargs="?", default="HEAD", help="another one (default: HEAD)")
    parser.add_argument(
        "-k", dest="keyword", default="1024x1000 or 1000000x10", help="which cases, as of pytest"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each commit is timed (default: 3)")
    parser.add_argument(
        "--tolerance", type=float, default=0.1, help="growth that is an error (default: 0.1, a tenth)"
    )
    settings = parser.parse_args(arguments)
    commits = [short_name(settings.before), short_name(settings.after)]
    if commits[0] == commits[1]:
        parser.error(f"{settings.before} and {settings.after} are one commit, {commits[0]}")
    STORAGE.mkdir(exist_ok=True)
    best = {commit: {} for commit in commits}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {commit: Path(temporary, commit) for commit in commits}
        for commit, folder in folders.items():
            build(commit, folder)
        for number in range(settings.rounds):
            for commit in commits if number % 2 == 0 else commits[::-1]:
                path = STORAGE / f"{commit}-{number}.json"
                for case, seconds in time_once(folders[commit], path, settings.keyword).items():
                    best[commit][case] = min(seconds, best[commit].get(case, seconds))
    table = tables.Table("", ["milliseconds", *commits, "ratio"], [])
    before, after = (best[commit] for commit in commits)
    ratios = {case: after[case] / before[case] for case in after if case in before}
    for case, ratio in ratios.items():
        table.rows.append([case, f"{1e3 * before[case]:.4g}", f"{1e3 * after[case]:.4g}", f"{ratio:.2f}"])
    print(*table.markdown(), sep="\n")
    print(f"\nThe shortest calls of {settings.rounds} rounds in turns; {tables.describe_run(2, {})}")
    return int(any(ratio > 1 + settings.tolerance for ratio in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
