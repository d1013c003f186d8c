"""Canal: Flannel's network between the nodes, Calico's pods and rules on them.

The path of a packet from pod A on n1 to pod B on n2::

    pod A                 node n1                                  node n2                 pod B
    eth0 ── cali… (proxy ARP) ── flannel.1 ─┐        ┌─ flannel.1 ── route /32 ── cali… ── eth0
             ee:ee:ee:ee:ee:ee            eth0 ════ eth0
                                      UDP 8472, VNI 1: +50 bytes

Two deployments in one, neither changed: flanneld with its vxlan backend, and calico-node without BIRD
(``CALICO_NETWORKING_BACKEND=none``). Addresses come from the node's podCIDR by host-local, so there are no blocks.

Sources: projectcalico/calico manifests/canal.yaml, node/pkg/lifecycle/startup/startup.go (configureIPPools);
``emulator.cni.flannel_network``, ``emulator.cni.calico_pods``, ``emulator.cni.felix``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.calico_node import cni_configuration, felix_title, judged_tables, pool_sets
from emulator.cni.calico_pods import wire_pod, workload_endpoints
from emulator.cni.felix import NO_TUNNELS, iptables_tables
from emulator.cni.felix_configuration import with_nftables
from emulator.cni.felix_nftables import nft_table
from emulator.cni.flannel_interface import Seen, seen
from emulator.cni.flannel_network import (
    VXLAN_OVERHEAD,
    forward_rules,
    masquerade_rules,
    subnet_file,
    tunnel_to,
    vtep,
)
from emulator.cni.limits import check_nodes
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.errors import UserError
from emulator.plan.addressing import families_of
from emulator.plan.model import AnyObject, Family, IpSet
from emulator.policy.enforcer import PolicyMode
from emulator.policy.felix import Felix
from emulator.policy.felix_tables import Judging
from emulator.proxy.model import ProxyMode

VXLAN = "vxlan"
DAEMON_SET = "canal"
CONFIG_MAP = ("ConfigMap", "canal-config", "kube-system")


def load(mode: str) -> Canal:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Canal(mode=pick_mode("canal", mode, {"": VXLAN, VXLAN: VXLAN}))


@dataclass(frozen=True)
class Canal(Plain):
    """Canal as its manifest sets it up, with Flannel's vxlan backend."""

    mode: str
    name: str = "canal"
    proxy: ProxyMode | None = None  # the mode of the kube-proxy that the user put beside it

    @property
    def title(self) -> str:
        return "Canal"

    @property
    def requires(self) -> tuple[str, ...]:
        felix = ("nft-program", "nft-nat", "nft-fib") if self.proxy == "nftables" else ("ipset", "ipset-program")
        return ("veth", "vxlan", "iptables", "iptables-restore", *felix)  # flanneld's rules are in iptables always

    def beside(self, proxy: ProxyMode) -> Canal:
        return replace(self, proxy=proxy)

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """A /24 of the cluster network for each node; .1 stays free, since host-local takes it for a gateway."""
        return address_managers.HostLocal(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        if 6 in families_of(cluster.topology.pod_cidrs):
            raise UserError(
                "canal carries IPv4 pods only: its manifest switches IPv6 off in Felix (FELIX_IPV6SUPPORT)",
                hint="use flannel or calico, or a topology with IPv4 pod CIDRs alone",
            )
        with_nftables(cluster, self.proxy)
        check_nodes(self.name, _seen(cluster).told, _pod_mtu)

    def shared(self, cluster: Cluster) -> object:
        """Pods depend on the interface that flanneld takes: it decides their MTU."""
        return tuple(node.mtu for node in _seen(cluster).told.nodes)

    def enforcer(self, mode: PolicyMode) -> Felix:
        return Felix(_Tables(self), mode)

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        found = _seen(cluster)
        cluster, node = found.told, found.own[node.name]
        yield from subnet_file(cluster, node, _pod_mtu(node))
        ipam = {"type": "host-local", "subnet": "usePodCidr"}
        yield cni_configuration(node, self.name, mtu=_pod_mtu(node), ipam=ipam, bandwidth=False)
        yield from vtep(node, 4)
        for peer in cluster.nodes:
            if peer.name != node.name:
                yield from tunnel_to(node, peer, 4)
        yield forward_rules(cluster, node, 4)
        yield masquerade_rules(cluster, node, 4)
        judging = Judging(workload_endpoints(cluster, node))
        if node.name in with_nftables(cluster, self.proxy):
            yield nft_table(node.ns, 4, judging, _ip_pool(cluster, node))
        else:
            yield from _ip_pool(cluster, node)
            yield from iptables_tables(node.ns, 4, judging)

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        node = _seen(cluster).own[node.name]
        yield from wire_pod(cluster, node, pod, mtu=_pod_mtu(node), ipam="host-local plugin")


def _seen(cluster: Cluster) -> Seen:
    """The interfaces that flanneld takes: its container is part of the DaemonSet ``canal``, and its variable
    ``FLANNELD_IFACE`` is the key ``canal_iface`` of the ConfigMap ``canal-config``."""
    for obj in cluster.objects:
        metadata = obj.get("metadata", {})
        if (obj.get("kind"), metadata.get("name"), metadata.get("namespace")) == CONFIG_MAP:
            iface = (obj.get("data") or {}).get("canal_iface")
            if isinstance(iface, str) and iface:
                return seen(cluster, DAEMON_SET, {"FLANNELD_IFACE": iface})
    return seen(cluster, DAEMON_SET)


@dataclass(frozen=True)
class _Tables:
    """The tables of a node, for Felix to put policies into."""

    style: Canal

    def title(self, cluster: Cluster | None) -> str:
        return felix_title(cluster, self.style.proxy)

    @property
    def requires(self) -> tuple[str, ...]:
        return self.style.requires[2:]

    def inputs(self, cluster: Cluster) -> object:
        return with_nftables(cluster, self.style.proxy)

    def families(self, cluster: Cluster) -> tuple[Family, ...]:
        return (4,)

    def judged(
        self, cluster: Cluster, node: Node, family: Family, judging: Judging, *, own_node: bool
    ) -> Iterator[AnyObject]:
        there = node.name in with_nftables(cluster, self.style.proxy)
        pool = _ip_pool(cluster, node)
        return judged_tables(node, family, judging, pool, NO_TUNNELS, nftables=there, own_node=own_node)


def _pod_mtu(node: Node) -> int:
    """``veth_mtu`` of the manifest: what fits through Flannel's tunnel."""
    return node.mtu - VXLAN_OVERHEAD[4]


def _ip_pool(cluster: Cluster, node: Node) -> Iterator[IpSet]:
    """The pool that calico-node makes when it finds none, although no address is taken from it: kubeadm's pod network,
    with natOutgoing. So Felix masquerades, before flanneld's rules come to it."""
    pool = cluster.topology.pod_cidrs
    return pool_sets(node, 4, masqueraded=pool, every=pool, why="default-ipv4-ippool, with natOutgoing")
