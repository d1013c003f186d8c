"""What the kernel holds, compared with the plan, in both directions.

Everything planned must be there, and nothing else may be, apart from what the kernel makes by itself: loopback devices
and addresses, IPv6 link-local addresses, connected and multicast routes, the local table, the standard policy rules,
and neighbours that were learnt.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from errno import ENOENT
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from emulator.kernel import rules_readback
from emulator.kernel.learned import RTA_MULTIPATH, read_hops
from emulator.kernel.messages import (
    IFA_F_NOPREFIXROUTE,
    NTF_SELF,
    NUD_PERMANENT,
    PROTOCOLS,
    RTNH_F_ONLINK,
    SCOPES,
    TYPES,
)
from emulator.kernel.namespaces import is_off_anyway, read_sysctl
from emulator.kernel.netlink import Channel, attributes
from emulator.kernel.node_files import read_file
from emulator.kernel.offloads import OPTIONAL, read_offloads
from emulator.kernel.syscalls import inside
from emulator.plan.describe import describe
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Daemon,
    Dummy,
    FdbEntry,
    File,
    Impairment,
    Ipip,
    IpSet,
    IptablesRules,
    IpvsServers,
    Neighbour,
    NftRules,
    NftTable,
    Offloads,
    Plan,
    PolicyRule,
    ProxyRules,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
    WireguardPeer,
)

if TYPE_CHECKING:
    from emulator.kernel.applier import Applier

RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE = 18, 22, 26, 30, 34
LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
NEIGH = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
RULE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, -, -, action, flags

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA = 1, 2, 5
IFLA_BRPORT_MODE = 4
VXLAN_ID, VXLAN_LINK, VXLAN_LOCAL, VXLAN_LEARNING, VXLAN_PORT, VXLAN_LOCAL6 = 1, 3, 4, 7, 15, 17
IPTUN_LOCAL, IPTUN_REMOTE = 2, 3
# What the kernel puts into every new namespace once the module is loaded (net.core.fb_tunnels_only_for_init_net)
FALLBACK_TUNNELS = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0")
)
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU = 2
NDA_DST, NDA_LLADDR = 1, 2
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 1, 2, 3, 6, 10, 15, 16
AF_BRIDGE = 7
IFF_UP = 1
RTM_F_CLONED = 0x200
LOCAL_TABLE = 255
RTPROT_KERNEL = 2
RTN_MULTICAST = 5
IP6_METRIC = 1024  # what the kernel writes when an IPv6 route names no metric
STANDARD_RULES = frozenset({0, 32766, 32767})  # local, main, default

T = TypeVar("T")


class Device(NamedTuple):
    """One device of a namespace; ``number`` is its index. ``hairpin`` only counts for a bridge port."""

    number: int
    up: bool
    mtu: int
    mac: str
    master: int
    kind: str
    hairpin: bool
    vxlan: tuple[int, int, str, int, bool]  # vni, port, local, underlay's index, learning
    ends: tuple[str, str] = ("", "")  # of an IP-in-IP device: local, remote


class SeenRoute(NamedTuple):
    """One route, with numbers where the plan has names."""

    destination: str
    via: str
    device: str
    type: int
    scope: int
    protocol: int
    onlink: bool
    source: str
    metric: int
    mtu: int
    table: int
    hops: frozenset[tuple[str, str]] = frozenset()  # several gateways, each with its device

    def __str__(self) -> str:
        words = [self.destination]
        words += ["via", self.via] if self.via else []
        words += ["dev", self.device] if self.device else []
        words += [f"nexthop via {via} dev {device}" for via, device in sorted(self.hops)]
        return " ".join([*words, f"proto {self.protocol} scope {self.scope} type {self.type} table {self.table}"])


def differences(plan: Plan, applier: Applier) -> list[str]:
    """One line for each thing that is planned and not there, or there and not planned. Empty: all is well.

    ``applier`` is the one that set the lab up; its sockets are used. Takes some tens of milliseconds per node.
    """
    grouped: defaultdict[str, list[AnyObject]] = defaultdict(list)
    for item in plan:
        grouped[item.ns].append(item)
        if isinstance(item, Veth):
            grouped[item.peer_ns].append(item)
    found: list[str] = []
    attachments = applier.attachments
    for ns, items in grouped.items():
        try:
            others = attachments.devices_in(ns) if attachments is not None else frozenset()
            with applier.wiring.channel(ns) as channel:
                found += _Comparison(ns, items, channel, others).run()
            found += _by_hand(ns, items, applier.wiring.netns(ns))
        except (OSError, KeyError) as error:
            found.append(f"{ns}: cannot be read: {error}")
    found += _files(_of(plan, File), applier)
    found += _daemons(_of(plan, Daemon), applier)
    found += applier.wireguards.differences(_of(plan, Wireguard), _of(plan, WireguardPeer))
    found += applier.impairments.differences(_of(plan, Impairment))
    found += attachments.differences() if attachments is not None else []
    kinds = (IptablesRules, NftTable, NftRules, IpvsServers, IpSet, ProxyRules)
    rules = {ns: [item for item in items if isinstance(item, kinds)] for ns, items in grouped.items()}
    return found + rules_readback.differences({ns: items for ns, items in rules.items() if items}, applier.rulesets)


class _Comparison:
    """What netlink can tell of one namespace. Devices of others (CNI plugins) are left alone, and what is on them."""

    def __init__(
        self, ns: str, items: Sequence[AnyObject], channel: Channel, others: Collection[str] = frozenset()
    ) -> None:
        self.ns = ns
        self.others = others
        self.items = items
        self.channel = channel
        self.devices = read_devices(channel)
        self.names = {device.number: name for name, device in self.devices.items()}
        self.found: list[str] = []

    def run(self) -> list[str]:
        self._links()
        self._compare("address", self._planned_addresses(), self._addresses())
        self._compare("route", self._planned_routes(), self._routes())
        self._compare("neighbour", self._planned(Neighbour, _neighbour), self._neighbours())
        self._compare("forwarding entry", self._planned(FdbEntry, _fdb), self._fdb())
        self._compare("policy rule", self._planned(PolicyRule, _rule), self._rules())
        return self.found

    def _say(self, text: str) -> None:
        self.found.append(f"{self.ns}: {text}")

    def _compare(self, what: str, planned: dict[T, str], there: dict[T, str]) -> None:
        for key, words in planned.items():
            if key not in there:
                self._say(f"{words} is not there")
        for key, words in there.items():
            if key not in planned and _device_of(key) not in self.others:
                self._say(f"{what} {words} is not planned")

    # ------------------------------------------------------------ links

    def _links(self) -> None:
        planned = {"lo"}
        ports: set[str] = set()
        down: set[str] = set()
        for item in self.items:
            if isinstance(item, Veth):
                if item.ns == self.ns:
                    planned.add(item.name)
                    self._link(item, item.name, "veth", item.mtu, item.mac)
                if item.peer_ns == self.ns:
                    planned.add(item.peer)
                    self._link(item, item.peer, "veth", item.peer_mtu or item.mtu, item.peer_mac)
            elif isinstance(item, Bridge):
                planned.add(item.name)
                self._link(item, item.name, "bridge", item.mtu, item.mac)
            elif isinstance(item, Vxlan):
                planned.add(item.name)
                self._vxlan(item, self._link(item, item.name, "vxlan", item.mtu, item.mac))
            elif isinstance(item, Ipip):
                planned.add(item.name)
                self._ipip(item, self._link(item, item.name, "ipip", item.mtu, ""))
            elif isinstance(item, Dummy):
                planned.add(item.name)
                self._link(item, item.name, "dummy", item.mtu, "")
                if not item.up:
                    down.add(item.name)
            elif isinstance(item, Tun):
                planned.add(item.name)
                self._link(item, item.name, "tun", item.mtu, "")
            elif isinstance(item, Wireguard):
                planned.add(item.name)
                self._link(item, item.name, "tun" if item.userspace else "wireguard", item.mtu, "")
            elif isinstance(item, BridgePort):
                ports.add(item.device)
                self._port(item)
        for name in self.devices.keys() - planned - set(self.others):
            if name not in FALLBACK_TUNNELS or self.devices[name].up:
                self._say(f"device {name} is not planned")
        for name, device in self.devices.items():
            if name in planned and device.up is (name in down):
                self._say(f"device {name} is {'up' if device.up else 'down'}")
            if name in planned and device.master and name not in ports:
                self._say(f"device {name} is a port of {self.names.get(device.master)}, which is not planned")

    def _link(self, item: AnyObject, name: str, kind: str, mtu: int, mac: str) -> Device | None:
        device = self.devices.get(name)
        if device is None:
            self._say(f"{describe(item)}: there is no device {name}")
            return None
        for what, wanted, actual in (("kind", kind, device.kind), ("mtu", mtu, device.mtu)):
            if wanted != actual:
                self._say(f"device {name}: {what} is {actual}, not {wanted}")
        if mac and mac.lower() != device.mac:
            self._say(f"device {name}: mac is {device.mac}, not {mac}")
        return device

    def _vxlan(self, item: Vxlan, device: Device | None) -> None:
        if device is None or item.underlay not in self.devices:
            return
        local = str(ip_address(item.local))
        wanted = (item.vni, item.port, local, self.devices[item.underlay].number, item.learning)
        if device.vxlan != wanted:
            self._say(f"{describe(item)}: the kernel has vni, port, local, device, learning = {device.vxlan}")

    def _ipip(self, item: Ipip, device: Device | None) -> None:
        if device is not None and device.ends != (item.local, item.remote):
            self._say(f"{describe(item)}: the kernel has local, remote = {device.ends}")

    def _port(self, item: BridgePort) -> None:
        device, bridge = self.devices.get(item.device), self.devices.get(item.bridge)
        if device is None or bridge is None or device.master != bridge.number:
            self._say(f"{describe(item)} is not there")
        elif device.hairpin != item.hairpin:
            self._say(f"{describe(item)}: hairpin is {'on' if device.hairpin else 'off'}")

    # ------------------------------------------------------------ tables

    def _planned(self, kind: type[AnyObject], key: Callable[[AnyObject], T]) -> dict[T, str]:
        return {key(item): describe(item) for item in self.items if type(item) is kind and item.ns == self.ns}

    def _planned_addresses(self) -> dict[tuple[str, str, int, bool], str]:
        planned = {}
        for item in self.items:
            if isinstance(item, Address):
                text, _, length = item.address.partition("/")
                key = item.device, f"{ip_address(text)}/{length}", SCOPES[item.scope]
                # The kernel calls every fe80:: address link-scoped, whatever it was told.
                link_local = ip_address(text).is_link_local and ":" in text
                scope = SCOPES["link"] if link_local else key[2]
                planned[key[0], key[1], scope, item.prefix_route] = describe(item)
        return planned

    def _addresses(self) -> dict[tuple[str, str, int, bool], str]:
        planned = self._planned_addresses()
        there = {}
        for body in self.channel.dump(RTM_GETADDR, ADDR.pack(0, 0, 0, 0, 0)):
            family, length, _, scope, index = ADDR.unpack_from(body)
            found = attributes(body, ADDR.size)
            raw = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))
            name = self.names.get(index, str(index))
            if raw is None or (name == "lo" and scope == SCOPES["host"]):
                continue
            prefix_route = not _number(found.get(IFA_FLAGS)) & IFA_F_NOPREFIXROUTE
            key = (name, f"{ip_address(bytes(raw))}/{length}", scope, prefix_route)
            if family == socket.AF_INET6 and scope == SCOPES["link"] and key not in planned:
                continue
            there[key] = f"{key[1]} dev {name}"
        return there

    def _planned_routes(self) -> dict[SeenRoute, str]:
        planned = {}
        for item in self.items:
            if not isinstance(item, Route):
                continue
            v6 = ":" in item.destination
            lacks_device = v6 and item.type != "unicast"  # IPv6 puts lo there
            key = SeenRoute(
                item.destination,
                item.via,
                "" if lacks_device else item.device or self._way_to(item.via),
                TYPES[item.type],
                0 if v6 else SCOPES[item.scope],
                PROTOCOLS[item.protocol],
                item.onlink,
                item.source,
                item.metric or (IP6_METRIC if v6 and not item.learned else 0),
                item.mtu,
                item.table,
                frozenset(item.hops),
            )
            planned[key] = describe(item)
        return planned

    def _way_to(self, via: str) -> str:
        """The device that the kernel picks for a gateway: that of the address whose subnet holds it."""
        from emulator.plan.addressing import contains

        for item in self.items:
            if via and isinstance(item, Address) and contains(item.address, via):
                return item.device
        return ""

    def _routes(self) -> dict[SeenRoute, str]:
        planned = self._planned_routes()
        learned = {
            (item.destination, item.table): item.metric
            for item in self.items
            if isinstance(item, Route) and item.learned
        }
        there = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self.channel.dump(RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                route, flags = self._route(body)
                if (route.destination, route.table) in learned and family == socket.AF_INET6:
                    # The daemon chooses an IPv6 metric of its own.
                    route = route._replace(metric=learned[route.destination, route.table])
                if route in planned:
                    there[route] = str(route)
                    continue
                of_the_kernel = route.protocol == RTPROT_KERNEL or route.type == RTN_MULTICAST
                if route.table != LOCAL_TABLE and not of_the_kernel and not flags & RTM_F_CLONED:
                    there[route] = str(route)
        return there

    def _route(self, body: memoryview) -> tuple[SeenRoute, int]:
        family, length, _, _, table, protocol, scope, kind, flags = ROUTE.unpack_from(body)
        found = attributes(body, ROUTE.size)
        v6 = family == socket.AF_INET6
        blank = bytes(16 if v6 else 4)
        network = ip_address(bytes(found.get(RTA_DST, blank)))
        index = _number(found.get(RTA_OIF))
        metrics = attributes(found[RTA_METRICS], 0) if RTA_METRICS in found else {}
        route = SeenRoute(
            f"{network}/{length}",
            str(ip_address(bytes(found[RTA_GATEWAY]))) if RTA_GATEWAY in found else "",
            "" if v6 and kind != TYPES["unicast"] else self.names.get(index, ""),
            kind,
            scope,
            protocol,
            bool(flags & RTNH_F_ONLINK),
            str(ip_address(bytes(found[RTA_PREFSRC]))) if RTA_PREFSRC in found else "",
            _number(found.get(RTA_PRIORITY)),
            _number(metrics.get(RTAX_MTU)),
            _number(found.get(RTA_TABLE)) or table,
            self._hops(family, found) if RTA_MULTIPATH in found else frozenset(),
        )
        return route, flags

    def _hops(self, family: int, found: dict[int, memoryview]) -> frozenset[tuple[str, str]]:
        return frozenset((via, self.names.get(index, str(index))) for via, index in read_hops(family, found))

    def _neighbours(self) -> dict[tuple[str, str, str], str]:
        there = {}
        for body in self.channel.dump(RTM_GETNEIGH, NEIGH.pack(0, 0, 0, 0, 0)):
            family, index, state, _, _ = NEIGH.unpack_from(body)
            found = attributes(body, NEIGH.size)
            if family == AF_BRIDGE or not state & NUD_PERMANENT or NDA_LLADDR not in found:
                continue
            address, mac = str(ip_address(bytes(found[NDA_DST]))), _mac(found[NDA_LLADDR])
            name = self.names.get(index, str(index))
            there[name, address, mac] = f"{address} dev {name} lladdr {mac}"
        return there

    def _fdb(self) -> dict[tuple[str, str, str], str]:
        there = {}
        if not any(device.kind == "vxlan" for device in self.devices.values()):
            return {}
        for body in self.channel.dump(RTM_GETNEIGH, NEIGH.pack(AF_BRIDGE, 0, 0, 0, 0)):
            _, index, _, flags, _ = NEIGH.unpack_from(body)
            found = attributes(body, NEIGH.size)
            if not flags & NTF_SELF or NDA_DST not in found or NDA_LLADDR not in found:
                continue
            remote, mac = str(ip_address(bytes(found[NDA_DST]))), _mac(found[NDA_LLADDR])
            name = self.names.get(index, str(index))
            there[name, mac, remote] = f"{mac} dev {name} dst {remote}"
        return there

    def _rules(self) -> dict[tuple[object, ...], str]:
        there: dict[tuple[object, ...], str] = {}
        for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            for body in self.channel.dump(RTM_GETRULE, RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                _, target_length, source_length, _, table, _, _, _, _ = RULE.unpack_from(body)
                found = attributes(body, RULE.size)
                priority = _number(found.get(FRA_PRIORITY))
                number = _number(found.get(FRA_TABLE)) or table
                if priority in STANDARD_RULES:
                    continue
                key = (
                    version,
                    priority,
                    number,
                    _cidr(found.get(FRA_SRC), source_length),
                    _cidr(found.get(FRA_DST), target_length),
                    _number(found.get(FRA_FWMARK)),
                    _number(found.get(FRA_FWMASK)),
                    bytes(found.get(FRA_IIFNAME, b"")).rstrip(b"\0").decode(),
                )
                there[key] = f"priority {priority} table {number}"
        return there


class Tables(NamedTuple):
    """What one namespace holds: devices by name, addresses as (device, address with prefix length) without the kernel's
    own IPv6 ones, and the routes of all tables but the local one."""

    devices: dict[str, Device]
    addresses: tuple[tuple[str, str], ...]
    routes: tuple[SeenRoute, ...]


def read_tables(channel: Channel) -> Tables:
    """Everything in the channel's namespace, whoever made it."""
    reader = _Comparison("", (), channel)
    routes = [
        reader._route(body)
        for family in (socket.AF_INET, socket.AF_INET6)
        for body in channel.dump(RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    ]
    return Tables(
        reader.devices,
        tuple((str(key[0]), str(key[1])) for key in reader._addresses()),
        tuple(route for route, flags in routes if route.table != LOCAL_TABLE and not flags & RTM_F_CLONED),
    )


def read_devices(channel: Channel) -> dict[str, Device]:
    """Every device of the channel's namespace."""
    found: dict[str, Device] = {}
    for body in channel.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
        _, _, index, flags, _ = LINK.unpack_from(body)
        given = attributes(body, LINK.size)
        info = attributes(given[IFLA_LINKINFO], 0) if IFLA_LINKINFO in given else {}
        kind = bytes(info.get(IFLA_INFO_KIND, b"")).rstrip(b"\0").decode()
        data = attributes(info[IFLA_INFO_DATA], 0) if IFLA_INFO_DATA in info else {}
        slave = attributes(info[IFLA_INFO_SLAVE_DATA], 0) if IFLA_INFO_SLAVE_DATA in info else {}
        name = bytes(given[IFLA_IFNAME]).rstrip(b"\0").decode()
        found[name] = Device(
            index,
            bool(flags & IFF_UP),
            _number(given.get(IFLA_MTU)),
            _mac(given.get(IFLA_ADDRESS)),
            _number(given.get(IFLA_MASTER)),
            kind,
            bool(slave and slave[IFLA_BRPORT_MODE][0]),
            _tunnel(data) if kind == "vxlan" else (0, 0, "", 0, False),
            (_end(data.get(IPTUN_LOCAL)), _end(data.get(IPTUN_REMOTE))) if kind == "ipip" else ("", ""),
        )
    return found


def _tunnel(data: dict[int, memoryview]) -> tuple[int, int, str, int, bool]:
    local = data.get(VXLAN_LOCAL, data.get(VXLAN_LOCAL6))
    return (
        _number(data.get(VXLAN_ID)),
        int.from_bytes(data.get(VXLAN_PORT, b""), "big"),
        str(ip_address(bytes(local))) if local is not None else "",
        _number(data.get(VXLAN_LINK)),
        bool(data.get(VXLAN_LEARNING, b"\0")[0]),
    )


def _end(raw: memoryview | None) -> str:
    """An end of an IP-in-IP tunnel; empty for any."""
    return str(ip_address(bytes(raw))) if raw is not None and any(raw) else ""


def _device_of(key: Any) -> Any:
    """The device in the key of an address, route, neighbour or forwarding entry; some number for a policy rule."""
    return key.device if isinstance(key, SeenRoute) else key[0]


def _number(raw: memoryview | None) -> int:
    return int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big") if raw is not None else 0


def _mac(raw: memoryview | None) -> str:
    return bytes(raw).hex(":") if raw is not None else ""


def _cidr(raw: memoryview | None, length: int) -> str:
    return f"{ip_address(bytes(raw))}/{length}" if raw is not None else ""


def _neighbour(item: AnyObject) -> tuple[str, str, str]:
    assert isinstance(item, Neighbour)
    return item.device, str(ip_address(item.address)), item.mac.lower()


def _fdb(item: AnyObject) -> tuple[str, str, str]:
    assert isinstance(item, FdbEntry)
    return item.device, item.mac.lower(), str(ip_address(item.remote))


def _rule(item: AnyObject) -> tuple[object, ...]:
    assert isinstance(item, PolicyRule)
    full = 0xFFFFFFFF if item.fwmark and not item.fwmask else item.fwmask
    bits = 32 if item.family == 4 else 128
    source, target = (
        f"{text}/{bits}" if text and "/" not in text else text for text in (item.source, item.destination)
    )
    return item.family, item.priority, item.table, source, target, item.fwmark, full, item.iif


def _of(items: Iterable[AnyObject], kind: type[T]) -> list[T]:
    return [item for item in items if isinstance(item, kind)]


# ---------------------------------------------------------------- what netlink cannot tell


def _by_hand(ns: str, items: Sequence[AnyObject], netns: str | int) -> list[str]:
    found = []
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for item in items:
            if isinstance(item, Sysctl):
                try:
                    value = " ".join(read_sysctl(item.name).split())
                except OSError as error:
                    off = error.errno == ENOENT and is_off_anyway(item.name, item.value)
                    value = item.value if off else os.strerror(error.errno or 0)
                if value != " ".join(item.value.split()):
                    found.append(f"{ns}: {describe(item)}: the kernel has {value}")
            elif isinstance(item, Offloads):
                state = read_offloads(control, item.device)
                on = [name for name, value in state.items() if value and name not in OPTIONAL]
                if on:
                    found.append(f"{ns}: {describe(item)}: on are {', '.join(on)}")
    return found


def _files(items: Sequence[File], applier: Applier) -> list[str]:
    found = []
    for item in items:
        try:
            same = read_file(applier.net, item.ns, item.path) == item.content
        except (OSError, KeyError, UnicodeDecodeError):
            same = False
        if not same:
            found.append(f"{item.ns}: {describe(item)} is not as planned")
    return found


def _daemons(items: Sequence[Daemon], applier: Applier) -> list[str]:
    states = {(item.ns, item.name): item.state for item in applier.supervisor.status()}
    return [
        f"{item.ns}: {describe(item)} is {states.get((item.ns, item.name), 'not there')}"
        for item in items
        if states.get((item.ns, item.name)) != "running"
    ]
