"""From counters to a figure: how often a packet of a flow passed each netfilter hook."""

from __future__ import annotations

from collections.abc import Sequence

from emulator.capture.model import Journey

_NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "icmpv6": 58}


def passes(rows: Sequence[Sequence[object]], requests: Sequence[Journey]) -> dict[str, dict[str, int]]:
    """Hook passes of one request, per namespace and hook, its tunnel packets included.

    ``rows`` are [namespace, hook, source, target, protocol number, packets], counted while the requests travelled.
    Counted are the address pairs under which the requests were seen on the wire, so that replies, BGP and the rest
    stay out.
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
    totals: dict[str, dict[str, int]] = {}
    for ns, hook, source, target, protocol, packets in rows:
        if (source, target, protocol) in pairs:
            hooks = totals.setdefault(str(ns), {})
            hooks[str(hook)] = hooks.get(str(hook), 0) + int(str(packets))
    return {ns: {hook: round(count / len(requests)) for hook, count in hooks.items()} for ns, hooks in totals.items()}
