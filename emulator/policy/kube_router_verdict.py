"""What kube-router's rules make of a flow, worked out from the same matches that the rules are written from.

It tells which of kube-router's quirks is why a verdict is another than the specification's: the one without which the
verdict would be the other.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network

from emulator.cluster.validation import IPAddress, Network
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import protocol_number
from emulator.policy.flow import Flow
from emulator.policy.kube_router_chains import NODE_PORTS, PASSING_ICMP
from emulator.policy.kube_router_policy import Match, Members, Quirk, Translated, translate
from emulator.policy.model import Family, Policy


class Judge:
    """Keeps what a cluster's policies come to, with each set of quirks that was asked for."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._made: dict[tuple[str, Family, frozenset[Quirk]], Translated] = {}

    def passes(self, flow: Flow, quirks: frozenset[Quirk]) -> bool:
        """Whether kube-router with these quirks lets the flow pass. Raises KeyError for an unknown pod."""
        return _passes(self, flow, quirks)

    def translated(self, policy: Policy, family: Family, quirks: frozenset[Quirk]) -> Translated:
        """A policy's chains and sets."""
        key = (policy.key, family, quirks)
        if key not in self._made:
            self._made[key] = translate(self.compiled, policy, family, quirks)
        return self._made[key]


def _passes(judge: Judge, flow: Flow, quirks: frozenset[Quirk]) -> bool:
    ends = (flow.source, flow.destination)
    if all(end.kind == "pod" for end in ends) and flow.source.name == flow.destination.name:
        return True
    if not any(end.kind == "pod" for end in ends):
        return True
    if "icmp" in quirks and flow.icmp is not None and flow.icmp[0] in PASSING_ICMP[flow.family]:
        return True
    return _leaves(judge, flow, quirks) and _enters(judge, flow, quirks)


def _leaves(judge: Judge, flow: Flow, quirks: frozenset[Quirk]) -> bool:
    """The source pod's chain, on its node."""
    compiled, source, destination = judge.compiled, flow.source, flow.destination
    if source.kind != "pod":
        return True
    if destination.kind == "node" and destination.name == compiled.pods[source.name].node:
        lowest, highest = NODE_PORTS
        if "own-node" not in quirks or (flow.protocol in ("TCP", "UDP") and lowest <= flow.port <= highest):
            return True
    if not _kinds(compiled.of_pod(source.name, "egress")):
        return True
    return _marked(judge, flow, source.name, "egress", quirks)


def _enters(judge: Judge, flow: Flow, quirks: frozenset[Quirk]) -> bool:
    """The destination pod's chain, on its node."""
    compiled, source, destination = judge.compiled, flow.source, flow.destination
    if destination.kind != "pod":
        return True
    if source.kind == "node" and source.name == compiled.pods[destination.name].node:
        return True
    if not _kinds(compiled.of_pod(destination.name, "ingress")):
        return True
    return _marked(judge, flow, destination.name, "ingress", quirks)


def _marked(judge: Judge, flow: Flow, pod: str, direction: str, quirks: frozenset[Quirk]) -> bool:
    """Whether any policy's chain that the pod's chain asks sets the mark."""
    policies = dict.fromkeys((*judge.compiled.of_pod(pod, "ingress"), *judge.compiled.of_pod(pod, "egress")))
    return any(
        _matches(flow, match)
        for policy in _kinds(tuple(policies))
        for chain in judge.translated(policy, flow.family, quirks).chains
        if chain.jump in (direction, "both")
        for match in chain.matches
    )


def _kinds(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Those that kube-router reads."""
    return tuple(policy for policy in policies if policy.kind == "NetworkPolicy")


def _matches(flow: Flow, match: Match) -> bool:
    if match.protocol and protocol_number(match.protocol) != protocol_number(flow.protocol):
        return False
    if match.first and not match.first <= flow.port <= match.last:
        return False
    return all(_holds(one, flow.source.address) for one in match.sources) and all(
        _holds(one, flow.destination.address) for one in match.destinations
    )


def _holds(members: Members, address: str) -> bool:
    """As ipset(8): of the networks that hold the address the longest decides."""
    if members.kind == "ip":
        return address in members.members
    parsed = _address(address)
    longest, found = -1, False
    for member in members.members:
        text, _, flag = member.partition(" ")
        network = _network(text)
        if network.version == parsed.version and parsed in network and network.prefixlen > longest:
            longest, found = network.prefixlen, not flag
    return found


@lru_cache(maxsize=65536)
def _network(text: str) -> Network:
    return ip_network(text)


@lru_cache(maxsize=65536)
def _address(text: str) -> IPAddress:
    return ip_address(text)
