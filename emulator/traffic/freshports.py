"""Source ports and ICMP ids that were not used lately.

The kernel chooses ports at random, so now and then two probes share a 5-tuple within conntrack's timeout, and
the second follows the first one's translation instead of asking for its own, or passes as a packet of a connection that
was allowed when it began. Here each namespace and protocol counts through the whole range instead. Where counting
begins depends on the namespace, so that a node that masquerades several pods can keep the ports as they are.

Connection tracking knows a pod by its address, and takes whoever has the address next for the same: it gets none of
the ports that the one before used.

Who needs a verdict and not just an answer asks for a *fresh* port: rather than one that was handed out within
:data:`HELD` seconds, for whatever purpose, it gets none.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

FIRST_PORT = 32768  # net.ipv4.ip_local_port_range, the kernel's default
PORTS = 60999 - FIRST_PORT + 1
ICMP_IDS = 65535  # 1 to 65535: an id of 0 is legal, but the kernel's ping sockets never use it
# s: the longest that a finished flow stays in connection tracking (nf_conntrack_tcp_timeout_time_wait and
# nf_conntrack_udp_timeout_stream are 120; SCTP's and ICMP's are shorter). A TCP connection that lives holds its port.
HELD = 121.0
BLOCK = 256  # ports whose use is remembered together


class NoFreshPort(OSError):
    """Every port of the range was handed out within :data:`HELD` seconds."""


class FreshPorts:
    """One counter for each namespace and protocol."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], dict[int, float]] = {}
        # Who last used a block of ports with an address, and when
        self._by_address: dict[tuple[str, str], dict[int, tuple[str, float]]] = {}

    def take(self, netns: str, protocol: str, *, sender: str = "", fresh: bool = False) -> int:
        """The next one; ``protocol`` is ``tcp``, ``udp``, ``sctp`` or ``icmp``. ``sender`` is the address that the
        namespace sends from, if it has but one of that family: what another namespace used with it lately is left out.

        ``fresh``: raises NoFreshPort where that one may still be known from its last use.
        """
        key = (netns, protocol)
        size = ICMP_IDS if protocol == "icmp" else PORTS
        begin = zlib.crc32(netns.encode())
        now = self._clock()
        number = self._next.get(key, 0)
        if sender:
            number = self._beside_others(netns, protocol, sender, begin, number, size, now, fresh=fresh)
        used = self._used.setdefault(key, {})
        block = number // BLOCK
        if fresh and number >= size and now - used.get((number - size) // BLOCK, now) < HELD:
            raise NoFreshPort(f"every {protocol} port of this sender was used within the last {HELD:.0f} s")
        used[block] = now
        if number % BLOCK == 0:
            used.pop((number - 2 * size) // BLOCK, None)
        self._next[key] = number + 1
        place = (begin + number) % size
        return 1 + place if protocol == "icmp" else FIRST_PORT + place

    def _beside_others(
        self, netns: str, protocol: str, sender: str, begin: int, number: int, size: int, now: float, *, fresh: bool
    ) -> int:
        """The first number from ``number`` on whose block no other namespace has used with that address of late."""
        blocks = self._by_address.setdefault((sender, protocol), {})
        first, block = number, (begin + number) % size // BLOCK
        while number < first + size:
            place = (begin + number) % size
            owner, then = blocks.get(place // BLOCK, (netns, now))
            if owner == netns or now - then >= HELD:
                blocks[place // BLOCK] = netns, now
                return number
            number += min(BLOCK - place % BLOCK, size - place)
        if fresh:
            raise NoFreshPort(f"every {protocol} port of {sender} was used within the last {HELD:.0f} s")
        blocks[block] = netns, now
        return first
