"""A policy whose rules and whose sets change together goes from the old to the new without anything in between."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from emulator import Lab
from emulator.errors import ApplyError
from emulator.kernel import rulesets
from emulator.kernel.applier import Applier
from emulator.kernel.ipset_speakers import SetSpeaker
from emulator.kernel.netns import netns_path
from emulator.kernel.rule_feeding import ToolInput, feed
from emulator.kernel.syscalls import inside
from emulator.lab.records import ProbeRequest
from emulator.plan.diff import Operation
from emulator.plan.model import Chain, IpSet, IptablesRules, Namespace, Rule
from tests.policy.corner_cases import policy

NS = "node/n1"
TURNS = 8
PATIENCE = 10.0  # s for an answer: a starved machine gives late ones, and takes those under way at the end to the grave
RATE = 200.0  # requests a second of each stream: between two transactions are some milliseconds


def rule(source: str, port: int) -> dict[str, object]:
    return {"from": [{"podSelector": {"matchLabels": {"name": source}}}], "ports": [{"port": port}]}


def pod(name: str, node: str) -> dict[str, object]:
    ports = [{"containerPort": 80}, {"containerPort": 81}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"name": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": ports}]},
    }


@pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")
def test_rules_that_swap_places_let_nothing_through_that_neither_order_allows() -> None:
    """kube-router's sets are named by the place of a rule, so they swap their members as the rules swap ports."""
    first, second = rule("a", 80), rule("b", 81)
    orders = [{"podSelector": {"matchLabels": {"name": "t"}}, "ingress": list(rules)} for rules in
              ((first, second), (second, first))]  # fmt: skip
    with Lab("three-nodes", "kube-router", dns="off", policy_mode="spec") as lab, ExitStack() as stack:
        lab.apply(pod("a", "n1"), pod("b", "n1"), pod("t", "n2"), policy(orders[0], "default"))
        denied, allowed = (
            [
                ProbeRequest(f"pod/default/{source}", "pod/default/t", port, "tcp", timeout=PATIENCE)
                for source, port in flows
            ]
            for flows in ((("a", 81), ("b", 80)), (("a", 80), ("b", 81)))
        )
        streams = [stack.enter_context(lab.stream(one, RATE)) for one in (*denied, *allowed)]
        for turn in range(TURNS):
            lab.apply(policy(orders[(turn + 1) % 2], "default"))
        time.sleep(0.1)
        stack.close()
        assert lab.verify() == []
    got = [one.result.received for one in streams]
    assert got[:2] == [0, 0]
    for one in streams[2:]:
        assert one.result.received
        assert all(window.last == one.result.sent - 1 for window in one.result.lost), one.result


# ---------------------------------------------------------------- when it fails halfway


def ruleset(port: int) -> IptablesRules:
    asked = Rule(("-m", "set", "--match-set", "PEERS", "src", "-p", "tcp", "--dport", str(port), "-j", "ACCEPT"))
    return IptablesRules(ns=NS, family=4, table="filter", owner="t", chains=(Chain("P", (asked,)),), jumps=())


def peers(member: str) -> IpSet:
    return IpSet(ns=NS, name="PEERS", type="hash:ip", family=4, members=(member,))


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    machine = Namespace(ns=NS, role="node", hostname="n1")
    made.apply([Operation(verb="add", new=item) for item in (machine, peers("10.0.0.1"), ruleset(80))])
    yield made
    made.close()


def state() -> str:
    with inside(netns_path(NS)):
        run = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in
               (("ipset", "save", "-sorted"), ("iptables-nft", "-S"))]  # fmt: skip
    return "".join(run)


CHANGE = [
    Operation(verb="replace", old=peers("10.0.0.1"), new=peers("10.0.0.2")),
    Operation(verb="replace", old=ruleset(80), new=ruleset(443)),
]


@pytest.mark.sandbox
@pytest.mark.requires("iptables", "ipset-program")
@pytest.mark.parametrize("failing", range(1, 6))
def test_whichever_step_fails_nothing_stays_borrowed(
    applier: Applier, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, steps = state(), iter(range(1, 100))

    def failing_feed(ns: str, text: ToolInput, finished: rulesets.Done, sets: SetSpeaker) -> None:
        if next(steps) == failing:
            raise ApplyError("the kernel would not")
        feed(ns, text, finished, sets)

    monkeypatch.setattr(rulesets, "feed", failing_feed)
    with pytest.raises(ApplyError):
        applier.apply(CHANGE)
    assert not applier.broken
    assert state() == before


@pytest.mark.sandbox
@pytest.mark.requires("iptables", "ipset-program")
def test_afterwards_all_is_under_its_own_name(applier: Applier) -> None:
    before = state()
    applier.apply(CHANGE)
    assert state() == before.replace("10.0.0.1", "10.0.0.2").replace("--dport 80", "--dport 443")
