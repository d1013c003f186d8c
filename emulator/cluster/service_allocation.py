"""Which ClusterIP and which node port is whose: the API server's allocators, without their dice.

The real ones (pkg/registry/core/service/ipallocator and portallocator) draw at random; here the Service's name decides,
so that the same cluster gets the same addresses, and others do not move when one comes or goes. As there, what is
allocated comes from the upper band of the range as long as that has room, so that the lower one stays free for what
people choose themselves (KEP-3070 for addresses, KEP-3668 for node ports).
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

from emulator.cluster.service_rules import OUTSIDE_NODE_PORTS
from emulator.cluster.services import NODE_PORTS
from emulator.cluster.validation import Network, parse_address, parse_cidr

KUBERNETES, KUBE_DNS = "default/kubernetes", "kube-system/kube-dns"
# Host numbers of the first CIDR that are kept for these: the API server takes the first, kubeadm gives DNS the tenth
RESERVED = {1: KUBERNETES, 10: KUBE_DNS}

ALLOCATED = "provided IP is already allocated"
PORT_ALLOCATED = "provided port is already allocated"


class Refused(Exception):
    """Why an address or port cannot be had, in the API server's words."""


class Allocator:
    """What is taken at one moment. Working state of one assembly: everything in it comes from the Services."""

    def __init__(self, cidrs: tuple[str, ...]) -> None:
        self._ranges: dict[int, Network] = {}
        for text in cidrs:
            network = parse_cidr(text)
            self._ranges.setdefault(network.version, network)
        self.families: tuple[int, ...] = tuple(self._ranges)
        self._addresses: dict[str, str] = {}
        self._ports: dict[int, str] = {}
        for network in list(self._ranges.values())[:1]:
            hosts = range(1, _size(network) + 1)
            self._addresses = {str(network[number]): owner for number, owner in RESERVED.items() if number in hosts}
        self._reserved = dict(self._addresses)

    def keep(self, owner: str, addresses: tuple[str, ...], ports: tuple[int, ...]) -> None:
        """Note what a Service has already."""
        for text in addresses:
            self._addresses[text] = owner
        for port in ports:
            self._ports[port] = owner

    def claim(self, owner: str, family: int, text: str) -> str:
        """The address that a Service asks for, written as addresses are. Raises Refused."""
        address = ip_address(text)
        network = self._ranges[family]
        offset = int(address) - int(network.network_address)
        if address not in network or not 1 <= offset <= _size(network):
            raise Refused(f"the provided IP ({text}) is not in the valid range. The range of valid IPs is {network}")
        plain = str(address)
        if self._addresses.setdefault(plain, owner) != owner:
            raise Refused(ALLOCATED)
        return plain

    def address(self, owner: str, family: int) -> str:
        """An address of a family for a Service that leaves the choice to us. Raises Refused if there is none left."""
        network = self._ranges[family]
        for number, holder in RESERVED.items():
            if holder == owner and self._reserved.get(text := str(network[min(number, _size(network))])) == owner:
                return text
        size = _size(network)
        low = min(max(16, network.num_addresses // 16), 256) if network.num_addresses > 16 else 0
        base = int(network.network_address)
        make = type(network.network_address)
        for first, count in ((low + 1, size - low), (1, low)):
            start = _digest(f"{owner}/{family}") % count if count else 0
            for step in range(count):
                text = str(make(base + first + (start + step) % count))
                if text not in self._addresses:
                    self._addresses[text] = owner
                    return text
        raise Refused(f"failed to allocate a serviceIP: range is full ({network})")

    def claim_port(self, owner: str, port: int) -> int:
        """The node port that a Service asks for. Raises Refused."""
        if port not in NODE_PORTS:
            raise Refused(OUTSIDE_NODE_PORTS)
        if self._ports.setdefault(port, owner) != owner:
            raise Refused(PORT_ALLOCATED)
        return port

    def port(self, owner: str, purpose: str) -> int:
        """A node port for a Service that leaves the choice to us. Raises Refused if there is none left."""
        size = len(NODE_PORTS)
        low = min(max(16, size // 32), 128)
        for first, count in ((low, size - low), (0, low)):
            start = _digest(f"{owner}/{purpose}") % count
            for step in range(count):
                port = NODE_PORTS[first + (start + step) % count]
                if port not in self._ports:
                    self._ports[port] = owner
                    return port
        raise Refused("failed to allocate a nodePort: range is full")


def _size(network: Network) -> int:
    """The host numbers of a range that can be given away: not the network's own, nor IPv4's broadcast address."""
    return max(0, network.num_addresses - (2 if network.version == 4 else 1))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def family_of(text: str) -> int:
    """4 or 6."""
    address = parse_address(text)
    assert address is not None, "checked by the rules"
    return address.version
