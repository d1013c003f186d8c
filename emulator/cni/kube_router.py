"""kube-router: a bridge on each node, routes by BGP, and IPIP tunnels to nodes in other subnets.

The path of a packet from pod A on n1 to pod B on n2, which is in n1's subnet, and to C on n3, which is not::

    pod A                 node n1                                node n2                     pod B
    eth0 ── veth… ─ kube-bridge ── route /24 ── eth0 ═══════ eth0 ── kube-bridge ─ veth… ── eth0
                                   via n2, proto bird
                                       │                         node n3                     pod C
                                   tun-… ── eth0 ═══ router ═══ eth0 ── tun-… ── kube-bridge ─ veth… ── eth0
                                                protocol 4: +20 bytes

kube-router has GoBGP inside; BIRD stands in for it here (``emulator.routing.bird_kube_router``), which is why the title
and every object of it say so. Its service proxy, which is IPVS, is ``emulator.proxy.kube_router``.

Sources: cloudnativelabs/kube-router pkg/controllers/routing (network_routes_controller.go, pod_egress.go, pbr.go,
bgp_peers.go, bgp_policies.go), pkg/tunnels/linux_tunnels.go, pkg/routes/pbr.go,
daemonset/kubeadm-kuberouter-all-features.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import ipam as address_managers
from emulator.cluster.model import Cluster, Machine, Node, Pod, Topology
from emulator.cni.bgp_fabric import gateway, lost, owners, router_daemon
from emulator.cni.bridge_plugin import bridged_pod, gateway_bridge
from emulator.cni.kube_router_bgp import Network, network_of, same_subnet
from emulator.cni.limits import check_distinct, check_nodes
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.cni.wiring import network_configuration
from emulator.errors import UserError
from emulator.plan.addressing import digest, families_of, family_of, host_prefix, of_family
from emulator.plan.model import (
    AnyObject,
    Daemon,
    Family,
    File,
    Ipip,
    IpSet,
    IptablesRules,
    Jump,
    PolicyRule,
    Route,
    Rule,
    Sysctl,
)
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.policy.kube_router_chains import COMPONENT, LocalPod, firewall
from emulator.proxy.model import ProxyMode
from emulator.routing.bird import router_id
from emulator.routing.bird_kube_router import NodeFamily, NodeSpeaker, node_config
from emulator.routing.bird_router import RouterFamily

GOBGP = "kube-router (BIRD for GoBGP)"
BRIDGE = "kube-bridge"
TABLE = 77  # "kube-router" in /etc/iproute2/rt_tables: pkg/routes/pbr.go
RULE_PRIORITY = 32765  # what the kernel gives a rule that names none: before the main table's
IPIP_OVERHEAD = 20  # bytes: an IPv4 header
POD_SUBNETS, NODE_ADDRESSES = "kube-router-pod-subnets", "kube-router-node-ips"

CONFIG, SOCKET = "/etc/kube-router/bird.conf", "/run/kube-router/bird.ctl"

SUBNET, FULL, NO_OVERLAY = "subnet", "full", "no-overlay"
TITLES = {
    SUBNET: "kube-router · BGP (BIRD for GoBGP)",
    FULL: "kube-router · full overlay (BIRD for GoBGP)",
    NO_OVERLAY: "kube-router · no overlay (BIRD for GoBGP)",
}


def modes() -> tuple[str, ...]:
    """The modes that there are, the default one first."""
    return tuple(dict.fromkeys((SUBNET, *TITLES)))


def load(mode: str) -> KubeRouter:
    """The entry point. Raises UserError for a mode that does not exist."""
    return KubeRouter(mode=pick_mode("kube-router", mode, {"": SUBNET, **{each: each for each in TITLES}}))


def tunnel_device(address: str) -> str:
    """``tun-`` and 11 hex digits of SHA-256 over the other node's address without dots: 10.0.0.1 -> tun-e443169117a."""
    return f"tun-{digest(address.replace('.', '').replace(':', ''), 11)}"


@dataclass(frozen=True)
class KubeRouter(Plain):
    """kube-router with ``--overlay-type`` ``subnet`` or ``full``, or with ``--enable-overlay=false``."""

    mode: str
    stand_in: str = "BIRD 2 for GoBGP"
    name: str = "kube-router"

    @property
    def title(self) -> str:
        return TITLES[self.mode]

    @property
    def proxies(self) -> tuple[ProxyMode, ...]:
        """Its own; without it (``--run-service-proxy=false``) kube-proxy runs beside it."""
        return ("kube-router", "iptables")

    @property
    def requires(self) -> tuple[str, ...]:
        """The tunnels of ``subnet`` depend on the topology: whoever makes one asks for ``ipip``."""
        overlay = {SUBNET: ("policy-rules",), FULL: ("policy-rules", "ipip"), NO_OVERLAY: ()}[self.mode]
        filters = ("iptables", "iptables-restore", "bridge-nf", "ipset", "ipset-program")
        return ("veth", "bridge", *filters, *overlay, "bird")

    def enforcer(self, mode: PolicyMode) -> Enforcer | None:
        """Its own network policy controller."""
        from emulator.policy.kube_router import load

        return load(mode)

    def speaks_bgp(self, cluster: Cluster) -> str:
        return "kube-router"

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """A /24 (IPv6: /64) of the cluster network for each node, addresses from .2 on: .1 is the bridge."""
        return address_managers.HostLocal(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        check_nodes(self.name, cluster, lambda node: node.mtu)
        check_distinct(self.name, cluster)
        network = network_of(cluster)
        owner_of = owners(cluster.topology.machines)
        machines = {machine.name: machine for machine in cluster.topology.machines}
        for node in cluster.nodes:
            for peer in cluster.nodes:
                for prefix in peer.pod_ranges if peer.name != node.name else ():
                    self._check_way(network, machines, owner_of, node, peer, prefix)

    def _check_way(
        self,
        network: Network,
        machines: dict[str, Machine],
        owner_of: dict[str, str],
        node: Node,
        peer: Node,
        prefix: str,
    ) -> None:
        hop, _ = network.next_hop(node.name, prefix, peer)
        if hop and self._tunnelled(node, hop):
            if ":" in hop:
                raise UserError(
                    f"kube-router would reach IPv6 pods of {peer.name} from {node.name} through an ip6tnl device, "
                    "which is not emulated",
                    hint="put the nodes on one subnet, or use kube-router:no-overlay with routers that speak BGP",
                )
            if hop not in peer.addresses:
                raise UserError(
                    f"{node.name} would build a tunnel to {hop}, which is no node: kube-router does that for any next "
                    "hop outside of its subnet, and nothing answers there",
                    hint="use kube-router:no-overlay, or peers in the nodes' own subnets",
                )
            return

        def next_hop(here: str) -> str:
            found, _ = network.next_hop(here, prefix, peer) if here != peer.name else ("", "")
            there = machines[here]
            if found and (there.kind == "router" or same_subnet(network.cluster.node(here), found)):
                return found
            return prefix.partition("/")[0]  # no route by BGP: wherever the machine's own routes lead

        if reason := lost(machines, owner_of, next_hop, node.name, peer.name):
            raise UserError(
                f"kube-router: packets from {node.name} to the pods of {peer.name} ({prefix}) get lost: {reason}",
                hint="use an overlay, or have the routers learn the podCIDRs: annotations kube-router.io/peer.ips and "
                "peer.asns on nodes, an asn on routers (docs/kube-router.md)",
            )

    def _tunnelled(self, node: Node, hop: str) -> bool:
        """injectRoute: whether packets to a next hop are wrapped."""
        return self.mode == FULL or (self.mode == SUBNET and not same_subnet(node, hop))

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        families = families_of(cluster.topology.pod_cidrs)
        yield from _bridge_sees_iptables(node, families)
        yield _cni_configuration(node)
        yield from gateway_bridge(node, BRIDGE, node.mtu)
        for family in families:
            yield from _sets(cluster, node, family)
            yield _firewall(cluster, node, family)
            yield _egress(node, family)
            if self.mode != NO_OVERLAY:
                yield _policy_rule(node, family)
        yield from self._bgp(cluster, node)

    def _bgp(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        network = network_of(cluster)
        tunnels: dict[str, str] = {}
        learned: list[Route] = []
        for peer in cluster.nodes:
            for prefix in peer.pod_ranges if peer.name != node.name else ():
                hop, teller = network.next_hop(node.name, prefix, peer)
                why = f"podCIDR of {peer.name}, learned by BGP from " + ("it" if teller == peer.name else teller)
                if not hop:
                    continue
                if self._tunnelled(node, hop):
                    if hop not in tunnels:
                        tunnels[hop] = tunnel_device(hop)
                        yield from _tunnel(node, peer, hop)
                    learned.append(_tunnel_route(node, prefix, tunnels[hop], why))
                elif same_subnet(node, hop):
                    learned.append(_learned(node.ns, prefix, hop, node.device, why))
        yield File(
            ns=node.ns,
            path=CONFIG,
            content=node_config(self._speaker(cluster, node, network, tunnels)),
            component=GOBGP,
            why="BGP with the other nodes, and with the routers that the node's annotations name",
        )
        yield Daemon(
            ns=node.ns,
            name="bird",
            argv=("bird", "-f", "-c", CONFIG, "-s", SOCKET),
            files=(CONFIG,),
            reload=("birdc", "-s", SOCKET, "configure"),
            ready_socket=SOCKET,
            component=GOBGP,
            why="tells the others this node's podCIDR and puts theirs into the kernel",
        )
        yield from learned

    def _speaker(self, cluster: Cluster, node: Node, network: Network, tunnels: dict[str, str]) -> NodeSpeaker:
        return NodeSpeaker(
            router_id=router_id(node.name, node.addresses),
            device=node.device,
            bridge=BRIDGE,
            families=tuple(
                NodeFamily(
                    version=family,
                    address=of_family(node.addresses, family),
                    ranges=tuple(cidr for cidr in node.pod_ranges if family_of(cidr) == family),
                    subnet="" if self.mode == FULL else of_family(node.subnets, family),
                    tunnels=tuple(item for item in tunnels.items() if family_of(item[0]) == family),
                )
                for family in families_of(cluster.topology.pod_cidrs)
            ),
            sessions=network.of(node.name),
            reflector=bool(network.annotated[node.name].server),
        )

    # -- a router -------------------------------------------------------------------------------------------

    def router(self, cluster: Cluster, router: Machine) -> Iterator[AnyObject]:
        """BIRD on a router with an AS number, if any node peers with the network."""
        network = network_of(cluster)
        if not router.asn or not any(said.peers for said in network.annotated.values()):
            return
        sessions = network.of(router.name)
        families = tuple(
            RouterFamily(
                family,
                tuple(cidr for cidr in cluster.topology.pod_cidrs if family_of(cidr) == family),
                tuple(each for each in sessions if family_of(each.local_address) == family),
            )
            for family in families_of(cluster.topology.pod_cidrs)
        )
        if not sessions:
            return
        yield from router_daemon(router, [family for family in families if family.sessions])
        for node in cluster.nodes:
            for prefix in node.pod_ranges:
                hop, teller = network.next_hop(router.name, prefix, node)
                via, device = gateway(router, hop) if hop else ("", "")
                if via:
                    teller = "it" if teller == node.name else teller
                    why = f"podCIDR of {node.name}, learned by BGP from {teller}"
                    yield _learned(router.ns, prefix, via, device, why)

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        hairpin = "hairpinMode: a pod can reach itself through a Service"
        yield from bridged_pod(cluster, node, pod, bridge=BRIDGE, mtu=node.mtu, hairpin=hairpin)


# -- routes -----------------------------------------------------------------------------------------------------


def _learned(ns: str, prefix: str, via: str, device: str, why: str) -> Route:
    return Route(
        ns=ns,
        destination=prefix,
        via=via,
        device=device,
        protocol="bird",
        learned=True,
        component=GOBGP if ns.startswith("node/") else "bird",
        why=why,
    )


def _tunnel(node: Node, peer: Node, hop: str) -> Iterator[AnyObject]:
    device = tunnel_device(hop)
    yield Ipip(
        ns=node.ns,
        name=device,
        mtu=node.mtu - IPIP_OVERHEAD,
        local=of_family(node.addresses, 4),
        remote=hop,
        path_mtu_discovery=True,
        component=COMPONENT,
        why=f"overlay to {peer.name}: the outer destination",
    )
    yield Route(
        ns=node.ns,
        destination=host_prefix(hop),
        device=device,
        scope="link",
        table=TABLE,
        component=COMPONENT,
        why=f"pods of this node reach {peer.name} itself by the tunnel too, as its answers to them come",
    )


def _tunnel_route(node: Node, prefix: str, device: str, why: str) -> Route:
    return Route(
        ns=node.ns,
        destination=prefix,
        device=device,
        scope="link",
        source=of_family(node.addresses, 4),
        protocol="bird",
        learned=True,
        component=GOBGP,
        why=f"{why}; its node is in another subnet, or all go by tunnels",
    )


def _policy_rule(node: Node, family: Family) -> PolicyRule:
    return PolicyRule(
        ns=node.ns,
        priority=RULE_PRIORITY,
        table=TABLE,
        family=family,
        source=of_family(node.pod_ranges, family),
        component=COMPONENT,
        why="what pods send to nodes with a tunnel goes into it (rp_filter would drop the answers otherwise)",
    )


# -- the rest of a node -----------------------------------------------------------------------------------------


def _bridge_sees_iptables(node: Node, families: tuple[Family, ...]) -> Iterator[Sysctl]:
    for family in families:
        program = "iptables" if family == 4 else "ip6tables"
        yield Sysctl(
            ns=node.ns,
            name=f"net/bridge/bridge-nf-call-{program}",
            value="1",
            component=COMPONENT,
            why=f"frames between pods on {BRIDGE} pass {program}: policies hold on one node too",
        )


def _cni_configuration(node: Node) -> File:
    """``cni-conf.json`` of the daemonset, with what kube-router fills in: subnets and MTU."""
    ranges = [[{"subnet": cidr}] for cidr in node.pod_ranges]
    configuration = {
        "cniVersion": "0.3.0",
        "name": "mynet",
        "plugins": [
            {
                "name": "kubernetes",
                "type": "bridge",
                "mtu": node.mtu,
                "bridge": BRIDGE,
                "isDefaultGateway": True,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": ranges},
            }
        ],
    }
    return network_configuration(node, "10-kuberouter", configuration, COMPONENT)


def set_name(family: Family, name: str) -> str:
    """``kube-router-pod-subnets``, ``inet6:kube-router-pod-subnets``."""
    return name if family == 4 else f"inet6:{name}"


def _sets(cluster: Cluster, node: Node, family: Family) -> Iterator[IpSet]:
    ranges = (cidr for peer in cluster.nodes for cidr in peer.pod_ranges if family_of(cidr) == family)
    addresses = (address for peer in cluster.nodes for address in peer.addresses if family_of(address) == family)
    for name, kind, members, why in (
        (POD_SUBNETS, "hash:net", ranges, "the podCIDRs of all nodes"),
        (NODE_ADDRESSES, "hash:ip", addresses, "the addresses of all nodes"),
    ):
        yield IpSet(
            ns=node.ns,
            name=set_name(family, name),
            type=kind,
            family=family,
            members=tuple(sorted(members)),
            component=COMPONENT,
            why=why,
        )


def _firewall(cluster: Cluster, node: Node, family: Family) -> IptablesRules:
    pods = [
        LocalPod(pod.namespace, pod.name, of_family(pod.addresses, family))
        for pod in cluster.pods_on(node.name)
        if not pod.host_network
    ]
    services = [cidr for cidr in cluster.topology.service_cidrs if family_of(cidr) == family]
    return firewall(node.ns, family, node.device, BRIDGE, services, pods)


def _egress(node: Node, family: Family) -> IptablesRules:
    """createPodEgressRules: one rule, in the kernel's own chain."""
    pods, nodes = set_name(family, POD_SUBNETS), set_name(family, NODE_ADDRESSES)
    match = ("-m", "set", "--match-set", pods, "src", "-m", "set", "!", "--match-set", pods, "dst")
    rule = Rule(
        (*match, "-m", "set", "!", "--match-set", nodes, "dst", "-j", "MASQUERADE", "--random-fully"),
        "pod to the world leaves with the node's address; nodes see the pods' own",
    )
    return IptablesRules(
        ns=node.ns,
        family=family,
        table="nat",
        owner="kube-router",
        chains=(),
        jumps=(Jump("POSTROUTING", rule),),
        component=COMPONENT,
        why="--enable-pod-egress: which packets get the node's address on their way out",
    )
