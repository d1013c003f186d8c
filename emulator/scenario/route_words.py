"""Routes as scenarios write them, which is as ``ip route`` prints them: ``10.244.0.64/26 via 192.168.50.12``."""

from __future__ import annotations

from ipaddress import ip_network

TYPES = ("blackhole", "unreachable", "prohibit")
KEYS = ("via", "dev", "proto")


def fits(wanted: str, route: str) -> bool:
    """Whether a route, as :class:`TableRoute` words it, is of the type, to the destination, and has all the words."""
    here, there = wanted.split(), route.split()
    head = here.index(destination_of(wanted)) + 1
    if there[:head] != here[:head]:
        return False
    pairs = list(zip(there[head::2], there[head + 1 :: 2], strict=True))
    return all(pair in pairs for pair in zip(here[head::2], here[head + 1 :: 2], strict=True))


def destination_of(text: str) -> str:
    """The CIDR, or ``default``, of a route in words."""
    first, *rest = text.split()
    return rest[0] if first in TYPES and rest else first


def fault_of_route(text: str) -> str:
    """What is wrong with a route that a scenario names; empty if nothing is."""
    words = text.split()
    rest = words[1:] if words and words[0] in TYPES else words
    if not rest:
        return "must be a route: [blackhole] DESTINATION [via GATEWAY] [dev DEVICE] [proto NAME]"
    if rest[0] != "default":
        try:
            ip_network(rest[0])
        except ValueError as error:
            return f"{rest[0]!r} is no destination: {error}"
        if "/" not in rest[0]:
            return f"{rest[0]!r} is no destination: it needs a prefix length"
    keys = rest[1::2]
    if len(rest) % 2 == 0 or not set(keys) <= set(KEYS):
        return f"{text!r}: after the destination come pairs of {', '.join(KEYS)} and a value"
    return ""
