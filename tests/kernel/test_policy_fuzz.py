"""Packets against the reference evaluator: random worlds and changes, under every style that enforces policies.

Each enforcing style gets one lab, with the API's semantics (``policy_mode="spec"``); its worlds follow each other,
so that each is a change of the one before, too. At every step every pod probes every pod, a host outside, and its node
probes it, on all ports and in both families; no probe is repeated, and a single wrong verdict fails the test.

``CNILAB_FUZZ_WORLDS`` is how many worlds (10 by default; the full run takes 1000), each with three changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from emulator import Lab
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style, style_names
from emulator.kernel import registry
from emulator.lab.records import ProbeAnswer, ProbeRequest
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow, Verdict, node_end, pod_end
from emulator.policy.model import Family
from tests.policy.second_opinion import Place, passing
from tests.policy.worlds import NAMESPACES, PORTS, TOPOLOGY, Object, World, changed, namespace, worlds

pytestmark = [pytest.mark.slow, pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")]

WORLDS = int(os.environ.get("CNILAB_FUZZ_WORLDS", "10"))
CHANGES = 3
PATIENCE, SILENCE = 3.0, 0.4  # seconds for what should be let in; and for what should not, whose answer would take 1 ms
IPV4_ONLY = ("canal",)
OUTSIDE_PORT = 80


def enforcing() -> list[str]:
    """The styles that enforce policies by netfilter."""
    return [name for name in style_names() if load_style(name).enforcer("spec") is not None]


class Asked(NamedTuple):
    """A probe, the flow that it is, and what the specification expects."""

    request: ProbeRequest
    flow: Flow
    expected: Verdict


class Site(NamedTuple):
    """One style's lab, and what is in it."""

    lab: Lab
    objects: dict[tuple[str, str, str], Object]


@pytest.fixture(scope="module", params=enforcing())
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    text = TOPOLOGY.replace("switch: s2}", f"switch: s2, ports: [{OUTSIDE_PORT}]}}")
    if request.param in IPV4_ONLY:
        text = re.sub(r', "fd[^"]*"', "", text)
    with Lab(parse_topology(text, "policies.yaml"), request.param, dns="off", policy_mode="spec") as lab:
        lab.apply(*(namespace(name, {}) for name in NAMESPACES))
        yield Site(lab, {})
    patch.undo()


def ref(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def become(place: Site, world: World) -> None:
    """Change what differs: a pod that is no longer what it was by a new one, everything else in its place."""
    wanted = {ref(one): one for one in world.objects}
    for key, old in list(place.objects.items()):
        kind, space, name = key
        new = wanted.get(key)
        moved = kind == "Pod" and new is not None and new["spec"] != old["spec"]
        if (new is None and kind != "Namespace") or moved:
            place.lab.delete(kind, name, space, grace_period=0)
            del place.objects[key]
    late = [one for key, one in wanted.items() if place.objects.get(key) != one]
    if late:
        spaces = [one for one in world.of("Namespace") if one not in late]
        place.lab.apply(*spaces, *late)  # a namespace has to be among what is applied, or pass for unknown
    place.objects.update({ref(one): one for one in late})


def asked(cluster: Cluster, compiled: Compiled) -> Iterator[Asked]:
    nodes = {node.name: node for node in cluster.nodes}
    families = families_of(cluster)
    outside = {family: address(cluster, family) for family in families}
    for family in families:
        ends = {pod.key: pod_end(pod, family) for pod in cluster.pods}
        for target in cluster.pods:
            destination = ends[target.key]
            assert destination is not None
            sources = [(f"pod/{key}", end) for key, end in ends.items()]
            sources.append((f"node/{target.node}", node_end(nodes[target.node], family)))
            for name, source in sources:
                assert source is not None
                for protocol, port in PORTS:
                    yield ask(compiled, name, source, destination, protocol, port, family)
        for key, end in ends.items():
            assert end is not None
            host = End("external", "client", outside[family])
            yield ask(compiled, f"pod/{key}", end, host, "TCP", OUTSIDE_PORT, family)


def families_of(cluster: Cluster) -> tuple[Family, ...]:
    return tuple(6 if ":" in cidr else 4 for cidr in cluster.topology.pod_cidrs)


def ask(
    compiled: Compiled, name: str, source: End, destination: End, protocol: str, port: int, family: Family
) -> Asked:
    flow = Flow(source, destination, protocol, port)
    verdict = evaluate(compiled, flow)
    timeout = PATIENCE if verdict.allowed else SILENCE
    kind: Any = protocol.lower()
    return Asked(ProbeRequest(name, destination.address, port, kind, timeout=timeout, family=family), flow, verdict)


def address(cluster: Cluster, family: Family) -> str:
    (host,) = cluster.topology.of_kind("host")
    (found,) = [one for link in host.interfaces for one in link.addresses if (":" in one) == (family == 6)]
    return found.partition("/")[0]


def opinions_agree(world: World, cluster: Cluster, probes: list[Asked]) -> None:
    """The evaluator against the second formulation, on the very flows that are probed."""
    for family in families_of(cluster):
        flows = [one for one in probes if one.flow.family == family]
        ends = {one: at(cluster, one) for probe in flows for one in (probe.flow.source, probe.flow.destination)}
        expected = passing(world.objects, list(ends.values()), PORTS)
        for probe in flows:
            flow = probe.flow
            point = (ends[flow.source], ends[flow.destination], flow.protocol, flow.port)
            assert probe.expected.allowed == (point in expected), (point, probe.expected)


def at(cluster: Cluster, end: End) -> Place:
    space, _, name = end.name.rpartition("/")
    node = next((pod.node for pod in cluster.pods if pod.key == end.name), end.name if end.kind == "node" else "")
    return Place(end.kind, space, name, node, end.address)


def observe(place: Site, world: World) -> list[str]:
    """What packets say otherwise than the evaluator."""
    become(place, world)
    cluster = place.lab.cluster()
    probes = list(asked(cluster, compile_policies(cluster)))
    opinions_agree(world, cluster, probes)
    answers = place.lab.probes([one.request for one in probes])
    return [wrong(one, answer) for one, answer in zip(probes, answers, strict=True) if
            (answer.result.verdict == "delivered") != one.expected.allowed]  # fmt: skip


def wrong(one: Asked, answer: ProbeAnswer) -> str:
    flow, result = one.flow, answer.result
    return (
        f"{flow.source.name} -> {flow.destination.name} ({flow.destination.address}) {flow.protocol} {flow.port}: "
        f"{result.verdict} {result.detail}, expected {msgspec.json.encode(one.expected).decode()}"
    )


@settings(
    max_examples=WORLDS, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink), print_blob=True,
)  # fmt: skip
@given(data=st.data())
def test_packets_obey_the_specification(place: Site, data: st.DataObject) -> None:
    world = data.draw(worlds())
    for step in range(CHANGES + 1):
        faults = observe(place, world)
        assert not faults, f"step {step} of {world.objects}:\n" + "\n".join(faults)
        world = data.draw(changed(world))
