"""kube-proxy's ipvs mode as golden files: for each kind of Service everything that n1 gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.plan.diff import diff
from emulator.plan.model import IpSet, Plan
from emulator.plan.render import as_json, as_text, describe, from_json
from emulator.proxy import ipvs
from tests.golden.service_constructs import CONSTRUCTS, clusters

FOLDER = Path(__file__).parent / "ipvs"


def plan_of(name: str, *, later: bool = False) -> Plan:
    cluster = clusters(CONSTRUCTS[name])[later]
    objects = tuple(ipvs.load(CONSTRUCTS[name].settings).node(cluster, cluster.nodes[0]))
    return Plan(style="none", topology="two", fragments={"proxy/n1": objects})


def text_of(name: str) -> str:
    """The plan without its empty ipsets, and which objects a change touches."""
    plan = plan_of(name)
    shown = tuple(item for item in plan if not (isinstance(item, IpSet) and not item.members))
    lines = as_text(Plan(style="none", topology="two", fragments={"proxy/n1": shown}))
    steps = [f"{step.verb} {describe(step.subject)}" for step in diff(plan, plan_of(name, later=True))]
    return "\n".join([lines, f"then {CONSTRUCTS[name].changed}:", *steps, ""])


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_the_plan_is_the_golden_one(name: str) -> None:
    golden = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text_of(name), encoding="utf-8")
    assert text_of(name) == golden.read_text(encoding="utf-8")


def test_plans_with_virtual_servers_survive_json() -> None:
    plan = plan_of("dual-stack")
    assert from_json(as_json(plan)) == plan
