"""What a Service's annotations ask of an AWS Network Load Balancer, as the AWS Load Balancer Controller reads them.

The controller's webhook gives every new Service of type LoadBalancer its class, so it serves all without another one;
``aws-load-balancer-type`` decides nothing then but that ``nlb-ip`` means IP targets.

Source: kubernetes-sigs/aws-load-balancer-controller pkg/service (model_build_target_group.go, model_builder.go),
webhooks/core/service_mutator.go, docs/guide/service/annotations.md; docs.aws.amazon.com "Edit target group attributes
for your Network Load Balancer" (client IP preservation by type and protocol).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from emulator.cluster.model import HealthTimes, LoadBalancer
from emulator.cluster.services import Service

CLASS = "service.k8s.aws/nlb"
PREFIX = "service.beta.kubernetes.io/aws-load-balancer-"
TRAFFIC_PORT = "traffic-port"
_SCHEMES = ("internal", "internet-facing")
_TYPES = ("instance", "ip")
_PROTOCOLS = ("tcp", "http")
# Attributes that change nothing that is emulated.
_WITHOUT_EFFECT = (
    "deregistration_delay.",
    "deletion_protection.",
    "access_logs.",
    "dns_record.client_routing_policy",
)
_NOT_EMULATED = ("proxy-protocol", "ssl-cert", "eip-allocations", "target-node-labels", "security-groups")
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
_SECONDS, _COUNTS, _PORTS = range(5, 301), range(2, 11), range(1, 65536)  # as AWS takes them
_TIMEOUTS = range(2, 121)


class Denied(Exception):
    """Why a Service gets no load balancer."""


class NlbSettings(msgspec.Struct, frozen=True):
    """One load balancer. ``preserve`` is None where nobody says whether targets see the clients' addresses; ``sticky``:
    a client stays with its target. Of the health check what is empty or 0 is left to the defaults; ``check_port`` may
    be ``traffic-port``. ``subnets`` are names, ``addresses`` those that it shall have in them."""

    targets: Literal["instance", "ip"] = "instance"
    internet_facing: bool = False
    cross_zone: bool = False
    preserve: bool | None = None
    sticky: bool = False
    check_protocol: Literal["", "tcp", "http"] = ""
    check_port: str = ""
    check_path: str = ""
    check_codes: tuple[int, int] = (200, 399)
    times: HealthTimes = HealthTimes()
    subnets: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def preserves(self, protocol: str) -> bool:
        """Whether targets of a port see the client's address: of UDP always, else by the attribute, else by type."""
        if protocol == "UDP":
            return True
        return self.preserve if self.preserve is not None else self.targets == "instance"


def nlb_settings(service: Service, balancer: LoadBalancer) -> NlbSettings:
    """What is asked for, with the topology's wishes as defaults. Raises Denied."""
    annotations = {
        name.removeprefix(PREFIX): text.strip() for name, text in service.annotations.items() if name.startswith(PREFIX)
    }
    for name in _NOT_EMULATED:
        if name in annotations:
            raise Denied(f"the annotation aws-load-balancer-{name} is not emulated")
    if SOURCE_RANGES in service.annotations:
        raise Denied(
            "the annotation load-balancer-source-ranges is not emulated: there is spec.loadBalancerSourceRanges"
        )
    if annotations.get("ip-address-type", "ipv4") != "ipv4":
        raise Denied("the annotation aws-load-balancer-ip-address-type must be ipv4: the VPC has nothing else")
    for port in service.ports:
        if port.protocol == "SCTP":
            raise Denied("a Network Load Balancer has no SCTP")
    group = _attributes(annotations, "target-group-attributes")
    whole = _attributes(annotations, "attributes")
    if _boolean(group, "proxy_protocol_v2.enabled"):
        raise Denied("the attribute proxy_protocol_v2.enabled is not emulated")
    default = "ip" if balancer.targets == "ip" else "instance"
    kind = "ip" if annotations.get("type") == "nlb-ip" else _one_of(annotations, "nlb-target-type", _TYPES, default)
    scheme = "internet-facing" if annotations.get("internal") == "false" else "internal"
    cross_zone = whole.pop("load_balancing.cross_zone.enabled", None) or annotations.get(
        "cross-zone-load-balancing-enabled", "false"
    )
    settings = NlbSettings(
        targets="ip" if kind == "ip" else "instance",
        internet_facing=_one_of(annotations, "scheme", _SCHEMES, scheme) == "internet-facing",
        cross_zone=_truth("cross-zone load balancing", cross_zone),
        preserve=_boolean(group, "preserve_client_ip.enabled", balancer.preserve_client_ip),
        sticky=bool(_boolean(group, "stickiness.enabled")),
        check_protocol=_protocol(annotations),
        check_port=_check_port(annotations),
        check_path=annotations.get("healthcheck-path", ""),
        check_codes=_codes(annotations.get("healthcheck-success-codes", "200-399")),
        times=HealthTimes(
            _number(annotations, "healthcheck-interval", _SECONDS) or balancer.health.interval,
            _number(annotations, "healthcheck-timeout", _TIMEOUTS) or balancer.health.timeout,
            _number(annotations, "healthcheck-healthy-threshold", _COUNTS) or balancer.health.healthy,
            _number(annotations, "healthcheck-unhealthy-threshold", _COUNTS) or balancer.health.unhealthy,
        ),
        subnets=_list(annotations, "subnets"),
        addresses=_list(annotations, "private-ipv4-addresses"),
    )
    if group.pop("stickiness.type", "source_ip") != "source_ip":
        raise Denied("the attribute stickiness.type must be source_ip")
    for name in (*group, *whole):
        if not name.startswith(_WITHOUT_EFFECT):
            raise Denied(f"the attribute {name[:60]} is not emulated")
    if settings.addresses and settings.internet_facing:
        raise Denied("the annotation aws-load-balancer-private-ipv4-addresses is for internal load balancers")
    if settings.check_path and (not settings.check_path.startswith("/") or not _plain(settings.check_path)):
        raise Denied("the annotation aws-load-balancer-healthcheck-path must be a path")
    return settings


def _list(annotations: dict[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in annotations.get(name, "").split(",") if part.strip())


def _attributes(annotations: dict[str, str], name: str) -> dict[str, str]:
    """``k1=v1,k2=v2``."""
    found = {}
    for part in _list(annotations, name):
        key, sign, value = part.partition("=")
        if not sign:
            raise Denied(f"the annotation aws-load-balancer-{name} has {part[:60]!r}, which is no KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def _boolean(attributes: dict[str, str], name: str, default: bool | None = None) -> bool | None:
    text = attributes.pop(name, None)
    return default if text is None else _truth(f"the attribute {name}", text)


def _truth(what: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise Denied(f"{what} is {text[:60]!r}: must be true or false")
    return text == "true"


def _one_of(annotations: dict[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    text = annotations.get(name, default)
    if text not in choices:
        raise Denied(f"the annotation aws-load-balancer-{name} is {text[:60]!r}: must be {' or '.join(choices)}")
    return text


def _number(annotations: dict[str, str], name: str, allowed: range) -> int:
    """0 where nothing is said."""
    text = annotations.get(name)
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) not in allowed:
        told = f"must be a number from {allowed[0]} to {allowed[-1]}"
        raise Denied(f"the annotation aws-load-balancer-{name} is {text[:60]!r}: {told}")
    return int(text)


def _protocol(annotations: dict[str, str]) -> Literal["", "tcp", "http"]:
    text = annotations.get("healthcheck-protocol", "").lower()
    if text == "https":
        raise Denied("health checks by HTTPS are not emulated")
    if text not in ("", *_PROTOCOLS):
        raise Denied(f"the annotation aws-load-balancer-healthcheck-protocol is {text[:60]!r}: must be tcp or http")
    return "tcp" if text == "tcp" else "http" if text == "http" else ""


def _check_port(annotations: dict[str, str]) -> str:
    text = annotations.get("healthcheck-port", "")
    if text in ("", TRAFFIC_PORT):
        return text
    return str(_number(annotations, "healthcheck-port", _PORTS))


def _codes(text: str) -> tuple[int, int]:
    """``200-399`` or ``200``."""
    first, _, last = text.partition("-")
    if not (first.isascii() and first.isdigit() and (last or first).isdigit() and len(first) == 3 >= len(last)):
        raise Denied(f"health check success codes {text[:60]!r}: must be like 200 or 200-399")
    return int(first), int(last or first)


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
