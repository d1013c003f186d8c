"""Laying a run's styles side by side, or two runs.

Nothing here computes what *should* happen: every cell comes from captured hops, from what the sockets answered or from
exact counters (``emulator.compare.rows``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TypeVar

import msgspec

from emulator.compare.comparison import Column, Comparison, FlowColumn, FlowComparison, Notice
from emulator.compare.path import path_of
from emulator.compare.records import FlowJourney, FlowResult, StyleMeta
from emulator.compare.rows import rows_of
from emulator.compare.run import Run, load_run
from emulator.errors import NotFound
from emulator.plan.model import Plan

T = TypeVar("T", bound=tuple[str, ...])

__all__ = ["compare", "compare_runs", "load_run"]


def compare(run: Run) -> Comparison:
    """The styles of one run, side by side, flow by flow in the order in which they ran. Raises InputError
    (hops.jsonl).
    """
    columns = tuple(Column(style.style, style.title or style.style) for style in run.meta.styles)
    results = {(result.scenario, result.flow, result.style): result for result in run.results}
    flows = []
    for scenario, flow in _by_scenario((result.scenario, result.flow) for result in run.results):
        cells = tuple(
            _flow_column(run, column, style, results.get((scenario, flow, style.style)))
            for column, style in zip(columns, run.meta.styles, strict=True)
        )
        flows.append(_flow_comparison(scenario, flow, "", cells, [_plan(run, cell) for cell in cells]))
    return Comparison(
        kind="styles",
        columns=columns,
        flows=tuple(flows),
        runs=((run.name, run.meta),),
        warnings=tuple(_warnings(run.meta.styles, "")),
    )


def compare_runs(first: Run, second: Run) -> Comparison:
    """Two runs side by side: each flow under each style once, the first run left. Raises InputError (hops.jsonl)."""
    names = (first.name, second.name) if first.name != second.name else (f"{first.name} (1)", f"{second.name} (2)")
    columns = (Column("A", f"A: {names[0]}"), Column("B", f"B: {names[1]}"))
    sides = []
    keys: dict[tuple[str, str, str], None] = {}
    for run in (first, second):
        results = {(result.scenario, result.flow, result.style): result for result in run.results}
        keys.update(dict.fromkeys(results))
        sides.append((run, {style.style: style for style in run.meta.styles}, results))
    flows = []
    for scenario, flow, style in _by_scenario(keys):
        cells = tuple(
            _flow_column(run, column, styles.get(style), results.get((scenario, flow, style)))
            for column, (run, styles, results) in zip(columns, sides, strict=True)
        )
        plans = [_plan(run, cell) for (run, _, _), cell in zip(sides, cells, strict=True)]
        titles = [cell.style.title for cell in cells if cell.style and cell.style.title]
        flows.append(_flow_comparison(scenario, flow, titles[0] if titles else style, cells, plans))
    warnings = [
        warning
        for name, run in zip(names, (first, second), strict=True)
        for warning in _warnings(run.meta.styles, f"{name}, ")
    ]
    return Comparison(
        kind="runs",
        columns=columns,
        flows=tuple(flows),
        runs=tuple(zip(names, (first.meta, second.meta), strict=True)),
        warnings=tuple(warnings),
    )


def _by_scenario(keys: Iterable[T]) -> list[T]:
    """Keys that begin with scenario and flow, each once: one scenario's flows together, and one flow's styles, in the
    order in which they first ran. Results come style by style, and from two runs one after the other."""
    unique = list(dict.fromkeys(keys))
    scenarios = list(dict.fromkeys(key[0] for key in unique))
    flows = list(dict.fromkeys(key[:2] for key in unique))
    return sorted(unique, key=lambda key: (scenarios.index(key[0]), flows.index(key[:2])))


def _plan(run: Run, cell: FlowColumn) -> Plan | None:
    """The plan that explains a column; None where it never ran, or the run was copied without its plans."""
    if cell.result is None:
        return None
    try:
        return run.plan(cell.result.style, cell.result.scenario)
    except NotFound:
        return None


def _flow_comparison(
    scenario: str, flow: str, under: str, columns: tuple[FlowColumn, ...], plans: Sequence[Plan | None]
) -> FlowComparison:
    titles = [column.result.title for column in columns if column.result and column.result.title]
    return FlowComparison(scenario, flow, titles[0] if titles else flow, under, columns, rows_of(columns, plans))


def _flow_column(run: Run, column: Column, style: StyleMeta | None, result: FlowResult | None) -> FlowColumn:
    if result is None:
        if style is None:
            missing = "this run has no such style"
        else:
            missing = f"did not run: {style.error}" if style.error else "has no result for this flow"
        return FlowColumn(column, style, None, missing)
    journeys = run.journeys.get((result.scenario, result.style, result.flow), ())
    request, reply, error = (_first(journeys, direction) for direction in ("request", "reply", "error"))
    paths = [path_of(item.journey) for item in journeys]
    found = FlowColumn(
        column=column,
        style=style,
        result=result,
        request=request,
        reply=reply,
        error=error,
        path=path_of(request.journey) if request else None,
        reply_path=path_of(reply.journey) if reply else None,
        packets=len(journeys),
        encapsulation_bytes=sum(path.encapsulation_bytes for path in paths),
        encapsulated_packets=sum(bool(path.encapsulations) for path in paths),
        fragments=sum(_is_fragment(item) for item in journeys),
        round_trip=median(result.times) if result.times else None,
    )
    return msgspec.structs.replace(found, one_way=_one_way(journeys, request)) if found.arrived else found


def _first(journeys: Iterable[FlowJourney], direction: str) -> FlowJourney | None:
    return min((item for item in journeys if item.direction == direction), key=lambda item: item.index, default=None)


def _is_fragment(item: FlowJourney) -> bool:
    return any(hop.packet.more_fragments or hop.packet.fragment_offset for hop in item.journey.hops)


def _one_way(journeys: Iterable[FlowJourney], request: FlowJourney | None) -> float | None:
    """The median, in µs, over the requests that got as far as the first one did: a lost packet is no fast packet."""
    if request is None:
        return None
    end = request.journey.hops[-1].ns
    whole = [item.journey.hops[-1] for item in journeys if item.direction == "request"]
    times = [hop.elapsed / 1000 for hop in whole if hop.ns == end]
    return median(times) if times and len(request.journey.hops) > 1 else None


def _warnings(styles: Iterable[StyleMeta], prefix: str) -> Iterable[Notice]:
    for style in styles:
        subject = f"{prefix}{style.title or style.style}"
        if style.error:
            yield Notice("error", subject, f"did not run: {style.error}")
        if style.lost:
            yield Notice("lost", subject, f"the capture lost {style.lost} packets: hops may be missing below")
        for label in style.labels:
            yield Notice("label", subject, label)
