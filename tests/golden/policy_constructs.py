"""NetworkPolicies of every construct: what the golden rule sets of kube-router and weave-npc are made from."""

from __future__ import annotations

from functools import cache
from typing import Any

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.plan.model import AnyObject
from emulator.policy.compile import compile_policies
from emulator.policy.enforcer import Enforcer
from tests.policy.worlds import TOPOLOGY, namespace, pod, policy

TWO = parse_topology(TOPOLOGY, "policies.yaml")
NAMED = ("web", "", "", "dns", "")
OBJECTS = (
    namespace("x", {"team": "x"}),
    namespace("y", {"team": "y"}),
    pod("x", "a", "n1", {"app": "a"}, NAMED),
    pod("x", "b", "n1", {"app": "b"}, NAMED),
    pod("y", "c", "n2", {"app": "c"}, ("", "web", "", "", "")),
)
APP_A = {"podSelector": {"matchLabels": {"app": "a"}}}
EXPRESSIONS = {
    "podSelector": {
        "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["b", "c"]},
            {"key": "tier", "operator": "DoesNotExist"},
        ]
    }
}
TEAM_Y = {"namespaceSelector": {"matchLabels": {"team": "y"}}}
BOTH = {"policyTypes": ["Ingress", "Egress"]}
CONSTRUCTS: dict[str, dict[str, Any]] = {
    "deny-ingress": {"podSelector": {}},
    "deny-all": {"podSelector": {}, **BOTH},
    "allow-all-ingress": {"podSelector": {}, "ingress": [{}]},
    "pods-and-ports": {
        **APP_A,
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": {"app": "b"}}}, EXPRESSIONS],
                "ports": [{"port": 80}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"}],
            }
        ],
    },
    "namespaces": {
        **APP_A,
        "ingress": [{"from": [TEAM_Y, {**TEAM_Y, "podSelector": {"matchLabels": {"app": "c"}}}]}],
    },
    "blocks-except": {
        **APP_A,
        "ingress": [
            {
                "from": [
                    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}},
                    {"ipBlock": {"cidr": "::/0"}},
                    {"ipBlock": {"cidr": "172.31.0.0/24"}},
                ]
            }
        ],
    },
    "end-port": {**APP_A, "ingress": [{"ports": [{"port": 8000, "endPort": 8100}]}]},
    "named-port": {**APP_A, "ingress": [{"from": [TEAM_Y], "ports": [{"port": "web"}]}]},
    "egress-named-port": {
        **APP_A,
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}, {"ports": [{"port": "web"}]}],
    },
    "egress-dns-and-world": {
        **APP_A,
        "policyTypes": ["Egress"],
        "egress": [
            {"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]},
            {"to": [{"ipBlock": {"cidr": "172.31.0.0/24", "except": ["172.31.0.128/25"]}}]},
        ],
    },
    "both-directions": {"podSelector": {}, **BOTH, "ingress": [{"from": [APP_A]}], "egress": [{"to": [TEAM_Y]}]},
}


@cache
def cluster_of(construct: str) -> Cluster:
    """The cluster with the policy ``x/p`` of that construct."""
    return assemble(
        TWO,
        validate([*OBJECTS, policy("x", "p", **CONSTRUCTS[construct])]).objects,
        load_style("kube-router").ipam(TWO),
    )


def on_n1(enforcer: Enforcer, construct: str) -> list[AnyObject]:
    """What the enforcer puts into node n1."""
    cluster = cluster_of(construct)
    return list(enforcer.node(cluster, compile_policies(cluster), cluster.node("n1")))
