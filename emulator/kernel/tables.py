"""What the kernel holds in one namespace, read by netlink: devices, addresses, routes, neighbours, forwarding entries
and policy rules. Whether that is what was planned is told by :mod:`emulator.kernel.readback`.

Numbers and layouts: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h, linux/neighbour.h, linux/fib_rules.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from emulator.kernel.learned import RTA_MULTIPATH, read_hops
from emulator.kernel.messages import (
    IFA_F_NOPREFIXROUTE,
    NTF_SELF,
    NUD_PERMANENT,
    RTNH_F_ONLINK,
    SCOPES,
    TYPES,
)
from emulator.kernel.netlink import Channel, attributes

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
STANDARD_RULES = frozenset({0, 32766, 32767})  # local, main, default


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


class SeenAddress(NamedTuple):
    """One address with its prefix length. ``prefix_route``: the kernel made a route to its subnet."""

    device: str
    address: str
    scope: int
    prefix_route: bool


class Tables(NamedTuple):
    """What one namespace holds: devices by name, addresses as (device, address with prefix length) without the kernel's
    own IPv6 ones, and the routes of all tables but the local one."""

    devices: dict[str, Device]
    addresses: tuple[tuple[str, str], ...]
    routes: tuple[SeenRoute, ...]


class TableReader:
    """Reads the tables of a channel's namespace. Devices are read once, at the start."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.devices = read_devices(channel)
        self.names = {device.number: name for name, device in self.devices.items()}

    def addresses(self) -> Iterator[tuple[SeenAddress, int]]:
        """All but the loopback's own, with their address family."""
        for body in self._channel.dump(RTM_GETADDR, ADDR.pack(0, 0, 0, 0, 0)):
            family, length, _, scope, index = ADDR.unpack_from(body)
            found = attributes(body, ADDR.size)
            raw = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))
            name = self.names.get(index, str(index))
            if raw is None or (name == "lo" and scope == SCOPES["host"]):
                continue
            prefix_route = not _number(found.get(IFA_FLAGS)) & IFA_F_NOPREFIXROUTE
            yield SeenAddress(name, f"{ip_address(bytes(raw))}/{length}", scope, prefix_route), family

    def routes(self) -> Iterator[tuple[SeenRoute, int, int]]:
        """The routes of all tables, with their flags and address family."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._channel.dump(RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                yield *self._route(body), family

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

    def neighbours(self) -> dict[tuple[str, str, str], str]:
        """The permanent ones, in words, by device, address and MAC."""
        there = {}
        for body in self._channel.dump(RTM_GETNEIGH, NEIGH.pack(0, 0, 0, 0, 0)):
            family, index, state, _, _ = NEIGH.unpack_from(body)
            found = attributes(body, NEIGH.size)
            if family == AF_BRIDGE or not state & NUD_PERMANENT or NDA_LLADDR not in found:
                continue
            address, mac = str(ip_address(bytes(found[NDA_DST]))), _mac(found[NDA_LLADDR])
            name = self.names.get(index, str(index))
            there[name, address, mac] = f"{address} dev {name} lladdr {mac}"
        return there

    def forwarding(self) -> dict[tuple[str, str, str], str]:
        """The forwarding entries of tunnels, in words, by device, MAC and remote address."""
        there = {}
        if not any(device.kind == "vxlan" for device in self.devices.values()):
            return {}
        for body in self._channel.dump(RTM_GETNEIGH, NEIGH.pack(AF_BRIDGE, 0, 0, 0, 0)):
            _, index, _, flags, _ = NEIGH.unpack_from(body)
            found = attributes(body, NEIGH.size)
            if not flags & NTF_SELF or NDA_DST not in found or NDA_LLADDR not in found:
                continue
            remote, mac = str(ip_address(bytes(found[NDA_DST]))), _mac(found[NDA_LLADDR])
            name = self.names.get(index, str(index))
            there[name, mac, remote] = f"{mac} dev {name} dst {remote}"
        return there

    def rules(self) -> dict[tuple[object, ...], str]:
        """The policy rules that are not the kernel's own, in words."""
        there: dict[tuple[object, ...], str] = {}
        for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            for body in self._channel.dump(RTM_GETRULE, RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
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


def read_tables(channel: Channel) -> Tables:
    """Everything in the channel's namespace, whoever made it."""
    reader = TableReader(channel)
    return Tables(
        reader.devices,
        tuple(
            (each.device, each.address)
            for each, family in reader.addresses()
            if family != socket.AF_INET6 or each.scope != SCOPES["link"]
        ),
        tuple(route for route, flags, _ in reader.routes() if route.table != LOCAL_TABLE and not flags & RTM_F_CLONED),
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


def _number(raw: memoryview | None) -> int:
    return int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big") if raw is not None else 0


def _mac(raw: memoryview | None) -> str:
    return bytes(raw).hex(":") if raw is not None else ""


def _cidr(raw: memoryview | None, length: int) -> str:
    return f"{ip_address(bytes(raw))}/{length}" if raw is not None else ""
