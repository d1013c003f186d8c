"""Topology hints: which zones, and which nodes, an endpoint is meant for.

``trafficDistribution`` gives each ready endpoint its own zone, and with PreferSameNode its own node too
(k8s.io/endpointslice/trafficdist). The annotation ``service.kubernetes.io/topology-mode: Auto`` hands the endpoints out
to the zones in proportion to their CPUs, and not at all if that would overload one by more than 20 %
(k8s.io/endpointslice/topologycache). Nodes here have no CPUs of their own: each counts as one alike.

Unlike there, what was handed out before does not weigh in: the same endpoints always get the same hints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from emulator.cluster.model import Node
from emulator.cluster.service_spec import TOPOLOGY_HINTS, TOPOLOGY_MODE
from emulator.cluster.services import Endpoint, Service

ZONE_LABEL = "topology.kubernetes.io/zone"
OVERLOAD = 0.2  # topologycache.go, overloadThreshold
_EXCLUDED = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")

Mode = Literal["", "zone", "node", "auto"]
Endpoints = tuple[Endpoint, ...]


def hint_mode(service: Service) -> Mode:
    """Which hints a Service asks for. The annotation goes before the field, and its old name before the new."""
    annotations = service.annotations
    if annotations and annotations.get(TOPOLOGY_HINTS, annotations.get(TOPOLOGY_MODE)) in ("Auto", "auto"):
        return "auto"
    if service.distribution == "PreferSameNode":
        return "node"
    return "zone" if service.distribution else ""


def zone_shares(nodes: Sequence[Node], down: Collection[str] = ()) -> dict[str, float]:
    """Each zone's share of the cluster's CPUs; empty if a node has no zone, or all are in the same (SetNodes)."""
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.name in down or any(label in node.labels for label in _EXCLUDED):
            continue
        zone = node.labels.get(ZONE_LABEL)
        if not zone:
            return {}
        counts[zone] += 1
    return {zone: number / counts.total() for zone, number in counts.items()} if len(counts) > 1 else {}


def hinted(slices: Sequence[Endpoints], mode: Mode, shares: Mapping[str, float]) -> list[Endpoints]:
    """The endpoints of one Service and family, slice by slice, with their hints."""
    if mode == "auto":
        return _proportional(slices, shares)
    return [tuple(_close(one, node=mode == "node") for one in endpoints) for endpoints in slices]


def _close(endpoint: Endpoint, *, node: bool) -> Endpoint:
    if not endpoint.ready:
        return endpoint
    zones = (endpoint.zone,) if endpoint.zone else ()
    nodes = (endpoint.node,) if node and endpoint.node else ()
    return msgspec.structs.replace(endpoint, zones=zones, nodes=nodes) if zones or nodes else endpoint


def _proportional(slices: Sequence[Endpoints], shares: Mapping[str, float]) -> list[Endpoints]:
    ready = [one for endpoints in slices for one in endpoints if one.ready]
    desired = _allocations(len(ready), shares)
    if not desired or any(not one.zone for one in ready):
        return list(slices)
    there = Counter(one.zone for one in ready)
    giving, receiving = _exchange(desired, there)
    return [tuple(_dealt(one, giving, receiving) for one in endpoints) for endpoints in slices]


def _allocations(number: int, shares: Mapping[str, float]) -> dict[str, float]:
    """How many of ``number`` endpoints each zone should have; none if that cannot be done fairly enough."""
    if not shares or len(shares) > number:
        return {}
    minima = {zone: math.ceil(share * number / (1 + OVERLOAD)) for zone, share in shares.items()}
    if sum(minima.values()) > number:
        return {}
    return {zone: max(share * number, minima[zone]) for zone, share in shares.items()}


def _exchange(desired: Mapping[str, float], there: Mapping[str, int]) -> tuple[Counter[str], Counter[str]]:
    """How many endpoints each zone gives away, and receives (getGivingAndReceivingZones)."""
    spare = {zone: there.get(zone, 0) - want for zone, want in desired.items() if there.get(zone, 0) > want}
    short = {zone: want - there.get(zone, 0) for zone, want in desired.items() if there.get(zone, 0) < want}
    giving: Counter[str] = Counter()
    receiving: Counter[str] = Counter()
    while spare and short:
        giver, taker = max(spare, key=lambda zone: spare[zone]), max(short, key=lambda zone: short[zone])
        surplus, need = spare[giver], short[taker]
        if max(surplus, need) < 1 or min(surplus, need) < 0.5:
            break
        giving[giver] += 1
        receiving[taker] += 1
        spare[giver] -= 1
        short[taker] -= 1
    return giving, receiving


def _dealt(endpoint: Endpoint, giving: Counter[str], receiving: Counter[str]) -> Endpoint:
    """The endpoint with its hint: its own zone, or the first one that still needs one of its zone's spare ones."""
    if not endpoint.ready:
        return endpoint
    zone = endpoint.zone
    taker = next((name for name, number in receiving.items() if number > 0), "") if giving[zone] > 0 else ""
    if taker:
        giving[zone] -= 1
        receiving[taker] -= 1
        zone = taker
    return msgspec.structs.replace(endpoint, zones=(zone,))
