"""What the kernel holds, compared with the plan, in both directions.

Everything planned must be there, and nothing else may be, apart from what the kernel makes by itself: loopback devices
and addresses, IPv6 link-local addresses, connected and multicast routes, the local table, the standard policy rules,
and neighbours that were learnt.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from errno import ENOENT
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from emulator.kernel import rules_readback
from emulator.kernel.messages import (
    PROTOCOLS,
    SCOPES,
    TYPES,
)
from emulator.kernel.namespaces import is_off_anyway, read_sysctl
from emulator.kernel.netlink import Channel
from emulator.kernel.node_files import read_file
from emulator.kernel.offloads import OPTIONAL, read_offloads
from emulator.kernel.syscalls import inside
from emulator.kernel.tables import (
    LOCAL_TABLE,
    RTM_F_CLONED,
    RTN_MULTICAST,
    RTPROT_KERNEL,
    Device,
    SeenAddress,
    SeenRoute,
    TableReader,
)
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

# What the kernel puts into every new namespace once the module is loaded (net.core.fb_tunnels_only_for_init_net)
FALLBACK_TUNNELS = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0")
)
IP6_METRIC = 1024  # what the kernel writes when an IPv6 route names no metric

T = TypeVar("T")


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
            with applier.devices.channel(ns) as channel:
                found += _Comparison(ns, items, channel, others).run()
            found += _by_hand(ns, items, applier.devices.netns(ns))
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
        self.reader = TableReader(channel)
        self.devices, self.names = self.reader.devices, self.reader.names
        self.found: list[str] = []

    def run(self) -> list[str]:
        self._links()
        self._compare("address", self._planned_addresses(), self._addresses())
        self._compare("route", self._planned_routes(), self._routes())
        self._compare("neighbour", self._planned_neighbours(), self.reader.neighbours())
        self._compare("forwarding entry", self._planned(FdbEntry, _fdb), self.reader.forwarding())
        self._compare("policy rule", self._planned(PolicyRule, _rule), self.reader.rules())
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

    def _planned_neighbours(self) -> dict[tuple[str, str, str], str]:
        """Those with a MAC. Room for others is dropped with a carrier, as what the kernel found by asking is."""
        planned = self._planned(Neighbour, _neighbour)
        return {key: words for key, words in planned.items() if key[2]}

    def _planned_addresses(self) -> dict[SeenAddress, str]:
        planned = {}
        for item in self.items:
            if isinstance(item, Address):
                text, _, length = item.address.partition("/")
                key = item.device, f"{ip_address(text)}/{length}", SCOPES[item.scope]
                # The kernel calls every fe80:: address link-scoped, whatever it was told.
                link_local = ip_address(text).is_link_local and ":" in text
                scope = SCOPES["link"] if link_local else key[2]
                planned[SeenAddress(key[0], key[1], scope, item.prefix_route)] = describe(item)
        return planned

    def _addresses(self) -> dict[SeenAddress, str]:
        planned = self._planned_addresses()
        there = {}
        for address, family in self.reader.addresses():
            if family == socket.AF_INET6 and address.scope == SCOPES["link"] and address not in planned:
                continue
            there[address] = f"{address.address} dev {address.device}"
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
        for route, flags, family in self.reader.routes():
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


def _device_of(key: Any) -> Any:
    """The device in the key of an address, route, neighbour or forwarding entry; some number for a policy rule."""
    return key.device if isinstance(key, SeenRoute) else key[0]


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
    words = {"died": "has died", None: "is not there"}
    return [
        f"{item.ns}: {describe(item)} {words.get(state, f'is {state}')}"
        for item in items
        if (state := states.get((item.ns, item.name))) != "running"
    ]
