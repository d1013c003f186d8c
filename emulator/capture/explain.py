"""Why a packet is seen at a hop, in terms of the plan: which route, tunnel entry, rule or cable brought it there.

A reason is given only where the plan's object accounts for what was captured: a route is named if it is the best
match and leads out by that very device, a forwarding entry if it holds the outer address that was seen, a nat rule
if it alone can have made the translation. Where nothing fits, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from emulator.capture.model import Hop, Journey, Packet, Reason
from emulator.capture.nat import Culprit, Hook, Translated, masquerading_table, translator
from emulator.plan.describe import describe
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    UNDERLAY,
    Address,
    Bridge,
    BridgePort,
    FdbEntry,
    Ipip,
    IpSet,
    IptablesRules,
    Neighbour,
    NftTable,
    Plan,
    PlanObject,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)

MAIN_TABLE = 254
ETHERNET_HEADER = 14  # bytes of a frame that the MTU does not count
FRAGMENTATION_NEEDED = (3, 4)  # ICMP type and code; ICMPv6 has a type for it
PACKET_TOO_BIG = 2
TIME_EXCEEDED = {"icmp": 11, "icmpv6": 3}
Translation = tuple[str, str, str, str, int]


class _Target(NamedTuple):
    version: int
    network: int
    mask: int
    length: int
    metric: int
    item: Route | Address


class _Machine:
    """What one namespace of the plan holds, arranged for look-up."""

    def __init__(self) -> None:
        self.cables: dict[str, tuple[Veth, str]] = {}  # with what the end in this namespace is there for
        self.devices: dict[str, Bridge | Vxlan | Ipip | Tun] = {}
        self.ports: dict[str, BridgePort] = {}
        self.neighbours: dict[tuple[str, str], Neighbour] = {}
        self.entries: dict[tuple[str, str], FdbEntry] = {}
        self.sysctls: dict[str, Sysctl] = {}
        self.addresses: set[str] = set()
        self.tables: list[IptablesRules] = []
        self.sets: list[IpSet] = []
        self.nft: list[NftTable] = []
        self.targets: list[_Target] = []
        self._best: dict[str, Route | Address | None] = {}

    def add_target(self, cidr: str, item: Route | Address, metric: int = 0) -> None:
        network = ip_network(cidr, strict=False)
        self.targets.append(
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

    def _longest(self, address: str) -> Route | Address | None:
        try:
            parsed = ip_address(address)
        except ValueError:
            return None
        number = int(parsed)
        fitting = [
            each for each in self.targets if each.version == parsed.version and number & each.mask == each.network
        ]
        return max(fitting, key=lambda each: (each.length, -each.metric)).item if fitting else None


class _Index:
    def __init__(self, plan: Plan) -> None:
        self.machines: dict[str, _Machine] = {}
        self.owners: dict[str, str] = {}
        for item in plan:
            self._file(self.at(item.ns), item)

    def at(self, ns: str) -> _Machine:
        return self.machines.setdefault(ns, _Machine())

    def _file(self, machine: _Machine, item: PlanObject) -> None:
        match item:
            case Veth():
                machine.cables[item.name] = (item, item.why)
                far = self.at(item.peer_ns)
                far.cables[item.peer] = (item, item.peer_why or item.why)
            case Bridge() | Vxlan() | Ipip() | Tun():
                machine.devices[item.name] = item
            case BridgePort():
                machine.ports[item.device] = item
            case Neighbour():
                machine.neighbours[item.device, _plain(item.address)] = item
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
            case Route() if item.table == MAIN_TABLE:
                machine.add_target(item.destination, item, item.metric)
            case Address():
                interface = ip_interface(item.address)
                address = str(interface.ip)
                machine.addresses.add(address)
                self.owners.setdefault(address, item.ns)
                if item.prefix_route and interface.network.prefixlen < interface.ip.max_prefixlen:
                    machine.add_target(item.address, item)
            case _:
                pass


def _plain(address: str) -> str:
    return str(ip_address(address.partition("/")[0]))


def explain(journeys: Iterable[Journey], plan: Plan) -> list[Journey]:
    """The journeys with reasons at their hops and a verdict, without the copies that switches flooded.

    Journeys in order of time: a reply is translated back by what translated the request before.
    """
    index = _Index(plan)
    translations: dict[tuple[str, Translation], Reason] = {}
    explained = []
    for journey in journeys:
        hops, copies = _on_path(journey, index)
        told = tuple(_with_reasons(hop, _reasons(number, hops, index, translations)) for number, hop in enumerate(hops))
        owner = index.owners.get(hops[-1].packet.target, "")
        ending = _verdict(hops, index, owner) if owner and journey.kind != "neighbour" else ""
        explained.append(Journey(journey.id, told, journey.kind, journey.about, journey.verdict or ending, copies))
    return explained


def verdict(journey: Journey, plan: Plan, target_ns: str) -> str:
    """``delivered``, or where the packet was last seen, with the plan's reason if it has one."""
    index = _Index(plan)
    hops, _ = _on_path(journey, index)
    return _verdict(hops, index, target_ns)


def _verdict(hops: Sequence[Hop], index: _Index, target_ns: str) -> str:
    last = hops[-1]
    if last.ns == target_ns and (last.direction == "in" or len({hop.ns for hop in hops}) == 1):
        return "delivered"
    ending = f"last seen at {last.ns} {last.device} ({last.direction})"
    if last.direction == "out" or last.packet.tunnel is not None:
        return ending
    machine = index.at(last.ns)
    route = machine.best(last.packet.target)
    if isinstance(route, Route) and route.type != "unicast":
        return f"{ending}: {describe(route)}: {route.why}"
    if last.packet.ttl == 1 and last.packet.target not in machine.addresses:
        return f"{ending}: its TTL was used up"
    return ending


def _on_path(journey: Journey, index: _Index) -> tuple[tuple[Hop, ...], int]:
    """The hops without copies of a frame that a switch flooded to machines that it was not addressed to.

    Such a copy comes in, addressed to someone else, on a device that is no bridge port, and goes no further. Gone
    with it is its way out of the switch.
    """
    if journey.kind == "neighbour" or not any(hop.promiscuous for hop in journey.hops):
        return journey.hops, 0
    gone: set[int] = set()
    for number, hop in enumerate(journey.hops):
        machine = index.at(hop.ns)
        if not hop.promiscuous or hop.device in machine.ports or number == 0:
            continue
        if any(later.ns == hop.ns for later in journey.hops[number + 1 :]):
            continue
        gone.add(number)
        cable = machine.cables.get(hop.device)
        if cable is None:
            continue
        veth = cable[0]
        near = (veth.ns, veth.name) if (veth.peer_ns, veth.peer) == (hop.ns, hop.device) else (veth.peer_ns, veth.peer)
        gone |= {
            earlier
            for earlier, other in enumerate(journey.hops[:number])
            if (other.ns, other.device, other.direction) == (*near, "out")
        }
    if not gone or len(gone) == len(journey.hops):
        return journey.hops, 0
    return tuple(hop for number, hop in enumerate(journey.hops) if number not in gone), len(gone)


def _with_reasons(hop: Hop, reasons: Sequence[Reason]) -> Hop:
    return Hop(
        hop.time,
        hop.elapsed,
        hop.ns,
        hop.device,
        hop.direction,
        hop.packet,
        hop.changes,
        tuple(dict.fromkeys(reasons)),
        hop.promiscuous,
    )


def _reason(item: PlanObject, why: str = "") -> Reason:
    return Reason(describe(item), item.component, why or item.why)


def _reasons(
    number: int, hops: Sequence[Hop], index: _Index, translations: dict[tuple[str, Translation], Reason]
) -> list[Reason]:
    hop, before = hops[number], hops[number - 1] if number else None
    machine, packet = index.at(hop.ns), hop.packet
    reasons: list[Reason] = []
    if before is None:
        reasons += _origin(hop, machine)
    if before is not None and packet.version:
        reasons += _translated(number, hops, machine, translations)
        reasons += _reassembled(hop, before, machine)
    device = machine.devices.get(hop.device)
    port = machine.ports.get(hop.device)
    cable = machine.cables.get(hop.device)
    if port is not None:
        if hop.ns == UNDERLAY or cable is None:
            bridge = machine.devices.get(port.bridge)
            reasons += [_reason(bridge)] if bridge else [_reason(port)]
        else:
            reasons.append(_reason(cable[0], cable[1]))
    elif hop.direction == "in":
        if device is not None:
            reasons.append(_reason(device))
        elif cable is not None:
            reasons.append(_reason(cable[0], cable[1]))
    elif packet.version:
        reasons += _outward(hop, before, machine)
    elif packet.arp_operation == 2:
        proxy = machine.sysctls.get(f"net/ipv4/conf/{hop.device}/proxy_arp")
        if proxy is not None and proxy.value == "1" and packet.source not in machine.addresses:
            reasons.append(_reason(proxy))
    return reasons


def _outward(hop: Hop, before: Hop | None, machine: _Machine) -> list[Reason]:
    """Why a packet leaves by a device that is no bridge port: the route, and what it resolved to."""
    packet, tunnel = hop.packet, hop.packet.tunnel
    if tunnel is None:
        return _routed(packet.target, packet.target_mac, hop.device, machine)
    if before is not None and before.packet.tunnel is None and before.ns == hop.ns:
        reasons = []
        entry = machine.entries.get((before.device, packet.target_mac))
        if entry is not None and _plain(entry.remote) == tunnel.target:
            reasons.append(_reason(entry))
        device = machine.devices.get(before.device)
        if isinstance(device, Vxlan) and device.vni == tunnel.vni and device.port == tunnel.target_port:
            reasons.append(_reason(device))
        if isinstance(device, Ipip) and tunnel.kind == "ipip":
            reasons.append(_reason(device))
        return reasons + _routed(tunnel.target, tunnel.target_mac, hop.device, machine)
    return _routed(tunnel.target, tunnel.target_mac, hop.device, machine)


def _routed(target: str, target_mac: str, device: str, machine: _Machine) -> list[Reason]:
    item = machine.best(target)
    if isinstance(item, Address):
        if item.device != device:
            return []
        neighbour = machine.neighbours.get((device, target))
        reasons = [_reason(item, f"{target} is on this link. {item.why}" if item.why else f"{target} is on this link")]
        return reasons + _resolved(neighbour, target_mac)
    if item is None or item.type != "unicast" or (item.device and item.device != device):
        return []
    if not item.device and item.via:
        towards = machine.best(item.via)
        if towards is None or (towards.device and towards.device != device):
            return []
    reasons = [_reason(item)]
    if item.via:
        gateway = machine.best(item.via)
        # The route to the gateway is worth a word if somebody made it for that purpose: 169.254.1.1 of Calico.
        if isinstance(gateway, Route) and gateway.scope == "link" and gateway.device == device and gateway != item:
            reasons.append(_reason(gateway))
    return reasons + _resolved(machine.neighbours.get((device, _plain(item.via or target))), target_mac)


def _resolved(neighbour: Neighbour | None, target_mac: str) -> list[Reason]:
    return [_reason(neighbour)] if neighbour is not None and neighbour.mac == target_mac else []


def _translated(
    number: int, hops: Sequence[Hop], machine: _Machine, translations: dict[tuple[str, Translation], Reason]
) -> list[Reason]:
    hop, before = hops[number], hops[number - 1]
    old, new = before.packet, hop.packet
    if hop.ns != before.ns or (old.source, old.target) == (new.source, new.target):
        return []
    entered = next(
        (each.device for each in reversed(hops[:number]) if each.ns == hop.ns and each.direction == "in"), ""
    )
    # A reply is turned back by the entry of its connection, whatever the rules say.
    undone = translations.get((hop.ns, _flow(old)))
    if undone is not None:
        return [Reason(undone.subject, "conntrack", f"a reply is translated back: {undone.why}")]
    reasons = []
    changes: list[tuple[Hook, bool]] = [
        ("PREROUTING" if entered else "OUTPUT", old.target != new.target),
        ("POSTROUTING", old.source != new.source),
    ]
    for hook, happened in changes:
        if not happened:
            continue
        seen = Translated(
            old.version,
            old.protocol,
            old.source,
            new.target if hook == "POSTROUTING" else old.target,
            old.source_port,
            new.target_port if hook == "POSTROUTING" else old.target_port,
            "" if hook == "POSTROUTING" else entered,
            hop.device if hook == "POSTROUTING" else "",
        )
        culprit = translator(hook, seen, machine.tables, machine.sets)
        if culprit is not None:
            reasons.append(_rule(culprit))
        elif (table := masquerading_table(hook, seen, machine.tables, machine.nft)) is not None:
            reasons.append(_reason(table))
    if reasons:
        answer = (new.protocol, new.target, new.source, *_ports(new))
        translations[hop.ns, answer] = reasons[-1]
    return reasons


def _reassembled(hop: Hop, before: Hop, machine: _Machine) -> list[Reason]:
    """Why fragments have become one packet since the hop before, or a packet fragments."""
    old, new = before.packet, hop.packet
    if hop.ns != before.ns or old.more_fragments == new.more_fragments or old.fragment_offset or new.fragment_offset:
        return []
    if old.more_fragments:
        why = "connection tracking needs whole datagrams: the fragments are put together on their way in"
        return [Reason(f"{hop.ns}: reassembly", "kernel", why)]
    mtu, item = machine.mtu(hop.ns, hop.device)
    size = old.length - ETHERNET_HEADER
    if item is None or size <= mtu:
        return []
    return [Reason(describe(item), "kernel", f"a datagram of {size} bytes is cut: this device's MTU is {mtu} bytes")]


def _flow(packet: Packet) -> Translation:
    port = packet.target_port or packet.icmp_id
    return (packet.protocol, packet.source, packet.target, str(packet.source_port), port)


def _ports(request: Packet) -> tuple[str, int]:
    """The reply's ports: the request's, exchanged; an echo reply has the request's identifier."""
    return str(request.target_port), request.source_port or request.icmp_id


def _rule(culprit: Culprit) -> Reason:
    program = "iptables" if culprit.rules.family == 4 else "ip6tables"
    place = f"{culprit.chain} rule {culprit.number}" if culprit.number else culprit.chain
    subject = f"{program} -t {culprit.rules.table} {place}: {rule_text(culprit.rule)}"
    return Reason(subject, culprit.rules.component, culprit.rule.why or culprit.rules.why)


def _origin(hop: Hop, machine: _Machine) -> list[Reason]:
    """Why an ICMP error was sent, as far as the plan tells."""
    packet = hop.packet
    if packet.quoted is None or hop.direction != "out":
        return []
    if TIME_EXCEEDED.get(packet.protocol) == packet.icmp_type and packet.icmp_code == 0:
        return [Reason(f"{hop.ns} {packet.source}", "kernel", "the packet's TTL was used up here (RFC 1812, 5.3.1)")]
    too_big = (packet.protocol == "icmp" and (packet.icmp_type, packet.icmp_code) == FRAGMENTATION_NEEDED) or (
        packet.protocol == "icmpv6" and packet.icmp_type == PACKET_TOO_BIG
    )
    if too_big:
        towards = machine.best(packet.quoted.target)
        mtu, item = machine.mtu(hop.ns, towards.device) if towards is not None else (0, None)
        if item is not None and mtu == packet.icmp_mtu:
            why = f"a packet that may not be fragmented is larger than this device's MTU of {mtu} bytes"
            return [Reason(describe(item), "kernel", why)]
        return []
    route = machine.best(packet.quoted.target)
    if isinstance(route, Route) and route.type in ("unreachable", "prohibit"):
        return [_reason(route)]
    return []
