"""Calico's advertisement of Services by BGP: which routes of Services each node announces.

::

    BGPConfiguration.spec
      serviceClusterIPs, serviceExternalIPs, serviceLoadBalancerIPs     every node: each CIDR as it is written
    externalTrafficPolicy: Local                                        nodes with a ready endpoint: the /32 as well
    a CIDR of one address, externalTrafficPolicy: Cluster               every node, if a Service has that address

The longer route wins, so that traffic of a Service with policy Local goes to nodes with its endpoints alone. None of
these routes is for the nodes' own kernels.

Sources: projectcalico/calico confd/pkg/backends/calico/routes.go, client.go (getServiceExternalIPs...),
confd/tests/compiled_templates/mesh/static-routes, static-routes-exclude-node; docs.tigera.io "Advertise Kubernetes
service IP addresses".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import EndpointSlice, Service
from emulator.cni.calico_settings import ServiceRanges
from emulator.plan.addressing import contains, family_of, host_prefix, prefix_length

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"  # a label; its value does not matter


def service_routes(cluster: Cluster, ranges: ServiceRanges, node: Node) -> tuple[str, ...]:
    """The CIDRs of Services that ``node`` announces, those of the configuration first."""
    if not ranges or EXCLUDED in node.labels:
        return ()
    several = [cidr for cidr in (*ranges.external, *ranges.load_balancer) if not _single(cidr)]
    found = dict.fromkeys((*ranges.cluster, *several))
    slices: dict[str, list[EndpointSlice]] = {}
    for one in cluster.slices:
        slices.setdefault(one.service_key, []).append(one)
    for service in cluster.services:
        if _announced(service, slices.get(service.key, ()), ranges, node.name):
            found.update(dict.fromkeys(host_prefix(address) for address in _addresses(service, ranges)))
    return tuple(found)


def announcing(cluster: Cluster, ranges: ServiceRanges) -> dict[str, tuple[str, ...]]:
    """The names of the nodes that announce each CIDR of Services, and are up."""
    found: dict[str, list[str]] = {}
    for node in cluster.nodes if ranges else ():
        if node.name not in cluster.not_ready_nodes:
            for cidr in service_routes(cluster, ranges, node):
                found.setdefault(cidr, []).append(node.name)
    return {cidr: tuple(names) for cidr, names in found.items()}


def _announced(service: Service, slices: Iterable[EndpointSlice], ranges: ServiceRanges, node: str) -> bool:
    """advertiseThisService."""
    if service.type == "ExternalName" or not service.cluster_ips:
        return False
    if service.external_policy == "Local":
        return any(each.node == node and each.ready for one in slices for each in one.endpoints)
    balanced = (service.load_balancer_ip, *(one.address for one in service.load_balancer))
    return (
        service.type == "LoadBalancer" and any(_is_single(address, ranges.load_balancer) for address in balanced)
    ) or any(_is_single(address, ranges.external) for address in service.external_ips)


def _addresses(service: Service, ranges: ServiceRanges) -> Iterator[str]:
    """getAllRoutesForService: of the cluster IPs the first alone, whatever the families."""
    if ranges.cluster:
        yield service.cluster_ips[0]
    yield from (address for address in service.external_ips if _allowed(address, ranges.external))
    yield from (one.address for one in service.load_balancer if _allowed(one.address, ranges.load_balancer))


def _allowed(address: str, cidrs: Iterable[str]) -> bool:
    return any(contains(cidr, address) for cidr in cidrs)


def _is_single(address: str, cidrs: Iterable[str]) -> bool:
    return any(_single(cidr) and contains(cidr, address) for cidr in cidrs) if address else False


def _single(cidr: str) -> bool:
    return prefix_length(cidr) == (128 if family_of(cidr) == 6 else 32)
