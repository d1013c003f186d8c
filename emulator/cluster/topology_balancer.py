"""The ``loadBalancer`` section of a topology: what gives Services of type LoadBalancer their addresses, and where.

Sources: metallb.io "Usage" and "Configuration" (IPAddressPool, L2Advertisement, BGPPeer).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, get_args

from emulator.cluster import validation
from emulator.cluster.decode import near
from emulator.cluster.model import AddressRange, BalancerKind, BalancerTargets, HealthTimes, LoadBalancer, Machine
from emulator.cluster.topology_file import Faults, HealthCheckEntry, LoadBalancerEntry, TopologyFile

RANGES_MAX = 64  # pools are few; their size is not limited
HOLD_TIMES = range(3, 65536)  # s: RFC 4271, 4.2; MetalLB refuses less than 3 as well
ASN_MAX = 2**32 - 1  # RFC 6793
METALLB_ASN = 64500  # of the examples in MetalLB's documentation
METALLB_HOLD_TIME = 90  # s: BGPPeer.spec.holdTime, by default
_ONLY = {
    "asn": "metallb-bgp",
    "peers": "metallb-bgp",
    "hold_time": "metallb-bgp",
    "machine": "cloud",
    "targets": "cloud",
    "preserve_client_ip": "cloud",
    "ip_mode": "cloud",
    "health_check": "cloud",
}
_SPELT = {
    "hold_time": "holdTime",
    "preserve_client_ip": "preserveClientIP",
    "ip_mode": "ipMode",
    "health_check": "healthCheck",
}
SECONDS = (0.1, 300.0)  # of a health check; AWS has whole seconds from 5, which is long for a lab
THRESHOLDS = range(1, 11)  # answers in a row; AWS has 2 to 10


def resolve_balancer(file: TopologyFile, machines: Sequence[Machine], faults: Faults) -> LoadBalancer | None:
    """The load balancer of the file; faults go to ``faults``."""
    entry = file.load_balancer
    if entry is None:
        return None
    before = len(faults.problems)
    if entry.kind not in get_args(BalancerKind):
        _fault(faults, "kind", validation.unsupported(entry.kind, get_args(BalancerKind)))
        return None
    for field, kind in _ONLY.items():
        if getattr(entry, field) is not None and entry.kind != kind:
            _fault(faults, _SPELT.get(field, field), validation.forbidden(f"is for kind {kind} only"))
    for reason in validation.faults_of_qualified_name(entry.class_) if entry.class_ else ():
        _fault(faults, "class", validation.invalid(entry.class_, reason))
    ranges = _ranges(entry, faults)
    if len(faults.problems) == before:
        _check_overlaps(file, ranges, machines, faults)
    nodes = _named(entry.nodes or [], "nodes", [one.name for one in machines if one.kind == "node"], "node", faults)
    routers = [one.name for one in machines if one.kind == "router" and one.asn]
    peers = _named(entry.peers or [], "peers", routers, "router with an asn", faults)
    if entry.kind == "metallb-bgp" and not routers:
        _fault(faults, "kind", validation.invalid(entry.kind, "there is no router with an asn to peer with"))
    if entry.hold_time is not None and entry.hold_time not in HOLD_TIMES:
        _fault(faults, "holdTime", validation.invalid(entry.hold_time, "must be between 3 and 65535 seconds"))
    if entry.asn is not None and not 0 < entry.asn <= ASN_MAX:
        _fault(faults, "asn", validation.invalid(entry.asn, f"must be between 1 and {ASN_MAX}"))
    if entry.kind == "metallb-l2" and len(faults.problems) == before:
        _check_links(ranges, nodes, machines, faults)
    if entry.kind == "cloud":
        _check_cloud(entry, ranges, machines, faults)
    if len(faults.problems) > before:
        return None
    targets: Any = entry.targets or "instance"
    return LoadBalancer(
        kind=entry.kind,  # type: ignore[arg-type]  # one of the literals: checked above
        ranges=ranges,
        service_class=entry.class_,
        nodes=nodes,
        asn=entry.asn or METALLB_ASN,
        peers=peers,
        hold_time=entry.hold_time or METALLB_HOLD_TIME,
        machine=entry.machine or "",
        targets=targets,
        preserve_client_ip=entry.preserve_client_ip,
        proxy=entry.ip_mode == "Proxy",
        health=_health(entry.health_check),
    )


def _fault(faults: Faults, field: str, reason: str) -> None:
    faults.add("", f"loadBalancer.{field}", reason)


def _ranges(entry: LoadBalancerEntry, faults: Faults) -> tuple[AddressRange, ...]:
    if not 0 < len(entry.addresses) <= RANGES_MAX:
        _fault(faults, "addresses", f"must have 1 to {RANGES_MAX} items")
        return ()
    found: list[AddressRange] = []
    for index, text in enumerate(entry.addresses):
        try:
            one = _range(text)
        except ValueError as error:
            _fault(faults, f"addresses[{index}]", validation.invalid(text, str(error)))
            continue
        clash = next((other for other in found if _overlap(one, other)), None)
        if clash is not None:
            _fault(faults, f"addresses[{index}]", validation.invalid(text, f"overlaps {clash}"))
        found.append(one)
    return tuple(found)


def _range(text: str) -> AddressRange:
    """A CIDR or ``first-last``. Raises ValueError."""
    first, dash, last = text.partition("-")
    if not dash:
        if "/" not in text:
            raise ValueError("must be a CIDR, or two addresses with a dash between")
        network = validation.parse_cidr(text)
        low, high = network[0], network[-1]
    else:
        one, other = validation.parse_address(first.strip()), validation.parse_address(last.strip())
        if one is None or other is None:
            raise ValueError("must be a CIDR, or two addresses with a dash between")
        if one.version != other.version or int(one) > int(other):
            raise ValueError("the first address must be of the last one's family, and not above it")
        low, high = one, other
    for address in (low, high):
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            raise ValueError("must not be loopback, link-local, multicast or unspecified")
    return AddressRange(str(low), str(high))


def _overlap(one: AddressRange, other: AddressRange) -> bool:
    return one.family == other.family and one.low <= other.high and other.low <= one.high


def _of_cidr(text: str) -> AddressRange:
    network = ip_network(text)
    return AddressRange(str(network[0]), str(network[-1]))


def _check_overlaps(
    file: TopologyFile, ranges: Iterable[AddressRange], machines: Sequence[Machine], faults: Faults
) -> None:
    """Addresses that are somebody else's."""
    pods = [(text, "podCIDRs") for text in file.pod_cidrs] + [(text, "serviceCIDRs") for text in file.service_cidrs]
    for index, one in enumerate(ranges):
        for text, field in pods:
            if _overlap(one, _of_cidr(text)):
                _fault(faults, f"addresses[{index}]", validation.invalid(str(one), f"overlaps {text} of {field}"))
        for machine in machines:
            for address in _addresses(machine):
                if one.holds(address):
                    reason = f"{machine.kind} {machine.name} has {address}"
                    _fault(faults, f"addresses[{index}]", validation.invalid(str(one), reason))


def _check_links(
    ranges: Iterable[AddressRange], nodes: tuple[str, ...], machines: Sequence[Machine], faults: Faults
) -> None:
    """Who answers ARP for an address is asked only on the link of the address: every node that may announce it must be
    there."""
    speakers = [one for one in machines if one.kind == "node" and (not nodes or one.name in nodes)]
    for index, one in enumerate(ranges):
        for machine in speakers:
            if not any(_inside(one, text) for interface in machine.interfaces for text in interface.addresses):
                reason = (
                    f"node {machine.name} is not on this subnet: nobody there would ask it by ARP or NDP. Name the "
                    "nodes that are in loadBalancer.nodes"
                )
                _fault(faults, f"addresses[{index}]", validation.invalid(str(one), reason))


def _inside(one: AddressRange, text: str) -> bool:
    network = ip_interface(text).network
    return ip_address(one.first) in network and ip_address(one.last) in network


def _check_cloud(
    entry: LoadBalancerEntry, ranges: Iterable[AddressRange], machines: Sequence[Machine], faults: Faults
) -> None:
    known = {one.name: one for one in machines if one.kind == "router"}
    machine = known.get(entry.machine or "")
    if entry.machine is None:
        _fault(faults, "machine", validation.required("the router that balances"))
    elif machine is None:
        reason = "there is no router of this name" + near(entry.machine, [*known])
        _fault(faults, "machine", validation.invalid(entry.machine, reason))
    if entry.targets is not None and entry.targets not in get_args(BalancerTargets):
        _fault(faults, "targets", validation.unsupported(entry.targets, get_args(BalancerTargets)))
    _check_health(entry.health_check, faults)
    if entry.ip_mode is not None and entry.ip_mode not in ("VIP", "Proxy"):
        _fault(faults, "ipMode", validation.unsupported(entry.ip_mode, ("VIP", "Proxy")))
    if machine is None:
        return
    passthrough = entry.targets == "passthrough"
    if passthrough and (entry.ip_mode == "Proxy" or entry.preserve_client_ip is False):
        field = "ipMode" if entry.ip_mode == "Proxy" else "preserveClientIP"
        reason = "packets that are passed through keep both addresses: nodes take them by their rules for the address"
        _fault(faults, field, validation.forbidden(reason))
    if bool(entry.preserve_client_ip) and not passthrough:
        for node in machines:
            if node.kind == "node" and not _is_gateway(machine, node):
                reason = f"answers would miss the balancer: it is not the default gateway of node {node.name}"
                _fault(faults, "preserveClientIP", validation.invalid(True, reason))
    for index, one in enumerate(ranges):
        on_link = any(_inside(one, text) for other in machines for item in other.interfaces for text in item.addresses)
        own = any(_inside(one, text) for interface in machine.interfaces for text in interface.addresses)
        if passthrough and on_link:
            reason = "is on a link, where the balancer would have to own it; one that passes packets through does not"
            _fault(faults, f"addresses[{index}]", validation.invalid(str(one), reason))
        elif on_link and not own:
            reason = f"{machine.name} is not on this subnet, and nobody there would find it"
            _fault(faults, f"addresses[{index}]", validation.invalid(str(one), reason))


def _check_health(entry: HealthCheckEntry | None, faults: Faults) -> None:
    if entry is None:
        return
    low, high = SECONDS
    for field, seconds in (("interval", entry.interval), ("timeout", entry.timeout)):
        if seconds and not low <= seconds <= high:
            reason = validation.invalid(seconds, f"must be between {low:g} and {high:g} seconds")
            _fault(faults, f"healthCheck.{field}", reason)
    for field, count in (
        ("healthyThreshold", entry.healthy_threshold),
        ("unhealthyThreshold", entry.unhealthy_threshold),
    ):
        if count and count not in THRESHOLDS:
            reason = validation.invalid(count, f"must be between {THRESHOLDS[0]} and {THRESHOLDS[-1]}")
            _fault(faults, f"healthCheck.{field}", reason)


def _health(entry: HealthCheckEntry | None) -> HealthTimes:
    if entry is None:
        return HealthTimes()
    return HealthTimes(entry.interval, entry.timeout, entry.healthy_threshold, entry.unhealthy_threshold)


def _is_gateway(machine: Machine, node: Machine) -> bool:
    own = set(_addresses(machine))
    gateways = [route.via for route in node.routes if route.destination in ("0.0.0.0/0", "::/0")]
    return bool(gateways) and own.issuperset(gateways)


def _named(wanted: Iterable[str], field: str, known: list[str], what: str, faults: Faults) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(wanted))
    for name in found:
        if name not in known:
            _fault(faults, field, validation.invalid(name, f"there is no {what} of this name" + near(name, known)))
    return found


def _addresses(machine: Machine) -> tuple[str, ...]:
    return tuple(text.partition("/")[0] for interface in machine.interfaces for text in interface.addresses)
