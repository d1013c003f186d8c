"""The two sides of a change, and what goes, comes and stays between them: places, servers, pods' commands.

Told here, and done by :mod:`emulator.lab.machinery`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from emulator.cluster.model import Cluster, Machine, Pod
from emulator.dns.resolv_conf import Resolvers
from emulator.kernel.commands import Command
from emulator.lab.pods import commands_of, servers_of
from emulator.plan.diff import Operation
from emulator.plan.model import Namespace, Plan
from emulator.traffic.model import Server


class Side(NamedTuple):
    """The lab before or after a change: its plan (None before the first), and the pods and machines that are up."""

    plan: Plan | None
    pods: Sequence[Pod] = ()
    machines: Sequence[Machine] = ()
    cluster: Cluster | None = None
    proxied: bool = False  # whether a service proxy runs
    unproxied: frozenset[str] = frozenset()  # the namespaces where it has died


class Change:
    """What goes, comes and stays between two sides of a change. Only places where something differs are looked at."""

    def __init__(self, old: Side, new: Side, operations: Sequence[Operation]) -> None:
        self.old = old
        self.new = new
        self.operations = operations
        removed = [step.old for step in operations if step.verb == "remove"]
        self.dying = [item.ns for item in removed if isinstance(item, Namespace)]
        dying = self._dying = set(self.dying)
        added = [step.new for step in operations if step.verb == "add"]
        self.coming = [item.ns for item in added if isinstance(item, Namespace) and item.ns not in dying]
        self._before = {pod.key: pod for pod in old.pods}
        self._after = {pod.key: pod for pod in new.pods}
        keys = self._before.keys() | self._after.keys()
        self._keys = {key for key in keys if not _same(self._before.get(key), self._after.get(key))}
        self._keys |= {pod.key for pod in old.pods if pod.ns in dying}
        affected = [
            pod for key in self._keys for pod in (self._before.get(key), self._after.get(key)) if pod is not None
        ]
        here = {machine.ns for machine in old.machines}
        there = {machine.ns for machine in new.machines}
        self._places = {pod.ns for pod in affected} | (here ^ there) | dying
        self.leaving = [pod for pod in old.pods if not pod.host_network and pod.ns in dying]
        self.going = [machine for machine in old.machines if machine.ns in dying]
        self.arriving = [machine for machine in new.machines if machine.ns not in here or machine.ns in dying]

    def address(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Give pods of the new side the addresses that they turned out to have."""
        if addresses:
            pods = [readdressed(pod, addresses) for pod in self.new.pods]
            self.new = self.new._replace(pods=pods)
            self._after = {pod.key: pod for pod in pods}

    def servers(self, side: Side) -> dict[str, Server]:
        """What answers in the places that the change concerns."""
        return servers_of(
            [pod for pod in side.pods if pod.ns in self._places],
            [machine for machine in side.machines if machine.ns in self._places],
        )

    def servers_to_stop(self) -> list[str]:
        after = self.servers(self.new)
        return [ns for ns in self.servers(self.old) if ns in self._dying or ns not in after]

    def servers_to_start(self) -> list[Server]:
        before = self.servers(self.old)
        return [
            server for ns, server in self.servers(self.new).items() if ns in self._dying or before.get(ns) != server
        ]

    def commands_to_stop(self) -> list[str]:
        return [key for key in self._keys if key in self._before and self._runs_anew(key)]

    def commands_to_start(self, resolvers: Resolvers) -> list[Command]:
        return [
            command
            for key in self._keys
            if key in self._after and self._runs_anew(key)
            for command in commands_of(self._after[key], resolvers)
        ]

    def _runs_anew(self, key: str) -> bool:
        """Whether the pod's processes end, begin, or both."""
        old, new = self._before.get(key), self._after.get(key)
        if old is None or new is None or old.ns in self._dying:
            return True
        return commands_of(old) != commands_of(new)


def readdressed(pod: Pod, addresses: Mapping[str, tuple[str, ...]]) -> Pod:
    """The pod with the addresses of its namespace, or the very same if it has them, or there are none for it."""
    found = addresses.get(pod.ns, pod.addresses)
    return pod if found == pod.addresses else msgspec.structs.replace(pod, addresses=found)


def _same(old: Pod | None, new: Pod | None) -> bool:
    return old is new or old == new
