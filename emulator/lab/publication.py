"""What the store is told of a cluster: the objects that users gave, completed, and those that follow from them.

Pure: only what is not as it was in the step before is written, or deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from emulator.cluster.changes import changed_items, trimmed
from emulator.cluster.kubernetes import node_object, pod_object
from emulator.cluster.manifest_index import Manifests
from emulator.cluster.model import Cluster, Node, Pod
from emulator.lab.objects import (
    NAMESPACE_KIND,
    POD_KIND,
    SERVED_BY,
    STATUSES,
    Deletion,
    namespace_object,
    not_ready,
    terminating,
    with_numbers,
)
from emulator.lab.pods import served_by
from emulator.lab.service_store import refs_made_here, service_deletes, service_puts
from emulator.lab.store import Object, Ref


class Writes(NamedTuple):
    """For the store, as one step."""

    puts: list[Object]
    deletes: list[Ref]


@dataclass(frozen=True)
class Publication:
    """A cluster, and what else objects tell: those that were ``given`` (by kind: ``manifests``), which nodes are
    ``down``, when pods that terminate will have ended, and the objects as the store holds them (``held``)."""

    cluster: Cluster
    given: Mapping[Ref, Object]
    manifests: Manifests
    down: Collection[str]
    deletions: Mapping[str, Deletion]
    held: Callable[[Ref], Object | None]

    def since(self, old: Cluster | None, before: Mapping[Ref, Object]) -> Writes:
        """What changed since cluster ``old`` (None: since there was none) and the objects given ``before``. A pod that
        came back under its old name is another object."""
        cluster, given = self.cluster, self.given
        nodes = {node.name: node for node in cluster.nodes}
        puts: list[Object] = []
        changed = changed_items(before, given)
        lost = [ref for ref in trimmed(list(before), list(given))[0] if ref not in given]
        deletes = [ref for ref in lost if (ref.group, ref.kind) != ("", POD_KIND)]
        had = old.namespaces if old is not None else {}
        for name, labels in cluster.namespaces.items():
            ref = Ref("", NAMESPACE_KIND, "", name)
            if had.get(name) != labels or before.get(ref) != given.get(ref):
                puts.append(namespace_object(name, labels, given.get(ref)))
        deletes += [Ref("", NAMESPACE_KIND, "", name) for name in had if name not in cluster.namespaces]
        fresh = {ref: obj for ref, obj in changed.items() if ref.kind not in (NAMESPACE_KIND, POD_KIND, *STATUSES)}
        ours = refs_made_here(cluster, fresh.keys())
        puts += [obj for ref, obj in fresh.items() if ref not in ours]
        differs = bool(lost) or any(before.get(ref) != obj for ref, obj in changed.items())
        if old is None or cluster.pods != old.pods or differs:
            puts += with_numbers(self.manifests.named(STATUSES), cluster)
        puts += service_puts(old, cluster, given.keys())
        deletes += service_deletes(old, cluster, given.keys())
        known_nodes = {node.name: node for node in old.nodes} if old is not None else {}
        puts += [self._node(node) for node in cluster.nodes if known_nodes.get(node.name) != node]
        known_pods = {pod.key: pod for pod in old.pods} if old is not None else {}
        for pod in cluster.pods:
            ref = Ref("", POD_KIND, pod.namespace, pod.name)
            known = known_pods.pop(pod.key, None)
            if known is not None and _identity(known) != _identity(pod):
                deletes.append(ref)
                known = None
            if known != pod or before.get(ref) != given.get(ref):
                puts.append(self._pod(pod, nodes[pod.node]))
        deletes += [Ref("", POD_KIND, pod.namespace, pod.name) for pod in known_pods.values()]
        return Writes(puts, deletes)

    def of_nodes(self, names: Collection[str], old: Cluster) -> Writes:
        """What changed since cluster ``old`` by nodes that went down or came back."""
        nodes = {node.name: node for node in self.cluster.nodes if node.name in names}
        puts = [self._node(node) for node in nodes.values()]
        puts += [self._pod(pod, nodes[pod.node]) for pod in self.cluster.pods if pod.node in nodes]
        puts += with_numbers(self.manifests.named(STATUSES), self.cluster)
        puts += service_puts(old, self.cluster, self.given.keys())
        return Writes(puts, list(service_deletes(old, self.cluster, self.given.keys())))

    def _node(self, node: Node) -> Object:
        obj = node_object(node)
        return not_ready(obj) if node.name in self.down else obj

    def _pod(self, pod: Pod, node: Node) -> Object:
        ref = Ref("", POD_KIND, pod.namespace, pod.name)
        obj = pod_object(pod, node)
        if pod.terminating and (held := self.held(ref)) is not None:
            return terminating({**held, "status": obj["status"]}, self.deletions[pod.key])
        if (manifest := self.given.get(ref)) is not None:
            obj["spec"] = {**obj["spec"], **manifest.get("spec", {}), "nodeName": pod.node}
        obj["metadata"].setdefault("annotations", {})[SERVED_BY] = served_by(pod)
        return not_ready(obj) if pod.node in self.down else obj


def _identity(pod: Pod) -> tuple[int, str, tuple[str, ...]]:
    """What tells a pod from its successor under the same name."""
    return pod.incarnation, pod.node, pod.addresses
