"""kube-proxy's ipvs mode: every Service address is the node's own, and IPVS sends what comes to it to an endpoint.

::

    kube-ipvs0 (dummy, down) holds all Service addresses ─▶ the packet is for this node: INPUT
    nat PREROUTING/OUTPUT ─ KUBE-SERVICES: by ipset, what must be masqueraded is marked (0x4000)
    filter INPUT ─ KUBE-PROXY-FIREWALL: source ranges; KUBE-IPVS-FILTER: no other port of a Service address
    IPVS (LOCAL_IN) ─ virtual server IP:port, round robin ─▶ real server; the packet leaves by OUTPUT
    nat POSTROUTING ─ KUBE-POSTROUTING: hairpin (KUBE-LOOP-BACK) and marked packets are masqueraded

The number of iptables rules does not depend on that of Services: the ipsets grow. A cluster IP does not answer ping:
KUBE-IPVS-FILTER rejects all that is no Service port (since 1.27; before, the node answered).

NodePorts are virtual servers on the addresses that the topology gives the node, and those of its tunnels; addresses
that a CNI plugin gives to the node's end of its pods' network are not known here and have none (upstream has some).
Without a local endpoint a Local policy falls back on all endpoints, as upstream does; the answers come with a pod's
address and are lost. The userspace proxy for NodePorts on localhost (alpha, off) is left out.

Follows kubernetes/kubernetes 1.36, pkg/proxy/ipvs/proxier.go, ipset.go, netlink_linux.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.plan.addressing import contains, host_prefix, of_family
from emulator.plan.model import (
    Address,
    AnyObject,
    Chain,
    Dummy,
    Family,
    IpSet,
    IptablesRules,
    Jump,
    Rule,
    Sysctl,
)
from emulator.proxy.endpoints import Target, choose, cluster_ip, proxied, slices_by_service, targets
from emulator.proxy.model import ProxySettings
from emulator.proxy.nodeport_addresses import nodeport_addresses
from emulator.proxy.virtual_servers import VirtualServers, plain

COMPONENT = "kube-proxy"
DEVICE = "kube-ipvs0"
MARK = "0x4000"
LONGEST_SET_NAME = 31  # IPSET_MAXNAMELEN, less the closing NUL
PORTS = "bitmap:port range 0-65535"

LOOP_BACK, CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL = (
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
)
BALANCER, BALANCER_FW, BALANCER_LOCAL = "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-FW", "KUBE-LOAD-BALANCER-LOCAL"
SOURCE_IP, SOURCE_CIDR = "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR"
HEALTH, ADDRESSES = "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS"
NODE_PORT = {
    ("TCP", False): "KUBE-NODE-PORT-TCP",
    ("TCP", True): "KUBE-NODE-PORT-LOCAL-TCP",
    ("UDP", False): "KUBE-NODE-PORT-UDP",
    ("UDP", True): "KUBE-NODE-PORT-LOCAL-UDP",
    ("SCTP", False): "KUBE-NODE-PORT-SCTP-HASH",
    ("SCTP", True): "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
}
# name: type, comment of the rules that ask it
SETS: dict[str, tuple[str, str]] = {
    LOOP_BACK: ("hash:ip,port,ip", "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    CLUSTER_IP: ("hash:ip,port", "Kubernetes service cluster ip + port for masquerade purpose"),
    EXTERNAL_IP: ("hash:ip,port", "Kubernetes service external ip + port for masquerade and filter purpose"),
    EXTERNAL_IP_LOCAL: ("hash:ip,port", "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    BALANCER: ("hash:ip,port", "Kubernetes service lb portal"),
    BALANCER_FW: ("hash:ip,port", "Kubernetes service load balancer ip + port for load balancer with sourceRange"),
    BALANCER_LOCAL: ("hash:ip,port", "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"),
    SOURCE_IP: (
        "hash:ip,port,ip",
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    SOURCE_CIDR: (
        "hash:ip,port,net",
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    NODE_PORT["TCP", False]: (PORTS, "Kubernetes nodeport TCP port for masquerade purpose"),
    NODE_PORT["TCP", True]: (PORTS, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    NODE_PORT["UDP", False]: (PORTS, "Kubernetes nodeport UDP port for masquerade purpose"),
    NODE_PORT["UDP", True]: (PORTS, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    NODE_PORT["SCTP", False]: (
        "hash:ip,port",
        "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    NODE_PORT["SCTP", True]: (
        "hash:ip,port",
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    HEALTH: (PORTS, "Kubernetes health check node port"),
    ADDRESSES: ("hash:ip", "Kubernetes service IPs"),
}
# set, chain, target, match, protocol; in this order, each only while its set has members
_NAT_MATCHES = (
    (LOOP_BACK, "KUBE-POSTROUTING", "MASQUERADE", "dst,dst,src", ""),
    (BALANCER, "KUBE-SERVICES", "KUBE-LOAD-BALANCER", "dst,dst", ""),
    (BALANCER_LOCAL, "KUBE-LOAD-BALANCER", "RETURN", "dst,dst", ""),
    (NODE_PORT["TCP", True], "KUBE-NODE-PORT", "RETURN", "dst", "tcp"),
    (NODE_PORT["TCP", False], "KUBE-NODE-PORT", "KUBE-MARK-MASQ", "dst", "tcp"),
    (NODE_PORT["UDP", True], "KUBE-NODE-PORT", "RETURN", "dst", "udp"),
    (NODE_PORT["UDP", False], "KUBE-NODE-PORT", "KUBE-MARK-MASQ", "dst", "udp"),
    (NODE_PORT["SCTP", True], "KUBE-NODE-PORT", "RETURN", "dst,dst", "sctp"),
    (NODE_PORT["SCTP", False], "KUBE-NODE-PORT", "KUBE-MARK-MASQ", "dst,dst", "sctp"),
)
_FILTER_MATCHES = (
    (BALANCER_FW, "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL", "dst,dst", ""),
    (SOURCE_CIDR, "KUBE-SOURCE-RANGES-FIREWALL", "RETURN", "dst,dst,src", ""),
    (SOURCE_IP, "KUBE-SOURCE-RANGES-FIREWALL", "RETURN", "dst,dst,src", ""),
)
# Each is put first, so the last stands at the top.
_NAT_JUMPS = (
    ("OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    ("PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    ("POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
)
_FILTER_JUMPS = (
    ("FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
    ("INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    ("INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    ("OUTPUT", "KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
)
_SYSCTLS = (
    ("conntrack", "IPVS connections are in conntrack, so that iptables can masquerade them"),
    ("expire_nodest_conn", "connections to a real server that went end with the next packet"),
    ("expire_quiescent_template", "clients stick to no real server of weight 0"),
)


def load(settings: ProxySettings) -> IpvsProxy:
    """The entry point."""
    return IpvsProxy(settings)


class IpvsProxy:
    """One ``kube-proxy --proxy-mode=ipvs`` for every node."""

    name = "ipvs"
    title = "kube-proxy 1.36 · ipvs"
    requires: tuple[str, ...] = ("ipvs", "dummy", "ipset", "ipset-program", "iptables")
    stand_in = ""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self._slices: Sequence[EndpointSlice] = ()
        self._grouped: dict[tuple[str, int], list[EndpointSlice]] = {}

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        """The device, its addresses, ipsets, iptables rules and virtual servers of one node."""
        if cluster.slices is not self._slices:
            self._slices, self._grouped = cluster.slices, slices_by_service(cluster.slices)
        for name, why in _SYSCTLS:
            yield Sysctl(ns=node.ns, name=f"net/ipv4/vs/{name}", value="1", component=COMPONENT, why=why)
        yield Dummy(ns=node.ns, name=DEVICE, up=False, component=COMPONENT, why="holds all Service addresses")
        families: tuple[Family, ...] = (4, 6)
        for family in families:
            if of_family(node.addresses, family):
                yield from _Node(self.settings, cluster, node, family, self._grouped).objects()


class _Node:
    """One node's part of one family, gathered Service by Service."""

    def __init__(
        self,
        settings: ProxySettings,
        cluster: Cluster,
        node: Node,
        family: Family,
        slices: dict[tuple[str, int], list[EndpointSlice]],
    ) -> None:
        self.settings = settings
        self.cluster = cluster
        self.node = node
        self.family = family
        self.slices = slices
        self.members: dict[str, dict[str, None]] = {name: {} for name in SETS}
        self.ipvs = VirtualServers(cluster, node, family)
        self.shut: list[tuple[str, str, int]] = []  # balancer address, protocol, port: not for this node itself
        nodeports = nodeport_addresses(settings.node_port_cidrs, node, family, self.ipvs.own)
        self.nodeports = self.ipvs.own if nodeports is None else nodeports

    def objects(self) -> Iterator[AnyObject]:
        for service in self.cluster.services:
            if proxied(service) and cluster_ip(service, self.family):
                for port in service.ports:
                    self._port(service, port)
                if service.health_port:
                    self._put(HEALTH, str(service.health_port))
        for address, subject in self.ipvs.bound.items():
            self._put(ADDRESSES, address)
            yield Address(
                ns=self.node.ns,
                device=DEVICE,
                address=host_prefix(address),
                component=COMPONENT,
                why=f"of Service {subject}: packets to it are for this node, and IPVS sees them",
            )
        for name, (kind, comment) in SETS.items():
            yield IpSet(
                ns=self.node.ns,
                name=_set_name(name, self.family),
                type=kind,
                family=self.family,
                members=tuple(sorted(self.members[name])),
                component=COMPONENT,
                why=comment,
            )
        yield self._nat()
        yield self._filter()
        yield self.ipvs.planned(COMPONENT)

    def _put(self, name: str, member: str) -> None:
        self.members[name][member] = None

    # -- Services

    def _port(self, service: Service, port: ServicePort) -> None:
        offered = targets(self.slices.get((service.key, self.family), ()), port)
        choice = choose(offered, service, port, self.family, self.node.name, self.node.labels)
        # Whatever the policy, an ipvs proxier looks at all endpoints when there are none here.
        everywhere = choice.cluster or _cluster_list(offered, service, port, self.family, self.node)
        inside = (choice.local if service.internal_policy == "Local" else ()) or everywhere
        local = service.external_policy == "Local"
        outside = (choice.local if local else ()) or everywhere
        protocol = port.protocol.lower()
        for target in offered:
            if target.endpoint.node == self.node.name:
                here = plain(target.address)
                self._put(LOOP_BACK, f"{here},{protocol}:{target.port},{here}")
        address = plain(cluster_ip(service, self.family))
        self._put(CLUSTER_IP, f"{address},{protocol}:{port.port}")
        self.ipvs.serve(service, port, address, port.port, inside)
        for address in map(plain, service.external_ips):
            if (":" in address) == (self.family == 6):
                self._put(EXTERNAL_IP_LOCAL if local else EXTERNAL_IP, f"{address},{protocol}:{port.port}")
                self.ipvs.serve(service, port, address, port.port, outside)
        for ingress in service.load_balancer:
            if not ingress.proxy and (":" in ingress.address) == (self.family == 6):
                self._balancer(service, port, plain(ingress.address))
                self.ipvs.serve(service, port, plain(ingress.address), port.port, outside)
        if port.node_port and self.nodeports:
            self._node_port(port, local)
            for address in self.nodeports:
                self.ipvs.serve(service, port, address, port.node_port, outside, bind=False)

    def _balancer(self, service: Service, port: ServicePort, address: str) -> None:
        protocol = port.protocol.lower()
        member = f"{address},{protocol}:{port.port}"
        self._put(BALANCER, member)
        if service.external_policy == "Local":
            self._put(BALANCER_LOCAL, member)
        ranges = [cidr.strip() for cidr in service.source_ranges if (":" in cidr) == (self.family == 6)]
        if not ranges:
            return
        self._put(BALANCER_FW, member)
        for cidr in ranges:
            # hash:net holds no range of everything: two halves, as the ipset documentation advises
            for half in _halves(cidr):
                self._put(SOURCE_CIDR, f"{member},{half}")
        if any(contains(cidr, of_family(self.node.addresses, self.family)) for cidr in ranges):
            self._put(SOURCE_IP, f"{member},{address}")
        else:
            self.shut.append((address, protocol, port.port))

    def _node_port(self, port: ServicePort, local: bool) -> None:
        for here in (False, True) if local else (False,):
            name = NODE_PORT[port.protocol, here]
            if port.protocol == "SCTP":
                for address in self.nodeports:
                    self._put(name, f"{address},sctp:{port.node_port}")
            else:
                self._put(name, str(port.node_port))

    # -- iptables

    def _match(self, name: str, directions: str) -> tuple[str, ...]:
        return ("-m", "set", "--match-set", _set_name(name, self.family), directions)

    def _asked(self, name: str, directions: str) -> tuple[str, ...]:
        return ("-m", "comment", "--comment", SETS[name][1], *self._match(name, directions))

    def _matches(self, table: Sequence[tuple[str, str, str, str, str]], chains: dict[str, list[Rule]]) -> None:
        for name, chain, target, directions, protocol in table:
            if self.members[name]:
                wanted = ("-p", protocol) if protocol else ()
                chains[chain].append(Rule((*wanted, *self._asked(name, directions), "-j", target)))

    def _nat(self) -> IptablesRules:
        chains: dict[str, list[Rule]] = {
            name: []
            for name in (
                "KUBE-SERVICES",
                "KUBE-POSTROUTING",
                "KUBE-NODE-PORT",
                "KUBE-LOAD-BALANCER",
                "KUBE-MARK-MASQ",
            )
        }
        services = chains["KUBE-SERVICES"]
        services.append(Rule(("-s", "127.0.0.0/8" if self.family == 4 else "::1/128", "-j", "RETURN")))
        self._matches(_NAT_MATCHES, chains)
        if self.members[CLUSTER_IP]:
            services.append(Rule((*self._clusters(), "-j", "KUBE-MARK-MASQ")))
        if self.members[EXTERNAL_IP]:
            services.append(Rule((*self._asked(EXTERNAL_IP, "dst,dst"), "-j", "KUBE-MARK-MASQ")))
            services += self._from_elsewhere(EXTERNAL_IP)
        if self.members[EXTERNAL_IP_LOCAL]:
            services += self._from_elsewhere(EXTERNAL_IP_LOCAL)
        services.append(Rule(("-m", "addrtype", "--dst-type", "LOCAL", "-j", "KUBE-NODE-PORT")))
        chains["KUBE-LOAD-BALANCER"].append(Rule(("-j", "KUBE-MARK-MASQ")))
        services += [
            Rule((*self._match(name, "dst,dst"), "-j", "ACCEPT"))
            for name in (CLUSTER_IP, BALANCER)
            if self.members[name]
        ]
        chains["KUBE-POSTROUTING"] += [
            Rule(("-m", "mark", "!", "--mark", f"{MARK}/{MARK}", "-j", "RETURN")),
            Rule(("-j", "MARK", "--xor-mark", MARK)),
            Rule(
                (
                    *("-m", "comment", "--comment", "kubernetes service traffic requiring SNAT"),
                    *("-j", "MASQUERADE", "--random-fully"),
                )
            ),
        ]
        chains["KUBE-MARK-MASQ"].append(Rule(("-j", "MARK", "--or-mark", MARK)))
        return self._table("nat", chains, _NAT_JUMPS)

    def _clusters(self) -> tuple[str, ...]:
        pods = of_family(self.settings.pod_cidrs, self.family)
        if self.settings.masquerade_all:
            return self._asked(CLUSTER_IP, "dst,dst")
        if pods:
            return (*self._asked(CLUSTER_IP, "dst,dst"), "!", "-s", pods)
        # The node itself takes a Service address of kube-ipvs0 as its source.
        return self._asked(CLUSTER_IP, "src,dst")

    def _from_elsewhere(self, name: str) -> Iterator[Rule]:
        asked = self._asked(name, "dst,dst")
        not_a_pod = ("-m", "physdev", "!", "--physdev-is-in", "-m", "addrtype", "!", "--src-type", "LOCAL")
        yield Rule((*asked, *not_a_pod, "-j", "ACCEPT"))
        yield Rule((*asked, "-m", "addrtype", "--dst-type", "LOCAL", "-j", "ACCEPT"))

    def _filter(self) -> IptablesRules:
        chains: dict[str, list[Rule]] = {
            name: []
            for name in (
                "KUBE-FORWARD",
                "KUBE-NODE-PORT",
                "KUBE-PROXY-FIREWALL",
                "KUBE-SOURCE-RANGES-FIREWALL",
                "KUBE-IPVS-FILTER",
                "KUBE-IPVS-OUT-FILTER",
            )
        }
        self._matches(_FILTER_MATCHES, chains)
        chains["KUBE-SOURCE-RANGES-FIREWALL"].append(Rule(("-j", "DROP")))
        for address, protocol, port in self.shut:
            virtual = ("-m", "ipvs", "--vaddr", address, "--vproto", protocol, "--vport", str(port))
            chains["KUBE-IPVS-OUT-FILTER"].append(Rule(("-s", address, *virtual, "-j", "DROP")))
        marked, known = "kubernetes forwarding rules", "kubernetes forwarding conntrack rule"
        chains["KUBE-FORWARD"] += [
            Rule(("-m", "comment", "--comment", marked, "-m", "mark", "--mark", f"{MARK}/{MARK}", "-j", "ACCEPT")),
            Rule(
                (
                    *("-m", "comment", "--comment", known),
                    *("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
                )
            ),
        ]
        chains["KUBE-NODE-PORT"].append(Rule((*self._asked(HEALTH, "dst"), "-j", "ACCEPT")))
        for name in (BALANCER, CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL):
            chains["KUBE-IPVS-FILTER"].append(Rule((*self._match(name, "dst,dst"), "-j", "RETURN")))
        chains["KUBE-IPVS-FILTER"] += [
            Rule((*self._match(HEALTH, "dst"), "-j", "RETURN")),
            Rule(("-m", "conntrack", "--ctstate", "NEW", *self._match(ADDRESSES, "dst"), "-j", "REJECT")),
        ]
        return self._table("filter", chains, _FILTER_JUMPS)

    def _table(
        self, table: Literal["nat", "filter"], chains: dict[str, list[Rule]], jumps: Sequence[tuple[str, str, str]]
    ) -> IptablesRules:
        return IptablesRules(
            ns=self.node.ns,
            family=self.family,
            table=table,
            owner=COMPONENT,
            chains=tuple(Chain(name, tuple(rules)) for name, rules in chains.items()),
            jumps=tuple(
                Jump(chain, Rule(("-m", "comment", "--comment", comment, "-j", target)), "insert")
                for chain, target, comment in jumps
            ),
            component=COMPONENT,
            why="what IPVS leaves to iptables: masquerading, source ranges, other ports of Service addresses",
        )


def _cluster_list(
    offered: Sequence[Target], service: Service, port: ServicePort, family: Family, node: Node
) -> Sequence[Target]:
    """The list for policy Cluster of a port whose policies would never use it."""
    open_to_all = msgspec.structs.replace(service, internal_policy="Cluster")
    return choose(offered, open_to_all, port, family, node.name, node.labels).cluster


def _set_name(name: str, family: Family) -> str:
    return name if family == 4 else name.replace("KUBE-", "KUBE-6-", 1)[:LONGEST_SET_NAME]


def _halves(cidr: str) -> tuple[str, ...]:
    return {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}.get(cidr, (cidr,))
