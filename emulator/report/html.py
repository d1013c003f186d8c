"""The comparison as one HTML file that needs nothing else: no network, no fonts, and no scripts to be read.

The page's text is the report; the drawings (``emulator.report.ladder``) stand beside it. Whatever comes out of a run is
hostile until escaped: the template engine escapes every value, and :func:`visible` writes out what a
reader would not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from emulator.compare.causes import Cause
from emulator.compare.comparison import Comparison, FlowColumn
from emulator.compare.rows import because, headline, microseconds
from emulator.report.ladder import Ladder, ladder, lanes_of, symbol, symbols
from emulator.report.visible import visible

BRIEF_ABOVE = 60
"""Flows times columns: larger reports name the devices of replies in a line instead of drawing them (some 4 kB
each).
"""


LANE_NAME = 18  # characters of a namespace's name above its lane; the rungs have it whole


class Ladders(NamedTuple):
    """What is drawn for one flow in one column; None where no such packet was followed."""

    request: Ladder | None
    reply: Ladder | None
    error: Ladder | None


def write(comparison: Comparison, path: str | Path) -> Path:
    """Write the report and return its path. Raises OSError if the file cannot be written."""
    target = Path(path)
    target.write_text(render(comparison), encoding="utf-8")
    return target


def render(comparison: Comparison) -> str:
    """The whole page."""
    drawn = {
        (place, number): _ladders(column)
        for number, flow in enumerate(comparison.flows)
        for place, column in enumerate(flow.columns)
    }
    every = [one for three in drawn.values() for one in three if one]
    layouts = {
        _layout_key(one): f"g{number}" for number, one in enumerate({_layout_key(one): one for one in every}.values())
    }
    met, total = comparison.met
    metas = [meta for _, meta in comparison.runs]
    return (
        _environment()
        .get_template("report.html")
        .render(
            comparison=comparison,
            title=_title(comparison),
            subtitle=_subtitle(comparison),
            met=met,
            total=total,
            lost=sum(style.lost for meta in metas for style in meta.styles),
            groups=[
                (scenario, list(flows))
                for scenario, flows in groupby(enumerate(comparison.flows), lambda f: f[1].scenario)
            ],
            ladders=drawn,
            drawings=Markup(symbols(every)),
            layout_rules=[(name, _layout_rule(*key)) for key, name in layouts.items()],
            layout=lambda one: layouts[_layout_key(one)],
            brief=len(drawn) > BRIEF_ABOVE,
            describe=headline,
            summary=_summary,
            reply_summary=_reply_summary,
            verdict=_verdict,
            tone=_tone,
            pairs=_pairs,
            symbol=symbol,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("emulator.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"v": _shown, "delta": _delta, "lines": _lines, "because": _because, "middle": _middle}
    return environment


def _shown(value: object) -> str:
    return visible(str(value))


def _because(causes: Sequence[Cause]) -> str:
    """The objects alone: the drawing above has the words."""
    return "\n".join(because(cause, words=False) for cause in causes)


def _lines(value: str) -> Markup:
    return Markup("\n").join(escape(visible(line)) for line in value.split("\n"))


def _delta(value: float) -> str:
    return f"+{value:.1f}" if value < 1000 else f"+{microseconds(value)}"


def _middle(name: str) -> str:
    """Cut in the middle: pods of one owner differ at the end of their names."""
    return name if len(name) <= LANE_NAME else f"{name[: LANE_NAME // 2 - 1]}…{name[-LANE_NAME // 2 :]}"


def _layout_key(one: Ladder) -> tuple[tuple[str, ...], int]:
    known = ("pod", "node", "underlay", "router", "host")
    return tuple(lane.kind if lane.kind in known else "underlay" for lane in one.lanes), one.lane_width


def _layout_rule(kinds: tuple[str, ...], width: int) -> Markup:
    """The widths and a stripe a lane, as CSS; shared by all ladders of this shape."""
    stops = []
    for number, kind in enumerate(kinds):
        start, end = number * width, (number + 1) * width
        stops.append(f"var(--{kind}) {start}px {end - 2}px,transparent {end - 2}px {end}px")
    return Markup("--w:{}px;--g:{}px;--lanes:linear-gradient(90deg,{})").format(
        width, width * len(kinds), ",".join(stops)
    )


def _ladders(column: FlowColumn) -> Ladders:
    found = [item.journey if item else None for item in (column.request, column.reply, column.error)]
    titles = column.style.lanes if column.style else {}
    # One set of lanes for all three: the reply then runs visibly back over the same lanes.
    lanes = lanes_of([journey for journey in found if journey], titles)
    request, reply, error = found
    return Ladders(
        ladder(request, lanes, arrived=column.arrived) if request else None,
        ladder(reply, lanes) if reply else None,
        ladder(error, lanes) if error else None,
    )


def _title(comparison: Comparison) -> str:
    titles = [column.title for column in comparison.columns]
    if len(comparison.flows) == 1:
        return comparison.flows[0].title
    return " beside ".join(titles) if len(titles) <= 2 else f"{len(titles)} styles side by side"


def _subtitle(comparison: Comparison) -> str:
    flows, columns = len(comparison.flows), len(comparison.columns)
    topologies = dict.fromkeys(meta.topology for _, meta in comparison.runs)
    offloads = {meta.offloads for _, meta in comparison.runs}
    side = "run" if comparison.kind == "runs" else "style"
    return " · ".join(
        (
            ", ".join(topologies),
            f"{flows} flow{'s' if flows != 1 else ''} × {columns} {side}{'s' if columns != 1 else ''}",
            "wire-accurate capture" if offloads == {"off"} else "capture with offloads on",
        )
    )


def _verdict(column: FlowColumn) -> str:
    """``✓ delivered``, ``✗ dropped, 1 of 2 met``: the sign says whether that was expected, the word what happened."""
    if column.result is None:
        return f"✗ {'did not run' if column.style and column.style.error else 'no result'}"
    met, total = column.met
    sign = {True: "✓ ", False: "✗ ", None: ""}[column.passed]
    return f"{sign}{column.result.verdict}" + (f", {met} of {total} met" if met != total else "")


def _tone(column: FlowColumn) -> str:
    if column.result is None:
        return "bad"
    return {True: "good", False: "bad", None: ""}[column.passed]


def _summary(column: FlowColumn) -> str:
    path, result = column.path, column.result
    if not path or not result:
        return ""
    parts = [
        f"{path.traversals} device traversals",
        f"{path.routed} routed",
        f"+{path.encapsulation_bytes} B encapsulation" if path.encapsulations else "no encapsulation",
    ]
    if result.pod_mtu:
        parts.append(f"pod MTU {result.pod_mtu}")
    if column.arrived:
        parts.append(f"{microseconds(path.elapsed)} (noisy)")
    return " · ".join(parts)


def _reply_summary(column: FlowColumn) -> str:
    path = column.reply_path
    if not path:
        return ""
    if column.reply and column.result and column.reply.journey.hops[-1].ns != column.result.source_ns:
        return f"{path.traversals} device traversals, never arrived"
    return f"{path.traversals} device traversals, TTL {path.last_ttl} at the sender, {microseconds(path.elapsed)}"


def _pairs(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    return " · ".join(f"{name} {value}" for name, value in dict(values).items())
