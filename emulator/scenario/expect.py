"""Expectations held against what was observed: packets, answers, counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from emulator.capture.model import Hop, Journey
from emulator.cluster.model import Cluster
from emulator.compare.records import Check
from emulator.lab.names import resolve
from emulator.lab.records import ProbeAnswer
from emulator.scenario.model import Expect, StreamExpect, for_style
from emulator.traffic.model import StreamReport

ANY_HOPS = "..."
NOTHING = "no packet seen"
DNS_PORT = 53


def flow_checks(
    expect: Expect,
    style: str,
    cluster: Cluster,
    answer: ProbeAnswer,
    requests: Sequence[Journey],
    pieces: int,
    replies: Sequence[Journey] = (),
    others: Sequence[Journey] = (),
) -> tuple[Check, ...]:
    """Each expectation that speaks of ``style``, in the order of the fields. ``pieces`` is what :func:`fragments`
    says of the requests; ``others`` is what else was seen meanwhile."""
    wanted = {name: for_style(getattr(expect, name), style) for name in expect.__struct_fields__}
    first = requests[0] if requests else None
    checks = []
    for name, value in wanted.items():
        if value is None or value == "":
            continue
        if name in _OF_RESULT:
            observed = _OF_RESULT[name](answer)
            met = _COMPARED.get(name, _equal)(value, observed)
        elif name == "client_seen":
            observed = peer_address(answer.result.source_seen)
            allowed = _source_addresses(value, cluster, first)
            met = bool(observed) and observed in allowed
        elif name in ("rules", "reply_rules"):
            chosen = requests if name == "rules" else replies
            told = [reason for hop in chosen[0].hops for reason in hop.reasons] if chosen else []
            observed = "; ".join(dict.fromkeys(reason.subject for reason in told)) or NOTHING
            met = all(any(text in f"{reason.subject}: {reason.why}" for reason in told) for text in value)
        elif name in ("path", "reply_path"):
            way = first if name == "path" else next(iter(replies), None)
            observed = " ".join(_places(way)) if way else NOTHING
            met = path_matches(value, way) if way else not value
        elif name == "source":
            observed = first.hops[-1].packet.source if first else NOTHING
            met = first is not None and observed in _source_addresses(value, cluster, first)
        elif name == "takes_at_least":
            took = median(answer.result.times) / 1000 if answer.result.times else 0.0
            observed, met = f"{took:.1f}", took >= float(value)
        elif name == "questions":
            observed = str(sum(_is_question(each, answer.source_ns) for each in others))
            met = _equal(value, observed)
        elif name == "fragments":
            observed = str(pieces)
            met = _equal(value, observed)
        else:
            observed = _OF_JOURNEY[name](first) if first else NOTHING
            met = first is not None and _equal(value, observed)
        checks.append(Check(text=f"{_field(name)}: {_written(value)}", observed=observed, met=met))
    return tuple(checks)


def _is_question(journey: Journey, asker: str) -> bool:
    first = journey.hops[0]
    asks = first.packet.protocol == "udp" and first.packet.target_port == DNS_PORT
    return asks and (first.ns, first.direction) == (asker, "out")


def stream_checks(expect: StreamExpect, style: str, result: StreamReport) -> tuple[Check, ...]:
    """The same for a stream."""
    lost = result.sent - result.received
    outage = longest_outage(result)
    recovered = result.received > 0 and not (result.lost and result.lost[-1].last == result.sent - 1)
    found: dict[str, tuple[Any, Any]] = {
        "lost_at_least": (lost, lambda value: lost >= value),
        "lost_at_most": (lost, lambda value: lost <= value),
        "outage_at_least": (round(outage, 3), lambda value: outage >= value),
        "outage_at_most": (round(outage, 3), lambda value: outage <= value),
        "recovers": (recovered, lambda value: recovered == value),
    }
    checks = []
    for name, (observed, holds) in found.items():
        value = for_style(getattr(expect, name), style)
        if value is not None:
            text = f"{_field(name)}: {_written(value)}"
            checks.append(Check(text=text, observed=_written(observed), met=bool(holds(value))))
    return tuple(checks)


def longest_outage(result: StreamReport) -> float:
    """Seconds."""
    return max((window.milliseconds for window in result.lost), default=0.0) / 1000


def path_matches(pattern: Sequence[str], journey: Journey) -> bool:
    """Whether the hops fit ``place:device`` patterns; ``...`` stands for any number of hops."""
    return _fits(list(pattern), _places(journey))


def _fits(pattern: list[str], places: list[str]) -> bool:
    if not pattern:
        return not places
    if pattern[0] == ANY_HOPS:
        return any(_fits(pattern[1:], places[skip:]) for skip in range(len(places) + 1))
    return bool(places) and fnmatchcase(places[0], pattern[0]) and _fits(pattern[1:], places[1:])


def _places(journey: Journey | None) -> list[str]:
    """``n1-p1:eth0 n1:cni0 ...``: pods of namespace default and machines by their bare names."""
    if journey is None:
        return []
    return [f"{_short(hop.ns)}:{hop.device}" for hop in journey.hops]


def _short(ns: str) -> str:
    kind, _, name = ns.partition("/")
    return name.removeprefix("default/") if kind == "pod" else name or kind


def _tunnelled(journey: Journey) -> Hop | None:
    """The first hop at which the packet is encapsulated."""
    return next((hop for hop in journey.hops if hop.packet.tunnel is not None), None)


def _encapsulation(journey: Journey) -> str:
    hop = _tunnelled(journey)
    return hop.packet.tunnel.kind if hop is not None and hop.packet.tunnel is not None else "none"


def _overhead(journey: Journey) -> str:
    hop = _tunnelled(journey)
    return str(hop.packet.tunnel.overhead) if hop is not None and hop.packet.tunnel is not None else "0"


def fragments(requests: Sequence[Journey], journeys: Sequence[Journey]) -> int:
    """How many pieces the most split of the requests was in, at the hop where it was in most; 1: it was never split,
    0: none was seen."""
    wanted = {journey.id for journey in requests}
    pieces: Counter[tuple[int, str, str, str]] = Counter()
    for journey in journeys:
        if journey.id not in wanted and not (journey.kind == "fragment" and journey.about in wanted):
            continue
        datagram = journey.id if journey.id in wanted else journey.about
        # A place counts once a journey: a packet may pass it inside a tunnel and outside.
        pieces.update(
            {
                (datagram, hop.ns, hop.device, hop.direction)
                for hop in journey.hops
                if hop.packet.more_fragments or hop.packet.fragment_offset
            }
        )
    return max(pieces.values(), default=1 if wanted else 0)


def _source_addresses(wanted: str, cluster: Cluster, journey: Journey | None) -> tuple[str, ...]:
    """The addresses that ``source: WANTED`` allows."""
    if wanted == "sender":
        return (journey.hops[0].packet.source,) if journey is not None else ()
    place, colon, device = wanted.partition(":")
    if colon and "/" not in wanted and not wanted.count(":") > 1:
        machine = resolve(cluster, place).machine
        if machine is not None:
            return tuple(
                address.partition("/")[0]
                for interface in machine.interfaces
                if interface.name == device
                for address in interface.addresses
            )
    return resolve(cluster, wanted).addresses


def peer_address(peer: str) -> str:
    """The address of ``10.0.0.1:4711`` or ``[fd00::1]:4711``."""
    return peer.rpartition(":")[0].strip("[]")


def _field(name: str) -> str:
    """As the scenario file spells it."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _equal(wanted: Any, observed: str) -> bool:
    return _written(wanted) == observed


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


_OF_RESULT: dict[str, Any] = {
    "verdict": lambda answer: answer.result.verdict,
    "answered_by": lambda answer: answer.result.answered_by,
    "received": lambda answer: str(answer.result.received),
    "servers": lambda answer: str(len(answer.result.answers)),
    "servers_at_least": lambda answer: str(len(answer.result.answers)),
    "detail": lambda answer: answer.result.detail,
}
# What is compared otherwise than for equality: value and observed
_COMPARED: dict[str, Any] = {
    "detail": lambda value, observed: str(value) in observed,
    "answered_by": lambda value, observed: fnmatchcase(observed, str(value)),
    "servers_at_least": lambda value, observed: int(observed) >= value,
}
_OF_JOURNEY: dict[str, Any] = {
    "ttl": lambda journey: str(journey.hops[-1].packet.ttl),
    "encapsulation": _encapsulation,
    "overhead": _overhead,
}
