"""A run's hop lists without what differs from run to run: what golden captures are compared by.

Left out are times, IP ids, ICMP ids and the ports that the kernel chooses (the client's, a tunnel's outer source port);
for each flow the first packet in each direction speaks for the rest, since how many segments TCP takes depends on the
moment. Everything else is compared to the letter: devices, direction, MACs, addresses, the server's port, TTL,
encapsulation, length, and the plan objects that explain each hop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emulator.capture.model import Hop, Journey, Packet
from emulator.compare.records import FlowJourney


def speaking(journeys: Iterable[FlowJourney]) -> list[FlowJourney]:
    """The first packet of each flow in each direction."""
    return [item for item in journeys if item.index == 0]


def pieces_of(item: FlowJourney, pieces: Iterable[Journey]) -> list[Journey]:
    """The further fragments of a packet, by their place in it."""
    mine = [each for each in pieces if each.about == item.journey.id]
    return sorted(mine, key=lambda each: (each.hops[0].packet.fragment_offset, each.id))


def hop_lists(journeys: Sequence[FlowJourney], pieces: Sequence[Journey] = ()) -> str:
    """The normalised hop lists of :func:`speaking` journeys as text, a line a hop, blocks parted by empty lines. The
    ``pieces`` of a packet follow it."""
    blocks = []
    for item in speaking(journeys):
        title = f"{item.flow} {item.direction}"
        blocks.append(_block(title, item.journey, item.direction))
        blocks += [_block(f"{title}, piece", piece, item.direction) for piece in pieces_of(item, pieces)]
    return "\n\n".join(blocks) + "\n"


def _block(title: str, journey: Journey, direction: str) -> str:
    lines = [title]
    for hop in journey.hops:
        lines.append(f"  {_hop(hop, direction)}")
        lines += [f"      {reason.subject} ({reason.component}): {reason.why}" for reason in hop.reasons]
    return "\n".join(lines)


def same_way(item: FlowJourney, other: Journey) -> bool:
    """Whether two packets went the same way, by the normalised hops."""
    mine, its = ([_hop(hop, item.direction) for hop in each.hops] for each in (item.journey, other))
    return mine == its


def _hop(hop: Hop, direction: str) -> str:
    packet = hop.packet
    # The far end of a request, the near end of a reply; an error has no ports of its own.
    source, target = ("*", packet.target_port) if direction == "request" else (packet.source_port, "*")
    parts = [
        f"{hop.ns} {hop.device} {hop.direction}:",
        f"{packet.source_mac} > {packet.target_mac}",
        f"{packet.source}:{source} > {packet.target}:{target}"
        if packet.source_port
        else f"{packet.source} > {packet.target}",
        _protocol(packet),
        *_piece(packet),
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


def _piece(packet: Packet) -> list[str]:
    if not packet.more_fragments and not packet.fragment_offset:
        return []
    return [f"fragment {packet.fragment_offset}+{packet.payload}{'...' if packet.more_fragments else ''}"]


def _protocol(packet: Packet) -> str:
    if packet.protocol in ("icmp", "icmpv6"):
        mtu = f" mtu {packet.icmp_mtu}" if packet.icmp_mtu else ""
        return f"{packet.protocol} {packet.icmp_type}/{packet.icmp_code}{mtu}"
    return f"{packet.protocol} {packet.tcp_flags}".rstrip()
