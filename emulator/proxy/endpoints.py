"""Which endpoints of a Service a node sends to: the same choice in all of kube-proxy's modes.

::

    a Service's slices of one family ─ by port name ─ ready ones ─ topology hints ───── cluster list
                                                          │ none: serving and terminating
                                                          └ on this node ────────────── local list

The cluster list serves a policy ``Cluster`` (and a ``Local`` one's short cut for pods), the local list a policy
``Local``. Nothing here knows of rules.

Sources: kubernetes/kubernetes pkg/proxy/topology.go, serviceport.go, servicechangetracker.go, endpointslicecache.go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emulator.cluster.changes import trimmed
from emulator.cluster.services import Endpoint, EndpointSlice, Service, ServicePort

ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Target:
    """An endpoint with the port that a Service port's traffic goes to."""

    address: str
    port: int
    endpoint: Endpoint

    @property
    def text(self) -> str:
        """``10.180.0.1:80``, ``[fd00::1]:80``."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Choice:
    """What one node may use for one Service port. ``cluster`` and ``local`` are empty for a port that never uses them.

    ``anywhere``: a usable endpoint exists somewhere, even if this node may not send to it.
    """

    cluster: tuple[Target, ...] = ()
    local: tuple[Target, ...] = ()
    anywhere: bool = False

    @property
    def reachable(self) -> tuple[Target, ...]:
        """Both lists, each target once: those that this node has chains for."""
        if not self.local:
            return self.cluster
        if not self.cluster:
            return self.local
        known = {(target.address, target.port) for target in self.cluster}
        return (*self.cluster, *(target for target in self.local if (target.address, target.port) not in known))

    def internal(self, service: Service) -> tuple[Target, ...]:
        """What traffic to the cluster IP goes to."""
        return self.local if service.internal_policy == "Local" else self.cluster

    def external(self, service: Service) -> tuple[Target, ...]:
        """What traffic to node ports, external and load balancer addresses goes to."""
        return self.local if service.external_policy == "Local" else self.cluster


NOTHING = Choice()
PROXY_NAME_LABEL, HEADLESS_LABEL = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"


def proxied(service: Service, proxy: str = "") -> bool:
    """Whether a proxy does anything for the Service: a headless one and an ExternalName get no rules, nor does one
    whose labels leave it to a proxy of another name. kube-proxy has none (cmd/kube-proxy/app/server.go)."""
    if service.type == "ExternalName" or service.headless or not service.cluster_ips:
        return False
    wanted = service.labels.get(PROXY_NAME_LABEL)
    return HEADLESS_LABEL not in service.labels and (wanted is None or (bool(proxy) and wanted == proxy))


def cluster_ip(service: Service, family: Literal[4, 6]) -> str:
    """The Service's cluster IP of a family; empty if it has none, and then that family's proxy ignores it."""
    return next((each for each in service.cluster_ips if (":" in each) == (family == 6)), "")


def externally_accessible(service: Service, port: ServicePort, family: Literal[4, 6]) -> bool:
    """Whether traffic may come in by anything but the cluster IP, as far as one family can tell."""
    if port.node_port:
        return True
    addresses = (*service.external_ips, *(each.address for each in service.load_balancer if not each.proxy))
    return any((":" in each) == (family == 6) for each in addresses)


def uses_cluster(service: Service, port: ServicePort, family: Literal[4, 6]) -> bool:
    """Whether the cluster list matters: a Local policy for external traffic needs it too, for its short cut."""
    return service.internal_policy == "Cluster" or externally_accessible(service, port, family)


def uses_local(service: Service, port: ServicePort, family: Literal[4, 6]) -> bool:
    """Whether the local list matters."""
    if service.internal_policy == "Local":
        return True
    return service.external_policy == "Local" and externally_accessible(service, port, family)


def slices_by_service(slices: Iterable[EndpointSlice]) -> dict[tuple[str, int], list[EndpointSlice]]:
    """Slices under their Service's key and their family."""
    found: dict[tuple[str, int], list[EndpointSlice]] = {}
    for each in slices:
        found.setdefault((f"{each.namespace}/{each.service}", each.family), []).append(each)
    return found


def slices_of(slices: Iterable[EndpointSlice], keys: Collection[str]) -> Iterator[EndpointSlice]:
    """The slices of the Services ``keys`` (``namespace/name``)."""
    names = {key.partition("/")[2] for key in keys}
    return (each for each in slices if each.service in names and each.service_key in keys)


def services_of(services: Iterable[Service], keys: Collection[str]) -> Iterator[Service]:
    """The Services ``keys`` (``namespace/name``)."""
    names = {key.partition("/")[2] for key in keys}
    return (each for each in services if each.name in names and each.key in keys)


def changed_keys(old: Sequence[EndpointSlice], new: Sequence[EndpointSlice]) -> set[str]:
    """The Services (``namespace/name``) of whose slices any is not the very same in both, or stands elsewhere among
    them."""
    if old is new:
        return set()
    old, new = trimmed(old, new)
    same = {id(each) for each in old} & {id(each) for each in new}
    kept = [[each for each in slices if id(each) in same] for slices in (old, new)]
    moved = [pair for pair in zip(*kept, strict=True) if pair[0] is not pair[1]]
    found = {each.service_key for slices in (old, new) for each in slices if id(each) not in same}
    return found | {each.service_key for pair in moved for each in pair}


def targets(slices: Sequence[EndpointSlice], port: ServicePort) -> tuple[Target, ...]:
    """The endpoints of a Service port: those of slices that name the port and its protocol, each address and port once,
    sorted as text (``10.0.0.10:80`` before ``10.0.0.9:80``).

    Where an address stands twice, as when a new pod got that of one which is still ending, the last that is not
    terminating counts.
    """
    found: dict[tuple[str, int], Target] = {}
    for each in slices:
        for offered in each.ports:
            if offered.name != port.name or offered.protocol != port.protocol:
                continue
            for endpoint in each.endpoints:
                key = endpoint.address, offered.port
                if key not in found or not endpoint.terminating:
                    found[key] = Target(endpoint.address, offered.port, endpoint)
    if len(found) < 2:
        return tuple(found.values())
    return tuple(sorted(found.values(), key=lambda target: target.text))


def same_everywhere(service: Service, port: ServicePort, family: Literal[4, 6], candidates: Sequence[Target]) -> bool:
    """Whether all nodes choose the same: neither policies nor hints tell one node from another."""
    if uses_local(service, port, family):
        return False
    return all(not target.endpoint.zones and not target.endpoint.nodes for target in candidates)


def choose(
    candidates: Sequence[Target],
    service: Service,
    port: ServicePort,
    family: Literal[4, 6],
    node: str,
    labels: Mapping[str, str],
) -> Choice:
    """What ``node``, with these labels, may use of a port's endpoints (CategorizeEndpoints)."""
    if not candidates:
        return NOTHING
    ready = [target for target in candidates if target.endpoint.ready]
    ending = [target for target in candidates if _serving_till_the_end(target.endpoint)]
    cluster: tuple[Target, ...] = ()
    if uses_cluster(service, port, family):
        cluster = tuple(_near(ready, node, labels.get(ZONE_LABEL, "")) or ending)
    if not uses_local(service, port, family):
        return Choice(cluster=cluster, anywhere=bool(cluster))
    here = [target for target in ready if target.endpoint.node == node]
    local = tuple(here or [target for target in ending if target.endpoint.node == node])
    return Choice(cluster=cluster, local=local, anywhere=bool(ready or ending))


def _near(ready: list[Target], node: str, zone: str) -> list[Target]:
    """Those that hints keep: a hint counts only if every ready endpoint has one of its kind, and one is for here."""
    if not ready:
        return ready
    if all(target.endpoint.nodes for target in ready):
        same = [target for target in ready if node in target.endpoint.nodes]
        if same:
            return same
    if all(target.endpoint.zones for target in ready):
        same = [target for target in ready if zone in target.endpoint.zones]
        if same:
            return same
    return ready


def _serving_till_the_end(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating and not endpoint.ready


def local_ready(service: Service, slices: Sequence[EndpointSlice], node: str) -> int:
    """How many endpoints a health check node port counts: ready ones on the node, an address once over all ports
    (EndpointsMap.LocalReadyEndpoints). ``slices`` are those of one family."""
    offered = [target for port in service.ports for target in targets(slices, port)]
    return len({each.address for each in offered if each.endpoint.ready and each.endpoint.node == node})
