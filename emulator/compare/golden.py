"""A run's hop lists without what differs from run to run: what golden captures are compared by.

Left out are times, IP ids, ephemeral ports and ICMP ids; for each flow the first packet in each direction speaks for
the rest, since how many segments TCP takes depends on the moment. Everything else is compared to the letter: devices,
direction, MACs, addresses, TTL, encapsulation, length, and the plan objects that explain each hop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emulator.capture.model import Hop, Journey, Packet
from emulator.compare.records import FlowJourney

EPHEMERAL = 1024  # ports from here on are chosen by the kernel, or by us from a range of our own


def speaking(journeys: Iterable[FlowJourney]) -> list[FlowJourney]:
    """The first packet of each flow in each direction."""
    return [item for item in journeys if item.index == 0]


def hop_lists(journeys: Sequence[FlowJourney]) -> str:
    """The normalised hop lists of :func:`speaking` journeys as text, a line a hop, blocks parted by empty lines."""
    blocks = []
    for item in speaking(journeys):
        lines = [f"{item.flow} {item.direction}"]
        for hop in item.journey.hops:
            lines.append(f"  {_hop(hop)}")
            lines += [f"      {reason.subject} ({reason.component}): {reason.why}" for reason in hop.reasons]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def same_way(journey: Journey, other: Journey) -> bool:
    """Whether two packets went the same way, by the normalised hops."""
    return [_hop(hop) for hop in journey.hops] == [_hop(hop) for hop in other.hops]


def _hop(hop: Hop) -> str:
    packet = hop.packet
    parts = [
        f"{hop.ns} {hop.device} {hop.direction}:",
        f"{packet.source_mac} > {packet.target_mac}",
        f"{packet.source}{_port(packet.source_port)} > {packet.target}{_port(packet.target_port)}",
        _protocol(packet),
        f"ttl {packet.ttl}",
        f"length {packet.length}",
    ]
    tunnel = packet.tunnel
    if tunnel is not None:
        parts.append(
            f"in {tunnel.kind} {tunnel.vni} {tunnel.source} > {tunnel.target} port {tunnel.target_port} "
            f"ttl {tunnel.ttl} +{tunnel.overhead}"
        )
    return " ".join(parts)


def _port(port: int) -> str:
    if not port:
        return ""
    return ":*" if port >= EPHEMERAL else f":{port}"


def _protocol(packet: Packet) -> str:
    if packet.protocol in ("icmp", "icmpv6"):
        mtu = f" mtu {packet.icmp_mtu}" if packet.icmp_mtu else ""
        return f"{packet.protocol} {packet.icmp_type}/{packet.icmp_code}{mtu}"
    return f"{packet.protocol} {packet.tcp_flags}".rstrip()
