"""Packets against the reference evaluator: random worlds and changes, under every style that enforces policies.

Each enforcing style gets one lab, with the API's semantics (``policy_mode="spec"``); its worlds follow each other,
so that each is a change of the one before, too. At every step every pod probes every pod, a host outside, and its node
probes it, on all ports and in both families; a single wrong verdict fails the test.

Probes are those of a matrix (``emulator.lab.matrix``): after 100 ms of silence stand those denials that policies
explain, on a machine that answered all else in a quarter of that. Any other silence is asked again from a fresh port,
and waited for a second. That hides nothing: where the machine was quick, a first packet that had no answer although
policies let it pass is a fault, whatever became of the second.

``CNILAB_FUZZ_WORLDS`` is how many worlds (10 by default; the full run takes 1000), each with three changes. They can be
shared out among processes: styles by ``-k``, worlds by ``--hypothesis-seed``. With ``-s`` each style tells its figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from emulator import Lab
from emulator.cluster.model import Cluster
from emulator.kernel import registry
from emulator.lab.verdicts import Ask, Cell
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow, Verdict, node_end, pod_end
from emulator.policy.model import Family
from tests.policy.second_opinion import Place, passing
from tests.policy.site import Site
from tests.policy.styles import OUTSIDE_PORT, enforcing, topology_for
from tests.policy.worlds import NAMESPACES, PORTS, World, changed, namespace, worlds

pytestmark = [pytest.mark.slow, pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")]

WORLDS = int(os.environ.get("CNILAB_FUZZ_WORLDS", "10"))
CHANGES = 3
OUTSIDE = "client"  # the host that stands for the world


@dataclass(frozen=True)
class Asked:
    """A probe, the flow that it is, and what the specification expects."""

    ask: Ask
    flow: Flow
    expected: Verdict


@pytest.fixture(scope="module", params=enforcing())
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(topology_for(request.param), request.param, dns="off", policy_mode="spec") as lab:
        lab.apply(*(namespace(name, {}) for name in NAMESPACES))
        site = Site(lab, request.param)
        yield site
        print(f"\n{request.param}: {site.figures}")
    patch.undo()


def asked(cluster: Cluster, compiled: Compiled) -> Iterator[Asked]:
    nodes = {node.name: node for node in cluster.nodes}
    for family in families_of(cluster):
        ends = {pod.key: pod_end(pod, family) for pod in cluster.pods}
        host = End("external", OUTSIDE, address(cluster, family))
        for target in cluster.pods:
            destination = ends[target.key]
            assert destination is not None
            sources = [(f"pod/{key}", end) for key, end in ends.items()]
            sources.append((f"node/{target.node}", node_end(nodes[target.node], family)))
            for name, source in sources:
                assert source is not None
                # What a pod sends to itself does not leave it, whatever the port
                for protocol, port in PORTS[:1] if source == destination else PORTS:
                    ask = Ask(name, f"pod/{target.key}", protocol.lower(), port, family)  # type: ignore[arg-type]
                    yield judged(compiled, ask, Flow(source, destination, protocol, port))
        for key, end in ends.items():
            assert end is not None
            ask = Ask(f"pod/{key}", OUTSIDE, "tcp", OUTSIDE_PORT, family)
            yield judged(compiled, ask, Flow(end, host, "TCP", OUTSIDE_PORT))


def judged(compiled: Compiled, ask: Ask, flow: Flow) -> Asked:
    return Asked(ask, flow, evaluate(compiled, flow))


def families_of(cluster: Cluster) -> tuple[Family, ...]:
    return tuple(6 if ":" in cidr else 4 for cidr in cluster.topology.pod_cidrs)


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
    place.become(world.objects)
    cluster = place.lab.cluster()
    probes = list(asked(cluster, compile_policies(cluster)))
    opinions_agree(world, cluster, probes)
    found = place.faults([one.ask for one in probes], [one.expected.allowed for one in probes])
    return [told(probes[number], cell) for number, cell in found]


def told(one: Asked, cell: Cell) -> str:
    flow = one.flow
    before = f"first {cell.first}, then " if cell.first else ""
    return (
        f"{flow.source.name} -> {flow.destination.name} ({cell.address}) {flow.protocol} {flow.port}: "
        f"{before}{cell.verdict} {cell.detail}, expected {msgspec.json.encode(one.expected).decode()}"
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
    place.figures.worlds += 1
