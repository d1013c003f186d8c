"""kube-router's deviations, one by one: what the specification says of a flow, what kube-router's rules make of it, and
by what name that is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.policy.compile import compile_policies
from emulator.policy.enforcer import PolicyMode
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow
from emulator.policy.kube_router import load
from emulator.policy.model import Family
from tests.policy.reading import Reader
from tests.policy.worlds import TOPOLOGY, namespace, pod
from tests.unit.policy.test_kube_router_fuzz import read

TWO = parse_topology(TOPOLOGY, "policies.yaml")
NAMED = ("web", "", "", "dns", "")  # TCP 80 and UDP 53; see tests.policy.worlds.PORTS
OBJECTS = [
    namespace("x", {}),
    namespace("y", {}),
    pod("x", "a", "n1", {"app": "a"}, NAMED),
    pod("x", "b", "n2", {"app": "b"}, NAMED),
    pod("y", "c", "n2", {"app": "c"}, ("", "web", "", "", "")),  # its web is TCP 81
]


def policy(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "x"},
        "spec": {"podSelector": {}, **spec},
    }


def to(*peers: dict[str, Any], ports: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    rule: dict[str, Any] = {"to": list(peers)} if peers else {}
    return [rule | ({"ports": ports} if ports else {})]


@dataclass(frozen=True)
class Case:
    """``source`` and ``target``: a pod, a node, or an address outside."""

    policy: dict[str, Any]
    source: str
    target: str
    protocol: str
    port: int
    specified: bool
    told: str
    icmp: tuple[int, int] | None = None
    family: Family = 4


CASES = {
    "an echo request passes": Case(
        policy(), "y/c", "x/a", "ICMP", 0, False, "ICMP echo requests and errors pass", icmp=(8, 0)
    ),
    "an echo request passes by IPv6": Case(
        policy(), "y/c", "x/a", "ICMPv6", 0, False, "ICMP echo requests and errors pass", icmp=(128, 0), family=6
    ),
    "egress to its own node is judged": Case(
        policy(egress=[], policyTypes=["Egress"]), "x/a", "n1", "TCP", 80, True, "egress policies judge"
    ),
    "egress to its own node is judged by IPv6": Case(
        policy(egress=[], policyTypes=["Egress"]), "x/a", "n1", "TCP", 80, True, "egress policies judge", family=6
    ),
    "an ingress rule opens egress among the policy's pods": Case(
        policy(ingress=[{}], policyTypes=["Ingress", "Egress"]),
        "x/a",
        "x/b",
        "TCP",
        80,
        False,
        "a policy of both types",
    ),
    "an egress rule opens ingress among the policy's pods": Case(
        policy(egress=[{}], policyTypes=["Ingress", "Egress"]), "x/a", "x/b", "TCP", 80, False, "a policy of both types"
    ),
    "an except narrows the rule's other blocks": Case(
        policy(
            ingress=[
                {
                    "from": [
                        {"ipBlock": {"cidr": "172.31.0.0/16", "except": ["172.31.0.0/24"]}},
                        {"ipBlock": {"cidr": "172.0.0.0/8"}},
                    ]
                }
            ]
        ),
        "172.31.0.10",
        "x/a",
        "TCP",
        80,
        True,
        "an except narrows all ipBlocks",
    ),
    "all of IPv6 is not all of it": Case(
        policy(ingress=[{"from": [{"ipBlock": {"cidr": "::/0"}}]}]),
        "fc00::7",
        "x/a",
        "TCP",
        80,
        True,
        "::/0 is 2000::/3 and fd00::/8",
        family=6,
    ),
    "an unknown named port opens all": Case(
        policy(ingress=[{"from": [{"namespaceSelector": {}}], "ports": [{"port": "nobody-has-it"}]}]),
        "y/c",
        "x/a",
        "TCP",
        81,
        False,
        "a named port that no pod has",
    ),
    "an unknown named port opens all of egress": Case(
        policy(egress=to({"namespaceSelector": {}}, ports=[{"port": "nobody-has-it"}]), policyTypes=["Egress"]),
        "x/a",
        "y/c",
        "UDP",
        53,
        False,
        "a named port that no pod has",
    ),
    "a named port without peers is open outside": Case(
        policy(egress=to(ports=[{"port": "web"}]), policyTypes=["Egress"]),
        "x/a",
        "172.31.0.10",
        "TCP",
        80,
        False,
        "a named port without peers",
    ),
    "a named port without peers is not that of other namespaces": Case(
        policy(egress=to(ports=[{"port": "web"}]), policyTypes=["Egress"]),
        "x/a",
        "y/c",
        "TCP",
        81,
        True,
        "a named port without peers",
    ),
    "a named port opens nothing in a block": Case(
        policy(egress=to({"ipBlock": {"cidr": "10.244.0.0/16"}}, ports=[{"port": "web"}]), policyTypes=["Egress"]),
        "x/a",
        "x/b",
        "TCP",
        80,
        True,
        "a named port opens nothing in an ipBlock",
    ),
}


@pytest.mark.parametrize("mode", ["faithful", "spec"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_deviation_is_reproduced_told_and_left_out_in_spec_mode(case: Case, mode: PolicyMode) -> None:
    style = load_style("kube-router")
    cluster = assemble(TWO, validate([*OBJECTS, case.policy]).objects, style.ipam(TWO))
    compiled = compile_policies(cluster)
    enforcer = load(mode)

    def end(name: str) -> End:
        for one in cluster.pods:
            if one.key == name:
                return End("pod", name, one.addresses[0 if case.family == 4 else 1])
        for node in cluster.nodes:
            if node.name == name:
                return End("node", name, node.addresses[0 if case.family == 4 else 1])
        return End("external", name, name)

    flow = Flow(end(case.source), end(case.target), case.protocol, case.port, icmp=case.icmp)
    assert evaluate(compiled, flow).allowed == case.specified
    objects = [item for node in cluster.nodes for item in enforcer.node(cluster, compiled, node)]
    readers = {node.name: Reader(objects, node.ns, case.family) for node in cluster.nodes}
    deviation = enforcer.deviates(compiled, flow, allowed=case.specified)
    notices = [one.what for one in enforcer.deviations(cluster, compiled)]
    if mode == "spec":
        assert read(readers, cluster, flow) == case.specified
        assert (deviation, notices) == (None, [])
    else:
        assert read(readers, cluster, flow) != case.specified
        assert deviation is not None
        assert deviation.what.startswith(case.told)
        assert deviation.source.startswith("cloudnativelabs/kube-router pkg/controllers/netpol/")
        assert any(what.startswith(case.told) for what in notices)
