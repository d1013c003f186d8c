"""The cluster-wide policies of policy.networking.k8s.io, as they are written, and what their definitions refuse.

v1alpha1 has AdminNetworkPolicy, judged before NetworkPolicies, and one BaselineAdminNetworkPolicy, judged after them;
v1alpha2 has ClusterNetworkPolicy for both. Domain names as peers are not emulated, and refused by name.

Sources: kubernetes-sigs/network-policy-api apis/v1alpha1 (adminnetworkpolicy_types.go,
baselineadminnetworkpolicy_types.go, shared_types.go), apis/v1alpha2/clusternetworkpolicy_types.go with their
kubebuilder markers. Faults are (field path, reason).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from emulator.cluster import validation
from emulator.cluster.decode import Fault, decode
from emulator.cluster.workload_rules import selector_faults

GROUP = "policy.networking.k8s.io"
VERSIONS = {
    "AdminNetworkPolicy": "v1alpha1",
    "BaselineAdminNetworkPolicy": "v1alpha1",
    "ClusterNetworkPolicy": "v1alpha2",
}
BASELINE_NAME = "default"  # of the only BaselineAdminNetworkPolicy
PROTOCOLS = ("SCTP", "TCP", "UDP")
PRIORITY_MAX = 1000
RULES_MAX = {"AdminNetworkPolicy": 100, "BaselineAdminNetworkPolicy": 100, "ClusterNetworkPolicy": 25}
ITEMS_MAX = {"AdminNetworkPolicy": 100, "BaselineAdminNetworkPolicy": 100, "ClusterNetworkPolicy": 25}
NETWORKS_MAX = 25
NAME_MAX = 100  # characters of a rule's name
ONE_FIELD = "exactly one field must be set"


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel", kw_only=True):
    """Unknown fields are mistakes."""


class RequirementSpec(_Spec, frozen=True, kw_only=True):
    """meta/v1 LabelSelectorRequirement."""

    key: str
    operator: str
    values: list[str] | None = None


class SelectorSpec(_Spec, frozen=True, kw_only=True):
    """meta/v1 LabelSelector."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[RequirementSpec] | None = None


class NamespacedPodSpec(_Spec, frozen=True, kw_only=True):
    """NamespacedPod."""

    pod_selector: SelectorSpec
    namespace_selector: SelectorSpec = SelectorSpec()


class PeerSpec(_Spec, frozen=True, kw_only=True):
    """A subject, or a peer of a rule; the last three are for egress only."""

    namespaces: SelectorSpec | None = None
    pods: NamespacedPodSpec | None = None
    nodes: SelectorSpec | None = None
    networks: list[str] | None = None
    domain_names: list[str] | None = None


class NumberSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha1 Port."""

    port: int
    protocol: str = "TCP"


class RangeSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha1 PortRange."""

    start: int
    end: int
    protocol: str = "TCP"


class PortSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha1 AdminNetworkPolicyPort."""

    port_number: NumberSpec | None = None
    named_port: str | None = None
    port_range: RangeSpec | None = None


class StartEndSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha2 PortRange."""

    start: int
    end: int


class DestinationPortSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha2 Port."""

    number: int | None = None
    range: StartEndSpec | None = None


class TransportSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha2 ClusterNetworkPolicyProtocolTCP and its likes."""

    destination_port: DestinationPortSpec | None = None


class ProtocolSpec(_Spec, frozen=True, kw_only=True):
    """v1alpha2 ClusterNetworkPolicyProtocol."""

    tcp: TransportSpec | None = None
    udp: TransportSpec | None = None
    sctp: TransportSpec | None = None
    destination_named_port: str | None = None


class AdminRuleSpec(_Spec, frozen=True, kw_only=True):
    """A v1alpha1 rule: ``from`` in ingress, ``to`` in egress."""

    action: str
    name: str | None = None
    sources: list[PeerSpec] | None = msgspec.field(name="from", default=None)
    to: list[PeerSpec] | None = None
    ports: list[PortSpec] | None = None


class ClusterRuleSpec(_Spec, frozen=True, kw_only=True):
    """A v1alpha2 rule."""

    action: str
    name: str | None = None
    sources: list[PeerSpec] | None = msgspec.field(name="from", default=None)
    to: list[PeerSpec] | None = None
    protocols: list[ProtocolSpec] | None = None


class AdminPolicySpec(_Spec, frozen=True, kw_only=True):
    """AdminNetworkPolicySpec."""

    priority: int
    subject: PeerSpec
    ingress: list[AdminRuleSpec] | None = None
    egress: list[AdminRuleSpec] | None = None


class BaselinePolicySpec(_Spec, frozen=True, kw_only=True):
    """BaselineAdminNetworkPolicySpec."""

    subject: PeerSpec
    ingress: list[AdminRuleSpec] | None = None
    egress: list[AdminRuleSpec] | None = None


class ClusterPolicySpec(_Spec, frozen=True, kw_only=True):
    """ClusterNetworkPolicySpec."""

    tier: str
    priority: int
    subject: PeerSpec
    ingress: list[ClusterRuleSpec] | None = None
    egress: list[ClusterRuleSpec] | None = None


AnyRuleSpec = AdminRuleSpec | ClusterRuleSpec
SPECS: dict[str, type[Any]] = {
    "AdminNetworkPolicy": AdminPolicySpec,
    "BaselineAdminNetworkPolicy": BaselinePolicySpec,
    "ClusterNetworkPolicy": ClusterPolicySpec,
}
ACTIONS = {
    "AdminNetworkPolicy": ("Allow", "Deny", "Pass"),
    "BaselineAdminNetworkPolicy": ("Allow", "Deny"),
    "ClusterNetworkPolicy": ("Accept", "Deny", "Pass"),
}


def is_admin_policy(thing: dict[str, Any]) -> bool:
    """Whether an object is one of the cluster-wide policies."""
    return thing["kind"] in SPECS and thing["apiVersion"].rpartition("/")[0] == GROUP


def admin_policy_faults(thing: dict[str, Any]) -> Iterator[Fault]:
    """The faults of a cluster-wide policy; none for other kinds."""
    if not is_admin_policy(thing):
        return
    kind, name = thing["kind"], thing["metadata"]["name"]
    if thing["apiVersion"] != f"{GROUP}/{VERSIONS[kind]}":
        yield "apiVersion", f'no matches for kind "{kind}" in version "{thing["apiVersion"]}"'
        return
    if kind == "BaselineAdminNetworkPolicy" and name != BASELINE_NAME:
        reason = 'Only one baseline admin network policy with metadata.name="default" can be created in the cluster'
        yield "metadata.name", validation.invalid(name, reason)
    unknown = sorted(thing.keys() - {"apiVersion", "kind", "metadata", "spec", "status"})
    yield from ((field, f'unknown field "{field}"') for field in unknown)
    given = thing.get("spec")
    spec, faults = decode({} if given is None else given, SPECS[kind])
    for path, reason in faults:
        full = f"spec.{path}" if path else "spec"
        yield full, reason.replace(f'"{path}"', f'"{full}"', 1) if path else reason
    if spec is not None:
        yield from _policy(kind, spec)


def _policy(kind: str, spec: Any) -> Iterator[Fault]:
    if kind != "BaselineAdminNetworkPolicy" and not 0 <= spec.priority <= PRIORITY_MAX:
        yield "spec.priority", validation.invalid(spec.priority, f"must be between 0 and {PRIORITY_MAX}, inclusive")
    if kind == "ClusterNetworkPolicy" and spec.tier not in ("Admin", "Baseline"):
        yield "spec.tier", validation.unsupported(spec.tier, ("Admin", "Baseline"))
    yield from _peer(spec.subject, "spec.subject", ("namespaces", "pods"))
    for section, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        yield from _too_many(rules or (), RULES_MAX[kind], f"spec.{section}")
        for number, rule in enumerate(rules or ()):
            yield from _rule(kind, section, rule, f"spec.{section}[{number}]")


def _rule(kind: str, section: str, rule: AnyRuleSpec, path: str) -> Iterator[Fault]:
    if rule.action not in ACTIONS[kind]:
        yield f"{path}.action", validation.unsupported(rule.action, ACTIONS[kind])
    if rule.name is not None and len(rule.name) > NAME_MAX:
        yield f"{path}.name", f"Too long: may not be more than {NAME_MAX} bytes"
    ingress = section == "ingress"
    peers, other = (rule.sources, rule.to) if ingress else (rule.to, rule.sources)
    field, strange = ("from", "to") if ingress else ("to", "from")
    fields = ("namespaces", "pods") if ingress else ("namespaces", "pods", "nodes", "networks", "domainNames")
    if other is not None:
        yield f"{path}.{strange}", f'unknown field "{path}.{strange}"'
    if not peers:
        yield f"{path}.{field}", validation.required("must have at least 1 item")
    yield from _too_many(peers or (), ITEMS_MAX[kind], f"{path}.{field}")
    for number, peer in enumerate(peers or ()):
        yield from _peer(peer, f"{path}.{field}[{number}]", fields)
    named = False
    if isinstance(rule, AdminRuleSpec):
        yield from _too_many(rule.ports or (), ITEMS_MAX[kind], f"{path}.ports")
        for number, port in enumerate(rule.ports or ()):
            named |= port.named_port is not None
            yield from _port(port, f"{path}.ports[{number}]")
    else:
        yield from _too_many(rule.protocols or (), ITEMS_MAX[kind], f"{path}.protocols")
        if rule.protocols is not None and not rule.protocols:
            yield f"{path}.protocols", validation.required("must have at least 1 item")
        for number, protocol in enumerate(rule.protocols or ()):
            named |= protocol.destination_named_port is not None
            yield from _protocol(protocol, f"{path}.protocols[{number}]")
    if named and any(peer.networks is not None or peer.nodes is not None for peer in peers or ()):
        reason = "networks/nodes peer cannot be set with namedPorts since there are no namedPorts for networks/nodes"
        yield path, validation.forbidden(reason)


def _peer(peer: PeerSpec, path: str, allowed: Sequence[str]) -> Iterator[Fault]:
    given = {
        "namespaces": peer.namespaces,
        "pods": peer.pods,
        "nodes": peer.nodes,
        "networks": peer.networks,
        "domainNames": peer.domain_names,
    }
    there = [field for field, value in given.items() if value is not None]
    for field in there:
        if field not in allowed:
            yield f"{path}.{field}", f'unknown field "{path}.{field}"'
    if len(there) != 1:
        yield path, validation.invalid(there, ONE_FIELD)
    if peer.domain_names is not None and "domainNames" in allowed:
        yield f"{path}.domainNames", validation.forbidden("not emulated: peers by domain name")
    for field, selector in (("namespaces", peer.namespaces), ("nodes", peer.nodes)):
        yield from _selector(selector, f"{path}.{field}")
    if peer.pods is not None:
        yield from _selector(peer.pods.namespace_selector, f"{path}.pods.namespaceSelector")
        yield from _selector(peer.pods.pod_selector, f"{path}.pods.podSelector")
    if peer.networks is not None:
        if not peer.networks:
            yield f"{path}.networks", validation.required("must have at least 1 item")
        yield from _too_many(peer.networks, NETWORKS_MAX, f"{path}.networks")
        for number, text in enumerate(peer.networks):
            if text in peer.networks[:number]:
                yield f"{path}.networks[{number}]", validation.duplicate(text)
            elif validation.faults_of_cidr(text):
                yield f"{path}.networks[{number}]", validation.invalid(text, "Invalid CIDR format provided")


def _port(port: PortSpec, path: str) -> Iterator[Fault]:
    if [port.port_number, port.named_port, port.port_range].count(None) != 2:
        yield path, validation.invalid(msgspec.to_builtins(port), ONE_FIELD)
    number, span = port.port_number, port.port_range
    if number is not None:
        yield from _transport(number.protocol, f"{path}.portNumber.protocol")
        yield from _number(number.port, f"{path}.portNumber.port")
    if span is not None:
        yield from _transport(span.protocol, f"{path}.portRange.protocol")
        yield from _span(span.start, span.end, f"{path}.portRange")
    yield from _name(port.named_port, f"{path}.namedPort")


def _protocol(protocol: ProtocolSpec, path: str) -> Iterator[Fault]:
    transports = (("tcp", protocol.tcp), ("udp", protocol.udp), ("sctp", protocol.sctp))
    if sum(one is not None for _, one in transports) + (protocol.destination_named_port is not None) != 1:
        yield path, validation.invalid(msgspec.to_builtins(protocol), ONE_FIELD)
    yield from _name(protocol.destination_named_port, f"{path}.destinationNamedPort")
    for field, transport in transports:
        if transport is None:
            continue
        port, place = transport.destination_port, f"{path}.{field}"
        if port is None:
            yield place, "should have at least 1 properties"
            continue
        if (port.number is None) == (port.range is None):
            yield f"{place}.destinationPort", validation.invalid(msgspec.to_builtins(port), ONE_FIELD)
        if port.number is not None:
            yield from _number(port.number, f"{place}.destinationPort.number")
        if port.range is not None:
            yield from _span(port.range.start, port.range.end, f"{place}.destinationPort.range")


def _transport(protocol: str, path: str) -> Iterator[Fault]:
    if protocol not in PROTOCOLS:
        yield path, validation.unsupported(protocol, PROTOCOLS)


def _number(number: int, path: str) -> Iterator[Fault]:
    yield from ((path, validation.invalid(number, reason)) for reason in validation.faults_of_port(number))


def _span(start: int, end: int, path: str) -> Iterator[Fault]:
    yield from _number(start, f"{path}.start")
    yield from _number(end, f"{path}.end")
    if start >= end:
        yield path, validation.invalid({"start": start, "end": end}, "Start port must be less than End port")


def _name(name: str | None, path: str) -> Iterator[Fault]:
    if name is not None:
        yield from ((path, validation.invalid(name, reason)) for reason in validation.faults_of_port_name(name))


def _selector(selector: SelectorSpec | None, path: str) -> Iterator[Fault]:
    if selector is not None:
        yield from selector_faults(msgspec.to_builtins(selector), path)


def _too_many(items: Sequence[object], limit: int, path: str) -> Iterator[Fault]:
    if len(items) > limit:
        yield path, f"Too many: {len(items)}: must have at most {limit} items"
