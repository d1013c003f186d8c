"""Calico without encapsulation: its CNI plugin, Felix, and a BIRD on every node that tells the others its blocks.

The path of a packet from pod A on n1 to pod B on n2::

    pod A                 node n1                             node n2                 pod B
    eth0 ── cali… (proxy ARP) ── route /26 ── eth0 ═══ eth0 ── route /32 ── cali… ── eth0
             ee:ee:ee:ee:ee:ee   via n2, proto bird            scope link

Nothing is bridged: a pod has a /32 and believes that everything is behind 169.254.1.1, whose MAC the node answers
for. Routes to other nodes' blocks come from BGP and from nowhere else; the plan lists them as learned.

Sources: projectcalico/calico cni-plugin/pkg/dataplane/linux/dataplane_linux.go, felix/dataplane/linux
(endpoint_mgr.go, int_dataplane.go), manifests/calico.yaml, confd templates (``emulator.routing.bird``),
felix/rules (``emulator.cni.felix``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.calico_pods import FELIX, wire_pod, workload_endpoints
from emulator.cni.felix import felix_rules, ipset_name
from emulator.cni.limits import check_nodes
from emulator.cni.segments import strangers
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.errors import UserError
from emulator.plan.addressing import (
    contains,
    families_of,
    family_of,
    host_prefix,
    of_family,
)
from emulator.plan.model import (
    AnyObject,
    Daemon,
    Family,
    File,
    IpSet,
    Route,
)
from emulator.routing.bird import FamilyRouting, Speaker, bird_config, mesh_peer, router_id

BIRD = "bird"
CONFD = "confd"

AS_NUMBER = 64512  # BGPConfiguration.asNumber, by default

BIRD_CONFIG = "/etc/calico/confd/config/bird.cfg"
BIRD_SOCKET = "/run/calico/bird.ctl"

BGP = "bgp"


def load(mode: str) -> Calico:
    """The entry point. Raises UserError for a mode that does not exist."""
    return Calico(mode=pick_mode("calico", mode, {"": BGP, BGP: BGP}))


@dataclass(frozen=True)
class Calico(Plain):
    """Calico with a BGP full mesh and no encapsulation (``bgp``)."""

    mode: str
    name: str = "calico"

    @property
    def title(self) -> str:
        return "Calico · BGP"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("veth", "iptables", "iptables-restore", "ipset", "ipset-program", "bird")

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """Blocks of 64 addresses with affinity to a node."""
        return address_managers.Blocks(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        check_nodes(self.name, cluster, lambda node: node.mtu)
        if pair := strangers(cluster.nodes, cluster.topology.pod_cidrs):
            raise UserError(
                f"calico:bgp needs all nodes on one L2 segment, and {pair[0].name} and {pair[1].name} share none: "
                "the routers between them do not know the pods' blocks",
                hint="use a style with tunnels, such as flannel:vxlan, or put the nodes on one switch",
            )

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        families = families_of(cluster.topology.pod_cidrs)
        yield _cni_configuration(node)
        for family in families:
            yield from _ip_pools(cluster, node, family)
        endpoints = workload_endpoints(cluster, node)
        for family in families:
            yield from felix_rules(node.ns, family, endpoints)
        yield from _bird(cluster, node)
        for family in families:
            yield from _learned_routes(cluster, node, family)

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        yield from wire_pod(cluster, node, pod, mtu=node.mtu, ipam="calico-ipam")
        for address in pod.addresses:
            if not any(contains(block, address) for block in node.pod_ranges):
                yield from _borrowed(cluster, node, pod, address)


def _borrowed(cluster: Cluster, node: Node, pod: Pod, address: str) -> Iterator[Route]:
    """An address from another node's block: its node announces the /32, which wins as the longer prefix."""
    gateway = of_family(node.addresses, family_of(address))
    for machine in cluster.topology.of_kind("node"):
        if machine.name == node.name:
            continue
        for interface in machine.interfaces:
            if any(contains(own, gateway) for own in interface.addresses):
                yield Route(
                    ns=machine.ns,
                    destination=host_prefix(address),
                    via=gateway,
                    device=interface.name,
                    protocol="bird",
                    learned=True,
                    component=BIRD,
                    why=f"{pod.key} on {node.name}: an address borrowed from another node's block",
                )


# -- BGP --------------------------------------------------------------------------------------------------------


def _bird(cluster: Cluster, node: Node) -> Iterator[AnyObject]:
    yield File(
        ns=node.ns,
        path=BIRD_CONFIG,
        content=bird_config(_speaker(cluster, node)),
        component=CONFD,
        why="BGP with every other node; written anew when nodes or blocks change",
    )
    yield Daemon(
        ns=node.ns,
        name="bird",
        argv=("bird", "-f", "-c", BIRD_CONFIG, "-s", BIRD_SOCKET),
        files=(BIRD_CONFIG,),
        reload=("birdc", "-s", BIRD_SOCKET, "configure"),
        ready_socket=BIRD_SOCKET,
        component=BIRD,
        why="tells the other nodes this node's blocks and puts theirs into the kernel",
    )


def _speaker(cluster: Cluster, node: Node) -> Speaker:
    families = []
    for family in families_of(cluster.topology.pod_cidrs):
        local = of_family(node.addresses, family)
        families.append(
            FamilyRouting(
                version=family,
                local=local,
                blocks=_blocks(node, family),
                pools=tuple(cidr for cidr in cluster.topology.pod_cidrs if family_of(cidr) == family),
                peers=tuple(
                    mesh_peer(local, of_family(peer.addresses, family), peer.asn or AS_NUMBER, peer.name)
                    for peer in cluster.nodes
                    if peer.name != node.name
                ),
            )
        )
    return Speaker(
        node=node.name,
        router_id=router_id(node.name, node.addresses),
        asn=node.asn or AS_NUMBER,
        families=tuple(families),
    )


def _blocks(node: Node, family: Family) -> tuple[str, ...]:
    return tuple(block for block in node.pod_ranges if family_of(block) == family)


def _learned_routes(cluster: Cluster, node: Node, family: Family) -> Iterator[Route]:
    for block in _blocks(node, family):
        if block != host_prefix(block.partition("/")[0]):
            yield Route(
                ns=node.ns,
                destination=block,
                type="blackhole",
                protocol="bird",
                learned=True,
                component=BIRD,
                why="this node's block: an address that no pod has is dropped in silence",
            )
    for peer in cluster.nodes:
        if peer.name == node.name:
            continue
        for block in _blocks(peer, family):
            yield Route(
                ns=node.ns,
                destination=block,
                via=of_family(peer.addresses, family),
                device=node.device,
                protocol="bird",
                learned=True,
                component=BIRD,
                why=f"block of {peer.name}, learned by BGP from it",
            )


# -- the rest of a node -----------------------------------------------------------------------------------------


def _ip_pools(cluster: Cluster, node: Node, family: Family) -> Iterator[IpSet]:
    pools = tuple(sorted(cidr for cidr in cluster.topology.pod_cidrs if family_of(cidr) == family))
    for name, why in (
        ("masq-ipam-pools", "IP pools with natOutgoing"),
        ("all-ipam-pools", "all IP pools: traffic between pods is never masqueraded"),
    ):
        yield IpSet(
            ns=node.ns,
            name=ipset_name(family, name),
            type="hash:net",
            family=family,
            members=pools,
            component=FELIX,
            why=why,
        )


def _cni_configuration(node: Node) -> File:
    """manifests/calico.yaml, ``cni_network_config``, as the install-cni container fills it in."""
    configuration = {
        "name": "k8s-pod-network",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "calico",
                "log_level": "info",
                "log_file_path": "/var/log/calico/cni/cni.log",
                "datastore_type": "kubernetes",
                "nodename": node.name,
                "mtu": 0,
                "ipam": {"type": "calico-ipam"},
                "policy": {"type": "k8s"},
                "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
            },
            {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ],
    }
    return File(
        ns=node.ns,
        path="/etc/cni/net.d/10-calico.conflist",
        content=json.dumps(configuration, indent=2) + "\n",
        component="install-cni",
        why="tells the kubelet's runtime which plugins wire a pod",
    )
