"""Calico's policies and the cluster-wide ones of policy.networking.k8s.io: order, tiers, actions, ends of a rule."""

from __future__ import annotations

import pytest

from tests.policy.judging import Judge

ALL = {f"{space}/{name}" for space in "xyz" for name in "ab"}


def gnp(name: str, spec: str) -> str:
    return (
        f"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )


def np(name: str, spec: str, namespace: str = "x") -> str:
    meta = f"{{name: {name}, namespace: {namespace}}}"
    return f"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {meta}\nspec: {spec}\n---\n"


def knp(spec: str) -> str:
    meta = "{name: p, namespace: x}"
    return f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {meta}\nspec: {spec}\n---\n"


def tier(name: str, spec: str) -> str:
    return f"apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"


def cnp(name: str, spec: str) -> str:
    head = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
    return f"{head}metadata: {{name: {name}}}\nspec: {spec}\n---\n"


def test_lower_order_decides_first_and_the_unset_one_last() -> None:
    deny = gnp("deny", "{order: 20, ingress: [{action: Deny}]}")
    assert Judge(deny + gnp("allow", "{order: 10, ingress: [{action: Allow}]}")).allows("y/a", "x/a")
    assert not Judge(deny + gnp("allow", "{order: 30, ingress: [{action: Allow}]}")).allows("y/a", "x/a")
    assert not Judge(deny + gnp("allow", "{ingress: [{action: Allow}]}")).allows("y/a", "x/a")


def test_ties_go_by_name() -> None:
    a, b = gnp("a", "{order: 1, ingress: [{action: Allow}]}"), gnp("b", "{order: 1, ingress: [{action: Deny}]}")
    assert Judge(b + a).verdict("y/a", "x/a").ingress.policy == "CalicoGlobalNetworkPolicy a"


def test_log_goes_on_and_the_first_rule_that_matches_decides() -> None:
    judge = Judge(gnp("a", "{ingress: [{action: Log}, {action: Deny, protocol: UDP}, {action: Allow}]}"))
    assert judge.verdict("y/a", "x/a").ingress.rule == 2
    assert judge.verdict("y/a", "x/a", protocol="UDP").ingress.rule == 1


def test_pass_goes_to_the_next_tier_and_at_last_to_the_profiles() -> None:
    first = tier("first", "{order: 10}") + gnp("t", "{tier: first, ingress: [{action: Pass, protocol: TCP}]}")
    judge = Judge(first)
    assert judge.verdict("y/a", "x/a").ingress.reason == "not isolated"
    denied = judge.verdict("y/a", "x/a", protocol="UDP").ingress
    assert (denied.allowed, denied.tier, denied.isolated_by) == (False, "first", ("CalicoGlobalNetworkPolicy t",))
    assert not Judge(first + knp("{}")).allows("y/a", "x/a")


def test_a_tier_that_passes_by_default_leaves_it_to_the_next() -> None:
    first = tier("first", "{order: 10, defaultAction: Pass}") + gnp("t", "{tier: first, ingress: []}")
    assert Judge(first).allows("y/a", "x/a")


def test_a_tiers_default_is_for_those_that_its_policies_select_in_that_direction() -> None:
    judge = Judge(gnp("a", "{selector: app == 'a', types: [Ingress]}"))
    assert judge.reaching("x/a") == set()
    assert judge.reaching("x/b") == ALL - {"x/b"}
    assert judge.allows("x/a", "y/b")


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{}", True, False),
        ("{egress: [{action: Allow}]}", False, True),
        ("{ingress: [{action: Allow}]}", True, False),
        ("{ingress: [{action: Allow}], egress: [{action: Allow}]}", True, True),
        ("{types: [Egress], ingress: [{action: Allow}]}", False, True),
    ],
)
def test_types_default_by_which_rules_there_are(spec: str, ingress: bool, egress: bool) -> None:
    (policy,) = Judge(np("a", spec)).compiled.policies
    assert (policy.ingress is not None, policy.egress is not None) == (ingress, egress)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{selector: app == 'a'}", set()),
        ("{selector: app == 'b'}", {"x/b"}),
        ("{selector: app == 'a', namespaceSelector: all()}", {"y/a", "z/a"}),
        ("{namespaceSelector: \"team in {'y'}\"}", {"y/a", "y/b"}),
        ("{namespaceSelector: projectcalico.org/name == 'z'}", {"z/a", "z/b"}),
        ("{notSelector: app == 'a'}", {"x/b"}),
        ("{notSelector: app == 'a', namespaceSelector: team != 'z'}", {"x/b", "y/b"}),
        ("{selector: '!has(tier)', namespaceSelector: all()}", set()),
        ("{nets: [10.244.2.0/24], notNets: [10.244.2.2/31]}", {"z/b"}),
        ("{serviceAccounts: {names: [default]}}", {"x/b"}),
        ("{serviceAccounts: {names: [other]}, namespaceSelector: all()}", set()),
        ("{namespaceSelector: global()}", set()),
    ],
)
def test_ends_of_a_namespaced_policys_rule(source: str, expected: set[str]) -> None:
    judge = Judge(np("a", f"{{selector: app == 'a', ingress: [{{action: Allow, source: {source}}}]}}"))
    assert judge.reaching("x/a") == expected


def test_negated_selector_of_a_global_policy_matches_the_world_too() -> None:
    judge = Judge(gnp("g", "{selector: app == 'a', ingress: [{action: Allow, source: {notSelector: has(app)}}]}"))
    assert judge.reaching("x/a") == set()
    assert judge.allows("172.31.0.10", "x/a")


def test_network_sets_are_selected_like_pods() -> None:
    sets = (
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: g, labels: {role: office}}\n"
        "spec: {nets: [172.31.0.10, 198.51.100.77/24]}\n---\n"
        "apiVersion: projectcalico.org/v3\nkind: NetworkSet\n"
        "metadata: {name: n, namespace: y, labels: {role: office}}\n"
        "spec: {nets: [203.0.113.0/24]}\n---\n"
    )

    def allowed(source: str) -> set[str]:
        judge = Judge(sets + gnp("a", f"{{selector: app == 'a', ingress: [{{action: Allow, source: {source}}}]}}"))
        return {
            one for one in ("172.31.0.10", "172.31.0.11", "198.51.100.9", "203.0.113.9") if judge.allows(one, "x/a")
        }

    office = "selector: role == 'office'"
    assert allowed(f"{{{office}}}") == {"172.31.0.10", "198.51.100.9", "203.0.113.9"}
    assert allowed(f"{{{office}, namespaceSelector: global()}}") == {"172.31.0.10", "198.51.100.9"}
    assert allowed(f"{{{office}, namespaceSelector: all()}}") == {"203.0.113.9"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{action: Allow, protocol: TCP, destination: {ports: [80, '8000:8080']}}", {80, 8000, 8080}),
        ("{action: Allow, protocol: TCP, destination: {notPorts: [80, '8000:8080']}}", {81}),
        ("{action: Allow, protocol: 6, destination: {ports: [81]}}", {81}),
        ("{action: Allow, notProtocol: TCP}", set()),
        ("{action: Allow, notProtocol: UDP}", {80, 81, 8000, 8080}),
        ("{action: Allow, ipVersion: 6}", set()),
        ("{action: Allow, protocol: TCP, source: {ports: [4000]}}", {80, 81, 8000, 8080}),
        ("{action: Allow, protocol: TCP, source: {notPorts: ['3000:5000']}}", set()),
        ("{action: Allow, destination: {selector: app == 'b'}}", set()),
        ("{action: Allow, destination: {nets: [10.244.1.0/24]}}", {80, 81, 8000, 8080}),
    ],
)
def test_what_a_rule_matches(rule: str, expected: set[int]) -> None:
    judge = Judge(np("a", f"{{selector: app == 'a', ingress: [{rule}]}}"))
    probed = (80, 81, 8000, 8080)
    assert {port for port in probed if judge.allows("x/b", "x/a", port, source_port=4000)} == expected


def test_icmp_by_type_and_code() -> None:
    judge = Judge(np("a", "{ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}]}"))
    assert judge.allows("y/a", "x/a", 0, "ICMP", icmp=(8, 0))
    assert not judge.allows("y/a", "x/a", 0, "ICMP", icmp=(13, 0))
    assert not judge.allows("y/a", "x/a")


def test_kubernetes_policies_stand_among_calicos_by_their_order() -> None:
    assert Judge(knp("{}") + gnp("g", "{order: 10, ingress: [{action: Allow}]}")).allows("y/a", "x/a")
    assert not Judge(knp("{ingress: [{}]}") + gnp("g", "{order: 10, ingress: [{action: Deny}]}")).allows("y/a", "x/a")
    assert Judge(knp("{ingress: [{}]}") + gnp("g", "{order: 2000, ingress: [{action: Deny}]}")).allows("y/a", "x/a")


def test_admin_tier_comes_first_then_network_policies_then_baseline() -> None:
    ns_y = "{namespaces: {matchLabels: {team: y}}}"
    admin = cnp("a", f"{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, "
                     f"ingress: [{{action: Accept, from: [{ns_y}]}}]}}")  # fmt: skip
    base = cnp("b", "{tier: Baseline, priority: 1, subject: {namespaces: {}}, "
                    "ingress: [{action: Deny, from: [{namespaces: {}}]}]}")  # fmt: skip
    judge = Judge(admin + base + knp("{ingress: [{from: [{podSelector: {}}]}]}"))
    assert judge.reaching("x/a") == {"x/b", "y/a", "y/b"}  # a NetworkPolicy keeps it from the baseline
    assert judge.reaching("z/a") == {"y/a", "y/b"}
    assert judge.verdict("x/a", "z/a").ingress.tier == "kube-baseline"
    assert judge.allows("172.31.0.10", "z/a")  # nobody decided


def test_priority_decides_and_pass_leaves_it_to_the_next_tier() -> None:
    rule = "ingress: [{action: %s, from: [{namespaces: {}}]}]"
    first = cnp("z-first", f"{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {rule % 'Pass'}}}")
    second = cnp("a-second", f"{{tier: Admin, priority: 2, subject: {{namespaces: {{}}}}, {rule % 'Deny'}}}")
    assert Judge(first + second).allows("y/a", "x/a")
    assert not Judge(second).allows("y/a", "x/a")


def test_admin_ports_names_networks_and_nodes() -> None:
    judge = Judge(cnp("a", """{tier: Admin, priority: 0, subject: {pods: {podSelector: {matchLabels: {app: a}}}},
      egress: [{name: web, action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}},
                {udp: {destinationPort: {range: {start: 50, end: 60}}}}]},
               {action: Deny, to: [{networks: [10.244.0.0/16]}, {nodes: {}}]}]}"""))  # fmt: skip
    assert judge.allows("x/a", "y/b", 80)
    assert judge.allows("x/a", "y/b", 60, "UDP")
    assert not judge.allows("x/a", "y/b", 61, "UDP")
    assert not judge.allows("x/a", "node/n2", 80)
    assert judge.allows("x/a", "172.31.0.10", 80)
    assert judge.allows("x/b", "y/b", 81)


def test_v1alpha1_policies_say_the_same() -> None:
    head = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n---\n"
    allow = (
        "{priority: 5, subject: {namespaces: {}}, ingress: [{action: Allow,"
        " from: [{namespaces: {matchLabels: {team: y}}}], ports: [{portNumber: {protocol: TCP, port: 80}}]}]}"
    )
    deny = "{subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"
    admin = head % ("AdminNetworkPolicy", "a", allow)
    base = head % ("BaselineAdminNetworkPolicy", "default", deny)
    judge = Judge(admin + base)
    assert judge.reaching("x/a") == {"y/a", "y/b"}
    assert judge.reaching("x/a", 81) == set()
