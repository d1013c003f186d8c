"""DNS in a lab: which pods and hosts serve it, what they know, and what pods ask.

CoreDNS' pods come and go like any others; whenever one is there, cnilab's DNS process has its port 53. The process
starts with the first of them, or with a topology that has a resolver of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from emulator.cluster.changes import difference
from emulator.cluster.coredns import CLUSTER_DOMAIN, NAMESPACE, SERVICE, serves_dns
from emulator.cluster.model import Cluster, Machine, Pod, Topology
from emulator.cluster.services import EndpointSlice, Service
from emulator.dns.client import DnsServers
from emulator.dns.control import Counters, Place
from emulator.dns.resolv_conf import ResolvConf, Resolvers
from emulator.kernel.netns import netns_path

STAND_IN = "cnilab's own server, in CoreDNS' place"

_Item = TypeVar("_Item", Service, EndpointSlice)
_Key = tuple[str, str]


class ClusterDns:
    """The DNS servers of one lab. Changes come one at a time."""

    def __init__(self) -> None:
        self._servers: DnsServers | None = None
        self._places: dict[str, Place] = {}
        self._services: tuple[Service, ...] = ()  # as they were told last
        self._slices: tuple[EndpointSlice, ...] = ()
        self._namespaces: tuple[str, ...] = ()
        self._notices: dict[str, str] = {}
        self.resolvers = Resolvers()

    def retire(self, namespaces: Iterable[str]) -> None:
        """Close the sockets in these namespaces, which are about to go: an open socket would keep them alive."""
        going = [ns for ns in namespaces if ns in self._places]
        if going and self._servers is not None:
            self._servers.stop(going)
        for ns in going:
            del self._places[ns]
            self._notices.pop(ns, None)

    def follow(self, cluster: Cluster, pods: Sequence[Pod], machines: Sequence[Machine]) -> bool:
        """Serve in the pods and on the host that are up, by the cluster's state. When this returns, every answer is by
        that state. Whether what pods should ask has changed."""
        wanted = places_of(cluster, pods, machines)
        if wanted or self._servers is not None:
            if self._servers is None:
                self._servers = DnsServers(CLUSTER_DOMAIN)
            self._tell(self._servers, cluster)
            self._serve(self._servers, wanted, cluster.topology)
        before, self.resolvers = self.resolvers, resolvers_of(cluster)
        return before != self.resolvers

    def _tell(self, servers: DnsServers, cluster: Cluster) -> None:
        namespaces = tuple(cluster.namespaces)
        new_names = namespaces if namespaces != self._namespaces else None
        if new_names is None and self._services is cluster.services and self._slices is cluster.slices:
            return
        services, lost_services = _changed(self._services, cluster.services)
        slices, lost_slices = _changed(self._slices, cluster.slices)
        servers.update(services, slices, lost_services, lost_slices, new_names)
        self._services, self._slices, self._namespaces = cluster.services, cluster.slices, namespaces

    def _serve(self, servers: DnsServers, wanted: dict[str, Place], topology: Topology) -> None:
        if gone := [ns for ns in self._places if ns not in wanted]:
            self.retire(gone)
        fresh = [place for ns, place in wanted.items() if self._places.get(ns) != place]
        if fresh:
            records = topology.upstream.records if topology.upstream is not None else {}
            for place in fresh:
                self._notices.pop(place.ns, None)
            for line in servers.serve(fresh, records):
                self._notices[line.partition(":")[0]] = line
            self._places.update({place.ns: place for place in fresh})

    @property
    def notices(self) -> tuple[str, ...]:
        """For people: where DNS could not be served, and why."""
        return tuple(self._notices.values())

    @property
    def choices(self) -> dict[str, str]:
        """What stands for CoreDNS, for the run's records; nothing without its pods."""
        return {"dns": STAND_IN} if any(place.role == "cluster" for place in self._places.values()) else {}

    def counters(self) -> list[Counters]:
        """What each server was asked so far."""
        return self._servers.counters() if self._servers is not None else []

    def close(self) -> None:
        """End it."""
        if self._servers is not None:
            self._servers.close()


def places_of(cluster: Cluster, pods: Sequence[Pod], machines: Sequence[Machine]) -> dict[str, Place]:
    """Where DNS is served, by namespace: CoreDNS' pods, and the topology's resolver."""
    upstream = cluster.topology.upstream
    forward = upstream.addresses if upstream is not None else ()
    found = {
        pod.ns: Place(pod.ns, netns_path(pod.ns), "cluster", pod.addresses, _reachable(forward, pod.addresses))
        for pod in pods
        if serves_dns(pod)
    }
    for machine in machines:
        if upstream is not None and machine.name == upstream.host:
            found[machine.ns] = Place(machine.ns, netns_path(machine.ns), "upstream", upstream.addresses)
    return found


def resolvers_of(cluster: Cluster) -> Resolvers:
    """What pods ask: ``kube-dns``, once there is such a Service, and what the nodes ask."""
    service = next((one for one in cluster.services if (one.namespace, one.name) == (NAMESPACE, SERVICE)), None)
    upstream = cluster.topology.upstream
    node = ResolvConf(upstream.addresses[:3]) if upstream is not None else ResolvConf()
    return Resolvers(service.cluster_ips[:1] if service is not None else (), node)


def _reachable(servers: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The servers of the address families that a pod has."""
    families = {":" in address for address in own}
    return tuple(server for server in servers if (":" in server) in families)


def _changed(old: Sequence[_Item], new: Sequence[_Item]) -> tuple[list[_Item], list[_Key]]:
    """What came or is different, and the keys of what went."""
    gone, fresh = difference(old, new)
    before = {(one.namespace, one.name): one for one in gone}
    after = {(one.namespace, one.name): one for one in fresh}
    changed = [one for key, one in after.items() if before.get(key) != one]
    return changed, [key for key in before if key not in after]
