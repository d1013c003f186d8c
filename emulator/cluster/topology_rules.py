"""The rules of a topology file: what a name, a number, an address or a range in it may be.

Each rule here looks at one field, or at the names together; what needs the whole network (segments,
overlaps, reachable routers) is checked while it is resolved.
"""

from __future__ import annotations

import math

from emulator.cluster import validation
from emulator.cluster.model import PODS_PER_NODE_MAX
from emulator.cluster.topology_file import (
    MACHINES_MAX,
    Faults,
    HostEntry,
    LinkEntry,
    NodeEntry,
    RouterEntry,
    TopologyFile,
)

PORTS_MAX = 1023  # ports of one Linux bridge (BR_MAX_PORTS 1024, the first number is never used)
CIDRS_MAX = 8  # subnets of one segment
ADDRESSES_MAX = 64  # explicit addresses of one device
ROUTES_MAX = 256  # explicit routes of one machine
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


def check(file: TopologyFile, faults: Faults) -> None:
    """Add to ``faults`` whatever is wrong with one field or the names of ``file``."""
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
    if not 0 <= (node.pods or 0) <= PODS_PER_NODE_MAX:
        faults.add(subject, f"{path}.pods", validation.invalid(node.pods, f"must be between 0 and {PODS_PER_NODE_MAX}"))
    for key, value in node.labels.items():
        for reason in validation.faults_of_qualified_name(key):
            faults.add(subject, f"{path}.labels", validation.invalid(key, reason))
        for reason in validation.faults_of_label_value(value):
            faults.add(subject, f"{path}.labels", validation.invalid(value, reason))
    for key in node.annotations:
        for reason in validation.faults_of_qualified_name(key):
            faults.add(subject, f"{path}.annotations", validation.invalid(key, reason))
    for reason in validation.faults_of_label_value(node.zone):
        faults.add(subject, f"{path}.zone", validation.invalid(node.zone, reason))
    if node.zone and node.labels.get(ZONE_LABEL, node.zone) != node.zone:
        faults.add(subject, f"{path}.zone", f"contradicts the label {ZONE_LABEL}")
    _check_asn(node.asn, subject, f"{path}.asn", faults)
    _check_node_ip(node.node_ip, subject, f"{path}.nodeIP", faults)
    _check_machine(node, subject, path, faults)


def _check_node_ip(text: str, subject: str, path: str, faults: Faults) -> None:
    """The kubelet's ``--node-ip``: an address, or one of each family with a comma between them."""
    if not text:
        return
    found = [validation.parse_address(part) for part in text.split(",")]
    versions = [address.version for address in found if address is not None]
    if len(versions) < len(found) or len(set(versions)) < len(found):
        reason = "must be an IP address, or an IPv4 and an IPv6 address with a comma between them"
        faults.add(subject, path, validation.invalid(text, reason))


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
    if len(machine.routes) > ROUTES_MAX:
        faults.add(subject, f"{path}.routes", f"must have at most {ROUTES_MAX} items")
        return
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
    if len(addresses) > ADDRESSES_MAX:
        faults.add(subject, path, f"must have at most {ADDRESSES_MAX} items")
        return
    for index, address in enumerate(addresses):
        base, slash, length = address.partition("/")
        if validation.parse_address(base) is None or (slash and not (length.isascii() and length.isdigit())):
            reason = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            faults.add(subject, f"{path}[{index}]", validation.invalid(address, reason))


def _check_cidrs(cidrs: list[str], subject: str, path: str, faults: Faults, *, one_per_family: bool) -> None:
    if len(cidrs) > CIDRS_MAX:
        faults.add(subject, path, f"must have at most {CIDRS_MAX} items")
        return
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
