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

import base64
import json
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from emulator.cni.chain import Answer, Call, Chain, Container
from emulator.cni.netconf import from_text
from emulator.cni.results import Result
from emulator.errors import ApplyError, CnilabError, PluginError
from emulator.kernel import offloads
from emulator.kernel.footprint import RESULTS, Footprint, Trace, iptables_backend, left_behind, read_footprint
from emulator.kernel.machine import PLUGIN_STATE, own_plugin_state
from emulator.kernel.namespaces import enter, in_parallel
from emulator.kernel.netlink import Channel
from emulator.kernel.netns import NETNS_DIRECTORY, netns_path
from emulator.kernel.plugin_process import PATIENCE, descendants, execute
from emulator.kernel.result_check import OF_THE_KERNEL, untruths
from emulator.kernel.syscalls import MS_BIND, mount, umount
from emulator.kernel.tables import Device, read_devices, read_tables
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, CniAttachment, Offloads, Plan, PluginDevice

Done = Callable[[AnyObject], None]
T = TypeVar("T")

CACHE_KIND = "cniCacheV1"  # libcni/api.go
REMEMBERED = 200  # problems of pods that are gone
LOG_LINES = 1000  # a node's log of plugin calls keeps that many


class Problem(msgspec.Struct, frozen=True):
    """What plugins did wrong. ``pod`` is ``namespace/name``; ``kind`` is ``failure`` (a command that failed),
    ``untruth`` (a result that is not so), ``leak`` (left behind after DEL), ``conduct`` or ``clash`` (two pods with one
    address)."""

    pod: str
    node: str
    kind: str
    text: str
    plugin: str = ""
    command: str = ""


class Finding(msgspec.Struct, frozen=True):
    """What a command of the whole chain came to, for one pod (CHECK) or node (STATUS, GC). Empty ``complaints``: well.
    ``skipped`` says why nothing was asked."""

    node: str
    pod: str = ""
    complaints: tuple[str, ...] = ()
    skipped: str = ""


@dataclass
class _Held:
    """An attachment in force."""

    item: CniAttachment
    raw: dict[str, Any]
    result: Result
    devices: tuple[PluginDevice, ...]
    made: frozenset[Trace]
    untruths: tuple[str, ...] = ()
    conduct: list[Problem] = field(default_factory=list)


class _Pod(NamedTuple):
    """A pod as its node's runtime sees it."""

    descriptor: int
    channel: Channel
    container: Container


class Attachments:
    """All attachments of a lab. Changes come one at a time, the rest from any thread. ``patience`` is the time in
    seconds that one plugin may take."""

    def __init__(self, net: LabNet, patience: float = PATIENCE) -> None:
        self._net = net
        self._patience = patience
        self._held: dict[str, _Held] = {}  # by the pod's namespace
        self._makers: defaultdict[str, dict[str, str]] = defaultdict(dict)  # plugin by namespace and device
        self._networks: dict[str, CniAttachment] = {}  # by node: one that tells its configuration
        self._prepared: set[str] = set()
        self._spoken: set[tuple[str, tuple[str, ...]]] = set()
        self._past: deque[Problem] = deque(maxlen=REMEMBERED)
        self._logs: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=LOG_LINES))
        self._lock = threading.Lock()

    # ------------------------------------------------------------ changing

    def add(self, items: Sequence[CniAttachment], done: Done) -> None:
        """Attach pods. Raises PluginError for the first that fails, which is detached again; others may be attached."""

        def attach(node: _Node, item: CniAttachment) -> None:
            node.attach(item)
            with self._lock:
                done(item)

        self._on_nodes(items, attach)

    def remove(self, items: Sequence[CniAttachment], dead: Iterable[str], done: Done) -> None:
        """Detach pods. A plugin that fails is no reason to keep a pod, but a problem. Nodes that are ``dead`` are gone
        with everything in them: there nothing is run."""
        dead = set(dead)
        for ns in dead:
            self._prepared.discard(ns)
            self._makers.pop(ns, None)
        for item in items:
            if item.node in dead:
                self._forget(item)
                done(item)

        def detach(node: _Node, item: CniAttachment) -> None:
            node.detach(item)
            with self._lock:
                done(item)

        self._on_nodes([item for item in items if item.node not in dead], detach)

    # ------------------------------------------------------------ looking

    def holds(self, ns: str) -> bool:
        """Whether a pod is attached by plugins."""
        return ns in self._held

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """The addresses of attached pods (no prefix length) by namespace, as plugins reported them."""
        return {
            ns: tuple(address.partition("/")[0] for address in held.result.addresses)
            for ns, held in list(self._held.items())
        }

    def devices_in(self, ns: str) -> frozenset[str]:
        """The devices that plugins made in a namespace of the plan."""
        return frozenset(self._makers[ns]) if ns in self._makers else frozenset()

    def annotated(self, plan: Plan) -> Plan:
        """The plan with what came of its attachments; fragments without any are the very same."""
        if not self._held:
            return plan
        fragments = {
            name: self._annotated(objects) if any(isinstance(item, CniAttachment) for item in objects) else objects
            for name, objects in plan.fragments.items()
        }
        return msgspec.structs.replace(plan, fragments=fragments)

    def _annotated(self, objects: tuple[AnyObject, ...]) -> tuple[AnyObject, ...]:
        told = []
        for item in objects:
            held = self._held.get(item.ns) if isinstance(item, CniAttachment) else None
            if held is not None and isinstance(item, CniAttachment):
                item = msgspec.structs.replace(item, devices=held.devices, addresses=held.result.addresses)
            told.append(item)
        return objects if all(new == old for new, old in zip(told, objects, strict=True)) else tuple(told)

    def problems(self) -> list[Problem]:
        """Everything that plugins did wrong, of pods that are gone too."""
        with self._lock:
            held = list(self._held.values())
            found = list(self._past)
        owners: defaultdict[str, list[CniAttachment]] = defaultdict(list)
        for each in held:
            found += each.conduct
            found += [_problem(each.item, "untruth", text, command="ADD") for text in each.untruths]
            for address in each.result.addresses:
                owners[address.partition("/")[0]].append(each.item)
        for address, items in owners.items():
            for item in items[1:]:
                text = f"{address} is the address of {_pod(items[0])} on {_name(items[0].node)} too"
                found.append(_problem(item, "clash", text))
        return found

    def differences(self) -> list[str]:
        """Between the results of all attachments and what the kernel shows now."""

        def compare(node: _Node, item: CniAttachment) -> list[str]:
            return [f"{item.ns}: {text}" for text in node.compare(item)]

        found = self._on_nodes([held.item for held in self._held.values()], compare)
        return [line for lines in found for line in lines]

    def logs(self) -> dict[str, str]:
        """Every plugin call, by ``node/n1/cni``."""
        return {f"{ns}/cni": "\n".join(lines) + "\n" for ns, lines in list(self._logs.items())}

    # ------------------------------------------------------------ commands of the whole chain

    def check(self, pods: Sequence[str] = ()) -> list[Finding]:
        """CHECK attached pods (namespaces of the plan; none: all), and compare their results with the kernel."""

        def ask(node: _Node, item: CniAttachment) -> Finding:
            return node.check(item)

        wanted = [held.item for ns, held in self._held.items() if not pods or ns in pods]
        return self._on_nodes(wanted, ask)

    def status(self) -> list[Finding]:
        """Ask on every node with attachments whether the plugins can serve ADD."""
        return self._on_nodes(list(self._networks.values()), lambda node, item: node.status(item))

    def collect_garbage(self) -> list[Finding]:
        """Have the plugins on every node drop what belongs to none of our attachments."""
        return self._on_nodes(list(self._networks.values()), lambda node, item: node.collect_garbage(item))

    # ------------------------------------------------------------ inside

    def _on_nodes(self, items: Sequence[CniAttachment], act: Callable[[_Node, CniAttachment], T]) -> list[T]:
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
    def _node(self, ns: str) -> Iterator[_Node]:
        if ns not in self._prepared:
            try:
                own_plugin_state()
            except OSError as error:
                raise ApplyError(f"failed to give {ns} a {PLUGIN_STATE} of its own: {error}") from error
            self._prepared.add(ns)
        with Channel() as channel:
            yield _Node(self, ns, channel)

    def _forget(self, item: CniAttachment) -> None:
        with self._lock:
            self._held.pop(item.ns, None)
            self._makers.pop(item.ns, None)


class _Node:
    """The container runtime of one node, in a thread that has entered it."""

    def __init__(self, owner: Attachments, ns: str, channel: Channel) -> None:
        self._owner = owner
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
            self._cache(item, raw, pod.container)
            after = read_footprint(self._channel, self._backend)
            in_pod = read_tables(pod.channel)
            held = _Held(
                item,
                raw,
                result,
                self._devices(item, result, makers, after.devices, in_pod.devices),
                after.traces - before.traces,
                tuple(untruths(result, pod.container, in_pod, read_tables(self._channel))),
                self._conduct(item),
            )
            self._before = after
            with self._owner._lock:
                self._owner._held[item.ns] = held
                self._owner._networks[self.ns] = item
            if not item.offloads:
                self._wire_accurate(item, held.devices, pod.descriptor)

    def detach(self, item: CniAttachment) -> None:
        held = self._owner._held.get(item.ns)
        chain = self._chain(item)
        addresses = held.result.addresses if held is not None else ()
        found: list[Problem] = []
        with self._pod(item) as pod:
            try:
                chain.delete(pod.container, self._cached(item))
            except PluginError as error:
                found.append(_problem(item, "failure", error.message, error.plugin, error.command))
            in_pod = [name for name in read_devices(pod.channel) if name not in OF_THE_KERNEL]
            number = os.fstat(pod.descriptor).st_ino
        self._unbind(item)
        self._uncache(item)
        now = read_footprint(self._channel, self._backend)
        self._before = now
        left = [f"device {name} in the pod" for name in in_pod]
        if held is not None:
            left += left_behind(held.made, now, item.container, addresses)
        left += [f"a mount of the pod's namespace at {path}" for path in _mounts_of(number)]
        left += [f"process {name} (pid {pid})" for pid, name in descendants(item.container)]
        found += [_problem(item, "leak", f"left behind after DEL: {thing}", command="DEL") for thing in left]
        found += self._conduct(item)
        with self._owner._lock:
            self._owner._past.extend([*(held.conduct if held is not None else ()), *found])
        self._owner._forget(item)
        makers = self._owner._makers[self.ns]
        for name in makers.keys() - now.devices.keys():
            del makers[name]

    def compare(self, item: CniAttachment) -> list[str]:
        """The result against what the kernel shows now."""
        held = self._owner._held[item.ns]
        with self._pod(item) as pod:
            return untruths(held.result, pod.container, read_tables(pod.channel), read_tables(self._channel))

    def check(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        skipped = "disableCheck" if chain.network.disable_check else ""
        try:
            with self._pod(item) as pod:
                complaints = [error.message for error in chain.check(pod.container, self._cached(item))]
        except PluginError as error:
            complaints = [error.message]
        except CnilabError as error:
            complaints, skipped = [], error.message
        complaints += self.compare(item)
        return Finding(_name(self.ns), _pod(item), tuple(complaints), skipped)

    def status(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        if not chain.knows_status:
            return Finding(
                _name(self.ns), skipped=f"the list is of CNI {chain.network.version}: STATUS came with 1.1.0"
            )
        return Finding(_name(self.ns), complaints=tuple(error.message for error in chain.status()))

    def collect_garbage(self, item: CniAttachment) -> Finding:
        chain = self._chain(item)
        if chain.network.disable_gc:
            return Finding(_name(self.ns), skipped="disableGC")
        ours = [held.item for held in self._owner._held.values() if held.item.node == self.ns]
        valid = [(each.container, each.device) for each in ours]
        complaints = [error.message for error in self._drop_stale(chain, valid)]
        complaints += [error.message for error in chain.collect_garbage(valid)]
        known = chain.knows_status
        skipped = "" if known else f"the list is of CNI {chain.network.version}: plugins learn of GC from 1.1.0 on"
        return Finding(_name(self.ns), complaints=tuple(complaints), skipped=skipped)

    def _drop_stale(self, chain: Chain, valid: Sequence[tuple[str, str]]) -> Iterator[PluginError]:
        """DEL for cached attachments of the network that are none of ours, as libcni's GCNetworkList."""
        for path in [f"{RESULTS}/{name}" for name in (os.listdir(RESULTS) if os.path.isdir(RESULTS) else ())]:
            try:
                with open(path, encoding="utf-8") as file:
                    info = json.load(file)
                pair = (info["containerId"], info["ifName"])
                if info["networkName"] != chain.network.name or pair in valid:
                    continue
                container = Container(*pair[:1], info.get("netns", ""), pair[1], tuple(map(tuple, info["cniArgs"])))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            try:
                chain.delete(container, info.get("result"))
                os.unlink(path)
            except PluginError as error:
                yield error

    # ------------------------------------------------------------ plugins

    def _chain(self, item: CniAttachment) -> Chain:
        self._remarks = []

        def run(call: Call) -> Answer:
            begun = time.monotonic()
            try:
                answer = execute(call, item.plugins, self._owner._patience)
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
        if spoken in self._owner._spoken:
            return
        try:
            chain.require_versions()
        except PluginError as error:
            raise _about(item, error) from None
        self._owner._spoken.add(spoken)

    def _log(self, call: Call, item: CniAttachment, seconds: float, outcome: str) -> None:
        whom = f" {_pod(item)}" if "CNI_CONTAINERID" in call.environment else ""
        stamp = time.strftime("%H:%M:%S")
        self._owner._logs[self.ns].append(f"{stamp} {call.command} {call.plugin}{whom} {seconds:.3f} s: {outcome}")

    def _conduct(self, item: CniAttachment) -> list[Problem]:
        taken, self._remarks = self._remarks, []
        return [_problem(item, "conduct", f"plugin {p}, {c}: {text}", p, c) for p, c, text in taken]

    def _report_failed(self, item: CniAttachment, pod: _Pod, before: Footprint) -> None:
        """Remember what a failed ADD left behind once it was undone."""
        conduct = self._conduct(item)
        self._before = now = read_footprint(self._channel, self._backend)
        left = [f"device {name} in the pod" for name in read_devices(pod.channel) if name not in OF_THE_KERNEL]
        left += left_behind(now.traces - before.traces, now, item.container, ())
        left += [f"process {name} (pid {pid})" for pid, name in descendants(item.container)]
        leaks = [_problem(item, "leak", f"left behind after a failed ADD: {thing}", command="DEL") for thing in left]
        with self._owner._lock:
            self._owner._past.extend([*conduct, *leaks])

    def _devices(
        self,
        item: CniAttachment,
        result: Result,
        makers: _Makers,
        in_node: Mapping[str, Device],
        in_pod: Mapping[str, Device],
    ) -> tuple[PluginDevice, ...]:
        """Who made which device, and those of earlier attachments that the result names (a bridge)."""
        known = self._owner._makers
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
        place = {self.ns: self._owner._net.handle(self.ns).net, item.ns: pod}
        for device in devices:
            try:
                wanted = Offloads(ns=device.ns, device=device.name)
                offloads.switch([wanted], lambda ns: place[ns], _done)
            except ApplyError:
                continue  # not every kind of device has offloads to switch

    # ------------------------------------------------------------ the pod's namespace, and the cache

    @contextmanager
    def _pod(self, item: CniAttachment) -> Iterator[_Pod]:
        """The pod's namespace, bound in the node as a runtime has it."""
        # The lab's own mounts, by way of its main thread: this thread sees the node's.
        descriptor = os.open(f"/proc/{os.getpid()}/root{netns_path(item.ns)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            path = self._bind(item, descriptor)
            container = Container(item.container, path, item.device, item.args, json.loads(item.capabilities))
            with Channel(descriptor) as channel:
                yield _Pod(descriptor, channel, container)
        except BaseException:
            if item.ns not in self._owner._held:
                self._unbind(item)
            raise
        finally:
            os.close(descriptor)

    def _bind(self, item: CniAttachment, descriptor: int) -> str:
        path = netns_path(item.ns)
        if not _bound(path, descriptor):
            self._unbind(item)
            os.makedirs(NETNS_DIRECTORY, exist_ok=True)
            with open(path, "w", encoding="utf-8"):
                pass
            mount(f"/proc/self/fd/{descriptor}", path, flags=MS_BIND)
        return path

    def _unbind(self, item: CniAttachment) -> None:
        path = netns_path(item.ns)
        try:
            umount(path)
        except OSError:
            pass  # never bound, or a plugin was faster
        try:
            os.unlink(path)
        except OSError:
            pass

    def _cache_path(self, item: CniAttachment) -> str:
        return f"{RESULTS}/{json.loads(item.network)['name']}-{item.container}-{item.device}"

    def _cache(self, item: CniAttachment, raw: dict[str, Any], container: Container) -> None:
        """As libcni's cacheAdd, so that its tools can read it."""
        os.makedirs(RESULTS, mode=0o700, exist_ok=True)
        info = {
            "kind": CACHE_KIND,
            "containerId": item.container,
            "config": base64.b64encode(item.network.encode()).decode(),
            "ifName": item.device,
            "networkName": json.loads(item.network)["name"],
            "netns": container.netns,
            "cniArgs": item.args,
            "capabilityArgs": json.loads(item.capabilities),
            "result": raw,
        }
        with open(self._cache_path(item), "w", encoding="utf-8") as file:
            json.dump(info, file)

    def _cached(self, item: CniAttachment) -> dict[str, Any] | None:
        try:
            with open(self._cache_path(item), encoding="utf-8") as file:
                result = json.load(file)["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # gone: DEL must do without
        return result if isinstance(result, dict) else None

    def _uncache(self, item: CniAttachment) -> None:
        try:
            os.unlink(self._cache_path(item))
        except OSError:
            pass


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


def _bound(path: str, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def _mounts_of(number: int) -> list[str]:
    """Where this thread's mounts hold a network namespace."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8") as file:
        fields = [line.split() for line in file]
    return [words[4] for words in fields if words[3] == f"net:[{number}]"]


def _outcome(answer: Answer) -> str:
    if answer.killed:
        return f"killed: {answer.killed}"
    words = "ok" if answer.code == 0 else f"status {answer.code}"
    stderr = " | ".join(answer.stderr.split("\n")).strip(" |")
    return f"{words}: {stderr[-500:]}" if stderr else words


def _about(item: CniAttachment, error: PluginError) -> PluginError:
    return PluginError(
        f"pod {_pod(item)} on {_name(item.node)}: {error.message}",
        plugin=error.plugin,
        command=error.command,
        hint=error.hint,
    )


def _problem(item: CniAttachment, kind: str, text: str, plugin: str = "", command: str = "") -> Problem:
    return Problem(_pod(item), _name(item.node), kind, text, plugin, command)


def _pod(item: CniAttachment) -> str:
    return item.ns.partition("/")[2]


def _name(ns: str) -> str:
    return ns.partition("/")[2]
