"""kube-router's rules over random worlds, read as a kernel would: in spec mode they are the specification, in faithful
mode what is foretold of them, and step by step they come to the same as at once."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.model import Cluster
from emulator.cni.styles import load_style
from emulator.plan.model import AnyObject
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import Flow
from emulator.policy.kube_router import KubeRouterPolicies, load
from emulator.policy.kube_router_policy import QUIRKS
from emulator.policy.kube_router_verdict import Judge
from tests.policy.flows import HOSTS, flows
from tests.policy.reading import Packet, Reader
from tests.policy.stepping import steps
from tests.policy.worlds import worlds

STYLE = load_style("kube-router")
OUTSIDE = {4: HOSTS[4], 6: (*HOSTS[6], "fc00::7")}
PROBED = (("TCP", 80), ("UDP", 53), ("TCP", 81), ("TCP", 30080))


def read(readers: dict[str, Reader], cluster: Cluster, flow: Flow) -> bool:
    """Whether the rules of the nodes on the way let the flow's first packet pass."""
    nodes = {pod.key: pod.node for pod in cluster.pods}
    nodes.update((node.name, node.name) for node in cluster.nodes)
    way = [nodes[end.name] for end in (flow.source, flow.destination) if end.name in nodes]
    for name in dict.fromkeys(way):
        node = cluster.node(name)
        hook = "FORWARD"
        if flow.source.kind == "node" and flow.source.name == name:
            hook = "OUTPUT"
        if flow.destination.kind == "node" and flow.destination.name == name:
            hook = "INPUT"
        protocol = {"ICMP": "icmp", "ICMPv6": "ipv6-icmp"}.get(flow.protocol, flow.protocol)
        bridged = way == [name, name]
        packet = Packet(
            flow.source.address,
            flow.destination.address,
            protocol,
            flow.port,
            flow.icmp[0] if flow.icmp else -1,
            bridged_in="veth1" if bridged else "",
            bridged_out="veth2" if bridged else "",
            local=node.addresses,
        )
        if readers[name].verdict(hook, packet) != "ACCEPT":
            return False
    return True


def judged_alike(cluster: Cluster, compiled: Compiled, enforcer: KubeRouterPolicies) -> None:
    objects: Sequence[AnyObject] = [item for node in cluster.nodes for item in enforcer.node(cluster, compiled, node)]
    judge = Judge(compiled)
    for family in (4, 6):
        readers = {node.name: Reader(objects, node.ns, family) for node in cluster.nodes}
        for flow in flows(cluster, family, PROBED, OUTSIDE):
            expected = evaluate(compiled, flow).allowed
            foretold = judge.passes(flow, QUIRKS) if enforcer.mode == "faithful" else expected
            assert read(readers, cluster, flow) == foretold, flow
            if enforcer.mode == "spec":
                assert judge.passes(flow, frozenset()) == expected, flow
            deviation = enforcer.deviates(compiled, flow, allowed=expected)
            assert (deviation is not None) == (foretold != expected), flow


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_rules_of_every_step_are_what_the_specification_and_the_real_project_say(data: st.DataObject) -> None:
    enforcers = load("spec"), load("faithful")
    compiled: Compiled | None = None
    for _, cluster in steps(data, worlds(spaces=2, each=2, policies_max=5), STYLE, 2):
        compiled = compile_policies(cluster, compiled)
        for enforcer in enforcers:
            judged_alike(cluster, compiled, enforcer)
            for node in cluster.nodes:
                anew = list(load(enforcer.mode).node(cluster, compiled, node))
                assert list(enforcer.node(cluster, compiled, node)) == anew
            told = list(enforcer.deviations(cluster, compiled))
            assert told == list(load(enforcer.mode).deviations(cluster, compiled))
