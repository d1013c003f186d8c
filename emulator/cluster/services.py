"""Services and their endpoints as plain immutable data, the way kube-proxy, DNS and probes read them.

A :class:`Service` is one Kubernetes Service with every default filled in and every address and port allocated. Its
:class:`EndpointSlice` objects come from our controller (a selector's pods) or from the user (a Service without
selector). One slice has one address family, as in Kubernetes. Sources: kubernetes/api core/v1 and discovery/v1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

TransportProtocol = Literal["TCP", "UDP", "SCTP"]
ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]
TrafficPolicy = Literal["Cluster", "Local"]
FamilyPolicy = Literal["", "SingleStack", "PreferDualStack", "RequireDualStack"]
TrafficDistribution = Literal["", "PreferClose", "PreferSameZone", "PreferSameNode"]

NONE = "None"  # the clusterIP of a headless Service
AFFINITY_SECONDS = 10800  # sessionAffinityConfig.clientIP.timeoutSeconds' default: three hours
NODE_PORTS = range(30000, 32768)  # kube-apiserver --service-node-port-range


class ServicePort(msgspec.Struct, frozen=True, omit_defaults=True):
    """``target`` is the pods' port: a number, or the name of a containerPort, which may differ from pod to pod.

    ``node_port`` 0: none. ``name`` may be empty if the Service has one port only.
    """

    name: str
    protocol: TransportProtocol
    port: int
    target: int | str
    node_port: int = 0
    app_protocol: str = ""


class Ingress(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address that a load balancer answers on. ``proxy``: status ``ipMode: Proxy``, which keeps kube-proxy from
    short-cutting it. ``private`` is the address of a VPC that an internet gateway has it stand for, if one does."""

    address: str
    proxy: bool = False
    private: str = ""


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Service. Of ``cluster_ips`` there is one for each of ``families``, in their order; a headless Service has none,
    and an ExternalName neither.

    ``affinity`` is the seconds for which a client keeps its endpoint (sessionAffinity ClientIP), 0 without affinity.
    ``load_balancer`` holds the addresses in the status, given by whatever implements type LoadBalancer.
    ``health_port`` is the healthCheckNodePort, 0 without one. ``selects`` is false for a Service without selector,
    whose EndpointSlices are the user's. ``load_balancer_ip`` is the address that its author would like to have.
    """

    namespace: str
    name: str
    type: ServiceType
    families: tuple[Literal[4, 6], ...] = (4,)
    cluster_ips: tuple[str, ...] = ()
    headless: bool = False
    selector: dict[str, str] = {}
    selects: bool = True
    ports: tuple[ServicePort, ...] = ()
    affinity: int = 0
    internal_policy: TrafficPolicy = "Cluster"
    external_policy: TrafficPolicy = "Cluster"
    external_ips: tuple[str, ...] = ()
    load_balancer: tuple[Ingress, ...] = ()
    load_balancer_class: str = ""
    source_ranges: tuple[str, ...] = ()
    health_port: int = 0
    publish_not_ready: bool = False
    distribution: TrafficDistribution = ""
    external_name: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    family_policy: FamilyPolicy = "SingleStack"
    allocate_node_ports: bool = True
    load_balancer_ip: str = ""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def allocated_ports(self) -> tuple[int, ...]:
        """Its numbers in the range of node ports, the health check's included."""
        numbers = (*(port.node_port for port in self.ports), self.health_port)
        return tuple(number for number in numbers if number)


class EndpointPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """A port of all endpoints of a slice, under the Service port's name."""

    name: str
    protocol: TransportProtocol
    port: int
    app_protocol: str = ""


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a Service's traffic may go. ``pod`` is the pod's key (``namespace/name``), empty for addresses that a user
    wrote down; ``node`` its node; ``hostname`` its name within a headless Service (empty: made of the address).

    ``ready`` is what traffic follows; ``serving`` says so regardless of ``terminating``. ``zones`` and ``nodes`` are
    the topology hints.
    """

    address: str
    node: str = ""
    pod: str = ""
    hostname: str = ""
    zone: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class EndpointSlice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Endpoints of one Service that share address family and ports (a named target port may differ between pods, and
    then there is a slice for each set of ports). ``service`` is the Service's name, in the same namespace."""

    namespace: str
    name: str
    service: str
    family: Literal[4, 6]
    ports: tuple[EndpointPort, ...]
    endpoints: tuple[Endpoint, ...]
    made_by_us: bool = True

    @property
    def service_key(self) -> str:
        """``namespace/name`` of the Service."""
        return f"{self.namespace}/{self.service}"
