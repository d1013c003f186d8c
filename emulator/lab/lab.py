"""The public Python API: a lab, started or joined, and what one does with it.

::

    from emulator import Lab

    with Lab("three-nodes", cni="calico") as lab:
        lab.apply("web.yaml")
        assert lab.probe("n1-p1", "web-0", 80).reached
        for hop in lab.trace("n1-p1", "n2-p1").request.hops:
            print(hop.ns, hop.device, hop.packet.ttl)

A lab in a ``with`` block dies with it, and with the process; :meth:`Lab.up` starts one that stays.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from emulator.capture.model import Event, Journey
from emulator.cluster.kinds import resource
from emulator.cluster.model import Cluster, Topology
from emulator.errors import CnilabError, NotFound, UserError
from emulator.lab.client import Client
from emulator.lab.launch import Launched, launch
from emulator.lab.names import resolve
from emulator.lab.records import CaptureStats, DnsWish, Entry, LabStatus, ProbeAnswer, ProbeRequest
from emulator.lab.verdicts import Matrix, MatrixWish
from emulator.plan.model import Plan
from emulator.policy.enforcer import PolicyMode
from emulator.traffic.model import InjectionReport, Protocol, StreamReport

if TYPE_CHECKING:
    from emulator.kernel.bird_control import SessionState
    from emulator.kernel.route_table import TableRoute

BASE = "/cnilab/v1"
APPLY_PATIENCE = 600.0  # s: ten thousand Services at once, on a machine with much else to do
MATRIX_PATIENCE = 120.0  # s that the largest matrix may take
ROLLOUT_POLL = 0.1  # s between two looks at how far a rollout is

Manifest = str | os.PathLike[str] | dict[str, Any]


class Capture:
    """Every packet at the chosen hops while the ``with`` block runs; afterwards ``events``, ``journeys`` and
    ``stats``."""

    def __init__(self, lab: Lab, hops: Sequence[str]) -> None:
        self._lab = lab
        self._hops = list(hops)
        self._id = ""
        self._file = b""
        self.stats = CaptureStats(captured=0, lost=0)

    def __enter__(self) -> Capture:
        self._id = self._lab.client.call("POST", f"{BASE}/captures", {"hops": self._hops})["id"]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            answer = self._lab.client.call("DELETE", f"{BASE}/captures/{self._id}")
            self.stats = msgspec.convert(answer, CaptureStats)
            self._file = self._lab.client.raw(f"{BASE}/captures/{self._id}/file")
        except CnilabError:
            if kind is None:  # else what ended the block says more than that its capture went with it
                raise

    @property
    def pcapng(self) -> bytes:
        """The capture file, one interface per hop."""
        return self._file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the capture file."""
        Path(path).write_bytes(self._file)

    def events(self) -> list[Event]:
        """Every sighting, in order of time."""
        from emulator.capture.pcapng import read

        with tempfile.NamedTemporaryFile(suffix=".pcapng") as file:
            file.write(self._file)
            file.flush()
            return sorted(read(file.name), key=lambda event: event.time)

    def journeys(self) -> list[Journey]:
        """Each packet's hops, explained by the plan."""
        from emulator.capture.explain import explain
        from emulator.capture.follow import follow

        followed = follow(self.events())
        return explain(followed.journeys, self._lab.plan())


class Trace(msgspec.Struct, frozen=True):
    """One probe and where its packets went. ``request`` and ``reply`` are None where none was seen."""

    answer: ProbeAnswer
    request: Journey | None
    reply: Journey | None
    others: tuple[Journey, ...]
    stats: CaptureStats


class Lab:
    """One lab: in a ``with`` block a private one that dies with it; from :meth:`up` or :meth:`connect` one that
    stays."""

    def __init__(
        self,
        topology: str | os.PathLike[str] | Topology = "three-nodes",
        cni: str = "flannel",
        manifests: Iterable[Manifest] = (),
        *,
        name: str | None = None,
        wire_accurate: bool = False,
        allow_missing: bool = False,
        dns: DnsWish = "auto",
        policy_mode: PolicyMode = "faithful",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "topology": topology,
            "cni": cni,
            "objects": _objects(manifests),
            "name": name,
            "wire_accurate": wire_accurate,
            "allow_missing": allow_missing,
            "dns": dns,
            "policy_mode": policy_mode,
            "progress": progress or (lambda _text: None),
        }
        self._launched: Launched | None = None
        self._client: Client | None = None
        self._plan: tuple[str, Plan] | None = None
        self.name = name or ""

    # Life

    def __enter__(self) -> Lab:
        self._start(detached=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @classmethod
    def up(cls, *args: Any, **kwargs: Any) -> Lab:
        """Start a lab that outlives this process, until :meth:`stop` or ``cnilab down``. Arguments as for ``Lab``."""
        lab = cls(*args, **kwargs)
        lab._start(detached=True)
        return lab

    @classmethod
    def connect(cls, name: str | None = None) -> Lab:
        """Join a running lab; without a name, the only one. Raises NotFound."""
        from emulator.kernel.registry import find

        record = find(name)
        lab = cls(name=record.name)
        lab._launched = Launched.running(record)
        lab._client = Client(lab._launched.socket)
        return lab

    def _start(self, *, detached: bool) -> None:
        self._launched = launch(detached=detached, **self._arguments)
        self.name = self._launched.name
        self._client = Client(self._launched.socket)

    def stop(self, *, wait: bool = False) -> None:
        """End the lab and everything in it. ``wait`` until the kernel has taken its namespaces down too."""
        if self._launched is not None:
            launched, self._launched, self._client = self._launched, None, None
            launched.stop(wait=wait)

    @property
    def client(self) -> Client:
        """The API behind all this. Raises NotFound when the lab is not running."""
        if self._client is None:
            raise NotFound("this lab is not running")
        return self._client

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the lab has said beside its answers so far: dead daemons, wishes that this kernel could not grant."""
        return tuple(self._client.warnings) if self._client is not None else ()

    # Desired state

    def apply(self, *manifests: Manifest) -> list[dict[str, str]]:
        """Apply Kubernetes manifests (files, folders, ``-``, or objects as dicts): all of them or none.

        Returns one dict each: group, kind, namespace, name, action (created, configured, unchanged).
        """
        wish = {"objects": list(_objects(manifests, self._namespaces()))}
        answer = self.client.call("POST", f"{BASE}/apply", wish, timeout=APPLY_PATIENCE)
        return list(answer)

    def delete(
        self, kind: str, name: str, namespace: str = "default", *, grace_period: int | None = None
    ) -> dict[str, str]:
        """Delete one object: ``lab.delete("pod", "web-0")``. Returns what was done, as :meth:`apply` does.

        ``grace_period``: seconds that a pod may take to end, in place of what its spec says; 0 ends it at once.
        """
        found = resource(kind)
        ref = (found.group, found.kind, namespace if found.namespaced else "", name)
        wish = {"refs": [ref], "grace_period": grace_period}
        return dict(self.client.call("POST", f"{BASE}/delete", wish)[0])

    def ready(self, *pods: str, value: bool = True) -> None:
        """Say of pods that they are ready, or with ``value`` False that they are not, as readiness probes would."""
        self.client.call("POST", f"{BASE}/ready", {"pods": list(pods), "ready": value})

    def rollout(self, kind: str, name: str, namespace: str = "default") -> tuple[bool, str]:
        """Whether the rollout of a Deployment, StatefulSet or DaemonSet is over, and a line about how far it is."""
        query = "&".join(f"{key}={quote(value, '')}" for key, value in
                         (("kind", kind), ("name", name), ("namespace", namespace)))  # fmt: skip
        answer = self.client.call("GET", f"{BASE}/rollout?{query}")
        return bool(answer["done"]), str(answer["message"])

    def wait_rollout(self, kind: str, name: str, namespace: str = "default", *, timeout: float = 60.0) -> str:
        """Wait until a rollout is over; returns its last line. UserError after ``timeout`` seconds (0: never)."""
        deadline = time.monotonic() + timeout if timeout else float("inf")
        while True:
            done, message = self.rollout(kind, name, namespace)
            if done:
                return message
            if time.monotonic() > deadline:
                raise UserError(f"the rollout of {kind}/{name} is not over after {timeout:g} s: {message}")
            time.sleep(ROLLOUT_POLL)

    def delete_manifests(self, *manifests: Manifest, grace_period: int | None = None) -> list[dict[str, str]]:
        """Delete every object of the manifests, those that own others last; ``grace_period`` as of :meth:`delete`."""
        from emulator.lab.store import ref_of

        refs = [tuple(ref_of(obj)) for obj in _objects(manifests, self._namespaces())]
        wish = {"refs": refs[::-1], "grace_period": grace_period}
        return list(self.client.call("POST", f"{BASE}/delete", wish))

    def _namespaces(self) -> list[str]:
        return [one["metadata"]["name"] for one in self.get("namespaces")]

    def get(self, kind: str, name: str = "", namespace: str = "default", *, selector: str = "") -> list[dict[str, Any]]:
        """Objects as Kubernetes writes them; ``namespace=""`` means all. One object is a list of one."""
        found = resource(kind)
        base = f"/apis/{found.group}/{found.version}" if found.group else f"/api/{found.version}"
        if found.namespaced and namespace:
            base += f"/namespaces/{quote(namespace, '')}"
        if name:
            return [self.client.call("GET", f"{base}/{found.plural}/{quote(name, '')}")]
        query = f"?labelSelector={quote(selector, '')}" if selector else ""
        return list(self.client.call("GET", f"{base}/{found.plural}{query}")["items"])

    def cluster(self) -> Cluster:
        """The resolved cluster: nodes, pods with their addresses, topology."""
        return msgspec.convert(self.client.call("GET", f"{BASE}/cluster"), Cluster)

    def plan(self) -> Plan:
        """What every namespace of the lab holds."""
        from emulator.plan.render import from_json

        return from_json(self.client.raw(f"{BASE}/plan"))

    def status(self) -> LabStatus:
        """How the lab is: style, choices made, daemons, nodes down."""
        return msgspec.convert(self.client.call("GET", f"{BASE}/status"), LabStatus)

    def verify(self) -> list[str]:
        """Differences between the plan and what the kernel holds, read back; empty when they agree."""
        return list(self.client.call("GET", f"{BASE}/verify"))

    def plugins(self, command: str, *pods: str) -> list[dict[str, Any]]:
        """Have the CNI plugins of a ``conflist=FILE`` lab carry out CHECK (for some pods or all), STATUS or GC (on
        every node): what each came to, ``complaints`` among it."""
        return list(self.client.call("POST", f"{BASE}/plugins", {"command": command, "pods": list(pods)}))

    # Traffic

    def probe(
        self,
        source: str,
        target: str,
        port: int = 0,
        protocol: Protocol | None = None,
        **options: Any,
    ) -> ProbeAnswer:
        """Send a request and wait for its answer: TCP if there is a port, else an ICMP echo, or as ``protocol`` says;
        to a Service as its port says.

        Options: count, size (bytes), timeout and interval (seconds), dont_fragment, family (4, 6), ttl.
        """
        return self.probes([ProbeRequest(source, target, port, protocol or "", **options)])[0]

    def probes(self, requests: Sequence[ProbeRequest]) -> list[ProbeAnswer]:
        """Many probes, all in flight at once; answers in the order of the requests."""
        patience = 30.0 + max((r.count * max(r.timeout, r.interval) + r.timeout for r in requests), default=0.0)
        answers = self.client.call("POST", f"{BASE}/probe", list(requests), timeout=patience)
        return msgspec.convert(answers, list[ProbeAnswer])

    def matrix(self, wish: MatrixWish | None = None) -> Matrix:
        """Who reaches whom, by packets, beside what network policies say of it: every request in flight at once."""
        answer = self.client.call("POST", f"{BASE}/matrix", wish or MatrixWish(), timeout=MATRIX_PATIENCE)
        return msgspec.convert(answer, Matrix)

    def stream(self, request: ProbeRequest, rate: float) -> Stream:
        """Requests at a constant rate (per second) while the ``with`` block runs; then ``result``."""
        return Stream(self, request, rate)

    def capture(self, *hops: str) -> Capture:
        """Capture at ``hops`` (``n1``, ``n1:flannel.1``, ``pod/default/web-0``, ``underlay``; none: everywhere)."""
        return Capture(self, hops)

    def trace(self, source: str, target: str, port: int = 0, protocol: Protocol | None = None, **options: Any) -> Trace:
        """Send one probe and follow its packets hop by hop."""
        with self.capture() as capture:
            answer = self.probe(source, target, port, protocol, **options)
        from emulator.lab.tracing import sort_journeys

        request, reply, others = sort_journeys(capture.journeys(), answer)
        return Trace(answer, request[0] if request else None, reply[0] if reply else None, others, capture.stats)

    def replay(
        self, source: str, pcap: bytes, rewrite: dict[str, str] | None = None, speed: float = 0.0, sender: str = ""
    ) -> InjectionReport:
        """Send the packets of a pcap from a place; says how many went out. ``speed`` 0: at once, 1: as recorded."""
        wish = {"source": source, "pcap": pcap, "rewrite": rewrite or {}, "speed": speed, "sender": sender}
        return _injected(self.client.call("POST", f"{BASE}/replay", wish))

    def send(self, source: str, expression: str, count: int = 1) -> InjectionReport:
        """Send hand-made packets, given as a scapy expression; says how many went out."""
        wish = {"source": source, "expression": expression, "count": count}
        return _injected(self.client.call("POST", f"{BASE}/send", wish))

    def fault(self, kind: str, target: str, **fields: Any) -> None:
        """Break something, or mend it (``mend=True``); docs/scenarios.md has the kinds and their fields, which are
        those of :class:`~emulator.lab.records.FaultWish`. Raises UserError for what cannot be."""
        self.client.call("POST", f"{BASE}/fault", {"kind": kind, "target": target, **fields})

    def bgp(self, place: str) -> list[SessionState]:
        """The BGP sessions of a node or router, as its BIRD sees them; none if BIRD is dead."""
        from emulator.kernel.bird_control import SessionState

        answer = self.client.call("GET", f"{BASE}/bgp?place={quote(place, '')}")
        return msgspec.convert(answer, list[SessionState])

    def routes(self, place: str) -> list[TableRoute]:
        """The main routing table of a pod or machine, without the kernel's own routes."""
        from emulator.kernel.route_table import TableRoute

        answer = self.client.call("GET", f"{BASE}/routes?place={quote(place, '')}")
        return msgspec.convert(answer, list[TableRoute])

    def meter_reset(self) -> None:
        """Count netfilter hook passes from here on."""
        self.client.call("POST", f"{BASE}/meter")

    def meter_read(self) -> list[Any]:
        """Netfilter hook passes since the reset: rows of [ns, hook, source, target, protocol, packets]."""
        return list(self.client.call("GET", f"{BASE}/meter"))

    def logs(self, place: str = "", daemon: str = "") -> dict[str, str]:
        """What daemons and pod commands have printed, by ``place/daemon``."""
        answer = self.client.call("GET", f"{BASE}/logs?place={quote(place, '')}&daemon={quote(daemon, '')}")
        return dict(answer)

    # Commands

    def exec(self, place: str, argv: Sequence[str]) -> int:
        """Run a command at a place with this process's own terminal; returns its exit status."""
        return self._launch().enter(self._entry(place), list(argv))

    def run(self, place: str, *argv: str, timeout: float | None = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command at a place and collect what it prints; ``timeout`` in seconds, None for any time."""
        return self._launch().run(self._entry(place), list(argv), timeout)

    def _entry(self, place: str) -> Entry:
        return msgspec.convert(self.client.call("GET", f"{BASE}/entry?place={quote(place, '')}"), Entry)

    def _launch(self) -> Launched:
        if self._launched is None:
            raise NotFound("this lab is not running")
        return self._launched

    def resolve(self, text: str) -> Any:
        """What a name means in this lab (``emulator.lab.names.Place``)."""
        return resolve(self.cluster(), text)


class Stream:
    """A constant-rate sequence of requests; see :meth:`Lab.stream`."""

    def __init__(self, lab: Lab, request: ProbeRequest, rate: float) -> None:
        self._lab = lab
        self._wish = {"probe": request, "rate": rate}
        self._id = ""
        self.target = self.address = ""  # what the name in the request came to
        self.result = StreamReport(id="", sent=0, received=0, duration=0.0)

    def __enter__(self) -> Stream:
        started = self._lab.client.call("POST", f"{BASE}/streams", self._wish)
        self._id, self.target, self.address = started["id"], started["target"], started["address"]
        return self

    def __exit__(self, *_exc: object) -> None:
        answer = self._lab.client.call("DELETE", f"{BASE}/streams/{self._id}")
        self.result = msgspec.convert(answer, StreamReport)


def _injected(answer: Any) -> InjectionReport:
    return msgspec.convert(answer, InjectionReport)


def _objects(manifests: Iterable[Manifest], namespaces: Sequence[str] = ()) -> tuple[dict[str, Any], ...]:
    """Parse what names files and folders; take dicts as they are. ``namespaces`` are those that the lab has already.
    Raises ManifestError with all that is wrong."""
    given = list(manifests)
    if not given:
        return ()  # as for every command that joins a lab: it need not wait for a YAML parser
    from emulator.cluster.manifests import load_manifests, validate_objects

    dicts = [item for item in given if isinstance(item, dict)]
    files = [os.fspath(item) for item in given if not isinstance(item, dict)]
    found = load_manifests(files, namespaces=namespaces) if files else []
    known = [*namespaces, *(one["metadata"]["name"] for one in found if one["kind"] == "Namespace")]
    return (*found, *(validate_objects(dicts, namespaces=known) if dicts else []))


def live(lab: Lab, hops: Sequence[str], target: IO[bytes], seconds: float = 0.0) -> None:
    """Copy the packets at ``hops`` to ``target`` as pcapng until the reader goes away, the lab ends, or ``seconds`` are
    over (0: never)."""
    query = f"{quote(','.join(hops), '')}&seconds={seconds:g}"
    try:
        lab.client.download(f"{BASE}/capture?hops={query}", target)  # type: ignore[arg-type]
    except BrokenPipeError:
        return
    except CnilabError as error:
        if isinstance(error, UserError):
            raise
