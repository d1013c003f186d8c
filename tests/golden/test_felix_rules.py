"""Felix's rules and sets as golden files: for each construct of a policy what it adds to the node of its pod.

Write them anew with ``UPDATE_GOLDEN=1`` and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.plan.iptables import rule_text
from emulator.plan.model import NftRules
from emulator.plan.nftables import readable
from emulator.policy.felix_policies import policy_chain
from emulator.policy.felix_rules import iptables_chain, nft_chain
from emulator.policy.model import DIRECTIONS, Family
from tests.golden.felix_constructs import CONSTRUCTS, NFTABLES, OWN, planned, written, written_for_nft

FOLDER = Path(__file__).parent / "felix"


def calicos_own(name: str) -> str:
    families: tuple[Family, ...] = (4, 6)
    lines = []
    for family in families:
        for direction in DIRECTIONS:
            if OWN[name].rules(direction) is None:
                continue
            made = policy_chain(OWN[name], direction, family)
            chain = iptables_chain(made.chain)
            lines += [f"-A {chain.name} {rule_text(rule)}" for rule in chain.rules]
            lines += [f"# IPv{family} {one.type}: {one.name}" for one in made.sets]
    return "\n".join(lines) + "\n"


def calicos_own_for_nft(name: str) -> str:
    families: tuple[Family, ...] = (4, 6)
    lines = []
    for family in families:
        for direction in DIRECTIONS:
            if OWN[name].rules(direction) is not None:
                chain = nft_chain(policy_chain(OWN[name], direction, family).chain, "filter")
                lines += [f"IPv{family} {chain.name}: {rule}" for rule in chain.rules]
    return "\n".join(lines) + "\n"


def compare(golden: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_networkpolicys_rules_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / f"{name}.txt", written(planned(name)))


@pytest.mark.parametrize("name", OWN)
def test_the_rules_of_calicos_own_policies_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / f"calico-{name}.txt", calicos_own(name))


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_networkpolicys_rules_in_nftables_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / "nftables" / f"{name}.txt", written_for_nft(planned(name, style=NFTABLES)))


@pytest.mark.parametrize("name", OWN)
def test_the_rules_of_calicos_own_policies_in_nftables_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / "nftables" / f"calico-{name}.txt", calicos_own_for_nft(name))


def test_what_is_there_without_a_policy_in_nftables_is_golden() -> None:
    (table, _) = planned(style=NFTABLES)
    assert isinstance(table, NftRules)
    compare(FOLDER / "nftables" / "without-a-policy.txt", "\n".join(readable(table)) + "\n")
