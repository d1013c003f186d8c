"""From a cluster to its policies with all selections resolved, and from there to the next cluster's at little cost.

A cluster's pods are looked at once, by way of an index of their labels. After that, what changed is judged anew and
nothing else: a pod that is new, gone or relabelled against all selectors; a selector that is new against all pods; a
namespace whose labels changed counts as a change of its pods.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from emulator.cluster.admin_policy_rules import GROUP as ADMIN_GROUP
from emulator.cluster.calico_policy_rules import GROUPS as CALICO_GROUPS
from emulator.cluster.calico_policy_rules import is_calico
from emulator.cluster.model import Cluster, Pod, Topology
from emulator.cluster.validation import invalid
from emulator.errors import ManifestError, Problem
from emulator.policy.admin import admin_policy, baseline_policy, cluster_policy
from emulator.policy.calico import calico_global_policy, calico_policy, network_set, tier
from emulator.policy.compiled import Compiled
from emulator.policy.model import (
    DIRECTIONS,
    KUBERNETES_TIERS,
    Expression,
    LabelSelector,
    NetworkSet,
    Peer,
    PodSet,
    Policy,
    Rule,
    Tier,
)
from emulator.policy.networkpolicy import network_policy
from emulator.policy.selection import contains, contains_set, selects

Object = dict[str, Any]
Labels = Mapping[str, str]

# apiVersion's group and kind, to what brings such an object into the neutral form
_POLICIES: dict[tuple[str, str], Callable[[Object], Policy]] = {
    ("networking.k8s.io", "NetworkPolicy"): network_policy,
    **{(group, "NetworkPolicy"): calico_policy for group in CALICO_GROUPS},
    **{(group, "GlobalNetworkPolicy"): calico_global_policy for group in CALICO_GROUPS},
    (ADMIN_GROUP, "AdminNetworkPolicy"): admin_policy,
    (ADMIN_GROUP, "BaselineAdminNetworkPolicy"): baseline_policy,
    (ADMIN_GROUP, "ClusterNetworkPolicy"): cluster_policy,
}


def compile_policies(cluster: Cluster, previous: Compiled | None = None) -> Compiled:
    """The policies of ``cluster``; with ``previous``, that of the step before, what did not change is taken from it.

    Raises ManifestError for a policy in a tier that does not exist.
    """
    if previous is None:
        return _Compilation(cluster, _EMPTY).run()
    return previous if previous.cluster is cluster else _Compilation(cluster, previous).run()


# Before the first step
_NOTHING = Cluster(Topology("", (), (), (), (), ()), (), (), {})
_EMPTY = Compiled(_NOTHING, (), KUBERNETES_TIERS, {}, {}, {}, {})


class _Compilation:
    """Working state of one step."""

    def __init__(self, cluster: Cluster, previous: Compiled) -> None:
        self.cluster = cluster
        self.before = previous
        self.same_objects = previous.cluster.objects is cluster.objects
        self.pods = {pod.key: pod for pod in cluster.pods if not pod.host_network}
        self.accounts = _accounts(cluster.objects)
        self.index: _Index | None = None

    def run(self) -> Compiled:
        before = self.before
        policies, tiers, sets = self._policies()
        same_policies = policies is before.policies
        mentioned = before.members.keys() if same_policies else dict.fromkeys(_pod_sets(policies))
        changed = self._changed()
        members = self._members(mentioned, changed)
        networks = self._networks(mentioned, sets)
        judged = {
            direction: self._by_pod(policies, members, changed if same_policies else None, direction == "ingress")
            for direction in DIRECTIONS
        }
        return Compiled(
            self.cluster, policies, tiers, self.pods, members, judged["ingress"], judged["egress"], sets, networks
        )

    def _policies(self) -> tuple[tuple[Policy, ...], tuple[Tier, ...], tuple[NetworkSet, ...]]:
        """The policies in order, the same objects as before as far as they are equal; the tuple too."""
        before = self.before
        if self.same_objects:
            return before.policies, before.tiers, before.network_sets
        tiers, sets = self._tiers(), self._network_sets()
        rank = {tier.name: number for number, tier in enumerate(tiers)}
        known = {policy.key: policy for policy in before.policies}
        found = []
        for thing in self.cluster.objects:
            make = _POLICIES.get((thing["apiVersion"].rpartition("/")[0], thing["kind"]))
            if make is not None:
                made = make(thing)
                if made.tier not in rank:
                    reason = invalid(made.tier, "there is no such Tier")
                    raise ManifestError([Problem("", made.key, "spec.tier", reason)])
                old = known.get(made.key)
                found.append(old if old is not None and old == made else made)
        found.sort(key=lambda one: (rank[one.tier], one.order is None, one.order or 0.0, one.name, one.namespace))
        policies = tuple(found)
        unchanged = len(policies) == len(before.policies) and all(map(_is, policies, before.policies))
        return (before.policies if unchanged and before is not _EMPTY else policies), tiers, sets

    def _tiers(self) -> tuple[Tier, ...]:
        """All tiers in order: those that every cluster has, and those of Tier objects. Unset orders are last."""
        found = {one.name: one for one in KUBERNETES_TIERS}
        found.update((one.name, one) for one in (tier(thing) for thing in self._calico("Tier")))
        return tuple(sorted(found.values(), key=lambda one: (one.order is None, one.order or 0.0, one.name)))

    def _network_sets(self) -> tuple[NetworkSet, ...]:
        return tuple(network_set(thing) for thing in self._calico("NetworkSet", "GlobalNetworkSet"))

    def _calico(self, *kinds: str) -> Iterator[Object]:
        for thing in self.cluster.objects:
            if thing["kind"] in kinds and is_calico(thing):
                yield thing

    def _changed(self) -> set[str]:
        """The keys of the pods that may be in other sets than before: new, gone, or seen otherwise by selectors."""
        old, new = self.before.cluster, self.cluster
        known = self.before.pods
        pods = self.pods.items()
        changed = {key for key, pod in pods if (was := known.get(key)) is not pod and not _alike(was, pod)}
        changed.update(key for key in known if key not in self.pods)
        if old.namespaces is not new.namespaces:
            other = {name for name, labels in new.namespaces.items() if old.namespaces.get(name) != labels}
            if other:
                changed.update(key for key, pod in pods if pod.namespace in other)
        if not self.same_objects:
            before = _accounts(old.objects)
            other = {name for name in (*before, *self.accounts) if before.get(name) != self.accounts.get(name)}
            if other:
                changed.update(key for key, pod in pods if _account(pod) in other)
        return changed

    def _members(self, mentioned: Iterable[PodSet], changed: set[str]) -> dict[PodSet, frozenset[str]]:
        members: dict[PodSet, frozenset[str]] = {}
        few = len(changed) * 8 < len(self.pods) or len(changed) < 8
        for one in mentioned:
            old = self.before.members.get(one)
            if old is None or (changed and not few):
                members[one] = self._select(one, old)
            elif changed:
                now = {key for key in changed if key in self.pods and self._contains(one, self.pods[key])}
                members[one] = old if old & changed == now else (old - changed) | now
            else:
                members[one] = old
        return members

    def _contains(self, one: PodSet, pod: Pod) -> bool:
        namespace = self.cluster.namespaces.get(pod.namespace, {})
        return contains(one, pod, namespace, self.accounts.get(_account(pod), {}))

    def _select(self, one: PodSet, old: frozenset[str] | None) -> frozenset[str]:
        if self.index is None:
            self.index = _Index(self.pods, self.cluster.namespaces)
        found = self.index.candidates(one)
        if isinstance(one.pods, Expression) or one.accounts is not None or one.account_names or one.global_only:
            found = {key for key in found if self._contains(one, self.pods[key])}
        return old if old is not None and old == found else frozenset(found)

    def _networks(self, mentioned: Iterable[PodSet], sets: Sequence[NetworkSet]) -> dict[PodSet, tuple[str, ...]]:
        if not sets:
            return {}
        found: dict[PodSet, tuple[str, ...]] = {}
        for one in mentioned:
            nets = {
                net
                for known in sets
                if contains_set(one, known, self.cluster.namespaces.get(known.namespace, {}))
                for net in known.nets
            }
            if nets:
                found[one] = tuple(sorted(nets))
        return found

    def _by_pod(
        self,
        policies: Sequence[Policy],
        members: Mapping[PodSet, frozenset[str]],
        changed: set[str] | None,
        ingress: bool,
    ) -> dict[str, tuple[Policy, ...]]:
        """For each selected pod its policies; ``changed`` are the pods to look at, None for all."""
        before = self.before.ingress if ingress else self.before.egress
        here = [one for one in policies if (one.ingress if ingress else one.egress) is not None]
        if changed is not None:
            if not changed:
                return before
            result = {key: found for key, found in before.items() if key not in changed}
            for key in changed:
                found = tuple(one for one in here if key in members[one.subject])
                if found:
                    result[key] = _same(before.get(key), found)
            return result
        lists: defaultdict[str, list[Policy]] = defaultdict(list)
        for one in here:
            for key in members[one.subject]:
                lists[key].append(one)
        return {key: _same(before.get(key), tuple(found)) for key, found in lists.items()}


class _Index:
    """Pods by namespace, by label and by label key: what makes a selector a matter of a few set operations."""

    def __init__(self, pods: Mapping[str, Pod], namespaces: Mapping[str, Labels]) -> None:
        self.all = set(pods)
        self.namespaces = namespaces
        self.of_namespace: defaultdict[str, set[str]] = defaultdict(set)
        self.of_label: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.of_key: defaultdict[str, set[str]] = defaultdict(set)
        for key, pod in pods.items():
            self.of_namespace[pod.namespace].add(key)
            for label, value in pod.labels.items():
                self.of_label[label, value].add(key)
                self.of_key[label].add(key)

    def candidates(self, one: PodSet) -> set[str]:
        """The pods of the set; where it has a Calico expression for pods, or names accounts, those that may be."""
        found = self._in_namespaces(one)
        if isinstance(one.pods, LabelSelector):
            for requirement in one.pods.requirements:
                if not found:
                    break
                if requirement.operator in ("In", "NotIn"):
                    having = set().union(*(self.of_label.get((requirement.key, v), ()) for v in requirement.values))
                else:
                    having = self.of_key.get(requirement.key, set())
                found = found & having if requirement.operator in ("In", "Exists") else found - having
        return found

    def _in_namespaces(self, one: PodSet) -> set[str]:
        if one.namespace:
            here = self.of_namespace.get(one.namespace, set())
            # Both may be given: a namespaced policy of Calico names its own namespace, and a selector of namespaces too
            return here if one.namespaces is None else here & self._selected(one)
        return self.all if one.namespaces is None else self._selected(one)

    def _selected(self, one: PodSet) -> set[str]:
        probe = PodSet(namespaces=one.namespaces)
        found: set[str] = set()
        for name, pods in self.of_namespace.items():
            if selects_namespace(probe, name, self.namespaces.get(name, {})):
                found |= pods
        return found


def selects_namespace(one: PodSet, name: str, labels: Labels) -> bool:
    """Whether the set's selector of namespaces fits a namespace."""
    named = {**labels, "projectcalico.org/name": name} if isinstance(one.namespaces, Expression) else labels
    return selects(one.namespaces, named)


def _pod_sets(policies: Iterable[Policy]) -> Iterator[PodSet]:
    for policy in policies:
        yield policy.subject
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            yield from _rule_sets(rule)


def _rule_sets(rule: Rule) -> Iterator[PodSet]:
    ends: tuple[Peer, ...] = (*rule.peers, rule.subject) if rule.subject is not None else rule.peers
    for end in ends:
        if end.pods is not None:
            yield end.pods
        if end.not_pods is not None:
            yield end.not_pods


def _alike(old: Pod | None, new: Pod) -> bool:
    """Whether no selector can tell the two apart, which have the same key."""
    return old is not None and old.labels == new.labels and old.service_account == new.service_account


def _accounts(objects: Iterable[Object]) -> dict[str, Labels]:
    """The labels of each ServiceAccount object, by ``namespace/name``."""
    return {
        f"{thing['metadata']['namespace']}/{thing['metadata']['name']}": thing["metadata"].get("labels") or {}
        for thing in objects
        if thing["kind"] == "ServiceAccount"
    }


def _account(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.service_account}"


def _same(old: tuple[Policy, ...] | None, new: tuple[Policy, ...]) -> tuple[Policy, ...]:
    return old if old is not None and len(old) == len(new) and all(map(_is, old, new)) else new


def _is(one: object, other: object) -> bool:
    return one is other
