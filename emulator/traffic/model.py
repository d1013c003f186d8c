"""What is asked of the traffic engine, and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

Protocol = Literal["icmp", "tcp", "udp"]
Verdict = Literal["delivered", "refused", "dropped", "unreachable"]


class Server(msgspec.Struct, frozen=True, omit_defaults=True):
    """Listening sockets in one namespace, answering as Kubernetes' agnhost netexec does.

    ``hostname`` is what ``/hostname`` answers (the pod's name). ``ports`` are (port, ``TCP`` or ``UDP``).
    """

    ns: str
    netns: str
    hostname: str
    ports: tuple[tuple[int, str], ...]


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """Packets to send from one namespace, and answers to wait for.

    ``netns`` is a path; ``target`` an address. ``size`` is the L4 payload in bytes (for ICMP the data after the 8-byte
    header; 0: the protocol's own small default). ``timeout`` and ``interval`` are seconds. ``dont_fragment`` sets DF and
    disables fragmentation at the sender; path-MTU answers then show as ``unreachable`` with the MTU in the detail.
    """

    id: str
    netns: str
    target: str
    protocol: Protocol
    port: int = 0
    count: int = 1
    size: int = 0
    timeout: float = 1.0
    interval: float = 0.0
    dont_fragment: bool = False
    source: str = ""
    source_port: int = 0
    ttl: int = 0


class ProbeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came back.

    ``delivered``: at least one answer; ``refused``: RST or ICMP port unreachable; ``unreachable``: another ICMP error
    (``detail`` names it and who sent it); ``dropped``: silence until the timeout. ``times`` are round trips in
    microseconds. ``answered_by`` is the server's hostname, ``source_seen`` the client address as the server saw it
    (both empty for ICMP).
    """

    id: str
    verdict: Verdict
    sent: int
    received: int
    times: tuple[float, ...] = ()
    answered_by: str = ""
    source_seen: str = ""
    detail: str = ""

    @property
    def reached(self) -> bool:
        """Whether anything answered."""
        return self.verdict == "delivered"
