"""Calico: its CNI plugin and Felix on every node, and BIRD, VXLAN or IPIP between nodes.

The path of a packet from pod A on n1 to pod B on n2, without encapsulation (``bgp``)::

    pod A                 node n1                             node n2                 pod B
    eth0 ── cali… (proxy ARP) ── route /26 ── eth0 ═══ eth0 ── route /32 ── cali… ── eth0
             ee:ee:ee:ee:ee:ee   via n2, proto bird            scope link

With VXLAN and IPIP there is a tunnel device before eth0 on either side (``emulator.cni.calico_tunnels``).

Nothing is bridged: a pod has a /32 and believes that everything is behind 169.254.1.1, whose MAC the node answers
for. The mode is that of the default pools; IPPool, BGPConfiguration, BGPPeer and Node resources among the cluster's
objects say everything else (``emulator.cni.calico_settings``).

Sources: projectcalico/calico cni-plugin/pkg/dataplane/linux/dataplane_linux.go, felix/dataplane/linux
(endpoint_mgr.go, int_dataplane.go), manifests/calico.yaml, confd templates (``emulator.routing.bird``),
felix/rules (``emulator.cni.felix``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Machine, Node, Pod, Topology
from emulator.cni.calico_addresses import check_conflicts, detected
from emulator.cni.calico_bgp import borrowed_routes, check_reachable, node_bgp, router_bgp
from emulator.cni.calico_ipam import CalicoIpam
from emulator.cni.calico_node import cni_configuration, felix_title, judged_tables, pool_sets
from emulator.cni.calico_pods import wire_pod, workload_endpoints
from emulator.cni.calico_reading import read_settings
from emulator.cni.calico_services import announcing
from emulator.cni.calico_settings import Encapsulation, Settings
from emulator.cni.calico_tunnels import IPIP_DEVICE, VXLAN_DEVICE, is_borrowed, pod_mtu, route_to_block, tunnels
from emulator.cni.felix import Tunnelling, iptables_tables
from emulator.cni.felix_configuration import with_nftables
from emulator.cni.felix_nftables import nft_table
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

BGP = "bgp"
MODES: dict[str, tuple[str, Encapsulation]] = {
    BGP: ("Calico · BGP", Encapsulation()),
    "vxlan": ("Calico · VXLAN", Encapsulation(vxlan="Always")),
    "vxlan-crosssubnet": ("Calico · VXLAN, CrossSubnet", Encapsulation(vxlan="CrossSubnet")),
    "ipip": ("Calico · IPIP", Encapsulation(ipip="Always")),
    "ipip-crosssubnet": ("Calico · IPIP, CrossSubnet", Encapsulation(ipip="CrossSubnet")),
}


def modes() -> tuple[str, ...]:
    """The modes that there are, the default one first."""
    return tuple(MODES)


def load(mode: str) -> Calico:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Calico(mode=pick_mode("calico", mode, {"": BGP, **{name: name for name in MODES}}))


_latest: list[tuple[Cluster, Encapsulation, Settings]] = []  # of the last cluster: every node and pod asks for them
_checked: list[tuple[Calico, Cluster]] = []  # the last cluster that nothing was wrong with


@dataclass(frozen=True)
class Calico(Plain):
    """Calico; ``mode`` is the encapsulation of the pools that exist without a manifest, ``proxy`` the mode of the
    kube-proxy that the user put beside it, which Felix goes by."""

    mode: str
    name: str = "calico"
    proxy: ProxyMode | None = None

    @property
    def title(self) -> str:
        return MODES[self.mode][0]

    @property
    def requires(self) -> tuple[str, ...]:
        kind = self._default.kind
        tunnel = (kind,) if kind else ()
        bird = () if kind == "vxlan" else ("bird",)
        return ("veth", *tunnel, *requires_of(self.proxy), *bird)

    @property
    def stand_in(self) -> str:
        return "" if self._default.kind == "vxlan" else "BIRD 2 for Calico's fork of BIRD 1.6"

    @property
    def _default(self) -> Encapsulation:
        return MODES[self.mode][1]

    def beside(self, proxy: ProxyMode) -> Calico:
        return replace(self, proxy=proxy)

    def settings(self, cluster: Cluster) -> Settings:
        """What the cluster's Calico resources say, of a cluster as calico-node sees it. Raises ManifestError."""
        if _latest and _latest[0][1] == self._default and _told_alike(_latest[0][0], cluster):
            found = _latest[0][2]
        else:
            found = read_settings(cluster.objects, cluster.nodes, cluster.topology.pod_cidrs, self._default)
        _latest[:] = [(cluster, self._default, found)]
        return found

    def speaks_bgp(self, cluster: Cluster) -> str:
        return "Calico's BIRD" if self.settings(cluster).runs_bird else ""

    def advertised(self, cluster: Cluster) -> object:
        """The CIDRs of Services, with the nodes that announce them."""
        return announcing(cluster, self.settings(cluster).services)

    def shared(self, cluster: Cluster) -> object:
        """Pods depend on the pools and the nodes' interfaces (their MTU), and on the peerings and the nodes' addresses
        (who hears of a borrowed address)."""
        cluster = detected(cluster)
        return self.settings(cluster), tuple((node.mtu, node.addresses) for node in cluster.nodes)

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """Blocks of 64 addresses with affinity to a node, unless IPPools say otherwise."""
        return CalicoIpam(topology.pod_cidrs, self._default)

    def check(self, cluster: Cluster) -> None:
        cluster = detected(cluster)
        if _checked and _checked[0][0] == self and _told_alike(_checked[0][1], cluster):
            return
        settings = self.settings(cluster)
        check_nodes(self.name, cluster, lambda node: pod_mtu(settings, node))
        if 6 in families_of(cluster.topology.pod_cidrs) and self._default.kind == "ipip":
            raise UserError(
                f"calico:{self.mode} carries IPv4 only: IP-in-IP has no room for IPv6",
                hint="use calico or calico:vxlan, or a topology with IPv4 pod CIDRs alone",
            )
        with_nftables(cluster, self.proxy)
        check_conflicts(cluster)
        check_reachable(cluster, settings)
        _checked[:] = [(self, cluster)]

    def enforcer(self, mode: PolicyMode) -> Felix:
        return Felix(_Tables(self), mode)

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        cluster = detected(cluster)
        node = cluster.node(node.name)
        settings, families = self.settings(cluster), families_of(cluster.topology.pod_cidrs)
        yield cni_configuration(node, self.name, mtu=0, ipam={"type": "calico-ipam"}, bandwidth=True)
        nftables = node.name in with_nftables(cluster, self.proxy)
        sets: dict[Family, list[IpSet]] = {}
        for family in families:
            made = [*_ip_pools(node, settings, family), *tunnels(cluster, node, settings, family)]
            sets[family] = [item for item in made if isinstance(item, IpSet)]
            yield from (item for item in made if not (nftables and isinstance(item, IpSet)))
        judging = Judging(workload_endpoints(cluster, node))
        for family in families:
            tunnelling = _tunnelling(node, settings, family)
            if nftables:
                yield nft_table(node.ns, family, judging, sets[family], tunnelling)
            else:
                yield from iptables_tables(node.ns, family, judging, tunnelling)
        if settings.runs_bird:
            yield from node_bgp(cluster, node, settings)

    def router(self, cluster: Cluster, router: Machine) -> Iterable[AnyObject]:
        cluster = detected(cluster)
        settings = self.settings(cluster)
        return router_bgp(cluster, router, settings) if settings.runs_bird else ()

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        cluster = detected(cluster)
        node = cluster.node(node.name)
        settings = self.settings(cluster)
        yield from wire_pod(cluster, node, pod, mtu=pod_mtu(settings, node), ipam="calico-ipam")
        for address in pod.addresses:
            if is_borrowed(node, address):
                yield from _borrowed(cluster, node, pod, address, settings)


@dataclass(frozen=True)
class _Tables:
    """The tables of a node, for Felix to put policies into."""

    style: Calico

    def title(self, cluster: Cluster | None) -> str:
        return felix_title(cluster, self.style.proxy)

    @property
    def requires(self) -> tuple[str, ...]:
        return requires_of(self.style.proxy)

    def inputs(self, cluster: Cluster) -> object:
        cluster = detected(cluster)
        return self.style.settings(cluster), with_nftables(cluster, self.style.proxy)

    def families(self, cluster: Cluster) -> tuple[Family, ...]:
        return tuple(families_of(cluster.topology.pod_cidrs))

    def judged(
        self, cluster: Cluster, node: Node, family: Family, judging: Judging, *, own_node: bool
    ) -> Iterator[AnyObject]:
        settings = self.style.settings(cluster)
        found = (item for item in tunnels(cluster, node, settings, family) if isinstance(item, IpSet))
        return judged_tables(
            node,
            family,
            judging,
            chain(_ip_pools(node, settings, family), found),
            _tunnelling(node, settings, family),
            nftables=node.name in with_nftables(cluster, self.style.proxy),
            own_node=own_node,
        )


def _told_alike(old: Cluster, new: Cluster) -> bool:
    """Whether two clusters differ in their pods alone."""
    return old is new or (old.objects is new.objects and old.topology is new.topology and old.nodes == new.nodes)


def requires_of(proxy: ProxyMode | None) -> tuple[str, ...]:
    """What Felix needs beside that kube-proxy, where no FelixConfiguration says otherwise."""
    if proxy == "nftables":
        return ("nft-program", "nft-nat", "nft-fib")
    return ("iptables", "iptables-restore", "ipset", "ipset-program")


def _borrowed(cluster: Cluster, node: Node, pod: Pod, address: str, settings: Settings) -> Iterator[AnyObject]:
    """How others reach an address of another node's block: by a route to it alone, which wins as the longer prefix."""
    length = 128 if ":" in address else 32
    what = f"{pod.key} on {node.name}: an address borrowed from another node's block"
    for other in cluster.nodes:
        if other.name != node.name:
            yield from route_to_block(other, node, f"{address}/{length}", settings, what)
    if settings.runs_bird:
        yield from borrowed_routes(cluster, node, address, pod.key, settings)


# -- the rest of a node -----------------------------------------------------------------------------------------


def _tunnelling(node: Node, settings: Settings, family: Family) -> Tunnelling:
    devices = [IPIP_DEVICE] if family == 4 else []
    return Tunnelling(
        ipip=family == 4 and settings.uses("ipip", 4),
        vxlan=settings.uses("vxlan", family),
        devices=tuple(device for device in (*devices, VXLAN_DEVICE[family]) if device in node.tunnels),
        nat_outgoing=any(pool.nat_outgoing for pool in settings.of_family(family)),
    )


def _ip_pools(node: Node, settings: Settings, family: Family) -> Iterator[IpSet]:
    pools = settings.of_family(family)
    masqueraded = [pool.cidr for pool in pools if pool.nat_outgoing]
    every = [pool.cidr for pool in pools]
    return pool_sets(node, family, masqueraded=masqueraded, every=every, why="IP pools with natOutgoing")
