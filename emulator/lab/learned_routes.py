"""The routes that routing daemons bring, not the lab: which there are, and which a change has to wait for."""

from __future__ import annotations

from collections.abc import Collection, Set

from emulator.cluster.model import Cluster
from emulator.plan.addressing import host_prefix
from emulator.plan.model import Plan, Route


def learned_routes(
    plan: Plan, cluster: Cluster, *, to: Collection[str] | None = None, unlike: Plan | None = None
) -> list[Route]:
    """The routes that routing daemons bring; with ``to``, those that lead to the pods of these nodes or by their
    addresses; with ``unlike``, only of fragments that are not the very same there."""
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
    # An address of another node's block is announced by itself.
    ranges |= {host_prefix(address) for pod in cluster.pods if pod.node in to for address in pod.addresses}
    by = {address for node in cluster.nodes if node.name in to for address in node.addresses}
    return [
        item for item in found if item.destination in ranges or item.via in by or any(via in by for via, _ in item.hops)
    ]


def routes_to_await(old: Plan | None, new: Plan, cluster: Cluster, cut_off: Set[str]) -> list[Route]:
    """The routes that routing daemons will bring because of the change from one plan (None: of nothing) to the next,
    both as they hold. Not those of nodes that somebody has ``cut_off``, and none if that is a router: they would not
    come, and the change is not to blame."""
    if old is None:
        return learned_routes(new, cluster)
    if not cut_off <= {node.name for node in cluster.nodes}:
        return []
    had = {item.key for item in learned_routes(old, cluster, unlike=new)}
    lost = {item.key for item in learned_routes(new, cluster, to=cut_off)} if cut_off else set()
    return [
        item
        for item in learned_routes(new, cluster, unlike=old)
        if item.key not in had and item.key not in lost and item.ns.partition("/")[2] not in cut_off
    ]
