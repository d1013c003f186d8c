"""A running lab: the desired state, what the kernel holds, and the one way from the first to the second.

Every change, from a manifest applied to a node crashed, takes the same path: work out the cluster that would
result, plan it, check it, diff against the plan in force, apply, and only then commit. Whatever fails on that
way leaves the lab as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Ipam
from emulator.cluster.kubernetes import node_object, pod_object
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cni.style import Style
from emulator.errors import CnilabError, NotFound, UserError
from emulator.lab.effective import without_nodes
from emulator.lab.machinery import Machinery
from emulator.lab.store import Event, Object, Ref, Store, ref_of
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import Plan

Progress = Callable[[str], None]

POD_KIND, NAMESPACE_KIND = "Pod", "Namespace"


class Outcome(NamedTuple):
    """What an apply or delete did to one object."""

    ref: Ref
    action: Literal["created", "configured", "unchanged", "deleted"]


class Runtime:
    """The lab's state and the lock around it. One change runs at a time; reads are of immutable snapshots."""

    def __init__(
        self, topology: Topology, style: Style, machinery: Machinery, *, wire_accurate: bool, progress: Progress
    ) -> None:
        self.topology = topology
        self.style = style
        self.machinery = machinery
        self.store = Store()
        self.wire_accurate = wire_accurate
        self.broken = ""
        self._progress = progress
        self._lock = threading.RLock()
        self._ipam: Ipam = style.ipam(topology)
        self._given: dict[Ref, Object] = {}
        self._down: frozenset[str] = frozenset()
        self.cluster: Cluster | None = None
        self.plan: Plan | None = None

    @property
    def down_nodes(self) -> frozenset[str]:
        """The nodes that a scenario has crashed and not brought back."""
        return self._down

    @property
    def current(self) -> Cluster:
        """The cluster in force. Raises UserError before the first change."""
        if self.cluster is None:
            raise UserError("the lab has not started yet")
        return self.cluster

    def start(self, objects: Sequence[Object]) -> None:
        """Wire the topology and the first objects."""
        with self._lock:
            given = {ref_of(obj): obj for obj in objects}
            self._change(given, gone=frozenset())

    def apply(self, objects: Sequence[Object]) -> list[Outcome]:
        """Make the objects so, all or none. Raises ManifestError with everything that is wrong with them."""
        with self._lock:
            known = [obj["metadata"]["name"] for obj in self._given.values() if obj["kind"] == NAMESPACE_KIND]
            checked = validate_objects(objects, namespaces=known)
            given = dict(self._given)
            given.update({ref_of(obj): obj for obj in checked})
            events = {event.ref: event for event in self._change(given, gone=frozenset())}
            return [Outcome(ref, _action(events.get(ref))) for ref in map(ref_of, checked)]

    def delete(self, refs: Sequence[Ref]) -> list[Outcome]:
        """Delete objects. A pod that a workload owns comes back as another, as it would in a cluster."""
        with self._lock:
            given = dict(self._given)
            gone: set[str] = set()
            for ref in refs:
                if ref.kind == NAMESPACE_KIND and ref in given:
                    for other in [other for other in given if other.namespace == ref.name]:
                        del given[other]
                if ref in given:
                    del given[ref]
                elif ref.kind == POD_KIND and self.store.get(ref) is not None:
                    gone.add(f"{ref.namespace}/{ref.name}")
                else:
                    raise NotFound(f"{ref.kind} {_qualified(ref)} not found")
            self._change(given, gone=frozenset(gone))
            return [Outcome(ref, "deleted") for ref in refs]

    def crash(self, nodes: Collection[str]) -> None:
        """Take nodes down at once, with all that runs in them, as a power cut would."""
        with self._lock:
            for name in nodes:
                if name not in {node.name for node in self.current.nodes}:
                    raise NotFound(f"there is no node {name!r}")
            self._set_down(self._down | frozenset(nodes))

    def revive(self, nodes: Collection[str]) -> None:
        """Bring crashed nodes back: same names and addresses, everything set up anew."""
        with self._lock:
            self._set_down(self._down - frozenset(nodes))

    def _set_down(self, down: frozenset[str]) -> None:
        cluster, plan = self.current, self.plan
        assert plan is not None
        before = without_nodes(plan, cluster, self._down)
        after = without_nodes(plan, cluster, down)
        self._reach(cluster, cluster, before, after, down, await_routes=False)
        self._down = down

    def _change(self, given: dict[Ref, Object], gone: frozenset[str]) -> list[Event]:
        if self.broken:
            raise UserError(f"this lab is broken: {self.broken}", hint="take it down: `cnilab down`")
        ipam = self._ipam.copy()
        cluster = assemble(self.topology, list(given.values()), ipam, self.cluster, gone=gone)
        self.style.check(cluster)
        previous = (self.cluster, self.plan) if self.cluster is not None and self.plan is not None else None
        plan = build(cluster, self.style, wire_accurate=self.wire_accurate, previous=previous)
        before = without_nodes(self.plan, self.current, self._down) if self.plan is not None else None
        self._reach(
            self.cluster, cluster, before, without_nodes(plan, cluster, self._down), self._down, await_routes=True
        )
        old, before_given = self.cluster, self._given
        self._ipam, self._given, self.cluster, self.plan = ipam, given, cluster, plan
        return self._commit(old, cluster, before_given, given)

    def _reach(
        self,
        old: Cluster | None,
        new: Cluster,
        before: Plan | None,
        after: Plan,
        down: frozenset[str],
        *,
        await_routes: bool,
    ) -> None:
        """Bring kernel and traffic from one plan to the next; a failure that cannot be undone breaks the lab."""
        was = {} if old is None else {pod.key: pod for pod in old.pods if pod.node not in self._down}
        now = {pod.key: pod for pod in new.pods if pod.node not in down}
        leaving = [pod for key, pod in was.items() if now.get(key) != pod]
        coming = [pod for key, pod in now.items() if was.get(key) != pod]
        machines = self.topology.machines
        going = [machine for machine in machines if old is not None and machine.name in down - self._down]
        arriving = [machine for machine in machines if old is None or machine.name in self._down - down]
        try:
            self.machinery.reach(
                diff(before, after),
                after,
                leaving,
                coming,
                (going, arriving),
                self._progress,
                await_routes=await_routes,
            )
        except CnilabError as error:
            if getattr(error, "broken", False):
                self.broken = error.message
            raise

    def _commit(
        self, old: Cluster | None, cluster: Cluster, before: dict[Ref, Object], given: dict[Ref, Object]
    ) -> list[Event]:
        """Put into the store what changed between two states, derived objects included."""
        nodes = {node.name: node for node in cluster.nodes}
        puts: list[Object] = []
        deletes = [ref for ref in before if ref not in given]
        had = old.namespaces if old is not None else {}
        puts += [
            _namespace_object(name, labels) for name, labels in cluster.namespaces.items() if had.get(name) != labels
        ]
        deletes += [Ref("", NAMESPACE_KIND, "", name) for name in had if name not in cluster.namespaces]
        puts += [obj for ref, obj in given.items() if ref.kind not in (NAMESPACE_KIND, POD_KIND)]
        known_nodes = {node.name: node for node in old.nodes} if old is not None else {}
        puts += [node_object(node) for node in cluster.nodes if known_nodes.get(node.name) != node]
        known_pods = {pod.key: pod for pod in old.pods} if old is not None else {}
        for pod in cluster.pods:
            ref = Ref("", POD_KIND, pod.namespace, pod.name)
            if known_pods.pop(pod.key, None) != pod or before.get(ref) != given.get(ref):
                puts.append(self._pod_object(pod, nodes[pod.node], given.get(ref)))
        deletes += [Ref("", POD_KIND, pod.namespace, pod.name) for pod in known_pods.values()]
        return self.store.commit(puts, deletes)

    def _pod_object(self, pod: Pod, node: Node, manifest: Object | None) -> Object:
        obj = pod_object(pod, node)
        if manifest is not None:
            obj["spec"] = {**obj["spec"], **manifest.get("spec", {}), "nodeName": pod.node}
        return obj


def _action(event: Event | None) -> Literal["created", "configured", "unchanged"]:
    if event is None:
        return "unchanged"
    return "created" if event.type == "ADDED" else "configured"


def _namespace_object(name: str, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": NAMESPACE_KIND,
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def _qualified(ref: Ref) -> str:
    return f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
