"""kube-router's own service proxy as golden files: for each kind of Service everything that n1 gets."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from emulator.cluster.services import Ingress, Service
from emulator.plan.diff import diff
from emulator.plan.model import IpvsServers, Plan
from emulator.plan.render import as_json, as_text, describe, from_json
from emulator.proxy import kube_router
from tests.golden.service_constructs import CONSTRUCTS, NODE_PORT, Construct, backends, clusters, on, service

FOLDER = Path(__file__).parent / "kube-router-proxy"
OF_KUBE_PROXY = ("node-port-everywhere", "masquerade-all", "no-detector", "long-names", "zones")  # its own settings


def noted(made: Service, **notes: str) -> Service:
    named = {f"kube-router.io/service.{name.replace('_', '.')}": value for name, value in notes.items()}
    return msgspec.structs.replace(made, annotations=named)


def changing(before: Service, after: Service, changed: str) -> Construct:
    both = [on("n1", 2), on("n2", 2)]
    return Construct((before,), (backends(before, *both),), changed, (after,), (backends(after, *both),))


PORTS = service(type="NodePort", ports=(NODE_PORT,), external_ips=("198.51.100.7",))
BALANCED = service(type="LoadBalancer", load_balancer=(Ingress("203.0.113.1"),), external_ips=("198.51.100.7",))
OWN = {
    "hairpin": changing(noted(PORTS, hairpin=""), noted(PORTS, hairpin="", hairpin_externalips=""), "external IPs too"),
    "local": changing(noted(PORTS, local="true"), noted(PORTS, local="false"), "no longer"),
    "scheduler": changing(
        noted(service(), scheduler="mh", schedflags="flag-1, flag-2"), noted(service(), scheduler="lc"), "another"
    ),
    "skip-balancer": changing(noted(BALANCED, skiplbips=""), BALANCED, "no longer"),
}
CASES = {name: made for name, made in CONSTRUCTS.items() if name not in OF_KUBE_PROXY} | OWN


def plan_of(name: str, *, later: bool = False) -> Plan:
    cluster = clusters(CASES[name])[later]
    objects = tuple(kube_router.load(CASES[name].settings).node(cluster, cluster.nodes[0]))
    return Plan(style="none", topology="two", fragments={"proxy/n1": objects})


def text_of(name: str) -> str:
    """The plan, without IPv6 where nothing is served there, and which objects a change touches."""
    plan = plan_of(name)
    unused = {item.family for item in plan if isinstance(item, IpvsServers) and not item.servers} - {4}
    shown = tuple(item for item in plan if getattr(item, "family", 4) not in unused)
    steps = [f"{step.verb} {describe(step.subject)}" for step in diff(plan, plan_of(name, later=True))]
    lines = as_text(Plan(style="none", topology="two", fragments={"proxy/n1": shown}))
    return "\n".join([lines, f"then {CASES[name].changed}:", *steps, ""])


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_the_golden_one(name: str) -> None:
    golden = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text_of(name), encoding="utf-8")
    assert text_of(name) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dual-stack", "scheduler"])
def test_plans_survive_json(name: str) -> None:
    plan = plan_of(name)
    assert from_json(as_json(plan)) == plan
