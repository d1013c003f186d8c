"""Pods attached by real CNI plugins: a container runtime for each node.

::

    lab process ──thread──▶ node's network, mount and host name namespaces
                            /run/netns/default_web-0     the pod's namespace, bound for as long as it is attached
                            /var/lib/cni                 the node's own: leases of host-local, our cache of results
                            ──▶ plugin, plugin, ...      each a process with the configuration on standard input

Nodes work side by side, pods of one node one after the other: what a plugin makes can then be told from what others
make. A failing ADD is undone and refuses the change. Everything else that plugins do wrong is remembered as a problem:
a result that is not true, a DEL that fails or leaves things behind, a child that holds on to standard output.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from emulator.errors import ApplyError
from emulator.kernel.attachment_records import AttachmentRecords, Finding, Problem, name_of, pod_of, problem_of
from emulator.kernel.machine import PLUGIN_STATE, own_plugin_state
from emulator.kernel.namespaces import enter, in_parallel
from emulator.kernel.netlink import Channel
from emulator.kernel.node_attachments import NodeRuntime
from emulator.kernel.plugin_process import PATIENCE
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, CniAttachment, Plan

__all__ = ["Attachments", "Finding", "Problem"]

Done = Callable[[AnyObject], None]
T = TypeVar("T")


class Attachments:
    """All attachments of a lab. Changes come one at a time, the rest from any thread. ``patience`` is the time in
    seconds that one plugin may take."""

    def __init__(self, net: LabNet, patience: float = PATIENCE) -> None:
        self._net = net
        self._patience = patience
        self._records = AttachmentRecords()
        self._prepared: set[str] = set()

    # ------------------------------------------------------------ changing

    def add(self, items: Sequence[CniAttachment], done: Done) -> None:
        """Attach pods. Raises PluginError for the first that fails, which is detached again; others may be attached."""

        def attach(node: NodeRuntime, item: CniAttachment) -> None:
            node.attach(item)
            with self._records.lock:
                done(item)

        self._on_nodes(items, attach)

    def remove(self, items: Sequence[CniAttachment], dead: Iterable[str], done: Done) -> None:
        """Detach pods. A plugin that fails is no reason to keep a pod, but a problem. Nodes that are ``dead`` are gone
        with everything in them: there nothing is run."""
        dead = set(dead)
        for ns in dead:
            self._prepared.discard(ns)
            self._records.makers.pop(ns, None)
        for item in items:
            if item.node in dead:
                self._records.forget(item)
                done(item)

        def detach(node: NodeRuntime, item: CniAttachment) -> None:
            node.detach(item)
            with self._records.lock:
                done(item)

        self._on_nodes([item for item in items if item.node not in dead], detach)

    # ------------------------------------------------------------ looking

    def holds(self, ns: str) -> bool:
        """Whether a pod is attached by plugins."""
        return ns in self._records.held

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """The addresses of attached pods (no prefix length) by namespace, as plugins reported them."""
        return {
            ns: tuple(address.partition("/")[0] for address in held.result.addresses)
            for ns, held in list(self._records.held.items())
        }

    def devices_in(self, ns: str) -> frozenset[str]:
        """The devices that plugins made in a namespace of the plan."""
        return frozenset(self._records.makers[ns]) if ns in self._records.makers else frozenset()

    def annotated(self, plan: Plan) -> Plan:
        """The plan with what came of its attachments; fragments without any are the very same."""
        if not self._records.held:
            return plan
        fragments = {
            name: self._annotated(objects) if any(isinstance(item, CniAttachment) for item in objects) else objects
            for name, objects in plan.fragments.items()
        }
        return msgspec.structs.replace(plan, fragments=fragments)

    def _annotated(self, objects: tuple[AnyObject, ...]) -> tuple[AnyObject, ...]:
        told = []
        for item in objects:
            held = self._records.held.get(item.ns) if isinstance(item, CniAttachment) else None
            if held is not None and isinstance(item, CniAttachment):
                item = msgspec.structs.replace(item, devices=held.devices, addresses=held.result.addresses)
            told.append(item)
        return objects if all(new == old for new, old in zip(told, objects, strict=True)) else tuple(told)

    def problems(self) -> list[Problem]:
        """Everything that plugins did wrong, of pods that are gone too."""
        with self._records.lock:
            held = list(self._records.held.values())
            found = list(self._records.past)
        owners: defaultdict[str, list[CniAttachment]] = defaultdict(list)
        for each in held:
            found += each.conduct
            found += [problem_of(each.item, "untruth", text, command="ADD") for text in each.untruths]
            for address in each.result.addresses:
                owners[address.partition("/")[0]].append(each.item)
        for address, items in owners.items():
            for item in items[1:]:
                text = f"{address} is the address of {pod_of(items[0])} on {name_of(items[0].node)} too"
                found.append(problem_of(item, "clash", text))
        return found

    def differences(self) -> list[str]:
        """Between the results of all attachments and what the kernel shows now."""

        def compare(node: NodeRuntime, item: CniAttachment) -> list[str]:
            return [f"{item.ns}: {text}" for text in node.compare(item)]

        found = self._on_nodes([held.item for held in self._records.held.values()], compare)
        return [line for lines in found for line in lines]

    def logs(self) -> dict[str, str]:
        """Every plugin call, by ``node/n1/cni``."""
        return {f"{ns}/cni": "\n".join(lines) + "\n" for ns, lines in list(self._records.logs.items())}

    # ------------------------------------------------------------ commands of the whole chain

    def check(self, pods: Sequence[str] = ()) -> list[Finding]:
        """CHECK attached pods (namespaces of the plan; none: all), and compare their results with the kernel."""

        def ask(node: NodeRuntime, item: CniAttachment) -> Finding:
            return node.check(item)

        wanted = [held.item for ns, held in self._records.held.items() if not pods or ns in pods]
        return self._on_nodes(wanted, ask)

    def status(self) -> list[Finding]:
        """Ask on every node with attachments whether the plugins can serve ADD."""
        return self._on_nodes(list(self._records.networks.values()), lambda node, item: node.status(item))

    def collect_garbage(self) -> list[Finding]:
        """Have the plugins on every node drop what belongs to none of our attachments."""
        return self._on_nodes(list(self._records.networks.values()), lambda node, item: node.collect_garbage(item))

    # ------------------------------------------------------------ inside

    def _on_nodes(self, items: Sequence[CniAttachment], act: Callable[[NodeRuntime, CniAttachment], T]) -> list[T]:
        """Do something for each attachment, in its node; nodes side by side. Raises the first error, once all nodes
        have ended; a node stops at its first."""
        grouped: dict[str, list[CniAttachment]] = {}
        for item in items:
            grouped.setdefault(item.node, []).append(item)

        def visit(ns: str) -> Callable[[], list[T]]:
            def body() -> list[T]:
                enter(self._net.handle(ns))
                with self._node(ns) as node:
                    return [act(node, item) for item in grouped[ns]]

            return body

        found: list[T] = []
        results = in_parallel({ns: visit(ns) for ns in grouped}, os.cpu_count() or 1)
        for result in (results[ns] for ns in grouped):
            if isinstance(result, Exception):
                raise result
            found += result
        return found

    @contextmanager
    def _node(self, ns: str) -> Iterator[NodeRuntime]:
        if ns not in self._prepared:
            try:
                own_plugin_state()
            except OSError as error:
                raise ApplyError(f"failed to give {ns} a {PLUGIN_STATE} of its own: {error}") from error
            self._prepared.add(ns)
        with Channel() as channel:
            yield NodeRuntime(self._records, self._net, self._patience, ns, channel)
