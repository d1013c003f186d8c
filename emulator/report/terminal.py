"""The comparison, and one packet's hops, for a terminal.

Nothing depends on colour: rows that differ carry ``≠``, cells that changed at a hop ``*``, verdicts ``✓`` or ``✗``
and a word. Where the output's encoding lacks these signs, ASCII stands in for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from emulator.capture.model import Hop, Journey, Packet
from emulator.compare.causes import Cause
from emulator.compare.comparison import Comparison, FlowColumn, FlowComparison, Row
from emulator.compare.path import same_tunnel
from emulator.compare.rows import because, headline, microseconds, short
from emulator.report.headers import arrow, blocks
from emulator.report.visible import visible

CAUSES = 3  # lines of reasons for a value: the report has them all
LABEL, NARROWEST = 29, 12  # characters: of the columns of a table
DETAIL = 44  # characters: longer details are for the report, a table cell of them would be a paragraph
_ASCII = str.maketrans({"≠": "!", "✓": "+", "✗": "x", "→": "->", "µ": "u", "·": "-", "−": "-", "…": "...", "–": "-"})


def print_comparison(comparison: Comparison, console: Console | None = None, *, hops: bool = False) -> None:
    """Print warnings, then each flow's table, with ``hops`` also each style's hop list; at the end the expectations."""
    out = _Printer(console or Console(highlight=False))
    for notice in comparison.warnings:
        sign, style = ("✗", "bold red") if notice.level != "label" else ("!", "bold yellow")
        out.line(f"{sign} {notice.subject}: {notice.text}", style)
    for flow in comparison.flows:
        _print_flow(out, flow, hops=hops)
    met, total = comparison.met
    if total:
        good = met == total
        out.line(f"{'✓' if good else '✗'} {met} of {total} expectations met", "bold green" if good else "bold red")


def print_hops(
    journey: Journey,
    console: Console | None = None,
    *,
    title: str = "",
    ending: str = "",
    lanes: dict[str, str] | None = None,
) -> None:
    """Print one packet, hop by hop. ``ending`` is said after the last hop (``dropped: nothing answered``)."""
    out = _Printer(console or Console(highlight=False))
    if title:
        out.line(title, "bold")
    _print_hops(out, journey, lanes or {})
    if ending:
        out.line(f"   {ending}", "bold")


class _Printer:
    """A console that shows hostile text as it is, and ASCII where the encoding has no more."""

    def __init__(self, console: Console) -> None:
        self.console = console
        try:
            "≠✓✗→µ".encode(console.encoding)
            self.ascii = False
        except (UnicodeEncodeError, LookupError):
            self.ascii = True

    def text(self, text: str, style: str = "") -> Text:
        shown = "\n".join(visible(line) for line in text.split("\n"))
        if self.ascii:
            # Names may hold more than our own signs.
            shown = shown.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
        return Text(shown, style=style)

    def line(self, text: str, style: str = "") -> None:
        self.console.print(self.text(text, style))


def _print_flow(out: _Printer, flow: FlowComparison, *, hops: bool) -> None:
    out.line("")
    out.line(flow.title + (f" · {flow.under}" if flow.under else ""), "bold")
    out.line(headline(flow), "dim")
    if _fits(out, flow):
        out.console.print(_table(out, flow))
    else:
        _print_groups(out, flow)
    missing: dict[str, list[str]] = {}
    for column in flow.columns:
        if not column.result:
            missing.setdefault(column.missing, []).append(column.column.title)
    for reason, titles in missing.items():
        out.line(f"✗ {', '.join(titles)}: {reason}", "bold red")
    if hops:
        for column in flow.columns:
            _print_ways(out, column)


def _fits(out: _Printer, flow: FlowComparison) -> bool:
    """Whether there is room for a column a style."""
    return LABEL + len(flow.columns) * (NARROWEST + 2) <= out.console.width


def _print_groups(out: _Printer, flow: FlowComparison) -> None:
    """For many styles: what is the same in a line each, and below what differs, value by value: which styles have it,
    and which objects of their plans made it so."""
    for row in flow.rows:
        shared = dict.fromkeys(cell.value for cell in row.cells if cell.value)
        if not row.differs and row.kind == "exact" and shared:
            # Worded differently, the same all the same: each pod's own address.
            value = next(iter(shared)) if len(shared) == 1 else next(cell.key for cell in row.cells if cell.key)
            out.line(f"  {row.label}: {value}", "dim")
    failed = [column.column.key for column in flow.columns if column.passed is False]
    if failed:
        out.line(f"✗ expectations not met under {', '.join(failed)}", "bold red")
    told: tuple[tuple[Cause, ...], ...] = ()
    for row in flow.rows:
        if not row.differs:
            continue
        reasons = tuple(cell.because for cell in row.cells)
        again, told = reasons == told, reasons
        out.line(f"≠ {row.label}" + (", for the same reasons" if again else ""), "bold")
        groups: dict[str, list[int]] = {}
        for place, cell in enumerate(row.cells):
            if cell.value:
                groups.setdefault(cell.key or cell.value, []).append(place)
        for places in groups.values():
            _print_group(out, flow, row, places, again=again)


def _print_group(out: _Printer, flow: FlowComparison, row: Row, places: Sequence[int], *, again: bool) -> None:
    """One value: the styles that have it, those together whose plans give the same reason."""
    values = dict.fromkeys(row.cells[place].value for place in places)
    out.console.print(Padding(out.text(" / ".join(values), "bold"), (0, 0, 0, 4)))
    by_reason: dict[tuple[Cause, ...], list[str]] = {}
    for place in places:
        by_reason.setdefault(() if again else row.cells[place].because, []).append(flow.columns[place].column.key)
    for reasons, styles in by_reason.items():
        out.console.print(Padding(out.text(", ".join(styles), "cyan"), (0, 0, 0, 6)))
        for cause in reasons[:CAUSES]:
            out.console.print(Padding(out.text(because(cause), "dim"), (0, 0, 0, 8)))
        if len(reasons) > CAUSES:
            more = f"and {len(reasons) - CAUSES} more: see the report"
            out.console.print(Padding(out.text(more, "dim"), (0, 0, 0, 8)))


def _table(out: _Printer, flow: FlowComparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=1)
    table.add_column("", no_wrap=False, min_width=16, max_width=26)
    for column in flow.columns:
        table.add_column(out.text(column.column.title), overflow="fold", min_width=12)
    for row in flow.rows:
        label = f"{row.label} (noisy)" if row.kind == "noisy" else row.label
        table.add_row(
            out.text("≠" if row.differs else "", "bold red"),
            out.text(label, "bold" if row.differs else "dim"),
            *(_cell(out, row, place, flow.columns[place]) for place in range(len(row.cells))),
        )
    return table


def _cell(out: _Printer, row: Row, place: int, column: FlowColumn) -> Text:
    cell = row.cells[place]
    text = out.text(cell.value or "-", "bold" if row.differs else "")
    if row.label == "verdict" and column.passed is not None:
        sign, style = ("✓ ", "green") if column.passed else ("✗ ", "bold red")
        text = out.text(sign, style) + text
    # What is the same everywhere needs no explanation here, and a paragraph in one cell hides the others.
    longest = max(len(line) for other in row.cells for line in other.detail.split("\n"))
    if cell.detail and ("✗" in cell.detail or (row.differs and longest <= DETAIL)):
        text = text + out.text(f"\n{cell.detail}", "dim")
    return text


def _print_ways(out: _Printer, column: FlowColumn) -> None:
    lanes = column.style.lanes if column.style else {}
    for name, item in (("request", column.request), ("error", column.error), ("reply", column.reply)):
        if item is None:
            continue
        out.line("")
        out.line(f"{column.column.title} · {name} · {len(item.journey.hops)} device traversals", "bold")
        _print_hops(out, item.journey, lanes)
        if name == "request" and not column.arrived and column.result:
            out.line(f"   ✗ last seen here: {column.result.detail or column.result.verdict}", "bold red")


class _Line(NamedTuple):
    """One hop: its cells, which of them changed since the hop before, and what is said beneath."""

    cells: tuple[str, ...]
    changed: frozenset[str]
    below: tuple[str, ...]


_HEADER = ("#", "where", "device", "source → target", "ttl", "encap", "+µs")
_RIGHT = ("#", "+µs")


def _print_hops(out: _Printer, journey: Journey, lanes: dict[str, str]) -> None:
    """One line a hop, then why. Addresses go to a line of their own if the terminal is too narrow for them."""
    lines = list(_lines(journey.hops, lanes))
    widths = [max(map(len, column)) for column in zip(_HEADER, *(line.cells for line in lines), strict=True)]
    way = _HEADER.index("source → target")
    inline = sum(widths) + 2 * len(widths) <= out.console.width
    shown = [number for number in range(len(_HEADER)) if inline or number != way]
    head = "  ".join(_padded(_HEADER[number], widths[number], _HEADER[number]) for number in shown)
    out.line(head.rstrip(), "dim underline")
    indent = (0, 0, 0, widths[0] + 2)
    for line in lines:
        text = Text()
        for number in shown:
            name = _HEADER[number]
            style = "bold red" if name in line.changed else "bold" if name == "device" else ""
            text.append_text(out.text(_padded(line.cells[number], widths[number], name), style)).append("  ")
        text.rstrip()
        out.console.print(text, overflow="fold")
        if not inline and (line.cells[0] == "1" or _HEADER[way] in line.changed):
            style = "bold red" if _HEADER[way] in line.changed else ""
            out.console.print(Padding(out.text(line.cells[way], style), indent, expand=False))
        for below in line.below:
            out.console.print(Padding(out.text(below, "dim"), indent, expand=False))
    if any(line.changed for line in lines):
        out.line("* changed at this hop; times are since the hop before, and noisy", "dim")


def _padded(text: str, width: int, name: str) -> str:
    return text.rjust(width) if name in _RIGHT else text.ljust(width)


def _lines(hops: Sequence[Hop], lanes: dict[str, str]) -> Iterable[_Line]:
    before: Hop | None = None
    translated = len({_ends(hop.packet) for hop in hops}) > 1
    for number, hop in enumerate(hops, start=1):
        packet, tunnel = hop.packet, hop.packet.tunnel
        old = before.packet if before else None
        changed = set()
        if old and _ends(old) != _ends(packet):
            changed.add("source → target")
        if old and old.ttl != packet.ttl:
            changed.add("ttl")
        if old and not same_tunnel(old.tunnel, tunnel):
            changed.add("encap")
        encap = f"{tunnel.kind} +{tunnel.overhead}" if tunnel else "removed" if "encap" in changed else ""
        since = (hop.time - before.time) / 1000 if before else 0.0
        cells = (
            str(number),
            "" if before and before.ns == hop.ns else lanes.get(hop.ns) or short(hop.ns),
            f"{hop.device} {hop.direction}",
            arrow(packet, ports=translated),
            str(packet.ttl) if packet.version else "",
            encap,
            (f"{since:.1f}" if since < 1000 else microseconds(since)) if before else "",
        )
        marked = (text + "*" if name in changed else text for name, text in zip(_HEADER, cells, strict=True))
        yield _Line(tuple(map(visible, marked)), frozenset(changed), tuple(_below(hop, old, changed)))
        before = hop


def _ends(packet: Packet) -> tuple[str, int, str, int]:
    """Who speaks to whom; pieces of a datagram but the first do not say by which ports."""
    if packet.fragment_offset:
        return (packet.source, 0, packet.target, 0)
    return (packet.source, packet.source_port, packet.target, packet.target_port)


def _below(hop: Hop, old: Packet | None, changed: set[str]) -> Iterable[str]:
    """Headers that have no column, where they are new; then why the packet is here."""
    packet, tunnel = hop.packet, hop.packet.tunnel
    if tunnel and (old is None or "encap" in changed):
        vni = f" vni {tunnel.vni}" if tunnel.vni else ""
        port = f", udp {tunnel.source_port} → {tunnel.target_port}" if tunnel.target_port else ""
        yield f"{tunnel.kind}{vni}: {tunnel.source} → {tunnel.target}, ttl {tunnel.ttl}{port}"
        yield f"mac {tunnel.source_mac} → {tunnel.target_mac}"
    elif packet.source_mac and (
        old is None or (old.source_mac, old.target_mac) != (packet.source_mac, packet.target_mac)
    ):
        yield f"mac {packet.source_mac} → {packet.target_mac}"
    both = old is not None and old.source != packet.source and old.target != packet.target
    for reason in hop.reasons[: 2 if both else 1]:
        who = f" ({reason.component})" if reason.component else ""
        # Where nothing changed, the object is a device or a cable: what it is for says more than its definition.
        quiet = old is not None and not any(block.change for block in blocks(packet, old))
        told = f"{reason.why}: {reason.subject}" if reason.why and not quiet else reason.why or reason.subject
        yield f"{told}{who}"
