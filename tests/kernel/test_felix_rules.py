"""Felix's rules and sets of every construct in a real kernel: loaded, changed into each other, and read back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.topology import parse_topology
from emulator.cni.felix_nftables import nft_table
from emulator.cni.styles import load_style
from emulator.errors import ApplyError
from emulator.kernel import ipset_messages, nft_rules
from emulator.kernel.applier import Applier
from emulator.kernel.readback import differences
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import (
    AnyObject,
    Chain,
    Family,
    IpSet,
    IptablesRules,
    Namespace,
    NftChain,
    NftPart,
    NftRules,
    Plan,
)
from emulator.plan.nftables import Transaction
from emulator.policy.enforcement import enforce
from emulator.policy.felix_endpoints import host_device
from emulator.policy.felix_policies import policy_chain
from emulator.policy.felix_rules import FelixChain, ipset_name, iptables_chain
from emulator.policy.felix_tables import Judging
from emulator.policy.felix_words import alike
from emulator.policy.model import DIRECTIONS
from tests.golden.felix_constructs import CONSTRUCTS, NFTABLES, OWN, SITE, TOPOLOGY, planned, pod, policy

pytestmark = [pytest.mark.sandbox(timeout=180), pytest.mark.requires("iptables", "iptables-restore", "ipset")]

NODE = "node/n1"


def plan(objects: tuple[AnyObject, ...]) -> Plan:
    node = Namespace(ns=NODE, role="node", hostname="n1")
    return Plan(style="t", topology="t", fragments={"node": (node,), "policy": objects})


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    yield made
    made.close()


@pytest.mark.parametrize("style", ["calico", pytest.param(NFTABLES, marks=pytest.mark.requires("nft-fib"))])
def test_every_constructs_rules_load_and_turn_into_the_next_ones(applier: Applier, style: str) -> None:
    held = None
    for name in CONSTRUCTS:
        wanted = plan(planned(name, style=style))
        applier.apply(diff(held, wanted))
        assert differences(wanted, applier) == [], name
        held = wanted
    wanted = plan(planned(style=style))
    applier.apply(diff(held, wanted))
    assert differences(wanted, applier) == []


@pytest.mark.parametrize("style", ["calico", pytest.param(NFTABLES, marks=pytest.mark.requires("nft-fib"))])
def test_all_constructs_together_are_one_set_of_rules(applier: Applier, style: str) -> None:
    names = ("deny-both", "long-name", "everybody", "same-selector")
    wanted = plan(planned(*names, style=style))
    applier.apply(diff(None, wanted))
    assert differences(wanted, applier) == []


def test_the_rules_of_calicos_own_policies_load(applier: Applier) -> None:
    objects: dict[tuple[object, ...], AnyObject] = {}
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        chains: list[Chain] = []
        for number, one in enumerate(OWN.values()):
            for direction in ("ingress", "egress"):
                made = policy_chain(one, direction, family)
                chain = iptables_chain(made.chain)
                chains.append(Chain(f"{chain.name}.{number}", chain.rules))
                for ref in made.sets:
                    name = ipset_name(family, ref.name)
                    empty = IpSet(ns=NODE, name=name, type=ref.type, family=family, members=())
                    objects[empty.key] = empty
        rules = IptablesRules(ns=NODE, family=family, table="filter", owner="felix", chains=tuple(chains))
        objects[rules.key] = rules
    wanted = plan(tuple(objects.values()))
    applier.apply(diff(None, wanted))
    assert differences(wanted, applier) == []


@pytest.mark.requires("nft-fib")
def test_the_rules_of_calicos_own_policies_load_in_nftables(applier: Applier) -> None:
    tables = []
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        made = [policy_chain(one, direction, family) for one in OWN.values() for direction in DIRECTIONS]
        chains = [FelixChain(alike(f"cali-{number}"), one.chain.rules) for number, one in enumerate(made)]
        sets = {
            ref.name: IpSet(ns=NODE, name=ipset_name(family, ref.name), type=ref.type, family=family, members=())
            for one in made
            for ref in one.sets
        }
        pools = [
            IpSet(ns=NODE, name=ipset_name(family, name), type="hash:net", family=family, members=())
            for name in ("masq-ipam-pools", "all-ipam-pools")
        ]
        tables.append(nft_table(NODE, family, Judging((), tuple(chains), tuple(sets.values())), pools))
    wanted = plan(tuple(tables))
    applier.apply(diff(None, wanted))
    assert differences(wanted, applier) == []


@pytest.mark.requires("nft-fib")
def test_a_change_in_nftables_is_one_transaction_that_leaves_the_rest_alone(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another chain's counters and handles stay, and a transaction that fails changes nothing."""
    fed: list[str] = []
    run = nft_rules._run

    def recording(step: Transaction) -> None:
        fed.append(step.text)
        run(step)

    first, second = plan(planned("pods", style=NFTABLES)), plan(planned("several-peers", style=NFTABLES))
    applier.apply(diff(None, first))
    node = applier.net.get("n1")
    before = node.cmd("nft -a list chain ip calico filter-cali-FORWARD")
    monkeypatch.setattr(nft_rules, "_run", recording)
    applier.apply(diff(first, second))
    assert len(fed) == 1  # the block is of one family
    chain = "filter-cali-pi-knp/shop/it"
    assert {line.split()[4] for text in fed for line in text.splitlines() if line.startswith("flush")} == {chain}
    assert node.cmd("nft -a list chain ip calico filter-cali-FORWARD") == before

    there = node.cmd("nft -s list ruleset")
    (table,) = [item for item in second if isinstance(item, NftRules) and item.family == "ip"]
    bad = NftPart(chains=(NftChain("filter-cali-tw-bad", ("counter nowhere",)),))
    broken = msgspec.structs.replace(table, parts={**planned_parts("ports"), "filter-cali-tw-bad": bad})
    wanted = plan((broken, *(item for item in second if isinstance(item, NftRules) and item.family == "ip6")))
    with pytest.raises(ApplyError, match="filter-cali-tw-bad"):
        applier.apply(diff(second, wanted))
    assert node.cmd("nft -s list ruleset") == there


@pytest.mark.requires("nft-fib")
def test_parts_that_refer_to_each_other_load_and_go_one_by_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a table is larger than a rootless lab's socket takes: policies before pods, and after them when they
    go."""
    monkeypatch.setattr(nft_rules, "PARTS_AT_ONCE", 1)
    applier = Applier()
    try:
        held = None
        for name in ("same-selector", "named-and-numbered", "deny-both"):
            wanted = plan(planned(name, style=NFTABLES))
            applier.apply(diff(held, wanted))
            assert differences(wanted, applier) == [], name
            held = wanted
    finally:
        applier.close()


def planned_parts(name: str) -> dict[str, NftPart]:
    (table,) = [item for item in planned(name, style=NFTABLES) if isinstance(item, NftRules) and item.family == "ip"]
    return table.parts


@pytest.mark.requires("nft-fib")
def test_members_that_contain_each_other_follow_each_other_in_nftables(applier: Applier) -> None:
    """nftables refuses overlapping ones, which ipset takes."""
    held = None
    for members in (("10.0.0.0/8", "10.1.0.0/16", "10.1.0.7"), ("10.1.0.0/16", "10.1.0.7", "10.2.0.1"), ("10.1.0.7",)):
        one = IpSet(ns=NODE, name="cali40s:x", type="hash:net", family=4, members=members)
        pools = [
            IpSet(ns=NODE, name=ipset_name(4, name), type="hash:net", family=4, members=())
            for name in ("masq-ipam-pools", "all-ipam-pools")
        ]
        wanted = plan((nft_table(NODE, 4, Judging((), (), (one,)), pools),))
        applier.apply(diff(held, wanted))
        assert differences(wanted, applier) == [], members
        held = wanted


@pytest.mark.requires("veth", "vxlan")
def test_a_new_pods_rules_are_in_force_before_its_device_is_there(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = load_style("canal")
    topology = style.prepare(parse_topology(re.sub(r', "fd00[^"]*"', "", TOPOLOGY), "two.yaml"))
    enforcer, ipam = style.enforcer("faithful"), style.ipam(topology)
    assert enforcer is not None
    deny = policy("deny", podSelector={"matchLabels": {"app": "new"}})
    before = assemble(topology, validate_objects([*SITE, deny]), ipam)
    first = enforce(enforcer, before)
    held = build(before, style, enforcer=first)
    applier.apply(diff(None, held))
    after = assemble(topology, validate_objects([*SITE, deny, pod("new", "n1")]), ipam, before)
    wanted = build(after, style, enforcer=enforce(enforcer, after, first), previous=(before, held))
    (new,) = [one for one in after.pods if one.name == "new"]
    device, make = host_device(new), applier.wiring.make
    seen: dict[str, str] = {}

    def watched(*args: Any) -> None:
        machine = applier.net.get("n1")
        seen["rules"] = machine.cmd(f"iptables -S cali-tw-{device}; iptables -S cali-to-wl-dispatch")
        seen["device"] = machine.cmd(f"ip link show {device}")
        make(*args)

    monkeypatch.setattr(applier.wiring, "make", watched)
    applier.apply(diff(held, wanted))
    assert "does not exist" in seen["device"]
    assert "End of tier default. Drop if no policies passed packet" in seen["rules"]
    assert f"-o {device} " in applier.net.get("n1").cmd("iptables -S")
    assert differences(wanted, applier) == []


def test_members_of_a_set_come_and_go_without_the_others_leaving(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relabelled pod costs a line for each set, in a set that stays the same set."""
    first = plan((IpSet(ns=NODE, name="s", type="hash:net", family=4, members=("10.0.0.1", "10.0.0.2")),))
    second = plan((IpSet(ns=NODE, name="s", type="hash:net", family=4, members=("10.0.0.2", "10.0.0.3")),))
    applier.apply(diff(None, first))
    fed: list[str] = []
    commit = ipset_messages.commit

    def recording(lines: Sequence[str], *more: Any) -> bool:
        fed.extend(lines)
        return commit(lines, *more)

    monkeypatch.setattr(ipset_messages, "commit", recording)
    applier.apply(diff(first, second))
    assert fed == ["add s 10.0.0.3 -exist", "del s 10.0.0.1 -exist"]
    assert differences(second, applier) == []
