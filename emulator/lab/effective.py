"""The plan as it holds while some nodes are down: a crash is a smaller plan, a return the whole one again."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from emulator.cluster.model import Cluster
from emulator.plan.diff import sysctl_device
from emulator.plan.model import UNDERLAY, AnyObject, Plan, Sysctl, Veth


def without_nodes(plan: Plan, cluster: Cluster, down: Collection[str]) -> Plan:
    """``plan`` less everything that lives in the nodes ``down``: their pods, and the far ends of their cables."""
    if not down:
        return plan
    gone = {f"node/{name}" for name in down}
    theirs = {f"{what}/{name}" for what in ("proxy", "policy", "balancer") for name in down}
    theirs |= {f"pod/{pod.key}" for node in down for pod in cluster.pods_on(node)}
    fragments = {name: objects for name, objects in plan.fragments.items() if name not in gone and name not in theirs}
    loose = _loose_ends(plan, gone)
    for name, objects in fragments.items():
        if name == UNDERLAY or name.startswith(("router/", "balancer/router/")):
            fragments[name] = _uncabled(objects, gone, loose)
    return msgspec.structs.replace(plan, fragments=fragments)


def _loose_ends(plan: Plan, gone: set[str]) -> set[tuple[str, str]]:
    """Both ends of every cable to the machines ``gone``."""
    return {
        end
        for item in plan
        if isinstance(item, Veth) and (item.ns in gone or item.peer_ns in gone)
        for end in ((item.ns, item.name), (item.peer_ns, item.peer))
    }


def _uncabled(objects: tuple[AnyObject, ...], gone: set[str], loose: set[tuple[str, str]]) -> tuple[AnyObject, ...]:
    """A fragment without the machines ``gone``, their cables, and what stands on the cables' far ends."""
    kept = tuple(item for item in objects if item.ns not in gone and (item.ns, _device(item)) not in loose)
    return kept if len(kept) < len(objects) else objects


def _device(item: AnyObject) -> str:
    if isinstance(item, Sysctl):
        return sysctl_device(item.name)
    return str(getattr(item, "device", getattr(item, "name", "")))
