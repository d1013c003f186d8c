"""kindnet, the CNI of kind's clusters and the simplest baseline there is: kindnetd, the ptp and host-local plugins.

The path of a packet from pod A on n1 to pod B on n2::

    pod A            node n1                              node n2              pod B
    eth0 ── veth… ── route /24 ── eth0 ═══ eth0 ── route /32 ── veth… ── eth0
                     via n2                        scope host

There is no bridge, no tunnel, no routing daemon: a cable for each pod, a route for each pod, a route for each other
node. The node has the gateway's address, 10.244.n.1, on every cable, so it answers the pods' ARP itself.

Sources: kubernetes-sigs/kind images/kindnetd (cni.go, routes.go), aojea/kindnet cmd/kindnetd/routes.go,
kubernetes-sigs/kindnet pkg/masq/masq.go; containernetworking/plugins plugins/main/ptp/ptp.go, pkg/ip/route_linux.go.
Network policies are :mod:`emulator.policy.kindnet`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.limits import check_distinct, check_nodes
from emulator.cni.segments import strangers
from emulator.cni.style import Plain, Style
from emulator.cni.styles import pick_mode
from emulator.cni.wiring import network_configuration, pod_namespace
from emulator.errors import UserError
from emulator.plan.addressing import (
    default_route,
    digest,
    families_of,
    family_of,
    first_address,
    host_prefix,
    of_family,
    prefix_length,
    stable_mac,
)
from emulator.plan.model import Address, AnyObject, File, NftTable, Route, Veth
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.policy.kindnet_rules import KINDNETD, Way, rules

PTP_PLUGIN = "ptp plugin"
HOST_LOCAL = "host-local plugin"

PTP = "ptp"
TABLE = "kindnet-ipmasq"  # masq.go: tableName


def load(mode: str) -> Kindnet:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Kindnet(mode=pick_mode("kindnet", mode, {"": PTP, PTP: PTP}))


@dataclass(frozen=True)
class Kindnet(Plain):
    """kindnet as kind ships it: the ptp plugin for pods, plain routes between nodes. ``way`` is how the first packets
    of policed connections get to kindnetd's policy agent."""

    mode: str
    name: str = "kindnet"
    way: Way = "nft"

    @property
    def title(self) -> str:
        return "kindnet"

    @property
    def stand_in(self) -> str:
        from emulator.policy.kindnet import STAND_INS

        return STAND_INS[self.way]

    @property
    def requires(self) -> tuple[str, ...]:
        return ("veth", "nft-program", "nft-nat", "nft-fib")

    def adapted(self, lacking: Callable[[Sequence[str]], Collection[str]]) -> Style:
        """With iptables' NFQUEUE where nftables has no ``queue``; without policies where there is neither."""
        from emulator.policy.kindnet import REQUIRED

        ways: tuple[Way, ...] = ("nft", "iptables")
        way: Way = next((each for each in ways if not lacking(REQUIRED[each])), "none")
        return cast("Style", replace(self, way=way))

    def enforcer(self, mode: PolicyMode) -> Enforcer | None:
        """kube-network-policies, which kindnetd has inside."""
        from emulator.policy.kindnet import load

        return load(mode, self.way)

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """A /24 (IPv6: /64) of the cluster network for each node; .1 is the gateway, on every pod's cable."""
        return address_managers.HostLocal(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        check_nodes(self.name, cluster, lambda node: node.mtu)
        check_distinct(self.name, cluster)
        if pair := strangers(cluster.nodes, cluster.topology.pod_cidrs):
            raise UserError(
                f"kindnet needs all nodes on one L2 segment, and {pair[0].name} and {pair[1].name} share none: "
                "kindnetd routes to another node's pods by that node's own address",
                hint="use a style with tunnels, such as flannel:vxlan, or put the nodes on one switch",
            )

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        yield _cni_configuration(node)
        for peer in cluster.nodes:
            if peer.name == node.name:
                continue
            for subnet in peer.pod_ranges:
                yield Route(
                    ns=node.ns,
                    destination=subnet,
                    via=of_family(peer.addresses, family_of(subnet)),
                    device=node.device,
                    component=KINDNETD,
                    why=f"podCIDR of {peer.name}, which is on this link: no encapsulation",
                )
        yield _masquerading(cluster, node)
        yield from rules(node, (), families_of(cluster.topology.pod_cidrs), self.way)

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        host_end = f"veth{digest(pod.key, 8)}"
        yield from pod_namespace(cluster, pod)
        yield Veth(
            ns=pod.ns,
            name="eth0",
            mtu=node.mtu,
            mac=stable_mac(f"pod {pod.key}"),
            peer_ns=node.ns,
            peer=host_end,
            peer_mac=stable_mac(f"veth {pod.key}"),
            component=PTP_PLUGIN,
            why="the pod's interface",
            peer_why=f"host end of {pod.key}",
        )
        for address in pod.addresses:
            yield from _ends(node, pod, host_end, address)


def _ends(node: Node, pod: Pod, host_end: str, address: str) -> Iterator[AnyObject]:
    """The addresses and routes of both ends of the cable, for one of the pod's addresses."""
    family = family_of(address)
    subnet = of_family(node.pod_ranges, family)
    gateway = first_address(subnet, 1)
    yield Address(
        ns=pod.ns,
        device="eth0",
        address=f"{address}/{prefix_length(subnet)}",
        prefix_route=False,
        component=HOST_LOCAL,
        why=f"from the node's podCIDR {subnet}; ptp deletes the route that comes with it: the link holds one neighbour",
    )
    yield Route(
        ns=pod.ns,
        destination=host_prefix(gateway),
        device="eth0",
        scope="link",
        source=address,
        component=PTP_PLUGIN,
        why="the gateway is at the other end of the cable",
    )
    yield Route(
        ns=pod.ns,
        destination=subnet,
        via=gateway,
        device="eth0",
        source=address,
        component=PTP_PLUGIN,
        why="pods of this node too are behind the gateway: the node routes between them",
    )
    yield Route(
        ns=pod.ns,
        destination=default_route(family),
        via=gateway,
        device="eth0",
        component=PTP_PLUGIN,
        why="everything else goes to the node too",
    )
    yield Address(
        ns=node.ns,
        device=host_end,
        address=host_prefix(gateway),
        component=PTP_PLUGIN,
        why="the pods' gateway, the same on every cable; the source of node to local pod",
    )
    yield Route(
        ns=node.ns,
        destination=host_prefix(address),
        device=host_end,
        # AddHostRoute; IPv6 routes have no scope.
        scope="host" if family == 4 else "global",
        component=PTP_PLUGIN,
        why=f"to {pod.key}",
    )


# -- the rest of a node -----------------------------------------------------------------------------------------


def _cni_configuration(node: Node) -> File:
    """kindnetd's template (cni.go), filled in for this node."""
    families = families_of(node.pod_ranges)
    configuration = {
        "cniVersion": "0.3.1",
        "name": "kindnet",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam-state",
                    "routes": [{"dst": default_route(family)} for family in families],
                    "ranges": [[{"subnet": subnet}] for subnet in node.pod_ranges],
                },
                "mtu": node.mtu,
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    return network_configuration(node, "10-kindnet", configuration, KINDNETD)


def _masquerading(cluster: Cluster, node: Node) -> NftTable:
    """The table of masq.go. Both sets are there, whatever families the cluster has."""
    lines = []
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        cidrs = [cidr for cidr in cluster.topology.pod_cidrs if family_of(cidr) == version]
        elements = [f"elements = {{ {', '.join(cidrs)} }}"] if cidrs else []
        lines += [
            f"set noMasqV{version} {{",
            *(f"    {line}" for line in (f"type {kind}", "flags interval", "auto-merge", *elements)),
            "}",
        ]
    lines += [
        "chain postrouting {",
        "    type nat hook postrouting priority srcnat - 10; policy accept;",
        "    ct state established,related accept",
        "    fib daddr type local accept",
        "    ip daddr @noMasqV4 accept",
        "    ip6 daddr @noMasqV6 accept",
        "    masquerade",
        "}",
    ]
    return NftTable(
        ns=node.ns,
        family="inet",
        name=TABLE,
        body="\n".join(lines),
        component=KINDNETD,
        why="what leaves for anything but pods or this node itself gets the node's address",
    )
