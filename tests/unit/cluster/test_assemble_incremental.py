"""Assembling with what is remembered of the last time comes to what assembling with nothing remembered does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from emulator.cluster import assemble as assembly
from emulator.cluster import workloads
from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.manifest_index import Manifests
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology

TOPOLOGY = parse_topology(
    """\
name: small
podCIDRs: [10.244.0.0/16]
pods: 2
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
""",
    "small.yaml",
)


def pod(number: int, chance: random.Random) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "ports": [{"containerPort": 10 * number + chance.randint(80, 81)}]}
    spec: dict[str, Any] = {"containers": [container]}
    if chance.random() < 0.5:
        spec["nodeName"] = chance.choice(("n1", "n2"))
    if chance.random() < 0.2:
        spec["hostNetwork"] = True
    metadata = {"name": f"p{number}", "namespace": "default", "labels": {"app": chance.choice("xy")}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def stateful_set(number: int, chance: random.Random) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": chance.choice("xy")}}, "spec": pod(0, chance)["spec"]}
    template["spec"].pop("hostNetwork", None)
    spec = {"replicas": chance.randint(0, 3), "selector": {}, "template": template, "serviceName": "s"}
    metadata = {"name": f"w{number}", "namespace": "default"}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}


def forgetting(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(assembly, "_fitted", {})
    monkeypatch.setattr(workloads, "_latest", workloads._Parsed((), ()))
    return monkeypatch


@pytest.mark.parametrize("seed", range(4))
def test_remembering_makes_no_difference(seed: int) -> None:
    chance = random.Random(seed)
    objects: dict[str, dict[str, Any]] = {}
    ipams = [HostLocal(TOPOLOGY.pod_cidrs), HostLocal(TOPOLOGY.pod_cidrs)]
    clusters: list[Cluster | None] = [None, None]
    manifests = Manifests.following(())
    kept = 0
    for turn in range(60):
        number = chance.randrange(5)
        made = (pod if chance.random() < 0.7 else stateful_set)(number, chance)
        name = made["metadata"]["name"]
        if name in objects and chance.random() < 0.3:
            del objects[name]
        else:
            objects[name] = made
        manifests = Manifests.following(objects.values(), manifests)
        there = [one.key for one in clusters[0].pods] if clusters[0] is not None else []
        news: dict[str, Any] = {}
        if there and chance.random() < 0.3:
            news["readiness"] = {chance.choice(there): chance.random() < 0.5}
        if there and chance.random() < 0.2:
            news["gone"] = [chance.choice(there)]
        if chance.random() < 0.2:
            news["ended"] = there
        before = clusters[0]
        clusters[0] = now = assemble(TOPOLOGY, manifests, ipams[0], clusters[0], **news)
        with pytest.MonkeyPatch.context() as monkeypatch:
            forgetting(monkeypatch)
            clusters[1] = assemble(TOPOLOGY, list(objects.values()), ipams[1], clusters[1], **news)
        assert now == clusters[1], f"turn {turn}"
        old = {id(one) for one in before.pods} if before is not None else set()
        kept += sum(id(one) in old for one in now.pods)
    assert kept > 60, "pods that nothing changes are the same objects"


def test_a_pod_that_is_told_of_again_with_another_label_is_another_record() -> None:
    chance = random.Random(0)
    ipam = HostLocal(TOPOLOGY.pod_cidrs)
    first = {**pod(1, chance), "metadata": {"name": "p1", "namespace": "default", "labels": {"app": "x"}}}
    second = {**first, "metadata": {**first["metadata"], "labels": {"app": "y"}}}
    cluster = assemble(TOPOLOGY, [first], ipam)
    for manifest, label in ((first, "x"), (second, "y"), (second, "y"), (first, "x"), (first, "x")):
        cluster = assemble(TOPOLOGY, [manifest], ipam, cluster)
        (found,) = [one for one in cluster.pods if one.name == "p1"]
        assert found.labels == {"app": label}
