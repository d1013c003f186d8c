"""Flannel between the nodes: what flanneld does whoever wires the pods, the bridge plugin or Calico's (Canal).

Sources: flannel-io/flannel pkg/backend/vxlan (vxlan.go, vxlan_network.go, device.go), pkg/backend/hostgw,
pkg/trafficmngr/iptables/iptables.go, pkg/subnet.
"""

from __future__ import annotations

from collections.abc import Iterator

from emulator.cluster.model import Cluster, Node
from emulator.cni.flannel_settings import OVERHEAD, Settings
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
    NftTable,
    Route,
    Rule,
    Sysctl,
    Vxlan,
)

FLANNELD = "flanneld"

VXLAN_OVERHEAD = OVERHEAD["vxlan"]
DEFAULT = Settings()
KUBE_PROXY_MARK = "0x4000/0x4000"  # trafficmngr.KubeProxyMark
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


# -- devices and routes to the other nodes ----------------------------------------------------------------------


def vtep_device(family: Family, settings: Settings = DEFAULT) -> str:
    """``flannel.1``, or ``flannel-v6.1``: VXLAN over IPv6 is a device of its own."""
    return f"flannel.{settings.vni}" if family == 4 else f"flannel-v6.{settings.vni}"


def vtep_mac(node: Node, family: Family, settings: Settings = DEFAULT) -> str:
    """flanneld takes a random MAC, and keeps it in the node's annotation ``backend-data``."""
    return stable_mac(f"{vtep_device(family, settings)} {node.name}")


def vtep_address(node: Node, family: Family) -> str:
    """The base of the node's subnet: ``10.244.1.0``."""
    return first_address(of_family(node.pod_ranges, family), 0)


def vtep(node: Node, family: Family, settings: Settings = DEFAULT) -> Iterator[AnyObject]:
    device = vtep_device(family, settings)
    yield Vxlan(
        ns=node.ns,
        name=device,
        vni=settings.vni,
        port=settings.port,
        local=of_family(node.addresses, family),
        underlay=node.device,
        learning=settings.learning,
        mtu=settings.device_mtu(node.mtu, family),
        mac=vtep_mac(node, family, settings),
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


def tunnel_to(node: Node, peer: Node, family: Family, settings: Settings = DEFAULT) -> Iterator[AnyObject]:
    """What flanneld writes when it sees another node's lease, in its order: the route last, or the kernel would ARP."""
    device = vtep_device(family, settings)
    address, mac = vtep_address(peer, family), vtep_mac(peer, family, settings)
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


def route_by_node(node: Node, peer: Node, family: Family) -> Iterator[Route]:
    """None to a peer that claims this node's own address: the kernel takes no route by that, and flanneld logs it."""
    if of_family(peer.addresses, family) in node.addresses:
        return
    yield Route(
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


def nftables_rules(cluster: Cluster, node: Node, family: Family) -> NftTable:
    """The same in nftables (EnableNFTables), but for the fourth rule: as upstream has it, its test of the source is
    turned round, so that nothing which a node sends into the cluster network is masqueraded (trafficmngr/nftables)."""
    network, subnet = of_family(cluster.topology.pod_cidrs, family), of_family(node.pod_ranges, family)
    ip = "ip" if family == 4 else "ip6"
    lines = [
        "chain forward {",
        '    comment "chain to accept flannel traffic"',
        "    type filter hook forward priority filter; policy accept;",
        f"    {ip} saddr {network} accept",
        f"    {ip} daddr {network} accept",
        "}",
        "chain postrtg {",
        '    comment "chain to manage traffic masquerading by flannel"',
        "    type nat hook postrouting priority srcnat; policy accept;",
        "    meta mark 0x4000 return",
        f"    {ip} saddr {subnet} {ip} daddr {network} return",
        f"    {ip} saddr {network} {ip} daddr {subnet} return",
        f"    {ip} saddr != {subnet} {ip} daddr {network} return",
        f"    {ip} saddr {network} {ip} daddr != {MULTICAST[family]} masquerade fully-random",
        f"    {ip} saddr != {network} {ip} daddr {network} masquerade fully-random",
        "}",
    ]
    return NftTable(
        ns=node.ns,
        family="ip" if family == 4 else "ip6",
        name=f"flannel-ipv{family}",
        body="\n".join(lines),
        component=FLANNELD,
        why="lets the cluster network through, and gives what leaves it the node's address (--ip-masq)",
    )
