"""What kube-router and weave-npc write for each construct of NetworkPolicy, as golden files.

Write them anew with ``UPDATE_GOLDEN=1`` and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.plan.describe import describe
from emulator.plan.iptables import rule_text
from emulator.plan.model import AnyObject, IpSet, IptablesRules
from emulator.policy import kube_router, weave
from emulator.policy.enforcer import Enforcer, PolicyMode
from tests.golden.policy_constructs import CONSTRUCTS, on_n1

FOLDER = Path(__file__).parent / "policies"


def enforcer(name: str, mode: PolicyMode) -> Enforcer:
    return kube_router.load(mode) if name == "kube-router" else weave.load(mode)


def text(objects: list[AnyObject]) -> str:
    lines: list[str] = []
    for item in objects:
        if isinstance(item, IpSet):
            lines.append(f"{describe(item)}  # {item.why}")
        elif isinstance(item, IptablesRules):
            lines += [f"{describe(item)}", *(f"  {jump.chain}: {rule_text(jump.rule)}" for jump in item.jumps)]
            for chain in item.chains:
                lines += [f"  {chain.name}", *(f"    {rule_text(rule)}" for rule in chain.rules)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mode", ["faithful", "spec"])
@pytest.mark.parametrize("name", ["kube-router", "weave-npc"])
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_the_rules_are_the_golden_ones(name: str, mode: PolicyMode, construct: str) -> None:
    found = text(on_n1(enforcer(name, mode), construct))
    golden = FOLDER / name / f"{construct}-{mode}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(found)
    assert found == golden.read_text()
