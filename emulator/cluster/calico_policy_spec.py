"""Calico's policy resources as they are written in manifests.

Sources: projectcalico/calico api/pkg/apis/projectcalico/v3 (networkpolicy.go, globalnetworkpolicy.go, policy_common.go,
tier.go, networkset.go, globalnetworkset.go).
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Unknown fields are mistakes."""


class IcmpSpec(_Spec, frozen=True, kw_only=True):
    """ICMPFields."""

    type: int | None = None
    code: int | None = None


class AccountsSpec(_Spec, frozen=True, kw_only=True):
    """ServiceAccountMatch: both hold if both are given."""

    names: list[str] | None = None
    selector: str | None = None


class ServiceSpec(_Spec, frozen=True, kw_only=True):
    """ServiceMatch."""

    name: str | None = None
    namespace: str | None = None


class EntitySpec(_Spec, frozen=True, kw_only=True):
    """EntityRule: one end of a rule."""

    nets: list[str] | None = None
    not_nets: list[str] | None = None
    selector: str | None = None
    not_selector: str | None = None
    namespace_selector: str | None = None
    ports: list[int | str] | None = None
    not_ports: list[int | str] | None = None
    service_accounts: AccountsSpec | None = None
    services: ServiceSpec | None = None


class RuleSpec(_Spec, frozen=True, kw_only=True):
    """Rule."""

    action: str
    ip_version: int | None = None
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: IcmpSpec | None = None
    not_icmp: IcmpSpec | None = msgspec.field(name="notICMP", default=None)
    source: EntitySpec | None = None
    destination: EntitySpec | None = None
    http: Any = None
    metadata: Any = None


class PolicySpec(_Spec, frozen=True, kw_only=True):
    """NetworkPolicySpec."""

    tier: str | None = None
    order: float | None = None
    ingress: list[RuleSpec] | None = None
    egress: list[RuleSpec] | None = None
    selector: str | None = None
    types: list[str] | None = None
    service_account_selector: str | None = None
    performance_hints: list[str] | None = None


class GlobalPolicySpec(PolicySpec, frozen=True, kw_only=True):
    """GlobalNetworkPolicySpec."""

    namespace_selector: str | None = None
    do_not_track: bool | None = None
    pre_dnat: bool | None = msgspec.field(name="preDNAT", default=None)
    apply_on_forward: bool | None = None


class TierSpec(_Spec, frozen=True, kw_only=True):
    """TierSpec."""

    order: float | None = None
    default_action: str | None = None


class NetworkSetSpec(_Spec, frozen=True, kw_only=True):
    """NetworkSetSpec and GlobalNetworkSetSpec."""

    nets: list[str] | None = None
