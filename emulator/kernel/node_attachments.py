"""The container runtime of one node: what it does for a pod, by the plugins of its chain.

A failing ADD is undone and refuses the change. Everything else that plugins do wrong is remembered as a problem:
a result that is not true, a DEL that fails or leaves things behind, a child that holds on to standard output.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from emulator.cni.chain import Answer, Call, Chain, Container
from emulator.cni.netconf import from_text
from emulator.cni.results import Result
from emulator.errors import ApplyError, CnilabError, PluginError
from emulator.kernel import attachment_cache, offloads
from emulator.kernel.attachment_records import (
    AttachmentRecords,
    Finding,
    Held,
    Problem,
    name_of,
    pod_of,
    problem_of,
)
from emulator.kernel.footprint import Footprint, iptables_backend, left_behind, read_footprint
from emulator.kernel.netlink import Channel
from emulator.kernel.plugin_process import descendants, execute
from emulator.kernel.pod_binding import bind, mounts_of, open_pod, unbind
from emulator.kernel.result_check import OF_THE_KERNEL, untruths
from emulator.kernel.tables import Device, read_devices, read_tables
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, CniAttachment, Offloads, PluginDevice


class _Pod(NamedTuple):
    """A pod as its node's runtime sees it."""

    descriptor: int
    channel: Channel
    container: Container


class NodeRuntime:
    """The container runtime of one node, in a thread that has entered it."""

    def __init__(self, records: AttachmentRecords, net: LabNet, patience: float, ns: str, channel: Channel) -> None:
        self._records = records
        self._net = net
        self._patience = patience
        self.ns = ns
        self._channel = channel
        self._backend = iptables_backend()
        self._before: Footprint | None = None
        self._remarks: list[tuple[str, str, str]] = []
        self._witness: Callable[[Call], None] = _look_away

    def attach(self, item: CniAttachment) -> None:
        chain = self._chain(item)
        self._require_versions(chain, item)
        before = self._before if self._before is not None else read_footprint(self._channel, self._backend)
        with self._pod(item) as pod:
            makers = _Makers(self._channel, pod.channel)
            self._witness = makers.look
            try:
                raw, result = chain.add(pod.container)
            except PluginError as error:
                self._report_failed(item, pod, before)
                raise _about(item, error) from None
            finally:
                self._witness = _look_away
            attachment_cache.store(item, raw, pod.container)
            after = read_footprint(self._channel, self._backend)
            in_pod = read_tables(pod.channel)
            held = Held(
                item,
                raw,
                result,
                self._devices(item, result, makers, after.devices, in_pod.devices),
                after.traces - before.traces,
                tuple(untruths(result, pod.container, in_pod, read_tables(self._channel))),
                self._conduct(item),
            )
            self._before = after
            with self._records.lock:
                self._records.held[item.ns] = held
                self._records.networks[self.ns] = item
            if not item.offloads:
                self._wire_accurate(item, held.devices, pod.descriptor)

    def detach(self, item: CniAttachment) -> None:
        held = self._records.held.get(item.ns)
        chain = self._chain(item)
        addresses = held.result.addresses if held is not None else ()
        found: list[Problem] = []
        with self._pod(item) as pod:
            try:
                chain.delete(pod.container, attachment_cache.load(item))
            except PluginError as error:
                found.append(problem_of(item, "failure", error.message, error.plugin, error.command))
            in_pod = [name for name in read_devices(pod.channel) if name not in OF_THE_KERNEL]
            number = os.fstat(pod.descriptor).st_ino
        unbind(item.ns)
        attachment_cache.drop(item)
        now = read_footprint(self._channel, self._backend)
        self._before = now
        left = [f"device {name} in the pod" for name in in_pod]
        if held is not None:
            left += left_behind(held.made, now, item.container, addresses)
        left += [f"a mount of the pod's namespace at {path}" for path in mounts_of(number)]
        left += [f"process {name} (pid {pid})" for pid, name in descendants(item.container)]
        found += [problem_of(item, "leak", f"left behind after DEL: {thing}", command="DEL") for thing in left]
        found += self._conduct(item)
        with self._records.lock:
            self._records.past.extend([*(held.conduct if held is not None else ()), *found])
        self._records.forget(item)
        makers = self._records.makers[self.ns]
        for name in makers.keys() - now.devices.keys():
            del makers[name]

    def compare(self, item: CniAttachment) -> list[str]:
        """The result against what the kernel shows now."""
        held = self._records.held[item.ns]
        with self._pod(item) as pod:
            return untruths(held.result, pod.container, read_tables(pod.channel), read_tables(self._channel))

    def check(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        skipped = "disableCheck" if chain.network.disable_check else ""
        try:
            with self._pod(item) as pod:
                complaints = [error.message for error in chain.check(pod.container, attachment_cache.load(item))]
        except PluginError as error:
            complaints = [error.message]
        except CnilabError as error:
            complaints, skipped = [], error.message
        complaints += self.compare(item)
        return Finding(name_of(self.ns), pod_of(item), tuple(complaints), skipped)

    def status(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        if not chain.knows_status:
            return Finding(
                name_of(self.ns), skipped=f"the list is of CNI {chain.network.version}: STATUS came with 1.1.0"
            )
        return Finding(name_of(self.ns), complaints=tuple(error.message for error in chain.status()))

    def collect_garbage(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        if chain.network.disable_gc:
            return Finding(name_of(self.ns), skipped="disableGC")
        ours = [held.item for held in self._records.held.values() if held.item.node == self.ns]
        valid = [(each.container, each.device) for each in ours]
        complaints = [error.message for error in self._drop_stale(chain, valid)]
        complaints += [error.message for error in chain.collect_garbage(valid)]
        known = chain.knows_status
        skipped = "" if known else f"the list is of CNI {chain.network.version}: plugins learn of GC from 1.1.0 on"
        return Finding(name_of(self.ns), complaints=tuple(complaints), skipped=skipped)

    def _drop_stale(self, chain: Chain, valid: Sequence[tuple[str, str]]) -> Iterator[PluginError]:
        """DEL for cached attachments of the network that are none of ours, as libcni's GCNetworkList."""
        for path, container, result in attachment_cache.stale(chain.network.name, valid):
            try:
                chain.delete(container, result)
                os.unlink(path)
            except PluginError as error:
                yield error

    # ------------------------------------------------------------ plugins

    def _chain(self, item: CniAttachment) -> Chain:
        self._remarks = []

        def run(call: Call) -> Answer:
            begun = time.monotonic()
            try:
                answer = execute(call, item.plugins, self._patience)
            except PluginError as error:
                self._log(call, item, 0.0, error.message)
                raise
            self._witness(call)
            self._log(call, item, time.monotonic() - begun, _outcome(answer))
            return answer

        return Chain(from_text(item.network), item.plugins, run, lambda *remark: self._remarks.append(remark))

    def _require_versions(self, chain: Chain, item: CniAttachment) -> None:
        kinds = tuple(plugin["type"] for plugin in chain.network.plugins)
        spoken = (chain.network.version, (*item.plugins, *kinds))
        if spoken in self._records.spoken:
            return
        try:
            chain.require_versions()
        except PluginError as error:
            raise _about(item, error) from None
        self._records.spoken.add(spoken)

    def _log(self, call: Call, item: CniAttachment, seconds: float, outcome: str) -> None:
        whom = f" {pod_of(item)}" if "CNI_CONTAINERID" in call.environment else ""
        stamp = time.strftime("%H:%M:%S")
        self._records.logs[self.ns].append(f"{stamp} {call.command} {call.plugin}{whom} {seconds:.3f} s: {outcome}")

    def _conduct(self, item: CniAttachment) -> list[Problem]:
        taken, self._remarks = self._remarks, []
        return [problem_of(item, "conduct", f"plugin {p}, {c}: {text}", p, c) for p, c, text in taken]

    def _report_failed(self, item: CniAttachment, pod: _Pod, before: Footprint) -> None:
        """Remember what a failed ADD left behind once it was undone."""
        conduct = self._conduct(item)
        self._before = now = read_footprint(self._channel, self._backend)
        left = [f"device {name} in the pod" for name in read_devices(pod.channel) if name not in OF_THE_KERNEL]
        left += left_behind(now.traces - before.traces, now, item.container, ())
        left += [f"process {name} (pid {pid})" for pid, name in descendants(item.container)]
        leaks = [problem_of(item, "leak", f"left behind after a failed ADD: {thing}", command="DEL") for thing in left]
        with self._records.lock:
            self._records.past.extend([*conduct, *leaks])

    def _devices(
        self,
        item: CniAttachment,
        result: Result,
        makers: _Makers,
        in_node: Mapping[str, Device],
        in_pod: Mapping[str, Device],
    ) -> tuple[PluginDevice, ...]:
        """Who made which device, and those of earlier attachments that the result names (a bridge)."""
        known = self._records.makers
        known[self.ns] |= makers.in_node
        known[item.ns] = dict(makers.in_pod)
        shared = [
            each.name for each in result.interfaces if not each.sandbox and each.name in known[self.ns].keys() & in_node
        ]
        numbers = {device.number: name for name, device in in_node.items()}
        found = []
        for ns, names, devices in (
            (self.ns, dict.fromkeys([*makers.in_node, *shared]), in_node),
            (item.ns, makers.in_pod, in_pod),
        ):
            for name in names:
                if (device := devices.get(name)) is not None:
                    bridge = numbers.get(device.master, "") if ns == self.ns else ""
                    found.append(PluginDevice(ns, name, device.kind, device.mac, device.mtu, known[ns][name], bridge))
        return tuple(found)

    def _wire_accurate(self, item: CniAttachment, devices: Sequence[PluginDevice], pod: int) -> None:
        place = {self.ns: self._net.handle(self.ns).net, item.ns: pod}
        for device in devices:
            try:
                wanted = Offloads(ns=device.ns, device=device.name)
                offloads.switch([wanted], lambda ns: place[ns], _done)
            except ApplyError:
                continue  # not every kind of device has offloads to switch

    @contextmanager
    def _pod(self, item: CniAttachment) -> Iterator[_Pod]:
        """The pod's namespace, bound in the node as a runtime has it."""
        descriptor = open_pod(item.ns)
        try:
            path = bind(item.ns, descriptor)
            container = Container(item.container, path, item.device, item.args, json.loads(item.capabilities))
            with Channel(descriptor) as channel:
                yield _Pod(descriptor, channel, container)
        except BaseException:
            if item.ns not in self._records.held:
                unbind(item.ns)
            raise
        finally:
            os.close(descriptor)


class _Makers:
    """Which plugin made which device: those that are there after its ADD and were not before."""

    def __init__(self, node: Channel, pod: Channel) -> None:
        self._node, self._pod = node, pod
        self._known = set(read_devices(node)), {*read_devices(pod), *OF_THE_KERNEL}
        self.in_node: dict[str, str] = {}
        self.in_pod: dict[str, str] = {}

    def look(self, call: Call) -> None:
        """A plugin has run."""
        if call.command != "ADD":
            return
        for channel, known, makers in (
            (self._node, self._known[0], self.in_node),
            (self._pod, self._known[1], self.in_pod),
        ):
            for name in read_devices(channel):
                if name not in known:
                    known.add(name)
                    makers[name] = call.plugin


def _look_away(_: Call) -> None:
    """Nobody wants to know."""


def _done(_: AnyObject) -> None:
    """Nobody keeps a journal."""


def _outcome(answer: Answer) -> str:
    if answer.killed:
        return f"killed: {answer.killed}"
    words = "ok" if answer.code == 0 else f"status {answer.code}"
    stderr = " | ".join(answer.stderr.split("\n")).strip(" |")
    return f"{words}: {stderr[-500:]}" if stderr else words


def _about(item: CniAttachment, error: PluginError) -> PluginError:
    return PluginError(
        f"pod {pod_of(item)} on {name_of(item.node)}: {error.message}",
        plugin=error.plugin,
        command=error.command,
        hint=error.hint,
    )
