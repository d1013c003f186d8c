"""Felix's rules over random worlds, read as a kernel would: in spec mode they are the specification, in faithful mode
what is foretold of them, and step by step they come to the same as at once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.model import Cluster
from emulator.cni.style import Style
from emulator.cni.styles import load_style
from emulator.plan.model import AnyObject, NftRules
from emulator.policy.compiled import Compiled
from emulator.policy.enforcement import Enforcement, enforce
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.policy.evaluate import evaluate
from emulator.policy.felix_endpoints import host_device
from emulator.policy.flow import Flow
from tests.policy.flows import flows
from tests.policy.reading import NftReader, Packet, Reader
from tests.policy.stepping import steps
from tests.policy.worlds import worlds

PROBED = (("TCP", 80), ("UDP", 53), ("TCP", 81), ("SCTP", 80), ("UDP", 4789))


def read(readers: Mapping[str, Reader | NftReader], cluster: Cluster, flow: Flow) -> bool:
    """Whether the rules of the nodes on the way let the flow's first packet pass."""
    pods = {pod.key: pod for pod in cluster.pods}
    nodes = {key: pod.node for key, pod in pods.items()} | {node.name: node.name for node in cluster.nodes}
    way = [nodes[end.name] for end in (flow.source, flow.destination) if end.name in nodes]
    for name in dict.fromkeys(way):
        starts, stops = (end.name in nodes and nodes[end.name] == name for end in (flow.source, flow.destination))
        hook = "FORWARD"
        if starts and flow.source.kind == "node":
            hook = "OUTPUT"
        elif stops and flow.destination.kind == "node":
            hook = "INPUT"
        packet = Packet(
            flow.source.address,
            flow.destination.address,
            {"ICMP": "icmp", "ICMPv6": "ipv6-icmp"}.get(flow.protocol, flow.protocol),
            flow.port,
            flow.icmp[0] if flow.icmp else -1,
            incoming=host_device(pods[flow.source.name]) if starts and flow.source.kind == "pod" else "eth0",
            outgoing=host_device(pods[flow.destination.name]) if stops and flow.destination.kind == "pod" else "eth0",
            local=cluster.node(name).addresses,
        )
        if readers[name].verdict(hook, packet) != "ACCEPT":
            return False
    return True


def judged_alike(cluster: Cluster, compiled: Compiled, enforcer: Enforcer) -> None:
    objects: list[AnyObject] = [item for node in cluster.nodes for item in enforcer.node(cluster, compiled, node)]
    for family in (4, 6):
        reader = NftReader if any(isinstance(item, NftRules) for item in objects) else Reader
        readers = {node.name: reader(objects, node.ns, family) for node in cluster.nodes}
        for flow in flows(cluster, family, PROBED):
            expected = evaluate(compiled, flow).allowed
            deviation = enforcer.deviates(compiled, flow, allowed=expected)
            assert read(readers, cluster, flow) == (expected if deviation is None else not expected), flow
            if enforcer.mode == "spec":
                assert deviation is None, flow


@pytest.mark.parametrize("mode", ["spec", "faithful"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_rules_of_every_step_are_what_the_specification_and_felix_say(
    mode: PolicyMode, data: st.DataObject
) -> None:
    judged_step_by_step(load_style("calico"), mode, data)


@pytest.mark.parametrize("mode", ["spec", "faithful"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_and_so_are_those_of_nftables(mode: PolicyMode, data: st.DataObject) -> None:
    judged_step_by_step(load_style("calico+nftables"), mode, data)


def judged_step_by_step(style: Style, mode: PolicyMode, data: st.DataObject) -> None:
    enforcer = style.enforcer(mode)
    assert enforcer is not None
    before: Enforcement | None = None
    parts: dict[str, tuple[AnyObject, ...]] = {}
    for _, cluster in steps(data, worlds(spaces=2, each=2, policies_max=5), style, 3):
        before = enforce(enforcer, cluster, before)
        judged_alike(cluster, before.compiled, enforcer)
        anew = style.enforcer(mode)
        assert anew is not None
        for node in cluster.nodes:
            if node.name not in parts or not before.keeps(node):
                parts[node.name] = tuple(before.node(cluster, node))
            fresh = tuple(enforce(anew, cluster).node(cluster, node))
            assert {item.key: item for item in parts[node.name]} == {item.key: item for item in fresh}
