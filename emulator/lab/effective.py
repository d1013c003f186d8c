"""The plan as it holds while some nodes are down: a crash is a smaller plan, a return the whole one again."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from emulator.cluster.model import Cluster
from emulator.plan.model import UNDERLAY, AnyObject, Plan, Route, Veth


def without_nodes(plan: Plan, cluster: Cluster, down: Collection[str]) -> Plan:
    """``plan`` less everything that lives in the nodes ``down``: their pods, and the far ends of their cables."""
    if not down:
        return plan
    gone = {f"node/{name}" for name in down}
    fragments = {
        name: objects
        for name, objects in plan.fragments.items()
        if name not in gone and name not in {f"pod/{pod.key}" for node in down for pod in cluster.pods_on(node)}
    }
    fragments[UNDERLAY] = _uncabled(plan.fragments[UNDERLAY], gone)
    return msgspec.structs.replace(plan, fragments=fragments)


def learned_routes(
    plan: Plan, cluster: Cluster, *, to: Collection[str] | None = None, unlike: Plan | None = None
) -> list[Route]:
    """The routes that routing daemons bring; with ``to``, those that lead to the pods of these nodes; with ``unlike``,
    only of fragments that are not the very same there."""
    other = unlike.fragments if unlike is not None else {}
    found = [
        item
        for name, fragment in plan.fragments.items()
        if other.get(name) is not fragment
        for item in fragment
        if isinstance(item, Route) and item.learned
    ]
    if to is None:
        return found
    ranges = {cidr for node in cluster.nodes if node.name in to for cidr in node.pod_ranges}
    return [item for item in found if item.destination in ranges]


def _uncabled(objects: tuple[AnyObject, ...], gone: set[str]) -> tuple[AnyObject, ...]:
    """The underlay without the machines ``gone``, their cables, and what stands on the cables' far ends."""
    loose: set[tuple[str, str]] = set()
    for item in objects:
        if isinstance(item, Veth) and (item.ns in gone or item.peer_ns in gone):
            loose |= {(item.ns, item.name), (item.peer_ns, item.peer)}
    return tuple(
        item
        for item in objects
        if item.ns not in gone and (item.ns, getattr(item, "device", getattr(item, "name", ""))) not in loose
    )
