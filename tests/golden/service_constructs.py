"""Services of every kind, each with a change: what the golden rule sets of the proxies are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import msgspec

from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.proxy.model import ProxySettings

TOPOLOGY = """
name: two
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
pods: 0
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:192:168:50::/64"]}
nodes:
  - {name: n1, switch: s1, labels: {topology.kubernetes.io/zone: a}}
  - {name: n2, switch: s1, labels: {topology.kubernetes.io/zone: b}}
routers:
  - {name: tor, asn: 64513}
links:
  - {from: tor, to: s1}
"""
SETTINGS = ProxySettings(
    pod_cidrs=("10.244.0.0/16", "fd00:10:244::/56"), service_cidrs=("10.96.0.0/12", "fd00:10:96::/112")
)
HTTP = ServicePort(name="p80", protocol="TCP", port=80, target=8080)
NODE_PORT = msgspec.structs.replace(HTTP, node_port=30080)

Backends = Sequence[Endpoint]


@dataclass(frozen=True)
class Construct:
    """Services with their slices, and what comes after a change (``changed`` says which)."""

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    changed: str
    later_services: tuple[Service, ...]
    later_slices: tuple[EndpointSlice, ...]
    settings: ProxySettings = SETTINGS


@cache
def base_cluster() -> Cluster:
    topology = parse_topology(TOPOLOGY, "two.yaml")
    style = load_style("flannel")
    return assemble(topology, [], style.ipam(topology), None)


def clusters(construct: Construct) -> tuple[Cluster, Cluster]:
    """Before and after the change."""
    before = msgspec.structs.replace(base_cluster(), services=construct.services, slices=construct.slices)
    return before, msgspec.structs.replace(before, services=construct.later_services, slices=construct.later_slices)


def service(name: str = "web", **fields: Any) -> Service:
    return Service(
        **{"namespace": "ns1", "name": name, "type": "ClusterIP", "cluster_ips": ("10.96.0.41",), "ports": (HTTP,)}
        | fields
    )


def on(node: Literal["n1", "n2"], number: int, **fields: Any) -> Endpoint:
    return Endpoint(address=f"10.244.{int(node[1]) - 1}.{number}", node=node, **fields)


def six(node: Literal["n1", "n2"], number: int) -> Endpoint:
    return Endpoint(address=f"fd00:10:244:{int(node[1]) - 1}::{number}", node=node)


def backends(of: Service, *endpoints: Endpoint, ports: Sequence[ServicePort] = ()) -> EndpointSlice:
    """The one slice of a Service, of the first endpoint's family."""
    family: Literal[4, 6] = 6 if endpoints and ":" in endpoints[0].address else 4
    offered = tuple(
        EndpointPort(name=port.name, protocol=port.protocol, port=int(port.target)) for port in ports or of.ports
    )
    return EndpointSlice(of.namespace, f"{of.name}-{family}", of.name, family, offered, endpoints)


def _one(
    of: Service, before: Backends, after: Backends, changed: str, then: Service | None = None, **settings: Any
) -> Construct:
    """One Service whose endpoints (and perhaps itself) change."""
    later = then or of
    return Construct(
        (of,),
        (backends(of, *before),) if before else (),
        changed,
        (later,),
        (backends(later, *after),) if after else (),
        msgspec.structs.replace(SETTINGS, **settings),
    )


def _many_ports() -> Construct:
    ports = (
        ServicePort(name="dns-tcp", protocol="TCP", port=53, target=5353),
        ServicePort(name="dns-udp", protocol="UDP", port=53, target=53),
        ServicePort(name="dns-sctp", protocol="SCTP", port=53, target=53),
    )
    made = service("dns", ports=ports)
    fewer = service("dns", ports=ports[:2])
    return _one(made, [on("n1", 2), on("n2", 2)], [on("n1", 2), on("n2", 2)], "the SCTP port goes", fewer)


def _dual_stack() -> Construct:
    made = service("both", families=(6, 4), cluster_ips=("fd00:10:96::7", "10.96.0.47"), ports=(NODE_PORT,))
    four, four_later = backends(made, on("n1", 7)), backends(made, on("n1", 8))
    both = backends(made, six("n1", 7), six("n2", 7))
    return Construct((made,), (both, four), "the IPv4 endpoint is another", (made,), (both, four_later))


def _moving_address() -> Construct:
    first = service("first", external_ips=("192.168.99.22",))
    second = service("second", cluster_ips=("10.96.0.42",), external_ips=("192.168.99.22",))
    slices = (backends(first, on("n1", 2)), backends(second, on("n2", 2)))
    return Construct((first, second), slices, "the first of two claimants of an address goes", (second,), slices[1:])


def _without_balancer_ranges(made: Service) -> Service:
    return msgspec.structs.replace(made, source_ranges=())


_AFFINITY = service("sticky", affinity=10800, ports=(NODE_PORT,), type="NodePort")
_LOCAL = service("local", type="NodePort", external_policy="Local", ports=(NODE_PORT,))
_INSIDE = service("inside", internal_policy="Local")
_BALANCED = service(
    "balanced",
    type="LoadBalancer",
    ports=(NODE_PORT,),
    load_balancer=(Ingress("203.0.113.1"), Ingress("203.0.113.2", proxy=True)),
    source_ranges=("198.51.100.0/24", "192.168.50.0/24"),
)
_LONG = service("s" * 63, namespace="n" * 63, ports=(msgspec.structs.replace(HTTP, name="p" * 15),))
_BOTH_HERE = [on("n1", 2), on("n2", 2)]

CONSTRUCTS: dict[str, Construct] = {
    "cluster-ip": _one(service(), _BOTH_HERE, [on("n1", 3), on("n2", 2)], "an endpoint is replaced"),
    "unnamed-port": _one(
        service(ports=(msgspec.structs.replace(HTTP, name=""),)), _BOTH_HERE, _BOTH_HERE[:1], "an endpoint goes"
    ),
    "no-endpoints": _one(service(type="NodePort", ports=(NODE_PORT,)), [], [on("n2", 2)], "the first endpoint comes"),
    "service-goes": Construct((service(),), (backends(service(), *_BOTH_HERE),), "the Service is deleted", (), ()),
    "many-ports": _many_ports(),
    "affinity": _one(
        _AFFINITY, _BOTH_HERE, _BOTH_HERE, "clients stay for a minute", msgspec.structs.replace(_AFFINITY, affinity=60)
    ),
    "node-port": _one(
        service(type="NodePort", ports=(NODE_PORT,)),
        _BOTH_HERE,
        _BOTH_HERE,
        "the node port is another",
        service(type="NodePort", ports=(msgspec.structs.replace(HTTP, node_port=30081),)),
    ),
    "node-port-everywhere": _one(
        service(type="NodePort", ports=(NODE_PORT,)),
        [],
        _BOTH_HERE,
        "endpoints come",
        node_port_cidrs=("0.0.0.0/0", "::/0"),
    ),
    "external-local": _one(_LOCAL, _BOTH_HERE, [on("n2", 2)], "the last local endpoint goes"),
    "internal-local": _one(_INSIDE, _BOTH_HERE, [on("n2", 2)], "the last local endpoint goes"),
    "load-balancer-ranges": _one(
        _BALANCED, _BOTH_HERE, _BOTH_HERE, "everybody may come", _without_balancer_ranges(_BALANCED)
    ),
    "external-ip": _one(
        service(external_ips=("192.168.99.22",)),
        _BOTH_HERE,
        _BOTH_HERE,
        "another address",
        service(external_ips=("192.168.99.23",)),
    ),
    "moving-address": _moving_address(),
    "terminating": _one(
        service(),
        [on("n1", 2, ready=False, terminating=True), on("n2", 2)],
        [on("n1", 2, ready=False, terminating=True), on("n2", 2, ready=False, terminating=True)],
        "the last ready endpoint ends",
    ),
    "zones": _one(
        service(distribution="PreferClose"),
        [on("n1", 2, zones=("a",)), on("n2", 2, zones=("b",))],
        [on("n1", 2, zones=("b",)), on("n2", 2, zones=("b",))],
        "no endpoint is for this zone",
    ),
    "dual-stack": _dual_stack(),
    "long-names": _one(_LONG, [], _BOTH_HERE, "endpoints come"),
    "masquerade-all": _one(service(), _BOTH_HERE, _BOTH_HERE[:1], "an endpoint goes", masquerade_all=True),
    "no-detector": _one(_LOCAL, _BOTH_HERE, _BOTH_HERE[:1], "the remote endpoint goes", pod_cidrs=()),
}
