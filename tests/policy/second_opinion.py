"""NetworkPolicy once more, as plain set algebra over everything there is: what the evaluator is checked against.

Nothing of emulator.policy is used. A world's manifests, and the addresses of its pods, become the set of all
(source, destination, protocol, port) that may connect::

    passes  =  always  ∪  (leaves ∩ enters)
    leaves  =  all from sources without egress policy  ∪  what some egress rule lists
    enters  =  all to destinations without ingress policy  ∪  what some ingress rule lists

where a rule lists (its peers) × (its ports), expanded end by end and port by port.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

Object = dict[str, Any]
Point = tuple["Place", "Place", str, int]


class Place(NamedTuple):
    """An end. ``space`` is the namespace of a pod, empty for others; ``node`` the node that it is or is on."""

    kind: str
    space: str
    name: str
    node: str
    address: str


class Sides(NamedTuple):
    """``always``: what is never judged. ``leaves`` and ``enters``: what either end lets pass, as its node judges."""

    always: set[Point]
    leaves: set[Point]
    enters: set[Point]


def passing(objects: Sequence[Object], places: Sequence[Place], ports: Sequence[tuple[str, int]]) -> set[Point]:
    """Everything that may connect, among these ends and ports, of one address family."""
    found = sides_of(objects, places, ports)
    return found.always | (found.leaves & found.enters)


def sides_of(objects: Sequence[Object], places: Sequence[Place], ports: Sequence[tuple[str, int]]) -> Sides:
    """What each end by itself lets pass, among these ends and ports, of one address family."""
    spaces = {
        one["metadata"]["name"]: {**one["metadata"]["labels"], "kubernetes.io/metadata.name": one["metadata"]["name"]}
        for one in objects
        if one["kind"] == "Namespace"
    }
    pods = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in objects if one["kind"] == "Pod"}
    labels = {key: one["metadata"]["labels"] for key, one in pods.items()}
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    every = {(s, d, protocol, port) for s in places for d in places for protocol, port in ports}

    def subject(policy: Object) -> set[Place]:
        return {
            place
            for place in places
            if place.kind == "pod"
            and place.space == policy["metadata"]["namespace"]
            and fits(policy["spec"].get("podSelector"), labels[place.space, place.name])
        }

    def listed(given: Iterable[Object], own: str) -> set[Place]:
        found: set[Place] = set()
        for peer in given:
            for place in places:
                if "ipBlock" in peer:
                    block = peer["ipBlock"]
                    inside = within(place.address, block["cidr"])
                    if inside and not any(within(place.address, other) for other in block.get("except", ())):
                        found.add(place)
                elif place.kind == "pod":
                    right_space = (
                        fits(peer["namespaceSelector"], spaces[place.space])
                        if "namespaceSelector" in peer
                        else place.space == own
                    )
                    if right_space and fits(peer.get("podSelector"), labels[place.space, place.name]):
                        found.add(place)
        return found

    def opened(rule: Object, server: Place) -> set[tuple[str, int]]:
        if not rule.get("ports"):
            return set(ports)
        found: set[tuple[str, int]] = set()
        for one in rule["ports"]:
            protocol, first = one.get("protocol", "TCP"), one.get("port")
            if first is None:
                found |= {at for at in ports if at[0] == protocol}
            elif isinstance(first, int):
                found |= {(protocol, number) for number in range(first, one.get("endPort", first) + 1)}
            elif server.kind == "pod":
                containers = pods[server.space, server.name]["spec"]["containers"]
                found |= {
                    (protocol, port["containerPort"])
                    for container in containers
                    for port in container["ports"]
                    if port.get("name") == first and port["protocol"] == protocol
                }
        return found & set(ports)

    sides: dict[str, set[Point]] = {}
    for kind, section, field in (("Egress", "egress", "to"), ("Ingress", "ingress", "from")):
        closed: set[Place] = set()
        open_: set[Point] = set()
        for policy in policies:
            spec = policy["spec"]
            types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
            if kind not in types:
                continue
            mine = subject(policy)
            closed |= mine
            for rule in spec.get(section, ()):
                far = listed(rule[field], policy["metadata"]["namespace"]) if rule.get(field) else set(places)
                for here in mine:
                    for there in far:
                        source, server = (here, there) if kind == "Egress" else (there, here)
                        open_ |= {(source, server, *at) for at in opened(rule, server)}
        index = 0 if kind == "Egress" else 1
        sides[section] = open_ | {point for point in every if point[index] not in closed}
    return Sides(always(every), sides["egress"], sides["ingress"])


def always(every: Iterable[Point]) -> set[Point]:
    """A pod and itself; a pod and its node."""
    return {
        point
        for point in every
        if point[0] == point[1] or (point[0].node == point[1].node != "" and {point[0].kind, point[1].kind} != {"pod"})
    }


def fits(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    selector = selector or {}
    if not set((selector.get("matchLabels") or {}).items()) <= set(labels.items()):
        return False
    for one in selector.get("matchExpressions") or ():
        held = {labels[one["key"]]} if one["key"] in labels else set()
        met = {
            "In": bool(held & set(one.get("values", ()))),
            "NotIn": not held & set(one.get("values", ())),
            "Exists": bool(held),
            "DoesNotExist": not held,
        }
        if not met[one["operator"]]:
            return False
    return True


def within(address: str, cidr: str) -> bool:
    """By the bits: the first so many of both are the same."""
    base, length = cidr.split("/")
    one, other = ip_address(address), ip_address(base)
    if one.version != other.version:
        return False
    drop = one.max_prefixlen - int(length)
    return int(one) >> drop == int(other) >> drop
