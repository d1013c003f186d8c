"""An enforcer at work: what it makes of one cluster's policies, and on which nodes that changed since the last one.

A node's part is made anew only where it can differ: where one of its pods, or a policy that selects one of them, is
another than before, or where the members of a set are that such a policy mentions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from emulator.cluster.model import Cluster, Node, Pod
from emulator.plan.model import AnyObject
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Configured, Enforcer, OnEveryNode
from emulator.policy.model import DIRECTIONS, Peer, PodSet, Policy


@dataclass(frozen=True)
class Enforcement:
    """What ``emulator.plan.build`` asks for policies' part of a plan. ``before`` is the step that the previous plan was
    built of, None if there was none, or it is of no use."""

    enforcer: Enforcer
    compiled: Compiled
    before: Compiled | None = None

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        """What the enforcer puts into a node."""
        return self.enforcer.node(cluster, self.compiled, node)

    def keeps(self, node: Node) -> bool:
        """Whether a node's part of the previous plan still holds."""
        return self._stale is not None and node.name not in self._stale

    @cached_property
    def _stale(self) -> frozenset[str] | None:
        """The nodes whose part may differ; None: all of them."""
        if self.before is None:
            return None
        if isinstance(self.enforcer, OnEveryNode):
            return frozenset() if _nothing_new(self.before, self.compiled) else None
        if isinstance(self.enforcer, Configured) and self.before.cluster.objects is not self.compiled.cluster.objects:
            before, now = (self.enforcer.inputs(one.cluster) for one in (self.before, self.compiled))
            if before != now:
                return None
        return stale_nodes(self.before, self.compiled)


def enforce(enforcer: Enforcer, cluster: Cluster, previous: Enforcement | None = None) -> Enforcement:
    """The enforcement of the policies of ``cluster``, after that of the step before. Raises ManifestError."""
    if previous is None or previous.enforcer is not enforcer:
        return Enforcement(enforcer, compile_policies(cluster))
    return Enforcement(enforcer, compile_policies(cluster, previous.compiled), previous.compiled)


def _nothing_new(old: Compiled, new: Compiled) -> bool:
    """Whether policies, pods and who selects whom are what they were."""
    return old is new or (
        old.policies is new.policies
        and old.cluster.nodes == new.cluster.nodes
        and old.pods == new.pods
        and old.members == new.members
        and old.cluster.slices is new.cluster.slices
    )


def stale_nodes(old: Compiled, new: Compiled) -> frozenset[str] | None:
    """The names of the nodes whose rules or sets may have to change from one step to the next; None: all."""
    if old is new:
        return frozenset()
    if old.cluster.nodes != new.cluster.nodes or old.tiers != new.tiers:
        return None
    touched = {key for key, pod in new.pods.items() if old.pods.get(key) is not pod}
    touched.update(key for key in old.pods if key not in new.pods)
    stale = {where.pods[key].node for key in touched for where in (old, new) if key in where.pods}
    judged = touched.union(*(_judged_otherwise(old, new, direction) for direction in DIRECTIONS))
    affected = _affected(old, new, touched)
    for policy in affected:
        judged |= new.selected(policy)
    stale.update(new.pods[key].node for key in judged if key in new.pods)
    return frozenset(stale)


def _judged_otherwise(old: Compiled, new: Compiled, direction: str) -> Iterator[str]:
    """The pods that other policies judge than before."""
    before, now = (old.ingress, new.ingress) if direction == "ingress" else (old.egress, new.egress)
    if before is now:
        return
    yield from (key for key, policies in now.items() if before.get(key) is not policies)
    yield from (key for key in before if key not in now)


def _affected(old: Compiled, new: Compiled, touched: set[str]) -> list[Policy]:
    """The policies that mention somebody who changed: who is in another set, or has other addresses or ports."""
    moved = {key for key in touched if _speaks_otherwise(old.pods.get(key), new.pods.get(key))}
    changed = {
        one
        for one, members in new.members.items()
        if old.members.get(one) is not members or not moved.isdisjoint(members)
    }
    if old.networks != new.networks or old.network_sets != new.network_sets:
        changed |= old.networks.keys() | new.networks.keys()
    services = old.cluster.slices is not new.cluster.slices
    namespaces = old.cluster.namespaces is not new.cluster.namespaces and bool(new.network_sets)
    return [policy for policy in new.policies if namespaces or _mentions(policy, changed, bool(moved), services)]


def _speaks_otherwise(old: Pod | None, new: Pod | None) -> bool:
    """Whether a pod came, went, or has other addresses or ports."""
    return old is None or new is None or (old.addresses, old.containers) != (new.addresses, new.containers)


def _mentions(policy: Policy, changed: set[PodSet], ports: bool, services: bool) -> bool:
    for rule in (*(policy.ingress or ()), *(policy.egress or ())):
        ends: tuple[Peer, ...] = (*rule.peers, rule.subject) if rule.subject is not None else rule.peers
        for end in ends:
            if end.pods in changed or end.not_pods in changed or (services and end.service is not None):
                return True
        # A named port may be any pod's
        named = any(
            port.name
            for given in (rule.ports, rule.not_ports, rule.source_ports, rule.not_source_ports)
            for port in given
        )
        if ports and named:
            return True
    return False
