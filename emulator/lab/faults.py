"""A fault as somebody wishes it becomes one of the plan's (``emulator.plan.faults``), or is refused by the field.

Which fields a kind takes:

=========================  =========================================================================================
link-down, link-up         device
daemon-kill, daemon-start  daemon
mtu                        device, at (device, port), value
mac                        device, at (device, port), value
hairpin                    device (of a pod)
sysctl                     name, value
filter                     at (input, output, forward, port), device (of a port), protocol, port, icmp_type, icmp_code,
                           source, destination
route                      destination
flush                      table
proxy-stop
=========================  =========================================================================================
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from emulator.cluster.model import Cluster, Machine
from emulator.errors import NotFound, UserError
from emulator.lab.names import Place, resolve
from emulator.lab.records import FaultWish
from emulator.plan.faults import (
    LARGEST_MTU,
    SMALLEST_MTU,
    AnyFault,
    FilterFault,
    FlushFault,
    HairpinFault,
    MacFault,
    MtuFault,
    PlanFault,
    ProxyStopFault,
    RouteFault,
    SysctlFault,
)
from emulator.plan.model import UNDERLAY, Plan

PLANNED = (
    "mtu",
    "mac",
    "hairpin",
    "sysctl",
    "filter",
    "route",
    "flush",
    "proxy-stop",
)  # the kinds that change the plan
DEVICE = "eth0"  # unless another is named

FIELDS: dict[str, tuple[str, ...]] = {
    "link-down": ("device",),
    "link-up": ("device",),
    "node-crash": (),
    "node-return": (),
    "daemon-kill": ("daemon",),
    "daemon-start": ("daemon",),
    "conntrack-full": (),
    "conntrack-free": (),
    "mtu": ("device", "at", "value"),
    "mac": ("device", "at", "value"),
    "hairpin": ("device",),
    "sysctl": ("name", "value"),
    "filter": ("at", "device", "protocol", "port", "icmp_type", "icmp_code", "source", "destination"),
    "route": ("destination",),
    "flush": ("table",),
    "proxy-stop": (),
}
PLACES: dict[str, tuple[str, ...]] = {
    "mtu": ("device", "port"),
    "mac": ("device", "port"),
    "filter": ("input", "output", "forward", "port"),
}
# IANA's protocol numbers, by the names that /etc/protocols has, and the usual one of IP in IP.
PROTOCOLS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "icmpv6": 58, "sctp": 132}
WITH_PORTS = ("tcp", "udp", "sctp")
WITH_TYPES = ("icmp", "icmpv6")
OCTET = 255

_DEVICE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")  # IFNAMSIZ - 1
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SYSCTL = re.compile(r"net(/[A-Za-z0-9_.:@-]{1,64}){2,4}")
_VALUE = re.compile(r"-?[0-9A-Za-z_.]{1,32}([ \t]-?[0-9A-Za-z_.]{1,32}){0,7}")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
# Writing these destroys what writing them again does not bring back.
_ONE_WAY = {"disable_ipv6": "it takes every IPv6 address away, and giving them back is more than setting it again"}


def problems(wish: FaultWish) -> Iterator[tuple[str, str]]:
    """What is wrong with a wish by itself, whatever the lab: fields, each with its reason."""
    takes = FIELDS[wish.kind]
    for name in wish.__struct_fields__:
        if name in ("kind", "target", "mend") or name in takes or getattr(wish, name) == _default(name):
            continue
        yield name, f"a fault of the kind {wish.kind} has no {_spelled(name)}"
    if wish.mend and wish.kind not in PLANNED:
        opposites = {
            "link-down": "link-up",
            "node-crash": "node-return",
            "daemon-kill": "daemon-start",
            "conntrack-full": "conntrack-free",
        }
        other = opposites.get(wish.kind)
        yield "mend", f"{other} mends {wish.kind}" if other else f"{wish.kind} mends by itself"
    if wish.device and not _DEVICE.fullmatch(wish.device):
        yield "device", f"{wish.device!r} is no device name"
    allowed = PLACES.get(wish.kind, ())
    if wish.at and allowed and wish.at not in allowed:
        yield "at", f"must be {' or '.join(allowed)}"
    yield from _CHECKS.get(wish.kind, _nothing)(wish)


def check(wish: FaultWish) -> None:
    """Raises UserError with everything that is wrong with a wish by itself."""
    if found := [f"{_spelled(field)}: {reason}" for field, reason in problems(wish)]:
        raise UserError(f"no fault like that: {'; '.join(found)}")


def planned(wish: FaultWish, cluster: Cluster, plan: Plan) -> AnyFault:
    """The fault of ``plan`` that a checked wish means. Raises NotFound and UserError for what the lab does not have."""
    place = resolve(cluster, wish.target)
    if not place.ns:
        raise UserError(f"{wish.target!r} is an address: faults strike machines and pods")
    if place.pod is not None and place.pod.host_network:
        raise UserError(f"{place.label} has no network of its own: strike {place.pod.node}")
    label = _label(place)
    device = wish.device or DEVICE
    ns = place.ns
    if wish.at == "port":
        ns, device = _port(cluster, place, device)
    if wish.kind == "mtu":
        return MtuFault(ns=ns, place=label, device=device, mtu=int(wish.value))
    if wish.kind == "mac":
        return MacFault(ns=ns, place=label, device=device, mac=str(wish.value).lower())
    if wish.kind == "hairpin":
        if place.pod is None:
            raise UserError(f"{place.label} is no pod: hairpin mode is of a pod's port at its node's bridge")
        return HairpinFault(ns=ns, place=label, device=device)
    if wish.kind == "sysctl":
        return SysctlFault(ns=ns, place=label, name=wish.name, value=" ".join(str(wish.value).split()))
    if wish.kind == "route":
        return RouteFault(ns=ns, place=label, destination=_destination(wish.destination))
    if wish.kind == "flush":
        if place.machine is None:
            raise UserError(f"{place.label} is a pod, whose packet filter is empty as it is: flush a machine")
        return FlushFault(ns=ns, place=label, table=wish.table)
    if wish.kind == "proxy-stop":
        left = plan.fragments.get(f"proxy/{label}")
        if left is None:
            raise UserError(
                f"no service proxy runs at {place.label}", hint="one runs on each node, from the first Service on"
            )
        return ProxyStopFault(ns=ns, place=label, left=left)
    return _filter(wish, cluster, ns, label, device)


def mended(wish: FaultWish, cluster: Cluster, faults: tuple[PlanFault, ...]) -> tuple[PlanFault, ...]:
    """The faults in force that a wish to mend means: all of its kind at its target that have what else it names.
    Raises NotFound if there are none."""
    label = _label(resolve(cluster, wish.target))
    found = tuple(
        fault for fault in faults if wish.kind == fault.KIND and fault.place == label and _fits(wish, fault, cluster)
    )
    if not found:
        there = [f"{fault.KIND} of {fault.place}" for fault in faults]
        raise NotFound(
            f"no fault of the kind {wish.kind} like that is in force at {label}",
            hint=f"in force: {', '.join(there)}" if there else "none is in force",
        )
    return found


def _fits(wish: FaultWish, fault: PlanFault, cluster: Cluster) -> bool:
    if wish.at and (wish.at == "port") != (fault.ns == UNDERLAY):
        return False
    if isinstance(fault, FilterFault):
        if wish.at and fault.hook != wish.at:
            return False
        wanted = _filter_words(wish)
        return set(wanted) <= set(fault.match.split(", "))
    if isinstance(fault, SysctlFault):
        return wish.name in ("", fault.name)
    if isinstance(fault, RouteFault):
        return not wish.destination or _destination(wish.destination) == fault.destination
    if isinstance(fault, FlushFault):
        return wish.table in ("", fault.table)
    device = getattr(fault, "device", "")
    if wish.device and fault.ns == UNDERLAY:
        return _port(cluster, resolve(cluster, wish.target), wish.device)[1] == str(device)
    return wish.device in ("", device)


def _filter(wish: FaultWish, cluster: Cluster, ns: str, label: str, device: str) -> FilterFault:
    sources, destinations = _cidrs(wish.source, cluster), _cidrs(wish.destination, cluster)
    families = [{":" in cidr for cidr in cidrs} for cidrs in (sources, destinations) if cidrs]
    if families and not set.intersection(*families):
        raise UserError(f"{wish.source} and {wish.destination} have no common address family")
    return FilterFault(
        ns=ns,
        place=label,
        hook=wish.at or "forward",  # type: ignore[arg-type]  # _check_filter has looked
        device=device if wish.at == "port" else "",
        protocol=_protocol(wish.protocol),
        port=wish.port,
        icmp_type=wish.icmp_type,
        icmp_code=wish.icmp_code,
        sources=sources,
        destinations=destinations,
        match=", ".join(_filter_words(wish)),
    )


def _filter_words(wish: FaultWish) -> list[str]:
    """What is dropped, as the user wrote it."""
    words = [f"protocol {wish.protocol}"] if wish.protocol != "" else []
    words += [f"port {wish.port}"] if wish.port else []
    words += [f"type {wish.icmp_type}"] if wish.icmp_type >= 0 else []
    words += [f"code {wish.icmp_code}"] if wish.icmp_code >= 0 else []
    words += [f"from {wish.source}"] if wish.source else []
    words += [f"to {wish.destination}"] if wish.destination else []
    return words


def _label(place: Place) -> str:
    return place.machine.name if place.machine is not None else place.label


def _port(cluster: Cluster, place: Place, device: str) -> tuple[str, str]:
    """The switch's end of the cable of a machine's interface."""
    if place.machine is None:
        raise UserError(f"{place.label} is a pod: only machines are plugged into switches")
    interfaces = {interface.name: interface for interface in place.machine.interfaces}
    if device not in interfaces:
        raise NotFound(f"{place.machine.name} has no cable at {device!r}", hint=f"it has {', '.join(interfaces)}")
    peer, far = interfaces[device].peer, interfaces[device].peer_device
    other = _machine(cluster, peer)
    if other is not None:
        raise UserError(
            f"the cable of {place.machine.name}:{device} leads to {peer}:{far}, not to a switch",
            hint=f"strike {peer}",
        )
    return UNDERLAY, far


def _machine(cluster: Cluster, name: str) -> Machine | None:
    return next((machine for machine in cluster.topology.machines if machine.name == name), None)


def _destination(text: str) -> str:
    """A CIDR in the plan's spelling; ``default`` is IPv4's, an address the route to it alone."""
    return "0.0.0.0/0" if text == "default" else str(ipaddress.ip_network(text))


def _cidrs(text: str, cluster: Cluster) -> tuple[str, ...]:
    """A CIDR or address, or those of a place, without overlaps: a set of nftables would not take these."""
    if not text:
        return ()
    try:
        return (str(ipaddress.ip_network(text)),)
    except ValueError:
        addresses = resolve(cluster, text).addresses
    if not addresses:
        raise UserError(f"{text} has no address")
    return tuple(dict.fromkeys(str(ipaddress.ip_network(address)) for address in addresses))


def _protocol(text: str | int) -> int:
    if text == "":
        return -1
    return PROTOCOLS[str(text)] if str(text) in PROTOCOLS else int(text)


# ---------------------------------------------------------------- checks, a kind each


def _nothing(_wish: FaultWish) -> Iterator[tuple[str, str]]:
    return iter(())


def _check_mtu(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if wish.mend:
        return
    value = str(wish.value)
    if not value.isascii() or not value.isdigit() or not SMALLEST_MTU <= int(value) <= LARGEST_MTU:
        yield "value", f"must be a number of bytes between {SMALLEST_MTU} and {LARGEST_MTU}"


def _check_mac(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if wish.mend:
        return
    value = str(wish.value).lower()
    if not _MAC.fullmatch(value):
        yield "value", "must be a MAC such as 02:00:00:00:00:01"
    elif int(value[:2], 16) & 1 or set(value) <= {"0", ":"}:
        yield "value", "must be the MAC of one device: no multicast address (an odd first byte), not all zeros"


def _check_sysctl(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if wish.mend and not wish.name:
        return
    parts = wish.name.split("/")
    if not _SYSCTL.fullmatch(wish.name) or {".", ".."} & set(parts):
        yield "name", "must be a parameter below net/, with slashes: net/ipv4/conf/eth0/rp_filter"
    elif parts[-1] in _ONE_WAY:
        yield "name", f"{parts[-1]} cannot be mended exactly: {_ONE_WAY[parts[-1]]}"
    if not wish.mend and not _VALUE.fullmatch(str(wish.value)):
        yield "value", "must be a number, a word, or some of these with blanks between"


def _check_filter(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if not wish.at and not wish.mend:
        yield "at", f"must be {' or '.join(PLACES['filter'])}"
    if wish.device and wish.at != "port":
        yield "device", "only says which cable's port; at a hook every device counts"
    name = str(wish.protocol)
    number = name.isascii() and name.isdigit() and int(name) <= OCTET
    if name and name not in PROTOCOLS and not number:
        yield "protocol", f"must be {', '.join(PROTOCOLS)}, or a number up to {OCTET}"
    if not 0 <= wish.port <= LARGEST_MTU:
        yield "port", "must be between 1 and 65535, inclusive"
    elif wish.port and name not in WITH_PORTS:
        yield "port", f"needs a protocol that has ports: {', '.join(WITH_PORTS)}"
    for field, given in (("icmp_type", wish.icmp_type), ("icmp_code", wish.icmp_code)):
        if not -1 <= given <= OCTET:
            yield field, f"must be between 0 and {OCTET}"
        elif given >= 0 and name not in WITH_TYPES:
            yield field, f"needs the protocol {' or '.join(WITH_TYPES)}"
    for field, text in (("source", wish.source), ("destination", wish.destination)):
        if "/" in text and text.replace(".", "").replace("/", "").isdigit():
            yield from _check_network(field, text)


def _check_route(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if not wish.destination and wish.mend:
        return
    if wish.destination != "default":
        yield from _check_network("destination", wish.destination)


def _check_flush(wish: FaultWish) -> Iterator[tuple[str, str]]:
    if wish.table and not _TABLE.fullmatch(wish.table):
        yield "table", "must be an iptables table (filter, nat, mangle, raw) or the name of an nftables table"


def _check_network(field: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        yield field, f"must be a CIDR, an address or default: {error}"


_CHECKS = {
    "mtu": _check_mtu,
    "mac": _check_mac,
    "sysctl": _check_sysctl,
    "filter": _check_filter,
    "route": _check_route,
    "flush": _check_flush,
}


def _default(name: str) -> object:
    return _DEFAULTS[name]


def _spelled(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(part.capitalize() for part in rest)


_DEFAULTS = {name: getattr(FaultWish(kind="flush", target=""), name) for name in FaultWish.__struct_fields__}
