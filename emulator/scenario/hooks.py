"""From counters to a figure: how often a packet of a flow passed each netfilter hook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from emulator.capture.model import Journey

_NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "icmpv6": 58}


def passes(
    rows: Sequence[Sequence[object]], requests: Sequence[Journey], others: Sequence[Journey] = ()
) -> dict[str, dict[str, int]]:
    """Hook passes of one request, per namespace and hook, its tunnel packets included.

    ``rows`` are [namespace, hook, source, target, protocol number, packets], counted while the requests travelled.
    Counted are the address pairs under which the requests were seen on the wire, so that replies, BGP and the rest
    stay out. A WireGuard tunnel's own packets (handshakes, keepalives) have its pair too: they are seen among the
    ``others``, go the same way, and are taken off.
    """
    if not requests:
        return {}
    pairs: set[tuple[str, str, int]] = set()
    for journey in requests:
        for hop in journey.hops:
            packet = hop.packet
            pairs.add((packet.source, packet.target, _NUMBERS.get(packet.protocol, 0)))
            if packet.tunnel is not None:
                number = 4 if packet.tunnel.kind == "ipip" else 17
                pairs.add((packet.tunnel.source, packet.tunnel.target, number))
    shares = _shares(requests, others)
    totals: dict[str, dict[str, int]] = {}
    for ns, hook, source, target, protocol, packets in rows:
        if (source, target, protocol) in pairs:
            hooks = totals.setdefault(str(ns), {})
            share = shares.get((str(source), str(target)), 1.0) if protocol == _NUMBERS["udp"] else 1.0
            hooks[str(hook)] = hooks.get(str(hook), 0) + round(int(str(packets)) * share)
    return {ns: {hook: round(count / len(requests)) for hook, count in hooks.items()} for ns, hooks in totals.items()}


def _shares(requests: Sequence[Journey], others: Sequence[Journey]) -> dict[tuple[str, str], float]:
    """How much of what a WireGuard tunnel's ends sent each other were the requests, by outer source and target."""
    carried: Counter[tuple[str, str]] = Counter()
    for journey in requests:
        tunnels = {hop.packet.tunnel for hop in journey.hops if hop.packet.tunnel is not None}
        carried.update({(each.source, each.target) for each in tunnels if each.kind == "wireguard"})
    own = Counter(
        (packet.source, packet.target)
        for packet in (journey.hops[0].packet for journey in others)
        if packet.protocol == "udp" and packet.summary.startswith("WireGuard")
    )
    return {pair: count / (count + own[pair]) for pair, count in carried.items()}
