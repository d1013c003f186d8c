"""Which connections kube-proxy makes the kernel forget: UDP ones whose endpoint is gone.

A UDP flow keeps its entry, and so its endpoint, for as long as packets come; nothing tells the client that nobody
listens any more. After every sync kube-proxy looks at all entries: one whose original target is a Service's address
and port, or whose original target port is a node port, whatever the address, and whose answers would come from
elsewhere than a serving endpoint of it, is deleted. TCP and SCTP entries are left alone: open connections live on.

Upstream, from 1.32 until mid 2026, a Service without any endpoint was passed over (kubernetes/kubernetes#139628);
here it is not.

Source: kubernetes/kubernetes pkg/proxy/conntrack/cleanup.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from emulator.cluster.model import Cluster
from emulator.proxy.endpoints import proxied, slices_of


class Entry(NamedTuple):
    """A UDP entry of the connection tracking: the packet that opened it, and where its answers come from."""

    source: str
    source_port: int
    target: str
    target_port: int
    reply_source: str
    reply_port: int


class Served(NamedTuple):
    """Which endpoints (address, port) serve each UDP address and port of a Service, and each UDP node port."""

    addresses: dict[tuple[str, int], frozenset[tuple[str, int]]]
    node_ports: dict[int, frozenset[tuple[str, int]]]

    @property
    def empty(self) -> bool:
        """Whether there is nothing that an entry could be of."""
        return not self.addresses and not self.node_ports

    @property
    def families(self) -> frozenset[int]:
        """The IP versions that an entry of a Service can be of."""
        return frozenset(6 if ":" in address else 4 for address, _ in self.addresses)


def served(cluster: Cluster) -> Served:
    """What serves what, on every node alike."""
    services = [one for one in cluster.services if any(port.protocol == "UDP" for port in one.ports) and proxied(one)]
    slices: dict[tuple[str, int], set[tuple[str, int, str]]] = {}
    for each in slices_of(cluster.slices, {service.key for service in services}):
        for offered in each.ports:
            if offered.protocol == "UDP":
                found = slices.setdefault((each.service_key, each.family), set())
                found |= {(at.address, offered.port, offered.name) for at in each.endpoints if at.serving}
    addresses: dict[tuple[str, int], frozenset[tuple[str, int]]] = {}
    node_ports: dict[int, frozenset[tuple[str, int]]] = {}
    for service in services:
        for port in service.ports:
            if port.protocol != "UDP":
                continue
            own: dict[int, frozenset[tuple[str, int]]] = {}
            for family in service.families:
                at = slices.get((service.key, family), set())
                own[family] = frozenset((address, number) for address, number, name in at if name == port.name)
            balanced = [each.address for each in service.load_balancer]
            for address in (*service.cluster_ips, *service.external_ips, *balanced):
                addresses[address, port.port] = own.get(6 if ":" in address else 4, frozenset())
            if port.node_port:
                node_ports[port.node_port] = frozenset(pair for found in own.values() for pair in found)
    return Served(addresses, node_ports)


def stale(entries: Iterable[Entry], known: Served) -> Iterator[Entry]:
    """The entries to delete."""
    for entry in entries:
        endpoints = known.addresses.get((entry.target, entry.target_port))
        if endpoints is None:
            endpoints = known.node_ports.get(entry.target_port)
        if endpoints is not None and (entry.reply_source, entry.reply_port) not in endpoints:
            yield entry
