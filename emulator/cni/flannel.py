"""Flannel: flanneld, its CNI plugin, and the bridge and host-local plugins that this one calls.

The path of a packet from pod A on n1 to pod B on n2, backend vxlan::

    pod A              node n1                                  node n2                  pod B
    eth0 ── veth… ─ cni0 ── (route) ── flannel.1 ─┐        ┌─ flannel.1 ── cni0 ─ veth… ── eth0
                                                eth0 ════ eth0
                                            UDP 8472, VNI 1: +50 bytes

With ``host-gw`` (and, with DirectRouting, between nodes of one subnet) the tunnel drops out: cni0, route, eth0.

Sources: flannel-io/flannel pkg/backend/vxlan (vxlan.go, vxlan_network.go, device.go), pkg/backend/hostgw,
pkg/trafficmngr/iptables/iptables.go, Documentation/kube-flannel.yml; flannel-io/cni-plugin flannel_linux.go;
containernetworking/plugins plugins/main/bridge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.limits import check_nodes
from emulator.cni.segments import share_subnet, strangers
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.cni.wiring import pod_namespace
from emulator.errors import UserError
from emulator.plan.addressing import (
    default_route,
    digest,
    families_of,
    first_address,
    host_prefix,
    of_family,
    prefix_length,
    stable_mac,
)
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Chain,
    Family,
    FdbEntry,
    File,
    IptablesRules,
    Jump,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    Veth,
    Vxlan,
)

FLANNELD = "flanneld"
BRIDGE_PLUGIN = "bridge plugin"

VNI = 1  # vxlan.go: defaultVNI
PORT = 8472  # UDP; the configuration's 0 means the kernel's own default (drivers/net/vxlan)
VXLAN_OVERHEAD = {
    4: 50,  # bytes: 14 inner Ethernet + 20 IPv4 + 8 UDP + 8 VXLAN (RFC 7348)
    6: 70,  # 40 IPv6 in place of 20
}
KUBE_PROXY_MARK = "0x4000/0x4000"  # trafficmngr.KubeProxyMark
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}

VXLAN = "vxlan"
DIRECT = "vxlan-directrouting"
HOST_GATEWAY = "host-gw"
SPELLINGS = {"": VXLAN, VXLAN: VXLAN, DIRECT: DIRECT, "directrouting": DIRECT, HOST_GATEWAY: HOST_GATEWAY}
TITLES = {VXLAN: "Flannel · vxlan", DIRECT: "Flannel · vxlan, DirectRouting", HOST_GATEWAY: "Flannel · host-gw"}


def load(mode: str) -> Flannel:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Flannel(mode=pick_mode("flannel", mode, SPELLINGS))


@dataclass(frozen=True)
class Flannel(Plain):
    """Flannel with one of its backends: ``vxlan``, ``vxlan-directrouting`` or ``host-gw``."""

    mode: str
    name: str = "flannel"

    @property
    def title(self) -> str:
        return TITLES[self.mode]

    @property
    def requires(self) -> tuple[str, ...]:
        tunnel = () if self.mode == HOST_GATEWAY else ("vxlan",)
        return ("veth", "bridge", *tunnel, "iptables", "iptables-restore", "bridge-nf")

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """A /24 (IPv6: /64) of the cluster network for each node, addresses from .2 on: .1 is the bridge."""
        return address_managers.HostLocal(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        check_nodes(self.name, cluster, lambda node: self._pod_mtu(cluster, node))
        if self.mode == HOST_GATEWAY:
            _need_one_segment(cluster)

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        families = families_of(cluster.topology.pod_cidrs)
        yield from _bridge_sees_iptables(node, families)
        yield from _subnet_file(cluster, node, self._pod_mtu(cluster, node))
        yield _cni_configuration(node)
        yield from self._bridge(cluster, node)
        for family in families:
            if self.mode != HOST_GATEWAY:
                yield from _vtep(node, family)
        for peer in cluster.nodes:
            if peer.name == node.name:
                continue
            for family in families:
                if self.mode == HOST_GATEWAY or (self.mode == DIRECT and share_subnet(node, peer, family)):
                    yield _route_by_node(node, peer, family)
                else:
                    yield from _tunnel_to(node, peer, family)
        for family in families:
            yield _forward_rules(cluster, node, family)
            yield _masquerade_rules(cluster, node, family)

    def _bridge(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        """cni0, which the bridge plugin makes with the node's first pod; the lab has it from the start."""
        yield Bridge(
            ns=node.ns,
            name="cni0",
            mtu=self._pod_mtu(cluster, node),
            mac=stable_mac(f"cni0 {node.name}"),
            component=BRIDGE_PLUGIN,
            why="connects the pods of this node; their gateway",
        )
        for subnet in node.pod_ranges:
            yield Address(
                ns=node.ns,
                device="cni0",
                address=f"{first_address(subnet, 1)}/{prefix_length(subnet)}",
                component=BRIDGE_PLUGIN,
                why="isGateway: the pods' default gateway, and the source of node to local pod",
            )

    def _pod_mtu(self, cluster: Cluster, node: Node) -> int:
        """What fits through the tunnel of every family in use; the node's own MTU without a tunnel."""
        if self.mode == HOST_GATEWAY:
            return node.mtu
        return node.mtu - max(VXLAN_OVERHEAD[family] for family in families_of(cluster.topology.pod_cidrs))

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        host_end = f"veth{digest(pod.key, 8)}"
        yield from pod_namespace(cluster, pod)
        yield Veth(
            ns=pod.ns,
            name="eth0",
            mtu=self._pod_mtu(cluster, node),
            mac=stable_mac(f"pod {pod.key}"),
            peer_ns=node.ns,
            peer=host_end,
            peer_mac=stable_mac(f"veth {pod.key}"),
            component=BRIDGE_PLUGIN,
            why="the pod's interface",
            peer_why=f"host end of {pod.key}",
        )
        yield BridgePort(
            ns=node.ns,
            device=host_end,
            bridge="cni0",
            hairpin=True,
            component=BRIDGE_PLUGIN,
            why="hairpinMode: a pod can reach itself through a Service",
        )
        for address in pod.addresses:
            (family,) = families_of((address,))
            subnet = of_family(node.pod_ranges, family)
            gateway = first_address(subnet, 1)
            yield Address(
                ns=pod.ns,
                device="eth0",
                address=f"{address}/{prefix_length(subnet)}",
                component="host-local plugin",
                why=f"from the node's subnet {subnet}: pods of this node are on one link",
            )
            yield Route(
                ns=pod.ns,
                destination=of_family(cluster.topology.pod_cidrs, family),
                via=gateway,
                device="eth0",
                component="flannel plugin",
                why="the cluster network, which the flannel plugin adds to the bridge's configuration",
            )
            yield Route(
                ns=pod.ns,
                destination=default_route(family),
                via=gateway,
                device="eth0",
                component=BRIDGE_PLUGIN,
                why="isDefaultGateway: everything else goes by cni0 too",
            )


# -- devices and routes to the other nodes ----------------------------------------------------------------------


def vtep_device(family: Family) -> str:
    """``flannel.1``, or ``flannel-v6.1``: VXLAN over IPv6 is a device of its own."""
    return f"flannel.{VNI}" if family == 4 else f"flannel-v6.{VNI}"


def vtep_mac(node: Node, family: Family) -> str:
    """flanneld takes a random MAC, and keeps it in the node's annotation ``backend-data``."""
    return stable_mac(f"{vtep_device(family)} {node.name}")


def vtep_address(node: Node, family: Family) -> str:
    """The base of the node's subnet: ``10.244.1.0``."""
    return first_address(of_family(node.pod_ranges, family), 0)


def _vtep(node: Node, family: Family) -> Iterator[AnyObject]:
    device = vtep_device(family)
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
        component=FLANNELD,
        why="the tunnel's end; knows its peers from flanneld, never by flooding",
    )
    if family == 6:
        yield Sysctl(
            ns=node.ns,
            name=f"net/ipv6/conf/{device}/accept_ra",
            value="0",
            component=FLANNELD,
            why="no router advertisements from the tunnel",
        )
    yield Address(
        ns=node.ns,
        device=device,
        address=host_prefix(vtep_address(node, family)),
        component=FLANNELD,
        why="source of node to remote pod; a host prefix, so that no broadcast route appears",
    )


def _tunnel_to(node: Node, peer: Node, family: Family) -> Iterator[AnyObject]:
    """What flanneld writes when it sees another node's lease, in its order: the route last, or the kernel would ARP."""
    device = vtep_device(family)
    address, mac = vtep_address(peer, family), vtep_mac(peer, family)
    yield Neighbour(
        ns=node.ns,
        device=device,
        address=address,
        mac=mac,
        component=FLANNELD,
        why=f"MAC of the tunnel's end on {peer.name}: no ARP through the tunnel",
    )
    yield FdbEntry(
        ns=node.ns,
        device=device,
        mac=mac,
        remote=of_family(peer.addresses, family),
        component=FLANNELD,
        why=f"frames for that MAC go to {peer.name}: the outer destination",
    )
    yield Route(
        ns=node.ns,
        destination=of_family(peer.pod_ranges, family),
        via=address,
        device=device,
        onlink=True,
        component=FLANNELD,
        why=f"pods of {peer.name}, through the tunnel",
    )


def _route_by_node(node: Node, peer: Node, family: Family) -> Route:
    return Route(
        ns=node.ns,
        destination=of_family(peer.pod_ranges, family),
        via=of_family(peer.addresses, family),
        device=node.device,
        component=FLANNELD,
        why=f"pods of {peer.name}, which is on this link: no encapsulation",
    )


def _need_one_segment(cluster: Cluster) -> None:
    """host-gw makes a node the gateway of its pods: it must be a neighbour (backend/hostgw, route_network.go)."""
    if pair := strangers(cluster.nodes, cluster.topology.pod_cidrs):
        raise UserError(
            f"flannel:host-gw needs all nodes on one L2 segment, and {pair[0].name} and {pair[1].name} share none",
            hint="use flannel:vxlan, or flannel:vxlan-directrouting for tunnels between segments only",
        )


# -- files ------------------------------------------------------------------------------------------------------


def _subnet_file(cluster: Cluster, node: Node, mtu: int) -> Iterator[File]:
    lines = []
    families: tuple[tuple[Family, str], ...] = ((4, ""), (6, "IPV6_"))
    for family, word in families:
        subnet = of_family(node.pod_ranges, family)
        if subnet:
            network = of_family(cluster.topology.pod_cidrs, family)
            lines.append(f"FLANNEL_{word}NETWORK={network}")
            lines.append(f"FLANNEL_{word}SUBNET={first_address(subnet, 1)}/{prefix_length(subnet)}")
    lines += [f"FLANNEL_MTU={mtu}", "FLANNEL_IPMASQ=true"]
    yield File(
        ns=node.ns,
        path="/run/flannel/subnet.env",
        content="\n".join(lines) + "\n",
        component=FLANNELD,
        why="the node's lease, read by the flannel CNI plugin for every pod",
    )


def _cni_configuration(node: Node) -> File:
    """Documentation/kube-flannel.yml, ``cni-conf.json``."""
    configuration = {
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    return File(
        ns=node.ns,
        path="/etc/cni/net.d/10-flannel.conflist",
        content=json.dumps(configuration, indent=2) + "\n",
        component="kube-flannel manifest",
        why="tells the kubelet's runtime which plugins wire a pod",
    )


# -- netfilter --------------------------------------------------------------------------------------------------


def _bridge_sees_iptables(node: Node, families: tuple[Family, ...]) -> Iterator[Sysctl]:
    for family in families:
        program = "iptables" if family == 4 else "ip6tables"
        yield Sysctl(
            ns=node.ns,
            name=f"net/bridge/bridge-nf-call-{program}",
            value="1",
            component="kubelet requirement",
            why=f"frames between pods on cni0 pass {program}: Services work on one node too",
        )


def _forward_rules(cluster: Cluster, node: Node, family: Family) -> IptablesRules:
    network = of_family(cluster.topology.pod_cidrs, family)
    comment = ("-m", "comment", "--comment", "flanneld forward")
    return IptablesRules(
        ns=node.ns,
        family=family,
        table="filter",
        owner="flannel",
        chains=(
            Chain(
                "FLANNEL-FWD",
                (
                    Rule(("-s", network, *comment, "-j", "ACCEPT"), "from pods, whatever FORWARD's policy is"),
                    Rule(("-d", network, *comment, "-j", "ACCEPT"), "to pods"),
                ),
            ),
        ),
        jumps=(Jump("FORWARD", Rule((*comment, "-j", "FLANNEL-FWD"), "routed packets")),),
        component=FLANNELD,
        why="lets the cluster network through a node whose FORWARD policy is DROP",
    )


def _masquerade_rules(cluster: Cluster, node: Node, family: Family) -> IptablesRules:
    network = of_family(cluster.topology.pod_cidrs, family)
    subnet = of_family(node.pod_ranges, family)
    comment = ("-m", "comment", "--comment", "flanneld masq")
    masquerade = ("-j", "MASQUERADE", "--random-fully")
    rules = (
        Rule(
            ("-m", "mark", "--mark", KUBE_PROXY_MARK, *comment, "-j", "RETURN"), "kube-proxy masquerades these itself"
        ),
        Rule(("-s", subnet, "-d", network, *comment, "-j", "RETURN"), "pod to pod keeps its source"),
        Rule(("-s", network, "-d", subnet, *comment, "-j", "RETURN"), "pod to pod keeps its source"),
        Rule(
            ("!", "-s", network, "-d", subnet, *comment, "-j", "RETURN"),
            "from outside to a pod of this node keeps its source",
        ),
        Rule(
            ("-s", network, "!", "-d", MULTICAST[family], *comment, *masquerade),
            "pod to the world leaves with the node's address",
        ),
        Rule(
            ("!", "-s", network, "-d", network, *comment, *masquerade),
            "node to a remote pod: the tunnel's address, so that the reply comes back by it",
        ),
    )
    return IptablesRules(
        ns=node.ns,
        family=family,
        table="nat",
        owner="flannel",
        chains=(Chain("FLANNEL-POSTRTG", rules),),
        jumps=(Jump("POSTROUTING", Rule((*comment, "-j", "FLANNEL-POSTRTG"), "packets that leave the node")),),
        component=FLANNELD,
        why="--ip-masq: which packets get the node's address on their way out",
    )
