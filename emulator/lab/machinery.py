"""What a lab does with its hands: the kernel, the traffic engine, captures, daemons and pod commands.

Everything that has a descriptor or a process is reached through here; what is wanted is decided elsewhere.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from emulator.cluster.model import Machine, Node, Pod
from emulator.dns.resolv_conf import ResolvConf, parse
from emulator.errors import CnilabError, NotFound, UserError
from emulator.kernel.applier import Applier
from emulator.kernel.commands import PodCommands
from emulator.kernel.netns import netns_path
from emulator.kernel.rulesets import backend_of_choice
from emulator.lab.captures import Captures
from emulator.lab.cluster_dns import ClusterDns
from emulator.lab.health_ports import HealthPorts
from emulator.lab.names import Place
from emulator.lab.pods import RESOLV_CONF, commands_of, entry_files
from emulator.lab.records import Entry
from emulator.lab.sides import Change, Side
from emulator.lab.target_health import Findings, TargetHealth, read_findings
from emulator.plan.describe import describe
from emulator.plan.diff import diff
from emulator.plan.model import UNDERLAY, Daemon, Plan, Route, Wireguard, WireguardPeer
from emulator.proxy.conntrack import Served, stale
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import InjectionReport

if TYPE_CHECKING:
    from emulator.dns.resolver import Resolution
    from emulator.kernel.attachments import Finding, Problem
    from emulator.kernel.bird_control import SessionState
    from emulator.kernel.hookmeter import HookMeter
    from emulator.kernel.route_table import TableRoute

POD_DEVICE = "eth0"  # in every style

Progress = Callable[[str], None]


class Machinery:
    """The running parts of one lab. Changes come one at a time (the runtime's lock); the rest may come from any
    thread."""

    def __init__(self, *, allow_missing: bool) -> None:
        self.captures = Captures()
        self.traffic = TrafficEngine.start(wait=False)  # it is up before the first pod is
        self.targets = TargetHealth()
        self.applier = Applier(
            allow_missing=allow_missing,
            on_namespace=self.captures.born,
            on_report=self.targets.hear,
            iptables=backend_of_choice(),
        )
        self.commands = PodCommands()
        self.dns = ClusterDns()
        self.health = HealthPorts(self.traffic)
        self._meter: HookMeter | None = None
        self._full: set[str] = set()  # the machines whose connection tracking was filled

    # From plan to plan

    def reach(self, old: Side, new: Side, routes: Sequence[Route], progress: Progress) -> None:
        """Go from one side to the other: what serves the pods and machines that leave stops first, what serves those
        that come starts last. ``routes`` are those that daemons must bring before the change is done.

        On failure kernel, servers and captures are as they were; an error with ``broken`` set says that this did not
        work out. The first change of all is not undone: the lab ends with it.
        """
        assert new.plan is not None
        change = Change(old, new, diff(old.plan, new.plan))
        self._retire(change)
        try:
            self.applier.apply(change.operations, progress)
        except BaseException:
            if not self.applier.broken:
                self._reinstate(change)
            raise
        try:
            if routes:
                self.applier.wait_learned(routes, progress=progress)
            change.address(self.addresses())
            self._serve(change)
        except BaseException as error:
            if old.plan is not None:
                self._return(Change(new, old, diff(new.plan, old.plan)), error)
            raise

    def _return(self, back: Change, error: BaseException) -> None:
        """Undo a change that was carried out and then failed with ``error``. Routes of daemons are not waited for."""
        try:
            self._retire(back)
            self.applier.apply(back.operations)
            back.address(self.addresses())
            self._serve(back)
        except Exception as second:  # whatever it is: the lab is half-wired
            error.broken = True  # type: ignore[attr-defined]
            error.add_note(f"and it could not be undone: {second}")
            if isinstance(error, CnilabError):
                error.hint = "the lab is half-wired: take it down with `cnilab down`"

    def _retire(self, change: Change) -> None:
        """Stop what serves pods and machines that are about to go. A machine loses its cables first, as in a power cut;
        a pod's processes end first, as the kubelet does it. Cut off, they send nothing that a capture would miss when
        it lets go of them, as it must: an open capture keeps a namespace alive."""
        self._plug((), change.going, up=False)
        if stopping := change.servers_to_stop():
            self.traffic.stop(stopping)
        self.dns.retire(change.dying)
        self.health.retire(change.dying)
        self.commands.stop(change.commands_to_stop())
        self._plug(change.leaving, (), up=False)
        for ns in change.dying:
            self.captures.let_go(ns)
        self._full.difference_update(change.dying)

    def _serve(self, change: Change) -> None:
        """Open the ports of pods and outside hosts, and start the pods' own commands."""
        if self._meter is not None:
            self._meter.install([machine.ns for machine in change.arriving if machine.kind == "node"])
        if starting := change.servers_to_start():
            self.traffic.serve(starting)
        self._follow_dns(change.new)
        self._follow_health(change.new)
        self.commands.start(change.commands_to_start(self.dns.resolvers))

    def _reinstate(self, change: Change) -> None:
        """What was retired serves again, after a change that the kernel refused. What it had made by then is gone."""
        for ns in change.coming:
            self.captures.let_go(ns)
        self._plug(change.leaving, change.going, up=True)
        retired = set(change.servers_to_stop())
        if starting := [server for ns, server in change.servers(change.old).items() if ns in retired]:
            self.traffic.serve(starting)
        ended = set(change.commands_to_stop())
        self._follow_dns(change.old)
        self._follow_health(change.old)
        resolvers = self.dns.resolvers
        again = [item for pod in change.old.pods if pod.key in ended for item in commands_of(pod, resolvers)]
        self.commands.start(again)
        for ns in change.dying:
            self.captures.take_in(ns)

    def _follow_health(self, side: Side) -> None:
        """Health check node ports by the state of a side."""
        if side.cluster is not None:
            machines = [machine for machine in side.machines if machine.ns not in side.unproxied]
            self.health.follow(side.cluster, machines, proxied=side.proxied)

    def _follow_dns(self, side: Side) -> None:
        """DNS by the state of a side; programs that run are told of another server in their /etc/resolv.conf."""
        if side.cluster is not None and self.dns.follow(side.cluster, side.pods, side.machines):
            pods = {pod.key: pod for pod in side.pods}
            for command in self.commands.status():
                if command.place in pods and command.pid:
                    files = entry_files(pods[command.place], self.dns.resolvers)
                    self.commands.rewrite(command.place, command.name, {RESOLV_CONF: files.get(RESOLV_CONF, "")})

    def _plug(self, pods: Sequence[Pod], machines: Sequence[Machine], *, up: bool) -> None:
        for machine in machines:
            for interface in machine.interfaces:
                self.applier.wiring.set_link(machine.ns, interface.name, up=up)
        attachments = self.applier.attachments
        for pod in pods:
            # Plugins find the pod as it was: DEL of a device that is down would not see its IPv6 addresses.
            if attachments is None or not attachments.holds(pod.ns):
                self.applier.wiring.set_link(pod.ns, POD_DEVICE, up=up)

    def differences(self, plan: Plan, forgiven: Sequence[Route] = ()) -> list[str]:
        """Between ``plan`` and the kernel, read back. Of routes that are ``forgiven`` it does not matter whether they
        are there."""
        from emulator.kernel.readback import differences  # rarely asked for: `up` must not wait for its import

        fine = {f"{route.ns}: {describe(route)} is not there" for route in forgiven}
        return [line for line in differences(plan, self.applier) if line not in fine]

    # What CNI plugins say and do

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """The addresses that CNI plugins gave to pods, by namespace: known only once they have run."""
        return self.applier.attachments.addresses() if self.applier.attachments is not None else {}

    def annotated(self, plan: Plan) -> Plan:
        """The plan with what came of its attachments by CNI plugins."""
        return self.applier.attachments.annotated(plan) if self.applier.attachments is not None else plan

    def plugin_problems(self) -> list[Problem]:
        """What CNI plugins did wrong so far."""
        return self.applier.attachments.problems() if self.applier.attachments is not None else []

    def run_plugins(self, command: Literal["CHECK", "STATUS", "GC"], pods: Sequence[str] = ()) -> list[Finding]:
        """Have CNI plugins carry out a command for all their pods or nodes; CHECK for some pods only, if any are named.
        Raises UserError in a lab whose pods no plugin attached."""
        attachments = self.applier.attachments
        if attachments is None:
            raise UserError("no pod of this lab is attached by CNI plugins", hint="`cnilab up --cni conflist=FILE`")
        if command == "CHECK":
            return attachments.check(pods)
        return attachments.status() if command == "STATUS" else attachments.collect_garbage()

    # Tunnels

    def begin_sessions(self, nodes: Sequence[Node]) -> None:
        """Have the WireGuard tunnels between the nodes ready, so that what all ask at once does not wait for them."""
        held = {node.ns: self.applier.inventory.held_in(node.ns) for node in nodes}
        devices = {item.key: item for items in held.values() for item in items if isinstance(item, Wireguard)}
        if not devices:
            return
        from emulator.kernel.wireguard_sessions import begin_sessions  # few labs have such a device

        places = {address: node.ns for node in nodes for address in node.addresses}
        pairs = [
            (devices["link", item.ns, item.device], item, places.get(item.endpoint.rpartition(":")[0].strip("[]"), ""))
            for items in held.values()
            for item in items
            if isinstance(item, WireguardPeer)
        ]
        first = [(device, peer) for device, peer, far in pairs if peer.ns < far]
        second = [(device, peer) for device, peer, far in pairs if far and far < peer.ns]
        begin_sessions(self.applier.wireguards, self.netns, first, second)

    # Connection tracking

    def forget_stale(self, nodes: Sequence[str], known: Served) -> None:
        """Delete the UDP entries of these nodes that lead to endpoints which no longer serve."""
        from emulator.kernel.conntrack import forget, udp_entries

        for ns in nodes:
            if old := list(stale(udp_entries(ns, known.families), known)):
                forget(ns, old)

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

    # Health checks of load balancers

    def settled_health(self, checker: Daemon) -> Findings | None:
        """What a load balancer's health checker knows of its targets, once each has answered or had a moment for it;
        None if it does not say."""
        from emulator.kernel.health_checker import ask
        from emulator.kernel.namespaces import within

        try:
            told = within(self.applier.net.handle(checker.ns), lambda: ask(checker.ready_socket, "settle"))
        except OSError:
            return None  # somebody has killed it: its last word stands
        return read_findings(told)

    # Names

    def resolve_name(self, place: Place, name: str, families: Sequence[int] = (4, 6)) -> Resolution:
        """What a name comes to for the programs of a pod or machine: its /etc/hosts, then its own DNS servers, asked by
        packets from there with its search list. Waits as long as glibc does where nobody answers."""
        from emulator.dns.resolver import resolve  # rarely asked for: `up` must not wait for its import

        files = entry_files(place.pod, self.dns.resolvers) if place.pod is not None else {}
        conf = self._resolv_conf(files)
        return resolve(name, netns_path(place.ns), conf, families=families, hosts=files.get("/etc/hosts", ""))

    def name_servers(self, place: Place) -> tuple[str, ...]:
        """Whom the programs of a pod or machine ask."""
        files = entry_files(place.pod, self.dns.resolvers) if place.pod is not None else {}
        return self._resolv_conf(files).nameservers

    def _resolv_conf(self, files: Mapping[str, str]) -> ResolvConf:
        return parse(files[RESOLV_CONF]) if RESOLV_CONF in files else self.dns.resolvers.node

    # Faults

    def set_link(self, peer: str, device: str, *, up: bool) -> None:
        """Plug or unplug the cable at its far end, ``device`` of the switch or machine ``peer``."""
        machine = next((node for node in self.applier.net.hosts if node.name == peer), None)
        self.applier.wiring.set_link(UNDERLAY if machine is None else machine.params["ns"], device, up=up)

    def kill_daemon(self, ns: str, name: str) -> None:
        """SIGKILL, as an out-of-memory kill would be."""
        self.applier.supervisor.kill(ns, name)

    def set_conntrack(self, ns: str, *, full: bool) -> None:
        """Fill a machine's connection tracking up, or make room again."""
        from emulator.kernel.conntrack_table import fill, free

        if full:
            fill(ns)
            self._full.add(ns)
        else:
            free(ns)
            self._full.discard(ns)

    @property
    def full(self) -> tuple[str, ...]:
        """The machines whose connection tracking was filled."""
        return tuple(sorted(self._full))

    def start_daemon(self, ns: str, name: str) -> None:
        """Start it again after it died."""
        self.applier.restart(ns, name)

    # How routing is

    def bgp_sessions(self, ns: str, bird: Daemon) -> list[SessionState]:
        """What the BIRD of a machine says of its sessions; none if it is dead."""
        from emulator.kernel.bird_control import sessions

        running = {(item.ns, item.name): item.state for item in self.applier.supervisor.status()}
        if running.get((ns, bird.name)) != "running":
            return []
        return sessions(self.applier.net.handle(ns), bird.ready_socket)

    def routes(self, ns: str) -> list[TableRoute]:
        """The main routing table of a namespace."""
        from emulator.kernel.route_table import read_routes

        with self.applier.devices.channel(ns) as channel:
            return read_routes(channel)

    # What it says of itself

    @property
    def labels(self) -> tuple[str, ...]:
        """Warnings that every output must carry."""
        return self.applier.labels

    @property
    def choices(self) -> dict[str, str]:
        """The capability decisions made for this lab."""
        return {**self.applier.impairments.choices, **self.applier.rulesets.choices, **self.dns.choices}

    def daemons(self) -> tuple[dict[str, Any], ...]:
        """Each daemon: place, name, state, pid, detail, last log lines of a dead one."""
        return tuple(
            {"place": item.ns, "name": item.name, "state": item.state, "pid": item.pid, "code": item.code,
             "detail": ending(item.code) if item.state == "died" else "",
             "log": item.log if item.state == "died" else ()}
            for item in self.applier.supervisor.status()
        )  # fmt: skip

    def obituaries(self) -> list[str]:
        """A line for each daemon that has died and was not started again."""
        return [
            f"{item.name} in {item.ns} {ending(item.code)}{f'; {item.loss}' if item.loss else ''}"
            f"{f': {item.log[-1]}' if item.log else ''}"
            for item in self.applier.supervisor.status()
            if item.state == "died"
        ]

    def processes(self) -> tuple[dict[str, Any], ...]:
        """The same for pods' own commands."""
        return tuple(
            {"place": item.place, "name": item.name, "state": item.state, "pid": item.pid, "code": item.code,
             "restarts": item.restarts, "detail": ending(item.code) if item.state == "died" else "",
             "log": item.log if item.state == "died" else ()}
            for item in self.commands.status()
        )  # fmt: skip

    def logs(self, place: str, name: str) -> dict[str, str]:
        """Log texts by ``place/name``; empty arguments mean any."""
        plugins = self.applier.attachments.logs() if self.applier.attachments is not None else {}
        found = {**self.applier.supervisor.logs(), **self.commands.logs(), **plugins}
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
                files=entry_files(pod, self.dns.resolvers),
                env={"HOSTNAME": pod.hostname or pod.name},
            )
        name = place.ns.partition("/")[2]
        for node in self.applier.net.hosts:
            if node.name == name:
                conf = self.dns.resolvers.node
                files = {RESOLV_CONF: conf.text()} if conf.nameservers else {}
                return Entry(place=place.label, hostname=name, pid=node.pid, files=files)
        raise NotFound(f"{place.label} is down")


def ending(code: int | None) -> str:
    """An exit status in words; negative ones are signals."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
