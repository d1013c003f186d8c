"""What a lab does with its hands: the kernel, the traffic engine, captures, daemons and pod commands.

Everything that has a descriptor or a process is reached through here; what is wanted is decided elsewhere.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emulator.capture import session
from emulator.cluster.model import Machine, Pod
from emulator.errors import NotFound
from emulator.kernel.applier import Applier
from emulator.kernel.commands import PodCommands
from emulator.kernel.netns import netns_path
from emulator.lab.names import Place
from emulator.lab.pods import commands_of, entry_files, server_of
from emulator.lab.records import CaptureStats, Entry
from emulator.plan.diff import Operation
from emulator.plan.model import UNDERLAY, Plan
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import InjectionReport, Server

if TYPE_CHECKING:
    from emulator.kernel.hookmeter import HookMeter

CHUNK = 64 * 1024  # bytes
POD_DEVICE = "eth0"  # in every style

Progress = Callable[[str], None]


class Machinery:
    """The running parts of one lab. Changes come one at a time (the runtime's lock); the rest may come from any
    thread."""

    def __init__(self, *, allow_missing: bool) -> None:
        self.traffic = TrafficEngine.start()
        self.applier = Applier(allow_missing=allow_missing, on_namespace=self._captured_from_birth)
        self.commands = PodCommands()
        self._meter: HookMeter | None = None
        self._captures: dict[str, session.CaptureHandle] = {}
        self._everywhere: set[session.CaptureHandle] = set()
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()
        self._names = 0

    # Reaching a plan

    def reach(
        self,
        operations: Sequence[Operation],
        plan: Plan,
        leaving: Sequence[Pod],
        coming: Sequence[Pod],
        machines: tuple[Sequence[Machine], Sequence[Machine]],
        progress: Progress,
        *,
        await_routes: bool,
    ) -> None:
        """Carry out ``operations``, which lead to ``plan``. What serves the pods and machines that leave stops
        first, what serves those that come starts last. On failure the kernel is as it was and the old ones are
        served again."""
        going, arriving = machines
        self._retire(leaving, going)
        try:
            self.applier.apply(operations, progress)
        except BaseException:
            if not self.applier.broken:
                self._plug(leaving, going, up=True)
                self._serve(leaving, going)
            raise
        if await_routes:
            self.applier.wait_learned(plan, progress=progress)
        if self._meter is not None:
            self._meter.install([machine.ns for machine in arriving if machine.kind == "node"])
        self._serve(coming, arriving)

    def _retire(self, pods: Sequence[Pod], machines: Sequence[Machine]) -> None:
        """Stop what serves pods and machines that are about to go. A machine loses its cables first, as in a power cut;
        a pod's processes end first, as the kubelet does it. Cut off, they send nothing that a capture would miss when
        it lets go of them, as it must: an open capture keeps a namespace alive."""
        if not pods and not machines:
            return
        self._plug((), machines, up=False)
        self.traffic.stop(list(dict.fromkeys([*(pod.ns for pod in pods), *(machine.ns for machine in machines)])))
        self.commands.stop([pod.key for pod in pods])
        self._plug(pods, (), up=False)
        vanishing = [pod.ns for pod in pods if not pod.host_network] + [machine.ns for machine in machines]
        for handle in self._running():
            for ns in vanishing:
                handle.remove(ns)

    def _plug(self, pods: Sequence[Pod], machines: Sequence[Machine], *, up: bool) -> None:
        for machine in machines:
            for interface in machine.interfaces:
                self.applier.wiring.set_link(machine.ns, interface.name, up=up)
        for pod in pods:
            if not pod.host_network:
                self.applier.wiring.set_link(pod.ns, POD_DEVICE, up=up)

    def _captured_from_birth(self, ns: str) -> None:
        """Captures of everything take in what is born while they run."""
        for handle in self._running():
            if handle in self._everywhere:
                handle.add(ns)

    def _serve(self, pods: Sequence[Pod], machines: Sequence[Machine]) -> None:
        """Open the ports of pods and outside hosts, and start the pods' own commands."""
        servers: list[Server] = [server for pod in pods if (server := server_of(pod)) is not None]
        for machine in machines:
            if machine.ports:
                ports = tuple((port, protocol) for port in machine.ports for protocol in ("TCP", "UDP"))
                servers.append(Server(ns=machine.ns, netns=netns_path(machine.ns), hostname=machine.name, ports=ports))
        if servers:
            self.traffic.serve(servers)
        self.commands.start([command for pod in pods for command in commands_of(pod)])

    def differences(self, plan: Plan) -> list[str]:
        """Between ``plan`` and the kernel, read back."""
        from emulator.kernel.readback import differences  # rarely asked for: `up` must not wait for its import

        return differences(plan, self.applier)

    # Captures

    def capture_start(self, hops: Mapping[str, Sequence[str]], *, everywhere: bool) -> str:
        """Begin to capture; the name of the capture. ``everywhere``: also in namespaces that are made meanwhile."""
        handle = session.start(hops, crowd=len(hops) + 64)
        if everywhere:
            self._everywhere.add(handle)
        with self._lock:
            self._names += 1
            name = f"c{self._names}"
            self._captures[name] = handle
        return name

    def capture_stop(self, name: str) -> CaptureStats:
        """End a capture; its file stays until it has been fetched."""
        with self._lock:
            handle = self._captures.pop(name, None)
        if handle is None:
            raise NotFound(f"there is no capture {name!r}")
        self._everywhere.discard(handle)
        stats = handle.stop()
        with self._lock:
            self._files[name] = stats.path
        return CaptureStats(captured=stats.captured, lost=stats.lost)

    def capture_file(self, name: str) -> Iterator[bytes]:
        """The file of an ended capture, once: it is removed as it has been read."""
        with self._lock:
            path = self._files.pop(name, None)
        if path is None:
            raise NotFound(f"there is no ended capture {name!r}")

        def pieces() -> Iterator[bytes]:
            try:
                with open(path, "rb") as file:
                    while piece := file.read(CHUNK):
                        yield piece
            finally:
                os.unlink(path)

        return pieces()

    def capture_live(self, hops: Mapping[str, Sequence[str]], *, everywhere: bool) -> Iterator[bytes]:
        """A capture as it is taken; it ends when the generator is closed."""
        read, write = os.pipe()
        try:
            handle = session.start(hops, output=write, crowd=len(hops) + 64)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        if everywhere:
            self._everywhere.add(handle)
        with self._lock:
            self._names += 1
            name = f"c{self._names}"
            self._captures[name] = handle

        def pieces() -> Iterator[bytes]:
            try:
                while piece := os.read(read, CHUNK):
                    yield piece
            finally:
                os.close(read)
                with self._lock:
                    self._captures.pop(name, None)
                self._everywhere.discard(handle)
                handle.discard()

        return pieces()

    def _running(self) -> list[session.CaptureHandle]:
        with self._lock:
            return list(self._captures.values())

    # Counting hook passes

    def meter_reset(self, nodes: Sequence[str]) -> None:
        """Count netfilter hook passes in ``nodes`` from now on."""
        if self._meter is None:
            from emulator.kernel.hookmeter import HookMeter

            self._meter = HookMeter(self.applier)
            self._meter.install(nodes)
        self._meter.reset()

    def meter_read(self) -> list[tuple[str, str, str, str, int, int]]:
        """Rows of namespace, hook, source, target, protocol number, packets."""
        if self._meter is None:
            return []
        return [
            (ns, hook, source, target, protocol, packets)
            for ns, hooks in self._meter.read().items()
            for hook, pairs in hooks.items()
            for (source, target, protocol), packets in pairs.items()
        ]

    # Packets that are not answers

    def replay(self, ns: str, pcap: bytes, rewrite: Mapping[str, str], speed: float, sender: str) -> InjectionReport:
        """Send the packets of a capture file (of one captured ``sender``, if given) from a namespace, rewritten."""
        with tempfile.NamedTemporaryFile(dir="/run/cnilab", suffix=".pcap") as file:
            file.write(pcap)
            file.flush()
            return self.traffic.replay(file.name, netns_path(ns), rewrite=rewrite, speed=speed, source=sender)

    def send(self, ns: str, expression: str, count: int) -> InjectionReport:
        """Send hand-made packets from a namespace."""
        return self.traffic.send(netns_path(ns), expression, count=count, subject=ns)

    # Faults

    def set_link(self, peer: str, device: str, *, up: bool) -> None:
        """Plug or unplug the cable at its far end, ``device`` of the switch or machine ``peer``."""
        machine = next((node for node in self.applier.net.hosts if node.name == peer), None)
        self.applier.wiring.set_link(UNDERLAY if machine is None else machine.params["ns"], device, up=up)

    def kill_daemon(self, ns: str, name: str) -> None:
        """SIGKILL, as an out-of-memory kill would be."""
        self.applier.supervisor.kill(ns, name)

    def start_daemon(self, ns: str, name: str) -> None:
        """Start it again after it died."""
        self.applier.supervisor.restart(ns, name)

    # What it says of itself

    @property
    def labels(self) -> tuple[str, ...]:
        """Warnings that every output must carry."""
        return self.applier.labels

    @property
    def choices(self) -> dict[str, str]:
        """The capability decisions made for this lab."""
        return {**self.applier.impairments.choices, **self.applier.rulesets.choices}

    def daemons(self) -> tuple[dict[str, Any], ...]:
        """Each daemon: place, name, state, pid, detail, last log lines of a dead one."""
        return tuple(
            {"place": item.ns, "name": item.name, "state": item.state, "pid": item.pid, "code": item.code,
             "log": item.log if item.state == "died" else ()}
            for item in self.applier.supervisor.status()
        )  # fmt: skip

    def processes(self) -> tuple[dict[str, Any], ...]:
        """The same for pods' own commands."""
        return tuple(
            {"place": item.place, "name": item.name, "state": item.state, "pid": item.pid, "code": item.code,
             "restarts": item.restarts, "log": item.log if item.state == "died" else ()}
            for item in self.commands.status()
        )  # fmt: skip

    def logs(self, place: str, name: str) -> dict[str, str]:
        """Log texts by ``place/name``; empty arguments mean any."""
        found = {**self.applier.supervisor.logs(), **self.commands.logs()}
        return {
            key: text
            for key, text in sorted(found.items())
            if (not place or key.rpartition("/")[0] == place) and (not name or key.rpartition("/")[2] == name)
        }

    # Entering

    def netns(self, ns: str) -> str:
        """The path of a namespace of the plan."""
        return netns_path(ns)

    def entry(self, place: Place) -> Entry:
        """How a command gets to a place."""
        if place.pod is not None and not place.pod.host_network:
            pod = place.pod
            return Entry(
                place=place.label,
                hostname=pod.hostname or pod.name,
                netns=netns_path(pod.ns),
                files=entry_files(pod),
                env={"HOSTNAME": pod.hostname or pod.name},
            )
        name = place.ns.partition("/")[2]
        for node in self.applier.net.hosts:
            if node.name == name:
                return Entry(place=place.label, hostname=name, pid=node.pid)
        raise NotFound(f"{place.label} is down")
