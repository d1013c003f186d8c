"""Calico's policy resources in the neutral form: NetworkPolicy, GlobalNetworkPolicy, Tier and the network sets.

The objects have been checked (``emulator.cluster.calico_policy_rules``). What an end of a rule means is
libcalico-go/lib/backend/syncersv1/updateprocessors/rules.go (GetEntityRuleSelector): as soon as a rule of a namespaced
policy uses any selector, it means its own namespace, or those that its namespaceSelector selects. Endpoints and network
sets are selected alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from emulator.cluster.calico_policy_rules import TIER_ORDERS, network_of, port_range
from emulator.cluster.calico_policy_spec import (
    EntitySpec,
    GlobalPolicySpec,
    IcmpSpec,
    NetworkSetSpec,
    PolicySpec,
    RuleSpec,
    TierSpec,
)
from emulator.policy.model import (
    DEFAULT_TIER,
    Action,
    Direction,
    Expression,
    IcmpMatch,
    NetworkSet,
    Peer,
    PodSet,
    Policy,
    PortMatch,
    Rule,
    ServiceRef,
    Tier,
)

Object = dict[str, Any]
_ACTIONS: dict[str, Action] = {"Allow": "allow", "Deny": "deny", "Pass": "pass", "Log": "log"}


def calico_policy(thing: Object) -> Policy:
    """The policy that a NetworkPolicy of Calico's describes."""
    metadata = thing["metadata"]
    namespace = metadata.get("namespace") or "default"
    spec = msgspec.convert(thing.get("spec") or {}, PolicySpec)
    subject = PodSet(
        namespace=namespace, pods=_expression(spec.selector), accounts=_expression(spec.service_account_selector)
    )
    return _policy(Policy("CalicoNetworkPolicy", namespace, metadata["name"], subject), spec)


def calico_global_policy(thing: Object) -> Policy:
    """The policy that a GlobalNetworkPolicy describes."""
    spec = msgspec.convert(thing.get("spec") or {}, GlobalPolicySpec)
    subject = PodSet(
        namespaces=_expression(spec.namespace_selector),
        pods=_expression(spec.selector),
        accounts=_expression(spec.service_account_selector),
    )
    return _policy(Policy("CalicoGlobalNetworkPolicy", "", thing["metadata"]["name"], subject), spec)


def tier(thing: Object) -> Tier:
    """The tier that a Tier object describes. The tiers that are there anyway keep what they do by default."""
    name = thing["metadata"]["name"]
    spec = msgspec.convert(thing.get("spec") or {}, TierSpec)
    passes = spec.default_action == "Pass" or (name in TIER_ORDERS and name != DEFAULT_TIER)
    return Tier(name, spec.order, "pass" if passes else "deny")


def network_set(thing: Object) -> NetworkSet:
    """The set that a NetworkSet or GlobalNetworkSet describes."""
    metadata = thing["metadata"]
    namespace = (metadata.get("namespace") or "default") if thing["kind"] == "NetworkSet" else ""
    spec = msgspec.convert(thing.get("spec") or {}, NetworkSetSpec)
    nets = sorted({str(network) for text in spec.nets or () if (network := network_of(text)) is not None})
    return NetworkSet(namespace, metadata["name"], metadata.get("labels") or {}, tuple(nets))


def _policy(bare: Policy, spec: PolicySpec) -> Policy:
    types = spec.types or (["Ingress"] if spec.ingress or not spec.egress else []) + (["Egress"] if spec.egress else [])
    return msgspec.structs.replace(
        bare,
        ingress=_rules(spec.ingress, "ingress", bare.namespace) if "Ingress" in types else None,
        egress=_rules(spec.egress, "egress", bare.namespace) if "Egress" in types else None,
        tier=spec.tier or DEFAULT_TIER,
        order=spec.order,
    )


def _rules(given: Iterable[RuleSpec] | None, direction: Direction, namespace: str) -> tuple[Rule, ...]:
    return tuple(_rule(one, direction, namespace) for one in given or ())


def _rule(spec: RuleSpec, direction: Direction, namespace: str) -> Rule:
    source, destination = spec.source or EntitySpec(), spec.destination or EntitySpec()
    far, own = (source, destination) if direction == "ingress" else (destination, source)
    peer, subject = _peer(far, namespace), _peer(own, namespace)
    protocol = _protocol(spec.protocol)
    return Rule(
        action=_ACTIONS[spec.action],
        peers=(peer,) if peer != Peer() else (),
        subject=subject if subject != Peer() else None,
        ports=_ports(destination.ports, protocol) or ((PortMatch(protocol),) if protocol else ()),
        not_ports=_ports(destination.not_ports, protocol),
        source_ports=_ports(source.ports, protocol),
        not_source_ports=_ports(source.not_ports, protocol),
        not_protocol=_protocol(spec.not_protocol),
        icmp=_icmp(spec.icmp),
        not_icmp=_icmp(spec.not_icmp),
        family=6 if spec.ip_version == 6 else 4 if spec.ip_version == 4 else 0,
    )


def _peer(end: EntitySpec, namespace: str) -> Peer:
    accounts, service = end.service_accounts, end.services
    selects = bool(end.selector or end.namespace_selector or accounts is not None)
    pods = None
    if selects or (end.not_selector and namespace):
        everywhere = (end.namespace_selector or "").strip() == "global()"
        pods = PodSet(
            namespace="" if end.namespace_selector else namespace,
            namespaces=None if everywhere else _expression(end.namespace_selector),
            pods=_expression(end.selector),
            accounts=_expression(accounts.selector) if accounts is not None else None,
            account_names=tuple(sorted(set(accounts.names or ()))) if accounts is not None else (),
            network_sets=True,
            global_only=everywhere,
        )
    return Peer(
        pods=pods,
        not_pods=PodSet(pods=_expression(end.not_selector), network_sets=True) if end.not_selector else None,
        nets=tuple(end.nets or ()),
        not_nets=tuple(end.not_nets or ()),
        service=ServiceRef(service.namespace or namespace, service.name or "") if service is not None else None,
    )


def _expression(text: str | None) -> Expression | None:
    return Expression(text) if text else None


def _protocol(given: int | str | None) -> str:
    return "" if given is None else str(given)


def _ports(given: Iterable[int | str] | None, protocol: str) -> tuple[PortMatch, ...]:
    found = []
    for port in given or ():
        meaning = port_range(port)
        if isinstance(meaning, str):
            found.append(PortMatch(protocol, name=meaning))
        elif meaning is not None:
            found.append(PortMatch(protocol, *meaning))
    return tuple(found)


def _icmp(given: IcmpSpec | None) -> IcmpMatch | None:
    if given is None:
        return None
    return IcmpMatch(-1 if given.type is None else given.type, -1 if given.code is None else given.code)
