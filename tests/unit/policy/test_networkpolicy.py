"""What the API says of NetworkPolicies, corner by corner, as the evaluator judges it."""

from __future__ import annotations

import pytest

from emulator.policy.networkpolicy import network_policy
from tests.policy.judging import BASE, Judge
from tests.policy.worlds import pod

HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\n"
ALL = {f"{space}/{name}" for space in "xyz" for name in "ab"}


def policy(spec: str) -> str:
    return f"{HEAD}spec: {spec}\n"


def directions(spec: dict[str, object]) -> tuple[bool, bool]:
    found = network_policy({"metadata": {"name": "p", "namespace": "x"}, "spec": spec})
    return found.ingress is not None, found.egress is not None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, (True, False)),
        ({"ingress": [{}]}, (True, False)),
        ({"egress": []}, (True, False)),
        ({"egress": [{}]}, (True, True)),
        ({"policyTypes": [], "egress": [{}]}, (True, True)),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, (False, True)),
        ({"policyTypes": ["Egress", "Egress"]}, (False, True)),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, (True, False)),
    ],
)
def test_policy_types_default_as_the_api_server_fills_them_in(
    spec: dict[str, object], expected: tuple[bool, bool]
) -> None:
    assert directions(spec) == expected


def test_empty_spec_denies_all_ingress_and_no_egress() -> None:
    judge = Judge(policy("{}"))
    assert judge.reaching("x/a") == set()
    assert judge.allows("x/a", "y/a")
    verdict = judge.verdict("y/a", "x/a")
    assert (verdict.ingress.reason, verdict.ingress.isolated_by) == ("isolated", ("NetworkPolicy x/p",))
    assert (verdict.egress.reason, verdict.egress.allowed) == ("not isolated", True)


@pytest.mark.parametrize("selector", ["", "podSelector: null, ", "podSelector: {}, "])
def test_missing_null_and_empty_subject_select_every_pod_of_the_namespace(selector: str) -> None:
    judge = Judge(policy(f"{{{selector}policyTypes: [Ingress]}}"))
    assert (judge.reaching("x/a"), judge.reaching("x/b")) == (set(), set())
    assert judge.reaching("y/a") == ALL - {"y/a"}


@pytest.mark.parametrize("rules", ["[{}]", "[{from: []}]", "[{from: null, ports: []}]"])
def test_an_empty_rule_allows_everything(rules: str) -> None:
    judge = Judge(policy(f"{{ingress: {rules}}}"))
    assert judge.reaching("x/a") == ALL - {"x/a"}
    assert judge.allows("172.31.0.10", "x/a", protocol="ICMP", port=0)


def test_no_rules_allow_nothing() -> None:
    assert Judge(policy("{ingress: []}")).reaching("x/a") == set()


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ("[{podSelector: {}}]", {"x/b"}),
        ("[{podSelector: {matchLabels: {app: a}}}]", set()),
        ("[{podSelector: {matchLabels: {app: b}}}]", {"x/b"}),
        ("[{namespaceSelector: {}}]", ALL - {"x/a"}),
        ("[{namespaceSelector: {matchLabels: {team: y}}}]", {"y/a", "y/b"}),
        ("[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]", {"z/a", "z/b"}),
        ("[{namespaceSelector: {matchLabels: {team: y}}, podSelector: {matchLabels: {app: a}}}]", {"y/a"}),
        # the slip with two dashes
        ("[{namespaceSelector: {matchLabels: {team: y}}}, {podSelector: {matchLabels: {app: b}}}]",
         {"y/a", "y/b", "x/b"}),
        ("[{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}]", {"x/b"}),
        ("[{podSelector: {matchExpressions: [{key: absent, operator: NotIn, values: [a]}]}}]", {"x/b"}),
        ("[{podSelector: {matchExpressions: [{key: absent, operator: DoesNotExist}]}}]", {"x/b"}),
        ("[{podSelector: {matchExpressions: [{key: absent, operator: Exists}]}}]", set()),
        ("[{podSelector: {matchExpressions: [{key: absent, operator: In, values: ['']}]}}]", set()),
        ("[{podSelector: {matchLabels: {app: b}, matchExpressions: [{key: tier, operator: In, values: [xa]}]}}]",
         set()),
        ("[{ipBlock: {cidr: 10.244.2.0/24}}]", {"x/b", "y/b", "z/b"}),
        ("[{ipBlock: {cidr: 10.244.2.77/24}}]", {"x/b", "y/b", "z/b"}),
        ("[{ipBlock: {cidr: 10.244.2.0/24, except: [10.244.2.2/31]}}]", {"z/b"}),
        ("[{ipBlock: {cidr: 10.244.2.0/24, except: [10.244.2.2/31]}}, {podSelector: {}}]", {"x/b", "z/b"}),
        ("[{ipBlock: {cidr: 'fd00::/8'}}]", set()),
    ],
)  # fmt: skip
def test_peers(peers: str, expected: set[str]) -> None:
    assert Judge(policy(f"{{podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{from: {peers}}}]}}")).reaching(
        "x/a"
    ) == expected  # fmt: skip


def test_selectors_match_nobody_outside() -> None:
    judge = Judge(policy("{ingress: [{from: [{namespaceSelector: {}}]}]}"))
    assert not judge.allows("172.31.0.10", "x/a")


def test_each_family_is_judged_by_its_own_address() -> None:
    judge = Judge(policy("{ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]}"))
    assert judge.allows("y/a", "x/a", family=4)
    assert not judge.allows("y/a", "x/a", family=6)


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("[{}]", {("TCP", 80), ("TCP", 53), ("TCP", 8080)}),
        ("[{protocol: UDP}]", {("UDP", 80), ("UDP", 53)}),
        ("[{port: 80}]", {("TCP", 80)}),
        ("[{port: 53, endPort: 80}]", {("TCP", 80), ("TCP", 53)}),
        ("[{port: 80, endPort: 80}]", {("TCP", 80)}),
        ("[{port: 81, endPort: 8080}]", {("TCP", 8080)}),
        ("[{protocol: SCTP, port: 80}]", {("SCTP", 80)}),
        ("[{port: 80}, {protocol: UDP, port: 53}]", {("TCP", 80), ("UDP", 53)}),
        ("[{port: nowhere}]", set()),
    ],
)
def test_ports(ports: str, expected: set[tuple[str, int]]) -> None:
    judge = Judge(policy(f"{{ingress: [{{ports: {ports}}}]}}"))
    probed = [("TCP", 53), ("TCP", 80), ("TCP", 8080), ("UDP", 53), ("UDP", 80), ("SCTP", 80), ("ICMP", 0)]
    assert {one for one in probed if judge.allows("y/a", "x/a", one[1], one[0])} == expected


def test_peers_and_ports_pair_inside_one_rule_only() -> None:
    judge = Judge(
        policy(
            "{ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}}], ports: [{port: 80}]},"
            " {from: [{namespaceSelector: {matchLabels: {team: z}}}], ports: [{port: 81}]}]}"
        )
    )
    assert (judge.allows("y/a", "x/a", 80), judge.allows("y/a", "x/a", 81)) == (True, False)
    assert (judge.allows("z/a", "x/a", 80), judge.allows("z/a", "x/a", 81)) == (False, True)
    assert judge.verdict("z/a", "x/a", 81).ingress.rule == 1


def named(*rows: tuple[str, tuple[str, ...]]) -> Judge:
    pods = tuple(pod("x", name, "n1", {"app": name}, names) for name, names in rows)
    namespaces = tuple(one for one in BASE if one["kind"] == "Namespace")
    text = policy("{egress: [{ports: [{port: web}]}], policyTypes: [Egress]}")
    return Judge(text, base=(*namespaces, *pods))


def test_named_ports_differ_from_pod_to_pod_and_keep_their_protocol() -> None:
    judge = named(("a", ("", "", "", "", "")), ("b", ("web", "", "", "", "")), ("c", ("", "web", "", "", "")),
                  ("d", ("", "", "web", "", "")))  # fmt: skip
    assert (judge.allows("x/a", "x/b", 80), judge.allows("x/a", "x/b", 81)) == (True, False)
    assert (judge.allows("x/a", "x/c", 80), judge.allows("x/a", "x/c", 81)) == (False, True)
    assert not judge.allows("x/a", "x/d", 80)  # its "web" is UDP
    assert not judge.allows("x/a", "x/d", 80, "UDP")
    assert not judge.allows("x/a", "172.31.0.10", 80)


def test_both_ends_have_to_agree() -> None:
    judge = Judge(
        policy("{policyTypes: [Egress]}")
        + "---\n"
        + policy("{ingress: [{}]}").replace("name: p, namespace: x", "name: q, namespace: y")
    )
    verdict = judge.verdict("x/a", "y/a")
    assert (verdict.allowed, verdict.egress.allowed, verdict.ingress.policy) == (False, False, "NetworkPolicy y/q")


def test_a_pod_and_its_own_node_always_reach_each_other() -> None:
    judge = Judge(policy("{policyTypes: [Ingress, Egress]}"))
    assert judge.verdict("node/n1", "x/a").ingress.reason == "own node"
    assert judge.verdict("x/a", "node/n1").egress.reason == "own node"
    assert not judge.allows("node/n2", "x/a")
    assert not judge.allows("x/a", "node/n2")


def test_a_pod_reaches_itself() -> None:
    assert Judge(policy("{policyTypes: [Ingress, Egress]}")).verdict("x/a", "x/a").egress.reason == "itself"


def test_host_network_pods_are_their_node() -> None:
    host = pod("x", "h", "n2", {"app": "h"}, ("", "", "", "", ""), host=True)
    judge = Judge(policy("{ingress: [{from: [{podSelector: {}}]}]}"), more=(host,))
    assert "x/h" not in judge.compiled.pods
    assert judge.end("x/h").kind == "node"
    assert not judge.allows("x/h", "x/a")  # no peer, and not on its node
    assert judge.allows("x/h", "x/b")  # on its node
    assert judge.allows("y/a", "x/h")  # and no subject
