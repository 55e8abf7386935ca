"""Contenders in turns: each in a process of its own, rounds interleaved. What several benches share."""

import math
import statistics
import time
from typing import NamedTuple

from benchmarks.processes import ContenderError, Process, note


class Turns(NamedTuple):
    """What came out, by contender."""

    seconds: dict[str, list[float]]
    """Of its rounds."""
    prepared: dict[str, object]
    """What its worker's `prepare` returned."""
    troubles: dict[str, str]
    """What went wrong, of those that are not timed."""


def take_turns(what, names, make_worker, n_threads, n_rounds, prepare, versions, in_round=()):
    """Have each contender prepare, and time it in every round; each round begins with another one.

    what: for messages. prepare, in_round: arguments of the worker's methods `prepare` and `round`. versions:
    becomes those of the packages, too.
    """
    processes = {}
    turns = Turns({name: [] for name in names}, {}, {})
    try:
        for name in names:
            try:
                processes[name] = Process(name, n_threads, make_worker)
                versions.update(processes[name].versions)
                turns.prepared[name] = processes[name].ask("prepare", *prepare)
            except ContenderError as error:
                turns.troubles[name] = f"{error.kind}: {error}"
                note(f"{what}, {name}: {turns.troubles[name]}")
        for number in range(n_rounds):
            order = [name for name in names if name not in turns.troubles]
            first = number % max(1, len(order))
            for name in order[first:] + order[:first]:
                turns.seconds[name].append(processes[name].ask("round", *in_round))
    finally:
        for process in processes.values():
            process.end()
    return turns


def shortest(call, seconds, before=None):
    """Call for some time, at least once; return the shortest time of a call, in seconds.

    before: called before each call, and not timed.
    """
    best = math.inf
    end = time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        if before is not None:
            before()
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def rounded(value, n=3):
    """Return a number with n digits, and no exponent where it is large."""
    return f"{value:.0f}" if value >= 10 ** (n - 1) else f"{value:.{n}g}"


def cells(turns, names, unit=1e3, suffix="", digits=1):
    """Return the cells of a table: medians, how many times as long as cyce's, and memory if that is known."""
    base = statistics.median(turns.seconds["cyce"]) if turns.seconds.get("cyce") else None
    row = []
    for name in names:
        if name in turns.troubles:
            row.append("-")
            continue
        median = statistics.median(turns.seconds[name])
        ratio = f" ({median / base:.{digits}f}x)" if base else ""
        peak = turns.prepared[name]
        memory = "" if peak is None else f", {peak / 1e6:.0f} MB"
        row.append(f"{rounded(median * unit)}{suffix}{ratio}{memory}")
    return row
