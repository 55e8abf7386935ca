"""What came out of a run, as text, JSON and a picture."""

import statistics
from typing import NamedTuple

from benchmarks import tables, turns
from benchmarks.cases import MODES, Case


def is_peer(name):
    """Tell whether a contender is neither cyce nor the limit."""
    return not name.startswith("cyce") and name != "limit"


class Result(NamedTuple):
    """The times of one case."""

    case: Case
    rounds: dict
    """By contender: the shortest call of each round, in seconds."""
    troubles: dict
    """By contender: why there is no time."""

    def seconds(self, name):
        """Return a contender's median, or None if it has none."""
        return statistics.median(self.rounds[name]) if self.rounds.get(name) else None

    def ratio(self, name, to="cyce"):
        """Return how many times as long as another a contender takes, or None."""
        mine, other = self.seconds(name), self.seconds(to)
        return mine / other if mine and other else None

    def fastest_peer(self):
        """Return the name of the fastest peer, or None."""
        peers = [name for name in self.rounds if is_peer(name) and self.seconds(name)]
        return min(peers, key=self.seconds, default=None)

    def describe(self):
        """Return the most important in a few words."""
        if not self.seconds("cyce"):
            return "no time of cyce"
        words = [f"cyce {milliseconds(self.seconds('cyce'))} ms"]
        if self.ratio("cyce", "limit"):
            words.append(f"{self.ratio('cyce', 'limit'):.2f}x the limit")
        peer = self.fastest_peer()
        if peer:
            words.append(f"{peer} {milliseconds(self.seconds(peer))} ms ({self.ratio(peer):.1f}x)")
        return ", ".join(words)


class Outcome(NamedTuple):
    """A whole run."""

    results: list
    missing: dict
    left_out: list
    measured: dict
    """Command, commit, date, machine and versions."""
    n_rounds: int
    seconds: float


def failed(outcome):
    """Return the contenders that were wrong or failed at least once."""
    return {
        name
        for result in outcome.results
        for name, trouble in result.troubles.items()
        if not trouble.startswith("unsupported")
    } | {name for name in outcome.missing if name.startswith("cyce")}


def milliseconds(seconds):
    """Return a time with three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:#.3g}"


def write_json(outcome, path):
    """Write everything, for other programs."""
    measured = {
        **outcome.measured,
        "note": NOTE,
        "missing": outcome.missing,
        "n_rounds": outcome.n_rounds,
        "seconds": round(outcome.seconds, 1),
        "left_out": [case_as_json(case) for case in outcome.left_out],
        "results": [
            {
                **case_as_json(result.case),
                "fastest_peer": result.fastest_peer(),
                "contenders": {
                    name: {
                        "rounds_ms": [seconds * 1e3 for seconds in rounds],
                        "median_ms": result.seconds(name) * 1e3,
                        "gb_per_s": result.case.moved_bytes / result.seconds(name) / 1e9,
                        "times_limit": result.ratio(name, "limit"),
                        "times_cyce": result.ratio(name),
                    }
                    for name, rounds in result.rounds.items()
                },
                "troubles": result.troubles,
            }
            for result in outcome.results
        ],
    }
    tables.write(path, measured, make_tables(outcome))


def case_as_json(case):
    """Return a case as a dictionary."""
    return {**case._asdict(), "shape": list(case.shape.sizes), "name": case.shape.name}


NOTE = (
    "Milliseconds, medians over rounds of each round's shortest call; in parentheses, how many times as long "
    "as cyce. GB/s are of cyce; the limit reads, or copies, the same bytes"
)


def text(outcome):
    """Return tables in Markdown, one for each mode of each kind of case."""
    parts = []
    for table in make_tables(outcome):
        parts += [f"### {table.title}", "", *table.markdown(), ""]
    parts.append(f"{NOTE}.")
    parts += [f"Missing: {name} ({reason})" for name, reason in outcome.missing.items()]
    parts += [
        f"Left out for lack of memory: {case.shape.name}, {case.mode}, {case.describe()}"
        for case in outcome.left_out
    ]
    for result in outcome.results:
        where = f"{result.case.shape.name}, {result.case.mode}, {result.case.describe()}"
        parts += [
            f"{name}: {where}: {trouble.splitlines()[-1] if trouble.strip() else trouble}"
            for name, trouble in result.troubles.items()
            if not trouble.startswith("unsupported")
        ]
    measured = outcome.measured
    about = [measured["machine"].get("model name", ""), f"{measured['machine']['cpus']} CPUs"]
    about += [f"{name} {version}" for name, version in measured["versions"].items()]
    parts.append(f"{', '.join(about)}; {measured['date']}; {outcome.seconds:.0f} s: {measured['command']}")
    return "\n".join(parts)


def make_tables(outcome):
    """Return a table for each mode of each kind of case."""
    groups = {}
    for result in outcome.results:
        groups.setdefault((result.case.describe(), result.case.mode), []).append(result)
    return [
        make_table(f"{MODES[mode]}; {description}", results)
        for (description, mode), results in groups.items()
    ]


def make_table(title, results):
    """Return the table of some cases."""
    names = list(dict.fromkeys(name for result in results for name in result.rounds))
    others = [name for name in names if name not in ("cyce", "limit")]
    has_peers = any(is_peer(name) for name in names)
    rows = []
    for result in results:
        own, limit, peer = result.seconds("cyce"), result.seconds("limit"), result.fastest_peer()
        row = [result.case.shape.name, milliseconds(own) if own else "-"]
        if has_peers:
            row.append(f"{peer}, {turns.rounded(result.ratio(peer), 2)}x" if peer and own else "-")
        row.append(milliseconds(limit) if limit else "-")
        row.append(f"{result.case.moved_bytes / own / 1e9:.1f}" if own else "-")
        for name in others:
            seconds, ratio = result.seconds(name), result.ratio(name)
            share = f" ({turns.rounded(ratio, 2)}x)" if ratio else ""
            row.append(f"{milliseconds(seconds)}{share}" if seconds else "-")
        rows.append(row)
    columns = ["shape", "cyce", *(["fastest peer"] if has_peers else []), "limit", "GB/s", *others]
    return tables.Table(title, columns, rows)


def draw(outcome, path):
    """Draw the first kind of case, a panel for each mode; return whether there was anything to draw.

    Times are over the limit's or, without that, cyce's.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    first = outcome.results[0].case.describe() if outcome.results else ""
    results = [result for result in outcome.results if result.case.describe() == first]
    base = "limit" if any(result.seconds("limit") for result in results) else "cyce"
    results = [result for result in results if result.seconds(base)]
    modes = list(dict.fromkeys(result.case.mode for result in results))
    shapes = list(dict.fromkeys(result.case.shape.name for result in results))
    names = list(dict.fromkeys(name for result in results for name in result.rounds if name != "limit"))
    if not results:
        return False
    figure = Figure(figsize=(4.6 * len(modes), 1.6 + 0.42 * len(shapes)), layout="constrained")
    colors = dict(zip(names, mpl.color_sequences["tab10"] * len(names), strict=False))
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        for name in names:
            points = [
                (result.ratio(name, base), shapes.index(result.case.shape.name))
                for result in results
                if result.case.mode == mode and result.seconds(name)
            ]
            axes.scatter(
                *zip(*points, strict=True) if points else ((), ()),
                label=name,
                color=colors[name],
                marker="D" if name.startswith("cyce") else "o",
                s=55 if name == "cyce" else 28,
                zorder=3 if name == "cyce" else 2,
            )
        axes.axvline(1, color="0.4", linewidth=1)
        axes.set(xscale="log", title=MODES[mode], yticks=range(len(shapes)), yticklabels=shapes)
        axes.grid(axis="both", color="0.9")
        axes.set_axisbelow(True)
    figure.axes[0].invert_yaxis()
    label = {"limit": "reading (loss) or copying (gradient) the logits", "cyce": "cyce's"}[base]
    figure.supxlabel(f"time, as a multiple of {label}", fontsize="medium")
    figure.suptitle(f"{first}; {outcome.measured['machine'].get('model name', '')}", fontsize="medium")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
    return True
