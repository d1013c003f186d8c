"""The cluster as plain immutable data: what the user asked for, resolved.

A topology file and Kubernetes manifests are parsed elsewhere in this package; what comes out is made of
the records below, with every name valid, every address assigned and every pod on a node. Address fields
are tuples throughout: one entry for IPv4-only or IPv6-only, two (in the order of the CIDRs) for dual stack.
"""

from __future__ import annotations

from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import msgspec

from emulator.cluster.services import EndpointSlice, Service

PODS_PER_NODE_MAX = 110  # kubelet's default maxPods; a bridge with more ports also floods quadratically


class LinkQuality(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a link does to packets, in each direction. Zero means untouched.

    Units: ``bandwidth`` Mbit/s, ``delay`` and ``jitter`` ms, ``loss`` per cent.
    """

    bandwidth: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """One end of a link, in a machine. ``addresses`` carry their prefix length.

    ``peer`` is the switch or machine at the other end, ``peer_device`` the device there. ``quality``
    impairs what leaves by this interface; the far end's own entry impairs the other direction.
    """

    name: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int
    peer: str
    peer_device: str
    quality: LinkQuality = LinkQuality()


class StaticRoute(msgspec.Struct, frozen=True):
    """``destination`` is a CIDR, ``via`` the address of a neighbour, ``why`` one line for people."""

    destination: str
    via: str
    why: str = ""


class Machine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A machine of the underlay: a Kubernetes node, a router, or a host outside the cluster.

    ``routes`` are complete: the default routes (every node has them: proxy ARP, REJECT and NodePort
    need one), and on routers the routes to every subnet of the underlay. ``node_ips`` are what a node's kubelet was
    told by ``--node-ip``, if anything. ``nat`` are a router's interfaces towards segments that it hides: what comes
    from there leaves with the router's own address.
    """

    name: str
    kind: Literal["node", "router", "host"]
    interfaces: tuple[Interface, ...]
    routes: tuple[StaticRoute, ...] = ()
    labels: dict[str, str] = {}
    pods: int = 0
    asn: int = 0
    ports: tuple[int, ...] = ()
    annotations: dict[str, str] = {}
    node_ips: tuple[str, ...] = ()
    nat: tuple[str, ...] = ()

    @property
    def ns(self) -> str:
        """The plan's name of this machine's network namespace."""
        return f"{self.kind}/{self.name}"


class SwitchPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """A port of a switch: its device, and the machine's (or other switch's) end of the cable."""

    device: str
    machine: str
    machine_device: str
    quality: LinkQuality = LinkQuality()
    mtu: int = 1500


class Switch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A learning switch: a Linux bridge of its name in the ``underlay`` namespace."""

    name: str
    ports: tuple[SwitchPort, ...]
    cidrs: tuple[str, ...] = ()
    mtu: int = 1500


class VpcSubnet(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subnet of a VPC: what a switch's segment is in the cloud. ``route_table`` is the name of one of the VPC's."""

    name: str
    cidr: str
    zone: str = ""
    route_table: str = "main"


class VpcRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a route table. ``target`` is the name of a gateway: a router of the topology, or a NAT gateway."""

    destination: str
    target: str


class RouteTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route table of a VPC, without the ``local`` routes, which every table has."""

    name: str
    routes: tuple[VpcRoute, ...] = ()


class NatGateway(msgspec.Struct, frozen=True, omit_defaults=True):
    """A NAT gateway in ``subnet`` (its name), with its private address there; empty until the fabric is laid."""

    name: str
    subnet: str
    address: str = ""


class InternetGateway(msgspec.Struct, frozen=True, omit_defaults=True):
    """The way to the internet by the topology's router ``router``. Public addresses are from ``cidr``."""

    name: str
    router: str
    cidr: str


class Vpc(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cloud's virtual network, as the topology describes it.

    ``router`` is the machine that stands for the fabric; empty until a style lays it. ``public`` maps private
    addresses to public ones. The warm targets are those of ipamd; ``warm_ips`` 0 leaves it to ``warm_enis``.
    ``unchecked`` are the instances whose source/destination check is off.
    """

    cidrs: tuple[str, ...]
    subnets: tuple[VpcSubnet, ...]
    route_tables: tuple[RouteTable, ...] = ()
    internet_gateway: InternetGateway | None = None
    nat_gateways: tuple[NatGateway, ...] = ()
    warm_enis: int = 1
    warm_ips: int = 0
    unchecked: tuple[str, ...] = ()
    router: str = ""
    public: tuple[tuple[str, str], ...] = ()

    def subnet_of(self, address: str) -> VpcSubnet:
        """The subnet that holds ``address``. KeyError if none does."""
        for subnet in self.subnets:
            if ip_address(address) in ip_network(subnet.cidr):
                return subnet
        raise KeyError(address)


class Upstream(msgspec.Struct, frozen=True, omit_defaults=True):
    """The DNS resolver outside the cluster: the host that serves it, and all the names that it knows.

    ``records`` maps a name to addresses, or to one other name (CNAME). ``addresses`` are the host's.
    """

    host: str
    addresses: tuple[str, ...]
    records: dict[str, tuple[str, ...]] = {}


BalancerKind = Literal["metallb-l2", "metallb-bgp", "cloud"]
BalancerTargets = Literal["instance", "ip", "passthrough"]


class AddressRange(msgspec.Struct, frozen=True):
    """The addresses from ``first`` to ``last``, of one family."""

    first: str
    last: str

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def family(self) -> Literal[4, 6]:
        return 6 if ":" in self.first else 4

    @property
    def low(self) -> int:
        return int(ip_address(self.first))

    @property
    def high(self) -> int:
        return int(ip_address(self.last))

    def holds(self, address: str) -> bool:
        """Whether an address is one of them."""
        parsed = ip_address(address)
        return parsed.version == self.family and self.low <= int(parsed) <= self.high


class HealthTimes(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often a balancer asks its targets (``interval``, s), how long it waits for an answer (``timeout``, s), and
    how many good or bad answers in a row it takes to believe them. 0: as the implementation has it by default."""

    interval: float = 0.0
    timeout: float = 0.0
    healthy: int = 0
    unhealthy: int = 0


class LoadBalancer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What implements type LoadBalancer. It gives addresses of ``ranges`` to Services of ``service_class`` or of none.

    MetalLB announces from ``nodes`` (empty: all); in mode BGP as ``asn``, to the routers ``peers`` (empty: each that
    has an AS number and shares a link with the node), with ``hold_time`` in seconds. A cloud's balancer is the router
    ``machine``; it sends to ``targets`` node ports, pods, or nodes with the packet as it is, and unless
    ``preserve_client_ip`` as itself (None: as the cloud has it); ``proxy``: it says so in the status
    (``ipMode: Proxy``). It checks its targets by ``health``. ``nlb`` is what a cloud's balancer is in AWS' VPC, with
    the addresses at the end of each subnet; no file says it.
    """

    kind: BalancerKind | Literal["nlb"]
    ranges: tuple[AddressRange, ...]
    service_class: str = ""
    nodes: tuple[str, ...] = ()
    asn: int = 0
    peers: tuple[str, ...] = ()
    hold_time: int = 0
    machine: str = ""
    targets: BalancerTargets = "instance"
    preserve_client_ip: bool | None = None
    proxy: bool = False
    health: HealthTimes = HealthTimes()


class Topology(msgspec.Struct, frozen=True, omit_defaults=True):
    """A resolved topology. ``machines`` and ``switches`` keep the file's order.

    ``vpc`` describes the cloud's network, for styles that live in one; others do not look at it. ``upstream`` is what
    nodes ask for names. Without a ``load_balancer`` Services of type LoadBalancer stay without address.
    """

    name: str
    machines: tuple[Machine, ...]
    switches: tuple[Switch, ...]
    pod_cidrs: tuple[str, ...]
    service_cidrs: tuple[str, ...]
    node_cidrs: tuple[str, ...]
    vpc: Vpc | None = None
    upstream: Upstream | None = None
    load_balancer: LoadBalancer | None = None

    def of_kind(self, kind: Literal["node", "router", "host"]) -> tuple[Machine, ...]:
        """The machines of one kind, in the file's order."""
        return tuple(machine for machine in self.machines if machine.kind == kind)


class ContainerPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """A declared ``containerPort``. Our server answers on it unless the container has a command."""

    port: int
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    name: str = ""
    host_port: int = 0


class Container(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container, as far as the network can tell. ``command`` is command plus args, empty if only args are given:
    those are ``arguments``, of the image's entry point."""

    name: str
    ports: tuple[ContainerPort, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    image: str = ""
    arguments: tuple[str, ...] = ()


DnsPolicy = Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]


class DnsConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pod's ``dnsConfig``. ``options`` as resolv.conf has them: ``ndots:2``, ``single-request``."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Lifetime(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pod's spec says of its beginning and end, in seconds.

    ``ready_after``: its first readiness probe. ``min_ready``: how long it must be ready to count as available.
    ``shutdown``: how long it goes on after its deletion, of its own accord; ``grace_period`` is the limit to that.
    """

    ready_after: int = 0
    min_ready: int = 0
    shutdown: float = 0.0
    grace_period: int = 30  # v1 PodSpec terminationGracePeriodSeconds' default

    @property
    def at_once(self) -> bool:
        """Whether the pod is available as soon as it is there."""
        return not self.ready_after and not self.min_ready


class Pod(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """A pod on its node, with its addresses (no prefix length).

    ``addresses`` are the node's own for ``host_network`` pods, which have no namespace of their own.
    ``owner`` is ``ReplicaSet/web-6d4b75cb6d``, ``StatefulSet/db``, ``DaemonSet/agent``, ``Topology`` for pods of
    a topology's ``pods: N``, and empty for a Pod that was given as such. ``hostname`` is what the pod calls itself.
    ``incarnation`` counts the pods of this name that it has replaced. A ``terminating`` pod was deleted and has not
    ended yet: it has its address and serves, but its owner has replaced it already. ``ready`` is its condition Ready,
    which a terminating pod keeps; it is ``available`` once it has been ready for as long as its owner asks for.
    ``named_host``: its author named the host, so that it has a name in the Service of
    its ``subdomain``.
    """

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    containers: tuple[Container, ...] = ()
    owner: str = ""
    host_network: bool = False
    service_account: str = "default"
    hostname: str = ""
    subdomain: str = ""
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    incarnation: int = 0
    ready: bool = True
    available: bool = True
    terminating: bool = False
    lifetime: Lifetime = Lifetime()
    named_host: bool = False
    dns_policy: DnsPolicy = "ClusterFirst"
    dns: DnsConfig = DnsConfig()

    @cached_property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def grace(self) -> float:
        """Seconds that the pod goes on after its deletion."""
        return min(self.lifetime.shutdown, self.lifetime.grace_period)

    @cached_property
    def ns(self) -> str:
        """The plan's name of the network namespace that this pod's traffic lives in."""
        return f"node/{self.node}" if self.host_network else f"pod/{self.namespace}/{self.name}"


class Eni(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cloud's network interface that is attached to a node: ``eth0`` is the primary one, ``eth1`` the next.

    ``address`` is its own, in ``subnet`` (a CIDR); ``prefixes`` are what it has for pods: single addresses (/32), or
    blocks of sixteen (/28).
    """

    index: int
    device: str
    mac: str
    subnet: str
    address: str
    prefixes: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Kubernetes node. ``addresses`` are its InternalIPs; ``pod_ranges`` the CIDRs that its pods are in.

    ``device`` is the interface that holds ``addresses`` (that of the default route, unless the kubelet was told
    otherwise), ``mtu`` its MTU; a CNI may take another one (``emulator.cni.node_interfaces``);
    ``subnets`` are the underlay subnets that they are from, in the same order. ``tunnels`` are the addresses of its
    tunnel devices, by device, where the style's address manager hands them out. ``enis`` are the network interfaces
    that pods get addresses of, in a cloud whose CNI works so.
    """

    name: str
    addresses: tuple[str, ...]
    device: str
    mtu: int
    pod_ranges: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    subnets: tuple[str, ...] = ()
    asn: int = 0
    tunnels: dict[str, str] = {}
    enis: tuple[Eni, ...] = ()
    annotations: dict[str, str] = {}

    @property
    def ns(self) -> str:
        """The plan's name of the node's network namespace."""
        return f"node/{self.name}"


class ReplicaSet(msgspec.Struct, frozen=True):
    """A ReplicaSet of a Deployment, with the size that its controller wants it to have. ``template`` is the record of
    ``emulator.cluster.podspec`` that its pods are made of; whoever reads a cluster from afar has it as plain data."""

    namespace: str
    deployment: str
    name: str
    replicas: int
    template: Any


class Cluster(msgspec.Struct, frozen=True):
    """Everything that a CNI style, a proxy or a policy enforcer needs to know.

    ``objects`` are the Kubernetes objects of all other kinds, as given (``kind``, ``metadata``, ``spec``),
    for those who consume them; ``namespaces`` maps each namespace to its labels. ``made`` counts the pods that
    each ReplicaSet and DaemonSet (``namespace/Kind/name``) has named so far, so that a replacement gets a new name.
    ``services`` are the Services with all that is allocated to them, ``slices`` their endpoints;
    ``not_ready_nodes`` those whose pods are no endpoints, because they are down. ``replica_sets`` are those of each
    Deployment, the one with its template last; ``rolling`` the workloads (``namespace/Kind/name``) for which there is
    more to do than this one step. ``pending`` are lines for people: the Services that a load balancer should have given
    an address, and why it did not. ``target_health`` is what the load balancer's health checks have found so far, by
    the names of targets: ``healthy``, or ``initial`` or ``unhealthy`` with a reason.
    """

    topology: Topology
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    namespaces: dict[str, dict[str, str]]
    objects: tuple[dict[str, Any], ...] = ()
    made: dict[str, int] = {}
    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    not_ready_nodes: frozenset[str] = frozenset()
    replica_sets: tuple[ReplicaSet, ...] = ()
    rolling: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    target_health: dict[str, str] = {}

    def node(self, name: str) -> Node:
        """The node of that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def pods_on(self, node: str) -> tuple[Pod, ...]:
        """The pods on one node, in the order they were made."""
        return tuple(pod for pod in self.pods if pod.node == node)
