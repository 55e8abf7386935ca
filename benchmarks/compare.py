"""Time cyce beside its peers: `python -m benchmarks.compare --help`.

Every contender has a process of its own, which is stopped while another one is at work; rounds are
interleaved; a time is the median over the rounds of each round's shortest call.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

from benchmarks import cases, report, tables
from benchmarks.contenders import CONTENDERS, Expected
from benchmarks.processes import ContenderError, Process, note

# Beyond these, contenders keep as much again for what they return.
ARRAYS_PER_CONTENDER = 4


class Bench:
    """A run: its settings, the processes, and what came out."""

    def __init__(self, names, n_rounds, seconds):
        self._names = names
        self._n_rounds = n_rounds
        self._seconds = seconds
        self._processes = {}
        self.versions = {}
        self.missing = {}
        self.left_out = []
        self.results = []

    def run(self, selected):
        """Time all cases, those with the same arrays after one another."""
        order = list(dict.fromkeys(case.arrays for case in selected))
        selected = sorted(selected, key=lambda case: (-case.n_threads, order.index(case.arrays)))
        previous = expected = None
        try:
            for number, case in enumerate(selected):
                progress = f"[{number + 1}/{len(selected)}] {case.shape.name}, {case.mode}, {case.describe()}"
                if previous is None or case.n_threads != previous.n_threads:
                    self.end()
                    self._begin(case.n_threads)
                    previous = None
                if previous is None or case.arrays != previous.arrays:
                    for name in list(self._processes):
                        self._ask(name, {}, "drop")
                    needed = case.logits_bytes * ARRAYS_PER_CONTENDER * len(self._processes)
                    fits = needed <= available_bytes()
                    expected = Expected(cases.make_inputs(*case.arrays)) if fits else None
                previous = case
                if expected is None:
                    note(f"{progress}: left out, it may need {needed / 2**30:.0f} GiB of memory")
                    self.left_out.append(case)
                    continue
                result = self._time(case, expected)
                self.results.append(result)
                note(f"{progress}: {result.describe()}")
        finally:
            self.end()

    def end(self):
        """End the contenders' processes."""
        for process in self._processes.values():
            process.end()
        self._processes = {}

    def _begin(self, n_threads):
        for name in self._names:
            if name in self.missing:
                continue
            try:
                self._processes[name] = Process(name, n_threads)
                self.versions.update(self._processes[name].versions)
            except ContenderError as error:
                self.missing[name] = str(error)
                note(f"missing: {name} ({error})")

    def _time(self, case, expected):
        rounds, troubles = {}, {}
        for name in list(self._processes):
            if self._ask(name, troubles, "prepare", case, expected) is not None:
                rounds[name] = []
        for number in range(self._n_rounds):
            # Nobody is always the first.
            names = list(rounds)
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                seconds = self._ask(name, troubles, "round", self._seconds)
                if seconds is None:
                    del rounds[name]
                else:
                    rounds[name].append(seconds)
        return report.Result(case, rounds, troubles)

    def _ask(self, name, troubles, *request):
        """Return an answer, or None after a note of what went wrong."""
        try:
            return self._processes[name].ask(*request)
        except ContenderError as error:
            troubles[name] = f"{error.kind}: {error}"
            if error.kind != "unsupported":
                note(f"{name} {troubles[name]}")
            if not self._processes[name].alive:
                self.missing[name] = troubles[name]
                del self._processes[name]
            return None


def available_bytes():
    """Return how much memory can be had; no limit where that cannot be known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return float("inf")


def parse(arguments):
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Time cyce's cross-entropy beside its peers', and beside what memory allows.",
        epilog="Filters choose among the cases of the selection; --selection full has all of them.",
    )
    parser.add_argument("--selection", choices=cases.SELECTIONS, default="usual")
    parser.add_argument("--quick", action="store_const", dest="selection", const="quick")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", choices=[*cases.SHAPES, *cases.WIDTHS])
    parser.add_argument("--modes", nargs="+", choices=cases.MODES)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=[*cases.DTYPES, *cases.HALVES],
        help="of half precision, the cases are those that the selection has in float32",
    )
    parser.add_argument("--targets", nargs="+", choices=cases.TARGETS)
    parser.add_argument("--data", nargs="+", choices=cases.DATA)
    parser.add_argument("--threads", nargs="+", type=int, metavar="N")
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", help=f"of {', '.join(CONTENDERS)}; cyce:LEVEL for a level"
    )
    parser.add_argument("--rounds", type=int, help="default: 3 of the quick selection, 7 of the others")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one contender's turn in a round")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all rounds and the machine's description"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a picture")
    settings = parser.parse_args(arguments)
    if settings.rounds is not None and settings.rounds < 1:
        parser.error(f"--rounds: at least 1, got {settings.rounds}")
    quick = settings.selection == "quick"
    if settings.rounds is None:
        settings.rounds = 3 if quick else 7
    if settings.contenders is None:
        # Compiling takes longer than all the rest.
        settings.contenders = [name for name in CONTENDERS if not (quick and name == "torch.compile")]
        settings.contenders[1:1] = other_levels()
    for name in settings.contenders:
        if name.partition(":")[0] not in CONTENDERS:
            parser.error(f"--contenders: no {name!r}; there are {', '.join(CONTENDERS)}")
    selected = cases.SELECTIONS[settings.selection]()
    settings.cases = [
        case
        for case in [*selected, *cases.in_half_precision(selected)]
        if case.shape.name in (settings.shapes or [case.shape.name])
        and case.mode in (settings.modes or [case.mode])
        and case.dtype in (settings.dtypes or cases.DTYPES)
        and case.target in (settings.targets or [case.target])
        and case.data in (settings.data or [case.data])
        and case.n_threads in (settings.threads or [case.n_threads])
    ]
    if not settings.cases:
        parser.error(f"no case of the {settings.selection} selection passes the filters")
    return settings


def other_levels():
    """Name cyce's levels that run here but are not in use."""
    try:
        import cyce
    except ImportError:
        return []
    config = cyce.show_config(mode="dicts")
    return [f"cyce:{level}" for level in config["usable levels"] if level != config["level"]]


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed, or nothing was timed."""
    settings = parse(arguments)
    start = time.monotonic()
    bench = Bench(settings.contenders, settings.rounds, settings.seconds)
    status = 0
    try:
        bench.run(settings.cases)
    except KeyboardInterrupt:
        note("interrupted: what follows is not complete")
        status = 130
    outcome = report.Outcome(
        results=bench.results,
        missing=bench.missing,
        left_out=bench.left_out,
        measured=tables.measured("benchmarks.compare", arguments, bench.versions),
        n_rounds=settings.rounds,
        seconds=time.monotonic() - start,
    )
    print(report.text(outcome))
    if settings.json is not None:
        report.write_json(outcome, settings.json)
    if settings.png is not None and not report.draw(outcome, settings.png):
        note("no picture: neither the limit nor cyce was timed")
    return status or int(any(name.startswith("cyce") for name in report.failed(outcome)) or not bench.results)


if __name__ == "__main__":
    sys.exit(main())
