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

Fragments are packets of their own, until a node puts them together (:mod:`emulator.capture.reassembly`). The journey of
the first one, the lead, is that of the datagram: it goes on with the whole datagram's sightings, and with the first
piece when the datagram is cut again. The others go on if the same pieces leave the node that put them together (the
kernel keeps them). If the datagram left whole they end there, and pieces that are cut further on begin journeys of
their own. A packet that a router cuts goes on in its first piece likewise. All pieces name their lead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from emulator.capture.decode import NEIGHBOUR_TYPES, carried, decode
from emulator.capture.identity import Identity, Piece, content_of_ipv4, identify
from emulator.capture.model import Change, Event, Hop, Journey, Kind, Packet, Tunnel
from emulator.capture.reassembly import Assembled, Reassembly, is_part
from emulator.capture.sealed import links

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
    "more_fragments",
    "length",
)
COMPARED_OUTER = ("source", "target", "ttl", "source_mac", "target_mac", "source_port", "vni")


class Followed(NamedTuple):
    """``uncorrelated`` are the sightings that belong to no journey from its beginning: neither IP nor ARP, or of a
    packet whose first sighting is on its way in, although something must have sent it."""

    journeys: list[Journey]
    uncorrelated: list[Event]


class _Open:
    """A journey in the making. ``lead`` is the journey of the datagram that this one is a piece of.

    A lead knows the other ``pieces`` that it was put together with, and ``where``.
    """

    __slots__ = ("ended", "events", "lead", "pairs", "pieces", "places", "sealed", "time", "ttl", "where")

    def __init__(self) -> None:
        self.lead: _Open | None = None
        self.pieces: list[_Open] = []
        self.where = ""
        self.ended = False
        self.events: list[Event] = []
        self.sealed: dict[int, Event] = {}  # the packet inside, by id of a sighting that is encrypted
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
    follower = _Follower(gap, stall)
    for event in in_order(events):
        follower.sighting(event)
    follower.begun = _with_carriers(follower.begun)
    uncorrelated = follower.unknown
    if complete:
        uncorrelated += [event for each in follower.begun if each.events[0].direction == "in" for event in each.events]
    return Followed(_journeys(follower.begun, first_id), uncorrelated)


class _Follower:
    """Takes sightings in order of time. ``begun`` are all journeys, ``unknown`` what is neither IP nor ARP."""

    def __init__(self, gap: int, stall: int) -> None:
        self.begun: list[_Open] = []
        self.unknown: list[Event] = []
        self._gap, self._stall = gap, stall
        self._open: dict[Hashable, list[_Open]] = {}
        self._identities: dict[bytes, Identity | None] = {}
        self._datagrams: Reassembly[_Open] = Reassembly(stall)
        self._cuttings: dict[Hashable, Assembled[_Open]] = {}  # what was cut where under which identification
        self._whole: dict[Hashable, list[_Open]] = {}  # IPv4 packets by identification, as far as they are indexed
        self._indexed = 0

    def sighting(self, event: Event) -> None:
        """Find the journey that a sighting belongs to, or begin one."""
        identity = self._identify(event.frame)
        if identity is None:
            self.unknown.append(event)
            return
        place = (event.ns, event.device, event.direction, identity.ttl, identity.tunnelled)
        candidates = self._open.setdefault(identity.key, [])
        journey = self._among(candidates, event, place, identity)
        if journey is None and not identity.tunnelled:
            journey = self._put_together(event, place, identity) or self._cut(event, place, identity)
            if journey is not None and journey not in candidates:
                candidates.append(journey)
        if journey is None:
            journey = _Open()
            candidates.append(journey)
        if not journey.events:
            self.begun.append(journey)
        journey.events.append(event)
        journey.places.add(place)
        journey.pairs.add(identity.pair)
        journey.ttl, journey.time = identity.ttl, event.time
        if identity.piece is not None:
            if event.direction == "in" and not identity.tunnelled:
                self._datagrams.arrived(event.ns, identity.pair, identity.piece, journey, event.time)
        elif journey.pieces and event.ns != journey.where:
            for piece in journey.pieces:
                piece.ended = True
            journey.pieces = []

    def _identify(self, frame: bytes) -> Identity | None:
        if frame not in self._identities:
            self._identities[frame] = identify(frame)
        return self._identities[frame]

    def _among(self, candidates: list[_Open], event: Event, place: Hashable, identity: Identity) -> _Open | None:
        return _continued(candidates, event.time, place, identity, self._gap, self._stall)

    def _put_together(self, event: Event, place: Hashable, identity: Identity) -> _Open | None:
        """The lead of the datagram that this whole packet is, if it was reassembled here."""
        if identity.piece is not None:
            return None
        for made in self._datagrams.whole(event.ns, identity.key, event.time):
            lead = self._among([made.lead], event, place, identity)
            if lead is not None:
                lead.pieces = [owner for owner in made.owners.values() if owner is not lead]
                lead.where = event.ns
                return lead
        return None

    def _cut(self, event: Event, place: Hashable, identity: Identity) -> _Open | None:
        """The journey of a piece that leaves the machine that cut it: see the head of this module."""
        piece = identity.piece
        if piece is None or event.direction != "out":
            return None
        cutting = (event.ns, piece.kind, piece.protocol, piece.ident)
        for made in self._datagrams.cut_from(event.ns, piece, event.time):
            # Further pieces of two datagrams may be equal; their first pieces were not, and went ahead.
            if self._cuttings.get(cutting, made) is not made:
                continue
            same = made.owners.get((piece.offset, len(piece.data)))
            found = self._among([same] if same is not None else [], event, place, identity)
            found = found or self._new_piece(made.lead, event, place, identity)
            if found is not None:
                self._cuttings[cutting] = made
                return found
        for lead in self._of_identification(piece):
            whole = self._as_it_came(lead, event)
            if whole is not None and is_part(piece, whole):
                found = self._new_piece(lead, event, place, identity)
                if found is not None:
                    return found
        return None

    def _new_piece(self, lead: _Open, event: Event, place: Hashable, identity: Identity) -> _Open | None:
        """What a piece belongs to that is cut at a new place: the lead if it is the first, else a new journey."""
        if identity.piece is not None and not identity.piece.offset:
            return self._among([lead], event, place, identity)
        if _turned_round(lead, identity):
            return None  # a piece of the answer, which may hold the same bytes
        piece = _Open()
        piece.lead = lead
        return piece

    def _of_identification(self, piece: Piece) -> list[_Open]:
        """IPv4 packets that a router may have cut: it keeps the identification. Indexed once fragments are seen."""
        for journey in self.begun[self._indexed :]:
            identity = self._identify(journey.events[0].frame)
            if identity is not None and isinstance(identity.key, tuple):
                self._whole.setdefault(identity.key[:3], []).append(journey)
        self._indexed = len(self.begun)
        return self._whole.get((piece.kind, piece.protocol, piece.ident), []) if piece.kind == 0x0800 else []

    def _as_it_came(self, journey: _Open, event: Event) -> bytes | None:
        """What the packet, whole, held above its IP header when it came into the namespace of ``event``."""
        if event.time - journey.time > self._stall:
            return None
        for each in reversed(journey.events):
            identity = self._identify(each.frame)
            if each.ns == event.ns and each.direction == "in" and identity is not None:
                return None if identity.piece is not None or identity.tunnelled else content_of_ipv4(each.frame)
        return None


def _continued(
    candidates: list[_Open], time: int, place: Hashable, identity: Identity, gap: int, stall: int
) -> _Open | None:
    best: _Open | None = None
    best_rank: tuple[bool, int, int] | None = None
    for index in range(len(candidates) - 1, -1, -1):
        each = candidates[index]
        age = time - each.time
        if age > stall or each.ended:
            del candidates[index]
            continue
        if place in each.places or identity.ttl > each.ttl:
            continue
        if _turned_round(each, identity):
            continue
        near = age <= gap
        rank = (near, len(each.events) if near else 0, -index if near else each.time)
        if best_rank is None or rank > best_rank:
            best, best_rank = each, rank
    return best


def _turned_round(journey: _Open, identity: Identity) -> bool:
    """Whether a packet's addresses are those of the journey, exchanged: it is an answer."""
    return bool(identity.pair) and identity.turned in journey.pairs and identity.pair not in journey.pairs


def _with_carriers(begun: list[_Open]) -> list[_Open]:
    """The journeys with the encrypted packets that carried them among their sightings: those are none of their own."""
    gone: set[int] = set()
    grown: set[int] = set()
    for link in links([each.events for each in begun]):
        journey, carrier = begun[link.carried], begun[link.carrier]
        journey.events = [*journey.events, *carrier.events]
        journey.sealed |= {id(event): link.inner for event in carrier.events}
        gone.add(link.carrier)
        grown.add(link.carried)
    for number in grown:
        begun[number].events = in_order(begun[number].events)
    return [each for number, each in enumerate(begun) if number not in gone]


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
            if each.sealed and (inner := each.sealed.get(id(event))) is not None:
                key = (event.frame + inner.frame, event.length)
                if key not in packets:
                    packets[key] = carried(packet, decode(inner.frame, inner.length))
                packet = packets[key]
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
    numbers = {each: number for number, each in enumerate(begun, start=first_id)}
    return _linked(journeys, {numbers[each]: numbers[each.lead] for each in begun if each.lead is not None})


def kind_of(packet: Packet) -> Kind:
    """What a packet is besides payload: see :class:`Journey`."""
    if packet.protocol in ("arp", "igmp") or (packet.protocol == "icmpv6" and packet.icmp_type in NEIGHBOUR_TYPES):
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


def _linked(journeys: list[Journey], leads: Mapping[int, int]) -> list[Journey]:
    """Fill ``about``: errors point at the packet that they quote, fragments at the first piece of their datagram.

    ``leads`` are those that are known already.
    """
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
            about = leads.get(journey.id) or first_piece.get(datagram, 0)
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
