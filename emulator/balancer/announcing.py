"""Which nodes may announce a Service's addresses, in MetalLB's order.

Sources: metallb/metallb speaker/layer2_controller.go (ShouldAnnounce, speakersForPool), speaker/bgp_controller.go
(ShouldAnnounce), internal/k8s/epslices (EndpointCanServe), internal/k8s/nodes (IsNodeExcludedFromBalancers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from emulator.cluster.load_balancer import serves
from emulator.cluster.model import Cluster, LoadBalancer, Node
from emulator.cluster.services import Endpoint, EndpointSlice, Service

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"  # a label; its value does not matter


def balanced(cluster: Cluster, balancer: LoadBalancer) -> Iterator[tuple[Service, list[EndpointSlice]]]:
    """The Services that have an address of the balancer's, each with its slices of both families."""
    mine = {one.key: one for one in cluster.services if one.load_balancer and serves(balancer, one)}
    slices: dict[str, list[EndpointSlice]] = {key: [] for key in mine}
    for one in cluster.slices:
        if one.service_key in slices:
            slices[one.service_key].append(one)
    for key, service in mine.items():
        yield service, slices[key]


def speakers(cluster: Cluster, balancer: LoadBalancer) -> tuple[Node, ...]:
    """The nodes that a speaker announces from."""
    return tuple(
        node
        for node in cluster.nodes
        if (not balancer.nodes or node.name in balancer.nodes) and EXCLUDED not in node.labels
    )


def announcers(
    cluster: Cluster, balancer: LoadBalancer, service: Service, slices: Sequence[EndpointSlice]
) -> tuple[Node, ...]:
    """The nodes that may announce a Service: none without an endpoint that can serve, and under externalTrafficPolicy
    Local only those with one.

    Of a node that is down the speakers know by themselves, long before the API server does: what was there counts.
    """
    ready = {pod.key for pod in cluster.pods if pod.node in cluster.not_ready_nodes and pod.ready}
    where = {each.node for each in _endpoints(slices) if each.ready or each.serving or each.pod in ready}
    if not where:
        return ()
    found = speakers(cluster, balancer)
    return tuple(node for node in found if node.name in where) if service.external_policy == "Local" else found


def elected(nodes: Iterable[str], address: str) -> tuple[str, ...]:
    """Nodes by their claim to a Service: the first that is alive announces all of its addresses. ``address`` is the
    Service's first."""
    return tuple(sorted(nodes, key=lambda name: hashlib.sha256(f"{name}#{address}".encode()).digest()))


def _endpoints(slices: Iterable[EndpointSlice]) -> Iterator[Endpoint]:
    return (endpoint for one in slices for endpoint in one.endpoints)
