"""Why a packet is seen at a hop, in terms of the plan: which route, tunnel entry, rule or cable brought it there.

A reason is given only where the plan's object accounts for what was captured: a route is named if it is the best
match and leads out by that very device, a forwarding entry if it holds the outer address that was seen, a nat rule
if it alone can have made the translation. Where nothing fits, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emulator.capture.denial import Denial, Openings, as_seen, denial
from emulator.capture.model import Hop, Journey, Packet, Reason
from emulator.capture.nat import translation
from emulator.capture.planned import Index, Planned, Way, plain
from emulator.capture.rule_walk import Culprit
from emulator.plan.describe import describe
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    UNDERLAY,
    Address,
    Ipip,
    Neighbour,
    Plan,
    PlanObject,
    PluginDevice,
    Route,
    Tun,
    Vxlan,
    Wireguard,
)

ETHERNET_HEADER = 14  # bytes of a frame that the MTU does not count
FRAGMENTATION_NEEDED = (3, 4)  # ICMP type and code; ICMPv6 has a type for it
PACKET_TOO_BIG = 2
TIME_EXCEEDED = {"icmp": 11, "icmpv6": 3}
Translation = tuple[str, str, str, str, int]


def explain(journeys: Iterable[Journey], plan: Plan) -> list[Journey]:
    """The journeys with reasons at their hops and a verdict, without the copies that switches flooded.

    Journeys in order of time: a reply is translated back by what translated the request before.
    """
    index = Index(plan)
    translations: dict[tuple[str, Translation], Reason] = {}
    explained = []
    openings = Openings()
    for journey in journeys:
        hops, copies = _on_path(journey, index)
        told = tuple(_with_reasons(hop, _reasons(number, hops, index, translations)) for number, hop in enumerate(hops))
        owner = index.owners.get(hops[-1].packet.target, "")
        new = openings.opens(hops[-1].packet)
        ending = _verdict(hops, index, owner, new=new) if owner and journey.kind != "neighbour" else ""
        openings.note(hops)
        explained.append(Journey(journey.id, told, journey.kind, journey.about, journey.verdict or ending, copies))
    return explained


def verdict(journey: Journey, plan: Plan, target_ns: str) -> str:
    """``delivered``, or where the packet was last seen, with the plan's reason if it has one."""
    index = Index(plan)
    hops, _ = _on_path(journey, index)
    return _verdict(hops, index, target_ns, new=Openings().opens(hops[-1].packet))


def _verdict(hops: Sequence[Hop], index: Index, target_ns: str, *, new: bool) -> str:
    last = hops[-1]
    if last.ns == target_ns and (last.direction == "in" or len({hop.ns for hop in hops}) == 1):
        stopped = denial(hops, index, new=True) if new else None
        return "delivered" if stopped is None else f"stopped at {last.ns}: {_denied(stopped)}"
    ending = f"last seen at {last.ns} {last.device} ({last.direction})"
    if last.direction == "out" or last.packet.tunnel is not None:
        return ending
    machine = index.at(last.ns)
    if last.promiscuous and _is_unicast_tunnel(machine, last.device):
        return f"{ending}: the frame is addressed to {last.packet.target_mac}, which is not the device's MAC"
    route = machine.best(last.packet.target)
    if isinstance(route, Route) and route.type != "unicast":
        return f"{ending}: {describe(route)}: {route.why}"
    missed = machine.best_but_learned(last.packet.target)
    if missed is not None and missed != route and missed.type != "unicast":
        # Had the learned route been there, the packet would have been seen to leave by it.
        return f"{ending}: {describe(missed)}: {missed.why}; the longer route to {last.packet.target} is missing"
    if last.packet.ttl == 1 and last.packet.target not in machine.addresses:
        return f"{ending}: its TTL was used up"
    stopped = denial(hops, index, new=new)
    return f"{ending}: {_denied(stopped)}" if stopped is not None else ending


def _denied(stopped: Denial) -> str:
    return f"{stopped.place}: {stopped.text}: {stopped.why}"


def _on_path(journey: Journey, index: Index) -> tuple[tuple[Hop, ...], int]:
    """The hops without copies of a frame that a switch flooded to machines that it was not addressed to.

    Such a copy comes in, addressed to someone else, on a device that is no bridge port, and goes no further. Gone
    with it is its way out of the switch. What comes out of a tunnel that does not flood was meant for this machine,
    whatever its MAC says: there it ends.
    """
    if journey.kind == "neighbour" or not any(hop.promiscuous for hop in journey.hops):
        return journey.hops, 0
    gone: set[int] = set()
    for number, hop in enumerate(journey.hops):
        machine = index.at(hop.ns)
        if not hop.promiscuous or machine.is_port(hop.device) or number == 0:
            continue
        if _is_unicast_tunnel(machine, hop.device):
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


def _is_unicast_tunnel(machine: Planned, device: str) -> bool:
    item = machine.devices.get(device)
    return isinstance(item, Vxlan) and not item.learning


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
    number: int, hops: Sequence[Hop], index: Index, translations: dict[tuple[str, Translation], Reason]
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
        reasons += _outward(hop, before, index, _entered(hops[:number], hop.ns))
        if before is not None and (before.ns, before.direction, before.packet.ttl) == (hop.ns, "in", packet.ttl):
            reasons += _ttl_kept(machine)
    elif packet.arp_operation == 2:
        proxy = machine.sysctls.get(f"net/ipv4/conf/{hop.device}/proxy_arp")
        if proxy is not None and proxy.value == "1" and packet.source not in machine.addresses:
            reasons.append(_reason(proxy))
        speaker = machine.announced.get(packet.source)
        if speaker is not None:
            reasons.append(_reason(speaker, f"{packet.source} is announced here, though it is on no device"))
    if not reasons and hop.device in machine.plugged:
        reasons.append(_by_plugin(machine.plugged[hop.device]))
    return reasons


def _by_plugin(device: PluginDevice) -> Reason:
    """All that is known of a hop on a device of a CNI plugin's: what the device is, and whose."""
    port = f", a port of {device.bridge}" if device.bridge else ""
    words = f"{device.kind} {device.name} mtu {device.mtu}"
    return Reason(words, f"{device.plugin} plugin", f"made by plugin {device.plugin}{port}")


def _entered(hops: Sequence[Hop], ns: str) -> str:
    """The device that the packet came into ``ns`` by; empty if it was made there."""
    return next((each.device for each in reversed(hops) if each.ns == ns and each.direction == "in"), "")


def _ttl_kept(machine: Planned) -> list[Reason]:
    """The rules that give a packet back what routing takes from its TTL."""
    return [
        Reason(
            f"{'iptables' if item.family == 4 else 'ip6tables'} -t mangle {jump.chain}: {rule_text(jump.rule)}",
            item.component,
            jump.rule.why or item.why,
        )
        for item in machine.tables
        for jump in item.jumps
        if item.table == "mangle" and jump.rule.args[-3:-1] == ("TTL", "--ttl-inc")
    ]


def _outward(hop: Hop, before: Hop | None, index: Index, entered: str) -> list[Reason]:
    """Why a packet leaves by a device that is no bridge port: the route, and what it resolved to."""
    packet, tunnel, machine = hop.packet, hop.packet.tunnel, index.at(hop.ns)
    if tunnel is None:
        # Sources are translated after routing: what was routed is the packet of the hop before.
        source = before.packet.source if before is not None and before.ns == hop.ns else packet.source
        way = _way(packet, source, entered, hop.device, index, machine)
        if way is None:
            return []
        found = _routed(way.item, packet.target, packet.target_mac, hop.device, machine)
        return [_reason(way.rule), *found] if found and way.rule is not None else found
    outside = machine.best(tunnel.target)
    found = _routed(outside, tunnel.target, tunnel.target_mac, hop.device, machine)
    if before is not None and before.packet.tunnel is None and before.ns == hop.ns:
        reasons = []
        entry = machine.entries.get((before.device, packet.target_mac))
        if entry is not None and plain(entry.remote) == tunnel.target:
            reasons.append(_reason(entry))
        device = machine.devices.get(before.device)
        if isinstance(device, Vxlan) and device.vni == tunnel.vni and device.port == tunnel.target_port:
            reasons.append(_reason(device))
        if isinstance(device, Wireguard) and tunnel.kind == "wireguard":
            peer = machine.peers.get((before.device, tunnel.target))
            reasons += [_reason(peer), _reason(device)] if peer is not None else [_reason(device)]
        if (isinstance(device, Ipip) and tunnel.kind == "ipip") or (isinstance(device, Tun) and tunnel.kind == "udp"):
            reasons.append(_reason(device))
        return reasons + found
    return found


def _way(packet: Packet, source: str, entered: str, device: str, index: Index, machine: Planned) -> Way | None:
    """How the packet got out, by the frame's target: a route by another gateway than the one who got the frame was not
    there. That is no wonder of one that a routing daemon brings; of others the plan is sure, and nothing is said."""
    absent: set[Route] = set()
    while True:
        way = machine.way(packet, source, entered, device, absent)
        item = way.item if way is not None else None
        if not isinstance(item, Route) or not item.via or not index.elsewhere(item.via, packet.target_mac):
            return way
        told = machine.neighbours.get((device, plain(item.via)))  # a permanent entry may name any MAC
        if told is not None and told.mac == packet.target_mac:
            return way
        if not item.learned:
            return None
        absent.add(item)


def _routed(item: Route | Address | None, target: str, target_mac: str, device: str, machine: Planned) -> list[Reason]:
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
        gateway = machine.beyond(item)
        # The route to the gateway is worth a word if somebody made it for that purpose: 169.254.1.1 of Calico.
        if isinstance(gateway, Route) and gateway.scope == "link" and gateway.device == device and gateway != item:
            reasons.append(_reason(gateway))
    return reasons + _resolved(machine.neighbours.get((device, plain(item.via or target))), target_mac)


def _resolved(neighbour: Neighbour | None, target_mac: str) -> list[Reason]:
    return [_reason(neighbour)] if neighbour is not None and neighbour.mac == target_mac else []


def _translated(
    number: int, hops: Sequence[Hop], machine: Planned, translations: dict[tuple[str, Translation], Reason]
) -> list[Reason]:
    hop, before = hops[number], hops[number - 1]
    old, new = before.packet, hop.packet
    if hop.ns != before.ns or (old.source, old.target) == (new.source, new.target):
        return []
    entered = _entered(hops[:number], hop.ns)
    # A reply is turned back by the entry of its connection, whatever the rules say.
    undone = translations.get((hop.ns, _flow(old)))
    if undone is not None:
        return [Reason(undone.subject, "conntrack", f"a reply is translated back: {undone.why}")]
    reasons = []
    seen = as_seen(old, machine, entered, hop.device)
    who = translation(machine.ruleset, seen, new.target, new.target_port, new.source)
    if who.target is not None:
        reasons.append(_rule(who.target))
    elif (old.target, old.target_port) != (new.target, new.target_port):
        reasons += _scheduled(old, new, machine)
    if who.source is not None:
        reasons.append(_rule(who.source))
    elif who.table is not None:
        reasons.append(_reason(who.table))
    if reasons:
        answer = (new.protocol, new.target, new.source, *_ports(new))
        translations[hop.ns, answer] = reasons[-1]
    return reasons


def _scheduled(old: Packet, new: Packet, machine: Planned) -> list[Reason]:
    """The virtual server of IPVS that sent the packet to one of its real servers."""
    item, server = machine.virtual.get((old.protocol, old.target, old.target_port), (None, None))
    if item is None or server is None or (new.target, new.target_port) not in server.targets:
        return []
    words = f"ipvs {server.name} {server.scheduler} -> {new.target} port {new.target_port}"
    return [Reason(words, item.component, "a virtual server: this endpoint was chosen")]


def _reassembled(hop: Hop, before: Hop, machine: Planned) -> list[Reason]:
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
    return Reason(f"{culprit.place}: {culprit.text}", culprit.component, culprit.why)


def _origin(hop: Hop, machine: Planned) -> list[Reason]:
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
