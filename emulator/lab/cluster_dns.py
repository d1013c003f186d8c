"""DNS in a lab: which pods and hosts serve it, what they know, and what pods ask.

CoreDNS' pods come and go like any others; whenever one is there, cnilab's DNS process has its port 53. The process
starts with the first of them, or with a topology that has a resolver of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

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
        self._services: dict[_Key, Service] = {}
        self._slices: dict[_Key, EndpointSlice] = {}
        self._seen: tuple[object, object] = (None, None)
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
        if new_names is None and self._seen[0] is cluster.services and self._seen[1] is cluster.slices:
            return
        services = {(one.namespace, one.name): one for one in cluster.services}
        slices = {(one.namespace, one.name): one for one in cluster.slices}
        servers.update(
            _changed(self._services, services),
            _changed(self._slices, slices),
            [key for key in self._services if key not in services],
            [key for key in self._slices if key not in slices],
            new_names,
        )
        self._services, self._slices, self._namespaces = services, slices, namespaces
        self._seen = (cluster.services, cluster.slices)

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


def _changed(old: Mapping[_Key, _Item], new: Mapping[_Key, _Item]) -> list[_Item]:
    return [item for key, item in new.items() if (known := old.get(key)) is not item and known != item]
