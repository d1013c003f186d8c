"""A topology file as it is written: its entries and their fields.

``docs/topology.md`` describes the format for users. The rules for the fields' values are in
:mod:`emulator.cluster.topology_rules`; what a file leaves out (addresses, MACs, device names, routes) is
filled in by :mod:`emulator.cluster.topology_resolve`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from emulator.cluster import validation
from emulator.cluster.decode import decode
from emulator.cluster.model import LinkQuality
from emulator.cluster.strict_yaml import Malformed, documents
from emulator.errors import Problem

SIZE_MAX = 1 << 20  # bytes of a topology file
MACHINES_MAX = 1000  # nodes, routers and hosts together; more would not fit a single kernel's patience
LINKS_MAX = 4 * MACHINES_MAX


class RouteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A static route: ``to`` a CIDR or ``default``, by the neighbour ``via``."""

    to: str
    via: str


class SwitchEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A learning switch with the subnets of its segment. ``nat``: the segment is behind its router's NAT."""

    name: str
    cidrs: list[str] = []
    mtu: int = 1500
    nat: bool = False


class NodeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One node, or ``count`` nodes named ``prefix`` and a number."""

    name: str = ""
    pods: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    zone: str = ""
    asn: int = 0
    switch: str = ""
    addresses: list[str] = []
    routes: list[RouteEntry] = []
    default_route: bool = True
    node_ip: str = msgspec.field(name="nodeIP", default="")
    count: int | None = None
    prefix: str = ""


class RouterEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A router (ToR, spine)."""

    name: str
    asn: int = 0
    switch: str = ""
    addresses: list[str] = []
    routes: list[RouteEntry] = []


class HostEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A host outside the cluster and the ports that it answers on."""

    name: str
    ports: list[int] = msgspec.field(default_factory=lambda: [80])
    switch: str = ""
    addresses: list[str] = []
    routes: list[RouteEntry] = []
    default_route: bool = True


class LinkEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A cable. ``addresses`` are the machine's; between two machines ``from``'s, and ``peerAddresses`` are ``to``'s."""

    from_: str = msgspec.field(name="from")
    to: str
    bandwidth: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    mtu: int | None = None
    addresses: list[str] = []
    peer_addresses: list[str] = []
    cidrs: list[str] = []

    @property
    def quality(self) -> LinkQuality:
        """The impairment of each direction."""
        return LinkQuality(self.bandwidth, self.delay, self.jitter, self.loss)


class SubnetEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A VPC's subnet: a switch, with the subnet's own CIDR if that is larger than the switch's."""

    switch: str
    cidr: str = ""
    zone: str = ""
    route_table: str = ""


class VpcRouteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a route table: ``to`` a CIDR or ``default``, by a gateway."""

    to: str
    target: str


class RouteTableEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route table, less the local routes."""

    name: str
    routes: list[VpcRouteEntry] = []


class InternetGatewayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The internet gateway: the topology's router behind it, and the public addresses."""

    router: str
    cidr: str
    name: str = "igw"


class NatGatewayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A NAT gateway in a subnet."""

    name: str
    subnet: str
    address: str = ""


class VpcEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the segments are in a cloud; see ``emulator.cluster.topology_vpc``."""

    subnets: list[SubnetEntry]
    cidrs: list[str] = []
    route_tables: list[RouteTableEntry] = []
    internet_gateway: InternetGatewayEntry | None = None
    nat_gateways: list[NatGatewayEntry] = []
    warm_enis: int = msgspec.field(name="warmENITarget", default=1)
    warm_ips: int = msgspec.field(name="warmIPTarget", default=0)
    no_source_dest_check: list[str] = []


class DnsEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The resolver outside the cluster; see ``emulator.cluster.topology_dns``."""

    upstream: str
    records: dict[str, str | list[str]] = {}


class HealthCheckEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """How a cloud's load balancer asks its targets; see ``emulator.cluster.topology_balancer``."""

    interval: float = 0.0
    timeout: float = 0.0
    healthy_threshold: int = 0
    unhealthy_threshold: int = 0


class LoadBalancerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What implements Services of type LoadBalancer; see ``emulator.cluster.topology_balancer``."""

    kind: str
    addresses: list[str]
    class_: str = msgspec.field(name="class", default="")
    nodes: list[str] | None = None
    asn: int | None = None
    peers: list[str] | None = None
    hold_time: int | None = None
    machine: str | None = None
    targets: str | None = None
    preserve_client_ip: bool | None = msgspec.field(name="preserveClientIP", default=None)
    ip_mode: str | None = None
    health_check: HealthCheckEntry | None = None


class TopologyFile(msgspec.Struct, frozen=True):
    """The whole file, each entry well-formed, with the ``count`` shorthand written out.

    ``paths`` gives the place of each node, router, host, switch and link for messages about it.
    """

    name: str
    pod_cidrs: list[str]
    service_cidrs: list[str]
    switches: list[SwitchEntry]
    nodes: list[NodeEntry]
    routers: list[RouterEntry]
    hosts: list[HostEntry]
    links: list[LinkEntry]
    vpc: VpcEntry | None = None
    dns: DnsEntry | None = None
    load_balancer: LoadBalancerEntry | None = None


class _Outline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The top level; the entries are decoded one by one so that each fault names its object."""

    name: str = ""
    description: str = ""
    pod_cidrs: list[str] = msgspec.field(name="podCIDRs", default_factory=list)
    service_cidrs: list[str] = msgspec.field(name="serviceCIDRs", default_factory=list)
    pods: int = 0
    switches: list[Any] = []
    nodes: list[Any] = []
    routers: list[Any] = []
    hosts: list[Any] = []
    links: list[Any] = []
    vpc: VpcEntry | None = None
    dns: DnsEntry | None = None
    load_balancer: LoadBalancerEntry | None = None


Entry = TypeVar("Entry", SwitchEntry, NodeEntry, RouterEntry, HostEntry, LinkEntry)


class Faults:
    """Collects the problems of one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def add(self, subject: str, path: str, reason: str) -> None:
        """One more problem; the same one twice counts once."""
        problem = Problem(self.source, subject, path, reason)
        if problem not in self.problems:
            self.problems.append(problem)


def read_topology_file(text: str, source: str, default_name: str, faults: Faults) -> TopologyFile | None:
    """The file's entries; faults go to ``faults``, and None comes back if there is no point in going on."""
    if len(text) > SIZE_MAX:
        faults.add("", "", f"the file is larger than {SIZE_MAX} bytes")
        return None
    try:
        found = list(documents(text))
    except Malformed as error:
        faults.add("", "", str(error))
        return None
    if not found:
        faults.add("", "", "the file is empty")
        return None
    if len(found) > 1:
        faults.add("", "", f"line {found[1].line}: a topology file holds one document, this one has {len(found)}")
        return None
    outline, wrong = decode(found[0].value, _Outline)
    for path, reason in wrong:
        faults.add("", path, reason)
    if outline is None:
        return None
    file = TopologyFile(
        name=outline.name or default_name,
        pod_cidrs=outline.pod_cidrs or ["10.244.0.0/16"],
        service_cidrs=outline.service_cidrs or ["10.96.0.0/12"],
        switches=_entries(outline.switches, SwitchEntry, "switch", "switches", faults),
        nodes=_written_out(_entries(outline.nodes, NodeEntry, "node", "nodes", faults), outline.pods, faults),
        routers=_entries(outline.routers, RouterEntry, "router", "routers", faults),
        hosts=_entries(outline.hosts, HostEntry, "host", "hosts", faults),
        links=_entries(outline.links, LinkEntry, "link", "links", faults),
        vpc=outline.vpc,
        dns=outline.dns,
        load_balancer=outline.load_balancer,
    )
    return None if faults.problems else file


def _entries(values: list[Any], kind: type[Entry], word: str, field: str, faults: Faults) -> list[Entry]:
    entries = []
    limit = LINKS_MAX if kind is LinkEntry else MACHINES_MAX
    if len(values) > limit:
        faults.add("", field, f"must have at most {limit} items")
        return []
    for index, value in enumerate(values):
        entry, wrong = decode(value, kind)
        for path, reason in wrong:
            faults.add(_subject(word, value), f"{field}[{index}]" + (f".{path}" if path else ""), reason)
        if entry is not None:
            entries.append(entry)
    return entries


def _subject(word: str, value: Any) -> str:
    name = value.get("name", value.get("prefix")) if isinstance(value, dict) else None
    return f"{word} {name}" if isinstance(name, str) and len(name) < 64 and name.isprintable() else ""


def _written_out(nodes: list[NodeEntry], pods: int, faults: Faults) -> list[NodeEntry]:
    """Each ``count`` entry as that many nodes; ``pods`` is the number for nodes that give none."""
    result: list[NodeEntry] = []
    for index, node in enumerate(nodes):
        if node.pods is None:
            node = msgspec.structs.replace(node, pods=pods)
        if node.count is None:
            if node.prefix:
                faults.add("", f"nodes[{index}].prefix", "is only for entries with a count")
            result.append(node)
            continue
        if not 1 <= node.count <= MACHINES_MAX:
            faults.add(
                "", f"nodes[{index}].count", validation.invalid(node.count, f"must be between 1 and {MACHINES_MAX}")
            )
            continue
        if node.name:
            faults.add(f"node {node.name}", f"nodes[{index}].name", "must not be given with a count; give a prefix")
        if node.addresses:
            faults.add("", f"nodes[{index}].addresses", "must not be given with a count: nodes cannot share them")
        if node.node_ip:
            faults.add("", f"nodes[{index}].nodeIP", "must not be given with a count: nodes cannot share it")
        prefix = node.prefix or "n"
        result += [
            msgspec.structs.replace(node, name=f"{prefix}{number}", count=None, prefix="")
            for number in range(1, node.count + 1)
        ]
    return result
