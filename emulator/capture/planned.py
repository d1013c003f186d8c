"""What a plan says about each namespace, arranged for the question of where a packet goes from there.

Routes are looked up as the kernel does: policy rules by priority, and the longest match of the table that one names.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from emulator.balancer.metallb_l2 import announced
from emulator.capture.model import Packet
from emulator.capture.nat import Ruleset
from emulator.capture.queue_agent import MODULE as AGENT_MODULE
from emulator.capture.queue_agent import QueueAgent
from emulator.plan.model import (
    Address,
    Bridge,
    BridgePort,
    CniAttachment,
    Daemon,
    FdbEntry,
    File,
    Ipip,
    IpSet,
    IptablesRules,
    IpvsServers,
    Neighbour,
    NftRules,
    NftTable,
    Plan,
    PlanObject,
    PluginDevice,
    PolicyRule,
    ProxyRules,
    Route,
    Sysctl,
    Tun,
    Veth,
    VirtualServer,
    Vxlan,
    Wireguard,
    WireguardPeer,
)

MAIN_TABLE = 254
MAIN_PRIORITY = 32766  # of the kernel's own rule that looks in the main table


class _Target(NamedTuple):
    version: int
    network: int
    mask: int
    length: int
    metric: int
    item: Route | Address


class Way(NamedTuple):
    """Where a packet is sent by, and the policy rule that had its table looked up in; None for the main table's."""

    item: Route | Address
    rule: PolicyRule | None


class Planned:
    """What the plan puts into one namespace, arranged for look-up."""

    def __init__(self) -> None:
        self.cables: dict[str, tuple[Veth, str]] = {}  # with what the end in this namespace is there for
        self.devices: dict[str, Bridge | Vxlan | Ipip | Tun | Wireguard] = {}
        self.peers: dict[tuple[str, str], WireguardPeer] = {}  # by device and endpoint's address
        self.ports: dict[str, BridgePort] = {}
        self.plugged: dict[str, PluginDevice] = {}  # what CNI plugins made
        self.neighbours: dict[tuple[str, str], Neighbour] = {}
        self.entries: dict[tuple[str, str], FdbEntry] = {}
        self.sysctls: dict[str, Sysctl] = {}
        self.addresses: set[str] = set()
        self.files: dict[str, File] = {}
        self.agents: list[Daemon] = []  # that netfilter queues packets for
        self.announced: dict[str, Daemon] = {}  # addresses that a daemon answers ARP for, and are on no device
        self.tables: list[IptablesRules] = []
        self.sets: list[IpSet] = []
        self.nft: list[NftTable] = []
        self.proxies: list[ProxyRules] = []
        self.structured: list[NftRules] = []
        self.virtual: dict[tuple[str, str, int], tuple[IpvsServers, VirtualServer]] = {}  # protocol, address, port
        self.rules: list[PolicyRule] = []
        self.targets: dict[int, list[_Target]] = {}  # by table
        self._best: dict[str, Route | Address | None] = {}

    @cached_property
    def ruleset(self) -> Ruleset:
        """All rules, by who wrote them how."""
        agent = None
        for daemon in self.agents:
            agent = next((QueueAgent(daemon, self.files[path]) for path in daemon.files if path in self.files), None)
        return Ruleset(self.tables, self.proxies, self.sets, self.structured, self.nft, agent)

    def is_port(self, device: str) -> bool:
        """Whether a device is a port of a bridge, whoever made it."""
        return device in self.ports or (device in self.plugged and self.plugged[device].bridge != "")

    def add_target(self, cidr: str, item: Route | Address, metric: int = 0, table: int = MAIN_TABLE) -> None:
        network = ip_network(cidr, strict=False)
        self.targets.setdefault(table, []).append(
            _Target(
                network.version, int(network.network_address), int(network.netmask), network.prefixlen, metric, item
            )
        )

    def mtu(self, ns: str, device: str) -> tuple[int, PlanObject | None]:
        """The MTU of a device in bytes, and the device; 0 and None if the plan holds no such device."""
        if device in self.devices:
            return self.devices[device].mtu, self.devices[device]
        if device not in self.cables:
            return 0, None
        veth = self.cables[device][0]
        near = (veth.ns, veth.name) == (ns, device)
        return veth.mtu if near else veth.peer_mtu or veth.mtu, veth

    def best(self, address: str) -> Route | Address | None:
        """The longest match of the main table; an Address stands for the connected route that it brings."""
        if address not in self._best:
            self._best[address] = self._longest(address)
        return self._best[address]

    def best_but_learned(self, address: str) -> Route | None:
        """The longest match of the main table without the routes to elsewhere that routing daemons bring."""
        absent: set[Route] = set()
        item = self.best(address)
        while isinstance(item, Route) and item.learned and item.type == "unicast":
            absent.add(item)
            item = self._longest(address, MAIN_TABLE, absent)
        return item if isinstance(item, Route) else None

    def way(
        self, packet: Packet, source: str, entered: str, device: str, absent: Set[Route] = frozenset()
    ) -> Way | None:
        """How a packet with ``source`` (before translation) that came in by ``entered`` gets out by ``device``.

        Marks are not seen in a capture: a rule that wants one counts if it alone explains the device. ``absent`` are
        routes that were not there when the packet went.
        """
        marked = None
        for rule in (*self._before_main, None, *self._after_main):
            if rule is not None and not _applies(rule, packet, source, entered):
                continue
            if rule is None and not absent:
                item = self.best(packet.target)
            else:
                item = self._longest(packet.target, rule.table if rule is not None else MAIN_TABLE, absent)
            if item is None:
                continue
            if rule is not None and rule.fwmark:
                if marked is None and item.device == device:
                    marked = Way(item, rule)
            elif marked is not None and item.device != device:
                return marked
            else:
                return Way(item, rule)
        return marked

    @cached_property
    def _before_main(self) -> list[PolicyRule]:
        return sorted((rule for rule in self.rules if rule.priority <= MAIN_PRIORITY), key=_priority)

    @cached_property
    def _after_main(self) -> list[PolicyRule]:
        return sorted((rule for rule in self.rules if rule.priority > MAIN_PRIORITY), key=_priority)

    def beyond(self, item: Route) -> Route | Address | None:
        """How the route's gateway is reached."""
        return self._longest(item.via, item.table) if item.table != MAIN_TABLE else self.best(item.via)

    def answers_for(self, address: str, device: str) -> bool:
        """Whether a neighbour that asks on ``device`` who has ``address`` is answered by this machine."""
        proxy = self.sysctls.get(f"net/ipv4/conf/{device}/proxy_arp") or self.sysctls.get(
            f"net/ipv6/conf/{device}/proxy_ndp"
        )
        return plain(address) in self.addresses or (proxy is not None and proxy.value == "1")

    def _longest(
        self, address: str, table: int = MAIN_TABLE, absent: Set[Route] = frozenset()
    ) -> Route | Address | None:
        try:
            parsed = ip_address(address)
        except ValueError:
            return None
        number = int(parsed)
        fitting = [
            each
            for each in self.targets.get(table, ())
            if each.version == parsed.version and number & each.mask == each.network and each.item not in absent
        ]
        return max(fitting, key=lambda each: (each.length, -each.metric)).item if fitting else None


def _priority(rule: PolicyRule) -> int:
    return rule.priority


def _applies(rule: PolicyRule, packet: Packet, source: str, entered: str) -> bool:
    """Whether the rule is for the packet, its mark left open."""
    return (
        rule.family == packet.version
        and (not rule.iif or rule.iif == entered)
        and (not rule.source or ip_address(source) in ip_network(rule.source, strict=False))
        and (not rule.destination or ip_address(packet.target) in ip_network(rule.destination, strict=False))
    )


class Index:
    """Every namespace of a plan, and who has which address."""

    def __init__(self, plan: Plan) -> None:
        self.machines: dict[str, Planned] = {}
        self.owners: dict[str, str] = {}
        self.holders: dict[str, set[tuple[str, str]]] = {}  # namespaces and devices by MAC
        self._claims: dict[tuple[str, str], tuple[str, ...]] = {}  # addresses that files of speakers name
        for item in plan:
            self._file(self.at(item.ns), item)

    def at(self, ns: str) -> Planned:
        """What the plan puts into ``ns``."""
        return self.machines.setdefault(ns, Planned())

    def elsewhere(self, address: str, mac: str) -> bool:
        """Whether the plan says that ``mac`` is a device of machines that do not answer for ``address``."""
        holders = self.holders.get(mac, ())
        return bool(holders) and not any(self.at(ns).answers_for(address, device) for ns, device in holders)

    def _held(self, mac: str, ns: str, device: str) -> None:
        if mac:
            self.holders.setdefault(mac, set()).add((ns, device))

    def _file(self, machine: Planned, item: PlanObject) -> None:
        match item:
            case Veth():
                machine.cables[item.name] = (item, item.why)
                far = self.at(item.peer_ns)
                far.cables[item.peer] = (item, item.peer_why or item.why)
                self._held(item.mac, item.ns, item.name)
                self._held(item.peer_mac, item.peer_ns, item.peer)
            case WireguardPeer():
                machine.peers[item.device, plain(item.endpoint.rpartition(":")[0].strip("[]"))] = item
            case Bridge() | Vxlan() | Ipip() | Tun() | Wireguard():
                machine.devices[item.name] = item
                if isinstance(item, Bridge | Vxlan):
                    self._held(item.mac, item.ns, item.name)
            case BridgePort():
                machine.ports[item.device] = item
            case CniAttachment():
                for device in item.devices:
                    self.at(device.ns).plugged[device.name] = device
                for address in map(plain, item.addresses):
                    machine.addresses.add(address)
                    self.owners.setdefault(address, item.ns)
            case Neighbour() if item.mac:
                machine.neighbours[item.device, plain(item.address)] = item
            case FdbEntry():
                machine.entries[item.device, item.mac] = item
            case Sysctl():
                machine.sysctls[item.name] = item
            case IptablesRules():
                machine.tables.append(item)
            case IpSet():
                machine.sets.append(item)
            case NftTable():
                machine.nft.append(item)
            case ProxyRules():
                machine.proxies.append(item)
            case NftRules():
                machine.structured.append(item)
            case IpvsServers():
                for server in item.servers.values():
                    machine.virtual[server.protocol.lower(), server.address, server.port] = item, server
            case File():
                machine.files[item.path] = item
                self._claims[item.ns, item.path] = announced(item)
            case Daemon():
                if item.module == AGENT_MODULE:
                    machine.agents.append(item)
                for path in item.files:
                    machine.announced.update(dict.fromkeys(self._claims.get((item.ns, path), ()), item))
            case PolicyRule():
                machine.rules.append(item)
            case Route():
                machine.add_target(item.destination, item, item.metric, item.table)
            case Address():
                interface = ip_interface(item.address)
                address = str(interface.ip)
                machine.addresses.add(address)
                self.owners.setdefault(address, item.ns)
                if item.prefix_route and interface.network.prefixlen < interface.ip.max_prefixlen:
                    machine.add_target(item.address, item)
            case _:
                pass


def plain(address: str) -> str:
    """An address without its prefix length, in its shortest spelling."""
    return str(ip_address(address.partition("/")[0]))
