"""Whole plans as golden files: what each style puts into the shipped topologies, word for word.

A difference is either a fault or a change that is meant. For the latter write the files anew and read the diff::

    UPDATE_GOLDEN=1 pytest tests/golden/test_plans.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.render import as_json, as_text, from_json

FOLDER = Path(__file__).parent / "plans"
TOPOLOGIES = ("three-nodes", "single-node", "dual-stack", "ipv6")
STYLES = ("flannel:vxlan", "flannel:host-gw", "calico:bgp", "kindnet")
CASES = [
    *((style, name) for style in STYLES for name in TOPOLOGIES),
    ("flannel:vxlan-directrouting", "racks"),
    ("flannel:vxlan-nftables", "dual-stack"),
    ("flannel:udp", "three-nodes"),
    ("flannel:ipip", "three-nodes"),
    ("flannel:wireguard", "three-nodes"),
    ("flannel:wireguard", "dual-stack"),
    ("flannel:wireguard-go", "three-nodes"),
    ("flannel:ipip-directrouting", "racks"),
    ("calico:vxlan", "three-nodes"),
    ("calico:vxlan", "dual-stack"),
    ("calico:vxlan-crosssubnet", "racks"),
    ("calico:ipip", "three-nodes"),
    ("calico:ipip-crosssubnet", "racks"),
    *((style, "vagrant") for style in ("flannel:vxlan", "calico:vxlan", "kindnet")),
    ("canal", "three-nodes"),
    ("canal", "single-node"),
    ("canal", "racks"),
    *(("kube-router", name) for name in (*TOPOLOGIES, "racks")),
    ("kube-router:full", "three-nodes"),
    *(("aws-vpc", name) for name in ("three-nodes", "single-node", "racks", "vpc")),
    ("aws-vpc:prefix", "three-nodes"),
    ("aws-vpc:external-snat", "single-node"),
    ("aws-vpc:no-connmark", "single-node"),
]


@pytest.mark.parametrize(("spec", "topology"), CASES)
def test_the_plan_is_the_golden_one(spec: str, topology: str) -> None:
    style = load_style(spec)
    described = style.prepare(load_topology(topology))
    cluster = assemble(described, (), style.ipam(described))
    style.check(cluster)
    plan = build(cluster, style)

    golden = FOLDER / spec.replace(":", "-") / f"{topology}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(as_text(plan), encoding="utf-8")
    assert as_text(plan) == golden.read_text(encoding="utf-8")
    assert from_json(as_json(plan)) == plan
