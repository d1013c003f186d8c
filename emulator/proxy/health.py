"""What kube-proxy answers to load balancers that look for the nodes to send to.

On a Service's health check node port it listens on every node for each Service of type LoadBalancer under
externalTrafficPolicy Local, and answers any path. On its own health port it says whether it works at all; here that is
open while there is a Service of type LoadBalancer, and the answer leaves out the time of the last sync.

Source: kubernetes/kubernetes pkg/proxy/healthcheck/service_health.go, proxy_health.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import Service
from emulator.proxy.endpoints import cluster_ip, local_ready, proxied, slices_by_service

OWN_PORT = 10256  # kube-proxy's healthzBindAddress
WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"


@dataclass(frozen=True)
class HealthAnswer:
    """An HTTP answer: ``status`` 200 if the node has a ready endpoint of the Service, else 503."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


@dataclass(frozen=True)
class HealthCheck:
    """A port that a node serves, on all its addresses of a family: ``0.0.0.0`` or ``::``. ``service`` is empty for
    the proxy's own."""

    service: str
    family: int
    port: int
    answer: HealthAnswer


def health_checks(cluster: Cluster, node: Node, *, healthy: bool = True) -> Iterator[HealthCheck]:
    """The health check ports of a node with what each answers now. ``healthy``: whether the proxy itself is."""
    balanced = [service for service in cluster.services if service.type == "LoadBalancer" and proxied(service)]
    wanted = [service for service in balanced if service.health_port]
    for family in sorted({family for service in balanced for family in service.families}):
        yield HealthCheck("", family, OWN_PORT, own_answer(healthy))
    if not wanted:
        return
    grouped = slices_by_service(cluster.slices)
    for service in wanted:
        for family in service.families:
            if cluster_ip(service, family):
                count = local_ready(service, grouped.get((service.key, family), ()), node.name)
                yield HealthCheck(service.key, family, service.health_port, health_answer(service, count, healthy))


def own_answer(healthy: bool = True) -> HealthAnswer:
    """What the proxy says of itself."""
    return HealthAnswer(
        status=200 if healthy else 503,
        headers=(("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff")),
        body='{"nodeEligible": true}',
    )


def health_answer(service: Service, local_endpoints: int, healthy: bool = True) -> HealthAnswer:
    """The answer for so many ready endpoints on the node."""
    body = (
        f'{{\n\t"service": {{\n\t\t"namespace": "{service.namespace}",\n\t\t"name": "{service.name}"\n\t}},\n'
        f'\t"localEndpoints": {local_endpoints},\n\t"serviceProxyHealthy": {"true" if healthy else "false"}\n}}'
    )
    return HealthAnswer(
        status=200 if local_endpoints and healthy else 503,
        headers=(
            ("Content-Type", "application/json"),
            ("X-Content-Type-Options", "nosniff"),
            (WEIGHT_HEADER, str(local_endpoints)),
        ),
        body=body,
    )
