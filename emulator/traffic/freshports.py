"""Source ports and ICMP ids that were not used lately.

The kernel chooses ports at random, so now and then two probes share a 5-tuple within conntrack's timeout, and
the second follows the first one's translation instead of asking for its own. Here each namespace and protocol counts
through the whole range instead. Where counting begins depends on the namespace, so that a node that masquerades
several pods can keep the ports as they are.
"""

from __future__ import annotations

import zlib

FIRST_PORT = 32768  # net.ipv4.ip_local_port_range, the kernel's default
PORTS = 60999 - FIRST_PORT + 1
ICMP_IDS = 65535  # 1 to 65535: an id of 0 is legal, but the kernel's ping sockets never use it


class FreshPorts:
    """One counter for each namespace and protocol."""

    def __init__(self) -> None:
        self._next: dict[tuple[str, str], int] = {}

    def take(self, netns: str, protocol: str) -> int:
        """The next one; ``protocol`` is ``tcp``, ``udp`` or ``icmp``."""
        key = (netns, protocol)
        index = self._next.get(key)
        if index is None:
            index = zlib.crc32(netns.encode())
        self._next[key] = index + 1
        return 1 + index % ICMP_IDS if protocol == "icmp" else FIRST_PORT + index % PORTS
