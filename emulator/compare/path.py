"""What one followed packet went through, counted from its hops and from nothing else.

Every number here is read off captured frames: the plan says what should happen, a comparison may only say what did.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from emulator.capture.model import Hop, Journey, Reason, Tunnel


class RouteTaken(msgspec.Struct, frozen=True):
    """A route that the packet followed in ``ns``, as the hop's reason names it."""

    ns: str
    reason: Reason


class Path(msgspec.Struct, frozen=True):
    """One packet's way, in numbers.

    ``traversals`` counts sightings, one per device and direction; ``routed`` the TTL that routers took from the packet
    itself and ``outer_routed`` what they took from tunnel headers around it. ``encapsulations`` holds the tunnel at
    each point where one was put on; ``namespaces`` the way with consecutive repeats removed. Times in microseconds.
    """

    traversals: int
    per_namespace: tuple[tuple[str, int], ...]
    namespaces: tuple[str, ...]
    routed: int
    outer_routed: int
    first_ttl: int
    last_ttl: int
    encapsulations: tuple[Tunnel, ...]
    source_sent: str
    source_seen: str
    target_sent: str
    target_seen: str
    routes: tuple[RouteTaken, ...]
    elapsed: float

    @property
    def encapsulation_bytes(self) -> int:
        """Bytes of tunnel headers put on this packet on its way."""
        return sum(tunnel.overhead for tunnel in self.encapsulations)


def path_of(journey: Journey) -> Path:
    """The way of one packet. The journey has at least one hop."""
    hops = journey.hops
    counts: dict[str, int] = {}
    for hop in hops:
        counts[hop.ns] = counts.get(hop.ns, 0) + 1
    routed = [hop for hop in hops if hop.packet.version]  # ARP has no TTL
    first, last = (routed[0], routed[-1]) if routed else (hops[0], hops[-1])
    return Path(
        traversals=len(hops),
        per_namespace=tuple(counts.items()),
        namespaces=tuple(hop.ns for number, hop in enumerate(hops) if not number or hops[number - 1].ns != hop.ns),
        routed=sum(max(0, before.packet.ttl - after.packet.ttl) for before, after in pairwise(routed)),
        outer_routed=sum(_outer_loss(before, after) for before, after in pairwise(hops)),
        first_ttl=first.packet.ttl,
        last_ttl=last.packet.ttl,
        encapsulations=_encapsulations(hops),
        source_sent=first.packet.source,
        source_seen=last.packet.source,
        target_sent=first.packet.target,
        target_seen=last.packet.target,
        routes=_routes(hops),
        elapsed=hops[-1].elapsed / 1000,
    )


def same_tunnel(one: Tunnel | None, other: Tunnel | None) -> bool:
    """Whether two sightings show one and the same encapsulation: a router changes its TTL and MACs, no more."""
    if one is None or other is None:
        return one is other
    return (one.kind, one.vni, one.source, one.target, one.source_port, one.target_port) == (
        other.kind,
        other.vni,
        other.source,
        other.target,
        other.source_port,
        other.target_port,
    )


def _encapsulations(hops: tuple[Hop, ...]) -> tuple[Tunnel, ...]:
    found = []
    previous: Tunnel | None = None
    for hop in hops:
        tunnel = hop.packet.tunnel
        if tunnel is not None and not same_tunnel(previous, tunnel):
            found.append(tunnel)
        previous = tunnel
    return tuple(found)


def _outer_loss(before: Hop, after: Hop) -> int:
    """What a router took from the outer TTL between two sightings of one encapsulation."""
    one, other = before.packet.tunnel, after.packet.tunnel
    if one is None or other is None or not same_tunnel(one, other):
        return 0
    return max(0, one.ttl - other.ttl)


def _routes(hops: tuple[Hop, ...]) -> tuple[RouteTaken, ...]:
    """The routes outside pods: a pod's default route says nothing about the style's way between nodes."""
    found: dict[tuple[str, str], RouteTaken] = {}
    for hop in hops:
        for reason in hop.reasons:
            # An address with its prefix stands for the connected route that the kernel makes of it.
            if reason.subject.startswith(("route ", "address ")) and not hop.ns.startswith("pod/"):
                found.setdefault((hop.ns, reason.subject), RouteTaken(hop.ns, reason))
    return tuple(found.values())
