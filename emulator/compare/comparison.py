"""The comparison as plain data: what the terminal table, the HTML report and the JSON twin are all made from."""

from __future__ import annotations

from typing import Literal

import msgspec

from emulator.capture.model import Reason
from emulator.compare.path import Path
from emulator.compare.records import FlowJourney, FlowResult, RunMeta, StyleMeta

COMPARISON_SCHEMA = "cnilab.comparison/v1"

RowKind = Literal["exact", "noisy", "capture", "judged"]
"""``exact``: counted or read off frames, a difference is one. ``noisy``: timed on a shared machine, never a difference.
``capture``: says how much was seen, not what the network did. ``judged``: says what was expected of it, which may be
another thing for another style."""


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """``value`` is what is compared, ``detail`` what explains it, on one or more lines.

    ``key`` is compared in the value's stead where two styles word the same thing differently: their pods have other
    addresses, and a pod seen under its own is the same under both. Value empty: nothing is known here.
    ``because`` are the plan's objects that made it so, with their namespaces, in rows that differ
    (``emulator.compare.causes``).
    """

    value: str = ""
    detail: str = ""
    key: str = ""
    because: tuple[tuple[str, Reason], ...] = ()


class Row(msgspec.Struct, frozen=True):
    """One property, a cell per column. ``differs`` is true if two cells that have a value have different ones."""

    label: str
    kind: RowKind
    cells: tuple[Cell, ...]
    differs: bool


class Notice(msgspec.Struct, frozen=True):
    """What every output must say loudly. ``subject`` is the style, or the run and the style, that it is about."""

    level: Literal["error", "lost", "label"]
    subject: str
    text: str


class Column(msgspec.Struct, frozen=True):
    """What stands side by side: a style of one run, or one style in one of two runs."""

    key: str
    title: str


class FlowColumn(msgspec.Struct, frozen=True):
    """One flow in one column. ``result`` is None if it never ran there, and ``missing`` then says why.

    ``request``, ``reply`` and ``error`` are the first packet of each direction; ``path`` and ``reply_path`` their
    numbers. ``packets`` counts every packet of the flow that was followed.
    """

    column: Column
    style: StyleMeta | None
    result: FlowResult | None
    missing: str = ""
    request: FlowJourney | None = None
    reply: FlowJourney | None = None
    error: FlowJourney | None = None
    path: Path | None = None
    reply_path: Path | None = None
    packets: int = 0
    encapsulation_bytes: int = 0
    encapsulated_packets: int = 0
    fragments: int = 0
    one_way: float | None = None
    round_trip: float | None = None

    @property
    def met(self) -> tuple[int, int]:
        """Expectations that hold, and how many there are."""
        checks = self.result.checks if self.result else ()
        return sum(check.met for check in checks), len(checks)

    @property
    def arrived(self) -> bool:
        """Whether the first request reached its receiver: it answered, refused, or was seen to take it in."""
        if self.result is None:
            return False
        if self.result.verdict in ("delivered", "refused"):
            return True
        if self.request is None:
            return False
        last = self.request.journey.hops[-1]
        # Into a pod or a host that is not the sender: what is missing then is the answer.
        return last.direction == "in" and last.ns.startswith(("pod/", "host/")) and last.ns != self.result.source_ns

    @property
    def passed(self) -> bool | None:
        """Whether all expectations hold; None if the flow never ran here or nothing was expected."""
        met, total = self.met
        return None if self.result is None or not total else met == total


class FlowComparison(msgspec.Struct, frozen=True):
    """One flow of one scenario, side by side. ``under`` names the style when two runs are compared."""

    scenario: str
    flow: str
    title: str
    under: str
    columns: tuple[FlowColumn, ...]
    rows: tuple[Row, ...]

    @property
    def differences(self) -> int:
        """How many rows differ."""
        return sum(row.differs for row in self.rows)


class Comparison(msgspec.Struct, frozen=True):
    """A whole comparison. ``runs`` are one (styles side by side) or two (runs side by side), with their names."""

    kind: Literal["styles", "runs"]
    columns: tuple[Column, ...]
    flows: tuple[FlowComparison, ...]
    runs: tuple[tuple[str, RunMeta], ...]
    warnings: tuple[Notice, ...] = ()

    @property
    def met(self) -> tuple[int, int]:
        """Expectations that hold over all flows and columns, and how many there are."""
        pairs = [column.met for flow in self.flows for column in flow.columns]
        return sum(met for met, _ in pairs), sum(total for _, total in pairs)
