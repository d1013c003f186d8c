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
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from emulator import Lab
from emulator.cluster.model import Cluster
from emulator.kernel import neighbour_table, registry
from emulator.lab.matrix import QUICK
from emulator.lab.verdicts import Ask, Cell, Matrix, MatrixWish
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow, Verdict, node_end, pod_end
from emulator.policy.model import Family
from tests.policy.second_opinion import Place, passing
from tests.policy.styles import OUTSIDE_PORT, enforcing, topology_for
from tests.policy.worlds import NAMESPACES, PORTS, Object, World, changed, namespace, worlds

pytestmark = [pytest.mark.slow, pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")]

WORLDS = int(os.environ.get("CNILAB_FUZZ_WORLDS", "10"))
CHANGES = 3
OUTSIDE = "client"  # the host that stands for the world
FULL = 3  # how often a state may meet a machine whose table of neighbours is full, which says nothing about policies


@dataclass(frozen=True)
class Asked:
    """A probe, the flow that it is, and what the specification expects."""

    ask: Ask
    flow: Flow
    expected: Verdict


@dataclass
class Figures:
    """What a run came to. ``late``: flows let in, whose first packet had no answer on a slow machine.
    ``void``: states asked again, since the machine had no room for neighbours meanwhile."""

    worlds: int = 0
    states: int = 0
    probes: int = 0
    allowed: int = 0
    patient: int = 0
    late: int = 0
    void: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class Site:
    """One style's lab, and what is in it."""

    lab: Lab
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)


@pytest.fixture(scope="module", params=enforcing())
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(topology_for(request.param), request.param, dns="off", policy_mode="spec") as lab:
        lab.apply(*(namespace(name, {}) for name in NAMESPACES))
        site = Site(lab)
        yield site
        print(f"\n{request.param}: {site.figures}")
    patch.undo()


def ref(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def become(place: Site, world: World) -> None:
    """Change what differs: a pod that is no longer what it was by a new one, everything else in its place."""
    wanted = {ref(one): one for one in world.objects}
    gone = []
    for key, old in list(place.objects.items()):
        new = wanted.get(key)
        moved = key[0] == "Pod" and new is not None and new["spec"] != old["spec"]
        if (new is None and key[0] != "Namespace") or moved:
            gone.append(place.objects.pop(key))
    if gone:
        place.lab.delete_manifests(*gone, grace_period=0)
    late = [one for key, one in wanted.items() if place.objects.get(key) != one]
    if late:
        place.lab.apply(*late)
    place.objects.update({ref(one): one for one in late})


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
    become(place, world)
    cluster = place.lab.cluster()
    probes = list(asked(cluster, compile_policies(cluster)))
    opinions_agree(world, cluster, probes)
    for _ in range(FULL):
        refused = neighbour_table.refusals()
        taken = place.lab.matrix(MatrixWish(asks=tuple(one.ask for one in probes)))
        faults = list(wrong(probes, taken, place.figures))
        if not faults or neighbour_table.refusals() == refused:
            break
        place.figures.void += 1
    else:
        pytest.fail(neighbour_table.hint())
    place.figures.states += 1
    place.figures.probes += len(probes)
    place.figures.allowed += sum(cell.allowed for cell in taken.cells)
    place.figures.patient += len(taken.rounds) > 1
    place.figures.wrong += len(faults)
    return faults


def wrong(probes: list[Asked], taken: Matrix, figures: Figures) -> Iterator[str]:
    """What is not as expected, a line each."""
    first = taken.rounds[0]
    quick = first.slowest <= first.window / QUICK
    for one, cell in zip(probes, taken.cells, strict=True):
        lost = cell.allowed and cell.first == "dropped"
        figures.late += lost and not quick
        # What has no way there was not denied either
        right = cell.allowed if one.expected.allowed else cell.verdict in ("dropped", "refused")
        if not right or (lost and quick) or cell.address != one.flow.destination.address:
            yield told(one, cell)


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
