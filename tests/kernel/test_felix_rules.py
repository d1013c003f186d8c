"""Felix's rules and sets of every construct in a real kernel: loaded, changed into each other, and read back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.kernel.applier import Applier
from emulator.kernel.readback import differences
from emulator.plan.diff import diff
from emulator.plan.model import AnyObject, Chain, Family, IpSet, IptablesRules, Namespace, Plan
from emulator.policy.felix_policies import policy_chain
from emulator.policy.felix_rules import ipset_name
from tests.golden.felix_constructs import CONSTRUCTS, OWN, planned

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


def test_every_constructs_rules_load_and_turn_into_the_next_ones(applier: Applier) -> None:
    held = None
    for name in CONSTRUCTS:
        wanted = plan(planned(name))
        applier.apply(diff(held, wanted))
        assert differences(wanted, applier) == [], name
        held = wanted
    wanted = plan(planned())
    applier.apply(diff(held, wanted))
    assert differences(wanted, applier) == []


def test_all_constructs_together_are_one_set_of_rules(applier: Applier) -> None:
    names = ("deny-both", "long-name", "everybody", "same-selector")
    wanted = plan(planned(*names))
    applier.apply(diff(None, wanted))
    assert differences(wanted, applier) == []


def test_the_rules_of_calicos_own_policies_load(applier: Applier) -> None:
    objects: dict[tuple[object, ...], AnyObject] = {}
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        chains: list[Chain] = []
        for number, policy in enumerate(OWN.values()):
            for direction in ("ingress", "egress"):
                made = policy_chain(policy, direction, family)
                chains.append(Chain(f"{made.chain.name}.{number}", made.chain.rules))
                for ref in made.sets:
                    one = IpSet(ns=NODE, name=ipset_name(family, ref.name), type=ref.type, family=family, members=())
                    objects[one.key] = one
        rules = IptablesRules(ns=NODE, family=family, table="filter", owner="felix", chains=tuple(chains))
        objects[rules.key] = rules
    wanted = plan(tuple(objects.values()))
    applier.apply(diff(None, wanted))
    assert differences(wanted, applier) == []
