"""kindnet's agent over random worlds, with the very files that it would read: in spec mode it is the specification, in
faithful mode what is foretold of it; and step by step the files come to the same as at once."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.model import Cluster
from emulator.cni.styles import load_style
from emulator.plan.model import AnyObject, File, IpSet
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import Flow
from emulator.policy.kindnet import KindnetPolicies, load
from emulator.policy.kindnet_judge import PROTOCOLS, Packet, judge, read_configuration
from tests.policy.flows import flows
from tests.policy.stepping import steps
from tests.policy.worlds import worlds

STYLE = load_style("kindnet")
PROBED = (("TCP", 80), ("UDP", 53), ("TCP", 81), ("SCTP", 9999))


def passes(planned: dict[str, list[AnyObject]], cluster: Cluster, flow: Flow, mode: str) -> bool:
    """What the agents of the nodes on the way say: of what their rules queue for them."""
    nodes = {pod.key: pod.node for pod in cluster.pods}
    nodes.update((node.name, node.name) for node in cluster.nodes)
    source, target = flow.source, flow.destination
    for name in dict.fromkeys(nodes[end.name] for end in (source, target) if end.name in nodes):
        if source.kind == "node" and source.name == name:
            continue  # a process of root
        if mode == "spec" and target.kind == "node" and target.name == name:
            continue
        objects = planned[name]
        policed = {address for item in objects if isinstance(item, IpSet) for address in item.members}
        if policed.isdisjoint((source.address, target.address)):
            continue
        (file,) = (item for item in objects if isinstance(item, File))
        protocol = flow.protocol if flow.protocol in PROTOCOLS.values() else ""
        packet = Packet(source.address, target.address, protocol, 40000, flow.port)
        if not judge(read_configuration(file.content), packet).allowed:
            return False
    return True


def judged_alike(cluster: Cluster, compiled: Compiled, enforcer: KindnetPolicies) -> None:
    planned = {node.name: list(enforcer.node(cluster, compiled, node)) for node in cluster.nodes}
    for family in (4, 6):
        for flow in flows(cluster, family, PROBED):
            expected = evaluate(compiled, flow).allowed
            done = passes(planned, cluster, flow, enforcer.mode)
            if enforcer.mode == "spec":
                assert done == expected, flow
            deviation = enforcer.deviates(compiled, flow, allowed=expected)
            assert (deviation is not None) == (done != expected), flow


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_agents_of_every_step_judge_as_the_specification_and_as_is_foretold(data: st.DataObject) -> None:
    enforcers = load("spec", "iptables"), load("faithful", "iptables")
    compiled: Compiled | None = None
    for _, cluster in steps(data, worlds(spaces=2, each=2, policies_max=5), STYLE, 2):
        compiled = compile_policies(cluster, compiled)
        for enforcer in enforcers:
            judged_alike(cluster, compiled, enforcer)
            for node in cluster.nodes:
                anew = list(load(enforcer.mode, "iptables").node(cluster, compiled, node))
                assert list(enforcer.node(cluster, compiled, node)) == anew
