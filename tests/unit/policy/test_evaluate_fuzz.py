"""The evaluator against a second formulation of the specification, over random worlds and their changes."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.model import Cluster
from emulator.cni.styles import load_style
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow
from emulator.policy.model import Family
from tests.policy.flows import HOSTS
from tests.policy.second_opinion import Place, passing
from tests.policy.stepping import steps
from tests.policy.worlds import PORTS, World, worlds

STYLE = load_style("flannel")
PROBED = (*PORTS, ("TCP", 79), ("TCP", 180), ("TCP", 181), ("UDP", 81), ("SCTP", 53))


def places(cluster: Cluster, family: Family) -> list[Place]:
    index = 0 if family == 4 else 1
    found = [Place("pod", pod.namespace, pod.name, pod.node, pod.addresses[index]) for pod in cluster.pods]
    found += [Place("node", "", node.name, node.name, node.addresses[index]) for node in cluster.nodes]
    return found + [Place("external", "", address, "", address) for address in HOSTS[family]]


def end(place: Place) -> End:
    name = f"{place.space}/{place.name}" if place.kind == "pod" else place.name
    return End(place.kind, name, place.address)  # type: ignore[arg-type]


def check(world: World, compiled: Compiled, family: Family) -> None:
    ends = places(compiled.cluster, family)
    expected = passing(world.objects, ends, PROBED)
    for source in ends:
        for destination in ends:
            if "pod" not in (source.kind, destination.kind):
                continue  # no pod's traffic
            for protocol, port in PROBED:
                verdict = evaluate(compiled, Flow(end(source), end(destination), protocol, port))
                point = (source, destination, protocol, port)
                assert verdict.allowed == (point in expected), (point, verdict)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_evaluator_agrees_with_set_algebra_at_every_step(data: st.DataObject) -> None:
    compiled: Compiled | None = None
    for world, cluster in steps(data, worlds(), STYLE, 4):
        compiled = compile_policies(cluster, compiled)
        for family in (4, 6):
            check(world, compiled, family)
        fresh = compile_policies(cluster)
        assert (fresh.members, fresh.ingress, fresh.egress) == (compiled.members, compiled.ingress, compiled.egress)
