"""Flannel between the nodes: what flanneld does whoever wires the pods, the bridge plugin or Calico's (Canal).

Sources: flannel-io/flannel pkg/backend/vxlan (vxlan.go, vxlan_network.go, device.go), pkg/backend/hostgw,
pkg/trafficmngr/iptables/iptables.go, pkg/subnet.
"""

from __future__ import annotations

from collections.abc import Iterator

from emulator.cluster.model import Cluster, Node
from emulator.plan.addressing import first_address, host_prefix, of_family, prefix_length, stable_mac
from emulator.plan.model import (
    Address,
    AnyObject,
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
    Vxlan,
)

FLANNELD = "flanneld"

VNI = 1  # vxlan.go: defaultVNI
PORT = 8472  # UDP; the configuration's 0 means the kernel's own default (drivers/net/vxlan)
VXLAN_OVERHEAD = {
    4: 50,  # bytes: 14 inner Ethernet + 20 IPv4 + 8 UDP + 8 VXLAN (RFC 7348)
    6: 70,  # 40 IPv6 in place of 20
}
KUBE_PROXY_MARK = "0x4000/0x4000"  # trafficmngr.KubeProxyMark
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


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


def vtep(node: Node, family: Family) -> Iterator[AnyObject]:
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


def tunnel_to(node: Node, peer: Node, family: Family) -> Iterator[AnyObject]:
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


def route_by_node(node: Node, peer: Node, family: Family) -> Route:
    return Route(
        ns=node.ns,
        destination=of_family(peer.pod_ranges, family),
        via=of_family(peer.addresses, family),
        device=node.device,
        component=FLANNELD,
        why=f"pods of {peer.name}, which is on this link: no encapsulation",
    )


# -- files ------------------------------------------------------------------------------------------------------


def subnet_file(cluster: Cluster, node: Node, mtu: int) -> Iterator[File]:
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


# -- netfilter --------------------------------------------------------------------------------------------------


def forward_rules(cluster: Cluster, node: Node, family: Family) -> IptablesRules:
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


def masquerade_rules(cluster: Cluster, node: Node, family: Family) -> IptablesRules:
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
