"""What a scenario expects of a matrix: a table as text, held against packets.

::

    from/to   web  db  node/n1
    client     .    X     .
    web        .    .     .

``.`` is let in, ``X`` is denied, by silence or by refusal, ``R`` by refusal and ``D`` by silence alone; ``?`` may be
anything, and of all of them together some number may be expected to be let in. Names are places, and hold no blanks.
Sources and targets are those of the table; what stands above the sources does not matter, and may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from emulator.compare.records import Check, FlowResult
from emulator.lab.lab import Lab
from emulator.lab.verdicts import Ask, Cell, MatrixWish, PortWish
from emulator.lab.verdicts import Matrix as Taken
from emulator.scenario.model import Matrix, MatrixExpect, for_style

SIGNS: dict[str, tuple[str, ...]] = {
    ".": ("allowed",),
    "X": ("dropped", "refused"),
    "R": ("refused",),
    "D": ("dropped",),
    "?": ("allowed", "dropped", "refused", "unreachable"),
}
_PORT = re.compile(r"([0-9]{1,5})/(tcp|udp|sctp)|icmp")


class Entry(NamedTuple):
    """One cell of a table: from where to where, and what must be seen."""

    source: str
    target: str
    sign: str


def port_wish(text: str) -> PortWish:
    """``80/tcp`` or ``icmp``. Raises ValueError."""
    match = _PORT.fullmatch(text)
    if match is None or (match[1] and not 0 < int(match[1]) < 65536):
        raise ValueError(f"{text!r} is not PORT/PROTOCOL: 80/tcp, 53/udp, 9999/sctp or icmp")
    protocol: Any = match[2] or "icmp"
    return PortWish(protocol, int(match[1] or 0))


def parse_table(text: str) -> list[Entry]:
    """The cells of a table. Raises ValueError with what is wrong in which of its lines."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) < 2:
        raise ValueError("a table is a line of targets, and below it a line for each source")
    targets = lines[0][1]
    if len(targets) == len(lines[1][1]):
        targets = targets[1:]
    if not targets:
        raise ValueError("line 1: no targets")
    if len(set(targets)) != len(targets):
        raise ValueError("line 1: a target stands there twice")
    entries: list[Entry] = []
    seen: set[str] = set()
    for number, (source, *signs) in lines[1:]:
        if len(signs) != len(targets):
            raise ValueError(f"line {number}: {len(signs)} signs for {len(targets)} targets")
        if source in seen:
            raise ValueError(f"line {number}: {source} stands there twice")
        seen.add(source)
        for target, sign in zip(targets, signs, strict=True):
            if sign not in SIGNS:
                raise ValueError(f"line {number}: {sign!r} is none of {' '.join(SIGNS)}")
            entries.append(Entry(source, target, sign))
    return entries


def faults_of_matrix(step: Matrix) -> Iterator[tuple[str, str]]:
    """Field and reason of everything that is wrong with a step."""
    if not step.ports:
        yield "ports", "at least one port is needed: 80/tcp"
    for number, text in enumerate(step.ports):
        try:
            port_wish(text)
        except ValueError as error:
            yield f"ports[{number}]", str(error)
    table = step.expect.table
    for style, text in table.items() if isinstance(table, dict) else (("", table),):
        try:
            parse_table(text)
        except ValueError as error:
            yield f"expect.table.{style}" if style else "expect.table", str(error)


def take_matrix(lab: Lab, step: Matrix, style: str, scenario: str) -> FlowResult:
    """Take the matrix of a step and hold it against its table. Raises NotFound for names that nobody has."""
    entries = parse_table(for_style(step.expect.table, style) or "")
    ports = [port_wish(text) for text in step.ports]
    asks = [
        Ask(entry.source, entry.target.replace("svc/", "service/", 1), port.protocol, port.port, step.family)
        for port in ports
        for entry in entries
    ]
    taken = lab.matrix(MatrixWish(asks=tuple(asks)))
    return FlowResult(
        scenario=scenario,
        style=style,
        flow=step.id,
        title=step.title or f"who reaches whom at {', '.join(step.ports)}",
        source=f"{len({entry.source for entry in entries})} places",
        target=f"{len({entry.target for entry in entries})} places",
        source_ns="",
        target_address="",
        protocol="matrix",
        verdict="observed",
        count=0,
        checks=(*_checks(taken, entries, ports), *counts(step.expect, style, taken, entries, ports)),
        state=_state(taken, entries, ports),
    )


def _checks(taken: Taken, entries: list[Entry], ports: list[PortWish]) -> Iterator[Check]:
    for number, port in enumerate(ports):
        cells = taken.cells[number * len(entries) : (number + 1) * len(entries)]
        others = [
            f"{entry.source} → {entry.target}: {cell.verdict}, not {entry.sign}"
            for entry, cell in zip(entries, cells, strict=True)
            if cell.verdict not in SIGNS[entry.sign]
        ]
        yield Check(f"table at {port}", "; ".join(others) or "as expected", not others)


def counts(
    expect: MatrixExpect, style: str, taken: Taken, entries: list[Entry], ports: list[PortWish]
) -> Iterator[Check]:
    """How many of the cells that may be anything are let in."""
    for number, port in enumerate(ports):
        cells = taken.cells[number * len(entries) : (number + 1) * len(entries)]
        open_ones = [cell for entry, cell in zip(entries, cells, strict=True) if entry.sign == "?"]
        let_in = sum(cell.verdict == "allowed" for cell in open_ones)
        observed = f"{let_in} of {len(open_ones)}"
        least, most = for_style(expect.let_in_at_least, style), for_style(expect.let_in_at_most, style)
        if least is not None:
            yield Check(f"letInAtLeast at {port}: {least:g}", observed, let_in >= least)
        if most is not None:
            yield Check(f"letInAtMost at {port}: {most:g}", observed, let_in <= most)


def _state(taken: Taken, entries: list[Entry], ports: list[PortWish]) -> str:
    """The tables as they were seen, an ``!`` behind what neither the API nor a known deviation explains."""
    tables = []
    targets = list(dict.fromkeys(entry.target for entry in entries))
    widths = [max(len(target), 2) for target in targets]
    for number, port in enumerate(ports):
        cells = taken.cells[number * len(entries) : (number + 1) * len(entries)]
        found = {(entry.source, entry.target): _sign(cell) for entry, cell in zip(entries, cells, strict=True)}
        sources = list(dict.fromkeys(entry.source for entry in entries))
        left = max(len(str(port)), *map(len, sources))
        lines = ["  ".join([str(port).ljust(left), *(t.rjust(w) for t, w in zip(targets, widths, strict=True))])]
        for source in sources:
            signs = (found[source, target].rjust(width) for target, width in zip(targets, widths, strict=True))
            lines.append("  ".join([source.ljust(left), *signs]))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _sign(cell: Cell) -> str:
    sign = {"allowed": ".", "dropped": "X", "refused": "R", "unreachable": "-"}[cell.verdict]
    return f"{sign}!" if cell.wrong else sign
