"""The AWS VPC CNI: the aws-cni plugin, and ipamd of the aws-node DaemonSet, on instances in a VPC.

The path of a packet from pod A on n1, whose address belongs to the secondary interface eth1, to pod B on n2::

    pod A                     node n1                      VPC                     node n2                pod B
    eth0 ── eni… ── rule 1536 ── table 2 ── eth1 ═══ (no hop, no encapsulation) ═══ eth0 ── rule 512 ── eni… ── eth0
        static ARP       "from A"        A's own ENI                              B's own ENI   "to B"

Pods have addresses of the VPC, which delivers to the network interface (ENI) that has them: nothing is wrapped, and
between nodes nothing is translated. What leaves the VPC gets the node's address and leaves by eth0: a connection mark
(0x80) carries that decision to rule 1024, before the rule that would send it out of the pod's own ENI.

The fabric is ``emulator.cni.vpc_fabric`` (what becomes of the topology) and ``emulator.cni.vpc_router``; addresses come
from ``emulator.cluster.eni_ipam``.

Sources: aws/amazon-vpc-cni-k8s cmd/routed-eni-cni-plugin/driver/driver.go (pods), pkg/networkutils/network.go (nodes;
their rules: ``emulator.cni.aws_vpc_rules``), pkg/networkutils/names.go, cmd/aws-vpc-cni (conflist),
cmd/aws-vpc-cni-init.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import ipam as address_managers
from emulator.cluster.eni_ipam import EniPools
from emulator.cluster.model import Cluster, Eni, Machine, Node, Pod, Topology, Vpc
from emulator.cluster.system_pods import environments
from emulator.cluster.validation import invalid
from emulator.cni.aws_vpc_rules import IPAMD, MARK, NODE_PORT_SUPPORT, mangle_rules, nat_rules
from emulator.cni.limits import check_nodes
from emulator.cni.style import Plain
from emulator.cni.styles import pick_mode
from emulator.cni.vpc_fabric import JUMBO_MTU, lay_fabric, port_name
from emulator.cni.vpc_router import internet_gateway, nat_gateway, vpc_router
from emulator.cni.wiring import network_configuration, pod_namespace
from emulator.errors import ManifestError, Problem
from emulator.plan.addressing import (
    contains,
    default_route,
    digest,
    first_address,
    host_prefix,
    prefix_length,
    stable_mac,
)
from emulator.plan.model import (
    Address,
    AnyObject,
    File,
    Neighbour,
    PolicyRule,
    Route,
    Sysctl,
    Veth,
)

CNI_PLUGIN = "aws-cni plugin"
INIT = "aws-vpc-cni-init"

GATEWAY = "169.254.1.1"  # driver.go: of every pod; a permanent ARP entry, no one is ever asked
MAIN_TABLE = 254
TO_POD, MARKED, FROM_POD, FROM_ENI = 512, 1024, 1536, 32765  # priorities of ip rules

AWS_NODE = "aws-node"  # DaemonSet and container of config/master/aws-k8s-cni.yaml
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})  # Go: strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

SECONDARY_IPS = "secondary-ips"
PREFIX = "prefix"
EXTERNAL_SNAT = "external-snat"
NO_CONNMARK = "no-connmark"
SPELLINGS = {"": SECONDARY_IPS, **{mode: mode for mode in (SECONDARY_IPS, PREFIX, EXTERNAL_SNAT, NO_CONNMARK)}}
TITLES = {
    SECONDARY_IPS: "AWS VPC CNI",
    PREFIX: "AWS VPC CNI · prefix delegation",
    EXTERNAL_SNAT: "AWS VPC CNI · external SNAT",
    NO_CONNMARK: "AWS VPC CNI · without NodePort marks (AWS_VPC_CNI_NODE_PORT_SUPPORT=false)",
}


def modes() -> tuple[str, ...]:
    """The modes that there are, the default one first."""
    return tuple(dict.fromkeys(SPELLINGS.values()))


def load(mode: str) -> AwsVpc:
    """The entry point. Raises UserError for a mode that does not exist."""
    return AwsVpc(mode=pick_mode("aws-vpc", mode, SPELLINGS))


def host_device(pod: Pod) -> str:
    """``eni`` and 11 hex digits of SHA-1 over ``namespace.pod``: default.nginx -> enic440f455693."""
    return f"eni{digest(f'{pod.namespace}.{pod.name}', 11, 'sha1')}"


def host_mac(pod: Pod) -> str:
    """The kernel takes a random one; the pod is told it and never asks."""
    return stable_mac(f"eni {pod.key}")


def eni_table(eni: Eni) -> int:
    """The routing table of a secondary interface: 2 for eth1 (setupENINetwork: device number + 1)."""
    return eni.index + 1


def eni_of(node: Node, address: str) -> Eni:
    """The interface of ``node`` that has ``address`` for pods. KeyError if none does."""
    for eni in node.enis:
        if any(contains(prefix, address) for prefix in eni.prefixes):
            return eni
    raise KeyError(address)


@dataclass(frozen=True)
class AwsVpc(Plain):
    """The AWS VPC CNI with secondary addresses, with prefix delegation, with SNAT left to a NAT gateway, or without
    the marks that bring replies of NodePorts back by eth0 (a fault, for those who want to see it)."""

    mode: str
    name: str = "aws-vpc"

    @property
    def title(self) -> str:
        return TITLES[self.mode]

    @property
    def unpoliced(self) -> str:
        return "its network policy agent works by eBPF, which is not emulated yet"

    @property
    def requires(self) -> tuple[str, ...]:
        rules = ("iptables", "iptables-restore", "connmark", "ttl-target", "ipset", "ipset-program")
        return ("veth", *rules, "policy-rules")

    def pod_traffic(self, topology: Topology) -> tuple[str, ...]:
        """EKS starts kube-proxy without a cluster CIDR: pods have addresses of the VPC's subnets, as nodes have."""
        return ()

    @property
    def strict_underlay(self) -> str:
        return "a VPC carries no ARP of its machines, and delivers to no address but those of its network interfaces"

    def prepare(self, topology: Topology) -> Topology:
        """The topology laid over a VPC."""
        return lay_fabric(topology)

    def ipam(self, topology: Topology) -> address_managers.Ipam:
        """Addresses of the nodes' ENIs."""
        return EniPools(topology, prefixes=self.mode == PREFIX)

    def check(self, cluster: Cluster) -> None:
        check_nodes(self.name, cluster, _mtu)
        for node in cluster.nodes:
            _node_port_support(cluster, node)

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        vpc = _vpc(cluster)
        yield _cni_configuration(node)
        yield Sysctl(
            ns=node.ns,
            name=f"net/ipv4/conf/{node.device}/rp_filter",
            value="2",
            component=INIT,
            why="loose: requests to a NodePort come in by the primary interface, for pods of all of them",
        )
        for eni in node.enis[1:]:
            yield from _secondary_interface(vpc, node, eni)
        yield PolicyRule(
            ns=node.ns,
            priority=MARKED,
            table=MAIN_TABLE,
            fwmark=int(MARK, 16),
            fwmask=int(MARK, 16),
            component=IPAMD,
            why="what is marked leaves by the primary interface, whichever interface the pod's address is of",
        )
        yield mangle_rules(node, marked=self.mode != NO_CONNMARK and _node_port_support(cluster, node))
        if self.mode != EXTERNAL_SNAT:
            yield nat_rules(vpc, node)

    def router(self, cluster: Cluster, router: Machine) -> Iterator[AnyObject]:
        vpc = _vpc(cluster)
        if router.name == vpc.router:
            yield from vpc_router(cluster, vpc, router)
        elif vpc.internet_gateway is not None and router.name == vpc.internet_gateway.name:
            yield from internet_gateway(vpc, router, _balanced(cluster))
        for gateway in vpc.nat_gateways:
            if router.name == gateway.name:
                yield from nat_gateway(gateway, router)

    def advertised(self, cluster: Cluster) -> object:
        """The internet gateway knows the load balancers' addresses."""
        return _balanced(cluster)

    # -- a pod ----------------------------------------------------------------------------------------------

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        host_end = host_device(pod)
        (address,) = pod.addresses
        eni = eni_of(node, address)
        yield from pod_namespace(cluster, pod)
        yield Veth(
            ns=pod.ns,
            name="eth0",
            mtu=_mtu(node),
            mac=stable_mac(f"pod {pod.key}"),
            peer_ns=node.ns,
            peer=host_end,
            peer_mac=host_mac(pod),
            component=CNI_PLUGIN,
            why="the pod's interface",
            peer_why=f"host end of {pod.key}",
        )
        yield Address(
            ns=pod.ns,
            device="eth0",
            address=host_prefix(address),
            component=IPAMD,
            why=f"an address of the VPC, which {eni.device} of {node.name} has",
        )
        yield Route(
            ns=pod.ns,
            destination=host_prefix(GATEWAY),
            device="eth0",
            scope="link",
            component=CNI_PLUGIN,
            why="the gateway is on the link, although no subnet says so",
        )
        yield Route(
            ns=pod.ns,
            destination=default_route(4),
            via=GATEWAY,
            device="eth0",
            component=CNI_PLUGIN,
            why="everything goes to the node, pods of the same node too",
        )
        yield Neighbour(
            ns=pod.ns,
            device="eth0",
            address=GATEWAY,
            mac=host_mac(pod),
            component=CNI_PLUGIN,
            why="the host end's MAC, told beforehand: the pod never asks for its gateway",
        )
        yield Route(
            ns=node.ns,
            destination=host_prefix(address),
            device=host_end,
            scope="link",
            component=CNI_PLUGIN,
            why=f"to {pod.key}",
        )
        yield PolicyRule(
            ns=node.ns,
            priority=TO_POD,
            table=MAIN_TABLE,
            destination=host_prefix(address),
            component=CNI_PLUGIN,
            why=f"to {pod.key}: the main table knows its veth, wherever the packet comes from",
        )
        if eni.index:
            yield PolicyRule(
                ns=node.ns,
                priority=FROM_POD,
                table=eni_table(eni),
                source=host_prefix(address),
                component=CNI_PLUGIN,
                why=f"from {pod.key}: leaves by {eni.device}, since the VPC takes its address from no other interface",
            )


def _balanced(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """The private and the public address of internet-facing load balancers, in each zone."""
    return tuple(
        (one.private, one.address) for service in cluster.services for one in service.load_balancer if one.private
    )


def _node_port_support(cluster: Cluster, node: Node) -> bool:
    """What aws-node's DaemonSet says; yes if nothing (ipamd: nodePortSupportEnabled). Raises ManifestError."""
    text = environments(cluster, AWS_NODE).get(node.name, {}).get(NODE_PORT_SUPPORT, "true")
    if text not in _TRUE | _FALSE:
        path = f"spec.template.spec.containers[{AWS_NODE}].env[{NODE_PORT_SUPPORT}]"
        raise ManifestError([Problem("", f"DaemonSet {AWS_NODE}", path, invalid(text, "must be true or false"))])
    return text in _TRUE


def _vpc(cluster: Cluster) -> Vpc:
    vpc = cluster.topology.vpc
    assert vpc is not None, "the topology has not been prepared"
    return vpc


def _mtu(node: Node) -> int:
    """AWS_VPC_ENI_MTU: 9001 of ENIs and pods, unless the topology's link is smaller."""
    return min(JUMBO_MTU, node.mtu)


def _secondary_interface(vpc: Vpc, node: Node, eni: Eni) -> Iterator[AnyObject]:
    """What setupENINetwork does with an interface that EC2 has attached."""
    port, gateway, table = port_name(node.name, eni.device), first_address(eni.subnet, 1), eni_table(eni)
    yield Veth(
        ns=node.ns,
        name=eni.device,
        mtu=_mtu(node),
        mac=eni.mac,
        peer_ns=f"router/{vpc.router}",
        peer=port,
        peer_mac=stable_mac(f"vpc port {port}"),
        component=IPAMD,
        why=f"secondary interface {eni.index}, attached for its addresses",
        peer_why=f"the VPC's end of {eni.device} of {node.name}",
    )
    yield Address(
        ns=node.ns,
        device=eni.device,
        address=f"{eni.address}/{prefix_length(eni.subnet)}",
        prefix_route=False,
        component=IPAMD,
        why="the interface's own address; the subnet's route is deleted, as it would compete with the primary one's",
    )
    yield Route(
        ns=node.ns,
        destination=host_prefix(gateway),
        device=eni.device,
        scope="link",
        table=table,
        component=IPAMD,
        why="the subnet's router is on this interface's link",
    )
    yield Route(
        ns=node.ns,
        destination=default_route(4),
        via=gateway,
        device=eni.device,
        table=table,
        component=IPAMD,
        why=f"pods with an address of {eni.device} send everything by it",
    )
    yield PolicyRule(
        ns=node.ns,
        priority=FROM_ENI,
        table=table,
        source=host_prefix(eni.address),
        component=IPAMD,
        why=f"from the own address of {eni.device}: leaves by it",
    )


def _cni_configuration(node: Node) -> File:
    """misc/10-aws.conflist, as the install container fills it in."""
    configuration = {
        "cniVersion": "0.4.0",
        "name": "aws-cni",
        "disableCheck": True,
        "plugins": [
            {
                "name": "aws-cni",
                "type": "aws-cni",
                "vethPrefix": "eni",
                "mtu": str(_mtu(node)),
                "podSGEnforcingMode": "strict",
                "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
                "pluginLogLevel": "DEBUG",
            },
            {
                "name": "egress-cni",
                "type": "egress-cni",
                "mtu": str(_mtu(node)),
                "enabled": "false",
                "randomizeSNAT": "prng",
                "nodeIP": "",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "fd00::ac:00/118"}]],
                    "routes": [{"dst": "::/0"}],
                    "dataDir": "/run/cni/v4pd/egress-v6-ipam",
                },
                "pluginLogFile": "/var/log/aws-routed-eni/egress-v6-plugin.log",
                "pluginLogLevel": "DEBUG",
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }
    return network_configuration(node, "10-aws", configuration, "aws-vpc-cni")
