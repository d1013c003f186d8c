"""What the samples of :mod:`benchmarks.first_packet` say: medians with their intervals, a table, a plot, and whether
the published shape is there."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import describe

RESAMPLES = 2_000
MARKS = ("<!-- result -->", "<!-- /result -->")
POSITIONS = ("first", "middle", "last", "any")
COLOURS = {
    "no proxy": "#777777",
    "iptables (legacy)": "#c44e52",
    "iptables (nf_tables)": "#dd8452",
    "nftables": "#4c72b0",
    "ipvs": "#55a868",
}


class Summary(NamedTuple):
    """A cell's percentiles (µs of CPU time) and the 95 % bootstrap interval of its median."""

    p01: float
    median: float
    p99: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        """The median and its interval."""
        return f"{self.median:.1f} ({self.low:.1f} to {self.high:.1f})"


Cells = dict[tuple[str, int, str], Summary]


def summary(result: dict[str, Any]) -> Cells:
    """Each cell by mode, number of Services and position."""
    chance = random.Random(result["seed"])
    return {
        (cell["mode"], cell["services"], cell["position"]): _summary(
            [each / 1000 for each in cell["samples_ns"]], chance
        )
        for cell in sorted(result["cells"], key=lambda cell: (cell["mode"], cell["services"], cell["position"]))
    }


def _summary(samples: Sequence[float], chance: random.Random) -> Summary:
    medians = sorted(statistics.median(chance.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    low, high = (medians[round(share * (RESAMPLES - 1))] for share in (0.025, 0.975))
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return Summary(cuts[0], statistics.median(samples), cuts[98], low, high)


def modes_of(cells: Cells) -> list[str]:
    """The proxy modes that were measured, in the order of the colours."""
    there = {mode for mode, services, _ in cells if services}
    return [mode for mode in COLOURS if mode in there]


def counts_of(cells: Cells) -> list[int]:
    """The numbers of Services, rising."""
    return sorted({services for _, services, _ in cells if services})


def as_table(result: dict[str, Any], cells: Cells) -> str:
    """Medians as Markdown, a line for each mode and number of Services."""
    lines = [
        describe(result["machine"]),
        "",
        "| mode | Services | first | middle | last | any: p01 | p50 | p99 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mode in modes_of(cells):
        for services in counts_of(cells):
            row = {position: cells[mode, services, position] for position in POSITIONS}
            places = " | ".join(row[position].shown for position in POSITIONS[:3])
            several = row["any"]
            lines.append(
                f"| {mode} | {services:,} | {places} | {several.p01:.1f} | {several.median:.1f} | {several.p99:.1f} |"
            )
    if direct := cells.get(("no proxy", 0, "direct")):
        lines.append(f"| no proxy, straight to the endpoint | | {direct.shown} | | | {direct.p01:.1f} | "
                     f"{direct.median:.1f} | {direct.p99:.1f} |")  # fmt: skip
    lines += [f"| {mode} | | not measured: {reason} | | | | | |" for mode, reason in result["absent"].items()]
    return "\n".join(lines)


def with_result(page: str, text: str) -> str:
    """The page with ``text`` between its two marks; a page without them stays as it is."""
    before, opening, rest = page.partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    return f"{before}{opening}\n\n{text}\n\n{closing}{after}" if closing else page


def verdicts(cells: Cells) -> list[tuple[bool, str]]:
    """Whether each part of the published shape is there, and the sentence that says so with its figures."""
    counts = counts_of(cells)
    if len(counts) < 2:
        return []
    modes, few, many = modes_of(cells), counts[0], counts[-1]
    slow = [mode for mode in modes if mode.startswith("iptables")]
    told = [_linear(cells, mode, many) if mode in slow else _flat(cells, mode, few, many) for mode in modes]
    return told + [_below(cells, mode, many) for mode in slow if "nftables" in modes]


def _linear(cells: Cells, mode: str, many: int) -> tuple[bool, str]:
    first, middle, last = (cells[mode, many, position] for position in POSITIONS[:3])
    rise = last.median - first.median
    half = (middle.median - first.median) / rise
    linear = middle.low > first.high and last.low > middle.high and 0.35 < half < 0.65
    return linear, (
        f"{mode}: {'' if linear else 'NOT '}linear in the position. Of {many:,}, the last costs "
        f"{last.median / first.median:.1f} times the first, {1000 * rise / (many - 1):.1f} ns for each rule passed; "
        f"the middle one is {100 * half:.0f} % of the way between"
    )


def _flat(cells: Cells, mode: str, few: int, many: int) -> tuple[bool, str]:
    base = cells[mode, few, "first"].median
    spread = max(abs(cells[mode, many, position].median - base) / base for position in POSITIONS[:3])
    flat = spread < 0.25
    return flat, (
        f"{mode}: {'' if flat else 'NOT '}flat. With {many:,} Services each position is within "
        f"{100 * spread:.0f} % of the first of {few:,}"
    )


def _below(cells: Cells, mode: str, many: int) -> tuple[bool, str]:
    ours, theirs = cells["nftables", many, "any"], cells[mode, many, "any"]
    below = ours.high < theirs.low
    return below, (
        f"any of {many:,}: the median of nftables, {ours.median:.1f} µs, is {'' if below else 'NOT '}below that of "
        f"{mode}, {theirs.median:.1f} µs, and next to its p01, {theirs.p01:.1f} µs"
    )


def plot(result: dict[str, Any], cells: Cells, folder: Path) -> list[Path]:
    """Medians over the position, and over the number of Services, as SVG and PNG. Needs matplotlib (extra ``plots``);
    without it there is no plot, and that is said."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[plots]')", file=sys.stderr)
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "first-packet", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    counts = counts_of(cells)
    many = counts[-1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    places = {"first": 1, "middle": many // 2 + 1, "last": many}
    for mode in modes_of(cells):
        _line(left, mode, list(places.values()), [cells[mode, many, position] for position in places])
        _bars(right, cells, mode)
    if direct := cells.get(("no proxy", 0, "direct")):
        for axes in (left, right):
            axes.axhline(direct.median, color=COLOURS["no proxy"], linestyle=":", label="no proxy")
    left.set_title(f"which of {many:,} Services (median, 95 % interval)")
    left.set_xlabel("position of the Service")
    left.set_ylabel("first connection: CPU time, µs")
    right.set_title("any Service (median, whiskers p01 to p99)")
    right.set_xlabel("number of Services")
    right.set_xticks(range(len(counts)), [f"{each:,}" for each in counts])
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("First packet through kube-proxy's rules")
    figure.supxlabel(f"{describe(result['machine'])}; {result['rounds']} connections each", fontsize=7, color="#555555")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"first-packet.{ending}" for ending in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths


def _line(axes: Any, mode: str, x: Sequence[int], points: Sequence[Summary]) -> None:
    errors = [[point.median - point.low for point in points], [point.high - point.median for point in points]]
    medians = [point.median for point in points]
    axes.errorbar(x, medians, yerr=errors, color=COLOURS[mode], marker="o", markersize=4, capsize=3, label=mode)


def _bars(axes: Any, cells: Cells, mode: str) -> None:
    modes, counts = modes_of(cells), counts_of(cells)
    width = 0.8 / len(modes)
    shift = (modes.index(mode) - (len(modes) - 1) / 2) * width
    points = [cells[mode, services, "any"] for services in counts]
    whiskers = [[point.median - point.p01 for point in points], [point.p99 - point.median for point in points]]
    axes.bar(
        [place + shift for place in range(len(counts))],
        [point.median for point in points],
        width,
        yerr=whiskers,
        color=COLOURS[mode],
        error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "#444444"},
    )
