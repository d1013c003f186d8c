"""A topology file as it is written: its fields, and every rule that needs no more than one of them.

``docs/topology.md`` describes the format for users. What a file leaves out (addresses, MACs, device
names, routes) is filled in by :mod:`emulator.cluster.topology_resolve`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from emulator.cluster import validation
from emulator.cluster.decode import decode
from emulator.cluster.model import LinkQuality
from emulator.cluster.strict_yaml import Malformed, documents
from emulator.errors import Problem

SIZE_MAX = 1 << 20  # bytes of a topology file
MACHINES_MAX = 1000  # nodes, routers and hosts together; more would not fit a single kernel's patience
PODS_MAX = 110  # pods per node: kubelet's default, and a bridge with more ports floods quadratically
PORTS_MAX = 1023  # ports of one Linux bridge (BR_MAX_PORTS 1024, the first number is never used)
LINKS_MAX = 4 * MACHINES_MAX
DEVICE_MAX = 15  # bytes of a network device's name (IFNAMSIZ 16 with its end)
MTU_MIN = 576  # bytes: what every IPv4 host must accept (RFC 791)
MTU_MIN_IPV6 = 1280  # bytes: RFC 8200, section 5; below it the kernel removes IPv6 from the device
MTU_MAX = 65535  # bytes: ETH_MAX_MTU, the most a veth or bridge takes
DELAY_MAX = 600_000.0  # ms, ten minutes
BANDWIDTH_MAX = 1_000_000.0  # Mbit/s: 1 Tbit/s
ASN_MAX = 2**32 - 1  # RFC 6793

ZONE_LABEL = "topology.kubernetes.io/zone"

# Interface names that mean something else in /proc/sys/net/*/conf/
RESERVED_DEVICES = ("all", "default", "lo")


class RouteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A static route: ``to`` a CIDR or ``default``, by the neighbour ``via``."""

    to: str
    via: str


class SwitchEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A learning switch with the subnets of its segment."""

    name: str
    cidrs: list[str] = []
    mtu: int = 1500


class NodeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One node, or ``count`` nodes named ``prefix`` and a number."""

    name: str = ""
    pods: int | None = None
    labels: dict[str, str] = {}
    zone: str = ""
    asn: int = 0
    switch: str = ""
    addresses: list[str] = []
    routes: list[RouteEntry] = []
    default_route: bool = True
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
    )
    if not faults.problems:
        _check(file, faults)
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
        prefix = node.prefix or "n"
        result += [
            msgspec.structs.replace(node, name=f"{prefix}{number}", count=None, prefix="")
            for number in range(1, node.count + 1)
        ]
    return result


def _check(file: TopologyFile, faults: Faults) -> None:
    for reason in validation.faults_of_label_name(file.name):
        faults.add("", "name", validation.invalid(file.name, reason))
    for field, cidrs in (("podCIDRs", file.pod_cidrs), ("serviceCIDRs", file.service_cidrs)):
        _check_cidrs(cidrs, "", field, faults, one_per_family=True)
    if not file.nodes:
        faults.add("", "nodes", validation.required("a cluster has at least one node"))
    if len(file.nodes) + len(file.routers) + len(file.hosts) > MACHINES_MAX:
        faults.add("", "", f"must have at most {MACHINES_MAX} machines")
    owners: dict[str, str] = {}
    for word, field, names in (
        ("switch", "switches", [switch.name for switch in file.switches]),
        ("node", "nodes", [node.name for node in file.nodes]),
        ("router", "routers", [router.name for router in file.routers]),
        ("host", "hosts", [host.name for host in file.hosts]),
    ):
        for index, name in enumerate(names):
            _check_name(name, word, f"{field}[{index}].name", owners, faults)
    for index, switch in enumerate(file.switches):
        subject, path = f"switch {switch.name}", f"switches[{index}]"
        _check_cidrs(switch.cidrs, subject, f"{path}.cidrs", faults, one_per_family=False)
        _check_mtu(switch.mtu, subject, f"{path}.mtu", faults)
    for index, node in enumerate(file.nodes):
        _check_node(node, f"nodes[{index}]", faults)
    for index, router in enumerate(file.routers):
        _check_asn(router.asn, f"router {router.name}", f"routers[{index}].asn", faults)
        _check_machine(router, f"router {router.name}", f"routers[{index}]", faults)
    for index, host in enumerate(file.hosts):
        _check_host(host, f"hosts[{index}]", faults)
    for index, link in enumerate(file.links):
        _check_link(link, f"links[{index}]", faults)


def _check_name(name: str, word: str, path: str, owners: dict[str, str], faults: Faults) -> None:
    shown = f"{word} {name}" if len(name) < 64 and name.isprintable() else ""
    if not name:
        faults.add("", path, validation.required())
        return
    # Names become file names, host names and parts of device names: nothing but the Kubernetes rule gets through
    rule = validation.faults_of_label_name if word == "switch" else validation.faults_of_subdomain
    for reason in rule(name):
        faults.add(shown, path, validation.invalid(name, reason))
    if word == "switch" and len(name) > DEVICE_MAX:
        faults.add(
            shown, path, validation.invalid(name, f"must be no more than {DEVICE_MAX} bytes: it names a Linux bridge")
        )
    elif len(name) > validation.LABEL_MAX:
        faults.add(shown, path, validation.invalid(name, f"must be no more than {validation.LABEL_MAX} bytes"))
    if word == "switch" and name in RESERVED_DEVICES:
        faults.add(shown, path, validation.invalid(name, "is reserved by the kernel, choose another name"))
    if name in owners:
        faults.add(shown, path, f"{validation.duplicate(name)}: {owners[name]} has this name")
    owners.setdefault(name, path.removesuffix(".name"))


def _check_node(node: NodeEntry, path: str, faults: Faults) -> None:
    subject = f"node {node.name}"
    if not 0 <= (node.pods or 0) <= PODS_MAX:
        faults.add(subject, f"{path}.pods", validation.invalid(node.pods, f"must be between 0 and {PODS_MAX}"))
    for key, value in node.labels.items():
        for reason in validation.faults_of_qualified_name(key):
            faults.add(subject, f"{path}.labels", validation.invalid(key, reason))
        for reason in validation.faults_of_label_value(value):
            faults.add(subject, f"{path}.labels", validation.invalid(value, reason))
    for reason in validation.faults_of_label_value(node.zone):
        faults.add(subject, f"{path}.zone", validation.invalid(node.zone, reason))
    if node.zone and node.labels.get(ZONE_LABEL, node.zone) != node.zone:
        faults.add(subject, f"{path}.zone", f"contradicts the label {ZONE_LABEL}")
    _check_asn(node.asn, subject, f"{path}.asn", faults)
    _check_machine(node, subject, path, faults)


def _check_host(host: HostEntry, path: str, faults: Faults) -> None:
    subject = f"host {host.name}"
    seen: set[int] = set()
    for index, port in enumerate(host.ports):
        for reason in validation.faults_of_port(port):
            faults.add(subject, f"{path}.ports[{index}]", validation.invalid(port, reason))
        if port in seen:
            faults.add(subject, f"{path}.ports[{index}]", validation.duplicate(port))
        seen.add(port)
    _check_machine(host, subject, path, faults)


def _check_machine(machine: NodeEntry | RouterEntry | HostEntry, subject: str, path: str, faults: Faults) -> None:
    if machine.addresses and not machine.switch:
        faults.add(subject, f"{path}.addresses", "belong to a switch: give it too, or write the addresses in the link")
    _check_addresses(machine.addresses, subject, f"{path}.addresses", faults)
    for index, route in enumerate(machine.routes):
        place = f"{path}.routes[{index}]"
        if route.to != "default":
            for reason in validation.faults_of_cidr(route.to):
                faults.add(subject, f"{place}.to", validation.invalid(route.to, reason))
        for reason in validation.faults_of_address(route.via):
            faults.add(subject, f"{place}.via", validation.invalid(route.via, reason))


def _check_link(link: LinkEntry, path: str, faults: Faults) -> None:
    subject = (
        f"link {link.from_}–{link.to}"
        if (link.from_ + link.to).isprintable() and len(link.from_ + link.to) < 128
        else ""
    )
    for field, value, most in (
        ("bandwidth", link.bandwidth, BANDWIDTH_MAX),
        ("delay", link.delay, DELAY_MAX),
        ("jitter", link.jitter, DELAY_MAX),
        ("loss", link.loss, 100.0),
    ):
        if not math.isfinite(value) or not 0 <= value <= most:
            faults.add(subject, f"{path}.{field}", validation.invalid(value, f"must be between 0 and {most:g}"))
    if link.jitter > link.delay:
        faults.add(subject, f"{path}.jitter", validation.invalid(link.jitter, "must not exceed the delay"))
    if link.mtu is not None:
        _check_mtu(link.mtu, subject, f"{path}.mtu", faults)
    _check_cidrs(link.cidrs, subject, f"{path}.cidrs", faults, one_per_family=False)
    _check_addresses(link.addresses, subject, f"{path}.addresses", faults)
    _check_addresses(link.peer_addresses, subject, f"{path}.peerAddresses", faults)


def _check_mtu(mtu: int, subject: str, path: str, faults: Faults) -> None:
    if not MTU_MIN <= mtu <= MTU_MAX:
        faults.add(subject, path, validation.invalid(mtu, f"must be between {MTU_MIN} and {MTU_MAX}"))


def _check_asn(asn: int, subject: str, path: str, faults: Faults) -> None:
    if not 0 <= asn <= ASN_MAX:
        faults.add(subject, path, validation.invalid(asn, f"must be between 0 and {ASN_MAX}"))


def _check_addresses(addresses: list[str], subject: str, path: str, faults: Faults) -> None:
    for index, address in enumerate(addresses):
        base, slash, length = address.partition("/")
        if validation.parse_address(base) is None or (slash and not (length.isascii() and length.isdigit())):
            reason = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            faults.add(subject, f"{path}[{index}]", validation.invalid(address, reason))


def _check_cidrs(cidrs: list[str], subject: str, path: str, faults: Faults, *, one_per_family: bool) -> None:
    families: set[int] = set()
    for index, text in enumerate(cidrs):
        try:
            network = validation.parse_cidr(text)
        except ValueError as error:
            faults.add(subject, f"{path}[{index}]", validation.invalid(text, str(error)))
            continue
        unusable = _unusable(network)
        if unusable:
            faults.add(subject, f"{path}[{index}]", validation.invalid(text, unusable))
        if one_per_family and network.version in families:
            faults.add(
                subject, f"{path}[{index}]", f"there is an IPv{network.version} range already, at most one is allowed"
            )
        families.add(network.version)


_UNUSABLE: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "the loopback"),
    ("169.254.0.0/16", "link-local addresses, which CNI styles use as gateways"),
    ("224.0.0.0/3", "multicast and reserved addresses"),
    ("::/96", "the loopback and unspecified addresses"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast"),
)


def _unusable(network: validation.Network) -> str:
    for text, what in _UNUSABLE:
        if overlap(network, validation.parse_cidr(text)):
            return f"overlaps {text}, {what}"
    return ""


def overlap(one: validation.Network, other: validation.Network) -> bool:
    """Whether two networks share an address; those of different families never do."""
    return one.version == other.version and (
        int(one.network_address) <= int(other.broadcast_address)
        and int(other.network_address) <= int(one.broadcast_address)
    )
