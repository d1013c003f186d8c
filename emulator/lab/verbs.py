"""Our own verbs beside the Kubernetes API: what a lab can do that a cluster's API server cannot.

Each is a function of the path's fields, the query and the decoded body, as ``emulator.lab.api`` calls them. Bodies are
decoded into the records of ``emulator.lab.records``; what does not fit is refused with the field's path.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec

from emulator.cluster.kinds import Kind, resource
from emulator.cluster.model import Cluster
from emulator.errors import NotFound, UserError
from emulator.lab import faults
from emulator.lab.api import Stream, Verb
from emulator.lab.lookups import Way, ways
from emulator.lab.machinery import Machinery
from emulator.lab.matrix import MatrixTaker
from emulator.lab.names import Place, resolve, resolve_target, service_port
from emulator.lab.records import (
    CaptureStats,
    Entry,
    FaultWish,
    LabStatus,
    ProbeAnswer,
    ProbeRequest,
)
from emulator.lab.runtime import Outcome, Runtime
from emulator.lab.store import Ref
from emulator.lab.verdicts import Matrix, MatrixWish
from emulator.plan.model import Daemon, Link, Plan, Veth
from emulator.plan.render import as_json
from emulator.traffic.model import InjectionReport, Probe, ProbeResult, Protocol, StreamReport

PCAPNG = "application/x-pcapng"

T = TypeVar("T")

_PROBED: dict[str, Protocol] = {"TCP": "tcp", "UDP": "udp"}


class StreamWish(msgspec.Struct, frozen=True):
    """A probe to repeat ``rate`` times a second."""

    probe: ProbeRequest
    rate: float


class CaptureWish(msgspec.Struct, frozen=True):
    """Where to capture; nowhere named: everywhere."""

    hops: list[str] = []


class DeleteWish(msgspec.Struct, frozen=True):
    """Objects to delete: group, kind, namespace and name of each; ``grace_period`` (s) is the pods' among them."""

    refs: list[tuple[str, str, str, str]]
    grace_period: int | None = None


class ReadyWish(msgspec.Struct, frozen=True):
    """Pods that are to be ready, or not."""

    pods: list[str]
    ready: bool = True


class PluginWish(msgspec.Struct, frozen=True):
    """A command of the CNI plugins' to carry out; ``pods`` for CHECK, all if none are named."""

    command: Literal["CHECK", "STATUS", "GC"]
    pods: list[str] = []


class Replay(msgspec.Struct, frozen=True):
    """A pcap (the file's bytes) to send from a place, with addresses rewritten (old to new; new ones may be places).
    With ``sender``, only what that captured address sent."""

    source: str
    pcap: bytes
    rewrite: dict[str, str] = {}
    speed: float = 0.0
    sender: str = ""


class Send(msgspec.Struct, frozen=True):
    """Packets to send from a place, as a scapy expression (``emulator.traffic.expression`` says what is allowed).
    ``{PLACE}`` stands for the place's address, ``{PLACE:6}`` for its IPv6 one."""

    source: str
    expression: str
    count: int = 1


class Verbs:
    """The verbs of one running lab."""

    def __init__(self, runtime: Runtime, machinery: Machinery, status: Callable[[], LabStatus]) -> None:
        self._runtime = runtime
        self._machinery = machinery
        self._status = status
        self._matrices = MatrixTaker(runtime, machinery, lambda: status().style)
        self._numbers = itertools.count(1)  # next() is atomic: probes of many clients run side by side

    def table(self) -> list[tuple[str, str, Verb]]:
        """Method, path and function of each verb."""
        base = "/cnilab/v1"
        return [
            ("GET", f"{base}/status", lambda _path, _query, _body: self._status()),
            ("GET", f"{base}/cluster", lambda _path, _query, _body: self._runtime.current),
            ("GET", f"{base}/plan", lambda _path, _query, _body: msgspec.Raw(as_json(self._plan()))),
            ("GET", f"{base}/verify", lambda _path, _query, _body: self._runtime.differences()),
            ("POST", f"{base}/plugins", self._plugins),
            ("POST", f"{base}/apply", self._apply),
            ("POST", f"{base}/delete", self._delete),
            ("POST", f"{base}/ready", self._ready),
            ("GET", f"{base}/rollout", self._rollout),
            ("POST", f"{base}/probe", self._probe),
            ("POST", f"{base}/matrix", self._matrix),
            ("POST", f"{base}/streams", self._start_stream),
            ("DELETE", f"{base}/streams/{{id}}", self._stop_stream),
            ("POST", f"{base}/captures", self._start_capture),
            ("DELETE", f"{base}/captures/{{id}}", self._stop_capture),
            ("GET", f"{base}/captures/{{id}}/file", self._captured),
            ("GET", f"{base}/capture", self._live_capture),
            ("POST", f"{base}/meter", self._meter_reset),
            ("GET", f"{base}/meter", self._meter_read),
            ("POST", f"{base}/replay", self._replay),
            ("POST", f"{base}/send", self._send),
            ("POST", f"{base}/fault", self._fault),
            ("GET", f"{base}/bgp", self._bgp),
            ("GET", f"{base}/routes", self._routes),
            ("GET", f"{base}/logs", self._logs),
            ("GET", f"{base}/entry", self._entry),
        ]

    def _meter_reset(self, _path: Any, _query: Any, _body: Any) -> None:
        with self._runtime.still():
            up = [node.ns for node in self._runtime.current.nodes if node.name not in self._runtime.down_nodes]
            self._machinery.meter_reset(up)

    def _meter_read(self, _path: Any, _query: Any, _body: Any) -> Any:
        with self._runtime.still():
            return self._machinery.meter_read()

    def _plugins(self, _path: Any, _query: Any, body: Any) -> Any:
        wish = _typed(body, PluginWish)
        places = [resolve(self._runtime.current, name) for name in wish.pods]
        if others := [place.label for place in places if place.pod is None or place.pod.host_network]:
            raise UserError(f"{others[0]} is no pod that CNI plugins attach")
        with self._runtime.still():
            return self._machinery.run_plugins(wish.command, [place.ns for place in places])

    def _plan(self) -> Any:
        return self._runtime.held

    def _apply(self, _path: Any, _query: Any, body: Any) -> Any:
        objects = body.get("objects") if isinstance(body, dict) else None
        if not isinstance(objects, list):
            raise UserError("apply wants a list of objects")
        return [_outcome(outcome) for outcome in self._runtime.apply(objects)]

    def _delete(self, _path: Any, _query: Any, body: Any) -> Any:
        wish = _typed({"refs": body} if isinstance(body, list) else body, DeleteWish)
        refs = [Ref(*ref) for ref in wish.refs]
        return [_outcome(outcome) for outcome in self._runtime.delete(refs, wish.grace_period)]

    def _ready(self, _path: Any, _query: Any, body: Any) -> None:
        wish = _typed(body, ReadyWish)
        pods = {name: resolve(self._runtime.current, name).pod for name in wish.pods}
        if others := [name for name, pod in pods.items() if pod is None]:
            raise UserError(f"{others[0]!r} is no pod: only pods are ready, or not")
        self._runtime.set_ready({pod.key: wish.ready for pod in pods.values() if pod is not None})

    def _rollout(self, _path: Any, query: dict[str, str], _body: Any) -> dict[str, Any]:
        kind = resource(query.get("kind", ""))
        ref = reference(kind, query.get("namespace", "default"), query.get("name", ""))
        done, text = self._runtime.progress_of(ref)
        return {"done": done, "message": text}

    def _probe(self, _path: Any, _query: Any, body: Any) -> list[ProbeAnswer]:
        requests = [self._settled(request) for request in _typed(body, list[ProbeRequest])]
        found = self._ways(requests)
        probes = {
            index: self._as_probe(request, way, f"p{next(self._numbers)}")
            for index, (request, way) in enumerate(zip(requests, found, strict=True))
            if way.address
        }
        results = dict(zip(probes, self._machinery.traffic.probe(list(probes.values())), strict=True))
        return [
            ProbeAnswer(
                source=way.source.label,
                target=way.target.label,
                source_ns=way.source.ns,
                target_ns=way.target.ns or self._owner(way.address),
                address=way.address,
                protocol=request.protocol or "icmp",
                port=request.port,
                result=results.get(index) or _unresolved(way),
                lookup=way.lookup,
            )
            for index, (request, way) in enumerate(zip(requests, found, strict=True))
        ]

    def _matrix(self, _path: Any, _query: Any, body: Any) -> Matrix:
        return self._matrices.take(_typed(body or {}, MatrixWish))

    def _settled(self, request: ProbeRequest) -> ProbeRequest:
        """The request with the protocol and port that its target decides about."""
        target = resolve_target(self._runtime.current, request.target)
        if target.name:
            by_service = not request.port and target.service is not None and bool(target.service.cluster_ips)
        else:
            by_service = target.service is not None
        if by_service and (request.protocol != "icmp" or target.port):
            port = service_port(target, request.port, request.protocol)
            protocol = _PROBED.get(port.protocol)
            if protocol is None:
                raise UserError(f"{target.label}: probes speak TCP and UDP, not {port.protocol}")
            return msgspec.structs.replace(request, port=port.port, protocol=protocol)
        if not request.protocol:
            return msgspec.structs.replace(request, protocol="tcp" if request.port else "icmp")
        return request

    def _ways(self, requests: list[ProbeRequest]) -> list[Way]:
        cluster = self._runtime.current
        wanted = []
        for request in requests:
            source, target = resolve(cluster, request.source), resolve_target(cluster, request.target)
            if not source.ns:
                raise UserError(f"{request.source!r}: packets can only be sent from a pod or a machine of the lab")
            self._check_up(source)
            if request.protocol != "icmp" and not request.port:
                raise UserError(f"a {request.protocol} probe to {request.target!r} needs a port", hint="TO:PORT")
            wanted.append((source, target, request))
        return ways(self._machinery, wanted)

    def _check_up(self, place: Place) -> None:
        node = place.pod.node if place.pod is not None else place.machine.name if place.machine is not None else ""
        if node in self._runtime.down_nodes:
            raise UserError(f"{place.label}: node {node} is down", hint="the fault node-return brings it back")

    def _as_probe(self, request: ProbeRequest, way: Way, name: str) -> Probe:
        return Probe(
            id=name,
            netns=self._machinery.netns(way.source.ns),
            target=way.address,
            protocol=request.protocol or "icmp",
            port=request.port,
            count=request.count,
            size=request.size,
            timeout=request.timeout,
            interval=request.interval,
            dont_fragment=request.dont_fragment,
            ttl=request.ttl,
            allow_fragments=request.allow_fragments,
            sender=way.source.sender(way.address),
        )

    def _owner(self, address: str) -> str:
        cluster = self._runtime.current
        for pod in cluster.pods:
            if address in pod.addresses:
                return pod.ns
        for machine in cluster.topology.machines:
            for interface in machine.interfaces:
                if any(address == mine.partition("/")[0] for mine in interface.addresses):
                    return machine.ns
        return ""

    def _start_stream(self, _path: Any, _query: Any, body: Any) -> dict[str, str]:
        wish = _typed(body, StreamWish)
        if not 0 < wish.rate <= 10_000:
            raise UserError(f"a stream of {wish.rate:g} requests a second is not possible", hint="1 to 10000")
        request = self._settled(wish.probe)
        (way,) = self._ways([request])
        if not way.address:
            raise UserError(way.why)
        name = f"s{next(self._numbers)}"
        self._machinery.traffic.stream_start(name, self._as_probe(request, way, name), wish.rate)
        return {"id": name, "target": way.target.label, "address": way.address}

    def _stop_stream(self, path: dict[str, str], _query: Any, _body: Any) -> StreamReport:
        return self._machinery.traffic.stream_stop(path["id"])

    def _start_capture(self, _path: Any, _query: Any, body: Any) -> dict[str, str]:
        hops = _typed(body or {}, CaptureWish).hops
        with self._runtime.still():
            return {"id": self._machinery.captures.start(self._selected(hops), everywhere=not hops)}

    def _stop_capture(self, path: dict[str, str], _query: Any, _body: Any) -> CaptureStats:
        return self._machinery.captures.stop(path["id"])

    def _captured(self, path: dict[str, str], _query: Any, _body: Any) -> Stream:
        return Stream(self._machinery.captures.file(path["id"]), PCAPNG)

    def _live_capture(self, _path: Any, query: dict[str, str], _body: Any) -> Stream:
        hops = [hop for hop in query.get("hops", "").split(",") if hop]
        try:
            seconds = float(query.get("seconds", "0"))
        except ValueError:
            raise UserError(f"{query['seconds']!r} is no number of seconds") from None
        with self._runtime.still():
            return Stream(self._machinery.captures.live(self._selected(hops), seconds, everywhere=not hops), PCAPNG)

    def _selected(self, hops: list[str]) -> dict[str, tuple[str, ...]]:
        """Namespaces to capture in, each with its devices (none named: all). ``PLACE[:DEVICE]``, default everything."""
        cluster = self._runtime.current
        if not hops:
            everywhere = [
                machine.ns for machine in cluster.topology.machines if machine.name not in self._runtime.down_nodes
            ]
            down = self._runtime.down_nodes
            everywhere += [pod.ns for pod in cluster.pods if not pod.host_network and pod.node not in down]
            return dict.fromkeys(["underlay", *everywhere], ())
        chosen: dict[str, tuple[str, ...]] = {}
        for hop in hops:
            place, _, device = hop.partition(":")
            ns = place if place == "underlay" else resolve(cluster, place).ns
            if not ns:
                raise UserError(f"{hop!r} is not a place of this lab")
            known = self._devices(ns)
            if device and device not in known:
                raise NotFound(f"there is no device {device!r} in {place}", hint=f"it has {', '.join(sorted(known))}")
            chosen[ns] = (*chosen.get(ns, ()), device) if device else ()
        return chosen

    def _devices(self, ns: str) -> set[str]:
        plan: Plan = self._plan()
        found = {"lo"}
        for item in plan:
            if isinstance(item, Link) and item.ns == ns:
                found.add(item.name)
            if isinstance(item, Veth) and item.peer_ns == ns:
                found.add(item.peer)
        return found

    def _replay(self, _path: Any, _query: Any, body: Any) -> InjectionReport:
        wish = _typed(body, Replay)
        cluster = self._runtime.current
        source = self._sender(wish.source)
        rewrite = {old: _rewritten(cluster, old, new) for old, new in wish.rewrite.items()}
        return self._machinery.replay(source, wish.pcap, rewrite, wish.speed, wish.sender)

    def _send(self, _path: Any, _query: Any, body: Any) -> InjectionReport:
        wish = _typed(body, Send)
        cluster = self._runtime.current
        expression = _NAMED.sub(
            lambda match: _address(cluster, match["place"], int(match["family"] or 0)), wish.expression
        )
        return self._machinery.send(self._sender(wish.source), expression, wish.count)

    def _sender(self, name: str) -> str:
        """The namespace that hand-made packets leave from."""
        place = resolve(self._runtime.current, name)
        if not place.ns:
            raise UserError(f"{name!r}: packets can only be sent from a pod or a machine of the lab")
        self._check_up(place)
        return place.ns

    def _fault(self, _path: Any, _query: Any, body: Any) -> None:
        wish = _typed(body, FaultWish)
        faults.check(wish)
        if wish.kind in faults.PLANNED:
            cluster = self._runtime.current
            if wish.mend:
                self._runtime.mend(lambda found: faults.mended(wish, cluster, found))
            else:
                self._check_up(resolve(cluster, wish.target))
                plan = self._runtime.plan
                assert plan is not None
                self._runtime.strike(faults.planned(wish, cluster, plan))
            return
        place = resolve(self._runtime.current, wish.target)
        if place.machine is None:
            raise UserError(f"{wish.target!r} is not a machine: faults of this kind strike nodes, routers and hosts")
        name = place.machine.name
        if wish.kind == "node-crash":
            self._runtime.crash([name])
        elif wish.kind == "node-return":
            self._runtime.revive([name])
        elif wish.kind in ("link-down", "link-up"):
            self._runtime.plug(name, wish.device or faults.DEVICE, up=wish.kind == "link-up")
        else:
            with self._runtime.still():
                if wish.kind in ("conntrack-full", "conntrack-free"):
                    self._check_up(place)
                    self._machinery.set_conntrack(place.machine.ns, full=wish.kind == "conntrack-full")
                elif wish.kind == "daemon-kill":
                    self._machinery.kill_daemon(place.machine.ns, wish.daemon)
                else:
                    self._machinery.start_daemon(place.machine.ns, wish.daemon)

    def _bgp(self, _path: Any, query: dict[str, str], _body: Any) -> Any:
        place = self._standing(query)
        with self._runtime.still():
            daemons = (item for item in self._plan().in_namespace(place.ns) if isinstance(item, Daemon))
            bird = next((item for item in daemons if item.name == "bird"), None)
            if bird is None:
                raise UserError(f"{place.label} runs no BIRD", hint="it does under styles that learn routes by BGP")
            return self._machinery.bgp_sessions(place.ns, bird)

    def _routes(self, _path: Any, query: dict[str, str], _body: Any) -> Any:
        place = self._standing(query)
        with self._runtime.still():
            return self._machinery.routes(place.ns)

    def _standing(self, query: dict[str, str]) -> Place:
        """The pod or machine that a question is about."""
        place = resolve(self._runtime.current, query.get("place", ""))
        if not place.ns:
            raise UserError(f"{place.label} is an address, not a pod or machine of the lab")
        self._check_up(place)
        return place

    def _logs(self, _path: Any, query: dict[str, str], _body: Any) -> dict[str, str]:
        place = query.get("place", "")
        if place:
            found = resolve(self._runtime.current, place)
            place = found.pod.key if found.pod is not None else found.ns
        return self._machinery.logs(place, query.get("daemon", ""))

    def _entry(self, _path: Any, query: dict[str, str], _body: Any) -> Entry:
        place = resolve(self._runtime.current, query.get("place", ""))
        if not place.ns:
            raise UserError(f"{place.label}: commands run in pods and machines of the lab")
        self._check_up(place)
        return self._machinery.entry(place)


_NAMED = re.compile(r"\{(?P<place>[a-z0-9./-]+)(?::(?P<family>[46]))?\}")


def _address(cluster: Cluster, text: str, family: int) -> str:
    place = resolve(cluster, text)
    for address in place.addresses:
        if family in (0, ipaddress.ip_address(address).version):
            return address
    raise UserError(f"{place.label} has no IPv{family} address")


def _rewritten(cluster: Cluster, old: str, new: str) -> str:
    """The new address: as it is, or a place's of the old one's family."""
    try:
        return _address(cluster, new, ipaddress.ip_address(old).version)
    except ValueError:
        return new  # MAC addresses


def _unresolved(way: Way) -> ProbeResult:
    """What comes of a request to a name without an address: nothing was sent but questions."""
    return ProbeResult(id="", verdict="unreachable", sent=0, received=0, detail=way.why)


def _outcome(outcome: Outcome) -> dict[str, str]:
    ref = outcome.ref
    return {
        "group": ref.group,
        "kind": ref.kind,
        "namespace": ref.namespace,
        "name": ref.name,
        "action": outcome.action,
    }


def _typed(data: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"the request does not fit: {error}") from None


def reference(kind: Kind, namespace: str, name: str) -> Ref:
    """The identity of an object named on a command line."""
    return Ref(kind.group, kind.kind, namespace if kind.namespaced else "", name)
