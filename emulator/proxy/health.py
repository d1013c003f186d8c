"""What kube-proxy answers on a Service's health check node port, by which a load balancer finds the nodes to send to.

It listens on every node for each Service of type LoadBalancer under externalTrafficPolicy Local, and answers any path.

Source: kubernetes/kubernetes pkg/proxy/healthcheck/service_health.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import Service
from emulator.proxy.endpoints import cluster_ip, local_ready, proxied, slices_by_service

WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"


@dataclass(frozen=True)
class HealthAnswer:
    """An HTTP answer: ``status`` 200 if the node has a ready endpoint of the Service, else 503."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


@dataclass(frozen=True)
class HealthCheck:
    """A port that a node serves, on all its addresses of a family: ``0.0.0.0`` or ``::``."""

    service: str
    family: int
    port: int
    answer: HealthAnswer


def health_checks(cluster: Cluster, node: Node, *, healthy: bool = True) -> Iterator[HealthCheck]:
    """The health check ports of a node with what each answers now. ``healthy``: whether the proxy itself is."""
    wanted = [service for service in cluster.services if service.health_port and proxied(service)]
    if not wanted:
        return
    grouped = slices_by_service(cluster.slices)
    for service in wanted:
        for family in service.families:
            if cluster_ip(service, family):
                count = local_ready(service, grouped.get((service.key, family), ()), node.name)
                yield HealthCheck(service.key, family, service.health_port, health_answer(service, count, healthy))


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
