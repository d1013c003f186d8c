"""What Calico refuses of its policy resources: NetworkPolicy, GlobalNetworkPolicy, Tier, NetworkSet, GlobalNetworkSet.

They come as ``projectcalico.org/v3`` (calicoctl, or Calico's API server), or as the custom resources behind it,
``crd.projectcalico.org/v1``. What concerns host endpoints alone, or needs Envoy, is refused by name.

Source: projectcalico/calico libcalico-go/lib/validator/v3/validator.go (validateRule, validateEntityRule,
validateNetworkPolicySpec, validateGlobalNetworkPolicySpec, validateTier), api/pkg/lib/numorstring. Faults are (field
path, reason), the reasons in Calico's words where it has some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from emulator.cluster import validation
from emulator.cluster.calico_policy_spec import (
    EntitySpec,
    GlobalPolicySpec,
    IcmpSpec,
    NetworkSetSpec,
    PolicySpec,
    RuleSpec,
    TierSpec,
)
from emulator.cluster.calico_selectors import parse_selector
from emulator.cluster.decode import Fault, decode
from emulator.cluster.network_policy_rules import legacy_network

GROUPS = ("projectcalico.org", "crd.projectcalico.org")
SPECS: dict[str, type[Any]] = {
    "NetworkPolicy": PolicySpec,
    "GlobalNetworkPolicy": GlobalPolicySpec,
    "Tier": TierSpec,
    "NetworkSet": NetworkSetSpec,
    "GlobalNetworkSet": NetworkSetSpec,
}
ACTIONS = ("Allow", "Deny", "Log", "Pass")
TYPES = ("Egress", "Ingress")
PROTOCOLS = ("ICMP", "ICMPv6", "SCTP", "TCP", "UDP", "UDPLite")
WITH_PORTS = ("TCP", "UDP", "SCTP", 6, 17, 132)
# Order of the tiers that every cluster has (tier.go)
TIER_ORDERS = {"kube-admin": 1000.0, "default": 1000000.0, "kube-baseline": 10000000.0}

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_POLICY_NAME = re.compile(rf"(({_LABEL})(\.{_LABEL})?|(?:knp|ossg)\.default\.({_LABEL}(\.{_LABEL})*))")
_GLOBAL_NAME = re.compile(rf"({_LABEL}\.)?{_LABEL}")
_NAME_REASON = f"name must consist of lower case alphanumeric characters or '-' (regex: {_LABEL})"
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})")
_PORTS_NEED = "rules that specify ports must set protocol to TCP or UDP or SCTP"
_GLOBAL_ONLY = "global() can only be used in an EntityRule namespaceSelector"
_HOST_ENDPOINTS = "not emulated: it is for host endpoints, which cnilab does not have"


def calico_policy_faults(thing: dict[str, Any]) -> Iterator[Fault]:
    """The faults of one of Calico's policy resources; none for other kinds."""
    if not is_calico(thing):
        return
    kind, name = thing["kind"], thing["metadata"]["name"]
    given = thing.get("spec")
    spec, faults = decode({} if given is None else given, SPECS[kind])
    for path, reason in faults:
        full = f"spec.{path}" if path else "spec"
        yield full, reason.replace(f'"{path}"', f'"{full}"', 1) if path else reason
    if spec is None:
        return
    match kind:
        case "NetworkPolicy":
            if not _POLICY_NAME.fullmatch(name):
                yield "metadata.name", validation.invalid(name, _NAME_REASON)
            yield from _policy(spec)
        case "GlobalNetworkPolicy":
            if not _GLOBAL_NAME.fullmatch(name):
                yield "metadata.name", validation.invalid(name, _NAME_REASON)
            yield from _global(spec)
        case "Tier":
            yield from _tier(spec, name)
        case _:
            if "projectcalico.org/namespace" in (thing["metadata"].get("labels") or {}):
                yield "metadata.labels", "projectcalico.org/namespace is not a valid label name"
            for index, net in enumerate(spec.nets or ()):
                if network_of(net) is None:
                    yield f"spec.nets[{index}]", validation.invalid(net, "invalid CIDR")


def is_calico(thing: dict[str, Any]) -> bool:
    """Whether an object is one of Calico's policy resources."""
    return thing["kind"] in SPECS and thing["apiVersion"].rpartition("/")[0] in GROUPS


def network_of(text: str) -> validation.Network | None:
    """The network of a network set's entry: a CIDR, whose host bits do not count, or an address."""
    if "/" in text:
        return legacy_network(text)
    address = validation.parse_address(text)
    return validation.network_around(address, address.max_prefixlen) if address is not None else None


def _tier(spec: TierSpec, name: str) -> Iterator[Fault]:
    for reason in validation.faults_of_label_name(name):
        yield "metadata.name", validation.invalid(name, reason)
    fixed = TIER_ORDERS.get(name)
    if fixed is not None and spec.order != fixed:
        yield "spec.order", validation.invalid(spec.order, f"{name} tier order must be {fixed:.0f}")
    if spec.order is not None and not math.isfinite(spec.order):
        yield "spec.order", validation.invalid(spec.order, "must be a finite number")
    if spec.default_action not in (None, "Pass", "Deny"):
        yield "spec.defaultAction", validation.unsupported(spec.default_action, ("Deny", "Pass"))
    elif name in TIER_ORDERS and spec.default_action not in (None, "Deny" if name == "default" else "Pass"):
        yield "spec.defaultAction", validation.invalid(spec.default_action, f"cannot be changed of the {name} tier")


def _policy(spec: PolicySpec) -> Iterator[Fault]:
    for number, one in enumerate(spec.types or ()):
        if one not in TYPES:
            yield f"spec.types[{number}]", validation.unsupported(one, TYPES)
        elif one in (spec.types or ())[:number]:
            yield "spec.types", f"'{one}' type specified more than once"
    if spec.order is not None and not math.isfinite(spec.order):
        yield "spec.order", validation.invalid(spec.order, "must be a finite number")
    for field, text in (("selector", spec.selector), ("serviceAccountSelector", spec.service_account_selector)):
        yield from _selector(text, f"spec.{field}")
    for reason in validation.faults_of_label_name(spec.tier) if spec.tier else ():
        yield "spec.tier", validation.invalid(spec.tier, reason)
    for section, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        for number, rule in enumerate(rules or ()):
            path = f"spec.{section}[{number}]"
            yield from _rule(rule, path)
            wrong, side = (rule.destination, "destination") if section == "ingress" else (rule.source, "source")
            if wrong is not None and wrong.services is not None:
                yield f"{path}.{side}.services", validation.forbidden(f"not allowed in {section} rule {side}")


def _global(spec: GlobalPolicySpec) -> Iterator[Fault]:
    yield from _policy(spec)
    yield from _selector(spec.namespace_selector, "spec.namespaceSelector")
    refused = (("doNotTrack", spec.do_not_track), ("preDNAT", spec.pre_dnat), ("applyOnForward", spec.apply_on_forward))
    for field, value in refused:
        if value:
            yield f"spec.{field}", validation.forbidden(_HOST_ENDPOINTS)
    for section, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        for number, rule in enumerate(rules or ()):
            side = "source" if section == "ingress" else "destination"
            far = rule.source if section == "ingress" else rule.destination
            if far is not None and far.services is not None and not far.services.namespace:
                yield f"spec.{section}[{number}].{side}.services.namespace", "must specify a namespace"


def _rule(rule: RuleSpec, path: str) -> Iterator[Fault]:
    if rule.action not in ACTIONS:
        yield f"{path}.action", validation.unsupported(rule.action, ACTIONS)
    if rule.http is not None:
        yield f"{path}.http", validation.forbidden("not emulated: application layer policy is enforced by Envoy")
    for field, protocol in (("protocol", rule.protocol), ("notProtocol", rule.not_protocol)):
        yield from _protocol(protocol, f"{path}.{field}")
        for name, version in (("ICMP", 4), ("ICMPv6", 6)):
            if protocol == name and rule.ip_version not in (None, version):
                reason = f"must set ipversion to '{version}' with protocol {name.lower()}"
                yield f"{path}.ipVersion", validation.invalid(rule.ip_version, reason)
    if rule.ip_version not in (None, 4, 6):
        yield f"{path}.ipVersion", validation.unsupported(rule.ip_version, ("4", "6"))
    if rule.icmp is not None and rule.protocol not in ("ICMP", "ICMPv6"):
        yield f"{path}.icmp", "rules that specify ICMP fields must set protocol to ICMP"
    for field, icmp in (("icmp", rule.icmp), ("notICMP", rule.not_icmp)):
        if icmp is not None:
            yield from _icmp(icmp, f"{path}.{field}")
    for side, end in (("source", rule.source), ("destination", rule.destination)):
        if end is not None:
            yield from _entity(end, rule, f"{path}.{side}")
    to = rule.destination
    if to is not None and to.services is not None:
        for field, ports in (("ports", to.ports), ("notPorts", to.not_ports)):
            if ports:
                yield f"{path}.destination.{field}", f"cannot specify {field.lower()} with a service selector"
    yield from _families(rule, path)


def _protocol(protocol: int | str | None, path: str) -> Iterator[Fault]:
    if isinstance(protocol, int):
        if not 1 <= protocol <= 255:
            yield path, validation.invalid(protocol, "protocol number invalid")
    elif protocol is not None and protocol not in PROTOCOLS:
        yield path, validation.invalid(protocol, "protocol name invalid")


def _icmp(icmp: IcmpSpec, path: str) -> Iterator[Fault]:
    if icmp.code is not None and icmp.type is None:
        yield f"{path}.code", validation.invalid(icmp.code, "ICMP code specified without an ICMP type")
    for field, value, most in (("type", icmp.type, 254), ("code", icmp.code, 255)):
        if value is not None and not 0 <= value <= most:
            yield f"{path}.{field}", validation.invalid(value, f"must be between 0 and {most}")


def _entity(end: EntitySpec, rule: RuleSpec, path: str) -> Iterator[Fault]:
    for field, ports in (("ports", end.ports), ("notPorts", end.not_ports)):
        if ports and rule.protocol not in WITH_PORTS:
            yield f"{path}.{field}", _PORTS_NEED
        for number, port in enumerate(ports or ()):
            if port_range(port) is None:
                yield f"{path}.{field}[{number}]", validation.invalid(port, "invalid name for named port, or range")
    yield from _selector(end.selector, f"{path}.selector")
    yield from _selector(end.not_selector, f"{path}.notSelector")
    text = end.namespace_selector
    if text and "global(" in text and text.strip() != "global()":
        reason = "global() cannot be combined with other selectors"
        yield f"{path}.namespaceSelector", validation.invalid(text, reason)
    elif text and text.strip() != "global()":
        yield from _selector(text, f"{path}.namespaceSelector")
    accounts = end.service_accounts
    if accounts is not None:
        yield from _selector(accounts.selector, f"{path}.serviceAccounts.selector")
        for number, name in enumerate(accounts.names or ()):
            for reason in validation.faults_of_subdomain(name):
                yield f"{path}.serviceAccounts.names[{number}]", validation.invalid(name, reason)
    if end.services is not None:
        yield from _services(end, f"{path}.services")


def _services(end: EntitySpec, path: str) -> Iterator[Fault]:
    if end.services is not None and not end.services.name:
        yield path, "must specify a service name"
    if end.namespace_selector:
        yield path, "cannot specify NamespaceSelector and Services on the same rule"
    if end.selector or end.not_selector:
        yield path, "cannot specify Selector/NotSelector and Services on the same rule"
    if end.service_accounts is not None:
        yield path, "cannot specify ServiceAccounts and Services on the same rule"
    if end.nets or end.not_nets:
        yield path, "cannot specify Nets/NotNets and Services on the same rule"


def _families(rule: RuleSpec, path: str) -> Iterator[Fault]:
    """CIDRs: well-formed, and all of one family, which is the rule's."""
    seen: set[int] = set()
    for side, end in (("source", rule.source), ("destination", rule.destination)):
        lists: Sequence[tuple[str, list[str] | None]] = (
            () if end is None else (("nets", end.nets), ("notNets", end.not_nets))
        )
        for field, nets in lists:
            here: set[int] = set()
            for number, text in enumerate(nets or ()):
                if validation.faults_of_cidr(text):
                    yield f"{path}.{side}.{field}[{number}]", validation.invalid(text, "invalid CIDR")
                else:
                    here.add(validation.parse_cidr(text).version)
            if rule.ip_version is not None and here - {rule.ip_version}:
                yield f"{path}.{side}.{field}", "rule IP version doesn't match CIDR version"
            if len(here | seen) > 1 and here:
                yield f"{path}.{side}.{field}", "rule contains both IPv4 and IPv6 CIDRs"
            seen |= here


def _selector(text: str | None, path: str) -> Iterator[Fault]:
    if not text:
        return
    if "global(" in text:
        yield path, validation.invalid(text, _GLOBAL_ONLY)
        return
    try:
        parse_selector(text)
    except ValueError as error:
        yield path, validation.invalid(text, str(error))


def port_range(port: int | str) -> tuple[int, int] | str | None:
    """What an entry of ``ports`` means: first and last number, a port's name, or None for nonsense."""
    if isinstance(port, str):
        found = _RANGE.fullmatch(port)
        if found is None and not port.isdecimal():
            return port if port.isascii() and _PORT_NAME.fullmatch(port) else None
        first, last = (int(found[1]), int(found[2])) if found is not None else (int(port[:6]), int(port[:6]))
    else:
        first = last = port
    # Nothing listens on port 0, and alone it would mean nothing
    return (max(first, 1), last) if first <= last and 1 <= last <= 65535 else None
