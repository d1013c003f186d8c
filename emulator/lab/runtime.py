"""A running lab: the desired state, what the kernel holds, and the one way from the first to the second.

Every change, from a manifest applied to a node crashed, takes the same path: work out the cluster that would
result, plan it, check it, diff against the plan in force, apply, and only then commit. Whatever fails on that
way leaves the lab as it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import msgspec

from emulator.balancer.health import checkers
from emulator.balancer.model import Balancer
from emulator.cluster.addons import missing_addons
from emulator.cluster.assemble import assemble
from emulator.cluster.changes import changed_items, trimmed
from emulator.cluster.ipam import Ipam
from emulator.cluster.kinds import INITIAL_NAMESPACES
from emulator.cluster.kubernetes import node_object, pod_object
from emulator.cluster.manifest_index import Manifests
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cluster.plugin_addresses import PluginAddresses
from emulator.cluster.service_cluster import with_endpoints
from emulator.cluster.service_records import carried_over
from emulator.cluster.service_rules import status_faults
from emulator.cluster.workload_status import ROLLED, progress, workload_numbers
from emulator.cni.service_proxy import Beside
from emulator.cni.style import Style
from emulator.errors import AlreadyExists, ApplyError, CnilabError, ManifestError, NotFound, Problem, UserError
from emulator.lab.effective import learned_routes, without_nodes
from emulator.lab.machinery import Machinery, Side, readdressed
from emulator.lab.objects import (
    SERVED_BY,
    STATUSES,
    Deletion,
    as_given,
    condition_ready,
    namespace_object,
    not_ready,
    terminating,
    with_numbers,
    with_status_of,
)
from emulator.lab.pods import served_by
from emulator.lab.service_store import refs_made_here, service_deletes, service_puts
from emulator.lab.store import Event, Object, Ref, Store, ref_of
from emulator.lab.target_health import Findings
from emulator.lab.timers import Timers
from emulator.plan.build import build
from emulator.plan.faults import PlanFault, ProxyStopFault, check, in_force, overlay
from emulator.plan.model import Plan, Route
from emulator.policy.enforcement import Enforcement, enforce
from emulator.policy.enforcer import PolicyMode
from emulator.proxy.conntrack import served
from emulator.proxy.model import Proxy

Progress = Callable[[str], None]

POD_KIND, NAMESPACE_KIND, NODE_KIND = "Pod", "Namespace", "Node"
READY, AVAILABLE, ENDED = "ready", "available", "ended"  # what pods wait for
RETRY = 1.0  # s until a pod's change is tried again that did not work out


class Forbidden(UserError):
    """What no user of a cluster may do either (HTTP 403)."""


class Conflict(UserError):
    """Somebody else has changed the object meanwhile (HTTP 409)."""


class Outcome(NamedTuple):
    """What an apply or delete did to one object."""

    ref: Ref
    action: Literal["created", "configured", "unchanged", "deleted"]


class Runtime:
    """The lab's state and the lock around it. One change runs at a time; reads are of immutable snapshots."""

    def __init__(
        self,
        topology: Topology,
        style: Style,
        machinery: Machinery,
        *,
        proxy: Beside | None = None,
        balancer: Balancer | None = None,
        policy_mode: PolicyMode = "faithful",
        addons: Sequence[Object] = (),
        addons_at_once: bool = False,
        wire_accurate: bool,
        progress: Progress,
    ) -> None:
        self.topology = style.prepare(topology)
        self.style = style
        self.machinery = machinery
        self.proxy = proxy
        self.balancer = balancer
        self._planned_by: Proxy | None = None
        self.enforcer = style.enforcer(policy_mode)
        self.enforcement: Enforcement | None = None  # of the plan in force; None where nothing enforces policies
        self._enforced: Enforcement | None = None  # of the plan that was made last
        # They come with the first Service (or at once), after the user's own pods
        self._addons = [as_given(obj) for obj in validate_objects(addons)] if addons else []
        self._addons_at_once = addons_at_once
        self._addons_begun = False
        self.store = Store()
        self.wire_accurate = wire_accurate
        self.broken = ""
        self._progress = progress
        self._lock = threading.RLock()
        self._ipam: Ipam = style.ipam(self.topology)
        self._given: dict[Ref, Object] = {}
        self._manifests: Manifests | None = None  # the same objects, by kind
        self._down: frozenset[str] = frozenset()
        self._unplugged: frozenset[tuple[str, str]] = frozenset()
        self._timers: Timers[tuple[str, str]] = Timers(self._due)
        self._deletions: dict[str, Deletion] = {}  # of the pods that terminate, by key
        self._heard = 0  # when the findings of health checks in force were made, by the monotonic clock (ns)
        self.stuck = ""  # why what should have followed by itself did not
        self._faults: tuple[PlanFault, ...] = ()
        self.cluster: Cluster | None = None
        self.plan: Plan | None = None

    # Looking

    @property
    def down_nodes(self) -> frozenset[str]:
        """The nodes that a scenario has crashed and not brought back."""
        return self._down

    @property
    def unplugged(self) -> frozenset[tuple[str, str]]:
        """The interfaces (machine, device) whose cable was pulled and not plugged in again."""
        return self._unplugged

    @property
    def faults(self) -> tuple[str, ...]:
        """A line for each fault of the plan that was struck and not mended."""
        with self._lock:
            if not self._faults or self.plan is None:
                return ()
            return in_force(self._faults, without_nodes(self.plan, self.current, self._down))

    @property
    def held(self) -> Plan:
        """What the namespaces hold: the plan, and what faults have made of it. Raises UserError before the first
        change."""
        if self.plan is None:
            raise UserError("the lab has not started yet")
        return overlay(self.plan, self._faults)

    @property
    def current(self) -> Cluster:
        """The cluster in force. Raises UserError before the first change."""
        if self.cluster is None:
            raise UserError("the lab has not started yet")
        return self.cluster

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes while the block runs: for what must not meet a lab halfway between two states."""
        with self._lock:
            yield

    def differences(self) -> list[str]:
        """Between the plan and the kernel, read back, nodes that are down left out, and faults taken into account."""
        with self._lock:
            cluster, plan = self.current, self.plan
            assert plan is not None
            effective = overlay(without_nodes(plan, cluster, self._down), self._faults)
            # A crashed node withdraws nothing: the others keep its routes until their hold time is over.
            lost = learned_routes(effective, cluster, to=self._down) if self._down else []
            return self.machinery.differences(effective, lost)

    # Changing

    def start(self, objects: Sequence[Object]) -> None:
        """Wire the topology and the first objects."""
        with self._lock:
            _refuse_nodes(objects)
            given = {ref_of(obj): as_given(obj) for obj in objects}
            self._change(given)
            self._advance()

    def apply(self, objects: Sequence[Object]) -> list[Outcome]:
        """Make the objects so, all or none. Raises ManifestError with everything that is wrong with them."""
        with self._lock:
            objects = [self._updating(obj) for obj in objects]
            checked = [as_given(obj) for obj in validate_objects(objects, namespaces=self.current.namespaces)]
            _refuse_nodes(checked)
            given = dict(self._given)
            given.update({ref_of(obj): with_status_of(obj, self._given.get(ref_of(obj))) for obj in checked})
            events = {event.ref: event for event in self._change(given)}
            self._advance()
            return [Outcome(ref, _action(events.get(ref))) for ref in map(ref_of, checked)]

    def _updating(self, obj: Object) -> Object:
        """``obj`` as it is to be checked if it replaces a Service: without what it repeats of another type's fields."""
        metadata = obj.get("metadata") if isinstance(obj, dict) else None
        if not isinstance(metadata, dict) or (obj.get("apiVersion"), obj.get("kind")) != ("v1", "Service"):
            return obj
        name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
        held = self.store.get(Ref("", "Service", namespace, name)) if isinstance(name, str) else None
        return carried_over(obj, held) if held is not None else obj

    def create(self, obj: Object) -> Object:
        """A new object; as the store holds it then. Raises AlreadyExists."""
        with self._lock:
            if self.store.get(ref_of(obj)) is not None:
                raise AlreadyExists(f"{ref_of(obj).kind} {_qualified(ref_of(obj))} already exists")
            return self._put(obj)

    def update(self, ref: Ref, change: Callable[[Object | None], Object], version: str = "") -> Object:
        """Replace an object by what ``change`` makes of it (None: there is none), with nobody else in between.

        With a ``version``, the object's must still be that one. Raises Conflict.
        """
        with self._lock:
            known = self.store.get(ref)
            if version and known is not None and known["metadata"]["resourceVersion"] != version:
                raise Conflict(
                    f"the object {_qualified(ref)} has been modified; "
                    "please apply your changes to the latest version and try again"
                )
            if known is not None and ref.kind == POD_KIND and ref not in self._given:
                raise Forbidden(
                    f"the pod {_qualified(ref)} is made from a template",
                    hint="change the workload or the topology that it belongs to",
                )
            return self._put(change(known))

    def update_status(self, ref: Ref, change: Callable[[Object], Object]) -> Object:
        """Set the status that others than the lab may set: whether a pod is ready (its condition Ready), and the
        addresses that a load balancer has given to a Service. Raises NotFound, ManifestError, Forbidden."""
        with self._lock:
            known = self.store.get(ref)
            if known is None:
                raise NotFound(f"{ref.kind} {_qualified(ref)} not found")
            wanted = change(known)
            if (ref.group, ref.kind) == ("", POD_KIND):
                ready = condition_ready(wanted)
                if ready is not None:
                    self.set_ready({f"{ref.namespace}/{ref.name}": ready})
            elif (ref.group, ref.kind) == ("", "Service"):
                given = self._given[ref]
                faults = list(status_faults({**given, "status": wanted.get("status")}))
                if faults:
                    subject = f"Service {_qualified(ref)}"
                    raise ManifestError([Problem("<api>", subject, path, reason) for path, reason in faults])
                self._change({**self._given, ref: {**given, "status": wanted.get("status") or {}}})
            else:
                raise Forbidden(f"the status of a {ref.kind} is the lab's own to set")
            held = self.store.get(ref)
            assert held is not None
            return held

    def set_ready(self, readiness: Mapping[str, bool]) -> None:
        """Say of pods (``namespace/name``) whether they are ready, as their readiness probes would. Raises NotFound."""
        with self._lock:
            there = {pod.key for pod in self.current.pods}
            for key in readiness:
                if key not in there:
                    raise NotFound(f"pod {key} not found")
            for key in readiness:
                self._timers.cancel((READY, key))
            self._change(self._given, readiness=readiness)
            self._advance()

    def progress_of(self, ref: Ref) -> tuple[bool, str]:
        """Whether a workload's rollout is over, and a line about it. Raises NotFound."""
        with self._lock:
            manifest = self._given.get(ref)
            if manifest is None or ref.kind not in ROLLED:
                raise NotFound(f"{ref.kind} {_qualified(ref)} not found", hint=f"{', '.join(ROLLED)} roll out")
            done, text = progress(manifest, workload_numbers(self.current, manifest))
            return done, f"{text} ({self.stuck})" if self.stuck and not done else text

    def close(self) -> None:
        """Nothing happens by itself any more."""
        self._timers.close()

    def _put(self, obj: Object) -> Object:
        (outcome,) = self.apply([obj])
        held = self.store.get(outcome.ref)
        assert held is not None, "what was applied is in the store"
        return held

    def delete(self, refs: Sequence[Ref], grace: float | None = None) -> list[Outcome]:
        """Delete objects. A pod that a workload owns comes back as another, as it would in a cluster.

        ``grace`` is the time (seconds) that pods among ``refs`` may take to end, in place of what their spec says; 0
        ends them at once.
        """
        with self._lock:
            given = dict(self._given)
            emptied = {ref.name for ref in refs if ref.kind == NAMESPACE_KIND and ref in given}
            for ref in refs:
                if ref.kind == NODE_KIND and not ref.group:
                    raise Forbidden(
                        f"the node {ref.name} is part of the topology", hint="a scenario's node-crash takes one down"
                    )
                if ref.kind == NAMESPACE_KIND and not ref.group and ref.name in INITIAL_NAMESPACES:
                    raise Forbidden(f'namespaces "{ref.name}" is forbidden: this namespace may not be deleted')
                if ref not in given and self.store.get(ref) is None:
                    raise NotFound(f"{ref.kind} {_qualified(ref)} not found")
            pods = {f"{ref.namespace}/{ref.name}" for ref in refs if (ref.group, ref.kind) == ("", POD_KIND)}
            for ref in refs:
                given.pop(ref, None)
            for ref in [ref for ref in given if ref.namespace in emptied]:
                del given[ref]
            if grace is not None and grace <= 0:
                self._change(given, ended=frozenset(pods))
            else:
                self._change(given, gone=frozenset(pods), grace=grace)
            self._advance()
            return [Outcome(ref, "deleted") for ref in refs]

    # Breaking, and mending

    def crash(self, nodes: Collection[str]) -> None:
        """Take nodes down at once, with all that runs in them, as a power cut would."""
        with self._lock:
            self._known(nodes)
            self._set_down(self._down | frozenset(nodes))

    def revive(self, nodes: Collection[str]) -> None:
        """Bring crashed nodes back: same names and addresses, everything set up anew."""
        with self._lock:
            self._known(nodes)
            self._set_down(self._down - frozenset(nodes))

    def plug(self, machine: str, device: str, *, up: bool) -> None:
        """Pull the cable of an interface, or plug it in again. Raises NotFound, UserError if the machine is down."""
        with self._lock:
            self._check_whole()
            interfaces = {
                interface.name: interface
                for found in self.topology.machines
                if found.name == machine
                for interface in found.interfaces
            }
            if device not in interfaces:
                raise NotFound(f"{machine} has no interface {device!r}", hint=f"it has {', '.join(interfaces)}")
            if machine in self._down:
                raise UserError(f"{machine} is down: its cables are gone with it")
            interface = interfaces[device]
            if interface.peer in self._down:
                raise UserError(f"{interface.peer}, at the other end of that cable, is down")
            self.machinery.set_link(interface.peer, interface.peer_device, up=up)
            changed = frozenset({(machine, device)})
            self._unplugged = self._unplugged - changed if up else self._unplugged | changed

    def strike(self, fault: PlanFault) -> None:
        """Break something of the plan. Raises UserError if it is not there, or the kernel will not have it."""
        with self._lock:
            self._check_whole()
            cluster, plan = self.current, self.plan
            assert plan is not None
            check(without_nodes(plan, cluster, self._down), fault)
            try:
                self._set_faults((*(other for other in self._faults if other.key != fault.key), fault))
            except ApplyError as error:
                if self.broken:
                    raise
                raise UserError(f"this fault cannot be: {error.message}") from error

    def mend(self, choose: Callable[[tuple[PlanFault, ...]], tuple[PlanFault, ...]]) -> None:
        """Mend those of the faults in force that ``choose`` picks: the plan holds again. Raises what that raises."""
        with self._lock:
            self._check_whole()
            chosen = choose(self._faults)
            self._set_faults(tuple(fault for fault in self._faults if fault not in chosen))

    def _set_faults(self, faults: tuple[PlanFault, ...]) -> None:
        cluster, plan = self.current, self.plan
        assert plan is not None
        old = self._side(cluster, plan, self._down, self._faults)
        self._reach(old, self._side(cluster, plan, self._down, faults), ())
        self._faults = faults

    def _known(self, nodes: Collection[str]) -> None:
        self._check_whole()
        for name in nodes:
            if name not in {node.name for node in self.current.nodes}:
                raise NotFound(f"there is no node {name!r}: only nodes crash", hint="`cnilab get nodes` lists them")

    def _check_whole(self) -> None:
        if self.broken:
            raise UserError(f"this lab is broken: {self.broken}", hint="take it down: `cnilab down`")

    def _set_down(self, down: frozenset[str]) -> None:
        cluster, plan = self.current, self.plan
        assert plan is not None
        changed = self._down ^ down
        # A node that lost its power has forgotten what was set in it, and its cables are new.
        pods = {pod.ns for pod in cluster.pods if pod.node in changed}
        faults = tuple(fault for fault in self._faults if fault.place not in changed and fault.ns not in pods)
        old = self._side(cluster, plan, self._down, self._faults)
        before = cluster
        cluster, plan = self._with_endpoints(cluster, plan, cluster, down)
        self._reach(old, self._side(cluster, plan, down, faults), ())
        cluster, plan = self._reported(cluster, plan, self._ipam)
        self.cluster, self.plan = cluster, plan
        self.enforcement = self._enforced
        self._down, self._faults = down, faults
        # Their cables are new, and plugged in.
        self._unplugged = frozenset(pair for pair in self._unplugged if pair[0] not in changed)
        nodes = {node.name: node for node in cluster.nodes if node.name in changed}
        puts = [self._node_object(node) for node in nodes.values()]
        puts += [self._pod_object(pod, nodes[pod.node]) for pod in cluster.pods if pod.node in nodes]
        assert self._manifests is not None
        puts += self._workloads(cluster, self._manifests)
        puts += service_puts(before, cluster, self._given.keys())
        self.store.commit(puts, service_deletes(before, cluster, self._given.keys()))
        self._advance()

    def _change(
        self,
        given: dict[Ref, Object],
        *,
        gone: frozenset[str] = frozenset(),
        ended: frozenset[str] = frozenset(),
        readiness: Mapping[str, bool] | None = None,
        available: frozenset[str] = frozenset(),
        grace: float | None = None,
    ) -> list[Event]:
        self._check_whole()
        extra = missing_addons(
            self._addons,
            lambda obj: ref_of(obj) in given,
            begun=self._addons_begun,
            wanted=self._addons_at_once or any((ref.group, ref.kind) == ("", "Service") for ref in given),
        )
        given = {**given, **{ref_of(obj): obj for obj in extra}}
        manifests = Manifests.following(given.values(), self._manifests)
        ipam = self._ipam.copy()
        cluster = assemble(
            self.topology,
            manifests,
            ipam,
            self.cluster,
            gone=gone,
            ended=ended,
            readiness=readiness,
            available=available,
            down=self._down,
        )
        self.style.check(cluster)
        if self.balancer is not None:
            self.balancer.check(cluster)
        previous = (self.cluster, self.plan) if self.cluster is not None and self.plan is not None else None
        plan = self._planned(cluster, previous)
        faults = self._surviving_faults(cluster)
        old = self._side(*previous, self._down, self._faults) if previous is not None else Side(None)
        new = self._side(cluster, plan, self._down, faults)
        self._reach(old, new, self._routes_to_await(old, new, cluster))
        assembled = cluster
        cluster, plan = self._reported(cluster, plan, ipam)
        if cluster is not assembled and cluster.services:
            # Only now are the addresses known that CNI plugins gave: endpoints, and the rules that lead to them, follow
            known = self._side(cluster, plan, self._down, faults)
            cluster, plan = self._with_endpoints(cluster, plan, assembled, self._down)
            self._reach(known, self._side(cluster, plan, self._down, faults), ())
        before, before_given = self.cluster, self._given
        self._addons_begun = self._addons_begun or bool(extra)
        self._ipam, self._given, self.cluster, self.plan, self._faults = ipam, given, cluster, plan, faults
        self._manifests = manifests
        self._planned_by = self.proxy.when(cluster) if self.proxy is not None else None
        self.enforcement = self._enforced
        self._set_timers(before, cluster, grace)
        events = self._commit(before, cluster, before_given, given, manifests)
        self._await_checks(previous[1] if previous is not None else None)
        self._forget_stale(before, cluster)  # last: the change holds, whether or not old flows could be looked through
        return events

    def _advance(self) -> None:
        """Take the further steps of rollouts, as far as none of them has to wait for a pod to be ready or gone."""
        for _ in range(10 + 4 * len(self.current.pods)):
            before = self.current
            if not before.rolling:
                self.stuck = ""
            if not before.rolling or self.broken:
                return
            try:
                self._change(self._given)
            except CnilabError as error:
                self.stuck = f"the rollout of {', '.join(before.rolling)} does not go on: {error.message}"
                return
            self.stuck = ""
            if self.current.pods == before.pods and self.current.replica_sets == before.replica_sets:
                return

    # What happens by itself

    def _set_timers(self, old: Cluster | None, now: Cluster, grace: float | None) -> None:
        """Start the clocks of pods that have begun to wait for something, and stop those of pods that are gone."""
        known = {pod.key: pod for pod in old.pods} if old is not None else {}
        for pod in now.pods:
            before = known.pop(pod.key, None)
            if before is pod:
                continue
            if before is not None and before.incarnation != pod.incarnation:
                self._forget(pod.key)
                before = None
            if pod.terminating:
                if before is None or not before.terminating:
                    seconds = pod.grace if grace is None else min(pod.lifetime.shutdown, grace)
                    limit = pod.lifetime.grace_period if grace is None else int(grace)
                    self._deletions[pod.key] = Deletion(time.time() + limit, limit)
                    self._forget(pod.key, ending=True)
                    self._timers.set((ENDED, pod.key), seconds)
            elif not pod.ready:
                if before is None:
                    self._timers.set((READY, pod.key), pod.lifetime.ready_after)
            elif not pod.available and (before is None or not before.ready):
                self._timers.set((AVAILABLE, pod.key), pod.lifetime.min_ready)
        for key in known:
            self._forget(key)

    def _forget(self, key: str, *, ending: bool = False) -> None:
        self._timers.cancel((READY, key))
        self._timers.cancel((AVAILABLE, key))
        if not ending:
            self._timers.cancel((ENDED, key))
            self._deletions.pop(key, None)

    def _due(self, due: list[tuple[str, str]]) -> None:
        """The time of some pods has come (on the timers' thread)."""
        with self._lock:
            if self.broken:
                return
            pods = {pod.key: pod for pod in self.current.pods}
            ready = {key: True for what, key in due if what == READY and key in pods}
            available = frozenset(key for what, key in due if what == AVAILABLE and key in pods and pods[key].ready)
            ended = frozenset(key for what, key in due if what == ENDED and key in pods and pods[key].terminating)
            if not (ready or available or ended):
                return
            try:
                self._change(self._given, ended=ended, readiness=ready, available=available)
            except Exception as error:  # nobody waits for this thread: what it could not do is said with every answer
                self.stuck = f"pods {', '.join(key for _, key in due)} do not change: {error}"
                for timer in due if not self.broken else ():
                    self._timers.set(timer, RETRY)
                return
            self.stuck = ""
            self._advance()

    def observe(self, findings: Findings) -> None:
        """Have the load balancer follow what its health checks have found (on the thread that passes reports on)."""
        with self._lock:
            if self.broken or self.cluster is None:
                return
            try:
                self._follow_health(findings)
            except Exception as error:  # nobody waits for this thread, either
                self.stuck = f"the load balancer does not follow its health checks: {error}"

    def _follow_health(self, findings: Findings) -> None:
        cluster, plan = self.current, self.plan
        assert plan is not None
        if findings.at <= self._heard:
            return
        self._heard = findings.at
        if findings.targets == cluster.target_health:
            return
        now = msgspec.structs.replace(cluster, target_health=findings.targets)
        planned = self._planned(now, (cluster, plan))
        old = self._side(cluster, plan, self._down, self._faults)
        self._reach(old, self._side(now, planned, self._down, self._faults), ())
        self.cluster, self.plan = now, planned
        self.enforcement = self._enforced

    def _await_checks(self, before: Plan | None) -> None:
        """Let new targets of load balancers be checked once before the change is done: else for a moment all of them
        would get traffic, or none of the new ones."""
        assert self.plan is not None
        for checker in checkers(self.plan, before):
            if (findings := self.machinery.settled_health(checker)) is not None:
                self._follow_health(findings)

    def _planned(self, cluster: Cluster, previous: tuple[Cluster, Plan] | None) -> Plan:
        proxy = self.proxy.when(cluster) if self.proxy is not None else None
        same = proxy is self._planned_by
        if self.enforcer is not None:
            known = [
                one
                for one in (self._enforced, self.enforcement)
                if one is not None and previous is not None and one.compiled.cluster is previous[0]
            ]
            self._enforced = enforce(self.enforcer, cluster, known[0] if known else None)
        return build(
            cluster,
            self.style,
            proxy=proxy,
            balancer=self.balancer,
            enforcer=self._enforced,
            wire_accurate=self.wire_accurate,
            previous=previous,
            same_proxy=same,
        )

    def _forget_stale(self, before: Cluster | None, cluster: Cluster) -> None:
        """Have the nodes forget UDP flows to endpoints that are gone, as kube-proxy does after each sync."""
        if before is None or self.proxy is None or self.proxy.when(cluster) is None:
            return
        if before.services is cluster.services and before.slices is cluster.slices:
            return
        if self.proxy.settings.clean_conntrack and not (known := served(cluster)).empty:
            dead = {fault.ns for fault in self._faults if isinstance(fault, ProxyStopFault)}
            nodes = [node.ns for node in cluster.nodes if node.name not in self._down and node.ns not in dead]
            self.machinery.forget_stale(nodes, known)

    def _with_endpoints(
        self, cluster: Cluster, plan: Plan, before: Cluster, down: frozenset[str]
    ) -> tuple[Cluster, Plan]:
        """Cluster and plan with the endpoints that follow from pods and nodes as they are now; ``before`` is what
        the slices in ``cluster`` were made of."""
        fresh = with_endpoints(cluster, before, down=down)
        same = fresh.slices is cluster.slices and fresh.not_ready_nodes == cluster.not_ready_nodes
        if same or (fresh.slices is cluster.slices and self.balancer is None):
            return fresh, plan
        return fresh, self._planned(fresh, (cluster, plan))

    def _surviving_faults(self, cluster: Cluster) -> tuple[PlanFault, ...]:
        """Without those of pods that go: whoever comes under their names is another."""
        if not self._faults:
            return ()
        known = {pod.key: pod.incarnation for pod in self.cluster.pods} if self.cluster is not None else {}
        pods = {pod.ns for pod in cluster.pods if known.get(pod.key) == pod.incarnation}
        return tuple(fault for fault in self._faults if not fault.ns.startswith("pod/") or fault.ns in pods)

    def _side(self, cluster: Cluster, plan: Plan, down: frozenset[str], faults: Sequence[PlanFault]) -> Side:
        return Side(
            overlay(without_nodes(plan, cluster, down), faults),
            [pod for pod in cluster.pods if pod.node not in down],
            [machine for machine in self.topology.machines if machine.name not in down],
            cluster,
            self.proxy is not None and self.proxy.when(cluster) is not None,
            frozenset(fault.ns for fault in faults if isinstance(fault, ProxyStopFault)),
        )

    def _routes_to_await(self, old: Side, new: Side, cluster: Cluster) -> list[Route]:
        """The routes that routing daemons will bring because of this change. Not those of nodes that somebody has cut
        off, and none if that is a router: they would not come, and the change is not to blame."""
        assert new.plan is not None
        cut_off = self._down | {machine for machine, _ in self._unplugged}
        cut_off |= {fault.place for fault in self._faults if not fault.ns.startswith("pod/")}
        cut_off |= {item["place"].partition("/")[2] for item in self.machinery.daemons() if item["state"] != "running"}
        if old.plan is None:
            return learned_routes(new.plan, cluster)
        if not cut_off <= {node.name for node in cluster.nodes}:
            return []
        had = {item.key for item in learned_routes(old.plan, cluster, unlike=new.plan)}
        lost = {item.key for item in learned_routes(new.plan, cluster, to=cut_off)} if cut_off else set()
        return [
            item
            for item in learned_routes(new.plan, cluster, unlike=old.plan)
            if item.key not in had and item.key not in lost and item.ns.partition("/")[2] not in cut_off
        ]

    def _reach(self, old: Side, new: Side, routes: Sequence[Route]) -> None:
        """Bring kernel and traffic from one side to the next; a failure that cannot be undone breaks the lab."""
        try:
            self.machinery.reach(old, new, routes, self._progress)
        except Exception as error:
            if getattr(error, "broken", False):
                self.broken = str(error)
            if self.cluster is not None and self.plan is not None:  # pods that came back may have other addresses
                self.cluster, self.plan = self._reported(self.cluster, self.plan, self._ipam)
            raise

    def _reported(self, cluster: Cluster, plan: Plan, ipam: Ipam) -> tuple[Cluster, Plan]:
        """Cluster and plan with what only the machinery knows: what CNI plugins did, and the addresses they gave."""
        if not isinstance(ipam, PluginAddresses):
            return cluster, plan
        addresses = self.machinery.addresses()
        pods = tuple(readdressed(pod, addresses) for pod in cluster.pods)
        for pod in pods:
            if pod.ns in addresses:
                ipam.learn(pod.node, pod.key, pod.addresses)
        return msgspec.structs.replace(cluster, pods=pods), self.machinery.annotated(plan)

    # Publishing

    def _commit(
        self,
        old: Cluster | None,
        cluster: Cluster,
        before: dict[Ref, Object],
        given: dict[Ref, Object],
        manifests: Manifests,
    ) -> list[Event]:
        """Put into the store what changed between two states, derived objects included. A pod that came back under its
        old name is another object."""
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
            puts += self._workloads(cluster, manifests)
        puts += service_puts(old, cluster, given.keys())
        deletes += service_deletes(old, cluster, given.keys())
        known_nodes = {node.name: node for node in old.nodes} if old is not None else {}
        puts += [self._node_object(node) for node in cluster.nodes if known_nodes.get(node.name) != node]
        known_pods = {pod.key: pod for pod in old.pods} if old is not None else {}
        for pod in cluster.pods:
            ref = Ref("", POD_KIND, pod.namespace, pod.name)
            known = known_pods.pop(pod.key, None)
            if known is not None and _identity(known) != _identity(pod):
                deletes.append(ref)
                known = None
            if known != pod or before.get(ref) != given.get(ref):
                puts.append(self._pod_object(pod, nodes[pod.node], given.get(ref)))
        deletes += [Ref("", POD_KIND, pod.namespace, pod.name) for pod in known_pods.values()]
        return self.store.commit(puts, deletes)

    @staticmethod
    def _workloads(cluster: Cluster, manifests: Manifests) -> Iterator[Object]:
        return with_numbers(manifests.named(STATUSES), cluster)

    def _node_object(self, node: Node) -> Object:
        obj = node_object(node)
        return not_ready(obj) if node.name in self._down else obj

    def _pod_object(self, pod: Pod, node: Node, manifest: Object | None = None) -> Object:
        ref = Ref("", POD_KIND, pod.namespace, pod.name)
        manifest = manifest or self._given.get(ref)
        obj = pod_object(pod, node)
        if pod.terminating and (held := self.store.get(ref)) is not None:
            return terminating({**held, "status": obj["status"]}, self._deletions[pod.key])
        if manifest is not None:
            obj["spec"] = {**obj["spec"], **manifest.get("spec", {}), "nodeName": pod.node}
        obj["metadata"].setdefault("annotations", {})[SERVED_BY] = served_by(pod)
        return not_ready(obj) if pod.node in self._down else obj


def _identity(pod: Pod) -> tuple[int, str, tuple[str, ...]]:
    """What tells a pod from its successor under the same name."""
    return pod.incarnation, pod.node, pod.addresses


def _action(event: Event | None) -> Literal["created", "configured", "unchanged"]:
    if event is None:
        return "unchanged"
    return "created" if event.type == "ADDED" else "configured"


def _refuse_nodes(objects: Sequence[Object]) -> None:
    for obj in objects:
        if obj["kind"] == NODE_KIND and obj["apiVersion"] == "v1":
            raise Forbidden(
                f"Node {obj['metadata']['name']}: nodes are part of the topology, not of manifests",
                hint="labels, annotations and addresses of nodes are given in the topology file",
            )


def _qualified(ref: Ref) -> str:
    return f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
