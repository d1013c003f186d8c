"""Which sightings are one packet, in which order, and what each hop changed in it.

::

    events ──sort by time──▶ identify ──▶ the open journey of that key, or a new one ──▶ hops with their changes

All namespaces share one kernel and so one clock: time orders the hops. Keys (:mod:`emulator.capture.identity`) can
still repeat: a retransmission over IPv6, a second datagram with the same payload and identification 0. A sighting
belongs to an open journey only if it may be its continuation:

* the packet was not seen before at that place (device, direction, TTL, in a tunnel or not);
* its TTL is not above that of the hop before;
* its addresses are not those of an earlier hop turned round: a server that echoes a datagram sends another one;
* it was last seen less than ``stall`` ago.

Among several, the one that has come furthest wins while it was seen within ``gap``, for packets of one flow do not
overtake each other; beyond that the latest seen, for the others have been dropped. Time alone never ends a journey
early: an impaired link, or a machine that stalls, may hold a packet for long.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from emulator.capture.decode import NEIGHBOUR_TYPES, decode
from emulator.capture.identity import Identity, identify
from emulator.capture.model import Change, Event, Hop, Journey, Kind, Packet, Tunnel

GAP = 10_000_000  # ns between two hops of a packet in a machine that is not stalled (measured: below 1 ms)
STALL = 2_000_000_000  # ns that an impaired link or a stalled machine may hold a packet between two hops

COMPARED = (
    "ttl",
    "source_mac",
    "target_mac",
    "source",
    "target",
    "source_port",
    "target_port",
    "icmp_id",
    "vlan",
    "length",
)
COMPARED_OUTER = ("source", "target", "ttl", "source_mac", "target_mac", "source_port", "vni")


class Followed(NamedTuple):
    """``uncorrelated`` are the sightings that belong to no journey from its beginning: neither IP nor ARP, or of a
    packet whose first sighting is on its way in, although something must have sent it."""

    journeys: list[Journey]
    uncorrelated: list[Event]


class _Open:
    """A journey in the making."""

    __slots__ = ("events", "pairs", "places", "time", "ttl")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.places: set[Hashable] = set()
        self.pairs: set[bytes] = set()
        self.ttl = 255
        self.time = 0


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events by time. Equal stamps keep the order of their namespace, and what went out comes before what came in."""
    return sorted(events, key=lambda event: (event.time, event.direction == "in"))


def follow(
    events: Iterable[Event], *, gap: int = GAP, stall: int = STALL, complete: bool = True, first_id: int = 1
) -> Followed:
    """Group events into journeys, numbered from ``first_id`` in order of their first hop. ``gap`` and ``stall`` are ns.

    ``complete`` says that all namespaces were captured, so that each packet must first be seen on its way out.
    """
    open_by_key: dict[Hashable, list[_Open]] = {}
    begun: list[_Open] = []
    uncorrelated: list[Event] = []
    identities: dict[bytes, Identity | None] = {}
    for event in in_order(events):
        if event.frame in identities:
            identity = identities[event.frame]
        else:
            identity = identities[event.frame] = identify(event.frame)
        if identity is None:
            uncorrelated.append(event)
            continue
        place = (event.ns, event.device, event.direction, identity.ttl, identity.tunnelled)
        candidates = open_by_key.setdefault(identity.key, [])
        journey = _continued(candidates, event.time, place, identity, gap, stall)
        if journey is None:
            journey = _Open()
            candidates.append(journey)
            begun.append(journey)
        journey.events.append(event)
        journey.places.add(place)
        journey.pairs.add(identity.pair)
        journey.ttl, journey.time = identity.ttl, event.time
    if complete:
        uncorrelated += [event for each in begun if each.events[0].direction == "in" for event in each.events]
    return Followed(_journeys(begun, first_id), uncorrelated)


def _continued(
    candidates: list[_Open], time: int, place: Hashable, identity: Identity, gap: int, stall: int
) -> _Open | None:
    best: _Open | None = None
    best_rank: tuple[bool, int, int] | None = None
    for index in range(len(candidates) - 1, -1, -1):
        each = candidates[index]
        age = time - each.time
        if age > stall:
            del candidates[index]
            continue
        if place in each.places or identity.ttl > each.ttl:
            continue
        if identity.pair and identity.turned in each.pairs and identity.pair not in each.pairs:
            continue
        near = age <= gap
        rank = (near, len(each.events) if near else 0, -index if near else each.time)
        if best_rank is None or rank > best_rank:
            best, best_rank = each, rank
    return best


def _journeys(begun: Sequence[_Open], first_id: int) -> list[Journey]:
    packets: dict[tuple[bytes, int], Packet] = {}
    journeys = []
    for number, each in enumerate(begun, start=first_id):
        start = each.events[0].time
        hops: list[Hop] = []
        before: Packet | None = None
        for event in each.events:
            seen = (event.frame, event.length)
            packet = packets.get(seen)
            if packet is None:
                packet = packets[seen] = decode(event.frame, event.length)
            changes = () if before is None or packet is before else differences(before, packet)
            hops.append(
                Hop(
                    event.time,
                    event.time - start,
                    event.ns,
                    event.device,
                    event.direction,
                    packet,
                    changes,
                    promiscuous=event.promiscuous,
                )
            )
            before = packet
        journeys.append(Journey(number, tuple(hops), kind_of(hops[0].packet)))
    return _linked(journeys)


def kind_of(packet: Packet) -> Kind:
    """What a packet is besides payload: see :class:`Journey`."""
    if packet.protocol == "arp" or (packet.protocol == "icmpv6" and packet.icmp_type in NEIGHBOUR_TYPES):
        return "neighbour"
    if packet.quoted is not None:
        return "error"
    return "fragment" if packet.more_fragments or packet.fragment_offset else "packet"


def differences(before: Packet, after: Packet) -> tuple[Change, ...]:
    """The header fields in which two sightings of one packet differ, in the order of :data:`COMPARED`.

    A tunnel that appears or vanishes is one change; within one tunnel its outer fields are compared, as ``tunnel.ttl``.
    """
    changes = []
    for name in COMPARED:
        old, new = getattr(before, name), getattr(after, name)
        # A packet without an Ethernet header of its own (inside IPIP) has no MACs to compare.
        if old != new and not (name.endswith("_mac") and not (old and new)):
            changes.append(Change(name, str(old), str(new)))
    old_tunnel, new_tunnel = before.tunnel, after.tunnel
    if old_tunnel is None or new_tunnel is None:
        if old_tunnel is not new_tunnel:
            changes.append(Change("tunnel", tunnel_text(old_tunnel), tunnel_text(new_tunnel)))
    elif old_tunnel != new_tunnel:
        for name in COMPARED_OUTER:
            old, new = getattr(old_tunnel, name), getattr(new_tunnel, name)
            if old != new:
                changes.append(Change(f"tunnel.{name}", str(old), str(new)))
    return tuple(changes)


def tunnel_text(tunnel: Tunnel | None) -> str:
    """``vxlan 192.168.0.1 → 192.168.0.2 vni 1``; empty for none."""
    if tunnel is None:
        return ""
    return f"{tunnel.kind} {tunnel.source} → {tunnel.target}" + (f" vni {tunnel.vni}" if tunnel.vni else "")


def _linked(journeys: list[Journey]) -> list[Journey]:
    """Fill ``about``: errors point at the packet that they quote, fragments at the first piece of their datagram."""
    seen: dict[tuple[int, str, int], list[Journey]] = {}
    first_piece: dict[tuple[str, str, str, int], int] = {}
    linked = []
    for journey in journeys:
        packet = journey.hops[0].packet
        about = 0
        if packet.quoted is not None:
            about = _quoted(packet.quoted, seen)
        elif journey.kind == "fragment":
            datagram = (packet.source, packet.target, packet.protocol, packet.ip_id)
            if packet.fragment_offset == 0:
                first_piece[datagram] = journey.id
            about = first_piece.get(datagram, 0)
        seen.setdefault((packet.version, packet.protocol, packet.ip_id), []).append(journey)
        linked.append(Journey(journey.id, journey.hops, journey.kind, about) if about else journey)
    return linked


def _quoted(quoted: Packet, seen: dict[tuple[int, str, int], list[Journey]]) -> int:
    for journey in reversed(seen.get((quoted.version, quoted.protocol, quoted.ip_id), [])):
        # The error quotes the packet as its sender saw it, at any hop: NAT may have come before or after.
        for hop in journey.hops:
            packet = hop.packet
            if (packet.source, packet.target, packet.source_port, packet.tcp_seq, packet.icmp_seq) == (
                quoted.source,
                quoted.target,
                quoted.source_port,
                quoted.tcp_seq,
                quoted.icmp_seq,
            ):
                return journey.id
    return 0
