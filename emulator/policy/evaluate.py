"""What the specification expects of a flow: the reference that every enforcer is measured by.

The order of judgement is that of ``emulator.policy.model``. What no policy judges comes first: a pod's traffic to its
own address never leaves its namespace, and the node that a pod is on always reaches it, and is reached by it
(kubernetes/api networking/v1 types.go, NetworkPolicyIngressRule; kubernetes.io, Network Policies). Replies are not
judged: a flow is the first packet of a connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from itertools import groupby

from emulator.cluster.validation import IPAddress, Network
from emulator.policy.compiled import Compiled, port_numbers
from emulator.policy.flow import End, Flow, Judgement, Verdict
from emulator.policy.model import Direction, IcmpMatch, Peer, Policy, PortMatch, Rule
from emulator.policy.selection import selects

# IANA protocol numbers, of the names that policies may use
PROTOCOL_NUMBERS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}


def evaluate(compiled: Compiled, flow: Flow) -> Verdict:
    """What becomes of the flow, and who decided that. Raises KeyError for a pod or node that is not in the cluster."""
    egress = judge(compiled, flow, "egress")
    ingress = judge(compiled, flow, "ingress")
    return Verdict(egress.allowed and ingress.allowed, egress, ingress)


def judge(compiled: Compiled, flow: Flow, direction: Direction) -> Judgement:
    """What the policies of one end say: the source's of egress, the destination's of ingress."""
    own, far = (flow.source, flow.destination) if direction == "egress" else (flow.destination, flow.source)
    if own.kind != "pod":
        return Judgement(direction, True, "no pod")
    pod = compiled.pods[own.name]
    if far.kind == "pod" and far.name == own.name:
        return Judgement(direction, True, "itself", own.name)
    if far.kind == "node" and far.name == pod.node:
        return Judgement(direction, True, "own node", own.name)
    defaults = {tier.name: tier.default for tier in compiled.tiers}
    for tier, members in groupby(compiled.of_pod(own.name, direction), key=lambda policy: policy.tier):
        policies = list(members)
        decided = _first_match(compiled, flow, direction, policies)
        if decided is not None:
            policy, number, action = decided
            if action != "pass":
                return Judgement(direction, action == "allow", "rule", own.name, tier, policy.key, number)
        elif defaults[tier] == "deny":
            keys = tuple(policy.key for policy in policies)
            return Judgement(direction, False, "isolated", own.name, tier, isolated_by=keys)
    return Judgement(direction, True, "not isolated", own.name)


def _first_match(
    compiled: Compiled, flow: Flow, direction: Direction, policies: Iterable[Policy]
) -> tuple[Policy, int, str] | None:
    for policy in policies:
        for number, rule in enumerate(policy.rules(direction) or ()):
            if rule.action != "log" and matches(compiled, flow, direction, rule):
                return policy, number, rule.action
    return None


def matches(compiled: Compiled, flow: Flow, direction: Direction, rule: Rule) -> bool:
    """Whether a rule of a policy on the flow's source (``egress``) or destination (``ingress``) matches it."""
    own, far = (flow.source, flow.destination) if direction == "egress" else (flow.destination, flow.source)
    if rule.family not in (0, flow.family):
        return False
    if rule.peers and not any(_is_peer(compiled, flow, far, peer) for peer in rule.peers):
        return False
    if rule.subject is not None and not _is_peer(compiled, flow, own, rule.subject):
        return False
    if rule.ports and not _has_port(compiled, flow, rule.ports, flow.destination):
        return False
    if rule.not_ports and _has_port(compiled, flow, rule.not_ports, flow.destination):
        return False
    if rule.source_ports and not _has_port(compiled, flow, rule.source_ports, flow.source):
        return False
    if rule.not_source_ports and _has_port(compiled, flow, rule.not_source_ports, flow.source):
        return False
    if rule.not_protocol and protocol_number(rule.not_protocol) == protocol_number(flow.protocol):
        return False
    if rule.icmp is not None and not _is_icmp(flow, rule.icmp):
        return False
    return rule.not_icmp is None or not _is_icmp(flow, rule.not_icmp)


def _is_peer(compiled: Compiled, flow: Flow, end: End, peer: Peer) -> bool:
    if peer.pods is not None and not _in_set(compiled, flow, end, peer, negated=False):
        return False
    if peer.not_pods is not None and _in_set(compiled, flow, end, peer, negated=True):
        return False
    if peer.nets and not in_nets(end.address, peer.nets):
        return False
    if peer.not_nets and in_nets(end.address, peer.not_nets):
        return False
    if peer.nodes is not None and not (
        end.kind == "node" and selects(peer.nodes, compiled.cluster.node(end.name).labels)
    ):
        return False
    if peer.service is None:
        return True
    endpoints = compiled.endpoints(peer.service, flow.family)
    if end is flow.destination:
        return (end.address, flow.protocol, flow.port) in endpoints
    return any(end.address == address for address, _, _ in endpoints)


def _in_set(compiled: Compiled, flow: Flow, end: End, peer: Peer, *, negated: bool) -> bool:
    pods = peer.not_pods if negated else peer.pods
    assert pods is not None
    if end.kind == "pod" and end.name in compiled.members[pods]:
        return True
    nets = compiled.nets(pods, flow.family)
    return bool(nets) and in_nets(end.address, nets)


def _has_port(compiled: Compiled, flow: Flow, ports: Iterable[PortMatch], end: End) -> bool:
    port = flow.port if end is flow.destination else flow.source_port
    number = protocol_number(flow.protocol)
    for one in ports:
        if one.protocol and protocol_number(one.protocol) != number:
            continue
        if one.name:
            if end.kind == "pod" and port in port_numbers(compiled.pods[end.name], flow.protocol, one.name):
                return True
        elif not one.first or one.first <= port <= one.last:
            return True
    return False


def _is_icmp(flow: Flow, match: IcmpMatch) -> bool:
    if flow.icmp is None:
        return False
    return match.type in (-1, flow.icmp[0]) and match.code in (-1, flow.icmp[1])


def protocol_number(protocol: str) -> int:
    """The number of a protocol, given by its name or in decimal."""
    found = PROTOCOL_NUMBERS.get(protocol)
    return int(protocol) if found is None else found


def in_nets(address: str, nets: Iterable[str]) -> bool:
    """Whether an address is in one of these CIDRs; one of the other family never is."""
    parsed = _address(address)
    return any(parsed.version == (network := _network(net)).version and parsed in network for net in nets)


@cache
def _network(text: str) -> Network:
    return ip_network(text)


@lru_cache(maxsize=65536)
def _address(text: str) -> IPAddress:
    return ip_address(text)
