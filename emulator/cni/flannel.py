"""Flannel: flanneld, its CNI plugin, and the bridge and host-local plugins that this one calls.

The path of a packet from pod A on n1 to pod B on n2, backend vxlan::

    pod A              node n1                                  node n2                  pod B
    eth0 ── veth… ─ cni0 ── (route) ── flannel.1 ─┐        ┌─ flannel.1 ── cni0 ─ veth… ── eth0
                                                eth0 ════ eth0
                                            UDP 8472, VNI 1: +50 bytes

With ``host-gw`` (and, with DirectRouting, between nodes of one subnet) the tunnel drops out: cni0, route, eth0. Which
interface is eth0 here is flanneld's own choice (``emulator.cni.flannel_interface``). The ConfigMap ``kube-flannel-cfg``
among the cluster's objects says which backend it is, with which numbers (``emulator.cni.flannel_settings``).

Sources: flannel-io/flannel pkg/backend/vxlan (vxlan.go, vxlan_network.go, device.go), pkg/backend/hostgw,
pkg/trafficmngr/iptables/iptables.go, Documentation/kube-flannel.yml; flannel-io/cni-plugin flannel_linux.go;
containernetworking/plugins plugins/main/bridge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.bridge_plugin import bridged_pod, gateway_bridge
from emulator.cni.flannel_interface import seen
from emulator.cni.flannel_network import (
    forward_rules,
    masquerade_rules,
    nftables_rules,
    route_by_node,
    subnet_file,
    tunnel_to,
    vtep,
)
from emulator.cni.flannel_relay import ipip_device, ipip_route, udp_backend
from emulator.cni.flannel_settings import UDP_PORT, WIREGUARD_PORT, Settings, read_settings
from emulator.cni.flannel_wireguard import check_wireguard, wireguard_backend
from emulator.cni.limits import check_nodes
from emulator.cni.segments import share_subnet, strangers
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.cni.wiring import network_configuration
from emulator.errors import UserError
from emulator.plan.addressing import (
    families_of,
    first_address,
    of_family,
)
from emulator.plan.model import (
    AnyObject,
    Family,
    File,
    Route,
    Sysctl,
)

MODES: dict[str, tuple[str, Settings]] = {
    "vxlan": ("Flannel · vxlan", Settings()),
    "vxlan-directrouting": ("Flannel · vxlan, DirectRouting", Settings(direct=True)),
    "vxlan-nftables": ("Flannel · vxlan, nftables", Settings(nftables=True)),
    "host-gw": ("Flannel · host-gw", Settings("host-gw")),
    "udp": ("Flannel · udp (stand-in proxy)", Settings("udp", port=UDP_PORT)),
    "ipip": ("Flannel · ipip", Settings("ipip")),
    "ipip-directrouting": ("Flannel · ipip, DirectRouting", Settings("ipip", direct=True)),
    "wireguard": ("Flannel · wireguard", Settings("wireguard", port=WIREGUARD_PORT)),
    "wireguard-go": (
        "Flannel · wireguard (wireguard-go, a stand-in)",
        Settings("wireguard", port=WIREGUARD_PORT, userspace=True),
    ),
}
SPELLINGS = {"": "vxlan", **{mode: mode for mode in MODES}, "directrouting": "vxlan-directrouting"}
FALLBACKS = {"wireguard": "wireguard-go"}  # taken where the machine lacks what the mode requires
# What a backend needs of the kernel, and of the machine.
KERNEL = {"vxlan": ("vxlan",), "host-gw": (), "udp": ("tun",), "ipip": ("ipip",), "wireguard": ("wireguard",)}
USERSPACE = ("tun", "wireguard-go")


def modes() -> tuple[str, ...]:
    """The modes that there are, as people spell them, the default one first."""
    own = (mode for mode in MODES if mode not in FALLBACKS.values())
    return tuple("directrouting" if mode == "vxlan-directrouting" else mode for mode in own)


def load(mode: str) -> Flannel:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Flannel(mode=pick_mode("flannel", mode, SPELLINGS))


# Of the last cluster's objects: every node and pod asks for them
_latest: list[tuple[object, tuple[str, tuple[str, ...]], Settings]] = []


@dataclass(frozen=True)
class Flannel(Plain):
    """Flannel; ``mode`` is the backend where no ConfigMap ``kube-flannel-cfg`` names one."""

    mode: str
    name: str = "flannel"

    @property
    def title(self) -> str:
        return MODES[self.mode][0]

    @property
    def unpoliced(self) -> str:
        return "flanneld has no policies; Canal is flannel with Calico's"

    @property
    def requires(self) -> tuple[str, ...]:
        settings = MODES[self.mode][1]
        rules = ("nft", "nft-nat", "nft-program") if settings.nftables else ("iptables", "iptables-restore")
        carrier = USERSPACE if settings.userspace else KERNEL[settings.backend]
        return ("veth", "bridge", *carrier, *rules, "bridge-nf")

    @property
    def stand_in(self) -> str:
        settings = MODES[self.mode][1]
        if settings.userspace:
            return "wireguard-go, a process, for the kernel's WireGuard"
        return "a proxy of cnilab's for flanneld's" if settings.backend == "udp" else ""

    @property
    def fallback(self) -> str:
        return f"flannel:{FALLBACKS[self.mode]}" if self.mode in FALLBACKS else ""

    def settings(self, cluster: Cluster) -> Settings:
        """What the ConfigMap says, or the mode. Raises ManifestError."""
        key = (self.mode, cluster.topology.pod_cidrs)
        if not (_latest and _latest[0][0] is cluster.objects and _latest[0][1] == key):
            found = read_settings(cluster.objects, cluster.topology.pod_cidrs, MODES[self.mode][1])
            _latest[:] = [(cluster.objects, key, found)]
        return _latest[0][2]

    def shared(self, cluster: Cluster) -> object:
        """Pods depend on the backend and on the node's interface: both decide their MTU."""
        return self.settings(cluster), tuple(node.mtu for node in seen(cluster).told.nodes)

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """A /24 (IPv6: /64) of the cluster network for each node, addresses from .2 on: .1 is the bridge."""
        return address_managers.HostLocal(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        settings, found = self.settings(cluster), seen(cluster)
        cluster = found.told
        check_nodes(self.name, cluster, lambda node: self._pod_mtu(cluster, node))
        if found.nat and settings.backend in ("host-gw", "ipip"):
            raise UserError(
                f"flannel:{settings.backend} does not start on node {found.nat[0]}: its public IP differs from its "
                "interface's, so that it may be behind NAT, which this backend does not support",
                hint="leave --public-ip and the annotation node-public-ip out, or use flannel:vxlan",
            )
        if settings.backend in ("udp", "ipip") and 6 in families_of(cluster.topology.pod_cidrs):
            raise UserError(
                f"flannel's backend {settings.backend} carries IPv4 only",
                hint="use flannel:vxlan or flannel:host-gw, or a topology with IPv4 pod CIDRs alone",
            )
        if settings.backend == "host-gw":
            _need_one_segment(cluster)
        if settings.backend == "wireguard":
            check_wireguard(cluster, settings)

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        found = seen(cluster)
        settings, families = self.settings(cluster), families_of(cluster.topology.pod_cidrs)
        cluster, node = found.told, found.own[node.name]
        yield from _bridge_sees_iptables(node, families)
        yield from subnet_file(cluster, node, self._pod_mtu(cluster, node))
        yield _cni_configuration(node)
        yield from gateway_bridge(node, "cni0", self._pod_mtu(cluster, node))
        yield from self._network(cluster, node, settings, families)
        for family in families:
            if settings.nftables:
                yield nftables_rules(cluster, node, family)
            else:
                yield forward_rules(cluster, node, family)
                yield masquerade_rules(cluster, node, family)

    def _network(
        self, cluster: Cluster, node: Node, settings: Settings, families: tuple[Family, ...]
    ) -> Iterator[AnyObject]:
        """What the backend makes: devices, and routes to the others."""
        if settings.backend == "udp":
            yield from udp_backend(cluster, node, settings)
            return
        if settings.backend == "wireguard":
            yield from wireguard_backend(cluster, node, settings)
            return
        for family in families:
            if settings.backend == "vxlan":
                yield from vtep(node, family, settings)
            elif settings.backend == "ipip":
                yield from ipip_device(node, settings)
        for peer in cluster.nodes:
            if peer.name == node.name:
                continue
            for family in families:
                if settings.backend == "host-gw" or (settings.direct and share_subnet(node, peer, family)):
                    yield from route_by_node(node, peer, family)
                elif settings.backend == "ipip":
                    yield from ipip_route(node, peer)
                else:
                    yield from tunnel_to(node, peer, family, settings)

    def _pod_mtu(self, cluster: Cluster, node: Node) -> int:
        return self.settings(cluster).pod_mtu(node.mtu, families_of(cluster.topology.pod_cidrs))

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        found = seen(cluster)
        cluster, node = found.told, found.own[node.name]

        def cluster_network(family: Family) -> Iterator[Route]:
            yield Route(
                ns=pod.ns,
                destination=of_family(cluster.topology.pod_cidrs, family),
                via=first_address(of_family(node.pod_ranges, family), 1),
                device="eth0",
                component="flannel plugin",
                why="the cluster network, which the flannel plugin adds to the bridge's configuration",
            )

        yield from bridged_pod(
            cluster,
            node,
            pod,
            bridge="cni0",
            mtu=self._pod_mtu(cluster, node),
            hairpin="hairpinMode: a pod can reach itself through a Service",
            more_routes=cluster_network,
        )


def _need_one_segment(cluster: Cluster) -> None:
    """host-gw makes a node the gateway of its pods: it must be a neighbour (backend/hostgw, route_network.go)."""
    if pair := strangers(cluster.nodes, cluster.topology.pod_cidrs):
        raise UserError(
            f"flannel:host-gw needs all nodes on one L2 segment, and {pair[0].name} and {pair[1].name} share none",
            hint="use flannel:vxlan, or flannel:vxlan-directrouting for tunnels between segments only",
        )


# -- files ------------------------------------------------------------------------------------------------------


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
    return network_configuration(node, "10-flannel", configuration, "kube-flannel manifest")


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
