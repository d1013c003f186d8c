"""emulator.cni.felix_nftables and felix_configuration: Felix's nftables mode, held against upstream's own tests."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.felix_configuration import with_nftables
from emulator.cni.felix_nftables import nft_table
from emulator.cni.styles import load_style
from emulator.errors import ManifestError
from emulator.plan.build import build
from emulator.plan.model import IpSet, IptablesRules, NftChain, NftRules, Plan
from emulator.plan.nftables import transactions
from emulator.policy.enforcement import Enforcement, enforce
from emulator.policy.felix_endpoints import Endpoint
from emulator.policy.felix_policies import chain_name
from emulator.policy.felix_rules import FelixChain, FelixRule, nft_chain, nft_rules, nft_text
from emulator.policy.felix_tables import Judging
from emulator.policy.felix_words import (
    ACCEPTS,
    DROPS,
    SPOOFED,
    alike,
    clear_mark,
    icmp,
    in_set,
    jump,
    looked_up,
    ports,
    protocol,
    set_masked,
)
from emulator.policy.model import PodSet, Policy
from emulator.proxy.model import ProxyMode
from tests.golden.felix_constructs import NFTABLES, SITE, TOPOLOGY, Object, policy

CALI = Endpoint("cali1dac8782bdb", ("kns.kube-system", "ksa.kube-system.coredns"))


def table(*endpoints: Endpoint) -> NftRules:
    return nft_table("node/n1", 4, Judging(endpoints), ())


def hashes(rules: tuple[str, ...] | list[str]) -> list[str]:
    return [rule.partition("cali:")[2].partition(";")[0] for rule in rules]


# -- as upstream's tests have it (felix/nftables/table_test.go, rules_test.go, nftrender) -------------------------


def test_hashes_of_base_chains_are_those_of_upstreams_tests() -> None:
    rules = [FelixRule((), ACCEPTS if number % 2 else DROPS) for number in range(4)]
    expected = ["DCGauXoHP5A9-AIO", "6tpY0LmXqEPD5dsI", "_Zdh35A6d8kLWs7z", "K23j5egouXzd1qRD"]
    assert hashes(list(nft_rules("filter-FORWARD", rules, "filter"))) == expected
    appended = list(nft_rules("filter-FORWARD", [FelixRule((), ACCEPTS)], "filter", "filter-FORWARD*appends*"))
    assert hashes(appended) == ["Q43zYEHuKfFnJfs1"]


def test_hashes_of_jumps_and_of_felixs_own_chains_are_those_of_upstreams_tests() -> None:
    to = FelixRule((), jump("foobar"))
    assert hashes(list(nft_rules("filter-FORWARD", [to], "cali"))) == ["5BWf2dLBa-ZMC-kf"]
    assert hashes(list(nft_rules("cali-foobar", [FelixRule((), DROPS)], "filter"))) == ["qEazjD2XdAvzH1n5"]


@pytest.mark.parametrize(
    ("comments", "expected"),
    [(("boz", "fizz"), "boz fizz"), (("boz\nfizz",), "boz_fizz"), (("a" * 129,), "a" * 107)],
)
def test_comments_are_made_harmless_and_cut_to_what_nftables_takes(comments: tuple[str, ...], expected: str) -> None:
    """Upstream's test has a hash of four characters, TEST; of the last one it expects 117 characters."""
    (rule,) = nft_rules("x", [FelixRule((), DROPS, comments)], "filter")
    comment = rule.partition('comment "')[2][:-1]
    assert comment.partition("; ")[2] == expected[: 128 - len("cali:0123456789abcdef; ")]
    assert len(comment) <= 128


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (FelixRule(), "continue"),
        (FelixRule((looked_up("in", "vmap1234"),)), "iifname vmap @raw-vmap1234"),
        (FelixRule((), jump("cali-x")), "counter jump raw-cali-x"),
        (FelixRule((SPOOFED,), DROPS), "fib saddr . mark . iif oif 0 counter drop"),
        (FelixRule((), clear_mark(0x1000)), "counter meta mark set mark & 0xffffefff"),
        (FelixRule((), set_masked(0x1000, 0xF000)), "counter meta mark set mark & 0xffff0fff ^ 0x1000"),
        (FelixRule((in_set("cali40s:a", 4, "src", wanted=False),)), "ip saddr != @cali40s-a"),
        (
            FelixRule((in_set("cali60n:a", 6, "dst", with_ports=True),)),
            "ip6 daddr . meta l4proto . th dport @cali60n-a",
        ),
        (
            FelixRule((protocol("17"), ports("src", [(1, 1), (5, 9)], "17", wanted=False))),
            "meta l4proto 17 udp sport != { 1, 5-9 }",
        ),
        (FelixRule((icmp(6, 123),)), "icmpv6 type 123"),
    ],
)
def test_rules_are_written_as_upstream_writes_them(rule: FelixRule, text: str) -> None:
    assert nft_text(rule, "raw") == text


def test_an_icmp_code_is_written_as_nft_reads_it_and_not_as_upstream_does() -> None:
    """Upstream's ``icmp type 8 code 0`` is refused by nft; its negation would leave out more than was meant."""
    assert icmp(4, 8, 0).nft == "icmp type 8 icmp code 0"
    assert icmp(6, 128, 1, wanted=False).nft == "icmpv6 type . icmpv6 code != { 128 . 1 }"


# -- the table ------------------------------------------------------------------------------------------------------


def test_there_is_a_base_chain_for_each_of_iptables_chains_and_translation_of_sources_comes_after_kube_proxys() -> None:
    found = {chain.name: chain.hook for chain in table().hooks}
    assert len(found) == 14
    assert found["raw-PREROUTING"] == "type filter hook prerouting priority -300"
    assert found["mangle-OUTPUT"] == "type route hook output priority -150"
    assert found["nat-PREROUTING"] == "type nat hook prerouting priority -100"
    assert found["nat-POSTROUTING"] == "type nat hook postrouting priority 110"
    assert found["filter-FORWARD"] == "type filter hook forward priority 0"


def test_a_map_leads_from_a_device_to_its_chains_and_what_is_not_in_it_is_dropped() -> None:
    made = table(CALI)
    elements = {(item.of, item.key): item.verdict for part in made.parts.values() for item in part.elements}
    assert elements == {
        ("filter-cali-from-wl-dispatch", '"cali1dac8782bdb"'): "goto filter-cali-fw-cali1dac8782bdb",
        ("filter-cali-to-wl-dispatch", '"cali1dac8782bdb"'): "goto filter-cali-tw-cali1dac8782bdb",
    }
    chains = {chain.name: chain for chain in made.frame.chains}
    lookup, last = chains["filter-cali-from-wl-dispatch"].rules
    assert lookup.startswith('iifname vmap @filter-cali-from-wl-dispatch comment "')
    assert last.startswith("counter drop ")
    assert last.endswith('; Unknown interface"')


def test_every_reference_is_to_the_frame_or_to_a_part_before() -> None:
    made = table(CALI)
    known = {chain.name for chain in made.frame.chains}
    for part in made.parts.values():
        for chain in part.chains:
            targets = [word for rule in chain.rules for word in jumps(rule)]
            assert set(targets) <= known, chain.name
            known.add(chain.name)
        assert {item.verdict.removeprefix("goto ") for item in part.elements} <= known


def jumps(rule: str) -> list[str]:
    words = rule.split()
    return [words[place + 1] for place, word in enumerate(words) if word in ("jump", "goto")]


@pytest.mark.parametrize("length", [200, 240, 241, 253])
def test_names_are_hashed_only_where_nftables_takes_them_no_longer(length: int) -> None:
    name = chain_name(Policy("CalicoGlobalNetworkPolicy", "", "n" * (length - len("gnp/")), PodSet()), "ingress")
    made = nft_chain(FelixChain(alike(name.nft)), "filter")
    assert len(made.name) <= 255
    assert (name.nft == f"cali-pi-gnp/{'n' * (length - 4)}") == (length <= 240)
    assert len(name.iptables) == 28


# -- which mode -----------------------------------------------------------------------------------------------------


def felix(name: str = "default", **spec: Any) -> Object:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "FelixConfiguration",
        "metadata": {"name": name},
        "spec": spec,
    }


KUBE_PROXY = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
    "data": {
        "config.conf": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
    },
}


def cluster(*objects: Object, style: str = "calico", previous: Cluster | None = None) -> Cluster:
    chosen = load_style(style)
    return assemble(
        chosen.prepare(parse_topology(TOPOLOGY, "two.yaml")),
        validate_objects([*SITE, *objects], namespaces=["kube-system"]),
        chosen.ipam(parse_topology(TOPOLOGY, "two.yaml")),
        previous,
    )


@pytest.mark.parametrize(
    ("objects", "proxy", "expected"),
    [
        ((), None, set()),
        ((), "iptables", set()),
        ((), "nftables", {"n1", "n2"}),
        ((KUBE_PROXY,), None, {"n1", "n2"}),
        ((KUBE_PROXY,), "iptables", set()),
        ((felix(nftablesMode="Auto"),), "nftables", {"n1", "n2"}),
        ((felix(nftablesMode="Disabled"),), "nftables", set()),
        ((felix(nftablesMode="Enabled"),), "iptables", {"n1", "n2"}),
        ((felix(nftablesMode="Enabled"), felix("node.n2", nftablesMode="Disabled")), None, {"n1"}),
        ((felix(logSeverityScreen="Info"), felix("node.n1", nftablesMode="Enabled")), None, {"n1"}),
    ],
)
def test_auto_goes_by_kube_proxy_and_a_node_may_have_its_own_mode(
    objects: tuple[Object, ...], proxy: ProxyMode | None, expected: set[str]
) -> None:
    assert with_nftables(cluster(*objects), proxy) == expected


@pytest.mark.parametrize(
    ("object_", "path"),
    [
        (felix(nftablesMode="On"), "spec.nftablesMode"),
        (felix(bpfEnabled=True), "spec.bpfEnabled"),
        (felix("node.n9", nftablesMode="Auto"), "metadata.name"),
        (felix("other"), "metadata.name"),
    ],
)
def test_what_is_wrong_with_a_felixconfiguration_is_told(object_: Object, path: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_style("calico").check(cluster(object_))
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize("style", ["calico:vxlan+nftables", "calico+nftables"])
def test_nothing_of_felix_is_left_in_iptables_or_ipset(style: str) -> None:
    made = planned(cluster(policy("deny"), style=style), style)
    assert not [item for item in made if isinstance(item, (IptablesRules, IpSet)) and item.component == "felix"]
    tables = [item for item in made if isinstance(item, NftRules) and item.component == "felix"]
    assert {(item.ns, item.family, item.name) for item in tables} == {
        (f"node/{node}", family, "calico") for node in ("n1", "n2") for family in ("ip", "ip6")
    }


def planned(
    known: Cluster, style: str, previous: tuple[Cluster, Plan] | None = None, before: Enforcement | None = None
) -> Plan:
    chosen = load_style(style)
    enforcer = before.enforcer if before is not None else chosen.enforcer("faithful")
    assert enforcer is not None
    return build(known, chosen, enforcer=enforce(enforcer, known, before), previous=previous)


def test_a_felixconfiguration_moves_the_rules_of_all_nodes_from_one_kind_of_tables_to_the_other() -> None:
    first = cluster(policy("deny"))
    chosen = load_style("calico")
    enforcer = chosen.enforcer("faithful")
    assert enforcer is not None
    before = enforce(enforcer, first)
    assert enforcer.title == "Felix · iptables"
    old = build(first, chosen, enforcer=before)
    second = cluster(policy("deny"), felix(nftablesMode="Enabled"), previous=first)
    new = build(second, chosen, enforcer=enforce(enforcer, second, before), previous=(first, old))
    assert enforcer.title == "Felix · nftables"
    assert [item for item in old if isinstance(item, (IptablesRules, IpSet)) and item.component == "felix"]
    assert not [item for item in new if isinstance(item, (IptablesRules, IpSet)) and item.component == "felix"]


def test_a_changed_policy_costs_its_own_chain() -> None:
    rule = {"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}
    tables = [
        next(
            item
            for item in planned(cluster(policy("it", ingress=[rule] * count), style=NFTABLES), NFTABLES)
            if isinstance(item, NftRules) and (item.ns, item.family) == ("node/n1", "ip")
        )
        for count in (1, 2)
    ]
    (step,) = transactions(tables[0], tables[1])
    assert {line.split()[4] for line in step.lines} == {"filter-cali-pi-knp/shop/it"}


def test_a_pod_more_costs_its_two_chains_and_two_elements() -> None:
    other = msgspec.structs.replace(CALI, device="cali6945b3c77c1")
    (step,) = transactions(table(CALI), table(CALI, other))
    assert [line for line in step.lines if line.startswith("add element")] == [
        f"add element ip calico filter-cali-{way}-wl-dispatch "
        f'{{ "cali6945b3c77c1" : goto filter-cali-{short}-cali6945b3c77c1 }}'
        for way, short in (("to", "tw"), ("from", "fw"))
    ]
    assert {line.split()[4] for line in step.lines if " chain " in line or " rule " in line} == {
        "filter-cali-tw-cali6945b3c77c1",
        "filter-cali-fw-cali6945b3c77c1",
    }
    assert isinstance(table().hooks[0], NftChain)
