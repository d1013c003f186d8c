"""Network policies' rules in a real kernel, by both iptables back ends: loaded, edited step by step, read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emulator.kernel.namespaces import create, release
from emulator.kernel.rule_feeding import Ruleset
from emulator.kernel.rules_readback import differences
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.underlay import LabNet
from emulator.plan.diff import diff
from emulator.plan.model import AnyObject, IpSet, IptablesRules, Plan
from emulator.policy.enforcer import PolicyMode
from tests.golden.policy_constructs import CONSTRUCTS, on_n1
from tests.golden.test_policy_rules import enforcer

NODE = "pod/node"
BACKENDS = [
    pytest.param("nf_tables", marks=pytest.mark.requires("iptables-nft")),
    pytest.param("legacy", marks=pytest.mark.requires("iptables-legacy")),
]
pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.requires("ipset", "ipset-program"),
    pytest.mark.parametrize("backend", BACKENDS),
]


def ignore(_: AnyObject) -> None:
    """Nobody keeps books here."""


@pytest.fixture
def rulesets(backend: Any) -> Iterator[Rulesets]:
    net = LabNet()
    create([(NODE, ())], lambda _: None)
    yield Rulesets(net, backend)
    release(NODE)
    net.close()


def plan_of(objects: list[AnyObject]) -> Plan:
    here = tuple(msgspec.structs.replace(item, ns=NODE) for item in objects)
    return Plan(style="none", topology="none", fragments={"policy/n1": here})


def step(rulesets: Rulesets, old: Plan | None, new: Plan) -> None:
    """As the applier does it: what goes goes last, as rules may refer to it."""
    steps = diff(old, new)
    added: list[Ruleset] = [
        one.new for one in steps if one.verb == "add" and isinstance(one.new, (IpSet, IptablesRules))
    ]
    changed: list[tuple[Ruleset, Ruleset]] = [
        (one.old, one.new)
        for one in steps
        if isinstance(one.old, (IpSet, IptablesRules)) and isinstance(one.new, (IpSet, IptablesRules))
    ]
    gone = [one.old for one in steps if one.verb == "remove" and isinstance(one.old, (IpSet, IptablesRules))]
    rulesets.load(added, changed, ignore)
    rulesets.remove(gone, ignore)


@pytest.mark.parametrize("mode", ["faithful", "spec"])
@pytest.mark.parametrize("name", ["kube-router", "weave-npc"])
def test_each_construct_loads_after_the_one_before_it_and_is_there(
    rulesets: Rulesets, name: str, mode: PolicyMode
) -> None:
    held: Plan | None = None
    for construct in CONSTRUCTS:
        plan = plan_of(on_n1(enforcer(name, mode), construct))
        step(rulesets, held, plan)
        rules = [item for item in plan if isinstance(item, (IpSet, IptablesRules))]
        assert differences({NODE: rules}, rulesets) == [], construct
        held = plan


def test_a_set_that_changes_keeps_its_members_all_the_while(rulesets: Rulesets) -> None:
    """Edited, never flushed or swapped: the kernel's set is the same one, and options of members change in place."""
    net = IpSet(ns=NODE, name="N", type="hash:net timeout 0", family=4, members=("10.0.0.0/8", "10.1.0.0/16 nomatch"))
    own = IpSet(ns=NODE, name="weave-a(b){c}%!*|/?.;:@#~", type="hash:ip", family=4, members=("10.0.0.1",))
    group = IpSet(ns=NODE, name="L", type="list:set", family=4, members=(own.name,))
    rulesets.load([group, net, own], [], ignore)
    assert differences({NODE: [net, own, group]}, rulesets) == []
    later_net = msgspec.structs.replace(net, members=("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16 nomatch"))
    other = msgspec.structs.replace(own, name="weave-z", members=("10.0.0.2",))
    later_group = msgspec.structs.replace(group, members=(other.name,))
    rulesets.load([other], [(group, later_group), (net, later_net)], ignore)
    rulesets.remove([own], ignore)
    assert differences({NODE: [later_net, other, later_group]}, rulesets) == []
