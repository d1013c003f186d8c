"""A cluster and a style become a plan, in fragments: the underlay, one a node, one a pod.

Fragments are what makes a change cheap. A fragment whose inputs are equal to those of the previous plan is
taken over as it is, the same tuple, and the diff skips it by identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from emulator.cluster import system_pods
from emulator.cluster.model import Cluster, Machine, Node, Pod
from emulator.plan.model import AnyObject, Bridge, CniAttachment, Ipip, Key, Offloads, Plan, Tun, Veth, Vxlan
from emulator.plan.underlay import underlay

Fragment = tuple[AnyObject, ...]


class Planner(Protocol):
    """What a plan needs of a style (``emulator.cni.style.Style``)."""

    name: str
    mode: str

    def shared(self, cluster: Cluster) -> object: ...

    def advertised(self, cluster: Cluster) -> object: ...

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]: ...

    def router(self, cluster: Cluster, router: Machine) -> Iterable[AnyObject]: ...

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterable[AnyObject]: ...


class ProxyPlanner(Protocol):
    """What a plan needs of a service proxy (``emulator.proxy.model.Proxy``)."""

    name: str

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]: ...


class PolicyPlanner(Protocol):
    """What a plan needs of a policy enforcer (``emulator.policy.enforcement.Enforcement``)."""

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]: ...

    def keeps(self, node: Node) -> bool: ...


class BalancerPlanner(Protocol):
    """What a plan needs of a load balancer (``emulator.balancer.model.Balancer``)."""

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]: ...

    def machine(self, cluster: Cluster, machine: Machine) -> Iterable[AnyObject]: ...


def build(
    cluster: Cluster,
    style: Planner,
    *,
    proxy: ProxyPlanner | None = None,
    balancer: BalancerPlanner | None = None,
    enforcer: PolicyPlanner | None = None,
    wire_accurate: bool = False,
    previous: tuple[Cluster, Plan] | None = None,
    same_proxy: bool = True,
) -> Plan:
    """Everything that ``style``, and a service ``proxy`` and a load ``balancer`` beside it, put into the namespaces of
    ``cluster``.

    ``wire_accurate`` switches the offloads of every device off. ``previous`` is the cluster and plan of the step
    before; fragments are reused from it if it is of the same style and accuracy, and those of the proxy if that is the
    ``same_proxy``. The ``enforcer`` knows which of its own still hold; what it makes takes the place of what the style
    made under the same key, so it has to go on making that. Raises nothing of its own: the style's ``check`` comes
    first.
    """
    name = f"{style.name}:{style.mode}"
    old: dict[str, Fragment] = {}
    if previous is not None and previous[1].style == name and previous[1].wire_accurate == wire_accurate:
        old = _reusable(previous[0], cluster, previous[1].fragments)
        if _objects_differ(previous[0], cluster) and style.shared(previous[0]) != style.shared(cluster):
            old = {key: fragment for key, fragment in old.items() if not key.startswith("pod/")}
        if style.advertised(previous[0]) != style.advertised(cluster):
            old = {key: fragment for key, fragment in old.items() if not key.startswith(("node/", "router/"))}
        if not same_proxy:
            old = {key: fragment for key, fragment in old.items() if not key.startswith("proxy/")}

    fragments: dict[str, Fragment] = {}
    nodes = {node.name: node for node in cluster.nodes}

    def take(key: str, objects: Iterable[AnyObject]) -> None:
        made = tuple(objects)
        fragments[key] = tuple(_wire_accurate(made)) if wire_accurate else made

    if "underlay" in old:
        fragments["underlay"] = old["underlay"]
    else:
        take("underlay", underlay(cluster.topology))
    for node in cluster.nodes:
        key = f"node/{node.name}"
        if key in old:
            fragments[key] = old[key]
        else:
            take(key, style.node(cluster, node))
    for router in cluster.topology.of_kind("router"):
        if router.ns in old:
            fragments[router.ns] = old[router.ns]
        elif objects := tuple(style.router(cluster, router)):
            take(router.ns, objects)
    for pod in cluster.pods:
        if pod.host_network:
            continue
        key = f"pod/{pod.key}"
        if key in old:
            fragments[key] = old[key]
        else:
            take(key, style.pod(cluster, nodes[pod.node], pod))
    if proxy is not None:
        for node in cluster.nodes:
            key = f"proxy/{node.name}"
            if key in old:
                fragments[key] = old[key]
            elif objects := tuple(proxy.node(cluster, node)):
                take(key, objects)

    if enforcer is not None:
        for node in cluster.nodes:
            key = f"policy/{node.name}"
            if key in old and enforcer.keeps(node):
                fragments[key] = old[key]
            elif objects := tuple(enforcer.node(cluster, node)):
                take(key, objects)
            styles = f"node/{node.name}"
            if fragments[styles] is not old.get(styles) or fragments.get(key) is not old.get(key):
                _give_way(fragments, styles, key)

    if balancer is not None:
        for machine in cluster.topology.machines:
            host = nodes.get(machine.name)
            key = f"balancer/{machine.name if host is not None else machine.ns}"
            if key in old:
                fragments[key] = old[key]
                continue
            made = balancer.node(cluster, host) if host is not None else balancer.machine(cluster, machine)
            if objects := tuple(made):
                take(key, objects)

    plan = Plan(style=name, topology=cluster.topology.name, fragments=fragments, wire_accurate=wire_accurate)
    assert not (clashes := [] if old else duplicates(plan)), f"two objects of one key in {name}: {clashes[0]}"
    return plan


def _give_way(fragments: dict[str, Fragment], styles: str, enforcers: str) -> None:
    """Take out of the style's fragment what the enforcer's has in its place."""
    theirs = {item.key for item in fragments.get(enforcers, ())}
    mine = fragments[styles]
    kept = tuple(item for item in mine if item.key not in theirs)
    if len(kept) < len(mine):
        fragments[styles] = kept


def duplicates(plan: Plan) -> list[tuple[AnyObject, AnyObject]]:
    """The pairs of objects that claim the same key, or the same device (a veth's far end counts)."""
    seen: dict[Key, AnyObject] = {}
    clashes: list[tuple[AnyObject, AnyObject]] = []
    for item in plan:
        keys = [item.key]
        if isinstance(item, Veth):
            keys.append(("link", item.peer_ns, item.peer))
        for key in keys:
            if key in seen:
                clashes.append((seen[key], item))
            seen[key] = item
    return clashes


def _reusable(before: Cluster, now: Cluster, fragments: dict[str, Fragment]) -> dict[str, Fragment]:
    """The fragments of the previous plan whose inputs have not changed."""
    if before.topology is not now.topology and before.topology != now.topology:
        return {}
    keep = {"underlay"}
    if system_pods.told(before) != system_pods.told(now):
        return {key: fragment for key, fragment in fragments.items() if key in keep}
    old_nodes = {node.name: node for node in before.nodes}
    new_nodes = {node.name: node for node in now.nodes}
    old_pods = {pod.key: pod for pod in before.pods}
    same_node = {name for name, node in new_nodes.items() if _equal(old_nodes.get(name), node)}
    changed_nodes: set[str] = set()
    for pod in now.pods:
        if not _equal(old_pods.get(pod.key), pod):
            changed_nodes.add(pod.node)
        elif pod.node in same_node:
            keep.add(f"pod/{pod.key}")
    if before.nodes == now.nodes and not _objects_differ(before, now):
        keep |= {router.ns for router in now.topology.of_kind("router")}
        moved = _nodes_of_others(before, now)
        keep |= {f"node/{name}" for name in new_nodes if name not in changed_nodes and name not in moved}
    if before.nodes == now.nodes and _equal(before.services, now.services) and _equal(before.slices, now.slices):
        keep |= {f"proxy/{name}" for name in new_nodes}
        told_alike = before.not_ready_nodes == now.not_ready_nodes and not _objects_differ(before, now)
        told_alike = told_alike and before.target_health == now.target_health
        if told_alike and (not now.not_ready_nodes or _equal(before.pods, now.pods)):
            keep |= {key for key in fragments if key.startswith("balancer/")}
    keep |= {f"policy/{name}" for name in new_nodes}
    return {key: fragment for key, fragment in fragments.items() if key in keep}


def _objects_differ(before: Cluster, now: Cluster) -> bool:
    return before.objects is not now.objects and before.objects != now.objects


def _equal(old: object, new: object) -> bool:
    return old is new or old == new


def _nodes_of_others(before: Cluster, now: Cluster) -> set[str]:
    """The nodes with other pods than before, or in another order."""
    if len(before.pods) == len(now.pods) and all(map(_stays, before.pods, now.pods)):
        return set()
    old, new = _names_by_node(before), _names_by_node(now)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def _stays(old: Pod, new: Pod) -> bool:
    return old is new or (old.key == new.key and old.node == new.node)


def _names_by_node(cluster: Cluster) -> dict[str, list[str]]:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for pod in cluster.pods:
        names[pod.node].append(pod.key)
    return names


def _wire_accurate(objects: Iterable[AnyObject]) -> Iterator[AnyObject]:
    made = [
        msgspec.structs.replace(item, offloads=False) if isinstance(item, CniAttachment) else item for item in objects
    ]
    yield from made
    yield from _offloads(made)


def _offloads(objects: Iterable[AnyObject]) -> Iterator[Offloads]:
    for item in objects:
        if isinstance(item, (Veth, Bridge, Vxlan, Ipip, Tun)):
            yield _off(item.ns, item.name)
        if isinstance(item, Veth):
            yield _off(item.peer_ns, item.peer)


def _off(ns: str, device: str) -> Offloads:
    return Offloads(
        ns=ns,
        device=device,
        component="cnilab",
        why="wire-accurate: captures show the frames that a wire would carry, not the kernel's super-packets",
    )
