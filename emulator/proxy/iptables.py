"""kube-proxy in iptables mode: all rules of a node, to the letter.

::

    nat     PREROUTING, OUTPUT ─ KUBE-SERVICES ─ one rule a Service address ─ KUBE-SVC-… ─ KUBE-SEP-…: DNAT
                                      └ last: to an address of the node ─ KUBE-NODEPORTS ─ KUBE-EXT-…
            POSTROUTING ─ KUBE-POSTROUTING: what KUBE-MARK-MASQ marked (0x4000) is masqueraded
    filter  INPUT, FORWARD, OUTPUT ─ KUBE-PROXY-FIREWALL, KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: refuse, new connections
            INPUT ─ KUBE-NODEPORTS: health checks may come in
            FORWARD ─ KUBE-FORWARD: marked and known connections may pass
    all     KUBE-PROXY-CANARY: empty; if it is gone, somebody took the tables away

kube-proxy is a pod in the host's network, so it is up before any CNI plugin is: its jumps stand at the top of the
kernel's chains, and a CNI that inserts its own later stands above them. kubelet made KUBE-FIREWALL before either.

The version followed is 1.33, with topology hints by node as 1.34 has them; counters by ``nfacct``, which kube-proxy
leaves out where the kernel has none, are left out.

Source: kubernetes/kubernetes pkg/proxy/iptables/proxier.go, pkg/proxy/util/nodeport_addresses.go,
pkg/kubelet/kubelet_network_linux.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

from emulator.cluster.collection import no_collection
from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.plan.model import AnyObject, Family, Jump, ProxyRules, Rule, Sysctl
from emulator.proxy.endpoints import (
    Choice,
    Target,
    changed_keys,
    choose,
    cluster_ip,
    proxied,
    same_everywhere,
    services_of,
    slices_by_service,
    slices_of,
)
from emulator.proxy.endpoints import targets as targets_of
from emulator.proxy.iptables_service import Lines, Wording, service_lines
from emulator.proxy.model import ProxySettings

COMPONENT = "kube-proxy"
OWNER = "kube-proxy"
MARK = "0x4000"  # masqueradeBit 14
LARGE_CLUSTER = 1000  # endpoints; with more than that, rules of endpoints lose their comments
CANARY = "KUBE-PROXY-CANARY"
LOOPBACK = "127.0.0.0/8"
LAST = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"

_NEW = ("-m", "conntrack", "--ctstate", "NEW")
_PORTALS, _VISIBLE = "kubernetes service portals", "kubernetes externally-visible service portals"
_FIREWALL = "kubernetes load balancer firewall"
# From the top of the kernel's chain down: kube-proxy puts each one first, so its list is upside down here.
HOOKS: dict[str, tuple[tuple[str, tuple[str, ...], str, str], ...]] = {
    "filter": (
        ("INPUT", _NEW, _FIREWALL, "KUBE-PROXY-FIREWALL"),
        ("INPUT", (), "kubernetes health check service ports", "KUBE-NODEPORTS"),
        ("INPUT", _NEW, _VISIBLE, "KUBE-EXTERNAL-SERVICES"),
        ("INPUT", (), "", "KUBE-FIREWALL"),
        ("FORWARD", _NEW, _FIREWALL, "KUBE-PROXY-FIREWALL"),
        ("FORWARD", (), "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("FORWARD", _NEW, _PORTALS, "KUBE-SERVICES"),
        ("FORWARD", _NEW, _VISIBLE, "KUBE-EXTERNAL-SERVICES"),
        ("OUTPUT", _NEW, _FIREWALL, "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", _NEW, _PORTALS, "KUBE-SERVICES"),
        ("OUTPUT", (), "", "KUBE-FIREWALL"),
    ),
    "nat": (
        ("PREROUTING", (), _PORTALS, "KUBE-SERVICES"),
        ("OUTPUT", (), _PORTALS, "KUBE-SERVICES"),
        ("POSTROUTING", (), "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ),
}
_WHY = {
    "KUBE-SERVICES": "new connections to Service addresses",
    "KUBE-EXTERNAL-SERVICES": "external addresses and node ports without an endpoint",
    "KUBE-NODEPORTS": "health checks of load balancers may come in",
    "KUBE-PROXY-FIREWALL": "sources that loadBalancerSourceRanges leave out",
    "KUBE-FORWARD": "marked traffic passes whatever FORWARD's policy is",
    "KUBE-FIREWALL": "kubelet's: route_localnet must not open 127.0.0.0/8 to the network",
    "KUBE-POSTROUTING": "what is marked gets this node's address",
}


def load(settings: ProxySettings) -> IptablesProxy:
    """The proxy with these settings."""
    return IptablesProxy(settings)


@dataclass
class _Held:
    """A Service as it was at the last sync, and what was written for it: for each node, or for all (``""``)."""

    service: Service
    slices: Sequence[EndpointSlice]
    ports: list[tuple[ServicePort, tuple[Target, ...]]]
    shared: bool
    written: dict[str, Lines] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sync:
    """A family's Services at one moment, in the cluster's order."""

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    held: dict[str, _Held]
    large: bool
    tables: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)  # by node, or for all ("")


class IptablesProxy:
    """kube-proxy's iptables mode. It remembers what it wrote for each Service, as what has not changed need not be
    written anew: neither for the next node nor for the next cluster."""

    name = "iptables"
    title = "kube-proxy 1.33 · iptables"
    requires: tuple[str, ...] = ("iptables",)
    stand_in = ""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._syncs: dict[Family, _Sync] = {}

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        """The rules of one node, a family each of the Service ranges. Raises CnilabError for what fits in no rule."""
        families: tuple[Family, ...] = (4, 6)
        addresses = _addresses(cluster, node)
        if self._localhost(node):
            yield Sysctl(
                ns=node.ns,
                name="net/ipv4/conf/all/route_localnet",
                value="1",
                component=COMPONENT,
                why="node ports serve on 127.0.0.1 too; KUBE-FIREWALL shuts out what this would let in",
            )
        ranges = self._settings.service_cidrs or cluster.topology.service_cidrs
        for family in families:
            if any((":" in each) == (family == 6) for each in ranges):
                yield self._rules(self._sync(cluster, family), node, family, addresses)

    # ------------------------------------------------------------ Services

    @no_collection()
    def _sync(self, cluster: Cluster, family: Family) -> _Sync:
        """The family's Services, with what is held of those that are as they were."""
        last = self._syncs.get(family)
        if last is not None and last.services is cluster.services and last.slices is cluster.slices:
            return last
        if last is not None and last.services is cluster.services:
            changed = changed_keys(last.slices, cluster.slices)
            before, held = last.held, dict(last.held)
            grouped = slices_by_service(slices_of(cluster.slices, changed))
            services = list(services_of(cluster.services, changed))
        else:
            before, held = last.held if last is not None else {}, {}
            grouped = slices_by_service(cluster.slices)
            services = list(cluster.services)
        for service in services:
            if not proxied(service) or not cluster_ip(service, family):
                continue
            key = service.key
            slices = grouped.get((key, family), [])
            known = before.get(key)
            if known is None or known.slices != slices or known.service != service:
                known = _held(service, slices, family)
            held[key] = known
        large = sum([len(found) for known in held.values() for _, found in known.ports]) > LARGE_CLUSTER
        if last is not None and last.large != large:
            for known in held.values():
                known.written.clear()
        sync = _Sync(cluster.services, cluster.slices, held, large)
        self._syncs[family] = sync
        return sync

    def _written(self, held: _Held, node: Node, wording: Wording) -> Lines:
        key = "" if held.shared else node.name
        lines = held.written.get(key)
        if lines is None:
            choices: list[tuple[ServicePort, Choice]] = [
                (port, choose(found, held.service, port, wording.family, node.name, node.labels))
                for port, found in held.ports
            ]
            lines = held.written[key] = service_lines(held.service, choices, wording)
        return lines

    # ------------------------------------------------------------ a node

    def _rules(self, sync: _Sync, node: Node, family: Family, addresses: Sequence[str]) -> ProxyRules:
        alike = not self._settings.node_port_cidrs and all(held.shared for held in sync.held.values())
        key = "" if alike else node.name
        if key not in sync.tables:
            sync.tables[key] = self._tables(sync, node, family, addresses)
        return ProxyRules(
            ns=node.ns,
            family=family,
            owner=OWNER,
            tables=sync.tables[key],
            jumps=JUMPS,
            component=COMPONENT,
            why=f"{len(sync.held)} Services" if len(sync.held) != 1 else "1 Service",
        )

    @no_collection()
    def _tables(self, sync: _Sync, node: Node, family: Family, addresses: Sequence[str]) -> dict[str, dict[str, str]]:
        settings = self._settings
        pods = next((str(ip_network(each)) for each in settings.pod_cidrs if (":" in each) == (family == 6)), "")
        wording = Wording(
            family=family,
            from_pods=f"-s {pods}" if pods else "",
            not_from_pods=f"! -s {pods}" if pods else "",
            masquerade_all=settings.masquerade_all,
            large=sync.large,
            node_ip=next((each for each in node.addresses if (":" in each) == (family == 6)), ""),
        )
        lines = [self._written(held, node, wording) for held in sync.held.values()]
        nat = {
            "KUBE-SERVICES": "".join([each.services for each in lines]) + self._node_ports(node, family, addresses),
            "KUBE-NODEPORTS": "".join([each.node_ports for each in lines]),
            "KUBE-POSTROUTING": _POSTROUTING,
            "KUBE-MARK-MASQ": f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n",
            CANARY: "",
        }
        for each in lines:
            nat.update(each.chains)
        filters = {
            "KUBE-SERVICES": "".join([each.filter_services for each in lines]),
            "KUBE-EXTERNAL-SERVICES": "".join([each.filter_external for each in lines]),
            "KUBE-FORWARD": ("" if settings.tcp_be_liberal else _INVALID) + _FORWARD,
            "KUBE-NODEPORTS": "".join([each.filter_node_ports for each in lines]),
            "KUBE-PROXY-FIREWALL": "".join([each.filter_firewall for each in lines]),
            "KUBE-FIREWALL": _LOCALNET if family == 4 and self._localhost(node) else "",
            CANARY: "",
        }
        return {"mangle": {CANARY: ""}, "filter": filters, "nat": nat}

    def _node_ports(self, node: Node, family: Family, addresses: Sequence[str]) -> str:
        """The way to KUBE-NODEPORTS. It comes last, so that a Service whose address a node has too goes before."""
        start = f'-A KUBE-SERVICES -m comment --comment "{LAST}"'
        networks = self._serving(node, family)
        if not networks:
            without = " ! -d ::1/128" if family == 6 else "" if self._localhost(node) else f" ! -d {LOOPBACK}"
            return f"{start} -m addrtype --dst-type LOCAL{without} -j KUBE-NODEPORTS\n"
        served = [each for each in addresses if any(ip_address(each) in network for network in networks)]
        # On ::1 they never work, on 127.0.0.1 by route_localnet alone.
        usable = [
            each for each in served if not ip_address(each).is_loopback or (family == 4 and self._localhost(node))
        ]
        return "".join(f"{start} -d {each} -j KUBE-NODEPORTS\n" for each in usable)

    def _serving(self, node: Node, family: Family) -> list[IPv4Network | IPv6Network]:
        """nodePortAddresses of a family; empty: all addresses of the node serve."""
        cidrs = node.addresses if self._settings.node_port_cidrs == ("primary",) else self._settings.node_port_cidrs
        networks = [ip_network(each, strict=False) for each in cidrs if (":" in each) == (family == 6)]
        return [] if any(network.prefixlen == 0 for network in networks) else networks

    def _localhost(self, node: Node) -> bool:
        """Whether node ports serve on 127.0.0.1, if they are to and nodePortAddresses allow it."""
        networks = self._serving(node, 4)
        serves = not networks or any(ip_address("127.0.0.1") in network for network in networks)
        return self._settings.localhost_node_ports and serves


def _held(service: Service, slices: Sequence[EndpointSlice], family: Family) -> _Held:
    ports = [(port, targets_of(slices, port)) for port in service.ports]
    # KUBE-FW asks whether a source range holds the node's own address.
    alike = not (service.source_ranges and service.load_balancer)
    shared = alike and all(same_everywhere(service, port, family, found) for port, found in ports)
    return _Held(service, slices, ports, shared)


def _addresses(cluster: Cluster, node: Node) -> list[str]:
    """The node's own first, those of its other interfaces, and the loopback ones: what the topology knows of."""
    found = list(node.addresses)
    for machine in cluster.topology.of_kind("node"):
        if machine.name == node.name:
            found += [str(ip_interface(each).ip) for card in machine.interfaces for each in card.addresses]
    return list(dict.fromkeys([*found, "127.0.0.1", "::1"]))


def _jump(chain: str, extra: tuple[str, ...], comment: str, target: str) -> Jump:
    words = ("-m", "comment", "--comment", comment) if comment else ()
    return Jump(chain, Rule((*extra, *words, "-j", target), _WHY[target]), "insert")


JUMPS: dict[str, tuple[Jump, ...]] = {table: tuple(_jump(*hook) for hook in hooks) for table, hooks in HOOKS.items()}

_POSTROUTING = (
    f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n"
    # Without the mark, a packet that comes by again (from a tunnel, say) is not masqueraded twice.
    f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n"
    '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" '
    "-j MASQUERADE --random-fully\n"
)
_INVALID = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n"
_FORWARD = (
    f'-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {MARK}/{MARK} -j ACCEPT\n'
    '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" '
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
)
_LOCALNET = (
    f'-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d {LOOPBACK} ! -s {LOOPBACK} '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
)
