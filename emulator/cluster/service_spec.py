"""The fields of Service, EndpointSlice and Endpoints objects that decide what the network does.

Field names are Kubernetes' own. :mod:`emulator.cluster.manifests` has checked the objects against the full schema, so
that converting them to these structs does not fail.
"""

from __future__ import annotations

from typing import Any

import msgspec

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
SKIP_MIRROR_LABEL = "endpointslice.kubernetes.io/skip-mirror"
HEADLESS_LABEL = "service.kubernetes.io/headless"
TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"
TOPOLOGY_HINTS = "service.kubernetes.io/topology-aware-hints"  # the same, by its name of before Kubernetes 1.27


class PortSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ServicePort."""

    port: int
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: int | None = None
    app_protocol: str | None = None


class ClientIP(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ClientIPConfig."""

    timeout_seconds: int | None = None


class AffinityConfig(msgspec.Struct, frozen=True):
    """v1 SessionAffinityConfig."""

    client_ip: ClientIP | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ServiceSpec."""

    type: str | None = None
    selector: dict[str, str | None] | None = None
    ports: list[PortSpec] | None = None
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    load_balancer_ip: str | None = msgspec.field(name="loadBalancerIP", default=None)
    load_balancer_source_ranges: list[str] | None = None
    load_balancer_class: str | None = None
    allocate_load_balancer_node_ports: bool | None = None
    health_check_node_port: int | None = None
    publish_not_ready_addresses: bool | None = None
    traffic_distribution: str | None = None
    external_name: str | None = None

    @property
    def kind(self) -> str:
        """The type, defaulted."""
        return self.type or "ClusterIP"

    @property
    def requested(self) -> tuple[str, ...]:
        """The cluster IPs asked for; ``clusterIP`` alone means the first (registry/core/service strategy,
        NormalizeClusterIPs)."""
        if self.cluster_ips:
            return tuple(self.cluster_ips)
        return (self.cluster_ip,) if self.cluster_ip else ()

    @property
    def headless(self) -> bool:
        """Whether ``None`` stands in place of addresses."""
        return self.requested == ("None",)

    @property
    def needs_node_ports(self) -> bool:
        """Whether the type has node ports at all."""
        return self.kind in ("NodePort", "LoadBalancer")

    @property
    def external(self) -> bool:
        """Whether it can be reached from outside (pkg/api/service ExternallyAccessible)."""
        return self.needs_node_ports or (self.kind == "ClusterIP" and bool(self.external_ips))

    @property
    def needs_health_port(self) -> bool:
        """Whether a balancer asks the nodes who has endpoints (pkg/api/service NeedsHealthCheck)."""
        return self.kind == "LoadBalancer" and self.external_traffic_policy == "Local"


class Conditions(msgspec.Struct, frozen=True):
    """discovery/v1 EndpointConditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(msgspec.Struct, frozen=True):
    """discovery/v1 ForZone and ForNode."""

    name: str


class Hints(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 EndpointHints."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class TargetRef(msgspec.Struct, frozen=True):
    """v1 ObjectReference, as far as it says which pod is meant."""

    kind: str | None = None
    namespace: str | None = None
    name: str | None = None


class EndpointSpec(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 Endpoint."""

    addresses: list[str]
    conditions: Conditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None


class EndpointPortSpec(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 EndpointPort, and v1 EndpointPort."""

    port: int | None = None
    name: str | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class SliceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 EndpointSlice, less its metadata."""

    address_type: str
    endpoints: list[EndpointSpec] | None = None
    ports: list[EndpointPortSpec] | None = None


class AddressSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 EndpointAddress."""

    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: TargetRef | None = None


class Subset(msgspec.Struct, frozen=True, rename="camel"):
    """v1 EndpointSubset."""

    addresses: list[AddressSpec] | None = None
    not_ready_addresses: list[AddressSpec] | None = None
    ports: list[EndpointPortSpec] | None = None


class EndpointsSpec(msgspec.Struct, frozen=True):
    """v1 Endpoints, less its metadata."""

    subsets: list[Subset] | None = None


class IngressSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 LoadBalancerIngress."""

    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(msgspec.Struct, frozen=True):
    """v1 LoadBalancerStatus."""

    ingress: list[IngressSpec] | None = None


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ServiceStatus."""

    load_balancer: LoadBalancerStatus | None = None


def service_spec(thing: dict[str, Any]) -> ServiceSpec:
    """The spec of a Service object; one without any spec is one without fields."""
    return msgspec.convert(thing.get("spec") or {}, ServiceSpec)
