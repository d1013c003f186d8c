"""The flows to ask about in a random world (``tests.policy.worlds``): between all pods, nodes and hosts outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emulator.cluster.model import Cluster
from emulator.policy.flow import End, Flow

HOSTS: Mapping[int, Sequence[str]] = {
    4: ("172.31.0.10", "203.0.113.7"),
    6: ("fd00:31::10", "2001:db8::7"),
}
ECHO = {4: ("ICMP", (8, 0)), 6: ("ICMPv6", (128, 0))}


def flows(
    cluster: Cluster, family: int, probed: Sequence[tuple[str, int]], hosts: Mapping[int, Sequence[str]] = HOSTS
) -> list[Flow]:
    """One for each of the ports ``probed`` and an echo request, wherever at least one end is a pod."""
    index = 0 if family == 4 else 1
    places = [End("pod", pod.key, pod.addresses[index]) for pod in cluster.pods]
    places += [End("node", node.name, node.addresses[index]) for node in cluster.nodes]
    places += [End("external", address, address) for address in hosts[family]]
    echo, kind = ECHO[family]
    return [
        flow
        for one in places
        for other in places
        if "pod" in (one.kind, other.kind) and one != other
        for flow in (
            *(Flow(one, other, protocol, port) for protocol, port in probed),
            Flow(one, other, echo, icmp=kind),
        )
    ]
