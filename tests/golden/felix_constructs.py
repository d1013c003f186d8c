"""Policies of every construct: what the golden rule sets of Felix are made from, and loaded into a kernel.

Two nodes, dual stack. Namespaces ``shop`` (label team: a) and ``lab`` (team: b); pods web and db on n1, api on n2, all
in ``shop``, and probe in ``lab`` on n2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.plan.iptables import rule_text
from emulator.plan.model import AnyObject, IpSet, IptablesRules, NftChain, NftRules, NftSet
from emulator.policy.enforcement import enforce
from emulator.policy.enforcer import PolicyMode
from emulator.policy.model import (
    Expression,
    IcmpMatch,
    Peer,
    PodSet,
    Policy,
    PortMatch,
    Rule,
    ServiceRef,
)
from tests.policy.worlds import policy as network_policy

TOPOLOGY = """
name: two
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
pods: 0
switches: [{name: s1, cidrs: [192.168.50.0/24, "fd00:50::/64"]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
Object = dict[str, Any]
NFTABLES = "calico+nftables"


def namespace(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(name: str, node: str, where: str = "shop", ports: tuple[Object, ...] = (), **labels: str) -> Object:
    container = {"name": "c", "image": "i", "ports": list(ports) or [{"containerPort": 80, "name": "http"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": where, "labels": {"app": name, **labels}},
        "spec": {"nodeName": node, "containers": [container]},
    }


def policy(name: str, where: str = "shop", **spec: Any) -> Object:
    return network_policy(where, name, **spec)


SITE: tuple[Object, ...] = (
    namespace("shop", team="a"),
    namespace("lab", team="b"),
    pod("web", "n1", tier="front"),
    pod("db", "n1", ports=({"containerPort": 5432, "name": "sql"}, {"containerPort": 5433, "name": "stats"})),
    pod("api", "n2", ports=({"containerPort": 8080, "name": "http"}, {"containerPort": 53, "protocol": "UDP"})),
    pod("probe", "n2", "lab"),
)
ME = {"matchLabels": {"app": "web"}}


def _from(*peers: Object, ports: tuple[Object, ...] = (), **spec: Any) -> Object:
    rule: Object = {"from": list(peers)} | ({"ports": list(ports)} if ports else {})
    return policy("it", podSelector=ME, ingress=[rule], **spec)


CONSTRUCTS: dict[str, tuple[Object, ...]] = {
    "deny-ingress": (policy("deny", podSelector=ME),),
    "deny-both": (policy("deny", policyTypes=["Ingress", "Egress"]),),
    "allow-all": (policy("all", podSelector=ME, ingress=[{}], egress=[{}], policyTypes=["Ingress", "Egress"]),),
    "pods": (_from({"podSelector": {"matchLabels": {"app": "api"}}}),),
    "namespaces": (_from({"namespaceSelector": {"matchLabels": {"team": "b"}}}),),
    "pods-in-namespaces": (_from({"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": ME}),),
    "everybody": (_from({"namespaceSelector": {}}),),
    "expressions": (
        _from(
            {
                "podSelector": {
                    "matchExpressions": [
                        {"key": "app", "operator": "In", "values": ["db", "api"]},
                        {"key": "tier", "operator": "DoesNotExist"},
                        {"key": "app", "operator": "NotIn", "values": ["web"]},
                    ]
                }
            }
        ),
    ),
    "block": (_from({"ipBlock": {"cidr": "203.0.113.0/24"}}),),
    "block-except": (_from({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16", "10.1.0.0/16"]}}),),
    "block-ipv6": (_from({"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:10::/32"]}}),),
    "several-peers": (_from({"podSelector": {"matchLabels": {"app": "api"}}}, {"ipBlock": {"cidr": "10.9.0.0/16"}}),),
    "ports": (
        _from(ports=({"port": 80}, {"port": 81}, {"port": 443, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"})),
    ),
    "port-range": (_from(ports=({"port": 8000, "endPort": 8010}, {"port": 8005, "endPort": 8020})),),
    "many-ports": (_from(ports=tuple({"port": 1000 + 2 * number} for number in range(20))),),
    "whole-protocol": (_from(ports=({"protocol": "UDP"}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"})),),
    "named-port": (_from(ports=({"port": "http"},)),),
    "named-and-numbered": (_from({"podSelector": {}}, ports=({"port": "http"}, {"port": 9000})),),
    "named-port-of-peers": (
        policy(
            "it",
            podSelector=ME,
            policyTypes=["Egress"],
            egress=[{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}],
        ),
    ),
    "sctp": (_from(ports=({"protocol": "SCTP", "port": 3868},)),),
    "same-selector": tuple(policy(f"p{number}", ingress=[{}] if number == 6 else []) for number in range(7)),
    "long-name": (policy("a-name-that-is-too-long-for-a-chain", podSelector=ME),),
}


def _calico(*rules: Rule, egress: tuple[Rule, ...] | None = None, **fields: Any) -> Policy:
    subject = PodSet(namespace="shop", pods=Expression("app == 'web'"))
    return Policy("CalicoNetworkPolicy", "shop", "it", subject, rules, egress, **fields)


_SETS = PodSet(namespace="shop", pods=Expression("role in {'b', 'a'} || has(x)"), network_sets=True)
# Calico's own, in the neutral form: what its rules become, without the sets' members
OWN: dict[str, Policy] = {
    "actions": _calico(
        Rule("log"),
        Rule("pass", ports=(PortMatch("TCP", 1, 1),)),
        Rule("deny", ports=(PortMatch("TCP", 2, 2),)),
        Rule(),
    ),
    "selectors": _calico(
        Rule(peers=(Peer(pods=_SETS),)),
        Rule(peers=(Peer(pods=_SETS, not_pods=PodSet(pods=Expression("has(y)"))),)),
        Rule(peers=(Peer(not_pods=PodSet(pods=Expression("!has(y)"))),)),
        Rule(peers=(Peer(pods=PodSet(accounts=Expression("role == 'x'"), account_names=("b", "a"))),)),
        Rule(peers=(Peer(pods=PodSet(namespaces=Expression("all()"), pods=Expression("a == 'b'"))),)),
        Rule(peers=(Peer(pods=PodSet(global_only=True, pods=Expression("a == 'b'"))),)),
    ),
    "ports": _calico(
        Rule(
            ports=(PortMatch("TCP", 80, 80), PortMatch("TCP", name="http")),
            source_ports=tuple(PortMatch("TCP", 2 * number, 2 * number) for number in range(1, 18)),
        ),
        Rule(
            not_ports=(PortMatch("UDP", 53, 60), PortMatch("UDP", name="dns")),
            not_source_ports=(PortMatch("UDP", 5, 5),),
        ),
    ),
    "nets": _calico(
        Rule(
            peers=(Peer(nets=("10.1.0.0/16", "10.2.0.0/16", "fd00:1::/32"), not_nets=("10.1.1.0/24", "fd00:1:1::/48")),)
        ),
        Rule(peers=(Peer(not_nets=("10.1.0.0/16",)),), subject=Peer(nets=("10.3.0.0/16", "10.4.0.0/16"))),
    ),
    "protocols": _calico(
        Rule(ports=(PortMatch("ICMP"),), icmp=IcmpMatch(8, 0), family=4),
        Rule(ports=(PortMatch("ICMPv6"),), not_icmp=IcmpMatch(128), family=6),
        Rule(not_protocol="UDP"),
        Rule(ports=(PortMatch("47"),)),
    ),
    "services": _calico(
        Rule(peers=(Peer(service=ServiceRef("shop", "api")),)),
        egress=(Rule(peers=(Peer(service=ServiceRef("shop", "api")),)),),
    ),
    "global": Policy("CalicoGlobalNetworkPolicy", "", "everyone", PodSet(pods=Expression("all()")), (Rule("deny"),)),
}


@cache
def cluster(*names: str, mode: PolicyMode = "faithful") -> Cluster:
    """The site with the policies of some constructs."""
    style = load_style("calico")
    topology = style.prepare(parse_topology(TOPOLOGY, "two.yaml"))
    objects = [*SITE, *(thing for name in names for thing in CONSTRUCTS[name])]
    return assemble(topology, validate_objects(objects), style.ipam(topology))


def planned(
    *names: str, node: str = "n1", mode: PolicyMode = "faithful", style: str = "calico"
) -> tuple[AnyObject, ...]:
    """What Felix puts into a node."""
    made = load_style(style).enforcer(mode)
    assert made is not None
    known = cluster(*names)
    return tuple(enforce(made, known).node(known, known.node(node)))


def written(objects: tuple[AnyObject, ...]) -> str:
    """Sets and chains as text, without what is there in any case."""
    usual = {line for item in planned() if isinstance(item, IptablesRules) for line in _lines(item)}
    lines: list[str] = []
    for item in objects:
        if isinstance(item, IpSet):
            lines.append(f"{item.name} {item.type}: {' '.join(item.members)}  # {item.why}")
        elif isinstance(item, IptablesRules):
            lines.append(f"*filter, IPv{item.family}")
            lines += [line for line in _lines(item) if line not in usual]
    return "\n".join(lines) + "\n"


def written_for_nft(objects: tuple[AnyObject, ...]) -> str:
    """The same of nftables mode."""
    usual = {(table.family, item.name): item for table in _tables(planned(style=NFTABLES)) for item in _things(table)}
    lines: list[str] = []
    for table in _tables(objects):
        lines.append(f"table {table.family} {table.name}")
        elements = [item for part in table.parts.values() for item in part.elements]
        for item in _things(table):
            if usual.get((table.family, item.name)) == item:
                continue
            if isinstance(item, NftChain):
                lines += [f"{item.name}: {rule}" for rule in item.rules] or [f"{item.name}: no rules"]
            else:
                members = ", ".join(element.key for element in elements if element.of == item.name)
                lines.append(f"{item.name} {{ type {item.type}; {' '.join(item.flags)} }}: {members}")
    return "\n".join(lines) + "\n"


def _tables(objects: tuple[AnyObject, ...]) -> list[NftRules]:
    return [item for item in objects if isinstance(item, NftRules)]


def _things(table: NftRules) -> Iterator[NftSet | NftChain]:
    for part in (table.frame, *table.parts.values()):
        yield from part.sets
        yield from part.chains


def _lines(item: IptablesRules) -> list[str]:
    return [f"-A {chain.name} {rule_text(rule)}" for chain in item.chains for rule in chain.rules]
