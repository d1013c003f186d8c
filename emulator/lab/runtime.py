"""A running lab, as its users meet it: what may be looked at, wished for and broken, one change at a time.

What a wish comes to, and how it is carried out, is :mod:`emulator.lab.reconciler`'s; here are the lock around that, and
the threads on which things happen by themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from emulator.balancer.model import Balancer
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster, Topology
from emulator.cluster.workload_status import ROLLED, progress, workload_numbers
from emulator.cni.service_proxy import Beside
from emulator.cni.style import Style
from emulator.errors import AlreadyExists, ApplyError, NotFound, UserError
from emulator.lab.admission import (
    Forbidden,
    check_update,
    deleted,
    qualified,
    refuse_nodes,
    updating,
    with_service_status,
)
from emulator.lab.learned_routes import learned_routes
from emulator.lab.machinery import Machinery, Progress
from emulator.lab.objects import POD_KIND, as_given, condition_ready, with_status_of
from emulator.lab.planning import PlanMaker
from emulator.lab.pod_clocks import PodClocks, Timer, due_of
from emulator.lab.reconciler import Addons, Reconciler
from emulator.lab.store import Event, Object, Ref, Store, ref_of
from emulator.lab.target_health import Findings
from emulator.plan.faults import PlanFault, overlay
from emulator.plan.model import Plan
from emulator.policy.enforcement import Enforcement
from emulator.policy.enforcer import PolicyMode


class Outcome(NamedTuple):
    """What an apply or delete did to one object."""

    ref: Ref
    action: Literal["created", "configured", "unchanged", "deleted"]


class Runtime:
    """A lab and the lock around it. One change runs at a time; reads are of immutable snapshots."""

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
        self.machinery = machinery
        self.enforcer = style.enforcer(policy_mode)
        self._lock = threading.RLock()
        self._clocks = PodClocks(self._due)
        self._lab = Reconciler(
            self.topology,
            PlanMaker(style, proxy, balancer, self.enforcer, wire_accurate),
            machinery,
            self._clocks,
            Addons([as_given(obj) for obj in validate_objects(addons)] if addons else [], addons_at_once),
            progress,
        )

    # Looking

    @property
    def store(self) -> Store:
        """The objects, as they are served."""
        return self._lab.store

    @property
    def cluster(self) -> Cluster | None:
        """The cluster in force, None before the first change."""
        return self._lab.planned.cluster if self._lab.planned is not None else None

    @property
    def plan(self) -> Plan | None:
        """The plan in force, None before the first change."""
        return self._lab.planned.plan if self._lab.planned is not None else None

    @property
    def enforcement(self) -> Enforcement | None:
        """Of the plan in force; None where nothing enforces policies."""
        return self._lab.planned.enforcement if self._lab.planned is not None else None

    @property
    def current(self) -> Cluster:
        """The cluster in force. Raises UserError before the first change."""
        return self._lab.current.cluster

    @property
    def held(self) -> Plan:
        """What the namespaces hold: the plan, and what faults have made of it. Raises UserError before the first
        change."""
        return overlay(self._lab.current.plan, self._lab.damage.faults)

    @property
    def down_nodes(self) -> frozenset[str]:
        """The nodes that a scenario has crashed and not brought back."""
        return self._lab.damage.down

    @property
    def unplugged(self) -> frozenset[tuple[str, str]]:
        """The interfaces (machine, device) whose cable was pulled and not plugged in again."""
        return self._lab.damage.unplugged

    @property
    def faults(self) -> tuple[str, ...]:
        """A line for each fault of the plan that was struck and not mended."""
        with self._lock:
            planned = self._lab.planned
            return self._lab.damage.lines(planned.plan, planned.cluster) if planned is not None else ()

    @property
    def broken(self) -> str:
        """Why nothing can be changed any more; empty while that is not so."""
        return self._lab.broken

    @property
    def stuck(self) -> str:
        """Why what should have followed by itself did not; empty if it did."""
        return self._lab.stuck

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes while the block runs: for what must not meet a lab halfway between two states."""
        with self._lock:
            yield

    def differences(self) -> list[str]:
        """Between the plan and the kernel, read back, nodes that are down left out, and faults taken into account."""
        with self._lock:
            planned, damage = self._lab.current, self._lab.damage
            effective = damage.effective(planned.plan, planned.cluster)
            # A crashed node withdraws nothing: the others keep its routes until their hold time is over.
            lost = learned_routes(effective, planned.cluster, to=damage.down) if damage.down else []
            return self.machinery.differences(effective, lost)

    def progress_of(self, ref: Ref) -> tuple[bool, str]:
        """Whether a workload's rollout is over, and a line about it. Raises NotFound."""
        with self._lock:
            manifest = self._lab.given.get(ref)
            if manifest is None or ref.kind not in ROLLED:
                raise NotFound(f"{ref.kind} {qualified(ref)} not found", hint=f"{', '.join(ROLLED)} roll out")
            done, text = progress(manifest, workload_numbers(self.current, manifest))
            return done, f"{text} ({self.stuck})" if self.stuck and not done else text

    # Changing

    def start(self, objects: Sequence[Object]) -> None:
        """Wire the topology and the first objects."""
        with self._lock:
            refuse_nodes(objects)
            given = {ref_of(obj): as_given(obj) for obj in objects}
            self._lab.change(given)
            self._lab.advance()

    def apply(self, objects: Sequence[Object]) -> list[Outcome]:
        """Make the objects so, all or none. Raises ManifestError with everything that is wrong with them."""
        with self._lock:
            objects = [updating(obj, self.store) for obj in objects]
            checked = [as_given(obj) for obj in validate_objects(objects, namespaces=self.current.namespaces)]
            refuse_nodes(checked)
            given = dict(self._lab.given)
            given.update({ref_of(obj): with_status_of(obj, given.get(ref_of(obj))) for obj in checked})
            events = {event.ref: event for event in self._lab.change(given)}
            self._lab.advance()
            return [Outcome(ref, _action(events.get(ref))) for ref in map(ref_of, checked)]

    def create(self, obj: Object) -> Object:
        """A new object; as the store holds it then. Raises AlreadyExists."""
        with self._lock:
            if self.store.get(ref_of(obj)) is not None:
                raise AlreadyExists(f"{ref_of(obj).kind} {qualified(ref_of(obj))} already exists")
            return self._put(obj)

    def update(self, ref: Ref, change: Callable[[Object | None], Object], version: str = "") -> Object:
        """Replace an object by what ``change`` makes of it (None: there is none), with nobody else in between.

        With a ``version``, the object's must still be that one. Raises Conflict.
        """
        with self._lock:
            known = self.store.get(ref)
            check_update(ref, known, self._lab.given.keys(), version)
            return self._put(change(known))

    def _put(self, obj: Object) -> Object:
        (outcome,) = self.apply([obj])
        held = self.store.get(outcome.ref)
        assert held is not None, "what was applied is in the store"
        return held

    def update_status(self, ref: Ref, change: Callable[[Object], Object]) -> Object:
        """Set the status that others than the lab may set: whether a pod is ready (its condition Ready), and the
        addresses that a load balancer has given to a Service. Raises NotFound, ManifestError, Forbidden."""
        with self._lock:
            known = self.store.get(ref)
            if known is None:
                raise NotFound(f"{ref.kind} {qualified(ref)} not found")
            wanted = change(known)
            if (ref.group, ref.kind) == ("", POD_KIND):
                ready = condition_ready(wanted)
                if ready is not None:
                    self.set_ready({f"{ref.namespace}/{ref.name}": ready})
            elif (ref.group, ref.kind) == ("", "Service"):
                self._lab.change(with_service_status(self._lab.given, ref, wanted.get("status")))
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
            self._clocks.told_ready(readiness)
            self._lab.change(self._lab.given, readiness=readiness)
            self._lab.advance()

    def delete(self, refs: Sequence[Ref], grace: float | None = None) -> list[Outcome]:
        """Delete objects. A pod that a workload owns comes back as another, as it would in a cluster.

        ``grace`` is the time (seconds) that pods among ``refs`` may take to end, in place of what their spec says; 0
        ends them at once.
        """
        with self._lock:
            given = deleted(self._lab.given, refs, self.store)
            pods = frozenset(f"{ref.namespace}/{ref.name}" for ref in refs if (ref.group, ref.kind) == ("", POD_KIND))
            if grace is not None and grace <= 0:
                self._lab.change(given, ended=pods)
            else:
                self._lab.change(given, gone=pods, grace=grace)
            self._lab.advance()
            return [Outcome(ref, "deleted") for ref in refs]

    # Breaking, and mending

    def crash(self, nodes: Collection[str]) -> None:
        """Take nodes down at once, with all that runs in them, as a power cut would."""
        with self._lock:
            self._check_nodes(nodes)
            self._lab.set_down(self.down_nodes | frozenset(nodes))

    def revive(self, nodes: Collection[str]) -> None:
        """Bring crashed nodes back: same names and addresses, everything set up anew."""
        with self._lock:
            self._check_nodes(nodes)
            self._lab.set_down(self.down_nodes - frozenset(nodes))

    def _check_nodes(self, nodes: Collection[str]) -> None:
        self._lab.check_whole()
        for name in nodes:
            if name not in {node.name for node in self.current.nodes}:
                raise NotFound(f"there is no node {name!r}: only nodes crash", hint="`cnilab get nodes` lists them")

    def plug(self, machine: str, device: str, *, up: bool) -> None:
        """Pull the cable of an interface, or plug it in again. Raises NotFound, UserError if the machine is down."""
        with self._lock:
            self._lab.check_whole()
            self._lab.set_cable(machine, device, plugged=up)

    def strike(self, fault: PlanFault) -> None:
        """Break something of the plan. Raises UserError if it is not there, or the kernel will not have it."""
        with self._lock:
            self._lab.check_whole()
            planned = self._lab.current
            damage = self._lab.damage.struck(fault, planned.plan, planned.cluster)
            try:
                self._lab.set_faults(damage)
            except ApplyError as error:
                if self.broken:
                    raise
                raise UserError(f"this fault cannot be: {error.message}") from error

    def mend(self, choose: Callable[[tuple[PlanFault, ...]], tuple[PlanFault, ...]]) -> None:
        """Mend those of the faults in force that ``choose`` picks: the plan holds again. Raises what that raises."""
        with self._lock:
            self._lab.check_whole()
            damage = self._lab.damage
            self._lab.set_faults(damage.mended(choose(damage.faults)))

    # What happens by itself

    def _due(self, timers: list[Timer]) -> None:
        """The time of some pods has come (on the timers' thread)."""
        with self._lock:
            if self.broken:
                return
            due = due_of(timers, self.current)
            if due is None:
                return
            try:
                self._lab.change(
                    self._lab.given,
                    ended=due.ended,
                    readiness=dict.fromkeys(due.ready, True),
                    available=due.available,
                )
            except Exception as error:  # nobody waits for this thread: what it could not do is said with every answer
                self._lab.stuck = f"pods {', '.join(key for _, key in timers)} do not change: {error}"
                if not self.broken:
                    self._clocks.again(timers)
                return
            self._lab.stuck = ""
            self._lab.advance()

    def observe(self, findings: Findings) -> None:
        """Have the load balancer follow what its health checks have found (on the thread that passes reports on)."""
        with self._lock:
            if self.broken or self.cluster is None:
                return
            try:
                self._lab.follow_health(findings)
            except Exception as error:  # nobody waits for this thread, either
                self._lab.stuck = f"the load balancer does not follow its health checks: {error}"

    def close(self) -> None:
        """Nothing happens by itself any more."""
        self._clocks.close()


def _action(event: Event | None) -> Literal["created", "configured", "unchanged"]:
    if event is None:
        return "unchanged"
    return "created" if event.type == "ADDED" else "configured"
