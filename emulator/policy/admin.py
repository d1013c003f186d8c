"""The cluster-wide policies of policy.networking.k8s.io in the neutral form.

Admin ones stand in the tier before that of NetworkPolicies, baseline ones in the tier after it; what none of their
rules matches passes on. Lower priorities come first; among equal ones the API leaves the order open, and here the
name decides. The objects have been checked (``emulator.cluster.admin_policy_rules``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from emulator.cluster.admin_policy_rules import (
    AdminPolicySpec,
    AdminRuleSpec,
    AnyRuleSpec,
    BaselinePolicySpec,
    ClusterPolicySpec,
    PeerSpec,
    PortSpec,
    ProtocolSpec,
    SelectorSpec,
)
from emulator.policy.model import (
    ADMIN_TIER,
    BASELINE_TIER,
    Action,
    LabelSelector,
    Peer,
    PodSet,
    Policy,
    PortMatch,
    Rule,
)
from emulator.policy.networkpolicy import label_selector

Object = dict[str, Any]
_ACTIONS: dict[str, Action] = {"Allow": "allow", "Accept": "allow", "Deny": "deny", "Pass": "pass"}


def admin_policy(thing: Object) -> Policy:
    """The policy that an AdminNetworkPolicy describes."""
    spec = msgspec.convert(thing["spec"], AdminPolicySpec)
    bare = Policy("AdminNetworkPolicy", "", thing["metadata"]["name"], _pods(spec.subject))
    return _with_rules(bare, spec.ingress, spec.egress, ADMIN_TIER, spec.priority)


def baseline_policy(thing: Object) -> Policy:
    """The policy that the BaselineAdminNetworkPolicy describes; there is one only."""
    spec = msgspec.convert(thing["spec"], BaselinePolicySpec)
    bare = Policy("BaselineAdminNetworkPolicy", "", thing["metadata"]["name"], _pods(spec.subject))
    return _with_rules(bare, spec.ingress, spec.egress, BASELINE_TIER, 0)


def cluster_policy(thing: Object) -> Policy:
    """The policy that a ClusterNetworkPolicy describes."""
    spec = msgspec.convert(thing["spec"], ClusterPolicySpec)
    bare = Policy("ClusterNetworkPolicy", "", thing["metadata"]["name"], _pods(spec.subject))
    tier = ADMIN_TIER if spec.tier == "Admin" else BASELINE_TIER
    return _with_rules(bare, spec.ingress, spec.egress, tier, spec.priority)


def _with_rules(
    bare: Policy,
    ingress: Iterable[AnyRuleSpec] | None,
    egress: Iterable[AnyRuleSpec] | None,
    tier: str,
    priority: int,
) -> Policy:
    # Without rules for a direction it does not concern that direction
    return msgspec.structs.replace(
        bare,
        ingress=tuple(_rule(one, one.sources) for one in ingress or ()) or None,
        egress=tuple(_rule(one, one.to) for one in egress or ()) or None,
        tier=tier,
        order=float(priority),
    )


def _rule(spec: AnyRuleSpec, peers: Iterable[PeerSpec] | None) -> Rule:
    if isinstance(spec, AdminRuleSpec):
        ports = tuple(port for one in spec.ports or () for port in _port(one))
    else:
        ports = tuple(port for one in spec.protocols or () for port in _protocol(one))
    return Rule(_ACTIONS[spec.action], tuple(_peer(one) for one in peers or ()), ports, spec.name or "")


def _peer(spec: PeerSpec) -> Peer:
    if spec.networks is not None:
        return Peer(nets=tuple(spec.networks))
    if spec.nodes is not None:
        return Peer(nodes=_selector(spec.nodes))
    return Peer(pods=_pods(spec))


def _pods(spec: PeerSpec) -> PodSet:
    if spec.pods is None:
        return PodSet(namespaces=_selector(spec.namespaces or SelectorSpec()))
    return PodSet(namespaces=_selector(spec.pods.namespace_selector), pods=_selector(spec.pods.pod_selector))


def _selector(spec: SelectorSpec) -> LabelSelector:
    return label_selector(msgspec.to_builtins(spec))


def _port(spec: PortSpec) -> tuple[PortMatch, ...]:
    if spec.port_number is not None:
        return (PortMatch(spec.port_number.protocol, spec.port_number.port, spec.port_number.port),)
    if spec.port_range is not None:
        return (PortMatch(spec.port_range.protocol, spec.port_range.start, spec.port_range.end),)
    return _named(spec.named_port)


def _protocol(spec: ProtocolSpec) -> tuple[PortMatch, ...]:
    for protocol, transport in (("TCP", spec.tcp), ("UDP", spec.udp), ("SCTP", spec.sctp)):
        if transport is not None and transport.destination_port is not None:
            port = transport.destination_port
            if port.range is not None:
                return (PortMatch(protocol, port.range.start, port.range.end),)
            return (PortMatch(protocol, port.number or 0, port.number or 0),)
    return _named(spec.destination_named_port)


def _named(name: str | None) -> tuple[PortMatch, ...]:
    """The ports of that name, of whichever protocol they are: the API has no way to name one beside it."""
    return tuple(PortMatch(protocol, name=name or "") for protocol in ("TCP", "UDP", "SCTP"))
