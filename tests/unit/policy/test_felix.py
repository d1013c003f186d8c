"""emulator.policy.felix: names and hashes of real clusters, and what a change costs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import IpSet, IptablesRules, Plan
from emulator.policy.compile import compile_policies
from emulator.policy.enforcement import Enforcement, enforce
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.policy.evaluate import evaluate
from emulator.policy.felix_matches import matches
from emulator.policy.felix_policies import chain_name, policy_chain
from emulator.policy.felix_rules import FelixRule, ipset_name, iptables_chain, limited_name, rule_hashes, unique_id
from emulator.policy.felix_selectors import endpoint_selector, subject_selector
from emulator.policy.felix_words import RETURNS, marked, set_mark
from emulator.policy.flow import End, Flow
from emulator.policy.model import Expression, LabelSelector, Peer, PodSet, Policy, PortMatch, Requirement, Rule
from tests.golden.felix_constructs import SITE, TOPOLOGY, Object, namespace, planned, pod, policy

TARGETS = ("--jump", "--goto")


def labels(**wanted: str) -> LabelSelector:
    return LabelSelector(tuple(Requirement(key.replace("__", "/"), "In", (value,)) for key, value in wanted.items()))


# -- names that public dumps of real clusters show ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "selector", "name"),
    [
        ("alpha", labels(run="access"), "cali40s:XZEFRy4u2E2Kz28IwtNm0u8"),
        ("default", labels(**{"networking/allow-db-access": "true"}), "cali40s:LrVD8vMIGQDyv8Y7sPFB1Ge"),
    ],
)
def test_sets_of_selectors_are_named_as_in_real_clusters(where: str, selector: LabelSelector, name: str) -> None:
    pods = PodSet(namespace=where, pods=selector)
    assert ipset_name(4, unique_id("s", endpoint_selector(pods))) == name


def test_rules_of_policies_have_the_hashes_of_real_clusters() -> None:
    """Of a release whose policies had other identifiers, so the chain's name is given."""
    peer = Peer(pods=PodSet(namespace="alpha", pods=labels(run="access")))
    (found,) = matches(Rule(peers=(peer,)), "ingress", 4)
    rules = (
        FelixRule(found.match, set_mark(0x10000)),
        FelixRule((marked(0x10000),), RETURNS),
    )
    assert rule_hashes("cali-pi-_e8MLrhOHDfNlfSa51Ak", rules) == ["sEcu68UJEL6S4gUe", "ylM9819c6tRAOxVz"]


def test_blocks_of_matches_begin_as_in_real_clusters() -> None:
    several = Rule(peers=(Peer(nets=("10.0.0.0/16", "10.1.0.0/16")),))
    (found,) = matches(several, "egress", 4)
    comment = "Policy hipstershop/app-hipstershop.checkoutservice egress"
    first = FelixRule(found.blocks[0].match, found.blocks[0].action, (comment,))
    assert rule_hashes("cali-po-_sQdl6e7ekf9DS2UYNem", (first,)) == ["NrlO0UOCu-NgEXYU"]


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("alpha/knp.default.access-nginx", "cali-pi-_e8MLrhOHDfNlfSa51Ak"),
        ("default/knp.default.allow-db-access", "cali-pi-_tTE-E7yY40ogArNVgKt"),
        ("knp/x/deny", "cali-pi-knp/x/deny"),
        ("knp/x/deny-all-ingress", "cali-pi-_Rvvwhd00lx3I_yEi5ou"),
        ("exactly-twenty-chars", "cali-pi-exactly-twenty-chars"),
        ("_xactly-twenty-chars", "cali-pi-_"),
    ],
)
def test_long_names_of_chains_are_hashed(identifier: str, name: str) -> None:
    assert limited_name("cali-pi-", identifier).startswith(name)
    assert len(limited_name("cali-pi-", identifier)) <= 28
    assert (limited_name("cali-pi-", identifier) == f"cali-pi-{identifier}") == (name == f"cali-pi-{identifier}")


def test_a_policys_selector_is_as_calicos_converter_writes_it() -> None:
    subject = PodSet(namespace="shop", pods=labels(app="db"))
    made = Policy("NetworkPolicy", "shop", "it", subject, ())
    wanted = "(projectcalico.org/orchestrator == 'k8s' && app == 'db') && projectcalico.org/namespace == 'shop'"
    assert subject_selector(made) == wanted
    assert set(chain_name(made, "egress")) == {"cali-po-knp/shop/it"}


def test_negated_selectors_filter_wanted_ones_and_stand_alone_else() -> None:
    wanted, unwanted = PodSet(pods=Expression("a == 'b'"), network_sets=True), PodSet(pods=Expression("has(c)"))
    assert endpoint_selector(wanted, unwanted) == '(a == "b" && !has(c))'
    (alone,) = matches(Rule(peers=(Peer(not_pods=unwanted),)), "ingress", 4)
    assert "! --match-set" in alone.match[0].iptables
    assert " saddr != @" in alone.match[0].nft


# -- rules -------------------------------------------------------------------------------------------------------


def test_a_rule_for_one_family_is_not_in_the_others_table() -> None:
    made = Policy("NetworkPolicy", "x", "it", PodSet(namespace="x"), (Rule(peers=(Peer(nets=("fd00::/8",)),)),))
    assert [rule.args[-1] for rule in iptables_chain(policy_chain(made, "ingress", 4).chain).rules] == [
        "KubernetesNetworkPolicy x/it ingress"
    ]
    assert "fd00::/8" in iptables_chain(policy_chain(made, "ingress", 6).chain).rules[0].args


def test_every_jump_leads_to_a_chain_and_every_set_is_there() -> None:
    objects = planned("deny-both", "same-selector", "named-and-numbered", "long-name")
    for rules in (item for item in objects if isinstance(item, IptablesRules)):
        names = {chain.name for chain in rules.chains}
        sets = {item.name for item in objects if isinstance(item, IpSet) and item.family == rules.family}
        for rule in (rule for chain in rules.chains for rule in chain.rules):
            words = list(zip(rule.args, rule.args[1:], strict=False))
            assert {word for option, word in words if option in TARGETS and word.startswith("cali-")} <= names
            assert {word for option, word in words if option == "--match-set"} <= sets


def test_policies_that_select_no_pod_of_a_node_are_not_there() -> None:
    here, there = (
        {
            chain.name
            for item in planned("deny-ingress", node=node)
            if isinstance(item, IptablesRules)
            for chain in item.chains
        }
        for node in ("n1", "n2")
    )
    assert "cali-pi-knp/shop/deny" in here
    assert "cali-pi-knp/shop/deny" not in there


# -- changes -----------------------------------------------------------------------------------------------------


class Site:
    """A cluster that changes, planned step by step."""

    def __init__(self, objects: tuple[Object, ...]) -> None:
        self.style = load_style("calico")
        self.topology = self.style.prepare(parse_topology(TOPOLOGY, "two.yaml"))
        self.ipam = self.style.ipam(self.topology)
        self.enforcer = enforcer(self.style)
        self.cluster: Cluster | None = None
        self.plan: Plan | None = None
        self.enforcement: Enforcement | None = None
        self.step(objects)

    def step(self, objects: tuple[Object, ...]) -> tuple[Plan, Plan]:
        """Plan the next cluster, and the same one as if it were the first: both plans."""
        previous = (self.cluster, self.plan) if self.cluster is not None and self.plan is not None else None
        self.cluster = assemble(self.topology, validate_objects(list(objects)), self.ipam, self.cluster)
        self.enforcement = enforce(self.enforcer, self.cluster, self.enforcement)
        self.plan = build(self.cluster, self.style, enforcer=self.enforcement, previous=previous)
        fresh = build(self.cluster, self.style, enforcer=enforce(enforcer(self.style), self.cluster))
        return self.plan, fresh


def enforcer(style: Any, mode: PolicyMode = "faithful") -> Enforcer:
    found = style.enforcer(mode)
    assert found is not None
    return found  # type: ignore[no-any-return]


def test_after_many_changes_the_plan_is_that_of_the_cluster_as_it_is() -> None:
    chance = random.Random(7)
    words = ("web", "db", "api")

    def selector() -> Object:
        return {"matchLabels": {"app": chance.choice(words)}} if chance.random() < 0.8 else {}

    def some_policy(name: str) -> Object:
        peers: list[Object] = [
            {"podSelector": selector()},
            {"namespaceSelector": {"matchLabels": {"team": chance.choice("ab")}}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/30"]}},
        ]
        ports = [{"port": chance.choice(("http", 80, 443))}] if chance.random() < 0.6 else []
        rule = {"from": chance.sample(peers, chance.randint(0, 3)), "ports": ports}
        return policy(name, podSelector=selector(), ingress=[rule][: chance.randint(0, 1)])

    things: dict[str, Object] = {f"{thing['kind']}/{thing['metadata']['name']}": thing for thing in SITE}
    site = Site(tuple(things.values()))
    for _ in range(60):
        name = f"p{chance.randint(0, 4)}"
        match chance.randint(0, 4):
            case 0:
                things[name] = some_policy(name)
            case 1:
                things.pop(name, None)
            case 2:
                key = chance.choice(("web", "db"))
                things[f"Pod/{key}"] = pod(key, "n1", app=chance.choice(words))
            case 3:
                things["Namespace/lab"] = namespace("lab", team=chance.choice("ab"))
            case _:
                extra = f"Pod/extra{chance.randint(0, 2)}"
                if things.pop(extra, None) is None:
                    things[extra] = pod(
                        extra.lower().replace("/", "-"), chance.choice(("n1", "n2")), app=chance.choice(words)
                    )
        stepwise, fresh = site.step(tuple(things.values()))
        assert {item.key: item for item in stepwise} == {item.key: item for item in fresh}


def test_a_relabelled_pod_changes_the_members_of_sets_and_nothing_else() -> None:
    peers = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
    objects = (*SITE, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}]))
    site = Site(objects)
    before = site.plan
    (api,) = [thing for thing in SITE if thing["metadata"]["name"] == "api"]
    friend = {**api, "metadata": {**api["metadata"], "labels": {"app": "api", "role": "friend"}}}
    after, _ = site.step(tuple(friend if thing is api else thing for thing in objects))
    steps = [step for step in diff(before, after) if not isinstance(step.subject, IpSet)]
    assert steps == []
    changed = [step for step in diff(before, after) if isinstance(step.subject, IpSet)]
    assert {(step.verb, step.subject.ns) for step in changed} == {("replace", "node/n1")}


def test_without_policies_an_enforced_node_is_what_the_style_plans_by_itself() -> None:
    site = Site(SITE)
    assert site.plan is not None
    assert site.cluster is not None
    plain = build(site.cluster, site.style)
    assert {item.key: item for item in site.plan} == {item.key: item for item in plain}


# -- deviations --------------------------------------------------------------------------------------------------


def flow(cluster: Cluster, destination: End, protocol: str = "TCP", port: int = 80) -> Flow:
    web = next(one for one in cluster.pods if one.key == "shop/web")
    return Flow(End("pod", "shop/web", web.addresses[0]), destination, protocol, port)


def test_felix_judges_what_the_api_lets_pass_to_a_pods_own_node() -> None:
    site = Site((*SITE, policy("deny", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"])))
    assert site.cluster is not None
    compiled, node = compile_policies(site.cluster), site.cluster.node("n1")
    to_node = flow(site.cluster, End("node", "n1", node.addresses[0]))
    assert evaluate(compiled, to_node).allowed
    found = site.enforcer.deviates(compiled, to_node, allowed=True)
    assert found is not None
    assert "own node" in found.what
    assert found in list(site.enforcer.deviations(site.cluster, compiled))
    assert enforcer(site.style, "spec").deviates(compiled, to_node, allowed=True) is None
    elsewhere = flow(site.cluster, End("node", "n2", site.cluster.node("n2").addresses[0]))
    assert site.enforcer.deviates(compiled, elsewhere, allowed=False) is None


def test_felix_drops_tunnels_of_pods() -> None:
    site = Site(SITE)
    assert site.cluster is not None
    compiled = compile_policies(site.cluster)
    outside = End("external", "client", "203.0.113.10")
    found = site.enforcer.deviates(compiled, flow(site.cluster, outside, "UDP", 4789), allowed=True)
    assert found is not None
    assert "4789" in found.what
    assert site.enforcer.deviates(compiled, flow(site.cluster, outside, "UDP", 4790), allowed=True) is None


def test_in_spec_mode_a_pod_reaches_its_node_before_its_egress_is_asked() -> None:
    (rules,) = [
        item for item in planned("deny-both", mode="spec") if isinstance(item, IptablesRules) and item.family == 4
    ]
    chains = {chain.name: [rule.args[4:] for rule in chain.rules] for chain in rules.chains}
    assert chains["cali-wl-to-host"][0] == ("--jump", "ACCEPT")
    assert not [
        args for name, listed in chains.items() if name.startswith("cali-fw-") for args in listed if "4789" in args
    ]


def test_ports_are_grouped_into_the_fewest_ranges() -> None:
    ports = tuple(PortMatch("TCP", first, last) for first, last in ((80, 80), (82, 90), (81, 81), (85, 95)))
    (found,) = matches(Rule(ports=ports), "ingress", 4)
    protocol, listed = found.match
    assert (protocol.iptables, listed.iptables) == ("-p tcp", "-m multiport --destination-ports 80:95")
    assert (protocol.nft, listed.nft) == ("meta l4proto tcp", "tcp dport { 80-95 }")
