"""What a lab is, and the one way from that to what it shall be.

::

    wish ─▶ cluster ─▶ plan ─▶ what of it holds under the damage ─▶ machinery ─▶ in force ─▶ store

Every change, from a manifest applied to a node crashed, takes this way: work out the cluster that would result, plan
it, check it, diff against the plan in force, apply, and only then commit. Whatever fails on that way leaves the lab as
it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from emulator.balancer.health import checkers
from emulator.cluster.addons import missing_addons
from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Ipam
from emulator.cluster.manifest_index import Manifests
from emulator.cluster.model import Cluster, Topology
from emulator.cluster.plugin_addresses import PluginAddresses
from emulator.errors import CnilabError, UserError
from emulator.lab.damage import Damage, cable
from emulator.lab.learned_routes import routes_to_await
from emulator.lab.machinery import Machinery, Progress
from emulator.lab.planning import PlanMaker, Planned
from emulator.lab.pod_clocks import PodClocks
from emulator.lab.publication import Publication
from emulator.lab.sides import Side, readdressed
from emulator.lab.store import Event, Object, Ref, Store, ref_of
from emulator.lab.target_health import Findings
from emulator.plan.model import Plan, Route
from emulator.proxy.conntrack import served


class Addons(NamedTuple):
    """What a cluster has of itself: it comes with the first Service (or at once), after the user's own pods."""

    objects: Sequence[Object] = ()
    at_once: bool = False

    def lacking(self, given: Mapping[Ref, Object], *, begun: bool) -> list[Object]:
        """Those to make now; ``begun`` if they had come before."""
        return missing_addons(
            self.objects,
            lambda obj: ref_of(obj) in given,
            begun=begun,
            wanted=self.at_once or any((ref.group, ref.kind) == ("", "Service") for ref in given),
        )


class Reconciler:
    """A lab's state, and the changes of it. One at a time: whoever calls holds the lab's lock."""

    def __init__(
        self,
        topology: Topology,
        maker: PlanMaker,
        machinery: Machinery,
        clocks: PodClocks,
        addons: Addons,
        progress: Progress,
    ) -> None:
        self.topology = topology
        self.store = Store()
        self.given: dict[Ref, Object] = {}  # by users, and the addons
        self.planned: Planned | None = None  # in force; None before the first change
        self.damage = Damage()
        self.broken = ""  # why nothing can be changed any more
        self.stuck = ""  # why what should have followed by itself did not
        self._maker = maker
        self._machinery = machinery
        self._clocks = clocks
        self._addons = addons
        self._addons_begun = False
        self._progress = progress
        self._ipam: Ipam = maker.style.ipam(topology)
        self._manifests: Manifests | None = None  # the objects given, by kind
        self._heard = 0  # when the findings of health checks in force were made, by the monotonic clock (ns)

    @property
    def current(self) -> Planned:
        """What is in force. Raises UserError before the first change."""
        if self.planned is None:
            raise UserError("the lab has not started yet")
        return self.planned

    def check_whole(self) -> None:
        """Raises UserError if the lab is broken."""
        if self.broken:
            raise UserError(f"this lab is broken: {self.broken}", hint="take it down: `cnilab down`")

    # What users wish

    def change(
        self,
        given: dict[Ref, Object],
        *,
        gone: frozenset[str] = frozenset(),
        ended: frozenset[str] = frozenset(),
        readiness: Mapping[str, bool] | None = None,
        available: frozenset[str] = frozenset(),
        grace: float | None = None,
    ) -> list[Event]:
        """Make the cluster as ``given``, and as pods have come to be: deleted (``gone``, in ``grace`` seconds), at
        their ``ended``, ready or not, or ``available``. Returns what changed in the store."""
        self.check_whole()
        extra = self._addons.lacking(given, begun=self._addons_begun)
        given = {**given, **{ref_of(obj): obj for obj in extra}}
        manifests = Manifests.following(given.values(), self._manifests)
        ipam = self._ipam.copy()
        previous = self.planned
        before = previous.cluster if previous is not None else None
        cluster = assemble(
            self.topology,
            manifests,
            ipam,
            before,
            gone=gone,
            ended=ended,
            readiness=readiness,
            available=available,
            down=self.damage.down,
        )
        self._maker.check(cluster)
        planned = self._maker.plan(cluster, previous)
        damage = self.damage.after(before, cluster)
        old = self._side(previous, self.damage) if previous is not None else Side(None)
        new = self._side(planned, damage)
        self._reach(old, new, self._routes_to_await(old, new))
        planned = self._reported(planned, ipam)
        if planned.cluster is not cluster and planned.cluster.services:
            # Only now are the addresses known that CNI plugins gave: endpoints, and the rules that lead to them, follow
            known = self._side(planned, damage)
            planned = self._maker.with_endpoints(planned, cluster, damage.down)
            self._reach(known, self._side(planned, damage), ())
        before_given = self.given
        self._addons_begun = self._addons_begun or bool(extra)
        self._ipam, self.given, self.planned, self.damage = ipam, given, planned, damage
        self._manifests = manifests
        self._clocks.follow(before, planned.cluster, grace)
        events = self.store.commit(*self._publication().since(before, before_given))
        self._await_checks(planned.plan, previous.plan if previous is not None else None)
        self._forget_stale(before)  # last: the change holds, whether or not old flows could be looked through
        return events

    def advance(self) -> None:
        """Take the further steps of rollouts, as far as none of them has to wait for a pod to be ready or gone."""
        for _ in range(10 + 4 * len(self.current.cluster.pods)):
            before = self.current.cluster
            if not before.rolling:
                self.stuck = ""
            if not before.rolling or self.broken:
                return
            try:
                self.change(self.given)
            except CnilabError as error:
                self.stuck = f"the rollout of {', '.join(before.rolling)} does not go on: {error.message}"
                return
            self.stuck = ""
            now = self.current.cluster
            if now.pods == before.pods and now.replica_sets == before.replica_sets:
                return

    # What somebody breaks

    def set_faults(self, damage: Damage) -> None:
        """Have other faults of the plan in force than before."""
        planned = self.current
        self._reach(self._side(planned, self.damage), self._side(planned, damage), ())
        self.damage = damage

    def set_cable(self, machine: str, device: str, *, plugged: bool) -> None:
        """Have a cable pulled at its far end, or plugged in. Raises NotFound, UserError if the machine is down."""
        interface = cable(self.topology, machine, device, self.damage.down)
        self._machinery.set_link(interface.peer, interface.peer_device, up=plugged)
        self.damage = self.damage.with_cable(machine, device, plugged=plugged)

    def set_down(self, down: frozenset[str]) -> None:
        """Have exactly these nodes down."""
        before = self.current
        changed = self.damage.down ^ down
        damage = self.damage.with_down(down, before.cluster)
        planned = self._maker.with_endpoints(before, before.cluster, down)
        self._reach(self._side(before, self.damage), self._side(planned, damage), ())
        self.planned, self.damage = self._reported(planned, self._ipam), damage
        self.store.commit(*self._publication().of_nodes(changed, before.cluster))
        self.advance()

    # What health checks of load balancers find

    def follow_health(self, findings: Findings) -> None:
        """Have the load balancer send traffic to the targets that are healthy."""
        before = self.current
        if findings.at <= self._heard:
            return
        self._heard = findings.at
        if findings.targets == before.cluster.target_health:
            return
        cluster = msgspec.structs.replace(before.cluster, target_health=findings.targets)
        planned = self._maker.plan(cluster, before)
        self._reach(self._side(before, self.damage), self._side(planned, self.damage), ())
        self.planned = planned

    def _await_checks(self, plan: Plan, before: Plan | None) -> None:
        """Let new targets of load balancers be checked once before the change is done: else for a moment all of them
        would get traffic, or none of the new ones."""
        for checker in checkers(plan, before):
            if (findings := self._machinery.settled_health(checker)) is not None:
                self.follow_health(findings)

    # Steps of all of these

    def _side(self, planned: Planned, damage: Damage) -> Side:
        return Side(
            damage.effective(planned.plan, planned.cluster),
            [pod for pod in planned.cluster.pods if pod.node not in damage.down],
            [machine for machine in self.topology.machines if machine.name not in damage.down],
            planned.cluster,
            planned.proxy is not None,
            damage.unproxied,
        )

    def _routes_to_await(self, old: Side, new: Side) -> list[Route]:
        assert new.plan is not None
        assert new.cluster is not None
        dead = {item["place"].partition("/")[2] for item in self._machinery.daemons() if item["state"] != "running"}
        return routes_to_await(old.plan, new.plan, new.cluster, self.damage.cut_off | dead)

    def _reach(self, old: Side, new: Side, routes: Sequence[Route]) -> None:
        """Bring kernel and traffic from one side to the next; a failure that cannot be undone breaks the lab."""
        try:
            self._machinery.reach(old, new, routes, self._progress)
        except Exception as error:
            if getattr(error, "broken", False):
                self.broken = str(error)
            if self.planned is not None:  # pods that came back may have other addresses
                self.planned = self._reported(self.planned, self._ipam)
            raise

    def _reported(self, planned: Planned, ipam: Ipam) -> Planned:
        """With what only the machinery knows: what CNI plugins did, and the addresses that they gave to pods."""
        if not isinstance(ipam, PluginAddresses):
            return planned
        addresses = self._machinery.addresses()
        pods = tuple(readdressed(pod, addresses) for pod in planned.cluster.pods)
        for pod in pods:
            if pod.ns in addresses:
                ipam.learn(pod.node, pod.key, pod.addresses)
        cluster = msgspec.structs.replace(planned.cluster, pods=pods)
        return planned._replace(cluster=cluster, plan=self._machinery.annotated(planned.plan))

    def _publication(self) -> Publication:
        assert self._manifests is not None, "nothing is published before the first change"
        return Publication(
            self.current.cluster, self.given, self._manifests, self.damage.down, self._clocks.deletions, self.store.get
        )

    def _forget_stale(self, before: Cluster | None) -> None:
        """Have the nodes forget UDP flows to endpoints that are gone, as kube-proxy does after each sync."""
        cluster = self.current.cluster
        if before is None or self.current.proxy is None:
            return
        if before.services is cluster.services and before.slices is cluster.slices:
            return
        if self._maker.cleans_conntrack(self.current) and not (known := served(cluster)).empty:
            down, dead = self.damage.down, self.damage.unproxied
            nodes = [node.ns for node in cluster.nodes if node.name not in down and node.ns not in dead]
            self._machinery.forget_stale(nodes, known)
