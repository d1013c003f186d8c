"""Source ports and ICMP ids that were not used lately.

The kernel chooses ports at random, so now and then two probes share a 5-tuple within conntrack's timeout, and
the second follows the first one's translation instead of asking for its own, or passes as a packet of a connection that
was allowed when it began. Here each sender and protocol counts through the whole range instead. Where counting
begins depends on the namespace, so that a node that masquerades several pods can keep the ports as they are.

A pod is known by its address: whoever has it next goes on counting, since connection tracking takes both for one.

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
    """One counter for each sender and protocol."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], dict[int, float]] = {}
        self._first: dict[tuple[str, str], int] = {}

    def take(self, netns: str, protocol: str, *, sender: str = "", fresh: bool = False) -> int:
        """The next one; ``protocol`` is ``tcp``, ``udp``, ``sctp`` or ``icmp``. ``sender`` is the address that the
        namespace sends from, if it has but one.

        ``fresh``: raises NoFreshPort where that one may still be known from its last use.
        """
        key = (sender or netns, protocol)
        number = self._next.get(key, 0)
        size = ICMP_IDS if protocol == "icmp" else PORTS
        used = self._used.setdefault(key, {})
        block = number // BLOCK
        now = self._clock()
        if fresh and number >= size and now - used.get((number - size) // BLOCK, now) < HELD:
            raise NoFreshPort(f"every {protocol} port of this sender was used within the last {HELD:.0f} s")
        used[block] = now
        if number % BLOCK == 0:
            used.pop((number - 2 * size) // BLOCK, None)
        self._next[key] = number + 1
        index = self._first.setdefault(key, zlib.crc32(netns.encode())) + number
        return 1 + index % ICMP_IDS if protocol == "icmp" else FIRST_PORT + index % PORTS
