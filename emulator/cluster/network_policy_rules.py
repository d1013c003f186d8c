"""What the API server checks of a NetworkPolicy beyond the types of its fields.

Source: kubernetes/kubernetes pkg/apis/networking/validation/validation.go (ValidateNetworkPolicySpec). The address
fields are "legacy" ones: with the feature gate StrictIPCIDRValidation off, as it is by default, host bits and leading
zeros pass (pkg/apis/core/validation IsValidCIDRForLegacyField). Faults are (field path, reason), in the API server's
words. The objects have passed the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emulator.cluster import validation
from emulator.cluster.decode import Fault
from emulator.cluster.validation import Network
from emulator.cluster.workload_rules import PROTOCOLS, selector_faults

TYPES = ("Egress", "Ingress")
API_GROUP = "networking.k8s.io"
NO_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"

Object = dict[str, Any]


def network_policy_faults(thing: Object) -> Iterator[Fault]:
    """The faults of a NetworkPolicy; none for other kinds."""
    if thing["kind"] != "NetworkPolicy" or not thing["apiVersion"].startswith(f"{API_GROUP}/"):
        return
    spec = thing.get("spec") or {}
    yield from selector_faults(spec.get("podSelector") or {}, "spec.podSelector")
    for section, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(section) or ()):
            path = f"spec.{section}[{index}]"
            for number, port in enumerate(rule.get("ports") or ()):
                yield from _port_faults(port, f"{path}.ports[{number}]")
            for number, peer in enumerate(rule.get(peers) or ()):
                yield from _peer_faults(peer, f"{path}.{peers}[{number}]")
    types = spec.get("policyTypes") or ()
    if len(types) > len(TYPES):
        yield "spec.policyTypes", validation.invalid(types, "may not specify more than two policyTypes")
        return
    for index, one in enumerate(types):
        if one not in TYPES:
            yield f"spec.policyTypes[{index}]", validation.unsupported(one, TYPES)


def _port_faults(port: Object, path: str) -> Iterator[Fault]:
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in PROTOCOLS:
        yield f"{path}.protocol", validation.unsupported(protocol, PROTOCOLS)
    if number is None:
        if end is not None:
            yield f"{path}.endPort", validation.invalid(end, "may not be specified when `port` is not specified")
    elif isinstance(number, str):
        if end is not None:
            yield f"{path}.endPort", validation.invalid(end, "may not be specified when `port` is non-numeric")
        for reason in validation.faults_of_port_name(number):
            yield f"{path}.port", validation.invalid(number, reason)
    else:
        for reason in validation.faults_of_port(number):
            yield f"{path}.port", validation.invalid(number, reason)
        if end is not None:
            if end < number:
                yield f"{path}.endPort", validation.invalid(end, "must be greater than or equal to `port`")
            for reason in validation.faults_of_port(end):
                yield f"{path}.endPort", validation.invalid(end, reason)


def _peer_faults(peer: Object, path: str) -> Iterator[Fault]:
    given = [field for field in ("podSelector", "namespaceSelector", "ipBlock") if peer.get(field) is not None]
    for field in given:
        if field == "ipBlock":
            yield from _block_faults(peer[field], f"{path}.ipBlock")
        else:
            yield from selector_faults(peer[field], f"{path}.{field}")
    if not given:
        yield path, validation.required("must specify a peer")
    elif len(given) > 1 and "ipBlock" in given:
        yield path, validation.forbidden("may not specify both ipBlock and another peer")


def _block_faults(block: Object, path: str) -> Iterator[Fault]:
    text = block.get("cidr")
    if not text:
        yield f"{path}.cidr", validation.required()
        return
    whole = legacy_network(text)
    if whole is None:
        yield f"{path}.cidr", validation.invalid(text, NO_CIDR)
        return
    for index, other in enumerate(block.get("except") or ()):
        part = legacy_network(other)
        if part is None:
            yield f"{path}.except[{index}]", validation.invalid(other, NO_CIDR)
        elif part.prefixlen <= whole.prefixlen or not validation.is_within(part, whole):
            yield f"{path}.except[{index}]", validation.invalid(other, "must be a strict subset of `cidr`")


def legacy_network(text: str) -> Network | None:
    """The network of a CIDR as older fields take them, None if it is none: host bits are masked off, decimal numbers
    may have leading zeros (netutils.ParseCIDRSloppy)."""
    base, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit()) or len(text) > 64:
        return None
    if ":" not in base:
        parts = base.split(".")
        base = ".".join(part.lstrip("0") or "0" if part.isascii() and part.isdigit() else part for part in parts)
    address = validation.parse_address(base)
    if address is None or int(length) > address.max_prefixlen:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return None  # Go would read it as IPv4 with a mask of 128 bits; nothing could be meant by that
    return validation.network_around(address, int(length))
