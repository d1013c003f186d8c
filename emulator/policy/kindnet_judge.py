"""How kindnet's policy agent judges a packet: by the pods behind its two addresses, egress first, then ingress.

::

    source is a pod?       its egress policies: does a rule of one of them match?      no: drop
    destination is a pod?  its ingress policies: does a rule of one of them match?     no: drop
                                                                                       accept
    a pod that no policy of that direction selects is open; an address without a pod has no policies

It knows the whole cluster, so either node of a connection can judge both of its ends. Protocols other than TCP, UDP and
SCTP have no ports: a rule with ports never matches them.

The agent runs without site packages: nothing but the standard library here.

Source: kubernetes-sigs/kube-network-policies v1.1.2 pkg/networkpolicy (engine.go, networkpolicy.go), pkg/network
(packet.go).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal

Direction = Literal["egress", "ingress"]

PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing and destination options
_FRAGMENT = 44
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # by number: linux/netfilter.h


@dataclass(frozen=True)
class Peer:
    """``pods`` by key, or a block of addresses without those in ``excepted``."""

    pods: frozenset[str] = frozenset()
    net: str = ""
    excepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """``peers`` and ``ports`` are None where the rule asks for none. A port is protocol, first and last number (0: any)
    and name (of a containerPort of the destination)."""

    peers: tuple[Peer, ...] | None
    ports: tuple[tuple[str, int, int, str], ...] | None


@dataclass(frozen=True)
class Policy:
    """``key`` is for people (``NetworkPolicy shop/deny-all``); a direction that it does not apply to is None."""

    key: str
    egress: tuple[Rule, ...] | None
    ingress: tuple[Rule, ...] | None


@dataclass(frozen=True)
class Configuration:
    """What the agent knows: pods by address, their named ports, and the policies that select each."""

    pods: dict[str, str]
    ports: dict[str, tuple[tuple[str, str, int], ...]] = field(default_factory=dict)
    policies: dict[str, tuple[Policy, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Packet:
    """``protocol`` is TCP, UDP, SCTP, or empty for others, which have no ports."""

    source: str
    target: str
    protocol: str = ""
    source_port: int = 0
    target_port: int = 0

    def __str__(self) -> str:
        if not self.protocol:
            return f"other {self.source} > {self.target}"
        return f"{self.protocol} {_end(self.source, self.source_port)} > {_end(self.target, self.target_port)}"


@dataclass(frozen=True)
class Finding:
    """A verdict. ``policy`` and ``rule`` (its index) are what let the packet pass, ``isolated_by`` who stops it by
    selecting ``pod`` and having no rule for it."""

    allowed: bool
    direction: Direction | Literal[""] = ""
    pod: str = ""
    policy: str = ""
    rule: int = -1
    isolated_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.allowed:
            return "allowed"
        return f"{self.direction} of {self.pod}: no rule allows it, isolated by {', '.join(self.isolated_by)}"


OPEN = Finding(True)


def read_configuration(text: str) -> Configuration:
    """Raises ValueError, KeyError, TypeError for a text that is none."""
    value: dict[str, Any] = json.loads(text)
    policies: dict[str, list[Policy]] = {}
    for given in value["policies"]:
        policy = Policy(given["key"], _rules(given["egress"]), _rules(given["ingress"]))
        for pod in given["selects"]:
            policies.setdefault(pod, []).append(policy)
    return Configuration(
        pods={str(ip_address(address)): pod for address, pod in value["pods"].items()},
        ports={pod: tuple((name, kind, int(number)) for name, kind, number in own) for pod, own in
               value["ports"].items()},
        policies={pod: tuple(each) for pod, each in policies.items()},
    )  # fmt: skip


def _rules(given: list[dict[str, Any]] | None) -> tuple[Rule, ...] | None:
    if given is None:
        return None
    return tuple(
        Rule(
            None if rule["peers"] is None else tuple(map(_peer, rule["peers"])),
            None if rule["ports"] is None else tuple((kind, int(low), int(high), name) for kind, low, high, name in
                                                     rule["ports"]),
        )
        for rule in given
    )  # fmt: skip


def _peer(given: dict[str, Any]) -> Peer:
    return Peer(frozenset(given.get("pods", ())), given.get("net", ""), tuple(given.get("except", ())))


def judge(known: Configuration, packet: Packet) -> Finding:
    """The verdict on a packet."""
    source, target = known.pods.get(packet.source, ""), known.pods.get(packet.target, "")
    # Ports are those of the destination in both directions
    left = _one_way(known, "egress", source, target, packet.target, target, packet)
    return left if not left.allowed else _one_way(known, "ingress", target, source, packet.source, target, packet)


def _one_way(
    known: Configuration, direction: Direction, pod: str, far: str, address: str, server: str, packet: Packet
) -> Finding:
    judging = [
        (policy, rules)
        for policy in known.policies.get(pod, ())
        if (rules := policy.egress if direction == "egress" else policy.ingress) is not None
    ]
    for policy, rules in judging:
        for number, rule in enumerate(rules):
            if _has_port(known, rule, server, packet) and _is_peer(rule, far, address):
                return Finding(True, direction, pod, policy.key, number)
    if judging:
        return Finding(False, direction, pod, isolated_by=tuple(policy.key for policy, _ in judging))
    return OPEN


def _has_port(known: Configuration, rule: Rule, server: str, packet: Packet) -> bool:
    if rule.ports is None:
        return True
    for protocol, first, last, name in rule.ports:
        if protocol != packet.protocol:
            continue
        if name:
            if (name, protocol, packet.target_port) in known.ports.get(server, ()):
                return True
        elif not first or first <= packet.target_port <= last:
            return True
    return False


def _is_peer(rule: Rule, far: str, address: str) -> bool:
    if rule.peers is None:
        return True
    return any(
        (peer.net and _within(address, peer.net) and not any(_within(address, net) for net in peer.excepted))
        or (far and far in peer.pods)
        for peer in rule.peers
    )


def _within(address: str, net: str) -> bool:
    one, block = _address(address), _network(net)
    return one.version == block.version and one in block


@lru_cache(maxsize=65536)
def _address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


@lru_cache(maxsize=65536)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


def read_packet(data: bytes) -> Packet | None:
    """The packet that begins so; None for one that cannot be read: too short, or neither IPv4 nor IPv6."""
    if len(data) < 20:
        return None
    version = data[0] >> 4
    if version == 4:
        source, target = data[12:16], data[16:20]
        protocol, offset = data[9], (data[0] & 15) * 4
    elif version == 6 and len(data) >= 48:
        source, target = data[8:24], data[24:40]
        protocol, offset = data[6], 40
        while protocol in _EXTENSIONS:
            if offset + 8 > len(data):
                return None
            protocol, offset = data[offset], offset + 8 + data[offset + 1] * 8
        if protocol == _FRAGMENT:
            if offset + 8 > len(data) or int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8:
                protocol = 0  # conntrack puts fragments together, so that this does not happen
            else:
                protocol, offset = data[offset], offset + 8
    else:
        return None
    ends = str(ip_address(source)), str(ip_address(target))
    name = PROTOCOLS.get(protocol, "")
    if not name:
        return Packet(*ends)
    if offset + 4 > len(data):
        return None
    return Packet(*ends, name, *struct.unpack_from("!HH", data, offset))


def record(packet: Packet, hook: str, finding: Finding) -> str:
    """The line that the agent writes of a packet that it drops."""
    return f"drop {packet} at {hook}: {finding}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
