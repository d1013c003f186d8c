"""What somebody has broken in a lab on purpose: nodes that are down, cables that are pulled, faults of the plan.

The plan does not know of it. What the kernel holds is the plan with the damage taken into account.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from emulator.cluster.model import Cluster, Interface, Topology
from emulator.errors import NotFound, UserError
from emulator.lab.effective import without_nodes
from emulator.plan.faults import PlanFault, ProxyStopFault, check, in_force, overlay
from emulator.plan.model import Plan


@dataclass(frozen=True)
class Damage:
    """``down``: names of nodes; ``unplugged``: the near ends (machine, device) of cables that were pulled; ``faults``:
    those that were struck and not mended."""

    down: frozenset[str] = frozenset()
    unplugged: frozenset[tuple[str, str]] = frozenset()
    faults: tuple[PlanFault, ...] = ()

    # What follows from it

    def effective(self, plan: Plan, cluster: Cluster) -> Plan:
        """What the namespaces hold of a plan."""
        return overlay(without_nodes(plan, cluster, self.down), self.faults)

    def lines(self, plan: Plan, cluster: Cluster) -> tuple[str, ...]:
        """A line for people for each fault."""
        return in_force(self.faults, without_nodes(plan, cluster, self.down)) if self.faults else ()

    @property
    def cut_off(self) -> frozenset[str]:
        """The machines that may reach nobody because of it, or be reached by nobody."""
        cut_off = self.down | {machine for machine, _ in self.unplugged}
        return cut_off | {fault.place for fault in self.faults if not fault.ns.startswith("pod/")}

    @property
    def unproxied(self) -> frozenset[str]:
        """The namespaces whose service proxy does not run any more."""
        return frozenset(fault.ns for fault in self.faults if isinstance(fault, ProxyStopFault))

    # More of it, and less

    def struck(self, fault: PlanFault, plan: Plan, cluster: Cluster) -> Damage:
        """With one more fault, in place of another of the same key. Raises UserError if there is nothing in the plan
        for it to break."""
        check(without_nodes(plan, cluster, self.down), fault)
        return replace(self, faults=(*(other for other in self.faults if other.key != fault.key), fault))

    def mended(self, chosen: Collection[PlanFault]) -> Damage:
        """Without these faults."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault not in chosen))

    def with_cable(self, machine: str, device: str, *, plugged: bool) -> Damage:
        """With a cable pulled, or plugged in again."""
        changed = frozenset({(machine, device)})
        return replace(self, unplugged=self.unplugged - changed if plugged else self.unplugged | changed)

    def with_down(self, down: frozenset[str], cluster: Cluster) -> Damage:
        """With exactly these nodes down. One that lost its power has forgotten what was set in it, and its cables are
        new, and plugged in."""
        changed = self.down ^ down
        pods = {pod.ns for pod in cluster.pods if pod.node in changed}
        return Damage(
            down,
            frozenset(pair for pair in self.unplugged if pair[0] not in changed),
            tuple(fault for fault in self.faults if fault.place not in changed and fault.ns not in pods),
        )

    def after(self, old: Cluster | None, now: Cluster) -> Damage:
        """Without the faults of pods that go from one cluster to the next: whoever comes under their names is
        another."""
        if not self.faults:
            return self
        known = {pod.key: pod.incarnation for pod in old.pods} if old is not None else {}
        pods = {pod.ns for pod in now.pods if known.get(pod.key) == pod.incarnation}
        kept = tuple(fault for fault in self.faults if not fault.ns.startswith("pod/") or fault.ns in pods)
        return replace(self, faults=kept)


def cable(topology: Topology, machine: str, device: str, down: Collection[str]) -> Interface:
    """The interface whose cable is to be pulled or plugged in. Raises NotFound, UserError if one of the cable's two
    machines is ``down``."""
    interfaces = {
        interface.name: interface
        for found in topology.machines
        if found.name == machine
        for interface in found.interfaces
    }
    if device not in interfaces:
        raise NotFound(f"{machine} has no interface {device!r}", hint=f"it has {', '.join(interfaces)}")
    if machine in down:
        raise UserError(f"{machine} is down: its cables are gone with it")
    interface = interfaces[device]
    if interface.peer in down:
        raise UserError(f"{interface.peer}, at the other end of that cable, is down")
    return interface
