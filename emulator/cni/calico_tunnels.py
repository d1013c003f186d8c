"""Calico's tunnels between nodes, VXLAN and IPIP, and the routes that Felix writes for them.

::

    cali… ── route /26 via 10.244.0.64 dev vxlan.calico ── eth0 ═ UDP 4789, VNI 4096 ═ eth0 ── vxlan.calico ── cali…
    cali… ── route /26 via n2          dev tunl0        ── eth0 ═══ IP protocol 4 ════ eth0 ── tunl0 ───────── cali…

``CrossSubnet`` leaves the tunnel out between nodes of one subnet. IPIP routes are Felix's as in v3.33; before, they
were those of Calico's own fork of BIRD (``krt_tunnel``).

Sources: projectcalico/calico felix/dataplane/linux (vxlan_mgr.go, ipip_mgr.go, route_manager.go, int_dataplane.go),
felix/calc/vxlan_resolver.go, felix/routetable.
"""

from __future__ import annotations

from collections.abc import Iterator

from emulator.cluster.model import Cluster, Node
from emulator.cni.calico_settings import Settings
from emulator.cni.segments import share_subnet
from emulator.plan.addressing import contains, digest, family_of, host_prefix, of_family
from emulator.plan.model import Address, AnyObject, Family, FdbEntry, Ipip, IpSet, Neighbour, Route, Sysctl, Vxlan

FELIX = "felix"

VNI = 4096  # felix configuration vxlanVNI
PORT = 4789  # UDP, vxlanPort: RFC 7348's
VXLAN_DEVICE: dict[Family, str] = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
IPIP_DEVICE = "tunl0"
VXLAN_OVERHEAD = {
    4: 50,  # bytes: 14 inner Ethernet + 20 IPv4 + 8 UDP + 8 VXLAN (RFC 7348)
    6: 70,  # 40 IPv6 in place of 20
}
IPIP_OVERHEAD = 20  # bytes: an IPv4 header (RFC 2003)


def pod_mtu(settings: Settings, node: Node) -> int:
    """What fits through every kind of tunnel that a pool uses, in bytes."""
    overheads = [0]
    for pool in settings.pools:
        if pool.encapsulation.kind == "vxlan":
            overheads.append(VXLAN_OVERHEAD[pool.family])
        elif pool.encapsulation.kind == "ipip":
            overheads.append(IPIP_OVERHEAD)
    return node.mtu - max(overheads)


def vtep_mac(node: Node, family: Family) -> str:
    """``f`` and five bytes of SHA-1 over the node's name (vtepMACForHost)."""
    name = node.name if family == 4 else f"{node.name}-v6"
    return bytes.fromhex("66" + digest(name, 10, "sha1")).hex(":")


def tunnels(cluster: Cluster, node: Node, settings: Settings, family: Family) -> Iterator[AnyObject]:
    """The node's tunnel devices of one family, what they know of their peers, and all routes by Felix."""
    peers = [peer for peer in cluster.nodes if peer.name != node.name]
    if settings.uses("vxlan", family):
        yield from _vxlan(node, peers, family)
    if settings.uses("ipip", family):
        yield from _ipip(cluster, node)
    yield from _blackholes(node, settings, family)
    for peer in peers:
        for block in peer.pod_ranges:
            if family_of(block) == family:
                yield from route_to_block(node, peer, block, settings, f"block of {peer.name}")
        yield from _routes_to_tunnels(node, peer, settings, family)


def is_felixs(settings: Settings, cidr: str) -> bool:
    """Whether Felix, not BIRD, routes a block or an address."""
    return settings.encapsulation_of(cidr).kind != ""


def route_to_block(node: Node, peer: Node, cidr: str, settings: Settings, why: str) -> Iterator[Route]:
    """How ``node`` reaches a block of ``peer``, or an address that ``peer`` borrowed, if that is Felix's affair."""
    encapsulation, family = settings.encapsulation_of(cidr), family_of(cidr)
    if not encapsulation.kind:
        return
    if encapsulation.cross_subnet and share_subnet(node, peer, family):
        yield _direct(node, peer, cidr, f"{why}, on this subnet: no encapsulation (CrossSubnet)")
        return
    if encapsulation.kind == "ipip":
        via, device = of_family(peer.addresses, family), IPIP_DEVICE
    else:
        via, device = peer.tunnels.get(VXLAN_DEVICE[family], ""), VXLAN_DEVICE[family]
    if via and device in node.tunnels:
        yield Route(
            ns=node.ns,
            destination=cidr,
            via=via,
            device=device,
            protocol="felix",
            onlink=True,
            component=FELIX,
            why=f"{why}, through the tunnel",
        )


# -- VXLAN ------------------------------------------------------------------------------------------------------


def _vxlan(node: Node, peers: list[Node], family: Family) -> Iterator[AnyObject]:
    device = VXLAN_DEVICE[family]
    sources = tuple(sorted(of_family(peer.addresses, family) for peer in peers if device in peer.tunnels))
    yield IpSet(
        ns=node.ns,
        name=f"cali{family}0all-vxlan-net",
        type="hash:net",
        family=family,
        members=sources,
        component=FELIX,
        why="who may send VXLAN packets to this node",
    )
    if device not in node.tunnels:
        return
    yield Vxlan(
        ns=node.ns,
        name=device,
        vni=VNI,
        port=PORT,
        local=of_family(node.addresses, family),
        underlay=node.device,
        learning=False,
        mtu=node.mtu - VXLAN_OVERHEAD[family],
        mac=vtep_mac(node, family),
        component=FELIX,
        why="the tunnel's end; knows its peers from Felix, never by flooding",
    )
    if family == 6:
        yield Sysctl(
            ns=node.ns,
            name=f"net/ipv6/conf/{device}/accept_ra",
            value="0",
            component=FELIX,
            why="no router advertisements from the tunnel",
        )
    yield _tunnel_address(node, device)
    for peer in peers:
        if device not in peer.tunnels:
            continue
        yield Neighbour(
            ns=node.ns,
            device=device,
            address=peer.tunnels[device],
            mac=vtep_mac(peer, family),
            component=FELIX,
            why=f"MAC of the tunnel's end on {peer.name}: no ARP through the tunnel",
        )
        yield FdbEntry(
            ns=node.ns,
            device=device,
            mac=vtep_mac(peer, family),
            remote=of_family(peer.addresses, family),
            component=FELIX,
            why=f"frames for that MAC go to {peer.name}: the outer destination",
        )


# -- IPIP -------------------------------------------------------------------------------------------------------


def _ipip(cluster: Cluster, node: Node) -> Iterator[AnyObject]:
    yield IpSet(
        ns=node.ns,
        name="cali40all-hosts-net",
        type="hash:net",
        family=4,
        members=tuple(sorted(of_family(each.addresses, 4) for each in cluster.nodes)),
        component=FELIX,
        why="who may send IPIP packets to this node",
    )
    if IPIP_DEVICE not in node.tunnels:
        return
    yield Ipip(
        ns=node.ns,
        name=IPIP_DEVICE,
        mtu=node.mtu - IPIP_OVERHEAD,
        component=FELIX,
        why="the tunnel's end; a route's gateway is the outer destination",
    )
    yield _tunnel_address(node, IPIP_DEVICE)


# -- routes -----------------------------------------------------------------------------------------------------


def _tunnel_address(node: Node, device: str) -> Address:
    return Address(
        ns=node.ns,
        device=device,
        address=host_prefix(node.tunnels[device]),
        component=FELIX,
        why="from the node's block (IPAM): source of node to remote pod",
    )


def _blackholes(node: Node, settings: Settings, family: Family) -> Iterator[Route]:
    for block in node.pod_ranges:
        if family_of(block) == family and is_felixs(settings, block) and block != host_prefix(block.partition("/")[0]):
            yield Route(
                ns=node.ns,
                destination=block,
                type="blackhole",
                protocol="felix",
                component=FELIX,
                why="this node's block: an address that no pod has is dropped in silence",
            )


def _routes_to_tunnels(node: Node, peer: Node, settings: Settings, family: Family) -> Iterator[Route]:
    """To the end of a VXLAN tunnel itself: it has no gateway but itself."""
    device = VXLAN_DEVICE[family]
    address = peer.tunnels.get(device)
    if address is None or device not in node.tunnels:
        return
    if settings.encapsulation_of(address).cross_subnet and share_subnet(node, peer, family):
        yield _direct(node, peer, host_prefix(address), f"the tunnel's end on {peer.name}, on this subnet")
        return
    yield Route(
        ns=node.ns,
        destination=host_prefix(address),
        device=device,
        protocol="felix",
        scope="link",
        component=FELIX,
        why=f"the tunnel's end on {peer.name}",
    )


def _direct(node: Node, peer: Node, cidr: str, why: str) -> Route:
    return Route(
        ns=node.ns,
        destination=cidr,
        via=of_family(peer.addresses, family_of(cidr)),
        device=node.device,
        protocol="felix",
        onlink=True,
        component=FELIX,
        why=why,
    )


def is_borrowed(node: Node, address: str) -> bool:
    """Whether an address on ``node`` is of another node's block."""
    return not any(contains(block, address) for block in node.pod_ranges)
