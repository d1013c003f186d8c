"""kube-proxy's nftables mode: a table ``kube-proxy`` for each IP family, whose maps find a Service in one look-up.

The path of a connection's first packet; later ones follow conntrack::

    filter-prerouting-pre-dnat ─ firewall-check ─ @firewall-ips ──▶ firewall-…     source ranges of a load balancer
    nat-prerouting / nat-output ─ services ┬ @service-ips ──────▶ service-… ──▶ endpoint-…   numgen, then DNAT
                                           └ @service-nodeports ─▶ external-… ─▶ service-… or local-…
    filter-forward / -output ┬ service-endpoints-check ─ @no-endpoint-services ──▶ reject-chain, or drop
                             └ cluster-ips-check ─ @cluster-ips reject, the rest of the Service CIDR drop
    filter-input ─ nodeport-endpoints-check ─ @no-endpoint-nodeports ──▶ reject-chain, or drop
    nat-postrouting ─ masquerading: what was marked 0x4000

A Service is a part of the table; a part that is the same on all nodes is one object, made once.

Follows kubernetes/kubernetes 1.34, pkg/proxy/nftables/proxier.go and its test's ``baseRules``: the first layout with
chains before DNAT of their own (``-pre-dnat``), the last with a chain for each endpoint. (1.36 puts the endpoints into
one map of the service chain and hairpin connections into a set.) Element comments are cut to the 128 bytes that nft
takes. Where two Services claim the same address and port, the first by name has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from emulator.cluster.collection import no_collection
from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import EndpointSlice, Service
from emulator.errors import UserError
from emulator.plan.addressing import contains, of_family
from emulator.plan.model import AnyObject, Family, NftChain, NftElement, NftPart, NftRules, NftSet
from emulator.proxy.endpoints import (
    changed_keys,
    choose,
    cluster_ip,
    proxied,
    same_everywhere,
    services_of,
    slices_by_service,
    slices_of,
    targets,
)
from emulator.proxy.model import ProxySettings
from emulator.proxy.nftables_service import balancer_addresses, check, service_part
from emulator.proxy.nodeport_addresses import EVERYWHERE, PRIMARY, interface_addresses, nodeport_addresses

KUBE_PROXY = "kube-proxy"
TABLE = "kube-proxy"
MARK = "0x4000"  # masqueradeBit 14

# name, hook; in the order of a packet's way
_HOOKS = (
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority -110", ("firewall-check",)),
    ("filter-output-pre-dnat", "type filter hook output priority -110", ("firewall-check",)),
    ("nat-prerouting", "type nat hook prerouting priority -100", ("services",)),
    ("nat-output", "type nat hook output priority -100", ("services",)),
    (
        "filter-input",
        "type filter hook input priority 0",
        ("nodeport-endpoints-check", "service-endpoints-check"),
    ),
    (
        "filter-forward",
        "type filter hook forward priority 0",
        ("service-endpoints-check", "cluster-ips-check"),
    ),
    (
        "filter-output",
        "type filter hook output priority 0",
        ("service-endpoints-check", "cluster-ips-check"),
    ),
    ("nat-postrouting", "type nat hook postrouting priority 100", ("masquerading",)),
)


def load(settings: ProxySettings) -> NftablesProxy:
    """The entry point. Raises UserError for nodePortAddresses that cannot be told from the pods' network."""
    for cidr in settings.node_port_cidrs:
        if cidr == PRIMARY or cidr in EVERYWHERE:
            continue
        if any(_overlap(cidr, pods) for pods in settings.pod_cidrs):
            raise UserError(
                f"nodePortAddresses {cidr} overlaps with the pods' network: which addresses the CNI gives to a node "
                "is not known before it is wired",
                hint="name the nodes' own networks, or 0.0.0.0/0 for all addresses",
            )
    return NftablesProxy(settings)


class _Table(NamedTuple):
    """What a node's last table was made of: parts by Service, and whether any of these may clash."""

    node: Node
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    parts: dict[str, NftPart]
    claimed: bool


class NftablesProxy:
    """One ``kube-proxy --proxy-mode=nftables`` for every node.

    Holds the parts that it made for the last cluster, as most Services do not change from one to the next, and most
    parts do not differ from node to node.
    """

    name = "nftables"
    title = "kube-proxy 1.34 · nftables"
    requires: tuple[str, ...] = ("nft-program", "nft-nat", "nft-numgen", "nft-fib")
    stand_in = ""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self._slices: tuple[EndpointSlice, ...] = ()
        self._grouped: dict[tuple[str, int], list[EndpointSlice]] = {}
        self._made: dict[tuple[str, int], _Made] = {}
        self._tables: dict[tuple[str, Family], _Table] = {}
        self._changed: tuple[Sequence[EndpointSlice], set[str]] | None = None  # since which slices, and what

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        """A table for each family that the node has an address of."""
        if cluster.slices is not self._slices:
            self._regroup(cluster.slices)
        families: tuple[Family, ...] = (4, 6)
        for family in families:
            if of_family(node.addresses, family):
                yield self._table(cluster, node, family)
        if len(self._made) > 2 * len(families) * len(cluster.services) + 1000:
            known = {service.key for service in cluster.services}
            self._made = {key: made for key, made in self._made.items() if key[0] in known}

    def _regroup(self, slices: tuple[EndpointSlice, ...]) -> None:
        changed = changed_keys(self._slices, slices)
        if len(changed) > len(slices) // 8:
            self._grouped = slices_by_service(slices)
        else:
            for key in changed:
                self._grouped.pop((key, 4), None)
                self._grouped.pop((key, 6), None)
            self._grouped.update(slices_by_service(slices_of(slices, changed)))
        self._changed = self._slices, changed
        self._slices = slices

    @no_collection()
    def _table(self, cluster: Cluster, node: Node, family: Family) -> NftRules:
        parts, claimed = self._parts(cluster, node, family)
        return NftRules(
            ns=node.ns,
            family="ip" if family == 4 else "ip6",
            name=TABLE,
            comment="rules for kube-proxy",
            frame=_frame(self.settings, cluster, node, family),
            hooks=_hooks(),
            parts=_unclashed(parts) if claimed else parts,
            component=KUBE_PROXY,
            why=f"Services: DNAT to endpoints, IPv{family}",
        )

    def _parts(self, cluster: Cluster, node: Node, family: Family) -> tuple[dict[str, NftPart], bool]:
        """The parts of all Services, and whether any has an address that another could have too. Where nothing but
        slices changed since the node's last table, only those of their Services are looked at."""
        last = self._tables.get((node.name, family))
        if last is not None and last.services is cluster.services and last.node == node:
            parts, claimed = dict(last.parts), last.claimed
            if changed := self._changed_since(last.slices):
                for service in services_of(cluster.services, changed):
                    if service.key in parts:
                        parts[service.key] = self._part(service, node, family)
        else:
            parts, claimed = {}, False
            for service in cluster.services:
                if proxied(service) and cluster_ip(service, family):
                    parts[service.key] = self._part(service, node, family)
                    claimed = claimed or bool(service.external_ips or service.load_balancer)
        self._tables[node.name, family] = _Table(node, cluster.services, cluster.slices, parts, claimed)
        return parts, claimed

    def _changed_since(self, slices: Sequence[EndpointSlice]) -> set[str]:
        """The Services whose slices are not those that they were among ``slices``. The nodes all ask the same."""
        if self._changed is None or self._changed[0] is not slices:
            self._changed = slices, changed_keys(slices, self._slices)
        return self._changed[1]

    def _part(self, service: Service, node: Node, family: Family) -> NftPart:
        slices = self._grouped.get((service.key, family), [])
        made = self._made.get((service.key, family))
        if made is None or not made.still_of(service, slices):
            made = self._made[service.key, family] = _Made(service, slices, family)
        return made.part(self.settings, node)


class _Made:
    """A Service's candidates, and the parts made of them: one, or one for each node if they differ."""

    def __init__(self, service: Service, slices: Sequence[EndpointSlice], family: Family) -> None:
        check(service, slices)
        self._service = service
        self._slices = tuple(slices)
        self._family = family
        self._candidates = [(port, targets(slices, port)) for port in service.ports]
        self._same = all(same_everywhere(service, port, family, offered) for port, offered in self._candidates)
        self._ranges = [cidr.strip() for cidr in service.source_ranges if (":" in cidr) == (family == 6)]
        self._parts: dict[tuple[str, bool], NftPart] = {}

    def still_of(self, service: Service, slices: Sequence[EndpointSlice]) -> bool:
        """Whether all of it was made of these."""
        return (
            (self._service is service or self._service == service)
            and len(self._slices) == len(slices)
            and all(ours is theirs or ours == theirs for ours, theirs in zip(self._slices, slices, strict=True))
        )

    def part(self, settings: ProxySettings, node: Node) -> NftPart:
        address = of_family(node.addresses, self._family)
        from_node = any(contains(cidr, address) for cidr in self._ranges)
        variant = ("" if self._same else node.name, from_node)
        if variant not in self._parts:
            ports = [
                (port, choose(offered, self._service, port, self._family, node.name, node.labels))
                for port, offered in self._candidates
            ]
            self._parts[variant] = service_part(self._service, self._family, ports, settings, self._sources(from_node))
        return self._parts[variant]

    def _sources(self, from_node: bool) -> tuple[str, ...]:
        """loadBalancerSourceRanges; where the node is in them also the balancer's own addresses, which a node that has
        them on an interface uses as its source."""
        return (*self._ranges, *(balancer_addresses(self._service, self._family) if from_node else ()))


# -- what all Services share ------------------------------------------------------------------------------------


def _hooks() -> tuple[NftChain, ...]:
    return tuple(
        NftChain(
            name,
            tuple(f"{'' if 'type nat' in hook else 'ct state new '}jump {target}" for target in jumps),
            hook=hook,
        )
        for name, hook, jumps in _HOOKS
    )


def _frame(settings: ProxySettings, cluster: Cluster, node: Node, family: Family) -> NftPart:
    ip, address = ("ip", "ipv4_addr") if family == 4 else ("ip6", "ipv6_addr")
    no_localhost = "ip daddr != 127.0.0.0/8" if family == 4 else "ip6 daddr != ::1"
    service_key = f"{address} . inet_proto . inet_service"
    lookup = f"{ip} daddr . meta l4proto . th dport vmap"
    wanted = settings.node_port_cidrs or (PRIMARY,)
    nodeports = nodeport_addresses(wanted, node, family, interface_addresses(cluster, node))
    ours = "" if nodeports is None else f"{ip} daddr @nodeport-ips"
    sets = [NftSet("cluster-ips", address, comment="Active ClusterIPs")]
    if nodeports is not None:
        sets.append(NftSet("nodeport-ips", address, comment="IPs that accept NodePort traffic"))
    sets += [
        NftSet("no-endpoint-services", service_key, True, comment="vmap to drop or reject packets to services with no "
               "endpoints"),
        NftSet("no-endpoint-nodeports", "inet_proto . inet_service", True, comment="vmap to drop or reject packets to "
               "service nodeports with no endpoints"),
        NftSet("firewall-ips", service_key, True, comment="destinations that are subject to LoadBalancerSourceRanges"),
        NftSet("service-ips", service_key, True, comment="ClusterIP, ExternalIP and LoadBalancer IP traffic"),
        NftSet("service-nodeports", "inet_proto . inet_service", True, comment="NodePort traffic"),
    ]  # fmt: skip
    clusters = [f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"']
    service_cidrs = [cidr for cidr in settings.service_cidrs if (":" in cidr) == (family == 6)]
    if service_cidrs:
        listed = ", ".join(service_cidrs)
        clusters.append(f'{ip} daddr {{ {listed} }} drop comment "Drop traffic to unallocated ClusterIPs"')
    chains = (
        NftChain("mark-for-masquerade", (f"mark set mark or {MARK}",)),
        NftChain(
            "masquerading",
            (f"mark and {MARK} == 0 return", f"mark set mark xor {MARK}", "masquerade fully-random"),
        ),
        NftChain("reject-chain", ("reject",), comment="helper for @no-endpoint-services / @no-endpoint-nodeports"),
        NftChain("cluster-ips-check", tuple(clusters)),
        NftChain("service-endpoints-check", (f"{lookup} @no-endpoint-services",)),
        NftChain(
            "nodeport-endpoints-check",
            (f"{ours or no_localhost} meta l4proto . th dport vmap @no-endpoint-nodeports",),
        ),
        NftChain("firewall-check", (f"{lookup} @firewall-ips",)),
        NftChain(
            "services",
            (
                f"{lookup} @service-ips",
                f"{ours or f'fib daddr type local {no_localhost}'} meta l4proto . th dport vmap @service-nodeports",
            ),
        ),
    )
    elements = tuple(NftElement("nodeport-ips", each) for each in nodeports or ())
    return NftPart(tuple(sets), chains, elements)


# -- between Services ---------------------------------------------------------------------------------------------


def _unclashed(parts: dict[str, NftPart]) -> dict[str, NftPart]:
    """The parts without elements of keys that an earlier one has: externalIPs may stand in several Services."""
    taken: dict[tuple[str, str], str] = {}
    result = parts
    for subject, part in parts.items():
        clashes = False
        for item in part.elements:
            if taken.setdefault((item.of, item.key), subject) != subject:
                clashes = True
        if clashes:
            if result is parts:
                result = dict(parts)
            kept = tuple(item for item in part.elements if taken[item.of, item.key] == subject)
            result[subject] = msgspec.structs.replace(part, elements=kept)
    return result


def _overlap(one: str, other: str) -> bool:
    first, second = ip_network(one, strict=False), ip_network(other, strict=False)
    return first.version == second.version and first.overlaps(second)
