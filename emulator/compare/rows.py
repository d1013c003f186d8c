"""The rows of a comparison: which properties of a flow are laid side by side, and how each is worded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from emulator.capture.model import Tunnel
from emulator.compare.causes import Cause, causes
from emulator.compare.comparison import Cell, FlowColumn, FlowComparison, Row, RowKind
from emulator.compare.path import Path
from emulator.plan.model import UNDERLAY, Plan


def rows_of(columns: Sequence[FlowColumn], plans: Sequence[Plan | None] = ()) -> tuple[Row, ...]:
    """The rows of one flow. Rows that are optional and empty in every column are left out. ``plans``, one for each
    column, explain what differs and no hop shows."""
    plans = plans or [None] * len(columns)
    rows = []
    for label, kind, optional, cell in _ROWS:
        cells = tuple(cell(column) if column.result else Cell() for column in columns)
        if optional and not any(item.value or item.detail for item in cells):
            continue
        # What is not known is no difference: a style that never ran has a banner, a flow not followed says so.
        values = {item.key or item.value for item in cells if item.value}
        differs = kind == "exact" and len(values) > 1
        if differs:
            cells = tuple(
                msgspec.structs.replace(item, because=causes(label, column, plan))
                for item, column, plan in zip(cells, columns, plans, strict=True)
            )
        rows.append(Row(label, kind, cells, differs=differs))
    return tuple(rows)


def because(cause: Cause, *, words: bool = True) -> str:
    """``n1: route 10.244.2.0/24 via 192.168.50.12 dev eth0 (bird: pods of n2)``, or without the words at the end."""
    ns, reason = cause
    who = ": ".join(part for part in (reason.component, reason.why if words else "") if part)
    return f"{short(ns)}: {reason.subject}" + (f" ({who})" if who else "")


def headline(flow: FlowComparison) -> str:
    """What all columns share, in a line: the scenario, who talks to whom, how, and which packet is drawn."""
    parts = [flow.scenario]
    results = [column.result for column in flow.columns if column.result]
    if results:
        result = results[0]
        addresses = {each.target_address for each in results}
        # Under another style's IPAM a pod has another address: then none is everybody's.
        address = (
            f" ({result.target_address})" if len(addresses) == 1 and result.target_address != result.target else ""
        )
        if result.verdict == "observed":
            ends = [result.source] if result.source == result.target else [result.source, result.target]
            return " · ".join([*parts, " ↔ ".join(ends), "read, not sent"])
        parts.append(f"{result.source} → {result.target}{address}")
        port = f" port {result.port}" if result.port else ""
        parts.append(f"{result.protocol.upper()}{port}" + (f", {result.size} B" if result.size else ""))
        parts.append(f"packet 1 of {result.count}" if result.count > 1 else "one packet")
    return " · ".join(parts)


def short(ns: str) -> str:
    """A namespace as people say it: ``node/n1`` -> ``n1``, ``pod/default/a`` -> ``a``, ``underlay`` -> ``wire``."""
    if ns == UNDERLAY:
        return "wire"
    return ns.rpartition("/")[2]


def encapsulation(tunnel: Tunnel) -> str:
    """``VXLAN vni 1, UDP port 8472, +50 B``."""
    parts = [tunnel.kind.upper() + (f" vni {tunnel.vni}" if tunnel.vni else "")]
    if tunnel.target_port:
        parts.append(f"UDP port {tunnel.target_port}")
    return ", ".join([*parts, f"+{tunnel.overhead} B"])


def microseconds(value: float) -> str:
    """``12.1 µs``, ``1.24 ms``, ``2.10 s``."""
    if value < 1000:
        return f"{value:.1f} µs"
    return f"{value / 1000:.2f} ms" if value < 1_000_000 else f"{value / 1_000_000:.2f} s"


def _verdict(column: FlowColumn) -> Cell:
    assert column.result
    result = column.result
    if result.verdict == "observed":  # a judgement: what differs stands in the state
        judged = "as expected" if column.passed else "observed" if column.passed is None else "otherwise"
        return Cell(judged, key="read")
    sent = result.sent or result.count
    return Cell(result.verdict, f"{result.received} of {sent} answered")


def _error(column: FlowColumn) -> Cell:
    assert column.result
    return Cell("" if _is_stream(column) else column.result.detail)


def _is_stream(column: FlowColumn) -> bool:
    return column.result is not None and column.result.convergence is not None


def _kept_up(column: FlowColumn) -> Cell:
    """Whether a stream was interrupted; for how long is timed."""
    assert column.result
    result = column.result
    if not _is_stream(column):
        return Cell()
    return Cell("all" if result.received == result.sent else "some" if result.received else "none")


def _losses(column: FlowColumn) -> Cell:
    """How many were lost depends on when the machine got round to break and mend things."""
    assert column.result
    return Cell(column.result.detail if _is_stream(column) else "")


def _only_read(column: FlowColumn) -> bool:
    return column.result is not None and column.result.verdict == "observed"


def _state(column: FlowColumn) -> Cell:
    assert column.result
    return Cell(column.result.state)


def _convergence(column: FlowColumn) -> Cell:
    """The time is as good as the machine is idle; the numbers that it is made of stand beneath it."""
    assert column.result
    result = column.result
    if result.convergence is None:
        return Cell()
    return Cell(f"{result.convergence:.2f} s", f"{result.sent - result.received} lost")


def _answered_by(column: FlowColumn) -> Cell:
    assert column.result
    return Cell(column.result.answered_by)


def _traversals(column: FlowColumn) -> Cell:
    if not column.path:
        return Cell("", "" if _only_read(column) else "no packet of it was seen")
    return Cell(str(column.path.traversals), " · ".join(f"{short(ns)} {n}" for ns, n in column.path.per_namespace))


def _namespaces(column: FlowColumn) -> Cell:
    return Cell(" → ".join(short(ns) for ns in column.path.namespaces) if column.path else "")


def _routed(column: FlowColumn) -> Cell:
    path = column.path
    if not path:
        return Cell()
    outer = f"tunnel header: {path.outer_routed} more" if path.outer_routed else ""
    return Cell(str(path.routed), outer)


def _ttl(column: FlowColumn) -> Cell:
    path = column.path
    if not path:
        return Cell()
    if not column.arrived:
        return Cell("never arrived", f"last seen with {path.last_ttl}")
    return Cell(str(path.last_ttl), f"sent with {path.first_ttl}")


def _encapsulation(column: FlowColumn) -> Cell:
    if not column.path:
        return Cell()
    return Cell(" then ".join(encapsulation(tunnel) for tunnel in column.path.encapsulations) or "none")


def _encapsulation_bytes(column: FlowColumn) -> Cell:
    if not column.path:
        return Cell()
    assert column.result
    packets, total = column.encapsulated_packets, column.encapsulation_bytes
    # How many packets TCP makes of it, and a stream in its time, is chance; what each of them carries is not.
    by_chance = column.result.protocol == "tcp" or _is_stream(column)
    key = f"{total / packets:g} B a packet" if packets and by_chance else ""
    return Cell(f"{total} B", f"in {packets} of {column.packets} packets" if packets else "", key=key)


def _source_seen(column: FlowColumn) -> Cell:
    path, result = column.path, column.result
    if not result or not column.arrived:
        return Cell("never arrived" if path else "")
    seen = result.source_seen or (path.source_seen if path else "")
    sent = path.source_sent if path else ""
    if not sent or not seen:
        return Cell(seen)
    return Cell(f"{seen}, its own", key="its own") if sent == seen else Cell(seen, f"rewritten from {sent}")


def _target_seen(column: FlowColumn) -> Cell:
    path = column.path
    if not path or not column.arrived or path.target_sent == path.target_seen:
        return Cell()
    return Cell(path.target_seen, f"rewritten from {path.target_sent}")


def _mtu(column: FlowColumn) -> Cell:
    assert column.result
    return Cell(f"{column.result.pod_mtu} B" if column.result.pod_mtu else "")


def _fragments(column: FlowColumn) -> Cell:
    return Cell(str(column.fragments) if column.fragments else "")


def _hook_passes(column: FlowColumn) -> Cell:
    assert column.result
    passes = column.result.hook_passes
    if not passes:
        return Cell()
    totals = {ns: sum(hooks.values()) for ns, hooks in passes.items()}
    value = " · ".join([str(sum(totals.values())), *(f"{short(ns)}: {n}" for ns, n in sorted(totals.items()))])
    detail = "\n".join(
        f"{short(ns)}: " + ", ".join(f"{hook} {n}" for hook, n in hooks.items() if n)
        for ns, hooks in sorted(passes.items())
    )
    return Cell(value, detail)


def _route(column: FlowColumn) -> Cell:
    if not column.path:
        return Cell()
    routes = _first_per_namespace(column.path)
    # The underlay's routers are the same for every style.
    value = " · ".join(f"{short(ns)}: {component}" for ns, component, _ in routes if not ns.startswith("router/"))
    if not value and column.arrived and not column.path.routed:
        return Cell("bridged, no route taken")
    return Cell(value, "\n".join(f"{short(ns)}: {subject}" for ns, _, subject in routes))


def _first_per_namespace(path: Path) -> list[tuple[str, str, str]]:
    found: dict[str, tuple[str, str, str]] = {}
    for route in path.routes:
        reason = route.reason
        subject = f"{reason.subject} ({reason.why})" if reason.why else reason.subject
        found.setdefault(route.ns, (route.ns, reason.component or "unknown", subject))
    return list(found.values())


def _one_way(column: FlowColumn) -> Cell:
    return Cell(microseconds(column.one_way) if column.one_way is not None else "")


def _round_trip(column: FlowColumn) -> Cell:
    return Cell(microseconds(column.round_trip) if column.round_trip is not None else "")


def _expectations(column: FlowColumn) -> Cell:
    assert column.result
    met, total = column.met
    failed = "\n".join(f"✗ {check.text}: observed {check.observed}" for check in column.result.checks if not check.met)
    return Cell(f"{met} of {total}" if total else "", failed)


def _captured(column: FlowColumn) -> Cell:
    if _only_read(column):
        return Cell()
    lost = column.style.lost if column.style else 0
    return Cell(f"{column.packets} followed", f"capture lost {lost} packets" if lost else "none lost")


_ROWS: tuple[tuple[str, RowKind, bool, Callable[[FlowColumn], Cell]], ...] = (
    ("verdict", "exact", False, _verdict),
    ("what came back", "exact", True, _error),
    ("state", "exact", True, _state),
    ("requests of the stream answered", "exact", True, _kept_up),
    ("what the stream lost", "noisy", True, _losses),
    ("convergence time, lost / rate", "noisy", True, _convergence),
    ("answered by", "exact", True, _answered_by),
    ("device traversals", "exact", True, _traversals),
    ("way", "exact", True, _namespaces),
    ("routed hops", "exact", True, _routed),
    ("TTL at the receiver", "exact", True, _ttl),
    ("encapsulation on the wire", "exact", True, _encapsulation),
    ("encapsulation, whole flow", "exact", True, _encapsulation_bytes),
    ("source seen by the receiver", "exact", True, _source_seen),
    ("destination rewritten to", "exact", True, _target_seen),
    ("pod MTU, largest packet without fragments", "exact", True, _mtu),
    ("fragments seen", "exact", True, _fragments),
    ("netfilter hook passes", "exact", True, _hook_passes),
    ("why the route exists", "exact", True, _route),
    ("median one way", "noisy", True, _one_way),
    ("median round trip", "noisy", True, _round_trip),
    ("expectations met", "judged", True, _expectations),
    ("packets followed", "capture", True, _captured),
)
