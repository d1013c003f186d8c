"""Which rule of a machine dropped or rejected a packet that was last seen there.

A packet that came in by a device was on its way through (FORWARD) or to the machine itself (INPUT); one that the
machine made and nobody saw was stopped at OUTPUT. What leaves may be stopped at POSTROUTING, too. Between ports of a
bridge, iptables sees the bridge as both devices (br_netfilter). Before FORWARD and INPUT a Service's address has become
an endpoint's: which one a capture does not show, so all that are possible are followed.

A rule is named only if all ways through the rules end at it: see :mod:`emulator.capture.rule_walk`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, cast

import msgspec

from emulator.capture.model import Hop, Packet
from emulator.capture.nat import dropper
from emulator.capture.planned import Index, Planned
from emulator.capture.rule_walk import Culprit, Seen

Hook = Literal["FORWARD", "INPUT", "OUTPUT"]
AnyHook = Hook | Literal["PREROUTING", "POSTROUTING"]
Aim = tuple[str, int]  # an address and a port
Flow = tuple[str, str, int, str, int]

_ECHO_REQUESTS = (8, 128)


class Denial(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule that stopped a packet: in which namespace, at which hook, in which chain and at which place of it (from
    1), its text, whose rule it is and what it is for. ``action`` is what it does; ``program`` and ``table`` say where
    it stands (``iptables``, ``filter``; ``nft``, ``ip calico``). ``handle`` is nftables' own number of the rule, 0
    where nobody looked."""

    ns: str
    hook: AnyHook
    action: Literal["drop", "reject"]
    program: str
    table: str
    chain: str
    rule: int
    text: str
    component: str
    why: str
    place: str
    handle: int = 0


def denial(hops: Sequence[Hop], index: Index, *, new: bool = False, aims: Collection[Aim] = ()) -> Denial | None:
    """Who stopped a packet whose last hop was its way into a machine; None where that is open. ``new``: it is known to
    open its connection. ``aims`` are what its target may have been translated to there."""
    last = hops[-1]
    if last.direction != "in" or not last.packet.version or last.packet.tunnel is not None:
        return None
    machine = index.at(last.ns)
    found = {_stopped(last, machine, packet, new=new) for packet in _aimed(last.packet, machine, aims)}
    return next(iter(found)) if len(found) == 1 else None


def silenced(packet: Packet, ns: str, index: Index, *, aims: Collection[Aim] = ()) -> Denial | None:
    """Who stopped a packet that a machine made and that was never seen to leave."""
    machine = index.at(ns)
    found = set()
    for each in _aimed(packet, machine, aims):
        way = machine.way(each, each.source, "", "")
        seen = as_seen(each, machine, "", way.item.device if way is not None else "")
        found.add(_told(dropper(machine.ruleset, seen, new=True, hook="OUTPUT"), ns, "OUTPUT"))
    return next(iter(found)) if len(found) == 1 else None


def _aimed(packet: Packet, machine: Planned, aims: Collection[Aim]) -> Iterable[Packet]:
    if not aims or packet.target in machine.addresses:
        return (packet,)
    return [msgspec.structs.replace(packet, target=target, target_port=port) for target, port in aims]


def _stopped(last: Hop, machine: Planned, packet: Packet, *, new: bool) -> Denial | None:
    entered, bridged, leaves = last.device, False, ""
    hook: Hook = "INPUT" if packet.target in machine.addresses else "FORWARD"
    port = machine.ports.get(entered)
    if port is not None:
        # Had it been for the bridge's own MAC, it would have been seen to come in by the bridge
        entered, bridged = port.bridge, hook == "FORWARD"
    if bridged:
        leaves = entered
    elif hook == "FORWARD":
        way = machine.way(packet, packet.source, entered, "")
        leaves = way.item.device if way is not None else ""
    back = machine.best(packet.source)
    seen = as_seen(packet, machine, entered, leaves)._replace(
        returns=back is not None and back.device == entered, bridged=bridged
    )
    return _told(dropper(machine.ruleset, seen, new=new, hook=hook), last.ns, hook)


def _told(culprit: Culprit | None, ns: str, hook: Hook) -> Denial | None:
    if culprit is None:
        return None
    program, _, rest = culprit.place.partition(" -t ")
    table = rest.partition(" ")[0]
    if program.startswith("nft "):
        program, family, name, *_ = program.split()
        table = f"{family} {name}"
    return Denial(
        ns=ns,
        hook=cast("AnyHook", culprit.hook) or hook,
        action="reject" if "REJECT" in culprit.text or "reject" in culprit.text else "drop",
        program=program.partition(" ")[0],
        table=table,
        chain=culprit.chain,
        rule=culprit.number,
        text=culprit.text,
        component=culprit.component,
        why=culprit.why,
        place=culprit.place,
    )


def as_seen(packet: Packet, machine: Planned, entered: str, leaves: str) -> Seen:
    """The packet as a hook of the machine sees it."""
    return Seen(
        packet.version,
        packet.protocol,
        packet.source,
        packet.target,
        packet.source_port,
        packet.target_port,
        entered,
        leaves,
        machine.addresses,
        icmp=(packet.icmp_type, packet.icmp_code) if packet.protocol in ("icmp", "icmpv6") else None,
    )


class Openings:
    """Tells packets that open a connection, as far as a capture shows: nothing has come back yet. To be asked about
    journeys in order of time."""

    def __init__(self) -> None:
        self._answered: set[Flow] = set()

    def opens(self, packet: Packet) -> bool:
        """Whether nothing of the packet's connection can have passed before it."""
        match packet.protocol:
            case "tcp":
                return packet.tcp_flags == "SYN"
            case "udp":
                return _flow(packet) not in self._answered
            case "sctp":
                return packet.summary.endswith("[INIT]")
            case "icmp" | "icmpv6":
                return packet.icmp_type in _ECHO_REQUESTS and _flow(packet) not in self._answered
        return False

    def note(self, hops: Sequence[Hop]) -> None:
        """A journey has been looked at: what goes the other way now is an answer."""
        for packet in (hops[0].packet, hops[-1].packet):
            protocol, source, source_port, target, target_port = _flow(packet)
            self._answered.add((protocol, target, target_port, source, source_port))


def _flow(packet: Packet) -> Flow:
    if packet.icmp_id:
        return packet.protocol, packet.source, packet.icmp_id, packet.target, packet.icmp_id
    return packet.protocol, packet.source, packet.source_port, packet.target, packet.target_port
